//! The decision: key policy, identity policies, permissions boundary, session policies and grants together.
//!
//! ```text
//! a Deny in any policy                                                       ─▶ no
//! the key policy admits ── the caller by its own name                        ─▶ yes
//!                       ├─ its role, or anyone                               ─▶ yes, within the limits
//!                       ├─ its account ── an identity policy admits          ─▶ yes, within the limits
//!                       └─ of another account ── an identity policy admits   ─▶ yes, within the limits
//! a grant reaches the caller                                                 ─▶ yes (limits as above)
//! else                                                                       ─▶ no
//! ```
//!
//! *Limits* are a permissions boundary and session policies: each that exists must admit too, and none admits by
//! itself. An account's root user holds every permission that an identity policy could give.

use std::sync::Arc;

use crate::arn::PrincipalKind;
use crate::grants::{Grant, Reach, Refusal, Use};
use crate::policy::{Policy, Question, StatementReport, Verdict};

/// A policy and what it is called.
#[derive(Debug, Clone)]
pub struct Named {
    /// Its name.
    pub name: String,
    /// What it says.
    pub policy: Arc<Policy>,
}

/// The policies that come with a principal.
#[derive(Debug, Clone, Default)]
pub struct Identity {
    /// What it may do.
    pub policies: Vec<Named>,
    /// What its policies can give at most.
    pub boundary: Option<Named>,
    /// What this session can do at most; each must admit.
    pub session: Vec<Named>,
}

/// Where a Deny was found or an Allow is missing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Layer {
    /// The key policy, or a role's trust policy.
    Resource,
    /// A policy of the principal.
    Identity,
    /// The permissions boundary.
    Boundary,
    /// A session policy.
    Session,
}

/// Why not.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refused {
    /// A statement refuses.
    Explicitly(Layer),
    /// No statement admits.
    Implicitly(Layer),
}

impl Refused {
    /// The end of AWS's sentence.
    #[must_use]
    pub fn because(self, action: &str) -> String {
        match self {
            Self::Explicitly(Layer::Resource) => {
                "with an explicit deny in a resource-based policy".to_owned()
            }
            Self::Explicitly(Layer::Identity) => {
                "with an explicit deny in an identity-based policy".to_owned()
            }
            Self::Explicitly(Layer::Boundary) => {
                "with an explicit deny in a permissions boundary".to_owned()
            }
            Self::Explicitly(Layer::Session) => {
                "with an explicit deny in a session policy".to_owned()
            }
            Self::Implicitly(Layer::Resource) => {
                format!("because no resource-based policy allows the {action} action")
            }
            Self::Implicitly(Layer::Identity) => {
                format!("because no identity-based policy allows the {action} action")
            }
            Self::Implicitly(Layer::Boundary) => {
                format!("because no permissions boundary allows the {action} action")
            }
            Self::Implicitly(Layer::Session) => {
                format!("because no session policy allows the {action} action")
            }
        }
    }
}

/// What a principal's own policies make of a question.
#[derive(Debug, Clone, Copy)]
struct Own {
    /// Boundary and session policies admit.
    limits: Result<(), Refused>,
    /// An identity policy admits, within the limits.
    identity: Result<(), Refused>,
}

impl Identity {
    /// Whether any of its policies looks at the request's context.
    #[must_use]
    pub fn has_conditions(&self) -> bool {
        self.all().any(|(_, named)| named.policy.has_conditions())
    }

    /// The measurement policies that its policies name.
    pub fn measurement_policies(&self) -> impl Iterator<Item = &str> {
        self.all()
            .flat_map(|(_, named)| named.policy.measurement_policies())
    }

    /// Whether it has any policy at all.
    #[must_use]
    pub fn is_bare(&self) -> bool {
        self.policies.is_empty() && self.boundary.is_none() && self.session.is_empty()
    }

    /// Decides what concerns no key and no role.
    ///
    /// # Errors
    /// Why not.
    pub fn admits(&self, question: &Question<'_>) -> Result<(), Refused> {
        self.own(question)?.identity
    }

