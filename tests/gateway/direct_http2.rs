//! Requests over HTTP/2, on their streams themselves and through Pingora's proxy: the same requests and answers, by
//! both, must come out alike; and what streams of one connection do to each other.

use std::time::Duration;

use bytes::Bytes;
use h2::Reason;
use http::{HeaderMap, Request};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt};

use crate::direct::{
    ENDED, OWN, Reply, Taken, WAYS, WHOLE, both, closing, framed, is_of_whole_bodies, reply,
};
use crate::harness::frames::{frame, headers};
use crate::harness::h2c::{H2Answer, collect};
use crate::harness::{Gateway, H2c, Head, Origin, Wire, soon};

/// What a client asks for.
#[derive(Clone, Copy)]
struct Asked<'a> {
    method: &'a str,
    target: &'a str,
    fields: &'a [(&'a str, &'a str)],
    body: &'a [u8],
}

const PLAIN: Asked<'_> = Asked { method: "GET", target: "/a?b", fields: &[], body: b"" };

impl Asked<'_> {
    fn over(&self, way: &str) -> Request<()> {
        let mut request = Request::builder().method(self.method).uri(format!("http://{way}{}", self.target));
        for (name, value) in self.fields {
            request = request.header(*name, *value);
        }
        request.body(()).expect("a valid request")
    }
}

/// A line, fields by their names in lower case, and a body.
type Said = (String, Vec<(String, String)>, Vec<u8>);

/// What an origin and a client see of one request.
#[derive(Debug, PartialEq)]
struct Seen {
    upstream: Option<Said>,
    /// Not what kind of error it is: the library resets streams for several reasons.
    answer: Option<Said>,
}

fn essence(fields: impl Iterator<Item = (String, String)>) -> Vec<(String, String)> {
    let lower = fields.map(|(name, value)| (name.to_ascii_lowercase(), value));
    let mut fields: Vec<_> = lower.filter(|(name, _)| !OWN.contains(&&**name)).collect();
    fields.sort_by(|one, other| one.0.cmp(&other.0));
    fields
}

fn asked_for(head: Head, body: Vec<u8>) -> Said {
    let fields = essence(head.fields.into_iter());
    (head.line, fields, body)
}

fn told(answer: H2Answer) -> Said {
    assert!(answer.field("date").is_some(), "RFC 9110 s6.6.1: {answer:?}");
    // RFC 9113 s8.2.2.
    for name in ["connection", "keep-alive", "proxy-connection", "transfer-encoding", "upgrade"] {
        assert_eq!(answer.field(name), None, "{answer:?}");
    }
    let H2Answer { status, headers, mut body } = answer;
    let text = |value: &http::HeaderValue| String::from_utf8_lossy(value.as_bytes()).into_owned();
    let fields = |headers: &HeaderMap| -> Vec<(String, String)> {
        headers.iter().map(|(name, value)| (name.to_string(), text(value))).collect()
    };
    let mut fields = essence(fields(&headers).into_iter());
    if headers.get("content-type").is_some_and(|kind| kind == "application/problem+json") {
        // The id of the request is in it.
        fields.retain(|(name, _)| name != "content-length");
        body = serde_json::from_slice::<serde_json::Value>(&body)
            .map_or(body, |problem| problem["type"].to_string().into_bytes());
    }
    (status.to_string(), fields, body)
}

/// Sends a request by this way, which the origin answers so.
async fn ask(client: &H2c, taken: &mut Taken, way: &str, asked: Asked<'_>, reply: &Reply) -> Seen {
    let origin = async {
        let mut wire = taken.recv().await?;
        let head = wire.head().await.ok()?;
        let body = wire.body(&head).await.unwrap_or_default();
        wire.send(&reply.bytes).await;
        Some((asked_for(head, body), (!reply.closes).then_some(wire)))
    };
    let answered = client.send(asked.over(way), asked.body);
    let (upstream, answer) = soon("an answer", async {
        tokio::pin!(origin, answered);
        // Not every request gets to the origin.
        tokio::select! {
            seen = &mut origin => (seen, answered.await),
            answer = &mut answered => (None, answer),
        }
    })
    .await;
    let upstream = upstream.map(|(said, _wire)| said);
    Seen { upstream, answer: answer.ok().map(told) }
}

