//! What a client is told whose request cannot be read: a problem, a closed connection, and a line in the log.

use std::net::{IpAddr, Ipv4Addr};
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, SystemTime};

use http::header::{self, HeaderValue};
use pingora::prelude::timeout;
use pingora::protocols::raw_connect::ProxyDigest;
use tokio::io::AsyncWriteExt;
use tollhouse_filters::context::RequestId;
use tollhouse_filters::outcome::Body;
use tollhouse_filters::problem::Problem;

use super::facts::carried;
use super::frames;
use super::stream::{DoorStream, PREFACE};
use super::{Application, Common, ConnFacts, End, Rule};
use crate::engine::{self, Rendered};
use crate::observe::redact::Redactor;
use crate::observe::{Access, metrics};
use crate::snapshot::UNROUTED;

/// How long the answer may take to be sent.
pub(super) const PATIENCE: Duration = Duration::from_secs(5);
/// Methods the gateway knows; for the `Allow` that a 405 must have (RFC 9110 s15.5.6).
const ALLOW: HeaderValue = HeaderValue::from_static("GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS");

/// How many requests were refused before they were any, by the rule they broke.
#[derive(Debug)]
pub struct Refusals(Box<[AtomicU64]>);

impl Default for Refusals {
    fn default() -> Self {
        Self(Rule::all().map(|_| AtomicU64::new(0)).collect())
    }
}

impl Refusals {
    pub(super) fn add(&self, rule: Rule) {
        self.0[rule as usize].fetch_add(1, Relaxed);
    }

    /// How many broke this rule.
    pub fn count(&self, rule: Rule) -> u64 {
        self.0[rule as usize].load(Relaxed)
    }
}

/// One request that is refused by a rule.
pub(super) struct Refusal {
    answer: Vec<u8>,
}

/// What is known of a request that cannot be read.
#[derive(Default)]
pub(super) struct Seen<'a> {
    method: &'a [u8],
    target: &'a [u8],
    http2: bool,
    /// How long its head took.
    waited: Duration,
    /// Bytes of content of its answer.
    answered: u64,
}

impl<'a> Seen<'a> {
    /// What the bytes say that break this rule; the preface of HTTP/2 is a request of HTTP/1 where only that is spoken.
    fn of(lead: &'a [u8], rule: Rule) -> Self {
        let (method, target) = first_words(lead);
        let http2 = rule != Rule::Version && lead.starts_with(PREFACE);
        Self { method, target, http2, ..Self::default() }
    }

    /// A request of HTTP/2 that asks for a tunnel, and is answered with so much content.
    pub(super) fn of_connect(authority: &'a str, content: usize) -> Self {
        Self {
            method: b"CONNECT",
            target: authority.as_bytes(),
            http2: true,
            answered: content as u64,
            ..Self::default()
        }
    }

    /// Nothing but that it was HTTP/2.
    pub(super) fn of_http2() -> Self {
        Self { http2: true, ..Self::default() }
    }
}

/// The id of one more request.
pub(super) fn new_id() -> RequestId {
    RequestId::Made(fastrand::u128(1..))
}

/// Counts and logs a request that a rule refuses.
pub(super) fn report<A: Application>(
    common: &Common<A>,
    facts: &ConnFacts,
    rule: Rule,
    request_id: &RequestId,
    seen: &Seen<'_>,
) {
    common.desk.refusals.add(rule);
    record(common, facts, rule, request_id, seen);
}

/// Logs a connection of HTTP/2 that ended since its client broke a rule, which was counted then: once, whatever
/// it sent.
pub(super) fn ended<A: Application>(common: &Common<A>, carrier: &ProxyDigest) {
    let Some(carried) = carried(carrier) else { return };
    if let Some(End::Rule(rule)) = carried.ended.get() {
        record(common, &carried.facts, *rule, &new_id(), &Seen::of_http2());
    }
}

