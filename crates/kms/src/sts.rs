//! AWS STS on the same address: AssumeRole, GetCallerIdentity, GetSessionToken.
//!
//! STS speaks AWS's query protocol: a form (or a presigned query) in, XML out. Who calls, what its policies
//! say and how it is audited are as for every other call; a role's trust policy stands where a key's policy stands.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;

use serde_json::{Map, Value, json};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use crate::arn::{PrincipalArn, PrincipalKind};
use crate::authz::Ask;
use crate::error::{ApiError, ErrorKind};
use crate::identities::{Entity, MAX_SESSION};
use crate::input::Input;
use crate::policy::{Policy, Question};
use crate::service::{Answer, Call, Facts, Request, Service};
use crate::sessions::{self, Claims};
use crate::sigv4;
use crate::{audit, ops, traces};

/// Operations of STS.
pub(crate) const OPERATIONS: &[&str] = &["AssumeRole", "GetCallerIdentity", "GetSessionToken"];

const NAMESPACE: &str = "https://sts.amazonaws.com/doc/2011-06-15/";
const XML: &str = "text/xml";
const VERSION: &str = "2011-06-15";

/// AWS's limit on session policies, in characters.
const POLICY_MAX: usize = 2048;

/// AWS's limit on a session that a role's session makes, in seconds.
const CHAINED_MAX: i64 = 3600;

/// AWS's limits on session tags: how many, and characters of a key and of a value.
const TAGS_MAX: usize = 50;
const TAG_KEY_MAX: usize = 128;
const TAG_VALUE_MAX: usize = 256;
const TAG_KEY_PATTERN: &str = "[\\p{L}\\p{Z}\\p{N}_.:/=+\\-@]+";
const TAG_VALUE_PATTERN: &str = "[\\p{L}\\p{Z}\\p{N}_.:/=+\\-@]*";

/// Parameters of multi-factor authentication.
const MFA: &[&str] = &["SerialNumber", "TokenCode"];

/// Parameters that an event repeats.
const SHOWN: &[&str] = &[
    "DurationSeconds",
    "ExternalId",
    "Policy",
    "RoleArn",
    "RoleSessionName",
    "SourceIdentity",
];

type Form = BTreeMap<String, String>;

/// Whether a request is of the query protocol.
pub(crate) fn is_for(request: &Request) -> bool {
    let text = |name: &str| {
        let value = request.headers.get(name);
        value
            .and_then(|value| value.to_str().ok())
            .unwrap_or_default()
    };
    let form = text("content-type").starts_with("application/x-www-form-urlencoded");
    let query = sigv4::query_pairs(&request.query).any(|(name, _)| name == "Action");
    text("x-amz-target").is_empty() && (form || query)
}

/// Serves a request of the query protocol; the value is the XML of the result.
pub(crate) async fn serve(
    service: &Service,
    request: &Request,
    request_id: &str,
    now: OffsetDateTime,
    facts: &mut traces::Facts,
) -> Result<Value, ApiError> {
    let form = form(request)?;
    let operation = operation(&form)?;
    let caller = service.authenticate(request, "sts", now).await?;
    let input = typed(form);
    let shown: Map<String, Value> = input
        .members
        .iter()
        .filter(|(name, _)| SHOWN.contains(&name.as_str()))
        .map(|(name, value)| (crate::input::lower_first(name), value.clone()))
        .collect();
    let parameters = if shown.is_empty() {
        Value::Null
    } else {
        Value::Object(shown)
    };
    let mut call = service.call(request, request_id, now, (operation, parameters), caller)?;
    let result = match operation {
        "AssumeRole" => assume_role(&mut call, input).await,
        "GetSessionToken" => get_session_token(&mut call, input),
        _ => Ok(get_caller_identity(&call)),
    };
    let result = result.map(|members| respond(operation, request_id, &members).into());
    call.tell(facts);
    call.record(result).await
}

