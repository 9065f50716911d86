//! Grants: create, list, retire, revoke.

use std::sync::Arc;

use serde_json::{Map, Value, json};

use super::admit::check_dry_run;
use super::{decode_marker, page, paged};
use crate::arn::{self, PrincipalArn};
use crate::crypto::random_array;
use crate::error::{ApiError, ErrorKind};
use crate::grants::{self, Constraints, EncryptionContext, Grant, OPERATIONS, Party, Terms};
use crate::input::Input;
use crate::keyring::{Key, seconds};
use crate::service::{Call, Facts};
use crate::store::Change;

/// AWS's quota of grants on one key.
const PER_KEY: usize = 50_000;

/// AWS's limits on a constraint: pairs, and characters of keys and values together.
const CONSTRAINT_PAIRS: usize = 8;
const CONSTRAINT_CHARACTERS: usize = 384;

const GRANT_ID_MAX: usize = 128;
const TOKEN_MAX: usize = 8192;
const PRINCIPAL_PATTERN: &str = "^[\\w+=,.@:/-]+$";
const SERVICE_PATTERN: &str = "^([A-Za-z0-9\\-]+)\\.([A-Za-z0-9\\-]+)(\\.[A-Za-z0-9\\-]+)+$";

/// `CreateGrant`.
pub(crate) async fn create(call: &mut Call<'_>, mut input: Input) -> Result<Value, ApiError> {
    let key_id = input.required_key_id("KeyId")?;
    let dry_run = input.boolean("DryRun")?;
    let terms = terms(call, &mut input)?;
    let _management = call.manage().await?;
    let key = call.find_by_key_id(&key_id)?;
    authorize_new(call, &key, &terms)?;
    check_terms(&key, &terms)?;
    key.usable(call.now_ms())?;
    check_dry_run(dry_run)?;
    let grant = match call.service.grants.same(&key.row.id, &terms) {
        Some(grant) => grant,
        None => insert(call, &key, terms).await?,
    };
    let token = grants::token(&call.service.root, &grant);
    let token = token.map_err(|error| ApiError::internal(&error))?;
    Ok(json!({ "GrantId": grant.id, "GrantToken": token }))
}

async fn insert(call: &mut Call<'_>, key: &Key, terms: Terms) -> Result<Arc<Grant>, ApiError> {
    if call.service.grants.count(&key.row.id) >= PER_KEY {
        return Err(ApiError::new(
            ErrorKind::LimitExceeded,
            format!("The key has {PER_KEY} grants, no more are allowed."),
        ));
    }
    let id: [u8; 32] = random_array().map_err(|error| ApiError::internal(&error))?;
    let grant = Grant {
        id: hex::encode(id),
        key_id: key.row.id.clone(),
        created_ms: call.now_ms(),
        terms,
    };
    call.draft.response = json!({ "grantId": grant.id, "keyId": &*key.arn });
    let row = grant.row().map_err(|error| ApiError::internal(&error))?;
    call.change(Change::InsertGrant(row)).await?;
    Ok(Arc::new(grant))
}

/// What the request asks for, checked as far as that needs no key.
fn terms(call: &Call<'_>, input: &mut Input) -> Result<Terms, ApiError> {
    let grantee = party(input, "GranteePrincipal", "GranteeServicePrincipal")?;
    let retiring = party(input, "RetiringPrincipal", "RetiringServicePrincipal")?;
    let operations = input.required_choices("Operations", OPERATIONS)?;
    let constraints = constraints(input)?;
    let allowed = |b: u8| b.is_ascii_alphanumeric() || b":/_-".contains(&b);
    let name = input.patterned_string("Name", (1, 256), "^[a-zA-Z0-9:/_-]+$", |text| {
        !text.is_empty() && text.bytes().all(allowed)
    })?;
    input.grant_tokens()?;
    input.finish()?;
    let one = "You must specify either GranteePrincipal or GranteeServicePrincipal, but not both.";
    let grantee = one_of(grantee, one)?.ok_or_else(|| ApiError::validation(one))?;
    let retiring = one_of(
        retiring,
        "You can specify either RetiringPrincipal or RetiringServicePrincipal, but not both.",
    )?;
    for party in [Some(&grantee), retiring.as_ref()].into_iter().flatten() {
        check_party(party)?;
    }
    let for_service = matches!(grantee, Party::Service(_));
    if for_service && (constraints.source_arn.is_none() || retiring.is_none()) {
        return Err(ApiError::validation(
            "A grant with GranteeServicePrincipal must have a SourceArn constraint, and a RetiringPrincipal or a RetiringServicePrincipal.",
        ));
    }
    Ok(Terms {
        name,
        grantee,
        retiring,
        issuing_account: call.caller.account().to_string(),
        operations,
        constraints,
    })
}

