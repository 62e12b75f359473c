//! Filters that see bodies of requests, in pieces or as a whole: forwarded directly or through Pingora's proxy, clients,
//! origins and the log are told the same.

use std::time::Duration;

use http::Request;
use serde_json::Value;
use tollhouse_filters::coding::encode::{Algorithm, Encoder};

use crate::harness::{Answer, Gateway, H2c, Origin, Wire, noise, soon};

const WAYS: [&str; 2] = ["direct.test", "proxied.test"];

/// Routes of both ways with these filters.
fn both(filters: &str) -> String {
    format!(
        "routes:
  - {{name: direct, match: {{hosts: [direct.test]}}, upstream: origin, filters: [{filters}]}}
  - {{name: proxied, match: {{hosts: [proxied.test]}}, upstream: origin, filters: [{filters}], direct: false}}
"
    )
}

const RETRIES: &str = "retries: {conditions: [connect, reset], budget: 100%}";

async fn with(origins: &[&Origin], filters: &str, more: &str) -> Gateway {
    let backends: Vec<_> =
        origins.iter().map(|origin| format!("{{address: \"{}\"}}", origin.address)).collect();
    let upstream = format!("upstreams: [{{name: origin, backends: [{}], {RETRIES}}}]\n", backends.join(", "));
    Gateway::counting_all(&(upstream + &both(filters) + more)).await
}

fn encoded(body: &[u8]) -> Vec<u8> {
    Encoder::new(Algorithm::Gzip, 5).and_then(|encoder| encoder.finish(body)).expect("encodes").into()
}

fn head(method: &str, way: &str, fields: &str, length: usize) -> String {
    format!("{method} /{way} HTTP/1.1\r\nHost: {way}\r\n{fields}Content-Length: {length}\r\n\r\n")
}

async fn sent(gateway: &Gateway, head: String, body: &[u8]) -> Answer {
    let mut client = Wire::connect(gateway.address()).await;
    client.send(head).await;
    // Who is answered early need not take the rest.
    let _ = client.try_send(body).await;
    soon("an answer", client.answer()).await.expect("an answer")
}

#[tokio::test]
async fn bodies_of_any_size_arrive_as_they_were_sent() {
    let origin = Origin::giving_back().await;
    let filters = ["body_limit: {request: 1GiB}", "buffer: {}", "buffer: {}, body_limit: {request: 1GiB}"];
    for filters in filters.map(|filters| filters.replace(", ", "}, {")) {
        let gateway = with(&[&origin], &format!("{{{filters}}}"), "").await;
        let client = H2c::connect(gateway.address()).await;
        for way in WAYS {
            // Around what is read and written at once, and more than sockets take.
            for length in [0, 1, 16_384, 16_385, 65_536, 65_537, 900_000] {
                let body = noise(length);
                let answer = sent(&gateway, head("POST", way, "", length), &body).await;
                assert!(answer.status == 200 && answer.body == body, "{filters} {way} {length}");
                let request = Request::post(format!("http://{way}/")).header("content-length", length);
                let answer = client.send(request.body(()).expect("valid"), &body).await.expect("an answer");
                assert!(answer.status == 200 && answer.body == body, "{filters} {way} {length} over HTTP/2");
            }
        }
    }
    for head in origin.heads() {
        assert_eq!(head.field("transfer-encoding"), None, "{head:?}");
    }
}

#[tokio::test]
async fn a_body_that_comes_in_drops_is_seen_and_sent_whole() {
    let origin = Origin::giving_back().await;
    let body = noise(3_000);
    let packed = encoded(&body);
    for filters in ["decompress: {}", "{decompress: {}}, {buffer: {}}"] {
        let gateway = with(&[&origin], filters, "").await;
        for way in WAYS {
            let mut client = Wire::connect(gateway.address()).await;
            client.send(head("POST", way, "Content-Encoding: gzip\r\n", packed.len())).await;
            for drop in packed.chunks(7) {
                client.send(drop).await;
                tokio::task::yield_now().await;
            }
            let answer = soon("an answer", client.answer()).await.expect("an answer");
            assert!(answer.status == 200 && answer.body == body, "{filters} {way}");
            // The connection goes on.
            client.send(head("POST", way, "", 2) + "ab").await;
            assert_eq!(soon("an answer", client.answer()).await.expect("an answer").text(), "ab");
        }
    }
}

