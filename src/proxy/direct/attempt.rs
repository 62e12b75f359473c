//! Attempts at backends, and what a failed one leads to.

use std::time::Instant;

use http::{StatusCode, header};
use pingora::http::ResponseHeader;
use pingora::prelude::timeout;
use pingora::protocols::http::date::get_cached_date;
use tokio::net::TcpStream;
use tollhouse_filters::outcome::Reply;
use tollhouse_filters::problem::{self, Problem};

use super::relay::{Again, Relay};
use super::trouble::{Trouble, Waits};
use super::wire::{self, Answer, AnswerHead};
use super::{super::failure, Job};
use crate::door::{DoorStream, Rule};
use crate::engine::{Forwarding, strip_hop_by_hop};
use crate::observe::AttemptOutcome;
use crate::proxy::request::upstream;
use crate::proxy::response;
use crate::upstream::InFlight;

/// Why a request was not answered by its upstream, or not wholly.
pub(super) enum Failure {
    /// It is answered by us.
    Refused(Reply),
    /// No connection could be made.
    Connect(Option<std::io::Error>),
    /// The exchange broke.
    Trouble(Trouble),
    /// Our fault.
    Internal,
}

impl Failure {
    /// By whose fault, for the log; what was answered says more.
    pub(super) const fn code(&self) -> &'static str {
        match self {
            Self::Trouble(Trouble::Client | Trouble::SlowClient) => problem::CLIENT_CLOSED.code,
            Self::Connect(_) | Self::Trouble(_) => "upstream-protocol",
            Self::Refused(_) | Self::Internal => "internal",
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

impl Job<'_> {
    /// Tries backends until one answers, or none is left to try.
    pub(super) async fn attempts(&mut self, stream: &mut DoorStream) -> Result<(), Failure> {
        let (mut again, mut anew) = (Again::default(), false);
        loop {
            let (server, reused) = match self.connect(anew).await {
                Ok(connected) => connected,
                Err(failure @ Failure::Connect(_)) if self.connect_failed(&failure) => continue,
                Err(failure) => return Err(failure),
            };
            let head = self.head().await?;
            // Only an old connection is worth a second attempt.
            again.keep = reused && self.request.method.is_idempotent();
            let waits = self.waits()?;
            let mut relay = Relay::new(stream, server, head, waits, std::mem::take(&mut again));
            let relayed = self.relay(&mut relay).await;
            (self.bytes_in, self.bytes_out) = (relay.taken, self.bytes_out + relay.sent());
            match relayed {
                Ok(reusable) => {
                    if let Some(server) = relay.into_server().filter(|_| reusable)
                        && let Some(picked) = &self.call.attempts.picked
                    {
                        upstream(&self.call).keep(picked, server);
                    }
                    return Ok(());
                }
                Err(Failure::Trouble(Trouble::Unanswered)) if reused => match relay.again() {
                    Some(body) => {
                        self.forget_old_connection();
                        // The others may be as old.
                        (again.body, anew) = (body, true);
                    }
                    None => return Err(Trouble::Unanswered.into()),
                },
                Err(failure) => return Err(failure),
            }
        }
    }

    /// Chooses a backend that was not tried yet and gives a connection to it, and whether that is an old one,
    /// as it is not if it is to be made `anew`.
    async fn connect(&mut self, anew: bool) -> Result<(TcpStream, bool), Failure> {
        let upstream = upstream(&self.call);
        let attempts = &mut self.call.attempts;
        // The last attempt is over, and must not count against its backend.
        attempts.picked = None;
        let Some(picked) = upstream.pick(&attempts.key, &attempts.tried) else {
            return Err(Problem::new(&problem::NO_BACKEND).detail(upstream.unavailable()).into());
        };
        attempts.tried.insert(picked.index);
        attempts.started.get_or_insert(picked.guard.started());
        attempts.made += 1;
        attempts.counted = false;
        let old = if anew { None } else { upstream.reuse(&picked) };
        let address = picked.address;
        attempts.picked = Some(picked);
        if let Some(old) = old {
            return Ok((old, true));
        }
        let exchange = self.call.exchange();
        let limit = exchange.route.timeouts.connect.map_or(upstream.connect_timeout(), |limit| limit.get());
        let left = exchange.ctx.deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
        if left.is_some_and(|left| left.is_zero()) {
            return Err(failure::overdue().into());
        }
        // On the heap: most requests find a connection.
        let connected = Box::pin(timeout(left.map_or(limit, |left| left.min(limit)), connect(address))).await;
        match connected {
            Ok(Ok(stream)) => Ok((stream, false)),
            Ok(Err(error)) => Err(Failure::Connect(Some(error))),
            Err(_) => Err(Failure::Connect(None)),
        }
    }

    /// Nothing was sent, so another backend may be tried whatever the method.
    fn connect_failed(&mut self, failure: &Failure) -> bool {
        let upstream = upstream(&self.call);
        upstream.series(&self.gateway.observe.registry).attempt(AttemptOutcome::ConnectFailed);
        let attempts = &mut self.call.attempts;
        if let (Some(picked), Failure::Connect(error)) = (&mut attempts.picked, failure) {
            picked.connect_failed();
            let reason = error.as_ref().map_or("timed out".to_owned(), ToString::to_string);
            log::debug!(upstream = &*upstream.name, backend:% = picked.address; "cannot connect: {reason}");
        }
        attempts.counted = true;
        attempts.connect_failures += 1;
        attempts.connect_failures <= u32::from(upstream.retries())
    }

    /// The backend is well, only the connection was old.
    fn forget_old_connection(&mut self) {
        let upstream = upstream(&self.call);
        upstream.series(&self.gateway.observe.registry).attempt(AttemptOutcome::Broken);
        let attempts = &mut self.call.attempts;
        attempts.counted = true;
        attempts.tried = Default::default();
        if let Some(picked) = &mut attempts.picked {
            picked.guard.unseen();
        }
    }

    /// One attempt's head, from a fresh copy of the request's.
    async fn head(&mut self) -> Result<Vec<u8>, Failure> {
        let call = &mut *self.call;
        let upstream = upstream(call);
        let picked = call.attempts.picked.take();
        let peer = call.connection.as_ref().and_then(|connection| connection.peer);
        let forwarding = Forwarding {
            peer: peer.map(|peer| peer.ip().to_canonical()),
            version: call.version,
            upstream: &upstream,
            picked: picked.as_ref(),
        };
        let attempt = call.attempts.made;
        let mut head = Vec::with_capacity(1024);
        let mut reply = None;
        if !call.exchange().write_upstream_request(&self.request, &forwarding, &mut head) {
            let mut request = self.request.clone();
            strip_hop_by_hop(&mut request);
            reply = call.exchange().upstream_request(&mut request, &forwarding, attempt).await;
            wire::write_request(&request, &mut head);
        }
        call.attempts.picked = picked;
        if let Some(reply) = reply {
            return Err(Failure::Refused(reply));
        }
        Ok(head)
    }

    /// How long this attempt may take.
    fn waits(&mut self) -> Result<Waits, Failure> {
        let upstream = upstream(&self.call);
        let events = self.call.events;
        let exchange = self.call.exchange();
        let idle = exchange.route.timeouts.read.map_or(upstream.read_timeout(), |limit| limit.get());
        let deadline = exchange.ctx.deadline;
        if deadline.is_some_and(|deadline| deadline <= Instant::now()) {
            return Err(failure::overdue().into());
        }
        Ok(Waits { idle, deadline: deadline.filter(|_| !events) })
    }

    /// Sends the request and passes the answer on; true if the backend's connection takes another request.
    async fn relay(&mut self, relay: &mut Relay<'_>) -> Result<bool, Failure> {
        let seen = self.call.exchange().stack.sees_response();
        loop {
            let Answer { head, body, reusable, rest } = relay.answer(&self.request.method, seen).await?;
            let mut head = match head {
                AnswerHead::Lines { status, lines, chunked } => {
                    response::answered(status, &mut self.call);
                    self.begins(status, relay);
                    let mut out = lines;
                    wire::end_answer(!self.keep, &mut out);
                    relay.finish(out, body, rest, chunked).await?;
                    return Ok(reusable);
                }
                AnswerHead::Whole(head) => head,
            };
            if head.status.is_informational() && head.status != StatusCode::SWITCHING_PROTOCOLS {
                relay.announce(self.interim(&mut head)?, rest).await?;
                continue;
            }
            let (out, chunked) = self.final_head(head, relay).await?;
            relay.finish(out, body, rest, chunked).await?;
            return Ok(reusable);
        }
    }

    /// An interim head, as it is sent on.
    fn interim(&mut self, head: &mut ResponseHeader) -> Result<Vec<u8>, Failure> {
        self.call.interim += 1;
        if self.call.interim > response::MAX_INTERIM {
            return Err(Trouble::Protocol("too many interim answers").into());
        }
        response::remove_framing(head);
        let mut out = Vec::with_capacity(256);
        wire::write_answer(head, false, &mut out);
        Ok(out)
    }

    /// The final head as filters make it, and whether the body comes in chunks.
    async fn final_head(
        &mut self,
        mut head: Box<ResponseHeader>,
        relay: &mut Relay<'_>,
    ) -> Result<(Vec<u8>, bool), Failure> {
        response::accept(&head, &mut self.call)?;
        if self.call.events {
            relay.forget_deadline();
        }
        response::strip_hop_by_hop(&mut head);
        self.call.exchange().response(&self.request, &mut head).await?;
        response::frame(&self.request.method, &mut head, self.call.version);
        if !head.headers.contains_key(header::DATE) {
            // RFC 9110 s6.6.1.
            let _ = head.insert_header("Date", get_cached_date());
        }
        self.begins(head.status.as_u16(), relay);
        let mut out = Vec::with_capacity(1024);
        wire::write_answer(&mut head, !self.keep, &mut out);
        Ok((out, head.headers.contains_key(header::TRANSFER_ENCODING)))
    }

    /// The final answer is about to go out.
    fn begins(&mut self, status: u16, relay: &Relay<'_>) {
        self.keep &= relay.is_uploaded() && !self.gateway.draining.is_on();
        self.call.attempts.answered = true;
        self.status = Some(status);
    }

    /// How the last attempt ended that failed so.
    pub(super) fn outcome(&self, failure: &Failure) -> AttemptOutcome {
        match failure {
            Failure::Trouble(Trouble::Client | Trouble::SlowClient) => AttemptOutcome::Cancelled,
            Failure::Connect(None) | Failure::Trouble(Trouble::Timeout(_)) => AttemptOutcome::TimedOut,
            _ if self.call.attempts.answered => AttemptOutcome::Answered,
            _ => AttemptOutcome::Broken,
        }
    }

    /// What a failure is answered with; `None` when the client is gone.
    pub(super) fn explain(&mut self, stream: &DoorStream, failure: Failure) -> Option<Reply> {
        let overdue = self.call.exchange().ctx.deadline.is_some_and(|deadline| Instant::now() >= deadline);
        let blamed = !matches!(failure, Failure::Refused(_) | Failure::Internal);
        let of_client = matches!(failure, Failure::Trouble(Trouble::Client | Trouble::SlowClient));
        if blamed && !of_client {
            self.tell(InFlight::failed);
        }
        let problem = match failure {
            Failure::Refused(reply) => return Some(reply),
            Failure::Trouble(Trouble::Client) => {
                let rule = stream.broken().filter(|rule| rule.kind().status != problem::CLIENT_CLOSED.status);
                let Some(rule) = rule else {
                    self.call.problem = Some(problem::CLIENT_CLOSED.code);
                    return None;
                };
                Problem::new(rule.kind()).detail(rule.detail())
            }
            Failure::Trouble(Trouble::SlowClient) => {
                stream.count(Rule::SlowBody);
                self.call.reason = Some(Rule::SlowBody.detail().to_owned());
                Problem::new(Rule::SlowBody.kind()).detail(Rule::SlowBody.detail())
            }
            Failure::Connect(None) | Failure::Trouble(Trouble::Timeout(_)) if overdue => failure::overdue(),
            Failure::Connect(None) => failure::timed_out("connect timeout"),
            Failure::Connect(Some(error)) => {
                // What the system says, which is not for clients to know.
                self.call.reason = Some(error.to_string());
                Problem::new(&problem::UPSTREAM_UNREACHABLE)
            }
            Failure::Trouble(Trouble::Timeout(which)) => failure::timed_out(which),
            Failure::Trouble(trouble) => {
                self.call.reason = Some(trouble.reason().to_owned());
                Problem::new(&problem::UPSTREAM_PROTOCOL)
            }
            Failure::Internal => Problem::new(&problem::INTERNAL),
        };
        Some(problem.into())
    }

    /// Tells the backend's numbers what became of the attempt.
    fn tell(&mut self, tell: impl FnOnce(&mut InFlight)) {
        if let Some(picked) = &mut self.call.attempts.picked {
            tell(&mut picked.guard);
        }
    }
}

/// A connection as backends get them.
async fn connect(address: std::net::SocketAddr) -> std::io::Result<TcpStream> {
    let stream = TcpStream::connect(address).await?;
    stream.set_nodelay(true)?;
    Ok(stream)
}
