//! Small kernels, modules, archives and images for tests, made from the formats' descriptions.

#![allow(
    dead_code,
    reason = "each test binary uses its own part of this module"
)]

use std::collections::BTreeMap;
use std::io::{Cursor, Write};

use enclos_eif::{BuildMetadata, Builder, Measurements, Metadata};

/// How a test kernel's payload is packed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Pack {
    Gzip,
    Zstd,
    Xz,
    Lz4,
}

pub(crate) const PACKS: [Pack; 4] = [Pack::Gzip, Pack::Zstd, Pack::Xz, Pack::Lz4];

pub(crate) fn pack(pack: Pack, data: &[u8]) -> Vec<u8> {
    match pack {
        Pack::Gzip => {
            let mut out = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
            out.write_all(data).unwrap();
            out.finish().unwrap()
        }
        Pack::Zstd => zstd::encode_all(data, 1).unwrap(),
        Pack::Xz => {
            // As the kernel's build does it: CRC-32, the x86 filter, LZMA2.
            let mut options = lzma_rust2::XzOptions::with_preset(0);
            options.set_check_sum_type(lzma_rust2::CheckType::Crc32);
            options.prepend_pre_filter(lzma_rust2::filter::FilterType::BcjX86, 0);
            let mut out = lzma_rust2::XzWriter::new(Vec::new(), options).unwrap();
            out.write_all(data).unwrap();
            out.finish().unwrap()
        }
        Pack::Lz4 => {
            let mut out = vec![0x02, 0x21, 0x4c, 0x18];
            for block in data.chunks(8 << 20) {
                let packed = lz4_flex::block::compress(block);
                out.extend_from_slice(&u32::try_from(packed.len()).unwrap().to_le_bytes());
                out.extend_from_slice(&packed);
            }
            out
        }
    }
}

/// The start of an ELF file for x86-64, then `len` bytes that compress a little.
pub(crate) fn vmlinux(len: usize) -> Vec<u8> {
    let mut elf = b"\x7fELF\x02\x01\x01".to_vec();
    elf.resize(64, 0);
    elf[18] = 62;
    elf.extend((0..len).map(|i| u8::try_from((i * i / 7) % 251).unwrap()));
    elf
}

/// A bzImage with one setup sector around a packed payload, its size word appended except for gzip.
pub(crate) fn bzimage(packing: Pack, vmlinux: &[u8]) -> Vec<u8> {
    let mut payload = pack(packing, vmlinux);
    if packing != Pack::Gzip {
        payload.extend_from_slice(&u32::try_from(vmlinux.len()).unwrap().to_le_bytes());
    }
    bzimage_around(&payload)
}

/// A bzImage with this payload.
pub(crate) fn bzimage_around(payload: &[u8]) -> Vec<u8> {
    const CODE: usize = 48;
    let mut image = vec![0; 1024 + CODE];
    image[0x1f1] = 1;
    image[0x1fe..0x200].copy_from_slice(&[0x55, 0xaa]);
    image[0x202..0x206].copy_from_slice(b"HdrS");
    image[0x206..0x208].copy_from_slice(&[0x0f, 0x02]);
    image[0x20e..0x210].copy_from_slice(&0x180_u16.to_le_bytes());
    image[0x380..0x38b].copy_from_slice(b"6.12.0-test");
    image[0x38b..0x393].copy_from_slice(b" (b@h) #");
    image[0x248..0x24c].copy_from_slice(&u32::try_from(CODE).unwrap().to_le_bytes());
    let len = u32::try_from(payload.len()).unwrap();
    image[0x24c..0x250].copy_from_slice(&len.to_le_bytes());
    image.extend_from_slice(payload);
    image.resize(image.len().next_multiple_of(16), 0);
    let syssize = u32::try_from((image.len() - 1024) / 16).unwrap();
    image[0x1f4..0x1f8].copy_from_slice(&syssize.to_le_bytes());
    image
}

