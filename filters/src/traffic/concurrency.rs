//! `concurrency`: how many requests may be under way at once.
//!
//! ```yaml
//! - concurrency: {per: consumer, limit: 10}
//! ```
//!
//! A request counts from here until it is over, whatever its end: an answer to the last byte, a client that goes
//! away, a fault. A WebSocket counts until it is closed. One that finds `limit` others with its key under way is
//! answered at once: 429 `too-many-in-flight`, since its caller has to wait for himself. Where no part of `per`
//! tells callers apart, as with `per: route`, it is not the caller's doing: 503 `overloaded`. Both have
//! `Retry-After: 1`; when another request will be over, nobody knows.
//!
//! What is under way is counted by each gateway for itself, over reloads of its document. In an upgrade each of the
//! two processes counts its own. For `per: ip`, all addresses of an IPv6 network of 64 bits are one client, and
//! requests that lack what `per` names count together.

use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};
use std::num::NonZeroU32;
use std::sync::Arc;

use async_trait::async_trait;
use parking_lot::Mutex;
use pingora_http::RequestHeader;
use schemars::JsonSchema;
use serde::Deserialize;

use crate::context::{Context, Slot};
use crate::filter::{Build, BuildError, Filter};
use crate::outcome::{FilterError, Outcome};
use crate::phase::{OnRequest, Phases};
use crate::problem::{OVERLOADED, Problem, TOO_MANY_IN_FLIGHT};
use crate::selector::{Part, Selector};

const SHARDS: usize = 16;

/// How many requests may be under way at once; over it: 429 or 503.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(rename = "ConcurrencyOptions")]
pub struct Options {
    /// Whose requests count together, such as `consumer`; those that lack it do. For an IPv6 client, `ip` is its
    /// network of 64 bits.
    pub per: Selector,
    /// How many may be under way at once.
    pub limit: NonZeroU32,
}

/// See the [module](self).
pub struct Concurrency {
    per: Selector,
    limit: u32,
    /// Whether `per` tells callers apart.
    of_callers: bool,
    under_way: Arc<UnderWay>,
    held: Slot<Held>,
}

impl Filter for Concurrency {
    const NAME: &'static str = "concurrency";
    const GUARD: bool = true;
    const DECIDES: bool = true;
    type Options = Options;

    fn build(options: Options, build: &mut Build<'_>) -> Result<Phases, BuildError> {
        build.selects(&options.per);
        let filter = Self {
            of_callers: tells_callers_apart(&options.per),
            per: options.per,
            limit: options.limit.get(),
            under_way: build.retained(b"", UnderWay::default),
            held: build.slot(),
        };
        Ok(Phases::new().on_request(Arc::new(filter)))
    }
}

fn tells_callers_apart(per: &Selector) -> bool {
    match per {
        Selector::Part(Part::Route | Part::Host | Part::Path | Part::Method | Part::Capture(_)) => false,
        Selector::Part(_) => true,
        Selector::First(list) | Selector::All(list) => list.iter().any(tells_callers_apart),
    }
}

#[async_trait]
impl OnRequest for Concurrency {
    async fn on_request(
        &self,
        request: &mut RequestHeader,
        ctx: &mut Context,
    ) -> Result<Outcome, FilterError> {
        let mut key = Vec::with_capacity(64);
        key.extend_from_slice(&ctx.tenant.0.to_be_bytes());
        self.per.write_limit_key(request, ctx, &mut key);
        if let Some(held) = Held::take(&self.under_way, key, self.limit) {
            ctx.set_slot(self.held, held);
            return Ok(Outcome::Continue);
        }
        let kind = if self.of_callers { &TOO_MANY_IN_FLIGHT } else { &OVERLOADED };
        let detail = format!("{} requests are under way, which is as many as may be", self.limit);
        Ok(Problem::new(kind).detail(detail).into())
    }
}

/// Requests under way, by their keys; of a key without any there is no trace.
#[derive(Default)]
struct UnderWay {
    hasher: RandomState,
    shards: [Mutex<HashMap<Arc<[u8]>, u32>>; SHARDS],
}

impl UnderWay {
    fn shard(&self, key: &[u8]) -> &Mutex<HashMap<Arc<[u8]>, u32>> {
        // The remainder is below 16.
        &self.shards[usize::try_from(self.hasher.hash_one(key) % SHARDS as u64).unwrap_or(0)]
    }
}

/// The place of one request among those under way, which it leaves when this is dropped.
struct Held {
    under_way: Arc<UnderWay>,
    key: Arc<[u8]>,
}

