//! What honest guests and hosts may rely on.

use std::{
    collections::HashMap,
    io::{self, ErrorKind, Read, Write},
    net::Shutdown,
    os::unix::net::UnixStream,
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use proptest::prelude::*;

use super::driver::{Driver, GUEST_CID, Stream, pattern, read_exact};
use crate::vsock::packet::{HEADER_LEN, Op};

const SHUT_RECEIVE: u32 = 1;
const SHUT_SEND: u32 = 2;

#[test]
fn a_guest_reaches_a_listening_host_socket() {
    let mut driver = Driver::new();
    let listener = driver.listen(8000);
    let mut guest = driver.open(1024, 8000);
    let (mut host, _) = listener.accept().unwrap();

    let hello = guest.data(b"hello");
    driver.send(&hello, b"hello");
    assert_eq!(read_exact(&mut driver, &mut host, 5), b"hello");

    host.write_all(b"good day").unwrap();
    let (header, payload) = driver.next();
    assert_eq!(
        (header.op, header.src_cid, header.src_port),
        (Op::Data.code(), 3, 8000)
    );
    assert_eq!(
        (header.dst_cid, header.dst_port),
        (u64::from(GUEST_CID), 1024)
    );
    assert_eq!(payload, b"good day");
}

#[test]
fn the_host_is_cid_2_as_well() {
    let mut driver = Driver::new();
    let _listener = driver.listen(8000);
    let stream = Stream {
        host_cid: 2,
        ..Stream::new(1024, 8000)
    };
    driver.send(&stream.header(Op::Request), &[]);
    assert_eq!(driver.expect(Op::Response).src_cid, 2);
}

#[test]
fn dialling_where_nobody_listens_is_reset_at_once() {
    let mut driver = Driver::new();
    driver.send(&Stream::new(1024, 4711).header(Op::Request), &[]);
    let reset = driver.expect(Op::Reset);
    assert_eq!((reset.src_port, reset.dst_port), (4711, 1024));
    driver.expect_nothing();
}

#[test]
fn a_host_client_reaches_a_guest_port_and_is_told_its_own() {
    let mut driver = Driver::new();
    let mut client = driver.client(b"CONNECT 5000\nearly bytes");
    let request = driver.expect(Op::Request);
    assert_eq!((request.src_cid, request.dst_port), (3, 5000));
    let guest = Stream::new(5000, request.src_port);
    driver.send(&guest.header(Op::Response), &[]);

    let expected = format!("OK {}\n", request.src_port);
    let line = read_exact(&mut driver, &mut client, expected.len());
    assert_eq!(String::from_utf8(line).unwrap(), expected);
    let (_, payload) = driver.next();
    assert_eq!(payload, b"early bytes");
}

#[test]
fn a_host_client_is_hung_up_on_when_the_guest_does_not_listen() {
    let mut driver = Driver::new();
    let mut client = driver.client(b"CONNECT 5000\n");
    let request = driver.expect(Op::Request);
    driver.send(&Stream::new(5000, request.src_port).header(Op::Reset), &[]);
    let mut answer = Vec::new();
    client.read_to_end(&mut answer).unwrap();
    assert_eq!(answer, b"");
    driver.expect_nothing();
}

#[test]
fn a_host_client_that_says_nonsense_is_hung_up_on() {
    for nonsense in [&b"GET / HTTP/1.1\n"[..], &[b'9'; 64], b"CONNECT x\n", b"\n"] {
        let mut driver = Driver::new();
        let mut client = driver.client(nonsense);
        driver.pump();
        let mut answer = Vec::new();
        // A hang-up with unread bytes of ours shows as a reset.
        if let Err(error) = client.read_to_end(&mut answer) {
            assert_eq!(error.kind(), ErrorKind::ConnectionReset);
        }
        assert_eq!(answer, b"");
        driver.expect_nothing();
    }
}

#[test]
fn a_service_inside_the_process_answers_without_a_socket() {
    let heartbeat: crate::vsock::Service = Arc::new(|mut stream: UnixStream| {
        let mut byte = [0];
        stream.read_exact(&mut byte).unwrap();
        stream.write_all(&byte).unwrap();
    });
    let mut driver = Driver::with_services(vec![(9000, heartbeat)]);
    let mut guest = driver.open(1024, 9000);
    let beat = guest.data(&[0xb7]);
    driver.send(&beat, &[0xb7]);
    let (header, payload) = driver.next();
    assert_eq!((header.op, payload), (Op::Data.code(), vec![0xb7]));
    // The service returns, which closes both halves; its thread may be seen in the middle of that.
    let mut flags = 0;
    while flags != SHUT_SEND | SHUT_RECEIVE {
        flags |= driver.expect(Op::Shutdown).flags;
    }
}

#[test]
fn large_packets_may_be_cut_anywhere() {
    let mut driver = Driver::new();
    let listener = driver.listen(8000);
    let mut guest = driver.open(1024, 8000);
    let (mut host, _) = listener.accept().unwrap();
    let cuts: [&[usize]; 5] = [
        &[],
        &[HEADER_LEN],
        &[1, 2, 3, 43, 44, 45],
        &[20, HEADER_LEN + 1, 4096, 8192, 40000],
        &[HEADER_LEN + 32 * 1024, HEADER_LEN + 33 * 1024],
    ];
    for (seed, cuts) in cuts.into_iter().enumerate() {
        let payload = pattern(seed, 64 * 1024);
        let header = guest.data(&payload);
        driver.send_cut(&header, &payload, cuts);
        assert!(
            read_exact(&mut driver, &mut host, payload.len()) == payload,
            "cut at {cuts:?}"
        );
    }
}

#[test]
fn the_guests_half_close_reaches_the_host_and_the_answer_the_guest() {
    let mut driver = Driver::new();
    let listener = driver.listen(8000);
    let mut guest = driver.open(1024, 8000);
    let (mut host, _) = listener.accept().unwrap();
    let question = guest.data(b"question");
    driver.send(&question, b"question");
    driver.send(&guest.shutdown(SHUT_SEND), &[]);

    let mut heard = String::new();
    host.read_to_string(&mut heard).unwrap();
    assert_eq!(heard, "question");
    host.write_all(b"answer").unwrap();
    let (_, payload) = driver.next();
    assert_eq!(payload, b"answer");

    drop(host);
    driver.expect(Op::Shutdown);
    driver.expect(Op::Reset);
    driver.expect_nothing();
}

#[test]
fn the_hosts_half_close_reaches_the_guest_and_the_answer_the_host() {
    let mut driver = Driver::new();
    let listener = driver.listen(8000);
    let mut guest = driver.open(1024, 8000);
    let (mut host, _) = listener.accept().unwrap();
    host.write_all(b"question").unwrap();
    host.shutdown(Shutdown::Write).unwrap();
    assert_eq!(driver.next().1, b"question");
    assert_eq!(driver.expect(Op::Shutdown).flags, SHUT_SEND);

    let answer = guest.data(b"answer");
    driver.send(&answer, b"answer");
    assert_eq!(read_exact(&mut driver, &mut host, 6), b"answer");
    driver.send(&guest.shutdown(SHUT_SEND | SHUT_RECEIVE), &[]);
    driver.expect(Op::Reset);
    let mut rest = Vec::new();
    host.read_to_end(&mut rest).unwrap();
    assert_eq!(rest, b"");
}

#[test]
fn a_guest_that_closes_is_reset_only_after_its_last_byte_is_delivered() {
    let mut driver = Driver::new();
    let listener = driver.listen(8000);
    let mut guest = driver.open(1024, 8000);
    let (mut host, _) = listener.accept().unwrap();
    // More than a socket holds, so that some waits in the device.
    let mut sent = Vec::new();
    while guest.room() >= 64 * 1024 || driver.tx.published < 4 {
        let payload = pattern(sent.len(), guest.room().min(64 * 1024));
        let header = guest.data(&payload);
        driver.send(&header, &payload);
        sent.extend(payload);
        while let Some((header, payload)) = driver.inbox.pop_front() {
            guest.note(&header, &payload);
        }
    }
    driver.send(&guest.shutdown(SHUT_SEND | SHUT_RECEIVE), &[]);
    driver.expect_nothing();
    assert!(read_exact(&mut driver, &mut host, sent.len()) == sent);
    let mut last = driver.next().0;
    while last.op == Op::CreditUpdate.code() {
        last = driver.next().0;
    }
    assert_eq!(last.op, Op::Reset.code());
}

#[test]
fn a_vanished_host_is_announced_and_the_stream_ends_by_itself() {
    let mut driver = Driver::new();
    let listener = driver.listen(8000);
    let guest = driver.open(1024, 8000);
    let (host, _) = listener.accept().unwrap();
    drop(host);
    assert_eq!(driver.expect(Op::Shutdown).flags, SHUT_SEND | SHUT_RECEIVE);
    // Linux answers like this once its application has read everything.
    driver.send(&guest.header(Op::Reset), &[]);
    driver.expect_nothing();
    // The stream is gone: its ports can be used again.
    driver.open(1024, 8000);
}

#[test]
fn a_slow_host_reader_holds_the_guest_back_and_loses_nothing() {
    let mut driver = Driver::new();
    let listener = driver.listen(8000);
    let mut guest = driver.open(1024, 8000);
    let (mut host, _) = listener.accept().unwrap();
    let data = pattern(1, 3 << 20);
    let mut written = 0;
    // Without a reader, credit runs out long before the data.
    while guest.room() > 0 {
        let len = guest.room().min(60_000);
        let payload = &data[written..written + len];
        let header = guest.data(payload);
        driver.send(&header, payload);
        written += len;
        while let Some((header, payload)) = driver.inbox.pop_front() {
            guest.note(&header, &payload);
        }
    }
    assert!(
        written < 2 << 20,
        "{written} bytes went to a host that reads none"
    );
    // With one, everything arrives.
    let mut heard = Vec::new();
    host.set_nonblocking(true).unwrap();
    driver.pump_until(|driver| {
        let mut buffer = vec![0; 50_000];
        if let Ok(count) = host.read(&mut buffer) {
            heard.extend_from_slice(&buffer[..count]);
        }
        while let Some((header, payload)) = driver.inbox.pop_front() {
            guest.note(&header, &payload);
        }
        let len = guest.room().min(60_000).min(data.len() - written);
        if len > 0 {
            let payload = &data[written..written + len];
            let header = guest.data(payload);
            driver.send(&header, payload);
            written += len;
        }
        heard.len() == data.len()
    });
    assert!(heard == data);
}

#[test]
fn the_device_never_sends_more_than_the_guest_grants_and_asks_when_stuck() {
    let mut driver = Driver::new();
    let listener = driver.listen(8000);
    let mut guest = driver.open(1024, 8000);
    let (mut host, _) = listener.accept().unwrap();
    let data = pattern(2, 1 << 20);
    let writer = thread::spawn({
        let data = data.clone();
        move || host.write_all(&data).map(|()| host)
    });
    let mut heard = Vec::new();
    let mut asked = false;
    driver.pump_until(|driver| {
        while let Some((header, payload)) = driver.inbox.pop_front() {
            // `note` fails the test when the grant is exceeded.
            guest.note(&header, &payload);
            heard.extend(payload);
            if header.op == Op::CreditRequest.code() {
                asked = true;
                guest.consumed = guest.received;
                driver.send(&guest.header(Op::CreditUpdate), &[]);
            }
        }
        heard.len() == data.len()
    });
    assert!(asked && heard == data);
    writer.join().unwrap().unwrap();
}

#[test]
fn a_full_backlog_of_the_host_listener_is_waited_out() {
    let mut driver = Driver::new();
    let listener = driver.listen(8000);
    rustix::net::listen(&listener, 0).unwrap();
    // Fills the backlog without waiting for it.
    let mut waiting = Vec::new();
    loop {
        match crate::vsock::backend::dial(&driver.path_of_port(8000)) {
            crate::vsock::backend::Dial::Connected(stream) => waiting.push(stream),
            crate::vsock::backend::Dial::Busy => break,
            crate::vsock::backend::Dial::Refused(error) => panic!("{error}"),
        }
    }
    driver.send(&Stream::new(1024, 8000).header(Op::Request), &[]);
    driver.expect_nothing();
    for _ in 0..waiting.len() {
        listener.accept().unwrap();
    }
    driver.expect(Op::Response);
}

#[test]
fn a_bulk_stream_does_not_starve_a_small_one() {
    let mut driver = Driver::new();
    let listener = driver.listen(8000);
    let mut bulk = driver.open(1024, 8000);
    let (host_bulk, _) = listener.accept().unwrap();
    driver.open(1025, 8000);
    let (mut host_small, _) = listener.accept().unwrap();
    host_bulk.set_nonblocking(true).unwrap();
    let chunk = [7; 64 * 1024];
    let mut bulk_bytes = 0;
    let mut waited = None;
    for round in 0..2000 {
        while (&host_bulk).write(&chunk).is_ok() {}
        if round == 10 {
            host_small.write_all(b"me too").unwrap();
            waited = Some(bulk_bytes);
        }
        driver.step();
        driver.post_all();
        while let Some((header, payload)) = driver.inbox.pop_front() {
            if header.dst_port == 1025 {
                assert_eq!(payload, b"me too");
                let waited = bulk_bytes - waited.unwrap();
                assert!(
                    waited <= 256 * 1024 + 2 * 64 * 1024,
                    "{waited} bytes went before it"
                );
                return;
            }
            bulk_bytes += payload.len();
            bulk.note(&header, &payload);
        }
        bulk.consumed = bulk.received;
        driver.send_cut(&bulk.header(Op::CreditUpdate), &[], &[]);
    }
    panic!("the small stream never got a turn");
}

#[test]
fn a_guest_without_receive_buffers_gets_everything_once_it_has_some() {
    let mut driver = Driver::without_buffers(Vec::new());
    let listener = driver.listen(8000);
    driver.send_cut(&Stream::new(1024, 8000).header(Op::Request), &[], &[]);
    driver.step();
    driver.send_cut(&Stream::new(1024, 1).header(Op::Request), &[], &[]);
    driver.step();
    let (mut host, _) = listener.accept().unwrap();
    host.write_all(b"patience").unwrap();
    driver.step();
    assert!(driver.inbox.is_empty());
    let mut ops = Vec::new();
    for _ in 0..3 {
        assert!(driver.post());
        driver.step();
        ops.push(driver.inbox.pop_front().unwrap().0.op);
    }
    ops.sort_unstable();
    assert_eq!(ops, [Op::Response, Op::Reset, Op::Data].map(Op::code));
}

/// An echo server on the host that serves each connection on a thread until its end.
fn echo(listener: std::os::unix::net::UnixListener, connections: usize) -> thread::JoinHandle<()> {
    thread::spawn(move || {
        let servers: Vec<_> = (0..connections)
            .map(|_| {
                let (stream, _) = listener.accept().unwrap();
                thread::spawn(move || {
                    let mut stream = stream;
                    let mut reader = stream.try_clone().unwrap();
                    io::copy(&mut reader, &mut stream).unwrap();
                    stream.shutdown(Shutdown::Write).unwrap();
                })
            })
            .collect();
        for server in servers {
            server.join().unwrap();
        }
    })
}

/// The guest's side of an echo: sends `data`, shuts down, and collects what comes back.
struct Echo {
    stream: Stream,
    data: Vec<u8>,
    written: usize,
    heard: Vec<u8>,
    shut: bool,
    over: bool,
}

impl Echo {
    fn new(stream: Stream, data: Vec<u8>) -> Self {
        Self {
            stream,
            data,
            written: 0,
            heard: Vec::new(),
            shut: false,
            over: false,
        }
    }

    fn take(&mut self, driver: &mut Driver, op: Op, payload: &[u8]) {
        self.heard.extend_from_slice(payload);
        self.stream.consumed = self.stream.received;
        match op {
            Op::CreditRequest => driver.send_cut(&self.stream.header(Op::CreditUpdate), &[], &[]),
            Op::Reset => self.over = true,
            _ => {}
        }
    }

    fn write(&mut self, driver: &mut Driver) {
        let len = self
            .stream
            .room()
            .min(50_000)
            .min(self.data.len() - self.written);
        if len > 0 {
            let payload = self.data[self.written..self.written + len].to_vec();
            let header = self.stream.data(&payload);
            driver.send_cut(&header, &payload, &[HEADER_LEN, 9_000, 33_000]);
            self.written += len;
        } else if self.written == self.data.len() && !self.shut {
            self.shut = true;
            driver.send_cut(&self.stream.shutdown(SHUT_SEND), &[], &[]);
        }
    }
}

/// Runs echoes to their end, all at once.
fn run_echoes(driver: &mut Driver, echoes: &mut HashMap<u32, Echo>) {
    let end = Instant::now() + Duration::from_secs(60);
    while echoes.values().any(|echo| !echo.over) {
        assert!(Instant::now() < end, "the echoes take more than a minute");
        let mut ports: Vec<u32> = echoes.keys().copied().collect();
        ports.sort_unstable();
        for port in ports {
            echoes.get_mut(&port).unwrap().write(driver);
            driver.step();
            driver.post_all();
            while let Some((header, payload)) = driver.inbox.pop_front() {
                let echo = echoes.get_mut(&header.dst_port).unwrap();
                echo.stream.note(&header, &payload);
                echo.take(driver, Op::from_code(header.op).unwrap(), &payload);
            }
        }
    }
    for echo in echoes.values() {
        assert!(echo.heard == echo.data, "bytes were lost or changed");
    }
}

#[test]
fn sixty_four_streams_at_once_lose_no_byte() {
    let mut driver = Driver::new();
    let server = echo(driver.listen(8000), 64);
    let mut echoes = HashMap::new();
    for port in 2000..2064 {
        let stream = driver.open(port, 8000);
        let seed = usize::try_from(port).unwrap();
        echoes.insert(port, Echo::new(stream, pattern(seed, 200_000 + seed)));
    }
    run_echoes(&mut driver, &mut echoes);
    server.join().unwrap();
    driver.expect_nothing();
}

#[test]
fn a_thousand_streams_one_after_the_other_lose_no_byte() {
    let mut driver = Driver::new();
    let server = echo(driver.listen(8000), 1000);
    for port in 0..1000 {
        let stream = driver.open(port, 8000);
        let seed = usize::try_from(port).unwrap();
        let mut echoes = HashMap::from([(port, Echo::new(stream, pattern(seed, seed * 3)))]);
        run_echoes(&mut driver, &mut echoes);
    }
    server.join().unwrap();
    driver.expect_nothing();
}

/// One step of either side, as large as the number says.
#[derive(Debug, Clone, Copy)]
enum Step {
    GuestWrites(usize),
    HostWrites(usize),
    HostReads(usize),
    GuestConsumes,
    Device,
    BuffersBack,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        (1_usize..70_000).prop_map(Step::GuestWrites),
        (1_usize..300_000).prop_map(Step::HostWrites),
        (1_usize..300_000).prop_map(Step::HostReads),
        Just(Step::GuestConsumes),
        Just(Step::Device),
        Just(Step::BuffersBack),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn any_schedule_keeps_every_byte_in_order(steps in prop::collection::vec(step(), 1..120)) {
        let mut driver = Driver::new();
        let listener = driver.listen(8000);
        let mut guest = driver.open(1024, 8000);
        let (mut host, _) = listener.accept().unwrap();
        host.set_nonblocking(true).unwrap();
        let (mut to_host, mut at_host) = (Vec::new(), Vec::new());
        let (mut to_guest, mut at_guest) = (Vec::new(), Vec::new());
        let mut in_ring = 0;
        for step in steps {
            match step {
                Step::GuestWrites(len) if in_ring < 24 => {
                    let payload = pattern(to_host.len(), len.min(guest.room()).min(65_536));
                    let header = guest.data(&payload);
                    driver.send_cut(&header, &payload, &[HEADER_LEN, 5000]);
                    to_host.extend(payload);
                    in_ring += 1;
                }
                Step::HostWrites(len) => {
                    let bytes = pattern(to_guest.len(), len);
                    if let Ok(written) = host.write(&bytes) {
                        to_guest.extend_from_slice(&bytes[..written]);
                    }
                }
                Step::HostReads(len) => {
                    let mut buffer = vec![0; len];
                    if let Ok(read) = host.read(&mut buffer) {
                        at_host.extend_from_slice(&buffer[..read]);
                    }
                }
                Step::GuestConsumes if in_ring < 24 => {
                    guest.consumed = guest.received;
                    driver.send_cut(&guest.header(Op::CreditUpdate), &[], &[]);
                    in_ring += 1;
                }
                Step::BuffersBack => driver.post_all(),
                _ => {
                    driver.step();
                    in_ring = 0;
                }
            }
            while let Some((header, payload)) = driver.inbox.pop_front() {
                prop_assert_ne!(header.op, Op::Reset.code());
                guest.note(&header, &payload);
                at_guest.extend(payload);
            }
        }
        // Now both sides read to the end.
        driver.pump_until(|driver| {
            let mut buffer = vec![0; 100_000];
            if let Ok(read) = host.read(&mut buffer) {
                at_host.extend_from_slice(&buffer[..read]);
            }
            while let Some((header, payload)) = driver.inbox.pop_front() {
                guest.note(&header, &payload);
                at_guest.extend(payload);
            }
            guest.consumed = guest.received;
            driver.send_cut(&guest.header(Op::CreditUpdate), &[], &[]);
            at_host.len() == to_host.len() && at_guest.len() == to_guest.len()
        });
        prop_assert!(at_host == to_host);
        prop_assert!(at_guest == to_guest);
    }
}
