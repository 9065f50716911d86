//! A device's life as its owner sees it: start, QEMU comes and goes, stop.

use std::{
    fs,
    io::Write,
    os::unix::net::UnixStream,
    path::Path,
    time::{Duration, Instant},
};

use tempfile::TempDir;

use crate::{
    nsm_device,
    vhost_user::{FrontendSocket, Handle, ServeError, StartError},
    vsock::{Device, VsockSpec},
};

fn spec(directory: &Path, guest_cid: u32) -> VsockSpec {
    VsockSpec {
        guest_cid,
        uds_path: directory.join("v.sock"),
        frontend: FrontendSocket::bind(directory.join("qemu")).unwrap(),
        services: Vec::new(),
    }
}

fn start() -> (TempDir, Handle) {
    let directory = tempfile::tempdir().unwrap();
    let handle = Device::start(spec(directory.path(), 4)).unwrap();
    (directory, handle)
}

fn files(directory: &TempDir) -> usize {
    fs::read_dir(directory.path()).unwrap().count()
}

fn wait_for(what: &str, mut done: impl FnMut() -> bool) {
    let end = Instant::now() + Duration::from_secs(5);
    while !done() {
        assert!(
            Instant::now() < end,
            "{what} did not happen within five seconds"
        );
        std::thread::sleep(Duration::from_millis(1));
    }
}

#[test]
fn a_device_that_qemu_never_reaches_stops_and_leaves_nothing() {
    let (directory, handle) = start();
    assert_eq!(files(&directory), 2);
    assert!(!handle.is_finished());
    handle.stop().unwrap();
    assert_eq!(files(&directory), 0);
}

#[test]
fn only_one_front_end_can_ever_attach() {
    let (directory, handle) = start();
    let socket = directory.path().join("qemu");
    let _qemu = UnixStream::connect(&socket).unwrap();
    wait_for("the socket's removal", || !socket.exists());
    handle.stop().unwrap();
    assert_eq!(files(&directory), 0);
}

#[test]
fn a_device_ends_with_its_qemu() {
    let (directory, handle) = start();
    drop(UnixStream::connect(directory.path().join("qemu")).unwrap());
    wait_for("the end", || handle.is_finished());
    assert_eq!(files(&directory), 0);
    handle.stop().unwrap();
}

#[test]
fn a_front_end_that_talks_nonsense_ends_the_device_with_an_error() {
    let (directory, handle) = start();
    let mut qemu = UnixStream::connect(directory.path().join("qemu")).unwrap();
    qemu.write_all(&[0xff; 64]).unwrap();
    wait_for("the end", || handle.is_finished());
    let error = handle.stop().unwrap_err();
    assert!(matches!(error, ServeError::Protocol(_)), "{error:?}");
    assert_eq!(files(&directory), 0);
}

#[test]
fn dropping_the_handle_stops_the_device() {
    let (directory, handle) = start();
    let _qemu = UnixStream::connect(directory.path().join("qemu")).unwrap();
    drop(handle);
    assert_eq!(files(&directory), 0);
}

#[test]
fn cids_with_a_meaning_of_their_own_are_refused() {
    for cid in [0, 1, 2, 3, u32::MAX] {
        let directory = tempfile::tempdir().unwrap();
        let error = Device::start(spec(directory.path(), cid)).unwrap_err();
        assert!(matches!(error, StartError::ReservedCid(refused) if refused == cid));
        assert_eq!(files(&directory), 0);
    }
}

#[test]
fn a_path_that_is_taken_is_named_and_left_alone() {
    let (directory, handle) = start();
    let other = tempfile::tempdir().unwrap();
    let taken = directory.path().join("v.sock");
    let spec = VsockSpec {
        uds_path: taken.clone(),
        ..spec(other.path(), 4)
    };
    let error = Device::start(spec).unwrap_err();
    assert!(
        error.to_string().contains(taken.to_str().unwrap()),
        "{error}"
    );
    assert!(taken.exists());
    handle.stop().unwrap();
}

#[test]
fn the_nsm_device_ends_with_its_qemu_too() {
    let directory = tempfile::tempdir().unwrap();
    let socket = FrontendSocket::bind(directory.path().join("nsm")).unwrap();
    let handle = nsm_device::Device::start(socket, Box::new(|_| Vec::new())).unwrap();
    drop(UnixStream::connect(directory.path().join("nsm")).unwrap());
    wait_for("the end", || handle.is_finished());
    assert_eq!(files(&directory), 0);
    handle.stop().unwrap();
}
