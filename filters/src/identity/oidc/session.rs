//! Who logged in, as cookies keep it, and how that is renewed before it ends.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant, SystemTime};

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use futures_util::FutureExt;
use futures_util::future::{BoxFuture, Either, Shared, select};
use moka::Expiry;
use moka::policy::EvictionPolicy;
use moka::sync::Cache;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use sha2::{Digest, Sha256};

use super::Party;
use super::provider::{NoTokens, Tokens, away};
use crate::identity::{Failure, Unavailable, json, jwt};
use crate::world::{Matched, Revocation, Revoked};

/// How long before the end of its tokens a session is renewed, at most; a fifth of their time if that is less.
const EARLY: u64 = 60;
/// How long tokens hold that do not say.
const UNSAID: u64 = 300;
/// How long what came of a renewal is remembered once it is known: browsers go on to send the cookies of before for a while.
pub(super) const REMEMBER: Duration = Duration::from_secs(60);
/// After a renewal failed, how long nobody tries again while the session's tokens hold.
const REST: Duration = Duration::from_secs(5);
/// How long those wait for the next try who can go on without it: a provider that is back answers by then.
const PATIENCE: Duration = Duration::from_secs(1);
/// How often a session may have been renewed since its cookies were made, for those to hold.
const RENEWED: usize = 16;
/// How many renewals are remembered; of more, those that were asked for last. Those that are known go after
/// [`REMEMBER`], so that this is room for some 1600 each second.
const RENEWALS: u64 = 100_000;

/// A session, as its cookie holds it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct Session {
    /// Tells one from another; new with each login.
    #[serde(rename = "i")]
    pub(super) id: String,
    /// The token that says who it is, as it came and was verified.
    #[serde(rename = "t")]
    pub(super) token: String,
    #[serde(rename = "r", skip_serializing_if = "Option::is_none")]
    refresh: Option<String>,
    /// When the user logged in, in Unix seconds.
    #[serde(rename = "b")]
    pub(super) begun: u64,
    /// When tokens were last given.
    #[serde(rename = "g")]
    given: u64,
    /// When those end.
    #[serde(rename = "u")]
    until: u64,
    /// What the provider calls its own session, as of the login: tokens of renewals need not say it (OpenID Connect
    /// Core 1.0 s12.2).
    #[serde(rename = "s", default, skip_serializing_if = "Option::is_none")]
    sid: Option<String>,
}

/// What has become of a session.
pub(super) enum Current {
    /// It holds.
    Same(Box<Session>),
    /// It holds anew, which its browser has to be told.
    Renewed(Box<Session>),
    /// It has ended.
    Ended,
}

/// What comes of a renewal: none where the provider ended the session.
type Renewed = Result<Option<Arc<Session>>, Arc<str>>;

/// A renewal that is made for all who wait for it.
#[derive(Clone)]
struct Try {
    renewal: Shared<BoxFuture<'static, Renewed>>,
    begun: Instant,
    /// When it failed.
    failed: Arc<OnceLock<Instant>>,
    /// One before it failed.
    is_again: bool,
    /// Somebody was told what came of it.
    told: Arc<AtomicBool>,
    /// How long its session may go on.
    lasts: Duration,
}

impl Try {
    /// Whether there is nothing to lose with it.
    fn is_known(&self) -> bool {
        self.told.load(Ordering::Relaxed) || self.failed.get().is_some()
    }
}

/// How long a renewal is remembered: as its session may last, since a refresh token may be good for one use, but only for
/// a while once it is looked at and known.
struct Lasting;

impl Expiry<[u8; 32], Try> for Lasting {
    fn expire_after_create(&self, _: &[u8; 32], tried: &Try, _: Instant) -> Option<Duration> {
        Some(tried.lasts)
    }

    fn expire_after_read(
        &self,
        _: &[u8; 32],
        tried: &Try,
        _: Instant,
        left: Option<Duration>,
        _: Instant,
    ) -> Option<Duration> {
        left.map(|left| if tried.is_known() { left.min(REMEMBER) } else { left })
    }

    fn expire_after_update(
        &self,
        _: &[u8; 32],
        tried: &Try,
        _: Instant,
        _: Option<Duration>,
    ) -> Option<Duration> {
        Some(tried.lasts)
    }
}

/// Renewals by what was renewed.
pub(super) struct Renewals(Cache<[u8; 32], Try>);

impl Renewals {
    pub(super) fn new() -> Self {
        Self::of(RENEWALS)
    }

    /// Of so many at most.
    fn of(most: u64) -> Self {
        // One that is new is asked for next, however often those before were.
        let newest = EvictionPolicy::lru();
        let all = Cache::builder().max_capacity(most).eviction_policy(newest);
        Self(all.expire_after(Lasting).build())
    }

