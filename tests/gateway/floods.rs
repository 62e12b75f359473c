//! HTTP/2 clients that make work and carry nothing (RFC 9113 s10.5): each way of it ends the connection,
//! is counted and logged once, and others are served meanwhile.

use std::time::{Duration, Instant};

use http::Request;

use crate::harness::h2raw::{ACK, END_HEADERS, END_STREAM, GET, POST, frame, kind};
use crate::harness::{Gateway, H2Raw, H2c, Origin, get, soon};

const CALM: u32 = 11;
const PROTOCOL_ERROR: u32 = 1;
const CANCEL: [u8; 4] = [0, 0, 0, 8];

/// Floods a gateway with pieces, and sees that it ends by this rule.
async fn floods(rule: &str, piece: impl FnMut(u32) -> Vec<u8>) {
    floods_after(rule, b"", piece).await;
}

/// As [`floods`]; something is said first.
async fn floods_after(rule: &str, first: &[u8], piece: impl FnMut(u32) -> Vec<u8>) {
    let origin = Origin::new(|mut wire| async move {
        while let Ok(head) = wire.head().await {
            if head.target() != "/ok" {
                return std::future::pending().await;
            }
            wire.send("HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n").await;
        }
    })
    .await;
    let gateway = Gateway::counting(&origin, "").await;
    let bystander = H2c::connect(gateway.address()).await;
    let mut client = H2Raw::connect(gateway.address(), &[]).await;
    client.0.send(first).await;
    let (goaways, ()) = tokio::join!(client.flood(200_000, piece), async {
        for _ in 0..20 {
            assert_eq!(bystander.get("/ok").await.status, 200, "others are served meanwhile");
        }
    });
    // What was sent after the end may have destroyed what was still to be read.
    let code = if rule == "http2" { PROTOCOL_ERROR } else { CALM };
    assert!(goaways.iter().all(|goaway| goaway.code() == code) && goaways.len() < 2, "{goaways:?}");
    assert_eq!(gateway.refused(rule).await, 1, "{rule}");
    assert_eq!(bystander.get("/ok").await.status, 200);
    let line = gateway.log_line(|line| line["protocol"] == "HTTP/2" && line["status"] == 400).await;
    assert_eq!(line["path"], "", "{line}");
    assert_eq!(gateway.log().iter().filter(|line| line["path"] == "").count(), 1);
}

fn stream(n: u32) -> u32 {
    2 * n + 1
}

#[tokio::test]
async fn rapid_reset_cve_2023_44487() {
    floods("reset-flood", |n| {
        let head = frame(kind::HEADERS, END_HEADERS | END_STREAM, stream(n), GET);
        [head, frame(kind::RST_STREAM, 0, stream(n), &CANCEL)].concat()
    })
    .await;
}

#[tokio::test]
async fn resets_of_requests_that_had_begun() {
    let (origin, mut asked) = Origin::silent().await;
    let gateway = Gateway::counting(&origin, "").await;
    let mut client = H2Raw::connect(gateway.address(), &[]).await;
    let mut sent = 0;
    for n in 0..2000 {
        client.send(kind::HEADERS, END_HEADERS | END_STREAM, stream(n), GET).await;
        // Once the origin has it, it was accepted: the fast way of the attack is not taken.
        let event = soon("the request", async {
            loop {
                tokio::select! {
                    event = asked.recv() => if event == Some("asked") { break None },
                    goaway = client.next_of(kind::GOAWAY) => break Some(goaway.expect("a GOAWAY")),
                }
            }
        });
        if let Some(goaway) = event.await {
            assert_eq!(goaway.code(), CALM);
            // RFC 9113 s6.8, s8.7: what came after the stream that it names can be sent again, whatever it was.
            let last = goaway.content.first_chunk().map(|last| u32::from_be_bytes(*last));
            assert!(last >= Some(stream(sent)), "{last:?} of {sent}");
            break;
        }
        sent = n;
        client.send(kind::RST_STREAM, 0, stream(n), &CANCEL).await;
    }
    assert!((450..1000).contains(&sent), "{sent}");
    assert_eq!(gateway.refused("reset-flood").await, 1);
}

#[tokio::test]
async fn made_you_reset_cve_2025_8671() {
    // RFC 9113 s6.9.1: a window over 2^31-1 is an error of the stream, which the server has to reset.
    floods("reset-flood", |n| {
        let head = frame(kind::HEADERS, END_HEADERS | END_STREAM, stream(n), GET);
        [head, frame(kind::WINDOW_UPDATE, 0, stream(n), &[0x7f, 255, 255, 255])].concat()
    })
    .await;
}

#[tokio::test]
async fn requests_that_are_malformed_cve_2019_9514() {
    // What is of a connection makes a message malformed (RFC 9113 s8.2.2), an error of the stream.
    let head = [GET, b"\x00\x0aconnection\x01a"].concat();
    floods("reset-flood", |n| frame(kind::HEADERS, END_HEADERS | END_STREAM, stream(n), &head)).await;
}

#[tokio::test]
async fn empty_names_of_fields_cve_2019_9516() {
    let head = [GET, &b"\x00\x00\x00".repeat(5000)].concat();
    floods("http2", |n| frame(kind::HEADERS, END_HEADERS | END_STREAM, stream(n), &head)).await;
}