fn form(request: &Request) -> Result<Form, ApiError> {
    let body = std::str::from_utf8(&request.body)
        .map_err(|_| ApiError::validation("The request body is not text."))?
        .replace('+', "%20");
    sigv4::query_pairs(&request.query)
        .chain(sigv4::query_pairs(&body))
        .map(|(name, value)| {
            let value = String::from_utf8(value)
                .map_err(|_| ApiError::validation(format!("The parameter {name} is not text.")))?;
            Ok((name, value))
        })
        .collect()
}

/// The action that a request names, known or not.
pub(crate) fn named(request: &Request) -> String {
    let form = form(request).unwrap_or_default();
    form.get("Action").cloned().unwrap_or_default()
}

fn operation(form: &Form) -> Result<&'static str, ApiError> {
    let action = form.get("Action").map_or("", String::as_str);
    let version = form.get("Version").map_or("", String::as_str);
    let known = OPERATIONS.iter().find(|name| **name == action);
    known
        .filter(|_| version == VERSION)
        .copied()
        .ok_or_else(|| {
            ApiError::new(
                ErrorKind::UnknownOperation,
                format!("Could not find operation {action} for version {version}"),
            )
        })
}

/// A form as the structure that it spells: `Tags.member.1.Key=a` and numbers that are numbers.
fn typed(form: Form) -> Input {
    let mut members = Map::new();
    let mut lists: BTreeMap<String, BTreeMap<u32, Value>> = BTreeMap::new();
    for (name, value) in form {
        match name.split('.').collect::<Vec<_>>()[..] {
            [list, "member", index] => {
                if let Ok(index) = index.parse() {
                    let list = lists.entry(list.to_owned()).or_default();
                    list.insert(index, value.into());
                }
            }
            [list, "member", index, field] => {
                if let Ok(index) = index.parse() {
                    let list = lists.entry(list.to_owned()).or_default();
                    let item = list.entry(index).or_insert_with(|| json!({}));
                    if let Some(item) = item.as_object_mut() {
                        item.insert(field.to_owned(), value.into());
                    }
                }
            }
            _ => {
                let number = value
                    .parse::<i64>()
                    .ok()
                    .filter(|_| name == "DurationSeconds");
                members.insert(name, number.map_or_else(|| value.into(), Value::from));
            }
        }
    }
    for (name, list) in lists {
        members.insert(name, list.into_values().collect());
    }
    Input::of(members)
}

// --- operations -----------------------------------------------------------------------------------

fn get_caller_identity(call: &Call<'_>) -> Value {
    json!({
        "Arn": call.caller.as_str(),
        "UserId": call.draft.principal_id,
        "Account": &**call.caller.account(),
    })
}

/// What AssumeRole asks for.
struct Wanted {
    role: PrincipalArn,
    name: String,
    duration: Option<i64>,
    policy: Option<String>,
    external_id: Option<String>,
    source_identity: Option<String>,
    tags: Vec<(String, String)>,
    transitive: Vec<String>,
}

