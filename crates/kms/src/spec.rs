//! What kinds of keys there are: AWS's names of key specs, usages, origins and algorithms, and which go together.

use std::fmt;

/// An enumeration of AWS's with the names that its API uses.
macro_rules! names {
    ($(#[$doc:meta])* $name:ident { $($(#[$variant_doc:meta])* $variant:ident = $text:literal,)* }) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        pub enum $name {
            $($(#[$variant_doc])* #[doc = concat!("`", $text, "`")] $variant,)*
        }

        impl $name {
            /// All names, in the order in which AWS lists them.
            pub const NAMES: &[&str] = &[$($text),*];

            /// AWS's name.
            #[must_use]
            pub fn name(self) -> &'static str {
                match self { $(Self::$variant => $text),* }
            }

            /// The one with that name.
            #[must_use]
            pub fn from_name(name: &str) -> Option<Self> {
                match name { $($text => Some(Self::$variant),)* _ => None }
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(self.name())
            }
        }
    };
}

names! {
    /// `KeySpec`.
    KeySpec {
        Rsa2048 = "RSA_2048",
        Rsa3072 = "RSA_3072",
        Rsa4096 = "RSA_4096",
        EccNistP256 = "ECC_NIST_P256",
        EccNistP384 = "ECC_NIST_P384",
        EccNistP521 = "ECC_NIST_P521",
        EccSecgP256k1 = "ECC_SECG_P256K1",
        SymmetricDefault = "SYMMETRIC_DEFAULT",
        Hmac224 = "HMAC_224",
        Hmac256 = "HMAC_256",
        Hmac384 = "HMAC_384",
        Hmac512 = "HMAC_512",
        Sm2 = "SM2",
        MlDsa44 = "ML_DSA_44",
        MlDsa65 = "ML_DSA_65",
        MlDsa87 = "ML_DSA_87",
        EccNistEdwards25519 = "ECC_NIST_EDWARDS25519",
        MlKem512 = "ML_KEM_512",
        MlKem768 = "ML_KEM_768",
        MlKem1024 = "ML_KEM_1024",
    }
}

names! {
    /// `KeyUsage`.
    KeyUsage {
        SignVerify = "SIGN_VERIFY",
        EncryptDecrypt = "ENCRYPT_DECRYPT",
        GenerateVerifyMac = "GENERATE_VERIFY_MAC",
        KeyAgreement = "KEY_AGREEMENT",
        EncapsulateDecapsulate = "ENCAPSULATE_DECAPSULATE",
    }
}

names! {
    /// `Origin`.
    Origin {
        AwsKms = "AWS_KMS",
        External = "EXTERNAL",
        CloudHsm = "AWS_CLOUDHSM",
        ExternalKeyStore = "EXTERNAL_KEY_STORE",
    }
}

names! {
    /// `EncryptionAlgorithm`.
    EncryptionAlgorithm {
        SymmetricDefault = "SYMMETRIC_DEFAULT",
        RsaesOaepSha1 = "RSAES_OAEP_SHA_1",
        RsaesOaepSha256 = "RSAES_OAEP_SHA_256",
        Sm2Pke = "SM2PKE",
    }
}

names! {
    /// `SigningAlgorithm`.
    SigningAlgorithm {
        RsassaPssSha256 = "RSASSA_PSS_SHA_256",
        RsassaPssSha384 = "RSASSA_PSS_SHA_384",
        RsassaPssSha512 = "RSASSA_PSS_SHA_512",
        RsassaPkcs1V15Sha256 = "RSASSA_PKCS1_V1_5_SHA_256",
        RsassaPkcs1V15Sha384 = "RSASSA_PKCS1_V1_5_SHA_384",
        RsassaPkcs1V15Sha512 = "RSASSA_PKCS1_V1_5_SHA_512",
        EcdsaSha256 = "ECDSA_SHA_256",
        EcdsaSha384 = "ECDSA_SHA_384",
        EcdsaSha512 = "ECDSA_SHA_512",
        Sm2Dsa = "SM2DSA",
        MlDsaShake256 = "ML_DSA_SHAKE_256",
        Ed25519Sha512 = "ED25519_SHA_512",
        Ed25519PhSha512 = "ED25519_PH_SHA_512",
    }
}

names! {
    /// `MessageType`.
    MessageType {
        Raw = "RAW",
        Digest = "DIGEST",
        ExternalMu = "EXTERNAL_MU",
    }
}

names! {
    /// `MacAlgorithm`.
    MacAlgorithm {
        HmacSha384 = "HMAC_SHA_384",
        HmacSha256 = "HMAC_SHA_256",
        HmacSha224 = "HMAC_SHA_224",
        HmacSha512 = "HMAC_SHA_512",
    }
}

names! {
    /// `WrappingAlgorithm`.
    WrappingAlgorithm {
        RsaesPkcs1V15 = "RSAES_PKCS1_V1_5",
        RsaesOaepSha1 = "RSAES_OAEP_SHA_1",
        RsaesOaepSha256 = "RSAES_OAEP_SHA_256",
        RsaAesKeyWrapSha1 = "RSA_AES_KEY_WRAP_SHA_1",
        RsaAesKeyWrapSha256 = "RSA_AES_KEY_WRAP_SHA_256",
        Sm2Pke = "SM2PKE",
    }
}

/// What a key of some spec and usage can do: the algorithm lists of `KeyMetadata`, at most one of them not empty.
#[derive(Debug, Clone, Copy, Default)]
pub struct Algorithms {
    /// `EncryptionAlgorithms`.
    pub encryption: &'static [EncryptionAlgorithm],
    /// `SigningAlgorithms`.
    pub signing: &'static [SigningAlgorithm],
    /// `MacAlgorithms`.
    pub mac: &'static [MacAlgorithm],
    /// `KeyAgreementAlgorithms`.
    pub agreement: &'static [&'static str],
    /// `EncapsulationAlgorithms`.
    pub encapsulation: &'static [&'static str],
}

