//! The manual.

#[doc = include_str!("architecture.md")]
pub mod architecture {}

#[doc = include_str!("configuration.md")]
pub mod configuration {}

#[doc = include_str!("writing_a_filter.md")]
pub mod writing_a_filter {}

#[doc = include_str!("operations.md")]
pub mod operations {}

#[doc = include_str!("decisions.md")]
pub mod decisions {}
