//! `services`: what the routes of one API share, and its versions.

use std::collections::BTreeMap;
use std::fmt;

use http::HeaderName;
use schemars::JsonSchema;
use serde::Deserialize;
use tollhouse_filters::spec::Item;
use tollhouse_filters::values::{Date, Duration, Scalar, Url};

use super::Name;

/// An API: what its routes share.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Service {
    /// Its name.
    pub name: Name,
    /// Where its requests go, unless a version or a route says otherwise.
    #[serde(default)]
    pub upstream: Option<Name>,
    /// Filters for every request of the API; after the listener's, before the route's.
    #[serde(default)]
    pub filters: Vec<Item>,
    /// How requests say which version of the API they want; needs `versions`.
    #[serde(default)]
    pub versioning: Option<Versioning>,
    /// The versions of the API, by what requests call them; a `v` before it means the same.
    #[serde(default)]
    pub versions: BTreeMap<Name, ApiVersion>,
}

/// How requests say which version they want.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Versioning {
    /// Where it is looked for, in this order; the first place that names one decides. Example: `[path, accept]`.
    pub from: Vec<VersionSource>,
    /// The version of requests that name none. Default: none, so they are answered 406. Example: `"2"`.
    #[serde(default)]
    pub default: Option<Name>,
}

/// A version of an API.
#[derive(Debug, Clone, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct ApiVersion {
    /// Where its requests go. Default: the service's upstream.
    pub upstream: Option<Name>,
    /// Since when, or from when on, it should not be used any more: the field `Deprecation` (RFC 9745). Example: `2026-10-01`.
    pub deprecated: Option<Date>,
    /// When it ends: the field `Sunset` (RFC 8594), and 410 from then on. Example: `2027-03-31`.
    pub sunset: Option<Date>,
    /// The version to use instead of one that is deprecated or ends, for a link. Default: the default version. Example: `"2"`.
    pub successor: Option<Name>,
    /// A page for those who have to move on, for a link. Example: `https://example.com/moving-to-v2`.
    pub docs: Option<Url>,
    /// Times before `sunset` at which requests are refused for a while, so that those who never read notices notice.
    pub brownouts: Vec<Brownout>,
}

/// A time at which a version is refused as if it had ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Brownout {
    /// When it begins. Example: `2027-03-01T10:00:00Z`.
    pub at: Date,
    /// How long it lasts. Example: `10m`.
    #[serde(rename = "for")]
    pub length: Duration,
    /// After how long it comes again, until the version ends. Default: it does not. Example: `7d`.
    #[serde(default)]
    pub every: Option<Duration>,
}

/// A place in a request where it says which version it wants.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum VersionSource {
    /// `path`: the first segment, such as `/v2`; stripped before matching.
    Path,
    /// `accept`: a media type such as `application/vnd.acme.v2+json` or `application/json;v=2`.
    Accept,
    /// `header:NAME`
    Header(HeaderName),
    /// `query:NAME`
    Query(Box<str>),
}

impl Scalar for VersionSource {
    const EXPECTED: &'static str = "`path`, `accept`, `header:NAME` or `query:NAME`";
    const PATTERN: Option<&'static str> = Some("^(path|accept|header:.+|query:.+)$");
    const EXAMPLE: &'static str = "header:x-api-version";

    fn read(text: &str) -> Option<Self> {
        match text.split_once(':') {
            None if text == "path" => Some(Self::Path),
            None if text == "accept" => Some(Self::Accept),
            Some(("header", name)) => name.parse().ok().map(Self::Header),
            Some(("query", name)) if !name.is_empty() => Some(Self::Query(name.into())),
            _ => None,
        }
    }
}

tollhouse_filters::scalar!(VersionSource);

impl fmt::Display for VersionSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Path => f.write_str("path"),
            Self::Accept => f.write_str("accept"),
            Self::Header(name) => write!(f, "header:{name}"),
            Self::Query(name) => write!(f, "query:{name}"),
        }
    }
}
