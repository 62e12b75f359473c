//! Running made-up requests: `tollhouse test`, and the tests that a candidate must pass.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use http::header::{self, RANGE};
use http::{Method, Version};
use pingora::http::{RequestHeader, ResponseHeader};
use serde::Serialize;
use tollhouse_filters::caching::Ask;
use tollhouse_filters::condition::ValueMatch;
use tollhouse_filters::context::{Decision as Noted, RequestId, Tls};
use tollhouse_filters::host::host_of;
use tollhouse_filters::outcome::{Body, Reply};
use tollhouse_filters::problem::{self, Problem};
use tollhouse_filters::registry::Registry;
use tollhouse_filters::tree::{Node, Path};
use tollhouse_filters::values::FieldName;
use tollhouse_filters::world::{ManualClock, Revocation, World};

use super::explain::foreign_keys;
use super::{Connection, Decision, Exchange, Forwarding, strip_hop_by_hop};
use crate::config::{Expect, Test, TestRequest};
use crate::consumers::Roster;
use crate::observe::redact::MASK;
use crate::routing::ListenerId;
use crate::snapshot::{Compiler, Mode, Snapshot, fault};
use crate::source::{Loaded, Problems};

/// The longest a made-up request may take; only a filter at fault takes any time at all.
const PATIENCE: Duration = Duration::from_secs(5);

/// A made-up request.
pub struct MadeUp {
    /// The head.
    pub head: RequestHeader,
    /// The body.
    pub body: Bytes,
    /// The connection it pretends to come on.
    pub connection: Connection,
}

/// What happened to a made-up request.
pub struct Outcome {
    /// The exchange, for its route and context.
    pub exchange: Exchange,
    /// The gateway's own answer.
    pub answer: Option<(ResponseHeader, Bytes)>,
    /// What the upstream would have got.
    pub upstream_request: Option<RequestHeader>,
}

impl Outcome {
    /// What each filter decided.
    #[must_use]
    pub fn decisions(&self) -> &[Noted] {
        self.exchange.ctx.decisions()
    }
}

/// A snapshot of the document on a fake world: a clock that moves only with who sleeps, fresh state, no network.
pub fn snapshot(loaded: &Arc<Loaded>, registry: &Registry) -> Result<Arc<Snapshot>, Problems> {
    snapshot_in(&World::dry(), loaded, registry, None)
}

/// As [`snapshot`], at the time it is now and with consumers that were read before: for who asks what would happen
/// to a request.
pub fn snapshot_now(
    loaded: &Arc<Loaded>,
    registry: &Registry,
    roster: Option<Arc<Roster>>,
) -> Result<Arc<Snapshot>, Problems> {
    snapshot_in(&world_now(), loaded, registry, roster)
}

/// As [`snapshot_now`], of the document of this snapshot: with its consumers, its ramps as far as they are, and tokens
/// that no longer hold. What filters revoke there stays there.
pub fn snapshot_of(
    live: &Snapshot,
    loaded: &Arc<Loaded>,
    registry: &Registry,
    revoked: Vec<Revocation>,
) -> Result<Arc<Snapshot>, Problems> {
    let world = world_now();
    world.revocations.import(revoked);
    let snapshot = snapshot_in(&world, loaded, registry, Some(live.consumers.clone()))?;
    // One document has the same ramps in the same order.
    for ((_, ramp), (_, of)) in snapshot.ramps().zip(live.ramps()) {
        ramp.stand_as(of);
    }
    Ok(snapshot)
}

fn world_now() -> World {
    World::dry_at(Arc::new(ManualClock::starting(SystemTime::now()).skipping()))
}

fn snapshot_in(
    world: &World,
    loaded: &Arc<Loaded>,
    registry: &Registry,
    roster: Option<Arc<Roster>>,
) -> Result<Arc<Snapshot>, Problems> {
    Compiler { registry, world, previous: None, mode: Mode::Dry, roster }.compile(loaded).map(Arc::new)
}

