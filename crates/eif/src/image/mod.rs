//! From a container image or root file system to an enclave image (feature `build`).
//!
//! ```text
//! kernel ───────────────────────────────▶ kernel section       (as its package ships it)
//! enclos-init, enclos-agent, modules ───▶ ramdisk 0, runtime   (PCR1)
//! OCI layout, docker archive, ──▶ Tree ─▶ ramdisk 1, app       (PCR2)
//! folder or tar      + enclos.toml ─────▶   /enclos/config.json
//! ```
//!
//! The same inputs give the same bytes: entries are sorted, times are one fixed value, nothing of the host
//! (paths, users, clock) gets in.

mod allowance;
mod blobs;
mod config;
mod emit;
mod error;
#[cfg(feature = "fuzzing")]
pub mod fuzzing;
mod layer;
mod module;
mod node;
mod oci;
mod process;
mod publish;
mod rootfs;
mod runtime;
mod sparse;
mod spool;
mod store;
mod stream;
mod tree;

use std::fs;
use std::io::{self, Read as _, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use enclos_api::config::EnclaveConfig;
use serde_json::Value;
use x509_cert::der::DateTime;

use crate::builder::{BuildError, Builder};
use crate::cpio::{Archive, Attributes};
use crate::format::Architecture;
use crate::kernel;
use crate::measure::Measurements;
use crate::metadata::{BuildMetadata, Metadata};
use crate::signer::Signer;

pub use config::{App, BuildConfig, ConfigError};
pub use error::ImageError;
pub use module::{ModuleError, retarget_nsm};
pub use publish::Draft;
pub use runtime::GuestBinaries;

use blobs::Blobs;
use emit::write_tree;
use layer::Lost;
use oci::{Image, ImageConfig, Wanted};
use process::enclave_config;
use publish::folder_of;
use runtime::KernelFacts;
use spool::Spool;
use tree::Tree;

/// The measured command line. Whatever an engine needs beside it comes from the hypervisor, unmeasured.
///
/// | word | why |
/// |---|---|
/// | `console=ttyS0` | the only console an engine offers, and only in debug mode |
/// | `reboot=t panic=1` | an enclave that fails ends at once, by the one way that every engine understands |
/// | `quiet` | console output is paid for in boot time |
/// | `8250.nr_uarts=1` | one serial port is there, probing for others takes time |
/// | `cryptomgr.notests` | the kernel's self-tests of its ciphers take longer than the rest of their set-up |
/// | `random.trust_cpu=on` | as on AWS; the NSM adds its entropy later |
pub const DEFAULT_CMDLINE: &str =
    "console=ttyS0 reboot=t panic=1 quiet 8250.nr_uarts=1 cryptomgr.notests random.trust_cpu=on";

/// Directories that init mounts on; made where an image lacks them.
const MOUNT_POINTS: [(&str, u32); 6] = [
    ("dev", 0o755),
    ("proc", 0o755),
    ("run", 0o755),
    ("sys", 0o755),
    ("tmp", 0o1777),
    ("var", 0o755),
];

/// What an image is made of.
#[derive(Debug, Clone)]
pub struct BuildSpec {
    /// The application: an OCI layout or archive, a `docker save` archive, a root file system as folder or tar.
    pub source: PathBuf,
    /// Which image, where the source holds several.
    pub reference: Option<String>,
    /// `enclos.toml`.
    pub config: BuildConfig,
    /// The kernel: a bzImage, or an uncompressed `Image` for aarch64, which decides what the image is for.
    pub kernel: PathBuf,
    /// The kernel's modules: a folder that has them somewhere below it.
    pub modules: PathBuf,
    /// The programs that run inside.
    pub guest: GuestBinaries,
    /// The measured command line.
    pub cmdline: String,
    /// Name of the image in its metadata; default: the source's.
    pub name: Option<String>,
    /// Version of the image in its metadata; default: the source's digest, or `1.0`.
    pub version: Option<String>,
    /// The user's own metadata.
    pub custom_metadata: Value,
    /// Time of the build and of all files, in seconds since 1970: [`source_date_epoch`].
    pub epoch: u32,
}

/// What was built.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Built {
    /// PCR0, PCR1, PCR2 and, when it was signed, PCR8.
    pub measurements: Measurements,
    /// The metadata that was written.
    pub metadata: Metadata,
    /// The measured configuration.
    pub config: EnclaveConfig,
    /// Length of the image in bytes.
    pub len: u64,
    /// What the user should know, one sentence each.
    pub warnings: Vec<String>,
}

