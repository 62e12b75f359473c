//! What a process and its successor say to each other: `Begun`; `Offer` and the sockets it names, `Prepared`; `Memory`
//! until the last, `Ready`; or `Failed` instead of any answer.
//!
//! Fields may be added; one that is missing has its default, so that versions understand each other.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use tollhouse_filters::world::{Revocation, StateEntry};

use crate::tls::TicketKeys;

/// What a successor is started with, besides the file; it finds the [`Offer`] on its standard input.
pub(crate) const TAKE_OVER: &str = "--take-over";
/// What the successor starts itself with once more, to be nobody's child.
pub(crate) const ORPHANED: &str = "--orphaned";

/// Entries of the filters' memory in one message.
pub(super) const BATCH: usize = 10_000;

/// What the successor begins with. As many sockets follow as have names here.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Offer {
    /// The names of listening sockets, in the order in which they follow.
    pub(super) sockets: Vec<String>,
    /// Keys of session tickets, by the listener's name and, further on, by its address: where a name and an
    /// address mean different listeners by now, the address counts.
    #[serde(default)]
    pub(super) tickets: Vec<(String, TicketKeys)>,
    /// The upgrade socket, which the successor takes over where its document names the same.
    #[serde(default)]
    pub(super) place: Option<PathBuf>,
}

/// What filters remember, asked for as late as possible.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Memory {
    pub(super) entries: Vec<StateEntry>,
    /// Tokens that no longer hold; all of them come at once.
    #[serde(default)]
    pub(super) revocations: Vec<Revocation>,
    /// Whether nothing follows.
    pub(super) last: bool,
}

/// How far the successor is.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Step {
    /// It is there.
    Begun {
        /// The process.
        pid: u32,
    },
    /// It would serve if it had the memory.
    Prepared,
    /// It serves.
    Ready,
    /// It cannot serve, and ends.
    Failed {
        /// Why.
        reason: String,
        /// Whether the document is to blame.
        configuration: bool,
    },
}
