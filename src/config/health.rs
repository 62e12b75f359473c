//! Health checks of backends as the user writes them.

use std::fmt;
use std::hash::{Hash, Hasher};
use std::num::{NonZeroU16, NonZeroU32};

use http::uri::PathAndQuery;
use regex::bytes::{Regex, RegexBuilder};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tollhouse_filters::values::{Duration, Scalar, StatusRange, bounded};

use super::outlier::Outlier;
use super::upstream::is_host;

/// How it is found out which backends work.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Health {
    /// Probes sent to every address of every backend. Default: none. Example: `{type: http, path: /healthz}`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub active: Option<Active>,
    /// Backends are judged by what becomes of requests, and those that do badly are ejected for a while. Default: none. Example: `{consecutive_failures: 5, base_ejection: 30s, max_ejected: 50%}`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub outlier: Option<Outlier>,
    /// How long a backend that comes back takes to get its whole share of requests. Default: none, at once. Example: `30s`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub slow_start: Option<Duration>,
}

/// Probes sent to every address of every backend. An address is judged by the first probe, and after that by as many
/// in a row as `healthy` and `unhealthy` say; unhealthy ones get no requests.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Active {
    /// What a probe is: `tcp` connects (over TLS if the upstream has `tls`), `http` sends a request, `grpc` calls
    /// `grpc.health.v1.Health/Check`. Required. Example: `http`.
    #[serde(rename = "type")]
    pub kind: ProbeKind,
    /// What an `http` probe asks for. Default: `/`. Example: `/healthz`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path: Option<ProbePath>,
    /// The method of an `http` probe. Default: `GET`. Example: `HEAD`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub method: Option<ProbeMethod>,
    /// The `Host` of an `http` or `grpc` probe. Default: the upstream's fixed `host`, else the backend's own. Example: `users.internal`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host: Option<ProbeHost>,
    /// Status codes that an `http` probe passes with. Default: `[200-299]`. Example: `[200, 429]`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1))]
    pub expect: Option<Vec<StatusRange>>,
    /// What the first 64 KiB of the answer to an `http` probe have to contain: a text, or a regular expression after `~`. Default: anything. Example: `"ok"`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub body: Option<BodyMatch>,
    /// The service a `grpc` probe asks about. Default: the server as a whole. Example: `users.v1.Users`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub service: Option<String>,
    /// From the start of one probe to the start of the next, give or take a tenth. Default: `5s`. Example: `10s`.
    #[serde(default = "five_seconds")]
    pub interval: Duration,
    /// For a whole probe, the connection included. Default: `1s`. Example: `500ms`.
    #[serde(default = "one_second")]
    pub timeout: Duration,
    /// Passed probes in a row that make an unhealthy address healthy. Default: `2`. Example: `1`.
    #[serde(default = "two")]
    pub healthy: NonZeroU32,
    /// Failed probes in a row that make a healthy address unhealthy. Default: `3`. Example: `5`.
    #[serde(default = "three")]
    pub unhealthy: NonZeroU32,
    /// Where probes go instead of the backend's own port. Default: the backend's. Example: `9000`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub port: Option<NonZeroU16>,
}

/// What a probe is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum ProbeKind {
    /// A connection, over TLS if the upstream has `tls`.
    Tcp,
    /// A request, in the upstream's protocol.
    Http,
    /// A call of `grpc.health.v1.Health/Check`; needs an upstream that speaks HTTP/2.
    Grpc,
}

/// The method of an `http` probe.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "UPPERCASE")]
pub enum ProbeMethod {
    /// `GET`.
    #[default]
    Get,
    /// `HEAD`; there is no body to look at.
    Head,
    /// `OPTIONS`.
    Options,
    /// `POST`, without a body.
    Post,
}

/// What an `http` probe asks for: a path, with a query if one is written.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct ProbePath(String);

/// The `Host` of a probe.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct ProbeHost(String);

/// What a body has to contain: a text, or a regular expression after `~`.
#[derive(Debug, Clone)]
pub struct BodyMatch {
    written: String,
    regex: Option<Regex>,
}

impl Active {
    /// The path and query that an `http` probe asks for.
    pub fn path(&self) -> &str {
        self.path.as_ref().map_or("/", |path| &path.0)
    }

    /// The method of an `http` probe.
    pub fn method(&self) -> http::Method {
        match self.method.unwrap_or_default() {
            ProbeMethod::Get => http::Method::GET,
            ProbeMethod::Head => http::Method::HEAD,
            ProbeMethod::Options => http::Method::OPTIONS,
            ProbeMethod::Post => http::Method::POST,
        }
    }

    /// Whether an `http` probe passes with this status.
    pub fn expects(&self, status: u16) -> bool {
        match &self.expect {
            Some(ranges) => ranges.iter().any(|range| range.contains(status)),
            None => (200..=299).contains(&status),
        }
    }

    /// The status codes that an `http` probe passes with, for people.
    pub fn expected(&self) -> String {
        match &self.expect {
            Some(ranges) => ranges.iter().map(ToString::to_string).collect::<Vec<_>>().join(", "),
            None => "200-299".to_owned(),
        }
    }
}

