//! AWS's SDK for Rust as the tests of clients use it: one call, its answer, and its own exception types.
//!
//! ```text
//! enclos-kms-client-rust encrypt KEY [NAME=VALUE …]  < plaintext  > ciphertext
//! enclos-kms-client-rust decrypt [NAME=VALUE …]      < ciphertext > plaintext
//! enclos-kms-client-rust sign KEY                    < message    > signature
//! enclos-kms-client-rust checks KEY
//! ```
//!
//! Endpoint, region and credentials come from the environment. A call that KMS refuses ends the program with status 7
//! and the exception's name on standard error.

use std::collections::HashMap;
use std::error::Error;
use std::io::{Read as _, Write as _};
use std::process::ExitCode;

use aws_sdk_kms::Client;
use aws_sdk_kms::config::{BehaviorVersion, Credentials, Region};
use aws_sdk_kms::error::ProvideErrorMetadata;
use aws_sdk_kms::primitives::Blob;
use aws_sdk_kms::types::{
    DataKeySpec, EncryptionAlgorithmSpec, GrantConstraints, GrantOperation, SigningAlgorithmSpec,
};

/// Status of a call that KMS refused.
const REFUSED: u8 = 7;

type Failure = Box<dyn Error>;

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    match run().await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error}");
            match error.is::<Refused>() {
                true => ExitCode::from(REFUSED),
                false => ExitCode::FAILURE,
            }
        }
    }
}

async fn run() -> Result<(), Failure> {
    let client = client()?;
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match arguments.as_slice() {
        ["encrypt", key, context @ ..] => encrypt(&client, key, context).await,
        ["decrypt", context @ ..] => decrypt(&client, context).await,
        ["sign", key] => sign(&client, key).await,
        ["checks", key] => checks(&client, key).await,
        other => Err(format!("expected encrypt, decrypt, sign or checks, got {other:?}").into()),
    }
}

fn client() -> Result<Client, Failure> {
    let credentials = Credentials::new(
        std::env::var("AWS_ACCESS_KEY_ID")?,
        std::env::var("AWS_SECRET_ACCESS_KEY")?,
        None,
        None,
        "environment",
    );
    let config = aws_sdk_kms::Config::builder()
        .behavior_version(BehaviorVersion::latest())
        .region(Region::new(std::env::var("AWS_REGION")?))
        .endpoint_url(std::env::var("AWS_ENDPOINT_URL_KMS")?)
        .credentials_provider(credentials)
        .http_client(aws_smithy_http_client::Builder::new().build_http())
        .build();
    Ok(Client::from_conf(config))
}

/// What KMS said no with.
#[derive(Debug)]
struct Refused(String);

