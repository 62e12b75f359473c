//! Poisoning and deception: what one client or a broken origin does changes nothing for others.

use serde_json::json;

use crate::harness::cached::{Cached, numbered};
use crate::harness::{Gateway, H2c, Origin, Wire, soon};

const FRESH: &str = "cache-control: max-age=3600\r\n";

/// The answer to a request that is sent as it is.
async fn raw(cached: &Cached, bytes: &str) -> u16 {
    let mut wire = Wire::connect(cached.gateway.address()).await;
    wire.send(bytes).await;
    soon("an answer", wire.answer()).await.map_or(0, |answer| answer.status)
}

#[tokio::test]
async fn what_connection_takes_away_is_not_stored_under_what_it_was() {
    let options = "{key: {parts: ['header:x-country']}}";
    let cached = Cached::new(options, |nth, head| {
        numbered(nth, &format!("{FRESH}x-saw: {}\r\n", head.field("x-country").unwrap_or("none")))
    })
    .await;
    let poison = cached.send("GET /", "x-country: us\r\nConnection: close, X-Country\r\n").await;
    assert_eq!(poison.field("x-saw"), Some("none"), "the origin does not see it");
    let clean = cached.send("GET /", "x-country: us\r\n").await;
    assert_eq!((clean.field("x-saw"), clean.text()), (Some("us"), "answer 2".into()));
}

#[tokio::test]
async fn paths_that_look_alike_are_not_the_same() {
    let cached = Cached::new("{}", |_, head| {
        let target = head.target().to_owned();
        format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n{FRESH}\r\n{target}", target.len())
    })
    .await;
    // What is answered is what was asked for, or nothing.
    let paths = [
        "/account",
        "/account/",
        "/account/x.css",
        "/account;x.css",
        "/account;a/x.css",
        "/account%3Bx.css",
        "/account%23x.css",
        "/account%3Fx.css",
        "/account?x.css",
        "/Account",
        "/account%20",
        "/account.",
        "/account%2Ecss",
        "/a%25c",
        "/a%252e",
        "/a/%2e%2e/account",
        "/account%2Fx.css",
        "/account%5Cx.css",
        "/account%00x.css",
        "/account%0d",
        "/account\\x.css",
    ];
    for _ in 0..2 {
        for path in paths {
            let answer = cached.get(path).await;
            match answer.status {
                200 => {
                    let same = ["/a/%2e%2e/account", "/account%2Ecss"].contains(&path);
                    assert!(same || answer.text() == path, "{path}: {}", answer.text());
                }
                status => assert_eq!(status, 400, "{path}"),
            }
        }
    }
    assert_eq!(cached.get("/account").await.text(), "/account");
    let before = cached.asked();
    assert_eq!(cached.get("/a/../account").await.text(), "/account");
    assert_eq!(cached.asked(), before, "which is the same after all");
}

#[tokio::test]
async fn who_may_not_share_an_answer_takes_none_from_others() {
    let cached = Cached::new("{}", |nth, _| numbered(nth, FRESH)).await;
    assert_eq!(cached.get("/").await.text(), "answer 1");
    for nth in 2..6 {
        let alone = cached.send("GET /", "authorization: x\r\ncache-control: no-cache\r\n").await;
        assert_eq!(alone.text(), format!("answer {nth}"));
        // RFC 9111 s3.5 forbids to store that answer; it says nothing of the one that is stored.
        assert!(
            alone.field("cache-status").is_some_and(|status| status.contains("authorization")),
            "{alone:?}"
        );
        assert_eq!(cached.get("/").await.text(), "answer 1");
    }
}

#[tokio::test]
async fn whom_the_origin_refuses_takes_nothing_from_others() {
    let cached = Cached::new("{}", |nth, head| match head.field("x-odd") {
        Some(_) => "HTTP/1.1 400 Bad Request\r\ncontent-length: 0\r\n\r\n".to_owned(),
        None => numbered(nth, FRESH),
    })
    .await;
    assert_eq!(cached.get("/").await.text(), "answer 1");
    for _ in 0..4 {
        assert_eq!(cached.send("GET /", "x-odd: 1\r\ncache-control: no-cache\r\n").await.status, 400);
        assert_eq!(cached.get("/").await.text(), "answer 1");
    }
    // Nor does it keep what is not stored yet from being so for long.
    for _ in 0..4 {
        assert_eq!(cached.send("GET /other", "x-odd: 1\r\n").await.status, 400);
    }
    let stored = async { while cached.get("/other").await.text() != cached.get("/other").await.text() {} };
    soon("it is stored", stored).await;
}

