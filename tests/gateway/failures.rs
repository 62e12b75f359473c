//! Origins that fail, each in its own way: the client is told, and never fooled.

use std::time::{Duration, Instant};

use crate::harness::{Broken, Gateway, H2c, Origin, Wire, exchange, get, noise, refusing, request, soon};

const OK: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";

fn upstream(backends: &[std::net::SocketAddr], more: &str) -> String {
    let list: Vec<_> = backends.iter().map(|address| format!("{{address: \"{address}\"}}")).collect();
    format!(
        "upstreams: [{{name: origin, backends: [{}]{more}}}]\nroutes: [{{name: all, upstream: origin}}]\n",
        list.join(", ")
    )
}

#[tokio::test]
async fn a_refusing_origin_is_a_502() {
    let gateway = Gateway::to(refusing().await, "").await;
    let answer = get(gateway.address(), "/x").await;
    assert_eq!((answer.status, answer.problem().as_str()), (502, "upstream-unreachable"));
    let line = gateway.log_line(|line| line["path"] == "/x").await;
    assert_eq!((&line["status"], &line["error"]), (&502.into(), &"upstream-unreachable".into()));
    assert_eq!(line["request_id"], answer.json()["request_id"]);
}

#[tokio::test]
async fn a_failure_after_an_interim_answer_is_told_like_any_other() {
    // RFC 9110 s15.2: an interim answer precedes the final one, which the client still waits for.
    for interim in [&b"HTTP/1.1 103 Early Hints\r\n\r\n"[..], b"HTTP/1.1 100 Continue\r\n\r\n"] {
        let origin = Origin::dying_after(interim).await;
        let gateway = Gateway::before(&origin, "").await;
        let mut client = Wire::connect(gateway.address()).await;
        client.send("GET /x HTTP/1.1\r\nHost: a\r\n\r\n").await;
        let first = client.head().await.expect("the interim answer");
        assert!(first.line.starts_with("HTTP/1.1 10"), "{first:?}");
        let answer = client.answer().await.expect("an answer");
        assert_eq!((answer.status, answer.problem().as_str()), (502, "upstream-protocol"));
        let line = gateway.log_line(|line| line["path"] == "/x").await;
        assert_eq!((&line["status"], &line["error"]), (&502.into(), &"upstream-protocol".into()));
    }
}

#[tokio::test]
async fn a_client_told_to_continue_learns_that_the_origin_refuses() {
    let filters = "upstreams: [{name: origin, backends: [{address: \"ADDRESS\"}]}]\n\
                   routes: [{name: all, upstream: origin, filters: [buffer: {}]}]";
    let gateway = Gateway::start(&filters.replace("ADDRESS", &refusing().await.to_string())).await;
    let mut client = Wire::connect(gateway.address()).await;
    client.send("POST /x HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: 4\r\n\r\n").await;
    assert!(client.head().await.expect("a head").line.starts_with("HTTP/1.1 100"));
    client.send("body").await;
    let answer = client.answer().await.expect("an answer");
    assert_eq!((answer.status, answer.problem().as_str()), (502, "upstream-unreachable"));
}

#[tokio::test]
async fn another_backend_is_tried_when_one_refuses_whatever_the_method() {
    // Nothing was sent, so that nothing can happen twice.
    let origin = Origin::answering(OK).await;
    let gateway = Gateway::start(&upstream(&[refusing().await, origin.address], "")).await;
    for n in 0..10 {
        let answer = request(gateway.address(), &format!("POST /{n}"), "Content-Length: 0\r\n").await;
        assert_eq!((answer.status, answer.text().as_str()), (200, "ok"));
    }
    gateway.log_line(|line| line["attempts"] == 2).await;
}

#[tokio::test]
async fn an_upstream_without_a_usable_backend_is_a_503() {
    let gateway = Gateway::start(
        "upstreams: [{name: origin, backends: [{address: \"nowhere.invalid:80\"}]}]\nroutes: [{name: all, upstream: origin}]",
    )
    .await;
    let answer = get(gateway.address(), "/").await;
    assert_eq!((answer.status, answer.problem().as_str()), (503, "no-backend"));
    assert!(answer.field("retry-after").is_some(), "{answer:?}");
}

