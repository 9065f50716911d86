//! A server process of its own for each test, and a client that signs with AWS's crate and shares no code with it.

#![allow(dead_code, reason = "each test file uses a part of it")]

pub(crate) mod campaign;
pub(crate) mod enclave;
pub(crate) mod fleet;
pub(crate) mod postgres;
pub(crate) mod token;

use std::io::{BufRead as _, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use aws_credential_types::Credentials;
use aws_sigv4::http_request::{SignableBody, SignableRequest, SigningSettings, sign};
use aws_sigv4::sign::v4;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use rustls::pki_types::pem::PemObject as _;
use serde_json::Value;

/// Longest that anything here may take: more than the server lets anybody wait for a disk or a database that hangs.
const PATIENCE: Duration = Duration::from_secs(40);

pub(crate) const REGION: &str = "eu-west-1";
pub(crate) const BINARY: &str = env!("CARGO_BIN_EXE_enclos-kms");

/// A running `enclos-kms serve` and its data directory.
pub(crate) struct Server {
    child: Child,
    pub(crate) data: PathBuf,
    pub(crate) database: Option<String>,
    pub(crate) http: Option<SocketAddr>,
    pub(crate) https: Option<SocketAddr>,
    pub(crate) operations: Option<SocketAddr>,
    _directory: Option<tempfile::TempDir>,
}

impl Server {
    /// A server with a development listener on a new directory.
    pub(crate) fn dev() -> Self {
        Self::with(&[])
    }

    /// The same with further arguments.
    pub(crate) fn with(arguments: &[&str]) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let mut all = vec!["--listen", "127.0.0.1:0", "--dev"];
        all.extend(arguments);
        let mut server = Self::start(directory.path(), &all);
        server._directory = Some(directory);
        server
    }

    /// A server with both listeners on a new directory.
    pub(crate) fn tls() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let all = ["--listen", "127.0.0.1:0", "--dev-listen", "127.0.0.1:0"];
        let mut server = Self::start(directory.path(), &all);
        server._directory = Some(directory);
        server
    }

    /// A server on an existing directory.
    pub(crate) fn start(data: &Path, arguments: &[&str]) -> Self {
        Self::start_with(data, arguments, &[])
    }

    /// The same with more environment.
    pub(crate) fn start_with(
        data: &Path,
        arguments: &[&str],
        environment: &[(&str, &Path)],
    ) -> Self {
        Self::launch(data, postgres::for_directory(data), arguments, environment)
    }

    /// A server on an existing directory and a database.
    pub(crate) fn start_on(data: &Path, database: Option<String>, arguments: &[&str]) -> Self {
        Self::launch(data, database, arguments, &[])
    }

    /// A server on an existing directory and a database, with more environment.
    pub(crate) fn launch(
        data: &Path,
        database: Option<String>,
        arguments: &[&str],
        environment: &[(&str, &Path)],
    ) -> Self {
        let log = std::fs::File::options()
            .create(true)
            .append(true)
            .open(data.join("log"))
            .unwrap();
        let mut child = Command::new(BINARY)
            .arg("serve")
            .arg("--data")
            .arg(data)
            .args(database.iter().flat_map(|url| ["--database", url]))
            .args(arguments)
            .env("ENCLOS_LOG", "trace")
            .envs(environment.iter().copied())
            .stdout(Stdio::piped())
            .stderr(log)
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let (mut http, mut https, mut operations) = (None, None, None);
        let more = ["--dev-listen", "--operations-listen"];
        let more = more.iter().filter(|flag| arguments.contains(flag));
        for _ in 0..=more.count() {
            let Some(line) = lines.next() else {
                let log = std::fs::read_to_string(data.join("log")).unwrap();
                let last: Vec<_> = log.lines().rev().take(40).collect();
                panic!("the server ended early; its last lines first: {last:#?}");
            };
            let line = line.unwrap();
            let (what, url) = line.split_once(" on ").unwrap();
            let (scheme, address) = url.split_once("://").unwrap();
            let address = Some(address.parse().unwrap());
            match (what, scheme) {
                ("operations", _) => operations = address,
                (_, "https") => https = address,
                _ => http = address,
            }
        }
        Self {
            child,
            data: data.to_owned(),
            database,
            http,
            https,
            operations,
            _directory: None,
        }
    }

    /// What the address for operations says of the metrics.
    pub(crate) fn metrics(&self) -> String {
        let client = Client::new(self.operations.unwrap(), "", "");
        let request = b"GET /metrics HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n";
        String::from_utf8(client.raw(request)).unwrap()
    }

    /// The development client.
    pub(crate) fn client(&self) -> Client {
        Client::new(self.http.unwrap(), "test", "test")
    }

    /// A client of the TLS listener for a new access key of a principal.
    pub(crate) fn principal(&self, arn: &str) -> Client {
        let output = self.tool(&["principal", "add", "--arn", arn]);
        assert!(
            output.status.success(),
            "{}",
            String::from_utf8_lossy(&output.stderr)
        );
        let credentials: Value = serde_json::from_slice(&output.stdout).unwrap();
        let text = |name: &str| credentials[name].as_str().unwrap().to_owned();
        let mut client = Client::new(
            self.http.unwrap(),
            &text("AccessKeyId"),
            &text("SecretAccessKey"),
        );
        if let Some(address) = self.https {
            client.address = address;
            client.tls = Some(self.data.join("tls/ca.pem"));
        }
        client
    }

    /// Runs another command of the program on the same data directory.
    pub(crate) fn tool(&self, arguments: &[&str]) -> Output {
        Command::new(BINARY)
            .args(arguments)
            .arg("--data")
            .arg(&self.data)
            .args(self.database.iter().flat_map(|url| ["--database", url]))
            .output()
            .unwrap()
    }

    /// Audit events, oldest first, once there are at least `count`.
    pub(crate) fn audit(&self, count: usize) -> Vec<Value> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let output = self.tool(&["audit", "--json"]);
            assert!(
                output.status.success(),
                "{}",
                String::from_utf8_lossy(&output.stderr)
            );
            let text = String::from_utf8(output.stdout).unwrap();
            let events: Vec<Value> = text
                .lines()
                .map(|line| serde_json::from_str(line).unwrap())
                .collect();
            if events.len() >= count {
                return events;
            }
            assert!(
                Instant::now() < deadline,
                "{} of {count} events",
                events.len()
            );
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Changes the database as someone would who is no KMS.
    pub(crate) fn sql(&self, statement: &str) {
        use sqlx::{ConnectOptions as _, Executor as _};
        if self.database.is_some() {
            postgres::psql(&self.data, statement);
            return;
        }
        let options = sqlx::sqlite::SqliteConnectOptions::new().filename(self.data.join("kms.db"));
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        runtime.block_on(async {
            let mut connection = options.connect().await.unwrap();
            connection.execute(statement).await.unwrap();
            sqlx::Connection::close(connection).await.unwrap();
        });
    }

    pub(crate) fn log(&self) -> String {
        std::fs::read_to_string(self.data.join("log")).unwrap()
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Ends the process at once, as a power cut would.
    pub(crate) fn kill(mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// Asks the process to stop; its exit status.
    pub(crate) fn stop(&mut self) -> Option<i32> {
        self.stop_within(PATIENCE)
    }

    /// The same for what takes its time.
    pub(crate) fn stop_within(&mut self, patience: Duration) -> Option<i32> {
        let pid = rustix::process::Pid::from_child(&self.child);
        rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
        let deadline = Instant::now() + patience;
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status.code();
            }
            assert!(Instant::now() < deadline, "the server did not stop");
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ended = self.child.kill();
        let _status = self.child.wait();
    }
}

