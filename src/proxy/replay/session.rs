//! The stand-in for a client's session whose request body was read already, is none yet, or is minded.

use std::time::{Duration, Instant};

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::Stream;
use http::{HeaderMap, header};
use pingora::http::{RequestHeader, ResponseHeader};
use pingora::prelude::timeout;
use pingora::protocols::Digest;
use pingora::protocols::http::custom::{CustomMessageWrite, server::Session as CustomSession};
use pingora::protocols::http::{HttpTask, ServerSession};
use pingora::protocols::l4::socket::SocketAddr;
use pingora::{Error, ErrorType, Result};

use super::{PER_TRY, SILENCE, Slot, WholeBody};
use crate::door::Patience;

/// What a stand-in says the request's body is.
pub(super) enum Given {
    /// One that is in memory.
    Body(WholeBody),
    /// None, with its end left open until the upstream has answered a request for an upgrade. The upstream may
    /// be silent for `read` as long as there is no tunnel, which ends when neither side says anything for `idle`.
    OpenEnd { read: Option<Duration>, idle: Duration },
    /// The client's own, which is waited for with patience where nobody else minds that.
    Streamed(Option<Patience>),
}

impl Given {
    fn chunks(&self) -> &[Bytes] {
        match self {
            Self::Body(body) => body.chunks(),
            Self::OpenEnd { .. } | Self::Streamed(_) => &[],
        }
    }
}

/// Gives out what it was given and leaves all else to the client's real session, which it puts into
/// the slot when dropped.
pub(super) struct Replay {
    /// `Some` until the drop.
    real: Option<Box<ServerSession>>,
    given: Given,
    /// Index of the chunk to give out next.
    next: usize,
    /// Until when there has to be an answer,
    try_until: Option<Instant>,
    /// or how long it may take once the client has sent everything.
    of_try: Option<Duration>,
    slot: Slot,
}

impl Replay {
    pub(super) fn new(
        real: Box<ServerSession>,
        given: Given,
        try_until: Option<Instant>,
        slot: Slot,
    ) -> Self {
        let until = try_until.filter(|_| matches!(given, Given::Streamed(_)));
        let of_try = until.map(|until| until.saturating_duration_since(Instant::now()));
        Self { real: Some(real), given, next: 0, try_until, of_try, slot }
    }

    /// Pingora does not pass on to a stand-in that a connection is to be closed.
    fn close_if_said(&mut self, head: &ResponseHeader) {
        if head.headers.get(header::CONNECTION).is_some_and(|value| value == "close") {
            self.real_mut().set_keepalive(None);
        }
    }

    fn close_if_said_in(&mut self, task: &HttpTask) {
        if let HttpTask::Header(head, _) = task {
            self.close_if_said(head);
        }
    }

    fn real(&self) -> &ServerSession {
        self.real.as_deref().expect("only drop takes it")
    }

    fn real_mut(&mut self) -> &mut ServerSession {
        self.real.as_deref_mut().expect("only drop takes it")
    }

    fn given_out(&self) -> bool {
        self.next >= self.given.chunks().len()
    }

    /// What the client says in a tunnel. Pingora asks anew whenever the upstream said something, so that
    /// a wait of `idle` means silence on both sides.
    async fn tunnelled(&mut self, no_body_expected: bool) -> Result<Option<Bytes>> {
        let said = self.real.as_deref_mut().expect("only drop takes it").read_body_or_idle(no_body_expected);
        match self.given {
            Given::OpenEnd { idle, .. } => timeout(idle, said)
                .await
                .unwrap_or_else(|_| Error::e_explain(ErrorType::ReadTimedout, "an idle tunnel")),
            Given::Body(_) | Given::Streamed(_) => said.await,
        }
    }

    /// More of a body that the client sends fast enough.
    async fn streamed(&mut self) -> Result<Option<Bytes>> {
        let slow = || Error::e_explain(ErrorType::ReadTimedout, "a body that is too slow");
        let real = self.real.as_deref_mut().expect("only drop takes it");
        let Given::Streamed(Some(patience)) = &mut self.given else { return real.read_request_body().await };
        let left = patience.waits(Instant::now()).saturating_duration_since(Instant::now());
        let Ok(read) = timeout(left, real.read_request_body()).await else { return slow() };
        let piece = read?;
        let moved = piece.as_ref().map_or(0, Bytes::len);
        if patience.moved(moved, Instant::now) || piece.is_none() { Ok(piece) } else { slow() }
    }

