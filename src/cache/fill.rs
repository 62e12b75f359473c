//! Fetching what is not stored: the same request from the cache on, as a task of its own.

use std::sync::Arc;
use std::time::{Duration, Instant};

use http::header::{
    AUTHORIZATION, CONTENT_LENGTH, ETAG, HeaderMap, IF_MODIFIED_SINCE, IF_NONE_MATCH, IF_RANGE,
    LAST_MODIFIED, RANGE, SET_COOKIE,
};
use http::{HeaderName, Method, StatusCode};
use pingora::http::{RequestHeader, ResponseHeader};
use tokio::sync::mpsc::UnboundedSender;
use tollhouse_filters::caching::{
    Ask, Facts, NotStored, Plan, RequestDirectives, Serve, Times, Vary, facts, judge, serves_on_error,
    variant,
};
use tollhouse_filters::context::Scheme;
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
use crate::upstream::call::{self, Account, CallError, CallOptions, Payload, Waiting};
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
        (exchange, mut head): (Exchange, RequestHeader),
        request: &RequestHeader,
        via: Via,
        stored: Option<Arc<Entry>>,
        (lead, interim): (Lead, UnboundedSender<ResponseHeader>),
    ) -> Self {
        head.set_method(Method::GET);
        // What the client has, or wants a part of, is not what is fetched.
        for name in [IF_NONE_MATCH, IF_MODIFIED_SINCE, IF_RANGE, RANGE] {
            head.remove_header(&name);
        }
        if let Some(target) = &ask.target {
            let mut parts = head.uri.clone().into_parts();
            parts.path_and_query = Some(target.clone());
            if let Ok(uri) = http::Uri::from_parts(parts) {
                head.set_uri(uri);
            }
        }
        let tls = exchange.ctx.scheme == Scheme::Https;
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
                match self.stale_for(is_refusal(&reply), true) {
                    Some(stored) => return self.stale_if_error(asker, stored, (true, None)),
                    None => return self.own(asker, reply, "filter").await,
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
                Decision::Reply(reply) => return Err(reply),
                Decision::Cache(_) => {}
                Decision::Forward(upstream) => {
                    if let Some(reply) = self.exchange.no_body(&mut self.head).await {
                        return Err(reply);
                    }
                    let Via { peer, version } = self.via;
                    let deadline =
                        self.exchange.ctx.deadline.filter(|_| upstream.remaining_header().is_some());
                    let left = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
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

    /// What is stored still holds, with what the 304 says of it (RFC 9111 s4.3.4).
    async fn validated(mut self, mut asker: Asker, mut came: Came, upstream: Arc<Upstream>) {
        let Some(stored) = self.stored.take() else { return };
        let renewed = self.renewed(&stored, &mut came).await;
        match renewed {
            Ok(Some((entry, refused))) => {
                let entry = Arc::new(entry);
                self.renew(&stored, &entry, refused);
                self.finish(304, 0);
                asker.end(self.lead, Filled::Validated(entry, refused.map(NotStored::name)));
            }
            // It is about something else: asked again, without condition.
            Ok(None) => {
                for name in [IF_NONE_MATCH, IF_MODIFIED_SINCE] {
                    self.head.remove_header(&name);
                }
                match self.send(&upstream, &mut asker).await {
                    Ok(came) => self.answered(asker, came, &upstream).await,
                    Err(error) => self.failed(asker, &error),
                }
            }
            Err(problem) => self.own(asker, problem.into(), "filter").await,
        }
    }

    /// Stores what a 304 made of what is stored, in its place, and tells who waits; if it may not be stored, takes out
    /// what is.
    fn renew(&self, stored: &Arc<Entry>, entry: &Arc<Entry>, refused: Option<NotStored>) {
        if let Some(why) = refused {
            self.cache.counts.not_stored.inc();
            if !why.is_of_request() {
                self.cache.store.remove(stored);
            }
            return;
        }
        if entry.variant() != stored.variant() {
            // It is no longer for all that it was for, who would find it there.
            self.cache.store.remove(stored);
        }
        self.cache.put(&self.lead, entry, Some(stored));
        self.lead.tell(Phase::Stored(entry.clone()));
        self.cache.counts.stored.inc();
    }

    /// What a 304 makes of what is stored, and why that may not be stored, if so; none if it is about something else.
    async fn renewed(
        &mut self,
        stored: &Arc<Entry>,
        came: &mut Came,
    ) -> Result<Option<(Entry, Option<NotStored>)>, Problem> {
        let internal = || Problem::new(&problem::INTERNAL);
        let old = head::parse(stored.status(), &stored.lines_bytes()).map_err(|_| internal())?;
        let validated = &mut came.reply.head;
        let (one, other) = (old.headers.get(ETAG), validated.headers.get(ETAG));
        if other.is_some() && one.map(weakly) != other.map(weakly) {
            return Ok(None);
        }
        self.exchange.response(&self.head, validated).await?;
        let new = head::updated(old, validated).map_err(|_| internal())?;
        let known = self.facts(&new, came.times).and_then(|facts| Ok((facts, self.variant(&new)?)));
        let refused = known.as_ref().err().copied();
        let (facts, variant) = known.unwrap_or_else(|_| {
            let facts = Facts { no_cache: true, no_stale: true, ..*stored.facts() };
            (facts, stored.variant().to_vec())
        });
        Ok(Some((stored.renewed(head::lines(&new), variant, self.tags.clone(), facts), refused)))
    }

    fn facts(&self, answer: &ResponseHeader, times: Times) -> Result<Facts, NotStored> {
        let asked = (&Method::GET, &self.head.headers);
        facts(&self.plan.rules, asked, (answer.status, &answer.headers), times)
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
        if !delimited {
            return Err(NotStored::Endless);
        }
        if !self.cache.has_room(declared) {
            return Err(NotStored::Memory);
        }
        Ok((facts, self.variant(head)?))
    }

    async fn answered(mut self, asker: Asker, came: Came, upstream: &Upstream) {
        let Came { reply, times } = came;
        let call::Reply { mut head, body, delimited, backend } = reply;
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
        let is_new = |backend: &Arc<Backend>| {
            upstream.stuck_to(&self.head).is_none_or(|known| !Arc::ptr_eq(&known, backend))
        };
        let stays_with = Some(backend).filter(is_new);
        let authorized = self.asked.contains_key(AUTHORIZATION);
        let body = Inner::new(body, self.exchange, declared, status, self.took);
        match storable {
            Ok((facts, variant)) => {
                let growing = Growing::new(head, facts, variant, self.cache.held.clone());
                let work = Work {
                    cache: self.cache,
                    plan: self.plan,
                    key: self.key,
                    tags: self.tags,
                    lead: self.lead,
                    authorized,
                };
                work.store(asker, growing, body).await;
            }
            Err(why) => {
                // Who asks anew for what is fresh is not to decide for others what becomes of it.
                let is_needless = self.stored.as_ref().is_some_and(is_fresh);
                if why.will_last() && !is_needless {
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
        let stored = self.stored.as_ref().filter(|_| wanted)?;
        (!stored.facts().no_stale && !stored.is_purged()).then(|| stored.clone())
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
        let reached = matches!(error, CallError::Timeout(waiting) if *waiting != Waiting::Connect);
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
    async fn own(mut self, asker: Asker, reply: Reply, why: &'static str) {
        self.cache.counts.not_stored.inc();
        let rendered = self.exchange.rendered(reply, &self.head).await;
        self.finish(rendered.head.status.as_u16(), 0);
        let message = Message { head: rendered.head, body: rendered.body };
        asker.end(self.lead, Filled::Own(Reply::Message(Box::new(message)), Some(why)));
    }

    fn finish(&mut self, status: u16, bytes: u64) {
        let elapsed = self.exchange.ctx.started.elapsed();
        self.exchange.finish(&Completed { status, elapsed, bytes_in: 0, bytes_out: bytes });
        if let Some(took) = self.took {
            self.exchange.note_for_ramp(status, false, took);
        }
    }
}

/// Whether a stored answer is served to who does not ask for more.
fn is_fresh(stored: &Arc<Entry>) -> bool {
    let directives = RequestDirectives::default();
    judge(stored.facts(), &directives, stored.standing(), now()).serve == Serve::AsItIs
}

/// Whether the upstream was not asked since it is left alone, or has enough to do.
fn is_refusal(reply: &Reply) -> bool {
    let refuses = [problem::CIRCUIT_OPEN.code, problem::UPSTREAM_BUSY.code];
    matches!(reply, Reply::Problem(problem) if refuses.contains(&problem.kind.code))
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

/// A tag without its weakness.
fn weakly(tag: &http::HeaderValue) -> &[u8] {
    let tag = tag.as_bytes();
    tag.strip_prefix(b"W/").unwrap_or(tag)
}
