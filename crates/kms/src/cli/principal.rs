//! `enclos-kms principal`: access keys, added and removed beside a running server.

use base64::Engine as _;
use serde_json::json;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use zeroize::Zeroizing;

use super::identity::check_name;
use super::record::{account, record};
use super::{Data, Failure, print};
use crate::arn::PrincipalArn;
use crate::crypto::seal;
use crate::crypto::{random, random_array};
use crate::identities::letters;
use crate::store::{self, PrincipalRow};

#[derive(Debug, clap::Subcommand)]
pub(super) enum Command {
    /// Make an access key and print it as credential_process JSON. It is shown this once
    Add {
        #[command(flatten)]
        data: Data,
        /// IAM ARN of an account root, a user or a role
        #[arg(long, value_parser = PrincipalArn::parse)]
        arn: PrincipalArn,
    },
    /// List access keys, without their secrets
    List {
        #[command(flatten)]
        data: Data,
        /// As a JSON list
        #[arg(long)]
        json: bool,
    },
    /// Remove an access key. A running server refuses it after two seconds at most
    Remove {
        #[command(flatten)]
        data: Data,
        /// The access key id
        #[arg(long, value_name = "ID")]
        access_key_id: String,
    },
}

#[derive(Debug, thiserror::Error)]
#[error("there is no access key {0}; `enclos-kms principal list` shows those there are")]
struct NoSuchKey(String);

pub(super) async fn run(command: Command) -> Result<(), Failure> {
    match command {
        Command::Add { data, arn } => add(&data, &arn).await,
        Command::List { data, json } => list(&data, json).await,
        Command::Remove {
            data,
            access_key_id,
        } => remove(&data, access_key_id).await,
    }
}

async fn add(data: &Data, arn: &PrincipalArn) -> Result<(), Failure> {
    let mut connection = store::connect(&data.location()?).await?;
    let root = data.root()?;
    let access_key_id = new_access_key_id()?;
    let mut bytes = Zeroizing::new([0; 30]);
    random(&mut *bytes)?;
    let secret = Zeroizing::new(base64::engine::general_purpose::STANDARD.encode(*bytes));
    let label = seal::access_key_label(&access_key_id, arn.as_str());
    let row = PrincipalRow {
        access_key_id: access_key_id.clone(),
        arn: arn.to_string(),
        sealed_secret: root.seal(&label, secret.as_bytes())?,
        created_ms: crate::audit::unix_ms(OffsetDateTime::now_utc()),
    };
    connection.begin().await?;
    check_name(&mut connection, arn).await?;
    store::insert_principal(&mut connection, &row).await?;
    let parameters = json!({ "arn": row.arn, "accessKeyId": access_key_id });
    record(
        &mut connection,
        &root,
        "CreateAccessKey",
        arn.account(),
        parameters,
    )
    .await?;
    connection.commit().await?;
    let credentials = json!({
        "Version": 1,
        "AccessKeyId": access_key_id,
        "SecretAccessKey": *secret,
    });
    print(&format!("{credentials:#}"))?;
    Ok(())
}

fn new_access_key_id() -> Result<String, crate::crypto::RandomError> {
    let bytes: [u8; 16] = random_array()?;
    Ok(letters("AKIA", bytes.iter()))
}

async fn list(data: &Data, json: bool) -> Result<(), Failure> {
    let (mut connection, still) = store::look(&data.location()?).await?;
    let rows = store::principals(&mut connection).await?;
    still.check()?;
    if json {
        let rows: Vec<_> = rows
            .iter()
            .map(|row| {
                json!({ "AccessKeyId": row.access_key_id, "Arn": row.arn, "CreateDate": date(row.created_ms) })
            })
            .collect();
        print(&format!("{:#}", json!(rows)))?;
        return Ok(());
    }
    print(&format!(
        "{:<20}  {:<20}  {}",
        "ACCESS KEY ID", "CREATED", "PRINCIPAL"
    ))?;
    for row in rows {
        print(&format!(
            "{:<20}  {:<20}  {}",
            row.access_key_id,
            date(row.created_ms),
            row.arn
        ))?;
    }
    Ok(())
}

async fn remove(data: &Data, access_key_id: String) -> Result<(), Failure> {
    let mut connection = store::connect(&data.location()?).await?;
    let root = data.root()?;
    connection.begin().await?;
    let keys = store::principals(&mut connection).await?;
    let key = keys
        .into_iter()
        .find(|key| key.access_key_id == access_key_id);
    let key = key.ok_or_else(|| NoSuchKey(access_key_id.clone()))?;
    store::delete_principal(&mut connection, &access_key_id).await?;
    let parameters = json!({ "arn": key.arn, "accessKeyId": access_key_id });
    record(
        &mut connection,
        &root,
        "DeleteAccessKey",
        &account(&key.arn),
        parameters,
    )
    .await?;
    connection.commit().await?;
    Ok(())
}

pub(super) fn date(ms: i64) -> String {
    OffsetDateTime::from_unix_timestamp(ms / 1000)
        .ok()
        .and_then(|time| time.format(&Rfc3339).ok())
        .unwrap_or_default()
}
