//! Where sessions are kept: in the cookies of their browsers, or in a store, whose cookies say no more than which one.
//!
//! What a store holds is encrypted as cookies are, and ends when its session does. What is not there any more has ended,
//! for all gateways that share the store. While it is away nobody can tell who is logged in.

use std::sync::Arc;
use std::time::Duration;

use http::HeaderValue;
use pingora_http::RequestHeader;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::Party;
use super::session::Session;
use crate::identity::{Unavailable, jwt};
use crate::world::{Away, Records, Store};

/// Between two looks at what another gateway makes.
const LOOK: Duration = Duration::from_millis(50);

/// What the cookie of a session says that is kept elsewhere.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Ticket {
    #[serde(rename = "i")]
    id: String,
}

/// A store for sessions.
pub(super) struct Shelf {
    store: Arc<dyn Store>,
    /// Whose sessions these are.
    scope: String,
}

impl From<Away> for Unavailable {
    fn from(_: Away) -> Self {
        Self { reason: "the store of sessions is away".into(), retry_after: 1 }
    }
}

impl Shelf {
    pub(super) fn new(store: Arc<dyn Store>, scope: &str) -> Self {
        Self { store, scope: format!("sessions of {scope}") }
    }

    fn records(&self) -> Result<&dyn Records, Away> {
        self.store.records().ok_or(Away)
    }
}

/// The sessions of one that the provider has, and of a user.
fn groups(session: &Session) -> Vec<Vec<u8>> {
    let claims = session.claims().unwrap_or_default();
    let text = |name: &str| claims.get(name).and_then(Value::as_str);
    [text("sid").map(of_sid), text("sub").map(of_user)].into_iter().flatten().collect()
}

fn of_sid(sid: &str) -> Vec<u8> {
    format!("sid:{sid}").into()
}

fn of_user(sub: &str) -> Vec<u8> {
    format!("sub:{sub}").into()
}

impl Party {
    /// The session that a request shows, as it was made or last renewed.
    pub(super) async fn session(&self, request: &RequestHeader) -> Result<Option<Session>, Unavailable> {
        let Some(plain) = self.jar.session(request) else { return Ok(None) };
        let Some(shelf) = &self.shelf else { return Ok(serde_json::from_slice(&plain).ok()) };
        // A session that is in its cookies is one of before there was a store.
        let Ok(ticket) = serde_json::from_slice::<Ticket>(&plain) else { return Ok(None) };
        Ok(self.fetched(shelf, &ticket.id).await?)
    }

    async fn fetched(&self, shelf: &Shelf, id: &str) -> Result<Option<Session>, Away> {
        let kept = shelf.records()?.get(&shelf.scope, id.as_bytes()).await?;
        let session: Option<Session> = kept.and_then(|kept| {
            let plain = self.jar.unwrap(std::str::from_utf8(&kept).ok()?)?;
            serde_json::from_slice(&plain).ok()
        });
        // One cannot stand for another, whoever writes to the store.
        Ok(session.filter(|session| session.id == id))
    }

    /// Keeps a session that begins; gives its cookies, or none if it is too large for them.
    pub(super) async fn keep(
        &self,
        request: &RequestHeader,
        session: &Session,
    ) -> Result<Option<Vec<HeaderValue>>, Unavailable> {
        let plain = serde_json::to_vec(session).unwrap_or_default();
        let Some(shelf) = &self.shelf else {
            return Ok(self.jar.keep(request, &plain, self.left(session).as_secs()));
        };
        let Some(text) = self.jar.wrap(&plain) else { return Ok(None) };
        let (id, groups) = (session.id.as_bytes(), groups(session));
        shelf.records()?.put(&shelf.scope, id, text.as_bytes(), &groups, self.left(session)).await?;
        let ticket = serde_json::to_vec(&Ticket { id: session.id.clone() }).unwrap_or_default();
        Ok(self.jar.keep(request, &ticket, self.left(session).as_secs()))
    }

