//! Attested TLS that the agent ends, with the real NSM state machine and the real client.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]
#![expect(
    unreachable_pub,
    dead_code,
    reason = "the support module serves several tests"
)]

mod support;

use std::error::Error;
use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream as StdStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use enclos_attest::document::TrustAnchors;
use enclos_attest::policy::Policy;
use enclos_attest::{PcrIndex, PcrValue};
use enclos_client::attested::AttestedStream;
use enclos_client::{AttestedTls, AttestedTlsError, Verifier};
use enclos_guest::agent::channel::{Channel, KEEP_FOR, RENEW_AFTER};
use enclos_guest::agent::ingress;
use enclos_guest::agent::nsm::Nsm;
use enclos_guest::agent::transport::{Accept, Boxed};
use support::{BrokenNsm, LIMIT, RealNsm, image_pcr, root_pem};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, UnixStream};
use tokio::sync::mpsc;

/// Streams that the test made, all from the parent.
struct Given(mpsc::Receiver<UnixStream>);

impl Accept for Given {
    fn accept(&mut self) -> Boxed<'_, io::Result<(UnixStream, u32)>> {
        Box::pin(async {
            let stream = self.0.recv().await;
            Ok((stream.ok_or_else(|| io::Error::other("no more"))?, 3))
        })
    }
}

/// An NSM that counts what it is asked, and can be broken.
#[derive(Debug, Default)]
struct Counting {
    asked: AtomicUsize,
    broken: std::sync::atomic::AtomicBool,
}

impl Nsm for Counting {
    fn call(&self, request: &[u8]) -> io::Result<Vec<u8>> {
        self.asked.fetch_add(1, Ordering::SeqCst);
        if self.broken.load(Ordering::SeqCst) {
            return BrokenNsm.call(request);
        }
        RealNsm.call(request)
    }
}

/// An enclave whose application answers every connection with `hello ` and what it was sent.
struct Enclave {
    parent: mpsc::Sender<UnixStream>,
    nsm: Arc<Counting>,
    served: Arc<AtomicUsize>,
}

impl Enclave {
    async fn start() -> Self {
        let app = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = app.local_addr().unwrap().port();
        let nsm = Arc::new(Counting::default());
        let channel = Channel::new(Arc::clone(&nsm) as _).unwrap();
        let (parent, receiver) = mpsc::channel(8);
        tokio::spawn(ingress::serve(
            Given(receiver),
            port,
            Some(Arc::new(channel)),
        ));
        let served = Arc::new(AtomicUsize::new(0));
        let count = Arc::clone(&served);
        tokio::spawn(async move {
            loop {
                let (mut stream, _) = app.accept().await.unwrap();
                let count = Arc::clone(&count);
                tokio::spawn(async move {
                    let mut request = [0; 64];
                    while let Ok(len @ 1..) = stream.read(&mut request).await {
                        count.fetch_add(1, Ordering::SeqCst);
                        let answer = [b"hello ", &request[..len]].concat();
                        stream.write_all(&answer).await.unwrap();
                    }
                });
            }
        });
        Self {
            parent,
            nsm,
            served,
        }
    }

    fn asked(&self) -> usize {
        self.nsm.asked.load(Ordering::SeqCst)
    }

    async fn connection(&self) -> StdStream {
        let (client, inside) = StdStream::pair().unwrap();
        client.set_read_timeout(Some(LIMIT)).unwrap();
        inside.set_nonblocking(true).unwrap();
        let inside = UnixStream::from_std(inside).unwrap();
        self.parent.send(inside).await.unwrap();
        client
    }

    async fn connect(
        &self,
        tls: &AttestedTls,
    ) -> Result<AttestedStream<StdStream>, AttestedTlsError> {
        let (tls, stream) = (tls.clone(), self.connection().await);
        let connect = move || tls.connect("enclave:443", stream);
        tokio::task::spawn_blocking(connect).await.unwrap()
    }
}

async fn greeted(mut stream: AttestedStream<StdStream>) -> AttestedStream<StdStream> {
    let greet = move || {
        stream.write_all(b"you").unwrap();
        let mut answer = [0; 9];
        stream.read_exact(&mut answer).unwrap();
        assert_eq!(&answer, b"hello you");
        stream
    };
    tokio::task::spawn_blocking(greet).await.unwrap()
}

fn verifier() -> Verifier {
    let anchors = TrustAnchors::new().with_root("test", root_pem().as_bytes());
    let pcr0 = PcrIndex::try_from(0_u16).unwrap();
    Verifier::new(anchors.unwrap()).expect_pcr(pcr0, image_pcr())
}

