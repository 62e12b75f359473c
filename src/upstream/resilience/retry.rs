//! What becomes of a failed attempt: another one, after a while, or none.

use std::time::{Duration, Instant};

use http::{HeaderMap, HeaderName, Method};

use super::budget::Budget;
use crate::config::retries::{Condition, Methods, Retries, RouteRetries};

/// Retries that `max` does not count: the backend did not process the request, or only a connection was old.
const FREE: u8 = 3;

static IDEMPOTENCY_KEY: HeaderName = HeaderName::from_static("idempotency-key");
static GRPC_STATUS: HeaderName = HeaderName::from_static("grpc-status");

/// What went wrong with an attempt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// No connection could be made.
    Connect,
    /// The connection was closed before all of the request was sent: nobody acted on it.
    Unsent,
    /// The backend says that it did not process the request.
    Refused,
    /// A kept connection was closed without a word, after the request had been sent.
    Stale,
    /// No head of an answer: the backend broke the connection or the protocol, or took too long.
    Reset,
    /// An answer with this status.
    Status(u16),
    /// An answer of gRPC without messages, with this status.
    Grpc(u8),
}

/// The request, as far as another attempt depends on it.
#[derive(Debug, Clone, Copy)]
pub struct Asked<'a> {
    /// Its method.
    pub method: &'a Method,
    /// Its fields.
    pub headers: &'a HeaderMap,
    /// What of its body was sent can be sent again.
    pub repeatable: bool,
    /// What is left of the total timeout, if there is one.
    pub left: Option<Duration>,
}

/// Retries of a request so far.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Progress {
    counted: u8,
    free: u8,
}

/// What of a request is kept for another attempt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Keep {
    /// Nothing.
    Nothing,
    /// What was read before any of it was sent.
    Unsent,
    /// All, up to this many bytes.
    All(u64),
}

/// The upstream's retries, narrowed by a route's.
#[derive(Debug, Clone, Copy)]
pub struct Rules<'a> {
    upstream: &'a Retries,
    route: Option<&'a RouteRetries>,
    budget: &'a Budget,
}

impl Fault {
    /// The condition of the document that it falls under, as a label.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Connect => "connect",
            Self::Unsent => "unsent",
            Self::Refused => "refused_stream",
            Self::Stale => "stale",
            Self::Reset => "reset",
            Self::Status(_) => "status",
            Self::Grpc(_) => "grpc",
        }
    }

    /// Whether it is certain that nobody acted on the request.
    const fn unprocessed(self) -> bool {
        matches!(self, Self::Connect | Self::Unsent | Self::Refused)
    }

    /// Whether `max` does not count a retry after it.
    const fn is_free(self) -> bool {
        matches!(self, Self::Unsent | Self::Stale | Self::Refused)
    }

    /// Whether the backend is well, and only a connection was old.
    #[must_use]
    pub const fn is_old_connection(self) -> bool {
        matches!(self, Self::Unsent | Self::Stale)
    }

    fn falls_under(self, condition: Condition) -> bool {
        match (self, condition) {
            (Self::Connect | Self::Unsent, Condition::Connect)
            | (Self::Unsent | Self::Stale, Condition::Stale)
            | (Self::Refused, Condition::RefusedStream)
            | (Self::Stale | Self::Reset, Condition::Reset) => true,
            (Self::Status(status), Condition::Status(range)) => range.contains(status),
            (Self::Grpc(status), Condition::Grpc(wanted)) => status == wanted,
            _ => false,
        }
    }
}

impl<'a> Rules<'a> {
    pub(in crate::upstream) const fn new(
        upstream: &'a Retries,
        route: Option<&'a RouteRetries>,
        budget: &'a Budget,
    ) -> Self {
        Self { upstream, route, budget }
    }

    /// The limit on the wait for the head of an attempt's answer.
    #[must_use]
    pub fn per_try(&self) -> Option<Duration> {
        self.route.and_then(|route| route.per_try).unwrap_or(self.upstream.per_try).get()
    }

    /// The largest part of a body that is kept.
    #[must_use]
    pub const fn body_bytes(&self) -> u64 {
        self.upstream.body_bytes.get()
    }

