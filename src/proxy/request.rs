//! The request's head: taking it in and deciding.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use pingora::prelude::*;
use tollhouse_filters::context::RequestId;
use tollhouse_filters::outcome::Reply;
use tollhouse_filters::problem::{self, Problem};

use super::replay::{self, CollectError, WholeBody};
use super::{Call, Gateway, reply};
use crate::door;
use crate::engine::{Connection, Decision, Exchange};
use crate::routing::ListenerId;
use crate::upstream::Upstream;

/// Upgraded connections may be silent for this long.
pub(super) const UPGRADED_IDLE: Duration = Duration::from_secs(3600);

impl Gateway {
    /// Takes the request in, on the snapshot of this moment.
    pub(super) fn begin(&self, session: &mut Session, call: &mut Call) {
        let snapshot = self.live.load();
        let facts = door::facts(session);
        let connection = Connection {
            listener: ListenerId(facts.map_or(0, |facts| facts.listener)),
            peer: facts.and_then(|facts| facts.peer),
            tls: facts.and_then(|facts| facts.tls.clone()),
        };
        let limits = &snapshot.server.limits;
        session.set_read_timeout(Some(limits.body_timeout.get()));
        session.set_write_timeout(Some(limits.idle_timeout.get()));
        // Pingora has decided to close: the client said so, or sent both length and coding.
        let keepalive = session.get_keepalive().and_then(|_| self.keepalive(limits.idle_timeout.get()));
        call.version = session.req_header().version;
        call.in_flight = Some(self.observe.registry.enter());
        let request_id = RequestId::Made(fastrand::u128(1..));
        let request = session.req_header_mut();
        let exchange = Exchange::begin(snapshot, &connection, request, request_id, Instant::now());
        call.connection = Some(connection);
        session.set_keepalive(keepalive.filter(|_| !exchange.is_refused()));
        // What else asked for an upgrade is an ordinary request by now.
        call.upgrade = session.is_upgrade_req();
        call.exchange = Some(Box::new(exchange));
    }

    /// Seconds a connection may idle after this request; none when the process is on its way out.
    fn keepalive(&self, idle: Duration) -> Option<u64> {
        (!self.draining.is_on()).then(|| idle.as_secs().max(1))
    }

    /// Runs the filters; true when the request was answered.
    pub(super) async fn decide(&self, session: &mut Session, call: &mut Call) -> Result<bool> {
        let decision = call.exchange().decide(session.req_header_mut()).await;
        let upstream = match decision {
            Decision::Reply(reply) => return reply::write(session, call, reply).await.map(|()| true),
            Decision::Forward(upstream) => upstream,
        };
        if let Some(reply) = self.whole_body(session, call).await? {
            return reply::write(session, call, reply).await.map(|()| true);
        }
        if call.upgrade {
            session.set_read_timeout(Some(UPGRADED_IDLE));
            session.set_write_timeout(Some(UPGRADED_IDLE));
        }
        call.attempts.upstream = Some(upstream);
        Ok(false)
    }

    /// Collects the request body for the filters that want the whole of it.
    async fn whole_body(&self, session: &mut Session, call: &mut Call) -> Result<Option<Reply>> {
        let Some(limit) = call.exchange().wants_body() else { return Ok(None) };
        if call.upgrade {
            // It has none, which is for the filters to judge; there is nothing to replay.
            return Ok(call.exchange().body(session.req_header_mut(), &mut Bytes::new()).await);
        }
        let between_reads = call.exchange().snapshot.server.limits.body_timeout.get();
        let collected = replay::collect(session, limit, &self.budget, Some(between_reads)).await;
        let whole = match collected {
            Ok(whole) => whole,
            Err(CollectError::TooLarge) => return Ok(Some(Problem::new(&problem::BODY_TOO_LARGE).into())),
            Err(CollectError::NoBudget) => return Ok(Some(out_of_budget())),
            Err(CollectError::Timeout) => return Ok(Some(Problem::new(&problem::REQUEST_TIMEOUT).into())),
            // Pingora does not say of every error of the client that it is one.
            Err(CollectError::Client(error)) => return Err(error.into_down()),
        };
        let before = whole.to_bytes();
        let mut body = before.clone();
        if let Some(reply) = call.exchange().body(session.req_header_mut(), &mut body).await {
            return Ok(Some(reply));
        }
        // Most filters only look: then the pieces stay as they came.
        let unchanged = body.as_ptr() == before.as_ptr() && body.len() == before.len();
        let whole = if unchanged { Some(whole) } else { WholeBody::new(body, &self.budget) };
        match whole {
            Some(whole) => call.body = Some(whole),
            None => return Ok(Some(out_of_budget())),
        }
        Ok(None)
    }
}

fn out_of_budget() -> Reply {
    Problem::new(&problem::OVERLOADED).detail("too many bodies are being buffered").into()
}

/// The upstream that the filters sent the request to.
pub(super) fn upstream(call: &Call) -> Arc<Upstream> {
    call.attempts
        .upstream
        .clone()
        .expect("Pingora asks for a peer only after request_filter let the request pass")
}
