//! One request of HTTP/2 and its answer, for who serves it without a proxy of Pingora's.

use std::any::Any;
use std::fmt;
use std::io;
use std::pin::{Pin, pin};
use std::sync::{Arc, LazyLock};
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use bytes::{Buf, Bytes};
use h2::SendStream;
use http::{HeaderMap, header};
use parking_lot::Mutex;
use pingora::http::{RequestHeader, ResponseHeader};
use pingora::protocols::http::v2::server::HttpSession;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::super::alarm::Alarm;
use super::super::facts::{Carried, LeftBehind, carried};
use super::super::patience::Patience;
use super::super::{ConnFacts, End, HeadLimits, Rule};

/// What is still to come of a request that was answered, and is read to its end.
const MOST_DRAINED: u64 = 64 * 1024;

/// Stands in a session whose request's head was taken.
static TAKEN: LazyLock<RequestHeader> =
    LazyLock::new(|| RequestHeader::build_no_case("GET", b"/", Some(0)).expect("a valid head"));

/// A stream of an HTTP/2 connection: read, it gives the content of its request, and what is written to it is the
/// content of its answer.
pub struct Http2Stream {
    session: HttpSession,
    /// Of the request; none once it is taken.
    unread: Option<u64>,
    /// What came of it and was not given out yet.
    early: Bytes,
    /// Of the answer, once it began.
    body: Option<SendStream<Bytes>>,
    /// How much of the answer is to come, where its head said so.
    left: Option<u64>,
    /// All of the answer was written.
    ended: bool,
    broken: Option<Rule>,
    alarm: Alarm,
    reading: Patience,
    writing: Patience,
    body_timeout: Duration,
}

impl Http2Stream {
    pub(super) fn new(session: HttpSession, limits: &HeadLimits) -> Self {
        let length = session.req_header().headers.get(header::CONTENT_LENGTH);
        let length = length.and_then(|length| length.to_str().ok()?.parse().ok());
        Self {
            unread: if session.is_body_empty() { Some(0) } else { length },
            session,
            early: Bytes::new(),
            body: None,
            left: None,
            ended: false,
            broken: None,
            alarm: Alarm::default(),
            reading: Patience::new(limits.body_timeout, limits.min_rate),
            writing: Patience::new(limits.idle_timeout, limits.min_rate),
            body_timeout: limits.body_timeout,
        }
    }

    fn carried(&self) -> &Carried {
        let carrier = self.session.digest().and_then(|digest| digest.proxy_digest.as_ref());
        carrier.and_then(|carrier| carried(carrier)).expect("every connection of the door carries it")
    }

    /// What is known of its connection.
    pub fn facts(&self) -> &ConnFacts {
        &self.carried().facts
    }

    /// The request's head.
    pub fn request(&self) -> &RequestHeader {
        self.session.req_header()
    }

    /// Takes the request's head; what is read is its content.
    pub fn take_request(&mut self) -> RequestHeader {
        std::mem::replace(self.session.req_header_mut(), TAKEN.clone())
    }

    /// The session for Pingora, of which nothing was read or answered, with what was found out so far; see
    /// [`left_behind`](super::super::left_behind).
    pub(super) fn into_session(mut self, left: Option<Box<dyn Any + Send>>) -> HttpSession {
        if let Some(left) = left {
            let left = LeftBehind(Arc::new(Mutex::new(Some(left))));
            self.session.req_header_mut().extensions_mut().insert(left);
        }
        self.session
    }

    /// How much of the request's content is still to be read; none where only its end says so.
    pub fn unread(&self) -> Option<u64> {
        self.unread
    }

    /// What ended the request or its connection before its end.
    pub fn broken(&self) -> Option<End> {
        self.broken.map(End::Rule).or_else(|| self.carried().ended.get().copied())
    }

    /// Counts the request under a rule that was found broken elsewhere.
    pub fn count(&self, rule: Rule) {
        self.carried().refusals.add(rule);
    }

    /// What wakes its task.
    pub fn alarm(&mut self) -> &mut Alarm {
        &mut self.alarm
    }

    /// Until when more of the request is waited for, if it is.
    pub fn body_due(&self) -> Option<Instant> {
        self.reading.due()
    }

    /// What was read goes on first: the client is not waited for until more is asked of it.
    pub fn rest(&mut self) {
        self.reading.rests();
    }

    /// Ready when the client ended its side after all of the content.
    ///
    /// # Errors
    /// It sent more, or gave the request up (RFC 9113 s8.1.1).
    pub fn poll_end(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        loop {
            let Poll::Ready(read) = self.session.poll_read_body_bytes(cx) else {
                self.reading.waits(Instant::now());
                return Poll::Pending;
            };
            match read {
                None => return Poll::Ready(Ok(())),
                Some(Ok(content)) if content.is_empty() => {}
                Some(Ok(_)) => return Poll::Ready(Err(over())),
                Some(Err(error)) => return Poll::Ready(Err(io::Error::other(error))),
            }
        }
    }

    /// Ready when the client gave the request up.
    pub fn poll_left(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        match &mut self.body {
            Some(body) => body.poll_reset(cx).map(drop),
            None => pin!(self.session.idle()).poll(cx).map(drop),
        }
    }

