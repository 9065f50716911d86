//! What the bindings for other languages have in common: [`Verifier`] over plain values, with one error that
//! carries every reason. All decisions are `enclos-attest`'s.

#![forbid(unsafe_code)]
#![warn(missing_docs)]

use std::collections::BTreeMap;
use std::error::Error;
use std::time::{Duration, SystemTime};

use enclos_attest::channel::ChannelCertificate;
use enclos_attest::document::{
    ChainCache, TrustAnchors, UnverifiedDocument, VerifiedDocument, VerifyOptions,
};
use enclos_attest::policy::{Expectation, Policy};
use enclos_attest::{PcrIndex, PcrValue, UnixMillis};

/// Why nothing came of it: the first text says what, the others why.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Problem {
    /// The document was refused.
    Refused(Vec<String>),
    /// The caller's own values cannot be used.
    Misused(Vec<String>),
}

/// Decides about documents; remembers the chains that it has proven.
#[derive(Debug)]
pub struct Verifier {
    anchors: TrustAnchors,
    chains: ChainCache,
    options: VerifyOptions,
    expectation: Expectation,
    policy: Option<Policy>,
}

/// What a server of attested TLS answered to a nonce.
#[derive(Debug, Clone, Copy)]
pub struct Answer<'a> {
    /// The nonce, as it was sent.
    pub nonce: &'a [u8],
    /// The document that came back.
    pub document: &'a [u8],
}

/// How a verifier is made.
#[derive(Debug, Clone, Default)]
pub struct Settings {
    /// Names and certificates (DER, or PEM of one) of trusted roots.
    pub roots: Vec<(String, Vec<u8>)>,
    /// Whether AWS's root is trusted, too.
    pub aws: bool,
    /// Registers and their values, 96 hexadecimal digits.
    pub pcrs: BTreeMap<u32, String>,
    /// A measurement policy, JSON.
    pub policy: Option<String>,
    /// Oldest document accepted, in seconds; 300 unless given.
    pub max_age_seconds: Option<f64>,
    /// Judge documents at their own time.
    pub archival: bool,
    /// Accept documents of debug enclaves.
    pub allow_debug: bool,
}

impl Verifier {
    /// A verifier.
    ///
    /// # Errors
    /// [`Problem::Misused`]: no root is trusted, or a value is not one.
    pub fn new(settings: &Settings) -> Result<Self, Problem> {
        let mut anchors = TrustAnchors::new();
        for (name, root) in &settings.roots {
            anchors = anchors.with_root(name, root).map_err(misused)?;
        }
        if settings.aws {
            anchors = anchors.with_aws();
        }
        if anchors.is_empty() {
            return Err(misuse(
                "no root is trusted: give roots, or aws for real Nitro Enclaves",
            ));
        }
        let defaults = VerifyOptions::default();
        let max_age = settings.max_age_seconds.map(Duration::try_from_secs_f64);
        let max_age = max_age.transpose().map_err(misused)?;
        Ok(Self {
            anchors,
            chains: ChainCache::default(),
            options: VerifyOptions {
                max_age: max_age.unwrap_or(defaults.max_age),
                archival: settings.archival,
                allow_debug: settings.allow_debug,
                ..defaults
            },
            expectation: expectation(&settings.pcrs)?,
            policy: settings.policy.as_deref().map(policy).transpose()?,
        })
    }

    /// Verifies a document at a moment, now unless given (milliseconds since 1970). `nonce` is what the document
    /// was asked for with.
    ///
    /// # Errors
    /// [`Problem::Refused`] with every reason.
    pub fn verify(
        &self,
        document: &[u8],
        nonce: Option<&[u8]>,
        now: Option<u64>,
    ) -> Result<VerifiedDocument, Problem> {
        let now = now.map_or_else(|| SystemTime::now().into(), UnixMillis);
        let document = UnverifiedDocument::parse(document).map_err(refused)?;
        let verified = document
            .verify_with_cache(&self.anchors, now, &self.options, &self.chains)
            .map_err(refused)?;
        self.expects(&verified, nonce, now)?;
        Ok(verified)
    }

