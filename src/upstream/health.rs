//! What probes have told about one address: its state, why, and since when.

use std::num::NonZeroU32;
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::{Duration, Instant, SystemTime};

use parking_lot::{Condvar, Mutex};

use super::view::HealthView;
use crate::config::health::Active;

/// What a probe saw, for people: of an address that works, or of one that does not.
pub(super) type Outcome = Result<Box<str>, Box<str>>;

/// What is known about an address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum State {
    /// No probe has ended yet.
    Unknown,
    /// It gets requests.
    Healthy,
    /// It gets none.
    Unhealthy,
}

/// The health of an address: read by requests at the cost of one atomic load, written by probes.
#[derive(Debug)]
pub(super) struct Health {
    state: AtomicU8,
    record: Mutex<Record>,
    known: Condvar,
}

#[derive(Debug, Clone)]
struct Record {
    since: SystemTime,
    /// What the last probe saw.
    last: Option<Last>,
    /// Probes in a row that ended as the last one did.
    consecutive: u32,
}

#[derive(Debug, Clone)]
struct Last {
    passed: bool,
    saw: Box<str>,
    at: SystemTime,
    took: Duration,
}

impl Health {
    /// Nothing is known.
    pub(super) fn new(now: SystemTime) -> Self {
        let record = Record { since: now, last: None, consecutive: 0 };
        Self { state: AtomicU8::new(State::Unknown as u8), record: Mutex::new(record), known: Condvar::new() }
    }

    /// Begins with what another one knows; its counts begin anew.
    pub(super) fn seeded(known: &Self) -> Self {
        let record = Record { consecutive: 0, ..known.record.lock().clone() };
        Self {
            state: AtomicU8::new(known.state.load(Ordering::Relaxed)),
            record: Mutex::new(record),
            known: Condvar::new(),
        }
    }

    /// The state now.
    pub(super) fn state(&self) -> State {
        match self.state.load(Ordering::Relaxed) {
            state if state == State::Healthy as u8 => State::Healthy,
            state if state == State::Unhealthy as u8 => State::Unhealthy,
            _ => State::Unknown,
        }
    }

    /// Takes the outcome of a probe in; gives the new state if it changed, with the state before.
    pub(super) fn note(
        &self,
        outcome: Outcome,
        took: Duration,
        now: SystemTime,
        check: &Active,
    ) -> Option<(State, State)> {
        let (passed, saw) = match outcome {
            Ok(saw) => (true, saw),
            Err(saw) => (false, saw),
        };
        let before = self.state();
        let mut record = self.record.lock();
        let same = record.consecutive > 0 && record.last.as_ref().is_some_and(|last| last.passed == passed);
        record.consecutive = if same { record.consecutive.saturating_add(1) } else { 1 };
        record.last = Some(Last { passed, saw, at: now, took });
        let after = judge(before, passed, record.consecutive, check.healthy, check.unhealthy);
        if after == before {
            return None;
        }
        record.since = now;
        self.state.store(after as u8, Ordering::Relaxed);
        self.known.notify_all();
        Some((before, after))
    }

    /// Waits until a probe has ended; at most until the deadline.
    pub(super) fn wait_until_known(&self, deadline: Instant) {
        let mut record = self.record.lock();
        while self.state() == State::Unknown {
            if self.known.wait_until(&mut record, deadline).timed_out() {
                return;
            }
        }
    }

    /// What the last probe saw.
    pub(super) fn reason(&self) -> String {
        self.record
            .lock()
            .last
            .as_ref()
            .map_or_else(|| "not probed yet".to_owned(), |last| last.saw.to_string())
    }

    /// Everything, to be shown.
    pub(super) fn view(&self) -> HealthView {
        let record = self.record.lock().clone();
        let last = record.last.as_ref();
        HealthView {
            state: self.state().as_str(),
            reason: last.map_or_else(|| "not probed yet".to_owned(), |last| last.saw.to_string()),
            since: record.since.into(),
            consecutive: record.consecutive,
            last_probe: last.map(|last| last.at.into()),
            last_probe_ms: last.map(|last| u64::try_from(last.took.as_millis()).unwrap_or(u64::MAX)),
        }
    }
}

