//! Where the keys of an issuer are: a set of keys, or a document of the issuer that says where that is.

use std::time::{Duration, Instant};

use parking_lot::Mutex;
use serde_json::{Map, Value};

use crate::identity::remote::Remote;
use crate::values::{Scalar, Url};

/// How long what a document said of the place of the keys is gone by.
const KEEP: Duration = Duration::from_secs(24 * 3600);
/// How long if a key is looked for that is not there: it may be in another place by now.
const KEEP_MISSED: Duration = Duration::from_secs(300);
/// After an issuer could not be asked, how long nobody asks it again.
const PAUSE: Duration = Duration::from_secs(60);

/// Where the keys are.
pub(super) enum Place {
    /// In the set at this place.
    Set(Remote),
    /// Where the issuer says.
    Issuer(Box<Discovery>),
}

/// An issuer that says where its keys are (OpenID Connect Discovery 1.0 s4, RFC 8414 s3).
pub(super) struct Discovery {
    issuer: String,
    /// Where its document may be, in the order in which it is looked for.
    documents: [Remote; 2],
    /// All calls go through an upstream of the document.
    confined: bool,
    found: Mutex<Option<Found>>,
}

/// Where the keys are.
#[derive(Clone)]
struct Found {
    set: Remote,
    /// When that was said; none where it is to be said again, as they could not be fetched there.
    said: Option<Instant>,
    /// When it was asked for again since, in vain.
    failed: Option<Instant>,
}

/// A set of keys, as it came.
pub(super) struct KeySetAnswer {
    pub(super) set: Map<String, Value>,
    /// How long it says that it is good for.
    pub(super) max_age: Option<Duration>,
}

impl Place {
    /// Fetches the keys, perhaps because one was looked for in vain.
    pub(super) async fn fetch(&self, now: Instant, missed: bool) -> Result<KeySetAnswer, String> {
        let set = match self {
            Self::Set(set) => return fetch(set).await,
            Self::Issuer(discovery) => discovery.locate(now, if missed { KEEP_MISSED } else { KEEP }).await?,
        };
        let fetched = fetch(&set).await;
        if let (Err(_), Self::Issuer(discovery)) = (&fetched, self) {
            // They may have moved; as long as nobody says so, they are where they were.
            if let Some(found) = &mut *discovery.found.lock() {
                (found.said, found.failed) = (None, None);
            }
        }
        fetched
    }

    /// As an operator knows it.
    pub(super) fn name(&self) -> &str {
        match self {
            Self::Set(set) => set.url().as_str(),
            Self::Issuer(discovery) => &discovery.issuer,
        }
    }
}

async fn fetch(set: &Remote) -> Result<KeySetAnswer, String> {
    let failed = |why| format!("{}: {why}", set.url());
    let answer = set.get().await.map_err(failed)?;
    Ok(KeySetAnswer { set: answer.object().map_err(failed)?, max_age: answer.max_age() })
}

impl Found {
    /// Whether the issuer need not be asked: what it said is not as old as this, or it did not answer just now.
    fn is_enough(&self, now: Instant, keep: Duration) -> bool {
        let is_within = |since: Instant, time: Duration| now.saturating_duration_since(since) < time;
        self.said.is_some_and(|said| is_within(said, keep))
            || self.failed.is_some_and(|failed| is_within(failed, PAUSE))
    }
}

impl Discovery {
    /// `issuer` is a URL, called by `remote`; the names of its documents are put to its path, behind it by
    /// OpenID Connect and in front of it by RFC 8414.
    pub(super) fn new(issuer: &str, remote: &Remote, confined: bool) -> Option<Self> {
        let url = Url::read(issuer).filter(|url| url.target().query().is_none())?;
        let path = url.target().path().trim_end_matches('/');
        let behind = url.with_path(&format!("{path}/.well-known/openid-configuration"))?;
        let before = url.with_path(&format!("/.well-known/oauth-authorization-server{path}"))?;
        let documents = [remote.beside(&behind), remote.beside(&before)];
        Some(Self { issuer: issuer.to_owned(), documents, confined, found: Mutex::default() })
    }

    /// Where the keys are; asked for if what was said is as old as this.
    async fn locate(&self, now: Instant, keep: Duration) -> Result<Remote, String> {
        let known = self.found.lock().clone();
        if let Some(known) = known.as_ref().filter(|known| known.is_enough(now, keep)) {
            return Ok(known.set.clone());
        }
        let found = match (self.ask().await, known) {
            (Ok(set), _) => Found { set, said: Some(now), failed: None },
            // Until it can be asked again, they are where they were.
            (Err(why), Some(known)) => {
                log::warn!(issuer = self.issuer.as_str(), error = why.as_str(); "cannot ask an issuer where its keys are");
                Found { failed: Some(now), ..known }
            }
            (Err(why), None) => return Err(why),
        };
        let set = found.set.clone();
        *self.found.lock() = Some(found);
        Ok(set)
    }

    /// Asks the issuer.
    async fn ask(&self) -> Result<Remote, String> {
        let [first, second] = &self.documents;
        let mut document = first;
        let mut answer = first.get().await.map_err(|why| format!("{}: {why}", first.url()))?;
        if answer.status == http::StatusCode::NOT_FOUND {
            document = second;
            answer = second.get().await.map_err(|why| format!("{}: {why}", second.url()))?;
        }
        let failed = |why: &str| format!("{}: {why}", document.url());
        let set = self.named_by(&answer.object().map_err(|why| failed(&why))?, document);
        set.map_err(|why| failed(&why))
    }

    /// Where a document says that the keys are.
    fn named_by(&self, document: &Map<String, Value>, from: &Remote) -> Result<Remote, String> {
        let text = |name: &str| document.get(name).and_then(Value::as_str);
        // Or who serves one issuer's document could speak for another (RFC 8414 s3.3).
        if text("issuer") != Some(&self.issuer) {
            return Err("the document is of another `issuer`".to_owned());
        }
        let url = text("jwks_uri").and_then(Url::read).ok_or("the document has no usable `jwks_uri`")?;
        if from.url().is_https() && !url.is_https() {
            return Err("the `jwks_uri` of the document is not https".to_owned());
        }
        if self.confined && url.origin() != from.url().origin() {
            return Err(
                "the `jwks_uri` of the document is on another host; write it in the identity".to_owned()
            );
        }
        Ok(from.beside(&url))
    }
}
