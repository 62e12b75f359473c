//! Active health checks: who gets requests, and what is said about those that get none.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use crate::harness::{
    Checked, Gateway, Grpc, Nginx, Origin, get, refusing, refusing_each, soon, tls_origin, until,
};

/// An upstream of these backends, checked so, and a route to it; failed connections are not retried.
fn document(name: &str, backends: &[SocketAddr], active: &str) -> String {
    let backends: Vec<_> = backends.iter().map(|address| format!("{{address: \"{address}\"}}")).collect();
    format!(
        "upstreams: [{{name: {name}, backends: [{}], retries: {{max: 0}}, health: {{active: {{{active}}}}}}}]\n\
         routes: [{{name: all, upstream: {name}}}]\n",
        backends.join(", ")
    )
}

/// A check that is quick to notice.
fn http(extra: &str) -> String {
    format!("type: http, path: /healthz, interval: 20ms, healthy: 2, unhealthy: 2{extra}")
}

/// Who answers so many requests.
async fn answers(gateway: &Gateway, count: usize) -> Vec<String> {
    let mut names = Vec::new();
    for _ in 0..count {
        let answer = get(gateway.address(), "/").await;
        assert_eq!(answer.status, 200, "{answer:?}");
        names.push(answer.text());
    }
    names.sort();
    names.dedup();
    names
}