async fn compare(gateway: &Gateway, taken: &mut Taken, asked: Asked<'_>, reply: &Reply) {
    let client = H2c::connect(gateway.address()).await;
    let mut seen = Vec::new();
    for way in WAYS {
        seen.push(ask(&client, taken, way, asked, reply).await);
        while taken.try_recv().is_ok() {}
    }
    let what = || format!("{} {} {:?}", asked.method, asked.target, reply.bytes.escape_ascii().to_string());
    let mut proxied = seen.pop().expect("there are several");
    let mut whole = seen.pop().expect("there are several");
    for (seen, way) in seen.iter().zip(WAYS) {
        assert_eq!(seen, &proxied, "{way}: {}", what());
    }
    for seen in [&mut whole, &mut proxied] {
        if let Some((_, fields, _)) = &mut seen.upstream {
            fields.retain(|(name, _)| !is_of_whole_bodies(name));
        }
    }
    assert_eq!(whole, proxied, "as a whole: {}", what());
}

#[tokio::test]
async fn the_ways_of_http2_are_two() {
    let (origin, mut taken) = Origin::handing_over().await;
    let gateway = both(&origin).await;
    let client = H2c::connect(gateway.address()).await;
    let asked = Asked { method: "POST", fields: &[("content-length", "2")], body: b"ab", ..PLAIN };
    for (way, spelt) in [("direct.test", "content-length"), ("proxied.test", "Content-Length")] {
        let asking = client.clone();
        let answer = tokio::spawn(async move { asking.send(asked.over(way), asked.body).await });
        let mut wire = soon("a request", taken.recv()).await.expect("an origin");
        let head = wire.head().await.expect("a head");
        // Pingora spells some names of HTTP/1 as they were once written; that tells them apart.
        assert!(head.fields.iter().any(|(name, _)| name == spelt), "{way}: {head:?}");
        wire.body(&head).await.expect("a body");
        wire.send("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok").await;
        assert_eq!(answer.await.expect("no panic").expect("an answer").text(), "ok");
    }
}

#[tokio::test]
async fn both_ways_of_http2_send_the_same_to_origins() {
    let (origin, mut taken) = Origin::handing_over().await;
    let gateway = both(&origin).await;
    let ok = reply("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok");
    let with = |fields| Asked { fields, ..PLAIN };
    let post = |fields, body| Asked { method: "POST", fields, body, ..PLAIN };
    for asked in [
        PLAIN,
        Asked { method: "HEAD", ..PLAIN },
        Asked { method: "PURGE", ..PLAIN },
        Asked { method: "get", ..PLAIN },
        Asked { method: "OPTIONS", ..PLAIN },
        Asked { method: "DELETE", target: "/a/../b//c?x=%41&y=%2f", ..PLAIN },
        Asked { target: "/%61%2d?a=[1]", ..PLAIN },
        Asked { target: "/%zz", ..PLAIN },
        Asked { target: "/%00", ..PLAIN },
        with(&[("cookie", "a=1"), ("cookie", "b=2")]),
        with(&[("x-a", "1"), ("x-b", ""), ("x-a", "3"), ("accept", "*/*")]),
        with(&[("te", "trailers"), ("via", "1.0 fred"), ("max-forwards", "3")]),
        with(&[("forwarded", "for=1.2.3.4"), ("x-forwarded-for", "1.2.3.4"), ("x-real-ip", "1.2.3.4")]),
        with(&[("x_forwarded_for", "1.2.3.4"), ("x-tollhouse-a", "b"), ("content_length", "3")]),
        with(&[("proxy-authorization", "x"), ("trailer", "x"), ("http2-settings", "x")]),
        with(&[("expect", "100-continue")]),
        with(&[("content-length", "0")]),
        post(&[], b""),
        post(&[("content-length", "0")], b""),
        post(&[("content-length", "5")], b"hello"),
        post(&[("content-length", "005")], b"hello"),
        post(&[], b"hello"),
        post(&[("content-length", "5"), ("expect", "100-continue")], b"hello"),
        post(&[("content-type", "application/grpc"), ("te", "trailers")], b"\0\0\0\0\0"),
        Asked { fields: &[("content-length", "2")], body: b"ab", ..PLAIN },
    ] {
        compare(&gateway, &mut taken, asked, &ok).await;
    }
}

