//! What requests with unsafe methods take out of caches, on whatever route it is (RFC 9111 s4.4).

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use tempfile::TempDir;

use crate::harness::cached::{Cached, numbered};
use crate::harness::{Gateway, Origin, exchange, get, soon};

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

/// An origin that numbers what it answers to GET, and how many that was.
async fn numbering() -> (Origin, Arc<AtomicUsize>) {
    let asked = Arc::new(AtomicUsize::new(0));
    let count = asked.clone();
    let origin = Origin::new(move |mut wire| {
        let count = count.clone();
        async move {
            while let Ok(head) = wire.head().await {
                let Ok(_) = wire.body(&head).await else { return };
                wire.send(match head.line.starts_with("GET ") {
                    true => numbered(count.fetch_add(1, Ordering::SeqCst) + 1, FRESH),
                    false => "HTTP/1.1 204 No Content\r\n\r\n".to_owned(),
                })
                .await;
            }
        }
    });
    (origin.await, asked)
}

#[tokio::test]
async fn what_changes_while_no_filter_is_a_cache_is_not_served_from_before() {
    let (origin, asked) = numbering().await;
    let with = |filters: &str| {
        format!(
            "upstreams: [{{name: o, backends: [{{address: \"{}\"}}]}}]\n\
             routes: [{{name: a, upstream: o, filters: [{filters}]}}]",
            origin.address
        )
    };
    let gateway = Gateway::administered(&with("cache: {}")).await;
    let reload = async |filters: &str| {
        gateway.rewrite_administered(&with(filters));
        assert_eq!(gateway.ask_admin("POST /api/reload", "").await.status, 200);
    };
    for _ in 0..2 {
        assert_eq!(get(gateway.address(), "/").await.text(), "answer 1");
    }
    reload("cors: {origins: ['*']}").await;
    let change = "PUT / HTTP/1.1\r\nHost: example.test\r\nContent-Length: 3\r\n\r\nnew";
    assert_eq!(exchange(gateway.address(), change).await.expect("an answer").status, 204);
    reload("cache: {}").await;
    for _ in 0..2 {
        assert_eq!(get(gateway.address(), "/").await.text(), "answer 2");
    }
    // While there is one, a reload keeps what is stored.
    reload("cache: {}, cors: {origins: ['*']}").await;
    assert_eq!(get(gateway.address(), "/").await.text(), "answer 2");
    assert_eq!(asked.load(Ordering::SeqCst), 2);
}

#[tokio::test]
async fn what_is_on_disk_goes_too_with_the_last_cache_though_its_directory_is_given_up_with_it() {
    let (origin, asked) = numbering().await;
    let folder = TempDir::new().expect("a temporary directory");
    let with = |server: &str, filters: &str| {
        format!(
            "server: {{cache: {{{server}}}}}\n\
             upstreams: [{{name: o, backends: [{{address: \"{}\"}}]}}]\n\
             routes: [{{name: a, upstream: o, filters: [{filters}]}}]",
            origin.address
        )
    };
    let kept = with(&format!("disk: {{path: \"{}\", size: 64MiB}}", folder.path().display()), "cache: {}");
    let mut gateway = Gateway::administered(&kept).await;
    assert_eq!(get(gateway.address(), "/").await.text(), "answer 1");
    let written = async { while gateway.number("tollhouse_cache_disk_writes_total").await != 1 {} };
    soon("it is written", written).await;
    gateway.rewrite_administered(&with("", ""));
    assert_eq!(gateway.ask_admin("POST /api/reload", "").await.status, 200);
    gateway.signal("TERM");
    assert!(gateway.ended().await.success());
    gateway.rewrite_administered(&kept);
    let gateway = gateway.again().await;
    for _ in 0..2 {
        assert_eq!(get(gateway.address(), "/").await.text(), "answer 2", "it may have changed meanwhile");
    }
    assert_eq!(asked.load(Ordering::SeqCst), 2);
}

#[tokio::test]
async fn a_change_that_is_hedged_takes_out_what_is_stored_too() {
    let (origin, asked) = numbering().await;
    let backend = format!("{{address: \"{}\"}}", origin.address);
    let gateway = Gateway::start(&format!(
        "upstreams: [{{name: o, backends: [{backend}, {backend}], hedge: {{after: 1h}}}}]
routes:
- {{name: read, match: {{paths: [/*], methods: [GET]}}, upstream: o, filters: [cache: {{}}]}}
- {{name: direct, match: {{paths: [/direct], methods: [DELETE]}}, upstream: o}}
- {{name: proxied, match: {{paths: [/proxied], methods: [DELETE]}}, upstream: o, direct: false}}
- {{name: held, match: {{paths: [/held], methods: [PUT]}}, upstream: o, filters: [buffer: {{}}]}}"
    ))
    .await;
    for (line, body) in [("DELETE /direct", ""), ("DELETE /proxied", ""), ("PUT /held", "new")] {
        let path = line.split(' ').nth(1).expect("a path");
        let before = get(gateway.address(), path).await.text();
        assert_eq!(get(gateway.address(), path).await.text(), before, "it is stored");
        let fields = format!("Host: example.test\r\nContent-Length: {}\r\n", body.len());
        let changed = exchange(gateway.address(), format!("{line} HTTP/1.1\r\n{fields}\r\n{body}")).await;
        assert_eq!(changed.expect("an answer").status, 204, "{line}");
        assert_ne!(get(gateway.address(), path).await.text(), before, "{line}");
    }
    assert_eq!(asked.load(Ordering::SeqCst), 6);
}
