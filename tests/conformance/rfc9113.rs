//! RFC 9113, HTTP/2.

use bytes::Bytes;
use http::{HeaderMap, Request, Response};

use crate::harness::frames::{self, Outcome, data, frame, headers};
use crate::harness::h2raw::{END_HEADERS, END_STREAM, GET, kind};
use crate::harness::{Gateway, H2Raw, H2c, Origin, Wire, soon};

#[tokio::test]
async fn s8_3_1_the_authority_counts_and_not_the_host_field() {
    let origin = Origin::echo().await;
    let gateway = Gateway::start(&format!(
        "upstreams: [{{name: origin, backends: [{{address: \"{}\"}}]}}]\nroutes:\n\
         - {{name: inner, match: {{hosts: [inner.test]}}, respond: {{status: 200, body: inner}}}}\n\
         - {{name: outer, match: {{hosts: [outer.test]}}, upstream: origin}}",
        origin.address
    ))
    .await;
    let client = H2c::connect(gateway.address()).await;
    let both = Request::get("http://outer.test/").header("host", "inner.test").body(()).expect("valid");
    if let Ok(answer) = client.send(both, b"").await {
        assert!(matches!(answer.status, 200 | 400), "{}", answer.status);
        assert_ne!(answer.text(), "inner");
    }
    for head in origin.heads() {
        assert_eq!(head.field("host"), Some("outer.test"));
        assert_eq!(head.field("x-forwarded-host"), Some("outer.test"));
    }
}

#[tokio::test]
async fn s8_1_trailers_pass_between_http2_sides() {
    let origin = Origin::new(|wire: Wire| async move {
        let mut connection = h2::server::handshake(wire.into_stream()).await.expect("HTTP/2");
        while let Some(Ok((_, mut respond))) = connection.accept().await {
            let mut stream = respond.send_response(Response::new(()), false).expect("open");
            stream.send_data(Bytes::from_static(b"hello"), false).expect("open");
            let mut trailers = HeaderMap::new();
            trailers.insert("grpc-status", "0".parse().expect("valid"));
            stream.send_trailers(trailers).expect("open");
        }
    })
    .await;
    let gateway = Gateway::start(&format!(
        "upstreams: [{{name: origin, protocol: h2c, backends: [{{address: \"{}\"}}]}}]\n\
         routes: [{{name: all, upstream: origin}}]",
        origin.address
    ))
    .await;
    let client = H2c::connect(gateway.address()).await;
    let call =
        Request::post("http://a/s/M").header("content-type", "application/grpc").header("te", "trailers");
    let (answer, mut stream) = client.open(call.body(()).expect("valid"), false).await;
    stream.send_data(Bytes::from_static(b"\0\0\0\0\0"), true).expect("open");
    let mut body = soon("an answer", answer).await.expect("an answer").into_body();
    let mut content = Vec::new();
    while let Some(piece) = soon("a piece", body.data()).await {
        content.extend(piece.expect("a piece"));
    }
    let trailers = soon("trailers", body.trailers()).await.expect("whole").expect("trailers");
    assert_eq!(
        (&content[..], trailers.get("grpc-status").map(|v| v.as_bytes())),
        (&b"hello"[..], Some(&b"0"[..]))
    );
}

#[tokio::test]
async fn s5_1_a_stream_that_is_reset_ends_the_request_at_the_origin() {
    let (origin, mut closed) = Origin::silent().await;
    let gateway = Gateway::before(&origin, "").await;
    let client = H2c::connect(gateway.address()).await;
    let get = Request::get("http://a/slow").body(()).expect("valid");
    let (_answer, mut stream) = client.open(get, true).await;
    assert_eq!(soon("the request", closed.recv()).await, Some("asked"));
    stream.send_reset(h2::Reason::CANCEL);
    assert_eq!(soon("the close", closed.recv()).await, Some("closed"));
    let line = gateway.log_line(|line| line["path"] == "/slow").await;
    assert_eq!(line["status"], 499);
}

