//! The two examples' stories: build, pin, boot, verify, ask.

use std::process::Command;
use std::time::Duration;

use anyhow::{Result, ensure};
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
    encrypted(stack, &enclave, &image, &secret, &mut page)?;
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

/// The client's view: a fresh document from the service, judged against the root and the image.
fn verify(stack: &Stack, enclave: &Enclave<'_>, image: &Image, page: &mut Page) -> Result<()> {
    let mut command = stack.host.enclos();
    command.args([
        "attest",
        "verify",
        "--url",
        &format!("http://{}/attest", enclave.address),
    ]);
    child::read(expecting(&mut command, stack, image), LIMIT)?;
    page.good(
        "its attestation document verifies: root, signature, age, nonce, and the image's PCRs",
    );
    Ok(())
}

/// A request that only this enclave can read, by `enclos call`: the client verifies, seals, sends and opens the answer.
fn sealed(stack: &Stack, enclave: &Enclave<'_>, image: &Image, page: &mut Page) -> Result<()> {
    let mut command = stack.host.enclos();
    command.args([
        "call",
        &format!("http://{}", enclave.address),
        "--data",
        "for your eyes only",
    ]);
    let answer = child::read(expecting(&mut command, stack, image), LIMIT)?;
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

/// The same with a KMS key: the client verifies, encrypts with the key and sends; the KMS gives the key to this enclave alone.
fn encrypted(
    stack: &Stack,
    enclave: &Enclave<'_>,
    image: &Image,
    secret: &Secret,
    page: &mut Page,
) -> Result<()> {
    let mut command = stack.host.enclos();
    command.args([
        "call",
        &format!("http://{}", enclave.address),
        "--data",
        "transfer 100 to Ada",
    ]);
    command.args([
        "--kms-key",
        &secret.key,
        "--kms-endpoint",
        &format!("http://{}", stack.kms.dev),
    ]);
    command
        .env("AWS_ACCESS_KEY_ID", "test")
        .env("AWS_SECRET_ACCESS_KEY", "test")
        .env_remove("AWS_SESSION_TOKEN");
    let answer = child::read(expecting(&mut command, stack, image), LIMIT)?;
    ensure!(
        answer.contains("Processed: TRANSFER 100 TO ADA (4 words)"),
        "unexpected answer {answer}"
    );
    page.good(&format!(
        "encrypted request, key released by attestation: {}",
        answer.trim()
    ));
    Ok(())
}

/// What a client was told out of band: this installation's root, this image.
fn expecting<'a>(command: &'a mut Command, stack: &Stack, image: &Image) -> &'a mut Command {
    command
        .arg("--root")
        .arg(stack.host.state.join("root.pem"))
        .arg("--eif")
        .arg(&image.eif)
}

/// A message that was encrypted long before this enclave started.
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
        "stored ciphertext, key released by attestation: {text}"
    ));
    Ok(())
}
