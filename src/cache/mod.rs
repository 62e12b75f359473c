//! Answers from what origins answered before (RFC 9111): the mechanism behind the filter `cache`.
//!
//! A request that the filter holds is answered from the store, or by a fill: the same request from that filter on,
//! as a task of its own, whose answer is read by all who wait for it while it comes in, and stored once it is whole.
//! So no client that is slow or goes away keeps others waiting, and nothing that was cut is ever stored. What may
//! not be stored goes to the one who asked, and the others are left to themselves.

mod fill;
mod flight;
mod growing;
mod head;
mod inner;
mod keep;
mod key;
mod meanwhile;
mod numbers;
mod serve;
mod shared;
pub mod store;
mod told;
mod view;

use std::future::poll_fn;
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};
use std::time::{Instant, UNIX_EPOCH};

use bytes::Bytes;
use futures_util::future::BoxFuture;
use http::header::{AUTHORIZATION, RANGE};
use http::{HeaderMap, Method, Version};
use pingora::http::{RequestHeader, ResponseHeader};
use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};
use tokio::sync::{oneshot, watch};
use tokio::time::timeout;
use tollhouse_filters::caching::{
    Ask, CacheStatus, Forwarded, Judgement, RequestDirectives, Serve, Standing, Why, judge, matches, names,
    serves_on_error, variant,
};
use tollhouse_filters::outcome::Reply;
use tollhouse_filters::problem::{self, Problem};

use self::fill::Fill;
use self::flight::{Flights, Joined, Lead, Manner, Phase};
use self::growing::{Growing, Held};
use self::numbers::Counts;
use self::shared::Sharing;
use self::store::{Entry, How, Purge, Store, Variants};
use self::told::{Asker, Filled, Told};
use crate::engine::Exchange;
use crate::observe::Observe;
use crate::upstream::call::Caller;

pub use self::key::Key;
pub use self::view::{Look, Looked};
pub use tollhouse_filters::caching::Facts;

/// Bodies that are small, in bytes.
const SMALL: u64 = 64 << 10;

/// What is stored, and what is under way to be.
pub struct Cache {
    store: Arc<Store>,
    caller: Caller,
    observe: Arc<Observe>,
    flights: Arc<Flights>,
    held: Held,
    counts: Counts,
    sharing: Sharing,
    /// Some filter `cache` is there.
    used: AtomicBool,
}

/// How a request came in, which upstreams are told.
#[derive(Debug, Clone, Copy)]
pub struct Via {
    /// The other end of the client's connection.
    pub peer: Option<IpAddr>,
    /// The version that the client speaks.
    pub version: Version,
}

/// A client that waits: interim answers (1xx) are passed on to it as they come (RFC 9110 s15.2).
pub trait Announce: Send {
    /// Passes one on.
    fn announce(&mut self, head: ResponseHeader) -> BoxFuture<'_, ()>;

