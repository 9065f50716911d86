//! Names of keys, aliases and principals.
//!
//! Keys live in a *place*: an account in a region. The region is the one of the caller's signature, the
//! account is the caller's; an ARN may name another account but never another region.

use std::fmt;
use std::sync::Arc;

use crate::error::ApiError;

/// An account in a region.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Place {
    /// Twelve digits.
    pub account: Arc<str>,
    /// Such as `us-east-1`.
    pub region: Arc<str>,
}

impl Place {
    /// A place from its parts.
    pub fn new(account: impl Into<Arc<str>>, region: impl Into<Arc<str>>) -> Self {
        Self {
            account: account.into(),
            region: region.into(),
        }
    }

    /// `arn:aws:kms:REGION:ACCOUNT:key/ID`.
    #[must_use]
    pub fn key_arn(&self, id: &str) -> String {
        format!(
            "arn:{}:kms:{}:{}:key/{id}",
            self.partition(),
            self.region,
            self.account
        )
    }

    /// `arn:aws:kms:REGION:ACCOUNT:alias/NAME`; `name` starts with `alias/`.
    #[must_use]
    pub fn alias_arn(&self, name: &str) -> String {
        format!(
            "arn:{}:kms:{}:{}:{name}",
            self.partition(),
            self.region,
            self.account
        )
    }

    /// The AWS partition that the region belongs to.
    #[must_use]
    pub fn partition(&self) -> &'static str {
        partition(&self.region)
    }
}

fn partition(region: &str) -> &'static str {
    match region {
        r if r.starts_with("cn-") => "aws-cn",
        r if r.starts_with("us-gov-") => "aws-us-gov",
        r if r.starts_with("eusc-") => "aws-eusc",
        _ => "aws",
    }
}

/// A `KeyId` parameter, parsed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum KeyRef {
    /// A key of that place.
    Key(Place, String),
    /// An alias of that place; the name starts with `alias/`.
    Alias(Place, String),
}

impl KeyRef {
    /// Reads a key id, key ARN, alias name or alias ARN as a caller in `here` means it.
    ///
    /// # Errors
    /// `NotFoundException` with AWS's text when it names nothing that can exist here.
    pub fn parse(text: &str, here: &Place) -> Result<Self, ApiError> {
        if text.starts_with("arn:") {
            return Self::parse_arn(text, here);
        }
        if text.starts_with("alias/") {
            return Ok(Self::Alias(here.clone(), text.to_owned()));
        }
        if is_key_id(text) {
            return Ok(Self::Key(here.clone(), text.to_owned()));
        }
        Err(ApiError::not_found(format!("Invalid keyId '{text}'")))
    }

    /// The account and region that it names.
    #[must_use]
    pub fn place(&self) -> &Place {
        match self {
            Self::Key(place, _) | Self::Alias(place, _) => place,
        }
    }

    /// The ARN that it names.
    #[must_use]
    pub fn arn(&self) -> String {
        match self {
            Self::Key(place, id) => place.key_arn(id),
            Self::Alias(place, name) => place.alias_arn(name),
        }
    }

    fn parse_arn(text: &str, here: &Place) -> Result<Self, ApiError> {
        let invalid = |what: &str| ApiError::not_found(format!("Invalid arn {what}"));
        let mut parts = text.splitn(6, ':').skip(1);
        let mut next = || parts.next().unwrap_or_default();
        let (arn_partition, service, region, account, resource) =
            (next(), next(), next(), next(), next());
        if service != "kms" || !is_account(account) || arn_partition != here.partition() {
            return Err(invalid(text));
        }
        if region != &*here.region {
            return Err(invalid(region));
        }
        let place = Place::new(account, region);
        match resource.strip_prefix("key/") {
            Some(id) if is_key_id(id) => Ok(Self::Key(place, id.to_owned())),
            None if resource.starts_with("alias/") => Ok(Self::Alias(place, resource.to_owned())),
            _ => Err(invalid(text)),
        }
    }
}

/// Whether `text` has the form of a key id: a UUID, or `mrk-` and 32 hex digits.
#[must_use]
pub fn is_key_id(text: &str) -> bool {
    let hex = |s: &str| s.bytes().all(|b| b.is_ascii_hexdigit());
    if let Some(rest) = text.strip_prefix("mrk-") {
        return rest.len() == 32 && hex(rest);
    }
    let lengths = [8, 4, 4, 4, 12];
    let mut parts = text.split('-');
    lengths
        .iter()
        .all(|len| parts.next().is_some_and(|p| p.len() == *len && hex(p)))
        && parts.next().is_none()
}

