//! The stream Pingora works on: buffers writes until they are flushed, ends a request where its framing
//! does, and carries the connection's facts and permit.

use std::fmt;
use std::io::{self, IoSlice};
use std::mem::MaybeUninit;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker, ready};
use std::time::Duration;

use async_trait::async_trait;
use bytes::{Buf, BytesMut};
use pingora::protocols::l4::stream::Stream as L4Stream;
use pingora::protocols::raw_connect::ProxyDigest;
use pingora::protocols::tls::SslDigest;
use pingora::protocols::{
    ALPN, GetProxyDigest, GetSocketDigest, GetTimingDigest, Peek, Shutdown, SocketDigest, Ssl, TimingDigest,
    UniqueID, UniqueIDType,
};
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio::runtime::Handle;

use super::chunks::Chunks;
use super::facts::{Carried, carried, carrier};
use super::head::{Body, Head};
use super::transport::{Transport, linger};
use super::{ConnFacts, Permit, Refusals, Rule};

/// Writes up to this size are collected until a flush: Pingora writes a head and its body apart.
const OUT: usize = 4096;
/// What is read at once between requests; most request heads fit.
const LEAD: usize = 4096;
/// What a client of HTTP/2 without TLS sends first (RFC 9113 s3.4).
pub(super) const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// An accepted connection as Pingora's `Stream`; holds no buffer while nothing is under way.
pub struct DoorStream {
    /// `Some` until the drop.
    inner: Option<Transport>,
    /// Written by Pingora and not yet flushed; `out[..sent]` is on its way already.
    out: Vec<u8>,
    sent: usize,
    /// Read by the door and not yet given to Pingora: the next request, or the start of one.
    lead: BytesMut,
    /// What Pingora may still read of this request.
    rest: Rest,
    carrier: Arc<ProxyDigest>,
    refusals: Arc<Refusals>,
    permit: Option<Permit>,
}

/// What is still to be read of a request.
#[derive(Debug)]
enum Rest {
    /// This many bytes.
    Bytes(u64),
    /// Chunks.
    Chunks(Chunks),
    /// Whatever comes.
    Open,
    /// Nobody knows, and nobody wants it.
    Abandoned,
}

impl DoorStream {
    pub(super) fn new(socket: L4Stream, facts: ConnFacts, refusals: Arc<Refusals>, permit: Permit) -> Self {
        Self::over(Transport::Plain(socket), facts, refusals, permit)
    }

    pub(super) fn over(inner: Transport, facts: ConnFacts, refusals: Arc<Refusals>, permit: Permit) -> Self {
        Self {
            inner: Some(inner),
            out: Vec::new(),
            sent: 0,
            lead: BytesMut::new(),
            rest: Rest::Bytes(0),
            carrier: carrier(facts),
            refusals,
            permit: Some(permit),
        }
    }

    /// What is known of the connection.
    pub(super) fn facts(&self) -> &ConnFacts {
        &self.carried().facts
    }

    fn inner(&self) -> &Transport {
        self.inner.as_ref().expect("only drop takes it")
    }

    fn inner_mut(&mut self) -> &mut Transport {
        there(&mut self.inner)
    }

    fn carried(&self) -> &Carried {
        carried(&self.carrier).expect("`new` put it there")
    }

    /// What was read and belongs to no request yet.
    pub(super) fn lead(&self) -> &[u8] {
        &self.lead
    }

    /// Puts what was read elsewhere before all that is still to be read.
    pub(super) fn put_lead(&mut self, bytes: &[u8]) {
        self.lead = BytesMut::from(bytes);
    }

    /// Whether both sides agreed on HTTP/2; none where nothing was to agree on.
    pub(super) fn http2(&self) -> Option<bool> {
        self.inner().http2()
    }

    /// Says goodbye between two requests, where TLS wants that (RFC 8446 s6.1), if it needs no waiting.
    pub(super) fn leave(&mut self) {
        if self.http2().is_some() {
            let _ = Pin::new(self.inner_mut()).poll_shutdown(&mut Context::from_waker(Waker::noop()));
        }
    }

