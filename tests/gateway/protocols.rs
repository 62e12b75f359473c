//! Versions of HTTP on either side: HTTP/2 origins, real servers, interim answers, HTTP/1.0.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::Bytes;
use futures_util::future::join_all;
use http::{Request, Response};
use tokio::sync::mpsc;

use crate::harness::{Broken, Gateway, H2c, Haproxy, Nginx, Origin, Wire, get, noise, request, soon};

async fn h2c_gateway(origin: SocketAddr, more: &str) -> Gateway {
    Gateway::start(&format!(
        "upstreams: [{{name: origin, protocol: h2c, backends: [{{address: \"{origin}\"}}]}}]\n\
         routes: [{{name: all, upstream: origin}}]\n{more}"
    ))
    .await
}

/// An HTTP/2 origin that takes so many streams at once, and its time to answer.
async fn narrow(streams: u32) -> Origin {
    Origin::new(move |wire| async move {
        let mut builder = h2::server::Builder::new();
        let connection = builder.max_concurrent_streams(streams).handshake(wire.into_stream()).await;
        let Ok(mut connection) = connection else { return };
        while let Some(Ok((_, mut respond))) = connection.accept().await {
            tokio::spawn(async move {
                tokio::time::sleep(std::time::Duration::from_millis(20)).await;
                let mut body = respond.send_response(Response::new(()), false).expect("open");
                body.send_data(Bytes::from_static(b"ok"), true).expect("open");
            });
        }
    })
    .await
}

async fn at_once(gateway: &Gateway, count: usize) {
    let client = H2c::connect(gateway.address()).await;
    let gets = (0..count).map(|n| {
        let client = client.clone();
        async move { client.get(&format!("/{n}")).await }
    });
    for answer in join_all(gets).await {
        assert_eq!((answer.status, answer.text().as_str()), (200, "ok"));
    }
}

#[tokio::test]
async fn requests_in_flight_share_one_connection_to_an_http2_origin() {
    let (told, mut asked) = mpsc::unbounded_channel();
    let origin = Origin::new(move |wire| {
        let told = told.clone();
        async move {
            let Ok(mut connection) = h2::server::handshake(wire.into_stream()).await else { return };
            let mut held = Vec::new();
            while let Some(Ok((_, respond))) = connection.accept().await {
                held.push(respond);
                let _ = told.send(());
                if held.len() == 60 {
                    for mut respond in held.drain(..) {
                        respond.send_response(Response::new(()), true).expect("open");
                    }
                }
            }
        }
    })
    .await;
    let gateway = h2c_gateway(origin.address, "").await;
    let client = H2c::connect(gateway.address()).await;
    let mut answers = Vec::new();
    for _ in 0..60 {
        // At once they would open more: Pingora opens another connection where the one there is is just
        // being given out.
        let get = Request::get("http://a/").body(()).expect("valid");
        answers.push(client.open(get, true).await.0);
        soon("the request", asked.recv()).await.expect("an origin");
    }
    for answer in answers {
        assert_eq!(soon("an answer", answer).await.expect("an answer").status(), 200);
    }
    assert_eq!(origin.connections(), 1);
}

#[tokio::test]
async fn no_request_fails_for_an_origin_that_takes_few_streams() {
    // RFC 9113 s5.1.2: no more streams than SETTINGS_MAX_CONCURRENT_STREAMS; others wait or go elsewhere.
    let origin = narrow(4).await;
    let gateway = h2c_gateway(origin.address, "server: {limits: {h2_streams: 200}}").await;
    at_once(&gateway, 40).await;
}

/// What an HTTP/2 origin does with its first request.
#[derive(Clone, Copy, Debug)]
enum First {
    /// GOAWAY: nothing on this connection was processed.
    Goaway,
    /// RST_STREAM with this code.
    Reset(h2::Reason),
}

/// An HTTP/2 origin that answers all but the first request with the body it gets. Gives the count of
/// the requests answered.
async fn refusing_first(first: First) -> (Origin, Arc<AtomicUsize>) {
    let (answered, requests) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let count = answered.clone();
    let origin = Origin::new(move |mut wire| {
        let (count, requests) = (count.clone(), requests.clone());
        async move {
            if matches!(first, First::Goaway) && requests.fetch_add(1, Ordering::SeqCst) == 0 {
                say_goaway(&mut wire).await;
                return;
            }
            let Ok(mut connection) = h2::server::handshake(wire.into_stream()).await else { return };
            while let Some(Ok((request, mut respond))) = connection.accept().await {
                if let First::Reset(reason) = first
                    && requests.fetch_add(1, Ordering::SeqCst) == 0
                {
                    respond.send_reset(reason);
                    continue;
                }
                count.fetch_add(1, Ordering::SeqCst);
                tokio::spawn(give_back(request, respond));
            }
        }
    })
    .await;
    (origin, answered)
}

