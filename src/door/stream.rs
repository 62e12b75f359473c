//! The stream Pingora works on: buffers writes until they are flushed, ends a request where its framing
//! does, and carries the connection's facts and permit.

mod about;
mod lead;
mod out;
mod rest;

use std::fmt;
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll, Waker, ready};
use std::time::Instant;

use bytes::{Buf, BytesMut};
use pingora::protocols::raw_connect::ProxyDigest;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::runtime::Handle;
use tollhouse_filters::world::FilePart;

use super::alarm::Alarm;
use super::chunks::Chunks;
use super::facts::{Carried, carrier};
use super::frames::Frames;
use super::head::{Body, Head};
use super::patience::Patience;
use super::socket::{Hangup, Socket};
use super::transport::{Transport, linger};
use super::tunnel::{GOING_AWAY, Tunnel};
use super::{ConnFacts, Desk, End, HeadLimits, Permit, Rule};
use lead::LEAD;
use out::Out;
use rest::Rest;

/// What a client may send ahead while it is served.
const AHEAD: usize = 4096;
/// What a client of HTTP/2 without TLS sends first (RFC 9113 s3.4).
pub(super) const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// An accepted connection as Pingora's `Stream`; holds no buffer while nothing is under way.
pub struct DoorStream {
    /// `Some` until the drop.
    inner: Option<Transport>,
    /// Written by Pingora and not yet flushed.
    out: Out,
    alarm: Alarm,
    /// With what is still to be read of the request.
    patience: Option<Patience>,
    /// Read by the door and not yet given to Pingora: the next request, or the start of one.
    lead: BytesMut,
    /// What Pingora may still read of this request.
    rest: Rest,
    /// Of a client that sent much ahead of the answer.
    hangup: Option<Box<Hangup>>,
    /// Since when it waits for its next request, if that is known.
    rests: Option<Instant>,
    carried: Arc<Carried>,
    /// For Pingora: leads to what is carried.
    carrier: Arc<ProxyDigest>,
    permit: Option<Permit>,
}

impl DoorStream {
    pub(super) fn new(socket: Socket, facts: ConnFacts, desk: &Desk, permit: Permit) -> Self {
        Self::over(Transport::Plain(socket), facts, desk, permit)
    }

    pub(super) fn over(inner: Transport, facts: ConnFacts, desk: &Desk, permit: Permit) -> Self {
        let carried = Carried::new(facts, desk);
        Self {
            inner: Some(inner),
            out: Out::default(),
            alarm: Alarm::default(),
            patience: None,
            lead: BytesMut::new(),
            rest: Rest::Bytes(0),
            hangup: None,
            rests: None,
            carrier: carrier(&carried),
            carried,
            permit: Some(permit),
        }
    }

    /// What is known of the connection.
    pub fn facts(&self) -> &ConnFacts {
        &self.carried.facts
    }

    fn inner(&self) -> &Transport {
        self.inner.as_ref().expect("only drop takes it")
    }

    fn inner_mut(&mut self) -> &mut Transport {
        there(&mut self.inner)
    }

    /// What outlives the stream.
    pub(super) fn carrier(&self) -> Arc<ProxyDigest> {
        self.carrier.clone()
    }

    /// Whether both sides agreed on HTTP/2; none where nothing was to agree on.
    pub(super) fn http2(&self) -> Option<bool> {
        self.inner().http2()
    }

    /// Says goodbye between two requests, where TLS wants that (RFC 8446 s6.1), if it needs no waiting.
    pub(super) fn leave(&mut self) {
        self.abandon_ahead();
        if self.http2().is_some() {
            let _ = Pin::new(self.inner_mut()).poll_shutdown(&mut Context::from_waker(Waker::noop()));
        }
    }