    /// As Pingora asks for it, however long the answer takes.
    async fn read_or_idle(&mut self, no_body_expected: bool) -> Result<Option<Bytes>> {
        if self.real().was_upgraded() {
            return self.tunnelled(no_body_expected).await;
        }
        if let Given::OpenEnd { read: Some(read), .. } = self.given {
            // Pingora asks anew whenever the upstream said something.
            let idle = timeout(read, self.real_mut().read_body_or_idle(true)).await;
            return idle.unwrap_or_else(|_| Error::e_explain(SILENCE, "no word of an answer"));
        }
        let over = if self.is_streamed() { self.is_body_done() } else { self.given_out() };
        if no_body_expected || over {
            return self.real_mut().read_body_or_idle(true).await;
        }
        self.read_body_bytes().await
    }

    fn is_streamed(&self) -> bool {
        matches!(self.given, Given::Streamed(_))
    }

    fn answered(&self) -> bool {
        let is_final = |head: &ResponseHeader| !head.status.is_informational();
        self.real().was_upgraded() || self.real().response_written().is_some_and(is_final)
    }
}

impl Drop for Replay {
    fn drop(&mut self) {
        if let Some(real) = self.real.take() {
            self.slot.put(real);
        }
    }
}

type Messages = Box<dyn Stream<Item = Result<Bytes>> + Unpin + Send + Sync + 'static>;

#[async_trait]
impl CustomSession for Replay {
    // The request body: from memory. After an upgrade (101) what the client sends is no body any
    // more and comes from the client.

    async fn read_body_bytes(&mut self) -> Result<Option<Bytes>> {
        if self.is_streamed() {
            return self.streamed().await;
        }
        let chunk = self.given.chunks().get(self.next).cloned();
        self.next += usize::from(chunk.is_some());
        Ok(chunk)
    }

    /// Pingora calls this again and again while it waits for the upstream; past the end of the body
    /// it waits for the client to leave, and gives the error that ends the attempt.
    async fn read_body_or_idle(&mut self, no_body_expected: bool) -> Result<Option<Bytes>> {
        if let Some(of_try) = self.of_try
            && self.real_mut().is_body_done()
        {
            (self.of_try, self.try_until) = (None, Some(Instant::now() + of_try));
        }
        let until = self.try_until.filter(|_| self.of_try.is_none() && !self.answered());
        let Some(until) = until else { return self.read_or_idle(no_body_expected).await };
        let left = until.saturating_duration_since(Instant::now());
        let read = timeout(left, self.read_or_idle(no_body_expected)).await;
        read.unwrap_or_else(|_| Error::e_explain(PER_TRY, "no answer to an attempt"))
    }

    async fn drain_request_body(&mut self) -> Result<()> {
        if self.is_streamed() {
            return self.real_mut().drain_request_body().await;
        }
        self.next = self.given.chunks().len();
        Ok(())
    }

    fn is_body_done(&mut self) -> bool {
        if self.real().was_upgraded() {
            return self.real_mut().is_body_done();
        }
        match self.given {
            Given::Body(_) => self.given_out(),
            Given::OpenEnd { .. } => self.answered(),
            Given::Streamed(_) => self.real_mut().is_body_done(),
        }
    }

    fn is_body_empty(&mut self) -> bool {
        if self.is_streamed() {
            return self.real_mut().is_body_empty();
        }
        self.given.chunks().is_empty()
    }

    // The retry buffer: the client's own, where that gives the body out; else none is needed, as each attempt
    // gets a stand-in that starts anew.

    fn enable_retry_buffering(&mut self) {
        if self.is_streamed() {
            self.real_mut().enable_retry_buffering();
        }
    }

    fn retry_buffer_truncated(&self) -> bool {
        self.is_streamed() && self.real().retry_buffer_truncated()
    }

    /// Pingora sends this first, and where there is nothing to send, the end of the body instead. It
    /// skips an empty piece that is not the end.
    fn get_retry_buffer(&self) -> Option<Bytes> {
        if self.is_streamed() {
            return self.real().get_retry_buffer();
        }
        matches!(self.given, Given::OpenEnd { .. }).then(Bytes::new)
    }

    // The response: to the client. `end` is known to the real session by other means.

    async fn write_response_header(&mut self, head: Box<ResponseHeader>, _end: bool) -> Result<()> {
        self.close_if_said(&head);
        self.real_mut().write_response_header(head).await
    }