#[tokio::test]
async fn slow_readers_of_long_answers_do_not_keep_others_from_the_cache() {
    // A quarter of the store is 1 MiB, and each of these a third of that.
    let cached = Cached::kept("memory: 4MiB", "[cache: {}]", |nth, head| {
        if head.target().starts_with("/long") {
            let body = "x".repeat(350 << 10);
            return format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n{FRESH}\r\n{body}", body.len());
        }
        numbered(nth, FRESH)
    })
    .await;
    let mut slow = Vec::new();
    for number in 0..16 {
        let mut wire = Wire::connect(cached.gateway.address()).await;
        wire.send(&format!("GET /long/{number} HTTP/1.1\r\nhost: a.test\r\n\r\n")).await;
        soon("a head", wire.head()).await.expect("an answer");
        slow.push(wire);
    }
    let first = cached.get("/short").await.text();
    assert_eq!(cached.get("/short").await.text(), first);
    drop(slow);
}

/// Takes so much of a body.
async fn take(client: &mut Wire, is_chunked: bool, count: usize) {
    if !is_chunked {
        client.exactly(count).await.expect("a part of the body");
        return;
    }
    let mut came = 0;
    while came < count {
        let chunk = client.chunk().await.expect("a chunk");
        assert!(!chunk.is_empty(), "it is not over yet");
        came += chunk.len();
    }
    assert_eq!(came, count);
}

#[tokio::test]
async fn of_long_answers_that_come_in_at_once_no_more_are_held_than_there_is_room_for() {
    const ANSWERS: u64 = 40;
    // Of which a quarter of the store is two, and a half four.
    const LENGTH: usize = 512 << 10;
    for framing in [format!("content-length: {LENGTH}"), "transfer-encoding: chunked".to_owned()] {
        let is_chunked = framing.ends_with("chunked");
        let framed = |bytes: usize, end: &str| match is_chunked {
            true => format!("{bytes:x}\r\n{}\r\n{end}", "x".repeat(bytes)),
            false => "x".repeat(bytes),
        };
        let (origin, mut taken) = Origin::handing_over().await;
        let gateway = Gateway::administered(&format!(
            "server: {{cache: {{memory: 4MiB}}}}\nupstreams: [{{name: o, backends: [{{address: \"{}\"}}]}}]\n\
             routes: [{{name: a, upstream: o, filters: [cache: {{}}]}}]",
            origin.address
        ))
        .await;
        // All heads come before any of the bodies.
        let mut pairs = Vec::new();
        for nth in 0..ANSWERS {
            let mut client = Wire::connect(gateway.address()).await;
            client.send(format!("GET /{nth} HTTP/1.1\r\nHost: example.test\r\n\r\n")).await;
            let mut wire = soon("a request", taken.recv()).await.expect("a connection");
            wire.head().await.expect("a head");
            wire.send(format!("HTTP/1.1 200 OK\r\n{framing}\r\n{FRESH}\r\n")).await;
            client.head().await.expect("a head");
            pairs.push((client, wire));
        }
        for (client, wire) in &mut pairs {
            let most = framed(LENGTH - 1, "");
            tokio::join!(wire.send(most), take(client, is_chunked, LENGTH - 1));
        }
        for (client, wire) in &mut pairs {
            wire.send(framed(1, "0\r\n\r\n")).await;
            take(client, is_chunked, 1).await;
            if is_chunked {
                assert_eq!(client.chunk().await, Ok(Vec::new()), "each comes whole");
            }
        }
        let fills = async |result: &str| {
            gateway.number(&format!("tollhouse_cache_fills_total{{result=\"{result}\"}}")).await
        };
        let all = async { while fills("stored").await + fills("not_stored").await != ANSWERS {} };
        soon("the numbers", all).await;
        let stored = fills("stored").await;
        assert!((1..=6).contains(&stored), "{framing}: {stored}");
    }
}

