//! `Cache-Control` of requests and answers (RFC 9111 s5.2), and `CDN-Cache-Control` (RFC 9213).

use std::borrow::Cow;

use http::HeaderMap;
use http::header::{CACHE_CONTROL, HeaderName, PRAGMA};
use sfv::{BareItem, Dictionary, ListEntry, Parser};

use super::joined;

/// The largest number of seconds that is told apart; more is as much (RFC 9111 s1.2.2).
const MOST: u32 = 1 << 31;

static CDN_CACHE_CONTROL: HeaderName = HeaderName::from_static("cdn-cache-control");

/// What an answer allows and forbids caches.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ResponseDirectives {
    /// Not to be stored (s5.2.2.5).
    pub no_store: bool,
    /// To be validated each time (s5.2.2.4); also if only some fields are: then all is.
    pub no_cache: bool,
    /// For one user (s5.2.2.7); also if only some fields are: then all is.
    pub private: bool,
    /// To be stored even where it would not be (s5.2.2.9).
    pub public: bool,
    /// Never to be served stale (s5.2.2.2).
    pub must_revalidate: bool,
    /// As `must_revalidate`, for shared caches (s5.2.2.8).
    pub proxy_revalidate: bool,
    /// To be stored only by who understands its status, and then whatever `no_store` says (s5.2.2.3).
    pub must_understand: bool,
    /// Seconds for which it is fresh (s5.2.2.1).
    pub max_age: Option<u32>,
    /// The same for shared caches (s5.2.2.10).
    pub s_maxage: Option<u32>,
    /// Seconds for which it may be served stale while it is validated (RFC 5861 s3).
    pub stale_while_revalidate: Option<u32>,
    /// Seconds for which it may be served stale when validation fails (RFC 5861 s4).
    pub stale_if_error: Option<u32>,
    /// They were said to gateways (RFC 9213), so what `Cache-Control` and `Expires` say is for others.
    pub targeted: bool,
}

impl ResponseDirectives {
    /// What an answer says: to gateways if it speaks to them, else to all.
    #[must_use]
    pub fn of(fields: &HeaderMap) -> Self {
        if let Some(targeted) = targeted(fields) {
            return targeted;
        }
        let mut said = Self::default();
        let Some(text) = joined(fields, &CACHE_CONTROL) else { return said };
        for (name, argument) in directives(&text) {
            said.note(&name.to_ascii_lowercase(), argument.as_deref().map(seconds));
        }
        said
    }

    fn note(&mut self, name: &str, argument: Option<Option<u32>>) {
        // What is no number is as if it were over (s4.2.1); of two the shorter counts.
        let time = |known: Option<u32>| {
            let said = argument.flatten().unwrap_or(0);
            Some(known.map_or(said, |known| known.min(said)))
        };
        match name {
            "no-store" => self.no_store = true,
            "no-cache" => self.no_cache = true,
            "private" => self.private = true,
            "public" => self.public = true,
            "must-revalidate" => self.must_revalidate = true,
            "proxy-revalidate" => self.proxy_revalidate = true,
            "must-understand" => self.must_understand = true,
            "max-age" => self.max_age = time(self.max_age),
            "s-maxage" => self.s_maxage = time(self.s_maxage),
            "stale-while-revalidate" => self.stale_while_revalidate = time(self.stale_while_revalidate),
            "stale-if-error" => self.stale_if_error = time(self.stale_if_error),
            _ => {}
        }
    }

    /// Whether it may not be served stale, whatever happens (s4.2.4; s5.2.2.10 for `s-maxage`).
    #[must_use]
    pub fn forbids_stale(&self) -> bool {
        self.must_revalidate || self.proxy_revalidate || self.no_cache || self.s_maxage.is_some()
    }
}

/// What is said to gateways, if it is valid and says anything (RFC 9213 s2.1, s2.2).
fn targeted(fields: &HeaderMap) -> Option<ResponseDirectives> {
    let text = joined(fields, &CDN_CACHE_CONTROL)?;
    let dictionary: Dictionary = Parser::new(&text).parse().ok()?;
    let mut said = ResponseDirectives { targeted: true, ..ResponseDirectives::default() };
    for (name, entry) in &dictionary {
        let ListEntry::Item(item) = entry else { return None };
        let timed =
            ["max-age", "s-maxage", "stale-while-revalidate", "stale-if-error"].contains(&name.as_str());
        let argument = match (&item.bare_item, timed) {
            (BareItem::Boolean(true), false) => None,
            (BareItem::Boolean(false), false) => continue,
            (BareItem::Integer(number), true) => {
                Some(u32::try_from(i64::from(*number).min(i64::from(MOST))).ok())
            }
            (_, true) => return None,
            // `private="x"` and what nobody knows.
            (_, false) => None,
        };
        said.note(name.as_str(), argument);
    }
    (!dictionary.is_empty()).then_some(said)
}

