//! `authorize`: who may do what.
//!
//! ```yaml
//! - authenticate: {any_of: [corp, keys]}
//! - authorize: {scopes: [orders:read], methods: [GET]}
//! ```
//!
//! A rule holds if all that it names does. Several rules are lists: a request passes if a rule of `allow`
//! holds and none of `deny` does, whatever their order.
//!
//! ```yaml
//! - authorize:
//!     allow:
//!       - {name: readers, groups: [partners], methods: [GET, HEAD]}
//!       - {name: staff, claims: {department: sales}, clients: [10.0.0.0/8]}
//!     deny:
//!       - {name: suspended, claims: {status: suspended}}
//! ```
//!
//! What keys cannot say, an expression can. One that cannot be evaluated, as where a claim is missing, allows nothing;
//! as a rule of `deny` it denies.
//!
//! ```yaml
//! - authorize: {cel: "request.method == 'GET' || claims.roles.exists(role, role == 'editor')"}
//! ```
//!
//! Who may not is answered 403, and not told why: the rules are nobody's business. The reason is in the log
//! (`denied_by`), and in `tollhouse explain`. Only a token that lacks scopes is told which would do, as the
//! clients of OAuth expect (RFC 6750 s3.1).
//!
//! Rules about consumers, groups, claims or scopes need `authenticate` before them, without `optional`.

mod rule;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::sync::Arc;

use async_trait::async_trait;
use http::header::{HeaderValue, WWW_AUTHENTICATE};
use pingora_http::RequestHeader;
use schemars::JsonSchema;
use serde::Deserialize;

use self::rule::{Rule, Unmet};
use crate::condition::{MethodName, ValueMatch};
use crate::context::{Context, Verdict};
use crate::expression::Expression;
use crate::filter::{Build, BuildError, Filter};
use crate::outcome::{FilterError, Outcome};
use crate::phase::{OnRequest, Phases};
use crate::problem::{FORBIDDEN, Problem};
use crate::values::{IpSet, Name};

/// Who may do what: one rule, or lists of them in `allow` and `deny`.
#[derive(Debug, Clone, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Options {
    /// Scopes that the caller's token must all have, in its claim `scope` or `scp`.
    pub scopes: Option<Vec<String>>,
    /// Groups of which the consumer must be in one.
    pub groups: Option<Vec<String>>,
    /// Consumers of which it must be one.
    pub consumers: Option<Vec<String>>,
    /// Claims and what each must be; of a claim that is a list, one entry.
    pub claims: BTreeMap<String, ValueMatch>,
    /// Methods of which the request must have one.
    pub methods: Option<Vec<MethodName>>,
    /// Ranges in one of which the client's address must be.
    pub clients: Option<IpSet>,
    /// An expression in CEL that must hold, such as `'admin' in claims.roles`.
    pub cel: Option<Expression>,
    /// Rules of which one must hold, instead of the keys above.
    pub allow: Vec<RuleSpec>,
    /// Rules of which none may hold, whatever `allow` says.
    pub deny: Vec<RuleSpec>,
}

/// A rule, which holds if all that it names does.
#[derive(Debug, Clone, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
#[schemars(rename = "AuthorizeRule")]
pub struct RuleSpec {
    /// What logs and `explain` call it; by default its place.
    pub name: Option<Name>,
    /// Scopes that the caller's token has, all of them.
    pub scopes: Option<Vec<String>>,
    /// The consumer is in one of these groups.
    pub groups: Option<Vec<String>>,
    /// It is one of these consumers.
    pub consumers: Option<Vec<String>>,
    /// Each of these claims is as wanted; of a claim that is a list, one entry.
    pub claims: BTreeMap<String, ValueMatch>,
    /// The method is one of these.
    pub methods: Option<Vec<MethodName>>,
    /// The client's address is in one of these ranges.
    pub clients: Option<IpSet>,
    /// This expression in CEL holds; one that cannot be evaluated allows nothing and denies.
    pub cel: Option<Expression>,
    /// Holds for every request, so that a list of `allow` can end with what is left after `deny`.
    pub any: bool,
}

/// See the [module](self).
pub struct Authorize {
    allow: Vec<Rule>,
    deny: Vec<Rule>,
}

impl Filter for Authorize {
    const NAME: &'static str = "authorize";
    const GUARD: bool = true;
    const DECIDES: bool = true;
    type Options = Options;

    fn build(options: Options, build: &mut Build<'_>) -> Result<Phases, BuildError> {
        let filter = rule::rules(options)?;
        for fact in filter.allow.iter().chain(&filter.deny).filter_map(Rule::needs) {
            build.needs(fact);
        }
        Ok(Phases::new().on_request(Arc::new(filter)))
    }
}

/// Why a request may not pass.
struct Denied<'a> {
    reason: String,
    /// Scopes that would do.
    scopes: Option<&'a [String]>,
}

impl Authorize {
    /// The rule that lets the request pass, or why there is none.
    fn decide(&self, request: &RequestHeader, ctx: &Context) -> Result<&str, Denied<'_>> {
        if let Some(rule) = self.deny.iter().find(|rule| rule.denies(request, ctx)) {
            return Err(Denied { reason: format!("the rule `{}` denies it", rule.name), scopes: None });
        }
        let mut unmet = Vec::with_capacity(self.allow.len());
        for rule in &self.allow {
            match rule.unmet(request, ctx) {
                None => return Ok(&rule.name),
                Some(what) => unmet.push((rule, what)),
            }
        }
        let mut lacking = unmet.iter().filter(|(_, what)| matches!(what, Unmet::Scopes));
        let scopes = lacking.next().map(|(rule, _)| rule.scopes());
        Err(Denied { reason: no_rule_allows(&unmet), scopes })
    }
}

/// What the first rules lack, which are enough to see why.
fn no_rule_allows(unmet: &[(&Rule, Unmet<'_>)]) -> String {
    const NAMED: usize = 4;
    let named: Vec<String> =
        unmet.iter().take(NAMED).map(|(rule, what)| format!("`{}` for its {what}", rule.name)).collect();
    let more = if unmet.len() > NAMED { ", .." } else { "" };
    format!("no rule allows it: not {}{more}", named.join(", not "))
}

#[async_trait]
impl OnRequest for Authorize {
    async fn on_request(
        &self,
        request: &mut RequestHeader,
        ctx: &mut Context,
    ) -> Result<Outcome, FilterError> {
        let Denied { reason, scopes } = match self.decide(request, ctx) {
            Ok(rule) => {
                ctx.decide(Verdict::Passed, "allowed", &[("rule", rule)]);
                return Ok(Outcome::Continue);
            }
            Err(denied) => denied,
        };
        ctx.decide(Verdict::Changed, reason.clone(), &[]);
        let mut problem = Problem::new(&FORBIDDEN).reason(reason);
        // Who has no token could not do anything about its scopes.
        let has_token = ctx.principal.as_ref().is_some_and(|principal| !principal.claims.is_empty());
        if let Some(scopes) = scopes.filter(|_| has_token) {
            problem = problem.header(WWW_AUTHENTICATE, insufficient_scope(scopes));
        }
        Ok(problem.into())
    }
}

/// RFC 6750 s3.1; scopes are of characters that need no escapes (RFC 6749 s3.3).
fn insufficient_scope(scopes: &[String]) -> HeaderValue {
    let scopes = scopes.join(" ");
    HeaderValue::from_str(&format!("Bearer error=\"insufficient_scope\", scope=\"{scopes}\""))
        .expect("scopes are visible ASCII")
}
