//! What wakes a connection that waits too long.

use std::fmt;
use std::pin::{Pin, pin};
use std::task::{Context, Poll, Waker, ready};

use tokio::task::coop::unconstrained;
use tokio::time::{Instant, Sleep, sleep_until};

/// Wakes the task of one connection, whatever it waits for.
///
/// To set a timer costs more than most waits last, so one is kept from wait to wait and only set anew when it
/// goes off, or would go off too late. Nor is it told each time whom it wakes.
#[derive(Default)]
pub struct Alarm(Option<Timer>);

/// A timer that was asked once at least.
struct Timer {
    sleep: Pin<Box<Sleep>>,
    /// Whom it wakes.
    waker: Waker,
}

impl Alarm {
    /// Ready when it is `due`, for who waits until then.
    pub fn poll(&mut self, cx: &mut Context<'_>, due: std::time::Instant) -> Poll<()> {
        let due = Instant::from_std(due);
        match &self.0 {
            Some(timer) if timer.goes_off(cx.waker(), due) => Poll::Pending,
            _ => self.poll_timer(cx, due),
        }
    }

    fn poll_timer(&mut self, cx: &mut Context<'_>, due: Instant) -> Poll<()> {
        let new = || Timer { sleep: Box::pin(sleep_until(due)), waker: cx.waker().clone() };
        let timer = self.0.get_or_insert_with(new);
        timer.waker.clone_from(cx.waker());
        if timer.sleep.deadline() > due {
            timer.sleep.as_mut().reset(due);
        }
        ready!(timer.poll(cx));
        if timer.sleep.deadline() < due {
            // Set in an earlier wait, which is over.
            timer.sleep.as_mut().reset(due);
            ready!(timer.poll(cx));
        }
        Poll::Ready(())
    }
}

impl Timer {
    /// Whether it wakes this one, and not too late; that it may do so too early costs little.
    fn goes_off(&self, waker: &Waker, due: Instant) -> bool {
        self.sleep.deadline() <= due && !self.sleep.is_elapsed() && self.waker.will_wake(waker)
    }

    /// Asked whatever the task has done already: it must know whom it wakes afterwards.
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        pin!(unconstrained(self.sleep.as_mut())).poll(cx)
    }
}

impl fmt::Debug for Alarm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Alarm").field(&self.0.as_ref().map(|timer| timer.sleep.deadline())).finish()
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;
    use std::time::Duration;

    use tokio::task::coop::{consume_budget, has_budget_remaining};
    use tokio::time;

    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn in_seconds(seconds: u32) -> std::time::Instant {
        (time::Instant::now() + SECOND * seconds).into_std()
    }

    /// Waits until then, and gives how long that took.
    async fn wait(alarm: &mut Alarm, due: std::time::Instant) -> Duration {
        let begun = time::Instant::now();
        poll_fn(|cx| alarm.poll(cx, due)).await;
        begun.elapsed()
    }

    fn is_about(elapsed: Duration, seconds: u32) -> bool {
        elapsed >= SECOND * seconds && elapsed < SECOND * seconds + SECOND / 10
    }

    #[tokio::test(start_paused = true)]
    async fn it_goes_off_when_it_is_due_whatever_it_was_set_for_before() {
        let mut alarm = Alarm::default();
        for seconds in [3, 1, 5] {
            let due = in_seconds(seconds);
            assert!(is_about(wait(&mut alarm, due).await, seconds), "{seconds} s");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_wait_that_ended_before_does_not_end_the_next_one() {
        let mut alarm = Alarm::default();
        for (given_up, due) in [(2, 4), (8, 3)] {
            let other = in_seconds(given_up);
            assert!(poll_fn(|cx| Poll::Ready(alarm.poll(cx, other))).await.is_pending());
            let due_at = in_seconds(due);
            assert!(is_about(wait(&mut alarm, due_at).await, due), "{due} s");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn whoever_waits_last_is_woken() {
        let (mut alarm, due) = (Alarm::default(), in_seconds(4));
        for _ in 0..2 {
            assert!(poll_fn(|cx| Poll::Ready(alarm.poll(cx, due))).await.is_pending());
        }
        let other = tokio::spawn(async move { wait(&mut alarm, due).await });
        assert!(is_about(other.await.unwrap(), 4));
    }

    #[tokio::test(start_paused = true)]
    async fn who_did_much_before_it_waited_is_woken_too() {
        let (mut alarm, due) = (Alarm::default(), in_seconds(4));
        let begun = time::Instant::now();
        let mut first = true;
        poll_fn(|cx| {
            if std::mem::take(&mut first) {
                while has_budget_remaining() {
                    let _ = pin!(consume_budget()).poll(cx);
                }
            }
            alarm.poll(cx, due)
        })
        .await;
        assert!(is_about(begun.elapsed(), 4));
    }

    #[tokio::test(start_paused = true)]
    async fn two_who_wait_are_both_told_in_time() {
        let mut alarm = Alarm::default();
        let (late, early) = (in_seconds(9), in_seconds(2));
        let begun = time::Instant::now();
        let mut told = [None; 2];
        poll_fn(|cx| {
            for (at, due) in [late, early].into_iter().enumerate() {
                if told[at].is_none() && alarm.poll(cx, due).is_ready() {
                    told[at] = Some(begun.elapsed());
                }
            }
            if told.iter().all(Option::is_some) { Poll::Ready(()) } else { Poll::Pending }
        })
        .await;
        assert!(is_about(told[0].unwrap(), 9) && is_about(told[1].unwrap(), 2), "{told:?}");
    }
}
