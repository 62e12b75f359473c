//! RFC 9211, The Cache-Status HTTP Response Header Field.

use crate::harness::cached::{Cached, numbered};
use crate::harness::until;

/// Stale when it comes, with a validator.
const STALE: &str = "cache-control: max-age=10\r\nage: 20\r\netag: \"v1\"\r\n";

#[tokio::test]
async fn s2_of_two_caches_on_one_way_the_first_alone_says_what_was_done() {
    let filters = "[cache: {}, cache: {}]";
    let cached = Cached::with(filters, |nth, _| numbered(nth, "cache-control: max-age=60\r\n")).await;
    for (line, fields, status) in [
        ("GET /", "", "tollhouse; fwd=uri-miss; stored"),
        ("GET /", "", "tollhouse; hit; ttl="),
        ("POST /x", "Content-Length: 0\r\n", "tollhouse; fwd=method"),
    ] {
        let answer = cached.send(line, fields).await;
        let said = answer.field("cache-status").unwrap_or_default();
        assert!(said.starts_with(status) && !said.contains(','), "{line}: {said}");
    }
    // The numbers of a request come before its line.
    until("the lines", || (cached.gateway.log().len() == 3).then_some(())).await;
    for result in ["miss", "hit", "bypass"] {
        let name = format!("tollhouse_cache_requests_total{{result=\"{result}\",route=\"all\"}}");
        assert_eq!(cached.gateway.number(&name).await, 1, "{result}");
    }
}

#[tokio::test]
async fn s2_the_cache_says_what_it_did() {
    let cached = Cached::new("{}", |nth, head| match (head.target(), head.field("if-none-match")) {
        ("/stale", Some(_)) => "HTTP/1.1 304 Not Modified\r\ncache-control: max-age=60\r\n\r\n".into(),
        ("/stale", None) => numbered(nth, STALE),
        ("/private", _) => numbered(nth, "cache-control: private\r\n"),
        ("/further", _) => numbered(nth, "cache-control: max-age=60\r\ncache-status: inner; hit\r\n"),
        _ => numbered(nth, "cache-control: max-age=60\r\nvary: foo\r\n"),
    })
    .await;
    for (line, fields, status) in [
        ("GET /", "", "tollhouse; fwd=uri-miss; stored"),
        ("GET /", "", "tollhouse; hit; ttl="),
        ("GET /", "Foo: 1\r\n", "tollhouse; fwd=vary-miss; stored"),
        ("GET /", "Cache-Control: no-cache\r\n", "tollhouse; fwd=request; stored"),
        ("GET /stale", "", "tollhouse; fwd=uri-miss; stored"),
        ("GET /stale", "", "tollhouse; fwd=stale; fwd-status=304; ttl="),
        ("GET /private", "", "tollhouse; fwd=uri-miss; detail=private"),
        ("GET /x", "Range: bytes=0-1\r\n", "tollhouse; fwd=partial"),
        ("GET /x", "Cache-Control: no-store\r\n", "tollhouse; fwd=bypass; detail=request-no-store"),
        ("POST /x", "Content-Length: 0\r\n", "tollhouse; fwd=method"),
        ("GET /further", "", "inner; hit, tollhouse; fwd=uri-miss; stored"),
    ] {
        let answer = cached.send(line, fields).await;
        let said = answer.head.all("cache-status").join(", ");
        assert!(said.starts_with(status), "{line} {fields}: {said}");
    }
    let line = cached.gateway.log_line(|line| line["path"] == "/private").await;
    assert_eq!(line["cache"], "fwd=uri-miss; detail=private");
}
