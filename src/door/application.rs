//! What the door hands requests to.

use std::any::Any;
use std::sync::Arc;

use bytes::Bytes;
use pingora::apps::HttpServerApp;

use super::{DoorStream, Head, Http2Stream};
use crate::observe::redact::Redaction;

/// Who serves requests: an application of Pingora, and before it who may serve plain requests without it, which
/// costs several times as much.
pub trait Application: Send + Sync + 'static {
    /// The application of Pingora.
    type Pingora: HttpServerApp + Send + Sync + 'static;

    /// What takes every request that [`serve`](Self::serve) does not.
    fn pingora(&self) -> &Arc<Self::Pingora>;

    /// Serves the request whose head begins what is still to be read, or declines before anything of its
    /// body was read and anything was answered.
    ///
    /// Only requests that are [plain](Head::plain) come here.
    fn serve(&self, stream: &mut DoorStream, head: &Head) -> impl Future<Output = Served> + Send;

    /// Serves a request of HTTP/2, or declines before anything of its body was read and anything was answered, and
    /// gives what was found out so far.
    fn serve_http2(
        &self,
        stream: &mut Http2Stream,
    ) -> impl Future<Output = Result<(), Option<Box<dyn Any + Send>>>> + Send;

    /// What the listener with this [id](super::Listener::id) is called by now; none where that does not change.
    fn listener_name(&self, _: u16) -> Option<Arc<str>> {
        None
    }

    /// What the log hides by now of requests that cannot be read.
    fn hidden(&self) -> Vec<Redaction> {
        Vec::new()
    }
}

/// What became of a plain request.
pub enum Served {
    /// It is over.
    Over(Connection),
    /// It is Pingora's.
    Declined(Declined),
}

/// What becomes of a connection after a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Connection {
    /// It takes another request.
    Kept,
    /// The answer said that it ends.
    Closed,
    /// It ends before the answer does.
    BrokenOff,
}

/// A request that is handed on.
pub struct Declined {
    /// Its head as it came.
    pub head: Bytes,
    /// What was found out so far, for who serves it; see [`left_behind`](super::left_behind).
    pub left: Option<Box<dyn Any + Send>>,
}
