//! Message authentication codes.

use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};
use zeroize::Zeroizing;

use super::admit::{admit_algorithm, check_dry_run};
use crate::crypto::material::MacKey;
use crate::crypto::pair::PairError;
use crate::error::{ApiError, ErrorKind};
use crate::input::Input;
use crate::keyring::Key;
use crate::service::Call;
use crate::spec::{Algorithms, KeyUsage, MacAlgorithm};

const MESSAGE_MAX: usize = 4096;
const MAC_MAX: usize = 6144;

/// The parameters that GenerateMac and VerifyMac share.
struct Request {
    key_id: String,
    message: Zeroizing<Vec<u8>>,
    algorithm: MacAlgorithm,
    dry_run: bool,
}

impl Request {
    fn read(mut input: Input) -> Result<Self, ApiError> {
        let message = input.required_blob("Message", 1, MESSAGE_MAX)?;
        let key_id = input.required_key_id("KeyId")?;
        let names = MacAlgorithm::NAMES;
        let algorithm = input.required_one_of("MacAlgorithm", names, MacAlgorithm::from_name)?;
        let dry_run = input.boolean("DryRun")?;
        input.grant_tokens()?;
        input.finish()?;
        Ok(Self {
            key_id,
            message,
            algorithm: algorithm.ok_or_else(|| ApiError::bare(ErrorKind::KmsInternal))?,
            dry_run,
        })
    }

    fn admit(&self, call: &mut Call<'_>) -> Result<Arc<Key>, ApiError> {
        let more = vec![("kms:MacAlgorithm", self.algorithm.to_string())];
        let algorithm = (|all: Algorithms| all.mac, &self.algorithm);
        admit_algorithm(
            call,
            &self.key_id,
            more,
            KeyUsage::GenerateVerifyMac,
            algorithm,
        )
    }
}

/// `GenerateMac`.
pub(crate) fn generate(call: &mut Call<'_>, input: Input) -> Result<Value, ApiError> {
    let request = Request::read(input)?;
    let key = request.admit(call)?;
    check_dry_run(request.dry_run)?;
    let mac = mac_key(&key)?.generate(&request.message);
    Ok(json!({
        "KeyId": &*key.arn,
        "Mac": STANDARD.encode(mac),
        "MacAlgorithm": request.algorithm.name(),
    }))
}

/// `VerifyMac`.
pub(crate) fn verify(call: &mut Call<'_>, mut input: Input) -> Result<Value, ApiError> {
    let mac = input.required_blob("Mac", 1, MAC_MAX)?;
    let request = Request::read(input)?;
    let key = request.admit(call)?;
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
