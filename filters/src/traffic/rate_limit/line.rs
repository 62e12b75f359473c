//! Where requests over the limit wait for their turn: one line for each key, first come first served.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use futures_util::future::{Either, select};
use parking_lot::Mutex;
use tokio::sync::Mutex as Turn;

use super::Over;
use crate::world::{Balance, Charge, Clock, Counter, Gauge, Metrics, ScopedState, StateError, TenantId};

/// The lines of one filter.
pub(super) struct Lines {
    delay: Duration,
    /// Most in one line.
    queue: usize,
    /// Most in all of them.
    total: usize,
    clock: Arc<dyn Clock>,
    all: Arc<All>,
    metrics: Numbers,
}

/// Who waits, which a reload does not change.
#[derive(Default)]
pub(super) struct All {
    waiting: AtomicUsize,
    lines: Mutex<HashMap<Box<[u8]>, Arc<Line>>>,
}

/// Requests with one key.
#[derive(Default)]
struct Line {
    /// Whose turn it is; tokio's lock is fair, and who no longer waits for it has left the line.
    turn: Turn<()>,
    length: AtomicUsize,
}

struct Numbers {
    waiting: Gauge,
    passed: Counter,
    refused: Counter,
    left: Counter,
    waited: Counter,
}

impl Numbers {
    fn new(metrics: &dyn Metrics) -> Self {
        let help = "Requests that waited for a limit of rate, by what became of them.";
        let outcome = |outcome| metrics.counter("tollhouse_throttled_total", help, &[("outcome", outcome)]);
        let help = "Milliseconds that requests waited for limits of rate and then passed.";
        let waited = metrics.counter("tollhouse_throttle_wait_milliseconds_total", help, &[]);
        let help = "Requests that wait for a limit of rate.";
        let waiting = metrics.gauge("tollhouse_throttle_waiting", help, &[]);
        Self {
            waiting,
            passed: outcome("passed"),
            refused: outcome("refused"),
            left: outcome("left"),
            waited,
        }
    }
}

impl Lines {
    pub(super) fn new(over: &Over, all: Arc<All>, clock: Arc<dyn Clock>, metrics: &dyn Metrics) -> Self {
        let size = |count: std::num::NonZeroU32| usize::try_from(count.get()).unwrap_or(usize::MAX);
        Self {
            delay: over.delay.get(),
            queue: size(over.queue),
            total: size(over.total),
            clock,
            all,
            metrics: Numbers::new(metrics),
        }
    }

    /// Spends the charge, now or when its turn comes; whether it did, and how long it waited. `most` is how long
    /// it may wait besides.
    pub(super) async fn spend(
        &self,
        state: &ScopedState,
        tenant: TenantId,
        charge: &mut Charge<'_>,
        most: Duration,
    ) -> Result<(bool, Duration), StateError> {
        let at_once = !self.has_line(charge.key);
        if at_once && state.spend(tenant, std::slice::from_mut(charge)).await? {
            return Ok((true, Duration::ZERO));
        }
        if !at_once {
            // Who waits before it comes first; this one only looks.
            self.look(state, tenant, charge).await?;
        }
        let patience = self.delay.min(most);
        let place = match self.join(charge.key) {
            Ok(place) => place,
            Err(ahead) => return Ok(self.refused(charge, ahead)),
        };
        if place.ahead_for(charge) > patience {
            let ahead = place.turn_away();
            return Ok(self.refused(charge, ahead));
        }
        let begun = self.clock.now();
        let due = self.clock.sleep(patience);
        let turn = Box::pin(self.turn(&place, state, tenant, charge));
        let passed = match select(turn, due).await {
            Either::Left((spent, _)) => spent.map(|()| true)?,
            Either::Right(_) => false,
        };
        let waited = self.clock.now().saturating_duration_since(begun);
        place.settle(passed, waited);
        Ok((passed, waited))
    }

