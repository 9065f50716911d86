//! One request from its bytes to its answer.
//!
//! ```text
//! target ─▶ signature ─▶ JSON ─▶ operation: constraints ─▶ document ─▶ key ─▶ policy ─▶ state ─▶ work
//!                                                                                   │
//!                     answer ◀── audit row (with the change, or queued) ◀───────────┘
//! ```
//!
//! Nothing here knows about sockets: [`Service::answer`] takes a [`Request`] and gives an [`Answer`].

use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use hyper::HeaderMap;
use serde_json::Value;
use time::OffsetDateTime;

use crate::arn::{KeyRef, Place, PrincipalArn, PrincipalKind};
use crate::audit::{self, Draft};
use crate::authn::Caller;
use crate::authz::{self, Ask, Identity};
use crate::crypto::seal::RootKey;
use crate::error::{ApiError, Chain, ErrorKind};
use crate::grants::{self, Grant, Grants, Reach, Terms, Use};
use crate::identities::{Entity, Identities};
use crate::input::Input;
use crate::keyring::{Key, Keyring, LoadError};
use crate::limits::Limits;
use crate::measurements::{Judgement, Measurements};
use crate::memory::{Follower, Memory};
use crate::metrics::{self, Metrics};
use crate::ops;
use crate::policy::{Context, MEASUREMENT_POLICY, Question};
use crate::presence;
use crate::principals::Principals;
use crate::recipient::{self, Attested, Trust};
use crate::sessions::Sessions;
use crate::store::{AuditRow, Change, Store, StoreError};
use crate::sts;
use crate::tags::TagStore;
use crate::traces::{self, Tracer};

/// Where a request came in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Channel {
    /// TLS.
    Tls,
    /// Plain HTTP on loopback, where the development credentials are valid.
    Dev,
}

/// A request as it arrived.
#[derive(Debug, Clone)]
pub struct Request {
    /// HTTP method.
    pub method: String,
    /// Path as it arrived.
    pub path: String,
    /// Query as it arrived.
    pub query: String,
    /// Headers.
    pub headers: HeaderMap,
    /// Body.
    pub body: bytes::Bytes,
    /// Who sent it.
    pub source: IpAddr,
    /// Over what.
    pub channel: Channel,
}

/// What is sent back.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    /// HTTP status.
    pub status: u16,
    /// JSON, or XML from STS; empty for operations without output.
    pub body: Vec<u8>,
    /// What the body is.
    pub content_type: &'static str,
    /// `x-amzn-RequestId`.
    pub request_id: String,
    /// `x-amzn-ErrorType`.
    pub error: Option<&'static str>,
    /// `x-enclos-policy-warnings`: what is legal in a new key policy and seldom meant.
    pub warnings: Vec<String>,
}

/// How long connections for reading may take to close.
const END_READING: Duration = Duration::from_secs(1);

/// How often a call is made again because other nodes were first.
const RACES: usize = 20;

/// Content type of AWS's JSON protocol.
pub const JSON: &str = "application/x-amz-json-1.1";

/// The key management service of one data directory.
#[derive(Debug)]
pub struct Service {
    pub(crate) store: Store,
    pub(crate) follower: Follower,
    pub(crate) keys: Keyring,
    pub(crate) grants: Grants,
    pub(crate) tags: TagStore,
    pub(crate) root: Arc<RootKey>,
    pub(crate) trust: Trust,
    pub(crate) principals: Principals,
    pub(crate) identities: Identities,
    pub(crate) sessions: Sessions,
    pub(crate) limits: Limits,
    pub(crate) measurements: Measurements,
    pub(crate) metrics: Metrics,
    /// Makes a span of each request, if spans are wanted.
    tracer: Option<Tracer>,
    /// Refuse key policies that the linter finds fault with.
    pub(crate) strict_policies: bool,
    /// Take `Recipient` in Sign, Verify, GenerateMac and VerifyMac too, which AWS does not.
    pub(crate) attested_signing: bool,
    /// Held from reading a key or alias to having changed it. Requests that change nothing never take it.
    pub(crate) management: tokio::sync::Mutex<()>,
}

