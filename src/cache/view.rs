//! What is stored for a URL, for who looks.

use std::sync::Arc;

use http::HeaderMap;
use schemars::JsonSchema;
use serde::Serialize;
use tollhouse_filters::caching::{RequestDirectives, Serve, judge, matches};

use super::store::Entry;
use super::{Cache, now};

/// Most answers that are shown of one URL.
const MOST_SHOWN: usize = 100;

/// What is stored for a URL.
#[derive(Debug, Serialize, JsonSchema)]
#[schemars(rename = "Cached")]
pub struct Looked {
    /// The URL as keys have it.
    pub url: String,
    /// What is stored for it: of each route, caller and variant.
    pub stored: Vec<Look>,
}

/// A stored answer.
#[derive(Debug, Serialize, JsonSchema)]
#[schemars(rename = "CachedAnswer")]
pub struct Look {
    /// Its status.
    pub status: u16,
    /// The length of its body.
    pub length: u64,
    /// How old it is, in seconds.
    pub age: u64,
    /// For how many seconds more it is fresh; negative when it no longer is.
    pub ttl: i64,
    /// Whether a plain request that it matches would get it as it is, and if not, why.
    pub serves: &'static str,
    /// The fields that it varies by.
    pub varies_by: Vec<String>,
    /// The names that it is purged by.
    pub tags: Vec<String>,
    /// Bytes of memory that it takes.
    pub weight: u64,
}

impl Cache {
    /// What is stored for a URL, whichever of these it is stored as, and whether a request with these fields would get it.
    #[must_use]
    pub fn look(&self, url: String, stored_as: &[Vec<u8>], request: &HeaderMap) -> Looked {
        let found: Vec<_> = stored_as.iter().flat_map(|url| self.store().of_url(url, MOST_SHOWN)).collect();
        let stored = found.iter().flat_map(|variants| variants.iter());
        Looked { url, stored: stored.map(|entry| look(entry, request)).collect() }
    }
}

fn look(entry: &Arc<Entry>, request: &HeaderMap) -> Look {
    let judged = judge(entry.facts(), &RequestDirectives::of(request), entry.standing(), now());
    let serves = match judged.serve {
        _ if !matches(entry.variant(), request) => "no: it is for requests with other fields",
        Serve::AsItIs => "yes",
        Serve::AndRevalidate => "yes: stale, while it is fetched anew",
        Serve::AfterValidation(_) if entry.is_purged() => "no: it was purged, and is to be validated",
        Serve::AfterValidation(_) if entry.facts().no_cache => "no: it is to be validated each time",
        Serve::AfterValidation(_) => "no: it is stale, and is to be validated",
    };
    let names = tollhouse_filters::caching::names(entry.variant());
    Look {
        status: entry.status(),
        length: entry.length(),
        age: judged.age,
        ttl: judged.ttl,
        serves,
        varies_by: names.iter().map(ToString::to_string).collect(),
        tags: entry.tags().map(str::to_owned).collect(),
        weight: entry.weight() as u64,
    }
}
