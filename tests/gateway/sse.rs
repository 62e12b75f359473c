//! Server-Sent Events through the gateway (WHATWG HTML s9.2).

use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};
use std::time::Duration;

use tokio::sync::mpsc;

use crate::harness::{Broken, Gateway, H2c, Origin, Wire, soon, until};

const HEAD: &str = "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nCache-Control: no-cache\r\n";

/// A stream that a test plays: it takes the connection over when it is asked.
async fn played() -> (Origin, mpsc::UnboundedReceiver<Wire>) {
    Origin::handing_over().await
}

async fn begin(origin: &mut mpsc::UnboundedReceiver<Wire>, framing: &str) -> Wire {
    let mut wire = soon("a connection", origin.recv()).await.expect("a connection");
    wire.head().await.expect("a request");
    wire.send(format!("{HEAD}{framing}\r\n")).await;
    wire
}

fn event(n: usize) -> String {
    format!("id: {n}\ndata: {{\"n\":{n}}}\n\n")
}

fn chunk(text: &str) -> String {
    format!("{:x}\r\n{text}\r\n", text.len())
}

async fn gateway(origin: &Origin, timeouts: &str) -> Gateway {
    Gateway::start(&format!(
        "upstreams: [{{name: origin, timeouts: {{{timeouts}}}, backends: [{{address: \"{}\"}}]}}]\n\
         routes: [{{name: all, upstream: origin}}]",
        origin.address
    ))
    .await
}

/// With a cache that has these options.
async fn cached(origin: &Origin, options: &str, timeouts: &str) -> Gateway {
    Gateway::start(&format!(
        "upstreams: [{{name: origin, timeouts: {{{timeouts}}}, backends: [{{address: \"{}\"}}]}}]\n\
         routes: [{{name: all, upstream: origin, filters: [cache: {options}]}}]",
        origin.address
    ))
    .await
}

#[tokio::test]
async fn each_event_arrives_before_the_next_one_is_sent() {
    let (origin, mut taken) = played().await;
    let gateway = gateway(&origin, "").await;
    for chunked in [true, false] {
        let mut client = Wire::connect(gateway.address()).await;
        client.send("GET / HTTP/1.1\r\nHost: a\r\nAccept: text/event-stream\r\n\r\n").await;
        let framing = if chunked { "Transfer-Encoding: chunked\r\n" } else { "Connection: close\r\n" };
        let mut wire = begin(&mut taken, framing).await;
        // The head alone, before any event: EventSource is open from here on.
        let head = client.head().await.expect("a head");
        assert_eq!(head.field("content-type"), Some("text/event-stream"));
        for n in 0..20 {
            wire.send(if chunked { chunk(&event(n)) } else { event(n) }).await;
            assert_eq!(client.chunk().await.expect("an event"), event(n).as_bytes());
        }
        wire.send(if chunked { "0\r\n\r\n" } else { "" }).await;
        drop(wire);
        assert_eq!(client.chunk().await, Ok(Vec::new()));
    }
}

#[tokio::test]
async fn each_event_arrives_over_http2() {
    let (origin, mut taken) = played().await;
    let gateway = gateway(&origin, "").await;
    let client = H2c::connect(gateway.address()).await;
    let get = http::Request::get("http://a/").header("accept", "text/event-stream").body(()).expect("valid");
    let (answer, _) = client.open(get, true).await;
    let mut wire = begin(&mut taken, "Transfer-Encoding: chunked\r\n").await;
    let mut body = soon("a head", answer).await.expect("a head").into_body();
    for n in 0..20 {
        wire.send(chunk(&event(n))).await;
        let piece = soon("an event", body.data()).await.expect("open").expect("open");
        assert_eq!(piece, event(n));
    }
}

#[tokio::test]
async fn each_event_of_an_http2_origin_arrives() {
    let (next, events) = mpsc::unbounded_channel::<()>();
    let events = std::sync::Arc::new(tokio::sync::Mutex::new(events));
    let origin = Origin::new(move |wire| {
        let events = events.clone();
        async move {
            let mut connection = h2::server::handshake(wire.into_stream()).await.expect("HTTP/2");
            let (_, mut respond) = connection.accept().await.expect("a request").expect("a request");
            tokio::spawn(async move { while connection.accept().await.is_some() {} });
            let head = http::Response::builder().header("content-type", "text/event-stream");
            let mut body = respond.send_response(head.body(()).expect("valid"), false).expect("open");
            let mut n = 0;
            while events.lock().await.recv().await.is_some() {
                body.send_data(event(n).into(), false).expect("open");
                n += 1;
            }
        }
    })
    .await;
    let gateway = Gateway::start(&format!(
        "upstreams: [{{name: origin, protocol: h2c, backends: [{{address: \"{}\"}}]}}]\n\
         routes: [{{name: all, upstream: origin}}]",
        origin.address
    ))
    .await;
    let mut client = Wire::connect(gateway.address()).await;
    client.send("GET / HTTP/1.1\r\nHost: a\r\nAccept: text/event-stream\r\n\r\n").await;
    client.head().await.expect("a head");
    for n in 0..20 {
        next.send(()).expect("a listening origin");
        assert_eq!(client.chunk().await.expect("an event"), event(n).as_bytes());
    }
}

