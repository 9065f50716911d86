//! Encrypt, decrypt, re-encrypt, data keys, random bytes.

use std::collections::BTreeMap;
use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Map, Value, json};
use zeroize::Zeroizing;

use crate::crypto::blob::{self, Header, MaterialId};
use crate::crypto::random;
use crate::error::{ApiError, ErrorKind};
use crate::input::Input;
use crate::keyring::Key;
use crate::recipient::{self, Attested};
use crate::service::{Call, Facts};

const ENCRYPTION_ALGORITHMS: &[&str] = &[
    "SYMMETRIC_DEFAULT",
    "RSAES_OAEP_SHA_1",
    "RSAES_OAEP_SHA_256",
    "SM2PKE",
];
const DATA_KEY_SPECS: &[&str] = &["AES_256", "AES_128"];
const PLAINTEXT_MAX: usize = 4096;
const CIPHERTEXT_MAX: usize = 6144;

/// AWS's limit on an encryption context as a whole.
const CONTEXT_MAX: usize = 8192;

const UNKNOWN_CIPHERTEXT_KEY: &str = "The ciphertext refers to a customer master key that does not exist, does not exist in this region, or you are not allowed to access.";

type EncryptionContext = BTreeMap<String, String>;

/// `Encrypt`.
pub(crate) fn encrypt(call: &mut Call<'_>, mut input: Input) -> Result<Value, ApiError> {
    let key_id = input.required_key_id("KeyId")?;
    let plaintext = input.required_blob("Plaintext", 1, PLAINTEXT_MAX)?;
    let context = encryption_context(&input, "EncryptionContext")?;
    let algorithm = input.choice("EncryptionAlgorithm", ENCRYPTION_ALGORITHMS)?;
    let dry_run = input.boolean("DryRun")?;
    input.grant_tokens()?;
    input.finish()?;
    let key = call.find(&key_id)?;
    authorize_use(call, &key, "kms:Encrypt", &context, None, &key_id)?;
    key.usable()?;
    check_algorithm(&key, algorithm.as_deref())?;
    check_dry_run(dry_run)?;
    let (blob, _) = seal(&key, &context, &plaintext)?;
    Ok(json!({
        "CiphertextBlob": STANDARD.encode(blob),
        "KeyId": &*key.arn,
        "EncryptionAlgorithm": "SYMMETRIC_DEFAULT",
    }))
}

/// `Decrypt`.
pub(crate) fn decrypt(call: &mut Call<'_>, mut input: Input) -> Result<Value, ApiError> {
    let ciphertext = input.required_blob("CiphertextBlob", 1, CIPHERTEXT_MAX)?;
    let key_id = input.key_id("KeyId")?;
    let context = encryption_context(&input, "EncryptionContext")?;
    let algorithm = input.choice("EncryptionAlgorithm", ENCRYPTION_ALGORITHMS)?;
    let dry_run = input.boolean("DryRun")?;
    let recipient = recipient::parameter(&mut input)?;
    input.grant_tokens()?;
    input.finish()?;
    let attested = attest(call, recipient)?;
    let source = source_key(call, &ciphertext, key_id.as_deref())?;
    let named = key_id.as_deref().unwrap_or(&source.key.row.id).to_owned();
    authorize_use(
        call,
        &source.key,
        "kms:Decrypt",
        &context,
        attested.as_ref(),
        &named,
    )
    .map_err(|error| hide_foreign(call, &source, key_id.as_deref(), error))?;
    source.key.usable()?;
    check_algorithm(&source.key, algorithm.as_deref())?;
    let (plaintext, material) = source.open(&ciphertext, &context)?;
    check_dry_run(dry_run)?;
    let mut output = Map::new();
    output.insert("KeyId".to_owned(), (&*source.key.arn).into());
    output.insert("EncryptionAlgorithm".to_owned(), "SYMMETRIC_DEFAULT".into());
    output.insert("KeyMaterialId".to_owned(), material.to_string().into());
    deliver(&mut output, &plaintext, attested.as_ref())?;
    Ok(Value::Object(output))
}

