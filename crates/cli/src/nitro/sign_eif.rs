//! `sign-eif`: signs an image in place. The file is replaced whole; what fails leaves it as it was.

use std::fs::File;
use std::io::{BufReader, BufWriter, Write as _};
use std::path::Path;

use enclos_eif::image::Draft;
use enclos_eif::{Measurements, Signer, sign_image};
use serde_json::json;

use super::args::SignEif;
use super::output::Measured;
use crate::codes::Code;
use crate::failure::{Failure, Outcome};
use crate::term;

pub(super) fn run(args: &SignEif) -> Outcome {
    let eif = args.eif_path.as_deref().ok_or_else(|| {
        Failure::aws_text(Code::MISSING_ARGUMENT, "--eif-path is missing")
            .hint("name the image to sign")
    })?;
    let signer = args.signing.signer()?.ok_or_else(|| {
        Failure::aws_text(
            Code::SIGNING,
            "--signing-certificate and --private-key are missing",
        )
        .hint("give a PEM certificate and its key; `enclos sign-eif --help` says what a key can be")
    })?;
    let measured = sign_in_place(eif, &signer)?;
    term::note("Enclave Image successfully signed.");
    term::json(&json!({ "Measurements": Measured::from(&measured) }))
}

/// Signs an image whose file is replaced when everything went well, and not before.
pub(crate) fn sign_in_place(path: &Path, signer: &Signer) -> Outcome<Measurements> {
    let failed = |doing: &'static str| {
        move |error| Failure::file(Some(Code::FILE_OPERATION), doing, path, error)
    };
    let image = File::open(path)
        .map_err(|error| Failure::file(Some(Code::SIGNING), "open", path, error))?;
    let mode = image.metadata().map_err(failed("read"))?.permissions();
    let mut signed = Draft::beside(path).map_err(failed("write beside"))?;
    signed.set_permissions(mode).map_err(failed("write"))?;
    let mut out = BufWriter::new(&mut signed);
    let measured = sign_image(&mut BufReader::new(image), signer, &mut out).map_err(|error| {
        Failure::aws(
            Code::SIGNING,
            anyhow::Error::new(error).context(format!("cannot sign {}", path.display())),
        )
    })?;
    out.flush().map_err(failed("write"))?;
    drop(out);
    signed.publish(path).map_err(failed("replace"))?;
    Ok(measured)
}