impl std::fmt::Display for Refused {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl Error for Refused {}

/// The name of KMS's exception, if it is one, else the whole chain.
fn refused(error: impl ProvideErrorMetadata + Error) -> Failure {
    match error.code() {
        Some(code) => Box::new(Refused(code.to_owned())),
        None => format!("{error}: {:?}", error.source()).into(),
    }
}

fn input() -> Result<Blob, Failure> {
    let mut bytes = Vec::new();
    std::io::stdin().read_to_end(&mut bytes)?;
    Ok(Blob::new(bytes))
}

fn output(bytes: Option<Blob>) -> Result<(), Failure> {
    let bytes = bytes.ok_or("the answer has no bytes")?;
    Ok(std::io::stdout().write_all(bytes.as_ref())?)
}

fn context(pairs: &[&str]) -> Result<Option<HashMap<String, String>>, Failure> {
    let pair = |pair: &&str| {
        let (name, value) = pair.split_once('=').ok_or("expected NAME=VALUE")?;
        Ok((name.to_owned(), value.to_owned()))
    };
    let map = pairs
        .iter()
        .map(pair)
        .collect::<Result<HashMap<_, _>, Failure>>()?;
    Ok((!map.is_empty()).then_some(map))
}

async fn encrypt(client: &Client, key: &str, pairs: &[&str]) -> Result<(), Failure> {
    let call = client.encrypt().key_id(key).plaintext(input()?);
    let answer = call
        .set_encryption_context(context(pairs)?)
        .send()
        .await
        .map_err(refused)?;
    output(answer.ciphertext_blob)
}

async fn decrypt(client: &Client, pairs: &[&str]) -> Result<(), Failure> {
    let call = client.decrypt().ciphertext_blob(input()?);
    let answer = call
        .set_encryption_context(context(pairs)?)
        .send()
        .await
        .map_err(refused)?;
    output(answer.plaintext)
}

async fn sign(client: &Client, key: &str) -> Result<(), Failure> {
    let call = client.sign().key_id(key).message(input()?);
    let answer = call
        .signing_algorithm(SigningAlgorithmSpec::EcdsaSha256)
        .send()
        .await;
    output(answer.map_err(refused)?.signature)
}

/// What only this SDK's types can show: errors as variants, enumerations, times.
async fn checks(client: &Client, key: &str) -> Result<(), Failure> {
    let described = client.describe_key().key_id(key).send().await?;
    let metadata = described.key_metadata.ok_or("no KeyMetadata")?;
    let algorithms = [EncryptionAlgorithmSpec::SymmetricDefault];
    expect("algorithms", metadata.encryption_algorithms() == algorithms)?;
    expect(
        "a time of creation",
        metadata
            .creation_date()
            .is_some_and(|at| at.secs() > 1_700_000_000),
    )?;
    data_keys(client, key).await?;
    grants(client, key).await?;
    let missing = client.describe_key().key_id("alias/nowhere").send().await;
    let missing = missing
        .err()
        .ok_or("alias/nowhere exists")?
        .into_service_error();
    expect("NotFoundException", missing.is_not_found_exception())?;
    let damaged = client
        .decrypt()
        .ciphertext_blob(Blob::new(*b"no ciphertext"))
        .send()
        .await;
    let damaged = damaged
        .err()
        .ok_or("noise was decrypted")?
        .into_service_error();
    expect(
        "InvalidCiphertextException",
        damaged.is_invalid_ciphertext_exception(),
    )?;
    let usage = client.generate_mac().key_id(key).message(Blob::new(*b"x"));
    let usage = usage
        .mac_algorithm(aws_sdk_kms::types::MacAlgorithmSpec::HmacSha256)
        .send()
        .await;
    let usage = usage
        .err()
        .ok_or("an encryption key made a MAC")?
        .into_service_error();
    expect(
        "InvalidKeyUsageException",
        usage.is_invalid_key_usage_exception(),
    )
}

async fn data_keys(client: &Client, key: &str) -> Result<(), Failure> {
    let made = client
        .generate_data_key()
        .key_id(key)
        .key_spec(DataKeySpec::Aes256)
        .send()
        .await?;
    let wrapped = made.ciphertext_blob.ok_or("no CiphertextBlob")?;
    let opened = client.decrypt().ciphertext_blob(wrapped).send().await?;
    expect(
        "the data key",
        opened.plaintext.is_some() && opened.plaintext == made.plaintext,
    )
}

async fn grants(client: &Client, key: &str) -> Result<(), Failure> {
    let constraint = GrantConstraints::builder()
        .encryption_context_subset("purpose", "test")
        .build();
    let made = client
        .create_grant()
        .key_id(key)
        .operations(GrantOperation::Decrypt);
    let made = made.grantee_principal("arn:aws:iam::000000000000:role/reader");
    let made = made.constraints(constraint.clone()).send().await?;
    let id = made.grant_id.ok_or("no GrantId")?;
    let listed = client
        .list_grants()
        .key_id(key)
        .grant_id(&id)
        .send()
        .await?;
    expect("one grant", listed.grants().len() == 1)?;
    expect(
        "its constraint",
        listed.grants()[0].constraints() == Some(&constraint),
    )?;
    client
        .revoke_grant()
        .key_id(key)
        .grant_id(&id)
        .send()
        .await?;
    let listed = client.list_grants().key_id(key).send().await?;
    expect("no grant", listed.grants().is_empty())
}

fn expect(what: &str, holds: bool) -> Result<(), Failure> {
    match holds {
        true => Ok(()),
        false => Err(format!("expected {what}").into()),
    }
}
