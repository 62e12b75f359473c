//! `listeners`: addresses that requests come in through.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tollhouse_filters::spec::Item;

use super::{Address, ListenerTls, Name};

/// An address that requests come in through.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Listener {
    /// Its name.
    pub name: Name,
    /// `ADDRESS:PORT`, `[ADDRESS]:PORT` or `unix:/path`.
    pub address: Address,
    /// What may be spoken here. Default: `[h2, http/1.1]` with `tls`, else `[http/1.1, h2c]`. Example: `[http/1.1]`.
    #[serde(default)]
    pub protocols: Option<Vec<Protocol>>,
    /// Present means TLS with clients. Default: none, plain text. Example: `{certificates: [{cert: api.pem, key: api.key}]}`.
    #[serde(default)]
    pub tls: Option<ListenerTls>,
    /// Each connection begins with the PROXY protocol (version 1 or 2) and is closed if it does not, or
    /// does not come from one of `server.trusted_proxies`. Changes need an upgrade.
    #[serde(default)]
    pub accept_proxy_protocol: bool,
    /// Filters for every request on this listener; they run first.
    #[serde(default)]
    pub filters: Vec<Item>,
}

impl Listener {
    /// What may be spoken here: as written, else the default.
    #[must_use]
    pub fn protocols(&self) -> &[Protocol] {
        match (&self.protocols, &self.tls) {
            (Some(written), _) => written,
            (None, Some(_)) => &[Protocol::H2, Protocol::Http1],
            (None, None) => &[Protocol::Http1, Protocol::H2c],
        }
    }
}

/// A protocol spoken by clients.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum Protocol {
    /// HTTP/1.1 and HTTP/1.0.
    #[serde(rename = "http/1.1")]
    Http1,
    /// HTTP/2 over TLS; needs `tls`.
    #[serde(rename = "h2")]
    H2,
    /// HTTP/2 without TLS, with prior knowledge.
    #[serde(rename = "h2c")]
    H2c,
}
