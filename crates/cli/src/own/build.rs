//! `enclos build`: from whatever the application is in to an EIF, and the policy condition that pins it.

use std::path::PathBuf;

use clap::Args;
use enclos_eif::Measurements;
use serde_json::json;

use crate::failure::Outcome;
use crate::image::{self, Wanted};
use crate::nitro::Measured;
use crate::signing::Signing;
use crate::term;

/// What the application is in.
#[derive(Debug, Args)]
#[group(required = true, multiple = false)]
struct From {
    /// What the application is in
    #[arg(value_name = "SOURCE")]
    source: Option<String>,
    /// The same as SOURCE `rootfs:PATH`
    #[arg(long, value_name = "PATH")]
    rootfs: Option<PathBuf>,
    /// The same as SOURCE `oci:PATH`
    #[arg(long, value_name = "PATH")]
    oci: Option<PathBuf>,
    /// The same as SOURCE `docker-archive:PATH`
    #[arg(long, value_name = "PATH")]
    docker_archive: Option<PathBuf>,
}

impl From {
    fn source(self) -> String {
        let path = |prefix: &str, path: Option<PathBuf>| {
            path.map(|path| format!("{prefix}:{}", path.display()))
        };
        let named = path("rootfs", self.rootfs).or_else(|| path("oci", self.oci));
        let named = named.or_else(|| path("docker-archive", self.docker_archive));
        self.source.or(named).unwrap_or_default()
    }
}

/// Options of `build`.
#[derive(Debug, Args)]
#[command(
    after_help = "SOURCE is a root file system (folder or tar), an OCI layout or archive, a `docker save` archive, or the \
                        reference of an image that docker, podman or buildah knows or can fetch. The prefixes rootfs:, oci: and \
                        docker-archive: say that it is a path.\n\nThe same inputs give the same bytes and so the same PCRs."
)]
pub(crate) struct Build {
    #[command(flatten)]
    from: From,
    /// Where the EIF goes
    #[arg(short, long, value_name = "FILE")]
    output: PathBuf,
    /// enclos.toml: command, environment, ports, KMS; measured
    #[arg(short, long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Build SOURCE as an image from the Dockerfile in this directory first
    #[arg(long, value_name = "DIR")]
    docker_dir: Option<PathBuf>,
    /// Which image, where SOURCE holds several
    #[arg(long, value_name = "NAME")]
    reference: Option<String>,
    /// Folder with `vmlinuz` and `modules/`; by default the newest of `enclos kernel fetch`
    #[arg(long, value_name = "DIR")]
    kernel: Option<PathBuf>,
    /// Kernel command line, measured
    #[arg(long, value_name = "TEXT")]
    cmdline: Option<String>,
    #[command(flatten)]
    signing: Signing,
    /// Name in the image's metadata (not measured)
    #[arg(long)]
    name: Option<String>,
    /// Version in the image's metadata (not measured)
    #[arg(long)]
    version: Option<String>,
    /// JSON file to add to the image's metadata, at most 4096 bytes (not measured)
    #[arg(long, value_name = "FILE")]
    metadata: Option<PathBuf>,
}

pub(super) fn run(args: Build) -> Outcome {
    let output = args.output.clone();
    let built = image::build(&Wanted {
        source: args.from.source(),
        dockerfile: args.docker_dir,
        reference: args.reference,
        config: args.config,
        kernel: args.kernel,
        cmdline: args.cmdline,
        signing: args.signing,
        name: args.name,
        version: args.version,
        metadata: args.metadata,
        output: args.output,
    })?;
    for warning in &built.warnings {
        term::note(format_args!("warning: {warning}"));
    }
    term::note(format_args!(
        "{} ({:.1} MiB)",
        output.display(),
        mib(built.len)
    ));
    term::note("Condition for a KMS key policy that releases the key to this image alone:");
    term::note(serde_json::to_string_pretty(&condition(
        &built.measurements,
    ))?);
    term::json(&json!({ "Measurements": Measured::from(&built.measurements) }))
}

/// For display only.
#[expect(
    clippy::cast_precision_loss,
    reason = "a length with one decimal needs no more precision"
)]
fn mib(bytes: u64) -> f64 {
    bytes as f64 / f64::from(1 << 20)
}

/// All three registers: AWS's PCR0 alone does not bind where one section ends and the next begins.
fn condition(measured: &Measurements) -> serde_json::Value {
    json!({
        "StringEqualsIgnoreCase": {
            "kms:RecipientAttestation:PCR0": measured.pcr0.to_string(),
            "kms:RecipientAttestation:PCR1": measured.pcr1.to_string(),
            "kms:RecipientAttestation:PCR2": measured.pcr2.to_string(),
        }
    })
}