/// Asks until this status comes.
async fn answered(gateway: &Gateway, status: u16) {
    soon(&format!("status {status}"), async {
        while get(gateway.address(), "/").await.status != status {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await;
}

#[tokio::test]
async fn a_backend_gets_requests_while_its_status_is_expected() {
    let (one, two) = (Checked::start("one").await, Checked::start("two").await);
    let backends = [one.origin.address, two.origin.address];
    let gateway = Gateway::start(&document("users", &backends, &http(""))).await;
    assert_eq!(answers(&gateway, 8).await, ["one", "two"]);

    one.says("500 Oops", "");
    let line = gateway.says("a backend is unhealthy").await;
    for part in [" WARN ", "users", &one.origin.address.to_string(), "status 500, expected 200-299"] {
        assert!(line.contains(part), "{line}");
    }
    assert_eq!(answers(&gateway, 8).await, ["two"]);

    one.says("204 Fine", "");
    let line = gateway.says("a backend is healthy again").await;
    assert!(line.contains(" INFO ") && line.contains("status 204"), "{line}");
    assert_eq!(answers(&gateway, 8).await, ["one", "two"]);
}

#[tokio::test]
async fn probes_are_what_the_check_says() {
    let one = Checked::start("one").await;
    let check = "type: http, path: /healthz, method: HEAD, host: users.internal, expect: [200, 300-399]";
    let gateway = Gateway::start(&document("users", &[one.origin.address], check)).await;
    answered(&gateway, 200).await;
    let probe = one.probes().remove(0);
    assert_eq!(probe.line, "HEAD /healthz HTTP/1.1");
    assert_eq!(probe.field("host"), Some("users.internal"));
    assert!(probe.field("user-agent").is_some_and(|agent| agent.starts_with("tollhouse-health/")));
}

#[tokio::test]
async fn the_body_has_to_have_what_is_wanted() {
    let one = Checked::start("one").await;
    let check = http(", body: \"~^(fine|ok)$\"");
    let gateway = Gateway::start(&document("users", &[one.origin.address], &check)).await;
    assert_eq!(answers(&gateway, 1).await, ["one"]);
    one.says("200 OK", "not so fine");
    gateway.says("status 200, but the body has no `~^(fine|ok)$`").await;
    answered(&gateway, 503).await;
    one.says("200 OK", "ok");
    answered(&gateway, 200).await;
}

#[tokio::test]
async fn the_first_request_after_a_start_never_goes_to_a_dead_backend() {
    let (alive, silent) = (Checked::start("alive").await, Checked::start("silent").await);
    silent.hangs();
    let backends = [refusing().await, silent.origin.address, alive.origin.address];
    let check = "type: http, path: /healthz, interval: 1h, timeout: 200ms";
    let gateway = Gateway::start(&document("users", &backends, check)).await;
    assert_eq!(answers(&gateway, 9).await, ["alive"]);
    gateway.says("connection refused").await;
    gateway.says("timeout after 200ms").await;
}

#[tokio::test]
async fn a_backend_that_begins_to_hang_is_given_up() {
    let one = Checked::start("one").await;
    let gateway = Gateway::start(&document("users", &[one.origin.address], &http(", timeout: 50ms"))).await;
    one.hangs();
    gateway.says("timeout after 50ms").await;
    answered(&gateway, 503).await;
}

#[tokio::test]
async fn without_a_healthy_backend_the_answer_is_503_and_says_so() {
    let check = "type: tcp, interval: 20ms, unhealthy: 1";
    let gateway = Gateway::start(&document("users", &refusing_each::<2>().await, check)).await;
    let answer = get(gateway.address(), "/").await;
    assert_eq!((answer.status, answer.problem()), (503, "no-backend".to_owned()));
    assert_eq!(answer.json()["detail"], "no backend is healthy");
    assert!(answer.field("retry-after").is_some(), "{answer:?}");
    let line = gateway.log_line(|line| line["status"] == 503).await;
    assert_eq!(line["error"], "no-backend", "{line}");
}

#[tokio::test]
async fn a_tcp_check_goes_by_the_connection_alone() {
    let one = Checked::start("one").await;
    one.says("500 Oops", "");
    let address = one.origin.address;
    let gateway =
        Gateway::start(&document("users", &[address], "type: tcp, interval: 20ms, unhealthy: 1")).await;
    assert_eq!(answers(&gateway, 3).await, ["one"]);
    assert!(one.probes().is_empty(), "nothing was asked");
    drop(one);
    gateway.says("connection refused").await;
    answered(&gateway, 503).await;
    let listener = tokio::net::TcpListener::bind(address).await.expect("the same port");
    let _again = Origin::on(listener, |mut wire| async move {
        while wire.head().await.is_ok() {
            wire.send("HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n").await;
        }
    });
    answered(&gateway, 200).await;
}

#[tokio::test]
async fn a_grpc_check_goes_by_the_serving_status() {
    let grpc = Grpc::start().await;
    let check = "type: grpc, service: users, interval: 20ms, healthy: 1, unhealthy: 1";
    let document =
        document("users", &[grpc.origin.address], check).replace("retries:", "protocol: h2c, retries:");
    let gateway = Gateway::start(&document).await;
    assert_eq!(get(gateway.address(), "/").await.status, 200);
    assert_eq!(grpc.asked()[0], b"\0\0\0\0\x07\x0a\x05users", "a HealthCheckRequest for users");
    grpc.says(2);
    gateway.says("NOT_SERVING").await;
    answered(&gateway, 503).await;
    grpc.says(1);
    answered(&gateway, 200).await;
}

#[tokio::test]
async fn an_http_check_speaks_the_protocol_of_the_upstream() {
    // This origin speaks nothing but HTTP/2.
    let grpc = Grpc::start().await;
    let upstream = |name: &str, protocol: &str| {
        format!(
            "  - {{name: {name}, protocol: {protocol}, backends: [{{address: \"{}\"}}], \
             health: {{active: {{type: http, path: /any}}}}}}\n",
            grpc.origin.address
        )
    };
    let gateway = Gateway::start(&format!(
        "upstreams:\n{}{}routes:\n  - {{name: all, upstream: two}}\n  \
         - {{name: one, match: {{paths: [/one]}}, upstream: one}}\n",
        upstream("one", "http/1.1"),
        upstream("two", "h2c")
    ))
    .await;
    assert_eq!(get(gateway.address(), "/").await.status, 200);
    assert_eq!(get(gateway.address(), "/one").await.problem(), "no-backend");
}

#[tokio::test]
async fn tls_backends_are_probed_over_tls_with_the_same_trust() {
    let directory = tempfile::tempdir().expect("a directory");
    let (ours, other) = (directory.path().join("ours.pem"), directory.path().join("other.pem"));
    let (origin, _other) = (tls_origin(&ours).await, tls_origin(&other).await);
    let upstream = |name: &str, ca: &std::path::Path, kind: &str| {
        format!(
            "  - {{name: {name}, backends: [{{address: \"{}\"}}], tls: {{sni: users.internal, ca: \"{}\"}}, \
             health: {{active: {{type: {kind}}}}}}}\n",
            origin.address,
            ca.display()
        )
    };
    let upstreams = [
        upstream("trusting", &ours, "http"),
        upstream("connecting", &ours, "tcp"),
        upstream("wary", &other, "http"),
    ];
    let route = |name: &str| format!("  - {{name: {name}, match: {{paths: [/{name}]}}, upstream: {name}}}\n");
    let routes = ["trusting", "connecting", "wary"].map(route);
    let gateway =
        Gateway::start(&format!("upstreams:\n{}routes:\n{}", upstreams.concat(), routes.concat())).await;
    assert_eq!(get(gateway.address(), "/trusting").await.text(), "secret");
    assert_eq!(get(gateway.address(), "/connecting").await.text(), "secret");
    assert_eq!(get(gateway.address(), "/wary").await.problem(), "no-backend");
    let line = gateway.says("a backend is unhealthy").await;
    let reason = "TLSHandshakeFailure: invalid peer certificate: ";
    assert!(line.contains("wary") && line.contains(reason), "{line}");
}

#[tokio::test]
async fn a_real_nginx_is_healthy_while_it_has_the_file() {
    let nginx = Nginx::start(&[("healthz", b"ok\n"), ("index", b"from nginx\n")]).await;
    let check = http(", body: ok");
    let gateway = Gateway::start(&document("files", &[nginx.address], &check)).await;
    assert_eq!(get(gateway.address(), "/index").await.text(), "from nginx\n");
    std::fs::remove_file(nginx.file("healthz")).expect("removed");
    gateway.says("status 404, expected 200-299").await;
    answered(&gateway, 503).await;
    std::fs::write(nginx.file("healthz"), "ok\n").expect("written");
    soon("nginx to be back", async {
        while get(gateway.address(), "/index").await.status != 200 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await;
}

#[tokio::test]
async fn a_backend_of_many_upstreams_is_probed_once_an_interval() {
    let one = Checked::start("one").await;
    let upstream = |at: usize| {
        format!(
            "  - {{name: u{at}, backends: [{{address: \"{}\"}}], \
             health: {{active: {{type: http, path: /healthz, interval: 50ms}}}}}}\n",
            one.origin.address
        )
    };
    let upstreams: String = (0..20).map(upstream).collect();
    let started = Instant::now();
    let _gateway =
        Gateway::start(&format!("upstreams:\n{upstreams}routes: [{{name: all, upstream: u0}}]\n")).await;
    until("twelve probes", || (one.probes().len() >= 12).then_some(())).await;
    // The first pause is any part of the interval, the others are at least nine tenths of it.
    let most = started.elapsed().as_millis() / 45 + 2;
    let probes = one.probes().len();
    assert!(u128::try_from(probes).expect("few") <= most, "{probes} probes, at most {most} expected");
}

/// Replaces the document and waits until it serves.
async fn reload(gateway: &Gateway, rest: &str) {
    let generation = gateway.said("configuration reloaded");
    std::fs::write(gateway.file(), gateway.text(rest)).expect("written");
    until("the reload", || (gateway.said("configuration reloaded") > generation).then_some(())).await;
}

#[tokio::test]
async fn what_is_known_survives_a_reload() {
    let one = Checked::start("one").await;
    one.says("500 Oops", "");
    let check = "type: http, path: /healthz, interval: 1h";
    let before = document("users", &[one.origin.address], check);
    let gateway = Gateway::start(&before).await;
    assert_eq!(get(gateway.address(), "/").await.status, 503);
    assert_eq!(one.probes().len(), 1);
    // Another upstream, too, which shares the check.
    reload(&gateway, &before.replace("retries: {max: 0}", "retries: {max: 2}")).await;
    assert_eq!(get(gateway.address(), "/").await.status, 503);
    assert_eq!(one.probes().len(), 1, "a reload is no reason to probe");

    one.says("200 OK", "");
    reload(&gateway, &before.replace("interval: 1h", "interval: 20ms")).await;
    answered(&gateway, 200).await;
}

#[tokio::test]
async fn a_backend_that_a_reload_adds_is_used_after_its_first_probe_and_a_removed_one_is_let_go() {
    let (one, two) = (Checked::start("one").await, Checked::start("two").await);
    let check = http(", timeout: 100ms");
    let gateway = Gateway::start(&document("users", &[one.origin.address], &check)).await;
    two.hangs();
    let backends = [refusing().await, two.origin.address, one.origin.address];
    reload(&gateway, &document("users", &backends, &check)).await;
    assert_eq!(answers(&gateway, 9).await, ["one"]);

    two.says("200 OK", "");
    soon("the new backend", async { while answers(&gateway, 6).await.len() < 2 {} }).await;
    reload(&gateway, &document("users", &[two.origin.address], &check)).await;
    assert_eq!(answers(&gateway, 6).await, ["two"]);
    let (probes, others) = (one.probes().len(), two.probes().len());
    until("ten probes of the one that stays", || (two.probes().len() >= others + 10).then_some(())).await;
    assert!(one.probes().len() <= probes + 1, "one may have been under way");
}

#[tokio::test]
async fn what_serves_is_probed_on_while_a_reload_waits_for_new_backends() {
    let (one, silent) = (Checked::start("one").await, Checked::start("silent").await);
    one.says("500 Oops", "");
    silent.hangs();
    let check = http(", timeout: 1m");
    let gateway = Gateway::start(&document("users", &[one.origin.address], &check)).await;
    answered(&gateway, 503).await;
    let added = document("more", &[silent.origin.address], &check).replace("name: all", "name: more");
    let (upstreams, _) = added.split_once("]\nroutes").expect("routes");
    let both = document("users", &[one.origin.address], &check).replace("healthy: 2", "healthy: 3");
    let both = both.replace("upstreams: [", &format!("{upstreams}, "));
    std::fs::write(gateway.file(), gateway.text(&both)).expect("written");
    until("the new backend is probed", || (!silent.probes().is_empty()).then_some(())).await;

    one.says("200 OK", "");
    answered(&gateway, 200).await;
    one.says("500 Oops", "");
    answered(&gateway, 503).await;
    assert_eq!(gateway.said("configuration reloaded"), 0, "the reload still waits");
}
