//! `/api/upstreams`: upstreams and their backends as they are now.

use axum::Json;
use axum::extract::rejection::PathRejection;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use schemars::JsonSchema;
use serde::Serialize;

use super::AdminState;
use super::problem::problem;
use crate::upstream::view::UpstreamView;

/// Every upstream.
#[derive(Debug, Serialize, JsonSchema)]
#[schemars(rename = "Upstreams")]
pub(super) struct UpstreamList {
    /// The generation that serves.
    generation: u64,
    /// In written order.
    upstreams: Vec<UpstreamView>,
}

/// Every upstream, in written order.
pub(super) async fn all(State(state): State<AdminState>) -> Json<UpstreamList> {
    let snapshot = state.live.load();
    let upstreams = snapshot.upstreams.iter().map(|upstream| upstream.view()).collect();
    Json(UpstreamList { generation: snapshot.generation, upstreams })
}

/// One upstream.
pub(super) async fn one(
    State(state): State<AdminState>,
    name: Result<Path<String>, PathRejection>,
) -> Response {
    let Ok(Path(name)) = name else {
        return problem(StatusCode::BAD_REQUEST, "the name is not in UTF-8");
    };
    let snapshot = state.live.load();
    let found = snapshot.upstreams.iter().find(|upstream| *upstream.name == *name);
    found.map_or_else(
        || problem(StatusCode::NOT_FOUND, "no upstream has this name"),
        |upstream| Json(upstream.view()).into_response(),
    )
}
