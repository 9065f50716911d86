//! Building an image, for `enclos build` and `build-enclave`: finds the parts, fetches what is only a
//! name, assembles.

mod container;
mod credentials;
mod engine;
mod registry;

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use enclos_eif::Architecture;
use enclos_eif::image::{
    BuildConfig, BuildSpec, Built, DEFAULT_CMDLINE, GuestBinaries, ImageError, assemble, plan,
    source_date_epoch,
};
use enclos_eif::kernel::{HEAD_LEN, architecture};
use serde_json::Value;

use crate::codes::Code;
use crate::dirs;
use crate::failure::{Failure, Outcome};
use crate::own;
use crate::signing::Signing;
use crate::term;

use container::Tool;
use engine::Engine;

/// Largest file of custom metadata, in bytes; nitro-cli's limit.
const MAX_CUSTOM_METADATA: usize = 4096;

/// What is asked for.
#[derive(Debug, Default)]
pub(crate) struct Wanted {
    pub(crate) source: String,
    pub(crate) dockerfile: Option<PathBuf>,
    pub(crate) reference: Option<String>,
    pub(crate) config: Option<PathBuf>,
    pub(crate) kernel: Option<PathBuf>,
    pub(crate) guest: Option<PathBuf>,
    pub(crate) cmdline: Option<String>,
    pub(crate) name: Option<String>,
    pub(crate) version: Option<String>,
    pub(crate) metadata: Option<PathBuf>,
    pub(crate) allow_tag: bool,
}

/// Builds the image. Failures carry nitro-cli's codes; Enclos's own commands drop them.
pub(crate) fn build(wanted: &Wanted, signing: &Signing, output: &Path) -> Outcome<Built> {
    let signer = signing.signer()?;
    with_spec(wanted, |spec| assemble(spec, signer.as_ref(), output))
}

/// What [`build`] would make of the same inputs.
pub(crate) fn planned(wanted: &Wanted) -> Outcome<Built> {
    with_spec(wanted, plan)
}

/// Finds everything that the image is made of, then does `make` with it. Where nobody named a kernel and the container image is for
/// aarch64 alone, as AWS's tool the kernel follows the image.
fn with_spec(
    wanted: &Wanted,
    make: impl Fn(&BuildSpec) -> Result<Built, ImageError>,
) -> Outcome<Built> {
    let kernel = kernel(wanted.kernel.as_deref())?;
    let architecture = kernel.architecture;
    let mut spec = spec(wanted, kernel)?;
    let source = Source::find(
        &wanted.source,
        wanted
            .dockerfile
            .as_deref()
            .map(|folder| (folder, spec.epoch)),
        wanted.allow_tag,
        architecture,
    )?;
    spec.source = source.path().to_owned();
    spec.name = spec.name.or_else(|| source.name());
    let failed = |error| Failure::aws(Code::EIF_BUILDING, error);
    match make(&spec) {
        Err(error) if wanted.kernel.is_none() && is_for_aarch64(&error) => {
            let newest = own::newest_kernel_for_aarch64()?;
            let folder = newest.ok_or_else(|| failed(error).hint(NO_KERNEL_FOR_AARCH64))?;
            let kernel = self::kernel(Some(&folder))?;
            let (source, name) = (spec.source, spec.name);
            let spec = BuildSpec {
                source,
                name,
                ..self::spec(wanted, kernel)?
            };
            make(&spec).map_err(failed)
        }
        made => made.map_err(failed),
    }
}

const NO_KERNEL_FOR_AARCH64: &str = "a kernel for aarch64 is used by itself once one is in the cache: `enclos kernel fetch --arch aarch64`";

/// Whether what was found is for that processor, and not for the kernel's.
fn is_for_aarch64(error: &ImageError) -> bool {
    let wanted = format!("linux/{}", Architecture::Aarch64.oci_name());
    matches!(error, ImageError::Platform { found, .. } if found.split(", ").any(|one| one == wanted))
}

/// Everything but the source.
fn spec(wanted: &Wanted, kernel: Kernel) -> Outcome<BuildSpec> {
    let cmdline = kernel.cmdline();
    let guest = guest(wanted.guest.as_deref(), kernel.architecture)?;
    let config = wanted
        .config
        .as_deref()
        .map_or_else(|| Ok(BuildConfig::default()), BuildConfig::load);
    let config = config.map_err(|error| Failure::aws(Code::EIF_BUILDING, error))?;
    let custom_metadata = wanted
        .metadata
        .as_deref()
        .map_or(Ok(Value::Null), custom_metadata)?;
    let epoch = source_date_epoch().map_err(|error| Failure::aws(Code::EIF_BUILDING, error))?;
    Ok(BuildSpec {
        source: PathBuf::new(),
        reference: wanted.reference.clone(),
        config,
        modules: kernel.modules,
        kernel: kernel.image,
        guest,
        cmdline: wanted.cmdline.clone().unwrap_or(cmdline),
        name: wanted.name.clone(),
        version: wanted.version.clone(),
        custom_metadata,
        epoch,
    })
}

