//! What the engine boots: the measured image's parts, unpacked here instead of in the guest.
//!
//! The hypervisor measured the image as it is; what the guest's firmware would unpack slowly is unpacked
//! natively now, and handed over as memfds: an ELF kernel, and the ramdisks one behind the other. Unpacking
//! is a function of measured bytes alone, so the measurement still says what runs.

use std::fs::File;
use std::io::{self, BufReader, Read, Write};
use std::thread;

use enclos_eif::kernel::KernelError;
use enclos_eif::ramdisk::RamdiskError;
use enclos_eif::{Eif, EifError, Section, SectionKind};
use rustix::fs::{FallocateFlags, MemfdFlags};

use crate::positioned::Positioned;

/// Guest memory is at least this many times the unpacked ramdisks: the kernel holds the archive and the
/// files at once, and gives the root file system half of memory.
pub(crate) const MEMORY_PER_RAMDISK: u64 = 3;

/// The archive ends on a page boundary: `microvm` puts it against the end of memory, and firmware may count on
/// what is left of the last page.
const PAGE: u64 = 4096;

/// Longest compressed kernel.
const MAX_KERNEL: u64 = 128 << 20;

/// Why an image cannot be unpacked for booting.
#[derive(Debug, thiserror::Error)]
pub enum PayloadError {
    /// The image itself.
    #[error("cannot read the image")]
    Eif(#[from] EifError),
    /// The kernel.
    #[error("cannot unpack the image's kernel")]
    Kernel(#[source] KernelError),
    /// A ramdisk.
    #[error("cannot unpack the image's ramdisks into {memory_mib} MiB of guest memory")]
    Ramdisk {
        /// Guest memory in MiB.
        memory_mib: u64,
        /// Why.
        source: RamdiskError,
    },
    /// Memory files.
    #[error("cannot make a memory file for the {0}")]
    Memory(&'static str, #[source] io::Error),
}

/// The unpacked parts.
#[derive(Debug)]
pub struct Payload {
    /// Kernel, an ELF file.
    pub kernel: File,
    /// Ramdisks, uncompressed, one behind the other.
    pub initrd: File,
    /// The measured command line.
    pub cmdline: String,
}

impl Payload {
    /// Unpacks `image` for a guest with `memory_mib` MiB, the kernel and the ramdisks in parallel.
    ///
    /// # Errors
    /// See [`PayloadError`].
    pub fn unpack(image: &File, memory_mib: u64) -> Result<Self, PayloadError> {
        let eif = Eif::parse(&mut Positioned::new(image))?;
        thread::scope(|scope| {
            let kernel = scope.spawn(|| unpack_kernel(image, &eif));
            let initrd = unpack_ramdisks(image, &eif, memory_mib)?;
            let cmdline = eif.cmdline(&mut Positioned::new(image))?;
            let panicked =
                |_| PayloadError::Memory("kernel", io::Error::other("the thread panicked"));
            let kernel = kernel.join().map_err(panicked)??;
            Ok(Self {
                kernel,
                initrd,
                cmdline,
            })
        })
    }

    /// Gives the memory of both files back, once the guest runs from its own copy.
    pub fn discard(&self) {
        for file in [&self.kernel, &self.initrd] {
            let length = file.metadata().map(|meta| meta.len()).unwrap_or_default();
            // A hole reads as zeros, so an engine that still maps the file is not harmed.
            let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
            let _ = rustix::fs::fallocate(file, flags, 0, length);
        }
    }
}

fn unpack_kernel(image: &File, eif: &Eif) -> Result<File, PayloadError> {
    let kind = SectionKind::Kernel;
    let section = eif.kernel().ok_or(EifError::Missing { kind })?;
    let packed = eif.read_section(&mut Positioned::new(image), section, MAX_KERNEL)?;
    let kernel = enclos_eif::kernel::unpack(&packed).map_err(PayloadError::Kernel)?;
    let mut file = memory_file("kernel")?;
    file.write_all(&kernel)
        .map_err(|error| PayloadError::Memory("kernel", error))?;
    Ok(file)
}

fn unpack_ramdisks(image: &File, eif: &Eif, memory_mib: u64) -> Result<File, PayloadError> {
    let mut file = memory_file("initrd")?;
    let mut left = memory_mib.saturating_mul(1 << 20) / MEMORY_PER_RAMDISK;
    for section in eif.ramdisks() {
        left -= unpack_ramdisk(image, eif, section, &mut file, left)
            .map_err(|source| PayloadError::Ramdisk { memory_mib, source })?
            .min(left);
    }
    pad(&mut file).map_err(|error| PayloadError::Memory("initrd", error))?;
    Ok(file)
}

fn unpack_ramdisk(
    image: &File,
    eif: &Eif,
    section: &Section,
    out: &mut File,
    limit: u64,
) -> Result<u64, RamdiskError> {
    let mut reader = Positioned::new(image);
    let data = eif
        .section(&mut reader, section)
        .map_err(|e| RamdiskError::Io(io::Error::other(e)))?;
    let mut data = BufReader::with_capacity(1 << 20, data.take(section.len));
    enclos_eif::ramdisk::unpack_to(&mut data, out, limit)
}

fn memory_file(name: &'static str) -> Result<File, PayloadError> {
    let file = rustix::fs::memfd_create(name, MemfdFlags::CLOEXEC);
    Ok(File::from(file.map_err(|error| {
        PayloadError::Memory(name, error.into())
    })?))
}

fn pad(file: &mut File) -> io::Result<()> {
    let length = file.metadata()?.len();
    file.set_len(length.next_multiple_of(PAGE))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn padding_ends_on_a_page() {
        let mut file = tempfile::tempfile().unwrap();
        for (length, padded) in [(0, 0), (1, 4096), (4096, 4096), (4097, 8192)] {
            file.set_len(length).unwrap();
            pad(&mut file).unwrap();
            assert_eq!(file.metadata().unwrap().len(), padded);
        }
    }

    #[test]
    fn discarded_files_keep_their_length_and_lose_their_memory() {
        let mut kernel = memory_file("kernel").unwrap();
        kernel.write_all(&[1; 8192]).unwrap();
        let payload = Payload {
            kernel,
            initrd: memory_file("initrd").unwrap(),
            cmdline: String::new(),
        };
        payload.discard();
        let mut bytes = Vec::new();
        Positioned::new(&payload.kernel)
            .read_to_end(&mut bytes)
            .unwrap();
        assert_eq!(bytes, [0; 8192]);
    }
}
