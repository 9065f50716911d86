//! Key pairs: RSA, elliptic curves, Ed25519, ML-DSA and ML-KEM.
//!
//! aws-lc does the arithmetic. It has no interface for two of AWS's variants, which take a digest that the caller
//! made: Ed25519ph (`ed25519-dalek`) and ML-DSA's external mu (`ml-dsa`).
//!
//! | kind | private form, as sealed at rest |
//! |---|---|
//! | RSA, EC, Ed25519 | PKCS#8, DER |
//! | ML-DSA | the seed, 32 bytes |
//! | ML-KEM | FIPS 203's decapsulation key |

use std::sync::OnceLock;

use aws_lc_rs::agreement::{self, PrivateKey as EcdhKey};
use aws_lc_rs::digest::{self, Digest};
use aws_lc_rs::encoding::{
    AsBigEndian as _, AsDer as _, Curve25519SeedBin, Pkcs8V1Der, PublicKeyX509Der,
};
use aws_lc_rs::kem::{self, DecapsulationKey, EncapsulationKey};
use aws_lc_rs::rsa::{
    KeySize, OAEP_SHA1_MGF1SHA1, OAEP_SHA256_MGF1SHA256, OaepAlgorithm, OaepPrivateDecryptingKey,
    OaepPublicEncryptingKey, PrivateDecryptingKey,
};
use aws_lc_rs::signature::{
    self as sig, EcdsaKeyPair, EcdsaSigningAlgorithm, Ed25519KeyPair, KeyPair as _, PqdsaKeyPair,
    PqdsaSigningAlgorithm, RsaEncoding, RsaKeyPair, UnparsedPublicKey, VerificationAlgorithm,
};
use zeroize::Zeroizing;

use super::{external_mu, prehash, random};
use crate::spec::{EncryptionAlgorithm, KeySpec, KeyUsage, MessageType, SigningAlgorithm};

/// Bytes of an ML-DSA seed.
const SEED_LEN: usize = 32;

/// Bytes of ML-DSA's mu and of an Ed25519ph digest.
const LONG_DIGEST_LEN: usize = 64;

/// A private key, wiped when dropped, and what it was made for. It is parsed when it is first used.
pub struct KeyPair {
    spec: KeySpec,
    usage: KeyUsage,
    private: Zeroizing<Vec<u8>>,
    parsed: OnceLock<Parsed>,
}

impl std::fmt::Debug for KeyPair {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("KeyPair")
            .field("spec", &self.spec)
            .field("usage", &self.usage)
            .finish_non_exhaustive()
    }
}

/// Why a key pair could not be used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum PairError {
    /// The bytes are no private key of this kind.
    #[error("not a private key of the expected kind")]
    Key,
    /// The cryptographic library refused.
    #[error("the {0} operation failed")]
    Failed(&'static str),
    /// The digest has not the algorithm's length.
    #[error("the digest is not of the algorithm's length")]
    DigestLength,
    /// The algorithm does not take messages of this type.
    #[error("the algorithm does not take messages of this type")]
    MessageType,
    /// The peer's public key is none, or of another curve.
    #[error("not a public key of the same curve")]
    PeerKey,
    /// The ciphertext does not open.
    #[error("the ciphertext does not open under this key")]
    Ciphertext,
}

enum Parsed {
    RsaSigning(RsaKeyPair),
    RsaDecrypting(OaepPrivateDecryptingKey),
    Ecdsa(EcdsaKeyPair),
    Ecdh(EcdhKey),
    Ed25519(Ed25519KeyPair),
    MlDsa(PqdsaKeyPair),
    MlKem(DecapsulationKey),
}

/// An encapsulated secret.
#[derive(Debug)]
pub struct Encapsulated {
    /// What goes to whoever holds the key.
    pub ciphertext: Vec<u8>,
    /// What both sides have then.
    pub secret: Zeroizing<Vec<u8>>,
}

