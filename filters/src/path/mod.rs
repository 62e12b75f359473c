//! One normalisation of request paths, and the patterns matched against it (RFC 3986 section 6).

mod normalize;
mod pattern;
#[cfg(test)]
mod tests;

pub(crate) use normalize::behind;
pub use normalize::{DotSegments, EncodedSlash, NormalPath, PathError, PathRules, normalize};
pub(crate) use pattern::decode_bytes;
pub use pattern::{Captures, PathPattern, Segment, decode_segment};
