//! Tokens in requests, and how to ask for one (RFC 6750).

use std::borrow::Cow;

use http::HeaderValue;
use http::header::AUTHORIZATION;
use pingora_http::RequestHeader;

use super::{Refusal, Source};
use crate::context::Context;

/// What is told of a request with more than one token.
pub(super) const SEVERAL: &str = "the request has several tokens";

/// The token in a value; `Authorization` has one only under the scheme `Bearer` (RFC 6750 s2.1).
pub(super) fn read<'a>(source: &Source, value: Cow<'a, [u8]>) -> Option<Cow<'a, [u8]>> {
    const SCHEME: usize = "bearer".len();
    if !matches!(source, Source::Header(name) if *name == AUTHORIZATION) {
        return Some(value);
    }
    let is_bearer = value.get(..SCHEME)?.eq_ignore_ascii_case(b"bearer");
    // A scheme is a token (RFC 9110 s5.6.2): whatever ends it, this one is there. Only spaces may follow it,
    // so that what follows anything else is malformed rather than nothing.
    let ends = value.get(SCHEME).is_none_or(|byte| !is_token_char(*byte));
    (is_bearer && ends).then(|| match value {
        Cow::Borrowed(value) => without_spaces(&value[SCHEME..]).into(),
        Cow::Owned(value) => without_spaces(&value[SCHEME..]).to_vec().into(),
    })
}

fn is_token_char(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte)
}

fn without_spaces(mut value: &[u8]) -> &[u8] {
    while let [b' ', rest @ ..] | [rest @ .., b' '] = value {
        value = rest;
    }
    value
}

/// Takes tokens out of a request.
pub(super) fn hide(sources: &[Source], request: &mut RequestHeader, ctx: &mut Context) {
    for source in sources {
        let has_one = source.values(request).into_iter().any(|value| read(source, value).is_some());
        // Another scheme is for somebody else.
        if has_one {
            source.remove(request, ctx);
        }
    }
}

/// RFC 6750 s3: a request without token is told no error.
pub(super) fn challenge(realm: &str, refusal: Option<&Refusal>) -> HeaderValue {
    super::challenge(&match refusal {
        None => format!("Bearer realm=\"{realm}\""),
        Some(Refusal { reason, ambiguous }) => {
            let error = if *ambiguous { "invalid_request" } else { "invalid_token" };
            format!("Bearer realm=\"{realm}\", error=\"{error}\", error_description=\"{reason}\"")
        }
    })
}