/// What the log says of the request with this path.
async fn logged(gateway: &Gateway, path: &str) -> Vec<Value> {
    let line = gateway.log_line(|line| line["path"] == path).await;
    ["status", "error", "problem", "attempts"].iter().map(|name| line[*name].clone()).collect()
}

#[tokio::test]
async fn a_body_that_a_filter_refuses_half_way_does_not_look_whole_to_the_origin() {
    let (origin, mut taken) = Origin::handing_over().await;
    // Small, but none that is decoded.
    let bomb = encoded(&vec![0; 8 << 20]);
    for filters in
        ["decompress: {max_size: 1MiB, max_ratio: 100000}", "{buffer: {max: 1MiB}}, {decompress: {}}"]
    {
        let gateway = with(&[&origin], filters, "").await;
        let mut logs = Vec::new();
        for way in WAYS {
            let fields = "Content-Encoding: gzip\r\n";
            let answer = sent(&gateway, head("POST", way, fields, bomb.len()), &bomb).await;
            // RFC 9110 s15.5.14.
            assert_eq!((answer.status, answer.problem().as_str()), (413, "body-too-large"), "{way}");
            if let Ok(mut wire) = taken.try_recv()
                && let Ok(asked) = wire.head().await
            {
                assert!(wire.body(&asked).await.is_err(), "{way}: the end of the body was sent");
            }
            logs.push(logged(&gateway, &format!("/{way}")).await);
        }
        assert_eq!(logs[0], logs[1], "{filters}");
        if !filters.contains("buffer") {
            // No backend is to blame.
            let given_up = "tollhouse_upstream_attempts_total{upstream=\"origin\",outcome=\"cancelled\"}";
            assert_eq!(gateway.number(given_up).await, 2);
        }
    }
}

#[tokio::test]
async fn a_body_goes_through_its_filters_again_with_each_attempt() {
    let body = noise(30_000);
    let packed = encoded(&body);
    for filters in [
        "decompress: {}",
        "{body_limit: {request: 1MiB}}, {decompress: {}}",
        "{buffer: {}}, {decompress: {}}",
    ] {
        let dying = Origin::dying_within_bodies().await;
        let healthy = Origin::giving_back().await;
        let gateway = with(&[&dying, &healthy], filters, "").await;
        for way in WAYS {
            for _ in 0..4 {
                let head = head("PUT", way, "Content-Encoding: gzip\r\n", packed.len());
                let answer = sent(&gateway, head, &packed).await;
                assert!(answer.status == 200 && answer.body == body, "{filters} {way}: {}", answer.status);
            }
        }
        assert!(dying.connections() > 0, "the dying backend was never asked");
    }
}

#[tokio::test]
async fn a_held_body_that_is_too_long_is_refused_before_it_is_read() {
    let origin = Origin::giving_back().await;
    let gateway = with(&[&origin], "buffer: {max: 1KiB}", "").await;
    for way in WAYS {
        let mut client = Wire::connect(gateway.address()).await;
        client.send(head("POST", way, "", 2_000)).await;
        // RFC 9110 s10.1.1: who has not begun with the body learns that there is no use in it.
        let answer = soon("an answer", client.answer()).await.expect("an answer");
        assert_eq!((answer.status, answer.problem().as_str()), (413, "body-too-large"), "{way}");
    }
    assert_eq!(origin.connections(), 0);
}

