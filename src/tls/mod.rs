//! TLS on listeners: certificates by host, certificates of clients, tickets. Everything that a
//! handshake needs is read and checked here, and never changes afterwards; a reload makes it anew.

mod certificate;
mod client;
mod distinguished;
pub(crate) mod files;
mod ocsp;
mod resolver;
#[cfg(test)]
mod tests;
mod tickets;

use std::path::Path;
use std::sync::Arc;

use rustls::crypto::aws_lc_rs::default_provider;
use rustls::server::ClientHello;
use rustls::server::danger::ClientCertVerifier;
use rustls::server::{NoClientAuth, NoServerSessionStorage};
use rustls::version::{TLS12, TLS13};
use rustls::{CipherSuite, ServerConfig};

use self::certificate::Certificate;
use self::resolver::Resolver;
use self::tickets::Tickets;
use crate::config::tls::{ClientAuth, TlsVersion};
use crate::config::{ListenerTls, Protocol};

pub use self::client::{facts as client_certificate, forwarded as forwarded_certificate};
pub use self::tickets::TicketKeys;

/// The protocol names of ALPN (RFC 7301 s6, RFC 9113 s3.1).
pub const H2: &str = "h2";
/// HTTP/1.1, as ALPN names it.
pub const HTTP_1: &str = "http/1.1";

/// Suites with AES of 128 bits, and with SHA-256.
const AES_128: [CipherSuite; 3] = [
    CipherSuite::TLS13_AES_128_GCM_SHA256,
    CipherSuite::TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256,
    CipherSuite::TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256,
];
const CHACHA20: [CipherSuite; 3] = [
    CipherSuite::TLS13_CHACHA20_POLY1305_SHA256,
    CipherSuite::TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256,
    CipherSuite::TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256,
];

/// Days before its end from which a certificate is warned about.
const WARN_DAYS: i64 = 14;
const DAY: i64 = 86_400;

/// What the handshakes of one listener need.
pub struct ServerTls {
    config: Arc<ServerConfig>,
    /// The same, for clients that know better which cipher suite is cheap for them.
    by_client: Arc<ServerConfig>,
    tickets: Tickets,
    certificates: Vec<Term>,
    client_auth: Option<ClientAuth>,
    speaks_http1: bool,
}

/// How long a certificate is good, and for which hosts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Term {
    /// Its hosts, in the order of the document or the certificate; empty for one that is only the default.
    pub hosts: Vec<Box<str>>,
    /// When it begins, in Unix seconds.
    pub not_before: i64,
    /// When it ends, in Unix seconds.
    pub not_after: i64,
    /// When its OCSP response ends, in Unix seconds, if there is one that says so.
    pub stapled_until: Option<i64>,
}

/// What is wrong or suspicious: paths below the listener, and messages.
#[derive(Debug, Default)]
pub struct Remarks {
    /// What is wrong.
    pub faults: Vec<(String, String)>,
    /// What is suspicious but not wrong.
    pub warnings: Vec<(String, String)>,
}

impl Remarks {
    fn fault(&mut self, path: impl Into<String>, message: impl Into<String>) {
        self.faults.push((path.into(), message.into()));
    }

    fn warn(&mut self, path: impl Into<String>, message: impl Into<String>) {
        self.warnings.push((path.into(), message.into()));
    }
}

impl ServerTls {
    /// Reads the files that `written` names, relative to `base`, and checks all that handshakes rely on.
    ///
    /// `previous` is what the listener had before: its tickets stay good unless other clients are to be
    /// let in now. None when something is wrong; `remarks` says what.
    #[must_use]
    pub fn build(
        written: &ListenerTls,
        protocols: &[Protocol],
        base: &Path,
        previous: Option<&Self>,
        remarks: &mut Remarks,
    ) -> Option<Self> {
        let before = remarks.faults.len();
        let certificates = certificates(written, base, remarks);
        let clients = written.client_auth.as_ref().map(|auth| client::verifier(auth, base, remarks));
        let resolver = Resolver::new(&certificates, remarks);
        let tickets = clients.as_ref().map_or(tickets::ANYONE, |clients| clients.1);
        let tickets = Tickets::of(tickets, previous.map(|previous| &previous.tickets));
        if remarks.faults.len() > before {
            return None;
        }
        let verifier = clients.map_or_else(|| Arc::new(NoClientAuth) as _, |(verifier, _)| verifier);
        let config = config(written, protocols, verifier, resolver?, &tickets);
        let mut by_client = config.clone();
        by_client.ignore_client_order = false;
        Some(Self {
            by_client: Arc::new(by_client),
            config: Arc::new(config),
            tickets,
            certificates: certificates.into_iter().map(|certificate| certificate.term).collect(),
            client_auth: written.client_auth.clone(),
            speaks_http1: protocols.contains(&Protocol::Http1),
        })
    }

