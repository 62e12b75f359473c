//! The admin listener and its API: it looks, and asks for reloads; it never touches a request.

mod admission;
mod api;
mod auth;
mod cache;
mod conditional;
mod consumers;
mod endpoint;
mod identities;
mod mirrors;
mod problem;
mod redact;
mod releases;
mod revocations;
mod serve;
mod stores;
mod upstreams;

use std::io;
use std::net::TcpListener;
use std::sync::{Arc, OnceLock};
use std::thread;
use std::time::Duration;

use axum::extract::DefaultBodyLimit;
use axum::{Json, Router};
use serde_json::Value;
use tokio::sync::{Semaphore, mpsc, oneshot, watch};
use tollhouse_filters::registry::Registry;
use tollhouse_filters::world::Revocations;

use self::admission::Admission;
use self::endpoint::{Api, Endpoint};
use self::problem::{Details, Extended};
use self::serve::Limits;

use crate::cache::Cache;
use crate::door::Draining;
use crate::engine::explain::{Explanation, Question};
use crate::observe::Observe;
use crate::snapshot::{Live, Reloaded};

/// The largest document that `/api/check` takes, in bytes.
const LARGEST_DOCUMENT: usize = 16 << 20;
/// The largest question that `/api/explain` takes, in bytes.
const LARGEST_QUESTION: usize = 1 << 20;
/// The largest entry that `/api/revocations` takes, or `/api/cache/purge`, in bytes.
const LARGEST_ENTRY: usize = 16 << 10;
/// What clients are held to: traffic needs the descriptors and the memory more.
const LIMITS: Limits =
    Limits { connections: 256, head: Duration::from_secs(10), stall: Duration::from_secs(60) };

/// What the API looks at.
#[derive(Clone)]
pub struct AdminState {
    /// The snapshot in use.
    pub live: Arc<Live>,
    /// Asks for a reload and waits for its outcome.
    pub reloads: mpsc::UnboundedSender<Option<oneshot::Sender<Arc<Reloaded>>>>,
    /// Logs and metrics.
    pub observe: Arc<Observe>,
    /// Whether the process is on its way out, and nobody takes its place.
    pub stopping: Draining,
    /// The filters that exist.
    pub registry: Arc<Registry>,
    /// Tokens that no longer hold.
    pub revocations: Arc<Revocations>,
    /// What is stored of answers.
    pub cache: Arc<Cache>,
}

/// A running admin listener.
pub struct Admin {
    close: watch::Sender<bool>,
    places: Arc<Semaphore>,
}

impl Admin {
    /// Leaves the listener to another process: takes no more connections, and soon ends those there are.
    pub fn close(&self) {
        self.close.send_replace(true);
    }

    /// How many connections are open.
    pub fn open(&self) -> usize {
        LIMITS.connections - self.places.available_permits()
    }
}

/// Serves the API on a thread of its own, apart from traffic, until it is closed.
pub fn start(listener: TcpListener, state: AdminState) -> io::Result<Admin> {
    let (close, closed) = watch::channel(false);
    let places = Arc::new(Semaphore::new(LIMITS.connections));
    let taken = places.clone();
    let local = listener.local_addr()?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .thread_name("admin")
        .enable_all()
        .build()?;
    thread::Builder::new().name("admin".to_owned()).spawn(move || {
        runtime.block_on(async move {
            match tokio::net::TcpListener::from_std(listener) {
                Ok(listener) => {
                    serve::serve(listener, router(state, local.ip().is_loopback()), LIMITS, taken, closed)
                        .await;
                    // Connections end on this runtime.
                    std::future::pending::<()>().await;
                }
                Err(error) => log::error!("the admin listener cannot start: {error}"),
            }
        });
    })?;
    Ok(Admin { close, places })
}

fn router(state: AdminState, on_loopback: bool) -> Router {
    let guard = auth::Guard { live: state.live.clone(), on_loopback, write: false };
    let mut api = Api::new(guard, Admission::new());
    register_health(&mut api);
    register_views(&mut api);
    register_consumers(&mut api);
    register_stores(&mut api);
    register_releases(&mut api);
    register_revocations(&mut api);
    register_cache(&mut api);
    register_work(&mut api);
    let document = Arc::<OnceLock<Value>>::default();
    let served = document.clone();
    api.get("/api/openapi.json", "describe", "This document.")
        .answers::<Value>(200, "The API as OpenAPI 3.1.")
        .conditional()
        .to(async move || Json(served.get().cloned()));
    let (router, described) = api.finish();
    document.get_or_init(|| described);
    router
        .method_not_allowed_fallback(api::wrong_method)
        .fallback(api::nothing)
        .layer(DefaultBodyLimit::disable())
        .with_state(state)
}

