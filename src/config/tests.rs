//! `tests`: requests with expected answers, beside the configuration they test.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::Deserialize;
use serde::de::{Deserializer, Error};
use tollhouse_filters::condition::{MethodName, ValueMatch};
use tollhouse_filters::values::FieldName;

use super::Name;

/// A request and what is expected of it; nothing is sent anywhere.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Test {
    /// What the test shows, as a sentence.
    pub name: String,
    /// The request.
    pub request: TestRequest,
    /// What is expected; all that is written must hold.
    pub expect: Expect,
}

/// A request of a test.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct TestRequest {
    /// Its method; GET by default.
    #[serde(default)]
    pub method: Option<MethodName>,
    /// Its path, with the query if there is one.
    pub path: String,
    /// Its host; `localhost` by default.
    #[serde(default)]
    pub host: Option<String>,
    /// The listener it comes in through; the first one by default.
    #[serde(default)]
    pub listener: Option<Name>,
    /// The client's address; 192.0.2.1 by default.
    #[serde(default)]
    pub client: Option<std::net::IpAddr>,
    /// Its header fields.
    #[serde(default, deserialize_with = "tollhouse_filters::values::fields")]
    pub headers: BTreeMap<FieldName, String>,
    /// Its body.
    #[serde(default)]
    pub body: Option<String>,
    /// How often it is sent, at most 1000 times; what is expected is expected of the last one.
    #[serde(default = "once", deserialize_with = "times")]
    #[schemars(range(min = 1, max = 1000))]
    pub times: u16,
    /// Whether the earlier ones are still under way when the last is sent; else each is over before the next.
    #[serde(default)]
    pub at_once: bool,
}

fn once() -> u16 {
    1
}

/// The tests of a candidate must not take long.
fn times<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u16, D::Error> {
    let times = u16::deserialize(deserializer)?;
    match times {
        1..=1000 => Ok(times),
        _ => Err(D::Error::custom("expected a whole number from 1 to 1000")),
    }
}

/// What is expected of a request.
#[derive(Debug, Clone, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Expect {
    /// The route's name.
    pub route: Option<Name>,
    /// The status of the gateway's own answer.
    pub status: Option<u16>,
    /// The upstream that the request goes to.
    pub upstream: Option<Name>,
    /// The version of the API that it gets.
    pub version: Option<Name>,
    /// The variant that a split gives it.
    pub variant: Option<Name>,
    /// The upstreams that get a copy of it.
    pub mirrors: Option<Vec<Name>>,
    /// Fields of the gateway's own answer.
    #[serde(deserialize_with = "tollhouse_filters::values::fields")]
    pub headers: BTreeMap<FieldName, ValueMatch>,
    /// Fields of the request as the upstream gets it.
    #[serde(deserialize_with = "tollhouse_filters::values::fields")]
    pub headers_to_upstream: BTreeMap<FieldName, ValueMatch>,
    /// The path and query as the upstream gets them.
    pub path_to_upstream: Option<String>,
    /// Text in the body of the gateway's own answer.
    pub body_contains: Option<String>,
}
