//! Certificates of clients: who verifies them, and what they say.

use std::net::IpAddr;
use std::path::Path;
use std::sync::Arc;

use http::HeaderValue;
use rustls::RootCertStore;
use rustls::crypto::aws_lc_rs::default_provider;
use rustls::pki_types::{CertificateDer, CertificateRevocationListDer};
use rustls::server::danger::ClientCertVerifier;
use rustls::server::{NoClientAuth, WebPkiClientVerifier};
use sha2::{Digest, Sha256};
use tollhouse_filters::context::{AlternativeName, ClientCertificate};
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::{CertificateRevocationList, FromDer, X509Certificate};

use super::distinguished::distinguished_name;
use super::tickets::Scope;
use super::{Remarks, certificate, files};
use crate::config::tls::{ClientAuth, ClientAuthMode};

/// Who verifies clients, and a hash of everything that it goes by.
pub(super) fn verifier(
    written: &ClientAuth,
    base: &Path,
    remarks: &mut Remarks,
) -> (Arc<dyn ClientCertVerifier>, Scope) {
    let mut scope = Sha256::new();
    scope.update([1, u8::from(written.mode == ClientAuthMode::Require)]);
    let built = authorities(written, base, &mut scope).map_err(|message| ("ca", message)).and_then(|roots| {
        let lists = lists(written, base, &mut scope, remarks).map_err(|message| ("crl", message))?;
        build(written, roots, lists).map_err(|message| ("crl", message))
    });
    let verifier = built.unwrap_or_else(|(key, message)| {
        remarks.fault(format!("tls.client_auth.{key}"), message);
        Arc::new(NoClientAuth)
    });
    (verifier, scope.finalize().into())
}

fn build(
    written: &ClientAuth,
    roots: RootCertStore,
    lists: Vec<CertificateRevocationListDer<'static>>,
) -> Result<Arc<dyn ClientCertVerifier>, String> {
    let provider = Arc::new(default_provider());
    let mut builder = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider).with_crls(lists);
    if written.mode == ClientAuthMode::Optional {
        builder = builder.allow_unauthenticated();
    }
    builder.build().map_err(|error| {
        let file = written.crl.as_deref().unwrap_or(&written.ca);
        format!("{} is not usable: {error}", file.display())
    })
}

fn authorities(written: &ClientAuth, base: &Path, scope: &mut Sha256) -> Result<RootCertStore, String> {
    let mut roots = RootCertStore::empty();
    for certificate in files::certificates(base, &written.ca)? {
        mix(scope, &certificate);
        roots
            .add(certificate)
            .map_err(|error| format!("{} holds an unusable authority: {error}", written.ca.display()))?;
    }
    Ok(roots)
}

fn lists(
    written: &ClientAuth,
    base: &Path,
    scope: &mut Sha256,
    remarks: &mut Remarks,
) -> Result<Vec<CertificateRevocationListDer<'static>>, String> {
    let Some(file) = &written.crl else { return Ok(Vec::new()) };
    let lists = files::revocation_lists(base, file)?;
    scope.update(b"crl");
    for list in &lists {
        mix(scope, list);
        let (_, parsed) = CertificateRevocationList::from_der(list)
            .map_err(|_| format!("{} holds an invalid revocation list", file.display()))?;
        // It says who was revoked until then, which is worth more than letting nobody in.
        if parsed.next_update().is_some_and(|next| next.timestamp() < certificate::now()) {
            remarks.warn("tls.client_auth.crl", format!("{} is out of date", file.display()));
        }
    }
    Ok(lists)
}