#[tokio::test]
async fn curl_prints_each_event_as_it_comes() {
    let (origin, mut taken) = played().await;
    let gateway = gateway(&origin, "").await;
    for version in ["--http1.1", "--http2-prior-knowledge"] {
        let mut curl = Command::new("curl")
            .args(["--no-buffer", "--silent", "--max-time", "20", version, "-H", "Accept: text/event-stream"])
            .arg(format!("http://{}/", gateway.address()))
            .stdout(Stdio::piped())
            .spawn()
            .expect("curl runs");
        let (said, mut lines) = mpsc::unbounded_channel();
        let pipe = curl.stdout.take().expect("piped");
        std::thread::spawn(move || {
            for line in BufReader::new(pipe).lines().map_while(Result::ok).filter(|line| !line.is_empty()) {
                let _ = said.send(line);
            }
        });
        let mut wire = begin(&mut taken, "Transfer-Encoding: chunked\r\n").await;
        for n in 0..5 {
            wire.send(chunk(&event(n))).await;
            assert_eq!(soon("an id", lines.recv()).await, Some(format!("id: {n}")), "{version}");
            assert_eq!(soon("data", lines.recv()).await, Some(format!("data: {{\"n\":{n}}}")), "{version}");
        }
        curl.kill().expect("a child");
        curl.wait().expect("a child");
        // Who leaves is not waited for: the origin learns of it without sending anything.
        wire.closed().await;
    }
}

#[tokio::test]
async fn a_client_that_leaves_closes_the_origins_stream() {
    let (origin, mut taken) = played().await;
    let gateway = gateway(&origin, "").await;
    let mut client = Wire::connect(gateway.address()).await;
    client.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n").await;
    let mut wire = begin(&mut taken, "Transfer-Encoding: chunked\r\n").await;
    client.head().await.expect("a head");
    drop(client);
    wire.closed().await;
    let client = H2c::connect(gateway.address()).await;
    let (answer, mut stream) =
        client.open(http::Request::get("http://a/").body(()).expect("valid"), true).await;
    let mut wire = begin(&mut taken, "Transfer-Encoding: chunked\r\n").await;
    let _open = soon("a head", answer).await.expect("a head");
    stream.send_reset(h2::Reason::CANCEL);
    wire.closed().await;
}

/// Each event arrives, for so long.
async fn events_go_on(wire: &mut Wire, client: &mut Wire, long: Duration, which: &str) {
    let start = std::time::Instant::now();
    while start.elapsed() < long {
        tokio::time::sleep(Duration::from_millis(100)).await;
        wire.send(chunk(&event(7))).await;
        assert_eq!(client.chunk().await.expect("an event"), event(7).as_bytes(), "{which}");
    }
}

#[tokio::test]
async fn the_total_timeout_does_not_end_a_stream_of_events() {
    let (origin, mut taken) = played().await;
    let gateway = gateway(&origin, "total: 400ms").await;
    // As EventSource asks, and as clients of language models do.
    for accept in ["text/event-stream", "application/json, Text/Event-Stream;q=0.9", "*/*"] {
        let mut client = Wire::connect(gateway.address()).await;
        client.send(format!("GET / HTTP/1.1\r\nHost: a\r\nAccept: {accept}\r\n\r\n")).await;
        let mut wire = begin(&mut taken, "Transfer-Encoding: chunked\r\n").await;
        client.head().await.expect("a head");
        events_go_on(&mut wire, &mut client, Duration::from_millis(1000), accept).await;
    }
}

#[tokio::test]
async fn the_total_timeout_does_not_end_a_stream_of_events_behind_a_cache() {
    let (origin, mut taken) = played().await;
    let gateway = cached(&origin, "{}", "total: 1s").await;
    // One of which the cache knows that it asks for events, and others of which nobody knows; the last one has what
    // answers are validated by.
    for (accept, validator) in
        [("application/json, Text/Event-Stream;q=0.9", ""), ("*/*", ""), ("*/*", "ETag: \"v\"\r\n")]
    {
        let mut client = Wire::connect(gateway.address()).await;
        client.send(format!("GET / HTTP/1.1\r\nHost: a\r\nAccept: {accept}\r\n\r\n")).await;
        let mut wire = begin(&mut taken, &format!("Transfer-Encoding: chunked\r\n{validator}")).await;
        client.head().await.expect("a head");
        events_go_on(&mut wire, &mut client, Duration::from_millis(1500), &format!("{accept} {validator}"))
            .await;
    }
}

