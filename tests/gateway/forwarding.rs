//! What the origin is told about the client.

use crate::harness::{Gateway, H2c, Head, Origin, Wire, request};

/// What the origin sees of a GET with these further fields.
async fn seen(server: &str, fields: &str) -> Head {
    let origin = Origin::echo().await;
    let gateway = Gateway::before(&origin, server).await;
    let answer = request(gateway.address(), "GET /a?b=c", fields).await;
    assert_eq!(answer.status, 200, "{answer:?}");
    origin.head()
}

const TRUSTED: &str = "server: {trusted_proxies: [127.0.0.0/8, 10.0.0.0/8]}";

#[tokio::test]
async fn the_origin_is_told_who_asked_for_what_and_how() {
    let head = seen("", "").await;
    assert_eq!(head.line, "GET /a?b=c HTTP/1.1");
    assert_eq!(head.field("host"), Some("example.test"));
    assert_eq!(head.field("x-forwarded-for"), Some("127.0.0.1"));
    assert_eq!(head.field("x-forwarded-proto"), Some("http"));
    assert_eq!(head.field("x-forwarded-host"), Some("example.test"));
    assert_eq!(head.field("forwarded"), Some("for=127.0.0.1;host=\"example.test\";proto=http"));
    let via = head.field("via").expect("a field");
    assert!(via.strip_prefix("1.1 tollhouse-").is_some_and(|name| name.len() == 8), "{via}");
}

#[tokio::test]
async fn an_untrusted_clients_claims_never_reach_the_origin() {
    let forged = "X-Forwarded-For: 6.6.6.6\r\nX-Forwarded-For: 7.7.7.7\r\nX-FORWARDED-PROTO: https\r\n\
                  X-Forwarded-Host: evil.test\r\nX-Forwarded-Port: 666\r\nForwarded: for=6.6.6.6\r\n\
                  X-Real-IP: 6.6.6.6\r\nX-Tollhouse-Consumer: admin\r\nx-tollhouse-anything: 6.6.6.6\r\n";
    let head = seen("", forged).await;
    assert_eq!(head.field("x-forwarded-for"), Some("127.0.0.1"));
    assert_eq!(head.field("x-forwarded-proto"), Some("http"));
    assert_eq!(head.field("x-forwarded-host"), Some("example.test"));
    assert_eq!(head.field("forwarded"), Some("for=127.0.0.1;host=\"example.test\";proto=http"));
    for (name, value) in &head.fields {
        let name = name.to_ascii_lowercase();
        assert!(!name.starts_with("x-tollhouse-") && name != "x-real-ip" && name != "x-forwarded-port");
        assert!(!value.contains("6.6.6.6") && !value.contains("evil"), "{name}: {value}");
    }
}

#[tokio::test]
async fn a_connection_option_cannot_remove_what_the_gateway_says() {
    // RFC 9110 s7.6.1 lets Connection name fields; the gateway's own are written after those are gone.
    let origin = Origin::echo().await;
    let gateway = Gateway::before(&origin, "").await;
    for name in ["X-Forwarded-For", "Forwarded", "Via", "Host", "traceparent"] {
        let answer = request(gateway.address(), "GET /", &format!("Connection: {name}\r\n")).await;
        assert!(matches!(answer.status, 200 | 400), "{name}: {answer:?}");
    }
    for head in origin.heads() {
        for name in ["x-forwarded-for", "forwarded", "via", "host", "traceparent"] {
            assert!(head.field(name).is_some(), "{name}: {head:?}");
        }
    }
}

#[tokio::test]
async fn a_trusted_proxys_list_is_continued() {
    let head = seen(TRUSTED, "X-Forwarded-For: 203.0.113.9, 10.1.1.1\r\nForwarded: for=203.0.113.9\r\n\
                              X-Forwarded-Proto: https\r\nX-Forwarded-Host: outer.test\r\nX-Real-IP: 203.0.113.9\r\n")
        .await;
    assert_eq!(head.field("x-forwarded-for"), Some("203.0.113.9, 10.1.1.1, 127.0.0.1"));
    assert_eq!(head.field("x-forwarded-proto"), Some("https"));
    assert_eq!(head.field("x-forwarded-host"), Some("outer.test"));
    assert_eq!(head.all("forwarded").join(", ").matches("for=").count(), 2, "{head:?}");
    assert!(head.all("forwarded").join(", ").starts_with("for=203.0.113.9"), "{head:?}");
}

