//! Requests under way for what others ask for too: the origin is asked once.

use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use parking_lot::Mutex;
use slab::Slab;
use tokio::sync::{oneshot, watch};
use tollhouse_filters::problem::Problem;

use super::growing::Growing;
use super::store::Entry;

const SHARDS: usize = 16;
/// Keys of answers that cannot be stored, for each shard.
const MOST_REMEMBERED: usize = 4096;
/// How long such a key is remembered.
const REMEMBERED: Duration = Duration::from_secs(10);
/// After as many answers that cannot be stored, requests no longer go through the cache,
const UNTIL_PASSED: u8 = 3;
/// but one each time that so long has passed.
const TRIED_AFTER: Duration = Duration::from_secs(1);

/// What has become of a request that others wait for.
#[derive(Clone)]
pub(super) enum Phase {
    /// It is under way.
    Asking,
    /// This is the answer, still coming in.
    Answered(Arc<Growing>),
    /// What is stored is the answer.
    Stored(Arc<Entry>),
    /// What is stored is the answer, for whom it may be stale after an error; whether the origin was reached.
    StaleIfError(Arc<Entry>, bool),
    /// What is stored is the answer, however old.
    Stale(Arc<Entry>),
    /// There is none.
    Failed(Arc<Problem>),
    /// It is not for others.
    Released,
}

/// A request that others wait for, or nobody can.
pub(super) struct Flight {
    pub(super) phase: watch::Sender<Phase>,
    /// What it asked for was purged since.
    spoiled: AtomicBool,
    key: Bytes,
}

impl Flight {
    fn new(phase: Phase, key: Bytes) -> Arc<Self> {
        Arc::new(Self { phase: watch::Sender::new(phase), spoiled: AtomicBool::new(false), key })
    }

    fn is_spoiled(&self) -> bool {
        self.spoiled.load(Ordering::SeqCst)
    }
}

/// Whether a request is the first to ask.
pub(super) enum Joined {
    /// It is, and asks for all.
    First(Lead),
    /// Another one asks.
    Other(watch::Receiver<Phase>),
}

/// Requests under way, by what they ask for, and what turned out not to be for all.
#[derive(Default)]
pub(super) struct Flights {
    shards: [Mutex<Shard>; SHARDS],
    hasher: RandomState,
}

#[derive(Default)]
struct Shard {
    flights: HashMap<Bytes, Arc<Flight>>,
    /// Those that nobody can join: what they ask for may be purged too.
    lone: Slab<Arc<Flight>>,
    uncacheable: HashMap<u64, Uncacheable>,
}

/// Answers that were not for all.
struct Uncacheable {
    /// How many in a row.
    count: u8,
    /// How long they are remembered.
    until: Instant,
    /// When one of the requests last asked for itself, rather than past the cache: its answer may be for all again.
    tried: Instant,
}

/// How requests for a key are to be handled, after what came of earlier ones.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Manner {
    /// One asks for all.
    Together,
    /// Each asks for itself.
    Alone,
    /// As if there were no cache.
    Passed,
}

impl Flights {
    fn shard(&self, key: &[u8]) -> (&Mutex<Shard>, u64) {
        (&self.shards[self.part(key)], self.hasher.hash_one(key))
    }

    /// All of a URL is in one part.
    fn part(&self, key: &[u8]) -> usize {
        let url = memchr::memchr(0, key).map_or(key, |end| &key[..end]);
        (self.hasher.hash_one(url) % SHARDS as u64) as usize
    }

    /// Joins those who ask for this key.
    pub(super) fn join(self: &Arc<Self>, key: Bytes) -> Joined {
        let (shard, _) = self.shard(&key);
        let mut shard = shard.lock();
        // What was purged since it was asked for is not for who asks after that.
        if let Some(flight) = shard.flights.get(&key).filter(|flight| !flight.is_spoiled()) {
            return Joined::Other(flight.phase.subscribe());
        }
        let flight = Flight::new(Phase::Asking, key.clone());
        shard.flights.insert(key, flight.clone());
        Joined::First(Lead { flights: self.clone(), flight, lone: None, alone: false })
    }

