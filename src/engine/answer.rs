//! What is written to answer requests with, in the place of an upstream: actions of routes, and fallbacks.

use bytes::Bytes;
use http::HeaderValue;
use pingora::http::{RequestHeader, ResponseHeader};
use tollhouse_filters::outcome::{Body, Message, Outcome, Reply};
use tollhouse_filters::problem::{self, Problem};

use super::Exchange;
use crate::config::circuit_breaker::Fallback;
use crate::snapshot::{Action, Route};

impl Exchange {
    /// How much of the body filters are to see before the answer that was decided goes out; none if they need not.
    ///
    /// What is written for a request is for those whose filters let it pass, like the answer of an upstream: so a body
    /// that proves who calls, or that says on which sessions a logout is to end, is seen first. What a filter answers
    /// stands, and so does a problem; what matters to an upstream only is not waited for.
    #[must_use]
    pub fn wants_body_before_answer(&self) -> Option<u64> {
        let judges = || self.entered.judges_body(&self.stack, &self.ctx);
        self.wants_body().filter(|_| self.answers_itself && judges())
    }

    /// What a route answers by itself.
    pub(super) async fn answered(&mut self, route: &Route, request: &mut RequestHeader) -> Reply {
        let Action::Answer(filter) = &route.action else {
            return Problem::new(&problem::INTERNAL).into();
        };
        self.answers_itself = true;
        match filter.on_request(request, &mut self.ctx).await {
            Ok(Outcome::Respond(reply)) => reply,
            Ok(Outcome::Continue | Outcome::Cache(_)) | Err(_) => Problem::new(&problem::INTERNAL).into(),
        }
    }

    /// The answer in the place of the upstream's. What is written was checked when the upstream was built.
    pub(super) fn stand_in(&mut self, fallback: &Fallback) -> Reply {
        let Ok(mut head) =
            ResponseHeader::build(fallback.status.unwrap_or(200), Some(fallback.headers.len()))
        else {
            return Problem::new(&problem::INTERNAL).into();
        };
        self.answers_itself = true;
        for (name, value) in &fallback.headers {
            if let Ok(value) = HeaderValue::from_str(value) {
                let _ = head.insert_header(name.get().clone(), value);
            }
        }
        let body = Body::Bytes(Bytes::from(fallback.body.clone()));
        Reply::Message(Box::new(Message { head, body }))
    }
}
