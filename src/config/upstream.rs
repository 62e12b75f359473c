//! An upstream as the user writes it: backends, how to reach them, and what to expect of them.

use std::fmt;
use std::net::IpAddr;
use std::path::PathBuf;

use http::uri::Authority;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tollhouse_filters::values::{Duration, FieldName, Scalar, Timeout};

use super::Name;
use super::balance::Balance;
use super::circuit_breaker::CircuitBreaker;
use super::concurrency::Concurrency;
use super::discovery::Discovery;
use super::health::Health;
use super::hedge::Hedge;
use super::retries::Retries;

/// A named group of backends that serve the same requests.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Upstream {
    /// What routes call it; unique among upstreams, and the label of its metrics. Required. Example: `users`.
    pub name: Name,
    /// The HTTP version spoken to the backends. Default: `http/1.1`. Example: `h2`.
    #[serde(default)]
    pub protocol: Protocol,
    /// Where requests go; at least one. Required without `discovery`. Example: `[{address: "127.0.0.1:9001"}]`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub backends: Vec<Backend>,
    /// Who tells where requests go, instead of `backends`. Default: none. Example: `{type: dns, name: users.internal, port: 8080}`.
    #[serde(default, skip_serializing)]
    pub discovery: Option<Discovery>,
    /// What the backend sees as `Host`: `preserve` what the client sent, `backend` for the backend's own address,
    /// or a fixed name. Default: `preserve`. Example: `users.internal`.
    #[serde(default)]
    pub host: HostHeader,
    /// Present means TLS to the backends. Default: none, plain text. Example: `{ca: certs/internal-ca.pem}`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tls: Option<Tls>,
    /// How one of the backends is chosen. Default: `{algorithm: round_robin}`. Example: `{algorithm: p2c}`.
    #[serde(default)]
    pub balance: Balance,
    /// How it is found out which backends work. Default: none, all are used. Example: `{active: {type: http, path: /healthz}}`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub health: Option<Health>,
    /// How long to wait for a backend. Default: `{connect: 2s, read: 60s, total: none}`. Example: `{read: 5m}`.
    #[serde(default)]
    pub timeouts: Timeouts,
    /// What is tried again, and how often. Default: `{max: 1, conditions: [connect, refused_stream, stale]}`. Example: `{max: 2, conditions: [connect, reset, 503]}`.
    #[serde(default)]
    pub retries: Retries,
    /// Another attempt at another backend while one keeps the client waiting. Default: none. Example: `{after: p95}`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hedge: Option<Hedge>,
    /// When the upstream as a whole is left alone for a while. Default: none. Example: `{error_ratio: 50%, min_requests: 20, window: 10s, open: 10s, half_open: 3}`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub circuit_breaker: Option<CircuitBreaker>,
    /// How many requests may be under way at the same time. Default: none, any number. Example: `{in_flight: 512, queue: 128, max_wait: 250ms}`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub concurrency: Option<Concurrency>,
    /// Connections kept for later requests. Default: `{idle: 1024, idle_timeout: 30s}`. Example: `{idle_timeout: 4s}`.
    #[serde(default)]
    pub pool: Pool,
}

/// The HTTP version spoken to backends.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
pub enum Protocol {
    /// HTTP/1.1, with or without TLS.
    #[default]
    #[serde(rename = "http/1.1")]
    Http1,
    /// HTTP/2 over TLS; needs `tls`.
    #[serde(rename = "h2")]
    H2,
    /// HTTP/2 without TLS, by prior knowledge; excludes `tls`.
    #[serde(rename = "h2c")]
    H2c,
    /// HTTP/2 or HTTP/1.1 as the backend prefers (ALPN); HTTP/1.1 without `tls`.
    #[serde(rename = "auto")]
    Auto,
}

/// One address of an upstream.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Backend {
    /// `host:port`; a host name is resolved off the request path. Required. Example: `127.0.0.1:9001`.
    pub address: Address,
    /// Share of the requests relative to the other backends, from 0 to 1000; 0 gets none. Default: `1`. Example: `3`.
    #[serde(default = "one")]
    #[schemars(range(max = 1000))]
    pub weight: u16,
    /// Its group: those of a lower number get requests first, and the next ones when those fail. Default: `0`. Example: `1`.
    #[serde(default)]
    pub priority: u8,
    /// Where it is, for `balance.zone`. Default: none. Example: `eu-west-1a`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub zone: Option<String>,
}

/// The host of an [`Address`].
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Host {
    /// An address that needs no resolving.
    Ip(IpAddr),
    /// A name, in lower case.
    Name(String),
}

/// `host:port`, where the host is a name, an IPv4 address or a bracketed IPv6 address.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Address {
    /// The host.
    pub host: Host,
    /// The port, never 0.
    pub port: u16,
}

/// What the backend sees as `Host`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub enum HostHeader {
    /// What the client sent, written `preserve`.
    #[default]
    Preserve,
    /// The backend's own address, written `backend`.
    Backend,
    /// A fixed name, with a port if one is written.
    Name(String),
}

