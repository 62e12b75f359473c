//! What requests with unsafe methods take out of caches (RFC 9111 s4.4).

use std::borrow::Cow;
use std::iter;

use http::header::{CONTENT_LOCATION, LOCATION};
use http::uri::PathAndQuery;
use http::{HeaderMap, Method, StatusCode, Uri};
use pingora_http::RequestHeader;

use super::{Counted, url};
use crate::context::Context;
use crate::path::{NormalPath, PathRules, normalize};

/// Whether requests with this method change nothing (RFC 9110 s9.2.1), as far as a proxy can tell.
#[must_use]
pub fn is_safe(method: &Method) -> bool {
    method.is_safe() || method == Method::CONNECT
}

/// The URLs for which nothing is to be stored any more after the answer to an unsafe request: its own and, if they
/// have the same origin, those in `Location` and `Content-Location`; none after an error. Each as every of these
/// caches counts it, and also without a version that its path begins with, by `is_version`. `whole` is the path that
/// was asked for where a version was taken away from it.
#[must_use]
pub fn invalidated(
    request: &RequestHeader,
    (status, fields): (StatusCode, &HeaderMap),
    (ctx, whole): (&Context, Option<&str>),
    caches: &[Counted],
    is_version: impl Fn(&str) -> bool,
) -> Vec<Vec<u8>> {
    let fine = status.is_success() || status.is_redirection();
    let target = url(request, ctx, request.uri.query()).filter(|_| fine && !is_safe(&request.method));
    let Some(target) = target.and_then(|target| String::from_utf8(target).ok()) else { return Vec::new() };
    let (origin, path) = parted(&target);
    let query = path.split_once('?').map(|(_, query)| query);
    let whole = whole.map(|whole| Cow::Owned(with_query(whole.to_owned(), query)));
    let named = [LOCATION, CONTENT_LOCATION].into_iter().filter_map(|name| {
        let reference = fields.get(name)?.to_str().ok()?;
        resolve(&target, reference).map(Cow::Owned)
    });
    let mut urls = Vec::new();
    for path in iter::once(Cow::Borrowed(path)).chain(whole).chain(named) {
        add((origin, &*path), caches, &is_version, &mut urls);
    }
    once_each(urls)
}

/// What a URL may be stored as: its path in normal form, as it stands and as each of these caches counts it, and also
/// without a version that it begins with, by `is_version`.
#[must_use]
pub fn stored_as(
    url: &str,
    rules: &PathRules,
    caches: &[Counted],
    is_version: impl Fn(&str) -> bool,
) -> Vec<Vec<u8>> {
    let (origin, target) = parted(url);
    let (path, query) = queried(target);
    let normal = normalize(path, rules);
    let path = normal.as_ref().map_or(path, NormalPath::wire);
    let target = with_query(path.to_owned(), query);
    let (mut urls, whole) = (Vec::new(), [Counted::default()]);
    for caches in [&whole[..], caches] {
        add((origin, &*target), caches, &is_version, &mut urls);
    }
    once_each(urls)
}

/// Adds a path as each of these caches counts it, and also without a version that it begins with.
fn add(
    (origin, path): (&str, &str),
    caches: &[Counted],
    is_version: &impl Fn(&str) -> bool,
    urls: &mut Vec<Vec<u8>>,
) {
    for path in iter::once(path).chain(without_version(path, is_version)) {
        let (path, query) = queried(path);
        for cache in caches {
            let counted = with_query([origin, path].concat(), cache.of(query).as_deref());
            urls.push(counted.into_bytes());
        }
    }
}

fn once_each(mut urls: Vec<Vec<u8>>) -> Vec<Vec<u8>> {
    urls.sort_unstable();
    urls.dedup();
    urls
}

/// A path, and the query behind it.
fn queried(path: &str) -> (&str, Option<&str>) {
    path.split_once('?').map_or((path, None), |(path, query)| (path, Some(query)))
}

fn with_query(mut path: String, query: Option<&str>) -> String {
    if let Some(query) = query {
        path.push('?');
        path.push_str(query);
    }
    path
}

/// Scheme and authority, and what follows.
fn parted(url: &str) -> (&str, &str) {
    let authority = url.find(':').map_or(0, |colon| colon + "://".len());
    let end = url[authority..].find(['/', '?']).map_or(url.len(), |at| authority + at);
    url.split_at(end)
}

/// A path without the segment that it begins with, if that is a version.
fn without_version<'a>(path: &'a str, is_version: &impl Fn(&str) -> bool) -> Option<&'a str> {
    let rest = path.strip_prefix('/')?;
    let end = rest.find(['/', '?']).unwrap_or(rest.len());
    let (segment, rest) = rest.split_at(end);
    (is_version(segment) && rest.starts_with('/')).then_some(rest)
}

