//! `/api/cache`: what is stored of answers.

use axum::Json;
use axum::extract::rejection::{JsonRejection, QueryRejection};
use axum::extract::{Query, State};
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use futures_util::future::join_all;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tollhouse_filters::caching::stored_as;
use tollhouse_filters::world::Purged;

use super::AdminState;
use super::problem::problem;
use crate::cache::store::{DiskNumbers, How, Purge};
use crate::snapshot::Snapshot;

/// What the store has in it, and what it did since the process began.
#[derive(Debug, Serialize, JsonSchema)]
#[schemars(rename = "CacheNumbers")]
pub(super) struct NumbersView {
    /// Answers in it.
    entries: u64,
    /// Bytes of memory that they take.
    bytes: u64,
    /// Bytes that they may take.
    capacity: u64,
    /// Answers that left for others.
    evicted: u64,
    /// Answers that were not taken in, since all that would have had to leave is asked for more often.
    not_admitted: u64,
    /// Answers that were purged.
    purged: u64,
    /// What is in `server.cache.disk`, where there is one.
    #[serde(skip_serializing_if = "Option::is_none")]
    disk: Option<DiskView>,
    /// How purges are shared, where they are (`server.cache.store`).
    #[serde(skip_serializing_if = "Option::is_none")]
    shared: Option<SharedView>,
}

/// How purges are shared with other gateways.
#[derive(Debug, Serialize, JsonSchema)]
#[schemars(rename = "CacheSharing")]
pub(super) struct SharedView {
    /// The store.
    store: String,
    /// Purges that wait for it to be back.
    late: usize,
}

/// What is on disk, and what happened there since it was opened.
#[derive(Debug, Serialize, JsonSchema)]
#[schemars(rename = "CacheDiskNumbers")]
pub(super) struct DiskView {
    /// Answers in it.
    entries: u64,
    /// Bytes that they take.
    bytes: u64,
    /// Bytes that they may take.
    capacity: u64,
    /// Answers that were read.
    reads: u64,
    /// Answers that were written.
    writes: u64,
    /// Answers that left for others.
    evicted: u64,
    /// Answers that were not written, since too many waited or the disk had failed.
    dropped: u64,
    /// Files that were not whole.
    corrupt: u64,
    /// Reads and writes that failed, and reads that took too long.
    errors: u64,
}

impl From<DiskNumbers> for DiskView {
    fn from(numbers: DiskNumbers) -> Self {
        Self {
            entries: numbers.entries,
            bytes: numbers.bytes,
            capacity: numbers.capacity,
            reads: numbers.hits,
            writes: numbers.written,
            evicted: numbers.evicted,
            dropped: numbers.dropped,
            corrupt: numbers.corrupt,
            errors: numbers.errors,
        }
    }
}

/// Which URL is looked up.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Which {
    url: String,
}

/// What to purge: one of `url`, `prefix`, `tag` and `all`.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(rename = "PurgeWish")]
pub(super) struct Wish {
    /// A URL, such as `https://example.com/a?b=c`: all that is stored for it, of every route, caller and variant.
    #[serde(default)]
    url: Option<String>,
    /// The beginning of URLs, scheme and host included.
    #[serde(default)]
    prefix: Option<String>,
    /// A tag that the filter `cache` gave.
    #[serde(default)]
    tag: Option<String>,
    /// Everything.
    #[serde(default)]
    all: bool,
    /// Whether what is purged only becomes stale, to be validated when it is asked for again.
    #[serde(default)]
    soft: bool,
}

/// How many answers were purged.
#[derive(Debug, Serialize, JsonSchema)]
#[schemars(rename = "Purged")]
pub(super) struct Done {
    /// How many it was, here.
    purged: u64,
    /// Whether all gateways know that share purges (`server.cache.store`); false if they will only once the store is
    /// back.
    #[serde(skip_serializing_if = "Option::is_none")]
    shared: Option<bool>,
}

/// What the store has in it.
pub(super) async fn numbers(State(state): State<AdminState>) -> Json<NumbersView> {
    let numbers = state.cache.store().numbers();
    Json(NumbersView {
        entries: numbers.entries,
        bytes: numbers.bytes,
        capacity: numbers.capacity,
        evicted: numbers.evicted,
        not_admitted: numbers.not_admitted,
        purged: numbers.purged,
        disk: numbers.disk.map(Into::into),
        shared: state.cache.shared().map(|(store, late)| SharedView { store: store.to_string(), late }),
    })
}

