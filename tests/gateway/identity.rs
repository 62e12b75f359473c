//! Who calls, over sockets: what clients are told, what upstreams see, and how keys end.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, SystemTime};

use aws_lc_rs::hmac;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;

use crate::harness::{Gateway, H2c, Origin, Wire, get, request, soon, until};

/// SHA-256 of `key-one` and `key-two`.
const ONE: &str = "9b346041bc9a49574eb2665b2ad2a0a3f9f9cce4e42f5d1f26deb8a256b5966a";
const TWO: &str = "c8df51469c308a59bfbd48a3e0bdd228ca922d6032035f5ef6e4ad45f473a9f3";

/// Of `alice`, until 2100, by HS256 with the secret of `corp`.
const TOKEN: &str = "eyJhbGciOiJIUzI1NiIsInR5cCI6IkpXVCJ9.eyJzdWIiOiJhbGljZSIsImV4cCI6NDEwMjQ0NDgwMH0.OGNhmFxMdQSWdD0NAicxhHtFlCp3lXIkMgWoOxxtrhI";

/// One route that asks for keys, and one that does not; the consumer has these keys.
fn document(origin: &Origin, keys: &[&str]) -> String {
    let keys: Vec<String> = keys
        .iter()
        .enumerate()
        .map(|(at, hash)| format!("{{type: api_key, id: k{at}, hash: \"sha256:{hash}\"}}"))
        .collect();
    format!(
        "upstreams: [{{name: origin, backends: [{{address: \"{}\"}}]}}]
identities:
  keys: {{type: api_key, from: [header:x-key, query:key], hide: true}}
  corp: {{type: jwt, algorithms: [HS256], secret: \"a secret of thirty-two bytes, or so\"}}
consumers:
  - {{name: acme, credentials: [{}]}}
routes:
  - name: open
    match: {{paths: [/open]}}
    upstream: origin
  - name: closed
    match: {{paths: [/*]}}
    filters: [{{authenticate: {{any_of: [corp, keys], consumer_header: x-consumer, forward: {{x-user: sub}}}}}}]
    upstream: origin
",
        origin.address,
        keys.join(", ")
    )
}

#[tokio::test]
async fn who_shows_no_credentials_is_told_how_to() {
    let origin = Origin::echo().await;
    let gateway = Gateway::start(&document(&origin, &[ONE])).await;
    let answer = get(gateway.address(), "/a").await;
    assert_eq!((answer.status, answer.problem().as_str()), (401, "unauthorized"));
    let challenges = ["Bearer realm=\"corp\"", "ApiKey realm=\"keys\""];
    assert_eq!(answer.head.all("www-authenticate"), challenges);
    assert_eq!(answer.field("content-type"), Some("application/problem+json"));
    let answer = request(gateway.address(), "GET /a", "Authorization: Bearer e30.e30.e30\r\n").await;
    assert_eq!(answer.status, 401);
    assert!(answer.head.all("www-authenticate")[0].contains("error=\"invalid_token\""), "{answer:?}");
    let answer = H2c::connect(gateway.address()).await.get("/a").await;
    assert_eq!(answer.status, 401);
    let line = gateway.log_line(|line| line["status"] == 401).await;
    assert_eq!((&line["denied_by"], &line["error"]), (&"authenticate".into(), &"unauthorized".into()));
    assert_eq!(line["reason"], "no credentials were given");
    assert_eq!(get(gateway.address(), "/wrong?key=key-wrong&x=1").await.status, 401);
    let line = gateway.log_line(|line| line["path"] == "/wrong").await;
    assert_eq!(
        (&line["query"], &line["reason"]),
        (&"key=***&x=1".into(), &"the API key is not known".into())
    );
    assert_eq!(origin.connections(), 0);
}

#[tokio::test]
async fn the_log_says_who_called_and_by_what() {
    let origin = Origin::echo().await;
    let gateway = Gateway::start(&document(&origin, &[ONE])).await;
    assert_eq!(request(gateway.address(), "GET /a", "X-Key: key-one\r\n").await.status, 200);
    let line = gateway.log_line(|line| line["status"] == 200).await;
    assert_eq!((&line["consumer"], &line["identity"]), (&"acme".into(), &"keys".into()));
}

#[tokio::test]
async fn the_upstream_sees_who_calls_and_neither_the_key_nor_what_the_client_made_up() {
    let origin = Origin::echo().await;
    let gateway = Gateway::start(&document(&origin, &[ONE])).await;
    let forged = "X-Consumer: root\r\nX_Consumer: root\r\nConnection: x-consumer\r\n";
    let answer = request(gateway.address(), "GET /a?x=1", &format!("{forged}X-Key: key-one\r\n")).await;
    assert_eq!(answer.status, 200);
    let head = origin.head();
    assert_eq!((head.all("x-consumer"), head.all("x_consumer")), (vec!["acme"], vec![]));
    assert_eq!((head.field("x-key"), head.target()), (None, "/a?x=1"));

    let answer = request(gateway.address(), "GET /a?key=key-one&x=1", forged).await;
    assert_eq!((answer.status, origin.heads().last().expect("a head").target()), (200, "/a?x=1"));
    until("both lines", || (gateway.log().len() == 2).then_some(())).await;
    assert!(!gateway.log_text().contains("key-one"), "the log shows no key");

    let answer = request(gateway.address(), "GET /open", forged).await;
    let head = origin.heads().last().expect("a head").clone();
    assert_eq!((answer.status, head.all("x-consumer"), head.all("x_consumer")), (200, vec![], vec![]));
}

#[tokio::test]
async fn a_token_that_holds_passes_and_its_claims_go_on() {
    let origin = Origin::echo().await;
    let gateway = Gateway::start(&document(&origin, &[ONE])).await;
    let fields = format!("X-User: root\r\nAuthorization: Bearer {TOKEN}\r\n");
    assert_eq!(request(gateway.address(), "GET /a", &fields).await.status, 200);
    let head = origin.head();
    assert_eq!((head.all("x-user"), head.all("x-consumer")), (vec!["alice"], vec!["corp:alice"]));
    assert!(head.field("authorization").is_some_and(|sent| sent.ends_with(TOKEN)), "it is not hidden");
    // Another signature, and the same one with another subject.
    let (message, signature) = TOKEN.rsplit_once('.').expect("a signature");
    let (header, _) = message.split_once('.').expect("a header");
    let turned: String = signature.chars().rev().collect();
    for token in [
        format!("{message}.{turned}"),
        format!("{header}.eyJzdWIiOiJyb290IiwiZXhwIjo0MTAyNDQ0ODAwfQ.{signature}"),
    ] {
        let answer =
            request(gateway.address(), "GET /a", &format!("Authorization: Bearer {token}\r\n")).await;
        assert_eq!(answer.status, 401);
        let challenge = answer.head.all("www-authenticate")[0].to_owned();
        assert!(challenge.contains("error=\"invalid_token\""), "{challenge}");
    }
    assert_eq!(origin.heads().len(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reload_ends_a_key_under_traffic_and_no_other() {
    let origin = Origin::echo().await;
    let gateway = Gateway::start(&document(&origin, &[ONE, TWO])).await;
    let (address, stop) = (gateway.address(), Arc::<AtomicBool>::default());
    let stopped = stop.clone();
    let traffic = tokio::spawn(async move {
        let mut client = Wire::connect(address).await;
        let mut count = 0;
        while !stopped.load(Ordering::Relaxed) {
            client.send("GET /a HTTP/1.1\r\nHost: a\r\nX-Key: key-two\r\n\r\n").await;
            let answer = client.answer().await.expect("an answer");
            assert_eq!(answer.status, 200, "{answer:?}");
            count += 1;
        }
        count
    });
    let mut client = Wire::connect(address).await;
    let mut ask = async || {
        client.send("GET /a HTTP/1.1\r\nHost: a\r\nX-Key: key-one\r\n\r\n").await;
        client.answer().await.expect("an answer").status
    };
    assert_eq!(ask().await, 200);
    std::fs::write(gateway.file(), gateway.text(&document(&origin, &[TWO]))).expect("write");
    soon("the key's end, also on a connection that was there before", async {
        while ask().await != 401 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await;
    assert_eq!(ask().await, 401);
    stop.store(true, Ordering::Relaxed);
    assert!(traffic.await.expect("no failure") > 1);
}

/// Fields that a client may not write, as trailers of HTTP/1.
const FORGED: &str =
    "X-Consumer: root\r\nX-User: root\r\nX-Tollhouse-Debug: 1\r\nX-Forwarded-For: 10.0.0.1\r\n";

#[tokio::test]
async fn trailers_of_a_request_bring_no_forged_fields() {
    let (told, mut seen) = tokio::sync::mpsc::unbounded_channel();
    let over_http2 = Origin::new(move |wire| {
        let told = told.clone();
        async move {
            let mut connection = h2::server::handshake(wire.into_stream()).await.expect("HTTP/2");
            while let Some(Ok((request, mut respond))) = connection.accept().await {
                let told = told.clone();
                tokio::spawn(async move {
                    let mut body = request.into_body();
                    while let Some(Ok(piece)) = body.data().await {
                        body.flow_control().release_capacity(piece.len()).expect("received");
                    }
                    let _ = told.send(body.trailers().await.expect("an end"));
                    let _ = respond.send_response(http::Response::new(()), true);
                });
            }
        }
    })
    .await;
    let origin = Origin::echo().await;
    let gateway = Gateway::start(&format!(
        "{}  - name: h2\n    match: {{paths: [/h2]}}\n    upstream: h2\n  - name: seen\n    match: {{paths: [/seen]}}\n    \
         filters: [{{decompress: {{}}}}]\n    upstream: origin\n",
        document(&origin, &[ONE]).replacen(
            "upstreams: [",
            &format!(
                "upstreams: [{{name: h2, protocol: h2c, backends: [{{address: \"{}\"}}]}}, ",
                over_http2.address
            ),
            1
        )
    ))
    .await;
    for path in ["/open", "/seen", "/h2"] {
        let mut client = Wire::connect(gateway.address()).await;
        client
            .send(format!(
                "POST {path} HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n{FORGED}\r\n"
            ))
            .await;
        assert_eq!(client.answer().await.expect("an answer").status, 200, "{path}");
        let client = H2c::connect(gateway.address()).await;
        let call = http::Request::post(format!("http://a{path}")).body(()).expect("valid");
        let (answer, mut stream) = client.open(call, false).await;
        stream.send_data(bytes::Bytes::from_static(b"abc"), false).expect("open");
        let mut trailers = http::HeaderMap::new();
        for name in ["x-consumer", "x-user", "x-tollhouse-debug", "x-forwarded-for"] {
            trailers.insert(name, "root".parse().expect("valid"));
        }
        stream.send_trailers(trailers).expect("open");
        assert_eq!(soon("an answer", answer).await.expect("an answer").status(), 200, "{path}");
    }
    for _ in 0..2 {
        assert_eq!(seen.recv().await.expect("a request"), None, "no trailer passes");
    }
    // Such an origin takes what follows the last chunk for broken, and would not have answered.
    assert_eq!(origin.heads().len(), 4);
}

#[tokio::test]
async fn a_route_that_answers_by_itself_waits_for_the_service_that_decides_by_the_body() {
    let service = Origin::new(|mut wire: Wire| async move {
        while let Ok(head) = wire.head().await {
            let Ok(body) = wire.body(&head).await else { return };
            let status = if body == b"please" { "200 OK" } else { "403 Forbidden" };
            wire.send(format!("HTTP/1.1 {status}\r\nContent-Length: 0\r\n\r\n")).await;
        }
    })
    .await;
    let gateway = Gateway::start(&format!(
        "upstreams: [{{name: sso, backends: [{{address: \"{}\"}}]}}]
routes:
  - name: own
    match: {{paths: [/*]}}
    filters: [{{forward_auth: {{upstream: sso, path: /check, body: 10B}}}}]
    respond: {{status: 200, body: own}}
",
        service.address
    ))
    .await;
    for (body, expected) in [("please", (200, "own")), ("at once", (403, ""))] {
        let length = body.len();
        for framed in [
            format!("Content-Length: {length}\r\n\r\n{body}"),
            format!("Transfer-Encoding: chunked\r\n\r\n{length:x}\r\n{body}\r\n0\r\n\r\n"),
        ] {
            let mut wire = Wire::connect(gateway.address()).await;
            wire.send(format!("POST /a HTTP/1.1\r\nHost: a.test\r\n{framed}")).await;
            let answer = wire.answer_to("POST").await.expect("an answer");
            assert_eq!((answer.status, answer.text().as_str()), expected, "{framed}");
        }
        let call = http::Request::post("http://a.test/a").body(()).expect("valid");
        let http2 = H2c::connect(gateway.address()).await;
        let answer = http2.send(call, body.as_bytes()).await.expect("an answer");
        assert_eq!((answer.status, answer.text().as_str()), expected);
    }
}

#[tokio::test]
async fn a_route_that_answers_by_itself_takes_no_other_body_than_the_one_that_was_signed() {
    const SECRET: &str = "a secret of thirty-two bytes, or so";
    // Of "abc", by SHA-256 (FIPS 180-4).
    const ABC: &str = "ungWv48Bz+pBQUDeXa4iI7ADYaOWF3qctBD/YfIAFa0=";
    let gateway = Gateway::start(&format!(
        "identities: {{signed: {{type: hmac}}}}
consumers:
  - {{name: acme, credentials: [{{type: hmac, id: k1, secret: '{SECRET}'}}]}}
routes:
  - name: own
    match: {{paths: [/*]}}
    filters: [{{authenticate: {{any_of: [signed]}}}}]
    respond: {{status: 200, body: own}}
"
    ))
    .await;
    let created = SystemTime::UNIX_EPOCH.elapsed().expect("after 1970").as_secs();
    let base = format!("HMAC-SHA256\nPOST\na.test\n/a\n{created}\n\n{ABC}");
    let key = hmac::Key::new(hmac::HMAC_SHA256, SECRET.as_bytes());
    let signature = STANDARD.encode(hmac::sign(&key, base.as_bytes()));
    let fields = format!("HMAC id=k1, created={created}, digest=\"{ABC}\", signature=\"{signature}\"");
    for (body, expected) in [("abc", 200), ("abd", 401), ("", 401)] {
        let mut wire = Wire::connect(gateway.address()).await;
        let head = format!("POST /a HTTP/1.1\r\nHost: a.test\r\nAuthorization: {fields}\r\n");
        wire.send(format!("{head}Content-Length: {}\r\n\r\n{body}", body.len())).await;
        let answer = wire.answer_to("POST").await.expect("an answer");
        assert_eq!((answer.status, answer.text() == "own"), (expected, expected == 200), "{body}");
    }
}
