//! What becomes of requests that are cut when the time to finish them is over.

use serde_json::Value;

use crate::harness::{Broken, Gateway, H2c, Origin, Wire, soon};

/// As long as requests may take to finish when the gateway stops.
const DRAIN: &str = "server: {drain: 300ms}";
const ASK: &str = "GET /chat HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
                   Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n";
const ACCEPT: &str = "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
                      Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n";

/// The lines of the log about this path, once the gateway has ended.
fn lines(gateway: &Gateway, path: &str) -> Vec<Value> {
    gateway.log().into_iter().filter(|line| line["path"] == path).collect()
}

#[tokio::test]
async fn requests_that_are_cut_when_the_drain_is_over_are_in_the_log() {
    let (origin, mut taken) = Origin::handing_over().await;
    let mut gateway = Gateway::before(&origin, DRAIN).await;
    let mut plain = Wire::connect(gateway.address()).await;
    plain.send("GET /plain HTTP/1.1\r\nHost: a\r\n\r\n").await;
    let _plain = soon("the request", taken.recv()).await.expect("an origin");
    let mut chunked = Wire::connect(gateway.address()).await;
    chunked.send("POST /chunked HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n").await;
    let _chunked = soon("the request", taken.recv()).await.expect("an origin");
    let h2 = H2c::connect(gateway.address()).await;
    let asking = tokio::spawn(async move {
        let request = http::Request::get("http://a/h2").body(()).expect("valid");
        h2.send(request, b"").await.map(|answer| answer.status)
    });
    let _h2 = soon("the request", taken.recv()).await.expect("an origin");
    gateway.signal("TERM");
    assert_eq!(gateway.ended().await.code(), Some(0));
    assert!(matches!(plain.answer().await, Err(Broken::Nothing)));
    assert!(matches!(chunked.answer().await, Err(Broken::Nothing)));
    assert!(asking.await.expect("no panic").is_err());
    for path in ["/plain", "/chunked", "/h2"] {
        let lines = lines(&gateway, path);
        let [line] = &lines[..] else { panic!("{path}: {lines:?}") };
        assert_eq!((&line["status"], &line["error"]), (&499.into(), &"stopped".into()), "{line}");
    }
    gateway.says("drain is over").await;
    assert_eq!(gateway.said("drain is over"), 1, "once, however many there were");
}

#[tokio::test]
async fn an_answer_that_is_cut_when_the_drain_is_over_is_in_the_log_with_what_was_sent_of_it() {
    let (origin, mut taken) = Origin::handing_over().await;
    let mut gateway = Gateway::before(&origin, DRAIN).await;
    let mut client = Wire::connect(gateway.address()).await;
    client.send("GET /download HTTP/1.1\r\nHost: a\r\n\r\n").await;
    let mut wire = soon("the request", taken.recv()).await.expect("an origin");
    wire.head().await.expect("a head");
    wire.send("HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nfirst").await;
    client.head().await.expect("a head");
    assert_eq!(client.exactly(5).await.expect("a part"), b"first");
    gateway.signal("TERM");
    assert_eq!(gateway.ended().await.code(), Some(0));
    client.closed().await;
    let lines = lines(&gateway, "/download");
    let [line] = &lines[..] else { panic!("{lines:?}") };
    assert_eq!((&line["status"], &line["error"]), (&200.into(), &"stopped".into()), "{line}");
    assert_eq!(line["bytes_out"], 5, "{line}");
}

#[tokio::test]
async fn a_websocket_that_nobody_closes_in_its_time_is_in_the_log() {
    let (origin, mut taken) = Origin::handing_over().await;
    let mut gateway = Gateway::before(&origin, DRAIN).await;
    let mut client = Wire::connect(gateway.address()).await;
    client.send(ASK).await;
    let mut wire = soon("the request", taken.recv()).await.expect("an origin");
    wire.head().await.expect("a head");
    wire.send(ACCEPT).await;
    assert_eq!(client.head().await.expect("a head").line, "HTTP/1.1 101 Switching Protocols");
    gateway.signal("TERM");
    // RFC 6455 s5.5.1, s7.4.1: it is told to go, and says nothing.
    assert_eq!(client.exactly(4).await.expect("a close frame"), [0x88, 2, 0x03, 0xe9]);
    assert_eq!(gateway.ended().await.code(), Some(0));
    let lines = lines(&gateway, "/chat");
    let [line] = &lines[..] else { panic!("{lines:?}") };
    assert_eq!((&line["status"], &line["error"]), (&101.into(), &"stopped".into()), "{line}");
}
