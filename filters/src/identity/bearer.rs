//! Tokens in requests, and how to ask for one (RFC 6750).

use std::borrow::Cow;

use http::HeaderValue;

use super::{Refusal, Source, scheme};

/// The scheme of tokens.
pub(super) const SCHEME: &str = "bearer";
/// What is told of a request with more than one token.
pub(super) const SEVERAL: &str = "the request has several tokens";

/// The token in a value; `Authorization` has one only under the scheme `Bearer` (RFC 6750 s2.1).
pub(super) fn read<'a>(source: &Source, value: Cow<'a, [u8]>) -> Option<Cow<'a, [u8]>> {
    if source.is_authorization() { scheme::credentials(SCHEME, value) } else { Some(value) }
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