fn register_health(api: &mut Api) {
    api.get("/healthz", "health", "Whether the process lives.")
        .open()
        .answers_text(200, "It does.")
        .to(api::healthy);
    api.get("/readyz", "readiness", "Whether requests are welcome.")
        .open()
        .answers_text(200, "They are.")
        .fails::<Details>(503, "The process is on its way out.")
        .to(api::ready);
    api.get("/metrics", "metrics", "Numbers for Prometheus.")
        .answers_text(200, "Metrics in the text format 0.0.4.")
        .to(api::metrics);
}

fn register_views(api: &mut Api) {
    api.get("/api/config", "config", "The document as it took effect, without secrets.")
        .answers::<api::Configuration>(200, "The document, with includes and references resolved.")
        .conditional()
        .to(api::config);
    api.get("/api/routes", "routes", "Every route, in file order.")
        .answers::<api::RouteList>(200, "The routes.")
        .conditional()
        .to(api::routes);
    api.get("/api/upstreams", "upstreams", "Every upstream, with its backends as they are now.")
        .answers::<upstreams::UpstreamList>(200, "The upstreams, in written order.")
        .conditional()
        .to(upstreams::all);
    api.get("/api/upstreams/{name}", "upstream", "One upstream, with its backends as they are now.")
        .answers::<crate::upstream::view::UpstreamView>(200, "The upstream.")
        .fails::<Details>(400, "The name is not in UTF-8.")
        .fails::<Details>(404, "No upstream has this name.")
        .conditional()
        .to(upstreams::one);
    api.get("/api/identities", "identities", "Every identity, with what it knows now.")
        .answers::<identities::IdentityList>(200, "The identities, by name.")
        .conditional()
        .to(identities::all);
}

fn register_revocations(api: &mut Api) {
    let path = "/api/revocations";
    api.get(path, "revocations", "Tokens that no longer hold.")
        .write()
        .query("identity", "string", false, "The identity whose entries are wanted; all by default.")
        .answers::<revocations::RevocationList>(200, "The entries.")
        .fails::<Details>(400, "They are not asked for like that.")
        .to(revocations::all);
    api.post(path, "revoke", "Has tokens hold no longer, from the moment of the answer.")
        .write()
        .takes_little::<revocations::Wish>(LARGEST_ENTRY)
        .answers::<revocations::RevocationView>(201, "The entry, which is new.")
        .answers::<revocations::RevocationView>(200, "The entry, in the place of one about the same tokens.")
        .fails::<Details>(400, "It is no JSON.")
        .fails::<Details>(415, "The content is not said to be JSON.")
        .fails::<Details>(422, "It is no entry.")
        .fails::<Details>(503, "Another process is taking over; ask again.")
        .fails::<Details>(507, "There are as many entries as there may be.")
        .to(revocations::add);
    api.delete(path, "unrevoke", "Takes an entry out.")
        .write()
        .query("identity", "string", true, "The identity whose entry it is.")
        .query("jti", "string", false, "The `jti` that the entry is about.")
        .query(
            "sub",
            "string",
            false,
            "The `sub` that the entry is about; without either it is the one about all tokens.",
        )
        .answers::<revocations::RevocationList>(200, "The entries that are left for the identity.")
        .fails::<Details>(400, "It is not said which one.")
        .fails::<Details>(404, "There is none.")
        .fails::<Details>(503, "Another process is taking over; ask again.")
        .to(revocations::remove);
}

fn register_cache(api: &mut Api) {
    api.get("/api/cache", "cache", "What the cache has in it, and what it did.")
        .answers::<cache::NumbersView>(200, "The numbers.")
        .to(cache::numbers);
    api.get(
        "/api/cache/lookup",
        "lookup",
        "What is stored for a URL, until when it is fresh, and whether it is served.",
    )
    .write()
    .query("url", "string", true, "The URL, with scheme and host.")
    .answers::<crate::cache::Looked>(200, "What is stored, of every route, caller and variant.")
    .fails::<Details>(400, "It is no URL.")
    .to(cache::look);
    api.post("/api/cache/purge", "purge", "Takes out what is stored, by URL, prefix or tag, or all of it.")
        .write()
        .takes_little::<cache::Wish>(LARGEST_ENTRY)
        .answers::<cache::Done>(200, "It is done.")
        .fails::<Details>(400, "It is no JSON.")
        .fails::<Details>(415, "The content is not said to be JSON.")
        .fails::<Details>(422, "It is not said what to purge.")
        .to(cache::purge);
}

