//! `/api/mirrors`: what came of copies of requests.

use axum::Json;
use axum::extract::State;
use schemars::JsonSchema;
use serde::Serialize;
use tollhouse_filters::traffic::mirror::{Example, Report, Tally};

use super::AdminState;
use crate::observe::Timestamp;

/// Every filter that copies requests.
#[derive(Debug, Serialize, JsonSchema)]
#[schemars(rename = "Mirrors")]
pub(super) struct MirrorList {
    /// The generation that serves.
    generation: u64,
    /// In file order.
    mirrors: Vec<MirrorView>,
}

/// One filter that copies requests, with counts since the process began.
#[derive(Debug, Serialize, JsonSchema)]
#[schemars(rename = "Mirror")]
struct MirrorView {
    /// The filter's name, or what it is called without one.
    name: String,
    /// The upstream that gets copies.
    upstream: String,
    /// Copies by what became of them.
    copies: Vec<CountView>,
    /// Pairs of answers that were compared.
    compared: u64,
    /// Those that differ.
    different: u64,
    /// The share of those, from 0 to 1; none before any was compared.
    #[serde(skip_serializing_if = "Option::is_none")]
    ratio: Option<f64>,
    /// Those that differ in this.
    parts: Vec<CountView>,
    /// Pairs whose bodies were not compared: too long, in a content coding, or cut.
    uncompared_bodies: u64,
    /// The last answers that differ, the latest last.
    examples: Vec<ExampleView>,
}

/// How many there are of something.
#[derive(Debug, Serialize, JsonSchema)]
#[schemars(rename = "MirrorCount")]
struct CountView {
    /// Of what.
    of: &'static str,
    /// How many.
    count: u64,
}

/// Two answers that differ, without values.
#[derive(Debug, Serialize, JsonSchema)]
#[schemars(rename = "MirrorExample")]
struct ExampleView {
    /// When the request was over.
    time: String,
    /// The request's id, as in the log.
    request_id: String,
    /// Its method.
    method: String,
    /// Its path, without the query.
    path: String,
    /// The status of its answer.
    status: u16,
    /// The status of the copy's answer.
    mirror_status: u16,
    /// What differs: `status`, `header NAME`, or `body` with the place as a JSON Pointer.
    differences: Vec<String>,
}

impl From<Example> for ExampleView {
    fn from(example: Example) -> Self {
        let [status, mirror_status] = example.statuses;
        Self {
            time: Timestamp(example.time).to_string(),
            request_id: example.request_id,
            method: example.method,
            path: example.path,
            status,
            mirror_status,
            differences: example.differences,
        }
    }
}

fn counts(list: Vec<(&'static str, u64)>) -> Vec<CountView> {
    list.into_iter().map(|(of, count)| CountView { of, count }).collect()
}

fn view(report: &Report) -> MirrorView {
    let Tally { outcomes, compared, different, parts, uncompared_bodies } = report.tally();
    MirrorView {
        name: report.instance.to_string(),
        upstream: report.upstream.to_string(),
        copies: counts(outcomes),
        compared,
        different,
        ratio: (compared > 0).then(|| different as f64 / compared as f64),
        parts: counts(parts),
        uncompared_bodies,
        examples: report.examples().into_iter().map(ExampleView::from).collect(),
    }
}

/// Every filter that copies requests, in file order.
pub(super) async fn all(State(state): State<AdminState>) -> Json<MirrorList> {
    let snapshot = state.live.load();
    let mirrors = snapshot.mirrors().iter().map(|report| view(report)).collect();
    Json(MirrorList { generation: snapshot.generation, mirrors })
}