impl KeyPair {
    /// Makes a new key pair. RSA takes up to seconds: not for a thread that serves requests.
    ///
    /// # Errors
    /// If the library fails, or the spec is not of a key pair.
    pub fn generate(spec: KeySpec, usage: KeyUsage) -> Result<Self, PairError> {
        let failed = |_| PairError::Failed("key generation");
        let private = if let Some(size) = rsa_size(spec) {
            let key = PrivateDecryptingKey::generate(size).map_err(failed)?;
            let der: Pkcs8V1Der<'_> = key.as_der().map_err(failed)?;
            der.as_ref().to_vec()
        } else if let Some(algorithm) = ecdsa(spec) {
            let key = EcdsaKeyPair::generate(algorithm).map_err(failed)?;
            key.to_pkcs8v1().map_err(failed)?.as_ref().to_vec()
        } else if ml_dsa(spec).is_some() {
            let mut seed = vec![0; SEED_LEN];
            random(&mut seed).map_err(|_| PairError::Failed("key generation"))?;
            seed
        } else if let Some(algorithm) = ml_kem(spec) {
            let key = DecapsulationKey::generate(algorithm).map_err(failed)?;
            key.key_bytes().map_err(failed)?.as_ref().to_vec()
        } else if spec == KeySpec::EccNistEdwards25519 {
            let key = Ed25519KeyPair::generate().map_err(failed)?;
            key.to_pkcs8v1().map_err(failed)?.as_ref().to_vec()
        } else {
            return Err(PairError::Key);
        };
        Ok(Self::stored(spec, usage, private.into()))
    }

    /// A key pair from its form at rest.
    #[must_use]
    pub fn stored(spec: KeySpec, usage: KeyUsage, private: Zeroizing<Vec<u8>>) -> Self {
        Self {
            spec,
            usage,
            private,
            parsed: OnceLock::new(),
        }
    }

    /// A key pair that somebody else made, from its PKCS#8.
    ///
    /// # Errors
    /// If it is not one of this spec.
    pub fn import(spec: KeySpec, usage: KeyUsage, pkcs8: &[u8]) -> Result<Self, PairError> {
        check_form(pkcs8)?;
        let private = match spec {
            KeySpec::MlDsa44 | KeySpec::MlDsa65 | KeySpec::MlDsa87 => ml_dsa_seed(spec, pkcs8)?,
            KeySpec::MlKem512 | KeySpec::MlKem768 | KeySpec::MlKem1024 => {
                return Err(PairError::Key);
            }
            _ => pkcs8.to_vec().into(),
        };
        let pair = Self::stored(spec, usage, private);
        if let (Some(size), Parsed::RsaSigning(_) | Parsed::RsaDecrypting(_)) =
            (rsa_size(spec), pair.parsed()?)
            && (pair.modulus_len()? != size.len() || !pair.undoes_itself())
        {
            return Err(PairError::Key);
        }
        Ok(pair)
    }

    /// Whether what one half of an RSA key does the other undoes. The library compares the numbers with each other and does not look
    /// whether the factors are primes; with others every operation fails.
    fn undoes_itself(&self) -> bool {
        const PROBE: &[u8] = b"enclos-kms import";
        if self.usage == KeyUsage::EncryptDecrypt {
            let algorithm = EncryptionAlgorithm::RsaesOaepSha256;
            let ciphertext = self.encrypt(algorithm, PROBE);
            let plaintext = ciphertext.and_then(|ciphertext| self.decrypt(algorithm, &ciphertext));
            return plaintext.is_ok_and(|plaintext| *plaintext == PROBE);
        }
        let (algorithm, raw) = (SigningAlgorithm::RsassaPssSha256, MessageType::Raw);
        let signature = self.sign(algorithm, raw, PROBE);
        signature.is_ok_and(|signature| self.verify(algorithm, raw, PROBE, &signature) == Ok(true))
    }

    /// The form at rest.
    #[must_use]
    pub fn private(&self) -> &[u8] {
        &self.private
    }