#[tokio::test]
async fn both_ways_of_http2_pass_on_bodies_of_any_size() {
    let (origin, mut taken) = Origin::handing_over().await;
    let gateway = both(&origin).await;
    // Around a buffer, a frame, and a window (RFC 9113 s6.9.2).
    for size in [1, 4095, 16_383, 16_384, 16_385, 65_535, 65_536, 1_000_003] {
        let body: Vec<u8> = (0..size).map(|at: usize| (at % 251) as u8).collect();
        let [sized, chunked, open] = framed(&body);
        let length = size.to_string();
        let fields: &[_] = &[("content-length", &*length)];
        for fields in [fields, &[]] {
            let asked = Asked { method: "POST", fields, body: &body, ..PLAIN };
            compare(&gateway, &mut taken, asked, &reply(&sized)).await;
        }
        compare(&gateway, &mut taken, PLAIN, &reply(&chunked)).await;
        compare(&gateway, &mut taken, PLAIN, &closing(&open)).await;
    }
}

#[tokio::test]
async fn both_ways_of_http2_pass_on_the_same_of_what_origins_answer() {
    let (origin, mut taken) = Origin::handing_over().await;
    let gateway = both(&origin).await;
    for answer in WHOLE {
        compare(&gateway, &mut taken, PLAIN, &reply(answer)).await;
        if !answer.contains("chunked") {
            let headless = answer.split_inclusive("\r\n\r\n").take(1 + usize::from(answer.contains(" 103 ")));
            let head = Asked { method: "HEAD", ..PLAIN };
            compare(&gateway, &mut taken, head, &reply(headless.collect::<String>())).await;
        }
    }
    for answer in ENDED {
        compare(&gateway, &mut taken, PLAIN, &closing(answer)).await;
    }
}