    /// Begins a request: from here on no more is read than belongs to it.
    pub(super) fn begin(&mut self, head: &Head, limits: &HeadLimits) {
        if let Some(at) = head.higher_minor {
            self.lead[at] = b'1';
        }
        self.lead.advance(head.start);
        (self.hangup, self.rests) = (None, None);
        self.rest = match head.body {
            Body::Length(length) => Rest::Bytes(length),
            Body::Chunked => Rest::Chunks(Chunks::default()),
            Body::Open => Rest::Open(None),
        };
        // A tunnel may be silent for long, either way.
        let patience = |most| (head.body != Body::Open).then(|| Patience::new(most, limits.min_rate));
        self.patience = patience(limits.body_timeout);
        self.out.wait_with(patience(limits.idle_timeout));
    }

    /// How much of the request is still to be read, as far as it has said so.
    pub fn unread(&self) -> Option<u64> {
        match self.rest {
            Rest::Bytes(left) => Some(left),
            _ => self.is_at_end().then_some(0),
        }
    }

    /// What ended the request before its end, such as a rule that it broke while it was read.
    pub fn broken(&self) -> Option<End> {
        self.carried.ended.get().copied()
    }

    /// Counts the request under a rule that was found broken elsewhere.
    pub fn count(&self, rule: Rule) {
        self.carried.refusals.add(rule);
    }

    /// Notes since when there is nothing to do before the next request.
    pub fn rests_since(&mut self, now: Instant) {
        self.rests = Some(now);
    }

    /// Since when there is nothing to do, if that was noted.
    pub(super) fn take_rest(&mut self) -> Option<Instant> {
        self.rests.take()
    }

    /// What wakes this connection.
    pub fn alarm(&mut self) -> &mut Alarm {
        &mut self.alarm
    }

    /// Until when the client is waited for, if it is.
    pub fn body_due(&self) -> Option<Instant> {
        self.patience.as_ref()?.due()
    }

    /// What was read goes on first: the client is not waited for until more is asked of it.
    pub fn rest(&mut self) {
        if let Some(patience) = &mut self.patience {
            patience.rests();
        }
    }

    /// Lets Pingora speak HTTP/2.
    pub(super) fn open(&mut self, limits: &HeadLimits) {
        self.out.wait_with(Some(Patience::new(limits.idle_timeout, limits.min_rate)));
        self.out.carry_many();
        self.rest = Rest::Frames(Box::new(Frames::new(Instant::now(), limits.header_list())));
    }

    /// Nothing more is wanted from the client, whatever it sends.
    pub(super) fn abandon(&mut self) {
        self.rest = Rest::Abandoned;
    }

    /// No further request is read. Where the client sent one already, to close at once would reset the connection, and it
    /// would lose what it did not read yet (RFC 9112 s9.6).
    fn abandon_ahead(&mut self) {
        let cx = &mut Context::from_waker(Waker::noop());
        let is_http1 = matches!(self.rest, Rest::Bytes(_) | Rest::Chunks(_));
        if is_http1 && (!self.lead.is_empty() || matches!(self.poll_lead(cx), Poll::Ready(Ok(1..)))) {
            self.abandon();
        }
    }

    /// Whether the request was read to its end, as far as the door can tell.
    pub fn is_at_end(&self) -> bool {
        matches!(self.rest, Rest::Open(_)) || self.rest.is_over()
    }

    /// Notes that the request broke a rule: nothing more is read of it, so nobody can take it for whole.
    fn break_off(&mut self, rule: Rule) -> usize {
        // An HTTP/2 connection may do so once more while it ends.
        if self.carried.break_off(rule)
            && let Rest::Frames(frames) = &self.rest
            && let Some(goaway) = frames.goaway(rule)
        {
            self.out.add(&goaway);
        }
        0
    }

    /// Tells the connection's task whether its client waits for something, and how much content it was sent.
    fn tell(&self) {
        let Rest::Frames(frames) = &self.rest else { return };
        let owes = frames.owes() || self.out.len() > 0 || self.inner().holds();
        // All requests of the connection look at what lies beside these: what stays as it is, is not written.
        if self.carried.owes.load(Ordering::Relaxed) != owes {
            self.carried.owes.store(owes, Ordering::Relaxed);
        }
        if self.carried.sent.load(Ordering::Relaxed) != frames.sent() {
            self.carried.sent.store(frames.sent(), Ordering::Relaxed);
        }
    }

