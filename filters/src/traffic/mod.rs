//! Filters that decide how much may be sent, and where to besides.

pub mod body_limit;
pub mod cache;
pub mod concurrency;
pub mod fault;
pub mod mirror;
pub mod plan_limits;
pub mod quota;
pub mod rate_limit;