impl Service {
    /// A service over an open store.
    ///
    /// # Errors
    /// If a stored key cannot be used.
    pub async fn new(store: Store, root: RootKey, trust: Trust) -> Result<Self, LoadError> {
        let root = Arc::new(root);
        store.seal_with(Arc::clone(&root)).await?;
        let all = store.everything().await?;
        let (keys, grants, tags) = (Keyring::default(), Grants::default(), TagStore::default());
        let memory = Memory {
            keys: &keys,
            grants: &grants,
            tags: &tags,
            root: &root,
        };
        memory.load(&all)?;
        let follower = Follower::new(&store, all.seq);
        let principals = Principals::new(store.clone(), Arc::clone(&root));
        let identities = Identities::new(store.clone());
        Ok(Self {
            store,
            follower,
            keys,
            grants,
            tags,
            root,
            trust,
            principals,
            identities,
            sessions: Sessions::default(),
            limits: Limits::default(),
            measurements: Measurements::default(),
            metrics: Metrics::default(),
            tracer: None,
            strict_policies: false,
            attested_signing: false,
            management: tokio::sync::Mutex::default(),
        })
    }

    /// The same service with a limit on how often one client may call.
    #[must_use]
    pub fn with_limits(self, limits: Limits) -> Self {
        Self { limits, ..self }
    }

    /// The same service with measurement policies that key policies may name.
    #[must_use]
    pub fn with_measurements(self, measurements: Measurements) -> Self {
        Self {
            measurements,
            ..self
        }
    }

    /// The same service, which refuses key policies that the linter finds fault with.
    #[must_use]
    pub fn with_strict_policies(self, strict_policies: bool) -> Self {
        Self {
            strict_policies,
            ..self
        }
    }

    /// The same service, which takes `Recipient` in Sign, Verify, GenerateMac and VerifyMac too.
    #[must_use]
    pub fn with_attested_signing(self, attested_signing: bool) -> Self {
        Self {
            attested_signing,
            ..self
        }
    }

    /// The same service, which makes a span of each request.
    #[must_use]
    pub fn with_tracer(self, tracer: Option<Tracer>) -> Self {
        Self { tracer, ..self }
    }

    /// The same service, which may answer from what was true so long ago, where nodes share a database.
    #[must_use]
    pub fn with_staleness(self, staleness: Duration) -> Self {
        Self {
            follower: self.follower.with_staleness(staleness),
            ..self
        }
    }

    /// Closes the connections for reading, so that the writer's is the last: SQLite then copies its log into the file, and the file is
    /// all there is.
    pub async fn end_reading(&self) {
        let closed = async {
            self.follower.close().await;
            self.store.end_reading().await;
        };
        if tokio::time::timeout(END_READING, closed).await.is_err() {
            tracing::warn!("connections for reading take long to close and are given up");
        }
    }

