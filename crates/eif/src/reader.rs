//! The one parser of enclave images.
//!
//! ```text
//! header ─▶ section table ─▶ section headers ─▶ split ─▶ Eif
//!   magic      no gap, overlap   type, flags,     kernel as long as its own header says,
//!   version    or trailing byte  length, order    printable command line, ramdisk magic
//! ```
//!
//! [`Eif::parse`] refuses at the first thing wrong. [`inspect`](crate::inspect) walks the same code with
//! [`Mode::Tolerant`], which notes what can be survived and goes on. Nothing is allocated by a length that
//! the file announces: sections are checked against the file's length and their limit before they are read.
//!
//! AWS's registers do not bind where one section ends and the next begins; the split checks do.

use std::io::{Read, Seek, SeekFrom, Take};

use crate::error::EifError;
use crate::format::{
    Architecture, CURRENT_VERSION, HEADER_LEN, Header, HeaderBytes, MAGIC, MAX_CMDLINE_LEN,
    MAX_METADATA_LEN, MAX_SECTIONS, MAX_SIGNATURE_LEN, OLDEST_VERSION, SECTION_HEADER_LEN, Section,
    SectionHeader, SectionKind,
};
use crate::kernel;
use crate::metadata::Metadata;
use crate::ramdisk;
use crate::signature::ImageSignature;

/// An image whose structure and split were checked. Its bytes are measured, and its CRC checked, by
/// [`measure`](crate::measure).
///
/// It holds no reader: the caller passes the same file again to each method. A file that someone else can
/// write must be copied first (to a sealed memfd, for example), else what was checked is not what is booted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Eif {
    pub(crate) header: Header,
    pub(crate) sections: Vec<Section>,
    pub(crate) file_len: u64,
}

impl Eif {
    /// Parses an image that is to be run.
    ///
    /// # Errors
    /// Whatever is wrong first; see [`EifError`].
    pub fn parse<R: Read + Seek>(reader: &mut R) -> Result<Self, EifError> {
        Self::parse_with(reader, &mut Mode::Strict)
    }

    pub(crate) fn parse_with<R: Read + Seek>(
        reader: &mut R,
        mode: &mut Mode,
    ) -> Result<Self, EifError> {
        let eif = Self::parse_structure(reader, mode)?;
        check_split(&eif, reader, mode)?;
        Ok(eif)
    }

    /// Everything but the content of sections.
    pub(crate) fn parse_structure<R: Read + Seek>(
        reader: &mut R,
        mode: &mut Mode,
    ) -> Result<Self, EifError> {
        let file_len = reader.seek(SeekFrom::End(0))?;
        let header = read_header(reader, file_len)?;
        check_header(&header, mode)?;
        let sections = read_sections(reader, &header, file_len, mode)?;
        check_order(&header, &sections, mode)?;
        Ok(Self {
            header,
            sections,
            file_len,
        })
    }

    /// Version of the format.
    pub fn version(&self) -> u16 {
        self.header.version
    }

    /// The header's flags.
    pub fn flags(&self) -> u16 {
        self.header.flags
    }

    /// The processor it is for.
    pub fn architecture(&self) -> Architecture {
        Architecture::from_flags(self.header.flags)
    }

    /// Length of the file.
    pub fn file_len(&self) -> u64 {
        self.file_len
    }

    /// All sections in file order.
    pub fn sections(&self) -> &[Section] {
        &self.sections
    }

    /// The kernel's section.
    pub fn kernel(&self) -> Option<&Section> {
        self.find(SectionKind::Kernel)
    }

    /// The ramdisks in file order.
    pub fn ramdisks(&self) -> impl Iterator<Item = &Section> {
        self.sections
            .iter()
            .filter(|s| s.kind == SectionKind::Ramdisk)
    }

    /// Whether it carries a signature.
    pub fn is_signed(&self) -> bool {
        self.find(SectionKind::Signature).is_some()
    }

