//! What an image is made of, for `build` and `plan`.

use std::path::PathBuf;

use clap::Args;

use crate::image::Wanted;

/// What stands below the options of commands that take a source.
pub(super) const HELP: &str = "SOURCE is a root file system (folder or tar), an OCI layout or archive, a `docker save` archive, or the \
     reference of an image: one that a Docker or Podman engine or buildah has, else NAME@sha256:… in a registry. The \
     prefixes rootfs:, oci: and docker-archive: say that it is a path.\n\nThe same inputs give the same bytes and so the same PCRs.";

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

/// Options that say what goes into an image.
#[derive(Debug, Args)]
pub(super) struct Inputs {
    #[command(flatten)]
    from: From,
    /// enclos.toml: command, environment, ports, KMS; measured
    #[arg(short, long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Build SOURCE as an image from the Dockerfile in this directory first
    #[arg(long, value_name = "DIR")]
    docker_dir: Option<PathBuf>,
    /// Fetch SOURCE by its tag, whatever the registry has there today; without this a digest is needed
    #[arg(long)]
    allow_tag: bool,
    /// Which image, where SOURCE holds several
    #[arg(long, value_name = "NAME")]
    reference: Option<String>,
    /// Folder with `vmlinuz` and `modules/`; by default the newest of `enclos kernel fetch`. An arm64 kernel makes an image for
    /// aarch64
    #[arg(long, value_name = "DIR")]
    kernel: Option<PathBuf>,
    /// Folder with `enclos-init` and `enclos-agent` for the kernel's processor; by default ENCLOS_GUEST_DIR or those installed
    #[arg(long, value_name = "DIR")]
    guest: Option<PathBuf>,
    /// Kernel command line, measured
    #[arg(long, value_name = "TEXT")]
    cmdline: Option<String>,
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

impl Inputs {
    pub(super) fn wanted(self) -> Wanted {
        Wanted {
            source: self.from.source(),
            dockerfile: self.docker_dir,
            reference: self.reference,
            config: self.config,
            kernel: self.kernel,
            guest: self.guest,
            cmdline: self.cmdline,
            name: self.name,
            version: self.version,
            metadata: self.metadata,
            allow_tag: self.allow_tag,
        }
    }
}
