//! Filters that decide who may call.

pub mod cors;
