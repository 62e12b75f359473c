//! One request on its way through Pingora's hooks.

use std::sync::Arc;
use std::time::{Duration, Instant};

use http::Version;
use tollhouse_filters::outcome::Reply;

use super::attempts::Attempts;
use super::replay::{Slot, WholeBody};
use crate::engine::{Connection, Exchange};
use crate::observe::InFlight;
use crate::upstream::Upstream;

/// One request on its way through Pingora's hooks.
#[derive(Default)]
pub struct Call {
    /// The request on its snapshot; there from the first hook on.
    pub(super) exchange: Option<Exchange>,
    /// The connection it came on.
    pub(super) connection: Option<Connection>,
    /// What came of the request phase, if it ran before: the upstream it goes to, or what it is answered.
    pub(super) decided: Option<Result<Arc<Upstream>, Reply>>,
    /// The protocol version the client speaks.
    pub(super) version: Version,
    /// Counts as in flight until it is dropped.
    pub(super) in_flight: Option<InFlight>,
    /// The attempts at backends.
    pub(super) attempts: Attempts,
    /// Its whole body, when a filter wanted that.
    pub(super) body: Option<WholeBody>,
    /// Where the real session comes back to, while it is wrapped in a replay.
    pub(super) replay: Option<Slot>,
    /// Bytes of a streamed request body that this attempt has seen so far.
    pub(super) body_seen: u64,
    /// Bytes that its filters made of them.
    pub(super) body_passed: u64,
    /// How long the whole body was waited for, before any backend was asked.
    pub(super) gathering: Duration,
    /// The client asked for a WebSocket; it has no body.
    pub(super) upgrade: bool,
    /// The client was told to go on with its body.
    pub(super) continued: bool,
    /// The answer is a stream of events, or is asked to be one: no total timeout ends it.
    pub(super) events: bool,
    /// Why the last attempt failed, for the log.
    pub(super) reason: Option<String>,
    /// Interim answers (1xx) that came so far.
    pub(super) interim: u32,
    /// When all of its answer was out, if that is known.
    pub(super) over: Option<Instant>,
    /// What to answer when Pingora comes back with an error of our making.
    pub(super) pending: Option<Reply>,
    /// The code of the problem it ended with.
    pub(super) problem: Option<&'static str>,
    /// The status of the problem that was its answer: in gRPC, the head has another one.
    pub(super) refusal: Option<u16>,
}

impl Call {
    /// The request on its snapshot.
    pub(super) fn exchange(&mut self) -> &mut Exchange {
        self.exchange.as_mut().expect("Pingora runs early_request_filter before every other hook")
    }
}
