//! What the user wrote: plain data, strict, no I/O.

mod address;
mod admin;
pub mod balance;
mod cache;
pub mod circuit_breaker;
pub mod concurrency;
mod consumers;
pub mod discovery;
pub mod dns;
pub mod health;
pub mod hedge;
mod listener;
pub mod observability;
pub mod outlier;
mod overload;
pub mod retries;
mod route;
mod schema;
mod server;
mod service;
mod split;
pub mod store;
mod tests;
pub mod tls;
pub mod upstream;

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::Deserialize;
use tollhouse_filters::identity::IdentitySpec;
use tollhouse_filters::plan::PlanSpec;
use tollhouse_filters::spec::Item;

pub use self::overload::Overload;
pub use address::{Address, AddressError};
pub use admin::{Admin, AdminAddress};
pub use cache::{Cache, CacheDisk, CacheFolder};
pub use consumers::{ConsumerFile, ConsumerList};
pub use dns::Dns;
pub use listener::{Listener, Protocol};
pub use observability::Observability;
pub use route::{Match, Route, RouteTimeouts};
pub use schema::schema;
pub use server::{Limits, QuotaFile, Server, Threads, UpgradeSocket};
pub use service::{ApiVersion, Brownout, Service, VersionSource, Versioning};
pub use split::{AbortIf, Force, Ramp, Split, Times};
pub use store::Store;
pub use tests::{Expect, Test, TestRequest};
pub use tls::ListenerTls;
pub use tollhouse_filters::values::Name;
pub use upstream::Upstream;

/// A configuration document: the main file and what it includes, merged.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Document {
    /// The version of the configuration language.
    pub version: Version,
    /// Further files, relative to this one; `*` in the last part stands for any name.
    #[serde(default)]
    pub include: Vec<String>,
    /// The process: threads, limits, trusted proxies.
    #[serde(default)]
    pub server: Server,
    /// Addresses that requests come in through.
    #[serde(default)]
    pub listeners: Vec<Listener>,
    /// Named groups of backends.
    #[serde(default)]
    pub upstreams: Vec<Upstream>,
    /// Places that several gateways share, such as a Redis for limits.
    #[serde(default)]
    pub stores: BTreeMap<Name, Store>,
    /// Ways to prove who is calling.
    #[serde(default)]
    pub identities: BTreeMap<Name, IdentitySpec>,
    /// Reusable, ordered lists of filters.
    #[serde(default)]
    pub chains: BTreeMap<Name, Vec<Item>>,
    /// Who calls, and how they are known.
    #[serde(default)]
    #[schemars(extend("default" = []))]
    pub consumers: ConsumerList,
    /// How much consumers may; the filter `plan_limits` enforces it.
    #[serde(default)]
    pub plans: BTreeMap<Name, PlanSpec>,
    /// APIs: what their routes share.
    #[serde(default)]
    pub services: Vec<Service>,
    /// What to do with which requests.
    #[serde(default)]
    pub routes: Vec<Route>,
    /// Logs and metrics.
    #[serde(default)]
    pub observability: Observability,
    /// The admin listener.
    #[serde(default)]
    pub admin: Admin,
    /// Requests with expected answers, run by `tollhouse test` and before a reload.
    #[serde(default)]
    pub tests: Vec<Test>,
}

/// The version of the configuration language: 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Version;

impl<'de> Deserialize<'de> for Version {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        match u64::deserialize(deserializer)? {
            1 => Ok(Self),
            _ => Err(serde::de::Error::custom("this program reads version 1")),
        }
    }
}

impl JsonSchema for Version {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "Version".into()
    }

    fn json_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
        schemars::json_schema!({"const": 1, "description": "The version of the configuration language."})
    }
}
