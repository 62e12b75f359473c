//! Steps in written order, and which of them ran.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use pingora_http::{RequestHeader, ResponseHeader};

use crate::caching::Ask;
use crate::context::{Context, EndedBy, Verdict};
use crate::filter::Declared;
use crate::outcome::{FilterError, Outcome, Reply};
use crate::phase::{Completed, Phases};
use crate::problem::{FILTER_UNAVAILABLE, FORBIDDEN, INTERNAL, Problem};
use crate::selector::write_part;
use crate::when::When;
use crate::world::{Counter, Metrics};

/// One filter instance in its place: shared by every pipeline that names it.
pub struct Step {
    /// The filter's name.
    pub filter: &'static str,
    /// The instance's retained id.
    pub instance: Arc<str>,
    /// What it declared about itself.
    pub declared: Declared,
    phases: Phases,
    when: Option<When>,
    continue_on_error: bool,
    dry_run: bool,
    counters: Counters,
}

struct Counters {
    answered: Counter,
    would_answer: Counter,
    failed: Counter,
    warned: AtomicU64,
}

/// How a step behaves around its filter.
#[derive(Default)]
pub struct Siblings {
    /// The condition under which it runs.
    pub when: Option<When>,
    /// Failures let the request pass.
    pub continue_on_error: bool,
    /// Evaluate, count and log, but never enforce.
    pub dry_run: bool,
}

impl Step {
    /// Puts a built filter into its place.
    #[must_use]
    pub fn new(
        filter: &'static str,
        instance: Arc<str>,
        phases: Phases,
        declared: Declared,
        siblings: Siblings,
        metrics: &dyn Metrics,
    ) -> Self {
        let counter = |verdict| {
            let help = "What filters decided, by filter and verdict.";
            metrics.counter(
                "tollhouse_filter_decisions_total",
                help,
                &[("filter", filter), ("verdict", verdict)],
            )
        };
        let counters = Counters {
            answered: counter("answered"),
            would_answer: counter("would_answer"),
            failed: counter("failed"),
            warned: AtomicU64::new(0),
        };
        let Siblings { when, continue_on_error, dry_run } = siblings;
        Self { filter, instance, declared, phases, when, continue_on_error, dry_run, counters }
    }

    /// Whether what it provides can be relied on: it always runs and always enforces.
    #[must_use]
    pub fn is_unconditional(&self) -> bool {
        self.when.is_none() && !self.dry_run && !self.continue_on_error
    }

    /// A failure of the step, as the user wants it treated.
    fn failed(&self, error: &FilterError, ctx: &mut Context) -> Option<Reply> {
        self.counters.failed.inc();
        self.warn(error);
        // A dry run enforces nothing, not even its own failure.
        if self.continue_on_error || self.dry_run {
            ctx.decide(Verdict::FailedOpen, error.to_string(), &[]);
            return None;
        }
        ctx.decide(Verdict::Failed, error.to_string(), &[]);
        self.ended(ctx, Some("the filter failed".into()));
        let mut problem = Problem::new(match error {
            FilterError::Unavailable(_) | FilterError::Later { .. } => &FILTER_UNAVAILABLE,
            FilterError::Internal(_) => &INTERNAL,
        });
        if let FilterError::Later { seconds, .. } = error {
            problem.retry_after = Some(*seconds);
        }
        Some(problem.into())
    }

    /// Nobody can tell whether it runs, so the request does not pass, unless failures let it.
    fn undecided(&self, why: &str, ctx: &mut Context) -> Option<Reply> {
        let reason = format!("`when` cannot be evaluated: {why}");
        if self.continue_on_error {
            self.counters.failed.inc();
            ctx.decide(Verdict::FailedOpen, reason, &[]);
            return None;
        }
        self.enforce(Problem::new(&FORBIDDEN).reason(reason).into(), ctx)
    }

    /// At most one line a second and step, however many requests fail.
    fn warn(&self, error: &FilterError) {
        let now = std::time::UNIX_EPOCH.elapsed().map_or(0, |since| since.as_secs());
        if self.counters.warned.swap(now, Ordering::Relaxed) != now {
            log::warn!(filter = self.filter, instance = &*self.instance; "filter failed: {error}");
        }
    }

    fn ended(&self, ctx: &mut Context, reason: Option<std::borrow::Cow<'static, str>>) {
        ctx.ended_by = Some(EndedBy { filter: self.filter, instance: self.instance.clone(), reason });
    }