/// `SOURCE_DATE_EPOCH`, or 0 when it is not set.
///
/// # Errors
/// [`ImageError::Epoch`] when it is no number of seconds before the year 2106.
pub fn source_date_epoch() -> Result<u32, ImageError> {
    let Some(value) = std::env::var_os("SOURCE_DATE_EPOCH") else {
        return Ok(0);
    };
    let value = value.to_string_lossy();
    value.parse().map_err(|_| ImageError::Epoch {
        value: value.into_owned(),
    })
}

/// Builds an image into `output`, signed if there is a signer. The file appears whole or not at all.
///
/// # Errors
/// [`ImageError`]; the output file is then as it was before.
pub fn assemble(
    spec: &BuildSpec,
    signer: Option<&Signer>,
    output: &Path,
) -> Result<Built, ImageError> {
    let written = ImageError::file("write", output);
    let mut draft = Draft::beside(output).map_err(&written)?;
    let built = build(spec, signer, folder_of(output), &mut draft)?;
    draft.publish(output).map_err(&written)?;
    Ok(built)
}

/// Finished parts of an image: what AWS's `eif_build` takes.
#[derive(Debug, Clone)]
pub struct Parts {
    /// The kernel: a bzImage, or an uncompressed `Image` for aarch64, which decides what the image is for.
    pub kernel: PathBuf,
    /// The measured command line.
    pub cmdline: String,
    /// The ramdisks: the first is the runtime (PCR1), the others are the application (PCR2).
    pub ramdisks: Vec<PathBuf>,
    /// Name of the image in its metadata.
    pub name: String,
    /// Version of the image in its metadata.
    pub version: String,
    /// The user's own metadata.
    pub custom_metadata: Value,
    /// Time of the build in seconds since 1970.
    pub epoch: u32,
}

/// Puts finished parts together, signed if there is a signer. The file appears whole or not at all.
///
/// # Errors
/// [`ImageError`]; the output file is then as it was before.
pub fn assemble_parts(
    parts: &Parts,
    signer: Option<&Signer>,
    output: &Path,
) -> Result<Measurements, ImageError> {
    let written = ImageError::file("write", output);
    let mut draft = Draft::beside(output).map_err(&written)?;
    let mut builder = Builder::new()
        .kernel(parts.kernel.as_path())
        .cmdline(parts.cmdline.as_str())
        .metadata(Metadata {
            image_name: parts.name.clone(),
            image_version: parts.version.clone(),
            build_metadata: build_metadata(parts.epoch, kernel_version(&parts.kernel)?),
            docker_info: Value::Null,
            custom_metadata: parts.custom_metadata.clone(),
        });
    for ramdisk in &parts.ramdisks {
        builder = builder.ramdisk(ramdisk.as_path());
    }
    if let Some(signer) = signer {
        builder = builder.sign(signer);
    }
    let measurements = builder.write(&mut draft)?;
    draft.publish(output).map_err(&written)?;
    Ok(measurements)
}

/// As much of a kernel as its headers are in.
fn read_head(kernel: &Path) -> Result<Vec<u8>, ImageError> {
    let failed = ImageError::file("read", kernel);
    let mut head = Vec::new();
    let file = fs::File::open(kernel).map_err(&failed)?;
    let read = file.take(kernel::HEAD_LEN).read_to_end(&mut head);
    read.map(|_| head).map_err(&failed)
}

fn kernel_version(kernel: &Path) -> Result<Option<String>, ImageError> {
    let version = fs::File::open(kernel).and_then(kernel::version);
    version.map_err(ImageError::file("read", kernel))
}

fn build_metadata(epoch: u32, kernel_version: Option<String>) -> BuildMetadata {
    BuildMetadata {
        build_time: rfc3339(epoch),
        build_tool: "enclos".into(),
        build_tool_version: env!("CARGO_PKG_VERSION").into(),
        operating_system: "Linux".into(),
        kernel_version: kernel_version.unwrap_or_else(|| "Unknown".into()),
    }
}

/// What [`assemble`] would build from the same inputs, measurements above all, without writing an image.
///
/// # Errors
/// As [`assemble`].
pub fn plan(spec: &BuildSpec) -> Result<Built, ImageError> {
    build(spec, None, &std::env::temp_dir(), &mut Nowhere::default())
}

