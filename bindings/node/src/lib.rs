//! The native half of the Node.js module; `index.js` makes it idiomatic and `index.d.ts` documents it.

use std::collections::{BTreeMap, HashMap};

use enclos_bindings::{Problem, Settings, Verifier as Core};
use napi::bindgen_prelude::{Buffer, Uint8Array};
use napi::{Error, Result, Status};
use napi_derive::napi;

/// Separates the texts of a problem in one message: no text of a refusal holds it.
const SEPARATOR: &str = "\u{1e}";

fn thrown(problem: Problem) -> Error {
    match problem {
        Problem::Misused(texts) => Error::new(Status::InvalidArg, texts.join(": ")),
        Problem::Refused(texts) => Error::new(Status::GenericFailure, texts.join(SEPARATOR)),
    }
}

fn milliseconds(now: Option<f64>) -> Result<Option<u64>> {
    let whole = |now: f64| now.is_finite() && now >= 0.0 && now.fract() == 0.0 && now < 9e15;
    match now {
        None => Ok(None),
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "checked to be whole and in range"
        )]
        Some(now) if whole(now) => Ok(Some(now as u64)),
        Some(now) => Err(Error::new(
            Status::InvalidArg,
            format!("{now} is not a time: expected milliseconds since 1970"),
        )),
    }
}

#[napi(object)]
#[derive(Default)]
#[expect(
    missing_debug_implementations,
    reason = "holds values of the JavaScript engine"
)]
pub struct Options {
    pub roots: Option<HashMap<String, Uint8Array>>,
    pub aws: Option<bool>,
    pub pcrs: Option<HashMap<String, String>>,
    pub policy: Option<String>,
    pub max_age_seconds: Option<f64>,
    pub archival: Option<bool>,
    pub allow_debug: Option<bool>,
}

/// A verified document's content, as a plain object.
#[napi(object)]
#[expect(
    missing_debug_implementations,
    reason = "holds values of the JavaScript engine"
)]
pub struct Content {
    pub module_id: String,
    pub timestamp: f64,
    pub pcrs: HashMap<String, String>,
    pub public_key: Option<Buffer>,
    pub user_data: Option<Buffer>,
    pub nonce: Option<Buffer>,
    pub root: String,
    pub is_debug: bool,
}

#[napi]
#[derive(Debug)]
pub struct NativeVerifier(Core);

#[napi]
impl NativeVerifier {
    #[napi(constructor)]
    pub fn new(options: Options) -> Result<Self> {
        let index = |(index, value): (String, String)| {
            let index = index.parse().map_err(|_| {
                Error::new(
                    Status::InvalidArg,
                    format!("{index:?} is not the number of a register"),
                )
            })?;
            Ok((index, value))
        };
        let roots = options.roots.unwrap_or_default().into_iter();
        let pcrs = options.pcrs.unwrap_or_default().into_iter().map(index);
        let settings = Settings {
            roots: roots.map(|(name, root)| (name, root.to_vec())).collect(),
            aws: options.aws.unwrap_or_default(),
            pcrs: pcrs.collect::<Result<BTreeMap<u32, String>>>()?,
            policy: options.policy,
            max_age_seconds: options.max_age_seconds,
            archival: options.archival.unwrap_or_default(),
            allow_debug: options.allow_debug.unwrap_or_default(),
        };
        Core::new(&settings).map(Self).map_err(thrown)
    }

    #[napi]
    pub fn verify(
        &self,
        document: Uint8Array,
        nonce: Option<Uint8Array>,
        now: Option<f64>,
    ) -> Result<Content> {
        let now = milliseconds(now)?;
        let verified = self
            .0
            .verify(&document, nonce.as_deref(), now)
            .map_err(thrown)?;
        let pcrs = verified.pcrs().iter();
        let buffer = |bytes: Option<&[u8]>| bytes.map(Buffer::from);
        #[expect(
            clippy::cast_precision_loss,
            reason = "exact below 2^53, the year 287396"
        )]
        let timestamp = verified.timestamp().0 as f64;
        Ok(Content {
            module_id: verified.module_id().to_owned(),
            timestamp,
            pcrs: pcrs
                .map(|(index, value)| (index.to_string(), value.to_string()))
                .collect(),
            public_key: buffer(verified.public_key()),
            user_data: buffer(verified.user_data()),
            nonce: buffer(verified.nonce()),
            root: verified.anchor().to_owned(),
            is_debug: verified.is_debug(),
        })
    }
}

#[napi]
pub fn lint_policy(policy: String, now: Option<f64>) -> Result<Vec<String>> {
    enclos_bindings::lint_policy(&policy, milliseconds(now)?).map_err(thrown)
}
