//! What users write about signatures of requests.

use std::fmt;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::values::{ByteSize, Duration, DurationOrZero, Name, Scalar};

/// Signatures of requests, with keys that consumers of the document have under `credentials`: HTTP Message Signatures
/// (RFC 9421), and a simple scheme in `Authorization`.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(rename = "HmacIdentity")]
pub(in crate::identity) struct Options {
    /// What it is: `hmac`.
    #[serde(rename = "type")]
    pub(in crate::identity) _kind: Type,
    /// Which forms of signatures are taken.
    #[serde(default = "both")]
    pub(in crate::identity) schemes: Vec<Scheme>,
    /// What a message signature must cover at least: names of fields, and `@method`, `@authority`, `@scheme`, `@path`,
    /// `@query`, `@request-target` or `@target-uri`. The simple scheme always covers method, authority, path and query.
    #[serde(default = "most_of_it")]
    pub(in crate::identity) components: Vec<ComponentName>,
    /// How old a signature may be, by the time it was `created`, which it has to say.
    #[serde(default = "five_minutes")]
    pub(in crate::identity) window: Duration,
    /// How far clocks may differ, for `created` and `expires`.
    #[serde(default = "thirty_seconds")]
    pub(in crate::identity) skew: DurationOrZero,
    /// Whether a body has to be covered.
    #[serde(default)]
    pub(in crate::identity) body: BodyRule,
    /// The largest body that is looked at as a whole, to verify its digest; over it: 413.
    #[serde(default = "one_mib")]
    pub(in crate::identity) max_body: ByteSize,
    /// Whether signatures need a nonce. One that is there is good for one request in any case.
    #[serde(default)]
    pub(in crate::identity) nonce: NonceRule,
    /// The store that nonces are known in, for all gateways that share it; by default each knows those it saw itself.
    #[serde(default)]
    pub(in crate::identity) store: Option<Name>,
    /// The `tag` that a message signature must have; those of other tags are for somebody else.
    #[serde(default)]
    pub(in crate::identity) tag: Option<String>,
    /// Whether signatures are taken out of the request before it goes on.
    #[serde(default)]
    pub(in crate::identity) hide: bool,
}

/// The one value of `type`.
#[derive(Debug, Clone, Copy, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
#[schemars(rename = "HmacType")]
pub(in crate::identity) enum Type {
    /// `hmac`
    Hmac,
}

/// A form of signatures.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
#[schemars(rename = "HmacScheme")]
pub(in crate::identity) enum Scheme {
    /// `Signature-Input` and `Signature` (RFC 9421).
    MessageSignature,
    /// `Authorization: HMAC ..`.
    Authorization,
}

/// Whether a body has to be covered.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
#[schemars(rename = "HmacBody")]
pub(in crate::identity) enum BodyRule {
    /// A body has to be covered, by its digest.
    #[default]
    Covered,
    /// A digest that is covered is verified; a message signature without one says nothing of the body.
    IfCovered,
}

/// Whether signatures need a nonce.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
#[schemars(rename = "HmacNonce")]
pub(in crate::identity) enum NonceRule {
    /// They may have one.
    #[default]
    Optional,
    /// They must have one.
    Required,
}

/// What a signature can cover as a whole.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::identity) struct ComponentName(pub(super) Box<str>);

/// Derived components of requests (RFC 9421 s2.2).
const DERIVED: [&str; 7] =
    ["@authority", "@method", "@path", "@query", "@request-target", "@scheme", "@target-uri"];

impl Scalar for ComponentName {
    const EXPECTED: &'static str = "the name of a field in lower case, or `@method`, `@authority`, `@scheme`, `@path`, \
                                    `@query`, `@request-target` or `@target-uri`";
    const PATTERN: Option<&'static str> =
        Some("^(@(authority|method|path|query|request-target|scheme|target-uri)|[^@\"A-Z ]+)$");
    const EXAMPLE: &'static str = "@method";

    fn read(text: &str) -> Option<Self> {
        let is_field = || text.parse::<http::HeaderName>().is_ok_and(|name| name.as_str() == text);
        let is_one = if text.starts_with('@') { DERIVED.contains(&text) } else { is_field() };
        is_one.then(|| Self(text.into()))
    }
}

crate::scalar!(ComponentName);

impl fmt::Display for ComponentName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

fn both() -> Vec<Scheme> {
    vec![Scheme::MessageSignature, Scheme::Authorization]
}

fn most_of_it() -> Vec<ComponentName> {
    ["@method", "@authority", "@path", "@query"].map(|name| ComponentName(name.into())).into()
}

fn five_minutes() -> Duration {
    Duration::from_secs(300)
}

fn thirty_seconds() -> DurationOrZero {
    DurationOrZero::read("30s").expect("a duration")
}

fn one_mib() -> ByteSize {
    ByteSize::from_mib(1)
}
