//! When proxying fails: one problem reply, if there is still somebody to read it.

use std::time::Instant;

use http::StatusCode;
use pingora::http::ResponseHeader;
use pingora::prelude::*;
use pingora::proxy::FailToProxy;
use pingora::{ErrorSource, ErrorType};
use tollhouse_filters::outcome::Reply;
use tollhouse_filters::problem::{self, Problem};

use super::{Call, replay, reply};
use crate::door;
use crate::engine::speaks_grpc;
use crate::upstream::call::describe;

/// Ends proxying with this reply: kept in the call, sent by [`answer`].
pub(super) fn refuse<T>(call: &mut Call, reply: Reply) -> Result<T> {
    let status = reply.status();
    call.pending = Some(reply);
    Err(Error::explain(ErrorType::HTTPStatus(status), "refused"))
}

/// An attempt had no answer in its time.
pub(super) const PER_TRY: &str = "per-try timeout";
/// The time for all of it.
pub(super) const TOTAL: &str = "total timeout";

/// A 504 that names the timeout.
pub(super) fn timed_out(which: &'static str) -> Problem {
    Problem::new(&problem::UPSTREAM_TIMEOUT).detail(which)
}

/// What is left of the whole is none. That is what gRPC calls a deadline.
pub(super) fn overdue() -> Problem {
    const DEADLINE_EXCEEDED: u8 = 4;
    timed_out(TOTAL).with_grpc_status(DEADLINE_EXCEEDED)
}

/// The head of the answer that went to the client, if one did; interim ones (1xx) only announce it.
pub(super) fn final_head(session: &Session) -> Option<&ResponseHeader> {
    let is_final =
        |status: StatusCode| !status.is_informational() || status == StatusCode::SWITCHING_PROTOCOLS;
    session.response_written().filter(|head| is_final(head.status))
}

/// Answers a request whose proxying failed.
pub(super) async fn answer(session: &mut Session, error: &Error, call: &mut Call) -> FailToProxy {
    if let Some(slot) = call.replay.take() {
        replay::unwrap(session, &slot);
    }
    if call.pending.is_none()
        && *error.esource() != ErrorSource::Downstream
        && *error.etype() != replay::PER_TRY
    {
        // What a handshake or the system says, which is not for clients to know; and nothing that was received.
        call.reason.get_or_insert_with(|| describe(error).into());
    }
    blame_slowness(session, error, call);
    let rule = door::broken(session).and_then(door::End::rule);
    let rule = rule.filter(|rule| rule.kind().status != problem::CLIENT_CLOSED.status);
    let broken = rule.map(|rule| Problem::new(rule.kind()).detail(rule.detail()));
    let pending = call.pending.take().or_else(|| broken.map(Reply::from));
    let reply = pending.or_else(|| classify(session, error, call).map(Reply::from));
    let Some(reply) = reply else {
        call.problem = Some(problem::CLIENT_CLOSED.code);
        return FailToProxy { error_code: 0, can_reuse_downstream: false };
    };
    let error_code = reply.status();
    if let Reply::Problem(problem) = &reply {
        call.problem = Some(problem.kind.code);
    }
    if final_head(session).is_none() {
        // What the body phase left unread would be taken for the next request.
        session.set_keepalive(None);
        if let Err(error) = reply::write(session, call, reply).await {
            log::debug!("cannot answer: {error}");
        }
    } else if let Reply::Problem(problem) = &reply {
        reply::end_call(session, problem);
    }
    FailToProxy { error_code, can_reuse_downstream: false }
}

/// Whether the backend had nothing to answer yet, since the client has not sent everything.
pub(super) fn is_kept_waiting(session: &mut Session, error: &Error) -> bool {
    matches!(error.etype(), ErrorType::ReadTimedout)
        && *error.esource() == ErrorSource::Upstream
        && !session.as_downstream_mut().is_body_done()
}

/// Counts and names a client that moved nothing for too long; of one that moves too little, the door knows.
fn blame_slowness(session: &Session, error: &Error, call: &mut Call) {
    let rule = match error.etype() {
        ErrorType::ReadTimedout if !call.upgrade => door::Rule::SlowBody,
        ErrorType::WriteTimedout => door::Rule::SlowReader,
        _ => return,
    };
    if *error.esource() == ErrorSource::Downstream && call.pending.is_none() {
        door::count(session, rule);
        call.reason = Some(rule.detail().to_owned());
    }
}

/// The problem that an error is, by whose fault; `None` when the client is gone.
fn classify(session: &mut Session, error: &Error, call: &Call) -> Option<Problem> {
    use ErrorType as E;
    let per_try = *error.etype() == replay::PER_TRY;
    let by_client = *error.esource() == ErrorSource::Downstream && !per_try;
    let try_over = call.attempts.made > 0 && call.try_until().is_some_and(|until| Instant::now() >= until);
    // What is left of the whole narrows every other timeout, so that one ends first.
    let deadline = call.exchange.as_ref().and_then(|exchange| exchange.ctx.deadline);
    let is_overdue = deadline.is_some_and(|deadline| Instant::now() >= deadline);
    // Who calls by gRPC may have more to say for as long as the call goes on: it is the silence that ends that.
    let is_call = speaks_grpc(&session.req_header().headers);
    Some(match error.etype() {
        _ if per_try => timed_out(PER_TRY),
        E::ReadTimedout if !call.upgrade && !is_call && is_kept_waiting(session, error) => {
            Problem::new(&problem::REQUEST_TIMEOUT).detail(if is_overdue { TOTAL } else { "read timeout" })
        }
        // A request for an upgrade has no body to wait for: its stand-in waited for the answer.
        E::ReadTimedout if call.upgrade && is_overdue => overdue(),
        E::ReadTimedout if call.upgrade => timed_out("read timeout"),
        E::ReadTimedout if by_client => Problem::new(&problem::REQUEST_TIMEOUT),
        E::ReadError | E::WriteError | E::ConnectionClosed | E::WriteTimedout if by_client => return None,
        _ if by_client => Problem::new(&problem::BAD_REQUEST),
        E::ConnectTimedout | E::TLSHandshakeTimedout | E::ReadTimedout | E::WriteTimedout if is_overdue => {
            overdue()
        }
        E::ConnectTimedout | E::TLSHandshakeTimedout | E::WriteTimedout if try_over => timed_out(PER_TRY),
        E::ConnectTimedout | E::TLSHandshakeTimedout => timed_out("connect timeout"),
        E::ReadTimedout => timed_out("read timeout"),
        E::WriteTimedout => timed_out("write timeout"),
        E::ConnectRefused | E::ConnectNoRoute | E::ConnectError | E::ConnectProxyFailure | E::BindError => {
            Problem::new(&problem::UPSTREAM_UNREACHABLE)
        }
        E::TLSHandshakeFailure | E::InvalidCert | E::HandshakeError | E::SocketError => {
            Problem::new(&problem::UPSTREAM_UNREACHABLE)
        }
        E::HTTPStatus(400) => Problem::new(&problem::BAD_REQUEST),
        _ if *error.esource() == ErrorSource::Upstream => Problem::new(&problem::UPSTREAM_PROTOCOL),
        _ => Problem::new(&problem::INTERNAL),
    })
}
