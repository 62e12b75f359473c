//! RFC 9112, HTTP/1.1.

use tokio::io::AsyncReadExt;

use crate::harness::{Gateway, Nginx, Origin, Wire, exchange, soon};

#[tokio::test]
async fn s3_2_a_request_without_exactly_one_valid_host_is_a_400() {
    let origin = Origin::echo().await;
    let gateway = Gateway::before(&origin, "").await;
    for fields in [
        "",
        "Host: a\r\nHost: b\r\n",
        "Host: a\r\nHost: a\r\n",
        "Host: a, b\r\n",
        "Host: u@a\r\n",
        "Host: a/b\r\n",
    ] {
        let answer = exchange(gateway.address(), format!("GET / HTTP/1.1\r\n{fields}\r\n")).await;
        assert_eq!(answer.map(|answer| answer.status), Ok(400), "{fields:?}");
    }
    assert!(origin.heads().is_empty());
}

#[tokio::test]
async fn s3_2_2_the_authority_of_an_absolute_target_counts_and_not_the_host_field() {
    let gateway = Gateway::start(
        "routes:\n- {name: inner, match: {hosts: [inner.test]}, respond: {status: 200, body: inner}}\n\
         - {name: outer, match: {hosts: [outer.test]}, respond: {status: 200, body: outer}}",
    )
    .await;
    for (target, host) in [("http://outer.test/", "inner.test"), ("http://inner.test/", "outer.test")] {
        let head = format!("GET {target} HTTP/1.1\r\nHost: {host}\r\n\r\n");
        let answer = exchange(gateway.address(), head).await.expect("an answer");
        assert!(answer.status == 400 || target.contains(&answer.text()), "{target} with {host}: {answer:?}");
    }
}

#[tokio::test]
async fn s3_2_1_an_absolute_target_without_a_path_has_one_in_origin_form() {
    let origin = Origin::echo().await;
    let gateway = Gateway::before(&origin, "").await;
    for (target, sent) in [("http://a", "/"), ("http://a?b", "/?b"), ("http://a/?b", "/?b"), ("/?b", "/?b")] {
        let head = format!("GET {target} HTTP/1.1\r\nHost: a\r\n\r\n");
        assert_eq!(exchange(gateway.address(), head).await.map(|answer| answer.status), Ok(200), "{target}");
        assert_eq!(
            origin.heads().last().map(|head| head.target().to_owned()).as_deref(),
            Some(sent),
            "{target}"
        );
    }
}

#[tokio::test]
async fn s3_2_letters_beyond_ascii_are_escaped_in_paths_and_queries() {
    let origin = Origin::echo().await;
    let gateway = Gateway::before(&origin, "").await;
    exchange(gateway.address(), "GET /\u{fc}?\u{fc}=%c3|{} HTTP/1.1\r\nHost: a\r\n\r\n")
        .await
        .expect("an answer");
    assert_eq!(origin.head().target(), "/%C3%BC?%C3%BC=%c3|{}");
}

#[tokio::test]
async fn s5_1_no_space_between_a_name_and_its_colon() {
    let origin = Origin::echo().await;
    let gateway = Gateway::before(&origin, "").await;
    for field in ["Content-Length : 3", "X\tY: 1", " folded: 1", "Bad\u{b}Name: 1", ": empty"] {
        let answer =
            exchange(gateway.address(), format!("GET / HTTP/1.1\r\nHost: a\r\n{field}\r\n\r\n")).await;
        assert_eq!(answer.map(|answer| answer.status), Ok(400), "{field:?}");
    }
}

#[tokio::test]
async fn s6_3_framing_that_can_be_read_in_two_ways_is_refused_or_ends_the_connection() {
    let origin = Origin::echo().await;
    let gateway = Gateway::before(&origin, "").await;
    for framing in [
        "Content-Length: 3\r\nContent-Length: 4",
        "Content-Length: 3, 4",
        "Content-Length: +3",
        "Content-Length: 0x3",
        "Content-Length: -1",
        "Content-Length: 99999999999999999999",
        "Transfer-Encoding: chunked, identity",
        "Transfer-Encoding: xchunked",
        "Transfer-Encoding: \u{b}chunked",
        "Transfer-Encoding: chunked\r\nContent-Length: 3",
    ] {
        let mut client = Wire::connect(gateway.address()).await;
        let smuggled = "GET /smuggled HTTP/1.1\r\nHost: a\r\n\r\n";
        client.send(format!("POST / HTTP/1.1\r\nHost: a\r\n{framing}\r\n\r\n0\r\n\r\n{smuggled}")).await;
        let answer = client.answer().await.unwrap_or_else(|e| panic!("{framing:?}: {e:?}"));
        assert!(answer.status == 400 || framing.contains("\r\n"), "{framing:?}: {answer:?}");
        let rest = String::from_utf8_lossy(&client.rest().await).into_owned();
        assert!(!rest.contains(" 200 "), "{framing:?}: {rest}");
    }
    assert!(origin.heads().iter().all(|head| head.target() != "/smuggled"));
    for head in origin.heads() {
        let both = head.field("content-length").is_some() && head.field("transfer-encoding").is_some();
        assert!(!both, "{head:?}");
    }
}