    async fn write_response_header_ref(&mut self, head: &ResponseHeader, _end: bool) -> Result<()> {
        self.close_if_said(head);
        self.real_mut().write_response_header_ref(head).await
    }

    async fn write_body(&mut self, data: Bytes, end: bool) -> Result<()> {
        self.real_mut().write_response_body(data, end).await
    }

    async fn write_trailers(&mut self, trailers: HeaderMap) -> Result<()> {
        self.real_mut().write_response_trailers(trailers).await
    }

    async fn response_duplex_vec(&mut self, tasks: Vec<HttpTask>) -> Result<bool> {
        tasks.iter().for_each(|task| self.close_if_said_in(task));
        self.real_mut().response_duplex_vec(tasks).await
    }

    fn proxy_tasks_enabled(&self) -> bool {
        self.real().supports_proxy_task_api()
    }

    fn set_proxy_tasks_enabled(&mut self, enabled: bool) {
        self.real_mut().set_proxy_tasks_enabled(enabled);
    }

    fn send_proxy_task(&mut self, task: HttpTask) {
        self.close_if_said_in(&task);
        self.real_mut().send_downstream_proxy_task(task);
    }

    fn has_pending_proxy_tasks(&self) -> bool {
        self.real().has_pending_downstream_proxy_tasks()
    }

    async fn write_proxy_tasks(&mut self) -> Result<bool> {
        self.real_mut().write_downstream_proxy_tasks().await
    }

    fn response_written(&self) -> Option<&ResponseHeader> {
        self.real().response_written()
    }

    /// Ends the response only; the request ends when the real session is finished by Pingora.
    async fn finish(&mut self) -> Result<()> {
        self.real_mut().finish_body().await
    }

    async fn finish_custom(&mut self) -> Result<()> {
        Ok(())
    }

    async fn shutdown(&mut self, _code: u32, _reason: &str) {
        self.real_mut().shutdown().await;
    }

    async fn abandon(&mut self, _reason: &str) {
        self.real_mut().shutdown().await;
    }

    // Timeouts: the real session's.

    fn set_read_timeout(&mut self, timeout: Option<Duration>) {
        self.real_mut().set_read_timeout(timeout);
    }

    fn get_read_timeout(&self) -> Option<Duration> {
        self.real().get_read_timeout()
    }

    fn set_write_timeout(&mut self, timeout: Option<Duration>) {
        self.real_mut().set_write_timeout(timeout);
    }

    fn get_write_timeout(&self) -> Option<Duration> {
        self.real().get_write_timeout()
    }

    fn set_total_drain_timeout(&mut self, timeout: Option<Duration>) {
        self.real_mut().set_total_drain_timeout(timeout);
    }

    fn get_total_drain_timeout(&self) -> Option<Duration> {
        self.real().get_total_drain_timeout()
    }

    // Facts: the real session's.

    fn req_header(&self) -> &RequestHeader {
        self.real().req_header()
    }

    fn req_header_mut(&mut self) -> &mut RequestHeader {
        self.real_mut().req_header_mut()
    }

    fn request_summary(&self) -> String {
        self.real().request_summary()
    }

    fn pseudo_raw_h1_request_header(&self) -> Bytes {
        self.real().to_h1_raw()
    }

    fn body_bytes_sent(&self) -> usize {
        self.real().body_bytes_sent()
    }

    fn body_bytes_read(&self) -> usize {
        self.real().body_bytes_read()
    }

    fn digest(&self) -> Option<&Digest> {
        self.real().digest()
    }

    fn digest_mut(&mut self) -> Option<&mut Digest> {
        self.real_mut().digest_mut()
    }

    fn client_addr(&self) -> Option<&SocketAddr> {
        self.real().client_addr()
    }

    fn server_addr(&self) -> Option<&SocketAddr> {
        self.real().server_addr()
    }

    fn is_upgrade_req(&self) -> bool {
        self.real().is_upgrade_req()
    }

    fn was_upgraded(&self) -> bool {
        self.real().was_upgraded()
    }

    // Messages beside the body: HTTP has none.

    fn take_custom_message_reader(&mut self) -> Option<Messages> {
        None
    }

    fn restore_custom_message_reader(&mut self, _reader: Messages) -> Result<()> {
        Ok(())
    }

    fn take_custom_message_writer(&mut self) -> Option<Box<dyn CustomMessageWrite>> {
        None
    }

    fn restore_custom_message_writer(&mut self, _writer: Box<dyn CustomMessageWrite>) -> Result<()> {
        Ok(())
    }
}