#[tokio::test]
async fn s5_4_1_an_error_of_the_connection_is_a_goaway_before_its_end() {
    let origin = Origin::echo().await;
    let gateway = Gateway::counting(&origin, "").await;
    let mut client = H2Raw::connect(gateway.address(), &[]).await;
    // RFC 9113 s6.7: a PING belongs to no stream.
    client.send(kind::PING, 0, 1, b"12345678").await;
    let goaway = client.next_of(kind::GOAWAY).await.expect("a GOAWAY");
    assert_eq!(goaway.code(), 1, "PROTOCOL_ERROR");
    assert_eq!(client.next().await, None);
    assert_eq!(gateway.refused("http2").await, 1);
    let line = gateway.log_line(|line| line["protocol"] == "HTTP/2").await;
    assert_eq!(line["reason"], "the connection breaks the rules of HTTP/2");
}

#[tokio::test]
async fn s10_5_a_connection_that_is_too_much_is_told_to_calm_down() {
    let origin = Origin::echo().await;
    let gateway = Gateway::counting(&origin, "").await;
    let mut client = H2Raw::connect(gateway.address(), &[]).await;
    let mut goaway = None;
    for _ in 0..1500 {
        client.send(kind::PING, 0, 0, b"12345678").await;
        // Its answer, or the end.
        goaway = loop {
            match client.next().await {
                Some(frame) if frame.kind == kind::PING => break None,
                Some(frame) if frame.kind == kind::GOAWAY => break Some(frame),
                Some(_) => {}
                None => panic!("an end without GOAWAY"),
            }
        };
        if goaway.is_some() {
            break;
        }
    }
    let goaway = goaway.expect("a GOAWAY");
    assert_eq!(goaway.code(), 11, "ENHANCE_YOUR_CALM");
    assert_eq!(&goaway.content[8..], b"too many frames carry nothing");
    assert_eq!(client.next().await, None);
    assert_eq!(gateway.refused("control-flood").await, 1);
}

/// The fields that a request must have, with one of them as it is here, and more.
fn with<'a>(changed: (&'a str, &'a str), more: &[(&'a str, &'a str)]) -> Vec<(&'a str, &'a str)> {
    let usual = [(":method", "POST"), (":scheme", "http"), (":authority", "a"), (":path", "/")];
    let fields = usual.into_iter().map(|field| if field.0 == changed.0 { changed } else { field });
    fields.filter(|(_, value)| *value != "-").chain(more.iter().copied()).collect()
}

/// Sends each request, and sees to it that none is answered as one, or reaches an origin.
async fn refused(requests: Vec<Vec<(&str, &str)>>) {
    let origin = Origin::echo().await;
    let gateway = Gateway::before(&origin, "").await;
    for fields in requests {
        let outcome = frames::ask(gateway.address(), &[headers(&fields, true)]).await;
        assert!(!matches!(outcome, Outcome::Answered(status) if status != 400), "{fields:?}: {outcome:?}");
        assert!(origin.heads().is_empty(), "{fields:?} reached the origin: {:?}", origin.heads());
    }
    let usual = headers(&with(("", ""), &[]), true);
    assert_eq!(frames::ask(gateway.address(), &[usual]).await, Outcome::Answered(200));
}

#[tokio::test]
async fn s8_3_pseudo_fields_are_there_once_and_first() {
    let mut requests = Vec::new();
    for name in [":method", ":scheme", ":authority", ":path"] {
        let usual = with(("", ""), &[]).into_iter().find(|field| field.0 == name).expect("one of the four");
        requests.push(with((name, "-"), &[]));
        requests.push(with((name, ""), &[]));
        requests.push(with(("", ""), &[usual]));
        requests.push(with((name, "-"), &[("x-a", "b"), usual]));
    }
    for name in [":status", ":unknown", ":protocol", ":Path", ":"] {
        requests.push(with(("", ""), &[(name, "1")]));
    }
    refused(requests).await;
}

