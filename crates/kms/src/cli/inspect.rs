//! `enclos-kms keys`, `policies` and `grants`: what a data directory holds, beside a running server or without one.
//!
//! These look; what changes a key is a call of the API, with a signature, a decision and an audit event.

use std::collections::BTreeMap;
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde_json::{Value, json};

use super::plain::plain;
use super::principal::date;
use super::table::Table;
use super::{Data, Failure, print};
use crate::arn::Place;
use crate::grants::{Constraints, Grant};
use crate::keyring::KeyState;
use crate::policy::{Policy, PolicyError, lint};
use crate::store::{GrantRow, KeyRow, MaterialRow, Store, StoredKey, key_id};

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
    /// Show a key with its aliases, tags, grants and policy
    Show {
        #[command(flatten)]
        data: Data,
        /// Key id, alias, or the ARN of either
        key: String,
        /// As one JSON object
        #[arg(long)]
        json: bool,
    },
}

#[derive(Debug, clap::Subcommand)]
pub(super) enum Policies {
    /// Print a key's policy, as it was put
    Show {
        #[command(flatten)]
        data: Data,
        /// Key id, alias, or the ARN of either
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
        /// Key id, alias, or the ARN of either
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
    #[error("{0} names several keys: {1}; name one by its ARN")]
    Ambiguous(String, String),
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
        Keys::Show { data, key, json } => show_key(&data, &key, json).await,
    }
}

