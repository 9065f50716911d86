//! Why an image could not be assembled.

use std::io;
use std::path::{Path, PathBuf};

use crate::builder::BuildError;
use crate::cpio::CpioError;
use crate::format::Architecture;

use super::module::ModuleError;
use super::spool::SpoolError;
use super::store::StoreError;
use super::tree::PathError;

/// Most bytes of an entry's path that an error shows: as many as Linux' `PATH_MAX`.
const LONGEST_PATH: usize = 4096;

/// Why an image could not be assembled.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ImageError {
    /// A file of the host could not be used.
    #[error("cannot {action} {}", path.display())]
    File {
        /// What was tried: `read`, `write`, …
        action: &'static str,
        /// On which file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A temporary file could not be used.
    #[error(
        "cannot use a temporary file, which is in the image's folder, or in TMPDIR where no image is written; make room there"
    )]
    Scratch(#[source] io::Error),
    /// The source is nothing an image is made of.
    #[error(
        "{} is no image source: expected an OCI layout or archive, a `docker save` archive, or a root file \
         system as folder or tar archive", path.display()
    )]
    UnknownSource {
        /// The source.
        path: PathBuf,
    },
    /// A file that the archive's own index names is not in it.
    #[error("{name} is missing from the image archive; export the image again")]
    MissingBlob {
        /// Its name in the archive.
        name: String,
    },
    /// A blob's bytes are not those its digest names.
    #[error(
        "{name} does not have the digest that the image names for it (expected {expected}, found {found}); \
         the image was damaged or changed, export it again"
    )]
    Digest {
        /// The blob.
        name: String,
        /// In the manifest or configuration.
        expected: String,
        /// Of the bytes.
        found: String,
    },
    /// A digest that cannot be checked.
    #[error(
        "the digest {digest:?} is not supported, expected `sha256:` or `sha512:` and hexadecimal digits"
    )]
    UnknownDigest {
        /// As in the manifest.
        digest: String,
    },
    /// A JSON document of the image is malformed.
    #[error("{name} is not the JSON that the image format describes; export the image again")]
    Json {
        /// Its name in the archive.
        name: String,
        /// Why.
        #[source]
        source: serde_json::Error,
    },
    /// A JSON document or configuration is larger than any honest one.
    #[error("{name} is {len} bytes long, the limit is {limit}; export the image again")]
    TooLarge {
        /// Its name.
        name: String,
        /// Its length.
        len: u64,
        /// The limit.
        limit: u64,
    },
    /// No image of the archive is for this processor.
    #[error(
        "the archive holds no image for linux/{} (found {found}), and the kernel is for {expected}; export the image for \
         that platform, or choose another kernel", expected.oci_name()
    )]
    Platform {
        /// The kernel's.
        expected: Architecture,
        /// What there is.
        found: String,
    },
    /// An empty archive.
    #[error("the archive holds no image at all; export the image again")]
    NoImage,
    /// A program or module is for another processor than the kernel.
    #[error(
        "{} is for another processor than the kernel, which is for {expected}; pass one that was built for it",
        path.display()
    )]
    OtherArchitecture {
        /// The file.
        path: PathBuf,
        /// The kernel's.
        expected: Architecture,
    },
    /// Several images and none was chosen.
    #[error("the archive holds several images ({found}); name one of them")]
    Ambiguous {
        /// Their names.
        found: String,
    },
    /// The chosen image is not there.
    #[error("the archive holds no image named {wanted} (found {found}); name one of these")]
    NoSuchImage {
        /// What was asked for.
        wanted: String,
        /// What there is.
        found: String,
    },
    /// Manifest and configuration disagree.
    #[error(
        "the image has {layers} layers and its configuration names {diff_ids}; export the image again"
    )]
    LayerCount {
        /// In the manifest.
        layers: usize,
        /// In the configuration.
        diff_ids: usize,
    },
    /// A layer is not a readable tar archive.
    #[error("cannot read the archive {name}")]
    Layer {
        /// Its name.
        name: String,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// An archive's entry is hostile or damaged.
    #[error("{name}: the entry {path:?} {problem}; build the image's source again")]
    Entry {
        /// The archive's name.
        name: String,
        /// The entry's path.
        path: String,
        /// What is wrong with it.
        problem: String,
    },
    /// Nothing says what to start.
    #[error(
        "nothing says what to start: the image has no Entrypoint or Cmd, set `command` under `[app]`"
    )]
    NoCommand,
    /// `SOURCE_DATE_EPOCH` is no time that an image can have.
    #[error(
        "SOURCE_DATE_EPOCH is {value:?}, expected seconds since 1970 that fit 32 bits; set it so, or unset it"
    )]
    Epoch {
        /// What it is.
        value: String,
    },
    /// A value of the image's configuration cannot be honoured.
    #[error("{field} is {value:?}, expected {expected}; correct it in the image or in enclos.toml")]
    Value {
        /// The setting.
        field: &'static str,
        /// Its value.
        value: String,
        /// What would be right.
        expected: &'static str,
    },
    /// A kernel module that the guest needs is not there.
    #[error(
        "kernel module {name} is neither in {} nor built in; pass the modules of the kernel's own package",
        path.display()
    )]
    MissingModule {
        /// Its name.
        name: String,
        /// Where it was looked for.
        path: PathBuf,
    },
    /// A kernel module is damaged or for another kernel.
    #[error("kernel module {name} cannot be used")]
    Module {
        /// Its name.
        name: String,
        /// Why.
        #[source]
        source: ModuleError,
    },
    /// The modules are for another kernel.
    #[error(
        "kernel module {name} is for kernel {module}, the kernel is {kernel}; pass kernel and modules of the \
         same package"
    )]
    OtherKernel {
        /// The module's name.
        name: String,
        /// The kernel that it is for.
        module: String,
        /// The kernel.
        kernel: String,
    },
    /// The archive could not be written.
    #[error("cannot write a ramdisk")]
    Cpio(#[from] CpioError),
    /// The image could not be written.
    #[error("cannot build the image")]
    Build(#[from] BuildError),
    /// The measured configuration could not be encoded.
    #[error("cannot encode the enclave's configuration")]
    Encode(#[source] serde_json::Error),
}

impl ImageError {
    /// A function that turns an I/O error on `path` into an [`ImageError`].
    pub(crate) fn file(action: &'static str, path: &Path) -> impl Fn(io::Error) -> Self + use<> {
        let path = path.to_owned();
        move |source| Self::File {
            action,
            path: path.clone(),
            source,
        }
    }

    pub(crate) fn entry(name: &str, path: &[u8], problem: impl Into<String>) -> Self {
        let path = String::from_utf8_lossy(&path[..path.len().min(LONGEST_PATH)]).into_owned();
        Self::Entry {
            name: name.to_owned(),
            path,
            problem: problem.into(),
        }
    }

    /// Why an entry was not put into the tree.
    pub(crate) fn path(name: &str, path: &[u8], error: PathError) -> Self {
        match error {
            PathError::Store(StoreError::Database(error)) => Self::Scratch(io::Error::other(error)),
            error => Self::entry(name, path, error.to_string()),
        }
    }

    /// Why a body was not kept; `name` is the archive's.
    pub(crate) fn spool(name: &str) -> impl Fn(SpoolError) -> Self {
        |error| match error {
            SpoolError::Body(error) => Self::layer(name)(error),
            SpoolError::File(error) => Self::Scratch(error),
        }
    }

    /// A function that turns an I/O error in an archive into an [`ImageError`].
    pub(crate) fn layer(name: &str) -> impl Fn(io::Error) -> Self + use<> {
        let name = name.to_owned();
        move |source| Self::Layer {
            name: name.clone(),
            source,
        }
    }
}
