//! Secrets that two sides come to share: ECDH and ML-KEM.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Map, Value, json};

use super::admit::{Use, attest, check_dry_run, deliver, pair, pair_error};
use crate::crypto::pair::PairError;
use crate::error::{ApiError, ErrorKind};
use crate::input::Input;
use crate::recipient;
use crate::service::Call;
use crate::spec::KeyUsage;

const PUBLIC_KEY_MAX: usize = 8192;
const CIPHERTEXT_MAX: usize = 6144;

/// `DeriveSharedSecret`.
pub(crate) fn derive(call: &mut Call<'_>, mut input: Input) -> Result<Value, ApiError> {
    let key_id = input.required_key_id("KeyId")?;
    let algorithm = input.choice("KeyAgreementAlgorithm", &["ECDH"])?;
    let algorithm = input.require("KeyAgreementAlgorithm", algorithm);
    let peer = input.required_blob("PublicKey", 1, PUBLIC_KEY_MAX)?;
    let dry_run = input.boolean("DryRun")?;
    let recipient = recipient::parameter(&mut input)?;
    input.grant_tokens()?;
    input.finish()?;
    let attested = attest(call, recipient)?;
    let using = Use {
        action: "kms:DeriveSharedSecret",
        named: &key_id,
        attested: attested.as_ref(),
        more: vec![("kms:KeyAgreementAlgorithm", algorithm.clone())],
        ..Use::default()
    };
    let key = using.admit(call, KeyUsage::KeyAgreement)?;
    let secret = pair(&key)?.agree(&peer).map_err(|error| match error {
        // AWS gives no reason.
        PairError::PeerKey => ApiError::bare(ErrorKind::Validation),
        other => pair_error(other),
    })?;
    check_dry_run(dry_run)?;
    let mut output = Map::new();
    output.insert("KeyId".to_owned(), (&*key.arn).into());
    output.insert("KeyAgreementAlgorithm".to_owned(), algorithm.into());
    output.insert("KeyOrigin".to_owned(), key.row.origin.name().into());
    deliver(&mut output, "SharedSecret", &secret, attested.as_ref())?;
    Ok(Value::Object(output))
}

/// `Encapsulate`.
pub(crate) fn encapsulate(call: &mut Call<'_>, mut input: Input) -> Result<Value, ApiError> {
    let request = Request::read(&mut input)?;
    input.finish()?;
    let key = request.admit(call, "kms:Encapsulate")?;
    check_dry_run(request.dry_run)?;
    let encapsulated = pair(&key)?.encapsulate().map_err(pair_error)?;
    Ok(json!({
        "KeyId": &*key.arn,
        "SharedSecret": STANDARD.encode(&*encapsulated.secret),
        "SharedSecretCiphertextBlob": STANDARD.encode(encapsulated.ciphertext),
        "EncapsulationAlgorithm": request.algorithm,
    }))
}

/// `Decapsulate`.
pub(crate) fn decapsulate(call: &mut Call<'_>, mut input: Input) -> Result<Value, ApiError> {
    let request = Request::read(&mut input)?;
    let ciphertext = input.required_blob("SharedSecretCiphertextBlob", 1, CIPHERTEXT_MAX)?;
    input.finish()?;
    let key = request.admit(call, "kms:Decapsulate")?;
    let secret = pair(&key)?
        .decapsulate(&ciphertext)
        .map_err(|_| ApiError::bare(ErrorKind::InvalidCiphertext))?;
    check_dry_run(request.dry_run)?;
    Ok(json!({
        "KeyId": &*key.arn,
        "SharedSecret": STANDARD.encode(&*secret),
        "EncapsulationAlgorithm": request.algorithm,
    }))
}

/// The parameters that Encapsulate and Decapsulate share.
struct Request {
    key_id: String,
    algorithm: String,
    dry_run: bool,
}

impl Request {
    fn read(input: &mut Input) -> Result<Self, ApiError> {
        let key_id = input.required_key_id("KeyId")?;
        let algorithm = input.choice("EncapsulationAlgorithm", &["ML_KEM"])?;
        let algorithm = input.require("EncapsulationAlgorithm", algorithm);
        input.grant_tokens()?;
        Ok(Self {
            key_id,
            algorithm,
            dry_run: input.boolean("DryRun")?,
        })
    }

    fn admit(
        &self,
        call: &mut Call<'_>,
        action: &str,
    ) -> Result<std::sync::Arc<crate::keyring::Key>, ApiError> {
        let using = Use {
            action,
            named: &self.key_id,
            more: vec![("kms:EncapsulationAlgorithm", self.algorithm.clone())],
            ..Use::default()
        };
        using.admit(call, KeyUsage::EncapsulateDecapsulate)
    }
}
