//! `enclos-kms identity`: users and roles, their policies, who may assume a role.

use std::path::PathBuf;

use serde_json::{Value, json};
use time::OffsetDateTime;

use super::principal::date;
use super::record::record;
use super::table::Table;
use super::{Data, Failure, print};
use crate::arn::{PrincipalArn, PrincipalKind};
use crate::crypto::random_array;
use crate::identities::{Entity, IdentityError, Profile, letters, namesake};
use crate::policy::{Policy, PolicyError};
use crate::store::{self, Connection, IdentityRow};

#[derive(Debug, clap::Subcommand)]
pub(super) enum Command {
    /// Make or change a user or role. What is not named stays as it is
    Put(Box<Put>),
    /// List users and roles
    List {
        #[command(flatten)]
        data: Data,
        /// As a JSON list
        #[arg(long)]
        json: bool,
    },
    /// Show a user or role with its policies, as JSON
    Show {
        #[command(flatten)]
        data: Data,
        /// IAM ARN of a user or role
        #[arg(long, value_parser = parse_arn)]
        arn: PrincipalArn,
    },
    /// Remove a user or role. Its sessions end after two seconds at most; access keys of its ARN stay
    Remove {
        #[command(flatten)]
        data: Data,
        /// IAM ARN of a user or role
        #[arg(long, value_parser = parse_arn)]
        arn: PrincipalArn,
    },
}

#[derive(Debug, clap::Args)]
pub(super) struct Put {
    #[command(flatten)]
    data: Data,

    /// IAM ARN of a user or role
    #[arg(long, value_parser = parse_arn)]
    arn: PrincipalArn,

    /// A policy of the principal, NAME=FILE; may be repeated. One of that name is replaced
    #[arg(long, value_name = "NAME=FILE", value_parser = parse_pair)]
    policy: Vec<(String, String)>,

    /// Name of a policy to remove; may be repeated
    #[arg(long, value_name = "NAME")]
    remove_policy: Vec<String>,

    /// The most that the policies can give: a permissions boundary
    #[arg(long, value_name = "FILE")]
    boundary: Option<PathBuf>,

    /// Remove the permissions boundary
    #[arg(long, conflicts_with = "boundary")]
    no_boundary: bool,

    /// Who may assume the role: its trust policy
    #[arg(long, value_name = "FILE")]
    trust: Option<PathBuf>,

    /// Longest session of the role; 3600 by default
    #[arg(long, value_name = "SECONDS", value_parser = clap::value_parser!(i64).range(3600..=43_200))]
    max_session: Option<i64>,

    /// A tag of the principal, KEY=VALUE; may be repeated
    #[arg(long, value_name = "KEY=VALUE", value_parser = parse_pair)]
    tag: Vec<(String, String)>,
}

