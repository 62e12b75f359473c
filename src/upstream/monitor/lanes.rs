//! Bounds how much is under way at once, such that what is slow delays nothing but what is slow too.

use std::pin::pin;
use std::time::Duration;

use tokio::sync::Semaphore;
use tokio::time::{Instant, timeout};

/// What takes longer is slow.
const MOMENT: Duration = Duration::from_millis(100);

/// Two lanes: what was slow the last time waits for a place among its like alone.
pub(super) struct Lanes {
    fast: Semaphore,
    slow: Semaphore,
}

/// Which lane something takes; the fast one until it was slow.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) enum Lane {
    #[default]
    Fast,
    Slow,
}

impl Lanes {
    /// Lanes with so many places, in the fast one and in the slow one.
    pub(super) fn new([fast, slow]: [usize; 2]) -> Self {
        Self { fast: Semaphore::new(fast), slow: Semaphore::new(slow) }
    }

    /// Does the work once there is a place in its lane, and notes its lane for the next time. Work that
    /// turns out to be slow while the slow lane is full is given up and done again in its turn: no place
    /// in the fast lane is taken for longer than a moment.
    pub(super) async fn run<F: Future>(&self, lane: &mut Lane, work: impl Fn() -> F) -> F::Output {
        if *lane == Lane::Fast {
            let place = self.fast.acquire().await;
            let mut attempt = pin!(work());
            if let Ok(done) = timeout(MOMENT, &mut attempt).await {
                return done;
            }
            *lane = Lane::Slow;
            if let Ok(_place) = self.slow.try_acquire() {
                drop(place);
                return attempt.await;
            }
        }
        let _place = self.slow.acquire().await;
        let started = Instant::now();
        let done = work().await;
        if started.elapsed() < MOMENT {
            *lane = Lane::Fast;
        }
        done
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;
    use std::future::{pending, ready};

    use super::*;

    const LONG: Duration = Duration::from_secs(10);

    #[tokio::test]
    async fn slow_work_takes_no_place_in_the_fast_lane_even_if_the_slow_lane_is_full() {
        let lanes = Lanes::new([1, 1]);
        let begun = Cell::new(0);
        let hang = || async {
            let mut lane = Lane::default();
            let work = || {
                begun.set(begun.get() + 1);
                pending::<()>()
            };
            lanes.run(&mut lane, work).await;
        };
        let quick = async {
            while begun.get() < 3 {
                tokio::task::yield_now().await;
            }
            let mut lane = Lane::default();
            lanes.run(&mut lane, || ready(7)).await
        };
        let done = timeout(LONG, async {
            tokio::select! {
                () = hang() => None,
                () = hang() => None,
                () = hang() => None,
                done = quick => Some(done),
            }
        });
        assert_eq!(done.await, Ok(Some(7)));
        assert_eq!(begun.get(), 3, "two of them wait for a place in the slow lane");
    }

    #[tokio::test]
    async fn work_changes_lanes_with_the_time_it_takes() {
        let lanes = Lanes::new([1, 1]);
        let (mut lane, mut lanes_taken) = (Lane::default(), Vec::new());
        for pause in [MOMENT * 2, Duration::ZERO, Duration::ZERO] {
            lanes.run(&mut lane, || tokio::time::sleep(pause)).await;
            lanes_taken.push(lane);
        }
        assert_eq!(lanes_taken, [Lane::Slow, Lane::Fast, Lane::Fast]);
    }
}
