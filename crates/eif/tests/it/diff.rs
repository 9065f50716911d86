//! Comparing images, and listing what is in ramdisks.

use std::collections::BTreeMap;
use std::io::Cursor;

use enclos_eif::cpio::{Archive, Attributes, Link, Special};
use enclos_eif::ramdisk::RamdiskError;
use enclos_eif::{Builder, Change, Difference, Entry, Input, Metadata, diff, list};
use proptest::prelude::*;

use crate::common::{PACKS, kernel, metadata, pack};

const LIMIT: u64 = 1 << 24;

/// What an image is made of, to be changed one by one.
#[derive(Clone)]
struct Parts {
    kernel: Vec<u8>,
    cmdline: &'static str,
    runtime: Vec<(&'static str, &'static str)>,
    config: &'static str,
    app: Vec<(&'static str, &'static str)>,
    epoch: u32,
    metadata: Metadata,
}

impl Parts {
    fn new() -> Self {
        Self {
            kernel: kernel(),
            cmdline: "quiet",
            runtime: vec![("init", "init"), ("sbin", "x")],
            config: r#"{"process":{"argv":["/app"],"env":["A=1","B=2"]},"ingress":[5000]}"#,
            app: vec![("rootfs/app", "one"), ("rootfs/data", "two")],
            epoch: 0,
            metadata: metadata(),
        }
    }

    fn image(&self) -> Vec<u8> {
        let mut out = Cursor::new(Vec::new());
        let app = [&[("enclos/config.json", self.config)], self.app.as_slice()].concat();
        let builder = Builder::new()
            .kernel(self.kernel.clone())
            .cmdline(self.cmdline)
            .metadata(self.metadata.clone())
            .ramdisk(archive(&self.runtime, self.epoch))
            .ramdisk(archive(&app, self.epoch));
        builder.write(&mut out).unwrap();
        out.into_inner()
    }
}

fn archive<N: AsRef<[u8]>>(files: &[(N, &str)], epoch: u32) -> Vec<u8> {
    let mut archive = Archive::new(Vec::new(), epoch);
    for (name, body) in files {
        let len = u64::try_from(body.len()).unwrap();
        let attributes = Attributes::root(0o644);
        archive
            .file(name.as_ref(), attributes, len, &mut body.as_bytes())
            .unwrap();
    }
    archive.finish().unwrap()
}

fn compare(first: &[u8], second: &[u8]) -> Difference {
    diff(&mut Cursor::new(first), &mut Cursor::new(second)).unwrap()
}

/// The changes that `edit` makes; the registers that moved have to be those of their inputs.
fn changes(edit: impl FnOnce(&mut Parts)) -> Vec<Change> {
    let mut parts = Parts::new();
    let first = parts.image();
    edit(&mut parts);
    let difference = compare(&first, &parts.image());
    let moved = difference
        .registers()
        .into_iter()
        .filter(|r| r.moved())
        .map(|r| r.index);
    let mut expected: Vec<_> = difference
        .changes
        .iter()
        .flat_map(|c| c.input.registers())
        .copied()
        .collect();
    expected.sort_unstable();
    expected.dedup();
    assert_eq!(moved.collect::<Vec<_>>(), expected);
    difference.changes
}

fn named(changes: &[Change]) -> Vec<(Input, &str)> {
    changes
        .iter()
        .map(|change| (change.input, change.name.as_str()))
        .collect()
}

#[test]
fn equal_images_have_no_changes() {
    assert_eq!(changes(|_| ()), []);
}

