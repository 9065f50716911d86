//! Takes an image in: one copy, sealed, then checked and measured.
//!
//! The client's file can change at any moment and may be anything that a descriptor can be. So its bytes are
//! copied once into a memfd that is then sealed against every change; what is parsed, measured and booted
//! is that copy.

use std::fs::File;
use std::io::{self, BufReader, Read};
use std::os::fd::{AsFd, OwnedFd};
use std::time::SystemTime;

use enclos_api::control::{Failure, Measurements};
use enclos_eif::signature::SignatureError;
use enclos_eif::{Eif, EifError};
use rustix::fs::{FileType, MemfdFlags, SealFlags};

use crate::daemon::registry::ImageFacts;
use crate::failure::Code;
use crate::log::chain;
use crate::positioned::Positioned;

/// Bytes copied at a time.
const CHUNK: usize = 1 << 20;

/// Most bytes of an image's metadata, as JSON. Every answer and event about the enclave carries it.
pub(crate) const MAX_METADATA: usize = 64 << 10;

/// An image that passed every check.
#[derive(Debug)]
pub(crate) struct Image {
    /// The sealed copy.
    pub(crate) file: File,
    pub(crate) facts: ImageFacts,
}

/// Why an image was not taken in.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ImageError {
    #[error("the image must be a regular file, and is a {0}; pass the path of an .eif file")]
    NotAFile(&'static str),
    #[error("cannot copy the image into memory")]
    Copy(#[source] io::Error),
    #[error(
        "the image has more than {limit} bytes, a quarter of all memory for enclaves ({total_mib} MiB): no \
         enclave could boot it; start enclos-hypervisor with a larger --memory-mib"
    )]
    TooLarge { limit: u64, total_mib: u64 },
    #[error("the image is not a valid EIF")]
    Eif(#[source] EifError),
    #[error(
        "the image's metadata has {0} bytes, and may have {MAX_METADATA}: `describe-enclaves` tells it to everyone; \
         build the image with less of it"
    )]
    Metadata(usize),
    #[error("the image's signature does not hold")]
    Signature(#[source] SignatureError),
}

impl From<ImageError> for Failure {
    fn from(error: ImageError) -> Self {
        let code = match &error {
            ImageError::NotAFile(_) | ImageError::Copy(_) => Code::FileOperation,
            ImageError::TooLarge { .. } => Code::InsufficientMemoryAvailable,
            ImageError::Eif(_) | ImageError::Metadata(_) => Code::EifParsing,
            ImageError::Signature(_) => Code::Signature,
        };
        code.because(chain(&error))
    }
}

impl From<EifError> for ImageError {
    fn from(error: EifError) -> Self {
        match error {
            EifError::Signature(error) => Self::Signature(error),
            error => Self::Eif(error),
        }
    }
}

/// A regular file of a size that can be an image, not read yet.
#[derive(Debug)]
pub(crate) struct Candidate {
    file: File,
    /// Its length when it was looked at; no more than that is ever copied.
    pub(crate) bytes: u64,
}

impl Candidate {
    /// Looks at a client's descriptor. `total_mib` is all the memory that this host gives to enclaves.
    pub(crate) fn new(descriptor: OwnedFd, total_mib: u64) -> Result<Self, ImageError> {
        let bytes = size_of(&descriptor)?;
        let limit = total_mib.saturating_mul(1 << 20) / 4;
        if bytes > limit {
            return Err(ImageError::TooLarge { limit, total_mib });
        }
        let file = File::from(descriptor);
        Ok(Self { file, bytes })
    }
}

/// Copies, seals, checks and measures.
pub(crate) fn take_in(candidate: Candidate) -> Result<Image, ImageError> {
    let Candidate { file, bytes } = candidate;
    let file = copy(&file, bytes).map_err(ImageError::Copy)?;
    let bytes = file.metadata().map_err(ImageError::Copy)?.len();
    let mut reader = Positioned::new(&file);
    let eif = Eif::parse(&mut reader)?;
    let measured = enclos_eif::measure(&mut reader, &eif)?;
    if let Some(signature) = eif.signature(&mut reader)? {
        signature
            .check_validity(SystemTime::now())
            .map_err(ImageError::Signature)?;
    }
    let metadata = serde_json::to_value(eif.metadata(&mut reader)?).unwrap_or_default();
    let said = metadata.to_string().len();
    if said > MAX_METADATA {
        return Err(ImageError::Metadata(said));
    }
    let facts = ImageFacts {
        bytes,
        measurements: Measurements {
            pcr0: measured.pcr0.to_string(),
            pcr1: measured.pcr1.to_string(),
            pcr2: measured.pcr2.to_string(),
            pcr8: measured.pcr8.map(|pcr| pcr.to_string()),
        },
        metadata,
    };
    Ok(Image { file, facts })
}

