//! How much is remembered, for how long, and how connections end.

use std::io::{self, ErrorKind};

use super::*;

/// A connection over which something happens before the server's first byte is read.
pub(crate) struct Late<F> {
    stream: TcpStream,
    happens: Option<F>,
}

impl<F: FnOnce()> Late<F> {
    pub(crate) fn new(server: &Server, happens: F) -> Self {
        Self {
            stream: dial(server),
            happens: Some(happens),
        }
    }
}

impl<F: FnOnce()> Read for Late<F> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if let Some(happens) = self.happens.take() {
            happens();
        }
        self.stream.read(buffer)
    }
}

impl<F> Write for Late<F> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.stream.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.stream.flush()
    }
}

/// Sessions that are resumed one after the other while no server gives new ones: tickets come with what is read.
fn resumed_in_a_row(tls: &AttestedTls, server: &Server) -> usize {
    let mut streams = (0..20).map(|_| connect(tls, server).unwrap());
    streams
        .by_ref()
        .take_while(AttestedStream::is_resumed)
        .count()
}

#[test]
fn eight_tickets_of_a_server_are_kept() {
    let server = Server::start(Fault::ManyTickets);
    let plain = tls(&server);
    ask(&mut connect(&plain, &server).unwrap());
    assert_eq!(resumed_in_a_row(&plain, &server), 8);
    // With nonces they come before there is a verdict.
    let asking = plain.with_nonces().unwrap();
    let _unread = connect(&asking, &server).unwrap();
    assert_eq!(resumed_in_a_row(&asking, &server), 8);
}

#[test]
fn one_server_too_many_costs_the_memory_of_all() {
    let server = Server::start(Fault::None);
    let tls = tls(&server);
    let name = |number: usize| format!("enclave-{number}.example:443");
    let call = |number| {
        let mut stream = tls.connect(&name(number), dial(&server)).unwrap();
        ask(&mut stream);
        stream.is_resumed()
    };
    let known = || (0..=64).filter(|number| tls.verdict(&name(*number)).is_some());
    for number in 0..64 {
        assert!(!call(number));
    }
    // A server that is known needs no further place.
    assert!(call(0));
    assert_eq!(known().count(), 64);
    assert!(!call(64));
    assert_eq!(known().collect::<Vec<_>>(), [64]);
    assert!(call(64) && !call(0));
    assert_eq!(
        tls.counts().documents,
        1,
        "the certificate was always the same"
    );
}

#[test]
fn a_clock_that_is_set_back_ends_sessions() {
    let server = Server::start(Fault::None);
    let (now, clock) = stopped();
    let tls = AttestedTls::with_clock(verifier(&server.root_pem()), clock).unwrap();
    let mut stream = connect(&tls, &server).unwrap();
    ask(&mut stream);
    // Five seconds are the difference of clocks that verifiers accept.
    let earliest = stream.verdict().document().timestamp().0 - 5_000;
    now.store(earliest, Ordering::Relaxed);
    assert!(stream.holds());
    assert!(connect(&tls, &server).unwrap().is_resumed());
    now.store(earliest - 1, Ordering::Relaxed);
    assert!(!stream.holds());
    assert!(tls.verdict(&server.address.to_string()).is_none());
    let error = connect(&tls, &server).unwrap_err();
    assert!(
        chain(&error).contains("set the clocks"),
        "{}",
        chain(&error)
    );
}

#[test]
fn a_session_ends_with_the_certificates_of_its_document() {
    let server = Server::start(Fault::None);
    let (now, clock) = stopped();
    let day = Duration::from_secs(24 * 3600);
    let patient = verifier(&server.root_pem()).max_age(day);
    let tls = AttestedTls::with_clock(patient, clock).unwrap();
    let mut stream = connect(&tls, &server).unwrap();
    ask(&mut stream);
    let good_until = stream.verdict().good_until();
    assert!(good_until < stream.verdict().document().timestamp().plus(day));
    now.store(good_until.0, Ordering::Relaxed);
    assert!(stream.holds());
    assert!(connect(&tls, &server).unwrap().is_resumed());
    now.store(good_until.0 + 1, Ordering::Relaxed);
    assert!(!stream.holds());
    let error = connect(&tls, &server).unwrap_err();
    assert!(
        chain(&error).contains("it is valid until"),
        "{}",
        chain(&error)
    );
}

#[test]
fn a_server_that_is_late_makes_no_verdict_last_longer() {
    let server = Server::start(Fault::None);
    let (now, clock) = stopped();
    let tls = AttestedTls::with_clock(verifier(&server.root_pem()), clock).unwrap();
    let mut stream = connect(&tls, &server).unwrap();
    ask(&mut stream);
    let over = stream.verdict().good_until().0 + 1;
    let late = Late::new(&server, move || now.store(over, Ordering::Relaxed));
    let error = tls.connect(&server.address.to_string(), late).map(drop);
    let error = error.unwrap_err();
    assert!(
        chain(&error).contains("expected at most 300.000 s"),
        "{}",
        chain(&error)
    );
    assert_eq!(tls.counts(), counts(1, 0, 2));
    assert_eq!(server.heard().len(), 1);
}

