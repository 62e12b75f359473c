//! Answers under test.

use bytes::Bytes;
use pingora_http::ResponseHeader;

/// An answer under test.
pub struct Answer {
    pub(super) head: ResponseHeader,
    pub(super) body: Bytes,
}

impl Answer {
    /// The status.
    #[must_use]
    pub fn status(&self) -> u16 {
        self.head.status.as_u16()
    }

    /// A field; several lines are joined.
    #[must_use]
    pub fn field(&self, name: &str) -> Option<String> {
        joined(&self.head.headers, name)
    }

    /// Asserts a field; several lines are joined.
    ///
    /// # Panics
    /// When it is another.
    pub fn header(self, name: &str, value: &str) -> Self {
        assert_eq!(joined(&self.head.headers, name).as_deref(), Some(value), "{name}");
        self
    }

    /// Asserts that a field is not there.
    ///
    /// # Panics
    /// When it is.
    pub fn no_header(self, name: &str) -> Self {
        assert_eq!(joined(&self.head.headers, name), None, "{name}");
        self
    }

    /// Asserts the body.
    ///
    /// # Panics
    /// When it is another.
    pub fn body(self, text: &str) -> Self {
        assert_eq!(String::from_utf8_lossy(&self.body), text);
        self
    }
}

/// The lines of a field, joined.
pub(super) fn joined(headers: &http::HeaderMap, name: &str) -> Option<String> {
    let lines: Vec<_> =
        headers.get_all(name).iter().map(|line| String::from_utf8_lossy(line.as_bytes())).collect();
    (!lines.is_empty()).then(|| lines.join(", "))
}
