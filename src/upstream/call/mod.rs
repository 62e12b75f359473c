//! The call path: a request in, a head and a stream of body out.
//!
//! Calls go through the same upstreams as proxied requests: same peers, timeouts, retries and
//! counts. Redirects are not followed.

mod account;
mod body;
mod error;
mod head;
mod hedge;

#[cfg(test)]
mod tests;

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use pingora::connectors::ConnectorOptions;
use pingora::connectors::http::Connector;
use pingora::http::{RequestHeader, ResponseHeader};
use pingora::protocols::http::client::HttpSession;
use pingora::upstreams::peer::HttpPeer;
use tokio::sync::mpsc::UnboundedSender;
use tokio::time::Instant;

use self::body::Wire;
use self::error::{Limit, by, within};
use super::{Asked, Backend, Fault, NOT_HTTP2, Picked, Progress, Rules, Tried, Upstream};
use crate::config::retries::RouteRetries;

pub use self::account::{Account, Attempt};
pub use self::body::BodyStream;
pub(crate) use self::error::describe;
pub use self::error::{CallError, Waiting};
pub(super) use self::head::name_as_http2;

/// Idle connections kept over all upstreams, for each HTTP version.
const POOL: usize = 16_384;

/// Makes calls to upstreams. Cheap to clone; clones share their connections.
#[derive(Clone)]
pub struct Caller {
    connector: Arc<Connector>,
}

/// What a call may override.
#[derive(Debug, Clone, Default)]
pub struct CallOptions {
    /// The limit on the whole call, reading the body included, instead of the upstream's `timeouts.total`; none for no
    /// limit.
    pub timeout: Option<Option<Duration>>,
    /// What balancing by key goes by, instead of the upstream's `hash_on` of the call's own head.
    pub key: Bytes,
    /// The limit on connecting, instead of the upstream's `timeouts.connect`.
    pub connect: Option<Duration>,
    /// The limit between two reads of the answer, instead of the upstream's `timeouts.read`; none for no limit.
    pub read: Option<Option<Duration>>,
    /// Who is told of interim answers (1xx) of HTTP/1.1, as they come.
    pub interim: Option<UnboundedSender<ResponseHeader>>,
    /// What narrows the upstream's retries.
    pub retries: Option<RouteRetries>,
    /// The backend that the caller stays with, if it can be used.
    pub stuck: Option<Arc<Backend>>,
}

/// A request body, sent with its length known.
#[derive(Debug, Clone, Default)]
pub struct Payload(Vec<Bytes>);

/// The answer to a call: the final head, without hop-by-hop fields, and the body as it arrives.
#[derive(Debug)]
pub struct Reply {
    /// The final response head.
    pub head: ResponseHeader,
    /// The body.
    pub body: BodyStream,
    /// Whether more than the end of the connection says where the body ends, so that one that was cut is known
    /// (RFC 9112 s8).
    pub delimited: bool,
    /// The backend that answered.
    pub backend: Arc<Backend>,
}

/// Why an attempt failed: what the rules of retries call that, if they do.
struct Failed {
    fault: Option<Fault>,
    error: CallError,
}

/// Why an exchange failed, and what that is; old is a connection only if it was kept.
struct Failure {
    error: CallError,
    fault: Fault,
}

impl Caller {
    /// A caller with a pool of its own. Reads the system's certificate authorities; slow, and needs
    /// rustls's default provider to be installed.
    pub fn new() -> Self {
        let options = ConnectorOptions::new(POOL);
        Self { connector: Arc::new(Connector::new(Some(options))) }
    }

    /// Sends a request to one of the upstream's backends and waits for the final head.
    ///
    /// Hop-by-hop fields, framing and `Host` of `head` are replaced. A connection that cannot be made and
    /// a stream that is refused are retried as the upstream's rules allow; an idempotent request also when a
    /// pooled connection turns out to be closed (RFC 9110 section 9.2.2), or the rules name what went wrong before
    /// the head of an answer.
    ///
    /// # Errors
    /// See [`CallError`]; [`CallError::status`] says how to answer for it.
    pub async fn send(
        &self,
        upstream: &Upstream,
        head: RequestHeader,
        body: impl Into<Payload>,
        options: CallOptions,
    ) -> Result<Reply, CallError> {
        self.send_and_tell(upstream, (head, body.into()), options, &mut Account::default()).await
    }

