//! What a response is found by.

use bytes::Bytes;

/// The URL, a NUL, and the partition that it is stored in: all that is stored for one URL has keys that begin with it
/// and a NUL.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Key(Bytes);

impl Key {
    /// A key of these bytes.
    #[must_use]
    pub fn from_bytes(bytes: Bytes) -> Self {
        Self(bytes)
    }

    /// All of it.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        &self.0
    }
}
