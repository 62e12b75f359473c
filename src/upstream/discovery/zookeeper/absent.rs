//! Stands for ZooKeeper in a build without it: the document is refused, so that nobody is ever followed.

use crate::config::discovery::ZookeeperDiscovery as Written;
use crate::upstream::discovery::{Directory, Failed, Tell, World};

/// What is missing.
const MISSING: &str =
    "this build has no ZooKeeper: it needs the feature `zookeeper` (`cargo build --features zookeeper`)";

/// Nobody.
pub(super) struct Zookeeper;

impl Zookeeper {
    pub(super) fn new(_: &Written, _: World) -> Self {
        Self
    }
}

/// Refuses it.
///
/// # Errors
/// Always.
pub(super) fn check(_: &Written) -> Result<(), Vec<(String, String)>> {
    Err(vec![("type".to_owned(), MISSING.to_owned())])
}

#[async_trait::async_trait]
impl Directory for Zookeeper {
    async fn follow(&self, _: &Tell) -> Failed {
        MISSING.into()
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_build_without_zookeeper_refuses_it_and_says_what_is_missing() {
        let written = json!({"type": "zookeeper", "servers": ["zk.test:2181"], "path": "/services/users"});
        let problems = check(&serde_json::from_value(written).unwrap()).unwrap_err();
        let [(key, message)] = problems.as_slice() else { panic!("{problems:?}") };
        assert_eq!(key, "type");
        assert!(message.contains("cargo build --features zookeeper"), "{message}");
    }
}
