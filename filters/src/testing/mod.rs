//! Test harness for filters: a pipeline from YAML, a fake world.

mod answer;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::AtomicU32;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use pingora_http::{RequestHeader, ResponseHeader};
use serde::de::DeserializeOwned;
use tokio::sync::Semaphore;

pub use answer::Answer;
use answer::joined;

use crate::builtin;
use crate::caching::Ask;
use crate::context::Context;
use crate::filter::{Build, BuildError, Surroundings};
use crate::identity::consumers::Consumers;
use crate::identity::{self, ConsumerSpec, Identities, IdentitySpec, Site};
use crate::outcome::{Body, Reply};
use crate::path::{PathRules, normalize};
use crate::phase::Completed;
use crate::pipeline::{Entered, Pipeline, Siblings, Stack, Step, Stop};
use crate::plan::{self, PlanSpec, Plans};
use crate::registry::Registry;
use crate::spec::{Item, OnError};
use crate::tree::{self, FileId, Limits, suggest};
use crate::values::Name;
use crate::when::When;
use crate::world::{
    Cached, Client, ClientError, ClientReply, ManualClock, Origin, ScriptedClient, UpstreamId, World,
};

/// Parses a value from YAML.
///
/// # Panics
/// When it is not valid: this is for tests.
pub fn yaml<T: DeserializeOwned>(text: &str) -> T {
    let node = tree::parse(text, FileId(0), &Limits::default()).expect("valid YAML");
    tree::from_node(&node).unwrap_or_else(|error| panic!("{}: {}", error.path, error.message))
}

/// A request and its context.
#[must_use]
pub fn request(method: &str, target: &str) -> (RequestHeader, Context) {
    let made = send(method, target);
    (made.head, made.ctx)
}

/// A pipeline under test.
pub struct Chain {
    stack: Stack,
    /// Moves the time that filters see.
    pub clock: Arc<ManualClock>,
}

/// A request under test.
pub struct Request {
    head: RequestHeader,
    ctx: Context,
}

/// A GET request from 192.0.2.1.
#[must_use]
pub fn get(target: &str) -> Request {
    send("GET", target)
}

/// A request from 192.0.2.1.
///
/// # Panics
/// When it is not valid.
#[must_use]
pub fn send(method: &str, target: &str) -> Request {
    let head = RequestHeader::build(method, target.as_bytes(), None).expect("a valid request");
    let path = normalize(head.uri.path(), &PathRules::default()).expect("a valid path");
    Request { head, ctx: Context::for_tests(path, std::time::Instant::now()) }
}

impl Request {
    /// Adds a header field.
    ///
    /// # Panics
    /// When it is not valid.
    #[must_use]
    pub fn header(mut self, name: &'static str, value: &str) -> Self {
        self.head.append_header(name, value).expect("a valid field");
        self
    }

    /// Changes the head.
    #[must_use]
    pub fn head(mut self, change: impl FnOnce(&mut RequestHeader)) -> Self {
        change(&mut self.head);
        self
    }

    /// The head and the context.
    #[must_use]
    pub fn into_parts(self) -> (RequestHeader, Context) {
        (self.head, self.ctx)
    }

    /// Changes the context.
    #[must_use]
    pub fn with(mut self, change: impl FnOnce(&mut Context)) -> Self {
        change(&mut self.ctx);
        self
    }
}

/// What surrounds filters under test: one upstream, some files, and identities.
#[derive(Default)]
struct Around {
    identities: Identities,
    plans: Plans,
}

/// The sections of a document that surround its filters.
#[derive(Default, serde::Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Document {
    identities: BTreeMap<Name, IdentitySpec>,
    consumers: Vec<ConsumerSpec>,
    plans: BTreeMap<Name, PlanSpec>,
}

/// What a document surrounds its filters with, or the first thing that is wrong with it.
fn around(document: &str, world: &World) -> Result<Around, String> {
    let node =
        tree::parse(document, FileId(0), &Limits::default()).map_err(|errors| errors[0].message.clone())?;
    let document: Document =
        tree::from_node(&node).map_err(|error| format!("{}: {}", error.path, error.message))?;
    let (plans, mut errors) = plan::build(&document.plans);
    let layout = identity::layout(&document.identities, &plans);
    let (index, more) = identity::index(&layout, document.consumers);
    errors.extend(more.into_iter().map(|error| {
        let path = tree::Path::default().join("consumers").concat(&error.path);
        BuildError { path, ..error }
    }));
    let mut around = Around { identities: Identities::default(), plans };
    let site = Site { world, surroundings: &around };
    let consumers = Arc::new(Consumers::new(layout, index));
    let (identities, more) = identity::build(&document.identities, &consumers, &site);
    errors.extend(more);
    match errors.first() {
        Some(error) => Err(format!("{}: {}", error.path, error.message)),
        None => {
            around.identities = identities;
            Ok(around)
        }
    }
}

