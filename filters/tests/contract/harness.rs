//! Filters that write down each call, and pipelines of them on a made-up world.

use std::sync::Arc;
use std::sync::atomic::AtomicU32;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use bytes::Bytes;
use pingora_http::{RequestHeader, ResponseHeader};
use schemars::JsonSchema;
use serde::Deserialize;
use tollhouse_filters::context::{Context, Principal, Slot, Verdict};
use tollhouse_filters::filter::{Build, BuildError, Declared, Filter, Surroundings};
use tollhouse_filters::outcome::{FilterError, Outcome, Reply};
use tollhouse_filters::path::{PathRules, normalize};
use tollhouse_filters::phase::{
    Completed, OnFinish, OnRequest, OnRequestBody, OnRequestChunk, OnResponse, OnResponseChunk,
    OnUpstreamRequest, Phases,
};
use tollhouse_filters::pipeline::{Entered, Pipeline, Siblings, Stack, Step, Stop};
use tollhouse_filters::registry::Registry;
use tollhouse_filters::spec::{Item, OnError};
use tollhouse_filters::tree::{self, FileId, Limits};
use tollhouse_filters::when::When;
use tollhouse_filters::world::{
    Gauge, ManualClock, MemoryMetrics, MemoryState, ScriptedClient, TenantId, UpstreamId, World,
};

/// What a probe does in a phase, once it has written the phase down.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub(super) enum Act {
    #[default]
    Pass,
    Reply,
    Unavailable,
    Internal,
    Panic,
    /// Waits for ever, holding a guard in its future and another one in its slot.
    Wait,
    /// Changes whatever others could see.
    Change,
    /// Keeps the pieces back until the last one.
    HoldBack,
}

#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Options {
    request: Act,
    body: Act,
    request_chunk: Act,
    upstream: Act,
    response: Act,
    response_chunk: Act,
    /// Added to bodies and to each piece of an answer.
    append: String,
    max_bytes: Option<u64>,
}

/// Takes part in every phase, and in the body phase if it has `max_bytes`.
pub(super) struct Probe {
    options: Options,
    guards: Gauge,
    held: Slot<Held>,
}

#[derive(Default)]
struct Held {
    guard: Option<Guard>,
    pieces: Vec<u8>,
}

/// Counted as long as it lives.
struct Guard(Gauge);

impl Guard {
    fn new(gauge: &Gauge) -> Self {
        gauge.inc();
        Self(gauge.clone())
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        self.0.dec();
    }
}

impl Filter for Probe {
    const NAME: &'static str = "probe";
    const DECIDES: bool = true;
    type Options = Options;

    fn build(options: Options, build: &mut Build<'_>) -> Result<Phases, BuildError> {
        let guards = build.metrics().gauge("guards", "Guards alive.", &[]);
        let wants_body = options.max_bytes.is_some();
        let probe = Arc::new(Self { options, guards, held: build.slot() });
        let phases = Phases::new()
            .on_request(probe.clone())
            .on_request_chunk(probe.clone())
            .on_upstream_request(probe.clone())
            .on_response(probe.clone())
            .on_response_chunk(probe.clone())
            .on_finish(probe.clone());
        Ok(if wants_body { phases.on_request_body(probe) } else { phases })
    }
}

impl Probe {
    fn act(&self, act: Act, phase: &'static str, ctx: &mut Context) -> Result<Outcome, FilterError> {
        ctx.decide(Verdict::Changed, phase, &[]);
        match act {
            Act::Reply => Ok(Reply::message(ResponseHeader::build(418, None)?, phase).into()),
            Act::Unavailable => Err(FilterError::Unavailable("the store is down".to_owned())),
            Act::Internal => Err(FilterError::Internal("a bug".to_owned())),
            Act::Panic => panic!("a filter's own fault"),
            Act::Pass | Act::Wait | Act::Change | Act::HoldBack => Ok(Outcome::Continue),
        }
    }
}

#[async_trait]
impl OnRequest for Probe {
    async fn on_request(
        &self,
        request: &mut RequestHeader,
        ctx: &mut Context,
    ) -> Result<Outcome, FilterError> {
        ctx.slot_mut(self.held).guard = Some(Guard::new(&self.guards));
        if self.options.request == Act::Change {
            request.insert_header("x-changed", "yes")?;
            ctx.policies.body_limit = Some(1);
            ctx.principal =
                Some(Arc::new(Principal { subject: "eve".to_owned(), claims: Default::default() }));
            ctx.tenant = TenantId(7);
            ctx.variant = Some("b".into());
        }
        if self.options.request == Act::Wait {
            let _mine = Guard::new(&self.guards);
            std::future::pending::<()>().await;
        }
        self.act(self.options.request, "request", ctx)
    }
}

#[async_trait]
impl OnRequestBody for Probe {
    fn max_bytes(&self) -> u64 {
        self.options.max_bytes.unwrap_or(u64::MAX)
    }

