//! Credentials in `Authorization`: a scheme, spaces, and what the scheme says follows (RFC 9110 s11.6.2).

use std::borrow::Cow;

use http::HeaderValue;
use http::header::AUTHORIZATION;
use pingora_http::RequestHeader;

/// What follows the scheme in a value of `Authorization`; none of another scheme's.
///
/// A scheme is a token (RFC 9110 s5.6.2): whatever ends it, this one is there. Only spaces may follow it, so that
/// what follows anything else is malformed rather than nothing.
pub(super) fn credentials<'a>(scheme: &str, value: Cow<'a, [u8]>) -> Option<Cow<'a, [u8]>> {
    let is_this = value.get(..scheme.len())?.eq_ignore_ascii_case(scheme.as_bytes());
    let ends = value.get(scheme.len()).is_none_or(|byte| !is_token_char(*byte));
    (is_this && ends).then(|| match value {
        Cow::Borrowed(value) => without_spaces(&value[scheme.len()..]).into(),
        Cow::Owned(value) => without_spaces(&value[scheme.len()..]).to_vec().into(),
    })
}

/// Takes the lines of `Authorization` out of a request that have credentials of a scheme.
pub(super) fn take_out(scheme: &str, request: &mut RequestHeader) {
    let is_of_it = |line: &HeaderValue| credentials(scheme, line.as_bytes().into()).is_some();
    let lines: Vec<HeaderValue> = request.headers.get_all(AUTHORIZATION).iter().cloned().collect();
    if !lines.iter().any(is_of_it) {
        return;
    }
    request.remove_header(&AUTHORIZATION);
    for line in lines.into_iter().filter(|line| !is_of_it(line)) {
        request.append_header(AUTHORIZATION, line).expect("it was there before");
    }
}

/// Whether a token may have this byte (RFC 9110 s5.6.2).
pub(super) fn is_token_char(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte)
}

fn without_spaces(mut value: &[u8]) -> &[u8] {
    while let [b' ', rest @ ..] | [rest @ .., b' '] = value {
        value = rest;
    }
    value
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_scheme_ends_where_a_token_does() {
        let read = |value: &str| {
            let found = credentials("basic", Cow::Owned(value.as_bytes().to_vec()));
            found.map(|found| String::from_utf8(found.into_owned()).expect("text"))
        };
        for (value, found) in [
            ("Basic YTpi", Some("YTpi")),
            ("BASIC   YTpi ", Some("YTpi")),
            ("Basic", Some("")),
            ("Basic\tYTpi", Some("\tYTpi")),
            ("Basic,YTpi", Some(",YTpi")),
            ("Basically YTpi", None),
            ("Bearer YTpi", None),
            ("", None),
        ] {
            assert_eq!(read(value).as_deref(), found, "{value}");
        }
    }
}
