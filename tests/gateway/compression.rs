//! Answers that are encoded on their way (RFC 9110 s8.4, s12.5.3), read by decoders of others.

use std::net::SocketAddr;
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use http::{HeaderMap, Request, Response};
use tempfile::NamedTempFile;
use tokio::net::TcpListener;
use tollhouse_filters::coding::decode::{Coding, Decoder, Limits};

use crate::direct::framed;
use crate::harness::cached::{Cached, numbered};
use crate::harness::{Answer, Gateway, H2c, Nginx, Origin, Wire, noise, request, soon};

const CODINGS: [&str; 3] = ["zstd", "br", "gzip"];

async fn compressing(address: SocketAddr, rest: &str) -> Gateway {
    Gateway::start(&format!(
        "upstreams: [{{name: origin, {rest} backends: [{{address: \"{address}\"}}]}}]\n\
         routes: [{{name: all, upstream: origin, filters: [{{compress: {{}}}}]}}]"
    ))
    .await
}

/// Text that compresses as pages do.
fn page(length: usize) -> Vec<u8> {
    let mut text = String::new();
    for (at, byte) in noise(length / 8).into_iter().enumerate() {
        text.push_str(&format!("{{\"id\": {at}, \"kind\": \"k{}\"}}\n", byte % 16));
    }
    text.truncate(length);
    text.into_bytes()
}

fn json(body: &[u8]) -> Vec<u8> {
    let head = format!(
        "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nETag: \"v1\"\r\nContent-Length: {}\r\n\r\n",
        body.len()
    );
    [head.as_bytes(), body].concat()
}

fn decoder(coding: &str) -> Decoder {
    let coding = Coding::named(coding).expect("a coding");
    Decoder::new(&[coding], Limits { size: 1 << 30, ratio: u32::MAX }).expect("memory")
}

fn decoded(answer: &Answer) -> Vec<u8> {
    let mut decoder = decoder(answer.field("content-encoding").expect("a coding"));
    let body = decoder.piece(&answer.body).expect("decodes");
    assert_eq!(decoder.finish(), Ok(()), "{answer:?}");
    body.into()
}

