//! Sessions: temporary credentials that carry all there is to know about them.
//!
//! A session token is the session itself, sealed under the root key: access key id, secret, role, expiry, session
//! policies. Nothing is stored, so sessions outlive a restart and every node of a fleet knows them. A token opens for
//! its own access key id only. A session ends when the entry of its role or user is removed or made anew; one that a user
//! asked for with an access key ends with that access key too.

use std::collections::BTreeMap;
use std::sync::Arc;

use aws_lc_rs::constant_time;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use dashmap::DashMap;
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use crate::arn::{PrincipalArn, PrincipalArnError};
use crate::authz::Named;
use crate::crypto::seal::{RootKey, SealError};
use crate::crypto::{RandomError, random_array};
use crate::identities::letters;
use crate::policy::Policy;
use crate::secret_key::SecretKey;

/// Most remembered sessions; beyond it the memory is emptied, never grown.
const REMEMBER: usize = 10_000;

/// What a session token says.
#[derive(Clone, Serialize, Deserialize)]
pub struct Claims {
    /// `ASIA…`.
    pub access_key_id: String,
    /// Secret access key.
    pub secret: Zeroizing<String>,
    /// ARN of the role that was assumed, or of the user or root user that asked for a session token.
    pub arn: String,
    /// Unique id of the role's or user's entry when the session began, if there was one.
    #[serde(rename = "role_id", default, skip_serializing_if = "Option::is_none")]
    pub entry_id: Option<String>,
    /// The access key that a session of a user or root user was asked for with.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub issuing_key: Option<String>,
    /// Name of a role's session.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// Seconds since 1970.
    pub issued: i64,
    /// Seconds since 1970.
    pub expires: i64,
    /// Session policies.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub policies: Vec<String>,
    /// `aws:SourceIdentity`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source_identity: Option<String>,
    /// Session tags.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub tags: BTreeMap<String, String>,
    /// Names of the tags that go on to further roles.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub transitive: Vec<String>,
}

impl std::fmt::Debug for Claims {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Claims")
            .field("access_key_id", &self.access_key_id)
            .field("arn", &self.arn)
            .finish_non_exhaustive()
    }
}

/// A session whose token was opened.
pub struct Session {
    /// What the token says.
    pub claims: Claims,
    /// The caller that it makes.
    pub caller: PrincipalArn,
    /// The role, or the user itself.
    pub principal: PrincipalArn,
    /// Session policies, parsed.
    pub policies: Vec<Named>,
    /// What its holder signs with.
    pub secret: Arc<SecretKey>,
    token: String,
}

impl std::fmt::Debug for Session {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Session")
            .field("caller", &self.caller)
            .finish_non_exhaustive()
    }
}