#[tokio::test]
async fn continuations_without_end_cve_2024_27316() {
    let field = b"\x00\x01a\x01b".repeat(100);
    floods("continuation-flood", |n| match n {
        0 => frame(kind::HEADERS, END_STREAM, 1, GET),
        _ => frame(kind::CONTINUATION, 0, 1, &field),
    })
    .await;
}

#[tokio::test]
async fn empty_continuations_cve_2019_9518() {
    floods("continuation-flood", |n| match n {
        0 => frame(kind::HEADERS, END_STREAM, 1, GET),
        _ => frame(kind::CONTINUATION, 0, 1, b""),
    })
    .await;
}

#[tokio::test]
async fn pings_cve_2019_9512() {
    floods("control-flood", |_| frame(kind::PING, 0, 0, b"12345678").repeat(50)).await;
}

#[tokio::test]
async fn answers_to_pings_that_nobody_sent() {
    floods("control-flood", |_| frame(kind::PING, ACK, 0, b"12345678").repeat(50)).await;
}

#[tokio::test]
async fn settings_cve_2019_9515() {
    floods("control-flood", |n| frame(kind::SETTINGS, 0, 0, &[0, 4, 0, 0, 0, n as u8])).await;
}

#[tokio::test]
async fn priorities_in_a_circle_cve_2019_9513() {
    floods("control-flood", |n| frame(kind::PRIORITY, 0, 1 + 2 * (n % 3), &[0, 0, 0, 7, 0]).repeat(50)).await;
}

#[tokio::test]
async fn data_without_data_cve_2019_9518() {
    let head = frame(kind::HEADERS, END_HEADERS, 1, POST);
    floods_after("control-flood", &head, |_| frame(kind::DATA, 0, 1, b"")).await;
}

#[tokio::test]
async fn frames_of_no_known_type() {
    floods("control-flood", |_| frame(0xfa, 0, 0, b"grease").repeat(50)).await;
}

#[tokio::test]
async fn window_updates_for_nothing() {
    floods("control-flood", |_| frame(kind::WINDOW_UPDATE, 0, 0, &[0, 0, 0, 1])).await;
}

#[tokio::test]
async fn data_in_drips_cve_2019_9511() {
    let origin = Origin::answering(large(1 << 20)).await;
    let gateway = Gateway::counting(&origin, "").await;
    // SETTINGS_INITIAL_WINDOW_SIZE of 0 (RFC 9113 s6.5.2), and then a byte at a time.
    let mut client = H2Raw::connect(gateway.address(), &[(4, 0)]).await;
    client.send(kind::HEADERS, END_HEADERS | END_STREAM, 1, GET).await;
    let goaways = client.flood(20_000, |_| frame(kind::WINDOW_UPDATE, 0, 1, &[0, 0, 0, 1])).await;
    assert!(goaways.iter().all(|goaway| goaway.code() == CALM));
    assert_eq!(gateway.refused("control-flood").await, 1);
}

fn large(length: usize) -> Vec<u8> {
    let head = format!("HTTP/1.1 200 OK\r\ncontent-length: {length}\r\n\r\n");
    [head.as_bytes(), &vec![b'a'; length]].concat()
}

#[tokio::test]
async fn a_client_that_gives_no_window_is_not_waited_for_cve_2019_9517() {
    let origin = Origin::answering(large(1 << 20)).await;
    let gateway = Gateway::before(&origin, "server: {limits: {idle_timeout: 300ms}}").await;
    let begun = Instant::now();
    let mut client = H2Raw::connect(gateway.address(), &[(4, 0)]).await;
    for n in 0..10 {
        client.send(kind::HEADERS, END_HEADERS | END_STREAM, stream(n), GET).await;
    }
    for _ in 0..10 {
        assert!(client.next_of(kind::RST_STREAM).await.is_some());
    }
    assert_eq!(client.next_of(kind::RST_STREAM).await, None, "then it is idle, and ends");
    assert!(begun.elapsed() < Duration::from_secs(4), "{:?}", begun.elapsed());
    assert_eq!(get(gateway.address(), "/").await.status, 200);
}

#[tokio::test]
async fn an_idle_connection_ends_whatever_it_pings() {
    let origin = Origin::echo().await;
    let gateway = Gateway::before(&origin, "server: {limits: {idle_timeout: 400ms}}").await;
    let begun = Instant::now();
    let mut client = H2Raw::connect(gateway.address(), &[]).await;
    client.send(kind::HEADERS, END_HEADERS | END_STREAM, 1, GET).await;
    let ended = async {
        // Each answer is followed by the next question.
        while client.next_of(kind::PING).await.is_some() {
            client.send(kind::PING, 0, 0, b"12345678").await;
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    soon("the end", ended).await;
    assert!((300..4000).contains(&begun.elapsed().as_millis()), "{:?}", begun.elapsed());
}

#[tokio::test]
async fn who_cancels_as_a_browser_does_is_served() {
    let origin = Origin::echo().await;
    let gateway = Gateway::counting(&origin, "").await;
    let client = H2c::connect(gateway.address()).await;
    for n in 0..1500 {
        let request = || Request::get("http://a/").body(()).expect("valid");
        if n % 2 == 0 {
            let (_answer, mut stream) = client.open(request(), true).await;
            stream.send_reset(h2::Reason::CANCEL);
        } else {
            assert_eq!(client.send(request(), b"").await.expect("an answer").status, 200);
        }
    }
    assert_eq!(gateway.refused("reset-flood").await, 0);
}
