//! Clients that never get as far as a request.

use std::time::Duration;

use super::{HELLO, ONE, ask, connect, start};
use crate::harness::{Authority, Client, Gateway, Wire, until};

/// The first bytes of a handshake that never goes on.
const HALF: &[u8] = &[22, 3, 1, 2, 0, 1, 0, 1, 0xfc, 3, 3];

fn descriptors(gateway: &Gateway) -> usize {
    std::fs::read_dir(format!("/proc/{}/fd", gateway.pid())).expect("running").count()
}

async fn still_serves(authority: &Authority, gateway: &Gateway) {
    assert_eq!(
        ask(&mut connect(&Client::new(authority), gateway, "a.test").await, "a.test").await.status,
        200
    );
}

#[tokio::test]
async fn thousands_of_connections_of_all_kinds_leak_nothing() {
    let authority = Authority::new("servers");
    let gateway = start(&authority, ONE, HELLO).await;
    still_serves(&authority, &gateway).await;
    let before = descriptors(&gateway);
    let client = Client::new(&authority);
    for round in 0..3000 {
        match round % 4 {
            0 => drop(Wire::connect(gateway.address()).await),
            1 => Wire::connect(gateway.address()).await.send(HALF).await,
            2 => Wire::connect(gateway.address()).await.reset(),
            _ => drop(connect(&client, &gateway, "a.test").await),
        }
    }
    until("the descriptors to be closed", || (descriptors(&gateway) <= before).then_some(())).await;
    still_serves(&authority, &gateway).await;
    let flood = gateway.stderr().iter().filter(|line| line.contains("handshake")).count();
    assert_eq!(flood, 0, "failed handshakes are no news");
}

#[tokio::test]
async fn garbage_is_closed_and_slow_handshakes_end_with_header_timeout() {
    let authority = Authority::new("servers");
    let rest = format!("server: {{limits: {{header_timeout: 500ms}}}}\n{HELLO}");
    let gateway = start(&authority, ONE, &rest).await;
    for garbage in [
        &[0; 64][..],
        b"\x80\x2e\x01\x00\x02",
        b"SSH-2.0-OpenSSH_9.2\r\n",
        &[22; 64],
        &[22, 3, 1, 0xff, 0xff],
    ] {
        let mut wire = Wire::connect(gateway.address()).await;
        wire.send(garbage).await;
        let said = wire.rest().await;
        assert!(!said.starts_with(b"HTTP/"), "{garbage:?}: {}", String::from_utf8_lossy(&said));
    }
    let mut silent = Wire::connect(gateway.address()).await;
    let mut half = Wire::connect(gateway.address()).await;
    half.send(HALF).await;
    silent.closed().await;
    half.closed().await;
    // A finished handshake starts no deadline of its own.
    let mut idle = connect(&Client::new(&authority), &gateway, "a.test").await;
    assert!(idle.rest().await.is_empty());
    still_serves(&authority, &gateway).await;
}

#[tokio::test]
async fn who_agrees_on_http_2_and_stays_silent_is_closed() {
    let authority = Authority::new("servers");
    let rest = format!("server: {{limits: {{header_timeout: 300ms}}}}\n{HELLO}");
    let gateway = start(&authority, ONE, &rest).await;
    let h2 = Client::with(&authority, rustls::ALL_VERSIONS, None, &["h2"]);
    let mut wire = connect(&h2, &gateway, "a.test").await;
    assert!(wire.rest().await.is_empty());
}

#[tokio::test]
async fn a_drip_of_a_handshake_does_not_extend_its_deadline() {
    let authority = Authority::new("servers");
    let rest = format!("server: {{limits: {{header_timeout: 500ms}}}}\n{HELLO}");
    let gateway = start(&authority, ONE, &rest).await;
    let mut wire = Wire::connect(gateway.address()).await;
    let begun = std::time::Instant::now();
    let mut sent = 0;
    while wire.try_send(&[*HALF.get(sent).unwrap_or(&0)]).await.is_ok() {
        sent += 1;
        assert!(begun.elapsed() < Duration::from_secs(8), "{sent} bytes sent");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

#[tokio::test]
async fn an_idle_connection_holds_little_memory() {
    const CONNECTIONS: usize = 2000;
    let authority = Authority::new("servers");
    let gateway = start(&authority, ONE, HELLO).await;
    let client = Client::with(&authority, &[&rustls::version::TLS13], None, &[]);
    for _ in 0..100 {
        still_serves(&authority, &gateway).await;
    }
    let before = gateway.memory();
    let mut idle = Vec::with_capacity(CONNECTIONS);
    for _ in 0..CONNECTIONS {
        let mut wire = connect(&client, &gateway, "a.test").await;
        assert_eq!(ask(&mut wire, "a.test").await.status, 200);
        idle.push(wire);
    }
    let each = (gateway.memory() - before) * 1024 / CONNECTIONS;
    println!("each idle TLS connection holds {each} bytes");
    // 10 KiB of it are known; the rest is what the allocator keeps in reserve.
    assert!(each < 20 * 1024, "{each} bytes");
}