#[tokio::test]
async fn s6_2_a_length_goes_on_without_leading_zeros_and_without_what_looks_like_it() {
    // As an octal number or by its first 18 digits it would be another length.
    let origin = Origin::echo().await;
    let gateway = Gateway::before(&origin, "").await;
    for length in ["3", "03", "010", "0000000000000000000000003"] {
        let body = "a".repeat(length.trim_start_matches('0').parse().expect("a number"));
        let fields =
            format!("Content-Length: {length}\r\nContent_Length: 0\r\nTransfer_Encoding: chunked\r\n");
        let head = format!("POST / HTTP/1.1\r\nHost: a\r\n{fields}\r\n{body}");
        assert_eq!(exchange(gateway.address(), head).await.map(|answer| answer.status), Ok(200), "{length}");
        let head = origin.heads().pop().expect("a request");
        assert_eq!(head.field("content-length"), Some(length.trim_start_matches('0')), "{length}");
        assert_eq!((head.field("content_length"), head.field("transfer_encoding")), (None, None), "{length}");
    }
}

#[tokio::test]
async fn s6_1_a_client_of_http_1_0_gets_no_transfer_coding_from_any_origin() {
    let chunked = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n";
    let http2 = Origin::new(|wire| async move {
        let Ok(mut connection) = h2::server::handshake(wire.into_stream()).await else { return };
        while let Some(Ok((_, mut respond))) = connection.accept().await {
            let mut body = respond.send_response(http::Response::new(()), false).expect("open");
            body.send_data("ok".into(), true).expect("open");
        }
    })
    .await;
    for (origin, protocol) in [(Origin::answering(chunked).await, "http/1.1"), (http2, "h2c")] {
        let gateway = Gateway::start(&format!(
            "upstreams: [{{name: up, protocol: {protocol}, backends: [{{address: \"{}\"}}]}}]\n\
             routes: [{{name: all, match: {{paths: [\"/*\"]}}, upstream: up}}]",
            origin.address
        ))
        .await;
        let answer =
            exchange(gateway.address(), "GET / HTTP/1.0\r\nHost: a\r\n\r\n").await.expect("an answer");
        assert_eq!((answer.status, answer.field("transfer-encoding")), (200, None), "{protocol}");
        assert_eq!((answer.text().as_str(), answer.field("connection")), ("ok", Some("close")), "{protocol}");
    }
}

#[tokio::test]
async fn s7_1_a_broken_chunk_never_reaches_the_origin_as_a_whole_body() {
    let origin = Origin::echo().await;
    let gateway = Gateway::before(&origin, "").await;
    for chunks in [
        "3\r\nabcX\r\n0\r\n\r\n",
        "g\r\nabc\r\n0\r\n\r\n",
        "-3\r\nabc\r\n0\r\n\r\n",
        "0x3\r\nabc\r\n0\r\n\r\n",
        "3 \r\nabc\r\n0\r\n\r\n",
        "3\nabc\n0\n\n",
        "3\r\nabc\n0\r\n\r\n",
        "3;a=b\nabc\r\n0\r\n\r\n",
        "3\r\nabc\r\n0\r\nA b: c\r\n\r\n",
        "3\r\nabc\r\n0\r\n\n",
        "ffffffffffffffffff\r\na",
    ] {
        let head = "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n";
        let smuggled = "GET /smuggled HTTP/1.1\r\nHost: a\r\n\r\n";
        let answer = exchange(gateway.address(), format!("{head}{chunks}{smuggled}")).await;
        let answer = answer.unwrap_or_else(|e| panic!("{chunks:?}: {e:?}"));
        assert_eq!((answer.status, answer.field("connection")), (400, Some("close")), "{chunks:?}");
    }
    assert!(origin.heads().iter().all(|head| head.target() != "/smuggled"));
}