/// `folder` is for temporary files without a name.
fn build<W: Write + Seek>(
    spec: &BuildSpec,
    signer: Option<&Signer>,
    folder: &Path,
    out: &mut W,
) -> Result<Built, ImageError> {
    let mut spool = Spool::new(tempfile::tempfile_in(folder).map_err(ImageError::Scratch)?);
    let architecture = kernel::architecture(&read_head(&spec.kernel)?);
    let mut app = load(spec, architecture, folder, &mut spool)?;
    let mut warnings = app.warnings(spec);
    let config = enclave_config(&spec.config, &app.image.config, &mut warnings)?;
    complete(&mut app.image)?;
    let version = kernel_version(&spec.kernel)?;
    let facts = KernelFacts {
        version: version.as_deref(),
        architecture,
    };
    let runtime = runtime::runtime(&spec.guest, &spec.modules, facts, folder, &mut spool)?;
    let metadata = app.metadata(spec, version);
    let own = own_files(&config, folder, &mut spool)?;
    spool.flush().map_err(ImageError::Scratch)?;
    let builder = Builder::new()
        .kernel(spec.kernel.as_path())
        .cmdline(spec.cmdline.trim())
        .metadata(metadata.clone())
        .ramdisk_from(|out| write_runtime(out, spec.epoch, runtime, &spool))
        .ramdisk_from(|out| write_app(out, spec.epoch, [own, app.image.tree], &spool));
    let builder = match signer {
        Some(signer) => builder.sign(signer),
        None => builder,
    };
    let measurements = builder.write(out)?;
    let len = out.seek(SeekFrom::End(0)).map_err(BuildError::Write)?;
    Ok(Built {
        measurements,
        metadata,
        config,
        len,
        warnings,
    })
}

/// A file that keeps its length and nothing else.
#[derive(Debug, Default)]
struct Nowhere {
    position: u64,
    len: u64,
}

impl Write for Nowhere {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.position += u64::try_from(bytes.len()).unwrap_or(u64::MAX);
        self.len = self.len.max(self.position);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Seek for Nowhere {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        let position = match to {
            SeekFrom::Start(position) => Some(position),
            SeekFrom::End(offset) => self.len.checked_add_signed(offset),
            SeekFrom::Current(offset) => self.position.checked_add_signed(offset),
        };
        self.position = position.ok_or(io::ErrorKind::InvalidInput)?;
        Ok(self.position)
    }
}

/// What is in an application's ramdisk beside the image's own files.
fn own_files(
    config: &EnclaveConfig,
    scratch: &Path,
    spool: &mut Spool,
) -> Result<Tree, ImageError> {
    let json = serde_json::to_vec(config).map_err(ImageError::Encode)?;
    let mut own = Tree::new(scratch);
    runtime::own_file(&mut own, spool, "enclos/config.json", &json)?;
    Ok(own)
}

fn write_runtime(out: &mut dyn Write, epoch: u32, mut tree: Tree, spool: &Spool) -> io::Result<()> {
    let mut archive = Archive::new(out, epoch);
    write_tree(&mut tree, spool, b"", &mut archive).map_err(io::Error::other)?;
    archive.finish().map(drop).map_err(io::Error::other)
}

fn write_app(
    out: &mut dyn Write,
    epoch: u32,
    [mut own, mut tree]: [Tree; 2],
    spool: &Spool,
) -> io::Result<()> {
    let mut archive = Archive::new(out, epoch);
    write_tree(&mut own, spool, b"", &mut archive).map_err(io::Error::other)?;
    write_tree(&mut tree, spool, b"rootfs", &mut archive).map_err(io::Error::other)?;
    archive.finish().map(drop).map_err(io::Error::other)
}

/// Adds the directories that init needs, and those that the image wants to be there.
fn complete(image: &mut Image) -> Result<(), ImageError> {
    let tree = &mut image.tree;
    let mut add = |wanted_by: &str, path: &str, mode| {
        let path = path.as_bytes();
        let added = match tree.exists(path) {
            Ok(true) => Ok(()),
            Ok(false) => tree.directory(path, Attributes::root(mode)),
            Err(error) => Err(error.into()),
        };
        added.map_err(|error| ImageError::path(wanted_by, path, error))
    };
    for (path, mode) in MOUNT_POINTS {
        add("the mount points", path, mode)?;
    }
    // A runtime would mount something there, and make a directory of what is not there.
    let volumes = image.config.volumes.iter();
    for path in volumes.flat_map(|volumes| volumes.keys()) {
        add("the image's Volumes", path, 0o755)?;
    }
    Ok(())
}

