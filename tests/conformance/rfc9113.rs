//! RFC 9113, HTTP/2.

use bytes::Bytes;
use http::{HeaderMap, Request, Response};

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