/// TLS to the backends.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Tls {
    /// Whether the backend's certificate is verified: trust, dates and name. Default: `true`. Example: `true`.
    pub verify: bool,
    /// The name asked for and verified; required if a backend is an IP address. Default: the backend's host name. Example: `users.internal`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sni: Option<String>,
    /// PEM file of the only authorities trusted. Default: the system's. Example: `certs/internal-ca.pem`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ca: Option<PathBuf>,
    /// PEM file of the certificate (and its chain) shown to the backend; needs `client_key`. Default: none. Example: `certs/gateway.pem`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub client_cert: Option<PathBuf>,
    /// PEM file of the key of `client_cert`. Default: none. Example: `certs/gateway.key`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub client_key: Option<PathBuf>,
}

/// How long to wait for a backend.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Timeouts {
    /// For the connection, TLS included. Default: `2s`. Example: `500ms`.
    pub connect: Duration,
    /// Between two reads of the response, its first byte included, and for one write of the request. Default: `60s`. Example: `5m`.
    pub read: Timeout,
    /// For the whole exchange, retries included; upgrades and streams of events (`text/event-stream`) are exempt. Default: `none`. Example: `30s`.
    pub total: Timeout,
    /// The field that tells backends how many milliseconds are left of `total`, or of an attempt's `retries.per_try` where that is less. Default: none. Example: `x-time-left-ms`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub remaining_header: Option<FieldName>,
}

/// Connections kept for later requests.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Pool {
    /// Idle connections kept to each backend; 0 keeps none. Default: `1024`. Example: `64`.
    pub idle: u32,
    /// How long an idle connection is kept; should be shorter than the backend keeps it. Default: `30s`. Example: `4s`.
    pub idle_timeout: Duration,
}

impl Default for Tls {
    fn default() -> Self {
        Self { verify: true, sni: None, ca: None, client_cert: None, client_key: None }
    }
}

impl Default for Timeouts {
    fn default() -> Self {
        Self {
            connect: Duration::from_secs(2),
            read: Timeout::after(Duration::from_secs(60)),
            total: Timeout::NONE,
            remaining_header: None,
        }
    }
}

impl Default for Pool {
    fn default() -> Self {
        Self { idle: 1024, idle_timeout: Duration::from_secs(30) }
    }
}

impl Scalar for Address {
    const EXPECTED: &'static str =
        "an address with a port such as `127.0.0.1:9001`, `[::1]:9001` or `users.internal:9001`";
    const EXAMPLE: &'static str = "127.0.0.1:9001";

    fn read(text: &str) -> Option<Self> {
        let (host, port) = text.rsplit_once(':')?;
        if port.is_empty() || !port.bytes().all(|byte| byte.is_ascii_digit()) {
            return None;
        }
        let port = port.parse().ok().filter(|port| *port != 0)?;
        Some(Self { host: Host::read(host)?, port })
    }
}

tollhouse_filters::scalar!(Address);

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.host {
            Host::Ip(IpAddr::V6(ip)) => write!(f, "[{ip}]:{}", self.port),
            Host::Ip(ip) => write!(f, "{ip}:{}", self.port),
            Host::Name(name) => write!(f, "{}:{}", relative(name), self.port),
        }
    }
}

impl Host {
    /// Reads a name, an IPv4 address or a bracketed IPv6 address.
    pub fn read(text: &str) -> Option<Self> {
        if let Some(inner) = text.strip_prefix('[') {
            return inner.strip_suffix(']')?.parse().ok().map(|ip| Self::Ip(IpAddr::V6(ip)));
        }
        if let Ok(ip) = text.parse() {
            return Some(Self::Ip(IpAddr::V4(ip)));
        }
        let name = text.strip_suffix('.').unwrap_or(text);
        // A name whose last label is a number is a mistyped address (WHATWG URL, host parser).
        let numeric = name.rsplit('.').next()?.bytes().all(|byte| byte.is_ascii_digit());
        (name.len() <= 253 && !numeric && name.split('.').all(is_label))
            .then(|| Self::Name(text.to_ascii_lowercase()))
    }
}

/// A name as others are told it: a dot at the end says only that it is looked for in no search list (RFC 1034 s3.1).
pub fn relative(name: &str) -> &str {
    name.strip_suffix('.').unwrap_or(name)
}

/// Whether the text is a name or an address, with a port or without: less than an authority, which may
/// hold `*`, `~(` or a user.
pub(super) fn is_host(text: &str) -> bool {
    text.parse::<Authority>().is_ok_and(|authority| {
        let host = authority.host();
        let port_fits = host.len() == text.len() || authority.port_u16().is_some();
        text.starts_with(host) && port_fits && Host::read(host).is_some()
    })
}

/// Whether the text is one label of a host name; underscores are common in container networks.
fn is_label(text: &str) -> bool {
    (1..=63).contains(&text.len())
        && !text.starts_with('-')
        && !text.ends_with('-')
        && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_')
}

impl Scalar for HostHeader {
    const EXPECTED: &'static str = "`preserve`, `backend` or a host name such as `users.internal`";
    const EXAMPLE: &'static str = "preserve";

