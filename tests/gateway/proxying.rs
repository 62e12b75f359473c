//! Requests and answers pass unchanged, piece by piece, whatever their framing.

use bytes::Bytes;
use http::Request;
use tokio::sync::mpsc;

use crate::harness::{Broken, Gateway, H2c, Hash, Nginx, Origin, Wire, exchange, get, noise, request, soon};

#[tokio::test]
async fn nginx_is_served_through_the_gateway() {
    let page = noise(100_000);
    let nginx = Nginx::start(&[("page", &page)]).await;
    let gateway = Gateway::to(nginx.address, "").await;
    let answer = get(gateway.address(), "/page").await;
    assert_eq!((answer.status, answer.field("content-length")), (200, Some("100000")));
    assert!(answer.body == page);
    let answer = request(gateway.address(), "HEAD /page", "").await;
    assert_eq!((answer.status, answer.field("content-length")), (200, Some("100000")));
    let etag = answer.field("etag").expect("nginx sends one");
    let answer = request(gateway.address(), "GET /page", &format!("If-None-Match: {etag}\r\n")).await;
    assert_eq!((answer.status, answer.body.len()), (304, 0));
    let answer = request(gateway.address(), "GET /page", "Range: bytes=10-19\r\n").await;
    assert_eq!((answer.status, &answer.body[..]), (206, &page[10..20]));
    assert_eq!(get(gateway.address(), "/empty").await.status, 204);
    assert_eq!(get(gateway.address(), "/none").await.status, 404);
    let answer = request(gateway.address(), "POST /tea", "Content-Length: 0\r\n").await;
    assert_eq!((answer.status, answer.text().as_str()), (418, "short and stout"));
}

#[tokio::test]
async fn connections_are_kept_on_both_sides() {
    let origin = Origin::echo().await;
    let gateway = Gateway::before(&origin, "").await;
    let mut client = Wire::connect(gateway.address()).await;
    for n in 0..20 {
        client.send(format!("POST /{n} HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\nabc")).await;
        let answer = client.answer().await.expect("an answer");
        assert!(
            answer.text().starts_with(&format!("POST /{n} HTTP/1.1\r\n")) && answer.text().ends_with("abc")
        );
    }
    assert_eq!(origin.connections(), 1);
}

#[tokio::test]
async fn bodiless_answers_keep_the_connection_in_step() {
    let origin = Origin::new(|mut wire| async move {
        while let Ok(head) = wire.head().await {
            let status = match head.target() {
                "/204" => "204 No Content\r\n",
                "/304" => "304 Not Modified\r\nETag: \"a\"\r\n",
                _ => "200 OK\r\nContent-Length: 5\r\n",
            };
            let body = if head.line.starts_with("GET /200") { "hello" } else { "" };
            wire.send(format!("HTTP/1.1 {status}\r\n{body}")).await;
        }
    })
    .await;
    let gateway = Gateway::before(&origin, "").await;
    let mut client = Wire::connect(gateway.address()).await;
    for (method, path, status) in
        [("GET", "/204", 204), ("GET", "/304", 304), ("HEAD", "/200", 200), ("GET", "/200", 200)]
    {
        client.send(format!("{method} {path} HTTP/1.1\r\nHost: a\r\n\r\n")).await;
        let answer = client.answer_to(method).await.expect("an answer");
        assert_eq!(answer.status, status, "{method} {path}");
    }
    assert_eq!(origin.connections(), 1);
}

