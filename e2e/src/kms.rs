//! The KMS: its process, and a caller of it outside of every enclave.

use std::fs;
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use anyhow::{Context, Result, bail};
use aws_credential_types::Credentials;
use aws_sigv4::http_request::{SignableBody, SignableRequest, SigningSettings, sign};
use aws_sigv4::sign::v4;
use base64::prelude::{BASE64_STANDARD, Engine};
use serde_json::{Value, json};

use crate::child::{self, Child};
use crate::http::{self, Reply};
use crate::stack::free_address;
use crate::workbench::Workbench;

/// Region of every key in demo and tests.
pub const REGION: &str = "us-east-1";

/// Account of every key in demo and tests: the emulators' usual one.
pub const ACCOUNT: &str = "000000000000";

/// Name in the KMS's certificate.
pub const SERVER_NAME: &str = "kms.enclos.internal";

const LIMIT: Duration = Duration::from_secs(20);

/// A running `enclos-kms`: TLS for enclaves, plain HTTP on loopback for the developer beside it.
#[derive(Debug)]
pub struct Server {
    bench: Workbench,
    data: PathBuf,
    arguments: Vec<String>,
    process: Option<Child>,
    /// Where enclaves reach it, over TLS.
    pub tls: SocketAddr,
    /// Where a developer's tools reach it, with key `test` and secret `test`.
    pub dev: SocketAddr,
}

impl Server {
    /// Starts a KMS with its data in `data`, for enclaves at `tls`, trusting documents of `roots` (PEM files).
    ///
    /// # Errors
    /// It does not start.
    pub fn start(
        bench: &Workbench,
        data: &Path,
        tls: SocketAddr,
        roots: &[PathBuf],
    ) -> Result<Self> {
        fs::create_dir_all(data)?;
        let dev = free_address()?;
        let mut arguments = vec![
            "serve".to_owned(),
            "--data".into(),
            data.display().to_string(),
        ];
        arguments.extend([
            "--listen".into(),
            tls.to_string(),
            "--dev-listen".into(),
            dev.to_string(),
        ]);
        arguments.extend(["--server-name".into(), SERVER_NAME.into()]);
        for root in roots {
            arguments.extend(["--trust-root".into(), root.display().to_string()]);
        }
        let (bench, data) = (bench.clone(), data.to_owned());
        let mut server = Self {
            bench,
            data,
            arguments,
            process: None,
            tls,
            dev,
        };
        server.restart()?;
        Ok(server)
    }

    /// Starts it again with Enclos's extension: documents count for Sign, Verify, GenerateMac and VerifyMac too.
    ///
    /// # Errors
    /// It does not start.
    pub fn take_documents_for_signing(&mut self) -> Result<()> {
        self.kill()?;
        self.arguments.push("--attested-signing".into());
        self.restart()
    }

    /// Starts the process again, after [`Self::kill`].
    ///
    /// # Errors
    /// It does not start.
    pub fn restart(&mut self) -> Result<()> {
        let mut command = self.bench.program("enclos-kms");
        command.args(&self.arguments);
        let mut process = Child::start("enclos-kms", command, &self.data.join("kms.log"))?;
        let (dev, tls) = (self.dev, self.tls);
        let ca = self.ca();
        process.until(LIMIT, || {
            let open = |address| std::net::TcpStream::connect_timeout(&address, LIMIT).is_ok();
            open(dev) && open(tls) && ca.is_file()
        })?;
        self.process = Some(process);
        Ok(())
    }

    /// Ends the process without warning, as a power cut would.
    ///
    /// # Errors
    /// It was not running.
    pub fn kill(&mut self) -> Result<()> {
        let mut process = self.process.take().context("the KMS is not running")?;
        process.signal(rustix::process::Signal::KILL)?;
        process.wait(LIMIT)?;
        Ok(())
    }

    /// The certificate authority that enclaves must trust for this KMS.
    #[must_use]
    pub fn ca(&self) -> PathBuf {
        self.data.join("tls").join("ca.pem")
    }

    /// What it has printed.
    #[must_use]
    pub fn log(&self) -> String {
        self.process.as_ref().map(Child::log).unwrap_or_default()
    }

    /// A caller with the development credentials.
    #[must_use]
    pub fn developer(&self) -> Client {
        Client {
            address: self.dev,
            credentials: Credentials::new("test", "test", None, None, "e2e"),
        }
    }

    /// Creates credentials for a role and writes them to `file`, for the gateway to serve.
    ///
    /// # Errors
    /// `enclos-kms principal add` fails.
    pub fn add_role(&self, arn: &str, file: &Path) -> Result<Client> {
        let mut command = self.bench.program("enclos-kms");
        command
            .args(["principal", "add", "--arn", arn, "--data"])
            .arg(&self.data);
        let printed = child::read(&mut command, LIMIT)?;
        fs::write(file, &printed)?;
        fs::set_permissions(file, fs::Permissions::from_mode(0o600))?;
        let found: Value = serde_json::from_str(&printed)?;
        let text = |name: &str| found[name].as_str().map(str::to_owned);
        let missing = || format!("credentials of {arn} lack a field: {found}");
        let (id, secret) = text("AccessKeyId")
            .zip(text("SecretAccessKey"))
            .with_context(missing)?;
        let token = text("SessionToken");
        let credentials = Credentials::new(id, secret, token, None, "e2e");
        Ok(Client {
            address: self.dev,
            credentials,
        })
    }

