//! Kernels: how long one is by its own account, and the ELF file inside a bzImage. Those for aarch64 are in `arm64`.
//!
//! ```text
//! bzImage = setup (setup_sects + 1 sectors) ‖ protected-mode part (syssize paragraphs) [‖ PE certificates]
//!                                              └ payload_offset, payload_length: packed vmlinux ‖ its size (LE u32)
//! ```
//!
//! Field names and offsets are those of Linux's `Documentation/arch/x86/boot.rst`. A kernel signed for
//! secure boot, as Debian's is, carries the certificate table that its PE header names behind the end that
//! the boot header names; nothing else may follow.

mod arm64;

use std::io::{self, Read};

use crate::format::{Architecture, field};
use crate::packing::{Limited, Packing, is_limit};
use crate::reader::u64_len;

/// How much of a kernel's beginning [`check_length`] needs: the headers are in the first 1 KiB.
pub const HEAD_LEN: u64 = 4096;

/// Largest vmlinux that is unpacked (bytes): four times Debian's.
pub const MAX_VMLINUX: u64 = 256 << 20;

const SECTOR: u64 = 512;
const PARAGRAPH: u64 = 16;
const SETUP_SECTS: usize = 0x1f1;
const SYSSIZE: usize = 0x1f4;
const BOOT_FLAG: usize = 0x1fe;
const HEADER_MAGIC: usize = 0x202;
const PROTOCOL: usize = 0x206;
const KERNEL_VERSION: usize = 0x20e;
const PAYLOAD_OFFSET: usize = 0x248;
const PAYLOAD_LENGTH: usize = 0x24c;
const PE_OFFSET: usize = 0x3c;
/// The first boot protocol whose header locates the payload.
const OLDEST_PROTOCOL: u16 = 0x208;

/// Why a kernel was refused.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum KernelError {
    /// There is no boot header.
    #[error(
        "not a bzImage for x86-64 or an uncompressed Image for arm64: {what} is missing; pass the distribution's vmlinuz"
    )]
    NotBzImage {
        /// What was looked for.
        what: &'static str,
    },
    /// A kernel for aarch64 that no enclave starts.
    #[error(
        "the kernel is big-endian, expected little-endian; pass the distribution's kernel for arm64"
    )]
    BigEndian,
    /// A boot protocol from before 2008.
    #[error(
        "boot protocol {}.{:02} is too old, expected 2.08 or newer; pass a newer kernel",
        version >> 8, version & 0xff
    )]
    Protocol {
        /// As in the header: major, minor.
        version: u16,
    },
    /// More or less than the kernel.
    #[error(
        "the kernel is {expected} bytes long by its own header, there are {found}; pass the file as its \
         package ships it"
    )]
    Length {
        /// By the header.
        expected: u64,
        /// As found.
        found: u64,
    },
    /// The payload's position makes no sense.
    #[error(
        "the boot header places the payload at {offset}, {len} bytes long, outside the kernel's {size} \
         bytes; the kernel is damaged, get it again"
    )]
    Payload {
        /// Offset in the file.
        offset: u64,
        /// Length.
        len: u64,
        /// Length of the file.
        size: u64,
    },
    /// The payload is packed in a way that is not handled.
    #[error(
        "the kernel is packed in an unknown way (first bytes {found:02x?}), expected gzip, zstd, xz or lz4; \
         pass a kernel built with one of these"
    )]
    Packing {
        /// First bytes.
        found: Vec<u8>,
    },
    /// The payload does not unpack.
    #[error("the kernel's payload does not unpack; the kernel is damaged, get it again")]
    Unpack(#[source] io::Error),
    /// The payload unpacks to more than is allowed.
    #[error("the kernel unpacks to more than {limit} bytes; pass a smaller kernel")]
    TooLarge {
        /// The limit.
        limit: u64,
    },
    /// The payload unpacks to another length than it says.
    #[error(
        "the kernel unpacks to {found} bytes and announces {expected}; the kernel is damaged, get it again"
    )]
    Size {
        /// By the word behind the payload.
        expected: u64,
        /// As unpacked.
        found: u64,
    },
    /// What came out is no 64-bit x86 ELF executable.
    #[error("the kernel's payload is not an x86-64 ELF file; pass a kernel for x86-64")]
    NotElf,
}

/// Unpacks the vmlinux ELF file from a bzImage.
///
/// # Errors
/// [`KernelError`]: not a bzImage, not exactly one, damaged, or larger than [`MAX_VMLINUX`].
pub fn unpack(bzimage: &[u8]) -> Result<Vec<u8>, KernelError> {
    check_length(bzimage, u64_len(bzimage))?;
    let payload = payload(bzimage)?;
    let (packed, size) = payload
        .split_last_chunk::<4>()
        .ok_or(KernelError::NotBzImage { what: "a payload" })?;
    let expected = u64::from(u32::from_le_bytes(*size));
    let packing = Packing::of(packed).filter(|packing| *packing != Packing::Newc);
    let packing = packing.ok_or_else(|| KernelError::Packing {
        found: packed.iter().take(6).copied().collect(),
    })?;
    // gzip's own last word is the size, so it is part of the packed data there.
    let mut packed = if packing == Packing::Gzip {
        payload
    } else {
        packed
    };
    let vmlinux = unpack_payload(packing, &mut packed)?;
    if u64_len(&vmlinux) != expected {
        return Err(KernelError::Size {
            expected,
            found: u64_len(&vmlinux),
        });
    }
    match Architecture::of_elf(&vmlinux) {
        Some(Architecture::X86_64) => Ok(vmlinux),
        _ => Err(KernelError::NotElf),
    }
}

