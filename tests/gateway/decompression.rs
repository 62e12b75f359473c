//! Request bodies that are decoded on their way (RFC 9110 s8.4), and those that must not be.

use std::io::Write;
use std::process::{Command, Stdio};

use http::Request;
use tokio::task::JoinSet;
use tollhouse_filters::coding::encode::{Algorithm, Encoder};

use crate::harness::{Answer, Gateway, H2c, Origin, Wire, noise, soon};

async fn with_filters(origin: &Origin, filters: &str) -> Gateway {
    Gateway::start(&format!(
        "server: {{limits: {{body_bytes: 1MiB}}}}\n\
         upstreams: [{{name: origin, backends: [{{address: \"{}\"}}]}}]\n\
         routes: [{{name: all, upstream: origin, filters: [{filters}]}}]",
        origin.address
    ))
    .await
}

fn encoded(algorithm: Algorithm, body: &[u8]) -> Vec<u8> {
    Encoder::new(algorithm, 5).and_then(|encoder| encoder.finish(body)).expect("encodes").into()
}

/// What a program makes of a body.
fn piped(program: &str, body: &[u8]) -> Vec<u8> {
    let mut child =
        Command::new(program).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect(program);
    let (mut stdin, body) = (child.stdin.take().expect("piped"), body.to_vec());
    let writer = std::thread::spawn(move || stdin.write_all(&body));
    let output = child.wait_with_output().expect("a child");
    writer.join().expect("no panic").expect("written");
    output.stdout
}

async fn post(gateway: &Gateway, coding: &str, body: &[u8], chunked: bool) -> Answer {
    let mut client = Wire::connect(gateway.address()).await;
    let head = format!("POST / HTTP/1.1\r\nHost: a\r\nContent-Encoding: {coding}\r\n");
    if chunked {
        client.send(head + "Transfer-Encoding: chunked\r\n\r\n").await;
        for piece in body.chunks(1_000) {
            client.send([format!("{:x}\r\n", piece.len()).as_bytes(), piece, b"\r\n"].concat()).await;
        }
        client.send("0\r\n\r\n").await;
    } else {
        client.send(format!("{head}Content-Length: {}\r\n\r\n", body.len())).await;
        client.send(body).await;
    }
    client.answer().await.expect("an answer")
}

#[tokio::test]
async fn the_origin_gets_the_decoded_body_in_chunks() {
    let origin = Origin::echo().await;
    let gateway = with_filters(&origin, "decompress: {}").await;
    let body = noise(300_000);
    for (coding, packed) in [
        ("gzip", piped("gzip", &body)),
        ("br", encoded(Algorithm::Br, &body)),
        ("zstd", encoded(Algorithm::Zstd, &body)),
        ("br, gzip", piped("gzip", &encoded(Algorithm::Br, &body))),
    ] {
        for chunked in [false, true] {
            let answer = post(&gateway, coding, &packed, chunked).await;
            assert!(answer.status == 200 && answer.body.ends_with(&body), "{coding} {answer:?}");
        }
        let ask = Request::post("http://a/").header("content-encoding", coding).body(()).expect("valid");
        let answer = H2c::connect(gateway.address()).await.send(ask, &packed).await.expect("an answer");
        assert!(answer.status == 200 && answer.body.ends_with(&body), "{coding}");
    }
    for head in origin.heads() {
        assert_eq!((head.field("content-encoding"), head.field("content-length")), (None, None));
        assert_eq!(head.field("transfer-encoding"), Some("chunked"));
    }
}

#[tokio::test]
async fn bodies_without_a_coding_and_none_at_all_pass_as_they_are() {
    let origin = Origin::echo().await;
    let gateway = with_filters(&origin, "decompress: {}").await;
    let answer = post(&gateway, "identity", b"plain", false).await;
    assert!(answer.status == 200 && answer.body.ends_with(b"plain"), "{answer:?}");
    let answer = post(&gateway, "gzip", b"", false).await;
    assert_eq!(answer.status, 200, "{answer:?}");
    let lengths: Vec<_> =
        origin.heads().iter().map(|head| head.field("content-length").map(str::to_owned)).collect();
    assert_eq!(lengths, [Some("5".to_owned()), Some("0".to_owned())]);
}