#[tokio::test]
async fn an_http2_client_reaches_an_http1_origin() {
    let origin = Origin::echo().await;
    let gateway = Gateway::before(&origin, "").await;
    let client = H2c::connect(gateway.address()).await;
    let body = noise(300_000);
    let post = Request::post("http://example.test/up?x=1").body(()).expect("valid");
    let (posted, got) = tokio::join!(client.send(post, &body), client.get("/other"));
    let posted = posted.expect("an answer");
    assert_eq!((posted.status, got.status), (200, 200));
    let head = String::from_utf8_lossy(&posted.body[..200]).into_owned();
    assert!(head.starts_with("POST /up?x=1 HTTP/1.1\r\n"), "{head}");
    assert!(posted.body.ends_with(&body));
    let hosts: Vec<_> = origin.heads().iter().map(|head| head.field("host").map(str::to_owned)).collect();
    assert_eq!(hosts, [Some("example.test".to_owned()), Some("example.test".to_owned())]);
}

#[tokio::test]
async fn an_http10_client_is_answered_in_its_own_framing() {
    // RFC 9112 s6.1: no transfer coding to a client of HTTP/1.0.
    let origin =
        Origin::answering("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n")
            .await;
    let gateway = Gateway::before(&origin, "").await;
    let answer = exchange(gateway.address(), "GET / HTTP/1.0\r\nHost: a\r\n\r\n").await.expect("an answer");
    assert_eq!((answer.status, answer.text().as_str()), (200, "hello"), "{answer:?}");
    assert_eq!(answer.field("transfer-encoding"), None);
}

#[tokio::test]
async fn a_body_to_the_end_of_the_connection_becomes_chunks() {
    let origin = Origin::dying_after(b"HTTP/1.0 200 OK\r\n\r\nuntil the end").await;
    let gateway = Gateway::before(&origin, "").await;
    let answer = get(gateway.address(), "/").await;
    assert_eq!(
        (answer.field("transfer-encoding"), answer.text().as_str()),
        (Some("chunked"), "until the end")
    );
}

#[tokio::test]
async fn chunks_and_lengths_stay_what_they_were() {
    let origin = Origin::echo().await;
    let gateway = Gateway::before(&origin, "").await;
    let mut client = Wire::connect(gateway.address()).await;
    client.send("POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n").await;
    client.send("3;x=y\r\nabc\r\n0\r\nTrailer: dropped\r\n\r\n").await;
    assert!(client.answer().await.expect("an answer").text().ends_with("\r\n\r\nabc"));
    client.send("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\nabc").await;
    assert!(client.answer().await.expect("an answer").text().ends_with("\r\n\r\nabc"));
    let heads = origin.heads();
    assert_eq!(
        (heads[0].field("transfer-encoding"), heads[0].field("content-length")),
        (Some("chunked"), None)
    );
    assert_eq!((heads[1].field("transfer-encoding"), heads[1].field("content-length")), (None, Some("3")));
}

#[tokio::test]
async fn an_answer_arrives_piece_by_piece() {
    let (pieces, mut script) = mpsc::unbounded_channel::<&'static str>();
    let (origin, mut seen) = Origin::handing_over().await;
    let gateway = Gateway::before(&origin, "").await;
    let mut client = Wire::connect(gateway.address()).await;
    client.send("GET /events HTTP/1.1\r\nHost: a\r\n\r\n").await;
    let mut wire = soon("the origin's side", seen.recv()).await.expect("a connection");
    tokio::spawn(async move {
        wire.head().await.expect("a request");
        wire.send("HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n")
            .await;
        while let Some(piece) = script.recv().await {
            wire.send(format!("{:x}\r\n{piece}\r\n", piece.len())).await;
        }
        wire.send("0\r\n\r\n").await;
    });
    assert_eq!(client.head().await.expect("a head").field("content-type"), Some("text/event-stream"));
    for piece in ["data: 1\n\n", "data: two\n\n", "data: 3\n\n"] {
        pieces.send(piece).expect("the origin listens");
        assert_eq!(client.chunk().await.expect("a chunk"), piece.as_bytes());
    }
    drop(pieces);
    assert_eq!(client.chunk().await.expect("the end"), b"");
}

