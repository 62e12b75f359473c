//! Requests that are hedged: attempts at several backends at once, the first good answer of which is the client's.
//!
//! Pingora's proxy has one connection to an upstream for a request, and so has the direct way; these go over the call
//! path, whatever the client and the upstream speak, and leave as answers of our own do.

use std::future::poll_fn;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use async_trait::async_trait;
use bytes::Bytes;
use http::{HeaderMap, StatusCode, Version, header};
use pingora::http::{RequestHeader, ResponseHeader};
use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};
use tollhouse_filters::events;
use tollhouse_filters::outcome::{Body, Message, Reply};
use tollhouse_filters::problem::{self, Problem};
use tollhouse_filters::world::{ClientBody, ClientError};

use super::attempts::Spared;
use super::{Call, Gateway, response};
use crate::cache::Announce;
use crate::config::hedge::Hedge;
use crate::engine::{Forwarding, speaks_grpc, strip_hop_by_hop};
use crate::upstream::call::{Account, BodyStream, CallError, CallOptions, Payload, Reply as Answer};
use crate::upstream::{Admission, Upstream, Verdict};

/// The hedge of this request, whose body is none or held as a whole; none if it is not to be hedged.
pub(super) fn of(call: &mut Call, upstream: &Upstream, request: &RequestHeader) -> Option<Hedge> {
    let (events, upgrade) = (call.events, call.upgrade);
    let route = &call.exchange().route;
    let hedge = upstream.hedge(route.hedge.as_deref())?;
    let repeatable = request.method.is_idempotent()
        && upstream.rules(route.retries.as_deref()).may_repeat(&request.method, &request.headers);
    let plain = !events && !upgrade && !request.headers.contains_key(header::UPGRADE);
    (repeatable && plain && !speaks_grpc(&request.headers)).then(|| hedge.clone())
}

impl Gateway {
    /// The answer to a request that is hedged.
    pub(super) async fn hedged(
        &self,
        call: &mut Call,
        request: &RequestHeader,
        (upstream, hedge): (Arc<Upstream>, Hedge),
        body: Payload,
        client: &mut dyn Announce,
    ) -> Reply {
        let (head, mut options) = match prepared(call, request, &upstream).await {
            Ok(prepared) => prepared,
            Err(reply) => return reply,
        };
        let (announce, interim) = unbounded_channel();
        options.interim = Some(announce);
        call.attempts.upstream = Some(upstream.clone());
        let began = Instant::now();
        call.attempts.started = Some(began);
        let mut account = Account::default();
        let since = call.exchange().ctx.started;
        let (rules, caller) = (call.rules(), self.cache.caller());
        let asked = caller.hedge(&upstream, (head, body), (options, since), (rules, &hedge), &mut account);
        let answer = unless_gone(asked, interim, client).await;
        account.count(upstream.series(&self.observe.registry));
        call.attempts.take_over(&account);
        call.exchange().attempted(&account);
        let Some(answer) = answer else { return Problem::new(&problem::CLIENT_CLOSED).into() };
        let failed = match &answer {
            Ok(answer) => answer.head.status.is_server_error(),
            Err(_) => true,
        };
        let verdict = if failed { Verdict::Failed } else { Verdict::Answered };
        let of_client = call.gathering;
        // Who sent slowly left the backends no time to fail in.
        if answer.is_ok() || !call.upstream_had_little(began) {
            call.exchange().admission.settle(verdict, Instant::now(), of_client);
        } else {
            call.attempts.spared = Some(Spared::Upstream);
        }
        match answer {
            Ok(answer) => {
                call.attempts.answered = true;
                call.exchange().invalidate(request, answer.head.status, &answer.head.headers);
                let admission = std::mem::take(&mut call.exchange().admission);
                let late = call.attempts.late.insert(Arc::default()).clone();
                passed_on(answer, admission, late)
            }
            Err(error) => {
                call.reason = Some(error.to_string());
                error.problem().into()
            }
        }
    }
}

