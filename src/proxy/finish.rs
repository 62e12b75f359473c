//! When a request is over: filters settle, numbers are counted, one line is logged.

use std::sync::Arc;
use std::time::SystemTime;

use http::{Version, header};
use pingora::ErrorType;
use pingora::prelude::*;
use tollhouse_filters::phase::Completed;
use tollhouse_filters::problem::CLIENT_CLOSED;

use super::{Call, Gateway, failure, replay};
use crate::door;
use crate::engine::Exchange;
use crate::observe::{Access, AttemptOutcome, metrics};

impl Gateway {
    /// Runs once for every request, however it ended.
    pub(super) fn finish(&self, session: &mut Session, error: Option<&Error>, call: &mut Call) {
        if let Some(slot) = call.replay.take() {
            replay::unwrap(session, &slot);
        }
        let Some(mut exchange) = call.exchange.take() else { return };
        let completed = completed(session, call, &exchange);
        exchange.finish(&completed);
        self.count(call, error, &exchange, &completed);
        if self.observe.logs_access() {
            self.log(session, call, error, &exchange, &completed);
        }
    }

    fn count(&self, call: &Call, error: Option<&Error>, exchange: &Exchange, completed: &Completed) {
        let registry = &self.observe.registry;
        let attempts = &call.attempts;
        let uncounted = attempts.picked.is_some() && !attempts.counted;
        if let Some(upstream) = attempts.upstream.as_ref().filter(|_| uncounted) {
            upstream.series(registry).attempt(outcome(call, error));
        }
        let series = &exchange.route.series[usize::from(exchange.listener.0)];
        let series = series.get_or_init(|| {
            let upstream = exchange.route.upstream().map_or(metrics::NONE, |upstream| &upstream.name);
            Arc::new(registry.route(&exchange.ctx.listener, &exchange.route.name, upstream))
        });
        series.record(completed.status, completed.elapsed, completed.bytes_in, completed.bytes_out);
    }

    fn log(
        &self,
        session: &Session,
        call: &Call,
        error: Option<&Error>,
        exchange: &Exchange,
        completed: &Completed,
    ) {
        let (request, ctx, attempts) = (session.req_header(), &exchange.ctx, &call.attempts);
        let request_id = ctx.request_id.to_string();
        let backend = attempts.picked.as_ref().map(|picked| picked.address.to_string());
        let field = |name| request.headers.get(name).map(http::HeaderValue::as_bytes);
        let authority = request.uri.authority().map(|authority| authority.as_str().as_bytes());
        let ended = ctx.ended_by.as_ref();
        let broken = door::broken(session).map(door::Rule::detail);
        self.observe.access(&Access {
            time: SystemTime::now().checked_sub(completed.elapsed).unwrap_or(SystemTime::UNIX_EPOCH),
            request_id: &request_id,
            listener: &ctx.listener,
            client: ctx.client.address,
            method: request.method.as_str(),
            scheme: ctx.scheme.as_str(),
            host: authority.or_else(|| field(header::HOST)).unwrap_or_default(),
            path: request.uri.path().as_bytes(),
            query: request.uri.query().map(str::as_bytes),
            protocol: protocol(call.version),
            tls: ctx.client.tls.as_deref(),
            route: &ctx.route,
            service: ctx.service.as_deref(),
            upstream: ctx.upstream.as_deref(),
            backend: backend.as_deref(),
            attempts: attempts.made,
            status: completed.status,
            bytes_in: completed.bytes_in,
            bytes_out: completed.bytes_out,
            elapsed: completed.elapsed,
            upstream_elapsed: attempts.started.map(|started| started.elapsed()),
            denied_by: ended.map(|ended| ended.filter),
            reason: ended.and_then(|ended| ended.reason.as_deref()).or(broken).or(call.reason.as_deref()),
            user_agent: field(header::USER_AGENT),
            referer: field(header::REFERER),
            error: call.problem.or_else(|| error.map(code)),
        });
    }
}

fn completed(session: &Session, call: &mut Call, exchange: &Exchange) -> Completed {
    let written = failure::final_head(session).map(|response| response.status.as_u16());
    if written.is_none() && call.problem.is_none() {
        call.problem = Some(CLIENT_CLOSED.code);
    }
    Completed {
        status: written.unwrap_or(CLIENT_CLOSED.status),
        elapsed: exchange.ctx.started.elapsed(),
        bytes_in: session.body_bytes_read() as u64,
        bytes_out: session.body_bytes_sent() as u64,
    }
}

fn outcome(call: &Call, error: Option<&Error>) -> AttemptOutcome {
    match error.map(|error| (error.esource(), error.etype())) {
        None => AttemptOutcome::Answered,
        Some((pingora::ErrorSource::Downstream, _)) => AttemptOutcome::Cancelled,
        Some((_, ErrorType::ConnectTimedout | ErrorType::ReadTimedout | ErrorType::WriteTimedout)) => {
            AttemptOutcome::TimedOut
        }
        Some(_) if call.attempts.answered => AttemptOutcome::Answered,
        Some(_) => AttemptOutcome::Broken,
    }
}

/// An error after the answer had begun, by whose fault.
fn code(error: &Error) -> &'static str {
    match error.esource() {
        pingora::ErrorSource::Downstream => CLIENT_CLOSED.code,
        pingora::ErrorSource::Upstream => "upstream-protocol",
        _ => "internal",
    }
}

fn protocol(version: Version) -> &'static str {
    match version {
        Version::HTTP_10 => "HTTP/1.0",
        Version::HTTP_2 => "HTTP/2",
        _ => "HTTP/1.1",
    }
}