fn register_consumers(api: &mut Api) {
    api.get("/api/consumers", "consumers", "Consumers, a page at a time.")
        .query("after", "string", false, "The name before the first one wanted.")
        .query("limit", "integer", false, "How many are wanted: 1 to 1000, 100 by default.")
        .answers::<consumers::ConsumerPage>(200, "Sorted by name.")
        .fails::<Details>(400, "The page is not asked for like that.")
        .to(consumers::all);
    api.get("/api/consumers/{name}", "consumer", "One consumer, without secrets.")
        .answers::<consumers::ConsumerView>(200, "The consumer.")
        .fails::<Details>(400, "The name is not in UTF-8.")
        .fails::<Details>(404, "No consumer has this name.")
        .conditional()
        .to(consumers::one);
    let path = "/api/consumers/{name}/disable";
    switch(api, path, "disableConsumer", "Nothing that a consumer proves itself with counts any more.")
        .to(consumers::switch_consumer::<true>);
    let path = "/api/consumers/{name}/enable";
    switch(api, path, "enableConsumer", "What a consumer proves itself with counts again.")
        .to(consumers::switch_consumer::<false>);
    let path = "/api/consumers/{name}/credentials/{id}/disable";
    switch(api, path, "disableCredential", "A credential does not count any more.")
        .to(consumers::switch_credential::<true>);
    let path = "/api/consumers/{name}/credentials/{id}/enable";
    switch(api, path, "enableCredential", "A credential counts again.")
        .to(consumers::switch_credential::<false>);
}

fn switch<'a>(api: &'a mut Api, path: &'static str, name: &str, summary: &str) -> Endpoint<'a> {
    api.post(path, name, summary)
        .write()
        .answers::<consumers::ConsumerView>(200, "The consumer as it is now, and as it is on the disk.")
        .fails::<Details>(400, "A name is not in UTF-8.")
        .fails::<Details>(404, "There is no such consumer or credential.")
        .fails::<Details>(
            409,
            "The consumers are in the document, or their file has problems or is being written.",
        )
        .fails::<Details>(500, "The file cannot be written.")
}

fn register_stores(api: &mut Api) {
    api.get("/api/stores", "stores", "Every store, and whether it decides.")
        .answers::<stores::StoreList>(200, "The stores, by name.")
        .conditional()
        .to(stores::all);
}

fn register_releases(api: &mut Api) {
    api.get("/api/mirrors", "mirrors", "What came of copies of requests, and how their answers differ.")
        .answers::<mirrors::MirrorList>(200, "The filters that copy requests, in file order.")
        .conditional()
        .to(mirrors::all);
    api.get("/api/releases", "releases", "Every ramp, and how far it is.")
        .answers::<releases::ReleaseList>(200, "The ramps, in file order of their routes.")
        .conditional()
        .to(releases::all);
    let path = "/api/releases/{route}/acknowledge";
    api.post(path, "acknowledgeRelease", "Takes note of that a ramp was given up, and begins it anew.")
        .write()
        .answers::<releases::ReleaseView>(200, "The ramp, which is on its first step.")
        .fails::<Details>(400, "The name is not in UTF-8.")
        .fails::<Details>(404, "No route of this name has a ramp.")
        .fails::<Details>(409, "The ramp was not given up.")
        .to(releases::acknowledge);
}

fn register_work(api: &mut Api) {
    api.post("/api/reload", "reload", "Reads all inputs of the configuration again.")
        .write()
        .answers::<api::Reload>(200, "Nothing changed, or the new document serves.")
        .fails::<Extended<api::ReloadRefused>>(422, "The document has problems; the old one serves on.")
        .fails::<Details>(503, "The process is on its way out.")
        .to(api::reload);
    api.post("/api/check", "check", "Checks a document, which can refer to nothing on this machine.")
        .takes_document(LARGEST_DOCUMENT)
        .answers::<api::Checked>(200, "It has no problems.")
        .fails::<Details>(400, "It is no text.")
        .fails::<Extended<api::CheckRefused>>(422, "It has problems.")
        .to(api::check);
    api.post("/api/explain", "explain", "What would happen to a request, and why.")
        .takes::<Question>(LARGEST_QUESTION)
        .answers::<Explanation>(200, "What would happen.")
        .fails::<Details>(400, "It is no request.")
        .fails::<Extended<api::ExplainRefused>>(409, "Files that the document names have problems by now.")
        .fails::<Details>(415, "The content is not said to be JSON.")
        .fails::<Details>(422, "The question has another form.")
        .to(api::explain);
}
