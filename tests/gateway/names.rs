//! Host names of backends, against a real DNS server on loopback.

use std::net::IpAddr;
use std::time::{Duration, Instant};

use hickory_proto::rr::RecordType;

use crate::harness::{Dns, Gateway, Origin, Reply, get, soon, until};

const NAME: &str = "users.test";

fn loopback(last: u8) -> IpAddr {
    IpAddr::from([127, 0, 0, last])
}

fn document(dns: &Dns, port: u16) -> String {
    format!(
        "{}upstreams: [{{name: users, backends: [{{address: \"{NAME}:{port}\"}}]}}]\n\
         routes: [{{name: all, upstream: users}}]\n",
        dns.server()
    )
}

/// Asks until this text comes; nothing else than a 200 may come in between.
async fn serves(gateway: &Gateway, text: &str) {
    soon(text, async {
        loop {
            let answer = get(gateway.address(), "/").await;
            assert_eq!(answer.status, 200, "{answer:?}");
            if answer.text() == text {
                return;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    })
    .await;
}

#[tokio::test]
async fn a_name_is_followed_when_its_ttl_is_over() {
    let (dns, (first, _second)) = (Dns::start().await, Origin::twins(["first", "second"]).await);
    dns.set(NAME, Reply::Addresses(vec![loopback(1)], 1));
    dns.set("clock.test", Reply::Addresses(vec![loopback(1)], 1));
    let clock = "upstreams: [{name: clock, backends: [{address: \"clock.test:80\"}]}, ";
    let document = document(&dns, first.address.port()).replace("upstreams: [", clock);
    let gateway = Gateway::start(&document).await;
    assert_eq!(get(gateway.address(), "/").await.text(), "first", "known before the first request");
    dns.set(NAME, Reply::Addresses(vec![loopback(2)], 3600));
    serves(&gateway, "second").await;
    let asked = dns.queries(NAME);
    dns.set(NAME, Reply::Addresses(vec![loopback(1)], 1));
    let ticks = dns.queries("clock.test");
    until("a second to pass", || (dns.queries("clock.test") > ticks + 1).then_some(())).await;
    assert_eq!(dns.queries(NAME), asked, "an hour is not over");
    serves(&gateway, "second").await;
}

#[tokio::test]
async fn failures_and_negative_answers_keep_the_last_good_one() {
    let (dns, (first, _second)) = (Dns::start().await, Origin::twins(["first", "second"]).await);
    dns.set(NAME, Reply::Addresses(vec![loopback(1)], 1));
    let gateway = Gateway::start(&document(&dns, first.address.port())).await;
    dns.set(NAME, Reply::Failure);
    let line = gateway.says("keeping its last addresses").await;
    assert!(line.contains(" WARN ") && line.contains(NAME), "{line}");
    assert_eq!(get(gateway.address(), "/").await.text(), "first");
    let asked = dns.queries(NAME);
    dns.remove(NAME);
    until("NXDOMAIN was told", || (dns.queries(NAME) > asked).then_some(())).await;
    assert_eq!(get(gateway.address(), "/").await.text(), "first");
    dns.set(NAME, Reply::Addresses(vec![loopback(2)], 1));
    serves(&gateway, "second").await;
    gateway.says("a name resolves again").await;
}

#[tokio::test]
async fn a_name_server_that_fails_does_not_stand_in_the_way_of_one_that_answers() {
    let (failing, working) = (Dns::start().await, Dns::start().await);
    let (first, _second) = Origin::twins(["first", "second"]).await;
    failing.set(NAME, Reply::Failure);
    working.set(NAME, Reply::Addresses(vec![loopback(1)], 60));
    // What fails is quicker.
    for kind in [RecordType::A, RecordType::AAAA] {
        working.delay(kind, Duration::from_millis(100));
    }
    let both = format!("[\"{}\", \"{}\"]", failing.address, working.address);
    let one = format!("[\"{}\"]", failing.address);
    let document = document(&failing, first.address.port()).replace(&one, &both);
    let gateway = Gateway::start(&document).await;
    assert_eq!(get(gateway.address(), "/").await.text(), "first", "known before the first request");
    assert!(failing.queries(NAME) > 0);
    assert_eq!(gateway.said("cannot resolve a name"), 0);
}

// As from a cache that leaves AAAA out, for a name that it has to ask others for.
#[tokio::test]
async fn an_empty_answer_of_one_family_does_not_cut_the_other_off() {
    let (dns, (first, _second)) = (Dns::start().await, Origin::twins(["first", "second"]).await);
    dns.set(NAME, Reply::Addresses(vec![loopback(1)], 60));
    dns.delay(RecordType::A, Duration::from_millis(700));
    let gateway = Gateway::start(&document(&dns, first.address.port())).await;
    assert_eq!(get(gateway.address(), "/").await.text(), "first", "known before the first request");
    assert_eq!(gateway.said("cannot resolve a name"), 0);
}

#[tokio::test]
async fn an_address_nobody_listens_at_costs_hardly_an_attempt_beside_another_of_the_name() {
    let (dns, (first, _second)) = (Dns::start().await, Origin::twins(["first", "second"]).await);
    dns.set(NAME, Reply::Addresses(vec![loopback(1), loopback(2), loopback(3)], 3600));
    let gateway = Gateway::counting_all(&document(&dns, first.address.port())).await;
    let began = Instant::now();
    for _ in 0..300 {
        assert_eq!(get(gateway.address(), "/").await.status, 200);
    }
    let series = "tollhouse_upstream_attempts_total{upstream=\"users\",outcome=\"connect_failed\"}";
    let failed = gateway.number(series).await;
    // One at the start, and one each time that it is tried again, at most once a second.
    assert!((1..=1 + began.elapsed().as_secs()).contains(&failed), "{failed} of 300");
}

#[tokio::test]
async fn an_unknown_name_is_503_until_it_is_known() {
    let (dns, (first, _second)) = (Dns::start().await, Origin::twins(["first", "second"]).await);
    let gateway = Gateway::start(&document(&dns, first.address.port())).await;
    let answer = get(gateway.address(), "/").await;
    assert_eq!((answer.status, answer.problem()), (503, "no-backend".to_owned()));
    assert_eq!(answer.json()["detail"], "no backend has a known address");
    dns.set(NAME, Reply::Addresses(vec![loopback(1)], 60));
    soon("the name", async {
        while get(gateway.address(), "/").await.status != 200 {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    })
    .await;
}

#[tokio::test]
async fn a_dead_dns_server_delays_the_start_by_seconds_at_most() {
    let (dns, (first, _second)) = (Dns::start().await, Origin::twins(["first", "second"]).await);
    dns.set(NAME, Reply::Silence);
    let started = Instant::now();
    let gateway = Gateway::start(&format!(
        "{}upstreams:\n  - {{name: named, backends: [{{address: \"{NAME}:80\"}}]}}\n  \
         - {{name: plain, backends: [{{address: \"{}\"}}]}}\n\
         routes: [{{name: all, upstream: plain}}, {{name: named, match: {{paths: [/named]}}, upstream: named}}]\n",
        dns.server(),
        first.address
    ))
    .await;
    assert_eq!(get(gateway.address(), "/").await.text(), "first");
    assert!(started.elapsed() < Duration::from_secs(8), "{:?}", started.elapsed());
    assert_eq!(get(gateway.address(), "/named").await.status, 503);
}

#[tokio::test]
async fn a_name_of_many_upstreams_is_asked_for_once() {
    let (dns, (first, _second)) = (Dns::start().await, Origin::twins(["first", "second"]).await);
    dns.set(NAME, Reply::Addresses(vec![loopback(1)], 60));
    let upstream = |at: usize| {
        format!("  - {{name: u{at}, backends: [{{address: \"{NAME}:{}\"}}]}}\n", first.address.port())
    };
    let upstreams: String = (0..20).map(upstream).collect();
    let rest = format!("{}upstreams:\n{upstreams}routes: [{{name: all, upstream: u7}}]\n", dns.server());
    let gateway = Gateway::start(&rest).await;
    assert_eq!(get(gateway.address(), "/").await.text(), "first");
    assert_eq!(dns.queries(NAME), 1);
    std::fs::write(gateway.file(), gateway.text(&rest.replace("upstream: u7", "upstream: u8")))
        .expect("written");
    gateway.says("configuration reloaded").await;
    assert_eq!(get(gateway.address(), "/").await.text(), "first");
    assert_eq!(dns.queries(NAME), 1, "a reload is no reason to ask");
}

#[tokio::test]
async fn every_address_of_a_name_is_probed_and_only_healthy_ones_are_used() {
    let (dns, (first, second)) = (Dns::start().await, Origin::twins(["first", "second"]).await);
    dns.set(NAME, Reply::Addresses(vec![loopback(1), loopback(2), loopback(3)], 1));
    let port = first.address.port();
    let checked = document(&dns, port).replace(
        "}]}]",
        "}], retries: {max: 0}, health: {active: {type: tcp, interval: 20ms, unhealthy: 1}}}]",
    );
    let gateway = Gateway::start(&checked).await;
    let line = gateway.says("a backend is unhealthy").await;
    assert!(line.contains(&format!("127.0.0.3:{port}")), "{line}");
    for _ in 0..4 {
        let mut both = [get(gateway.address(), "/").await.text(), get(gateway.address(), "/").await.text()];
        both.sort();
        assert_eq!(both, ["first", "second"]);
    }
    drop(second);
    until("127.0.0.2 is given up", || {
        let gone = format!("127.0.0.2:{port}");
        gateway.stderr().iter().find(|line| line.contains("unhealthy") && line.contains(&gone)).cloned()
    })
    .await;
    for _ in 0..4 {
        assert_eq!(get(gateway.address(), "/").await.text(), "first");
    }
}
