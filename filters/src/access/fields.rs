//! Fields that filters tell upstreams something of callers in.

use http::header::{self, HeaderName};

/// Fields that have a meaning of their own, which no claim may take.
const TAKEN: [HeaderName; 16] = [
    header::AUTHORIZATION,
    header::CONNECTION,
    header::CONTENT_LENGTH,
    header::CONTENT_TYPE,
    header::COOKIE,
    header::EXPECT,
    header::FORWARDED,
    header::HOST,
    header::ORIGIN,
    header::PROXY_AUTHORIZATION,
    header::TE,
    header::TRAILER,
    header::TRANSFER_ENCODING,
    header::UPGRADE,
    header::VIA,
    HeaderName::from_static("traceparent"),
];
const TAKEN_PREFIXES: [&str; 2] = ["x-forwarded-", "x-tollhouse-"];

/// Beginnings and names of fields in which clients say something else than who they are.
const OF_CLIENTS: [&str; 9] = [
    "accept",
    "if-",
    "user-agent",
    "referer",
    "range",
    "cache-control",
    "baggage",
    "tracestate",
    "x-request-id",
];

/// Whether a field has a meaning of its own, so that nothing of a caller can be told in it.
pub(crate) fn has_meaning(field: &HeaderName) -> bool {
    TAKEN.contains(field) || TAKEN_PREFIXES.iter().any(|prefix| field.as_str().starts_with(prefix))
}

/// Whether clients say something of their own in a field, which is theirs to say wherever no filter writes it.
pub(crate) fn is_of_clients(field: &HeaderName) -> bool {
    OF_CLIENTS.iter().any(|name| field.as_str().starts_with(name))
}
