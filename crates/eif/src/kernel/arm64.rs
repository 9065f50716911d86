//! Kernels for aarch64: the uncompressed `Image` of Linux's `Documentation/arch/arm64/booting.rst`.
//!
//! ```text
//! 0 code ‖ 8 text_offset ‖ 16 image_size ‖ 24 flags ‖ … ‖ 56 "ARM\x64" ‖ 60 offset of the PE header, if there is one
//! ```
//!
//! `image_size` is what the kernel occupies in memory, with its zeroed data, so the file is shorter. Its exact length is in
//! the PE header that makes it a UEFI program too: where its last section ends, then the certificate table of a signed one.
//! AWS's builders take the file as it is, and so do we; `text_offset` is the loader's business.

use std::io::{self, Read};

use super::{KernelError, certificates_len};
use crate::format::field;

const IMAGE_SIZE: usize = 16;
const FLAGS: usize = 24;
const MAGIC: usize = 56;
const PE_OFFSET: usize = 60;
const BIG_ENDIAN: u64 = 1;

/// Machine of a PE file for 64-bit Arm.
const PE_MACHINE: u16 = 0xaa64;

/// What stands before the version in every kernel.
const BANNER: &[u8] = b"Linux version ";

/// Longest version that is looked for.
const MAX_VERSION: usize = 128;

pub(super) fn is_image(head: &[u8]) -> bool {
    field(head, MAGIC) == Some(*b"ARM\x64")
}

/// Checks that a file with this beginning and length is one kernel.
pub(super) fn check_length(head: &[u8], found: u64) -> Result<(), KernelError> {
    let word = |at| field(head, at).map_or(0, u64::from_le_bytes);
    if word(FLAGS) & BIG_ENDIAN != 0 {
        return Err(KernelError::BigEndian);
    }
    let exact = pe_length(head);
    let most = word(IMAGE_SIZE);
    match exact {
        Some(expected) if expected != found => Err(KernelError::Length { expected, found }),
        None if found > most => Err(KernelError::Length {
            expected: most,
            found,
        }),
        _ => Ok(()),
    }
}

/// Length by the PE header: the end of the last section, and the certificates behind it.
fn pe_length(head: &[u8]) -> Option<u64> {
    /// Length of an entry of the section table.
    const ENTRY: usize = 40;
    let pe = usize::try_from(u32::from_le_bytes(field(head, PE_OFFSET)?)).ok()?;
    let coff = pe.checked_add(4)?;
    let machine = u16::from_le_bytes(field(head, coff)?);
    if !head.starts_with(b"MZ") || field(head, pe)? != *b"PE\0\0" || machine != PE_MACHINE {
        return None;
    }
    let count = usize::from(u16::from_le_bytes(field(head, coff + 2)?));
    let optional = usize::from(u16::from_le_bytes(field(head, coff + 16)?));
    let table = head.get(coff + 20 + optional..)?.get(..count * ENTRY)?;
    let ends = table.chunks_exact(ENTRY).map(|entry| {
        let word = |at| u64::from(field(entry, at).map_or(0, u32::from_le_bytes));
        word(16) + word(20)
    });
    let end = ends.max()?;
    Some(end + certificates_len(head, end).unwrap_or(0))
}

/// The version in the kernel's banner, which is somewhere in its data.
pub(super) fn version<R: Read>(kernel: R) -> io::Result<Option<String>> {
    const STEP: u64 = 256 << 10;
    let mut kernel = kernel.take(super::MAX_VMLINUX);
    let mut window = Vec::new();
    loop {
        let read = kernel.by_ref().take(STEP).read_to_end(&mut window)?;
        if let Some(version) = version_in(&window) {
            return Ok(Some(version));
        }
        if read == 0 {
            return Ok(None);
        }
        let seen = window.len().saturating_sub(BANNER.len() + MAX_VERSION);
        window.drain(..seen);
    }
}

/// A banner followed by a number and a blank; the format string `Linux version %s` is none.
fn version_in(bytes: &[u8]) -> Option<String> {
    let mut starts = bytes.windows(BANNER.len()).enumerate();
    starts.find_map(|(at, window)| {
        let text = (window == BANNER).then(|| &bytes[at + BANNER.len()..])?;
        let end = text.iter().take(MAX_VERSION).position(|b| *b == b' ')?;
        let version = text[..end].to_vec();
        let plain = version.first().is_some_and(u8::is_ascii_digit)
            && version.iter().all(u8::is_ascii_graphic);
        plain.then(|| String::from_utf8(version).ok()).flatten()
    })
}
