//! The backends of an upstream at one moment: all that changes together when they change.
//!
//! A set is immutable. A registry that tells other backends leads to another set, which takes the place of the one
//! before with one store: requests go by the set of the moment they are given to a backend, and wait for nothing. What
//! stays is the very same [`Backend`] in both, with its numbers, its standing and its connections; what is gone lives
//! until the last request that it has in hand is over.

use std::collections::{HashMap, HashSet, VecDeque};
use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use arc_swap::{ArcSwap, Guard};
use http::HeaderMap;

use super::backend::Endpoint;
use super::balance::{Balancer, Place};
use super::discovery::Following;
use super::sticky::Sticky;
use super::{Backend, Upstream};
use crate::config::discovery::Registry;
use crate::config::upstream as written;

/// Where requests of an upstream go.
pub(super) enum Backends {
    /// As the document says.
    Written(Set),
    /// As a registry says.
    Told(Arc<Following>, ArcSwap<Set>),
}

/// The set of a moment, to be looked at.
pub(super) enum Now<'a> {
    Written(&'a Set),
    Told(Guard<Arc<Set>>),
}

/// Backends, and the rule that chooses among them.
pub(super) struct Set {
    pub(super) balancer: Balancer,
    /// What is written or told of each backend.
    pub(super) entries: Arc<[written::Backend]>,
    /// Whose cookie a value is; none if clients do not stay with their backends.
    cookies: HashMap<String, Arc<Backend>>,
    /// The number of each backend, for who notes which were tried.
    numbers: Box<[usize]>,
}

impl Backends {
    /// The backends that are written, or that are known of the registry already; of one that is new here, those that
    /// there were before, until it tells its own.
    pub(super) fn build(
        written: &written::Upstream,
        base: &Path,
        sticky: Option<&Sticky>,
        retained: Option<&Upstream>,
    ) -> Self {
        let registry = written.discovery.as_ref().and_then(|discovery| discovery.registry().ok());
        let following = registry.map(|registry| {
            let same = retained.and_then(Upstream::following).filter(|old| old.follows(registry, base));
            same.map_or_else(|| Arc::new(newly_followed(registry, base, written, retained)), Arc::clone)
        });
        let entries = match &following {
            Some(following) => following.backends(),
            None => written.backends.clone().into(),
        };
        let backends = continued(written, &entries, retained);
        let numbers = (0..backends.len()).collect();
        let set = Set::new(written, sticky, entries, backends, numbers);
        match following {
            Some(following) => Self::Told(following, ArcSwap::from_pointee(set)),
            None => Self::Written(set),
        }
    }

    /// The set of this moment.
    pub(super) fn now(&self) -> Now<'_> {
        match self {
            Self::Written(set) => Now::Written(set),
            Self::Told(_, set) => Now::Told(set.load()),
        }
    }

    pub(super) const fn following(&self) -> Option<&Arc<Following>> {
        match self {
            Self::Written(_) => None,
            Self::Told(following, _) => Some(following),
        }
    }

    /// Takes in what the registry told last; whether that is anything new. Names that are known are reached from the
    /// first request on. One caller at a time.
    pub(super) fn renew(
        &self,
        written: &written::Upstream,
        sticky: Option<&Sticky>,
        known: &dyn Fn(&str) -> Vec<IpAddr>,
    ) -> bool {
        let Self::Told(following, set) = self else { return false };
        let (before, entries) = (set.load_full(), following.backends());
        if Arc::ptr_eq(&before.entries, &entries) {
            return false;
        }
        let after = before.succeeded_by(written, sticky, entries);
        let stay: HashSet<_> = before.balancer.backends().iter().map(Arc::as_ptr).collect();
        let new = after.balancer.backends().iter().filter(|backend| !stay.contains(&Arc::as_ptr(backend)));
        new.for_each(|backend| reach(backend, known));
        set.store(Arc::new(after));
        true
    }
}

impl std::ops::Deref for Now<'_> {
    type Target = Set;

    fn deref(&self) -> &Set {
        match self {
            Self::Written(set) => set,
            Self::Told(set) => set,
        }
    }
}

