//! What was decided about the same question before.

use std::sync::Arc;
use std::time::{Duration, Instant};

use moka::sync::Cache;

use super::answer::Said;
use super::options::CacheOptions;

/// What one entry takes besides what was said, about.
const ENTRY: usize = 300;

/// What was decided, by the digest of the question.
pub(super) struct Memory {
    said: Cache<[u8; 32], (Arc<Said>, Instant)>,
    ttl: Duration,
    negative_ttl: Duration,
}

impl Memory {
    /// Remembers nothing yet.
    pub(super) fn new(options: &CacheOptions) -> Self {
        let weigh = |_: &[u8; 32], (said, _): &(Arc<Said>, Instant)| {
            u32::try_from(said.size() + ENTRY).unwrap_or(u32::MAX)
        };
        Self {
            said: Cache::builder().weigher(weigh).max_capacity(options.size.get()).build(),
            ttl: options.ttl.get(),
            negative_ttl: options.negative_ttl.get(),
        }
    }

    /// What was decided about this question, if that still holds.
    pub(super) fn recall(&self, question: &[u8; 32], now: Instant) -> Option<Arc<Said>> {
        let (said, until) = self.said.get(question)?;
        if now < until {
            return Some(said);
        }
        self.said.invalidate(question);
        None
    }

    /// Remembers what was decided, no longer than the service says. What hands out cookies is not remembered.
    pub(super) fn keep(
        &self,
        question: [u8; 32],
        said: &Arc<Said>,
        good_for: Option<Duration>,
        now: Instant,
    ) {
        let ttl = if matches!(**said, Said::Pass { .. }) { self.ttl } else { self.negative_ttl };
        let ttl = good_for.map_or(ttl, |limit| limit.min(ttl));
        if ttl.is_zero() || said.has_cookie() {
            return;
        }
        if let Some(until) = now.checked_add(ttl) {
            self.said.insert(question, (said.clone(), until));
        }
    }
}
