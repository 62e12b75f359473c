//! The request's head: taking it in and deciding.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::{Version, header};
use pingora::http::RequestHeader;
use pingora::prelude::*;
use tollhouse_filters::context::RequestId;
use tollhouse_filters::outcome::Reply;
use tollhouse_filters::problem::{self, Problem};

use super::replay::{self, CollectError, Gathered, WholeBody};
use super::{Call, Gateway, direct, failure, hedge, is_gone, reply};
use crate::door::{self, Patience};
use crate::engine::{Connection, Exchange};
use crate::routing::ListenerId;
use crate::upstream::Upstream;

/// Upgraded connections may be silent for this long.
pub(super) const UPGRADED_IDLE: Duration = Duration::from_secs(3600);

impl Gateway {
    /// Takes the request in, unless that was done before.
    pub(super) fn begin(&self, session: &mut Session, call: &mut Box<Call>) {
        let upgrade = session.req_header().headers.contains_key(header::UPGRADE);
        if let Some(left) = door::left_behind(session).and_then(|left| left.downcast::<Left>().ok()) {
            let Left { call: begun, request } = *left;
            *call = begun;
            *session.req_header_mut() = request;
        } else {
            call.version = session.req_header().version;
            let unknown = Connection { listener: ListenerId(0), peer: None, tls: None };
            let connection = door::facts(session).map_or(unknown, direct::connection);
            self.take_in(connection, session.req_header_mut(), call);
            let http2 = call.version == Version::HTTP_2;
            call.exchange().ctx.goes_on = http2 && !session.downstream_session.is_body_empty();
        }
        self.set_up(session, call, upgrade);
    }

    /// Takes a request in, on the snapshot of this moment.
    pub(super) fn take_in(&self, connection: Connection, request: &mut RequestHeader, call: &mut Call) {
        call.in_flight = Some(self.observe.registry.enter());
        let request_id = RequestId::Made(fastrand::u128(1..));
        if call.version == Version::HTTP_10 {
            // RFC 9110 s10.1.1, s15.2: such a client neither waits for an interim answer nor knows one.
            request.remove_header(&header::EXPECT);
        }
        let snapshot = self.live.load();
        let exchange = Exchange::begin(snapshot, &connection, request, request_id, Instant::now());
        call.connection = Some(connection);
        call.events = exchange.asks_for_events;
        call.exchange = Some(exchange);
    }

    /// Tells Pingora how long to wait for the client, and whether its connection can be kept.
    fn set_up(&self, session: &mut Session, call: &mut Call, upgrade: bool) {
        let exchange = call.exchange();
        let limits = &exchange.snapshot.server.limits;
        session.set_read_timeout(Some(limits.body_timeout.get()));
        if session.req_header().version == Version::HTTP_2 || upgrade {
            // The door knows neither of a stream without window nor what becomes of a tunnel; of all else it does.
            session.set_write_timeout(Some(limits.idle_timeout.get()));
            // What is left of a body that was answered early is read for a while, and then reset.
            session.set_total_drain_timeout(Some(limits.body_timeout.get()));
        }
        // Pingora has decided to close: the client said so, or sent both length and coding.
        let keepalive = session.get_keepalive().and_then(|_| self.keepalive(limits.idle_timeout.get()));
        session.set_keepalive(keepalive.filter(|_| !exchange.is_refused()));
        // What else asked for an upgrade is an ordinary request by now.
        call.upgrade = session.is_upgrade_req();
        if call.version == Version::HTTP_10 {
            session.set_ignore_info_resp(true);
        }
    }

    /// Seconds a connection may idle after this request; none when the process is on its way out.
    fn keepalive(&self, idle: Duration) -> Option<u64> {
        (!self.draining.is_on()).then(|| idle.as_secs().max(1))
    }

    /// Runs the filters; true when the request was answered.
    pub(super) async fn decide(&self, session: &mut Session, call: &mut Call) -> Result<bool> {
        let decision = match call.decided.take() {
            Some(decision) => decision,
            None => self.watched_decision(session, call).await,
        };
        let upstream = match decision {
            Ok(upstream) => upstream,
            Err(reply) if call.exchange().wants_body_before_answer().is_some() => {
                // On the heap: most answers of ours wait for no body.
                let refused = Box::pin(self.whole_body(session, call)).await?;
                return answer(session, call, refused.unwrap_or(reply)).await;
            }
            Err(reply) => return answer(session, call, reply).await,
        };
        if upstream.insists_on_http2() {
            // RFC 9110 s7.8: what cannot be offered is an ordinary request.
            call.upgrade = false;
        }
        if let Some(reply) = self.whole_body(session, call).await? {
            return answer(session, call, reply).await;
        }
        if let Some(reply) = self.hedge(session, call, &upstream).await {
            return answer(session, call, reply).await;
        }
        if call.upgrade {
            // The stand-in knows when both sides are silent.
            session.set_read_timeout(None);
            session.set_write_timeout(Some(UPGRADED_IDLE));
        }
        let ctx = call.exchange.as_ref().map(|exchange| &exchange.ctx);
        upstream.write_key(session.req_header(), ctx, &mut call.attempts.key);
        call.attempts.stuck = upstream.stuck_to(session.req_header());
        call.attempts.upstream = Some(upstream);
        Ok(false)
    }