#[tokio::test]
async fn the_clients_address_is_the_rightmost_one_that_is_not_trusted() {
    let origin = Origin::echo().await;
    let gateway = Gateway::before(&origin, TRUSTED).await;
    for (n, (list, client)) in [
        ("6.6.6.6, 203.0.113.9, 10.1.1.1", "203.0.113.9"),
        ("203.0.113.9", "203.0.113.9"),
        ("10.2.2.2, 10.1.1.1", "10.2.2.2"),
        ("6.6.6.6, garbage, 10.1.1.1", "10.1.1.1"),
        ("6.6.6.6, [2001:db8::1]:443", "2001:db8::1"),
    ]
    .into_iter()
    .enumerate()
    {
        request(gateway.address(), &format!("GET /{n}"), &format!("X-Forwarded-For: {list}\r\n")).await;
        let line = gateway.log_line(|line| line["path"] == format!("/{n}")).await;
        assert_eq!(line["client"], client, "{list}");
    }
}

#[tokio::test]
async fn what_concerns_one_connection_is_not_passed_on() {
    let head = seen(
        "",
        "Connection: x-hop, close\r\nX-Hop: 1\r\nKeep-Alive: timeout=5\r\nProxy-Connection: close\r\n\
         Proxy-Authorization: Basic eDp5\r\nTE: trailers\r\nTrailer: x-t\r\nUpgrade: h2c\r\nX-Kept: 1\r\n",
    )
    .await;
    for name in [
        "connection",
        "x-hop",
        "keep-alive",
        "proxy-connection",
        "proxy-authorization",
        "te",
        "trailer",
        "upgrade",
    ] {
        assert_eq!(head.field(name), None, "{name}");
    }
    assert_eq!(head.field("x-kept"), Some("1"));
}

#[tokio::test]
async fn what_concerns_the_origins_connection_stays_with_it() {
    let origin = Origin::answering(
        "HTTP/1.1 200 OK\r\nConnection: x-hop, keep-alive\r\nX-Hop: 1\r\nKeep-Alive: timeout=9\r\n\
         Proxy-Connection: keep-alive\r\nUpgrade: h2c\r\nX-Kept: 1\r\nContent-Length: 2\r\n\r\nok",
    )
    .await;
    let gateway = Gateway::before(&origin, "").await;
    let answer = request(gateway.address(), "GET /", "").await;
    for name in ["x-hop", "keep-alive", "proxy-connection", "upgrade"] {
        assert_eq!(answer.field(name), None, "{name}");
    }
    assert_eq!((answer.field("x-kept"), answer.text().as_str()), (Some("1"), "ok"));
    let over_h2 = H2c::connect(gateway.address()).await.get("/").await;
    for name in ["x-hop", "keep-alive", "proxy-connection", "upgrade", "connection"] {
        assert_eq!(over_h2.field(name), None, "{name}");
    }
}

#[tokio::test]
async fn a_trace_is_continued_with_another_span_or_started() {
    // W3C Trace Context s3.2.
    let trace = "0af7651916cd43dd8448eb211c80319c";
    let head = seen("", &format!("traceparent: 00-{trace}-b7ad6b7169203331-01\r\n")).await;
    let given = head.field("traceparent").expect("a field");
    assert!(given.starts_with(&format!("00-{trace}-")) && given.ends_with("-01"), "{given}");
    assert!(!given.contains("b7ad6b7169203331"), "{given}");
    for broken in ["00-0-0-01", &format!("00-{}-b7ad6b7169203331-01", "0".repeat(32)), "junk"] {
        let head = seen("", &format!("traceparent: {broken}\r\n")).await;
        let made = head.field("traceparent").expect("a field");
        let parts: Vec<_> = made.split('-').map(str::len).collect();
        assert_eq!(parts, [2, 32, 16, 2], "{made}");
        assert!(!made.contains(&"0".repeat(32)), "{made}");
    }
}