    /// Gives what was read of a request that begins, and from here on no more than belongs to it.
    pub(super) fn begin(&mut self, head: &Head) -> BytesMut {
        if let Some(at) = head.higher_minor {
            self.lead[at] = b'1';
        }
        self.lead.advance(head.start);
        self.rest = match head.body {
            Body::Length(length) => Rest::Bytes(length),
            Body::Chunked => Rest::Chunks(Chunks::default()),
            Body::Open => Rest::Open,
        };
        let length = head.end - head.start;
        // What is wrong is told to who reads the body: it will, from the start again.
        let length =
            length + self.rest.take(&self.lead[length..]).unwrap_or_else(|rule| self.break_off(rule));
        if length == self.lead.len() { std::mem::take(&mut self.lead) } else { self.lead.split_to(length) }
    }

    /// Lets Pingora read whatever comes.
    pub(super) fn open(&mut self) {
        self.rest = Rest::Open;
    }

    /// Nothing more is wanted from the client, whatever it sends.
    pub(super) fn abandon(&mut self) {
        self.rest = Rest::Abandoned;
    }

    /// Whether the request was read to its end, as far as the door can tell.
    pub(super) fn is_at_end(&self) -> bool {
        matches!(self.rest, Rest::Open) || self.rest.is_over()
    }

    /// Notes that the request broke a rule: nothing more is read of it, so nobody can take it for whole.
    fn break_off(&mut self, rule: Rule) -> usize {
        self.refusals.add(rule);
        let _ = self.carried().broken.set(rule);
        0
    }

    /// Reads more of what belongs to no request yet; 0 is the end.
    pub(super) fn poll_lead(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        // On the thread's stack, so that waiting costs no memory.
        let mut room = [const { MaybeUninit::uninit() }; LEAD];
        let mut room = ReadBuf::uninit(&mut room);
        ready!(self.poll_inner(cx, &mut room))?;
        self.lead.extend_from_slice(room.filled());
        Poll::Ready(Ok(room.filled().len()))
    }

    fn poll_inner(&mut self, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let read = Pin::new(self.inner_mut()).poll_read(cx, buf);
        // Who waits for the client has nothing more to say for now: what is held must not wait too.
        if read.is_pending()
            && let Poll::Ready(Err(error)) = self.poll_drain(cx)
        {
            return Poll::Ready(Err(error));
        }
        read
    }

    /// Waits for the client to go: what it sends meanwhile belongs to its next request.
    fn poll_gone(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while self.lead.len() < LEAD {
            if ready!(self.poll_lead(cx))? == 0 {
                return Poll::Ready(Ok(()));
            }
        }
        // It sends ahead faster than it is served; that it goes is seen when the answer is written.
        ready!(self.poll_drain(cx))?;
        Poll::Pending
    }

    /// Reads at most the rest of the request.
    fn poll_body(&mut self, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if let Rest::Bytes(left) = self.rest
            && left < buf.remaining() as u64
        {
            let left = usize::try_from(left).expect("less than a buffer holds");
            let mut part = ReadBuf::new(buf.initialize_unfilled_to(left));
            ready!(self.poll_inner(cx, &mut part))?;
            let n = part.filled().len();
            buf.advance(n);
            self.rest = Rest::Bytes((left - n) as u64);
            return Poll::Ready(Ok(()));
        }
        let before = buf.filled().len();
        ready!(self.poll_inner(cx, buf))?;
        match self.rest.take(&buf.filled()[before..]) {
            Ok(n) => self.lead.extend_from_slice(&buf.filled()[before + n..]),
            Err(rule) => {
                self.break_off(rule);
                return Poll::Ready(Err(invalid()));
            }
        }
        let surplus = self.lead.len();
        buf.set_filled(buf.filled().len() - surplus);
        Poll::Ready(Ok(()))
    }

