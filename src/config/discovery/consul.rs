//! Backends whose addresses are in Consul, as the user writes it.

use schemars::JsonSchema;
use serde::Deserialize;
use tollhouse_filters::values::{Duration, Scalar, Secret, Url};

use super::{Text, registry};

registry! {
    /// `discovery: {type: consul}`: the healthy instances of a service in Consul.
    pub struct ConsulDiscovery {
        /// What it is: `consul`.
        #[serde(rename = "type")]
        _kind: ConsulType,
        /// Where an agent or a server is. Default: `http://127.0.0.1:8500`. Example: `https://consul.internal:8501`.
        #[serde(default = "local_agent")]
        pub address: Url,
        /// The service. Required. Example: `users`.
        pub service: Text,
        /// Tags that an instance must have, all of them. Default: `[]`. Example: `[v2]`.
        #[serde(default)]
        pub tags: Vec<String>,
        /// The datacenter. Default: that of the agent. Example: `eu-1`.
        #[serde(default)]
        pub datacenter: Option<String>,
        /// The namespace. Default: that of the token. Example: `shop`.
        #[serde(default)]
        pub namespace: Option<String>,
        /// What proves who asks; needs `service:read` and `node:read`. Default: none. Example: `${env:CONSUL_TOKEN}`.
        #[serde(default)]
        pub token: Option<Secret>,
        /// Whether all checks of an instance must pass; else those with warnings get requests too, by their weight for that. Default: `true`. Example: `false`.
        #[serde(default = "yes")]
        pub passing_only: bool,
        /// How long a question is held back while nothing changes, from `1s` to `10m`. Default: `5m`. Example: `1m`.
        #[serde(default = "five_minutes")]
        pub wait: Duration,
    } with tls
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
enum ConsulType {
    Consul,
}

fn yes() -> bool {
    true
}

fn local_agent() -> Url {
    Url::read("http://127.0.0.1:8500").expect("a URL")
}

fn five_minutes() -> Duration {
    Duration::from_secs(300)
}
