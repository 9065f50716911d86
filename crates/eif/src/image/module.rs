//! Kernel modules: what they depend on, and the NSM driver's second binding.
//!
//! The NSM driver binds virtio devices of type 33. Where QEMU can only offer a device of type 4 (entropy)
//! to a program of ours, the same driver is given a copy that binds type 4: one byte of its device table
//! changes and, as the bytes are no longer those that were signed, the signature appended to it goes.

use std::ops::Range;

use crate::format::{field, is_elf};

/// Virtio device type of the NSM (`VIRTIO_ID_NITRO_SEC_MOD`).
const NSM_DEVICE: u32 = 33;

/// Virtio device type of entropy sources.
const RNG_DEVICE: u32 = 4;

/// Any vendor, in a `struct virtio_device_id`.
const ANY_VENDOR: u32 = u32::MAX;

/// What ends a signed module (`MODULE_SIG_STRING` of Linux).
const SIGNATURE_MARK: &[u8] = b"~Module signature appended~\n";

/// Length of `struct module_signature`, which precedes the mark.
const SIGNATURE_INFO: usize = 12;

/// Why a module was refused.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ModuleError {
    /// It is no 64-bit little-endian ELF file with sections.
    #[error("not a 64-bit ELF module: {what}; pass the modules of the kernel's own package")]
    Elf {
        /// What is wrong.
        what: &'static str,
    },
    /// The announced signature is longer than the module.
    #[error("its appended signature is longer than the module; get the kernel's package again")]
    Signature,
    /// The device table is not found, or found more than once.
    #[error(
        "its virtio device table for type {NSM_DEVICE} was found {found} times, expected once; this kernel's \
         driver cannot be retargeted"
    )]
    DeviceTable {
        /// How often.
        found: usize,
    },
    /// The packed module does not unpack.
    #[error("it does not unpack; get the kernel's package again")]
    Unpack(#[source] std::io::Error),
}

/// A value of the module's `.modinfo`, such as `depends` or `vermagic`.
pub(crate) fn info(module: &[u8], key: &str) -> Result<Option<String>, ModuleError> {
    let section = section(module, b".modinfo")?.ok_or(ModuleError::Elf {
        what: "no .modinfo",
    })?;
    let fields = module[section].split(|b| *b == 0);
    let value = fields
        .filter_map(|field| std::str::from_utf8(field).ok()?.split_once('='))
        .find_map(|(name, value)| (name == key).then(|| value.to_owned()));
    Ok(value)
}

/// The NSM driver, bound to virtio's entropy type.
///
/// # Errors
/// [`ModuleError`] unless there is exactly one table of type 33.
pub fn retarget_nsm(module: &[u8]) -> Result<Vec<u8>, ModuleError> {
    let mut module = unsigned(module)?.to_vec();
    let table = [NSM_DEVICE.to_le_bytes(), ANY_VENDOR.to_le_bytes()].concat();
    let mut found = Vec::new();
    for section in sections(&module)?.into_iter().filter(Section::is_data) {
        let data = &module[section.range.clone()];
        let hits = data
            .windows(table.len())
            .enumerate()
            .filter(|(_, window)| *window == table);
        found.extend(hits.map(|(at, _)| section.range.start + at));
    }
    let [at] = found[..] else {
        return Err(ModuleError::DeviceTable { found: found.len() });
    };
    module[at..at + 4].copy_from_slice(&RNG_DEVICE.to_le_bytes());
    rename_alias(&mut module)?;
    Ok(module)
}

/// The module without its appended signature.
fn unsigned(module: &[u8]) -> Result<&[u8], ModuleError> {
    let Some(signed) = module.strip_suffix(SIGNATURE_MARK) else {
        return Ok(module);
    };
    let split = signed
        .len()
        .checked_sub(SIGNATURE_INFO)
        .ok_or(ModuleError::Signature)?;
    let (module, info) = signed.split_at(split);
    // Lengths of signer, key id and signature; the first two are zero in every kernel of this decade.
    let len = u32::from_be_bytes([info[8], info[9], info[10], info[11]]);
    let len = usize::try_from(len).unwrap_or(usize::MAX);
    let len = len
        .saturating_add(usize::from(info[3]))
        .saturating_add(usize::from(info[4]));
    let end = module
        .len()
        .checked_sub(len)
        .ok_or(ModuleError::Signature)?;
    Ok(&module[..end])
}

