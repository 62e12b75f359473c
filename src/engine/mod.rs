//! Decides what happens to a request, without sockets and without Pingora.
//!
//! The proxy, `tollhouse test`, `tollhouse explain` and the admin API all run this engine.

mod admit;
mod answer;
mod asides;
mod background;
mod client;
pub mod dry;
pub mod explain;
mod fetched;
mod find;
mod forward;
mod head;
mod intake;
mod release;
mod reply;
mod side_calls;
#[cfg(test)]
mod tests;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::header::{CONTENT_LENGTH, HeaderValue, UPGRADE};
use http::{HeaderMap, StatusCode};
use pingora::http::{RequestHeader, ResponseHeader};
use tollhouse_filters::caching::{Ask, invalidated, is_safe};
use tollhouse_filters::context::{Context, RequestId, Tls};
use tollhouse_filters::outcome::Reply;
use tollhouse_filters::phase::Completed;
use tollhouse_filters::pipeline::{Entered, Stack, Stop};
use tollhouse_filters::problem::{self, Problem};
use tollhouse_filters::selector::write_part;
use tollhouse_filters::traffic::{plan_limits, quota};
use tollhouse_filters::values::Timeout;

use crate::routing::ListenerId;
use crate::snapshot::{Action, Route, Snapshot};
use crate::upstream::call::Account;
use crate::upstream::{Admission, Upstream};

use self::admit::Refused;
use self::find::{Found, find};
use self::intake::TakenIn;
pub use self::release::Release;
pub use background::Background;
pub use fetched::Fetched;
pub use forward::{Forwarding, strip_hop_by_hop, strip_hop_by_hop_of_http2, write_line};
pub use reply::{Rendered, grpc_trailers, problem_reply, render, speaks_grpc};
pub use side_calls::SideCalls;

/// What is known of a connection before its first request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Connection {
    /// The listener it came through.
    pub listener: ListenerId,
    /// The other end; none on Unix sockets.
    pub peer: Option<SocketAddr>,
    /// What it agreed on with the other end; none without TLS.
    pub tls: Option<Arc<Tls>>,
}

/// What happens to a request next.
#[derive(Debug)]
pub enum Decision {
    /// It ends here.
    Reply(Reply),
    /// It goes to this upstream.
    Forward(Arc<Upstream>),
    /// A cache answers it, or lets it go on: [`Exchange::decide`] then says where to.
    Cache(Box<Ask>),
}

/// One request on one snapshot, from start to end.
pub struct Exchange {
    /// The snapshot it began on.
    pub snapshot: Arc<Snapshot>,
    /// The listener it came through.
    pub listener: ListenerId,
    /// Its route.
    pub route: Arc<Route>,
    /// Its pipelines.
    pub stack: Stack,
    /// The steps that were entered.
    pub entered: Entered,
    /// What its filters see.
    pub ctx: Context,
    /// What it holds of its upstream's places.
    pub admission: Admission,
    /// Its version and its variant; none where its route has neither.
    pub release: Option<Box<Release>>,
    /// What is stored may answer it, however old: its upstream is left alone, and says so.
    pub takes_stale: bool,
    /// It went to another route's upstream, since its own is left alone.
    pub diverted: bool,
    /// Its own upstream did not take it: it is left alone, or has enough to do.
    pub turned_away: bool,
    /// The client asks for a stream of events.
    pub asks_for_events: bool,
    /// What a cache asked in its place, if one did.
    pub fetched: Option<Box<Fetched>>,
    /// It is answered by what is written for it, as its upstream would: neither by a filter nor with a problem.
    answers_itself: bool,
    refused: Option<Problem>,
    not_allowed: Option<Problem>,
    /// A response filter failed; what is sent instead passes none.
    response_failed: bool,
    /// It fills a cache: what is told of its version, the request that it was made for tells.
    is_fork: bool,
}

impl Exchange {
    /// Takes a request in: limits, client address, forged fields, path, route.
    ///
    /// Whatever is wrong with the request is kept until [`Exchange::decide`].
    #[must_use]
    pub fn begin(
        snapshot: Arc<Snapshot>,
        connection: &Connection,
        request: &mut RequestHeader,
        request_id: RequestId,
        started: Instant,
    ) -> Self {
        let listener = connection.listener;
        let taken_in = intake::take_in(&snapshot, connection, request, request_id, started);
        let TakenIn { mut ctx, mut refused, asks_for_events } = taken_in;
        if snapshot.listener(listener).retired {
            refused = Some(Problem::new(&problem::NO_ROUTE).detail("this listener is no longer configured"));
        }
        let Found { route, not_allowed, in_path } = match &refused {
            None => find(&snapshot, listener, request, &mut ctx),
            Some(_) => Found::nothing(&snapshot),
        };
        ctx.route = route.name.clone();
        ctx.service.clone_from(&route.service);
        let stack = snapshot.stack(listener, &route);
        release::drop_forcing(&snapshot, &route, request);
        let release = release::begin(&route, in_path, request, &mut ctx);
        Self {
            snapshot,
            listener,
            route,
            stack,
            entered: Entered::default(),
            ctx,
            admission: Admission::default(),
            release,
            takes_stale: false,
            diverted: false,
            turned_away: false,
            asks_for_events,
            fetched: None,
            answers_itself: false,
            refused,
            not_allowed,
            response_failed: false,
            is_fork: false,
        }
    }