    /// What is wrong with an answer of this status, if anything is that the rules name. No fields are looked at where
    /// none are given.
    #[must_use]
    pub fn fault_of(&self, status: u16, headers: Option<&HeaderMap>) -> Option<Fault> {
        let grpc = || {
            let status = headers?.get(&GRPC_STATUS)?.to_str().ok()?.parse().ok()?;
            Some(Fault::Grpc(status))
        };
        let named = |fault: &Fault| self.conditions().iter().any(|condition| fault.falls_under(*condition));
        match self.read_fields() {
            false if status < 400 => None,
            false => Some(Fault::Status(status)).filter(named),
            true => Some(Fault::Status(status)).filter(named).or_else(|| grpc().filter(named)),
        }
    }

    /// Whether what is wrong with an answer may be in its fields.
    #[must_use]
    pub fn read_fields(&self) -> bool {
        self.conditions().iter().any(|condition| matches!(condition, Condition::Grpc(_)))
    }

    /// What of a request is worth keeping, over a connection that was kept or a new one.
    #[must_use]
    pub fn keep(&self, method: &Method, headers: &HeaderMap, reused: bool) -> Keep {
        let after_sending = |condition: &Condition| match condition {
            Condition::Stale => reused,
            Condition::Reset | Condition::Status(_) | Condition::Grpc(_) => true,
            Condition::Connect | Condition::RefusedStream => false,
        };
        if self.conditions().iter().any(after_sending) && self.may_repeat(method, headers) {
            Keep::All(self.body_bytes())
        } else if reused {
            Keep::Unsent
        } else {
            Keep::Nothing
        }
    }

    /// Whether a request that the backend may have seen may be sent again.
    #[must_use]
    pub fn may_repeat(&self, method: &Method, headers: &HeaderMap) -> bool {
        let fits = match self.route.and_then(|route| route.methods.as_ref()).unwrap_or(&self.upstream.methods)
        {
            Methods::Idempotent => method.is_idempotent(),
            Methods::All => true,
            Methods::These(methods) => methods.contains(method),
        };
        let keyed =
            || self.route.and_then(|route| route.idempotency_key).unwrap_or(self.upstream.idempotency_key);
        fits || (keyed() && headers.contains_key(&IDEMPOTENCY_KEY))
    }

    /// How long another attempt after this fault waits, if there is one; `random` is from 0 to 1. One
    /// that there is has been taken from the budget, unless it is the first after a refused stream.
    ///
    /// # Errors
    /// True if only the budget is in its way.
    pub fn judge(
        &self,
        fault: Fault,
        asked: &Asked<'_>,
        progress: &mut Progress,
        now: Instant,
        random: f64,
    ) -> Result<Duration, bool> {
        let named = self.conditions().iter().any(|condition| fault.falls_under(*condition));
        let may = fault.unprocessed() || self.may_repeat(asked.method, asked.headers);
        let room = if fault.is_free() { progress.free < FREE } else { progress.counted < self.max() };
        if !(named && may && room && asked.repeatable) {
            return Err(false);
        }
        let after = if fault.is_free() { Duration::ZERO } else { self.backoff(progress.counted, random) };
        if asked.left.is_some_and(|left| left <= after) {
            return Err(false);
        }
        // What a backend has no stream for yet costs it next to nothing, and a whole burst may be told so at once.
        let is_cheap = fault == Fault::Refused && progress.free == 0;
        if !is_cheap && !self.budget.withdraw(now, self.upstream.budget) {
            return Err(true);
        }
        if fault.is_free() {
            progress.free += 1;
        } else {
            progress.counted += 1;
        }
        Ok(after)
    }

    /// Takes one more attempt, made while another is under way, out of the budget, if there is one left.
    #[must_use]
    pub fn may_hedge(&self, now: Instant) -> bool {
        self.budget.withdraw(now, self.upstream.budget)
    }