/// Runs a made-up request through the engine; the world it reaches is the snapshot's.
pub async fn run(snapshot: &Arc<Snapshot>, mut made: MadeUp) -> Outcome {
    let started = std::time::Instant::now();
    let mut exchange =
        Exchange::begin(snapshot.clone(), &made.connection, &mut made.head, RequestId::Made(1), started);
    exchange.ctx.keep_decisions();
    let mut decision = exchange.decide(&mut made.head).await;
    while let Decision::Cache(ask) = decision {
        decision = match uncached(&ask, &mut exchange, &mut made.head) {
            Some(reply) => Decision::Reply(reply),
            None => exchange.decide(&mut made.head).await,
        };
    }
    let is_shown = matches!(decision, Decision::Forward(_)) || exchange.wants_body_before_answer().is_some();
    if is_shown && let Some(reply) = body(&mut exchange, &mut made).await {
        decision = Decision::Reply(reply);
    }
    let (answer, upstream_request) = match decision {
        Decision::Cache(_) => (None, None),
        Decision::Reply(reply) => (Some(answer(&mut exchange, reply, &made.head).await), None),
        Decision::Forward(upstream) => {
            let mut head = made.head.clone();
            strip_hop_by_hop(&mut head);
            let peer = made.connection.peer.map(|peer| peer.ip());
            let forwarding =
                Forwarding { peer, version: Version::HTTP_11, upstream: &upstream, picked: None, left: None };
            match exchange.upstream_request(&mut head, &forwarding, 1).await {
                Some(reply) => (Some(answer(&mut exchange, reply, &made.head).await), None),
                None => {
                    exchange.sending();
                    (None, Some(head))
                }
            }
        }
    };
    Outcome { exchange, answer, upstream_request }
}

/// What a cache that has nothing stored answers, or else makes of the request: what is fetched to be stored has only
/// what its key counts, and is whole.
fn uncached(ask: &Ask, exchange: &mut Exchange, request: &mut RequestHeader) -> Option<Reply> {
    // Another cache behind it passes.
    exchange.ctx.cache.get_or_insert_default();
    if exchange.wants_body().is_some() {
        return None;
    }
    if ask.directives.only_if_cached {
        return Some(Problem::new(&problem::NOT_CACHED).into());
    }
    if request.method == Method::HEAD || request.headers.contains_key(RANGE) || ask.plan.min_uses > 1 {
        return None;
    }
    exchange.fetch_for_all(ask, request);
    None
}

/// Shows the body to filters as the proxy does: one over the limit never reaches them.
async fn body(exchange: &mut Exchange, made: &mut MadeUp) -> Option<Reply> {
    let whole = exchange.wants_body();
    let limit = whole.unwrap_or_else(|| exchange.body_limit());
    let too_large = |body: &Bytes| body.len() as u64 > limit;
    if too_large(&made.body) {
        return Some(Problem::new(&problem::BODY_TOO_LARGE).into());
    }
    if exchange.stack.sees_request_chunks() {
        if let Some(reply) = exchange.request_chunk(&mut made.body, true) {
            return Some(reply);
        }
        if too_large(&made.body) {
            return Some(Problem::new(&problem::BODY_TOO_LARGE).into());
        }
    }
    whole?;
    exchange.body(&mut made.head, &mut made.body).await
}

async fn answer(exchange: &mut Exchange, reply: Reply, request: &RequestHeader) -> (ResponseHeader, Bytes) {
    let rendered = exchange.rendered(reply, request).await;
    let body = match rendered.body {
        Body::Bytes(bytes) => bytes,
        Body::Stream(_) => Bytes::new(),
    };
    (rendered.head, body)
}

/// Drives a made-up request to its end, whatever thread this is; not from async code.
pub fn block_on<T>(future: impl Future<Output = T>) -> Option<T> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().ok()?;
    runtime.block_on(async { tokio::time::timeout(PATIENCE, future).await.ok() })
}

/// The result of one test.
#[derive(Debug, Clone, Serialize)]
pub struct TestResult {
    /// The test's name.
    pub name: String,
    /// What was expected and not seen; empty when it passed.
    pub failures: Vec<String>,
}

/// Runs the tests of a document, each on fresh state.
pub fn run_tests(loaded: &Arc<Loaded>, registry: &Registry) -> Result<Vec<TestResult>, Problems> {
    run_tests_for(loaded, registry, None)
}

/// As [`run_tests`], with consumers that were read before.
fn run_tests_for(
    loaded: &Arc<Loaded>,
    registry: &Registry,
    roster: Option<Arc<Roster>>,
) -> Result<Vec<TestResult>, Problems> {
    let first = snapshot_in(&World::dry(), loaded, registry, roster)?;
    let again = || snapshot_in(&World::dry(), loaded, registry, Some(first.consumers.clone()));
    let mut results = Vec::with_capacity(first.tests.len());
    for (at, test) in first.tests.iter().enumerate() {
        // The next test must not see what this one left; the first snapshot is still fresh.
        let fresh = if at == 0 { first.clone() } else { again()? };
        results.push(TestResult { name: test.name.clone(), failures: run_test(&fresh, test) });
    }
    Ok(results)
}

