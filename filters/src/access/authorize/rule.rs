//! One rule, checked: what must be so for it to hold.

use std::borrow::Cow;
use std::fmt;

use http::Method;
use pingora_http::RequestHeader;

use super::{Authorize, Options, RuleSpec};
use crate::caller::{CallerConditions, scopes};
use crate::condition::MethodName;
use crate::context::Context;
use crate::expression::Expression;
use crate::filter::{BuildError, Fact};
use crate::tree::Path;
use crate::values::{IpSet, Name};

/// One rule, checked.
pub(super) struct Rule {
    /// What logs call it.
    pub(super) name: Box<str>,
    methods: Option<Vec<Method>>,
    caller: CallerConditions,
    scopes: Vec<String>,
    cel: Option<Expression>,
}

/// The first thing that a rule wants in vain.
pub(super) enum Unmet<'a> {
    /// This key.
    Key(Cow<'a, str>),
    /// Its expression, of which nobody can tell whether it holds, for this reason.
    Untold(String),
    /// Scopes alone: the rest is as wanted.
    Scopes,
}

impl fmt::Display for Unmet<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Key(key) => f.write_str(key),
            Self::Untold(why) => write!(f, "cel, which cannot be evaluated ({why})"),
            Self::Scopes => f.write_str("scopes"),
        }
    }
}

impl Rule {
    /// The first thing that is not as the rule wants it; scopes come last.
    pub(super) fn unmet(&self, request: &RequestHeader, ctx: &Context) -> Option<Unmet<'_>> {
        if self.methods.as_ref().is_some_and(|methods| !methods.contains(&request.method)) {
            return Some(Unmet::Key("methods".into()));
        }
        if let Some(key) = self.caller.unmet(ctx) {
            return Some(Unmet::Key(key));
        }
        match self.cel.as_ref().map(|cel| cel.holds(request, ctx)) {
            None | Some(Ok(true)) => {}
            Some(Ok(false)) => return Some(Unmet::Key("cel".into())),
            Some(Err(why)) => return Some(Unmet::Untold(why)),
        }
        (!self.has_scopes(ctx)).then_some(Unmet::Scopes)
    }

    fn has_scopes(&self, ctx: &Context) -> bool {
        let has = |wanted: &String| scopes(ctx.principal.as_deref()).any(|scope| scope == wanted);
        self.scopes.iter().all(has)
    }

    /// Whether it stands in the way, as a rule of `deny`.
    pub(super) fn denies(&self, request: &RequestHeader, ctx: &Context) -> bool {
        match self.unmet(request, ctx) {
            None => true,
            // Where nobody can tell whether it stands in the way, it does; not where the rest of it does not hold.
            Some(Unmet::Untold(_)) => self.has_scopes(ctx),
            Some(Unmet::Key(_) | Unmet::Scopes) => false,
        }
    }

    /// The fact that must hold before it is asked.
    pub(super) fn needs(&self) -> Option<Fact> {
        let of_caller = self.caller.needs().or_else(|| self.cel.as_ref().and_then(Expression::needs));
        of_caller.or_else(|| (!self.scopes.is_empty()).then_some(Fact::Consumer))
    }

    /// The scopes that it wants.
    pub(super) fn scopes(&self) -> &[String] {
        &self.scopes
    }
}

/// The rules of one filter.
pub(super) fn rules(options: Options) -> Result<Authorize, BuildError> {
    let Options { scopes, groups, consumers, claims, methods, clients, cel, allow, deny } = options;
    let only = RuleSpec { name: None, scopes, groups, consumers, claims, methods, clients, cel, any: false };
    if allow.is_empty() && deny.is_empty() {
        let rule = rule(only, "allow".into(), &Path::new())?;
        return Ok(Authorize { allow: vec![rule], deny: Vec::new() });
    }
    if let Some(key) = only.keys().first() {
        return Err(BuildError::at(key, "belongs into a rule of `allow` or `deny`, where there are any"));
    }
    if allow.is_empty() {
        let message =
            "no rule allows anything, so nobody would pass: add `allow`, such as `allow: [{any: true}]`";
        return Err(BuildError::at("deny", message));
    }
    let allow = list("allow", allow)?;
    let deny = list("deny", deny)?;
    for (at, rule) in deny.iter().enumerate() {
        if allow.iter().chain(&deny[..at]).any(|other| other.name == rule.name) {
            let path = Path::new().join("deny").join(at).join("name");
            let message = format!("another rule is called `{}` already", rule.name);
            return Err(BuildError { path, message, hint: None });
        }
    }
    Ok(Authorize { allow, deny })
}