    /// A reader over the data of one section.
    ///
    /// # Errors
    /// [`EifError::Io`] when the file cannot be positioned.
    pub fn section<'r, R: Read + Seek>(
        &self,
        reader: &'r mut R,
        section: &Section,
    ) -> Result<Take<&'r mut R>, EifError> {
        reader.seek(SeekFrom::Start(section.offset))?;
        Ok(reader.take(section.len))
    }

    /// The whole data of one section, for sections that are wanted in memory.
    ///
    /// # Errors
    /// [`EifError::TooLong`] above `limit`, [`EifError::Truncated`] when the file became shorter.
    pub fn read_section<R: Read + Seek>(
        &self,
        reader: &mut R,
        section: &Section,
        limit: u64,
    ) -> Result<Vec<u8>, EifError> {
        let Section { kind, len, .. } = *section;
        if len > limit {
            return Err(EifError::TooLong { kind, len, limit });
        }
        let mut bytes = Vec::new();
        self.section(reader, section)?.read_to_end(&mut bytes)?;
        if u64_len(&bytes) != len {
            return Err(truncated(
                kind.to_string(),
                section.end(),
                section.offset + u64_len(&bytes),
            ));
        }
        Ok(bytes)
    }

    /// The measured command line.
    ///
    /// # Errors
    /// As [`Eif::read_section`]; [`EifError::Cmdline`] when it is not printable ASCII.
    pub fn cmdline<R: Read + Seek>(&self, reader: &mut R) -> Result<String, EifError> {
        let kind = SectionKind::Cmdline;
        let section = self.find(kind).ok_or(EifError::Missing { kind })?;
        if section.len > MAX_CMDLINE_LEN {
            return Err(EifError::CmdlineTooLong { len: section.len });
        }
        let bytes = self.read_section(reader, section, MAX_CMDLINE_LEN)?;
        check_cmdline(&bytes)?;
        Ok(bytes.into_iter().map(char::from).collect())
    }

    /// The metadata, which nothing measures; `None` in versions before 4.
    ///
    /// # Errors
    /// As [`Eif::read_section`]; [`EifError::Metadata`] when it is not the JSON that was expected.
    pub fn metadata<R: Read + Seek>(&self, reader: &mut R) -> Result<Option<Metadata>, EifError> {
        let Some(section) = self.find(SectionKind::Metadata) else {
            return Ok(None);
        };
        let bytes = self.read_section(reader, section, MAX_METADATA_LEN)?;
        serde_json::from_slice(&bytes)
            .map(Some)
            .map_err(EifError::Metadata)
    }

    /// The signature, parsed and not yet verified; [`measure`](crate::measure) verifies it.
    ///
    /// # Errors
    /// As [`Eif::read_section`]; [`EifError::Signature`] when it is malformed.
    pub fn signature<R: Read + Seek>(
        &self,
        reader: &mut R,
    ) -> Result<Option<ImageSignature>, EifError> {
        let Some(section) = self.find(SectionKind::Signature) else {
            return Ok(None);
        };
        let bytes = self.read_section(reader, section, MAX_SIGNATURE_LEN)?;
        ImageSignature::parse(&bytes)
            .map(Some)
            .map_err(EifError::Signature)
    }

    pub(crate) fn find(&self, kind: SectionKind) -> Option<&Section> {
        self.sections.iter().find(|s| s.kind == kind)
    }
}

/// What to do about something wrong that can be survived.
#[derive(Debug)]
pub(crate) enum Mode {
    /// Refuse: the image is to be run.
    Strict,
    /// Note it and go on: the image is to be described.
    Tolerant(Vec<EifError>),
}

impl Mode {
    pub(crate) fn report(&mut self, error: EifError) -> Result<(), EifError> {
        match self {
            Self::Strict => Err(error),
            Self::Tolerant(findings) => {
                findings.push(error);
                Ok(())
            }
        }
    }

    /// What was noted.
    pub(crate) fn into_findings(self) -> Vec<EifError> {
        match self {
            Self::Strict => Vec::new(),
            Self::Tolerant(findings) => findings,
        }
    }

    fn accepts(&self, version: u16) -> bool {
        match self {
            Self::Strict => version == CURRENT_VERSION,
            Self::Tolerant(_) => (OLDEST_VERSION..=CURRENT_VERSION).contains(&version),
        }
    }
}

