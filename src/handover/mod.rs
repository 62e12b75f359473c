//! How one process takes the place of another: what they say to each other, and where they are asked to.
//!
//! Nothing here knows what is handed over; [`server`](crate::server) does.

mod channel;
mod place;

use std::collections::HashMap;
use std::fmt;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use socket2::SockRef;

pub use channel::{Channel, pair};
pub(crate) use place::is_stale;
pub use place::{Beside, Place, PlaceError};

/// Listening sockets of the process before this one, by name; those that nobody takes are closed in the end.
#[derive(Debug, Default)]
pub struct Sockets(HashMap<String, OwnedFd>);

impl Sockets {
    /// Takes the socket of this name out.
    pub fn take(&mut self, name: &str) -> Option<OwnedFd> {
        self.0.remove(name)
    }

    /// What nobody took, and keeps this address from who wants it.
    pub(crate) fn holder(&self, wanted: SocketAddr) -> Option<Holder> {
        let mut held =
            self.0.values().filter_map(|socket| SockRef::from(socket).local_addr().ok()?.as_socket());
        held.find(|held| overlap(*held, wanted)).map(Holder)
    }
}

/// Whether the system lets only one of two sockets listen; a socket of all addresses of IPv6 has those of IPv4, too.
fn overlap(one: SocketAddr, other: SocketAddr) -> bool {
    let any = one.ip().is_unspecified() || other.ip().is_unspecified();
    one.port() == other.port() && (any || one.ip() == other.ip())
}

/// An address of the process before this one that nobody took over.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Holder(SocketAddr);

impl fmt::Display for Holder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let needed = "a change to an address that overlaps needs a restart";
        write!(f, "the running process listens on {}, and {needed}", self.0)
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
    /// The document of the gateway that is meant, an absolute path without links; any gateway is, where there is none.
    #[serde(default)]
    pub config: Option<PathBuf>,
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
