//! What HTTP says of caching, without a cache: whether an answer may be stored, how long it is fresh, which
//! requests it answers, and how (RFC 9111, RFC 5861, RFC 9211, RFC 9213).
//!
//! Nothing here knows the time or keeps anything: all is decided from what is given.

mod answer;
mod ask;
mod date;
mod directives;
mod freshness;
mod invalidation;
mod query;
mod range;
mod status;
mod storable;
#[cfg(test)]
mod tests;
mod vary;

pub use answer::{Asks, Selected, select};
pub use ask::{Ask, Plan, url};
pub use date::http_date;
pub use directives::{RequestDirectives, ResponseDirectives};
pub use freshness::{Facts, Judgement, Serve, Standing, Why, judge, serves_on_error};
pub use invalidation::{invalidated, is_safe, stored_as};
pub use query::Counted;
pub use range::{Ranged, ranged};
pub use status::{CacheStatus, Forwarded};
pub use storable::{NotStored, Rules, Times, facts, may_be_stored, may_be_understood};
pub use vary::{MAX_NAMES, Vary, matches, names, variant};

use http::HeaderMap;
use http::header::{HeaderName, HeaderValue};

/// The lines of a list field as one text; none if there is no such field or it is not text.
pub(crate) fn joined(fields: &HeaderMap, name: &HeaderName) -> Option<String> {
    let mut lines = fields.get_all(name).iter().map(HeaderValue::as_bytes).peekable();
    lines.peek()?;
    let mut text = String::new();
    for (nth, line) in lines.enumerate() {
        if nth > 0 {
            text.push_str(", ");
        }
        text.push_str(&String::from_utf8_lossy(line));
    }
    Some(text)
}