async fn give_back(request: Request<h2::RecvStream>, mut respond: h2::server::SendResponse<Bytes>) {
    let mut body = request.into_body();
    let mut whole = Vec::new();
    while let Some(Ok(piece)) = body.data().await {
        whole.extend(piece);
    }
    let mut stream = respond.send_response(Response::new(()), false).expect("open");
    stream.send_data(whole.into(), true).expect("open");
}

/// Takes the preface and a request, whose HEADERS are the first frame of type 1, and processes nothing.
async fn say_goaway(wire: &mut Wire) {
    wire.exactly(24).await.expect("a preface");
    wire.send(b"\0\0\0\x04\0\0\0\0\0").await;
    loop {
        let head = wire.exactly(9).await.expect("a frame");
        let length = usize::from(head[0]) << 16 | usize::from(head[1]) << 8 | usize::from(head[2]);
        wire.exactly(length).await.expect("a payload");
        if head[3] == 1 {
            break;
        }
    }
    // RFC 9113 s6.8: the last stream processed is 0, the code NO_ERROR.
    wire.send(b"\0\0\x08\x07\0\0\0\0\0\0\0\0\0\0\0\0\0").await;
    wire.rest().await;
}

#[tokio::test]
async fn fields_of_one_connection_do_not_pass_between_two_of_http2() {
    // RFC 9110 s7.6.1, s11.7.2; `TE: trailers` may pass (RFC 9113 s8.2.2).
    let (seen, mut heads) = mpsc::unbounded_channel();
    let origin = Origin::new(move |wire| {
        let seen = seen.clone();
        async move {
            let Ok(mut connection) = h2::server::handshake(wire.into_stream()).await else { return };
            while let Some(Ok((request, mut respond))) = connection.accept().await {
                let _ = seen.send(request.headers().clone());
                respond.send_response(Response::new(()), true).expect("open");
            }
        }
    })
    .await;
    let gateway = h2c_gateway(origin.address, "").await;
    let client = H2c::connect(gateway.address()).await;
    let mut get = Request::get("http://a/");
    for (name, value) in [
        ("proxy-authorization", "Basic eDp5"),
        ("trailer", "x"),
        ("http2-settings", "x"),
        ("te", "trailers"),
        ("x-kept", "1"),
    ] {
        get = get.header(name, value);
    }
    assert_eq!(client.send(get.body(()).expect("valid"), b"").await.expect("an answer").status, 200);
    let head = soon("a request", heads.recv()).await.expect("one");
    for name in ["proxy-authorization", "trailer", "http2-settings"] {
        assert!(!head.contains_key(name), "{name}: {head:?}");
    }
    assert!(head["te"] == "trailers" && head["x-kept"] == "1", "{head:?}");
}

#[tokio::test]
async fn a_tunnel_is_refused_counted_and_logged_over_http2_as_over_http1() {
    let origin = Origin::echo().await;
    let gateway = Gateway::counting(&origin, "").await;
    let client = H2c::connect(gateway.address()).await;
    let connect = Request::connect("a:80").body(()).expect("valid");
    let answer = client.send(connect, b"").await.expect("an answer");
    assert_eq!((answer.status, answer.field("content-type")), (405, Some("application/problem+json")));
    assert!(answer.field("allow").is_some(), "RFC 9110 s15.5.6: {answer:?}");
    let line = gateway.log_line(|line| line["method"] == "CONNECT").await;
    assert_eq!((&line["status"], &line["protocol"]), (&405.into(), &"HTTP/2".into()), "{line}");
    assert_eq!(gateway.refused("connect").await, 1);
    assert_eq!(origin.connections(), 0);
}