/// Routes of all ways beside each other; each says which it is.
const MIXED: &str = "
upstreams: [{name: origin, backends: [{address: \"ADDRESS\"}]}]
routes:
  - name: plain
    match: {paths: [\"/plain/*\"]}
    upstream: origin
    filters: [headers: {request: {set: {x-route: plain}}}]
  - name: whole
    match: {paths: [\"/whole/*\"]}
    upstream: origin
    filters: [headers: {request: {set: {x-route: whole}}}, buffer: {}]
  - name: pieces
    match: {paths: [\"/pieces/*\"]}
    upstream: origin
    filters: [headers: {request: {set: {x-route: pieces}}}, body_limit: {request: 1MiB}]
  - name: own
    match: {paths: [\"/own/*\"]}
    respond: {status: 200, body: own}
";

#[tokio::test]
async fn streams_that_are_handed_over_keep_their_own_request() {
    // Says what it was asked.
    let origin = Origin::new(|mut wire: Wire| async move {
        while let Ok(head) = wire.head().await {
            let Ok(body) = wire.body(&head).await else { return };
            let path = head.line.split(' ').nth(1).unwrap_or_default();
            let route = head.field("x-route").unwrap_or_default();
            let text = format!("{path} {route} {}", String::from_utf8_lossy(&body));
            let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{text}", text.len());
            wire.send(head).await;
        }
    })
    .await;
    let gateway = Gateway::start(&MIXED.replace("ADDRESS", &origin.address.to_string())).await;
    let client = H2c::connect(gateway.address()).await;
    // As many as may be open at once before the client was told how many (RFC 9113 s6.5.2).
    let asked = (0..100).map(|nth| {
        let client = client.clone();
        async move {
            let route = ["plain", "whole", "pieces", "own"][nth % 4];
            let body = if nth % 3 == 0 { String::new() } else { format!("body {nth}") };
            let request = Request::post(format!("http://a/{route}/{nth}")).body(()).expect("valid");
            let answer = client.send(request, body.as_bytes()).await.expect("an answer");
            let expected = match route {
                "own" => "own".to_owned(),
                _ => format!("/{route}/{nth} {route} {body}"),
            };
            assert_eq!((answer.status, answer.text()), (200, expected));
        }
    });
    futures_util::future::join_all(asked).await;
}

#[tokio::test]
async fn a_stream_whose_window_is_shut_holds_up_no_other() {
    const LONG: usize = 1 << 20;
    let long = format!("HTTP/1.1 200 OK\r\nContent-Length: {LONG}\r\n\r\n{}", "x".repeat(LONG));
    let origin = Origin::answering(long).await;
    let gateway = Gateway::before(&origin, "").await;
    let client = H2c::connect_wide(gateway.address()).await;
    let get = || Request::get("http://a/").body(()).expect("valid");
    let (stalled, _) = client.open(get(), true).await;
    // Its head comes, and of its body what the window has room for (RFC 9113 s6.9.2): nobody opens it.
    let mut stalled = soon("a head", stalled).await.expect("an answer").into_body();
    let piece = soon("a piece", stalled.data()).await.expect("a body").expect("a piece");
    assert!(!piece.is_empty());
    for _ in 0..3 {
        let whole = collect(client.open(get(), true).await.0).await.expect("an answer");
        assert_eq!(whole.body.len(), LONG);
    }
}

#[tokio::test]
async fn a_stream_that_is_given_up_is_given_up_at_the_origin() {
    let (origin, mut taken) = Origin::handing_over().await;
    let gateway = both(&origin).await;
    let client = H2c::connect(gateway.address()).await;
    for way in WAYS {
        for (length, begun) in [(0, ""), (9, ""), (0, "HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nhalf")] {
            if length > 0 && way == "whole.test" {
                // It is not at the origin yet.
                continue;
            }
            let method = if length == 0 { "GET" } else { "POST" };
            let request = Request::builder().method(method).uri(format!("http://{way}/"));
            let request = request.header("content-length", length).body(()).expect("valid");
            let (answer, mut stream) = client.open(request, length == 0).await;
            if length > 0 {
                stream.send_data(Bytes::from_static(b"half"), false).expect("open");
            }
            let mut wire = soon("a request", taken.recv()).await.expect("an origin");
            wire.head().await.expect("a head");
            wire.send(begun).await;
            if !begun.is_empty() {
                soon("a head", answer).await.expect("an answer");
            }
            stream.send_reset(Reason::CANCEL);
            soon("the end of its connection", wire.rest()).await;
        }
    }
    // Nothing of it stays behind: the connection takes more, and nothing is under way.
    let asked = tokio::spawn(async move { client.send(PLAIN.over("direct.test"), b"").await });
    let mut wire = soon("a request", taken.recv()).await.expect("an origin");
    wire.head().await.expect("a head");
    wire.send("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok").await;
    assert_eq!(asked.await.expect("no panic").expect("an answer").text(), "ok");
}

#[tokio::test]
async fn who_is_answered_before_all_was_sent_may_send_the_rest() {
    const LENGTH: usize = 300_000;
    let (origin, mut taken) = Origin::handing_over().await;
    let gateway = both(&origin).await;
    let client = H2c::connect(gateway.address()).await;
    for way in ["direct.test", "proxied.test"] {
        let request = Request::post(format!("http://{way}/")).header("content-length", LENGTH);
        let (answer, mut stream) = client.open(request.body(()).expect("valid"), false).await;
        let mut wire = soon("a request", taken.recv()).await.expect("an origin");
        wire.head().await.expect("a head");
        wire.send("HTTP/1.1 413 Too Long\r\nContent-Length: 2\r\n\r\nno").await;
        let answer = collect(answer).await.expect("an answer");
        assert_eq!((answer.status, answer.text().as_str()), (413, "no"));
        // RFC 9113 s8.1: it is read on, or the stream is reset with NO_ERROR; the connection goes on.
        let mut left = LENGTH;
        while left > 0 {
            stream.reserve_capacity(left);
            let room = soon("room", std::future::poll_fn(|cx| stream.poll_capacity(cx))).await;
            let Some(Ok(room)) = room else { break };
            if stream.send_data(vec![b'x'; room].into(), room == left).is_err() {
                break;
            }
            left -= room;
        }
        drop(wire);
        let next = client.clone();
        let next = tokio::spawn(async move { next.send(PLAIN.over(way), b"").await });
        let mut wire = soon("the next request", taken.recv()).await.expect("an origin");
        wire.head().await.expect("a head");
        wire.send("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok").await;
        assert_eq!(next.await.expect("no panic").expect("an answer").text(), "ok", "{way}");
    }
}

#[tokio::test]
async fn a_long_upload_that_was_answered_is_told_to_stop() {
    let gateway = Gateway::start("routes: [{name: no, respond: {status: 401}}]").await;
    let client = H2c::connect(gateway.address()).await;
    let request = Request::post("http://a/").header("content-length", 1u64 << 33).body(()).expect("valid");
    let (answer, mut stream) = client.open(request, false).await;
    assert_eq!(collect(answer).await.expect("an answer").status, 401);
    // RFC 9113 s8.1: without an error, after all of the answer.
    let reset = soon("a reset", std::future::poll_fn(|cx| stream.poll_reset(cx))).await;
    assert_eq!(reset.expect("a reason"), Reason::NO_ERROR);
}

/// The type of the next frame and what is in it; none when the connection ends.
async fn read_frame(reads: &mut (impl AsyncRead + Unpin)) -> Option<(u8, Vec<u8>)> {
    let mut head = [0; 9];
    reads.read_exact(&mut head).await.ok()?;
    let length = u32::from_be_bytes([0, head[0], head[1], head[2]]);
    let mut payload = vec![0; length as usize];
    reads.read_exact(&mut payload).await.ok()?;
    Some((head[3], payload))
}

#[tokio::test]
async fn an_idle_connection_is_told_to_go() {
    let gateway =
        Gateway::start("server: {limits: {idle_timeout: 1s}}\nroutes: [{name: no, respond: {status: 401}}]")
            .await;
    let mut wire = Wire::connect(gateway.address()).await;
    wire.send([b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", &frame(4, 0, 0, &[])[..]].concat()).await;
    let mut stream = wire.into_stream();
    let last = soon("the end", async {
        let mut last = None;
        while let Some(frame) = read_frame(&mut stream).await {
            last = Some(frame);
        }
        last
    });
    // GOAWAY with NO_ERROR (RFC 9113 s6.8, s9.1).
    let (kind, payload) = last.await.expect("frames");
    assert_eq!((kind, &payload[4..8]), (7, &[0; 4][..]));
}

#[tokio::test]
async fn the_head_of_an_answer_arrives_before_it_breaks_off() {
    let origin = Origin::dying_after(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhal").await;
    let gateway = Gateway::before(&origin, "").await;
    let client = H2c::connect(gateway.address()).await;
    let (answer, _) = client.open(PLAIN.over("a"), true).await;
    let answer = soon("a head", answer).await.expect("an answer");
    assert_eq!(answer.status(), 200);
    let mut body = answer.into_body();
    let broken = async { while body.data().await.expect("cut, and looks whole").is_ok() {} };
    soon("a reset", broken).await;
}

#[tokio::test]
async fn a_stream_whose_window_opens_too_slowly_is_reset() {
    let long = format!("HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\n{}", "x".repeat(1_000_000));
    let origin = Origin::answering(long).await;
    let gateway = Gateway::before(&origin, "server: {limits: {idle_timeout: 1s}}").await;
    let (mut reads, mut writes) = tokio::io::split(Wire::connect(gateway.address()).await.into_stream());
    let get = [(":method", "GET"), (":scheme", "http"), (":path", "/"), (":authority", "a")];
    // SETTINGS_INITIAL_WINDOW_SIZE is 4 (RFC 9113 s6.5.2).
    let shut = frame(4, 0, 0, &[0, 4, 0, 0, 0, 0]);
    let begin = [b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", &shut[..], &headers(&get, true)].concat();
    writes.write_all(&begin).await.expect("connected");
    let opens = async {
        let mut step = tokio::time::interval(Duration::from_millis(50));
        loop {
            step.tick().await;
            // 100 bytes a second, where `min_rate` wants 240.
            let _ = writes.write_all(&frame(8, 0, 1, &5u32.to_be_bytes())).await;
        }
    };
    let reset = async { while read_frame(&mut reads).await.expect("a frame").0 != 3 {} };
    soon("a reset", async { tokio::select!(() = reset => {}, () = opens => {}) }).await;
}

#[tokio::test]
async fn a_stream_that_nobody_reads_is_reset_when_it_idled_too_long_and_others_go_on() {
    let long = format!("HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\n{}", "x".repeat(1_000_000));
    let origin = Origin::answering(long).await;
    let gateway = Gateway::before(&origin, "server: {limits: {idle_timeout: 1s}}").await;
    let client = H2c::connect_wide(gateway.address()).await;
    let get = || Request::get("http://a/").body(()).expect("valid");
    let (answer, _) = client.open(get(), true).await;
    let mut stalled = soon("a head", answer).await.expect("an answer").into_body();
    let reset = async {
        loop {
            match stalled.data().await {
                Some(Ok(_)) => {}
                Some(Err(error)) => return error.reason(),
                None => panic!("cut, and looks whole"),
            }
        }
    };
    assert!(soon("a reset", reset).await.is_some());
    gateway.log_line(|line| line["reason"] == "slow-reader" || line["error"] == "client-closed").await;
    tokio::time::timeout(Duration::from_secs(10), collect(client.open(get(), true).await.0))
        .await
        .expect("in time")
        .expect("the connection goes on");
}