    /// The public half, DER SubjectPublicKeyInfo.
    ///
    /// # Errors
    /// If the private key does not parse.
    pub fn public_der(&self) -> Result<Vec<u8>, PairError> {
        let failed = |_| PairError::Failed("public key encoding");
        let der: PublicKeyX509Der<'_> = match self.parsed()? {
            Parsed::RsaSigning(key) => key.public_key().as_der().map_err(failed)?,
            Parsed::RsaDecrypting(_) => self.rsa()?.public_key().as_der().map_err(failed)?,
            Parsed::Ecdsa(key) => key.public_key().as_der().map_err(failed)?,
            Parsed::Ecdh(key) => {
                let public = key.compute_public_key().map_err(failed)?;
                public.as_der().map_err(failed)?
            }
            Parsed::Ed25519(key) => key.public_key().as_der().map_err(failed)?,
            Parsed::MlDsa(key) => key.public_key().as_der().map_err(failed)?,
            Parsed::MlKem(_) => return self.ml_kem_public_der(),
        };
        Ok(der.as_ref().to_vec())
    }

    /// Signs.
    ///
    /// # Errors
    /// If message type or digest do not fit the algorithm, or the library fails.
    pub fn sign(
        &self,
        algorithm: SigningAlgorithm,
        kind: MessageType,
        message: &[u8],
    ) -> Result<Vec<u8>, PairError> {
        let failed = |_| PairError::Failed("signing");
        let input = Input::new(algorithm, kind, message)?;
        match (self.parsed()?, input) {
            (Parsed::RsaSigning(key), Input::Digest(digest)) => {
                let encoding = rsa_signing(algorithm).ok_or(PairError::MessageType)?;
                let mut signature = vec![0; key.public_modulus_len()];
                key.sign_digest(encoding, &digest, &mut signature)
                    .map_err(failed)?;
                Ok(signature)
            }
            (Parsed::Ecdsa(key), Input::Digest(digest)) => {
                Ok(key.sign_digest(&digest).map_err(failed)?.as_ref().to_vec())
            }
            (Parsed::Ed25519(key), Input::Message(message)) => {
                Ok(key.try_sign(message).map_err(failed)?.as_ref().to_vec())
            }
            (Parsed::Ed25519(key), Input::Long(digest)) => {
                let seed = key.seed().map_err(failed)?;
                let seed: Curve25519SeedBin<'_> = seed.as_be_bytes().map_err(failed)?;
                prehash::sign(seed.as_ref(), digest).ok_or(PairError::Failed("signing"))
            }
            (Parsed::MlDsa(key), Input::Message(message)) => {
                let mut signature = vec![0; key.algorithm().signature_len()];
                key.sign(message, &mut signature).map_err(failed)?;
                Ok(signature)
            }
            (Parsed::MlDsa(_), Input::Long(mu)) => {
                external_mu::sign(self.spec, &self.private, mu).ok_or(PairError::Failed("signing"))
            }
            _ => Err(PairError::MessageType),
        }
    }

    /// Whether a signature is one of this key over the message.
    ///
    /// # Errors
    /// If message type or digest do not fit the algorithm.
    pub fn verify(
        &self,
        algorithm: SigningAlgorithm,
        kind: MessageType,
        message: &[u8],
        signature: &[u8],
    ) -> Result<bool, PairError> {
        let input = Input::new(algorithm, kind, message)?;
        let valid = match (self.parsed()?, input) {
            (Parsed::RsaSigning(key), Input::Digest(digest)) => {
                let verification = rsa_verifying(algorithm).ok_or(PairError::MessageType)?;
                UnparsedPublicKey::new(verification, key.public_key())
                    .verify_digest(&digest, signature)
                    .is_ok()
            }
            (Parsed::Ecdsa(key), Input::Digest(digest)) => {
                let verification = ecdsa_verifying(self.spec).ok_or(PairError::Key)?;
                UnparsedPublicKey::new(verification, key.public_key())
                    .verify_digest(&digest, signature)
                    .is_ok()
            }
            (Parsed::Ed25519(key), Input::Message(message)) => {
                UnparsedPublicKey::new(&sig::ED25519, key.public_key())
                    .verify(message, signature)
                    .is_ok()
            }
            (Parsed::Ed25519(key), Input::Long(digest)) => {
                prehash::verify(key.public_key().as_ref(), digest, signature)
            }
            (Parsed::MlDsa(key), Input::Message(message)) => {
                let verification = ml_dsa_verifying(self.spec).ok_or(PairError::Key)?;
                UnparsedPublicKey::new(verification, key.public_key())
                    .verify(message, signature)
                    .is_ok()
            }
            (Parsed::MlDsa(key), Input::Long(mu)) => {
                external_mu::verify(self.spec, key.public_key().as_ref(), mu, signature)
            }
            _ => return Err(PairError::MessageType),
        };
        Ok(valid)
    }

    /// Longest plaintext that an RSA key encrypts.
    ///
    /// # Errors
    /// If this is no RSA key for encryption.
    pub fn max_plaintext(&self, algorithm: EncryptionAlgorithm) -> Result<usize, PairError> {
        let hash = match algorithm {
            EncryptionAlgorithm::RsaesOaepSha1 => digest::SHA1_OUTPUT_LEN,
            _ => digest::SHA256_OUTPUT_LEN,
        };
        Ok(self.modulus_len()? - 2 * hash - 2)
    }

    /// Encrypts with RSAES-OAEP.
    ///
    /// # Errors
    /// If this is no RSA key for encryption, or the plaintext is too long.
    pub fn encrypt(
        &self,
        algorithm: EncryptionAlgorithm,
        plaintext: &[u8],
    ) -> Result<Vec<u8>, PairError> {
        let failed = |_| PairError::Failed("encryption");
        let key = OaepPublicEncryptingKey::new(self.rsa()?.public_key()).map_err(failed)?;
        let mut ciphertext = vec![0; key.ciphertext_size()];
        let oaep = oaep(algorithm).ok_or(PairError::Key)?;
        let length = key
            .encrypt(oaep, plaintext, &mut ciphertext, None)
            .map_err(failed)?
            .len();
        ciphertext.truncate(length);
        Ok(ciphertext)
    }

    /// Decrypts RSAES-OAEP.
    ///
    /// # Errors
    /// If the ciphertext is not one of this key.
    pub fn decrypt(
        &self,
        algorithm: EncryptionAlgorithm,
        ciphertext: &[u8],
    ) -> Result<Zeroizing<Vec<u8>>, PairError> {
        let Parsed::RsaDecrypting(key) = self.parsed()? else {
            return Err(PairError::Key);
        };
        let oaep = oaep(algorithm).ok_or(PairError::Key)?;
        let mut plaintext = Zeroizing::new(vec![0; key.min_output_size()]);
        let length = key
            .decrypt(oaep, ciphertext, &mut plaintext, None)
            .map_err(|_| PairError::Ciphertext)?
            .len();
        plaintext.truncate(length);
        Ok(plaintext)
    }

    /// The secret that both ends of ECDH have.
    ///
    /// # Errors
    /// If the peer's key, DER SubjectPublicKeyInfo, is not of the same curve.
    pub fn agree(&self, peer: &[u8]) -> Result<Zeroizing<Vec<u8>>, PairError> {
        let Parsed::Ecdh(key) = self.parsed()? else {
            return Err(PairError::Key);
        };
        // The library would take a bare point, too; AWS takes SubjectPublicKeyInfo alone.
        x509_cert::spki::SubjectPublicKeyInfoRef::try_from(peer).map_err(|_| PairError::PeerKey)?;
        let peer = agreement::UnparsedPublicKey::new(key.algorithm(), peer);
        agreement::agree(key, peer, PairError::PeerKey, |secret| {
            Ok(Zeroizing::new(secret.to_vec()))
        })
    }

    /// Makes a secret and encapsulates it to this key.
    ///
    /// # Errors
    /// If this is no ML-KEM key or the library fails.
    pub fn encapsulate(&self) -> Result<Encapsulated, PairError> {
        let failed = |_| PairError::Failed("encapsulation");
        let algorithm = ml_kem(self.spec).ok_or(PairError::Key)?;
        let key = EncapsulationKey::new(algorithm, self.ml_kem_public()?)
            .map_err(|_| PairError::Failed("encapsulation"))?;
        let (ciphertext, secret) = key.encapsulate().map_err(failed)?;
        Ok(Encapsulated {
            ciphertext: ciphertext.as_ref().to_vec(),
            secret: Zeroizing::new(secret.as_ref().to_vec()),
        })
    }

    /// Opens an encapsulated secret. As FIPS 203 has it, a forged ciphertext gives another secret, not an error.
    ///
    /// # Errors
    /// If the ciphertext has not the algorithm's length.
    pub fn decapsulate(&self, ciphertext: &[u8]) -> Result<Zeroizing<Vec<u8>>, PairError> {
        let Parsed::MlKem(key) = self.parsed()? else {
            return Err(PairError::Key);
        };
        let secret = key
            .decapsulate(ciphertext.into())
            .map_err(|_| PairError::Ciphertext)?;
        Ok(Zeroizing::new(secret.as_ref().to_vec()))
    }

    fn parsed(&self) -> Result<&Parsed, PairError> {
        if let Some(parsed) = self.parsed.get() {
            return Ok(parsed);
        }
        let parsed = self.parse()?;
        Ok(self.parsed.get_or_init(|| parsed))
    }

    fn parse(&self) -> Result<Parsed, PairError> {
        let key = |_| PairError::Key;
        let private = self.private.as_slice();
        if rsa_size(self.spec).is_some() {
            return match self.usage {
                KeyUsage::EncryptDecrypt => {
                    let key = OaepPrivateDecryptingKey::new(self.rsa()?);
                    key.map(Parsed::RsaDecrypting).map_err(|_| PairError::Key)
                }
                _ => RsaKeyPair::from_pkcs8(private)
                    .map(Parsed::RsaSigning)
                    .map_err(key),
            };
        }
        if let Some(algorithm) = ml_dsa(self.spec) {
            let pair = PqdsaKeyPair::from_seed(algorithm, private);
            return pair.map(Parsed::MlDsa).map_err(key);
        }
        if let Some(algorithm) = ml_kem(self.spec) {
            let pair = DecapsulationKey::new(algorithm, private);
            return pair.map(Parsed::MlKem).map_err(key);
        }
        if let (KeyUsage::KeyAgreement, Some(algorithm)) = (self.usage, ecdh(self.spec)) {
            let pair = EcdhKey::from_private_key_der(algorithm, private);
            return pair.map(Parsed::Ecdh).map_err(key);
        }
        if let Some(algorithm) = ecdsa(self.spec) {
            let pair = EcdsaKeyPair::from_pkcs8(algorithm, private);
            return pair.map(Parsed::Ecdsa).map_err(key);
        }
        if self.spec == KeySpec::EccNistEdwards25519 {
            let pair = Ed25519KeyPair::from_pkcs8(private);
            return pair.map(Parsed::Ed25519).map_err(key);
        }
        Err(PairError::Key)
    }

    fn rsa(&self) -> Result<PrivateDecryptingKey, PairError> {
        PrivateDecryptingKey::from_pkcs8(&self.private).map_err(|_| PairError::Key)
    }

    pub(super) fn modulus_len(&self) -> Result<usize, PairError> {
        match self.parsed()? {
            Parsed::RsaDecrypting(key) => Ok(key.key_size_bytes()),
            Parsed::RsaSigning(key) => Ok(key.public_modulus_len()),
            _ => Err(PairError::Key),
        }
    }

    /// FIPS 203's decapsulation key contains the encapsulation key: `dk_pke (384 k) | ek | H(ek) 32 | z 32`.
    fn ml_kem_public(&self) -> Result<&[u8], PairError> {
        let rank = match self.spec {
            KeySpec::MlKem512 => 2,
            KeySpec::MlKem768 => 3,
            KeySpec::MlKem1024 => 4,
            _ => return Err(PairError::Key),
        };
        let start = 384 * rank;
        let range = start..start + 384 * rank + 32;
        self.private.get(range).ok_or(PairError::Key)
    }

    fn ml_kem_public_der(&self) -> Result<Vec<u8>, PairError> {
        use x509_cert::der::Encode as _;
        use x509_cert::der::asn1::BitStringRef;
        use x509_cert::spki::{AlgorithmIdentifierRef, ObjectIdentifier, SubjectPublicKeyInfoRef};
        // id-alg-ml-kem-512, -768, -1024
        let oid = match self.spec {
            KeySpec::MlKem512 => ObjectIdentifier::new_unwrap("2.16.840.1.101.3.4.4.1"),
            KeySpec::MlKem768 => ObjectIdentifier::new_unwrap("2.16.840.1.101.3.4.4.2"),
            _ => ObjectIdentifier::new_unwrap("2.16.840.1.101.3.4.4.3"),
        };
        let bytes = self.ml_kem_public()?;
        let info = SubjectPublicKeyInfoRef {
            algorithm: AlgorithmIdentifierRef {
                oid,
                parameters: None,
            },
            subject_public_key: BitStringRef::from_bytes(bytes).map_err(|_| PairError::Key)?,
        };
        info.to_der()
            .map_err(|_| PairError::Failed("public key encoding"))
    }
}

