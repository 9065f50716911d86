//! ML-DSA over mu, the message representative that the caller computed (FIPS 204, algorithms 7 and 8 from step 6).

use getrandom::SysRng;
use ml_dsa::{EncodedSignature, EncodedVerifyingKey, MlDsa44, MlDsa65, MlDsa87, MlDsaParams};
use ml_dsa::{Signature, SigningKey, VerifyingKey};

use crate::spec::KeySpec;

/// Signs mu with the key that `seed` makes.
pub(super) fn sign(spec: KeySpec, seed: &[u8], mu: &[u8; 64]) -> Option<Vec<u8>> {
    match spec {
        KeySpec::MlDsa44 => sign_as::<MlDsa44>(seed, mu),
        KeySpec::MlDsa65 => sign_as::<MlDsa65>(seed, mu),
        KeySpec::MlDsa87 => sign_as::<MlDsa87>(seed, mu),
        _ => None,
    }
}

/// Whether the signature over mu is the public key's.
pub(super) fn verify(spec: KeySpec, public: &[u8], mu: &[u8; 64], signature: &[u8]) -> bool {
    match spec {
        KeySpec::MlDsa44 => verify_as::<MlDsa44>(public, mu, signature),
        KeySpec::MlDsa65 => verify_as::<MlDsa65>(public, mu, signature),
        KeySpec::MlDsa87 => verify_as::<MlDsa87>(public, mu, signature),
        _ => None,
    }
    .unwrap_or(false)
}

fn sign_as<P: MlDsaParams>(seed: &[u8], mu: &[u8; 64]) -> Option<Vec<u8>> {
    let key = SigningKey::<P>::from_seed(&seed.try_into().ok()?);
    let signature = key
        .expanded_key()
        .sign_mu_randomized(&(*mu).into(), &mut SysRng)
        .ok()?;
    Some(signature.encode().to_vec())
}

fn verify_as<P: MlDsaParams>(public: &[u8], mu: &[u8; 64], signature: &[u8]) -> Option<bool> {
    let public = EncodedVerifyingKey::<P>::try_from(public).ok()?;
    let signature = EncodedSignature::<P>::try_from(signature).ok()?;
    let signature = Signature::<P>::decode(&signature)?;
    Some(VerifyingKey::<P>::decode(&public).verify_mu(&(*mu).into(), &signature))
}