    /// Joins those who ask for this key, if anybody does; else asks for itself.
    pub(super) fn follow(self: &Arc<Self>, key: Bytes) -> Joined {
        let joined = {
            let (shard, _) = self.shard(&key);
            let shard = shard.lock();
            let flight = shard.flights.get(&key).filter(|flight| !flight.is_spoiled());
            flight.map(|flight| Joined::Other(flight.phase.subscribe()))
        };
        joined.unwrap_or_else(|| Joined::First(self.alone(key)))
    }

    /// A flight of one's own, that nobody can join.
    pub(super) fn alone(self: &Arc<Self>, key: Bytes) -> Lead {
        let flight = Flight::new(Phase::Released, key);
        let place = self.shard(&flight.key).0.lock().lone.insert(flight.clone());
        Lead { flights: self.clone(), flight, lone: Some(place), alone: false }
    }

    /// Where answers to requests with `Authorization` are remembered, or to those without: what comes of the ones says
    /// nothing about the others (RFC 9111 s3.5).
    fn memory(&self, key: &[u8], authorized: bool) -> (&Mutex<Shard>, u64) {
        let (shard, hash) = self.shard(key);
        (shard, hash ^ u64::from(authorized))
    }

    /// How to handle a request for this key, with `Authorization` or without, that comes now.
    pub(super) fn manner(&self, key: &[u8], authorized: bool, now: Instant) -> Manner {
        let (shard, hash) = self.memory(key, authorized);
        match shard.lock().uncacheable.get_mut(&hash).filter(|known| known.until > now) {
            None => Manner::Together,
            Some(known) if known.count >= UNTIL_PASSED && now < known.tried + TRIED_AFTER => Manner::Passed,
            Some(known) => {
                known.tried = now;
                Manner::Alone
            }
        }
    }

    /// The answer for this key was not for all.
    pub(super) fn note_uncacheable(&self, key: &[u8], authorized: bool) {
        let (shard, hash) = self.memory(key, authorized);
        let mut shard = shard.lock();
        let now = Instant::now();
        if shard.uncacheable.len() >= MOST_REMEMBERED {
            shard.uncacheable.retain(|_, known| known.until > now);
            if shard.uncacheable.len() >= MOST_REMEMBERED {
                shard.uncacheable.clear();
            }
        }
        let new = Uncacheable { count: 0, until: now, tried: now };
        let known = shard.uncacheable.entry(hash).or_insert(new);
        if known.until <= now {
            known.count = 0;
        }
        (known.until, known.count) = (now + REMEMBERED, known.count.saturating_add(1));
    }

    /// The answer for this key was.
    pub(super) fn note_cacheable(&self, key: &[u8], authorized: bool) {
        let (shard, hash) = self.memory(key, authorized);
        shard.lock().uncacheable.remove(&hash);
    }

    /// What is under way for this URL is not to be stored.
    pub(super) fn spoil_url(&self, url: &[u8]) {
        let part = self.part(url);
        // A NUL ends the URL.
        let is_of = |key: &[u8]| key.strip_prefix(url).is_some_and(|rest| rest.first() == Some(&0));
        spoil(&self.shards[part..=part], is_of);
    }

    /// What is under way for keys that begin so is not to be stored.
    pub(super) fn spoil(&self, start: &[u8]) {
        spoil(&self.shards, |key| key.starts_with(start));
    }
}

fn spoil(shards: &[Mutex<Shard>], is_one: impl Fn(&[u8]) -> bool) {
    for shard in shards {
        let shard = shard.lock();
        let all = shard.flights.values().chain(shard.lone.iter().map(|(_, flight)| flight));
        for flight in all.filter(|flight| is_one(&flight.key)) {
            flight.spoiled.store(true, Ordering::SeqCst);
        }
    }
}

/// Who asks for all. Dropped, it leaves the others to themselves.
pub(super) struct Lead {
    flights: Arc<Flights>,
    flight: Arc<Flight>,
    /// Its place among those that nobody can join, if it is one.
    lone: Option<usize>,
    /// It asks for the store, not for a client.
    alone: bool,
}

