//! Requests without Pingora's proxy: the same engine, upstreams, metrics and log, on the connections of HTTP/1.1
//! and the streams of HTTP/2 themselves.
//!
//! Every plain request begins here. What only Pingora can do (bodies in chunks, TLS and HTTP/2 to upstreams) is handed
//! over with all that was decided, before any byte of a body was read.

mod attempt;
mod client;
mod early;
mod held;
mod progress;
mod relay;
mod reply;
mod trouble;
mod whole;
mod wire;

use std::any::Any;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use futures_util::future::BoxFuture;
use http::{Method, Version};
use pingora::http::{RequestHeader, ResponseHeader};
use pingora::proxy::HttpProxy;
use tokio::io::AsyncWriteExt;
use tollhouse_filters::outcome::Reply;
use tollhouse_filters::problem::CLIENT_CLOSED;

use self::client::Client;
use self::trouble::Failure;
use super::request::Left;
use super::{Call, Gateway, hedge, is_gone};
use crate::cache::Announce;
use crate::config::upstream::Protocol;
use crate::door::{self, Application, ConnFacts, Declined, DoorStream, Head, Http2Stream, Served};
use crate::engine::{Connection, Exchange, speaks_grpc};
use crate::observe::AttemptOutcome;
use crate::observe::redact::Redaction;
use crate::routing::ListenerId;
use crate::upstream::Upstream;
use crate::upstream::call::Payload;

/// One request on its way.
struct Job<'a> {
    gateway: &'a Gateway,
    call: Box<Call>,
    request: RequestHeader,
    /// Its connection may take another one.
    keep: bool,
    /// All of the answer went out.
    whole: bool,
    /// Filters look at its body in pieces, as they go by.
    in_pieces: bool,
    /// The status that went to the client.
    status: Option<u16>,
    bytes_in: u64,
    bytes_out: u64,
}

/// How a request ended, for metrics and the log.
pub(super) struct Ended {
    pub(super) outcome: AttemptOutcome,
    pub(super) error: Option<&'static str>,
}

/// The gateway behind the door: on the connections themselves where it can, in Pingora's hooks where it must.
pub struct Front {
    /// For plain requests.
    pub gateway: Gateway,
    /// For all others.
    pub proxy: Arc<HttpProxy<Gateway>>,
}

impl Application for Front {
    type Pingora = HttpProxy<Gateway>;

    fn pingora(&self) -> &Arc<HttpProxy<Gateway>> {
        &self.proxy
    }

    fn serve(&self, stream: &mut DoorStream, head: &Head) -> impl Future<Output = Served> + Send {
        self.gateway.serve(stream, head)
    }

    fn serve_http2(
        &self,
        stream: &mut Http2Stream,
    ) -> impl Future<Output = Result<(), Option<Box<dyn Any + Send>>>> + Send {
        self.gateway.serve_http2(stream)
    }

    fn listener_name(&self, id: u16) -> Option<Arc<str>> {
        self.gateway.live.load().listeners.get(usize::from(id)).map(|listener| listener.name.clone())
    }

    fn hidden(&self) -> Vec<Redaction> {
        self.gateway.live.load().observability.access_log.redact.clone()
    }
}

impl Gateway {
    /// Serves a plain request, or leaves it to Pingora.
    async fn serve(&self, stream: &mut DoorStream, head: &Head) -> Served {
        let bytes = stream.take_head(head);
        let Some(request) = wire::request(&bytes) else { return declined(bytes, None) };
        let connection = connection(stream.facts());
        match self.serve_to(stream, connection, request, Version::HTTP_11).await {
            Ok(connection) => Served::Over(connection),
            Err(left) => declined(bytes, Some(left)),
        }
    }