/// Has a scripted client answer only as often as it is let.
pub struct Slow(pub Arc<ScriptedClient>, pub Arc<Semaphore>);

#[async_trait]
impl Client for Slow {
    async fn send(
        &self,
        upstream: UpstreamId,
        head: RequestHeader,
        body: Bytes,
        timeout: Option<Duration>,
    ) -> Result<ClientReply, ClientError> {
        let reply = self.0.send(upstream, head, body, timeout).await;
        self.1.acquire().await.expect("open").forget();
        reply
    }

    fn origin(&self, origin: &Origin) -> Option<UpstreamId> {
        self.0.origin(origin)
    }
}

/// Surrounds what is under test with one upstream, `main`.
pub struct Alone;

impl Surroundings for Alone {
    fn upstream(&self, name: &str) -> Option<UpstreamId> {
        (name == "main").then_some(UpstreamId(0))
    }

    fn nearest_upstream(&self, name: &str) -> Option<String> {
        suggest(name, ["main"]).map(str::to_owned)
    }
}

impl Surroundings for Around {
    fn identities(&self) -> Option<&Identities> {
        Some(&self.identities)
    }

    fn plans(&self) -> Option<&Plans> {
        Some(&self.plans)
    }

    fn upstream(&self, name: &str) -> Option<UpstreamId> {
        Alone.upstream(name)
    }

    fn nearest_upstream(&self, name: &str) -> Option<String> {
        Alone.nearest_upstream(name)
    }

    fn file(&self, path: &str) -> Result<String, String> {
        match path {
            "networks.txt" => Ok("# ours\n10.0.0.0/8\n\n  2001:db8::/32 # and theirs\r\n".to_owned()),
            "empty.txt" => Ok(String::new()),
            "bad.txt" => Ok("10.0.0.0/8\nexample.com\n".to_owned()),
            _ => Err(format!("cannot read {path}")),
        }
    }
}

/// The built-in filters in this order, on a fake clock and fresh state.
///
/// # Panics
/// When they do not build.
#[must_use]
pub fn chain(filters: &str) -> Chain {
    chain_of(&builtin(), filters).unwrap_or_else(|error| panic!("{error}"))
}

/// The message with which these filters do not build.
///
/// # Panics
/// When they do.
#[must_use]
pub fn refused(filters: &str) -> String {
    chain_of(&builtin(), filters).err().expect("the filters do not build")
}

/// As [`chain`], in a document with these `identities`, `consumers` and `plans`.
///
/// # Panics
/// When anything does not build.
#[must_use]
pub fn chain_with(document: &str, filters: &str) -> Chain {
    let clock = Arc::new(ManualClock::new());
    let world = World::dry_at(clock.clone());
    let around = around(document, &world).unwrap_or_else(|error| panic!("{error}"));
    build(&builtin(), &around, filters, world, clock).unwrap_or_else(|error| panic!("{error}"))
}

/// As [`refused`], for a document with these sections, which may be what is wrong.
///
/// # Panics
/// When all is well.
#[must_use]
pub fn refused_with(document: &str, filters: &str) -> String {
    let clock = Arc::new(ManualClock::new());
    let world = World::dry_at(clock.clone());
    let built = around(document, &world).and_then(|around| build(&builtin(), &around, filters, world, clock));
    built.err().expect("the document or the filters do not build")
}

/// As [`chain`], with this client for side calls.
///
/// # Panics
/// When they do not build.
#[must_use]
pub fn chain_calling(client: Arc<dyn Client>, filters: &str) -> Chain {
    let clock = Arc::new(ManualClock::new());
    let world = World { client, ..World::dry_at(clock.clone()) };
    build(&builtin(), &Around::default(), filters, world, clock).unwrap_or_else(|error| panic!("{error}"))
}

/// As [`chain`], with answers that are stored here.
///
/// # Panics
/// When they do not build.
#[must_use]
pub fn chain_caching(cached: Arc<dyn Cached>, filters: &str) -> Chain {
    let clock = Arc::new(ManualClock::new());
    let world = World::dry_at(clock.clone()).with_cached(cached);
    build(&builtin(), &Around::default(), filters, world, clock).unwrap_or_else(|error| panic!("{error}"))
}

