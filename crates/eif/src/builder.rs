//! Writing an image, section by section, measured on the way.
//!
//! The bytes are those that AWS's `eif_build` writes for the same sections: kernel, command line, metadata,
//! ramdisks, signature, back to back. Section bodies are streamed; nothing of them is kept in memory.

use std::fmt;
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use enclos_attest::PcrValue;

use crate::error::EifError;
use crate::format::{
    CRC_OFFSET, HEADER_LEN, Header, MAX_CMDLINE_LEN, MAX_METADATA_LEN, MAX_SECTIONS,
    SECTION_HEADER_LEN, SectionHeader, SectionKind,
};
use crate::hashing::{CHUNK, Chunks, Registers};
use crate::kernel::{self, KernelError};
use crate::measure::Measurements;
use crate::metadata::Metadata;
use crate::ramdisk::{MAGIC_LEN, Packing};
use crate::reader::{check_cmdline, u64_len};
#[cfg(feature = "build")]
use crate::signer::{Signer, SigningError};

/// Why an image was not built.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BuildError {
    /// The image could not be written.
    #[error("cannot write the image")]
    Write(#[source] io::Error),
    /// A section's source could not be read.
    #[error("cannot read the {kind} from {path}", path = path.display())]
    Read {
        /// Which section.
        kind: SectionKind,
        /// From where.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A section's producer failed.
    #[error("cannot produce the {kind}")]
    Produce {
        /// Which section.
        kind: SectionKind,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// No kernel was given.
    #[error("there is no kernel, expected a bzImage or an arm64 Image; name one")]
    NoKernel,
    /// No ramdisk was given.
    #[error("there is no ramdisk, expected at least one; name one")]
    NoRamdisk,
    /// No metadata was given.
    #[error("there is no metadata, which version 4 demands; describe the image")]
    NoMetadata,
    /// More sections than the table has entries.
    #[error("the parts do not fit, the format has room for {MAX_SECTIONS} sections; join ramdisks")]
    TooManySections,
    /// The kernel would make an image that no host runs.
    #[error("the kernel cannot be used")]
    Kernel(#[source] KernelError),
    /// A section would make an image that no host runs.
    #[error("the image would be refused by every host")]
    Refused(#[source] EifError),
    /// There is no signature, or none that holds.
    #[cfg(feature = "build")]
    #[error("cannot sign the image")]
    Sign(#[source] SigningError),
    /// The metadata cannot be written.
    #[error("cannot encode the metadata")]
    Metadata(#[source] serde_json::Error),
}

/// Writes a section's body into the image.
pub type Producer<'a> = Box<dyn FnOnce(&mut dyn Write) -> io::Result<()> + 'a>;

/// Where a section's bytes come from.
pub enum Source<'a> {
    /// Memory.
    Bytes(Vec<u8>),
    /// A file.
    File(PathBuf),
    /// Whatever this writes.
    Producer(Producer<'a>),
}

impl fmt::Debug for Source<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Bytes(bytes) => write!(f, "Bytes({} bytes)", bytes.len()),
            Self::File(path) => f.debug_tuple("File").field(path).finish(),
            Self::Producer(_) => f.write_str("Producer"),
        }
    }
}

impl From<Vec<u8>> for Source<'_> {
    fn from(bytes: Vec<u8>) -> Self {
        Self::Bytes(bytes)
    }
}

impl From<&[u8]> for Source<'_> {
    fn from(bytes: &[u8]) -> Self {
        Self::Bytes(bytes.to_vec())
    }
}

impl From<PathBuf> for Source<'_> {
    fn from(path: PathBuf) -> Self {
        Self::File(path)
    }
}

impl From<&Path> for Source<'_> {
    fn from(path: &Path) -> Self {
        Self::File(path.to_owned())
    }
}

/// Collects an image's parts and writes it.
#[derive(Debug, Default)]
pub struct Builder<'a> {
    kernel: Option<Source<'a>>,
    cmdline: String,
    metadata: Option<Metadata>,
    ramdisks: Vec<Source<'a>>,
    #[cfg(feature = "build")]
    signer: Option<&'a Signer>,
}

