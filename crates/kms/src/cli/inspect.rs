//! `enclos-kms keys`, `policies` and `grants`: what a data directory holds, beside a running server or without one.
//!
//! These look; what changes a key is a call of the API, with a signature, a decision and an audit event.

use std::collections::BTreeMap;
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde_json::{Value, json};

use super::principal::date;
use super::table::Table;
use super::{Data, Failure, print};
use crate::grants::{Constraints, Grant};
use crate::policy::{Policy, PolicyError, lint};
use crate::store::{GrantRow, KeyRow, Store, StoredKey};

#[derive(Debug, clap::Subcommand)]
pub(super) enum Keys {
    /// List keys
    List {
        #[command(flatten)]
        data: Data,
        /// As a JSON list
        #[arg(long)]
        json: bool,
    },
    /// Show a key with its aliases, tags, grants and policy, as JSON
    Show {
        #[command(flatten)]
        data: Data,
        /// Key id
        key: String,
    },
}

#[derive(Debug, clap::Subcommand)]
pub(super) enum Policies {
    /// Print a key's policy
    Show {
        #[command(flatten)]
        data: Data,
        /// Key id
        key: String,
    },
    /// Look through a key policy in a file, or `-` for standard input. Status 1 if there is something to reconsider
    Check {
        /// The file
        file: PathBuf,
        /// As a JSON list
        #[arg(long)]
        json: bool,
    },
    /// Look through the policies of all keys. Status 1 if there is something to reconsider
    CheckAll {
        #[command(flatten)]
        data: Data,
        /// As a JSON list
        #[arg(long)]
        json: bool,
    },
}

#[derive(Debug, clap::Subcommand)]
pub(super) enum Grants {
    /// List grants of one key or of all
    List {
        #[command(flatten)]
        data: Data,
        /// Key id
        #[arg(long)]
        key: Option<String>,
        /// As a JSON list
        #[arg(long)]
        json: bool,
    },
}