/// Refuses what is no regular file: reading anything else could block for as long as its owner likes.
fn size_of(descriptor: &OwnedFd) -> Result<u64, ImageError> {
    let stat = rustix::fs::fstat(descriptor).map_err(|error| ImageError::Copy(error.into()))?;
    match FileType::from_raw_mode(stat.st_mode) {
        FileType::RegularFile => Ok(u64::try_from(stat.st_size).unwrap_or_default()),
        FileType::Directory => Err(ImageError::NotAFile("directory")),
        FileType::Fifo => Err(ImageError::NotAFile("pipe")),
        FileType::Socket => Err(ImageError::NotAFile("socket")),
        _ => Err(ImageError::NotAFile("device")),
    }
}

/// The sealed copy of the first `limit` bytes. Reads at offsets of its own, because the client's descriptor
/// shares its position with the client.
fn copy(source: &File, limit: u64) -> io::Result<File> {
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    let mut copy = File::from(rustix::fs::memfd_create("enclos-image", flags)?);
    let mut source = BufReader::with_capacity(CHUNK, Positioned::new(source).take(limit));
    io::copy(&mut source, &mut copy)?;
    let seals = SealFlags::WRITE | SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL;
    rustix::fs::fcntl_add_seals(copy.as_fd(), seals)?;
    Ok(copy)
}

#[cfg(test)]
mod tests {
    use std::io::{Seek, SeekFrom, Write};

    use super::*;

    fn file(bytes: &[u8]) -> File {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(bytes).unwrap();
        file
    }

    #[test]
    fn the_copy_is_whole_sealed_and_independent_of_the_clients_position() {
        let bytes: Vec<u8> = (0..CHUNK + 77)
            .map(|at| u8::try_from(at % 251).unwrap())
            .collect();
        let mut source = file(&bytes);
        source.seek(SeekFrom::Start(9)).unwrap();
        let mut copied = copy(&source, u64::MAX).unwrap();
        let mut read = Vec::new();
        copied.seek(SeekFrom::Start(0)).unwrap();
        copied.read_to_end(&mut read).unwrap();
        assert_eq!(read, bytes);
        copied.seek(SeekFrom::Start(0)).unwrap();
        assert!(copied.write_all(b"x").is_err(), "sealed against writing");
        assert!(copied.set_len(1).is_err(), "sealed against shrinking");
    }

    #[test]
    fn a_file_that_grows_meanwhile_is_cut_at_its_first_length() {
        let source = file(b"12345678");
        assert_eq!(copy(&source, 4).unwrap().metadata().unwrap().len(), 4);
    }

    #[test]
    fn a_quarter_of_memory_is_the_most_an_image_may_have() {
        let image = tempfile::tempfile().unwrap();
        let candidate = |length| {
            image.set_len(length).unwrap();
            Candidate::new(image.try_clone().unwrap().into(), 4)
        };
        assert_eq!(candidate(1 << 20).unwrap().bytes, 1 << 20);
        assert!(matches!(
            candidate((1 << 20) + 1),
            Err(ImageError::TooLarge { .. })
        ));
    }

    #[test]
    fn what_is_no_file_is_refused_before_it_is_read() {
        let (reader, _writer) = rustix::pipe::pipe().unwrap();
        let pipe = Candidate::new(reader, 1024);
        assert!(matches!(pipe, Err(ImageError::NotAFile("pipe"))));
        let directory = OwnedFd::from(File::open("/").unwrap());
        let directory = Candidate::new(directory, 1024);
        assert!(matches!(directory, Err(ImageError::NotAFile("directory"))));
    }

    #[test]
    fn what_is_no_image_has_awss_number() {
        let candidate = Candidate::new(file(b"not an image").into(), 1024).unwrap();
        let failure = Failure::from(take_in(candidate).unwrap_err());
        assert_eq!(failure.code, 35);
    }
}