#[tokio::test]
async fn hosts_in_any_form_get_their_own() {
    let cached = Cached::new("{}", |nth, _| numbered(nth, FRESH)).await;
    let ask = async |host: &str, target: &str| {
        let mut wire = Wire::connect(cached.gateway.address()).await;
        wire.send(format!("GET {target} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n")).await;
        soon("an answer", wire.answer()).await.expect("an answer").text()
    };
    let first = ask("example.test", "/").await;
    assert_eq!(ask("EXAMPLE.test", "/").await, first);
    assert_eq!(ask("example.test:80", "/").await, first);
    for (host, target) in
        [("example.test:8080", "/"), ("other.test", "/"), ("other.test", "http://other.test/x")]
    {
        assert_ne!(ask(host, target).await, first, "{host} {target}");
    }
    assert_eq!(ask("example.test", "/").await, first);
    for bytes in [
        "GET / HTTP/1.1\r\nHost: example.test\r\nHost: evil.test\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: example.test@evil.test\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: example.test/evil\r\n\r\n",
        "GET / HTTP/1.1\r\n\r\n",
    ] {
        assert_eq!(raw(&cached, bytes).await, 400, "{bytes:?}");
    }
}

#[tokio::test]
async fn broken_answers_reach_nobody_twice() {
    let answers = [
        ("cut", format!("HTTP/1.1 200 OK\r\ncontent-length: 99\r\n{FRESH}connection: close\r\n\r\nhalf")),
        (
            "chunks",
            format!(
                "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n{FRESH}connection: close\r\n\r\n5\r\nhello\r\n"
            ),
        ),
        (
            "coding",
            format!(
                "HTTP/1.1 200 OK\r\ntransfer-encoding: gzip, chunked\r\n{FRESH}connection: close\r\n\r\n0\r\n\r\n"
            ),
        ),
        (
            "unknown",
            format!(
                "HTTP/1.1 200 OK\r\ntransfer-encoding: xchunked\r\n{FRESH}connection: close\r\n\r\nhello"
            ),
        ),
        (
            "lengths",
            format!(
                "HTTP/1.1 200 OK\r\ncontent-length: 3\r\ncontent-length: 5\r\n{FRESH}connection: close\r\n\r\nhello"
            ),
        ),
        ("signed", format!("HTTP/1.1 200 OK\r\ncontent-length: +5\r\n{FRESH}connection: close\r\n\r\nhello")),
        ("end", format!("HTTP/1.1 200 OK\r\n{FRESH}connection: close\r\n\r\nhello")),
        ("unasked", format!("HTTP/1.1 304 Not Modified\r\n{FRESH}etag: \"v\"\r\nconnection: close\r\n\r\n")),
        (
            "part",
            format!(
                "HTTP/1.1 206 Partial Content\r\ncontent-range: bytes 0-4/99\r\ncontent-length: 5\r\n{FRESH}connection: close\r\n\r\nhello"
            ),
        ),
        (
            "switch",
            format!(
                "HTTP/1.1 101 Switching Protocols\r\nupgrade: x\r\n{FRESH}connection: upgrade, close\r\n\r\n"
            ),
        ),
    ];
    for (name, answer) in answers {
        let cached = Cached::new("{stale_if_unreachable: 0s}", move |_, _| answer.clone()).await;
        for _ in 0..2 {
            let bytes = "GET / HTTP/1.1\r\nHost: example.test\r\nConnection: close\r\n\r\n";
            let mut wire = Wire::connect(cached.gateway.address()).await;
            wire.send(bytes).await;
            let _ = soon("an end", wire.rest()).await;
        }
        let look = cached.gateway.ask_admin("GET /api/cache/lookup?url=http://example.test/", "").await;
        assert_eq!(look.json()["stored"], json!([]), "{name}");
        assert_eq!(cached.numbers().await["entries"], 0, "{name}");
        assert!(cached.asked() >= 2, "{name}: {}", cached.asked());
    }
}

