//! When a request is over: filters settle, numbers are counted, one line is logged.

use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use http::{Version, header};
use pingora::ErrorType;
use pingora::http::RequestHeader;
use pingora::prelude::*;
use tollhouse_filters::phase::Completed;
use tollhouse_filters::problem::{self, CLIENT_CLOSED, NO_BACKEND, UPSTREAM_TIMEOUT};

use super::attempts::Spared;
use super::direct::Ended;
use super::{Call, Gateway, failure, replay};
use crate::door;
use crate::engine::Exchange;
use crate::observe::redact::Redactor;
use crate::observe::{Access, AttemptOutcome, metrics};
use crate::snapshot::Snapshot;
use crate::upstream::Verdict;

/// What the log calls the end of a request that was cut as the gateway stopped: no problem, since nobody is told.
const STOPPED: &str = "stopped";

impl Gateway {
    /// Runs once for every request, however it ended.
    pub(super) fn finish(&self, session: &mut Session, error: Option<&Error>, call: &mut Call) {
        if let Some(slot) = call.replay.take() {
            replay::unwrap(session, &slot);
        }
        let ended = Ended { outcome: outcome(call, error), error: error.map(code) };
        let status = failure::final_head(session).map(|response| response.status.as_u16());
        let bytes = [session.body_bytes_read() as u64, session.body_bytes_sent() as u64];
        self.conclude(call, session.req_header(), status, bytes, door::broken(session), &ended);
    }

    /// Settles a request that got this status, after so many bytes of content each way.
    pub(super) fn conclude(
        &self,
        call: &mut Call,
        request: &RequestHeader,
        status: Option<u16>,
        [bytes_in, bytes_out]: [u64; 2],
        broken: Option<door::End>,
        ended: &Ended,
    ) {
        // What ended otherwise, or well, is nothing that the stop did.
        let is_cut = ended.error == Some(CLIENT_CLOSED.code);
        let broken = broken.filter(|end| is_cut || *end != door::End::Stopped);
        if broken == Some(door::End::Stopped) {
            call.problem = Some(STOPPED);
        }
        if status.is_none() && call.problem.is_none() {
            call.problem = Some(CLIENT_CLOSED.code);
        }
        settle(call);
        let Some(mut exchange) = call.exchange.take() else { return };
        let completed = Completed {
            status: status.unwrap_or(CLIENT_CLOSED.status),
            elapsed: call.over.unwrap_or_else(Instant::now).saturating_duration_since(exchange.ctx.started),
            bytes_in,
            bytes_out,
        };
        if let Some(fetched) = exchange.fetched.take() {
            call.attempts.take_over(&fetched.account);
            call.attempts.ended = fetched.told;
            call.reason = call.reason.take().or(fetched.reason);
            call.problem = call.problem.or(fetched.problem);
        }
        exchange.finish(&completed);
        let was_asked = call.attempts.upstream.is_some() && !call.attempts.spare_upstream();
        if was_asked || exchange.turned_away {
            let broke_off = ended.error == Some(problem::UPSTREAM_PROTOCOL.code);
            // A problem of gRPC has a head with 200.
            let status = status.and(call.refusal).unwrap_or(completed.status);
            exchange.note_for_ramp(status, broke_off, took(call, completed.elapsed));
        }
        self.count(call, ended, &exchange, &completed);
        if self.observe.logs_access() {
            self.log(request, call, broken, ended, &exchange, &completed);
        }
    }

    fn count(&self, call: &Call, ended: &Ended, exchange: &Exchange, completed: &Completed) {
        let registry = &self.observe.registry;
        let attempts = &call.attempts;
        let uncounted = attempts.picked.is_some() && attempts.counted.is_none();
        if let Some(upstream) = attempts.upstream.as_ref().filter(|_| uncounted) {
            upstream.series(registry).attempt(ended.outcome);
        }
        let (ctx, route, branch) = (&exchange.ctx, &exchange.route, exchange.branch());
        let make = |variant: Option<&Arc<str>>, upstream: Option<&Arc<str>>| {
            let upstream = upstream.map_or(metrics::NONE, |upstream| upstream);
            let variant = variant.map_or("", |variant| variant);
            registry.variant(&ctx.listener, &route.name, upstream, variant)
        };
        let series = if exchange.diverted {
            // What went to another route's upstream is that one's, as in the log.
            let upstream = ctx.upstream.as_ref();
            route.diverted_series(exchange.listener, branch, upstream, |variant| make(variant, upstream))
        } else {
            route.series(exchange.listener, branch, |variant, upstream| {
                make(variant, upstream.map(|upstream| &upstream.name))
            })
        };
        series.record(completed.status, completed.elapsed, completed.bytes_in, completed.bytes_out);
    }

