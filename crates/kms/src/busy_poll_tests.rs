//! Windows and turns as they are defined; connections whose reads stay awake, under whatever a client does.

use std::io::{Read as _, Write as _};
use std::net::Shutdown;

use proptest::collection::vec;
use proptest::prelude::*;
use rustls_pki_types::pem::PemObject as _;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;

use super::*;

/// Long enough for a client to come in time however busy the machine is, and for one that pauses to be late.
const LONGEST: Duration = Duration::from_millis(5);

/// Most bytes that a client leaves unread: they fit into the buffers of two sockets.
const UNREAD: usize = 64 * 1024;

const MICROSECOND: Duration = Duration::from_micros(1);

proptest! {
    #[test]
    fn a_window_is_bounded_and_closed_by_whoever_is_late(
        longest in 0u32..=1000,
        waits in vec(0u32..=2000, 0..100),
    ) {
        let longest = longest * MICROSECOND;
        let mut window = Window::new(longest);
        prop_assert!(!window.is_open());
        for wait in waits.into_iter().map(|wait| wait * MICROSECOND) {
            window.learn(wait);
            prop_assert!(window.open <= longest);
            prop_assert!(wait <= longest || !window.is_open());
        }
    }

    #[test]
    fn whoever_is_quick_a_few_times_is_met(wait in 0u32..=100) {
        let mut window = Window::new(100 * MICROSECOND);
        for _ in 0..5 {
            window.learn(wait * MICROSECOND);
        }
        prop_assert!(window.open >= wait * MICROSECOND);
    }

    #[test]
    fn what_is_spent_in_vain_is_paid_for_by_being_late(waits in vec(0u32..=200, 0..1000)) {
        let longest = 100 * MICROSECOND;
        let mut window = Window::new(longest);
        let (mut vain, mut late) = (Duration::ZERO, 0);
        for wait in waits.into_iter().map(|wait| wait * MICROSECOND) {
            if wait > window.open {
                vain += window.open;
            }
            late += u32::from(wait > longest);
            window.learn(wait);
        }
        // The windows before the longest are 10, 20, 40 and 80 µs, each once for one client that was late.
        prop_assert!(vain <= (late + 1) * (longest + 150 * MICROSECOND), "{vain:?}");
    }
}

#[test]
fn a_client_that_is_always_late_is_never_waited_for() {
    let mut window = Window::new(100 * MICROSECOND);
    for _ in 0..100 {
        window.learn(101 * MICROSECOND);
        assert!(!window.is_open());
    }
}

#[test]
fn attempts_end_with_the_first_find_or_the_time() {
    let far = Instant::now() + Duration::from_secs(3600);
    let mut attempts = 0;
    let found = try_until(far, || {
        attempts += 1;
        match attempts {
            7 => Poll::Ready(attempts),
            _ => Poll::Pending,
        }
    });
    assert_eq!((found, attempts), (Poll::Ready(7), 7));
    let mut attempts = 0;
    let found: Poll<()> = try_until(Instant::now(), || {
        attempts += 1;
        Poll::Pending
    });
    assert_eq!((found, attempts), (Poll::Pending, 1), "once in any case");
}

#[test]
fn nobody_stays_awake_for_one_of_several() {
    let shared = on(2);
    assert!(!shared.answered_alone(1), "the first answer");
    assert!(shared.answered_alone(1));
    for _ in 0..3 {
        assert!(!shared.answered_alone(2));
        assert!(!shared.answered_alone(1));
    }
    assert!(shared.answered_alone(1));
}

#[test]
fn one_thread_stays_awake_at_a_time_and_none_on_one_processor() {
    let shared = on(2);
    let turn = shared.turn();
    assert!(turn.is_some());
    assert!(shared.turn().is_none());
    drop(turn);
    assert!(shared.turn().is_some());
    assert!(!shared.is_off());
    assert!(on(1).is_off());
    assert!(BusyPoll::off().is_off());
}

