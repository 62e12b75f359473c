//! Backends whose addresses are in Eureka, as the user writes it.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tollhouse_filters::values::{Duration, Url};

use super::{Text, registry};

registry! {
    /// `discovery: {type: eureka}`: the instances of an application in Eureka that are up. Credentials are sent
    /// as RFC 7617 has it.
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
        /// How often it is asked, give or take a tenth; at least `1s`. Default: `30s`. Example: `10s`.
        #[serde(default = "thirty_seconds")]
        pub interval: Duration,
    } with login, tls, interval
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
