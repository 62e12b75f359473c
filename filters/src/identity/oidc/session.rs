//! Who logged in, as cookies keep it, and how that is renewed before it ends.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use futures_util::FutureExt;
use futures_util::future::{BoxFuture, Shared};
use moka::sync::Cache;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use sha2::{Digest, Sha256};

use super::Party;
use super::provider::{NoTokens, Tokens, away};
use crate::identity::{Unavailable, json};
use crate::world::{Matched, Revocation, Revoked};

/// How long before the end of its tokens a session is renewed, at most; a fifth of their time if that is less.
const EARLY: u64 = 60;
/// How long tokens hold that do not say.
const UNSAID: u64 = 300;
/// How long what came of a renewal is remembered: browsers go on to send the cookies of before for a while.
const REMEMBER: Duration = Duration::from_secs(60);
/// How often a session may have been renewed since its cookies were made, for those to hold.
const RENEWED: usize = 16;
/// How many renewals are remembered.
const RENEWALS: u64 = 10_000;

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

/// A renewal that is made for all who wait for it; none where the provider ended the session.
type Renewal = Shared<BoxFuture<'static, Result<Option<Arc<Session>>, Arc<str>>>>;

/// Renewals by what was renewed.
pub(super) struct Renewals(Cache<[u8; 32], Renewal>);

impl Renewals {
    pub(super) fn new() -> Self {
        Self(Cache::builder().max_capacity(RENEWALS).time_to_live(REMEMBER).build())
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

    /// What has become of a session, renewed if that is due.
    pub(super) async fn current(
        self: &Arc<Self>,
        session: Session,
        now: u64,
    ) -> Result<Current, Unavailable> {
        // Not from the future, either: the clock may have been put back.
        let in_time = session.begun <= now.saturating_add(EARLY) && now < self.end(&session);
        if !in_time || self.was_ended(&session) {
            return Ok(Current::Ended);
        }
        let (mut session, mut is_new) = (session, false);
        // A browser that shows cookies of before is told of the last renewal since.
        for _ in 0..RENEWED {
            if !session.is_due(now) {
                break;
            }
            match self.renewal(&session).await {
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

    /// The one renewal of a session that all of its requests wait for. It goes on also if none of them does: a refresh
    /// token may be good for one use.
    fn renewal(self: &Arc<Self>, session: &Session) -> Renewal {
        // A refresh token may be good for several renewals.
        let digest = Sha256::new_with_prefix(session.until.to_be_bytes());
        let digest = digest.chain_update(session.refresh.as_deref().unwrap_or_default());
        let key: [u8; 32] = digest.finalize().into();
        self.renewals.0.get_with(key, || {
            let (party, session) = (self.clone(), session.clone());
            let work = tokio::spawn(async move {
                let renewed = party.renew_once(session).await;
                if renewed.is_err() {
                    party.renewals.0.invalidate(&key);
                }
                renewed
            });
            work.map(|done| done.unwrap_or_else(|_| Err("the renewal broke off".into()))).boxed().shared()
        })
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
        let mut renewed = session.clone();
        if let Some(token) = &tokens.id {
            let claims = match self.verify(token, self.clock.wall()).await {
                Ok(claims) => claims,
                Err(why) => return Err(why.reason().into()),
            };
            let before = session.claims().unwrap_or_default();
            // s12.2: it is still the same user.
            if claims.get("sub") != before.get("sub") {
                return Ok(None);
            }
            renewed = renewed.with_token(token.clone());
        }
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
    pub(super) fn forget(&self, session: &Session) {
        let which = Revoked::Jti(own_id(session).into());
        let expires = self.end(session);
        let entry = Revocation { identity: self.name.clone(), which, issued_before: None, expires };
        if let Err(full) = self.revocations.add(entry) {
            log::warn!(identity = &*self.name; "cannot remember that a session was ended: {full}");
        }
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
