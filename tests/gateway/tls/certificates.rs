//! Certificates that change, and certificates that are wrong.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use super::{HELLO, ONE, ask, beside, connect, folder, listener, read, shown, start};
use crate::harness::{
    Authority, Client, Gateway, Kind, free_port, own_address, refused_to_start, until, write_pair,
};

#[tokio::test]
async fn certificates_change_under_load_without_a_failed_request() {
    let authority = Authority::new("servers");
    let gateway = start(&authority, ONE, HELLO).await;
    let stop = Arc::<AtomicBool>::default();
    let clients = [true, true, false].map(|keep| {
        let (stop, client, address) = (stop.clone(), Client::new(&authority), gateway.address());
        tokio::spawn(async move {
            let mut wire = client.connect(address, "a.test").await.expect("a handshake");
            let mut asked = 0;
            while !stop.load(Ordering::Relaxed) {
                if !keep {
                    wire = client.connect(address, "a.test").await.expect("a handshake");
                }
                assert_eq!(ask(&mut wire, "a.test").await.status, 200);
                asked += 1;
            }
            asked
        })
    });
    for generation in 2..6 {
        authority.write(&beside(&gateway), "a", &["a.test"], Kind::Ecdsa);
        let new = read(&beside(&gateway), "a.pem");
        until_shown(&authority, &gateway, &new).await;
        let told = || (gateway.said("configuration reloaded") >= generation - 1).then_some(());
        until("the reload to be told", told).await;
    }
    stop.store(true, Ordering::Relaxed);
    let mut asked = 0;
    for client in clients {
        asked += client.await.expect("no request failed");
    }
    assert!(asked > 50, "{asked} requests are no load");
}

async fn until_shown(authority: &Authority, gateway: &Gateway, certificate: &[u8]) {
    crate::harness::soon("the new certificate", async {
        loop {
            let wire = connect(&Client::new(authority), gateway, "a.test").await;
            if shown(&wire) == certificate {
                return;
            }
            tokio::time::sleep(std::time::Duration::from_millis(10)).await;
        }
    })
    .await;
}

#[tokio::test]
async fn a_pair_that_does_not_belong_together_is_reported_and_the_old_one_stays() {
    let authority = Authority::new("servers");
    let gateway = start(&authority, ONE, HELLO).await;
    let old = read(&beside(&gateway), "a.pem");
    let (_, other) = authority.sign(&["a.test"], Kind::Ecdsa);
    std::fs::write(beside(&gateway).join("a.key"), other).expect("written");
    gateway.says("the key does not belong to the first certificate in `cert`").await;
    gateway.says("the running one stays").await;
    assert_eq!(shown(&connect(&Client::new(&authority), &gateway, "a.test").await), old);
    authority.write(&beside(&gateway), "a", &["a.test"], Kind::Ecdsa);
    let new = read(&beside(&gateway), "a.pem");
    until_shown(&authority, &gateway, &new).await;
}

#[tokio::test]
async fn an_expired_certificate_is_served_with_a_warning() {
    let authority = Authority::new("servers");
    let folder = folder(&authority);
    write_pair(folder.path(), "a", &authority.sign_until("a.test", 2020));
    let gateway = Gateway::within(folder, &listener(ONE), HELLO).await;
    let warning = gateway.says("the certificate expired on").await;
    assert!(
        warning.contains("listeners[0].tls.certificates[0].cert") && warning.contains("2020"),
        "{warning}"
    );
    let refused = Client::new(&authority).connect(gateway.address(), "a.test").await.err();
    assert!(refused.is_some_and(|error| error.to_string().contains("expired")), "clients decide");
}

#[tokio::test]
async fn tls_comes_to_a_listener_and_goes_by_a_reload() {
    let authority = Authority::new("servers");
    let plain = r#"{name: plain, address: "127.0.0.1:0"}"#;
    let gateway = Gateway::within(folder(&authority), plain, HELLO).await;
    let mut old = crate::harness::Wire::connect(gateway.address()).await;
    let ask_plain = "GET / HTTP/1.1\r\nHost: a.test\r\n\r\n";
    old.send(ask_plain).await;
    assert_eq!(old.answer().await.expect("an answer").status, 200);
    gateway.rewrite(&listener(ONE), HELLO);
    gateway.says("configuration reloaded generation=2").await;
    assert_eq!(
        ask(&mut connect(&Client::new(&authority), &gateway, "a.test").await, "a.test").await.status,
        200
    );
    old.send(ask_plain).await;
    assert_eq!(old.answer().await.expect("an answer").status, 200, "a connection stays what it is");
    gateway.rewrite(plain, HELLO);
    until("plain text", || (gateway.said("configuration reloaded") == 2).then_some(())).await;
    assert_eq!(crate::harness::get(gateway.address(), "/").await.status, 200);
}

#[tokio::test]
async fn a_socket_with_tls_does_not_become_the_listener_that_takes_the_name_it_had() {
    let authority = Authority::new("servers");
    let host = own_address();
    let address = format!("{host}:{}", free_port(&host));
    let public = |name: &str| format!(r#"{{name: {name}, address: "{address}", tls: {ONE}}}"#);
    let inside = "routes: [{name: inside, match: {listeners: [plain]}, respond: {body: inside}}]";
    let gateway = Gateway::within(folder(&authority), &public("plain"), inside).await;
    let status = async || {
        let mut wire = connect(&Client::new(&authority), &gateway, "a.test").await;
        ask(&mut wire, "a.test").await.status
    };
    assert_eq!(status().await, 200);
    gateway.rewrite(&format!(r#"{}, {{name: plain, address: "127.0.0.1:9"}}"#, public("public")), inside);
    gateway.says("configuration reloaded generation=2").await;
    assert_eq!(status().await, 404, "what is meant for the other address only");
}

#[test]
fn a_gateway_with_an_unreadable_certificate_does_not_start() {
    let (code, said) = refused_to_start(
        "{version: 1, admin: {address: none}, listeners: [{name: a, address: '127.0.0.1:0', \
         tls: {certificates: [{cert: none.pem, key: none.key}]}}]}",
    );
    assert_eq!(code, Some(1), "{said}");
    assert!(said.contains("listeners[0].tls.certificates[0].cert: cannot read none.pem"), "{said}");
    assert!(said.contains("listeners[0].tls.certificates[0].key: cannot read none.key"), "{said}");
}
