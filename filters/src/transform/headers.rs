//! `headers`: sets, adds and removes header fields of requests and answers.
//!
//! ```yaml
//! - headers:
//!     request: {set: {x-client: "${client.address}"}, remove: [cookie]}
//!     response: {set: {x-served-by: tollhouse}, remove: [x-powered-by]}
//! ```
//!
//! A field of requests that says who calls (`${consumer}`, `${claims.NAME}`) is dropped from requests of clients on every
//! route, as those of `authenticate` are, unless it has a meaning of its own, clients say something else in it
//! (`User-Agent`, `Accept*`, `If-*`), or an identity looks for credentials in it.

use std::collections::BTreeMap;
use std::sync::Arc;

use async_trait::async_trait;
use http::header::{self, HeaderName, HeaderValue};
use pingora_http::{RequestHeader, ResponseHeader};
use schemars::JsonSchema;
use serde::Deserialize;

use crate::access::fields::{has_meaning, is_of_clients};
use crate::context::{Context, Verdict};
use crate::filter::{Build, BuildError, Filter};
use crate::outcome::{FilterError, Outcome};
use crate::phase::{OnRequest, OnResponse, Phases};
use crate::template::{Escape, Template, Variable};
use crate::values::FieldName;

/// Sets, adds and removes header fields.
#[derive(Debug, Clone, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Options {
    /// Changes of the request, seen by later filters and the upstream.
    pub request: Changes,
    /// Changes of the answer.
    pub response: Changes,
}

/// Changes of a header section: first `remove`, then `set`, then `add`.
#[derive(Debug, Clone, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Changes {
    /// Fields with their new value, in place of any they had.
    #[serde(deserialize_with = "crate::values::fields")]
    pub set: BTreeMap<FieldName, Template>,
    /// Fields with a value that joins those they have.
    #[serde(deserialize_with = "crate::values::fields")]
    pub add: BTreeMap<FieldName, Template>,
    /// Fields that go away.
    pub remove: Vec<FieldName>,
}

/// See the [module](self).
pub struct Headers {
    request: Edits,
    response: Edits,
}

/// Changes with nothing left to parse.
#[derive(Default)]
struct Edits {
    remove: Vec<HeaderName>,
    set: Vec<(HeaderName, Value)>,
    add: Vec<(HeaderName, Value)>,
}

enum Value {
    Fixed(HeaderValue),
    Made(Template),
}

/// Fields that frame messages or concern one connection: the core's own.
const FORBIDDEN: [HeaderName; 6] = [
    header::CONNECTION,
    header::CONTENT_LENGTH,
    header::TRANSFER_ENCODING,
    header::TE,
    header::UPGRADE,
    HeaderName::from_static("keep-alive"),
];

impl Filter for Headers {
    const NAME: &'static str = "headers";
    type Options = Options;

    fn build(options: Options, build: &mut Build<'_>) -> Result<Phases, BuildError> {
        for changes in [&options.request, &options.response] {
            changes.set.values().chain(changes.add.values()).for_each(|value| build.fills_in(value));
        }
        declare(&options.request, build);
        let request = Edits::new("request", options.request)?;
        let response = Edits::new("response", options.response)?;
        if request.sets(&header::HOST) {
            return Err(BuildError::at("request", "`host` is set by `host:` of the upstream"));
        }
        let (edits_request, edits_response) = (!request.is_empty(), !response.is_empty());
        let filter = Arc::new(Self { request, response });
        let phases = Phases::new();
        let phases = if edits_request { phases.on_request(filter.clone()) } else { phases };
        Ok(if edits_response { phases.on_response(filter) } else { phases })
    }
}

/// Has clients' copies of the fields dropped that tell upstreams who calls.
fn declare(changes: &Changes, build: &mut Build<'_>) {
    let of_caller = |variable: &Variable| matches!(variable, Variable::Consumer | Variable::Claim(_));
    for (name, value) in changes.set.iter().chain(&changes.add) {
        let name = HeaderName::from(name.clone());
        let is_anothers = has_meaning(&name) || is_of_clients(&name) || build.has_credentials(&name);
        if value.variables().any(of_caller) && !is_anothers {
            build.identity_header(name);
        }
    }
}

impl Edits {
    fn new(side: &str, changes: Changes) -> Result<Self, BuildError> {
        let fixed = |fields: BTreeMap<FieldName, Template>| {
            let parse = |(name, template): (FieldName, Template)| {
                let name = allowed(side, name)?;
                let unfit =
                    || BuildError::at(side, format!("the value of `{name}` cannot stand in a header field"));
                let value = match template.literal() {
                    Some(text) => HeaderValue::from_str(text).map(Value::Fixed).map_err(|_| unfit())?,
                    None if template.fits_a_field() => Value::Made(template),
                    None => return Err(unfit()),
                };
                Ok((name, value))
            };
            fields.into_iter().map(parse).collect::<Result<Vec<_>, BuildError>>()
        };
        let remove = changes.remove.into_iter().map(|name| allowed(side, name)).collect::<Result<_, _>>()?;
        Ok(Self { remove, set: fixed(changes.set)?, add: fixed(changes.add)? })
    }

