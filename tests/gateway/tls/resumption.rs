//! Tickets: everybody resumes, after reloads too, and nobody gets in by an old one.

use rustls::HandshakeKind;
use rustls::version::{TLS12, TLS13};

use super::{HELLO, ONE, ask, beside, connect, folder, listener, start};
use crate::harness::{Authority, Client, Gateway, free_port, own_address};

/// More than the 256 sessions that a server without tickets would remember.
const CLIENTS: usize = 1000;

/// Whether a new connection of this client resumes an earlier one.
async fn resumes(client: &Client, gateway: &Gateway) -> bool {
    let mut wire = connect(client, gateway, "a.test").await;
    // Tickets come with the first answer in TLS 1.3.
    assert_eq!(ask(&mut wire, "a.test").await.status, 200);
    wire.session().handshake_kind() == Some(HandshakeKind::Resumed)
}

async fn all_resume(version: &'static rustls::SupportedProtocolVersion) {
    let authority = Authority::new("servers");
    let gateway = start(&authority, ONE, HELLO).await;
    let clients: Vec<_> = (0..CLIENTS).map(|_| Client::with(&authority, &[version], None, &[])).collect();
    for client in &clients {
        assert!(!resumes(client, &gateway).await);
    }
    let mut resumed = 0;
    for (at, client) in clients.iter().enumerate() {
        if at == CLIENTS / 2 {
            gateway.rewrite(&listener(ONE), &HELLO.replace("hello\"", "hello again\""));
            gateway.says("configuration reloaded generation=2").await;
        }
        resumed += usize::from(resumes(client, &gateway).await);
    }
    assert_eq!(resumed, CLIENTS);
}

#[tokio::test]
async fn a_thousand_clients_of_tls_1_3_resume_also_after_a_reload() {
    all_resume(&TLS13).await;
}

#[tokio::test]
async fn a_thousand_clients_of_tls_1_2_resume_also_after_a_reload() {
    all_resume(&TLS12).await;
}

#[tokio::test]
async fn a_new_certificate_does_not_end_tickets() {
    let authority = Authority::new("servers");
    let gateway = start(&authority, ONE, HELLO).await;
    let client = Client::new(&authority);
    assert!(!resumes(&client, &gateway).await);
    authority.write(&beside(&gateway), "a", &["a.test"], crate::harness::Kind::Ecdsa);
    gateway.says("configuration reloaded generation=2").await;
    assert!(resumes(&client, &gateway).await);
}

#[tokio::test]
async fn a_ticket_does_not_get_past_a_change_of_what_is_asked_of_clients() {
    let authority = Authority::new("servers");
    for version in [&TLS12, &TLS13] {
        let gateway = start(&authority, ONE, HELLO).await;
        let client = Client::with(&authority, &[version], None, &[]);
        assert!(!resumes(&client, &gateway).await);
        let asking = "{certificates: [{cert: a.pem, key: a.key}], client_auth: {mode: require, ca: ca.pem}}";
        gateway.rewrite(&listener(asking), HELLO);
        gateway.says("configuration reloaded generation=2").await;
        let Ok(mut wire) = client.connect(gateway.address(), "a.test").await else { continue };
        assert!(wire.ask("a.test", "/").await.is_err(), "got in without a certificate");
    }
}

#[tokio::test]
async fn a_revoked_client_does_not_get_in_by_its_ticket() {
    let authority = Authority::new("servers");
    let pair = authority.sign_client("acme", 7);
    let gateway = start(&authority, ONE, HELLO).await;
    std::fs::write(beside(&gateway).join("none.crl"), authority.revoke(&[])).expect("written");
    let asking = "{certificates: [{cert: a.pem, key: a.key}], \
                  client_auth: {mode: require, ca: ca.pem, crl: none.crl}}";
    gateway.rewrite(&listener(asking), HELLO);
    gateway.says("configuration reloaded generation=2").await;
    let client = Client::with(&authority, rustls::ALL_VERSIONS, Some(&pair), &[]);
    assert!(!resumes(&client, &gateway).await);
    assert!(resumes(&client, &gateway).await);
    let line = gateway.log_line(|line| line["client_certificate"].is_string()).await;
    assert_eq!(line["client_certificate"], "CN=acme");
    std::fs::write(beside(&gateway).join("none.crl"), authority.revoke(&[7])).expect("written");
    gateway.says("configuration reloaded generation=3").await;
    let Ok(mut wire) = client.connect(gateway.address(), "a.test").await else { return };
    assert!(wire.ask("a.test", "/").await.is_err(), "a revoked client got in");
}

#[tokio::test]
async fn clients_resume_after_an_upgrade() {
    let authority = Authority::new("servers");
    let mut gateway = start(&authority, ONE, HELLO).await;
    for version in [&TLS12, &TLS13] {
        let client = Client::with(&authority, &[version], None, &[]);
        assert!(!resumes(&client, &gateway).await);
        assert_eq!(gateway.upgrade().await.0, Some(0));
        assert!(resumes(&client, &gateway).await);
    }
}

#[tokio::test]
async fn clients_resume_after_their_listener_is_called_something_else() {
    let authority = Authority::new("servers");
    let host = own_address();
    let address = format!("{host}:{}", free_port(&host));
    let called = |name: &str| format!(r#"{{name: {name}, address: "{address}", tls: {ONE}}}"#);
    let mut gateway = Gateway::within(folder(&authority), &called("plain"), HELLO).await;
    let client = Client::new(&authority);
    assert!(!resumes(&client, &gateway).await);
    gateway.rewrite(&called("web"), HELLO);
    gateway.says("configuration reloaded generation=2").await;
    assert!(resumes(&client, &gateway).await);
    // The new process may know it by another name than this one ever did.
    gateway.rewrite(&called("public"), HELLO);
    assert_eq!(gateway.upgrade().await.0, Some(0));
    assert!(resumes(&client, &gateway).await);
}

#[tokio::test]
async fn a_ticket_does_not_get_past_an_upgrade_that_asks_clients_for_more() {
    let authority = Authority::new("servers");
    let mut gateway = start(&authority, ONE, HELLO).await;
    let client = Client::new(&authority);
    assert!(!resumes(&client, &gateway).await);
    let asking = "{certificates: [{cert: a.pem, key: a.key}], client_auth: {mode: require, ca: ca.pem}}";
    gateway.rewrite(&listener(asking), HELLO);
    assert_eq!(gateway.upgrade().await.0, Some(0));
    let Ok(mut wire) = client.connect(gateway.address(), "a.test").await else { return };
    assert!(wire.ask("a.test", "/").await.is_err(), "got in without a certificate");
}
