//! What of a stored answer a request gets: all, a part, or that it has it already (RFC 9111 s4.3.2).

use http::header::{
    DATE, ETAG, HeaderName, HeaderValue, IF_MATCH, IF_MODIFIED_SINCE, IF_NONE_MATCH, IF_RANGE,
    IF_UNMODIFIED_SINCE, LAST_MODIFIED, RANGE,
};
use http::{HeaderMap, Method, StatusCode};

use super::{Ranged, http_date, ranged};

/// What a request asks beside the answer itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Asks {
    /// It has conditions that only the origin can judge (RFC 9110 s13.1.1, s13.1.4).
    pub of_origin: bool,
    /// It wants a part.
    pub part: bool,
}

impl Asks {
    /// What a request asks.
    #[must_use]
    pub fn of(request: &HeaderMap) -> Self {
        Self {
            of_origin: request.contains_key(IF_MATCH) || request.contains_key(IF_UNMODIFIED_SINCE),
            part: request.contains_key(RANGE),
        }
    }
}

/// What of a stored answer a request gets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Selected {
    /// All.
    Whole,
    /// That it has it already: 304.
    NotModified,
    /// These bytes, first and last: 206.
    Part(u64, u64),
    /// That there are no such bytes: 416.
    NoSuchPart,
}

/// What of a stored answer with this status, these fields and a body of this length a request gets.
#[must_use]
pub fn select(
    (method, request): (&Method, &HeaderMap),
    (status, stored): (StatusCode, &HeaderMap),
    length: u64,
) -> Selected {
    if status != StatusCode::OK {
        return Selected::Whole;
    }
    if is_known(request, stored) {
        return Selected::NotModified;
    }
    // s14.2: a part is for GET only.
    let mut lines = request.get_all(RANGE).iter();
    let range = lines.next().filter(|_| *method == Method::GET && lines.next().is_none());
    match range.filter(|_| is_unchanged(request, stored)).map(|range| ranged(range.as_bytes(), length)) {
        None | Some(Ranged::Whole) => Selected::Whole,
        Some(Ranged::Part(first, last)) => Selected::Part(first, last),
        Some(Ranged::Nothing) => Selected::NoSuchPart,
    }
}

/// Whether the client has what is stored (RFC 9110 s13.1.2, s13.1.3).
fn is_known(request: &HeaderMap, stored: &HeaderMap) -> bool {
    if request.contains_key(IF_NONE_MATCH) {
        let Some(tag) = stored.get(ETAG).map(|tag| opaque(tag.as_bytes())) else {
            return any_tag(request);
        };
        let lines = request.get_all(IF_NONE_MATCH).iter();
        return any_tag(request)
            || lines.flat_map(|line| tags(line.as_bytes())).any(|asked| opaque(asked) == tag);
    }
    let Some(since) = request.get(IF_MODIFIED_SINCE).and_then(date) else { return false };
    let changed = stored.get(LAST_MODIFIED).or_else(|| stored.get(DATE)).and_then(date);
    changed.is_some_and(|changed| changed <= since)
}

fn any_tag(request: &HeaderMap) -> bool {
    request.get(IF_NONE_MATCH).is_some_and(|tag| tag.as_bytes().trim_ascii() == b"*")
}

fn date(value: &HeaderValue) -> Option<u64> {
    http_date(value.as_bytes())
}

/// Whether `If-Range` lets a part be sent (RFC 9110 s13.1.5): what it names must be what is stored, byte for byte.
fn is_unchanged(request: &HeaderMap, stored: &HeaderMap) -> bool {
    let Some(condition) = request.get(IF_RANGE).map(HeaderValue::as_bytes) else { return true };
    let same = |name: &HeaderName| stored.get(name).is_some_and(|value| value.as_bytes() == condition);
    if condition.starts_with(b"\"") {
        return same(&ETAG);
    }
    // A weak tag never is; a date is strong if the answer came well after it (RFC 9110 s8.8.2.2).
    let strong = || Some(stored.get(DATE).and_then(date)? > stored.get(LAST_MODIFIED).and_then(date)?);
    !condition.starts_with(b"W/") && same(&LAST_MODIFIED) && strong() == Some(true)
}

/// A tag without its weakness (RFC 9110 s8.8.3.2).
fn opaque(tag: &[u8]) -> &[u8] {
    let tag = tag.trim_ascii();
    tag.strip_prefix(b"W/").unwrap_or(tag)
}

/// The tags of a list; a tag may hold commas.
fn tags(line: &[u8]) -> impl Iterator<Item = &[u8]> {
    let mut rest = line;
    std::iter::from_fn(move || {
        let mut quoted = false;
        if rest.is_empty() {
            return None;
        }
        let end = rest.iter().position(|byte| {
            quoted ^= *byte == b'"';
            *byte == b',' && !quoted
        });
        let (tag, after) = end.map_or((rest, &b""[..]), |end| (&rest[..end], &rest[end + 1..]));
        rest = after;
        Some(tag)
    })
}