#[tokio::test]
async fn what_an_http2_origin_did_not_process_is_sent_again_whatever_the_method() {
    // RFC 9113 s8.7: such requests have not been acted upon and may be retried.
    for first in [First::Goaway, First::Reset(h2::Reason::REFUSED_STREAM)] {
        for method in ["GET", "POST"] {
            let (origin, answered) = refusing_first(first).await;
            let gateway = h2c_gateway(origin.address, "").await;
            let answer = request(gateway.address(), &format!("{method} /"), "Content-Length: 0\r\n").await;
            assert_eq!((answer.status, answered.load(Ordering::SeqCst)), (200, 1), "{method} {first:?}");
        }
        let (origin, _) = refusing_first(first).await;
        let gateway = h2c_gateway(origin.address, "").await;
        let mut client = Wire::connect(gateway.address()).await;
        client.send("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 20000\r\n\r\n").await;
        client.send(noise(20_000)).await;
        let answer = client.answer().await.expect("an answer");
        assert!(answer.status == 200 && answer.body == noise(20_000), "{answer:?}");
    }
}

/// Ways of a route on which the gateway makes calls of its own.
const CALLS: [&str; 2] = [", hedge: {after: 1h}", ", filters: [cache: {}]"];

#[tokio::test]
async fn what_an_http2_origin_did_not_process_is_sent_again_by_routes_that_hedge_or_cache() {
    let firsts = [First::Goaway, First::Reset(h2::Reason::REFUSED_STREAM)];
    for (more, first) in CALLS.into_iter().flat_map(|more| firsts.map(|first| (more, first))) {
        let (origin, answered) = refusing_first(first).await;
        let gateway = Gateway::start(&format!(
            "upstreams: [{{name: origin, protocol: h2c, \
             backends: [{{address: \"{0}\"}}, {{address: \"{0}\"}}]}}]\n\
             routes: [{{name: all, upstream: origin{more}}}]",
            origin.address
        ))
        .await;
        let answer = get(gateway.address(), "/").await;
        assert_eq!((answer.status, answered.load(Ordering::SeqCst)), (200, 1), "{more} {first:?}");
    }
}

#[tokio::test]
async fn what_an_http2_origin_may_have_processed_is_not_sent_again() {
    let (origin, answered) = refusing_first(First::Reset(h2::Reason::CANCEL)).await;
    let gateway = h2c_gateway(origin.address, "").await;
    let answer = request(gateway.address(), "POST /", "Content-Length: 0\r\n").await;
    assert_eq!((answer.status, answer.problem().as_str()), (502, "upstream-protocol"));
    assert_eq!((answered.load(Ordering::SeqCst), origin.connections()), (0, 1));
}

#[tokio::test]
async fn a_backend_that_processes_nothing_is_left_for_another_one() {
    let asked = Arc::new(AtomicUsize::new(0));
    let count = asked.clone();
    let refusing = Origin::new(move |wire| {
        let count = count.clone();
        async move {
            let Ok(mut connection) = h2::server::handshake(wire.into_stream()).await else { return };
            while let Some(Ok((_, mut respond))) = connection.accept().await {
                count.fetch_add(1, Ordering::SeqCst);
                respond.send_reset(h2::Reason::REFUSED_STREAM);
            }
        }
    })
    .await;
    let fine = narrow(100).await;
    for (algorithm, more) in [
        ("round_robin", ""),
        ("ewma", ""),
        ("consistent_hash, hash_on: \"header:x-n\"", ""),
        ("round_robin", CALLS[0]),
        ("round_robin", CALLS[1]),
    ] {
        let gateway = Gateway::start(&format!(
            "upstreams: [{{name: up, protocol: h2c, balance: {{algorithm: {algorithm}}}, \
             backends: [{{address: \"{}\"}}, {{address: \"{}\"}}]}}]\n\
             routes: [{{name: all, upstream: up{more}}}]",
            refusing.address, fine.address
        ))
        .await;
        let before = asked.load(Ordering::SeqCst);
        for n in 0..10 {
            let answer = request(gateway.address(), "GET /", &format!("X-N: {n}\r\n")).await;
            assert_eq!(answer.status, 200, "{algorithm}{more}, request {n}");
        }
        assert!(asked.load(Ordering::SeqCst) - before <= 10, "each asks it once at most: {algorithm}{more}");
    }
}