    fn log(
        &self,
        request: &RequestHeader,
        call: &Call,
        broken: Option<door::End>,
        ended: &Ended,
        exchange: &Exchange,
        completed: &Completed,
    ) {
        let (ctx, attempts) = (&exchange.ctx, &call.attempts);
        let request_id = ctx.request_id.to_string();
        let tries = call.tries(ended.outcome, completed.status);
        let backend = attempts.picked.as_ref().map(|picked| picked.address).or(attempts.backend);
        let backend = backend.map(|backend| backend.to_string());
        let field = |name| request.headers.get(name).map(http::HeaderValue::as_bytes);
        let authority = request.uri.authority().map(|authority| authority.as_str().as_bytes());
        let ended_by = ctx.ended_by.as_ref();
        let broken = broken.map(door::End::detail);
        let cache = ctx.cache.as_ref().map(|status| status.parameters().to_string());
        let access = Access {
            time: SystemTime::now().checked_sub(completed.elapsed).unwrap_or(SystemTime::UNIX_EPOCH),
            request_id: &request_id,
            listener: &ctx.listener,
            client: ctx.client.address,
            method: request.method.as_str(),
            scheme: ctx.scheme.as_str(),
            host: authority.or_else(|| field(header::HOST)).unwrap_or_default(),
            path: exchange.sent_path(request).as_bytes(),
            query: request.uri.query().map(str::as_bytes),
            protocol: protocol(call.version),
            tls: ctx.client.tls.as_deref(),
            route: &ctx.route,
            service: ctx.service.as_deref(),
            version: ctx.version.as_deref(),
            variant: ctx.variant.as_deref(),
            upstream: ctx.upstream.as_deref(),
            backend: backend.as_deref(),
            attempts: attempts.made,
            tries: tries.as_deref(),
            status: completed.status,
            bytes_in: completed.bytes_in,
            bytes_out: completed.bytes_out,
            elapsed: completed.elapsed,
            throttled: (!ctx.waited.is_zero()).then_some(ctx.waited),
            cache: cache.as_deref(),
            upstream_elapsed: attempts.elapsed(),
            consumer: ctx.consumer.as_ref().map(|consumer| &*consumer.name),
            identity: ctx.identity.as_deref(),
            denied_by: ended_by.map(|ended| ended.filter),
            reason: ended_by.and_then(|ended| ended.reason.as_deref()).or(broken).or(call.reason.as_deref()),
            user_agent: field(header::USER_AGENT),
            referer: field(header::REFERER),
            error: call.problem.or(ended.error),
        };
        self.write_line(&access, &exchange.snapshot);
    }

    /// Writes a line without what the document hides that its request began on, and what the one in use does: whoever
    /// sees a secret in the log and has it hidden from then on means requests under way, too.
    fn write_line(&self, access: &Access<'_>, began_on: &Snapshot) {
        let redactor = Redactor::new(&began_on.observability.access_log.redact);
        if began_on.generation == self.live.generation() {
            return self.observe.access(access, &redactor);
        }
        let live = self.live.load();
        self.observe.access(access, &redactor.and(&live.observability.access_log.redact));
    }
}

/// Tells the upstream's breaker and places what became of the request, as far as that is known; nothing, if it was given
/// up.
pub(super) fn settle(call: &mut Call) {
    let failed = || (Verdict::Failed, Instant::now(), Some(Duration::ZERO));
    let ended = match &call.attempts.picked {
        Some(picked) => {
            // All attempts together had time enough.
            let ran_out = call.attempts.spared == Some(Spared::Backend);
            picked.guard.ended().or_else(|| ran_out.then(failed))
        }
        // Nobody was asked, as there was nobody.
        None => (call.problem == Some(NO_BACKEND.code)).then(failed),
    };
    if let (Some((verdict, at, of_client)), Some(exchange)) = (ended, &mut call.exchange) {
        match of_client {
            // Places and the breaker are asked before a whole body is.
            Some(of_client) => exchange.admission.settle(verdict, at, of_client + call.gathering),
            None => exchange.admission.settle_early(verdict, at),
        }
        if verdict == Verdict::Failed {
            exchange.admission.broke_off(Instant::now());
        }
    }
}

/// How long the backend took to begin its answer once the request was whole, over all attempts at it; as long as all of it
/// took, where there is no answer or several were asked at once. Nothing, if nobody was asked, or it began before that.
fn took(call: &Call, elapsed: Duration) -> Option<Duration> {
    let attempts = &call.attempts;
    let Some(picked) = &attempts.picked else { return (attempts.made > 0).then_some(elapsed) };
    let Some((_, at, of_client)) = picked.guard.ended() else { return Some(elapsed) };
    let begun = attempts.started.unwrap_or(picked.guard.started());
    Some(at.saturating_duration_since(begun).saturating_sub(of_client?))
}

fn outcome(call: &Call, error: Option<&Error>) -> AttemptOutcome {
    match error.map(|error| (error.esource(), error.etype())) {
        None => AttemptOutcome::Answered,
        Some((_, kind)) if *kind == replay::PER_TRY => AttemptOutcome::TimedOut,
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
        _ if *error.etype() == replay::PER_TRY => "upstream-protocol",
        pingora::ErrorSource::Downstream => CLIENT_CLOSED.code,
        pingora::ErrorSource::Upstream => "upstream-protocol",
        _ if *error.etype() == ErrorType::ReadTimedout => UPSTREAM_TIMEOUT.code,
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
