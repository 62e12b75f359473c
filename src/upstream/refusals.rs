//! Addresses of a backend that could not be connected to: they are passed over for a while, as it has others.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;

/// How long an address is passed over; twice as long each further time, up to the longest.
const FIRST: Duration = Duration::from_secs(1);
const LONGEST: Duration = Duration::from_secs(10);
/// Who is not tried again in as long, for others are preferred, is as any other.
const LAPSED: Duration = Duration::from_secs(60);

/// The addresses of one backend that could not be connected to since a request was answered there.
#[derive(Debug, Default)]
pub(super) struct Refusals {
    /// Whether there are any: all that most requests look at.
    any: AtomicBool,
    known: Mutex<Vec<Refusal>>,
}

#[derive(Debug)]
struct Refusal {
    address: SocketAddr,
    /// How often it was so.
    times: u32,
    /// When one request tries it again.
    next: Instant,
}

impl Refusals {
    /// Whether every address was well when it was tried last.
    pub(super) fn is_empty(&self) -> bool {
        !self.any.load(Ordering::Relaxed)
    }

    /// This address could not be connected to.
    pub(super) fn note(&self, address: SocketAddr, now: Instant) {
        let mut known = self.known.lock();
        match known.iter_mut().find(|refusal| refusal.address == address) {
            // Of all who found it so at the same time, the first one counts.
            Some(refusal) if now < refusal.next && refusal.next - now <= lasts(refusal.times) => {}
            Some(refusal) => {
                refusal.times += 1;
                refusal.next = now + lasts(refusal.times);
            }
            None => known.push(Refusal { address, times: 0, next: now + lasts(0) }),
        }
        self.any.store(true, Ordering::Relaxed);
    }

    /// This address answers.
    pub(super) fn forget(&self, address: SocketAddr) {
        self.retain(|known| known != address);
    }

    /// Only what is known of these addresses matters still.
    pub(super) fn retain(&self, keep: impl Fn(SocketAddr) -> bool) {
        let mut known = self.known.lock();
        known.retain(|refusal| keep(refusal.address));
        self.any.store(!known.is_empty(), Ordering::Relaxed);
    }

    /// Leaves out what nobody tried for so long that it says nothing.
    pub(super) fn lapse(&self, now: Instant) {
        let mut known = self.known.lock();
        known.retain(|refusal| now < refusal.next + LAPSED);
        self.any.store(!known.is_empty(), Ordering::Relaxed);
    }

    /// Whether it could not be connected to when it was tried last.
    pub(super) fn holds(&self, address: SocketAddr) -> bool {
        self.known.lock().iter().any(|refusal| refusal.address == address)
    }

    /// Whether this request is the one that tries it again.
    pub(super) fn is_due(&self, address: SocketAddr, now: Instant) -> bool {
        let mut known = self.known.lock();
        let due = known.iter_mut().find(|refusal| refusal.address == address && refusal.next <= now);
        // Who tries may take long to say, or never do.
        due.map(|refusal| refusal.next = now + 2 * LONGEST).is_some()
    }
}

fn lasts(times: u32) -> Duration {
    FIRST.saturating_mul(1 << times.min(8)).min(LONGEST)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn after(start: Instant, seconds: u64) -> Instant {
        start + Duration::from_secs(seconds)
    }

    #[test]
    fn one_request_tries_an_address_again_after_a_while_that_grows() {
        let (refusals, now) = (Refusals::default(), Instant::now());
        let address = "192.0.2.1:80".parse().unwrap();
        assert!(refusals.is_empty());
        refusals.note(address, now);
        refusals.note(address, now);
        assert!(refusals.holds(address) && !refusals.is_empty());
        let due = |seconds| refusals.is_due(address, after(now, seconds));
        assert_eq!([due(0), due(1), due(1)], [false, true, false]);
        refusals.note(address, after(now, 1));
        assert_eq!([due(2), due(3), due(3)], [false, true, false], "twice as long");
        assert!(due(30), "who tried said nothing");
        refusals.forget(address);
        assert!(refusals.is_empty() && !refusals.holds(address) && !due(100));
    }

    #[test]
    fn what_nobody_tries_again_is_forgotten() {
        let (refusals, now) = (Refusals::default(), Instant::now());
        let address = "192.0.2.1:80".parse().unwrap();
        refusals.note(address, now);
        refusals.lapse(after(now, 60));
        assert!(refusals.holds(address));
        refusals.lapse(after(now, 61));
        assert!(refusals.is_empty());
    }

    #[test]
    fn an_address_that_is_gone_is_not_kept() {
        let (refusals, now) = (Refusals::default(), Instant::now());
        let [gone, stays] = ["192.0.2.1:80", "192.0.2.2:80"].map(|text| text.parse().unwrap());
        refusals.note(gone, now);
        refusals.note(stays, now);
        refusals.retain(|address| address != gone);
        assert!(!refusals.holds(gone) && refusals.holds(stays));
    }
}