/// Those who wait for what somebody asks for.
pub(super) struct Waiting(Option<Arc<Flight>>);

impl Waiting {
    /// Waits until there are none.
    pub(super) async fn over(&self) {
        match &self.0 {
            Some(flight) => flight.phase.closed().await,
            None => std::future::pending().await,
        }
    }
}

impl Lead {
    /// From now on no client need wait for it to be wanted.
    pub(super) fn for_the_store(mut self) -> Self {
        self.alone = true;
        self
    }

    /// Those who wait for it.
    pub(super) fn waiting(&self) -> Waiting {
        Waiting((!self.alone).then(|| self.flight.clone()))
    }

    /// Tells the others.
    pub(super) fn tell(&self, phase: Phase) {
        self.flight.phase.send_if_modified(|known| {
            let undecided = matches!(known, Phase::Asking);
            if undecided {
                *known = phase;
            }
            undecided
        });
    }

    /// Takes it out, so that the next one asks anew.
    pub(super) fn leave(&self) {
        let (shard, _) = self.flights.shard(&self.flight.key);
        let mut shard = shard.lock();
        // It may have left before, and its place be another's.
        let is_this = |known: &Arc<Flight>| Arc::ptr_eq(known, &self.flight);
        if let Some(place) = self.lone {
            if shard.lone.get(place).is_some_and(is_this) {
                shard.lone.remove(place);
            }
        } else if shard.flights.get(&self.flight.key).is_some_and(is_this) {
            shard.flights.remove(&self.flight.key);
        }
    }

    /// Tells who began it what came of it; it is over by then, so that what they ask next is asked anew.
    pub(super) fn end<T>(self, tell: oneshot::Sender<T>, came: T) {
        drop(self);
        // Who went away does not hear it.
        let _ = tell.send(came);
    }

    /// Whether what it asked for was purged since.
    pub(super) fn is_spoiled(&self) -> bool {
        self.flight.is_spoiled()
    }

    /// What it asks for.
    pub(super) fn key(&self) -> &[u8] {
        &self.flight.key
    }
}

impl Drop for Lead {
    fn drop(&mut self) {
        self.tell(Phase::Released);
        self.leave();
    }
}

#[cfg(test)]
pub(super) mod tests {
    use std::pin::pin;
    use std::task::{Context, Wake};

    use super::*;

    /// Asks for a key when it is woken, and notes whether it is the first.
    pub(in crate::cache) struct Asks {
        pub(in crate::cache) flights: Arc<Flights>,
        pub(in crate::cache) key: Bytes,
        pub(in crate::cache) was_first: AtomicBool,
    }

    impl Wake for Asks {
        fn wake(self: Arc<Self>) {
            let first = matches!(self.flights.join(self.key.clone()), Joined::First(_));
            self.was_first.store(first, Ordering::SeqCst);
        }
    }

    fn key(text: &'static str) -> Bytes {
        Bytes::from_static(text.as_bytes())
    }

    #[test]
    fn one_asks_for_all_and_leaves_them_to_themselves_if_it_goes() {
        let flights = Arc::<Flights>::default();
        let Joined::First(lead) = flights.join(key("a")) else { panic!("nobody asks yet") };
        let Joined::Other(waiting) = flights.join(key("a")) else { panic!("somebody asks") };
        assert!(matches!(flights.join(key("b")), Joined::First(_)), "other keys are others'");
        assert!(matches!(*waiting.borrow(), Phase::Asking));
        drop(lead);
        assert!(matches!(*waiting.borrow(), Phase::Released));
        assert!(matches!(flights.join(key("a")), Joined::First(_)));
    }

