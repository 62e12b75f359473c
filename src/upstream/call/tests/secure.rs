//! Calls over TLS with a private authority.

use std::sync::Arc;

use rcgen::{BasicConstraints, CertificateParams, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair};
use rustls::ServerConfig;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use tempfile::TempDir;
use tokio_rustls::TlsAcceptor;

use super::*;

/// An authority, written as `{name}.pem`, with what it signs.
struct Authority {
    issuer: Issuer<'static, KeyPair>,
    certificate: CertificateDer<'static>,
}

impl Authority {
    fn new(dir: &TempDir, name: &str) -> Self {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let certificate = params.self_signed(&key).unwrap();
        std::fs::write(dir.path().join(format!("{name}.pem")), certificate.pem()).unwrap();
        Self { certificate: certificate.der().clone(), issuer: Issuer::new(params, key) }
    }

    /// A certificate and its key, as PEM.
    fn sign(&self, name: &str, usage: ExtendedKeyUsagePurpose) -> (String, String) {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(vec![name.to_owned()]).unwrap();
        params.extended_key_usages = vec![usage];
        (params.signed_by(&key, &self.issuer).unwrap().pem(), key.serialize_pem())
    }
}

/// An origin for `users.internal`; asks for a certificate of `clients` if given.
async fn origin(authority: &Authority, clients: Option<&Authority>, alpn: &[&[u8]]) -> SocketAddr {
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    let (certificate, key) = authority.sign("users.internal", ExtendedKeyUsagePurpose::ServerAuth);
    let builder = ServerConfig::builder();
    let builder = match clients {
        Some(clients) => {
            let mut roots = rustls::RootCertStore::empty();
            roots.add(clients.certificate.clone()).unwrap();
            builder.with_client_cert_verifier(WebPkiClientVerifier::builder(roots.into()).build().unwrap())
        }
        None => builder.with_no_client_auth(),
    };
    let chain = vec![CertificateDer::from_pem_slice(certificate.as_bytes()).unwrap()];
    let key = PrivateKeyDer::from_pem_slice(key.as_bytes()).unwrap();
    let mut config = builder.with_single_cert(chain, key).unwrap();
    config.alpn_protocols = alpn.iter().map(|protocol| protocol.to_vec()).collect();
    let (listener, address) = listen().await;
    let acceptor = TlsAcceptor::from(Arc::new(config));
    tokio::spawn(async move {
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            let acceptor = acceptor.clone();
            tokio::spawn(async move {
                let Ok(mut stream) = acceptor.accept(stream).await else { return };
                if stream.get_ref().1.alpn_protocol() == Some(b"h2") {
                    serve_h2(stream).await;
                    return;
                }
                while read_request(&mut stream).await.is_some() {
                    stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok").await.unwrap();
                }
            });
        }
    });
    address
}

async fn serve_h2(stream: tokio_rustls::server::TlsStream<TcpStream>) {
    let mut connection = h2::server::handshake(stream).await.unwrap();
    while let Some(Ok((_, mut respond))) = connection.accept().await {
        let mut send = respond.send_response(http::Response::new(()), false).unwrap();
        send.send_data("ok".into(), true).unwrap();
    }
}

async fn body_of(caller: &Caller, upstream: &Upstream) -> Result<Bytes, CallError> {
    get(caller, upstream).await?.body.read_all(100).await
}

fn tls(dir: &TempDir, address: SocketAddr, tls: Value) -> Upstream {
    upstream_in(dir.path(), &[address], json!({"tls": tls}))
}

#[tokio::test]
async fn a_private_authority_is_trusted_for_its_own_name_only() {
    let dir = tempfile::tempdir().unwrap();
    let (ours, _other) = (Authority::new(&dir, "ours"), Authority::new(&dir, "other"));
    let address = origin(&ours, None, &[]).await;
    let caller = caller();
    let trusted = tls(&dir, address, json!({"sni": "users.internal", "ca": "ours.pem"}));
    assert_eq!(body_of(&caller, &trusted).await, Ok("ok".into()));
    // With a verified connection in the pool, so that sharing it would show.
    for settings in [
        json!({"sni": "users.internal", "ca": "other.pem"}),
        json!({"sni": "users.internal"}),
        json!({"sni": "orders.internal", "ca": "ours.pem"}),
    ] {
        let error = body_of(&caller, &tls(&dir, address, settings)).await.unwrap_err();
        assert!(matches!(error, CallError::Connect(_)), "{error}");
        assert_eq!(error.status(), 502);
    }
}

#[tokio::test]
async fn verification_can_be_switched_off_and_is_not_lent_to_those_who_verify() {
    let dir = tempfile::tempdir().unwrap();
    let (ours, _other) = (Authority::new(&dir, "ours"), Authority::new(&dir, "other"));
    let address = origin(&ours, None, &[]).await;
    let caller = caller();
    let careless = tls(&dir, address, json!({"sni": "x.internal", "ca": "other.pem", "verify": false}));
    assert_eq!(body_of(&caller, &careless).await, Ok("ok".into()));
    let careful = tls(&dir, address, json!({"sni": "x.internal", "ca": "other.pem"}));
    assert!(body_of(&caller, &careful).await.is_err());
}

#[tokio::test]
async fn a_backend_that_asks_for_a_client_certificate_gets_ours() {
    let dir = tempfile::tempdir().unwrap();
    let (ours, clients) = (Authority::new(&dir, "ours"), Authority::new(&dir, "clients"));
    let (certificate, key) = clients.sign("gateway.internal", ExtendedKeyUsagePurpose::ClientAuth);
    std::fs::write(dir.path().join("gateway.pem"), certificate).unwrap();
    std::fs::write(dir.path().join("gateway.key"), key).unwrap();
    let address = origin(&ours, Some(&clients), &[]).await;
    let caller = caller();
    let mut settings = json!({
        "sni": "users.internal", "ca": "ours.pem", "client_cert": "gateway.pem", "client_key": "gateway.key",
    });
    assert_eq!(body_of(&caller, &tls(&dir, address, settings.clone())).await, Ok("ok".into()));
    settings.as_object_mut().unwrap().retain(|key, _| !key.starts_with("client"));
    assert!(body_of(&caller, &tls(&dir, address, settings)).await.is_err());
}

#[tokio::test]
async fn the_version_is_negotiated_for_auto_and_insisted_on_for_h2() {
    let dir = tempfile::tempdir().unwrap();
    let ours = Authority::new(&dir, "ours");
    let caller = caller();
    for (alpn, protocol, works) in [
        (&[&b"h2"[..], b"http/1.1"][..], "auto", true),
        (&[&b"http/1.1"[..]][..], "auto", true),
        (&[][..], "auto", true),
        (&[&b"h2"[..]][..], "h2", true),
        (&[&b"http/1.1"[..]][..], "h2", false),
        (&[][..], "h2", false),
        (&[&b"h2"[..], b"http/1.1"][..], "http/1.1", true),
    ] {
        let address = origin(&ours, None, alpn).await;
        let tls = json!({"sni": "users.internal", "ca": "ours.pem"});
        let upstream = upstream_in(dir.path(), &[address], json!({"protocol": protocol, "tls": tls}));
        let outcome = body_of(&caller, &upstream).await;
        assert_eq!(outcome.is_ok(), works, "{protocol} with {alpn:?}: {outcome:?}");
    }
}
