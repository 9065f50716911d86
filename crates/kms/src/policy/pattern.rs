//! Strings of a policy that may hold wildcards (`*`, `?`) and variables (`${aws:username}`).

use super::context::Context;

/// Parts of an ARN; the last, the resource, may hold colons.
const ARN_PARTS: usize = 6;

/// One element of a pattern.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Token {
    Char(char),
    /// `?`
    One,
    /// `*`
    Many,
    /// `${key}` or `${key, 'default'}`; the key in lower case.
    Variable(String, Option<String>),
}

/// A policy string, taken apart once.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pattern {
    raw: String,
    tokens: Vec<Token>,
    has_variables: bool,
}

impl Pattern {
    /// Reads a policy string. `${…}` is a variable from policy version 2012-10-17 on, and text before.
    #[must_use]
    pub fn parse(raw: &str, variables: bool) -> Self {
        let mut tokens = Vec::with_capacity(raw.len());
        let mut rest = raw;
        while let Some(first) = rest.chars().next() {
            if variables && let Some((token, after)) = variable(rest) {
                tokens.push(token);
                rest = after;
                continue;
            }
            tokens.push(match first {
                '*' => Token::Many,
                '?' => Token::One,
                other => Token::Char(other),
            });
            rest = rest.get(first.len_utf8()..).unwrap_or_default();
        }
        let has_variables = tokens
            .iter()
            .any(|token| matches!(token, Token::Variable(..)));
        Self {
            raw: raw.to_owned(),
            tokens,
            has_variables,
        }
    }

    /// The text as it stands in the policy.
    #[must_use]
    pub fn raw(&self) -> &str {
        &self.raw
    }

    /// Whether it has a variable.
    #[must_use]
    pub(super) fn has_variables(&self) -> bool {
        self.has_variables
    }

    /// Whether it can match an ARN: it has six parts, or is a variable.
    pub(super) fn may_be_arn(&self) -> bool {
        let colons = self.tokens.iter().filter(|t| **t == Token::Char(':'));
        colons.count() >= ARN_PARTS - 1 || matches!(self.tokens[..], [Token::Variable(..)])
    }

    /// Whether it has a variable that this request gives no value, so that it stands for no text at all.
    pub(super) fn is_unresolved(&self, context: &Context) -> bool {
        self.has_variables && self.resolve(context).is_none()
    }

    /// The text with variables replaced and wildcards taken literally; `None` if a variable has no value.
    pub(super) fn expand(&self, context: &Context) -> Option<String> {
        self.resolve(context)?
            .into_iter()
            .map(|token| match token {
                Token::Many => Some('*'),
                Token::One => Some('?'),
                Token::Char(c) => Some(c),
                Token::Variable(..) => None,
            })
            .collect()
    }

    /// Whether `text` matches, wildcards and variables included.
    pub(super) fn matches(&self, text: &str, context: &Context) -> bool {
        let text: Vec<char> = text.chars().collect();
        if !self.has_variables {
            return glob(&self.tokens, &text, |a, b| a == b);
        }
        self.resolve(context)
            .is_some_and(|tokens| glob(&tokens, &text, |a, b| a == b))
    }

    /// Whether an ARN matches: each of the six parts by itself, so that `*` never crosses a colon before the resource.
    /// The pattern's own colons part it; those in a variable's value are text, and no part but the last
    /// holds one. A variable that is the whole pattern has an ARN for its value.
    pub(super) fn matches_arn(&self, arn: &str, context: &Context) -> bool {
        if matches!(self.tokens[..], [Token::Variable(..)]) {
            return self.matches(arn, context);
        }
        let parts = self.resolve_parts(context).unwrap_or_default();
        let Some((first, resource @ [_, ..])) = parts.split_at_checked(ARN_PARTS - 1) else {
            return false;
        };
        let resource = resource.join(&Token::Char(':'));
        let texts: Vec<&str> = arn.splitn(ARN_PARTS, ':').collect();
        texts.len() == ARN_PARTS
            && first
                .iter()
                .chain([&resource])
                .zip(texts)
                .all(|(part, text)| {
                    let text: Vec<char> = text.chars().collect();
                    glob(part, &text, |a, b| a == b)
                })
    }

    /// What stands between the policy's own colons, variables replaced; `None` if a variable has no value.
    fn resolve_parts(&self, context: &Context) -> Option<Vec<Vec<Token>>> {
        self.tokens
            .split(|token| *token == Token::Char(':'))
            .map(|tokens| resolve(tokens, context))
            .collect()
    }

    /// Whether `text` matches without regard to ASCII case; variables match nothing.
    #[must_use]
    pub fn matches_ignoring_case(&self, text: &str) -> bool {
        let text: Vec<char> = text.chars().collect();
        glob(&self.tokens, &text, |a, b| a.eq_ignore_ascii_case(&b))
    }

    fn resolve(&self, context: &Context) -> Option<Vec<Token>> {
        resolve(&self.tokens, context)
    }
}

/// Tokens with variables replaced by their values, which are text.
fn resolve(tokens: &[Token], context: &Context) -> Option<Vec<Token>> {
    let mut resolved = Vec::with_capacity(tokens.len());
    for token in tokens {
        match token {
            Token::Variable(key, default) => {
                let value = context.single(key).or(default.as_deref())?;
                resolved.extend(value.chars().map(Token::Char));
            }
            other => resolved.push(other.clone()),
        }
    }
    Some(resolved)
}