/// The processor that a kernel with this beginning is for: an arm64 `Image` says so, and whatever else is a kernel is for
/// x86-64.
pub fn architecture(head: &[u8]) -> Architecture {
    match arm64::is_image(head) {
        true => Architecture::Aarch64,
        false => Architecture::X86_64,
    }
}

/// Whether the bytes are exactly one kernel, no more and no less.
pub fn is_canonical(bzimage: &[u8]) -> bool {
    check_length(bzimage, u64_len(bzimage)).is_ok()
}

/// Checks that a file with this beginning ([`HEAD_LEN`] bytes, or all) and length is exactly one kernel. An arm64 one
/// without a PE header is known not to be longer than it says.
///
/// # Errors
/// [`KernelError::NotBzImage`], [`KernelError::BigEndian`], [`KernelError::Protocol`] or [`KernelError::Length`].
pub fn check_length(head: &[u8], found: u64) -> Result<(), KernelError> {
    if architecture(head) == Architecture::Aarch64 {
        return arm64::check_length(head, found);
    }
    let expected = declared_length(head)?;
    if expected != found {
        return Err(KernelError::Length { expected, found });
    }
    Ok(())
}

/// The version line is within this many bytes of a bzImage, because its offset has 16 bits.
const VERSION_WITHIN: u64 = 0x200 + 0x1_0000 + 128;

/// The version that the kernel carries: `6.12.117+deb12-cloud-amd64`. An arm64 one is searched for it, without being kept
/// in memory.
///
/// # Errors
/// Those of the reader.
pub fn version<R: Read>(mut kernel: R) -> io::Result<Option<String>> {
    let mut head = Vec::new();
    kernel
        .by_ref()
        .take(VERSION_WITHIN)
        .read_to_end(&mut head)?;
    match architecture(&head) {
        Architecture::X86_64 => Ok(bzimage_version(&head)),
        Architecture::Aarch64 => arm64::version(head.as_slice().chain(kernel)),
    }
}

/// From the boot header, up to the first blank.
fn bzimage_version(bzimage: &[u8]) -> Option<String> {
    let at = usize::from(u16::from_le_bytes(field(bzimage, KERNEL_VERSION)?)) + 0x200;
    let line = bzimage.get(at..)?.iter().copied().take(128);
    let word: Vec<u8> = line.take_while(|b| b.is_ascii_graphic()).collect();
    String::from_utf8(word).ok().filter(|word| !word.is_empty())
}

/// Length of a bzImage by the boot header, with the certificate table that the PE header names.
fn declared_length(head: &[u8]) -> Result<u64, KernelError> {
    let boot_flag = field(head, BOOT_FLAG).map(u16::from_le_bytes);
    if boot_flag != Some(0xaa55) {
        return Err(KernelError::NotBzImage {
            what: "the boot flag 0xaa55",
        });
    }
    if field(head, HEADER_MAGIC) != Some(*b"HdrS") {
        return Err(KernelError::NotBzImage {
            what: "the boot header's magic",
        });
    }
    let version = u16::from_le_bytes(field(head, PROTOCOL).unwrap_or_default());
    if version < OLDEST_PROTOCOL {
        return Err(KernelError::Protocol { version });
    }
    let syssize = u32::from_le_bytes(field(head, SYSSIZE).unwrap_or_default());
    let end = setup_len(head) + u64::from(syssize) * PARAGRAPH;
    Ok(end + certificates_len(head, end).unwrap_or(0))
}

/// Length of the real-mode part; zero sectors mean four, for kernels of the last century.
fn setup_len(head: &[u8]) -> u64 {
    let sectors = head.get(SETUP_SECTS).copied().map_or(0, u64::from);
    (if sectors == 0 { 4 } else { sectors } + 1) * SECTOR
}

/// Length of the PE certificate table, if the PE header names one that starts at `end`.
fn certificates_len(head: &[u8], end: u64) -> Option<u64> {
    /// Size of "PE\0\0" and the COFF header.
    const COFF: usize = 24;
    /// Offset of the certificate table's entry in a PE32+ optional header: 112, then eight bytes each.
    const CERTIFICATES: usize = 112 + 4 * 8;
    if head.get(..2)? != b"MZ" {
        return None;
    }
    let pe = usize::try_from(u32::from_le_bytes(field(head, PE_OFFSET)?)).ok()?;
    if field(head, pe)? != *b"PE\0\0" || field(head, pe.checked_add(COFF)?)? != [0x0b, 0x02] {
        return None;
    }
    let entry = pe.checked_add(COFF + CERTIFICATES)?;
    let offset = u32::from_le_bytes(field(head, entry)?);
    let len = u32::from_le_bytes(field(head, entry + 4)?);
    (u64::from(offset) == end).then(|| u64::from(len))
}

/// The packed vmlinux with its trailing size word.
fn payload(bzimage: &[u8]) -> Result<&[u8], KernelError> {
    let word = |at| field(bzimage, at).map_or(0, u32::from_le_bytes);
    let offset = setup_len(bzimage) + u64::from(word(PAYLOAD_OFFSET));
    let len = u64::from(word(PAYLOAD_LENGTH));
    let range = usize::try_from(offset)
        .ok()
        .zip(usize::try_from(offset + len).ok());
    range
        .and_then(|(start, end)| bzimage.get(start..end))
        .ok_or_else(|| KernelError::Payload {
            offset,
            len,
            size: u64_len(bzimage),
        })
}

fn unpack_payload(packing: Packing, packed: &mut &[u8]) -> Result<Vec<u8>, KernelError> {
    let mut out = Limited::new(Vec::new(), MAX_VMLINUX);
    match packing.unpack(packed, &mut out) {
        Ok(()) => Ok(out.inner),
        Err(error) if is_limit(&error) => Err(KernelError::TooLarge { limit: MAX_VMLINUX }),
        Err(error) => Err(KernelError::Unpack(error)),
    }
}