    /// As [`serve`](Self::serve), of HTTP/2. What has no length has chunks in HTTP/1, and calls have trailers.
    async fn serve_http2(&self, stream: &mut Http2Stream) -> Result<(), Option<Box<dyn Any + Send>>> {
        let request = stream.request();
        if request.method == Method::CONNECT || stream.unread().is_none() || speaks_grpc(&request.headers) {
            return Err(None);
        }
        let (connection, request) = (connection(stream.facts()), stream.take_request());
        let served = self.serve_to(stream, connection, request, Version::HTTP_2).await;
        served.map(drop).map_err(|left| Some(Box::new(left) as _))
    }

    /// Serves a request to this client; gives it back where only Pingora can.
    async fn serve_to<C: Client>(
        &self,
        client: &mut C,
        connection: Connection,
        mut request: RequestHeader,
        version: Version,
    ) -> Result<door::Connection, Left> {
        let mut call = Box::<Call>::default();
        call.version = version;
        self.take_in(connection, &mut request, &mut call);
        call.exchange().ctx.goes_on = !C::HTTP1 && client.unread() != Some(0);
        let sound = !call.exchange().is_refused();
        let decision = self.decision(&mut call, &mut request, Some(&mut Announcing(client))).await;
        let is_here = match &decision {
            Ok(upstream) => client.unread().is_some() && is_plain(upstream, call.exchange()),
            // Pingora keeps the connections of those who sent chunks that nobody wanted.
            Err(reply) => client.unread().is_some() || is_gone(reply),
        };
        if !is_here {
            call.decided = Some(decision);
            return Err(Left { call, request });
        }
        let keep = C::HTTP1 && sound && !wire::says_close(&request.headers);
        let job = Job {
            gateway: self,
            call,
            request,
            keep,
            whole: false,
            in_pieces: false,
            status: None,
            bytes_in: 0,
            bytes_out: 0,
        };
        Ok(job.run(client, decision).await)
    }
}

/// Passes interim answers on to a client.
struct Announcing<'a, C>(&'a mut C);

impl<C: Client> Announce for Announcing<'_, C> {
    fn announce(&mut self, mut head: ResponseHeader) -> BoxFuture<'_, ()> {
        Box::pin(async move {
            let out = C::interim(&mut head);
            // Who does not take it will not take the answer either.
            let _ = self.0.write_all(&out).await;
            let _ = self.0.flush().await;
        })
    }

    fn poll_gone(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        self.0.poll_left(cx)
    }
}

fn declined(head: Bytes, left: Option<Left>) -> Served {
    Served::Declined(Declined { head, left: left.map(|left| Box::new(left) as _) })
}

/// What the engine needs to know of a connection.
pub(super) fn connection(facts: &ConnFacts) -> Connection {
    Connection { listener: ListenerId(facts.listener), peer: facts.peer, tls: facts.tls.clone() }
}

/// Whether it goes over a plain connection of HTTP/1.1, and may go directly.
fn is_plain(upstream: &Upstream, exchange: &Exchange) -> bool {
    let http1 = match upstream.protocol() {
        Protocol::Http1 => true,
        Protocol::Auto => !upstream.is_tls(),
        Protocol::H2 | Protocol::H2c => false,
    };
    exchange.route.direct && http1 && !upstream.is_tls()
}