/// Runs the tests of a candidate; each failure is a problem of its document.
pub fn verify(
    loaded: &Arc<Loaded>,
    registry: &Registry,
    roster: Option<Arc<Roster>>,
) -> Result<(), Problems> {
    let results = run_tests_for(loaded, registry, roster)?;
    let failed = results.iter().enumerate().filter(|(_, result)| !result.failures.is_empty());
    let errors: Vec<_> = failed
        .map(|(at, result)| {
            let message = format!("test `{}` fails: {}", result.name, result.failures.join("; "));
            fault(&loaded.root, &Path::default().join("tests").join(at), message)
        })
        .collect();
    match errors.is_empty() {
        true => Ok(()),
        false => Err(Problems { inputs: loaded.inputs.clone(), ..Problems::located(errors, &loaded.files) }),
    }
}

fn run_test(snapshot: &Arc<Snapshot>, test: &Test) -> Vec<String> {
    let (failures, outcome) = match last_outcome(snapshot, &test.request) {
        Ok(outcome) => (failures(&test.expect, &outcome), Some(outcome)),
        Err(message) => (vec![message], None),
    };
    if failures.is_empty() {
        return failures;
    }
    // What came from outside the document may be secret, and failures go to logs and the admin API.
    let document = snapshot.packed.unpack().root;
    let mut foreign = substituted(&document);
    foreign.extend(outcome.and_then(|outcome| foreign_target(&outcome, &test.request.path, &document)));
    failures.iter().map(|message| without(message, &foreign)).collect()
}

/// What happens to the request the last time it is sent.
fn last_outcome(snapshot: &Arc<Snapshot>, request: &TestRequest) -> Result<Outcome, String> {
    let send = || {
        block_on(run(snapshot, made_up(snapshot, request)?))
            .ok_or_else(|| format!("took longer than {PATIENCE:?}"))
    };
    let mut under_way = Vec::new();
    for _ in 1..request.times {
        let outcome = send()?;
        under_way.extend(request.at_once.then_some(outcome));
    }
    send()
}

/// The texts with references in them, and what each of these stands for: beside it, a template may be filled in.
fn substituted(document: &Arc<Node>) -> BTreeSet<String> {
    let mut texts = BTreeSet::new();
    document.map_scalars(|scalar, _, _| {
        if scalar.is_substituted() {
            let parts = scalar.literal().iter().map(|part| &scalar.text()[part.clone()]);
            let parts = parts.chain([scalar.text()]).filter(|part| !part.is_empty());
            texts.extend(parts.map(str::to_owned));
        }
        None
    });
    texts
}

/// The target that was sent on, where a filter made it whose options came in part from outside the document: it is
/// normalised, and need not have them in it as they were.
fn foreign_target(outcome: &Outcome, asked: &str, document: &Node) -> Option<String> {
    let target = outcome.upstream_request.as_ref()?.uri.path_and_query()?.as_str();
    let foreign = foreign_keys(document);
    let makes =
        |noted: &Noted| foreign.contains(noted.filter) && noted.fields.iter().any(|(name, _)| *name == "to");
    let is_foreign = target != asked && target != "/" && outcome.decisions().iter().any(makes);
    is_foreign.then(|| target.to_owned())
}

/// The message with a mask in the place of all that these texts cover, also where one is a part of another.
fn without(message: &str, texts: &BTreeSet<String>) -> String {
    let places = texts.iter().flat_map(|text| message.match_indices(text.as_str()));
    let mut covered: Vec<_> = places.map(|(at, text)| at..at + text.len()).collect();
    covered.sort_by_key(|part| part.start);
    let (mut out, mut end) = (String::with_capacity(message.len()), 0);
    for part in covered {
        if part.start >= end {
            out.push_str(&message[end..part.start]);
            out.push_str(MASK);
        }
        end = end.max(part.end);
    }
    out.push_str(&message[end..]);
    out
}

fn made_up(snapshot: &Snapshot, request: &TestRequest) -> Result<MadeUp, String> {
    let method = request.method.clone().map_or(Method::GET, Method::from);
    let mut head =
        RequestHeader::build(method, request.path.as_bytes(), None).map_err(|error| error.to_string())?;
    let mut put = |name: http::HeaderName, value: &str| {
        head.insert_header(name, value).map_err(|error| error.to_string())
    };
    put(header::HOST, request.host.as_deref().unwrap_or("localhost"))?;
    for (name, value) in &request.headers {
        put(name.clone().into(), value)?;
    }
    if let Some(body) = &request.body {
        put(header::CONTENT_LENGTH, &body.len().to_string())?;
    }
    let listener = match &request.listener {
        Some(name) => {
            snapshot.listener_named(name.as_str()).ok_or_else(|| format!("no listener is named `{name}`"))?
        }
        None => ListenerId(0),
    };
    let client = request.client.unwrap_or(IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1)));
    let connection = connection(snapshot, listener, client, request.host.as_deref());
    Ok(MadeUp { head, body: request.body.clone().unwrap_or_default().into(), connection })
}

