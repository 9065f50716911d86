//! Why an image was refused.

use std::io;

use crate::format::{
    Architecture, CURRENT_VERSION, MAX_CMDLINE_LEN, MAX_SECTIONS, OLDEST_VERSION, SectionKind,
};
use crate::kernel::KernelError;
use crate::signature::SignatureError;

/// Why an image was refused, or what [`inspect`](crate::inspect) found wrong with it.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum EifError {
    /// The file could not be read.
    #[error("cannot read the image file")]
    Io(#[from] io::Error),
    /// The file ends before what its tables announce.
    #[error(
        "the image is truncated: {what} needs {needed} bytes of file, there are {available}; copy or \
         build the image again"
    )]
    Truncated {
        /// Which part is cut off.
        what: String,
        /// Length of file that it needs.
        needed: u64,
        /// Length of the file.
        available: u64,
    },
    /// It is another kind of file.
    #[error(
        "not an enclave image: the file starts with \"{}\", expected \".eif\"; pass a file made by \
         `enclos build` or `nitro-cli build-enclave`", .found.escape_ascii()
    )]
    Magic {
        /// The first four bytes.
        found: [u8; 4],
    },
    /// A version that is not handled here.
    #[error(
        "image format version {found} is not supported: version {CURRENT_VERSION} can be run, \
         {OLDEST_VERSION} to {CURRENT_VERSION} described; build the image again"
    )]
    Version {
        /// The header's version.
        found: u16,
    },
    /// Header flags with an unknown meaning.
    #[error(
        "image header flags {found:#06x} are not supported: bit 0 (aarch64) is the only one defined; \
         build the image without extensions"
    )]
    Flags {
        /// The header's flags.
        found: u16,
    },
    /// The image is for another processor.
    #[error("the image is for aarch64, only x86-64 images can be run here; build it for x86-64")]
    Architecture,
    /// A reserved field is used.
    #[error("reserved header field `{field}` is {found:#x}, expected zero; build the image again")]
    Reserved {
        /// Name of the field.
        field: &'static str,
        /// Its value.
        found: u64,
    },
    /// Too few or too many sections.
    #[error(
        "the image announces {found} sections, expected 2 to {MAX_SECTIONS}; build the image again"
    )]
    SectionCount {
        /// The header's count.
        found: u16,
    },
    /// A table entry behind the last section is not zero.
    #[error(
        "section table entry {index} is not zero although no such section is announced; build the image again"
    )]
    UnusedEntry {
        /// Index of the entry.
        index: usize,
    },
    /// Bytes that belong to no section.
    #[error(
        "section {index} starts at offset {found}, expected {expected}: bytes between sections belong to \
         nothing and would be measured by nobody; build the image again"
    )]
    Gap {
        /// Index of the section behind the gap.
        index: usize,
        /// Where it should start.
        expected: u64,
        /// Where it starts.
        found: u64,
    },
    /// Two sections share bytes, or the table is not in file order.
    #[error(
        "section {index} starts at offset {found}, inside or before the previous part, which ends at \
         {expected}; build the image again"
    )]
    Overlap {
        /// Index of the section.
        index: usize,
        /// Where it should start.
        expected: u64,
        /// Where it starts.
        found: u64,
    },
    /// Bytes behind the last section.
    #[error("{count} bytes follow the last section, expected none; copy or build the image again")]
    TrailingBytes {
        /// How many.
        count: u64,
    },
    /// Table and section header name different lengths.
    #[error(
        "section {index} is {header} bytes long by its own header and {table} by the section table; \
         build or sign the image again"
    )]
    SectionSize {
        /// Index of the section.
        index: usize,
        /// Length in the section's header.
        header: u64,
        /// Length in the section table.
        table: u64,
    },
    /// A section of unknown type.
    #[error("section {index} has the unknown type {kind}, expected 1 to 5; build the image again")]
    UnknownSection {
        /// Index of the section.
        index: usize,
        /// Its type.
        kind: u16,
    },
    /// A section with flags.
    #[error("section {index} has the flags {found:#06x}, expected none; build the image again")]
    SectionFlags {
        /// Index of the section.
        index: usize,
        /// Its flags.
        found: u16,
    },
    /// A mandatory section is not there.
    #[error("the image has no {kind} section, expected one; build the image again")]
    Missing {
        /// Which.
        kind: SectionKind,
    },
    /// A section that may be there once is there again.
    #[error("section {index} is a second {kind} section, expected one; build the image again")]
    Duplicate {
        /// Index of the section.
        index: usize,
        /// Which.
        kind: SectionKind,
    },
    /// Sections in an order that makes measurements ambiguous.
    #[error(
        "section {index} ({kind}) is out of order: expected kernel, command line, ramdisks, signature; \
         build the image again"
    )]
    Order {
        /// Index of the section.
        index: usize,
        /// Which.
        kind: SectionKind,
    },
    /// A section longer than the format or this reader allows.
    #[error(
        "the {kind} section is {len} bytes long, the limit is {limit}; build the image with less"
    )]
    TooLong {
        /// Which.
        kind: SectionKind,
        /// Its length.
        len: u64,
        /// Its limit.
        limit: u64,
    },
    /// The stored checksum is not the file's.
    #[error(
        "wrong CRC: the header says {stored:#010x}, the file's bytes give {computed:#010x}; the image is \
         damaged, copy or build it again"
    )]
    Crc {
        /// In the header.
        stored: u32,
        /// Of the bytes.
        computed: u32,
    },
    /// The kernel section is not exactly one kernel.
    #[error("the kernel section does not hold exactly one bootable kernel")]
    Kernel(#[source] KernelError),
    /// Kernel and header are for different processors.
    #[error("the kernel is for {kernel}, the image's header says {header}; build the image again")]
    KernelArchitecture {
        /// By the kernel.
        kernel: Architecture,
        /// By the header's flags.
        header: Architecture,
    },
    /// The command line has bytes that no command line has.
    #[error(
        "the command line has the byte {byte:#04x} at position {position}, expected printable ASCII; build \
         the image with a plain command line"
    )]
    Cmdline {
        /// Position of the byte.
        position: usize,
        /// The byte.
        byte: u8,
    },
    /// The command line is longer than the kernel takes.
    #[error("the command line is {len} bytes long, the kernel takes {MAX_CMDLINE_LEN}; shorten it")]
    CmdlineTooLong {
        /// Its length.
        len: u64,
    },
    /// A ramdisk does not start like one.
    #[error(
        "ramdisk {ramdisk} starts with {found:02x?}, expected a newc cpio archive or one packed by gzip, \
         zstd, xz or lz4; build the image again"
    )]
    Ramdisk {
        /// Index among the ramdisks.
        ramdisk: usize,
        /// First bytes.
        found: Vec<u8>,
    },
    /// The metadata section is not what the format says.
    #[error(
        "the metadata section is not the JSON object that the format describes; build the image again"
    )]
    Metadata(#[source] serde_json::Error),
    /// The signature is malformed or not by the certificate's key, or for another image.
    #[error("the image's signature does not hold")]
    Signature(#[source] SignatureError),
}
