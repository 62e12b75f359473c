//! What a collector reads after requests, reloads and floods of names.

use std::time::Duration;

use super::*;

const QUICK: Duration = Duration::from_millis(3);

fn has(registry: &Registry, line: &str) -> bool {
    registry.render().lines().any(|found| found == line)
}

fn lines_with(registry: &Registry, part: &str) -> usize {
    registry.render().lines().filter(|line| line.contains(part)).count()
}

fn reload(registry: &Registry, routes: &[&str]) {
    let listeners = HashSet::from(["web"]);
    let upstreams = HashSet::from(["users"]);
    let routes = routes.iter().copied().collect();
    registry.retain(&Live { listeners: &listeners, routes: &routes, upstreams: &upstreams });
}

#[test]
fn a_request_is_counted_by_route_and_class() {
    let registry = Registry::new(100);
    let series = registry.route("web", "read", "users");
    series.record(200, QUICK, 10, 2000);
    series.record(204, QUICK, 0, 0);
    series.record(499, QUICK, 0, 0);
    series.record(0, QUICK, 0, 0);
    let labels = "listener=\"web\",route=\"read\",upstream=\"users\"";
    for (name, value) in [
        (format!("tollhouse_requests_total{{{labels},code_class=\"2xx\"}}"), 2),
        (format!("tollhouse_requests_total{{{labels},code_class=\"4xx\"}}"), 1),
        (format!("tollhouse_requests_total{{{labels},code_class=\"unknown\"}}"), 1),
        (format!("tollhouse_request_duration_seconds_count{{{labels}}}"), 4),
        (format!("tollhouse_request_bytes_total{{{labels}}}"), 10),
        (format!("tollhouse_response_bytes_total{{{labels}}}"), 2000),
    ] {
        assert!(has(&registry, &format!("{name} {value}")), "{name} in\n{}", registry.render());
    }
    assert_eq!(lines_with(&registry, "code_class=\"5xx\""), 0, "a class appears with its first request");
}

#[test]
fn two_handles_of_one_route_share_the_numbers() {
    let registry = Registry::new(100);
    registry.route("web", "read", "users").record(200, QUICK, 1, 1);
    registry.route("web", "read", "users").record(200, QUICK, 1, 1);
    assert_eq!(lines_with(&registry, "tollhouse_requests_total{"), 1);
    assert_eq!(lines_with(&registry, "code_class=\"2xx\"} 2"), 1);
}

#[test]
fn attempts_are_counted_by_outcome() {
    let registry = Registry::new(100);
    let upstream = registry.upstream("users");
    upstream.attempt(AttemptOutcome::Answered);
    upstream.attempt(AttemptOutcome::ConnectFailed);
    upstream.attempt(AttemptOutcome::ConnectFailed);
    upstream.attempt(AttemptOutcome::Cancelled);
    for line in [
        "tollhouse_upstream_attempts_total{upstream=\"users\",outcome=\"answered\"} 1",
        "tollhouse_upstream_attempts_total{upstream=\"users\",outcome=\"connect_failed\"} 2",
        "tollhouse_upstream_attempts_total{upstream=\"users\",outcome=\"cancelled\"} 1",
        "tollhouse_upstream_connect_failures_total{upstream=\"users\"} 2",
    ] {
        assert!(has(&registry, line), "{line}");
    }
}

#[test]
fn in_flight_falls_when_the_guard_is_dropped_even_by_a_panic() {
    let registry = Registry::new(100);
    let one = registry.enter();
    let two = registry.enter();
    assert!(has(&registry, "tollhouse_requests_in_flight 2"));
    drop(one);
    let unwound = std::panic::catch_unwind(std::panic::AssertUnwindSafe(move || {
        let _held = two;
        std::panic::resume_unwind(Box::new("stop"));
    }));
    assert!(unwound.is_err());
    assert!(has(&registry, "tollhouse_requests_in_flight 0"));
}

#[test]
fn reloads_are_counted_by_outcome() {
    let registry = Registry::new(100);
    registry.config_applied(3, SystemTime::UNIX_EPOCH + Duration::from_secs(1_767_225_600));
    registry.config_rejected();
    for line in [
        "tollhouse_config_generation 3",
        "tollhouse_config_reloads_total{outcome=\"applied\"} 1",
        "tollhouse_config_reloads_total{outcome=\"rejected\"} 1",
        "tollhouse_config_last_reload_success_timestamp_seconds 1767225600",
    ] {
        assert!(has(&registry, line), "{line}");
    }
}

#[test]
fn functions_are_read_at_each_scrape_and_replaced_by_name() {
    let registry = Registry::new(100);
    let open = Gauge::default();
    let read = open.clone();
    registry.register_gauge_fn("tollhouse_connections", "Open.", &[("state", "idle")], || -1);
    registry.register_gauge_fn("tollhouse_connections", "Open.", &[("state", "idle")], move || read.get());
    registry.register_counter_fn(
        "tollhouse_connections_refused_total",
        "Refused.",
        &[("reason", "full")],
        || 7,
    );
    open.set(4);
    assert!(has(&registry, "tollhouse_connections{state=\"idle\"} 4"));
    open.set(5);
    assert!(has(&registry, "tollhouse_connections{state=\"idle\"} 5"));
    assert!(has(&registry, "tollhouse_connections_refused_total{reason=\"full\"} 7"));
}

