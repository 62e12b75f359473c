//! One trait per phase of a request's life; a filter implements those it takes part in.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use pingora_http::{RequestHeader, ResponseHeader};

use crate::context::Context;
use crate::outcome::{FilterError, Outcome};

/// Runs once, when the head of the request is known.
#[async_trait]
pub trait OnRequest: Send + Sync {
    /// Changes the request, answers it, or lets it pass.
    async fn on_request(
        &self,
        request: &mut RequestHeader,
        ctx: &mut Context,
    ) -> Result<Outcome, FilterError>;
}

/// Runs once with the whole request body, after every `OnRequest` let the request pass.
#[async_trait]
pub trait OnRequestBody: Send + Sync {
    /// The largest body this filter takes, in bytes; a larger one is answered 413.
    fn max_bytes(&self) -> u64;
    /// Whether it wants the body of this request, once every `OnRequest` let it pass.
    fn wants(&self, _ctx: &Context) -> bool {
        true
    }
    /// Whether what comes of it matters to an upstream only: no answer of the gateway's own waits for it.
    fn is_for_upstream(&self) -> bool {
        false
    }
    /// Changes the body or the request, answers it, or lets it pass.
    async fn on_request_body(
        &self,
        request: &mut RequestHeader,
        body: &mut Bytes,
        ctx: &mut Context,
    ) -> Result<Outcome, FilterError>;
}

/// Sees each piece of a request body, before the filters that want the whole of it. Must not block.
///
/// A streamed body begins anew with each attempt at a backend: what counts or decodes pieces starts
/// over in [`OnUpstreamRequest`].
pub trait OnRequestChunk: Send + Sync {
    /// Changes, holds back (empty) or passes the piece, or ends the request; `end` is true with the
    /// last piece, which may be empty.
    fn on_request_chunk(
        &self,
        chunk: &mut Bytes,
        end: bool,
        ctx: &mut Context,
    ) -> Result<Outcome, FilterError>;
}

/// Runs for each attempt at a backend, on a fresh copy of the request head.
#[async_trait]
pub trait OnUpstreamRequest: Send + Sync {
    /// Changes what this attempt sends; `attempt` counts from 1, and is 0 for a head
    /// that is made for all attempts to come (fills of the cache, hedges).
    async fn on_upstream_request(
        &self,
        request: &mut RequestHeader,
        attempt: u32,
        ctx: &mut Context,
    ) -> Result<(), FilterError>;
}

/// Runs once on the final head of the answer (1xx are skipped), in reverse order.
#[async_trait]
pub trait OnResponse: Send + Sync {
    /// Changes the head of the answer.
    async fn on_response(
        &self,
        request: &RequestHeader,
        response: &mut ResponseHeader,
        ctx: &mut Context,
    ) -> Result<(), FilterError>;
}

/// Sees each piece of the answer's body on its way to the client, in reverse order. Must not block.
pub trait OnResponseChunk: Send + Sync {
    /// Changes, holds back (`Some(empty)`) or passes the piece; `end` is true with the last one.
    fn on_response_chunk(
        &self,
        chunk: &mut Option<Bytes>,
        end: bool,
        ctx: &mut Context,
    ) -> Result<(), FilterError>;
}

/// Runs when the request is over, however it ended. Must not block.
pub trait OnFinish: Send + Sync {
    /// Settles what the filter began.
    fn on_finish(&self, completed: &Completed, ctx: &mut Context);
}

/// How a request ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Completed {
    /// Status sent to the client, or 499 when it went away first.
    pub status: u16,
    /// From the first byte of the head to the last of the answer.
    pub elapsed: Duration,
    /// Body bytes read from the client.
    pub bytes_in: u64,
    /// Body bytes sent to the client.
    pub bytes_out: u64,
}

/// The phases one filter instance takes part in.
#[derive(Default, Clone)]
pub struct Phases {
    pub(crate) request: Option<Arc<dyn OnRequest>>,
    pub(crate) request_body: Option<Arc<dyn OnRequestBody>>,
    pub(crate) request_chunk: Option<Arc<dyn OnRequestChunk>>,
    pub(crate) upstream_request: Option<Arc<dyn OnUpstreamRequest>>,
    pub(crate) response: Option<Arc<dyn OnResponse>>,
    pub(crate) response_chunk: Option<Arc<dyn OnResponseChunk>>,
    pub(crate) finish: Option<Arc<dyn OnFinish>>,
}

macro_rules! phase {
    ($($(#[$doc:meta])* $name:ident: $field:ident, $phase:ident;)*) => {
        impl Phases {
            $($(#[$doc])* #[must_use]
            pub fn $name(mut self, filter: Arc<impl $phase + 'static>) -> Self {
                self.$field = Some(filter);
                self
            })*
        }
    };
}

phase! {
    /// Takes part when the request head is known.
    on_request: request, OnRequest;
    /// Asks for the whole request body.
    on_request_body: request_body, OnRequestBody;
    /// Sees each piece of the request body.
    on_request_chunk: request_chunk, OnRequestChunk;
    /// Takes part in each attempt at a backend.
    on_upstream_request: upstream_request, OnUpstreamRequest;
    /// Takes part when the head of the answer is known.
    on_response: response, OnResponse;
    /// Sees each piece of the answer's body.
    on_response_chunk: response_chunk, OnResponseChunk;
    /// Settles when the request is over.
    on_finish: finish, OnFinish;
}

impl Phases {
    /// Takes part in nothing yet.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// The request phase alone, for a filter that serves as a route's action.
    #[must_use]
    pub fn into_request(self) -> Option<Arc<dyn OnRequest>> {
        self.request
    }
}