    /// As [`send`](Self::send), and tells of its attempts.
    ///
    /// # Errors
    /// See [`CallError`].
    pub async fn send_and_tell(
        &self,
        upstream: &Upstream,
        (head, body): (RequestHeader, Payload),
        options: CallOptions,
        account: &mut Account,
    ) -> Result<Reply, CallError> {
        let (call, key) = Call::new(self, upstream, head, body, options);
        let sent = within(call.deadline, Box::pin(call.attempts(&key, account))).await;
        if matches!(sent, Err(CallError::Timeout(_))) {
            account.overdue();
        }
        sent
    }

    pub(super) fn connector(&self) -> &Connector {
        &self.connector
    }
}

impl Default for Caller {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Debug for Caller {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Caller")
    }
}

impl Payload {
    /// No body.
    pub const EMPTY: Self = Self(Vec::new());

    /// The length in bytes.
    pub fn len(&self) -> usize {
        self.0.iter().map(Bytes::len).sum()
    }

    /// Whether there are no bytes.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

impl From<Bytes> for Payload {
    fn from(bytes: Bytes) -> Self {
        Self(vec![bytes])
    }
}

impl From<Vec<Bytes>> for Payload {
    fn from(chunks: Vec<Bytes>) -> Self {
        Self(chunks)
    }
}

struct Call<'a> {
    caller: &'a Caller,
    upstream: &'a Upstream,
    head: RequestHeader,
    body: Payload,
    /// Since when there is time for it.
    begun: std::time::Instant,
    deadline: Option<Instant>,
    /// On connecting, and between two reads.
    limits: (Option<Duration>, Option<Option<Duration>>),
    interim: Option<UnboundedSender<ResponseHeader>>,
    retries: Option<RouteRetries>,
    stuck: Option<Arc<Backend>>,
}

impl<'a> Call<'a> {
    /// A call, and what balancing goes by.
    fn new(
        caller: &'a Caller,
        upstream: &'a Upstream,
        head: RequestHeader,
        body: Payload,
        options: CallOptions,
    ) -> (Self, Vec<u8>) {
        let limit = options.timeout.unwrap_or_else(|| upstream.total_timeout());
        let begun = std::time::Instant::now();
        let deadline = limit.map(|limit| Instant::now() + limit);
        let mut key = options.key.to_vec();
        if key.is_empty() {
            upstream.write_key(&head, None, &mut key);
        }
        let limits = (options.connect, options.read);
        let CallOptions { interim, retries, stuck, .. } = options;
        (Self { caller, upstream, head, body, begun, deadline, limits, interim, retries, stuck }, key)
    }

    async fn attempts(&self, key: &[u8], account: &mut Account) -> Result<Reply, CallError> {
        let mut tried = Tried::default();
        let mut progress = Progress::default();
        self.upstream.asked(std::time::Instant::now());
        loop {
            let picked =
                self.upstream.pick_for(self.stuck.as_ref(), key, &tried).ok_or(CallError::NoBackend)?;
            let index = picked.index;
            let nth = account.begin(picked.address, false);
            let ended = Box::pin(self.attempt(picked, self.rules().per_try())).await;
            account.end(nth, &ended);
            let Failed { fault, error } = match ended {
                Ok((mut wire, head)) => {
                    if !self.instead_of(&head, &mut progress, account).await {
                        return self.reply(wire, head).await;
                    }
                    wire.picked.guard.answered(head.status.as_u16());
                    tried.insert(index);
                    continue;
                }
                Err(failed) => failed,
            };
            let Some(fault) = fault else { return Err(error) };
            if fault.is_old_connection() {
                // The backend is well.
                tried = Tried::default();
            } else {
                tried.insert(index);
            }
            self.again(fault, &mut progress, account).await.ok_or(error)?;
        }
    }