/// Whether `text` is an AWS account id.
#[must_use]
pub fn is_account(text: &str) -> bool {
    text.len() == 12 && text.bytes().all(|b| b.is_ascii_digit())
}

/// Whether `text` can be a region: it becomes part of ARNs.
#[must_use]
pub fn is_region(text: &str) -> bool {
    let allowed = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
    (1..=32).contains(&text.len()) && text.bytes().all(allowed)
}

/// Who calls: the ARN of a principal, taken apart.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PrincipalArn {
    arn: Arc<str>,
    account: Arc<str>,
    kind: PrincipalKind,
    /// The ARN of a session's role.
    role: Option<Arc<str>>,
}

/// The kinds of principals that call here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PrincipalKind {
    /// The account itself: `arn:aws:iam::ACCOUNT:root`.
    Root,
    /// `arn:aws:iam::ACCOUNT:user/NAME`.
    User,
    /// `arn:aws:iam::ACCOUNT:role/NAME`, by an access key of its own.
    Role,
    /// `arn:aws:sts::ACCOUNT:assumed-role/NAME/SESSION`.
    Session,
}

/// Why a text is not the ARN of a principal.
#[derive(Debug, thiserror::Error)]
#[error(
    "{0:?} is not the ARN of a principal; expected arn:aws:iam::<12 digits>: followed by root, user/<name> or role/<name>"
)]
pub struct PrincipalArnError(String);

impl PrincipalArn {
    /// The account root user.
    #[must_use]
    pub fn root(account: &str) -> Self {
        Self {
            arn: format!("arn:aws:iam::{account}:root").into(),
            account: account.into(),
            kind: PrincipalKind::Root,
            role: None,
        }
    }

    /// A session of a role. As on AWS its ARN leaves out the role's path.
    #[must_use]
    pub fn session(role: &Self, name: &str) -> Self {
        let partition = role.arn.split(':').nth(1).unwrap_or("aws");
        let arn = format!(
            "arn:{partition}:sts::{}:assumed-role/{}/{name}",
            role.account,
            role.name()
        );
        Self {
            arn: arn.into(),
            account: Arc::clone(&role.account),
            kind: PrincipalKind::Session,
            role: Some(Arc::clone(&role.arn)),
        }
    }

    /// Reads an IAM ARN.
    ///
    /// # Errors
    /// If it is not the ARN of an account root, user or role.
    pub fn parse(text: &str) -> Result<Self, PrincipalArnError> {
        let error = || PrincipalArnError(text.to_owned());
        let parts: Vec<&str> = text.splitn(6, ':').collect();
        let ["arn", partition, "iam", "", account, resource] = parts[..] else {
            return Err(error());
        };
        if !partition.starts_with("aws") || !is_account(account) {
            return Err(error());
        }
        let kind = match resource.split_once('/') {
            None if resource == "root" => PrincipalKind::Root,
            Some(("user", name)) if is_name(name) => PrincipalKind::User,
            Some(("role", name)) if is_name(name) => PrincipalKind::Role,
            _ => return Err(error()),
        };
        Ok(Self {
            arn: text.into(),
            account: account.into(),
            kind,
            role: None,
        })
    }

    /// The ARN.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.arn
    }

    /// Its account.
    #[must_use]
    pub fn account(&self) -> &Arc<str> {
        &self.account
    }

    /// The ARN of a session's role.
    #[must_use]
    pub fn role(&self) -> Option<&str> {
        self.role.as_deref()
    }

    /// Root, user, role or session.
    #[must_use]
    pub fn kind(&self) -> PrincipalKind {
        self.kind
    }

    /// Whether this is another user or role of the same name: AWS has one of a name in an account, whatever its path
    /// and case, and the ARN of a role's session leaves the path out.
    #[must_use]
    pub fn is_namesake(&self, other: &Self) -> bool {
        matches!(self.kind, PrincipalKind::User | PrincipalKind::Role)
            && (self.kind, &self.account) == (other.kind, &other.account)
            && self.name().eq_ignore_ascii_case(other.name())
            && self.arn != other.arn
    }

    /// The last part of the name, without the path; the account id for the root.
    #[must_use]
    pub fn name(&self) -> &str {
        match self.kind {
            PrincipalKind::Root => &self.account,
            _ => self.arn.rsplit('/').next().unwrap_or_default(),
        }
    }
}

