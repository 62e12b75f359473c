//! A certificate of ours with its key: that they belong together, for which hosts, how long.

use std::path::Path;
use std::sync::Arc;
use std::time::SystemTime;

use rustls::SignatureAlgorithm;
use rustls::client::verify_server_name;
use rustls::crypto::aws_lc_rs::sign::any_supported_type;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::server::ParsedCertificate;
use rustls::sign::CertifiedKey;
use rustls::{Error, InconsistentKeys};
use tollhouse_filters::host::HostPattern;
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::{ASN1Time, FromDer, X509Certificate};

use super::ocsp::Shown;
use super::{Remarks, Term, files};
use crate::config::tls as written;

/// A certificate of ours with its key.
pub(super) struct Certificate {
    /// Its place in the document.
    pub(super) at: usize,
    pub(super) key: Arc<Shown>,
    pub(super) algorithm: SignatureAlgorithm,
    pub(super) hosts: Vec<HostPattern>,
    pub(super) term: Term,
}

impl Certificate {
    /// Reads and checks it; what is wrong is in the remarks.
    pub(super) fn load(
        written: &written::Certificate,
        at: usize,
        base: &Path,
        remarks: &mut Remarks,
    ) -> Option<Self> {
        let place = |key: &str| format!("tls.certificates[{at}].{key}");
        let before = remarks.faults.len();
        let key = certified(written, base, remarks, place);
        let response = written.ocsp.as_deref().map(|file| files::ocsp(base, file)).transpose();
        let response = response.map_err(|message| remarks.fault(place("ocsp"), message)).ok().flatten();
        let key = key.filter(|_| remarks.faults.len() == before)?;
        let Some((names, [not_before, not_after])) = names_and_dates(&key.cert[0]) else {
            remarks.fault(place("cert"), format!("{} is not a usable certificate", written.cert.display()));
            return None;
        };
        let hosts = if written.hosts.is_empty() { names } else { written.hosts.clone() };
        check_hosts(&key.cert[0], &hosts, &place("hosts"), remarks);
        let shown = hosts.iter().map(|host| host.to_string().into()).collect();
        let (algorithm, key) = (key.key.algorithm(), Shown::new(key, response));
        let term = Term { hosts: shown, not_before, not_after, stapled_until: key.ends() };
        if let Some(warning) = term.warning(now()) {
            remarks.warn(place("cert"), warning);
        }
        if let Some(warning) = term.stapling_warning(now()) {
            remarks.warn(place("ocsp"), warning);
        }
        Some(Self { at, algorithm, key: Arc::new(key), hosts, term })
    }
}

/// The time, in Unix seconds.
pub(super) fn now() -> i64 {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_secs()).unwrap_or(i64::MAX)
}

/// A time as certificates are talked about.
pub(super) fn date(seconds: i64) -> String {
    let date = ASN1Time::from_timestamp(seconds).ok().and_then(|time| time.to_rfc2822().ok());
    date.unwrap_or_else(|| format!("second {seconds}"))
}

fn certified(
    written: &written::Certificate,
    base: &Path,
    remarks: &mut Remarks,
    place: impl Fn(&str) -> String,
) -> Option<CertifiedKey> {
    let chain =
        files::certificates(base, &written.cert).map_err(|message| remarks.fault(place("cert"), message));
    let key = files::private_key(base, &written.key).map_err(|message| remarks.fault(place("key"), message));
    let (chain, key) = (chain.ok()?, key.ok()?);
    let Ok(signer) = any_supported_type(&key) else {
        let message =
            format!("{} holds a key of no supported type: RSA, ECDSA or Ed25519", written.key.display());
        remarks.fault(place("key"), message);
        return None;
    };
    let certified = CertifiedKey::new(chain, signer);
    match certified.keys_match() {
        Ok(()) | Err(Error::InconsistentKeys(InconsistentKeys::Unknown)) => Some(certified),
        Err(Error::InconsistentKeys(_)) => {
            remarks.fault(place("key"), "the key does not belong to the first certificate in `cert`");
            None
        }
        Err(_) => {
            let message = format!("{} is not a usable certificate", written.cert.display());
            remarks.fault(place("cert"), message);
            None
        }
    }
}

/// The host names in a certificate, and when it begins and ends.
fn names_and_dates(der: &CertificateDer<'_>) -> Option<(Vec<HostPattern>, [i64; 2])> {
    let (_, certificate) = X509Certificate::from_der(der).ok()?;
    let names = certificate.subject_alternative_name().ok().flatten();
    let names = names.into_iter().flat_map(|names| &names.value.general_names);
    let hosts = names.filter_map(|name| match name {
        // Some authorities put addresses there, which no client names.
        GeneralName::DNSName(name) => HostPattern::parse(name).ok().filter(|host| asked_for(host).is_some()),
        _ => None,
    });
    let validity = certificate.validity();
    Some((hosts.collect(), [validity.not_before.timestamp(), validity.not_after.timestamp()]))
}

/// A name that a client says which is to get what this host has; none if none can, as it is an address.
fn asked_for(host: &HostPattern) -> Option<ServerName<'static>> {
    let example = match host {
        HostPattern::Exact(name) => name.to_string(),
        HostPattern::Wildcard(suffix) => format!("a.{suffix}"),
    };
    ServerName::try_from(example).ok().filter(|name| matches!(name, ServerName::DnsName(_)))
}

fn check_hosts(der: &CertificateDer<'_>, hosts: &[HostPattern], place: &str, remarks: &mut Remarks) {
    let Ok(parsed) = ParsedCertificate::try_from(der) else { return };
    for (at, host) in hosts.iter().enumerate() {
        match asked_for(host) {
            None => {
                let message = format!("clients never name `{host}`, as it is no host name; leave it out");
                remarks.fault(format!("{place}[{at}]"), message);
            }
            Some(name) if verify_server_name(&parsed, &name).is_err() => {
                remarks.warn(format!("{place}[{at}]"), format!("the certificate is not for `{host}`"));
            }
            Some(_) => {}
        }
    }
}
