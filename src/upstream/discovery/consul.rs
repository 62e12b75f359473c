//! Consul: the healthy instances of a service, by blocking queries
//! (<https://developer.hashicorp.com/consul/api-docs/features/blocking>).

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use serde::Deserialize;

use super::http::{Answer, Api, Question, encoded, query, scaled};
use super::{Directory, Failed, Following, Instance, Tell, World, jittered};
use crate::config::discovery::ConsulDiscovery;

/// What a question may take beyond the time that it is held for, of which Consul itself takes a sixteenth.
const GRACE: Duration = Duration::from_secs(10);
/// Answers that come sooner are too many if they go on; two are let pass, as Consul advises.
const QUICK: Duration = Duration::from_secs(1);
const BURST: u32 = 2;
/// Says that there is more than the token may see (<https://developer.hashicorp.com/consul/api-docs>, "Results Filtered
/// by ACLs").
const FILTERED: &str = "x-consul-results-filtered-by-acls";

/// A service in Consul.
pub(super) struct Consul {
    api: Api,
    written: ConsulDiscovery,
    /// The last answer was not all that there is.
    filtered: AtomicBool,
}

/// What of an entry of `/v1/health/service/NAME` is used.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Entry {
    node: Node,
    service: Service,
    #[serde(default)]
    checks: Option<Vec<Check>>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
#[derive(Default)]
struct Node {
    address: String,
    locality: Option<Locality>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct Service {
    address: String,
    port: u32,
    weights: Option<Weights>,
    locality: Option<Locality>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct Locality {
    zone: String,
}

#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Weights {
    passing: f64,
    warning: f64,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Check {
    status: String,
}

impl Consul {
    pub(super) fn new(written: &ConsulDiscovery, following: &Following, world: &World) -> Self {
        let api = Api::new(&written.address, written.tls.as_ref(), following.base(), world);
        Self { api, written: written.clone(), filtered: AtomicBool::new(false) }
    }

    /// What is asked for: with an index, held back until something changes.
    fn question(&self, index: u64) -> Question<'static> {
        let written = &self.written;
        let (held, wait) = (index.to_string(), format!("{}s", written.wait.get().as_secs().max(1)));
        let blocking = index > 0;
        let mut pairs = vec![
            ("passing", written.passing_only.then_some("true")),
            ("dc", written.datacenter.as_deref()),
            ("ns", written.namespace.as_deref()),
            ("index", blocking.then_some(held.as_str())),
            ("wait", blocking.then_some(wait.as_str())),
        ];
        pairs.extend(written.tags.iter().map(|tag| ("tag", Some(tag.as_str()))));
        let path = format!("{}/v1/health/service/{}", self.api.path(), encoded(&written.service));
        let mut question = Question::get(format!("{path}?{}", query(&pairs)));
        if let Some(token) = &written.token {
            question.fields.push(("x-consul-token", token.expose().to_owned()));
        }
        if blocking {
            question.limit = written.wait.get().mul_f64(17.0 / 16.0) + GRACE;
        }
        question
    }

    /// The instances of an answer. One that is empty because the token may see none does not say that there are none.
    fn told(&self, answer: &Answer) -> Result<Vec<Instance>, Failed> {
        let entries: Vec<Entry> = answer.json()?;
        let filtered = answer.headers.get(FILTERED).is_some_and(|value| value == "true");
        if filtered && entries.is_empty() {
            return Err("the token may not see the instances; it needs `service:read` and `node:read`".into());
        }
        if filtered && !self.filtered.load(Ordering::Relaxed) {
            let service = &*self.written.service;
            log::warn!(registry = "consul", service; "the token may not see all instances; the others are used");
        }
        self.filtered.store(filtered, Ordering::Relaxed);
        Ok(instances(&entries))
    }
}

#[async_trait]
impl Directory for Consul {
    async fn follow(&self, tell: &Tell) -> Failed {
        let (mut index, mut quick) = (0, 0);
        loop {
            let asked = Instant::now();
            let answer = match self.api.ask(self.question(index)).await {
                Ok(answer) => answer,
                Err(why) => return why,
            };
            match self.told(&answer) {
                Ok(instances) => tell.set(instances),
                Err(why) => return why,
            }
            let told =
                answer.headers.get("x-consul-index").and_then(|index| index.to_str().ok()?.parse().ok());
            index = next(index, told.unwrap_or(0));
            quick = if asked.elapsed() < QUICK { quick + 1 } else { 0 };
            if quick > BURST {
                tokio::time::sleep(jittered(QUICK)).await;
            }
        }
    }
}

/// The index of the next question: from the start if it went backwards, and never one that Consul does not wait for.
const fn next(before: u64, told: u64) -> u64 {
    match told {
        told if told < before => 0,
        0 => 1,
        told => told,
    }
}

/// Those that are not critical; the weight is that of their state.
fn instances(entries: &[Entry]) -> Vec<Instance> {
    let state = |entry: &Entry, wanted: &str| {
        entry.checks.iter().flatten().any(|check| check.status.eq_ignore_ascii_case(wanted))
    };
    let usable: Vec<&Entry> =
        entries.iter().filter(|entry| !state(entry, "critical") && !state(entry, "maintenance")).collect();
    let weight = |entry: &&Entry| match entry.service.weights {
        Some(weights) if state(entry, "warning") => weights.warning,
        Some(weights) => weights.passing,
        None => 1.0,
    };
    let weights = scaled(&usable.iter().map(weight).collect::<Vec<_>>());
    let instance = |(entry, weight): (&&Entry, u32)| {
        let Entry { node, service, .. } = *entry;
        let host = if service.address.is_empty() { &node.address } else { &service.address };
        let locality = service.locality.as_ref().or(node.locality.as_ref());
        let zone = locality.map(|locality| locality.zone.as_str()).filter(|zone| !zone.is_empty());
        Instance { weight: Some(weight), zone: zone.map(Into::into), ..Instance::at(host, service.port) }
    };
    usable.iter().zip(weights).map(instance).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_index_that_goes_backwards_begins_anew_and_none_is_zero_after_an_answer() {
        assert_eq!([next(0, 7), next(7, 9), next(9, 8), next(0, 0), next(5, 0)], [7, 9, 0, 1, 0]);
    }
}