    /// Counts and notes an answer, and says whether it stands.
    fn enforce(&self, reply: Reply, ctx: &mut Context) -> Option<Reply> {
        if self.dry_run {
            self.counters.would_answer.inc();
            ctx.decide(Verdict::WouldAnswer, format!("would answer {}", reply.status()), &[]);
            return None;
        }
        self.counters.answered.inc();
        ctx.decide(Verdict::Answered, format!("answered {}", reply.status()), &[]);
        let reason = match &reply {
            Reply::Problem(problem) => {
                let said = problem.reason.clone().or_else(|| problem.detail.clone());
                said.or(Some(problem.kind.code.into()))
            }
            Reply::Message(_) => None,
        };
        self.ended(ctx, reason);
        Some(reply)
    }

    async fn run(&self, request: &mut RequestHeader, ctx: &mut Context) -> Option<Stop> {
        let filter = self.phases.request.as_ref()?;
        let outcome = if self.dry_run {
            dry(&**filter, request, ctx).await
        } else {
            filter.on_request(request, ctx).await
        };
        match outcome {
            Ok(Outcome::Cache(ask)) => Some(Stop::Cache(ask)),
            outcome => self.settle(outcome, ctx).map(Stop::Reply),
        }
    }

    fn settle(&self, outcome: Result<Outcome, FilterError>, ctx: &mut Context) -> Option<Reply> {
        match outcome {
            Ok(Outcome::Continue | Outcome::Cache(_)) => None,
            Ok(Outcome::Respond(reply)) => self.enforce(reply, ctx),
            Err(error) => self.failed(&error, ctx),
        }
    }
}

/// Runs a step without letting it change anything that others see.
async fn dry(
    filter: &dyn crate::phase::OnRequest,
    request: &RequestHeader,
    ctx: &mut Context,
) -> Result<Outcome, FilterError> {
    let before =
        (ctx.policies.clone(), ctx.principal.clone(), ctx.consumer.clone(), ctx.identity.clone(), ctx.tenant);
    let chosen = (ctx.version.clone(), ctx.variant.clone(), ctx.upstream.clone(), ctx.deadline);
    let limits = ctx.limits.len();
    ctx.dry_run = true;
    let outcome = filter.on_request(&mut request.clone(), ctx).await;
    ctx.dry_run = false;
    ctx.limits.truncate(limits);
    (ctx.policies, ctx.principal, ctx.consumer, ctx.identity, ctx.tenant) = before;
    (ctx.version, ctx.variant, ctx.upstream, ctx.deadline) = chosen;
    outcome
}

/// The most steps one pipeline can hold: one bit each says which ran.
pub const MAX_STEPS: usize = 64;

/// Steps in written order, with the phases that have any takers laid out beside them.
#[derive(Default)]
pub struct Pipeline {
    steps: Box<[Arc<Step>]>,
    request_body: Box<[u8]>,
    request_chunk: Box<[u8]>,
    upstream_request: Box<[u8]>,
    response: Box<[u8]>,
    response_chunk: Box<[u8]>,
    finish: Box<[u8]>,
}

impl Pipeline {
    /// Lays out the phases of these steps; at most [`MAX_STEPS`].
    #[must_use]
    pub fn new(steps: Vec<Arc<Step>>) -> Self {
        assert!(steps.len() <= MAX_STEPS, "the compiler of documents refuses longer pipelines");
        let takers = |takes: fn(&Phases) -> bool| -> Box<[u8]> {
            (0u8..).zip(&steps).filter(|(_, step)| takes(&step.phases)).map(|(at, _)| at).collect()
        };
        Self {
            request_body: takers(|phases| phases.request_body.is_some()),
            request_chunk: takers(|phases| phases.request_chunk.is_some()),
            upstream_request: takers(|phases| phases.upstream_request.is_some()),
            response: takers(|phases| phases.response.is_some()),
            response_chunk: takers(|phases| phases.response_chunk.is_some()),
            finish: takers(|phases| phases.finish.is_some()),
            steps: steps.into(),
        }
    }

    /// The steps, in written order.
    #[must_use]
    pub fn steps(&self) -> &[Arc<Step>] {
        &self.steps
    }
}

/// The pipelines of one request: the listener's, the service's and the route's, in this order.
#[derive(Clone)]
pub struct Stack(pub [Arc<Pipeline>; 3]);

impl Stack {
    /// Whether any step sees pieces of the request body.
    #[must_use]
    pub fn sees_request_chunks(&self) -> bool {
        self.0.iter().any(|pipeline| !pipeline.request_chunk.is_empty())
    }

    /// Whether any step sees what an attempt sends.
    #[must_use]
    pub fn sees_upstream_request(&self) -> bool {
        self.0.iter().any(|pipeline| !pipeline.upstream_request.is_empty())
    }

    /// Whether any step sees the head of the answer.
    #[must_use]
    pub fn sees_response(&self) -> bool {
        self.0.iter().any(|pipeline| !pipeline.response.is_empty())
    }

