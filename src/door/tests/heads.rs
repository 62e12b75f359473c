//! How requests begin and end on a connection: heads, pipelining, deadlines, refusals.

use super::*;

fn asking(path: &str) -> String {
    format!("GET {path} HTTP/1.1\r\nHost: a\r\n\r\n")
}

/// Everything until the gateway closes.
async fn rest(client: &mut TcpStream) -> String {
    let mut all = Vec::new();
    let _ = client.read_to_end(&mut all).await;
    String::from_utf8_lossy(&all).into_owned()
}

/// Sends bytes and reads everything that comes back.
async fn say(door: &Running, bytes: impl AsRef<[u8]>) -> String {
    let mut client = door.connect().await;
    client.write_all(bytes.as_ref()).await.unwrap();
    rest(&mut client).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pipelined_requests_are_all_answered_in_order_as_rfc_9112_s9_3_2_says() {
    let door = Running::open(ANY);
    let mut client = door.connect().await;
    let post = "POST /2 HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nGET /";
    client.write_all(format!("{}{post}{}", asking("/1"), asking("/3")).as_bytes()).await.unwrap();
    for path in ["/1", "/2", "/3"] {
        let answer = head(&mut client).await;
        assert!(answer.contains(&format!("x-path: {path}\r\n")), "{answer}");
    }
    ask(&mut client).await;
    assert_eq!(door.permits.open(), 1);
    door.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_body_and_the_request_after_it_may_come_in_any_pieces() {
    let door = Running::open(ANY);
    let mut client = door.connect().await;
    client.set_nodelay(true).unwrap();
    let bytes = format!("POST /1 HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\nabc{}", asking("/2"));
    for byte in bytes.as_bytes() {
        client.write_all(&[*byte]).await.unwrap();
        tokio::task::yield_now().await;
    }
    for path in ["/1", "/2"] {
        assert!(head(&mut client).await.contains(&format!("x-path: {path}\r\n")));
    }
    door.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn requests_right_behind_chunks_are_answered() {
    let door = Running::open(ANY);
    let chunked = "POST /1 HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n";
    let bytes = format!("{chunked}3\r\nabc\r\n0\r\nA: b\r\n\r\n{}{}", asking("/2"), asking("/3"));
    for cut in [0, chunked.len(), chunked.len() + 4, chunked.len() + 16, bytes.len() - 3] {
        let mut client = door.connect().await;
        client.set_nodelay(true).unwrap();
        client.write_all(&bytes.as_bytes()[..cut]).await.unwrap();
        tokio::task::yield_now().await;
        client.write_all(&bytes.as_bytes()[cut..]).await.unwrap();
        for path in ["/1", "/2", "/3"] {
            assert!(head(&mut client).await.contains(&format!("x-path: {path}\r\n")), "cut at {cut}");
        }
    }
    door.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_broken_chunk_is_an_error_of_the_body_and_counted() {
    let door = Running::open(ANY);
    let chunked = "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n";
    for chunks in ["3\r\nabc\n0\r\n\r\n", "3 \r\nabc\r\n0\r\n\r\n", "3\r\nabcd\r\n0\r\n\r\n"] {
        let answer = say(&door, format!("{chunked}{chunks}{}", asking("/2"))).await;
        assert!(!answer.contains(" 200 "), "{answer}");
    }
    assert_eq!(door.refusals.count(Rule::Chunk), 3);
    door.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_empty_line_before_a_request_is_passed_over() {
    let door = Running::open(ANY);
    let mut client = door.connect().await;
    for _ in 0..2 {
        client.write_all(format!("\r\n{}", asking("/x")).as_bytes()).await.unwrap();
        assert!(head(&mut client).await.contains("x-path: /x\r\n"));
    }
    door.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_higher_minor_version_is_served_as_1_1_as_rfc_9110_s2_5_says() {
    let door = Running::open(ANY);
    let mut client = door.connect().await;
    for _ in 0..2 {
        client.write_all(b"GET / HTTP/1.9\r\nHost: a\r\n\r\n").await.unwrap();
        assert!(head(&mut client).await.starts_with("http/1.1 200"));
    }
    door.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_refused_request_is_told_why_and_counted_and_its_connection_closed() {
    let door = Running::open(ANY);
    for (bytes, status, rule) in [
        (&b"\xff\xfe\xfd garbage without an end"[..], 400, Rule::Method),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", 400, Rule::Tls),
        (b"GET / HTTP/1.1\nHost: a\n\n", 400, Rule::BareLf),
        (b"GET / HTTP/2.0\r\nHost: a\r\n\r\n", 505, Rule::Version),
        (b"GET / HTTP/1.1\r\nHost : a\r\n\r\n", 400, Rule::SpaceBeforeColon),
        (b"CONNECT a:443 HTTP/1.1\r\nHost: a:443\r\n\r\n", 405, Rule::Connect),
    ] {
        let before = door.refusals.count(rule);
        let answer = say(&door, bytes).await;
        assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")), "{rule:?}: {answer}");
        assert!(answer.contains("\r\nconnection: close\r\n"), "{answer}");
        assert!(answer.contains("content-type: application/problem+json\r\n"), "{answer}");
        let body: serde_json::Value = serde_json::from_str(answer.split_once("\r\n\r\n").unwrap().1).unwrap();
        assert_eq!((&body["status"], &body["detail"]), (&status.into(), &rule.detail().into()));
        assert_eq!(door.refusals.count(rule), before + 1);
    }
    door.until_open(0).await;
    door.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_refused_head_request_has_no_body() {
    let door = Running::open(ANY);
    let answer = say(&door, "HEAD / HTTP/1.1\r\n\r\n").await;
    assert!(answer.starts_with("HTTP/1.1 400 ") && answer.ends_with("\r\n\r\n"), "{answer}");
    door.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_answer_to_a_flood_of_garbage_still_arrives() {
    let door = Running::open(ANY);
    let mut client = door.connect().await;
    // More than is read before the answer: closing at once would reset the connection.
    let _ = client.write_all(&[0xff; 100_000]).await;
    client.shutdown().await.unwrap();
    assert!(rest(&mut client).await.starts_with("HTTP/1.1 400 "));
    door.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_later_request_is_read_as_strictly_as_the_first() {
    let door = Running::open(ANY);
    let mut client = door.connect().await;
    ask(&mut client).await;
    client.write_all(b"GET / HTTP/1.1\r\nHost: a\r\nX\x01: b\r\n\r\n").await.unwrap();
    assert!(rest(&mut client).await.starts_with("HTTP/1.1 400 "));
    assert_eq!(door.refusals.count(Rule::FieldName), 1);
    door.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_head_that_ends_with_the_connection_is_refused_and_an_unused_connection_is_not() {
    let door = Running::open(ANY);
    drop(door.connect().await);
    let mut client = door.connect().await;
    client.write_all(b"GET / HTTP/1.1\r\nHos").await.unwrap();
    client.shutdown().await.unwrap();
    assert!(rest(&mut client).await.starts_with("HTTP/1.1 400 "));
    door.until_open(0).await;
    let refused: u64 = Rule::all().map(|rule| door.refusals.count(rule)).sum();
    assert_eq!((refused, door.refusals.count(Rule::Unfinished)), (1, 1));
    door.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_head_that_takes_too_long_is_a_408_and_silence_is_closed_without_a_word() {
    let door = Running::patient(HeadLimits { header_timeout: Duration::from_millis(50), ..LIMITS });
    assert_eq!(say(&door, b"").await, "");
    assert!(say(&door, b"GET / HTTP/1.1\r\nHost: a\r\n").await.starts_with("HTTP/1.1 408 "));
    let mut client = door.connect().await;
    ask(&mut client).await;
    client.write_all(b"G").await.unwrap();
    assert!(rest(&mut client).await.starts_with("HTTP/1.1 408 "));
    assert_eq!(door.refusals.count(Rule::Slow), 2);
    door.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_idle_connection_is_closed_without_a_word() {
    let door = Running::patient(HeadLimits { idle_timeout: Duration::from_millis(50), ..LIMITS });
    let mut client = door.connect().await;
    ask(&mut client).await;
    assert_eq!(rest(&mut client).await, "");
    door.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn heads_over_the_limits_are_refused_before_they_are_whole() {
    let door = Running::open(ANY);
    let long = "x".repeat(2000);
    for (bytes, status) in [
        (format!("GET /{long}"), 414),
        (format!("GET /{long} HTTP/1.1\r\n"), 414),
        (format!("GET / HTTP/1.1\r\nHost: a\r\nx: {long}{long}{long}"), 431),
        (format!("GET / HTTP/1.1\r\n{}", "a: b\r\n".repeat(9)), 431),
    ] {
        let answer = say(&door, &bytes).await;
        assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")), "{answer}");
    }
    door.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_connection_whose_upgrade_is_refused_takes_another_request() {
    let door = Running::open(ANY);
    let mut client = door.connect().await;
    for _ in 0..2 {
        let upgrade = "GET /u HTTP/1.1\r\nHost: a\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n";
        client.write_all(upgrade.as_bytes()).await.unwrap();
        let answer = head(&mut client).await;
        assert!(answer.starts_with("http/1.1 200") && !answer.contains("connection: close"), "{answer}");
        ask(&mut client).await;
    }
    door.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn http2_is_not_spoken_where_it_is_not_to_be() {
    let only_http1 = Listener { h2c: false, ..listener(ANY) };
    let door = Running::at(super::open(&only_http1).unwrap(), desk(LIMITS));
    assert!(say(&door, "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").await.starts_with("HTTP/1.1 505 "));
    ask(&mut door.connect().await).await;
    door.stop().await;
}
