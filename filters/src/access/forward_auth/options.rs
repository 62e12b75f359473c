//! What users write about a service that decides.

use http::header::{self, HeaderName};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::condition::MethodName;
use crate::template::Template;
use crate::values::{ByteSize, Duration, DurationOrZero, FieldName, Scalar, Url};

/// Whom to ask, and what.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(rename = "ForwardAuthOptions")]
pub struct Options {
    /// The upstream that decides, unless it is asked by `url`.
    #[serde(default)]
    pub upstream: Option<String>,
    /// Where it is asked, such as `https://sso.example.com/verify`; https, except on this machine.
    #[serde(default)]
    pub url: Option<Url>,
    /// The path, and perhaps a query, that it is asked at: a template. By default that of `url`, or `/`.
    #[serde(default)]
    pub path: Option<Template>,
    /// The method it is asked by: `GET` by default, `POST` with a `body` or for `opa`.
    #[serde(default)]
    pub method: Option<MethodName>,
    /// How it is asked and answers: by fields, or as the Open Policy Agent does.
    #[serde(default)]
    pub format: Format,
    /// What the service is told of what the request is about, in `X-Forwarded-Method` and so on: any of `method`,
    /// `proto`, `host`, `uri` and `for`; by default all of it.
    #[serde(default)]
    pub about: Option<Vec<About>>,
    /// Fields of the request that it is sent.
    #[serde(default = "credentials")]
    pub request_headers: Vec<FieldName>,
    /// Fields of its answer that the upstream of the request is told; a client's own copies never get there.
    #[serde(default)]
    pub response_headers: Vec<FieldName>,
    /// Fields of an answer that refuses that the client is told.
    #[serde(default = "passed_on")]
    pub refusal_headers: Vec<FieldName>,
    /// Fields of an answer that lets a request pass that the client is told, beside what the upstream says.
    #[serde(default)]
    pub client_headers: Vec<FieldName>,
    /// How long it may take to decide.
    #[serde(default = "one_second")]
    pub timeout: Duration,
    /// The largest body of a request that the service is sent; a larger one is answered 413. By default it is sent none.
    #[serde(default)]
    pub body: Option<ByteSize>,
    /// The largest body of a refusal that is passed on; a larger one is left out.
    #[serde(default = "sixty_four_kib")]
    pub max_body: ByteSize,
    /// Remembers what it decided; by default each request is asked about.
    #[serde(default)]
    pub cache: Option<CacheOptions>,
}

/// How long it is remembered what the service decided about the same question.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(rename = "ForwardAuthCache")]
pub struct CacheOptions {
    /// How long what may pass goes on to pass, at most; `Cache-Control` of an answer can make it shorter.
    pub ttl: Duration,
    /// How long a refusal is remembered.
    #[serde(default = "not_at_all")]
    pub negative_ttl: DurationOrZero,
    /// Memory for what is remembered, about.
    #[serde(default = "four_mib")]
    pub size: ByteSize,
}

/// How a service is asked and answers.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
#[schemars(rename = "ForwardAuthFormat")]
pub enum Format {
    /// By fields, and it answers by its status.
    #[default]
    Fields,
    /// By the document `{"input": ..}`, and it answers by `{"result": ..}`: OPA's REST API.
    Opa,
}

/// One thing that a request is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
#[schemars(rename = "ForwardAuthAbout")]
pub enum About {
    /// Its method, in `X-Forwarded-Method`.
    Method,
    /// `http` or `https`, in `X-Forwarded-Proto`.
    Proto,
    /// The host asked for, in `X-Forwarded-Host`.
    Host,
    /// Path and query, in `X-Forwarded-Uri`.
    Uri,
    /// The client's address, in `X-Forwarded-For`.
    For,
}

fn credentials() -> Vec<FieldName> {
    vec![header::AUTHORIZATION.into(), header::COOKIE.into()]
}

fn passed_on() -> Vec<FieldName> {
    const PASSED_ON: [HeaderName; 6] = [
        header::LOCATION,
        header::SET_COOKIE,
        header::WWW_AUTHENTICATE,
        header::RETRY_AFTER,
        header::CACHE_CONTROL,
        header::CONTENT_TYPE,
    ];
    PASSED_ON.map(FieldName::from).into()
}

fn one_second() -> Duration {
    Duration::from_secs(1)
}

fn sixty_four_kib() -> ByteSize {
    ByteSize::from_kib(64)
}

fn four_mib() -> ByteSize {
    ByteSize::from_mib(4)
}

fn not_at_all() -> DurationOrZero {
    DurationOrZero::read("0s").expect("a duration")
}