fn read_header<R: Read + Seek>(reader: &mut R, file_len: u64) -> Result<Header, EifError> {
    reader.seek(SeekFrom::Start(0))?;
    let mut magic = [0; 4];
    if file_len >= 4 {
        reader.read_exact(&mut magic)?;
        if magic != MAGIC {
            return Err(EifError::Magic { found: magic });
        }
    }
    if file_len < HEADER_LEN {
        return Err(truncated("the header".into(), HEADER_LEN, file_len));
    }
    let mut bytes: HeaderBytes = [0; 548];
    bytes[..4].copy_from_slice(&magic);
    reader.read_exact(&mut bytes[4..])?;
    Ok(Header::decode(&bytes))
}

fn check_header(header: &Header, mode: &mut Mode) -> Result<(), EifError> {
    if !mode.accepts(header.version) {
        return Err(EifError::Version {
            found: header.version,
        });
    }
    if header.flags & !1 != 0 {
        mode.report(EifError::Flags {
            found: header.flags,
        })?;
    } else if header.flags != 0 {
        mode.report(EifError::Architecture)?;
    }
    if header.reserved != 0 {
        mode.report(EifError::Reserved {
            field: "reserved",
            found: header.reserved.into(),
        })?;
    }
    if header.unused != 0 {
        mode.report(EifError::Reserved {
            field: "unused",
            found: header.unused.into(),
        })?;
    }
    let found = header.section_count;
    if found < 2 || usize::from(found) > MAX_SECTIONS {
        return Err(EifError::SectionCount { found });
    }
    for index in usize::from(found)..MAX_SECTIONS {
        if header.offsets[index] != 0 || header.sizes[index] != 0 {
            mode.report(EifError::UnusedEntry { index })?;
        }
    }
    Ok(())
}

fn read_sections<R: Read + Seek>(
    reader: &mut R,
    header: &Header,
    file_len: u64,
    mode: &mut Mode,
) -> Result<Vec<Section>, EifError> {
    let mut sections = Vec::with_capacity(MAX_SECTIONS);
    let mut expected = HEADER_LEN;
    for index in 0..usize::from(header.section_count) {
        let found = header.offsets[index];
        if found < expected {
            return Err(EifError::Overlap {
                index,
                expected,
                found,
            });
        }
        if found > expected && found <= file_len {
            mode.report(EifError::Gap {
                index,
                expected,
                found,
            })?;
        }
        let section = read_section_header(reader, header, index, file_len, mode)?;
        expected = section.end();
        sections.push(section);
    }
    if file_len > expected {
        mode.report(EifError::TrailingBytes {
            count: file_len - expected,
        })?;
    }
    Ok(sections)
}

fn read_section_header<R: Read + Seek>(
    reader: &mut R,
    header: &Header,
    index: usize,
    file_len: u64,
    mode: &mut Mode,
) -> Result<Section, EifError> {
    let (start, len) = (header.offsets[index], header.sizes[index]);
    let offset = start.saturating_add(SECTION_HEADER_LEN);
    let needed = offset.saturating_add(len);
    if needed > file_len || needed == u64::MAX {
        return Err(truncated(format!("section {index}"), needed, file_len));
    }
    let mut bytes = [0; 12];
    reader.seek(SeekFrom::Start(start))?;
    reader.read_exact(&mut bytes)?;
    let own = SectionHeader::decode(&bytes);
    let kind = SectionKind::from_code(own.kind).ok_or(EifError::UnknownSection {
        index,
        kind: own.kind,
    })?;
    if own.flags != 0 {
        mode.report(EifError::SectionFlags {
            index,
            found: own.flags,
        })?;
    }
    if own.len != len {
        mode.report(EifError::SectionSize {
            index,
            header: own.len,
            table: len,
        })?;
    }
    Ok(Section { kind, offset, len })
}