    /// Any time up to a bound that doubles with each retry ("full jitter").
    fn backoff(&self, retries: u8, random: f64) -> Duration {
        let range = self.route.and_then(|route| route.backoff).unwrap_or(self.upstream.backoff);
        let doubled = range.first().saturating_mul(1 << retries.min(20));
        doubled.min(range.last()).mul_f64(random.clamp(0.0, 1.0))
    }

    fn max(&self) -> u8 {
        self.route.and_then(|route| route.max).unwrap_or(self.upstream.max)
    }

    fn conditions(&self) -> &'a [Condition] {
        let own = self.route.and_then(|route| route.conditions.as_ref());
        own.unwrap_or(&self.upstream.conditions)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    /// Whether a request of this method is tried again after a fault, by rules as they are written.
    fn again(
        written: &Value,
        fault: Fault,
        method: &Method,
        fields: &[(&'static str, &'static str)],
    ) -> bool {
        judged(written, fault, method, fields, &mut Progress::default(), None).is_ok()
    }

    fn judged(
        written: &Value,
        fault: Fault,
        method: &Method,
        fields: &[(&'static str, &'static str)],
        progress: &mut Progress,
        left: Option<Duration>,
    ) -> Result<Duration, bool> {
        let (retries, budget) =
            (serde_json::from_value(written.clone()).unwrap(), Budget::new(Instant::now()));
        let headers = fields.iter().map(|(name, value)| (name.parse().unwrap(), value.parse().unwrap()));
        let headers = headers.collect();
        let asked = Asked { method, headers: &headers, repeatable: true, left };
        Rules::new(&retries, None, &budget).judge(fault, &asked, progress, Instant::now(), 1.0)
    }

    const FAULTS: [Fault; 7] = [
        Fault::Connect,
        Fault::Unsent,
        Fault::Refused,
        Fault::Stale,
        Fault::Reset,
        Fault::Status(503),
        Fault::Grpc(14),
    ];

    #[test]
    fn by_default_only_what_nobody_acted_on_or_may_be_done_twice_over_an_old_connection() {
        let tried = |method| FAULTS.map(|fault| again(&json!({}), fault, &method, &[]));
        assert_eq!(tried(Method::GET), [true, true, true, true, false, false, false]);
        assert_eq!(tried(Method::POST), [true, true, true, false, false, false, false]);
    }

    #[test]
    fn each_condition_is_for_its_own_faults() {
        for (condition, faults) in [
            ("connect", [true, true, false, false, false, false, false]),
            ("stale", [false, true, false, true, false, false, false]),
            ("refused_stream", [false, false, true, false, false, false, false]),
            ("reset", [false, false, false, true, true, false, false]),
            ("500-503", [false, false, false, false, false, true, false]),
            ("grpc:unavailable", [false, false, false, false, false, false, true]),
        ] {
            let written = json!({"conditions": [condition]});
            assert_eq!(FAULTS.map(|fault| again(&written, fault, &Method::GET, &[])), faults, "{condition}");
        }
    }

    #[test]
    fn a_post_is_repeated_where_that_is_written() {
        let key = [("idempotency-key", "\"k1\"")];
        for (more, fields, repeated) in [
            (json!({}), &key[..], false),
            (json!({"idempotency_key": true}), &key, true),
            (json!({"idempotency_key": true}), &[], false),
            (json!({"methods": "all"}), &[], true),
            (json!({"methods": ["POST"]}), &[], true),
            (json!({"methods": ["GET"]}), &[], false),
        ] {
            let mut written = json!({"conditions": ["reset"]});
            written.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
            assert_eq!(
                again(&written, Fault::Reset, &Method::POST, fields),
                repeated,
                "{written} {fields:?}"
            );
        }
        assert!(!again(
            &json!({"conditions": ["reset"], "methods": ["POST"]}),
            Fault::Reset,
            &Method::GET,
            &[]
        ));
    }

    #[test]
    fn waits_double_up_to_the_longest_and_end_with_max() {
        let written = json!({"max": 4, "conditions": ["connect"], "backoff": "25ms..150ms"});
        let mut progress = Progress::default();
        let waits: Vec<_> = (0..5)
            .map(|_| judged(&written, Fault::Connect, &Method::GET, &[], &mut progress, None))
            .map(|again| again.map(|after| after.as_millis()))
            .collect();
        assert_eq!(waits, [Ok(25), Ok(50), Ok(100), Ok(150), Err(false)]);
    }

