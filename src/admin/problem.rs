//! Error answers (RFC 9457).

use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use schemars::JsonSchema;
use serde::Serialize;

/// An error answer (RFC 9457).
#[derive(Debug, Serialize, JsonSchema)]
#[schemars(rename = "Problem")]
pub(super) struct Details {
    /// Always `about:blank`: the status says it all.
    #[serde(rename = "type")]
    kind: &'static str,
    /// The status in words.
    title: &'static str,
    /// The status.
    status: u16,
    /// What is wrong with this request.
    detail: String,
}

/// An error answer with further members.
#[derive(Debug, Serialize, JsonSchema)]
#[schemars(rename = "{E}Problem")]
pub(super) struct Extended<E> {
    #[serde(flatten)]
    details: Details,
    #[serde(flatten)]
    extension: E,
}

/// An error answer.
pub(super) fn problem(status: StatusCode, detail: &str) -> Response {
    answer(status, &details(status, detail))
}

/// An error answer with further members.
pub(super) fn extended<E: Serialize>(status: StatusCode, detail: &str, extension: E) -> Response {
    answer(status, &Extended { details: details(status, detail), extension })
}

/// As [`problem`], and says when to try again.
pub(super) fn later(detail: &str) -> Response {
    let mut response = problem(StatusCode::SERVICE_UNAVAILABLE, detail);
    response.headers_mut().insert(header::RETRY_AFTER, header::HeaderValue::from_static("1"));
    response
}

fn details(status: StatusCode, detail: &str) -> Details {
    let title = status.canonical_reason().unwrap_or("Error");
    Details { kind: "about:blank", title, status: status.as_u16(), detail: detail.to_owned() }
}

fn answer(status: StatusCode, body: &impl Serialize) -> Response {
    let mut text = serde_json::to_string(body).unwrap_or_default();
    text.push('\n');
    (status, [(header::CONTENT_TYPE, "application/problem+json")], text).into_response()
}