    fn is_empty(&self) -> bool {
        self.remove.is_empty() && self.set.is_empty() && self.add.is_empty()
    }

    fn sets(&self, name: &HeaderName) -> bool {
        self.set.iter().chain(&self.add).any(|(set, _)| set == name) || self.remove.contains(name)
    }
}

fn allowed(side: &str, name: FieldName) -> Result<HeaderName, BuildError> {
    let name = HeaderName::from(name);
    if FORBIDDEN.contains(&name) {
        return Err(BuildError::at(
            side,
            format!("`{name}` belongs to the connection and cannot be changed"),
        ));
    }
    Ok(name)
}

impl Value {
    fn get(&self, request: &RequestHeader, ctx: &Context) -> Result<HeaderValue, FilterError> {
        match self {
            Self::Fixed(value) => Ok(value.clone()),
            Self::Made(template) => HeaderValue::try_from(template.render(request, ctx, Escape::Text))
                .map_err(|_| FilterError::Internal("a rendered header value is not valid".to_owned())),
        }
    }
}

#[async_trait]
impl OnRequest for Headers {
    async fn on_request(
        &self,
        request: &mut RequestHeader,
        ctx: &mut Context,
    ) -> Result<Outcome, FilterError> {
        for name in &self.request.remove {
            request.remove_header(name);
        }
        for (name, value) in &self.request.set {
            let value = value.get(request, ctx)?;
            request.insert_header(name, value)?;
        }
        for (name, value) in &self.request.add {
            let value = value.get(request, ctx)?;
            request.append_header(name, value)?;
        }
        ctx.decide(Verdict::Changed, "request fields", &[]);
        Ok(Outcome::Continue)
    }
}

#[async_trait]
impl OnResponse for Headers {
    async fn on_response(
        &self,
        request: &RequestHeader,
        response: &mut ResponseHeader,
        ctx: &mut Context,
    ) -> Result<(), FilterError> {
        for name in &self.response.remove {
            response.remove_header(name);
        }
        for (name, value) in &self.response.set {
            response.insert_header(name, value.get(request, ctx)?)?;
        }
        for (name, value) in &self.response.add {
            response.append_header(name, value.get(request, ctx)?)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use crate::testing::{chain, get, refused};

    #[tokio::test]
    async fn fields_are_removed_then_set_then_added() {
        let chain = chain(
            "- headers: {request: {remove: [x-a], set: {x-a: new, x-b: '${client.address}'}, add: {x-a: more}}}",
        );
        let sent = chain.send(get("/").header("x-a", "old")).await;
        sent.continues().request_header("x-a", "new, more").request_header("x-b", "192.0.2.1");
    }

    #[tokio::test]
    async fn answers_are_changed_on_their_way_back() {
        let chain = chain("- headers: {response: {set: {x-served-by: tollhouse}, remove: [x-powered-by]}}");
        let answer = chain.answer(get("/"), &[("x-powered-by", "php")]).await;
        answer.header("x-served-by", "tollhouse").no_header("x-powered-by");
    }

    #[tokio::test]
    async fn a_value_from_the_request_cannot_split_the_header_section() {
        let chain = chain("- headers: {request: {set: {x-q: '${query.q}'}}}");
        chain.send(get("/?q=a%0D%0Ax-evil:%201")).await.continues().request_header("x-q", "ax-evil: 1");
    }

    #[test]
    fn values_that_no_field_can_hold_are_refused_whatever_is_filled_in() {
        for value in [r"a\0", r"${client.address}\n", r"by\r\n${client.address}", r"${query.q}\x7f"] {
            for (side, how) in [("request", "set"), ("response", "add")] {
                let said = refused(&format!("- headers: {{{side}: {{{how}: {{x-a: \"{value}\"}}}}}}"));
                assert!(
                    said.contains("the value of `x-a` cannot stand in a header field"),
                    "{value}: {said}"
                );
            }
        }
        // A folded text ends with the end of its line (YAML 1.2.2 s8.1.1.2).
        let folded = "- headers:\n    request:\n      set:\n        x-a: >\n          by ${client.address}\n";
        assert!(refused(folded).contains("x-a"));
    }

    #[tokio::test]
    async fn tabs_and_other_letters_may_stand_around_what_is_filled_in() {
        let chain = chain("- headers: {request: {set: {x-a: \"caf\u{e9}\\t${client.address}\"}}}");
        let head = chain.send(get("/")).await.continues().attempt(1).await;
        assert_eq!(head.headers["x-a"].as_bytes(), "caf\u{e9}\t192.0.2.1".as_bytes());
    }

    #[test]
    fn framing_fields_cannot_be_changed() {
        assert!(refused("- headers: {response: {set: {content-length: '1'}}}").contains("content-length"));
        assert!(refused("- headers: {request: {set: {host: a}}}").contains("host"));
    }
}
