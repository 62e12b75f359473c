//! Backends whose addresses are in Nacos, as the user writes it.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tollhouse_filters::values::{Duration, Url};

use super::{Text, registry};

registry! {
    /// `discovery: {type: nacos}`: the instances of a service in Nacos that are healthy and enabled.
    pub struct NacosDiscovery {
        /// What it is: `nacos`.
        #[serde(rename = "type")]
        _kind: NacosType,
        /// Where Nacos is, with its context path. Required. Example: `http://nacos.internal:8848/nacos`.
        pub address: Url,
        /// The service. Required. Example: `users`.
        pub service: Text,
        /// Its group. Default: `DEFAULT_GROUP`. Example: `shop`.
        #[serde(default = "default_group")]
        pub group: String,
        /// The id of its namespace. Default: `public`. Example: `7e1b3a5c-production`.
        #[serde(default)]
        pub namespace: Option<String>,
        /// The clusters whose instances count. Default: `[]`, all. Example: `[eu]`.
        #[serde(default)]
        pub clusters: Vec<String>,
        /// The version of the interface: `v1`, `v2` (of Nacos 2.2 and later) or `v3` (of Nacos 3). Default: `v2`. Example: `v3`.
        #[serde(default)]
        pub api: NacosApi,
        /// How often it is asked, give or take a tenth; at least `1s`. Default: `10s`. Example: `30s`.
        #[serde(default = "ten_seconds")]
        pub interval: Duration,
    } with login, tls, interval
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
enum NacosType {
    Nacos,
}

/// The version of Nacos' interface.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum NacosApi {
    /// Of Nacos 1 and later.
    V1,
    /// Of Nacos 2.2 and later.
    #[default]
    V2,
    /// Of Nacos 3 and later.
    V3,
}

fn default_group() -> String {
    "DEFAULT_GROUP".to_owned()
}

fn ten_seconds() -> Duration {
    Duration::from_secs(10)
}