/// Keeps the alias, by which user space would load the module, in step with its device table.
fn rename_alias(module: &mut [u8]) -> Result<(), ModuleError> {
    let from = format!("alias=virtio:d{NSM_DEVICE:08X}v");
    let to = format!("alias=virtio:d{RNG_DEVICE:08X}v");
    let Some(section) = section(module, b".modinfo")? else {
        return Ok(());
    };
    let data = &mut module[section];
    let at = data
        .windows(from.len())
        .position(|window| window == from.as_bytes());
    if let Some(at) = at {
        data[at..at + to.len()].copy_from_slice(to.as_bytes());
    }
    Ok(())
}

struct Section {
    name: u32,
    kind: u32,
    flags: u64,
    range: Range<usize>,
}

impl Section {
    const PROGBITS: u32 = 1;
    const NOBITS: u32 = 8;
    const ALLOC: u64 = 2;
    const EXECUTE: u64 = 4;

    /// Loaded data that is no code.
    fn is_data(&self) -> bool {
        self.kind == Self::PROGBITS && self.flags & (Self::ALLOC | Self::EXECUTE) == Self::ALLOC
    }
}

/// The bytes of the section with this name.
fn section(module: &[u8], name: &[u8]) -> Result<Option<Range<usize>>, ModuleError> {
    let names = field::<2>(module, 0x3e)
        .map(u16::from_le_bytes)
        .unwrap_or_default();
    let sections = sections(module)?;
    let strings = sections
        .get(usize::from(names))
        .ok_or(ModuleError::Elf { what: "no names" })?;
    let strings = &module[strings.range.clone()];
    let named = sections.iter().find(|section| {
        let start = usize::try_from(section.name).unwrap_or(usize::MAX);
        let rest = strings.get(start..).unwrap_or_default();
        rest.strip_prefix(name)
            .is_some_and(|rest| rest.first() == Some(&0))
    });
    Ok(named.map(|section| section.range.clone()))
}

fn sections(module: &[u8]) -> Result<Vec<Section>, ModuleError> {
    /// Size of an entry of the section table, `Elf64_Shdr`.
    const ENTRY: usize = 64;
    if !is_elf(module) {
        return Err(ModuleError::Elf {
            what: "wrong magic",
        });
    }
    let truncated = ModuleError::Elf {
        what: "the section table is cut off",
    };
    let start = field(module, 0x28)
        .map(u64::from_le_bytes)
        .and_then(|at| usize::try_from(at).ok());
    let size = field(module, 0x3a).map(u16::from_le_bytes);
    let count = field(module, 0x3c)
        .map(u16::from_le_bytes)
        .unwrap_or_default();
    if size.map(usize::from) != Some(ENTRY) {
        return Err(ModuleError::Elf {
            what: "unknown section entries",
        });
    }
    let table = start.and_then(|start| {
        let end = start.checked_add(usize::from(count) * ENTRY)?;
        module.get(start..end)
    });
    table
        .ok_or(truncated)?
        .chunks_exact(ENTRY)
        .map(|entry| parse_section(module, entry))
        .collect()
}

fn parse_section(module: &[u8], entry: &[u8]) -> Result<Section, ModuleError> {
    let word = |at| field(entry, at).map_or(0, u32::from_le_bytes);
    let long = |at| field(entry, at).map_or(0, u64::from_le_bytes);
    let kind = word(4);
    let (offset, len) = if kind == Section::NOBITS {
        (0, 0)
    } else {
        (long(0x18), long(0x20))
    };
    let range = usize::try_from(offset)
        .ok()
        .zip(
            offset
                .checked_add(len)
                .and_then(|end| usize::try_from(end).ok()),
        )
        .map(|(start, end)| start..end)
        .filter(|range| module.get(range.clone()).is_some());
    let range = range.ok_or(ModuleError::Elf {
        what: "a section is cut off",
    })?;
    Ok(Section {
        name: word(0),
        kind,
        flags: long(8),
        range,
    })
}
