//! The enclave's NSM and the key it signs with.
//!
//! The key is made here and never leaves this process; what travels is its public half, and certificates for
//! it. The main thread asks for a new certificate before the old one expires and leaves it here.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use enclos_api::control::Measurements;
use enclos_attest::nsm::{HostError, Nsm, NsmHost};
use enclos_attest::pki::{IssuedLeaf, LeafIdentity, LeafKey, PkiError};
use enclos_attest::{PcrError, PcrIndex, PcrValue, UnixMillis};

use crate::daemon::authority::now;
use crate::link::LaunchSpec;
use crate::nsm_device::Module;

/// A certificate is renewed this long before it expires: documents then carry one that a verifier still
/// accepts when it reads them a while later.
const RENEW_BEFORE: Duration = Duration::from_secs(30 * 60);

/// The registers that the hypervisor sets before the guest runs.
///
/// # Errors
/// When a measurement is not 48 bytes of hex.
pub(crate) fn boot_pcrs(spec: &LaunchSpec) -> Result<BTreeMap<PcrIndex, PcrValue>, PcrError> {
    let Measurements {
        pcr0,
        pcr1,
        pcr2,
        pcr8,
    } = &spec.measurements;
    let measured = [
        (0_usize, Some(PcrValue::from_hex(pcr0)?)),
        (1, Some(PcrValue::from_hex(pcr1)?)),
        (2, Some(PcrValue::from_hex(pcr2)?)),
        (8, pcr8.as_deref().map(PcrValue::from_hex).transpose()?),
    ];
    let parent = [
        (3_usize, spec.role_arn.as_deref().map(PcrValue::of_role)),
        (4, Some(PcrValue::of_instance(&spec.instance_id))),
    ];
    // A debug enclave's memory is open to whoever reads its console: it may not pass for the image it is.
    let measured = measured.into_iter().filter(|_| !spec.debug);
    let registers = measured
        .chain(parent)
        .filter_map(|(index, value)| Some((PcrIndex::try_from(index).ok()?, value?)));
    Ok(registers.collect())
}

/// The key before its first certificate, and the main thread's hold on it afterwards.
#[derive(Debug)]
pub(crate) struct Signer {
    spki: Vec<u8>,
    installed: UnixMillis,
    not_after: UnixMillis,
    /// A certificate that the NSM's thread has not taken yet.
    renewed: Arc<Mutex<Option<IssuedLeaf>>>,
}

impl Signer {
    /// Joins a key and its first certificate; the identity goes to the NSM's thread.
    pub(crate) fn new(
        key: LeafKey,
        leaf: IssuedLeaf,
        nsm: Nsm,
    ) -> Result<(Self, Module), PkiError> {
        let signer = Self {
            spki: key.spki_der().to_vec(),
            installed: now(),
            not_after: leaf.not_after,
            renewed: Arc::default(),
        };
        let identity = LeafIdentity::new(key, leaf)?;
        let host = Host {
            identity,
            renewed: Arc::clone(&signer.renewed),
        };
        Ok((signer, module(nsm, host)))
    }

    /// What a renewal asks for.
    pub(crate) fn public_key(&self) -> Vec<u8> {
        self.spki.clone()
    }

    /// Signs with this certificate from the next document on.
    pub(crate) fn renew(&mut self, leaf: IssuedLeaf) {
        self.installed = now();
        self.not_after = leaf.not_after;
        *lock(&self.renewed) = Some(leaf);
    }

    /// Whether the certificate is about to expire, or the clock was set back to before it was valid.
    pub(crate) fn needs_renewal(&self, now: UnixMillis) -> bool {
        now < self.installed || now.plus(RENEW_BEFORE) >= self.not_after
    }
}

/// The NSM as the device drives it.
fn module(mut nsm: Nsm, mut host: Host) -> Module {
    Box::new(move |request| nsm.handle(request, &mut host))
}

struct Host {
    identity: LeafIdentity,
    renewed: Arc<Mutex<Option<IssuedLeaf>>>,
}

