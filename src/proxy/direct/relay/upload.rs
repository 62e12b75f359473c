//! The body of the request, on its way to the backend.

use std::io::IoSlice;
use std::mem::MaybeUninit;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Instant;

use bytes::Bytes;
use tokio::io::{AsyncWrite, ReadBuf};
use tollhouse_filters::problem::{self, Problem};

use super::super::client::Client;
use super::super::held::{self, Held, chunk};
use super::super::progress::Upload;
use super::super::trouble::Trouble;
use super::{Filters, MUCH_ROOM, ROOM, Relay};
use crate::engine::Exchange;
use crate::upstream::InFlight;

impl<C: Client> Relay<'_, C> {
    /// Sends what waits for the backend, and reads on what the client has for it; when there is nothing more,
    /// waits for the client to go.
    pub(super) fn poll_up(&mut self, cx: &mut Context<'_>, filters: &mut Filters<'_>) -> Result<(), Trouble> {
        loop {
            // The head waits for what of the body is here already, to go out with it.
            let together = self.fresh && self.upload == Upload::Open;
            if !together && !self.write_held(cx) {
                // Who has sent everything may go meanwhile.
                let left = self.client.is_at_end() && self.client.poll_left(cx).is_ready();
                return if left { Err(Trouble::Client) } else { Ok(()) };
            }
            if self.upload == Upload::Refused {
                return Ok(());
            }
            let piece = if self.early.is_empty() {
                // What filters make of a piece may be much more.
                let much = self.client.unread().is_some_and(|unread| unread > ROOM as u64);
                if much && !filters.see_requests && held::is_little() {
                    self.poll_upload::<MUCH_ROOM>(cx, filters)
                } else {
                    self.poll_upload::<ROOM>(cx, filters)
                }
            } else {
                let early = self.early.take();
                Poll::Ready(self.send(cx, &early, filters))
            };
            match piece {
                Poll::Pending if std::mem::take(&mut self.fresh) => {}
                Poll::Pending => {
                    self.awaited |= self.upload == Upload::Open;
                    return Ok(());
                }
                Poll::Ready(sent) => sent?,
            }
            if filters.see_requests && self.upload == Upload::Open {
                // What they make of a piece may take long: others have their turn before the next one.
                cx.waker().wake_by_ref();
                return Ok(());
            }
        }
    }

    /// Reads a piece of the body and sends it; its room is on the stack only while it runs.
    #[inline(never)]
    fn poll_upload<const SIZE: usize>(
        &mut self,
        cx: &mut Context<'_>,
        filters: &mut Filters<'_>,
    ) -> Poll<Result<(), Trouble>> {
        let mut room = [const { MaybeUninit::uninit() }; SIZE];
        let mut room = ReadBuf::uninit(&mut room);
        Poll::Ready(match ready!(self.poll_client(cx, &mut room)) {
            Ok(()) if !room.filled().is_empty() => {
                self.client.rest();
                self.send(cx, room.filled(), filters)
            }
            // An error, or the end: of what it has to say, or of itself.
            _ => Err(Trouble::Client),
        })
    }

    /// Reads what the client has sent so far, as much as there is room for.
    fn poll_client(&mut self, cx: &mut Context<'_>, room: &mut ReadBuf<'_>) -> Poll<std::io::Result<()>> {
        loop {
            let before = room.filled().len();
            let read = Pin::new(&mut *self.client).poll_read(cx, room);
            let more = room.filled().len() > before && room.remaining() > 0 && !self.client.is_at_end();
            match read {
                Poll::Ready(Ok(())) if more => {}
                // What went wrong is told to who reads again.
                _ if room.filled().is_empty() => return read,
                _ => return Poll::Ready(Ok(())),
            }
        }
    }

    /// Whether nothing waits for the backend any more.
    fn write_held(&mut self, cx: &mut Context<'_>) -> bool {
        self.fresh = false;
        while !self.up.is_empty() {
            match Pin::new(&mut self.server).poll_write(cx, self.up.rest()) {
                Poll::Pending => return false,
                Poll::Ready(Ok(n)) if n > 0 => {
                    self.written = true;
                    self.up.took(n);
                }
                Poll::Ready(_) => self.refuse(),
            }
            self.since = None;
        }
        true
    }

    /// The backend takes no more; why, it may say.
    fn refuse(&mut self) {
        self.up = Held::default();
        if std::mem::replace(&mut self.upload, Upload::Refused) == Upload::Open {
            self.await_head();
        }
    }

    /// The client is not waited for any more: from now on it is the backend's time.
    fn await_head(&mut self) {
        let limit = self.waits.per_try.filter(|_| self.down.body.is_none() && self.head_due.is_none());
        if self.awaited || limit.is_some() {
            let now = Instant::now();
            self.sent_at = Some(now);
            self.head_due = self.head_due.or(limit.map(|limit| now + limit));
        }
    }

    /// When the client had sent everything, if it was waited for. Where it had not when the time for all of it was over, it
    /// may have had most of that: since when the backend took nothing of what there was.
    pub(in super::super) fn uploaded_at(&self) -> Option<Instant> {
        // No other attempt goes on with the upload then.
        let is_over = || self.waits.deadline.is_some_and(|deadline| deadline <= Instant::now());
        self.sent_at.or_else(|| self.since.filter(|_| self.upload == Upload::Open && is_over()))
    }

    /// Tells how much of the time is the client's, who had more to send.
    pub(in super::super) fn tell_upload(&self, guard: &mut InFlight) {
        match self.sent_at {
            _ if self.upload == Upload::Open && !self.client.is_at_end() => guard.uploads(),
            Some(at) => guard.uploaded_at(at),
            None => {}
        }
    }

    /// Sends a piece of the body, as filters leave it.
    fn send(&mut self, cx: &mut Context<'_>, bytes: &[u8], filters: &mut Filters<'_>) -> Result<(), Trouble> {
        self.taken += bytes.len() as u64;
        self.since = None;
        if self.client.is_at_end() && self.early.is_empty() {
            self.upload = Upload::Over;
            self.await_head();
        }
        self.fresh = false;
        if filters.see_requests {
            let piece = self.filtered(bytes, filters.exchange)?;
            self.write(cx, &piece);
        } else {
            self.write(cx, bytes);
        }
        self.kept.add(bytes, self.taken, self.written);
        Ok(())
    }

    /// What filters make of a piece.
    fn filtered(&mut self, bytes: &[u8], exchange: &mut Exchange) -> Result<Bytes, Trouble> {
        let over = self.upload == Upload::Over;
        let mut piece = Bytes::copy_from_slice(bytes);
        let refused = exchange.request_chunk(&mut piece, over);
        // What they made of the body is under the limit too.
        self.passed += piece.len() as u64;
        let refused = if self.passed > exchange.body_limit() {
            refused.or_else(|| Some(Problem::new(&problem::BODY_TOO_LARGE).into()))
        } else {
            refused
        };
        let kept = self
            .promised
            .is_none_or(|promised| if over { self.passed == promised } else { self.passed <= promised });
        if refused.is_some() || !kept {
            // What is longer than it said would be taken for another request.
            self.refused = refused.or_else(|| Some(Problem::new(&problem::INTERNAL).into()));
            return Err(Trouble::Refused);
        }
        Ok(if self.promised.is_none() { chunk(&piece, over).into() } else { piece })
    }

    /// Writes after what waits already: the head, at the begin.
    fn write(&mut self, cx: &mut Context<'_>, bytes: &[u8]) {
        let held = self.up.rest().len();
        if held + bytes.len() == 0 {
            return;
        }
        let pieces = [IoSlice::new(self.up.rest()), IoSlice::new(bytes)];
        match Pin::new(&mut self.server).poll_write_vectored(cx, &pieces) {
            Poll::Ready(Ok(n)) if n > 0 => {
                self.written = true;
                self.up.took(n.min(held));
                self.up.add(&bytes[n.saturating_sub(held)..]);
            }
            Poll::Ready(_) => self.refuse(),
            Poll::Pending => self.up.add(bytes),
        }
    }
}
