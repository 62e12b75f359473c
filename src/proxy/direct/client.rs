//! Who is served.

use std::future::poll_fn;
use std::io;
use std::pin::pin;
use std::task::{Context, Poll};
use std::time::Instant;

use bytes::Bytes;
use http::{HeaderMap, header};
use pingora::http::ResponseHeader;
use tokio::io::{AsyncRead, AsyncWrite};
use tollhouse_filters::world::FilePart;

use super::trouble::{Failure, Trouble};
use super::wire;
use crate::door::{Alarm, DoorStream, End, Http2Stream, Rule};
use crate::proxy::response;

/// The connection of HTTP/1.1 that a request came on, or its stream of HTTP/2.
///
/// Read, it gives the body of the request, as HTTP/1.1 sends it on; when there is no more of it, it waits for the
/// client to go. What is written to it is the answer: of HTTP/1.1 all of it, of HTTP/2 its content.
pub(super) trait Client: AsyncRead + AsyncWrite + Unpin + Send {
    /// Whether heads of answers are sent as they are written, and content in chunks where there is no length.
    const HTTP1: bool;

    /// What ended the request while it was read, or its answer while it was sent: a rule that was broken, or the gateway.
    fn broken(&self) -> Option<End>;

    /// Counts the request under a rule that was found broken elsewhere.
    fn count(&self, rule: Rule);

    /// What wakes its task.
    fn alarm(&mut self) -> &mut Alarm;

    /// Until when more of the body is waited for, if it is.
    fn body_due(&self) -> Option<Instant>;

    /// What was read goes on first: the client is not waited for until more is asked of it.
    fn rest(&mut self);

    /// How much of the request is still to be read, as far as it has said so.
    fn unread(&self) -> Option<u64>;

    /// Whether the request was read to its end.
    fn is_at_end(&self) -> bool;

    /// Ready when the client says that the request is over, all of which was read.
    fn poll_end(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>>;

    /// What of the body came with the head.
    fn take_early(&mut self) -> Bytes;

    /// Notes since when there is nothing to do before the next request, where that comes on the same.
    fn rests_since(&mut self, _: Instant) {}

    /// Ready when the client went away.
    fn poll_left(&mut self, cx: &mut Context<'_>) -> Poll<()>;

    /// Whether the kernel can send it files.
    fn sends_files(&self) -> bool;

    /// Sends from a file, to who can be [sent files](Self::sends_files), after what was written before.
    fn poll_send_file(&mut self, cx: &mut Context<'_>, part: &mut FilePart) -> Poll<io::Result<usize>>;

    /// What is written for an interim answer; nothing where there is no way to send one.
    fn interim(head: &mut ResponseHeader) -> Vec<u8>;

    /// Begins the final answer, with the last of its connection's if it is, and with so much content, if that is
    /// known.
    ///
    /// # Errors
    /// The client is gone.
    fn begin(&mut self, head: Box<ResponseHeader>, last: bool, length: Option<u64>) -> io::Result<Begin>;

    /// Ends the answer: all of it was written.
    ///
    /// # Errors
    /// The client is gone, or there was to be more of it.
    fn end(&mut self, trailers: Option<HeaderMap>) -> io::Result<()>;
}

/// How an answer begins.
pub(super) struct Begin {
    /// What is written before its content, or before the rest of it.
    pub(super) head: Vec<u8>,
    /// How much content that is.
    pub(super) content: u64,
    /// Its content is written in chunks.
    pub(super) chunked: bool,
}

/// Waits for something else than the client, unless the gateway stops: nothing new begins then.
pub(super) async fn unless_stopped<T>(
    client: &impl Client,
    waited: impl Future<Output = T>,
) -> Result<T, Failure> {
    let mut waited = pin!(waited);
    poll_fn(|cx| {
        if client.broken() == Some(End::Stopped) {
            return Poll::Ready(Err(Trouble::Client.into()));
        }
        waited.as_mut().poll(cx).map(Ok)
    })
    .await
}

impl Client for DoorStream {
    const HTTP1: bool = true;

    fn broken(&self) -> Option<End> {
        self.broken()
    }

    fn count(&self, rule: Rule) {
        self.count(rule);
    }

    fn alarm(&mut self) -> &mut Alarm {
        self.alarm()
    }

    fn body_due(&self) -> Option<Instant> {
        self.body_due()
    }

    fn unread(&self) -> Option<u64> {
        self.unread()
    }

    fn is_at_end(&self) -> bool {
        self.is_at_end()
    }

    fn rest(&mut self) {
        self.rest();
    }

    /// Its length says so.
    fn poll_end(&mut self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn take_early(&mut self) -> Bytes {
        self.take_early()
    }

    fn rests_since(&mut self, now: Instant) {
        self.rests_since(now);
    }

    fn poll_left(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        self.poll_left(cx)
    }

    fn sends_files(&self) -> bool {
        self.sends_files()
    }

    fn poll_send_file(&mut self, cx: &mut Context<'_>, part: &mut FilePart) -> Poll<io::Result<usize>> {
        self.poll_send_file(cx, part)
    }

    fn interim(head: &mut ResponseHeader) -> Vec<u8> {
        response::strip_interim(head);
        let mut out = Vec::with_capacity(256);
        wire::write_answer(head, false, &mut out);
        out
    }

    fn begin(&mut self, mut head: Box<ResponseHeader>, last: bool, _: Option<u64>) -> io::Result<Begin> {
        let mut out = Vec::with_capacity(1024);
        wire::write_answer(&mut head, last, &mut out);
        let chunked = head.headers.contains_key(header::TRANSFER_ENCODING);
        Ok(Begin { head: out, content: 0, chunked })
    }

    fn end(&mut self, _: Option<HeaderMap>) -> io::Result<()> {
        Ok(())
    }
}

impl Client for Http2Stream {
    const HTTP1: bool = false;

    fn broken(&self) -> Option<End> {
        self.broken()
    }

    fn count(&self, rule: Rule) {
        self.count(rule);
    }

    fn alarm(&mut self) -> &mut Alarm {
        self.alarm()
    }

    fn body_due(&self) -> Option<Instant> {
        self.body_due()
    }

    fn unread(&self) -> Option<u64> {
        self.unread()
    }

    fn is_at_end(&self) -> bool {
        self.unread() == Some(0)
    }

    fn rest(&mut self) {
        self.rest();
    }

    fn poll_end(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.poll_end(cx)
    }

    fn take_early(&mut self) -> Bytes {
        Bytes::new()
    }

    fn poll_left(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        self.poll_left(cx)
    }

    fn sends_files(&self) -> bool {
        false
    }

    fn poll_send_file(&mut self, _: &mut Context<'_>, _: &mut FilePart) -> Poll<io::Result<usize>> {
        Poll::Ready(Err(io::ErrorKind::Unsupported.into()))
    }

    /// Pingora has no way to send interim answers over HTTP/2.
    fn interim(_: &mut ResponseHeader) -> Vec<u8> {
        Vec::new()
    }

    fn begin(&mut self, head: Box<ResponseHeader>, _: bool, length: Option<u64>) -> io::Result<Begin> {
        self.begin(head, length)?;
        Ok(Begin { head: Vec::new(), content: 0, chunked: false })
    }

    fn end(&mut self, trailers: Option<HeaderMap>) -> io::Result<()> {
        self.end(trailers)
    }
}
