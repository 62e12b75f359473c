//! Who still calls a version.

use std::collections::HashMap;
use std::sync::Arc;

use parking_lot::Mutex;
use tollhouse_filters::world::{Counter, Metrics, World};

/// Consumers of one version that are counted by name; what more there are is counted together.
const MOST_CALLERS: usize = 1000;

/// Counts requests of one version, and of one that is to go also by consumer.
pub(super) struct Calls {
    all: Counter,
    old: Option<Arc<Callers>>,
}

/// What goes on over reloads: what nobody holds meanwhile begins at 0 again.
struct Callers {
    labels: [Arc<str>; 2],
    metrics: Arc<dyn Metrics>,
    known: Mutex<HashMap<Arc<str>, Caller>>,
}

struct Caller {
    requests: Counter,
    /// It called since there was last no room for others.
    called: bool,
}

impl Calls {
    pub(super) fn new(service: &Arc<str>, version: &Arc<str>, is_old: bool, world: &World) -> Self {
        let help = "Requests of services with versions, by version.";
        let labels = [("service", &**service), ("version", &**version)];
        let all = world.metrics.counter("tollhouse_version_requests_total", help, &labels);
        let make = || {
            let labels = [service.clone(), version.clone()];
            Arc::new(Callers { labels, metrics: world.metrics.clone(), known: Mutex::default() })
        };
        let shape = format!("callers\n{service}\n{version}");
        let old = is_old.then(|| world.retained.get_or_make(&shape, make));
        if let Some(old) = &old {
            old.tidy();
        }
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
    /// Lets go of callers that did not call since the document before, where there is no room for others: no version
    /// is told who is gone.
    fn tidy(&self) {
        let mut known = self.known.lock();
        if known.len() >= MOST_CALLERS {
            known.retain(|_, caller| std::mem::take(&mut caller.called));
        }
    }

    fn count(&self, consumer: Option<&Arc<str>>) {
        let nobody = || Arc::from("none");
        let mut known = self.known.lock();
        let name = match consumer {
            Some(name) if known.contains_key(name) || known.len() < MOST_CALLERS => name.clone(),
            Some(_) => Arc::from("other"),
            None => nobody(),
        };
        let caller = known.entry(name.clone());
        let caller = caller.or_insert_with(|| Caller { requests: self.counter(&name), called: true });
        caller.called = true;
        caller.requests.inc();
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
    use std::collections::HashSet;

    use tollhouse_filters::world::MemoryMetrics;

    use super::*;
    use crate::observe::Registry;
    use crate::observe::metrics::Live;

    #[test]
    fn callers_of_an_old_version_are_counted_by_name_up_to_a_number() {
        let memory = Arc::new(MemoryMetrics::new());
        let world = World { metrics: memory.clone(), ..World::dry() };
        let calls = Calls::new(&"users".into(), &"1".into(), true, &world);
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

    #[test]
    fn who_is_quiet_from_one_document_to_the_next_makes_room_where_there_is_none() {
        let memory = Arc::new(MemoryMetrics::new());
        let world = World { metrics: memory.clone(), ..World::dry() };
        let document = || Calls::new(&"users".into(), &"1".into(), true, &world);
        let call = |calls: &Calls, caller: u32| calls.count(Some(&format!("c{caller}").into()));
        let mut running = document();
        (0..1000).for_each(|caller| call(&running, caller));
        running = document();
        call(&running, 1000);
        (0..10).for_each(|caller| call(&running, caller));
        running = document();
        [1000, 7].into_iter().for_each(|caller| call(&running, caller));
        let of = |consumer| {
            let labels = [("service", "users"), ("version", "1"), ("consumer", consumer)];
            memory.value("tollhouse_old_version_requests_total", &labels)
        };
        assert_eq!([of("other"), of("c1000"), of("c7")], [Some(1), Some(1), Some(3)]);
    }

    #[test]
    fn a_caller_that_is_quiet_over_reloads_is_counted_on() {
        let registry = Registry::new(100);
        let world = World { metrics: registry.clone(), ..World::dry() };
        let document = || Calls::new(&"users".into(), &"1".into(), true, &world);
        let mut running = document();
        running.count(Some(&"acme".into()));
        let nothing = HashSet::new();
        let live = Live { listeners: &nothing, routes: &nothing, upstreams: &nothing };
        for _ in 0..3 {
            running = document();
            registry.retain(&live);
        }
        running.count(Some(&"acme".into()));
        let labels = "consumer=\"acme\",service=\"users\",version=\"1\"";
        let expected = format!("tollhouse_old_version_requests_total{{{labels}}} 2");
        let page = registry.render();
        assert!(page.lines().any(|line| line == expected), "{page}");
        drop(running);
        (0..2).for_each(|_| registry.retain(&live));
        assert!(!registry.render().contains("acme"), "a version that is gone keeps nothing");
    }
}
