//! Choosing a backend for each attempt, and what a failed attempt leads to.

use std::time::{Duration, Instant};

use pingora::http::ResponseHeader;
use pingora::prelude::*;
use pingora::protocols::ALPN;
use pingora::{ErrorSource, ErrorType, RetryType};
use tokio::time::sleep;

use super::attempts::Spared;
use super::replay::{PER_TRY, SILENCE};
use super::request::{UPGRADED_IDLE, upstream};
use super::{Call, Gateway, failure, replay};
use crate::observe::AttemptOutcome;
use crate::upstream::Fault;

/// Chooses a backend that was not tried yet and makes the peer to connect to.
pub(super) async fn choose(call: &mut Call) -> Result<Box<HttpPeer>> {
    if let Some(wait) = call.attempts.wait.take().filter(|wait| !wait.is_zero()) {
        sleep(wait).await;
    }
    if let Err(problem) = call.next_backend() {
        return failure::refuse(call, problem.into());
    }
    let picked = call.attempts.picked.as_ref().expect("one was chosen");
    let mut peer = Box::new(upstream(call).peer(picked));
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
    let narrow =
        |limit: &mut Option<Duration>, left| *limit = Some(limit.map_or(left, |limit| limit.min(left)));
    if let Some(limit) = call.rules().per_try() {
        // The stand-in minds the wait for the head.
        narrow(&mut options.total_connection_timeout, limit);
        narrow(&mut options.write_timeout, limit);
    }
    let Some(deadline) = call.exchange().ctx.deadline else { return Ok(()) };
    let left = deadline.saturating_duration_since(Instant::now());
    if left.is_zero() {
        return failure::refuse(call, failure::overdue().into());
    }
    narrow(&mut options.total_connection_timeout, left);
    if !call.events {
        narrow(&mut options.read_timeout, left);
        narrow(&mut options.write_timeout, left);
    }
    Ok(())
}

impl Gateway {
    /// No connection could be made.
    pub(super) fn connect_failed(
        &self,
        session: &mut Session,
        call: &mut Call,
        mut error: Box<Error>,
    ) -> Box<Error> {
        if let Some(picked) = &call.attempts.picked {
            let upstream = upstream(call).clone();
            log::debug!(upstream = &*upstream.name, backend:% = picked.address; "cannot connect: {error}");
        }
        let repeatable = self.repeatable(session, call, false);
        let failed = AttemptOutcome::ConnectFailed;
        self.go_on(session, call, (Fault::Connect, failed), repeatable, &mut error);
        error
    }

    /// An attempt broke after it began.
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
        if call.attempts.wait.is_some() {
            // Its answer was judged already.
            error.set_retry(true);
            return error;
        }
        if *error.etype() == SILENCE {
            // Pingora takes what a stand-in says for the client's word.
            error.etype = ErrorType::ReadTimedout;
            error.as_up();
        }
        let kept_waiting = !call.upgrade && failure::is_kept_waiting(session, &error);
        if kept_waiting {
            // The client had the time, also that of a gRPC call, which ends as if it had been the backend's.
            call.attempts.spared = Some(Spared::Upstream);
        }
        let by_upstream = *error.esource() == ErrorSource::Upstream && !kept_waiting;
        if !by_upstream && *error.etype() != PER_TRY {
            error.set_retry(false);
            return error;
        }
        if failure::final_head(session).is_some() || call.attempts.answered {
            fail_unless_upgraded(call);
            error.set_retry(false);
            return error;
        }
        let replayed = replay.is_some() && call.body.is_some();
        let fault = fault(session, &error, call, client_reused, replayed);
        let outcome = match fault {
            Fault::Connect => AttemptOutcome::ConnectFailed,
            _ if is_timeout(&error) => AttemptOutcome::TimedOut,
            _ => AttemptOutcome::Broken,
        };
        let repeatable = self.repeatable(session, call, replayed);
        self.go_on(session, call, (fault, outcome), repeatable, &mut error);
        error
    }

    /// An answer that the rules name, and after which there is another attempt: `None` if there is none.
    pub(super) fn answer_is_fault(
        &self,
        session: &Session,
        response: &ResponseHeader,
        call: &mut Call,
    ) -> Option<Box<Error>> {
        let fault = call.rules().fault_of(response.status.as_u16(), Some(&response.headers))?;
        let replayed = call.body.is_some();
        let repeatable = !call.upgrade && self.repeatable(session, call, replayed);
        let (request, registry) = (session.req_header(), &self.observe.registry);
        let wait = call.again(fault, AttemptOutcome::Answered, request, repeatable, registry)?;
        call.attempts.wait = Some(wait);
        Some(Error::explain(ErrorType::InternalError, "an answer to try again after").into_up())
    }

    /// Whether what was sent of the request can be sent again.
    fn repeatable(&self, session: &Session, call: &Call, replayed: bool) -> bool {
        let most = call.rules().body_bytes();
        replayed || (!session.as_ref().retry_buffer_truncated() && call.body_seen <= most)
    }

    fn go_on(
        &self,
        session: &Session,
        call: &mut Call,
        (fault, outcome): (Fault, AttemptOutcome),
        repeatable: bool,
        error: &mut Error,
    ) {
        let registry = &self.observe.registry;
        call.attempts.wait = call.again(fault, outcome, session.req_header(), repeatable, registry);
        error.set_retry(call.attempts.wait.is_some());
    }
}

/// What went wrong with an attempt that began.
fn fault(session: &Session, error: &Error, call: &Call, client_reused: bool, replayed: bool) -> Fault {
    // The backend says that it did not process the request, whatever that asks for. Pingora says so for it of
    // invalid frames too, which may come at any time.
    let refused = matches!(error.retry, RetryType::Decided(true)) && *error.etype() != ErrorType::InvalidH2;
    let sent = session.upstream_body_bytes_sent();
    // Nobody acts on a request whose body did not arrive, and even less on part of a head.
    let incomplete = replayed
        && !is_timeout(error)
        && call.body.as_ref().is_some_and(|body| sent.is_some_and(|sent| (sent as u64) < body.len()));
    let unsent = *error.etype() == ErrorType::WriteError && sent == Some(0);
    let told_old = matches!(error.retry, RetryType::ReusedOnly);
    let silent = !call.attempts.heard && !is_within_head(error);
    if *error.etype() == ErrorType::ConnectError {
        // There is a connection, but not of the protocol that is written.
        Fault::Connect
    } else if refused {
        Fault::Refused
    } else if incomplete || unsent {
        Fault::Unsent
    } else if client_reused && silent && (told_old || stale(error)) {
        Fault::Stale
    } else {
        Fault::Reset
    }
}

/// An answer broke off. An upgraded connection ends in any way its ends like.
fn fail_unless_upgraded(call: &mut Call) {
    let upgraded = call.upgrade && call.attempts.answered;
    if upgraded || call.is_spared() {
        return;
    }
    if let Some(picked) = &mut call.attempts.picked {
        picked.guard.failed();
    }
}

fn is_timeout(error: &Error) -> bool {
    *error.etype() == PER_TRY || matches!(error.etype(), ErrorType::ReadTimedout | ErrorType::WriteTimedout)
}

/// Whether the connection ended within the head of an answer, of which Pingora says how much it has read.
fn is_within_head(error: &Error) -> bool {
    error.context.as_ref().is_some_and(|context| {
        let read = context.as_str().rsplit_once("bytes already read: ");
        read.is_some_and(|(_, read)| read != "0")
    })
}

fn stale(error: &Error) -> bool {
    matches!(error.etype(), ErrorType::ConnectionClosed | ErrorType::ReadError | ErrorType::WriteError)
}
