//! Hedged requests: another backend is asked while one keeps the client waiting.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Request, Response};
use tokio::sync::{Semaphore, mpsc};
use tokio::task::JoinSet;

use crate::harness::{Answer, Gateway, H2c, Origin, Wire, soon, until};

/// The second way is Pingora's; a third one holds requests as a whole.
const WAYS: [&str; 2] = ["direct.test", "proxied.test"];

fn document(backends: &[SocketAddr], upstream: &str) -> String {
    // All but one of a thousand requests go to the first one first.
    let weighted = backends.iter().zip([1000, 1, 1]);
    let list: Vec<_> =
        weighted.map(|(address, weight)| format!("{{address: \"{address}\", weight: {weight}}}")).collect();
    format!(
        "upstreams: [{{name: origin, backends: [{}], {upstream}}}]
routes:
  - {{name: proxied, match: {{hosts: [proxied.test]}}, upstream: origin, direct: false}}
  - {{name: whole, match: {{hosts: [whole.test]}}, upstream: origin, filters: [buffer: {{}}]}}
  - {{name: plain, match: {{hosts: [plain.test]}}, upstream: origin, hedge: {{after: 1ms, max: 0}}}}
  - {{name: direct, upstream: origin}}
",
        list.join(", ")
    )
}

async fn before(backends: &[SocketAddr], upstream: &str) -> Gateway {
    Gateway::administered(&document(backends, upstream)).await
}

async fn asked(address: SocketAddr, way: &str, line: &str, rest: &str) -> Answer {
    let mut client = Wire::connect(address).await;
    client.send(format!("{line} HTTP/1.1\r\nHost: {way}\r\n{rest}")).await;
    let method = line.split(' ').next().unwrap_or_default();
    soon("an answer", client.answer_to(method)).await.expect("an answer")
}

async fn ask(gateway: &Gateway, way: &str, line: &str) -> Answer {
    asked(gateway.address(), way, line, "\r\n").await
}

/// Counts what it is asked, and answers once it is let.
async fn holding() -> (Origin, Arc<AtomicUsize>, Arc<Semaphore>) {
    let (asked, let_go) = (Arc::new(AtomicUsize::new(0)), Arc::new(Semaphore::new(0)));
    let (count, gate) = (asked.clone(), let_go.clone());
    let origin = Origin::new(move |mut wire| {
        let (count, gate) = (count.clone(), gate.clone());
        async move {
            while wire.head().await.is_ok() {
                count.fetch_add(1, Ordering::SeqCst);
                let Ok(permit) = gate.acquire().await else { return };
                drop(permit);
                wire.send("HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nheld").await;
            }
        }
    });
    (origin.await, asked, let_go)
}

