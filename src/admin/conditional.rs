//! Entity tags: who has a document already is told so instead of being sent it again (RFC 9110
//! sections 8.8.3 and 13.1.2).

use std::convert::Infallible;
use std::fmt::Write;

use axum::body::{Body, Bytes, to_bytes};
use axum::extract::Request;
use axum::http::header::{CACHE_CONTROL, CONTENT_LENGTH, CONTENT_TYPE, ETAG, IF_NONE_MATCH};
use axum::http::{HeaderMap, HeaderValue, StatusCode};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use futures_util::stream;
use sha2::{Digest, Sha256};

use super::problem::problem;

/// Gives an answer of 200 its tag, and answers 304 where the request names it.
pub(super) async fn answer(request: Request, next: Next) -> Response {
    let asked = request.headers().clone();
    let response = next.run(request).await;
    if response.status() != StatusCode::OK {
        return response;
    }
    let (mut head, body) = response.into_parts();
    // The handlers answer from memory, so that the whole body is there.
    let Ok(content) = to_bytes(body, usize::MAX).await else {
        return problem(StatusCode::INTERNAL_SERVER_ERROR, "the answer could not be made");
    };
    let tag = tag(&content);
    head.headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    head.headers.insert(ETAG, HeaderValue::try_from(&tag).expect("hexadecimal digits in quotes"));
    if !names(&asked, &tag) {
        return (head, Body::from(content)).into_response();
    }
    head.status = StatusCode::NOT_MODIFIED;
    head.headers.remove(CONTENT_TYPE);
    head.headers.remove(CONTENT_LENGTH);
    // One of unknown length: the length of an empty one would be told as the content's (RFC 9110
    // section 8.6), in an answer to HEAD even on the wire.
    (head, Body::from_stream(stream::empty::<Result<Bytes, Infallible>>())).into_response()
}

fn tag(content: &[u8]) -> String {
    let mut tag = String::from('"');
    for byte in &Sha256::digest(content)[..16] {
        write!(tag, "{byte:02x}").expect("writing to a String cannot fail");
    }
    tag.push('"');
    tag
}

/// Whether `If-None-Match` names this tag, by weak comparison (RFC 9110 section 8.8.3.2), or any.
fn names(asked: &HeaderMap, tag: &str) -> bool {
    let lines = asked.get_all(IF_NONE_MATCH).iter().filter_map(|line| line.to_str().ok());
    lines.into_iter().any(|line| line.trim() == "*" || tags(line).any(|named| named == tag))
}

/// The quoted parts of a list of tags; a comma within quotes separates nothing.
fn tags(line: &str) -> impl Iterator<Item = &str> {
    let mut rest = line;
    std::iter::from_fn(move || {
        let start = rest.find('"')?;
        let end = start + 1 + rest[start + 1..].find('"')? + 1;
        let found = &rest[start..end];
        rest = &rest[end..];
        Some(found)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asked(lines: &[&str], tag: &str) -> bool {
        let lines = lines.iter().map(|line| (IF_NONE_MATCH, HeaderValue::try_from(*line).unwrap()));
        names(&lines.collect(), tag)
    }

    /// RFC 9110 section 13.1.2: `"*" / #entity-tag`, weak comparison.
    #[test]
    fn if_none_match_is_a_star_or_a_list_of_tags() {
        assert!(asked(&["*"], "\"a\"") && asked(&["\"a\""], "\"a\"") && asked(&["W/\"a\""], "\"a\""));
        assert!(asked(&["\"x\", W/\"y\" ,\"a\""], "\"a\"") && asked(&["\"x\"", "\"a\""], "\"a\""));
        assert!(!asked(&[], "\"a\"") && !asked(&["\"b\""], "\"a\"") && !asked(&["a"], "\"a\""));
        assert!(!asked(&["\"x,a\""], "\"a\""), "a comma may be part of a tag");
        assert!(!asked(&["\"b"], "\"b\""), "half a tag is none");
    }

    #[test]
    fn a_tag_follows_the_content() {
        assert_eq!(tag(b"a"), tag(b"a"));
        assert_ne!(tag(b"a"), tag(b"b"));
        assert!(tag(b"").starts_with('"') && tag(b"").ends_with('"'));
    }
}