    #[test]
    fn old_connections_do_not_count_against_max_and_are_three_at_most() {
        let written = json!({"max": 0});
        let mut progress = Progress::default();
        let mut old = || judged(&written, Fault::Stale, &Method::GET, &[], &mut progress, None).is_ok();
        assert_eq!([old(), old(), old(), old()], [true, true, true, false]);
        assert!(!again(&written, Fault::Connect, &Method::GET, &[]));
    }

    #[test]
    fn a_wait_beyond_the_time_left_is_not_begun() {
        let written = json!({"conditions": ["connect"], "backoff": "25ms..150ms"});
        let judge = |millis| {
            let left = Some(Duration::from_millis(millis));
            judged(&written, Fault::Connect, &Method::GET, &[], &mut Progress::default(), left).is_ok()
        };
        assert!(!judge(25) && judge(26));
    }

    #[test]
    fn answers_are_only_faults_where_the_rules_name_them() {
        let budget = Budget::new(Instant::now());
        let of = |conditions: Value, status, grpc: Option<&str>| {
            let retries: Retries = serde_json::from_value(json!({"conditions": conditions})).unwrap();
            let mut headers = HeaderMap::new();
            grpc.map(|status| headers.insert(GRPC_STATUS.clone(), status.parse().unwrap()));
            Rules::new(&retries, None, &budget).fault_of(status, Some(&headers))
        };
        assert_eq!(of(json!(["connect"]), 503, Some("14")), None);
        assert_eq!(of(json!([503]), 503, None), Some(Fault::Status(503)));
        assert_eq!(of(json!([503]), 502, None), None);
        assert_eq!(of(json!(["grpc:unavailable"]), 200, Some("14")), Some(Fault::Grpc(14)));
        assert_eq!(of(json!(["grpc:unavailable"]), 200, Some("0")), None);
        assert_eq!(of(json!(["grpc:unavailable"]), 200, None), None);
    }

    #[test]
    fn a_body_is_kept_only_where_it_may_be_needed() {
        let (budget, none) = (Budget::new(Instant::now()), HeaderMap::new());
        let keep = |conditions: Value, method, reused| {
            let retries: Retries = serde_json::from_value(json!({"conditions": conditions})).unwrap();
            Rules::new(&retries, None, &budget).keep(&method, &none, reused)
        };
        let all = Keep::All(64 * 1024);
        assert_eq!(keep(json!(["connect", "stale"]), Method::PUT, false), Keep::Nothing);
        assert_eq!(keep(json!(["connect", "stale"]), Method::PUT, true), all);
        assert_eq!(keep(json!(["connect", "stale"]), Method::POST, true), Keep::Unsent);
        assert_eq!(keep(json!(["reset"]), Method::PUT, false), all);
        assert_eq!(keep(json!(["reset"]), Method::POST, false), Keep::Nothing);
    }

    #[test]
    fn what_is_out_of_budget_is_told_apart() {
        let (budget, headers) = (Budget::new(Instant::now()), HeaderMap::new());
        let retries: Retries = serde_json::from_value(json!({"budget": "0%", "backoff": "0s..0s"})).unwrap();
        let asked = Asked { method: &Method::GET, headers: &headers, repeatable: true, left: None };
        let now = Instant::now();
        let rules = Rules::new(&retries, None, &budget);
        let judge = || rules.judge(Fault::Connect, &asked, &mut Progress::default(), now, 0.5);
        let judged: Vec<_> = (0..11).map(|_| judge()).collect();
        assert_eq!(judged[9], Ok(Duration::ZERO));
        assert_eq!(judged[10], Err(true));
        let mut progress = Progress::default();
        let mut refused = || rules.judge(Fault::Refused, &asked, &mut progress, now, 0.5);
        assert_eq!(
            [refused(), refused()],
            [Ok(Duration::ZERO), Err(true)],
            "the first one of a request is free"
        );
    }
}
