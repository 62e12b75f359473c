//! TLS to origins: who is trusted, what is shown, what is shared.

use std::fmt::Write as _;
use std::net::SocketAddr;
use std::path::Path;

use crate::harness::secure_origin::Authority;
use crate::harness::{
    Answer, Gateway, Identity, Nginx, Origin, TlsOrigin, Wire, get, refused_to_start, until,
};

/// A route `/NAME` for each upstream with these keys.
async fn gateway(upstreams: &[(&str, SocketAddr, String)]) -> Gateway {
    let (mut entries, mut routes) = (String::new(), String::new());
    for (name, address, keys) in upstreams {
        writeln!(entries, "- {{name: {name}, {keys}, backends: [{{address: \"{address}\"}}]}}")
            .expect("memory");
        writeln!(routes, "- {{name: {name}, match: {{paths: [\"/{name}/*\"]}}, upstream: {name}}}")
            .expect("memory");
    }
    Gateway::start(&format!("upstreams:\n{entries}routes:\n{routes}")).await
}

fn trusting(authority: &Path, more: &str) -> String {
    format!("tls: {{sni: origin.test, ca: \"{}\"{more}}}", authority.display())
}

fn showing(identity: &Identity) -> String {
    let (certificate, key) = (identity.certificate.display(), identity.key.display());
    format!(", client_cert: \"{certificate}\", client_key: \"{key}\"")
}

/// Asks, and waits until the connection to the origin is free again.
async fn ask(gateway: &Gateway, path: &str) -> Answer {
    let logged = gateway.log().len();
    let answer = get(gateway.address(), path).await;
    until("the access log", || (gateway.log().len() > logged).then_some(())).await;
    answer
}

fn is_ok(answer: &Answer) -> bool {
    (answer.status, answer.text().as_str()) == (200, "ok")
}

#[tokio::test]
async fn an_origin_of_a_private_authority_is_reached_by_the_written_name() {
    let authority = Authority::new();
    let origin = TlsOrigin::new(&authority.issue("origin.test"), &["http/1.1"]).await;
    let gateway = gateway(&[("a", origin.address, trusting(&authority.file(), ""))]).await;
    for _ in 0..5 {
        assert!(is_ok(&ask(&gateway, "/a/").await));
    }
    let handshakes = origin.handshakes();
    assert_eq!((handshakes.len(), handshakes[0].name.as_deref()), (1, Some("origin.test")));
}

#[tokio::test]
async fn an_origin_that_cannot_be_trusted_is_a_502_and_the_log_says_why() {
    let (authority, stranger) = (Authority::new(), Authority::new());
    for (identity, reason) in [
        (stranger.issue("origin.test"), "UnknownIssuer"),
        (authority.issue("other.test"), "not valid for name"),
        (authority.expired("origin.test"), "expired"),
        (authority.self_signed("origin.test"), "invalid peer certificate"),
    ] {
        let origin = TlsOrigin::new(&identity, &["http/1.1"]).await;
        let open = "tls: {sni: origin.test, verify: false}".to_owned();
        let gateway = gateway(&[
            ("a", origin.address, trusting(&authority.file(), "")),
            ("open", origin.address, open),
        ])
        .await;
        let answer = get(gateway.address(), "/a/").await;
        assert_eq!((answer.status, answer.problem().as_str()), (502, "upstream-unreachable"), "{reason}");
        assert!(!answer.text().contains("ertificate"), "{answer:?}");
        let line = gateway.log_line(|line| line["route"] == "a").await;
        let said = line["reason"].as_str().unwrap_or_default();
        assert!(said.contains(reason), "{reason}: {line}");
        // The same origin, and nobody asks who it is.
        assert!(is_ok(&get(gateway.address(), "/open/").await), "{reason}");
    }
}

#[tokio::test]
async fn the_log_says_why_a_cache_cannot_trust_an_origin_too() {
    let (authority, stranger) = (Authority::new(), Authority::new());
    let origin = TlsOrigin::new(&stranger.issue("origin.test"), &["http/1.1"]).await;
    let gateway = Gateway::start(&format!(
        "upstreams: [{{name: a, {}, backends: [{{address: \"{}\"}}]}}]\n\
         routes: [{{name: a, upstream: a, filters: [cache: {{}}]}}]",
        trusting(&authority.file(), ""),
        origin.address
    ))
    .await;
    let answer = get(gateway.address(), "/").await;
    assert_eq!((answer.status, answer.problem().as_str()), (502, "upstream-unreachable"));
    let line = gateway.log_line(|line| line["route"] == "a").await;
    assert!(line["reason"].as_str().is_some_and(|reason| reason.contains("UnknownIssuer")), "{line}");
    assert_eq!(line["backend"], origin.address.to_string(), "{line}");
}

