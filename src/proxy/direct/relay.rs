//! The bytes of one exchange between a client and a backend, both ways at once.
//!
//! Nothing is held while it waits: what is read goes on at once, from the thread's stack, and only what the
//! other side does not take is kept.

mod content;
mod time;
mod upload;

use std::future::poll_fn;
use std::io::IoSlice;
use std::mem::MaybeUninit;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Instant;

use bytes::Bytes;
use http::Method;
use tokio::io::{AsyncRead, ReadBuf};
use tokio::net::TcpStream;
use tollhouse_filters::outcome::Reply;

use super::client::{Begin, Client};
use super::early::{Early, Start};
use super::held::{self, Held, Kept};
use super::progress::{Body, Down, Upload};
use super::trouble::{Trouble, Waits};
use super::wire::{self, Answer, Form, Framing};
use crate::engine::Exchange;

/// What is read at once, and so the most that is held for a side that takes it slowly, where many do.
pub(super) const ROOM: usize = 16 * 1024;
/// What is read at once of long bodies, as long as [little is held](held::is_little).
pub(super) const MUCH_ROOM: usize = 64 * 1024;

/// The filters that look at pieces of bodies, where any does.
pub(super) struct Filters<'a> {
    pub(super) exchange: &'a mut Exchange,
    /// They see the request's body, which goes by as it comes.
    pub(super) see_requests: bool,
    /// They see the answer's.
    pub(super) see_answers: bool,
}

/// One exchange on its way.
pub(super) struct Relay<'a, C> {
    client: &'a mut C,
    server: TcpStream,
    waits: Waits,
    upload: Upload,
    /// What of the body is here, and not on its way yet.
    early: Early,
    /// On its way to the backend; first of all the head.
    up: Held,
    /// Nothing was written to the backend yet.
    fresh: bool,
    /// All of the body that was read, as long as it can be sent again.
    kept: Kept,
    /// The backend took something.
    written: bool,
    /// The backend said something.
    heard: bool,
    down: Down,
    /// Since when the backend is waited for.
    since: Option<Instant>,
    /// Until when it may take to begin an answer; none while the client has more to send.
    head_due: Option<Instant>,
    /// The client was waited for.
    awaited: bool,
    /// When it had sent everything, if it was.
    sent_at: Option<Instant>,
    /// How much filters may make of the body; if they see it, none is in chunks.
    promised: Option<u64>,
    /// What a filter answered instead of letting a piece of the body pass.
    pub(super) refused: Option<Reply>,
    /// Bytes of content, from the client,
    pub(super) taken: u64,
    /// and what filters made of it.
    passed: u64,
}

/// The head that an attempt begins with.
pub(super) struct UpHead {
    pub(super) bytes: Vec<u8>,
    /// The length that it declares of a body that filters see in pieces.
    pub(super) promised: Option<u64>,
}

impl<'a, C: Client> Relay<'a, C> {
    /// An exchange that begins with this head, and a body that begins so.
    pub(super) fn new(
        client: &'a mut C,
        server: TcpStream,
        head: UpHead,
        waits: Waits,
        start: Start,
    ) -> Self {
        let (early, kept) = match start {
            Start::Part(before, keep) => {
                (Early::part(before, client.take_early()), Kept::Here(Vec::new(), keep))
            }
            Start::Whole(body) => (Early::whole(body), Kept::Elsewhere),
        };
        let read = client.is_at_end();
        Self {
            upload: if read && early.is_empty() { Upload::Over } else { Upload::Open },
            early,
            client,
            server,
            waits,
            up: Held::from(head.bytes),
            fresh: true,
            kept,
            written: false,
            heard: false,
            down: Down::default(),
            since: None,
            head_due: waits.head.filter(|_| read),
            awaited: false,
            sent_at: None,
            promised: head.promised,
            refused: None,
            taken: 0,
            passed: 0,
        }
    }

    /// The next head that the backend sends.
    pub(super) async fn answer(
        &mut self,
        method: &Method,
        form: Form,
        mut filters: Filters<'_>,
    ) -> Result<Answer, Trouble> {
        poll_fn(|cx| self.poll_answer(cx, (method, form), &mut filters)).await
    }

    /// Sends an interim head to the client.
    pub(super) async fn announce(&mut self, head: Vec<u8>, rest: Bytes) -> Result<(), Trouble> {
        self.down.out = Held::from(head);
        poll_fn(|cx| self.poll_flushed(cx)).await?;
        self.down.head = rest.into();
        Ok(())
    }