    /// One is known: it need not be remembered for long.
    fn known(&self, key: &[u8; 32]) {
        drop(self.0.get(key));
    }
}

impl Session {
    /// A session that begins with these tokens, of which the first was verified.
    pub(super) fn new(token: String, tokens: &Tokens, now: u64) -> Option<Self> {
        let id = super::random()?;
        let mut session = Self { id, token, refresh: None, begun: now, given: now, until: 0, sid: None };
        session.sid = session.sid();
        Some(session.with(tokens, now))
    }

    fn with(mut self, tokens: &Tokens, now: u64) -> Self {
        self.refresh = tokens.refresh.clone().or(self.refresh);
        let said = tokens.expires_in.or_else(|| {
            let end = self.claims()?.get("exp")?.as_u64()?;
            end.checked_sub(now).filter(|left| *left > 0)
        });
        (self.given, self.until) = (now, now.saturating_add(said.unwrap_or(UNSAID)));
        self
    }

    /// What the token claims; it was verified when it came.
    pub(super) fn claims(&self) -> Option<Map<String, Value>> {
        json::object(&URL_SAFE_NO_PAD.decode(self.token.split('.').nth(1)?).ok()?)
    }

    /// The same session with a newer token.
    fn with_token(mut self, token: String) -> Self {
        self.sid = self.sid();
        self.token = token;
        self
    }

    /// What the provider calls its own session; where no login kept it, the token may say it.
    fn sid(&self) -> Option<String> {
        let said = || Some(self.claims()?.get("sid")?.as_str()?.to_owned());
        self.sid.clone().or_else(said)
    }

    /// When its tokens end, in Unix seconds.
    pub(super) fn until(&self) -> u64 {
        self.until
    }

    /// What its renewal is known by.
    fn key(&self) -> [u8; 32] {
        // A refresh token may be good for several renewals.
        let digest = Sha256::new_with_prefix(self.until.to_be_bytes());
        digest.chain_update(self.refresh.as_deref().unwrap_or_default()).finalize().into()
    }

    /// Whether it is time to renew it.
    fn is_due(&self, now: u64) -> bool {
        let early = EARLY.min(self.until.saturating_sub(self.given) / 5);
        self.refresh.is_some() && now.saturating_add(early) >= self.until
    }
}

impl Party {
    /// When a session ends for good, in Unix seconds.
    pub(super) fn end(&self, session: &Session) -> u64 {
        session.begun.saturating_add(self.options.session.get().as_secs())
    }

    /// Whether a session goes on, if it is renewed where that is due.
    fn goes_on(&self, session: &Session, now: u64) -> bool {
        // Not from the future, either: the clock may have been put back.
        let in_time = session.begun <= now.saturating_add(EARLY) && now < self.end(session);
        in_time && !self.was_ended(session)
    }

    /// Whether a session holds, as it is or perhaps when it is renewed.
    pub(super) fn may_hold(&self, session: &Session, now: u64) -> bool {
        (now < session.until || session.refresh.is_some()) && self.goes_on(session, now)
    }

    /// What has become of a session, renewed if that is due.
    pub(super) async fn current(
        self: &Arc<Self>,
        session: Session,
        now: u64,
    ) -> Result<Current, Unavailable> {
        if !self.goes_on(&session, now) {
            return Ok(Current::Ended);
        }
        let (mut session, mut is_new) = (session, false);
        // A browser that shows cookies of before is told of the last renewal since.
        for _ in 0..RENEWED {
            if !session.is_due(now) {
                break;
            }
            match self.outcome(&session, now < session.until).await {
                Ok(Some(next)) if !self.was_ended(&next) => (session, is_new) = ((*next).clone(), true),
                Ok(_) => return Ok(Current::Ended),
                // It is for early renewals that this costs nothing.
                Err(_) if now < session.until => break,
                Err(why) => return Err(away(&why)),
            }
        }
        let session = Box::new(session);
        Ok(match (now < session.until, is_new) {
            (false, _) => Current::Ended,
            (true, true) => Current::Renewed(session),
            (true, false) => Current::Same(session),
        })
    }

