//! Bounds the work that documents and questions sent to the API make: few at a time, of a limited
//! size together, sent without delay. A document takes some 25 times its size while it is compiled.

use std::sync::Arc;
use std::time::Duration;

use axum::body::{Body, to_bytes};
use axum::extract::{Request, State};
use axum::http::header::CONTENT_LENGTH;
use axum::http::{HeaderMap, Method, StatusCode};
use axum::middleware::Next;
use axum::response::Response;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::timeout;

use super::problem::{later, problem};

/// What all requests worked on weigh together, in MiB of their bodies.
const ROOM: u32 = 16;
/// What the smallest weighs: so at most two are worked on at a time.
const LEAST: u32 = 8;
/// How long a further one waits for its turn.
const PATIENCE: Duration = Duration::from_millis(500);
/// How long a body may take to come.
const BODY: Duration = Duration::from_secs(10);

/// Lets few requests in at a time.
#[derive(Clone)]
pub(super) struct Admission {
    places: Arc<Semaphore>,
    bytes: usize,
}

/// One request's place. Work that outlives the request keeps it until it is done.
pub(super) type Place = Arc<OwnedSemaphorePermit>;

impl Admission {
    /// Places for all endpoints together.
    pub(super) fn new() -> Self {
        Self { places: Arc::new(Semaphore::new(ROOM as usize)), bytes: 0 }
    }

    /// The same places, for bodies of at most this size.
    pub(super) fn at_most(self, bytes: usize) -> Self {
        Self { bytes, ..self }
    }
}

/// Reads a request's body once there is a place for it, or answers it. The place is put into the request.
pub(super) async fn admit(State(admission): State<Admission>, request: Request, next: Next) -> Response {
    debug_assert!(request.method() == Method::POST);
    let weight = weight(request.headers());
    let place = admission.places.clone().acquire_many_owned(weight);
    let Ok(Ok(place)) = timeout(PATIENCE, place).await else {
        return later("too many such requests are being worked on");
    };
    let (mut head, body) = request.into_parts();
    let body = match timeout(BODY, to_bytes(body, admission.bytes)).await {
        Ok(Ok(body)) => body,
        Ok(Err(_)) => {
            let most = format!("expected a body of at most {} bytes", admission.bytes);
            return problem(StatusCode::PAYLOAD_TOO_LARGE, &most);
        }
        Err(_) => return problem(StatusCode::REQUEST_TIMEOUT, "the body comes too slowly"),
    };
    head.extensions.insert::<Place>(Arc::new(place));
    next.run(Request::from_parts(head, Body::from(body))).await
}

/// The room that a body needs: by its announced length, which HTTP/1 holds it to, or all there is.
fn weight(headers: &HeaderMap) -> u32 {
    let length = headers.get(CONTENT_LENGTH).and_then(|length| length.to_str().ok()?.parse::<u64>().ok());
    let mebibytes = length.and_then(|length| u32::try_from(length.div_ceil(1 << 20)).ok());
    mebibytes.unwrap_or(ROOM).clamp(LEAST, ROOM)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn weighs(length: &str) -> u32 {
        weight(&HeaderMap::from_iter([(CONTENT_LENGTH, length.parse().unwrap())]))
    }

    #[test]
    fn two_small_bodies_fit_in_or_one_large_one_or_one_of_unknown_size() {
        assert_eq!((weighs("0"), weighs("8388608"), weighs("8388609")), (8, 8, 9));
        assert_eq!((weighs("16777216"), weighs("99999999999999"), weighs("x")), (16, 16, 16));
        assert_eq!(weight(&HeaderMap::new()), 16);
    }
}
