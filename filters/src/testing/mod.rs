//! Test harness for filters: a pipeline from YAML, a fake world.

mod answer;
mod sent;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::AtomicU32;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use pingora_http::RequestHeader;
use serde::de::DeserializeOwned;
use tokio::sync::Semaphore;

pub use answer::Answer;
pub use sent::Sent;

use crate::builtin;
use crate::context::{ClientCertificate, Context, Tls};
use crate::filter::{Build, BuildError, Surroundings};
use crate::identity::consumers::Consumers;
use crate::identity::{self, ConsumerSpec, Identities, IdentitySpec, Site};
use crate::path::{PathRules, normalize};
use crate::pipeline::{Pipeline, Siblings, Stack, Step};
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

/// A certificate of a client, without other names and without end.
#[must_use]
pub fn certificate(subject: &str) -> ClientCertificate {
    ClientCertificate {
        subject: subject.into(),
        issuer: "CN=authority".into(),
        serial: "0a".into(),
        names: Box::default(),
        fingerprint: [1; 32],
        not_after: i64::MAX,
    }
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

    /// Shows this certificate over TLS.
    #[must_use]
    pub fn showing(self, certificate: ClientCertificate) -> Self {
        let tls = Tls {
            version: "TLSv1.3",
            cipher: "TLS_AES_128_GCM_SHA256",
            server_name: None,
            protocol: None,
            resumed: false,
            certificate: Some(certificate),
            bound_to_name: true,
            forwarded_certificate: None,
        };
        self.with(|ctx| ctx.client.tls = Some(Arc::new(tls)))
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

/// As [`chain`], in a world whose clock this is: as a document that is loaded after others were.
///
/// # Panics
/// When they do not build.
#[must_use]
pub fn chain_in(world: &World, clock: &Arc<ManualClock>, filters: &str) -> Chain {
    build(&builtin(), &Around::default(), filters, world.clone(), clock.clone())
        .unwrap_or_else(|error| panic!("{error}"))
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
    Ok(Chain { stack: Stack::new([none.clone(), none, Arc::new(Pipeline::new(steps))]), clock })
}