#[tokio::test]
async fn bodies_that_no_memory_is_left_for_are_a_503_and_give_back_what_they_had() {
    let origin = Origin::giving_back().await;
    let gateway = with(&[&origin], "buffer: {max: 1MiB}", "server: {limits: {buffered_bytes: 100KiB}}").await;
    let body = noise(80_000);
    for way in WAYS {
        let mut first = Wire::connect(gateway.address()).await;
        first.send(head("POST", way, "", body.len())).await;
        first.send(&body[..79_000]).await;
        while gateway.number("tollhouse_buffered_bytes").await < 79_000 {
            tokio::task::yield_now().await;
        }
        let refused = sent(&gateway, head("POST", way, "", body.len()), &body).await;
        assert_eq!((refused.status, refused.problem().as_str()), (503, "overloaded"), "{way}");
        first.send(&body[79_000..]).await;
        let answer = soon("an answer", first.answer()).await.expect("an answer");
        assert!(answer.status == 200 && answer.body == body, "{way}");
        let answer = sent(&gateway, head("POST", way, "", body.len()), &body).await;
        assert_eq!(answer.status, 200, "{way}");
    }
}

#[tokio::test]
async fn an_origin_that_answers_before_it_took_a_held_body_keeps_its_client() {
    let origin = Origin::new(|mut wire| async move {
        let _ = wire.head().await;
        wire.send("HTTP/1.1 403 Forbidden\r\nContent-Length: 2\r\nConnection: close\r\n\r\nno").await;
        wire.rest().await;
    })
    .await;
    let gateway = with(&[&origin], "buffer: {max: 16MiB}", "server: {limits: {body_bytes: 16MiB}}").await;
    let body = noise(9 << 20);
    let mut client = Wire::connect(gateway.address()).await;
    for _ in 0..2 {
        client.send(head("POST", "direct.test", "", body.len())).await;
        client.send(&body).await;
        // All of it was read, and the connection takes more (RFC 9112 s9.3).
        let answer = soon("an answer", client.answer()).await.expect("an answer");
        assert_eq!((answer.status, answer.text().as_str()), (403, "no"));
    }
}

#[tokio::test]
async fn a_post_that_its_backend_may_still_work_on_is_sent_to_no_other() {
    // This one accepts, and reads nothing.
    let stuck = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let gateway = Gateway::counting_all(&format!(
        "upstreams: [{{name: origin, backends: [{{address: \"{0}\"}}, {{address: \"{0}\", zone: b}}], \
         timeouts: {{read: 300ms}}, retries: {{max: 2, budget: 100%}}}}]\n{1}\
         server: {{limits: {{body_bytes: 16MiB}}}}\n",
        stuck.local_addr().expect("bound"),
        both("buffer: {max: 16MiB}")
    ))
    .await;
    let body = noise(9 << 20);
    for way in WAYS {
        let answer = sent(&gateway, head("POST", way, "", body.len()), &body).await;
        assert_eq!((answer.status, &answer.json()["detail"]), (504, &"write timeout".into()), "{way}");
        // RFC 9110 s9.2.2.
        assert_eq!(logged(&gateway, &format!("/{way}")).await[3], 1, "{way}");
    }
}