    /// What the handshake with this client goes by.
    ///
    /// The cheapest suite is taken, unless the client likes ChaCha20 best: then it has no AES in hardware.
    #[must_use]
    pub fn config(&self, client: &ClientHello<'_>) -> Arc<ServerConfig> {
        let ours = |suite: &&CipherSuite| {
            self.config.crypto_provider().cipher_suites.iter().any(|known| known.suite() == **suite)
        };
        match client.cipher_suites().iter().find(ours) {
            Some(best) if CHACHA20.contains(best) => self.by_client.clone(),
            _ => self.config.clone(),
        }
    }

    /// Its certificates, in the order of the document.
    #[must_use]
    pub fn certificates(&self) -> &[Term] {
        &self.certificates
    }

    /// The keys of its tickets, for the process after this one.
    #[must_use]
    pub fn ticket_keys(&self) -> TicketKeys {
        self.tickets.export()
    }

    /// Reads the tickets of the process before this one too, if that asked clients for the same.
    pub fn resume(&self, keys: TicketKeys) {
        self.tickets.import(keys);
    }

    /// Whether clients are asked for certificates.
    #[must_use]
    pub fn verifies_clients(&self) -> bool {
        self.client_auth.is_some()
    }

    /// Whether upstreams are told of clients' certificates.
    #[must_use]
    pub fn forwards_clients(&self) -> bool {
        self.client_auth.as_ref().is_some_and(|auth| auth.forward)
    }

    /// Whether clients are asked for what the other asks them for, as it is written.
    #[must_use]
    pub fn asks_as(&self, other: &Self) -> bool {
        self.client_auth == other.client_auth
    }

    /// Whether a client that negotiates no protocol may be served.
    #[must_use]
    pub fn speaks_http1(&self) -> bool {
        self.speaks_http1
    }
}

impl Term {
    /// What there is to say about its dates at this time, in Unix seconds.
    #[must_use]
    pub fn warning(&self, now: i64) -> Option<String> {
        let left = self.not_after - now;
        if now < self.not_before {
            return Some(format!(
                "the certificate is not valid before {}",
                certificate::date(self.not_before)
            ));
        }
        let end = certificate::date(self.not_after);
        match left {
            ..0 => Some(format!("the certificate expired on {end}")),
            _ if left < WARN_DAYS * DAY => {
                Some(format!("the certificate expires in {} days, on {end}", left / DAY))
            }
            _ => None,
        }
    }

    /// What there is to say about its OCSP response at this time, in Unix seconds.
    #[must_use]
    pub fn stapling_warning(&self, now: i64) -> Option<String> {
        let end = self.stapled_until.filter(|end| *end < now)?;
        Some(format!("the OCSP response is not sent, as it ended on {}", certificate::date(end)))
    }
}

impl std::fmt::Debug for ServerTls {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ServerTls").field("certificates", &self.certificates).finish_non_exhaustive()
    }
}

fn certificates(written: &ListenerTls, base: &Path, remarks: &mut Remarks) -> Vec<Certificate> {
    if written.certificates.is_empty() {
        remarks.fault("tls.certificates", "at least one certificate is needed");
    }
    let all = written.certificates.iter().enumerate();
    all.filter_map(|(at, one)| Certificate::load(one, at, base, remarks)).collect()
}

fn config(
    written: &ListenerTls,
    protocols: &[Protocol],
    verifier: Arc<dyn ClientCertVerifier>,
    resolver: Resolver,
    tickets: &Tickets,
) -> ServerConfig {
    let versions = match written.min_version {
        TlsVersion::V12 => &[&TLS13, &TLS12][..],
        TlsVersion::V13 => &[&TLS13],
    };
    let mut provider = default_provider();
    // As safe as the longer key, and a handshake with SHA-384 costs a tenth more.
    provider.cipher_suites.sort_by_key(|suite| !AES_128.contains(&suite.suite()));
    let mut config = ServerConfig::builder_with_provider(Arc::new(provider))
        .with_protocol_versions(versions)
        .expect("the provider has suites for both versions")
        .with_client_cert_verifier(verifier)
        .with_cert_resolver(Arc::new(resolver));
    config.alpn_protocols = protocols.iter().filter_map(|protocol| alpn(*protocol)).map(Vec::from).collect();
    config.ignore_client_order = true;
    config.ticketer = tickets.producer();
    // What a client needs to resume is in its ticket: nothing is kept here for each of them.
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config
}

fn alpn(protocol: Protocol) -> Option<&'static str> {
    match protocol {
        Protocol::H2 => Some(H2),
        Protocol::Http1 => Some(HTTP_1),
        Protocol::H2c => None,
    }
}