async fn assume_role(call: &mut Call<'_>, input: Input) -> Result<Value, ApiError> {
    let wanted = wanted(input)?;
    call.draft.resources.push(wanted.role.to_string());
    let denied = |call: &Call<'_>| denied(&call.caller, "sts:AssumeRole", &wanted.role);
    if call.caller.kind() == PrincipalKind::Root {
        return Err(ApiError::new(
            ErrorKind::AccessDenied,
            "Roles may not be assumed by root accounts.",
        ));
    }
    // Before it is known whether there is such a role: what is wrong with the tags must not tell it.
    let tags = session_tags(call, &wanted)?;
    let entity = call.service.identities.find(&wanted.role).await;
    let entity = entity.map_err(|error| error.told())?;
    let Some(entity) = entity else {
        return Err(denied(call));
    };
    let Some(trust) = &entity.trust else {
        return Err(denied(call));
    };
    authorize(call, &wanted, trust, "sts:AssumeRole", &tags)?;
    // What the calling session hands on needs the permissions too.
    if !tags.is_empty() {
        authorize(call, &wanted, trust, "sts:TagSession", &tags)?;
    }
    let source = wanted.source_identity.clone();
    let source = source.or_else(|| source_identity(call));
    if source.is_some() {
        authorize(call, &wanted, trust, "sts:SetSourceIdentity", &tags)?;
    }
    let duration = duration(call, &wanted, &entity)?;
    check_source_identity(call, &wanted)?;
    let mut claims = claims(call, &wanted.role, duration)?;
    claims.entry_id = Some(entity.unique_id.clone());
    claims.name = Some(wanted.name.clone());
    claims.policies = wanted.policy.iter().cloned().collect();
    claims.source_identity = source;
    claims.transitive = wanted.transitive.clone();
    claims.transitive.extend(inherited(call).into_keys());
    claims.tags = tags;
    let session = PrincipalArn::session(&wanted.role, &wanted.name);
    let user = json!({
        "Arn": session.as_str(),
        "AssumedRoleId": format!("{}:{}", entity.unique_id, wanted.name),
    });
    let mut members = credentials(call, &claims)?;
    if let Some(map) = members.as_object_mut() {
        map.insert("AssumedRoleUser".to_owned(), user.clone());
        if let Some(policy) = &wanted.policy {
            let percent = policy.len().saturating_mul(100).div_ceil(POLICY_MAX);
            map.insert("PackedPolicySize".to_owned(), percent.into());
        }
        if let Some(source) = &claims.source_identity {
            map.insert("SourceIdentity".to_owned(), source.as_str().into());
        }
    }
    if let Some(response) = call.draft.response.as_object_mut() {
        response.insert("assumedRoleUser".to_owned(), user);
    }
    Ok(members)
}

fn wanted(mut input: Input) -> Result<Wanted, ApiError> {
    let role = input.required_string("RoleArn", 20, 2048)?;
    let name = word(
        &mut input,
        "RoleSessionName",
        (2, 64),
        "[\\w+=,.@-]*",
        "+=,.@-",
    )?;
    let name = input.require("RoleSessionName", name);
    let duration = input.integer("DurationSeconds", 900, 43_200)?;
    let policy = input.sized_string("Policy", 1, usize::MAX)?;
    let external_id = word(
        &mut input,
        "ExternalId",
        (2, 1224),
        "[\\w+=,.@:\\/-]*",
        "+=,.@:/-",
    )?;
    let source_identity = word(
        &mut input,
        "SourceIdentity",
        (2, 256),
        "[\\w+=,.@-]*",
        "+=,.@-",
    )?;
    let tags = tags(&mut input)?;
    let transitive = input.strings("TransitiveTagKeys")?.unwrap_or_default();
    input.check_each("TransitiveTagKeys", &transitive, TAG_KEY_MAX);
    input.finish()?;
    check_tags(&tags, &transitive)?;
    refuse_given(&input, &["PolicyArns", "ProvidedContexts"])?;
    refuse_given(&input, MFA)?;
    let role = PrincipalArn::parse(&role)
        .ok()
        .filter(|role| role.kind() == PrincipalKind::Role)
        .ok_or_else(|| ApiError::validation(format!("{role} is invalid")))?;
    if let Some(text) = &policy {
        check_policy(text)?;
    }
    Ok(Wanted {
        role,
        name,
        duration,
        policy,
        external_id,
        source_identity,
        tags,
        transitive,
    })
}

/// What is missing is refused: whoever names an MFA device counts on a session that was authenticated by it.
fn refuse_given(input: &Input, names: &[&str]) -> Result<(), ApiError> {
    match names.iter().find(|name| input.is_given(name)) {
        None => Ok(()),
        Some(name) => Err(ApiError::validation(format!(
            "{name} is not supported by this version of Enclos KMS: there are no managed policies, no trusted contexts and no MFA devices."
        ))),
    }
}