/// A small valid kernel.
pub(crate) fn kernel() -> Vec<u8> {
    bzimage(Pack::Zstd, &vmlinux(100))
}

/// A kernel for aarch64: an `Image` with the PE header of a UEFI program, its version in its data.
pub(crate) fn arm64_kernel() -> Vec<u8> {
    let mut image = vec![0; 4096];
    image[..2].copy_from_slice(b"MZ");
    image[16..24].copy_from_slice(&0x10000_u64.to_le_bytes());
    image[24] = 0b1010;
    image[56..60].copy_from_slice(b"ARM\x64");
    image[60] = 64;
    image[64..72].copy_from_slice(b"PE\0\0\x64\xaa\x02\0");
    image[84] = 160;
    image[88..90].copy_from_slice(&[0x0b, 0x02]);
    // Section table: size and offset of .text and .data.
    for (entry, (size, offset)) in [(248, (2048_u32, 1024_u32)), (288, (1024, 3072))] {
        image[entry + 16..entry + 20].copy_from_slice(&size.to_le_bytes());
        image[entry + 20..entry + 24].copy_from_slice(&offset.to_le_bytes());
    }
    let banner = b"Linux version %s\0Linux version 6.12.0-test (b@h) #1";
    image[3000..3000 + banner.len()].copy_from_slice(banner);
    image
}

/// An empty cpio archive followed by bytes that nobody parses before boot.
pub(crate) fn ramdisk(body: &[u8]) -> Vec<u8> {
    let mut archive = enclos_eif::cpio::Archive::new(Vec::new(), 0);
    let len = u64::try_from(body.len()).unwrap();
    let attributes = enclos_eif::cpio::Attributes::root(0o644);
    archive.file(b"body", attributes, len, &mut &*body).unwrap();
    archive.finish().unwrap()
}

pub(crate) fn metadata() -> Metadata {
    Metadata {
        image_name: "test".into(),
        image_version: "1.0".into(),
        build_metadata: BuildMetadata {
            build_time: "1970-01-01T00:00:00+00:00".into(),
            build_tool: "test".into(),
            build_tool_version: "0".into(),
            operating_system: "Linux".into(),
            kernel_version: "6.12.0-test".into(),
        },
        docker_info: serde_json::json!({}),
        custom_metadata: serde_json::Value::Null,
    }
}

/// A small valid image.
pub(crate) fn image() -> (Vec<u8>, Measurements) {
    let mut out = Cursor::new(Vec::new());
    let builder = Builder::new()
        .kernel(kernel())
        .cmdline("console=ttyS0 quiet")
        .metadata(metadata())
        .ramdisk(ramdisk(b"runtime"))
        .ramdisk(ramdisk(b"application"));
    let measurements = builder.write(&mut out).unwrap();
    (out.into_inner(), measurements)
}

/// Puts the CRC right after a mutation, so that it is not the CRC that is tested.
pub(crate) fn fix_crc(image: &mut [u8]) {
    let mut crc = crc32fast::Hasher::new();
    crc.update(&image[..0x220]);
    crc.update(&image[0x224..]);
    image[0x220..0x224].copy_from_slice(&crc.finalize().to_be_bytes());
}

/// An entry of a cpio archive, as a reader of the format's description finds it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct CpioEntry {
    pub(crate) inode: u64,
    pub(crate) mode: u64,
    pub(crate) uid: u64,
    pub(crate) gid: u64,
    pub(crate) links: u64,
    pub(crate) mtime: u64,
    pub(crate) device: (u64, u64),
    pub(crate) body: Vec<u8>,
}