    /// What each statement of each policy made of a question.
    #[must_use]
    pub fn explain(&self, question: &Question<'_>) -> Vec<(Layer, String, Vec<StatementReport>)> {
        self.all()
            .map(|(layer, named)| (layer, named.name.clone(), named.policy.explain(question)))
            .collect()
    }

    fn all(&self) -> impl Iterator<Item = (Layer, &Named)> {
        let policies = self.policies.iter().map(|named| (Layer::Identity, named));
        let boundary = self.boundary.iter().map(|named| (Layer::Boundary, named));
        let session = self.session.iter().map(|named| (Layer::Session, named));
        policies.chain(boundary).chain(session)
    }

    /// A Deny anywhere is the error; what is admitted otherwise is the value.
    fn own(&self, question: &Question<'_>) -> Result<Own, Refused> {
        let mut admitted = question.principal.kind() == PrincipalKind::Root;
        let mut limits = Ok(());
        for (layer, named) in self.all() {
            match (named.policy.evaluate(question), layer) {
                (Verdict::ExplicitDeny, _) => return Err(Refused::Explicitly(layer)),
                (Verdict::Allow, Layer::Identity) => admitted = true,
                (Verdict::Allow, _) | (_, Layer::Identity) => {}
                _ => limits = limits.and(Err(Refused::Implicitly(layer))),
            }
        }
        let identity = if admitted {
            limits
        } else {
            Err(Refused::Implicitly(Layer::Identity))
        };
        Ok(Own { limits, identity })
    }
}

/// A question about a resource that has a policy of its own.
#[derive(Debug, Clone, Copy)]
pub struct Ask<'a> {
    /// Who asks for what.
    pub question: &'a Question<'a>,
    /// The resource's policy.
    pub policy: &'a Policy,
    /// The principal's.
    pub identity: &'a Identity,
    /// The resource is in the principal's account.
    pub same_account: bool,
}

impl Ask<'_> {
    /// Decides. `grants` is asked only if the policies neither admit nor refuse.
    ///
    /// # Errors
    /// Why not.
    pub fn decide(&self, grants: impl FnOnce() -> Vec<Reach>) -> Result<(), Refused> {
        let verdict = self.policy.evaluate(self.question);
        if verdict == Verdict::ExplicitDeny {
            return Err(Refused::Explicitly(Layer::Resource));
        }
        let own = self.identity.own(self.question)?;
        let by_policy = self.by_policy(verdict, own);
        let Err(refused) = by_policy else {
            return Ok(());
        };
        let by_grant = grants().into_iter().any(|reach| match reach {
            Reach::Direct => true,
            Reach::Role => own.limits.is_ok(),
            Reach::Account => own.identity.is_ok(),
        });
        if by_grant { Ok(()) } else { Err(refused) }
    }

    fn by_policy(&self, verdict: Verdict, own: Own) -> Result<(), Refused> {
        let nothing = Err(Refused::Implicitly(Layer::Resource));
        match verdict {
            Verdict::Allow if !self.same_account => own.identity,
            Verdict::Allow if self.policy.admits_by_name(self.question) => Ok(()),
            Verdict::Allow => own.limits,
            Verdict::Delegated if own.identity.is_err() && self.policy.names(self.question) => {
                nothing
            }
            Verdict::Delegated => own.identity,
            Verdict::ImplicitDeny | Verdict::ExplicitDeny => nothing,
        }
    }
}

/// How those of a caller's grants reach it that admit a use, and why the others do not.
pub(crate) fn sort_grants(
    grants: Vec<(Arc<Grant>, Reach)>,
    asked: &Use<'_>,
) -> (Vec<Reach>, Vec<(Arc<Grant>, Refusal)>) {
    let (mut admitting, mut refusing) = (Vec::new(), Vec::new());
    for (grant, reach) in grants {
        match grant.permits(asked) {
            Ok(()) => admitting.push(reach),
            Err(refusal) => refusing.push((grant, refusal)),
        }
    }
    (admitting, refusing)
}
