//! `/api/upstreams`: upstreams and their backends as they are now.

use axum::Json;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use schemars::JsonSchema;
use serde::Serialize;

use super::AdminState;
use super::problem::problem;
use crate::config::upstream::{self as written, Algorithm, Protocol};
use crate::upstream::{Backend, Upstream};

/// Every upstream.
#[derive(Debug, Serialize, JsonSchema)]
#[schemars(rename = "Upstreams")]
pub(super) struct UpstreamList {
    /// The generation that serves.
    generation: u64,
    /// In written order.
    upstreams: Vec<UpstreamView>,
}

/// A named group of backends, as it is now.
#[derive(Debug, Serialize, JsonSchema)]
#[schemars(rename = "Upstream")]
pub(super) struct UpstreamView {
    /// What routes call it.
    name: String,
    /// The HTTP version spoken to its backends.
    protocol: Protocol,
    /// Whether connections are made over TLS.
    tls: bool,
    /// How a backend is chosen.
    algorithm: Algorithm,
    /// In written order.
    backends: Vec<BackendView>,
}

/// One backend, as it is now.
#[derive(Debug, Serialize, JsonSchema)]
#[schemars(rename = "Backend")]
pub(super) struct BackendView {
    /// As written, `host:port`.
    address: String,
    /// Its share of the requests, relative to the others.
    weight: u16,
    /// Where connections go; empty while a name has never been resolved.
    resolved: Vec<String>,
    /// Requests it has in hand.
    in_flight: usize,
}

impl UpstreamView {
    fn of(upstream: &Upstream) -> Self {
        let written = upstream.written();
        Self {
            name: upstream.name.to_string(),
            protocol: written.protocol,
            tls: upstream.is_tls(),
            algorithm: written.balance.algorithm,
            backends: upstream
                .backends()
                .iter()
                .zip(&written.backends)
                .map(|(backend, written)| BackendView::of(backend, written))
                .collect(),
        }
    }
}

impl BackendView {
    fn of(backend: &Backend, written: &written::Backend) -> Self {
        Self {
            address: backend.written().to_string(),
            weight: written.weight,
            resolved: backend.addresses().iter().map(ToString::to_string).collect(),
            in_flight: backend.in_flight(),
        }
    }
}

/// Every upstream, in written order.
pub(super) async fn all(State(state): State<AdminState>) -> Json<UpstreamList> {
    let snapshot = state.live.load();
    let upstreams = snapshot.upstreams.iter().map(|upstream| UpstreamView::of(upstream)).collect();
    Json(UpstreamList { generation: snapshot.generation, upstreams })
}

/// One upstream.
pub(super) async fn one(State(state): State<AdminState>, Path(name): Path<String>) -> Response {
    let snapshot = state.live.load();
    let found = snapshot.upstreams.iter().find(|upstream| *upstream.name == *name);
    found.map_or_else(
        || problem(StatusCode::NOT_FOUND, "no upstream has this name"),
        |upstream| Json(UpstreamView::of(upstream)).into_response(),
    )
}