    /// Follows what Pingora wrote.
    fn wrote(&mut self, data: &[u8]) -> io::Result<usize> {
        if let Rest::Open(tunnel) = &mut self.rest
            && self.carried.tunnelled.get().is_some()
        {
            let new = || Box::new(Tunnel::new(self.carried.over.watch()));
            tunnel.get_or_insert_with(new).follow(data);
        }
        if let Rest::Frames(frames) = &mut self.rest
            && let Err(rule) = frames.client_gets(data)
        {
            let told = frames.dismissed();
            self.break_off(rule);
            return if told { Ok(data.len()) } else { Err(invalid()) };
        }
        Ok(data.len())
    }

    fn poll_inner(&mut self, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let read = Pin::new(self.inner_mut()).poll_read(cx, buf);
        self.or_drained(cx, read)
    }

    /// What was read, or what comes of sending what is held.
    fn or_drained<T>(&mut self, cx: &mut Context<'_>, read: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        // Who waits for the client has nothing more to say for now: what is held must not wait too.
        if read.is_pending()
            && !self.is_corked()
            && let Poll::Ready(Err(error)) = self.poll_drain(cx)
        {
            return Poll::Ready(Err(error));
        }
        read
    }

    /// Ready when the client went away, or is not served to the end; whose body is larger than what is read ahead of it
    /// is missed later.
    pub fn poll_left(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if self.carried.is_stopped() {
            return Poll::Ready(());
        }
        let most = if self.rest.is_over() { AHEAD } else { LEAD };
        self.poll_gone(most, cx).map(drop)
    }

    /// Whether the client gets bytes as they are, so that the kernel can send them from a file.
    pub fn sends_files(&self) -> bool {
        self.inner().http2().is_none() && matches!(self.rest, Rest::Bytes(_) | Rest::Chunks(_))
    }

    /// Sends from a file, to who [gets it as it is](Self::sends_files), after what was written before.
    pub fn poll_send_file(&mut self, cx: &mut Context<'_>, part: &mut FilePart) -> Poll<io::Result<usize>> {
        let Some(socket) = there(&mut self.inner).plain() else { return Poll::Ready(Err(invalid())) };
        let polled = self.out.poll_send_file(socket, &mut self.alarm, cx, part);
        self.sent(polled)
    }

    /// Waits for the client to go: what it sends meanwhile, up to `most` bytes, is kept for who reads next.
    fn poll_gone(&mut self, most: usize, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while self.lead.len() < most {
            if ready!(self.poll_lead(cx))? == 0 {
                return Poll::Ready(Ok(()));
            }
        }
        ready!(self.poll_drain(cx))?;
        // It sends ahead faster than it is served, and nothing more is read of that.
        if self.hangup.is_none() {
            self.hangup = Hangup::of(self.inner().socket()).ok().map(Box::new);
        }
        self.hangup.as_ref().map_or(Poll::Pending, |hangup| hangup.poll(cx).map(Ok))
    }

    /// Reads at most the rest of the request.
    fn poll_body(&mut self, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        ready!(self.poll_in_time(cx, buf))?;
        match self.rest.take(&buf.filled()[before..]) {
            Ok(n) => self.lead.extend_from_slice(&buf.filled()[before + n..]),
            Err(rule) => return Poll::Ready(Err(self.refuse(rule))),
        }
        self.tell();
        let surplus = self.lead.len();
        buf.set_filled(buf.filled().len() - surplus);
        Poll::Ready(Ok(()))
    }

    /// Closes a tunnel whose time is over; what the client says to that goes on to the other end, which ends it.
    fn close_in_time(&mut self, cx: &mut Context<'_>) {
        if let Rest::Open(Some(tunnel)) = &mut self.rest
            && tunnel.poll_close(cx).is_ready()
        {
            self.out.add(GOING_AWAY);
        }
    }

    /// Reads what the client sends fast enough. That it sends nothing at all, Pingora minds.
    fn poll_in_time(&mut self, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        let read = self.poll_inner(cx, buf);
        let Some(patience) = &mut self.patience else { return read };
        if read.is_pending() {
            patience.waits(Instant::now());
        } else if !patience.moved(buf.filled().len() - before, Instant::now) {
            return Poll::Ready(Err(self.refuse(Rule::SlowBody)));
        }
        read
    }