    /// The answer to a request that is hedged, which one with a body on its way is not.
    async fn hedge(&self, session: &mut Session, call: &mut Call, upstream: &Arc<Upstream>) -> Option<Reply> {
        let hedge = hedge::of(call, upstream, session.req_header())?;
        let body: Vec<Bytes> = match &call.body {
            Some(whole) => whole.chunks().to_vec(),
            None if session.downstream_session.is_body_empty() => Vec::new(),
            None => return None,
        };
        if call.body.is_none()
            && let Some(reply) = call.exchange().no_pieces()
        {
            return Some(reply);
        }
        // On the heap: most requests are not.
        Some(Box::pin(self.watched_hedge(session, call, (upstream.clone(), hedge), body.into())).await)
    }

    /// Collects the request body for the filters that want the whole of it.
    async fn whole_body(&self, session: &mut Session, call: &mut Call) -> Result<Option<Reply>> {
        let Some(limit) = call.exchange().wants_body() else { return Ok(None) };
        if call.upgrade {
            // It has none, which is for the filters to judge; there is nothing to replay.
            return Ok(call.exchange().body(session.req_header_mut(), &mut Bytes::new()).await);
        }
        let is_http2 = call.version == Version::HTTP_2;
        let limits = &call.exchange().snapshot.server.limits;
        // The door minds the rate of HTTP/1.
        let rate = limits.min_rate.get().filter(|_| is_http2);
        let patience = Patience::new(limits.body_timeout.get(), rate);
        let asked = Instant::now();
        let deadline = call.exchange().ctx.deadline.filter(|_| !call.events);
        let collecting = replay::collect(session, limit, &self.budget, patience);
        let collected = match deadline {
            Some(deadline) => timeout(deadline.saturating_duration_since(asked), collecting)
                .await
                .unwrap_or(Err(CollectError::Overdue)),
            None => collecting.await,
        };
        call.gathering = asked.elapsed();
        let whole = match collected {
            Ok(whole) => whole,
            Err(error @ CollectError::Timeout) => {
                door::count(session, door::Rule::SlowBody);
                return Ok(Some(refusal(&error)));
            }
            // Pingora does not say of every error of the client that it is one.
            Err(CollectError::Client(error)) => return Err(error.into_down()),
            Err(error) => return Ok(Some(refusal(&error))),
        };
        match self.seen(whole, limit, call.exchange(), session.req_header_mut()).await {
            Ok(whole) => call.body = Some(whole),
            Err(reply) => return Ok(Some(reply)),
        }
        Ok(None)
    }

    /// Shows a body to the filters; what they make of it.
    pub(super) async fn seen(
        &self,
        whole: WholeBody,
        limit: u64,
        exchange: &mut Exchange,
        request: &mut RequestHeader,
    ) -> Result<WholeBody, Reply> {
        let whole = self.through_pieces(whole, limit, exchange)?;
        let before = whole.to_bytes();
        let mut body = before.clone();
        if let Some(reply) = exchange.body(request, &mut body).await {
            return Err(reply);
        }
        // Most filters only look: then the pieces stay as they came.
        let unchanged = body.as_ptr() == before.as_ptr() && body.len() == before.len();
        let whole = if unchanged { Some(whole) } else { WholeBody::new(body, &self.budget) };
        whole.ok_or_else(|| refusal(&CollectError::NoBudget))
    }

    /// Filters that look at pieces come before those that want the whole.
    fn through_pieces(
        &self,
        whole: WholeBody,
        limit: u64,
        exchange: &mut Exchange,
    ) -> Result<WholeBody, Reply> {
        if !exchange.stack.sees_request_chunks() {
            return Ok(whole);
        }
        let mut gathered = Gathered::new(limit, &self.budget);
        let mut pass = |came: &Bytes, end| {
            let mut piece = came.clone();
            if let Some(reply) = exchange.request_chunk(&mut piece, end) {
                return Err(reply);
            }
            if piece.as_ptr() != came.as_ptr() {
                // What a filter made takes memory of its budget for as long as it is held; the copy only of this one.
                piece = Bytes::copy_from_slice(&piece);
            }
            gathered.push(piece).map_err(|error| refusal(&error))
        };
        for piece in whole.chunks() {
            pass(piece, false)?;
        }
        pass(&Bytes::new(), true)?;
        Ok(gathered.finish())
    }
}

/// Answers, if there is somebody left to hear it.
async fn answer(session: &mut Session, call: &mut Call, reply: Reply) -> Result<bool> {
    if is_gone(&reply) {
        return Err(Error::explain(ErrorType::ConnectionClosed, "it left while it waited").into_down());
    }
    reply::write(session, call, reply).await.map(|()| true)
}

/// A request that was taken in before Pingora knew of it.
pub(super) struct Left {
    pub(super) call: Box<Call>,
    pub(super) request: RequestHeader,
}

pub(super) fn refusal(error: &CollectError) -> Reply {
    let problem = match error {
        CollectError::TooLarge => Problem::new(&problem::BODY_TOO_LARGE),
        CollectError::NoBudget => {
            Problem::new(&problem::OVERLOADED).detail("too many bodies are being buffered")
        }
        CollectError::Timeout => Problem::new(&problem::REQUEST_TIMEOUT),
        CollectError::Overdue => Problem::new(&problem::REQUEST_TIMEOUT).detail(failure::TOTAL),
        CollectError::Client(_) => Problem::new(&problem::BAD_REQUEST),
    };
    problem.into()
}

/// The upstream that the filters sent the request to.
pub(super) fn upstream(call: &Call) -> &Arc<Upstream> {
    call.attempts
        .upstream
        .as_ref()
        .expect("Pingora asks for a peer only after request_filter let the request pass")
}
