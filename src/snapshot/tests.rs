//! What compiling a document makes of its filter lists.

use std::net::SocketAddr;
use std::time::Duration;

use async_trait::async_trait;
use pingora::http::RequestHeader;
use schemars::JsonSchema;
use serde::Deserialize;
use tollhouse_filters::context::{Context, Verdict};
use tollhouse_filters::filter::{Build, BuildError, Fact, Filter};
use tollhouse_filters::outcome::{FilterError, Outcome};
use tollhouse_filters::phase::Phases;
use tollhouse_filters::registry::Registry;
use tollhouse_filters::world::{ScopedState, World};

use super::*;
use crate::engine::{Connection, dry};
use crate::source::load_str;

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Empty {}

struct Knows;

impl Filter for Knows {
    const NAME: &'static str = "knows";
    const DECIDES: bool = true;
    type Options = Empty;

    fn build(_: Empty, build: &mut Build<'_>) -> Result<Phases, BuildError> {
        build.provides(Fact::Consumer);
        Ok(Phases::new())
    }
}

struct Asks;

impl Filter for Asks {
    const NAME: &'static str = "asks";
    type Options = Empty;

    fn build(_: Empty, build: &mut Build<'_>) -> Result<Phases, BuildError> {
        build.needs(Fact::Consumer);
        Ok(Phases::new())
    }
}

/// Counts in its state, and notes the count.
struct Count(ScopedState);

impl Filter for Count {
    const NAME: &'static str = "count";
    type Options = Empty;

    fn build(_: Empty, build: &mut Build<'_>) -> Result<Phases, BuildError> {
        Ok(Phases::new().on_request(Arc::new(Self(build.state()))))
    }
}

#[async_trait]
impl OnRequest for Count {
    async fn on_request(&self, _: &mut RequestHeader, ctx: &mut Context) -> Result<Outcome, FilterError> {
        let count = self.0.add(ctx.tenant, b"", 1, Duration::from_secs(60)).await;
        let count = count.map_err(|error| FilterError::Unavailable(error.to_string()))?;
        ctx.decide(Verdict::Changed, count.to_string(), &[]);
        Ok(Outcome::Continue)
    }
}

fn compile(text: &str) -> Result<Arc<Snapshot>, Vec<String>> {
    let registry = Registry::new().with::<Knows>().with::<Asks>().with::<Count>();
    let registry = registry
        .with::<tollhouse_filters::traffic::body_limit::BodyLimit>()
        .with::<tollhouse_filters::transform::headers::Headers>()
        .with::<tollhouse_filters::transform::redirect::Redirect>()
        .with::<tollhouse_filters::transform::respond::Respond>();
    let world = World::dry();
    let problems = |problems: Problems| problems.list.iter().map(ToString::to_string).collect::<Vec<_>>();
    let loaded = Arc::new(load_str(text, "t.yaml", None, &|_| None).map_err(problems)?);
    let compiler =
        Compiler { registry: &registry, world: &world, previous: None, mode: Mode::Dry, roster: None };
    compiler.compile(&loaded).map(Arc::new).map_err(problems)
}