    /// Verifies the certificate of a server of attested TLS, DER: its document, and that this speaks for its key. That the server
    /// holds the key is for TLS to find out. With `answer` it is the document therein that decides, and not the certificate's own.
    ///
    /// # Errors
    /// [`Problem::Refused`] with every reason, [`Problem::Misused`] for a verifier of records.
    pub fn verify_tls_certificate(
        &self,
        certificate: &[u8],
        answer: Option<Answer<'_>>,
        now: Option<u64>,
    ) -> Result<VerifiedDocument, Problem> {
        if self.options.archival {
            return Err(misuse(
                "a verifier for records accepts documents of any age: attested TLS needs one for the present",
            ));
        }
        let now = now.map_or_else(|| SystemTime::now().into(), UnixMillis);
        let certificate = ChannelCertificate::parse(certificate).map_err(refused)?;
        let document = answer.map_or(certificate.document(), |answer| answer.document);
        let nonce = answer.map(|answer| answer.nonce);
        let verified = self.verify(document, nonce, Some(now.0))?;
        certificate.check(&verified, now).map_err(refused)?;
        Ok(verified)
    }

    /// Whether a document that this verifier accepted, with the nonce that it was asked for with, would be accepted at this moment: its
    /// age, its certificates' validity, what is expected, the policy. No signature is checked.
    #[must_use]
    pub fn holds(
        &self,
        verified: &VerifiedDocument,
        nonce: Option<&[u8]>,
        now: Option<u64>,
    ) -> bool {
        let now = now.map_or_else(|| SystemTime::now().into(), UnixMillis);
        verified.is_timely(now, &self.options) && self.expects(verified, nonce, now).is_ok()
    }

    /// Whether the policy asks for a nonce anywhere.
    #[must_use]
    pub fn asks_for_nonce(&self) -> bool {
        self.policy.as_ref().is_some_and(Policy::asks_for_nonce)
    }

    fn expects(
        &self,
        verified: &VerifiedDocument,
        nonce: Option<&[u8]>,
        now: UnixMillis,
    ) -> Result<(), Problem> {
        let mut expectation = self.expectation.clone();
        expectation.nonce = nonce.map(<[u8]>::to_vec);
        expectation.check(verified).map_err(|all| listed(&all))?;
        let Some(policy) = &self.policy else {
            return Ok(());
        };
        let archival = self.options.archival;
        let at = if archival { verified.timestamp() } else { now };
        let accepted = policy.check(verified, at, nonce);
        accepted.map(drop).map_err(|all| listed(&all))
    }
}

/// What the linter says of a policy at a moment, now unless given (milliseconds since 1970).
///
/// # Errors
/// [`Problem::Misused`]: it is not a policy.
pub fn lint_policy(json: &str, now: Option<u64>) -> Result<Vec<String>, Problem> {
    let now = now.map_or_else(|| SystemTime::now().into(), UnixMillis);
    let warnings = policy(json)?.lint(now);
    Ok(warnings.iter().map(ToString::to_string).collect())
}

fn policy(json: &str) -> Result<Policy, Problem> {
    Policy::from_json(json.as_bytes()).map_err(misused)
}

fn expectation(pcrs: &BTreeMap<u32, String>) -> Result<Expectation, Problem> {
    let pcrs = pcrs.iter().map(|(index, value)| {
        let index = PcrIndex::try_from(u64::from(*index)).map_err(misused)?;
        Ok((index, PcrValue::from_hex(value).map_err(misused)?))
    });
    Ok(Expectation {
        pcrs: pcrs.collect::<Result<_, Problem>>()?,
        ..Expectation::default()
    })
}

fn listed(reasons: &[impl ToString]) -> Problem {
    let text = "the document is genuine but not the one expected".to_owned();
    let reasons = reasons.iter().map(ToString::to_string);
    Problem::Refused([text].into_iter().chain(reasons).collect())
}

fn refused(error: impl Error) -> Problem {
    Problem::Refused(texts(&error))
}

fn misused(error: impl Error) -> Problem {
    Problem::Misused(texts(&error))
}

fn misuse(text: &str) -> Problem {
    Problem::Misused(vec![text.to_owned()])
}

fn texts(error: &dyn Error) -> Vec<String> {
    let (mut texts, mut cause) = (vec![error.to_string()], error.source());
    while let Some(error) = cause {
        texts.push(error.to_string());
        cause = error.source();
    }
    texts
}
