//! Policies: who may do what with a key, under which conditions.
//!
//! Key policies, policies of users, roles and sessions, and roles' trust policies are one language with other
//! elements required. [`Policy::parse`] and its neighbours check a document once; [`Policy::evaluate`] answers for one request. As on AWS a
//! matching Deny wins over everything, and without a matching Allow the answer is no.
//!
//! A statement whose principal is an *account* (`arn:aws:iam::A:root`, or `A` alone) does two things on AWS:
//! it admits the account's root user, and it lets the account's identity policies admit its users and roles.
//! The two come out apart, as [`Verdict::Allow`] and [`Verdict::Delegated`]. In a Deny an account stands for
//! all its principals.

mod condition;
mod context;
mod document;
mod json;
pub mod lint;
mod pattern;

use crate::arn::{PrincipalArn, PrincipalKind};

pub use condition::{Condition, FailedCondition};
pub use context::Context;
pub use document::PolicyError;
pub use pattern::Pattern;

/// How condition keys of our own begin, in lower case.
const OWN_KEYS: &str = "enclos:";

/// The condition key whose values are the measurement policies that accept the request's document, in lower case.
pub(crate) const MEASUREMENT_POLICY: &str = "enclos:measurementpolicy";

/// What a statement does when it applies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Effect {
    /// Grants.
    Allow,
    /// Refuses, whatever else grants.
    Deny,
}

/// A policy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Policy {
    statements: Vec<Statement>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Statement {
    sid: Option<String>,
    effect: Effect,
    principals: Principals,
    actions: Selector,
    resources: Selector,
    conditions: Vec<Condition>,
}

#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Principals {
    negated: bool,
    anyone: bool,
    accounts: Vec<String>,
    arns: Vec<String>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Selector {
    negated: bool,
    patterns: Vec<Pattern>,
}

/// What is asked of a policy.
#[derive(Debug, Clone, Copy)]
pub struct Question<'a> {
    /// Who asks.
    pub principal: &'a PrincipalArn,
    /// Such as `kms:Decrypt`.
    pub action: &'a str,
    /// ARN of the key.
    pub resource: &'a str,
    /// What conditions can look at.
    pub context: &'a Context,
}

/// A policy's answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// The policy itself admits the principal.
    Allow,
    /// The policy lets the principal's account decide by identity policies.
    Delegated,
    /// Nothing admits the principal.
    ImplicitDeny,
    /// A statement refuses the principal.
    ExplicitDeny,
}

/// Why one statement did or did not decide.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StatementReport {
    /// Position in the policy, from 1.
    pub number: usize,
    /// Its `Sid`.
    pub sid: Option<String>,
    /// Allow or Deny.
    pub effect: Effect,
    /// What kept it from applying.
    pub outcome: Outcome,
}

/// Whether a statement applied, and if not, why not.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// It applied.
    Applied,
    /// It applied to the principal's account, not to the principal.
    AccountOnly,
    /// It is about other principals.
    OtherPrincipal,
    /// It is about other actions.
    OtherAction,
    /// It is about other keys.
    OtherResource,
    /// These conditions did not hold.
    Conditions(Vec<FailedCondition>),
}

/// How a statement's principals relate to the one who asks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Relation {
    /// By the ARN of the user, session or root user itself.
    ByName,
    /// By its role, or as anyone.
    Named,
    AccountNamed,
    Other,
}

impl Policy {
    /// Reads and checks a policy document.
    ///
    /// # Errors
    /// If it is not a key policy; the text says which element.
    pub fn parse(text: &str) -> Result<Self, PolicyError> {
        document::parse(text, document::Kind::Key)
    }

    /// Reads and checks a policy of a user, role or session.
    ///
    /// # Errors
    /// If it is none; the text says which element.
    pub fn parse_identity(text: &str) -> Result<Self, PolicyError> {
        document::parse(text, document::Kind::Identity)
    }

    /// Reads and checks a role's trust policy.
    ///
    /// # Errors
    /// If it is none; the text says which element.
    pub fn parse_trust(text: &str) -> Result<Self, PolicyError> {
        document::parse(text, document::Kind::Trust)
    }

    /// Answers a question.
    #[must_use]
    pub fn evaluate(&self, question: &Question<'_>) -> Verdict {
        let mut verdict = Verdict::ImplicitDeny;
        for statement in &self.statements {
            match (statement.effect, statement.applies(question)) {
                (_, Relation::Other) => {}
                (Effect::Deny, _) => return Verdict::ExplicitDeny,
                (Effect::Allow, Relation::ByName | Relation::Named) => verdict = Verdict::Allow,
                (Effect::Allow, Relation::AccountNamed) if verdict != Verdict::Allow => {
                    verdict = Verdict::Delegated;
                }
                (Effect::Allow, Relation::AccountNamed) => {}
            }
        }
        verdict
    }

    /// Whether an Allow that applies names the user, session or root user itself. Session policies and
    /// permissions boundaries do not limit what such a statement gives.
    #[must_use]
    pub fn admits_by_name(&self, question: &Question<'_>) -> bool {
        self.statements.iter().any(|statement| {
            statement.effect == Effect::Allow && statement.applies(question) == Relation::ByName
        })
    }