type Parties = (Option<String>, Option<String>);

fn party(input: &mut Input, principal: &str, service: &str) -> Result<Parties, ApiError> {
    Ok((
        principal_parameter(input, principal)?,
        service_parameter(input, service)?,
    ))
}

fn principal_parameter(input: &mut Input, name: &str) -> Result<Option<String>, ApiError> {
    let allowed = |b: u8| b.is_ascii_alphanumeric() || b"_+=,.@:/-".contains(&b);
    input.patterned_string(name, (1, 256), PRINCIPAL_PATTERN, |text| {
        !text.is_empty() && text.bytes().all(allowed)
    })
}

fn service_parameter(input: &mut Input, name: &str) -> Result<Option<String>, ApiError> {
    input.patterned_string(name, (1, 128), SERVICE_PATTERN, |text| {
        let label = |label: &str| {
            !label.is_empty()
                && label
                    .bytes()
                    .all(|b| b.is_ascii_alphanumeric() || b == b'-')
        };
        text.split('.').count() >= 3 && text.split('.').all(label)
    })
}

fn one_of((principal, service): Parties, both: &str) -> Result<Option<Party>, ApiError> {
    match (principal, service) {
        (Some(_), Some(_)) => Err(ApiError::validation(both)),
        (Some(name), None) => Ok(Some(Party::Principal(name))),
        (None, Some(name)) => Ok(Some(Party::Service(name))),
        (None, None) => Ok(None),
    }
}

/// AWS takes a service's name as a principal too.
fn check_party(party: &Party) -> Result<(), ApiError> {
    match party {
        Party::Principal(name) if !is_principal(name) => Err(ApiError::new(
            ErrorKind::InvalidArn,
            "ARN does not refer to a valid principal",
        )),
        _ => Ok(()),
    }
}

fn is_principal(name: &str) -> bool {
    if arn::is_account(name) {
        return true;
    }
    if !name.starts_with("arn:") {
        return name.ends_with(".amazonaws.com");
    }
    let parts: Vec<&str> = name.splitn(6, ':').collect();
    let ["arn", partition, service, "", account, resource] = parts[..] else {
        return false;
    };
    let named = |kinds: &[&str]| {
        kinds.iter().any(|kind| {
            resource
                .strip_prefix(kind)
                .is_some_and(|rest| !rest.is_empty())
        })
    };
    let known = match service {
        "iam" => resource == "root" || named(&["user/", "role/"]),
        "sts" => named(&["assumed-role/", "federated-user/"]),
        _ => false,
    };
    partition.starts_with("aws") && arn::is_account(account) && known
}

fn constraints(input: &mut Input) -> Result<Constraints, ApiError> {
    let Some(mut nested) = input.structure("Constraints")? else {
        return Ok(Constraints::default());
    };
    let context = |nested: &Input, name: &str| -> Result<Option<EncryptionContext>, ApiError> {
        let pairs = nested.string_map(name)?;
        Ok(nested
            .members
            .get(name)
            .filter(|v| !v.is_null())
            .map(|_| pairs))
    };
    let equals = context(&nested, "EncryptionContextEquals")?;
    let subset = context(&nested, "EncryptionContextSubset")?;
    let (equals, subset) = one_context(equals, subset);
    let constraints = Constraints {
        equals,
        subset,
        source_arn: nested.sized_string("SourceArn", 1, 2048)?,
    };
    input.adopt("Constraints", nested);
    Ok(constraints)
}

type Context = Option<EncryptionContext>;

/// Beside the other, a constraint without pairs is as if it were not there: Terraform's provider sends both.
fn one_context(equals: Context, subset: Context) -> (Context, Context) {
    match (equals, subset) {
        (Some(equals), Some(subset)) if equals.is_empty() && !subset.is_empty() => {
            (None, Some(subset))
        }
        (Some(equals), Some(subset)) if subset.is_empty() => (Some(equals), None),
        both => both,
    }
}

