//! What a cache asked upstreams for in the place of a request.

use std::sync::Arc;
use std::time::Instant;

use super::Exchange;
use crate::upstream::call::Account;

/// What a cache asked upstreams for in the place of a request: in the metrics already, but not yet in the log.
#[derive(Debug, Default)]
pub struct Fetched {
    /// The attempts at backends.
    pub account: Account,
    /// The name of the upstream it went to.
    pub upstream: Option<Arc<str>>,
    /// That is another route's, since its own is left alone.
    pub diverted: bool,
    /// Why the last attempt failed.
    pub reason: Option<String>,
    /// When the answer was there: of what still comes in, the head.
    pub told: Option<Instant>,
}

impl Fetched {
    /// Notes where a fork of the request goes.
    pub fn goes(&mut self, fork: &Exchange) {
        self.upstream.clone_from(&fork.ctx.upstream);
        self.diverted = fork.diverted;
    }
}

impl Exchange {
    /// Takes for its own what a cache asked in its place.
    pub fn note_fetched(&mut self, fetched: Box<Fetched>) {
        self.ctx.upstream.clone_from(&fetched.upstream);
        self.diverted = fetched.diverted;
        self.fetched = Some(fetched);
    }
}
