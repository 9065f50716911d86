//! Other people's verifiers of the same documents, behind one signature each.

use std::time::SystemTime;

use attestation_doc_validation::validate_and_parse_attestation_doc;
use enclos_attest::UnixMillis;
use nsm_nitro_enclave_utils::api::nsm::AttestationDoc;
use nsm_nitro_enclave_utils::time::Time;
use nsm_nitro_enclave_utils::verify::AttestationDocVerifierExt as _;

/// What a verifier says: nothing, or why not.
pub type Verdict = Result<(), String>;

/// `nsm-nitro-enclave-utils`, at a time and under a root of the caller's.
///
/// # Errors
/// Its refusal.
pub fn nsm_utils(document: &[u8], root_der: &[u8], at: UnixMillis) -> Verdict {
    let time = Time::new(Box::new(move || at.0));
    let verdict = AttestationDoc::from_cose(document, root_der, time);
    verdict.map(drop).map_err(|error| format!("{error:?}"))
}

/// `attestation-doc-validation`: AWS's root and the system's clock, neither of which can be changed.
///
/// # Errors
/// Its refusal.
pub fn evervault(document: &[u8]) -> Verdict {
    let verdict = validate_and_parse_attestation_doc(document);
    verdict.map(drop).map_err(|error| error.to_string())
}

/// The system's clock, which `faketime` sets for [`evervault`].
#[must_use]
pub fn clock() -> UnixMillis {
    SystemTime::now().into()
}
