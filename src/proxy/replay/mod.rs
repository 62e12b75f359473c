//! A whole request body, read before the upstream is chosen and replayed to each attempt.
//!
//! Pingora keeps at most 64 KiB of a body that was read early. So the body is kept here, and while an
//! attempt runs, a session of ours stands in for the client's and hands the body out again.
//!
//! 1. `request_filter`: [`collect`].
//! 2. `upstream_request_filter`, each attempt: [`prepare_head`], then [`wrap`].
//! 3. `error_while_proxy` and `logging`: [`unwrap`].
//!
//! Not earlier than 2, since Pingora reconciles `Host` and `:authority` only for sessions of its own.
//! While wrapped, `set_keepalive`, `set_abort_on_close` and `is_http2` see the stand-in: do without.
//! Peers need a write timeout: Pingora does not read an early answer while it is stuck writing a body.
//!
//! Requests for an upgrade (WebSocket) have no body to replay but need a stand-in too: [`hold_end`]; and so do
//! bodies of HTTP/2 that pass as they come: [`mind`]. A stand-in also ends an attempt whose answer is late.

mod budget;
mod collect;
mod session;
#[cfg(test)]
mod tests;

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use http::{Method, header};
use parking_lot::Mutex;
use pingora::ErrorType;
use pingora::http::RequestHeader;
use pingora::protocols::http::ServerSession;
use pingora::proxy::Session;

use crate::door::Patience;

/// An attempt had no answer in the time that it had.
pub const PER_TRY: ErrorType = ErrorType::Custom("per-try timeout");
/// The backend said nothing for longer than it may, where a stand-in minds that.
pub const SILENCE: ErrorType = ErrorType::Custom("read timeout");

pub use budget::{Budget, Reservation};
pub use collect::{CollectError, Gathered, collect};

/// A request body held in memory; clones share it, and its budget is free when the last one is gone.
#[derive(Clone, Debug)]
pub struct WholeBody(Arc<Held>);

struct Held {
    chunks: Box<[Bytes]>,
    length: u64,
    _reservation: Reservation,
}

impl WholeBody {
    /// A body from one piece, as after a filter changed it; `None` if the budget does not hold it.
    pub fn new(content: Bytes, budget: &Budget) -> Option<Self> {
        let length = content.len() as u64;
        let reservation = budget.try_reserve(length)?;
        let chunks = if content.is_empty() { Vec::new() } else { vec![content] };
        Some(Self::from_chunks(chunks, reservation))
    }

    /// `chunks` must not contain empty ones: Pingora takes an empty chunk for the end.
    fn from_chunks(chunks: Vec<Bytes>, reservation: Reservation) -> Self {
        let length = reservation.bytes();
        Self(Arc::new(Held { chunks: chunks.into(), length, _reservation: reservation }))
    }

    /// The body in pieces, none of them empty.
    pub fn chunks(&self) -> &[Bytes] {
        &self.0.chunks
    }

    /// Bytes in all.
    pub fn len(&self) -> u64 {
        self.0.length
    }

    /// Whether there is no body.
    pub fn is_empty(&self) -> bool {
        self.0.chunks.is_empty()
    }

    /// The body in one piece; copies unless it is in one piece already. The copy is not budgeted.
    pub fn to_bytes(&self) -> Bytes {
        if let [only] = self.chunks() {
            return only.clone();
        }
        let mut whole = BytesMut::new();
        for chunk in self.chunks() {
            whole.extend_from_slice(chunk);
        }
        whole.freeze()
    }
}

impl fmt::Debug for Held {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} bytes in {} chunks", self.length, self.chunks.len())
    }
}

/// Where the client's session comes back to when its stand-in is dropped; one for each request.
#[derive(Clone, Default)]
pub struct Slot(Arc<Mutex<Option<Box<ServerSession>>>>);

impl Slot {
    fn put(&self, real: Box<ServerSession>) {
        *self.0.lock() = Some(real);
    }

    fn take(&self) -> Option<Box<ServerSession>> {
        self.0.lock().take()
    }
}

/// Makes the head of an attempt say how long the replayed body is.
///
/// # Errors
/// None in practice: a number is a valid field value.
pub fn prepare_head(head: &mut RequestHeader, length: u64) -> pingora::Result<()> {
    head.remove_header(&header::TRANSFER_ENCODING);
    // The client was answered already, if it asked at all.
    head.remove_header(&header::EXPECT);
    // RFC 9110 s8.6: no Content-Length where neither a body nor the method asks for one.
    if length == 0 && !expects_content(&head.method) {
        head.remove_header(&header::CONTENT_LENGTH);
        return Ok(());
    }
    head.insert_header(header::CONTENT_LENGTH, length)
}

fn expects_content(method: &Method) -> bool {
    !matches!(*method, Method::GET | Method::HEAD | Method::DELETE | Method::OPTIONS | Method::TRACE)
}

/// Puts a stand-in before the client's session, which gives `body` out from its start; without an answer at
/// `try_until` it fails with [`PER_TRY`].
pub fn wrap(session: &mut Session, body: &WholeBody, try_until: Option<Instant>, slot: &Slot) {
    stand_in(session, session::Given::Body(body.clone()), try_until, slot);
}

/// Puts a stand-in before the client's session, which leaves the end of a request for an upgrade open
/// until it is answered; from a 101 on, it passes on what the client sends. When the upstream says nothing
/// for `read`, before or within an ordinary answer, it fails with [`SILENCE`]; without an answer at `try_until`
/// with [`PER_TRY`]; and with a timeout once both sides of a tunnel were silent for `idle`.
///
/// Pingora tells its upstream half the end of an empty body through a queue. When it reads a quick 101
/// before that queue, it takes the end of the request for the end of the tunnel, and closes it.
pub fn hold_end(
    session: &mut Session,
    read: Option<Duration>,
    idle: Duration,
    try_until: Option<Instant>,
    slot: &Slot,
) {
    stand_in(session, session::Given::OpenEnd { read, idle }, try_until, slot);
}

/// Puts a stand-in before the client's session, which reads its body for as long as there is patience. Of
/// HTTP/2 streams nobody else minds that. Without an answer at `try_until` it fails with [`PER_TRY`].
pub fn mind(session: &mut Session, patience: Option<Patience>, try_until: Option<Instant>, slot: &Slot) {
    stand_in(session, session::Given::Streamed(patience), try_until, slot);
}

fn stand_in(session: &mut Session, given: session::Given, try_until: Option<Instant>, slot: &Slot) {
    unwrap(session, slot);
    let real = std::mem::replace(&mut session.downstream_session, Box::new(nobody()));
    let stand_in = session::Replay::new(real, given, try_until, slot.clone());
    *session.downstream_session = ServerSession::new_custom(Box::new(stand_in));
}

/// Puts the client's session back; does nothing if it is in place.
pub fn unwrap(session: &mut Session, slot: &Slot) {
    if !session.downstream_session.is_custom() {
        return;
    }
    // Dropping the stand-in fills the slot.
    *session.downstream_session = nobody();
    if let Some(real) = slot.take() {
        session.downstream_session = real;
    }
}

/// What holds the place for the moment of a swap; nothing is ever asked of it.
fn nobody() -> ServerSession {
    ServerSession::new_custom(Box::new(()))
}