#[tokio::test]
async fn the_systems_authorities_do_not_vouch_for_a_private_one() {
    let authority = Authority::new();
    let origin = TlsOrigin::new(&authority.issue("origin.test"), &["http/1.1"]).await;
    let gateway = gateway(&[("a", origin.address, "tls: {sni: origin.test}".to_owned())]).await;
    assert_eq!(get(gateway.address(), "/a/").await.status, 502);
    assert!(origin.handshakes().is_empty());
}

#[tokio::test]
async fn a_connection_is_never_shared_by_upstreams_that_trust_differently() {
    let (authority, stranger) = (Authority::new(), Authority::new());
    for protocol in ["http/1.1", "h2"] {
        let identity = authority.issue("origin.test");
        let origin = TlsOrigin::new(&identity, &[protocol]).await;
        let upstream = |trust: String| format!("protocol: {protocol}, retries: {{max: 0}}, {trust}");
        let gateway = gateway(&[
            ("open", origin.address, upstream("tls: {sni: origin.test, verify: false}".to_owned())),
            ("right", origin.address, upstream(trusting(&authority.file(), ""))),
            ("shown", origin.address, upstream(trusting(&authority.file(), &showing(&identity)))),
            ("wrong", origin.address, upstream(trusting(&stranger.file(), ""))),
            ("again", origin.address, upstream(trusting(&authority.file(), ""))),
        ])
        .await;
        for (name, connections) in [("open", 1), ("open", 1), ("right", 2), ("shown", 3), ("right", 3)] {
            assert!(is_ok(&ask(&gateway, &format!("/{name}/")).await), "{protocol} {name}");
            assert_eq!(origin.connections(), connections, "{protocol} {name}");
        }
        // Connections that others trust idle in the pool, and are no way in.
        assert_eq!(get(gateway.address(), "/wrong/").await.status, 502, "{protocol}");
        assert_eq!(origin.connections(), 4, "{protocol}");
        // Whose trust is the same may share.
        assert!(is_ok(&ask(&gateway, "/again/").await), "{protocol}");
        assert_eq!(origin.connections(), 4, "{protocol}");
    }
}

#[tokio::test]
async fn nginx_sees_the_certificate_it_demands() {
    let (authority, stranger) = (Authority::new(), Authority::new());
    let server = authority.issue("origin.test");
    let directives = format!(
        "ssl_certificate {}; ssl_certificate_key {}; ssl_client_certificate {}; ssl_verify_client on;\n\
         location = /a/ {{ return 200 \"$ssl_client_verify\"; }} location = /b/ {{ return 200 b; }}\n\
         location = /c/ {{ return 200 c; }}",
        server.certificate.display(),
        server.key.display(),
        authority.file().display()
    );
    let nginx = Nginx::with(&[], "ssl", &directives).await;
    let (known, unknown) = (authority.issue("gateway.test"), stranger.issue("gateway.test"));
    let gateway = gateway(&[
        ("a", nginx.address, trusting(&authority.file(), &showing(&known))),
        ("b", nginx.address, trusting(&authority.file(), "")),
        ("c", nginx.address, trusting(&authority.file(), &showing(&unknown))),
    ])
    .await;
    let answer = get(gateway.address(), "/a/").await;
    assert_eq!((answer.status, answer.text().as_str()), (200, "SUCCESS"));
    // nginx answers 400 itself where the certificate is missing or not of its authority.
    for path in ["/b/", "/c/"] {
        assert_eq!(get(gateway.address(), path).await.status, 400, "{path}");
    }
}

#[tokio::test]
async fn auto_speaks_what_the_origin_prefers() {
    let authority = Authority::new();
    let identity = authority.issue("origin.test");
    for (protocols, spoken) in
        [(&["h2", "http/1.1"][..], Some("h2")), (&["http/1.1"], Some("http/1.1")), (&[], None)]
    {
        let origin = TlsOrigin::new(&identity, protocols).await;
        let upstream = format!("protocol: auto, {}", trusting(&authority.file(), ""));
        let gateway = gateway(&[("a", origin.address, upstream)]).await;
        for _ in 0..3 {
            assert!(is_ok(&ask(&gateway, "/a/").await), "{protocols:?}");
        }
        let handshakes = origin.handshakes();
        assert_eq!((handshakes.len(), handshakes[0].protocol.as_deref()), (1, spoken), "{protocols:?}");
    }
}

