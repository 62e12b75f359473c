//! Whether an answer may be stored, and what is to be known of it (RFC 9111 s3, s4.2.1, s4.2.3).

use http::header::{
    AGE, AUTHORIZATION, DATE, ETAG, EXPIRES, HeaderName, HeaderValue, LAST_MODIFIED, SET_COOKIE,
};
use http::{HeaderMap, Method, StatusCode};

use super::directives::seconds;
use super::{Facts, RequestDirectives, ResponseDirectives, Vary, http_date};

/// The longest that a heuristic takes an answer for fresh: a day (s4.2.2).
const LONGEST_GUESS: u64 = 86_400;

/// What the operator wants beside what origins say. None of the times for what is stale is for errors (5xx).
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Rules {
    /// Freshness of answers with this status whose origin says none, in seconds; of all other answers that may be
    /// stored without it saying so, by default.
    pub ttl: Option<u32>,
    /// It counts instead of what the origin says.
    pub overrides: bool,
    /// Freshness by status, before `ttl`; first match counts.
    pub statuses: Vec<(crate::values::StatusRange, u32)>,
    /// The part of an answer's age that it is taken for fresh, where nobody says (s4.2.2).
    pub heuristic: Option<f64>,
    /// For origins that do not say (RFC 5861), in seconds.
    pub while_revalidate: u32,
    /// For origins that do not say (RFC 5861), in seconds.
    pub if_error: u32,
    /// How long what is stale is served while the origin cannot be reached, in seconds; what nobody called fresh is not.
    pub if_unreachable: u32,
    /// Answers that set cookies are stored like others (s7.3).
    pub set_cookie: bool,
    /// Answers to requests with credentials are stored like others: the credentials are a part of the key.
    pub credentials: bool,
}

/// When the request was sent and its answer came, in milliseconds since 1970.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Times {
    /// `request_time`.
    pub sent: u64,
    /// `response_time`.
    pub received: u64,
}

/// Why an answer is not stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NotStored {
    /// Only answers to GET are.
    Method,
    /// The request forbids it.
    RequestNoStore,
    /// The answer forbids it.
    NoStore,
    /// It is for one user.
    Private,
    /// It answers credentials and does not say that it is for all.
    Authorization,
    /// It sets a cookie.
    SetCookie,
    /// It varies by more than can be known of a request.
    VaryAny,
    /// It varies by too many fields.
    VaryMany,
    /// It is a part, or no answer of its own.
    Status,
    /// Its status is about who asks, and never stored (RFC 6585).
    Asker,
    /// It is an error, and what is stored may still be served when the origin is gone.
    Error,
    /// Its status is not known, and it must be.
    NotUnderstood,
    /// It is never fresh, and cannot be validated.
    NotFresh,
    /// It is larger than may be.
    TooLarge,
    /// Nothing but the end of the connection says where it ends, so it may have been cut; or it is a stream of events.
    Endless,
    /// It varies by a field that the gateway writes itself, or the client has it drop.
    VaryRewritten,
    /// Too much is on its way in already.
    Memory,
    /// It is of another upstream, in the place of the one that is left alone.
    Diverted,
}

impl NotStored {
    /// In a word, for metrics and `Cache-Status`.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Method => "method",
            Self::RequestNoStore => "request-no-store",
            Self::NoStore => "no-store",
            Self::Private => "private",
            Self::Authorization => "authorization",
            Self::SetCookie => "set-cookie",
            Self::VaryAny => "vary-any",
            Self::VaryMany => "vary-many",
            Self::Status => "status",
            Self::Asker => "asker-status",
            Self::Error => "error",
            Self::NotUnderstood => "not-understood",
            Self::NotFresh => "not-fresh",
            Self::TooLarge => "too-large",
            Self::Endless => "endless",
            Self::VaryRewritten => "vary-rewritten",
            Self::Memory => "memory",
            Self::Diverted => "diverted",
        }
    }

    /// Whether the next answer will be no different, so that nobody need wait for it.
    #[must_use]
    pub const fn will_last(self) -> bool {
        !matches!(
            self,
            Self::Method | Self::RequestNoStore | Self::Memory | Self::Diverted | Self::Asker | Self::Error
        )
    }

    /// Whether it says nothing of what others would be answered.
    #[must_use]
    pub const fn is_of_request(self) -> bool {
        !self.will_last() || matches!(self, Self::Authorization | Self::VaryRewritten)
    }
}

