//! Fetching what is not stored: the same request from the cache on, as a task of its own.

mod validated;

use std::borrow::Cow;
use std::sync::Arc;
use std::time::{Duration, Instant};

use http::header::{
    AUTHORIZATION, CONTENT_LENGTH, ETAG, HeaderMap, IF_MODIFIED_SINCE, IF_NONE_MATCH, LAST_MODIFIED,
    SET_COOKIE,
};
use http::{HeaderName, Method, StatusCode};
use pingora::http::{RequestHeader, ResponseHeader};
use tokio::sync::mpsc::UnboundedSender;
use tollhouse_filters::caching::{
    Ask, Facts, NotStored, Plan, RequestDirectives, Serve, Times, Vary, facts, judge, serves_on_error,
    variant,
};
use tollhouse_filters::context::Scheme;
use tollhouse_filters::events;
use tollhouse_filters::outcome::{Body, Message, Reply};
use tollhouse_filters::phase::Completed;
use tollhouse_filters::problem::{self, CLIENT_CLOSED, Problem};
use tollhouse_filters::template::Escape;

use super::flight::{Lead, Phase};
use super::growing::Growing;
use super::inner::Inner;
use super::keep::Work;
use super::store::Entry;
use super::told::{Asker, Filled};
use super::{Cache, Key, Via, head, now};
use crate::engine::{Decision, Exchange, Forwarding};
use crate::observe::AttemptOutcome;
use crate::upstream::call::{self, Account, CallError, CallOptions, Payload};
use crate::upstream::{Backend, Upstream, Verdict};

/// The same request from the cache on.
pub(super) struct Fill {
    cache: Arc<Cache>,
    plan: Arc<Plan>,
    directives: RequestDirectives,
    key: Key,
    tags: Vec<String>,
    exchange: Exchange,
    head: RequestHeader,
    /// The fields by which the client may be told apart.
    asked: HeaderMap,
    /// What the cache was asked had `Authorization`, or a filter behind it wrote one, perhaps of what is in no key.
    has_credentials: bool,
    via: Via,
    stored: Option<Arc<Entry>>,
    lead: Lead,
    /// Where interim answers go.
    interim: UnboundedSender<ResponseHeader>,
    /// Whether the client came over TLS.
    tls: bool,
    /// How long the upstream took to answer, once it was asked.
    took: Option<Duration>,
}

/// An upstream's answer, and when it came.
struct Came {
    reply: call::Reply,
    times: Times,
}

impl Fill {
    pub(super) fn new(
        cache: Arc<Cache>,
        ask: &Ask,
        (mut exchange, mut head): (Exchange, RequestHeader),
        request: &RequestHeader,
        via: Via,
        stored: Option<Arc<Entry>>,
        (lead, interim): (Lead, UnboundedSender<ResponseHeader>),
    ) -> Self {
        exchange.fetch_for_all(ask, &mut head);
        let tls = exchange.ctx.scheme == Scheme::Https;
        let has_credentials = head.headers.contains_key(AUTHORIZATION);
        let tags = ask.plan.tags.iter().map(|tag| tag.render(request, &exchange.ctx, Escape::Text)).collect();
        Self {
            cache,
            plan: ask.plan.clone(),
            directives: ask.directives,
            key: Key::from_bytes(ask.key.clone().into()),
            tags,
            exchange,
            head,
            asked: request.headers.clone(),
            has_credentials,
            via,
            stored,
            lead,
            interim,
            tls,
            took: None,
        }
    }

    /// Asks the origin, tells who waits, and stores what may be stored.
    pub(super) async fn run(mut self, mut asker: Asker) {
        let way = self.way(&mut asker).await;
        asker.fetched.goes(&self.exchange);
        let upstream = match way {
            Some(Ok(upstream)) => upstream,
            Some(Err(reply)) => {
                if let Some(stored) = self.stored_however_old() {
                    let phase = Phase::Stale(stored.clone());
                    return self.stale(
                        asker,
                        (phase, Filled::Stale(stored, problem::CIRCUIT_OPEN.code, None)),
                        None,
                    );
                }
                let refusal = refusal(&reply);
                match self.stale_for(refusal.is_some(), true) {
                    Some(stored) => return self.stale_if_error(asker, stored, (true, None)),
                    None => return self.own(asker, reply, refusal.unwrap_or("filter")).await,
                }
            }
            None => return self.finish(CLIENT_CLOSED.status, 0),
        };
        // Another upstream knows nothing of what is stored.
        let validated = !self.exchange.diverted && self.condition();
        match self.send(&upstream, &mut asker).await {
            Ok(came) if came.reply.head.status == StatusCode::NOT_MODIFIED && validated => {
                Box::pin(self.validated(asker, came, upstream)).await;
            }
            Ok(came) => Box::pin(self.answered(asker, came, &upstream)).await,
            Err(error) => self.failed(asker, &error),
        }
    }