impl Set {
    fn new(
        written: &written::Upstream,
        sticky: Option<&Sticky>,
        entries: Arc<[written::Backend]>,
        backends: Vec<Arc<Backend>>,
        numbers: Box<[usize]>,
    ) -> Self {
        let health = written.health.as_ref();
        let outlier = health.and_then(|health| health.outlier.clone());
        let warm_up = health.and_then(|health| health.slow_start).map(|time| time.get());
        let value =
            |sticky: &Sticky, backend: &Arc<Backend>| (sticky.value(backend.written()), backend.clone());
        // Of an address that is written twice, the first.
        let cookies = |sticky| backends.iter().rev().map(|backend| value(sticky, backend)).collect();
        let cookies = sticky.map(cookies).unwrap_or_default();
        let weighed = backends.into_iter().zip(entries.iter().map(|entry| entry.weight)).collect();
        let balancer = Balancer::new(written.balance.algorithm, weighed)
            .judged_by(outlier, warm_up, &written.name.shared())
            .grouped(&places(written, &entries), written.balance.failover_below)
            .numbered(&numbers);
        Self { balancer, entries, cookies, numbers }
    }

    /// The set after this one. Who stays, stays as it is. Who is new begins with a small share, if that is written and
    /// somebody stays, and is probed first, if there is a check and those who stay can do without it.
    fn succeeded_by(
        &self,
        written: &written::Upstream,
        sticky: Option<&Sticky>,
        entries: Arc<[written::Backend]>,
    ) -> Self {
        let health = written.health.as_ref();
        let is_probed = health.is_some_and(|health| health.active.is_some());
        let warms_up = health.is_some_and(|health| health.slow_start.is_some());
        let known = self.balancer.backends().iter().zip(&self.numbers);
        let known: HashMap<_, _> =
            known.map(|(backend, number)| (backend.written(), (backend, *number))).collect();
        let stays = |entry: &&written::Backend| {
            known.get(&entry.address).is_some_and(|(backend, _)| backend.is_well())
        };
        let staying: u32 = entries.iter().filter(stays).map(|entry| u32::from(entry.weight)).sum();
        let all: u32 = entries.iter().map(|entry| u32::from(entry.weight)).sum();
        // Nobody gets more than twice his share while others are probed.
        let is_probed = is_probed && staying > 0 && staying * 2 >= all;
        let warms_up = warms_up && staying > 0;
        // A number that was just given up may still be noted as tried by a request under way.
        let mut free = {
            let taken: HashSet<usize> = self.numbers.iter().copied().collect();
            (0..).filter(move |number| !taken.contains(number))
        };
        let build = |entry: &written::Backend| match known.get(&entry.address) {
            Some((backend, number)) => (Arc::clone(backend), *number),
            None => {
                let backend = Backend::new(&entry.address, written.tls.is_some());
                if is_probed {
                    backend.stats.standing.await_probe();
                } else if warms_up {
                    backend.stats.standing.warm(Instant::now());
                }
                (Arc::new(backend), free.next().expect("numbers have no end"))
            }
        };
        let (backends, numbers): (Vec<_>, Vec<_>) = entries.iter().map(build).unzip();
        Self::new(written, sticky, entries, backends, numbers.into())
    }

    /// The backend that a cookie is for.
    pub(super) fn by_cookie(&self, sticky: &Sticky, headers: &HeaderMap) -> Option<Arc<Backend>> {
        sticky.find(headers, |value| self.cookies.get(value).cloned())
    }

    /// Each backend with what is written or told of it.
    pub(super) fn all(&self) -> impl Iterator<Item = (&Arc<Backend>, &written::Backend)> {
        self.balancer.backends().iter().zip(&*self.entries)
    }
}

/// Gives a backend the addresses of its name, as far as they are known; of their health, nothing is.
fn reach(backend: &Backend, known: &dyn Fn(&str) -> Vec<IpAddr>) {
    let Some(name) = backend.name() else { return };
    let port = backend.written().port;
    let endpoint = |address| Endpoint { address: SocketAddr::new(address, port), health: None };
    backend.set_endpoints(known(name).into_iter().map(endpoint).collect());
}

/// A registry of which nothing is known yet, in the place of what told the backends before.
fn newly_followed(
    registry: &Registry,
    base: &Path,
    written: &written::Upstream,
    retained: Option<&Upstream>,
) -> Following {
    let following = Following::new(registry.clone(), base, written.name.shared());
    match retained {
        Some(old) => {
            following.heir_of(Arc::clone(&old.backends.now().entries), old.following().map(|old| &**old))
        }
        None => following,
    }
}

