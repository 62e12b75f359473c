//! How a store does, and how an administrator sees it.

use std::mem::discriminant;
use std::time::SystemTime;

use schemars::JsonSchema;
use serde::Serialize;
use tollhouse_filters::world::OnFailure;

use super::{Reason, Shared};
use crate::observe::Timestamp;

/// Whether a store decides.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum State {
    /// Nobody tried yet.
    Starting,
    /// It does.
    Up,
    /// It does not.
    Down(Reason),
}

/// Whether a store decides, and since when.
#[derive(Debug)]
pub(super) struct Health {
    pub(super) state: State,
    pub(super) since: SystemTime,
    /// The document in use has it no more: it serves those who began before.
    pub(super) retired: bool,
}

impl Default for Health {
    fn default() -> Self {
        Self { state: State::Starting, since: SystemTime::now(), retired: false }
    }
}

impl Health {
    /// Notes a state; gives the one before if this one is of another kind.
    pub(super) fn change(&mut self, to: State) -> Option<State> {
        let kind = |state: &State| match state {
            State::Down(reason) => (discriminant(state), Some(discriminant(reason))),
            _ => (discriminant(state), None),
        };
        let news = kind(&self.state) != kind(&to);
        let same_side = matches!((&self.state, &to), (State::Down(_), State::Down(_)));
        let before = std::mem::replace(&mut self.state, to);
        if !news {
            return None;
        }
        if !same_side {
            self.since = SystemTime::now();
        }
        Some(before)
    }
}

/// A store now.
#[derive(Debug, Clone, PartialEq, Serialize, JsonSchema)]
#[schemars(rename = "Store")]
pub struct StoreView {
    /// Its name.
    pub name: String,
    /// Where it is, without user and password.
    pub url: String,
    /// What is done about decisions while it is away.
    pub on_failure: OnFailure,
    /// Whether it decides.
    pub up: bool,
    /// Since when, as in RFC 3339.
    pub since: String,
    /// Why it is away; null if it is not.
    pub reason: Option<String>,
    /// Milliseconds that a decision takes, a moving average; null before the first.
    pub latency_ms: Option<f64>,
    /// Decisions that it made.
    pub shared: u64,
    /// Decisions that were made as `on_failure` says.
    pub missed: u64,
}

impl StoreView {
    pub(super) fn of(shared: &Shared) -> Self {
        let health = shared.health.lock();
        let reason = match &health.state {
            State::Starting => Some("nobody tried yet".to_owned()),
            State::Up => None,
            State::Down(reason) => Some(reason.to_string()),
        };
        Self {
            name: shared.name.to_string(),
            url: shared.options.url.to_string(),
            on_failure: shared.options.on_failure,
            up: health.state == State::Up,
            since: Timestamp(health.since).to_string(),
            reason,
            latency_ms: shared.numbers.latency().map(|latency| latency.as_secs_f64() * 1000.0),
            shared: shared.numbers.shared.get(),
            missed: shared.numbers.missed.get(),
        }
    }
}
