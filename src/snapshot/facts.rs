//! Which facts hold where: a filter that needs one must come after a filter that establishes it.

use std::collections::HashSet;
use std::sync::Arc;

use tollhouse_filters::filter::Fact;
use tollhouse_filters::pipeline::Pipeline;

/// The first of these facts that nothing in pipelines that run one after the other establishes.
fn missing<'a>(needs: &[Fact], pipelines: impl IntoIterator<Item = &'a Arc<Pipeline>>) -> Option<Fact> {
    let steps = pipelines.into_iter().flat_map(|pipeline| pipeline.steps());
    let known: HashSet<Fact> = steps
        .filter(|step| step.is_unconditional())
        .flat_map(|step| step.declared.provides.iter().copied())
        .collect();
    needs.iter().find(|fact| !known.contains(fact)).copied()
}

/// The first unmet need of pipelines that run one after the other: the step's instance and the fact
/// it lacks.
pub(super) fn unmet<'a>(pipelines: impl IntoIterator<Item = &'a Arc<Pipeline>>) -> Option<(Arc<str>, Fact)> {
    let mut known = HashSet::new();
    for step in pipelines.into_iter().flat_map(|pipeline| pipeline.steps()) {
        if let Some(fact) = step.declared.needs.iter().find(|fact| !known.contains(*fact)) {
            return Some((step.instance.clone(), *fact));
        }
        if step.is_unconditional() {
            known.extend(step.declared.provides.iter().copied());
        }
    }
    None
}

/// What decides who may have an answer.
const GATES: [&str; 4] = ["authenticate", "authorize", "forward_auth", "ip_access"];

/// What the user is told of the first gate behind a cache in pipelines that run one after the other: stored answers
/// would pass it by.
fn behind_cache<'a>(pipelines: impl IntoIterator<Item = &'a Arc<Pipeline>>) -> Option<String> {
    let mut steps = pipelines.into_iter().flat_map(|pipeline| pipeline.steps());
    steps.find(|step| step.filter == "cache")?;
    let instance = &steps.find(|step| GATES.contains(&step.filter))?.instance;
    let told = "stands behind a `cache`, which would answer those that it refuses; write it before";
    Some(format!("filter `{instance}` {told}"))
}

/// What the user is told of a route's way through the pipelines of its listener, its service and its own, and of
/// the keys that need facts after them; a listener's own needs are told of where it is written.
pub(super) fn wrong(pipelines: [&Arc<Pipeline>; 3], keys: &[(String, &[Fact])]) -> Option<String> {
    let [_, shared, own] = pipelines;
    let is_needy = |pipeline: &Pipeline| pipeline.steps().iter().any(|step| !step.declared.needs.is_empty());
    let unmet = || unmet(pipelines).filter(|_| is_needy(shared) || is_needy(own));
    let lacking = |(key, needs): &(String, &[Fact])| {
        let fact = missing(needs, pipelines)?;
        Some(format!("{key} needs {fact}, but nothing before it establishes that"))
    };
    behind_cache(pipelines)
        .or_else(|| unmet().map(|(instance, fact)| message(&instance, fact)))
        .or_else(|| keys.iter().find_map(lacking))
}

/// What the user is told.
pub(super) fn message(instance: &str, fact: Fact) -> String {
    format!("filter `{instance}` needs {fact}, but nothing before it establishes that")
}
