//! Attempts at backends, and what a failed one leads to.

use std::time::{Duration, Instant};

use http::{HeaderMap, StatusCode, header};
use pingora::http::{RequestHeader, ResponseHeader};
use pingora::prelude::timeout;
use pingora::protocols::http::date::get_cached_date;
use tokio::net::TcpStream;
use tollhouse_filters::outcome::Reply;
use tollhouse_filters::problem::{self, Problem};

use super::Job;
use super::client::{Begin, Client, unless_stopped};
use super::early::Start;
use super::relay::{Filters, Relay, UpHead};
use super::trouble::{Failure, Silence, Trouble, Unconnected, Waits};
use super::wire::{self, Answer, AnswerHead, Form, Framing};
use crate::door::{End, Rule};
use crate::engine::{Forwarding, strip_hop_by_hop};
use crate::observe::AttemptOutcome;
use crate::proxy::Call;
use crate::proxy::failure::{self, PER_TRY};
use crate::proxy::replay;
use crate::proxy::request::upstream;
use crate::proxy::response;
use crate::upstream::{Fault, InFlight};

/// What an attempt begins with.
struct Begun {
    /// The part of the body that was read by those before; none if some of it is lost.
    body: Option<Vec<u8>>,
    /// Only a new connection will do.
    anew: bool,
}

