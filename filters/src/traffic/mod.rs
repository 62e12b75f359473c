//! Filters that decide how much may be sent.

pub mod body_limit;
pub mod concurrency;
pub mod fault;
pub mod plan_limits;
pub mod quota;
pub mod rate_limit;