/// Reads the session tags: their form only.
fn tags(input: &mut Input) -> Result<Vec<(String, String)>, ApiError> {
    let list = input.structures("Tags")?.unwrap_or_default();
    let mut tags = Vec::with_capacity(list.len());
    for (index, mut tag) in list.into_iter().enumerate() {
        let key = tag.patterned_string("Key", (1, TAG_KEY_MAX), TAG_KEY_PATTERN, is_tag_text)?;
        let key = tag.require("Key", key);
        let limits = (0, TAG_VALUE_MAX);
        let value = tag.patterned_string("Value", limits, TAG_VALUE_PATTERN, is_tag_text)?;
        let value = tag.require("Value", value);
        input.adopt(&format!("Tags.{}.member", index + 1), tag);
        tags.push((key, value));
    }
    Ok(tags)
}

/// `TAG_VALUE_PATTERN`.
fn is_tag_text(text: &str) -> bool {
    let space = |c: char| c.is_whitespace() && !c.is_control();
    let allowed = |c: char| c.is_alphanumeric() || space(c) || "_.:/=+-@".contains(c);
    text.chars().all(allowed)
}

/// Condition keys have no case, so the names of tags must not differ in it alone.
fn check_tags(tags: &[(String, String)], transitive: &[String]) -> Result<(), ApiError> {
    let refuse = |text: &str| Err(ApiError::new(ErrorKind::Tag, text));
    if tags.len() > TAGS_MAX || transitive.len() > TAGS_MAX {
        return refuse("A session has at most 50 tags.");
    }
    let names: BTreeSet<_> = tags
        .iter()
        .map(|(name, _)| name.to_ascii_lowercase())
        .collect();
    if names.len() < tags.len() {
        return refuse("Duplicate tag keys found. Please note that Tag keys are case insensitive.");
    }
    if names.iter().any(|name| name.starts_with("aws:")) {
        return refuse("Tags beginning with aws: are reserved.");
    }
    if !transitive
        .iter()
        .all(|name| names.contains(&name.to_ascii_lowercase()))
    {
        return refuse("The specified transitive tag key must be included in the requested tags.");
    }
    Ok(())
}

fn word(
    input: &mut Input,
    name: &str,
    limits: (usize, usize),
    pattern: &str,
    marks: &str,
) -> Result<Option<String>, ApiError> {
    let allowed = |c: char| c.is_ascii_alphanumeric() || c == '_' || marks.contains(c);
    input.patterned_string(name, limits, pattern, |text| text.chars().all(allowed))
}

fn check_policy(text: &str) -> Result<(), ApiError> {
    if text.chars().count() > POLICY_MAX {
        return Err(ApiError::new(
            ErrorKind::PackedPolicyTooLarge,
            format!(
                "Serialized token too large for session: a session policy has at most {POLICY_MAX} characters."
            ),
        ));
    }
    Policy::parse_identity(text).map_err(ops::policies::malformed)?;
    Ok(())
}

/// Asks a role's trust policy and the caller's own policies.
fn authorize(
    call: &mut Call<'_>,
    wanted: &Wanted,
    trust: &Policy,
    action: &str,
    tags: &BTreeMap<String, String>,
) -> Result<(), ApiError> {
    let request_tags: Vec<_> = tags
        .iter()
        .map(|(name, value)| (name.clone(), Some(value.clone())))
        .collect();
    let mut more = vec![("sts:RoleSessionName", wanted.name.clone())];
    more.extend(wanted.external_id.clone().map(|id| ("sts:ExternalId", id)));
    let source = wanted.source_identity.clone();
    more.extend(source.map(|source| ("sts:SourceIdentity", source)));
    let transitive = wanted.transitive.iter();
    more.extend(transitive.map(|key| ("sts:TransitiveTagKeys", key.clone())));
    let facts = Facts {
        more: &more,
        request_tags: &request_tags,
        ..Facts::default()
    };
    let context = call.context(None, &facts);
    let ask = Ask {
        question: &Question {
            principal: &call.caller,
            action,
            resource: wanted.role.as_str(),
            context: &context,
        },
        policy: trust,
        identity: &call.identity,
        same_account: wanted.role.account() == call.caller.account(),
    };
    let Err(refused) = ask.decide(Vec::new) else {
        return Ok(());
    };
    let reports = trust.explain(ask.question);
    let own = call.identity.explain(ask.question);
    let error = denied(&call.caller, action, &wanted.role);
    tracing::warn!(
        request_id = %call.draft.request_id, caller = %call.caller, action, role = %wanted.role,
        why = %audit::denial_line(&reports, &own, &[]), "access denied"
    );
    let reason = refused.because(action);
    call.draft.denial = Some(audit::denial(action, &reason, &reports, &own, &[]));
    Err(error)
}

