//! Names and values of query strings and cookies.

use std::borrow::Cow;

use http::header::{COOKIE, HeaderMap};

use crate::path::decode_segment;

/// The values of a query parameter, decoded once (`+` is a space).
pub fn query_values<'a>(query: &'a str, name: &'a str) -> impl Iterator<Item = Cow<'a, str>> {
    raw_pairs(query).filter(move |(key, _)| decode_query(key) == name).map(|(_, value)| decode_query(value))
}

/// Names and values of all query parameters, decoded once.
pub fn query_pairs(query: &str) -> impl Iterator<Item = (Cow<'_, str>, Cow<'_, str>)> {
    raw_pairs(query).map(|(key, value)| (decode_query(key), decode_query(value)))
}

pub(crate) fn raw_pairs(query: &str) -> impl Iterator<Item = (&str, &str)> {
    let pairs = query.split('&').filter(|pair| !pair.is_empty());
    pairs.map(|pair| pair.split_once('=').unwrap_or((pair, "")))
}

pub(crate) fn decode_query(text: &str) -> Cow<'_, str> {
    if text.contains('+') {
        decode_segment(&text.replace('+', " ")).into_owned().into()
    } else {
        decode_segment(text)
    }
}

/// The values of a cookie, over all `Cookie` lines (RFC 6265 section 5.4).
pub fn cookie_values<'a>(headers: &'a HeaderMap, name: &'a str) -> impl Iterator<Item = Cow<'a, str>> {
    let named = raw_cookies(headers).filter(move |(key, _)| *key == name.as_bytes());
    named.map(|(_, value)| String::from_utf8_lossy(value))
}

/// Names and values of all cookies, as [`cookie_values`].
pub fn cookie_pairs(headers: &HeaderMap) -> impl Iterator<Item = (Cow<'_, str>, Cow<'_, str>)> {
    raw_cookies(headers).map(|(key, value)| (String::from_utf8_lossy(key), String::from_utf8_lossy(value)))
}

/// As bytes: one value outside ASCII must not hide the others of its line.
pub(crate) fn raw_cookies(headers: &HeaderMap) -> impl Iterator<Item = (&[u8], &[u8])> {
    let pairs = headers.get_all(COOKIE).iter().flat_map(|line| line.as_bytes().split(|byte| *byte == b';'));
    pairs.filter_map(|pair| {
        let at = pair.iter().position(|byte| *byte == b'=')?;
        let (key, value) = (pair[..at].trim_ascii(), pair[at + 1..].trim_ascii());
        let bare = value.strip_prefix(b"\"").and_then(|value| value.strip_suffix(b"\""));
        Some((key, bare.unwrap_or(value)))
    })
}