    async fn on_request_body(
        &self,
        request: &mut RequestHeader,
        body: &mut Bytes,
        ctx: &mut Context,
    ) -> Result<Outcome, FilterError> {
        *body = [&**body, self.options.append.as_bytes()].concat().into();
        request.insert_header("x-body", body.len())?;
        self.act(self.options.body, "body", ctx)
    }
}

impl OnRequestChunk for Probe {
    fn on_request_chunk(
        &self,
        chunk: &mut Bytes,
        end: bool,
        ctx: &mut Context,
    ) -> Result<Outcome, FilterError> {
        let mut piece = [&**chunk, self.options.append.as_bytes()].concat();
        if self.options.request_chunk == Act::HoldBack {
            let held = &mut ctx.slot_mut(self.held).pieces;
            held.append(&mut piece);
            piece = if end { std::mem::take(held) } else { Vec::new() };
        }
        *chunk = piece.into();
        self.act(self.options.request_chunk, "request chunk", ctx)
    }
}

#[async_trait]
impl OnUpstreamRequest for Probe {
    async fn on_upstream_request(
        &self,
        request: &mut RequestHeader,
        attempt: u32,
        ctx: &mut Context,
    ) -> Result<(), FilterError> {
        request.append_header("x-attempt", attempt)?;
        self.act(self.options.upstream, "upstream", ctx).map(drop)
    }
}

#[async_trait]
impl OnResponse for Probe {
    async fn on_response(
        &self,
        _: &RequestHeader,
        response: &mut ResponseHeader,
        ctx: &mut Context,
    ) -> Result<(), FilterError> {
        response.append_header("x-seen", "1")?;
        self.act(self.options.response, "response", ctx).map(drop)
    }
}

impl OnResponseChunk for Probe {
    fn on_response_chunk(
        &self,
        chunk: &mut Option<Bytes>,
        end: bool,
        ctx: &mut Context,
    ) -> Result<(), FilterError> {
        if let Some(piece) = chunk.as_ref().filter(|piece| !piece.is_empty() || end) {
            let mut piece = [&**piece, self.options.append.as_bytes()].concat();
            if self.options.response_chunk == Act::HoldBack {
                let held = &mut ctx.slot_mut(self.held).pieces;
                held.append(&mut piece);
                piece = if end { std::mem::take(held) } else { Vec::new() };
            }
            *chunk = Some(piece.into());
        }
        self.act(self.options.response_chunk, "response chunk", ctx).map(drop)
    }
}

impl OnFinish for Probe {
    fn on_finish(&self, completed: &Completed, ctx: &mut Context) {
        ctx.decide(Verdict::Changed, format!("finish {}", completed.status), &[]);
    }
}

/// Three pipelines and the world they were built in.
pub(super) struct Gateway {
    pub(super) stack: Stack,
    pub(super) client: Arc<ScriptedClient>,
    pub(super) metrics: Arc<MemoryMetrics>,
}

/// The filters of a listener, a service and a route; the instances are named as written.
pub(super) fn gateway(registry: &Registry, lists: [&str; 3]) -> Gateway {
    let clock = Arc::new(ManualClock::new());
    let (client, metrics) = (Arc::new(ScriptedClient::new()), Arc::new(MemoryMetrics::new()));
    let world = World {
        state: Arc::new(MemoryState::new(clock.clone(), 100)),
        client: client.clone(),
        metrics: metrics.clone(),
        ..World::dry_at(clock)
    };
    let slots = AtomicU32::new(0);
    let pipeline = |list| Arc::new(Pipeline::new(steps(registry, &world, &slots, list)));
    Gateway { stack: Stack::new(lists.map(pipeline)), client, metrics }
}

/// Probes on the route alone.
pub(super) fn probes(list: &str) -> Gateway {
    gateway(&Registry::new().with::<Probe>(), ["[]", "[]", list])
}

fn steps(registry: &Registry, world: &World, slots: &AtomicU32, list: &str) -> Vec<Arc<Step>> {
    let node = tree::parse(list, FileId(0), &Limits::default()).expect("valid YAML");
    let items: Vec<Item> = tree::from_node(&node).expect("filter items");
    let steps = items.into_iter().map(|item| {
        let Item::Filter(spec) = item else { panic!("a chain in a test") };
        let entry = registry.get(&spec.filter).expect("a filter of these tests");
        let instance: Arc<str> = spec.name.expect("a name").into();
        let mut build = Build::new(world, &OneUpstream, slots, instance.clone());
        let phases = entry.build(&spec.options.0, &mut build).expect("valid options");
        let siblings = Siblings {
            when: spec.when.map(When::new),
            continue_on_error: spec.on_error == OnError::Continue,
            dry_run: spec.dry_run,
        };
        let declared: Declared = build.into_declared();
        Arc::new(Step::new(entry.name, instance, phases, declared, siblings, &*world.metrics))
    });
    steps.collect()
}

struct OneUpstream;

impl Surroundings for OneUpstream {
    fn upstream(&self, name: &str) -> Option<UpstreamId> {
        (name == "main").then_some(UpstreamId(3))
    }

