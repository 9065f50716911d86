//! A server whose threads stay awake for quick clients, from the outside: HTTP as clients may speak it, and the end.

#![expect(clippy::unwrap_used, clippy::expect_used, reason = "a test may panic")]

mod common;

use std::io::{Read as _, Write as _};
use std::net::{Shutdown, TcpStream};
use std::sync::mpsc;
use std::time::Duration;

use common::Server;

/// The longest time that can be set, so that clients are quick on a busy machine too.
const ARGUMENTS: [&str; 2] = ["--busy-poll", "1000"];

const REQUEST: &[u8] = b"GET /health HTTP/1.1\r\nhost: x\r\n\r\n";

const BODY: &[u8] = br#"{"status":"ok"}"#;

fn connect(server: &Server) -> TcpStream {
    let stream = TcpStream::connect(server.http.unwrap()).unwrap();
    stream.set_nodelay(true).unwrap();
    // Longer than any test: what is lost must not hang.
    let patience = Some(Duration::from_secs(60));
    stream.set_read_timeout(patience).unwrap();
    stream
}

/// Reads one answer, or none at the end.
fn answer(stream: &mut TcpStream) -> Option<Vec<u8>> {
    let mut answer = Vec::new();
    let mut byte = [0];
    while !answer.ends_with(BODY) {
        if stream.read(&mut byte).ok()? == 0 {
            return None;
        }
        answer.extend(byte);
    }
    Some(answer)
}

fn ask(stream: &mut TcpStream) -> Option<Vec<u8>> {
    stream.write_all(REQUEST).ok()?;
    answer(stream)
}

#[test]
fn quick_slow_and_pipelining_clients_get_every_answer() {
    let server = Server::with(&ARGUMENTS);
    let mut stream = connect(&server);
    for _ in 0..300 {
        assert!(ask(&mut stream).unwrap().starts_with(b"HTTP/1.1 200 "));
    }
    stream.write_all(&REQUEST.repeat(50)).unwrap();
    for _ in 0..50 {
        assert!(answer(&mut stream).unwrap().starts_with(b"HTTP/1.1 200 "));
    }
    for _ in 0..20 {
        for byte in REQUEST {
            stream.write_all(&[*byte]).unwrap();
        }
        assert!(answer(&mut stream).unwrap().starts_with(b"HTTP/1.1 200 "));
        std::thread::sleep(Duration::from_millis(3));
        assert!(ask(&mut stream).is_some());
    }
    // Two at once, half a one, and no more.
    let last = [REQUEST, REQUEST, &REQUEST[..9]].concat();
    stream.write_all(&last).unwrap();
    stream.shutdown(Shutdown::Write).unwrap();
    for _ in 0..2 {
        assert!(answer(&mut stream).unwrap().starts_with(b"HTTP/1.1 200 "));
    }
    let mut rest = Vec::new();
    stream.read_to_end(&mut rest).unwrap();
    assert!(!rest.ends_with(BODY), "half a request was answered");
}

#[test]
fn several_quick_clients_get_every_answer() {
    let server = Server::with(&ARGUMENTS);
    let clients: Vec<_> = (0..4)
        .map(|_| {
            let mut stream = connect(&server);
            std::thread::spawn(move || (0..300).all(|_| ask(&mut stream).is_some()))
        })
        .collect();
    for client in clients {
        assert!(client.join().unwrap());
    }
}

#[test]
fn a_server_ends_while_its_threads_are_awake() {
    let mut server = Server::with(&ARGUMENTS);
    let (quick, mut idle) = (connect(&server), connect(&server));
    assert!(ask(&mut idle).is_some());
    let (begun, has_begun) = mpsc::channel();
    let quick = std::thread::spawn(move || {
        let mut stream = quick;
        for round in 0_u64.. {
            if ask(&mut stream).is_none() {
                return round;
            }
            if round == 300 {
                begun.send(()).unwrap();
            }
        }
        0
    });
    has_begun.recv().unwrap();
    assert_eq!(server.stop(), Some(0));
    assert!(quick.join().unwrap() > 300);
    assert!(answer(&mut idle).is_none(), "an end, not an answer");
}
