//! Why a store is away.

use std::fmt;
use std::io;
use std::time::Duration;

use redis::{ErrorKind, RedisError};

/// Longest text of another's that is shown.
const LONGEST: usize = 120;

/// Why a store is away; never with anything that was sent to it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Reason {
    /// No connection could be made.
    Unreachable(String),
    /// The connection ended.
    Closed,
    /// Answers took longer than this.
    Slow(Duration),
    /// It reads its data from disk.
    Loading,
    /// It takes no writes, as a replica.
    ReadOnly,
    /// Its memory is full.
    NoMemory,
    /// User or password are wrong or missing.
    Credentials,
    /// The user may not do what the gateway needs.
    Forbidden,
    /// It is part of a cluster, which needs keys of another kind.
    Cluster,
    /// It refuses with this code.
    Refuses(String),
    /// It answers something that is no answer to what was asked.
    Nonsense,
}

impl Reason {
    pub(super) fn unreachable(error: &io::Error) -> Self {
        Self::Unreachable(tame(&error.to_string()))
    }
}

impl From<RedisError> for Reason {
    fn from(error: RedisError) -> Self {
        let text = error.detail().unwrap_or_default();
        match (error.kind(), error.code().unwrap_or_default()) {
            (ErrorKind::Io, _) => Self::Closed,
            (ErrorKind::AuthenticationFailed, _) | (_, "NOAUTH" | "WRONGPASS") => Self::Credentials,
            (_, "READONLY") => Self::ReadOnly,
            (_, "OOM") => Self::NoMemory,
            (_, "LOADING") => Self::Loading,
            (_, "NOPERM") => Self::Forbidden,
            (_, "MOVED" | "ASK" | "CROSSSLOT" | "CLUSTERDOWN") => Self::Cluster,
            // Before version 7, what happened in a script was told in the text alone.
            (_, "ERR") if text.contains("READONLY") => Self::ReadOnly,
            (_, "ERR") if text.contains("OOM") => Self::NoMemory,
            (_, "") => Self::Nonsense,
            (_, code) => Self::Refuses(tame(code)),
        }
    }
}

/// Another's words: one short line.
fn tame(text: &str) -> String {
    text.chars().filter(|c| !c.is_control()).take(LONGEST).collect()
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unreachable(error) => write!(f, "no connection: {error}"),
            Self::Closed => f.write_str("the connection ended"),
            Self::Slow(deadline) => write!(f, "no answer within {}ms", deadline.as_millis()),
            Self::Loading => f.write_str("it is loading its data"),
            Self::ReadOnly => f.write_str("it takes no writes, as a replica"),
            Self::NoMemory => f.write_str("its memory is full (`maxmemory`)"),
            Self::Credentials => f.write_str("it refuses the user or password, or wants one"),
            Self::Forbidden => f.write_str("the user may not run scripts on these keys (ACL)"),
            Self::Cluster => f.write_str("it is part of a cluster, which is not supported"),
            Self::Refuses(code) => write!(f, "it refuses: {code}"),
            Self::Nonsense => f.write_str("it does not speak Redis' protocol"),
        }
    }
}
