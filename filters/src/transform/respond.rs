//! `respond`: answers with a message of your own; also a route's action.
//!
//! ```yaml
//! - respond: {status: 503, body: "closed for maintenance\n", headers: {retry-after: "3600"}}
//!   when: {paths: [/shop/*]}
//! ```

use std::collections::BTreeMap;
use std::sync::Arc;

use async_trait::async_trait;
use http::header::{CONTENT_TYPE, HeaderName, HeaderValue};
use pingora_http::{RequestHeader, ResponseHeader};
use schemars::JsonSchema;
use serde::Deserialize;

use crate::context::Context;
use crate::filter::{Build, BuildError, Filter};
use crate::outcome::{FilterError, Outcome, Reply};
use crate::phase::{OnRequest, Phases};
use crate::template::{Escape, Template};
use crate::values::FieldName;

/// The message to answer with.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Options {
    /// The status, from 200 to 599.
    #[schemars(range(min = 200, max = 599))]
    pub status: u16,
    /// The body; a template.
    pub body: Template,
    /// Header fields; `content-type` is `text/plain; charset=utf-8` unless set here.
    #[serde(deserialize_with = "crate::values::fields")]
    pub headers: BTreeMap<FieldName, Template>,
}

impl Default for Options {
    fn default() -> Self {
        Self { status: 200, body: Template::fixed(""), headers: BTreeMap::new() }
    }
}

/// See the [module](self).
pub struct Respond {
    status: u16,
    body: Template,
    headers: Vec<(HeaderName, Template)>,
    plain_text: bool,
}

impl Filter for Respond {
    const NAME: &'static str = "respond";
    const DECIDES: bool = true;
    type Options = Options;

    fn build(options: Options, build: &mut Build<'_>) -> Result<Phases, BuildError> {
        if !(200..=599).contains(&options.status) {
            return Err(BuildError::at("status", "expected a status from 200 to 599"));
        }
        build.fills_in(&options.body);
        options.headers.values().for_each(|value| build.fills_in(value));
        let headers: Vec<(HeaderName, Template)> =
            options.headers.into_iter().map(|(name, value)| (name.into(), value)).collect();
        for (name, value) in &headers {
            if !value.fits_a_field() {
                return Err(BuildError::at(
                    "headers",
                    format!("the value of `{name}` cannot stand in a header field"),
                ));
            }
        }
        let plain_text =
            !headers.iter().any(|(name, _)| name == CONTENT_TYPE) && options.body.literal() != Some("");
        let filter = Self { status: options.status, body: options.body, headers, plain_text };
        Ok(Phases::new().on_request(Arc::new(filter)))
    }
}

#[async_trait]
impl OnRequest for Respond {
    async fn on_request(
        &self,
        request: &mut RequestHeader,
        ctx: &mut Context,
    ) -> Result<Outcome, FilterError> {
        let mut head = ResponseHeader::build(self.status, Some(self.headers.len() + 2))?;
        if self.plain_text {
            head.insert_header(CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"))?;
        }
        for (name, value) in &self.headers {
            head.append_header(name.clone(), value.render(request, ctx, Escape::Text))?;
        }
        Ok(Reply::message(head, self.body.render(request, ctx, Escape::Body)).into())
    }
}

#[cfg(test)]
mod tests {
    use crate::testing::{chain, get, refused};

    #[tokio::test]
    async fn the_message_is_the_written_one() {
        let chain = chain("- respond: {status: 503, body: \"closed\\n\", headers: {retry-after: '60'}}");
        let answer = chain.send(get("/")).await.responds(503);
        answer
            .body("closed\n")
            .header("retry-after", "60")
            .header("content-type", "text/plain; charset=utf-8");
    }

    #[tokio::test]
    async fn it_answers_only_when_its_condition_holds() {
        let chain = chain("- respond: {body: hello}\n  when: {headers: {x-debug: {present: true}}}");
        chain.send(get("/")).await.continues();
        chain.send(get("/").header("x-debug", "1")).await.responds(200).body("hello");
    }

    #[tokio::test]
    async fn a_dry_run_answers_nothing() {
        let chain = chain("- respond: {status: 403}\n  dry_run: true");
        chain.send(get("/")).await.continues();
    }

    #[test]
    fn interim_statuses_are_refused() {
        assert!(refused("- respond: {status: 101}").contains("200 to 599"));
    }

    #[test]
    fn header_values_that_no_field_can_hold_are_refused() {
        for value in [r"a\0b", r"${request.id}\n", r"by\r\n${client.address}"] {
            let said = refused(&format!("- respond: {{headers: {{x-a: \"{value}\"}}}}"));
            assert!(said.contains("the value of `x-a` cannot stand in a header field"), "{value}: {said}");
        }
    }
}