#[tokio::test]
async fn a_stream_of_events_is_for_nobody_else_whatever_a_cache_may_store() {
    let (origin, mut taken) = played().await;
    let gateway = cached(&origin, "{ttl: 30s}", "").await;
    let mut open = Vec::new();
    for n in 0..3 {
        let mut client = Wire::connect(gateway.address()).await;
        client.send("GET / HTTP/1.1\r\nHost: a\r\nAccept: */*\r\n\r\n").await;
        let mut wire = soon("a connection", taken.recv()).await.expect("a connection");
        wire.head().await.expect("a request");
        // Nothing of how long it may be kept.
        let head = "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n";
        wire.send(format!("{head}{}", chunk(&event(n)))).await;
        client.head().await.expect("a head");
        assert_eq!(client.chunk().await.expect("an event"), event(n).as_bytes());
        open.push((client, wire));
    }
}

#[tokio::test]
async fn a_stream_silent_for_longer_than_the_total_goes_on_where_events_were_asked_for() {
    let (origin, mut taken) = played().await;
    let gateway = gateway(&origin, "total: 200ms").await;
    let mut client = Wire::connect(gateway.address()).await;
    client.send("GET / HTTP/1.1\r\nHost: a\r\nAccept: text/event-stream\r\n\r\n").await;
    let mut wire = begin(&mut taken, "Transfer-Encoding: chunked\r\n").await;
    client.head().await.expect("a head");
    tokio::time::sleep(Duration::from_millis(600)).await;
    wire.send(chunk(&event(1))).await;
    assert_eq!(client.chunk().await.expect("an event"), event(1).as_bytes());
}

#[tokio::test]
async fn a_stream_silent_for_longer_than_read_is_broken_off() {
    let (origin, mut taken) = played().await;
    let gateway = gateway(&origin, "read: 300ms").await;
    let mut client = Wire::connect(gateway.address()).await;
    client.send("GET /events HTTP/1.1\r\nHost: a\r\nAccept: text/event-stream\r\n\r\n").await;
    let mut wire = begin(&mut taken, "Transfer-Encoding: chunked\r\n").await;
    client.head().await.expect("a head");
    wire.send(chunk(&event(1))).await;
    assert_eq!(client.chunk().await.expect("an event"), event(1).as_bytes());
    assert_eq!(client.chunk().await, Err(Broken::Body(Vec::new())));
    wire.closed().await;
    until("the access log", || gateway.log().iter().any(|line| line["path"] == "/events").then_some(()))
        .await;
}

#[tokio::test]
async fn what_is_no_stream_of_events_ends_with_the_total_whatever_the_client_takes() {
    let (origin, mut taken) = played().await;
    let gateway = Gateway::start(&format!(
        "upstreams: [{{name: origin, timeouts: {{total: 300ms}}, backends: [{{address: \"{}\"}}]}}]
routes:
  - {{name: direct, upstream: origin}}
  - {{name: proxied, match: {{paths: [/proxied]}}, direct: false, upstream: origin}}",
        origin.address
    ))
    .await;
    for path in ["/", "/proxied"] {
        let mut client = Wire::connect(gateway.address()).await;
        client.send(format!("GET {path} HTTP/1.1\r\nHost: a\r\nAccept: text/event-stream\r\n\r\n")).await;
        let mut wire = soon("a connection", taken.recv()).await.expect("a connection");
        wire.head().await.expect("a request");
        wire.send("HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 1000000\r\n\r\n")
            .await;
        let head = client.head().await.expect("a head");
        assert_eq!(head.field("content-length"), Some("1000000"));
        let trickle = async {
            loop {
                wire.send("1").await;
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        soon("the end", async {
            tokio::select! {
                body = client.body(&head) => assert!(body.is_err(), "{path}: cut"),
                () = trickle => unreachable!("it has no end"),
            }
        })
        .await;
    }
}

#[tokio::test]
async fn what_is_no_stream_of_events_and_comes_after_the_total_is_a_504() {
    let (origin, mut taken) = played().await;
    let gateway = gateway(&origin, "total: 100ms").await;
    let mut client = Wire::connect(gateway.address()).await;
    client.send("GET / HTTP/1.1\r\nHost: a\r\nAccept: application/json, text/event-stream\r\n\r\n").await;
    let mut wire = soon("a connection", taken.recv()).await.expect("a connection");
    wire.head().await.expect("a request");
    tokio::time::sleep(Duration::from_millis(150)).await;
    wire.send("HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 2\r\n\r\n{}").await;
    let answer = client.answer().await.expect("an answer");
    assert_eq!((answer.status, answer.problem().as_str()), (504, "upstream-timeout"));
}
