//! One backend: where it is, and how many requests it has in hand.

use std::io;
use std::net::{IpAddr, SocketAddr, ToSocketAddrs};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use arc_swap::ArcSwap;

use crate::config::upstream::{self as written, Host};

/// Most addresses of one name that are used.
const MAX_ADDRESSES: usize = 64;

/// Asks for the addresses of a host name and port.
pub(super) type Lookup = dyn Fn(&str, u16) -> io::Result<Vec<SocketAddr>> + Sync;

/// One address of an upstream. A host name holds the last good answer of the resolver, which may
/// be several addresses used in turn, or none yet.
#[derive(Debug)]
pub struct Backend {
    written: written::Address,
    authority: Box<str>,
    addresses: ArcSwap<Addresses>,
    turn: AtomicUsize,
    /// Set when connecting over the other family failed; `localhost` is often only one of both.
    prefer_v6: AtomicBool,
    in_flight: AtomicUsize,
}

/// The addresses of a backend by family.
#[derive(Debug, Default, PartialEq)]
struct Addresses {
    v4: Vec<SocketAddr>,
    v6: Vec<SocketAddr>,
}

impl Backend {
    /// A backend; a name has no addresses before [`Backend::resolve`].
    pub(super) fn new(written: &written::Address, tls: bool) -> Self {
        let addresses = match written.host {
            Host::Ip(ip) => Addresses::from(vec![SocketAddr::new(ip, written.port)]),
            Host::Name(_) => Addresses::default(),
        };
        Self {
            authority: authority(written, tls),
            written: written.clone(),
            addresses: ArcSwap::from_pointee(addresses),
            turn: AtomicUsize::new(0),
            prefer_v6: AtomicBool::new(false),
            in_flight: AtomicUsize::new(0),
        }
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

    /// Requests this backend has in hand.
    pub fn in_flight(&self) -> usize {
        self.in_flight.load(Ordering::Relaxed)
    }

    /// The addresses it stands for now, IPv4 first; none while the name has never been resolved.
    pub fn addresses(&self) -> Vec<SocketAddr> {
        let addresses = self.addresses.load();
        addresses.v4.iter().chain(&addresses.v6).copied().collect()
    }

    /// Whether there is an address to connect to.
    pub fn is_resolved(&self) -> bool {
        !self.addresses.load().is_empty()
    }

    /// The address for the next request; `None` while the name has never been resolved.
    pub(super) fn next_address(&self) -> Option<SocketAddr> {
        let addresses = self.addresses.load();
        let family = addresses.family(self.prefer_v6.load(Ordering::Relaxed));
        let turn = if family.len() > 1 { self.turn.fetch_add(1, Ordering::Relaxed) } else { 0 };
        family.get(turn.checked_rem(family.len())?).copied()
    }

    /// Notes that connecting to `address` failed: the next request tries the other family, if there is one.
    pub(super) fn connect_failed(&self, address: SocketAddr) {
        self.prefer_v6.store(address.is_ipv4(), Ordering::Relaxed);
    }

    /// Resolves the name again, blocking; keeps the last good answer when that fails.
    pub(super) fn resolve(&self, lookup: &Lookup) {
        let Some(name) = self.name() else { return };
        let found = lookup(name, self.written.port).and_then(|found| {
            if found.is_empty() { Err(io::Error::other("no addresses")) } else { Ok(found) }
        });
        match found {
            Ok(found) => self.learn(Addresses::from(found)),
            Err(error) if self.is_resolved() => {
                log::warn!(backend:% = self.written, error:%; "cannot resolve a backend; keeping its last addresses");
            }
            Err(error) => {
                log::warn!(backend:% = self.written, error:%; "cannot resolve a backend; it gets no requests");
            }
        }
    }

    /// Takes over what another backend of the same name has learnt.
    pub(super) fn inherit(&self, other: &Self) {
        if self.written == other.written {
            self.addresses.store(other.addresses.load_full());
        }
    }

    fn learn(&self, addresses: Addresses) {
        if **self.addresses.load() != addresses {
            log::info!(backend:% = self.written, addresses = addresses.len(); "backend resolved");
            self.addresses.store(Arc::new(addresses));
        }
    }
}

impl Addresses {
    fn len(&self) -> usize {
        self.v4.len() + self.v6.len()
    }

    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    fn family(&self, prefer_v6: bool) -> &[SocketAddr] {
        let (first, second) = if prefer_v6 { (&self.v6, &self.v4) } else { (&self.v4, &self.v6) };
        if first.is_empty() { second } else { first }
    }
}

impl From<Vec<SocketAddr>> for Addresses {
    /// Sorted, so that a resolver that shuffles its answers changes nothing.
    fn from(mut found: Vec<SocketAddr>) -> Self {
        found.sort_unstable();
        found.dedup();
        found.truncate(MAX_ADDRESSES);
        let (v4, v6) = found.into_iter().partition(SocketAddr::is_ipv4);
        Self { v4, v6 }
    }
}

/// A request in hand; dropping it gives the place back.
#[derive(Debug)]
pub struct InFlight {
    backend: Arc<Backend>,
    /// How many requests the backend had in hand with this one.
    pub(super) rank: usize,
}

impl InFlight {
    pub(super) fn enter(backend: &Arc<Backend>) -> Self {
        let rank = backend.in_flight.fetch_add(1, Ordering::Relaxed).saturating_add(1);
        Self { backend: Arc::clone(backend), rank }
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        self.backend.in_flight.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Asks the system's resolver; blocks.
pub(super) fn system_lookup(name: &str, port: u16) -> io::Result<Vec<SocketAddr>> {
    (name, port).to_socket_addrs().map(Iterator::collect)
}

fn authority(address: &written::Address, tls: bool) -> Box<str> {
    let default_port = if tls { 443 } else { 80 };
    if address.port != default_port {
        return address.to_string().into();
    }
    match &address.host {
        Host::Name(name) => name.as_str().into(),
        Host::Ip(IpAddr::V6(ip)) => format!("[{ip}]").into(),
        Host::Ip(ip) => ip.to_string().into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn named() -> Backend {
        Backend::new(&"users.internal:9001".parse().unwrap(), false)
    }

    fn answer(list: &'static [&'static str]) -> impl Fn(&str, u16) -> io::Result<Vec<SocketAddr>> + Sync {
        move |_, _| Ok(list.iter().map(|text| text.parse().unwrap()).collect())
    }

    #[test]
    fn a_name_that_does_not_resolve_has_no_address_until_it_does() {
        let backend = named();
        backend.resolve(&|_, _| Err(io::Error::other("NXDOMAIN")));
        assert_eq!(backend.next_address(), None);
        backend.resolve(&answer(&["192.0.2.1:9001"]));
        assert_eq!(backend.next_address(), Some("192.0.2.1:9001".parse().unwrap()));
    }

    #[test]
    fn the_last_good_answer_is_kept_when_the_resolver_fails_or_answers_nothing() {
        let backend = named();
        backend.resolve(&answer(&["192.0.2.1:9001"]));
        backend.resolve(&|_, _| Err(io::Error::other("SERVFAIL")));
        backend.resolve(&answer(&[]));
        assert_eq!(backend.next_address(), Some("192.0.2.1:9001".parse().unwrap()));
    }

    #[test]
    fn several_addresses_of_a_name_are_used_in_turn() {
        let backend = named();
        backend.resolve(&answer(&["192.0.2.2:9001", "192.0.2.1:9001", "192.0.2.1:9001"]));
        let turns: Vec<_> = (0..4).map(|_| backend.next_address().unwrap().ip().to_string()).collect();
        assert_eq!(turns, ["192.0.2.1", "192.0.2.2", "192.0.2.1", "192.0.2.2"]);
    }

    #[test]
    fn a_family_that_cannot_be_reached_gives_way_to_the_other() {
        let backend = named();
        backend.resolve(&answer(&["[::1]:9001", "127.0.0.1:9001"]));
        let first = backend.next_address().unwrap();
        assert!(first.is_ipv4());
        backend.connect_failed(first);
        assert!(backend.next_address().unwrap().is_ipv6());
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
