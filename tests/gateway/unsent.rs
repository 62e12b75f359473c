//! Answers of HTTP/2 whose requests are over while most of them is still to be sent: what a client has no room for is kept
//! for it, for as long as it takes it at `min_rate`.

use std::time::{Duration, Instant};

use crate::harness::h2raw::{END_HEADERS, END_STREAM, GET, kind};
use crate::harness::{Gateway, H2Raw, Wire};

/// Requests of one connection, whose answers are far more than all sockets on the way have room for.
const REQUESTS: u32 = 600;
/// Of each answer; a stream has room for it.
const LENGTH: usize = 60 << 10;

/// A gateway that answers so much, with these limits and further keys of `server`.
async fn gateway(limits: &str, server: &str) -> Gateway {
    let body = "a".repeat(LENGTH);
    Gateway::counting_all(&format!(
        "routes: [{{name: all, respond: {{status: 200, body: {body}}}}}]\n\
         server: {{limits: {{h2_streams: {REQUESTS}{limits}}}{server}}}"
    ))
    .await
}

/// Sends all requests, with windows as large as they can be: only TCP holds the answers back.
async fn ask(gateway: &Gateway) -> H2Raw {
    let wire = Wire::narrow(gateway.address()).await;
    let mut client = H2Raw::over(wire, &[(4, 0x7fff_ffff)]).await;
    client.send(kind::WINDOW_UPDATE, 0, 0, &[0x7f, 0, 0, 0]).await;
    for n in 0..REQUESTS {
        client.send(kind::HEADERS, END_HEADERS | END_STREAM, 2 * n + 1, GET).await;
    }
    client
}

/// Waits until all requests are over.
async fn all_are_over(gateway: &Gateway) {
    let all = async {
        while gateway.log_text().lines().count() < REQUESTS as usize {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(60), all).await.expect("all requests are over");
}

/// Reads all answers to their ends, at first slowly.
async fn read(client: &mut H2Raw, slowly: Duration) {
    let (begun, mut ended, mut length, mut paused) = (Instant::now(), 0, 0, 0);
    while ended < REQUESTS {
        let frame =
            client.next().await.unwrap_or_else(|| panic!("cut after {length} bytes, {ended} answers"));
        if frame.kind == kind::DATA {
            length += frame.content.len();
        }
        if matches!(frame.kind, kind::DATA | kind::HEADERS) && frame.flags & END_STREAM != 0 {
            ended += 1;
        }
        // By what was read: all heads come first, and are little.
        if length >= paused + (256 << 10) && begun.elapsed() < slowly {
            paused = length;
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }
    assert_eq!(length, REQUESTS as usize * LENGTH);
}

/// SETTINGS_INITIAL_WINDOW_SIZE of 0: no stream may send any more (RFC 9113 s6.9.2).
async fn take_windows_back(client: &mut H2Raw) {
    client.send(kind::SETTINGS, 0, 0, &[0, 4, 0, 0, 0, 0]).await;
}

/// Reads to the end of the connection; gives the error codes of all GOAWAYs.
async fn goaways(client: &mut H2Raw) -> Vec<u32> {
    let mut codes = Vec::new();
    while let Some(frame) = client.next().await {
        if frame.kind == kind::GOAWAY {
            codes.push(frame.code());
        }
    }
    codes
}

#[tokio::test]
async fn a_connection_is_not_idle_while_its_client_takes_answers() {
    let gateway = gateway(", idle_timeout: 3s", "").await;
    let mut client = ask(&gateway).await;
    read(&mut client, Duration::from_secs(5)).await;
    assert_eq!(gateway.refused("slow-reader").await, 0);
    let begun = Instant::now();
    while client.next().await.is_some() {}
    assert!(begun.elapsed() > Duration::from_millis(1000), "it is idle from here on: {:?}", begun.elapsed());
}

#[tokio::test]
async fn a_drain_waits_for_answers_that_are_still_being_sent() {
    let mut gateway = gateway("", "").await;
    let mut client = ask(&gateway).await;
    all_are_over(&gateway).await;
    gateway.signal("TERM");
    // For longer than connections with nothing under way are waited for.
    tokio::time::sleep(Duration::from_secs(5)).await;
    read(&mut client, Duration::ZERO).await;
    assert_eq!(gateway.ended().await.code(), Some(0));
    assert_eq!(gateway.said("drain is over"), 0, "nothing had to be cut");
}

#[tokio::test]
async fn a_drain_does_not_wait_longer_than_it_may_for_a_client_that_takes_nothing() {
    let mut gateway = gateway("", ", drain: 500ms").await;
    let _client = ask(&gateway).await;
    all_are_over(&gateway).await;
    gateway.signal("TERM");
    assert_eq!(gateway.ended().await.code(), Some(0));
    gateway.says("drain is over").await;
}

#[tokio::test]
async fn a_client_that_takes_its_windows_back_is_not_waited_for() {
    let gateway = gateway(", idle_timeout: 3s", "").await;
    let mut client = ask(&gateway).await;
    all_are_over(&gateway).await;
    take_windows_back(&mut client).await;
    assert_eq!(goaways(&mut client).await, [11], "ENHANCE_YOUR_CALM");
    assert_eq!(gateway.refused("slow-reader").await, 1);
    let line = gateway.log_line(|line| line["path"] == "").await;
    assert_eq!(line["reason"], "the answer was taken too slowly");
}

#[tokio::test]
async fn a_drain_does_not_wait_to_its_end_for_a_client_that_takes_its_windows_back() {
    let mut gateway = gateway(", idle_timeout: 3s", ", drain: 1h").await;
    let mut client = ask(&gateway).await;
    all_are_over(&gateway).await;
    take_windows_back(&mut client).await;
    gateway.signal("TERM");
    gateway.says("stopping").await;
    assert_eq!(goaways(&mut client).await, [0, 11], "NO_ERROR, then ENHANCE_YOUR_CALM");
    assert_eq!(gateway.ended().await.code(), Some(0));
    assert_eq!(gateway.said("drain is over"), 0, "nothing had to be cut");
}