/// Filters of a registry of your own, or why they do not build.
pub fn chain_of(registry: &Registry, filters: &str) -> Result<Chain, String> {
    let clock = Arc::new(ManualClock::new());
    build(registry, &Around::default(), filters, World::dry_at(clock.clone()), clock)
}

fn build(
    registry: &Registry,
    around: &Around,
    filters: &str,
    world: World,
    clock: Arc<ManualClock>,
) -> Result<Chain, String> {
    let slots = AtomicU32::new(0);
    let mut steps = Vec::new();
    let node =
        tree::parse(filters, FileId(0), &Limits::default()).map_err(|errors| errors[0].message.clone())?;
    let items: Vec<Item> = tree::from_node(&node).map_err(|error| error.message)?;
    for (at, item) in items.into_iter().enumerate() {
        let Item::Filter(spec) = item else { return Err("a chain in a test".to_owned()) };
        let entry = registry.get(&spec.filter).ok_or_else(|| format!("no filter `{}`", spec.filter))?;
        let instance: Arc<str> =
            spec.name.clone().unwrap_or_else(|| format!("test/{}#{at}", spec.filter)).into();
        let mut build = Build::new(&world, around, &slots, instance.clone());
        let phases = entry
            .build(&spec.options.0, &mut build)
            .map_err(|errors| format!("{}: {}", errors[0].path, errors[0].message))?;
        let siblings = Siblings {
            when: spec.when.map(When::new),
            continue_on_error: spec.on_error == OnError::Continue,
            dry_run: spec.dry_run,
        };
        let declared = build.into_declared();
        steps.push(Arc::new(Step::new(entry.name, instance, phases, declared, siblings, &*world.metrics)));
    }
    let none = Arc::new(Pipeline::default());
    Ok(Chain { stack: Stack([none.clone(), none, Arc::new(Pipeline::new(steps))]), clock })
}

/// What became of a request.
pub struct Sent {
    stack: Stack,
    entered: Entered,
    head: RequestHeader,
    reply: Option<Reply>,
    /// What a cache was asked.
    pub ask: Option<Box<Ask>>,
    /// The request's context.
    pub ctx: Context,
}

impl Chain {
    /// Runs the request phase.
    pub async fn send(&self, request: Request) -> Sent {
        let Request { mut head, mut ctx } = request;
        ctx.keep_decisions();
        let mut entered = Entered::default();
        let mut ask = None;
        let reply = loop {
            match entered.request(&self.stack, &mut head, &mut ctx).await {
                // There is no cache here: the request goes on.
                Some(Stop::Cache(held)) => ask = Some(held),
                Some(Stop::Reply(reply)) => break Some(reply),
                None => break None,
            }
        };
        Sent { stack: self.stack.clone(), entered, head, reply, ask, ctx }
    }