    /// Waits until it is its turn, and then until there is enough.
    async fn turn(
        &self,
        place: &Place<'_>,
        state: &ScopedState,
        tenant: TenantId,
        charge: &mut Charge<'_>,
    ) -> Result<(), StateError> {
        let _turn = place.line.turn.lock().await;
        while !state.spend(tenant, std::slice::from_mut(charge)).await? {
            self.clock.sleep(charge.balance.wait).await;
        }
        Ok(())
    }

    /// What is left, without spending.
    async fn look(
        &self,
        state: &ScopedState,
        tenant: TenantId,
        charge: &mut Charge<'_>,
    ) -> Result<(), StateError> {
        let mut nothing = [Charge::new(charge.key, charge.budget, 0)];
        state.spend(tenant, &mut nothing).await?;
        let Balance { available, more_in, .. } = nothing[0].balance;
        let missing = u64::from(charge.cost).saturating_sub(available);
        let further = u32::try_from(missing.saturating_sub(1)).unwrap_or(u32::MAX);
        let wait = more_in.saturating_add(charge.budget.interval().saturating_mul(further));
        let wait = if missing == 0 { Duration::ZERO } else { wait };
        charge.balance = Balance { available, more_in, wait };
        Ok(())
    }

    fn refused(&self, charge: &mut Charge<'_>, ahead: usize) -> (bool, Duration) {
        self.metrics.refused.inc();
        charge.balance.wait = charge.balance.wait.saturating_add(service(charge, ahead));
        (false, Duration::ZERO)
    }

    fn has_line(&self, key: &[u8]) -> bool {
        self.all.waiting.load(Ordering::Acquire) > 0 && self.all.lines.lock().contains_key(key)
    }

    /// A place at the end of the line; where there is no room, how many are in the line.
    fn join<'a>(&'a self, key: &'a [u8]) -> Result<Place<'a>, usize> {
        let mut lines = self.all.lines.lock();
        let line = lines.get(key).cloned();
        let length = line.as_ref().map_or(0, |line| line.length.load(Ordering::Acquire));
        if length >= self.queue || self.all.waiting.load(Ordering::Acquire) >= self.total {
            return Err(length);
        }
        let line = line.unwrap_or_else(|| lines.entry(key.into()).or_default().clone());
        let ahead = line.length.fetch_add(1, Ordering::AcqRel);
        self.all.waiting.fetch_add(1, Ordering::AcqRel);
        self.metrics.waiting.inc();
        Ok(Place { lines: self, key, line, ahead, settled: false })
    }
}

/// How long the budget needs for so many requests.
fn service(charge: &Charge<'_>, requests: usize) -> Duration {
    let units = u32::try_from(requests).unwrap_or(u32::MAX).saturating_mul(charge.cost);
    charge.budget.interval().saturating_mul(units)
}

/// A place in a line, which is left when this is dropped: by who passes, who gives up, and who goes away.
struct Place<'a> {
    lines: &'a Lines,
    key: &'a [u8],
    line: Arc<Line>,
    /// How many were before it when it came.
    ahead: usize,
    settled: bool,
}