#[tokio::test]
async fn s8_3_1_pseudo_fields_can_be_said_in_http_1() {
    let mut requests = Vec::new();
    for path in [
        "a",
        "?a",
        "http://b/",
        "/a b",
        "/a HTTP/1.1\r\nX: y",
        "/a\nb",
        "/\0",
        "/\t",
        "/\u{7f}",
        "/<a>",
        "/%00",
        "/%0d%0a",
        "*",
        "/a\\b",
        "/%zz",
    ] {
        requests.push(with((":path", path), &[]));
    }
    for scheme in ["ftp", "file", "ws", "http ", "http://b/", "http\r\nX: y", "https,http", "1http", ""] {
        requests.push(with((":scheme", scheme), &[]));
    }
    for method in ["G T", "GET / HTTP/1.1\r\nX: y", "G(T", "GET\0", " GET"] {
        requests.push(with((":method", method), &[]));
    }
    for host in
        ["u@a", "a b", "a/b", "a?b", "a#b", "a,b", "a\r\nX: y", "a\0", "[::1", "::1", "a%2e", "a:99999", ".."]
    {
        requests.push(with((":authority", host), &[]));
        requests.push(with((":authority", "-"), &[("host", host)]));
    }
    for host in ["b", "a:80", "A", "", "a, b"] {
        requests.push(with(("", ""), &[("host", host)]));
    }
    requests.push(with(("", ""), &[("host", "a"), ("host", "a")]));
    refused(requests).await;
}

#[tokio::test]
async fn s8_2_fields_can_be_said_in_http_1_and_do_not_concern_the_connection() {
    let mut requests = Vec::new();
    for name in ["X-A", "x a", "x:a", "x\r\na", "x\0a", "x\"a", "x(a)", ""] {
        requests.push(with(("", ""), &[(name, "1")]));
    }
    for value in [" a", "a ", "a\r\nX: y", "a\nb", "a\rb", "a\0", "a\u{1}", "a\u{7f}"] {
        requests.push(with(("", ""), &[("x-a", value)]));
    }
    for (name, value) in [
        ("connection", "close"),
        ("keep-alive", "5"),
        ("proxy-connection", "close"),
        ("upgrade", "h2c"),
        ("transfer-encoding", "chunked"),
        ("transfer-encoding", "identity"),
        ("te", "gzip"),
        ("te", "trailers, gzip"),
    ] {
        requests.push(with(("", ""), &[(name, value)]));
    }
    for length in ["+0", "-0", "0, 0", "0x0", "", "99999999999999999999", "zero", "5"] {
        requests.push(with(("", ""), &[("content-length", length)]));
    }
    requests.push(with(("", ""), &[("content-length", "0"), ("content-length", "0")]));
    refused(requests).await;
}

#[tokio::test]
async fn s8_1_1_a_body_of_another_length_than_was_said_never_arrives_whole() {
    let (told, mut seen) = tokio::sync::mpsc::unbounded_channel();
    let origin = Origin::new(move |mut wire: Wire| {
        let told = told.clone();
        async move {
            while let Ok(head) = wire.head().await {
                let body = wire.body(&head).await;
                let _ = told.send(body.is_ok());
                let Ok(_) = body else { return };
                wire.send("HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n").await;
            }
        }
    })
    .await;
    let gateway = Gateway::before(&origin, "").await;
    for (length, pieces) in
        [("2", &["abc"][..]), ("4", &["abc"]), ("4", &["abc", "de"]), ("3", &[""]), ("4", &["a", "b"])]
    {
        let mut sent = vec![headers(&with(("", ""), &[("content-length", length)]), false)];
        let last = pieces.len() - 1;
        sent.extend(pieces.iter().enumerate().map(|(at, piece)| data(piece.as_bytes(), at == last)));
        assert_eq!(frames::ask(gateway.address(), &sent).await, Outcome::Reset, "{length} {pieces:?}");
    }
    let right =
        [headers(&with(("", ""), &[("content-length", "3")]), false), data(b"a", false), data(b"bc", true)];
    assert_eq!(frames::ask(gateway.address(), &right).await, Outcome::Answered(200));
    // Of those before, the origin saw nothing or something cut.
    let whole = std::iter::from_fn(|| seen.try_recv().ok()).filter(|whole| *whole).count();
    assert_eq!(whole, 1, "only the last one arrived whole");
}

