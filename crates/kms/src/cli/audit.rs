//! `enclos-kms audit`: the audit trail as a table or as JSON lines; whether it is as it was written.

use std::path::PathBuf;

use serde_json::{Value, json};

use super::data::{Data, Database};
use super::plain::plain;
use super::principal::date;
use super::{Failure, TAMPERED, print};
use crate::store::{self, AuditRow, Flaw, Head};

/// Rows read at a time.
const PAGE: i64 = 1000;

#[derive(Debug, clap::Args)]
#[command(args_conflicts_with_subcommands = true, subcommand_negates_reqs = true)]
pub(super) struct Arguments {
    #[command(subcommand)]
    command: Option<Command>,

    #[command(flatten)]
    list: List,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    /// Check that no row was changed, removed or slipped in. Status 5 if one was
    Verify {
        #[command(flatten)]
        data: Data,

        /// A head noted earlier, which the trail must hold: it shows whether the end was cut off
        #[arg(long, value_name = "SEQ:HASH")]
        head: Option<Head>,

        /// As one JSON object
        #[arg(long)]
        json: bool,
    },
}

#[derive(Debug, clap::Args)]
struct List {
    /// Data directory: kms.db, root.key, tls/
    #[arg(long, value_name = "DIR", required = true, env = "ENCLOS_KMS_DATA")]
    data: Option<PathBuf>,

    #[command(flatten)]
    database: Database,

    /// One CloudTrail-shaped event per line
    #[arg(long)]
    json: bool,

    /// Only the last N events
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(i64).range(0..))]
    last: Option<i64>,

    /// Only calls that were refused or failed
    #[arg(long)]
    failed: bool,
}

#[derive(Debug, thiserror::Error)]
#[error("the audit trail is not as it was written: row {seq}: {flaw}")]
struct Tampered {
    seq: i64,
    flaw: Flaw,
}

pub(super) async fn run(arguments: Arguments) -> Result<(), Failure> {
    match arguments.command {
        Some(Command::Verify { data, head, json }) => verify(&data, head, json).await,
        None => list(arguments.list).await,
    }
}

async fn verify(data: &Data, noted: Option<Head>, json: bool) -> Result<(), Failure> {
    let (mut connection, still) = store::look(&data.location()?).await?;
    let root = data.root()?;
    let verified = store::verify_audit(&mut connection, &root, noted).await?;
    still.check()?;
    let head = verified.head;
    if json {
        let flaw = verified.flaw.as_ref();
        print(&format!(
            "{:#}",
            json!({
                "verified": flaw.is_none(), "rows": head.seq, "head": head.to_string(),
                "sealedFrom": verified.sealed_from,
                "flaw": flaw.map(|(seq, flaw)| json!({ "row": seq, "what": flaw.to_string() })),
            })
        ))?;
    } else {
        let sealed = verified
            .sealed_from
            .map_or_else(|| "none".to_owned(), |seq| seq.to_string());
        print(&format!("rows as they were written: {}", head.seq))?;
        print(&format!("first row with a seal: {sealed}"))?;
        print(&format!("head, to note elsewhere: {head}"))?;
    }
    match verified.flaw {
        None => Ok(()),
        Some((seq, flaw)) => Err(Failure::new(TAMPERED, Tampered { seq, flaw })),
    }
}

async fn list(arguments: List) -> Result<(), Failure> {
    // clap asks for it unless there is a subcommand.
    let data = arguments.data.unwrap_or_default();
    let location = arguments.database.or_in(&data)?;
    let (mut connection, still) = store::look(&location).await?;
    let mut after = match arguments.last {
        Some(count) => store::audit_tail(&mut connection, count).await?,
        None => 0,
    };
    if !arguments.json {
        print(&line(&[
            "TIME",
            "OPERATION",
            "RESULT",
            "REQUEST ID",
            "PRINCIPAL",
            "DETAIL",
        ]))?;
    }
    loop {
        let rows = store::audit(&mut connection, after, PAGE).await?;
        let Some((last, _)) = rows.last() else {
            return Ok(still.check()?);
        };
        after = *last;
        for (_, row) in &rows {
            if arguments.failed && row.error_code.is_none() {
                continue;
            }
            print(&if arguments.json {
                row.event.clone()
            } else {
                table_line(row)
            })?;
        }
    }
}

/// A line of the table. Columns are as wide as most of what they hold: the trail is printed as it is read.
fn line([time, operation, result, request, principal, detail]: &[&str; 6]) -> String {
    plain(&format!(
        "{time:<20}  {operation:<24}  {result:<29}  {request:<36}  {principal:<44}  {detail}"
    ))
}

fn table_line(row: &AuditRow) -> String {
    let event: Value = serde_json::from_str(&row.event).unwrap_or(Value::Null);
    let text = |pointer: &str| event.pointer(pointer).and_then(Value::as_str);
    line(&[
        &date(row.time_ms),
        &row.operation,
        row.error_code.as_deref().unwrap_or("ok"),
        text("/requestID").unwrap_or("-"),
        text("/userIdentity/arn").unwrap_or("-"),
        &detail(&event),
    ])
}

/// The key, the enclave's image, and each condition that was not met.
fn detail(event: &Value) -> String {
    let mut parts = Vec::new();
    if let Some(arn) = event.pointer("/resources/0/ARN").and_then(Value::as_str) {
        parts.push(arn.to_owned());
    }
    let image = "/additionalEventData/recipient/attestationDocumentEnclaveImageDigest";
    if let Some(digest) = event.pointer(image).and_then(Value::as_str) {
        parts.push(format!("PCR0={}", digest.get(..16).unwrap_or(digest)));
    }
    let statements = event.pointer("/additionalEventData/denial/statements");
    for statement in statements.and_then(Value::as_array).into_iter().flatten() {
        let conditions = statement.get("conditions").and_then(Value::as_array);
        for condition in conditions.into_iter().flatten() {
            parts.push(condition_text(condition));
        }
    }
    if parts.len() <= 1
        && let Some(message) = event.get("errorMessage").and_then(Value::as_str)
    {
        parts.push(message.to_owned());
    }
    parts.join("; ")
}

fn condition_text(condition: &Value) -> String {
    let text = |name: &str| {
        condition
            .get(name)
            .and_then(Value::as_str)
            .unwrap_or_default()
    };
    let list = |name: &str| {
        let values = condition.get(name)?.as_array()?;
        Some(
            values
                .iter()
                .filter_map(Value::as_str)
                .collect::<Vec<_>>()
                .join(","),
        )
    };
    format!(
        "{} {} expected {}, presented {}",
        text("operator"),
        text("key"),
        list("expected").unwrap_or_default(),
        list("presented").unwrap_or_else(|| "nothing".to_owned())
    )
}
