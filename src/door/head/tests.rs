//! Heads, right and wrong, in one piece and in several.

use std::time::Duration;

use pingora::protocols::http::ServerSession;
use proptest::prelude::*;

use super::*;

const LIMITS: HeadLimits = HeadLimits {
    header_bytes: 200,
    header_count: 4,
    uri_bytes: 100,
    header_timeout: Duration::ZERO,
    idle_timeout: Duration::ZERO,
    body_timeout: Duration::ZERO,
    min_rate: None,
};

fn scan(bytes: impl AsRef<[u8]>) -> Result<Option<Head>, Rule> {
    Scanner::default().read(bytes.as_ref(), &LIMITS)
}

fn body(fields: &str) -> Result<Body, Rule> {
    scan(format!("POST / HTTP/1.1\r\nHost: a\r\n{fields}\r\n")).map(|head| head.unwrap().body)
}

#[test]
fn each_line_of_a_head_has_one_form() {
    for (head, rule) in [
        ("GET / HTTP/1.1\r\nHost: a\r\n\n", Rule::BareLf),
        ("GET / HTTP/1.1\nHost: a\r\n\r\n", Rule::BareLf),
        ("GET / HTTP/1.1\rHost: a\r\n\r\n", Rule::RequestLine),
        ("\r\n\r\nGET / HTTP/1.1\r\n", Rule::RequestLine),
        ("GET  / HTTP/1.1\r\n", Rule::RequestLine),
        ("GET / x HTTP/1.1\r\n", Rule::RequestLine),
        ("GET / HTTP/1.1 \r\n", Rule::RequestLine),
        ("GET /\tHTTP/1.1\r\n", Rule::RequestLine),
        ("GET /\r\n", Rule::RequestLine),
        ("GET / http/1.1\r\n", Rule::RequestLine),
        ("GET / HTTP/1.10\r\n", Rule::RequestLine),
        ("GET / HTTP/11\r\n", Rule::RequestLine),
        (" / HTTP/1.1\r\n", Rule::Method),
        (" GET / HTTP/1.1\r\n", Rule::RequestLine),
        ("G(T / HTTP/1.1\r\n", Rule::Method),
        ("GET\r\r\n", Rule::Method),
        ("GET / HTTP/0.9\r\n", Rule::Version),
        ("GET / HTTP/2.0\r\n", Rule::Version),
        ("GET / HTTP/3.0\r\n", Rule::Version),
        ("GET / HTTP/1.1\r\nHost\r\n", Rule::FieldLine),
        ("GET / HTTP/1.1\r\n: a\r\n", Rule::FieldLine),
        ("GET / HTTP/1.1\r\nHost : a\r\n", Rule::SpaceBeforeColon),
        ("GET / HTTP/1.1\r\nHost\t: a\r\n", Rule::SpaceBeforeColon),
        ("GET / HTTP/1.1\r\n Host: a\r\n", Rule::Folding),
        ("GET / HTTP/1.1\r\nHost: a\r\n\tb\r\n", Rule::Folding),
        ("GET / HTTP/1.1\r\nHo st: a\r\n", Rule::FieldName),
        ("GET / HTTP/1.1\r\nH\u{f6}st: a\r\n", Rule::FieldName),
        ("GET / HTTP/1.1\r\nA: \0\r\n", Rule::FieldValue),
        ("GET / HTTP/1.1\r\nA: b\rc\r\n", Rule::FieldValue),
        ("GET / HTTP/1.1\r\nA: \u{7f}\r\n", Rule::FieldValue),
    ] {
        assert_eq!(scan(head), Err(rule), "{head:?}");
    }
}

#[test]
fn a_target_has_one_of_the_forms_of_rfc_9112_s3_2() {
    let ask = |target: &str, host: &str| scan(format!("GET {target} HTTP/1.1\r\nHost: {host}\r\n\r\n"));
    for target in ["/", "/a?b", "*", "http://a", "HTTP://a/b", "https://a?b", "//a", "/\u{fc}", "/a|b{}"] {
        assert!(ask(target, "a").is_ok_and(|head| head.is_some()), "{target}");
    }
    for target in ["a", "a:80", "ftp://a/", "http:/a", "http:///", "http://u@a/", "/a#b", "/a\u{7f}", "/\0"] {
        assert_eq!(ask(target, "a"), Err(Rule::Target), "{target}");
    }
    assert_eq!(ask("http://a/", "b"), Err(Rule::TargetAgainstHost));
    assert_eq!(ask("http://a/", "a:80"), Err(Rule::TargetAgainstHost));
}

#[test]
fn a_request_of_1_1_has_exactly_one_valid_host_as_rfc_9112_s3_2_says() {
    let ask = |version: &str, fields: &str| scan(format!("GET / HTTP/{version}\r\n{fields}\r\n")).err();
    assert_eq!(ask("1.1", ""), Some(Rule::NoHost));
    assert_eq!(ask("1.0", ""), None);
    assert_eq!(ask("1.1", "Host:\r\n"), None, "a target without authority has an empty one");
    for fields in ["Host: a\r\nhost: a\r\n", "Host: a, b\r\n", "Host: u@a\r\n", "Host: a/b\r\n"] {
        assert_eq!((ask("1.1", fields), ask("1.0", fields)), (Some(Rule::Host), Some(Rule::Host)));
    }
}

