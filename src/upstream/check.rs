//! What an upstream must be, beyond what its parts say.

use std::path::Path;
use std::time::Duration;

use tollhouse_filters::tree::Error;
use tollhouse_filters::values::ByteSize;

use super::discovery;
use super::{MAX_BACKENDS, MAX_RETRIES, MAX_WEIGHT, Problems};
use crate::config::balance::{Algorithm, Balance};
use crate::config::circuit_breaker::CircuitBreaker;
use crate::config::concurrency::Concurrency;
use crate::config::discovery::Registry;
use crate::config::health::{ProbeKind, ProbeMethod};
use crate::config::hedge::MAX_HEDGES;
use crate::config::upstream::{self as written, Host, Protocol};

/// The most of a body that is kept for another attempt; Pingora keeps no more.
const MAX_KEPT: ByteSize = ByteSize::from_kib(64);
/// Fields that every message needs for itself.
const OF_MESSAGES: [&str; 10] = [
    "host",
    "connection",
    "content-length",
    "content-type",
    "transfer-encoding",
    "te",
    "trailer",
    "upgrade",
    "expect",
    "via",
];
/// Shortest interval between looks at a file.
const MIN_LOOK: Duration = Duration::from_millis(100);
/// Shortest interval between questions to a registry that does not hold them back, and the longest that one does.
const MIN_ASKING: Duration = Duration::from_secs(1);
const MAX_WAIT: Duration = Duration::from_secs(600);
/// Shortest interval between probes.
const MIN_INTERVAL: Duration = Duration::from_millis(10);

/// Everything that is wrong with it but for its files.
pub(super) fn check(written: &written::Upstream, problems: &mut Problems) {
    check_backends(written, problems);
    check_discovery(written, problems);
    check_attempts(written, problems);
    check_balance(&written.balance, problems);
    check_protocol(written, problems);
    check_health(written, problems);
    check_breaker(written.circuit_breaker.as_ref(), problems);
    if let Some((place, message)) = written.concurrency.as_ref().and_then(Concurrency::problem) {
        problems.add(format!("concurrency.{place}"), message);
    }
}

fn check_backends(written: &written::Upstream, problems: &mut Problems) {
    match written.backends.len() {
        0 if written.discovery.is_some() => {}
        0 => problems.add("backends", "at least one backend is needed, or `discovery`"),
        _ if written.discovery.is_some() => {
            problems.add("discovery", "excludes `backends`: an upstream has one of both");
        }
        count if count > MAX_BACKENDS => {
            problems.add("backends", format!("at most {MAX_BACKENDS} backends are possible"));
        }
        _ => {}
    }
    for (index, backend) in written.backends.iter().enumerate() {
        if backend.weight > MAX_WEIGHT {
            problems.add(format!("backends[{index}].weight"), format!("expected 0 to {MAX_WEIGHT}"));
        }
    }
}

/// A registry that can be read, and certificates that can be verified.
fn check_discovery(written: &written::Upstream, problems: &mut Problems) {
    let Some(discovery) = &written.discovery else { return };
    let registry = match discovery.registry() {
        Ok(registry) => registry,
        Err(errors) => return errors.iter().for_each(|error| problems.add(below(error), told(error))),
    };
    check_options(registry, problems);
    if let Some(tls) = &written.tls
        && tls.sni.is_none()
        && registry.tells_whom_to_trust()
    {
        problems.add(
            "tls.sni",
            "is needed with this type of `discovery`, which may tell any name, or addresses without one",
        );
    }
}

fn check_options(registry: &Registry, problems: &mut Problems) {
    match registry.shared().login() {
        (Some(_), None) => problems.add("discovery.username", "needs a `password` too"),
        (None, Some(_)) => problems.add("discovery.password", "needs a `username` too"),
        _ => {}
    }
    let least = if matches!(registry, Registry::File(_)) { MIN_LOOK } else { MIN_ASKING };
    if registry.shared().interval().is_some_and(|interval| interval.get() < least) {
        problems.add("discovery.interval", format!("expected at least {least:?}"));
    }
    // What else a type has is checked where it is followed, in `discovery`.
    if let Registry::Consul(written) = registry
        && !(MIN_ASKING..=MAX_WAIT).contains(&written.wait.get())
    {
        problems.add("discovery.wait", "expected 1s to 10m");
    }
}

/// A registry whose files are as they must be.
pub(super) fn check_registry(written: &written::Upstream, base: &Path, problems: &mut Problems) {
    let registry = written.discovery.as_ref().map(|discovery| discovery.registry());
    if let Some(Ok(registry)) = registry
        && let Err(wrong) = discovery::check(registry, base)
    {
        wrong.into_iter().for_each(|(key, message)| problems.add(format!("discovery.{key}"), message));
    }
}

fn below(error: &Error) -> String {
    if error.path.is_empty() { "discovery".to_owned() } else { format!("discovery.{}", error.path) }
}

fn told(error: &Error) -> String {
    let hint = error.hint.as_ref().map(|hint| format!(" ({hint})")).unwrap_or_default();
    format!("{}{hint}", error.message)
}