/// What is signed: a digest of the algorithm's hash, a message as it is, or the 64 bytes of a variant.
enum Input<'a> {
    Digest(Digest),
    Message(&'a [u8]),
    Long(&'a [u8; LONG_DIGEST_LEN]),
}

impl<'a> Input<'a> {
    fn new(
        algorithm: SigningAlgorithm,
        kind: MessageType,
        message: &'a [u8],
    ) -> Result<Self, PairError> {
        use SigningAlgorithm as A;
        let long = || message.try_into().map_err(|_| PairError::DigestLength);
        match (algorithm, kind) {
            (A::Ed25519Sha512 | A::MlDsaShake256, MessageType::Raw) => Ok(Self::Message(message)),
            (A::Ed25519PhSha512, MessageType::Digest)
            | (A::MlDsaShake256, MessageType::ExternalMu) => long().map(Self::Long),
            (A::Ed25519Sha512 | A::Ed25519PhSha512 | A::MlDsaShake256 | A::Sm2Dsa, _)
            | (_, MessageType::ExternalMu) => Err(PairError::MessageType),
            (_, MessageType::Raw) => Ok(Self::Digest(digest::digest(hash(algorithm), message))),
            (_, MessageType::Digest) => Digest::import_less_safe(message, hash(algorithm))
                .map(Self::Digest)
                .map_err(|_| PairError::DigestLength),
        }
    }
}

fn hash(algorithm: SigningAlgorithm) -> &'static digest::Algorithm {
    use SigningAlgorithm as A;
    match algorithm {
        A::RsassaPssSha384 | A::RsassaPkcs1V15Sha384 | A::EcdsaSha384 => &digest::SHA384,
        A::RsassaPssSha512 | A::RsassaPkcs1V15Sha512 | A::EcdsaSha512 => &digest::SHA512,
        _ => &digest::SHA256,
    }
}

