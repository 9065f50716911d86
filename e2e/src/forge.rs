//! Documents that no enclave made: what the host's root could sign, and what a stranger could.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;
use std::sync::Mutex;
use std::time::Duration;

use anyhow::{Result, anyhow};
use enclos_attest::document::Claims;
use enclos_attest::pki::{Authority, LeafIdentity, LeafKey};
use enclos_attest::{PcrIndex, PcrValue, UnixMillis};

use crate::child;
use crate::kms::REGION;
use crate::stack::INSTANCE;

const OPENSSL: Duration = Duration::from_secs(60);

/// Signs documents.
#[derive(Debug)]
pub struct Forger {
    authority: Mutex<Authority>,
}

impl Forger {
    /// With the authority of an installation, as the root of its host could.
    ///
    /// # Errors
    /// The file is not an authority.
    pub fn with_stolen_authority(pem: &str) -> Result<Self> {
        Ok(Self {
            authority: Mutex::new(Authority::from_pem(pem)?),
        })
    }

    /// With an authority of its own that bears the same names.
    ///
    /// # Errors
    /// No keys can be made.
    pub fn with_own_authority(now: Duration) -> Result<Self> {
        let authority = Authority::create(millis(now)?, REGION, &format!("{REGION}a"), INSTANCE)?;
        Ok(Self {
            authority: Mutex::new(authority),
        })
    }

    /// Signs a document with these PCRs (hexadecimal), made `age` before `now`, by a certificate issued then.
    ///
    /// # Errors
    /// A PCR is not hexadecimal, or signing fails.
    pub fn document(
        &self,
        pcrs: &BTreeMap<u8, String>,
        now: Duration,
        age: Duration,
        public_key: &[u8],
    ) -> Result<Vec<u8>> {
        let slot = 0x0123_4567_89ab_cdef;
        let module_id = format!("{INSTANCE}-enc{slot:016x}");
        let key = LeafKey::generate()?;
        let mut authority = self
            .authority
            .lock()
            .map_err(|_| anyhow!("the authority is poisoned"))?;
        let made = millis(now.saturating_sub(age))?;
        let leaf = authority.issue_leaf(key.spki_der(), &module_id, slot, made)?;
        let claims = Claims {
            module_id,
            timestamp: made,
            pcrs: registers(pcrs)?,
            public_key: Some(public_key.to_vec()),
            user_data: None,
            nonce: None,
        };
        Ok(LeafIdentity::new(key, leaf)?.sign_document(&claims)?)
    }
}

/// All sixteen that an enclave has, those not named being zero.
fn registers(named: &BTreeMap<u8, String>) -> Result<BTreeMap<PcrIndex, PcrValue>> {
    let register = |index: u8| {
        let value = match named.get(&index) {
            Some(text) => PcrValue::from_hex(text)?,
            None => PcrValue::ZERO,
        };
        Ok((PcrIndex::try_from(u16::from(index))?, value))
    };
    (0..16).map(register).collect()
}

fn millis(time: Duration) -> Result<UnixMillis> {
    Ok(UnixMillis(u64::try_from(time.as_millis())?))
}

/// An RSA key pair made by openssl: PEM in a file.
///
/// # Errors
/// openssl fails.
pub fn make_rsa_key(file: &Path) -> Result<()> {
    let mut openssl = Command::new("openssl");
    openssl
        .args([
            "genpkey",
            "-quiet",
            "-algorithm",
            "RSA",
            "-pkeyopt",
            "rsa_keygen_bits:2048",
            "-out",
        ])
        .arg(file);
    child::read(&mut openssl, OPENSSL).map(drop)
}

/// The public half of a key pair, `SubjectPublicKeyInfo` in DER.
///
/// # Errors
/// openssl fails.
pub fn public_key_der(file: &Path) -> Result<Vec<u8>> {
    let mut openssl = Command::new("openssl");
    let output = child::output(
        openssl
            .args(["pkey", "-pubout", "-outform", "DER", "-in"])
            .arg(file),
        OPENSSL,
    )?;
    anyhow::ensure!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(output.stdout)
}

/// Opens a `CiphertextForRecipient` the way any CMS tool does.
///
/// # Errors
/// openssl does not take it.
pub fn open_with_openssl(key: &Path, cms: &Path) -> Result<Vec<u8>> {
    let mut openssl = Command::new("openssl");
    openssl
        .args(["cms", "-decrypt", "-inform", "DER", "-inkey"])
        .arg(key)
        .arg("-in")
        .arg(cms);
    let output = child::output(&mut openssl, OPENSSL)?;
    anyhow::ensure!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(output.stdout)
}
