//! What is known about the host name of backends: its addresses, how old they are, what went wrong since.

use std::net::IpAddr;
use std::time::{Duration, Instant, SystemTime};

use parking_lot::{Condvar, Mutex};

use super::resolve::{Failed, Found};
use super::view::{NameView, seconds_between};

/// Most addresses of one name that are used.
const MAX_ADDRESSES: usize = 64;
/// How soon a failed lookup is tried again at first; twice as late each time.
const RETRY: Duration = Duration::from_secs(1);
/// Longest pause between failed lookups.
const LATEST_RETRY: Duration = Duration::from_secs(5);

/// A host name; looked up once, however many backends have it.
#[derive(Debug)]
pub(super) struct Name {
    host: Box<str>,
    known: Mutex<Known>,
    tried: Condvar,
}

#[derive(Debug, Default)]
struct Known {
    v4: Vec<IpAddr>,
    v6: Vec<IpAddr>,
    answered: Option<SystemTime>,
    failing: Option<Failing>,
}

#[derive(Debug)]
struct Failing {
    why: Failed,
    since: SystemTime,
    times: u32,
}

/// What a lookup led to.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Learned {
    /// The addresses are others than before.
    pub(super) changed: bool,
    /// When to look again.
    pub(super) again: Duration,
}

impl Name {
    /// A name that was never looked up.
    pub(super) fn new(host: &str) -> Self {
        Self { host: host.into(), known: Mutex::default(), tried: Condvar::new() }
    }

    /// The name itself.
    pub(super) fn host(&self) -> &str {
        &self.host
    }

    /// The addresses of the last good answer, in an order that does not change by itself.
    pub(super) fn addresses(&self) -> Vec<IpAddr> {
        let known = self.known.lock();
        known.v4.iter().chain(&known.v6).copied().take(MAX_ADDRESSES).collect()
    }

    /// Takes in how a lookup ended. What failed leaves the last good answer in place.
    pub(super) fn learn(&self, outcome: Result<Found, Failed>, now: SystemTime) -> Learned {
        let mut known = self.known.lock();
        match outcome {
            Ok(found) => known.take(&self.host, found, now),
            Err(why) => Learned { changed: false, again: known.fail(&self.host, why, now) },
        }
    }

    /// Wakes who waits for a lookup to end.
    pub(super) fn tell(&self) {
        // Not between a look at what is known and the wait for more.
        drop(self.known.lock());
        self.tried.notify_all();
    }

    /// Waits until a lookup has ended, either way; at most until the deadline.
    pub(super) fn wait_until_tried(&self, deadline: Instant) {
        let mut known = self.known.lock();
        while known.answered.is_none() && known.failing.is_none() {
            if self.tried.wait_until(&mut known, deadline).timed_out() {
                return;
            }
        }
    }

    /// Everything, to be shown.
    pub(super) fn view(&self, now: SystemTime) -> NameView {
        let known = self.known.lock();
        let failing = known.failing.as_ref();
        NameView {
            answered: known.answered.map(Into::into),
            age: known.answered.map(|answered| seconds_between(answered, now)),
            error: failing.map(|failing| failing.why.to_string()),
            failing_since: failing.map(|failing| failing.since.into()),
        }
    }
}

impl Known {
    fn take(&mut self, host: &str, found: Found, now: SystemTime) -> Learned {
        if self.failing.take().is_some() {
            log::info!(name = host; "a name resolves again");
        }
        self.answered = Some(now);
        let mut changed = false;
        for (held, family) in [(&mut self.v4, found.v4), (&mut self.v6, found.v6)] {
            // None: this family's lookup failed, what it last gave stays.
            let Some(mut family) = family else { continue };
            family.sort_unstable();
            family.dedup();
            changed |= *held != family;
            *held = family;
        }
        if changed {
            log::info!(name = host, addresses = self.v4.len() + self.v6.len(); "a name has new addresses");
        }
        Learned { changed, again: found.ttl }
    }