/// Where the application comes from.
#[derive(Debug)]
enum Source {
    /// A file or folder of the user's.
    Path(PathBuf),
    /// A container image that was brought into a temporary folder: as an archive or as a layout.
    Brought {
        path: PathBuf,
        reference: String,
        _folder: tempfile::TempDir,
    },
}

/// Prefixes that say "this is a path". What kind of file it is the file itself tells.
const PATH_PREFIXES: [&str; 5] = [
    "oci:",
    "oci-archive:",
    "docker-archive:",
    "rootfs:",
    "file:",
];

impl Source {
    /// A Dockerfile's folder comes with the time that its image is to be of. In a registry, the image for `architecture` is looked for; whatever else is found says itself what it is for.
    fn find(
        named: &str,
        dockerfile: Option<(&Path, u32)>,
        allow_tag: bool,
        architecture: Architecture,
    ) -> Outcome<Self> {
        if let Some((folder, epoch)) = dockerfile {
            let tool = Tool::build(named, folder, epoch)?;
            return Self::bring(named, |folder| {
                let archive = folder.join(ARCHIVE);
                tool.save(named, &archive).map(|()| archive)
            });
        }
        let stripped = PATH_PREFIXES
            .iter()
            .find_map(|prefix| named.strip_prefix(prefix));
        let path = Path::new(stripped.unwrap_or(named));
        if path.exists() {
            return Ok(Self::Path(path.to_owned()));
        }
        if stripped.is_some() || looks_like_path(named) {
            let error = std::io::ErrorKind::NotFound.into();
            return Err(Failure::file(
                Some(Code::FILE_OPERATION),
                "open",
                path,
                error,
            ));
        }
        Self::bring(named, |folder| {
            fetch(named, allow_tag, architecture, folder)
        })
    }

    fn bring(reference: &str, into: impl FnOnce(&Path) -> Outcome<PathBuf>) -> Outcome<Self> {
        let folder = tempfile::Builder::new().prefix("enclos-image-").tempdir()?;
        Ok(Self::Brought {
            path: into(folder.path())?,
            reference: reference.to_owned(),
            _folder: folder,
        })
    }

    fn path(&self) -> &Path {
        match self {
            Self::Path(path) | Self::Brought { path, .. } => path,
        }
    }

    /// nitro-cli names an image by its reference up to the tag; a registry's port is no tag.
    fn name(&self) -> Option<String> {
        match self {
            Self::Path(_) => None,
            Self::Brought { reference, .. } => Some(without_tag(reference).to_owned()),
        }
    }
}

/// Name of a brought archive in its folder.
const ARCHIVE: &str = "image.tar";

/// An image that is only a name: what an engine or a container tool has of it, else what the registry has.
fn fetch(
    reference: &str,
    allow_tag: bool,
    architecture: Architecture,
    folder: &Path,
) -> Outcome<PathBuf> {
    const LOCAL: &str = "Using the locally available Docker image...";
    let archive = folder.join(ARCHIVE);
    for engine in Engine::all() {
        let saved = engine.save(reference, &archive);
        if saved.map_err(|error| Failure::aws(Code::DOCKER_PULL, error))? {
            term::note(LOCAL);
            return Ok(archive);
        }
    }
    if let Some(tool) = Tool::having(reference) {
        term::note(LOCAL);
        return tool.save(reference, &archive).map(|()| archive);
    }
    let layout = folder.join("layout");
    registry::pull(reference, allow_tag, architecture, &layout).map(|()| layout)
}

fn without_tag(reference: &str) -> &str {
    let name = reference
        .split_once('@')
        .map_or(reference, |(name, _)| name);
    match name.rsplit_once(':') {
        Some((name, tag)) if !tag.contains('/') => name,
        _ => name,
    }
}

/// What no registry reference looks like.
fn looks_like_path(named: &str) -> bool {
    named.starts_with(['.', '/', '~']) || named.ends_with(".tar")
}

struct Kernel {
    image: PathBuf,
    modules: PathBuf,
    acpi: bool,
    architecture: Architecture,
}

impl Kernel {
    /// The command line of images with this kernel. Without ACPI, the kernel is told its devices' addresses by the engine,
    /// which has to know that.
    fn cmdline(&self) -> String {
        match self.acpi {
            true => DEFAULT_CMDLINE.to_owned(),
            false => format!("{DEFAULT_CMDLINE} acpi=off"),
        }
    }
}

