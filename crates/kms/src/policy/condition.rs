//! One condition of a statement: an operator, a key, the values it may have.
//!
//! | the request has | plain | `…IfExists` | `ForAnyValue:` | `ForAllValues:` |
//! |---|---|---|---|---|
//! | no such key | fails; holds if negated | holds | fails | holds |
//! | one value | any policy value matches; none if negated | same | same | same |
//! | several values | see below | same | some value holds | every value holds |
//!
//! A negated operator in an Allow does not hold if a variable of its values has no value in the request: the statement is invalid on AWS,
//! and what cannot be compared must not admit. So it is with a value that is no ARN where ARNs are compared. In a Deny it holds.
//!
//! A plain operator on a key with several values is ambiguous in AWS's documentation. It happens when two
//! keys of an encryption context differ in case only. We choose what grants least: under Allow every value
//! must hold, under Deny one is enough.
//!
//! `enclos:MeasurementPolicy` is a key of our own: its values are the measurement policies that accept the request's
//! document. It is taken in two forms only, which hold back when the policy is unknown or there is no document: an
//! Allow needs one of the named (`StringEquals`), a Deny refuses who has none of them (`StringNotEquals`).

use std::net::IpAddr;

use time::OffsetDateTime;
use time::format_description::well_known::{Iso8601, Rfc3339};

use super::Effect;
use super::context::Context;
use super::document::Kind;
use super::pattern::Pattern;
use super::{MEASUREMENT_POLICY, OWN_KEYS};
use crate::measurements;

/// How a presented value is compared with a policy value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Test {
    Equals,
    EqualsIgnoreCase,
    Like,
    Arn,
    Bool,
    Number(Order),
    Date(Order),
    Ip,
    Null,
}

/// Which way round two ordered values must be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Order {
    Equal,
    Less,
    LessOrEqual,
    Greater,
    GreaterOrEqual,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Quantifier {
    None,
    Any,
    All,
}

/// A condition, parsed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Condition {
    /// The operator as it stands in the policy.
    operator: String,
    test: Test,
    negated: bool,
    if_exists: bool,
    quantifier: Quantifier,
    /// The key as it stands in the policy.
    key: String,
    lower_key: String,
    values: Vec<Pattern>,
}

/// A condition that did not hold.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FailedCondition {
    /// Operator as in the policy.
    pub operator: String,
    /// Key as in the policy.
    pub key: String,
    /// The policy's values.
    pub expected: Vec<String>,
    /// What the request had; `None` if it had no such key.
    pub presented: Option<Vec<String>>,
}

const OPERATORS: &[(&str, Test, bool)] = &[
    ("StringEquals", Test::Equals, false),
    ("StringNotEquals", Test::Equals, true),
    ("StringEqualsIgnoreCase", Test::EqualsIgnoreCase, false),
    ("StringNotEqualsIgnoreCase", Test::EqualsIgnoreCase, true),
    ("StringLike", Test::Like, false),
    ("StringNotLike", Test::Like, true),
    ("ArnEquals", Test::Arn, false),
    ("ArnLike", Test::Arn, false),
    ("ArnNotEquals", Test::Arn, true),
    ("ArnNotLike", Test::Arn, true),
    ("Bool", Test::Bool, false),
    ("BinaryEquals", Test::Equals, false),
    ("NumericEquals", Test::Number(Order::Equal), false),
    ("NumericNotEquals", Test::Number(Order::Equal), true),
    ("NumericLessThan", Test::Number(Order::Less), false),
    (
        "NumericLessThanEquals",
        Test::Number(Order::LessOrEqual),
        false,
    ),
    ("NumericGreaterThan", Test::Number(Order::Greater), false),
    (
        "NumericGreaterThanEquals",
        Test::Number(Order::GreaterOrEqual),
        false,
    ),
    ("DateEquals", Test::Date(Order::Equal), false),
    ("DateNotEquals", Test::Date(Order::Equal), true),
    ("DateLessThan", Test::Date(Order::Less), false),
    ("DateLessThanEquals", Test::Date(Order::LessOrEqual), false),
    ("DateGreaterThan", Test::Date(Order::Greater), false),
    (
        "DateGreaterThanEquals",
        Test::Date(Order::GreaterOrEqual),
        false,
    ),
    ("IpAddress", Test::Ip, false),
    ("NotIpAddress", Test::Ip, true),
    ("Null", Test::Null, false),
];

