//! The two ways that plain requests can take, on the connections themselves and through Pingora's proxy:
//! the same requests and answers, by both, must come out alike.

use proptest::prelude::*;
use proptest::strategy::ValueTree;
use proptest::test_runner::{Config, TestRunner};

use crate::harness::{Answer, Broken, Gateway, Head, Origin, Wire, soon};

/// Filters that see heads, pieces of answers or of requests, or whole requests, make a difference to the direct way.
const BOTH: &str = "
upstreams: [{name: origin, backends: [{address: \"ADDRESS\"}]}]
routes:
  - {name: direct, match: {hosts: [direct.test]}, upstream: origin}
  - name: filtered
    match: {hosts: [filtered.test]}
    upstream: origin
    filters: [headers: {response: {remove: [x-nobody]}}, body_limit: {request: 1GiB}]
  - name: pieces
    match: {hosts: [pieces.test]}
    upstream: origin
    filters: [body_limit: {response: 1GiB}]
  - name: whole
    match: {hosts: [whole.test]}
    upstream: origin
    filters: [buffer: {max: 1GiB}]
  - name: proxied
    match: {hosts: [proxied.test]}
    upstream: origin
    direct: false
";

pub(crate) const WAYS: [&str; 5] =
    ["direct.test", "filtered.test", "pieces.test", "whole.test", "proxied.test"];

/// Fields whose values are not the same for two requests, or name the host.
pub(crate) const OWN: [&str; 6] =
    ["traceparent", "forwarded", "x-forwarded-host", "host", "date", "connection"];

pub(crate) async fn both(origin: &Origin) -> Gateway {
    Gateway::start(&BOTH.replace("ADDRESS", &origin.address.to_string())).await
}

/// The first line and the fields of a head.
type Said = (String, Vec<(String, String)>);

/// What is the same about two heads that say the same: the line, and the fields by name.
fn essence(head: &Head) -> Said {
    let fields = head.fields.iter().filter(|(name, _)| !OWN.contains(&&*name.to_ascii_lowercase()));
    let mut fields: Vec<_> = fields.cloned().collect();
    // Lines of one name keep their order.
    fields.sort_by_key(|(name, _)| name.to_ascii_lowercase());
    (head.line.clone(), fields)
}

/// What an origin and a client see of one request; whether its connection was kept; and the log's words.
#[derive(Debug, PartialEq)]
struct Seen {
    upstream: Option<Said>,
    upstream_body: Vec<u8>,
    answer: Result<(Said, String), Broken>,
    kept: bool,
}

/// Sends a request (`HOST` is the way) that the origin answers with these bytes, then closing if it is to.
async fn ask(gateway: &Gateway, taken: &mut Taken, way: &str, request: &[u8], reply: &Reply) -> Seen {
    let text = String::from_utf8_lossy(request);
    let method = text.split(' ').next().unwrap_or_default().to_owned();
    let request: Vec<u8> = replaced(request, way);
    let mut client = Wire::connect(gateway.address()).await;
    client.send(&request).await;
    let origin = async {
        let mut wire = taken.recv().await?;
        let head = wire.head().await.ok()?;
        let body = wire.body(&head).await.unwrap_or_default();
        wire.send(&reply.bytes).await;
        if reply.closes {
            drop(wire);
            return Some((head, body, None));
        }
        Some((head, body, Some(wire)))
    };
    // Not every request gets to the origin.
    let (seen, answer) = soon("an answer", async {
        let answered = client.answer_to(&method);
        tokio::pin!(origin, answered);
        tokio::select! {
            seen = &mut origin => (seen, answered.await),
            answer = &mut answered => (None, answer),
        }
    })
    .await;
    let kept = answer.is_ok() && goes_on(&mut client, way).await;
    let answer = answer.map(|answer| told(&answer, kept));
    let (upstream, upstream_body) = match &seen {
        Some((head, body, _)) => (Some(essence(head)), body.clone()),
        None => (None, Vec::new()),
    };
    Seen { upstream, upstream_body, answer, kept }
}

/// What an answer tells a client, whose connection was kept or not.
fn told(answer: &Answer, kept: bool) -> (Said, String) {
    // RFC 9110 s6.6.1.
    assert!(answer.field("date").is_some(), "{:?}", answer.head);
    // RFC 9110 s7.6.1: what an origin says of its own connection is not for clients.
    let options = answer.head.all("connection");
    let expected: &[&[&str]] = if kept { &[&[], &["keep-alive"]] } else { &[&["close"]] };
    assert!(expected.contains(&&*options), "{:?}", answer.head);
    let (line, mut fields) = essence(&answer.head);
    let mut body = String::from_utf8_lossy(&answer.body).into_owned();
    if answer.head.field("content-type") == Some("application/problem+json") {
        // The id of the request is in it.
        if !body.is_empty() {
            body = answer.problem();
        }
        fields.retain(|(name, _)| !name.eq_ignore_ascii_case("content-length"));
    }
    // A body in chunks and one with a length are the same body.
    fields.retain(|(name, _)| !name.eq_ignore_ascii_case("transfer-encoding"));
    ((line, fields), body)
}

pub(crate) type Taken = tokio::sync::mpsc::UnboundedReceiver<Wire>;

/// What an origin says.
#[derive(Clone, Debug)]
pub(crate) struct Reply {
    pub(crate) bytes: Vec<u8>,
    pub(crate) closes: bool,
}

pub(crate) fn reply(bytes: impl AsRef<[u8]>) -> Reply {
    Reply { bytes: bytes.as_ref().to_vec(), closes: false }
}

pub(crate) fn closing(bytes: impl AsRef<[u8]>) -> Reply {
    Reply { closes: true, ..reply(bytes) }
}

/// The request by this way.
fn replaced(request: &[u8], way: &str) -> Vec<u8> {
    let find = |bytes: &[u8], part: &[u8]| bytes.windows(part.len()).position(|here| here == part);
    let Some(at) = find(request, b"HOST") else { return request.to_vec() };
    let (before, after) = (&request[..at], &request[at + 4..]);
    [before, way.as_bytes(), after].concat()
}

/// Whether the connection takes another request, which no route has and so no origin sees.
async fn goes_on(client: &mut Wire, way: &str) -> bool {
    let probe = format!("GET / HTTP/1.1\r\nHost: no.{way}\r\n\r\n");
    if client.try_send(probe.as_bytes()).await.is_err() {
        return false;
    }
    soon("an answer or an end", client.answer()).await.is_ok_and(|answer| answer.status == 404)
}

async fn compare(gateway: &Gateway, taken: &mut Taken, request: &[u8], reply: &Reply) {
    let mut seen = Vec::new();
    for way in WAYS {
        seen.push(ask(gateway, taken, way, request, reply).await);
        while taken.try_recv().is_ok() {}
    }
    let what = || format!("{} -> {}", request.escape_ascii(), reply.bytes.escape_ascii());
    let mut proxied = seen.pop().expect("there are several");
    let mut whole = seen.pop().expect("there are several");
    for (seen, way) in seen.iter().zip(WAYS) {
        assert_eq!(seen, &proxied, "{way}: {}", what());
    }
    for seen in [&mut whole, &mut proxied] {
        if let Some((_, fields)) = &mut seen.upstream {
            fields.retain(|(name, _)| !is_of_whole_bodies(name));
        }
    }
    // Who was asked for the body may have sent it before, and be closed for that.
    whole.kept |= request.windows(7).any(|part| part == b"Expect:");
    assert_eq!(whole, proxied, "as a whole: {}", what());
}

/// Whether this field says only how a body comes: those that were held have a length, or none as their method wants it
/// (RFC 9110 s8.6), and wait for no interim answer.
pub(crate) fn is_of_whole_bodies(name: &str) -> bool {
    ["expect", "transfer-encoding", "content-length"].contains(&&*name.to_ascii_lowercase())
}

const PLAIN: &[u8] = b"GET /a?b HTTP/1.1\r\nHost: HOST\r\n\r\n";

#[tokio::test]
async fn the_ways_are_two() {
    let origin = Origin::answering("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok").await;
    let gateway = both(&origin).await;
    for (way, options) in WAYS.into_iter().zip([None, None, None, None, Some("keep-alive")]) {
        let mut client = Wire::connect(gateway.address()).await;
        client.send(replaced(PLAIN, way)).await;
        // What Pingora says though HTTP/1.1 does not need it (RFC 9112 s9.3) tells them apart.
        assert_eq!(client.answer().await.expect("an answer").field("connection"), options);
    }
}

#[tokio::test]
async fn both_ways_send_the_same_to_origins() {
    let (origin, mut taken) = Origin::handing_over().await;
    let gateway = both(&origin).await;
    let ok = reply("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok");
    for lines in [
        "GET / HTTP/1.1\r\nHost: HOST\r\n\r\n",
        "get / HTTP/1.1\r\nHost: HOST\r\n\r\n",
        "HEAD /a HTTP/1.1\r\nHost: HOST\r\n\r\n",
        "DELETE /a/../b//c?x=%41&y=%2f HTTP/1.1\r\nHost: HOST\r\n\r\n",
        "GET /%61%2d?{\"a\":[1]} HTTP/1.1\r\nHost: HOST\r\n\r\n",
        "GET /a|b{c}^d HTTP/1.1\r\nHost: HOST\r\n\r\n",
        "OPTIONS /a HTTP/1.1\r\nHost: HOST\r\nOrigin: https://x\r\nAccess-Control-Request-Method: PUT\r\n\r\n",
        "PURGE /a HTTP/1.1\r\nHost: HOST\r\n\r\n",
        "GET / HTTP/1.1\r\nhOsT: HOST\r\nUSER-agent:x\r\nAccept:  */*  \r\nX-Empty:\r\nX-Tab:\ta\tb\t\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: HOST\r\nX-A: 1\r\nx-b: 2\r\nX-a: 3\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: HOST\r\nCookie: a=1\r\nCookie: b=2\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: HOST\r\nX-Latin: \u{e9}\u{2603}\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: HOST\r\nConnection: close, X-Hop, X-User\r\nX-Hop: 1\r\nX-User: m\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: HOST\r\nConnection: keep-alive\r\nKeep-Alive: timeout=5\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: HOST\r\nProxy-Connection: close\r\nProxy-Authorization: x\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: HOST\r\nTE: trailers, gzip\r\nTrailer: X\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: HOST\r\nVia: 1.0 fred\r\nMax-Forwards: 3\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: HOST\r\nForwarded: for=1.2.3.4\r\nX-Forwarded-For: 1.2.3.4\r\nX-Real-IP: 1.2.3.4\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: HOST\r\nX_Forwarded_For: 1.2.3.4\r\nX-Tollhouse-A: b\r\nx-tollhouse_c: d\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: HOST\r\nContent_Length: 3\r\nTransfer_Encoding: chunked\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: HOST\r\nHTTP2-Settings: x\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: HOST\r\nUpgrade: h2c\r\nHTTP2-Settings: x\r\nConnection: Upgrade, HTTP2-Settings\r\n\r\n",
        "POST / HTTP/1.1\r\nHost: HOST\r\nContent-Length: 5\r\n\r\nhello",
        "POST / HTTP/1.1\r\nHost: HOST\r\nContent-Length: 005\r\n\r\nhello",
        "PUT / HTTP/1.1\r\nHost: HOST\r\nContent-Length: 0\r\n\r\n",
        "POST / HTTP/1.1\r\nHost: HOST\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: HOST\r\nContent-Length: 2\r\n\r\nab",
        "POST / HTTP/1.1\r\nHost: HOST\r\nTransfer-Encoding: chunked\r\n\r\n5;a=b\r\nhello\r\n0\r\nX: y\r\n\r\n",
        "POST / HTTP/1.1\r\nHost: HOST\r\nContent-Length: 5\r\nExpect: 100-continue\r\n\r\nhello",
        "\r\nGET / HTTP/1.1\r\nHost: HOST\r\n\r\n",
        "GET / HTTP/1.7\r\nHost: HOST\r\n\r\n",
        "GET / HTTP/1.0\r\nHost: HOST\r\n\r\n",
        "GET http://HOST/a HTTP/1.1\r\nHost: HOST\r\n\r\n",
        "OPTIONS * HTTP/1.1\r\nHost: HOST\r\n\r\n",
        "GET /%zz HTTP/1.1\r\nHost: HOST\r\n\r\n",
        "GET /%00 HTTP/1.1\r\nHost: HOST\r\n\r\n",
        "GET /\u{e9}?\u{e9} HTTP/1.1\r\nHost: HOST\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: HOST\r\nContent-Length: 999999999999\r\n\r\n",
    ] {
        compare(&gateway, &mut taken, lines.as_bytes(), &ok).await;
    }
}

/// Answers with this body: with its length, in chunks, and to the end of the connection.
pub(crate) fn framed(body: &[u8]) -> [Vec<u8>; 3] {
    let head = |fields: &str| format!("HTTP/1.1 200 OK\r\n{fields}\r\n").into_bytes();
    let mut chunked = head("Transfer-Encoding: chunked\r\n");
    for piece in body.chunks(7001) {
        chunked.extend([format!("{:X}\r\n", piece.len()).as_bytes(), piece, b"\r\n"].concat());
    }
    chunked.extend(b"0\r\n\r\n");
    let sized = [head(&format!("Content-Length: {}\r\n", body.len())), body.to_vec()].concat();
    [sized, chunked, [head(""), body.to_vec()].concat()]
}

#[tokio::test]
async fn both_ways_pass_on_bodies_of_any_size() {
    let (origin, mut taken) = Origin::handing_over().await;
    let gateway = both(&origin).await;
    for size in [1, 4095, 4096, 16_383, 16_384, 16_385, 65_536, 1_000_003] {
        let body: Vec<u8> = (0..size).map(|at: usize| (at % 251) as u8).collect();
        let mut request =
            format!("POST /a HTTP/1.1\r\nHost: HOST\r\nContent-Length: {size}\r\n\r\n").into_bytes();
        request.extend(&body);
        let [sized, chunked, open] = framed(&body);
        compare(&gateway, &mut taken, &request, &reply(&sized)).await;
        compare(&gateway, &mut taken, PLAIN, &reply(&chunked)).await;
        compare(&gateway, &mut taken, PLAIN, &closing(&open)).await;
    }
}

/// Answers of which something follows on the same connection.
pub(crate) const WHOLE: &[&str] = &[
    "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n",
    "HTTP/1.1 200 \r\nContent-Length: 2\r\n\r\nok",
    "HTTP/1.1 200 Fine By Me\r\nContent-Length: 2\r\nX-A: 1\r\nx-a: 2\r\nSet-Cookie: a\r\nSet-Cookie: b\r\n\r\nok",
    "HTTP/1.1 299 Odd\r\nContent-Length: 2\r\n\r\nok",
    "HTTP/1.1 204 No Content\r\n\r\n",
    "HTTP/1.1 204 No Content\r\nContent-Length: 0\r\n\r\n",
    "HTTP/1.1 205 Reset Content\r\nContent-Length: 0\r\n\r\n",
    "HTTP/1.1 304 Not Modified\r\nETag: \"a\"\r\n\r\n",
    "HTTP/1.1 304 Not Modified\r\nContent-Length: 7\r\n\r\n",
    "HTTP/1.1 404 Not Found\r\nContent-Length: 2\r\n\r\nno",
    "HTTP/1.1 500 Oh\r\nContent-Length: 2\r\n\r\nno",
    "HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 2\r\n\r\nok",
    "HTTP/1.1 200 OK\r\nConnection: X-Hop\r\nX-Hop: 1\r\nKeep-Alive: timeout=1\r\nUpgrade: h2c\r\nContent-Length: 2\r\n\r\nok",
    "HTTP/1.0 200 OK\r\nContent-Length: 2\r\n\r\nok",
    "HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok",
    "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n",
    "HTTP/1.1 200 OK\r\nTransfer-Encoding: Chunked\r\n\r\n002;x=y\r\nok\r\n1\r\n!\r\n0\r\nX-T: 1\r\n\r\n",
    "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTrailer: X-T\r\n\r\n2  \r\nok\r\n0\r\nX-T: 1\r\n\r\n",
    "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nContent-Length: 7\r\n\r\n2\r\nok\r\n0\r\n\r\n",
    "HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n",
    "HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\nok",
    "HTTP/1.1 200 OK\r\nContent-Length: x\r\n\r\nok",
    "HTTP/1.1 200 OK\r\nContent-Length: -2\r\n\r\nok",
    "HTTP/1.1 200 OK\r\nContent-Length: 9223372036854775808\r\n\r\nok",
    "HTTP/1.1 200 OK\r\nContent-Length: 99999999999999999999999\r\n\r\nok",
    "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: upgrade\r\n\r\n",
    "HTTP/1.1 200 OK\r\nX-Folded: a\r\n b\r\nContent-Length: 2\r\n\r\nok",
    "HTTP/1.1 200 OK\r\nX-Spaced : a\r\nContent-Length: 2\r\n\r\nok",
    "HTTP/1.1 200 OK\r\nX-Latin: \u{e9}\r\nContent-Length: 2\r\n\r\nok",
    "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nokHTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\nx",
];

/// Answers that end with their connection.
pub(crate) const ENDED: &[&str] = &[
    "",
    "HTTP",
    "HTTP/1.1 200 OK\r\nX: y\r\n",
    "HTTP/1.1 200 OK\r\n\r\nall of it",
    "HTTP/1.0 200 OK\r\n\r\nall of it",
    "HTTP/1.1 200 OK\r\nContent-Length: 7\r\n\r\nok",
    "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n",
    "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\no",
    "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
    "HTTP/1.1 103 Early Hints\r\n\r\n",
    "SSH-2.0-x\r\n\r\n",
    "HTTP/1.1 20 OK\r\n\r\n",
    "HTTP/1.1 200 OK\r\nNo colon\r\n\r\n",
    "HTTP/1.1 200 OK\r\nX\0: a\r\n\r\n",
];

#[tokio::test]
async fn both_ways_pass_on_the_same_of_what_origins_answer() {
    let (origin, mut taken) = Origin::handing_over().await;
    let gateway = both(&origin).await;
    let get: &[u8] = PLAIN;
    let head: &[u8] = b"HEAD /a HTTP/1.1\r\nHost: HOST\r\n\r\n";
    for answer in WHOLE {
        compare(&gateway, &mut taken, get, &reply(answer)).await;
        if !answer.contains("chunked") {
            let headless = answer.split_inclusive("\r\n\r\n").take(1 + usize::from(answer.contains(" 103 ")));
            compare(&gateway, &mut taken, head, &reply(headless.collect::<String>())).await;
        }
    }
    for answer in ENDED {
        compare(&gateway, &mut taken, get, &closing(answer)).await;
    }
}

#[tokio::test]
async fn interim_answers_say_nothing_of_the_origins_connection() {
    // RFC 9110 s7.6.1: fields of one connection, and those that `Connection` names, are not passed on.
    let origin = Origin::answering(
        "HTTP/1.1 103 Early Hints\r\nLink: </a>\r\nConnection: x-hop\r\nX-Hop: 1\r\nKeep-Alive: timeout=5\r\n\r\n\
         HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok",
    )
    .await;
    let gateway = both(&origin).await;
    for way in WAYS {
        let mut client = Wire::connect(gateway.address()).await;
        client.send(replaced(PLAIN, way)).await;
        let early = client.head().await.expect("an interim head");
        assert!(early.line.starts_with("HTTP/1.1 103"), "{way}: {early:?}");
        let names: Vec<_> = early.fields.iter().map(|(name, _)| name.to_ascii_lowercase()).collect();
        assert_eq!(names, ["link"], "{way}");
        assert_eq!(soon("the final answer", client.answer()).await.expect("an answer").text(), "ok", "{way}");
    }
}

#[tokio::test]
async fn after_an_old_connection_that_was_closed_a_new_one_is_tried() {
    const OLD: usize = 5;
    // Each connection takes one request while all of them are open, and is closed by the next one unanswered.
    let all = std::sync::Arc::new(tokio::sync::Barrier::new(OLD));
    let requests = std::sync::Arc::new(std::sync::atomic::AtomicUsize::new(0));
    let seen = requests.clone();
    let origin = Origin::new(move |mut wire| {
        let (all, seen) = (all.clone(), seen.clone());
        async move {
            let nth = seen.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
            let Ok(_) = wire.head().await else { return };
            if nth < OLD {
                all.wait().await;
            }
            wire.send("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok").await;
            if wire.head().await.is_ok() {
                seen.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
            }
        }
    })
    .await;
    let gateway = both(&origin).await;
    let mut clients = Vec::new();
    for _ in 0..OLD {
        let mut client = Wire::connect(gateway.address()).await;
        client.send(replaced(PLAIN, "direct.test")).await;
        clients.push(client);
    }
    for client in &mut clients {
        assert_eq!(soon("an answer", client.answer()).await.expect("an answer").status, 200);
    }
    clients[0].send(replaced(PLAIN, "direct.test")).await;
    assert_eq!(soon("an answer", clients[0].answer()).await.expect("an answer").status, 200);
    let line = gateway.log_line(|line| line["attempts"] == 2).await;
    assert_eq!(line["status"], 200);
    assert_eq!(
        requests.load(std::sync::atomic::Ordering::SeqCst),
        OLD + 2,
        "one old connection, one new one"
    );
}

/// Heads made of what parsers disagree about.
fn heads() -> impl Strategy<Value = Vec<u8>> {
    let method =
        prop_oneof![Just("GET"), Just("POST"), Just("HEAD"), Just("get"), Just("OPTIONS"), Just("X-Y.z")];
    let target = "/[a-c./%2f;:@!$&'()*+,=~|{}^_-]{0,12}(\\?[a-c%41/?&=+:\\[\\]]{0,8})?";
    let name = prop_oneof![
        "[A-Za-z0-9!#$%&'*+.^_`|~-]{1,12}",
        prop::sample::select(vec![
            "Connection",
            "Content-Length",
            "Host",
            "TE",
            "Via",
            "Cookie",
            "Transfer_Encoding",
            "X-Forwarded-For",
            "Keep-Alive",
            "x-tollhouse-x",
            "Upgrade",
            "Trailer",
            "Proxy-Connection",
            "X-Real-Ip",
        ])
        .prop_map(str::to_owned),
    ];
    let value = prop_oneof!["[ -~\\t]{0,16}", "(close|keep-alive|upgrade|x-a|,| ){0,4}", "[0-9]{1,2}"];
    let fields = prop::collection::vec((name, value), 0..6);
    (method, target, fields).prop_map(|(method, target, fields)| {
        let mut head = format!("{method} {target} HTTP/1.1\r\nHost: HOST\r\n");
        for (name, value) in fields {
            head.push_str(&format!("{name}: {value}\r\n"));
        }
        head.push_str("\r\n");
        head.into_bytes()
    })
}

#[tokio::test]
async fn both_ways_take_the_same_heads() {
    let (origin, mut taken) = Origin::handing_over().await;
    let gateway = both(&origin).await;
    let ok = reply("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok");
    let mut runner = TestRunner::new(Config { failure_persistence: None, ..Config::default() });
    for _ in 0..300 {
        let mut head = heads().new_tree(&mut runner).expect("a head").current();
        // Enough of a body for any length that may be said; the rest is no request.
        head.extend([b'x'; 100]);
        compare(&gateway, &mut taken, &head, &ok).await;
    }
}