/// Entries of the newc archives in `bytes`, in order.
pub(crate) fn cpio_entries(mut bytes: &[u8]) -> Vec<(String, CpioEntry)> {
    let mut entries = Vec::new();
    let mut position = 0;
    loop {
        let header = &bytes[..110];
        assert_eq!(&header[..6], b"070701");
        let field = |i: usize| {
            let text = std::str::from_utf8(&header[6 + 8 * i..14 + 8 * i]).unwrap();
            u64::from_str_radix(text, 16).unwrap()
        };
        let name_len = usize::try_from(field(11)).unwrap();
        let len = usize::try_from(field(6)).unwrap();
        assert_eq!(bytes[110 + name_len - 1], 0);
        let name = String::from_utf8(bytes[110..110 + name_len - 1].to_vec()).unwrap();
        if name == "TRAILER!!!" {
            let end = position + 110 + name_len;
            assert!(bytes[110 + name_len..].iter().all(|b| *b == 0));
            assert_eq!((end + bytes.len() - 110 - name_len) % 4096, 0);
            return entries;
        }
        let body = (110 + name_len).next_multiple_of(4);
        let next = (body + len).next_multiple_of(4);
        let entry = CpioEntry {
            inode: field(0),
            mode: field(1),
            uid: field(2),
            gid: field(3),
            links: field(4),
            mtime: field(5),
            device: (field(9), field(10)),
            body: bytes[body..body + len].to_vec(),
        };
        entries.push((name, entry));
        bytes = &bytes[next..];
        position += next;
    }
}

pub(crate) fn cpio_map(bytes: &[u8]) -> BTreeMap<String, CpioEntry> {
    cpio_entries(bytes).into_iter().collect()
}

/// A kernel module: an ELF file with `.modinfo` and a device table in `.rodata`.
#[cfg(feature = "build")]
pub(crate) fn module(name: &str, depends: &str, device_ids: &[u32]) -> Vec<u8> {
    let mut modinfo = format!("license=GPL\0name={name}\0");
    for id in device_ids {
        modinfo.push_str(&format!("alias=virtio:d{id:08X}v*\0"));
    }
    modinfo.push_str(&format!(
        "depends={depends}\0vermagic=6.12.0-test SMP mod_unload \0"
    ));
    let mut table: Vec<u8> = vec![0xaa; 24];
    for id in device_ids {
        table.extend_from_slice(&id.to_le_bytes());
        table.extend_from_slice(&u32::MAX.to_le_bytes());
    }
    table.extend_from_slice(&[0; 8]);
    // The same bytes in code are no table.
    let code = [33_u32.to_le_bytes(), u32::MAX.to_le_bytes()].concat();
    let names = b"\0.shstrtab\0.modinfo\0.rodata\0.text\0";
    let sections: [(u32, u32, u64, &[u8]); 4] = [
        (1, 3, 0, names),
        (11, 1, 2, modinfo.as_bytes()),
        (20, 1, 2, &table),
        (28, 1, 6, &code),
    ];
    let mut headers = vec![0; 64];
    let mut elf = vec![0; 64];
    for (name, kind, flags, data) in sections {
        let mut header = [0; 64];
        header[..4].copy_from_slice(&name.to_le_bytes());
        header[4..8].copy_from_slice(&kind.to_le_bytes());
        header[8..16].copy_from_slice(&flags.to_le_bytes());
        header[0x18..0x20].copy_from_slice(&u64::try_from(elf.len()).unwrap().to_le_bytes());
        header[0x20..0x28].copy_from_slice(&u64::try_from(data.len()).unwrap().to_le_bytes());
        headers.extend_from_slice(&header);
        elf.extend_from_slice(data);
    }
    elf[..6].copy_from_slice(b"\x7fELF\x02\x01");
    elf[18] = 62;
    let start = u64::try_from(elf.len()).unwrap();
    elf[0x28..0x30].copy_from_slice(&start.to_le_bytes());
    elf[0x3a..0x40].copy_from_slice(&[64, 0, 5, 0, 1, 0]);
    elf.extend_from_slice(&headers);
    elf
}

/// The error and its causes, as a program prints them.
#[cfg(feature = "build")]
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text = format!("{text}: {cause}");
        source = cause.source();
    }
    text
}
