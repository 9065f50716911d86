//! `enclos eif`: signing with a key that is kept elsewhere. Measure here, sign there, attach here.

use std::fs::File;
use std::io::BufReader;
use std::path::{Path, PathBuf};

use clap::{Args, Subcommand};
use enclos_eif::signature::Curve;
use enclos_eif::{Eif, Signer, ToBeSigned, measure};
use serde_json::json;

use crate::failure::{Failure, Outcome};
use crate::nitro::{Measured, sign_in_place};
use crate::signing::read;
use crate::term;

/// Sign an image with a key that is kept elsewhere
#[derive(Debug, Subcommand)]
pub(crate) enum EifCommand {
    /// Measure an image, and write what the certificate's key has to sign
    Measure(Measure),
    /// Add a signature that was made elsewhere; it is verified first
    Attach(Attach),
}

/// Options of `eif measure`.
#[derive(Debug, Args)]
#[command(
    after_help = "Where the key is, for example:\n  openssl dgst -sha384 -sign key.pem -out app.sig app.tbs\n\n\
                  (sha256 for a key on P-256, sha512 for one on P-521)"
)]
pub(crate) struct Measure {
    /// The image
    #[arg(value_name = "FILE")]
    image: PathBuf,
    /// Certificate of the key that will sign, PEM: adds PCR8, algorithm and digest
    #[arg(long, value_name = "FILE")]
    signing_certificate: Option<PathBuf>,
    /// Where the bytes go that have to be signed
    #[arg(long, value_name = "FILE", requires = "signing_certificate")]
    to_be_signed: Option<PathBuf>,
}

/// Options of `eif attach`.
#[derive(Debug, Args)]
pub(crate) struct Attach {
    /// The image; it is replaced whole
    #[arg(value_name = "FILE")]
    image: PathBuf,
    /// Certificate of the key that signed, PEM
    #[arg(long, value_name = "FILE")]
    signing_certificate: PathBuf,
    /// The signature, as DER or as r and s one after the other
    #[arg(long, value_name = "FILE")]
    signature: PathBuf,
}

pub(super) fn run(command: &EifCommand) -> Outcome {
    match command {
        EifCommand::Measure(args) => run_measure(args),
        EifCommand::Attach(args) => attach(args),
    }
}

fn run_measure(args: &Measure) -> Outcome {
    let mut measurements = measured(&args.image)?;
    let Some(path) = &args.signing_certificate else {
        return term::json(&json!({ "Measurements": Measured::from(&measurements) }));
    };
    let certificate = read(path)?;
    let unusable = || format!("{} cannot sign images", path.display());
    let message = ToBeSigned::new(&certificate, &measurements.pcr0)
        .map_err(|error| Failure::from(error).context(unusable()))?;
    measurements.pcr8 = Some(crate::nitro::pcr_of_certificate(path)?);
    if let Some(path) = &args.to_be_signed {
        std::fs::write(path, &message.bytes)
            .map_err(|error| Failure::file(None, "write", path, error))?;
    }
    let (algorithm, hash) = match message.curve {
        Curve::P256 => ("ES256", "SHA-256"),
        Curve::P384 => ("ES384", "SHA-384"),
        Curve::P521 => ("ES512", "SHA-512"),
    };
    term::json(&json!({
        "Measurements": Measured::from(&measurements),
        "ToBeSigned": { "Algorithm": algorithm, "Hash": hash, "Digest": hex::encode(message.digest()) },
    }))
}

fn measured(path: &Path) -> Outcome<enclos_eif::Measurements> {
    let file = File::open(path).map_err(|error| Failure::file(None, "open", path, error))?;
    let mut file = BufReader::new(file);
    let measured = Eif::parse(&mut file).and_then(|eif| measure(&mut file, &eif));
    measured.map_err(|error| {
        Failure::from(error)
            .context(format_args!(
                "{} is no image that would be run",
                path.display()
            ))
            .hint("`enclos describe-eif` says everything that is wrong with it")
    })
}

fn attach(args: &Attach) -> Outcome {
    let certificate = read(&args.signing_certificate)?;
    let signature = std::fs::read(&args.signature)
        .map_err(|error| Failure::file(None, "read", &args.signature, error))?;
    let signer = Signer::detached(&certificate, &signature)?;
    let measured = sign_in_place(&args.image, &signer)?;
    term::json(&json!({ "Measurements": Measured::from(&measured) }))
}