/// `ReEncrypt`.
pub(crate) fn re_encrypt(call: &mut Call<'_>, mut input: Input) -> Result<Value, ApiError> {
    let ciphertext = input.required_blob("CiphertextBlob", 1, CIPHERTEXT_MAX)?;
    let source_id = input.key_id("SourceKeyId")?;
    let destination_id = input.required_key_id("DestinationKeyId")?;
    let source_context = encryption_context(&input, "SourceEncryptionContext")?;
    let destination_context = encryption_context(&input, "DestinationEncryptionContext")?;
    let source_algorithm = input.choice("SourceEncryptionAlgorithm", ENCRYPTION_ALGORITHMS)?;
    let destination_algorithm =
        input.choice("DestinationEncryptionAlgorithm", ENCRYPTION_ALGORITHMS)?;
    let dry_run = input.boolean("DryRun")?;
    input.grant_tokens()?;
    input.finish()?;
    let source = source_key(call, &ciphertext, source_id.as_deref())?;
    let destination = call.find(&destination_id)?;
    let same = source.key.row.id == destination.row.id;
    let named = source_id
        .as_deref()
        .unwrap_or(&source.key.row.id)
        .to_owned();
    let from = ("kms:ReEncryptFrom", &source_context, named.as_str());
    authorize_re_encrypt(call, &source.key, from, same)
        .map_err(|error| hide_foreign(call, &source, source_id.as_deref(), error))?;
    let to = (
        "kms:ReEncryptTo",
        &destination_context,
        destination_id.as_str(),
    );
    authorize_re_encrypt(call, &destination, to, same)?;
    source.key.usable()?;
    destination.usable()?;
    check_algorithm(&source.key, source_algorithm.as_deref())?;
    check_algorithm(&destination, destination_algorithm.as_deref())?;
    let (plaintext, source_material) = source.open(&ciphertext, &source_context)?;
    check_dry_run(dry_run)?;
    let (blob, destination_material) = seal(&destination, &destination_context, &plaintext)?;
    Ok(json!({
        "CiphertextBlob": STANDARD.encode(blob),
        "SourceKeyId": &*source.key.arn,
        "KeyId": &*destination.arn,
        "SourceEncryptionAlgorithm": "SYMMETRIC_DEFAULT",
        "DestinationEncryptionAlgorithm": "SYMMETRIC_DEFAULT",
        "SourceKeyMaterialId": source_material.to_string(),
        "DestinationKeyMaterialId": destination_material.to_string(),
    }))
}

/// `GenerateDataKey` and `GenerateDataKeyWithoutPlaintext`.
pub(crate) fn generate_data_key(
    call: &mut Call<'_>,
    mut input: Input,
    with_plaintext: bool,
) -> Result<Value, ApiError> {
    let key_id = input.required_key_id("KeyId")?;
    let context = encryption_context(&input, "EncryptionContext")?;
    let spec = input.choice("KeySpec", DATA_KEY_SPECS)?;
    let bytes = input.integer("NumberOfBytes", 1, 1024)?;
    let dry_run = input.boolean("DryRun")?;
    let recipient = if with_plaintext {
        recipient::parameter(&mut input)?
    } else {
        None
    };
    input.grant_tokens()?;
    input.finish()?;
    let length = match (spec.as_deref(), bytes) {
        (Some("AES_128"), None) => 16,
        (Some(_), None) => 32,
        (None, Some(bytes)) => usize::try_from(bytes).unwrap_or_default(),
        _ => {
            return Err(ApiError::validation(
                "Please specify either number of bytes or key spec.",
            ));
        }
    };
    let attested = attest(call, recipient)?;
    let key = call.find(&key_id)?;
    let action = match with_plaintext {
        true => "kms:GenerateDataKey",
        false => "kms:GenerateDataKeyWithoutPlaintext",
    };
    authorize_use(call, &key, action, &context, attested.as_ref(), &key_id)?;
    key.usable()?;
    check_dry_run(dry_run)?;
    let plaintext = random_bytes(length)?;
    let (blob, material) = seal(&key, &context, &plaintext)?;
    let mut output = Map::new();
    output.insert("CiphertextBlob".to_owned(), STANDARD.encode(blob).into());
    output.insert("KeyId".to_owned(), (&*key.arn).into());
    output.insert("KeyMaterialId".to_owned(), material.to_string().into());
    if with_plaintext {
        deliver(&mut output, &plaintext, attested.as_ref())?;
    }
    Ok(Value::Object(output))
}

