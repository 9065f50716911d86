//! A server that ends attested TLS as an enclave's agent does, and servers that only look like one.

#![allow(
    dead_code,
    unreachable_pub,
    clippy::unwrap_used,
    reason = "test code outside #[test] functions; each test binary uses its own part of it"
)]

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex, mpsc};
use std::time::{Duration, SystemTime};

use enclos_attest::channel::{ChannelKey, NONCE_ALPN, PURPOSE};
use enclos_attest::document::Claims;
use enclos_attest::{PcrValue, UnixMillis};
use rustls::crypto::aws_lc_rs::{Ticketer, default_provider};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use rustls::server::{Acceptor, ClientHello, ResolvesServerCert};
use rustls::sign::{CertifiedKey, SigningKey};
use rustls::{HandshakeKind, ServerConfig, ServerConnection, StreamOwned};

use crate::service::{self, Heard, Manner, Reply, Signer};

/// What is wrong with the server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// Nothing.
    None,
    /// The certificate of the real enclave, and another key to sign the handshake with.
    CopiedCertificate,
    /// The document of the real enclave in a certificate of its own.
    CopiedDocument,
    /// A document that the enclave made for something else.
    OtherPurpose,
    /// No document: a self-signed certificate as anyone makes it.
    Ordinary,
    /// A document of ten minutes ago.
    Old,
    /// A debug enclave.
    Debug,
    /// A further certificate.
    Chain,
    /// TLS 1.2 only.
    Tls12,
    /// Nonces are not answered.
    NoNonces,
    /// The answer is to another nonce.
    OtherNonce,
    /// The answer announces more than any document has.
    LongAnswer,
    /// Nothing, but it gives more tickets than anybody needs.
    ManyTickets,
    /// Connections end after one answer that promised more.
    OneAnswer,
    /// An answer whose length nobody tells ends with the connection, as it should.
    UntilTheEnd,
    /// The same, but somebody on the way cuts the connection.
    Cut,
    /// The server says that it has sent everything, and has sent nothing.
    NoAnswer,
    /// The head of the answer is longer than two TLS records.
    LongHead,
}

/// An answer that is as long as the connection lasts.
const UNTIL_THE_END: &[u8] = b"HTTP/1.1 200 X\r\nconnection: close\r\n\r\n{\"allowed\": [1, 2, 3]}";

/// The certificate of the moment.
#[derive(Debug)]
struct Current(Mutex<Arc<CertifiedKey>>);

impl ResolvesServerCert for Current {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(Arc::clone(&self.0.lock().unwrap()))
    }
}

/// The server; it serves until the test process ends.
pub struct Server {
    pub address: SocketAddr,
    pub signer: Arc<Signer>,
    shared: Arc<Shared>,
    ends: Mutex<mpsc::Receiver<End>>,
}

/// How a connection over which requests could come was over.
#[derive(Debug, Clone, Copy)]
pub struct End {
    /// Whether the client said so.
    pub told: bool,
    /// The client's address.
    pub client: SocketAddr,
}

/// What the server's threads have in common.
struct Shared {
    signer: Arc<Signer>,
    key: ChannelKey,
    fault: Fault,
    current: Arc<Current>,
    config: Arc<ServerConfig>,
    with_nonce: Arc<ServerConfig>,
    heard: Mutex<Vec<Heard>>,
    accepted: Mutex<usize>,
    resumed: Mutex<usize>,
}

impl Server {
    pub fn start(fault: Fault) -> Self {
        let signer = Arc::new(Signer::new());
        let application = service::application(Arc::clone(&signer), Manner::Honest);
        let key = ChannelKey::generate().unwrap();
        let current = Arc::new(Current(Mutex::new(certified(&signer, &key, fault))));
        let config = config(Arc::clone(&current), fault);
        let mut with_nonce = config.clone();
        with_nonce.alpn_protocols = vec![NONCE_ALPN.to_vec()];
        let shared = Arc::new(Shared {
            signer: Arc::clone(&signer),
            key,
            fault,
            current,
            config: Arc::new(config),
            with_nonce: Arc::new(with_nonce),
            heard: Mutex::default(),
            accepted: Mutex::default(),
            resumed: Mutex::default(),
        });
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let served = Arc::clone(&shared);
        let (ended, ends) = mpsc::channel();
        std::thread::spawn(move || serve(&listener, &served, &ended, application));
        Self {
            address,
            signer,
            shared,
            ends: Mutex::new(ends),
        }
    }

    pub fn root_pem(&self) -> String {
        self.signer.root_pem()
    }

