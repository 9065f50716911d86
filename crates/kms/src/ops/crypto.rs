//! Encrypt, decrypt, re-encrypt: under symmetric keys and RSA.

use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Map, Value, json};
use zeroize::Zeroizing;

use super::admit::{
    EncryptionContext, Use, attest, check_algorithm, check_dry_run, check_usage, deliver,
    encryption_context, pair,
};
use crate::crypto::blob::{self, Header, MaterialId};
use crate::error::{ApiError, ErrorKind};
use crate::input::Input;
use crate::keyring::Key;
use crate::recipient;
use crate::service::Call;
use crate::spec::{EncryptionAlgorithm, KeyUsage};

const PLAINTEXT_MAX: usize = 4096;
const CIPHERTEXT_MAX: usize = 6144;

/// With this modifier, a dry run does without the ciphertext.
const IGNORE_CIPHERTEXT: &str = "IGNORE_CIPHERTEXT";

const UNKNOWN_CIPHERTEXT_KEY: &str = "The ciphertext refers to a customer master key that does not exist, does not exist in this region, or you are not allowed to access.";

/// `Encrypt`.
pub(crate) fn encrypt(call: &mut Call<'_>, mut input: Input) -> Result<Value, ApiError> {
    let key_id = input.required_key_id("KeyId")?;
    let plaintext = input.required_blob("Plaintext", 1, PLAINTEXT_MAX)?;
    let context = encryption_context(&input, "EncryptionContext")?;
    let algorithm = algorithm(&mut input, "EncryptionAlgorithm")?;
    let dry_run = input.boolean("DryRun")?;
    input.grant_tokens()?;
    input.finish()?;
    let using = Use {
        action: "kms:Encrypt",
        named: &key_id,
        context: Some(&context),
        more: vec![("kms:EncryptionAlgorithm", algorithm.to_string())],
        ..Use::default()
    };
    let key = using.admit(call, KeyUsage::EncryptDecrypt)?;
    check_algorithm(&key, key.algorithms().encryption, &algorithm)?;
    check_size(&key, algorithm, &plaintext)?;
    check_dry_run(dry_run)?;
    let (blob, _) = seal(&key, algorithm, &context, &plaintext)?;
    Ok(json!({
        "CiphertextBlob": STANDARD.encode(blob),
        "KeyId": &*key.arn,
        "EncryptionAlgorithm": algorithm.name(),
    }))
}

/// `Decrypt`.
pub(crate) fn decrypt(call: &mut Call<'_>, mut input: Input) -> Result<Value, ApiError> {
    let key_id = input.key_id("KeyId")?;
    let context = encryption_context(&input, "EncryptionContext")?;
    let algorithm = algorithm(&mut input, "EncryptionAlgorithm")?;
    let dry_run = input.boolean("DryRun")?;
    let ciphertext = ciphertext(&mut input, dry_run)?;
    let recipient = recipient::parameter(&mut input)?;
    input.grant_tokens()?;
    input.finish()?;
    let attested = attest(call, recipient)?;
    let named = (key_id.as_deref(), "kms:Decrypt");
    let mut source = Source::find(call, ciphertext.as_ref(), named, algorithm)?;
    let using = Use {
        action: "kms:Decrypt",
        named: key_id.as_deref().unwrap_or_else(|| source.key.id()),
        context: Some(&context),
        attested: attested.as_ref(),
        more: vec![("kms:EncryptionAlgorithm", algorithm.to_string())],
    };
    using
        .authorize(call, &source.key)
        .map_err(|error| source.hide_foreign(call, key_id.as_deref(), error))?;
    source.check(call)?;
    let Some(ciphertext) = ciphertext else {
        check_dry_run(true)?;
        return Ok(Value::Null);
    };
    let (plaintext, material) = source.open(&ciphertext, &context)?;
    check_dry_run(dry_run)?;
    let mut output = Map::new();
    output.insert("KeyId".to_owned(), (&*source.key.arn).into());
    output.insert("EncryptionAlgorithm".to_owned(), algorithm.name().into());
    if let Some(material) = material {
        output.insert("KeyMaterialId".to_owned(), material.to_string().into());
    }
    deliver(&mut output, "Plaintext", &plaintext, attested.as_ref())?;
    Ok(Value::Object(output))
}

