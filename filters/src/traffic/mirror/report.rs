//! What came of copies: counts, and examples of answers that differ.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::SystemTime;

use bytes::Bytes;
use parking_lot::Mutex;
use pingora_http::ResponseHeader;

use super::diff::Differences;
use crate::world::{ClientError, Counter, Metrics};

/// Examples that are kept.
const EXAMPLES: usize = 20;

/// What became of a copy.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// It was answered, whatever the status.
    Answered,
    /// No connection could be made, or it broke.
    Failed,
    /// It took too long.
    TimedOut,
    /// As many as may be were under way.
    NoRoom,
    /// The request's body is over the limit.
    TooLarge,
    /// The request's body did not come whole.
    Incomplete,
}

impl Outcome {
    const ALL: [(Self, &'static str); 6] = [
        (Self::Answered, "answered"),
        (Self::Failed, "failed"),
        (Self::TimedOut, "timed_out"),
        (Self::NoRoom, "no_room"),
        (Self::TooLarge, "too_large"),
        (Self::Incomplete, "incomplete"),
    ];

    pub(super) fn of(answer: &Result<(ResponseHeader, Option<Bytes>), ClientError>) -> Self {
        match answer {
            Ok(_) => Self::Answered,
            Err(ClientError::Timeout) => Self::TimedOut,
            Err(_) => Self::Failed,
        }
    }
}

/// What the parts of an answer are called that can differ.
const PARTS: [&str; 3] = ["status", "headers", "body"];

/// What came of the copies of one filter.
#[derive(Debug)]
pub struct Report {
    /// The filter's id.
    pub instance: Arc<str>,
    /// Where copies go.
    pub upstream: Arc<str>,
    outcomes: [AtomicU64; Outcome::ALL.len()],
    compared: AtomicU64,
    different: AtomicU64,
    parts: [AtomicU64; PARTS.len()],
    uncompared_bodies: AtomicU64,
    examples: Mutex<VecDeque<Example>>,
    metrics: Mutex<Option<Arc<Numbers>>>,
}

/// The same numbers for Prometheus.
#[derive(Debug)]
struct Numbers {
    outcomes: [Counter; Outcome::ALL.len()],
    compared: Counter,
    parts: [Counter; PARTS.len()],
}

/// Two answers that differ. It holds no values, which may be anybody's.
#[derive(Debug, Clone)]
pub struct Example {
    /// When the request was over.
    pub time: SystemTime,
    /// The request's id, as in the log.
    pub request_id: String,
    /// Its method.
    pub method: String,
    /// Its path, without the query.
    pub path: String,
    /// The status of its answer, and that of the copy's.
    pub statuses: [u16; 2],
    /// What differs: `status`, `header NAME`, `body PLACE` with what is about it.
    pub differences: Vec<String>,
}

/// The counts of a report.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Tally {
    /// Copies by what became of them.
    pub outcomes: Vec<(&'static str, u64)>,
    /// Pairs of answers that were compared.
    pub compared: u64,
    /// Those that differ.
    pub different: u64,
    /// Those that differ in this.
    pub parts: Vec<(&'static str, u64)>,
    /// Pairs whose bodies were not compared.
    pub uncompared_bodies: u64,
}

impl Report {
    pub(super) fn new(instance: Arc<str>, upstream: Arc<str>) -> Self {
        Self {
            instance,
            upstream,
            outcomes: Default::default(),
            compared: AtomicU64::default(),
            different: AtomicU64::default(),
            parts: Default::default(),
            uncompared_bodies: AtomicU64::default(),
            examples: Mutex::default(),
            metrics: Mutex::default(),
        }
    }

    /// Counts into these metrics from now on.
    pub(super) fn count_into(&self, metrics: &dyn Metrics) {
        let filter = ("mirror", &*self.instance);
        let help = "Copies of requests, by what became of them.";
        let outcome =
            |name| metrics.counter("tollhouse_mirror_copies_total", help, &[filter, ("outcome", name)]);
        let help = "Pairs of answers that were compared.";
        let compared = metrics.counter("tollhouse_mirror_compared_total", help, &[filter]);
        let help = "Pairs of answers that differ, by what differs.";
        let part =
            |name| metrics.counter("tollhouse_mirror_differences_total", help, &[filter, ("part", name)]);
        let outcomes = Outcome::ALL.map(|(_, name)| outcome(name));
        *self.metrics.lock() = Some(Arc::new(Numbers { outcomes, compared, parts: PARTS.map(part) }));
    }

    fn numbers(&self) -> Option<Arc<Numbers>> {
        self.metrics.lock().clone()
    }

    pub(super) fn ended(&self, outcome: Outcome) {
        self.outcomes[outcome as usize].fetch_add(1, Ordering::Relaxed);
        if let Some(numbers) = self.numbers() {
            numbers.outcomes[outcome as usize].inc();
        }
    }

    pub(super) fn compared(&self, differences: &Differences, example: impl FnOnce() -> Example) {
        let numbers = self.numbers();
        self.compared.fetch_add(1, Ordering::Relaxed);
        if let Some(numbers) = &numbers {
            numbers.compared.inc();
        }
        if differences.body_skipped {
            self.uncompared_bodies.fetch_add(1, Ordering::Relaxed);
        }
        for (part, differs) in differences.parts().into_iter().enumerate().filter(|(_, differs)| *differs) {
            self.parts[part].fetch_add(u64::from(differs), Ordering::Relaxed);
            if let Some(numbers) = &numbers {
                numbers.parts[part].inc();
            }
        }
        if differences.parts().contains(&true) {
            self.different.fetch_add(1, Ordering::Relaxed);
            let mut examples = self.examples.lock();
            if examples.len() == EXAMPLES {
                examples.pop_front();
            }
            examples.push_back(example());
        }
    }

    /// The counts so far, of this process.
    #[must_use]
    pub fn tally(&self) -> Tally {
        let read = |number: &AtomicU64| number.load(Ordering::Relaxed);
        let outcomes = Outcome::ALL.iter().zip(&self.outcomes);
        Tally {
            outcomes: outcomes.map(|((_, name), count)| (*name, read(count))).collect(),
            compared: read(&self.compared),
            different: read(&self.different),
            parts: PARTS.iter().zip(&self.parts).map(|(name, count)| (*name, read(count))).collect(),
            uncompared_bodies: read(&self.uncompared_bodies),
        }
    }

    /// The last answers that differ, the latest last.
    #[must_use]
    pub fn examples(&self) -> Vec<Example> {
        self.examples.lock().iter().cloned().collect()
    }
}