/// The path and query that a reference in an answer names, as requests for it have them, if it is of the same origin
/// as the URL (RFC 3986 s5.2).
fn resolve(base: &str, reference: &str) -> Option<String> {
    let reference = reference.trim().split('#').next()?;
    let (origin, path) = parted(base);
    let uri: Uri = reference.parse().ok().filter(|_| reference.contains("://")).unwrap_or_default();
    let path = path.split('?').next().unwrap_or_default();
    let target: Cow<'_, str> = if let Some(other) = uri.authority() {
        let (scheme, authority) = origin.split_once("://")?;
        let own_port = if scheme == "https" { ":443" } else { ":80" };
        let other = other.as_str().to_ascii_lowercase();
        let same =
            uri.scheme_str() == Some(scheme) && other.strip_suffix(own_port).unwrap_or(&other) == authority;
        if !same {
            return None;
        }
        uri.path_and_query().map_or("/", PathAndQuery::as_str).to_owned().into()
    } else if reference.starts_with("//") || reference.split(['/', '?']).next()?.contains(':') {
        return None;
    } else if reference.starts_with('/') {
        reference.into()
    } else if reference.is_empty() || reference.starts_with('?') {
        format!("{path}{reference}").into()
    } else {
        let folder = path.rfind('/').map_or("/", |slash| &path[..=slash]);
        format!("{folder}{reference}").into()
    };
    let (path, query) = queried(&target);
    // As paths of requests are, by the rules that hold where nothing else is written.
    let path = normalize(path, &Default::default()).ok()?;
    Some(with_query(path.wire().to_owned(), query))
}

#[cfg(test)]
mod tests {
    use http::HeaderName;

    use super::*;
    use crate::context::Scheme;

    fn urls(method: &str, status: u16, fields: &[(&'static str, &str)], caches: &[Counted]) -> Vec<String> {
        let mut request = RequestHeader::build(method, b"/x?y&u=1", None).unwrap();
        request.insert_header("host", "A.test:443").unwrap();
        let path = normalize("/x", &Default::default()).unwrap();
        let mut ctx = Context::for_tests(path, std::time::Instant::now());
        (ctx.scheme, ctx.host) = (Scheme::Https, Some("a.test".into()));
        let status = StatusCode::from_u16(status).unwrap();
        let fields =
            fields.iter().map(|(name, value)| (HeaderName::from_static(name), value.parse().unwrap()));
        let fields: HeaderMap = fields.collect();
        let is_version = |segment: &str| segment == "v1";
        let urls = invalidated(&request, (status, &fields), (&ctx, None), caches, is_version);
        urls.into_iter().map(|url| String::from_utf8(url).unwrap()).collect()
    }

    fn plain() -> [Counted; 1] {
        [Counted::default()]
    }

    #[test]
    fn what_is_no_error_after_an_unsafe_method_is_as_rfc_9111_s4_4_says() {
        for method in ["POST", "PUT", "DELETE", "PATCH", "M-SEARCH"] {
            assert_eq!(urls(method, 200, &[], &plain()), ["https://a.test/x?y&u=1"], "{method}");
            assert_eq!(urls(method, 303, &[], &plain()).len(), 1, "{method}");
            for status in [100, 404, 500] {
                assert_eq!(urls(method, status, &[], &plain()).len(), 0, "{method} {status}");
            }
        }
        for method in ["GET", "HEAD", "OPTIONS", "TRACE"] {
            assert_eq!(urls(method, 200, &[], &plain()).len(), 0, "{method}");
        }
    }

    #[test]
    fn each_cache_counts_its_own_parameters() {
        let except = Counted { except: vec!["u".to_owned()], ..Counted::default() };
        let caches = [Counted::default(), except];
        assert_eq!(urls("POST", 200, &[], &caches), ["https://a.test/x?y", "https://a.test/x?y&u=1"]);
    }

    #[test]
    fn a_url_is_found_however_its_path_is_written_and_its_query_counted() {
        let except = Counted { except: vec!["u".to_owned()], sort: true, ..Counted::default() };
        let as_stored = |url, caches: &[Counted]| -> Vec<String> {
            let urls = stored_as(url, &PathRules::default(), caches, |segment| segment == "v1");
            urls.into_iter().map(|url| String::from_utf8(url).unwrap()).collect()
        };
        assert_eq!(as_stored("https://a.test/x", &[]), ["https://a.test/x"]);
        assert_eq!(
            as_stored("https://a.test/b/../%78?z=1&u=2&y=3", std::slice::from_ref(&except)),
            ["https://a.test/x?y=3&z=1", "https://a.test/x?z=1&u=2&y=3"]
        );
        assert_eq!(
            as_stored("https://a.test/v1/x?u=2", &[except]),
            ["https://a.test/v1/x", "https://a.test/v1/x?u=2", "https://a.test/x", "https://a.test/x?u=2"]
        );
        assert_eq!(as_stored("https://a.test/%zz", &plain()), ["https://a.test/%zz"], "no path of a request");
    }

    #[test]
    fn versions_are_taken_away_from_what_answers_name() {
        let named = [("location", "/v1/x/7"), ("content-location", "/v1")];
        assert_eq!(
            urls("POST", 201, &named, &plain()),
            ["https://a.test/v1", "https://a.test/v1/x/7", "https://a.test/x/7", "https://a.test/x?y&u=1"]
        );
    }

    #[test]
    fn references_are_resolved_within_their_origin() {
        let from = |reference| resolve("http://a.test/x/y?z", reference);
        for (reference, path) in [
            ("/b?c", "/b?c"),
            ("b", "/x/b"),
            ("", "/x/y"),
            ("?q", "/x/y?q"),
            ("../b", "/b"),
            ("./b/../c", "/x/c"),
            ("//c//d".trim_start_matches('/'), "/x/c/d"),
            ("http://A.test:80/b#f", "/b"),
            ("http://a.test", "/"),
        ] {
            assert_eq!(from(reference).as_deref(), Some(path), "{reference}");
        }
        for other in
            ["http://b.test/b", "https://a.test/b", "//b.test/b", "http://a.test:81/b", "mailto:a@b", "/%zz"]
        {
            assert_eq!(from(other), None, "{other}");
        }
    }
}
