//! The issuer who is asked: once about each token at a time, and not by too many at once.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use futures_util::FutureExt;
use futures_util::future::{Either, select};
use parking_lot::Mutex;
use serde_json::Value;
use tokio::sync::Semaphore;

use super::options::Options;
use crate::context::Principal;
use crate::identity::cache::{self, Cached, TokenCache, TokenHash, seconds};
use crate::identity::claims;
use crate::identity::client::{Credentials, form};
use crate::identity::flight::Flights;
use crate::identity::remote::Remote;
use crate::identity::{EndpointState, Unavailable};
use crate::world::{Clock, Counter, Metrics, World};

/// Calls under way at a time.
const CALLS: usize = 64;

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
    calls: Semaphore,
    under_way: Flights<TokenHash, Said>,
    failing: Mutex<Option<(String, SystemTime)>>,
    meters: Meters,
}

/// What the issuer says: what is claimed of a token that holds, nothing of one that does not; or why it says
/// nothing.
type Said = Result<Option<Arc<Principal>>, Arc<str>>;

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
            calls: Semaphore::new(CALLS),
            under_way: Flights::default(),
            failing: Mutex::default(),
            meters: Meters::new(&name, &*world.metrics),
            name,
        }
    }

    /// What is claimed of a token; none of one that does not hold.
    pub(super) async fn ask(
        self: &Arc<Self>,
        token: &str,
        now: SystemTime,
    ) -> Result<Option<Arc<Principal>>, Unavailable> {
        let hash = cache::hash(token.as_bytes());
        if let Some(known) = self.cache.get(Some(&hash), 0, now) {
            return Ok(known.principal);
        }
        let call = || {
            let (issuer, length) = (Arc::clone(self), token.len());
            let form = form(&[("token", token), ("token_type_hint", "access_token")]);
            async move { issuer.say(form, (hash, length), now).await }.boxed()
        };
        self.under_way.join(hash, call).await.map_err(|why| {
            let reason = format!("the issuer cannot be asked about tokens: {why}").into();
            Unavailable { reason, retry_after: 1 }
        })
    }

    async fn say(&self, form: String, (hash, length): (TokenHash, usize), now: SystemTime) -> Said {
        // Who found nothing as another one's question ended asks no second time.
        if let Some(known) = self.cache.get(Some(&hash), 0, now) {
            return Ok(known.principal);
        }
        match self.answer(form).await {
            Ok(principal) => {
                if self.failing.lock().take().is_some() {
                    log::info!(identity = &*self.name; "the issuer of an identity answers again");
                }
                let is_active = principal.is_some();
                if is_active { &self.meters.active } else { &self.meters.inactive }.inc();
                self.remember(hash, length, principal.clone());
                Ok(principal)
            }
            Err(why) => {
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
                Err(why.into())
            }
        }
    }

    async fn answer(&self, form: String) -> Result<Option<Arc<Principal>>, String> {
        let patience = self.clock.sleep(self.timeout);
        let _permit = match select(std::pin::pin!(self.calls.acquire()), patience).await {
            Either::Left((permit, _)) => permit.map_err(|error| error.to_string())?,
            Either::Right(_) => return Err("too many questions are under way".to_owned()),
        };
        let answer = self.remote.post(self.credentials.form(form), self.credentials.fields()).await?;
        let mut claims = answer.object()?;
        match claims.shift_remove("active") {
            Some(Value::Bool(true)) => {
                Ok(Some(Arc::new(Principal { subject: claims::subject(&claims), claims })))
            }
            Some(Value::Bool(false)) => Ok(None),
            _ => Err("the answer does not tell whether the token is `active`".to_owned()),
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
        // Claims that are not in the token take room as well.
        let length = principal.as_ref().map_or(length, |known| length + 64 * known.claims.len());
        self.cache.put(Some(hash), Cached { principal, holds: (now, until), keys: 0, length });
    }

    /// For whoever operates the gateway.
    pub(super) fn state(&self) -> EndpointState {
        EndpointState { url: self.remote.url().to_string(), failing: self.failing.lock().clone() }
    }
}