    /// Runs request and response phases, with this answer from the upstream.
    ///
    /// # Panics
    /// When the answer is not valid.
    pub async fn answer(&self, request: Request, fields: &[(&'static str, &str)]) -> Answer {
        self.send(request).await.answered(200, fields).await
    }
}

impl Sent {
    async fn filter(&mut self, head: &mut ResponseHeader) {
        let filtered = self.entered.response(&self.stack, &self.head, head, &mut self.ctx).await;
        filtered.expect("the response filters work");
    }

    /// Asserts that the request goes on.
    ///
    /// # Panics
    /// When it was answered.
    pub fn continues(self) -> Self {
        assert!(self.reply.is_none(), "answered: {:?}", self.reply);
        self
    }

    /// What callers are told in the detail of a problem, if it is answered with one.
    #[must_use]
    pub fn detail(&self) -> Option<&str> {
        match self.reply.as_ref()? {
            Reply::Problem(problem) => problem.detail.as_deref(),
            Reply::Message(_) => None,
        }
    }

    /// Asserts that the request was answered with this status; the answer passes the response filters.
    ///
    /// # Panics
    /// When it was not.
    pub fn responds(mut self, status: u16) -> Answer {
        let reply = self.reply.take().expect("an answer");
        assert_eq!(reply.status(), status);
        let (mut head, body) = match reply {
            Reply::Problem(problem) => {
                let mut head = ResponseHeader::build(problem.status(), None).expect("valid");
                for (name, value) in problem.headers {
                    head.append_header(name, value).expect("valid");
                }
                if let Some(seconds) = problem.retry_after {
                    head.append_header(http::header::RETRY_AFTER, seconds).expect("valid");
                }
                (head, Bytes::new())
            }
            Reply::Message(message) => match message.body {
                Body::Bytes(bytes) => (message.head, bytes),
                Body::Stream(_) => (message.head, Bytes::new()),
            },
        };
        futures_util::FutureExt::now_or_never(self.filter(&mut head))
            .expect("response filters of these tests do not wait");
        Answer { head, body }
    }

    /// Asserts a field of the request as the upstream would get it; several lines are joined.
    ///
    /// # Panics
    /// When it is another.
    pub fn request_header(self, name: &str, value: &str) -> Self {
        assert_eq!(joined(&self.head.headers, name).as_deref(), Some(value), "{name}");
        self
    }

    /// How much of the body is wanted whole.
    #[must_use]
    pub fn wants_body(&self) -> Option<u64> {
        self.entered.wants_body(&self.stack, &self.ctx)
    }

    /// Shows the whole of the request body; the status it was answered with, if it was.
    pub async fn body_status(&mut self, body: &[u8]) -> Option<u16> {
        let mut body = Bytes::copy_from_slice(body);
        let reply = self.entered.request_body(&self.stack, &mut self.head, &mut body, &mut self.ctx).await;
        reply.map(|reply| reply.status())
    }

    /// Runs the body phase with this body.
    #[must_use]
    pub async fn with_body(mut self, body: &[u8]) -> Self {
        let mut body = Bytes::copy_from_slice(body);
        let Self { stack, entered, head, ctx, .. } = &mut self;
        self.reply = entered.request_body(stack, head, &mut body, ctx).await;
        self
    }

    /// Shows a piece of the request body; the status it was answered with, if it was.
    pub fn request_chunk(&mut self, piece: &[u8]) -> Option<u16> {
        self.request_piece(piece, false).err()
    }

    /// Passes a piece of the request body; what comes out, or the status it was answered with.
    pub fn request_piece(&mut self, piece: &[u8], end: bool) -> Result<Bytes, u16> {
        let mut piece = Bytes::copy_from_slice(piece);
        match self.entered.request_chunk(&self.stack, &mut piece, end, &mut self.ctx) {
            Some(reply) => Err(reply.status()),
            None => Ok(piece),
        }
    }

    /// The head of one attempt at a backend.
    ///
    /// # Panics
    /// When the attempt was answered.
    pub async fn attempt(&mut self, attempt: u32) -> RequestHeader {
        self.try_attempt(attempt).await.unwrap_or_else(|reply| panic!("answered: {reply:?}"))
    }

    /// As [`attempt`](Self::attempt), or the answer that it ended with.
    pub async fn try_attempt(&mut self, attempt: u32) -> Result<RequestHeader, Reply> {
        let mut head = self.head.clone();
        let reply = self.entered.upstream_request(&self.stack, &mut head, attempt, &mut self.ctx).await;
        reply.map_or(Ok(head), Err)
    }

    /// Ends the request with this status.
    pub fn finish(&mut self, status: u16) {
        let completed = Completed { status, elapsed: Duration::ZERO, bytes_in: 0, bytes_out: 0 };
        self.entered.finish(&self.stack, &completed, &mut self.ctx);
    }

    /// Passes the head of the upstream's answer.
    ///
    /// # Panics
    /// When it is not valid.
    pub async fn answered(&mut self, status: u16, fields: &[(&'static str, &str)]) -> Answer {
        let mut head = ResponseHeader::build(status, None).expect("valid");
        for (name, value) in fields {
            head.append_header(*name, *value).expect("valid");
        }
        self.filter(&mut head).await;
        Answer { head, body: Bytes::new() }
    }

    /// Passes a piece of the answer's body; what comes out.
    ///
    /// # Panics
    /// When a filter fails.
    pub fn response_piece(&mut self, piece: &[u8], end: bool) -> Bytes {
        let mut piece = Some(Bytes::copy_from_slice(piece));
        let passed = self.entered.response_chunk(&self.stack, &mut piece, end, &mut self.ctx);
        passed.expect("the response filters work");
        piece.unwrap_or_default()
    }

    /// Shows a piece of the answer's body; whether it passed.
    pub fn response_chunk(&mut self, piece: &[u8]) -> bool {
        let mut piece = Some(Bytes::copy_from_slice(piece));
        self.entered.response_chunk(&self.stack, &mut piece, false, &mut self.ctx).is_ok()
    }
}
