//! Stores as the user writes them: places that several gateways share.

use std::fmt;
use std::path::PathBuf;

use schemars::{JsonSchema, Schema, SchemaGenerator};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use tollhouse_filters::values::scalar;
use tollhouse_filters::values::{Duration, Scalar, Secret};
use tollhouse_filters::world::OnFailure;

/// A place that several gateways share.
#[derive(Debug, Clone, PartialEq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Store {
    /// What it is: `redis`, which is any server that speaks Redis' protocol and runs its scripts in Lua, Valkey
    /// for one.
    #[serde(rename = "type")]
    pub kind: StoreKind,
    /// Where it is: `redis://HOST:PORT/DB`, `rediss://` for TLS, or `unix:///PATH?db=DB`. A secret, since there may
    /// be `USER:PASSWORD@` before the host.
    pub url: StoreUrl,
    /// Who the gateway is to the store, if that is not in `url`.
    #[serde(default)]
    pub username: Option<String>,
    /// What proves it, if that is not in `url`.
    #[serde(default)]
    pub password: Option<Secret>,
    /// How the store is known over TLS (`rediss://`).
    #[serde(default)]
    pub tls: Option<StoreTls>,
    /// The longest that a decision waits for the store, at most 1s.
    #[serde(default = "default_timeout")]
    pub timeout: Duration,
    /// What is done while it is away: each gateway counts for itself (`local`), all requests pass (`open`) or none
    /// (`closed`).
    #[serde(default)]
    pub on_failure: OnFailure,
    /// What keys begin with: gateways share what has the same prefix.
    #[serde(default = "default_prefix")]
    pub prefix: KeyPrefix,
}

/// What a store is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum StoreKind {
    /// A server that speaks Redis' protocol.
    Redis,
}

/// How a store is known over TLS.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct StoreTls {
    /// Authorities that its certificate may come from, in PEM, relative to the document, instead of the system's.
    pub ca: PathBuf,
}

fn default_timeout() -> Duration {
    Duration::from_millis(5)
}

fn default_prefix() -> KeyPrefix {
    KeyPrefix("tollhouse".to_owned())
}

/// What keys begin with: 1 to 64 letters, digits, `.`, `_`, `-` or `:`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeyPrefix(String);

impl Scalar for KeyPrefix {
    const EXPECTED: &'static str = "1 to 64 letters, digits, `.`, `_`, `-` or `:`";
    const PATTERN: Option<&'static str> = Some("^[A-Za-z0-9._:-]{1,64}$");
    const EXAMPLE: &'static str = "tollhouse";

    fn read(text: &str) -> Option<Self> {
        let tame = |c: char| c.is_ascii_alphanumeric() || "._-:".contains(c);
        ((1..=64).contains(&text.len()) && text.chars().all(tame)).then(|| Self(text.to_owned()))
    }
}

tollhouse_filters::scalar!(KeyPrefix);

impl fmt::Display for KeyPrefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Where a store is, taken apart. Shown without the password.
#[derive(Clone, PartialEq, Eq)]
pub struct StoreUrl {
    /// The server.
    pub place: StorePlace,
    /// Who the gateway is to it.
    pub username: Option<String>,
    /// What proves it.
    pub password: Option<Secret>,
    /// The number of the database.
    pub db: i64,
}

/// The address of a store.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum StorePlace {
    /// A host and port.
    Tcp {
        /// A name or an address, without brackets.
        host: String,
        /// The port.
        port: u16,
        /// Whether it is spoken to over TLS.
        tls: bool,
    },
    /// A Unix socket.
    Unix(PathBuf),
}

impl StoreUrl {
    /// Whether it is spoken to over TLS.
    #[must_use]
    pub fn is_tls(&self) -> bool {
        matches!(self.place, StorePlace::Tcp { tls: true, .. })
    }
}

impl Scalar for StoreUrl {
    const EXPECTED: &'static str = "a URL such as `redis://127.0.0.1:6379/0`, `rediss://host:6380` or `unix:///run/redis/redis.sock?db=1`";
    const PATTERN: Option<&'static str> = Some("^(rediss?://[^#?]+|(redis\\+)?unix:///[^#]+)$");
    const FORMAT: Option<&'static str> = Some("password");
    const EXAMPLE: &'static str = "redis://127.0.0.1:6379/0";