#[tokio::test]
async fn a_websocket_is_asked_for_in_http11_where_auto_would_speak_http2() {
    // RFC 9113 s8.6: HTTP/2 has no `Upgrade`.
    let authority = Authority::new();
    let origin = TlsOrigin::new(&authority.issue("origin.test"), &["h2", "http/1.1"]).await;
    let upstream = format!("protocol: auto, {}", trusting(&authority.file(), ""));
    let gateway = gateway(&[("a", origin.address, upstream)]).await;
    assert!(is_ok(&get(gateway.address(), "/a/").await));
    let mut client = Wire::connect(gateway.address()).await;
    client.send("GET /a/ HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n").await;
    assert!(is_ok(&client.answer().await.expect("an answer")));
    let spoken: Vec<_> = origin.handshakes().into_iter().map(|handshake| handshake.protocol).collect();
    assert_eq!(spoken, [Some("h2".to_owned()), Some("http/1.1".to_owned())]);
}

#[tokio::test]
async fn h2_is_not_spoken_to_an_origin_that_does_not_know_it() {
    let authority = Authority::new();
    let origin = TlsOrigin::new(&authority.issue("origin.test"), &["http/1.1"]).await;
    let upstream = format!("protocol: h2, {}", trusting(&authority.file(), ""));
    let gateway = gateway(&[("a", origin.address, upstream)]).await;
    assert_eq!(get(gateway.address(), "/a/").await.status, 502);
    let line = gateway.log_line(|line| line["route"] == "a").await;
    assert!(line["reason"].as_str().is_some_and(|reason| reason.contains("NoApplicationProtocol")), "{line}");
}

// RFC 9113 s3.2: without ALPN, TLS carries no HTTP/2.
#[tokio::test]
async fn where_h2_is_written_an_origin_without_alpn_gets_no_requests_on_any_way() {
    let authority = Authority::new();
    let origin = TlsOrigin::new(&authority.issue("origin.test"), &[]).await;
    let upstream = format!("protocol: h2, {}", trusting(&authority.file(), ""));
    let reason = "the backend does not speak HTTP/2";
    let unchecked = gateway(&[("a", origin.address, upstream.clone())]).await;
    let answer = get(unchecked.address(), "/a/").await;
    assert_eq!((answer.status, answer.problem().as_str()), (502, "upstream-unreachable"));
    let line = unchecked.log_line(|line| line["route"] == "a").await;
    assert_eq!((&line["reason"], &line["attempts"]), (&reason.into(), &2.into()), "{line}");
    // Probes find it out before any request does.
    let check = "health: {active: {type: http, interval: 20ms, timeout: 10s}}";
    let checked = gateway(&[("a", origin.address, format!("{upstream}, {check}"))]).await;
    let line = checked.says("a backend is unhealthy").await;
    assert!(line.contains(reason), "{line}");
    assert_eq!(get(checked.address(), "/a/").await.problem(), "no-backend");
}

#[tokio::test]
async fn a_probe_of_another_port_passes_there_without_http2() {
    let authority = Authority::new();
    let identity = authority.issue("origin.test");
    let (origin, managed) = (TlsOrigin::new(&identity, &["h2"]).await, TlsOrigin::new(&identity, &[]).await);
    for kind in ["http", "tcp"] {
        let check = format!("type: {kind}, port: {}, interval: 20ms, timeout: 10s", managed.address.port());
        let check = format!("health: {{active: {{{check}}}}}");
        let upstream = format!("protocol: h2, {}, {check}", trusting(&authority.file(), ""));
        let gateway = gateway(&[("a", origin.address, upstream)]).await;
        let before = managed.handshakes().len();
        // The second probe begins when the first one has been taken in.
        until("two probes", || (managed.handshakes().len() >= before + 2).then_some(())).await;
        assert!(is_ok(&get(gateway.address(), "/a/").await), "{kind}");
        assert_eq!(gateway.said("a backend is unhealthy"), 0, "{kind}");
    }
}

#[tokio::test]
async fn a_plain_origin_behind_tls_is_a_502() {
    let authority = Authority::new();
    let plain = Origin::new(|mut wire| async move {
        wire.some().await;
        wire.send("HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n").await;
    })
    .await;
    let gateway = gateway(&[("a", plain.address, trusting(&authority.file(), ""))]).await;
    let answer = get(gateway.address(), "/a/").await;
    assert_eq!((answer.status, answer.problem().as_str()), (502, "upstream-unreachable"));
}

#[test]
fn a_name_that_would_verify_nothing_is_refused() {
    let document = "version: 1\nadmin: {address: none}\nlisteners: [{name: a, address: \"127.0.0.1:0\"}]\n\
                    upstreams: [{name: o, backends: [{address: \"127.0.0.1:1\"}], tls: {TLS}}]\n\
                    routes: [{name: r, upstream: o}]\n";
    for tls in ["sni: \"\"", "verify: true"] {
        let (code, said) = refused_to_start(&document.replace("TLS", tls));
        assert!(code != Some(0) && said.contains("tls.sni"), "{tls}: {said}");
    }
}