    /// Sends all that is held.
    fn poll_all(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let polled = self.out.poll_flush(there(&mut self.inner), &mut self.alarm, cx);
        self.sent(polled)
    }

    /// Whether what is written waits for more.
    fn is_corked(&self) -> bool {
        matches!(self.rest, Rest::Frames(_)) && self.carried.corked.load(Ordering::Relaxed)
    }

    fn refuse(&mut self, rule: Rule) -> io::Error {
        self.break_off(rule);
        invalid()
    }

    fn poll_drain(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.out.poll_drain(there(&mut self.inner), cx)
    }

    /// What became of sending to the client, whose slowness ends the exchange.
    fn sent<T>(&mut self, polled: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        match &polled {
            Poll::Ready(Err(_)) if self.out.gave_up() => _ = self.break_off(Rule::SlowReader),
            Poll::Pending if self.carried.is_stopped() => return Poll::Ready(Err(invalid())),
            _ => {}
        }
        polled
    }
}

fn there(inner: &mut Option<Transport>) -> &mut Transport {
    inner.as_mut().expect("only drop takes it")
}

fn invalid() -> io::Error {
    io::ErrorKind::InvalidData.into()
}

impl AsyncRead for DoorStream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.carried.ended.get().is_some() {
            return Poll::Ready(Err(invalid()));
        }
        if self.rest.is_over() {
            return self.poll_gone(AHEAD, cx);
        }
        if self.lead.is_empty() {
            self.close_in_time(cx);
            return self.poll_body(cx, buf);
        }
        // What came with the head.
        let this = &mut *self;
        let n = this.lead.len().min(buf.remaining());
        match this.rest.take(&this.lead[..n]) {
            Ok(n) => buf.put_slice(&this.split_lead(n)),
            Err(rule) => return Poll::Ready(Err(this.refuse(rule))),
        }
        this.tell();
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for DoorStream {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, data: &[u8]) -> Poll<io::Result<usize>> {
        let this = &mut *self;
        if matches!(&this.rest, Rest::Open(Some(tunnel)) if tunnel.is_closed()) {
            return Poll::Ready(Ok(data.len()));
        }
        let polled = this.out.poll_write(there(&mut this.inner), &mut this.alarm, cx, data);
        let n = ready!(this.sent(polled))?;
        let wrote = this.wrote(&data[..n]);
        this.tell();
        Poll::Ready(wrote)
    }

    /// Sends the pieces at once, unless something is held before them or what is sent is followed.
    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        pieces: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = &mut *self;
        if this.out.len() > 0 || !matches!(this.rest, Rest::Bytes(_) | Rest::Chunks(_)) {
            let first = pieces.iter().find(|piece| !piece.is_empty());
            return self.poll_write(cx, first.map_or(&[], |piece| piece));
        }
        let polled = this.out.poll_write_now(there(&mut this.inner), &mut this.alarm, cx, pieces);
        this.sent(polled)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.is_corked() {
            return Poll::Ready(Ok(()));
        }
        let flushed = self.poll_all(cx);
        self.tell();
        flushed
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        // What waits for more waits in vain.
        ready!(self.poll_all(cx))?;
        self.abandon_ahead();
        Pin::new(self.inner_mut()).poll_shutdown(cx)
    }
}

/// Sends what is still held, as Pingora's own streams do, if that needs no waiting. Who may still be sending
/// what nobody wants gets the time to read why: of HTTP/2, who did not close its side.
impl Drop for DoorStream {
    fn drop(&mut self) {
        let drained = self.poll_drain(&mut Context::from_waker(Waker::noop()));
        let unread = !self.is_at_end() && drained.is_ready();
        if let (true, Ok(runtime)) = (unread, Handle::try_current())
            && let (Some(transport), Some(permit)) = (self.inner.take(), self.permit.take())
        {
            runtime.spawn(linger(transport, permit));
        }
    }
}

impl fmt::Debug for DoorStream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DoorStream")
            .field("facts", self.facts())
            .field("held", &self.out.len())
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;
