//! `forward_auth`: asks another service whether a request may pass.
//!
//! ```yaml
//! - forward_auth: {upstream: sso, path: /verify, response_headers: [x-user]}
//! ```
//!
//! What `auth_request` of NGINX, `ForwardAuth` of Traefik and `ext_authz` of Envoy do. The service is sent the
//! listed fields of the request, without its body, and what it is about: `X-Forwarded-Method`, `-Proto`, `-Host`,
//! `-Uri` and `-For`. If it answers 2xx, the request passes, and the upstream is told the listed fields of that
//! answer. What else it answers below 500 goes to the client: the status, the body, and `Location`, `Set-Cookie`,
//! `WWW-Authenticate`, `Retry-After`, `Cache-Control` and `Content-Type`.
//!
//! A service that cannot be reached, is too slow or answers 5xx makes it 503 (`filter-unavailable`); only
//! `on_error: continue` with `fail_open: true` lets requests pass then, and upstreams are told nothing.
//!
//! Fields written for upstreams are dropped from requests of clients on every route; `authorization` is replaced
//! on the routes of this filter only.
//!
//! Hardened against untrusted clients: no field of theirs reaches the service unless it is listed, and none of
//! the service's own fields comes from them.

#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::time::Duration as Time;

use async_trait::async_trait;
use bytes::Bytes;
use http::header::{self, HeaderName, HeaderValue};
use http::uri::PathAndQuery;
use pingora_http::{RequestHeader, ResponseHeader};
use schemars::JsonSchema;
use serde::Deserialize;

use super::fields::has_meaning;
use crate::context::{Context, Slot, Verdict};
use crate::filter::{Build, BuildError, Filter};
use crate::outcome::{FilterError, Outcome, Reply};
use crate::phase::{OnRequest, OnUpstreamRequest, Phases};
use crate::values::{ByteSize, Duration, FieldName};
use crate::world::{Client, ClientError, ClientReply, UpstreamId};

/// Whom to ask, and what.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(rename = "ForwardAuthOptions")]
pub struct Options {
    /// The upstream that decides.
    pub upstream: String,
    /// The path, and perhaps a query, that it is asked at.
    #[serde(default = "root")]
    pub path: String,
    /// Fields of the request that it is sent.
    #[serde(default = "credentials")]
    pub request_headers: Vec<FieldName>,
    /// Fields of its answer that the upstream of the request is told; a client's own copies never get there.
    #[serde(default)]
    pub response_headers: Vec<FieldName>,
    /// How long it may take to decide.
    #[serde(default = "one_second")]
    pub timeout: Duration,
    /// The largest body of a refusal that is passed on; a larger one is left out.
    #[serde(default = "sixty_four_kib")]
    pub max_body: ByteSize,
}

fn root() -> String {
    "/".to_owned()
}

fn credentials() -> Vec<FieldName> {
    vec![header::AUTHORIZATION.into(), header::COOKIE.into()]
}

fn one_second() -> Duration {
    Duration::from_secs(1)
}

fn sixty_four_kib() -> ByteSize {
    ByteSize::from_kib(64)
}

/// What a refusal tells the client.
const PASSED_ON: [HeaderName; 6] = [
    header::LOCATION,
    header::SET_COOKIE,
    header::WWW_AUTHENTICATE,
    header::RETRY_AFTER,
    header::CACHE_CONTROL,
    header::CONTENT_TYPE,
];

/// See the [module](self).
pub struct ForwardAuth {
    upstream: UpstreamId,
    path: PathAndQuery,
    sent: Vec<HeaderName>,
    told: Vec<HeaderName>,
    timeout: Time,
    max_body: usize,
    fields: Slot<Fields>,
    client: Arc<dyn Client>,
}

type Fields = Vec<(HeaderName, HeaderValue)>;

impl Filter for ForwardAuth {
    const NAME: &'static str = "forward_auth";
    const GUARD: bool = true;
    const DECIDES: bool = true;
    type Options = Options;

    fn build(options: Options, build: &mut Build<'_>) -> Result<Phases, BuildError> {
        let path = options.path.parse().ok().filter(|_| options.path.starts_with('/'));
        let path = path.ok_or_else(|| BuildError::at("path", "expected a path such as `/verify`"))?;
        let sent: Vec<HeaderName> = options.request_headers.into_iter().map(HeaderName::from).collect();
        if let Some(at) = sent.iter().position(is_ours) {
            return Err(refused("request_headers", at, "the gateway writes this field itself"));
        }
        let told: Vec<HeaderName> = options.response_headers.into_iter().map(HeaderName::from).collect();
        for (at, field) in told.iter().enumerate() {
            if *field == header::AUTHORIZATION {
                continue;
            }
            if has_meaning(field) {
                let message = "the field has a meaning of its own; choose another one";
                return Err(refused("response_headers", at, message));
            }
            if build.has_credentials(field) {
                let message = "an identity looks for credentials in this field; choose another one";
                return Err(refused("response_headers", at, message));
            }
            build.identity_header(field.clone());
        }
        let filter = Arc::new(Self {
            upstream: build.upstream("upstream", &options.upstream)?,
            path,
            sent,
            told,
            timeout: options.timeout.get(),
            max_body: options.max_body.as_len(),
            fields: build.slot(),
            client: build.client(),
        });
        Ok(Phases::new().on_request(filter.clone()).on_upstream_request(filter))
    }
}

