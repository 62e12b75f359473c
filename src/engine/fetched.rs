//! What a cache asked upstreams for in the place of a request.

use std::sync::Arc;
use std::time::{Duration, Instant};

use http::Method;
use http::header::{IF_MODIFIED_SINCE, IF_NONE_MATCH, IF_RANGE, RANGE};
use pingora::http::RequestHeader;
use tollhouse_filters::caching::Ask;
use tollhouse_filters::context::EndedBy;
use tollhouse_filters::outcome::Reply;

use super::Exchange;
use super::intake::set_path_and_query;
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
    /// The problem that is the answer, by its code.
    pub problem: Option<&'static str>,
    /// The step behind the cache that answered, and why.
    pub ended_by: Option<EndedBy>,
    /// How long it waited for its turn.
    pub waited: Duration,
}

impl Fetched {
    /// Notes where a fork of the request goes.
    pub fn goes(&mut self, fork: &Exchange) {
        self.upstream.clone_from(&fork.ctx.upstream);
        self.diverted = fork.diverted;
        self.waited = fork.ctx.waited;
    }

    /// Notes what a fork is answered by the gateway itself.
    pub fn answers(&mut self, reply: &Reply, fork: &Exchange) {
        if let Reply::Problem(problem) = reply {
            self.problem = Some(problem.kind.code);
        }
        self.ended_by.clone_from(&fork.ctx.ended_by);
    }
}

impl Exchange {
    /// Takes for its own what a cache asked in its place.
    pub fn note_fetched(&mut self, mut fetched: Box<Fetched>) {
        self.ctx.upstream.clone_from(&fetched.upstream);
        self.diverted = fetched.diverted;
        self.ctx.waited += fetched.waited;
        self.ctx.ended_by = fetched.ended_by.take().or(self.ctx.ended_by.take());
        self.fetched = Some(fetched);
    }
}

impl Exchange {
    /// Makes of a request what a cache asks for to store it: all of it, by what its key counts.
    pub fn fetch_for_all(&mut self, ask: &Ask, request: &mut RequestHeader) {
        request.set_method(Method::GET);
        // What the client has, or wants a part of, is not what is fetched.
        for name in [IF_NONE_MATCH, IF_MODIFIED_SINCE, IF_RANGE, RANGE] {
            request.remove_header(&name);
        }
        if let Some(target) = &ask.target {
            let _ = set_path_and_query(request, target.clone());
        }
        if let Some(path) = &ask.upstream_path {
            self.ctx.policies.upstream_path = Some(path.clone());
        }
    }
}