#[tokio::test]
async fn s9_3_a_client_that_says_close_is_told_close_and_closed() {
    let origin = Origin::echo().await;
    let gateway = Gateway::before(&origin, "").await;
    for head in
        ["GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n", "GET / HTTP/1.0\r\nHost: a\r\n\r\n"]
    {
        let mut client = Wire::connect(gateway.address()).await;
        client.send(head).await;
        let answer = client.answer().await.expect("an answer");
        assert_eq!((answer.status, answer.field("connection")), (200, Some("close")), "{head:?}");
        client.closed().await;
    }
}

#[tokio::test]
async fn s9_3_an_http10_client_may_ask_to_keep_the_connection() {
    let origin = Origin::echo().await;
    let gateway = Gateway::before(&origin, "").await;
    let mut client = Wire::connect(gateway.address()).await;
    for _ in 0..2 {
        client.send("GET / HTTP/1.0\r\nHost: a\r\nConnection: keep-alive\r\n\r\n").await;
        let answer = client.answer().await.expect("an answer");
        assert_eq!((answer.status, answer.field("connection")), (200, Some("keep-alive")));
    }
}

#[tokio::test]
async fn s9_3_2_pipelined_requests_are_answered_in_order() {
    let origin = Origin::echo().await;
    let gateway = Gateway::before(&origin, "").await;
    let mut client = Wire::connect(gateway.address()).await;
    let post = "POST /2 HTTP/1.1\r\nHost: a\r\nContent-Length: 9\r\n\r\nGET /x HT";
    let get = |n: u8| format!("GET /{n} HTTP/1.1\r\nHost: a\r\n\r\n");
    let chunked = "POST /4 HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n3;e\r\nabc\r\n0\r\n\r\n";
    client.send(format!("{}{post}{}{chunked}{}", get(1), get(3), get(5))).await;
    for n in 1..=5 {
        let answer = client.answer().await.expect("an answer");
        assert!(answer.text().contains(&format!(" /{n} HTTP/1.1")), "{answer:?}");
    }
}

#[tokio::test]
async fn s2_2_an_answer_of_an_origin_cannot_split_into_two() {
    let origin = Origin::answering("HTTP/1.1 200 OK\r\nX-A: 1\rX-B: 2\r\nContent-Length: 2\r\n\r\nok").await;
    let gateway = Gateway::before(&origin, "").await;
    let answer = exchange(gateway.address(), "GET / HTTP/1.1\r\nHost: a\r\n\r\n").await.expect("an answer");
    assert!(
        answer.status == 502 || !answer.head.fields.iter().any(|(_, value)| value.contains('\r')),
        "{answer:?}"
    );
}

#[tokio::test]
async fn s6_3_what_follows_an_origins_answer_is_never_given_to_another_request() {
    let origin = Origin::answering(
        "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nokHTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\nforged",
    )
    .await;
    let gateway = Gateway::before(&origin, "").await;
    for _ in 0..20 {
        let answer =
            exchange(gateway.address(), "GET / HTTP/1.1\r\nHost: a\r\n\r\n").await.expect("an answer");
        assert_ne!(answer.text(), "forged");
    }
}

#[tokio::test]
async fn s6_3_an_origins_framing_that_can_be_read_in_two_ways_is_resolved_or_refused() {
    for (framing, body) in [
        ("Content-Length: 50\r\nTransfer-Encoding: chunked", Some("hello")),
        ("Transfer-Encoding: chunked\r\nContent-Length: 3", Some("hello")),
        ("Content-Length: 5\r\nContent-Length: 15", None),
        ("Content-Length: 5, 15", None),
        ("Content-Length: +15", None),
    ] {
        let head = format!("HTTP/1.1 200 OK\r\n{framing}\r\n\r\n5\r\nhello\r\n0\r\n\r\n");
        let origin = Origin::answering(head).await;
        let gateway = Gateway::before(&origin, "").await;
        let mut client = Wire::connect(gateway.address()).await;
        client.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n").await;
        let answer = client.answer().await.expect("an answer");
        let both = answer.field("content-length").is_some() && answer.field("transfer-encoding").is_some();
        assert!(!both, "{framing:?}: {answer:?}");
        match body {
            Some(body) => assert_eq!((answer.status, answer.text().as_str()), (200, body), "{framing:?}"),
            None => assert_eq!((answer.status, answer.problem().as_str()), (502, "upstream-protocol")),
        }
    }
}

