//! The verifier in WebAssembly: JSON in, JSON out, over two buffers whose addresses JavaScript asks for.
//!
//! | export | does |
//! |---|---|
//! | `enclos_input(length)` | makes room for a request of `length` bytes; its address, 0 if that is too long |
//! | `enclos_verify()`, `enclos_lint()` | answers the request; the answer's length |
//! | `enclos_output()` | the answer's address |
//!
//! No function imports anything: the module has no clock, no randomness, no network. The moment is the caller's. Bytes are
//! hexadecimal. `enclos.js` is the other side.

#![deny(unsafe_op_in_unsafe_fn)]

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use enclos_attest::document::VerifiedDocument;
use enclos_bindings::{Problem, Settings, Verifier, lint_policy};
use serde::{Deserialize, Serialize};

/// Longest request in bytes: a document, a policy and roots in hexadecimal.
const INPUT_MAX: usize = 4 << 20;

static INPUT: Mutex<Vec<u8>> = Mutex::new(Vec::new());
static OUTPUT: Mutex<Vec<u8>> = Mutex::new(Vec::new());

/// What to verify, by what.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Request {
    document: String,
    nonce: Option<String>,
    /// Milliseconds since 1970.
    now: u64,
    #[serde(default)]
    roots: BTreeMap<String, String>,
    #[serde(default)]
    aws: bool,
    #[serde(default)]
    pcrs: BTreeMap<u32, String>,
    policy: Option<String>,
    max_age_seconds: Option<f64>,
    #[serde(default)]
    archival: bool,
    #[serde(default)]
    allow_debug: bool,
}

/// A policy to look through.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Lint {
    policy: String,
    now: u64,
}

/// What comes back.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
enum Answer {
    Verified(Box<Content>),
    Warnings(Vec<String>),
    Refused(Vec<String>),
    Misused(Vec<String>),
}

/// A verified document.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Content {
    module_id: String,
    timestamp: u64,
    pcrs: BTreeMap<u8, String>,
    public_key: Option<String>,
    user_data: Option<String>,
    nonce: Option<String>,
    root: String,
    is_debug: bool,
}

/// Makes room for a request; its address.
#[unsafe(no_mangle)]
pub extern "C" fn enclos_input(length: usize) -> usize {
    let mut input = hold(&INPUT);
    input.clear();
    if length > INPUT_MAX {
        return 0;
    }
    input.resize(length, 0);
    input.as_mut_ptr().expose_provenance()
}

/// Verifies a document; the answer's length.
#[unsafe(no_mangle)]
pub extern "C" fn enclos_verify() -> usize {
    answer(verify)
}

/// Looks a policy through; the answer's length.
#[unsafe(no_mangle)]
pub extern "C" fn enclos_lint() -> usize {
    answer(|request| {
        let Lint { policy, now } = read(request)?;
        lint_policy(&policy, Some(now)).map(Answer::Warnings)
    })
}

/// The answer's address.
#[unsafe(no_mangle)]
pub extern "C" fn enclos_output() -> usize {
    hold(&OUTPUT).as_ptr().expose_provenance()
}

fn answer(handle: impl FnOnce(&[u8]) -> Result<Answer, Problem>) -> usize {
    let answer = handle(&hold(&INPUT)).unwrap_or_else(|problem| match problem {
        Problem::Refused(reasons) => Answer::Refused(reasons),
        Problem::Misused(reasons) => Answer::Misused(reasons),
    });
    let mut output = hold(&OUTPUT);
    // Maps of numbers and text always are JSON; an empty answer is an error on the other side.
    *output = serde_json::to_vec(&answer).unwrap_or_default();
    output.len()
}

fn verify(request: &[u8]) -> Result<Answer, Problem> {
    let request: Request = read(request)?;
    let roots = request.roots.into_iter();
    let roots = roots.map(|(name, root)| Ok((name, bytes(&root)?)));
    let verifier = Verifier::new(&Settings {
        roots: roots.collect::<Result<_, Problem>>()?,
        aws: request.aws,
        pcrs: request.pcrs,
        policy: request.policy,
        max_age_seconds: request.max_age_seconds,
        archival: request.archival,
        allow_debug: request.allow_debug,
    })?;
    let nonce = request.nonce.as_deref().map(bytes).transpose()?;
    let document = bytes(&request.document)?;
    let verified = verifier.verify(&document, nonce.as_deref(), Some(request.now))?;
    Ok(Answer::Verified(Box::new(Content::of(&verified))))
}

impl Content {
    fn of(document: &VerifiedDocument) -> Self {
        let pcrs = document.pcrs().iter();
        Self {
            module_id: document.module_id().to_owned(),
            timestamp: document.timestamp().0,
            pcrs: pcrs
                .map(|(index, value)| (index.get(), value.to_string()))
                .collect(),
            public_key: document.public_key().map(hex::encode),
            user_data: document.user_data().map(hex::encode),
            nonce: document.nonce().map(hex::encode),
            root: document.anchor().to_owned(),
            is_debug: document.is_debug(),
        }
    }
}

fn read<'a, T: Deserialize<'a>>(request: &'a [u8]) -> Result<T, Problem> {
    serde_json::from_slice(request).map_err(|error| misused(&error))
}

fn bytes(text: &str) -> Result<Vec<u8>, Problem> {
    hex::decode(text).map_err(|error| misused(&error))
}

fn misused(error: &dyn std::error::Error) -> Problem {
    Problem::Misused(vec![error.to_string()])
}

/// There is one thread, and a panic ends the module.
fn hold(buffer: &Mutex<Vec<u8>>) -> MutexGuard<'_, Vec<u8>> {
    buffer.lock().unwrap_or_else(PoisonError::into_inner)
}
