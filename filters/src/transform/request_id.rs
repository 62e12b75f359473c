//! `request_id`: identifies each request to the upstream and to the client.
//!
//! ```yaml
//! - request_id: {header: x-request-id, accept: trusted}
//! ```

use std::sync::Arc;

use async_trait::async_trait;
use http::HeaderName;
use pingora_http::{RequestHeader, ResponseHeader};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::context::{Context, RequestId};
use crate::filter::{Build, BuildError, Filter};
use crate::outcome::{FilterError, Outcome};
use crate::phase::{OnRequest, OnResponse, Phases};
use crate::values::FieldName;

/// The field, and whose identifiers are taken over.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Options {
    /// The field that carries the identifier; `x-request-id` by default.
    pub header: FieldName,
    /// Whose identifiers are taken over: nobody's (`never`), those of trusted proxies (`trusted`), or everybody's
    /// (`always`).
    pub accept: Accept,
    /// Whether the answer carries it too.
    pub respond: bool,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            header: FieldName::from(HeaderName::from_static("x-request-id")),
            accept: Accept::Trusted,
            respond: true,
        }
    }
}

/// Whose identifiers are taken over.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Accept {
    /// Nobody's: every request gets a new one.
    Never,
    /// Those of trusted proxies.
    Trusted,
    /// Everybody's.
    Always,
}

/// See the [module](self).
pub struct Identify {
    header: HeaderName,
    accept: Accept,
}

/// The longest identifier that is taken over, in bytes.
const LONGEST: usize = 128;

impl Filter for Identify {
    const NAME: &'static str = "request_id";
    type Options = Options;

    fn build(options: Options, _: &mut Build<'_>) -> Result<Phases, BuildError> {
        let filter = Arc::new(Self { header: options.header.into(), accept: options.accept });
        let phases = Phases::new().on_request(filter.clone());
        Ok(if options.respond { phases.on_response(filter) } else { phases })
    }
}

#[async_trait]
impl OnRequest for Identify {
    async fn on_request(
        &self,
        request: &mut RequestHeader,
        ctx: &mut Context,
    ) -> Result<Outcome, FilterError> {
        let accepted = match self.accept {
            Accept::Never => false,
            Accept::Trusted => ctx.client.through_trusted_proxy,
            Accept::Always => true,
        };
        let given =
            request.headers.get(&self.header).filter(|_| accepted).and_then(|value| value.to_str().ok());
        if let Some(given) = given.filter(|given| is_tame(given)) {
            ctx.request_id = RequestId::Given(given.into());
        }
        request.insert_header(&self.header, ctx.request_id.text().into_owned())?;
        Ok(Outcome::Continue)
    }
}

/// Visible ASCII without quotes, so that it can stand in any log unescaped.
fn is_tame(id: &str) -> bool {
    (1..=LONGEST).contains(&id.len())
        && id.bytes().all(|byte| byte.is_ascii_graphic() && !b"\"'\\<>".contains(&byte))
}

#[async_trait]
impl OnResponse for Identify {
    async fn on_response(
        &self,
        _: &RequestHeader,
        response: &mut ResponseHeader,
        ctx: &mut Context,
    ) -> Result<(), FilterError> {
        response.insert_header(&self.header, ctx.request_id.text().into_owned())?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use crate::testing::{chain, get};

    const MADE: &str = "00000000000000000000000000000001";

    #[tokio::test]
    async fn a_strangers_identifier_is_replaced() {
        let chain = chain("- request_id: {}");
        chain
            .send(get("/").header("x-request-id", "forged"))
            .await
            .continues()
            .request_header("x-request-id", MADE);
    }

    #[tokio::test]
    async fn an_accepted_identifier_is_kept_if_it_is_tame() {
        let chain = chain("- request_id: {accept: always}");
        chain.send(get("/").header("x-request-id", "abc-1")).await.request_header("x-request-id", "abc-1");
        chain.send(get("/").header("x-request-id", "a\"b")).await.request_header("x-request-id", MADE);
        chain
            .send(get("/").header("x-request-id", &"a".repeat(129)))
            .await
            .request_header("x-request-id", MADE);
    }

    #[tokio::test]
    async fn the_answer_carries_it_unless_told_otherwise() {
        chain("- request_id: {}").answer(get("/"), &[]).await.header("x-request-id", MADE);
        chain("- request_id: {respond: false}").answer(get("/"), &[]).await.no_header("x-request-id");
    }
}