fn denied(caller: &PrincipalArn, action: &str, role: &PrincipalArn) -> ApiError {
    ApiError::new(
        ErrorKind::AccessDenied,
        format!("User: {caller} is not authorized to perform: {action} on resource: {role}"),
    )
}

/// Tags of the session that calls which go on to the next.
fn inherited(call: &Call<'_>) -> BTreeMap<String, String> {
    let Some(session) = &call.draft.session else {
        return BTreeMap::new();
    };
    let claims = &session.claims;
    let transitive = |name: &str| {
        let mut names = claims.transitive.iter();
        names.any(|transitive| transitive.eq_ignore_ascii_case(name))
    };
    let tags = claims.tags.iter().filter(|(name, _)| transitive(name));
    tags.map(|(name, value)| (name.clone(), value.clone()))
        .collect()
}

/// The new session's tags; those that are inherited cannot be set.
fn session_tags(call: &Call<'_>, wanted: &Wanted) -> Result<BTreeMap<String, String>, ApiError> {
    let mut tags = inherited(call);
    let is_inherited = |(name, _): &(String, String)| {
        let mut names = tags.keys();
        names.any(|inherited| inherited.eq_ignore_ascii_case(name))
    };
    if wanted.tags.iter().any(is_inherited) {
        return Err(ApiError::new(
            ErrorKind::Tag,
            "One of the specified transitive tag keys can't be set because it conflicts with a transitive tag key from the calling session.",
        ));
    }
    tags.extend(wanted.tags.iter().cloned());
    if tags.len() > TAGS_MAX {
        return Err(ApiError::new(
            ErrorKind::Tag,
            "A session has at most 50 tags, those included that it inherits.",
        ));
    }
    Ok(tags)
}

fn source_identity(call: &Call<'_>) -> Option<String> {
    let session = call.draft.session.as_ref()?;
    session.claims.source_identity.clone()
}

/// Once set, a source identity stays through all further roles.
fn check_source_identity(call: &Call<'_>, wanted: &Wanted) -> Result<(), ApiError> {
    match (source_identity(call), &wanted.source_identity) {
        (Some(old), Some(new)) if old != *new => Err(ApiError::new(
            ErrorKind::AccessDenied,
            "SourceIdentity cannot be changed once it is set.",
        )),
        _ => Ok(()),
    }
}

fn duration(call: &Call<'_>, wanted: &Wanted, entity: &Entity) -> Result<i64, ApiError> {
    let longest = entity.profile.max_session.unwrap_or(MAX_SESSION);
    let duration = wanted.duration.unwrap_or(MAX_SESSION);
    // A user's session token makes no chain.
    let session = call.draft.session.as_deref();
    let is_chained = session.is_some_and(|session| session.claims.name.is_some());
    if is_chained && duration > CHAINED_MAX {
        return Err(ApiError::validation(
            "The requested DurationSeconds exceeds the 1 hour session limit for roles assumed by role chaining.",
        ));
    }
    if duration > longest {
        return Err(ApiError::validation(
            "The requested DurationSeconds exceeds the MaxSessionDuration set for this role.",
        ));
    }
    Ok(duration)
}

