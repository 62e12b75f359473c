//! The PROXY protocol on listeners ("The PROXY protocol, versions 1 & 2", haproxy.org).

use std::process::Command;

use tempfile::TempDir;

use crate::harness::{Gateway, Haproxy, Origin, Wire, get, until};

const ASK: &str = "GET / HTTP/1.1\r\nHost: a\r\n\r\n";

const LISTENER: &str = "{name: plain, address: \"127.0.0.1:0\", accept_proxy_protocol: true}";

async fn gateway(origin: &Origin, trusted: &str, limits: &str) -> Gateway {
    let rest = format!(
        "server: {{trusted_proxies: [{trusted}], limits: {{{limits}}}}}\n\
         upstreams: [{{name: up, backends: [{{address: \"{}\"}}]}}]\n\
         routes: [{{name: all, match: {{paths: [\"/*\"]}}, upstream: up}}]",
        origin.address
    );
    Gateway::within(TempDir::new().expect("a folder"), LISTENER, &rest).await
}

/// A block of version 2 for this IPv4 client, with an extension behind the addresses.
fn version_2(client: [u8; 4]) -> Vec<u8> {
    let fixed = b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x10";
    [&fixed[..], &client, &[127, 0, 0, 1, 0x30, 0x39, 0, 80], &[4, 0, 1, 0]].concat()
}

#[tokio::test]
async fn the_client_is_who_the_proxy_says_in_either_version() {
    let origin = Origin::echo().await;
    let gateway = gateway(&origin, "127.0.0.1", "").await;
    let old = b"PROXY TCP4 192.0.2.7 127.0.0.1 12345 80\r\n".to_vec();
    for (preamble, client) in [(old, "192.0.2.7"), (version_2([192, 0, 2, 8]), "192.0.2.8")] {
        for cut in [0, 1, preamble.len() - 1, preamble.len()] {
            let mut wire = Wire::connect(gateway.address()).await;
            wire.send(&preamble[..cut]).await;
            // What the client itself says of others is not believed: it is no trusted proxy.
            let rest = format!("GET / HTTP/1.1\r\nHost: a\r\nX-Forwarded-For: 203.0.113.9\r\n\r\n{ASK}");
            wire.send([&preamble[cut..], rest.as_bytes()].concat()).await;
            for _ in 0..2 {
                assert_eq!(wire.answer().await.expect("an answer").status, 200);
            }
        }
        let said: Vec<_> =
            origin.heads().iter().map(|head| head.field("x-forwarded-for").map(str::to_owned)).collect();
        assert_eq!(said.iter().filter(|said| said.as_deref() == Some(client)).count(), 8, "{said:?}");
        gateway.log_line(|line| line["client"] == client).await;
    }
}

#[tokio::test]
async fn a_connection_without_a_preamble_or_from_a_stranger_is_closed_without_a_word() {
    let origin = Origin::echo().await;
    let strict = gateway(&origin, "127.0.0.1", "header_timeout: 1s").await;
    for bytes in [ASK, "PROXY TCP4 192.0.2.7\r\n", "PROXY TCP4 192.0.2.7 127.0.0.1 1 2\n", "PRO"] {
        let mut wire = Wire::connect(strict.address()).await;
        wire.send(bytes).await;
        assert!(wire.rest().await.is_empty(), "{bytes:?}");
    }
    let foreign = gateway(&origin, "192.0.2.1", "").await;
    let mut wire = Wire::connect(foreign.address()).await;
    wire.send(format!("PROXY TCP4 192.0.2.7 127.0.0.1 1 2\r\n{ASK}")).await;
    assert!(wire.rest().await.is_empty());
    assert!(origin.heads().is_empty());
}

#[tokio::test]
async fn connections_are_counted_for_the_client_and_not_for_the_proxy() {
    let origin = Origin::echo().await;
    let gateway = gateway(&origin, "127.0.0.1", "connections_per_ip: 1").await;
    let mut open = Vec::new();
    for client in ["192.0.2.1", "192.0.2.2", "192.0.2.3"] {
        let mut wire = Wire::connect(gateway.address()).await;
        wire.send(format!("PROXY TCP4 {client} 127.0.0.1 1 2\r\n{ASK}")).await;
        assert_eq!(wire.answer().await.map(|answer| answer.status), Ok(200), "{client}");
        open.push(wire);
    }
    let mut second = Wire::connect(gateway.address()).await;
    second.send(format!("PROXY TCP4 192.0.2.3 127.0.0.1 3 4\r\n{ASK}")).await;
    assert!(second.rest().await.is_empty());
}

#[tokio::test]
async fn a_health_check_of_the_proxy_itself_has_the_proxys_address() {
    let origin = Origin::echo().await;
    let gateway = gateway(&origin, "127.0.0.1", "").await;
    for preamble in [&b"PROXY UNKNOWN\r\n"[..], b"\r\n\r\n\0\r\nQUIT\n\x20\0\0\0"] {
        let mut wire = Wire::connect(gateway.address()).await;
        wire.send([preamble, ASK.as_bytes()].concat()).await;
        assert_eq!(wire.answer().await.expect("an answer").status, 200);
    }
    let lines = until("two lines", || Some(gateway.log()).filter(|lines| lines.len() == 2)).await;
    assert!(lines.iter().all(|line| line["client"] == "127.0.0.1"), "{lines:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn curl_and_haproxy_introduce_their_clients() {
    let origin = Origin::echo().await;
    let gateway = gateway(&origin, "127.0.0.1", "").await;
    let url = format!("http://{}/curl", gateway.address());
    let curl = Command::new("curl").args(["-sS", "--max-time", "10", "--haproxy-protocol", &url]).output();
    let curl = curl.expect("curl is there");
    assert!(curl.status.success(), "{}", String::from_utf8_lossy(&curl.stderr));
    for version in ["send-proxy", "send-proxy-v2"] {
        let proxy = Haproxy::before(gateway.address(), version).await;
        assert_eq!(get(proxy.http1, &format!("/{version}")).await.status, 200);
    }
    let paths: Vec<_> = origin.heads().iter().map(|head| head.target().to_owned()).collect();
    assert_eq!(paths, ["/curl", "/send-proxy", "/send-proxy-v2"]);
}