    fn poll_drain(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.out.capacity() == 0 {
            return there(&mut self.inner).poll_settle(cx);
        }
        while self.sent < self.out.len() {
            let n = ready!(Pin::new(there(&mut self.inner)).poll_write(cx, &self.out[self.sent..]))?;
            self.sent += nonzero(n)?;
        }
        self.drained();
        self.inner_mut().poll_settle(cx)
    }

    fn drained(&mut self) {
        self.sent = 0;
        self.out = Vec::new();
    }

    /// Sends what is held together with `data`; gives how much of `data` went out, maybe nothing.
    fn poll_send(&mut self, cx: &mut Context<'_>, data: &[u8]) -> Poll<io::Result<usize>> {
        let held = self.out.len() - self.sent;
        let slices = [IoSlice::new(&self.out[self.sent..]), IoSlice::new(data)];
        let n = ready!(Pin::new(there(&mut self.inner)).poll_write_vectored(cx, &slices))?;
        if nonzero(n)? < held {
            self.sent += n;
            return Poll::Ready(Ok(0));
        }
        self.drained();
        Poll::Ready(Ok(n - held))
    }
}

impl Rest {
    /// How many of these bytes belong to the request.
    fn take(&mut self, bytes: &[u8]) -> Result<usize, Rule> {
        match self {
            Self::Bytes(left) => {
                let here = bytes.len().min(usize::try_from(*left).unwrap_or(usize::MAX));
                *left -= here as u64;
                Ok(here)
            }
            Self::Chunks(chunks) => chunks.follow(bytes),
            Self::Open | Self::Abandoned => Ok(bytes.len()),
        }
    }

    fn is_over(&self) -> bool {
        match self {
            Self::Bytes(left) => *left == 0,
            Self::Chunks(chunks) => chunks.is_over(),
            Self::Open | Self::Abandoned => false,
        }
    }
}

fn there(inner: &mut Option<Transport>) -> &mut Transport {
    inner.as_mut().expect("only drop takes it")
}

fn invalid() -> io::Error {
    io::ErrorKind::InvalidData.into()
}

fn nonzero(n: usize) -> io::Result<usize> {
    if n == 0 { Err(io::ErrorKind::WriteZero.into()) } else { Ok(n) }
}

impl AsyncRead for DoorStream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.carried().broken.get().is_some() {
            return Poll::Ready(Err(invalid()));
        }
        if self.rest.is_over() {
            return self.poll_gone(cx);
        }
        if self.lead.is_empty() {
            return self.poll_body(cx, buf);
        }
        // Only HTTP/2 begins in the middle of what the door has read.
        let n = self.lead.len().min(buf.remaining());
        buf.put_slice(&self.lead[..n]);
        self.lead.advance(n);
        if self.lead.is_empty() {
            self.lead = BytesMut::new();
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for DoorStream {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, data: &[u8]) -> Poll<io::Result<usize>> {
        loop {
            if self.out.len() + data.len() <= OUT {
                if self.out.capacity() == 0 {
                    // Most answers are a head and little more: half the room does for them.
                    self.out.reserve_exact(if data.len() > OUT / 4 { OUT } else { OUT / 2 });
                }
                self.out.extend_from_slice(data);
                return Poll::Ready(Ok(data.len()));
            }
            if self.sent == self.out.len() {
                self.drained();
                return Pin::new(self.inner_mut()).poll_write(cx, data);
            }
            let n = ready!(self.poll_send(cx, data))?;
            if n > 0 {
                return Poll::Ready(Ok(n));
            }
        }
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_drain(cx))?;
        Pin::new(self.inner_mut()).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_drain(cx))?;
        Pin::new(self.inner_mut()).poll_shutdown(cx)
    }
}

/// Sends what is still held, as Pingora's own streams do, if that needs no waiting. Who is still sending
/// what nobody wants gets the time to read why.
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

#[async_trait]
impl Peek for DoorStream {
    /// Shows what the door has read: the whole preface, of a client of HTTP/2.
    async fn try_peek(&mut self, buf: &mut [u8]) -> io::Result<bool> {
        let n = self.lead.len().min(buf.len());
        buf[..n].copy_from_slice(&self.lead[..n]);
        Ok(true)
    }
}

