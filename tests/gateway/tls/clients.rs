//! Certificates of clients.

use http::Request;

use super::real::s_client;
use super::{HELLO, beside, connect, folder, listener, start, to};
use crate::harness::{Authority, Broken, Client, Gateway, Origin, Secure, h2_over};

fn asking(mode: &str, more: &str) -> String {
    format!(
        "{{certificates: [{{cert: a.pem, key: a.key}}], client_auth: {{mode: {mode}, ca: clients.pem{more}}}}}"
    )
}

/// A gateway whose clients one authority signs, and another signs the gateway's certificate.
async fn gateway(servers: &Authority, clients: &Authority, mode: &str, rest: &str) -> Gateway {
    let folder = folder(servers);
    std::fs::write(folder.path().join("clients.pem"), &clients.pem).expect("written");
    Gateway::within(folder, &listener(&asking(mode, "")), rest).await
}

fn client(servers: &Authority, pair: Option<&(String, String)>) -> Client {
    Client::with(servers, rustls::ALL_VERSIONS, pair, &[])
}

/// Whether a client is served; in TLS 1.3 it learns only after its handshake that it is not.
async fn is_served(client: &Client, gateway: &Gateway) -> bool {
    let Ok(mut wire) = client.connect(gateway.address(), "a.test").await else { return false };
    match wire.ask("a.test", "/").await {
        Ok(answer) => answer.status == 200,
        Err(Broken::Nothing) => false,
        Err(other) => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn require_serves_only_who_shows_a_certificate_of_the_authority() {
    let (servers, clients) = (Authority::new("servers"), Authority::new("clients"));
    let gateway = gateway(&servers, &clients, "require", HELLO).await;
    let stranger = Authority::new("clients").sign_client("acme", 1);
    let wrong_use = clients.sign(&["acme.test"], crate::harness::Kind::Ecdsa);
    assert!(is_served(&client(&servers, Some(&clients.sign_client("acme", 1))), &gateway).await);
    assert!(!is_served(&client(&servers, None), &gateway).await);
    assert!(!is_served(&client(&servers, Some(&stranger)), &gateway).await);
    assert!(is_served(&client(&servers, Some(&wrong_use)), &gateway).await, "no usage is any usage");
    let expired = clients.sign_until("acme.test", 2020);
    assert!(!is_served(&client(&servers, Some(&expired)), &gateway).await);
    let lines = gateway.log_line(|line| line["client_certificate"] == "CN=acme").await;
    assert_eq!(lines["status"], 200);
}

#[tokio::test]
async fn optional_serves_who_shows_none_but_nobody_with_a_wrong_one() {
    let (servers, clients) = (Authority::new("servers"), Authority::new("clients"));
    let gateway = gateway(&servers, &clients, "optional", HELLO).await;
    let stranger = Authority::new("others").sign_client("acme", 1);
    assert!(is_served(&client(&servers, None), &gateway).await);
    assert!(is_served(&client(&servers, Some(&clients.sign_client("acme", 1))), &gateway).await);
    // A client with a certificate of no authority asked for shows none; told nothing, it shows it.
    assert!(is_served_insisting(&clients.sign_client("acme", 1), &gateway).await);
    assert!(!is_served_insisting(&stranger, &gateway).await);
}

/// With OpenSSL, which shows its certificate whatever authorities it is told of.
async fn is_served_insisting(pair: &(String, String), gateway: &Gateway) -> bool {
    crate::harness::write_pair(&beside(gateway), "client", pair);
    s_client(gateway, &["-cert", "client.pem", "-key", "client.key"]).await.contains("hello")
}

#[tokio::test]
async fn who_is_on_the_revocation_list_is_not_served() {
    let (servers, clients) = (Authority::new("servers"), Authority::new("clients"));
    let folder = folder(&servers);
    std::fs::write(folder.path().join("clients.pem"), &clients.pem).expect("written");
    std::fs::write(folder.path().join("clients.crl"), clients.revoke(&[7, 9])).expect("written");
    let tls = asking("require", ", crl: clients.crl");
    let gateway = Gateway::within(folder, &listener(&tls), HELLO).await;
    assert!(is_served(&client(&servers, Some(&clients.sign_client("good", 8))), &gateway).await);
    assert!(!is_served(&client(&servers, Some(&clients.sign_client("bad", 7))), &gateway).await);
}

async fn ask_for(wire: &mut Secure, host: &str) -> crate::harness::Answer {
    wire.ask(host, "/").await.expect("an answer")
}

#[tokio::test]
async fn a_request_for_another_host_than_the_handshake_named_is_misdirected_as_rfc_9110_s15_5_20_says() {
    let (servers, clients) = (Authority::new("servers"), Authority::new("clients"));
    let gateway = gateway(&servers, &clients, "optional", HELLO).await;
    let mut wire = connect(&client(&servers, None), &gateway, "a.test").await;
    assert_eq!(ask_for(&mut wire, "A.test:443").await.status, 200);
    let answer = ask_for(&mut wire, "b.test").await;
    assert_eq!((answer.status, answer.problem().as_str()), (421, "misdirected-request"));

    let h2 = Client::with(&servers, rustls::ALL_VERSIONS, None, &["h2"]);
    let h2 = h2_over(connect(&h2, &gateway, "a.test").await.into_stream()).await;
    for (host, status) in [("a.test", 200), ("b.test", 421), ("a.test", 200)] {
        let request = Request::get(format!("https://{host}/")).body(()).expect("valid");
        assert_eq!(h2.send(request, b"").await.expect("an answer").status, status, "{host}");
    }
}

#[tokio::test]
async fn a_resumed_session_is_of_the_host_that_its_handshake_names() {
    let (servers, clients) = (Authority::new("servers"), Authority::new("clients"));
    let folder = folder(&servers);
    servers.write(folder.path(), "a", &["a.test", "b.test"], crate::harness::Kind::Ecdsa);
    std::fs::write(folder.path().join("clients.pem"), &clients.pem).expect("written");
    let gateway = Gateway::within(folder, &listener(&asking("require", "")), HELLO).await;
    let pair = clients.sign_client("acme", 1);
    for version in [&rustls::version::TLS12, &rustls::version::TLS13] {
        for protocol in ["http/1.1", "h2"] {
            let client = Client::with(&servers, &[version], Some(&pair), &[protocol]);
            for resumed in [false, true] {
                let wire = connect(&client, &gateway, "a.test").await;
                let kind = wire.session().handshake_kind() == Some(rustls::HandshakeKind::Resumed);
                let asked = [("a.test", 200), ("b.test", 421)];
                assert_eq!(statuses(wire, protocol, asked).await, asked.map(|asked| asked.1));
                assert_eq!(kind, resumed, "{protocol}");
            }
            let wire = connect(&client, &gateway, "b.test").await;
            let asked = [("b.test", 200), ("a.test", 421)];
            assert_eq!(statuses(wire, protocol, asked).await, asked.map(|asked| asked.1));
        }
    }
}

/// What requests for these hosts come to, one after another on one connection.
async fn statuses(mut wire: Secure, protocol: &str, asked: [(&str, u16); 2]) -> [u16; 2] {
    let mut statuses = [0; 2];
    if protocol == "h2" {
        let h2 = h2_over(wire.into_stream()).await;
        for (status, (host, _)) in statuses.iter_mut().zip(asked) {
            let request = Request::get(format!("https://{host}/")).body(()).expect("valid");
            *status = h2.send(request, b"").await.expect("an answer").status;
        }
        return statuses;
    }
    for (status, (host, _)) in statuses.iter_mut().zip(asked) {
        *status = ask_for(&mut wire, host).await.status;
    }
    statuses
}

#[tokio::test]
async fn without_certificates_of_clients_one_connection_serves_every_host() {
    let authority = Authority::new("servers");
    let gateway = start(&authority, super::ONE, HELLO).await;
    let mut wire = connect(&Client::new(&authority), &gateway, "a.test").await;
    assert_eq!(ask_for(&mut wire, "b.test").await.status, 200);
}

#[tokio::test]
async fn nobody_tells_an_origin_which_certificate_it_has() {
    let (servers, clients) = (Authority::new("servers"), Authority::new("clients"));
    let origin = Origin::echo().await;
    let gateway = gateway(&servers, &clients, "optional", &to(&origin)).await;
    let mut wire = connect(&client(&servers, None), &gateway, "a.test").await;
    for name in ["X-Forwarded-Client-Cert", "x_forwarded_client_cert"] {
        wire.send(format!("GET / HTTP/1.1\r\nHost: a.test\r\n{name}: Subject=\"CN=admin\"\r\n\r\n")).await;
        let answer = wire.answer().await.expect("an answer");
        assert_eq!(answer.status, 200);
        assert!(!answer.text().contains("admin"), "{answer:?}");
    }
}

#[tokio::test]
async fn upstreams_are_told_of_a_certificate_by_nobody_but_the_gateway_and_only_if_it_is_to() {
    let (servers, clients) = (Authority::new("servers"), Authority::new("clients"));
    let origin = Origin::echo().await;
    let (acme, nobody) = (client(&servers, Some(&clients.sign_client("acme", 1))), client(&servers, None));
    for (more, told) in [("", false), (", forward: true", true)] {
        let folder = folder(&servers);
        std::fs::write(folder.path().join("clients.pem"), &clients.pem).expect("written");
        let gateway = Gateway::within(folder, &listener(&asking("optional", more)), &to(&origin)).await;
        for (client, shown) in [(&acme, true), (&nobody, false)] {
            let mut wire = connect(client, &gateway, "a.test").await;
            wire.send("GET / HTTP/1.1\r\nHost: a.test\r\nX-Forwarded-Client-Cert: Hash=forged\r\n\r\n").await;
            assert_eq!(wire.answer().await.expect("an answer").status, 200);
            let seen = origin.heads().pop().expect("a request");
            let field = seen.field("x-forwarded-client-cert");
            assert_eq!(field.is_some(), told && shown, "{field:?}");
            assert!(
                field.is_none_or(|said| said.starts_with("Hash=") && said.contains(";Subject=\"CN=acme\""))
            );
        }
    }
}
