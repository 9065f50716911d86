//! IMDSv2 session tokens: expiry and a tag over it under a key of this boot. Nothing is stored.

use std::time::Duration;

use aws_lc_rs::hmac;
use aws_lc_rs::rand::{self, SystemRandom};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE;
use tokio::time::Instant;

/// Longest life of a token in seconds, as AWS's.
pub const MAX_TTL: u32 = 21_600;

const EXPIRY_LEN: usize = 8;
const NONCE_LEN: usize = 16;

/// Issues tokens and knows its own again.
#[derive(Debug)]
pub struct Tokens {
    key: hmac::Key,
    start: Instant,
}

impl Tokens {
    /// Under a fresh key.
    ///
    /// # Errors
    /// When there is no randomness.
    pub fn new() -> Result<Self, aws_lc_rs::error::Unspecified> {
        let key = hmac::Key::generate(hmac::HMAC_SHA256, &SystemRandom::new())?;
        Ok(Self {
            key,
            start: Instant::now(),
        })
    }

    /// A token good for `ttl` seconds; nothing for a life that is none, or too long.
    #[must_use]
    pub fn issue(&self, ttl: u32) -> Option<String> {
        if !(1..=MAX_TTL).contains(&ttl) {
            return None;
        }
        let expiry = self.start.elapsed() + Duration::from_secs(ttl.into());
        let mut token = expiry.as_secs().to_be_bytes().to_vec();
        let mut nonce = [0; NONCE_LEN];
        rand::fill(&mut nonce).ok()?;
        token.extend(nonce);
        let tag = hmac::sign(&self.key, &token);
        token.extend(tag.as_ref());
        Some(URL_SAFE.encode(token))
    }

    /// Whether a token is one of this boot's and not over.
    #[must_use]
    pub fn is_good(&self, token: &str) -> bool {
        let Ok(bytes) = URL_SAFE.decode(token) else {
            return false;
        };
        let Some((signed, tag)) = bytes.split_at_checked(EXPIRY_LEN + NONCE_LEN) else {
            return false;
        };
        let expiry = signed
            .first_chunk()
            .map_or(0, |bytes| u64::from_be_bytes(*bytes));
        hmac::verify(&self.key, signed, tag).is_ok() && self.start.elapsed().as_secs() < expiry
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_token_is_good_until_it_is_over() {
        let tokens = Tokens::new().unwrap();
        let token = tokens.issue(60).unwrap();
        assert!(tokens.is_good(&token));
        tokio::time::advance(Duration::from_secs(59)).await;
        assert!(tokens.is_good(&token));
        tokio::time::advance(Duration::from_secs(2)).await;
        assert!(!tokens.is_good(&token));
    }

    #[test]
    fn lives_have_bounds() {
        let tokens = Tokens::new().unwrap();
        assert!(tokens.issue(0).is_none());
        assert!(tokens.issue(1).is_some());
        assert!(tokens.issue(MAX_TTL).is_some());
        assert!(tokens.issue(MAX_TTL + 1).is_none());
    }

    #[test]
    fn forged_and_foreign_tokens_are_refused() {
        let tokens = Tokens::new().unwrap();
        let token = tokens.issue(60).unwrap();
        assert!(!Tokens::new().unwrap().is_good(&token));
        let mut bytes = URL_SAFE.decode(&token).unwrap();
        bytes[7] ^= 1;
        assert!(!tokens.is_good(&URL_SAFE.encode(bytes)));
        for nonsense in ["", "x", "AAAA", "?"] {
            assert!(!tokens.is_good(nonsense));
        }
    }
}