    /// The cookies of a session that was renewed.
    pub(super) fn kept_anew(&self, request: &RequestHeader, session: &Session) -> Vec<HeaderValue> {
        if self.shelf.is_some() {
            return Vec::new();
        }
        let plain = serde_json::to_vec(session).unwrap_or_default();
        // One that grew too large goes on with what there is.
        self.jar.keep(request, &plain, self.left(session).as_secs()).unwrap_or_default()
    }

    /// How long a session lasts from now on.
    pub(super) fn left(&self, session: &Session) -> Duration {
        Duration::from_secs(self.end(session).saturating_sub(self.now()))
    }

    /// Renews a session of the store, unless another gateway does: a refresh token may be good for one use.
    pub(super) async fn renew_once(&self, session: Session) -> Result<Option<Arc<Session>>, Arc<str>> {
        let Some(shelf) = &self.shelf else { return self.renew(session).await };
        let away = |_: Away| Arc::<str>::from("the store of sessions is away");
        let key = format!("renewal:{}:{}", session.id, session.until());
        let records = shelf.records().map_err(away)?;
        if !records.claim(&shelf.scope, key.as_bytes(), self.longest_renewal()).await.map_err(away)? {
            return self.renewed_elsewhere(shelf, session).await;
        }
        let id = session.id.clone();
        let next = match self.renew(session).await {
            // The claim stays: who has read the session before would use its refresh token again.
            Ok(Some(next)) => next,
            Ok(None) => {
                // The provider ended it; who cannot be told now learns that by asking it again.
                let _ = records.remove(&shelf.scope, id.as_bytes()).await;
                return Ok(None);
            }
            Err(why) => {
                // No tokens came: another gateway may have more luck.
                let _ = records.remove(&shelf.scope, key.as_bytes()).await;
                return Err(why);
            }
        };
        let text = serde_json::to_vec(&*next).ok().and_then(|plain| self.jar.wrap(&plain));
        let text = text.ok_or("a session cannot be sealed")?;
        match records.replace(&shelf.scope, id.as_bytes(), text.as_bytes(), self.left(&next)).await {
            Ok(true) => Ok(Some(next)),
            // It was ended meanwhile.
            Ok(false) => Ok(None),
            // This gateway remembers it for a while at least.
            Err(Away) => {
                log::warn!(identity = &*self.name; "a renewed session cannot be kept: its store is away");
                Ok(Some(next))
            }
        }
    }

    /// The longest that a renewal takes: until somebody else has asked where the provider is, until it says so itself,
    /// until it gives tokens, and until there are keys for these.
    fn longest_renewal(&self) -> Duration {
        self.options.timeout.get().saturating_mul(3).saturating_add(jwt::PATIENCE)
    }

    /// What another gateway makes of a session.
    async fn renewed_elsewhere(
        &self,
        shelf: &Shelf,
        session: Session,
    ) -> Result<Option<Arc<Session>>, Arc<str>> {
        let end = self.clock.now() + self.options.timeout.get();
        while self.clock.now() < end {
            match self.fetched(shelf, &session.id).await {
                Ok(None) => return Ok(None),
                Ok(Some(next)) if next.until() != session.until() => return Ok(Some(Arc::new(next))),
                Ok(Some(_)) => self.clock.sleep(LOOK).await,
                Err(Away) => break,
            }
        }
        Err("another gateway does not renew the session in time".into())
    }

    /// Ends a session, wherever its cookies are.
    pub(super) async fn end_one(&self, session: &Session) -> Result<(), Unavailable> {
        match &self.shelf {
            Some(shelf) => Ok(shelf.records()?.remove(&shelf.scope, session.id.as_bytes()).await?),
            None => self.forget(session),
        }
    }

    /// Ends the kept sessions of one that the provider has, or of a user; those in cookies are not known.
    pub(super) async fn end_kept(&self, sid: Option<&str>, sub: Option<&str>) -> Result<(), Unavailable> {
        let group = sid.map(of_sid).or(sub.map(of_user));
        if let (Some(shelf), Some(group)) = (&self.shelf, group) {
            shelf.records()?.remove_group(&shelf.scope, &group).await?;
        }
        Ok(())
    }
}
