//! Choosing a backend for each attempt, and what a failed attempt leads to.

use std::time::{Duration, Instant};

use pingora::prelude::*;
use pingora::protocols::ALPN;
use pingora::{ErrorSource, ErrorType, RetryType};
use tollhouse_filters::problem::{self, Problem};

use super::request::{UPGRADED_IDLE, upstream};
use super::{Call, Gateway, failure, replay};
use crate::observe::AttemptOutcome;

/// Attempts after which a request that backends refuse to process is not sent again.
const MAX_UNPROCESSED: u32 = 4;

/// Chooses a backend that was not tried yet and makes the peer to connect to.
pub(super) fn choose(call: &mut Call) -> Result<Box<HttpPeer>> {
    let upstream = upstream(call);
    // The last attempt is over, and must not count against its backend.
    call.attempts.picked = None;
    let Some(picked) = upstream.pick(&call.attempts.key, &call.attempts.tried) else {
        let problem = Problem::new(&problem::NO_BACKEND).detail(upstream.unavailable());
        return failure::refuse(call, problem.into());
    };
    let mut peer = Box::new(upstream.peer(&picked));
    let attempts = &mut call.attempts;
    attempts.tried.insert(picked.index);
    attempts.started.get_or_insert(picked.guard.started());
    attempts.picked = Some(picked);
    attempts.made += 1;
    attempts.counted = false;
    narrow_timeouts(&mut peer, call)?;
    if call.upgrade {
        for_upgrade(&mut peer, call);
    }
    Ok(peer)
}

/// A tunnel: only HTTP/1.1 knows how to ask for one, and how long it may be silent is not for one
/// direction to say, so that the stand-in minds the time.
fn for_upgrade(peer: &mut HttpPeer, call: &mut Call) {
    let options = &mut peer.options;
    options.alpn = ALPN::H1;
    call.attempts.handshake = options.read_timeout.take();
    options.write_timeout = Some(UPGRADED_IDLE);
}

/// The route's own timeouts, and what is left of the whole.
fn narrow_timeouts(peer: &mut HttpPeer, call: &mut Call) -> Result<()> {
    let exchange = call.exchange();
    let options = &mut peer.options;
    if let Some(connect) = exchange.route.timeouts.connect {
        options.connection_timeout = Some(connect.get());
        options.total_connection_timeout = Some(connect.get());
    }
    if let Some(read) = exchange.route.timeouts.read {
        options.read_timeout = read.get();
        options.write_timeout = read.get();
    }
    let Some(deadline) = call.exchange().ctx.deadline else { return Ok(()) };
    let left = deadline.saturating_duration_since(Instant::now());
    if left.is_zero() {
        return failure::refuse(call, failure::overdue().into());
    }
    let narrow = |limit: &mut Option<Duration>| *limit = Some(limit.map_or(left, |limit| limit.min(left)));
    narrow(&mut options.total_connection_timeout);
    if !call.events {
        narrow(&mut options.read_timeout);
        narrow(&mut options.write_timeout);
    }
    Ok(())
}

impl Gateway {
    /// Nothing was sent, so another backend may be tried whatever the method.
    pub(super) fn connect_failed(&self, call: &mut Call, mut error: Box<Error>) -> Box<Error> {
        let upstream = upstream(call);
        upstream.series(&self.observe.registry).attempt(AttemptOutcome::ConnectFailed);
        let attempts = &mut call.attempts;
        if let Some(picked) = &mut attempts.picked {
            picked.connect_failed();
            log::debug!(upstream = &*upstream.name, backend:% = picked.address; "cannot connect: {error}");
        }
        attempts.counted = true;
        attempts.connect_failures += 1;
        error.set_retry(attempts.connect_failures <= u32::from(upstream.retries()));
        error
    }

    /// An attempt broke after it began; only what is known to be unprocessed or repeatable is tried again.
    pub(super) fn attempt_failed(
        &self,
        session: &mut Session,
        mut error: Box<Error>,
        call: &mut Call,
        client_reused: bool,
    ) -> Box<Error> {
        let replay = call.replay.take();
        if let Some(slot) = &replay {
            replay::unwrap(session, slot);
        }
        let replayed = replay.is_some();
        let attempts = &call.attempts;
        let upstream_fault = *error.esource() == ErrorSource::Upstream;
        let unanswered = failure::final_head(session).is_none() && !attempts.answered;
        let repeatable = replayed || !session.as_ref().retry_buffer_truncated();
        // The backend says that it did not process the request, whatever that asks for.
        // Pingora says so for it of invalid frames too, which may come at any time.
        let unprocessed =
            matches!(error.retry, RetryType::Decided(true)) && *error.etype() != ErrorType::InvalidH2;
        error.retry.decide_reuse(client_reused);
        // A pooled connection that the backend had closed; or it broke while it worked on the request,
        // which cannot be told apart, so that only what may be done twice is sent again.
        let stale = error.retry() || (client_reused && stale(&error));
        // Nobody acts on a request whose body did not arrive.
        let incomplete = call.body.as_ref().is_some_and(|body| {
            replayed && session.upstream_body_bytes_sent().is_some_and(|sent| (sent as u64) < body.len())
        });
        let old = stale && session.req_header().method.is_idempotent();
        let allowed = (unprocessed && attempts.made <= MAX_UNPROCESSED)
            || (old && !unprocessed)
            || (incomplete && attempts.made <= u32::from(upstream(call).retries()));
        error.set_retry(upstream_fault && unanswered && repeatable && allowed);
        let only_old = error.retry() && old && !unprocessed && !incomplete;
        if upstream_fault {
            tell(call, only_old);
        }
        if error.retry() {
            call.attempts.counted = true;
            upstream(call).series(&self.observe.registry).attempt(AttemptOutcome::Broken);
        }
        if only_old {
            // The backend is well, only the connection was old.
            call.attempts.tried = Default::default();
        }
        error
    }
}

/// What an attempt that broke says of its backend; nothing, if only the connection was old. An upgraded
/// connection ends in any way its ends like.
fn tell(call: &mut Call, only_old: bool) {
    let upgraded = call.upgrade && call.attempts.answered;
    let Some(picked) = call.attempts.picked.as_mut().filter(|_| !upgraded) else { return };
    if only_old { picked.guard.unseen() } else { picked.guard.failed() }
}

fn stale(error: &Error) -> bool {
    matches!(error.etype(), ErrorType::ConnectionClosed | ErrorType::ReadError | ErrorType::WriteError)
}
