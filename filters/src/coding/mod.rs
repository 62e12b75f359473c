//! Content codings (RFC 9110 s8.4.1): what clients accept, encoders, and decoders with limits.

pub mod accept;
pub mod budget;
pub mod decode;
pub mod encode;
#[cfg(test)]
mod tests;
pub mod types;
