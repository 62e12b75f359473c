//! What users write under `identities` and `consumers`.

use std::borrow::Cow;
use std::fmt;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Deserializer};

use super::api_key::KeyHash;
use super::{api_key, introspection, jwt};
use crate::tree::Raw;
use crate::values::{Date, Name};

/// One written identity, kept as it is until all names are known.
#[derive(Debug, Clone)]
pub struct IdentitySpec(pub(super) Raw);

/// The types of identities.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    ApiKey,
    Introspection,
    Jwt,
}

impl Kind {
    pub(super) const NAMES: [&'static str; 3] = ["api_key", "introspection", "jwt"];

    pub(super) fn read(text: &str) -> Option<Self> {
        match text {
            "api_key" => Some(Self::ApiKey),
            "introspection" => Some(Self::Introspection),
            "jwt" => Some(Self::Jwt),
            _ => None,
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::ApiKey => "api_key",
            Self::Introspection => "introspection",
            Self::Jwt => "jwt",
        })
    }
}

impl<'de> Deserialize<'de> for IdentitySpec {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Raw::deserialize(deserializer).map(Self)
    }
}

impl JsonSchema for IdentitySpec {
    fn schema_name() -> Cow<'static, str> {
        "Identity".into()
    }

    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        let kinds = [
            generator.subschema_for::<api_key::Options>(),
            generator.subschema_for::<introspection::Options>(),
            generator.subschema_for::<jwt::Options>(),
        ];
        json_schema!({"description": "A way to prove who is calling.", "oneOf": kinds})
    }
}

/// Who calls, and how they are known.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(rename = "Consumer")]
pub struct ConsumerSpec {
    /// Its name; upstreams are told it.
    pub name: Name,
    /// Groups it belongs to.
    #[serde(default)]
    pub groups: Vec<Name>,
    /// The plan that says how much it may; `plan_limits` enforces it.
    #[serde(default)]
    pub plan: Option<Name>,
    /// Claims by which it is known; any one is enough.
    #[serde(default, rename = "match")]
    pub matches: Vec<MatchSpec>,
    /// What it proves itself with; several at a time let one follow the other.
    #[serde(default)]
    pub credentials: Vec<CredentialSpec>,
}

/// A claim by which a consumer is known.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(rename = "ConsumerMatch")]
pub struct MatchSpec {
    /// The identity that verifies the claim, of type `jwt` or `introspection`.
    pub identity: Name,
    /// The claim's name.
    pub claim: String,
    /// Its value, exactly; numbers and booleans as text.
    pub value: String,
}

/// What a consumer proves itself with.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(rename = "Credential")]
pub struct CredentialSpec {
    /// What it is; there are `api_key`.
    #[serde(rename = "type")]
    pub kind: CredentialKind,
    /// What logs call it; unique for the consumer.
    pub id: Name,
    /// The identity it is for; needed only if there are several of its type.
    #[serde(default)]
    pub identity: Option<Name>,
    /// SHA-256 of the key, as in `sha256:` and 64 hexadecimal digits; make keys of at least 128 random bits.
    pub hash: KeyHash,
    /// When it ends; never by default.
    #[serde(default)]
    pub expires: Option<Date>,
}

/// What a credential is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum CredentialKind {
    /// A key, kept as its hash.
    ApiKey,
}