impl Place<'_> {
    /// How long it would wait if nobody before it leaves.
    fn ahead_for(&self, charge: &Charge<'_>) -> Duration {
        charge.balance.wait.saturating_add(service(charge, self.ahead))
    }

    /// Leaves at once; how many were before it.
    fn turn_away(mut self) -> usize {
        self.settled = true;
        self.ahead
    }

    fn settle(mut self, passed: bool, waited: Duration) {
        self.settled = true;
        let numbers = &self.lines.metrics;
        if passed {
            numbers.passed.inc();
            numbers.waited.add(u64::try_from(waited.as_millis()).unwrap_or(u64::MAX));
        } else {
            numbers.refused.inc();
        }
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        let all = &self.lines.all;
        let mut lines = all.lines.lock();
        if self.line.length.fetch_sub(1, Ordering::AcqRel) == 1 {
            lines.remove(self.key);
        }
        all.waiting.fetch_sub(1, Ordering::AcqRel);
        self.lines.metrics.waiting.dec();
        if !self.settled {
            self.lines.metrics.left.inc();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::pin::Pin;

    use futures_util::FutureExt;

    use crate::testing::{Chain, Request, Sent, chain, chain_in, get, refused};
    use crate::world::{ManualClock, World};

    use super::*;

    type Waiting<'a> = Pin<Box<dyn Future<Output = Sent> + 'a>>;

    fn send(chain: &Chain, request: Request) -> Waiting<'_> {
        Box::pin(chain.send(request))
    }

    /// What became of a request by now: none while it waits, else whether it passed.
    fn now(waiting: &mut Waiting<'_>) -> Option<bool> {
        waiting.as_mut().now_or_never().map(|sent| sent.ctx.ended_by.is_none())
    }

    const HUNDREDTH: Duration = Duration::from_millis(10);

    #[test]
    fn requests_over_the_limit_pass_one_after_the_other_in_order() {
        let chain = chain("- rate_limit: {per: ip, limit: 10/s, burst: 1, over: {delay: 1s, queue: 5}}");
        let mut waiting: Vec<_> = (0..4).map(|_| send(&chain, get("/"))).collect();
        let states: Vec<_> = waiting.iter_mut().map(now).collect();
        assert_eq!(states, [Some(true), None, None, None]);
        drop(waiting.remove(0));
        for _ in 0..3 {
            chain.clock.advance(9 * HUNDREDTH);
            assert!(waiting.iter_mut().rev().all(|waiting| now(waiting).is_none()));
            chain.clock.advance(HUNDREDTH);
            // Whoever came last is asked first, and still the first one passes.
            let last = waiting.len() - 1;
            assert!(waiting[1..=last].iter_mut().rev().all(|waiting| now(waiting).is_none()));
            let sent = waiting.remove(0).now_or_never().expect("its turn").continues();
            assert!(sent.ctx.waited >= Duration::from_millis(100));
        }
    }

    #[test]
    fn who_comes_later_does_not_overtake_those_who_wait() {
        let chain = chain("- rate_limit: {per: ip, limit: 10/s, burst: 1, over: {delay: 1s, queue: 5}}");
        assert_eq!(now(&mut send(&chain, get("/"))), Some(true));
        let mut first = send(&chain, get("/"));
        assert_eq!(now(&mut first), None);
        chain.clock.advance(10 * HUNDREDTH);
        let mut second = send(&chain, get("/"));
        assert_eq!((now(&mut second), now(&mut first)), (None, Some(true)));
    }

    #[test]
    fn whoever_would_wait_too_long_or_finds_no_room_is_refused_at_once() {
        let chain = chain("- rate_limit: {per: ip, limit: 10/s, burst: 1, over: {delay: 250ms, queue: 9}}");
        let mut waiting: Vec<_> = (0..3).map(|_| send(&chain, get("/"))).collect();
        waiting.iter_mut().for_each(|waiting| {
            now(waiting);
        });
        // It would be its turn in 300 ms.
        chain.send(get("/")).now_or_never().expect("at once").responds(429).header("retry-after", "1");
        let narrow = self::chain("- rate_limit: {per: ip, limit: 1/s, over: {delay: 30s, queue: 2}}");
        let mut waiting: Vec<_> = (0..3).map(|_| send(&narrow, get("/"))).collect();
        waiting.iter_mut().for_each(|waiting| {
            now(waiting);
        });
        // Two are before it, and then it has a second to go itself.
        narrow.send(get("/")).now_or_never().expect("at once").responds(429).header("retry-after", "3");
    }

    #[test]
    fn all_lines_together_are_bounded_too() {
        let chain =
            chain("- rate_limit: {per: header:x, limit: 1/s, over: {delay: 30s, queue: 2, total: 3}}");
        let of = |key: &str| get("/").header("x", key);
        let mut waiting = Vec::new();
        for key in ["a", "b", "c"] {
            assert_eq!(now(&mut send(&chain, of(key))), Some(true));
            waiting.push(send(&chain, of(key)));
        }
        assert!(waiting.iter_mut().all(|waiting| now(waiting).is_none()));
        assert_eq!(now(&mut send(&chain, of("d"))), Some(true), "who need not wait needs no room");
        // One is before it, and nobody before the other: what others wait for keeps neither.
        for (key, wait) in [("a", "2"), ("d", "1")] {
            let sent = chain.send(of(key)).now_or_never().expect("at once");
            sent.responds(429).header("retry-after", wait);
        }
    }

    #[test]
    fn who_waits_keeps_the_place_when_the_document_is_loaded_anew() {
        let clock = Arc::new(ManualClock::new());
        let world = World::dry_at(clock.clone());
        let filter = "- rate_limit: {per: ip, limit: 10/s, burst: 1, over: {delay: 1s, queue: 2}}";
        let [before, after] = [0, 1].map(|_| chain_in(&world, &clock, filter));
        assert_eq!(now(&mut send(&before, get("/"))), Some(true));
        let (mut first, mut second) = (send(&before, get("/")), send(&after, get("/")));
        assert_eq!((now(&mut first), now(&mut second)), (None, None));
        assert_eq!(now(&mut send(&after, get("/"))), Some(false), "there is no room");
        for waiting in [&mut first, &mut second] {
            clock.advance(10 * HUNDREDTH);
            assert_eq!(now(waiting), Some(true));
        }
    }

    #[test]
    fn keys_have_lines_of_their_own() {
        let chain = chain("- rate_limit: {per: header:x, limit: 1/s, over: {delay: 5s, queue: 9}}");
        let of = |key: &str| get("/").header("x", key);
        let mut flood: Vec<_> = (0..6).map(|_| send(&chain, of("loud"))).collect();
        flood.iter_mut().for_each(|waiting| {
            now(waiting);
        });
        assert_eq!(now(&mut send(&chain, of("quiet"))), Some(true));
        let mut second = send(&chain, of("quiet"));
        assert_eq!(now(&mut second), None);
        chain.clock.advance(Duration::from_secs(1));
        assert_eq!(now(&mut second), Some(true));
    }

    #[test]
    fn whoever_goes_away_gives_up_his_place_at_once() {
        let chain = chain("- rate_limit: {per: ip, limit: 1/s, over: {delay: 30s, queue: 2}}");
        let mut waiting: Vec<_> = (0..3).map(|_| send(&chain, get("/"))).collect();
        waiting.iter_mut().for_each(|waiting| {
            now(waiting);
        });
        let mut last = waiting.pop().expect("three");
        drop(waiting);
        let mut next = send(&chain, get("/"));
        assert_eq!(now(&mut next), None, "there is room again");
        chain.clock.advance(Duration::from_secs(1));
        assert_eq!((now(&mut next), now(&mut last)), (None, Some(true)));
        chain.clock.advance(Duration::from_secs(1));
        assert_eq!(now(&mut next), Some(true));
    }

    #[test]
    fn nobody_waits_beyond_the_deadline_of_his_request_nor_in_a_dry_run() {
        let options = "{per: ip, limit: 1/s, over: {delay: 30s, queue: 2}}";
        let live = chain(&format!("- rate_limit: {options}"));
        assert_eq!(now(&mut send(&live, get("/"))), Some(true));
        let soon = live.clock.now() + Duration::from_millis(500);
        let hasty = get("/").with(|ctx| ctx.deadline = Some(soon));
        assert_eq!(now(&mut send(&live, hasty)), Some(false));
        let dry = chain(&format!("- rate_limit: {options}\n  dry_run: true"));
        for _ in 0..5 {
            assert_eq!(now(&mut send(&dry, get("/"))), Some(true));
        }
    }

    #[test]
    fn waits_that_make_no_sense_are_refused() {
        for (options, told) in [
            ("over: {delay: 2m, queue: 1}", "over.delay: expected at most `1m`"),
            ("over: {delay: 1s, queue: 0}", "over.queue: expected a whole number, one or more"),
            ("strategy: estimate, over: {delay: 1s, queue: 1}", "strategy: `estimate` has no `burst`"),
            ("strategy: estimate, burst: 9", "strategy: `estimate` has no `burst`"),
        ] {
            let message = refused(&format!("- rate_limit: {{per: ip, limit: 1/s, {options}}}"));
            assert!(message.starts_with(told), "{options}: {message}");
        }
    }
}