#[tokio::test]
async fn s8_1_trailers_say_nothing_about_the_request() {
    let origin = Origin::echo().await;
    let gateway = Gateway::before(&origin, "").await;
    let request = || [headers(&with(("", ""), &[]), false), data(b"abc", false)];
    for (name, value) in [("host", "b"), ("content-length", "9"), ("x-forwarded-for", "192.0.2.1")] {
        let sent = [&request()[..], &[headers(&[(name, value)], true)]].concat();
        assert_eq!(frames::ask(gateway.address(), &sent).await, Outcome::Answered(200), "{name}");
        let head = origin.heads().pop().expect("a request");
        let said = (head.field("host"), head.field("content-length"), head.field("x-forwarded-for"));
        assert_eq!(said, (Some("a"), None, Some("127.0.0.1")), "{name}");
    }
    for fields in
        [("connection", "close"), ("transfer-encoding", "chunked"), ("X-A", "b"), ("x-a", "b\r\nc: d")]
    {
        let sent = [&request()[..], &[headers(&[fields], true)]].concat();
        assert!(!matches!(frames::ask(gateway.address(), &sent).await, Outcome::Answered(_)), "{fields:?}");
    }
}

#[tokio::test]
async fn s6_2_a_block_of_fields_is_not_interrupted() {
    let origin = Origin::echo().await;
    let gateway = Gateway::before(&origin, "").await;
    let block = headers(&with(("", ""), &[]), true).split_off(9);
    let (first, rest) = block.split_at(7);
    let (open, end) = (frame(1, 1, 1, first), frame(9, 4, 1, rest));
    assert_eq!(frames::ask(gateway.address(), &[open.clone(), end.clone()]).await, Outcome::Answered(200));
    let between = [open, frame(6, 0, 0, &[0; 8]), end];
    assert_eq!(frames::ask(gateway.address(), &between).await, Outcome::Ended);
    assert_eq!(origin.heads().len(), 1);
}

#[tokio::test]
async fn s8_1_1_a_request_that_names_two_hosts_is_logged_and_the_connection_lives_on() {
    let origin = Origin::echo().await;
    let gateway = Gateway::before(&origin, "").await;
    let client = H2c::connect(gateway.address()).await;
    let two = || Request::get("http://a/").header("host", "b").body(()).expect("valid");
    assert_eq!(client.send(two(), b"").await.expect("an answer").status, 400);
    let line = gateway.log_line(|line| line["protocol"] == "HTTP/2").await;
    assert_eq!(
        (&line["status"], &line["error"], &line["route"]),
        (&400.into(), &"bad-request".into(), &"(none)".into())
    );
    assert!(line["reason"].as_str().is_some_and(|reason| reason.contains("one host")), "{line}");
    assert_eq!(client.get("/").await.status, 200);
    // Who goes on and on is not listened to for ever.
    for _ in 0..40 {
        if !client.try_send(two()).await {
            return;
        }
    }
    panic!("the connection is still open");
}

#[tokio::test]
async fn s6_8_who_sends_many_malformed_requests_is_told_to_go_and_keeps_what_is_under_way() {
    let (origin, mut taken) = Origin::handing_over().await;
    let gateway = Gateway::before(&origin, "").await;
    let client = H2c::connect(gateway.address()).await;
    let asking = client.clone();
    let slow = tokio::spawn(async move { asking.get("/slow").await });
    let mut wire = soon("the request", taken.recv()).await.expect("an origin");
    wire.head().await.expect("a head");
    let two = || Request::get("http://a/").header("host", "b").body(()).expect("valid");
    let refused = async {
        let mut count = 0;
        // The connection takes no more after GOAWAY.
        while client.try_send(two()).await {
            count += 1;
        }
        count
    };
    let refused = soon("GOAWAY", refused).await;
    assert!((30..60).contains(&refused), "{refused}");
    wire.send("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok").await;
    assert_eq!(slow.await.expect("no panic").text(), "ok");
}