impl Job<'_> {
    /// Serves the request, and says what becomes of its connection.
    async fn run<C: Client>(
        mut self,
        client: &mut C,
        decision: Result<Arc<Upstream>, Reply>,
    ) -> door::Connection {
        let decision = match decision {
            Ok(upstream) => self.before(client, upstream).await,
            Err(reply) => self.before_answer(client, reply).await.map(Err),
        };
        let ended = match decision {
            Ok(Ok(upstream)) => self.forward(client, upstream).await,
            Ok(Err(reply)) if is_gone(&reply) => {
                self.keep = false;
                Ended { outcome: AttemptOutcome::Cancelled, error: Some(CLIENT_CLOSED.code) }
            }
            Ok(Err(reply)) => self.answer(client, reply).await,
            Err(failure) => self.failed(client, failure).await,
        };
        let broken = client.broken();
        let Self { gateway, mut call, request, keep, whole, status, bytes_in, bytes_out, .. } = self;
        gateway.conclude(&mut call, &request, status, [bytes_in, bytes_out], broken, &ended);
        match keep {
            true if broken.is_none() => door::Connection::Kept,
            _ if whole => door::Connection::Closed,
            _ => door::Connection::BrokenOff,
        }
    }

    /// What comes before the first attempt: filters that want to see the whole body or that there is none, and a hedge,
    /// which leaves no other attempt to make.
    async fn before<C: Client>(
        &mut self,
        client: &mut C,
        upstream: Arc<Upstream>,
    ) -> Result<Result<Arc<Upstream>, Reply>, Failure> {
        if C::HTTP1 {
            // What others sent is read first, and then requests go on one after the other: backends on the same machine
            // are woken for many at once. Streams of HTTP/2 were read together.
            tokio::task::yield_now().await;
        }
        let exchange = self.call.exchange();
        let seen = if let Some(limit) = exchange.wants_body() {
            // On the heap: most bodies pass as they come.
            Box::pin(self.take_whole(client, limit)).await?
        } else if client.unread() == Some(0) {
            exchange.no_pieces()
        } else {
            self.in_pieces = exchange.sees_request_chunks();
            return Ok(Ok(upstream));
        };
        let reply = if seen.is_none() { self.hedged(client, &upstream).await } else { seen };
        Ok(reply.map_or(Ok(upstream), Err))
    }

    /// What comes before an answer of ours in the place of an upstream's: filters that wait for the body to decide.
    async fn before_answer<C: Client>(&mut self, client: &mut C, reply: Reply) -> Result<Reply, Failure> {
        let Some(limit) = self.call.exchange().wants_body_before_answer() else { return Ok(reply) };
        let refused = Box::pin(self.take_whole(client, limit)).await?;
        Ok(refused.unwrap_or(reply))
    }

    /// The answer to a request that is hedged, all of whose body is here.
    async fn hedged<C: Client>(&mut self, client: &mut C, upstream: &Arc<Upstream>) -> Option<Reply> {
        let Self { gateway, call, request, .. } = self;
        let hedge = hedge::of(call, upstream, request)?;
        let body = call.body.as_ref().map_or(Payload::EMPTY, |whole| whole.chunks().to_vec().into());
        let client = &mut Announcing(client);
        // On the heap: most requests are not.
        Some(Box::pin(gateway.hedged(call, request, (upstream.clone(), hedge), body, client)).await)
    }

    async fn forward<C: Client>(&mut self, client: &mut C, upstream: Arc<Upstream>) -> Ended {
        let ctx = self.call.exchange.as_ref().map(|exchange| &exchange.ctx);
        upstream.write_key(&self.request, ctx, &mut self.call.attempts.key);
        self.call.attempts.stuck = upstream.stuck_to(&self.request);
        self.call.attempts.upstream = Some(upstream);
        match self.attempts(client).await {
            Ok(()) => {
                self.whole = true;
                Ended { outcome: AttemptOutcome::Answered, error: None }
            }
            Err(failure) => self.failed(client, failure).await,
        }
    }

    /// Says what went wrong, if there is somebody left to hear it.
    async fn failed<C: Client>(&mut self, client: &mut C, failure: Failure) -> Ended {
        self.keep = false;
        let ended = Ended { outcome: self.outcome(&failure), error: Some(failure.code()) };
        let Some(reply) = self.explain(client, failure) else { return ended };
        if self.status.is_some() {
            if let Reply::Problem(problem) = &reply {
                self.call.problem = Some(problem.kind.code);
            }
            return ended;
        }
        let _ = self.write(client, reply).await;
        ended
    }

    async fn answer<C: Client>(&mut self, client: &mut C, reply: Reply) -> Ended {
        let sent = self.write(client, reply).await;
        if sent.is_err() {
            self.keep = false;
        }
        Ended { outcome: AttemptOutcome::Cancelled, error: sent.err().map(|failure| failure.code()) }
    }
}
