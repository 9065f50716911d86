//! Measurements: PCR0, PCR1, PCR2 and PCR8 of an image, in one pass over the file.
//!
//! | PCR | what is hashed with SHA-384, data only, in file order |
//! |---|---|
//! | 0 | kernel, command line, all ramdisks |
//! | 1 | kernel, command line, first ramdisk |
//! | 2 | all ramdisks but the first |
//! | 8 | DER of the signing certificate |
//!
//! Each digest is then extended into 48 zero bytes. The file is read here and hashed by two threads (`hashing`); the CRC
//! and the signature are checked on the way.

use std::io::{self, Read, Seek, SeekFrom};

use enclos_attest::PcrValue;

use crate::error::EifError;
use crate::format::{CRC_OFFSET, HEADER_LEN, MAX_SIGNATURE_LEN, SectionKind};
use crate::hashing::{CHUNK, Chunks, Registers};
use crate::reader::{Eif, truncated, u64_len};
use crate::signature::ImageSignature;

/// What is read at once, in bytes.
const CHUNK_LEN: u64 = CHUNK as u64;

/// The registers that an image determines.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Measurements {
    /// Whole image.
    pub pcr0: PcrValue,
    /// Kernel, command line, first ramdisk.
    pub pcr1: PcrValue,
    /// Remaining ramdisks.
    pub pcr2: PcrValue,
    /// Signing certificate, when the image is signed.
    pub pcr8: Option<PcrValue>,
}

/// Measures a parsed image and checks its CRC and, when it is signed, its signature. Whether the signing
/// certificate is valid at this time is the caller's question to
/// [`ImageSignature::check_validity`](crate::signature::ImageSignature::check_validity).
///
/// # Errors
/// [`EifError::Crc`], [`EifError::Signature`], [`EifError::Truncated`] when the file became shorter,
/// [`EifError::Io`].
pub fn measure<R: Read + Seek>(reader: &mut R, eif: &Eif) -> Result<Measurements, EifError> {
    let pass = pass(reader, eif)?;
    if pass.crc != eif.header.crc {
        return Err(EifError::Crc {
            stored: eif.header.crc,
            computed: pass.crc,
        });
    }
    let mut measurements = pass.measurements;
    if let Some(bytes) = pass.signature {
        let signature = ImageSignature::parse(&bytes).map_err(EifError::Signature)?;
        signature
            .verify(&measurements.pcr0)
            .map_err(EifError::Signature)?;
        measurements.pcr8 = Some(signature.pcr8());
    }
    Ok(measurements)
}

/// What one pass over the file yields.
pub(crate) struct Pass {
    pub(crate) crc: u32,
    /// Without PCR8.
    pub(crate) measurements: Measurements,
    pub(crate) signature: Option<Vec<u8>>,
}

pub(crate) fn pass<R: Read + Seek>(reader: &mut R, eif: &Eif) -> Result<Pass, EifError> {
    reader.seek(SeekFrom::Start(0))?;
    let mut walk = Walk {
        crc: crc32fast::Hasher::new(),
        registers: Registers::start(),
        chunks: Chunks::default(),
        signature: None,
        position: 0,
    };
    walk.whole(reader, eif)?;
    Ok(Pass {
        crc: walk.crc.finalize(),
        measurements: walk.registers.finish()?,
        signature: walk.signature,
    })
}

/// The way from the start of a file to its end, each byte read once.
struct Walk {
    crc: crc32fast::Hasher,
    registers: Registers,
    chunks: Chunks,
    signature: Option<Vec<u8>>,
    position: u64,
}

impl Walk {
    fn whole<R: Read>(&mut self, reader: &mut R, eif: &Eif) -> Result<(), EifError> {
        let mut header = [0; 548];
        reader.read_exact(&mut header)?;
        self.crc.update(&header[..CRC_OFFSET]);
        self.position = HEADER_LEN;
        for section in &eif.sections {
            self.read(reader, section.offset - self.position, None)?;
            self.registers.begin(section.kind)?;
            self.read(reader, section.len, Some(section.kind))?;
        }
        self.read(reader, eif.file_len - self.position, None)
    }

    fn read<R: Read>(
        &mut self,
        reader: &mut R,
        len: u64,
        section: Option<SectionKind>,
    ) -> Result<(), EifError> {
        let end = self.position + len;
        while self.position < end {
            let want = (end - self.position).min(CHUNK_LEN);
            let mut buffer = self.chunks.empty();
            reader.by_ref().take(want).read_to_end(&mut buffer)?;
            if buffer.is_empty() {
                return Err(truncated("a section".into(), end, self.position));
            }
            self.position += u64_len(&buffer);
            self.feed(buffer, section)?;
        }
        Ok(())
    }

    fn feed(&mut self, buffer: Vec<u8>, section: Option<SectionKind>) -> io::Result<()> {
        self.crc.update(&buffer);
        if section == Some(SectionKind::Signature) {
            let bytes = self.signature.get_or_insert_default();
            if u64_len(bytes) < MAX_SIGNATURE_LEN {
                bytes.extend_from_slice(&buffer);
            }
        }
        let chunk = self.chunks.share(buffer);
        section.map_or(Ok(()), |kind| self.registers.add(kind, chunk))
    }
}