fn rsa_size(spec: KeySpec) -> Option<KeySize> {
    match spec {
        KeySpec::Rsa2048 => Some(KeySize::Rsa2048),
        KeySpec::Rsa3072 => Some(KeySize::Rsa3072),
        KeySpec::Rsa4096 => Some(KeySize::Rsa4096),
        _ => None,
    }
}

fn rsa_signing(algorithm: SigningAlgorithm) -> Option<&'static dyn RsaEncoding> {
    use SigningAlgorithm as A;
    Some(match algorithm {
        A::RsassaPssSha256 => &sig::RSA_PSS_SHA256,
        A::RsassaPssSha384 => &sig::RSA_PSS_SHA384,
        A::RsassaPssSha512 => &sig::RSA_PSS_SHA512,
        A::RsassaPkcs1V15Sha256 => &sig::RSA_PKCS1_SHA256,
        A::RsassaPkcs1V15Sha384 => &sig::RSA_PKCS1_SHA384,
        A::RsassaPkcs1V15Sha512 => &sig::RSA_PKCS1_SHA512,
        _ => return None,
    })
}

fn rsa_verifying(algorithm: SigningAlgorithm) -> Option<&'static dyn VerificationAlgorithm> {
    use SigningAlgorithm as A;
    Some(match algorithm {
        A::RsassaPssSha256 => &sig::RSA_PSS_2048_8192_SHA256,
        A::RsassaPssSha384 => &sig::RSA_PSS_2048_8192_SHA384,
        A::RsassaPssSha512 => &sig::RSA_PSS_2048_8192_SHA512,
        A::RsassaPkcs1V15Sha256 => &sig::RSA_PKCS1_2048_8192_SHA256,
        A::RsassaPkcs1V15Sha384 => &sig::RSA_PKCS1_2048_8192_SHA384,
        A::RsassaPkcs1V15Sha512 => &sig::RSA_PKCS1_2048_8192_SHA512,
        _ => return None,
    })
}

