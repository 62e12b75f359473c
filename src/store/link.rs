//! One connection, with the script loaded.

use std::sync::atomic::{AtomicU32, Ordering::Relaxed};

use redis::aio::{ConnectionLike, MultiplexedConnection};
use redis::{Cmd, ErrorKind, RedisResult, ServerErrorKind, Value, from_redis_value};

use super::Reason;
use super::script::{self, Demand};

/// Deadlines missed in a row after which a connection is given up: a store that hangs costs no more
/// requests their time than come until then.
const MISSES: u32 = 3;

/// A connection that requests share.
pub(super) struct Link {
    connection: MultiplexedConnection,
    /// What the server calls the script.
    sha: String,
    /// Deadlines missed since the last answer.
    misses: AtomicU32,
}

impl Link {
    /// Loads the script over a connection.
    pub(super) async fn new(mut connection: MultiplexedConnection) -> Result<Self, Reason> {
        let loaded = connection.req_packed_command(&script::load()).await?;
        let sha = from_redis_value(loaded.extract_error()?).map_err(|_| Reason::Nonsense)?;
        Ok(Self { connection, sha, misses: AtomicU32::new(0) })
    }

    /// Runs the script: one round trip, or two if the server has lost it.
    pub(super) async fn decide(&self, demand: &Demand<'_, '_, '_>) -> RedisResult<Value> {
        let mut connection = self.connection.clone();
        let answer = connection.req_packed_command(&demand.by_digest(&self.sha)).await;
        match answer.and_then(Value::extract_error) {
            Err(error) if error.kind() == ErrorKind::Server(ServerErrorKind::NoScript) => {
                let answer = connection.req_packed_command(&demand.in_full()).await;
                answer.and_then(Value::extract_error)
            }
            answer => answer,
        }
    }

    /// Gives back units of the quota with this key.
    pub(super) async fn give_back(&self, key: &str, slot: u64, cost: u64) -> RedisResult<()> {
        self.ask(&script::give_back(key, slot, cost)).await.map(drop)
    }

    /// Runs a command.
    pub(super) async fn ask(&self, command: &Cmd) -> RedisResult<Value> {
        let mut connection = self.connection.clone();
        connection.req_packed_command(command).await.and_then(Value::extract_error)
    }

    pub(super) fn answered(&self) {
        // Written only where it matters: this is shared by all threads.
        if self.misses.load(Relaxed) != 0 {
            self.misses.store(0, Relaxed);
        }
    }

    /// Counts a missed deadline; whether it is one too many.
    pub(super) fn missed(&self) -> bool {
        self.misses.fetch_add(1, Relaxed) + 1 >= MISSES
    }
}