    /// Whether any step sees pieces of the answer's body.
    #[must_use]
    pub fn sees_response_chunks(&self) -> bool {
        self.0.iter().any(|pipeline| !pipeline.response_chunk.is_empty())
    }

    /// Whether a step answers CORS preflight requests.
    #[must_use]
    pub fn answers_preflight(&self) -> bool {
        self.0.iter().flat_map(|pipeline| &*pipeline.steps).any(|step| step.declared.answers_preflight)
    }
}

/// Why the request phase stopped before its end.
#[derive(Debug)]
pub enum Stop {
    /// A step answered.
    Reply(Reply),
    /// What follows is behind a cache; asked again, the phase goes on with it.
    Cache(Box<Ask>),
}

/// Which steps of a stack were entered: one bit each.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Entered {
    steps: [u64; 3],
    /// Where the request phase goes on: the pipeline, and the step in it.
    next: (usize, usize),
}

impl Entered {
    fn add(&mut self, pipeline: usize, step: usize) {
        self.steps[pipeline] |= 1 << step;
    }

    /// Appends to `key` which steps were entered: those that were not write nothing for upstreams.
    pub fn write_key(self, key: &mut Vec<u8>) {
        self.steps.iter().for_each(|steps| key.extend_from_slice(&steps.to_be_bytes()));
    }

    /// What is still to be entered, with none of what was.
    #[must_use]
    pub fn rest(self) -> Self {
        Self { next: self.next, ..Self::default() }
    }

    fn has(self, pipeline: usize, step: u8) -> bool {
        self.steps[pipeline] & (1 << step) != 0
    }

    /// The entered steps among these takers, in written order.
    fn steps(
        self,
        stack: &Stack,
        takers: fn(&Pipeline) -> &[u8],
    ) -> impl DoubleEndedIterator<Item = &Arc<Step>> {
        stack.0.iter().enumerate().flat_map(move |(nth, pipeline)| {
            let entered = takers(pipeline).iter().filter(move |step| self.has(nth, **step));
            entered.map(|step| &pipeline.steps[usize::from(*step)])
        })
    }

    /// Runs the request phase of every step that is not yet through it, in written order; stops at the first
    /// answer, and at a cache.
    pub async fn request(
        &mut self,
        stack: &Stack,
        request: &mut RequestHeader,
        ctx: &mut Context,
    ) -> Option<Stop> {
        let (first, from) = self.next;
        for (nth, pipeline) in stack.0.iter().enumerate().skip(first) {
            let from = if nth == first { from } else { 0 };
            for (at, step) in pipeline.steps.iter().enumerate().skip(from) {
                self.next = (nth, at + 1);
                ctx.enter_step(step.filter, &step.instance);
                match step.when.as_ref().map_or(Ok(true), |when| when.holds(request, ctx)) {
                    Ok(true) => {}
                    Ok(false) => {
                        ctx.decide(Verdict::Skipped, "`when` does not hold", &[]);
                        continue;
                    }
                    Err(why) => match step.undecided(&why, ctx) {
                        Some(reply) => return Some(Stop::Reply(reply)),
                        None => continue,
                    },
                }
                // A dry run decides here and is never seen again.
                if !step.dry_run {
                    self.add(nth, at);
                }
                let decided = ctx.decisions().len();
                if let Some(stop) = step.run(request, ctx).await {
                    return Some(stop);
                }
                if ctx.keeps_decisions() && ctx.decisions().len() == decided {
                    ctx.decide(Verdict::Passed, "", &[]);
                }
            }
        }
        None
    }

    /// Enters the steps of the listener and the service that see answers, for a request that is answered before any
    /// step runs.
    pub fn answered_early(&mut self, stack: &Stack, request: &RequestHeader, ctx: &Context) {
        for (nth, pipeline) in stack.0.iter().enumerate().take(2) {
            for at in pipeline.response.iter().chain(&pipeline.response_chunk) {
                let step = &pipeline.steps[usize::from(*at)];
                let runs = step.when.as_ref().is_none_or(|when| when.holds(request, ctx) == Ok(true));
                if runs && !step.dry_run {
                    self.add(nth, usize::from(*at));
                }
            }
        }
    }

    /// The largest body that every entered step which wants the whole of it takes; `None` when none does.
    #[must_use]
    pub fn wants_body(self, stack: &Stack, ctx: &Context) -> Option<u64> {
        let steps = self.steps(stack, |pipeline| &pipeline.request_body);
        let filters = steps.filter_map(|step| step.phases.request_body.as_ref());
        filters.filter(|filter| filter.wants(ctx)).map(|filter| filter.max_bytes()).min()
    }