fn authorize_new(call: &mut Call<'_>, key: &Key, terms: &Terms) -> Result<(), ApiError> {
    let mut more: Vec<(&str, String)> = Vec::new();
    let mut add = |name, value: &str| more.push((name, value.to_owned()));
    for operation in &terms.operations {
        add("kms:GrantOperations", operation);
    }
    for constraint in terms.constraints.types() {
        add("kms:GrantConstraintType", constraint);
    }
    if let Some(source) = &terms.constraints.source_arn {
        add("kms:GrantConstraintSourceArn", source);
    }
    match &terms.grantee {
        Party::Principal(name) => add("kms:GranteePrincipal", name),
        Party::Service(name) => add("kms:GranteeServicePrincipal", name),
    }
    match &terms.retiring {
        Some(Party::Principal(name)) => add("kms:RetiringPrincipal", name),
        Some(Party::Service(name)) => add("kms:RetiringServicePrincipal", name),
        None => {}
    }
    add("kms:GrantIsForAWSResource", "false");
    let facts = Facts {
        more: &more,
        new_grant: Some(terms),
        ..Facts::default()
    };
    call.authorize(key, "kms:CreateGrant", &facts)
}

/// What AWS refuses although its form is right.
fn check_terms(key: &Key, terms: &Terms) -> Result<(), ApiError> {
    if terms.operations.is_empty() {
        return Err(ApiError::validation(
            "Grants must contain at least one operation.",
        ));
    }
    if terms.operations.iter().all(|name| name == "CreateGrant") {
        return Err(ApiError::validation(
            "Grants must not contain only the CreateGrant operation.",
        ));
    }
    let (spec, usage) = (key.row.spec.name(), key.row.usage.name());
    let unsupported = |name: &&String| !supports(spec, usage, name);
    if let Some(name) = terms.operations.iter().find(unsupported) {
        return Err(ApiError::validation(format!(
            "Operation {name} is not supported by a key with KeySpec {spec} and KeyUsage {usage}."
        )));
    }
    let constraints = &terms.constraints;
    if constraints.equals.is_some() && constraints.subset.is_some() {
        return Err(ApiError::validation("More than one constraint supplied"));
    }
    for pairs in [&constraints.equals, &constraints.subset]
        .into_iter()
        .flatten()
    {
        check_pairs(pairs)?;
    }
    let has_context = constraints.equals.is_some() || constraints.subset.is_some();
    if has_context && spec != "SYMMETRIC_DEFAULT" {
        return Err(ApiError::validation(
            "Encryption context grant constraints are supported on symmetric encryption keys only.",
        ));
    }
    Ok(())
}

fn supports(spec: &str, usage: &str, operation: &str) -> bool {
    let (all, symmetric, public) = (
        ["CreateGrant", "RetireGrant", "DescribeKey"],
        [
            "GenerateDataKey",
            "GenerateDataKeyWithoutPlaintext",
            "GenerateDataKeyPair",
            "GenerateDataKeyPairWithoutPlaintext",
        ],
        "GetPublicKey",
    );
    if all.contains(&operation) {
        return true;
    }
    let by_usage: &[&str] = match usage {
        "ENCRYPT_DECRYPT" => &["Encrypt", "Decrypt", "ReEncryptFrom", "ReEncryptTo"],
        "SIGN_VERIFY" => &["Sign", "Verify"],
        "GENERATE_VERIFY_MAC" => &["GenerateMac", "VerifyMac"],
        "KEY_AGREEMENT" => &["DeriveSharedSecret"],
        "ENCAPSULATE_DECAPSULATE" => &["Encapsulate", "Decapsulate"],
        _ => &[],
    };
    let is_symmetric = spec == "SYMMETRIC_DEFAULT";
    let is_asymmetric = !is_symmetric && usage != "GENERATE_VERIFY_MAC";
    by_usage.contains(&operation)
        || (is_symmetric && symmetric.contains(&operation))
        || (is_asymmetric && operation == public)
}

fn check_pairs(pairs: &EncryptionContext) -> Result<(), ApiError> {
    let characters: usize = pairs
        .iter()
        .map(|(name, value)| name.chars().count() + value.chars().count())
        .sum();
    if pairs.len() > CONSTRAINT_PAIRS || characters > CONSTRAINT_CHARACTERS {
        return Err(ApiError::validation(format!(
            "An encryption context constraint has at most {CONSTRAINT_PAIRS} pairs and {CONSTRAINT_CHARACTERS} characters, got {} and {characters}.",
            pairs.len()
        )));
    }
    Ok(())
}

