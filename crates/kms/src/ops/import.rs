//! Import of key material: wrapped for this server, checked, and forgotten when its owner or its time says so.

use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};
use zeroize::Zeroizing;

use super::keys::manage;
use super::materials;
use super::rotation::wrong_origin;
use crate::crypto::blob::MaterialId;
use crate::crypto::material::KeyMaterial;
use crate::crypto::wrapping::{Token, TokenError};
use crate::error::{ApiError, ErrorKind};
use crate::input::Input;
use crate::keyring::{Key, Material, seconds};
use crate::service::{Call, Service};
use crate::spec::{KeySpec, Origin, WrappingAlgorithm};
use crate::store::{Change, KeyRow};

/// AWS's limit on both blobs.
const BLOB_MAX: usize = 6144;

/// How long a wrapping key and its token are valid.
const TOKEN_MS: i64 = 86_400_000;

/// How far ahead material may expire.
const VALID_TO_MAX_MS: i64 = 365 * 86_400_000;

const EXPIRES: &str = "KEY_MATERIAL_EXPIRES";
const EXPIRATION_MODELS: &[&str] = &[EXPIRES, "KEY_MATERIAL_DOES_NOT_EXPIRE"];
const NEW: &str = "NEW_KEY_MATERIAL";
const IMPORT_TYPES: &[&str] = &[NEW, "EXISTING_KEY_MATERIAL"];

/// `GetParametersForImport`.
pub(crate) async fn parameters(call: &mut Call<'_>, mut input: Input) -> Result<Value, ApiError> {
    let key_id = input.required_key_id("KeyId")?;
    let names = WrappingAlgorithm::NAMES;
    let algorithm =
        input.required_one_of("WrappingAlgorithm", names, WrappingAlgorithm::from_name)?;
    let specs = &["RSA_2048", "RSA_3072", "RSA_4096", "SM2"];
    let spec = input.required_one_of("WrappingKeySpec", specs, KeySpec::from_name)?;
    input.finish()?;
    let (Some(algorithm), Some(spec)) = (algorithm, spec) else {
        return Err(ApiError::bare(ErrorKind::KmsInternal));
    };
    let more = [
        ("kms:WrappingAlgorithm", algorithm.to_string()),
        ("kms:WrappingKeySpec", spec.to_string()),
    ];
    let key = manage(call, &key_id, &more)?;
    check_external(&key)?;
    key.not_pending_deletion()?;
    check_wrapping(&key, algorithm, spec)?;
    let valid_to_ms = call.now_ms() + TOKEN_MS;
    let token = materials::apart(move || Token::generate(algorithm, spec, valid_to_ms)).await?;
    let token = token.map_err(|error| ApiError::internal(&error))?;
    let public = token
        .public_der()
        .map_err(|error| ApiError::internal(&error))?;
    let sealed = token
        .seal(&call.service.root, &key.row.id)
        .map_err(|error| ApiError::internal(&error))?;
    Ok(json!({
        "KeyId": &*key.arn,
        "ImportToken": STANDARD.encode(sealed),
        "PublicKey": STANDARD.encode(public),
        "ParametersValidTo": seconds(valid_to_ms),
    }))
}

fn check_wrapping(key: &Key, algorithm: WrappingAlgorithm, spec: KeySpec) -> Result<(), ApiError> {
    let retired = matches!(
        algorithm,
        WrappingAlgorithm::RsaesPkcs1V15 | WrappingAlgorithm::Sm2Pke
    );
    if retired || spec == KeySpec::Sm2 {
        return Err(ApiError::new(
            ErrorKind::UnsupportedOperation,
            format!("WrappingAlgorithm {algorithm} with WrappingKeySpec {spec} is not supported."),
        ));
    }
    let direct = matches!(
        algorithm,
        WrappingAlgorithm::RsaesOaepSha1 | WrappingAlgorithm::RsaesOaepSha256
    );
    // An RSA private key is longer than anything that RSA encrypts.
    if direct
        && matches!(
            key.row.spec,
            KeySpec::Rsa2048 | KeySpec::Rsa3072 | KeySpec::Rsa4096
        )
    {
        return Err(ApiError::validation(format!(
            "WrappingAlgorithm {algorithm} is not compatible with KeySpec {}",
            key.row.spec
        )));
    }
    Ok(())
}