    /// What each statement made of a question.
    #[must_use]
    pub fn explain(&self, question: &Question<'_>) -> Vec<StatementReport> {
        self.statements
            .iter()
            .enumerate()
            .map(|(index, statement)| StatementReport {
                number: index + 1,
                sid: statement.sid.clone(),
                effect: statement.effect,
                outcome: statement.outcome(question),
            })
            .collect()
    }

    /// Whether an Allow statement is about this very principal and action, whatever its conditions say.
    #[must_use]
    pub fn names(&self, question: &Question<'_>) -> bool {
        self.statements.iter().any(|statement| {
            statement.effect == Effect::Allow
                && statement.actions.selects_action(question.action)
                && matches!(
                    statement
                        .principals
                        .relation(question.principal, Effect::Allow),
                    Relation::ByName | Relation::Named
                )
        })
    }

    /// The measurement policies that statements name.
    pub fn measurement_policies(&self) -> impl Iterator<Item = &str> {
        let conditions = self.statements.iter().flat_map(|s| &s.conditions);
        conditions.flat_map(Condition::measurement_policies)
    }

    /// Whether any statement looks at the request's context.
    #[must_use]
    pub fn has_conditions(&self) -> bool {
        self.statements.iter().any(|statement| {
            !statement.conditions.is_empty()
                || statement
                    .resources
                    .patterns
                    .iter()
                    .any(|pattern| pattern.raw().contains("${"))
        })
    }
}

impl Statement {
    fn applies(&self, question: &Question<'_>) -> Relation {
        let relation = self.principals.relation(question.principal, self.effect);
        let selected = relation != Relation::Other
            && self.actions.selects_action(question.action)
            && self.selects_resource(question)
            && self
                .conditions
                .iter()
                .all(|c| c.holds(question.context, self.effect));
        if selected { relation } else { Relation::Other }
    }

    /// Whether it is about the resource. An Allow for all but what a variable without a value stands for is about none: as on AWS, where such
    /// a statement is invalid.
    fn selects_resource(&self, question: &Question<'_>) -> bool {
        let (resources, context) = (&self.resources, question.context);
        let unresolved = |pattern: &Pattern| pattern.is_unresolved(context);
        let invalid = resources.negated
            && self.effect == Effect::Allow
            && resources.patterns.iter().any(unresolved);
        !invalid && resources.selects(question.resource, context)
    }

    fn outcome(&self, question: &Question<'_>) -> Outcome {
        let relation = self.principals.relation(question.principal, self.effect);
        if relation == Relation::Other {
            return Outcome::OtherPrincipal;
        }
        if !self.actions.selects_action(question.action) {
            return Outcome::OtherAction;
        }
        if !self.selects_resource(question) {
            return Outcome::OtherResource;
        }
        let failed: Vec<FailedCondition> = self
            .conditions
            .iter()
            .filter(|condition| !condition.holds(question.context, self.effect))
            .map(|condition| condition.failure(question.context))
            .collect();
        match (failed.is_empty(), relation) {
            (false, _) => Outcome::Conditions(failed),
            (true, Relation::AccountNamed) => Outcome::AccountOnly,
            (true, _) => Outcome::Applied,
        }
    }
}

impl Principals {
    fn relation(&self, principal: &PrincipalArn, effect: Effect) -> Relation {
        let itself = self.arns.iter().any(|arn| arn == principal.as_str());
        let account = self
            .accounts
            .iter()
            .any(|account| **account == **principal.account());
        let root = principal.kind() == PrincipalKind::Root;
        if self.negated {
            // Only ever a Deny: it spares those it names. An account named here spares its root user alone, and a
            // role named here does not spare its sessions.
            return if self.anyone || itself || (account && root) {
                Relation::Other
            } else {
                Relation::Named
            };
        }
        let role = principal
            .role()
            .is_some_and(|role| self.arns.iter().any(|arn| arn == role));
        let by_name = (itself && principal.kind() != PrincipalKind::Role) || (account && root);
        if by_name {
            Relation::ByName
        } else if itself || role || self.anyone || (account && effect == Effect::Deny) {
            Relation::Named
        } else if account {
            Relation::AccountNamed
        } else {
            Relation::Other
        }
    }
}

impl Selector {
    fn selects_action(&self, action: &str) -> bool {
        self.patterns
            .iter()
            .any(|pattern| pattern.matches_ignoring_case(action))
            != self.negated
    }

    fn selects(&self, text: &str, context: &Context) -> bool {
        self.patterns
            .iter()
            .any(|pattern| pattern.matches(text, context))
            != self.negated
    }
}

/// The policy of a key that was created without one: its account decides.
#[must_use]
pub fn default_policy(account: &str) -> String {
    format!(
        r#"{{
  "Version" : "2012-10-17",
  "Id" : "key-default-1",
  "Statement" : [ {{
    "Sid" : "Enable IAM User Permissions",
    "Effect" : "Allow",
    "Principal" : {{
      "AWS" : "arn:aws:iam::{account}:root"
    }},
    "Action" : "kms:*",
    "Resource" : "*"
  }} ]
}}"#
    )
}

#[cfg(test)]
mod tests;
