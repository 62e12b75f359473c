//! The admin listener and its API: it looks, and asks for reloads; it never touches a request.

mod api;
mod auth;
mod redact;

use std::io;
use std::net::TcpListener;
use std::sync::{Arc, mpsc};
use std::thread;

use axum::Router;
use axum::extract::DefaultBodyLimit;
use axum::middleware;
use axum::routing::{get, post};
use tokio::sync::oneshot;
use tollhouse_filters::registry::Registry;

use crate::door::Draining;
use crate::observe::Observe;
use crate::snapshot::{Live, Reloaded};

/// The largest document that `/api/check` takes, in bytes.
const LARGEST_DOCUMENT: usize = 16 << 20;

/// What the API looks at.
#[derive(Clone)]
pub struct AdminState {
    /// The snapshot in use.
    pub live: Arc<Live>,
    /// Asks for a reload and waits for its outcome.
    pub reloads: mpsc::Sender<Option<oneshot::Sender<Arc<Reloaded>>>>,
    /// Logs and metrics.
    pub observe: Arc<Observe>,
    /// Whether the process is on its way out.
    pub draining: Draining,
    /// The filters that exist.
    pub registry: Arc<Registry>,
}

/// Serves the API on a thread of its own, apart from traffic.
pub fn start(listener: TcpListener, state: AdminState) -> io::Result<()> {
    let local = listener.local_addr()?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .thread_name("admin")
        .enable_all()
        .build()?;
    thread::Builder::new().name("admin".to_owned()).spawn(move || {
        runtime.block_on(async move {
            let served = match tokio::net::TcpListener::from_std(listener) {
                Ok(listener) => axum::serve(listener, router(state, local.ip().is_loopback())).await,
                Err(error) => Err(error),
            };
            if let Err(error) = served {
                log::error!("the admin listener stopped: {error}");
            }
        });
    })?;
    Ok(())
}

fn router(state: AdminState, on_loopback: bool) -> Router {
    let guard = auth::Guard { live: state.live.clone(), on_loopback };
    let guarded = Router::new()
        .route("/metrics", get(api::metrics))
        .route("/api/config", get(api::config))
        .route("/api/routes", get(api::routes))
        .route("/api/reload", post(api::reload))
        .route("/api/check", post(api::check))
        .route("/api/explain", post(api::explain))
        .layer(DefaultBodyLimit::max(LARGEST_DOCUMENT))
        .layer(middleware::from_fn_with_state(guard, auth::check));
    Router::new()
        .route("/healthz", get(|| async { "ok\n" }))
        .route("/readyz", get(api::ready))
        .merge(guarded)
        .method_not_allowed_fallback(api::wrong_method)
        .fallback(api::nothing)
        .with_state(state)
}
