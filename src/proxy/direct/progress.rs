//! How far an exchange is.

use bytes::Bytes;

use super::held::Held;
use super::wire::Framing;

/// Where the request is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Upload {
    /// The client has more to send.
    Open,
    /// All of it was read.
    Over,
    /// The backend takes no more of it, but may answer.
    Refused,
}

/// Where the answer is.
#[derive(Default)]
pub(super) struct Down {
    /// On its way to the client.
    pub(super) out: Held,
    /// The head, as far as it came; before it is whole.
    pub(super) head: Vec<u8>,
    /// What follows the head; none before it is there.
    pub(super) body: Option<Body>,
    /// Read with the head, and not passed on yet.
    pub(super) early: Bytes,
    /// Something was written to the client and not flushed.
    pub(super) unflushed: bool,
    /// Bytes of content, to the client.
    pub(super) sent: u64,
}

/// The body of the answer.
pub(super) struct Body {
    pub(super) framing: Framing,
    /// Sent in chunks.
    pub(super) chunked: bool,
    pub(super) over: bool,
    /// More came than belongs to the answer.
    pub(super) stray: bool,
}
