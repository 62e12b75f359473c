//! Time as filters see it: the machine's, or one that tests move by hand.

use std::time::{Duration, Instant, SystemTime};

use futures_util::future::BoxFuture;
use tokio::sync::watch;

/// 2026-01-01T00:00:00Z, where a [`ManualClock`] starts.
const MANUAL_START: Duration = Duration::from_secs(1_767_225_600);

/// A source of time.
pub trait Clock: Send + Sync {
    /// Monotonic time, for intervals and deadlines.
    fn now(&self) -> Instant;
    /// Calendar time, for claims, dates and logs; may jump.
    fn wall(&self) -> SystemTime;
    /// Completes once [`now`](Self::now) has moved on by this much.
    fn sleep(&self, duration: Duration) -> BoxFuture<'static, ()>;
}

/// The machine's clock, with tokio's timers.
#[derive(Debug, Clone, Copy, Default)]
pub struct SystemClock;

impl Clock for SystemClock {
    fn now(&self) -> Instant {
        Instant::now()
    }

    fn wall(&self) -> SystemTime {
        SystemTime::now()
    }

    fn sleep(&self, duration: Duration) -> BoxFuture<'static, ()> {
        Box::pin(async move { tokio::time::sleep(duration).await })
    }
}

/// A clock that stands still until it is advanced; its calendar starts at 2026-01-01T00:00:00Z, or when told.
#[derive(Debug)]
pub struct ManualClock {
    base: Instant,
    start: SystemTime,
    elapsed: watch::Sender<Duration>,
}

impl ManualClock {
    /// A clock at its start.
    #[must_use]
    pub fn new() -> Self {
        Self::starting(SystemTime::UNIX_EPOCH + MANUAL_START)
    }

    /// A clock that stands at this time of the calendar.
    #[must_use]
    pub fn starting(start: SystemTime) -> Self {
        Self { base: Instant::now(), start, elapsed: watch::Sender::new(Duration::ZERO) }
    }

    /// Moves time on and wakes the sleepers whose time has come.
    pub fn advance(&self, by: Duration) {
        self.elapsed.send_modify(|elapsed| *elapsed = elapsed.saturating_add(by));
    }

    fn elapsed(&self) -> Duration {
        *self.elapsed.borrow()
    }
}

impl Default for ManualClock {
    fn default() -> Self {
        Self::new()
    }
}

impl Clock for ManualClock {
    fn now(&self) -> Instant {
        let elapsed = self.elapsed();
        self.base.checked_add(elapsed).unwrap_or(self.base)
    }

    fn wall(&self) -> SystemTime {
        self.start.checked_add(self.elapsed()).unwrap_or(SystemTime::UNIX_EPOCH)
    }

    fn sleep(&self, duration: Duration) -> BoxFuture<'static, ()> {
        let deadline = self.elapsed().saturating_add(duration);
        let mut elapsed = self.elapsed.subscribe();
        Box::pin(async move {
            if elapsed.wait_for(|now| *now >= deadline).await.is_err() {
                // The clock is gone, so this time never comes.
                std::future::pending::<()>().await;
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;

    use super::*;

    #[test]
    fn a_manual_clock_starts_with_2026_and_moves_only_when_advanced() {
        let clock = ManualClock::new();
        let start = clock.now();
        let epoch = clock.wall().duration_since(SystemTime::UNIX_EPOCH).unwrap();
        assert_eq!(epoch.as_secs(), 1_767_225_600);
        assert_eq!(clock.now(), start);
        clock.advance(Duration::from_millis(1500));
        assert_eq!(clock.now() - start, Duration::from_millis(1500));
    }

    #[test]
    fn a_sleeper_wakes_when_its_time_has_come_and_not_before() {
        let clock = ManualClock::new();
        let mut sleep = clock.sleep(Duration::from_secs(2));
        assert!((&mut sleep).now_or_never().is_none());
        clock.advance(Duration::from_secs(1));
        assert!((&mut sleep).now_or_never().is_none());
        clock.advance(Duration::from_secs(1));
        assert!(sleep.now_or_never().is_some());
    }

    #[test]
    fn a_sleep_counts_from_the_call_not_from_the_first_poll() {
        let clock = ManualClock::new();
        let sleep = clock.sleep(Duration::from_secs(1));
        clock.advance(Duration::from_secs(1));
        assert!(sleep.now_or_never().is_some());
    }

    #[test]
    fn advancing_beyond_all_time_does_not_panic() {
        let clock = ManualClock::new();
        clock.advance(Duration::MAX);
        clock.advance(Duration::MAX);
        let _ = (clock.now(), clock.wall());
    }

    #[tokio::test(start_paused = true)]
    async fn the_system_clock_sleeps_on_tokio_timers() {
        let before = tokio::time::Instant::now();
        SystemClock.sleep(Duration::from_secs(3600)).await;
        assert!(before.elapsed() >= Duration::from_secs(3600));
    }
}
