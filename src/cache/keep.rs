//! Storing what comes in, unless it is purged meanwhile, or something newer is stored.

use std::sync::Arc;

use bytes::Bytes;
use tollhouse_filters::caching::{NotStored, Plan};

use super::flight::{Lead, Phase};
use super::growing::{FEW_HELD, Growing, MOST_HELD};
use super::inner::Inner;
use super::store::{Entry, Inserted, Parts};
use super::told::{Asker, Filled};
use super::{Cache, Key, head, now};

impl Cache {
    /// Stores an entry, in the place of an old one if that is still there; not if what it answers was purged since it
    /// was asked for, or what is stored came later. Whether it is in memory then.
    pub(super) fn put(&self, lead: &Lead, entry: &Arc<Entry>, old: Option<&Arc<Entry>>) -> bool {
        if lead.is_spoiled() || self.has_newer(entry) {
            return false;
        }
        let stored = old.is_some_and(|old| self.store.replace(old, entry.clone()))
            || self.store.insert(entry.clone()) == Inserted::Stored;
        if lead.is_spoiled() {
            // Purged between the two: a purge spoils first, and then looks at what is stored.
            self.store.remove(entry);
        }
        stored
    }

    /// Whether what is stored in the place of an entry came later: of two that were asked for side by side, the older
    /// one may be the last to be whole.
    fn has_newer(&self, entry: &Entry) -> bool {
        let (came, now) = (entry.facts().received, now());
        let known = self.store.peek(entry.key());
        let mut known = known.as_deref().unwrap_or_default().iter();
        // One from the future came before the clock was set back.
        let is_later = |received: u64| came < received && received <= now;
        known.any(|known| known.variant() == entry.variant() && is_later(known.facts().received))
    }
}

/// What is left to do when an answer is to be stored.
pub(super) struct Work {
    pub(super) cache: Arc<Cache>,
    pub(super) plan: Arc<Plan>,
    pub(super) key: Key,
    pub(super) tags: Vec<String>,
    pub(super) lead: Lead,
    /// It was asked for with `Authorization`.
    pub(super) authorized: bool,
    /// Why it takes the place of nothing, though it is for all who wait, if so.
    pub(super) passes: Option<NotStored>,
}

impl Work {
    /// Passes the body on as it comes, and stores it once it is whole.
    pub(super) async fn store(self, asker: Asker, growing: Arc<Growing>, mut body: Inner) {
        self.cache.flights.note_cacheable(self.lead.key(), self.authorized);
        if let Some(reader) = growing.read() {
            // Who does not wait any more does not read either; what is stored is for others.
            asker.tell(Filled::Growing(growing.clone(), reader, self.passes.map(NotStored::name)));
        }
        let now = now();
        let shared = growing.facts.left(now).is_ok() && !growing.facts.no_cache;
        self.lead.tell(if shared { Phase::Answered(growing.clone()) } else { Phase::Released });
        // Says so, however this ends, unless it was whole before.
        let _broken = Broken(&growing, &self.lead);
        let mut kept = true;
        let last = loop {
            let (piece, ends) = match body.next_and_end().await {
                Ok(Some(next)) => next,
                Ok(None) => break None,
                Err(_) => return self.cache.counts.failed.inc(),
            };
            if ends {
                break Some(piece);
            }
            let too_large = growing.length() + piece.len() as u64 > self.plan.max_object;
            if kept && (too_large || self.cache.is_full_beside(&growing)) {
                kept = false;
                growing.pass(if too_large { MOST_HELD } else { FEW_HELD });
                if too_large {
                    // The next one will be no smaller.
                    self.cache.flights.note_uncacheable(self.lead.key(), self.authorized);
                }
                self.lead.leave();
            }
            if !growing.push(piece).await {
                return self.cache.counts.not_stored.inc();
            }
        };
        drop(body);
        // Stored before anybody can know that it is whole, and ask again.
        if let Some(entry) = self.keep(&growing, last.as_ref()) {
            return growing.stored(entry);
        }
        if let Some(last) = last {
            growing.push(last).await;
        }
        growing.finish();
    }

    /// Stores what is whole, with its last piece; gives what is in memory then.
    fn keep(&self, growing: &Growing, last: Option<&Bytes>) -> Option<Arc<Entry>> {
        let length = growing.length() + last.map_or(0, |last| last.len() as u64);
        let may_be = self.passes.is_none() && !self.lead.is_spoiled() && length <= self.plan.max_object;
        let pieces = growing.pieces().filter(|_| may_be);
        let Some(mut pieces) = pieces else {
            self.cache.counts.not_stored.inc();
            return None;
        };
        pieces.extend(last.cloned());
        let parts = Parts {
            status: growing.head.status.as_u16(),
            lines: head::lines(&growing.head),
            body: pieces,
            variant: growing.variant.clone(),
            tags: self.tags.clone(),
            facts: growing.facts,
        };
        let entry = Arc::new(Entry::new(&self.key, parts));
        let in_memory = self.cache.put(&self.lead, &entry, None);
        self.cache.counts.stored.inc();
        in_memory.then_some(entry)
    }
}

