//! Where a credential is carried: `header:NAME`, `query:NAME` or `cookie:NAME`.

use std::borrow::Cow;
use std::fmt;

use http::header::{AUTHORIZATION, COOKIE, HeaderName, HeaderValue};
use http::uri::{PathAndQuery, Uri};
use pingora_http::RequestHeader;

use crate::condition::{cookie_values, query_values};
use crate::context::Context;
use crate::values::Scalar;

/// Where a credential is carried.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Source {
    /// `header:NAME`
    Header(HeaderName),
    /// `query:NAME`, as it reads decoded
    Query(Box<str>),
    /// `cookie:NAME`
    Cookie(Box<str>),
}

impl Scalar for Source {
    const EXPECTED: &'static str = "`header:NAME`, `query:NAME` or `cookie:NAME`";
    const PATTERN: Option<&'static str> = Some("^(header|query|cookie):.+$");
    const EXAMPLE: &'static str = "header:x-api-key";

    fn read(text: &str) -> Option<Self> {
        match text.split_once(':').filter(|(_, name)| !name.is_empty())? {
            ("header", name) => name.parse().ok().filter(|name| *name != COOKIE).map(Self::Header),
            ("query", name) => Some(Self::Query(name.into())),
            ("cookie", name) => Some(Self::Cookie(name.into())),
            _ => None,
        }
    }
}

crate::scalar!(Source);

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Header(name) => write!(f, "header:{name}"),
            Self::Query(name) => write!(f, "query:{name}"),
            Self::Cookie(name) => write!(f, "cookie:{name}"),
        }
    }
}

impl Source {
    /// Every value that a request has here: no second one may hide behind the first.
    pub(crate) fn values<'a>(&'a self, request: &'a RequestHeader) -> Vec<Cow<'a, [u8]>> {
        let bytes = |text: Cow<'a, str>| match text {
            Cow::Borrowed(text) => Cow::Borrowed(text.as_bytes()),
            Cow::Owned(text) => Cow::Owned(text.into_bytes()),
        };
        match self {
            Self::Header(name) => {
                request.headers.get_all(name).iter().map(|line| line.as_bytes().into()).collect()
            }
            Self::Query(name) => {
                query_values(request.uri.query().unwrap_or_default(), name).map(bytes).collect()
            }
            Self::Cookie(name) => cookie_values(&request.headers, name).map(bytes).collect(),
        }
    }

    /// Whether it is the field whose credentials have a scheme.
    pub(crate) fn is_authorization(&self) -> bool {
        matches!(self, Self::Header(name) if *name == AUTHORIZATION)
    }

    /// Takes the credential out of the request, and out of the target that goes to the upstream.
    pub(crate) fn remove(&self, request: &mut RequestHeader, ctx: &mut Context) {
        match self {
            Self::Header(name) => drop(request.remove_header(name)),
            Self::Query(name) => {
                if let Some(target) = request.uri.path_and_query().and_then(|sent| cut(sent.as_str(), name)) {
                    set_target(request, &target);
                }
                // A filter before may have made a target of the same query.
                if let Some(target) = ctx.policies.upstream_path.as_deref().and_then(|sent| cut(sent, name)) {
                    ctx.policies.upstream_path = Some(target.into());
                }
            }
            Self::Cookie(name) => remove_cookie(request, name),
        }
    }
}

/// The target without this query parameter, the rest to the byte as it is; none if it has none.
fn cut(target: &str, name: &str) -> Option<String> {
    let (path, query) = target.split_once('?')?;
    let is_named = |pair: &&str| query_values(pair, name).next().is_some();
    if !query.split('&').any(|pair| is_named(&pair)) {
        return None;
    }
    let kept: Vec<&str> = query.split('&').filter(|pair| !is_named(pair)).collect();
    Some(if kept.is_empty() { path.to_owned() } else { format!("{path}?{}", kept.join("&")) })
}

fn set_target(request: &mut RequestHeader, target: &str) {
    let mut parts = request.uri.clone().into_parts();
    // A part of a valid target is one.
    parts.path_and_query = PathAndQuery::try_from(target).ok();
    if let Ok(uri) = Uri::from_parts(parts) {
        request.set_uri(uri);
    }
}

/// Takes a cookie out of the lines of a request.
pub(crate) fn remove_cookie(request: &mut RequestHeader, name: &str) {
    let name_of = |pair: &[u8]| {
        let at = pair.iter().position(|byte| *byte == b'=').unwrap_or(pair.len());
        pair[..at].trim_ascii().to_owned()
    };
    let lines: Vec<HeaderValue> = request.headers.get_all(COOKIE).iter().cloned().collect();
    request.remove_header(&COOKIE);
    for line in lines {
        let pairs = line.as_bytes().split(|byte| *byte == b';');
        let kept: Vec<&[u8]> =
            pairs.map(<[u8]>::trim_ascii).filter(|pair| name_of(pair) != name.as_bytes()).collect();
        if let Ok(left) = HeaderValue::from_bytes(&kept.join(&b"; "[..]))
            && !left.is_empty()
        {
            let _ = request.append_header(COOKIE, left);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::request;

    #[test]
    fn a_query_parameter_is_cut_out_and_the_rest_stays_to_the_byte() {
        for (target, left) in [
            ("/a?api_key=s", Some("/a")),
            ("/a?x=%2f&api_key=s&y=1+2", Some("/a?x=%2f&y=1+2")),
            ("/a?api%5Fkey=s&api_key=t&z", Some("/a?z")),
            ("/a?API_KEY=s", None),
            ("/a?x=1&&", None),
            ("/a", None),
        ] {
            assert_eq!(cut(target, "api_key").as_deref(), left, "{target}");
        }
    }

    #[test]
    fn a_cookie_is_cut_out_of_its_line() {
        let (mut request, _) = request("GET", "/");
        for line in ["a=1; key=s; b=\"2\"", "key=t", "keys=3;key = u"] {
            request.append_header("cookie", line).expect("valid");
        }
        remove_cookie(&mut request, "key");
        let left: Vec<_> = request.headers.get_all(COOKIE).iter().map(HeaderValue::as_bytes).collect();
        assert_eq!(left, [&b"a=1; b=\"2\""[..], b"keys=3"]);
    }

    #[test]
    fn a_target_made_before_is_cleaned_too() {
        let (mut request, mut ctx) = request("GET", "/a?api_key=s&x=1");
        ctx.policies.upstream_path = Some("/b?api_key=s&x=1".into());
        Source::Query("api_key".into()).remove(&mut request, &mut ctx);
        assert_eq!(request.uri, "/a?x=1");
        assert_eq!(ctx.policies.upstream_path.as_deref(), Some("/b?x=1"));
    }

    #[test]
    fn sources_are_read_strictly() {
        for text in ["header:x-api-key", "query:k", "cookie:k"] {
            assert_eq!(Source::read(text).map(|source| source.to_string()).as_deref(), Some(text));
        }
        for text in ["", "header:", "header:a b", "header:cookie", "path:id", "Header:a", "x-api-key"] {
            assert_eq!(Source::read(text), None, "{text}");
        }
    }
}