fn check_attempts(written: &written::Upstream, problems: &mut Problems) {
    if written.retries.max > MAX_RETRIES {
        problems.add("retries.max", format!("expected 0 to {MAX_RETRIES}"));
    }
    if let Some(name) = &written.timeouts.remaining_header
        && OF_MESSAGES.contains(&name.get().as_str())
    {
        problems.add("timeouts.remaining_header", "is a field that says something else");
    }
    if let Some(hedge) = &written.hedge {
        if hedge.max > MAX_HEDGES {
            problems.add("hedge.max", format!("expected 0 to {MAX_HEDGES}"));
        }
        if written.balance.sticky.is_some() {
            problems.add("hedge", "goes to other backends, and `balance.sticky` keeps clients with theirs");
        }
    }
    if written.retries.body_bytes > MAX_KEPT {
        problems.add("retries.body_bytes", format!("expected at most {MAX_KEPT}"));
    }
}

fn check_balance(balance: &Balance, problems: &mut Problems) {
    let token = |name: &str| {
        !name.is_empty()
            && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte))
    };
    if balance.sticky.as_ref().is_some_and(|sticky| !token(&sticky.cookie)) {
        problems.add("balance.sticky.cookie", "expected the name of a cookie (RFC 6265 s4.1.1)");
    }
    let by_key = balance.algorithm == Algorithm::ConsistentHash;
    match &balance.hash_on {
        None if by_key => {
            problems.add("balance.hash_on", "is needed by `consistent_hash`: add one, such as `hash_on: ip`");
        }
        Some(_) if !by_key => {
            problems.add("balance.hash_on", "only `consistent_hash` goes by a key; add that `algorithm`");
        }
        _ => {}
    }
}

fn check_protocol(written: &written::Upstream, problems: &mut Problems) {
    match (written.protocol, &written.tls) {
        (Protocol::H2, None) => problems.add("protocol", "`h2` needs `tls`; without TLS it is `h2c`"),
        (Protocol::H2c, Some(_)) => problems.add("protocol", "`h2c` is without TLS; with `tls` it is `h2`"),
        _ => {}
    }
    let nameless = |backend: &written::Backend| matches!(backend.address.host, Host::Ip(_));
    if let Some(tls) = &written.tls
        && tls.sni.is_none()
        && let Some(index) = written.backends.iter().position(nameless)
    {
        let address = &written.backends[index].address;
        problems.add("tls.sni", format!("is needed, as the backend {address} has no host name to verify"));
    }
}

fn check_breaker(breaker: Option<&CircuitBreaker>, problems: &mut Problems) {
    let Some(breaker) = breaker else { return };
    let here = |key: &str| format!("circuit_breaker.{key}");
    match (breaker.slow, breaker.slow_ratio) {
        (Some(_), None) => problems.add(here("slow"), "needs `slow_ratio`: how many may be slow"),
        (None, Some(_)) => problems.add(here("slow_ratio"), "needs `slow`: what is slow"),
        _ => {}
    }
    let Some(fallback) = &breaker.fallback else { return };
    let answers = fallback.status.is_some() || !fallback.headers.is_empty() || !fallback.body.is_empty();
    if [fallback.route.is_some(), fallback.stale, answers].iter().filter(|is| **is).count() > 1 {
        problems.add(here("fallback"), "does one thing; keep `route`, `stale`, or what is answered");
    }
    if fallback.status.is_some_and(|status| !(200..=599).contains(&status)) {
        problems.add(here("fallback.status"), "expected 200 to 599");
    }
    for (name, value) in &fallback.headers {
        let place = here(&format!("fallback.headers.{name}"));
        if OF_MESSAGES.contains(&name.get().as_str()) && name.get() != http::header::CONTENT_TYPE {
            problems.add(place, "is made by the gateway");
        } else if http::HeaderValue::from_str(value).is_err() {
            problems.add(place, "expected text on one line");
        }
    }
}

fn check_health(written: &written::Upstream, problems: &mut Problems) {
    let Some(health) = &written.health else { return };
    if health.active.is_none() && health.outlier.is_none() && health.slow_start.is_none() {
        problems.add("health", "says nothing; add `active` or `outlier`");
    }
    let Some(active) = &health.active else { return };
    let (http, grpc) = (active.kind == ProbeKind::Http, active.kind == ProbeKind::Grpc);
    let here = |key: &str| format!("health.active.{key}");
    for (key, is_written, fits, kinds) in [
        ("path", active.path.is_some(), http, "`type: http`"),
        ("method", active.method.is_some(), http, "`type: http`"),
        ("expect", active.expect.is_some(), http, "`type: http`"),
        ("body", active.body.is_some(), http, "`type: http`"),
        ("host", active.host.is_some(), http || grpc, "`type: http` and `type: grpc`"),
        ("service", active.service.is_some(), grpc, "`type: grpc`"),
    ] {
        if is_written && !fits {
            problems.add(here(key), format!("is only for {kinds}"));
        }
    }
    if active.expect.as_ref().is_some_and(Vec::is_empty) {
        problems.add(here("expect"), "at least one status is needed");
    }
    if active.body.is_some() && active.method == Some(ProbeMethod::Head) {
        problems.add(here("body"), "an answer to `HEAD` has no body");
    }
    if active.interval.get() < MIN_INTERVAL {
        problems.add(here("interval"), "expected at least 10ms");
    }
    let speaks_h2 = match written.protocol {
        Protocol::H2 | Protocol::H2c => true,
        Protocol::Auto => written.tls.is_some(),
        Protocol::Http1 => false,
    };
    if grpc && !speaks_h2 {
        problems.add(here("type"), "`grpc` needs an upstream with `protocol: h2` or `h2c`");
    }
}
