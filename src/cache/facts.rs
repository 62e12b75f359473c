//! What is known about a stored response.

use serde::{Deserialize, Serialize};

/// What is known about a stored response.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Facts {
    /// When the response came, in milliseconds since 1970.
    pub received: u64,
    facts: [u64; 5],
}