impl KeySpec {
    /// Specs that the deprecated `CustomerMasterKeySpec` can name.
    pub const OLD_NAMES: &[&str] = Self::NAMES.split_at(13).0;

    /// Whether the key is for symmetric encryption, the one kind that rotates.
    #[must_use]
    pub fn is_symmetric_encryption(self) -> bool {
        self == Self::SymmetricDefault
    }

    /// Whether the key has a public half.
    #[must_use]
    pub fn is_asymmetric(self) -> bool {
        !self.is_symmetric_encryption() && self.mac().is_none()
    }

    /// The one MAC algorithm of an HMAC key.
    #[must_use]
    pub fn mac(self) -> Option<MacAlgorithm> {
        match self {
            Self::Hmac224 => Some(MacAlgorithm::HmacSha224),
            Self::Hmac256 => Some(MacAlgorithm::HmacSha256),
            Self::Hmac384 => Some(MacAlgorithm::HmacSha384),
            Self::Hmac512 => Some(MacAlgorithm::HmacSha512),
            _ => None,
        }
    }

    /// Whether this server makes such keys. SM2 exists in AWS's China Regions alone.
    #[must_use]
    pub fn is_supported(self) -> bool {
        self != Self::Sm2
    }

    /// Whether material of this spec can be imported.
    #[must_use]
    pub fn is_importable(self) -> bool {
        !matches!(
            self,
            Self::Sm2 | Self::MlKem512 | Self::MlKem768 | Self::MlKem1024
        )
    }

    /// What a key of this spec can do when made for that usage; `None` if the two do not go together.
    #[must_use]
    pub fn algorithms(self, usage: KeyUsage) -> Option<Algorithms> {
        use KeyUsage::{
            EncapsulateDecapsulate, EncryptDecrypt, GenerateVerifyMac, KeyAgreement, SignVerify,
        };
        let none = Algorithms::default();
        let found = match (self, usage) {
            (Self::SymmetricDefault, EncryptDecrypt) => Algorithms {
                encryption: &[EncryptionAlgorithm::SymmetricDefault],
                ..none
            },
            (Self::Rsa2048 | Self::Rsa3072 | Self::Rsa4096, EncryptDecrypt) => Algorithms {
                encryption: &[
                    EncryptionAlgorithm::RsaesOaepSha1,
                    EncryptionAlgorithm::RsaesOaepSha256,
                ],
                ..none
            },
            (Self::Sm2, EncryptDecrypt) => Algorithms {
                encryption: &[EncryptionAlgorithm::Sm2Pke],
                ..none
            },
            (_, GenerateVerifyMac) => Algorithms {
                mac: self.mac_list()?,
                ..none
            },
            (_, SignVerify) => Algorithms {
                signing: self.signing()?,
                ..none
            },
            (
                Self::EccNistP256 | Self::EccNistP384 | Self::EccNistP521 | Self::Sm2,
                KeyAgreement,
            ) => Algorithms {
                agreement: &["ECDH"],
                ..none
            },
            (Self::MlKem512 | Self::MlKem768 | Self::MlKem1024, EncapsulateDecapsulate) => {
                Algorithms {
                    encapsulation: &["ML_KEM"],
                    ..none
                }
            }
            _ => return None,
        };
        Some(found)
    }

