//! Attempts at backends, and what follows one that failed: the same on both ways to forward.

use std::fmt::Write as _;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use http::header::SET_COOKIE;
use pingora::http::{RequestHeader, ResponseHeader};
use tollhouse_filters::problem::{self, Problem};

use super::Call;
use super::request::upstream;
use crate::observe::{AttemptOutcome, Registry};
use crate::upstream::call::Account;
use crate::upstream::{Asked, Backend, Fault, Picked, Progress, Rules, Tried, Upstream};

/// The attempts at backends.
#[derive(Default)]
pub(super) struct Attempts {
    pub(super) upstream: Option<Arc<Upstream>>,
    pub(super) tried: Tried,
    /// What balancing goes by; empty for most.
    pub(super) key: Vec<u8>,
    /// The backend that the client's cookie is for.
    pub(super) stuck: Option<Arc<Backend>>,
    pub(super) picked: Option<Picked>,
    /// The backend that answered, where several were asked at once.
    pub(super) backend: Option<SocketAddr>,
    pub(super) made: u32,
    /// How the last attempt ended, once it is in the metrics.
    pub(super) counted: Option<AttemptOutcome>,
    pub(super) started: Option<Instant>,
    /// When the answer was there, if that is not where the request ends.
    pub(super) ended: Option<Instant>,
    /// When the client had sent everything, if that was noted.
    pub(super) uploaded: Option<Instant>,
    /// Of whom the last attempt tells nothing, as there was too little time left for it.
    pub(super) spared: Option<Spared>,
    /// Whether the answer to a hedged request was begun, or read, too late to be whole in time.
    pub(super) late: Option<Arc<AtomicBool>>,
    /// The backend of the last attempt said something, if only that an answer is to come.
    pub(super) heard: bool,
    /// How long an origin may take to answer a request for an upgrade.
    pub(super) handshake: Option<Duration>,
    /// The final head of an answer went to the client.
    pub(super) answered: bool,
    /// How long the next attempt waits, once it is decided that there is one.
    pub(super) wait: Option<Duration>,
    /// Those that failed, for the log; empty for most.
    pub(super) log: String,
    progress: Progress,
}

/// Of whom an attempt tells nothing that the end of the time for all of it cut short.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Spared {
    /// Of its backend: other attempts, or the wait for its turn, had most of the time.
    Backend,
    /// Nor of the upstream: the client had it.
    Upstream,
}

impl Attempts {
    /// Takes over what a call tells of its own, all of which are in the metrics.
    pub(super) fn take_over(&mut self, account: &Account) {
        self.made = u32::try_from(account.attempts.len()).unwrap_or(u32::MAX);
        self.backend = account.backend();
        self.log = account.tries().unwrap_or_default();
        self.started = account.attempts.first().map(|first| first.started).or(self.started);
    }

    /// Whether they tell nothing of the upstream.
    pub(super) fn spare_upstream(&self) -> bool {
        let is_late = self.late.as_ref().is_some_and(|late| late.load(Ordering::Relaxed));
        is_late || self.spared == Some(Spared::Upstream)
    }

    /// How long they took.
    pub(super) fn elapsed(&self) -> Option<Duration> {
        let ended = self.ended.unwrap_or_else(Instant::now);
        self.started.map(|started| ended.saturating_duration_since(started))
    }
}

