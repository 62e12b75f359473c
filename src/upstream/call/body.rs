//! The body of a reply as it arrives, and the connection under it.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use futures_util::FutureExt as _;
use http::HeaderMap;
use http::header::{CONTENT_LENGTH, TRANSFER_ENCODING};
use pingora::connectors::http::Connector;
use pingora::http::ResponseHeader;
use pingora::protocols::http::client::HttpSession;
use pingora::upstreams::peer::{HttpPeer, Peer as _};
use tokio::runtime::Handle;
use tokio::time::Instant;

use super::error::within;
use super::{CallError, Caller, Failure, Waiting};
use crate::upstream::Picked;

/// The body of a reply.
///
/// Read to its end, the connection is kept for later requests; dropped before, it is closed (one
/// stream of it is reset, for HTTP/2). The backend counts as busy until then.
pub struct BodyStream {
    wire: Option<Wire>,
    trailers: Option<HeaderMap>,
    failed: Option<CallError>,
    deadline: Option<Instant>,
    /// When it began, and how much of the time since then the backend was waited for.
    begun: Instant,
    waited: Duration,
    /// When its attempt began, less than half of the time for the whole call was left.
    began_late: bool,
    /// Its time was over, of which the backend had little.
    read_late: bool,
}

impl BodyStream {
    pub(super) fn new(wire: Wire, deadline: Option<Instant>, began_late: bool) -> Self {
        let (begun, waited) = (Instant::now(), Duration::ZERO);
        let (wire, trailers, failed, read_late) = (Some(wire), None, None, false);
        Self { wire, trailers, failed, deadline, begun, waited, began_late, read_late }
    }

    /// The same, as late as it may come.
    #[must_use]
    pub fn without_deadline(self) -> Self {
        Self { deadline: None, ..self }
    }

    /// The next piece, never empty; `None` once the body is complete.
    ///
    /// # Errors
    /// A body that breaks off or takes too long; asking again gives the same error, so that a cut body
    /// never looks complete.
    pub async fn next(&mut self) -> Result<Option<Bytes>, CallError> {
        if let Some(error) = &self.failed {
            return Err(error.clone());
        }
        let Some(wire) = &mut self.wire else { return Ok(None) };
        let asked = Instant::now();
        let read = within(self.deadline, wire.read()).await;
        self.waited += asked.elapsed();
        match read {
            Ok(Some(bytes)) => Ok(Some(bytes)),
            Ok(None) => {
                if let Some(mut wire) = self.wire.take() {
                    self.trailers = wire.trailers.take();
                    wire.release().await;
                }
                Ok(None)
            }
            Err(error) => {
                // Who reads may have had most of the time, or others before the attempt began.
                let is_late = error == CallError::Timeout(Waiting::Total);
                self.read_late = is_late && (self.began_late || self.waited < self.begun.elapsed() / 2);
                if !self.read_late {
                    wire.picked.guard.failed();
                }
                Err(self.fail(error))
            }
        }
    }

    /// Whether it failed since it was begun or read too late, which is no fault of the upstream's.
    pub const fn was_read_late(&self) -> bool {
        self.read_late
    }

    /// The trailer fields of HTTP/2, once the body is complete.
    pub const fn trailers(&mut self) -> Option<HeaderMap> {
        self.trailers.take()
    }

    /// The whole body, at most `limit` bytes of it.
    ///
    /// # Errors
    /// [`CallError::TooLarge`] for a longer body, whose connection is closed; else as [`BodyStream::next`].
    pub async fn read_all(&mut self, limit: usize) -> Result<Bytes, CallError> {
        let mut whole = BytesMut::new();
        while let Some(bytes) = self.next().await? {
            if bytes.len() > limit.saturating_sub(whole.len()) {
                return Err(self.fail(CallError::TooLarge));
            }
            whole.extend_from_slice(&bytes);
        }
        Ok(whole.freeze())
    }

    fn fail(&mut self, error: CallError) -> CallError {
        self.wire = None;
        self.failed = Some(error.clone());
        error
    }
}

impl fmt::Debug for BodyStream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (open, failed) = (self.wire.is_some(), &self.failed);
        f.debug_struct("BodyStream").field("open", &open).field("failed", failed).finish_non_exhaustive()
    }
}

/// A connection with one exchange on it.
pub(super) struct Wire {
    /// Gone only while the wire is taken apart.
    session: Option<Box<HttpSession>>,
    connector: Arc<Connector>,
    peer: HttpPeer,
    /// Whether the request was sent in full, without which the connection cannot carry another.
    reusable: bool,
    trailers: Option<HeaderMap>,
    /// Keeps the in-flight count until the connection is back in the pool or closed.
    pub(super) picked: Picked,
}

impl Wire {
    pub(super) fn new(caller: &Caller, session: HttpSession, peer: HttpPeer, picked: Picked) -> Self {
        let connector = Arc::clone(&caller.connector);
        Self { session: Some(Box::new(session)), connector, peer, reusable: true, trailers: None, picked }
    }

    pub(super) fn session(&mut self) -> &mut HttpSession {
        self.session.as_deref_mut().expect("only release and drop take the session")
    }

    /// Has the connection closed instead of kept once the response is read.
    pub(super) const fn close_after(&mut self) {
        self.reusable = false;
    }

    /// Whether the response ended with its head.
    pub(super) fn is_done(&mut self) -> Result<bool, Failure> {
        Ok(match self.session() {
            HttpSession::H2(h2) => h2.check_response_end_or_error()?,
            session => session.response_done(),
        })
    }

    /// Whether more than the end of the connection says where the response ends.
    pub(super) fn is_delimited(&mut self) -> bool {
        let session = self.session();
        let framed = |head: &ResponseHeader| {
            head.headers.contains_key(CONTENT_LENGTH) || head.headers.contains_key(TRANSFER_ENCODING)
        };
        session.as_http2().is_some() || session.response_header().is_some_and(framed)
    }

    async fn read(&mut self) -> Result<Option<Bytes>, CallError> {
        let session = self.session();
        loop {
            let read = session.read_response_body().await;
            match read.map_err(|error| CallError::exchanging(&error))? {
                Some(bytes) if bytes.is_empty() => {}
                Some(bytes) => return Ok(Some(bytes)),
                None => break,
            }
        }
        if let HttpSession::H2(h2) = session {
            // The stream is complete only once its trailers are taken.
            self.trailers = h2.read_trailers().await.map_err(|error| CallError::exchanging(&error))?;
        }
        Ok(None)
    }

    /// Gives the connection back. The request must have been sent and the response read to their ends.
    async fn release(mut self) {
        if !self.reusable {
            return;
        }
        let Some(session) = self.session.take() else { return };
        self.connector.release_http_session(*session, &self.peer, self.peer.idle_timeout()).await;
    }
}

impl Drop for Wire {
    /// HTTP/1: dropping the session closes the connection. HTTP/2: the stream is reset, and the connection,
    /// which others share, must return to its pool, where its idle time is watched.
    fn drop(&mut self) {
        let Some(session) = self.session.take() else { return };
        if matches!(*session, HttpSession::H2(_)) && Handle::try_current().is_ok() {
            let idle = self.peer.idle_timeout();
            // Returning a stream never waits.
            let _ = self.connector.release_http_session(*session, &self.peer, idle).now_or_never();
        }
    }
}
