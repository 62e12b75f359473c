//! Which version and which variant of an API a request gets.

mod accept;
mod calls;
pub mod ramp;
mod split;
mod versions;

pub use ramp::Ramp;
pub use split::{Chosen, Force, Split, Variant, Why};
pub use versions::{Asked, Version, Versions, bare, looks_like_a_version};
