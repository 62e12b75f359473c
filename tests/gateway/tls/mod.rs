//! TLS on listeners, with clients of several kinds.

mod abuse;
mod certificates;
mod clients;
mod drain;
mod real;
mod resumption;

use std::path::Path;

use rustls::version::{TLS12, TLS13};
use tempfile::TempDir;

use crate::harness::{Answer, Authority, Client, Gateway, Kind, Origin, Secure, h2_over, request};

/// One route that answers by itself.
const HELLO: &str = r#"routes: [{name: hello, respond: {status: 200, body: "hello"}}]"#;
/// One certificate, for `a.test`.
const ONE: &str = "{certificates: [{cert: a.pem, key: a.key}]}";

fn listener(tls: &str) -> String {
    format!(r#"{{name: plain, address: "127.0.0.1:0", tls: {tls}}}"#)
}

/// A folder with a certificate for `a.test` and the authority's own.
fn folder(authority: &Authority) -> TempDir {
    let folder = TempDir::new().expect("a folder");
    authority.write(folder.path(), "a", &["a.test"], Kind::Ecdsa);
    std::fs::write(folder.path().join("ca.pem"), &authority.pem).expect("written");
    folder
}

async fn start(authority: &Authority, tls: &str, rest: &str) -> Gateway {
    Gateway::within(folder(authority), &listener(tls), rest).await
}

/// One route that sends everything to this origin.
fn to(origin: &Origin) -> String {
    format!(
        "upstreams: [{{name: origin, backends: [{{address: \"{}\"}}]}}]\n\
         routes: [{{name: all, upstream: origin}}]",
        origin.address
    )
}

async fn connect(client: &Client, gateway: &Gateway, host: &str) -> Secure {
    client.connect(gateway.address(), host).await.expect("a handshake")
}

async fn ask(wire: &mut Secure, host: &str) -> Answer {
    wire.ask(host, "/x").await.expect("an answer")
}

/// The file that holds a gateway's certificate, and what is beside it.
fn beside(gateway: &Gateway) -> std::path::PathBuf {
    gateway.file().parent().expect("a folder").to_owned()
}

fn read(folder: &Path, name: &str) -> Vec<u8> {
    use rustls::pki_types::pem::PemObject;
    rustls::pki_types::CertificateDer::from_pem_file(folder.join(name)).expect("PEM").to_vec()
}

/// The certificate that the server showed.
fn shown(wire: &Secure) -> Vec<u8> {
    wire.session().peer_certificates().expect("shown")[0].to_vec()
}

#[tokio::test]
async fn a_request_over_tls_is_answered_and_told_to_the_origin_and_the_log_as_https() {
    let authority = Authority::new("servers");
    let origin = Origin::echo().await;
    let gateway = start(&authority, ONE, &to(&origin)).await;
    for (version, name) in [(&TLS13, "TLSv1.3"), (&TLS12, "TLSv1.2")] {
        let client = Client::with(&authority, &[version], None, &[]);
        let mut wire = connect(&client, &gateway, "a.test").await;
        for _ in 0..2 {
            let answer = ask(&mut wire, "a.test").await;
            assert_eq!(answer.status, 200, "{answer:?}");
            assert!(answer.text().to_lowercase().contains("x-forwarded-proto: https"), "{answer:?}");
        }
        let line = gateway.log_line(|line| line["tls_version"] == name).await;
        assert_eq!((&line["scheme"], &line["sni"]), (&"https".into(), &"a.test".into()));
        assert!(line["tls_cipher"].as_str().is_some_and(|cipher| cipher.starts_with("TLS_")), "{line}");
        assert_eq!(line["client_certificate"], serde_json::Value::Null);
    }
}

#[tokio::test]
async fn the_client_gets_the_certificate_of_the_host_it_names_and_else_the_first() {
    let authority = Authority::new("servers");
    let folder = folder(&authority);
    authority.write(folder.path(), "b", &["b.test", "*.b.test"], Kind::Ecdsa);
    authority.write(folder.path(), "c", &["x.b.test"], Kind::Ecdsa);
    let tls = "{certificates: [{cert: a.pem, key: a.key}, {cert: b.pem, key: b.key}, \
               {hosts: [x.b.test], cert: c.pem, key: c.key}]}";
    let gateway = Gateway::within(folder, &listener(tls), HELLO).await;
    let client = Client::new(&authority);
    let folder = beside(&gateway);
    for (host, stem) in
        [("a.test", "a"), ("b.test", "b"), ("y.b.test", "b"), ("x.b.test", "c"), ("X.B.test", "c")]
    {
        let wire = connect(&client, &gateway, host).await;
        assert_eq!(shown(&wire), read(&folder, &format!("{stem}.pem")), "{host}");
    }
    let refused = client.connect(gateway.address(), "other.test").await.err().expect("the wrong certificate");
    assert!(refused.to_string().contains("only valid for DnsName(\"a.test\")"), "{refused}");
}

#[tokio::test]
async fn x25519mlkem768_is_agreed_on_with_who_offers_it() {
    let authority = Authority::new("servers");
    let gateway = start(&authority, ONE, HELLO).await;
    let wire = connect(&Client::new(&authority), &gateway, "a.test").await;
    let group = wire.session().negotiated_key_exchange_group().expect("a group").name();
    assert_eq!(group, rustls::NamedGroup::X25519MLKEM768);
}

#[tokio::test]
async fn min_version_1_3_shuts_older_clients_out() {
    let authority = Authority::new("servers");
    let tls = r#"{min_version: "1.3", certificates: [{cert: a.pem, key: a.key}]}"#;
    let gateway = start(&authority, tls, HELLO).await;
    let old = Client::with(&authority, &[&TLS12], None, &[]);
    let refused = old.connect(gateway.address(), "a.test").await.err().expect("an alert");
    assert!(refused.to_string().contains("ProtocolVersion"), "{refused}");
    let new = Client::with(&authority, &[&TLS13], None, &[]);
    assert_eq!(ask(&mut connect(&new, &gateway, "a.test").await, "a.test").await.status, 200);
}

#[tokio::test]
async fn alpn_offers_what_protocols_say_as_rfc_7301_says() {
    let authority = Authority::new("servers");
    let offers = |protocols| Client::with(&authority, rustls::ALL_VERSIONS, None, protocols);
    for (written, offered, agreed) in [
        ("[h2, http/1.1]", &["http/1.1", "h2"][..], Some("h2")),
        ("[http/1.1, h2]", &["h2", "http/1.1"], Some("http/1.1")),
        ("[http/1.1]", &["h2", "http/1.1"], Some("http/1.1")),
        ("[http/1.1]", &[], None),
    ] {
        let listener =
            format!(r#"{{name: plain, address: "127.0.0.1:0", protocols: {written}, tls: {ONE}}}"#);
        let gateway = Gateway::within(folder(&authority), &listener, HELLO).await;
        let wire = connect(&offers(offered), &gateway, "a.test").await;
        let chosen = wire.session().alpn_protocol().map(|name| String::from_utf8_lossy(name).into_owned());
        assert_eq!(chosen.as_deref(), agreed, "{written} {offered:?}");
        let nothing = offers(&["http/1.0"]).connect(gateway.address(), "a.test").await;
        let alert = nothing.err().expect("no_application_protocol").to_string();
        assert!(alert.contains("NoApplicationProtocol"), "{alert}");
    }
}

#[tokio::test]
async fn http_2_only_needs_alpn_and_the_preface() {
    let authority = Authority::new("servers");
    let listener = format!(r#"{{name: plain, address: "127.0.0.1:0", protocols: [h2], tls: {ONE}}}"#);
    let gateway = Gateway::within(folder(&authority), &listener, HELLO).await;
    let silent = Client::new(&authority);
    if let Ok(mut wire) = silent.connect(gateway.address(), "a.test").await {
        assert!(wire.ask("a.test", "/").await.is_err(), "HTTP/1.1 is not spoken here");
    }
    let h2 = Client::with(&authority, rustls::ALL_VERSIONS, None, &["h2"]);
    let mut wire = connect(&h2, &gateway, "a.test").await;
    assert!(wire.ask("a.test", "/").await.is_err(), "a request of HTTP/1.1 where HTTP/2 was agreed on");
}

#[tokio::test]
async fn plain_http_on_a_tls_port_is_answered_in_plain_http() {
    let authority = Authority::new("servers");
    let gateway = start(&authority, ONE, HELLO).await;
    let answer = request(gateway.address(), "GET /x?y", "").await;
    assert_eq!(answer.status, 400);
    assert_eq!(answer.problem(), "bad-request");
    assert!(answer.text().contains("this port speaks TLS"), "{answer:?}");
    let line = gateway.log_line(|line| line["path"] == "/x").await;
    assert_eq!((&line["status"], &line["scheme"]), (&400.into(), &"http".into()));
}

#[tokio::test]
async fn large_bodies_pass_over_tls_both_ways_unharmed() {
    let authority = Authority::new("servers");
    let origin = Origin::giving_back().await;
    let gateway = start(&authority, ONE, &to(&origin)).await;
    let mut wire = connect(&Client::new(&authority), &gateway, "a.test").await;
    let body = crate::harness::noise(3_000_000);
    for _ in 0..2 {
        wire.send(format!("POST / HTTP/1.1\r\nHost: a.test\r\nContent-Length: {}\r\n\r\n", body.len())).await;
        wire.send(&body).await;
        assert!(wire.answer().await.expect("an answer").body == body);
    }
}

#[tokio::test]
async fn pipelined_requests_over_tls_are_all_answered() {
    let authority = Authority::new("servers");
    let gateway = start(&authority, ONE, HELLO).await;
    let mut wire = connect(&Client::new(&authority), &gateway, "a.test").await;
    wire.send("GET / HTTP/1.1\r\nHost: a.test\r\n\r\n".repeat(20)).await;
    for _ in 0..20 {
        assert_eq!(wire.answer().await.expect("an answer").text(), "hello");
    }
}

#[tokio::test]
async fn an_idle_connection_is_closed_with_a_goodbye() {
    let authority = Authority::new("servers");
    let rest = format!("server: {{limits: {{idle_timeout: 100ms}}}}\n{HELLO}");
    let gateway = start(&authority, ONE, &rest).await;
    let mut wire = connect(&Client::new(&authority), &gateway, "a.test").await;
    assert_eq!(ask(&mut wire, "a.test").await.status, 200);
    let mut stream = wire.into_stream();
    let mut room = [0; 16];
    let read = crate::harness::soon("the end", tokio::io::AsyncReadExt::read(&mut stream, &mut room)).await;
    assert_eq!(read.expect("close_notify (RFC 8446 s6.1)"), 0);
}

#[tokio::test]
async fn a_websocket_passes_over_tls() {
    let authority = Authority::new("servers");
    let origin = Origin::new(|mut wire| async move {
        let head = wire.head().await.expect("a head");
        assert_eq!(head.field("upgrade"), Some("websocket"));
        wire.send("HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n")
            .await;
        loop {
            let bytes = wire.some().await;
            if bytes.is_empty() {
                return;
            }
            wire.send(bytes).await;
        }
    })
    .await;
    let gateway = start(&authority, ONE, &to(&origin)).await;
    let mut wire = connect(&Client::new(&authority), &gateway, "a.test").await;
    wire.send(
        "GET / HTTP/1.1\r\nHost: a.test\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
         Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n",
    )
    .await;
    assert_eq!(wire.answer().await.expect("an answer").status, 101);
    let noise = crate::harness::noise(200_000);
    for piece in noise.chunks(20_000) {
        wire.send(piece).await;
        assert!(wire.exactly(piece.len()).await.expect("an echo") == piece);
    }
}

#[tokio::test]
async fn large_bodies_pass_over_http_2_over_tls() {
    let authority = Authority::new("servers");
    let origin = Origin::giving_back().await;
    let gateway = start(&authority, ONE, &to(&origin)).await;
    let client = Client::with(&authority, rustls::ALL_VERSIONS, None, &["h2"]);
    let h2 = h2_over(connect(&client, &gateway, "a.test").await.into_stream()).await;
    // Within the window that a client may fill without waiting.
    let body = crate::harness::noise(60_000);
    for _ in 0..20 {
        let request = http::Request::post("https://a.test/").body(()).expect("valid");
        let answer = h2.send(request, &body).await.expect("an answer");
        assert!(answer.status == 200 && answer.body == body, "{} bytes", answer.body.len());
    }
}