#[tokio::test]
async fn an_origin_that_breaks_before_its_answer_is_a_502() {
    for death in [
        &b""[..],
        b"HTTP/1.1 200 OK\r\nConte",
        b"\x16\x03\x01 not HTTP\r\n\r\n",
        b"HTTP/1.1 abc\r\n\r\n",
        b"SSH-2.0-x\r\n",
    ] {
        let origin = Origin::dying_after(death).await;
        let gateway = Gateway::before(&origin, "").await;
        let answer = get(gateway.address(), "/").await;
        let death = String::from_utf8_lossy(death);
        assert_eq!((answer.status, answer.problem().as_str()), (502, "upstream-protocol"), "{death:?}");
    }
}

#[tokio::test]
async fn what_an_origin_sent_that_is_no_answer_stays_out_of_the_log() {
    let secret = b"HTTP/1.1 200 OK\r\nSet-Cookie: sid=SECRET\r\nbroken line\r\n\r\n";
    for way in ["", ", direct: false", ", filters: [cache: {}]"] {
        let origin = Origin::dying_after(secret).await;
        let route = format!("all, upstream: origin{way}");
        let document = upstream(&[origin.address], "").replace("all, upstream: origin", &route);
        let gateway = Gateway::start(&document).await;
        let answer = get(gateway.address(), "/x").await;
        assert_eq!((answer.status, answer.problem().as_str()), (502, "upstream-protocol"), "{way}");
        let line = gateway.log_line(|line| line["path"] == "/x").await;
        assert!(line["reason"].as_str().is_some_and(|reason| !reason.is_empty()), "{line}");
        assert!(!line.to_string().contains("SECRET"), "{line}");
    }
}

#[tokio::test]
async fn an_origin_that_resets_is_a_502_and_a_post_is_not_repeated() {
    let origin = Origin::new(|mut wire| async move {
        let _ = wire.head().await;
        wire.reset();
    })
    .await;
    let gateway = Gateway::before(&origin, "").await;
    let answer = request(gateway.address(), "POST /", "Content-Length: 0\r\n").await;
    assert_eq!((answer.status, answer.problem().as_str()), (502, "upstream-protocol"));
    assert_eq!(origin.connections(), 1);
}

#[tokio::test]
async fn a_body_that_breaks_never_looks_whole() {
    for death in [
        "HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhalf",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\na\r\nhalf",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nhalf\r\n",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nhalf\r\n1",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nhalf\r\n0\r\n",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nhalf\r\nxyz\r\n",
    ] {
        let origin = Origin::dying_after(death.as_bytes()).await;
        let gateway = Gateway::before(&origin, "").await;
        let answer = exchange(gateway.address(), "GET / HTTP/1.1\r\nHost: a\r\n\r\n").await;
        let told = match &answer {
            Err(Broken::Body(_)) => true,
            Ok(answer) => answer.status == 502,
            Err(_) => false,
        };
        assert!(told, "{death:?}: {answer:?}");
        let over_h2 = H2c::connect(gateway.address()).await;
        let get = http::Request::get("http://a/").body(()).expect("valid");
        let answer = over_h2.send(get, b"").await;
        assert!(answer.as_ref().map_or(true, |answer| answer.status == 502), "{death:?}: {answer:?}");
    }
}

#[tokio::test]
async fn an_endless_head_is_a_502_and_is_not_held() {
    let origin = Origin::new(|mut wire| async move {
        let _ = wire.head().await;
        wire.send("HTTP/1.1 200 OK\r\n").await;
        let line = format!("X-Filler: {}\r\n", "x".repeat(8000));
        for _ in 0..4 << 20 >> 13 {
            wire.send(&line).await;
        }
        wire.send("Content-Length: 0\r\n\r\n").await;
    })
    .await;
    let gateway = Gateway::before(&origin, "").await;
    let answer = get(gateway.address(), "/").await;
    assert_eq!((answer.status, answer.problem().as_str()), (502, "upstream-protocol"));
}