fn client() -> AttestedTls {
    AttestedTls::new(verifier()).unwrap()
}

fn chain(error: &dyn Error) -> String {
    match error.source() {
        Some(cause) => format!("{error}: {}", chain(cause)),
        None => error.to_string(),
    }
}

#[tokio::test]
async fn an_application_that_knows_no_tls_is_reached_by_attested_tls() {
    let (enclave, tls) = (Enclave::start().await, client());
    let first = greeted(enclave.connect(&tls).await.unwrap()).await;
    assert!(!first.is_resumed());
    assert_eq!(first.verdict().document().anchor(), "test");
    let second = greeted(enclave.connect(&tls).await.unwrap()).await;
    assert!(second.is_resumed());
    assert_eq!((enclave.asked(), tls.counts().documents), (1, 1));
}

#[tokio::test]
async fn nobody_reaches_the_application_without_tls_or_without_a_verdict() {
    let enclave = Enclave::start().await;
    let mut plain = enclave.connection().await;
    plain.write_all(b"GET / HTTP/1.1\r\n\r\n").unwrap();
    let read = move || {
        let mut answer = Vec::new();
        let _ = plain.read_to_end(&mut answer);
        answer
    };
    let answer = tokio::task::spawn_blocking(read).await.unwrap();
    assert!(!answer.starts_with(b"hello"), "{answer:?}");
    let wrong = verifier().expect_pcr(PcrIndex::try_from(1_u16).unwrap(), PcrValue::ZERO);
    let error = enclave.connect(&AttestedTls::new(wrong).unwrap()).await;
    assert!(chain(&error.unwrap_err()).contains("PCR1 is"));
    assert_eq!(enclave.served.load(Ordering::SeqCst), 0);
}

#[tokio::test]
async fn before_the_application_listens_a_client_is_turned_away_before_tls() {
    let app = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = app.local_addr().unwrap().port();
    drop(app);
    let nsm = Arc::new(Counting::default());
    let channel = Arc::new(Channel::new(Arc::clone(&nsm) as _).unwrap());
    let (parent, receiver) = mpsc::channel(8);
    tokio::spawn(ingress::serve(Given(receiver), port, Some(channel)));
    let enclave = Enclave {
        parent,
        nsm,
        served: Arc::default(),
    };
    let error = enclave.connect(&client()).await.unwrap_err();
    assert!(matches!(error, AttestedTlsError::Io(_)), "{error:?}");
    assert_eq!(enclave.asked(), 0);
}

#[tokio::test]
async fn a_nonce_is_answered_once_per_session() {
    let json = r#"{"version":1,"require":{"nonce":"required"}}"#;
    let policy = Policy::from_json(json.as_bytes()).unwrap();
    let enclave = Enclave::start().await;
    let without = AttestedTls::new(verifier().policy(policy.clone())).unwrap();
    let error = enclave.connect(&without).await.unwrap_err();
    assert!(chain(&error).contains("nonce"), "{}", chain(&error));
    let tls = without.with_nonces().unwrap();
    let first = greeted(enclave.connect(&tls).await.unwrap()).await;
    let nonce = first.verdict().document().nonce().map(<[u8]>::len);
    assert_eq!((first.is_resumed(), nonce), (false, Some(32)));
    let asked = enclave.asked();
    let second = greeted(enclave.connect(&tls).await.unwrap()).await;
    assert!(second.is_resumed());
    assert_eq!((enclave.asked(), tls.counts().documents), (asked, 1));
}

#[tokio::test(start_paused = true)]
async fn certificates_are_renewed_when_they_are_needed_and_kept_while_the_nsm_is_silent() {
    let nsm = Arc::new(Counting::default());
    let channel = Channel::new(Arc::clone(&nsm) as _).unwrap();
    let asked = || nsm.asked.load(Ordering::SeqCst);
    assert_eq!(asked(), 0);
    channel.renew().await.unwrap();
    channel.renew().await.unwrap();
    assert_eq!(asked(), 1);
    tokio::time::advance(RENEW_AFTER).await;
    channel.renew().await.unwrap();
    assert_eq!(asked(), 2);
    nsm.broken.store(true, Ordering::SeqCst);
    tokio::time::advance(RENEW_AFTER).await;
    channel.renew().await.unwrap();
    tokio::time::advance(KEEP_FOR).await;
    channel.renew().await.unwrap_err();
    nsm.broken.store(false, Ordering::SeqCst);
    channel.renew().await.unwrap();
}
