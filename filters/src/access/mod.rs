//! Filters that decide who may call.

pub mod cors;
pub mod ip_access;
