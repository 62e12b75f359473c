//! `when`: the condition under which a step runs; evaluated once, on the request.

use http::Method;
use pingora_http::RequestHeader;
use schemars::JsonSchema;
use serde::Deserialize;
use std::collections::BTreeMap;

use crate::caller::CallerConditions;
use crate::condition::{Conditions, MethodName, ValueMatch};
use crate::context::Context;
use crate::expression::Expression;
use crate::filter::{BuildError, Fact};
use crate::path::{PathPattern, PathRules};
use crate::plan::Plans;
use crate::tree::Path;
use crate::values::{FieldName, IpSet, Name};

/// The condition under which a step runs; all that is written must hold.
#[derive(Debug, Clone, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct WhenSpec {
    /// Any of these path patterns matches.
    #[serde(deserialize_with = "crate::values::at_least_one")]
    pub paths: Vec<PathPattern>,
    /// The method is one of these.
    #[serde(deserialize_with = "crate::values::at_least_one")]
    pub methods: Vec<MethodName>,
    /// Each of these header fields matches.
    #[serde(deserialize_with = "crate::values::fields")]
    pub headers: BTreeMap<FieldName, ValueMatch>,
    /// Each of these query parameters matches.
    pub query: BTreeMap<String, ValueMatch>,
    /// Each of these cookies matches.
    pub cookies: BTreeMap<String, ValueMatch>,
    /// The client's address is in one of these ranges.
    pub client: Option<IpSet>,
    /// It is one of these consumers.
    #[serde(deserialize_with = "crate::values::at_least_one")]
    pub consumer: Vec<String>,
    /// The consumer is in one of these groups.
    #[serde(deserialize_with = "crate::values::at_least_one")]
    pub groups: Vec<String>,
    /// The consumer has one of these plans.
    #[serde(deserialize_with = "crate::values::at_least_one")]
    pub plan: Vec<Name>,
    /// Each of these claims matches; of a claim that is a list, one entry.
    pub claims: BTreeMap<String, ValueMatch>,
    /// The request is for one of these versions of its service.
    #[serde(deserialize_with = "crate::values::at_least_one")]
    pub version: Vec<String>,
    /// This expression in CEL holds, such as `request.path.startsWith('/old/')`.
    pub cel: Option<Expression>,
}

impl WhenSpec {
    /// Has its paths normalised as those of requests are; what is wrong with its paths, plans and addresses.
    pub fn settle(&mut self, rules: &PathRules, plans: Option<&Plans>) -> Vec<BuildError> {
        let at = |key: &str, nth: usize| Path::new().join(key).join(nth);
        let paths = PathPattern::settle(&mut self.paths, rules).into_iter();
        let mut wrong: Vec<BuildError> =
            paths.map(|(nth, message)| BuildError { path: at("paths", nth), message, hint: None }).collect();
        for (nth, name) in self.plan.iter().enumerate() {
            if let Some(Err(error)) = plans.map(|plans| plans.find(name.as_str())) {
                wrong.push(BuildError { path: at("plan", nth), ..error });
            }
        }
        if self.client.as_ref().is_some_and(IpSet::is_empty) {
            let message = "at least one address is needed; for all of them, take the key away";
            wrong.push(BuildError::at("client", message));
        }
        wrong
    }
}

/// A compiled `when`.
#[derive(Debug)]
pub struct When {
    paths: Vec<PathPattern>,
    conditions: Conditions,
    caller: CallerConditions,
    versions: Vec<String>,
    cel: Option<Expression>,
}

impl When {
    /// Compiles what was written; `None` when nothing was.
    #[must_use]
    pub fn new(spec: WhenSpec) -> Self {
        let methods = spec.methods.into_iter().map(Method::from).collect();
        let headers = spec.headers.into_iter().map(|(name, value)| (name.into(), value));
        let any_of = |names: Vec<String>| (!names.is_empty()).then_some(names);
        let (consumers, groups) = (any_of(spec.consumer), any_of(spec.groups));
        let plans = (!spec.plan.is_empty()).then_some(spec.plan);
        Self {
            paths: spec.paths,
            conditions: Conditions::new(methods, headers, spec.query, spec.cookies),
            caller: CallerConditions { consumers, groups, plans, claims: spec.claims, clients: spec.client },
            versions: spec.version,
            cel: spec.cel,
        }
    }

