//! `buffer`: waits for the whole request body before the upstream is chosen.
//!
//! The upstream then never waits for a slow client, and an attempt that breaks can be repeated
//! with another backend.
//!
//! ```yaml
//! - buffer: {max: 1MiB}
//! ```

use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use pingora_http::RequestHeader;
use schemars::JsonSchema;
use serde::Deserialize;

use crate::context::Context;
use crate::filter::{Build, BuildError, Filter};
use crate::outcome::{FilterError, Outcome};
use crate::phase::{OnRequestBody, Phases};
use crate::values::ByteSize;

/// How much is taken.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Options {
    /// The largest body; a larger one is answered 413.
    pub max: ByteSize,
}

impl Default for Options {
    fn default() -> Self {
        Self { max: ByteSize::from_mib(1) }
    }
}

/// See the [module](self).
pub struct Buffer {
    max: u64,
}

impl Filter for Buffer {
    const NAME: &'static str = "buffer";
    type Options = Options;

    fn build(options: Options, _: &mut Build<'_>) -> Result<Phases, BuildError> {
        Ok(Phases::new().on_request_body(Arc::new(Self { max: options.max.get() })))
    }
}

#[async_trait]
impl OnRequestBody for Buffer {
    fn max_bytes(&self) -> u64 {
        self.max
    }

    async fn on_request_body(
        &self,
        _: &mut RequestHeader,
        _: &mut Bytes,
        _: &mut Context,
    ) -> Result<Outcome, FilterError> {
        Ok(Outcome::Continue)
    }
}

#[cfg(test)]
mod tests {
    use crate::testing::{chain, get};

    #[tokio::test]
    async fn the_whole_body_is_asked_for_up_to_the_limit() {
        assert_eq!(chain("- buffer: {max: 2KiB}").send(get("/")).await.wants_body(), Some(2048));
        assert_eq!(chain("- headers: {}").send(get("/")).await.wants_body(), None);
    }

    #[tokio::test]
    async fn the_smallest_limit_counts() {
        assert_eq!(
            chain("- buffer: {max: 2KiB}\n- buffer: {max: 1KiB}").send(get("/")).await.wants_body(),
            Some(1024)
        );
    }
}
