//! How one process takes the place of another: what they say to each other, and where they are asked to.
//!
//! Nothing here knows what is handed over; [`server`](crate::server) does.

mod channel;
mod place;

use std::collections::HashMap;
use std::os::fd::OwnedFd;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

pub use channel::{Channel, pair};
pub(crate) use place::is_stale;
pub use place::{Place, PlaceError};

/// Listening sockets of the process before this one, by name; those that nobody takes are closed in the end.
#[derive(Debug, Default)]
pub struct Sockets(HashMap<String, OwnedFd>);

impl Sockets {
    /// Takes the socket of this name out.
    pub fn take(&mut self, name: &str) -> Option<OwnedFd> {
        self.0.remove(name)
    }
}

impl FromIterator<(String, OwnedFd)> for Sockets {
    fn from_iter<I: IntoIterator<Item = (String, OwnedFd)>>(sockets: I) -> Self {
        Self(sockets.into_iter().collect())
    }
}

/// Asks a running gateway to have this program take its place.
#[derive(Debug, Serialize, Deserialize)]
pub struct Ask {
    /// The program to start, an absolute path.
    pub program: PathBuf,
}

/// What a running gateway answers.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Answer {
    /// The new process serves; this one finishes what is under way and ends.
    Replaced {
        /// The process that answers.
        old: u32,
        /// The process in its place.
        new: u32,
    },
    /// The new process did not come up, or was not started; this one serves on.
    Refused {
        /// Why.
        reason: String,
        /// Whether the configuration is to blame.
        configuration: bool,
    },
}