/// The application's part of an image, before its configuration is settled.
struct Application {
    image: Image,
    is_container: bool,
}

fn load(
    spec: &BuildSpec,
    architecture: Architecture,
    folder: &Path,
    spool: &mut Spool,
) -> Result<Application, ImageError> {
    let path = &spec.source;
    let wanted = &Wanted {
        reference: spec.reference.as_deref(),
        architecture,
        scratch: folder,
    };
    if fs::metadata(path)
        .map_err(ImageError::file("read", path))?
        .is_dir()
    {
        let blobs = Blobs::Folder(path.clone());
        return match blobs.has("index.json") && blobs.has("oci-layout") {
            true => container(oci::load_oci(&blobs, wanted, spool)?),
            false => plain(rootfs::load_folder(path, folder)?, Lost::default()),
        };
    }
    load_archive(blobs::open_archive(path, folder)?, path, wanted, spool)
}

/// Any unpacked archive; `path` is what messages call it.
fn load_archive(
    archive: fs::File,
    path: &Path,
    wanted: &Wanted<'_>,
    spool: &mut Spool,
) -> Result<Application, ImageError> {
    let again = archive
        .try_clone()
        .map_err(ImageError::file("read", path))?;
    let blobs = Blobs::archive(archive, path)?;
    if blobs.has("index.json") && blobs.has("oci-layout") {
        container(oci::load_oci(&blobs, wanted, spool)?)
    } else if blobs.has("manifest.json") {
        container(oci::load_docker(&blobs, wanted, spool)?)
    } else {
        drop(blobs);
        let mut lost = Lost::default();
        plain(
            rootfs::load_tar(again, path, spool, &mut lost, wanted.scratch)?,
            lost,
        )
    }
}

fn container(image: Image) -> Result<Application, ImageError> {
    Ok(Application {
        image,
        is_container: true,
    })
}

fn plain(tree: Tree, lost: Lost) -> Result<Application, ImageError> {
    let (config, raw_config) = (
        ImageConfig::default(),
        Value::Object(serde_json::Map::new()),
    );
    let image = Image {
        tree,
        config,
        raw_config,
        name: None,
        id: String::new(),
        lost,
    };
    Ok(Application {
        image,
        is_container: false,
    })
}

impl Application {
    fn warnings(&self, spec: &BuildSpec) -> Vec<String> {
        let mut warnings = Vec::new();
        if let Lost {
            count,
            first: Some(first),
        } = &self.image.lost
        {
            let who = match count {
                1 => format!("{first} loses"),
                _ => format!("{count} files (the first is {first}) lose"),
            };
            warnings.push(format!(
                "{who} extended attributes such as file capabilities: an initial RAM file system has none"
            ));
        }
        if !self.is_container && spec.reference.is_some() {
            warnings.push("the source is a root file system, so the image name is not used".into());
        }
        warnings
    }

    fn metadata(&self, spec: &BuildSpec, kernel_version: Option<String>) -> Metadata {
        let stem = spec
            .source
            .file_stem()
            .unwrap_or_default()
            .to_string_lossy()
            .into_owned();
        let own_name = self
            .image
            .name
            .clone()
            .map(|name| without_tag(&name).to_owned());
        let own_version = self.image.id.split_once(':').map(|(_, hex)| hex.to_owned());
        Metadata {
            image_name: spec.name.clone().or(own_name).unwrap_or(stem),
            image_version: spec
                .version
                .clone()
                .or(own_version)
                .unwrap_or_else(|| "1.0".into()),
            build_metadata: build_metadata(spec.epoch, kernel_version),
            docker_info: self.image.raw_config.clone(),
            custom_metadata: spec.custom_metadata.clone(),
        }
    }
}

/// An image's name without its tag: the last colon, unless it is a registry's port.
fn without_tag(name: &str) -> &str {
    match name.rsplit_once(':') {
        Some((name, tag)) if !tag.contains('/') => name,
        _ => name,
    }
}

fn rfc3339(epoch: u32) -> String {
    match DateTime::from_unix_duration(Duration::from_secs(epoch.into())) {
        Ok(time) => time.to_string().replace('Z', "+00:00"),
        Err(_) => "1970-01-01T00:00:00+00:00".into(),
    }
}