    /// Sends an answer that began, and its body as it comes, through the filters that look at pieces.
    pub(super) async fn finish(
        &mut self,
        begin: Begin,
        framing: Framing,
        rest: Bytes,
        mut filters: Filters<'_>,
    ) -> Result<(), Trouble> {
        let Begin { head, content, chunked } = begin;
        self.kept = Kept::Lost;
        self.head_due = None;
        let over = !framing.may_exceed(0);
        let stray = over && !rest.is_empty();
        let chunked = chunked && !matches!(framing, Framing::None);
        let down = &mut self.down;
        down.sent += content;
        (down.out, down.early) = (Held::from(head), if over { Bytes::new() } else { rest });
        down.body = Some(Body { framing, chunked, over, stray });
        if over && (chunked || filters.see_answers) {
            poll_fn(|cx| self.poll_sent(cx)).await?;
            poll_fn(|cx| Poll::Ready(self.conclude(cx, &mut filters))).await?;
        }
        poll_fn(|cx| self.poll_body(cx, &mut filters)).await
    }

    /// Until when the answer may go on; none for one without a natural end.
    pub(super) const fn ends_by(&mut self, deadline: Option<Instant>) {
        self.waits.deadline = deadline;
    }

    /// Whom the answer goes to.
    pub(super) fn client(&mut self) -> &mut C {
        self.client
    }

    /// Whether all of the request was read.
    pub(super) fn is_uploaded(&self) -> bool {
        self.client.is_at_end()
    }

    /// Bytes of content that went to the client.
    pub(super) fn sent(&self) -> u64 {
        self.down.sent
    }

    /// The part of the body that another attempt begins with; none if it is lost.
    pub(super) fn again(mut self) -> Option<Vec<u8>> {
        while matches!(self.kept, Kept::Here(..)) && !self.early.is_empty() {
            let early = self.early.take();
            self.taken += early.len() as u64;
            self.kept.add(&early, self.taken, self.written);
        }
        match self.kept {
            Kept::Here(bytes, _) => Some(bytes),
            Kept::Elsewhere => Some(Vec::new()),
            Kept::Lost => None,
        }
    }

    /// Whether there is nothing more for the backend.
    fn is_sent(&self) -> bool {
        self.upload == Upload::Over && self.up.is_empty()
    }

    /// Whether all of the body came with the head, and goes on with it.
    fn is_here(&self) -> bool {
        let Down { body: Some(body), early, .. } = &self.down else { return false };
        !body.framing.may_exceed(early.len() as u64)
    }

    /// Whether all that was sent can be sent again.
    pub(super) fn is_repeatable(&self) -> bool {
        !matches!(self.kept, Kept::Lost)
    }

    /// Whether the backend may act on what it took of the request: on a part of a body that is all here nobody does.
    pub(super) fn is_begun(&self) -> bool {
        self.written && (self.is_sent() || !matches!(self.kept, Kept::Elsewhere))
    }

    /// The backend's connection, if nothing more is on its way there or from there.
    pub(super) fn into_server(self) -> Option<TcpStream> {
        let clean = self.down.body.is_some_and(|body| body.over && !body.stray);
        (clean && self.upload == Upload::Over && self.up.is_empty()).then_some(self.server)
    }

    fn poll_answer(
        &mut self,
        cx: &mut Context<'_>,
        (method, form): (&Method, Form),
        filters: &mut Filters<'_>,
    ) -> Poll<Result<Answer, Trouble>> {
        // What came after an interim head.
        let rest = std::mem::take(&mut self.down.head);
        if !rest.is_empty()
            && let Some(answer) = self.read_head(&rest, method, form)?
        {
            return Poll::Ready(Ok(answer));
        }
        // Who has sent everything is only waited for to go: that matters while there is no answer.
        let sent = self.is_sent();
        if !sent {
            self.poll_up(cx, filters)?;
        }
        loop {
            let mut room = [const { MaybeUninit::uninit() }; ROOM];
            let mut room = ReadBuf::uninit(&mut room);
            let Poll::Ready(read) = Pin::new(&mut self.server).poll_read(cx, &mut room) else {
                if sent {
                    self.poll_up(cx, filters)?;
                }
                return self.poll_time(cx).map(Err);
            };
            if read.is_err() || room.filled().is_empty() {
                let nothing = self.down.head.is_empty() && !self.heard;
                return Poll::Ready(Err(if nothing { Trouble::Unanswered } else { Trouble::Cut }));
            }
            (self.since, self.heard) = (None, true);
            if let Some(answer) = self.read_head(room.filled(), method, form)? {
                return Poll::Ready(Ok(answer));
            }
        }
    }

