//! A server that ends attested TLS as an enclave's agent does, and servers that only look like one.

#![allow(
    dead_code,
    unreachable_pub,
    clippy::unwrap_used,
    reason = "test code outside #[test] functions; each test binary uses its own part of it"
)]

use std::io::{BufReader, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use enclos_attest::channel::{ChannelKey, PURPOSE};
use enclos_attest::document::Claims;
use enclos_attest::{PcrValue, UnixMillis};
use rustls::crypto::aws_lc_rs::{Ticketer, default_provider};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::{CertifiedKey, SigningKey};
use rustls::{ServerConfig, ServerConnection, StreamOwned};

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
}

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
    key: ChannelKey,
    fault: Fault,
    current: Arc<Current>,
    heard: Arc<Mutex<Vec<Heard>>>,
    accepted: Arc<Mutex<usize>>,
}

impl Server {
    pub fn start(fault: Fault) -> Self {
        let signer = Arc::new(Signer::new());
        let application = service::application(Arc::clone(&signer), Manner::Honest);
        let key = ChannelKey::generate().unwrap();
        let certified = certified(&signer, &key, fault);
        let current = Arc::new(Current(Mutex::new(certified)));
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let server = Self {
            address: listener.local_addr().unwrap(),
            signer,
            key,
            fault,
            current: Arc::clone(&current),
            heard: Arc::default(),
            accepted: Arc::default(),
        };
        let (heard, accepted) = (Arc::clone(&server.heard), Arc::clone(&server.accepted));
        let config = config(current, fault);
        std::thread::spawn(move || serve(&listener, &config, application, &heard, &accepted));
        server
    }

    pub fn root_pem(&self) -> String {
        self.signer.root_pem()
    }

    pub fn url(&self) -> String {
        format!("https://{}", self.address)
    }

    /// Issues the certificate again, with a fresh document for the same key.
    pub fn renew(&self) {
        *self.current.0.lock().unwrap() = certified(&self.signer, &self.key, self.fault);
    }

    /// Requests that arrived.
    pub fn heard(&self) -> Vec<Heard> {
        self.heard.lock().unwrap().clone()
    }

    /// Connections that arrived.
    pub fn accepted(&self) -> usize {
        *self.accepted.lock().unwrap()
    }
}

fn serve(
    listener: &TcpListener,
    config: &Arc<ServerConfig>,
    application: impl FnMut(&Heard) -> Reply + Send + 'static,
    heard: &Arc<Mutex<Vec<Heard>>>,
    accepted: &Mutex<usize>,
) {
    let application = Arc::new(Mutex::new(application));
    for stream in listener.incoming() {
        let Ok(stream) = stream else { return };
        *accepted.lock().unwrap() += 1;
        let (config, application) = (Arc::clone(config), Arc::clone(&application));
        let heard = Arc::clone(heard);
        std::thread::spawn(move || {
            let limit = Some(Duration::from_secs(20));
            stream.set_read_timeout(limit).unwrap();
            stream.set_nodelay(true).unwrap();
            let tls = ServerConnection::new(config).unwrap();
            let mut stream: BufReader<StreamOwned<_, TcpStream>> =
                BufReader::new(StreamOwned::new(tls, stream));
            while let Some(request) = service::read(&mut stream) {
                heard.lock().unwrap().push(request.clone());
                let reply = application.lock().unwrap()(&request);
                let reply = service::response(reply, "keep-alive");
                if stream.get_mut().write_all(&reply).is_err() {
                    return;
                }
            }
        });
    }
}

fn config(current: Arc<Current>, fault: Fault) -> Arc<ServerConfig> {
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
    Arc::new(config)
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
        Fault::None | Fault::Tls12 => (vec![good()], key),
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
