//! `listeners[].tls`: certificates, and what is asked of clients.

use std::fmt;
use std::path::PathBuf;

use schemars::JsonSchema;
use serde::Deserialize;
use tollhouse_filters::host::HostPattern;
use tollhouse_filters::scalar;
use tollhouse_filters::values::Scalar;

/// TLS with clients.
#[derive(Debug, Clone, PartialEq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ListenerTls {
    /// The oldest version spoken. Default: `1.2`. Example: `"1.3"`.
    #[serde(default)]
    pub min_version: TlsVersion,
    /// Certificates, chosen by the host that the client names (SNI); the first one is for clients that name none, or
    /// one that no certificate is for. Required. Example: `[{cert: certs/api.pem, key: certs/api.key}]`.
    pub certificates: Vec<Certificate>,
    /// Whether clients show certificates. Default: none, they are not asked. Example: `{mode: require, ca: certs/clients.pem}`.
    #[serde(default)]
    pub client_auth: Option<ClientAuth>,
}

/// A version of TLS.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum TlsVersion {
    /// RFC 5246, with the cipher suites that are still good.
    #[default]
    V12,
    /// RFC 8446.
    V13,
}

impl fmt::Display for TlsVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::V12 => "1.2",
            Self::V13 => "1.3",
        })
    }
}

impl Scalar for TlsVersion {
    const EXPECTED: &'static str = "`\"1.2\"` or `\"1.3\"`, in quotes";
    const PATTERN: Option<&'static str> = Some("^1\\.[23]$");
    const EXAMPLE: &'static str = "1.3";

    fn read(text: &str) -> Option<Self> {
        [Self::V12, Self::V13].into_iter().find(|version| version.to_string() == text)
    }
}

scalar!(TlsVersion);

/// A certificate with its key.
#[derive(Debug, Clone, PartialEq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Certificate {
    /// Hosts it is for; `*.` stands for one or more labels. Several certificates may be for one host if their keys are
    /// of different types. Default: the DNS names in the certificate. Example: `[api.example.com]`.
    #[serde(default)]
    pub hosts: Vec<HostPattern>,
    /// PEM file of the certificate, followed by its chain. Required. Example: `certs/api.pem`.
    pub cert: PathBuf,
    /// PEM file of its key, not encrypted. Required. Example: `certs/api.key`.
    pub key: PathBuf,
    /// File of the OCSP response (DER) that is sent with it while it is good. Default: none. Example: `certs/api.ocsp`.
    #[serde(default)]
    pub ocsp: Option<PathBuf>,
}

/// Certificates of clients.
#[derive(Debug, Clone, PartialEq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ClientAuth {
    /// Whether a client without a certificate is served. Required. Example: `require`.
    pub mode: ClientAuthMode,
    /// PEM file of the authorities that clients' certificates are verified with. Required. Example: `certs/clients.pem`.
    pub ca: PathBuf,
    /// File of revocation lists (PEM, or one in DER); there must be one of each authority in a client's chain. Default: none, nothing is revoked. Example: `certs/clients.crl`.
    #[serde(default)]
    pub crl: Option<PathBuf>,
    /// Tells upstreams who the client is, in `X-Forwarded-Client-Cert` as Envoy writes it. Default: `false`. Example: `true`.
    #[serde(default)]
    pub forward: bool,
}

/// Whether a client without a certificate is served.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum ClientAuthMode {
    /// No: the handshake fails.
    Require,
    /// Yes, and filters may tell the difference; a certificate that is shown must be valid all the same.
    Optional,
}

impl ListenerTls {
    /// Every file that it names.
    pub fn files(&self) -> impl Iterator<Item = &PathBuf> {
        let certificates = self.certificates.iter();
        let own = certificates.flat_map(|one| [Some(&one.cert), Some(&one.key), one.ocsp.as_ref()]);
        let clients = self.client_auth.iter().flat_map(|auth| [Some(&auth.ca), auth.crl.as_ref()]);
        own.chain(clients).flatten()
    }
}