impl Held {
    fn take(under_way: &Arc<UnderWay>, key: Vec<u8>, limit: u32) -> Option<Self> {
        let mut shard = under_way.shard(&key).lock();
        let key = match shard.get_key_value(&*key) {
            Some((key, count)) if *count < limit => key.clone(),
            Some(_) => return None,
            None => key.into(),
        };
        *shard.entry(key.clone()).or_default() += 1;
        drop(shard);
        Some(Self { under_way: under_way.clone(), key })
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        let mut shard = self.under_way.shard(&self.key).lock();
        if let Some(count) = shard.get_mut(&self.key) {
            *count -= 1;
            if *count == 0 {
                shard.remove(&self.key);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};

    use futures_util::FutureExt;

    use super::*;
    use crate::testing::{chain, get, refused};

    fn keys(under_way: &UnderWay) -> usize {
        under_way.shards.iter().map(|shard| shard.lock().len()).sum()
    }

    #[tokio::test]
    async fn who_has_as_many_under_way_as_he_may_waits_for_one_to_end() {
        let chain = chain("- concurrency: {per: ip, limit: 2}");
        let (first, _second) =
            (chain.send(get("/")).await.continues(), chain.send(get("/")).await.continues());
        chain.send(get("/")).await.responds(429).header("retry-after", "1");
        let other = get("/").with(|ctx| ctx.client.address = "192.0.2.2".parse().expect("an address"));
        chain.send(other).await.continues();
        drop(first);
        chain.send(get("/")).await.continues();
    }

    #[tokio::test]
    async fn where_callers_are_not_told_apart_it_is_not_their_doing() {
        for (per, status) in [
            ("route", 503),
            ("{all: [route, method]}", 503),
            ("{all: [route, ip]}", 429),
            ("header:x-key", 429),
        ] {
            let chain = chain(&format!("- concurrency: {{per: {per}, limit: 1}}"));
            let _first = chain.send(get("/")).await.continues();
            chain.send(get("/")).await.responds(status).header("retry-after", "1");
        }
    }

    #[tokio::test]
    async fn what_is_refused_later_is_not_under_way() {
        let chain = chain("- concurrency: {per: ip, limit: 1}\n- respond: {status: 404}");
        for _ in 0..3 {
            chain.send(get("/")).await.responds(404);
        }
    }

    #[tokio::test]
    async fn a_dry_run_counts_and_refuses_nobody() {
        let chain = chain("- concurrency: {per: ip, limit: 1}\n  dry_run: true");
        let _first = chain.send(get("/")).await.continues();
        let second = chain.send(get("/")).await.continues();
        let would =
            |decision: &crate::context::Decision| decision.verdict == crate::context::Verdict::WouldAnswer;
        assert!(second.ctx.decisions().iter().any(would));
    }

    #[test]
    fn eight_threads_never_have_more_under_way_than_may_be_and_leave_no_trace() {
        let under_way = Arc::new(UnderWay::default());
        let (now, most, passed) = (AtomicU32::new(0), AtomicU32::new(0), AtomicU32::new(0));
        let ask = || {
            for turn in 0..2000_u32 {
                let held: Vec<_> =
                    (0..turn % 4).filter_map(|_| Held::take(&under_way, b"a".to_vec(), 5)).collect();
                let count = u32::try_from(held.len()).expect("small");
                most.fetch_max(now.fetch_add(count, Ordering::SeqCst) + count, Ordering::SeqCst);
                passed.fetch_add(count, Ordering::SeqCst);
                now.fetch_sub(count, Ordering::SeqCst);
            }
        };
        std::thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(ask);
            }
        });
        assert!((1..=5).contains(&most.into_inner()) && passed.into_inner() > 5);
        assert_eq!(keys(&under_way), 0);
    }

    #[test]
    fn a_panic_ends_what_is_under_way() {
        let chain = chain("- concurrency: {per: ip, limit: 1}");
        let panics = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            let _sent = chain.send(get("/")).now_or_never().expect("does not wait").continues();
            panic!("a fault of another filter");
        }));
        assert!(panics.is_err());
        chain.send(get("/")).now_or_never().expect("does not wait").continues();
    }

    #[test]
    fn a_limit_of_nothing_is_refused() {
        let message = refused("- concurrency: {per: ip, limit: 0}");
        assert!(message.starts_with("limit: expected a whole number, one or more"), "{message}");
    }
}