fn list(key: &str, specs: Vec<RuleSpec>) -> Result<Vec<Rule>, BuildError> {
    let mut rules: Vec<Rule> = Vec::with_capacity(specs.len());
    for (at, spec) in specs.into_iter().enumerate() {
        let path = Path::new().join(key).join(at);
        let rule = rule(spec, format!("{key}[{at}]"), &path)?;
        if rules.iter().any(|other| other.name == rule.name) {
            let message = format!("another rule is called `{}` already", rule.name);
            return Err(BuildError { path: path.join("name"), message, hint: None });
        }
        rules.push(rule);
    }
    Ok(rules)
}

fn rule(spec: RuleSpec, place: String, path: &Path) -> Result<Rule, BuildError> {
    let wrong = |key: &str, message: &str| {
        Err(BuildError { path: path.join(key), message: message.to_owned(), hint: None })
    };
    match (spec.any, spec.keys().as_slice()) {
        (false, []) => {
            let message = "holds for everybody: add what must be so, such as `groups: [partners]`";
            return Err(BuildError { path: path.clone(), message: message.to_owned(), hint: None });
        }
        (true, [_, ..]) => return wrong("any", "holds for every request, so nothing else belongs here"),
        _ => {}
    }
    if let Some(key) = spec.empty() {
        return wrong(key, "expected at least one");
    }
    // RFC 6749 s3.3.
    let is_scope = |text: &String| {
        !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_graphic() && byte != b'"' && byte != b'\\')
    };
    let scopes = spec.scopes.unwrap_or_default();
    if !scopes.iter().all(is_scope) {
        return wrong("scopes", "expected scopes without spaces, `\"` and `\\` (RFC 6749 section 3.3)");
    }
    let name = spec.name.as_ref().map_or(place, Name::to_string);
    let methods = spec.methods.map(|names| names.into_iter().map(Method::from).collect());
    let (consumers, groups, claims, clients) = (spec.consumers, spec.groups, spec.claims, spec.clients);
    let caller = CallerConditions { consumers, groups, plans: None, claims, clients };
    Ok(Rule { name: name.into(), methods, caller, scopes, cel: spec.cel })
}

impl RuleSpec {
    /// The keys of conditions that are written.
    fn keys(&self) -> Vec<&'static str> {
        let written = [
            ("scopes", self.scopes.is_some()),
            ("groups", self.groups.is_some()),
            ("consumers", self.consumers.is_some()),
            ("claims", !self.claims.is_empty()),
            ("methods", self.methods.is_some()),
            ("clients", self.clients.is_some()),
            ("cel", self.cel.is_some()),
        ];
        written.into_iter().filter(|(_, is_written)| *is_written).map(|(key, _)| key).collect()
    }

    /// A list that is written without entries: it could be taken for no condition, or for one that nobody meets.
    fn empty(&self) -> Option<&'static str> {
        let texts = |list: &Option<Vec<String>>| list.as_ref().is_some_and(Vec::is_empty);
        let is_empty = [
            ("scopes", texts(&self.scopes)),
            ("groups", texts(&self.groups)),
            ("consumers", texts(&self.consumers)),
            ("methods", self.methods.as_ref().is_some_and(Vec::<MethodName>::is_empty)),
            ("clients", self.clients.as_ref().is_some_and(IpSet::is_empty)),
        ];
        is_empty.into_iter().find(|(_, is_empty)| *is_empty).map(|(key, _)| key)
    }
}