/// What is to be known of an answer to be stored; else why it is not.
pub fn facts(
    rules: &Rules,
    (method, request): (&Method, &HeaderMap),
    (status, response): (StatusCode, &HeaderMap),
    times: Times,
) -> Result<Facts, NotStored> {
    let said = ResponseDirectives::of(response);
    refuse(rules, (method, request), (status, response), &said)?;
    let age = age(response, times);
    let lifetime = lifetime(rules, &said, status, response, times);
    // By no rule an error outlives its time: the origin may be well again.
    let ruled = |rule: u32| if status.is_server_error() { 0 } else { rule };
    let seconds = |said: Option<u32>, rule: u32| said.unwrap_or(ruled(rule));
    let facts = Facts {
        received: times.received,
        initial_age: age,
        lifetime: lifetime.unwrap_or(0),
        while_revalidate: seconds(said.stale_while_revalidate, rules.while_revalidate),
        if_error: seconds(said.stale_if_error, rules.if_error),
        // What is kept to be validated each time was never to be used without (s4.2.4).
        if_unreachable: lifetime.map_or(0, |_| ruled(rules.if_unreachable)),
        no_cache: said.no_cache,
        no_stale: said.forbids_stale(),
    };
    let validated = response.contains_key(ETAG) || response.contains_key(LAST_MODIFIED);
    let fresh = facts.left(times.received).is_ok() && !facts.no_cache;
    let of_use = fresh || (validated && (lifetime.is_some() || by_default(status) || said.public));
    if of_use { Ok(facts) } else { Err(NotStored::NotFresh) }
}

fn refuse(
    rules: &Rules,
    (method, request): (&Method, &HeaderMap),
    (status, response): (StatusCode, &HeaderMap),
    said: &ResponseDirectives,
) -> Result<(), NotStored> {
    if *method != Method::GET {
        return Err(NotStored::Method);
    }
    if RequestDirectives::of(request).no_store {
        return Err(NotStored::RequestNoStore);
    }
    if is_of_asker(status) {
        return Err(NotStored::Asker);
    }
    if !may_be_stored(status) {
        return Err(NotStored::Status);
    }
    if said.must_understand && !may_be_understood(status) {
        return Err(NotStored::NotUnderstood);
    }
    if said.no_store && !said.must_understand {
        return Err(NotStored::NoStore);
    }
    if said.private {
        return Err(NotStored::Private);
    }
    // s3.5.
    let for_all = said.public || said.must_revalidate || said.s_maxage.is_some();
    if request.contains_key(AUTHORIZATION) && !for_all && !rules.credentials {
        return Err(NotStored::Authorization);
    }
    let cookie = |name: &HeaderName| *name == SET_COOKIE || name == "set-cookie2";
    if !rules.set_cookie && response.keys().any(cookie) {
        return Err(NotStored::SetCookie);
    }
    match Vary::of(response) {
        Vary::Any => Err(NotStored::VaryAny),
        Vary::TooMany => Err(NotStored::VaryMany),
        Vary::By(_) => Ok(()),
    }
}

/// Whether answers with this status are ever stored.
#[must_use]
pub fn may_be_stored(status: StatusCode) -> bool {
    // A part is stored by nobody here (s3.3), and a 304 is not an answer of its own.
    let partial = matches!(status, StatusCode::PARTIAL_CONTENT | StatusCode::NOT_MODIFIED);
    !status.is_informational() && !partial && !is_of_asker(status)
}

/// Whether no cache may store it: it is about how who asks does so (RFC 6585 s3 to s6).
fn is_of_asker(status: StatusCode) -> bool {
    matches!(status.as_u16(), 428 | 429 | 431 | 511)
}

