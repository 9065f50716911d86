//! A service with an enclave's behaviour in this process: real documents of a real authority, a real
//! opener, plain HTTP.

#![allow(
    dead_code,
    unreachable_pub,
    clippy::unwrap_used,
    reason = "test code outside #[test] functions; each test binary uses its own part of it"
)]

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpListener};
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use base64::Engine as _;
use base64::prelude::{BASE64_STANDARD, BASE64_URL_SAFE_NO_PAD};
use enclos_attest::document::Claims;
use enclos_attest::pki::{Authority, LeafIdentity, LeafKey};
use enclos_attest::{PcrIndex, PcrValue, UnixMillis};
use enclos_client::seal::{CONTENT_TYPE, Opener};

const INSTANCE: &str = "i-0123456789abcdef0";
pub const MODULE: &str = "i-0123456789abcdef0-enc0191cceb4289903f";

/// What the service does to its documents.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Manner {
    /// What it should.
    Honest,
    /// Forgets the nonce.
    NoNonce,
    /// Answers with the first document for ever.
    Replaying,
    /// Debug mode: image registers zero.
    Debug,
    /// Documents without a key.
    NoKey,
    /// Answers with an error page.
    Broken,
    /// Answers sealed requests with a reply to another request.
    Confused,
}

/// One request that arrived.
#[derive(Debug, Clone)]
pub struct Heard {
    pub path: String,
    pub headers: BTreeMap<String, String>,
    pub body: Vec<u8>,
}

pub struct Signer {
    authority: Authority,
    identity: LeafIdentity,
}

impl Signer {
    pub fn new() -> Self {
        // Ten minutes ago, so that older documents can be made too.
        let now = UnixMillis::from(SystemTime::now()).minus(Duration::from_secs(600));
        let mut authority = Authority::create(now, "us-east-1", "us-east-1a", INSTANCE).unwrap();
        let key = LeafKey::generate().unwrap();
        let leaf = authority
            .issue_leaf(key.spki_der(), MODULE, 0x0191_cceb_4289_903f, now)
            .unwrap();
        Self {
            authority,
            identity: LeafIdentity::new(key, leaf).unwrap(),
        }
    }

    pub fn root_pem(&self) -> String {
        self.authority.root_certificate_pem()
    }

    pub fn document(&self, change: impl FnOnce(&mut Claims)) -> Vec<u8> {
        let mut claims = Claims {
            module_id: MODULE.to_owned(),
            timestamp: SystemTime::now().into(),
            pcrs: pcrs(),
            public_key: None,
            user_data: None,
            nonce: None,
        };
        change(&mut claims);
        self.identity.sign_document(&claims).unwrap()
    }
}

/// Value of a register in every document: its number, extended into zeros; from 5 on zero.
pub fn pcr(index: u16) -> PcrValue {
    let index = u8::try_from(index).unwrap();
    if index < 5 {
        PcrValue::ZERO.extend(&[index])
    } else {
        PcrValue::ZERO
    }
}

pub fn pcrs() -> BTreeMap<PcrIndex, PcrValue> {
    (0..16)
        .map(|index| (PcrIndex::try_from(index).unwrap(), pcr(index)))
        .collect()
}

/// Status, content type and body.
pub type Reply = (u16, &'static str, Vec<u8>);

/// What answers in the enclave.
pub fn application(
    signer: Arc<Signer>,
    manner: Manner,
) -> impl FnMut(&Heard) -> Reply + Send + 'static {
    let opener = Opener::generate().unwrap();
    let mut first = None;
    move |request| match request.path.split('?').next().unwrap() {
        "/attest" => {
            let document = document(&signer, &opener, manner, &request.path);
            let document = if manner == Manner::Replaying {
                first.get_or_insert(document).clone()
            } else {
                document
            };
            opener.offer(&document);
            attest(manner, &document)
        }
        "/process" => process(&opener, manner, request),
        _ => (404, "text/plain", b"not found".to_vec()),
    }
}

/// The service; it serves until the test process ends.
pub struct Service {
    pub address: SocketAddr,
    pub root_pem: String,
    heard: Arc<Mutex<Vec<Heard>>>,
}

impl Service {
    pub fn start(manner: Manner) -> Self {
        let signer = Arc::new(Signer::new());
        let root_pem = signer.root_pem();
        Self::serve(root_pem, application(signer, manner))
    }

