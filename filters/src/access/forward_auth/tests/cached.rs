//! What is remembered of decisions, and for how long.

use std::time::Duration;

use super::asking;
use crate::testing::{Request, get};

const FILTER: &str = "- forward_auth:
    upstream: main
    about: [host]
    request_headers: [authorization]
    response_headers: [x-user]
    client_headers: [set-cookie]
    cache: {ttl: 10s, negative_ttl: 2s}";

fn by(token: &str) -> Request {
    get("/").header("authorization", token)
}

#[tokio::test]
async fn the_same_question_is_asked_once_within_its_time() {
    let (service, chain) = asking(FILTER);
    service.reply(200, &[("x-user", "alice")], []);
    for target in ["/", "/a?b", "/c"] {
        let request = get(target).header("authorization", "alice").header("x-other", target);
        let mut sent = chain.send(request).await.continues();
        assert_eq!(sent.attempt(1).await.headers["x-user"], "alice");
    }
    assert_eq!(service.requests().len(), 1);
    chain.clock.advance(Duration::from_secs(10));
    service.reply(403, &[], []);
    chain.send(by("alice")).await.responds(403);
    assert_eq!(service.requests().len(), 2);
}

#[tokio::test]
async fn another_question_is_another_decision() {
    let (service, chain) = asking(FILTER);
    let requests = [
        by("alice"),
        by("alic").header("authorization", "e"),
        by("bob"),
        get("/"),
        by("alice").with(|ctx| ctx.host = Some("b.test".into())),
    ];
    let count = requests.len();
    for request in requests {
        service.reply(200, &[], []);
        chain.send(request).await.continues();
    }
    assert_eq!(service.requests().len(), count);
}

#[tokio::test]
async fn two_versions_of_a_path_are_two_questions() {
    for asked in ["about: [uri]", "format: opa"] {
        let filter = format!("- forward_auth: {{upstream: main, {asked}, cache: {{ttl: 10s}}}}");
        let (service, chain) = asking(&filter);
        for version in ["1", "2", "1"] {
            service.reply(200, &[], [&br#"{"result": true}"#[..]]);
            let request = get("/orders").with(|ctx| {
                ctx.version = Some(version.into());
                ctx.whole_path = Some(format!("/v{version}/orders").into());
            });
            chain.send(request).await.continues();
        }
        assert_eq!(service.requests().len(), 2, "{asked}");
    }
}

#[tokio::test]
async fn a_refusal_has_a_time_of_its_own() {
    let (service, chain) = asking(FILTER);
    service.reply(401, &[("www-authenticate", "Bearer")], [&b"no"[..]]);
    for _ in 0..3 {
        let answer = chain.send(by("mallory")).await.responds(401);
        answer.header("www-authenticate", "Bearer").body("no");
    }
    chain.clock.advance(Duration::from_secs(2));
    service.reply(200, &[], []);
    chain.send(by("mallory")).await.continues();
    assert_eq!(service.requests().len(), 2);
    let (service, chain) = asking("- forward_auth: {upstream: main, cache: {ttl: 10s}}");
    for _ in 0..2 {
        service.reply(403, &[], []);
        chain.send(get("/")).await.responds(403);
    }
    assert_eq!(service.requests().len(), 2, "by default refusals are not remembered");
}

#[tokio::test]
async fn the_service_can_make_the_time_shorter_and_not_longer() {
    for (directive, lasts) in [
        ("no-store", 0),
        ("max-age=3", 3),
        ("private, max-age=\"3\"", 3),
        ("max-age=3600", 10),
        // RFC 9111 s5.2.2: whatever else they stand beside.
        ("max-age=60, no-store", 0),
        ("max-age=60, No-Cache", 0),
    ] {
        let (service, chain) = asking(FILTER);
        service.reply(200, &[("cache-control", directive)], []);
        service.reply(200, &[("cache-control", directive)], []);
        chain.send(by("alice")).await.continues();
        if lasts > 0 {
            chain.clock.advance(Duration::from_secs(lasts) - Duration::from_millis(1));
            chain.send(by("alice")).await.continues();
            assert_eq!(service.requests().len(), 1, "{directive}");
            chain.clock.advance(Duration::from_millis(1));
        }
        chain.send(by("alice")).await.continues();
        assert_eq!(service.requests().len(), 2, "{directive}");
    }
}

#[tokio::test]
async fn neither_failures_nor_cookies_are_remembered() {
    let (service, chain) = asking(FILTER);
    service.reply(500, &[], []);
    chain.send(by("alice")).await.responds(503);
    for _ in 0..2 {
        service.reply(200, &[("set-cookie", "s=1")], []);
        chain.send(by("alice")).await.continues();
    }
    assert_eq!(service.requests().len(), 3);
}

#[tokio::test]
async fn memory_is_bounded() {
    let (service, chain) = asking("- forward_auth: {upstream: main, cache: {ttl: 1h, size: 8KiB}}");
    for n in 0..500 {
        service.reply(200, &[], []);
        chain.send(by(&n.to_string())).await.continues();
    }
    for n in 0..500 {
        service.reply(200, &[], []);
        chain.send(by(&n.to_string())).await.continues();
    }
    let asked = service.requests().len();
    assert!(asked > 900, "of a thousand, {} were remembered in 8 KiB", 1000 - asked);
}
