//! Message authentication codes.

use std::sync::Arc;

use serde_json::{Map, Value, json};
use zeroize::Zeroizing;

use super::admit::{Use, admit_algorithm, attest, check_dry_run, deliver};
use crate::crypto::material::MacKey;
use crate::crypto::pair::PairError;
use crate::error::{ApiError, ErrorKind};
use crate::input::Input;
use crate::keyring::Key;
use crate::recipient::{self, Attested};
use crate::service::Call;
use crate::spec::{Algorithms, KeyUsage, MacAlgorithm};

const MESSAGE_MAX: usize = 4096;
const MAC_MAX: usize = 6144;

/// The parameters that GenerateMac and VerifyMac share.
struct Request {
    key_id: String,
    message: Zeroizing<Vec<u8>>,
    algorithm: MacAlgorithm,
    recipient: Option<Zeroizing<Vec<u8>>>,
    dry_run: bool,
}

impl Request {
    /// Reads and checks the parameters; what else there is the caller has read before.
    fn read(call: &Call<'_>, mut input: Input) -> Result<Self, ApiError> {
        let message = input.required_blob("Message", 1, MESSAGE_MAX)?;
        let key_id = input.required_key_id("KeyId")?;
        let names = MacAlgorithm::NAMES;
        let algorithm = input.required_one_of("MacAlgorithm", names, MacAlgorithm::from_name)?;
        let recipient = recipient::extension(call, &mut input)?;
        let dry_run = input.boolean("DryRun")?;
        input.grant_tokens()?;
        input.finish()?;
        Ok(Self {
            key_id,
            message,
            recipient,
            algorithm: algorithm.ok_or_else(|| ApiError::bare(ErrorKind::KmsInternal))?,
            dry_run,
        })
    }

    /// The key, and the enclave that asks.
    fn admit(&mut self, call: &mut Call<'_>) -> Result<(Arc<Key>, Option<Attested>), ApiError> {
        let attested = attest(call, self.recipient.take())?;
        let using = Use {
            named: &self.key_id,
            attested: attested.as_ref(),
            more: vec![("kms:MacAlgorithm", self.algorithm.to_string())],
            ..Use::default()
        };
        let algorithm = (|all: Algorithms| all.mac, &self.algorithm);
        let key = admit_algorithm(call, using, KeyUsage::GenerateVerifyMac, algorithm)?;
        Ok((key, attested))
    }
}

/// `GenerateMac`.
pub(crate) fn generate(call: &mut Call<'_>, input: Input) -> Result<Value, ApiError> {
    let mut request = Request::read(call, input)?;
    let (key, attested) = request.admit(call)?;
    check_dry_run(request.dry_run)?;
    let mac = mac_key(&key)?.generate(&request.message);
    let mut output = Map::new();
    output.insert("KeyId".to_owned(), (&*key.arn).into());
    let algorithm = request.algorithm.name().into();
    output.insert("MacAlgorithm".to_owned(), algorithm);
    deliver(&mut output, "Mac", &mac, attested.as_ref())?;
    Ok(Value::Object(output))
}

/// `VerifyMac`.
pub(crate) fn verify(call: &mut Call<'_>, mut input: Input) -> Result<Value, ApiError> {
    let mac = input.required_blob("Mac", 1, MAC_MAX)?;
    let mut request = Request::read(call, input)?;
    let (key, _) = request.admit(call)?;
    if !mac_key(&key)?.verify(&request.message, &mac) {
        return Err(ApiError::bare(ErrorKind::KmsInvalidMac));
    }
    check_dry_run(request.dry_run)?;
    Ok(json!({
        "KeyId": &*key.arn,
        "MacValid": true,
        "MacAlgorithm": request.algorithm.name(),
    }))
}

fn mac_key(key: &Key) -> Result<&MacKey, ApiError> {
    key.mac().ok_or_else(|| ApiError::internal(&PairError::Key))
}