    /// Begins the answer, of which so much is to follow; none where only its end will say that.
    ///
    /// # Errors
    /// The stream is over.
    pub fn begin(&mut self, head: Box<ResponseHeader>, length: Option<u64>) -> io::Result<()> {
        self.ended = length == Some(0);
        self.left = length;
        self.session.write_response_header(head, self.ended).map_err(io::Error::other)?;
        self.body = self.session.take_response_body_writer();
        Ok(())
    }

    /// Ends the answer, if that was not said with the last of it.
    ///
    /// # Errors
    /// The stream is over, or there was to be more of it.
    pub fn end(&mut self, trailers: Option<HeaderMap>) -> io::Result<()> {
        if self.ended {
            return Ok(());
        }
        if self.left.is_some_and(|left| left > 0) {
            return Err(io::ErrorKind::WriteZero.into());
        }
        let body = self.body.as_mut().ok_or_else(over)?;
        self.ended = true;
        let sent = match trailers {
            Some(trailers) => body.send_trailers(trailers),
            None => body.send_data(Bytes::new(), true),
        };
        sent.map_err(io::Error::other)
    }

    /// Sends some of the answer's content; what was sent is gone from it.
    pub fn poll_send(&mut self, cx: &mut Context<'_>, content: &mut Bytes) -> Poll<io::Result<()>> {
        let n = ready!(self.poll_room(cx, content.len()))?;
        Poll::Ready(self.send(content.split_to(n)))
    }

    /// How much may be sent of so much.
    fn poll_room(&mut self, cx: &mut Context<'_>, wanted: usize) -> Poll<io::Result<usize>> {
        let body = self.body.as_mut().filter(|_| !self.ended).ok_or_else(over)?;
        if body.capacity() < wanted {
            body.reserve_capacity(wanted);
        }
        while body.capacity() == 0 {
            match body.poll_capacity(cx) {
                Poll::Ready(Some(Ok(_))) => {}
                Poll::Ready(Some(Err(error))) => return Poll::Ready(Err(io::Error::other(error))),
                Poll::Ready(None) => return Poll::Ready(Err(over())),
                Poll::Pending => {
                    ready!(self.alarm.poll(cx, self.writing.waits(Instant::now())));
                    return Poll::Ready(Err(self.refuse(Rule::SlowReader)));
                }
            }
        }
        let room = body.capacity().min(wanted);
        let in_time = self.writing.moved(room, Instant::now);
        Poll::Ready(if in_time { Ok(room) } else { Err(self.refuse(Rule::SlowReader)) })
    }

    /// Sends content that there is room for.
    fn send(&mut self, content: Bytes) -> io::Result<()> {
        let body = self.body.as_mut().ok_or_else(over)?;
        if let Some(left) = &mut self.left {
            // More than the head said is nothing that a client could take.
            *left = left.checked_sub(content.len() as u64).ok_or_else(over)?;
        }
        self.ended = self.left == Some(0);
        body.send_data(content, self.ended).map_err(io::Error::other)
    }

    fn refuse(&mut self, rule: Rule) -> io::Error {
        self.count(rule);
        self.broken = Some(rule);
        io::ErrorKind::TimedOut.into()
    }

    /// Reads more of the request's content than was given out.
    fn poll_more(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while self.early.is_empty() {
            let Poll::Ready(read) = self.session.poll_read_body_bytes(cx) else {
                self.reading.waits(Instant::now());
                return Poll::Pending;
            };
            // The library minds that it is as long as it said (RFC 9113 s8.1.1).
            let content = read.ok_or_else(over)?.map_err(io::Error::other)?;
            if !self.reading.moved(content.len(), Instant::now) {
                return Poll::Ready(Err(self.refuse(Rule::SlowBody)));
            }
            self.early = content;
        }
        Poll::Ready(Ok(()))
    }

    /// Ends the stream. When all of the answer was sent and little of the request is left, that is read, as clients may
    /// not look for an answer before. Of more the client is told that nobody wants it (RFC 9113 s8.1), and of an answer
    /// that breaks off that it does, by the library, behind the head, when the stream is dropped.
    pub(super) async fn finish(mut self) {
        if self.ended && self.unread.is_some_and(|unread| unread <= MOST_DRAINED) {
            self.session.set_total_drain_timeout(Some(self.body_timeout));
            let _ = self.session.drain_request_body().await;
        } else if self.body.is_none() {
            self.session.shutdown();
        }
    }
}

fn over() -> io::Error {
    io::ErrorKind::BrokenPipe.into()
}

impl AsyncRead for Http2Stream {
    /// Gives content; when there is no more of it, waits for the client to go.
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if this.unread == Some(0) {
            return this.poll_left(cx).map(Ok);
        }
        ready!(this.poll_more(cx))?;
        let n = this.early.len().min(buf.remaining());
        buf.put_slice(&this.early[..n]);
        this.early.advance(n);
        this.unread = this.unread.map(|unread| unread.saturating_sub(n as u64));
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Http2Stream {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, content: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let n = ready!(this.poll_room(cx, content.len()))?;
        Poll::Ready(this.send(Bytes::copy_from_slice(&content[..n])).map(|()| n))
    }

    /// The connection's own task sends what was written.
    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(self.get_mut().end(None))
    }
}

impl fmt::Debug for Http2Stream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Http2Stream").field("facts", self.facts()).finish_non_exhaustive()
    }
}