    #[test]
    fn who_follows_waits_for_who_asks_and_has_nobody_wait() {
        let flights = Arc::<Flights>::default();
        let Joined::First(alone) = flights.follow(key("a")) else { panic!("nobody asks yet") };
        let Joined::First(lead) = flights.join(key("a")) else { panic!("nobody waits for that one") };
        let Joined::Other(waiting) = flights.follow(key("a")) else { panic!("somebody asks") };
        drop(alone);
        assert!(matches!(*waiting.borrow(), Phase::Asking));
        drop(lead);
        assert!(matches!(*waiting.borrow(), Phase::Released));
        assert!(matches!(flights.follow(key("a")), Joined::First(_)));
    }

    #[test]
    fn who_hears_what_came_of_a_flight_finds_it_over() {
        let flights = Arc::<Flights>::default();
        let Joined::First(lead) = flights.join(key("a")) else { panic!("nobody asks yet") };
        let asks = Asks { flights: flights.clone(), key: key("a"), was_first: AtomicBool::new(false) };
        let asks = Arc::new(asks);
        let (tell, told) = oneshot::channel();
        let waker = asks.clone().into();
        let mut told = pin!(told);
        assert!(told.as_mut().poll(&mut Context::from_waker(&waker)).is_pending());
        lead.end(tell, ());
        assert!(asks.was_first.load(Ordering::SeqCst));
    }

    #[test]
    fn answers_that_are_not_for_all_are_remembered_until_one_is() {
        let (flights, now) = (Flights::default(), Instant::now());
        let manner = |key: &[u8]| flights.manner(key, false, now);
        assert_eq!(manner(b"a"), Manner::Together);
        flights.note_uncacheable(b"a", false);
        assert_eq!(manner(b"a"), Manner::Alone);
        flights.note_uncacheable(b"a", false);
        flights.note_uncacheable(b"a", false);
        assert_eq!((manner(b"a"), manner(b"b")), (Manner::Passed, Manner::Together));
        assert_eq!(flights.manner(b"a", true, now), Manner::Together, "others are told apart");
        flights.note_cacheable(b"a", true);
        assert_eq!(manner(b"a"), Manner::Passed);
        flights.note_cacheable(b"a", false);
        assert_eq!(manner(b"a"), Manner::Together);
    }

    #[test]
    fn of_requests_that_are_passed_one_is_tried_now_and_then() {
        let flights = Flights::default();
        (0..UNTIL_PASSED).for_each(|_| flights.note_uncacheable(b"a", false));
        let now = Instant::now();
        assert_eq!(flights.manner(b"a", false, now), Manner::Passed);
        let later = now + TRIED_AFTER;
        assert_eq!(flights.manner(b"a", false, later), Manner::Alone);
        assert_eq!(flights.manner(b"a", false, later), Manner::Passed);
    }

    #[test]
    fn what_is_purged_while_it_is_fetched_is_known() {
        let flights = Arc::<Flights>::default();
        let Joined::First(one) = flights.join(key("http://a.test/x\0r")) else { panic!("nobody asks yet") };
        let Joined::First(other) = flights.join(key("http://a.test/xy\0r")) else {
            panic!("nobody asks yet")
        };
        flights.spoil(b"http://a.test/x\0");
        assert!(one.is_spoiled() && !other.is_spoiled());
        let Joined::First(anew) = flights.join(key("http://a.test/x\0r")) else {
            panic!("it is asked for anew")
        };
        drop(one);
        assert!(matches!(flights.join(key("http://a.test/x\0r")), Joined::Other(_)), "that one stays");
        drop(anew);
    }

    #[test]
    fn what_nobody_can_join_is_known_to_be_purged_until_it_leaves() {
        let flights = Arc::<Flights>::default();
        let gone = flights.alone(key("http://a.test/x\0r"));
        gone.leave();
        // This one has its place.
        let other = flights.alone(key("http://a.test/x\0s"));
        gone.leave();
        flights.spoil_url(b"http://a.test/y");
        assert!(!other.is_spoiled());
        flights.spoil_url(b"http://a.test/x");
        assert!(other.is_spoiled() && !gone.is_spoiled());
        assert!(matches!(flights.join(key("http://a.test/x\0s")), Joined::First(_)), "nobody waits for it");
    }
}