    fn memory(&self) -> Memory<'_> {
        Memory {
            keys: &self.keys,
            grants: &self.grants,
            tags: &self.tags,
            root: &self.root,
        }
    }

    /// Waits until what requests read is not older than this moment.
    pub(crate) async fn catch_up(&self) -> Result<(), ApiError> {
        let caught_up = self.memory().catch_up(&self.follower).await;
        if caught_up.is_err() {
            self.store.suspect();
        }
        caught_up
    }

    /// Makes changes durable, then lets requests see them.
    pub(crate) async fn change(
        &self,
        changes: impl Into<Vec<Change>>,
        audit: AuditRow,
        base: Option<i64>,
    ) -> Result<(), StoreError> {
        let touched = self.store.change(changes, audit, base).await?;
        self.memory().follow(&self.follower, touched).await;
        Ok(())
    }

    /// Whether calls can be served and audited.
    #[must_use]
    pub fn is_healthy(&self) -> bool {
        self.store.is_healthy()
    }

    /// What is counted.
    #[must_use]
    pub fn metrics(&self) -> &Metrics {
        &self.metrics
    }

    /// All metrics as they are now, as text.
    ///
    /// # Errors
    /// If the text cannot be formatted.
    pub fn metrics_text(&self) -> Result<String, std::fmt::Error> {
        self.metrics.text(metrics::State {
            waiting: self.store.waiting(),
            store_writable: self.store.is_healthy(),
            root_key_version: self.root.version(),
            root_key_unread: self.root.is_unread(),
        })
    }

    /// Answers a request, counts it, and makes a span of it where spans are wanted.
    pub async fn answer(&self, request: Request) -> Answer {
        let started = Instant::now();
        let operation = named(&request);
        let span = (self.tracer.as_ref()).map(|tracer| tracer.begin(&request, &operation));
        let mut facts = traces::Facts::default();
        let answer = self.reply(request, &mut facts).await;
        if let Some(span) = span {
            Tracer::end(span, &answer, facts);
        }
        let took = started.elapsed();
        self.metrics.request(&operation, answer.error, took);
        answer
    }

    async fn reply(&self, request: Request, facts: &mut traces::Facts) -> Answer {
        let now = OffsetDateTime::now_utc();
        let request_id = match crate::crypto::uuid() {
            Ok(id) => id,
            Err(error) => return render(String::new(), Err(ApiError::internal(&error))),
        };
        let is_sts = sts::is_for(&request);
        let mut warnings = Vec::new();
        let result = if is_sts {
            Box::pin(sts::serve(self, &request, &request_id, now, facts)).await
        } else {
            let told = (&mut warnings, facts);
            self.serve(&request, &request_id, now, told).await
        };
        if let Err(error) = &result {
            tracing::debug!(request_id, %error, "request refused");
        }
        if is_sts {
            sts::render(request_id, result)
        } else {
            Answer {
                warnings,
                ..render(request_id, result)
            }
        }
    }

    async fn serve(
        &self,
        request: &Request,
        request_id: &str,
        now: OffsetDateTime,
        (warnings, facts): (&mut Vec<String>, &mut traces::Facts),
    ) -> Result<Value, ApiError> {
        let operation = operation(&request.headers)?;
        let caller = self.authenticate(request, "kms", now).await?;
        self.catch_up().await?;
        let mut races = 0;
        loop {
            let input = Input::parse(&request.body)?;
            let parameters = audit::shown_parameters(&input.members);
            let shown = (operation, parameters);
            let mut call = self.call(request, request_id, now, shown, caller.clone())?;
            call.grant_tokens = grant_tokens(&input);
            let result = ops::dispatch(operation, &mut call, input).await;
            if call.raced && races < RACES {
                races += 1;
                continue;
            }
            warnings.append(&mut call.warnings);
            call.tell(facts);
            return call.record(result).await;
        }
    }

    /// A call of an operation, with the parameters that its audit event shows.
    pub(crate) fn call(
        &self,
        request: &Request,
        request_id: &str,
        now: OffsetDateTime,
        (operation, parameters): (&str, Value),
        caller: Caller,
    ) -> Result<Call<'_>, ApiError> {
        let draft = Draft {
            time: now,
            event_id: crate::crypto::uuid().map_err(|error| ApiError::internal(&error))?,
            request_id: request_id.to_owned(),
            operation: operation.to_owned(),
            region: caller.region.clone(),
            caller: caller.arn.clone(),
            access_key_id: caller.access_key_id.clone(),
            session: caller.session.clone(),
            principal_id: caller.user_id(),
            source: request.source.to_string(),
            user_agent: header(&request.headers, "user-agent"),
            parameters,
            response: Value::Null,
            resources: Vec::new(),
            used: Vec::new(),
            recipient: None,
            denial: None,
        };
        Ok(Call {
            service: self,
            here: Place::new(Arc::clone(caller.arn.account()), caller.region.as_str()),
            caller: caller.arn,
            identity: caller.identity,
            entity: caller.entity,
            now,
            grant_tokens: Vec::new(),
            named: None,
            source: request.source,
            secure: request.channel == Channel::Tls,
            draft,
            warnings: Vec::new(),
            audited: false,
            base: None,
            raced: false,
        })
    }

    /// Does what time brings: deletes keys whose waiting period is over, forgets imported material that has expired,
    /// rotates keys whose period is over.
    ///
    /// # Errors
    /// If the store fails; what was done stays done.
    pub async fn maintain(&self, now: OffsetDateTime) -> Result<(), ApiError> {
        let _management = self.management.lock().await;
        self.memory().catch_up_fully(&self.follower).await?;
        // From before anything is looked at: whatever another node changes after it is then noticed.
        let base = self.follower.seq();
        ops::maintenance::delete_due(self, now, base).await?;
        ops::maintenance::expire_due(self, now, base).await?;
        ops::maintenance::rotate_due(self, now, base).await
    }
}