/// A document of two listeners and the routes `/a` and `/b` with these filters.
fn document(listener: &str, routes: [&str; 2]) -> String {
    format!(
        "version: 1
listeners:
  - {{name: one, address: \"127.0.0.1:0\", filters: {listener}}}
  - {{name: two, address: \"127.0.0.1:0\"}}
chains: {{edge: [{{count: {{}}}}]}}
routes:
  - {{name: a, match: {{paths: [/a], listeners: [one]}}, filters: {}, respond: {{status: 200}}}}
  - {{name: b, match: {{paths: [/b]}}, filters: {}, respond: {{status: 200}}}}
",
        routes[0], routes[1]
    )
}

/// The only problem of a document.
fn problem(text: &str) -> String {
    let mut problems = compile(text).err().expect("a problem");
    assert_eq!(problems.len(), 1, "{problems:?}");
    problems.remove(0)
}

fn compiles(listener: &str, routes: [&str; 2]) -> Arc<Snapshot> {
    compile(&document(listener, routes)).unwrap_or_else(|problems| panic!("{problems:?}"))
}

/// What the steps of a request noted.
fn notes(snapshot: &Arc<Snapshot>, path: &str) -> Vec<String> {
    let mut head = RequestHeader::build("GET", path.as_bytes(), None).unwrap();
    head.insert_header("host", "h").unwrap();
    let peer = Some(SocketAddr::from(([192, 0, 2, 1], 50000)));
    let connection = Connection { listener: ListenerId(0), peer, tls: None };
    let made = dry::MadeUp { head, body: bytes::Bytes::new(), connection };
    let outcome = dry::block_on(dry::run(snapshot, made)).expect("it takes no time");
    let decisions = outcome.exchange.ctx.decisions().iter();
    let noted = decisions.filter(|decision| decision.filter == "count");
    noted.map(|decision| format!("{} {}", decision.instance, decision.reason)).collect()
}

#[test]
fn a_fact_must_be_established_before_it_is_needed() {
    let unmet = "t.yaml:7:5: routes[0]: filter `route:a/asks#0` needs the consumer, but nothing before it \
                 establishes that";
    assert_eq!(problem(&document("[]", ["[{asks: {}}]", "[]"])), unmet);
    assert_eq!(problem(&document("[]", ["[{asks: {}}, {knows: {}}]", "[]"])), unmet);
    compiles("[]", ["[{knows: {}}, {asks: {}}]", "[]"]);
}

#[test]
fn what_is_established_only_sometimes_does_not_count() {
    for siblings in ["when: {methods: [GET]}", "dry_run: true", "on_error: continue"] {
        let message =
            problem(&document("[]", [&format!("[{{knows: {{}}, {siblings}}}, {{asks: {{}}}}]"), "[]"]));
        assert!(message.contains("needs the consumer"), "{siblings}: {message}");
    }
}

#[test]
fn a_fact_must_hold_on_every_listener_of_a_route() {
    // The route `a` is on the first listener alone, the route `b` on both.
    compiles("[{knows: {}}]", ["[{asks: {}}]", "[]"]);
    let message = problem(&document("[{knows: {}}]", ["[]", "[{asks: {}}]"]));
    assert!(message.starts_with("t.yaml:8:5: routes[1]: filter `route:b/asks#0`"), "{message}");
}

#[test]
fn the_filters_of_a_listener_have_nothing_before_them() {
    let message = problem(&document("[{asks: {}}]", ["[{knows: {}}]", "[]"]));
    assert!(message.contains("listeners[0].filters: filter `listener:one/asks#0` needs"), "{message}");
}

#[test]
fn a_guard_lets_nothing_pass_unless_that_is_written_twice() {
    let limit =
        |siblings: &str| document("[]", [&format!("[{{body_limit: {{request: 1KiB}}{siblings}}}]"), "[]"]);
    assert!(problem(&limit(", on_error: continue")).contains("add `fail_open: true`"));
    assert!(problem(&limit(", fail_open: true")).contains("belongs to `on_error: continue`"));
    assert!(compile(&limit(", on_error: continue, fail_open: true")).is_ok());
    assert!(compile(&limit(", dry_run: true")).is_ok());
    let dry = document("[]", ["[{headers: {request: {remove: [x-a]}}, dry_run: true}]", "[]"]);
    assert!(problem(&dry).contains("nothing to run dry"));
}

#[test]
fn a_chain_on_two_routes_is_one_instance_with_one_state() {
    let snapshot = compiles("[]", ["[{chain: edge}]", "[{chain: edge}]"]);
    assert!(Arc::ptr_eq(&snapshot.routes[0].own, &snapshot.routes[1].own));
    assert_eq!(notes(&snapshot, "/a"), ["chain:edge/count#0 1"]);
    assert_eq!(notes(&snapshot, "/b"), ["chain:edge/count#0 2"]);
}

#[test]
fn a_chain_that_several_lists_of_a_request_name_runs_where_it_stands_first() {
    let snapshot =
        compiles("[{chain: edge}]", ["[{count: {}}, {chain: edge}, {chain: edge}]", "[{chain: edge}]"]);
    let again = "chain:edge/count#0 it stands before already";
    assert_eq!(notes(&snapshot, "/a"), ["chain:edge/count#0 1", "route:a/count#0 1", again, again]);
    assert_eq!(notes(&snapshot, "/b"), ["chain:edge/count#0 2", again]);
}

#[test]
fn a_filter_that_stands_twice_must_not_depend_on_which_of_the_places_is_meant() {
    let chained = |chain: &str, listener: &str, route: &str| {
        let text = document(listener, ["[]", route]).replace("[{count: {}}]", chain);
        compile(&text).err().unwrap_or_default().join("\n")
    };
    let counted = "[{count: {}}]";
    assert_eq!(chained(counted, "[{knows: {}}, {chain: edge}]", "[{chain: edge}]"), "");
    let told = chained(counted, "[{chain: edge}]", "[{knows: {}}, {chain: edge}]");
    let where_it_is = "t.yaml:8:5: routes[1]: filter `chain:edge/count#0` runs only where it stands first, ";
    assert_eq!(told, format!("{where_it_is}before `route:b/knows#0` tells who calls; write it once"));
    let limited = "[{count: {}, when: {headers: {x-zone: private}}}]";
    let told = chained(limited, "[{chain: edge}]", "[{chain: edge}]");
    let why = "and its `when` may say something else here; write it once";
    assert_eq!(told, format!("{where_it_is}{why}"));
    assert_eq!(chained(limited, "[]", "[{chain: edge}]"), "");
}

#[test]
fn a_filter_written_twice_is_two_instances() {
    let snapshot = compiles("[]", ["[{count: {}}, {count: {}}]", "[{count: {}}]"]);
    assert_eq!(notes(&snapshot, "/a"), ["route:a/count#0 1", "route:a/count#1 1"]);
    assert_eq!(notes(&snapshot, "/a"), ["route:a/count#0 2", "route:a/count#1 2"]);
    assert_eq!(notes(&snapshot, "/b"), ["route:b/count#0 1"]);
}

#[test]
fn a_filter_of_another_kind_does_not_rename_those_after_it() {
    let snapshot = compiles("[]", ["[{knows: {}}, {chain: edge}, {count: {}}]", "[]"]);
    assert_eq!(notes(&snapshot, "/a"), ["chain:edge/count#0 1", "route:a/count#0 1"]);
}

#[test]
fn a_name_is_the_instances_own() {
    let snapshot = compiles("[]", ["[{count: {}, name: mine}]", "[]"]);
    assert_eq!(notes(&snapshot, "/a"), ["mine 1"]);
    let twice = document("[]", ["[{count: {}, name: mine}]", "[{count: {}, name: mine}]"]);
    let message = problem(&twice);
    assert!(
        message.ends_with("routes[1].filters[0].name: another filter is named `mine` already"),
        "{message}"
    );
    let posing = document("[]", ["[{count: {}, name: \"chain:edge/count#0\"}]", "[]"]);
    assert!(problem(&posing).contains("expected a name"));
}

#[test]
fn sixty_four_filters_are_the_most_of_one_list() {
    let list = |count: usize| format!("[{}]", vec!["{count: {}}"; count].join(", "));
    compiles("[]", [&list(64), "[]"]);
    let message = problem(&document("[]", [&list(65), "[]"]));
    assert!(message.contains("65 filters are more than the 64"), "{message}");
}

#[test]
fn a_circle_at_the_end_of_a_long_chain_of_fallbacks_is_found() {
    const LAST: usize = 1_999;
    let (mut upstreams, mut routes) = (String::new(), String::new());
    for at in 0..=LAST {
        let next = if at == LAST { LAST - 1 } else { at + 1 };
        upstreams.push_str(&format!(
            "  - {{name: u{at}, backends: [{{address: \"127.0.0.1:1\"}}], \
             circuit_breaker: {{fallback: {{route: r{next}}}}}}}\n"
        ));
        routes.push_str(&format!("  - {{name: r{at}, match: {{paths: [/{at}]}}, upstream: u{at}}}\n"));
    }
    let listener = "{name: main, address: \"127.0.0.1:0\"}";
    let text = format!("version: 1\nlisteners: [{listener}]\nupstreams:\n{upstreams}routes:\n{routes}");
    let problems = compile(&text).err().unwrap_or_default();
    assert_eq!(problems.len(), 2, "{problems:?}");
    let leads_back = |problem: &str, at: usize, through: &str| {
        let place = format!("upstreams[{at}].circuit_breaker.fallback.route: ");
        problem.ends_with(&format!("{place}leads back to this upstream, by route `{through}`"))
    };
    assert!(leads_back(&problems[0], LAST - 1, "r1998"), "{problems:?}");
    assert!(leads_back(&problems[1], LAST, "r1999"), "{problems:?}");
}
