//! What requests with unsafe methods take out of caches, on whatever route it is (RFC 9111 s4.4).

use crate::harness::cached::{Cached, numbered};

const FRESH: &str = "cache-control: max-age=3600\r\n";

/// A cache for reading, in a service whose paths may name versions, and routes without one for all else.
const ROUTES: &str = "
services:
- {name: api, versioning: {from: [path], default: '2'}, versions: {'1': {upstream: o}, '2': {upstream: o}}}
routes:
- {name: read, service: api, match: {paths: [/api/*], methods: [GET]}, filters: [cache: {key: {query: {except: [utm]}}}]}
- {name: write, service: api, match: {paths: [/api/*], methods: [POST, PUT, DELETE, PATCH, FOO]}}
- {name: old, match: {paths: [/v1/old/*], methods: [GET]}, upstream: o, filters: [cache: {}]}
- {name: other, match: {paths: [/*]}, upstream: o}
";

async fn routed() -> Cached {
    Cached::routed("", ROUTES, |nth, head| match head.field("x-answers") {
        Some(answer) => format!("HTTP/1.1 {}\r\ncontent-length: 0\r\n\r\n", answer.replace('|', "\r\n")),
        None => numbered(nth, FRESH),
    })
    .await
}

/// Whether it is no longer stored; it is afterwards.
async fn is_gone(cached: &Cached, path: &str) -> bool {
    let before = cached.asked();
    assert_eq!(cached.get(path).await.status, 200);
    cached.asked() > before
}

/// Sends a request with a body that is answered so.
async fn change(cached: &Cached, line: &str, answer: &str) {
    let fields = format!("content-length: 0\r\nx-answers: {answer}\r\n");
    let status = cached.send(line, &fields).await.status;
    assert!(answer.starts_with(&status.to_string()), "{line}: {status}");
}

#[tokio::test]
async fn a_change_takes_out_what_is_stored_though_its_own_route_has_no_cache() {
    let cached = routed().await;
    assert!(is_gone(&cached, "/api/a?b").await);
    for method in ["POST", "PUT", "DELETE", "PATCH", "FOO"] {
        for (answer, gone) in [
            ("200 OK", true),
            ("204 No Content", true),
            ("303 See Other", true),
            ("404 Not Found", false),
            ("500 No", false),
        ] {
            change(&cached, &format!("{method} /api/a?b"), answer).await;
            assert_eq!(is_gone(&cached, "/api/a?b").await, gone, "{method} {answer}");
        }
    }
    for line in ["POST /api/a", "POST /api/a?c", "POST /api/a/b?b", "GET /other", "OPTIONS /other"] {
        change(&cached, line, "200 OK").await;
        assert!(!is_gone(&cached, "/api/a?b").await, "{line} is another URL or changes nothing");
    }
}

#[tokio::test]
async fn a_change_is_one_in_every_version_and_however_a_query_is_counted() {
    let cached = routed().await;
    for (stored, line) in [
        ("/api/a?b", "POST /v1/api/a?b"),
        ("/v1/api/a?b", "POST /api/a?b"),
        ("/v1/api/a", "POST /v2/api/a"),
        ("/api/a?b&utm=1", "POST /api/a?b&utm=2"),
        ("/v1/old/x", "PUT /v1/old/x"),
    ] {
        assert!(is_gone(&cached, stored).await);
        assert!(!is_gone(&cached, stored).await);
        change(&cached, line, "200 OK").await;
        assert!(is_gone(&cached, stored).await, "{line} changes {stored}");
    }
}

#[tokio::test]
async fn what_an_answer_names_is_taken_out_too_if_it_is_of_the_same_origin() {
    let cached = routed().await;
    for (stored, answer) in [
        ("/api/b", "201 Created|location: /api/b"),
        ("/api/b", "201 Created|content-location: b"),
        ("/api/b", "201 Created|location: http://example.test/api/c/../b"),
        ("/v1/api/b", "201 Created|location: /v1/api/b"),
        ("/api/b", "201 Created|location: /v2/api/b"),
        ("/v1/old/b", "201 Created|location: /v1/old/b"),
    ] {
        assert!(is_gone(&cached, stored).await || !is_gone(&cached, stored).await);
        change(&cached, "POST /api/a", answer).await;
        assert!(is_gone(&cached, stored).await, "{answer} changes {stored}");
    }
    for answer in
        ["201 Created|location: http://other.test/api/b", "400 Bad|location: /api/b", "200 OK|location: /%zz"]
    {
        change(&cached, "POST /api/a", answer).await;
        assert!(!is_gone(&cached, "/api/b").await, "{answer}");
    }
}