    /// One attempt, to the head of its answer, which may take as long and no longer than the whole call.
    async fn attempt(
        &self,
        mut picked: Picked,
        per_try: Option<Duration>,
    ) -> Result<(Wire, ResponseHeader), Failed> {
        let limit = self.limit(per_try);
        let left = limit.map(|(at, _)| at.saturating_duration_since(std::time::Instant::now()));
        let request = head::request(&self.head, self.body.len(), (self.upstream, &picked), left);
        let request = request.map_err(|error| Failed { fault: None, error })?;
        let mut peer = self.upstream.peer(&picked);
        self.narrow(&mut peer);
        let (session, reused) = match by(limit, Box::pin(self.connect(&peer))).await {
            Ok(connected) => connected,
            Err(error) => {
                // Others may have had most of the time.
                if error != CallError::Timeout(Waiting::Total) {
                    self.upstream.connect_failed(&mut picked);
                } else if !self.had_little(picked.guard.started()) {
                    picked.guard.failed();
                }
                // Whatever ended it, nothing was sent.
                return Err(Failed { fault: Some(Fault::Connect), error });
            }
        };
        let mut wire = Wire::new(self.caller, session, peer, picked);
        let failure = match by(limit, self.exchange(&mut wire, request)).await {
            Ok(head) => return Ok((wire, head)),
            Err(failure) => failure,
        };
        let fault = match failure.fault {
            Fault::Stale if !reused => Fault::Reset,
            fault => fault,
        };
        let guard = &mut wire.picked.guard;
        if fault == Fault::Stale {
            guard.unseen();
        } else if failure.error != CallError::Timeout(Waiting::Total) || !self.had_little(guard.started()) {
            guard.failed();
        }
        Err(Failed { fault: Some(fault), error: failure.error })
    }

    /// Whether an attempt that began then has less than half of the time of the whole call.
    fn had_little(&self, begun: std::time::Instant) -> bool {
        self.deadline.is_some_and(|deadline| {
            let left = |then| deadline.into_std().saturating_duration_since(then);
            left(begun) < left(self.begun) / 2
        })
    }

    /// What ends an attempt first. The call's own end is one too, so that who took so long is told of.
    fn limit(&self, per_try: Option<Duration>) -> Option<Limit> {
        let of_try = per_try.map(|limit| (std::time::Instant::now() + limit, Waiting::Try));
        let of_call = self.deadline.map(|deadline| (deadline.into_std(), Waiting::Total));
        of_try.into_iter().chain(of_call).min_by_key(|(at, _)| *at)
    }

    /// Waits for another attempt; none if there is none.
    async fn again(&self, fault: Fault, progress: &mut Progress, account: &mut Account) -> Option<()> {
        let left = self.deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
        let (method, headers) = (&self.head.method, &self.head.headers);
        let asked = Asked { method, headers, repeatable: true, left };
        let now = std::time::Instant::now();
        let judged = self.rules().judge(fault, &asked, progress, now, fastrand::f64());
        match judged {
            Ok(after) => {
                account.retried.push(fault.as_str());
                tokio::time::sleep(after).await;
                Some(())
            }
            Err(out_of_budget) => {
                account.out_of_budget |= out_of_budget;
                None
            }
        }
    }

    /// Waits for another attempt in the place of this answer; false if there is none.
    async fn instead_of(
        &self,
        head: &ResponseHeader,
        progress: &mut Progress,
        account: &mut Account,
    ) -> bool {
        match self.rules().fault_of(head.status.as_u16(), Some(&head.headers)) {
            Some(fault) => self.again(fault, progress, account).await.is_some(),
            None => false,
        }
    }

    /// What heads of answers may have: who is told of interim ones is a client.
    const fn most(&self) -> head::Most {
        if self.interim.is_some() { head::Most::OF_CLIENTS } else { head::Most::OWN }
    }

