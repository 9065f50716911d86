//! RSA keys for replies: one per request, made ahead of need, never used twice.
//!
//! Making a key takes a good part of a second on an emulated CPU. A thread per CPU makes them, at the lowest
//! priority so that the application does not notice, and at the normal one while a request waits for its key.
//! aws-lc wipes a key when it is dropped.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex as Lock, PoisonError};
use std::thread;

use aws_lc_rs::encoding::{AsDer, PublicKeyX509Der};
use aws_lc_rs::error::Unspecified;
use aws_lc_rs::rsa::{KeySize, OaepPrivateDecryptingKey, PrivateDecryptingKey};
use rustix::process::Pid;
use rustix::thread::gettid;
use tokio::sync::{Mutex, mpsc};

/// Keys kept ready: a burst of requests at the application's start is served from them.
const READY: usize = 4;

/// Most threads: more would make keys faster than one application's requests use them.
const MAX_THREADS: usize = 4;

/// The lowest scheduling priority, and the normal one.
const IN_BACKGROUND: i32 = 19;
const AT_ONCE: i32 = 0;

/// A key pair for one reply.
#[derive(Debug)]
pub struct RecipientKey {
    private: OaepPrivateDecryptingKey,
    public: Vec<u8>,
}

impl RecipientKey {
    /// A fresh RSA-2048 pair.
    ///
    /// # Errors
    /// When the library cannot make one.
    pub fn generate() -> Result<Self, Unspecified> {
        let private = PrivateDecryptingKey::generate(KeySize::Rsa2048)?;
        let public: PublicKeyX509Der<'_> = private.public_key().as_der()?;
        let public = public.as_ref().to_vec();
        Ok(Self {
            private: OaepPrivateDecryptingKey::new(private)?,
            public,
        })
    }

    /// The half that decrypts.
    #[must_use]
    pub fn private(&self) -> &OaepPrivateDecryptingKey {
        &self.private
    }

    /// DER of the public half's SubjectPublicKeyInfo.
    #[must_use]
    pub fn public(&self) -> &[u8] {
        &self.public
    }
}

/// Keys that are ready.
#[derive(Debug, Clone)]
pub struct Keys {
    ready: Arc<Mutex<mpsc::Receiver<RecipientKey>>>,
    makers: Arc<Makers>,
}

/// The threads, and how many requests wait for them.
#[derive(Debug, Default)]
struct Makers {
    threads: Lock<Vec<Pid>>,
    waiting: AtomicUsize,
}

impl Makers {
    /// Sets every thread's priority; a refusal costs time and nothing else.
    fn hurry(&self, nice: i32) {
        for thread in &*self.threads.lock().unwrap_or_else(PoisonError::into_inner) {
            let _ = rustix::process::setpriority_process(Some(*thread), nice);
        }
    }

    /// Linux gives each thread a priority of its own, by its id.
    fn enlist(&self) {
        self.threads
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .push(gettid());
        let busy = self.waiting.load(Ordering::SeqCst) > 0;
        self.hurry(if busy { AT_ONCE } else { IN_BACKGROUND });
    }
}

/// A request that waits: while there is one the threads hurry.
struct Waiting<'a>(&'a Makers);

impl<'a> Waiting<'a> {
    fn new(makers: &'a Makers) -> Self {
        if makers.waiting.fetch_add(1, Ordering::SeqCst) == 0 {
            makers.hurry(AT_ONCE);
        }
        Self(makers)
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        if self.0.waiting.fetch_sub(1, Ordering::SeqCst) == 1 {
            self.0.hurry(IN_BACKGROUND);
        }
    }
}

impl Keys {
    /// Starts to make keys.
    ///
    /// # Errors
    /// When there can be no thread.
    pub fn start() -> std::io::Result<Self> {
        let (sender, receiver) = mpsc::channel(READY);
        let makers = Arc::new(Makers::default());
        let threads = thread::available_parallelism()
            .map_or(1, usize::from)
            .min(MAX_THREADS);
        for _ in 0..threads {
            let (sender, makers) = (sender.clone(), Arc::clone(&makers));
            let make = move || {
                makers.enlist();
                make(&sender);
            };
            thread::Builder::new()
                .name("rsa-keys".to_owned())
                .spawn(make)?;
        }
        Ok(Self {
            ready: Arc::new(Mutex::new(receiver)),
            makers,
        })
    }

    /// A key that nobody has used.
    ///
    /// # Errors
    /// When the library cannot make one.
    pub async fn take(&self) -> Result<RecipientKey, Unspecified> {
        if let Ok(mut ready) = self.ready.try_lock()
            && let Ok(key) = ready.try_recv()
        {
            return Ok(key);
        }
        let _waiting = Waiting::new(&self.makers);
        self.ready.lock().await.recv().await.ok_or(Unspecified)
    }
}

/// Makes keys until nobody wants any, or none can be made.
fn make(sender: &mpsc::Sender<RecipientKey>) {
    while let Ok(key) = RecipientKey::generate() {
        if sender.blocking_send(key).is_err() {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn many_who_wait_all_get_one() {
        let keys = Keys::start().unwrap();
        let takers: Vec<_> = (0..READY * 3)
            .map(|_| {
                let keys = keys.clone();
                tokio::spawn(async move { keys.take().await.map(drop) })
            })
            .collect();
        for taker in takers {
            taker.await.unwrap().unwrap();
        }
        assert_eq!(keys.makers.waiting.load(Ordering::SeqCst), 0);
    }

    #[tokio::test]
    async fn keys_are_never_given_twice() {
        let keys = Keys::start().unwrap();
        let mut seen = Vec::new();
        for _ in 0..READY + 2 {
            let key = keys.take().await.unwrap();
            assert_eq!(key.public().len(), 294);
            assert!(!seen.contains(&key.public().to_vec()));
            seen.push(key.public().to_vec());
        }
    }
}