    fn read(text: &str) -> Option<Self> {
        match text {
            "preserve" => Some(Self::Preserve),
            "backend" => Some(Self::Backend),
            name => is_host(name).then(|| Self::Name(name.to_owned())),
        }
    }
}

tollhouse_filters::scalar!(HostHeader);

impl fmt::Display for HostHeader {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Preserve => "preserve",
            Self::Backend => "backend",
            Self::Name(name) => name,
        })
    }
}

fn one() -> u16 {
    1
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn the_smallest_upstream_has_the_documented_defaults() {
        let written = json!({"name": "users", "backends": [{"address": "127.0.0.1:9001"}]});
        let upstream: Upstream = serde_json::from_value(written).unwrap();
        assert_eq!(
            serde_json::to_value(upstream).unwrap(),
            json!({
                "name": "users", "protocol": "http/1.1",
                "backends": [{"address": "127.0.0.1:9001", "weight": 1, "priority": 0}],
                "host": "preserve", "balance": {"algorithm": "round_robin", "failover_below": "70%"},
                "timeouts": {"connect": "2s", "read": "1m", "total": "none"},
                "retries": {
                    "max": 1, "conditions": ["connect", "refused_stream", "stale"], "methods": "idempotent",
                    "idempotency_key": false, "backoff": "25ms..250ms", "per_try": "none", "budget": "20%",
                    "body_bytes": "64KiB",
                },
                "pool": {"idle": 1024, "idle_timeout": "30s"},
            })
        );
    }

    #[test]
    fn everything_written_reads_back() {
        let written = json!({
            "name": "users", "protocol": "h2",
            "backends": [{"address": "users.internal:9001", "weight": 3, "priority": 1, "zone": "a"}, {"address": "[::1]:80", "weight": 0, "priority": 0}],
            "host": "users.internal:8443",
            "tls": {"verify": false, "sni": "a", "ca": "ca.pem", "client_cert": "c.pem", "client_key": "k.pem"},
            "balance": {
                "algorithm": "consistent_hash", "hash_on": ["cookie:uid", {"all": ["ip", "header:x-a"]}],
                "zone": "a", "failover_below": "50%",
            },
            "health": {
                "active": {"type": "tcp", "interval": "5s", "timeout": "1s", "healthy": 2, "unhealthy": 3},
                "outlier": {
                    "consecutive_failures": 3, "error_ratio": "50%", "slow_factor": 5, "min_requests": 10,
                    "window": "5s", "base_ejection": "10s", "max_ejection": "1m", "max_ejected": "30%",
                    "panic_threshold": "0%",
                },
                "slow_start": "30s",
            },
            "timeouts": {"connect": "500ms", "read": "none", "total": "5s", "remaining_header": "x-left"},
            "retries": {
                "max": 0, "conditions": ["connect", "reset", "502-504", "grpc:unavailable"], "methods": ["GET"],
                "idempotency_key": true, "backoff": "0s..1s", "per_try": "500ms", "budget": "5%",
                "body_bytes": "1KiB",
            },
            "hedge": {"after": "p95", "max": 2},
            "circuit_breaker": {
                "error_ratio": "20%", "slow": "1s", "slow_ratio": "80%", "min_requests": 5, "window": "30s",
                "open": "5s", "half_open": 1,
                "fallback": {"stale": false, "status": 200, "headers": {"content-type": "application/json"}, "body": "[]"},
            },
            "concurrency": {"in_flight": 512, "queue": 128, "max_wait": "250ms"},
            "pool": {"idle": 0, "idle_timeout": "4s"},
        });
        let upstream: Upstream = serde_json::from_value(written.clone()).unwrap();
        assert_eq!(serde_json::to_value(upstream).unwrap(), written);
    }

    #[test]
    fn keys_that_do_not_work_yet_are_refused() {
        let written = json!({"name": "u", "backends": [], "hosts": {}});
        assert!(serde_json::from_value::<Upstream>(written).is_err());
    }

    #[test]
    fn addresses_without_a_host_or_a_port_are_refused() {
        for text in [
            "",
            ":80",
            "127.0.0.1",
            "127.0.0.1:",
            "127.0.0.1:0",
            "127.0.0.1:65536",
            "127.0.0.1:+80",
            "::1:80",
            "[::1]",
            "[127.0.0.1]:80",
            "a b:80",
            "http://a:80",
            "a/b:80",
            "-a:80",
            "a..b:80",
            "256.0.0.1:80",
            "user@a:80",
        ] {
            assert!(text.parse::<Address>().is_err(), "{text}");
        }
    }

    #[test]
    fn host_names_are_compared_in_lower_case_and_may_end_in_a_dot() {
        let address: Address = "Users.Internal.:80".parse().unwrap();
        assert_eq!(address.to_string(), "users.internal:80");
    }

    #[test]
    fn a_fixed_host_is_a_host_and_nothing_more() {
        assert_eq!("a.example:80".parse(), Ok(HostHeader::Name("a.example:80".into())));
        for text in ["", "a b", "a\r\nb", "user@a", "a:", "http://a", "a/b"] {
            assert!(text.parse::<HostHeader>().is_err(), "{text}");
        }
    }
}
