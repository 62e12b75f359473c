//! Backends whose addresses are in Eureka, as the user writes it.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tollhouse_filters::values::{Duration, Secret, Url};

use super::Text;
use crate::config::upstream::Tls;

/// `discovery: {type: eureka}`: the instances of an application in Eureka that are up.
#[derive(Debug, Clone, PartialEq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct EurekaDiscovery {
    /// What it is: `eureka`.
    #[serde(rename = "type")]
    _kind: EurekaType,
    /// Where Eureka is, with the path that `/apps` follows. Required. Example: `http://eureka.internal:8761/eureka`.
    pub address: Url,
    /// The application. Required. Example: `USERS`.
    pub app: Text,
    /// Whether the secure port of instances is used. Default: `false`. Example: `true`.
    #[serde(default)]
    pub secure: bool,
    /// Which address of instances is used: `ip` or `name`. Default: `ip`. Example: `name`.
    #[serde(default)]
    pub host: EurekaHost,
    /// Who asks (RFC 7617); needs `password`. Default: none. Example: `gateway`.
    #[serde(default)]
    pub username: Option<String>,
    /// What proves it; needs `username`. Default: none. Example: `${env:EUREKA_PASSWORD}`.
    #[serde(default)]
    pub password: Option<Secret>,
    /// How often it is asked, give or take a tenth; at least `1s`. Default: `30s`. Example: `10s`.
    #[serde(default = "thirty_seconds")]
    pub interval: Duration,
    /// TLS to the registry, if its URL is https. Default: `{}`. Example: `{ca: certs/registry-ca.pem}`.
    #[serde(default)]
    pub tls: Option<Tls>,
    /// Whether the last backends stay in use when the registry says that there are none. Default: `false`, requests are answered with 503 then. Example: `true`.
    #[serde(default)]
    pub keep_last_on_empty: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
enum EurekaType {
    Eureka,
}

/// Which address of an instance in Eureka is used.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum EurekaHost {
    /// `ipAddr`.
    #[default]
    Ip,
    /// `hostName`.
    Name,
}

fn thirty_seconds() -> Duration {
    Duration::from_secs(30)
}