    fn nearest_upstream(&self, _: &str) -> Option<String> {
        None
    }
}

impl Gateway {
    /// A GET request that has just come in.
    pub(super) fn begin(&self, target: &str) -> Run {
        let head = RequestHeader::build("GET", target.as_bytes(), None).expect("a valid request");
        let path = normalize(head.uri.path(), &PathRules::default()).expect("a valid path");
        let mut ctx = Context::for_tests(path, Instant::now());
        ctx.keep_decisions();
        Run { stack: self.stack.clone(), entered: Entered::default(), head, ctx }
    }

    /// The request phase of a GET request, with the status it was answered with.
    pub(super) async fn send(&self, target: &str) -> (Run, Option<u16>) {
        let mut run = self.begin(target);
        let status = run.request().await;
        (run, status)
    }

    /// Guards alive.
    pub(super) fn guards(&self) -> i64 {
        use tollhouse_filters::world::Metrics;
        self.metrics.gauge("guards", "Guards alive.", &[]).get()
    }

    /// How many times steps decided this.
    pub(super) fn decided(&self, verdict: &str) -> Option<i64> {
        self.metrics.value("tollhouse_filter_decisions_total", &[("filter", "probe"), ("verdict", verdict)])
    }
}

/// A request on its way.
pub(super) struct Run {
    stack: Stack,
    entered: Entered,
    pub(super) head: RequestHeader,
    pub(super) ctx: Context,
}

impl Run {
    pub(super) async fn request(&mut self) -> Option<u16> {
        self.reply().await.map(|reply| reply.status())
    }

    pub(super) async fn reply(&mut self) -> Option<Reply> {
        match self.entered.request(&self.stack, &mut self.head, &mut self.ctx).await? {
            Stop::Reply(reply) => Some(reply),
            Stop::Cache(_) => panic!("no step here has a cache"),
        }
    }

    pub(super) fn wants_body(&self) -> Option<u64> {
        self.entered.wants_body(&self.stack, &self.ctx)
    }

    pub(super) async fn body(&mut self, body: &str) -> (Option<u16>, String) {
        let mut body = Bytes::copy_from_slice(body.as_bytes());
        let reply = self.entered.request_body(&self.stack, &mut self.head, &mut body, &mut self.ctx).await;
        (reply.map(|reply| reply.status()), String::from_utf8(body.into()).expect("text"))
    }

    pub(super) fn request_chunk(&mut self, piece: &'static str, end: bool) -> Option<u16> {
        self.request_piece(piece, end).err()
    }

    pub(super) fn request_piece(&mut self, piece: &'static str, end: bool) -> Result<String, u16> {
        let mut piece = Bytes::from_static(piece.as_bytes());
        match self.entered.request_chunk(&self.stack, &mut piece, end, &mut self.ctx) {
            Some(reply) => Err(reply.status()),
            None => Ok(String::from_utf8(piece.into()).expect("text")),
        }
    }

    /// One attempt, on a fresh copy of the head.
    pub(super) async fn attempt(&mut self, attempt: u32) -> (Option<u16>, RequestHeader) {
        let mut head = self.head.clone();
        let reply = self.entered.upstream_request(&self.stack, &mut head, attempt, &mut self.ctx).await;
        (reply.map(|reply| reply.status()), head)
    }

    /// How many steps saw the head of an answer.
    pub(super) async fn response(&mut self) -> Result<usize, FilterError> {
        let mut head = ResponseHeader::build(200, None).expect("valid");
        self.entered.response(&self.stack, &self.head, &mut head, &mut self.ctx).await?;
        Ok(head.headers.get_all("x-seen").iter().count())
    }

    pub(super) fn response_chunk(&mut self, piece: &'static str, end: bool) -> Result<String, FilterError> {
        let mut chunk = Some(Bytes::from_static(piece.as_bytes()));
        self.entered.response_chunk(&self.stack, &mut chunk, end, &mut self.ctx)?;
        Ok(String::from_utf8(chunk.expect("a piece stays a piece").into()).expect("text"))
    }

    pub(super) fn finish(&mut self, status: u16) {
        let completed = Completed { status, elapsed: Duration::ZERO, bytes_in: 0, bytes_out: 0 };
        self.entered.finish(&self.stack, &completed, &mut self.ctx);
    }

    /// What the probes wrote down: `a request`.
    pub(super) fn journal(&self) -> Vec<String> {
        let changes = self.ctx.decisions().iter().filter(|decision| decision.verdict == Verdict::Changed);
        changes.map(|decision| format!("{} {}", decision.instance, decision.reason)).collect()
    }

    /// What was decided: `a skipped`.
    pub(super) fn verdicts(&self) -> Vec<(String, Verdict, String)> {
        let decisions = self.ctx.decisions().iter();
        decisions
            .map(|decision| (decision.instance.to_string(), decision.verdict, decision.reason.to_string()))
            .collect()
    }
}
