//! Responses kept for those who ask again (RFC 9111).

mod facts;
mod key;
pub mod store;

pub use self::facts::Facts;
pub use self::key::Key;
