//! How many connections may be open, in all and from one address.

use std::collections::HashMap;
use std::collections::hash_map::{Entry, RandomState};
use std::fmt;
use std::hash::BuildHasher;
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::Relaxed};

use parking_lot::Mutex;

/// The most connections that may be open at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// In all.
    pub total: usize,
    /// From one address, unless it is exempt; `None` is no limit.
    pub per_ip: Option<usize>,
}

/// Counts open connections and refuses those over a limit; limits may change while it is in use.
pub struct Permits {
    total: AtomicUsize,
    /// `usize::MAX` stands for no limit.
    per_ip: AtomicUsize,
    exempt: Box<dyn Fn(IpAddr) -> bool + Send + Sync>,
    open: AtomicUsize,
    owing: AtomicUsize,
    cut: AtomicBool,
    refused: [AtomicU64; Refused::ALL.len()],
    hasher: RandomState,
    counts: [Mutex<HashMap<IpAddr, usize>>; SHARDS],
}

const SHARDS: usize = 16;

impl Permits {
    /// Permits under `limits`; addresses for which `exempt` holds have no limit of their own.
    pub fn new(limits: Limits, exempt: impl Fn(IpAddr) -> bool + Send + Sync + 'static) -> Arc<Self> {
        let permits = Self {
            total: AtomicUsize::new(0),
            per_ip: AtomicUsize::new(0),
            exempt: Box::new(exempt),
            open: AtomicUsize::new(0),
            owing: AtomicUsize::new(0),
            cut: AtomicBool::new(false),
            refused: Default::default(),
            hasher: RandomState::new(),
            counts: Default::default(),
        };
        permits.set_limits(limits);
        Arc::new(permits)
    }

    /// Changes the limits; connections already open stay open, whatever the new limits are.
    ///
    /// Connections that opened while there was no limit per address are not counted against it.
    pub fn set_limits(&self, limits: Limits) {
        self.total.store(limits.total, Relaxed);
        self.per_ip.store(limits.per_ip.unwrap_or(usize::MAX), Relaxed);
    }

    /// Takes a place for one connection of `peer`; the place is free again when the permit is dropped.
    ///
    /// # Errors
    /// The limit that is reached; the refusal is counted.
    pub fn take(self: &Arc<Self>, peer: Option<IpAddr>) -> Result<Permit, Refused> {
        let max = self.total.load(Relaxed);
        if self.open.fetch_update(Relaxed, Relaxed, |open| (open < max).then(|| open + 1)).is_err() {
            return Err(self.refuse(Refused::Total));
        }
        // From here on the permit gives the place back, also on the way out with an error.
        let mut permit = Permit { permits: self.clone(), counted: None };
        if let Some(ip) = peer {
            permit.count(ip)?;
        }
        Ok(permit)
    }

    /// Whether this address has no limit of its own: a trusted proxy.
    pub(super) fn is_exempt(&self, ip: IpAddr) -> bool {
        (self.exempt)(ip)
    }

    /// Counts a refusal.
    pub(super) fn refuse(&self, why: Refused) -> Refused {
        self.refused[why as usize].fetch_add(1, Relaxed);
        why
    }

    /// Connections open now.
    pub fn open(&self) -> usize {
        self.open.load(Relaxed)
    }

    /// Counts a connection as [owing](Self::owing) until what it gives is dropped.
    pub(super) fn owe(self: &Arc<Self>) -> Owing {
        self.owing.fetch_add(1, Relaxed);
        Owing(self.clone())
    }

    /// Connections of HTTP/2 whose clients wait for answers, or for the rest of some that were given; they are counted
    /// once the gateway is on its way out.
    pub fn owing(&self) -> usize {
        self.owing.load(Relaxed)
    }

    /// Notes that what was under way on a connection had its time; of the first one, this is told.
    pub(super) fn cut(&self) {
        if !self.cut.swap(true, Relaxed) {
            log::warn!("drain is over; requests in flight are cut");
        }
    }

    /// Connections refused so far for this reason.
    pub fn refused(&self, why: Refused) -> u64 {
        self.refused[why as usize].load(Relaxed)
    }

    fn count(&self, ip: IpAddr, max: usize) -> bool {
        let mut counts = self.shard(ip).lock();
        let open = counts.get(&ip).copied().unwrap_or(0);
        if open >= max {
            return false;
        }
        counts.insert(ip, open + 1);
        true
    }

    fn release(&self, ip: IpAddr) {
        if let Entry::Occupied(mut count) = self.shard(ip).lock().entry(ip) {
            *count.get_mut() -= 1;
            if *count.get() == 0 {
                count.remove();
            }
        }
    }

    fn shard(&self, ip: IpAddr) -> &Mutex<HashMap<IpAddr, usize>> {
        let hash = self.hasher.hash_one(ip);
        &self.counts[(hash >> 60) as usize % SHARDS]
    }
}

impl fmt::Debug for Permits {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Permits").field("open", &self.open()).finish_non_exhaustive()
    }
}

/// The place of one open connection, given back on drop.
#[derive(Debug)]
pub struct Permit {
    permits: Arc<Permits>,
    counted: Option<IpAddr>,
}