/// What all attempts send, and how long they may take.
async fn prepared(
    call: &mut Call,
    request: &RequestHeader,
    upstream: &Upstream,
) -> Result<(RequestHeader, CallOptions), Reply> {
    let mut head = request.clone();
    strip_hop_by_hop(&mut head);
    if call.version == Version::HTTP_2 {
        // What comes behind an answer can be passed on to who knows of it (RFC 9110 s10.1.4).
        let _ = request.headers.get(header::TE).map(|wanted| head.insert_header(header::TE, wanted));
    }
    let peer = call.connection.as_ref().and_then(|connection| connection.peer);
    let version = call.version;
    let exchange = call.exchange();
    let told = upstream.time_told(exchange.ctx.deadline, exchange.route.retries.as_deref());
    let peer = peer.map(|peer| peer.ip().to_canonical());
    let forwarding = Forwarding { peer, version, upstream, picked: None, left: told };
    if let Some(reply) = exchange.upstream_request(&mut head, &forwarding, 0).await {
        return Err(reply);
    }
    let mut key = Vec::new();
    upstream.write_key(request, Some(&exchange.ctx), &mut key);
    // Filters may have waited, as for a token.
    let left = exchange.ctx.deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
    let timeouts = &exchange.route.timeouts;
    let options = CallOptions {
        timeout: Some(left),
        key: key.into(),
        connect: timeouts.connect.map(|limit| limit.get()),
        read: timeouts.read.map(|limit| limit.get()),
        ..CallOptions::default()
    };
    Ok((head, options))
}

/// The outcome, unless the client goes away first: then every attempt ends with it. Interim answers are passed on as
/// they come, whoever wins.
async fn unless_gone(
    asked: impl Future<Output = Result<Answer, CallError>>,
    mut interim: UnboundedReceiver<ResponseHeader>,
    client: &mut dyn Announce,
) -> Option<Result<Answer, CallError>> {
    let mut asked = pin!(asked);
    let answer = loop {
        tokio::select! {
            biased;
            Some(head) = interim.recv() => client.announce(head).await,
            answer = &mut asked => break answer,
            () = poll_fn(|cx| client.poll_gone(cx)) => return None,
        }
    };
    // What came with the answer precedes it.
    while let Ok(head) = interim.try_recv() {
        client.announce(head).await;
    }
    Some(answer)
}

fn passed_on(answer: Answer, admission: Admission, late: Arc<AtomicBool>) -> Reply {
    let Answer { mut head, body, .. } = answer;
    let Ok(declared) = declared(&head) else {
        let detail = "the upstream's `Content-Length` is not one number";
        return Problem::new(&problem::UPSTREAM_PROTOCOL).detail(detail).into();
    };
    // What the origin speaks is not what we speak (RFC 9110 s2.5).
    head.set_version(Version::HTTP_11);
    let events = events::are_in(&head.headers);
    let body = if events { body.without_deadline() } else { body };
    let body = Body::Stream(Box::new(Passed { body, declared, seen: 0, admission, late }));
    Reply::Message(Box::new(Message { head, body }))
}

/// The length that a head declares, if it does.
fn declared(head: &ResponseHeader) -> Result<Option<u64>, ()> {
    if matches!(head.status, StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED) {
        return Ok(None);
    }
    let mut lengths = head.headers.get_all(header::CONTENT_LENGTH).iter();
    let Some(length) = lengths.next() else { return Ok(None) };
    match (response::content_length(length.as_bytes()), lengths.next()) {
        (Some(length), None) => Ok(Some(length)),
        _ => Err(()),
    }
}

/// The winner's body on its way; its connection is kept when it was read to its end, and closed when it was not.
struct Passed {
    body: BodyStream,
    declared: Option<u64>,
    seen: u64,
    /// What the request holds until then, and by which it is told whether the answer breaks off.
    admission: Admission,
    /// Who is told that it was too late.
    late: Arc<AtomicBool>,
}

impl Passed {
    /// The upstream broke it off, unless it was begun or read too late.
    fn broken(&mut self, message: String) -> ClientError {
        if self.body.was_read_late() {
            self.late.store(true, Ordering::Relaxed);
        } else {
            self.admission.broke_off(Instant::now());
        }
        ClientError::Broken(message)
    }
}

#[async_trait]
impl ClientBody for Passed {
    async fn next(&mut self) -> Result<Option<Bytes>, ClientError> {
        let next = self.body.next().await;
        let next = next.map_err(|error| self.broken(error.to_string()))?;
        self.seen += next.as_ref().map_or(0, |piece| piece.len() as u64);
        let over = next.is_none();
        let wrong = self.declared.is_some_and(|length| self.seen > length || (over && self.seen < length));
        if wrong {
            let message = "the upstream's answer has another length than it said";
            return Err(self.broken(message.to_owned()));
        }
        Ok(next)
    }

    fn trailers(&mut self) -> Option<HeaderMap> {
        self.body.trailers()
    }
}
