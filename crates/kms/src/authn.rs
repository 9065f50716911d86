//! Who calls: a signature, an access key or a session, and the policies that come with it.

use std::sync::Arc;
use std::time::Instant;

use time::OffsetDateTime;

use crate::arn::PrincipalArn;
use crate::authz::Identity;
use crate::error::{ApiError, ErrorKind};
use crate::identities::{self, Entity};
use crate::secret_key::SecretKey;
use crate::service::{Channel, Request, Service};
use crate::sessions::{self, Session};
use crate::sigv4::{self, Authorization};

/// An authenticated caller.
#[derive(Debug, Clone)]
pub(crate) struct Caller {
    /// Who.
    pub(crate) arn: PrincipalArn,
    /// The role or user behind it, if it has an entry.
    pub(crate) entity: Option<Arc<Entity>>,
    /// All its policies.
    pub(crate) identity: Arc<Identity>,
    /// The session, if the credentials are temporary.
    pub(crate) session: Option<Arc<Session>>,
    pub(crate) access_key_id: String,
    /// The region of the signature.
    pub(crate) region: String,
}

impl Caller {
    /// `aws:userid`.
    pub(crate) fn user_id(&self) -> String {
        let session = self.session.as_deref();
        let principal = session.map_or(&self.arn, |session| &session.principal);
        let id = identities::unique_id(principal, self.entity.as_deref());
        match session.and_then(|session| session.claims.name.as_deref()) {
            Some(name) => format!("{id}:{name}"),
            None => id,
        }
    }
}

/// AWS's answer to an access key or token that is not known.
fn unknown() -> ApiError {
    ApiError::new(
        ErrorKind::UnrecognizedClient,
        "The security token included in the request is invalid.",
    )
}

/// What a signature is checked with, and whose it is.
struct Credentials {
    arn: PrincipalArn,
    secret: Arc<SecretKey>,
    session: Option<Arc<Session>>,
}

impl Service {
    /// Finds out who sent a request to an AWS service (`kms`, `sts`).
    pub(crate) async fn authenticate(
        &self,
        request: &Request,
        service: &str,
        now: OffsetDateTime,
    ) -> Result<Caller, ApiError> {
        let authorization = Authorization::parse(&request.headers, &request.query, service, now)?;
        let credentials = self.credentials(&authorization, request.channel).await?;
        authorization.verify(
            &credentials.secret,
            &sigv4::Request {
                method: &request.method,
                path: &request.path,
                query: &request.query,
                headers: &request.headers,
                body: &request.body,
            },
        )?;
        let access_key_id = authorization.access_key_id().to_owned();
        self.limits.admit(&access_key_id, Instant::now())?;
        self.caller(
            credentials,
            access_key_id,
            authorization.region().to_owned(),
            now,
        )
        .await
    }

    async fn credentials(
        &self,
        authorization: &Authorization<'_>,
        channel: Channel,
    ) -> Result<Credentials, ApiError> {
        let id = authorization.access_key_id();
        let token = authorization.security_token();
        // A session says itself who it is; a forged one does not reach the database.
        if let Some(token) = token
            && sessions::is_temporary(id)
        {
            return self.session(id, token, channel).await;
        }
        let principal = self
            .principals
            .find(id, channel == Channel::Dev)
            .await
            .map_err(|error| error.told())?;
        match principal {
            // Users of emulators are used to giving the development key a token.
            Some(principal) if token.is_none() || self.principals.is_dev(&principal) => {
                Ok(Credentials {
                    arn: principal.arn.clone(),
                    secret: Arc::clone(&principal.secret),
                    session: None,
                })
            }
            _ => Err(unknown()),
        }
    }

    /// A session of a user or root user lasts no longer than the access key that it was asked for with.
    async fn check_issuing_key(&self, session: &Session, channel: Channel) -> Result<(), ApiError> {
        if session.claims.name.is_some() {
            return Ok(());
        }
        let id = session.claims.issuing_key.as_deref().ok_or_else(unknown)?;
        let holder = self.principals.find(id, channel == Channel::Dev).await;
        match holder.map_err(|error| error.told())? {
            Some(holder) if holder.arn == session.principal => Ok(()),
            _ => Err(unknown()),
        }
    }