impl<'a> Builder<'a> {
    /// No parts yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// The kernel: a bzImage, or an `Image` for aarch64, which makes it an image for aarch64.
    #[must_use]
    pub fn kernel(mut self, source: impl Into<Source<'a>>) -> Self {
        self.kernel = Some(source.into());
        self
    }

    /// The measured command line.
    #[must_use]
    pub fn cmdline(mut self, cmdline: impl Into<String>) -> Self {
        self.cmdline = cmdline.into();
        self
    }

    /// The metadata, which nothing measures.
    #[must_use]
    pub fn metadata(mut self, metadata: Metadata) -> Self {
        self.metadata = Some(metadata);
        self
    }

    /// One more ramdisk. The first is the runtime (PCR1), the others are the application (PCR2).
    #[must_use]
    pub fn ramdisk(mut self, source: impl Into<Source<'a>>) -> Self {
        self.ramdisks.push(source.into());
        self
    }

    /// One more ramdisk, written by a function when its turn comes.
    #[must_use]
    pub fn ramdisk_from(
        self,
        producer: impl FnOnce(&mut dyn Write) -> io::Result<()> + 'a,
    ) -> Self {
        self.ramdisk(Source::Producer(Box::new(producer)))
    }

    /// Signs the image.
    #[cfg(feature = "build")]
    #[must_use]
    pub fn sign(mut self, signer: &'a Signer) -> Self {
        self.signer = Some(signer);
        self
    }

    /// Writes the image from the beginning of `out`, which is empty, and returns its measurements.
    ///
    /// # Errors
    /// [`BuildError`]; the written bytes are then no image.
    pub fn write<W: Write + Seek>(self, out: &mut W) -> Result<Measurements, BuildError> {
        self.write_with(out, &check)
    }

    pub(crate) fn write_with<W: Write + Seek>(
        self,
        out: &mut W,
        check: &Check,
    ) -> Result<Measurements, BuildError> {
        let metadata = self.metadata.ok_or(BuildError::NoMetadata)?;
        let metadata = serde_json::to_vec(&metadata).map_err(BuildError::Metadata)?;
        let mut sections = vec![
            (
                SectionKind::Kernel,
                self.kernel.ok_or(BuildError::NoKernel)?,
            ),
            (
                SectionKind::Cmdline,
                Source::Bytes(self.cmdline.into_bytes()),
            ),
            (SectionKind::Metadata, Source::Bytes(metadata)),
        ];
        if self.ramdisks.is_empty() {
            return Err(BuildError::NoRamdisk);
        }
        sections.extend(self.ramdisks.into_iter().map(|r| (SectionKind::Ramdisk, r)));
        let mut image = ImageWriter::begin(out).map_err(BuildError::Write)?;
        for (kind, source) in sections {
            image.section(kind, source, check)?;
        }
        #[cfg(feature = "build")]
        if let Some(signer) = self.signer {
            image.sign(signer)?;
        }
        image.finish().map_err(BuildError::Write)
    }
}

/// Checks a finished section: its kind, first bytes and length.
pub(crate) type Check = dyn Fn(SectionKind, &[u8], u64) -> Result<(), BuildError>;

/// The checks of the reader, so that no image is built that the reader refuses.
fn check(kind: SectionKind, head: &[u8], len: u64) -> Result<(), BuildError> {
    match kind {
        SectionKind::Kernel => kernel::check_length(head, len).map_err(BuildError::Kernel),
        SectionKind::Cmdline if len > MAX_CMDLINE_LEN => {
            Err(BuildError::Refused(EifError::CmdlineTooLong { len }))
        }
        SectionKind::Cmdline => check_cmdline(head).map_err(BuildError::Refused),
        SectionKind::Metadata if len > MAX_METADATA_LEN => {
            Err(BuildError::Refused(EifError::TooLong {
                kind,
                len,
                limit: MAX_METADATA_LEN,
            }))
        }
        SectionKind::Ramdisk if Packing::of(head).is_none() => {
            let magic = usize::try_from(MAGIC_LEN)
                .unwrap_or(head.len())
                .min(head.len());
            Err(BuildError::Refused(EifError::Ramdisk {
                ramdisk: 0,
                found: head[..magic].to_vec(),
            }))
        }
        SectionKind::Metadata | SectionKind::Ramdisk | SectionKind::Signature => Ok(()),
    }
}

