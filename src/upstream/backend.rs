//! One backend: where it is.

use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;

use super::health::{Health, State};
use super::idle::Idle;
use super::names::Name;
use super::stats::Stats;
use super::view::AddressView;
use crate::config::upstream::{self as written, Host, relative};

/// One address of an upstream. A host name holds the last good answer of the resolver, which may
/// be several addresses used in turn, or none yet.
#[derive(Debug)]
pub struct Backend {
    written: written::Address,
    authority: Box<str>,
    endpoints: ArcSwap<Endpoints>,
    /// What is known about the host name; set once somebody looks it up.
    resolution: OnceLock<Arc<Name>>,
    turn: AtomicUsize,
    /// Set when connecting over the other family failed; `localhost` is often only one of both.
    prefer_v6: AtomicBool,
    pub(super) stats: Arc<Stats>,
    pub(super) idle: Arc<Idle>,
}

/// An address to connect to, and what probes tell about it.
#[derive(Debug, Clone)]
pub(super) struct Endpoint {
    pub(super) address: SocketAddr,
    /// None without a check: such an address is always used.
    pub(super) health: Option<Arc<Health>>,
}

/// The endpoints of a backend by family.
#[derive(Debug, Default)]
struct Endpoints {
    v4: Vec<Endpoint>,
    v6: Vec<Endpoint>,
}

impl Backend {
    /// A backend; a name has no addresses before [`Backend::set_endpoints`].
    pub(super) fn new(written: &written::Address, tls: bool) -> Self {
        let endpoints = match written.host {
            Host::Ip(ip) => vec![Endpoint { address: SocketAddr::new(ip, written.port), health: None }],
            Host::Name(_) => Vec::new(),
        };
        Self {
            authority: authority(written, tls),
            written: written.clone(),
            endpoints: ArcSwap::from_pointee(Endpoints::from(endpoints)),
            resolution: OnceLock::new(),
            turn: AtomicUsize::new(0),
            prefer_v6: AtomicBool::new(false),
            stats: Arc::default(),
            idle: Arc::default(),
        }
    }

    /// Goes on where the same backend of an earlier snapshot is: with its numbers and its connections.
    pub(super) fn counting_with(mut self, other: &Self) -> Self {
        self.stats = Arc::clone(&other.stats);
        self.idle = Arc::clone(&other.idle);
        self
    }

    /// The address as written, `host:port`; the label of metrics and logs.
    pub const fn written(&self) -> &written::Address {
        &self.written
    }

    /// The host name, if the backend is not written as an IP address.
    pub fn name(&self) -> Option<&str> {
        match &self.written.host {
            Host::Name(name) => Some(name),
            Host::Ip(_) => None,
        }
    }

    /// What `Host` is when it names this backend: the port is left out where it is the scheme's own
    /// (RFC 9110 section 4.2).
    pub fn authority(&self) -> &str {
        &self.authority
    }

    /// Requests this backend has in hand, over all snapshots that name it.
    pub fn in_flight(&self) -> usize {
        self.stats.in_flight()
    }

    /// How long it takes until the head of an answer is here: a moving average that rises at once and
    /// falls over some ten seconds. `None` before the first answer. A failure counts as a second at least.
    pub fn latency(&self) -> Option<Duration> {
        self.stats.latency()
    }

    /// Requests it was chosen for since it was first named, each attempt for itself.
    pub fn requests(&self) -> u64 {
        self.stats.requests()
    }

    /// Those of them that failed: no connection, no whole answer, a timeout, or a status of 500 or more.
    pub fn failures(&self) -> u64 {
        self.stats.failures()
    }

    /// Whether there is an address to connect to, healthy or not.
    pub fn is_resolved(&self) -> bool {
        self.endpoints.load().all().next().is_some()
    }

    /// Whether it is reached at one address alone.
    pub(super) fn has_one_address(&self) -> bool {
        self.endpoints.load().all().count() == 1
    }

