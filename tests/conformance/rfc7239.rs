//! RFC 7239, Forwarded HTTP Extension.

use crate::harness::{Gateway, Origin, request};

#[tokio::test]
async fn s4_each_proxy_appends_one_element() {
    let origin = Origin::echo().await;
    let gateway = Gateway::before(&origin, "server: {trusted_proxies: [127.0.0.1]}").await;
    request(gateway.address(), "GET /", "Forwarded: for=192.0.2.43, for=\"[2001:db8:cafe::17]\"\r\n").await;
    let all = origin.head().all("forwarded").join(", ");
    let elements: Vec<_> =
        all.split(", ").map(|element| element.split(';').next().unwrap_or_default()).collect();
    assert_eq!(elements, ["for=192.0.2.43", "for=\"[2001:db8:cafe::17]\"", "for=127.0.0.1"]);
}

#[tokio::test]
async fn s6_a_host_with_a_port_is_quoted() {
    // `:` is no token character, so the value must be a quoted-string.
    let origin = Origin::echo().await;
    let gateway = Gateway::before(&origin, "").await;
    let mut client = crate::harness::Wire::connect(gateway.address()).await;
    client.send("GET / HTTP/1.1\r\nHost: example.test:8080\r\n\r\n").await;
    client.answer().await.expect("an answer");
    assert_eq!(origin.head().field("forwarded"), Some("for=127.0.0.1;host=\"example.test:8080\";proto=http"));
}