    /// What comes of the renewal of a session. Whoever can go on without it waits for a first try, and for a further one
    /// only as long as one takes that is answered: a provider that is away may take long to be found so.
    async fn outcome(self: &Arc<Self>, session: &Session, can_go_on: bool) -> Renewed {
        let key = session.key();
        let tried = self.renewal(session, key);
        let outcome = if tried.is_again && can_go_on {
            let waited = self.clock.now().saturating_duration_since(tried.begun);
            match select(tried.renewal, self.clock.sleep(PATIENCE.saturating_sub(waited))).await {
                Either::Left((outcome, _)) => outcome,
                Either::Right(_) => return Err("it is being renewed".into()),
            }
        } else {
            tried.renewal.await
        };
        tried.told.store(true, Ordering::Relaxed);
        self.renewals.known(&key);
        outcome
    }

    /// The one renewal of a session for all of its requests. It goes on also if none of them waits for it: a refresh token
    /// may be good for one use.
    fn renewal(self: &Arc<Self>, session: &Session, key: [u8; 32]) -> Try {
        let (now, is_over) = (self.clock.now(), session.until <= self.now());
        let is_past = |failed: &Instant| is_over || now.saturating_duration_since(*failed) >= REST;
        let is_again = self.renewals.0.get(&key).is_some_and(|known| known.failed.get().is_some());
        let begin = || {
            let lasts = self.left(session);
            let (party, session) = (self.clone(), session.clone());
            let failed = Arc::<OnceLock<Instant>>::default();
            let when = failed.clone();
            let work = tokio::spawn(async move {
                let renewed = party.renew_once(session).await;
                if renewed.is_err() {
                    let _ = when.set(party.clock.now());
                    party.renewals.known(&key);
                }
                renewed
            });
            let work = work.map(|done| done.unwrap_or_else(|_| Err("the renewal broke off".into())));
            let (renewal, told) = (work.boxed().shared(), Arc::default());
            Try { renewal, begun: now, failed, is_again, told, lasts }
        };
        let entry = self.renewals.0.entry(key);
        entry.or_insert_with_if(begin, |known| known.failed.get().is_some_and(is_past)).into_value()
    }

    /// OpenID Connect Core 1.0 s12.
    pub(super) async fn renew(&self, session: Session) -> Result<Option<Arc<Session>>, Arc<str>> {
        let refresh = session.refresh.clone().unwrap_or_default();
        let pairs = [("grant_type", "refresh_token"), ("refresh_token", &*refresh)];
        let tokens = match self.provider.tokens(&pairs).await {
            Ok(tokens) => tokens,
            Err(NoTokens::Refused) => return Ok(None),
            Err(NoTokens::Away(why)) => return Err(why),
        };
        let now = self.now();
        let verified = match &tokens.id {
            Some(token) => self.verify(token, self.clock.wall()).await.map(|claims| Some((token, claims))),
            None => Ok(None),
        };
        let renewed = match verified {
            Ok(None) => session,
            Ok(Some((token, claims))) => {
                let before = session.claims().unwrap_or_default();
                // s12.2: it is still the same user.
                if claims.get("sub") != before.get("sub") {
                    return Ok(None);
                }
                session.with_token(token.clone())
            }
            // As if none had come, which may be (s12.2): the refresh token of before may be good no more. A key may sign
            // before everybody is shown it.
            Err(why @ (Failure::Unknown(_) | Failure::Refused(jwt::NO_KEY))) => {
                log::warn!(identity = &*self.name, error = why.reason(); "cannot verify the token of a renewal");
                session
            }
            Err(why) => {
                log::warn!(identity = &*self.name, error = why.reason(); "a session ends: the token of its renewal does not hold");
                return Ok(None);
            }
        };
        Ok(Some(Arc::new(renewed.with(&tokens, now))))
    }

    /// Whether somebody ended it: here, or at the provider, who said so.
    pub(super) fn was_ended(&self, session: &Session) -> bool {
        if self.revocations.is_empty() {
            return false;
        }
        let claims = session.claims().unwrap_or_default();
        let text = |name: &str| claims.get(name).and_then(Value::as_str);
        let issued = Some(session.begun as f64);
        let (own, theirs) = (own_id(session), session.sid().map(|sid| their_id(&sid)));
        let of_token = text("jti").map(str::to_owned);
        [Some(own), theirs, of_token].into_iter().flatten().any(|id| {
            let matched = Matched { id: Some(&id), subject: text("sub"), issued };
            self.revocations.revokes(&self.name, matched, self.clock.wall())
        })
    }

    /// Notes that a session in cookies has ended.
    pub(super) fn forget(&self, session: &Session) -> Result<(), Unavailable> {
        self.revoke(Revoked::Jti(own_id(session).into()), None, self.end(session))
    }

    /// Notes what has ended; an administrator may have said more.
    pub(super) fn revoke(
        &self,
        which: Revoked,
        issued_before: Option<u64>,
        expires: u64,
    ) -> Result<(), Unavailable> {
        let entry = Revocation { identity: self.name.clone(), which, issued_before, expires };
        self.revocations.extend(entry).map(drop).map_err(|full| Unavailable {
            reason: format!("logouts cannot be remembered: {full}").into(),
            retry_after: 1,
        })
    }

