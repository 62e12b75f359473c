//! TLS on listeners, with clients of several kinds.

use std::path::Path;

use tempfile::TempDir;

use crate::harness::{Authority, Client, Gateway, Kind, Origin, Wire};

const HELLO: &str = r#"routes: [{name: hello, respond: {status: 200, body: "hello"}}]"#;

fn listener(tls: &str) -> String {
    format!(r#"{{name: plain, address: "127.0.0.1:0", tls: {tls}}}"#)
}

/// One certificate for `a.test`.
const ONE: &str = "{certificates: [{cert: a.pem, key: a.key}]}";

fn folder(authority: &Authority) -> TempDir {
    let folder = TempDir::new().expect("a folder");
    authority.write(folder.path(), "a", &["a.test"], Kind::Ecdsa);
    std::fs::write(folder.path().join("ca.pem"), &authority.pem).expect("written");
    folder
}

async fn start(authority: &Authority, tls: &str, rest: &str) -> Gateway {
    Gateway::within(folder(authority), &listener(tls), rest).await
}

#[tokio::test]
async fn a_request_over_tls_is_answered_and_told_to_the_origin_as_https() {
    let authority = Authority::new("servers");
    let origin = Origin::echo().await;
    let rest = format!(
        "upstreams: [{{name: origin, backends: [{{address: \"{}\"}}]}}]\nroutes: [{{name: all, upstream: origin}}]",
        origin.address
    );
    let gateway = start(&authority, ONE, &rest).await;
    let mut wire = Client::new(&authority).connect(gateway.address(), "a.test").await.expect("a handshake");
    for _ in 0..2 {
        let answer = wire.ask("a.test", "/x").await.expect("an answer");
        assert_eq!(answer.status, 200, "{answer:?}");
        assert!(answer.text().to_lowercase().contains("x-forwarded-proto: https"), "{answer:?}");
    }
    let line = gateway.log_line(|line| line["path"] == "/x").await;
    assert_eq!(line["scheme"], "https");
    assert_eq!(line["tls_version"], "TLSv1.3");
    assert_eq!(line["sni"], "a.test");
}
