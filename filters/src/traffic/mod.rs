//! Filters that decide how much may be sent.

pub mod body_limit;
pub mod cache;
pub mod concurrency;
pub mod plan_limits;
pub mod quota;
pub mod rate_limit;
