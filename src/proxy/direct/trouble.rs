//! What ends an exchange before its end, and how long it may take.

use std::fmt;
use std::time::{Duration, Instant};

use tollhouse_filters::outcome::Reply;
use tollhouse_filters::problem::{self, Problem};

/// Why a request was not answered by its upstream, or not wholly.
pub(super) enum Failure {
    /// It is answered by us.
    Refused(Reply),
    /// A filter answers, as it does not let the body pass.
    Body(Reply),
    /// No connection could be made.
    Connect(Unconnected),
    /// The backend closed the connection before it said anything.
    Silence(Silence),
    /// The exchange broke.
    Trouble(Trouble),
    /// There is another attempt instead of its answer.
    Again,
    /// Our fault.
    Internal,
}

/// Why there is no connection.
#[derive(Debug)]
pub(super) enum Unconnected {
    /// What the system says.
    Error(std::io::Error),
    /// A timeout is over.
    Late(&'static str),
}

/// What a connection was that was closed without a word.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Silence {
    /// One that took nothing of the request.
    Unsent,
    /// One that was kept from an earlier request.
    Stale,
    /// One that was made for this request.
    New,
}

/// What ended an exchange before its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Trouble {
    /// The client went away, or what it sent broke a rule, which its stream knows.
    Client,
    /// The client keeps the gateway waiting for its body.
    SlowClient,
    /// The client was waited for when the time for all of it was over.
    LateClient,
    /// The backend closed the connection before it said anything.
    Unanswered,
    /// The backend broke the answer off.
    Cut,
    /// What the backend says is not HTTP.
    Protocol(&'static str),
    /// The backend takes too long: which timeout is over.
    Timeout(&'static str),
    /// A filter does not let the answer pass,
    Filter,
    /// or the request: it has an answer instead.
    Refused,
}

impl Trouble {
    /// Whether it is no fault of the backend's.
    pub(super) const fn is_of_client(self) -> bool {
        matches!(self, Self::Client | Self::SlowClient | Self::LateClient)
    }

    /// What the log says of it.
    pub(super) const fn reason(self) -> &'static str {
        match self {
            Self::Client => "the client went away",
            Self::SlowClient => "the client is too slow",
            Self::LateClient => "the total timeout passed while the client was waited for",
            Self::Unanswered => "the upstream closed the connection before it answered",
            Self::Cut => "the upstream broke its answer off",
            Self::Filter => "a response filter failed",
            Self::Refused => "a filter refused the request's body",
            Self::Protocol(reason) | Self::Timeout(reason) => reason,
        }
    }
}

impl fmt::Display for Unconnected {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Error(error) => error.fmt(f),
            Self::Late(_) => f.write_str("timed out"),
        }
    }
}

impl Failure {
    /// By whose fault, for the log; what was answered says more.
    pub(super) const fn code(&self) -> &'static str {
        match self {
            Self::Trouble(trouble) if trouble.is_of_client() => problem::CLIENT_CLOSED.code,
            Self::Trouble(Trouble::Filter)
            | Self::Refused(_)
            | Self::Body(_)
            | Self::Internal
            | Self::Again => "internal",
            Self::Connect(_) | Self::Silence(_) | Self::Trouble(_) => "upstream-protocol",
        }
    }
}

impl From<Trouble> for Failure {
    fn from(trouble: Trouble) -> Self {
        Self::Trouble(trouble)
    }
}

impl From<Problem> for Failure {
    fn from(problem: Problem) -> Self {
        Self::Refused(problem.into())
    }
}

/// How long is waited.
#[derive(Debug, Clone, Copy)]
pub(super) struct Waits {
    /// For the backend to take or send something.
    pub(super) idle: Option<Duration>,
    /// For all of it.
    pub(super) deadline: Option<Instant>,
    /// For the head of the answer,
    pub(super) head: Option<Instant>,
    /// or as long from when the client has sent everything.
    pub(super) per_try: Option<Duration>,
}