fn get_session_token(call: &mut Call<'_>, mut input: Input) -> Result<Value, ApiError> {
    let duration = input.integer("DurationSeconds", 900, 129_600)?;
    input.finish()?;
    refuse_given(&input, MFA)?;
    let longest = match call.caller.kind() {
        _ if call.draft.session.is_some() => None,
        PrincipalKind::Root => Some(3600),
        PrincipalKind::User => Some(43_200),
        _ => None,
    };
    let Some(longest) = longest else {
        return Err(ApiError::new(
            ErrorKind::AccessDenied,
            "Cannot call GetSessionToken with session credentials",
        ));
    };
    let arn = call.caller.clone();
    let duration = match arn.kind() {
        PrincipalKind::Root => duration.unwrap_or(longest).min(longest),
        _ => duration.unwrap_or(longest),
    };
    let mut claims = claims(call, &arn, duration)?;
    claims.issuing_key = Some(call.draft.access_key_id.clone());
    claims.entry_id = call.entity.as_ref().map(|entity| entity.unique_id.clone());
    credentials(call, &claims)
}

fn claims(call: &Call<'_>, principal: &PrincipalArn, duration: i64) -> Result<Claims, ApiError> {
    let (access_key_id, secret) =
        sessions::new_keys().map_err(|error| ApiError::internal(&error))?;
    let issued = call.now.unix_timestamp();
    Ok(Claims {
        access_key_id,
        secret,
        arn: principal.to_string(),
        entry_id: None,
        issuing_key: None,
        name: None,
        issued,
        expires: issued + duration,
        policies: Vec::new(),
        source_identity: None,
        tags: BTreeMap::new(),
        transitive: Vec::new(),
    })
}

/// `Credentials`, and what the audit event shows of them.
fn credentials(call: &mut Call<'_>, claims: &Claims) -> Result<Value, ApiError> {
    let token = sessions::issue(&call.service.root, claims);
    let token = token.map_err(|error| ApiError::internal(&error))?;
    let expires = OffsetDateTime::from_unix_timestamp(claims.expires);
    let expires = expires.ok().and_then(|time| time.format(&Rfc3339).ok());
    call.draft.response = json!({
        "credentials": { "accessKeyId": claims.access_key_id, "expiration": expires },
    });
    Ok(json!({ "Credentials": {
        "AccessKeyId": claims.access_key_id,
        "SecretAccessKey": *claims.secret,
        "SessionToken": token,
        "Expiration": expires,
    } }))
}

// --- XML ------------------------------------------------------------------------------------------

fn respond(operation: &str, request_id: &str, members: &Value) -> String {
    let mut xml = format!("<{operation}Response xmlns=\"{NAMESPACE}\"><{operation}Result>");
    element(&mut xml, members);
    xml.push_str(&format!(
        "</{operation}Result><ResponseMetadata><RequestId>{request_id}</RequestId></ResponseMetadata></{operation}Response>"
    ));
    xml
}

fn element(xml: &mut String, value: &Value) {
    match value {
        Value::Object(members) => {
            for (name, value) in members {
                xml.push_str(&format!("<{name}>"));
                element(xml, value);
                xml.push_str(&format!("</{name}>"));
            }
        }
        Value::String(text) => escape(xml, text),
        other => xml.push_str(&other.to_string()),
    }
}

fn escape(xml: &mut String, text: &str) {
    for c in text.chars() {
        match c {
            '<' => xml.push_str("&lt;"),
            '>' => xml.push_str("&gt;"),
            '&' => xml.push_str("&amp;"),
            '"' => xml.push_str("&quot;"),
            '\t' | '\n' | '\r' => {
                // A String takes everything.
                let _infallible = write!(xml, "&#{};", u32::from(c));
            }
            // XML 1.0 has no other control characters, escaped or not.
            c if c.is_control() || matches!(c, '\u{fffe}' | '\u{ffff}') => xml.push('\u{fffd}'),
            c => xml.push(c),
        }
    }
}