#[async_trait]
impl Shutdown for DoorStream {
    async fn shutdown(&mut self) {
        let _ = self.flush().await;
        self.inner_mut().close().await;
    }
}

impl UniqueID for DoorStream {
    fn id(&self) -> UniqueIDType {
        self.inner().socket().id()
    }
}

impl Ssl for DoorStream {
    fn get_ssl_digest(&self) -> Option<Arc<SslDigest>> {
        self.inner().ssl_digest()
    }

    fn selected_alpn_proto(&self) -> Option<ALPN> {
        self.inner().alpn()
    }
}

impl GetTimingDigest for DoorStream {
    /// Nobody asks for them.
    fn get_timing_digest(&self) -> Vec<Option<TimingDigest>> {
        Vec::new()
    }

    fn get_read_pending_time(&self) -> Duration {
        self.inner().socket().get_read_pending_time()
    }

    fn get_write_pending_time(&self) -> Duration {
        self.inner().socket().get_write_pending_time()
    }
}

impl GetProxyDigest for DoorStream {
    fn get_proxy_digest(&self) -> Option<Arc<ProxyDigest>> {
        Some(self.carrier.clone())
    }
}

impl GetSocketDigest for DoorStream {
    fn get_socket_digest(&self) -> Option<Arc<SocketDigest>> {
        self.inner().socket().get_socket_digest()
    }
}

impl fmt::Debug for DoorStream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DoorStream")
            .field("facts", self.facts())
            .field("held", &(self.out.len() - self.sent))
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::AsyncReadExt;
    use tokio::net::UnixStream;

    use super::super::{Limits, Permits};
    use super::*;

    fn pair() -> (DoorStream, UnixStream) {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let permit = Permits::new(Limits { total: 1, per_ip: None }, |_| false).take(None).unwrap();
        let facts = ConnFacts { listener: 0, peer: None, local: None, unix: true, tls: None };
        (DoorStream::new(ours.into(), facts, Arc::default(), permit), theirs)
    }

    /// Bytes that repeat only after 251, so that a shifted or repeated piece shows.
    fn pattern(len: usize) -> Vec<u8> {
        (0..len).map(|i| (i % 251) as u8).collect()
    }

    #[tokio::test]
    async fn writes_of_any_sizes_arrive_in_order_also_when_the_reader_is_slow() {
        let sizes = [1, 4095, 1, 4096, 4097, 10, 3_000_000, 7, 0, 2048, 2049, 100_000, 1];
        let all = pattern(sizes.iter().sum());
        let (mut ours, mut theirs) = pair();
        let expected = all.clone();
        let writer = async move {
            let mut rest = &all[..];
            for (i, size) in sizes.into_iter().enumerate() {
                let (now, later) = rest.split_at(size);
                ours.write_all(now).await.unwrap();
                if i % 3 == 2 {
                    ours.flush().await.unwrap();
                    assert_eq!(ours.out.capacity(), 0, "nothing is held once all is sent");
                }
                rest = later;
            }
            AsyncWriteExt::shutdown(&mut ours).await.unwrap();
        };
        let reader = async move {
            let mut got = Vec::new();
            while theirs.read_buf(&mut got).await.unwrap() > 0 {
                tokio::task::yield_now().await;
            }
            got
        };
        let ((), got) = tokio::join!(writer, reader);
        assert!(got == expected);
    }

    #[tokio::test]
    async fn small_writes_are_held_until_the_flush() {
        let (mut ours, theirs) = pair();
        ours.write_all(b"head").await.unwrap();
        ours.write_all(b"body").await.unwrap();
        let mut got = [0; 16];
        assert_eq!(theirs.try_read(&mut got).unwrap_err().kind(), io::ErrorKind::WouldBlock);
        ours.flush().await.unwrap();
        theirs.readable().await.unwrap();
        assert_eq!(theirs.try_read(&mut got).unwrap(), 8);
    }
}