#[test]
fn a_route_that_went_away_is_kept_for_one_reload_and_then_dropped() {
    let registry = Registry::new(100);
    registry.route("web", "old", "users").record(200, QUICK, 0, 0);
    registry.route("web", "kept", NONE).record(200, QUICK, 0, 0);
    reload(&registry, &["kept"]);
    assert!(lines_with(&registry, "\"old\"") > 0);
    reload(&registry, &["kept"]);
    assert_eq!(lines_with(&registry, "\"old\""), 0);
    assert_eq!(lines_with(&registry, "route=\"kept\",upstream=\"none\",code_class=\"2xx\"} 1"), 1);
}

#[test]
fn a_forgotten_route_is_gone_at_once_and_its_handle_harmless() {
    let registry = Registry::new(100);
    let series = registry.route("web", "old", "users");
    series.record(200, QUICK, 0, 0);
    registry.forget("old");
    series.record(200, QUICK, 0, 0);
    assert_eq!(lines_with(&registry, "\"old\""), 0);
}

#[test]
fn ten_thousand_reloads_leave_no_series_behind() {
    let registry = Registry::new(50);
    for reload_number in 0..10_000 {
        let route = format!("route-{reload_number}");
        let series = registry.route("web", &route, "users");
        series.record(200, QUICK, 1, 1);
        registry.counter("filter_hits_total", "Hits.", &[("route", &route)]).inc();
        reload(&registry, &[&route]);
    }
    assert!(registry.budget.used() <= 15, "{} series are held", registry.budget.used());
    assert_eq!(registry.budget.overflow(), 0);
}

#[test]
fn names_beyond_the_cap_are_counted_as_other() {
    let registry = Registry::new(8);
    for route in 0..100 {
        registry.route("web", &format!("r{route}"), "users").record(200, QUICK, 0, 0);
    }
    let text = registry.render();
    let other = "listener=\"other\",route=\"other\",upstream=\"other\",variant=\"other\"";
    assert!(
        has(&registry, &format!("tollhouse_requests_total{{{other},code_class=\"other\"}} 98")),
        "{text}"
    );
    assert!(has(&registry, "tollhouse_metrics_series 8"));
    assert!(has(&registry, &format!("tollhouse_metrics_overflow_total {}", 98 * 4)));
}

#[test]
fn filters_make_metrics_by_name_in_any_label_order() {
    let registry = Registry::new(100);
    let counter =
        registry.counter("tollhouse_filter_decisions_total", "D.", &[("verdict", "deny"), ("filter", "acl")]);
    counter.inc();
    registry
        .counter("tollhouse_filter_decisions_total", "D.", &[("filter", "acl"), ("verdict", "deny")])
        .inc();
    let gauge = registry.gauge("tollhouse_open_breakers", "B.", &[]);
    gauge.set(-3);
    assert!(has(&registry, "tollhouse_filter_decisions_total{filter=\"acl\",verdict=\"deny\"} 2"));
    assert!(has(&registry, "tollhouse_open_breakers -3"));
}

#[test]
fn a_filter_cannot_spoil_the_page_with_a_bad_or_taken_name() {
    let registry = Registry::new(100);
    registry.counter("tollhouse_requests_total", "Forged.", &[]).inc();
    registry.counter("bad name 1\nevil", "Bad.", &[]).inc();
    registry.counter("ok_total", "Ok.", &[("bad-label", "x")]).inc();
    registry.counter("ok_total", "Ok.", &[("a", "x"), ("a", "y")]).inc();
    registry.counter("ok_total", "Ok.", &[("a", "x")]).inc();
    registry.counter("ok_total", "Ok.", &[("b", "x")]).inc();
    registry.gauge("ok_total", "Ok.", &[("a", "x")]).inc();
    let text = registry.render();
    assert!(!text.contains("evil") && !text.contains("Forged"), "{text}");
    assert_eq!(lines_with(&registry, "ok_total{"), 1);
    assert!(has(&registry, "ok_total{a=\"x\"} 1"));
}

#[test]
fn a_filters_series_stays_while_somebody_holds_it() {
    let registry = Registry::new(100);
    let held = registry.counter("hits_total", "Hits.", &[]);
    held.inc();
    for _ in 0..3 {
        reload(&registry, &[]);
    }
    assert!(has(&registry, "hits_total 1"));
    drop(held);
    reload(&registry, &[]);
    reload(&registry, &[]);
    assert_eq!(lines_with(&registry, "hits_total"), 0);
}

#[test]
fn a_filters_count_of_a_route_stays_with_the_route_though_nobody_holds_it() {
    let registry = Registry::new(100);
    let hit = || registry.counter("hits_total", "Hits.", &[("result", "hit"), ("route", "kept")]).inc();
    hit();
    registry.gauge("open", "Open.", &[("route", "kept")]).inc();
    for _ in 0..3 {
        reload(&registry, &["kept"]);
    }
    hit();
    assert!(has(&registry, "hits_total{result=\"hit\",route=\"kept\"} 2"), "{}", registry.render());
    assert_eq!(lines_with(&registry, "open{"), 0, "what it is now nobody says any more");
    reload(&registry, &[]);
    reload(&registry, &[]);
    assert_eq!(lines_with(&registry, "hits_total"), 0);
}
