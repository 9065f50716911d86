//! What is known about chains from documents verified before.

use std::collections::HashMap;
use std::fmt;
use std::num::NonZeroUsize;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::x509::{Certificate, Link, Point};

/// Certificates of a cache that nobody sized: a few hundred enclaves. About 2 MiB when full.
const DEFAULT_CAPACITY: NonZeroUsize = NonZeroUsize::new(1024).unwrap();

/// Remembers which certificates were signed by which keys, so that a further document under the same chain
/// costs one signature check instead of five. Share one between threads; it locks for look-ups only.
///
/// It can only save work, never change a verdict. An entry says "exactly these bytes are a certificate, and
/// this key signed it", which is true for ever. Everything else about a chain (root, names, validity at the
/// moment asked for, CA flags, path length, key usage) is judged with each document. Entries come from
/// documents that passed every check of chain and signature, so nobody without a trusted chain fills it; the
/// one used longest ago makes room.
pub struct ChainCache {
    capacity: NonZeroUsize,
    known: Mutex<Known>,
}

/// How often a certificate of a chain was found in a [`ChainCache`].
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct CacheUse {
    /// Certificates whose signature was known.
    pub hits: u64,
    /// Certificates whose signature had to be checked.
    pub misses: u64,
    /// Certificates held.
    pub held: usize,
}

#[derive(Default)]
struct Known {
    /// By their DER.
    certificates: HashMap<Arc<[u8]>, Entry>,
    /// Counts look-ups; orders entries by their last use.
    clock: u64,
    hits: u64,
    misses: u64,
}

struct Entry {
    certificate: Arc<Certificate>,
    signer: Point,
    used: u64,
}

/// Room for 1024 certificates.
impl Default for ChainCache {
    fn default() -> Self {
        Self::new(DEFAULT_CAPACITY)
    }
}

impl fmt::Debug for ChainCache {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ChainCache")
            .field("capacity", &self.capacity)
            .field("use", &self.usage())
            .finish()
    }
}

impl ChainCache {
    /// An empty cache for at most `capacity` certificates; a chain has four below its root.
    #[must_use]
    pub fn new(capacity: NonZeroUsize) -> Self {
        let known = Mutex::default();
        Self { capacity, known }
    }

    /// How much it has saved.
    #[must_use]
    pub fn usage(&self) -> CacheUse {
        let known = self.lock();
        CacheUse {
            hits: known.hits,
            misses: known.misses,
            held: known.certificates.len(),
        }
    }

    /// For each certificate what is known about it.
    pub(super) fn find<'a>(&self, ders: impl Iterator<Item = &'a [u8]>) -> Vec<Option<Link>> {
        let mut known = self.lock();
        ders.map(|der| known.find(der)).collect()
    }

    /// Keeps a checked chain's links.
    pub(super) fn keep(&self, links: &[Link]) {
        let mut known = self.lock();
        for link in links {
            if let Some(signer) = link.signer {
                known.keep(&link.certificate, signer, self.capacity);
            }
        }
    }

    /// No method leaves the map half changed, so a lock that a panic poisoned is as good as before.
    fn lock(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Known {
    fn find(&mut self, der: &[u8]) -> Option<Link> {
        self.clock += 1;
        let Some(entry) = self.certificates.get_mut(der) else {
            self.misses += 1;
            return None;
        };
        entry.used = self.clock;
        self.hits += 1;
        Some(Link {
            certificate: Arc::clone(&entry.certificate),
            signer: Some(entry.signer),
        })
    }

    fn keep(&mut self, certificate: &Arc<Certificate>, signer: Point, capacity: NonZeroUsize) {
        let known = self.certificates.contains_key(certificate.der());
        if !known && self.certificates.len() >= capacity.get() {
            self.forget_oldest();
        }
        let entry = Entry {
            certificate: Arc::clone(certificate),
            signer,
            used: self.clock,
        };
        self.certificates.insert(certificate.shared_der(), entry);
    }

    fn forget_oldest(&mut self) {
        let oldest = self.certificates.iter().min_by_key(|(_, entry)| entry.used);
        if let Some(oldest) = oldest.map(|(der, _)| Arc::clone(der)) {
            self.certificates.remove(&oldest);
        }
    }
}
