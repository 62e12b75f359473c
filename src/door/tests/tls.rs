//! Handshakes: which fail, how that is counted, and that nothing stays behind.

use rcgen::{CertificateParams, KeyPair};
use rustls::pki_types::ServerName;
use rustls::{ClientConfig, RootCertStore};
use tokio_rustls::TlsConnector;

use super::*;
use crate::config::Protocol;
use crate::config::tls::{Certificate, ClientAuth, ClientAuthMode, ListenerTls, TlsVersion};
use crate::tls::Remarks;

/// A door that speaks TLS, with its certificate.
struct Secured {
    running: Running,
    handshakes: Arc<HandshakeFailures>,
    certificate: rustls::pki_types::CertificateDer<'static>,
}

impl Secured {
    fn open(min_version: TlsVersion, asks: bool) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let key = KeyPair::generate().unwrap();
        let params = CertificateParams::new(vec!["a.test".to_owned()]).unwrap();
        let certificate = params.self_signed(&key).unwrap();
        std::fs::write(folder.path().join("a.pem"), certificate.pem()).unwrap();
        std::fs::write(folder.path().join("a.key"), key.serialize_pem()).unwrap();
        let one = Certificate { hosts: Vec::new(), cert: "a.pem".into(), key: "a.key".into(), ocsp: None };
        let client_auth = asks.then(|| ClientAuth {
            mode: ClientAuthMode::Require,
            ca: "a.pem".into(),
            crl: None,
            forward: false,
        });
        let written = ListenerTls { min_version, certificates: vec![one], client_auth };
        let mut remarks = Remarks::default();
        let tls = ServerTls::build(&written, &[Protocol::Http1], folder.path(), None, &mut remarks);
        let limits = HeadLimits { header_timeout: Duration::from_millis(500), ..LIMITS };
        let table = vec![None; 7].into_iter().chain([tls.map(Arc::new)]).collect();
        let desk = Desk { tls: Arc::new(ArcSwap::from_pointee(table)), ..desk(limits) };
        let handshakes = desk.handshakes.clone();
        let running = Running::at(super::open(&listener(ANY)).unwrap(), desk);
        Self { running, handshakes, certificate: certificate.der().clone() }
    }

    async fn client(
        &self,
        alpn: &[&str],
        versions: &[&'static rustls::SupportedProtocolVersion],
    ) -> std::io::Result<()> {
        let mut roots = RootCertStore::empty();
        roots.add(self.certificate.clone()).unwrap();
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let builder = ClientConfig::builder_with_provider(provider).with_protocol_versions(versions).unwrap();
        let mut config = builder.with_root_certificates(roots).with_no_client_auth();
        config.alpn_protocols = alpn.iter().map(|name| name.as_bytes().to_vec()).collect();
        let connector = TlsConnector::from(Arc::new(config));
        let name = ServerName::try_from("a.test").unwrap();
        let mut stream = connector.connect(name, self.running.connect().await).await?;
        stream.write_all(REQUEST).await?;
        let mut answer = [0; 12];
        stream.read_exact(&mut answer).await?;
        assert_eq!(&answer, b"HTTP/1.1 200");
        Ok(())
    }

    async fn counts(&self, failure: HandshakeFailure) {
        let reached = async {
            while self.handshakes.count(failure) != 1 {
                tokio::task::yield_now().await;
            }
        };
        let waited = tokio::time::timeout(Duration::from_secs(20), reached).await;
        assert!(waited.is_ok(), "{failure:?}: {:?}", self.handshakes);
        for other in HandshakeFailure::ALL.into_iter().filter(|other| *other != failure) {
            assert_eq!(self.handshakes.count(other), 0, "{other:?}");
        }
        self.running.until_open(0).await;
    }
}

#[tokio::test]
async fn a_client_is_served_and_nothing_is_counted() {
    let door = Secured::open(TlsVersion::V12, false);
    door.client(&[], rustls::ALL_VERSIONS).await.unwrap();
    drop(door.running.connect().await);
    door.running.until_open(0).await;
    for failure in HandshakeFailure::ALL {
        assert_eq!(door.handshakes.count(failure), 0, "{failure:?}");
    }
}

#[tokio::test]
async fn failures_are_counted_by_their_reason() {
    let door = Secured::open(TlsVersion::V12, false);
    door.client(&["spdy/1"], rustls::ALL_VERSIONS).await.unwrap_err();
    door.counts(HandshakeFailure::NoCommonProtocol).await;

    let door = Secured::open(TlsVersion::V13, false);
    door.client(&[], &[&rustls::version::TLS12]).await.unwrap_err();
    door.counts(HandshakeFailure::NoCommonVersion).await;

    let door = Secured::open(TlsVersion::V12, true);
    door.client(&[], rustls::ALL_VERSIONS).await.unwrap_err();
    door.counts(HandshakeFailure::BadClientCertificate).await;

    let door = Secured::open(TlsVersion::V12, false);
    let stranger = Secured::open(TlsVersion::V12, false);
    let confused = Secured { certificate: stranger.certificate.clone(), ..door };
    confused.client(&[], rustls::ALL_VERSIONS).await.unwrap_err();
    confused.counts(HandshakeFailure::RefusedByClient).await;
}

#[tokio::test]
async fn bytes_that_are_no_handshake_are_counted_by_what_they_are() {
    for (bytes, failure) in [
        (&b"\x80\x2e\x01"[..], HandshakeFailure::NotTls),
        (b"GET / HTTP/1.1\r\n\r\n", HandshakeFailure::NotTls),
        (&[22, 3, 1, 0, 4, 9, 9, 9, 9], HandshakeFailure::Other),
        (&[22, 3, 1, 0xff, 0xff], HandshakeFailure::Other),
    ] {
        let door = Secured::open(TlsVersion::V12, false);
        let mut client = door.running.connect().await;
        client.write_all(bytes).await.unwrap();
        let mut answer = Vec::new();
        let _ = client.read_to_end(&mut answer).await;
        assert_eq!(answer.starts_with(b"HTTP/1.1 400 "), bytes.starts_with(b"GET"), "{bytes:?}");
        door.counts(failure).await;
    }
}

#[tokio::test]
async fn a_handshake_that_stops_half_way_ends_with_its_deadline_or_its_client() {
    let door = Secured::open(TlsVersion::V12, false);
    let mut client = door.running.connect().await;
    client.write_all(&[22, 3, 1, 2, 0, 1]).await.unwrap();
    assert_eq!(client.read(&mut [0; 16]).await.unwrap(), 0);
    door.counts(HandshakeFailure::Timeout).await;

    let door = Secured::open(TlsVersion::V12, false);
    let mut client = door.running.connect().await;
    client.write_all(&[22, 3, 1, 2, 0, 1]).await.unwrap();
    drop(client);
    door.counts(HandshakeFailure::Closed).await;
}

#[tokio::test]
async fn a_first_message_without_end_is_cut_off() {
    let door = Secured::open(TlsVersion::V12, false);
    let mut client = door.running.connect().await;
    // A ClientHello of 60,000 bytes, in records of 1,000.
    let hello = [&[1, 0, 0xea, 0x60][..], &[3; 60_000]].concat();
    for piece in hello.chunks(1000) {
        let record = [&[22, 3, 1][..], &u16::try_from(piece.len()).unwrap().to_be_bytes(), piece].concat();
        if client.write_all(&record).await.is_err() {
            break;
        }
    }
    let _ = client.read(&mut [0; 16]).await;
    door.counts(HandshakeFailure::Other).await;
}