impl ProbeHost {
    /// The host, with a port if one is written.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl BodyMatch {
    /// Whether this body has what is wanted.
    pub fn is_in(&self, body: &[u8]) -> bool {
        match &self.regex {
            Some(regex) => regex.is_match(body),
            None => body.windows(self.written.len()).any(|window| window == self.written.as_bytes()),
        }
    }
}

impl PartialEq for BodyMatch {
    fn eq(&self, other: &Self) -> bool {
        self.written == other.written
    }
}

impl Eq for BodyMatch {}

impl Hash for BodyMatch {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.written.hash(state);
    }
}

impl Scalar for ProbePath {
    const EXPECTED: &'static str = "a path such as `/healthz`, with a query if needed";
    const PATTERN: Option<&'static str> = Some("^/[!-\"$-~]*$");
    const EXAMPLE: &'static str = "/healthz";

    fn read(text: &str) -> Option<Self> {
        let visible = text.bytes().all(|byte| byte.is_ascii_graphic() && byte != b'#');
        let path = text.starts_with('/') && visible && text.parse::<PathAndQuery>().is_ok();
        path.then(|| Self(text.to_owned()))
    }
}

impl Scalar for ProbeHost {
    const EXPECTED: &'static str = "a host name such as `users.internal`";
    const EXAMPLE: &'static str = "users.internal";

    fn read(text: &str) -> Option<Self> {
        is_host(text).then(|| Self(text.to_owned()))
    }
}

impl Scalar for BodyMatch {
    const EXPECTED: &'static str = "a text, or a regular expression after `~`, such as `~^(ok|fine)`";
    const EXAMPLE: &'static str = "ok";

    fn read(text: &str) -> Option<Self> {
        let regex = match text.strip_prefix('~') {
            Some("") => return None,
            Some(pattern) => Some(bounded(|most| RegexBuilder::new(pattern).size_limit(most).build()).ok()?),
            None => None,
        };
        (!text.is_empty()).then(|| Self { written: text.to_owned(), regex })
    }
}

tollhouse_filters::scalar!(ProbePath);
tollhouse_filters::scalar!(ProbeHost);
tollhouse_filters::scalar!(BodyMatch);

impl fmt::Display for ProbePath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Display for ProbeHost {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Display for BodyMatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.written)
    }
}

fn five_seconds() -> Duration {
    Duration::from_secs(5)
}

fn one_second() -> Duration {
    Duration::from_secs(1)
}

fn two() -> NonZeroU32 {
    NonZeroU32::new(2).expect("a literal over zero")
}

fn three() -> NonZeroU32 {
    NonZeroU32::new(3).expect("a literal over zero")
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn read(written: Value) -> serde_json::Result<Active> {
        serde_json::from_value(written)
    }

    #[test]
    fn the_smallest_check_has_the_documented_defaults() {
        let active = read(json!({"type": "http"})).unwrap();
        assert_eq!(
            serde_json::to_value(&active).unwrap(),
            json!({"type": "http", "interval": "5s", "timeout": "1s", "healthy": 2, "unhealthy": 3})
        );
        assert_eq!((active.path(), active.method()), ("/", http::Method::GET));
        assert!(active.expects(200) && active.expects(299) && !active.expects(300) && !active.expects(199));
    }

    #[test]
    fn everything_written_reads_back() {
        let written = json!({
            "type": "http", "path": "/healthz?deep=1", "method": "HEAD", "host": "users.internal:8443",
            "expect": ["200", "300-399"], "body": "~^ok", "interval": "50ms", "timeout": "10ms",
            "healthy": 1, "unhealthy": 1, "port": 9000,
        });
        assert_eq!(serde_json::to_value(read(written.clone()).unwrap()).unwrap(), written);
    }

    #[test]
    fn what_can_never_work_is_refused() {
        for (key, value) in [
            ("type", json!("udp")),
            ("path", json!("healthz")),
            ("path", json!("/a b")),
            ("path", json!("/a#b")),
            ("method", json!("get")),
            ("method", json!("CONNECT")),
            ("host", json!("user@host")),
            ("body", json!("")),
            ("body", json!("~")),
            ("body", json!("~(")),
            ("interval", json!("0s")),
            ("timeout", json!("0ms")),
            ("healthy", json!(0)),
            ("unhealthy", json!(0)),
            ("port", json!(0)),
            ("port", json!(65536)),
            ("rise", json!(2)),
        ] {
            let mut written = json!({"type": "http"});
            written[key] = value;
            assert!(read(written.clone()).is_err(), "{written}");
        }
    }

    #[test]
    fn a_body_is_matched_by_text_or_by_expression() {
        let matches = |written: &str, body: &[u8]| written.parse::<BodyMatch>().unwrap().is_in(body);
        assert!(matches("ok", b"all ok\n") && !matches("ok", b"all fine\n") && !matches("ok", b""));
        assert!(matches("~^(ok|fine)$", b"fine") && !matches("~^ok$", b"not ok"));
        assert!(matches("~\\x00", b"\xff\x00"), "bodies need not be text");
    }
}