/// What the caller says that it wants, known or not.
fn named(request: &Request) -> String {
    if sts::is_for(request) {
        return sts::named(request);
    }
    let target = header(&request.headers, "x-amz-target");
    let operation = target.strip_prefix("TrentService.");
    operation.unwrap_or_default().to_owned()
}

/// The operation that `X-Amz-Target` names.
fn operation(headers: &HeaderMap) -> Result<&str, ApiError> {
    headers
        .get("x-amz-target")
        .and_then(|value| value.to_str().ok())
        .and_then(|target| target.strip_prefix("TrentService."))
        .filter(|operation| ops::effect(operation).is_some())
        .ok_or_else(|| ApiError::bare(ErrorKind::UnknownOperation))
}

/// Grant tokens that came along. Operations that take some have checked their form by the time they count.
fn grant_tokens(input: &Input) -> Vec<String> {
    let list = input.members.get("GrantTokens").and_then(Value::as_array);
    let tokens = list.into_iter().flatten().filter_map(Value::as_str);
    tokens.map(str::to_owned).collect()
}

fn header(headers: &HeaderMap, name: &str) -> String {
    headers
        .get(name)
        .and_then(|value| value.to_str().ok())
        .unwrap_or_default()
        .to_owned()
}

fn render(request_id: String, result: Result<Value, ApiError>) -> Answer {
    let (status, body, error) = match result {
        Ok(Value::Null) => (200, Vec::new(), None),
        Ok(value) => (200, value.to_string().into_bytes(), None),
        Err(error) => (
            error.kind().status(),
            error.to_json().to_string().into_bytes(),
            Some(error.kind().code()),
        ),
    };
    Answer {
        status,
        body,
        content_type: JSON,
        request_id,
        error,
        warnings: Vec::new(),
    }
}

/// An authenticated call: who, where, when, and what is known about it so far.
#[derive(Debug)]
pub(crate) struct Call<'a> {
    pub(crate) service: &'a Service,
    pub(crate) caller: PrincipalArn,
    /// The caller's own policies.
    pub(crate) identity: Arc<Identity>,
    /// The user or role behind the caller.
    pub(crate) entity: Option<Arc<Entity>>,
    /// The caller's account and region.
    pub(crate) here: Place,
    pub(crate) now: OffsetDateTime,
    pub(crate) draft: Draft,
    /// What the answer's header says about a new key policy.
    pub(crate) warnings: Vec<String>,
    grant_tokens: Vec<String>,
    /// What the caller named another account's key: its ARN here, and what a denial shows of it.
    named: Option<(Arc<str>, String)>,
    source: IpAddr,
    secure: bool,
    audited: bool,
    /// The last change that was known when the call began to manage.
    base: Option<i64>,
    /// Whether another node was first: the call is to be made again.
    raced: bool,
}

/// What AWS tells a caller about a key of another account, whether it exists or not.
const FOREIGN_DENIAL: &str = "because the resource does not exist in this Region, no resource-based policies allow access, or a resource-based policy explicitly denies access";

