//! Filters that change messages or make them.

pub mod buffer;
pub mod compress;
pub mod decompress;
pub mod headers;
pub mod redirect;
pub mod request_id;
pub mod respond;
pub mod rewrite;
pub mod security_headers;
