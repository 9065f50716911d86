//! `pcr`: the register value of a file, or PCR8 of a signing certificate. Both are hashed first and
//! extended into zeros then;
//! PCR3 and PCR4 are made of their strings directly, so this command does not compute them (on AWS neither).

use std::fs::File;
use std::io;
use std::path::Path;

use enclos_attest::PcrValue;
use enclos_eif::signature::first_certificate;
use serde_json::json;
use sha2::{Digest, Sha384};

use super::args::Pcr;
use crate::codes::Code;
use crate::failure::{Failure, Outcome};
use crate::term;

pub(super) fn run(args: &Pcr) -> Outcome {
    match (&args.signing_certificate, &args.input) {
        (Some(certificate), _) => {
            term::json(&json!({ "PCR8": of_certificate(certificate)?.to_string() }))
        }
        (_, Some(input)) => term::json(&json!({ "PCR": of_file(input)?.to_string() })),
        (None, None) => Err(Failure::aws_text(
            Code::MISSING_ARGUMENT,
            "neither --signing-certificate nor --input is given",
        )),
    }
}

fn of_file(path: &Path) -> Outcome<PcrValue> {
    let failed = |error| Failure::file(Some(Code::FILE_OPERATION), "hash", path, error);
    let mut hasher = HashWriter(Sha384::new());
    io::copy(&mut File::open(path).map_err(failed)?, &mut hasher).map_err(failed)?;
    Ok(PcrValue::measured(&hasher.0.finalize().into()))
}

struct HashWriter(Sha384);

impl io::Write for HashWriter {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.update(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

pub(crate) fn of_certificate(path: &Path) -> Outcome<PcrValue> {
    let file = std::fs::read(path)
        .map_err(|error| Failure::file(Some(Code::FILE_OPERATION), "read", path, error))?;
    let pem = String::from_utf8_lossy(&file);
    match pem_rfc7468::decode_vec(first_certificate(&pem).as_bytes()) {
        Ok(("CERTIFICATE", der)) => Ok(PcrValue::of_certificate(&der)),
        Ok((label, _)) => Err(not_certificate(
            path,
            anyhow::anyhow!("it is PEM, but of a {label}"),
        )),
        Err(error) => Err(not_certificate(path, anyhow::Error::new(error))),
    }
}

fn not_certificate(path: &Path, error: anyhow::Error) -> Failure {
    Failure::aws(
        Code::HASHER,
        error.context(format!("{} is not a PEM certificate", path.display())),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_hashed_then_extended_into_zeros() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let empty = of_file(file.path()).unwrap().to_string();
        // PCR2 of an image with one ramdisk is the register of nothing at all.
        assert!(
            empty.starts_with("21b9efbc184807662e966d34f390821309eeac6802309798826296bf3e8bec7c"),
            "{empty}"
        );
        std::fs::write(file.path(), "kernelcmdlineramdisk0").unwrap();
        let pcr1 = of_file(file.path()).unwrap().to_string();
        assert!(
            pcr1.starts_with("bb597e78cae555537aea0843f40c48b9a510188880a82351"),
            "{pcr1}"
        );
    }

    #[test]
    fn what_is_not_a_certificate_is_refused() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(
            file.path(),
            "-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n",
        )
        .unwrap();
        let refused = of_certificate(file.path()).unwrap_err();
        assert!(
            refused
                .render("enclos")
                .contains("it is PEM, but of a PRIVATE KEY")
        );
        assert_eq!(
            (
                refused.exit_status(),
                of_file(Path::new("/none")).unwrap_err().exit_status()
            ),
            (57, 19)
        );
    }
}
