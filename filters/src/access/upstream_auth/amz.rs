//! Fields by which AWS is told what to do, and which of them clients may send.

use http::header::HeaderName;
use pingora_http::RequestHeader;

use crate::filter::BuildError;

/// All of these are signed.
pub(super) const PREFIX: &str = "x-amz-";

/// What a signature writes itself.
pub(super) const WRITTEN: [&str; 3] = ["x-amz-date", "x-amz-content-sha256", "x-amz-security-token"];

/// The fields that may go on.
pub(super) struct Allowed(Vec<Pattern>);

enum Pattern {
    Name(String),
    /// `x-amz-meta-` of `x-amz-meta-*`.
    Beginning(String),
}

impl Allowed {
    /// Parses what was written as `client_fields`.
    pub(super) fn parse(written: &[String]) -> Result<Self, BuildError> {
        let patterns = written.iter().enumerate().map(|(at, text)| {
            pattern(&text.to_ascii_lowercase()).ok_or_else(|| {
                let message =
                    "expected a field such as `x-amz-target`, or a beginning such as `x-amz-meta-*`";
                let mut error = super::within("aws", "client_fields", message);
                error.path.push(at);
                error
            })
        });
        Ok(Self(patterns.collect::<Result<_, _>>()?))
    }

    /// Removes all others.
    pub(super) fn keep(&self, request: &mut RequestHeader) {
        let names: Vec<HeaderName> =
            request.headers.keys().filter(|name| !self.holds(name)).cloned().collect();
        names.iter().for_each(|name| drop(request.remove_header(name)));
    }

    fn holds(&self, name: &HeaderName) -> bool {
        // Some servers take the one sign for the other.
        let plain = name.as_str().replace('_', "-");
        if !plain.starts_with(PREFIX) {
            return true;
        }
        !WRITTEN.contains(&plain.as_str()) && self.0.iter().any(|pattern| pattern.matches(&plain))
    }
}

impl Pattern {
    fn matches(&self, name: &str) -> bool {
        match self {
            Self::Name(exact) => exact == name,
            Self::Beginning(beginning) => name.starts_with(beginning.as_str()),
        }
    }
}

fn pattern(text: &str) -> Option<Pattern> {
    let name = text.strip_suffix('*').unwrap_or(text);
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-';
    if !name.starts_with(PREFIX) || !name.bytes().all(plain) {
        return None;
    }
    let name = name.to_owned();
    Some(if text.ends_with('*') { Pattern::Beginning(name) } else { Pattern::Name(name) })
}