    /// Seconds since 1970.
    pub(super) fn now(&self) -> u64 {
        seconds(self.clock.wall())
    }
}

/// What the list of what no longer holds calls a session.
fn own_id(session: &Session) -> String {
    format!("session:{}", session.id)
}

/// What it calls all sessions of one that the provider has.
pub(super) fn their_id(sid: &str) -> String {
    format!("sid:{sid}")
}

/// Seconds since 1970.
pub(super) fn seconds(time: SystemTime) -> u64 {
    time.duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    /// A token that claims this; nobody looks at its signature here.
    fn token(claims: &Value) -> String {
        format!("e30.{}.e30", URL_SAFE_NO_PAD.encode(claims.to_string()))
    }

    /// A renewal that was made, of a session that lasts this long.
    fn made(begun: Instant, lasts: Duration) -> Try {
        let renewal: BoxFuture<'static, Renewed> = std::future::ready(Ok(None)).boxed();
        let (renewal, failed, told) = (renewal.shared(), Arc::default(), Arc::default());
        Try { renewal, begun, failed, is_again: false, told, lasts }
    }

    /// What one of many renewals is known by.
    fn key(number: u64) -> [u8; 32] {
        let mut key = [0; 32];
        key[..8].copy_from_slice(&number.to_be_bytes());
        key
    }

    fn begin(renewals: &Renewals, number: u64) {
        let entry = renewals.0.entry(key(number));
        drop(entry.or_insert_with(|| made(Instant::now(), Duration::from_secs(3600))));
    }

    #[test]
    fn a_renewal_is_remembered_however_many_there_are_and_how_often_they_are_asked_for() {
        const MOST: u64 = 10_000;
        let renewals = Renewals::of(MOST);
        (0..MOST).for_each(|number| begin(&renewals, number));
        // Browsers go on to send the cookies of before.
        for number in 0..4 * MOST {
            renewals.known(&key(number % MOST));
            if number % 50 == 0 {
                renewals.0.run_pending_tasks();
            }
        }
        begin(&renewals, MOST);
        renewals.0.run_pending_tasks();
        assert!(renewals.0.contains_key(&key(MOST)), "its page asks for it again");
    }

    #[test]
    fn a_renewal_that_nobody_was_told_of_outlasts_the_many_of_a_minute() {
        let renewals = Renewals::new();
        for number in 0..20_000 {
            begin(&renewals, number);
            if number % 50 == 0 {
                renewals.0.run_pending_tasks();
            }
        }
        renewals.0.run_pending_tasks();
        assert!(renewals.0.contains_key(&key(0)), "its refresh token is spent");
    }

    #[test]
    fn a_renewal_is_remembered_as_long_as_its_session_may_last_until_somebody_knows_of_it() {
        let (now, lasts) = (Instant::now(), Duration::from_secs(3600));
        let tried = made(now, lasts);
        assert_eq!(Lasting.expire_after_create(&[0; 32], &tried, now), Some(lasts));
        let once_read = |left| Lasting.expire_after_read(&[0; 32], &tried, now, Some(left), now);
        assert_eq!(once_read(lasts), Some(lasts), "its refresh token is spent, and nobody has the next one");
        tried.told.store(true, Ordering::Relaxed);
        assert_eq!(once_read(lasts), Some(REMEMBER));
        assert_eq!(once_read(Duration::from_secs(1)), Some(Duration::from_secs(1)), "it is not put off");
        assert_eq!(Lasting.expire_after_update(&[0; 32], &tried, now, Some(REMEMBER)), Some(lasts));
    }

    #[test]
    fn a_session_is_called_as_at_its_login_where_a_renewal_does_not_say() {
        let tokens = Tokens { id: None, refresh: None, expires_in: None };
        let begun = Session::new(token(&json!({"sub": "alice", "sid": "s1"})), &tokens, 1).expect("random");
        let renewed = token(&json!({"sub": "alice"}));
        assert_eq!(begun.clone().with_token(renewed.clone()).sid().as_deref(), Some("s1"));
        // A cookie of before this was kept has it in its token.
        let mut kept = serde_json::to_value(&begun).expect("JSON");
        assert_eq!(kept.as_object_mut().expect("a map").shift_remove("s"), Some(json!("s1")));
        let old: Session = serde_json::from_value(kept).expect("a session");
        assert_eq!(old.with_token(renewed).sid().as_deref(), Some("s1"));
    }
}