#[tokio::test]
async fn an_http2_origin_that_says_goaway_finishes_what_it_has() {
    let origin = Origin::new(|wire| async move {
        let Ok(mut connection) = h2::server::handshake(wire.into_stream()).await else { return };
        let Some(Ok((_, mut respond))) = connection.accept().await else { return };
        connection.graceful_shutdown();
        tokio::spawn(async move {
            tokio::time::sleep(std::time::Duration::from_millis(100)).await;
            let mut body = respond.send_response(Response::new(()), false).expect("open");
            body.send_data(Bytes::from_static(b"ok"), true).expect("open");
        });
        while connection.accept().await.is_some() {}
    })
    .await;
    let gateway = h2c_gateway(origin.address, "").await;
    for _ in 0..10 {
        assert_eq!(get(gateway.address(), "/").await.text(), "ok");
    }
    assert_eq!(origin.connections(), 10);
}

#[tokio::test]
async fn haproxy_is_served_over_both_versions() {
    let haproxy = Haproxy::start().await;
    for (protocol, address, spoken) in
        [("http/1.1", haproxy.http1, "HTTP/1.1"), ("h2c", haproxy.h2c, "HTTP/2.0")]
    {
        let gateway = Gateway::start(&format!(
            "upstreams: [{{name: origin, protocol: {protocol}, backends: [{{address: \"{address}\"}}]}}]\n\
             routes: [{{name: all, upstream: origin}}]"
        ))
        .await;
        let over_h2 = H2c::connect(gateway.address()).await;
        for _ in 0..3 {
            // HAProxy answers POST before it has the body, which may end the connection.
            let mut client = Wire::connect(gateway.address()).await;
            for (method, path, status, body) in [
                ("GET", "/a", 200, format!("{spoken} /a")),
                ("HEAD", "/a", 200, String::new()),
                ("GET", "/empty", 204, String::new()),
                ("GET", "/same", 304, String::new()),
                ("POST", "/b", 200, format!("{spoken} /b")),
            ] {
                let length = if method == "POST" { "Content-Length: 3\r\n\r\nabc" } else { "\r\n" };
                client.send(format!("{method} {path} HTTP/1.1\r\nHost: a\r\n{length}")).await;
                let answer = client.answer_to(method).await;
                let answer = answer.unwrap_or_else(|e| panic!("{method} {path} {spoken}: {e:?}"));
                assert_eq!(
                    (answer.status, answer.text()),
                    (status, body.clone()),
                    "{method} {path} {spoken}"
                );
                if method == "HEAD" {
                    let length = format!("{spoken} /a").len().to_string();
                    assert_eq!(answer.field("content-length"), Some(length.as_str()), "{answer:?}");
                }
                let call = Request::builder().method(method).uri(format!("http://a{path}"));
                let content: &[u8] = if method == "POST" { b"abc" } else { b"" };
                let answer = over_h2.send(call.body(()).expect("valid"), content).await.expect("an answer");
                assert_eq!((answer.status, answer.text()), (status, body), "{method} {path} {spoken}");
            }
        }
    }
}

#[tokio::test]
async fn nginx_keeps_its_connections_and_its_chunks_pass() {
    let text = "tollhouse ".repeat(20_000);
    let directives = "gzip on; gzip_proxied any; gzip_types text/plain; gzip_min_length 1; default_type text/plain; \
                      location = /number { return 200 \"$connection\"; }";
    let nginx = Nginx::with(&[("a.txt", text.as_bytes())], "", directives).await;
    let gateway = Gateway::to(nginx.address, "").await;
    let mut client = Wire::connect(gateway.address()).await;
    let mut numbers = std::collections::BTreeSet::new();
    for _ in 0..10 {
        client.send("GET /number HTTP/1.1\r\nHost: a\r\n\r\n").await;
        numbers.insert(client.answer().await.expect("an answer").text());
        // nginx compresses as it reads, and knows no length.
        client.send("GET /a.txt HTTP/1.1\r\nHost: a\r\nAccept-Encoding: gzip\r\n\r\n").await;
        let answer = client.answer().await.expect("an answer");
        assert_eq!(answer.field("transfer-encoding"), Some("chunked"), "{answer:?}");
        assert_eq!(answer.body[..2], [0x1f, 0x8b], "{answer:?}");
        client.send("GET /a.txt HTTP/1.1\r\nHost: a\r\n\r\n").await;
        assert_eq!(client.answer().await.expect("an answer").text(), text);
    }
    assert!(numbers.len() <= 3, "{numbers:?}");
}

#[tokio::test]
async fn http2_clients_get_the_final_answer_behind_interim_ones() {
    let origin = Origin::answering(
        "HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: </b>\r\n\r\n\
         HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok",
    )
    .await;
    let gateway = Gateway::before(&origin, "").await;
    let answer = H2c::connect(gateway.address()).await.get("/").await;
    assert_eq!((answer.status, answer.text().as_str(), answer.field("link")), (200, "ok", None));
}

