//! The certificates that an example names, made for it, and a client that trusts them.

use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned};
use serde_json::Value;

/// What was made for one example.
pub(crate) struct Certificates {
    listeners: Vec<String>,
    trusted: RootCertStore,
    /// A client's chain and key.
    client: Option<(CertificateDer<'static>, KeyPair)>,
}

impl Certificates {
    /// Makes every file that the `tls` of a document's listeners names, in this folder.
    pub(crate) fn make(folder: &Path, document: &Value) -> Self {
        let mut made = Self { listeners: Vec::new(), trusted: RootCertStore::empty(), client: None };
        let empty = Vec::new();
        for listener in document["listeners"].as_array().unwrap_or(&empty) {
            let Some(tls) = listener.get("tls") else { continue };
            made.listeners.push(listener["name"].as_str().expect("a name").to_owned());
            for certificate in tls["certificates"].as_array().expect("certificates") {
                made.pair(folder, certificate, document);
            }
            if let Some(auth) = tls.get("client_auth") {
                made.authority(folder, auth);
            }
        }
        made
    }

    pub(crate) fn speaks_tls(&self, listener: &str) -> bool {
        self.listeners.iter().any(|name| name == listener)
    }

    /// Connects, names this host and shows a certificate if asked for one.
    pub(crate) fn connect(
        &self,
        address: SocketAddr,
        host: &str,
    ) -> StreamOwned<ClientConnection, TcpStream> {
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let builder = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
        let builder = builder.expect("versions").with_root_certificates(self.trusted.clone());
        let config = match &self.client {
            Some((certificate, key)) => {
                let key = PrivateKeyDer::try_from(key.serialize_der()).expect("a key");
                builder.with_client_auth_cert(vec![certificate.clone()], key).expect("a pair")
            }
            None => builder.with_no_client_auth(),
        };
        let name = ServerName::try_from(host.to_owned()).expect("a host");
        let stream = TcpStream::connect(address).expect("somebody listens");
        stream.set_read_timeout(Some(Duration::from_secs(20))).expect("a socket option");
        StreamOwned::new(ClientConnection::new(Arc::new(config), name).expect("a client"), stream)
    }

    /// For every host that a test asks for: examples leave it to their certificates which they are for.
    fn pair(&mut self, folder: &Path, certificate: &Value, document: &Value) {
        let stem = Path::new(certificate["cert"].as_str().expect("a file")).file_stem().expect("a name");
        let hosts = document["tests"].as_array().into_iter().flatten();
        let mut hosts: Vec<_> = hosts.filter_map(|test| test["request"]["host"].as_str()).collect();
        hosts.retain(|host| host.split('.').next() == stem.to_str());
        hosts.dedup();
        let key = KeyPair::generate().expect("a key");
        let hosts: Vec<String> = hosts.into_iter().map(str::to_owned).collect();
        let signed = CertificateParams::new(hosts).expect("names").self_signed(&key).expect("signed");
        self.trusted.add(signed.der().clone()).expect("a certificate");
        write(folder, &certificate["cert"], signed.pem());
        write(folder, &certificate["key"], key.serialize_pem());
    }

    fn authority(&mut self, folder: &Path, auth: &Value) {
        let (key, own) = (KeyPair::generate().expect("a key"), KeyPair::generate().expect("a key"));
        let mut params = CertificateParams::new(Vec::new()).expect("no names");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        write(folder, &auth["ca"], params.self_signed(&key).expect("signed").pem());
        let client = CertificateParams::new(vec!["client.test".to_owned()]).expect("a name");
        let client = client.signed_by(&own, &Issuer::new(params, key)).expect("signed");
        self.client = Some((client.der().clone(), own));
    }
}

fn write(folder: &Path, file: &Value, text: String) {
    let path = folder.join(file.as_str().expect("a file"));
    std::fs::create_dir_all(path.parent().expect("a parent")).expect("a folder");
    std::fs::write(path, text).expect("written");
}