pub(super) async fn policies(command: Policies) -> Result<(), Failure> {
    match command {
        Policies::Show { data, key } => {
            print(&take(stored(&data).await?, &key)?.row.policy)?;
            Ok(())
        }
        Policies::Check { file, json } => {
            let name = file.display().to_string();
            report(vec![(name, read(&file)?.into())], json)
        }
        Policies::CheckAll { data, json } => {
            let keys = sorted(stored(&data).await?).into_iter();
            let policies = keys.map(|key| (key.arn(), key.row.policy));
            report(policies.collect(), json)
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

/// A key that is there, and what belongs to it.
struct Shown {
    row: KeyRow,
    state: KeyState,
    rest: StoredKey,
}

impl Shown {
    /// Nothing if the key is gone.
    fn new(mut stored: StoredKey) -> Option<Self> {
        let (row, materials) = stored.key.take()?;
        let mut own = materials.iter().filter(|material| !material.pending);
        let holds = |material: &MaterialRow| !material.sealed.is_empty();
        let is_whole = own.next().is_some_and(holds) && own.all(holds);
        Some(Self {
            state: KeyState::of(&row, is_whole),
            row,
            rest: stored,
        })
    }

    fn place(&self) -> Place {
        Place::new(self.row.account.as_str(), self.row.region.as_str())
    }

    fn arn(&self) -> String {
        self.place().key_arn(key_id(&self.row.id))
    }

    fn aliases(&self) -> Vec<&str> {
        let names = self.rest.aliases.iter().map(|alias| alias.name.as_str());
        names.collect()
    }

    /// Whether that is its id, one of its aliases, or the ARN of either.
    fn is_called(&self, name: &str) -> bool {
        let mut aliases = self.aliases().into_iter();
        key_id(&self.row.id) == name
            || self.arn() == name
            || aliases.any(|alias| alias == name || self.place().alias_arn(alias) == name)
    }

    fn json(&self) -> Value {
        let key = &self.row;
        json!({
            "KeyId": key_id(&key.id),
            "Arn": self.arn(),
            "AWSAccountId": key.account,
            "Region": key.region,
            "PrimaryRegion": key.primary_region,
            "KeySpec": key.spec.to_string(),
            "KeyUsage": key.usage.to_string(),
            "Origin": key.origin.to_string(),
            "State": self.state.name(),
            "Description": key.description,
            "CreationDate": date(key.created_ms),
            "DeletionDate": key.deletion_ms.map(date),
            "Aliases": self.aliases(),
        })
    }
}

/// Oldest first.
fn sorted(keys: BTreeMap<String, StoredKey>) -> Vec<Shown> {
    let mut keys: Vec<_> = keys.into_values().filter_map(Shown::new).collect();
    keys.sort_by(|a, b| (a.row.created_ms, &a.row.id).cmp(&(b.row.created_ms, &b.row.id)));
    keys
}

/// The one key of that name.
fn take(keys: BTreeMap<String, StoredKey>, name: &str) -> Result<Shown, InspectError> {
    let mut found = sorted(keys);
    found.retain(|key| key.is_called(name));
    if found.len() > 1 {
        let arns: Vec<_> = found.iter().map(Shown::arn).collect();
        return Err(InspectError::Ambiguous(name.to_owned(), arns.join(", ")));
    }
    found
        .pop()
        .ok_or_else(|| InspectError::NoKey(name.to_owned()))
}

async fn list_keys(data: &Data, json: bool) -> Result<(), Failure> {
    let keys = sorted(stored(data).await?);
    if json {
        print(&format!(
            "{:#}",
            Value::from_iter(keys.iter().map(Shown::json))
        ))?;
        return Ok(());
    }
    let mut table = Table::new(&[
        "KEY ID", "ACCOUNT", "REGION", "SPEC", "STATE", "CREATED", "ALIASES",
    ]);
    for key in &keys {
        let row = &key.row;
        table.row(&[
            key_id(&row.id),
            &row.account,
            &row.region,
            &row.spec.to_string(),
            key.state.name(),
            &date(row.created_ms),
            &key.aliases().join(","),
        ]);
    }
    table.print()?;
    Ok(())
}

async fn show_key(data: &Data, name: &str, json: bool) -> Result<(), Failure> {
    let key = take(stored(data).await?, name)?;
    let grants = sorted_grants(key.rest.grants.clone())?;
    if !json {
        return print_key(&key, &grants);
    }
    let mut shown = key.json();
    if let Some(members) = shown.as_object_mut() {
        members.insert("Tags".to_owned(), json!(key.rest.tags));
        let grants: Vec<Value> = grants.iter().map(|grant| grant_json(&key, grant)).collect();
        members.insert("Grants".to_owned(), grants.into());
        let policy = serde_json::from_str(&key.row.policy).unwrap_or_default();
        members.insert("Policy".to_owned(), policy);
    }
    print(&format!("{shown:#}"))?;
    Ok(())
}

fn print_key(key: &Shown, grants: &[Grant]) -> Result<(), Failure> {
    let row = &key.row;
    let mut table = Table::new(&["key", &key.arn()]);
    table.row(&["spec", &row.spec.to_string()]);
    table.row(&["usage", &row.usage.to_string()]);
    table.row(&["origin", &row.origin.to_string()]);
    table.row(&["state", key.state.name()]);
    table.row(&["created", &date(row.created_ms)]);
    if let Some(deletion_ms) = row.deletion_ms {
        table.row(&["deletion", &date(deletion_ms)]);
    }
    if let Some(region) = &row.primary_region {
        table.row(&["primary in", region]);
    }
    table.row(&["description", &row.description]);
    for alias in key.aliases() {
        table.row(&["alias", alias]);
    }
    for (name, value) in &key.rest.tags {
        table.row(&["tag", &format!("{name}={value}")]);
    }
    table.print()?;
    if !grants.is_empty() {
        print("")?;
        grant_table(grants.iter().map(|grant| (key, grant))).print()?;
    }
    print("\npolicy")?;
    for line in row.policy.lines() {
        print(&plain(line))?;
    }
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
    let keys = match &key {
        Some(name) => vec![take(keys, name)?],
        None => sorted(keys),
    };
    let rows = keys.iter().flat_map(|key| key.rest.grants.iter().cloned());
    let grants = sorted_grants(rows.collect())?;
    let by_id = keys.iter().map(|key| (key.row.id.as_str(), key));
    let by_id: BTreeMap<_, _> = by_id.collect();
    let grants: Vec<_> = grants
        .iter()
        .filter_map(|grant| Some((*by_id.get(grant.key_id.as_str())?, grant)))
        .collect();
    if json {
        let grants = grants.iter().map(|(key, grant)| grant_json(key, grant));
        print(&format!("{:#}", Value::from_iter(grants)))?;
        return Ok(());
    }
    grant_table(grants.into_iter()).print()?;
    Ok(())
}

fn grant_table<'a>(grants: impl Iterator<Item = (&'a Shown, &'a Grant)>) -> Table {
    let mut table = Table::new(&[
        "KEY ID",
        "REGION",
        "GRANT ID",
        "CREATED",
        "GRANTEE",
        "RETIRED BY",
        "OPERATIONS",
        "CONSTRAINTS",
    ]);
    for (key, grant) in grants {
        let terms = &grant.terms;
        table.row(&[
            key_id(&grant.key_id),
            &key.row.region,
            &grant.id,
            &date(grant.created_ms),
            terms.grantee.name(),
            terms.retiring.as_ref().map_or("-", |party| party.name()),
            &terms.operations.join(","),
            &terms.constraints.types().join(","),
        ]);
    }
    table
}

/// Oldest first.
fn sorted_grants(rows: Vec<GrantRow>) -> Result<Vec<Grant>, Failure> {
    let grants = rows.into_iter().map(Grant::try_from);
    let mut grants = grants.collect::<Result<Vec<_>, _>>()?;
    grants.sort_by(|a, b| (a.created_ms, &a.id).cmp(&(b.created_ms, &b.id)));
    Ok(grants)
}

fn grant_json(key: &Shown, grant: &Grant) -> Value {
    let terms = &grant.terms;
    let Constraints {
        equals,
        subset,
        source_arn,
    } = &terms.constraints;
    json!({
        "KeyId": key_id(&grant.key_id),
        "Region": key.row.region,
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
