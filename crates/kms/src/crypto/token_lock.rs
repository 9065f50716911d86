//! A key that follows from one in a PKCS#11 token: what protects `root.key` where the token is.
//!
//! ```text
//! key = HMAC-SHA-256(the token's key, "enclos-kms root key 1" ‖ salt (32)), computed in the token
//! ```
//!
//! The versions of the root key in the file are under it as they are under a passphrase's. So the token is needed once, when a process starts, and neither
//! its speed nor its absence later stops anything. Each protection has a salt of its own, and with it a key of its own. Why an HMAC and not
//! encryption in the token: [`enclos_token::SecretKey`].
//!
//! A token behind a network may never answer, and nothing ends a call into its library. So a thread asks, and who wants to know waits for so long. A question that
//! was not answered in time is not asked again: its answer is waited for again. Meanwhile the token is asked nothing else, so that threads do not pile up in it.
//!
//! `root.key` says which key of which token it is and nothing else: a file must not name a library that this process then loads, nor where a
//! PIN is.

use std::sync::mpsc::{self, Receiver, RecvTimeoutError, TryRecvError};
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use enclos_token::{SecretKey, TokenError, Uri};
use serde::{Deserialize, Serialize};

use super::random_array;
use super::seal::{RootKeyError, Secret};

/// How long a program that starts waits for the token: some look for several devices first, one after the other.
const AT_THE_START: Duration = Duration::from_secs(30);

/// How long one that runs waits: requests may wait for it.
const WHILE_RUNNING: Duration = Duration::from_secs(5);

/// The question that the token has not answered yet.
static QUESTION: Mutex<Option<Question>> = Mutex::new(None);

/// What it is derived for.
const LABEL: &[u8] = b"enclos-kms root key 1";

/// A token's key, and the salt of what follows from it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TokenKey {
    key: String,
    #[serde(with = "hex::serde")]
    salt: [u8; 32],
}

impl TokenKey {
    /// A new salt, and what follows. `make` makes the token's key if there is none of its name.
    pub(super) fn new(uri: &Uri, make: bool) -> Result<(Self, Secret), RootKeyError> {
        let new = Self {
            key: uri.key(),
            salt: random_array()?,
        };
        let secret = new.asked(uri.clone(), make, AT_THE_START)?;
        Ok((new, secret))
    }

    /// Which key it is, as a `pkcs11:` URI.
    pub(super) fn uri(&self) -> &str {
        &self.key
    }

    /// Asks the token. `starting` is patient.
    pub(super) fn open(&self, starting: bool) -> Result<Secret, RootKeyError> {
        let uri = Uri::parse(&self.key)?;
        if uri.key() != self.key {
            let error = "its token's key is named with more than which key it is".to_owned();
            return Err(RootKeyError::Damaged(error));
        }
        let patience = match starting {
            true => AT_THE_START,
            false => WHILE_RUNNING,
        };
        self.asked(uri, false, patience)
    }

    /// What the token answers within `patience` of being asked.
    fn asked(&self, uri: Uri, make: bool, patience: Duration) -> Result<Secret, RootKeyError> {
        let message = [LABEL, &self.salt].concat();
        answer(self, patience, move || {
            let token = match make {
                true => SecretKey::open_or_make(&uri)?,
                false => SecretKey::open(&uri)?,
            };
            token.derive(&message)
        })
    }
}

type Answer = Result<Secret, TokenError>;

struct Question {
    of: TokenKey,
    asked: Instant,
    answer: Receiver<Answer>,
}

impl Question {
    fn ask(
        of: &TokenKey,
        work: impl FnOnce() -> Answer + Send + 'static,
    ) -> Result<Self, RootKeyError> {
        let (sender, answer) = mpsc::channel();
        let thread = thread::Builder::new().name("token".to_owned());
        let spawned = thread.spawn(move || {
            // Nobody may be left who wants to know.
            let _gone = sender.send(work());
        });
        spawned.map_err(RootKeyError::Thread)?;
        Ok(Self {
            of: of.clone(),
            asked: Instant::now(),
            answer,
        })
    }
}

/// The answer to a question that is under way, or to a new one. `patience` counts from when it was asked, so that many who wait for one
/// answer wait no longer than one.
fn answer(
    of: &TokenKey,
    patience: Duration,
    work: impl FnOnce() -> Answer + Send + 'static,
) -> Result<Secret, RootKeyError> {
    let mut pending = QUESTION.lock().unwrap_or_else(PoisonError::into_inner);
    let question = match pending.take() {
        Some(question) if question.of == *of => question,
        Some(question) if matches!(question.answer.try_recv(), Err(TryRecvError::Empty)) => {
            *pending = Some(question);
            return Err(RootKeyError::Silent(patience));
        }
        _ => Question::ask(of, work)?,
    };
    let left = patience.saturating_sub(question.asked.elapsed());
    match question.answer.recv_timeout(left) {
        Ok(answer) => Ok(answer?),
        Err(RecvTimeoutError::Timeout) => {
            *pending = Some(question);
            Err(RootKeyError::Silent(patience))
        }
        Err(RecvTimeoutError::Disconnected) => Err(RootKeyError::Panicked),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(label: &str) -> TokenKey {
        TokenKey {
            key: format!("pkcs11:object={label}"),
            salt: [7; 32],
        }
    }

    /// One test, because there is one question at a time in a process.
    #[test]
    fn a_token_that_does_not_answer_is_asked_once_and_its_late_answer_counts() {
        const NO_TIME: Duration = Duration::ZERO;
        const ENOUGH: Duration = Duration::from_secs(60);
        let (go, gone) = mpsc::channel::<()>();
        let hangs = move || {
            gone.recv().unwrap();
            Ok(Secret::new([3; 32]))
        };
        let again = || -> Answer { panic!("asked twice") };
        let silent = |answer| matches!(answer, Err(RootKeyError::Silent(_)));
        assert!(silent(answer(&key("a"), NO_TIME, hangs)));
        assert!(silent(answer(&key("a"), NO_TIME, again)));
        // Another question has to wait for that one's end too.
        assert!(silent(answer(&key("b"), ENOUGH, again)));
        go.send(()).unwrap();
        let late = answer(&key("a"), ENOUGH, again).unwrap();
        assert_eq!(*late, [3; 32]);

        // A refusal that came late is told once as well: it is no reason to try the PIN again.
        let (go, gone) = mpsc::channel::<()>();
        let refuses = move || {
            gone.recv().unwrap();
            Err(TokenError::WrongPin)
        };
        assert!(silent(answer(&key("a"), NO_TIME, refuses)));
        go.send(()).unwrap();
        let late = answer(&key("a"), ENOUGH, again).unwrap_err();
        assert!(matches!(late, RootKeyError::Token(TokenError::WrongPin)));

        // Nobody waits for the answer any more when the next question comes.
        let (go, gone) = mpsc::channel::<()>();
        let ends = move || {
            gone.recv().unwrap();
            Ok(Secret::new([4; 32]))
        };
        assert!(silent(answer(&key("a"), NO_TIME, ends)));
        go.send(()).unwrap();
        let next = || Ok(Secret::new([5; 32]));
        let next = std::iter::repeat_with(|| answer(&key("b"), ENOUGH, next));
        let mut next = next.filter_map(Result::ok);
        assert_eq!(*next.next().unwrap(), [5; 32]);
        let panics = answer(&key("a"), ENOUGH, again).unwrap_err();
        assert!(matches!(panics, RootKeyError::Panicked));
    }
}
