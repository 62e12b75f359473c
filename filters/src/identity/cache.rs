//! Tokens that were found to hold, so that each is looked into once.
//!
//! They are kept by their SHA-256, which nobody can turn back into a token. What is kept is only what the
//! token says: whether it was revoked since, and whose it is, is found out anew each time.

use std::hash::{BuildHasherDefault, Hasher};
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use moka::sync::Cache;
use sha2::{Digest, Sha256};

use crate::context::Principal;
use crate::values::ByteSize;
use crate::world::{Counter, Metrics};

/// What one entry takes besides its claims, about.
const ENTRY: usize = 300;
/// How much larger claims are in memory than in a token, about.
const UNPACKED: usize = 3;
/// How much later, in seconds, something may have been learnt than a request began that looks for it: by more, the clock
/// was set back since.
const LATER: f64 = 60.0;

/// The SHA-256 of a token.
pub(super) type TokenHash = [u8; 32];

/// The tokens of one identity.
pub(super) struct TokenCache {
    tokens: Option<Cache<TokenHash, Cached, BuildHasherDefault<Prefix>>>,
    hits: Counter,
    misses: Counter,
}

/// What is known of a token.
#[derive(Debug, Clone)]
pub(super) struct Cached {
    /// What it says; none of one that does not hold.
    pub(super) principal: Option<Arc<Principal>>,
    /// From when and until when that is known, in Unix seconds.
    pub(super) holds: (f64, f64),
    /// The keys that it was verified with.
    pub(super) keys: u64,
    /// Bytes that what it says has, as text: in the token, or in an answer about it.
    pub(super) length: usize,
}

impl TokenCache {
    /// An empty cache that takes about so much memory at most; 0 keeps nothing.
    pub(super) fn new(size: ByteSize, identity: &str, metrics: &dyn Metrics) -> Self {
        let weight = |_: &TokenHash, cached: &Cached| {
            u32::try_from(cached.length * UNPACKED + ENTRY).unwrap_or(u32::MAX)
        };
        let build = || {
            let cache = Cache::builder().weigher(weight).max_capacity(size.get());
            cache.build_with_hasher(BuildHasherDefault::default())
        };
        let count = |outcome| {
            let help = "Tokens presented, by whether they were known already.";
            let labels = [("identity", identity), ("outcome", outcome)];
            metrics.counter("tollhouse_identity_token_cache_total", help, &labels)
        };
        let tokens = (size.get() > 0).then(build);
        Self { tokens, hits: count("hit"), misses: count("miss") }
    }

    /// What a token is kept by; none where nothing is kept.
    pub(super) fn hash(&self, token: &[u8]) -> Option<TokenHash> {
        self.tokens.as_ref().map(|_| hash(token))
    }

    /// What is known of a token, if it was found out with these keys and is still so.
    pub(super) fn get(&self, hash: Option<&TokenHash>, keys: u64, now: SystemTime) -> Option<Cached> {
        let (tokens, hash) = (self.tokens.as_ref()?, hash?);
        let now = seconds(now);
        let is_so =
            |known: &Cached, by: f64| known.keys == keys && known.holds.0 <= by && now < known.holds.1;
        let found = tokens.get(hash);
        // Who began before it was learnt does not take it from the others.
        if found.as_ref().is_some_and(|known| !is_so(known, now + LATER)) {
            tokens.invalidate(hash);
        }
        let found = found.filter(|known| is_so(known, now));
        if found.is_some() {
            self.hits.inc()
        } else {
            self.misses.inc()
        }
        found
    }

    pub(super) fn put(&self, hash: Option<TokenHash>, known: Cached) {
        if let (Some(tokens), Some(hash)) = (&self.tokens, hash) {
            tokens.insert(hash, known);
        }
    }
}

/// What a token is kept by.
pub(super) fn hash(token: &[u8]) -> TokenHash {
    Sha256::digest(token).into()
}

/// Seconds since 1970, as tokens count them.
pub(super) fn seconds(time: SystemTime) -> f64 {
    time.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64()
}

/// Hashes of tokens are hashes already.
#[derive(Default)]
struct Prefix(u64);

impl Hasher for Prefix {
    fn write(&mut self, bytes: &[u8]) {
        if let Some((prefix, _)) = bytes.split_first_chunk() {
            self.0 = u64::from_ne_bytes(*prefix);
        }
    }

    fn write_usize(&mut self, _: usize) {}

    fn finish(&self) -> u64 {
        self.0
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::world::MemoryMetrics;

    fn at(seconds: u64) -> SystemTime {
        UNIX_EPOCH + Duration::from_secs(seconds)
    }

    fn known(holds: (f64, f64), length: usize) -> Cached {
        let principal = Arc::new(Principal { subject: String::new(), claims: Default::default() });
        Cached { principal: Some(principal), holds, keys: 1, length }
    }

    #[test]
    fn a_token_is_known_within_its_time_and_with_its_keys() {
        let metrics = MemoryMetrics::new();
        let cache = TokenCache::new(ByteSize::from_kib(64), "corp", &metrics);
        let hash = cache.hash(b"token");
        for (keys, now, is_known, is_kept) in [
            (1, 10, true, true),
            (1, 19, true, true),
            (1, 9, false, true),
            (1, 20, false, false),
            (2, 10, false, false),
        ] {
            cache.put(hash, known((10.0, 20.0), 300));
            assert_eq!(cache.get(hash.as_ref(), keys, at(now)).is_some(), is_known, "{keys} {now}");
            let again = cache.get(hash.as_ref(), 1, at(10)).is_some();
            assert_eq!(again, is_kept, "what is over is not kept: {keys} {now}");
        }
        let count = |outcome| {
            metrics
                .value("tollhouse_identity_token_cache_total", &[("identity", "corp"), ("outcome", outcome)])
        };
        assert_eq!((count("hit"), count("miss")), (Some(5), Some(5)));
    }

    #[test]
    fn who_began_before_a_token_was_known_does_not_make_it_unknown_unless_the_clock_was_set_back() {
        let cache = TokenCache::new(ByteSize::from_kib(64), "corp", &MemoryMetrics::new());
        let hash = cache.hash(b"token");
        for (now, is_kept) in [(999, true), (940, true), (939, false), (0, false)] {
            cache.put(hash, known((1000.0, 2000.0), 300));
            assert!(cache.get(hash.as_ref(), 1, at(now)).is_none(), "{now}");
            assert_eq!(cache.get(hash.as_ref(), 1, at(1000)).is_some(), is_kept, "{now}");
        }
    }

    #[test]
    fn memory_is_bounded_and_none_keeps_nothing() {
        let cache = TokenCache::new(ByteSize::from_kib(64), "corp", &MemoryMetrics::new());
        for n in 0..10_000_u32 {
            cache.put(cache.hash(&n.to_be_bytes()), known((0.0, 1e12), 1000));
        }
        let tokens = cache.tokens.as_ref().expect("a cache");
        tokens.run_pending_tasks();
        assert!((1..=19).contains(&tokens.entry_count()), "{}", tokens.entry_count());
        let none = TokenCache::new(ByteSize::from_bytes(0), "corp", &MemoryMetrics::new());
        assert_eq!(none.hash(b"token"), None);
        none.put(None, known((0.0, 1e12), 1));
        assert!(none.get(None, 1, at(1)).is_none());
    }
}