/// A connection as this listener would accept it from a client that names the host it asks for.
pub(super) fn connection(
    snapshot: &Snapshot,
    listener: ListenerId,
    client: IpAddr,
    host: Option<&str>,
) -> Connection {
    let written = snapshot.listener(listener).options.tls.as_ref();
    let tls = written.map(|tls| {
        Arc::new(Tls {
            version: "TLSv1.3",
            cipher: "TLS_AES_256_GCM_SHA384",
            server_name: host.and_then(host_of).map(|host| Box::from(&*host)),
            protocol: None,
            resumed: false,
            certificate: None,
            bound_to_name: tls.client_auth.is_some(),
            forwarded_certificate: None,
        })
    });
    Connection { listener, peer: Some(SocketAddr::new(client, 50000)), tls }
}

fn failures(expect: &Expect, outcome: &Outcome) -> Vec<String> {
    let mut failures = Vec::new();
    let route = &*outcome.exchange.route.name;
    let mut compare = |what: &str, expected: Option<String>, seen: Option<String>| {
        if let Some(expected) = expected.filter(|expected| Some(expected) != seen.as_ref()) {
            failures.push(format!("expected {what} {expected}, got {}", seen.as_deref().unwrap_or("none")));
        }
    };
    let upstream = outcome.upstream_request.as_ref().and(outcome.exchange.ctx.upstream.as_ref());
    let status = outcome.answer.as_ref().map(|(head, _)| head.status.as_u16());
    compare("route", expect.route.as_ref().map(ToString::to_string), Some(route.to_owned()));
    compare(
        "status",
        expect.status.map(|status| status.to_string()),
        status.map(|status| status.to_string()),
    );
    let ctx = &outcome.exchange.ctx;
    let shown = |name: Option<&Arc<str>>| name.map(ToString::to_string);
    compare("version", expect.version.as_ref().map(ToString::to_string), shown(ctx.version.as_ref()));
    compare("variant", expect.variant.as_ref().map(ToString::to_string), shown(ctx.variant.as_ref()));
    compare("upstream", expect.upstream.as_ref().map(ToString::to_string), upstream.map(ToString::to_string));
    let list = |names: Vec<String>| if names.is_empty() { "nobody".to_owned() } else { names.join(", ") };
    let wanted = expect.mirrors.as_ref().map(|names| list(names.iter().map(ToString::to_string).collect()));
    let copied = list(ctx.policies.mirrors.iter().map(ToString::to_string).collect());
    compare("copies to", wanted, Some(copied));
    let target =
        outcome.upstream_request.as_ref().and_then(|head| head.uri.path_and_query()).map(ToString::to_string);
    compare("path to upstream", expect.path_to_upstream.clone(), target);
    let answer = outcome.answer.as_ref().map(|(head, _)| &head.headers);
    failures.extend(mismatches("header", &expect.headers, answer));
    let sent = outcome.upstream_request.as_ref().map(|head| &head.headers);
    failures.extend(mismatches("header to the upstream", &expect.headers_to_upstream, sent));
    if let Some(text) = &expect.body_contains {
        let body = outcome.answer.as_ref().map(|(_, body)| String::from_utf8_lossy(body));
        if !body.is_some_and(|body| body.contains(text.as_str())) {
            failures.push(format!("expected `{text}` in the body"));
        }
    }
    failures
}

fn mismatches(
    what: &str,
    expected: &std::collections::BTreeMap<FieldName, ValueMatch>,
    seen: Option<&http::HeaderMap>,
) -> Vec<String> {
    let empty = http::HeaderMap::new();
    let seen = seen.unwrap_or(&empty);
    expected
        .iter()
        .filter(|(name, value)| !value.matches_field(seen, &(*name).clone().into()))
        .map(|(name, value)| {
            let got: Vec<_> = seen
                .get_all(http::HeaderName::from((*name).clone()))
                .iter()
                .map(|value| match value.is_sensitive() {
                    true => MASK.into(),
                    false => String::from_utf8_lossy(value.as_bytes()),
                })
                .collect();
            format!(
                "expected {what} {name}: {value}, got {}",
                if got.is_empty() { "none".into() } else { got.join(", ") }
            )
        })
        .collect()
}