/// Why there are no new credentials.
#[derive(Debug, thiserror::Error)]
pub enum IssueError {
    /// No randomness.
    #[error(transparent)]
    Random(#[from] RandomError),
    /// The token was not sealed.
    #[error(transparent)]
    Seal(#[from] SealError),
    /// The claims are no JSON, which their type does not allow for.
    #[error("a session could not be written as JSON")]
    Json(#[from] serde_json::Error),
}

/// What the access key ids of sessions begin with, and no others.
const TEMPORARY: &str = "ASIA";

/// Whether an access key id is a session's, if it is anybody's.
#[must_use]
pub fn is_temporary(access_key_id: &str) -> bool {
    access_key_id.starts_with(TEMPORARY)
}

/// A new access key id of a session and its secret.
///
/// # Errors
/// If the system has no randomness.
pub fn new_keys() -> Result<(String, Zeroizing<String>), RandomError> {
    let id: [u8; 16] = random_array()?;
    let secret = Zeroizing::new(random_array::<30>()?);
    Ok((
        letters(TEMPORARY, id.iter()),
        Zeroizing::new(STANDARD.encode(*secret)),
    ))
}

fn label(access_key_id: &str) -> Vec<u8> {
    format!("enclos-kms session {access_key_id}").into_bytes()
}

/// The token of a session.
///
/// # Errors
/// If it cannot be sealed.
pub fn issue(root: &RootKey, claims: &Claims) -> Result<String, IssueError> {
    let json = Zeroizing::new(serde_json::to_vec(claims)?);
    let sealed = root.seal(&label(&claims.access_key_id), &json)?;
    Ok(STANDARD.encode(sealed))
}

/// Opens a token for its access key id; `None` if it is not ours or another's. It may have expired.
fn open(root: &RootKey, access_key_id: &str, token: &str) -> Option<Session> {
    let sealed = STANDARD.decode(token).ok()?;
    let json = root.unseal(&label(access_key_id), &sealed).ok()?;
    let claims: Claims = serde_json::from_slice(&json).ok()?;
    session(claims, token).ok()
}

fn session(claims: Claims, token: &str) -> Result<Session, SessionError> {
    let principal = PrincipalArn::parse(&claims.arn)?;
    let caller = match &claims.name {
        Some(name) => PrincipalArn::session(&principal, name),
        None => principal.clone(),
    };
    let policies: Result<Vec<_>, _> = claims
        .policies
        .iter()
        .map(|text| {
            Policy::parse_identity(text).map(|policy| Named {
                name: "session".to_owned(),
                policy: Arc::new(policy),
            })
        })
        .collect();
    let secret = Zeroizing::new(claims.secret.as_bytes().to_vec());
    Ok(Session {
        policies: policies?,
        secret: Arc::new(SecretKey::new(secret)),
        caller,
        principal,
        claims,
        token: token.to_owned(),
    })
}

/// What we sealed and now do not understand: written by another version.
#[derive(Debug, thiserror::Error)]
enum SessionError {
    #[error(transparent)]
    Arn(#[from] PrincipalArnError),
    #[error(transparent)]
    Policy(#[from] crate::policy::PolicyError),
}

/// Sessions that were used lately.
#[derive(Debug, Default)]
pub struct Sessions {
    opened: DashMap<String, Opened>,
}

#[derive(Debug)]
struct Opened {
    session: Arc<Session>,
    /// Which reading of `root.key` it was that opened it. Another may have forgotten the version that sealed it.
    reading: u64,
}

impl Sessions {
    /// The session of an access key id and token; `None` if the token is not ours or another's. It may have expired.
    #[must_use]
    pub fn find(&self, root: &RootKey, access_key_id: &str, token: &str) -> Option<Arc<Session>> {
        let reading = root.reads();
        if let Some(opened) = self.opened.get(access_key_id)
            && opened.reading == reading
            && is_same(&opened.session.token, token)
        {
            return Some(Arc::clone(&opened.session));
        }
        let session = Arc::new(open(root, access_key_id, token)?);
        if self.opened.len() >= REMEMBER {
            self.opened.clear();
        }
        let opened = Opened {
            session: Arc::clone(&session),
            reading,
        };
        self.opened.insert(access_key_id.to_owned(), opened);
        Some(session)
    }
}

fn is_same(a: &str, b: &str) -> bool {
    constant_time::verify_slices_are_equal(a.as_bytes(), b.as_bytes()).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::crypto::root_file::RootFile;

    fn claims(id: &str) -> Claims {
        Claims {
            access_key_id: id.to_owned(),
            secret: Zeroizing::new("secret".to_owned()),
            arn: "arn:aws:iam::111122223333:role/path/app".to_owned(),
            entry_id: None,
            issuing_key: None,
            name: Some("one".to_owned()),
            issued: 0,
            expires: 1,
            policies: Vec::new(),
            source_identity: None,
            tags: BTreeMap::new(),
            transitive: Vec::new(),
        }
    }

    #[test]
    fn a_session_ends_with_the_version_that_sealed_it() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("root.key");
        let root = RootKey::open(&path, true).unwrap();
        let token = issue(&root, &claims("ASIAONE")).unwrap();
        let sessions = Sessions::default();
        let is_known = || {
            root.reload().unwrap();
            sessions.find(&root, "ASIAONE", &token).is_some()
        };
        assert!(is_known());
        let mut file = RootFile::read(&path, None, false).unwrap();
        file.current = file.add(0).unwrap();
        file.write(&path).unwrap();
        assert!(is_known());
        assert!(file.retire(1));
        file.write(&path).unwrap();
        assert!(!is_known());
    }

    #[test]
    fn a_token_opens_for_its_own_key_on_its_own_server() {
        let directory = tempfile::tempdir().unwrap();
        let key = |name: &str| RootKey::open(&directory.path().join(name), true).unwrap();
        let (ours, other) = (key("a.key"), key("b.key"));
        let token = issue(&ours, &claims("ASIAONE")).unwrap();
        let sessions = Sessions::default();
        let session = sessions.find(&ours, "ASIAONE", &token).unwrap();
        assert_eq!(
            session.caller.as_str(),
            "arn:aws:sts::111122223333:assumed-role/app/one"
        );
        assert_eq!(session.caller.role(), Some(session.principal.as_str()));
        assert!(sessions.find(&ours, "ASIAONE", &token).is_some());
        // Remembered or not, another token is not taken for it.
        let changed = token.replacen(
            &token[20..21],
            if &token[20..21] == "A" { "B" } else { "A" },
            1,
        );
        assert!(sessions.find(&ours, "ASIAONE", &changed).is_none());
        assert!(sessions.find(&ours, "ASIATWO", &token).is_none());
        assert!(
            Sessions::default()
                .find(&other, "ASIAONE", &token)
                .is_none()
        );
        for bad in ["", "x", "AAAA"] {
            assert!(sessions.find(&ours, "ASIAONE", bad).is_none(), "{bad}");
        }
        assert!(!format!("{session:?}").contains("secret"));
    }
}