fn record<A: Application>(
    common: &Common<A>,
    facts: &ConnFacts,
    rule: Rule,
    request_id: &RequestId,
    seen: &Seen<'_>,
) {
    let listener = common.listener_name(facts.listener);
    let status = rule.kind().status;
    let registry = &common.desk.observe.registry;
    registry.route(&listener, UNROUTED, metrics::NONE).record(status, seen.waited, 0, seen.answered);
    if common.desk.observe.logs_access() {
        let ((path, query), id) = (split_query(seen.target), request_id.to_string());
        let access = Access {
            time: SystemTime::now().checked_sub(seen.waited).unwrap_or(SystemTime::UNIX_EPOCH),
            request_id: &id,
            listener: &listener,
            client: facts.peer.map_or(IpAddr::V4(Ipv4Addr::UNSPECIFIED), |peer| peer.ip()),
            method: std::str::from_utf8(seen.method).unwrap_or_default(),
            scheme: if facts.tls.is_some() { "https" } else { "http" },
            host: b"",
            path,
            query,
            protocol: if seen.http2 { "HTTP/2" } else { "HTTP/1.1" },
            tls: facts.tls.as_deref(),
            route: UNROUTED,
            service: None,
            version: None,
            variant: None,
            upstream: None,
            backend: None,
            attempts: 0,
            tries: None,
            status,
            bytes_in: 0,
            bytes_out: seen.answered,
            elapsed: seen.waited,
            throttled: None,
            cache: None,
            upstream_elapsed: None,
            consumer: None,
            identity: None,
            denied_by: None,
            reason: Some(rule.detail()),
            user_agent: None,
            referer: None,
            error: Some(rule.kind().code),
        };
        common.desk.observe.access(&access, &Redactor::new(&common.app.hidden()));
    }
}

impl Refusal {
    /// Makes the answer to a request whose head took so long, counts it and logs it.
    pub(super) fn new<A: Application>(
        common: &Common<A>,
        stream: &DoorStream,
        rule: Rule,
        waited: Duration,
    ) -> Self {
        let request_id = new_id();
        let seen = Seen { waited, ..Seen::of(stream.lead(), rule) };
        let (answer, answered) = match seen.http2 {
            true => (goaway(rule), 0),
            false => answer(rule, &request_id, seen.method == b"HEAD"),
        };
        report(common, stream.facts(), rule, &request_id, &Seen { answered, ..seen });
        Self { answer }
    }

    /// Sends the answer and closes the connection.
    pub(super) async fn send(self, stream: &mut DoorStream) {
        let sent = async {
            stream.write_all(&self.answer).await?;
            stream.flush().await
        };
        let _ = timeout(PATIENCE, sent).await;
        stream.abandon();
    }
}

/// The method and the target, as far as there are any; for the log.
fn first_words(lead: &[u8]) -> (&[u8], &[u8]) {
    let line = lead.trim_ascii_start().split(|byte| matches!(byte, b'\r' | b'\n')).next().unwrap_or_default();
    let mut words = line.split(|byte| *byte == b' ');
    let method = words.next().unwrap_or_default();
    let tame = !method.is_empty() && method.len() <= 32 && method.iter().all(u8::is_ascii_alphanumeric);
    if tame { (method, words.next().unwrap_or_default()) } else { (b"", b"") }
}

fn split_query(target: &[u8]) -> (&[u8], Option<&[u8]>) {
    match target.iter().position(|byte| *byte == b'?') {
        Some(at) => (&target[..at], Some(&target[at + 1..])),
        None => (target, None),
    }
}

/// An empty SETTINGS frame, as HTTP/2 begins, and a GOAWAY of PROTOCOL_ERROR that says why (RFC 9113 s3.4, s6.8).
fn goaway(rule: Rule) -> Vec<u8> {
    const PROTOCOL_ERROR: u32 = 1;
    [&[0, 0, 0, 4, 0, 0, 0, 0, 0][..], &frames::goaway(PROTOCOL_ERROR, 0, rule)].concat()
}

/// What a client is told whose request breaks a rule.
pub(super) fn told(rule: Rule, request_id: &RequestId) -> Rendered {
    let mut problem = Problem::new(rule.kind()).detail(rule.detail());
    if rule == Rule::Connect {
        problem = problem.header(header::ALLOW, ALLOW);
    }
    engine::problem_reply(&problem, request_id)
}

/// The answer, and how much content it has.
fn answer(rule: Rule, request_id: &RequestId, head_only: bool) -> (Vec<u8>, u64) {
    let rendered = told(rule, request_id);
    let status = rendered.head.status;
    let reason = status.canonical_reason().unwrap_or_default();
    let Body::Bytes(body) = rendered.body else { return (Vec::new(), 0) };
    let mut answer = format!("HTTP/1.1 {} {reason}\r\n", status.as_u16()).into_bytes();
    let mut field = |name: &str, value: &[u8]| {
        answer.extend_from_slice(name.as_bytes());
        answer.extend_from_slice(b": ");
        answer.extend_from_slice(value);
        answer.extend_from_slice(b"\r\n");
    };
    for (name, value) in &rendered.head.headers {
        field(name.as_str(), value.as_bytes());
    }
    field("content-length", body.len().to_string().as_bytes());
    field("date", pingora::protocols::http::date::get_cached_date().as_bytes());
    field("connection", b"close");
    answer.extend_from_slice(b"\r\n");
    let content: &[u8] = if head_only { b"" } else { &body };
    answer.extend_from_slice(content);
    (answer, content.len() as u64)
}
