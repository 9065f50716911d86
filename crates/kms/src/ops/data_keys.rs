//! Data keys, data key pairs, random bytes.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Map, Value};
use zeroize::Zeroizing;

use super::admit::{
    EncryptionContext, Use, attest, check_algorithm, check_dry_run, deliver, encryption_context,
    pair_error, random_bytes,
};
use super::crypto::seal;
use super::materials;
use crate::crypto::material::KeyMaterial;
use crate::error::{ApiError, ErrorKind};
use crate::input::Input;
use crate::keyring::Key;
use crate::recipient::{self, Attested};
use crate::service::{Call, Facts};
use crate::spec::{EncryptionAlgorithm, KeySpec, KeyUsage};

const DATA_KEY_SPECS: &[&str] = &["AES_256", "AES_128"];

const DATA_KEY_PAIR_SPECS: &[&str] = &[
    "RSA_2048",
    "RSA_3072",
    "RSA_4096",
    "ECC_NIST_P256",
    "ECC_NIST_P384",
    "ECC_NIST_P521",
    "ECC_SECG_P256K1",
    "SM2",
    "ECC_NIST_EDWARDS25519",
    "ML_KEM_512",
    "ML_KEM_768",
    "ML_KEM_1024",
];

/// The parameters that all data key operations have.
struct Request {
    key_id: String,
    context: EncryptionContext,
    recipient: Option<Zeroizing<Vec<u8>>>,
    dry_run: bool,
}

impl Request {
    fn read(input: &mut Input, with_plaintext: bool) -> Result<Self, ApiError> {
        let recipient = match with_plaintext {
            true => recipient::parameter(input)?,
            false => None,
        };
        input.grant_tokens()?;
        Ok(Self {
            key_id: input.required_key_id("KeyId")?,
            context: encryption_context(input, "EncryptionContext")?,
            recipient,
            dry_run: input.boolean("DryRun")?,
        })
    }

    /// The key that will encrypt, and the enclave that asks.
    fn admit(
        &mut self,
        call: &mut Call<'_>,
        pair: Option<KeySpec>,
    ) -> Result<(std::sync::Arc<Key>, Option<Attested>), ApiError> {
        let attested = attest(call, self.recipient.take())?;
        let algorithm = EncryptionAlgorithm::SymmetricDefault;
        let action = format!("kms:{}", call.draft.operation);
        let mut more = vec![("kms:EncryptionAlgorithm", algorithm.to_string())];
        more.extend(pair.map(|spec| ("kms:DataKeyPairSpec", spec.to_string())));
        let using = Use {
            action: &action,
            named: &self.key_id,
            context: Some(&self.context),
            attested: attested.as_ref(),
            more,
        };
        let key = using.admit(call, KeyUsage::EncryptDecrypt)?;
        check_algorithm(&key, key.algorithms().encryption, &algorithm)?;
        Ok((key, attested))
    }

    /// The sealed secret under `name`, and which key and material sealed it.
    fn sealed(&self, key: &Key, name: &str, secret: &[u8]) -> Result<Map<String, Value>, ApiError> {
        let algorithm = EncryptionAlgorithm::SymmetricDefault;
        let (blob, material) = seal(key, algorithm, &self.context, secret)?;
        let mut output = Map::new();
        output.insert(name.to_owned(), STANDARD.encode(blob).into());
        output.insert("KeyId".to_owned(), (&*key.arn).into());
        if let Some(material) = material {
            output.insert("KeyMaterialId".to_owned(), material.to_string().into());
        }
        Ok(output)
    }
}

/// `GenerateDataKey` and `GenerateDataKeyWithoutPlaintext`.
pub(crate) fn generate(
    call: &mut Call<'_>,
    mut input: Input,
    with_plaintext: bool,
) -> Result<Value, ApiError> {
    let mut request = Request::read(&mut input, with_plaintext)?;
    let spec = input.choice("KeySpec", DATA_KEY_SPECS)?;
    let bytes = input.integer("NumberOfBytes", 1, 1024)?;
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
    let (key, attested) = request.admit(call, None)?;
    check_dry_run(request.dry_run)?;
    let plaintext = random_bytes(length)?;
    let mut output = request.sealed(&key, "CiphertextBlob", &plaintext)?;
    if with_plaintext {
        deliver(&mut output, "Plaintext", &plaintext, attested.as_ref())?;
    }
    Ok(Value::Object(output))
}

/// `GenerateDataKeyPair` and `GenerateDataKeyPairWithoutPlaintext`.
pub(crate) async fn generate_pair(
    call: &mut Call<'_>,
    mut input: Input,
    with_plaintext: bool,
) -> Result<Value, ApiError> {
    let mut request = Request::read(&mut input, with_plaintext)?;
    let spec = input.required_one_of("KeyPairSpec", DATA_KEY_PAIR_SPECS, KeySpec::from_name)?;
    input.finish()?;
    let spec = spec.ok_or_else(|| ApiError::bare(ErrorKind::KmsInternal))?;
    let (key, attested) = request.admit(call, Some(spec))?;
    // ML-KEM's private keys have no PKCS#8 form in aws-lc yet.
    if matches!(
        spec,
        KeySpec::Sm2 | KeySpec::MlKem512 | KeySpec::MlKem768 | KeySpec::MlKem1024
    ) {
        return Err(ApiError::new(
            ErrorKind::UnsupportedOperation,
            format!("KeyPairSpec {spec} is not supported by this version of Enclos KMS."),
        ));
    }
    check_dry_run(request.dry_run)?;
    let material = materials::generate(spec, KeyUsage::SignVerify).await?;
    let KeyMaterial::Pair(pair) = material else {
        return Err(ApiError::bare(ErrorKind::KmsInternal));
    };
    let public = pair.public_der().map_err(pair_error)?;
    let mut output = request.sealed(&key, "PrivateKeyCiphertextBlob", pair.private())?;
    output.insert("KeyPairSpec".to_owned(), spec.name().into());
    output.insert("PublicKey".to_owned(), STANDARD.encode(public).into());
    if with_plaintext {
        let name = "PrivateKeyPlaintext";
        deliver(&mut output, name, pair.private(), attested.as_ref())?;
    }
    Ok(Value::Object(output))
}

/// `GenerateRandom`.
pub(crate) fn random(call: &mut Call<'_>, mut input: Input) -> Result<Value, ApiError> {
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
    let facts = Facts {
        attested: attested.as_ref(),
        ..Facts::default()
    };
    call.authorize_on("kms:GenerateRandom", "*", &facts)?;
    let plaintext = random_bytes(usize::try_from(bytes).unwrap_or_default())?;
    let mut output = Map::new();
    deliver(&mut output, "Plaintext", &plaintext, attested.as_ref())?;
    Ok(Value::Object(output))
}