/// The answer of a request of the query protocol.
pub(crate) fn render(request_id: String, result: Result<Value, ApiError>) -> Answer {
    let (status, body, error) = match result {
        Ok(Value::String(xml)) => (200, xml, None),
        Ok(_) => (200, String::new(), None),
        Err(error) => {
            let (status, code) = status(error.kind());
            let side = if status < 500 { "Sender" } else { "Receiver" };
            let mut xml = format!(
                "<ErrorResponse xmlns=\"{NAMESPACE}\"><Error><Type>{side}</Type><Code>{code}</Code><Message>"
            );
            escape(&mut xml, error.message().unwrap_or_default());
            xml.push_str(&format!(
                "</Message></Error><RequestId>{request_id}</RequestId></ErrorResponse>"
            ));
            (status, xml, Some(code))
        }
    };
    Answer {
        status,
        body: body.into_bytes(),
        content_type: XML,
        request_id,
        error,
        warnings: Vec::new(),
    }
}

/// The query protocol has names and statuses of its own.
fn status(kind: ErrorKind) -> (u16, &'static str) {
    match kind {
        ErrorKind::AccessDenied => (403, "AccessDenied"),
        ErrorKind::ExpiredToken => (403, "ExpiredToken"),
        ErrorKind::IncompleteSignature => (400, "IncompleteSignature"),
        ErrorKind::InvalidSignature => (403, "SignatureDoesNotMatch"),
        ErrorKind::KmsInternal => (500, "InternalFailure"),
        ErrorKind::MalformedPolicyDocument => (400, "MalformedPolicyDocument"),
        ErrorKind::MissingAuthenticationToken => (403, "MissingAuthenticationToken"),
        ErrorKind::PackedPolicyTooLarge => (400, "PackedPolicyTooLarge"),
        ErrorKind::Tag => (400, "InvalidParameterValue"),
        ErrorKind::Throttling => (400, "Throttling"),
        ErrorKind::UnknownOperation => (400, "InvalidAction"),
        ErrorKind::UnrecognizedClient => (403, "InvalidClientTokenId"),
        _ => (400, "ValidationError"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn xml_holds_any_text() {
        let mut xml = String::new();
        escape(&mut xml, "<a href=\"&\">\n\u{0}é");
        assert_eq!(xml, "&lt;a href=&quot;&amp;&quot;&gt;&#10;\u{fffd}é");
    }

    #[test]
    fn session_tags_have_awss_characters_and_number() {
        for (text, valid) in [
            ("Ünit 7_.:/=+-@", true),
            ("", true),
            ("a\u{3000}b", true),
            ("*", false),
            ("${x}", false),
            ("a\tb", false),
        ] {
            assert_eq!(is_tag_text(text), valid, "{text}");
        }
        let tags = |count: usize| -> Vec<_> {
            let tag = |number: usize| (format!("Tag{number}"), String::new());
            (0..count).map(tag).collect()
        };
        let refused = |tags: &[(String, String)], transitive: &[&str]| {
            let transitive: Vec<_> = transitive.iter().map(|name| (*name).to_owned()).collect();
            check_tags(tags, &transitive).is_err()
        };
        assert!(!refused(&tags(50), &["tag7"]));
        assert!(refused(&tags(51), &[]));
        assert!(refused(&tags(1), &["other"]));
        let pair = |a: &str, b: &str| [a, b].map(|name| (name.to_owned(), String::new()));
        assert!(refused(&pair("team", "Team"), &[]));
        assert!(refused(&pair("team", "AWS:x"), &[]));
        assert!(!refused(&pair("team", "unit"), &[]));
    }

    #[test]
    fn forms_spell_structures() {
        let pairs = [
            ("DurationSeconds", "900"),
            ("RoleSessionName", "900"),
            ("Tags.member.2.Key", "b"),
            ("Tags.member.1.Key", "a"),
            ("Tags.member.1.Value", "1"),
            ("TransitiveTagKeys.member.1", "a"),
            ("Tags.member.x.Key", "ignored"),
        ];
        let form = pairs.map(|(name, value)| (name.to_owned(), value.to_owned()));
        let members = typed(form.into()).members;
        assert_eq!(
            Value::Object(members),
            json!({
                "DurationSeconds": 900, "RoleSessionName": "900", "TransitiveTagKeys": ["a"],
                "Tags": [{ "Key": "a", "Value": "1" }, { "Key": "b" }],
            })
        );
    }
}