/// `GenerateRandom`.
pub(crate) fn generate_random(call: &mut Call<'_>, mut input: Input) -> Result<Value, ApiError> {
    let bytes = input.integer("NumberOfBytes", 1, 1024)?;
    let recipient = recipient::parameter(&mut input)?;
    let custom_store = input.sized_string("CustomKeyStoreId", 1, 64)?;
    input.finish()?;
    let Some(bytes) = bytes else {
        return Err(ApiError::validation("NumberOfBytes is required."));
    };
    if custom_store.is_some() {
        return Err(ApiError::new(
            ErrorKind::UnsupportedOperation,
            "CustomKeyStoreId is not supported by this version of Enclos KMS.",
        ));
    }
    let attested = attest(call, recipient)?;
    call.authorize_without_key("kms:GenerateRandom")?;
    let plaintext = random_bytes(usize::try_from(bytes).unwrap_or_default())?;
    let mut output = Map::new();
    deliver(&mut output, &plaintext, attested.as_ref())?;
    Ok(Value::Object(output))
}

/// The key that a ciphertext belongs to.
struct Source {
    key: Arc<Key>,
    header: Header,
}

impl Source {
    fn open(
        &self,
        ciphertext: &[u8],
        context: &EncryptionContext,
    ) -> Result<(Zeroizing<Vec<u8>>, MaterialId), ApiError> {
        let invalid = || ApiError::bare(ErrorKind::InvalidCiphertext);
        let material = self
            .key
            .material(self.header.material)
            .ok_or_else(invalid)?;
        let plaintext =
            blob::decrypt(ciphertext, &material.secret, context).map_err(|_| invalid())?;
        Ok((plaintext, material.id))
    }
}

/// Finds the key of a ciphertext and compares it with the one that the caller named.
fn source_key(
    call: &mut Call<'_>,
    ciphertext: &[u8],
    named: Option<&str>,
) -> Result<Source, ApiError> {
    let named = named.map(|key_id| call.find(key_id)).transpose()?;
    let header =
        blob::header(ciphertext).map_err(|_| ApiError::bare(ErrorKind::InvalidCiphertext))?;
    if let Some(key) = named {
        if key.row.id != header.key_id {
            return Err(ApiError::new(
                ErrorKind::IncorrectKey,
                "The key ID in the request does not identify a CMK that can perform this operation.",
            ));
        }
        return Ok(Source { key, header });
    }
    let unknown = || ApiError::new(ErrorKind::AccessDenied, UNKNOWN_CIPHERTEXT_KEY);
    let key = call.service.keys.get(&header.key_id).ok_or_else(unknown)?;
    if key.place.region != call.here.region {
        return Err(unknown());
    }
    call.draft.resources.push(key.arn.to_string());
    Ok(Source { key, header })
}

/// Whoever holds a ciphertext of another account does not learn from a denial which key it is of.
fn hide_foreign(
    call: &Call<'_>,
    source: &Source,
    named: Option<&str>,
    error: ApiError,
) -> ApiError {
    let foreign = source.key.place.account != *call.caller.account();
    if foreign && named.is_none() && error.kind() == ErrorKind::AccessDenied {
        return ApiError::new(ErrorKind::AccessDenied, UNKNOWN_CIPHERTEXT_KEY);
    }
    error
}

fn encryption_context(input: &Input, name: &str) -> Result<EncryptionContext, ApiError> {
    let context = input.string_map(name)?;
    let size: usize = context
        .iter()
        .map(|(key, value)| key.len() + value.len())
        .sum();
    if size > CONTEXT_MAX {
        return Err(ApiError::validation(format!(
            "{name} has {size} bytes, at most {CONTEXT_MAX} are allowed."
        )));
    }
    Ok(context)
}

