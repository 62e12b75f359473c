//! What users write about tokens.

use std::borrow::Cow;
use std::fmt;

use http::header::AUTHORIZATION;
use jsonwebtoken::Algorithm;
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Deserializer};
use sha2::{Digest, Sha256};

use crate::identity::Source;
use crate::tree::Raw;
use crate::values::{ByteSize, Duration, DurationOrZero, Scalar, Secret, Url};

/// Signed tokens (RFC 7519). What they are verified with is one of `secret`, `public_key`, `jwks` and `jwks_uri`,
/// or what an `issuer` alone says of itself.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(rename = "JwtIdentity")]
pub(in crate::identity) struct Options {
    /// What it is: `jwt`.
    #[serde(rename = "type")]
    pub(in crate::identity) _kind: Type,
    /// The only algorithms that signatures may have, of `RS256`, `RS384`, `RS512`, `PS256`, `PS384`, `PS512`,
    /// `ES256`, `ES384`, `EdDSA`, `HS256`, `HS384` and `HS512`; a key of another kind verifies none of them.
    pub(in crate::identity) algorithms: Vec<AlgorithmName>,
    /// What `iss` has to be; by default it is not looked at. Without any keys here, a URL whose document says
    /// where the keys are (OpenID Connect Discovery, RFC 8414).
    #[serde(default)]
    pub(in crate::identity) issuer: Option<String>,
    /// Of which `aud` has to name at least one; without any, tokens that have an `aud` are refused.
    #[serde(default)]
    pub(in crate::identity) audiences: Vec<String>,
    /// The secret of HS256, HS384 and HS512, at least as long as their hash: 32, 48 and 64 bytes.
    #[serde(default)]
    pub(in crate::identity) secret: Option<Secret>,
    /// A public key in PEM, as in `${file:corp.pem}`.
    #[serde(default)]
    pub(in crate::identity) public_key: Option<String>,
    /// A set of keys (RFC 7517), as a map or as JSON, as in `${file:jwks.json}`. With `jwks_uri` or an issuer that
    /// is asked, only until keys were fetched, and in dry runs, which fetch none.
    #[serde(default)]
    pub(in crate::identity) jwks: Option<KeySet>,
    /// Where a set of keys is fetched from; https, except from this machine or through an `upstream`. It is fetched
    /// again before it ends, and when a token names a key that is not in it.
    #[serde(default)]
    pub(in crate::identity) jwks_uri: Option<Url>,
    /// The upstream through which keys are fetched; by default that is the host of the URL itself.
    #[serde(default)]
    pub(in crate::identity) upstream: Option<String>,
    /// How long fetched keys are good for, if their answer does not say (`Cache-Control: max-age`, of which 60s to
    /// 24h are taken).
    #[serde(default = "ten_minutes")]
    pub(in crate::identity) refresh: Duration,
    /// Where tokens are looked for; those in `Authorization` follow `Bearer`. A request may have one only.
    #[serde(default = "authorization")]
    pub(in crate::identity) from: Vec<Source>,
    /// Whether tokens are taken out of the request before it goes on.
    #[serde(default)]
    pub(in crate::identity) hide: bool,
    /// How far clocks may differ, at most an hour, for `exp`, which tokens must have, and `nbf`.
    #[serde(default = "thirty_seconds")]
    pub(in crate::identity) leeway: DurationOrZero,
    /// Further claims that tokens must have.
    #[serde(default)]
    pub(in crate::identity) required_claims: Vec<String>,
    /// Memory for tokens that were verified, about: none of them is verified twice. `0B` keeps none.
    #[serde(default = "token_cache")]
    pub(in crate::identity) token_cache: ByteSize,
}

fn token_cache() -> ByteSize {
    ByteSize::from_mib(16)
}

fn ten_minutes() -> Duration {
    Duration::from_secs(600)
}

fn authorization() -> Vec<Source> {
    vec![Source::Header(AUTHORIZATION)]
}

fn thirty_seconds() -> DurationOrZero {
    DurationOrZero::read("30s").expect("a duration")
}

/// The one value of `type`.
#[derive(Debug, Clone, Copy, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
#[schemars(rename = "JwtType")]
pub(in crate::identity) enum Type {
    /// `jwt`
    Jwt,
}

/// The name of an algorithm of RFC 7518 s3.1 or RFC 8037; `none` is none.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::identity) struct AlgorithmName(pub(super) Algorithm);

impl AlgorithmName {
    pub(in crate::identity) const RS256: Self = Self(Algorithm::RS256);

    /// Whether who verifies could sign as well.
    pub(in crate::identity) fn is_symmetric(&self) -> bool {
        matches!(self.0, Algorithm::HS256 | Algorithm::HS384 | Algorithm::HS512)
    }
}

impl Scalar for AlgorithmName {
    const EXPECTED: &'static str = "one of `RS256`, `RS384`, `RS512`, `PS256`, `PS384`, `PS512`, `ES256`, \
                                    `ES384`, `EdDSA`, `HS256`, `HS384` and `HS512`";
    const PATTERN: Option<&'static str> = Some("^([RPH]S(256|384|512)|ES(256|384)|EdDSA)$");
    const EXAMPLE: &'static str = "RS256";

    fn read(text: &str) -> Option<Self> {
        text.parse().ok().map(Self)
    }
}

crate::scalar!(AlgorithmName);

impl fmt::Display for AlgorithmName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Its variants are spelt as the RFCs do.
        write!(f, "{:?}", self.0)
    }
}

/// A set of keys, as a map or as JSON in a text.
#[derive(Debug, Clone)]
pub(in crate::identity) struct KeySet(pub(super) Raw);

impl KeySet {
    /// Tells one set from another, without telling what is in it.
    pub(super) fn digest(&self) -> [u8; 32] {
        Sha256::digest(serde_json::to_vec(&*self.0.0).unwrap_or_default()).into()
    }
}

impl<'de> Deserialize<'de> for KeySet {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Raw::deserialize(deserializer).map(Self)
    }
}

impl JsonSchema for KeySet {
    fn schema_name() -> Cow<'static, str> {
        "KeySet".into()
    }

    /// What shows documents hides the keys: those of `kty: oct` are secrets.
    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        let key = serde_json::json!({"type": "object", "additionalProperties": {"writeOnly": true}});
        json_schema!({
            "description": "A set of keys (RFC 7517), as a map or as JSON.",
            "anyOf": [
                {"type": "string", "writeOnly": true},
                {
                    "type": "object",
                    "required": ["keys"],
                    "properties": {"keys": {"type": "array", "items": key}},
                },
            ],
        })
    }
}