/// What a policy may look at beyond caller and key.
#[derive(Debug, Default, Clone, Copy)]
pub(crate) struct Facts<'a> {
    /// Request's encryption context.
    pub(crate) encryption_context: Option<&'a std::collections::BTreeMap<String, String>>,
    /// The verified document, if the call carried one.
    pub(crate) attested: Option<&'a Attested>,
    /// `aws:RequestedRegion`, where it is not the one of the signature.
    pub(crate) region: Option<&'a str>,
    /// Further condition keys; one that occurs several times has several values.
    pub(crate) more: &'a [(&'a str, String)],
    /// Tags that the request sets, or names alone if it removes them.
    pub(crate) request_tags: &'a [(String, Option<String>)],
    /// The grant that `CreateGrant` would make.
    pub(crate) new_grant: Option<&'a Terms>,
    /// The grant that `RetireGrant` would end.
    pub(crate) retired: Option<&'a Arc<Grant>>,
}

impl<'a> Call<'a> {
    /// Begins to manage: until the guard goes, no other call of this process changes anything, and what other nodes have
    /// changed until now is known.
    pub(crate) async fn manage(&mut self) -> Result<tokio::sync::MutexGuard<'a, ()>, ApiError> {
        let service = self.service;
        let guard = presence::unless_gone(service.management.lock()).await?;
        service.memory().catch_up_fully(&service.follower).await?;
        self.base = Some(service.follower.seq());
        Ok(guard)
    }
}

