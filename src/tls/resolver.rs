//! Which certificate a client is shown: by the host it names and the signatures it can verify.

use std::collections::HashMap;
use std::sync::Arc;

use rustls::SignatureAlgorithm;
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use tollhouse_filters::host::HostPattern;

use super::Remarks;
use super::certificate::{Certificate, now};
use super::ocsp::Shown;

/// Certificates by host.
#[derive(Debug)]
pub(super) struct Resolver {
    exact: HashMap<Box<str>, Choice>,
    /// By what follows `*.`.
    wildcard: HashMap<Box<str>, Choice>,
    default: Choice,
}

/// The certificates for one host, of different types of keys, the preferred one first.
type Choice = Vec<Arc<Shown>>;

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
        let usable = choice.iter().find(|shown| shown.plain().key.choose_scheme(schemes).is_some());
        usable.or(choice.first()).map(|shown| shown.at(now).clone())
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

#[cfg(test)]
mod tests {
    use std::sync::LazyLock;

    use proptest::prelude::*;
    use rustls::crypto::aws_lc_rs::sign::any_supported_type;
    use rustls::pki_types::PrivateKeyDer;

    use super::super::Term;
    use super::*;

    /// A key for all; which certificate it is in is told by the address.
    static KEY: LazyLock<Vec<u8>> = LazyLock::new(|| rcgen::KeyPair::generate().unwrap().serialize_der());

    fn certificate(at: usize, host: HostPattern) -> Certificate {
        let key = PrivateKeyDer::try_from(&KEY[..]).unwrap();
        let key = CertifiedKey::new(Vec::new(), any_supported_type(&key).unwrap());
        let key = Arc::new(Shown::new(key, None));
        let term = Term { hosts: Vec::new(), not_before: 0, not_after: 0, stapled_until: None };
        Certificate { at, key, algorithm: SignatureAlgorithm::ECDSA, hosts: vec![host], term }
    }

    proptest! {
        #[test]
        fn a_name_gets_its_own_certificate_or_the_closest_wildcard_or_the_first(
            patterns in proptest::collection::btree_set("(\\*\\.)?[ab](\\.[ab]){0,2}", 1..6),
            name in "[ab](\\.[ab]){0,4}\\.?",
        ) {
            let hosts = patterns.iter().map(|pattern| HostPattern::parse(pattern).unwrap());
            let certificates: Vec<_> = hosts.enumerate().map(|(at, host)| certificate(at, host)).collect();
            let resolver = Resolver::new(&certificates, &mut Remarks::default()).unwrap();
            let plain = name.trim_end_matches('.');
            let fits = certificates.iter().filter(|certificate| certificate.hosts[0].matches(plain));
            let rank = |certificate: &&Certificate| match &certificate.hosts[0] {
                HostPattern::Exact(_) => usize::MAX,
                HostPattern::Wildcard(suffix) => suffix.len(),
            };
            let expected = fits.max_by_key(rank).unwrap_or(&certificates[0]);
            let [chosen] = &resolver.choice(&name)[..] else { panic!("one for each host") };
            prop_assert!(Arc::ptr_eq(chosen, &expected.key));
        }

        #[test]
        fn no_name_is_too_odd(name in any::<String>()) {
            let host = HostPattern::parse("*.a.test").unwrap();
            let resolver = Resolver::new(&[certificate(0, host)], &mut Remarks::default()).unwrap();
            prop_assert_eq!(resolver.choice(&name).len(), 1);
        }
    }
}
