//! The registry of error answers (RFC 9457): one stable code for each way a request can fail.

use std::borrow::Cow;

use http::{HeaderName, HeaderValue};

/// One registered way to fail: its code, title and status never change once published.
#[derive(Debug, PartialEq, Eq)]
pub struct Kind {
    /// Stable name; the last part of the problem's `type` and the `error` field of the access log.
    pub code: &'static str,
    /// Human-readable summary, the same for every occurrence (RFC 9457 s3.1.3).
    pub title: &'static str,
    /// HTTP status of the answer.
    pub status: u16,
    /// Whether the answer carries `Retry-After` even when no better estimate is known.
    pub retry_after: bool,
}

macro_rules! registry {
    ($($(#[$doc:meta])* $name:ident = $status:literal $code:literal $title:literal $(, $retry:ident)?;)*) => {
        $($(#[$doc])* pub const $name: Kind = Kind {
            code: $code, title: $title, status: $status, retry_after: registry!(@retry $($retry)?),
        };)*
        /// Every registered problem, in order of status.
        pub const ALL: &[&Kind] = &[$(&$name),*];
    };
    (@retry retry) => { true };
    (@retry) => { false };
}

registry! {
    /// The request is not well-formed HTTP, or contradicts itself.
    BAD_REQUEST = 400 "bad-request" "Bad request";
    /// The path has an invalid or ambiguous encoding.
    INVALID_PATH = 400 "invalid-path" "Invalid path";
    /// Who calls is not known; `WWW-Authenticate` says how to prove it.
    UNAUTHORIZED = 401 "unauthorized" "Unauthorized";
    /// The caller is known but may not do this.
    FORBIDDEN = 403 "forbidden" "Forbidden";
    /// No route matches.
    NO_ROUTE = 404 "no-route" "No route";
    /// A route matches all but the method; the answer lists the others in `Allow`.
    METHOD_NOT_ALLOWED = 405 "method-not-allowed" "Method not allowed";
    /// No version of the API is acceptable; `versions` lists those that exist.
    NO_SUCH_VERSION = 406 "no-such-version" "No such version";
    /// The request body came too slowly.
    REQUEST_TIMEOUT = 408 "request-timeout" "Request timeout";
    /// The version of the API has ended (RFC 8594); another one is there.
    VERSION_GONE = 410 "version-gone" "Version is gone";
    /// The version of the API is refused for a while, since it ends soon.
    VERSION_BROWNOUT = 410 "version-brownout" "Version ends soon", retry;
    /// The request body is larger than allowed here.
    BODY_TOO_LARGE = 413 "body-too-large" "Body too large";
    /// The request target is longer than allowed.
    URI_TOO_LONG = 414 "uri-too-long" "URI too long";
    /// The request body has a coding that is not decoded here; `Accept-Encoding` names those that are.
    UNSUPPORTED_CODING = 415 "unsupported-coding" "Unsupported content coding";
    /// What is stored has no such part; `Content-Range` tells its length.
    RANGE_NOT_SATISFIABLE = 416 "range-not-satisfiable" "Range not satisfiable";
    /// The request came over a connection that is for another host.
    MISDIRECTED = 421 "misdirected-request" "Misdirected request";
    /// A limit on how often requests may come is used up (RFC 6585 s4).
    RATE_LIMITED = 429 "rate-limited" "Too many requests", retry;
    /// A quota of a day, a month or another long time is used up.
    QUOTA_EXCEEDED = 429 "quota-exceeded" "Quota exceeded", retry;
    /// The caller has as many requests under way as it may.
    TOO_MANY_IN_FLIGHT = 429 "too-many-in-flight" "Too many requests at once", retry;
    /// The header section is larger than allowed.
    HEADERS_TOO_LARGE = 431 "headers-too-large" "Header fields too large";
    /// The client went away first; seen in logs only.
    CLIENT_CLOSED = 499 "client-closed" "Client closed the request";
    /// A fault of the gateway itself.
    INTERNAL = 500 "internal" "Internal error";
    /// No connection to the upstream could be made.
    UPSTREAM_UNREACHABLE = 502 "upstream-unreachable" "Upstream unreachable";
    /// The upstream broke the protocol or the connection.
    UPSTREAM_PROTOCOL = 502 "upstream-protocol" "Upstream broke the connection";
    /// A filter could not do its work because something it depends on is down.
    FILTER_UNAVAILABLE = 503 "filter-unavailable" "Filter unavailable", retry;
    /// The upstream has no backend that can be used.
    NO_BACKEND = 503 "no-backend" "No backend available", retry;
    /// The upstream failed too often, and is left alone for a while.
    CIRCUIT_OPEN = 503 "circuit-open" "Circuit breaker open", retry;
    /// The upstream, or the route, has as many requests under way as it may.
    UPSTREAM_BUSY = 503 "upstream-busy" "Upstream busy", retry;
    /// The gateway is out of a bounded resource.
    OVERLOADED = 503 "overloaded" "Overloaded", retry;
    /// The client wants nothing but what is stored, and that would not do (RFC 9111 s5.2.1.7).
    NOT_CACHED = 504 "not-cached" "Not cached";
    /// The upstream took too long; `detail` names the timeout.
    UPSTREAM_TIMEOUT = 504 "upstream-timeout" "Upstream timeout";
    /// The request is of a version of HTTP that the gateway does not speak.
    HTTP_VERSION = 505 "http-version" "HTTP version not supported";
    /// The request came back to this gateway.
    LOOP = 508 "loop" "Loop detected";
}

impl Kind {
    /// The problem's `type`: a URN, so that nobody expects a page behind it.
    #[must_use]
    pub fn urn(&self) -> String {
        format!("urn:tollhouse:problem:{}", self.code)
    }
}

/// One error answer: a registered kind and what is particular to this occurrence.
#[derive(Debug, Clone)]
pub struct Problem {
    /// Which registered problem this is.
    pub kind: &'static Kind,
    /// What is particular to this occurrence; never internals, never secrets.
    pub detail: Option<Cow<'static, str>>,
    /// Why, for the log alone.
    pub reason: Option<Cow<'static, str>>,
    /// Further fields of the answer, such as `Allow` or `WWW-Authenticate`.
    pub headers: Vec<(HeaderName, HeaderValue)>,
    /// Further members of the document (RFC 9457 s3.2), such as what there is instead.
    pub members: Option<Box<serde_json::Map<String, serde_json::Value>>>,
    /// Seconds for `Retry-After` (RFC 9110 s10.2.3), at least 1.
    pub retry_after: Option<u64>,
    /// What gRPC clients are told, where that is more exact than what their mapping makes of the status.
    pub grpc_status: Option<u8>,
}

impl Problem {
    /// A problem of this kind with nothing particular to say.
    #[must_use]
    pub fn new(kind: &'static Kind) -> Self {
        let retry_after = kind.retry_after.then_some(1);
        Self {
            kind,
            detail: None,
            reason: None,
            headers: Vec::new(),
            members: None,
            retry_after,
            grpc_status: None,
        }
    }

    /// Adds what is particular to this occurrence.
    #[must_use]
    pub fn detail(mut self, detail: impl Into<Cow<'static, str>>) -> Self {
        self.detail = Some(detail.into());
        self
    }

    /// Adds why, for the log alone.
    #[must_use]
    pub fn reason(mut self, reason: impl Into<Cow<'static, str>>) -> Self {
        self.reason = Some(reason.into());
        self
    }

    /// Adds a field to the answer's head.
    #[must_use]
    pub fn header(mut self, name: HeaderName, value: HeaderValue) -> Self {
        self.headers.push((name, value));
        self
    }

    /// Adds a member to the document.
    #[must_use]
    pub fn member(mut self, name: &'static str, value: impl Into<serde_json::Value>) -> Self {
        self.members.get_or_insert_default().insert(name.to_owned(), value.into());
        self
    }

    /// Says more exactly than the HTTP status does what it is for gRPC.
    #[must_use]
    pub fn with_grpc_status(mut self, status: u8) -> Self {
        self.grpc_status = Some(status);
        self
    }

    /// Says when to come back, in seconds.
    #[must_use]
    pub fn come_back_after(mut self, seconds: u64) -> Self {
        self.retry_after = Some(seconds.max(1));
        self
    }

    /// HTTP status of the answer.
    #[must_use]
    pub fn status(&self) -> u16 {
        self.kind.status
    }
}

/// The grpc-status that gRPC clients give an HTTP status
/// (gRPC's "HTTP to gRPC Status Code Mapping").
#[must_use]
pub fn grpc_status(http: u16) -> u8 {
    match http {
        400 | 431 => 13,
        401 => 16,
        403 => 7,
        404 => 12,
        429 | 502..=504 => 14,
        _ => 2,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_code_is_registered_once() {
        let mut codes: Vec<_> = ALL.iter().map(|kind| kind.code).collect();
        codes.sort_unstable();
        codes.dedup();
        assert_eq!(codes.len(), ALL.len());
    }

    #[test]
    fn grpc_statuses_follow_the_mapping_published_by_grpc() {
        let table =
            [(400, 13), (401, 16), (403, 7), (404, 12), (429, 14), (502, 14), (503, 14), (504, 14), (500, 2)];
        for (http, grpc) in table {
            assert_eq!(grpc_status(http), grpc, "{http}");
        }
    }
}
