//! Copies of requests, over sockets: what they are, that no request notices them, and how answers differ.

use serde_json::Value;

use crate::harness::{Gateway, Head, Origin, Wire, get, noise, refusing, request};

/// A route whose requests are copied. Its way is direct for requests without a body.
async fn mirrored(origin: &Origin, target: std::net::SocketAddr, options: &str) -> Gateway {
    Gateway::administered(&format!(
        "upstreams:\n- {{name: origin, backends: [{{address: \"{}\"}}]}}\n\
         - {{name: shadow, backends: [{{address: \"{target}\"}}]}}\n\
         routes:\n- name: all\n  upstream: origin\n  \
         filters: [{{mirror: {{upstream: shadow{options}}}, name: shadowing}}]",
        origin.address
    ))
    .await
}

async fn mirrors(gateway: &Gateway) -> Value {
    let list: Value =
        serde_json::from_str(&gateway.ask_admin("GET /api/mirrors", "").await.text()).expect("JSON");
    list["mirrors"][0].clone()
}

/// Waits until so many copies came to this.
async fn copies(gateway: &Gateway, of: &str, wanted: u64) -> Value {
    loop {
        let mirror = crate::harness::soon(of, mirrors(gateway)).await;
        let counts = mirror["copies"].as_array().expect("counts");
        let count = counts.iter().find(|count| count["of"] == of).expect("one of these")["count"].as_u64();
        if count >= Some(wanted) {
            assert_eq!(count, Some(wanted), "{mirror}");
            return mirror;
        }
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn a_copy_is_what_the_upstream_got() {
    let (origin, shadow) = (Origin::echo().await, Origin::echo().await);
    let gateway = mirrored(&origin, shadow.address, "").await;
    assert_eq!(get(gateway.address(), "/a?b=c").await.status, 200);
    let body = noise(50_000);
    let mut client = Wire::connect(gateway.address()).await;
    client.send("POST /b HTTP/1.1\r\nHost: example.test\r\nContent-Length: 50000\r\n\r\n").await;
    client.send(&body).await;
    assert!(client.answer().await.expect("an answer").body.ends_with(&body));
    copies(&gateway, "answered", 2).await;
    for (seen, copied) in origin.heads().iter().zip(&shadow.heads()) {
        assert_eq!(seen.line, copied.line);
        assert_eq!(copied.field("x-tollhouse-mirror"), Some("shadowing"));
        for name in ["host", "via", "x-forwarded-for", "content-length", "traceparent"] {
            assert_eq!(seen.field(name), copied.field(name), "{name}");
        }
        assert_eq!(seen.field("x-tollhouse-mirror"), None);
    }
}

#[tokio::test]
async fn a_copy_has_no_credentials_that_are_for_the_upstream_alone() {
    let auth = "{upstream_auth: {basic: {username: gw, password: s3cret}}}";
    let mirror = "{mirror: {upstream: shadow}, name: shadowing}";
    for filters in [format!("{auth}, {mirror}"), format!("{mirror}, {auth}")] {
        let (origin, shadow) = (Origin::echo().await, Origin::echo().await);
        let gateway = Gateway::administered(&format!(
            "upstreams:\n- {{name: origin, backends: [{{address: \"{}\"}}]}}\n\
             - {{name: shadow, backends: [{{address: \"{}\"}}]}}\n\
             routes: [{{name: all, upstream: origin, filters: [{filters}]}}]",
            origin.address, shadow.address
        ))
        .await;
        let fields = "Authorization: Bearer mine\r\nX-A: 1\r\n";
        assert_eq!(request(gateway.address(), "GET /", fields).await.status, 200);
        copies(&gateway, "answered", 1).await;
        assert_eq!(origin.head().all("authorization"), ["Basic Z3c6czNjcmV0"], "{filters}");
        let copy = shadow.head();
        assert_eq!((copy.field("authorization"), copy.field("x-a")), (None, Some("1")), "{filters}");
    }
}

#[tokio::test]
async fn behind_a_cache_only_what_that_does_not_hold_is_copied_as_the_upstream_gets_it() {
    let (origin, shadow) = (Origin::echo().await, Origin::echo().await);
    let gateway = Gateway::administered(&format!(
        "upstreams:\n- {{name: origin, backends: [{{address: \"{}\"}}]}}\n\
         - {{name: shadow, backends: [{{address: \"{}\"}}]}}\n\
         routes:\n- name: all\n  upstream: origin\n  filters: [{{rewrite: {{strip_prefix: /api}}}}, \
         {{cache: {{ttl: 60s}}}}, {{mirror: {{upstream: shadow}}, name: shadowing}}]",
        origin.address, shadow.address
    ))
    .await;
    for (path, count) in [("/api/a", 1), ("/api/b", 2)] {
        for _ in 0..3 {
            assert_eq!(get(gateway.address(), path).await.status, 200);
        }
        copies(&gateway, "answered", count).await;
    }
    let (seen, copied) = (origin.heads(), shadow.heads());
    let lines = |heads: &[Head]| heads.iter().map(|head| head.line.clone()).collect::<Vec<_>>();
    assert_eq!(seen.iter().map(Head::target).collect::<Vec<_>>(), ["/a", "/b"]);
    assert_eq!(lines(&seen), lines(&copied));
    for (seen, copied) in seen.iter().zip(&copied) {
        for name in ["host", "via", "x-forwarded-for", "traceparent"] {
            assert_eq!(seen.field(name), copied.field(name), "{name}");
        }
    }
}

#[tokio::test]
async fn a_target_that_hangs_takes_its_places_and_nothing_else() {
    let origin = Origin::echo().await;
    let (shadow, mut events) = Origin::silent().await;
    let gateway = mirrored(&origin, shadow.address, ", in_flight: 3, timeout: 1h").await;
    for request in 0..40 {
        assert_eq!(get(gateway.address(), &format!("/{request}")).await.status, 200);
    }
    copies(&gateway, "no_room", 37).await;
    for _ in 0..3 {
        assert_eq!(events.recv().await, Some("asked"));
    }
    assert_eq!((origin.heads().len(), shadow.connections()), (40, 3));
}

#[tokio::test]
async fn a_target_that_is_too_slow_gives_its_place_back() {
    let origin = Origin::echo().await;
    let (shadow, _events) = Origin::silent().await;
    let gateway = mirrored(&origin, shadow.address, ", in_flight: 1, timeout: 50ms").await;
    for request in 1..=3 {
        assert_eq!(get(gateway.address(), "/").await.status, 200);
        copies(&gateway, "timed_out", request).await;
    }
}

#[tokio::test]
async fn a_target_that_is_gone_or_breaks_off_fails_no_request() {
    let origin = Origin::echo().await;
    let dying = [b"".as_slice(), b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\n12", b"nonsense\r\n\r\n"];
    let mut targets = vec![refusing().await];
    let mut origins = Vec::new();
    for bytes in dying {
        origins.push(Origin::dying_after(bytes).await);
        targets.extend(origins.last().map(|origin| origin.address));
    }
    for target in targets {
        for options in ["", ", diff: {}"] {
            let gateway = mirrored(&origin, target, options).await;
            for _ in 0..5 {
                assert_eq!(get(gateway.address(), "/").await.status, 200);
            }
            copies(&gateway, "failed", 5).await;
        }
    }
}

#[tokio::test]
async fn a_body_over_the_cap_goes_to_the_upstream_alone() {
    let (origin, shadow) = (Origin::giving_back().await, Origin::echo().await);
    let gateway = mirrored(&origin, shadow.address, ", max_body: 1KiB").await;
    let body = noise(2000);
    let mut client = Wire::connect(gateway.address()).await;
    client.send("POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n7d0\r\n").await;
    client.send(&body).await;
    client.send("\r\n0\r\n\r\n").await;
    assert_eq!(client.answer().await.expect("an answer").body, body);
    copies(&gateway, "too_large", 1).await;
    assert_eq!(shadow.connections(), 0);
}

fn json(status: &str, fields: &str, body: &str) -> String {
    let length = body.len();
    format!(
        "HTTP/1.1 {status}\r\ncontent-type: application/json\r\n{fields}content-length: {length}\r\n\r\n{body}"
    )
}

#[tokio::test]
async fn answers_are_compared_and_examples_tell_what_differs_without_values() {
    let old =
        json("200 OK", "x-build: 1\r\n", r#"{"name":"alice","at":1,"items":[{"id":1,"price":"s3cret"}]}"#);
    let new =
        json("200 OK", "x-build: 2\r\n", r#"{"items":[{"price":"other","id":9}],"name":"alice","at":2}"#);
    let (origin, shadow) = (Origin::answering(old.clone()).await, Origin::answering(new).await);
    let options = ", diff: {ignore: [/at, \"/items/*/id\"], ignore_headers: [x-build]}";
    let gateway = mirrored(&origin, shadow.address, options).await;
    for (path, count) in [("/users/1?token=s3cret", 1), ("/users/2", 2)] {
        assert_eq!(get(gateway.address(), path).await.status, 200);
        // Copies of two requests may be answered in any order.
        until_compared(&gateway, count).await;
    }
    copies(&gateway, "answered", 2).await;
    let mirror = until_compared(&gateway, 2).await;
    assert_eq!((mirror["different"].as_u64(), mirror["ratio"].as_f64()), (Some(2), Some(1.0)));
    let example = &mirror["examples"][0];
    assert_eq!(example["differences"], serde_json::json!(["body /items/0/price differs"]));
    assert_eq!((example["path"].as_str(), example["status"].as_u64()), (Some("/users/1"), Some(200)));
    assert!(!mirror.to_string().contains("s3cret"), "{mirror}");
    let metrics = gateway.ask_admin("GET /metrics", "").await.text();
    assert!(metrics.contains("tollhouse_mirror_compared_total{mirror=\"shadowing\"} 2"), "{metrics}");
    assert!(
        metrics.contains("tollhouse_mirror_differences_total{mirror=\"shadowing\",part=\"body\"} 2"),
        "{metrics}"
    );
    // The same answer, and one whose status is another.
    let (same, failing) = (Origin::answering(old).await, Origin::answering(json("500 No", "", "{}")).await);
    for (target, different) in [(&same, 0), (&failing, 1)] {
        let gateway = mirrored(&origin, target.address, ", diff: {}").await;
        assert_eq!(request(gateway.address(), "GET /", "").await.status, 200);
        let mirror = until_compared(&gateway, 1).await;
        assert_eq!(mirror["different"].as_u64(), Some(different), "{mirror}");
    }
}

#[tokio::test]
async fn the_cookie_by_which_clients_stay_with_a_backend_is_no_difference() {
    let same = json("200 OK", "", "{}");
    for direct in [true, false] {
        let (origin, shadow) = (Origin::answering(same.clone()).await, Origin::answering(same.clone()).await);
        let gateway = Gateway::administered(&format!(
            "upstreams:\n- {{name: origin, balance: {{sticky: {{cookie: lb, secret: s3cret}}}}, \
             backends: [{{address: \"{}\"}}]}}\n- {{name: shadow, backends: [{{address: \"{}\"}}]}}\n\
             routes:\n- name: all\n  upstream: origin\n  direct: {direct}\n  \
             filters: [{{mirror: {{upstream: shadow, diff: {{}}}}, name: shadowing}}]",
            origin.address, shadow.address
        ))
        .await;
        let answer = get(gateway.address(), "/").await;
        assert!(answer.field("set-cookie").is_some_and(|cookie| cookie.starts_with("lb=")), "{answer:?}");
        let mirror = until_compared(&gateway, 1).await;
        assert_eq!(mirror["different"].as_u64(), Some(0), "{mirror}");
    }
}

#[tokio::test]
async fn what_a_cache_has_confirmed_is_compared_with_nothing() {
    const STALE: &str = "cache-control: max-age=10\r\nage: 20\r\netag: \"v\"\r\n";
    let origin = Origin::new(|mut wire: Wire| async move {
        while let Ok(head) = wire.head().await {
            wire.send(match head.field("if-none-match") {
                Some(_) => "HTTP/1.1 304 Not Modified\r\netag: \"v\"\r\n\r\n".to_owned(),
                None => json("200 OK", STALE, "{}"),
            })
            .await;
        }
    })
    .await;
    let shadow = Origin::answering(json("200 OK", STALE, "{}")).await;
    let gateway = Gateway::administered(&format!(
        "upstreams:\n- {{name: origin, backends: [{{address: \"{}\"}}]}}\n\
         - {{name: shadow, backends: [{{address: \"{}\"}}]}}\n\
         routes:\n- name: all\n  upstream: origin\n  filters: [{{cache: {{}}}}, \
         {{mirror: {{upstream: shadow, diff: {{}}}}, name: shadowing}}]",
        origin.address, shadow.address
    ))
    .await;
    // The second one is answered 304, as the cache asks whether what it has still holds.
    for (path, count) in [("/a", 1), ("/a", 2), ("/b", 3)] {
        assert_eq!(get(gateway.address(), path).await.text(), "{}");
        copies(&gateway, "answered", count).await;
    }
    let mirror = until_compared(&gateway, 2).await;
    assert_eq!((mirror["compared"].as_u64(), mirror["different"].as_u64()), (Some(2), Some(0)), "{mirror}");
}

async fn until_compared(gateway: &Gateway, count: u64) -> Value {
    loop {
        let mirror = crate::harness::soon("comparisons", mirrors(gateway)).await;
        if mirror["compared"].as_u64() >= Some(count) {
            return mirror;
        }
        tokio::task::yield_now().await;
    }
}
