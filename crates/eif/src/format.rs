//! The bytes of an enclave image: header, section table, section headers. All integers are big-endian.
//!
//! ```text
//! 0x000  ".eif" version flags default_mem default_cpus reserved num_sections      28 bytes
//! 0x01c  32 x u64  offset of each section's header; unused entries are zero
//! 0x11c  32 x u64  length of each section's data, its header not counted
//! 0x21c  u32 reserved, u32 CRC-32 of the file without these last four bytes
//! 0x224  sections, back to back: type u16, flags u16, length u64, data
//! ```

use std::fmt;

/// First four bytes of an image.
pub const MAGIC: [u8; 4] = *b".eif";

/// The version that is written, and the only one that is run: metadata is mandatory from here on.
pub const CURRENT_VERSION: u16 = 4;

/// The oldest version that is described (the first public one).
pub const OLDEST_VERSION: u16 = 2;

/// Length of the header.
pub const HEADER_LEN: u64 = 548;

/// Length of a section's header.
pub const SECTION_HEADER_LEN: u64 = 12;

/// Entries of the section table.
pub const MAX_SECTIONS: usize = 32;

/// Longest signature section in bytes, a limit of the format.
pub const MAX_SIGNATURE_LEN: u64 = 32_768;

/// Longest metadata section in bytes that is read. The format sets no limit; official tools put a
/// container's whole inspection output there, which stays far below.
pub const MAX_METADATA_LEN: u64 = 1 << 20;

/// Longest command line: `COMMAND_LINE_SIZE` of Linux on x86-64, less the NUL. The kernel cuts off the rest.
pub const MAX_CMDLINE_LEN: u64 = 2047;

/// Position of the CRC; these four bytes are left out of it.
pub(crate) const CRC_OFFSET: usize = 0x220;

const FLAG_AARCH64: u16 = 1;
const DEFAULT_MEMORY: u64 = 1 << 30;
const DEFAULT_CPUS: u64 = 2;
const OFFSETS: usize = 0x1c;
const SIZES: usize = 0x11c;

/// What a section holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum SectionKind {
    /// The kernel: a bzImage on x86-64, an uncompressed `Image` on aarch64.
    Kernel,
    /// The kernel's command line.
    Cmdline,
    /// A part of the initial RAM file system.
    Ramdisk,
    /// A signature over PCR0.
    Signature,
    /// JSON that nothing measures.
    Metadata,
}

impl SectionKind {
    pub(crate) fn from_code(code: u16) -> Option<Self> {
        Some(match code {
            1 => Self::Kernel,
            2 => Self::Cmdline,
            3 => Self::Ramdisk,
            4 => Self::Signature,
            5 => Self::Metadata,
            _ => return None,
        })
    }

    pub(crate) fn code(self) -> u16 {
        match self {
            Self::Kernel => 1,
            Self::Cmdline => 2,
            Self::Ramdisk => 3,
            Self::Signature => 4,
            Self::Metadata => 5,
        }
    }
}

impl fmt::Display for SectionKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Kernel => "kernel",
            Self::Cmdline => "command line",
            Self::Ramdisk => "ramdisk",
            Self::Signature => "signature",
            Self::Metadata => "metadata",
        })
    }
}

/// The processor an image is for: bit 0 of the header's flags.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Architecture {
    /// x86-64.
    X86_64,
    /// 64-bit Arm.
    Aarch64,
}

impl Architecture {
    pub(crate) fn from_flags(flags: u16) -> Self {
        if flags & FLAG_AARCH64 == 0 {
            Self::X86_64
        } else {
            Self::Aarch64
        }
    }

    pub(crate) fn flags(self) -> u16 {
        match self {
            Self::X86_64 => 0,
            Self::Aarch64 => FLAG_AARCH64,
        }
    }

    /// As OCI images name it.
    pub fn oci_name(self) -> &'static str {
        match self {
            Self::X86_64 => "amd64",
            Self::Aarch64 => "arm64",
        }
    }

    /// What an executable for it says in its ELF header; `None` for what is no 64-bit little-endian ELF file or for another
    /// machine.
    pub fn of_elf(head: &[u8]) -> Option<Self> {
        let machine = head.get(18..20).filter(|_| is_elf(head))?;
        match *machine {
            [62, 0] => Some(Self::X86_64),
            [183, 0] => Some(Self::Aarch64),
            _ => None,
        }
    }
}

/// `N` bytes at `at`, if there are as many.
pub(crate) fn field<const N: usize>(bytes: &[u8], at: usize) -> Option<[u8; N]> {
    bytes.get(at..)?.first_chunk().copied()
}

/// Whether bytes start a 64-bit little-endian ELF file.
pub(crate) fn is_elf(head: &[u8]) -> bool {
    head.starts_with(b"\x7fELF\x02\x01")
}

impl fmt::Display for Architecture {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::X86_64 => "x86-64",
            Self::Aarch64 => "aarch64",
        })
    }
}

/// One section: what it holds and where its data is in the file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Section {
    /// What it holds.
    pub kind: SectionKind,
    /// Offset of its data, behind the section's header.
    pub offset: u64,
    /// Length of its data.
    pub len: u64,
}