/// What curl makes of an answer: its head, and the body that it decoded with zlib, Brotli's own library
/// or zstd's own.
async fn curl(address: SocketAddr, options: &[&str]) -> (String, Vec<u8>) {
    let head = NamedTempFile::new().expect("a file");
    let mut command = Command::new("curl");
    command.args(["--silent", "--show-error", "--max-time", "10", "--compressed", "--dump-header"]);
    command.arg(head.path()).args(options).arg(format!("http://{address}/")).stdin(Stdio::null());
    let output = soon("curl", tokio::task::spawn_blocking(move || command.output())).await;
    let output = output.expect("no panic").expect("curl runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let head = std::fs::read_to_string(head.path()).expect("a head");
    (head.to_ascii_lowercase(), output.stdout)
}

#[tokio::test]
async fn curl_decodes_every_coding_over_http_1_and_2() {
    let body = page(600_000);
    let origin = Origin::answering(json(&body)).await;
    let gateway = compressing(origin.address, "").await;
    for version in ["--http1.1", "--http2-prior-knowledge"] {
        for coding in CODINGS {
            let accept = format!("Accept-Encoding: {coding}");
            let (head, seen) = curl(gateway.address(), &[version, "--header", &accept]).await;
            assert!(head.contains(&format!("content-encoding: {coding}\r\n")), "{head}");
            assert!(head.contains("etag: w/\"v1\"\r\n") && !head.contains("content-length"), "{head}");
            assert!(seen == body, "{version} {coding}: {} bytes", seen.len());
        }
        // What curl asks for by itself names all three.
        let (head, seen) = curl(gateway.address(), &[version]).await;
        assert!(head.contains("content-encoding: zstd\r\n") && seen == body, "{head}");
        let (head, seen) = curl(gateway.address(), &[version, "--header", "Accept-Encoding: identity"]).await;
        assert!(!head.contains("content-encoding") && head.contains("vary: accept-encoding\r\n"), "{head}");
        assert!(head.contains("content-length: 600000\r\n") && seen == body, "{head}");
    }
    let sent = gateway.log_line(|line| line["protocol"] == "HTTP/1.1").await;
    assert!(sent["bytes_out"].as_u64().is_some_and(|sent| sent < 200_000), "{sent}");
}

#[tokio::test]
async fn the_weights_of_the_client_decide() {
    let body = page(5_000);
    let origin = Origin::answering(json(&body)).await;
    let gateway = compressing(origin.address, "").await;
    for (accept, coding) in [
        ("gzip;q=1.0, br;q=0.9, zstd;q=0.8", Some("gzip")),
        ("*", Some("zstd")),
        ("br, *;q=0", Some("br")),
        ("identity;q=0, gzip;q=0.1", Some("gzip")),
        ("identity, gzip;q=0.9", None),
        ("gzip;q=0", None),
        ("deflate", None),
    ] {
        let answer = request(gateway.address(), "GET /", &format!("Accept-Encoding: {accept}\r\n")).await;
        assert_eq!(answer.field("content-encoding"), coding, "{accept}");
        assert_eq!(answer.field("vary"), Some("Accept-Encoding"), "{accept}");
        assert!(if coding.is_some() { decoded(&answer) == body } else { answer.body == body }, "{accept}");
    }
}

#[tokio::test]
async fn a_slow_trickle_arrives_as_it_comes() {
    for coding in CODINGS {
        let (origin, mut seen) = Origin::handing_over().await;
        let gateway = compressing(origin.address, "").await;
        let mut client = Wire::connect(gateway.address()).await;
        client.send(format!("GET / HTTP/1.1\r\nHost: a\r\nAccept-Encoding: {coding}\r\n\r\n")).await;
        let mut wire = soon("a connection", seen.recv()).await.expect("one");
        wire.head().await.expect("a request");
        wire.send(
            "HTTP/1.1 200 OK\r\nContent-Type: application/x-ndjson\r\nTransfer-Encoding: chunked\r\n\r\n",
        )
        .await;
        let head = client.head().await.expect("a head");
        assert_eq!(head.field("content-encoding"), Some(coding));
        let mut decoder = decoder(coding);
        // Each line is only sent once the one before was read and decoded.
        for line in ["{\"n\": 1}\n", "{\"n\": 2}\n", "{\"n\": 3}\n"] {
            wire.send(format!("{:x}\r\n{line}\r\n", line.len())).await;
            let mut read = Vec::new();
            while read.len() < line.len() {
                let chunk = client.chunk().await.expect("a chunk");
                read.extend_from_slice(&decoder.piece(&chunk).expect("decodes"));
            }
            assert_eq!(String::from_utf8_lossy(&read), line, "{coding}");
        }
        wire.send("0\r\n\r\n").await;
        loop {
            let chunk = client.chunk().await.expect("a chunk");
            assert!(decoder.piece(&chunk).expect("decodes").is_empty());
            if chunk.is_empty() {
                break;
            }
        }
        assert_eq!(decoder.finish(), Ok(()));
    }
}

#[tokio::test]
async fn event_streams_and_grpc_are_untouched() {
    for content_type in ["text/event-stream", "application/grpc"] {
        let head =
            format!("HTTP/1.1 200 OK\r\nContent-Type: {content_type}\r\nTransfer-Encoding: chunked\r\n\r\n");
        let origin = Origin::answering(head + "9\r\ndata: 1\n\n\r\n9\r\ndata: 2\n\n\r\n0\r\n\r\n").await;
        let gateway = compressing(origin.address, "").await;
        let answer = request(gateway.address(), "GET /", "Accept-Encoding: gzip\r\n").await;
        assert_eq!((answer.field("content-encoding"), answer.field("vary")), (None, None), "{content_type}");
        assert_eq!(answer.text(), "data: 1\n\ndata: 2\n\n", "{content_type}");
    }
}

#[tokio::test]
async fn what_nginx_packed_already_stays_as_it_is() {
    let packed = noise(5_000);
    let nginx = Nginx::start(&[("packed", &packed)]).await;
    let gateway = compressing(nginx.address, "").await;
    let answer = request(gateway.address(), "GET /packed", "Accept-Encoding: gzip, br\r\n").await;
    assert_eq!((answer.status, answer.field("content-encoding")), (200, Some("gzip")));
    assert_eq!((answer.field("content-length"), answer.body == packed), (Some("5000"), true));
    assert!(answer.field("etag").is_some_and(|tag| tag.starts_with('"')), "{answer:?}");
}

#[tokio::test]
async fn nginx_revalidates_and_ranges_what_was_encoded() {
    let body = page(50_000);
    let nginx = Nginx::start(&[("page", &body)]).await;
    let gateway = compressing(nginx.address, "").await;
    let ask = |fields: String| {
        let address = gateway.address();
        async move { request(address, "GET /page", &format!("Accept-Encoding: gzip\r\n{fields}")).await }
    };
    let first = ask(String::new()).await;
    assert!(decoded(&first) == body);
    let weak = first.field("etag").expect("a tag").to_owned();
    assert!(weak.starts_with("W/\"") && first.field("accept-ranges").is_none(), "{first:?}");
    // RFC 9110 s13.1.2: If-None-Match compares weakly.
    let confirmed = ask(format!("If-None-Match: {weak}\r\n")).await;
    assert_eq!((confirmed.status, confirmed.field("etag")), (304, Some(weak.as_str())));
    assert_eq!(
        (confirmed.field("vary"), confirmed.field("content-encoding")),
        (Some("Accept-Encoding"), None)
    );
    let part = ask("Range: bytes=10-19\r\n".to_owned()).await;
    assert_eq!((part.status, part.field("content-encoding"), &part.body[..]), (206, None, &body[10..20]));
    // RFC 9110 s13.1.5: If-Range compares strongly, so that no part is mixed with what was encoded.
    let whole = ask(format!("Range: bytes=10-19\r\nIf-Range: {weak}\r\n")).await;
    assert!(whole.status == 200 && decoded(&whole) == body, "{whole:?}");
}

/// A gateway that compresses and caches answers of this type, which each request has confirmed with these fields.
async fn confirmed(fields: &'static str, content_type: &'static str) -> Cached {
    let filters = "[cache: {}, compress: {min_size: 0B, algorithms: [gzip]}]";
    Cached::with(filters, move |nth, head| match head.field("if-none-match") {
        Some(_) => format!("HTTP/1.1 304 Not Modified\r\n{fields}\r\n"),
        None => numbered(nth, &format!("{fields}content-type: {content_type}\r\n")),
    })
    .await
}

#[tokio::test]
async fn what_a_304_confirms_is_for_nobody_who_does_not_accept_its_coding() {
    // RFC 9111 s3.2: what a 304 varies by takes the place of what is stored.
    let fields = "etag: W/\"v\"\r\nvary: origin\r\ncache-control: max-age=0\r\n";
    let cached = confirmed(fields, "text/plain").await;
    for (accept, expected) in
        [("gzip", "answer 1"), ("gzip", "answer 1"), ("identity", "answer 3"), ("gzip", "answer 1")]
    {
        let answer = cached.send("GET /", &format!("Accept-Encoding: {accept}\r\n")).await;
        let body = if accept == "gzip" { decoded(&answer) } else { answer.body.clone() };
        assert_eq!(String::from_utf8_lossy(&body), expected, "{accept}");
    }
}

#[tokio::test]
async fn what_is_never_encoded_is_for_all_also_once_a_304_without_a_type_confirmed_it() {
    let cached = confirmed("etag: \"v\"\r\ncache-control: max-age=0\r\n", "image/png").await;
    for accept in ["gzip", "gzip", "identity", "br"] {
        let answer = cached.send("GET /", &format!("Accept-Encoding: {accept}\r\n")).await;
        assert_eq!(answer.text(), "answer 1", "{accept}");
    }
}

#[tokio::test]
async fn answers_without_a_body_leave_the_connection_in_step() {
    let body = page(5_000);
    let nginx = Nginx::start(&[("page", &body)]).await;
    let gateway = compressing(nginx.address, "").await;
    let mut client = Wire::connect(gateway.address()).await;
    for (line, status, coding) in [
        ("HEAD /page", 200, Some("gzip")),
        ("GET /empty", 204, None),
        ("GET /page", 200, Some("gzip")),
        ("HEAD /page", 200, Some("gzip")),
        ("GET /tea", 418, None),
    ] {
        client.send(format!("{line} HTTP/1.1\r\nHost: a\r\nAccept-Encoding: gzip\r\n\r\n")).await;
        let answer = client.answer_to(line.split(' ').next().unwrap_or_default()).await.expect(line);
        assert_eq!((answer.status, answer.field("content-encoding")), (status, coding), "{line}");
        if line == "GET /page" {
            assert!(decoded(&answer) == body);
        }
        if line == "HEAD /page" {
            // RFC 9110 s8.6: no length that GET would not have.
            assert_eq!(answer.field("content-length"), None);
        }
    }
    let h2 = H2c::connect(gateway.address()).await;
    let head = Request::head("http://a/page").header("accept-encoding", "br").body(()).expect("valid");
    let answer = h2.send(head, b"").await.expect("an answer");
    assert_eq!((answer.field("content-encoding"), answer.body.len()), (Some("br"), 0));
}

/// Compresses on the connections themselves, and through Pingora's proxy.
const BOTH: &str = "
upstreams: [{name: origin, backends: [{address: \"ADDRESS\"}]}]
routes:
  - {name: direct, match: {paths: [/direct]}, upstream: origin, filters: [compress: {}]}
  - {name: proxied, match: {paths: [/proxied]}, upstream: origin, filters: [compress: {}], direct: false}
";

#[tokio::test]
async fn bodies_of_any_size_and_framing_are_encoded_by_both_ways() {
    let reply = Arc::new(Mutex::new(Vec::new()));
    let says = reply.clone();
    let origin = Origin::new(move |mut wire: Wire| {
        let reply = says.lock().expect("no panic").clone();
        async move {
            if wire.head().await.is_ok() {
                wire.send(reply).await;
            }
        }
    })
    .await;
    let gateway = Gateway::start(&BOTH.replace("ADDRESS", &origin.address.to_string())).await;
    let h2 = H2c::connect(gateway.address()).await;
    let accept = ("accept-encoding", "gzip, identity;q=0");
    for size in [0, 100, 1023, 16_384, 65_537, 1_000_003] {
        let body = page(size);
        for framed in framed(&body) {
            let head = b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\n".as_slice();
            let line = framed.windows(2).position(|end| end == b"\r\n").expect("a line") + 2;
            *reply.lock().expect("no panic") = [head, &framed[line..]].concat();
            for way in ["/direct", "/proxied"] {
                let asked = format!("GET {way}");
                let answer =
                    request(gateway.address(), &asked, &format!("{}: {}\r\n", accept.0, accept.1)).await;
                if answer.field("content-encoding").is_none() {
                    // What has nothing to encode is left as it is.
                    assert_eq!((size, answer.field("content-length")), (0, Some("0")), "{way}");
                    continue;
                }
                assert!(decoded(&answer) == body, "{way}: {size}, {:?}", answer.head);
                let asked = Request::get(format!("http://a{way}")).header(accept.0, accept.1).body(());
                let answer = h2.send(asked.expect("valid"), b"").await.expect("an answer");
                let mut decoder = decoder(answer.field("content-encoding").expect("a coding"));
                assert!(decoder.piece(&answer.body).expect("decodes") == body, "{way}: {size} over HTTP/2");
                assert_eq!(decoder.finish(), Ok(()));
            }
        }
    }
}

#[tokio::test]
async fn an_answer_that_takes_long_to_encode_ends_in_its_time() {
    let origin = Origin::new(|mut wire: Wire| async move {
        if wire.head().await.is_ok() {
            wire.send("HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nTransfer-Encoding: chunked\r\n\r\n")
                .await;
            let piece = [b"10000\r\n", &noise(1 << 16)[..], b"\r\n"].concat();
            while wire.try_send(&piece).await.is_ok() {}
        }
    })
    .await;
    for filters in ["", "{buffer: {}}, "] {
        let gateway = Gateway::start(&format!(
            "upstreams: [{{name: origin, backends: [{{address: \"{}\"}}]}}]\n\
             routes: [{{name: all, upstream: origin, timeouts: {{total: 500ms}}, \
             filters: [{filters}{{compress: {{level: {{gzip: 9}}}}}}]}}]",
            origin.address
        ))
        .await;
        let mut client = Wire::connect(gateway.address()).await;
        client.send("GET / HTTP/1.1\r\nHost: a\r\nAccept-Encoding: gzip\r\n\r\n").await;
        assert!(soon("the end", client.answer()).await.is_err(), "it has no end");
    }
}

#[tokio::test]
async fn an_http_1_0_client_gets_a_body_it_can_tell_the_end_of() {
    let body = page(5_000);
    let origin = Origin::answering(json(&body)).await;
    let gateway = compressing(origin.address, "").await;
    let mut client = Wire::connect(gateway.address()).await;
    client.send("GET / HTTP/1.0\r\nHost: a\r\nAccept-Encoding: gzip\r\n\r\n").await;
    let answer = client.answer().await.expect("an answer");
    assert_eq!((answer.field("content-encoding"), answer.field("content-length")), (None, Some("5000")));
    assert!(answer.body == body);
}

#[tokio::test]
async fn an_answer_of_the_gateways_own_is_encoded_too() {
    let body = "x".repeat(3_000);
    let gateway = Gateway::start(&format!(
        "routes: [{{name: own, filters: [{{compress: {{}}}}], respond: {{body: \"{body}\"}}}}]"
    ))
    .await;
    let mut client = Wire::connect(gateway.address()).await;
    let mut lengths = Vec::new();
    for line in ["GET /", "HEAD /", "GET /"] {
        client.send(format!("{line} HTTP/1.1\r\nHost: a\r\nAccept-Encoding: gzip\r\n\r\n")).await;
        let answer = client.answer_to(line.split(' ').next().unwrap_or_default()).await.expect(line);
        assert_eq!(answer.field("content-encoding"), Some("gzip"));
        lengths.push(answer.field("content-length").expect("a length").to_owned());
        assert!(line == "HEAD /" || decoded(&answer) == body.as_bytes());
    }
    assert!(lengths[0] == lengths[1] && lengths[0].len() == 2, "{lengths:?}");
}

#[tokio::test]
async fn a_broken_answer_never_looks_whole() {
    let origin = Origin::dying_after(
        b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: 9000\r\n\r\nonly this",
    )
    .await;
    let gateway = compressing(origin.address, "").await;
    let mut client = Wire::connect(gateway.address()).await;
    client.send("GET / HTTP/1.1\r\nHost: a\r\nAccept-Encoding: gzip\r\n\r\n").await;
    let answer = client.answer().await;
    assert!(answer.as_ref().map_or(true, |answer| answer.status == 502), "{answer:?}");
}

#[tokio::test]
async fn an_http_2_answer_that_ends_with_its_head_is_not_said_to_be_encoded() {
    let origin = Origin::new(|wire: Wire| async move {
        let Ok(mut connection) = h2::server::handshake(wire.into_stream()).await else { return };
        while let Some(Ok((_, mut respond))) = connection.accept().await {
            let answer = Response::builder().header("content-type", "text/plain").body(());
            respond.send_response(answer.expect("valid"), true).expect("open");
        }
    })
    .await;
    let gateway = compressing(origin.address, "protocol: h2c,").await;
    for coding in CODINGS {
        let answer = request(gateway.address(), "GET /", &format!("Accept-Encoding: {coding}\r\n")).await;
        assert_eq!((answer.status, answer.field("content-encoding")), (200, None), "{coding}");
        assert_eq!((answer.field("vary"), answer.text().as_str()), (Some("Accept-Encoding"), ""));
        let ask = Request::get("http://a/").header("accept-encoding", coding).body(()).expect("valid");
        let answer = H2c::connect(gateway.address()).await.send(ask, b"").await.expect("an answer");
        assert_eq!((answer.status, answer.field("content-encoding")), (200, None), "{coding}");
        assert!(answer.body.is_empty(), "{coding}");
        // What GET would be answered is not known here.
        let head = request(gateway.address(), "HEAD /", &format!("Accept-Encoding: {coding}\r\n")).await;
        assert_eq!(head.field("content-encoding"), Some(coding));
    }
}

/// An HTTP/2 origin without TLS: a text in two pieces, then trailers.
async fn with_trailers() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("bound");
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let Ok(mut connection) = h2::server::handshake(stream).await else { return };
                while let Some(Ok((_, mut respond))) = connection.accept().await {
                    let answer = Response::builder().header("content-type", "text/plain").body(());
                    let mut body = respond.send_response(answer.expect("valid"), false).expect("open");
                    body.send_data(Bytes::from_static(b"first, "), false).expect("open");
                    body.send_data(Bytes::from_static(b"second"), false).expect("open");
                    let mut trailers = HeaderMap::new();
                    trailers.insert("x-sum", "13".parse().expect("valid"));
                    body.send_trailers(trailers).expect("open");
                }
            });
        }
    });
    address
}

#[tokio::test]
async fn a_body_that_ends_in_trailers_is_ended_all_the_same() {
    let gateway = compressing(with_trailers().await, "protocol: h2c,").await;
    for coding in CODINGS {
        let answer = request(gateway.address(), "GET /", &format!("Accept-Encoding: {coding}\r\n")).await;
        assert_eq!(decoded(&answer), b"first, second", "{coding}");
        let ask = Request::get("http://a/").header("accept-encoding", coding).body(()).expect("valid");
        let answer = H2c::connect(gateway.address()).await.send(ask, b"").await.expect("an answer");
        let mut decoder = decoder(coding);
        assert_eq!(&decoder.piece(&answer.body).expect("decodes")[..], b"first, second", "{coding}");
        assert_eq!(decoder.finish(), Ok(()), "{coding}");
    }
}