    /// Ready when it went away, as far as that can be told.
    fn poll_gone(&mut self, cx: &mut Context<'_>) -> Poll<()>;
}

/// A fill under way: what will come of it, and interim answers until then.
struct Begun {
    told: oneshot::Receiver<Told>,
    interim: UnboundedReceiver<ResponseHeader>,
}

impl Begun {
    /// What comes of it; else what is answered: it ended without a word, or the client went away.
    async fn outcome(mut self, mut client: Option<&mut dyn Announce>) -> Result<Told, Problem> {
        loop {
            tokio::select! {
                biased;
                Some(head) = self.interim.recv() => {
                    if let Some(client) = &mut client {
                        client.announce(head).await;
                    }
                }
                // Which only a fault of ours brings about.
                told = &mut self.told => return told.map_err(|_| Problem::new(&problem::INTERNAL)),
                () = gone(&mut client) => return Err(Problem::new(&problem::CLIENT_CLOSED)),
            }
        }
    }
}

/// Waits until the client is gone, as far as that can be told.
async fn gone(client: &mut Option<&mut dyn Announce>) {
    poll_fn(|cx| client.as_mut().map_or(Poll::Pending, |client| client.poll_gone(cx))).await;
}

/// Whether nothing may be stored of what a request is answered, whoever may say so (RFC 9111 s5.2.1.5).
fn forbids_storing(request: &RequestHeader) -> bool {
    RequestDirectives::of(&request.headers).no_store
}

/// Milliseconds since 1970.
fn now() -> u64 {
    UNIX_EPOCH.elapsed().map_or(0, |since| u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
}

impl Cache {
    /// Over this store; fills go over these connections.
    #[must_use]
    pub fn new(store: Arc<Store>, caller: Caller, observe: Arc<Observe>) -> Arc<Self> {
        let counts = Counts::new(&*observe.registry);
        let (flights, held, sharing) = (Arc::default(), Held::default(), Sharing::default());
        let used = AtomicBool::new(true);
        Arc::new(Self { store, caller, observe, flights, held, counts, sharing, used })
    }

    /// The store.
    #[must_use]
    pub fn store(&self) -> &Arc<Store> {
        &self.store
    }

    /// The connections that fills go over, which calls for one client share.
    #[must_use]
    pub fn caller(&self) -> &Caller {
        &self.caller
    }

    /// Whether some filter `cache` is there from now on. While none is, nobody takes out what changes (RFC 9111 s4.4): so
    /// nothing that was stored before stays, nor what requests stored since that began before.
    pub fn set_used(&self, used: bool) {
        let before = self.used.swap(used, Ordering::Relaxed);
        if !(before && used) {
            self.purge(&Purge::All, How::Hard);
        }
    }

    /// Purges what is stored here, and what is under way to be; gives how many answers it was.
    pub fn purge(&self, what: &Purge, how: How) -> u64 {
        // First those under way: one that is stored meanwhile is hit by what follows.
        match what {
            Purge::Url(url) => self.flights.spoil_url(url),
            Purge::Prefix(prefix) => self.flights.spoil(prefix),
            // Nobody knows yet which tags they will have.
            Purge::Tag(_) | Purge::All => self.flights.spoil(b""),
        }
        self.store.purge(what, how)
    }

    /// Answers a request that is held for it, or lets it go on: then it says in the context why.
    pub async fn answer(
        self: &Arc<Self>,
        mut ask: Box<Ask>,
        exchange: &mut Exchange,
        request: &mut RequestHeader,
        (via, client): (Via, Option<&mut dyn Announce>),
    ) -> Option<Reply> {
        if exchange.wants_body().is_some() {
            // What a filter before the cache makes of bodies, it is to see once.
            let (forwarded, detail) = (Some(Forwarded::Bypass), Some("body-filter".into()));
            exchange.ctx.cache = Some(CacheStatus { forwarded, detail, ..CacheStatus::default() });
            return None;
        }
        if ask.by_identity {
            exchange.identity_key(&mut ask.key).await;
        }
        let found = self.find(&ask.key, &request.headers).await;
        let variants = found.as_deref().unwrap_or_default();
        let entry = variants.iter().find(|entry| matches(entry.variant(), &request.headers));
        let moment = now();
        let judged = entry.map(|entry| judge(entry.facts(), &ask.directives, entry.standing(), moment));
        let mut status = CacheStatus::default();
        let served = match judged.map(|judged| judged.serve) {
            Some(Serve::AsItIs) => true,
            Some(Serve::AndRevalidate) => {
                self.revalidate(&ask, exchange, request, via, entry).await;
                true
            }
            Some(Serve::AfterValidation(why)) => {
                status.forwarded =
                    Some(if why == Why::Stale { Forwarded::Stale } else { Forwarded::Request });
                false
            }
            None => {
                let others = !variants.is_empty();
                status.forwarded = Some(if others { Forwarded::VaryMiss } else { Forwarded::UriMiss });
                false
            }
        };
        if let (true, Some(entry), Some(judged)) = (served, entry, judged) {
            return Some(serve::hit(entry, request, judged, exchange));
        }
        if ask.directives.only_if_cached {
            // It goes nowhere, for no reason to go (RFC 9211 s2.2).
            let detail = Some(problem::NOT_CACHED.code.into());
            exchange.ctx.cache = Some(CacheStatus { detail, ..CacheStatus::default() });
            return Some(Problem::new(&problem::NOT_CACHED).into());
        }
        exchange.ctx.cache = Some(status);
        let newest = variants.first().map(|newest| names(newest.variant()));
        let mut wanted = ask.key.clone();
        wanted.extend(newest.iter().flat_map(|names| variant(names, &request.headers)));
        let entry = entry.cloned();
        self.fetch((ask, wanted.into()), exchange, request, (via, client), entry).await
    }

    /// What is stored for a key; the disk is asked where memory has nothing for a request with these fields.
    async fn find(&self, key: &[u8], fields: &HeaderMap) -> Option<Variants> {
        let found = self.store.get(key);
        let known = found.as_deref().unwrap_or_default();
        if !self.store.has_slow_tier() || known.iter().any(|entry| matches(entry.variant(), fields)) {
            return found;
        }
        let loaded = match known.first() {
            None => self.store.load(key).await,
            Some(newest) => {
                let wanted = variant(&names(newest.variant()), fields);
                self.store.load_variant(key, &wanted).await
            }
        };
        loaded.or(found)
    }

    /// Why a request is not to be fetched for all.
    fn passed(&self, ask: &Ask, request: &RequestHeader, stored: bool) -> Option<(bool, &'static str)> {
        if !stored && request.headers.contains_key(RANGE) {
            return Some((true, "partial"));
        }
        if !stored && request.method == Method::HEAD {
            return Some((false, "head"));
        }
        if self.store.note_use(&ask.key) < ask.plan.min_uses && !stored {
            return Some((false, "min-uses"));
        }
        (!self.has_room(Some(0))).then_some((false, "memory"))
    }

    /// Whether a body of this length may come in for all: what is on its way is not in the store's books. Small ones
    /// are kept out last, so that clients who read long ones slowly do little harm.
    fn has_room(&self, length: Option<u64>) -> bool {
        let small = length.is_some_and(|length| length <= SMALL);
        self.held.bytes() <= self.store.capacity() / if small { 2 } else { 4 }
    }

    /// What is set aside for a body of this length; of a very long one a part, so that it keeps no small ones out.
    fn expected(&self, length: Option<u64>) -> u64 {
        length.unwrap_or(0).min(self.store.capacity() / 4)
    }

    /// Whether so much is on its way in beside this body that it cannot be kept.
    fn is_full_beside(&self, growing: &Growing) -> bool {
        self.held.bytes().saturating_sub(growing.share()) > self.store.capacity() / 2
    }

    /// Fetches what is not stored, or waits for who does.
    async fn fetch(
        self: &Arc<Self>,
        (ask, wanted): (Box<Ask>, Bytes),
        exchange: &mut Exchange,
        request: &RequestHeader,
        (via, client): (Via, Option<&mut dyn Announce>),
        entry: Option<Arc<Entry>>,
    ) -> Option<Reply> {
        if let Some((part, reason)) = self.passed(&ask, request, entry.is_some()) {
            let status = exchange.ctx.cache.get_or_insert_default();
            if part {
                status.forwarded = Some(Forwarded::Partial);
            }
            status.detail = Some(reason.into());
            return None;
        }
        let authorized = request.headers.contains_key(AUTHORIZATION);
        let manner = self.flights.manner(&wanted, authorized, Instant::now());
        // What is stored may have to stand in for an origin that answers nothing for all any more.
        if manner == Manner::Passed && entry.is_none() {
            exchange.ctx.cache.get_or_insert_default().detail = Some("uncacheable".into());
            return None;
        }
        // What comes of asking about something that is never fresh is for nobody who waits.
        let shared = entry.as_ref().is_none_or(|entry| entry.facts().is_ever_fresh());
        let together = manner == Manner::Together && shared && !ask.directives.no_cache;
        let joined = match together {
            false => Joined::First(self.flights.alone(wanted)),
            // Nobody is to wait for it, but it may wait for others.
            true if forbids_storing(request) => self.flights.follow(wanted),
            true => self.flights.join(wanted),
        };
        let lead = match joined {
            Joined::First(lead) => lead,
            Joined::Other(phase) => {
                return self.wait((phase, client), &ask, exchange, request, entry).await;
            }
        };
        if together && let Some((entry, judged)) = self.stored_since(&ask, request, entry.as_ref()) {
            lead.tell(Phase::Stored(entry.clone()));
            return Some(serve::hit(&entry, request, judged, exchange));
        }
        let fork = match exchange.fork(request).await {
            Ok(fork) => fork,
            Err(reply) => return Some(reply),
        };
        let told = self.begin(&ask, fork, request, via, entry, lead).outcome(client).await;
        Some(match told {
            Ok(Told { filled, fetched }) => {
                exchange.note_fetched(fetched);
                self.filled(filled, &ask, exchange, request)
            }
            Err(problem) => problem.into(),
        })
    }

    /// What somebody else fetched for this request between when it was looked for and when it was to be fetched.
    fn stored_since(
        &self,
        ask: &Ask,
        request: &RequestHeader,
        before: Option<&Arc<Entry>>,
    ) -> Option<(Arc<Entry>, Judgement)> {
        let found = self.store.get(&ask.key)?;
        let entry = found.iter().find(|entry| matches(entry.variant(), &request.headers))?;
        if before.is_some_and(|before| Arc::ptr_eq(before, entry)) {
            return None;
        }
        let judged = judge(entry.facts(), &ask.directives, entry.standing(), now());
        (judged.serve == Serve::AsItIs).then(|| (entry.clone(), judged))
    }

    /// Starts a fill.
    fn begin(
        self: &Arc<Self>,
        ask: &Ask,
        fork: (Exchange, RequestHeader),
        request: &RequestHeader,
        via: Via,
        entry: Option<Arc<Entry>>,
        lead: Lead,
    ) -> Begun {
        let (asker, told) = Asker::new();
        let (announce, interim) = unbounded_channel();
        let fill = Fill::new(self.clone(), ask, fork, request, via, entry, (lead, announce));
        tokio::spawn(fill.run(asker));
        Begun { told, interim }
    }

    /// The answer to who asked for all.
    fn filled(&self, filled: Filled, ask: &Ask, exchange: &mut Exchange, request: &RequestHeader) -> Reply {
        let status = exchange.ctx.cache.get_or_insert_default();
        match filled {
            Filled::Growing(growing, reader, why) => {
                status.stored = why.is_none();
                status.detail = why.map(Into::into);
                serve::growing(&growing, reader, request, None)
            }
            Filled::Validated(entry, why) => {
                status.forwarded_status = Some(304);
                status.stored = why.is_none();
                status.detail = why.map(Into::into);
                let judged = judge(entry.facts(), &ask.directives, Standing::Good, now());
                status.ttl = Some(judged.ttl);
                serve::entry(&entry, request, judged)
            }
            Filled::Stale(entry, why, came) => {
                status.forwarded_status = came;
                let judged = judge(entry.facts(), &ask.directives, entry.standing(), now());
                status.ttl = Some(judged.ttl);
                status.detail = Some(why.into());
                serve::entry(&entry, request, judged)
            }
            Filled::Own(reply, why) => {
                status.detail = why.map(Into::into);
                reply
            }
        }
    }

    /// Waits for who asks for all; goes on alone if that takes too long, or the answer is not for all.
    async fn wait(
        &self,
        (mut phase, mut client): (watch::Receiver<Phase>, Option<&mut dyn Announce>),
        ask: &Ask,
        exchange: &mut Exchange,
        request: &RequestHeader,
        stored: Option<Arc<Entry>>,
    ) -> Option<Reply> {
        let told = phase.wait_for(|phase| !matches!(phase, Phase::Asking));
        let told = tokio::select! {
            biased;
            told = timeout(ask.plan.wait, told) => told,
            () = gone(&mut client) => return Some(Problem::new(&problem::CLIENT_CLOSED).into()),
        };
        let outcome = told.map(|told| told.map_or(Phase::Released, |phase| phase.clone()));
        let moment = now();
        let judged = |entry: &Entry| judge(entry.facts(), &ask.directives, entry.standing(), moment);
        let is_for = |variant: &[u8]| matches(variant, &request.headers);
        let may_be_stale = |entry: &Entry, reached: bool| {
            let asked = (reached, moment);
            stored.is_some() && serves_on_error(entry.facts(), &ask.directives, entry.standing(), asked)
        };
        let status = exchange.ctx.cache.get_or_insert_default();
        status.collapsed = true;
        let reason = match outcome {
            Ok(Phase::Answered(growing)) if is_for(&growing.variant) => {
                let judged = judge(&growing.facts, &ask.directives, Standing::Good, moment);
                if judged.serve == Serve::AsItIs
                    && let Some(reader) = growing.read()
                {
                    status.ttl = Some(judged.ttl);
                    return Some(serve::growing(&growing, reader, request, Some(judged)));
                }
                "not-shareable"
            }
            Ok(Phase::Stored(entry)) if is_for(entry.variant()) && judged(&entry).serve == Serve::AsItIs => {
                status.ttl = Some(judged(&entry).ttl);
                return Some(serve::entry(&entry, request, judged(&entry)));
            }
            Ok(Phase::StaleIfError(entry, reached))
                if is_for(entry.variant()) && may_be_stale(&entry, reached) =>
            {
                status.ttl = Some(judged(&entry).ttl);
                return Some(serve::entry(&entry, request, judged(&entry)));
            }
            Ok(Phase::Stale(entry)) if is_for(entry.variant()) => {
                status.ttl = Some(judged(&entry).ttl);
                status.detail = Some(problem::CIRCUIT_OPEN.code.into());
                return Some(serve::entry(&entry, request, judged(&entry)));
            }
            Ok(Phase::Failed(problem)) => return Some((*problem).clone().into()),
            Ok(_) => "not-shareable",
            Err(_) => "waited-too-long",
        };
        status.collapsed = false;
        status.detail = Some(reason.into());
        None
    }
}
