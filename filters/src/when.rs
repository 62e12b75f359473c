//! `when`: the condition under which a step runs; evaluated once, on the request.

use http::Method;
use pingora_http::RequestHeader;
use schemars::JsonSchema;
use serde::Deserialize;
use std::collections::BTreeMap;

use crate::condition::{Conditions, MethodName, ValueMatch};
use crate::context::Context;
use crate::path::PathPattern;
use crate::values::{FieldName, IpSet};

/// The condition under which a step runs; all that is written must hold.
#[derive(Debug, Clone, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct WhenSpec {
    /// Any of these path patterns matches.
    pub paths: Vec<PathPattern>,
    /// The method is one of these.
    pub methods: Vec<MethodName>,
    /// Each of these header fields matches.
    pub headers: BTreeMap<FieldName, ValueMatch>,
    /// Each of these query parameters matches.
    pub query: BTreeMap<String, ValueMatch>,
    /// Each of these cookies matches.
    pub cookies: BTreeMap<String, ValueMatch>,
    /// The client's address is in one of these ranges.
    pub client: Option<IpSet>,
}

/// A compiled `when`.
#[derive(Debug)]
pub struct When {
    paths: Vec<PathPattern>,
    conditions: Conditions,
    client: Option<IpSet>,
}

impl When {
    /// Compiles what was written; `None` when nothing was.
    #[must_use]
    pub fn new(spec: WhenSpec) -> Self {
        let methods = spec.methods.into_iter().map(Method::from).collect();
        let headers = spec.headers.into_iter().map(|(name, value)| (name.into(), value));
        Self {
            paths: spec.paths,
            conditions: Conditions::new(methods, headers, spec.query, spec.cookies),
            client: spec.client,
        }
    }

    /// Whether the step runs for this request.
    #[must_use]
    pub fn holds(&self, request: &RequestHeader, ctx: &Context) -> bool {
        (self.paths.is_empty() || self.paths.iter().any(|pattern| pattern.matches(&ctx.path).is_some()))
            && self.client.as_ref().is_none_or(|set| set.contains(ctx.client.address))
            && self.conditions.matches(&ctx.view(request))
    }
}
