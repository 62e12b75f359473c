//! What a filter can answer.

use std::fmt;

use bytes::Bytes;
use pingora_http::ResponseHeader;

use crate::caching::Ask;
use crate::problem::Problem;
use crate::world::ClientBody;

/// What a request-phase filter decides.
#[derive(Debug)]
pub enum Outcome {
    /// The request goes on to the next step.
    Continue,
    /// The request ends here with this answer, which still passes the entered response filters.
    Respond(Reply),
    /// Only in the request phase: the rest of the list and the action are behind a cache, which answers if it can.
    Cache(Box<Ask>),
}

/// An answer of the gateway's own.
#[derive(Debug)]
pub enum Reply {
    /// A registered error answer; rendered as `application/problem+json` or for gRPC.
    Problem(Box<Problem>),
    /// A complete message.
    Message(Box<Message>),
}

impl From<Problem> for Reply {
    fn from(problem: Problem) -> Self {
        Self::Problem(Box::new(problem))
    }
}

impl Reply {
    /// A complete answer with a body held in memory.
    #[must_use]
    pub fn message(head: ResponseHeader, body: impl Into<Bytes>) -> Self {
        Self::Message(Box::new(Message { head, body: Body::Bytes(body.into()) }))
    }

    /// HTTP status of the answer.
    #[must_use]
    pub fn status(&self) -> u16 {
        match self {
            Self::Problem(problem) => problem.status(),
            Self::Message(message) => message.head.status.as_u16(),
        }
    }
}

impl From<Reply> for Outcome {
    fn from(reply: Reply) -> Self {
        Self::Respond(reply)
    }
}

impl From<Problem> for Outcome {
    fn from(problem: Problem) -> Self {
        Self::Respond(problem.into())
    }
}

/// A complete answer: a head and a body.
#[derive(Debug)]
pub struct Message {
    /// Status and fields; framing fields are written by the core.
    pub head: ResponseHeader,
    /// The body.
    pub body: Body,
}

/// The body of an answer of the gateway's own.
pub enum Body {
    /// All of it.
    Bytes(Bytes),
    /// Pieces as they come, written without buffering.
    Stream(Box<dyn ClientBody>),
}

impl fmt::Debug for Body {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Bytes(bytes) => write!(f, "Bytes({})", bytes.len()),
            Self::Stream(_) => f.write_str("Stream"),
        }
    }
}

/// Whether an answer with this head serves what was asked for. A call of gRPC that is refused begins with 200 all the
/// same, and says so beside it (gRPC over HTTP/2, Responses: Trailers-Only).
pub(crate) fn serves(head: &ResponseHeader) -> bool {
    head.status.as_u16() < 400 && head.headers.get("grpc-status").is_none_or(|status| status == "0")
}

/// Why a filter could not do its work, by whose fault.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum FilterError {
    /// Something the filter depends on is down: 503 `filter-unavailable`.
    Unavailable(String),
    /// As `Unavailable`, and it is known when it is worth to try again.
    Later {
        /// What is down.
        what: String,
        /// Seconds until then, at least 1.
        seconds: u64,
    },
    /// A fault of the filter itself: 500 `internal`.
    Internal(String),
}

impl fmt::Display for FilterError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unavailable(what) | Self::Later { what, .. } => write!(f, "unavailable: {what}"),
            Self::Internal(what) => write!(f, "fault: {what}"),
        }
    }
}

impl std::error::Error for FilterError {}

impl From<Box<pingora_error::Error>> for FilterError {
    fn from(error: Box<pingora_error::Error>) -> Self {
        Self::Internal(error.to_string())
    }
}