#[tokio::test]
async fn the_state_of_a_trace_goes_with_it_and_flags_that_nobody_knows_do_not() {
    // W3C Trace Context s4.3: where a traceparent cannot be read, "all tracestate entries" are removed; s3.2.2.5: other
    // flags are set to zero.
    let parent = "0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331";
    let state = "tracestate: congo=a\r\nTraceState: rojo=b\r\n";
    let both = "upstreams: [{name: origin, backends: [{address: ADDRESS}]}]\n\
         routes:\n- {name: direct, match: {paths: [/direct]}, upstream: origin}\n\
         - {name: proxied, match: {paths: [/proxied]}, upstream: origin, direct: false}";
    let origin = Origin::echo().await;
    let gateway = Gateway::start(&both.replace("ADDRESS", &format!("'{}'", origin.address))).await;
    for (given, goes_on) in [(format!("00-{parent}-ff"), true), ("junk".to_owned(), false)] {
        for path in ["/direct", "/proxied"] {
            let fields = format!("traceparent: {given}\r\n{state}");
            assert_eq!(request(gateway.address(), &format!("GET {path}"), &fields).await.status, 200);
            let heads = origin.heads();
            let head = heads.last().expect("a request");
            let wanted: &[&str] = if goes_on { &["congo=a", "rojo=b"] } else { &[] };
            assert_eq!(head.all("tracestate"), wanted, "{path} {given}");
            let made = head.field("traceparent").expect("a field");
            assert!(made.ends_with(if goes_on { "-03" } else { "-00" }), "{path} {given}: {made}");
        }
    }
}

#[tokio::test]
async fn a_request_that_comes_back_to_the_gateway_ends_the_loop() {
    // Its own address is known only once it runs: so the first document goes elsewhere.
    let origin = Origin::echo().await;
    let gateway = Gateway::before(&origin, "").await;
    let itself = gateway.address();
    let rest = format!(
        "upstreams: [{{name: origin, backends: [{{address: \"{itself}\"}}]}}]\nroutes: [{{name: all, upstream: origin}}]\n"
    );
    std::fs::write(gateway.file(), gateway.text(&rest)).expect("write");
    gateway.says("configuration reloaded").await;
    let answer = request(itself, "GET /", "").await;
    assert_eq!((answer.status, answer.problem().as_str()), (508, "loop"));
    // The outer request was answered 508 too, by an upstream, and may be logged first.
    gateway.log_line(|line| line["status"] == 508 && line["error"] == "loop").await;
}

#[tokio::test]
async fn a_forged_forwarded_host_changes_no_route() {
    let gateway = Gateway::start(
        "routes:\n- {name: inner, match: {hosts: [inner.test]}, respond: {status: 200, body: inner}}\n\
         - {name: outer, respond: {status: 200, body: outer}}\nserver: {trusted_proxies: [127.0.0.1]}",
    )
    .await;
    let answer = request(gateway.address(), "GET /", "X-Forwarded-Host: inner.test\r\n").await;
    assert_eq!(answer.text(), "outer");
}

#[tokio::test]
async fn the_host_of_an_absolute_target_wins() {
    // RFC 9112 s3.2.2: the Host field is ignored then.
    let origin = Origin::echo().await;
    let gateway = Gateway::before(&origin, "").await;
    let mut client = Wire::connect(gateway.address()).await;
    client.send("GET http://target.test/x HTTP/1.1\r\nHost: target.test\r\n\r\n").await;
    assert_eq!(client.answer().await.expect("an answer").status, 200);
    assert_eq!((origin.head().target(), origin.head().field("host")), ("/x", Some("target.test")));
}

#[tokio::test]
async fn the_upstream_chooses_the_host_however_the_client_names_it() {
    let origin = Origin::echo().await;
    let gateway = Gateway::start(&format!(
        "upstreams: [{{name: origin, host: inner.test, backends: [{{address: \"{}\"}}]}}]\n\
         routes: [{{name: all, upstream: origin}}]",
        origin.address
    ))
    .await;
    assert_eq!(request(gateway.address(), "GET /", "").await.status, 200);
    assert_eq!(request(gateway.address(), "GET http://example.test/", "").await.status, 200);
    assert_eq!(H2c::connect(gateway.address()).await.get("/").await.status, 200);
    for head in origin.heads() {
        assert_eq!((head.target(), head.field("host")), ("/", Some("inner.test")));
        assert_eq!(head.field("x-forwarded-host"), Some("example.test"));
    }
}