    fn rules(&self) -> Rules<'_> {
        self.upstream.rules(self.retries.as_ref())
    }

    fn narrow(&self, peer: &mut HttpPeer) {
        let (connect, read) = self.limits;
        if connect.is_some() {
            peer.options.connection_timeout = connect;
            peer.options.total_connection_timeout = connect;
        }
        if let Some(read) = read {
            peer.options.read_timeout = read;
            peer.options.write_timeout = read;
        }
    }

    async fn connect(&self, peer: &HttpPeer) -> Result<(HttpSession, bool), CallError> {
        let connected = self.caller.connector.get_http_session(peer).await;
        let (mut session, reused) = connected.map_err(|error| CallError::connecting(&error))?;
        if self.upstream.insists_on_http2() && session.as_http2().is_none() {
            return Err(CallError::Connect(NOT_HTTP2.into()));
        }
        session.set_read_timeout(peer.options.read_timeout);
        session.set_write_timeout(peer.options.write_timeout);
        Ok((session, reused))
    }

    async fn exchange(
        &self,
        wire: &mut Wire,
        mut request: Box<RequestHeader>,
    ) -> Result<ResponseHeader, Failure> {
        let session = wire.session();
        if session.as_http2().is_some() {
            head::name_as_http2(&mut request, self.upstream.is_tls())?;
        }
        session.write_request_header(request).await?;
        let sent = match self.write_body(session).await {
            Err(failure) if failure.error == CallError::Timeout(Waiting::Write) => return Err(failure),
            sent => sent,
        };
        match (sent, self.read_head(session).await) {
            (Ok(()), Ok(())) => head::response(session, self.most()),
            // A backend may refuse early and stop reading: what it says is worth more than our failed write.
            (Err(_), Ok(())) => {
                let head = head::response(session, self.most())?;
                wire.close_after();
                Ok(head)
            }
            // That nobody acted on it, only what is read says.
            (Err(_), Err(told)) if told.fault == Fault::Refused => Err(told),
            (Err(failure), Err(_)) | (Ok(()), Err(failure)) => Err(failure),
        }
    }

    async fn reply(&self, mut wire: Wire, head: ResponseHeader) -> Result<Reply, CallError> {
        wire.picked.guard.answered(head.status.as_u16());
        let backend = Arc::clone(&wire.picked.backend);
        let delimited = wire.is_delimited();
        let status_ends_it = wire.is_done().map_err(|failure| {
            wire.picked.guard.failed();
            failure.error
        })?;
        let began_late = self.had_little(wire.picked.guard.started());
        let mut body = BodyStream::new(wire, self.deadline, began_late);
        if status_ends_it {
            // No body: give the connection back even if the caller never asks for one.
            body.next().await?;
        }
        Ok(Reply { head, body, delimited: delimited || status_ends_it, backend })
    }

    async fn write_body(&self, session: &mut HttpSession) -> Result<(), Failure> {
        for chunk in self.body.0.iter().filter(|chunk| !chunk.is_empty()) {
            session.write_request_body(chunk.clone(), false).await?;
        }
        session.finish_request_body().await?;
        Ok(())
    }

    /// Reads heads until the final one.
    async fn read_head(&self, session: &mut HttpSession) -> Result<(), Failure> {
        let mut told = 0;
        for _ in 0..=self.most().interim {
            session.read_response_header().await?;
            let status = session.response_header().map(|head| head.status);
            match status {
                // Nothing was asked that this could answer (RFC 9110 section 15.2.2).
                Some(http::StatusCode::SWITCHING_PROTOCOLS) => break,
                // The h2 crate skips them itself.
                Some(status) if status.is_informational() && session.as_http1().is_some() => {
                    if let Some(interim) = &self.interim {
                        let head = head::response(session, self.most())?;
                        // They wait for a client that may read slowly.
                        told += head::length(&head);
                        if told > self.most().bytes {
                            return Err(CallError::TooLarge.into());
                        }
                        let _ = interim.send(head);
                    }
                }
                _ => return Ok(()),
            }
        }
        Err(CallError::Protocol("an unexpected interim response".into()).into())
    }
}

impl From<CallError> for Failure {
    fn from(error: CallError) -> Self {
        Self { error, fault: Fault::Reset }
    }
}

impl From<pingora::BError> for Failure {
    fn from(error: pingora::BError) -> Self {
        Self { fault: head::fault(&error), error: CallError::exchanging(&error) }
    }
}
