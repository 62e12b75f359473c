//! The API's answers.

use std::sync::Arc;

use axum::extract::State;
use axum::extract::rejection::{JsonRejection, StringRejection};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::{Extension, Json};
use schemars::JsonSchema;
use serde::Serialize;
use serde_json::Value;
use tokio::sync::oneshot;
use tollhouse_filters::values::within;
use tollhouse_filters::world::World;

use super::admission::Place;
use super::problem::{extended, problem};
use super::{AdminState, redact};
use crate::config;
use crate::engine::dry;
use crate::engine::explain::{Question, explain as explain_request};
use crate::observe::metrics::CONTENT_TYPE;
use crate::snapshot::{Action, Compiler, Mode, Reloaded, Route, Snapshot};
use crate::source::{self, Problems};
use crate::upstream::Upstream;

/// The document as it took effect, without secrets.
#[derive(Debug, Serialize, JsonSchema)]
pub(super) struct Configuration {
    /// Counts successful loads of this process, from 1.
    generation: u64,
    /// Of all inputs that the document is made of.
    fingerprint: String,
    /// What is suspicious but not wrong.
    warnings: Problems,
    /// The document, with includes and references resolved.
    document: Value,
}

/// Every route.
#[derive(Debug, Serialize, JsonSchema)]
#[schemars(rename = "Routes")]
pub(super) struct RouteList {
    /// The generation that serves.
    generation: u64,
    /// In file order.
    routes: Vec<RouteView>,
}

/// One route.
#[derive(Debug, Serialize, JsonSchema)]
#[schemars(rename = "Route")]
struct RouteView {
    /// Its name.
    name: String,
    /// Its service's name.
    service: Option<String>,
    /// Its filters, those of its service before its own.
    filters: Vec<String>,
    /// Where requests end.
    action: ActionView,
    /// What it matches, as written, without what came from outside the document.
    #[serde(rename = "match")]
    matches: Value,
}

/// Where requests of a route end.
#[derive(Debug, Serialize, JsonSchema)]
#[schemars(rename = "Action")]
#[serde(rename_all = "snake_case")]
enum ActionView {
    /// At this upstream.
    Upstream(String),
    /// At the upstream of the version that is asked for.
    Versions(Vec<Way>),
    /// At the upstream of one of these variants.
    Split(Vec<Way>),
    /// At an answer of the gateway's own.
    Answer,
    /// At 404.
    NotFound,
}

/// One of several ways that requests may go.
#[derive(Debug, Serialize, JsonSchema)]
struct Way {
    /// The name of the version or the variant.
    name: String,
    /// The name of its upstream.
    upstream: String,
}

/// What a reload came to.
#[derive(Debug, Serialize, JsonSchema)]
pub(super) struct Reload {
    outcome: Outcome,
    /// The generation that serves.
    generation: u64,
    /// Settings whose change takes effect at the next start only.
    #[serde(skip_serializing_if = "Option::is_none")]
    needs_upgrade: Option<Vec<&'static str>>,
}

/// What a refused reload is told besides.
#[derive(Debug, Serialize, JsonSchema)]
pub(super) struct ReloadRefused {
    outcome: Outcome,
    /// The generation that serves on.
    generation: u64,
    /// What is wrong with the candidate.
    problems: Problems,
}

/// How a reload ended.
#[derive(Debug, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
enum Outcome {
    /// No input changed.
    Unchanged,
    /// A new snapshot is in use.
    Swapped,
    /// The running snapshot stays.
    Refused,
}

/// What who wants an explanation is told besides, where files are no longer as the running document needs them.
#[derive(Debug, Serialize, JsonSchema)]
pub(super) struct ExplainRefused {
    /// What is wrong with it now.
    problems: Problems,
}

/// A document without problems.
#[derive(Debug, Serialize, JsonSchema)]
pub(super) struct Checked {
    /// Always true.
    ok: bool,
    /// What is suspicious but not wrong.
    warnings: Problems,
}

/// What a document with problems is told besides.
#[derive(Debug, Serialize, JsonSchema)]
pub(super) struct CheckRefused {
    /// Always false.
    ok: bool,
    /// All that is wrong with it.
    problems: Problems,
}

pub(super) async fn nothing() -> Response {
    problem(StatusCode::NOT_FOUND, "there is nothing here")
}

pub(super) async fn wrong_method() -> Response {
    problem(StatusCode::METHOD_NOT_ALLOWED, "this is asked for with another method")
}

pub(super) async fn healthy() -> &'static str {
    "ok\n"
}

/// 200 while requests are welcome, 503 once the process is on its way out.
pub(super) async fn ready(State(state): State<AdminState>) -> Response {
    if state.stopping.is_on() {
        return problem(StatusCode::SERVICE_UNAVAILABLE, "draining");
    }
    "ready\n".into_response()
}

pub(super) async fn metrics(State(state): State<AdminState>) -> Response {
    ([(header::CONTENT_TYPE, CONTENT_TYPE)], state.observe.registry.render()).into_response()
}

/// The document as it took effect.
pub(super) async fn config(State(state): State<AdminState>) -> Json<Configuration> {
    let snapshot = state.live.load();
    let schema = config::schema(&state.registry);
    Json(Configuration {
        generation: snapshot.generation,
        fingerprint: snapshot.fingerprint.to_string(),
        warnings: snapshot.warnings.clone(),
        document: redact::redacted(&snapshot.packed.unpack().root, &schema),
    })
}