    fn fail(&mut self, host: &str, why: Failed, now: SystemTime) -> Duration {
        let times = self.failing.as_ref().map_or(0, |failing| failing.times);
        if times == 0 && self.answered.is_some() {
            log::warn!(name = host, error:% = why; "cannot resolve a name; keeping its last addresses");
        } else if times == 0 {
            log::warn!(name = host, error:% = why; "cannot resolve a name; its backends get no requests");
        }
        let since = self.failing.as_ref().map_or(now, |failing| failing.since);
        self.failing = Some(Failing { why, since, times: times.saturating_add(1) });
        RETRY.saturating_mul(1 << times.min(8)).min(LATEST_RETRY)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    const EPOCH: SystemTime = SystemTime::UNIX_EPOCH;

    fn found(v4: Option<&[&str]>, v6: Option<&[&str]>) -> Result<Found, Failed> {
        let parse = |list: &[&str]| list.iter().map(|text| text.parse().unwrap()).collect();
        Ok(Found { v4: v4.map(parse), v6: v6.map(parse), ttl: Duration::from_secs(60) })
    }

    fn failed() -> Result<Found, Failed> {
        Err(Failed::from("SERVFAIL"))
    }

    fn shown(name: &Name) -> Vec<String> {
        name.addresses().iter().map(ToString::to_string).collect()
    }

    #[test]
    fn failures_keep_the_last_good_answer_and_show_its_age() {
        let name = Name::new("users.internal");
        assert!(name.learn(found(Some(&["192.0.2.1"]), Some(&[])), EPOCH).changed);
        assert!(!name.learn(failed(), EPOCH + Duration::from_secs(60)).changed);
        name.learn(failed(), EPOCH + Duration::from_secs(61));
        assert_eq!(shown(&name), ["192.0.2.1"]);
        let view = serde_json::to_value(name.view(EPOCH + Duration::from_secs(90))).unwrap();
        assert_eq!(
            view,
            json!({
                "answered": "1970-01-01T00:00:00.000Z", "age": 90,
                "error": "SERVFAIL", "failing_since": "1970-01-01T00:01:00.000Z",
            })
        );
        name.learn(found(Some(&["192.0.2.1"]), Some(&[])), EPOCH + Duration::from_secs(95));
        assert_eq!(name.view(EPOCH + Duration::from_secs(96)).age, Some(1));
        assert_eq!(name.view(EPOCH).error, None);
    }

    #[test]
    fn a_family_whose_lookup_failed_keeps_its_addresses() {
        let name = Name::new("users.internal");
        name.learn(found(Some(&["192.0.2.1"]), Some(&["2001:db8::1"])), EPOCH);
        name.learn(found(None, Some(&["2001:db8::2"])), EPOCH);
        assert_eq!(shown(&name), ["192.0.2.1", "2001:db8::2"]);
        name.learn(found(Some(&["192.0.2.3"]), Some(&[])), EPOCH);
        assert_eq!(shown(&name), ["192.0.2.3"], "an answer without addresses takes them away");
    }

    #[test]
    fn an_answer_in_another_order_is_no_change() {
        let name = Name::new("users.internal");
        assert!(name.learn(found(Some(&["192.0.2.1", "192.0.2.2"]), None), EPOCH).changed);
        let again = name.learn(found(Some(&["192.0.2.2", "192.0.2.1"]), Some(&[])), EPOCH);
        assert_eq!(again, Learned { changed: false, again: Duration::from_secs(60) });
    }

    #[test]
    fn a_name_with_very_many_addresses_has_some_of_them_used() {
        let name = Name::new("users.internal");
        let many: Vec<IpAddr> = (0..=255).map(|last| IpAddr::from([192, 0, 2, last])).collect();
        name.learn(Ok(Found { v4: Some(many), v6: None, ttl: RETRY }), EPOCH);
        assert_eq!(name.addresses().len(), 64);
    }

    #[test]
    fn failed_lookups_are_tried_again_ever_later_up_to_five_seconds() {
        let name = Name::new("users.internal");
        let pauses: Vec<u64> = (0..5).map(|_| name.learn(failed(), EPOCH).again.as_secs()).collect();
        assert_eq!(pauses, [1, 2, 4, 5, 5]);
        name.learn(found(Some(&[]), Some(&["::1"])), EPOCH);
        assert_eq!(name.learn(failed(), EPOCH).again.as_secs(), 1);
    }
}