    async fn session(
        &self,
        id: &str,
        token: &str,
        channel: Channel,
    ) -> Result<Credentials, ApiError> {
        let session = self.sessions.find(&self.root, id, token);
        let session = session.ok_or_else(unknown)?;
        self.check_issuing_key(&session, channel).await?;
        Ok(Credentials {
            arn: session.caller.clone(),
            secret: Arc::clone(&session.secret),
            session: Some(session),
        })
    }

    async fn caller(
        &self,
        credentials: Credentials,
        access_key_id: String,
        region: String,
        now: OffsetDateTime,
    ) -> Result<Caller, ApiError> {
        let Credentials { arn, session, .. } = credentials;
        let principal = session.as_ref().map_or(&arn, |session| &session.principal);
        let entity = self.identities.find(principal).await;
        let entity = entity.map_err(|error| error.told())?;
        let mut identity = entity
            .as_ref()
            .map(|entity| Arc::clone(&entity.identity))
            .unwrap_or_default();
        if let Some(session) = &session {
            check_session(session, entity.as_deref(), now)?;
            if !session.policies.is_empty() {
                let mut limited = Identity::clone(&identity);
                limited.session.clone_from(&session.policies);
                identity = Arc::new(limited);
            }
        }
        Ok(Caller {
            arn,
            entity,
            identity,
            session,
            access_key_id,
            region,
        })
    }
}

/// A session ends with its time, and with the role or user that it is of.
fn check_session(
    session: &Session,
    entity: Option<&Entity>,
    now: OffsetDateTime,
) -> Result<(), ApiError> {
    if session.claims.expires <= now.unix_timestamp() {
        return Err(ApiError::new(
            ErrorKind::ExpiredToken,
            "The security token included in the request is expired",
        ));
    }
    let entry = entity.map(|entity| entity.unique_id.as_str());
    match session.claims.entry_id.as_deref() {
        Some(id) if entry != Some(id) => Err(unknown()),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::crypto::seal::RootKey;
    use crate::sessions::{Claims, Sessions, issue};

    #[test]
    fn sessions_end_with_their_time_and_their_role() {
        let directory = tempfile::tempdir().unwrap();
        let root = RootKey::open(&directory.path().join("root.key"), true).unwrap();
        let claims = Claims {
            access_key_id: "ASIA".to_owned(),
            secret: zeroize::Zeroizing::new("secret".to_owned()),
            arn: "arn:aws:iam::111122223333:role/app".to_owned(),
            entry_id: Some("AROA1".to_owned()),
            issuing_key: None,
            name: Some("one".to_owned()),
            issued: 1_000,
            expires: 1_900,
            policies: Vec::new(),
            source_identity: None,
            tags: BTreeMap::new(),
            transitive: Vec::new(),
        };
        let token = issue(&root, &claims).unwrap();
        let session = Sessions::default().find(&root, "ASIA", &token).unwrap();
        let role = |id: &str| Entity {
            unique_id: id.to_owned(),
            profile: identities::Profile::default(),
            identity: Arc::default(),
            trust: None,
        };
        let at = |seconds: i64, role: Option<&Entity>| {
            let now = OffsetDateTime::from_unix_timestamp(seconds).unwrap();
            check_session(&session, role, now).map_err(|error| error.kind())
        };
        let same = role("AROA1");
        assert_eq!(at(1_899, Some(&same)), Ok(()));
        assert_eq!(at(1_900, Some(&same)), Err(ErrorKind::ExpiredToken));
        assert_eq!(at(1_000, None), Err(ErrorKind::UnrecognizedClient));
        assert_eq!(
            at(1_000, Some(&role("AROA2"))),
            Err(ErrorKind::UnrecognizedClient)
        );
    }
}
