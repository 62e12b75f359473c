//! What a store remembers for gateways that share it, beside budgets: values for a while, such as sessions.

use std::time::Duration;

use async_trait::async_trait;

use super::Away;

/// Values that gateways share, each by its key within a scope, within a deadline of the store's own.
#[async_trait]
pub trait Records: Send + Sync {
    /// The value of a key.
    async fn get(&self, scope: &str, key: &[u8]) -> Result<Option<Vec<u8>>, Away>;

    /// Keeps a value under a key and in these groups, for so long.
    async fn put(
        &self,
        scope: &str,
        key: &[u8],
        value: &[u8],
        groups: &[Vec<u8>],
        lasts: Duration,
    ) -> Result<(), Away>;

    /// Another value in the place of one that is still there, for so long; whether there was one.
    async fn replace(&self, scope: &str, key: &[u8], value: &[u8], lasts: Duration) -> Result<bool, Away>;

    /// Forgets the value of a key.
    async fn remove(&self, scope: &str, key: &[u8]) -> Result<(), Away>;

    /// Forgets all values of a group.
    async fn remove_group(&self, scope: &str, group: &[u8]) -> Result<(), Away>;

    /// Whether nobody else has claimed this key for the time that lasts; the caller has, then.
    async fn claim(&self, scope: &str, key: &[u8], lasts: Duration) -> Result<bool, Away>;
}
