//! Clients that keep the gateway waiting: bodies that drip, and answers that nobody reads (`min_rate`).

mod late;

use std::time::{Duration, Instant};

use bytes::Bytes;
use http::{Request, Response};
use tokio::net::TcpStream;

use crate::harness::h2c::collect;
use crate::harness::h2raw::{END_HEADERS, END_STREAM, GET, POST, kind};
use crate::harness::{Broken, Gateway, H2Raw, H2c, Origin, Wire, exchange, get, soon};

/// An answer that no buffers on the way hold.
fn large() -> Vec<u8> {
    let length = 64 << 20;
    let head = format!("HTTP/1.1 200 OK\r\ncontent-length: {length}\r\n\r\n");
    [head.as_bytes(), &vec![b'a'; length]].concat()
}

const REQUEST: &str = "GET / HTTP/1.1\r\nHost: a\r\n\r\n";

#[tokio::test]
async fn a_body_that_drips_is_a_408() {
    for more in ["", "chains: {all: [{buffer: {}}]}"] {
        let origin = Origin::giving_back().await;
        let filters = if more.is_empty() { "" } else { "filters: [{chain: all}], " };
        let gateway = Gateway::counting_all(&format!(
            "upstreams: [{{name: origin, backends: [{{address: \"{}\"}}]}}]\n\
                 routes: [{{name: all, {filters}upstream: origin}}]\n{more}\n\
                 server: {{limits: {{body_timeout: 500ms}}}}",
            origin.address
        ))
        .await;
        let mut client = Wire::connect(gateway.address()).await;
        client.send("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1000\r\n\r\n").await;
        let begun = Instant::now();
        let answer = soon("an answer", async {
            loop {
                // Each byte comes well within the time; it buys 4 ms.
                client.send("a").await;
                if let Ok(answer) = tokio::time::timeout(Duration::from_millis(50), client.answer()).await {
                    return answer.expect("an answer");
                }
            }
        })
        .await;
        assert_eq!((answer.status, answer.problem().as_str()), (408, "request-timeout"));
        assert_eq!(answer.json()["detail"], "the body came too slowly");
        assert!((400..3000).contains(&begun.elapsed().as_millis()), "{:?}", begun.elapsed());
        client.closed().await;
        assert_eq!(gateway.refused("slow-body").await, 1);
        let line = gateway.log_line(|line| line["status"] == 408).await;
        assert_eq!(line["reason"], "the body came too slowly");
    }
}

#[tokio::test]
async fn a_body_that_stalls_is_counted() {
    let origin = Origin::echo().await;
    let gateway = Gateway::counting(&origin, "server: {limits: {body_timeout: 200ms}}").await;
    let mut client = Wire::connect(gateway.address()).await;
    client.send("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 10\r\n\r\nabc").await;
    assert_eq!(client.answer().await.map(|answer| answer.status), Ok(408));
    assert_eq!(gateway.refused("slow-body").await, 1);
}

#[tokio::test]
async fn a_body_at_the_least_rate_is_waited_for() {
    let origin = Origin::giving_back().await;
    let server = "server: {limits: {body_timeout: 300ms, min_rate: 1KiB/s}}";
    let gateway = Gateway::before(&origin, server).await;
    let mut client = Wire::connect(gateway.address()).await;
    client.send("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 4000\r\n\r\n").await;
    for _ in 0..20 {
        client.send("a".repeat(200)).await;
        tokio::time::sleep(Duration::from_millis(60)).await;
    }
    assert_eq!(client.answer().await.map(|answer| answer.body.len()), Ok(4000));
}

#[tokio::test]
async fn the_least_rate_can_be_none() {
    let origin = Origin::giving_back().await;
    let server = "server: {limits: {body_timeout: 300ms, min_rate: none}}";
    let gateway = Gateway::before(&origin, server).await;
    let mut client = Wire::connect(gateway.address()).await;
    client.send("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 20\r\n\r\n").await;
    for _ in 0..20 {
        client.send("a").await;
        tokio::time::sleep(Duration::from_millis(60)).await;
    }
    assert_eq!(client.answer().await.map(|answer| answer.status), Ok(200));
}