impl NsmHost for Host {
    fn now(&self) -> UnixMillis {
        now()
    }

    fn signer(&mut self) -> Result<&LeafIdentity, HostError> {
        if let Some(leaf) = lock(&self.renewed).take() {
            self.identity.replace(leaf)?;
        }
        Ok(&self.identity)
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use enclos_attest::nsm::Request;
    use enclos_attest::pki::Authority;

    use super::*;

    fn spec(debug: bool, role: Option<&str>) -> LaunchSpec {
        let hex = |byte: &str| byte.repeat(48);
        LaunchSpec {
            id: "i-0123456789abcdef0-enc1".into(),
            instance_id: "i-0123456789abcdef0".into(),
            role_arn: role.map(str::to_owned),
            cid: 16,
            cpus: 1,
            pinned_to: Vec::new(),
            memory_mib: 512,
            debug,
            measurements: Measurements {
                pcr0: hex("a0"),
                pcr1: hex("a1"),
                pcr2: hex("a2"),
                pcr8: Some(hex("a8")),
            },
            qemu: "/usr/bin/qemu".into(),
            tsc_khz: 1,
            own_log: true,
        }
    }

    fn registers(spec: &LaunchSpec) -> Vec<usize> {
        let registers = boot_pcrs(spec).unwrap();
        registers.keys().map(|index| index.as_usize()).collect()
    }

    #[test]
    fn a_production_enclave_has_all_its_registers() {
        let spec = spec(false, Some("arn:aws:iam::000000000000:role/x"));
        assert_eq!(registers(&spec), [0, 1, 2, 3, 4, 8]);
        let registers = boot_pcrs(&spec).unwrap();
        assert_eq!(registers[&PcrIndex::IMAGE].to_string(), "a0".repeat(48));
        assert_eq!(
            registers[&PcrIndex::INSTANCE],
            PcrValue::of_instance(&spec.instance_id)
        );
    }

    #[test]
    fn a_debug_enclave_has_the_parents_registers_only() {
        assert_eq!(
            registers(&spec(true, Some("arn:aws:iam::000000000000:role/x"))),
            [3, 4]
        );
        assert_eq!(registers(&spec(true, None)), [4]);
    }

    #[test]
    fn a_renewed_certificate_signs_the_next_document_with_the_same_key() {
        let id = "i-0123456789abcdef0-enc1";
        let start = now();
        let mut authority =
            Authority::create(start, "us-east-1", "us-east-1a", "i-0123456789abcdef0").unwrap();
        let key = LeafKey::generate().unwrap();
        let spki = key.spki_der().to_vec();
        let first = authority.issue_leaf(&spki, id, 1, start).unwrap();
        let nsm = Nsm::new(id.to_owned(), &boot_pcrs(&spec(false, None)).unwrap());
        let (mut signer, mut module) = Signer::new(key, first.clone(), nsm).unwrap();
        assert!(!signer.needs_renewal(now()));
        assert!(signer.needs_renewal(first.not_after.minus(RENEW_BEFORE)));
        assert!(
            signer.needs_renewal(start.minus(Duration::from_secs(3600))),
            "clock set back"
        );
        let holds = |document: &[u8], leaf: &IssuedLeaf| {
            let certificate = &leaf.certificate;
            document
                .windows(certificate.len())
                .any(|window| window == certificate)
        };
        let attest = Request::Attestation {
            user_data: None,
            nonce: None,
            public_key: None,
        }
        .encode();
        assert!(holds(&module(&attest), &first));
        let second = authority.issue_leaf(&spki, id, 1, now()).unwrap();
        signer.renew(second.clone());
        let document = module(&attest);
        assert!(holds(&document, &second) && !holds(&document, &first));
        assert_eq!(signer.public_key(), spki);
    }

    #[test]
    fn a_measurement_that_is_none_is_refused() {
        let mut spec = spec(false, None);
        spec.measurements.pcr1 = "a1".into();
        assert!(boot_pcrs(&spec).is_err());
    }
}
