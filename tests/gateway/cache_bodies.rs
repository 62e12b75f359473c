//! Long bodies in the cache: the same for everybody, wherever they lie and whatever becomes of them.

use crate::harness::cached::{Cached, numbered};
use crate::harness::{H2c, Wire, soon};

const FRESH: &str = "cache-control: max-age=3600\r\n";

/// A body of so many bytes that shows where in it one is.
fn numbered_lines(length: usize) -> String {
    (0..).flat_map(|line: u32| format!("{line:07}\n").into_bytes()).map(char::from).take(length).collect()
}

#[tokio::test]
async fn long_stored_bodies_are_the_same_for_everybody_whenever_they_ask() {
    for length in [100 << 10, 3 << 20] {
        let body = numbered_lines(length);
        let answer = format!("HTTP/1.1 200 OK\r\ncontent-length: {length}\r\n{FRESH}\r\n{body}");
        let cached = Cached::new("{}", move |_, _| answer.clone()).await;
        let mut wire = Wire::connect(cached.gateway.address()).await;
        let part = format!("Range: bytes=70000-{}\r\n", length - 5);
        for nth in 1..=6 {
            for (fields, status, wanted) in [("", 200, &body[..]), (&part, 206, &body[70_000..length - 4])] {
                wire.send(format!("GET / HTTP/1.1\r\nHost: example.test\r\n{fields}\r\n")).await;
                let got = soon("an answer", wire.answer()).await.expect("whole");
                assert_eq!((got.status, got.text() == wanted), (status, true), "{length}, {fields}, {nth}");
            }
            let request = http::Request::get("http://example.test/").body(()).expect("valid");
            let client = H2c::connect(cached.gateway.address()).await;
            let got = client.send(request, b"").await.expect("an answer");
            assert!(got.body == body.as_bytes(), "{length} over HTTP/2, {nth}");
        }
        assert_eq!(cached.asked(), 1);
    }
}

#[tokio::test]
async fn a_purge_takes_nothing_from_who_is_reading() {
    const LENGTH: usize = 8 << 20;
    let body = numbered_lines(LENGTH);
    let answer = format!("HTTP/1.1 200 OK\r\ncontent-length: {LENGTH}\r\n{FRESH}\r\n{body}");
    let cached = Cached::new("{}", move |_, _| answer.clone()).await;
    let get = "GET / HTTP/1.1\r\nHost: example.test\r\n\r\n";
    for _ in 0..3 {
        assert_eq!(cached.get("/").await.body.len(), LENGTH);
    }
    let mut slow = Wire::connect(cached.gateway.address()).await;
    slow.send(get).await;
    let head = slow.head().await.expect("a head");
    assert_eq!(head.field("content-length"), Some(&*LENGTH.to_string()));
    cached.gateway.ask_admin("POST /api/cache/purge", r#"{"all": true}"#).await;
    // What takes its place would show, if anything did.
    let other = cached.get("/other").await;
    assert_eq!((other.body.len(), cached.asked()), (LENGTH, 2));
    let rest = soon("the rest", slow.body(&head)).await.expect("whole");
    assert!(rest == body.as_bytes());
}

#[tokio::test]
async fn a_part_is_cut_from_what_comes_in_as_soon_as_its_length_is_known() {
    // Stale from the start, so that each is fetched anew.
    let fields = |nth| format!("cache-control: max-age=60\r\nage: 90\r\netag: \"{nth}\"\r\n");
    let cached = Cached::new("{}", move |nth, head| match head.target() {
        "/chunked" => format!(
            "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n{}\r\n3\r\nabc\r\n0\r\n\r\n",
            fields(nth)
        ),
        _ => numbered(nth, &fields(nth)),
    })
    .await;
    cached.get("/").await;
    for (range, status, text, content) in [
        ("bytes=7-", 206, "2", Some("bytes 7-7/8")),
        ("bytes=-3", 206, "r 3", Some("bytes 5-7/8")),
        ("bytes=0-1,3-4", 200, "answer 4", None),
    ] {
        let answer = cached.send("GET /", &format!("Range: {range}\r\n")).await;
        assert_eq!((answer.status, answer.text().as_str()), (status, text), "{range}");
        assert_eq!(answer.field("content-range"), content, "{range}");
    }
    let none = cached.send("GET /", "Range: bytes=8-\r\n").await;
    assert_eq!((none.status, none.problem().as_str()), (416, "range-not-satisfiable"));
    assert_eq!((none.field("content-range"), none.field("etag")), (Some("bytes */8"), None));
    assert_eq!(cached.asked(), 5, "whole each time");
    cached.get("/chunked").await;
    let answer = cached.send("GET /chunked", "Range: bytes=0-0\r\n").await;
    assert_eq!((answer.status, answer.text().as_str()), (200, "abc"), "nobody knows of how many");
}
