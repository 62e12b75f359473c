//! Bodies of requests that filters want to see as a whole.

use std::future::poll_fn;
use std::mem::MaybeUninit;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Instant;

use bytes::Bytes;
use tokio::io::ReadBuf;
use tollhouse_filters::outcome::Reply;

use super::Job;
use super::client::Client;
use super::held;
use super::relay::{MUCH_ROOM, ROOM};
use super::trouble::{Failure, Trouble};
use crate::proxy::replay::{self, CollectError, Gathered};
use crate::proxy::request::refusal;

impl Job<'_> {
    /// Reads the body, up to `limit` bytes of it, and shows it to the filters; their answer, if they have one.
    pub(super) async fn take_whole<C: Client>(
        &mut self,
        client: &mut C,
        limit: u64,
    ) -> Result<Option<Reply>, Failure> {
        if client.unread().is_none_or(|unread| unread > limit) {
            return Ok(Some(refusal(&CollectError::TooLarge)));
        }
        let (asked, events) = (Instant::now(), self.call.events);
        let deadline = self.call.exchange().ctx.deadline.filter(|_| !events);
        let mut gathered = Gathered::new(limit, &self.gateway.budget);
        let mut piece = client.take_early();
        loop {
            self.bytes_in += piece.len() as u64;
            if let Err(error) = gathered.push(piece) {
                return Ok(Some(refusal(&error)));
            }
            if client.is_at_end() {
                break;
            }
            let much = client.unread().is_some_and(|unread| unread > ROOM as u64) && held::is_little();
            piece = if much {
                poll_fn(|cx| poll_piece::<MUCH_ROOM, _>(client, cx, deadline)).await?
            } else {
                poll_fn(|cx| poll_piece::<ROOM, _>(client, cx, deadline)).await?
            };
        }
        if self.bytes_in > 0 {
            poll_fn(|cx| poll_end(client, cx, deadline)).await?;
        }
        self.call.gathering = asked.elapsed();
        let Self { gateway, call, request, .. } = self;
        let whole = match gateway.seen(gathered.finish(), limit, call.exchange(), request).await {
            Ok(whole) => whole,
            Err(reply) => return Ok(Some(reply)),
        };
        replay::prepare_head(request, whole.len()).map_err(|_| Failure::Internal)?;
        call.body = Some(whole);
        Ok(None)
    }
}

/// Reads a piece of the body; its room is on the stack only while it runs.
#[inline(never)]
fn poll_piece<const SIZE: usize, C: Client>(
    client: &mut C,
    cx: &mut Context<'_>,
    deadline: Option<Instant>,
) -> Poll<Result<Bytes, Trouble>> {
    let mut room = [const { MaybeUninit::uninit() }; SIZE];
    let mut room = ReadBuf::uninit(&mut room);
    match Pin::new(&mut *client).poll_read(cx, &mut room) {
        Poll::Ready(Ok(())) if !room.filled().is_empty() => {
            Poll::Ready(Ok(Bytes::copy_from_slice(room.filled())))
        }
        // An error, or the end before that of the body.
        Poll::Ready(_) => Poll::Ready(Err(Trouble::Client)),
        Poll::Pending => poll_time(client, cx, deadline).map(Err),
    }
}

/// Waits for a request of which everything was read to be over.
fn poll_end<C: Client>(
    client: &mut C,
    cx: &mut Context<'_>,
    deadline: Option<Instant>,
) -> Poll<Result<(), Trouble>> {
    match client.poll_end(cx) {
        Poll::Ready(ended) => Poll::Ready(ended.map_err(|_| Trouble::Client)),
        Poll::Pending => poll_time(client, cx, deadline).map(Err),
    }
}

/// Minds the time while the client is waited for.
fn poll_time<C: Client>(client: &mut C, cx: &mut Context<'_>, deadline: Option<Instant>) -> Poll<Trouble> {
    let due = client.body_due();
    let (due, trouble) = match deadline {
        Some(deadline) if due.is_none_or(|due| deadline < due) => (Some(deadline), Trouble::LateClient),
        _ => (due, Trouble::SlowClient),
    };
    let Some(due) = due else { return Poll::Pending };
    ready!(client.alarm().poll(cx, due));
    Poll::Ready(trouble)
}
