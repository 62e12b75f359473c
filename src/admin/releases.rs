//! `/api/releases`: weights that move, as they are now.

use axum::Json;
use axum::extract::rejection::PathRejection;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use schemars::JsonSchema;
use serde::Serialize;

use super::AdminState;
use super::problem::problem;
use crate::observe::Timestamp;
use crate::release::Ramp;
use crate::release::ramp::Seen;
use crate::snapshot::Route;

/// Every ramp.
#[derive(Debug, Serialize, JsonSchema)]
#[schemars(rename = "Releases")]
pub(super) struct ReleaseList {
    /// The generation that serves.
    generation: u64,
    /// In file order of their routes.
    releases: Vec<ReleaseView>,
}

/// One ramp.
#[derive(Debug, Serialize, JsonSchema)]
#[schemars(rename = "Release")]
pub(super) struct ReleaseView {
    /// The route's name.
    route: String,
    /// The variant that gives requests away.
    from: String,
    /// The variant that gets them.
    to: String,
    /// Where it is.
    state: ReleaseState,
    /// The step it is on, from 1; 0 while it is given up.
    step: u32,
    /// Of how many.
    steps: u32,
    /// The share of the new variant, of what both have together, in percent.
    share: f64,
    /// When it began.
    started: String,
    /// When it was given up.
    #[serde(skip_serializing_if = "Option::is_none")]
    aborted: Option<String>,
    /// Why.
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<String>,
    /// What was seen of the old variant lately, if that is watched.
    #[serde(skip_serializing_if = "Option::is_none")]
    old: Option<SeenView>,
    /// What was seen of the new variant.
    #[serde(skip_serializing_if = "Option::is_none")]
    new: Option<SeenView>,
}

/// Where a ramp is.
#[derive(Debug, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
enum ReleaseState {
    /// The share grows.
    Running,
    /// It is on its last step.
    Done,
    /// It was given up, and waits for somebody to take note.
    Aborted,
}

/// What was seen of a variant in the window.
#[derive(Debug, Serialize, JsonSchema)]
#[schemars(rename = "ReleaseSeen")]
struct SeenView {
    /// Requests that ended.
    requests: u64,
    /// Those that failed.
    errors: u64,
    /// What 99% of those took at most that a backend was asked for and got whole, in milliseconds, to an eighth; left out
    /// where there were none.
    #[serde(skip_serializing_if = "Option::is_none")]
    p99_ms: Option<f64>,
}

impl SeenView {
    fn of(seen: Seen) -> Self {
        let [_, most] = seen.p99;
        let p99_ms = (seen.timed > 0).then_some(most.as_secs_f64() * 1e3);
        Self { requests: seen.requests, errors: seen.errors, p99_ms }
    }
}

fn view(route: &Route, ramp: &Ramp) -> ReleaseView {
    let standing = ramp.standing();
    let name = |at: usize| route.branch(1 + at).0.map(ToString::to_string).unwrap_or_default();
    let state = match (&standing.aborted, standing.step == standing.steps) {
        (Some(_), _) => ReleaseState::Aborted,
        (None, true) => ReleaseState::Done,
        (None, false) => ReleaseState::Running,
    };
    let [old, new] = standing.seen.map_or([None, None], |seen| seen.map(|seen| Some(SeenView::of(seen))));
    ReleaseView {
        route: route.name.to_string(),
        from: name(ramp.from),
        to: name(ramp.to),
        state,
        step: standing.step,
        steps: standing.steps,
        share: (standing.share * 1e4).round() / 1e2,
        started: Timestamp(standing.started).to_string(),
        aborted: standing.aborted.as_ref().map(|aborted| Timestamp(aborted.at).to_string()),
        reason: standing.aborted.map(|aborted| aborted.why),
        old,
        new,
    }
}

/// Every ramp, in file order of the routes.
pub(super) async fn all(State(state): State<AdminState>) -> Json<ReleaseList> {
    let snapshot = state.live.load();
    let releases = snapshot.ramps().map(|(route, ramp)| view(route, ramp)).collect();
    Json(ReleaseList { generation: snapshot.generation, releases })
}

/// Takes note of that a ramp was given up, and begins it anew.
pub(super) async fn acknowledge(
    State(state): State<AdminState>,
    name: Result<Path<String>, PathRejection>,
) -> Response {
    let Ok(Path(name)) = name else {
        return problem(StatusCode::BAD_REQUEST, "the name is not in UTF-8");
    };
    let snapshot = state.live.load();
    let Some((route, ramp)) = snapshot.ramps().find(|(route, _)| *route.name == *name) else {
        return problem(StatusCode::NOT_FOUND, "no route of this name has a ramp");
    };
    if !ramp.acknowledge() {
        return problem(StatusCode::CONFLICT, "the ramp was not given up");
    }
    Json(view(route, ramp)).into_response()
}
