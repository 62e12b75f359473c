//! Filters that decide how much may be sent.

pub mod body_limit;
pub mod rate_limit;
