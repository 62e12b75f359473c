//! What ends an exchange before its end, and how long it may take.

use std::time::{Duration, Instant};

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