#[test]
fn each_input_is_named_with_the_registers_that_it_moves() {
    type Case = (fn(&mut Parts), Input, &'static str);
    let cases: [Case; 6] = [
        (
            |p| p.kernel = crate::common::bzimage(crate::common::Pack::Gzip, b"\x7fELF"),
            Input::Kernel,
            "",
        ),
        (|p| p.cmdline = "quiet panic=1", Input::CommandLine, ""),
        (|p| p.runtime[0].1 = "another init", Input::Runtime, "/init"),
        (
            |p| p.config = r#"{"process":{"argv":["/app"],"env":["A=1","B=3"]},"ingress":[5000]}"#,
            Input::Configuration,
            "/process/env/1",
        ),
        (|p| p.app[0].1 = "two", Input::Application, "/rootfs/app"),
        (
            |p| p.metadata.image_name = "other".into(),
            Input::Metadata,
            "/ImageName",
        ),
    ];
    for (edit, input, name) in cases {
        let found = changes(edit);
        assert_eq!(named(&found), [(input, name)]);
        assert!(found[0].before.is_some() && found[0].after.is_some());
    }
}

#[test]
fn a_configuration_that_takes_the_place_of_the_first_shows() {
    let found = changes(|parts| {
        parts
            .app
            .push(("enclos/config.json", r#"{"ingress":[22]}"#))
    });
    let names = named(&found);
    assert!(names.contains(&(Input::Application, "/enclos/config.json")));
    assert!(names.contains(&(Input::Configuration, "/process/argv/0")));
}

#[test]
fn names_that_are_no_text_are_told_apart() {
    let image = |first: &str| {
        let mut out = Cursor::new(Vec::new());
        Builder::new()
            .kernel(kernel())
            .cmdline("quiet")
            .metadata(metadata())
            .ramdisk(archive(&[("init", "init")], 0))
            .ramdisk(archive(&[(b"a\xfe", first), (b"a\xff", "same")], 0))
            .write(&mut out)
            .unwrap();
        out.into_inner()
    };
    let found = compare(&image("one"), &image("two")).changes;
    assert_eq!(named(&found), [(Input::Application, "/a\\xfe")]);
}

#[test]
fn files_come_and_go() {
    let found = changes(|parts| {
        parts.app.remove(1);
        parts.app.push(("rootfs/new", "three"));
    });
    assert_eq!(
        named(&found),
        [
            (Input::Application, "/rootfs/data"),
            (Input::Application, "/rootfs/new")
        ]
    );
    assert_eq!(
        (found[0].after.as_ref(), found[1].before.as_ref()),
        (None, None)
    );
}

#[test]
fn times_are_measured_and_named() {
    let found = changes(|parts| parts.epoch = 1);
    assert!(
        found
            .iter()
            .all(|change| change.after.as_ref().unwrap().ends_with("time 1"))
    );
}

/// The same files in another order are another archive, and no file says so.
#[test]
fn what_no_file_explains_is_told_too() {
    let found = changes(|parts| parts.app.swap(0, 1));
    let name = "(order, padding or packing of its archive)";
    assert_eq!(named(&found), [(Input::Application, name)]);
}

#[cfg(feature = "build")]
#[test]
fn a_signer_moves_pcr8() {
    let parts = Parts::new();
    let key = rcgen::KeyPair::generate().unwrap();
    let certificate = rcgen::CertificateParams::default()
        .self_signed(&key)
        .unwrap();
    let signer = enclos_eif::Signer::from_pem(&key.serialize_pem(), &certificate.pem()).unwrap();
    let mut signed = Cursor::new(Vec::new());
    enclos_eif::sign_image(&mut Cursor::new(parts.image()), &signer, &mut signed).unwrap();
    let difference = compare(&parts.image(), &signed.into_inner());
    assert_eq!(named(&difference.changes), [(Input::Signer, "")]);
    assert_eq!(difference.changes[0].before, None);
    let moved = difference
        .registers()
        .into_iter()
        .filter(|register| register.moved());
    assert_eq!(
        moved.map(|register| register.index).collect::<Vec<_>>(),
        [8]
    );
}

fn listed(bytes: &[u8]) -> Result<BTreeMap<Vec<u8>, Entry>, RamdiskError> {
    list(&mut &*bytes, LIMIT)
}

#[test]
fn a_listing_has_every_kind_of_file() {
    let mut out = Archive::new(Vec::new(), 7);
    out.directory(b"dev", Attributes::root(0o755)).unwrap();
    out.special(
        b"dev/x",
        Attributes::root(0o600),
        Special::Character { major: 5, minor: 1 },
    )
    .unwrap();
    out.symlink(
        b"link",
        Attributes {
            mode: 0o777,
            uid: 1,
            gid: 2,
        },
        b"target",
    )
    .unwrap();
    let link = Link {
        inode: out.reserve_inode(),
        names: 2,
    };
    out.link(b"one", Attributes::root(0o644), link).unwrap();
    out.last_link(
        b"two",
        Attributes::root(0o644),
        link,
        4,
        &mut b"body".as_slice(),
    )
    .unwrap();
    let bytes = out.finish().unwrap();
    let entries = listed(&bytes).unwrap();
    let names: Vec<_> = entries
        .keys()
        .map(|name| std::str::from_utf8(name).unwrap())
        .collect();
    assert_eq!(names, ["dev", "dev/x", "link", "one", "two"]);
    assert_eq!(entries[b"dev/x".as_slice()].device, (5, 1));
    let link = entries[b"link".as_slice()];
    assert_eq!(
        (link.mode, link.uid, link.gid, link.mtime, link.len),
        (0o120_777, 1, 2, 7, 6)
    );
    let (one, two) = (entries[b"one".as_slice()], entries[b"two".as_slice()]);
    assert_eq!(
        (one.len, one.digest),
        (4, two.digest),
        "names of one file have its content"
    );
    for packing in PACKS {
        assert_eq!(
            listed(&pack(packing, &bytes)).unwrap(),
            entries,
            "{packing:?}"
        );
    }
}

#[test]
fn the_last_of_two_members_counts() {
    let bytes = [
        archive(&[("a", "1"), ("b", "1")], 0),
        archive(&[("a", "22")], 0),
    ]
    .concat();
    let entries = listed(&bytes).unwrap();
    assert_eq!(
        (entries[b"a".as_slice()].len, entries[b"b".as_slice()].len),
        (2, 1)
    );
}

#[test]
fn a_listing_stops_at_its_limit_and_at_the_end_of_the_data() {
    let bytes = archive(&[("a", "1")], 0);
    let unpacked = enclos_eif::ramdisk::unpack(&bytes, LIMIT).unwrap();
    let limit = u64::try_from(unpacked.len()).unwrap();
    assert!(list(&mut bytes.as_slice(), limit).is_ok());
    let refused = list(&mut bytes.as_slice(), limit - 1);
    assert!(matches!(refused, Err(RamdiskError::TooLarge { .. })));
    for len in 1..230 {
        assert!(listed(&bytes[..len]).is_err(), "{len}");
    }
    assert!(matches!(listed(&[0; 100]), Err(RamdiskError::Empty)));
}

proptest! {
    /// Whatever the bytes, listing ends, with what the unpacker says of them.
    #[test]
    fn hostile_ramdisks_are_listed_or_refused(position in 0_usize..400, byte: u8) {
        let mut bytes = archive(&[("a", "1"), ("b", "some more")], 0);
        bytes[position] = byte;
        let unpacked = enclos_eif::ramdisk::unpack(&bytes, LIMIT);
        let listed = listed(&bytes);
        prop_assert!(unpacked.is_ok() || listed.is_err());
    }
}
