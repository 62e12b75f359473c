//! Filters that decide who may call.

pub mod authenticate;
pub mod authorize;
pub mod cors;
pub mod ip_access;