/// What a verified certificate says of its client; none if it cannot be read.
#[must_use]
pub fn facts(der: &CertificateDer<'_>) -> Option<ClientCertificate> {
    let (_, certificate) = X509Certificate::from_der(der).ok()?;
    let names = certificate.subject_alternative_name().ok().flatten();
    let names = names.into_iter().flat_map(|names| &names.value.general_names).filter_map(alternative_name);
    Some(ClientCertificate {
        subject: distinguished_name(certificate.subject()).into(),
        issuer: distinguished_name(certificate.issuer()).into(),
        serial: certificate.raw_serial().iter().map(|byte| format!("{byte:02x}")).collect::<String>().into(),
        names: names.collect(),
        fingerprint: Sha256::digest(der).into(),
        not_after: certificate.validity().not_after.timestamp(),
    })
}

/// What `X-Forwarded-Client-Cert` says of a client, as Envoy writes it: the fingerprint, the subject, URIs and host
/// names. A value that could be taken for more than one is in quotes; what is not printable ASCII is `%HH`.
#[must_use]
pub fn forwarded(certificate: &ClientCertificate) -> HeaderValue {
    let mut said = format!("Hash={};Subject={}", certificate.fingerprint_hex(), quoted(&certificate.subject));
    for name in &certificate.names {
        let (key, value) = match name {
            AlternativeName::Uri(uri) => ("URI", uri),
            AlternativeName::Dns(host) => ("DNS", host),
            AlternativeName::Email(_) | AlternativeName::Ip(_) => continue,
        };
        let plain = !value.contains([',', ';', '=', '"', '\\']);
        let value = if plain { printable(value) } else { quoted(value) };
        said.extend([";", key, "=", &value]);
    }
    HeaderValue::try_from(said).expect("printable ASCII")
}

fn quoted(text: &str) -> String {
    format!("\"{}\"", printable(text).replace('\\', "\\\\").replace('"', "\\\""))
}

fn printable(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for byte in text.bytes() {
        match byte {
            b' '..=b'~' if byte != b'%' => out.push(char::from(byte)),
            _ => out.push_str(&format!("%{byte:02X}")),
        }
    }
    out
}

/// Names with control characters are left out: a NUL could end them early for who compares them.
fn alternative_name(name: &GeneralName<'_>) -> Option<AlternativeName> {
    let tame = |text: &str| (!text.chars().any(char::is_control)).then(|| Box::from(text));
    Some(match name {
        GeneralName::DNSName(name) => AlternativeName::Dns(tame(name)?),
        GeneralName::URI(uri) => AlternativeName::Uri(tame(uri)?),
        GeneralName::RFC822Name(mailbox) => AlternativeName::Email(tame(mailbox)?),
        GeneralName::IPAddress(bytes) => AlternativeName::Ip(address(bytes)?),
        _ => return None,
    })
}

fn address(bytes: &[u8]) -> Option<IpAddr> {
    let v4 = <[u8; 4]>::try_from(bytes).map(IpAddr::from);
    v4.or_else(|_| <[u8; 16]>::try_from(bytes).map(IpAddr::from)).ok()
}

/// Hashes a part with its length, so that no two lists of parts hash alike.
fn mix(scope: &mut Sha256, part: &[u8]) {
    scope.update(u64::try_from(part.len()).unwrap_or(u64::MAX).to_be_bytes());
    scope.update(part);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_upstreams_are_told_has_one_reading_whatever_names_a_certificate_has() {
        let certificate = ClientCertificate {
            subject: "O=A \"B\", CN=m\u{fc}ller\\".into(),
            issuer: "CN=ca".into(),
            serial: "07".into(),
            names: Box::new([
                AlternativeName::Uri("spiffe://a/b;URI=spiffe://root".into()),
                AlternativeName::Dns("a.test".into()),
                AlternativeName::Email("a@a.test".into()),
            ]),
            fingerprint: [0xab; 32],
            not_after: 0,
        };
        let said = forwarded(&certificate);
        let hash = "ab".repeat(32);
        let expected = format!(
            "Hash={hash};Subject=\"O=A \\\"B\\\", CN=m%C3%BCller\\\\\";\
             URI=\"spiffe://a/b;URI=spiffe://root\";DNS=a.test"
        );
        assert_eq!(said, expected);
    }
}
