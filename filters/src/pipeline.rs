//! Steps in written order, and which of them ran.

mod entered;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use pingora_http::RequestHeader;

use crate::context::{Context, EndedBy, Verdict};
use crate::filter::Declared;
use crate::outcome::{FilterError, Outcome, Reply};
use crate::phase::Phases;
use crate::problem::{FILTER_UNAVAILABLE, FORBIDDEN, INTERNAL, Problem};
use crate::when::When;
use crate::world::{Counter, Metrics};

pub use self::entered::{Entered, Stop};

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

    /// Whether it has a `when`.
    #[must_use]
    pub fn is_conditional(&self) -> bool {
        self.when.is_some()
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
pub struct Stack(Arc<Layers>);

/// What all requests of a route and a listener share.
struct Layers {
    pipelines: [Arc<Pipeline>; 3],
    /// Steps that stand before already, as those of a chain that two lists name do: one bit each.
    repeated: [u64; 3],
    /// What any step sees, looked at once: most requests have nobody who sees anything.
    request_body: bool,
    request_chunks: bool,
    upstream_request: bool,
    response: bool,
    response_chunks: bool,
    finish: bool,
}

impl Stack {
    /// Puts pipelines on top of each other.
    #[must_use]
    pub fn new(pipelines: [Arc<Pipeline>; 3]) -> Self {
        let any =
            |takers: fn(&Pipeline) -> &[u8]| pipelines.iter().any(|pipeline| !takers(pipeline).is_empty());
        Self(Arc::new(Layers {
            request_body: any(|pipeline| &pipeline.request_body),
            request_chunks: any(|pipeline| &pipeline.request_chunk),
            upstream_request: any(|pipeline| &pipeline.upstream_request),
            response: any(|pipeline| &pipeline.response),
            response_chunks: any(|pipeline| &pipeline.response_chunk),
            finish: any(|pipeline| &pipeline.finish),
            repeated: repeated(&pipelines),
            pipelines,
        }))
    }

    /// Whether the step at this place of a pipeline stands before it already. A filter has one place for what it
    /// keeps of a request, so that it sees a request once, where it stands first.
    fn is_repeated(&self, pipeline: usize, step: usize) -> bool {
        self.0.repeated[pipeline] & (1 << step) != 0
    }

    /// The pipelines, the listener's first.
    #[must_use]
    pub fn pipelines(&self) -> &[Arc<Pipeline>; 3] {
        &self.0.pipelines
    }

    /// Whether any step sees the whole request body.
    #[must_use]
    pub fn sees_request_body(&self) -> bool {
        self.0.request_body
    }

    /// Whether any step sees pieces of the request body.
    #[must_use]
    pub fn sees_request_chunks(&self) -> bool {
        self.0.request_chunks
    }

    /// Whether any step sees what an attempt sends.
    #[must_use]
    pub fn sees_upstream_request(&self) -> bool {
        self.0.upstream_request
    }

    /// Whether any step sees the head of the answer.
    #[must_use]
    pub fn sees_response(&self) -> bool {
        self.0.response
    }

    /// Whether any step sees pieces of the answer's body.
    #[must_use]
    pub fn sees_response_chunks(&self) -> bool {
        self.0.response_chunks
    }

    /// Whether any step is told how the request ended.
    #[must_use]
    pub fn sees_the_end(&self) -> bool {
        self.0.finish
    }

    /// Whether a step answers CORS preflight requests.
    #[must_use]
    pub fn answers_preflight(&self) -> bool {
        self.pipelines()
            .iter()
            .flat_map(|pipeline| &*pipeline.steps)
            .any(|step| step.declared.answers_preflight)
    }
}

fn repeated(pipelines: &[Arc<Pipeline>; 3]) -> [u64; 3] {
    let mut repeated = [0; 3];
    let mut before: Vec<&Arc<Step>> = Vec::new();
    for (repeated, pipeline) in repeated.iter_mut().zip(pipelines) {
        for (at, step) in pipeline.steps.iter().enumerate() {
            if before.iter().any(|known| Arc::ptr_eq(known, step)) {
                *repeated |= 1 << at;
            } else {
                before.push(step);
            }
        }
    }
    repeated
}

impl Step {
    fn aborted(&self, error: &FilterError) {
        self.counters.failed.inc();
        self.warn(error);
    }
}