fn is_name(name: &str) -> bool {
    let allowed = |b: u8| b.is_ascii_alphanumeric() || b"+=,.@_-/".contains(&b);
    (1..=512).contains(&name.len()) && !name.ends_with('/') && name.bytes().all(allowed)
}

impl fmt::Display for PrincipalArn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.arn)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ID: &str = "1234abcd-12ab-34cd-56ef-1234567890ab";

    fn here() -> Place {
        Place::new("111122223333", "eu-west-1")
    }

    #[test]
    fn key_references() {
        let arn = format!("arn:aws:kms:eu-west-1:111122223333:key/{ID}");
        assert_eq!(
            KeyRef::parse(ID, &here()),
            Ok(KeyRef::Key(here(), ID.into()))
        );
        assert_eq!(
            KeyRef::parse(&arn, &here()),
            Ok(KeyRef::Key(here(), ID.into()))
        );
        assert_eq!(
            KeyRef::parse("alias/a/b", &here()),
            Ok(KeyRef::Alias(here(), "alias/a/b".into()))
        );
        let other = KeyRef::parse("arn:aws:kms:eu-west-1:444455556666:alias/x", &here());
        assert_eq!(
            other,
            Ok(KeyRef::Alias(
                Place::new("444455556666", "eu-west-1"),
                "alias/x".into()
            ))
        );
        let mrk = "mrk-1234abcd12ab34cd56ef1234567890ab";
        assert_eq!(
            KeyRef::parse(mrk, &here()),
            Ok(KeyRef::Key(here(), mrk.into()))
        );
    }

    #[test]
    fn key_references_that_name_nothing() {
        let cases = [
            ("x", "Invalid keyId 'x'"),
            ("", "Invalid keyId ''"),
            (
                "arn:aws:kms:us-east-1:111122223333:key/x",
                "Invalid arn us-east-1",
            ),
            (
                "arn:aws:iam:eu-west-1:111122223333:key/x",
                "Invalid arn arn:aws:iam:eu-west-1:111122223333:key/x",
            ),
            (
                "arn:aws:kms:eu-west-1:111122223333:key/x",
                "Invalid arn arn:aws:kms:eu-west-1:111122223333:key/x",
            ),
            (
                "arn:aws:kms:eu-west-1:1:key/x",
                "Invalid arn arn:aws:kms:eu-west-1:1:key/x",
            ),
            ("arn:", "Invalid arn arn:"),
        ];
        for (text, message) in cases {
            let error = KeyRef::parse(text, &here()).unwrap_err();
            assert_eq!(error.message(), Some(message), "{text}");
        }
    }

    #[test]
    fn principals() {
        let role = PrincipalArn::parse("arn:aws:iam::111122223333:role/app/enclave").unwrap();
        assert_eq!(
            (role.kind(), role.name(), &**role.account()),
            (PrincipalKind::Role, "enclave", "111122223333")
        );
        for (text, namesake) in [
            ("arn:aws:iam::111122223333:role/enclave", true),
            ("arn:aws:iam::111122223333:role/App/Enclave", true),
            ("arn:aws:iam::111122223333:role/app/enclave", false),
            ("arn:aws:iam::111122223333:role/app/enclaves", false),
            ("arn:aws:iam::111122223333:user/enclave", false),
            ("arn:aws:iam::444455556666:role/enclave", false),
        ] {
            let other = PrincipalArn::parse(text).unwrap();
            assert_eq!(role.is_namesake(&other), namesake, "{text}");
        }
        let root = PrincipalArn::parse("arn:aws:iam::111122223333:root").unwrap();
        assert_eq!(root, PrincipalArn::root("111122223333"));
        for bad in [
            "",
            "*",
            "arn:aws:iam::1111:root",
            "arn:aws:iam::111122223333:role/",
            "arn:aws:iam::111122223333:group/x",
            "arn:aws:iam::111122223333:role/a b",
            "arn:aws:kms:eu-west-1:111122223333:role/x",
        ] {
            assert!(PrincipalArn::parse(bad).is_err(), "{bad}");
        }
    }
}