/// Reads `${…}` at the start of `text`.
fn variable(text: &str) -> Option<(Token, &str)> {
    let (inner, after) = text.strip_prefix("${")?.split_once('}')?;
    // `${*}`, `${?}` and `${$}` stand for the characters themselves.
    let mut chars = inner.chars();
    if let (Some(c @ ('*' | '?' | '$')), None) = (chars.next(), chars.next()) {
        return Some((Token::Char(c), after));
    }
    let (key, default) = match inner.split_once(',') {
        Some((key, default)) => {
            let default = default.trim().strip_prefix('\'')?.strip_suffix('\'')?;
            (key, Some(default.to_owned()))
        }
        None => (inner, None),
    };
    Some((
        Token::Variable(key.trim().to_ascii_lowercase(), default),
        after,
    ))
}

/// Iterative wildcard match: on a mismatch the last `*` takes one more character, so the time is at most
/// pattern length times text length, whatever a policy's author writes.
fn glob(tokens: &[Token], text: &[char], same: impl Fn(char, char) -> bool) -> bool {
    let (mut token, mut at) = (0, 0);
    let mut star: Option<(usize, usize)> = None;
    while at < text.len() {
        let step = match tokens.get(token) {
            Some(Token::Many) => {
                star = Some((token, at));
                token += 1;
                continue;
            }
            Some(Token::One) => true,
            Some(Token::Char(c)) => text.get(at).is_some_and(|t| same(*c, *t)),
            Some(Token::Variable(..)) | None => false,
        };
        match (step, star) {
            (true, _) => {
                token += 1;
                at += 1;
            }
            (false, Some((star_token, star_at))) => {
                star = Some((star_token, star_at + 1));
                token = star_token + 1;
                at = star_at + 1;
            }
            (false, None) => return false,
        }
    }
    tokens.iter().skip(token).all(|t| *t == Token::Many)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn matches(pattern: &str, text: &str) -> bool {
        let mut context = Context::default();
        context.set("aws:username", "al*ce");
        Pattern::parse(pattern, true).matches(text, &context)
    }

    #[test]
    fn wildcards() {
        for (pattern, text, expected) in [
            ("", "", true),
            ("", "a", false),
            ("*", "", true),
            ("*", "anything", true),
            ("a*c", "abbbc", true),
            ("a*c", "abbb", false),
            ("a?c", "abc", true),
            ("a?c", "ac", false),
            ("**b", "aab", true),
            ("*a*b*", "xxaxxbxx", true),
            ("*a*b*", "xxbxxaxx", false),
            ("abc", "ABC", false),
        ] {
            assert_eq!(matches(pattern, text), expected, "{pattern} {text}");
        }
    }

    #[test]
    fn variables() {
        for (pattern, text, expected) in [
            ("x/${aws:username}", "x/al*ce", true),
            ("x/${AWS:UserName}", "x/al*ce", true),
            // A wildcard inside a value is text.
            ("x/${aws:username}", "x/alice", false),
            ("${aws:absent}", "", false),
            ("${aws:absent, 'none'}", "none", true),
            ("${*}", "*", true),
            ("${*}", "x", false),
            ("${$}{x}", "${x}", true),
            ("${unclosed", "${unclosed", true),
        ] {
            assert_eq!(matches(pattern, text), expected, "{pattern} {text}");
        }
        let old = Pattern::parse("${aws:username}", false);
        assert!(old.matches("${aws:username}", &Context::default()));
    }

    #[test]
    fn arns_match_part_by_part_and_values_are_text() {
        let mut context = Context::default();
        context.set("aws:star", "*");
        context.set("aws:arn", "arn:aws:iam::1:role/*");
        context.set("aws:app", "app");
        context.set("aws:colons", "aws:iam::1:role/app");
        context.set("aws:resource", "role:app");
        for (pattern, arn, expected) in [
            ("arn:aws:iam::1:role/app", "arn:aws:iam::1:role/app", true),
            ("arn:*:iam::*:role/*", "arn:aws:iam::1:role/app", true),
            ("arn:*:role/app", "arn:aws:iam::1:role/app", false),
            ("arn:*:*:*:*:*", "arn:aws:iam::1:role:a:b", true),
            ("arn:aws:iam::1:role:?", "arn:aws:iam::1:role:a", true),
            ("*", "arn:aws:iam::1:role/app", false),
            ("arn:aws:iam::1:role/*", "arn", false),
            (
                "arn:aws:iam::1:role/${aws:app}",
                "arn:aws:iam::1:role/app",
                true,
            ),
            (
                "arn:aws:iam::1:role/${aws:star}",
                "arn:aws:iam::1:role/app",
                false,
            ),
            (
                "arn:aws:iam::1:role/${aws:star}",
                "arn:aws:iam::1:role/*",
                true,
            ),
            ("${aws:arn}", "arn:aws:iam::1:role/*", true),
            ("${aws:arn}", "arn:aws:iam::1:role/app", false),
            ("arn:aws:iam::1", "arn:aws:iam::1:", false),
            ("arn:${aws:colons}", "arn:aws:iam::1:role/app", false),
            (
                "arn:aws:iam::${aws:colons}:role/app",
                "arn:aws:iam::aws:iam::1:role/app",
                false,
            ),
            (
                "arn:aws:iam::1:${aws:resource}",
                "arn:aws:iam::1:role:app",
                true,
            ),
            ("arn:aws:iam::1:${aws:absent}", "arn:aws:iam::1:role", false),
        ] {
            let pattern = Pattern::parse(pattern, true);
            let matches = pattern.matches_arn(arn, &context);
            assert_eq!(matches, expected, "{} {arn}", pattern.raw());
        }
    }

    #[test]
    fn a_hostile_pattern_ends_in_time() {
        let pattern = "*a".repeat(2_000);
        let text = "a".repeat(1_999);
        assert!(!matches(&pattern, &text));
    }
}