fn oaep(algorithm: EncryptionAlgorithm) -> Option<&'static OaepAlgorithm> {
    match algorithm {
        EncryptionAlgorithm::RsaesOaepSha1 => Some(&OAEP_SHA1_MGF1SHA1),
        EncryptionAlgorithm::RsaesOaepSha256 => Some(&OAEP_SHA256_MGF1SHA256),
        _ => None,
    }
}

fn ecdsa(spec: KeySpec) -> Option<&'static EcdsaSigningAlgorithm> {
    match spec {
        KeySpec::EccNistP256 => Some(&sig::ECDSA_P256_SHA256_ASN1_SIGNING),
        KeySpec::EccNistP384 => Some(&sig::ECDSA_P384_SHA384_ASN1_SIGNING),
        KeySpec::EccNistP521 => Some(&sig::ECDSA_P521_SHA512_ASN1_SIGNING),
        KeySpec::EccSecgP256k1 => Some(&sig::ECDSA_P256K1_SHA256_ASN1_SIGNING),
        _ => None,
    }
}

fn ecdsa_verifying(spec: KeySpec) -> Option<&'static dyn VerificationAlgorithm> {
    Some(match spec {
        KeySpec::EccNistP256 => &sig::ECDSA_P256_SHA256_ASN1,
        KeySpec::EccNistP384 => &sig::ECDSA_P384_SHA384_ASN1,
        KeySpec::EccNistP521 => &sig::ECDSA_P521_SHA512_ASN1,
        KeySpec::EccSecgP256k1 => &sig::ECDSA_P256K1_SHA256_ASN1,
        _ => return None,
    })
}