#[tokio::test]
async fn a_filter_that_wants_the_whole_body_gets_it_decoded() {
    let origin = Origin::echo().await;
    let gateway = with_filters(&origin, "{buffer: {max: 512KiB}}, {decompress: {}}").await;
    let body = b"again and again ".repeat(20_000);
    let answer = post(&gateway, "gzip", &piped("gzip", &body), true).await;
    assert!(answer.status == 200 && answer.body.ends_with(&body), "{answer:?}");
    assert_eq!(origin.head().field("content-length"), Some(body.len().to_string().as_str()));
    // What the buffer takes is what came out.
    let answer = post(&gateway, "gzip", &piped("gzip", &body.repeat(2)), true).await;
    assert_eq!((answer.status, answer.problem().as_str()), (413, "body-too-large"));
    let answer = post(&gateway, "gzip", b"not gzip", true).await;
    assert_eq!((answer.status, answer.problem().as_str()), (400, "bad-request"));
    assert_eq!(origin.heads().len(), 1, "only the good one reached the origin");
}

#[tokio::test]
async fn what_is_broken_or_unknown_is_refused_and_never_looks_whole() {
    let (origin, mut seen) = Origin::handing_over().await;
    let gateway = with_filters(&origin, "decompress: {}").await;
    let answer = post(&gateway, "compress", b"?", false).await;
    assert_eq!((answer.status, answer.problem().as_str()), (415, "unsupported-coding"));
    assert_eq!(answer.field("accept-encoding"), Some("gzip, br, zstd, deflate"));
    assert_eq!(origin.connections(), 0);
    let mut cut = piped("gzip", &noise(100_000));
    cut.truncate(90_000);
    let answer = post(&gateway, "gzip", &cut, true).await;
    assert_eq!((answer.status, answer.problem().as_str()), (400, "bad-request"));
    let mut wire = seen.recv().await.expect("the origin was asked");
    let head = wire.head().await.expect("a head");
    assert!(wire.body(&head).await.is_err(), "the end of the body was sent");
}

#[tokio::test]
async fn bombs_are_refused_with_little_memory() {
    let origin = Origin::echo().await;
    let gateway = with_filters(
        &origin,
        "{decompress: {max_size: 1GiB, max_ratio: 1000000}, when: {paths: [/wide]}}, \
         {decompress: {max_size: 8MiB, max_ratio: 100}, when: {paths: [/]}}",
    )
    .await;
    let zeros = vec![0; 64 << 20];
    let few = &zeros[..16 << 20];
    let before = gateway.memory();
    for (algorithm, body) in [(Algorithm::Gzip, &zeros[..]), (Algorithm::Br, few), (Algorithm::Zstd, &zeros)]
    {
        let bomb = encoded(algorithm, body);
        let nested = encoded(Algorithm::Gzip, &bomb);
        for (coding, bomb) in
            [(algorithm.name().to_owned(), &bomb), (format!("{}, gzip", algorithm.name()), &nested)]
        {
            assert!(bomb.len() < 1 << 20);
            let answer = post(&gateway, &coding, bomb, false).await;
            assert_eq!((answer.status, answer.problem().as_str()), (413, "body-too-large"), "{coding}");
        }
    }
    let grown = gateway.memory().saturating_sub(before);
    assert!(grown < 48 << 10, "grew by {grown} KiB");
    // The limit of the process counts what came out as well.
    let mut client = Wire::connect(gateway.address()).await;
    let bomb = encoded(Algorithm::Zstd, &zeros);
    let head = format!(
        "POST /wide HTTP/1.1\r\nHost: a\r\nContent-Encoding: zstd\r\nContent-Length: {}\r\n\r\n",
        bomb.len()
    );
    client.send([head.as_bytes(), &bomb].concat()).await;
    assert_eq!(client.answer().await.map(|answer| answer.status), Ok(413));
}