    /// Reads a head that goes on with these bytes.
    fn read_head(&mut self, bytes: &[u8], method: &Method, form: Form) -> Result<Option<Answer>, Trouble> {
        let head = &mut self.down.head;
        // Nearly all heads come at once.
        if !head.is_empty() {
            head.extend_from_slice(bytes);
        }
        let whole = if head.is_empty() { bytes } else { &head[..] };
        let answer = wire::answer(whole, method, form).map_err(Trouble::Protocol)?;
        match (&answer, head.is_empty()) {
            (None, true) => head.extend_from_slice(bytes),
            (None, false) => {}
            (Some(_), _) => *head = Vec::new(),
        }
        Ok(answer)
    }

    fn poll_flushed(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Trouble>> {
        ready!(self.poll_out(cx))?;
        Pin::new(&mut *self.client).poll_flush(cx).map_err(|_| Trouble::Client)
    }

    fn poll_body(&mut self, cx: &mut Context<'_>, filters: &mut Filters<'_>) -> Poll<Result<(), Trouble>> {
        if !(self.is_sent() && self.is_here()) {
            self.poll_up(cx, filters)?;
        }
        let sized = self.down.body.as_ref().is_some_and(|body| matches!(body.framing, Framing::Length(_)));
        let sound = sized && !filters.see_answers;
        loop {
            // What came with the head goes out with it, if nothing can be wrong with it.
            if !sound {
                ready!(self.poll_sent(cx))?;
            }
            if !self.down.early.is_empty() {
                let early = std::mem::take(&mut self.down.early);
                self.pass(cx, &early, filters)?;
                continue;
            }
            ready!(self.poll_sent(cx))?;
            if self.down.body.as_ref().is_none_or(|body| body.over) {
                self.client.end(None).map_err(|_| Trouble::Client)?;
                let flushed = Pin::new(&mut *self.client).poll_flush(cx).map_err(|_| Trouble::Client);
                return if flushed.is_pending() { self.poll_overdue(cx) } else { flushed };
            }
            let much = self.down.body.as_ref().is_some_and(|body| body.framing.may_exceed(ROOM as u64));
            let piece = if much && held::is_little() {
                self.poll_piece::<MUCH_ROOM>(cx, filters)
            } else {
                self.poll_piece::<ROOM>(cx, filters)
            };
            ready!(piece)?;
            if filters.see_answers {
                // What they make of a piece may take long: others have their turn before the next one.
                return self.poll_turn(cx);
            }
        }
    }

    /// Reads a piece of the answer and passes it on; its room is on the stack only while it runs.
    #[inline(never)]
    fn poll_piece<const SIZE: usize>(
        &mut self,
        cx: &mut Context<'_>,
        filters: &mut Filters<'_>,
    ) -> Poll<Result<(), Trouble>> {
        let mut room = [const { MaybeUninit::uninit() }; SIZE];
        let mut room = ReadBuf::uninit(&mut room);
        let Poll::Ready(read) = Pin::new(&mut self.server).poll_read(cx, &mut room) else {
            if self.down.unflushed
                && Pin::new(&mut *self.client).poll_flush(cx).map_err(|_| Trouble::Client)?.is_ready()
            {
                self.down.unflushed = false;
            }
            return self.poll_time(cx).map(Err);
        };
        self.since = None;
        Poll::Ready(match read {
            Ok(()) if room.filled().is_empty() => self.ended(cx, filters),
            Ok(()) => self.pass(cx, room.filled(), filters),
            Err(_) => Err(Trouble::Cut),
        })
    }

    /// As [`poll_out`](Self::poll_out), while there is time.
    fn poll_sent(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Trouble>> {
        let sent = self.poll_out(cx);
        if sent.is_pending() { self.poll_overdue(cx) } else { sent }
    }

    /// Minds the time for all of it while the client is waited for.
    #[cold]
    fn poll_overdue(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Trouble>> {
        let Some(deadline) = self.waits.deadline else { return Poll::Pending };
        self.client.alarm().poll(cx, deadline).map(|()| Err(Trouble::LateClient))
    }

    /// Sends what waits for the client.
    fn poll_out(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Trouble>> {
        let Down { out, body, unflushed, .. } = &mut self.down;
        // The last of it waits for nothing to go out with.
        let last = body.as_ref().is_some_and(|body| body.over);
        while !out.is_empty() {
            let client = Pin::new(&mut *self.client);
            let polled = if last {
                client.poll_write_vectored(cx, &[IoSlice::new(out.rest())])
            } else {
                client.poll_write(cx, out.rest())
            };
            let n = ready!(polled).map_err(|_| Trouble::Client)?;
            *unflushed = true;
            out.took(n);
        }
        Poll::Ready(Ok(()))
    }
}
