//! What wakes a connection that waits too long.

use std::fmt;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Instant;

use tokio::time::{Sleep, sleep_until};

/// Wakes the task of one connection, whatever it waits for.
///
/// To set a timer costs more than most waits last, so one is kept from wait to wait and only set anew when it
/// goes off, or would go off too late.
#[derive(Default)]
pub struct Alarm(Option<Pin<Box<Sleep>>>);

impl Alarm {
    /// Ready when it is `due`, for who waits until then.
    pub fn poll(&mut self, cx: &mut Context<'_>, due: Instant) -> Poll<()> {
        let due = tokio::time::Instant::from_std(due);
        let alarm = self.0.get_or_insert_with(|| Box::pin(sleep_until(due)));
        if alarm.deadline() > due {
            alarm.as_mut().reset(due);
        }
        ready!(alarm.as_mut().poll(cx));
        if alarm.deadline() < due {
            // Set in an earlier wait, which is over.
            alarm.as_mut().reset(due);
            ready!(alarm.as_mut().poll(cx));
        }
        Poll::Ready(())
    }
}

impl fmt::Debug for Alarm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Alarm").field(&self.0.as_ref().map(|alarm| alarm.deadline())).finish()
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;
    use std::time::Duration;

    use tokio::time;

    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn in_seconds(seconds: u32) -> Instant {
        (time::Instant::now() + SECOND * seconds).into_std()
    }

    /// Waits until then, and gives how long that took.
    async fn wait(alarm: &mut Alarm, due: Instant) -> Duration {
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