/// Where backends are among the groups.
fn places(written: &written::Upstream, entries: &[written::Backend]) -> Vec<Place> {
    let zone = written.balance.zone.as_ref();
    let elsewhere = |backend: &written::Backend| zone.is_some() && backend.zone.as_ref() != zone;
    entries.iter().map(|backend| (backend.priority, elsewhere(backend))).collect()
}

/// The backends. One that was there before, with the same address and TLS, keeps its numbers; where an address is
/// written more than once, the first is the first.
fn continued(
    written: &written::Upstream,
    entries: &[written::Backend],
    retained: Option<&Upstream>,
) -> Vec<Arc<Backend>> {
    let tls = written.tls.is_some();
    let before = retained.filter(|old| old.is_tls() == tls).map(Upstream::backends).unwrap_or_default();
    let mut known: HashMap<&written::Address, VecDeque<&Backend>> = HashMap::new();
    for backend in &before {
        known.entry(backend.written()).or_default().push_back(backend);
    }
    let build = |entry: &written::Backend| {
        let backend = Backend::new(&entry.address, tls);
        let old = known.get_mut(&entry.address).and_then(VecDeque::pop_front);
        Arc::new(match old {
            Some(old) => backend.counting_with(old),
            None => backend,
        })
    };
    entries.iter().map(build).collect()
}

#[cfg(test)]
mod tests {
    use std::time::SystemTime;

    use serde_json::{Value, json};

    use super::*;
    use crate::upstream::Tried;
    use crate::upstream::discovery::Instance;

    fn upstream(fields: Value) -> Upstream {
        let mut written =
            json!({"name": "users", "discovery": {"type": "dns", "name": "users.test", "port": 80}});
        for (key, value) in fields.as_object().unwrap() {
            written[key] = value.clone();
        }
        Upstream::build(&serde_json::from_value(written).unwrap(), Path::new(""), None).unwrap()
    }

    fn tell(upstream: &Upstream, last: &[u8]) {
        let set = last.iter().map(|last| Instance::at(&format!("192.0.2.{last}"), 80)).collect();
        assert!(upstream.following().unwrap().told(Some(set), SystemTime::now()));
        assert!(upstream.renew());
        assert!(!upstream.renew(), "once");
    }

    fn pick(upstream: &Upstream, tried: &Tried) -> (usize, String) {
        let picked = upstream.pick(b"", tried).unwrap();
        (picked.index, picked.address.ip().to_string())
    }

    #[test]
    fn a_backend_that_was_tried_is_known_as_such_in_the_next_set() {
        let users = upstream(json!({}));
        tell(&users, &[2, 3]);
        let mut tried = Tried::default();
        let (number, address) = pick(&users, &tried);
        tried.insert(number);
        tell(&users, &[1, 2, 3]);
        for _ in 0..6 {
            assert_ne!(pick(&users, &tried).1, address);
        }
        // Who comes in the place of one that is gone has not been tried.
        let left = if address == "192.0.2.2" { 3 } else { 2 };
        tell(&users, &[left, 9]);
        let found: HashSet<String> = (0..6).map(|_| pick(&users, &tried).1).collect();
        assert_eq!(found, HashSet::from([format!("192.0.2.{left}"), "192.0.2.9".to_owned()]));
    }

    #[test]
    fn a_failure_to_connect_is_that_of_the_backend_it_was_wherever_it_is_now() {
        let users = upstream(json!({}));
        tell(&users, &[5, 6]);
        let mut picked = users.pick(b"", &Tried::default()).unwrap();
        let is_out = |upstream: &Upstream| -> Vec<String> {
            let out = |backend: &&Arc<Backend>| backend.stats.standing.is_out();
            upstream.backends().iter().filter(out).map(|backend| backend.written().to_string()).collect()
        };
        tell(&users, &[1, 2, 5, 6]);
        users.connect_failed(&mut picked);
        assert_eq!(is_out(&users), [format!("{}", picked.backend.written())]);
        let mut picked = users.pick(b"", &Tried::default()).unwrap();
        tell(&users, &[8, 9]);
        users.connect_failed(&mut picked);
        assert!(is_out(&users).is_empty(), "it is gone");
        drop(picked);
    }

