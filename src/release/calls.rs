//! Who still calls a version.

use std::collections::HashMap;
use std::sync::Arc;

use parking_lot::Mutex;
use tollhouse_filters::world::{Counter, Metrics};

/// Consumers of one version that are counted by name; what more there are is counted together.
const MOST_CALLERS: usize = 1000;

/// Counts requests of one version, and of one that is to go also by consumer.
pub(super) struct Calls {
    all: Counter,
    old: Option<Callers>,
}

struct Callers {
    labels: [Arc<str>; 2],
    metrics: Arc<dyn Metrics>,
    known: Mutex<HashMap<Arc<str>, Counter>>,
}

impl Calls {
    pub(super) fn new(
        service: &Arc<str>,
        version: &Arc<str>,
        is_old: bool,
        metrics: &Arc<dyn Metrics>,
    ) -> Self {
        let help = "Requests of services with versions, by version.";
        let labels = [("service", &**service), ("version", &**version)];
        let all = metrics.counter("tollhouse_version_requests_total", help, &labels);
        let old = is_old.then(|| Callers {
            labels: [service.clone(), version.clone()],
            metrics: metrics.clone(),
            known: Mutex::default(),
        });
        Self { all, old }
    }

    pub(super) fn count(&self, consumer: Option<&Arc<str>>) {
        self.all.inc();
        if let Some(old) = &self.old {
            old.count(consumer);
        }
    }
}

impl Callers {
    fn count(&self, consumer: Option<&Arc<str>>) {
        let nobody = || Arc::from("none");
        let mut known = self.known.lock();
        let name = match consumer {
            Some(name) if known.contains_key(name) || known.len() < MOST_CALLERS => name.clone(),
            Some(_) => Arc::from("other"),
            None => nobody(),
        };
        known.entry(name.clone()).or_insert_with(|| self.counter(&name)).inc();
    }

    fn counter(&self, consumer: &str) -> Counter {
        let help = "Requests of versions that are deprecated or have an end, by who sent them.";
        let [service, version] = &self.labels;
        let labels = [("service", &**service), ("version", &**version), ("consumer", consumer)];
        self.metrics.counter("tollhouse_old_version_requests_total", help, &labels)
    }
}

#[cfg(test)]
mod tests {
    use tollhouse_filters::world::MemoryMetrics;

    use super::*;

    #[test]
    fn callers_of_an_old_version_are_counted_by_name_up_to_a_number() {
        let memory = Arc::new(MemoryMetrics::new());
        let metrics: Arc<dyn Metrics> = memory.clone();
        let calls = Calls::new(&"users".into(), &"1".into(), true, &metrics);
        for caller in 0..1010 {
            calls.count(Some(&format!("c{caller}").into()));
        }
        calls.count(Some(&"c7".into()));
        calls.count(None);
        let of = |consumer| {
            let labels = [("service", "users"), ("version", "1"), ("consumer", consumer)];
            memory.value("tollhouse_old_version_requests_total", &labels)
        };
        assert_eq!([of("c7"), of("other"), of("none"), of("c1009")], [Some(2), Some(10), Some(1), None]);
        let all = [("service", "users"), ("version", "1")];
        assert_eq!(memory.value("tollhouse_version_requests_total", &all), Some(1012));
    }
}