/// The image as it is being written.
pub(crate) struct ImageWriter<'w, W> {
    out: &'w mut W,
    header: Header,
    position: u64,
    /// CRC of everything behind the header.
    crc: crc32fast::Hasher,
    measured: Measured,
    chunks: Chunks,
    pcr8: Option<PcrValue>,
}

/// Registers that are being computed, or are known because nothing more is measured.
enum Measured {
    Running(Registers),
    Known(Measurements),
    /// The hashing failed.
    Lost,
}

impl Measured {
    /// The registers; nothing that is measured is added afterwards.
    fn finish(&mut self) -> io::Result<Measurements> {
        match std::mem::replace(self, Self::Lost) {
            Self::Running(registers) => *self = Self::Known(registers.finish()?),
            other => *self = other,
        }
        match self {
            Self::Known(measurements) => Ok(*measurements),
            _ => Err(io::Error::other("the image was not hashed")),
        }
    }
}

impl<'w, W: Write + Seek> ImageWriter<'w, W> {
    pub(crate) fn begin(out: &'w mut W) -> io::Result<Self> {
        let header = Header::new();
        out.seek(SeekFrom::Start(0))?;
        out.write_all(&header.encode())?;
        Ok(Self {
            out,
            header,
            position: HEADER_LEN,
            crc: crc32fast::Hasher::new(),
            measured: Measured::Running(Registers::start()),
            chunks: Chunks::default(),
            pcr8: None,
        })
    }

    /// The section's header needs the length of its data, so it is written last.
    pub(crate) fn section(
        &mut self,
        kind: SectionKind,
        source: Source<'_>,
        check: &Check,
    ) -> Result<(), BuildError> {
        let index = usize::from(self.header.section_count);
        if index == MAX_SECTIONS {
            return Err(BuildError::TooManySections);
        }
        let start = self.position;
        self.seek(start + SECTION_HEADER_LEN)
            .map_err(BuildError::Write)?;
        let mut body = Body {
            kind,
            out: self.out,
            registers: match &mut self.measured {
                Measured::Running(registers) => Some(registers),
                Measured::Known(_) | Measured::Lost => None,
            },
            buffer: self.chunks.empty(),
            chunks: &mut self.chunks,
            crc: crc32fast::Hasher::new(),
            head: Vec::new(),
            len: 0,
            unwritten: None,
        };
        body.fill(source)?;
        let Body { crc, head, len, .. } = body;
        check(kind, &head, len)?;
        if kind == SectionKind::Kernel {
            self.header.flags = kernel::architecture(&head).flags();
        }
        let header = SectionHeader {
            kind: kind.code(),
            flags: 0,
            len,
        }
        .encode();
        self.crc.update(&header);
        self.crc.combine(&crc);
        self.header.offsets[index] = start;
        self.header.sizes[index] = len;
        self.header.section_count += 1;
        self.seek(start)
            .and_then(|()| self.out.write_all(&header))
            .map_err(BuildError::Write)?;
        self.seek(start + SECTION_HEADER_LEN + len)
            .map_err(BuildError::Write)
    }

    /// Adds the signature of what was written so far.
    #[cfg(feature = "build")]
    pub(crate) fn sign(&mut self, signer: &Signer) -> Result<(), BuildError> {
        let measured = self.measured.finish().map_err(BuildError::Write)?;
        let section = signer.sign(&measured.pcr0).map_err(BuildError::Sign)?;
        self.pcr8 = Some(signer.pcr8());
        self.section(
            SectionKind::Signature,
            Source::Bytes(section),
            &|_, _, _| Ok(()),
        )
    }

