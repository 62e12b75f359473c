//! `Cache-Status`: what a cache did with a request (RFC 9211).

use std::borrow::Cow;
use std::fmt;

/// What the cache did.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct CacheStatus {
    /// It answered from what it had.
    pub hit: bool,
    /// Why the request went on (s2.2).
    pub forwarded: Option<Forwarded>,
    /// The status that came back, if another than is sent (s2.3).
    pub forwarded_status: Option<u16>,
    /// For how many seconds more the answer is fresh (s2.4).
    pub ttl: Option<i64>,
    /// The answer was stored (s2.5).
    pub stored: bool,
    /// The request waited for another's answer (s2.6).
    pub collapsed: bool,
    /// More, in a word (s2.8).
    pub detail: Option<Cow<'static, str>>,
}

/// Why a request went on (RFC 9211 s2.2).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Forwarded {
    /// The cache is not for it.
    Bypass,
    /// Nor for its method.
    Method,
    /// There was nothing under its URL.
    UriMiss,
    /// Only answers to other requests.
    VaryMiss,
    /// What there was had to be validated for the request's sake.
    Request,
    /// What there was is stale.
    Stale,
    /// It wants a part of what is not there.
    Partial,
}

impl Forwarded {
    /// As it is written, and in metrics.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Bypass => "bypass",
            Self::Method => "method",
            Self::UriMiss => "uri-miss",
            Self::VaryMiss => "vary-miss",
            Self::Request => "request",
            Self::Stale => "stale",
            Self::Partial => "partial",
        }
    }
}

impl CacheStatus {
    /// What the cache did, without its name.
    pub fn parameters(&self) -> impl fmt::Display {
        fmt::from_fn(|f| {
            let whole = self.to_string();
            f.write_str(whole.split_once("; ").map_or("", |(_, parameters)| parameters))
        })
    }
}

impl fmt::Display for CacheStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("tollhouse")?;
        if self.hit {
            f.write_str("; hit")?;
        }
        if let Some(why) = self.forwarded {
            write!(f, "; fwd={}", why.name())?;
        }
        if let Some(status) = self.forwarded_status {
            write!(f, "; fwd-status={status}")?;
        }
        if let Some(ttl) = self.ttl {
            write!(f, "; ttl={ttl}")?;
        }
        for (is, name) in [(self.stored, "; stored"), (self.collapsed, "; collapsed")] {
            f.write_str(if is { name } else { "" })?;
        }
        self.detail.as_deref().map_or(Ok(()), |detail| write!(f, "; detail={detail}"))
    }
}