    pub fn url(&self) -> String {
        format!("https://{}", self.address)
    }

    /// Issues the certificate again, with a fresh document for the same key.
    pub fn renew(&self) {
        let Shared {
            signer, key, fault, ..
        } = &*self.shared;
        *self.shared.current.0.lock().unwrap() = certified(signer, key, *fault);
    }

    /// Requests that arrived.
    pub fn heard(&self) -> Vec<Heard> {
        self.shared.heard.lock().unwrap().clone()
    }

    /// Connections that arrived.
    pub fn accepted(&self) -> usize {
        *self.shared.accepted.lock().unwrap()
    }

    /// Waits for the next end of a connection.
    pub fn next_end(&self) -> End {
        let limit = Duration::from_secs(60);
        self.ends.lock().unwrap().recv_timeout(limit).unwrap()
    }

    /// Handshakes that resumed a session.
    pub fn resumed(&self) -> usize {
        *self.shared.resumed.lock().unwrap()
    }
}

fn serve(
    listener: &TcpListener,
    shared: &Arc<Shared>,
    ended: &mpsc::Sender<End>,
    application: impl FnMut(&Heard) -> Reply + Send + 'static,
) {
    let application = Arc::new(Mutex::new(application));
    for stream in listener.incoming() {
        let Ok(stream) = stream else { return };
        *shared.accepted.lock().unwrap() += 1;
        let (shared, application) = (Arc::clone(shared), Arc::clone(&application));
        let ended = ended.clone();
        std::thread::spawn(move || {
            let limit = Some(Duration::from_secs(20));
            stream.set_read_timeout(limit).unwrap();
            stream.set_nodelay(true).unwrap();
            let client = stream.peer_addr().unwrap();
            let Some(stream) = shared.accept(stream) else {
                return;
            };
            let answer = |heard: &Heard| application.lock().unwrap()(heard);
            let told = shared.converse(stream, answer);
            let _ = ended.send(End { told, client });
        });
    }
}

impl Shared {
    /// Answers requests until there are no more; whether the client said so.
    fn converse(
        &self,
        stream: StreamOwned<ServerConnection, TcpStream>,
        answer: impl Fn(&Heard) -> Reply,
    ) -> bool {
        let mut stream = BufReader::new(stream);
        while let Some(request) = service::read(&mut stream) {
            self.heard.lock().unwrap().push(request.clone());
            let reply = match self.fault {
                Fault::UntilTheEnd | Fault::Cut => UNTIL_THE_END.to_vec(),
                Fault::NoAnswer => Vec::new(),
                Fault::LongHead => long_head(),
                _ => service::response(answer(&request), "keep-alive"),
            };
            let sent = stream.get_mut().write_all(&reply);
            if matches!(self.fault, Fault::UntilTheEnd | Fault::NoAnswer) {
                stream.get_mut().conn.send_close_notify();
                return stream.get_mut().flush().is_ok();
            }
            if sent.is_err() || matches!(self.fault, Fault::OneAnswer | Fault::Cut) {
                return false;
            }
        }
        stream.fill_buf().is_ok_and(<[u8]>::is_empty)
    }

    /// TLS, and the answer to a nonce where the client says that it sends one.
    fn accept(&self, mut stream: TcpStream) -> Option<StreamOwned<ServerConnection, TcpStream>> {
        let mut acceptor = Acceptor::default();
        let hello = loop {
            acceptor
                .read_tls(&mut stream)
                .ok()
                .filter(|read| *read > 0)?;
            match acceptor.accept() {
                Ok(Some(hello)) => break hello,
                Ok(None) => {}
                Err(_) => return None,
            }
        };
        let offered = hello
            .client_hello()
            .alpn()
            .is_some_and(|mut names| names.any(|name| name == NONCE_ALPN));
        let nonces = offered && self.fault != Fault::NoNonces;
        let config = if nonces {
            &self.with_nonce
        } else {
            &self.config
        };
        let mut tls = match hello.into_connection(Arc::clone(config)) {
            Ok(tls) => tls,
            Err((_, mut alert)) => {
                alert.write_all(&mut stream).ok()?;
                return None;
            }
        };
        while tls.is_handshaking() {
            tls.complete_io(&mut stream).ok()?;
        }
        let resumed = tls.handshake_kind() == Some(HandshakeKind::Resumed);
        *self.resumed.lock().unwrap() += usize::from(resumed);
        let mut stream = StreamOwned::new(tls, stream);
        if nonces {
            self.answer(&mut stream).ok()?;
        }
        Some(stream)
    }

