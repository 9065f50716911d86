//! Makes attestation documents in advance, for load on a verifier: one enclave of one installation, each document with a
//! nonce of its own and signed by itself.
//!
//! `documents PUBLIC_KEY.der COUNT DIRECTORY` writes `root.pem`, `documents` (one a line, in hexadecimal) and prints the
//! document's PCR0.

use std::collections::BTreeMap;
use std::error::Error;
use std::io::Write as _;
use std::path::Path;
use std::time::{Duration, SystemTime};

use enclos_attest::document::Claims;
use enclos_attest::pki::{Authority, LeafIdentity, LeafKey};
use enclos_attest::{PcrIndex, PcrValue, UnixMillis};

const MODULE: &str = "i-0123456789abcdef0-enc0123456789abcdef";

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [public_key, count, directory] = arguments.as_slice() else {
        return Err("usage: documents PUBLIC_KEY.der COUNT DIRECTORY".into());
    };
    let public_key = std::fs::read(public_key)?;
    let directory = Path::new(directory);
    let identity = identity(directory)?;
    let pcr0 = PcrValue::from_hex(&"ab".repeat(48))?;
    let documents = std::fs::File::create(directory.join("documents"))?;
    let mut documents = std::io::BufWriter::new(documents);
    for number in 0..count.parse::<u64>()? {
        let claims = Claims {
            module_id: MODULE.to_owned(),
            timestamp: now()?,
            pcrs: registers(&pcr0)?,
            public_key: Some(public_key.clone()),
            user_data: None,
            nonce: Some(number.to_be_bytes().to_vec()),
        };
        let document = identity.sign_document(&claims)?;
        writeln!(documents, "{}", hex::encode(document))?;
    }
    documents.flush()?;
    writeln!(std::io::stdout(), "{pcr0}")?;
    Ok(())
}

/// An enclave's key and chain; the root goes into the directory.
fn identity(directory: &Path) -> Result<LeafIdentity, Box<dyn Error>> {
    let issued = now()?.minus(Duration::from_secs(60));
    let mut authority =
        Authority::create(issued, "eu-west-1", "eu-west-1a", "i-0123456789abcdef0")?;
    std::fs::write(directory.join("root.pem"), authority.root_certificate_pem())?;
    let key = LeafKey::generate()?;
    let leaf = authority.issue_leaf(key.spki_der(), MODULE, 1, issued)?;
    Ok(LeafIdentity::new(key, leaf)?)
}

/// As after a boot: sixteen registers, of which one matters here.
fn registers(pcr0: &PcrValue) -> Result<BTreeMap<PcrIndex, PcrValue>, Box<dyn Error>> {
    let mut registers = BTreeMap::new();
    for index in 0..16_u8 {
        let value = match index {
            0 => *pcr0,
            _ => PcrValue::from_hex(&"00".repeat(48))?,
        };
        registers.insert(PcrIndex::try_from(index)?, value);
    }
    Ok(registers)
}

fn now() -> Result<UnixMillis, Box<dyn Error>> {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH)?;
    Ok(UnixMillis(u64::try_from(since.as_millis())?))
}