#[tokio::test]
async fn an_answer_that_nobody_reads_is_given_up() {
    let origin = Origin::answering(large()).await;
    let gateway = Gateway::counting(&origin, "server: {limits: {idle_timeout: 500ms}}").await;
    for (path, upgrade) in [
        ("/", ""),
        ("/upgrade", "Upgrade: websocket\r\n"),
        ("/websocket", "Connection: upgrade\r\nUpgrade: websocket\r\n"),
    ] {
        let mut client = Wire::connect(gateway.address()).await;
        client.send(format!("GET {path} HTTP/1.1\r\nHost: a\r\n{upgrade}\r\n")).await;
        let line = gateway.log_line(|line| line["path"] == path).await;
        assert_eq!(line["error"], "client-closed", "{line}");
        assert!(line["bytes_out"].as_u64() < Some(64 << 20), "{line}");
        assert!(matches!(client.answer().await, Err(Broken::Body(_))));
    }
    assert_eq!(gateway.refused("slow-reader").await, 3);
}

#[tokio::test]
async fn an_answer_that_is_sipped_is_given_up() {
    let origin = Origin::answering(large()).await;
    let server = "server: {limits: {idle_timeout: 500ms, min_rate: 100MiB/s}}";
    let gateway = Gateway::counting(&origin, server).await;
    let mut client = Wire::connect(gateway.address()).await;
    client.send(REQUEST).await;
    let sipping = async {
        // Far more than nothing, and far less than asked for.
        while client.exactly(256 << 10).await.is_ok() {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    soon("the end", sipping).await;
    let line = gateway.log_line(|line| line["status"] == 200).await;
    assert_eq!(line["reason"], "the answer was taken too slowly");
    assert_eq!(gateway.refused("slow-reader").await, 1);
}

#[tokio::test]
async fn an_answer_at_the_least_rate_is_sent_to_its_end() {
    let origin = Origin::answering(large()).await;
    let server = "server: {limits: {idle_timeout: 400ms, min_rate: 1KiB/s}}";
    let gateway = Gateway::counting(&origin, server).await;
    let mut client = Wire::connect(gateway.address()).await;
    client.send(REQUEST).await;
    client.head().await.expect("a head");
    for _ in 0..16 {
        client.exactly(4 << 20).await.expect("more");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    assert_eq!(gateway.refused("slow-reader").await, 0);
}

#[tokio::test]
async fn an_origin_may_be_slow() {
    let origin = Origin::new(|mut wire| async move {
        while let Ok(head) = wire.head().await {
            let _ = wire.body(&head).await;
            tokio::time::sleep(Duration::from_millis(500)).await;
            wire.send("HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\n").await;
            for _ in 0..10 {
                tokio::time::sleep(Duration::from_millis(100)).await;
                wire.send("a").await;
            }
        }
    })
    .await;
    let server = "server: {limits: {idle_timeout: 300ms, body_timeout: 300ms, min_rate: 1MiB/s}}";
    let gateway = Gateway::before(&origin, server).await;
    let post = "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\nabc";
    let (answer, over_h2) = tokio::join!(exchange(gateway.address(), post), async {
        H2c::connect(gateway.address()).await.get("/").await
    });
    assert_eq!(answer.map(|answer| answer.text()), Ok("a".repeat(10)));
    assert_eq!(over_h2.text(), "a".repeat(10));
}

/// Of routes that forward directly, whose filters see pieces of answers, or of requests, or whole requests; and of one that
/// forwards through Pingora's proxy.
const WAYS: [&str; 6] = [
    "",
    "filters: [{compress: {}}], ",
    "filters: [{body_limit: {request: 1GiB}}], ",
    "filters: [{buffer: {}}], ",
    "direct: false, ",
    "direct: false, filters: [{buffer: {}}], ",
];

/// A gateway before an upstream with these rules, the last of which are its breaker's, that opens for good at the second
/// request that it minds; with a route of this way.
async fn with_breaker(origin: &Origin, (rules, breaker): (&str, &str), way: &str) -> Gateway {
    Gateway::counting_all(&format!(
        "upstreams: [{{name: origin, backends: [{{address: \"{}\"}}], {rules}\
         circuit_breaker: {{min_requests: 2, open: 1h, {breaker}}}}}]\n\
         routes: [{{name: all, {way}upstream: origin}}]\n",
        origin.address
    ))
    .await
}

/// Sends the half of a body.
async fn half_sent(gateway: &Gateway) -> Wire<TcpStream> {
    let mut client = Wire::connect(gateway.address()).await;
    let head = "POST / HTTP/1.1\r\nHost: a\r\nAccept-Encoding: gzip\r\nContent-Length: 6\r\n\r\n";
    client.send(format!("{head}abc")).await;
    client
}

/// Sends a body in halves with a pause of half a second between them; it has to be given back.
async fn sent_in_halves(gateway: &Gateway) {
    let mut client = half_sent(gateway).await;
    tokio::time::sleep(Duration::from_millis(500)).await;
    client.send("def").await;
    let answer = soon("an answer", client.answer()).await.expect("an answer");
    assert_eq!((answer.status, answer.text()), (200, "abcdef".into()));
}

#[tokio::test]
async fn no_backend_is_blamed_for_clients_that_send_slowly() {
    for way in WAYS {
        let origin = Origin::giving_back().await;
        let rules = ("timeouts: {total: 300ms}, ", "error_ratio: 1%");
        let gateway = with_breaker(&origin, rules, way).await;
        for _ in 0..3 {
            let answer = soon("an answer", half_sent(&gateway).await.answer()).await.expect("an answer");
            // RFC 9110 s15.5.9: the request was not whole in time.
            assert_eq!((answer.status, &answer.json()["detail"]), (408, &"total timeout".into()));
        }
        assert_eq!(get(gateway.address(), "/").await.status, 200, "{way}");
    }
}

#[tokio::test]
async fn no_backend_is_blamed_for_the_little_that_a_slow_upload_left_of_the_total() {
    for way in WAYS {
        // It takes longer for an answer than there is left, and much less than there was in all.
        let origin = Origin::new(|mut wire| async move {
            while let Ok(head) = wire.head().await {
                let Ok(body) = wire.body(&head).await else { return };
                if !body.is_empty() {
                    tokio::time::sleep(Duration::from_millis(1200)).await;
                }
                wire.send(format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n", body.len())).await;
                wire.send(body).await;
            }
        })
        .await;
        let rules = ("timeouts: {total: 3s}, ", "error_ratio: 1%");
        let gateway = with_breaker(&origin, rules, way).await;
        let late = async || {
            let mut client = half_sent(&gateway).await;
            tokio::time::sleep(Duration::from_millis(2400)).await;
            client.send("def").await;
            // Through Pingora's proxy the answer may begin all the same.
            let _ = soon("an answer or an end", client.answer()).await;
        };
        tokio::join!(late(), late(), late());
        assert_eq!(get(gateway.address(), "/").await.status, 200, "{way}");
    }
}

#[tokio::test]
async fn the_time_of_a_slow_upload_is_not_its_backends() {
    for way in WAYS {
        let origin = Origin::giving_back().await;
        let gateway = with_breaker(&origin, ("", "slow: 300ms, slow_ratio: 1%"), way).await;
        for _ in 0..3 {
            sent_in_halves(&gateway).await;
        }
    }
}

#[tokio::test]
async fn a_client_that_leaves_in_a_slow_upload_does_not_make_its_backend_a_slow_one() {
    for way in WAYS {
        let fast = Origin::echo().await;
        let slow = Origin::new(|mut wire| async move {
            while wire.head().await.is_ok() {
                tokio::time::sleep(Duration::from_millis(50)).await;
                wire.send("HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n").await;
            }
        })
        .await;
        let gateway = Gateway::start(&format!(
            "upstreams: [{{name: origin, backends: [{{address: \"{}\"}}, {{address: \"{}\"}}],\
             balance: {{algorithm: ewma}}}}]\n\
             routes: [{{name: all, {way}upstream: origin}}]\n",
            fast.address, slow.address
        ))
        .await;
        for _ in 0..10 {
            assert_eq!(get(gateway.address(), "/").await.status, 200);
        }
        let client = half_sent(&gateway).await;
        tokio::time::sleep(Duration::from_millis(500)).await;
        drop(client);
        gateway.log_line(|line| line["status"] == 499).await;
        let before = fast.heads().len();
        for _ in 0..10 {
            assert_eq!(get(gateway.address(), "/").await.status, 200);
        }
        assert!(fast.heads().len() - before >= 5, "{way}: {} of 10", fast.heads().len() - before);
    }
}

#[tokio::test]
async fn an_attempt_has_its_time_once_the_client_has_sent_everything() {
    for way in WAYS {
        let origin = Origin::giving_back().await;
        let rules = ("retries: {per_try: 300ms}, ", "error_ratio: 1%");
        sent_in_halves(&with_breaker(&origin, rules, way).await).await;
    }
}

#[tokio::test]
async fn no_backend_is_blamed_for_clients_that_read_slowly() {
    for way in WAYS {
        let origin = Origin::answering(large()).await;
        let rules = ("timeouts: {total: 500ms}, ", "error_ratio: 1%");
        let gateway = with_breaker(&origin, rules, way).await;
        for _ in 0..3 {
            let mut client = Wire::connect(gateway.address()).await;
            client.send("GET /slow HTTP/1.1\r\nHost: a\r\nAccept-Encoding: gzip\r\n\r\n").await;
            client.head().await.expect("a head");
            tokio::time::sleep(Duration::from_millis(700)).await;
            assert!(soon("the end", client.exactly(64 << 20)).await.is_err());
        }
        let mut client = Wire::connect(gateway.address()).await;
        client.send(REQUEST).await;
        let head = client.head().await.expect("a head");
        assert!(head.line.contains(" 200 "), "{way}: {head:?}");
    }
}

#[tokio::test]
async fn a_body_that_is_slow_over_http2_is_a_408_and_no_other_stream_minds() {
    let origin = Origin::giving_back().await;
    for filters in ["", "filters: [{buffer: {}}], "] {
        let gateway = Gateway::counting_all(&format!(
            "upstreams: [{{name: origin, backends: [{{address: \"{}\"}}]}}]\n\
             routes: [{{name: all, {filters}upstream: origin}}]\nserver: {{limits: {{body_timeout: 400ms}}}}",
            origin.address
        ))
        .await;
        let client = H2c::connect(gateway.address()).await;
        for drips in [false, true] {
            let post = || Request::post("http://a/").body(()).expect("valid");
            let (answer, mut stream) = client.open(post(), false).await;
            let dripping = async {
                while drips && stream.send_data(Bytes::from_static(b"a"), false).is_ok() {
                    tokio::time::sleep(Duration::from_millis(50)).await;
                }
                std::future::pending::<()>().await;
            };
            let answer = tokio::select! {
                answer = collect(answer) => answer.expect("an answer"),
                () = dripping => unreachable!(),
            };
            assert_eq!(answer.status, 408, "{filters}{}", answer.text());
            let whole = client.send(post(), b"whole").await.expect("an answer");
            assert_eq!((whole.status, whole.text().as_str()), (200, "whole"));
        }
        assert_eq!(gateway.refused("slow-body").await, 2, "{filters}");
    }
}

#[tokio::test]
async fn what_goes_to_http1_is_no_call_of_grpc_that_may_be_silent() {
    let origin = Origin::giving_back().await;
    let gateway = Gateway::counting(&origin, "server: {limits: {body_timeout: 200ms}}").await;
    let client = H2c::connect(gateway.address()).await;
    let call = Request::post("http://a/").header("content-type", "application/grpc").body(()).expect("valid");
    let (answer, _stream) = client.open(call, false).await;
    let answer = collect(answer).await.expect("an answer");
    // 408 is UNKNOWN in gRPC's mapping of HTTP.
    assert_eq!((answer.status, answer.field("grpc-status")), (200, Some("2")));
    assert_eq!(gateway.refused("slow-body").await, 1);
}

#[tokio::test]
async fn a_body_of_http2_at_the_least_rate_is_waited_for() {
    let origin = Origin::giving_back().await;
    let server = "server: {limits: {body_timeout: 300ms, min_rate: 1KiB/s}}";
    let gateway = Gateway::before(&origin, server).await;
    let client = H2c::connect(gateway.address()).await;
    let post = Request::post("http://a/").header("content-length", "4000").body(()).expect("valid");
    let (answer, mut stream) = client.open(post, false).await;
    for n in 0..20 {
        stream.send_data(Bytes::from(vec![b'a'; 200]), n == 19).expect("open");
        tokio::time::sleep(Duration::from_millis(60)).await;
    }
    assert_eq!(collect(answer).await.expect("an answer").body.len(), 4000);
}

#[tokio::test]
async fn a_body_that_goes_on_after_an_early_answer_does_not_keep_its_stream() {
    let gateway = Gateway::start(
        "routes: [{name: early, respond: {status: 200}}]\n\
         server: {limits: {body_timeout: 300ms, idle_timeout: 300ms}}",
    )
    .await;
    let mut client = H2Raw::connect(gateway.address(), &[]).await;
    client.send(kind::HEADERS, END_HEADERS, 1, POST).await;
    let answer = client.next_of(kind::HEADERS).await.expect("an answer");
    assert_eq!(answer.stream, 1);
    client.next_of(kind::RST_STREAM).await.expect("a reset");
    assert_eq!(client.next_of(kind::DATA).await, None, "the connection is idle, and ends");
}

#[tokio::test]
async fn a_call_of_grpc_may_be_silent() {
    let origin = Origin::new(|wire| async move {
        let mut connection = h2::server::handshake(wire.into_stream()).await.expect("HTTP/2");
        while let Some(Ok((request, mut respond))) = connection.accept().await {
            tokio::spawn(async move {
                let message = request.into_body().data().await.expect("a message").expect("all of it");
                let mut stream = respond.send_response(Response::new(()), false).expect("open");
                stream.send_data(message, true).expect("open");
            });
        }
    })
    .await;
    let gateway = Gateway::start(&format!(
        "upstreams: [{{name: origin, protocol: h2c, backends: [{{address: \"{}\"}}]}}]\n\
         routes: [{{name: all, upstream: origin}}]\nserver: {{limits: {{body_timeout: 200ms}}}}",
        origin.address
    ))
    .await;
    let client = H2c::connect(gateway.address()).await;
    let call = Request::post("http://a/").header("content-type", "application/grpc+proto");
    let call = call.header("content-length", "5").body(()).expect("valid");
    let (answer, mut stream) = client.open(call, false).await;
    tokio::time::sleep(Duration::from_millis(700)).await;
    stream.send_data(Bytes::from_static(b"\0\0\0\0\0"), true).expect("open");
    assert_eq!(collect(answer).await.expect("an answer").body, b"\0\0\0\0\0");
}

#[tokio::test]
async fn a_stream_without_window_is_counted() {
    let origin = Origin::answering(large()).await;
    let gateway = Gateway::counting(&origin, "server: {limits: {idle_timeout: 300ms}}").await;
    let mut client = H2Raw::connect(gateway.address(), &[(4, 0)]).await;
    client.send(kind::HEADERS, END_HEADERS | END_STREAM, 1, GET).await;
    assert!(client.next_of(kind::RST_STREAM).await.is_some());
    let line = gateway.log_line(|line| line["status"] == 200).await;
    assert_eq!(line["reason"], "the answer was taken too slowly");
    assert_eq!(gateway.refused("slow-reader").await, 1);
}

#[tokio::test]
async fn a_connection_of_http2_that_is_not_read_ends() {
    let origin = Origin::answering(large()).await;
    let gateway = Gateway::counting(&origin, "server: {limits: {idle_timeout: 500ms}}").await;
    // Windows as large as they can be: only TCP holds the answers back.
    let mut client = H2Raw::connect(gateway.address(), &[(4, 0x7fff_ffff)]).await;
    client.send(kind::WINDOW_UPDATE, 0, 0, &[0x7f, 0, 0, 0]).await;
    for n in 0..4 {
        client.send(kind::HEADERS, END_HEADERS | END_STREAM, 2 * n + 1, GET).await;
    }
    let line = gateway.log_line(|line| line["path"] == "").await;
    assert_eq!((&line["protocol"], &line["status"]), (&"HTTP/2".into(), &499.into()));
    assert!(gateway.refused("slow-reader").await >= 1);
    assert_eq!(get(gateway.address(), "/").await.status, 200, "others are served");
}