    /// Whether the step runs for this request; else why nobody can tell.
    pub fn holds(&self, request: &RequestHeader, ctx: &Context) -> Result<bool, String> {
        let holds = (self.paths.is_empty()
            || self.paths.iter().any(|pattern| pattern.matches(&ctx.path).is_some()))
            && self.conditions.matches(&ctx.view(request))
            && self.caller.unmet(ctx).is_none()
            && (self.versions.is_empty() || self.is_for_version(ctx));
        match self.cel.as_ref().filter(|_| holds) {
            Some(cel) => cel.holds(request, ctx),
            None => Ok(holds),
        }
    }

    fn is_for_version(&self, ctx: &Context) -> bool {
        let wanted = |asked: &str| self.versions.iter().any(|version| *version == *asked);
        ctx.version.as_deref().is_some_and(wanted)
    }

    /// The fact that must be established before it is decided.
    #[must_use]
    pub fn needs(&self) -> Option<Fact> {
        self.caller.needs().or_else(|| self.cel.as_ref().and_then(Expression::needs))
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use crate::context::{Consumer, Principal};
    use crate::testing::{Request, chain, get};

    fn acme() -> Request {
        get("/").with(|ctx| {
            ctx.consumer = Some(Arc::new(Consumer {
                name: "acme".into(),
                groups: Arc::from(["partners".into()]),
                plan: Some("gold".into()),
            }));
            let serde_json::Value::Object(claims) = serde_json::json!({"roles": ["dev"], "level": 3}) else {
                unreachable!("an object")
            };
            ctx.principal = Some(Arc::new(Principal { subject: "acme".to_owned(), claims }));
        })
    }

    async fn runs(when: &str, request: Request) -> bool {
        let chain = chain(&format!("- respond: {{status: 204}}\n  when: {when}"));
        chain.send(request).await.ctx.ended_by.is_some()
    }

    #[tokio::test]
    async fn an_expression_is_a_condition_too_and_refuses_where_nobody_can_tell() {
        let runs = async |cel: &str| runs(&format!("{{methods: [GET], cel: \"{cel}\"}}"), acme()).await;
        assert!(runs("claims.level == 3 && 'dev' in claims.roles").await);
        assert!(!runs("claims.level == 4").await);
        let filters =
            |more: &str| format!("- respond: {{status: 204}}\n  when: {{cel: 'claims.age > 3'}}{more}");
        let sent = chain(&filters("")).send(acme()).await;
        let reason = sent.ctx.ended_by.as_ref().and_then(|ended| ended.reason.clone());
        assert_eq!(reason.as_deref(), Some("`when` cannot be evaluated: there is no `age`"));
        sent.responds(403);
        chain(&filters("\n  on_error: continue")).send(acme()).await.continues();
        let others = "- respond: {status: 204}\n  when: {methods: [POST], cel: 'claims.age > 3'}";
        chain(others).send(acme()).await.continues();
    }

    #[tokio::test]
    async fn the_version_asked_for_is_a_condition() {
        let second = || get("/").with(|ctx| ctx.version = Some("2".into()));
        assert!(runs("{version: ['1', '2']}", second()).await);
        assert!(!runs("{version: ['1']}", second()).await);
        assert!(!runs("{version: ['1']}", get("/")).await, "a service without versions has none");
    }

    #[tokio::test]
    async fn who_calls_is_a_condition_too() {
        for (when, holds) in [
            ("{consumer: [globex, acme]}", true),
            ("{consumer: [globex]}", false),
            ("{groups: [partners]}", true),
            ("{groups: [staff]}", false),
            ("{plan: [silver, gold]}", true),
            ("{plan: [silver]}", false),
            ("{plan: [gold], groups: [staff]}", false),
            ("{claims: {roles: dev, level: '3'}}", true),
            ("{claims: {roles: dev, level: '4'}}", false),
            ("{consumer: [acme], client: [198.51.100.0/24]}", false),
            ("{consumer: [acme], client: [192.0.2.0/24]}", true),
        ] {
            assert_eq!(runs(when, acme()).await, holds, "{when}");
            assert!(!runs(when, get("/")).await, "nobody is nobody in particular: {when}");
        }
    }
}