impl Condition {
    /// Builds a condition from a policy's operator, key and values.
    ///
    /// # Errors
    /// A sentence that names the operator or the value that cannot be.
    pub(super) fn parse(
        operator: &str,
        key: &str,
        values: &[String],
        variables: bool,
    ) -> Result<Self, String> {
        let (quantifier, name) = match operator.split_once(':') {
            Some(("ForAnyValue", name)) => (Quantifier::Any, name),
            Some(("ForAllValues", name)) => (Quantifier::All, name),
            Some((other, _)) => return Err(format!("unknown set operator {other:?}")),
            None => (Quantifier::None, operator),
        };
        let (name, if_exists) = match name.strip_suffix("IfExists") {
            Some(name) => (name, true),
            None => (name, false),
        };
        let (_, test, negated) = OPERATORS
            .iter()
            .find(|(known, ..)| known.eq_ignore_ascii_case(name))
            .ok_or_else(|| format!("unknown condition operator {operator:?}"))?;
        if *test == Test::Null && (if_exists || quantifier != Quantifier::None) {
            return Err(format!(
                "Null takes neither IfExists nor a set operator, got {operator:?}"
            ));
        }
        if key.is_empty() {
            return Err(format!("{operator} has an empty condition key"));
        }
        let condition = Self {
            operator: operator.to_owned(),
            test: *test,
            negated: *negated,
            if_exists,
            quantifier,
            key: key.to_owned(),
            lower_key: key.to_ascii_lowercase(),
            values: values
                .iter()
                .map(|value| Pattern::parse(value, variables))
                .collect(),
        };
        condition.check_values()?;
        Ok(condition)
    }

    /// Checks a condition on a key of our own, and lets it look at each measurement policy by itself.
    ///
    /// # Errors
    /// A sentence that says which form is possible there.
    pub(super) fn own_key(mut self, effect: Effect, kind: Kind) -> Result<Self, String> {
        if !self.lower_key.starts_with(OWN_KEYS) {
            return Ok(self);
        }
        if self.lower_key != MEASUREMENT_POLICY {
            return Err(format!("there is no condition key {:?}", self.key));
        }
        if kind == Kind::Trust {
            return Err(format!("{} cannot hold where no key is used", self.key));
        }
        let (expected, quantifier) = match effect {
            Effect::Allow => ("StringEquals", Quantifier::Any),
            Effect::Deny => ("StringNotEquals", Quantifier::All),
        };
        if !self.operator.eq_ignore_ascii_case(expected) {
            return Err(format!(
                "{} takes {expected} under {effect:?}, and nothing else: other operators would admit without a judgement",
                self.key
            ));
        }
        let mut names = self.values.iter().map(Pattern::raw);
        if let Some(name) = names.find(|name| !measurements::is_name(name)) {
            return Err(format!("{name:?} is no name of a measurement policy"));
        }
        self.quantifier = quantifier;
        Ok(self)
    }

    /// The measurement policies that it names.
    pub(super) fn measurement_policies(&self) -> impl Iterator<Item = &str> {
        let is_own = self.lower_key == MEASUREMENT_POLICY;
        let values = self.values.iter().map(Pattern::raw);
        values.filter(move |_| is_own)
    }

    fn check_values(&self) -> Result<(), String> {
        for value in &self.values {
            let raw = value.raw();
            let valid = match self.test {
                Test::Bool => parse_bool(raw).is_some() || value.has_variables(),
                Test::Null => parse_bool(raw).is_some(),
                Test::Number(_) => parse_number(raw).is_some(),
                Test::Date(_) => parse_date(raw).is_some(),
                Test::Ip => parse_network(raw).is_some(),
                Test::Equals | Test::EqualsIgnoreCase | Test::Like | Test::Arn => true,
            };
            if !valid {
                return Err(format!("{} cannot compare with {raw:?}", self.operator));
            }
        }
        Ok(())
    }

    /// Whether the condition holds for a request.
    #[must_use]
    pub fn holds(&self, context: &Context, effect: Effect) -> bool {
        let presented = context.get(&self.lower_key);
        if self.test == Test::Null {
            let absent = presented.is_none();
            return self
                .values
                .iter()
                .any(|value| parse_bool(value.raw()) == Some(absent));
        }
        if presented.is_none() && self.if_exists {
            return true;
        }
        if self.is_invalid(context, effect) {
            return false;
        }
        let Some(presented) = presented else {
            return match self.quantifier {
                Quantifier::Any => false,
                Quantifier::All => true,
                Quantifier::None => self.negated,
            };
        };
        let mut each = presented
            .iter()
            .map(|value| self.value_holds(value, context));
        match (self.quantifier, effect) {
            (Quantifier::Any, _) | (Quantifier::None, Effect::Deny) => each.any(|holds| holds),
            (Quantifier::All, _) | (Quantifier::None, Effect::Allow) => each.all(|holds| holds),
        }
    }

    /// Whether it would admit whatever is not equal to what nothing is equal to: a variable without a value, an ARN that is none.
    fn is_invalid(&self, context: &Context, effect: Effect) -> bool {
        let mut values = self.values.iter();
        let is_nothing = |value: &Pattern| {
            value.is_unresolved(context) || (self.test == Test::Arn && !value.may_be_arn())
        };
        self.negated && effect == Effect::Allow && values.any(is_nothing)
    }

    /// What to tell about this condition when it did not hold.
    #[must_use]
    pub fn failure(&self, context: &Context) -> FailedCondition {
        FailedCondition {
            operator: self.operator.clone(),
            key: self.key.clone(),
            expected: self
                .values
                .iter()
                .map(|value| value.raw().to_owned())
                .collect(),
            presented: context.get(&self.lower_key).map(<[String]>::to_vec),
        }
    }