/// Kernel, command line, ramdisks, signature; metadata anywhere. AWS hashes sections in file order, so any
/// other order would give the same sections other measurements.
fn check_order(header: &Header, sections: &[Section], mode: &mut Mode) -> Result<(), EifError> {
    let mut reached = 0;
    for (index, &Section { kind, .. }) in sections.iter().enumerate() {
        let once = kind != SectionKind::Ramdisk;
        if once && sections[..index].iter().any(|s| s.kind == kind) {
            mode.report(EifError::Duplicate { index, kind })?;
        }
        let Some(rank) = rank(kind) else { continue };
        if rank < reached {
            mode.report(EifError::Order { index, kind })?;
        }
        reached = rank.max(reached);
    }
    let metadata = (header.version >= CURRENT_VERSION).then_some(SectionKind::Metadata);
    let mandatory = [
        SectionKind::Kernel,
        SectionKind::Cmdline,
        SectionKind::Ramdisk,
    ];
    for kind in mandatory.into_iter().chain(metadata) {
        if !sections.iter().any(|s| s.kind == kind) {
            mode.report(EifError::Missing { kind })?;
        }
    }
    Ok(())
}

fn rank(kind: SectionKind) -> Option<u8> {
    match kind {
        SectionKind::Kernel => Some(0),
        SectionKind::Cmdline => Some(1),
        SectionKind::Ramdisk => Some(2),
        SectionKind::Signature => Some(3),
        SectionKind::Metadata => None,
    }
}

/// Refuses an image whose bytes could be split into the same measurements in another way.
fn check_split<R: Read + Seek>(eif: &Eif, reader: &mut R, mode: &mut Mode) -> Result<(), EifError> {
    let mut ramdisk = 0;
    for section in &eif.sections {
        match section.kind {
            SectionKind::Kernel => check_kernel(eif, reader, section, mode)?,
            SectionKind::Cmdline => match eif.cmdline(reader) {
                Ok(_) => {}
                Err(error @ EifError::Io(_)) => return Err(error),
                Err(error) => mode.report(error)?,
            },
            SectionKind::Ramdisk => {
                check_ramdisk(eif, reader, section, ramdisk, mode)?;
                ramdisk += 1;
            }
            SectionKind::Signature => check_limit(section, MAX_SIGNATURE_LEN, mode)?,
            SectionKind::Metadata => check_limit(section, MAX_METADATA_LEN, mode)?,
        }
    }
    Ok(())
}

fn check_kernel<R: Read + Seek>(
    eif: &Eif,
    reader: &mut R,
    section: &Section,
    mode: &mut Mode,
) -> Result<(), EifError> {
    let mut head = Vec::new();
    eif.section(reader, section)?
        .take(kernel::HEAD_LEN)
        .read_to_end(&mut head)?;
    if let Err(error) = kernel::check_length(&head, section.len) {
        return mode.report(EifError::Kernel(error));
    }
    let (kernel, header) = (kernel::architecture(&head), eif.architecture());
    match kernel == header {
        true => Ok(()),
        false => mode.report(EifError::KernelArchitecture { kernel, header }),
    }
}

fn check_ramdisk<R: Read + Seek>(
    eif: &Eif,
    reader: &mut R,
    section: &Section,
    ramdisk: usize,
    mode: &mut Mode,
) -> Result<(), EifError> {
    let mut found = Vec::new();
    eif.section(reader, section)?
        .take(ramdisk::MAGIC_LEN)
        .read_to_end(&mut found)?;
    match ramdisk::Packing::of(&found) {
        Some(_) => Ok(()),
        None => mode.report(EifError::Ramdisk { ramdisk, found }),
    }
}

fn check_limit(section: &Section, limit: u64, mode: &mut Mode) -> Result<(), EifError> {
    let Section { kind, len, .. } = *section;
    if len > limit {
        mode.report(EifError::TooLong { kind, len, limit })?;
    }
    Ok(())
}

/// Checks that a command line is printable ASCII.
pub(crate) fn check_cmdline(bytes: &[u8]) -> Result<(), EifError> {
    match bytes.iter().position(|b| !(b' '..=b'~').contains(b)) {
        Some(position) => Err(EifError::Cmdline {
            position,
            byte: bytes[position],
        }),
        None => Ok(()),
    }
}

pub(crate) fn truncated(what: String, needed: u64, available: u64) -> EifError {
    EifError::Truncated {
        what,
        needed,
        available,
    }
}

/// Length of a slice as the format counts it. `usize` is at most 64 bits wide on every Rust target.
pub(crate) fn u64_len(bytes: &[u8]) -> u64 {
    u64::try_from(bytes.len()).unwrap_or(u64::MAX)
}