/// With a single thread, and room for large bodies.
async fn with_room(origin: &Origin, filters: &str) -> Gateway {
    Gateway::start(&format!(
        "server: {{threads: 1}}\nupstreams: [{{name: origin, backends: [{{address: \"{}\"}}]}}]\n\
         routes: [{{name: all, upstream: origin, filters: [{filters}]}}]",
        origin.address
    ))
    .await
}

/// A request with this body, in gzip; with its length, or in chunks of this size.
fn upload(body: &[u8], chunks: Option<usize>) -> Vec<u8> {
    let head = "POST / HTTP/1.1\r\nHost: a\r\nContent-Encoding: gzip\r\n";
    let Some(size) = chunks else {
        return [format!("{head}Content-Length: {}\r\n\r\n", body.len()).as_bytes(), body].concat();
    };
    let mut request = format!("{head}Transfer-Encoding: chunked\r\n\r\n").into_bytes();
    for piece in body.chunks(size) {
        request.extend([format!("{:x}\r\n", piece.len()).as_bytes(), piece, b"\r\n"].concat());
    }
    request.extend(b"0\r\n\r\n");
    request
}

#[tokio::test]
async fn bombs_before_an_origin_that_takes_nothing_cost_little_memory_together() {
    // With a length it is one piece that waits; of chunks, which become 1 MiB each or half of that, several wait in a
    // queue.
    for (size, chunks, uploads, refusals) in
        [(9 << 20, None, 32, 16), (24 << 20, Some(1_000), 32, 16), (24 << 20, Some(540), 64, 24)]
    {
        let (origin, _taken) = Origin::handing_over().await;
        let gateway = with_room(&origin, "{decompress: {max_size: 32MiB, max_ratio: 10000}}").await;
        let bomb = upload(&encoded(Algorithm::Gzip, &vec![0; size]), chunks);
        let before = gateway.memory();
        let mut clients = JoinSet::new();
        for _ in 0..uploads {
            let mut client = Wire::connect(gateway.address()).await;
            client.send(&bomb).await;
            clients.spawn(async move { client.answer().await.expect("an answer") });
        }
        // Half of 128 MiB is for those that ask for much: seven have room there with a piece of 9 MiB each, and
        // thirteen with five of 1 MiB, of which four are in the queue and one is being sent. Of pieces of half a MiB
        // each may be little, but not five of them: some thirty have room.
        for _ in 0..refusals {
            let answer = soon("another refusal", clients.join_next()).await.expect("more clients");
            let answer = answer.expect("a refusal");
            assert_eq!((answer.status, answer.problem().as_str()), (503, "overloaded"));
        }
        let grown = gateway.memory().saturating_sub(before);
        assert!(grown < 160 << 10, "grew by {grown} KiB");
    }
}

#[tokio::test]
async fn a_decoded_body_that_a_filter_holds_takes_nothing_from_other_decoders() {
    const SIZE: usize = 40 << 20;
    let (origin, mut taken) = Origin::handing_over().await;
    let filters = "{decompress: {max_size: 48MiB, max_ratio: 10000}}, {buffer: {max: 48MiB}}";
    let gateway = with_room(&origin, filters).await;
    let request = upload(&encoded(Algorithm::Gzip, &vec![0; SIZE]), Some(1_000));
    let mut held = Vec::new();
    // Two of them are more than the half of 128 MiB that is for who asks for much.
    for count in 1..=2 {
        let mut client = Wire::connect(gateway.address()).await;
        client.send(&request).await;
        let mut wire = soon("the request", taken.recv()).await.expect("a connection");
        let head = wire.head().await.expect("a head");
        assert_eq!(head.field("content-length"), Some(SIZE.to_string().as_str()), "{count}");
        held.push((client, wire));
    }
}