#[derive(Debug, thiserror::Error)]
enum IdentityCommandError {
    #[error("there is no user or role {0}; `enclos-kms identity list` shows those there are")]
    Unknown(String),
    #[error("{0} is a user; a trust policy and a longest session are for roles")]
    NotARole(String),
    #[error("{arn} has no policy {name:?}")]
    NoPolicy { arn: String, name: String },
    #[error("cannot read {path}")]
    Read {
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
    #[error("{path} is no policy for this")]
    Policy {
        path: PathBuf,
        #[source]
        source: PolicyError,
    },
    #[error("the profile cannot be written as JSON")]
    Json(#[from] serde_json::Error),
}

fn parse_arn(text: &str) -> Result<PrincipalArn, String> {
    let arn = PrincipalArn::parse(text).map_err(|error| error.to_string())?;
    match arn.kind() {
        PrincipalKind::User | PrincipalKind::Role => Ok(arn),
        _ => Err("expected the ARN of a user or role: the root user needs no policies".to_owned()),
    }
}

fn parse_pair(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((name, value)) if !name.is_empty() => Ok((name.to_owned(), value.to_owned())),
        _ => Err("expected NAME=VALUE".to_owned()),
    }
}

pub(super) async fn run(command: Command) -> Result<(), Failure> {
    match command {
        Command::Put(arguments) => put(*arguments).await,
        Command::List { data, json } => list(&data, json).await,
        Command::Show { data, arn } => show(&data, &arn).await,
        Command::Remove { data, arn } => remove(&data, &arn).await,
    }
}

async fn put(arguments: Put) -> Result<(), Failure> {
    let mut connection = store::connect(&arguments.data.location()?).await?;
    let root = arguments.data.root()?;
    connection.begin().await?;
    check_name(&mut connection, &arguments.arn).await?;
    let arn = arguments.arn.to_string();
    let old = store::identities(&mut connection).await?;
    let old = old.into_iter().find(|row| row.arn == arn);
    let mut profile: Profile = match &old {
        Some(row) => serde_json::from_str(&row.profile).map_err(IdentityCommandError::from)?,
        None => Profile::default(),
    };
    change(&mut profile, &arguments)?;
    let row = IdentityRow {
        unique_id: match old {
            Some(row) => row.unique_id,
            None => new_unique_id(&arguments.arn)?,
        },
        created_ms: crate::audit::unix_ms(OffsetDateTime::now_utc()),
        profile: serde_json::to_string(&profile).map_err(IdentityCommandError::from)?,
        arn,
    };
    // The server reads it the same way; what it could not use is refused here.
    Entity::new(&row)?;
    store::put_identity(&mut connection, &row).await?;
    let parameters = shown(&row)?;
    let account = arguments.arn.account();
    record(&mut connection, &root, "PutIdentity", account, parameters).await?;
    connection.commit().await?;
    Ok(())
}

/// Refuses a user or role of a name that its account already has in another path or case, as AWS does.
pub(super) async fn check_name(
    connection: &mut Connection,
    arn: &PrincipalArn,
) -> Result<(), Failure> {
    let entries = store::identities(connection).await?;
    let keys = store::principals(connection).await?;
    let entries = entries.iter().map(|row| row.arn.as_str());
    let keys = keys.iter().map(|row| row.arn.as_str());
    match namesake(arn, entries.chain(keys)) {
        Some(other) => Err(IdentityError::Namesakes {
            arn: arn.to_string(),
            other: other.to_owned(),
        }
        .into()),
        None => Ok(()),
    }
}

fn change(profile: &mut Profile, arguments: &Put) -> Result<(), IdentityCommandError> {
    let arn = arguments.arn.to_string();
    for name in &arguments.remove_policy {
        if profile.policies.remove(name).is_none() {
            let name = name.clone();
            return Err(IdentityCommandError::NoPolicy { arn, name });
        }
    }
    for (name, path) in &arguments.policy {
        let text = read(path.into(), Policy::parse_identity)?;
        profile.policies.insert(name.clone(), text);
    }
    if let Some(path) = &arguments.boundary {
        profile.boundary = Some(read(path.clone(), Policy::parse_identity)?);
    }
    if arguments.no_boundary {
        profile.boundary = None;
    }
    let for_roles = arguments.trust.is_some() || arguments.max_session.is_some();
    if for_roles && arguments.arn.kind() != PrincipalKind::Role {
        return Err(IdentityCommandError::NotARole(arn));
    }
    if let Some(path) = &arguments.trust {
        profile.trust = Some(read(path.clone(), Policy::parse_trust)?);
    }
    profile.max_session = arguments.max_session.or(profile.max_session);
    for (name, value) in &arguments.tag {
        // Condition keys have no case: one name has one value.
        profile
            .tags
            .retain(|old, _| !old.eq_ignore_ascii_case(name));
        profile.tags.insert(name.clone(), value.clone());
    }
    Ok(())
}

fn read(
    path: PathBuf,
    parse: impl Fn(&str) -> Result<Policy, PolicyError>,
) -> Result<String, IdentityCommandError> {
    let text = std::fs::read_to_string(&path).map_err(|source| IdentityCommandError::Read {
        path: path.clone(),
        source,
    })?;
    match parse(&text) {
        Ok(_) => Ok(text),
        Err(source) => Err(IdentityCommandError::Policy { path, source }),
    }
}

fn new_unique_id(arn: &PrincipalArn) -> Result<String, crate::crypto::RandomError> {
    let prefix = match arn.kind() {
        PrincipalKind::User => "AIDA",
        _ => "AROA",
    };
    let bytes: [u8; 17] = random_array()?;
    Ok(letters(prefix, bytes.iter()))
}

async fn list(data: &Data, json: bool) -> Result<(), Failure> {
    let (mut connection, still) = store::look(&data.location()?).await?;
    let rows = store::identities(&mut connection).await?;
    still.check()?;
    if json {
        let rows: Result<Vec<_>, _> = rows.iter().map(shown).collect();
        print(&format!("{:#}", json!(rows?)))?;
        return Ok(());
    }
    let mut table = Table::new(&["PRINCIPAL", "ID", "CREATED", "POLICIES"]);
    for row in rows {
        let entity = Entity::new(&row)?;
        let policies: Vec<&str> = entity.profile.policies.keys().map(String::as_str).collect();
        table.row(&[
            &row.arn,
            &row.unique_id,
            &date(row.created_ms),
            &policies.join(","),
        ]);
    }
    table.print()?;
    Ok(())
}

fn shown(row: &IdentityRow) -> Result<Value, Failure> {
    let profile = Entity::new(row)?.profile;
    let document = |text: &String| serde_json::from_str::<Value>(text).unwrap_or_default();
    let policies: serde_json::Map<String, Value> = profile
        .policies
        .iter()
        .map(|(name, text)| (name.clone(), document(text)))
        .collect();
    Ok(json!({
        "Arn": row.arn,
        "Id": row.unique_id,
        "CreateDate": date(row.created_ms),
        "Policies": policies,
        "PermissionsBoundary": profile.boundary.as_ref().map(document),
        "AssumeRolePolicyDocument": profile.trust.as_ref().map(document),
        "MaxSessionDuration": profile.max_session,
        "Tags": profile.tags,
    }))
}

async fn show(data: &Data, arn: &PrincipalArn) -> Result<(), Failure> {
    let (mut connection, still) = store::look(&data.location()?).await?;
    let rows = store::identities(&mut connection).await?;
    still.check()?;
    let row = rows.iter().find(|row| row.arn == arn.as_str());
    let row = row.ok_or_else(|| IdentityCommandError::Unknown(arn.to_string()))?;
    print(&format!("{:#}", shown(row)?))?;
    Ok(())
}

async fn remove(data: &Data, arn: &PrincipalArn) -> Result<(), Failure> {
    let mut connection = store::connect(&data.location()?).await?;
    let root = data.root()?;
    connection.begin().await?;
    if !store::delete_identity(&mut connection, arn.as_str()).await? {
        return Err(IdentityCommandError::Unknown(arn.to_string()).into());
    }
    let parameters = json!({ "Arn": arn.as_str() });
    record(
        &mut connection,
        &root,
        "DeleteIdentity",
        arn.account(),
        parameters,
    )
    .await?;
    connection.commit().await?;
    Ok(())
}
