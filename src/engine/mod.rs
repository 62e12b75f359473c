//! Decides what happens to a request, without sockets and without Pingora.
//!
//! The proxy, `tollhouse test`, `tollhouse explain` and the admin API all run this engine.

mod background;
mod client;
pub mod dry;
pub mod explain;
mod forward;
mod head;
mod intake;
mod reply;
mod side_calls;
#[cfg(test)]
mod tests;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::header::{CONTENT_LENGTH, HeaderValue};
use http::{Method, header};
use pingora::http::{RequestHeader, ResponseHeader};
use tollhouse_filters::caching::Ask;
use tollhouse_filters::context::{Context, RequestId, Tls};
use tollhouse_filters::outcome::{Outcome, Reply};
use tollhouse_filters::phase::Completed;
use tollhouse_filters::pipeline::{Entered, Stack, Stop};
use tollhouse_filters::problem::{self, Problem};
use tollhouse_filters::values::Timeout;

use crate::routing::{Find, ListenerId, View};
use crate::snapshot::{Action, Route, Snapshot};
use crate::upstream::Upstream;

pub use background::Background;
pub use forward::{Forwarding, strip_hop_by_hop, write_line};
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
    refused: Option<Problem>,
    not_allowed: Option<Problem>,
    /// A response filter failed; what is sent instead passes none.
    response_failed: bool,
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
        let (mut ctx, mut refused) = intake::take_in(&snapshot, connection, request, request_id, started);
        if snapshot.listener(listener).retired {
            refused = Some(Problem::new(&problem::NO_ROUTE).detail("this listener is no longer configured"));
        }
        let (route, not_allowed) = match &refused {
            None => find(&snapshot, listener, request, &mut ctx),
            Some(_) => (snapshot.unrouted.clone(), None),
        };
        ctx.route = route.name.clone();
        ctx.service.clone_from(&route.service);
        let stack = snapshot.stack(listener, &route);
        Self {
            snapshot,
            listener,
            route,
            stack,
            entered: Entered::default(),
            ctx,
            refused,
            not_allowed,
            response_failed: false,
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
        match self.entered.request(&self.stack, request, &mut self.ctx).await {
            Some(Stop::Reply(reply)) => Decision::Reply(reply),
            Some(Stop::Cache(ask)) => Decision::Cache(ask),
            None => self.act(request).await,
        }
    }

    /// The same request from here on, where a cache holds it, as one of its own: with what the steps so far write
    /// for upstreams, and none of them to see its answer. Else what a step answers.
    ///
    /// # Errors
    /// The answer of a step that failed.
    pub async fn fork(&mut self, request: &RequestHeader) -> Result<(Self, RequestHeader), Reply> {
        let mut head = request.clone();
        strip_hop_by_hop(&mut head);
        if let Some(reply) = self.entered.upstream_request(&self.stack, &mut head, 1, &mut self.ctx).await {
            return Err(reply);
        }
        let fork = Self {
            snapshot: self.snapshot.clone(),
            listener: self.listener,
            route: self.route.clone(),
            stack: self.stack.clone(),
            entered: self.entered.rest(),
            ctx: self.ctx.fork(),
            refused: None,
            not_allowed: self.not_allowed.clone(),
            response_failed: false,
        };
        Ok((fork, head))
    }

    /// Appends what upstreams are told of who calls to a key.
    pub async fn identity_key(&mut self, key: &mut Vec<u8>) {
        self.entered.identity_key(&self.stack, &mut self.ctx, key).await;
    }

    /// Shows the entered filters that the request has no body.
    pub async fn no_body(&mut self, request: &mut RequestHeader) -> Option<Reply> {
        if self.stack.sees_request_chunks()
            && let Some(reply) = self.request_chunk(&mut Bytes::new(), true)
        {
            return Some(reply);
        }
        self.wants_body()?;
        self.body(request, &mut Bytes::new()).await
    }

    async fn act(&mut self, request: &mut RequestHeader) -> Decision {
        // Also for a preflight that no filter answered: its own method is none of the route's.
        if let Some(problem) = self.not_allowed.take() {
            return Decision::Reply(problem.into());
        }
        match &self.route.action {
            Action::Upstream(upstream) => {
                let upstream = upstream.clone();
                if let Some(problem) = self.body_too_large(request) {
                    return Decision::Reply(problem.into());
                }
                self.ctx.upstream = Some(upstream.name.clone());
                self.ctx.deadline = self.total_timeout(&upstream).map(|total| self.ctx.started + total);
                Decision::Forward(upstream)
            }
            Action::Answer(filter) => match filter.on_request(request, &mut self.ctx).await {
                Ok(Outcome::Respond(reply)) => Decision::Reply(reply),
                Ok(Outcome::Continue | Outcome::Cache(_)) | Err(_) => {
                    Decision::Reply(Problem::new(&problem::INTERNAL).into())
                }
            },
            Action::NotFound => Decision::Reply(Problem::new(&problem::NO_ROUTE).into()),
        }
    }

    /// Whether an entered filter wants the whole request body, and how much of it is taken at most.
    #[must_use]
    pub fn wants_body(&self) -> Option<u64> {
        self.entered.wants_body(&self.stack, &self.ctx).map(|limit| limit.min(self.body_limit()))
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

    /// Makes one attempt's head from the request's, and runs the filters that see it.
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
        let unseen = !self.stack.sees_upstream_request();
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
        filtered.map_err(|_| self.response_failure())
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
    }
}

/// The request's route, and the problem it ends with if no filter answers: its method is not allowed.
fn find(
    snapshot: &Snapshot,
    listener: ListenerId,
    request: &RequestHeader,
    ctx: &mut Context,
) -> (Arc<Route>, Option<Problem>) {
    let view = View { listener, request: ctx.view(request) };
    let (found, not_allowed) = match snapshot.router.find(&view) {
        Find::Route { id, captures } => (Some((id, captures)), None),
        Find::None => (None, None),
        Find::MethodNotAllowed { allow } => (preflight(snapshot, &view), Some(method_not_allowed(&allow))),
    };
    let Some((id, captures)) = found else { return (snapshot.unrouted.clone(), not_allowed) };
    ctx.captures = captures;
    (snapshot.route(id).clone(), not_allowed)
}

/// A CORS preflight asks on behalf of another method: it takes that method's route, if that route answers it.
fn preflight(
    snapshot: &Snapshot,
    view: &View<'_>,
) -> Option<(crate::routing::RouteId, tollhouse_filters::path::Captures)> {
    let headers = view.request.headers;
    if view.request.method != Method::OPTIONS || !headers.contains_key(header::ORIGIN) {
        return None;
    }
    let method = Method::from_bytes(headers.get(header::ACCESS_CONTROL_REQUEST_METHOD)?.as_bytes()).ok()?;
    let Find::Route { id, captures } = snapshot.router.find_for_method(view, &method) else { return None };
    snapshot.stack(view.listener, snapshot.route(id)).answers_preflight().then_some((id, captures))
}

fn method_not_allowed(allow: &[Method]) -> Problem {
    let list = allow.iter().map(Method::as_str).collect::<Vec<_>>().join(", ");
    let value = HeaderValue::from_str(&list).expect("methods are tokens");
    Problem::new(&problem::METHOD_NOT_ALLOWED).header(header::ALLOW, value)
}