    fn answer(&self, stream: &mut (impl Read + Write)) -> std::io::Result<()> {
        let mut len = [0];
        stream.read_exact(&mut len)?;
        if len == [0] {
            return Ok(());
        }
        let mut nonce = vec![0; len[0].into()];
        stream.read_exact(&mut nonce)?;
        if self.fault == Fault::OtherNonce {
            nonce[0] ^= 1;
        }
        let document = self.signer.document(|claims| {
            claims.public_key = Some(self.key.spki_der().to_vec());
            claims.user_data = Some(PURPOSE.to_vec());
            claims.nonce = Some(nonce);
        });
        let len = match self.fault {
            Fault::LongAnswer => u32::MAX,
            _ => u32::try_from(document.len()).unwrap(),
        };
        stream.write_all(&[&len.to_be_bytes(), document.as_slice()].concat())?;
        stream.flush()
    }
}

fn config(current: Arc<Current>, fault: Fault) -> ServerConfig {
    let versions: &[_] = match fault {
        Fault::Tls12 => &[&rustls::version::TLS12],
        _ => &[&rustls::version::TLS13],
    };
    let mut config = ServerConfig::builder_with_provider(Arc::new(default_provider()))
        .with_protocol_versions(versions)
        .unwrap()
        .with_no_client_auth()
        .with_cert_resolver(current);
    config.ticketer = Ticketer::new().unwrap();
    if fault == Fault::ManyTickets {
        config.send_tls13_tickets = 20;
    }
    config
}

fn certified(signer: &Signer, key: &ChannelKey, fault: Fault) -> Arc<CertifiedKey> {
    let real = key.spki_der().to_vec();
    let document = |change: &dyn Fn(&mut Claims)| {
        signer.document(|claims| {
            claims.public_key = Some(real.clone());
            claims.user_data = Some(PURPOSE.to_vec());
            change(claims);
        })
    };
    let other = ChannelKey::generate().unwrap();
    let made = |change| key.certificate(&document(change)).unwrap();
    let good = || made(&|_| ());
    let (chain, key) = match fault {
        Fault::None
        | Fault::Tls12
        | Fault::NoNonces
        | Fault::OtherNonce
        | Fault::LongAnswer
        | Fault::ManyTickets
        | Fault::OneAnswer
        | Fault::UntilTheEnd
        | Fault::Cut
        | Fault::NoAnswer
        | Fault::LongHead => (vec![good()], key),
        Fault::CopiedCertificate => (vec![good()], &other),
        Fault::CopiedDocument => (vec![other.certificate(&document(&|_| ())).unwrap()], &other),
        Fault::OtherPurpose => (vec![made(&|claims| claims.user_data = None)], key),
        Fault::Ordinary => return ordinary(),
        Fault::Old => (vec![made(&old)], key),
        Fault::Debug => (vec![made(&debug)], key),
        Fault::Chain => (
            vec![good(), other.certificate(&document(&|_| ())).unwrap()],
            key,
        ),
    };
    let key = signing(key.pkcs8_der().unwrap().to_vec());
    let chain = chain.into_iter().map(CertificateDer::from).collect();
    Arc::new(CertifiedKey::new(chain, key))
}

fn long_head() -> Vec<u8> {
    let filler = "x".repeat(40_000);
    format!("HTTP/1.1 200 X\r\nx: {filler}\r\ncontent-length: 2\r\n\r\n{{}}").into_bytes()
}

fn old(claims: &mut Claims) {
    claims.timestamp = UnixMillis::from(SystemTime::now()).minus(Duration::from_secs(599));
}

fn debug(claims: &mut Claims) {
    for value in claims.pcrs.values_mut().take(3) {
        *value = PcrValue::ZERO;
    }
}

fn ordinary() -> Arc<CertifiedKey> {
    let key = rcgen::KeyPair::generate_for(&rcgen::PKCS_ECDSA_P384_SHA384).unwrap();
    let names = vec!["localhost".to_owned(), "127.0.0.1".to_owned()];
    let certificate = rcgen::CertificateParams::new(names).unwrap();
    let chain = vec![certificate.self_signed(&key).unwrap().der().clone()];
    Arc::new(CertifiedKey::new(chain, signing(key.serialize_der())))
}

fn signing(pkcs8: Vec<u8>) -> Arc<dyn SigningKey> {
    let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(pkcs8));
    default_provider()
        .key_provider
        .load_private_key(key)
        .unwrap()
}