    /// Whether the request is refused before any filter runs; what follows it on its connection is
    /// not to be trusted either.
    #[must_use]
    pub fn is_refused(&self) -> bool {
        self.refused.is_some()
    }

    /// Runs the request phase and says what happens next.
    pub async fn decide(&mut self, request: &mut RequestHeader) -> Decision {
        // A malformed request gets no further; one without a route still passes the listener's filters.
        if let Some(problem) = self.refused.take() {
            return Decision::Reply(problem.into());
        }
        if let Some(problem) = self.refused_version(request) {
            self.entered.answered_early(&self.stack, request, &self.ctx);
            return Decision::Reply(problem.into());
        }
        // Who waits does so within the time for all of it; what is answered here is held to none.
        self.ctx.deadline = self.time_for_all().filter(|_| self.is_held_to_total(request));
        let stopped = self.entered.request(&self.stack, request, &mut self.ctx).await;
        self.ctx.deadline = None;
        match stopped {
            Some(Stop::Reply(reply)) => Decision::Reply(reply),
            Some(Stop::Cache(ask)) => self.held_for_cache(ask, request),
            None => self.act(request).await,
        }
    }

    /// The same request from here on, where a cache holds it, as one of its own: with what the steps so far write
    /// for upstreams, and none of them to see its answer. Else what a step answers. What is held of quotas is held by
    /// both, and the plans that counted it count once.
    ///
    /// # Errors
    /// The answer of a step that failed.
    pub async fn fork(&mut self, request: &RequestHeader) -> Result<(Self, RequestHeader), Reply> {
        let mut head = request.clone();
        strip_hop_by_hop(&mut head);
        // Nobody knows yet whether it is sent.
        if let Some(reply) = self.entered.upstream_request(&self.stack, &mut head, 0, &mut self.ctx).await {
            return Err(reply);
        }
        let mut ctx = self.ctx.fork();
        quota::share(&self.ctx, &mut ctx);
        plan_limits::share(&self.ctx, &mut ctx);
        let fork = Self {
            snapshot: self.snapshot.clone(),
            listener: self.listener,
            route: self.route.clone(),
            stack: self.stack.clone(),
            entered: self.entered.rest(),
            ctx,
            admission: Admission::default(),
            release: self.release.clone(),
            takes_stale: false,
            diverted: false,
            turned_away: false,
            asks_for_events: self.asks_for_events,
            fetched: None,
            answers_itself: false,
            refused: None,
            not_allowed: self.not_allowed.clone(),
            response_failed: false,
            is_fork: true,
        };
        Ok((fork, head))
    }

    /// Whether any step so far looks at requests before they are sent.
    pub fn sees_upstream_request(&self) -> bool {
        self.stack.sees_upstream_request()
    }

    /// Waits for what the steps so far wait for before a request is sent, such as a token, so that the next one finds it.
    /// They go without what they keep of this request, and what they write goes nowhere.
    pub fn wait_ahead(&self, request: &RequestHeader) -> impl Future<Output = ()> + Send + use<> {
        let (entered, stack, mut ctx) = (self.entered, self.stack.clone(), self.ctx.fork());
        let mut head = request.clone();
        async move { drop(entered.upstream_request(&stack, &mut head, 0, &mut ctx).await) }
    }

    /// Appends what upstreams are told of who calls to a key.
    pub async fn identity_key(&mut self, key: &mut Vec<u8>) {
        self.entered.identity_key(&self.stack, &mut self.ctx, key).await;
        let certificate = self.ctx.client.tls.as_ref().and_then(|tls| tls.forwarded_certificate.as_ref());
        if let Some(certificate) = certificate {
            write_part(certificate.as_bytes(), key);
        }
    }

    /// Shows the entered filters that the request has no body.
    pub async fn no_body(&mut self, request: &mut RequestHeader) -> Option<Reply> {
        if let Some(reply) = self.no_pieces() {
            return Some(reply);
        }
        self.wants_body()?;
        self.body(request, &mut Bytes::new()).await
    }

