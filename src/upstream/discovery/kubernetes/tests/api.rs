//! An API server that tests play: over TLS, with bearer tokens.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::sync::Arc;

use rcgen::{BasicConstraints, CertificateParams, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use serde_json::Value;
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

use super::super::access::Here;
use super::soon;

/// What the account of the Pod shows.
pub(super) const TOKEN: &str = "eyJhbGciOiJSUzI1NiIsImtpZCI6IjEifQ.first.signature";

/// The server, and what a Pod of its cluster has.
pub(super) struct Api {
    pub(super) port: u16,
    listener: TcpListener,
    acceptor: TlsAcceptor,
    /// `token`, `ca.crt` and `namespace`, as in a Pod; and `client.crt` and `client.key`.
    pub(super) account: TempDir,
}

/// A request that waits for its answer.
pub(super) struct Ask {
    stream: TlsStream<TcpStream>,
    pub(super) path: String,
    pub(super) query: BTreeMap<String, String>,
    pub(super) fields: BTreeMap<String, String>,
    /// Whether the client has shown a certificate.
    pub(super) certified: bool,
}

impl Api {
    pub(super) async fn new() -> Self {
        let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
        let account = TempDir::new().unwrap();
        let put = |name: &str, text: &str| std::fs::write(account.path().join(name), text).unwrap();
        let (ca, ca_pem, issuer) = authority();
        put("ca.crt", &ca_pem);
        put("token", &format!("{TOKEN}\n"));
        put("namespace", "shop");
        let (certificate, key) = signed(&issuer, "gateway", ExtendedKeyUsagePurpose::ClientAuth);
        put("client.crt", &certificate);
        put("client.key", &key);
        let mut roots = rustls::RootCertStore::empty();
        roots.add(ca).unwrap();
        let clients = WebPkiClientVerifier::builder(roots.into()).allow_unauthenticated().build().unwrap();
        let (certificate, key) = signed(&issuer, "127.0.0.1", ExtendedKeyUsagePurpose::ServerAuth);
        let chain = vec![CertificateDer::from_pem_slice(certificate.as_bytes()).unwrap()];
        let key = PrivateKeyDer::from_pem_slice(key.as_bytes()).unwrap();
        let config = rustls::ServerConfig::builder().with_client_cert_verifier(clients);
        let acceptor = TlsAcceptor::from(Arc::new(config.with_single_cert(chain, key).unwrap()));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        Self { port: listener.local_addr().unwrap().port(), listener, acceptor, account }
    }

    /// What a Pod of the cluster finds.
    pub(super) fn here(&self) -> Here {
        let (host, port) = (Some("127.0.0.1".to_owned()), Some(self.port.to_string()));
        Here { host, port, account: self.account.path().to_owned() }
    }

    /// The next request.
    pub(super) async fn ask(&mut self) -> Ask {
        loop {
            let (stream, _) = soon(self.listener.accept()).await.unwrap();
            // Who does not trust the server says nothing more.
            if let Ok(stream) = self.acceptor.accept(stream).await {
                return Ask::read(stream).await;
            }
        }
    }

    /// Lets clients connect for as long as this is waited for, none of whom may come as far as to say something.
    pub(super) async fn is_distrusted(&self) -> Infallible {
        loop {
            let (stream, _) = self.listener.accept().await.unwrap();
            assert!(soon(self.acceptor.accept(stream)).await.is_err());
        }
    }
}

impl Ask {
    async fn read(mut stream: TlsStream<TcpStream>) -> Self {
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            head.push(soon(stream.read_u8()).await.unwrap());
        }
        let head = String::from_utf8(head).unwrap();
        let mut lines = head.trim_end().split("\r\n");
        let target = lines.next().unwrap().strip_prefix("GET ").unwrap().strip_suffix(" HTTP/1.1").unwrap();
        let (path, query) = target.split_once('?').unwrap();
        let query = query.split('&').map(|pair| {
            let (name, value) = pair.split_once('=').unwrap();
            (name.to_owned(), decoded(value))
        });
        let fields = lines.map(|line| {
            let (name, value) = line.split_once(": ").unwrap();
            (name.to_ascii_lowercase(), value.to_owned())
        });
        let (path, query, fields) = (path.to_owned(), query.collect(), fields.collect());
        let certified = stream.get_ref().1.peer_certificates().is_some();
        Self { stream, path, query, fields, certified }
    }

    /// It is a list of the slices of `users` in `shop`, as whom the account's token shows, from here on.
    pub(super) fn is_list(&self, from: Option<&str>) {
        let mut query = vec![("labelSelector", "kubernetes.io/service-name=users"), ("limit", "100")];
        query.extend(from.map(|from| ("continue", from)));
        self.is(&query);
    }

    /// It is a watch from this version on, with a limit.
    pub(super) fn is_watch(&self, version: &str) {
        let seconds = self.query["timeoutSeconds"].as_str();
        assert!((54..=66).contains(&seconds.parse::<u32>().unwrap()), "{seconds}");
        self.is(&[
            ("labelSelector", "kubernetes.io/service-name=users"),
            ("watch", "true"),
            ("allowWatchBookmarks", "true"),
            ("resourceVersion", version),
            ("timeoutSeconds", seconds),
        ]);
    }

    fn is(&self, query: &[(&str, &str)]) {
        assert_eq!(self.path, "/apis/discovery.k8s.io/v1/namespaces/shop/endpointslices");
        let query: BTreeMap<_, _> =
            query.iter().map(|(name, value)| (String::from(*name), String::from(*value))).collect();
        assert_eq!(self.query, query);
        assert_eq!(self.fields["accept"], "application/json");
        assert_eq!(self.fields["authorization"], format!("Bearer {TOKEN}"));
    }

    /// Answers whole.
    pub(super) async fn answers(mut self, status: u16, body: &Value) {
        let body = body.to_string();
        let head = format!(
            "HTTP/1.1 {status} x\r\nAudit-Id: a\r\nCache-Control: no-cache, private\r\n\
             Content-Type: application/json\r\nContent-Length: {}\r\nConnection: close\r\n\r\n",
            body.len()
        );
        self.write(&head).await;
        self.write(&body).await;
        let _ = self.stream.shutdown().await;
    }

    /// Begins to answer in chunks.
    pub(super) async fn opens(&mut self) {
        let head = "HTTP/1.1 200 OK\r\nAudit-Id: a\r\nCache-Control: no-cache, private\r\n\
                    Content-Type: application/json\r\nConnection: close\r\nTransfer-Encoding: chunked\r\n\r\n";
        self.write(head).await;
    }

    pub(super) async fn line(&mut self, event: &Value) {
        self.text(&format!("{event}\n")).await;
    }

    /// A line in chunks of its own, however they fall.
    pub(super) async fn in_pieces(&mut self, event: &Value) {
        let line = format!("{event}\n");
        for piece in line.as_bytes().chunks(7) {
            self.text(std::str::from_utf8(piece).unwrap()).await;
        }
    }

    /// A chunk.
    pub(super) async fn text(&mut self, text: &str) {
        self.write(&format!("{:x}\r\n{text}\r\n", text.len())).await;
    }

    /// Ends the chunks, as a server does whose time for a watch is over.
    pub(super) async fn ends(mut self) {
        self.write("0\r\n\r\n").await;
        let _ = self.stream.shutdown().await;
    }

    async fn write(&mut self, text: &str) {
        soon(self.stream.write_all(text.as_bytes())).await.unwrap();
        soon(self.stream.flush()).await.unwrap();
    }
}

fn authority() -> (CertificateDer<'static>, String, Issuer<'static, KeyPair>) {
    let key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::new(Vec::new()).unwrap();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let certificate = params.self_signed(&key).unwrap();
    (certificate.der().clone(), certificate.pem(), Issuer::new(params, key))
}

fn signed(issuer: &Issuer<'static, KeyPair>, name: &str, usage: ExtendedKeyUsagePurpose) -> (String, String) {
    let key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::new(vec![name.to_owned()]).unwrap();
    params.extended_key_usages = vec![usage];
    (params.signed_by(&key, issuer).unwrap().pem(), key.serialize_pem())
}

/// A value of a query, decoded.
fn decoded(text: &str) -> String {
    let mut bytes = Vec::new();
    let mut rest = text.as_bytes();
    while let Some((first, after)) = rest.split_first() {
        rest = after;
        bytes.push(match first {
            b'%' => {
                let (digits, after) = rest.split_at(2);
                rest = after;
                u8::from_str_radix(std::str::from_utf8(digits).unwrap(), 16).unwrap()
            }
            b'+' => b' ',
            other => *other,
        });
    }
    String::from_utf8(bytes).unwrap()
}