    /// Whether it cannot hold unless the request has the key.
    #[must_use]
    pub(super) fn demands_value(&self) -> bool {
        if self.test == Test::Null {
            return !self.holds_when_absent();
        }
        !self.negated && !self.if_exists && self.quantifier != Quantifier::All
    }

    /// Whether it holds when the request does not have the key.
    #[must_use]
    pub(super) fn holds_when_absent(&self) -> bool {
        self.holds(&Context::default(), Effect::Deny)
    }

    /// The policy's values as they stand there.
    pub(super) fn raw_values(&self) -> impl Iterator<Item = &str> {
        let is_null = self.test == Test::Null;
        let values = self.values.iter().map(Pattern::raw);
        // A Null test asks for any value at all.
        values.map(move |value| if is_null { "*" } else { value })
    }

    /// Condition key in lower case.
    #[must_use]
    pub fn lower_key(&self) -> &str {
        &self.lower_key
    }

    fn value_holds(&self, presented: &str, context: &Context) -> bool {
        let matches = self
            .values
            .iter()
            .any(|value| self.matches(value, presented, context));
        matches != self.negated
    }

    fn matches(&self, value: &Pattern, presented: &str, context: &Context) -> bool {
        match self.test {
            Test::Equals => value.expand(context).is_some_and(|text| text == presented),
            Test::EqualsIgnoreCase => value
                .expand(context)
                .is_some_and(|text| eq_ignore_case(&text, presented)),
            Test::Like => value.matches(presented, context),
            Test::Arn => value.matches_arn(presented, context),
            Test::Bool => value.expand(context).is_some_and(|text| {
                parse_bool(&text).is_some_and(|b| Some(b) == parse_bool(presented))
            }),
            Test::Number(order) => {
                compare(order, parse_number(presented), parse_number(value.raw()))
            }
            Test::Date(order) => compare(order, parse_date(presented), parse_date(value.raw())),
            Test::Ip => ip_matches(value.raw(), presented),
            Test::Null => false,
        }
    }
}

fn eq_ignore_case(a: &str, b: &str) -> bool {
    a.chars()
        .flat_map(char::to_lowercase)
        .eq(b.chars().flat_map(char::to_lowercase))
}

fn parse_bool(text: &str) -> Option<bool> {
    if text.eq_ignore_ascii_case("true") {
        Some(true)
    } else if text.eq_ignore_ascii_case("false") {
        Some(false)
    } else {
        None
    }
}

fn parse_number(text: &str) -> Option<f64> {
    text.trim()
        .parse::<f64>()
        .ok()
        .filter(|number| number.is_finite())
}

/// ISO 8601 or seconds since 1970.
fn parse_date(text: &str) -> Option<OffsetDateTime> {
    OffsetDateTime::parse(text, &Rfc3339)
        .or_else(|_| OffsetDateTime::parse(text, &Iso8601::DEFAULT))
        .ok()
        .or_else(|| {
            let day = time::Date::parse(text, &Iso8601::DEFAULT).ok()?;
            Some(day.midnight().assume_utc())
        })
        .or_else(|| OffsetDateTime::from_unix_timestamp(text.parse().ok()?).ok())
}

fn compare<T: PartialOrd>(order: Order, presented: Option<T>, expected: Option<T>) -> bool {
    let (Some(a), Some(b)) = (presented, expected) else {
        return false;
    };
    match order {
        Order::Equal => a == b,
        Order::Less => a < b,
        Order::LessOrEqual => a <= b,
        Order::Greater => a > b,
        Order::GreaterOrEqual => a >= b,
    }
}

fn parse_network(text: &str) -> Option<(IpAddr, u8)> {
    let (address, prefix) = match text.split_once('/') {
        Some((address, prefix)) => (address.parse::<IpAddr>().ok()?, prefix.parse().ok()?),
        None => {
            let address = text.parse::<IpAddr>().ok()?;
            (address, if address.is_ipv4() { 32 } else { 128 })
        }
    };
    // Sources are told in their canonical form, so networks of mapped addresses are IPv4's.
    if let (IpAddr::V6(mapped), 96..=128) = (address, prefix)
        && let Some(address) = mapped.to_ipv4_mapped()
    {
        return Some((address.into(), prefix - 96));
    }
    let widest = if address.is_ipv4() { 32 } else { 128 };
    (prefix <= widest).then_some((address, prefix))
}

fn ip_matches(network: &str, presented: &str) -> bool {
    let (Some((network, prefix)), Ok(address)) = (parse_network(network), presented.parse()) else {
        return false;
    };
    match (network, address) {
        (IpAddr::V4(network), IpAddr::V4(address)) => {
            let shift = 32 - u32::from(prefix);
            let differing = network.to_bits() ^ address.to_bits();
            differing.checked_shr(shift).unwrap_or(0) == 0
        }
        (IpAddr::V6(network), IpAddr::V6(address)) => {
            let shift = 128 - u32::from(prefix);
            let differing = network.to_bits() ^ address.to_bits();
            differing.checked_shr(shift).unwrap_or(0) == 0
        }
        _ => false,
    }
}
