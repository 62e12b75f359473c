//! Whether a request gets to its upstream: circuit breakers and places.

use std::sync::Arc;
use std::time::Duration;

use tollhouse_filters::outcome::Reply;
use tollhouse_filters::plan::Priority;
use tollhouse_filters::problem::{self, Problem};

use super::Exchange;
use crate::snapshot::Route;
use crate::upstream::{Refusal, Upstream};

/// What becomes of a request that does not get to its upstream.
pub(super) enum Refused {
    /// It is answered.
    Reply(Reply),
    /// This route's action takes it.
    Route(Arc<Route>),
}

impl Exchange {
    /// How important the request is: by the plan of who calls, where that says so, or by its route.
    #[must_use]
    pub fn priority(&self) -> Priority {
        let plan = self.ctx.consumer.as_ref().and_then(|consumer| consumer.plan.as_ref());
        let of_plan = plan.and_then(|plan| self.snapshot.priorities.get(plan));
        of_plan.copied().unwrap_or(self.route.priority)
    }

    /// How important it may turn out to be, before it is known who calls.
    #[must_use]
    pub fn highest_priority(&self) -> Priority {
        let of_plans = self.snapshot.priorities.values().copied().max();
        of_plans.unwrap_or(self.route.priority).max(self.route.priority)
    }

    /// Lets the request to its upstream, which may take a while, or says what it is answered instead.
    pub(super) async fn admit(&mut self, upstream: &Arc<Upstream>) -> Result<(), Refused> {
        let route = self.route.bulkhead.as_ref();
        if upstream.is_open_to_all() && route.is_none() {
            return Ok(());
        }
        // On the heap: most requests do not get here.
        match Box::pin(upstream.admit(route, self.ctx.deadline)).await {
            Ok((admission, waited)) => {
                self.admission = admission;
                self.ctx.waited += waited;
                Ok(())
            }
            // That other requests of the route are under way says nothing of this one's upstream.
            Err(Refusal::RouteBusy(detail)) => Err(busy(detail)),
            Err(Refusal::Busy(detail)) => {
                self.turned_away = true;
                Err(busy(detail))
            }
            Err(Refusal::Open(left)) => {
                self.turned_away = true;
                Err(self.left_alone(upstream, left))
            }
        }
    }

    /// What the upstream's fallback makes of a request, while its breaker is open for so long still.
    fn left_alone(&mut self, upstream: &Upstream, left: Duration) -> Refused {
        if let Some(route) = self.snapshot.fallbacks.get(&upstream.name) {
            return Refused::Route(route.clone());
        }
        let fallback = upstream.fallback();
        self.takes_stale = fallback.is_some_and(|fallback| fallback.stale);
        Refused::Reply(match fallback.filter(|fallback| fallback.is_answer()) {
            Some(fallback) => self.stand_in(fallback),
            None => {
                let seconds = left.saturating_add(Duration::from_millis(999)).as_secs();
                Problem::new(&problem::CIRCUIT_OPEN).come_back_after(seconds).into()
            }
        })
    }
}

fn busy(detail: &'static str) -> Refused {
    Refused::Reply(Problem::new(&problem::UPSTREAM_BUSY).detail(detail).into())
}