/// Says that a body broke off, however the filling of it ends, unless it was whole before. Nobody can join it by then.
struct Broken<'a>(&'a Growing, &'a Lead);

impl Drop for Broken<'_> {
    fn drop(&mut self) {
        self.1.leave();
        self.0.abandon();
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Barrier;
    use std::sync::atomic::{AtomicBool, Ordering};
    use std::task::Context;

    use tollhouse_filters::world::ClientBody;

    use super::super::Facts;
    use super::super::flight::tests::Asks;
    use super::super::flight::{Flights, Joined};
    use super::super::store::{How, Purge, Store, StoreOptions};
    use super::*;
    use crate::observe::Observe;
    use crate::observe::access_log::{Format, To};
    use crate::upstream::call::Caller;

    fn cache() -> Arc<Cache> {
        let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
        let store = Arc::new(Store::new(StoreOptions { capacity: 1 << 24, max_variants: 2 }));
        Cache::new(store, Caller::new(), Observe::new(100, &Format::Off, &To::Stdout).expect("no file"))
    }

    #[test]
    fn who_reads_that_an_answer_broke_off_does_not_join_it_again() {
        let (flights, key) = (Arc::<Flights>::default(), Bytes::from_static(b"a"));
        let Joined::First(lead) = flights.join(key.clone()) else { panic!("nobody asks yet") };
        let head = pingora::http::ResponseHeader::build(200, None).expect("valid");
        let growing = Growing::new(head, Default::default(), Vec::new(), Default::default());
        lead.tell(Phase::Answered(growing.clone()));
        let mut reader = growing.read().expect("its start is there");
        let asks = Arc::new(Asks { flights, key, was_first: AtomicBool::new(false) });
        let waker = asks.clone().into();
        let mut next = reader.next();
        assert!(next.as_mut().poll(&mut Context::from_waker(&waker)).is_pending());
        drop(Broken(&growing, &lead));
        assert!(asks.was_first.load(Ordering::SeqCst));
    }

    #[test]
    fn what_came_earlier_takes_nothing_from_what_is_stored() {
        let (cache, key) = (cache(), Key::from_bytes(Bytes::from_static(b"http://a.test/x\0r")));
        let put = |variant: &[u8], received| {
            let facts = Facts { received, ..Facts::default() };
            let parts = Parts { status: 200, variant: variant.to_vec(), facts, ..Parts::default() };
            let lead = cache.flights.alone(key.bytes().to_vec().into());
            cache.put(&lead, &Arc::new(Entry::new(&key, parts)), None)
        };
        assert!(put(b"", 2) && !put(b"", 1) && put(b"", 2) && put(b"", 3));
        assert!(put(b"other", 1), "that is for others");
        assert!(put(b"", u64::MAX) && put(b"", 4), "the clock was set back");
    }

    #[test]
    fn nothing_that_is_purged_while_it_is_stored_stays_whoever_is_first() {
        const ROUNDS: usize = 3000;
        let (cache, barrier, purged) = (cache(), Barrier::new(2), AtomicBool::new(false));
        let key = Key::from_bytes(Bytes::from_static(b"http://a.test/x\0r"));
        let entry = || Arc::new(Entry::new(&key, Parts { status: 200, ..Parts::default() }));
        std::thread::scope(|scope| {
            scope.spawn(|| {
                for _ in 0..ROUNDS {
                    barrier.wait();
                    cache.purge(&Purge::Url(b"http://a.test/x".to_vec()), How::Hard);
                    purged.store(true, Ordering::SeqCst);
                    barrier.wait();
                }
            });
            let (mut before, mut after) = (0, 0);
            for round in 0..ROUNDS {
                let old = entry();
                cache.store.insert(old.clone());
                let Joined::First(lead) = cache.flights.join(key.bytes().to_vec().into()) else {
                    panic!("nobody asks yet")
                };
                barrier.wait();
                // The two meet at another place each time.
                (0..round % 200).for_each(|_| std::hint::spin_loop());
                let is_late = purged.load(Ordering::SeqCst);
                cache.put(&lead, &entry(), (round % 2 == 0).then_some(&old));
                barrier.wait();
                assert!(cache.store.peek(key.bytes()).is_none(), "round {round}");
                purged.store(false, Ordering::SeqCst);
                if is_late { after += 1 } else { before += 1 }
            }
            assert!(before > 0 && after + before == ROUNDS);
        });
    }
}
