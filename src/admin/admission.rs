//! Bounds the work that documents and questions sent to the API make: few at a time, of a limited
//! size, sent without delay.

use std::sync::Arc;
use std::time::Duration;

use axum::body::{Body, to_bytes};
use axum::extract::{Request, State};
use axum::http::{Method, StatusCode};
use axum::middleware::Next;
use axum::response::Response;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::timeout;

use super::problem::{later, problem};

/// Requests worked on at a time.
const AT_A_TIME: usize = 2;
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
        Self { places: Arc::new(Semaphore::new(AT_A_TIME)), bytes: 0 }
    }

    /// The same places, for bodies of at most this size.
    pub(super) fn at_most(self, bytes: usize) -> Self {
        Self { bytes, ..self }
    }
}

/// Reads a request's body once there is a place for it, or answers it. The place is put into the request.
pub(super) async fn admit(State(admission): State<Admission>, request: Request, next: Next) -> Response {
    debug_assert!(request.method() == Method::POST);
    let Ok(Ok(place)) = timeout(PATIENCE, admission.places.clone().acquire_owned()).await else {
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
