//! The archive writer: fields, links, limits.

use std::io::{self, Read};

use enclos_eif::cpio::{Archive, Attributes, CpioError, Link, Special};
use enclos_eif::ramdisk;

use crate::common::cpio_entries;

fn attributes() -> Attributes {
    Attributes {
        mode: 0o640,
        uid: 1000,
        gid: 100,
    }
}

#[test]
fn every_kind_of_entry_is_written_as_it_is() {
    let mut archive = Archive::new(Vec::new(), 86_400);
    archive.directory(b"d", Attributes::root(0o1777)).unwrap();
    archive
        .file(b"d/file", attributes(), 5, &mut &b"hello"[..])
        .unwrap();
    archive.symlink(b"d/link", attributes(), b"file").unwrap();
    let device = Special::Character { major: 5, minor: 1 };
    archive.special(b"d/tty", attributes(), device).unwrap();
    archive
        .special(
            b"d/disk",
            attributes(),
            Special::Block { major: 8, minor: 0 },
        )
        .unwrap();
    archive
        .special(b"d/pipe", attributes(), Special::Fifo)
        .unwrap();
    archive
        .special(b"d/sock", attributes(), Special::Socket)
        .unwrap();
    let bytes = archive.finish().unwrap();
    assert_eq!(bytes.len() % 4096, 0);
    assert!(bytes.starts_with(&ramdisk::unpack(&bytes, 1 << 20).unwrap()));
    let entries = cpio_entries(&bytes);
    let modes: Vec<_> = entries.iter().map(|(_, e)| e.mode).collect();
    assert_eq!(
        modes,
        [
            0o41_777, 0o100_640, 0o120_640, 0o20_640, 0o60_640, 0o10_640, 0o140_640
        ]
    );
    let inodes: Vec<_> = entries.iter().map(|(_, e)| e.inode).collect();
    assert_eq!(inodes, [1, 2, 3, 4, 5, 6, 7]);
    assert!(entries.iter().all(|(_, e)| e.mtime == 86_400));
    assert_eq!(entries[1].1.body, b"hello");
    assert_eq!((entries[1].1.uid, entries[1].1.gid), (1000, 100));
    assert_eq!(entries[2].1.body, b"file");
    assert_eq!((entries[3].1.device, entries[4].1.device), ((5, 1), (8, 0)));
}

#[test]
fn the_file_type_is_the_writers() {
    let mut archive = Archive::new(Vec::new(), 0);
    archive
        .file(b"f", Attributes::root(0o170_777), 0, &mut io::empty())
        .unwrap();
    assert_eq!(
        cpio_entries(&archive.finish().unwrap())[0].1.mode,
        0o100_777
    );
}

#[test]
fn names_of_one_file_share_its_inode() {
    let mut archive = Archive::new(Vec::new(), 0);
    let link = Link {
        inode: archive.reserve_inode(),
        names: 2,
    };
    archive.link(b"a", attributes(), link).unwrap();
    archive.file(b"b", attributes(), 1, &mut &b"b"[..]).unwrap();
    archive
        .last_link(b"c", attributes(), link, 1, &mut &b"c"[..])
        .unwrap();
    let entries = cpio_entries(&archive.finish().unwrap());
    let [a, b, c] = &entries[..] else {
        panic!("{entries:?}")
    };
    assert_eq!((a.1.inode, a.1.links, a.1.body.len()), (c.1.inode, 2, 0));
    assert_eq!((b.1.links, c.1.body.as_slice()), (1, &b"c"[..]));
    assert_ne!(a.1.inode, b.1.inode);
}

#[test]
fn a_body_has_the_announced_length() {
    for (announced, body) in [(3, &b"four"[..]), (5, b"four"), (0, b"x"), (1, b"")] {
        let mut archive = Archive::new(Vec::new(), 0);
        let error = archive
            .file(b"f", attributes(), announced, &mut &body[..])
            .unwrap_err();
        assert!(matches!(error, CpioError::BodyLength { expected, .. } if expected == announced));
    }
}

#[test]
fn four_gibibytes_do_not_fit() {
    let mut archive = Archive::new(io::sink(), 0);
    let most = u64::from(u32::MAX);
    let error = archive
        .file(b"f", attributes(), most + 1, &mut io::empty())
        .unwrap_err();
    assert!(matches!(error, CpioError::Field { field: "length", value, .. } if value == most + 1));
    let error = archive
        .file(b"f", attributes(), most, &mut io::empty())
        .unwrap_err();
    assert!(
        matches!(error, CpioError::BodyLength { .. }),
        "the length fits, the body is not there"
    );
}

#[test]
fn paths_are_what_linux_unpacks() {
    let mut archive = Archive::new(Vec::new(), 0);
    for path in [&b""[..], b"/absolute", b"nul\0", &[b'x'; 4096]] {
        let error = archive.directory(path, attributes()).unwrap_err();
        assert!(matches!(error, CpioError::Path { .. }));
    }
    archive.directory(&[b'x'; 4095], attributes()).unwrap();
}

#[test]
fn errors_of_either_side_name_the_file() {
    struct Broken;
    impl Read for Broken {
        fn read(&mut self, _: &mut [u8]) -> io::Result<usize> {
            Err(io::ErrorKind::PermissionDenied.into())
        }
    }
    let mut archive = Archive::new(Vec::new(), 0);
    let error = archive
        .file(b"etc/shadow", attributes(), 1, &mut Broken)
        .unwrap_err();
    assert!(matches!(error, CpioError::Io { path, .. } if path == "etc/shadow"));
    let mut small = [0; 64];
    let mut full = Archive::new(&mut small[..], 0);
    let error = full.directory(b"d", attributes()).unwrap_err();
    assert!(matches!(error, CpioError::Io { .. }));
}
