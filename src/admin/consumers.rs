//! `/api/consumers`: who calls, and switching them off and on.

use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use axum::Json;
use axum::extract::rejection::{PathRejection, QueryRejection};
use axum::extract::{Path, Query, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tollhouse_filters::identity::consumers::{Index, Layout, Record};

use super::AdminState;
use super::problem::{extended, problem};
use crate::consumers::{Roster, WriteError};
use crate::source::Problems;

/// Most consumers on a page.
const LARGEST_PAGE: usize = 1000;
const PAGE: usize = 100;

/// Which part of the list is asked for.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Page {
    /// The name before the first one wanted.
    #[serde(default)]
    after: String,
    limit: Option<usize>,
}

/// A page of consumers.
#[derive(Debug, Serialize, JsonSchema)]
#[schemars(rename = "Consumers")]
pub(super) struct ConsumerPage {
    /// How many there are in all.
    total: usize,
    /// Sorted by name.
    consumers: Vec<ConsumerView>,
    /// What `after` has to be for the next page; nothing on the last one.
    #[serde(skip_serializing_if = "Option::is_none")]
    next: Option<String>,
    /// What is wrong with their file; requests go by what it said before.
    #[serde(skip_serializing_if = "Option::is_none")]
    problems: Option<Problems>,
}

/// One consumer, without secrets.
#[derive(Debug, Serialize, JsonSchema)]
#[schemars(rename = "ConsumerState")]
pub(super) struct ConsumerView {
    name: String,
    groups: Vec<String>,
    /// Whether nothing it proves itself with counts.
    disabled: bool,
    /// Claims by which it is known.
    #[serde(rename = "match")]
    matches: Vec<MatchView>,
    /// What it proves itself with.
    credentials: Vec<CredentialView>,
}

#[derive(Debug, Serialize, JsonSchema)]
#[schemars(rename = "ConsumerMatchState")]
struct MatchView {
    identity: String,
    claim: String,
    value: String,
}

#[derive(Debug, Serialize, JsonSchema)]
#[schemars(rename = "CredentialState")]
struct CredentialView {
    #[serde(rename = "type")]
    kind: &'static str,
    id: String,
    /// The identity it is for.
    identity: String,
    /// When it ends, in Unix seconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    expires: Option<u64>,
    /// Whether it does not count.
    disabled: bool,
}

impl ConsumerView {
    fn of(record: &Record, layout: &Layout) -> Self {
        let seconds = |at: SystemTime| at.duration_since(UNIX_EPOCH).map(|since| since.as_secs()).ok();
        let credentials = record.credentials().iter().map(|credential| CredentialView {
            kind: credential.proof().kind(),
            id: credential.id().to_string(),
            identity: layout.name(credential.identity()).to_string(),
            expires: credential.expires().and_then(seconds),
            disabled: credential.is_disabled(),
        });
        let matches = record.matches().iter().map(|matched| MatchView {
            identity: layout.name(matched.identity()).to_string(),
            claim: matched.claim().to_owned(),
            value: matched.value().to_owned(),
        });
        Self {
            name: record.consumer().name.to_string(),
            groups: record.consumer().groups.iter().map(ToString::to_string).collect(),
            disabled: record.is_disabled(),
            matches: matches.collect(),
            credentials: credentials.collect(),
        }
    }
}

/// A page of consumers, sorted by name.
pub(super) async fn all(
    State(state): State<AdminState>,
    page: Result<Query<Page>, QueryRejection>,
) -> Response {
    let Query(Page { after, limit }) = match page {
        Ok(page) => page,
        Err(rejection) => return problem(StatusCode::BAD_REQUEST, &rejection.body_text()),
    };
    let limit = limit.unwrap_or(PAGE);
    if !(1..=LARGEST_PAGE).contains(&limit) {
        return problem(StatusCode::BAD_REQUEST, "expected a `limit` from 1 to 1000");
    }
    let roster = state.live.load().consumers.clone();
    let problems = roster.refused();
    // A look at each of perhaps a million.
    let listed = tokio::task::spawn_blocking(move || {
        let consumers = roster.consumers();
        let index = consumers.load();
        let (found, more) = next_after(&index, &after, limit);
        let next = found.last().filter(|_| more).map(|last| last.consumer().name.to_string());
        let views = found.iter().map(|record| ConsumerView::of(record, consumers.layout())).collect();
        ConsumerPage { total: index.len(), consumers: views, next, problems }
    });
    match listed.await {
        Ok(page) => Json(page).into_response(),
        Err(_) => problem(StatusCode::INTERNAL_SERVER_ERROR, "the list could not be made"),
    }
}