/// `ReEncrypt`.
pub(crate) fn re_encrypt(call: &mut Call<'_>, mut input: Input) -> Result<Value, ApiError> {
    let source_id = input.key_id("SourceKeyId")?;
    let destination_id = input.required_key_id("DestinationKeyId")?;
    let source_context = encryption_context(&input, "SourceEncryptionContext")?;
    let destination_context = encryption_context(&input, "DestinationEncryptionContext")?;
    let from = algorithm(&mut input, "SourceEncryptionAlgorithm")?;
    let to = algorithm(&mut input, "DestinationEncryptionAlgorithm")?;
    let dry_run = input.boolean("DryRun")?;
    let ciphertext = ciphertext(&mut input, dry_run)?;
    input.grant_tokens()?;
    input.finish()?;
    let named = (source_id.as_deref(), "kms:ReEncryptFrom");
    let mut source = Source::find(call, ciphertext.as_ref(), named, from)?;
    // Who may not read the source does not learn whether there is such a destination.
    let destination = call.find_for(&destination_id, "kms:ReEncryptTo");
    let is_same = |destination: &Arc<Key>| source.key.row.id == destination.row.id;
    let same = destination.as_ref().is_ok_and(is_same).to_string();
    let facts = |algorithm: EncryptionAlgorithm| {
        vec![
            ("kms:ReEncryptOnSameKey", same.clone()),
            ("kms:EncryptionAlgorithm", algorithm.to_string()),
        ]
    };
    let reading = Use {
        action: "kms:ReEncryptFrom",
        named: source_id.as_deref().unwrap_or_else(|| source.key.id()),
        context: Some(&source_context),
        more: facts(from),
        ..Use::default()
    };
    reading
        .authorize(call, &source.key)
        .map_err(|error| source.hide_foreign(call, source_id.as_deref(), error))?;
    let destination = destination?;
    let writing = Use {
        action: "kms:ReEncryptTo",
        named: &destination_id,
        context: Some(&destination_context),
        more: facts(to),
        ..Use::default()
    };
    writing.authorize(call, &destination)?;
    source.check(call)?;
    destination.usable(call.now_ms())?;
    check_usage(call, &destination, KeyUsage::EncryptDecrypt)?;
    check_algorithm(&destination, destination.algorithms().encryption, &to)?;
    let Some(ciphertext) = ciphertext else {
        check_dry_run(true)?;
        return Ok(Value::Null);
    };
    let (plaintext, source_material) = source.open(&ciphertext, &source_context)?;
    check_size(&destination, to, &plaintext)?;
    check_dry_run(dry_run)?;
    let (blob, destination_material) = seal(&destination, to, &destination_context, &plaintext)?;
    let mut output = json!({
        "CiphertextBlob": STANDARD.encode(blob),
        "SourceKeyId": &*source.key.arn,
        "KeyId": &*destination.arn,
        "SourceEncryptionAlgorithm": from.name(),
        "DestinationEncryptionAlgorithm": to.name(),
    });
    let materials = [
        ("SourceKeyMaterialId", source_material),
        ("DestinationKeyMaterialId", destination_material),
    ];
    for (name, material) in materials {
        if let (Some(material), Some(members)) = (material, output.as_object_mut()) {
            members.insert(name.to_owned(), material.to_string().into());
        }
    }
    Ok(output)
}

fn algorithm(input: &mut Input, name: &str) -> Result<EncryptionAlgorithm, ApiError> {
    let names = EncryptionAlgorithm::NAMES;
    let found = input.one_of(name, names, EncryptionAlgorithm::from_name)?;
    Ok(found.unwrap_or(EncryptionAlgorithm::SymmetricDefault))
}

/// `CiphertextBlob`; none if a dry run does without.
fn ciphertext(input: &mut Input, dry_run: bool) -> Result<Option<Zeroizing<Vec<u8>>>, ApiError> {
    let modifiers = input.choices("DryRunModifiers", &[IGNORE_CIPHERTEXT])?;
    if modifiers.is_empty() {
        return input
            .required_blob("CiphertextBlob", 1, CIPHERTEXT_MAX)
            .map(Some);
    }
    input.blob("CiphertextBlob", 1, CIPHERTEXT_MAX)?;
    if !dry_run {
        return Err(ApiError::validation(
            "DryRunModifiers is only valid when DryRun is true.",
        ));
    }
    Ok(None)
}

/// The key that a ciphertext belongs to.
struct Source {
    key: Arc<Key>,
    /// What a ciphertext of a symmetric key says about itself.
    header: Option<Header>,
    /// What is wrong with the ciphertext. Told to those alone who may use the key.
    flaw: Option<ApiError>,
    algorithm: EncryptionAlgorithm,
}

impl Source {
    /// Finds the key of a ciphertext and compares it with the one that the caller named.
    fn find(
        call: &mut Call<'_>,
        ciphertext: Option<&Zeroizing<Vec<u8>>>,
        (named, action): (Option<&str>, &str),
        algorithm: EncryptionAlgorithm,
    ) -> Result<Self, ApiError> {
        let key = named.map(|key_id| call.find_for(key_id, action));
        let key = key.transpose()?;
        let symmetric = algorithm == EncryptionAlgorithm::SymmetricDefault;
        let Some(ciphertext) = ciphertext.filter(|_| symmetric) else {
            let key = key.ok_or_else(|| ApiError::validation("KeyId is required."))?;
            return Ok(Self {
                key,
                header: None,
                flaw: None,
                algorithm,
            });
        };
        let header = blob::header(ciphertext);
        let invalid = || ApiError::bare(ErrorKind::InvalidCiphertext);
        let Some(key) = key else {
            return Self::by_header(call, header.map_err(|_| invalid())?);
        };
        let flaw = match &header {
            Ok(header) if header.key_id == key.id() => None,
            Ok(_) => Some(ApiError::new(
                ErrorKind::IncorrectKey,
                "The key ID in the request does not identify a CMK that can perform this operation.",
            )),
            // Not a ciphertext of a symmetric key, nor is the key one: `check` finds that.
            Err(_) if !key.row.spec.is_symmetric_encryption() => None,
            Err(_) => Some(invalid()),
        };
        Ok(Self {
            key,
            header: header.ok(),
            flaw,
            algorithm,
        })
    }