    /// As [`Fill::upstream`]; none if all who wait for it went away meanwhile: then it gives up its place in queues.
    async fn way(&mut self, asker: &mut Asker) -> Option<Result<Arc<Upstream>, Reply>> {
        let waiting = self.lead.waiting();
        tokio::select! {
            biased;
            upstream = self.upstream() => Some(upstream),
            () = async { asker.gone().await; waiting.over().await } => None,
        }
    }

    /// Where it goes, or what a filter behind the cache answers.
    async fn upstream(&mut self) -> Result<Arc<Upstream>, Reply> {
        loop {
            match self.exchange.decide(&mut self.head).await {
                Decision::Reply(reply) => {
                    let waits = self.exchange.wants_body_before_answer().is_some();
                    let refused = if waits { self.exchange.no_body(&mut self.head).await } else { None };
                    return Err(refused.unwrap_or(reply));
                }
                Decision::Cache(_) => {}
                Decision::Forward(upstream) => {
                    if let Some(reply) = self.exchange.no_body(&mut self.head).await {
                        return Err(reply);
                    }
                    // Only what proves who the gateway is comes after this.
                    self.has_credentials |= self.head.headers.contains_key(AUTHORIZATION);
                    let Via { peer, version } = self.via;
                    let retries = self.exchange.route.retries.as_deref();
                    let left = upstream.time_told(self.exchange.ctx.deadline, retries);
                    let forwarding = Forwarding { peer, version, upstream: &upstream, picked: None, left };
                    return match self.exchange.upstream_request(&mut self.head, &forwarding, 0).await {
                        Some(reply) => Err(reply),
                        None => Ok(upstream),
                    };
                }
            }
        }
    }

    /// Whether the origin got this field as the client sent it: what the gateway writes itself, a request cannot be
    /// compared by (RFC 9111 s4.1).
    fn is_sent_as_asked(&self, name: &HeaderName) -> bool {
        self.asked.get_all(name).iter().eq(self.head.headers.get_all(name).iter())
    }

    /// Asks whether what is stored still holds (RFC 9111 s4.3.1); false if that cannot be asked.
    fn condition(&mut self) -> bool {
        let Some(stored) = &self.stored else { return false };
        let Ok(known) = head::parse(stored.status(), &stored.lines_bytes()) else { return false };
        let pairs = [(ETAG, IF_NONE_MATCH), (LAST_MODIFIED, IF_MODIFIED_SINCE)];
        let mut any = false;
        for (of, condition) in pairs {
            if let Some(value) = known.headers.get(of) {
                any |= self.head.insert_header(condition, value.clone()).is_ok();
            }
        }
        any
    }

    /// Sends the request; metrics, and who began it, are told of every attempt.
    async fn send(&mut self, upstream: &Upstream, asker: &mut Asker) -> Result<Came, CallError> {
        let ctx = &self.exchange.ctx;
        let mut key = Vec::new();
        upstream.write_key(&self.head, Some(ctx), &mut key);
        let timeouts = &self.exchange.route.timeouts;
        let left = ctx.deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
        let options = CallOptions {
            retries: self.exchange.route.retries.as_deref().cloned(),
            stuck: upstream.stuck_to(&self.head),
            timeout: Some(left),
            key: key.into(),
            connect: timeouts.connect.map(|limit| limit.get()),
            read: timeouts.read.map(|limit| limit.get()),
            interim: Some(self.interim.clone()),
        };
        let (sent, begun) = (now(), Instant::now());
        let (request, mut account) = ((self.head.clone(), Payload::EMPTY), Account::default());
        let reply = self.cache.caller.send_and_tell(upstream, request, options, &mut account).await;
        self.took = Some(begun.elapsed());
        self.exchange.attempted(&account);
        account.count(upstream.series(&self.cache.observe.registry));
        asker.fetched.account.attempts.append(&mut account.attempts);
        asker.fetched.reason = reply.as_ref().err().map(ToString::to_string);
        let answered = reply.as_ref().is_ok_and(|reply| reply.head.status.as_u16() < 500);
        let verdict = if answered { Verdict::Answered } else { Verdict::Failed };
        self.exchange.admission.settle(verdict, Instant::now(), Duration::ZERO);
        Ok(Came { reply: reply?, times: Times { sent, received: now() } })
    }

    fn facts(&self, answer: &ResponseHeader, times: Times) -> Result<Facts, NotStored> {
        let mut asked = Cow::Borrowed(&self.head.headers);
        if !self.has_credentials && asked.contains_key(AUTHORIZATION) {
            // By these the gateway proves who it is, whoever asks (RFC 9111 s3.5).
            asked.to_mut().remove(AUTHORIZATION);
        }
        facts(&self.plan.rules, (&Method::GET, &*asked), (answer.status, &answer.headers), times)
    }