/// The first consumers after this name, and whether there are more.
fn next_after<'a>(index: &'a Index, after: &str, limit: usize) -> (Vec<&'a Arc<Record>>, bool) {
    let mut found: Vec<&Arc<Record>> =
        index.iter().filter(|record| *record.consumer().name > *after).collect();
    let by_name = |one: &&Arc<Record>, other: &&Arc<Record>| one.consumer().name.cmp(&other.consumer().name);
    let more = found.len() > limit;
    if more {
        found.select_nth_unstable_by(limit, by_name);
        found.truncate(limit);
    }
    found.sort_unstable_by(by_name);
    (found, more)
}

/// One consumer.
pub(super) async fn one(
    State(state): State<AdminState>,
    name: Result<Path<String>, PathRejection>,
) -> Response {
    let Ok(Path(name)) = name else {
        return problem(StatusCode::BAD_REQUEST, "the name is not in UTF-8");
    };
    let roster = state.live.load().consumers.clone();
    let consumers = roster.consumers();
    match consumers.load().get(&name) {
        Some(record) => Json(ConsumerView::of(record, consumers.layout())).into_response(),
        None => problem(StatusCode::NOT_FOUND, "no consumer has this name"),
    }
}

/// Switches a consumer off or on.
pub(super) async fn switch_consumer<const DISABLED: bool>(
    State(state): State<AdminState>,
    name: Result<Path<String>, PathRejection>,
) -> Response {
    let Ok(Path(name)) = name else {
        return problem(StatusCode::BAD_REQUEST, "the name is not in UTF-8");
    };
    switch(state, name, None, DISABLED).await
}

/// Switches a credential off or on.
pub(super) async fn switch_credential<const DISABLED: bool>(
    State(state): State<AdminState>,
    path: Result<Path<(String, String)>, PathRejection>,
) -> Response {
    let Ok(Path((name, id))) = path else {
        return problem(StatusCode::BAD_REQUEST, "the names are not in UTF-8");
    };
    switch(state, name, Some(id), DISABLED).await
}

async fn switch(state: AdminState, name: String, credential: Option<String>, disabled: bool) -> Response {
    let switch = move |roster: &Roster| {
        let switched = roster.switch(&name, credential.as_deref(), disabled);
        if switched.is_ok() {
            let credential = credential.as_deref().unwrap_or("all");
            log::info!(consumer = &*name, credential = credential, disabled = disabled; "consumer switched by the API");
        }
        switched.map(|record| ConsumerView::of(&record, roster.consumers().layout()))
    };
    // Waits for the disk.
    let work = tokio::task::spawn_blocking(move || state.live.change_consumers(switch));
    let Ok(switched) = work.await else {
        return problem(StatusCode::INTERNAL_SERVER_ERROR, "the consumer could not be changed");
    };
    match switched {
        Ok(view) => Json(view).into_response(),
        Err(WriteError::Inline) => {
            let detail = "the consumers are in the document: change them there, or keep them in a file \
                          (`consumers: {file: consumers.jsonl}`)";
            problem(StatusCode::CONFLICT, detail)
        }
        Err(WriteError::NoConsumer) => problem(StatusCode::NOT_FOUND, "no consumer has this name"),
        Err(WriteError::NoCredential) => {
            problem(StatusCode::NOT_FOUND, "the consumer has no such credential")
        }
        Err(WriteError::Refused(problems)) => {
            extended(StatusCode::CONFLICT, "the consumers' file has problems", Refused { problems })
        }
        Err(WriteError::HalfLine) => {
            let detail = "the consumers' file ends in half a line, and nothing was written: try again once whoever \
                          writes it is done, or end the line";
            problem(StatusCode::CONFLICT, detail)
        }
        Err(WriteError::Io(error)) => {
            log::error!("cannot write the consumers' file: {error}");
            problem(StatusCode::INTERNAL_SERVER_ERROR, "the consumers' file cannot be written; see the log")
        }
    }
}

/// What is told besides when the file has problems.
#[derive(Debug, Serialize, JsonSchema)]
#[schemars(rename = "ConsumersRefused")]
pub(super) struct Refused {
    /// What is wrong with the file.
    problems: Problems,
}
