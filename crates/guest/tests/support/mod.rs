//! An enclave's surroundings on the host: the real gateway, a KMS that the test plays behind real TLS, the
//! NSM's state machine with documents of a certificate authority of the test, and a client.

use std::collections::HashMap;
use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, LazyLock, Mutex};
use std::time::{Duration, SystemTime};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use enclos_api::config::{HostConfig, Instance, Kms, KmsAddress, Role};
use enclos_api::control::{BootTimes, Enclave, Measurements, State};
use enclos_attest::document::{TrustAnchors, UnverifiedDocument, VerifiedDocument, VerifyOptions};
use enclos_attest::nsm::{ErrorCode, HostError, Nsm, NsmHost, Response as NsmResponse};
use enclos_attest::pki::{Authority, LeafIdentity, LeafKey};
use enclos_attest::{PcrIndex, PcrValue, UnixMillis};
use enclos_gateway::registry::{Registry, port_path};
use enclos_guest::agent::facts::Facts;
use enclos_guest::agent::http;
use enclos_guest::agent::imds::Imds;
use enclos_guest::agent::kms::Endpoint;
use enclos_guest::agent::kms::keys::Keys;
use enclos_guest::agent::nsm::Nsm as NsmDevice;
use enclos_guest::agent::transport::{Boxed, Dial};
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use rustls::ServerConfig;
use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UnixStream};
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;

pub const LIMIT: Duration = Duration::from_secs(60);
pub const SERVER_NAME: &str = "kms.enclos.internal";
pub const KEY_ARN: &str =
    "arn:aws:kms:eu-west-3:000000000000:key/11112222-3333-4444-5555-666677778888";

/// The parent over unix sockets named as the hypervisor names them.
#[derive(Debug)]
pub struct UnixParent(pub PathBuf);

impl Dial for UnixParent {
    fn dial(&self, port: u32) -> Boxed<'_, io::Result<UnixStream>> {
        Box::pin(async move { UnixStream::connect(port_path(&self.0, port)).await })
    }
}

/// The module of an enclave, and the root that its documents end in.
struct Module {
    nsm: Nsm,
    identity: LeafIdentity,
    root: String,
}

/// One for all tests; its PCR0, PCR1 and PCR2 are [`image_pcr`].
static MODULE: LazyLock<Mutex<Module>> = LazyLock::new(|| {
    let (id, instance) = (
        "i-0123456789abcdef0-enc0123456789abcdef",
        "i-0123456789abcdef0",
    );
    let mut authority = Authority::create(now(), "eu-west-3", "eu-west-3a", instance).unwrap();
    let key = LeafKey::generate().unwrap();
    let leaf = authority.issue_leaf(key.spki_der(), id, 1, now()).unwrap();
    let index = |index: usize| PcrIndex::try_from(index).unwrap();
    let measured = [0, 1, 2].map(|pcr| (index(pcr), image_pcr()));
    Mutex::new(Module {
        nsm: Nsm::new(id.to_owned(), &measured.into()),
        identity: LeafIdentity::new(key, leaf).unwrap(),
        root: authority.root_certificate_pem(),
    })
});

pub fn image_pcr() -> PcrValue {
    PcrValue::measured(&[7; 48])
}

/// Root certificate of the tests' documents, PEM.
pub fn root_pem() -> String {
    MODULE.lock().unwrap().root.clone()
}

pub fn now() -> UnixMillis {
    let now = SystemTime::now()
        .duration_since(SystemTime::UNIX_EPOCH)
        .unwrap();
    UnixMillis(now.as_millis().try_into().unwrap())
}

struct Surroundings<'a>(&'a LeafIdentity);

impl NsmHost for Surroundings<'_> {
    fn now(&self) -> UnixMillis {
        now()
    }

    fn signer(&mut self) -> Result<&LeafIdentity, HostError> {
        Ok(self.0)
    }
}

/// The NSM as the hypervisor has it: real documents.
#[derive(Debug)]
pub struct RealNsm;

impl NsmDevice for RealNsm {
    fn call(&self, request: &[u8]) -> io::Result<Vec<u8>> {
        let Module { nsm, identity, .. } = &mut *MODULE.lock().unwrap();
        Ok(nsm.handle(request, &mut Surroundings(identity)))
    }
}

/// Verifies a document as a KMS does.
pub fn verify(document: &[u8]) -> VerifiedDocument {
    let anchors = TrustAnchors::new()
        .with_root("test", root_pem().as_bytes())
        .unwrap();
    let document = UnverifiedDocument::parse(document).unwrap();
    document
        .verify(&anchors, now(), &VerifyOptions::default())
        .unwrap()
}

/// An NSM that refuses.
#[derive(Debug)]
pub struct BrokenNsm;