#[derive(Debug, thiserror::Error)]
enum InspectError {
    #[error("there is no key {0}; `enclos-kms keys list` shows those there are")]
    NoKey(String),
    #[error("cannot read {path}")]
    Read {
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
    #[error("{0} is no key policy")]
    Policy(String, #[source] PolicyError),
    #[error("{0} findings")]
    Findings(usize),
}

pub(super) async fn keys(command: Keys) -> Result<(), Failure> {
    match command {
        Keys::List { data, json } => list_keys(&data, json).await,
        Keys::Show { data, key } => show_key(&data, &key).await,
    }
}

pub(super) async fn policies(command: Policies) -> Result<(), Failure> {
    match command {
        Policies::Show { data, key } => {
            let (row, _) = take(stored(&data).await?, &key)?;
            print(&row.policy)?;
            Ok(())
        }
        Policies::Check { file, json } => {
            let name = file.display().to_string();
            report(vec![(name, read(&file)?.into())], json)
        }
        Policies::CheckAll { data, json } => {
            let keys = sorted(stored(&data).await?).into_iter();
            report(keys.map(|(key, _)| (key.id, key.policy)).collect(), json)
        }
    }
}

/// All keys with what belongs to them, by id.
async fn stored(data: &Data) -> Result<BTreeMap<String, StoredKey>, Failure> {
    Ok(Store::reader(&data.location()?)
        .await?
        .everything()
        .await?
        .keys)
}

/// The key's row beside the rest of it; nothing if the key is gone.
fn with_row(mut stored: StoredKey) -> Option<(KeyRow, StoredKey)> {
    let (row, _) = stored.key.take()?;
    Some((row, stored))
}

/// Oldest first.
fn sorted(keys: BTreeMap<String, StoredKey>) -> Vec<(KeyRow, StoredKey)> {
    let mut keys: Vec<_> = keys.into_values().filter_map(with_row).collect();
    keys.sort_by(|(a, _), (b, _)| (a.created_ms, &a.id).cmp(&(b.created_ms, &b.id)));
    keys
}

fn take(
    mut keys: BTreeMap<String, StoredKey>,
    id: &str,
) -> Result<(KeyRow, StoredKey), InspectError> {
    let found = keys.remove(id).and_then(with_row);
    found.ok_or_else(|| InspectError::NoKey(id.to_owned()))
}

fn state(key: &KeyRow) -> &'static str {
    match (key.deletion_ms, key.enabled) {
        (Some(_), _) => "PendingDeletion",
        (None, true) => "Enabled",
        (None, false) => "Disabled",
    }
}

async fn list_keys(data: &Data, json: bool) -> Result<(), Failure> {
    let keys = sorted(stored(data).await?);
    if json {
        let keys = keys.iter().map(|(key, stored)| key_json(key, stored));
        print(&format!("{:#}", Value::from_iter(keys)))?;
        return Ok(());
    }
    let mut table = Table::new(&[
        "KEY ID", "ACCOUNT", "REGION", "SPEC", "STATE", "CREATED", "ALIASES",
    ]);
    for (key, stored) in &keys {
        table.row(&[
            &key.id,
            &key.account,
            &key.region,
            &key.spec.to_string(),
            state(key),
            &date(key.created_ms),
            &aliases(stored).join(","),
        ]);
    }
    table.print()?;
    Ok(())
}

fn aliases(stored: &StoredKey) -> Vec<&str> {
    let names = stored.aliases.iter().map(|alias| alias.name.as_str());
    names.collect()
}

fn key_json(key: &KeyRow, stored: &StoredKey) -> Value {
    json!({
        "KeyId": key.id,
        "AWSAccountId": key.account,
        "Region": key.region,
        "KeySpec": key.spec.to_string(),
        "KeyUsage": key.usage.to_string(),
        "Origin": key.origin.to_string(),
        "State": state(key),
        "Description": key.description,
        "CreationDate": date(key.created_ms),
        "DeletionDate": key.deletion_ms.map(date),
        "Aliases": aliases(stored),
    })
}

async fn show_key(data: &Data, id: &str) -> Result<(), Failure> {
    let (key, rest) = take(stored(data).await?, id)?;
    let mut shown = key_json(&key, &rest);
    let grants = sorted_grants(rest.grants)?;
    if let Some(members) = shown.as_object_mut() {
        members.insert("Tags".to_owned(), json!(rest.tags));
        let grants: Vec<Value> = grants.iter().map(grant_json).collect();
        members.insert("Grants".to_owned(), grants.into());
        let policy = serde_json::from_str(&key.policy).unwrap_or_default();
        members.insert("Policy".to_owned(), policy);
    }
    print(&format!("{shown:#}"))?;
    Ok(())
}

fn read(path: &Path) -> Result<String, Failure> {
    let mut text = String::new();
    let result = if path == Path::new("-") {
        std::io::stdin().read_to_string(&mut text).map(|_| text)
    } else {
        std::fs::read_to_string(path)
    };
    result.map_err(|source| {
        let path = path.to_owned();
        InspectError::Read { path, source }.into()
    })
}

fn report(policies: Vec<(String, Arc<str>)>, json: bool) -> Result<(), Failure> {
    let mut findings = Vec::new();
    for (name, text) in policies {
        let policy =
            Policy::parse(&text).map_err(|error| InspectError::Policy(name.clone(), error))?;
        let found = lint::lint(&policy).into_iter();
        findings.extend(found.map(|finding| (name.clone(), finding)));
    }
    if json {
        let list: Vec<Value> = findings
            .iter()
            .map(|(name, finding)| {
                json!({ "policy": name, "code": finding.code.name(), "statement": finding.statement,
                        "sid": finding.sid, "advice": finding.code.advice() })
            })
            .collect();
        print(&format!("{:#}", json!(list)))?;
    } else if !findings.is_empty() {
        let mut table = Table::new(&["POLICY", "STATEMENT", "CODE", "THE STATEMENT"]);
        for (name, finding) in &findings {
            let statement = match &finding.sid {
                Some(sid) => format!("{} {sid}", finding.statement),
                None => finding.statement.to_string(),
            };
            table.row(&[name, &statement, finding.code.name(), finding.code.advice()]);
        }
        table.print()?;
    }
    match findings.len() {
        0 => Ok(()),
        count => Err(InspectError::Findings(count).into()),
    }
}

pub(super) async fn grants(command: Grants) -> Result<(), Failure> {
    let Grants::List { data, key, json } = command;
    let keys = stored(&data).await?;
    let rows = match &key {
        Some(key) => take(keys, key)?.1.grants,
        None => keys
            .into_values()
            .flat_map(|stored| stored.grants)
            .collect(),
    };
    let grants = sorted_grants(rows)?;
    if json {
        let grants: Vec<Value> = grants.iter().map(grant_json).collect();
        print(&format!("{:#}", json!(grants)))?;
        return Ok(());
    }
    let mut table = Table::new(&[
        "KEY ID",
        "GRANT ID",
        "CREATED",
        "GRANTEE",
        "RETIRED BY",
        "OPERATIONS",
        "CONSTRAINTS",
    ]);
    for grant in &grants {
        let terms = &grant.terms;
        table.row(&[
            &grant.key_id,
            &grant.id,
            &date(grant.created_ms),
            terms.grantee.name(),
            terms.retiring.as_ref().map_or("-", |party| party.name()),
            &terms.operations.join(","),
            &terms.constraints.types().join(","),
        ]);
    }
    table.print()?;
    Ok(())
}

/// Oldest first.
fn sorted_grants(rows: Vec<GrantRow>) -> Result<Vec<Grant>, Failure> {
    let grants = rows.into_iter().map(Grant::try_from);
    let mut grants = grants.collect::<Result<Vec<_>, _>>()?;
    grants.sort_by(|a, b| (a.created_ms, &a.id).cmp(&(b.created_ms, &b.id)));
    Ok(grants)
}

fn grant_json(grant: &Grant) -> Value {
    let terms = &grant.terms;
    let Constraints {
        equals,
        subset,
        source_arn,
    } = &terms.constraints;
    json!({
        "KeyId": grant.key_id,
        "GrantId": grant.id,
        "Name": terms.name,
        "CreationDate": date(grant.created_ms),
        "Grantee": terms.grantee.name(),
        "RetiredBy": terms.retiring.as_ref().map(|party| party.name()),
        "IssuingAccount": terms.issuing_account,
        "Operations": terms.operations,
        "Constraints": {
            "EncryptionContextEquals": equals, "EncryptionContextSubset": subset, "SourceArn": source_arn,
        },
    })
}