/// What a request asks of caches (RFC 9111 s5.2.1).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct RequestDirectives {
    /// Nothing that was not validated (s5.2.1.4), which `Pragma` says too (s5.4).
    pub no_cache: bool,
    /// Nothing of it is to be stored (s5.2.1.5).
    pub no_store: bool,
    /// Nothing but what is stored (s5.2.1.7).
    pub only_if_cached: bool,
    /// Nothing older, in seconds (s5.2.1.1).
    pub max_age: Option<u32>,
    /// Nothing that is not fresh for as many seconds (s5.2.1.3).
    pub min_fresh: Option<u32>,
    /// Stale answers too, as many seconds after they ceased to be fresh (s5.2.1.2).
    pub max_stale: Option<u32>,
}

impl RequestDirectives {
    /// What a request asks.
    #[must_use]
    pub fn of(fields: &HeaderMap) -> Self {
        let mut asked = Self::default();
        let Some(text) = joined(fields, &CACHE_CONTROL) else {
            let pragma = joined(fields, &PRAGMA);
            asked.no_cache = pragma
                .is_some_and(|text| directives(&text).any(|(name, _)| name.eq_ignore_ascii_case("no-cache")));
            return asked;
        };
        for (name, argument) in directives(&text) {
            let number = argument.as_deref().map(seconds);
            match &*name.to_ascii_lowercase() {
                "no-cache" => asked.no_cache = true,
                "no-store" => asked.no_store = true,
                "only-if-cached" => asked.only_if_cached = true,
                "max-age" => asked.max_age = Some(number.flatten().unwrap_or(0)),
                "min-fresh" => asked.min_fresh = number.flatten(),
                "max-stale" => asked.max_stale = number.map_or(Some(MOST), |number| number),
                _ => {}
            }
        }
        asked
    }
}

/// The directives of a field: names as they stand, arguments without quotes. What makes no sense is skipped.
fn directives(text: &str) -> impl Iterator<Item = (&str, Option<Cow<'_, str>>)> {
    elements(text).filter_map(|element| {
        let (name, argument) = match element.split_once('=') {
            Some((name, argument)) => (name, Some(unquoted(argument))),
            None => (element, None),
        };
        let is_token = |byte: u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte);
        (!name.is_empty() && name.bytes().all(is_token)).then_some((name, argument))
    })
}

/// The elements of a list, split at commas that are not inside quotes.
fn elements(text: &str) -> impl Iterator<Item = &str> {
    let mut rest = Some(text);
    std::iter::from_fn(move || {
        let text = rest?;
        let (mut quoted, mut escaped) = (false, false);
        let end = text.bytes().position(|byte| {
            match byte {
                _ if std::mem::take(&mut escaped) => {}
                b'\\' if quoted => escaped = true,
                b'"' => quoted = !quoted,
                b',' => return !quoted,
                _ => {}
            }
            false
        });
        rest = end.map(|end| &text[end + 1..]);
        Some(end.map_or(text, |end| &text[..end]).trim_matches([' ', '\t']))
    })
    .filter(|element| !element.is_empty())
}

fn unquoted(argument: &str) -> Cow<'_, str> {
    let inner = argument.strip_prefix('"').and_then(|inner| inner.strip_suffix('"'));
    match inner {
        None => argument.into(),
        Some(inner) if !inner.contains('\\') => inner.into(),
        Some(inner) => {
            let mut escaped = false;
            let keep = |c: &char| {
                escaped = *c == '\\' && !escaped;
                !escaped
            };
            inner.chars().filter(keep).collect::<String>().into()
        }
    }
}

/// A number of seconds (s1.2.2).
pub(super) fn seconds(text: &str) -> Option<u32> {
    let is_number = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    is_number.then(|| text.parse::<u64>().map_or(MOST, |n| u32::try_from(n).unwrap_or(MOST).min(MOST)))
}