/// `ListGrants`.
pub(crate) fn list(call: &mut Call<'_>, mut input: Input) -> Result<Value, ApiError> {
    let key_id = input.required_key_id("KeyId")?;
    let (limit, marker) = page(&mut input, 50, 1000)?;
    let grant_id = input.sized_string("GrantId", 1, GRANT_ID_MAX)?;
    let grantee = principal_parameter(&mut input, "GranteePrincipal")?;
    let service = service_parameter(&mut input, "GranteeServicePrincipal")?;
    input.finish()?;
    grant_id.as_deref().map(check_id).transpose()?;
    let key = call.find_by_key_id(&key_id)?;
    authorize_existing(call, &key, "kms:ListGrants")?;
    let after = decode_marker(&call.draft.operation, &marker)?;
    let wanted = |grant: &Grant| {
        let is_grantee = match &grant.terms.grantee {
            Party::Principal(name) => {
                service.is_none() && grantee.as_ref().is_none_or(|g| g == name)
            }
            Party::Service(name) => grantee.is_none() && service.as_ref().is_none_or(|s| s == name),
        };
        is_grantee && grant_id.as_ref().is_none_or(|id| *id == grant.id)
    };
    let limit = usize::try_from(limit).unwrap_or_default();
    let grants = call
        .service
        .grants
        .page(&key.row.id, &after, limit + 1, wanted);
    Ok(answer_page(call, grants, limit))
}

/// `ListRetirableGrants`.
pub(crate) fn list_retirable(call: &mut Call<'_>, mut input: Input) -> Result<Value, ApiError> {
    let (limit, marker) = page(&mut input, 50, 1000)?;
    let retiring = party(&mut input, "RetiringPrincipal", "RetiringServicePrincipal")?;
    input.finish()?;
    let one =
        "You must specify either RetiringPrincipal or RetiringServicePrincipal, but not both.";
    let retiring = one_of(retiring, one)?.ok_or_else(|| ApiError::validation(one))?;
    check_party(&retiring)?;
    let denied = |text| Err(ApiError::new(ErrorKind::AccessDenied, text));
    let name = match &retiring {
        Party::Principal(name) => name,
        // None of AWS's services calls here, and nobody else learns what is theirs.
        Party::Service(_) => {
            return denied("RetiringServicePrincipal is for callers that are AWS services.");
        }
    };
    let account = call.caller.account();
    let root = PrincipalArn::root(account);
    // What the caller's policies are asked about is the principal.
    let resource = match name.split(':').nth(4) {
        Some(of) if *of == **account => name,
        None if *name == **account => root.as_str(),
        _ => return denied("The retiring principal must be in your account."),
    };
    call.authorize_on("kms:ListRetirableGrants", resource, &Facts::default())?;
    let after = decode_marker(&call.draft.operation, &marker)?;
    let limit = usize::try_from(limit).unwrap_or_default();
    let (grants, keys) = (&call.service.grants, &call.service.keys);
    let is_here = |grant: &Grant| {
        let key = keys.get(&grant.key_id);
        key.is_some_and(|key| key.place.region == call.here.region)
    };
    let found = grants.retirable(name, &after, limit + 1, is_here);
    Ok(answer_page(call, found, limit))
}

fn answer_page(call: &Call<'_>, mut grants: Vec<Arc<Grant>>, limit: usize) -> Value {
    let truncated = grants.len() > limit;
    grants.truncate(limit);
    let entries: Vec<Value> = grants.iter().map(|grant| entry(call, grant)).collect();
    let last = grants.last().filter(|_| truncated);
    paged(call, "Grants", entries, last.map(|grant| grant.id.as_str()))
}

/// `GrantListEntry`.
fn entry(call: &Call<'_>, grant: &Grant) -> Value {
    let mut entry = Map::new();
    let mut add = |name: &str, value: Value| entry.insert(name.to_owned(), value);
    let key = call.service.keys.get(&grant.key_id);
    add("KeyId", key.map_or(Value::Null, |key| (&*key.arn).into()));
    add("GrantId", grant.id.as_str().into());
    add("CreationDate", seconds(grant.created_ms).into());
    let terms = &grant.terms;
    add("Operations", terms.operations.clone().into());
    let issuer = format!("arn:aws:iam::{}:root", terms.issuing_account);
    add("IssuingAccount", issuer.into());
    if let Some(name) = &terms.name {
        add("Name", name.as_str().into());
    }
    match &terms.grantee {
        Party::Principal(name) => add("GranteePrincipal", name.as_str().into()),
        Party::Service(name) => add("GranteeServicePrincipal", name.as_str().into()),
    };
    match &terms.retiring {
        Some(Party::Principal(name)) => add("RetiringPrincipal", name.as_str().into()),
        Some(Party::Service(name)) => add("RetiringServicePrincipal", name.as_str().into()),
        None => None,
    };
    if terms.constraints != Constraints::default() {
        add("Constraints", constraints_entry(&terms.constraints));
    }
    Value::Object(entry)
}

