//! The engine behind Pingora's proxy hooks, one file per stage.

mod attempts;
mod call;
mod direct;
mod failure;
mod finish;
mod hedge;
mod old_client;
pub mod overload;
mod peer;
pub mod replay;
mod reply;
mod request;
mod request_body;
mod response;
mod upstream_request;
mod watched;

use std::future::poll_fn;
use std::pin::pin;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use http::HeaderMap;
use pingora::http::{RequestHeader, ResponseHeader};
use pingora::modules::http::HttpModules;
use pingora::prelude::*;
use pingora::proxy::{FailToProxy, ProxyWarnLogContext};
use tollhouse_filters::outcome::Reply;
use tollhouse_filters::problem::{self, Problem};

use self::overload::Overload;
use crate::cache::{Announce, Cache, Via};
use crate::door::Draining;
use crate::engine::Decision;
use crate::observe::Observe;
use crate::snapshot::Live;
use crate::upstream::Upstream;

pub use call::Call;
pub use direct::Front;
pub use replay::Budget;

/// The gateway as Pingora sees it.
#[derive(Clone)]
pub struct Gateway {
    /// The snapshot in use.
    pub live: Arc<Live>,
    /// Logs and metrics.
    pub observe: Arc<Observe>,
    /// What is stored of answers.
    pub cache: Arc<Cache>,
    /// Which requests are refused, as there is too much to do.
    pub overload: Arc<Overload>,
    /// For request bodies that filters want whole.
    pub budget: Arc<Budget>,
    /// Whether the process is on its way out.
    pub draining: Draining,
}

impl Gateway {
    /// Runs the filters, and answers from the cache where they ask it to: which upstream a request goes to, or what it
    /// is answered.
    async fn decision(
        &self,
        call: &mut Call,
        request: &mut RequestHeader,
        mut client: Option<&mut dyn Announce>,
    ) -> std::result::Result<Arc<Upstream>, Reply> {
        let peer = call.connection.as_ref().and_then(|connection| connection.peer);
        let level = self.overload.level();
        if level > 0 {
            self.overload.refuse(level, call.exchange().highest_priority(), call)?;
        }
        let via = Via { peer: peer.map(|peer| peer.ip().to_canonical()), version: call.version };
        loop {
            let exchange = call.exchange();
            let ask = match unless_gone(exchange.decide(request), &mut client).await? {
                Decision::Cache(ask) => ask,
                Decision::Forward(upstream) if level == 0 => return Ok(upstream),
                Decision::Forward(upstream) => {
                    self.overload.refuse(level, exchange.priority(), call)?;
                    return Ok(upstream);
                }
                Decision::Reply(reply) => return Err(reply),
            };
            let told = reborrowed(&mut client);
            // On the heap: most requests have none.
            if let Some(reply) = Box::pin(self.cache.answer(ask, exchange, request, (via, told))).await {
                return Err(reply);
            }
        }
    }
}

/// The same client, for a while.
fn reborrowed<'a>(client: &'a mut Option<&mut dyn Announce>) -> Option<&'a mut dyn Announce> {
    client.as_mut().map(|client| &mut **client as _)
}

/// What is waited for, unless the client goes away first: then it gives up its place in every queue.
async fn unless_gone<T>(
    waited: impl Future<Output = T>,
    client: &mut Option<&mut dyn Announce>,
) -> std::result::Result<T, Reply> {
    let mut waited = pin!(waited);
    poll_fn(|cx| match (waited.as_mut().poll(cx), client.as_mut()) {
        (Poll::Ready(done), _) => Poll::Ready(Ok(done)),
        (Poll::Pending, Some(client)) => {
            client.poll_gone(cx).map(|()| Err(Problem::new(&problem::CLIENT_CLOSED).into()))
        }
        (Poll::Pending, None) => Poll::Pending,
    })
    .await
}

/// Whether this is what came of waiting for a client that went away.
fn is_gone(reply: &Reply) -> bool {
    matches!(reply, Reply::Problem(problem) if problem.kind.code == problem::CLIENT_CLOSED.code)
}

#[async_trait]
impl ProxyHttp for Gateway {
    // Boxed, since Pingora's futures hold it at several places and are moved as a whole.
    type CTX = Box<Call>;

    fn new_ctx(&self) -> Box<Call> {
        Box::default()
    }

    fn init_downstream_modules(&self, modules: &mut HttpModules) {
        // In place of Pingora's compression, which ours replaces.
        modules.add_module(Box::new(old_client::Builder));
    }

    async fn early_request_filter(&self, session: &mut Session, call: &mut Box<Call>) -> Result<()> {
        self.begin(session, call);
        Ok(())
    }

    async fn request_filter(&self, session: &mut Session, call: &mut Box<Call>) -> Result<bool> {
        self.decide(session, call).await
    }

    async fn request_body_filter(
        &self,
        _session: &mut Session,
        body: &mut Option<Bytes>,
        end: bool,
        call: &mut Box<Call>,
    ) -> Result<()> {
        request_body::pass(body, end, call)
    }

    async fn upstream_peer(&self, _session: &mut Session, call: &mut Box<Call>) -> Result<Box<HttpPeer>> {
        peer::choose(call).await
    }

    fn fail_to_connect(
        &self,
        session: &mut Session,
        _: &HttpPeer,
        call: &mut Box<Call>,
        error: Box<Error>,
    ) -> Box<Error> {
        self.connect_failed(session, call, error)
    }

    async fn upstream_request_filter(
        &self,
        session: &mut Session,
        request: &mut RequestHeader,
        call: &mut Box<Call>,
    ) -> Result<()> {
        upstream_request::prepare(session, request, call).await
    }

    async fn response_filter(
        &self,
        session: &mut Session,
        response: &mut ResponseHeader,
        call: &mut Box<Call>,
    ) -> Result<()> {
        self.respond(session, response, call).await
    }

    fn response_body_filter(
        &self,
        _session: &mut Session,
        body: &mut Option<Bytes>,
        end: bool,
        call: &mut Box<Call>,
    ) -> Result<Option<Duration>> {
        response::pass(body, end, call).map(|()| None)
    }

    async fn response_trailer_filter(
        &self,
        _session: &mut Session,
        _trailers: &mut HeaderMap,
        call: &mut Box<Call>,
    ) -> Result<Option<Bytes>> {
        response::end(call)
    }

    fn error_while_proxy(
        &self,
        _peer: &HttpPeer,
        session: &mut Session,
        error: Box<Error>,
        call: &mut Box<Call>,
        client_reused: bool,
    ) -> Box<Error> {
        self.attempt_failed(session, error, call, client_reused)
    }

    async fn fail_to_proxy(&self, session: &mut Session, error: &Error, call: &mut Box<Call>) -> FailToProxy {
        failure::answer(session, error, call).await
    }

    fn suppress_error_log(&self, _: &Session, _: &Box<Call>, _: &Error) -> bool {
        // The access log says what failed and why.
        true
    }

    fn suppress_proxy_warn_log(&self, _: &Session, _: &Box<Call>, _: &Error, _: ProxyWarnLogContext) -> bool {
        true
    }

    async fn logging(&self, session: &mut Session, error: Option<&Error>, call: &mut Box<Call>) {
        self.finish(session, error, call);
    }
}
