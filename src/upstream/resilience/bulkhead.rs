//! How many requests may be under way at the same time, and how many may wait for their turn, first come, first served.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::config::concurrency::Concurrency;

/// Places for requests under way, and a queue before them.
#[derive(Debug)]
pub struct Bulkhead {
    pub(in crate::upstream) written: Concurrency,
    places: Arc<Semaphore>,
    waiting: AtomicUsize,
    /// Requests that were refused: the queue was full.
    pub(in crate::upstream) full: AtomicU64,
    /// Requests that were refused: they had waited for too long.
    pub(in crate::upstream) late: AtomicU64,
}

/// A place; it is free again when this is dropped.
#[derive(Debug)]
pub struct Place {
    _permit: OwnedSemaphorePermit,
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
        let places = Arc::new(Semaphore::new(usize::try_from(written.in_flight.get()).unwrap_or(usize::MAX)));
        let (waiting, full, late) = Default::default();
        Arc::new(Self { written, places, waiting, full, late })
    }

    /// These settings go on in this one, if they are the same.
    #[must_use]
    pub fn retained(written: &Concurrency, before: Option<&Arc<Self>>) -> Arc<Self> {
        let same = before.filter(|before| before.written == *written);
        same.map_or_else(|| Self::new(written.clone()), Arc::clone)
    }

    /// A place now, without waiting.
    fn at_once(&self) -> Option<Place> {
        let permit = Arc::clone(&self.places).try_acquire_owned().ok()?;
        Some(Place { _permit: permit })
    }

    /// A place, waited for in the queue if it has to be, but not beyond the deadline; gives how long it waited too.
    ///
    /// # Errors
    /// Why there is no place, if there is none.
    pub async fn enter(&self, deadline: Option<Instant>) -> Result<(Place, Duration), Full> {
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
            Ok(Ok(permit)) => Ok((Place { _permit: permit }, begun.elapsed())),
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
        let all = usize::try_from(self.written.in_flight.get()).unwrap_or(usize::MAX);
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
