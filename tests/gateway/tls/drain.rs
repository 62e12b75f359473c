//! The end of a gateway, as clients over TLS see it.

use super::{ONE, ask, connect, start, to};
use crate::harness::{Authority, Client, Origin, h2_over, soon};

#[tokio::test]
async fn a_gateway_that_stops_finishes_requests_and_says_goodbye_to_idle_clients() {
    let authority = Authority::new("servers");
    let (origin, mut taken) = Origin::handing_over().await;
    let routes = to(&origin)
        .replace("routes: [", "routes: [{name: here, match: {paths: [/here]}, respond: {status: 200}}, ");
    let mut gateway = start(&authority, ONE, &routes).await;
    let client = Client::new(&authority);
    let mut busy = connect(&client, &gateway, "a.test").await;
    busy.send("GET /busy HTTP/1.1\r\nHost: a.test\r\n\r\n").await;
    let mut asked = soon("the request", taken.recv()).await.expect("an origin");
    asked.head().await.expect("a head");
    let mut idle = connect(&client, &gateway, "a.test").await.into_stream();
    let over_h2 = Client::with(&authority, rustls::ALL_VERSIONS, None, &["h2"]);
    let h2 = h2_over(connect(&over_h2, &gateway, "a.test").await.into_stream()).await;
    gateway.signal("TERM");
    let mut room = [0; 16];
    let end = soon("the goodbye", tokio::io::AsyncReadExt::read(&mut idle, &mut room)).await;
    assert_eq!(end.expect("close_notify (RFC 8446 s6.1)"), 0);
    asked.send("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok").await;
    let answer = busy.answer().await.expect("an answer");
    assert_eq!((answer.status, answer.text().as_str()), (200, "ok"));
    assert_eq!(answer.field("connection").map(str::to_lowercase).as_deref(), Some("close"));
    busy.closed().await;
    let here = || http::Request::get("https://a.test/here").body(()).expect("valid");
    soon("the end of HTTP/2", async { while h2.try_send(here()).await {} }).await;
    assert!(gateway.ended().await.success());
}

#[tokio::test]
async fn slow_readers_hold_little_memory() {
    const READERS: usize = 300;
    let authority = Authority::new("servers");
    let body = crate::harness::noise(1 << 20);
    let origin = Origin::new(move |mut wire| {
        let body = body.clone();
        async move {
            while wire.head().await.is_ok() {
                wire.send(format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n", body.len())).await;
                wire.send(&body).await;
            }
        }
    })
    .await;
    let gateway = start(&authority, ONE, &to(&origin)).await;
    let client = Client::new(&authority);
    assert_eq!(ask(&mut connect(&client, &gateway, "a.test").await, "a.test").await.body.len(), 1 << 20);
    let before = gateway.memory();
    let mut readers = Vec::new();
    for _ in 0..READERS {
        let mut wire = connect(&client, &gateway, "a.test").await;
        wire.send("GET / HTTP/1.1\r\nHost: a.test\r\n\r\n").await;
        wire.head().await.expect("a head");
        readers.push(wire);
    }
    let each = gateway.memory().saturating_sub(before) / READERS;
    println!("each slow reader holds {each} KiB");
    assert!(each < 100, "{each} KiB");
}
