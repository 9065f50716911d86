//! `enclos eif`: images from finished parts, and signing with a key that is kept elsewhere: measure here, sign there, attach here.

use std::fs::File;
use std::io::BufReader;
use std::path::{Path, PathBuf};

use clap::{Args, Subcommand};
use enclos_eif::image::{Parts, assemble_parts, source_date_epoch};
use enclos_eif::signature::Curve;
use enclos_eif::{Eif, Signer, ToBeSigned, measure};
use serde_json::json;

use crate::failure::{Failure, Outcome};
use crate::nitro::{Measured, sign_in_place};
use crate::signing::{Signing, read};
use crate::term;

/// Put finished parts together; sign with a key that is kept elsewhere
#[derive(Debug, Subcommand)]
pub(crate) enum EifCommand {
    /// Put a kernel, a command line and finished ramdisks together, as AWS's eif_build does
    Assemble(Box<Assemble>),
    /// Measure an image, and write what the certificate's key has to sign
    Measure(Measure),
    /// Add a signature that was made elsewhere; it is verified first
    Attach(Attach),
}

/// Options of `eif assemble`.
#[derive(Debug, Args)]
pub(crate) struct Assemble {
    /// The kernel: a bzImage for x86-64, or an uncompressed arm64 Image, which makes an image for aarch64
    #[arg(long, value_name = "FILE")]
    kernel: PathBuf,
    /// Kernel command line
    #[arg(long, value_name = "TEXT")]
    cmdline: String,
    /// A ramdisk; the first is the runtime (PCR1), further ones are the application (PCR2)
    #[arg(long = "ramdisk", value_name = "FILE", required = true)]
    ramdisks: Vec<PathBuf>,
    /// Where the EIF goes
    #[arg(short, long, value_name = "FILE")]
    output: PathBuf,
    #[command(flatten)]
    signing: Signing,
    /// Name in the image's metadata (not measured); by default the kernel's file name
    #[arg(long)]
    name: Option<String>,
    /// Version in the image's metadata (not measured)
    #[arg(long, default_value = "1.0")]
    version: String,
    /// JSON file to add to the image's metadata, at most 4096 bytes (not measured)
    #[arg(long, value_name = "FILE")]
    metadata: Option<PathBuf>,
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
        EifCommand::Assemble(args) => assemble(args),
        EifCommand::Measure(args) => run_measure(args),
        EifCommand::Attach(args) => attach(args),
    }
}

fn assemble(args: &Assemble) -> Outcome {
    let kernel_name = || {
        args.kernel
            .file_name()
            .unwrap_or_default()
            .to_string_lossy()
            .into_owned()
    };
    let metadata = args.metadata.as_deref().map(crate::image::custom_metadata);
    let parts = Parts {
        kernel: args.kernel.clone(),
        cmdline: args.cmdline.clone(),
        ramdisks: args.ramdisks.clone(),
        name: args.name.clone().unwrap_or_else(kernel_name),
        version: args.version.clone(),
        custom_metadata: metadata.transpose()?.unwrap_or_default(),
        epoch: source_date_epoch()?,
    };
    let signer = args.signing.signer()?;
    let measured = assemble_parts(&parts, signer.as_ref(), &args.output)?;
    term::json(&json!({ "Measurements": Measured::from(&measured) }))
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
