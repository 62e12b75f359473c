//! Which certificate a client is shown: by the host it names and the signatures it can verify.

use std::collections::HashMap;
use std::sync::Arc;

use rustls::SignatureAlgorithm;
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use tollhouse_filters::host::HostPattern;

use super::Remarks;
use super::certificate::Certificate;

/// Certificates by host.
#[derive(Debug)]
pub(super) struct Resolver {
    exact: HashMap<Box<str>, Choice>,
    /// By what follows `*.`.
    wildcard: HashMap<Box<str>, Choice>,
    default: Choice,
}

/// The certificates for one host, of different types of keys, the preferred one first.
type Choice = Vec<Arc<CertifiedKey>>;

impl Resolver {
    /// Sorts certificates by host; none when there are none, or two for the same.
    pub(super) fn new(certificates: &[Certificate], remarks: &mut Remarks) -> Option<Self> {
        let first = certificates.first()?;
        let mut by_host: HashMap<&HostPattern, Vec<&Certificate>> = HashMap::new();
        let before = remarks.faults.len();
        for certificate in certificates {
            if certificate.hosts.is_empty() && certificate.at > 0 {
                let message = "the certificate has no host names; say which hosts it is for with `hosts`";
                remarks.fault(format!("tls.certificates[{}]", certificate.at), message);
            }
            for (at, host) in certificate.hosts.iter().enumerate() {
                let known = by_host.entry(host).or_default();
                match known.iter().find(|known| known.algorithm == certificate.algorithm) {
                    Some(known) if known.at == certificate.at => {}
                    Some(known) => remarks.fault(overlap_place(certificate, at), overlap(known, host)),
                    None => known.push(certificate),
                }
            }
        }
        if remarks.faults.len() > before {
            return None;
        }
        let (mut exact, mut wildcard) = (HashMap::new(), HashMap::new());
        for (host, certificates) in &by_host {
            match host {
                HostPattern::Exact(name) => exact.insert(name.clone(), choice(certificates)),
                HostPattern::Wildcard(suffix) => wildcard.insert(suffix.clone(), choice(certificates)),
            };
        }
        let default = first.hosts.first().and_then(|host| by_host.get(host));
        let default = default.map_or_else(|| vec![first.key.clone()], |certificates| choice(certificates));
        Some(Self { exact, wildcard, default })
    }

    fn choice(&self, host: &str) -> &Choice {
        let host = host.strip_suffix('.').unwrap_or(host);
        let suffixes = std::iter::successors(host.split_once('.'), |(_, suffix)| suffix.split_once('.'));
        let wildcard = || suffixes.map(|(_, suffix)| suffix).find_map(|suffix| self.wildcard.get(suffix));
        self.exact.get(host).or_else(wildcard).unwrap_or(&self.default)
    }
}

impl ResolvesServerCert for Resolver {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let choice = hello.server_name().map_or(&self.default, |host| self.choice(host));
        let schemes = hello.signature_schemes();
        let usable = choice.iter().find(|key| key.key.choose_scheme(schemes).is_some());
        usable.or(choice.first()).cloned()
    }
}

/// ECDSA first: its signatures cost a fraction of RSA's.
fn choice(certificates: &[&Certificate]) -> Choice {
    let mut sorted = certificates.to_vec();
    sorted.sort_by_key(|certificate| match certificate.algorithm {
        SignatureAlgorithm::ECDSA => 0,
        SignatureAlgorithm::ED25519 => 1,
        _ => 2,
    });
    sorted.into_iter().map(|certificate| certificate.key.clone()).collect()
}

fn overlap(known: &Certificate, host: &HostPattern) -> String {
    format!("`{host}` has a certificate with a key of this type already: certificates[{}]", known.at)
}

/// Hosts that are not written have no place of their own.
fn overlap_place(certificate: &Certificate, at: usize) -> String {
    format!("tls.certificates[{}].hosts[{at}]", certificate.at)
}