    /// A KMS that knows one operation and no key.
    pub fn kms() -> Self {
        Self::serve(String::new(), |request| {
            let authorized = request.headers.get("authorization").is_some_and(|value| {
                value.starts_with("AWS4-HMAC-SHA256 Credential=test/")
                    && value.contains("/us-east-1/kms/aws4_request")
            });
            if !authorized
                || request.headers.get("x-amz-target").map(String::as_str)
                    != Some("TrentService.Encrypt")
            {
                let text = br#"{"__type":"AccessDeniedException","message":"no such principal"}"#;
                return (400, "application/x-amz-json-1.1", text.to_vec());
            }
            let blob = BASE64_STANDARD.encode(b"a ciphertext");
            (
                200,
                "application/x-amz-json-1.1",
                format!("{{\"CiphertextBlob\":\"{blob}\"}}").into_bytes(),
            )
        })
    }

    fn serve(root_pem: String, mut answer: impl FnMut(&Heard) -> Reply + Send + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let heard = Arc::new(Mutex::new(Vec::new()));
        let log = Arc::clone(&heard);
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let Ok(mut stream) = stream else { return };
                let limit = Some(Duration::from_secs(10));
                stream.set_read_timeout(limit).unwrap();
                let Some(request) = read(&mut BufReader::new(&mut stream)) else {
                    continue;
                };
                log.lock().unwrap().push(request.clone());
                let _ = stream.write_all(&response(answer(&request), "close"));
            }
        });
        Self {
            address,
            root_pem,
            heard,
        }
    }

    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// What arrived at a path.
    pub fn heard(&self, path: &str) -> Vec<Heard> {
        let heard = self.heard.lock().unwrap();
        heard
            .iter()
            .filter(|request| request.path.starts_with(path))
            .cloned()
            .collect()
    }
}

fn document(signer: &Signer, opener: &Opener, manner: Manner, path: &str) -> Vec<u8> {
    let nonce = path
        .split("nonce=")
        .nth(1)
        .map(|nonce| BASE64_URL_SAFE_NO_PAD.decode(nonce).unwrap());
    signer.document(|claims| {
        claims.nonce = nonce.filter(|_| manner != Manner::NoNonce);
        claims.public_key = (manner != Manner::NoKey).then(|| opener.public_key_der().to_vec());
        if manner == Manner::Debug {
            claims
                .pcrs
                .iter_mut()
                .take(3)
                .for_each(|(_, value)| *value = PcrValue::ZERO);
        }
    })
}

fn attest(manner: Manner, document: &[u8]) -> Reply {
    if manner == Manner::Broken {
        return (200, "text/html", b"<html>maintenance</html>".to_vec());
    }
    let body = format!(
        "{{\"attestation_doc\": \"{}\"}}",
        BASE64_STANDARD.encode(document)
    );
    (200, "application/json", body.into_bytes())
}

fn process(opener: &Opener, manner: Manner, request: &Heard) -> Reply {
    if request.headers.get("content-type").map(String::as_str) != Some(CONTENT_TYPE) {
        return (
            200,
            "application/json",
            b"{\"result\": \"in the open\"}".to_vec(),
        );
    }
    let opened = match opener.open(&request.body) {
        Ok(opened) => opened,
        Err(error) => {
            return (
                error.http_status(),
                "text/plain",
                error.to_string().into_bytes(),
            );
        }
    };
    let answer = [b"answer to ", opened.plaintext()].concat();
    let mut reply = opened.reply(&answer).unwrap();
    if manner == Manner::Confused {
        reply[6] ^= 1;
    }
    (200, CONTENT_TYPE, reply)
}

/// The bytes of a reply.
pub fn response((status, content_type, body): Reply, connection: &str) -> Vec<u8> {
    let head = format!(
        "HTTP/1.1 {status} X\r\ncontent-type: {content_type}\r\ncontent-length: {}\r\nconnection: {connection}\r\n\r\n",
        body.len()
    );
    [head.as_bytes(), &body].concat()
}

/// The next request of a connection.
pub fn read(reader: &mut impl BufRead) -> Option<Heard> {
    let mut line = String::new();
    reader.read_line(&mut line).ok()?;
    let path = line.split(' ').nth(1)?.to_owned();
    let mut headers = BTreeMap::new();
    loop {
        let mut line = String::new();
        reader.read_line(&mut line).ok()?;
        let Some((name, value)) = line.trim_end().split_once(':') else {
            break;
        };
        headers.insert(name.to_ascii_lowercase(), value.trim().to_owned());
    }
    let len = headers
        .get("content-length")
        .map_or(0, |len| len.parse().unwrap());
    let mut body = vec![0; len];
    reader.read_exact(&mut body).ok()?;
    Some(Heard {
        path,
        headers,
        body,
    })
}
