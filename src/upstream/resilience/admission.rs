//! Whether a request gets to its upstream at all: the circuit breaker, and the places of route and upstream.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use super::breaker::{Passage, Verdict};
use super::bulkhead::{Bulkhead, Full, Place};
use crate::config::circuit_breaker::Fallback;
use crate::upstream::Upstream;

/// What a request holds that was let in; its places are free again when this is dropped.
#[derive(Debug, Default)]
pub struct Admission {
    passage: Option<Passage>,
    places: [Option<Place>; 2],
}

/// Why a request was not let in.
#[derive(Debug)]
pub enum Refusal {
    /// The breaker is open, for so long still.
    Open(Duration),
    /// The upstream has no place,
    Busy(&'static str),
    /// or the route has none.
    RouteBusy(&'static str),
}

impl Admission {
    /// Says what became of the request, which was known at this time, and for how much of the time the client was waited
    /// for. The first word counts.
    pub fn settle(&mut self, verdict: Verdict, now: Instant, of_client: Duration) {
        if let Some(passage) = &mut self.passage {
            passage.settle(verdict, now, of_client);
        }
        let failed = verdict == Verdict::Failed;
        self.places.iter_mut().flatten().for_each(|place| place.settle(failed, now, of_client));
    }

    /// As [`settle`](Self::settle), of what was known before the client had sent everything. How long the upstream takes is
    /// not: to the breaker it was not slow, and the places learn nothing.
    pub fn settle_early(&mut self, verdict: Verdict, now: Instant) {
        if let Some(passage) = &mut self.passage {
            passage.settle(verdict, now, Duration::MAX);
        }
    }

    /// The answer broke off; nothing, unless its head was said to be well.
    pub fn broke_off(&mut self, now: Instant) {
        self.passage.iter_mut().for_each(|passage| passage.broke_off(now));
    }
}

impl Upstream {
    /// Whether requests are let in without question: no breaker, no places to wait for.
    pub fn is_open_to_all(&self) -> bool {
        self.memory.breaker.is_none() && self.memory.bulkhead.is_none()
    }

    /// Lets a request in, which may have to wait for its turn until the deadline; how long it waited.
    ///
    /// # Errors
    /// See [`Refusal`].
    pub async fn admit(
        &self,
        route: Option<&Arc<Bulkhead>>,
        deadline: Option<Instant>,
    ) -> Result<(Admission, Duration), Refusal> {
        let breaker = self.memory.breaker.as_ref();
        let passage = breaker.map(|breaker| breaker.enter(Instant::now())).transpose();
        let mut passage = passage.map_err(|open| Refusal::Open(open.left))?;
        let of_route = place(route, deadline, "too many requests of this route are under way").await;
        let (mut first, waited) = of_route.map_err(|why| {
            self.memory.route_busy.fetch_add(1, Ordering::Relaxed);
            Refusal::RouteBusy(why)
        })?;
        let upstream = self.memory.bulkhead.as_ref();
        let own = place(upstream, deadline, "too many requests are under way").await;
        let (second, more) = own.map_err(Refusal::Busy)?;
        let waited = waited + more;
        if !waited.is_zero() {
            // The upstream is no slower for it.
            let now = Instant::now();
            passage.iter_mut().for_each(|passage| passage.begin(now));
            first.iter_mut().for_each(|place| place.begin(now));
        }
        Ok((Admission { passage, places: [first, second] }, waited))
    }

    /// What is answered while the breaker is open, if something else than a problem is.
    pub fn fallback(&self) -> Option<&Fallback> {
        self.memory.breaker.as_ref()?.written.fallback.as_ref()
    }
}

async fn place(
    bulkhead: Option<&Arc<Bulkhead>>,
    deadline: Option<Instant>,
    full: &'static str,
) -> Result<(Option<Place>, Duration), &'static str> {
    let Some(bulkhead) = bulkhead else { return Ok((None, Duration::ZERO)) };
    match bulkhead.enter(deadline).await {
        Ok((place, waited)) => Ok((Some(place), waited)),
        Err(Full::Queue) => Err(full),
        Err(Full::Wait) => Err("waited too long for other requests to end"),
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use serde_json::json;

    use super::*;

    #[tokio::test]
    async fn waiting_for_a_place_is_no_slowness_of_the_upstream() {
        let written = json!({
            "name": "users", "backends": [{"address": "127.0.0.1:9"}],
            "concurrency": {"in_flight": 1, "queue": 1, "max_wait": "10s"},
            "circuit_breaker": {"slow": "50ms", "slow_ratio": "1%", "min_requests": 1},
        });
        let upstream =
            Upstream::build(&serde_json::from_value(written).unwrap(), Path::new(""), None).unwrap();
        let (first, _) = upstream.admit(None, None).await.unwrap();
        let longer = tokio::time::sleep(Duration::from_millis(60));
        let let_go = async {
            longer.await;
            drop(first);
        };
        let (waited, ()) = tokio::join!(upstream.admit(None, None), let_go);
        let (mut second, waited) = waited.unwrap();
        assert!(waited >= Duration::from_millis(50));
        second.settle(Verdict::Answered, Instant::now(), Duration::ZERO);
        drop(second);
        assert!(upstream.admit(None, None).await.is_ok(), "the breaker is closed");
    }

    #[tokio::test]
    async fn who_is_refused_learns_whose_places_are_taken() {
        let places = json!({"in_flight": 1});
        let written = json!({
            "name": "users", "backends": [{"address": "127.0.0.1:9"}], "concurrency": places,
        });
        let written = serde_json::from_value(written).unwrap();
        let upstream = Upstream::build(&written, Path::new(""), None).unwrap();
        let route = Bulkhead::new(serde_json::from_value(places).unwrap());
        let held = upstream.admit(None, None).await.unwrap();
        assert!(matches!(upstream.admit(Some(&route), None).await, Err(Refusal::Busy(_))));
        drop(held);
        let counted = |upstream: &Upstream| upstream.memory.route_busy.load(Ordering::Relaxed);
        let _held = upstream.admit(Some(&route), None).await.unwrap();
        assert_eq!(counted(&upstream), 0);
        assert!(matches!(upstream.admit(Some(&route), None).await, Err(Refusal::RouteBusy(_))));
        let later = Upstream::build(&written, Path::new(""), Some(&upstream)).unwrap();
        assert_eq!((counted(&upstream), counted(&later)), (1, 1), "it is known after a reload too");
    }
}