fn constraints_entry(constraints: &Constraints) -> Value {
    let mut entry = Map::new();
    if let Some(pairs) = &constraints.equals {
        entry.insert("EncryptionContextEquals".to_owned(), json!(pairs));
    }
    if let Some(pairs) = &constraints.subset {
        entry.insert("EncryptionContextSubset".to_owned(), json!(pairs));
    }
    if let Some(source) = &constraints.source_arn {
        entry.insert("SourceArn".to_owned(), source.as_str().into());
    }
    Value::Object(entry)
}

/// `RevokeGrant`.
pub(crate) async fn revoke(call: &mut Call<'_>, mut input: Input) -> Result<Value, ApiError> {
    let key_id = input.required_key_id("KeyId")?;
    let grant_id = input.required_string("GrantId", 1, GRANT_ID_MAX)?;
    let dry_run = input.boolean("DryRun")?;
    input.finish()?;
    check_id(&grant_id)?;
    let _management = call.manage().await?;
    let key = call.find_by_key_id(&key_id)?;
    authorize_existing(call, &key, "kms:RevokeGrant")?;
    let grant = existing(call, &key, &grant_id)?;
    check_dry_run(dry_run)?;
    remove(call, &grant).await
}

/// `RetireGrant`.
pub(crate) async fn retire(call: &mut Call<'_>, mut input: Input) -> Result<Value, ApiError> {
    let token = input.sized_string("GrantToken", 1, TOKEN_MAX)?;
    let key_id = input.key_id("KeyId")?;
    let grant_id = input.sized_string("GrantId", 1, GRANT_ID_MAX)?;
    let dry_run = input.boolean("DryRun")?;
    input.finish()?;
    let (key_id, grant_id) = match (token, key_id, grant_id) {
        (Some(token), None, None) => token_reference(call, &token)?,
        (None, Some(key_id), Some(grant_id)) => {
            check_id(&grant_id)?;
            (key_id, grant_id)
        }
        _ => {
            return Err(ApiError::validation(
                "You must specify either GrantToken or both GrantId and KeyId.",
            ));
        }
    };
    let _management = call.manage().await?;
    let key = call.find_by_key_id(&key_id)?;
    let grant = match existing(call, &key, &grant_id) {
        // Who has no say about another account's key does not learn what there is.
        Err(_) if !call.is_own(&key) => {
            call.authorize(&key, "kms:RetireGrant", &Facts::default())?;
            existing(call, &key, &grant_id)?
        }
        found => found?,
    };
    let facts = Facts {
        retired: Some(&grant),
        ..Facts::default()
    };
    call.authorize(&key, "kms:RetireGrant", &facts)?;
    check_dry_run(dry_run)?;
    remove(call, &grant).await
}

/// The key's ARN and the grant's id that a token stands for.
fn token_reference(call: &mut Call<'_>, token: &str) -> Result<(String, String), ApiError> {
    let invalid = || ApiError::new(ErrorKind::InvalidGrantToken, "Grant token is invalid.");
    let (key_id, id) = grants::open_token(&call.service.root, token).ok_or_else(invalid)?;
    let key = call.service.keys.get(&key_id).ok_or_else(invalid)?;
    call.draft.parameters = json!({ "keyId": &*key.arn, "grantId": id });
    Ok((key.arn.to_string(), id))
}

fn authorize_existing(call: &mut Call<'_>, key: &Key, action: &str) -> Result<(), ApiError> {
    let more = [("kms:GrantIsForAWSResource", "false".to_owned())];
    let facts = Facts {
        more: &more,
        ..Facts::default()
    };
    call.authorize(key, action, &facts)
}

fn check_id(id: &str) -> Result<(), ApiError> {
    match id.len() == 64 && id.bytes().all(|b| b.is_ascii_hexdigit()) {
        true => Ok(()),
        false => Err(ApiError::new(
            ErrorKind::InvalidGrantId,
            format!("Grant ID {id} is not valid."),
        )),
    }
}

fn existing(call: &Call<'_>, key: &Key, id: &str) -> Result<Arc<Grant>, ApiError> {
    let grant = call.service.grants.get(&key.row.id, id);
    grant.ok_or_else(|| ApiError::not_found(format!("Grant ID {id} is not found.")))
}

async fn remove(call: &mut Call<'_>, grant: &Grant) -> Result<Value, ApiError> {
    call.change(Change::DeleteGrant(grant.id.clone())).await?;
    Ok(Value::Null)
}