#[tokio::test]
async fn a_client_that_waits_for_100_is_told_to_go_on_before_an_http2_origin() {
    // RFC 9110 s10.1.1: else both would wait for each other.
    let (origin, _) = refusing_first(First::Reset(h2::Reason::REFUSED_STREAM)).await;
    let gateway = h2c_gateway(origin.address, "").await;
    let mut client = Wire::connect(gateway.address()).await;
    client.send("POST / HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: 4\r\n\r\n").await;
    assert!(client.head().await.expect("a head").line.starts_with("HTTP/1.1 100"));
    client.send("body").await;
    let head = client.head().await.expect("a head");
    assert!(head.line.starts_with("HTTP/1.1 200"), "told once, though it was sent twice: {head:?}");
    assert_eq!(client.body(&head).await.expect("a body"), b"body");
}

#[tokio::test]
async fn a_body_to_the_end_of_the_connection_that_is_reset_never_looks_whole() {
    let origin = Origin::new(|mut wire| async move {
        let _ = wire.head().await;
        wire.send("HTTP/1.1 200 OK\r\nConnection: close\r\n\r\nhalf").await;
        // The gateway has it before the reset throws away what was not read.
        tokio::time::sleep(std::time::Duration::from_millis(100)).await;
        wire.reset();
    })
    .await;
    let gateway = Gateway::before(&origin, "").await;
    let mut client = Wire::connect(gateway.address()).await;
    client.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n").await;
    let answer = client.answer().await;
    assert!(matches!(answer, Err(Broken::Body(_))), "{answer:?}");
    let get = Request::get("http://a/").body(()).expect("valid");
    assert!(H2c::connect(gateway.address()).await.send(get, b"").await.is_err());
}

#[tokio::test]
async fn an_http2_origin_that_breaks_off_never_looks_whole() {
    let origin = Origin::new(|wire| async move {
        let Ok(mut connection) = h2::server::handshake(wire.into_stream()).await else { return };
        while let Some(Ok((_, mut respond))) = connection.accept().await {
            let mut body = respond.send_response(Response::new(()), false).expect("open");
            body.send_data(Bytes::from_static(b"half"), false).expect("open");
            tokio::spawn(async move {
                tokio::time::sleep(std::time::Duration::from_millis(50)).await;
                body.send_reset(h2::Reason::INTERNAL_ERROR);
            });
        }
    })
    .await;
    let gateway = h2c_gateway(origin.address, "").await;
    let mut client = Wire::connect(gateway.address()).await;
    client.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n").await;
    let answer = client.answer().await;
    assert!(matches!(answer, Err(Broken::Body(_))), "{answer:?}");
    let get = Request::get("http://a/").body(()).expect("valid");
    assert!(soon("an end", H2c::connect(gateway.address()).await.send(get, b"")).await.is_err());
}

#[tokio::test]
async fn a_websocket_before_an_http2_origin_is_an_ordinary_request_and_is_timed() {
    // RFC 9110 s7.8: a server may ignore `Upgrade`; RFC 9113 s8.6: HTTP/2 has none.
    let origin = Origin::new(|wire| async move {
        let Ok(mut connection) = h2::server::handshake(wire.into_stream()).await else { return };
        let mut silent = Vec::new();
        while let Some(Ok((request, mut respond))) = connection.accept().await {
            if request.uri().path() == "/silent" {
                silent.push(respond);
                continue;
            }
            let has = request.headers().contains_key("upgrade");
            let status = if has { 500 } else { 426 };
            let head = Response::builder().status(status).body(()).expect("valid");
            respond.send_response(head, true).expect("open");
        }
    })
    .await;
    let gateway = Gateway::start(&format!(
        "upstreams: [{{name: origin, protocol: h2c, timeouts: {{read: 300ms}}, \
         backends: [{{address: \"{}\"}}]}}]\nroutes: [{{name: all, upstream: origin}}]",
        origin.address
    ))
    .await;
    let fields = "Connection: Upgrade\r\nUpgrade: websocket\r\n";
    assert_eq!(request(gateway.address(), "GET /", fields).await.status, 426);
    let answer = request(gateway.address(), "GET /silent", fields).await;
    assert_eq!((answer.status, answer.problem().as_str()), (504, "upstream-timeout"));
}