    /// Shows those of them that look at pieces that the request has no body.
    pub fn no_pieces(&mut self) -> Option<Reply> {
        if self.stack.sees_request_chunks() { self.request_chunk(&mut Bytes::new(), true) } else { None }
    }

    async fn act(&mut self, request: &mut RequestHeader) -> Decision {
        // Also for a preflight that no filter answered: its own method is none of the route's.
        if let Some(problem) = self.not_allowed.take() {
            return Decision::Reply(problem.into());
        }
        let upstream = match &self.route.action {
            Action::Upstream(upstream) => upstream.clone(),
            Action::Versions(_) | Action::Split(_) => match self.released(request) {
                Ok(upstream) => upstream,
                Err(problem) => return Decision::Reply(problem.into()),
            },
            Action::Answer(_) => return Decision::Reply(self.answered(&self.route.clone(), request).await),
            Action::NotFound => return Decision::Reply(Problem::new(&problem::NO_ROUTE).into()),
        };
        if let Some(problem) = self.body_too_large(request) {
            return Decision::Reply(problem.into());
        }
        self.snapshot.identities.hide_sessions(request, &mut self.ctx);
        self.forward(upstream, request).await
    }

    /// Sends it there, or, while that upstream is left alone, where its fallback does.
    async fn forward(&mut self, mut upstream: Arc<Upstream>, request: &mut RequestHeader) -> Decision {
        // To an end: no fallback leads back to where it began.
        loop {
            self.ctx.upstream = Some(upstream.name.clone());
            let total = self.total_timeout(&upstream);
            let held = total.filter(|_| self.is_held_to_total(request));
            self.ctx.deadline = held.map(|total| self.ctx.started + total);
            let instead = match self.admit(&upstream).await {
                Ok(()) => {
                    // What is not held to it and waited has all of it for a backend, and an answer that is no stream.
                    self.ctx.deadline =
                        self.ctx.deadline.or_else(|| total.map(|total| Instant::now() + total));
                    return Decision::Forward(upstream);
                }
                Err(Refused::Reply(reply)) => return Decision::Reply(reply),
                Err(Refused::Route(route)) => route,
            };
            self.diverted = true;
            match &instead.action {
                Action::Upstream(other) => upstream = other.clone(),
                // On the heap: hardly any request gets here.
                _ => return Decision::Reply(Box::pin(self.answered(&instead, request)).await),
            }
        }
    }

    /// Whether an entered filter wants the whole request body, and how much of it is taken at most.
    #[must_use]
    pub fn wants_body(&self) -> Option<u64> {
        self.entered.wants_body(&self.stack, &self.ctx).map(|limit| limit.min(self.body_limit()))
    }

    /// Whether an entered filter looks at pieces of the request body.
    #[must_use]
    pub fn sees_request_chunks(&self) -> bool {
        self.entered.sees_request_chunks(&self.stack)
    }

    /// Passes a piece of the request body through the filters that look at pieces.
    pub fn request_chunk(&mut self, piece: &mut Bytes, end: bool) -> Option<Reply> {
        self.entered.request_chunk(&self.stack, piece, end, &mut self.ctx)
    }

    /// Runs the body phase; the body may be changed.
    pub async fn body(&mut self, request: &mut RequestHeader, body: &mut Bytes) -> Option<Reply> {
        self.entered.request_body(&self.stack, request, body, &mut self.ctx).await
    }

    /// The largest request body, in bytes.
    #[must_use]
    pub fn body_limit(&self) -> u64 {
        self.ctx.policies.body_limit.unwrap_or_else(|| self.snapshot.server.limits.body_bytes.get())
    }

    /// A declared length over the limit is refused before any of the body is read.
    fn body_too_large(&self, request: &RequestHeader) -> Option<Problem> {
        let declared =
            request.headers.get(CONTENT_LENGTH).map(HeaderValue::to_str)?.ok()?.trim().parse::<u64>().ok()?;
        (declared > self.body_limit()).then(|| Problem::new(&problem::BODY_TOO_LARGE))
    }

    fn total_timeout(&self, upstream: &Upstream) -> Option<Duration> {
        self.route.timeouts.total.map_or(upstream.total_timeout(), Timeout::get)
    }

    /// Whether the time for all of it is for this request: streams of events and tunnels last for as long as they last.
    fn is_held_to_total(&self, request: &RequestHeader) -> bool {
        !self.asks_for_events && !request.headers.contains_key(UPGRADE)
    }

    /// When the answer of an upstream must be complete, as far as that is known before one is chosen.
    fn time_for_all(&self) -> Option<Instant> {
        let total = match &self.route.action {
            Action::Upstream(upstream) => self.total_timeout(upstream),
            Action::Versions(_) | Action::Split(_) => self.route.timeouts.total.and_then(Timeout::get),
            Action::Answer(_) | Action::NotFound => None,
        };
        total.map(|total| self.ctx.started + total)
    }