impl Job<'_> {
    /// Tries backends until one answers, or there is to be no further attempt.
    pub(super) async fn attempts<C: Client>(&mut self, client: &mut C) -> Result<(), Failure> {
        let mut begun = Begun { body: Some(Vec::new()), anew: false };
        loop {
            let Err(failure) = self.attempt(client, &mut begun).await else { return Ok(()) };
            let wait = match self.fault(&failure) {
                Some(fault) => {
                    // The other connections may be as old.
                    begun.anew = fault.is_old_connection();
                    self.again(fault, self.outcome(&failure), begun.body.is_some())
                }
                None if matches!(failure, Failure::Again) && begun.body.is_some() => {
                    self.call.attempts.wait.take()
                }
                None => None,
            };
            let Some(wait) = wait else { return Err(failure) };
            if !wait.is_zero() {
                // On the heap: most requests do not wait.
                Box::pin(unless_stopped(client, tokio::time::sleep(wait))).await?;
            }
        }
    }

    /// One attempt at one backend.
    async fn attempt<C: Client>(&mut self, client: &mut C, begun: &mut Begun) -> Result<(), Failure> {
        let (server, reused) = unless_stopped(client, self.connect(begun.anew)).await??;
        let head = self.head().await?;
        let keep = self.call.rules().keep(&self.request.method, &self.request.headers, reused);
        let waits = self.waits()?;
        self.call.exchange().sending();
        let start = match &self.call.body {
            Some(whole) => Start::Whole(whole.clone()),
            None => Start::Part(begun.body.take().unwrap_or_default(), keep),
        };
        let mut relay = Relay::new(client, server, head, waits, start);
        let relayed = self.relay(&mut relay).await;
        if self.call.body.is_none() {
            self.bytes_in = relay.taken;
        }
        self.bytes_out += relay.sent();
        let uploaded = &mut self.call.attempts.uploaded;
        *uploaded = uploaded.or(relay.uploaded_at());
        if relayed.is_err() && self.status.is_none() {
            self.tell(|guard| relay.tell_upload(guard));
        }
        match relayed {
            Ok(reusable) => {
                let now = Instant::now();
                if let Some(server) = relay.into_server().filter(|_| reusable)
                    && let Some(picked) = &self.call.attempts.picked
                {
                    upstream(&self.call).keep(picked, server, now);
                }
                self.call.over = Some(now);
                client.rests_since(now);
                Ok(())
            }
            Err(Failure::Trouble(Trouble::Unanswered)) => {
                let silence = match relay.is_begun() {
                    false => Silence::Unsent,
                    true if reused => Silence::Stale,
                    true => Silence::New,
                };
                begun.body = relay.again();
                Err(Failure::Silence(silence))
            }
            Err(Failure::Trouble(Trouble::Refused)) => {
                Err(relay.refused.take().map_or(Failure::Internal, Failure::Body))
            }
            Err(failure) => {
                begun.body = relay.again();
                Err(failure)
            }
        }
    }

    /// Chooses a backend that was not tried yet and gives a connection to it, and whether that is an old one,
    /// as it is not if it is to be made `anew`.
    async fn connect(&mut self, anew: bool) -> Result<(TcpStream, bool), Failure> {
        self.call.next_backend()?;
        let once = !self.call.rules().may_repeat(&self.request.method, &self.request.headers);
        let picked = self.call.attempts.picked.as_ref().expect("one was chosen");
        let (upstream, address) = (upstream(&self.call), picked.address);
        let old = if anew { None } else { upstream.reuse(picked, once) };
        if let Some(old) = old {
            return Ok((old, true));
        }
        let try_until = self.call.try_until();
        let exchange = self.call.exchange.as_ref().expect("it was taken in");
        let limit = exchange.route.timeouts.connect.map_or(upstream.connect_timeout(), |limit| limit.get());
        let now = Instant::now();
        let left = exchange.ctx.deadline.map(|deadline| deadline.saturating_duration_since(now));
        if left.is_some_and(|left| left.is_zero()) {
            return Err(failure::overdue().into());
        }
        let of_try = try_until.map(|until| until.saturating_duration_since(now));
        let which = if of_try.is_some_and(|of_try| of_try < limit) { PER_TRY } else { "connect timeout" };
        let limit = [left, of_try].into_iter().flatten().fold(limit, Duration::min);
        // On the heap: most requests find a connection.
        let connected = Box::pin(timeout(limit, connect(address))).await;
        let error = match connected {
            Ok(Ok(stream)) => return Ok((stream, false)),
            Ok(Err(error)) => Unconnected::Error(error),
            Err(_) => Unconnected::Late(which),
        };
        log::debug!(upstream = &*upstream.name, backend:% = address; "cannot connect: {error}");
        Err(Failure::Connect(error))
    }

    /// What this failure is to the rules of retries; none if no rule is about it.
    fn fault(&self, failure: &Failure) -> Option<Fault> {
        let begun = self.status.is_some();
        match failure {
            Failure::Connect(_) => Some(Fault::Connect),
            Failure::Silence(Silence::Unsent) => Some(Fault::Unsent),
            Failure::Silence(Silence::Stale) => Some(Fault::Stale),
            Failure::Silence(Silence::New) => Some(Fault::Reset),
            Failure::Trouble(Trouble::Cut | Trouble::Protocol(_) | Trouble::Timeout(_)) if !begun => {
                Some(Fault::Reset)
            }
            Failure::Trouble(_)
            | Failure::Refused(_)
            | Failure::Body(_)
            | Failure::Again
            | Failure::Internal => None,
        }
    }

    fn again(&mut self, fault: Fault, outcome: AttemptOutcome, repeatable: bool) -> Option<Duration> {
        let registry = &self.gateway.observe.registry;
        self.call.again(fault, outcome, &self.request, repeatable, registry)
    }

    /// Whether there is another attempt in the place of an answer with this status.
    fn answer_is_fault<C: Client>(
        &mut self,
        status: u16,
        fields: Option<&HeaderMap>,
        relay: &Relay<'_, C>,
    ) -> bool {
        let Some(fault) = self.call.rules().fault_of(status, fields) else { return false };
        let wait = self.again(fault, AttemptOutcome::Answered, relay.is_repeatable());
        self.call.attempts.wait = wait;
        wait.is_some()
    }

    /// One attempt's head, from a fresh copy of the request's.
    async fn head(&mut self) -> Result<UpHead, Failure> {
        let left = self.call.time_left();
        let Call { exchange, connection, attempts, version, body, .. } = &mut *self.call;
        let (Some(exchange), Some(upstream)) = (exchange, &attempts.upstream) else {
            return Err(Failure::Internal);
        };
        let peer = connection.as_ref().and_then(|connection| connection.peer);
        let forwarding = Forwarding {
            peer: peer.map(|peer| peer.ip().to_canonical()),
            version: *version,
            upstream,
            picked: attempts.picked.as_ref(),
            left,
        };
        let mut bytes = Vec::with_capacity(1024);
        let mut reply = None;
        let mut promised = length_of(&self.request);
        let is_framed = promised.is_some() || !self.in_pieces;
        if !(is_framed && exchange.write_upstream_request(&self.request, &forwarding, &mut bytes)) {
            let mut request = self.request.clone();
            strip_hop_by_hop(&mut request);
            reply = exchange.upstream_request(&mut request, &forwarding, attempts.made).await;
            if let Some(whole) = body {
                replay::prepare_head(&mut request, whole.len()).map_err(|_| Failure::Internal)?;
            }
            // A filter that changes content takes its length away.
            promised = length_of(&request);
            if self.in_pieces && promised.is_none() {
                let _ = request.insert_header(header::TRANSFER_ENCODING, "chunked");
            }
            wire::write_request(&request, &mut bytes);
        }
        match reply {
            Some(reply) => Err(Failure::Refused(reply)),
            None => Ok(UpHead { bytes, promised }),
        }
    }

    /// How long this attempt may take.
    fn waits(&mut self) -> Result<Waits, Failure> {
        let of_upstream = upstream(&self.call).read_timeout();
        let (events, per_try, head) = (self.call.events, self.call.rules().per_try(), self.call.try_until());
        let exchange = self.call.exchange();
        let idle = exchange.route.timeouts.read.map_or(of_upstream, |limit| limit.get());
        let deadline = exchange.ctx.deadline;
        if deadline.is_some_and(|deadline| deadline <= Instant::now()) {
            return Err(failure::overdue().into());
        }
        Ok(Waits { idle, deadline: deadline.filter(|_| !events), head, per_try })
    }

    /// Sends the request and passes the answer on; true if the backend's connection takes another request.
    async fn relay<C: Client>(&mut self, relay: &mut Relay<'_, C>) -> Result<bool, Failure> {
        let exchange = self.call.exchange();
        let seen = exchange.sees_response() || exchange.stack.sees_response_chunks();
        let invalidates = exchange.invalidates(&self.request);
        let form = match seen || upstream(&self.call).is_sticky() || self.call.rules().read_fields() {
            _ if !C::HTTP1 => Form::Plain,
            true => Form::Spelt,
            false if invalidates => Form::Nameless,
            false => Form::Lines,
        };
        loop {
            let seeing = filters(&mut self.call, self.in_pieces);
            let answer = relay.answer(&self.request.method, form, seeing).await?;
            let Answer { head, body, reusable, rest } = answer;
            self.tell(|guard| relay.tell_upload(guard));
            let mut head = match head {
                AnswerHead::Lines(lines) if self.answer_is_fault(lines.status, None, relay) => {
                    return Err(Failure::Again);
                }
                AnswerHead::Lines(lines) => {
                    response::answered(lines.status, &mut self.call);
                    relay.ends_by(self.answer_ends_by()?);
                    if invalidates {
                        let status = StatusCode::from_u16(lines.status).unwrap_or_default();
                        self.call.exchange().invalidate(&self.request, status, &HeaderMap::new());
                    }
                    self.begins(lines.status, relay);
                    let seeing = filters(&mut self.call, self.in_pieces);
                    relay.finish(lines.begin(!self.keep), body, rest, seeing).await?;
                    return Ok(reusable);
                }
                AnswerHead::Whole(head) => head,
            };
            if head.status.is_informational() && head.status != StatusCode::SWITCHING_PROTOCOLS {
                relay.announce(self.interim::<C>(&mut head)?, rest).await?;
                continue;
            }
            if self.answer_is_fault(head.status.as_u16(), Some(&head.headers), relay) {
                return Err(Failure::Again);
            }
            let begin = self.final_head(head, relay, &body).await?;
            relay.finish(begin, body, rest, filters(&mut self.call, self.in_pieces)).await?;
            return Ok(reusable);
        }
    }

    /// When the answer that came has to be over. It is known now whether it is what the client said it takes.
    fn answer_ends_by(&mut self) -> Result<Option<Instant>, Failure> {
        let deadline = self.call.exchange().ctx.deadline.filter(|_| !self.call.events);
        let is_over = deadline.is_some_and(|deadline| deadline <= Instant::now());
        if is_over { Err(failure::overdue().into()) } else { Ok(deadline) }
    }

    /// An interim head, as it is sent on.
    fn interim<C: Client>(&mut self, head: &mut ResponseHeader) -> Result<Vec<u8>, Failure> {
        self.call.interim += 1;
        if self.call.interim > response::MAX_INTERIM {
            return Err(Trouble::Protocol("too many interim answers").into());
        }
        Ok(C::interim(head))
    }

    /// Begins the answer with the final head as filters make it.
    async fn final_head<C: Client>(
        &mut self,
        mut head: Box<ResponseHeader>,
        relay: &mut Relay<'_, C>,
        body: &Framing,
    ) -> Result<Begin, Failure> {
        response::accept(&head, &mut self.call)?;
        relay.ends_by(self.answer_ends_by()?);
        response::strip_hop_by_hop(&mut head);
        self.call.exchange().invalidate(&self.request, head.status, &head.headers);
        self.call.exchange().response(&self.request, &mut head).await?;
        // Ours, not the upstream's: no filter is to take it for a part of the answer.
        self.call.stick(&mut head);
        response::frame(&self.request.method, &mut head, self.call.version);
        if !head.headers.contains_key(header::DATE) {
            // RFC 9110 s6.6.1.
            let _ = head.insert_header("Date", get_cached_date());
        }
        self.begins(head.status.as_u16(), relay);
        // A filter that changes content takes its length away.
        let changed = !head.headers.contains_key(header::CONTENT_LENGTH);
        let length = match body {
            Framing::None => Some(0),
            Framing::Length(length) => Some(*length).filter(|_| !changed),
            Framing::Chunked(_) | Framing::Close => None,
        };
        let begin = relay.client().begin(head, !self.keep, length);
        begin.map_err(|_| Trouble::Client.into())
    }

    /// The final answer is about to go out.
    fn begins<C: Client>(&mut self, status: u16, relay: &Relay<'_, C>) {
        self.keep &= relay.is_uploaded() && !self.gateway.draining.is_on();
        self.call.attempts.answered = true;
        self.status = Some(status);
    }

    /// How the last attempt ended that failed so.
    pub(super) fn outcome(&self, failure: &Failure) -> AttemptOutcome {
        match failure {
            Failure::Body(_) => AttemptOutcome::Cancelled,
            Failure::Trouble(trouble) if trouble.is_of_client() => AttemptOutcome::Cancelled,
            Failure::Connect(_) if !self.call.attempts.answered => AttemptOutcome::ConnectFailed,
            Failure::Trouble(Trouble::Timeout(_)) => AttemptOutcome::TimedOut,
            _ if self.call.attempts.answered => AttemptOutcome::Answered,
            _ => AttemptOutcome::Broken,
        }
    }

    /// What a failure is answered with; `None` when the client is gone.
    pub(super) fn explain<C: Client>(&mut self, client: &C, failure: Failure) -> Option<Reply> {
        let overdue = self.call.exchange().ctx.deadline.is_some_and(|deadline| Instant::now() >= deadline);
        let blamed = match failure {
            Failure::Refused(_) | Failure::Body(_) | Failure::Internal | Failure::Again => false,
            Failure::Trouble(trouble) => !trouble.is_of_client() && trouble != Trouble::Filter,
            Failure::Connect(_) | Failure::Silence(_) => true,
        };
        if blamed && !self.call.is_spared() {
            self.tell(InFlight::failed);
        }
        let problem = match failure {
            Failure::Refused(reply) | Failure::Body(reply) => return Some(reply),
            Failure::Trouble(Trouble::Client) => {
                let rule = client.broken().and_then(End::rule);
                let rule = rule.filter(|rule| rule.kind().status != problem::CLIENT_CLOSED.status);
                let Some(rule) = rule else {
                    self.call.problem = Some(problem::CLIENT_CLOSED.code);
                    return None;
                };
                Problem::new(rule.kind()).detail(rule.detail())
            }
            Failure::Trouble(Trouble::SlowClient) => {
                client.count(Rule::SlowBody);
                self.call.reason = Some(Rule::SlowBody.detail().to_owned());
                Problem::new(Rule::SlowBody.kind()).detail(Rule::SlowBody.detail())
            }
            Failure::Trouble(Trouble::LateClient) => {
                self.call.reason = Some(Trouble::LateClient.reason().to_owned());
                Problem::new(&problem::REQUEST_TIMEOUT).detail(failure::TOTAL)
            }
            Failure::Connect(Unconnected::Late(_)) | Failure::Trouble(Trouble::Timeout(_)) if overdue => {
                failure::overdue()
            }
            Failure::Connect(Unconnected::Late(which)) => failure::timed_out(which),
            Failure::Connect(Unconnected::Error(error)) => {
                // What the system says, which is not for clients to know.
                self.call.reason = Some(error.to_string());
                Problem::new(&problem::UPSTREAM_UNREACHABLE)
            }
            Failure::Trouble(Trouble::Timeout(which)) => failure::timed_out(which),
            Failure::Trouble(trouble) => {
                self.call.reason = Some(trouble.reason().to_owned());
                Problem::new(&problem::UPSTREAM_PROTOCOL)
            }
            Failure::Silence(_) => {
                self.call.reason = Some(Trouble::Unanswered.reason().to_owned());
                Problem::new(&problem::UPSTREAM_PROTOCOL)
            }
            Failure::Internal | Failure::Again => Problem::new(&problem::INTERNAL),
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

/// The filters that look at pieces of the answer, and of the request if it goes by so.
fn filters(call: &mut Call, in_pieces: bool) -> Filters<'_> {
    let exchange = call.exchange();
    let see_answers = exchange.stack.sees_response_chunks();
    Filters { exchange, see_requests: in_pieces, see_answers }
}

/// The length that a head declares of its body.
fn length_of(request: &RequestHeader) -> Option<u64> {
    response::content_length(request.headers.get(header::CONTENT_LENGTH)?.as_bytes())
}

/// A connection as backends get them.
async fn connect(address: std::net::SocketAddr) -> std::io::Result<TcpStream> {
    let stream = TcpStream::connect(address).await?;
    stream.set_nodelay(true)?;
    Ok(stream)
}