async fn told(events: &mut mpsc::UnboundedReceiver<&'static str>) -> &'static str {
    soon("an event", events.recv()).await.expect("an event")
}

#[tokio::test]
async fn the_answer_of_the_other_backend_goes_out_and_the_slow_one_is_given_up() {
    for way in WAYS {
        let (slow, mut events) = Origin::silent().await;
        let quick = Origin::echo().await;
        let rules = "hedge: {after: 20ms}, health: {outlier: {consecutive_failures: 1}}, \
                     circuit_breaker: {min_requests: 1, error_ratio: 1%}";
        let gateway = before(&[slow.address, quick.address], rules).await;
        for n in 0..4 {
            let answer = ask(&gateway, way, &format!("GET /{n}")).await;
            assert_eq!(answer.status, 200, "{way}");
            assert!(answer.text().contains(&format!("GET /{n} ")), "{way}: {}", answer.text());
        }
        for event in ["asked", "closed"].repeat(4) {
            assert_eq!(told(&mut events).await, event, "{way}");
        }
        // Its connection takes the next request, and what was given up is nobody's failure.
        assert_eq!(quick.connections(), 1, "{way}");
        let shown = gateway.ask_admin("GET /api/upstreams/origin", "").await.json();
        assert_eq!(shown["circuit_breaker"]["state"], "closed", "{way}");
        let backends = shown["backends"].as_array().expect("a list");
        assert!(
            backends.iter().all(|one| one["failures"] == 0 && one["standing"]["state"] == "in"),
            "{shown}"
        );
        let attempts = |outcome| {
            format!("tollhouse_upstream_attempts_total{{upstream=\"origin\",outcome=\"{outcome}\"}}")
        };
        assert_eq!(gateway.number(&attempts("answered")).await, 4, "{way}");
        assert_eq!(gateway.number(&attempts("cancelled")).await, 4, "{way}");
        let hedges = "tollhouse_upstream_retries_total{upstream=\"origin\",reason=\"hedge\"}";
        assert_eq!(gateway.number(hedges).await, 4, "{way}");
        let line = gateway.log_line(|line| line["attempts"] == 2).await;
        let tries = format!("{} cancelled, {} 200", slow.address, quick.address);
        assert_eq!((&line["tries"], &line["upstream"]), (&tries.into(), &"origin".into()), "{line}");
        assert_eq!(line["backend"], quick.address.to_string(), "{line}");
    }
}

#[tokio::test]
async fn requests_over_http2_are_hedged_and_answers_of_any_length_stream() {
    const PIECES: usize = 64;
    let (slow, mut events) = Origin::silent().await;
    let quick = Origin::new(|mut wire| async move {
        while wire.head().await.is_ok() {
            wire.send("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n").await;
            for _ in 0..PIECES {
                wire.send(format!("4000\r\n{}\r\n", "x".repeat(0x4000))).await;
            }
            wire.send("0\r\n\r\n").await;
        }
    })
    .await;
    let gateway = before(&[slow.address, quick.address], "hedge: {after: 20ms}").await;
    let client = H2c::connect(gateway.address()).await;
    let answer = soon("an answer", client.get("/")).await;
    assert_eq!((answer.status, answer.body.len()), (200, PIECES * 0x4000));
    assert_eq!((told(&mut events).await, told(&mut events).await), ("asked", "closed"));
    // Over HTTP/1.1, each way.
    for way in WAYS {
        let answer = ask(&gateway, way, "GET /").await;
        assert_eq!((answer.status, answer.body.len()), (200, PIECES * 0x4000), "{way}");
    }
}

#[tokio::test]
async fn a_slow_upstream_gets_no_more_hedges_than_the_budget() {
    const CLIENTS: usize = 30;
    let (one, first, go) = holding().await;
    let (other, second, go_too) = holding().await;
    let rules = "hedge: {after: 1ms}, retries: {budget: 0%}";
    let gateway = before(&[one.address, other.address], rules).await;
    let address = gateway.address();
    let mut clients = JoinSet::new();
    for _ in 0..CLIENTS {
        clients.spawn(async move { asked(address, "direct.test", "GET /", "\r\n").await.status });
    }
    let seen = || first.load(Ordering::SeqCst) + second.load(Ordering::SeqCst);
    until("all requests and ten more", || (seen() >= CLIENTS + 10).then_some(())).await;
    [&go, &go_too].into_iter().for_each(|gate| gate.add_permits(CLIENTS * 2));
    while let Some(status) = soon("an answer", clients.join_next()).await {
        assert_eq!(status.expect("no panic"), 200);
    }
    assert_eq!(seen(), CLIENTS + 10, "ten in ten seconds are free");
    // What is not made is no request of any backend's.
    let shown = gateway.ask_admin("GET /api/upstreams/origin", "").await.json();
    let backends = shown["backends"].as_array().expect("a list");
    let chosen: u64 = backends.iter().filter_map(|one| one["requests"].as_u64()).sum();
    assert_eq!(usize::try_from(chosen), Ok(CLIENTS + 10), "{shown}");
}

#[tokio::test]
async fn what_is_not_to_be_repeated_is_asked_once() {
    let (one, first, go) = holding().await;
    let (other, second, go_too) = holding().await;
    let gateway = before(&[one.address, other.address], "hedge: {after: 1ms}").await;
    let address = gateway.address();
    let mut clients = JoinSet::new();
    for (way, line, rest) in [
        ("direct.test", "POST /", "Content-Length: 0\r\n\r\n"),
        ("proxied.test", "POST /", "\r\n"),
        // A body on its way cannot be sent twice.
        ("direct.test", "PUT /", "Content-Length: 2\r\n\r\nab"),
        ("proxied.test", "PUT /", "Content-Length: 2\r\n\r\nab"),
        ("direct.test", "GET /", "Accept: text/event-stream\r\n\r\n"),
        ("direct.test", "GET /", "Content-Type: application/grpc\r\n\r\n"),
        ("plain.test", "GET /", "\r\n"),
    ] {
        clients.spawn(async move { asked(address, way, line, rest).await.status });
    }
    let seen = || first.load(Ordering::SeqCst) + second.load(Ordering::SeqCst);
    until("all of them", || (seen() >= 7).then_some(())).await;
    // One that is hedged is asked twice; by then the others would have been.
    clients.spawn(async move { asked(address, "direct.test", "GET /", "\r\n").await.status });
    until("the ninth", || (seen() >= 9).then_some(())).await;
    [&go, &go_too].into_iter().for_each(|gate| gate.add_permits(100));
    while let Some(status) = soon("an answer", clients.join_next()).await {
        assert_eq!(status.expect("no panic"), 200);
    }
    assert_eq!(seen(), 9);
}

#[tokio::test]
async fn an_error_is_not_taken_while_another_backend_may_do_better() {
    let (one, asked_one, go) = holding().await;
    let bad = Origin::answering("HTTP/1.1 500 Oh\r\nContent-Length: 2\r\n\r\nno").await;
    let gateway = before(&[one.address, bad.address], "hedge: {after: 1ms}").await;
    let address = gateway.address();
    let waiting = tokio::spawn(async move { asked(address, "direct.test", "GET /", "\r\n").await });
    until("the first", || (asked_one.load(Ordering::SeqCst) == 1).then_some(())).await;
    let of_bad = async {
        while bad.connections() == 0 {
            tokio::task::yield_now().await
        }
    };
    soon("the hedge", of_bad).await;
    go.add_permits(10);
    let answer = soon("an answer", waiting).await.expect("no panic");
    assert_eq!((answer.status, answer.text().as_str()), (200, "held"));
    // The second request goes to the bad one first, whose answer comes before any hedge could be better.
    let gateway = before(&[bad.address, bad.address], "hedge: {after: 1h}").await;
    assert_eq!(ask(&gateway, "direct.test", "GET /").await.status, 500);
}

#[tokio::test]
async fn a_client_that_leaves_ends_all_attempts() {
    let (one, mut first) = Origin::silent().await;
    let (other, mut second) = Origin::silent().await;
    let gateway = before(&[one.address, other.address], "hedge: {after: 1ms}").await;
    for (host, request) in [
        ("direct.test", "GET /direct.test HTTP/1.1\r\nHost: direct.test\r\n\r\n"),
        ("proxied.test", "GET /proxied.test HTTP/1.1\r\nHost: proxied.test\r\n\r\n"),
        ("whole.test", "PUT /whole.test HTTP/1.1\r\nHost: whole.test\r\nContent-Length: 2\r\n\r\nab"),
    ] {
        let mut client = Wire::connect(gateway.address()).await;
        client.send(request).await;
        assert_eq!((told(&mut first).await, told(&mut second).await), ("asked", "asked"), "{host}");
        client.half_close().await;
        assert_eq!((told(&mut first).await, told(&mut second).await), ("closed", "closed"), "{host}");
        // Who left is told nothing.
        let told = soon("the end", client.rest()).await;
        assert!(told.is_empty(), "{host}: {}", told.escape_ascii());
        let line = gateway.log_line(|line| line["path"] == format!("/{host}")).await;
        assert_eq!((&line["status"], &line["attempts"]), (&499.into(), &2.into()), "{line}");
    }
    // Of one connection of HTTP/2, one stream.
    let client = H2c::connect(gateway.address()).await;
    let request = Request::get("http://direct.test/stream").body(()).expect("valid");
    let (_answer, mut stream) = client.open(request, true).await;
    assert_eq!((told(&mut first).await, told(&mut second).await), ("asked", "asked"));
    stream.send_reset(h2::Reason::CANCEL);
    assert_eq!((told(&mut first).await, told(&mut second).await), ("closed", "closed"));
}

#[tokio::test]
async fn interim_answers_pass_to_clients_of_http1() {
    let origin = Origin::answering(
        "HTTP/1.1 103 Early Hints\r\nLink: </a.css>\r\nConnection: x-hop\r\nX-Hop: 1\r\n\r\n\
         HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok",
    )
    .await;
    let gateway = before(&[origin.address; 2], "hedge: {after: 1h}").await;
    for way in WAYS {
        let mut client = Wire::connect(gateway.address()).await;
        for _ in 0..2 {
            client.send(format!("GET / HTTP/1.1\r\nHost: {way}\r\n\r\n")).await;
            let early = client.head().await.expect("an interim head");
            assert!(
                early.line.starts_with("HTTP/1.1 103") && early.field("link") == Some("</a.css>"),
                "{way}"
            );
            assert!(early.field("x-hop").is_none() && early.field("content-length").is_none(), "{early:?}");
            let answer = soon("the final answer", client.answer()).await.expect("an answer");
            assert_eq!((answer.status, answer.text().as_str()), (200, "ok"), "{way}");
        }
        // RFC 9110 s15.2: HTTP/1.0 knows none.
        let mut client = Wire::connect(gateway.address()).await;
        client.send(format!("GET / HTTP/1.0\r\nHost: {way}\r\n\r\n")).await;
        let first = client.head().await.expect("a head");
        assert!(first.line.contains(" 200 "), "{way}: {first:?}");
    }
}

#[tokio::test]
async fn as_many_interim_answers_and_fields_pass_as_without_a_hedge() {
    let interim = "HTTP/1.1 103 Early Hints\r\nLink: </a.css>\r\n\r\n".repeat(100);
    let fields: String = (0..240).map(|n| format!("X-{n}: {}\r\n", "v".repeat(1000))).collect();
    let whole = format!("{interim}HTTP/1.1 200 OK\r\n{fields}Content-Length: 2\r\n\r\nok");
    let origin = Origin::answering(whole).await;
    for rules in ["hedge: {after: 1h}", "retries: {max: 0}"] {
        let gateway = before(&[origin.address; 2], rules).await;
        for way in WAYS {
            let mut client = Wire::connect(gateway.address()).await;
            client.send(format!("GET / HTTP/1.1\r\nHost: {way}\r\n\r\n")).await;
            for nth in 0..100 {
                let early = soon("an interim head", client.head()).await.expect("an interim head");
                assert!(early.line.starts_with("HTTP/1.1 103"), "{rules} {way} {nth}: {early:?}");
            }
            let answer = soon("the final answer", client.answer()).await.expect("an answer");
            assert_eq!((answer.status, answer.text().as_str()), (200, "ok"), "{rules} {way}");
        }
    }
}

#[tokio::test]
async fn each_attempt_of_a_hedge_tells_the_time_that_is_left_to_it() {
    let rules = "hedge: {after: 50ms}, timeouts: {total: 20s, remaining_header: x-left}";
    for (rules, most) in [
        (format!("{rules}, retries: {{per_try: 5s}}"), 5_000),
        // What was waited for the first attempt is gone.
        (rules.to_owned(), 20_000 - 50),
        (rules.replace("total: 20s", "total: none") + ", retries: {per_try: 5s}", 5_000),
    ] {
        let (slow, quick) = (Origin::silent().await.0, Origin::echo().await);
        let gateway = before(&[slow.address, quick.address], &rules).await;
        assert_eq!(asked(gateway.address(), WAYS[0], "GET /", "X-Left: 99999\r\n\r\n").await.status, 200);
        let left = quick.head().all("x-left").join(",").parse::<u64>().expect("one number");
        assert!((1..=most).contains(&left), "{rules}: {left}");
    }
}

#[tokio::test]
async fn what_a_filter_waits_for_is_no_time_that_the_attempts_of_a_hedge_have() {
    const WAIT: Duration = Duration::from_millis(500);
    let issuer = Origin::issuing(WAIT).await;
    let origin = Origin::echo().await;
    let rules = "hedge: {after: 1h}, timeouts: {total: 20s, remaining_header: x-left}";
    let filtered = format!(
        "{{name: direct, upstream: origin, filters: [upstream_auth: {{client_credentials: \
         {{token_url: \"http://{}/token\", client_id: gw, client_secret: s3cret}}}}]}}",
        issuer.address
    );
    let plain = "{name: direct, upstream: origin}";
    let written = document(&[origin.address; 2], rules).replace(plain, &filtered);
    let gateway = Gateway::administered(&written).await;
    assert_eq!(ask(&gateway, WAYS[0], "GET /").await.status, 200);
    let head = origin.head();
    assert_eq!(head.field("authorization"), Some("Bearer t"));
    let left = head.field("x-left").and_then(|left| left.parse::<u128>().ok()).expect("a number");
    assert!((1..=20_000 - WAIT.as_millis()).contains(&left), "{left}");
}

#[tokio::test]
async fn trailers_pass_between_two_sides_of_http2() {
    let origin = Origin::new(|wire: Wire| async move {
        let Ok(mut connection) = h2::server::handshake(wire.into_stream()).await else { return };
        while let Some(Ok((request, mut respond))) = connection.accept().await {
            let wanted = request.headers().get("te").is_some_and(|te| te == "trailers");
            let mut stream = respond.send_response(Response::new(()), false).expect("open");
            stream.send_data(Bytes::from_static(b"ok"), false).expect("open");
            let value = HeaderValue::from_static(if wanted { "wanted" } else { "unwanted" });
            stream
                .send_trailers(HeaderMap::from_iter([(HeaderName::from_static("x-sum"), value)]))
                .expect("open");
        }
    })
    .await;
    let gateway = before(&[origin.address; 2], "hedge: {after: 1h}, protocol: h2c").await;
    let client = H2c::connect(gateway.address()).await;
    for host in ["direct.test", "proxied.test"] {
        let request =
            Request::get(format!("http://{host}/")).header("te", "trailers").body(()).expect("valid");
        let (answer, _) = client.open(request, true).await;
        let mut body = soon("an answer", answer).await.expect("an answer").into_body();
        let piece = soon("a piece", body.data()).await.expect("a piece").expect("whole");
        assert_eq!(piece, "ok", "{host}");
        assert!(soon("the end", body.data()).await.is_none(), "{host}");
        let trailers = soon("trailers", body.trailers()).await.expect("whole").expect("trailers");
        assert_eq!(trailers["x-sum"], "wanted", "{host}");
        // HTTP/1.1 has them dropped.
        let answer = ask(&gateway, host, "GET /").await;
        assert_eq!((answer.status, answer.text().as_str()), (200, "ok"), "{host}");
    }
}

#[tokio::test]
async fn a_body_that_a_filter_holds_is_sent_to_both() {
    let (slow, mut events) = Origin::silent().await;
    let quick = Origin::echo().await;
    let gateway = before(&[slow.address, quick.address], "hedge: {after: 1ms}").await;
    let answer = asked(gateway.address(), "whole.test", "PUT /", "Content-Length: 5\r\n\r\nhello").await;
    assert!(answer.status == 200 && answer.text().ends_with("\r\n\r\nhello"), "{}", answer.text());
    assert_eq!(told(&mut events).await, "asked");
    let answer = asked(gateway.address(), "whole.test", "POST /", "Content-Length: 5\r\n\r\nhello");
    // The slow one is asked, and nobody else.
    assert!(tokio::time::timeout(Duration::from_millis(200), answer).await.is_err());
}

#[tokio::test]
async fn failures_are_retried_as_the_rules_say() {
    let (bad, good) = (Origin::dying_after(b"").await, Origin::echo().await);
    let rules = "hedge: {after: 1h}, retries: {conditions: [reset, 503], backoff: 0s..1ms}";
    let gateway = before(&[bad.address, good.address], rules).await;
    assert_eq!(ask(&gateway, "direct.test", "GET /").await.status, 200);
    let line = gateway.log_line(|line| line["attempts"] == 2).await;
    assert!(line["tries"].as_str().is_some_and(|tries| tries.contains("broken,")), "{line}");
    let gateway = before(&[bad.address, bad.address], "hedge: {after: 1ms}").await;
    assert_eq!(ask(&gateway, "direct.test", "GET /").await.problem(), "upstream-protocol");
    let cut = Origin::dying_after(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nab").await;
    let gateway = before(&[cut.address, cut.address], "hedge: {after: 1h}").await;
    for way in WAYS {
        let mut client = Wire::connect(gateway.address()).await;
        client.send(format!("GET / HTTP/1.1\r\nHost: {way}\r\n\r\n")).await;
        assert!(soon("the end", client.answer()).await.is_err(), "{way}: a cut answer does not look whole");
        // It is known whose fault that is, and so ramps know it.
        let line = gateway.log_line(|line| line["host"] == way).await;
        assert_eq!((&line["status"], &line["error"]), (&200.into(), &"upstream-protocol".into()), "{line}");
        assert!(line["reason"].as_str().is_some_and(|reason| reason.contains("broken reply")), "{line}");
    }
}