    /// Notes the attempts that were made with a head that was made for all of them (attempt 0).
    pub fn attempted(&self, account: &Account) {
        if account.sent() {
            self.sending();
        }
    }

    /// Notes that an attempt is made now: what is held of quotas counts. Not before it is known to be: a filter that sees
    /// its head may refuse it, or have waited for too long.
    pub fn sending(&self) {
        quota::settle(&self.ctx);
    }

    /// Makes one attempt's head from the request's, or with 0 that of all attempts, and runs the filters that see it.
    pub async fn upstream_request(
        &mut self,
        request: &mut RequestHeader,
        forwarding: &Forwarding<'_>,
        attempt: u32,
    ) -> Option<Reply> {
        forward::write(request, &self.ctx, forwarding);
        self.entered.upstream_request(&self.stack, request, attempt, &mut self.ctx).await
    }

    /// Writes one attempt's head as HTTP/1.1 sends it, where no filter sees it; else gives false.
    pub fn write_upstream_request(
        &self,
        request: &RequestHeader,
        forwarding: &Forwarding<'_>,
        out: &mut Vec<u8>,
    ) -> bool {
        let unseen = !self.sees_upstream_request();
        if unseen {
            forward::write_wire(request, &self.ctx, forwarding, out);
        }
        unseen
    }

    /// Runs the response filters that were entered on a final head.
    ///
    /// A failure ends the answer: 502, since half of a change is worse than none.
    pub async fn response(
        &mut self,
        request: &RequestHeader,
        response: &mut ResponseHeader,
    ) -> Result<(), Problem> {
        if self.response_failed {
            return Ok(());
        }
        let filtered = self.entered.response(&self.stack, request, response, &mut self.ctx).await;
        if let Some(release) = self.release.as_ref().filter(|_| !self.is_fork) {
            release.write_fields(&self.route, &self.ctx, response);
        }
        filtered.map_err(|_| self.response_failure())
    }

    /// Whether a request with this method takes out what caches hold (RFC 9111 s4.4), if it is answered well.
    #[must_use]
    pub fn invalidates(&self, request: &RequestHeader) -> bool {
        self.snapshot.caches.is_some() && !is_safe(&request.method)
    }

    /// Takes out what an upstream's answer to an unsafe request says that it changed, on whatever route it is stored.
    pub fn invalidate(&self, request: &RequestHeader, status: StatusCode, fields: &HeaderMap) {
        let Some(caches) = self.snapshot.caches.as_ref().filter(|_| !is_safe(&request.method)) else {
            return;
        };
        let whole = self.release.as_ref().and_then(|release| release.whole_path.as_deref());
        let is_version = |segment: &str| caches.is_version(segment);
        for url in invalidated(request, (status, fields), (&self.ctx, whole), &caches.counted, is_version) {
            caches.cached.invalidate(url);
        }
    }

    /// Whether the head of the answer is seen, by a filter or by what tells of its version.
    #[must_use]
    pub fn sees_response(&self) -> bool {
        self.stack.sees_response() || self.route.versions.is_some()
    }

    /// Shows a piece of the answer's body to the filters that look at pieces.
    pub fn response_chunk(&mut self, piece: &mut Option<Bytes>, end: bool) -> Result<(), Problem> {
        if self.response_failed || !self.stack.sees_response_chunks() {
            return Ok(());
        }
        let filtered = self.entered.response_chunk(&self.stack, piece, end, &mut self.ctx);
        filtered.map_err(|_| self.response_failure())
    }

    fn response_failure(&mut self) -> Problem {
        self.response_failed = true;
        Problem::new(&problem::UPSTREAM_PROTOCOL).detail("a response filter failed")
    }

    /// Turns a reply into what is sent, through the response filters that were entered.
    pub async fn rendered(&mut self, reply: Reply, request: &RequestHeader) -> Rendered {
        let mut rendered = render(reply, request, &self.ctx);
        // Filters see how long it is, as they do of an upstream's answer.
        rendered.declare_length();
        let filtered = self.response(request, &mut rendered.head).await;
        let filtered = filtered.and_then(|()| rendered.filter_body(|piece| self.response_chunk(piece, true)));
        if let Err(problem) = filtered {
            rendered = render(problem.into(), request, &self.ctx);
        }
        rendered.frame(&request.method);
        rendered
    }

    /// Tells the entered filters how the request ended.
    pub fn finish(&mut self, completed: &Completed) {
        self.entered.finish(&self.stack, completed, &mut self.ctx);
        if let Some(release) = self.release.as_ref().filter(|_| !self.is_fork) {
            release.count(&self.route, &self.ctx);
        }
    }
}