    /// Runs the body phase of the entered steps; stops at the first answer.
    pub async fn request_body(
        self,
        stack: &Stack,
        request: &mut RequestHeader,
        body: &mut Bytes,
        ctx: &mut Context,
    ) -> Option<Reply> {
        for step in self.steps(stack, |pipeline| &pipeline.request_body) {
            let Some(filter) = step.phases.request_body.as_ref().filter(|filter| filter.wants(ctx)) else {
                continue;
            };
            ctx.enter_step(step.filter, &step.instance);
            let outcome = filter.on_request_body(request, body, ctx).await;
            if let Some(reply) = step.settle(outcome, ctx) {
                return Some(reply);
            }
        }
        None
    }

    /// Passes a piece of the request body through the entered steps; stops at the first answer.
    pub fn request_chunk(
        self,
        stack: &Stack,
        chunk: &mut Bytes,
        end: bool,
        ctx: &mut Context,
    ) -> Option<Reply> {
        self.steps(stack, |pipeline| &pipeline.request_chunk).find_map(|step| {
            let filter = step.phases.request_chunk.as_ref()?;
            ctx.enter_step(step.filter, &step.instance);
            let outcome = filter.on_request_chunk(chunk, end, ctx);
            step.settle(outcome, ctx)
        })
    }

    /// Appends to `key` the fields that entered steps write for upstreams of who calls: two requests for which
    /// they differ are two to the upstream.
    pub async fn identity_key(self, stack: &Stack, ctx: &mut Context, key: &mut Vec<u8>) {
        let identifies = |step: &&Arc<Step>| !step.declared.identity_headers.is_empty();
        for step in self.steps(stack, |pipeline| &pipeline.upstream_request).filter(identifies) {
            let Some(filter) = &step.phases.upstream_request else { continue };
            let Ok(mut head) = RequestHeader::build("GET", b"/", None) else { continue };
            // What fails here fails the request, when it is sent.
            let _ = filter.on_upstream_request(&mut head, 1, ctx).await;
            for (name, value) in &head.headers {
                write_part(name.as_str().as_bytes(), key);
                write_part(value.as_bytes(), key);
            }
        }
    }

    /// Runs the entered steps on what one attempt sends.
    pub async fn upstream_request(
        self,
        stack: &Stack,
        request: &mut RequestHeader,
        attempt: u32,
        ctx: &mut Context,
    ) -> Option<Reply> {
        for step in self.steps(stack, |pipeline| &pipeline.upstream_request) {
            let Some(filter) = &step.phases.upstream_request else { continue };
            ctx.enter_step(step.filter, &step.instance);
            if let Err(error) = filter.on_upstream_request(request, attempt, ctx).await
                && let Some(reply) = step.failed(&error, ctx)
            {
                return Some(reply);
            }
        }
        None
    }

    /// Runs the entered steps on the head of the answer, in reverse.
    ///
    /// An error aborts the answer whatever `on_error` says: half of a change is worse than none.
    pub async fn response(
        self,
        stack: &Stack,
        request: &RequestHeader,
        response: &mut ResponseHeader,
        ctx: &mut Context,
    ) -> Result<(), FilterError> {
        for step in self.steps(stack, |pipeline| &pipeline.response).rev() {
            let Some(filter) = &step.phases.response else { continue };
            ctx.enter_step(step.filter, &step.instance);
            let result = filter.on_response(request, response, ctx).await;
            result.inspect_err(|error| step.aborted(error))?;
        }
        Ok(())
    }

    /// Shows a piece of the answer's body to the entered steps, in reverse.
    pub fn response_chunk(
        self,
        stack: &Stack,
        chunk: &mut Option<Bytes>,
        end: bool,
        ctx: &mut Context,
    ) -> Result<(), FilterError> {
        for step in self.steps(stack, |pipeline| &pipeline.response_chunk).rev() {
            let Some(filter) = &step.phases.response_chunk else { continue };
            ctx.enter_step(step.filter, &step.instance);
            filter.on_response_chunk(chunk, end, ctx).inspect_err(|error| step.aborted(error))?;
        }
        Ok(())
    }

    /// Tells the entered steps how the request ended, in reverse.
    pub fn finish(self, stack: &Stack, completed: &Completed, ctx: &mut Context) {
        for step in self.steps(stack, |pipeline| &pipeline.finish).rev() {
            if let Some(filter) = &step.phases.finish {
                ctx.enter_step(step.filter, &step.instance);
                filter.on_finish(completed, ctx);
            }
        }
    }
}

impl Step {
    fn aborted(&self, error: &FilterError) {
        self.counters.failed.inc();
        self.warn(error);
    }
}