/// What `ImportKeyMaterial` is asked to import, and how.
struct Request {
    key_id: String,
    token: Zeroizing<Vec<u8>>,
    wrapped: Zeroizing<Vec<u8>>,
    valid_to_ms: Option<i64>,
    new: Option<bool>,
    description: Option<String>,
    material_id: Option<String>,
    condition: Vec<(&'static str, String)>,
}

impl Request {
    fn read(mut input: Input, now_ms: i64) -> Result<Self, ApiError> {
        let key_id = input.required_key_id("KeyId")?;
        let token = input.required_blob("ImportToken", 1, BLOB_MAX)?;
        let wrapped = input.required_blob("EncryptedKeyMaterial", 1, BLOB_MAX)?;
        let valid_to_ms = input.time_ms("ValidTo")?;
        let model = input.choice("ExpirationModel", EXPIRATION_MODELS)?;
        let kind = input.choice("ImportType", IMPORT_TYPES)?;
        let description = description(&mut input)?;
        let material_id = material_id(&mut input)?;
        input.finish()?;
        let model = model.unwrap_or_else(|| EXPIRES.to_owned());
        check_expiry(&model, valid_to_ms, now_ms)?;
        let new = kind.map(|kind| kind == NEW);
        if new == Some(true) && material_id.is_some() {
            return Err(ApiError::validation(
                "KeyMaterialId cannot be specified when ImportType is NEW_KEY_MATERIAL.",
            ));
        }
        let mut condition = vec![("kms:ExpirationModel", model)];
        condition.extend(valid_to_ms.map(|at| ("kms:ValidTo", (at / 1000).to_string())));
        Ok(Self {
            key_id,
            token,
            wrapped,
            valid_to_ms,
            new,
            description,
            material_id,
            condition,
        })
    }
}

fn check_expiry(model: &str, valid_to_ms: Option<i64>, now_ms: i64) -> Result<(), ApiError> {
    match (model == EXPIRES, valid_to_ms) {
        (true, None) => Err(ApiError::validation(
            "A validTo date must be set if the ExpirationModel is KEY_MATERIAL_EXPIRES",
        )),
        (false, Some(_)) => Err(ApiError::validation(
            "A validTo date must not be set if the ExpirationModel is KEY_MATERIAL_DOES_NOT_EXPIRE",
        )),
        (true, Some(at)) if at <= now_ms => Err(ApiError::validation(
            "ValidTo must be a date in the future.",
        )),
        (true, Some(at)) if at > now_ms + VALID_TO_MAX_MS => Err(ApiError::validation(
            "ValidTo must be at most 365 days in the future.",
        )),
        _ => Ok(()),
    }
}

fn description(input: &mut Input) -> Result<Option<String>, ApiError> {
    let allowed = |c: char| c.is_ascii_alphanumeric() || ":/_.-".contains(c) || c.is_whitespace();
    let matches = |text: &str| !text.is_empty() && text.chars().all(allowed);
    let pattern = "^[a-zA-Z0-9:/_\\s.-]+$";
    input.patterned_string("KeyMaterialDescription", (0, 256), pattern, matches)
}

fn material_id(input: &mut Input) -> Result<Option<String>, ApiError> {
    let hex = |text: &str| text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
    input.patterned_string("KeyMaterialId", (64, 64), "^[a-f0-9]+$", hex)
}

/// `ImportKeyMaterial`.
pub(crate) async fn import(call: &mut Call<'_>, input: Input) -> Result<Value, ApiError> {
    let request = Request::read(input, call.now_ms())?;
    let _management = call.manage().await?;
    let key = manage(call, &request.key_id, &request.condition)?;
    check_external(&key)?;
    key.not_pending_deletion()?;
    let secret = unwrap(call, &key, &request)?;
    let material = placed(call.service, &key, &request, secret, call.now_ms())?;
    let id = material.id;
    let mut changes = vec![materials::put(call.service, &key, material)?];
    // With its material back, the key is usable again, as on AWS.
    if key.not_pending_import(call.now_ms()).is_err() {
        changes.push(Change::UpdateKey(KeyRow {
            enabled: true,
            ..key.row.clone()
        }));
    }
    call.change(changes).await?;
    let mut output = json!({ "KeyId": &*key.arn });
    if let (true, Some(members)) = (
        key.row.spec.is_symmetric_encryption(),
        output.as_object_mut(),
    ) {
        members.insert("KeyMaterialId".to_owned(), id.to_string().into());
    }
    Ok(output)
}

/// Opens what was wrapped for this key.
fn unwrap(call: &Call<'_>, key: &Key, request: &Request) -> Result<KeyMaterial, ApiError> {
    let token = Token::open(
        &call.service.root,
        &key.row.id,
        &request.token,
        call.now_ms(),
    );
    let token = token.map_err(|error| match error {
        TokenError::Expired => ApiError::bare(ErrorKind::ExpiredImportToken),
        TokenError::Invalid => ApiError::bare(ErrorKind::InvalidImportToken),
    })?;
    let bytes = token
        .unwrap(&request.wrapped)
        .map_err(|_| ApiError::bare(ErrorKind::InvalidCiphertext))?;
    KeyMaterial::import(key.row.spec, key.row.usage, bytes)
        .map_err(|error| incorrect(format!("The key material is not usable: {error}.")))
}

/// The version of the key that the material is: one that is known, the first, or one that waits for a rotation.
fn placed(
    service: &Service,
    key: &Arc<Key>,
    request: &Request,
    secret: KeyMaterial,
    now_ms: i64,
) -> Result<Material, ApiError> {
    let id = materials::imported_id(key, &secret);
    let named = request.material_id.as_deref();
    if named.is_some_and(|named| *named != id.to_string()) {
        return Err(incorrect(
            "The key material is not the one that KeyMaterialId names.".to_owned(),
        ));
    }
    let known = key.material(id);
    let first = key.materials().is_empty();
    // The first import is a new one, later ones repeat what is known, unless the caller says otherwise.
    let new = request.new.unwrap_or(first) && named.is_none();
    let material = match known {
        Some(_) if new && request.new.is_some() => {
            return Err(incorrect(
                "The key material is already associated with the key.".to_owned(),
            ));
        }
        Some(known) => known.clone(),
        None => unknown(service, key, id, new, now_ms)?,
    };
    let description = request.description.as_deref().map(Into::into);
    Ok(Material {
        valid_to_ms: request.valid_to_ms,
        description: description.or_else(|| material.description.clone()),
        secret: Some(Arc::new(secret)),
        ..material
    })
}

/// A version for material that the key has not seen yet.
fn unknown(
    service: &Service,
    key: &Arc<Key>,
    id: MaterialId,
    new: bool,
    now_ms: i64,
) -> Result<Material, ApiError> {
    let primary = service.keys.primary(key);
    let of_primary = primary
        .material(id)
        .filter(|_| primary.row.id != key.row.id);
    let is_replica = key.is_multi_region() && !key.is_primary();
    if is_replica && of_primary.is_none() {
        return Err(incorrect(
            "The key material is not the one of the primary key.".to_owned(),
        ));
    }
    if !is_replica && !new {
        return Err(incorrect(
            "The key material is not the one that was imported before.".to_owned(),
        ));
    }
    let first = key.materials().is_empty();
    let rotates = key.row.spec.is_symmetric_encryption();
    if !first && !rotates {
        return Err(incorrect(
            "The key material of this kind of key cannot be changed.".to_owned(),
        ));
    }
    if let Some(pending) = key.pending().filter(|_| !is_replica) {
        return Err(ApiError::new(
            ErrorKind::KmsInvalidState,
            format!(
                "New key material (id: {id}) cannot be imported into KMS key {}, because another key material (id: {}) is pending rotation.",
                key.arn, pending.id
            ),
        ));
    }
    Ok(Material {
        id,
        version: of_primary.map_or_else(|| materials::next_version(key), |known| known.version),
        created_ms: now_ms,
        pending: of_primary.map_or(!first, |known| known.pending),
        rotation: of_primary.and_then(|known| known.rotation.clone()),
        valid_to_ms: None,
        description: None,
        secret: None,
    })
}

/// `DeleteImportedKeyMaterial`.
pub(crate) async fn delete(call: &mut Call<'_>, mut input: Input) -> Result<Value, ApiError> {
    let key_id = input.required_key_id("KeyId")?;
    let named = material_id(&mut input)?;
    input.finish()?;
    let _management = call.manage().await?;
    let key = manage(call, &key_id, &[])?;
    check_external(&key)?;
    let material = match &named {
        None => key.current(),
        Some(named) => {
            let mut all = key.materials().iter();
            let found = all.find(|material| material.id.to_string() == *named);
            Some(found.ok_or_else(|| {
                ApiError::not_found(format!("Key material '{named}' does not exist"))
            })?)
        }
    };
    let mut output = json!({ "KeyId": &*key.arn });
    let Some(material) = material.cloned() else {
        return Ok(output);
    };
    let id = material.id.to_string();
    let change = forgotten(call.service, &key, material)?;
    call.change(change).await?;
    if let (true, Some(members)) = (
        key.row.spec.is_symmetric_encryption(),
        output.as_object_mut(),
    ) {
        members.insert("KeyMaterialId".to_owned(), id.into());
    }
    Ok(output)
}

/// The change that forgets the secret of a material. One that only waited for a rotation goes altogether.
pub(crate) fn forgotten(
    service: &Service,
    key: &Key,
    material: Material,
) -> Result<Change, ApiError> {
    if material.pending {
        let id = key.row.id.clone();
        return Ok(Change::DeleteMaterial(id, material.version));
    }
    let empty = Material {
        secret: None,
        valid_to_ms: None,
        ..material
    };
    materials::put(service, key, empty)
}

/// Materials that have expired.
pub(crate) fn expired(key: &Key, now_ms: i64) -> impl Iterator<Item = &Material> {
    let expired = move |material: &&Material| material.valid_to_ms.is_some_and(|at| at <= now_ms);
    key.materials().iter().filter(expired)
}

fn check_external(key: &Key) -> Result<(), ApiError> {
    match key.row.origin {
        Origin::External => Ok(()),
        _ => Err(wrong_origin(key)),
    }
}

fn incorrect(message: String) -> ApiError {
    ApiError::new(ErrorKind::IncorrectKeyMaterial, message)
}