fn on(processors: usize) -> Arc<BusyPoll> {
    BusyPoll::on(processors, LONGEST, &Metrics::default())
}

/// Both ends of a connection that was answered before and whose client was quick.
async fn connected(shared: &Arc<BusyPoll>) -> (Watched, std::net::TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let client = std::net::TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    let mut server = shared.watch(listener.accept().await.unwrap().0);
    server.window.open = shared.longest;
    shared.answered_alone(server.number);
    (server, client)
}

/// Sends back what comes, as soon as it comes, until the end; how much that was.
async fn echo(mut server: Watched) -> usize {
    let (mut buffer, mut all) = (vec![0; 64 * 1024], 0);
    loop {
        let count = server.read(&mut buffer).await.unwrap();
        if count == 0 {
            return all;
        }
        all += count;
        server.write_all(&buffer[..count]).await.unwrap();
        // Whatever a late client taught.
        server.window.open = server.shared.longest;
    }
}

/// One thing that a client does.
#[derive(Debug, Clone, Copy)]
enum Act {
    /// Sends so many bytes.
    Send(usize),
    /// Reads all answers to what it has sent.
    Read,
    /// Is late: longer than anybody is awake for it.
    Pause,
}

/// Does it all, hangs up half, and reads to the end; how much was sent. Whatever comes back has to be what was sent.
fn act(
    mut client: impl std::io::Read + std::io::Write,
    acts: &[Act],
    hang_up: impl FnOnce(),
) -> usize {
    let (mut sent, mut read) = (0, 0);
    let byte = |at: usize| at.to_le_bytes()[0] ^ at.to_le_bytes()[1];
    let expect = |client: &mut dyn std::io::Read, read: &mut usize, until: usize| {
        let mut back = vec![0; until - *read];
        client.read_exact(&mut back).unwrap();
        let sent: Vec<u8> = (*read..until).map(byte).collect();
        assert!(back == sent, "bytes {read} to {until} are others");
        *read = until;
    };
    for act in acts {
        match act {
            Act::Send(count) => {
                let bytes: Vec<u8> = (sent..sent + count).map(byte).collect();
                client.write_all(&bytes).unwrap();
                sent += count;
                // More would not fit between two that only write.
                if sent - read > UNREAD {
                    expect(&mut client, &mut read, sent);
                }
            }
            Act::Read => expect(&mut client, &mut read, sent),
            Act::Pause => std::thread::sleep(LONGEST * 2),
        }
    }
    hang_up();
    expect(&mut client, &mut read, sent);
    assert_eq!(client.read(&mut [0]).unwrap(), 0);
    sent
}

