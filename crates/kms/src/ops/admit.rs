//! What all cryptographic operations share: which key, may it, can it, and how the answer travels.

use std::collections::BTreeMap;
use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Map, Value};
use zeroize::Zeroizing;

use crate::crypto::pair::{KeyPair, PairError};
use crate::crypto::random;
use crate::error::{ApiError, ErrorKind};
use crate::input::Input;
use crate::keyring::Key;
use crate::recipient::Attested;
use crate::service::{Call, Facts};
use crate::spec::{Algorithms, KeyUsage};

/// AWS's limit on an encryption context as a whole.
const CONTEXT_MAX: usize = 8192;

/// Pairs that are authenticated with a ciphertext.
pub(crate) type EncryptionContext = BTreeMap<String, String>;

/// A use of a key: everything that a policy may look at.
#[derive(Debug, Clone, Default)]
pub(crate) struct Use<'a> {
    /// The IAM action.
    pub(crate) action: &'a str,
    /// The key as the caller named it.
    pub(crate) named: &'a str,
    /// The encryption context, if the operation has one.
    pub(crate) context: Option<&'a EncryptionContext>,
    /// The verified document, if the call carried one.
    pub(crate) attested: Option<&'a Attested>,
    /// Further condition keys.
    pub(crate) more: Vec<(&'a str, String)>,
}

impl Use<'_> {
    /// Asks the key's policy.
    pub(crate) fn authorize(&self, call: &mut Call<'_>, key: &Key) -> Result<(), ApiError> {
        let alias = request_alias(self.named).map(|alias| ("kms:RequestAlias", alias));
        let more: Vec<_> = self.more.iter().cloned().chain(alias).collect();
        let facts = Facts {
            encryption_context: self.context,
            attested: self.attested,
            more: &more,
            ..Facts::default()
        };
        call.authorize(key, self.action, &facts)?;
        call.draft.used.push(key.row.id.clone());
        Ok(())
    }

    /// Finds the named key for a cryptographic operation, in AWS's order: existence, policy, state, usage.
    pub(crate) fn admit(&self, call: &mut Call<'_>, usage: KeyUsage) -> Result<Arc<Key>, ApiError> {
        let key = call.find(self.named)?;
        self.authorize(call, &key)?;
        key.usable(call.now_ms())?;
        check_usage(call, &key, usage)?;
        Ok(key)
    }
}

/// Admits a use for the action that is called like the operation, with one of the algorithms that the key has.
pub(crate) fn admit_algorithm<T: PartialEq + std::fmt::Display + 'static>(
    call: &mut Call<'_>,
    using: Use<'_>,
    usage: KeyUsage,
    (has, algorithm): (impl FnOnce(Algorithms) -> &'static [T], &T),
) -> Result<Arc<Key>, ApiError> {
    let action = format!("kms:{}", call.draft.operation);
    let using = Use {
        action: &action,
        ..using
    };
    let key = using.admit(call, usage)?;
    check_algorithm(&key, has(key.algorithms()), algorithm)?;
    Ok(key)
}

/// Refuses keys made for something else.
pub(crate) fn check_usage(call: &Call<'_>, key: &Key, usage: KeyUsage) -> Result<(), ApiError> {
    if key.row.usage == usage {
        return Ok(());
    }
    Err(ApiError::new(
        ErrorKind::InvalidKeyUsage,
        format!(
            "{} key usage is {} which is not valid for {}.",
            key.arn, key.row.usage, call.draft.operation
        ),
    ))
}

/// Refuses algorithms that the key has not.
pub(crate) fn check_algorithm<T: PartialEq + std::fmt::Display>(
    key: &Key,
    has: &[T],
    algorithm: &T,
) -> Result<(), ApiError> {
    if has.contains(algorithm) {
        return Ok(());
    }
    Err(ApiError::new(
        ErrorKind::InvalidKeyUsage,
        format!(
            "Algorithm {algorithm} is incompatible with key spec {}.",
            key.row.spec
        ),
    ))
}

/// The key pair of a key that has been admitted for an operation that needs one.
pub(crate) fn pair(key: &Key) -> Result<&KeyPair, ApiError> {
    key.pair()
        .ok_or_else(|| ApiError::internal(&PairError::Key))
}

/// A key pair's failure that no caller can cause.
pub(crate) fn pair_error(error: PairError) -> ApiError {
    ApiError::internal(&error)
}

/// AWS's answer when everything was checked and nothing is to be done.
pub(crate) fn check_dry_run(dry_run: bool) -> Result<(), ApiError> {
    if dry_run {
        return Err(ApiError::new(
            ErrorKind::DryRunOperation,
            "The request would have succeeded, but the DryRun option is set.",
        ));
    }
    Ok(())
}

/// Reads an encryption context.
pub(crate) fn encryption_context(input: &Input, name: &str) -> Result<EncryptionContext, ApiError> {
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

/// Verifies the document of a `Recipient`, if there is one.
pub(crate) fn attest(
    call: &mut Call<'_>,
    document: Option<Zeroizing<Vec<u8>>>,
) -> Result<Option<Attested>, ApiError> {
    let Some(document) = document else {
        return Ok(None);
    };
    let verdict = call.service.trust.verify(&document, call.now);
    call.service.metrics.document(verdict.is_ok());
    let attested = verdict.inspect_err(|error| {
        tracing::warn!(request_id = %call.draft.request_id, caller = %call.caller, %error, "attestation document refused");
    })?;
    call.draft.recipient = Some(attested.audit());
    Ok(Some(attested))
}

/// Puts a secret into the output under `name`: in the clear, or as `CiphertextForRecipient` for the enclave alone.
pub(crate) fn deliver(
    output: &mut Map<String, Value>,
    name: &str,
    secret: &[u8],
    attested: Option<&Attested>,
) -> Result<(), ApiError> {
    match attested {
        None => output.insert(name.to_owned(), STANDARD.encode(secret).into()),
        Some(attested) => {
            let envelope = attested
                .envelope(secret)
                .map_err(|error| ApiError::internal(&error))?;
            output.insert(
                "CiphertextForRecipient".to_owned(),
                STANDARD.encode(envelope).into(),
            )
        }
    };
    Ok(())
}

/// Random bytes, wiped when dropped.
pub(crate) fn random_bytes(length: usize) -> Result<Zeroizing<Vec<u8>>, ApiError> {
    let mut bytes = Zeroizing::new(vec![0; length]);
    random(&mut bytes).map_err(|error| ApiError::internal(&error))?;
    Ok(bytes)
}

/// The alias that a request named, without the rest of its ARN.
fn request_alias(named: &str) -> Option<String> {
    let at = named.find("alias/")?;
    let is_alias = at == 0 || named.starts_with("arn:");
    is_alias
        .then(|| named.get(at..).map(str::to_owned))
        .flatten()
}
