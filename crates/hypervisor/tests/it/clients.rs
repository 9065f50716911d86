//! Clients that are hostile, slow, or somebody else.

use std::io::Write;
use std::os::unix::net::UnixStream;
use std::thread;

use enclos_api::control::{Failure, Reply, Request, Selector, Success};
use enclos_hypervisor::wire;
use rustix::process::{Gid, Uid};

use crate::harness::{Daemon, LIMIT, SILENT, ask, drain, file, image, request};

fn answer_to(daemon: &Daemon, bytes: &[u8]) -> Failure {
    let mut stream = daemon.connect();
    stream.write_all(bytes).unwrap();
    stream.shutdown(std::net::Shutdown::Write).unwrap();
    match wire::receive::<Reply>(&stream, LIMIT).unwrap().0 {
        Reply::Error(failure) => failure,
        other => panic!("{other:?}"),
    }
}

fn framed(body: &[u8]) -> Vec<u8> {
    let length = u32::try_from(body.len()).unwrap().to_le_bytes();
    [&length, body].concat()
}

#[test]
fn malformed_requests_are_answered_with_a_number() {
    let daemon = Daemon::start(SILENT, 500);
    for body in [
        &b"{"[..],
        b"[]",
        b"{\"op\":\"dance\"}",
        b"{\"op\":\"terminate\"}",
        b"\xff\xfe",
    ] {
        let failure = answer_to(&daemon, &framed(body));
        assert_eq!(failure.code, 17, "{failure}");
    }
    let failure = answer_to(&daemon, &u32::MAX.to_le_bytes());
    assert_eq!(failure.code, 17, "an announced 4 GiB: {failure}");
    let failure = answer_to(&daemon, &framed(b"12345")[..7]);
    assert_eq!(failure.code, 14, "a frame torn in the middle: {failure}");
    daemon.assert_clean();
}

#[test]
fn silent_clients_cost_nobody_else_anything_and_are_dropped() {
    let daemon = Daemon::start(SILENT, 500);
    let silent: Vec<UnixStream> = (0..20).map(|_| daemon.connect()).collect();
    daemon.assert_clean();
    for stream in silent {
        let bytes = drain(&stream);
        assert!(
            !bytes.is_empty(),
            "told why before the connection was closed"
        );
    }
}

#[test]
fn a_crowd_of_connections_is_turned_away_and_does_no_harm() {
    let daemon = Daemon::start(SILENT, 500);
    let crowd: Vec<UnixStream> = (0..400)
        .filter_map(|_| UnixStream::connect(daemon.socket()).ok())
        .collect();
    drop(crowd);
    crate::harness::eventually("the daemon to serve again", || {
        let stream = daemon.connect();
        let sent = wire::send(&stream, &Request::Describe, None, LIMIT);
        sent.is_ok()
            && matches!(
                wire::receive::<Reply>(&stream, LIMIT),
                Ok((Reply::Ok(_), _))
            )
    });
    daemon.assert_clean();
}

/// A connection made by user 65534. Credentials belong to the thread that connects.
fn connect_as_nobody(daemon: &Daemon) -> UnixStream {
    let socket = daemon.socket();
    thread::spawn(move || {
        let (uid, gid) = (Uid::from_raw(65534), Gid::from_raw(65534));
        rustix::thread::set_thread_res_gid(gid, gid, gid).unwrap();
        rustix::thread::set_thread_res_uid(uid, uid, uid).unwrap();
        UnixStream::connect(socket).unwrap()
    })
    .join()
    .unwrap()
}

#[test]
fn other_users_see_everything_and_control_their_own() {
    if !rustix::process::geteuid().is_root() {
        // Only root can be two users; the rule itself has a unit test in the registry.
        return;
    }
    let daemon = Daemon::start(SILENT, 600_000);
    let image = file(&image());
    let roots = daemon.run_in_background(request(), &image);
    let roots_enclave = daemon.launched();
    let nobody = |request: &Request| ask(&connect_as_nobody(&daemon), request, None);
    let seen = crate::harness::list(&connect_as_nobody(&daemon));
    assert_eq!(seen.len(), 1);
    let enclave = Selector::Id(roots_enclave.id.clone());
    for refused in [
        Request::Terminate {
            enclave: enclave.clone(),
            grace_s: 0,
        },
        Request::Console {
            enclave: enclave.clone(),
        },
    ] {
        let failure = nobody(&refused).unwrap_err();
        assert_eq!(failure.code, 14, "{failure}");
        assert!(failure.message.contains("user 65534"), "{failure}");
    }
    daemon.terminate(&roots_enclave.id).unwrap();
    assert!(roots.join().unwrap().is_err());

    let (stream, copy) = (connect_as_nobody(&daemon), image.try_clone().unwrap());
    let own = thread::spawn(move || ask(&stream, &Request::Run(request()), Some(&copy)));
    let enclave = daemon.launched();
    assert_eq!(enclave.owner_uid, 65534);
    let dir = std::fs::metadata(enclave.vsock.parent().unwrap()).unwrap();
    assert_eq!(
        std::os::unix::fs::MetadataExt::gid(&dir),
        65534,
        "the requester's group"
    );
    let stop = Request::Terminate {
        enclave: Selector::Id(enclave.id),
        grace_s: 0,
    };
    assert!(matches!(nobody(&stop), Ok(Success::Terminated { .. })));
    assert!(own.join().unwrap().is_err());
    daemon.assert_clean();
}
