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