    /// Whether some address can get requests.
    pub fn is_usable(&self) -> bool {
        self.endpoints.load().all().any(|endpoint| endpoint.state() != State::Unhealthy)
    }

    /// Whether it is there for requests, as far as anybody knows.
    pub(super) fn is_well(&self) -> bool {
        let standing = &self.stats.standing;
        !standing.is_out() && !standing.awaits_probe() && self.is_usable()
    }

    /// Whether some address is known to work, or is not checked.
    pub(super) fn is_healthy(&self) -> bool {
        self.endpoints.load().all().any(|endpoint| endpoint.state() == State::Healthy)
    }

    /// Whether it is known what to think of it: some address works or is not checked, or each one was probed.
    pub(super) fn is_probed(&self) -> bool {
        let endpoints = self.endpoints.load();
        let all_were = endpoints.all().all(|endpoint| endpoint.state() != State::Unknown);
        self.is_healthy() || (all_were && endpoints.all().next().is_some())
    }

    /// The address for the next request: healthy ones in turn, then ones that were not probed yet. Those that could
    /// not be connected to come last. `None` while there is none at all.
    pub(super) fn next_address(&self) -> Option<SocketAddr> {
        let endpoints = self.endpoints.load();
        let families = endpoints.families(self.prefer_v6.load(Ordering::Relaxed));
        if !self.stats.refusals.is_empty()
            && let Some(address) = self.next_around(families, Instant::now())
        {
            return Some(address);
        }
        [State::Healthy, State::Unknown].into_iter().find_map(|state| {
            families.into_iter().find_map(|family| self.in_turn(family, |endpoint| endpoint.state() == state))
        })
    }

    /// The same without those that could not be connected to, but for one that is to be tried again.
    #[cold]
    fn next_around(&self, families: [&[Endpoint]; 2], now: Instant) -> Option<SocketAddr> {
        let refusals = &self.stats.refusals;
        refusals.lapse(now);
        [State::Healthy, State::Unknown].into_iter().find_map(|state| {
            families.into_iter().find_map(|family| {
                let fits = |endpoint: &Endpoint| endpoint.state() == state;
                let mut fitting = family.iter().filter(|endpoint| fits(endpoint));
                let due = fitting.find(|endpoint| refusals.is_due(endpoint.address, now));
                due.map(|endpoint| endpoint.address).or_else(|| {
                    self.in_turn(family, |endpoint| fits(endpoint) && !refusals.holds(endpoint.address))
                })
            })
        })
    }

    /// Notes that connecting to `address` failed: the next request tries another one, if there is one.
    pub(super) fn connect_failed(&self, address: SocketAddr) {
        self.prefer_v6.store(address.is_ipv4(), Ordering::Relaxed);
        let endpoints = self.endpoints.load();
        // One that went meanwhile is nobody's to forget.
        if endpoints.all().count() > 1 && endpoints.all().any(|endpoint| endpoint.address == address) {
            self.stats.refusals.note(address, Instant::now());
        }
    }

    /// Whether some address could not be connected to when it was tried last.
    pub(super) fn has_refusals(&self) -> bool {
        !self.stats.refusals.is_empty()
    }

    /// Whether some address is left that could be connected to when it was tried last.
    pub(super) fn is_reachable_elsewhere(&self) -> bool {
        let endpoints = self.endpoints.load();
        let mut usable = endpoints.all().filter(|endpoint| endpoint.state() != State::Unhealthy);
        !self.has_one_address() && usable.any(|endpoint| !self.stats.refusals.holds(endpoint.address))
    }

    /// What is known about the host name, once somebody looks it up.
    pub(super) fn resolution(&self) -> Option<&Arc<Name>> {
        self.resolution.get()
    }

    /// Says who looks the host name up.
    pub(super) fn set_resolution(&self, name: &Arc<Name>) {
        let _ = self.resolution.set(Arc::clone(name));
    }