#[tokio::test]
async fn a_silent_origin_is_a_504_that_names_the_timeout() {
    let origin = Origin::new(|mut wire| async move {
        wire.rest().await;
    })
    .await;
    for (timeouts, detail) in [("read: 200ms", "read timeout"), ("total: 200ms", "total timeout")] {
        let gateway =
            Gateway::start(&upstream(&[origin.address], &format!(", timeouts: {{{timeouts}}}"))).await;
        let begun = Instant::now();
        let answer = get(gateway.address(), "/").await;
        assert_eq!((answer.status, answer.problem().as_str()), (504, "upstream-timeout"));
        assert_eq!(answer.json()["detail"], detail, "{timeouts}");
        assert!((200..3000).contains(&begun.elapsed().as_millis()), "{:?}", begun.elapsed());
    }
}

#[tokio::test]
async fn the_total_timeout_ends_interim_answers_without_end() {
    let origin = Origin::new(|mut wire| async move {
        let _ = wire.head().await;
        while wire.try_send(b"HTTP/1.1 103 Early Hints\r\n\r\n").await.is_ok() {
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    })
    .await;
    let gateway = Gateway::start(&upstream(&[origin.address], ", timeouts: {total: 300ms}")).await;
    let mut client = Wire::connect(gateway.address()).await;
    client.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n").await;
    let answer = soon("the final answer", async {
        loop {
            let answer = client.answer_to("HEAD").await.expect("an answer");
            if answer.status != 103 {
                return answer;
            }
        }
    })
    .await;
    assert_eq!(answer.status, 504);
}

#[tokio::test]
async fn the_total_timeout_ends_an_answer_that_trickles() {
    let origin = Origin::new(|mut wire| async move {
        let _ = wire.head().await;
        wire.send("HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\n").await;
        while wire.try_send(b"x").await.is_ok() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    })
    .await;
    let gateway = Gateway::start(&upstream(&[origin.address], ", timeouts: {total: 300ms}")).await;
    let answer = exchange(gateway.address(), "GET / HTTP/1.1\r\nHost: a\r\n\r\n").await;
    assert!(matches!(answer, Err(Broken::Body(_))), "{answer:?}");
}

#[tokio::test]
async fn a_route_with_no_total_timeout_has_none_whatever_its_upstream_says() {
    let origin = Origin::new(|mut wire| async move {
        while wire.head().await.is_ok() {
            wire.send("HTTP/1.1 200 OK\r\nCache-Control: max-age=60\r\nContent-Length: 4\r\n\r\nha").await;
            tokio::time::sleep(Duration::from_millis(500)).await;
            wire.send("lf").await;
        }
    })
    .await;
    // On the connections themselves, by Pingora, hedged, and for the cache.
    let ways = ["", "direct: false", "hedge: {after: 1h}", "filters: [cache: {}]"];
    let routes = ways.iter().enumerate().map(|(nth, way)| {
        let route = |name: &str, more: &str| {
            format!(
                "  - {{name: {name}{nth}, match: {{paths: [/{name}{nth}]}}, upstream: origin, {way}{more}}}\n"
            )
        };
        let more = if way.is_empty() { "timeouts: {total: none}" } else { ", timeouts: {total: none}" };
        route("short", "") + &route("long", more)
    });
    let routes: String = routes.collect();
    let backend = format!("{{address: \"{}\"}}", origin.address);
    let gateway = Gateway::start(&format!(
        "upstreams: [{{name: origin, backends: [{backend}, {backend}], timeouts: {{total: 200ms}}}}]\nroutes:\n{routes}"
    ))
    .await;
    for (nth, way) in ways.iter().enumerate() {
        let ask = |name| exchange(gateway.address(), format!("GET /{name}{nth} HTTP/1.1\r\nHost: a\r\n\r\n"));
        let cut = ask("short").await;
        assert!(!cut.as_ref().is_ok_and(|answer| answer.status == 200), "{way}: {cut:?}");
        let whole = ask("long").await.unwrap_or_else(|error| panic!("{way}: {error:?}"));
        assert_eq!((whole.status, whole.text().as_str()), (200, "half"), "{way}");
    }
}

#[tokio::test]
async fn a_full_backlog_is_a_connect_timeout() {
    // Linux drops SYNs for a listener whose queue is full: connecting hangs.
    let socket = tokio::net::TcpSocket::new_v4().expect("a socket");
    socket.bind("127.0.0.1:0".parse().expect("an address")).expect("a port");
    let listener = socket.listen(1).expect("listening");
    let address = listener.local_addr().expect("bound");
    let mut waiting = Vec::new();
    for _ in 0..8 {
        let connecting = tokio::net::TcpStream::connect(address);
        waiting.push(tokio::time::timeout(Duration::from_millis(50), connecting).await);
    }
    let gateway = Gateway::start(&upstream(&[address], ", timeouts: {connect: 200ms}")).await;
    let answer = get(gateway.address(), "/").await;
    assert_eq!((answer.status, answer.problem().as_str()), (504, "upstream-timeout"));
    assert_eq!(answer.json()["detail"], "connect timeout");
    // Which limit it was is said on all ways to the client.
    let short = ", timeouts: {connect: 5s, total: 200ms}";
    for rules in [short.to_owned(), format!("{short}, hedge: {{after: 10s}}")] {
        let gateway = Gateway::start(&upstream(&[address, address], &rules)).await;
        let answer = get(gateway.address(), "/").await;
        assert_eq!((answer.status, answer.problem().as_str()), (504, "upstream-timeout"), "{rules}");
        assert_eq!(answer.json()["detail"], "total timeout", "{rules}");
    }
}

#[tokio::test]
async fn an_origin_soon_sees_that_the_client_left() {
    let (origin, mut events) = Origin::silent().await;
    let gateway = Gateway::before(&origin, "").await;
    let mut client = Wire::connect(gateway.address()).await;
    client.send("GET /slow HTTP/1.1\r\nHost: a\r\n\r\n").await;
    assert_eq!(soon("the request", events.recv()).await, Some("asked"));
    drop(client);
    assert_eq!(soon("the close", events.recv()).await, Some("closed"));
    let line = gateway.log_line(|line| line["path"] == "/slow").await;
    assert_eq!((&line["status"], &line["error"]), (&499.into(), &"client-closed".into()));
}

#[tokio::test]
async fn a_pooled_connection_that_the_origin_closed_costs_no_request() {
    // The origin answers once on each connection and closes it without saying so.
    let origin = Origin::new(|mut wire| async move {
        let _ = wire.head().await;
        wire.send(OK).await;
    })
    .await;
    let gateway = Gateway::before(&origin, "").await;
    let mut client = Wire::connect(gateway.address()).await;
    for _ in 0..50 {
        client.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n").await;
        assert_eq!(client.answer().await.map(|answer| answer.status), Ok(200));
    }
}

#[tokio::test]
async fn an_early_answer_to_a_large_upload_reaches_the_client() {
    let origin = Origin::new(|mut wire| async move {
        let _ = wire.head().await;
        wire.send("HTTP/1.1 413 Content Too Large\r\nConnection: close\r\nContent-Length: 3\r\n\r\nbig")
            .await;
        wire.rest().await;
    })
    .await;
    let gateway = Gateway::before(&origin, "").await;
    let mut client = Wire::connect(gateway.address()).await;
    client.send("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1000000\r\n\r\n").await;
    client.send(noise(10_000)).await;
    let answer = client.answer().await;
    assert_eq!(answer.map(|answer| (answer.status, answer.text())), Ok((413, "big".to_owned())));
}