    /// What requests that an answer is for have (RFC 9111 s4.1); else why it is not stored.
    fn variant(&self, answer: &ResponseHeader) -> Result<Vec<u8>, NotStored> {
        match Vary::of(&answer.headers).and(&self.plan.vary) {
            Vary::By(names) if names.iter().all(|name| self.is_sent_as_asked(name)) => {
                Ok(variant(&names, &self.asked))
            }
            Vary::By(_) => Err(NotStored::VaryRewritten),
            _ => Err(NotStored::VaryMany),
        }
    }

    /// What is to be known of an answer to be stored, and the requests that it is for; else why it is not.
    fn storable(
        &self,
        head: &ResponseHeader,
        times: Times,
        (delimited, declared): (bool, Option<u64>),
    ) -> Result<(Facts, Vec<u8>), NotStored> {
        if self.exchange.diverted {
            return Err(NotStored::Diverted);
        }
        let facts = self.facts(head, times)?;
        if declared.is_some_and(|length| length > self.plan.max_object) {
            return Err(NotStored::TooLarge);
        }
        if !delimited || events::are_in(&head.headers) {
            return Err(NotStored::Endless);
        }
        if !self.cache.has_room(declared) {
            return Err(NotStored::Memory);
        }
        Ok((facts, self.variant(head)?))
    }

    /// Whether the client is not known to stay with this backend.
    fn is_new(&self, backend: &Arc<Backend>, upstream: &Upstream) -> bool {
        upstream.stuck_to(&self.head).is_none_or(|known| !Arc::ptr_eq(&known, backend))
    }

    async fn answered(mut self, asker: Asker, came: Came, upstream: &Upstream) {
        let Came { reply: call::Reply { mut head, body, delimited, backend }, times } = came;
        let status = head.status;
        if let Some(stored) = self.stale_for(matches!(status.as_u16(), 500 | 502..=504), true) {
            return self.stale_if_error(asker, stored, (true, Some(status.as_u16())));
        }
        let declared = match length(&head) {
            Ok(declared) if status != StatusCode::NOT_MODIFIED => declared,
            _ => return self.own(asker, Problem::new(&problem::UPSTREAM_PROTOCOL).into(), "protocol").await,
        };
        if let Err(problem) = self.exchange.response(&self.head, &mut head).await {
            return self.own(asker, problem.into(), "filter").await;
        }
        let storable = self.storable(&head, times, (delimited, declared));
        let passes = self.outlasts(status, upstream).then_some(NotStored::Error);
        let stays_with = Some(backend).filter(|backend| self.is_new(backend, upstream));
        let authorized = self.asked.contains_key(AUTHORIZATION);
        // For events there is no time in all.
        let body = if events::are_in(&head.headers) { body.without_deadline() } else { body };
        let body = Inner::new(body, self.exchange, declared, status, self.took);
        match storable {
            Ok((facts, variant)) => {
                let held = (self.cache.held.clone(), self.cache.expected(declared));
                let growing = Growing::new(head, facts, variant, held);
                let work = Work {
                    cache: self.cache,
                    plan: self.plan,
                    key: self.key,
                    tags: self.tags,
                    lead: self.lead,
                    authorized,
                    passes,
                };
                work.store(asker, growing, body).await;
            }
            Err(why) => {
                // Who asks anew for what is fresh is not to decide for others what becomes of it.
                let is_needless = self.stored.as_ref().is_some_and(is_fresh);
                // Where nothing is stored, what is said of who asks may be said to all: nobody waits to hear it.
                let lasts = why.will_last() || (why == NotStored::Asker && self.stored.is_none());
                if lasts && !is_needless {
                    self.cache.flights.note_uncacheable(self.lead.key(), authorized);
                }
                self.cache.counts.not_stored.inc();
                let is_final = !is_needless && !why.is_of_request() && !status.is_server_error();
                if let Some(stored) = self.stored.filter(|_| is_final) {
                    // What was stored is no longer what the origin answers.
                    self.cache.store.remove(&stored);
                }
                if let Some(cookie) = stays_with.and_then(|backend| upstream.stick(&backend, self.tls)) {
                    // Only here, where the answer is for one client alone.
                    let _ = head.append_header(SET_COOKIE, cookie);
                }
                let message = Message { head, body: Body::Stream(Box::new(body)) };
                asker.end(self.lead, Filled::Own(Reply::Message(Box::new(message)), Some(why.name())));
            }
        }
    }

    /// What is stored, if the upstream is left alone and has it served then (RFC 9111 s4.2.4: disconnected).
    fn stored_however_old(&self) -> Option<Arc<Entry>> {
        let wanted = self.exchange.takes_stale && !self.directives.no_cache;
        self.stored.as_ref().filter(|stored| wanted && is_for_good(stored)).cloned()
    }

