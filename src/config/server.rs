//! `server`: the process.

use std::borrow::Cow;
use std::fmt;
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::de::{self, Deserialize, Deserializer, Visitor};
use tollhouse_filters::path::PathRules;
use tollhouse_filters::scalar;
use tollhouse_filters::values::{ByteRate, ByteSize, Duration, IpSet, Scalar};

use super::{Cache, Dns, Overload};

/// The process: threads, limits, trusted proxies.
#[derive(Debug, Clone, serde::Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Server {
    /// Data-plane worker threads; `auto` is one per core. Changes need an upgrade.
    pub threads: Threads,
    /// The only peers whose `Forwarded` and `X-Forwarded-*` are believed.
    pub trusted_proxies: IpSet,
    /// The field in which they say who the client is; the other one is dropped, since a proxy that does not write it
    /// passes on what clients make up. `any` takes `X-Forwarded-For`, or `Forwarded` where there is none.
    pub client_from: ClientFrom,
    /// Where `tollhouse upgrade` asks to replace this process: an absolute path in a folder that is this user's alone
    /// (0700). Default: in `$RUNTIME_DIRECTORY`, else in `$XDG_RUNTIME_DIR`, else nowhere. Changes need an upgrade.
    pub upgrade_socket: Option<UpgradeSocket>,
    /// How long in-flight work may finish on shutdown or upgrade.
    pub drain: Duration,
    /// The file that keeps what was used of quotas, and how far ramps are, over restarts: an absolute path, or `none`. Default:
    /// `quotas.sqlite` in `$STATE_DIRECTORY`, else a file for this document in `$XDG_STATE_HOME/tollhouse` or
    /// `~/.local/state/tollhouse`. It is made when a quota is first used or there is a ramp. Changes need an upgrade.
    pub quotas: Option<QuotaFile>,
    /// What one client, or all of them, may use.
    pub limits: Limits,
    /// How request paths are normalised before anything looks at them.
    pub paths: PathRules,
    /// How names of backends are looked up.
    pub dns: Dns,
    /// When requests of low priority are refused, as the process has too much to do.
    pub overload: Overload,
    /// Where the filter `cache` keeps answers.
    pub cache: Cache,
}

impl Default for Server {
    fn default() -> Self {
        Self {
            threads: Threads::Auto,
            trusted_proxies: IpSet::default(),
            client_from: ClientFrom::Any,
            upgrade_socket: None,
            drain: Duration::from_secs(30),
            quotas: None,
            limits: Limits::default(),
            paths: PathRules::default(),
            dns: Dns::default(),
            overload: Overload::default(),
            cache: Cache::default(),
        }
    }
}

/// The field in which trusted proxies say who the client is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Deserialize, serde::Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum ClientFrom {
    /// `X-Forwarded-For`, or `Forwarded` where there is none.
    #[default]
    Any,
    /// `X-Forwarded-For`.
    XForwardedFor,
    /// `Forwarded` (RFC 7239).
    Forwarded,
}

impl ClientFrom {
    /// The field that is not believed, not even of trusted proxies.
    #[must_use]
    pub fn distrusted(self) -> Option<&'static str> {
        match self {
            Self::Any => None,
            Self::XForwardedFor => Some("forwarded"),
            Self::Forwarded => Some("x-forwarded-for"),
        }
    }
}

/// The path of the upgrade socket.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UpgradeSocket(PathBuf);

impl UpgradeSocket {
    /// The path.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.0
    }
}

impl fmt::Display for UpgradeSocket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.display().fmt(f)
    }
}

impl Scalar for UpgradeSocket {
    const EXPECTED: &'static str =
        "an absolute path of at most 103 bytes, such as `/run/tollhouse/upgrade.sock`";
    const PATTERN: Option<&'static str> = Some("^/.*[^/]$");
    const EXAMPLE: &'static str = "/run/tollhouse/upgrade.sock";

    fn read(text: &str) -> Option<Self> {
        // A socket's path has at most 107 bytes (unix(7)); four are for the name that the next one has at first.
        let fits = text.len() <= 103 && !text.contains('\0');
        (fits && text.starts_with('/') && !text.ends_with('/')).then(|| Self(text.into()))
    }
}

scalar!(UpgradeSocket);

/// Where quotas are kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum QuotaFile {
    /// In memory alone.
    None,
    /// In this file, too.
    At(PathBuf),
}

impl fmt::Display for QuotaFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::None => f.write_str("none"),
            Self::At(path) => path.display().fmt(f),
        }
    }
}

