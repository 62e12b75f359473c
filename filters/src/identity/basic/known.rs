//! Passwords that were right a short while ago, so that requests that follow cost no hash.

use std::time::{Duration, SystemTime};

use moka::sync::Cache;
use parking_lot::Mutex;
use sha2::{Digest, Sha256};

use super::password::PasswordHash;

/// How many are remembered.
const MOST: u64 = 10_000;

/// Kept by a digest with a salt that only this process knows.
pub(super) struct Known {
    salt: [u8; 32],
    until: Option<Cache<[u8; 32], SystemTime>>,
    remember: Duration,
}

impl Known {
    /// Remembers for so long; not at all for no time.
    pub(super) fn new(remember: Duration) -> Self {
        let mut salt = [0; 32];
        aws_lc_rs::rand::fill(&mut salt).expect("the operating system has randomness");
        // What has ended is dropped, too, not only passed over.
        let cache = || Cache::builder().max_capacity(MOST).time_to_live(remember).build();
        Self { salt, until: (!remember.is_zero()).then(cache), remember }
    }

    /// What a user's password is kept by, as long as this is its hash.
    pub(super) fn digest(&self, user: &str, password: &[u8], hash: &PasswordHash) -> [u8; 32] {
        let mut digest = Sha256::new_with_prefix(self.salt);
        for part in [user.as_bytes(), password, hash.text().as_bytes()] {
            digest.update((part.len() as u64).to_be_bytes());
            digest.update(part);
        }
        digest.finalize().into()
    }

    /// Whether it was right a short while ago.
    pub(super) fn has(&self, digest: &[u8; 32], now: SystemTime) -> bool {
        let until = self.until.as_ref().and_then(|until| until.get(digest));
        // Not from the future, either: the clock may have been put back.
        until.is_some_and(|until| {
            now < until && until.duration_since(now).is_ok_and(|left| left <= self.remember)
        })
    }

    /// Remembers that it was right.
    pub(super) fn put(&self, digest: [u8; 32], now: SystemTime) {
        if let Some((cache, until)) = self.until.as_ref().zip(now.checked_add(self.remember)) {
            cache.insert(digest, until);
        }
    }
}

/// The hash that stands in for that of a user who is not known: of the last user who was, so that both take the
/// same time where all hashes cost the same.
#[derive(Debug)]
pub(super) struct StandIn(Mutex<PasswordHash>);

impl StandIn {
    pub(super) fn new() -> Self {
        Self(Mutex::new(PasswordHash::of_nobody()))
    }

    pub(super) fn get(&self) -> PasswordHash {
        self.0.lock().clone()
    }

    pub(super) fn set(&self, hash: &PasswordHash) {
        let mut held = self.0.lock();
        if *held != *hash {
            held.clone_from(hash);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::hash;
    use super::*;
    use crate::world::{Clock, ManualClock};

    const MINUTE: Duration = Duration::from_secs(60);

    #[test]
    fn what_was_right_is_known_for_its_time_and_nothing_else_is() {
        let (known, clock, own) = (Known::new(MINUTE), ManualClock::new(), hash("right"));
        let digest = known.digest("alice", b"right", &own);
        assert!(!known.has(&digest, clock.wall()));
        known.put(digest, clock.wall());
        assert!(known.has(&digest, clock.wall()));
        for other in [
            known.digest("alice", b"wrong", &own),
            known.digest("alic", b"eright", &own),
            known.digest("alice", b"right", &hash("another")),
            Known::new(MINUTE).digest("alice", b"right", &own),
        ] {
            assert!(!known.has(&other, clock.wall()));
        }
        clock.advance(MINUTE);
        assert!(!known.has(&digest, clock.wall()));
        let put_back = clock.wall() - 3 * MINUTE;
        assert!(!known.has(&digest, put_back), "a clock that was put back makes nothing known for longer");
    }

    #[test]
    fn for_no_time_nothing_is_known() {
        let (known, now) = (Known::new(Duration::ZERO), SystemTime::now());
        let digest = known.digest("alice", b"right", &hash("right"));
        known.put(digest, now);
        assert!(!known.has(&digest, now));
    }
}