    /// Whether what is stored is worth more to others than an error in its place: it is fresh, or stands in for an origin
    /// that is gone.
    fn outlasts(&self, status: StatusCode, upstream: &Upstream) -> bool {
        let is_better = |stored: &&Arc<Entry>| status.is_server_error() && stored.status() < 500;
        let Some(stored) = self.stored.as_ref().filter(is_better) else { return false };
        let others = RequestDirectives::default();
        let takes_stale = upstream.fallback().is_some_and(|fallback| fallback.stale);
        (takes_stale && is_for_good(stored))
            || is_fresh(stored)
            || serves_on_error(stored.facts(), &others, stored.standing(), (false, now()))
    }

    /// What is stored, if it may be served in the place of what came.
    fn stale_for(&self, failed: bool, reached: bool) -> Option<Arc<Entry>> {
        let stored = self.stored.as_ref().filter(|_| failed)?;
        let asked = (reached, now());
        serves_on_error(stored.facts(), &self.directives, stored.standing(), asked).then(|| stored.clone())
    }

    fn stale_if_error(self, asker: Asker, stored: Arc<Entry>, (reached, came): (bool, Option<u16>)) {
        let phase = Phase::StaleIfError(stored.clone(), reached);
        self.stale(asker, (phase, Filled::Stale(stored, "stale-if-error", came)), came);
    }

    fn stale(mut self, asker: Asker, (phase, filled): (Phase, Filled), came: Option<u16>) {
        self.cache.counts.failed.inc();
        self.lead.tell(phase);
        self.finish(came.unwrap_or(502), 0);
        asker.end(self.lead, filled);
    }

    fn failed(mut self, asker: Asker, error: &CallError) {
        // What keeps a request waiting is there, unless that was for the connection; what breaks off may be gone.
        let last = asker.fetched.account.attempts.last();
        let connected = last.is_some_and(|last| last.outcome != AttemptOutcome::ConnectFailed);
        let reached = connected && matches!(error, CallError::Timeout(_));
        if let Some(stored) = self.stale_for(true, reached) {
            return self.stale_if_error(asker, stored, (reached, None));
        }
        self.cache.counts.failed.inc();
        let problem = error.problem();
        self.lead.tell(Phase::Failed(Arc::new(problem.clone())));
        self.finish(problem.status(), 0);
        asker.end(self.lead, Filled::Own(problem.into(), None));
    }

    /// Ends with an answer for who began it alone.
    async fn own(mut self, mut asker: Asker, reply: Reply, why: &'static str) {
        self.cache.counts.not_stored.inc();
        asker.fetched.answers(&reply, &self.exchange);
        let rendered = self.exchange.rendered(reply, &self.head).await;
        self.finish(rendered.head.status.as_u16(), 0);
        let message = Message { head: rendered.head, body: rendered.body };
        asker.end(self.lead, Filled::Own(Reply::Message(Box::new(message)), Some(why)));
    }

    fn finish(&mut self, status: u16, bytes: u64) {
        let elapsed = self.exchange.ctx.started.elapsed();
        self.exchange.finish(&Completed { status, elapsed, bytes_in: 0, bytes_out: bytes });
        // An upstream that is left alone is not asked, and its requests fail all the same.
        if self.took.is_some() || self.exchange.turned_away {
            self.exchange.note_for_ramp(status, false, self.took);
        }
    }
}

/// Whether a stored answer is served to who does not ask for more.
fn is_fresh(stored: &Arc<Entry>) -> bool {
    let directives = RequestDirectives::default();
    judge(stored.facts(), &directives, stored.standing(), now()).serve == Serve::AsItIs
}

/// Whether a stored answer may be served however old.
fn is_for_good(stored: &Arc<Entry>) -> bool {
    !stored.facts().no_stale && !stored.is_purged() && stored.status() < 500
}

/// Why the upstream was not asked, where that is since it is left alone, or has enough to do.
fn refusal(reply: &Reply) -> Option<&'static str> {
    let Reply::Problem(problem) = reply else { return None };
    let refusals = [problem::CIRCUIT_OPEN.code, problem::UPSTREAM_BUSY.code];
    refusals.into_iter().find(|code| *code == problem.kind.code)
}

/// The length that a head tells; it must be one number. What has no body has none.
fn length(head: &ResponseHeader) -> Result<Option<u64>, ()> {
    if matches!(head.status, StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED) {
        return Ok(None);
    }
    let mut lines = head.headers.get_all(CONTENT_LENGTH).iter();
    let Some(line) = lines.next() else { return Ok(None) };
    let text = line.to_str().map_err(|_| ())?;
    let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    if !digits || lines.next().is_some() {
        return Err(());
    }
    text.parse().map(Some).map_err(|_| ())
}
