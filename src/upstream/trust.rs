//! What makes a TLS connection to a backend trusted: authorities, names, our own certificate.

use std::path::Path;
use std::sync::Arc;

use pingora::protocols::tls::CaType;
use pingora::utils::tls::{CertKey, WrappedX509, parse_x509};
use rustls::RootCertStore;
use rustls::crypto::aws_lc_rs::sign::any_supported_type;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::sign::CertifiedKey;
use sha2::{Digest, Sha256};

use super::Problems;
use crate::config::upstream::Tls;
use crate::tls::files;

/// The TLS settings of an upstream, read and checked once.
pub(super) struct Trust {
    pub(super) verify: bool,
    pub(super) sni: Option<String>,
    pub(super) ca: Option<Arc<CaType>>,
    pub(super) client: Option<Arc<CertKey>>,
    /// A hash of all of the above, file contents included.
    pub(super) digest: [u8; 32],
}

impl Trust {
    /// Reads the files named by `tls`, relative to `base`, and checks everything that a handshake relies on.
    pub(super) fn load(tls: &Tls, base: &Path, problems: &mut Problems) -> Option<Self> {
        let before = problems.len();
        let mut digest = Sha256::new();
        digest.update([u8::from(tls.verify)]);
        check_sni(tls, problems);
        mix(&mut digest, tls.sni.as_deref().unwrap_or_default().as_bytes());
        let ca = tls.ca.as_deref().and_then(|file| {
            load_ca(base, file, &mut digest).map_err(|message| problems.add("tls.ca", message)).ok()
        });
        let client = load_client(tls, base, &mut digest, problems);
        (problems.len() == before).then(|| Self {
            verify: tls.verify,
            sni: tls.sni.clone(),
            ca,
            client,
            digest: digest.finalize().into(),
        })
    }
}

fn check_sni(tls: &Tls, problems: &mut Problems) {
    match tls.sni.as_deref() {
        // Pingora sends no name and verifies nothing for an empty one.
        Some("") => problems.add("tls.sni", "the name to verify must not be empty"),
        Some(name) if ServerName::try_from(name).is_err() => {
            problems.add("tls.sni", "expected a host name or an IP address");
        }
        _ => {}
    }
}

fn load_ca(base: &Path, file: &Path, digest: &mut Sha256) -> Result<Arc<CaType>, String> {
    let certificates = certificates(base, file)?;
    let mut store = RootCertStore::empty();
    digest.update(b"ca");
    for certificate in &certificates {
        store
            .add(certificate.clone())
            .map_err(|error| format!("{} holds an unusable authority: {error}", file.display()))?;
        mix(digest, certificate);
    }
    let wrapped: Vec<_> = certificates.iter().map(wrapped).collect();
    Ok(wrapped.into())
}

fn load_client(tls: &Tls, base: &Path, digest: &mut Sha256, problems: &mut Problems) -> Option<Arc<CertKey>> {
    let (certificate, key) = match (&tls.client_cert, &tls.client_key) {
        (None, None) => return None,
        (Some(_), None) => {
            problems.add("tls.client_cert", "needs `client_key` too");
            return None;
        }
        (None, Some(_)) => {
            problems.add("tls.client_key", "needs `client_cert` too");
            return None;
        }
        (Some(certificate), Some(key)) => (certificate, key),
    };
    let chain = certificates(base, certificate).map_err(|message| problems.add("tls.client_cert", message));
    let key = files::private_key(base, key).map_err(|message| problems.add("tls.client_key", message));
    let (chain, key) = (chain.ok()?, key.ok()?);
    if let Err(message) = check_pair(&chain, &key) {
        problems.add("tls.client_key", message);
        return None;
    }
    digest.update(b"client");
    chain.iter().for_each(|certificate| mix(digest, certificate));
    mix(digest, key.secret_der());
    let chain = chain.iter().map(|certificate| certificate.to_vec()).collect();
    Some(Arc::new(CertKey::new(chain, key.secret_der().to_vec())))
}

fn check_pair(chain: &[CertificateDer<'static>], key: &PrivateKeyDer<'static>) -> Result<(), String> {
    let signer = any_supported_type(key).map_err(|_| "the key is of no supported type".to_owned())?;
    // Pingora works the kind of key out from its bytes again, and panics where that fails.
    PrivateKeyDer::try_from(key.secret_der().to_vec())
        .map_err(|_| "the key is of no supported format".to_owned())?;
    match CertifiedKey::new(chain.to_vec(), signer).keys_match() {
        Err(rustls::Error::InconsistentKeys(rustls::InconsistentKeys::KeyMismatch)) => {
            Err("the key does not belong to `client_cert`".to_owned())
        }
        Err(rustls::Error::InvalidCertificate(_)) => {
            Err("`client_cert` is not a usable certificate".to_owned())
        }
        _ => Ok(()),
    }
}

/// The certificates of a PEM file, each of which Pingora can parse.
fn certificates(base: &Path, file: &Path) -> Result<Vec<CertificateDer<'static>>, String> {
    let found = files::certificates(base, file)?;
    // Pingora panics on a certificate that its parser refuses.
    if found.iter().any(|certificate| x509_parser::parse_x509_certificate(certificate).is_err()) {
        return Err(format!("{} holds an invalid certificate", file.display()));
    }
    Ok(found)
}

fn wrapped(certificate: &CertificateDer<'static>) -> WrappedX509 {
    WrappedX509::new(certificate.to_vec(), parse_x509)
}

/// Hashes a part with its length, so that no two lists of parts hash alike.
fn mix(digest: &mut Sha256, part: &[u8]) {
    digest.update(u64::try_from(part.len()).unwrap_or(u64::MAX).to_be_bytes());
    digest.update(part);
}
