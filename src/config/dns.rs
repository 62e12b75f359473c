//! `server.dns`: how names of backends are looked up.

use std::fmt;
use std::net::{IpAddr, SocketAddr};

use schemars::JsonSchema;
use serde::Deserialize;
use tollhouse_filters::values::{Duration, Scalar};

/// How names of backends are looked up. `/etc/hosts` comes first in any case.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Dns {
    /// Name servers to ask instead of those of `/etc/resolv.conf`, whose search list then holds no more. Default: `[]`. Example: `[10.0.0.2, "10.0.0.3:5353"]`.
    pub servers: Vec<NameServer>,
    /// A name is not looked up again sooner, even if its TTL says so; at least `100ms`. Default: `1s`. Example: `5s`.
    pub min_ttl: Duration,
    /// A name is looked up again after this, even if its TTL is longer. Default: `5m`. Example: `1h`.
    pub max_ttl: Duration,
}

impl Default for Dns {
    fn default() -> Self {
        Self { servers: Vec::new(), min_ttl: Duration::from_secs(1), max_ttl: Duration::from_secs(300) }
    }
}

/// The address of a name server; the port is 53 unless one is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct NameServer(SocketAddr);

impl NameServer {
    /// Where it is.
    pub const fn address(self) -> SocketAddr {
        self.0
    }
}

impl Scalar for NameServer {
    const EXPECTED: &'static str = "an IP address such as `10.0.0.2` or `10.0.0.2:5353`";
    const EXAMPLE: &'static str = "10.0.0.2";

    fn read(text: &str) -> Option<Self> {
        let address = match text.parse::<IpAddr>() {
            Ok(ip) => SocketAddr::new(ip, DEFAULT_PORT),
            Err(_) => text.parse().ok()?,
        };
        (address.port() != 0).then_some(Self(address))
    }
}

tollhouse_filters::scalar!(NameServer);

impl fmt::Display for NameServer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0.port() {
            DEFAULT_PORT => self.0.ip().fmt(f),
            _ => self.0.fmt(f),
        }
    }
}

const DEFAULT_PORT: u16 = 53;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_port_is_53_unless_written() {
        for (text, address) in [
            ("10.0.0.2", "10.0.0.2:53"),
            ("10.0.0.2:5353", "10.0.0.2:5353"),
            ("::1", "[::1]:53"),
            ("[::1]:5353", "[::1]:5353"),
        ] {
            let server: NameServer = text.parse().unwrap();
            assert_eq!(server.address().to_string(), address);
            assert_eq!(server.to_string(), text);
        }
    }

    #[test]
    fn names_and_port_zero_are_refused() {
        for text in ["", "dns.internal", "10.0.0.2:0", "10.0.0", "[::1]", "udp:10.0.0.2"] {
            assert!(text.parse::<NameServer>().is_err(), "{text}");
        }
    }
}