    /// Where requests go from now on.
    pub(super) fn set_endpoints(&self, endpoints: Vec<Endpoint>) {
        let (new, old) = (Endpoints::from(endpoints), self.endpoints.load());
        if !new.is_like(&old) {
            self.stats.refusals.retain(|address| new.all().any(|endpoint| endpoint.address == address));
            self.endpoints.store(Arc::new(new));
        }
    }

    /// Where requests go now.
    pub(super) fn endpoints(&self) -> Vec<Endpoint> {
        self.endpoints.load().all().cloned().collect()
    }

    /// Its addresses, to be shown.
    pub(super) fn address_views(&self) -> Vec<AddressView> {
        let view = |endpoint: &Endpoint| AddressView {
            address: endpoint.address,
            health: endpoint.health.as_ref().map(|health| health.view()),
        };
        self.endpoints.load().all().map(view).collect()
    }

    /// Has this one of all its addresses be the next, counted round: whichever family it is of.
    pub(super) fn begin_with(&self, turn: usize) {
        let endpoints = self.endpoints.load();
        let next = turn.checked_rem(endpoints.all().count()).unwrap_or(0);
        let in_v6 = next.checked_sub(endpoints.v4.len());
        self.prefer_v6.store(in_v6.is_some(), Ordering::Relaxed);
        self.turn.store(in_v6.unwrap_or(next), Ordering::Relaxed);
    }

    fn in_turn(&self, family: &[Endpoint], fits: impl Fn(&Endpoint) -> bool) -> Option<SocketAddr> {
        let fitting = || family.iter().filter(|endpoint| fits(endpoint));
        let count = if family.len() > 1 { fitting().count() } else { 1 };
        let turn = if count > 1 { self.turn.fetch_add(1, Ordering::Relaxed) % count } else { 0 };
        // A probe may have changed the count in between.
        fitting().nth(turn).or_else(|| fitting().next()).map(|endpoint| endpoint.address)
    }
}

impl Endpoint {
    fn state(&self) -> State {
        self.health.as_ref().map_or(State::Healthy, |health| health.state())
    }

    fn is_same(&self, other: &Self) -> bool {
        let health = |endpoint: &Self| endpoint.health.as_ref().map(Arc::as_ptr);
        self.address == other.address && health(self) == health(other)
    }
}

impl Endpoints {
    fn all(&self) -> impl Iterator<Item = &Endpoint> {
        self.v4.iter().chain(&self.v6)
    }

    fn families(&self, prefer_v6: bool) -> [&[Endpoint]; 2] {
        if prefer_v6 { [&self.v6, &self.v4] } else { [&self.v4, &self.v6] }
    }

    fn is_like(&self, other: &Self) -> bool {
        let pairs = || self.all().zip(other.all());
        self.all().count() == other.all().count() && pairs().all(|(one, other)| one.is_same(other))
    }
}

impl From<Vec<Endpoint>> for Endpoints {
    /// Sorted, so that a resolver that shuffles its answers changes nothing.
    fn from(mut found: Vec<Endpoint>) -> Self {
        found.sort_unstable_by_key(|endpoint| endpoint.address);
        found.dedup_by_key(|endpoint| endpoint.address);
        let (v4, v6) = found.into_iter().partition(|endpoint| endpoint.address.is_ipv4());
        Self { v4, v6 }
    }
}