    #[test]
    fn who_is_new_is_probed_first_where_at_least_half_stay_that_can_take_the_requests() {
        let users = upstream(json!({"health": {"active": {"type": "tcp"}}}));
        let unprobed_after = |set: &[u8]| {
            tell(&users, set);
            users.backends().iter().filter(|backend| backend.stats.standing.awaits_probe()).count()
        };
        let all: Vec<u8> = (1..=21).collect();
        assert_eq!(unprobed_after(&all[..20]), 0, "nobody was there");
        assert_eq!(unprobed_after(&all[..1]), 0);
        assert_eq!(unprobed_after(&all[..20]), 0, "one cannot take it all");
        assert_eq!(unprobed_after(&all[..10]), 0);
        assert_eq!(unprobed_after(&all[..20]), 10);
        assert_eq!(unprobed_after(&all), 10, "those that wait themselves take nothing");
    }

    #[test]
    fn where_all_are_new_they_share_the_requests_from_the_first_one_on() {
        for health in [json!({"active": {"type": "tcp"}}), json!({"slow_start": "1h"})] {
            let users = upstream(json!({ "health": health }));
            tell(&users, &[1, 2]);
            tell(&users, &[3, 4]);
            let found: Vec<String> = (0..6).map(|_| pick(&users, &Tried::default()).1).collect();
            assert!(found.windows(2).all(|pair| pair[0] != pair[1]), "{health}: {found:?}");
        }
    }

    #[test]
    fn a_name_that_is_known_is_reached_from_the_first_request_on() {
        let users = upstream(json!({}));
        let set = ["a.test", "b.test"].map(|host| Instance::at(host, 80)).into();
        assert!(users.following().unwrap().told(Some(set), SystemTime::now()));
        let known = |host: &str| match host {
            "b.test" => vec![IpAddr::from([192, 0, 2, 2])],
            _ => Vec::new(),
        };
        assert!(users.renew_with(&known));
        assert_eq!(pick(&users, &Tried::default()).1, "192.0.2.2");
    }

    #[test]
    fn a_cookie_leads_to_its_backend_for_as_long_as_that_is_there() {
        let users = upstream(json!({"balance": {"sticky": {"cookie": "lb", "secret": "s3cret"}}}));
        tell(&users, &[7, 8]);
        let eight = users.backends()[1].clone();
        let cookie = users.stick(&eight, false).unwrap();
        let mut request = pingora::http::RequestHeader::build("GET", b"/", None).unwrap();
        let pair = cookie.to_str().unwrap().split(';').next().unwrap().to_owned();
        request.insert_header("cookie", pair).unwrap();
        tell(&users, &[1, 2, 8]);
        let stuck = users.stuck_to(&request).unwrap();
        assert!(Arc::ptr_eq(&stuck, &eight));
        let picked = users.pick_for(Some(&stuck), b"", &Tried::default()).unwrap();
        assert_eq!(picked.address.to_string(), "192.0.2.8:80");
        tell(&users, &[1, 2]);
        assert!(users.stuck_to(&request).is_none());
        let other = users.pick_for(Some(&stuck), b"", &Tried::default()).unwrap();
        assert_ne!(other.address.to_string(), "192.0.2.8:80", "it was gone in the meantime");
    }

    #[test]
    fn weights_groups_and_zones_are_those_that_are_told() {
        let users = upstream(json!({"balance": {"zone": "a"}}));
        let instance = |last: u8, weight, priority, zone: &str| Instance {
            weight: Some(weight),
            priority: Some(priority),
            zone: Some(zone.into()),
            ..Instance::at(&format!("192.0.2.{last}"), 80)
        };
        let told = |set| {
            users.following().unwrap().told(Some(set), SystemTime::now());
            users.renew();
            let found: HashSet<String> = (0..20).map(|_| pick(&users, &Tried::default()).1).collect();
            found.into_iter().collect::<Vec<_>>().join(",")
        };
        assert_eq!(told(vec![instance(1, 1, 0, "a"), instance(2, 1, 0, "b")]), "192.0.2.1");
        assert_eq!(told(vec![instance(1, 1, 1, "a"), instance(2, 1, 0, "b")]), "192.0.2.2");
        assert_eq!(told(vec![instance(1, 0, 0, "a"), instance(2, 1, 0, "b")]), "192.0.2.2");
    }

    #[test]
    fn a_connection_of_a_backend_that_is_gone_is_closed_once_its_last_request_is_over() {
        let users = upstream(json!({}));
        tell(&users, &[1]);
        let picked = users.pick(b"", &Tried::default()).unwrap();
        let idle = Arc::downgrade(&picked.backend.idle);
        tell(&users, &[2]);
        assert_eq!(picked.backend.in_flight(), 1, "what it has in hand goes on");
        drop(picked);
        assert!(idle.upgrade().is_none(), "nobody holds what waits there any more");
    }
}
