//! The enclave image format (EIF): reading, building, measuring and signing, compatible with AWS Nitro
//! Enclaves version 4.
//!
//! | to | use |
//! |---|---|
//! | accept an image that is to be run | [`Eif::parse`], then [`measure`] |
//! | describe an image, however odd | [`inspect()`] |
//! | tell what makes two of them differ | [`diff()`] |
//! | sign one | [`Builder::sign`], [`sign_image`] (feature `build`) |
//! | write one from finished parts | [`Builder`] |
//! | write one from a container image, or measure what would be written | [`image::assemble`], [`image::plan`] (feature `build`) |
//! | boot a kernel and ramdisks without the guest unpacking them | [`kernel::unpack`], [`ramdisk::unpack_to`] |
//!
//! The format is written down, with its golden vector and every choice where readers disagree, in this
//! crate's `SPEC.md`.

#![forbid(unsafe_code)]
#![warn(missing_docs)]

mod builder;
mod configuration;
mod diff;
mod error;
mod format;
mod hashing;
mod inspect;
mod listing;
mod measure;
mod metadata;
mod packing;
mod reader;
#[cfg(feature = "build")]
mod signer;

pub mod cpio;
#[cfg(feature = "build")]
pub mod image;
pub mod kernel;
pub mod ramdisk;
pub mod signature;

pub use builder::{BuildError, Builder, Producer, Source};
pub use diff::{Change, DiffError, Difference, Input, Register, diff};
pub use error::EifError;
pub use format::{
    Architecture, CURRENT_VERSION, HEADER_LEN, MAGIC, MAX_CMDLINE_LEN, MAX_METADATA_LEN,
    MAX_SECTIONS, MAX_SIGNATURE_LEN, OLDEST_VERSION, SECTION_HEADER_LEN, Section, SectionKind,
};
pub use inspect::{CertificateInfo, Report, inspect};
pub use listing::{Entry, list};
pub use measure::{Measurements, measure};
pub use metadata::{BuildMetadata, Metadata};
pub use reader::Eif;
#[cfg(feature = "build")]
pub use signer::{
    SignError, Signer, SignerError, SigningError, SigningKey, ToBeSigned, sign_image,
};