/// Whether what this status asks of caches is known (RFC 9110 s15).
#[must_use]
pub fn may_be_understood(status: StatusCode) -> bool {
    matches!(
        status.as_u16(),
        200..=205 | 207 | 208 | 226 | 300..=303 | 305 | 307 | 308 | 400..=417 | 421..=426 | 451 | 500..=508 | 510
    )
}

/// Whether answers with this status are stored though nothing says so (RFC 9110 s15.1).
fn by_default(status: StatusCode) -> bool {
    matches!(status.as_u16(), 200 | 203 | 204 | 300 | 301 | 308 | 404 | 405 | 410 | 414 | 501)
}

/// `corrected_initial_age` (s4.2.3), in seconds.
fn age(response: &HeaderMap, times: Times) -> u32 {
    // s5.1: of several values the first counts; what is no number is ignored. A parameter makes it no younger.
    let said = response.get(AGE).and_then(|value| value.to_str().ok());
    let said = said.and_then(|text| seconds(text.split([',', ';']).next()?.trim())).unwrap_or(0);
    let delay = times.received.saturating_sub(times.sent) / 1000;
    let corrected = u64::from(said) + delay;
    let apparent = one_date(response, &DATE).map_or(0, |date| (times.received / 1000).saturating_sub(date));
    u32::try_from(corrected.max(apparent)).unwrap_or(u32::MAX)
}

/// A date field that stands once and is one.
fn one_date(fields: &HeaderMap, name: &HeaderName) -> Option<u64> {
    let mut lines = fields.get_all(name).iter();
    let line = lines.next().filter(|_| lines.next().is_none())?;
    http_date(line.as_bytes())
}

/// For how many seconds an answer is fresh, from when it was made (s4.2.1); none if nobody says.
fn lifetime(
    rules: &Rules,
    said: &ResponseDirectives,
    status: StatusCode,
    response: &HeaderMap,
    times: Times,
) -> Option<u32> {
    let ruled = rules.statuses.iter().find(|(range, _)| range.contains(status.as_u16()));
    let ruled = ruled.map(|(_, ttl)| *ttl).or(rules.ttl.filter(|_| good(status)));
    if rules.overrides && ruled.is_some() {
        // From now on, however old it is.
        return ruled.map(|ttl| ttl.saturating_add(age(response, times)));
    }
    let explicit = said.s_maxage.or(said.max_age);
    let explicit = explicit.or_else(|| if said.targeted { None } else { expires(response, times) });
    let ruled = || ruled.map(|ttl| ttl.saturating_add(age(response, times)));
    explicit.or_else(ruled).or_else(|| guess(rules, said, status, response, times))
}

/// Statuses that `ttl` is for.
fn good(status: StatusCode) -> bool {
    matches!(status.as_u16(), 200 | 203 | 204 | 300 | 301 | 308)
}

/// `Expires` after `Date` (s5.3); what is no date is long ago.
fn expires(response: &HeaderMap, times: Times) -> Option<u32> {
    if !response.contains_key(EXPIRES) {
        return None;
    }
    let made = one_date(response, &DATE).unwrap_or(times.received / 1000);
    let until = one_date(response, &EXPIRES).map_or(0, |until| until.saturating_sub(made));
    Some(u32::try_from(until).unwrap_or(u32::MAX))
}

/// A part of how long it had not changed (s4.2.2).
fn guess(
    rules: &Rules,
    said: &ResponseDirectives,
    status: StatusCode,
    response: &HeaderMap,
    times: Times,
) -> Option<u32> {
    let part = rules.heuristic.filter(|_| by_default(status) || said.public)?;
    let changed = response.get(LAST_MODIFIED).map(HeaderValue::as_bytes).and_then(http_date)?;
    let made = one_date(response, &DATE).unwrap_or(times.received / 1000);
    let unchanged = made.saturating_sub(changed);
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, clippy::cast_precision_loss)]
    let guessed = (unchanged as f64 * part) as u64;
    u32::try_from(guessed.min(LONGEST_GUESS)).ok()
}
