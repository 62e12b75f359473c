//! Backends whose addresses are in etcd, as the user writes it.

use schemars::JsonSchema;
use serde::Deserialize;
use tollhouse_filters::values::{Secret, Url};

use crate::config::upstream::Tls;

/// `discovery: {type: etcd}`: backends that etcd knows, one for each key that begins with a prefix. Spoken to by its
/// JSON gateway, which servers of version 3.4 and later have.
#[derive(Debug, Clone, PartialEq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct EtcdDiscovery {
    /// What it is: `etcd`.
    #[serde(rename = "type")]
    _kind: EtcdType,
    /// The servers of the cluster, all known alike; the next one is asked when one fails. Required. Example:
    /// `["https://etcd-1.internal:2379", "https://etcd-2.internal:2379"]`.
    pub endpoints: Vec<Url>,
    /// What the keys of the backends begin with; what others have in common with it belongs to them, so it should
    /// end in `/`. A value is `HOST:PORT`, or a JSON object: `{"host": .., "port": .., "weight": .., "priority": ..,
    /// "zone": ..}`, or as gRPC's resolvers for etcd have it, `{"Addr": "HOST:PORT", "Metadata": {"weight": ..}}`.
    /// Required. Example: `/services/users/`.
    pub prefix: String,
    /// Who the gateway is to etcd; needs `password`. Default: none, nobody in particular. Example: `gateway`.
    #[serde(default)]
    pub username: Option<String>,
    /// What proves it. Default: none. Example: `${env:ETCD_PASSWORD}`.
    #[serde(default)]
    pub password: Option<Secret>,
    /// How servers with `https` are known, and the gateway to them. Default: by the system's authorities. Example:
    /// `{ca: certs/etcd-ca.pem}`.
    #[serde(default)]
    pub tls: Option<Tls>,
    /// Whether the last backends stay in use when the registry says that there are none. Default: `false`, requests are answered with 503 then. Example: `true`.
    #[serde(default)]
    pub keep_last_on_empty: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
enum EtcdType {
    Etcd,
}
