//! Takes an image in: one copy, sealed, then checked and measured.
//!
//! The client's file can change at any moment and may be anything that a descriptor can be. So its bytes are
//! copied once into a memfd that is then sealed against every change; what is parsed, measured and booted
//! is that copy.

use std::fs::File;
use std::io::{self, Read, Write};
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
    #[error("the image's signature does not hold")]
    Signature(#[source] SignatureError),
}

impl From<ImageError> for Failure {
    fn from(error: ImageError) -> Self {
        let code = match &error {
            ImageError::NotAFile(_) | ImageError::Copy(_) => Code::FileOperation,
            ImageError::TooLarge { .. } => Code::InsufficientMemoryAvailable,
            ImageError::Eif(_) => Code::EifParsing,
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

/// Copies, seals, checks and measures. `total_mib` is all the memory that this host gives to enclaves.
pub(crate) fn take_in(descriptor: OwnedFd, total_mib: u64) -> Result<Image, ImageError> {
    check_kind(&descriptor)?;
    let limit = total_mib.saturating_mul(1 << 20) / 4;
    let (file, bytes) = copy(File::from(descriptor), limit)
        .map_err(ImageError::Copy)?
        .ok_or(ImageError::TooLarge { limit, total_mib })?;
    let mut reader = Positioned::new(&file);
    let eif = Eif::parse(&mut reader)?;
    let measured = enclos_eif::measure(&mut reader, &eif)?;
    if let Some(signature) = eif.signature(&mut reader)? {
        signature
            .check_validity(SystemTime::now())
            .map_err(ImageError::Signature)?;
    }
    let metadata = eif.metadata(&mut reader)?;
    let facts = ImageFacts {
        bytes,
        measurements: Measurements {
            pcr0: measured.pcr0.to_string(),
            pcr1: measured.pcr1.to_string(),
            pcr2: measured.pcr2.to_string(),
            pcr8: measured.pcr8.map(|pcr| pcr.to_string()),
        },
        metadata: serde_json::to_value(metadata).unwrap_or_default(),
    };
    Ok(Image { file, facts })
}

/// Reading anything else could block for as long as its owner likes.
fn check_kind(descriptor: &OwnedFd) -> Result<(), ImageError> {
    let stat = rustix::fs::fstat(descriptor).map_err(|error| ImageError::Copy(error.into()))?;
    match FileType::from_raw_mode(stat.st_mode) {
        FileType::RegularFile => Ok(()),
        FileType::Directory => Err(ImageError::NotAFile("directory")),
        FileType::Fifo => Err(ImageError::NotAFile("pipe")),
        FileType::Socket => Err(ImageError::NotAFile("socket")),
        _ => Err(ImageError::NotAFile("device")),
    }
}

/// The sealed copy and its length; nothing when there are more than `limit` bytes. Reads at offsets of its
/// own, because the client's descriptor shares its position with the client.
fn copy(source: File, limit: u64) -> io::Result<Option<(File, u64)>> {
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    let mut copy = File::from(rustix::fs::memfd_create("enclos-image", flags)?);
    let mut buffer = vec![0; CHUNK];
    let mut source = Positioned::new(&source);
    loop {
        let count = match source.read(&mut buffer) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            other => other?,
        };
        if count == 0 {
            break;
        }
        if source.offset() > limit {
            return Ok(None);
        }
        copy.write_all(&buffer[..count])?;
    }
    let seals = SealFlags::WRITE | SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL;
    rustix::fs::fcntl_add_seals(copy.as_fd(), seals)?;
    Ok(Some((copy, source.offset())))
}

#[cfg(test)]
mod tests {
    use std::io::{Seek, SeekFrom};

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
        let (mut copied, length) = copy(source, 1 << 30).unwrap().unwrap();
        assert_eq!(length, u64::try_from(bytes.len()).unwrap());
        let mut read = Vec::new();
        copied.seek(SeekFrom::Start(0)).unwrap();
        copied.read_to_end(&mut read).unwrap();
        assert_eq!(read, bytes);
        copied.seek(SeekFrom::Start(0)).unwrap();
        assert!(copied.write_all(b"x").is_err(), "sealed against writing");
        assert!(copied.set_len(1).is_err(), "sealed against shrinking");
    }

    #[test]
    fn the_limit_is_inclusive() {
        assert!(copy(file(b"1234"), 4).unwrap().is_some());
        assert!(copy(file(b"12345"), 4).unwrap().is_none());
    }

    #[test]
    fn what_is_no_file_is_refused_before_it_is_read() {
        let (reader, _writer) = rustix::pipe::pipe().unwrap();
        assert!(matches!(
            take_in(reader, 1024),
            Err(ImageError::NotAFile("pipe"))
        ));
        let directory = OwnedFd::from(File::open("/").unwrap());
        assert!(matches!(
            take_in(directory, 1024),
            Err(ImageError::NotAFile("directory"))
        ));
    }

    #[test]
    fn what_is_no_image_has_awss_number() {
        let failure = Failure::from(take_in(file(b"not an image").into(), 1024).unwrap_err());
        assert_eq!(failure.code, 35);
        let write_only = std::fs::OpenOptions::new()
            .write(true)
            .open("/dev/null")
            .unwrap();
        let failure = Failure::from(take_in(write_only.into(), 1024).unwrap_err());
        assert_eq!(failure.code, 19);
    }
}
