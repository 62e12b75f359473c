//! Values that a store keeps for a while.

use std::time::Duration;

use async_trait::async_trait;
use redis::{Cmd, Value, cmd};
use tollhouse_filters::world::{Away, Records, TenantId};

use super::RedisStore;
use super::script::Keyed;

/// Keeps a value, and notes it in groups until it ends.
const PUT: &str = include_str!("put.lua");
/// Forgets a group with all of its values.
const REMOVE_GROUP: &str = include_str!("remove_group.lua");

fn eval(script: &str, keys: &[String]) -> Cmd {
    let mut command = cmd("EVAL");
    command.arg(script).arg(keys.len()).arg(keys);
    command
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX).max(1)
}

impl RedisStore {
    /// Runs a command; none if there is no answer.
    async fn ask(&self, command: Cmd) -> Result<Value, Away> {
        let Some(link) = self.shared.link.load_full() else { return Err(Away) };
        self.shared.answered(&link, link.ask(&command)).await.ok_or(Away)
    }

    /// Makes the keys of a scope.
    fn keys<T>(&self, scope: &str, make: impl FnOnce(&Keyed<'_>) -> T) -> T {
        let prefix = self.shared.options.prefix.to_string();
        make(&Keyed::new(&prefix, TenantId::default(), scope))
    }
}

#[async_trait]
impl Records for RedisStore {
    async fn get(&self, scope: &str, key: &[u8]) -> Result<Option<Vec<u8>>, Away> {
        let mut command = cmd("GET");
        command.arg(self.keys(scope, |keys| keys.record(key)));
        match self.ask(command).await? {
            Value::BulkString(value) => Ok(Some(value)),
            Value::Nil => Ok(None),
            _ => Err(Away),
        }
    }

    async fn put(
        &self,
        scope: &str,
        key: &[u8],
        value: &[u8],
        groups: &[Vec<u8>],
        lasts: Duration,
    ) -> Result<(), Away> {
        let keys: Vec<String> = self.keys(scope, |keys| {
            let groups = groups.iter().map(|group| keys.group(group));
            std::iter::once(keys.record(key)).chain(groups).collect()
        });
        let mut command = eval(PUT, &keys);
        command.arg(value).arg(millis(lasts));
        self.ask(command).await.map(drop)
    }

    async fn replace(&self, scope: &str, key: &[u8], value: &[u8], lasts: Duration) -> Result<bool, Away> {
        let mut command = cmd("SET");
        command.arg(self.keys(scope, |keys| keys.record(key))).arg(value);
        command.arg("XX").arg("PX").arg(millis(lasts));
        Ok(self.ask(command).await? == Value::Okay)
    }

    async fn remove(&self, scope: &str, key: &[u8]) -> Result<(), Away> {
        let mut command = cmd("DEL");
        command.arg(self.keys(scope, |keys| keys.record(key)));
        self.ask(command).await.map(drop)
    }

    async fn remove_group(&self, scope: &str, group: &[u8]) -> Result<(), Away> {
        let group = self.keys(scope, |keys| keys.group(group));
        self.ask(eval(REMOVE_GROUP, &[group])).await.map(drop)
    }

    async fn claim(&self, scope: &str, key: &[u8], lasts: Duration) -> Result<bool, Away> {
        let mut command = cmd("SET");
        command.arg(self.keys(scope, |keys| keys.record(key))).arg("1");
        command.arg("NX").arg("PX").arg(millis(lasts));
        Ok(self.ask(command).await? == Value::Okay)
    }
}
