//! A scripted faulty upstream, over both ways to forward: the right status, in time, no bad bytes passed on, and nothing
//! left behind for who comes next.

use std::time::{Duration, Instant};

use crate::harness::{Answer, Broken, Gateway, Origin, Wire, soon};

const WAYS: [&str; 3] = ["direct.test", "proxied.test", "hedged.test"];

/// What a client must see.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Seen {
    /// An answer of the gateway's own.
    Problem(u16),
    /// The origin's answer, whole.
    Whole(u16, &'static str),
    /// A head, and a body that does not look whole; or a problem, if nothing had gone out.
    Cut(&'static str),
}

/// How the origin ends after its bytes.
#[derive(Debug, Clone, Copy)]
enum End {
    Close,
    Reset,
    HalfClose,
    Silence,
    /// The bytes come one by one.
    Trickle,
    /// It takes the next request.
    Keep,
}

const CASES: &[(&str, &str, End, Seen)] = &[
    ("reset before the head", "", End::Reset, Seen::Problem(502)),
    ("reset within the status line", "HTTP/1.1 20", End::Reset, Seen::Problem(502)),
    ("reset within the fields", "HTTP/1.1 200 OK\r\nX-Secret: a", End::Reset, Seen::Problem(502)),
    ("reset after the head", "HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\n", End::Reset, Seen::Cut("")),
    ("reset within the body", "HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nab", End::Reset, Seen::Cut("ab")),
    ("close before the head", "", End::Close, Seen::Problem(502)),
    ("close within the body", "HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nab", End::Close, Seen::Cut("ab")),
    ("half-close before the head", "", End::HalfClose, Seen::Problem(502)),
    (
        "half-close within the body",
        "HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nab",
        End::HalfClose,
        Seen::Cut("ab"),
    ),
    (
        "half-close after all of it",
        "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nab",
        End::HalfClose,
        Seen::Whole(200, "ab"),
    ),
    (
        "a whole answer that trickles",
        "HTTP/1.1 201 OK\r\nContent-Length: 2\r\n\r\nab",
        End::Trickle,
        Seen::Whole(201, "ab"),
    ),
    (
        "chunks that trickle",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nab\r\n0\r\n\r\n",
        End::Trickle,
        Seen::Whole(200, "ab"),
    ),
    ("silence", "", End::Silence, Seen::Problem(504)),
    ("silence within the head", "HTTP/1.1 200 OK\r\nX-Secret: a", End::Silence, Seen::Problem(504)),
    (
        "silence within the body",
        "HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nab",
        End::Silence,
        Seen::Cut("ab"),
    ),
    (
        "silence within chunks",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nab",
        End::Silence,
        Seen::Cut("ab"),
    ),
    ("no HTTP", "220 smtp.example ESMTP\r\n\r\n", End::Silence, Seen::Problem(502)),
    ("TLS", "\u{15}\u{3}\u{1}\0\u{2}\u{2}\u{28}", End::Close, Seen::Problem(502)),
    ("a status that is none", "HTTP/1.1 2x0 OK\r\n\r\n", End::Silence, Seen::Problem(502)),
    ("a field without colon", "HTTP/1.1 200 OK\r\nNo colon\r\n\r\n", End::Silence, Seen::Problem(502)),
    ("a NUL in a name", "HTTP/1.1 200 OK\r\nA\0: b\r\n\r\n", End::Silence, Seen::Problem(502)),
    ("a bad length", "HTTP/1.1 200 OK\r\nContent-Length: 2x\r\n\r\nab", End::Silence, Seen::Problem(502)),
    (
        "a negative length",
        "HTTP/1.1 200 OK\r\nContent-Length: -2\r\n\r\nab",
        End::Silence,
        Seen::Problem(502),
    ),
    (
        "two lengths",
        "HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 4\r\n\r\nabcd",
        End::Silence,
        Seen::Problem(502),
    ),
    (
        "an endless length",
        "HTTP/1.1 200 OK\r\nContent-Length: 99999999999999999999\r\n\r\nab",
        End::Silence,
        Seen::Problem(502),
    ),
    (
        "an unknown coding",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip\r\n\r\nab",
        End::Close,
        Seen::Problem(502),
    ),
    (
        "a bad size of a chunk",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\nab\r\n0\r\n\r\n",
        End::Silence,
        Seen::Cut(""),
    ),
    (
        "a huge size of a chunk",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nffffffffffffffffff\r\n",
        End::Silence,
        Seen::Cut(""),
    ),
    (
        "chunks cut off",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nab\r\n",
        End::Close,
        Seen::Cut("ab"),
    ),
    (
        "more than its length",
        "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nabHTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\npoison",
        End::Silence,
        Seen::Whole(200, "ab"),
    ),
    (
        "more than its last chunk",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nab\r\n0\r\n\r\npoison",
        End::Silence,
        Seen::Whole(200, "ab"),
    ),
    ("a body where none may be", "HTTP/1.1 204 No Content\r\n\r\npoison", End::Silence, Seen::Whole(204, "")),
    ("interim answers, then an end", "HTTP/1.1 103 Early Hints\r\n\r\n", End::Close, Seen::Problem(502)),
    ("interim answers, then silence", "HTTP/1.1 103 Early Hints\r\n\r\n", End::Silence, Seen::Problem(504)),
    (
        "a switch that nobody asked for",
        "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: upgrade\r\n\r\n",
        End::Silence,
        Seen::Problem(502),
    ),
    // RFC 9112 s5.1, s5.2, s2.2: what is read of old origins, and sent on as it should be.
    (
        "space before a colon",
        "HTTP/1.1 200 OK\r\nContent-Length : 2\r\n\r\nab",
        End::Keep,
        Seen::Whole(200, "ab"),
    ),
    (
        "a folded field",
        "HTTP/1.1 200 OK\r\nX-A: a\r\n b\r\nContent-Length: 2\r\n\r\nab",
        End::Keep,
        Seen::Whole(200, "ab"),
    ),
    ("no reason", "HTTP/1.1 200 \r\nContent-Length: 2\r\n\r\nab", End::Keep, Seen::Whole(200, "ab")),
    ("no reason nor space", "HTTP/1.1 200\r\nContent-Length: 2\r\n\r\nab", End::Keep, Seen::Whole(200, "ab")),
    (
        "a final answer behind an interim one",
        "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nab",
        End::Keep,
        Seen::Whole(200, "ab"),
    ),
    ("no head at all (HTTP/0.9)", "<html>hello</html>\r\n", End::Close, Seen::Problem(502)),
    (
        "a version in lower case",
        "http/1.1 200 OK\r\nContent-Length: 2\r\n\r\nab",
        End::Silence,
        Seen::Problem(502),
    ),
    (
        "a version that is none",
        "HTTP/3.7 200 OK\r\nContent-Length: 2\r\n\r\nab",
        End::Silence,
        Seen::Problem(502),
    ),
    (
        "a status of two digits",
        "HTTP/1.1 99 Low\r\nContent-Length: 2\r\n\r\nab",
        End::Silence,
        Seen::Problem(502),
    ),
    (
        "a status of four digits",
        "HTTP/1.1 1000 Hi\r\nContent-Length: 2\r\n\r\nab",
        End::Silence,
        Seen::Problem(502),
    ),
    ("a status of zeros", "HTTP/1.1 000 No\r\nContent-Length: 2\r\n\r\nab", End::Silence, Seen::Problem(502)),
    ("a NUL in a value", "HTTP/1.1 200 OK\r\nX-A: a\0b\r\n\r\n", End::Silence, Seen::Problem(502)),
    ("a CR in a value", "HTTP/1.1 200 OK\r\nX-A: a\rX-B: b\r\n\r\n", End::Silence, Seen::Problem(502)),
    (
        "an interim answer with a body",
        "HTTP/1.1 103 Hints\r\nContent-Length: 6\r\n\r\npoison\r\n\r\n",
        End::Silence,
        Seen::Problem(502),
    ),
    // RFC 9112 s6.3.
    (
        "both framings",
        "HTTP/1.1 200 OK\r\nContent-Length: 9\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nab\r\n0\r\n\r\n",
        End::Keep,
        Seen::Whole(200, "ab"),
    ),
    (
        "a list of lengths",
        "HTTP/1.1 200 OK\r\nContent-Length: 2, 4\r\n\r\nabcd",
        End::Silence,
        Seen::Problem(502),
    ),
    (
        "a length with a sign",
        "HTTP/1.1 200 OK\r\nContent-Length: +2\r\n\r\nab",
        End::Silence,
        Seen::Problem(502),
    ),
    (
        "chunked twice",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked, chunked\r\n\r\n2\r\nab\r\n0\r\n\r\n",
        End::Silence,
        Seen::Problem(502),
    ),
    (
        "the coding identity",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: identity\r\n\r\nab",
        End::Close,
        Seen::Problem(502),
    ),
    (
        "a size of a chunk with a sign",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n+2\r\nab\r\n0\r\n\r\n",
        End::Silence,
        Seen::Cut(""),
    ),
    (
        "a size of a chunk with a prefix",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0x2\r\nab\r\n0\r\n\r\n",
        End::Silence,
        Seen::Cut(""),
    ),
    (
        "a chunk longer than its size",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nabc\r\n0\r\n\r\n",
        End::Silence,
        Seen::Cut("ab"),
    ),
    (
        "trailers that would be framing",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nab\r\n0\r\nContent-Length: 9\r\nTransfer-Encoding: gzip\r\n\r\n",
        End::Keep,
        Seen::Whole(200, "ab"),
    ),
    (
        "an old origin that keeps its connection, and says no length",
        "HTTP/1.0 200 OK\r\nConnection: keep-alive\r\n\r\nab",
        End::Silence,
        Seen::Cut("ab"),
    ),
    ("an old origin that closes", "HTTP/1.0 200 OK\r\n\r\nab", End::Close, Seen::Whole(200, "ab")),
    (
        "a length and a body where none may be",
        "HTTP/1.1 204 No Content\r\nContent-Length: 6\r\n\r\npoison",
        End::Silence,
        Seen::Whole(204, ""),
    ),
    (
        "a body of what was not modified",
        "HTTP/1.1 304 Not Modified\r\nContent-Length: 6\r\n\r\npoison",
        End::Silence,
        Seen::Whole(304, ""),
    ),
    (
        "another answer behind the last chunk",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nab\r\n0\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\npoison",
        End::Silence,
        Seen::Whole(200, "ab"),
    ),
];

/// An origin that does what the path says, and answers `/good` as it should.
async fn faulty() -> Origin {
    Origin::new(|mut wire| async move {
        while let Ok(head) = wire.head().await {
            let Some(number) = head.line.split("/fault/").nth(1).and_then(|rest| rest.split(' ').next())
            else {
                wire.send("HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\ngood").await;
                continue;
            };
            let (_, bytes, end, _) = CASES[number.parse::<usize>().expect("a number")];
            match end {
                End::Trickle => {
                    for byte in bytes.bytes() {
                        wire.send([byte]).await;
                        tokio::task::yield_now().await;
                    }
                    continue;
                }
                _ => wire.send(bytes).await,
            }
            match end {
                End::Close | End::Trickle => return,
                End::Keep => {}
                End::Reset => return wire.reset(),
                End::HalfClose => {
                    wire.half_close().await;
                    wire.rest().await;
                    return;
                }
                End::Silence => {
                    wire.rest().await;
                    return;
                }
            }
        }
    })
    .await
}

async fn before(origin: &Origin) -> Gateway {
    Gateway::start(&format!(
        "upstreams:
  - {{name: origin, backends: [{{address: \"{0}\"}}], timeouts: {{read: 300ms}}}}
  - {{name: two, backends: [{{address: \"{0}\"}}, {{address: \"{0}\"}}], timeouts: {{read: 300ms}}, hedge: {{after: 1h}}}}
routes:
  - {{name: hedged, match: {{hosts: [hedged.test]}}, upstream: two}}
  - {{name: direct, match: {{hosts: [direct.test]}}, upstream: origin}}
  - {{name: proxied, match: {{hosts: [proxied.test]}}, upstream: origin, direct: false}}
",
        origin.address
    ))
    .await
}

/// What is wrong with an answer, if anything is.
pub(crate) fn check(seen: Seen, answer: &Result<Answer, Broken>) -> Option<String> {
    let right = match (seen, answer) {
        (Seen::Problem(status), Ok(answer)) => {
            answer.status == status
                && answer.field("x-secret").is_none()
                && answer.field("content-type") == Some("application/problem+json")
        }
        (Seen::Whole(status, body), Ok(answer)) => (answer.status, answer.text().as_str()) == (status, body),
        (Seen::Cut(body), Err(Broken::Body(part))) => body.as_bytes().starts_with(part),
        (Seen::Cut(_), Ok(answer)) => matches!(answer.status, 502 | 504),
        _ => false,
    };
    (!right).then(|| format!("expected {seen:?}, got {answer:?}"))
}

/// What is wrong with what the next clients get, if anything is.
pub(crate) async fn check_next(gateway: &Gateway, way: &str) -> Option<String> {
    for _ in 0..2 {
        let mut next = Wire::connect(gateway.address()).await;
        next.send(format!("GET /good HTTP/1.1\r\nHost: {way}\r\n\r\n")).await;
        let answer = soon("the next answer", next.answer()).await;
        if let Some(wrong) = check(Seen::Whole(200, "good"), &answer) {
            return Some(format!("the next client {wrong}"));
        }
    }
    None
}

#[tokio::test]
async fn each_fault_has_its_answer_in_time_and_the_next_client_is_served() {
    let origin = faulty().await;
    let gateway = before(&origin).await;
    let mut wrong = Vec::new();
    for way in WAYS {
        for (number, (name, _, _, seen)) in CASES.iter().enumerate() {
            // Over a new connection to the origin, and over one that served somebody before.
            for method in ["POST", "GET"] {
                let what = format!("{way}: {name}, {method}");
                let begun = Instant::now();
                let mut client = Wire::connect(gateway.address()).await;
                client.send(format!("{method} /fault/{number} HTTP/1.1\r\nHost: {way}\r\n\r\n")).await;
                let told = check(*seen, &soon(&what, client.answer_to(method)).await);
                assert!(begun.elapsed() < Duration::from_secs(8), "{what}: {:?}", begun.elapsed());
                drop(client);
                let next = check_next(&gateway, way).await;
                wrong.extend([told, next].into_iter().flatten().map(|told| format!("{what}: {told}")));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[tokio::test]
async fn a_flood_of_interim_answers_ends() {
    for way in WAYS {
        let origin = Origin::new(|mut wire| async move {
            let _ = wire.head().await;
            while wire.try_send(b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n").await.is_ok() {}
        })
        .await;
        let gateway = before(&origin).await;
        let mut client = Wire::connect(gateway.address()).await;
        client.send(format!("GET / HTTP/1.1\r\nHost: {way}\r\n\r\n")).await;
        let answer = soon("an answer", client.answer()).await.expect("an answer");
        assert_eq!((answer.status, answer.problem().as_str()), (502, "upstream-protocol"), "{way}");
        if way != "hedged.test" {
            let line = gateway.log_line(|line| line["host"] == way).await;
            assert_eq!(line["reason"], "too many interim answers", "{way}");
        }
    }
}

#[tokio::test]
async fn a_head_that_is_too_long_is_a_502() {
    for way in WAYS {
        for line in ["X-Long: ".to_owned() + &"x".repeat(3 << 20), "X-Many: y\r\n".repeat(2000)] {
            let line = std::sync::Arc::new(line);
            let origin = Origin::new(move |mut wire| {
                let line = line.clone();
                async move {
                    let _ = wire.head().await;
                    wire.send("HTTP/1.1 200 OK\r\n").await;
                    wire.send(line.as_bytes()).await;
                    wire.send("\r\nContent-Length: 0\r\n\r\n").await;
                    wire.rest().await;
                }
            })
            .await;
            let gateway = before(&origin).await;
            let mut client = Wire::connect(gateway.address()).await;
            client.send(format!("GET / HTTP/1.1\r\nHost: {way}\r\n\r\n")).await;
            let answer = soon("an answer", client.answer()).await.expect("an answer");
            assert_eq!(answer.status, 502, "{way}");
        }
    }
}

#[tokio::test]
async fn an_answer_before_the_body_ends_reaches_the_client_and_spoils_nothing() {
    for way in WAYS {
        let origin = Origin::new(|mut wire| async move {
            while let Ok(head) = wire.head().await {
                if head.line.starts_with("GET") {
                    wire.send("HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\ngood").await;
                } else {
                    wire.send("HTTP/1.1 401 No\r\nContent-Length: 2\r\n\r\nno").await;
                    wire.rest().await;
                    return;
                }
            }
        })
        .await;
        let gateway = before(&origin).await;
        for _ in 0..3 {
            let mut client = Wire::connect(gateway.address()).await;
            client
                .send(format!("POST / HTTP/1.1\r\nHost: {way}\r\nContent-Length: 100000\r\n\r\nbegin"))
                .await;
            let answer = soon("an answer", client.answer()).await.expect("an answer");
            assert_eq!((answer.status, answer.text().as_str()), (401, "no"), "{way}");
            let mut next = Wire::connect(gateway.address()).await;
            next.send(format!("GET /good HTTP/1.1\r\nHost: {way}\r\n\r\n")).await;
            let answer = soon("an answer", next.answer()).await.expect("an answer");
            assert_eq!((answer.status, answer.text().as_str()), (200, "good"), "{way}");
        }
    }
}