    fn seek(&mut self, position: u64) -> io::Result<()> {
        self.position = position;
        self.out.seek(SeekFrom::Start(position)).map(drop)
    }

    pub(crate) fn finish(mut self) -> io::Result<Measurements> {
        let mut crc = crc32fast::Hasher::new();
        crc.update(&self.header.encode()[..CRC_OFFSET]);
        crc.combine(&self.crc);
        self.header.crc = crc.finalize();
        self.seek(0)?;
        self.out.write_all(&self.header.encode())?;
        self.out.flush()?;
        Ok(Measurements {
            pcr8: self.pcr8,
            ..self.measured.finish()?
        })
    }
}

/// A section's data on its way into the file, gathered in chunks.
struct Body<'b, W> {
    kind: SectionKind,
    out: &'b mut W,
    registers: Option<&'b mut Registers>,
    buffer: Vec<u8>,
    chunks: &'b mut Chunks,
    crc: crc32fast::Hasher,
    head: Vec<u8>,
    len: u64,
    /// Why the image could not be written, for which the data's source would be blamed otherwise.
    unwritten: Option<io::Error>,
}

impl<W: Write> Body<'_, W> {
    fn fill(&mut self, source: Source<'_>) -> Result<(), BuildError> {
        let filled = self.fill_from(source);
        match self.unwritten.take() {
            Some(error) => Err(BuildError::Write(error)),
            None => filled,
        }
    }

    fn fill_from(&mut self, source: Source<'_>) -> Result<(), BuildError> {
        let kind = self.kind;
        if let Some(registers) = &mut self.registers {
            registers.begin(kind).map_err(BuildError::Write)?;
        }
        match source {
            Source::Bytes(bytes) => self.write_all(&bytes).map_err(BuildError::Write),
            Source::File(path) => {
                let copied = File::open(&path).and_then(|file| self.copy(file));
                copied.map_err(|source| BuildError::Read { kind, path, source })
            }
            Source::Producer(producer) => {
                producer(self).map_err(|source| BuildError::Produce { kind, source })
            }
        }?;
        self.pass_on().map_err(BuildError::Write)
    }

    fn copy(&mut self, mut file: File) -> io::Result<()> {
        loop {
            let room = u64::try_from(CHUNK).unwrap_or(u64::MAX) - u64_len(&self.buffer);
            if Read::by_ref(&mut file)
                .take(room)
                .read_to_end(&mut self.buffer)?
                == 0
            {
                return Ok(());
            }
            if self.buffer.len() == CHUNK {
                self.pass_on()?;
            }
        }
    }

    /// Writes and measures what was gathered.
    fn pass_on(&mut self) -> io::Result<()> {
        let buffer = std::mem::take(&mut self.buffer);
        if let Err(error) = self.out.write_all(&buffer) {
            self.unwritten = Some(error);
            return Err(io::Error::other("the image cannot be written"));
        }
        self.crc.update(&buffer);
        let head = usize::try_from(kernel::HEAD_LEN)
            .unwrap_or(0)
            .saturating_sub(self.head.len());
        self.head
            .extend_from_slice(&buffer[..head.min(buffer.len())]);
        self.len += u64_len(&buffer);
        let chunk = self.chunks.share(buffer);
        self.buffer = self.chunks.empty();
        match &self.registers {
            Some(registers) => registers.add(self.kind, chunk),
            None => Ok(()),
        }
    }
}