#[tokio::test]
async fn a_client_is_not_blamed_for_the_pause_of_its_backend() {
    let pausing = Origin::new(|mut wire| async move {
        let head = wire.head().await.expect("a head");
        tokio::time::sleep(Duration::from_millis(1_200)).await;
        let body = wire.body(&head).await.expect("a body");
        wire.send(format!("HTTP/1.1 200 OK\r\nContent-Length: 7\r\n\r\n{:7}", body.len())).await;
    })
    .await;
    // More than sockets take, so that nothing is read while the backend pauses.
    let body = noise(9 << 20);
    let server = "server: {limits: {body_timeout: 400ms, min_rate: none, body_bytes: 16MiB}}\n";
    for filters in ["headers: {}", "body_limit: {request: 16MiB}"] {
        let gateway = with(&[&pausing], filters, server).await;
        for way in WAYS {
            let mut client = Wire::connect(gateway.address()).await;
            client.send(head("POST", way, "", body.len())).await;
            // So that all is read that was sent, as long as anybody reads.
            for piece in body.chunks(16_000) {
                client.send(piece).await;
                tokio::time::sleep(Duration::from_micros(200)).await;
            }
            let answer = soon("an answer", client.answer()).await.expect("an answer");
            assert_eq!((answer.status, answer.text().as_str()), (200, "9437184"), "{filters} {way}");
        }
        let client = H2c::connect(gateway.address()).await;
        let request = Request::post("http://direct.test/").header("content-length", body.len());
        let answer = client.send(request.body(()).expect("valid"), &body).await.expect("an answer");
        assert_eq!((answer.status, answer.text().as_str()), (200, "9437184"), "{filters} over HTTP/2");
    }
}

#[tokio::test]
async fn a_held_body_of_http2_that_goes_on_behind_its_length_reaches_no_origin() {
    let origin = Origin::echo().await;
    let gateway = with(&[&origin], "buffer: {}", "").await;
    let client = H2c::connect(gateway.address()).await;
    for way in WAYS {
        // RFC 9113 s8.1.1, s5.4.2: it is malformed, or given up.
        for given_up in [false, true] {
            let request = Request::post(format!("http://{way}/")).header("content-length", 5);
            let (answer, mut stream) = client.open(request.body(()).expect("valid"), false).await;
            stream.send_data("hello".into(), false).expect("open");
            // What is sent after this comes after it.
            assert_eq!(client.get("/nowhere").await.status, 404);
            if given_up {
                stream.send_reset(h2::Reason::CANCEL);
            } else {
                stream.send_data(" there".into(), true).expect("open");
            }
            assert!(soon("the end", answer).await.is_err(), "{way}");
        }
    }
    assert_eq!(origin.heads().len(), 0);
}

#[tokio::test]
async fn a_client_that_leaves_while_its_held_body_waits_for_the_backend_is_noticed() {
    let stuck = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let gateway = Gateway::counting_all(&format!(
        "upstreams: [{{name: origin, backends: [{{address: \"{}\"}}]}}]\n{}\
         server: {{limits: {{body_bytes: 16MiB}}}}\n",
        stuck.local_addr().expect("bound"),
        both("buffer: {max: 16MiB}")
    ))
    .await;
    let body = noise(9 << 20);
    let mut client = Wire::connect(gateway.address()).await;
    client.send(head("POST", "direct.test", "", body.len())).await;
    client.send(&body).await;
    let _asked = soon("a connection", stuck.accept()).await.expect("accepted");
    drop(client);
    let line = gateway.log_line(|line| line["path"] == "/direct.test").await;
    assert_eq!(line["status"], 499, "{line}");
    assert_eq!(gateway.number("tollhouse_buffered_bytes").await, 0);
}

#[tokio::test]
async fn a_held_body_has_the_length_that_its_method_asks_for() {
    let origin = Origin::echo().await;
    let gateway = with(&[&origin], "buffer: {}", "").await;
    // RFC 9110 s8.6: a POST without content has a length, and a GET needs none.
    for way in WAYS {
        for (method, fields, length) in [
            ("POST", "", Some("0")),
            ("POST", "Content-Length: 0\r\n", Some("0")),
            ("GET", "", None),
            ("GET", "Content-Length: 0\r\n", None),
        ] {
            let mut client = Wire::connect(gateway.address()).await;
            client.send(format!("{method} / HTTP/1.1\r\nHost: {way}\r\n{fields}\r\n")).await;
            assert_eq!(soon("an answer", client.answer()).await.expect("an answer").status, 200);
            let head = origin.heads().pop().expect("a head");
            assert_eq!(head.field("content-length"), length, "{way}: {method} {fields}");
        }
    }
}
