//! What a call tells of its attempts, for metrics and the log.

use std::net::SocketAddr;
use std::time::Instant;

use pingora::http::ResponseHeader;

use super::body::Wire;
use super::{CallError, Failed};
use crate::observe::{AttemptOutcome, UpstreamSeries};
use crate::upstream::Fault;

/// The attempts of a call so far; told also when the call is given up.
#[derive(Debug, Default)]
pub struct Account {
    /// Each, in the order in which they began.
    pub attempts: Vec<Attempt>,
    /// Why each was made that followed a failed one.
    pub retried: Vec<&'static str>,
    /// A further attempt was not made, as the budget was used up.
    pub out_of_budget: bool,
}

/// One attempt.
#[derive(Debug)]
pub struct Attempt {
    /// Where it went.
    pub address: SocketAddr,
    /// Whether it was made while another one was under way.
    pub is_hedge: bool,
    /// How it ended.
    pub outcome: AttemptOutcome,
    /// The status of its answer.
    pub status: Option<u16>,
    /// When it began.
    pub started: Instant,
    pub(super) over: bool,
}

impl Account {
    /// Notes an attempt that begins, and gives its place.
    pub(super) fn begin(&mut self, address: SocketAddr, is_hedge: bool) -> usize {
        self.attempts.push(Attempt {
            address,
            is_hedge,
            // Until it is known better.
            outcome: AttemptOutcome::Cancelled,
            status: None,
            started: Instant::now(),
            over: false,
        });
        self.attempts.len() - 1
    }

    /// Notes how the attempt in this place ended.
    pub(super) fn end(&mut self, nth: usize, result: &Result<(Wire, ResponseHeader), Failed>) {
        let attempt = &mut self.attempts[nth];
        attempt.over = true;
        match result {
            Ok((_, head)) => {
                attempt.outcome = AttemptOutcome::Answered;
                attempt.status = Some(head.status.as_u16());
            }
            Err(failed) => attempt.outcome = outcome(failed),
        }
    }

    /// Notes that the time for all of the call passed during an attempt.
    pub(super) fn overdue(&mut self) {
        for attempt in self.attempts.iter_mut().filter(|attempt| !attempt.over) {
            attempt.outcome = AttemptOutcome::TimedOut;
        }
    }

    /// Whether anything of the request may have reached a backend.
    #[must_use]
    pub fn sent(&self) -> bool {
        self.attempts.iter().any(|attempt| attempt.outcome != AttemptOutcome::ConnectFailed)
    }

    /// Counts all of it.
    pub fn count(&self, series: &UpstreamSeries) {
        for attempt in &self.attempts {
            series.attempt(attempt.outcome);
            if attempt.is_hedge {
                series.retried("hedge");
            }
        }
        self.retried.iter().for_each(|reason| series.retried(reason));
        if self.out_of_budget {
            series.out_of_budget();
        }
    }

    /// The backend that answered, else the last one that was asked.
    #[must_use]
    pub fn backend(&self) -> Option<SocketAddr> {
        let answered = self.attempts.iter().rfind(|attempt| attempt.status.is_some());
        answered.or(self.attempts.last()).map(|attempt| attempt.address)
    }

    /// All attempts for the log; none where there was only one.
    #[must_use]
    pub fn tries(&self) -> Option<String> {
        if self.attempts.len() < 2 {
            return None;
        }
        let tries = self.attempts.iter().map(|attempt| match attempt.status {
            Some(status) => format!("{} {status}", attempt.address),
            None => format!("{} {}", attempt.address, attempt.outcome.as_str()),
        });
        Some(tries.collect::<Vec<_>>().join(", "))
    }
}

/// What metrics and the log call it.
fn outcome(failed: &Failed) -> AttemptOutcome {
    match (&failed.error, failed.fault) {
        (CallError::Connect(_), _) | (_, Some(Fault::Connect)) => AttemptOutcome::ConnectFailed,
        (CallError::Timeout(_), _) => AttemptOutcome::TimedOut,
        _ => AttemptOutcome::Broken,
    }
}