    fn read(text: &str) -> Option<Self> {
        let mut url = redis::parse_redis_url(text)?;
        let tls = url.scheme() == "rediss";
        let unix = match url.scheme() {
            "redis" | "rediss" => false,
            "unix" | "redis+unix" => true,
            _ => return None,
        };
        let known = |(key, _): (std::borrow::Cow<'_, str>, _)| matches!(&*key, "db" | "user" | "pass");
        if url.fragment().is_some() || (!unix && url.query().is_some()) || !url.query_pairs().all(known) {
            return None;
        }
        // The client is built without TLS, which is ours.
        url.set_scheme(if unix { "redis+unix" } else { "redis" }).ok()?;
        let info = redis::IntoConnectionInfo::into_connection_info(url).ok()?;
        let place = match info.addr() {
            redis::ConnectionAddr::Tcp(host, port) => {
                StorePlace::Tcp { host: host.clone(), port: (*port > 0).then_some(*port)?, tls }
            }
            redis::ConnectionAddr::Unix(path) => StorePlace::Unix(path.clone()),
            _ => return None,
        };
        let settings = info.redis_settings();
        Some(Self {
            place,
            username: settings.username().map(str::to_owned),
            password: settings.password().map(Secret::new),
            db: (settings.db() >= 0).then_some(settings.db())?,
        })
    }
}

// Not the macro: what `Display` writes lacks the password, and the schema says that it is a secret.
impl<'de> Deserialize<'de> for StoreUrl {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        // What begins with "expected" is told with what was found, which may hold a password.
        let refused = || de::Error::custom(format!("this is not {}", Self::EXPECTED));
        Self::read(&String::deserialize(deserializer)?).ok_or_else(refused)
    }
}

impl Serialize for StoreUrl {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl JsonSchema for StoreUrl {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "StoreUrl".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        let mut schema = scalar::schema::<Self>();
        // What shows documents goes by this.
        schema.insert("writeOnly".to_owned(), true.into());
        schema
    }
}

/// Without user and password.
impl fmt::Display for StoreUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.place {
            StorePlace::Tcp { host, port, tls } => {
                let scheme = if *tls { "rediss" } else { "redis" };
                let (open, close) = if host.contains(':') { ("[", "]") } else { ("", "") };
                write!(f, "{scheme}://{open}{host}{close}:{port}/{}", self.db)
            }
            StorePlace::Unix(path) => write!(f, "unix://{}?db={}", path.display(), self.db),
        }
    }
}

impl fmt::Debug for StoreUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(text: &str) -> Option<String> {
        StoreUrl::read(text).map(|url| url.to_string())
    }

    #[test]
    fn urls_are_taken_apart_and_shown_without_the_password() {
        for (text, expected) in [
            ("redis://127.0.0.1", "redis://127.0.0.1:6379/0"),
            ("redis://127.0.0.1:6379/0", "redis://127.0.0.1:6379/0"),
            ("redis://[::1]:7000/3", "redis://[::1]:7000/3"),
            ("rediss://cache.internal:6380/1", "rediss://cache.internal:6380/1"),
            ("redis://:s3cret@cache", "redis://cache:6379/0"),
            ("unix:///run/redis.sock", "unix:///run/redis.sock?db=0"),
            ("redis+unix:///run/redis.sock?db=2&user=u&pass=s3cret", "unix:///run/redis.sock?db=2"),
        ] {
            assert_eq!(shown(text).as_deref(), Some(expected), "{text}");
        }
    }

    #[test]
    fn user_and_password_are_decoded_and_never_printed() {
        let url = StoreUrl::read("redis://gate:a%40b%2Fs3cret@cache:1/2").unwrap();
        assert_eq!(url.username.as_deref(), Some("gate"));
        assert_eq!(url.password.as_ref().map(Secret::expose), Some("a@b/s3cret"));
        assert!(!format!("{url} {url:?}").contains("s3cret"));
        assert!(!serde_json::to_string(&url).unwrap().contains("s3cret"));
    }

    #[test]
    fn what_is_no_url_of_a_store_is_refused_without_quoting_it() {
        for text in [
            "",
            "127.0.0.1:6379",
            "http://cache",
            "redis://",
            "redis://cache:0",
            "redis://cache:99999",
            "redis://cache/x",
            "redis://cache/-1",
            "redis://cache/0/1",
            "redis://cache?protocol=3",
            "rediss://cache/#insecure",
            "redis://0.0.0.0",
            "unix://relative.sock",
            "unix:///a.sock?timeout=3",
            "redis-sentinel://cache",
        ] {
            assert_eq!(shown(text), None, "{text}");
        }
        let error = serde_json::from_str::<StoreUrl>("\"redis//:s3cret@a\"").unwrap_err().to_string();
        assert!(error.starts_with("this is not a URL") && !error.contains("s3cret"), "{error}");
    }
}
