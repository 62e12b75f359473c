//! What users write about tokens that are asked about.

use http::header::AUTHORIZATION;
use schemars::JsonSchema;
use serde::Deserialize;

use crate::identity::Source;
use crate::identity::client::ClientAuth;
use crate::values::{ByteSize, Duration, DurationOrZero, Scalar, Secret, Url};

/// Tokens that whoever issued them is asked about (RFC 7662).
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(rename = "IntrospectionIdentity")]
pub(in crate::identity) struct Options {
    /// What it is: `introspection`.
    #[serde(rename = "type")]
    pub(in crate::identity) _kind: Type,
    /// Where it is asked; https, except on this machine or through an `upstream`.
    pub(in crate::identity) endpoint: Url,
    /// The upstream through which it is asked; by default that is the host of the URL itself.
    #[serde(default)]
    pub(in crate::identity) upstream: Option<String>,
    /// Who asks.
    pub(in crate::identity) client_id: String,
    /// What proves it.
    pub(in crate::identity) client_secret: Secret,
    /// How that is shown (RFC 6749 s2.3.1).
    #[serde(default)]
    pub(in crate::identity) client_auth: ClientAuth,
    /// Longest wait for an answer; without one nobody can tell, which is a 503.
    #[serde(default = "five_seconds")]
    pub(in crate::identity) timeout: Duration,
    /// How long it is remembered that a token holds, at most up to its end: so long it may go on to pass after it was
    /// revoked by its issuer.
    #[serde(default = "one_minute")]
    pub(in crate::identity) ttl: Duration,
    /// How long it is remembered that a token does not hold.
    #[serde(default = "five_seconds_or_zero")]
    pub(in crate::identity) negative_ttl: DurationOrZero,
    /// What `iss` has to be; by default it is not looked at.
    #[serde(default)]
    pub(in crate::identity) issuer: Option<String>,
    /// Of which `aud` has to name at least one; without any, tokens that have an `aud` are refused.
    #[serde(default)]
    pub(in crate::identity) audiences: Vec<String>,
    /// Where tokens are looked for; those in `Authorization` follow `Bearer`. A request may have one only.
    #[serde(default = "authorization")]
    pub(in crate::identity) from: Vec<Source>,
    /// Whether tokens are taken out of the request before it goes on.
    #[serde(default)]
    pub(in crate::identity) hide: bool,
    /// How far clocks may differ, at most an hour, for `exp` and `nbf`.
    #[serde(default = "thirty_seconds")]
    pub(in crate::identity) leeway: DurationOrZero,
    /// Claims that answers must have.
    #[serde(default)]
    pub(in crate::identity) required_claims: Vec<String>,
    /// Memory for answers, about. `0B` keeps none.
    #[serde(default = "token_cache")]
    pub(in crate::identity) token_cache: ByteSize,
}

/// The one value of `type`.
#[derive(Debug, Clone, Copy, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
#[schemars(rename = "IntrospectionType")]
pub(in crate::identity) enum Type {
    /// `introspection`
    Introspection,
}

fn authorization() -> Vec<Source> {
    vec![Source::Header(AUTHORIZATION)]
}

fn token_cache() -> ByteSize {
    ByteSize::from_mib(16)
}

fn one_minute() -> Duration {
    Duration::from_secs(60)
}

fn five_seconds() -> Duration {
    Duration::from_secs(5)
}

fn five_seconds_or_zero() -> DurationOrZero {
    DurationOrZero::read("5s").expect("a duration")
}

fn thirty_seconds() -> DurationOrZero {
    DurationOrZero::read("30s").expect("a duration")
}