impl Permit {
    /// Counts the connection for this address, unless that is exempt or counted already.
    ///
    /// # Errors
    /// Too many are open from there; the refusal is counted.
    pub(super) fn count(&mut self, ip: IpAddr) -> Result<(), Refused> {
        let max = self.permits.per_ip.load(Relaxed);
        if max == usize::MAX || self.counted.is_some() || self.permits.is_exempt(ip) {
            return Ok(());
        }
        if !self.permits.count(ip, max) {
            return Err(self.refuse(Refused::PerIp));
        }
        self.counted = Some(ip);
        Ok(())
    }

    /// Counts the refusal of a connection that has a place.
    pub(super) fn refuse(&self, why: Refused) -> Refused {
        self.permits.refuse(why)
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        self.permits.open.fetch_sub(1, Relaxed);
        if let Some(ip) = self.counted {
            self.permits.release(ip);
        }
    }
}

/// A connection whose client waits for something, until it is dropped.
#[derive(Debug)]
pub(super) struct Owing(Arc<Permits>);

impl Drop for Owing {
    fn drop(&mut self) {
        self.0.owing.fetch_sub(1, Relaxed);
    }
}

/// Why a connection is closed before anything is served on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refused {
    /// Too many connections in all.
    Total,
    /// Too many connections from this address.
    PerIp,
    /// It should be introduced by a trusted proxy, and comes from somebody else.
    Stranger,
    /// A trusted proxy should introduce it, and does not, or not in time.
    NoPreamble,
}

impl Refused {
    /// Every reason.
    pub const ALL: [Self; 4] = [Self::Total, Self::PerIp, Self::Stranger, Self::NoPreamble];

    /// What metrics call it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Total => "total",
            Self::PerIp => "per_ip",
            Self::Stranger => "stranger",
            Self::NoPreamble => "no_preamble",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: Option<IpAddr> = Some(IpAddr::V4(std::net::Ipv4Addr::new(192, 0, 2, 1)));
    const B: Option<IpAddr> = Some(IpAddr::V4(std::net::Ipv4Addr::new(192, 0, 2, 2)));

    fn permits(total: usize, per_ip: Option<usize>) -> Arc<Permits> {
        Permits::new(Limits { total, per_ip }, |ip| Some(ip) == B)
    }

    fn tracked(permits: &Permits) -> usize {
        permits.counts.iter().map(|shard| shard.lock().len()).sum()
    }

    #[test]
    fn a_place_is_free_again_once_its_permit_is_dropped() {
        let permits = permits(1, None);
        let first = permits.take(A).unwrap();
        assert_eq!(permits.take(A).unwrap_err(), Refused::Total);
        assert_eq!((permits.open(), permits.refused(Refused::Total)), (1, 1));
        drop(first);
        assert_eq!(permits.open(), 0);
        assert!(permits.take(B).is_ok());
    }

    #[test]
    fn refusals_do_not_lower_the_count() {
        let permits = permits(3, Some(1));
        let held = permits.take(A).unwrap();
        for _ in 0..10 {
            assert_eq!(permits.take(A).unwrap_err(), Refused::PerIp);
        }
        assert_eq!(
            (permits.open(), permits.refused(Refused::PerIp), permits.refused(Refused::Total)),
            (1, 10, 0)
        );
        drop(held);
        assert_eq!((permits.open(), tracked(&permits)), (0, 0));
    }

    #[test]
    fn exempt_addresses_and_unix_peers_have_no_limit_of_their_own() {
        let permits = permits(5, Some(1));
        let held: Vec<_> = [B, B, None, None].map(|peer| permits.take(peer).unwrap()).into();
        assert_eq!((held.len(), tracked(&permits)), (4, 0));
    }

    #[test]
    fn limits_may_change_while_connections_are_open() {
        let permits = permits(1, None);
        let first = permits.take(A).unwrap();
        permits.set_limits(Limits { total: 9, per_ip: Some(1) });
        let second = permits.take(A).unwrap();
        assert_eq!(permits.take(A).unwrap_err(), Refused::PerIp);
        permits.set_limits(Limits { total: 1, per_ip: None });
        drop(first);
        assert_eq!(permits.take(A).unwrap_err(), Refused::Total);
        drop(second);
        assert_eq!((permits.open(), tracked(&permits)), (0, 0));
    }

    #[test]
    fn a_connection_is_counted_as_owing_until_it_owes_nothing_more() {
        let permits = permits(2, None);
        let (first, second) = (permits.owe(), permits.owe());
        assert_eq!(permits.owing(), 2);
        drop(first);
        assert_eq!(permits.owing(), 1);
        drop(second);
        assert_eq!(permits.owing(), 0);
    }

    #[test]
    fn many_threads_never_exceed_the_limits() {
        let permits = permits(8, Some(5));
        std::thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| {
                    for _ in 0..2_000 {
                        let held = permits.take(A);
                        assert!(permits.open() <= 8);
                        drop(held);
                    }
                });
            }
        });
        assert_eq!((permits.open(), tracked(&permits)), (0, 0));
    }
}
