//! RSA keys for replies: one per request, made ahead of need, never used twice.
//!
//! Making a key takes a second or so on an emulated CPU. A thread of low priority keeps a few ready; a request
//! that finds none makes its own. aws-lc wipes a key when it is dropped.

use std::sync::Arc;

use aws_lc_rs::encoding::{AsDer, PublicKeyX509Der};
use aws_lc_rs::error::Unspecified;
use aws_lc_rs::rsa::{KeySize, OaepPrivateDecryptingKey, PrivateDecryptingKey};
use tokio::sync::{Mutex, mpsc};

/// Keys kept ready: a burst of requests at the application's start is served from them.
const READY: usize = 4;

/// The lowest scheduling priority.
const NICE: i32 = 19;

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
}

impl Keys {
    /// Starts to make keys.
    ///
    /// # Errors
    /// When there can be no thread.
    pub fn start() -> std::io::Result<Self> {
        let (sender, receiver) = mpsc::channel(READY);
        std::thread::Builder::new()
            .name("rsa-keys".to_owned())
            .spawn(move || fill(&sender))?;
        Ok(Self {
            ready: Arc::new(Mutex::new(receiver)),
        })
    }

    /// A key that nobody has used.
    ///
    /// # Errors
    /// When the library cannot make one.
    pub async fn take(&self) -> Result<RecipientKey, Unspecified> {
        if let Ok(key) = self.ready.lock().await.try_recv() {
            return Ok(key);
        }
        tokio::task::spawn_blocking(RecipientKey::generate)
            .await
            .map_err(|_| Unspecified)?
    }
}

/// Makes keys until nobody wants any.
fn fill(sender: &mpsc::Sender<RecipientKey>) {
    // Linux gives each thread its own priority; a refusal costs speed elsewhere and nothing else.
    let _ = rustix::process::setpriority_process(None, NICE);
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