#[tokio::test]
async fn s6_3_content_where_none_may_be_is_never_given_to_another_request() {
    for answer in [
        "HTTP/1.1 204 No Content\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\nforged",
        "HTTP/1.1 304 Not Modified\r\nContent-Length: 70\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\nforged",
    ] {
        let origin = Origin::answering(answer).await;
        let gateway = Gateway::before(&origin, "").await;
        let mut client = Wire::connect(gateway.address()).await;
        for _ in 0..10 {
            client.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n").await;
            let answer = client.answer().await.expect("an answer");
            assert!(matches!(answer.status, 204 | 304), "{answer:?}");
        }
    }
}

#[tokio::test]
async fn s9_6_who_is_answered_while_still_sending_gets_to_read_the_answer() {
    let origin = Origin::echo().await;
    let gateway = Gateway::before(&origin, "server: {limits: {body_bytes: 100KiB}}").await;
    for framing in ["Transfer-Encoding: chunked", "Content-Length: 3000000"] {
        let mut client = Wire::connect(gateway.address()).await;
        client.send(format!("POST / HTTP/1.1\r\nHost: a\r\n{framing}\r\n\r\n")).await;
        // A client that writes it all before it reads, as many do.
        for _ in 0..30 {
            client.send(format!("186a0\r\n{}\r\n", "x".repeat(100_000))).await;
        }
        assert_eq!(client.answer().await.map(|answer| answer.status), Ok(413), "{framing}");
    }
}

#[tokio::test]
async fn s9_6_requests_behind_the_last_one_do_not_have_its_connection_reset() {
    let origin = Origin::echo().await;
    for way in ["", "direct: false, "] {
        let gateway = Gateway::start(&format!(
            "upstreams: [{{name: origin, backends: [{{address: \"{}\"}}]}}]\n\
             routes: [{{name: all, {way}upstream: origin}}]",
            origin.address
        ))
        .await;
        let mut client = Wire::connect(gateway.address()).await;
        let more = "GET /unread HTTP/1.1\r\nHost: a\r\n\r\n".repeat(10_000);
        client.send(format!("GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n{more}")).await;
        assert_eq!(client.answer().await.map(|answer| answer.status), Ok(200), "{way}");
        let end = soon("the end", client.into_stream().read(&mut [0; 16])).await;
        assert_eq!(end.map_err(|error| error.kind()), Ok(0), "{way}");
    }
}

#[tokio::test]
async fn s11_2_what_is_odd_but_valid_is_one_request_to_nginx_too() {
    let nginx =
        Nginx::with(&[], "", "location / { return 200 \"$request_method $request_uri $host\"; }").await;
    let gateway = Gateway::to(nginx.address, "").await;
    let chunked = "Transfer-Encoding:\tChunked \r\n\r\n";
    for (request, read) in [
        ("\r\nGET /a HTTP/1.9\r\nHost: A.test:80\r\n\r\n".to_owned(), "GET /a a.test"),
        ("GET http://a.test?b HTTP/1.1\r\nHost: a.test\r\n\r\n".into(), "GET /?b a.test"),
        ("GET //a/./b/../\u{fc}?\u{fc} HTTP/1.1\r\nHost: a\r\n\r\n".into(), "GET /a/%C3%BC?%C3%BC a"),
        ("GET /a HTTP/1.1\r\nHost: a\r\nUpgrade: h2c\r\nConnection: Upgrade, HTTP2-Settings\r\nHTTP2-Settings: AAMA\r\n\r\n".into(), "GET /a a"),
        ("POST /a HTTP/1.1\r\nHost: a\r\nContent-Length:\t0005 \r\n\r\nGET /".into(), "POST /a a"),
        ("GET /a HTTP/1.1\r\nHost: a\r\nConnection: content-length, host\r\nContent-Length: 5\r\n\r\nGET /".into(), "GET /a a"),
        ("POST /a HTTP/1.1\r\nHost: a\r\nTransfer_Encoding: chunked\r\nContent-Length: 5\r\n\r\n0\r\n\r\n".into(), "POST /a a"),
        (format!("POST /a HTTP/1.1\r\nHost: a\r\n{chunked}0;a=\"0\"\r\n\r\n"), "POST /a a"),
        (format!("POST /a HTTP/1.1\r\nHost: a\r\n{chunked}00A;b\r\n0\r\n\r\nGET /\r\n0\r\nContent-Length: 9\r\n\r\n"), "POST /a a"),
    ] {
        let mut client = Wire::connect(gateway.address()).await;
        client.send(format!("{request}GET /last HTTP/1.1\r\nHost: a\r\n\r\n")).await;
        for read in [read, "GET /last a"] {
            let answer = client.answer().await.unwrap_or_else(|e| panic!("{request:?}: {e:?}"));
            assert_eq!((answer.status, answer.text().as_str()), (200, read), "{request:?}");
        }
    }
}