    /// The audit trail, oldest first.
    ///
    /// # Errors
    /// `enclos-kms audit` fails.
    pub fn audit(&self) -> Result<Vec<Value>> {
        let mut command = self.bench.program("enclos-kms");
        command.args(["audit", "--json", "--data"]).arg(&self.data);
        let printed = child::read(&mut command, LIMIT)?;
        let lines = printed.lines().filter(|line| !line.trim().is_empty());
        lines.map(|line| Ok(serde_json::from_str(line)?)).collect()
    }
}

/// A caller of the KMS outside of every enclave.
#[derive(Debug, Clone)]
pub struct Client {
    address: SocketAddr,
    credentials: Credentials,
}

impl Client {
    /// Makes a call and returns the reply, whatever its status.
    ///
    /// # Errors
    /// No reply came.
    pub fn call(&self, action: &str, body: &Value) -> Result<Reply> {
        let body = body.to_string().into_bytes();
        let headers = self.signed_headers(action, &body)?;
        http::send(self.address, "POST", "/", &headers, &body, LIMIT)
    }

    /// Makes a call that must succeed.
    ///
    /// # Errors
    /// The KMS refuses.
    pub fn must(&self, action: &str, body: &Value) -> Result<Value> {
        let reply = self.call(action, body)?;
        if reply.status != 200 {
            bail!(
                "{action}: {} {}",
                reply.status,
                String::from_utf8_lossy(&reply.body)
            );
        }
        reply.json()
    }

    /// Creates a key and returns its ARN.
    ///
    /// # Errors
    /// The KMS refuses.
    pub fn create_key(&self, description: &str) -> Result<String> {
        self.create(&json!({ "Description": description }))
    }

    /// Creates a key with these parameters and returns its ARN.
    ///
    /// # Errors
    /// The KMS refuses.
    pub fn create(&self, parameters: &Value) -> Result<String> {
        let created = self.must("CreateKey", parameters)?;
        let arn = created["KeyMetadata"]["Arn"].as_str();
        Ok(arn
            .with_context(|| format!("no ARN in {created}"))?
            .to_owned())
    }

    /// Replaces a key's policy.
    ///
    /// # Errors
    /// The KMS refuses.
    pub fn put_policy(&self, key: &str, policy: &Value) -> Result<()> {
        let body = json!({ "KeyId": key, "PolicyName": "default", "Policy": policy.to_string(),
            "BypassPolicyLockoutSafetyCheck": true });
        self.call_ok("PutKeyPolicy", &body)
    }

    /// Encrypts under a key; the result is the ciphertext in base64.
    ///
    /// # Errors
    /// The KMS refuses.
    pub fn encrypt(&self, key: &str, plaintext: &str) -> Result<String> {
        let body = json!({ "KeyId": key, "Plaintext": BASE64_STANDARD.encode(plaintext) });
        let reply = self.must("Encrypt", &body)?;
        let ciphertext = reply["CiphertextBlob"].as_str();
        Ok(ciphertext
            .with_context(|| format!("no CiphertextBlob in {reply}"))?
            .to_owned())
    }

    /// Asks for a decryption with an attestation document made by someone else.
    ///
    /// # Errors
    /// No reply came.
    pub fn decrypt_with_document(&self, ciphertext: &str, document: &[u8]) -> Result<Reply> {
        let recipient = json!({
            "AttestationDocument": BASE64_STANDARD.encode(document),
            "KeyEncryptionAlgorithm": "RSAES_OAEP_SHA_256",
        });
        self.call(
            "Decrypt",
            &json!({ "CiphertextBlob": ciphertext, "Recipient": recipient }),
        )
    }

    fn call_ok(&self, action: &str, body: &Value) -> Result<()> {
        let reply = self.call(action, body)?;
        if reply.status != 200 {
            bail!(
                "{action}: {} {}",
                reply.status,
                String::from_utf8_lossy(&reply.body)
            );
        }
        Ok(())
    }

    fn signed_headers(&self, action: &str, body: &[u8]) -> Result<Vec<(String, String)>> {
        let mut headers = vec![
            ("host".to_owned(), self.address.to_string()),
            (
                "content-type".to_owned(),
                "application/x-amz-json-1.1".to_owned(),
            ),
            ("x-amz-target".to_owned(), format!("TrentService.{action}")),
        ];
        let identity = self.credentials.clone().into();
        let parameters = v4::SigningParams::builder()
            .identity(&identity)
            .region(REGION)
            .name("kms")
            .time(SystemTime::now())
            .settings(SigningSettings::default())
            .build()?
            .into();
        let uri = format!("http://{}/", self.address);
        let signed = headers
            .iter()
            .map(|(name, value)| (name.as_str(), value.as_str()));
        let signable = SignableRequest::new("POST", &uri, signed, SignableBody::Bytes(body))?;
        let (instructions, _) = sign(signable, &parameters)?.into_parts();
        let added = instructions
            .headers()
            .map(|(name, value)| (name.to_owned(), value.to_owned()));
        headers.extend(added);
        Ok(headers)
    }
}
