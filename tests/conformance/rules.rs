//! Requests that break a rule of the table in the manual's chapter on configuration: each is answered as
//! the table says, is in the log with what is wrong, and never reaches an origin as a whole request.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use tempfile::TempDir;
use tollhouse::door::Rule;

use crate::harness::{Authority, Gateway, Kind, Origin, Wire, frames, soon};

/// A request that another server on the way could take for more.
const SMUGGLED: &[u8] = b"GET /smuggled HTTP/1.1\r\nHost: a\r\n\r\n";

/// How a request comes.
#[derive(Clone, Copy, Debug)]
enum Sent {
    /// These bytes instead of a request line.
    Line(&'static [u8]),
    /// These field lines after a request line, instead of `Host`.
    Fields(&'static [u8]),
    /// These field lines after `Host`, and a body of `0\r\n\r\n`.
    More(&'static [u8]),
    /// This body, in chunks.
    Chunks(&'static [u8]),
    /// A field or a target that is longer than any.
    Long(Long),
    /// These bytes, and then nothing for too long.
    Slowly(&'static [u8]),
    /// These bytes, and the end of the connection.
    Ended(&'static [u8]),
    /// These bytes, where TLS is spoken.
    ToTls(&'static [u8]),
    /// These fields of HTTP/2.
    Http2(&'static [(&'static str, &'static str)]),
}

#[derive(Clone, Copy, Debug)]
enum Long {
    Target,
    Field,
    Fields,
    Extension,
    Trailers,
}

use Sent::{Chunks, Ended, Fields, Http2, Line, More, Slowly, ToTls};

/// Rules by their name in the table, and requests that break them.
#[rustfmt::skip]
const CASES: &[(&str, &[Sent])] = &[
    ("tls", &[Line(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03")]),
    ("plain-http", &[ToTls(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"), ToTls(b"DELETE /")]),
    ("settings", &[Ended(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"), Line(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\nGET / HTTP/1.1")]),
    ("unfinished", &[Ended(b"GET"), Ended(b"GET / HTTP/1.1\r\nHost: a\r\n")]),
    ("slow-head", &[Slowly(b"GET / HTTP/1.1\r\nHost: a\r\n"), Slowly(b"GET / HTTP/1.1\r\nHost: a\r\nContent-Le")]),
    ("request-line", &[
        Line(b"GET  / HTTP/1.1"), Line(b"GET /  HTTP/1.1"), Line(b"GET / HTTP/1.1 "), Line(b" GET / HTTP/1.1"),
        Line(b"GET / HTTP/1.1\t"), Line(b"GET /"), Line(b"GET / x HTTP/1.1"), Line(b"GET / HTTP/1.10"),
        Line(b"GET / HTTP/01.1"), Line(b"GET / HTTP/1.01"), Line(b"GET / HTTP/2"), Line(b"GET / HTTP/1."),
        Line(b"GET / HTTP/.1"), Line(b"GET / http/1.1"), Line(b"GET / HTTP/1.1x"), Line(b"GET / HTTP/-1.1"),
        Line(b"GET / HTTPS/1.1"), Line(b"GET / ICY/1.1"), Line(b"GET / HTTP\\1.1"), Line(b"\r\n\r\nGET / HTTP/1.1"),
        Line(b"GET / HTTP/1.1\r"),
    ]),
    ("method", &[
        Line(b"G(T / HTTP/1.1"), Line(b"G\xffT / HTTP/1.1"), Line(b"GET, / HTTP/1.1"), Line(b"GET\t/\tHTTP/1.1"),
        Line(b"\0GET / HTTP/1.1"), Line(b"GET\0 / HTTP/1.1"), Line(b"\xef\xbb\xbfGET / HTTP/1.1"),
        Line(b"\rGET / HTTP/1.1"), Line(b"\" / HTTP/1.1"),
    ]),
    ("connect", &[Line(b"CONNECT a:80 HTTP/1.1"), Line(b"CONNECT / HTTP/1.1"), Line(b"CONNECT a:80 HTTP/1.0")]),
    ("target", &[
        Line(b"GET a HTTP/1.1"), Line(b"GET a/b HTTP/1.1"), Line(b"GET ?a HTTP/1.1"), Line(b"GET #a HTTP/1.1"),
        Line(b"GET /#a HTTP/1.1"), Line(b"GET /?a#b HTTP/1.1"), Line(b"GET /\0 HTTP/1.1"), Line(b"GET /\x0b HTTP/1.1"),
        Line(b"GET /\x7f HTTP/1.1"), Line(b"GET /\xff HTTP/1.1"), Line(b"GET /\xc0\xaf HTTP/1.1"),
        Line(b"GET /?\xff HTTP/1.1"), Line(b"GET /<a> HTTP/1.1"), Line(b"GET /` HTTP/1.1"), Line(b"GET /?\" HTTP/1.1"),
        Line(b"GET ftp://a/ HTTP/1.1"), Line(b"GET file:///a HTTP/1.1"), Line(b"GET http:/a HTTP/1.1"),
        Line(b"GET http:a HTTP/1.1"), Line(b"GET http:///a HTTP/1.1"), Line(b"GET http:\\\\a\\ HTTP/1.1"),
        Line(b"GET http://u@a/ HTTP/1.1"), Line(b"GET http://u:p@a/ HTTP/1.1"), Line(b"GET http://a\\@b/ HTTP/1.1"),
        Line(b"GET http://a:99999/ HTTP/1.1"), Line(b"GET http://a:+80/ HTTP/1.1"), Line(b"GET http://a:8O/ HTTP/1.1"),
        Line(b"GET http://[fe80::1%25eth0]/ HTTP/1.1"), Line(b"GET http://[::1%eth0]/ HTTP/1.1"),
        Line(b"GET http://a..b/ HTTP/1.1"), Line(b"GET http://a%41/ HTTP/1.1"), Line(b"GET http://a#b HTTP/1.1"),
        Line(b"OPTIONS ** HTTP/1.1"), Line(b"OPTIONS *? HTTP/1.1"), Line(b"OPTIONS */a HTTP/1.1"),
        Line(b"connect a:80 HTTP/1.1"),
    ]),
    ("target-too-long", &[Sent::Long(Long::Target)]),
    ("target-against-host", &[
        Line(b"GET http://b/ HTTP/1.1"), Line(b"GET http://a:80/ HTTP/1.1"), Line(b"GET https://b/ HTTP/1.1"),
        Line(b"GET http://a./ HTTP/1.1"),
    ]),
    ("version", &[
        Line(b"GET / HTTP/0.9"), Line(b"GET / HTTP/2.0"), Line(b"GET / HTTP/3.0"), Line(b"GET / HTTP/9.9"),
        Line(b"PRI * HTTP/2.0"),
    ]),
    ("bare-lf", &[
        Line(b"GET / HTTP/1.1\nX: y"), Line(b"\nGET / HTTP/1.1"), More(b"A: b\nTransfer-Encoding: chunked\r\n"),
        More(b"Content-Length: 3\nA: b\r\n"), More(b"A: b\n"), More(b"\n"), More(b"A: b\n\r\nC: d\r\n"), More(b"A: b\n c\r\n"),
    ]),
    ("field-line", &[More(b"A\r\n"), More(b"A b\r\n"), More(b": a\r\n"), More(b"\r"), More(b"A: b\r\n\r"), More(b"Content-Length 3\r\n")]),
    ("folding", &[
        More(b" A: b\r\n"), More(b"A: b\r\n\tc\r\n"), More(b"A: b\r\n \r\n"), More(b"A:\r\n b\r\n"),
        Fields(b" Host: a\r\n"), Fields(b"A: b\r\n Host: b\r\nHost: a\r\n"), More(b"Content-Length: 3\r\n 0\r\n"),
    ]),
    ("space-before-colon", &[
        More(b"A : b\r\n"), More(b"Transfer-Encoding : chunked\r\n"), More(b"Content-Length\t: 3\r\n"), Fields(b"Host : a\r\n"),
    ]),
    ("field-name", &[
        More(b"A b: c\r\n"), More(b"A\0: b\r\n"), More(b"A\x7f: b\r\n"), More(b"A\xff: b\r\n"), More(b"A(b): c\r\n"),
        More(b"A[]: b\r\n"), More(b"A\"b\": c\r\n"), More(b"A/b: c\r\n"), More(b"A;b: c\r\n"), More(b"A=b: c\r\n"),
        More(b"\rTransfer-Encoding: chunked\r\n"), More(b"\0Transfer-Encoding: chunked\r\n"),
        More(b"\xa0Transfer-Encoding: chunked\r\n"), More(b"Content-Length\0: 3\r\n"), Fields(b"Host;: a\r\n"),
    ]),
    ("field-value", &[
        More(b"A: b\0\r\n"), More(b"A: b\rC: d\r\n"), More(b"A: \x01\r\n"), More(b"A: \x7f\r\n"), More(b"A: b\x0bc\r\n"),
        More(b"A: b\x1bc\r\n"), More(b"A: b\r\rTransfer-Encoding: chunked\r\n"), More(b"Transfer-Encoding: chunked\r\r\n"),
        More(b"Transfer-Encoding: \x0bchunked\r\n"), More(b"Transfer-Encoding: chunked\0\r\n"), More(b"Content-Length: 3\0\r\n"),
        More(b"Content-Length: \x0c3\r\n"), Fields(b"Host: a\0\r\n"),
    ]),
    ("too-many-fields", &[Sent::Long(Long::Fields)]),
    ("fields-too-large", &[Sent::Long(Long::Field)]),
    ("no-host", &[Fields(b""), Fields(b"X-Host: a\r\n"), Fields(b"A: b\r\n")]),
    ("host", &[
        Fields(b"Host: a\r\nHost: a\r\n"), Fields(b"Host: a\r\nhost: b\r\n"), Fields(b"Host: a, b\r\n"), Fields(b"Host: a b\r\n"),
        Fields(b"Host: u@a\r\n"), Fields(b"Host: a/b\r\n"), Fields(b"Host: a?b\r\n"), Fields(b"Host: a#b\r\n"), Fields(b"Host: a\\b\r\n"),
        Fields(b"Host: http://a\r\n"), Fields(b"Host: a%00\r\n"), Fields(b"Host: \xc3\xbc\r\n"), Fields(b"Host: *.a\r\n"),
        Fields(b"Host: \"a\"\r\n"), Fields(b"Host: a\tb\r\n"), Fields(b"Host: [fe80::1%25eth0]\r\n"),
    ]),
    ("content-length", &[
        More(b"Content-Length:\r\n"), More(b"Content-Length: +3\r\n"), More(b"Content-Length: -3\r\n"), More(b"Content-Length: -0\r\n"),
        More(b"Content-Length: 3, 3\r\n"), More(b"Content-Length: 3,4\r\n"), More(b"Content-Length: 3,\r\n"), More(b"Content-Length: 3 3\r\n"),
        More(b"Content-Length: 3;\r\n"), More(b"Content-Length: 0x3\r\n"), More(b"Content-Length: 3.0\r\n"), More(b"Content-Length: 3e0\r\n"),
        More(b"Content-Length: 1_0\r\n"), More(b"Content-Length: \"3\"\r\n"), More(b"Content-Length: three\r\n"),
        More(b"Content-Length: \xd9\xa3\r\n"), More(b"Content-Length: 3\xa0\r\n"), More(b"Content-Length: 9223372036854775808\r\n"),
        More(b"Content-Length: 18446744073709551619\r\n"), More(b"Content-Length: 3\r\nContent-Length: 3\r\n"),
        More(b"Content-Length: 0\r\ncontent-length: 3\r\n"),
    ]),
    ("transfer-encoding", &[
        More(b"Transfer-Encoding:\r\n"), More(b"Transfer-Encoding: identity\r\n"), More(b"Transfer-Encoding: gzip\r\n"),
        More(b"Transfer-Encoding: gzip, chunked\r\n"), More(b"Transfer-Encoding: chunked, gzip\r\n"),
        More(b"Transfer-Encoding: chunked, chunked\r\n"), More(b"Transfer-Encoding: chunked,\r\n"), More(b"Transfer-Encoding: ,chunked\r\n"),
        More(b"Transfer-Encoding: \"chunked\"\r\n"), More(b"Transfer-Encoding: chunked;a=b\r\n"), More(b"Transfer-Encoding: xchunked\r\n"),
        More(b"Transfer-Encoding: \xa0chunked\r\n"), More(b"Transfer-Encoding: chun\xe2\x84\xaaed\r\n"),
        More(b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n"),
        More(b"Transfer-Encoding: a\r\ntransfer-encoding: chunked\r\n"),
        Line(b"POST / HTTP/1.0\r\nTransfer-Encoding: chunked"),
    ]),
    ("length-and-coding", &[
        More(b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n"), More(b"Transfer-Encoding: chunked\r\nContent-Length: 0\r\n"),
        Line(b"POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\nContent-Length: 5"),
    ]),
    ("chunk", &[
        Chunks(b"3\r\nabcX\r\n0\r\n\r\n"), Chunks(b"3\r\nabcXX0\r\n\r\n"), Chunks(b"2\r\nabc\r\n0\r\n\r\n"), Chunks(b"g\r\nabc\r\n0\r\n\r\n"),
        Chunks(b"-3\r\nabc\r\n0\r\n\r\n"), Chunks(b"+3\r\nabc\r\n0\r\n\r\n"), Chunks(b"-0\r\n\r\n"), Chunks(b"0x3\r\nabc\r\n0\r\n\r\n"),
        Chunks(b"3_0\r\nabc\r\n0\r\n\r\n"), Chunks(b"3,3\r\nabc\r\n0\r\n\r\n"), Chunks(b" 3\r\nabc\r\n0\r\n\r\n"),
        Chunks(b"3 \r\nabc\r\n0\r\n\r\n"), Chunks(b"3\t\r\nabc\r\n0\r\n\r\n"), Chunks(b"3 ;a\r\nabc\r\n0\r\n\r\n"), Chunks(b"3\0\r\nabc\r\n0\r\n\r\n"),
        Chunks(b"3\nabc\n0\n\n"), Chunks(b"3\rabc\r\n0\r\n\r\n"), Chunks(b"3\r\r\nabc\r\n0\r\n\r\n"), Chunks(b"3\r\nabc\n0\r\n\r\n"),
        Chunks(b"3\r\nabc\r0\r\n\r\n"), Chunks(b"3\r\nabc0\r\n\r\n"), Chunks(b"3\r\nabc\r\n0\n\r\n"), Chunks(b"\r\n0\r\n\r\n"),
        Chunks(b"00000000000000003\r\nabc\r\n0\r\n\r\n"), Chunks(b"10000000000000003\r\nabc\r\n0\r\n\r\n"),
        Chunks(b"8000000000000000\r\na"), Chunks(b"3;a=b\nabc\r\n0\r\n\r\n"), Chunks(b"3;a\rb\r\nabc\r\n0\r\n\r\n"),
        Chunks(b"3;\0\r\nabc\r\n0\r\n\r\n"), Chunks(b"3;a=\"\r\nabc\r\n0\r\n\r\n"), Chunks(b"3;a=\"b\r\n\"\r\nabc\r\n0\r\n\r\n"),
        Chunks(b"3;\r\nabc\r\n0\r\n\r\n"), Chunks(b"3;;a\r\nabc\r\n0\r\n\r\n"), Chunks(b"0;a=\"\r\n\r\n"), Chunks(b"0\r\n\rX"),
        Sent::Long(Long::Extension),
    ]),
    ("trailer", &[
        Chunks(b"0\r\nA b: c\r\n\r\n"), Chunks(b"0\r\n A: b\r\n\r\n"), Chunks(b"0\r\nA : b\r\n\r\n"), Chunks(b"0\r\n: b\r\n\r\n"),
        Chunks(b"0\r\nA\r\n\r\n"), Chunks(b"0\r\nA: b\nC: d\r\n\r\n"), Chunks(b"0\r\nA: b\rC: d\r\n\r\n"), Chunks(b"0\r\nA: \0\r\n\r\n"),
        Chunks(b"0\r\nA: b\r\n c\r\n\r\n"), Chunks(b"0\r\n\n"), Chunks(b"0\r\n"), Sent::Long(Long::Trailers),
    ]),
    ("malformed", &[
        Http2(&[(":authority", "a"), ("host", "b")]), Http2(&[(":authority", "a"), ("host", "a:80")]),
        Http2(&[(":authority", "a"), ("host", "a"), ("host", "a")]), Http2(&[("host", "a"), ("host", "b")]),
        Http2(&[(":authority", "u@a")]), Http2(&[("host", "u@a")]), Http2(&[]),
    ]),
];

/// Rules that no single request breaks, and the tests that break them.
const ELSEWHERE: [(&str, &str); 6] = [
    ("slow-body", include_str!("../gateway/slow.rs")),
    ("slow-reader", include_str!("../gateway/slow.rs")),
    ("http2", include_str!("rfc9113.rs")),
    ("reset-flood", include_str!("../gateway/floods.rs")),
    ("control-flood", include_str!("../gateway/floods.rs")),
    ("continuation-flood", include_str!("../gateway/floods.rs")),
];

#[test]
fn every_rule_has_a_request_that_breaks_it() {
    let cases = CASES.iter().map(|(rule, _)| *rule).chain(ELSEWHERE.iter().map(|(rule, _)| *rule));
    let mut cases: Vec<_> = cases.collect();
    let mut rules: Vec<_> = Rule::all().map(Rule::name).collect();
    cases.sort_unstable();
    rules.sort_unstable();
    assert_eq!(cases, rules, "one line for each");
    assert!(CASES.iter().all(|(_, cases)| !cases.is_empty()));
    for (rule, tests) in ELSEWHERE {
        assert!(tests.contains(&format!("\"{rule}\"")), "nothing breaks {rule}");
    }
}

#[tokio::test]
async fn every_request_that_breaks_a_rule_is_refused_by_it_and_nothing_behind_it_is_read() {
    let (whole, origin) = counting().await;
    let gateway = start(&origin, "10s").await;
    let slow = start(&origin, "300ms").await;
    for (name, cases) in CASES {
        let rule = Rule::all().find(|rule| rule.name() == *name).expect("a rule");
        for case in *cases {
            let gateway = if matches!(case, Slowly(_)) { &slow } else { &gateway };
            refused(gateway, rule, *case).await;
            assert_eq!(whole.load(Ordering::SeqCst), 0, "{name} {case:?} reached the origin");
        }
    }
}

/// Asks, and sees to it that the rule is what the answer and the log tell of.
async fn refused(gateway: &Gateway, rule: Rule, case: Sent) {
    let before = gateway.log().len();
    let shown = format!("{} {case:?}", rule.name());
    if let Http2(fields) = case {
        let pseudo = [(":method", "GET"), (":scheme", "http"), (":path", "/")];
        let outcome =
            frames::ask(gateway.address(), &[frames::headers(&[&pseudo, fields].concat(), true)]).await;
        assert_ne!(outcome, frames::Outcome::Answered(200), "{shown}");
    } else {
        let listener = if matches!(case, ToTls(_)) { "secure" } else { "plain" };
        let mut client = Wire::connect(gateway.listener(listener)).await;
        client.send(bytes(case)).await;
        if matches!(case, Ended(_)) {
            client.half_close().await;
        }
        let said = soon(&shown, client.rest()).await;
        let answers = said.windows(6).filter(|window| window.eq_ignore_ascii_case(b"date: ")).count();
        let status = format!("HTTP/1.1 {} ", rule.kind().status);
        if rule != Rule::Settings {
            assert!(said.starts_with(status.as_bytes()), "{shown}: {}", String::from_utf8_lossy(&said));
            assert_eq!(answers, 1, "{shown}: {}", String::from_utf8_lossy(&said));
        }
    }
    let line = gateway.log_line(|line| line["reason"] == rule.detail()).await;
    assert_eq!(line["status"], rule.kind().status, "{shown}: {line}");
    let lines = soon(&shown, async {
        loop {
            let lines = gateway.log().split_off(before);
            if !lines.is_empty() {
                return lines;
            }
            tokio::time::sleep(std::time::Duration::from_millis(5)).await;
        }
    })
    .await;
    let reasons: Vec<_> = lines.iter().map(|line| line["reason"].as_str().unwrap_or_default()).collect();
    assert_eq!(reasons, [rule.detail()], "{shown}");
}

fn bytes(case: Sent) -> Vec<u8> {
    let join = |parts: &[&[u8]]| parts.concat();
    let chunks = |body: &[u8]| {
        join(&[b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n", body, SMUGGLED])
    };
    match case {
        Line(line) => join(&[line, b"\r\nHost: a\r\n\r\n", SMUGGLED]),
        Fields(fields) => join(&[b"GET / HTTP/1.1\r\n", fields, b"\r\n", SMUGGLED]),
        More(fields) => join(&[b"POST / HTTP/1.1\r\nHost: a\r\n", fields, b"\r\n0\r\n\r\n", SMUGGLED]),
        Chunks(body) => chunks(body),
        Slowly(bytes) | Ended(bytes) | ToTls(bytes) => bytes.to_vec(),
        Sent::Long(Long::Target) => {
            join(&[b"GET /", &[b'a'; 70_000], b" HTTP/1.1\r\nHost: a\r\n\r\n", SMUGGLED])
        }
        Sent::Long(Long::Field) => {
            join(&[b"GET / HTTP/1.1\r\nHost: a\r\nA: ", &[b'a'; 70_000], b"\r\n\r\n", SMUGGLED])
        }
        Sent::Long(Long::Fields) => {
            join(&[b"GET / HTTP/1.1\r\nHost: a\r\n", &b"A: b\r\n".repeat(400), b"\r\n", SMUGGLED])
        }
        Sent::Long(Long::Extension) => chunks(&join(&[b"3;", &[b'a'; 5000], b"\r\nabc\r\n0\r\n\r\n"])),
        Sent::Long(Long::Trailers) => chunks(&join(&[b"0\r\n", &b"A: b\r\n".repeat(3000), b"\r\n"])),
        Http2(_) => unreachable!("sent in frames"),
    }
}

/// An origin, and how many requests came to it whole.
async fn counting() -> (Arc<AtomicUsize>, Origin) {
    let whole = Arc::<AtomicUsize>::default();
    let count = whole.clone();
    let origin = Origin::new(move |mut wire| {
        let count = count.clone();
        async move {
            while let Ok(head) = wire.head().await {
                let Ok(_) = wire.body(&head).await else { return };
                count.fetch_add(1, Ordering::SeqCst);
                wire.send("HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n").await;
            }
        }
    });
    (whole, origin.await)
}

async fn start(origin: &Origin, header_timeout: &str) -> Gateway {
    let (authority, folder) = (Authority::new("servers"), TempDir::new().expect("a folder"));
    authority.write(folder.path(), "a", &["a.test"], Kind::Ecdsa);
    let listeners = r#"{name: plain, address: "127.0.0.1:0"},
         {name: secure, address: "127.0.0.1:0", tls: {certificates: [{cert: a.pem, key: a.key}]}}"#;
    let rest = format!(
        "server: {{limits: {{header_timeout: {header_timeout}}}}}\n\
         upstreams: [{{name: origin, backends: [{{address: \"{}\"}}]}}]\nroutes: [{{name: all, upstream: origin}}]",
        origin.address
    );
    Gateway::within(folder, listeners, &rest).await
}