/// What is stored for a URL.
pub(super) async fn look(
    State(state): State<AdminState>,
    which: Result<Query<Which>, QueryRejection>,
) -> Response {
    let Which { url } = match which {
        Ok(Query(which)) => which,
        Err(rejection) => return problem(rejection.status(), &rejection.body_text()),
    };
    let Some(url) = as_key(&url) else { return problem(StatusCode::BAD_REQUEST, NO_URL) };
    let stored_as = as_stored(&url, &state.live.load());
    Json(state.cache.look(url, &stored_as, &HeaderMap::new())).into_response()
}

/// Takes out what is asked for.
pub(super) async fn purge(
    State(state): State<AdminState>,
    wish: Result<Json<Wish>, JsonRejection>,
) -> Response {
    let wish = match wish {
        Ok(Json(wish)) => wish,
        Err(rejection) => return problem(rejection.status(), &rejection.body_text()),
    };
    let how = if wish.soft { How::Soft } else { How::Hard };
    let wanted = wish.what(&state.live.load());
    match wanted {
        Ok(all) => {
            let purges = all.into_iter().map(|what| state.cache.purge_everywhere(what, how));
            let Purged { hits, shared } = together(&join_all(purges).await);
            Json(Done { purged: hits, shared }).into_response()
        }
        Err(reason) => problem(StatusCode::UNPROCESSABLE_ENTITY, reason),
    }
}

/// What several purges did: all gateways know of them, if they know of each.
fn together(purges: &[Purged]) -> Purged {
    let hits = purges.iter().map(|purged| purged.hits).sum();
    let shared = purges.iter().filter_map(|purged| purged.shared).min();
    Purged { hits, shared }
}

const NO_URL: &str = "expected a URL with scheme and host, such as `https://example.com/a`";

impl Wish {
    fn what(self, snapshot: &Snapshot) -> Result<Vec<Purge>, &'static str> {
        match (self.url, self.prefix, self.tag, self.all) {
            (Some(url), None, None, false) => {
                let url = as_key(&url).ok_or(NO_URL)?;
                Ok(as_stored(&url, snapshot).into_iter().map(Purge::Url).collect())
            }
            (None, Some(prefix), None, false) => {
                as_key(&prefix).map(|prefix| vec![Purge::Prefix(prefix.into())]).ok_or(NO_URL)
            }
            (None, None, Some(tag), false) => Ok(vec![Purge::Tag(tag)]),
            (None, None, None, true) => Ok(vec![Purge::All]),
            _ => Err("give one of `url`, `prefix`, `tag` and `all`"),
        }
    }
}

/// What a URL may be stored as by the caches of this snapshot.
fn as_stored(url: &str, snapshot: &Snapshot) -> Vec<Vec<u8>> {
    let caches = snapshot.caches.as_ref();
    let counted = caches.map(|caches| &*caches.counted).unwrap_or_default();
    let is_version = |segment: &str| caches.is_some_and(|caches| caches.is_version(segment));
    stored_as(url, &snapshot.server.paths, counted, is_version)
}

/// A URL as keys have it: scheme and host in lower case, without the scheme's own port, with a path.
fn as_key(url: &str) -> Option<String> {
    let (scheme, rest) = url.split_once("://")?;
    let scheme = scheme.to_ascii_lowercase();
    let own_port = match scheme.as_str() {
        "http" => ":80",
        "https" => ":443",
        _ => return None,
    };
    let end = rest.find(['/', '?']).unwrap_or(rest.len());
    let (authority, target) = rest.split_at(end);
    let authority = authority.to_ascii_lowercase();
    let authority = authority.strip_suffix(own_port).unwrap_or(&authority);
    let slash = if target.starts_with('/') { "" } else { "/" };
    (!authority.is_empty() && !target.contains('\0'))
        .then(|| format!("{scheme}://{authority}{slash}{target}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_gateways_know_of_purges_if_they_know_of_each() {
        let purged = |hits, shared| Purged { hits, shared };
        for (one, other, both) in [
            (None, None, None),
            (Some(true), Some(true), Some(true)),
            (Some(true), Some(false), Some(false)),
            (Some(false), None, Some(false)),
        ] {
            assert_eq!(together(&[purged(1, one), purged(2, other)]), purged(3, both));
        }
    }

    #[test]
    fn urls_are_taken_as_they_are_written() {
        for (written, key) in [
            ("HTTP://Example.com", Some("http://example.com/")),
            ("http://example.com:80/a?b", Some("http://example.com/a?b")),
            ("https://example.com:443/A", Some("https://example.com/A")),
            ("https://example.com:80?x", Some("https://example.com:80/?x")),
            ("example.com/a", None),
            ("ftp://example.com/", None),
            ("http:///a", None),
        ] {
            assert_eq!(as_key(written).as_deref(), key, "{written}");
        }
    }
}
