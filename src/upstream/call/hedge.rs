//! Calls with several attempts under way at once: the first good answer wins, and the others are given up.
//!
//! An attempt that is given up has its connection closed (its stream reset, for HTTP/2), and says nothing of its
//! backend: only who waited for too long was at fault, and that was us.

use std::time::{Duration, Instant};

use futures_util::StreamExt as _;
use futures_util::future::BoxFuture;
use futures_util::stream::FuturesUnordered;
use pingora::http::{RequestHeader, ResponseHeader};

use super::account::Account;
use super::body::Wire;
use super::error::within;
use super::{Call, CallError, CallOptions, Caller, Failed, Payload, Reply};
use crate::config::hedge::Hedge;
use crate::upstream::{Asked, Fault, Picked, Progress, Rules, Tried, Upstream};

/// How an attempt ended.
struct Ended {
    nth: usize,
    result: Result<(Wire, ResponseHeader), Failed>,
}

/// Attempts under way.
struct Race<'a> {
    call: &'a Call<'a>,
    key: &'a [u8],
    rules: Rules<'a>,
    after: Option<Duration>,
    /// How many may be made besides.
    left: u8,
    account: &'a mut Account,
    tried: Tried,
    progress: Progress,
    running: FuturesUnordered<BoxFuture<'a, Ended>>,
    /// An answer that is not good, in case that there is no better one.
    last: Option<(Wire, ResponseHeader)>,
}

impl Caller {
    /// As [`Caller::send`] by these rules, with further attempts while one is under way. The time for the call is the rest of
    /// what there was since then: what others had of it is no attempt's.
    ///
    /// # Errors
    /// See [`CallError`].
    pub async fn hedge(
        &self,
        upstream: &Upstream,
        (head, body): (RequestHeader, Payload),
        (options, since): (CallOptions, Instant),
        (rules, hedge): (Rules<'_>, &Hedge),
        account: &mut Account,
    ) -> Result<Reply, CallError> {
        let (mut call, key) = Call::new(self, upstream, head, body, options);
        call.begun = since;
        let deadline = call.deadline;
        let race = Race {
            call: &call,
            key: &key,
            rules,
            after: upstream.hedges_after(hedge),
            left: hedge.max,
            account,
            tried: Tried::default(),
            progress: Progress::default(),
            running: FuturesUnordered::new(),
            last: None,
        };
        within(deadline, Box::pin(race.run())).await
    }
}

impl Race<'_> {
    async fn run(mut self) -> Result<Reply, CallError> {
        self.call.upstream.asked(Instant::now());
        let first = self.pick().ok_or(CallError::NoBackend)?;
        self.begin(first, false);
        let mut due = self.due();
        loop {
            let ended = tokio::select! {
                biased;
                Some(ended) = self.running.next() => ended,
                () = sleep_until(due), if due.is_some() => {
                    due = if self.hedge() { self.due() } else { None };
                    continue;
                }
            };
            let fault = self.note(&ended);
            let error = match ended.result {
                Ok((wire, head)) if fault.is_none() && head.status.as_u16() < 500 => {
                    return self.won(ended.nth, wire, head).await;
                }
                Ok((mut wire, head)) => {
                    wire.picked.guard.answered(head.status.as_u16());
                    self.last = Some((wire, head));
                    None
                }
                Err(failed) => Some(failed.error),
            };
            if !self.running.is_empty() {
                // The other may still do better.
                continue;
            }
            if !self.again(fault).await {
                return match (self.last.take(), error) {
                    (Some((wire, head)), _) => self.call.reply(wire, head).await,
                    (None, error) => Err(error.unwrap_or(CallError::NoBackend)),
                };
            }
            due = self.due();
        }
    }

    fn pick(&self) -> Option<Picked> {
        self.call.upstream.pick(self.key, &self.tried)
    }

    fn begin(&mut self, picked: Picked, is_hedge: bool) {
        self.tried.insert(picked.index);
        let nth = self.account.begin(picked.address, is_hedge);
        let (call, per_try) = (self.call, self.rules.per_try());
        self.running
            .push(Box::pin(async move { Ended { nth, result: call.attempt(picked, per_try).await } }));
    }

    /// When another attempt is made, if one may be.
    fn due(&self) -> Option<Instant> {
        self.after.filter(|_| self.left > 0).map(|after| Instant::now() + after)
    }

    /// Makes another attempt, while there is another backend and the budget allows for it. Only then is one chosen: it
    /// would be counted as asked, and have had its turn.
    fn hedge(&mut self) -> bool {
        if !self.call.upstream.has_another(&self.tried) {
            return false;
        }
        if !self.rules.may_hedge(Instant::now()) {
            self.account.out_of_budget = true;
            return false;
        }
        // It may be lost in the very moment.
        let Some(picked) = self.pick().filter(|picked| !self.tried.contains(picked.index)) else {
            return false;
        };
        self.left -= 1;
        self.begin(picked, true);
        true
    }

    /// Notes how an attempt ended, and gives what the rules call that.
    fn note(&mut self, ended: &Ended) -> Option<Fault> {
        self.account.end(ended.nth, &ended.result);
        match &ended.result {
            Ok((_, head)) => self.rules.fault_of(head.status.as_u16(), Some(&head.headers)),
            Err(failed) => failed.fault,
        }
    }

    /// Passes on the answer of this attempt, and gives up the others.
    async fn won(mut self, nth: usize, wire: Wire, head: ResponseHeader) -> Result<Reply, CallError> {
        self.running.clear();
        for (at, attempt) in self.account.attempts.iter().enumerate() {
            // Those that were given up would have taken at least as long.
            if at == nth || (!attempt.over && !attempt.is_hedge) {
                self.call.upstream.took(attempt.started.elapsed());
            }
        }
        self.call.reply(wire, head).await
    }

    /// Begins another attempt after all have failed, the last one so, if the rules say so.
    async fn again(&mut self, fault: Option<Fault>) -> bool {
        let Some(fault) = fault else { return false };
        if fault.is_old_connection() {
            // The backend is well.
            self.tried = Tried::default();
        }
        let left = self
            .call
            .deadline
            .map(|deadline| deadline.saturating_duration_since(tokio::time::Instant::now()));
        let (method, headers) = (&self.call.head.method, &self.call.head.headers);
        let asked = Asked { method, headers, repeatable: true, left };
        let judged = self.rules.judge(fault, &asked, &mut self.progress, Instant::now(), fastrand::f64());
        match judged {
            Ok(after) => tokio::time::sleep(after).await,
            Err(out_of_budget) => {
                self.account.out_of_budget |= out_of_budget;
                return false;
            }
        }
        let Some(picked) = self.pick() else { return false };
        self.last = None;
        self.account.retried.push(fault.as_str());
        self.begin(picked, false);
        true
    }
}

async fn sleep_until(due: Option<Instant>) {
    match due {
        Some(due) => tokio::time::sleep_until(due.into()).await,
        None => std::future::pending().await,
    }
}
