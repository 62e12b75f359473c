//! Which facts hold where: a filter that needs one must come after a filter that establishes it. And which filters
//! must not come before or after which others, or twice.

use std::collections::HashSet;
use std::sync::Arc;

use tollhouse_filters::filter::Fact;
use tollhouse_filters::pipeline::{Pipeline, Step};

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

/// On which side of a filter others must not stand.
struct Order {
    filter: &'static str,
    /// Whether that is before it, or after it.
    before: bool,
    others: &'static [&'static str],
    /// What is wrong with them there.
    told: &'static str,
}

const ORDERS: [Order; 3] = [
    // What decides who may have an answer.
    Order {
        filter: "cache",
        before: false,
        others: &["authenticate", "authorize", "forward_auth", "ip_access"],
        told: "stands behind a `cache`, which would answer those that it refuses; write it before",
    },
    Order {
        filter: "cache",
        before: true,
        others: &["mirror"],
        told: "stands before a `cache`, where nobody knows yet what the upstream gets; write it behind",
    },
    Order {
        filter: "decompress",
        before: true,
        others: &["mirror"],
        told: "stands before a `decompress`, where bodies have a coding still; write it behind",
    },
];

impl Order {
    /// The first of these steps that stands where it must not.
    fn wrong<'s>(&self, steps: &[&'s Arc<Step>]) -> Option<&'s Arc<Step>> {
        let is_it = |step: &&Arc<Step>| step.filter == self.filter;
        let side = match self.before {
            true => &steps[..steps.iter().rposition(is_it)?],
            false => &steps[steps.iter().position(is_it)?..],
        };
        side.iter().find(|step| self.others.contains(&step.filter)).copied()
    }
}

/// What the user is told of the first step that stands where it must not, in pipelines that run one after the
/// other.
fn misplaced<'a>(pipelines: impl IntoIterator<Item = &'a Arc<Pipeline>>) -> Option<String> {
    let mut steps: Vec<&Arc<Step>> = Vec::new();
    for step in pipelines.into_iter().flat_map(|pipeline| pipeline.steps()) {
        // One that stands there again does not run again.
        match steps.iter().position(|known| Arc::ptr_eq(known, step)) {
            None => steps.push(step),
            Some(first) => {
                if let Some(told) = missed(step, &steps[first + 1..]) {
                    return Some(format!("filter `{}` {told}", step.instance));
                }
            }
        }
    }
    let wrong = |order: &Order| Some(format!("filter `{}` {}", order.wrong(&steps)?.instance, order.told));
    ORDERS.iter().find_map(wrong)
}

/// What is wrong with a step that stands there again, where it might do something else if it ran, as these ran since.
fn missed(step: &Step, since: &[&Arc<Step>]) -> Option<String> {
    if step.is_conditional() {
        let told =
            "runs only where it stands first, and its `when` may say something else here; write it once";
        return Some(told.to_owned());
    }
    // Who calls may be known now, or be another one.
    let tells = |step: &Step| step.filter == "authenticate" || !step.declared.provides.is_empty();
    let who = &since.iter().find(|step| tells(step))?.instance;
    Some(format!("runs only where it stands first, before `{who}` tells who calls; write it once"))
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
    misplaced(pipelines)
        .or_else(|| unmet().map(|(instance, fact)| message(&instance, fact)))
        .or_else(|| keys.iter().find_map(lacking))
}

/// What the user is told.
pub(super) fn message(instance: &str, fact: Fact) -> String {
    format!("filter `{instance}` needs {fact}, but nothing before it establishes that")
}