impl Call<'_> {
    /// Finds the key that a `KeyId` parameter names.
    pub(crate) fn find(&mut self, key_id: &str) -> Result<Arc<Key>, ApiError> {
        let action = format!("kms:{}", self.draft.operation);
        self.find_for(key_id, &action)
    }

    /// Finds the key that a parameter names, for an action that the caller will need. Whether another account's key or alias exists
    /// is not told: nothing is answered about it before the action is admitted, and a denial shows what the caller named.
    pub(crate) fn find_for(&mut self, key_id: &str, action: &str) -> Result<Arc<Key>, ApiError> {
        self.check_grant_tokens()?;
        let reference = KeyRef::parse(key_id, &self.here)?;
        let found = self.service.keys.find(&reference);
        if reference.place().account == *self.caller.account() {
            let key = found?;
            self.draft.resources.push(key.arn.to_string());
            return Ok(key);
        }
        let shown = reference.arn();
        let Ok(key) = found else {
            return Err(self.foreign(action, &shown));
        };
        self.draft.resources.push(key.arn.to_string());
        self.named = Some((Arc::clone(&key.arn), shown));
        Ok(key)
    }

    /// What AWS says of a key of another account, whether it exists or not.
    fn foreign(&self, action: &str, arn: &str) -> ApiError {
        access_denied(&self.caller, action, arn, FOREIGN_DENIAL)
    }

    /// What a denial shows of a key: for another account's key what the caller named, which may be an alias.
    fn shown<'k>(&'k self, key: &'k Key) -> &'k str {
        match &self.named {
            Some((arn, shown)) if *arn == key.arn => shown,
            _ => &key.arn,
        }
    }

    /// Finds a key for an operation that takes no alias: those that manage keys.
    pub(crate) fn find_by_key_id(&mut self, key_id: &str) -> Result<Arc<Key>, ApiError> {
        match KeyRef::parse(key_id, &self.here)? {
            KeyRef::Key(..) => self.find(key_id),
            KeyRef::Alias(..) => Err(ApiError::not_found(format!("Invalid keyId '{key_id}'"))),
        }
    }

    /// Finds a key for an operation that AWS has for keys of one's own account only.
    pub(crate) fn find_own_key(&mut self, key_id: &str) -> Result<Arc<Key>, ApiError> {
        let key = self.find_by_key_id(key_id)?;
        self.own(key)
    }

    /// Refuses a key of another account.
    pub(crate) fn own(&self, key: Arc<Key>) -> Result<Arc<Key>, ApiError> {
        if self.is_own(&key) {
            return Ok(key);
        }
        let action = format!("kms:{}", self.draft.operation);
        Err(self.foreign(&action, self.shown(&key)))
    }

    /// Whether a key is one of the caller's account.
    pub(crate) fn is_own(&self, key: &Key) -> bool {
        key.place.account == *self.caller.account()
    }

    /// Milliseconds since 1970.
    pub(crate) fn now_ms(&self) -> i64 {
        audit::unix_ms(self.now)
    }

    /// Asks the key's policy, the caller's own policies and grants.
    pub(crate) fn authorize(
        &mut self,
        key: &Key,
        action: &str,
        facts: &Facts<'_>,
    ) -> Result<(), ApiError> {
        let mut context = if key.policy.has_conditions() || self.identity.has_conditions() {
            self.context(Some(key), facts)
        } else {
            Context::default()
        };
        let judgement = self.judge_measurements(Some(key), facts);
        context.set_list(MEASUREMENT_POLICY, judgement.accepted.clone());
        let ask = Ask {
            question: &Question {
                principal: &self.caller,
                action,
                resource: &key.arn,
                context: &context,
            },
            policy: &key.policy,
            identity: &self.identity,
            same_account: self.is_own(key),
        };
        let mut refusing = Vec::new();
        let decision = ask.decide(|| {
            let (admitting, others) = self.admitting_grants(key, action, facts);
            refusing = others;
            admitting
        });
        let Err(refused) = decision else {
            warn_of_debug_document(key, action, facts);
            self.draft.accepted_by(judgement.accepted);
            return Ok(());
        };
        let reason = refused.because(action);
        let told = if ask.same_account {
            reason.as_str()
        } else {
            FOREIGN_DENIAL
        };
        let error = access_denied(&self.caller, action, self.shown(key), told);
        let reports = key.policy.explain(ask.question);
        let own = self.identity.explain(ask.question);
        tracing::warn!(
            request_id = %self.draft.request_id,
            caller = %self.caller,
            action,
            key = %key.arn,
            why = %audit::denial_line(&reports, &own, &judgement.refused),
            "access denied"
        );
        let mut denial = audit::denial(action, &reason, &reports, &own, &refusing);
        audit::add_measurements(&mut denial, &judgement.refused);
        self.draft.denial = Some(denial);
        Err(error)
    }

    /// What the measurement policies that the key's policy, if there is a key, and the caller's policies name make of the request's document.
    fn judge_measurements(&self, key: Option<&Key>, facts: &Facts<'_>) -> Judgement {
        let names = key.into_iter();
        let names = names.flat_map(|key| key.policy.measurement_policies());
        let names = names.chain(self.identity.measurement_policies());
        let now = recipient::unix_millis(self.now);
        let measurements = &self.service.measurements;
        measurements.judge(names, facts.attested, now)
    }

    /// Those of the caller's grants on a key that admit an action, and the others.
    fn admitting_grants(
        &self,
        key: &Key,
        action: &str,
        facts: &Facts<'_>,
    ) -> (Vec<Reach>, Vec<(Arc<Grant>, grants::Refusal)>) {
        let asked = Use {
            operation: action.strip_prefix("kms:").unwrap_or(action),
            encryption_context: facts.encryption_context,
            new_grant: facts.new_grant,
        };
        let Some(retired) = facts.retired else {
            let grants = self.service.grants.of(&key.row.id, &self.caller);
            return authz::sort_grants(grants, &asked);
        };
        let reach = retired.reaches(&self.caller);
        let own = reach.map(|reach| (Arc::clone(retired), reach));
        let (mut admitting, refusing) = authz::sort_grants(own.into_iter().collect(), &asked);
        if retired.retired_by(&self.caller) {
            admitting.push(Reach::Direct);
        }
        if retired.terms.issuing_account == **self.caller.account() {
            admitting.push(Reach::Account);
        }
        (admitting, refusing)
    }

    /// Every grant token must be of this server. What it stands for is known without it.
    pub(crate) fn check_grant_tokens(&self) -> Result<(), ApiError> {
        let ours = |token: &String| grants::open_token(&self.service.root, token).is_some();
        match self.grant_tokens.iter().all(ours) {
            true => Ok(()),
            false => Err(ApiError::new(
                ErrorKind::InvalidGrantToken,
                "Grant token is invalid.",
            )),
        }
    }

    /// Asks the caller's own policies about a call that concerns no key.
    pub(crate) fn authorize_without_key(&mut self, action: &str) -> Result<(), ApiError> {
        self.authorize_on(action, "*", &Facts::default())
    }

    /// Asks the caller's own policies alone about a resource: an alias, a principal, or `*`. Whoever has none may ask for random bytes.
    pub(crate) fn authorize_on(
        &mut self,
        action: &str,
        resource: &str,
        facts: &Facts<'_>,
    ) -> Result<(), ApiError> {
        if action == "kms:GenerateRandom" && self.identity.is_bare() {
            return Ok(());
        }
        let mut context = if self.identity.has_conditions() {
            self.context(None, facts)
        } else {
            Context::default()
        };
        let judgement = self.judge_measurements(None, facts);
        context.set_list(MEASUREMENT_POLICY, judgement.accepted.clone());
        let question = Question {
            principal: &self.caller,
            action,
            resource,
            context: &context,
        };
        let Err(refused) = self.identity.admits(&question) else {
            self.draft.accepted_by(judgement.accepted);
            return Ok(());
        };
        let reason = refused.because(action);
        let error = access_denied(&self.caller, action, resource, &reason);
        let own = self.identity.explain(&question);
        tracing::warn!(
            request_id = %self.draft.request_id, caller = %self.caller, action, resource,
            why = %audit::denial_line(&[], &own, &judgement.refused), "access denied"
        );
        let mut denial = audit::denial(action, &reason, &[], &own, &[]);
        audit::add_measurements(&mut denial, &judgement.refused);
        self.draft.denial = Some(denial);
        Err(error)
    }

    /// Makes changes durable together with this call's audit row.
    pub(crate) async fn change(&mut self, changes: impl Into<Vec<Change>>) -> Result<(), ApiError> {
        let row = self.draft.row(None)?;
        match self.service.change(changes, row, self.base).await {
            Ok(()) => {
                self.audited = true;
                Ok(())
            }
            Err(error) => {
                let lost = error.is_lost_race();
                self.raced = self.service.store.is_shared() && self.base.is_some() && lost;
                Err(ApiError::store(&error))
            }
        }
    }

    /// Tells what a span shows of this call, if there is to be one.
    pub(crate) fn tell(&self, facts: &mut traces::Facts) {
        if self.service.tracer.is_some() {
            facts.account = Some(self.caller.account().to_string());
            facts.keys.clone_from(&self.draft.resources);
        }
    }

    /// Queues the audit row of a call that changed nothing; without it there is no answer. What an investigation
    /// would look for, refusals and releases to enclaves, is on disk before the caller knows.
    pub(crate) async fn record(&self, result: Result<Value, ApiError>) -> Result<Value, ApiError> {
        if self.audited {
            return result;
        }
        let row = self.draft.row(result.as_ref().err())?;
        // All of them, those too that no policy was asked about: the time that an answer takes must not tell what exists.
        let denied = (result.as_ref().err()).is_some_and(|e| e.kind() == ErrorKind::AccessDenied);
        let durable = denied || self.draft.denial.is_some() || self.draft.recipient.is_some();
        match self.service.store.record(row, durable).await {
            Ok(()) => result,
            Err(error) => {
                tracing::error!(error = %Chain(&error), "refusing a call that cannot be audited");
                Err(ApiError::store(&error))
            }
        }
    }

    pub(crate) fn context(&self, key: Option<&Key>, facts: &Facts<'_>) -> Context {
        let mut context = Context::default();
        self.add_caller(&mut context);
        if let Some(key) = key {
            context.set("kms:KeySpec", key.row.spec.name());
            context.set("kms:KeyUsage", key.row.usage.name());
            context.set("kms:KeyOrigin", key.row.origin.name());
            context.set("kms:MultiRegion", key.is_multi_region().to_string());
            if key.is_multi_region() {
                let kind = if key.is_primary() {
                    "PRIMARY"
                } else {
                    "REPLICA"
                };
                context.set("kms:MultiRegionKeyType", kind);
            }
            context.set("aws:ResourceAccount", &*key.place.account);
            for (name, value) in &*self.service.tags.of(&key.row.id) {
                context.add(&format!("aws:ResourceTag/{name}"), value);
            }
            context.set_list(
                "kms:ResourceAliases",
                self.service.keys.alias_names(&key.row.id),
            );
        }
        for (name, value) in facts.encryption_context.into_iter().flatten() {
            context.add(&format!("kms:EncryptionContext:{name}"), value);
            context.add("kms:EncryptionContextKeys", name);
        }
        if let Some(attested) = facts.attested {
            attested.add_to(&mut context);
        }
        for (name, value) in facts.request_tags {
            context.add("aws:TagKeys", name);
            if let Some(value) = value {
                context.add(&format!("aws:RequestTag/{name}"), value);
            }
        }
        if let Some(region) = facts.region {
            context.set("aws:RequestedRegion", region);
        }
        for (name, value) in facts.more {
            context.add(name, value);
        }
        context
    }

    fn add_caller(&self, context: &mut Context) {
        let account = &**self.caller.account();
        context.set("kms:CallerAccount", account);
        context.set("aws:PrincipalAccount", account);
        // Of a session AWS shows the role.
        let arn = self.caller.role().unwrap_or(self.caller.as_str());
        context.set("aws:PrincipalArn", arn);
        let kind = match self.caller.kind() {
            PrincipalKind::Root => "Account",
            PrincipalKind::User => "User",
            PrincipalKind::Role | PrincipalKind::Session => "AssumedRole",
        };
        context.set("aws:PrincipalType", kind);
        if self.caller.kind() == PrincipalKind::User {
            context.set("aws:username", self.caller.name());
        }
        context.set("aws:userid", self.draft.principal_id.as_str());
        self.add_tags(context);
        if let Some(session) = &self.draft.session {
            let claims = &session.claims;
            let issued = OffsetDateTime::from_unix_timestamp(claims.issued).ok();
            let issued = issued.and_then(|time| time.format(&RFC_3339).ok());
            context.set("aws:TokenIssueTime", issued.unwrap_or_default());
            context.set("aws:MultiFactorAuthPresent", "false");
            if let Some(source) = &claims.source_identity {
                context.set("aws:SourceIdentity", source.as_str());
            }
        }
        context.set("aws:SourceIp", self.source.to_string());
        context.set("aws:SecureTransport", self.secure.to_string());
        context.set("aws:RequestedRegion", &*self.here.region);
        context.set("aws:EpochTime", self.now.unix_timestamp().to_string());
        context.set(
            "aws:CurrentTime",
            self.now.format(&RFC_3339).unwrap_or_default(),
        );
        context.set("aws:UserAgent", self.draft.user_agent.as_str());
        context.set("aws:PrincipalIsAWSService", "false");
        context.set("aws:ViaAWSService", "false");
    }

    /// `aws:PrincipalTag/…`: a session's tags win over its role's.
    fn add_tags(&self, context: &mut Context) {
        let own = self.entity.iter().flat_map(|entity| &entity.profile.tags);
        let session = self.draft.session.iter();
        let session = session.flat_map(|session| &session.claims.tags);
        for (name, value) in own.chain(session) {
            context.set(&format!("aws:PrincipalTag/{name}"), value.as_str());
        }
    }
}

const RFC_3339: time::format_description::well_known::Rfc3339 =
    time::format_description::well_known::Rfc3339;

/// AWS lets a document of a debug enclave satisfy conditions that look at PCR3 and PCR4 alone. So do we, loudly.
fn warn_of_debug_document(key: &Key, action: &str, facts: &Facts<'_>) {
    if facts.attested.is_some_and(Attested::is_debug) {
        tracing::warn!(key = %key.arn, action, "a debug-mode enclave was admitted: the key policy pins no measurement of the image");
    }
}

fn access_denied(caller: &PrincipalArn, action: &str, resource: &str, reason: &str) -> ApiError {
    let on = if resource == "*" {
        String::new()
    } else {
        format!(" on resource: {resource}")
    };
    ApiError::new(
        ErrorKind::AccessDenied,
        format!("User: {caller} is not authorized to perform: {action}{on} {reason}"),
    )
}
