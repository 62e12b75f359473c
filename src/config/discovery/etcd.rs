//! Backends whose addresses are in etcd, as the user writes it.

use schemars::JsonSchema;
use serde::Deserialize;
use tollhouse_filters::values::Url;

use super::registry;

registry! {
    /// `discovery: {type: etcd}`: backends that etcd knows, one for each key that begins with a prefix. Spoken to by its
    /// JSON gateway, which servers of version 3.4 and later have.
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
    } with login, tls
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
enum EtcdType {
    Etcd,
}
