//! What one client may use: `server.limits`.

use std::time::{Duration, Instant};

use http::Request;

use crate::harness::{Gateway, H2c, Origin, Wire, exchange, get, noise, request, soon, until};

#[tokio::test]
async fn a_long_target_is_a_414() {
    let origin = Origin::echo().await;
    let gateway = Gateway::before(&origin, "server: {limits: {uri_bytes: 1KiB}}").await;
    assert_eq!(get(gateway.address(), &format!("/{}", "a".repeat(1023))).await.status, 200);
    for target in [format!("/{}", "a".repeat(1024)), format!("/?{}", "a".repeat(1024))] {
        let answer = get(gateway.address(), &target).await;
        assert_eq!((answer.status, answer.problem().as_str()), (414, "uri-too-long"));
        assert_eq!(H2c::connect(gateway.address()).await.get(&target).await.status, 414);
    }
    assert_eq!(origin.heads().len(), 1);
}

#[tokio::test]
async fn too_many_fields_are_a_431() {
    let origin = Origin::echo().await;
    let gateway = Gateway::before(&origin, "server: {limits: {header_count: 10}}").await;
    let fields = |count: usize| (1..count).map(|n| format!("x-{n}: 1\r\n")).collect::<String>();
    assert_eq!(request(gateway.address(), "GET /", &fields(10)).await.status, 200);
    let answer = request(gateway.address(), "GET /", &fields(11)).await;
    assert_eq!((answer.status, answer.problem().as_str()), (431, "headers-too-large"));
}

#[tokio::test]
async fn too_large_fields_are_a_431() {
    let origin = Origin::echo().await;
    let gateway = Gateway::before(&origin, "server: {limits: {header_bytes: 2KiB}}").await;
    let field = format!("x-large: {}\r\n", "a".repeat(2048));
    let answer = request(gateway.address(), "GET /", &field).await;
    assert_eq!((answer.status, answer.problem().as_str()), (431, "headers-too-large"));
    let over_h2 = Request::get("http://a/").header("x-large", "a".repeat(2048)).body(()).expect("valid");
    let answer = H2c::connect(gateway.address()).await.send(over_h2, b"").await.expect("an answer");
    assert_eq!(answer.status, 431);
    assert!(origin.heads().is_empty());
}

#[tokio::test]
async fn a_head_may_be_as_large_as_the_document_says_over_either_version() {
    let origin = Origin::echo().await;
    let server = "server: {limits: {header_bytes: 900KiB, uri_bytes: 64KiB}}";
    let gateway = Gateway::before(&origin, server).await;
    let (target, field) = (format!("/{}", "a".repeat(60_000)), "b".repeat(900_000));
    let answer = request(gateway.address(), &format!("GET {target}"), &format!("x-large: {field}\r\n")).await;
    assert_eq!(answer.status, 200);
    let over_h2 = Request::get(format!("http://a{target}")).header("x-large", field).body(()).expect("valid");
    let answer = H2c::connect(gateway.address()).await.send(over_h2, b"").await.expect("an answer");
    assert_eq!(answer.status, 200);
    assert!(origin.heads().iter().all(|head| head.target() == target));
    assert_eq!(origin.heads().len(), 2);
}

#[tokio::test]
async fn a_target_that_no_library_reads_is_a_414_too() {
    let origin = Origin::echo().await;
    let gateway = Gateway::counting(&origin, "server: {limits: {uri_bytes: 64KiB}}").await;
    assert_eq!(get(gateway.address(), &format!("/{}", "a".repeat(65_000))).await.status, 200);
    let answer = get(gateway.address(), &format!("/{}", "a".repeat(65_534))).await;
    assert_eq!((answer.status, answer.problem().as_str()), (414, "uri-too-long"));
    assert_eq!(gateway.refused("target-too-long").await, 1);
    gateway.log_line(|line| line["status"] == 414).await;
}

#[tokio::test]
async fn a_head_beyond_all_reason_is_refused_with_an_answer() {
    let origin = Origin::echo().await;
    let gateway = Gateway::before(&origin, "").await;
    let fields = (0..300).map(|n| format!("x-{n}: 1\r\n")).collect::<String>();
    let answer = request(gateway.address(), "GET /", &fields).await;
    assert!(matches!(answer.status, 400 | 431), "{answer:?}");
    assert!(origin.heads().is_empty());
}

const SMALL: &str = "server: {limits: {body_bytes: 1KiB}}";

#[tokio::test]
async fn a_declared_body_over_the_limit_is_a_413_before_the_origin_is_asked() {
    let origin = Origin::echo().await;
    let gateway = Gateway::before(&origin, SMALL).await;
    let answer = request(gateway.address(), "POST /", "Content-Length: 1025\r\n").await;
    assert_eq!((answer.status, answer.problem().as_str()), (413, "body-too-large"));
    let post = Request::post("http://a/").header("content-length", "1025").body(()).expect("valid");
    let answer = H2c::connect(gateway.address()).await.send(post, &noise(1025)).await.expect("an answer");
    assert_eq!(answer.status, 413);
    assert_eq!(origin.connections(), 0);
    let exact = format!("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1024\r\n\r\n{}", "a".repeat(1024));
    assert_eq!(exchange(gateway.address(), exact).await.map(|answer| answer.status), Ok(200));
}

