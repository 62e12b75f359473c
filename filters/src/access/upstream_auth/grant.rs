//! A token of the gateway's own: fetched when it is first needed, by one for all, and anew before it ends.

use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::FutureExt;
use http::header::HeaderValue;
use parking_lot::Mutex;
use serde_json::{Map, Value};

use super::options::ClientCredentials;
use crate::identity::client::{Credentials, form};
use crate::identity::flight::Flights;
use crate::identity::remote::Remote;
use crate::world::{Clock, Counter, Metrics};

/// A token is fetched anew this long before its end, or when a tenth of its time is left if that is less.
const BEFORE: Duration = Duration::from_secs(60);
/// After a failure nobody asks for so long; tokens that still hold are used on.
const PAUSE: Duration = Duration::from_secs(1);
/// Refusals of the upstream lead to a new token no more often.
const REFUSED_PAUSE: Duration = Duration::from_secs(10);
/// The longest time that a token is used for, whatever it says.
const LONGEST: Duration = Duration::from_secs(366 * 24 * 3600);

/// Where tokens are given out, and the one in use.
pub(super) struct Grant {
    remote: Remote,
    form: String,
    credentials: Credentials,
    default_ttl: Duration,
    clock: Arc<dyn Clock>,
    held: Mutex<Held>,
    flights: Flights<(), Fetched>,
    fetched: Counter,
    failed: Counter,
}

/// A token.
pub(super) struct Token {
    /// `Bearer` and the token.
    pub(super) value: HeaderValue,
    renew: Instant,
    ends: Instant,
}

type Fetched = Result<Arc<Token>, Arc<str>>;

/// What there is without asking.
enum Known {
    /// A token, or why there is none.
    Said(Fetched),
    /// Nothing, or a token that holds and is to be renewed.
    Ask(Option<Arc<Token>>),
}

#[derive(Default)]
struct Held {
    token: Option<Arc<Token>>,
    /// Why the last attempt failed, and until when there is no other.
    failing: Option<(Arc<str>, Instant)>,
    /// When a refusal last led to a new token.
    refused: Option<Instant>,
}

impl Grant {
    pub(super) fn new(
        options: &ClientCredentials,
        remote: Remote,
        clock: Arc<dyn Clock>,
        metrics: &dyn Metrics,
    ) -> Self {
        let scopes = options.scopes.join(" ");
        let mut pairs = vec![("grant_type", "client_credentials")];
        pairs.extend((!scopes.is_empty()).then_some(("scope", scopes.as_str())));
        pairs.extend(options.parameters.iter().map(|(name, value)| (name.as_str(), value.as_str())));
        let count = |outcome| {
            let help = "Fetches of tokens for upstreams.";
            metrics.counter("tollhouse_upstream_token_fetches_total", help, &[("outcome", outcome)])
        };
        Self {
            remote,
            form: form(&pairs),
            credentials: Credentials::new(
                &options.client_id,
                Some(&options.client_secret),
                options.client_auth,
            ),
            default_ttl: options.default_ttl.get(),
            clock,
            held: Mutex::default(),
            flights: Flights::default(),
            fetched: count("fetched"),
            failed: count("failed"),
        }
    }

    /// A token that holds, or why there is none.
    pub(super) async fn token(self: &Arc<Self>) -> Fetched {
        let usable = match self.known() {
            Known::Said(fetched) => return fetched,
            Known::Ask(usable) => usable,
        };
        let grant = self.clone();
        let fetched = self.flights.join((), || async move { grant.renew().await }.boxed()).await;
        // One that is to be renewed, and could not be, goes on to be used to its end.
        fetched.or_else(|why| usable.ok_or(why))
    }

    fn known(&self) -> Known {
        let now = self.clock.now();
        let held = self.held.lock();
        let usable = held.token.as_ref().filter(|token| now < token.ends).cloned();
        match (usable, &held.failing) {
            (Some(token), _) if now < token.renew => Known::Said(Ok(token)),
            (usable, Some((why, until))) if now < *until => Known::Said(usable.ok_or_else(|| why.clone())),
            (usable, _) => Known::Ask(usable),
        }
    }

    /// Asks, unless somebody did just now: who found nothing as another one's question ended asks no second time.
    pub(super) async fn renew(&self) -> Fetched {
        match self.known() {
            Known::Said(fetched) => fetched,
            Known::Ask(_) => self.fetch().await,
        }
    }

    /// The upstream does not take this token: the next request has another one, if there was none for a while.
    pub(super) fn refused(&self, token: &Arc<Token>) {
        let now = self.clock.now();
        let mut held = self.held.lock();
        let is_current = held.token.as_ref().is_some_and(|current| Arc::ptr_eq(current, token));
        let may = held.refused.is_none_or(|last| now.saturating_duration_since(last) >= REFUSED_PAUSE);
        if is_current && may {
            held.token = None;
            held.refused = Some(now);
        }
    }

    async fn fetch(&self) -> Fetched {
        match self.ask().await {
            Ok(token) => {
                self.fetched.inc();
                let token = Arc::new(token);
                let mut held = self.held.lock();
                held.token = Some(token.clone());
                if held.failing.take().is_some() {
                    log::info!(url:% = self.remote.url(); "tokens for an upstream are given out again");
                }
                Ok(token)
            }
            Err(why) => {
                self.failed.inc();
                let why: Arc<str> = why.into();
                let until = self.clock.now() + PAUSE;
                if self.held.lock().failing.replace((why.clone(), until)).is_none() {
                    log::warn!(url:% = self.remote.url(), error = &*why; "no token for an upstream is given out");
                }
                Err(why)
            }
        }
    }

    async fn ask(&self) -> Result<Token, String> {
        let form = self.credentials.form(self.form.clone());
        let answer = self.remote.post(form, self.credentials.fields()).await?;
        self.read(&answer.object()?)
    }

    /// RFC 6749 s5.1.
    fn read(&self, answer: &Map<String, Value>) -> Result<Token, String> {
        let text = |name: &str| answer.get(name).and_then(Value::as_str);
        if !text("token_type").is_some_and(|kind| kind.eq_ignore_ascii_case("bearer")) {
            return Err("the answer's `token_type` is not `Bearer`".to_owned());
        }
        let token = text("access_token").filter(|token| !token.is_empty());
        let token = token.ok_or("the answer has no `access_token`")?;
        let value = token.bytes().all(|byte| byte.is_ascii_graphic()).then(|| format!("Bearer {token}"));
        let value = value.and_then(|value| HeaderValue::try_from(value).ok());
        let mut value = value.ok_or("the answer's `access_token` cannot be sent in a field")?;
        value.set_sensitive(true);
        let lasts = match answer.get("expires_in") {
            None | Some(Value::Null) => self.default_ttl,
            // Some send the number as a text.
            Some(seconds) => {
                let seconds =
                    seconds.as_f64().or_else(|| seconds.as_str().and_then(|text| text.parse().ok()));
                let seconds = seconds.and_then(|seconds| Duration::try_from_secs_f64(seconds).ok());
                seconds.ok_or("the answer's `expires_in` is no number of seconds")?
            }
        };
        let lasts = lasts.min(LONGEST);
        let now = self.clock.now();
        Ok(Token { value, renew: now + (lasts - BEFORE.min(lasts / 10)), ends: now + lasts })
    }
}