    fn by_header(call: &mut Call<'_>, header: Header) -> Result<Self, ApiError> {
        call.check_grant_tokens()?;
        let (keys, region) = (&call.service.keys, &call.here.region);
        let unknown = || ApiError::new(ErrorKind::AccessDenied, UNKNOWN_CIPHERTEXT_KEY);
        let key = keys.in_region(&header.key_id, region);
        let key = key.ok_or_else(|| keys.missing(unknown()))?;
        call.draft.resources.push(key.arn.to_string());
        Ok(Self {
            key,
            header: Some(header),
            flaw: None,
            algorithm: EncryptionAlgorithm::SymmetricDefault,
        })
    }

    /// The ciphertext's own form; the key's state, usage and algorithm.
    fn check(&mut self, call: &Call<'_>) -> Result<(), ApiError> {
        self.flaw.take().map_or(Ok(()), Err)?;
        self.key.usable(call.now_ms())?;
        check_usage(call, &self.key, KeyUsage::EncryptDecrypt)?;
        check_algorithm(&self.key, self.key.algorithms().encryption, &self.algorithm)
    }

    fn open(
        &self,
        ciphertext: &[u8],
        context: &EncryptionContext,
    ) -> Result<(Zeroizing<Vec<u8>>, Option<MaterialId>), ApiError> {
        let invalid = || ApiError::bare(ErrorKind::InvalidCiphertext);
        let Some(header) = &self.header else {
            check_no_context(context)?;
            let plaintext = pair(&self.key)?.decrypt(self.algorithm, ciphertext);
            return Ok((plaintext.map_err(|_| invalid())?, None));
        };
        let material = self.key.symmetric_material(header.material);
        let material = material.ok_or_else(invalid)?;
        let plaintext = blob::decrypt(ciphertext, material, context).map_err(|_| invalid())?;
        Ok((plaintext, Some(header.material)))
    }

    /// Whoever holds a ciphertext of another account does not learn from a denial which key it is of.
    fn hide_foreign(&self, call: &Call<'_>, named: Option<&str>, error: ApiError) -> ApiError {
        let foreign = self.key.place.account != *call.caller.account();
        if foreign && named.is_none() && error.kind() == ErrorKind::AccessDenied {
            return ApiError::new(ErrorKind::AccessDenied, UNKNOWN_CIPHERTEXT_KEY);
        }
        error
    }
}

/// RSA encrypts no more than its modulus and padding leave.
fn check_size(key: &Key, algorithm: EncryptionAlgorithm, plaintext: &[u8]) -> Result<(), ApiError> {
    if algorithm == EncryptionAlgorithm::SymmetricDefault {
        return Ok(());
    }
    let max = pair(key)?
        .max_plaintext(algorithm)
        .map_err(|error| ApiError::internal(&error))?;
    if plaintext.len() > max {
        return Err(ApiError::validation(format!(
            "Algorithm {algorithm} and key spec {} cannot encrypt data larger than {max} bytes.",
            key.row.spec
        )));
    }
    Ok(())
}

fn check_no_context(context: &EncryptionContext) -> Result<(), ApiError> {
    if context.is_empty() {
        return Ok(());
    }
    Err(ApiError::validation(
        "EncryptionContext is not supported with asymmetric KMS keys.",
    ))
}

/// Encrypts under a key; of symmetric keys, also with which material.
pub(crate) fn seal(
    key: &Key,
    algorithm: EncryptionAlgorithm,
    context: &EncryptionContext,
    plaintext: &[u8],
) -> Result<(Vec<u8>, Option<MaterialId>), ApiError> {
    if algorithm != EncryptionAlgorithm::SymmetricDefault {
        check_no_context(context)?;
        let blob = pair(key)?.encrypt(algorithm, plaintext);
        return Ok((blob.map_err(|error| ApiError::internal(&error))?, None));
    }
    let Some((material, secret)) = key.symmetric() else {
        return Err(ApiError::bare(ErrorKind::KmsInternal));
    };
    let header = Header {
        key_id: key.id().to_owned(),
        material,
    };
    let blob = blob::encrypt(&header, secret, context, plaintext)
        .map_err(|error| ApiError::internal(&error))?;
    Ok((blob, Some(material)))
}