impl NsmDevice for BrokenNsm {
    fn call(&self, _: &[u8]) -> io::Result<Vec<u8>> {
        Ok(NsmResponse::Error(ErrorCode::InternalError).encode())
    }
}

/// A request as the KMS sees it.
#[derive(Debug, Clone)]
pub struct Seen {
    pub headers: HashMap<String, String>,
    pub body: Value,
}

impl Seen {
    /// The public key in the verified document of `Recipient`.
    pub fn public_key(&self) -> Vec<u8> {
        let document = self.body["Recipient"]["AttestationDocument"]
            .as_str()
            .unwrap();
        let document = verify(&STANDARD.decode(document).unwrap());
        assert_eq!(
            document.pcrs()[&PcrIndex::try_from(0_usize).unwrap()],
            image_pcr()
        );
        document.public_key().unwrap().to_vec()
    }

    pub fn sealed(&self, plaintext: &[u8]) -> String {
        let recipient = enclos_kms::crypto::cms::Recipient::from_spki(&self.public_key()).unwrap();
        STANDARD.encode(recipient.envelope(plaintext).unwrap())
    }
}

type Reply = Box<dyn Fn(&Seen) -> (u16, Value) + Send + Sync>;

/// A KMS that answers as the test says.
pub struct FakeKms {
    pub address: SocketAddr,
    pub ca_pem: String,
    pub seen: Arc<Mutex<Vec<Seen>>>,
    pub connections: Arc<AtomicUsize>,
}

impl FakeKms {
    pub async fn start(
        keep_alive: bool,
        reply: impl Fn(&Seen) -> (u16, Value) + Send + Sync + 'static,
    ) -> Self {
        let (ca_pem, acceptor) = certificate(SERVER_NAME);
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let seen = Arc::new(Mutex::new(Vec::new()));
        let connections = Arc::new(AtomicUsize::new(0));
        let reply: Arc<Reply> = Arc::new(Box::new(reply));
        let (log, count) = (Arc::clone(&seen), Arc::clone(&connections));
        tokio::spawn(async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                count.fetch_add(1, Ordering::SeqCst);
                let (acceptor, log, reply) =
                    (acceptor.clone(), Arc::clone(&log), Arc::clone(&reply));
                tokio::spawn(async move {
                    let Ok(mut stream) = acceptor.accept(stream).await else {
                        return;
                    };
                    while let Some((_, headers, body)) = read_message(&mut stream).await {
                        let body = serde_json::from_slice(&body).unwrap_or(Value::Null);
                        let request = Seen { headers, body };
                        log.lock().unwrap().push(request.clone());
                        let (status, value) = reply(&request);
                        let text = value.to_string();
                        let head = format!(
                            "HTTP/1.1 {status} X\r\ncontent-length: {}\r\n\
                             content-type: application/x-amz-json-1.1\r\n\
                             x-amzn-requestid: r-1\r\nx-internal: secret\r\n\r\n",
                            text.len()
                        );
                        let bytes = [head.as_bytes(), text.as_bytes()].concat();
                        if stream.write_all(&bytes).await.is_err() || !keep_alive {
                            break;
                        }
                    }
                    let _ = stream.shutdown().await;
                });
            }
        });
        Self {
            address,
            ca_pem,
            seen,
            connections,
        }
    }

    pub fn last(&self) -> Seen {
        self.seen.lock().unwrap().last().unwrap().clone()
    }
}

/// A certificate for `name` by an authority of its own.
pub fn certificate(name: &str) -> (String, TlsAcceptor) {
    let ca_key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let ca = params.self_signed(&ca_key).unwrap();
    let issuer = Issuer::new(params, ca_key);
    let key = KeyPair::generate().unwrap();
    let leaf = CertificateParams::new(vec![name.to_owned()]).unwrap();
    let leaf = leaf.signed_by(&key, &issuer).unwrap();
    let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der()));
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![leaf.der().clone()], key)
        .unwrap();
    (ca.pem(), TlsAcceptor::from(Arc::new(config)))
}

/// Head line, headers and body of one HTTP message; nothing at the end of the stream.
pub async fn read_message(
    stream: &mut (impl tokio::io::AsyncRead + Unpin),
) -> Option<(String, HashMap<String, String>, Vec<u8>)> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stream.read_u8().await.ok()?);
    }
    let head = String::from_utf8(head).unwrap();
    let mut lines = head.lines();
    let first = lines.next().unwrap().to_owned();
    let headers: HashMap<String, String> = lines
        .filter_map(|line| line.split_once(": "))
        .map(|(name, value)| (name.to_ascii_lowercase(), value.to_owned()))
        .collect();
    let len = headers
        .get("content-length")
        .map_or(0, |len| len.parse().unwrap());
    let mut body = vec![0; len];
    stream.read_exact(&mut body).await.ok()?;
    Some((first, headers, body))
}