#[tokio::test]
async fn s6_8_who_does_not_go_after_many_malformed_requests_is_told_why_its_connection_ends() {
    let origin = Origin::echo().await;
    let gateway = Gateway::counting(&origin, "").await;
    let mut client = H2Raw::connect(gateway.address(), &[]).await;
    // `host` is b, a literal with an indexed name (RFC 7541 s6.2.2, appendix A: 38), and `:authority` is a.
    let two = [GET, b"\x0f\x17\x01b"].concat();
    let mut codes = Vec::new();
    for n in 0..64 {
        client.send(kind::HEADERS, END_HEADERS | END_STREAM, 2 * n + 1, &two).await;
    }
    while let Some(frame) = client.next().await {
        if frame.kind == kind::GOAWAY {
            codes.push(frame.code());
        }
    }
    assert_eq!(codes, [0, 11], "NO_ERROR, then ENHANCE_YOUR_CALM");
    assert_eq!(gateway.refused("malformed").await, 65, "requests, and the connection");
}

#[tokio::test]
async fn s5_1_2_streams_over_the_limit_are_refused() {
    let (origin, mut asked) = Origin::silent().await;
    let gateway = Gateway::before(&origin, "server: {limits: {h2_streams: 4}}").await;
    let mut client = H2Raw::connect(gateway.address(), &[]).await;
    for n in 0..5 {
        client.send(kind::HEADERS, END_HEADERS | END_STREAM, 2 * n + 1, GET).await;
    }
    let reset = client.next_of(kind::RST_STREAM).await.expect("a reset");
    assert_eq!((reset.stream, reset.code()), (9, 7), "REFUSED_STREAM");
    for _ in 0..4 {
        assert_eq!(soon("the request", asked.recv()).await, Some("asked"));
    }
}

#[tokio::test]
async fn s10_5_1_a_field_section_may_be_as_large_as_the_document_says() {
    let origin = Origin::echo().await;
    let gateway = Gateway::before(&origin, "server: {limits: {header_bytes: 512KiB}}").await;
    let client = H2c::connect(gateway.address()).await;
    let with = |length: usize| {
        let field = "a".repeat(length);
        Request::get("http://a/").header("x-large", field).body(()).expect("valid")
    };
    for length in [100_000, 300_000] {
        let answer = client.send(with(length), b"").await.expect("an answer");
        assert_eq!(answer.status, 200, "{length}");
        assert!(answer.body.len() > length, "the origin saw all of it");
    }
    assert_eq!(client.send(with(525_000), b"").await.expect("an answer").status, 431);
    assert_eq!(gateway.log_line(|line| line["status"] == 431).await["protocol"], "HTTP/2");
    assert_eq!(client.get("/").await.status, 200, "the connection lives on");
}

#[tokio::test]
async fn s10_5_1_a_field_section_over_the_limit_is_a_431_and_one_without_end_ends_the_connection() {
    let origin = Origin::echo().await;
    let gateway = Gateway::counting(&origin, "server: {limits: {header_bytes: 2KiB}}").await;
    let mut client = H2Raw::connect(gateway.address(), &[]).await;
    // One field of 3,000 bytes: a literal without Huffman coding (RFC 7541 s6.2.2, s5.1).
    let field = [&b"\x00\x01a\x7f\xb9\x16"[..], &[b'b'; 3000]].concat();
    client.send(kind::HEADERS, END_STREAM, 1, GET).await;
    client.send(kind::CONTINUATION, END_HEADERS, 1, &field).await;
    let answer = client.next_of(kind::HEADERS).await.expect("an answer");
    assert_eq!(answer.stream, 1);
    let mut client = H2Raw::connect(gateway.address(), &[]).await;
    client.send(kind::HEADERS, END_STREAM, 1, GET).await;
    for _ in 0..10 {
        client.send(kind::CONTINUATION, 0, 1, b"").await;
    }
    let goaway = client.next_of(kind::GOAWAY).await.expect("a GOAWAY");
    assert_eq!(goaway.code(), 11, "ENHANCE_YOUR_CALM");
    assert_eq!(gateway.refused("continuation-flood").await, 1);
    assert_eq!(gateway.log_line(|line| line["status"] == 431).await["protocol"], "HTTP/2");
}
