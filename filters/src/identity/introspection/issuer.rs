//! The issuer who is asked: once about each token at a time, and not by too many at once.

use std::net::IpAddr;
use std::pin::pin;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use futures_util::FutureExt;
use futures_util::future::{Either, select};
use parking_lot::Mutex;
use serde_json::Value;

use super::options::Options;
use crate::context::Principal;
use crate::identity::cache::{self, Cached, TokenCache, TokenHash, seconds};
use crate::identity::claims;
use crate::identity::client::{Credentials, form};
use crate::identity::flight::Flights;
use crate::identity::places::Places;
use crate::identity::remote::Remote;
use crate::identity::{EndpointState, Unavailable};
use crate::world::{ClientError, Clock, Counter, Metrics, World};

/// Calls under way at a time.
const CALLS: usize = 64;
/// Those for one client: who makes tokens up leaves some to the others, and one address that all come from has most.
const CALLS_OF_ONE: usize = CALLS - CALLS / 4;

/// The issuer of tokens, and what it said about them.
pub(super) struct Issuer {
    name: Arc<str>,
    remote: Remote,
    /// The client's id and secret, in the form that they are sent in.
    credentials: Credentials,
    timeout: Duration,
    ttl: (Duration, Duration),
    clock: Arc<dyn Clock>,
    cache: TokenCache,
    calls: Arc<Places>,
    under_way: Flights<TokenHash, Said>,
    failing: Mutex<Option<(String, SystemTime)>>,
    meters: Meters,
}

/// What the issuer says: what is claimed of a token that holds, nothing of one that does not; or why it says
/// nothing.
type Said = Result<Option<Arc<Principal>>, Arc<str>>;

/// What it says, and how many bytes of text that is.
type Answer = (Option<Arc<Principal>>, usize);

/// Why it says nothing.
enum Silence {
    /// It was not asked.
    Unasked,
    /// It does not answer as it should.
    Failed(String),
}

struct Meters {
    active: Counter,
    inactive: Counter,
    failed: Counter,
}

impl Meters {
    fn new(identity: &str, metrics: &dyn Metrics) -> Self {
        let count = |outcome| {
            let help = "Questions to issuers about tokens, by what they said.";
            let labels = [("identity", identity), ("outcome", outcome)];
            metrics.counter("tollhouse_identity_introspections_total", help, &labels)
        };
        Self { active: count("active"), inactive: count("inactive"), failed: count("failed") }
    }
}

impl Issuer {
    pub(super) fn new(name: Arc<str>, remote: Remote, options: &Options, world: &World) -> Self {
        Self {
            remote,
            credentials: Credentials::new(
                &options.client_id,
                Some(&options.client_secret),
                options.client_auth,
            ),
            timeout: options.timeout.get(),
            ttl: (options.ttl.get(), options.negative_ttl.get()),
            clock: world.clock.clone(),
            cache: TokenCache::new(options.token_cache, &name, &*world.metrics),
            calls: Arc::new(Places::new(CALLS, CALLS_OF_ONE)),
            under_way: Flights::default(),
            failing: Mutex::default(),
            meters: Meters::new(&name, &*world.metrics),
            name,
        }
    }

    /// What is claimed of a token that this client shows; none of one that does not hold.
    pub(super) async fn ask(
        self: &Arc<Self>,
        token: &str,
        client: IpAddr,
        now: SystemTime,
    ) -> Result<Option<Arc<Principal>>, Unavailable> {
        let hash = cache::hash(token.as_bytes());
        if let Some(known) = self.cache.get(Some(&hash), 0, now) {
            return Ok(known.principal);
        }
        let call = || {
            let (issuer, length) = (Arc::clone(self), token.len());
            let form = form(&[("token", token), ("token_type_hint", "access_token")]);
            async move { issuer.say(form, (hash, length), client).await }.boxed()
        };
        self.under_way.join(hash, call).await.map_err(|why| {
            let reason = format!("the issuer cannot be asked about tokens: {why}").into();
            Unavailable { reason, retry_after: 1 }
        })
    }

    async fn say(&self, form: String, (hash, length): (TokenHash, usize), client: IpAddr) -> Said {
        // Who found nothing as another one's question ended asks no second time. By the time of now: the request may
        // have waited for other identities.
        if let Some(known) = self.cache.get(Some(&hash), 0, self.clock.wall()) {
            return Ok(known.principal);
        }
        match self.answer(form, client).await {
            Ok((principal, more)) => {
                if self.failing.lock().take().is_some() {
                    log::info!(identity = &*self.name; "the issuer of an identity answers again");
                }
                let is_active = principal.is_some();
                if is_active { &self.meters.active } else { &self.meters.inactive }.inc();
                self.remember(hash, length + more, principal.clone());
                Ok(principal)
            }
            // Not the issuer's fault.
            Err(Silence::Unasked) => Err("too many questions are under way".into()),
            Err(Silence::Failed(why)) => Err(self.failed(why)),
        }
    }

    /// Notes that the issuer does not answer.
    fn failed(&self, why: String) -> Arc<str> {
        self.meters.failed.inc();
        let mut failing = self.failing.lock();
        if failing.is_none() {
            log::warn!(
                identity = &*self.name, error = why.as_str();
                "cannot ask the issuer of an identity; its tokens are answered 503"
            );
        }
        let since = failing.take().map_or_else(|| self.clock.wall(), |(_, since)| since);
        *failing = Some((why.clone(), since));
        why.into()
    }

    /// Asks when there is a place for that, all within one time.
    async fn answer(&self, form: String, client: IpAddr) -> Result<Answer, Silence> {
        let mut patience = self.clock.sleep(self.timeout);
        let _place = match select(pin!(self.calls.take(client)), &mut patience).await {
            Either::Left((place, _)) => place,
            Either::Right(_) => return Err(Silence::Unasked),
        };
        let asked = self.remote.post(self.credentials.form(form), self.credentials.fields());
        let answer = match select(pin!(asked), patience).await {
            Either::Left((answer, _)) => answer,
            Either::Right(_) => Err(ClientError::Timeout.to_string()),
        };
        let answer = answer.map_err(Silence::Failed)?;
        let mut claims = answer.object().map_err(Silence::Failed)?;
        match claims.shift_remove("active") {
            Some(Value::Bool(true)) => {
                let principal = Principal { subject: claims::subject(&claims), claims };
                Ok((Some(Arc::new(principal)), answer.len()))
            }
            Some(Value::Bool(false)) => Ok((None, 0)),
            _ => {
                let why = "the answer does not tell whether the token is `active`";
                Err(Silence::Failed(why.to_owned()))
            }
        }
    }

    fn remember(&self, hash: TokenHash, length: usize, principal: Option<Arc<Principal>>) {
        let now = seconds(self.clock.wall());
        let (positive, negative) = self.ttl;
        let until = match &principal {
            Some(principal) => {
                let end = claims::end(&principal.claims).unwrap_or(f64::INFINITY);
                end.min(now + positive.as_secs_f64())
            }
            None => now + negative.as_secs_f64(),
        };
        self.cache.put(Some(hash), Cached { principal, holds: (now, until), keys: 0, length });
    }

    /// For whoever operates the gateway.
    pub(super) fn state(&self) -> EndpointState {
        EndpointState { url: self.remote.url().to_string(), failing: self.failing.lock().clone() }
    }
}