impl State {
    /// Its name in metrics, logs and the API.
    pub(super) const fn as_str(self) -> &'static str {
        match self {
            Self::Unknown => "unknown",
            Self::Healthy => "healthy",
            Self::Unhealthy => "unhealthy",
        }
    }
}

/// The state after so many probes in a row; the first one decides alone.
fn judge(before: State, passed: bool, consecutive: u32, healthy: NonZeroU32, unhealthy: NonZeroU32) -> State {
    match (before, passed) {
        (State::Unknown, true) => State::Healthy,
        (State::Unknown, false) => State::Unhealthy,
        (State::Unhealthy, true) if consecutive >= healthy.get() => State::Healthy,
        (State::Healthy, false) if consecutive >= unhealthy.get() => State::Unhealthy,
        _ => before,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    const EPOCH: SystemTime = SystemTime::UNIX_EPOCH;

    /// `P` passes, `F` fails; the state after each, a second apart, of healthy: 2 and unhealthy: 3.
    fn play(health: &Health, probes: &str) -> String {
        let check: Active =
            serde_json::from_value(json!({"type": "tcp", "healthy": 2, "unhealthy": 3})).unwrap();
        let mut states = String::new();
        for (second, probe) in (1..).zip(probes.chars()) {
            let outcome: Outcome = if probe == 'P' { Ok("up".into()) } else { Err("down".into()) };
            let now = EPOCH + Duration::from_secs(second);
            health.note(outcome, Duration::from_millis(7), now, &check);
            states.push(match health.state() {
                State::Unknown => '?',
                State::Healthy => 'H',
                State::Unhealthy => 'U',
            });
        }
        states
    }

    #[test]
    fn the_first_probe_decides_and_then_as_many_in_a_row_as_written() {
        for (probes, states) in
            [("P", "H"), ("F", "U"), ("PFFPFFF", "HHHHHHU"), ("FPFPP", "UUUUH"), ("PFFFPPFFF", "HHHUUHHHU")]
        {
            assert_eq!(play(&Health::new(EPOCH), probes), states, "{probes}");
        }
    }

    #[test]
    fn only_changes_are_told_and_dated() {
        let check: Active = serde_json::from_value(json!({"type": "tcp", "unhealthy": 1})).unwrap();
        let health = Health::new(EPOCH);
        let note = |outcome, second| {
            health.note(outcome, Duration::ZERO, EPOCH + Duration::from_secs(second), &check)
        };
        assert_eq!(note(Ok("up".into()), 1), Some((State::Unknown, State::Healthy)));
        assert_eq!(note(Ok("up".into()), 2), None);
        assert_eq!(note(Err("down".into()), 3), Some((State::Healthy, State::Unhealthy)));
        assert_eq!(note(Err("still down".into()), 4), None);
        let view = serde_json::to_value(health.view()).unwrap();
        assert_eq!(
            view,
            json!({
                "state": "unhealthy", "reason": "still down", "since": "1970-01-01T00:00:03.000Z",
                "consecutive": 2, "last_probe": "1970-01-01T00:00:04.000Z", "last_probe_ms": 0,
            })
        );
    }

    #[test]
    fn changed_settings_begin_with_the_known_state_and_count_anew() {
        let old = Health::new(EPOCH);
        assert_eq!(play(&old, "PFF"), "HHH");
        let new = Health::seeded(&old);
        assert_eq!((new.state(), new.view().consecutive), (State::Healthy, 0));
        assert_eq!(play(&new, "FFF"), "HHU", "the two failures of before do not count");
    }

    #[test]
    fn waiting_ends_with_the_first_probe_or_the_deadline() {
        let health = Health::new(EPOCH);
        health.wait_until_known(Instant::now());
        assert_eq!(health.state(), State::Unknown);
        std::thread::scope(|scope| {
            scope.spawn(|| play(&health, "P"));
            health.wait_until_known(Instant::now() + Duration::from_secs(10));
        });
        assert_eq!(health.state(), State::Healthy);
    }
}
