//! Images that must not run, through the real daemon.

use std::fs::File;
use std::os::fd::OwnedFd;

use enclos_api::control::{Request, RunRequest};

use crate::harness::{Daemon, SILENT, ask, file, image, image_saying, request};

fn refused(daemon: &Daemon, bytes: &[u8]) -> (u8, String) {
    let failure = daemon.run(request(), &file(bytes)).unwrap_err();
    (failure.code, failure.message)
}

#[test]
fn broken_images_are_refused_with_a_reason_and_leave_nothing() {
    let daemon = Daemon::start(SILENT, 500);
    let good = image();
    let mut flipped = good.clone();
    flipped[600] ^= 1;
    let mut kind = good.clone();
    kind[549] = 9;
    let mut version = good.clone();
    version[5] = 5;
    let mut trailing = good.clone();
    trailing.push(0);
    let truncated = &good[..good.len() - 1];
    for (what, bytes) in [
        ("an empty file", &b""[..]),
        (
            "another kind of file",
            &b"PK\x03\x04 not an image at all"[..],
        ),
        ("half a header", &good[..300]),
        ("a truncated image", truncated),
        ("a flipped bit", &flipped),
        ("an unknown section", &kind),
        ("a later version", &version),
        ("trailing bytes", &trailing),
    ] {
        let (code, message) = refused(&daemon, bytes);
        assert_eq!(code, 35, "{what}: {message}");
        assert!(
            message.starts_with("the image is not a valid EIF: "),
            "{what}: {message}"
        );
    }
    daemon.assert_clean();
}

#[test]
fn what_an_image_says_of_itself_is_bounded_and_the_list_can_always_be_told() {
    let daemon = Daemon::start(SILENT, 600_000);
    let saying = |len| image_saying(serde_json::json!({ "note": "x".repeat(len) }));
    let (code, message) = refused(&daemon, &saying(64 << 10));
    assert_eq!(code, 35, "{message}");
    assert!(message.contains("may have 65536"), "{message}");
    // Together more than a frame holds.
    let image = file(&saying(60_000));
    let small = || RunRequest {
        memory_mib: 64,
        ..request()
    };
    let starting: Vec<_> = (0..20)
        .map(|_| daemon.run_in_background(small(), &image))
        .collect();
    crate::harness::eventually("all to be listed", || daemon.describe().len() == 20);
    for enclave in daemon.describe() {
        assert!(enclave.image.to_string().len() > 60_000);
        daemon.terminate(&enclave.id).unwrap();
    }
    for started in starting {
        assert!(
            started.join().unwrap().is_err(),
            "it was ended at its start"
        );
    }
    daemon.assert_clean();
}

/// An image signed by a key whose certificate is valid in these years.
fn signed(from: i32, to: i32) -> Vec<u8> {
    let key = rcgen::KeyPair::generate().unwrap();
    let mut params = rcgen::CertificateParams::default();
    params.not_before = rcgen::date_time_ymd(from, 1, 1);
    params.not_after = rcgen::date_time_ymd(to, 1, 1);
    let certificate = params.self_signed(&key).unwrap();
    let signer = enclos_eif::Signer::from_pem(&key.serialize_pem(), &certificate.pem()).unwrap();
    let mut out = std::io::Cursor::new(Vec::new());
    enclos_eif::sign_image(&mut std::io::Cursor::new(image()), &signer, &mut out).unwrap();
    out.into_inner()
}

/// AWS's tool checks that a signature verifies and not what it is of; the hypervisor does both.
#[test]
fn a_signature_has_to_cover_the_image_and_be_valid_today() {
    let daemon = Daemon::start(SILENT, 500);
    let mut other = signed(2000, 2100);
    let at = other
        .windows(5)
        .position(|bytes| bytes == b"quiet")
        .unwrap();
    other[at..at + 5].copy_from_slice(b"debug");
    let crc = crc32fast::hash(&[&other[..0x220], &other[0x224..]].concat());
    other[0x220..0x224].copy_from_slice(&crc.to_be_bytes());
    for (what, bytes) in [
        ("does not cover PCR0", other),
        ("expired", signed(2000, 2001)),
        ("not valid before", signed(2099, 2100)),
    ] {
        let (code, message) = refused(&daemon, &bytes);
        assert_eq!(code, 59, "{what}: {message}");
        assert!(message.contains(what), "{what}: {message}");
    }
    daemon.assert_clean();
}