fn refused(option: &str, at: usize, message: &str) -> BuildError {
    let mut error = BuildError::at(option, message);
    error.path.push(at);
    error
}

/// Fields that frame a message or belong to one connection (RFC 9110 s7.6.1), and those that say what the
/// question is about.
fn is_ours(field: &HeaderName) -> bool {
    const HOPS: [&str; 7] =
        ["connection", "keep-alive", "proxy-connection", "te", "trailer", "transfer-encoding", "upgrade"];
    let name = field.as_str();
    let frames = [header::HOST, header::CONTENT_LENGTH, header::EXPECT].contains(field);
    frames || HOPS.contains(&name) || name.starts_with("x-forwarded-")
}

impl ForwardAuth {
    /// The question: the listed fields of a request, and what it is about.
    fn question(&self, request: &RequestHeader, ctx: &Context) -> Result<RequestHeader, FilterError> {
        let mut question = RequestHeader::build("GET", self.path.as_str().as_bytes(), None)?;
        for name in &self.sent {
            for value in request.headers.get_all(name) {
                question.append_header(name.clone(), value.clone())?;
            }
        }
        let uri = request.uri.path_and_query().map_or("/", PathAndQuery::as_str);
        question.insert_header("x-forwarded-method", request.method.as_str())?;
        question.insert_header("x-forwarded-proto", ctx.scheme.as_str())?;
        question.insert_header("x-forwarded-uri", uri)?;
        question.insert_header("x-forwarded-for", ctx.client.address.to_string())?;
        if let Some(host) = ctx.host.as_deref() {
            question.insert_header("x-forwarded-host", host)?;
        }
        Ok(question)
    }

    /// What the upstream is told of an answer that lets the request pass.
    fn fields(&self, answer: &ResponseHeader) -> Fields {
        let lines =
            |name: &HeaderName| answer.headers.get_all(name).iter().cloned().collect::<Vec<HeaderValue>>();
        let told = self.told.iter();
        told.flat_map(|name| lines(name).into_iter().map(|value| (name.clone(), value))).collect()
    }

    /// What the client is told of an answer that does not.
    async fn refusal(&self, mut answer: ClientReply) -> Result<Outcome, FilterError> {
        let mut head = ResponseHeader::build(answer.head.status, None)?;
        for name in &PASSED_ON {
            for value in answer.head.headers.get_all(name) {
                head.append_header(name.clone(), value.clone())?;
            }
        }
        let body = match answer.read_all(self.max_body).await {
            Ok(body) => body,
            Err(ClientError::TooLarge { .. }) => {
                head.remove_header(&header::CONTENT_TYPE);
                Bytes::new()
            }
            Err(error) => return Err(unavailable(&error)),
        };
        Ok(Reply::message(head, body).into())
    }
}

fn unavailable(error: &ClientError) -> FilterError {
    FilterError::Unavailable(format!("the service that decides: {error}"))
}

#[async_trait]
impl OnRequest for ForwardAuth {
    async fn on_request(
        &self,
        request: &mut RequestHeader,
        ctx: &mut Context,
    ) -> Result<Outcome, FilterError> {
        let question = self.question(request, ctx)?;
        let asked = self.client.send(self.upstream, question, Bytes::new(), Some(self.timeout)).await;
        let answer = asked.map_err(|error| unavailable(&error))?;
        let status = answer.head.status;
        if status.is_success() {
            let fields = self.fields(&answer.head);
            ctx.set_slot(self.fields, fields);
            ctx.decide(Verdict::Passed, "the service that decides lets it pass", &[]);
            return Ok(Outcome::Continue);
        }
        if !status.is_redirection() && !status.is_client_error() {
            return Err(FilterError::Unavailable(format!("the service that decides answered {status}")));
        }
        ctx.decide(Verdict::Changed, "the service that decides refused it", &[("status", status.as_str())]);
        self.refusal(answer).await
    }
}

/// On each attempt's own copy: before, a client could have them removed by naming them in `Connection`.
#[async_trait]
impl OnUpstreamRequest for ForwardAuth {
    async fn on_upstream_request(
        &self,
        request: &mut RequestHeader,
        _: u32,
        ctx: &mut Context,
    ) -> Result<(), FilterError> {
        // A client's own copy is no better where the service said nothing.
        self.told.iter().for_each(|name| drop(request.remove_header(name)));
        for (name, value) in ctx.slot(self.fields).into_iter().flatten() {
            request.append_header(name.clone(), value.clone())?;
        }
        Ok(())
    }
}
