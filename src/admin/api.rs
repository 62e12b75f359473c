//! The API's answers.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::extract::rejection::{JsonRejection, StringRejection};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde_json::{Value, json};
use tokio::sync::oneshot;
use tollhouse_filters::world::World;

use super::{AdminState, redact};
use crate::config;
use crate::engine::dry;
use crate::engine::explain::{Question, explain as explain_request};
use crate::observe::metrics::CONTENT_TYPE;
use crate::snapshot::{Action, Compiler, Mode, Reloaded, Route, Snapshot};
use crate::source::{self, Problems};

/// An error answer (RFC 9457).
pub(super) fn problem(status: StatusCode, detail: &str) -> Response {
    let body = json!({
        "type": "about:blank",
        "title": status.canonical_reason(),
        "status": status.as_u16(),
        "detail": detail,
    });
    (status, [(header::CONTENT_TYPE, "application/problem+json")], format!("{body}\n")).into_response()
}

pub(super) async fn nothing() -> Response {
    problem(StatusCode::NOT_FOUND, "there is nothing here")
}

pub(super) async fn wrong_method() -> Response {
    problem(StatusCode::METHOD_NOT_ALLOWED, "this is asked for with another method")
}

/// 200 while requests are welcome, 503 once the process is on its way out.
pub(super) async fn ready(State(state): State<AdminState>) -> Response {
    if state.draining.is_on() {
        return problem(StatusCode::SERVICE_UNAVAILABLE, "draining");
    }
    "ready\n".into_response()
}

pub(super) async fn metrics(State(state): State<AdminState>) -> Response {
    ([(header::CONTENT_TYPE, CONTENT_TYPE)], state.observe.registry.render()).into_response()
}

/// The document as it took effect.
pub(super) async fn config(State(state): State<AdminState>) -> Json<Value> {
    let snapshot = state.live.load();
    let schema = config::schema(&state.registry);
    Json(json!({
        "generation": snapshot.generation,
        "fingerprint": snapshot.fingerprint.to_string(),
        "warnings": snapshot.warnings,
        "document": redact::redacted(&snapshot.packed.unpack().root, &schema),
    }))
}

/// Every route, in file order.
pub(super) async fn routes(State(state): State<AdminState>) -> Json<Value> {
    let snapshot = state.live.load();
    let loaded = snapshot.packed.unpack();
    let written = loaded.root.get("routes").and_then(|routes| routes.as_list()).unwrap_or_default();
    let routes: Vec<Value> = snapshot
        .routes
        .iter()
        .zip(written)
        .map(|(route, written)| {
            let mut shown = shown(route);
            shown["match"] = written
                .get("match")
                .and_then(|written| serde_json::to_value(written).ok())
                .unwrap_or_default();
            shown
        })
        .collect();
    Json(json!({"generation": snapshot.generation, "routes": routes}))
}

fn shown(route: &Route) -> Value {
    let filters: Vec<&str> = [&route.shared, &route.own]
        .into_iter()
        .flat_map(|pipeline| pipeline.steps())
        .map(|step| &*step.instance)
        .collect();
    let action = match &route.action {
        Action::Upstream(upstream) => json!({"upstream": &*upstream.name}),
        Action::Answer(_) => json!("answer"),
        Action::NotFound => json!("not_found"),
    };
    json!({"name": &*route.name, "service": route.service.as_deref(), "filters": filters, "action": action})
}

/// Reads all inputs again.
pub(super) async fn reload(State(state): State<AdminState>) -> Response {
    let (answer, outcome) = oneshot::channel();
    if state.reloads.send(Some(answer)).is_err() {
        return problem(StatusCode::SERVICE_UNAVAILABLE, "reloading has stopped");
    }
    let Ok(outcome) = outcome.await else {
        return problem(StatusCode::SERVICE_UNAVAILABLE, "reloading has stopped");
    };
    let generation = state.live.generation();
    match &*outcome {
        Reloaded::Unchanged => {
            Json(json!({"outcome": "unchanged", "generation": generation})).into_response()
        }
        Reloaded::Swapped { needs_restart, .. } => {
            Json(json!({"outcome": "swapped", "generation": generation, "needs_restart": needs_restart}))
                .into_response()
        }
        Reloaded::Refused { problems, .. } => {
            let body = json!({"outcome": "refused", "generation": generation, "problems": problems});
            (StatusCode::UNPROCESSABLE_ENTITY, Json(body)).into_response()
        }
    }
}

/// Checks a document sent as the body; it can neither include nor refer to anything on this machine.
pub(super) async fn check(
    State(state): State<AdminState>,
    text: Result<String, StringRejection>,
) -> Response {
    let text = match text {
        Ok(text) => text,
        Err(rejection) => return problem(rejection.status(), &rejection.body_text()),
    };
    let checked = off_the_runtime(move || {
        let loaded = Arc::new(source::load_str(&text, "document", None, &|_| None)?);
        let world = World::dry();
        Compiler { registry: &state.registry, world: &world, previous: None, mode: Mode::Afar }
            .compile(&loaded)
    });
    match checked.await {
        Some(Ok(snapshot)) => Json(json!({"ok": true, "warnings": snapshot.warnings})).into_response(),
        Some(Err(problems)) => {
            (StatusCode::UNPROCESSABLE_ENTITY, Json(json!({"ok": false, "problems": problems})))
                .into_response()
        }
        None => problem(StatusCode::INTERNAL_SERVER_ERROR, "the check failed"),
    }
}

/// Explains a request on the running document.
pub(super) async fn explain(
    State(state): State<AdminState>,
    question: Result<Json<Question>, JsonRejection>,
) -> Response {
    let question = match question {
        Ok(Json(question)) => question,
        Err(rejection) => return problem(rejection.status(), &rejection.body_text()),
    };
    let loaded = Arc::new(state.live.load().packed.unpack());
    let explained = off_the_runtime(move || {
        let snapshot: Arc<Snapshot> = dry::snapshot(&loaded, &state.registry)?;
        let explained = dry::block_on(explain_request(&snapshot, &question));
        Ok::<_, Problems>(explained.map(|explained| {
            explained.map(|mut explanation| {
                explanation.hide_values(&question);
                explanation
            })
        }))
    });
    match explained.await {
        Some(Ok(Some(Ok(explanation)))) => Json(explanation).into_response(),
        Some(Ok(Some(Err(message)))) => problem(StatusCode::BAD_REQUEST, &message),
        _ => problem(StatusCode::INTERNAL_SERVER_ERROR, "the request could not be explained"),
    }
}

async fn off_the_runtime<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Option<T> {
    tokio::task::spawn_blocking(work).await.ok()
}
