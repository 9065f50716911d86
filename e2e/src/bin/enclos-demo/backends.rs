//! The two examples' stories: build, pin, boot, verify, ask.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use base64::prelude::{BASE64_STANDARD, Engine};
use enclos_e2e::child;
use enclos_e2e::image::{Builder, Image};
use enclos_e2e::policy::Pins;
use enclos_e2e::stack::{Enclave, INSTANCE, ROLE, Stack};
use enclos_e2e::stories::Secret;
use serde_json::json;

use crate::page::Page;

const LIMIT: Duration = Duration::from_secs(60);

/// The small backend, left running with its key for the stories that follow.
#[derive(Debug)]
pub(crate) struct Rust<'a> {
    pub(crate) image: Image,
    pub(crate) enclave: Enclave<'a>,
    pub(crate) secret: Secret,
}

/// The Rust backend's story, told as it happens.
pub(crate) fn rust<'a>(
    stack: &'a Stack,
    builder: &Builder<'_>,
    page: &mut Page,
) -> Result<Rust<'a>> {
    page.heading("A Rust backend of a few megabytes, with sealed requests");
    let image = builder.rust_backend("rust-backend", |_| Ok(()))?;
    let (enclave, secret) = launch(stack, &image, "meet me at noon", page)?;
    verify(stack, &enclave, &image, page)?;
    sealed(stack, &enclave, &image, page)?;
    decrypted(&enclave, &secret, "MEET ME AT NOON (4 words)", page)?;
    Ok(Rust {
        image,
        enclave,
        secret,
    })
}

/// The Flask backend's story, told later.
pub(crate) fn flask<'a>(stack: &'a Stack, builder: &Builder<'_>) -> Result<(Enclave<'a>, Page)> {
    let mut page = Page::kept();
    page.heading("A stock Flask + boto3 backend, no line of which knows of enclaves");
    let image = builder.flask_backend("flask-backend")?;
    let (enclave, secret) = launch(stack, &image, "the account is 4711", &mut page)?;
    verify(stack, &enclave, &image, &mut page)?;
    decrypted(
        &enclave,
        &secret,
        "THE ACCOUNT IS 4711 (4 words)",
        &mut page,
    )?;
    Ok((enclave, page))
}

fn launch<'a>(
    stack: &'a Stack,
    image: &Image,
    message: &str,
    page: &mut Page,
) -> Result<(Enclave<'a>, Secret)> {
    page.measurements(&image.measurements);
    let pins = Pins::new(&image.measurements, ROLE, INSTANCE)?;
    let secret = Secret::new(&stack.kms, pins, message)?;
    page.fact("key", &secret.key);
    page.fact(
        "key policy",
        "Decrypt only with PCR0, PCR1, PCR2, PCR3 (role), PCR4 (instance) as above",
    );
    let enclave = stack.host.run(image, &[])?;
    let answered = enclave.until_answering("/health")?;
    page.boot(&enclave.describe()?.boot, answered);
    Ok((enclave, secret))
}

/// The client's view: a fresh document from the service, checked by `enclos attest verify`.
fn verify(stack: &Stack, enclave: &Enclave<'_>, image: &Image, page: &mut Page) -> Result<()> {
    let nonce = BASE64_STANDARD.encode(enclave.id.as_bytes());
    let query = nonce
        .replace('+', "%2B")
        .replace('/', "%2F")
        .replace('=', "%3D");
    let reply = enclave.get(&format!("/attest?nonce={query}"))?.json()?;
    let document = reply["attestation_doc"]
        .as_str()
        .with_context(|| format!("no document in {reply}"))?;
    let file = stack.dir.join(format!("{}.document", enclave.id));
    std::fs::write(&file, BASE64_STANDARD.decode(document)?)?;
    let mut command = stack.host.enclos();
    command
        .args(["attest", "verify"])
        .arg(&file)
        .arg("--root")
        .arg(stack.host.state.join("root.pem"));
    command.args([
        "--pcr",
        &format!("0={}", image.measurements.pcr0),
        "--nonce",
        &nonce,
    ]);
    child::read(&mut command, LIMIT)?;
    page.good("its attestation document verifies: root, signature, age, PCR0, nonce");
    Ok(())
}

/// A request that only this enclave can read.
fn sealed(stack: &Stack, enclave: &Enclave<'_>, image: &Image, page: &mut Page) -> Result<()> {
    let mut command = stack.host.enclos();
    command.args(["call", &format!("http://{}/process", enclave.address)]);
    command.arg("--root").arg(stack.host.state.join("root.pem"));
    command.args(["--pcr", &format!("0={}", image.measurements.pcr0)]);
    command.args([
        "--data",
        &json!({ "data": "for your eyes only" }).to_string(),
    ]);
    let answer = child::read(&mut command, LIMIT)?;
    ensure!(
        answer.contains("Processed: FOR YOUR EYES ONLY (4 words)"),
        "unexpected answer {answer}"
    );
    page.good(&format!(
        "sealed request, opened in the enclave alone: {}",
        answer.trim()
    ));
    Ok(())
}

/// A request whose key the KMS gives to this enclave alone.
fn decrypted(
    enclave: &Enclave<'_>,
    secret: &Secret,
    expected: &str,
    page: &mut Page,
) -> Result<()> {
    let reply = enclave.post("/process", &json!({ "encrypted_data": secret.ciphertext }))?;
    let text = String::from_utf8_lossy(&reply.body).trim().to_owned();
    ensure!(
        reply.status == 200 && text.contains(expected),
        "{}: {text}",
        reply.status
    );
    page.good(&format!(
        "encrypted request, key released by attestation: {text}"
    ));
    Ok(())
}