#[tokio::test]
async fn ranges_of_every_odd_kind_get_a_right_part_all_or_a_refusal() {
    const BODY: &str = "0123456789";
    let cached = Cached::new("{}", |_, _| {
        let dates = "date: Sun, 06 Nov 2022 08:49:37 GMT\r\nlast-modified: Sun, 06 Nov 2022 08:49:37 GMT\r\n";
        format!("HTTP/1.1 200 OK\r\ncontent-length: 10\r\ncache-control: public, max-age=999999999\r\n{dates}etag: W/\"w\"\r\n\r\n{BODY}")
    })
    .await;
    assert_eq!(cached.get("/").await.text(), BODY);
    let part = |text: &str, range: &str| (206, text.to_owned(), Some(format!("bytes {range}/10")));
    let all = || (200, BODY.to_owned(), None);
    let none = || (416, "range-not-satisfiable".to_owned(), Some("bytes */10".to_owned()));
    for (range, expected) in [
        ("bytes=0-0", part("0", "0-0")),
        ("bytes=9-", part("9", "9-9")),
        ("bytes=-1", part("9", "9-9")),
        ("bytes=-99", part(BODY, "0-9")),
        ("bytes=5-999999999999999999999999", part("56789", "5-9")),
        ("BYTES=1-2", part("12", "1-2")),
        ("bytes=10-", none()),
        ("bytes=99999999999999999999-", none()),
        ("bytes=-0", none()),
        ("bytes=0-1,2-3", all()),
        ("bytes=0-5,3-9", all()),
        ("bytes=0-,0-,0-,0-,0-,0-,0-,0-,0-,0-", all()),
        ("bytes=5-1", all()),
        ("bytes=--1", all()),
        ("bytes=-", all()),
        ("bytes=a-b", all()),
        ("bytes=1-2-3", all()),
        ("bytes=+1-2", all()),
        ("bytes 1-2", all()),
        ("lines=1-2", all()),
        ("", all()),
    ] {
        let answer = cached.send("GET /", &format!("Range: {range}\r\n")).await;
        let told = answer.field("content-range").map(str::to_owned);
        let text = if answer.status == 416 { answer.problem() } else { answer.text() };
        assert_eq!((answer.status, text, told), expected, "{range}");
    }
    // Neither a weak tag nor a date that may be one second's two answers lets a part be sent (RFC 9110 s13.1.5).
    for condition in ["W/\"w\"", "\"w\"", "Sun, 06 Nov 2022 08:49:37 GMT", "x"] {
        let fields = format!("Range: bytes=0-1\r\nIf-Range: {condition}\r\n");
        let answer = cached.send("GET /", &fields).await;
        assert_eq!((answer.status, answer.text()), (200, BODY.into()), "{condition}");
    }
    let twice = cached.send("GET /", "Range: bytes=0-1\r\nRange: bytes=2-3\r\n").await;
    assert_eq!((twice.status, twice.text()), (200, BODY.into()));
    assert_eq!(cached.asked(), 1);
}

#[tokio::test]
async fn who_asks_after_a_purge_gets_nothing_from_before_it() {
    let (origin, mut asked) = Origin::handing_over().await;
    let document = format!(
        "upstreams: [{{name: o, backends: [{{address: \"{}\"}}]}}]\nroutes: [{{name: a, upstream: o, filters: [cache: {{wait: 60s}}]}}]",
        origin.address
    );
    let gateway = crate::harness::Gateway::administered(&document).await;
    let client = async || {
        let mut client = Wire::connect(gateway.address()).await;
        client.send("GET / HTTP/1.1\r\nHost: example.test\r\n\r\n").await;
        client
    };
    let mut first = client().await;
    let mut old = soon("the first", asked.recv()).await.expect("a connection");
    old.head().await.expect("a request");
    gateway.ask_admin("POST /api/cache/purge", r#"{"url": "http://example.test/"}"#).await;
    let mut second = client().await;
    let mut new = soon("one that asks anew", asked.recv()).await.expect("a connection");
    new.head().await.expect("a request");
    new.send(numbered(2, FRESH)).await;
    assert_eq!(second.answer().await.expect("an answer").text(), "answer 2");
    old.send(numbered(1, FRESH)).await;
    assert_eq!(first.answer().await.expect("an answer").text(), "answer 1", "who asked before it");
    assert_eq!(crate::harness::get(gateway.address(), "/").await.text(), "answer 2");
}

#[tokio::test]
async fn a_body_over_http2_that_no_field_tells_of_is_for_the_origin() {
    let cached = Cached::new("{}", |nth, _| numbered(nth, FRESH)).await;
    let h2 = H2c::connect(cached.gateway.address()).await;
    // RFC 9113 s8.1: neither a length nor a coding is needed.
    let with_body = async |path: &str| {
        let request = http::Request::get(format!("http://example.test{path}")).body(()).expect("valid");
        h2.send(request, b"which one").await.expect("an answer").text()
    };
    assert_eq!(cached.get("/a").await.text(), "answer 1");
    assert_eq!(with_body("/a").await, "answer 2");
    assert_eq!(h2.get("/a").await.text(), "answer 1", "what is stored is for who sends none");
    assert_eq!(with_body("/b").await, "answer 3");
    assert_eq!(h2.get("/b").await.text(), "answer 4", "nothing was stored of the other");
    assert_eq!(cached.asked(), 4);
}