fn ecdh(spec: KeySpec) -> Option<&'static agreement::Algorithm> {
    match spec {
        KeySpec::EccNistP256 => Some(&agreement::ECDH_P256),
        KeySpec::EccNistP384 => Some(&agreement::ECDH_P384),
        KeySpec::EccNistP521 => Some(&agreement::ECDH_P521),
        _ => None,
    }
}

fn ml_dsa(spec: KeySpec) -> Option<&'static PqdsaSigningAlgorithm> {
    match spec {
        KeySpec::MlDsa44 => Some(&sig::ML_DSA_44_SIGNING),
        KeySpec::MlDsa65 => Some(&sig::ML_DSA_65_SIGNING),
        KeySpec::MlDsa87 => Some(&sig::ML_DSA_87_SIGNING),
        _ => None,
    }
}

fn ml_dsa_verifying(spec: KeySpec) -> Option<&'static dyn VerificationAlgorithm> {
    Some(match spec {
        KeySpec::MlDsa44 => &sig::ML_DSA_44,
        KeySpec::MlDsa65 => &sig::ML_DSA_65,
        KeySpec::MlDsa87 => &sig::ML_DSA_87,
        _ => return None,
    })
}

fn ml_kem(spec: KeySpec) -> Option<&'static kem::Algorithm> {
    match spec {
        KeySpec::MlKem512 => Some(&kem::ML_KEM_512),
        KeySpec::MlKem768 => Some(&kem::ML_KEM_768),
        KeySpec::MlKem1024 => Some(&kem::ML_KEM_1024),
        _ => None,
    }
}

/// Refuses what is no PKCS#8, or more than that: the library takes other forms of some kinds of keys, and what follows behind them.
fn check_form(pkcs8: &[u8]) -> Result<(), PairError> {
    use x509_cert::der::asn1::{AnyRef, OctetStringRef};
    use x509_cert::der::{Reader as _, SliceReader};
    use x509_cert::spki::AlgorithmIdentifierRef;
    let read = || -> Result<(), x509_cert::der::Error> {
        let mut reader = SliceReader::new(pkcs8)?;
        reader.sequence(|key| {
            key.decode::<u8>()?;
            key.decode::<AlgorithmIdentifierRef<'_>>()?;
            key.decode::<&OctetStringRef>()?;
            while !key.is_finished() {
                key.decode::<AnyRef<'_>>()?;
            }
            Ok::<(), x509_cert::der::Error>(())
        })?;
        reader.finish()
    };
    read().map_err(|_| PairError::Key)
}

/// The seed in an ML-DSA key's PKCS#8 (RFC 9881): `[0] seed`, or the first of a pair of seed and expanded key.
fn ml_dsa_seed(spec: KeySpec, pkcs8: &[u8]) -> Result<Zeroizing<Vec<u8>>, PairError> {
    let algorithm = ml_dsa(spec).ok_or(PairError::Key)?;
    let known = PqdsaKeyPair::from_pkcs8(algorithm, pkcs8).map_err(|_| PairError::Key)?;
    let tags: [&[u8]; 2] = [&[0x80, 0x20], &[0x04, 0x20]];
    for at in 0..pkcs8.len() {
        for tag in tags {
            let rest = pkcs8.get(at..).and_then(|rest| rest.strip_prefix(tag));
            let Some(seed) = rest.and_then(|rest| rest.get(..SEED_LEN)) else {
                continue;
            };
            // The right 32 bytes are those that give the same public key.
            let same = PqdsaKeyPair::from_seed(algorithm, seed)
                .is_ok_and(|pair| pair.public_key().as_ref() == known.public_key().as_ref());
            if same {
                return Ok(Zeroizing::new(seed.to_vec()));
            }
        }
    }
    Err(PairError::Key)
}

#[cfg(test)]
#[path = "pair_tests.rs"]
mod tests;
