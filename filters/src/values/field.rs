//! Names of HTTP fields.

use std::fmt;

use http::HeaderName;

use super::scalar::Scalar;

/// The name of a header field, without regard to case (RFC 9110 section 5.1).
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct FieldName(HeaderName);

impl FieldName {
    /// The name as the `http` crate's type.
    pub const fn get(&self) -> &HeaderName {
        &self.0
    }

    /// The name as the `http` crate's type.
    pub fn into_inner(self) -> HeaderName {
        self.0
    }
}

impl From<HeaderName> for FieldName {
    fn from(name: HeaderName) -> Self {
        Self(name)
    }
}

impl From<FieldName> for HeaderName {
    fn from(name: FieldName) -> Self {
        name.0
    }
}

impl PartialOrd for FieldName {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for FieldName {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.0.as_str().cmp(other.0.as_str())
    }
}

impl Scalar for FieldName {
    const EXPECTED: &'static str = "a header name such as `x-request-id`";
    const PATTERN: Option<&'static str> = Some(r"^[!#$%&'*+.^_`|~0-9A-Za-z-]+$");
    const EXAMPLE: &'static str = "x-request-id";

    fn read(text: &str) -> Option<Self> {
        HeaderName::from_bytes(text.as_bytes()).ok().map(Self)
    }
}

crate::scalar!(FieldName);

impl fmt::Display for FieldName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_tokens_in_any_case_and_are_written_in_lower_case() {
        let name: FieldName = serde_json::from_value("X-Request-Id".into()).unwrap();
        assert_eq!(name.get(), "x-request-id");
        assert_eq!(serde_json::to_value(&name).unwrap(), "x-request-id");
    }

    #[test]
    fn what_is_not_a_token_is_refused_without_quoting_it() {
        for text in ["", "x y", "x:y", "x\r\ny", ":authority", "é"] {
            let error = serde_json::from_value::<FieldName>(text.into()).unwrap_err().to_string();
            assert_eq!(error, "expected a header name such as `x-request-id`");
        }
    }
}