#[test]
fn the_end_of_a_request_is_said_once_as_rfc_9112_s6_says() {
    assert_eq!(body(""), Ok(Body::Length(0)));
    assert_eq!(body("Content-Length: 007\r\n"), Ok(Body::Length(7)));
    assert_eq!(body("transfer-encoding:Chunked\r\n"), Ok(Body::Chunked));
    for value in ["", "+5", "-5", "5 5", "5, 5", "0x5", "5.0", "99999999999999999999", "9223372036854775808"]
    {
        assert_eq!(body(&format!("Content-Length: {value}\r\n")), Err(Rule::Length), "{value}");
    }
    assert_eq!(body("Content-Length: 5\r\nContent-Length: 5\r\n"), Err(Rule::Length));
    for value in ["", "identity", "gzip, chunked", "chunked, chunked", "xchunked", "chunked;a=b"] {
        assert_eq!(body(&format!("Transfer-Encoding: {value}\r\n")), Err(Rule::Coding), "{value}");
    }
    let coding = "Transfer-Encoding: chunked\r\n";
    assert_eq!(body(&format!("{coding}{coding}")), Err(Rule::Coding));
    assert_eq!(body(&format!("{coding}Content-Length: 5\r\n")), Err(Rule::LengthAndCoding));
    let old = format!("POST / HTTP/1.0\r\n{coding}\r\n");
    assert_eq!(scan(old), Err(Rule::Coding), "RFC 9112 s6.1: faulty framing");
}

#[test]
fn only_an_upgrade_without_a_body_leaves_the_end_open() {
    let asks = |lines: &str| body(&format!("Connection: keep-alive, Upgrade\r\n{lines}"));
    assert_eq!(asks("Upgrade: websocket\r\n"), Ok(Body::Open));
    assert_eq!(asks("Upgrade: websocket\r\nContent-Length: 0\r\n"), Ok(Body::Open));
    assert_eq!(asks("Upgrade: h2c\r\n"), Ok(Body::Length(0)), "RFC 9110 s7.8: it may be ignored");
    assert_eq!(asks("Upgrade: websocket\r\nContent-Length: 5\r\n"), Ok(Body::Length(5)));
    let unnamed = "Upgrade: websocket\r\nConnection: keep-alive\r\n";
    assert_eq!(body(unnamed), Ok(Body::Length(0)), "RFC 9110 s7.8: `Connection` must name it");
    let old = "GET / HTTP/1.0\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n";
    assert_eq!(scan(old).unwrap().unwrap().body, Body::Length(0));
}

#[test]
fn garbage_is_known_by_its_first_bytes() {
    assert_eq!(scan([0x16]), Ok(None));
    assert_eq!(scan([0x16, 3, 1]), Err(Rule::Tls));
    assert_eq!(scan([0x16, 9]), Err(Rule::Method));
    assert_eq!(scan([0]), Err(Rule::Method));
    assert_eq!(scan("SSH-2.0-x\r\n"), Err(Rule::RequestLine));
    assert_eq!(scan([b'a'; 165]), Err(Rule::TargetTooLong));
}

#[test]
fn a_limit_is_the_same_wherever_a_piece_ends() {
    let field = format!("A: {}\r\n", "b".repeat(184));
    let method = "A".repeat(153);
    for head in [format!("GET / HTTP/1.1\r\nHost: a\r\n{field}\r\n"), format!("{method} / HTTP/1.0\r\n\r\n")]
    {
        assert!(scan(&head).is_ok_and(|head| head.is_some()), "{head:?}");
        for cut in 0..head.len() {
            assert_eq!(scan(&head[..cut]), Ok(None), "{cut}");
        }
    }
}

/// A head that may have anything wrong with it.
fn any_head() -> impl Strategy<Value = Vec<u8>> {
    let line = prop_oneof![
        Just("GET / HTTP/1.1\r\n"),
        Just("POST http://a/ HTTP/1.1\r\n"),
        Just("GET /%zz\u{fc}\" HTTP/1.0\r\n"),
        Just("OPTIONS * HTTP/1.1\r\n"),
        Just("M!X //x?y HTTP/1.3\r\n"),
    ];
    let field = prop_oneof![
        Just("Host: a\r\n"),
        Just("Host:\r\n"),
        Just("Content-Length: 5\r\n"),
        Just("Upgrade: websocket\r\n"),
        Just("Transfer-Encoding: chunked\r\n"),
        Just("Connection: upgrade\r\n"),
        Just("A: \u{e9}\t b \r\n"),
    ];
    let fields = proptest::collection::vec(field, 0..4);
    let harm = proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>(), any::<bool>()), 0..3);
    (line, fields, harm).prop_map(|(line, fields, harm)| {
        let mut head = format!("{line}{}\r\n", fields.concat()).into_bytes();
        for (at, byte, replace) in harm {
            let at = at.index(head.len());
            if replace { head[at] = byte } else { head.insert(at, byte) }
        }
        head
    })
}

proptest! {
    #[test]
    fn pieces_make_no_difference(head in any_head(), cut in any::<prop::sample::Index>()) {
        let mut scanner = Scanner::default();
        let first = scanner.read(&head[..cut.index(head.len())], &LIMITS);
        let pieces = match first {
            Ok(None) => scanner.read(&head, &LIMITS),
            known => known,
        };
        prop_assert_eq!(pieces, scan(&head));
    }

    #[test]
    fn what_passes_is_a_request_to_pingora_too(head in any_head()) {
        if let Ok(Some(found)) = scan(&head) {
            let mut bytes = head.clone();
            found.higher_minor.into_iter().for_each(|at| bytes[at] = b'1');
            let whole = bytes[found.start..found.end].to_vec();
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            let read = runtime.block_on(async {
                let (_client, server) = tokio::net::UnixStream::pair().unwrap();
                let stream: pingora::protocols::l4::stream::Stream = server.into();
                let mut session = ServerSession::new_http1(Box::new(stream));
                session.set_pipelined_prefix(bytes::BytesMut::from(&whole[..]));
                session.read_request().await
            });
            prop_assert!(matches!(read, Ok(true)), "{:?}: {:?}", String::from_utf8_lossy(&whole), read);
        }
    }
}
