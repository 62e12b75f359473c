//! What the door knows of a listener.

use std::sync::Arc;

use crate::config::Address;

/// A bound address with the name that documents and metrics use for it.
#[derive(Clone, Debug)]
pub struct Listener {
    /// Position in the document; what [`ConnFacts`](super::ConnFacts) carries.
    pub id: u16,
    /// The name the user gave it.
    pub name: Arc<str>,
    /// Where it listens.
    pub address: Address,
    /// Whether clients may speak HTTP/2 without TLS, by prior knowledge.
    pub h2c: bool,
    /// Whether each connection begins with a preamble of the PROXY protocol, from a trusted proxy.
    pub proxied: bool,
}
