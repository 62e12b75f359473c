//! How many requests may be under way at the same time, and how many may wait for their turn, first come, first served.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::gradient::Gradient;
use crate::config::concurrency::Concurrency;

/// Places for requests under way, and a queue before them.
#[derive(Debug)]
pub struct Bulkhead {
    pub(in crate::upstream) written: Concurrency,
    places: Arc<Semaphore>,
    /// How many places there are to be.
    limit: AtomicUsize,
    /// Those beyond it, which are gone when they are given back.
    excess: AtomicUsize,
    gradient: Option<Mutex<Gradient>>,
    waiting: AtomicUsize,
    /// Requests that were refused: the queue was full.
    pub(in crate::upstream) full: AtomicU64,
    /// Requests that were refused: they had waited for too long.
    pub(in crate::upstream) late: AtomicU64,
}

/// A place; it is free again when this is dropped.
#[derive(Debug)]
pub struct Place {
    permit: Option<OwnedSemaphorePermit>,
    /// Who wants to know how long answers take, and since when, until that is told; nobody, where the number of places is
    /// fixed.
    adaptive: Option<(Arc<Bulkhead>, Option<Instant>)>,
}

impl Place {
    /// The request that holds it goes to the upstream only now.
    pub(super) fn begin(&mut self, now: Instant) {
        self.adaptive.iter_mut().for_each(|(_, since)| *since = Some(now));
    }

    /// The request that holds it was answered, well or not; the first word counts.
    pub(super) fn settle(&mut self, failed: bool, at: Instant, of_client: Duration) {
        if let Some((bulkhead, since)) = &mut self.adaptive
            && let Some(since) = since.take()
        {
            let took = at.saturating_duration_since(since).saturating_sub(of_client);
            bulkhead.adapt(took, failed, Instant::now());
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let Some((bulkhead, _)) = &self.adaptive else { return };
        let less = |excess: usize| excess.checked_sub(1);
        if bulkhead.excess.fetch_update(Ordering::Relaxed, Ordering::Relaxed, less).is_ok() {
            self.permit.take().into_iter().for_each(OwnedSemaphorePermit::forget);
        }
    }
}

/// There is no place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Full {
    /// Nor is there one in the queue.
    Queue,
    /// There was none for as long as may be waited.
    Wait,
}