/// Every route, in file order.
pub(super) async fn routes(State(state): State<AdminState>) -> Json<RouteList> {
    let snapshot = state.live.load();
    let document = redact::redacted(&snapshot.packed.unpack().root, &config::schema(&state.registry));
    let written = document["routes"].as_array().map(Vec::as_slice).unwrap_or_default();
    let routes = snapshot
        .routes
        .iter()
        .zip(written)
        .map(|(route, written)| shown(route, written.get("match").cloned().unwrap_or_default()));
    Json(RouteList { generation: snapshot.generation, routes: routes.collect() })
}

fn shown(route: &Route, matches: Value) -> RouteView {
    let filters = [&route.shared, &route.own]
        .into_iter()
        .flat_map(|pipeline| pipeline.steps())
        .map(|step| step.instance.to_string())
        .collect();
    let action = match &route.action {
        Action::Upstream(upstream) => ActionView::Upstream(upstream.name.to_string()),
        Action::Versions(upstreams) => {
            let names = route.versions.iter().flat_map(|versions| versions.names());
            ActionView::Versions(ways(names, upstreams))
        }
        Action::Split(split) => {
            let names = split.split.variants().iter().map(|variant| &variant.name);
            ActionView::Split(ways(names, &split.upstreams))
        }
        Action::Answer(_) => ActionView::Answer,
        Action::NotFound => ActionView::NotFound,
    };
    let service = route.service.as_deref().map(ToOwned::to_owned);
    RouteView { name: route.name.to_string(), service, filters, action, matches }
}

fn ways<'a>(names: impl Iterator<Item = &'a Arc<str>>, upstreams: &[Arc<Upstream>]) -> Vec<Way> {
    let way = |(name, upstream): (&Arc<str>, &Arc<Upstream>)| Way {
        name: name.to_string(),
        upstream: upstream.name.to_string(),
    };
    names.zip(upstreams).map(way).collect()
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
    let done = |outcome, needs_upgrade| Json(Reload { outcome, generation, needs_upgrade }).into_response();
    match &*outcome {
        Reloaded::Unchanged => done(Outcome::Unchanged, None),
        Reloaded::Swapped { needs_upgrade, .. } => done(Outcome::Swapped, Some(needs_upgrade.clone())),
        Reloaded::Refused { problems, .. } => {
            let (outcome, problems) = (Outcome::Refused, problems.clone());
            let refused = ReloadRefused { outcome, generation, problems };
            extended(StatusCode::UNPROCESSABLE_ENTITY, "the document on disk has problems", refused)
        }
    }
}

/// What all regular expressions of a document that is only checked may take together, in bytes.
const EXPRESSIONS: usize = 128 << 20;

/// Checks a document sent as the body; it can neither include nor refer to anything on this machine.
pub(super) async fn check(
    State(state): State<AdminState>,
    Extension(place): Extension<Place>,
    text: Result<String, StringRejection>,
) -> Response {
    let text = match text {
        Ok(text) => text,
        Err(rejection) => return problem(rejection.status(), &rejection.body_text()),
    };
    let checked = off_the_runtime(place, move || {
        let loaded = Arc::new(source::load_str(&text, "document", None, &|_| None)?);
        let world = World::dry();
        let compiler = Compiler {
            registry: &state.registry,
            world: &world,
            previous: None,
            mode: Mode::Afar,
            roster: None,
        };
        within(EXPRESSIONS, || compiler.compile(&loaded)).map(|snapshot| snapshot.warnings)
    });
    match checked.await {
        Some(Ok(warnings)) => Json(Checked { ok: true, warnings }).into_response(),
        Some(Err(problems)) => {
            let refused = CheckRefused { ok: false, problems };
            extended(StatusCode::UNPROCESSABLE_ENTITY, "the document has problems", refused)
        }
        None => problem(StatusCode::INTERNAL_SERVER_ERROR, "the check failed"),
    }
}

/// Explains a request on the running document.
pub(super) async fn explain(
    State(state): State<AdminState>,
    Extension(place): Extension<Place>,
    question: Result<Json<Question>, JsonRejection>,
) -> Response {
    let question = match question {
        Ok(Json(question)) => question,
        Err(rejection) => return problem(rejection.status(), &rejection.body_text()),
    };
    let explained = off_the_runtime(place, move || {
        let live = state.live.load();
        let loaded = Arc::new(live.packed.unpack());
        let revoked = state.revocations.list(None);
        let snapshot: Arc<Snapshot> = dry::snapshot_of(&live, &loaded, &state.registry, revoked)?;
        let explained = dry::block_on(explain_request(&snapshot, &question));
        Ok::<_, Problems>(explained.map(|explained| {
            explained.map(|mut explanation| {
                explanation.hide_values(&question, &loaded.root);
                explanation
            })
        }))
    });
    match explained.await {
        Some(Ok(Some(Ok(explanation)))) => Json(explanation).into_response(),
        Some(Ok(Some(Err(message)))) => problem(StatusCode::BAD_REQUEST, &message),
        Some(Err(problems)) => {
            let detail = "what serves cannot be made again: files that its document names have problems now";
            extended(StatusCode::CONFLICT, detail, ExplainRefused { problems })
        }
        _ => problem(StatusCode::INTERNAL_SERVER_ERROR, "the request could not be explained"),
    }
}

/// Does work that takes long on a thread of its own. It keeps its place to the end, even when the
/// client has long gone.
async fn off_the_runtime<T: Send + 'static>(
    place: Place,
    work: impl FnOnce() -> T + Send + 'static,
) -> Option<T> {
    let work = move || {
        let done = work();
        drop(place);
        done
    };
    tokio::task::spawn_blocking(work).await.ok()
}