#[tokio::test]
async fn an_undeclared_body_over_the_limit_is_a_413_while_it_streams() {
    let origin = Origin::echo().await;
    let gateway = Gateway::before(&origin, SMALL).await;
    let mut client = Wire::connect(gateway.address()).await;
    client.send("POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n").await;
    for _ in 0..5 {
        client.send(format!("100\r\n{}\r\n", "a".repeat(256))).await;
    }
    let answer = client.answer().await.expect("an answer");
    assert_eq!((answer.status, answer.problem().as_str()), (413, "body-too-large"));
    client.closed().await;
    let post = Request::post("http://a/").body(()).expect("valid");
    let answer = H2c::connect(gateway.address()).await.send(post, &noise(1025)).await.expect("an answer");
    assert_eq!(answer.status, 413);
}

#[tokio::test]
async fn a_body_that_stalls_is_a_408() {
    let origin = Origin::echo().await;
    let gateway = Gateway::before(&origin, "server: {limits: {body_timeout: 200ms}}").await;
    for framing in ["Content-Length: 10\r\n\r\nabc", "Transfer-Encoding: chunked\r\n\r\n5\r\nab"] {
        let begun = Instant::now();
        let mut client = Wire::connect(gateway.address()).await;
        client.send(format!("POST / HTTP/1.1\r\nHost: a\r\n{framing}")).await;
        let answer = client.answer().await.expect("an answer");
        assert_eq!((answer.status, answer.problem().as_str()), (408, "request-timeout"));
        assert!(begun.elapsed() < Duration::from_secs(3));
        client.closed().await;
    }
}

#[tokio::test]
async fn a_head_that_trickles_in_is_a_408_when_its_time_is_over() {
    let origin = Origin::echo().await;
    let gateway = Gateway::before(&origin, "server: {limits: {header_timeout: 1s}}").await;
    let mut client = Wire::connect(gateway.address()).await;
    let begun = Instant::now();
    client.send("GET / HTTP/1.1\r\nHost: a\r\n").await;
    let answer = soon("an answer", async {
        loop {
            // Each piece comes well within the time; together they take longer.
            client.send("X: y\r\n").await;
            if let Ok(answer) = tokio::time::timeout(Duration::from_millis(50), client.answer()).await {
                return answer.expect("an answer");
            }
        }
    })
    .await;
    assert_eq!(answer.status, 408);
    assert!((800..4000).contains(&begun.elapsed().as_millis()), "{:?}", begun.elapsed());
    let line = gateway.log_line(|line| line["status"] == 408).await;
    assert_eq!((&line["error"], &line["method"]), (&"request-timeout".into(), &"GET".into()));
    assert!(line["elapsed_ms"].as_f64().is_some_and(|elapsed| elapsed >= 800.0), "{line}");
    assert!(origin.heads().is_empty());
}

#[tokio::test]
async fn an_idle_connection_is_closed() {
    let origin = Origin::echo().await;
    let gateway = Gateway::before(&origin, "server: {limits: {idle_timeout: 1s}}").await;
    let mut client = Wire::connect(gateway.address()).await;
    client.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n").await;
    client.answer().await.expect("an answer");
    let begun = Instant::now();
    client.closed().await;
    assert!((800..4000).contains(&begun.elapsed().as_millis()), "{:?}", begun.elapsed());
}

#[tokio::test]
async fn connections_over_the_limit_are_closed_and_others_live_on() {
    for limit in ["connections: 3", "connections_per_ip: 3"] {
        let origin = Origin::echo().await;
        let gateway = Gateway::before(&origin, &format!("server: {{limits: {{{limit}}}}}")).await;
        let mut clients = Vec::new();
        for _ in 0..3 {
            let mut client = Wire::connect(gateway.address()).await;
            client.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n").await;
            client.answer().await.expect("an answer");
            clients.push(client);
        }
        Wire::connect(gateway.address()).await.closed().await;
        for client in &mut clients {
            client.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n").await;
            assert_eq!(client.answer().await.map(|answer| answer.status), Ok(200), "{limit}");
        }
        clients.pop();
        // The permit comes back once the gateway has seen the close.
        soon("a free place", async {
            while exchange(gateway.address(), "GET / HTTP/1.1\r\nHost: a\r\n\r\n").await.is_err() {}
        })
        .await;
    }
}

#[tokio::test]
async fn trusted_proxies_are_exempt_from_the_limit_per_address() {
    let origin = Origin::echo().await;
    let server = "server: {trusted_proxies: [127.0.0.1], limits: {connections_per_ip: 1}}";
    let gateway = Gateway::before(&origin, server).await;
    let mut clients = Vec::new();
    for _ in 0..5 {
        let mut client = Wire::connect(gateway.address()).await;
        client.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n").await;
        assert_eq!(client.answer().await.map(|answer| answer.status), Ok(200));
        clients.push(client);
    }
}

#[tokio::test]
async fn hundreds_of_silent_connections_leave_the_gateway_serving() {
    let origin = Origin::echo().await;
    let gateway = Gateway::before(&origin, "").await;
    let mut idle = Vec::new();
    for _ in 0..200 {
        idle.push(Wire::connect(gateway.address()).await);
    }
    assert_eq!(get(gateway.address(), "/").await.status, 200);
    until("the log", || (!gateway.log().is_empty()).then_some(())).await;
}