/// A place in the queue.
struct Waiting<'a>(&'a AtomicUsize);

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Bulkhead {
    /// All places are free.
    #[must_use]
    pub fn new(written: Concurrency) -> Arc<Self> {
        let most = written.in_flight.get();
        let adaptive = written.adaptive.clone();
        let gradient = adaptive.map(|adaptive| Gradient::new(adaptive, most, Instant::now()));
        let all = usize::try_from(most).unwrap_or(usize::MAX);
        let limit = gradient.as_ref().map_or(all, Gradient::limit);
        let places = Arc::new(Semaphore::new(limit));
        let (limit, gradient) = (AtomicUsize::new(limit), gradient.map(Mutex::new));
        let (excess, waiting, full, late) = Default::default();
        Arc::new(Self { written, places, limit, excess, gradient, waiting, full, late })
    }

    /// These settings go on in this one, if they are the same.
    #[must_use]
    pub fn retained(written: &Concurrency, before: Option<&Arc<Self>>) -> Arc<Self> {
        let same = before.filter(|before| before.written == *written);
        same.map_or_else(|| Self::new(written.clone()), Arc::clone)
    }

    /// A place now, without waiting.
    fn at_once(self: &Arc<Self>) -> Option<Place> {
        let permit = Arc::clone(&self.places).try_acquire_owned().ok()?;
        Some(self.place(permit))
    }

    fn place(self: &Arc<Self>, permit: OwnedSemaphorePermit) -> Place {
        let adaptive = self.gradient.is_some().then(|| (Arc::clone(self), Some(Instant::now())));
        Place { permit: Some(permit), adaptive }
    }

    /// Takes in how long an answer took, and gives or takes places for it.
    fn adapt(&self, took: Duration, failed: bool, now: Instant) {
        let Some(gradient) = &self.gradient else { return };
        let mut gradient = gradient.lock();
        if (failed && !gradient.is_slow(took)) || !gradient.note(took, self.in_flight(), now) {
            return;
        }
        let (new, old) = (gradient.limit(), self.limit.load(Ordering::Relaxed));
        self.limit.store(new, Ordering::Relaxed);
        if new > old {
            // Those that were to go may stay.
            let mut more = new - old;
            let fewer = |excess: usize| (excess > 0).then(|| excess - excess.min(more));
            if let Ok(excess) = self.excess.fetch_update(Ordering::Relaxed, Ordering::Relaxed, fewer) {
                more -= excess.min(more);
            }
            self.places.add_permits(more);
        } else {
            let gone = self.places.forget_permits(old - new);
            self.excess.fetch_add(old - new - gone, Ordering::Relaxed);
        }
    }

    /// How many places there are.
    #[must_use]
    pub fn limit(&self) -> usize {
        self.limit.load(Ordering::Relaxed)
    }

    /// A place, waited for in the queue if it has to be, but not beyond the deadline; gives how long it waited too.
    ///
    /// # Errors
    /// Why there is no place, if there is none.
    pub async fn enter(self: &Arc<Self>, deadline: Option<Instant>) -> Result<(Place, Duration), Full> {
        if let Some(place) = self.at_once() {
            return Ok((place, Duration::ZERO));
        }
        let queue = usize::try_from(self.written.queue).unwrap_or(usize::MAX);
        let room = |waiting: usize| (waiting < queue).then_some(waiting + 1);
        if self.waiting.fetch_update(Ordering::Relaxed, Ordering::Relaxed, room).is_err() {
            self.full.fetch_add(1, Ordering::Relaxed);
            return Err(Full::Queue);
        }
        let _waiting = Waiting(&self.waiting);
        let begun = Instant::now();
        let left = deadline.map(|deadline| deadline.saturating_duration_since(begun));
        let longest = self.written.max_wait.get();
        let longest = left.map_or(longest, |left| left.min(longest));
        match tokio::time::timeout(longest, Arc::clone(&self.places).acquire_owned()).await {
            Ok(Ok(permit)) => Ok((self.place(permit), begun.elapsed())),
            // Nobody closes it.
            Ok(Err(_)) | Err(_) => {
                self.late.fetch_add(1, Ordering::Relaxed);
                Err(Full::Wait)
            }
        }
    }

    /// Requests under way.
    #[must_use]
    pub fn in_flight(&self) -> usize {
        let all = self.limit() + self.excess.load(Ordering::Relaxed);
        all.saturating_sub(self.places.available_permits())
    }

    /// Requests in the queue.
    #[must_use]
    pub fn waiting(&self) -> usize {
        self.waiting.load(Ordering::Relaxed)
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;
    use serde_json::json;

    use super::*;

    fn bulkhead(in_flight: u32, queue: u32) -> Arc<Bulkhead> {
        let written = json!({"in_flight": in_flight, "queue": queue, "max_wait": "10s"});
        Bulkhead::new(serde_json::from_value(written).unwrap())
    }

    #[tokio::test(start_paused = true)]
    async fn places_are_given_in_the_order_of_asking_and_come_back_when_dropped() {
        let bulkhead = bulkhead(1, 2);
        let (first, waited) = bulkhead.enter(None).await.unwrap();
        assert!(waited.is_zero());
        let (mut second, mut third) = (Box::pin(bulkhead.enter(None)), Box::pin(bulkhead.enter(None)));
        assert!((&mut second).now_or_never().is_none() && (&mut third).now_or_never().is_none());
        assert_eq!((bulkhead.in_flight(), bulkhead.waiting()), (1, 2));
        assert_eq!(bulkhead.enter(None).await.unwrap_err(), Full::Queue);
        drop(first);
        assert!((&mut third).now_or_never().is_none(), "not before the second");
        let second = second.await.unwrap();
        // Who comes now does not overtake.
        assert!(bulkhead.at_once().is_none());
        drop(second);
        assert!(third.await.is_ok());
        assert_eq!((bulkhead.in_flight(), bulkhead.waiting()), (0, 0));
    }

    #[tokio::test(start_paused = true)]
    async fn who_waits_for_too_long_or_gives_up_leaves_the_queue() {
        let bulkhead = bulkhead(1, 1);
        let held = bulkhead.enter(None).await.unwrap();
        assert_eq!(bulkhead.enter(None).await.unwrap_err(), Full::Wait);
        let soon = Instant::now();
        assert_eq!(bulkhead.enter(Some(soon)).await.unwrap_err(), Full::Wait);
        drop(Box::pin(bulkhead.enter(None)).now_or_never());
        assert_eq!((bulkhead.waiting(), bulkhead.late.load(Ordering::Relaxed)), (0, 2));
        drop(held);
        assert!(bulkhead.enter(None).await.is_ok());
    }

    #[tokio::test]
    async fn places_come_and_go_with_what_the_upstream_can_do() {
        let written = json!({"in_flight": 100, "adaptive": {"min": 4, "window": "1ms"}});
        let bulkhead = Bulkhead::new(serde_json::from_value(written).unwrap());
        let (millis, hour) = (Duration::from_millis, Duration::from_secs(3600));
        assert_eq!(bulkhead.limit(), 4);
        let mut now = Instant::now();
        let mut held = Vec::new();
        // Quick answers: as many places as are wanted, up to `in_flight`.
        while bulkhead.limit() < 100 {
            while let Some(place) = bulkhead.at_once() {
                held.push(place);
            }
            assert_eq!(bulkhead.in_flight(), held.len());
            now += millis(1);
            (0..10).for_each(|_| bulkhead.adapt(millis(5), false, now));
        }
        while let Some(place) = bulkhead.at_once() {
            held.push(place);
        }
        assert_eq!((held.len(), bulkhead.in_flight()), (100, 100));
        // A failure that is quick says nothing; slow answers take places away, also those that are taken.
        for _ in 0..20 {
            bulkhead.adapt(Duration::ZERO, true, now);
        }
        while bulkhead.limit() > 20 {
            now += millis(1);
            (0..10).for_each(|_| bulkhead.adapt(hour, true, now));
        }
        let limit = bulkhead.limit();
        assert_eq!(bulkhead.in_flight(), 100, "who is in stays in");
        held.truncate(limit);
        assert_eq!(bulkhead.in_flight(), limit);
        assert!(bulkhead.at_once().is_none(), "what was given back is gone");
        drop(held);
        let again: Vec<_> = std::iter::from_fn(|| bulkhead.at_once()).collect();
        assert_eq!((again.len(), bulkhead.excess.load(Ordering::Relaxed)), (limit, 0));
    }

    #[tokio::test]
    async fn there_are_never_more_than_may_be() {
        let bulkhead = bulkhead(3, 1000);
        let (under_way, most) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
        let mut tasks = tokio::task::JoinSet::new();
        for _ in 0..200 {
            let (bulkhead, under_way, most) = (bulkhead.clone(), under_way.clone(), most.clone());
            tasks.spawn(async move {
                let _place = bulkhead.enter(None).await.unwrap();
                let now = under_way.fetch_add(1, Ordering::SeqCst) + 1;
                most.fetch_max(now, Ordering::SeqCst);
                tokio::task::yield_now().await;
                under_way.fetch_sub(1, Ordering::SeqCst);
            });
        }
        assert_eq!(tasks.join_all().await.len(), 200);
        assert_eq!((most.load(Ordering::SeqCst), bulkhead.in_flight()), (3, 0));
    }
}