/// A folder as `enclos kernel fetch` leaves it; by default the newest in the cache.
fn kernel(given: Option<&Path>) -> Outcome<Kernel> {
    let folder = match given {
        Some(folder) => folder.to_owned(),
        None => own::newest_kernel()?
            .ok_or_else(own::kernel_missing)
            .map_err(|failure| failure.with_code(Code::BLOBS))?,
    };
    let image = folder.join("vmlinuz");
    if !image.is_file() {
        return Err(Failure::aws_text(Code::BLOBS, format_args!("no kernel at {}", image.display()))
            .hint("--kernel takes a folder with `vmlinuz` and `modules/`, such as `enclos kernel fetch` makes"));
    }
    // A folder without a configuration holds a kernel of unknown making, most of which have ACPI.
    let config = std::fs::read_to_string(folder.join("config")).unwrap_or_default();
    let architecture = File::open(&image).and_then(|file| {
        let mut head = Vec::new();
        file.take(HEAD_LEN).read_to_end(&mut head)?;
        Ok(architecture(&head))
    });
    let architecture = architecture
        .map_err(|error| Failure::file(Some(Code::FILE_OPERATION), "read", &image, error))?;
    Ok(Kernel {
        image,
        architecture,
        modules: folder.join("modules"),
        acpi: !config
            .lines()
            .any(|line| line == "# CONFIG_ACPI is not set"),
    })
}

/// Programs for aarch64 may have a folder of their own among those that are installed.
fn guest(given: Option<&Path>, architecture: Architecture) -> Outcome<GuestBinaries> {
    let mut folder = given.map_or_else(dirs::guest, |folder| Ok(folder.to_owned()))?;
    let own = folder.join("aarch64");
    if architecture == Architecture::Aarch64 && own.is_dir() {
        folder = own;
    }
    let find = |names: [&str; 2]| {
        names
            .into_iter()
            .map(|name| folder.join(name))
            .find(|path| path.is_file())
    };
    match (find(["enclos-init", "init"]), find(["enclos-agent", "agent"])) {
        (Some(init), Some(agent)) => Ok(GuestBinaries { init, agent }),
        _ => Err(Failure::aws_text(Code::BLOBS, format_args!("no enclos-init and enclos-agent in {}", folder.display()))
            .hint("name the directory that holds them by --guest or ENCLOS_GUEST_DIR; they are built statically, for the kernel's \
                   processor (target x86_64-unknown-linux-musl or aarch64-unknown-linux-musl)")),
    }
}

pub(crate) fn custom_metadata(path: &Path) -> Outcome<Value> {
    let text = std::fs::read(path)
        .map_err(|error| Failure::file(Some(Code::FILE_OPERATION), "read", path, error))?;
    if text.len() > MAX_CUSTOM_METADATA {
        let text = format!(
            "{} has {} bytes, at most {MAX_CUSTOM_METADATA} are accepted",
            path.display(),
            text.len()
        );
        return Err(Failure::aws_text(Code::INVALID_ARGUMENT, text));
    }
    serde_json::from_slice(&text).map_err(|error| {
        let error = anyhow::Error::new(error).context(format!("{} is not JSON", path.display()));
        Failure::aws(Code::INVALID_ARGUMENT, error)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_that_is_missing_is_not_taken_for_a_reference() {
        for named in [
            "oci:none",
            "docker-archive:none.tar",
            "./none",
            "/none",
            "none.tar",
        ] {
            let failure = Source::find(named, None, false, Architecture::X86_64).unwrap_err();
            assert_eq!(failure.exit_status(), 19, "{named}");
        }
    }

    #[test]
    fn an_existing_path_needs_no_prefix_but_may_have_one() {
        let folder = tempfile::tempdir().unwrap();
        let named = folder.path().to_str().unwrap();
        for named in [
            named.to_owned(),
            format!("oci:{named}"),
            format!("rootfs:{named}"),
        ] {
            assert_eq!(
                Source::find(&named, None, false, Architecture::X86_64)
                    .unwrap()
                    .path(),
                folder.path()
            );
        }
    }

    #[test]
    fn an_image_is_named_without_tag_and_digest() {
        for (reference, name) in [
            ("hello", "hello"),
            ("hello:1", "hello"),
            ("localhost:5000/a/b", "localhost:5000/a/b"),
            ("localhost:5000/a/b:1@sha256:00", "localhost:5000/a/b"),
        ] {
            assert_eq!(without_tag(reference), name);
        }
    }

    #[test]
    fn custom_metadata_has_awss_limit() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let fill = |len: usize| {
            std::fs::write(file.path(), format!("\"{}\"", "x".repeat(len - 2))).unwrap()
        };
        fill(MAX_CUSTOM_METADATA);
        assert!(custom_metadata(file.path()).is_ok());
        fill(MAX_CUSTOM_METADATA + 1);
        assert_eq!(custom_metadata(file.path()).unwrap_err().exit_status(), 3);
        std::fs::write(file.path(), "{").unwrap();
        assert_eq!(custom_metadata(file.path()).unwrap_err().exit_status(), 3);
    }

    #[test]
    fn a_kernel_folder_without_a_kernel_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let failure = kernel(Some(folder.path())).err().unwrap();
        assert_eq!(failure.exit_status(), 52);
        assert!(failure.render("enclos").contains("vmlinuz"));
    }
}