fn authority(address: &written::Address, tls: bool) -> Box<str> {
    let default_port = if tls { 443 } else { 80 };
    if address.port != default_port {
        return address.to_string().into();
    }
    match &address.host {
        Host::Name(name) => relative(name).into(),
        Host::Ip(IpAddr::V6(ip)) => format!("[{ip}]").into(),
        Host::Ip(ip) => ip.to_string().into(),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;
    use std::time::{Duration, SystemTime};

    use serde_json::json;

    use super::*;
    use crate::upstream::stats::InFlight;

    fn named(addresses: &[&str]) -> Backend {
        let backend = Backend::new(&"users.internal:9001".parse().unwrap(), false);
        backend.set_endpoints(addresses.iter().map(|text| endpoint(text, None)).collect());
        backend
    }

    fn endpoint(address: &str, state: Option<State>) -> Endpoint {
        let health = state.map(|state| {
            let (health, check) = (Health::new(SystemTime::UNIX_EPOCH), json!({"type": "tcp"}));
            let outcome = match state {
                State::Unknown => return Arc::new(health),
                State::Healthy => Ok("up".into()),
                State::Unhealthy => Err("down".into()),
            };
            let check = serde_json::from_value(check).unwrap();
            health.note(outcome, Duration::ZERO, SystemTime::UNIX_EPOCH, &check);
            Arc::new(health)
        });
        Endpoint { address: address.parse().unwrap(), health }
    }

    fn turns(backend: &Backend, count: usize) -> Vec<String> {
        (0..count).map(|_| backend.next_address().unwrap().ip().to_string()).collect()
    }

    #[test]
    fn a_name_has_no_address_until_it_is_resolved() {
        let backend = named(&[]);
        assert_eq!((backend.next_address(), backend.is_resolved()), (None, false));
        backend.set_endpoints(vec![endpoint("192.0.2.1:9001", None)]);
        assert_eq!(backend.next_address(), Some("192.0.2.1:9001".parse().unwrap()));
    }

    #[test]
    fn several_addresses_of_a_name_are_used_in_turn() {
        let backend = named(&["192.0.2.2:9001", "192.0.2.1:9001", "192.0.2.1:9001"]);
        assert_eq!(turns(&backend, 4), ["192.0.2.1", "192.0.2.2", "192.0.2.1", "192.0.2.2"]);
    }

    #[test]
    fn any_of_several_addresses_may_be_the_first() {
        let backend = named(&["192.0.2.1:9001", "192.0.2.2:9001", "192.0.2.3:9001"]);
        backend.begin_with(4);
        assert_eq!(turns(&backend, 3), ["192.0.2.2", "192.0.2.3", "192.0.2.1"]);
        // Whichever it is, each one is tried that cannot be connected to.
        backend.begin_with(usize::MAX);
        let mut tried = HashSet::new();
        for _ in 0..3 {
            let address = backend.next_address().unwrap();
            backend.connect_failed(address);
            tried.insert(address);
        }
        assert_eq!(tried.len(), 3);
    }

    #[test]
    fn an_address_of_either_family_may_be_the_first() {
        let backend = named(&["192.0.2.1:9001", "192.0.2.2:9001", "[2001:db8::1]:9001"]);
        let first = |turn| {
            backend.begin_with(turn);
            turns(&backend, 1).remove(0)
        };
        let expected = ["192.0.2.1", "192.0.2.2", "2001:db8::1", "192.0.2.1", "2001:db8::1"];
        assert_eq!([0, 1, 2, 3, 5].map(first), expected);
    }

    #[test]
    fn a_family_that_cannot_be_reached_gives_way_to_the_other() {
        let backend = named(&["[::1]:9001", "127.0.0.1:9001"]);
        let first = backend.next_address().unwrap();
        assert!(first.is_ipv4());
        backend.connect_failed(first);
        assert!(backend.next_address().unwrap().is_ipv6());
    }

    #[test]
    fn an_address_that_cannot_be_connected_to_is_passed_over_until_it_is_tried_again() {
        let backend = named(&["192.0.2.1:9001", "192.0.2.2:9001", "192.0.2.3:9001"]);
        let gone = "192.0.2.2:9001".parse().unwrap();
        backend.connect_failed(gone);
        assert_eq!(turns(&backend, 4), ["192.0.2.1", "192.0.2.3", "192.0.2.1", "192.0.2.3"]);
        let later = Instant::now() + Duration::from_secs(2);
        let endpoints = backend.endpoints.load();
        let tried = || backend.next_around(endpoints.families(false), later).unwrap();
        assert_eq!(tried(), gone);
        assert!((0..6).all(|_| tried() != gone), "one request is enough");
        InFlight::enter(&backend.stats, None).to(gone).answered(200);
        let again = turns(&backend, 3);
        assert!(again.contains(&"192.0.2.2".to_owned()), "{again:?}");
    }

    #[test]
    fn the_last_address_that_is_left_is_used_whatever_became_of_it() {
        let backend = named(&["192.0.2.1:9001", "192.0.2.2:9001"]);
        assert!(backend.is_reachable_elsewhere());
        backend.connect_failed("192.0.2.1:9001".parse().unwrap());
        assert!(backend.is_reachable_elsewhere());
        backend.connect_failed("192.0.2.2:9001".parse().unwrap());
        assert!(!backend.is_reachable_elsewhere() && backend.next_address().is_some());
        backend.set_endpoints(vec![endpoint("192.0.2.3:9001", None), endpoint("192.0.2.1:9001", None)]);
        assert_eq!(turns(&backend, 2), ["192.0.2.3", "192.0.2.3"]);
    }

    #[test]
    fn unhealthy_addresses_are_passed_over_and_the_rest_share_evenly() {
        let (up, down) = (Some(State::Healthy), Some(State::Unhealthy));
        let backend = named(&[]);
        backend.set_endpoints(vec![
            endpoint("192.0.2.1:1", up),
            endpoint("192.0.2.2:1", down),
            endpoint("192.0.2.3:1", up),
            endpoint("192.0.2.4:1", Some(State::Unknown)),
        ]);
        assert_eq!(turns(&backend, 4), ["192.0.2.1", "192.0.2.3", "192.0.2.1", "192.0.2.3"]);
        backend.set_endpoints(vec![endpoint("192.0.2.2:1", down)]);
        assert_eq!((backend.next_address(), backend.is_usable()), (None, false));
    }

    #[test]
    fn the_other_family_stands_in_for_an_unhealthy_one() {
        let backend = named(&[]);
        backend.set_endpoints(vec![
            endpoint("192.0.2.1:1", Some(State::Unhealthy)),
            endpoint("[2001:db8::1]:1", Some(State::Healthy)),
        ]);
        assert_eq!(turns(&backend, 1), ["2001:db8::1"]);
    }

    #[test]
    fn addresses_not_probed_yet_are_used_only_while_none_is_healthy() {
        let backend = named(&[]);
        backend.set_endpoints(vec![
            endpoint("192.0.2.1:1", Some(State::Unhealthy)),
            endpoint("192.0.2.2:1", Some(State::Unknown)),
        ]);
        assert_eq!(turns(&backend, 2), ["192.0.2.2", "192.0.2.2"]);
        assert!(backend.is_usable() && !backend.is_healthy());
    }

    #[test]
    fn a_backend_was_probed_once_one_address_works_or_none_is_left_to_be_probed() {
        let (up, down, unknown) = (State::Healthy, State::Unhealthy, State::Unknown);
        for (states, probed) in [
            (&[][..], false),
            (&[unknown], false),
            (&[down, unknown], false),
            (&[up, unknown], true),
            (&[down, down], true),
        ] {
            let backend = named(&[]);
            let found = |(last, state): (u8, &State)| endpoint(&format!("192.0.2.{last}:1"), Some(*state));
            backend.set_endpoints((1..).zip(states).map(found).collect());
            assert_eq!(backend.is_probed(), probed, "{states:?}");
        }
    }

    #[test]
    fn the_authority_leaves_out_the_port_of_the_scheme() {
        for (address, tls, authority) in [
            ("a.example:80", false, "a.example"),
            ("a.example:443", true, "a.example"),
            ("a.example:80", true, "a.example:80"),
            ("[::1]:443", true, "[::1]"),
            ("[::1]:8443", true, "[::1]:8443"),
            ("192.0.2.1:80", false, "192.0.2.1"),
        ] {
            assert_eq!(Backend::new(&address.parse().unwrap(), tls).authority(), authority);
        }
    }
}