impl Scalar for QuotaFile {
    const EXPECTED: &'static str = "`none` or an absolute path such as `/var/lib/tollhouse/quotas.sqlite`";
    const PATTERN: Option<&'static str> = Some("^(none|/.*[^/])$");
    const EXAMPLE: &'static str = "/var/lib/tollhouse/quotas.sqlite";

    fn read(text: &str) -> Option<Self> {
        let is_path = text.starts_with('/') && !text.ends_with('/') && !text.contains('\0');
        match text {
            "none" => Some(Self::None),
            _ => is_path.then(|| Self::At(text.into())),
        }
    }
}

scalar!(QuotaFile);

/// What one client, or all of them, may use.
#[derive(Debug, Clone, serde::Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Limits {
    /// Open connections; over it new ones are closed at once and counted.
    pub connections: NonZeroUsize,
    /// Open connections of one address; trusted proxies are exempt. Unlimited by default.
    pub connections_per_ip: Option<NonZeroUsize>,
    /// All header fields together, in HTTP/1 as they are sent; over it: 431.
    pub header_bytes: ByteSize,
    /// Number of header fields, at most 255; over it: 431.
    pub header_count: NonZeroUsize,
    /// Length of the request target; over it: 414.
    pub uri_bytes: ByteSize,
    /// For the whole head of an HTTP/1 request, of a new connection's first one from its begin on; over it: 408.
    pub header_timeout: Duration,
    /// Between two reads of a request body; over it: 408.
    pub body_timeout: Duration,
    /// What a client sends of a body, and takes of an answer, on average while it is waited for; with less than
    /// that it is waited for no longer than `body_timeout`, or `idle_timeout`, in all.
    pub min_rate: ByteRate,
    /// A request body; over it: 413. The filter `body_limit` narrows or widens it.
    pub body_bytes: ByteSize,
    /// All bodies buffered for filters together; over it: 503.
    pub buffered_bytes: ByteSize,
    /// Connections with nothing under way are closed after this.
    pub idle_timeout: Duration,
    /// Concurrent HTTP/2 streams of one connection. Changes need an upgrade.
    pub h2_streams: std::num::NonZeroU32,
}

impl Default for Limits {
    fn default() -> Self {
        let count = |n| NonZeroUsize::new(n).expect("a literal over zero");
        Self {
            connections: count(50_000),
            connections_per_ip: None,
            header_bytes: ByteSize::from_kib(32),
            header_count: count(100),
            uri_bytes: ByteSize::from_kib(16),
            header_timeout: Duration::from_secs(10),
            body_timeout: Duration::from_secs(30),
            min_rate: ByteRate::from_bytes(240),
            body_bytes: ByteSize::from_mib(100),
            buffered_bytes: ByteSize::from_mib(256),
            idle_timeout: Duration::from_secs(60),
            h2_streams: std::num::NonZeroU32::new(128).expect("a literal over zero"),
        }
    }
}

/// Data-plane worker threads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Threads {
    /// One per core.
    Auto,
    /// This many.
    Count(NonZeroUsize),
}

impl Threads {
    /// How many threads to start.
    #[must_use]
    pub fn count(self) -> usize {
        match self {
            Self::Auto => std::thread::available_parallelism().map_or(1, NonZeroUsize::get),
            Self::Count(count) => count.get(),
        }
    }
}

impl<'de> Deserialize<'de> for Threads {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(ThreadsVisitor)
    }
}

struct ThreadsVisitor;

impl Visitor<'_> for ThreadsVisitor {
    type Value = Threads;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("`auto` or a number from 1 to 1024")
    }

    fn visit_u64<E: de::Error>(self, count: u64) -> Result<Threads, E> {
        usize::try_from(count)
            .ok()
            .filter(|count| *count <= 1024)
            .and_then(NonZeroUsize::new)
            .map(Threads::Count)
            .ok_or_else(|| E::custom("expected `auto` or a number from 1 to 1024"))
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<Threads, E> {
        match text {
            "auto" => Ok(Threads::Auto),
            _ => text
                .parse()
                .map_err(|_| E::custom("expected `auto` or a number from 1 to 1024"))
                .and_then(|count| self.visit_u64(count)),
        }
    }
}

/// As written, for the schema's default.
impl serde::Serialize for Threads {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Auto => serializer.serialize_str("auto"),
            Self::Count(count) => count.serialize(serializer),
        }
    }
}

impl JsonSchema for Threads {
    fn schema_name() -> Cow<'static, str> {
        "Threads".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({"oneOf": [{"const": "auto"}, {"type": "integer", "minimum": 1, "maximum": 1024}]})
    }
}