#[test]
fn what_is_no_file_is_not_even_read() {
    let daemon = Daemon::start(SILENT, 500);
    let (reader, _writer) = rustix::pipe::pipe().unwrap();
    let failure = daemon.run(request(), &File::from(reader)).unwrap_err();
    assert_eq!(failure.code, 19, "{failure}");
    let device = File::open("/dev/zero").unwrap();
    assert_eq!(daemon.run(request(), &device).unwrap_err().code, 19);
    let write_only = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(write_only.path(), image()).unwrap();
    let write_only = File::options().write(true).open(write_only.path()).unwrap();
    assert_eq!(daemon.run(request(), &write_only).unwrap_err().code, 19);
    let failure = daemon.ask(&Request::Run(request())).unwrap_err();
    assert_eq!(failure.code, 14, "no descriptor at all: {failure}");
    daemon.assert_clean();
}

#[test]
fn an_image_larger_than_any_enclave_is_not_copied_to_its_end() {
    let daemon = Daemon::start(SILENT, 500);
    let huge = tempfile::tempfile().unwrap();
    huge.set_len(4 << 30).unwrap();
    let failure = daemon.run(request(), &huge).unwrap_err();
    assert_eq!(failure.code, 27, "{failure}");
    daemon.assert_clean();
}

#[test]
fn an_image_that_changes_after_it_was_sent_changes_nothing() {
    let daemon = Daemon::start(SILENT, 60_000);
    let source = file(&image());
    let running = daemon.run_in_background(request(), &source);
    let enclave = daemon.launched();
    rustix::io::pwrite(&source, b"changed", 600).unwrap();
    let measured = enclos_eif::Eif::parse(&mut std::io::Cursor::new(image()))
        .and_then(|eif| enclos_eif::measure(&mut std::io::Cursor::new(image()), &eif))
        .unwrap();
    assert_eq!(enclave.measurements.pcr0, measured.pcr0.to_string());
    daemon.terminate(&enclave.id).unwrap();
    assert!(running.join().unwrap().is_err());
}

#[test]
fn several_descriptors_in_one_message_do_not_confuse_anyone() {
    let daemon = Daemon::start(SILENT, 500);
    let stream = daemon.connect();
    let request = RunRequest {
        memory_mib: 1,
        ..request()
    };
    let bytes = enclos_api::frame::encode(&Request::Run(request)).unwrap();
    let files: Vec<OwnedFd> = (0..3).map(|_| file(&image()).into()).collect();
    send_with(&stream, &bytes, &files);
    let reply = enclos_hypervisor::wire::receive::<enclos_api::control::Reply>(
        &stream,
        crate::harness::LIMIT,
    );
    let reply = reply.unwrap().0;
    assert!(
        matches!(&reply, enclos_api::control::Reply::Error(failure) if failure.code == 26),
        "the first was taken as the image: {reply:?}"
    );
    assert!(ask(&daemon.connect(), &Request::Describe, None).is_ok());
}

fn send_with(stream: &std::os::unix::net::UnixStream, bytes: &[u8], files: &[OwnedFd]) {
    use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags};
    use std::os::fd::AsFd;
    let borrowed: Vec<_> = files.iter().map(AsFd::as_fd).collect();
    let mut space = [std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(3))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    assert!(control.push(SendAncillaryMessage::ScmRights(&borrowed)));
    let slices = [std::io::IoSlice::new(bytes)];
    rustix::net::sendmsg(stream, &slices, &mut control, SendFlags::empty()).unwrap();
}
