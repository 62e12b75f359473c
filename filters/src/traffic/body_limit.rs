//! `body_limit`: narrows or widens how large bodies may be.
//!
//! ```yaml
//! - body_limit: {request: 64KiB, response: 10MiB}
//! ```

use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use http::header::CONTENT_LENGTH;
use http::{HeaderMap, Method, StatusCode};
use pingora_http::{RequestHeader, ResponseHeader};
use schemars::JsonSchema;
use serde::Deserialize;

use crate::context::{Context, Slot};
use crate::filter::{Build, BuildError, Filter};
use crate::outcome::{FilterError, Outcome};
use crate::phase::{OnRequest, OnRequestChunk, OnResponse, OnResponseChunk, OnUpstreamRequest, Phases};
use crate::problem::{BODY_TOO_LARGE, Problem};
use crate::values::ByteSize;

/// The limits; what is not written stays as it is.
#[derive(Debug, Clone, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Options {
    /// The largest request body, instead of `server.limits.body_bytes`; over it: 413.
    pub request: Option<ByteSize>,
    /// The largest body of an answer; over it: 502, or the connection is cut, if some of it was sent.
    pub response: Option<ByteSize>,
}

/// See the [module](self).
pub struct BodyLimit {
    request: u64,
    response: u64,
    seen: Slot<Seen>,
}

/// Body bytes seen so far.
#[derive(Default)]
struct Seen {
    request: u64,
    response: u64,
}

impl Filter for BodyLimit {
    const NAME: &'static str = "body_limit";
    const GUARD: bool = true;
    const DECIDES: bool = true;
    type Options = Options;

    fn build(options: Options, build: &mut Build<'_>) -> Result<Phases, BuildError> {
        if options.request.is_none() && options.response.is_none() {
            return Err(BuildError::new("no limit: add `request` or `response`"));
        }
        let filter = Arc::new(Self {
            request: options.request.map_or(u64::MAX, ByteSize::get),
            response: options.response.map_or(u64::MAX, ByteSize::get),
            seen: build.slot(),
        });
        let phases = Phases::new();
        let phases = match options.request {
            Some(_) => phases
                .on_request(filter.clone())
                .on_request_chunk(filter.clone())
                .on_upstream_request(filter.clone()),
            None => phases,
        };
        Ok(match options.response {
            Some(_) => phases.on_response(filter.clone()).on_response_chunk(filter),
            None => phases,
        })
    }
}

#[async_trait]
impl OnRequest for BodyLimit {
    async fn on_request(
        &self,
        request: &mut RequestHeader,
        ctx: &mut Context,
    ) -> Result<Outcome, FilterError> {
        ctx.policies.body_limit = Some(self.request);
        if declared(&request.headers).is_some_and(|length| length > self.request) {
            return Ok(Problem::new(&BODY_TOO_LARGE).into());
        }
        Ok(Outcome::Continue)
    }
}

/// Bodies without a declared length show their size only as they come.
impl OnRequestChunk for BodyLimit {
    fn on_request_chunk(
        &self,
        chunk: &mut Bytes,
        _: bool,
        ctx: &mut Context,
    ) -> Result<Outcome, FilterError> {
        let seen = ctx.slot_mut(self.seen);
        seen.request += chunk.len() as u64;
        if seen.request > self.request {
            return Ok(Problem::new(&BODY_TOO_LARGE).into());
        }
        Ok(Outcome::Continue)
    }
}

/// The body of each attempt is counted from its start.
#[async_trait]
impl OnUpstreamRequest for BodyLimit {
    async fn on_upstream_request(
        &self,
        _: &mut RequestHeader,
        _: u32,
        ctx: &mut Context,
    ) -> Result<(), FilterError> {
        ctx.slot_mut(self.seen).request = 0;
        Ok(())
    }
}

#[async_trait]
impl OnResponse for BodyLimit {
    async fn on_response(
        &self,
        request: &RequestHeader,
        response: &mut ResponseHeader,
        ctx: &mut Context,
    ) -> Result<(), FilterError> {
        ctx.slot_mut(self.seen).response = 0;
        // RFC 9110 s8.6: these say how long another answer would be.
        let bodiless = request.method == Method::HEAD || response.status == StatusCode::NOT_MODIFIED;
        let too_large = declared(&response.headers).is_some_and(|length| length > self.response);
        if too_large && !bodiless { Err(over()) } else { Ok(()) }
    }
}

impl OnResponseChunk for BodyLimit {
    fn on_response_chunk(
        &self,
        chunk: &mut Option<Bytes>,
        _: bool,
        ctx: &mut Context,
    ) -> Result<(), FilterError> {
        let seen = ctx.slot_mut(self.seen);
        seen.response += chunk.as_ref().map_or(0, |chunk| chunk.len() as u64);
        if seen.response > self.response {
            return Err(over());
        }
        Ok(())
    }
}

/// The length of a body, if its head says it.
fn declared(fields: &HeaderMap) -> Option<u64> {
    fields.get(CONTENT_LENGTH)?.to_str().ok()?.parse().ok()
}

fn over() -> FilterError {
    FilterError::Unavailable("the answer is larger than `body_limit` allows".to_owned())
}

#[cfg(test)]
mod tests {
    use crate::testing::{chain, get, refused};

    #[tokio::test]
    async fn a_declared_length_over_the_limit_is_refused_at_once() {
        let chain = chain("- body_limit: {request: 1KiB}");
        chain.send(get("/").header("content-length", "1024")).await.continues();
        chain.send(get("/").header("content-length", "1025")).await.responds(413);
    }

    #[tokio::test]
    async fn a_body_of_unknown_length_is_refused_where_it_passes_the_limit() {
        let chain = chain("- body_limit: {request: 1KiB}");
        let mut sent = chain.send(get("/").header("transfer-encoding", "chunked")).await;
        assert_eq!(sent.request_chunk(&[0; 1024]), None);
        assert_eq!(sent.request_chunk(&[0; 1]), Some(413));
    }

    #[tokio::test]
    async fn a_body_that_is_sent_again_is_counted_anew() {
        let chain = chain("- body_limit: {request: 1KiB}");
        let mut sent = chain.send(get("/")).await;
        for attempt in 1..=3 {
            sent.attempt(attempt).await;
            assert_eq!(sent.request_chunk(&[0; 1024]), None, "attempt {attempt}");
        }
    }

    #[tokio::test]
    async fn an_answer_over_the_limit_is_cut() {
        let chain = chain("- body_limit: {response: 1KiB}");
        let mut sent = chain.send(get("/")).await;
        assert!(sent.response_chunk(&[0; 1024]));
        assert!(!sent.response_chunk(&[0; 1]));
    }

    #[test]
    fn a_guard_does_not_continue_on_errors_by_accident() {
        assert!(refused("- body_limit: {}").contains("no limit"));
    }
}
