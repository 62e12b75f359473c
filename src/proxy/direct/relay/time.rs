//! How long an exchange waits for whom.

use std::task::{Context, Poll, ready};
use std::time::Instant;

use super::super::client::Client;
use super::super::progress::Upload;
use super::super::trouble::Trouble;
use super::Relay;
use crate::proxy::failure::{PER_TRY, TOTAL};

impl<C: Client> Relay<'_, C> {
    /// Gives others their turn, while there is time left for all of it.
    pub(super) fn poll_turn(&self, cx: &Context<'_>) -> Poll<Result<(), Trouble>> {
        if self.waits.deadline.is_some_and(|deadline| deadline <= Instant::now()) {
            return Poll::Ready(Err(Trouble::Timeout(TOTAL)));
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    }

    /// Minds the time while nothing moves.
    pub(super) fn poll_time(&mut self, cx: &mut Context<'_>) -> Poll<Trouble> {
        let of_client = self.up.is_empty() && self.upload == Upload::Open && !self.client.is_at_end();
        let (due, trouble) = if of_client {
            (self.client.body_due(), Trouble::SlowClient)
        } else {
            let now = || Instant::now();
            let since = *self.since.get_or_insert_with(now);
            let which = if self.up.is_empty() { "read timeout" } else { "write timeout" };
            (self.waits.idle.map(|idle| since + idle), Trouble::Timeout(which))
        };
        let (due, trouble) = match self.head_due {
            Some(head) if due.is_none_or(|due| head < due) => (Some(head), Trouble::Timeout(PER_TRY)),
            _ => (due, trouble),
        };
        let (due, trouble) = match self.waits.deadline {
            Some(deadline) if due.is_none_or(|due| deadline < due) => {
                let trouble = if of_client { Trouble::LateClient } else { Trouble::Timeout(TOTAL) };
                (Some(deadline), trouble)
            }
            _ => (due, trouble),
        };
        let Some(due) = due else { return Poll::Pending };
        ready!(self.client.alarm().poll(cx, due));
        Poll::Ready(trouble)
    }
}