fn attest(
    call: &mut Call<'_>,
    document: Option<Zeroizing<Vec<u8>>>,
) -> Result<Option<Attested>, ApiError> {
    let Some(document) = document else {
        return Ok(None);
    };
    let attested = call.service.trust.verify(&document, call.now).inspect_err(|error| {
        tracing::warn!(request_id = %call.draft.request_id, caller = %call.caller, %error, "attestation document refused");
    })?;
    call.draft.recipient = Some(attested.audit());
    Ok(Some(attested))
}

fn authorize_use(
    call: &mut Call<'_>,
    key: &Key,
    action: &str,
    context: &EncryptionContext,
    attested: Option<&Attested>,
    named: &str,
) -> Result<(), ApiError> {
    let alias = request_alias(named);
    let more: Vec<(&str, String)> = alias
        .map(|alias| ("kms:RequestAlias", alias))
        .into_iter()
        .collect();
    let facts = Facts {
        encryption_context: Some(context),
        attested,
        uses_key: true,
        more: &more,
        ..Facts::default()
    };
    call.authorize(key, action, &facts)
}

fn authorize_re_encrypt(
    call: &mut Call<'_>,
    key: &Key,
    (action, context, named): (&str, &EncryptionContext, &str),
    same_key: bool,
) -> Result<(), ApiError> {
    let mut more = vec![("kms:ReEncryptOnSameKey", same_key.to_string())];
    more.extend(request_alias(named).map(|alias| ("kms:RequestAlias", alias)));
    let facts = Facts {
        encryption_context: Some(context),
        attested: None,
        uses_key: true,
        more: &more,
        ..Facts::default()
    };
    call.authorize(key, action, &facts)
}

/// The alias that a request named, without the rest of its ARN.
fn request_alias(named: &str) -> Option<String> {
    let at = named.find("alias/")?;
    let is_alias = at == 0 || named.starts_with("arn:");
    is_alias
        .then(|| named.get(at..).map(str::to_owned))
        .flatten()
}

fn check_algorithm(key: &Key, algorithm: Option<&str>) -> Result<(), ApiError> {
    match algorithm {
        None | Some("SYMMETRIC_DEFAULT") => Ok(()),
        Some(other) => Err(ApiError::new(
            ErrorKind::InvalidKeyUsage,
            format!(
                "Algorithm {other} is incompatible with key spec SYMMETRIC_DEFAULT of {}.",
                key.arn
            ),
        )),
    }
}

pub(crate) fn check_dry_run(dry_run: bool) -> Result<(), ApiError> {
    if dry_run {
        return Err(ApiError::new(
            ErrorKind::DryRunOperation,
            "The request would have succeeded, but the DryRun option is set.",
        ));
    }
    Ok(())
}

fn seal(
    key: &Key,
    context: &EncryptionContext,
    plaintext: &[u8],
) -> Result<(Vec<u8>, MaterialId), ApiError> {
    let Some(material) = key.current() else {
        return Err(ApiError::bare(ErrorKind::KmsInternal));
    };
    let header = Header {
        key_id: key.row.id.clone(),
        material: material.id,
    };
    let blob = blob::encrypt(&header, &material.secret, context, plaintext)
        .map_err(|error| ApiError::internal(&error))?;
    Ok((blob, material.id))
}

fn random_bytes(length: usize) -> Result<Zeroizing<Vec<u8>>, ApiError> {
    let mut bytes = Zeroizing::new(vec![0; length]);
    random(&mut bytes).map_err(|error| ApiError::internal(&error))?;
    Ok(bytes)
}

/// Puts a plaintext into the output: in the clear, or for the enclave alone.
fn deliver(
    output: &mut Map<String, Value>,
    plaintext: &[u8],
    attested: Option<&Attested>,
) -> Result<(), ApiError> {
    match attested {
        None => output.insert("Plaintext".to_owned(), STANDARD.encode(plaintext).into()),
        Some(attested) => {
            let envelope = attested
                .envelope(plaintext)
                .map_err(|error| ApiError::internal(&error))?;
            output.insert(
                "CiphertextForRecipient".to_owned(),
                STANDARD.encode(envelope).into(),
            )
        }
    };
    Ok(())
}
