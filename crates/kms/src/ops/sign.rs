//! Signatures and public keys.

use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Map, Value, json};
use zeroize::Zeroizing;

use super::admit::{Use, admit_algorithm, attest, check_dry_run, deliver, pair, pair_error};
use crate::crypto::pair::PairError;
use crate::error::{ApiError, ErrorKind};
use crate::input::Input;
use crate::keyring::Key;
use crate::recipient::{self, Attested};
use crate::service::Call;
use crate::spec::{Algorithms, KeyUsage, MessageType, SigningAlgorithm};

const MESSAGE_MAX: usize = 4096;
const SIGNATURE_MAX: usize = 6144;

/// The parameters that Sign and Verify share.
struct Request {
    key_id: String,
    message: Zeroizing<Vec<u8>>,
    kind: MessageType,
    algorithm: SigningAlgorithm,
    recipient: Option<Zeroizing<Vec<u8>>>,
    dry_run: bool,
}

impl Request {
    /// Reads and checks the parameters; what else there is the caller has read before.
    fn read(call: &Call<'_>, mut input: Input) -> Result<Self, ApiError> {
        let key_id = input.required_key_id("KeyId")?;
        let message = input.required_blob("Message", 1, MESSAGE_MAX)?;
        let kind = input.one_of("MessageType", MessageType::NAMES, MessageType::from_name)?;
        let names = SigningAlgorithm::NAMES;
        let algorithm =
            input.required_one_of("SigningAlgorithm", names, SigningAlgorithm::from_name)?;
        let recipient = recipient::extension(call, &mut input)?;
        let dry_run = input.boolean("DryRun")?;
        input.grant_tokens()?;
        input.finish()?;
        Ok(Self {
            key_id,
            message,
            recipient,
            kind: kind.unwrap_or(MessageType::Raw),
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
            more: vec![
                ("kms:SigningAlgorithm", self.algorithm.to_string()),
                ("kms:MessageType", self.kind.to_string()),
            ],
            ..Use::default()
        };
        let algorithm = (|all: Algorithms| all.signing, &self.algorithm);
        let key = admit_algorithm(call, using, KeyUsage::SignVerify, algorithm)?;
        Ok((key, attested))
    }

    fn refused(&self, error: PairError) -> ApiError {
        match error {
            PairError::DigestLength => ApiError::validation(format!(
                "Digest is invalid length for algorithm {}.",
                self.algorithm
            )),
            PairError::MessageType => ApiError::validation(format!(
                "MessageType {} is not valid for algorithm {}.",
                self.kind, self.algorithm
            )),
            other => pair_error(other),
        }
    }
}

/// `Sign`.
pub(crate) fn sign(call: &mut Call<'_>, input: Input) -> Result<Value, ApiError> {
    let mut request = Request::read(call, input)?;
    let (key, attested) = request.admit(call)?;
    let signature = pair(&key)?
        .sign(request.algorithm, request.kind, &request.message)
        .map_err(|error| request.refused(error))?;
    check_dry_run(request.dry_run)?;
    let mut output = Map::new();
    output.insert("KeyId".to_owned(), (&*key.arn).into());
    let algorithm = request.algorithm.name().into();
    output.insert("SigningAlgorithm".to_owned(), algorithm);
    deliver(&mut output, "Signature", &signature, attested.as_ref())?;
    Ok(Value::Object(output))
}

/// `Verify`.
pub(crate) fn verify(call: &mut Call<'_>, mut input: Input) -> Result<Value, ApiError> {
    let signature = input.required_blob("Signature", 1, SIGNATURE_MAX)?;
    let mut request = Request::read(call, input)?;
    let (key, _) = request.admit(call)?;
    let valid = pair(&key)?
        .verify(
            request.algorithm,
            request.kind,
            &request.message,
            &signature,
        )
        .map_err(|error| request.refused(error))?;
    if !valid {
        return Err(ApiError::bare(ErrorKind::KmsInvalidSignature));
    }
    check_dry_run(request.dry_run)?;
    Ok(json!({
        "KeyId": &*key.arn,
        "SignatureValid": true,
        "SigningAlgorithm": request.algorithm.name(),
    }))
}

/// `GetPublicKey`.
pub(crate) fn public_key(call: &mut Call<'_>, mut input: Input) -> Result<Value, ApiError> {
    let key_id = input.required_key_id("KeyId")?;
    input.grant_tokens()?;
    input.finish()?;
    let using = Use {
        action: "kms:GetPublicKey",
        named: &key_id,
        ..Use::default()
    };
    let key = call.find(&key_id)?;
    using.authorize(call, &key)?;
    // A disabled key still shows its public half, whatever AWS's table of key states says.
    key.not_pending_deletion()?;
    key.not_pending_import(call.now_ms())?;
    if !key.row.spec.is_asymmetric() {
        return Err(ApiError::new(
            ErrorKind::UnsupportedOperation,
            format!(
                "{} is not an asymmetric key: its key spec is {}.",
                key.arn, key.row.spec
            ),
        ));
    }
    let public = pair(&key)?.public_der().map_err(pair_error)?;
    let mut output = json!({
        "KeyId": &*key.arn,
        "PublicKey": STANDARD.encode(public),
        "CustomerMasterKeySpec": key.row.spec.name(),
        "KeySpec": key.row.spec.name(),
        "KeyUsage": key.row.usage.name(),
    });
    key.add_algorithms(&mut output);
    Ok(output)
}
