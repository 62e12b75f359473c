//! `/api/cache`: what is stored of answers.

use axum::Json;
use axum::extract::rejection::{JsonRejection, QueryRejection};
use axum::extract::{Query, State};
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tollhouse_filters::world::Purged;

use super::AdminState;
use super::problem::problem;
use crate::cache::store::{DiskNumbers, How, Purge};

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
    match as_key(&url) {
        Some(url) => Json(state.cache.look(&url, &HeaderMap::new())).into_response(),
        None => problem(StatusCode::BAD_REQUEST, NO_URL),
    }
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
    match wish.what() {
        Ok(what) => {
            let Purged { hits, shared } = state.cache.purge_everywhere(what, how).await;
            Json(Done { purged: hits, shared }).into_response()
        }
        Err(reason) => problem(StatusCode::UNPROCESSABLE_ENTITY, reason),
    }
}

const NO_URL: &str = "expected a URL with scheme and host, such as `https://example.com/a`";

impl Wish {
    fn what(self) -> Result<Purge, &'static str> {
        match (self.url, self.prefix, self.tag, self.all) {
            (Some(url), None, None, false) => as_key(&url).map(|url| Purge::Url(url.into())).ok_or(NO_URL),
            (None, Some(prefix), None, false) => {
                as_key(&prefix).map(|prefix| Purge::Prefix(prefix.into())).ok_or(NO_URL)
            }
            (None, None, Some(tag), false) => Ok(Purge::Tag(tag)),
            (None, None, None, true) => Ok(Purge::All),
            _ => Err("give one of `url`, `prefix`, `tag` and `all`"),
        }
    }
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
