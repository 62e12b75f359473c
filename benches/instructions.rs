//! Instructions of what every request goes through in the core, counted by callgrind: the same each time, whatever
//! else the machine is doing. Each is warm: it ran once before it is counted.

#![expect(missing_docs, reason = "of what the macros make")]

mod common;

use std::hint::black_box;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::FutureExt;
use gungraun::{library_benchmark, library_benchmark_group, main};
use http::{HeaderMap, Method};
use pingora::http::{RequestHeader, ResponseHeader};
use tollhouse::engine::{Connection, Exchange};
use tollhouse::observe::Registry;
use tollhouse::observe::metrics::RouteSeries;
use tollhouse::routing::{Find, ListenerId, RouteMatch, Router, View};
use tollhouse::snapshot::Snapshot;
use tollhouse::upstream::{Tried, Upstream};
use tollhouse_filters::condition::RequestView;
use tollhouse_filters::context::{Context, RequestId};
use tollhouse_filters::path::{NormalPath, PathPattern, PathRules, normalize};
use tollhouse_filters::pipeline::{Entered, Pipeline, Stack};

/// As in the gateway itself: what another allocator makes of a larger heap is not the engine's cost.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn path(text: &str) -> NormalPath {
    normalize(text, &PathRules::default()).expect("a valid path")
}

#[library_benchmark]
#[bench::plain("/users/42/orders/7")]
#[bench::escaped("/users/%34%32/../or%20ders;v=1/7")]
fn normalise(text: &str) -> NormalPath {
    path(black_box(text))
}

/// A router of this many prefixes, and a path under one in the middle.
fn router(count: usize) -> (Router, NormalPath) {
    let route = |number| {
        let pattern = PathPattern::parse(&format!("/service-{number}/*")).expect("a valid pattern");
        RouteMatch { paths: vec![pattern], ..RouteMatch::default() }
    };
    let router = Router::build((0..count).map(route).collect());
    let wanted = path(&format!("/service-{}/items/42", count / 2));
    assert!(find(&router, &wanted));
    (router, wanted)
}

fn find(router: &Router, path: &NormalPath) -> bool {
    let headers = HeaderMap::new();
    let host = Some("api.example.com");
    let request = RequestView { method: &Method::GET, path, query: None, headers: &headers, host };
    matches!(router.find(&View { request, listener: ListenerId(0) }), Find::Route { .. })
}

#[library_benchmark(setup = router)]
#[bench::of_1(1)]
#[bench::of_10000(10_000)]
fn route((router, path): (Router, NormalPath)) -> (bool, Router) {
    (find(black_box(&router), &path), router)
}

/// All that a decision needs.
struct Ready {
    snapshot: Arc<Snapshot>,
    connection: Connection,
    head: RequestHeader,
    started: Instant,
}

fn ready(routes: usize) -> Ready {
    let (snapshot, connection) = (common::snapshot(routes), common::connection());
    let head = common::request(&common::target(routes / 2));
    let ready = Ready { snapshot, connection, head, started: Instant::now() };
    let Ready { snapshot, connection, head, started } = ready;
    let warm = Ready { snapshot: snapshot.clone(), connection, head: head.clone(), started };
    let (_, Ready { connection, .. }) = decided(warm);
    Ready { snapshot, connection, head, started }
}

fn decided(mut ready: Ready) -> (Exchange, Ready) {
    let id = RequestId::Made(1);
    let mut exchange =
        Exchange::begin(ready.snapshot.clone(), &ready.connection, &mut ready.head, id, ready.started);
    black_box(exchange.decide(&mut ready.head).now_or_never().expect("nothing to wait for"));
    (exchange, ready)
}

// From a head to where it goes, with five filters on its route.
#[library_benchmark(setup = ready)]
#[bench::of_1(1)]
#[bench::of_1000(1000)]
fn decide(ready: Ready) -> (Exchange, Ready) {
    decided(ready)
}

/// A stack of the five filters or of none, with a request, its answer and its context.
type Passing = (Stack, RequestHeader, ResponseHeader, Context);

fn passing(filters: bool) -> Passing {
    let make = || {
        let none = Arc::new(Pipeline::default());
        let own = if filters { common::snapshot(1).routes[0].own.clone() } else { none.clone() };
        let mut answer = ResponseHeader::build(200, None).expect("valid");
        answer.insert_header("server", "origin/1.0").expect("valid");
        let ctx = Context::for_tests(path("/service-00000/items/42"), Instant::now());
        (Stack::new([none.clone(), none, own]), common::request(&common::target(0)), answer, ctx)
    };
    pass(make());
    make()
}

fn pass((stack, mut request, mut answer, mut ctx): Passing) -> Passing {
    let mut entered = Entered::default();
    let reply = entered.request(&stack, &mut request, &mut ctx).now_or_never().expect("nothing to wait for");
    assert!(reply.is_none());
    let filtered = entered.response(&stack, &request, &mut answer, &mut ctx).now_or_never();
    filtered.expect("nothing to wait for").expect("no filter fails");
    (stack, request, answer, ctx)
}

#[library_benchmark(setup = passing)]
#[bench::of_none(false)]
#[bench::of_five(true)]
fn pipeline(passing: Passing) -> Passing {
    pass(passing)
}

fn upstream(algorithm: &str) -> Upstream {
    let backends = serde_json::json!([{"address": "127.0.0.1:1"}, {"address": "127.0.0.1:2"}, {"address": "127.0.0.1:3"}]);
    let written =
        serde_json::json!({"name": "bench", "backends": backends, "balance": {"algorithm": algorithm}});
    let written = serde_json::from_value(written).expect("a valid upstream");
    let upstream = Upstream::build(&written, std::path::Path::new(""), None).expect("a valid upstream");
    answered(&upstream);
    upstream
}

/// A request from the choice of its backend to its end.
fn answered(upstream: &Upstream) {
    upstream.pick(b"", &Tried::default()).expect("a backend").guard.answered(200);
}

#[library_benchmark(setup = upstream)]
#[bench::round_robin("round_robin")]
#[bench::least_requests("least_requests")]
fn balance(upstream: Upstream) -> Upstream {
    answered(black_box(&upstream));
    upstream
}

fn series() -> (Arc<Registry>, RouteSeries) {
    let registry = Registry::new(1000);
    let series = registry.route("public", "users-read", "users");
    series.record(200, Duration::from_micros(1234), 0, 4096);
    (registry, series)
}

#[library_benchmark(setup = series)]
#[bench::one()]
fn record((registry, series): (Arc<Registry>, RouteSeries)) -> (Arc<Registry>, RouteSeries) {
    series.record(black_box(200), Duration::from_micros(1234), 0, 4096);
    (registry, series)
}

library_benchmark_group!(name = core, benchmarks = [normalise, route, decide, pipeline, balance, record]);
main!(library_benchmark_groups = core);