/// Compiles one of the C files beside this one into a library.
pub(crate) fn library(source: &str, to: &Path) {
    let source = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/common")
        .join(source);
    let compiled = Command::new("cc")
        .args(["-shared", "-fPIC", "-Wall", "-Werror", "-o"])
        .args([to, &source])
        .output()
        .expect("cc (package gcc)");
    let said = String::from_utf8_lossy(&compiled.stderr);
    assert!(compiled.status.success(), "{said}");
}

/// Arguments of a server that [`readiness`] can ask.
pub(crate) const WITH_READINESS: [&str; 5] = [
    "--listen",
    "127.0.0.1:0",
    "--dev",
    "--operations-listen",
    "127.0.0.1:0",
];

/// What `/readyz` says.
pub(crate) fn readiness(server: &Server) -> String {
    let client = Client::new(server.operations.unwrap(), "", "");
    let request = b"GET /readyz HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n";
    String::from_utf8(client.raw(request)).unwrap()
}

/// Asks until there is an answer.
#[track_caller]
pub(crate) fn until<T>(what: &str, mut found: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + Duration::from_secs(60);
    loop {
        if let Some(found) = found() {
            return found;
        }
        assert!(Instant::now() < deadline, "{what}");
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// A reply: status, error type, body.
#[derive(Debug, Clone)]
pub(crate) struct Reply {
    pub(crate) status: u16,
    pub(crate) headers: String,
    pub(crate) body: Value,
}

impl Reply {
    /// The body of a success.
    pub(crate) fn ok(self) -> Value {
        assert_eq!(self.status, 200, "{self:?}");
        self.body
    }

    /// Type and text of a failure.
    pub(crate) fn error(&self) -> (&str, &str) {
        assert_ne!(self.status, 200, "{self:?}");
        let text = self
            .body
            .get("message")
            .and_then(Value::as_str)
            .unwrap_or_default();
        (self.body["__type"].as_str().unwrap(), text)
    }

    pub(crate) fn error_type(&self) -> &str {
        self.error().0
    }
}

/// Credentials and where to use them.
#[derive(Debug, Clone)]
pub(crate) struct Client {
    pub(crate) address: SocketAddr,
    pub(crate) id: String,
    pub(crate) secret: String,
    pub(crate) region: String,
    pub(crate) tls: Option<PathBuf>,
    pub(crate) token: Option<String>,
    /// Seconds that this client's clock is ahead.
    pub(crate) skew: i64,
}

impl Client {
    pub(crate) fn new(address: SocketAddr, id: &str, secret: &str) -> Self {
        Self {
            address,
            id: id.to_owned(),
            secret: secret.to_owned(),
            region: REGION.to_owned(),
            tls: None,
            token: None,
            skew: 0,
        }
    }

    /// Calls an operation.
    pub(crate) fn call(&self, operation: &str, input: Value) -> Reply {
        self.call_bytes(operation, input.to_string().as_bytes())
    }

    /// Calls an operation of a server that may be gone; `None` if there was no whole reply.
    pub(crate) fn try_call(&self, operation: &str, input: &Value) -> Option<Reply> {
        let body = input.to_string();
        let headers = self.signed(&format!("TrentService.{operation}"), body.as_bytes());
        let request = request("POST", "/", &headers, body.as_bytes());
        let stream = TcpStream::connect_timeout(&self.address, PATIENCE).ok()?;
        stream.set_read_timeout(Some(PATIENCE)).ok()?;
        try_parse(&exchange(stream, &request))
    }

    /// Calls an operation with any body.
    pub(crate) fn call_bytes(&self, operation: &str, body: &[u8]) -> Reply {
        let target = format!("TrentService.{operation}");
        let headers = self.signed(&target, body);
        self.send("POST", "/", &headers, body)
    }

    /// Calls an operation of STS: its status and XML.
    pub(crate) fn sts(&self, form: &str) -> (u16, String) {
        let form = format!("Version=2011-06-15&{form}");
        let headers = vec![
            ("host".to_owned(), self.address.to_string()),
            (
                "content-type".to_owned(),
                "application/x-www-form-urlencoded; charset=utf-8".to_owned(),
            ),
        ];
        let headers = self.sign("sts", headers, form.as_bytes());
        let reply = self.raw(&request("POST", "/", &headers, form.as_bytes()));
        let text = String::from_utf8(reply).unwrap();
        let (head, body) = text.split_once("\r\n\r\n").unwrap();
        let status = head.split(' ').nth(1).unwrap().parse().unwrap();
        (status, body.to_owned())
    }

    /// This client with the credentials of an answer of STS.
    pub(crate) fn with_session(&self, xml: &str) -> Self {
        Self {
            id: element(xml, "AccessKeyId"),
            secret: element(xml, "SecretAccessKey"),
            token: Some(element(xml, "SessionToken")),
            ..self.clone()
        }
    }

    /// Headers of a signed request.
    pub(crate) fn signed(&self, target: &str, body: &[u8]) -> Vec<(String, String)> {
        let headers = vec![
            ("host".to_owned(), self.address.to_string()),
            (
                "content-type".to_owned(),
                "application/x-amz-json-1.1".to_owned(),
            ),
            ("x-amz-target".to_owned(), target.to_owned()),
        ];
        self.sign("kms", headers, body)
    }

    fn sign(
        &self,
        service: &str,
        mut headers: Vec<(String, String)>,
        body: &[u8],
    ) -> Vec<(String, String)> {
        let identity =
            Credentials::new(&self.id, &self.secret, self.token.clone(), None, "test").into();
        let skew = Duration::from_secs(self.skew.unsigned_abs());
        let now = SystemTime::now();
        let parameters = v4::SigningParams::builder()
            .identity(&identity)
            .region(&self.region)
            .name(service)
            .time(if self.skew < 0 {
                now - skew
            } else {
                now + skew
            })
            .settings(SigningSettings::default())
            .build()
            .unwrap()
            .into();
        let uri = format!("http://{}/", self.address);
        let pairs = headers
            .iter()
            .map(|(name, value)| (name.as_str(), value.as_str()));
        let request = SignableRequest::new("POST", &uri, pairs, SignableBody::Bytes(body)).unwrap();
        let (instructions, _) = sign(request, &parameters).unwrap().into_parts();
        headers.extend(
            instructions
                .headers()
                .map(|(name, value)| (name.to_owned(), value.to_owned())),
        );
        headers
    }

    /// Sends any request.
    pub(crate) fn send(
        &self,
        method: &str,
        path: &str,
        headers: &[(String, String)],
        body: &[u8],
    ) -> Reply {
        parse(&self.raw(&request(method, path, headers, body)))
    }

    /// Sends bytes and reads until the server closes.
    pub(crate) fn raw(&self, request: &[u8]) -> Vec<u8> {
        let stream = TcpStream::connect_timeout(&self.address, PATIENCE).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        match &self.tls {
            None => exchange(stream, request),
            Some(ca) => exchange(tls(stream, ca), request),
        }
    }

    // --- conveniences --------------------------------------------------------------------------

    pub(crate) fn create_key(&self) -> String {
        let output = self.call("CreateKey", serde_json::json!({})).ok();
        output["KeyMetadata"]["KeyId"].as_str().unwrap().to_owned()
    }

    pub(crate) fn encrypt(&self, key: &str, plaintext: &[u8], context: Value) -> String {
        let input = serde_json::json!({
            "KeyId": key, "Plaintext": STANDARD.encode(plaintext), "EncryptionContext": context,
        });
        self.call("Encrypt", input).ok()["CiphertextBlob"]
            .as_str()
            .unwrap()
            .to_owned()
    }

    pub(crate) fn decrypt(&self, blob: &str, context: Value) -> Reply {
        let input = serde_json::json!({ "CiphertextBlob": blob, "EncryptionContext": context });
        self.call("Decrypt", input)
    }

    pub(crate) fn put_policy(&self, key: &str, statements: &Value) -> Reply {
        let policy = serde_json::json!({ "Version": "2012-10-17", "Statement": statements });
        self.call(
            "PutKeyPolicy",
            serde_json::json!({ "KeyId": key, "PolicyName": "default", "Policy": policy.to_string() }),
        )
    }
}

/// The text of an XML element.
pub(crate) fn element(xml: &str, name: &str) -> String {
    let (_, rest) = xml
        .split_once(&format!("<{name}>"))
        .unwrap_or_else(|| panic!("no {name} in {xml}"));
    rest.split_once("</").unwrap().0.to_owned()
}

pub(crate) fn plaintext(output: &Value) -> Vec<u8> {
    STANDARD
        .decode(output["Plaintext"].as_str().unwrap())
        .unwrap()
}

fn exchange(mut stream: impl Read + Write, request: &[u8]) -> Vec<u8> {
    // A server that refuses early may close before it has read everything.
    let _sent = stream.write_all(request).and_then(|()| stream.flush());
    let mut reply = Vec::new();
    let _closed = stream.read_to_end(&mut reply);
    reply
}

fn tls(stream: TcpStream, ca: &Path) -> rustls::StreamOwned<rustls::ClientConnection, TcpStream> {
    let mut roots = rustls::RootCertStore::empty();
    roots
        .add(rustls::pki_types::CertificateDer::from_pem_file(ca).unwrap())
        .unwrap();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    let name = "kms.enclos.internal".try_into().unwrap();
    let connection = rustls::ClientConnection::new(Arc::new(config), name).unwrap();
    rustls::StreamOwned::new(connection, stream)
}

pub(crate) fn request(
    method: &str,
    path: &str,
    headers: &[(String, String)],
    body: &[u8],
) -> Vec<u8> {
    let mut head = format!("{method} {path} HTTP/1.1\r\nconnection: close\r\n");
    for (name, value) in headers {
        head.push_str(&format!("{name}: {value}\r\n"));
    }
    head.push_str(&format!("content-length: {}\r\n\r\n", body.len()));
    [head.as_bytes(), body].concat()
}

fn parse(reply: &[u8]) -> Reply {
    try_parse(reply).unwrap_or_else(|| panic!("no reply: {:?}", String::from_utf8_lossy(reply)))
}

/// A reply, if all of it arrived.
fn try_parse(reply: &[u8]) -> Option<Reply> {
    let text = String::from_utf8_lossy(reply).into_owned();
    let (headers, body) = text.split_once("\r\n\r\n")?;
    let headers = headers.to_ascii_lowercase();
    let status = headers.split(' ').nth(1)?.parse().ok()?;
    let length: usize = headers
        .lines()
        .find_map(|line| line.strip_prefix("content-length: "))
        .map_or(Some(0), |length| length.trim().parse().ok())?;
    if body.len() < length {
        return None;
    }
    let body = if body.is_empty() {
        Value::Null
    } else {
        serde_json::from_str(body).ok()?
    };
    Some(Reply {
        status,
        headers,
        body,
    })
}

/// Makes a key of some kind; its id.
pub(crate) fn create(client: &Client, input: Value) -> String {
    let output = client.call("CreateKey", input).ok();
    output["KeyMetadata"]["KeyId"].as_str().unwrap().to_owned()
}

/// A base64 member of an answer.
pub(crate) fn blob(output: &Value, name: &str) -> Vec<u8> {
    STANDARD.decode(output[name].as_str().unwrap()).unwrap()
}

/// Runs OpenSSL, which knows nothing of us, in a directory; what it prints.
pub(crate) fn openssl(directory: &Path, arguments: &[&str], input: &[u8]) -> Vec<u8> {
    let mut child = Command::new("openssl")
        .args(arguments)
        .current_dir(directory)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(input).unwrap();
    let output = child.wait_with_output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "openssl {arguments:?}: {said}");
    output.stdout
}