impl<W: Write> Write for Body<'_, W> {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        let taken = buf.len().min(CHUNK - self.buffer.len());
        self.buffer.extend_from_slice(&buf[..taken]);
        if self.buffer.len() == CHUNK {
            self.pass_on()?;
        }
        Ok(taken)
    }

    /// The section's end writes what is left; nobody reads it earlier.
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::io::Cursor;

    use super::*;
    use crate::inspect;

    /// The vector that the official builder 0.8.1 wrote (SPEC.md, golden vector).
    fn golden() -> (Vec<u8>, Measurements) {
        let metadata = r#"{"ImageName":"n","ImageVersion":"v","BuildMetadata":{"BuildTime":"2024-01-01T00:00:00+00:00","BuildTool":"t","BuildToolVersion":"0","OperatingSystem":"Linux","KernelVersion":"6.6"},"DockerInfo":{},"CustomMetadata":null}"#;
        let mut out = Cursor::new(Vec::new());
        let builder = Builder::new()
            .kernel(b"kernel".as_slice())
            .cmdline("cmdline")
            .metadata(serde_json::from_str(metadata).unwrap())
            .ramdisk(b"ramdisk0".as_slice())
            .ramdisk(b"ramdisk1".as_slice())
            .ramdisk(b"ramdisk2".as_slice());
        let measurements = builder.write_with(&mut out, &|_, _, _| Ok(())).unwrap();
        (out.into_inner(), measurements)
    }

    const PCR0: &str = "c8eaa4091a629e01ccfe00315d88e60da6aa134421708e1982c19c78fd39ea0977c22b9aa9dc76d7b7466bf463c81420";
    const PCR1: &str = "bb597e78cae555537aea0843f40c48b9a510188880a82351eac8c7930825ac391554907e4354f431f36fbc82416d18b4";
    const PCR2: &str = "acc1e999d09f68ccefe0801872f447421db743eda299f6b6f0a57ff81883cbbee636108d00e12cc15dfc67e2c45154f6";

    #[test]
    fn writes_the_bytes_of_the_official_builder() {
        let (image, measurements) = golden();
        assert_eq!(image.len(), 876);
        assert_eq!(
            image[CRC_OFFSET..CRC_OFFSET + 4],
            0x4e9a_57c6_u32.to_be_bytes()
        );
        let sha256 = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, &image);
        let expected = "9c0b02b7d62901f8cddd3cf6f9417e1cd14ed3d520533ae15068060554348d31";
        let hex: String = sha256.as_ref().iter().map(|b| format!("{b:02x}")).collect();
        assert_eq!(hex, expected);
        assert_eq!(measurements.pcr0.to_string(), PCR0);
        assert_eq!(measurements.pcr1.to_string(), PCR1);
        assert_eq!(measurements.pcr2.to_string(), PCR2);
        assert_eq!(measurements.pcr8, None);
    }

    /// A disk that is full comes up while a file is read or a ramdisk made, and neither is to blame.
    #[test]
    fn what_cannot_be_written_is_told_as_that() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), vec![1; 3 * CHUNK]).unwrap();
        let from_file = Source::from(file.path());
        let produced = Source::Producer(Box::new(|out| out.write_all(&[1; 3 * CHUNK])));
        for source in [from_file, produced, Source::Bytes(vec![1; 7])] {
            let mut room = vec![0; 600];
            let mut out = Cursor::new(room.as_mut_slice());
            let mut image = ImageWriter::begin(&mut out).unwrap();
            let written = image.section(SectionKind::Kernel, source, &|_, _, _| Ok(()));
            match written {
                Ok(()) => assert_eq!(image.position, HEADER_LEN + SECTION_HEADER_LEN + 7),
                Err(BuildError::Write(error)) => assert_eq!(error.kind(), io::ErrorKind::WriteZero),
                Err(other) => panic!("{other:?}"),
            }
        }
    }

    #[test]
    fn the_reader_finds_what_the_builder_wrote() {
        let (image, measurements) = golden();
        let report = inspect(&mut Cursor::new(image)).unwrap();
        assert!(report.crc_ok);
        assert_eq!(report.measurements, measurements);
        let layout: Vec<_> = report
            .sections
            .iter()
            .map(|s| (s.kind.code(), s.offset - 12, s.len))
            .collect();
        let expected = [
            (1, 548, 6),
            (2, 566, 7),
            (5, 585, 219),
            (3, 816, 8),
            (3, 836, 8),
            (3, 856, 8),
        ];
        assert_eq!(layout, expected);
        assert_eq!(report.cmdline.as_deref(), Some("cmdline"));
    }
}