/// What the gateway has of an answer must not wait for the rest, whatever its framing.
#[tokio::test]
async fn an_answer_of_known_length_does_not_wait_for_its_end() {
    let (go_on, mut script) = mpsc::unbounded_channel::<()>();
    let (origin, mut seen) = Origin::handing_over().await;
    let gateway = Gateway::before(&origin, "").await;
    let mut client = Wire::connect(gateway.address()).await;
    client.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n").await;
    let mut wire = soon("the origin's side", seen.recv()).await.expect("a connection");
    tokio::spawn(async move {
        wire.head().await.expect("a request");
        wire.send("HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\n12345").await;
        script.recv().await;
        wire.send("67890").await;
    });
    assert_eq!(client.head().await.expect("a head").field("content-length"), Some("10"));
    assert_eq!(client.exactly(5).await.expect("the first half"), b"12345");
    go_on.send(()).expect("the origin waits");
    assert_eq!(client.exactly(5).await.expect("the second half"), b"67890");
}

#[tokio::test]
async fn an_upload_reaches_the_origin_before_it_ends() {
    let (origin, mut seen) = Origin::handing_over().await;
    let gateway = Gateway::before(&origin, "").await;
    let h2 = H2c::connect(gateway.address()).await;
    let mut client = Wire::connect(gateway.address()).await;
    client.send("POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n").await;
    let mut wire = soon("the origin's side", seen.recv()).await.expect("a connection");
    wire.head().await.expect("a head");
    client.send("5\r\nfirst\r\n").await;
    assert_eq!(wire.chunk().await.expect("a chunk"), b"first");
    client.send("6\r\nsecond\r\n0\r\n\r\n").await;
    assert_eq!(wire.chunk().await.expect("a chunk"), b"second");
    let post = Request::post("http://example.test/").body(()).expect("valid");
    let (_answer, mut stream) = h2.open(post, false).await;
    let mut wire = soon("the origin's side", seen.recv()).await.expect("a connection");
    wire.head().await.expect("a head");
    stream.send_data(Bytes::from_static(b"first"), false).expect("open");
    assert_eq!(wire.chunk().await.expect("a chunk"), b"first");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn large_bodies_pass_both_ways_intact_without_being_held() {
    const BLOCKS: usize = 64;
    let block = noise(1 << 20);
    let size = block.len() * BLOCKS;
    let answer = block.clone();
    let origin = Origin::new(move |mut wire| {
        let block = answer.clone();
        async move {
            let head = wire.head().await.expect("a head");
            let mut hash = Hash::default();
            while head.line.starts_with("POST") && hash.bytes < block.len() * BLOCKS {
                hash.add(&wire.some().await);
            }
            let size = block.len() * BLOCKS;
            wire.send(format!("HTTP/1.1 200 OK\r\nHash: {}\r\nContent-Length: {size}\r\n\r\n", hash.hex()))
                .await;
            for _ in 0..BLOCKS {
                wire.send(&block).await;
            }
        }
    })
    .await;
    let gateway = Gateway::before(&origin, "").await;
    get_some_memory(&gateway).await;
    let before = gateway.memory();
    let (mut wanted, mut got, mut highest) = (Hash::default(), Hash::default(), 0);
    let mut client = Wire::connect(gateway.address()).await;
    client.send(format!("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: {size}\r\n\r\n")).await;
    for _ in 0..BLOCKS {
        client.send(&block).await;
        wanted.add(&block);
        highest = highest.max(gateway.memory());
    }
    let head = client.head().await.expect("a head");
    assert_eq!(head.field("content-length"), Some(size.to_string().as_str()));
    for _ in 0..BLOCKS {
        got.add(&client.exactly(block.len()).await.expect("a block"));
        highest = highest.max(gateway.memory());
    }
    let wanted = wanted.hex();
    assert_eq!((head.field("hash"), got.hex()), (Some(wanted.as_str()), wanted.clone()));
    assert!(highest < before + 16 * 1024, "from {before} to {highest} KiB");
}

/// One exchange, so that what is made once is there.
async fn get_some_memory(gateway: &Gateway) {
    let mut client = Wire::connect(gateway.address()).await;
    client.send("GET /nothing HTTP/1.1\r\nHost: a\r\n\r\n").await;
    client.head().await.expect("a head");
}

#[tokio::test]
async fn interim_answers_pass_and_the_final_one_follows() {
    // RFC 9110 s15.2: a proxy forwards 1xx answers.
    let origin = Origin::answering(
        "HTTP/1.1 103 Early Hints\r\nLink: </a.css>; rel=preload\r\n\r\n\
         HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok",
    )
    .await;
    let gateway = Gateway::before(&origin, "").await;
    let mut client = Wire::connect(gateway.address()).await;
    client.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n").await;
    let hints = client.head().await.expect("a head");
    assert!(hints.line.starts_with("HTTP/1.1 103"), "{hints:?}");
    assert_eq!(hints.field("link"), Some("</a.css>; rel=preload"));
    assert_eq!(client.answer().await.expect("an answer").text(), "ok");
}

#[tokio::test]
async fn an_expectation_is_the_origins_to_meet() {
    let (goes_on, mut asked) = mpsc::unbounded_channel::<()>();
    let origin = Origin::new(move |mut wire| {
        let goes_on = goes_on.clone();
        async move {
            let head = wire.head().await.expect("a head");
            assert_eq!(head.field("expect"), Some("100-continue"));
            let _ = goes_on.send(());
            wire.send("HTTP/1.1 100 Continue\r\n\r\n").await;
            let body = wire.body(&head).await.expect("a body");
            wire.send(format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", body.len())).await;
            wire.send(body).await;
        }
    })
    .await;
    let gateway = Gateway::before(&origin, "").await;
    let mut client = Wire::connect(gateway.address()).await;
    client.send("POST / HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: 4\r\n\r\n").await;
    soon("the origin", asked.recv()).await.expect("it was asked");
    assert!(client.head().await.expect("a head").line.starts_with("HTTP/1.1 100"));
    client.send("body").await;
    assert_eq!(client.answer().await.expect("an answer").text(), "body");
}

#[tokio::test]
async fn an_early_refusal_instead_of_100_reaches_a_client_that_waits() {
    let origin = Origin::new(|mut wire| async move {
        let _ = wire.head().await;
        wire.send("HTTP/1.1 417 Expectation Failed\r\nContent-Length: 2\r\n\r\nno").await;
        wire.rest().await;
    })
    .await;
    let gateway = Gateway::before(&origin, "").await;
    let mut client = Wire::connect(gateway.address()).await;
    client.send("POST / HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: 4\r\n\r\n").await;
    let answer = client.answer().await;
    assert_eq!(answer.map(|answer| (answer.status, answer.text())), Ok((417, "no".to_owned())));
}

#[tokio::test]
async fn what_ends_early_never_looks_whole() {
    // The client closes its side within the body: the origin must not see a complete request.
    let (told, mut outcome) = mpsc::unbounded_channel();
    let (begun, mut asked) = mpsc::unbounded_channel();
    let origin = Origin::new(move |mut wire| {
        let (told, begun) = (told.clone(), begun.clone());
        async move {
            let head = wire.head().await.expect("a head");
            let _ = begun.send(());
            let _ = told.send(wire.body(&head).await);
        }
    })
    .await;
    let gateway = Gateway::before(&origin, "").await;
    for framing in ["Content-Length: 10\r\n\r\nabc", "Transfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n"] {
        let mut client = Wire::connect(gateway.address()).await;
        client.send(format!("POST / HTTP/1.1\r\nHost: a\r\n{framing}")).await;
        soon("the origin", asked.recv()).await.expect("it was asked");
        drop(client);
        let body = soon("the origin's view", outcome.recv()).await.expect("a request");
        assert!(matches!(body, Err(Broken::Body(_))), "{framing:?}: {body:?}");
    }
}
