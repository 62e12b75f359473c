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

type Certificates = Vec<CertificateDer<'static>>;
/// A chain and the key of its first certificate.
type Identity = (Certificates, PrivateKeyDer<'static>);

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
        check_sni(tls, problems);
        let ca = tls
            .ca
            .as_deref()
            .and_then(|file| load_ca(base, file).map_err(|message| problems.add("tls.ca", message)).ok());
        let client = load_client(tls, base, problems);
        (problems.len() == before).then(|| Self::of(tls.verify, tls.sni.clone(), ca, client))
    }

    /// Settings whose parts were read and checked one by one.
    fn of(verify: bool, sni: Option<String>, ca: Option<Certificates>, client: Option<Identity>) -> Self {
        let mut digest = Sha256::new();
        digest.update([u8::from(verify)]);
        mix(&mut digest, sni.as_deref().unwrap_or_default().as_bytes());
        if let Some(ca) = &ca {
            digest.update(b"ca");
            ca.iter().for_each(|certificate| mix(&mut digest, certificate));
        }
        let ca = ca.map(|ca| ca.iter().map(wrapped).collect::<Vec<_>>().into());
        let client = client.map(|(chain, key)| {
            digest.update(b"client");
            chain.iter().for_each(|certificate| mix(&mut digest, certificate));
            mix(&mut digest, key.secret_der());
            let chain = chain.iter().map(|certificate| certificate.to_vec()).collect();
            Arc::new(CertKey::new(chain, key.secret_der().to_vec()))
        });
        Self { verify, sni, ca, client, digest: digest.finalize().into() }
    }

    /// Settings from what is in memory: the name to verify, unless nothing is, and PEM of authorities and of what is
    /// shown to the server.
    ///
    /// # Errors
    /// What is wrong.
    pub(super) fn from_pem(
        sni: &str,
        verify: bool,
        ca: Option<&[u8]>,
        client: Option<(&[u8], &[u8])>,
    ) -> Result<Self, String> {
        if ServerName::try_from(sni).is_err() {
            return Err(format!("`{sni}` is neither a host name nor an IP address"));
        }
        let name = "the certificate authority";
        let ca = ca.map(|pem| authorities(parsable(files::certificates_in(pem, name)?, name)?, name));
        let client = client.map(|(chain, key)| {
            let name = "the client certificate";
            let chain = parsable(files::certificates_in(chain, name)?, name)?;
            let key = files::private_key_in(key, "the client key")?;
            check_pair(&chain, &key)?;
            Ok::<_, String>((chain, key))
        });
        Ok(Self::of(verify, Some(sni.to_owned()), ca.transpose()?, client.transpose()?))
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

fn load_ca(base: &Path, file: &Path) -> Result<Certificates, String> {
    authorities(certificates(base, file)?, &file.display().to_string())
}

/// Those, if all of them can be authorities.
fn authorities(certificates: Certificates, name: &str) -> Result<Certificates, String> {
    let mut store = RootCertStore::empty();
    for certificate in &certificates {
        store
            .add(certificate.clone())
            .map_err(|error| format!("{name} holds an unusable authority: {error}"))?;
    }
    Ok(certificates)
}

fn load_client(tls: &Tls, base: &Path, problems: &mut Problems) -> Option<Identity> {
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
    Some((chain, key))
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
fn certificates(base: &Path, file: &Path) -> Result<Certificates, String> {
    parsable(files::certificates(base, file)?, &file.display().to_string())
}

/// Those, if all of them can be parsed: Pingora panics on a certificate that its parser refuses.
fn parsable(found: Certificates, name: &str) -> Result<Certificates, String> {
    if found.iter().any(|certificate| x509_parser::parse_x509_certificate(certificate).is_err()) {
        return Err(format!("{name} holds an invalid certificate"));
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