#[test]
fn a_server_hears_the_difference_between_an_end_and_a_cut() {
    let server = Server::start(Fault::None);
    let tls = tls(&server);
    for told in [true, false] {
        let mut stream = connect(&tls, &server).unwrap();
        ask(&mut stream);
        if told {
            stream.close().unwrap();
        }
        drop(stream);
        assert_eq!(server.next_end().told, told);
    }
}

/// A connection that takes and gives nothing for a while.
struct Choked {
    stream: TcpStream,
    choked: bool,
    taken: usize,
}

impl Read for Choked {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.choked {
            return Err(ErrorKind::WouldBlock.into());
        }
        self.stream.read(buffer)
    }
}

impl Write for Choked {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.choked {
            return Err(ErrorKind::WouldBlock.into());
        }
        let taken = self.stream.write(bytes)?;
        self.taken += taken;
        Ok(taken)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.stream.flush()
    }
}

#[test]
fn what_the_connection_did_not_take_is_sent_by_a_flush() {
    let server = Server::start(Fault::None);
    let choked = Choked {
        stream: dial(&server),
        choked: false,
        taken: 0,
    };
    let tls = tls(&server);
    let mut stream = tls.connect(&server.address.to_string(), choked).unwrap();
    let before = stream.get_mut().taken;
    stream.get_mut().choked = true;
    assert_eq!(stream.write(b"POST / HTTP/1.1\r\n").unwrap(), 17);
    assert_eq!(stream.flush().unwrap_err().kind(), ErrorKind::WouldBlock);
    assert_eq!(stream.get_mut().taken, before);
    stream.get_mut().choked = false;
    stream.flush().unwrap();
    assert!(stream.get_mut().taken > before + 17);
}

/// Waits until this side of a connection has learned that the other has closed it.
fn wait_for_the_end(client: SocketAddr) {
    const ESTABLISHED: &str = "01";
    let port = format!(":{:04X}", client.port());
    let open = |line: &str| {
        let mut fields = line.split_whitespace().skip(1);
        let (local, state) = (fields.next(), fields.nth(1));
        local.is_some_and(|local| local.ends_with(&port)) && state == Some(ESTABLISHED)
    };
    let limit = Instant::now() + LIMIT;
    while std::fs::read_to_string("/proc/net/tcp")
        .unwrap()
        .lines()
        .any(open)
    {
        assert!(Instant::now() < limit, "the connection was not closed");
        std::thread::yield_now();
    }
}

#[test]
fn a_connection_that_the_server_closed_is_not_used_again() {
    let server = Server::start(Fault::OneAnswer);
    let tls = tls(&server);
    let http = Http::attested(LIMIT, &tls);
    let url = format!("{}/process", server.url());
    for number in 1..=2 {
        http.post(&url, [], b"{}").unwrap();
        assert_eq!(server.accepted(), number);
        wait_for_the_end(server.next_end().client);
    }
    assert_eq!(tls.counts(), counts(1, 1, 1));
}

#[test]
fn an_answer_that_somebody_cuts_is_no_answer() {
    for (fault, whole) in [(Fault::UntilTheEnd, true), (Fault::Cut, false)] {
        let server = Server::start(fault);
        let http = Http::attested(LIMIT, &tls(&server));
        let answer = http.post(&format!("{}/process", server.url()), [], b"{}");
        match answer {
            Ok(body) => assert!(whole && body == b"{\"allowed\": [1, 2, 3]}"),
            Err(error) => {
                assert!(!whole, "{}", chain(&error));
                assert!(chain(&error).contains("was cut"), "{}", chain(&error));
                assert!(!error.nobody_answered() && !error.nothing_was_sent());
            }
        }
    }
}

#[test]
fn a_server_that_ends_without_an_answer_has_not_answered() {
    let server = Server::start(Fault::NoAnswer);
    let http = Http::attested(LIMIT, &tls(&server));
    let error = http.post(&format!("{}/process", server.url()), [], b"{}");
    let error = chain(&error.unwrap_err());
    assert!(error.contains("disconnected"), "{error}");
}

#[test]
fn an_answer_may_come_in_many_pieces() {
    let server = Server::start(Fault::LongHead);
    let http = Http::attested(LIMIT, &tls(&server));
    let answer = http.post(&format!("{}/process", server.url()), [], b"{}");
    assert_eq!(answer.unwrap(), b"{}");
}
