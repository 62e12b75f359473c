//! Tollhouse's filter contract and built-in filters.
//!
//! A filter sees messages and a small [`context::Context`], and reaches the world only through what
//! it was given when it was built ([`filter::Build`]): it can be tested, dry-run and replayed.

pub mod access;
pub mod caching;
pub mod caller;
pub mod coding;
pub mod condition;
pub mod context;
pub mod draw;
pub mod events;
#[cfg(feature = "cel")]
pub mod expression;
#[cfg(not(feature = "cel"))]
#[path = "expression/absent.rs"]
pub mod expression;
pub mod filter;
pub mod host;
pub mod identity;
pub mod limits;
pub mod outcome;
pub mod path;
pub mod phase;
pub mod pipeline;
pub mod plan;
pub mod problem;
pub mod registry;
pub mod selector;
mod slot;
pub mod spec;
pub mod template;
#[cfg(any(test, feature = "testing"))]
pub mod testing;
pub mod traffic;
pub mod transform;
pub mod tree;
pub mod values;
pub mod when;
pub mod world;

use registry::Registry;

/// The built-in filters.
#[must_use]
pub fn builtin() -> Registry {
    Registry::new()
        .with::<access::authenticate::Authenticate>()
        .with::<access::authorize::Authorize>()
        .with::<access::cors::Cors>()
        .with::<access::forward_auth::ForwardAuth>()
        .with::<access::ip_access::IpAccess>()
        .with::<access::upstream_auth::UpstreamAuth>()
        .with::<traffic::body_limit::BodyLimit>()
        .with::<traffic::cache::Cache>()
        .with::<traffic::concurrency::Concurrency>()
        .with::<traffic::fault::Fault>()
        .with::<traffic::mirror::Mirror>()
        .with::<traffic::plan_limits::PlanLimits>()
        .with::<traffic::quota::Quota>()
        .with::<traffic::rate_limit::RateLimit>()
        .with::<transform::buffer::Buffer>()
        .with::<transform::compress::Compress>()
        .with::<transform::decompress::Decompress>()
        .with::<transform::headers::Headers>()
        .with::<transform::redirect::Redirect>()
        .with::<transform::request_id::Identify>()
        .with::<transform::respond::Respond>()
        .with::<transform::rewrite::Rewrite>()
        .with::<transform::security_headers::SecurityHeaders>()
}
