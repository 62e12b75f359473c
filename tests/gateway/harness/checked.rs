//! Origins with a health of their own: what they say to probes is apart from what they serve.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::Bytes;
use h2::server::SendResponse;
use http::{HeaderMap, Request, Response};
use parking_lot::Mutex;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio_rustls::TlsAcceptor;

use super::{Head, Origin, Wire};

/// An origin that answers `/healthz` as it is told, and everything else with 200 and its name.
pub(crate) struct Checked {
    pub(crate) origin: Origin,
    health: Arc<Mutex<Option<String>>>,
    probes: Arc<Mutex<Vec<Head>>>,
}

impl Checked {
    /// Answers probes with 200 at first.
    pub(crate) async fn start(name: &'static str) -> Self {
        let health = Arc::new(Mutex::new(Some(answer("200 OK", "fine"))));
        let probes: Arc<Mutex<Vec<Head>>> = Arc::default();
        let (told, seen) = (health.clone(), probes.clone());
        let origin = Origin::new(move |mut wire: Wire| {
            let (told, seen) = (told.clone(), seen.clone());
            async move {
                while let Ok(head) = wire.head().await {
                    if head.target() != "/healthz" {
                        wire.send(answer("200 OK", name)).await;
                        continue;
                    }
                    seen.lock().push(head);
                    let reply = told.lock().clone();
                    match reply {
                        Some(reply) => wire.send(reply).await,
                        None => std::future::pending().await,
                    }
                }
            }
        })
        .await;
        Self { origin, health, probes }
    }

    /// Answers probes so from now on.
    pub(crate) fn says(&self, status: &str, body: &str) {
        *self.health.lock() = Some(answer(status, body));
    }

    /// Leaves probes without an answer from now on.
    pub(crate) fn hangs(&self) {
        *self.health.lock() = None;
    }

    /// The heads of the probes so far.
    pub(crate) fn probes(&self) -> Vec<Head> {
        self.probes.lock().clone()
    }
}

fn answer(status: &str, body: &str) -> String {
    format!("HTTP/1.1 {status}\r\nContent-Length: {}\r\n\r\n{body}", body.len())
}

/// A gRPC server without TLS that knows `grpc.health.v1.Health`; it answers everything else with 200.
pub(crate) struct Grpc {
    pub(crate) origin: Origin,
    status: Arc<AtomicUsize>,
    asked: Arc<Mutex<Vec<Vec<u8>>>>,
}

impl Grpc {
    /// Serving at first.
    pub(crate) async fn start() -> Self {
        let (status, asked) = (Arc::new(AtomicUsize::new(1)), Arc::<Mutex<Vec<Vec<u8>>>>::default());
        let (told, seen) = (status.clone(), asked.clone());
        let origin = Origin::new(move |wire: Wire| {
            let (told, seen) = (told.clone(), seen.clone());
            async move {
                let Ok(mut connection) = h2::server::handshake(wire.into_stream()).await else { return };
                while let Some(Ok((request, respond))) = connection.accept().await {
                    let status = told.load(Ordering::SeqCst);
                    tokio::spawn(serve(request, respond, status, seen.clone()));
                }
            }
        })
        .await;
        Self { origin, status, asked }
    }

    /// Answers probes with this `ServingStatus` from now on.
    pub(crate) fn says(&self, status: usize) {
        self.status.store(status, Ordering::SeqCst);
    }

    /// The messages of the probes so far.
    pub(crate) fn asked(&self) -> Vec<Vec<u8>> {
        self.asked.lock().clone()
    }
}

async fn serve(
    request: Request<h2::RecvStream>,
    mut respond: SendResponse<Bytes>,
    status: usize,
    asked: Arc<Mutex<Vec<Vec<u8>>>>,
) {
    // As nginx does: instead of Host there is an authority (RFC 9113 section 8.3.1).
    let well_formed = request.uri().scheme_str() == Some("http") && !request.headers().contains_key("host");
    let is_probe = request.uri().path() == "/grpc.health.v1.Health/Check"
        && request.headers().get("content-type").is_some_and(|kind| kind == "application/grpc")
        && request.headers().get("te").is_some_and(|te| te == "trailers");
    let mut body = request.into_body();
    let mut message = Vec::new();
    while let Some(Ok(piece)) = body.data().await {
        message.extend_from_slice(&piece);
    }
    let mut head = Response::new(());
    *head.status_mut() = if well_formed { http::StatusCode::OK } else { http::StatusCode::BAD_REQUEST };
    let Ok(mut stream) = respond.send_response(head, !is_probe) else { return };
    if is_probe {
        asked.lock().push(message);
        let status = u8::try_from(status).expect("a status");
        let _ = stream.send_data(Bytes::from(vec![0, 0, 0, 0, 2, 8, status]), false);
        let mut trailers = HeaderMap::new();
        trailers.insert("grpc-status", "0".parse().expect("a value"));
        let _ = stream.send_trailers(trailers);
    }
}

/// An origin for `users.internal` over TLS that answers 200; writes its certificate to `ca`.
pub(crate) async fn tls_origin(ca: &Path) -> Origin {
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    let made = rcgen::generate_simple_self_signed(["users.internal".to_owned()]).expect("a certificate");
    std::fs::write(ca, made.cert.pem()).expect("written");
    let key = PrivateKeyDer::from_pem_slice(made.signing_key.serialize_pem().as_bytes()).expect("a key");
    let chain = vec![CertificateDer::from(made.cert.der().to_vec())];
    let config = rustls::ServerConfig::builder().with_no_client_auth().with_single_cert(chain, key);
    let acceptor = TlsAcceptor::from(Arc::new(config.expect("a pair")));
    Origin::new(move |wire: Wire| {
        let acceptor = acceptor.clone();
        async move {
            use tokio::io::{AsyncReadExt, AsyncWriteExt};
            let Ok(mut stream) = acceptor.accept(wire.into_stream()).await else { return };
            let (mut room, mut held) = ([0; 4096], Vec::new());
            while let Ok(length @ 1..) = stream.read(&mut room).await {
                held.extend_from_slice(&room[..length]);
                if held.ends_with(b"\r\n\r\n") {
                    held.clear();
                    let _ = stream.write_all(answer("200 OK", "secret").as_bytes()).await;
                }
            }
        }
    })
    .await
}