impl Call {
    /// What is tried again.
    pub(super) fn rules(&self) -> Rules<'_> {
        let upstream = self.attempts.upstream.as_ref().expect("attempts are made once there is an upstream");
        let route = self.exchange.as_ref().and_then(|exchange| exchange.route.retries.as_deref());
        upstream.rules(route)
    }

    /// Chooses a backend that was not tried yet, while there is one, for one more attempt.
    pub(super) fn next_backend(&mut self) -> Result<(), Problem> {
        let Attempts { upstream, picked, stuck, key, tried, made, started, counted, heard, .. } =
            &mut self.attempts;
        let upstream = upstream.as_ref().expect("attempts are made once there is an upstream");
        // The last attempt is over, and must not count against its backend.
        *picked = None;
        let chosen = upstream.pick_for(stuck.as_ref(), key, tried);
        let Some(chosen) = chosen else {
            return Err(Problem::new(&problem::NO_BACKEND).detail(upstream.unavailable()));
        };
        let Picked { index, guard, .. } = picked.insert(chosen);
        tried.insert(*index);
        if *made == 0 {
            *started = Some(guard.started());
            upstream.asked(guard.started());
        }
        *made += 1;
        (*counted, *heard) = (None, false);
        self.reason = None;
        Ok(())
    }

    /// Has the client stay with the backend that answers, if clients do that and it is not so already.
    pub(super) fn stick(&mut self, answer: &mut ResponseHeader) {
        let Attempts { upstream: Some(upstream), picked: Some(picked), stuck, .. } = &self.attempts else {
            return;
        };
        let is_there = |stuck: &Arc<Backend>| Arc::ptr_eq(stuck, &picked.backend);
        if !upstream.is_sticky() || stuck.as_ref().is_some_and(is_there) {
            return;
        }
        let tls = self.exchange.as_ref().is_some_and(|exchange| exchange.ctx.scheme.as_str() == "https");
        if let Some(cookie) = upstream.stick(&picked.backend, tls) {
            let _ = answer.append_header(SET_COOKIE, cookie);
        }
    }

    /// When the wait for the head of this attempt's answer is over.
    pub(super) fn try_until(&self) -> Option<Instant> {
        let limit = self.rules().per_try()?;
        self.attempts.picked.as_ref().map(|picked| picked.guard.started() + limit)
    }

    /// What is left of the time, where backends are told of it.
    pub(super) fn time_left(&self) -> Option<Duration> {
        self.attempts.upstream.as_ref()?.remaining_header()?;
        // Streams end when they end.
        if self.events || self.upgrade {
            return None;
        }
        let deadline = self.exchange.as_ref().and_then(|exchange| exchange.ctx.deadline);
        let first = [deadline, self.try_until()].into_iter().flatten().min()?;
        Some(first.saturating_duration_since(Instant::now()))
    }

    /// Tells metrics, the log and the backend's numbers of a failed attempt; whether there is another one, and how
    /// long it waits. What of the request was sent must be `repeatable`.
    pub(super) fn again(
        &mut self,
        fault: Fault,
        outcome: AttemptOutcome,
        request: &RequestHeader,
        repeatable: bool,
        registry: &Registry,
    ) -> Option<Duration> {
        let now = Instant::now();
        let deadline = self.exchange.as_ref().and_then(|exchange| exchange.ctx.deadline);
        let left = deadline.map(|deadline| deadline.saturating_duration_since(now));
        let asked = Asked { method: &request.method, headers: &request.headers, repeatable, left };
        let mut progress = self.attempts.progress;
        let judged = self.rules().judge(fault, &asked, &mut progress, now, fastrand::f64());
        self.attempts.progress = progress;
        let upstream = upstream(self).clone();
        let series = upstream.series(registry);
        if fault == Fault::Connect || judged.is_ok() {
            series.attempt(outcome);
            self.attempts.counted = Some(outcome);
        }
        match judged {
            Ok(after) => {
                series.retried(fault.as_str());
                self.failed_attempt(fault, outcome);
                Some(after)
            }
            Err(out_of_budget) => {
                if out_of_budget {
                    series.out_of_budget();
                }
                self.blame(fault, true);
                None
            }
        }
    }

    /// One more attempt is over, and not the last one.
    fn failed_attempt(&mut self, fault: Fault, outcome: AttemptOutcome) {
        self.blame(fault, false);
        if fault.is_old_connection() {
            // The backend is well.
            self.attempts.tried = Tried::default();
        }
        let Some(picked) = &self.attempts.picked else { return };
        let log = &mut self.attempts.log;
        let _ = match fault {
            Fault::Status(status) => write!(log, "{} {status}, ", picked.address),
            Fault::Grpc(status) => write!(log, "{} grpc {status}, ", picked.address),
            _ => write!(log, "{} {}, ", picked.address, outcome.as_str()),
        };
    }

    /// Tells the backend's numbers what became of the attempt; an answer that is passed on tells it itself.
    fn blame(&mut self, fault: Fault, last: bool) {
        let spared = match fault {
            Fault::Connect => self.spare(),
            Fault::Reset => self.is_spared(),
            _ => false,
        };
        if spared {
            return;
        }
        let Attempts { upstream: Some(upstream), picked: Some(picked), .. } = &mut self.attempts else {
            return;
        };
        match fault {
            Fault::Connect => upstream.connect_failed(picked),
            // Without another attempt it is known no better than any that broke off.
            Fault::Unsent | Fault::Stale if !last => picked.guard.unseen(),
            Fault::Unsent | Fault::Stale | Fault::Refused | Fault::Reset => picked.guard.failed(),
            Fault::Status(_) | Fault::Grpc(_) if last => {}
            Fault::Status(status) => picked.guard.answered(status),
            Fault::Grpc(_) => picked.guard.failed(),
        }
    }

    /// Whether the time for all of it ended the last attempt before that had half of it, which tells nothing of its backend:
    /// clients that send slowly, and other backends, could have it blamed.
    pub(super) fn is_spared(&mut self) -> bool {
        // Once there is a connection, no time ends a stream of events.
        self.attempts.spared.is_some() || (!self.events && self.spare())
    }

    fn spare(&mut self) -> bool {
        let Attempts { picked: Some(picked), started, .. } = &self.attempts else { return false };
        let began = picked.guard.started();
        if !self.had_little(began, Duration::ZERO) {
            return false;
        }
        let nobody = self.upstream_had_little(started.unwrap_or(began));
        self.attempts.spared = Some(if nobody { Spared::Upstream } else { Spared::Backend });
        true
    }

    /// Whether the time for all of it is over before the upstream, the first attempt at which began then, had half of what
    /// the wait for a turn left of it: neither do requests that wait hide one that hangs, nor does the client have the rest.
    pub(super) fn upstream_had_little(&self, since: Instant) -> bool {
        let waited = self.exchange.as_ref().map(|exchange| exchange.ctx.waited);
        self.had_little(since, waited.unwrap_or_default())
    }

    /// Whether the time for all of it is over, and less than half of it, without what was waited, was left then and when the
    /// client had sent everything.
    fn had_little(&self, since: Instant, waited: Duration) -> bool {
        let Some(exchange) = &self.exchange else { return false };
        let Some(deadline) = exchange.ctx.deadline else { return false };
        let all = deadline.saturating_duration_since(exchange.ctx.started).saturating_sub(waited);
        let since = self.attempts.uploaded.map_or(since, |uploaded| uploaded.max(since));
        Instant::now() >= deadline && deadline.saturating_duration_since(since) < all / 2
    }

    /// All attempts for the log, the last one as it ended; none where there was only one.
    pub(super) fn tries(&self, outcome: AttemptOutcome, status: u16) -> Option<String> {
        let Attempts { log, picked, counted, .. } = &self.attempts;
        if log.is_empty() {
            return None;
        }
        // The log says what the metrics do.
        let outcome = counted.unwrap_or(outcome);
        Some(match picked {
            Some(picked) if outcome == AttemptOutcome::Answered => {
                format!("{log}{} {status}", picked.address)
            }
            Some(picked) => format!("{log}{} {}", picked.address, outcome.as_str()),
            None => log.trim_end_matches(", ").to_owned(),
        })
    }
}