    fn mac_list(self) -> Option<&'static [MacAlgorithm]> {
        match self.mac()? {
            MacAlgorithm::HmacSha224 => Some(&[MacAlgorithm::HmacSha224]),
            MacAlgorithm::HmacSha256 => Some(&[MacAlgorithm::HmacSha256]),
            MacAlgorithm::HmacSha384 => Some(&[MacAlgorithm::HmacSha384]),
            MacAlgorithm::HmacSha512 => Some(&[MacAlgorithm::HmacSha512]),
        }
    }

    fn signing(self) -> Option<&'static [SigningAlgorithm]> {
        use SigningAlgorithm as A;
        match self {
            Self::Rsa2048 | Self::Rsa3072 | Self::Rsa4096 => Some(&[
                A::RsassaPkcs1V15Sha256,
                A::RsassaPkcs1V15Sha384,
                A::RsassaPkcs1V15Sha512,
                A::RsassaPssSha256,
                A::RsassaPssSha384,
                A::RsassaPssSha512,
            ]),
            Self::EccNistP256 | Self::EccSecgP256k1 => Some(&[A::EcdsaSha256]),
            Self::EccNistP384 => Some(&[A::EcdsaSha384]),
            Self::EccNistP521 => Some(&[A::EcdsaSha512]),
            Self::Sm2 => Some(&[A::Sm2Dsa]),
            Self::MlDsa44 | Self::MlDsa65 | Self::MlDsa87 => Some(&[A::MlDsaShake256]),
            Self::EccNistEdwards25519 => Some(&[A::Ed25519Sha512, A::Ed25519PhSha512]),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_go_both_ways() {
        for name in KeySpec::NAMES {
            assert_eq!(KeySpec::from_name(name).map(KeySpec::name), Some(*name));
        }
        assert_eq!(KeySpec::OLD_NAMES.last(), Some(&"SM2"));
        assert_eq!(KeySpec::from_name("AES_256"), None);
    }

    /// AWS's table of key specs and usages.
    #[test]
    fn specs_and_usages_that_go_together() {
        for name in KeySpec::NAMES {
            let spec = KeySpec::from_name(name).unwrap();
            let usages: Vec<&str> = KeyUsage::NAMES
                .iter()
                .copied()
                .filter(|usage| {
                    spec.algorithms(KeyUsage::from_name(usage).unwrap())
                        .is_some()
                })
                .collect();
            let expected: &[&str] = match *name {
                "SYMMETRIC_DEFAULT" => &["ENCRYPT_DECRYPT"],
                name if name.starts_with("RSA") => &["SIGN_VERIFY", "ENCRYPT_DECRYPT"],
                name if name.starts_with("HMAC") => &["GENERATE_VERIFY_MAC"],
                name if name.starts_with("ML_DSA") => &["SIGN_VERIFY"],
                name if name.starts_with("ML_KEM") => &["ENCAPSULATE_DECAPSULATE"],
                "ECC_SECG_P256K1" | "ECC_NIST_EDWARDS25519" => &["SIGN_VERIFY"],
                "SM2" => &["SIGN_VERIFY", "ENCRYPT_DECRYPT", "KEY_AGREEMENT"],
                _ => &["SIGN_VERIFY", "KEY_AGREEMENT"],
            };
            assert_eq!(usages, expected, "{name}");
        }
    }
}