impl Section {
    /// Offset just behind the data. The parser has checked that this does not overflow.
    pub(crate) fn end(&self) -> u64 {
        self.offset.saturating_add(self.len)
    }
}

/// The image's header as it is in the file, unchecked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Header {
    pub(crate) magic: [u8; 4],
    pub(crate) version: u16,
    pub(crate) flags: u16,
    pub(crate) default_memory: u64,
    pub(crate) default_cpus: u64,
    pub(crate) reserved: u16,
    pub(crate) section_count: u16,
    pub(crate) offsets: [u64; MAX_SECTIONS],
    pub(crate) sizes: [u64; MAX_SECTIONS],
    pub(crate) unused: u32,
    pub(crate) crc: u32,
}

pub(crate) type HeaderBytes = [u8; 548];

impl Header {
    /// A header with AWS's default values, for x86-64 until there is a kernel, and no section.
    pub(crate) fn new() -> Self {
        Self {
            magic: MAGIC,
            version: CURRENT_VERSION,
            flags: 0,
            default_memory: DEFAULT_MEMORY,
            default_cpus: DEFAULT_CPUS,
            reserved: 0,
            section_count: 0,
            offsets: [0; MAX_SECTIONS],
            sizes: [0; MAX_SECTIONS],
            unused: 0,
            crc: 0,
        }
    }

    pub(crate) fn decode(bytes: &HeaderBytes) -> Self {
        Self {
            magic: take(bytes, 0),
            version: u16::from_be_bytes(take(bytes, 4)),
            flags: u16::from_be_bytes(take(bytes, 6)),
            default_memory: u64::from_be_bytes(take(bytes, 8)),
            default_cpus: u64::from_be_bytes(take(bytes, 0x10)),
            reserved: u16::from_be_bytes(take(bytes, 0x18)),
            section_count: u16::from_be_bytes(take(bytes, 0x1a)),
            offsets: std::array::from_fn(|i| u64::from_be_bytes(take(bytes, OFFSETS + 8 * i))),
            sizes: std::array::from_fn(|i| u64::from_be_bytes(take(bytes, SIZES + 8 * i))),
            unused: u32::from_be_bytes(take(bytes, 0x21c)),
            crc: u32::from_be_bytes(take(bytes, CRC_OFFSET)),
        }
    }

    pub(crate) fn encode(&self) -> HeaderBytes {
        let mut bytes = [0; 548];
        put(&mut bytes, 0, &self.magic);
        put(&mut bytes, 4, &self.version.to_be_bytes());
        put(&mut bytes, 6, &self.flags.to_be_bytes());
        put(&mut bytes, 8, &self.default_memory.to_be_bytes());
        put(&mut bytes, 0x10, &self.default_cpus.to_be_bytes());
        put(&mut bytes, 0x18, &self.reserved.to_be_bytes());
        put(&mut bytes, 0x1a, &self.section_count.to_be_bytes());
        for i in 0..MAX_SECTIONS {
            put(&mut bytes, OFFSETS + 8 * i, &self.offsets[i].to_be_bytes());
            put(&mut bytes, SIZES + 8 * i, &self.sizes[i].to_be_bytes());
        }
        put(&mut bytes, 0x21c, &self.unused.to_be_bytes());
        put(&mut bytes, CRC_OFFSET, &self.crc.to_be_bytes());
        bytes
    }
}

/// A section's header as it is in the file, unchecked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct SectionHeader {
    pub(crate) kind: u16,
    pub(crate) flags: u16,
    pub(crate) len: u64,
}

impl SectionHeader {
    pub(crate) fn decode(bytes: &[u8; 12]) -> Self {
        Self {
            kind: u16::from_be_bytes(take(bytes, 0)),
            flags: u16::from_be_bytes(take(bytes, 2)),
            len: u64::from_be_bytes(take(bytes, 4)),
        }
    }

    pub(crate) fn encode(&self) -> [u8; 12] {
        let mut bytes = [0; 12];
        put(&mut bytes, 0, &self.kind.to_be_bytes());
        put(&mut bytes, 2, &self.flags.to_be_bytes());
        put(&mut bytes, 4, &self.len.to_be_bytes());
        bytes
    }
}

/// `N` bytes at `at`; the callers' offsets are constants inside arrays of constant length.
fn take<const N: usize>(bytes: &[u8], at: usize) -> [u8; N] {
    std::array::from_fn(|i| bytes[at + i])
}

fn put(bytes: &mut [u8], at: usize, value: &[u8]) {
    bytes[at..at + value.len()].copy_from_slice(value);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn header_fields_are_where_the_format_puts_them() {
        let bytes: HeaderBytes = std::array::from_fn(|i| u8::try_from(i % 251).unwrap());
        let header = Header::decode(&bytes);
        assert_eq!(header.version, 0x0405);
        assert_eq!(header.flags, 0x0607);
        assert_eq!(header.section_count, 0x1a1b);
        assert_eq!(header.offsets[0].to_be_bytes()[0], 0x1c);
        assert_eq!(header.encode(), bytes);
    }

    #[test]
    fn section_kinds_have_one_code_each() {
        for code in 0..=u16::MAX {
            match SectionKind::from_code(code) {
                Some(kind) => assert_eq!(kind.code(), code),
                None => assert!(code == 0 || code > 5),
            }
        }
    }
}
