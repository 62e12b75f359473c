//! Filters that decide who may call.

pub mod authenticate;
pub mod authorize;
pub mod cors;
pub(crate) mod fields;
pub mod forward_auth;
pub mod ip_access;
pub mod upstream_auth;
