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

/// Whether a field has a meaning of its own, so that nothing of a caller can be told in it.
pub(super) fn has_meaning(field: &HeaderName) -> bool {
    TAKEN.contains(field) || TAKEN_PREFIXES.iter().any(|prefix| field.as_str().starts_with(prefix))
}
