//! What one attempt sends: a fresh copy of the head each time.

use std::time::Instant;

use http::uri::PathAndQuery;
use http::{Version, header};
use pingora::ErrorType;
use pingora::http::RequestHeader;
use pingora::prelude::*;

use super::request::{UPGRADED_IDLE, upstream};
use super::{Call, failure, replay};
use crate::door::Patience;
use crate::engine::{Forwarding, speaks_grpc, strip_hop_by_hop_of_http2};
use crate::upstream::NOT_HTTP2;

/// Writes the gateway's fields, runs the filters, and sets up the replay of a collected body.
pub(super) async fn prepare(
    session: &mut Session,
    request: &mut RequestHeader,
    call: &mut Call,
) -> Result<()> {
    // Pingora gives the body out from its start again.
    (call.body_seen, call.body_passed) = (0, 0);
    let upstream = upstream(call).clone();
    if request.version != Version::HTTP_2 && upstream.insists_on_http2() {
        // What Pingora falls back to with who takes no part in ALPN; it would not even use the connection again.
        call.reason = Some(NOT_HTTP2.to_owned());
        return Err(Error::explain(ErrorType::ConnectError, NOT_HTTP2).into_up());
    }
    let left = call.time_left();
    let picked = call.attempts.picked.take();
    let forwarding = Forwarding {
        peer: call
            .connection
            .as_ref()
            .and_then(|connection| connection.peer)
            .map(|peer| peer.ip().to_canonical()),
        version: call.version,
        upstream: &upstream,
        picked: picked.as_ref(),
        left,
    };
    let attempt = call.attempts.made;
    let reply = call.exchange().upstream_request(request, &forwarding, attempt).await;
    call.attempts.picked = picked;
    if request.version == Version::HTTP_11 {
        origin_form(request);
    }
    if let Some(reply) = reply {
        return failure::refuse(call, reply);
    }
    let exchange = call.exchange();
    // A filter may have waited for all of it.
    if exchange.sees_upstream_request()
        && exchange.ctx.deadline.is_some_and(|deadline| deadline <= Instant::now())
    {
        return failure::refuse(call, failure::overdue().into());
    }
    stand_in(session, request, call)?;
    if request.version == Version::HTTP_2 {
        // Pingora does so only where it changes the version.
        strip_hop_by_hop_of_http2(request);
        meet_expectation(session, request, call).await?;
    }
    if !call.upgrade {
        // Pingora puts these back whenever the client asks for a WebSocket.
        request.remove_header(&header::UPGRADE);
        request.remove_header(&header::CONNECTION);
    }
    call.exchange().sending();
    Ok(())
}

/// Puts what stands for the client's session in its place, where anything has to: it gives a collected body, or minds the time.
fn stand_in(session: &mut Session, request: &mut RequestHeader, call: &mut Call) -> Result<()> {
    let try_until = call.try_until();
    if call.body.is_none()
        && !call.upgrade
        && !session.downstream_session.is_body_empty()
        && let Some(picked) = &mut call.attempts.picked
    {
        picked.guard.uploads();
    }
    if let Some(body) = &call.body {
        replay::prepare_head(request, body.len())?;
        replay::wrap(session, body, try_until, call.replay.get_or_insert_default());
    } else if call.upgrade && request.version == Version::HTTP_11 {
        let slot = call.replay.get_or_insert_default();
        replay::hold_end(session, call.attempts.handshake, UPGRADED_IDLE, try_until, slot);
    } else if call.version == Version::HTTP_2 && waits_for_body(session, request) {
        let limits = &call.exchange().snapshot.server.limits;
        let patience = Patience::new(limits.body_timeout.get(), limits.min_rate.get());
        replay::mind(session, Some(patience), try_until, call.replay.get_or_insert_default());
    } else if try_until.is_some() && !call.upgrade {
        replay::mind(session, None, try_until, call.replay.get_or_insert_default());
    }
    Ok(())
}

/// Whether there is a body with an end to wait for; the messages of a gRPC call may come at any time. On the way to
/// HTTP/1, which has no calls, only the client would say that it is one.
fn waits_for_body(session: &mut Session, request: &RequestHeader) -> bool {
    let is_call = request.version == Version::HTTP_2 && speaks_grpc(&session.req_header().headers);
    !is_call && !session.downstream_session.is_body_empty()
}

/// An HTTP/2 upstream's 100 does not come through Pingora, and the client may wait for one with its body
/// (RFC 9110 s10.1.1).
async fn meet_expectation(session: &mut Session, request: &mut RequestHeader, call: &mut Call) -> Result<()> {
    let expected = request.remove_header(&header::EXPECT).is_some();
    if expected && call.version == Version::HTTP_11 && !std::mem::replace(&mut call.continued, true) {
        session.write_continue_response().await?;
    }
    Ok(())
}

/// RFC 9112 s3.2.1: an origin is asked for a path; what it sees as `Host` is the upstream's choice.
fn origin_form(request: &mut RequestHeader) {
    let plain = matches!(request.raw_path().first(), Some(b'/' | b'*'));
    if plain && request.uri.authority().is_none() {
        return;
    }
    let path = request.uri.path_and_query().cloned();
    request.set_uri(path.unwrap_or_else(|| PathAndQuery::from_static("/")).into());
}
