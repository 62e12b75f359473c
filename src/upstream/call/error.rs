//! Why a call failed, by whose fault.

use std::fmt;
use std::future::Future;

use pingora::ErrorType;
use tokio::time::{Instant, timeout_at};
use tollhouse_filters::problem::{self, Problem};

/// Why a call failed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CallError {
    /// No backend can get requests: none is resolved and healthy, or all have weight 0. Nobody was asked.
    NoBackend,
    /// No connection could be made, TLS included. Nothing was sent.
    Connect(Box<str>),
    /// The upstream took too long.
    Timeout(Waiting),
    /// The upstream broke the protocol, or off in the middle.
    Protocol(Box<str>),
    /// The upstream's head or body is larger than allowed.
    TooLarge,
    /// The request cannot be sent as it is: our fault or the configuration's.
    Request(Box<str>),
}

/// What a call was waiting for when its time was over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Waiting {
    /// The connection.
    Connect,
    /// The upstream to take more of the request.
    Write,
    /// More of the response.
    Read,
    /// The head of the response, as long as one attempt may take to get it.
    Try,
    /// Anything: the limit on the whole call.
    Total,
}

impl CallError {
    /// The status that answers a client for this error (RFC 9110 sections 15.6.1, 15.6.3 to 15.6.5).
    pub const fn status(&self) -> u16 {
        match self {
            Self::NoBackend => 503,
            Self::Timeout(_) => 504,
            Self::Connect(_) | Self::Protocol(_) | Self::TooLarge => 502,
            Self::Request(_) => 500,
        }
    }

    /// What a client is answered for it.
    pub fn problem(&self) -> Problem {
        match self {
            Self::NoBackend => Problem::new(&problem::NO_BACKEND),
            Self::Timeout(waiting) => Problem::new(&problem::UPSTREAM_TIMEOUT).detail(waiting.as_str()),
            Self::Connect(_) => Problem::new(&problem::UPSTREAM_UNREACHABLE),
            Self::Protocol(_) | Self::TooLarge => Problem::new(&problem::UPSTREAM_PROTOCOL),
            Self::Request(_) => Problem::new(&problem::INTERNAL),
        }
    }

    pub(super) fn connecting(error: &pingora::Error) -> Self {
        match error.etype() {
            ErrorType::ConnectTimedout | ErrorType::TLSHandshakeTimedout => Self::Timeout(Waiting::Connect),
            _ => Self::Connect(describe(error)),
        }
    }

    pub(super) fn exchanging(error: &pingora::Error) -> Self {
        match error.etype() {
            ErrorType::ReadTimedout => Self::Timeout(Waiting::Read),
            ErrorType::WriteTimedout => Self::Timeout(Waiting::Write),
            _ => Self::Protocol(describe(error)),
        }
    }
}

impl fmt::Display for CallError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoBackend => f.write_str("no backend is available"),
            Self::Connect(reason) => write!(f, "cannot connect to the upstream: {reason}"),
            Self::Timeout(waiting) => write!(f, "the upstream took too long: {waiting}"),
            Self::Protocol(reason) => write!(f, "the upstream broke off or broke the protocol: {reason}"),
            Self::TooLarge => f.write_str("the upstream's response is larger than allowed"),
            Self::Request(reason) => write!(f, "the request cannot be sent: {reason}"),
        }
    }
}

impl std::error::Error for CallError {}

impl Waiting {
    /// Which timeout it was.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Connect => "connect timeout",
            Self::Write => "write timeout",
            Self::Read => "read timeout",
            Self::Try => "per-try timeout",
            Self::Total => "total timeout",
        }
    }
}

impl fmt::Display for Waiting {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// The future's outcome, or [`Waiting::Total`] once the deadline has passed.
pub(super) async fn within<T>(
    deadline: Option<Instant>,
    future: impl Future<Output = Result<T, CallError>>,
) -> Result<T, CallError> {
    match deadline {
        Some(deadline) => {
            timeout_at(deadline, future).await.unwrap_or(Err(CallError::Timeout(Waiting::Total)))
        }
        None => future.await,
    }
}

/// When an attempt has to be at the head of its answer, and what is over then.
pub(super) type Limit = (std::time::Instant, Waiting);

/// The future's outcome, or that this limit was reached.
pub(super) async fn by<T, E: From<CallError>>(
    limit: Option<Limit>,
    future: impl Future<Output = Result<T, E>>,
) -> Result<T, E> {
    match limit {
        Some((at, what)) => {
            timeout_at(at.into(), future).await.unwrap_or_else(|_| Err(CallError::Timeout(what).into()))
        }
        None => future.await,
    }
}

/// The kind of error and what lies behind it, without the settings that Pingora adds in between.
pub(crate) fn describe(error: &pingora::Error) -> Box<str> {
    let kind = error.etype().as_str();
    let mut inner = error;
    while let Some(next) = inner.cause.as_deref().and_then(|cause| cause.downcast_ref::<pingora::BError>()) {
        inner = next;
    }
    if let (ErrorType::TLSHandshakeFailure, Some(context)) = (inner.etype(), &inner.context) {
        // What is wrong with a certificate, between the names of the parts that say so and of the server.
        let text = context.as_str().split(", SNI: ").next().unwrap_or_default();
        let text = text.rsplit(" cause: ").next().unwrap_or(text);
        return format!("{kind}: {text}").into();
    }
    let mut cause: Option<&(dyn std::error::Error + 'static)> =
        inner.cause.as_deref().map(|cause| cause as _);
    while let Some(error) = cause {
        if let Some(error) = error.downcast_ref::<std::io::Error>() {
            return format!("{kind}: {error}").into();
        }
        cause = error.source();
    }
    kind.into()
}
