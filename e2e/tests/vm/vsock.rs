//! The vsock through a real guest: no byte lost, nobody disturbed by nonsense.

use std::io::{Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use enclos_e2e::stack::Enclave;
use enclos_e2e::{vsock, wait};

use crate::Fixture;

const ECHO: u32 = 7000;

fn with_echo(test: impl FnOnce(&Enclave<'_>, PathBuf)) {
    let fixture = Fixture::new();
    let image = fixture
        .builder()
        .test_program("echo", &["echo"], "")
        .unwrap();
    let enclave = fixture.stack.host.run(&image, &[]).unwrap();
    let path = enclave.describe().unwrap().vsock;
    wait::until("the guest echoes", Duration::from_secs(60), || {
        vsock::echo(&path, ECHO, 0, 1).map(Some)
    })
    .unwrap();
    test(&enclave, path);
}

#[test]
fn a_thousand_streams_one_after_the_other_lose_no_byte() {
    with_echo(|_, path| {
        for number in 0..1_000 {
            let len = usize::try_from(number * 37 % 20_000).unwrap();
            vsock::echo(&path, ECHO, number, len).unwrap();
        }
    });
}

#[test]
fn sixty_four_streams_at_once_lose_no_byte() {
    with_echo(|_, path| {
        std::thread::scope(|scope| {
            let streams: Vec<_> = (0..64)
                .map(|number| {
                    (
                        number,
                        scope.spawn({
                            let path = path.clone();
                            move || vsock::echo(&path, ECHO, number, 1 << 20)
                        }),
                    )
                })
                .collect();
            for (number, stream) in streams {
                stream
                    .join()
                    .unwrap()
                    .unwrap_or_else(|error| panic!("stream {number}: {error:#}"));
            }
        });
    });
}

#[test]
fn nonsense_on_the_hosts_side_disturbs_nobody() {
    with_echo(|_, path| {
        let long = [b'A'; 100_000];
        let nonsense: [&[u8]; 7] = [
            b"",
            b"\n",
            b"GET / HTTP/1.1\r\n\r\n",
            b"CONNECT\n",
            b"CONNECT 99999999999999\n",
            b"CONNECT -1\n",
            &long,
        ];
        for bytes in nonsense {
            let mut stream = UnixStream::connect(&path).unwrap();
            stream
                .set_read_timeout(Some(Duration::from_secs(10)))
                .unwrap();
            // The other end may close before it has read everything.
            let _ = stream.write_all(bytes);
            let _ = stream.shutdown(std::net::Shutdown::Write);
            let mut said = Vec::new();
            let _ = stream.take(1024).read_to_end(&mut said);
            assert!(
                !said.starts_with(b"OK"),
                "{:?}",
                String::from_utf8_lossy(&said)
            );
        }
        assert!(vsock::connect(&path, 7999).is_err(), "nobody listens there");
        vsock::echo(&path, ECHO, 1, 100_000).unwrap();
    });
}

/// A guest whose queue of 128 unaccepted streams is full refuses the next one, as any Linux does; a moment later it
/// has room again.
fn connect_patiently(path: &Path) -> UnixStream {
    let deadline = Instant::now() + Duration::from_secs(20);
    loop {
        match vsock::connect(path, ECHO) {
            Ok(stream) => return stream,
            Err(error) if Instant::now() > deadline => panic!("{error:#}"),
            Err(_) => std::thread::sleep(Duration::from_millis(50)),
        }
    }
}

#[test]
fn streams_left_half_way_do_not_use_up_the_vsock() {
    with_echo(|_, path| {
        for _ in 0..200 {
            let mut stream = connect_patiently(&path);
            stream.write_all(&[7; 10_000]).unwrap();
            drop(stream);
        }
        vsock::echo(&path, ECHO, 2, 100_000).unwrap();
    });
}

#[test]
fn the_guest_dials_out_and_loses_no_byte() {
    let fixture = Fixture::new();
    let image = fixture
        .builder()
        .test_program("dial", &["dial", "7100", "1000003", "8"], "")
        .unwrap();
    let enclave = fixture.stack.host.run(&image, &[]).unwrap();
    let path = enclave.describe().unwrap().vsock;
    std::thread::scope(|scope| {
        // Asked before the guest can have finished, which waits for the listener.
        let exit = scope.spawn(|| enclave.wait(Duration::from_secs(60)));
        std::thread::sleep(Duration::from_millis(200));
        let listener = PathBuf::from(format!("{}_7100", path.display()));
        let socket = UnixListener::bind(&listener).unwrap();
        std::fs::set_permissions(&listener, std::fs::Permissions::from_mode(0o666)).unwrap();
        let streams: Vec<_> = (0..8).map(|_| socket.accept().unwrap().0).collect();
        let answers: Vec<_> = streams
            .into_iter()
            .map(|one| scope.spawn(|| vsock::answer_with_itself(one)))
            .collect();
        for answer in answers {
            assert_eq!(answer.join().unwrap().unwrap(), 1_000_003);
        }
        let exit = exit.join().unwrap().unwrap();
        assert_eq!(exit.status, Some(0), "{exit:?}");
    });
}