fn acts() -> impl Strategy<Value = Vec<Act>> {
    let one = prop_oneof![
        4 => Just(Act::Send(1)),
        4 => (1usize..600).prop_map(Act::Send),
        2 => (READ - 1..3 * READ).prop_map(Act::Send),
        8 => Just(Act::Read),
        1 => Just(Act::Pause),
    ];
    vec(one, 0..60)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]

    /// Single bytes, several requests at once, more than an attempt reads, clients that are late and that hang up half.
    #[test]
    fn nothing_is_lost_whatever_a_client_does(acts in acts()) {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .enable_all()
            .build()
            .unwrap();
        runtime.block_on(async {
            let (server, client) = connected(&on(2)).await;
            let server = tokio::spawn(echo(server));
            let client = tokio::task::spawn_blocking(move || {
                let hang_up = || client.shutdown(Shutdown::Write).unwrap();
                act(&client, &acts, hang_up)
            });
            assert_eq!(client.await.unwrap(), server.await.unwrap());
        });
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn quick_requests_are_met_and_counted() {
    let metrics = Metrics::default();
    let shared = BusyPoll::on(2, LONGEST, &metrics);
    let (server, mut client) = connected(&shared).await;
    let server = tokio::spawn(echo(server));
    let met = shared.met.clone();
    let client = tokio::task::spawn_blocking(move || {
        let mut rounds = 0_usize;
        while met.get() == 0.0 {
            client.write_all(b"request").unwrap();
            client.read_exact(&mut [0; 7]).unwrap();
            rounds += 1;
            assert!(rounds < 100_000, "no request was met");
        }
        rounds
    });
    let rounds = client.await.unwrap();
    assert_eq!(server.await.unwrap(), rounds * 7);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nobody_is_awake_before_an_answer() {
    let shared = on(2);
    let (mut server, client) = connected(&shared).await;
    let client = tokio::task::spawn_blocking(move || {
        for _ in 0..5 {
            (&client).write_all(b"part").unwrap();
            std::thread::sleep(LONGEST);
        }
    });
    let mut all = Vec::new();
    server.read_to_end(&mut all).await.unwrap();
    client.await.unwrap();
    assert_eq!(all, b"part".repeat(5));
    assert_eq!((shared.met.get(), shared.missed.get()), (0.0, 0.0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_end_that_comes_while_somebody_is_awake_is_the_end() {
    for reset in [false, true] {
        let (mut server, client) = connected(&on(2)).await;
        server.write_all(b"answer").await.unwrap();
        let client = tokio::task::spawn_blocking(move || {
            // Bytes that were there and were not read make the end a reset.
            assert!(client.peek(&mut [0]).unwrap() > 0);
            if !reset {
                (&client).read_exact(&mut [0; 6]).unwrap();
            }
            drop(client);
        });
        let end = server.read(&mut [0; 10]).await;
        assert_eq!(end.ok(), (!reset).then_some(0));
        client.await.unwrap();
    }
}

/// A server that demands certificates and a client that has one, each other's authority known.
fn mutual_tls() -> (Arc<rustls::ServerConfig>, Arc<rustls::ClientConfig>) {
    let directory = tempfile::tempdir().unwrap();
    let own = rcgen::generate_simple_self_signed(["client".to_owned()]).unwrap();
    let authority = directory.path().join("clients.pem");
    std::fs::write(&authority, own.cert.pem()).unwrap();
    let source = crate::tls::Source::Own {
        data: directory.path().to_owned(),
        names: vec!["localhost".to_owned()],
    };
    let server = crate::tls::ServerCertificate::new(source).unwrap();
    let server = server.server_config(Some(&authority)).unwrap();
    let ca = crate::tls::ca_path(directory.path());
    let ca = rustls_pki_types::CertificateDer::from_pem_file(ca).unwrap();
    let mut roots = rustls::RootCertStore::empty();
    roots.add(ca).unwrap();
    let key = rustls_pki_types::PrivatePkcs8KeyDer::from(own.signing_key.serialize_der());
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let client = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_client_auth_cert(vec![own.cert.der().clone()], key.into())
        .unwrap();
    (Arc::new(server), Arc::new(client))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn mutual_tls_runs_over_it() {
    let (server, client) = mutual_tls();
    let (stream, socket) = connected(&on(2)).await;
    let client = tokio::task::spawn_blocking(move || {
        let name = "localhost".try_into().unwrap();
        let session = rustls::ClientConnection::new(client, name).unwrap();
        let mut stream = rustls::StreamOwned::new(session, socket);
        for round in 0..100_u8 {
            let request = vec![round; usize::from(round) * 300 + 1];
            stream.write_all(&request).unwrap();
            let mut back = vec![0; request.len()];
            stream.read_exact(&mut back).unwrap();
            assert!(back == request);
        }
    });
    let mut stream = tokio_rustls::TlsAcceptor::from(server)
        .accept(stream)
        .await
        .unwrap();
    assert!(stream.get_ref().1.peer_certificates().is_some());
    let mut buffer = vec![0; 64 * 1024];
    while let Ok(count @ 1..) = stream.read(&mut buffer).await {
        stream.write_all(&buffer[..count]).await.unwrap();
        stream.flush().await.unwrap();
    }
    client.await.unwrap();
}
