//! Tollhouse, an API gateway on Cloudflare's Pingora.
//!
//! 1. A document is compiled into a snapshot; a request runs on one snapshot from start to end.
//! 2. The snapshot's router turns a request into a route; a route has a pipeline of filters and
//!    one action. "No route" is itself a route.
//! 3. The engine decides without sockets or Pingora; [`proxy`] adapts it to Pingora's hooks, and
//!    `test`, `explain` and the admin API run the very same engine dry.
//! 4. A filter sees messages and a small context, and reaches the world only through what it was
//!    given when it was built.
//! 5. Filters decide policy; the core does the mechanism: peers, retries, writing replies.
//! 6. The admin API only looks, and asks for reloads; it never touches a request.
//!
//! An arrow means "may import"; nothing imports upward, and everyone may import [`observe`]:
//!
//! ```text
//! main -> cli -> server -> { door, proxy, admin }
//! door, proxy, admin, cli -> engine -> snapshot
//! proxy, admin -> cache -> { engine, upstream }
//! snapshot -> { source, config, release, routing, store, tls, upstream, filters }
//! release -> { config, ledger }
//! store, upstream -> { config, tls }                            tls -> config
//! door, server, cli -> handover
//! ```
//!
//! Build a gateway with filters of your own with [`run`].

pub mod admin;
pub mod cache;
pub mod cli;
pub mod config;
pub mod consumers;
pub mod door;
pub mod engine;
pub mod handover;
pub mod ledger;
pub mod manual;
pub mod observe;
pub mod proxy;
pub mod release;
pub mod routing;
pub mod server;
pub mod snapshot;
pub mod source;
pub mod store;
pub mod tls;
pub mod upstream;

use std::process::ExitCode;

use tollhouse_filters::registry::Registry;

/// Runs the command line with these filters: `tollhouse::run(builtin().with::<MyFilter>())`.
pub fn run(registry: Registry) -> ExitCode {
    // Pingora enables a second provider; the first one installed is the one in use.
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    cli::run(registry)
}