/// An answer as the application sees it.
#[derive(Debug)]
pub struct Answer {
    pub status: u16,
    pub headers: HashMap<String, String>,
    pub body: Vec<u8>,
}

impl Answer {
    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap()
    }

    pub fn text(&self) -> &str {
        std::str::from_utf8(&self.body).unwrap()
    }
}

pub async fn http(address: SocketAddr, head: &str, body: &[u8]) -> Answer {
    let exchange = async {
        let mut stream = TcpStream::connect(address).await.unwrap();
        let head = format!(
            "{head}\r\nhost: x\r\ncontent-length: {}\r\n\r\n",
            body.len()
        );
        stream.write_all(head.as_bytes()).await.unwrap();
        // A server that refuses a long body need not read it all.
        let _ = stream.write_all(body).await;
        read_message(&mut stream).await.unwrap()
    };
    let (first, headers, body) = timeout(LIMIT, exchange).await.unwrap();
    let status = first.split(' ').nth(1).unwrap().parse().unwrap();
    Answer {
        status,
        headers,
        body,
    }
}

/// Everything around an agent.
pub struct World {
    pub dir: tempfile::TempDir,
    pub registry: Arc<Registry>,
    pub parent: Arc<dyn Dial>,
}

impl World {
    /// A parent with a role, whose tunnel ends at `kms`.
    pub async fn new(kms: SocketAddr) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let credentials = dir.path().join("role.json");
        let text = r#"{"AccessKeyId":"ASIAENCLOS","SecretAccessKey":"secret","SessionToken":"token",
            "Expiration":"2099-01-01T00:00:00Z"}"#;
        std::fs::write(&credentials, text).unwrap();
        let vsock = dir.path().join("vsock.sock");
        let ledger = dir.path().join("publications.json");
        let registry = Arc::new(Registry::new(host(kms, Some(credentials)), ledger));
        registry.add(&enclave(vsock.clone())).await;
        Self {
            dir,
            registry,
            parent: Arc::new(UnixParent(vsock)),
        }
    }

    pub fn vsock(&self) -> PathBuf {
        self.dir.path().join("vsock.sock")
    }

    pub fn credentials(&self) -> PathBuf {
        self.dir.path().join("role.json")
    }

    pub fn facts(&self) -> Arc<Facts> {
        Arc::new(Facts::new(Arc::clone(&self.parent)))
    }

    /// A KMS endpoint; returns its address.
    pub async fn endpoint(&self, kms: Kms, nsm: Arc<dyn NsmDevice>) -> SocketAddr {
        let keys = Keys::start().unwrap();
        let parent = Arc::clone(&self.parent);
        let endpoint = Endpoint::new(kms, self.facts(), nsm, keys, parent).unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(http::serve(listener, None, Arc::new(endpoint)));
        address
    }

    /// A metadata service; returns its address.
    pub async fn imds(&self, nsm: Arc<dyn NsmDevice>) -> SocketAddr {
        let imds = Imds::new(self.facts(), nsm).unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(http::serve(listener, None, Arc::new(imds)));
        address
    }
}

pub fn kms_config(ca_pem: &str) -> Kms {
    Kms {
        region: "eu-west-3".into(),
        server_name: SERVER_NAME.into(),
        ca_pem: ca_pem.into(),
        key_arns: vec![KEY_ARN.into()],
        attested_signing: false,
    }
}

pub fn host(kms: SocketAddr, credentials_file: Option<PathBuf>) -> HostConfig {
    HostConfig {
        instance: Instance {
            id: "i-0123456789abcdef0".into(),
            region: "eu-west-3".into(),
            availability_zone: "eu-west-3a".into(),
            account_id: "000000000000".into(),
        },
        role: Some(Role {
            arn: "arn:aws:iam::000000000000:role/parent".into(),
            credentials_file,
        }),
        kms: Some(KmsAddress { address: kms }),
    }
}

pub fn enclave(vsock: PathBuf) -> Enclave {
    Enclave {
        id: "i-0123456789abcdef0-enc1".into(),
        name: "test".into(),
        pid: 1,
        cid: 16,
        cpu_ids: vec![0],
        cpu_count: 1,
        memory_mib: 64,
        state: State::Running,
        debug: false,
        measurements: Measurements::default(),
        image: Value::Null,
        vsock,
        owner_uid: 0,
        boot: BootTimes::default(),
    }
}

/// An address where nobody listens.
pub async fn nowhere() -> SocketAddr {
    TcpListener::bind("127.0.0.1:0")
        .await
        .unwrap()
        .local_addr()
        .unwrap()
}

/// Whether a path is gone soon.
pub async fn gone(path: &Path) {
    let wait = async {
        while path.exists() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    timeout(LIMIT, wait).await.unwrap();
}
