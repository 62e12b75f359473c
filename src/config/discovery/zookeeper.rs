//! Backends whose addresses are in ZooKeeper, as the user writes it.

use std::fmt;

use schemars::JsonSchema;
use serde::Deserialize;
use tollhouse_filters::values::Scalar;

use super::registry;
use crate::config::upstream::Address;

registry! {
    /// `discovery: {type: zookeeper}`: backends that ZooKeeper knows, one for each child of a node. Needs a build with the
    /// feature `zookeeper`, and servers of version 3.6 or later. Credentials are of the scheme `digest`.
    pub struct ZookeeperDiscovery {
        /// What it is: `zookeeper`.
        #[serde(rename = "type")]
        _kind: ZookeeperType,
        /// The servers of the ensemble; another one is asked when one fails. Required. Example: `["zk-1.internal:2181", "zk-2.internal:2181"]`.
        pub servers: Vec<Address>,
        /// The node whose children are the backends. The data of a child is one of the forms that `etcd` has, or an instance of Curator's service discovery (`address`, `port`, `sslPort`, `enabled`); of a child without data, its name is `HOST:PORT`. Required. Example: `/services/users`.
        pub path: NodePath,
        /// The node that paths begin at. Default: none, the root. Example: `/prod`.
        #[serde(default)]
        pub chroot: Option<NodePath>,
    } with login
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
enum ZookeeperType {
    Zookeeper,
}

/// The path of a node other than the root.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodePath(Box<str>);

impl NodePath {
    /// The path.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl Scalar for NodePath {
    const EXPECTED: &'static str = "the path of a node such as `/services/users`";
    const EXAMPLE: &'static str = "/services/users";

    // As the programmer's guide of ZooKeeper has it, "The ZooKeeper Data Model".
    fn read(text: &str) -> Option<Self> {
        let is_name = |name: &str| !["", ".", ".."].contains(&name) && !name.chars().any(char::is_control);
        let names = text.strip_prefix('/')?;
        names.split('/').all(is_name).then(|| Self(text.into()))
    }
}

tollhouse_filters::scalar!(NodePath);

impl fmt::Display for NodePath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_has_names_between_slashes() {
        for good in ["/a", "/services/users", "/a b/c.d"] {
            assert!(NodePath::read(good).is_some(), "{good}");
        }
        for bad in ["", "/", "a", "/a/", "//a", "/a/../b", "/./a", "/a\0", "/a\n"] {
            assert!(NodePath::read(bad).is_none(), "{bad:?}");
        }
    }
}
