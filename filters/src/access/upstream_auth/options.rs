//! What users write about how the gateway proves to an upstream who it is.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::identity::client::ClientAuth;
use crate::values::{ByteSize, Duration, FieldName, Secret, Url};

/// How the gateway proves to the upstream who it is: one of these.
#[derive(Debug, Clone, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
#[schemars(rename = "UpstreamAuthOptions")]
pub struct Options {
    /// A token of the gateway's own, by client credentials (RFC 6749 s4.4).
    pub client_credentials: Option<ClientCredentials>,
    /// A user and a password (RFC 7617).
    pub basic: Option<Basic>,
    /// A field with a value that is always the same.
    pub header: Option<Field>,
    /// A signature of AWS, version 4.
    pub aws: Option<Aws>,
}

/// A token of the gateway's own, by client credentials (RFC 6749 s4.4).
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ClientCredentials {
    /// Where tokens are given out; https, except on this machine or through an `upstream`.
    pub token_url: Url,
    /// The upstream through which it is asked; by default that is the host of the URL itself.
    #[serde(default)]
    pub upstream: Option<String>,
    /// Who asks.
    pub client_id: String,
    /// What proves it.
    pub client_secret: Secret,
    /// How that is shown (RFC 6749 s2.3.1).
    #[serde(default)]
    pub(super) client_auth: ClientAuth,
    /// Scopes that are asked for.
    #[serde(default)]
    pub scopes: Vec<String>,
    /// Further parameters of the request, such as `audience` or `resource`.
    #[serde(default)]
    pub parameters: BTreeMap<String, String>,
    /// Longest wait for a token.
    #[serde(default = "five_seconds")]
    pub timeout: Duration,
    /// How long a token is used whose `expires_in` is not told.
    #[serde(default = "five_minutes")]
    pub default_ttl: Duration,
}

/// A user and a password (RFC 7617).
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(rename = "UpstreamBasic")]
pub struct Basic {
    /// Who it is; without a colon.
    pub username: String,
    /// What proves it.
    pub password: Secret,
}

/// A field with a value that is always the same.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(rename = "UpstreamField")]
pub struct Field {
    /// The field, such as `x-api-key`.
    pub name: FieldName,
    /// What it says, such as a key.
    pub value: Secret,
}

/// A signature of AWS, version 4.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(rename = "UpstreamAws")]
pub struct Aws {
    /// The region, such as `eu-central-1`.
    pub region: String,
    /// The service as signatures name it, such as `s3`, `execute-api` or `lambda`.
    pub service: String,
    /// The id of the key.
    pub access_key_id: String,
    /// The key.
    pub secret_access_key: Secret,
    /// The token that belongs to a temporary key.
    #[serde(default)]
    pub session_token: Option<Secret>,
    /// Whether the signature covers the body.
    #[serde(default)]
    pub payload: Payload,
    /// The largest body that is signed; a larger one is answered 413.
    #[serde(default = "one_mib")]
    pub max_body: ByteSize,
    /// Fields of requests that begin with `x-amz-` and may go on: names, or beginnings with `*`. Others are removed.
    #[serde(default = "metadata")]
    pub client_fields: Vec<String>,
}

/// Whether a signature covers the body.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
#[schemars(rename = "AwsPayload")]
pub enum Payload {
    /// It does, so the body is waited for and held in memory.
    #[default]
    Signed,
    /// It does not, so bodies stream (`UNSIGNED-PAYLOAD`); S3 takes that over https.
    Unsigned,
}

fn five_seconds() -> Duration {
    Duration::from_secs(5)
}

fn five_minutes() -> Duration {
    Duration::from_secs(300)
}

fn one_mib() -> ByteSize {
    ByteSize::from_mib(1)
}

fn metadata() -> Vec<String> {
    vec!["x-amz-meta-*".to_owned()]
}
