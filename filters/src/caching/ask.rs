//! What a request asks of a cache.

use std::sync::Arc;
use std::time::Duration;

use http::HeaderMap;
use http::header::{HOST, HeaderName, HeaderValue};
use http::uri::PathAndQuery;
use pingora_http::RequestHeader;

use super::{RequestDirectives, Rules};
use crate::context::{Context, Scheme};
use crate::template::Template;

/// What a request asks of a cache: made by the filter `cache`, answered by the core.
#[derive(Debug, Clone)]
pub struct Ask {
    /// The URL, a NUL, and what else tells requests apart, each part with its length before it.
    pub key: Vec<u8>,
    /// The part of the URL that is sent on instead of the request's own, where a part of it is not in the key.
    pub target: Option<PathAndQuery>,
    /// The same of what an earlier filter made of it (`Policies::upstream_path`).
    pub upstream_path: Option<Box<str>>,
    /// What the request says of caches.
    pub directives: RequestDirectives,
    /// Whether who calls is to be told apart by what the upstream is told of them.
    pub by_identity: bool,
    /// What the operator wants.
    pub plan: Arc<Plan>,
}

/// What the operator wants of a cache.
#[derive(Debug, Clone)]
pub struct Plan {
    /// What is stored, and for how long it is fresh.
    pub rules: Rules,
    /// Fields by which answers vary whatever they say.
    pub vary: Vec<HeaderName>,
    /// The largest body that is stored, in bytes.
    pub max_object: u64,
    /// How often something is asked for before it is stored.
    pub min_uses: u32,
    /// Names by which answers are purged.
    pub tags: Vec<Template>,
    /// How long a request waits for the answer to another.
    pub wait: Duration,
}

/// A URL as keys begin with it: scheme, host without the scheme's own port, path as upstreams see it, query. None if
/// the host that the upstream is told is another than the one that the request was routed by.
#[must_use]
pub fn url(request: &RequestHeader, ctx: &Context, query: Option<&str>) -> Option<Vec<u8>> {
    let authority = authority(&request.headers, request)?.to_ascii_lowercase();
    let own_port = if ctx.scheme == Scheme::Https { ":443" } else { ":80" };
    let authority =
        authority.strip_suffix(own_port).or_else(|| authority.strip_suffix(':')).unwrap_or(&authority);
    let host = crate::host::host_of(authority)?;
    if ctx.host.as_deref() != Some(&*host) {
        return None;
    }
    let path = request.uri.path();
    let mut url = Vec::with_capacity(path.len() + authority.len() + 160);
    for part in [ctx.scheme.as_str(), "://", authority, path] {
        url.extend_from_slice(part.as_bytes());
    }
    if let Some(query) = query {
        url.push(b'?');
        url.extend_from_slice(query.as_bytes());
    }
    Some(url)
}

fn authority<'a>(fields: &'a HeaderMap, request: &'a RequestHeader) -> Option<&'a str> {
    let mut lines = fields.get_all(HOST).iter();
    match (lines.next().map(HeaderValue::to_str), lines.next()) {
        (Some(host), None) => host.ok(),
        (None, _) => request.uri.authority().map(http::uri::Authority::as_str),
        (Some(_), Some(_)) => None,
    }
}
