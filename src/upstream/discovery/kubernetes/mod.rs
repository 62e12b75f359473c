//! Backends of a Service of Kubernetes: its EndpointSlices, listed once and watched from there on.
//!
//! By the API's rules for lists and watches
//! (<https://kubernetes.io/docs/reference/using-api/api-concepts/#efficient-detection-of-changes>): a list gives a
//! resource version, a watch begins there, bookmarks move it on, and 410 means that it is too old: list anew.

mod access;
mod slices;
#[cfg(test)]
mod tests;

use std::path::{Path, PathBuf};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use http::header::{ACCEPT, AUTHORIZATION};
use pingora::http::RequestHeader;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::Value;
use tokio::time::{Instant, sleep};
use tollhouse_filters::identity::form;

use self::access::{Access, Here};
use self::slices::{Bare, Slices};
use super::server::{Problem, brief};
use super::{Directory, Failed, Tell, World, jittered};
use crate::config::discovery::KubernetesDiscovery as Written;

/// Slices asked for at once.
const PAGE: &str = "100";
/// Most pages: a server may give less than what is asked for.
const MOST_PAGES: usize = 100;
/// What slices carry the name of their Service in.
const LABEL: &str = "kubernetes.io/service-name";
/// How long the server is asked to keep a watch, give or take a tenth. Not long: a dead connection is noticed after it.
const WATCH: Duration = Duration::from_secs(60);
/// What an answer may take beyond that.
const GRACE: Duration = Duration::from_secs(15);
/// Shortest time between two watches or two lists.
const PAUSE: Duration = Duration::from_secs(1);

/// A Service of a cluster.
pub(super) struct Kubernetes {
    written: Written,
    base: PathBuf,
    here: Here,
    world: World,
}

/// A cluster while it is followed.
struct Link<'a> {
    access: Access,
    written: &'a Written,
    world: &'a World,
}

/// Why a watch ended without a failure.
#[derive(Debug, PartialEq, Eq)]
enum End {
    /// Its time was over.
    Over,
    /// It began too long ago.
    Gone,
}

impl Kubernetes {
    /// The cluster as it is written; a kubeconfig is relative to `base`.
    pub(super) fn new(written: &Written, base: &Path, world: World) -> Self {
        Self { written: written.clone(), base: base.to_owned(), here: Here::of_process(), world }
    }
}

/// Checks what is written, and the kubeconfig if there is one: whether the gateway runs in a cluster is seen when it runs.
///
/// # Errors
/// What is wrong, as paths to keys and messages.
pub(super) fn check(written: &Written, base: &Path) -> Result<(), Vec<(String, String)>> {
    if written.kubeconfig.is_none() {
        let needless =
            written.context.as_ref().map(|_| vec![("context".into(), "is for a `kubeconfig`".into())]);
        return needless.map_or(Ok(()), Err);
    }
    let access = Access::of(written, base, &Here::of_process());
    access.map(drop).map_err(|why| vec![("kubeconfig".to_owned(), why)])
}

#[async_trait]
impl Directory for Kubernetes {
    async fn follow(&self, tell: &Tell) -> Failed {
        let access = match Access::of(&self.written, &self.base, &self.here) {
            Ok(access) => access,
            Err(why) => return why.into(),
        };
        let link = Link { access, written: &self.written, world: &self.world };
        loop {
            if let Err(problem) = link.follow(tell).await {
                return problem.failed(&link.access.server);
            }
            sleep(jittered(PAUSE)).await;
        }
    }
}

impl Link<'_> {
    /// Lists, and watches until that has to be done anew.
    async fn follow(&self, tell: &Tell) -> Result<(), Problem> {
        let mut slices = Slices::new(self.written.port.clone(), self.written.include);
        let mut version = self.list(&mut slices).await?;
        told(&slices, tell)?;
        loop {
            let began = Instant::now();
            if self.watch(&mut slices, &mut version, tell).await? == End::Gone {
                log::info!(registry = "kubernetes"; "a watch is too old to go on; listing anew");
                return Ok(());
            }
            tokio::time::sleep_until(began + PAUSE).await;
        }
    }

    /// Takes all slices in, page by page: the version that they are of.
    async fn list(&self, slices: &mut Slices) -> Result<Box<str>, Problem> {
        let mut after = String::new();
        for _ in 0..MOST_PAGES {
            let mut query = vec![("limit", PAGE)];
            if !after.is_empty() {
                query.push(("continue", &after));
            }
            let answer = self.access.server.ask(self.world, self.head(&query)?, Bytes::new()).await?;
            let List { metadata, items } = serde_json::from_slice(&answer).map_err(|_| unexpected())?;
            for slice in items {
                slices.put(slice).map_err(Problem::Said)?;
            }
            match metadata.after {
                Some(next) if !next.is_empty() => after = next,
                _ => return version(metadata.resource_version),
            }
        }
        Err(Problem::Said(format!("a list does not end after {MOST_PAGES} pages")))
    }

    /// Takes changes in.
    async fn watch(&self, slices: &mut Slices, from: &mut Box<str>, tell: &Tell) -> Result<End, Problem> {
        let limit = jittered(WATCH);
        let seconds = limit.as_secs().to_string();
        let query = [
            ("watch", "true"),
            ("allowWatchBookmarks", "true"),
            ("resourceVersion", from),
            ("timeoutSeconds", &seconds),
        ];
        let head = self.head(&query)?;
        let times = (limit + GRACE, limit + GRACE);
        let mut lines = match self.access.server.lines(self.world, head, Bytes::new(), times).await {
            Err(Problem::Status(410, _)) => return Ok(End::Gone),
            opened => opened?,
        };
        // It is there, and nothing changed.
        tell.still();
        while let Some(line) = lines.next().await? {
            if line.trim_ascii().is_empty() {
                continue;
            }
            let Event { kind, object } = serde_json::from_slice(&line).map_err(|_| unexpected())?;
            let now = match &*kind {
                "ADDED" | "MODIFIED" => slices.put(object).map_err(Problem::Said)?,
                "DELETED" => {
                    let Bare { metadata } = read(object)?;
                    slices.remove(&metadata.name);
                    metadata.resource_version
                }
                "BOOKMARK" => read::<Bare>(object)?.metadata.resource_version,
                "ERROR" => return ended(&read(object)?),
                _ => return Err(unexpected()),
            };
            *from = version(now)?;
            match &*kind {
                "BOOKMARK" => tell.still(),
                _ => told(slices, tell)?,
            }
        }
        Ok(End::Over)
    }

    fn head(&self, query: &[(&str, &str)]) -> Result<RequestHeader, Problem> {
        let label = format!("{LABEL}={}", self.written.service.as_str());
        let query = [&[("labelSelector", label.as_str())], query].concat();
        let namespace = &self.access.namespace;
        let path =
            format!("/apis/discovery.k8s.io/v1/namespaces/{namespace}/endpointslices?{}", form(&query));
        let mut head = self.access.server.head("GET", &path)?;
        let authorization = self.access.authorization().map_err(Problem::Said)?;
        let fields = [
            (ACCEPT, Some(http::HeaderValue::from_static("application/json"))),
            (AUTHORIZATION, authorization),
        ];
        for (name, value) in fields {
            if let Some(value) = value {
                head.insert_header(name, value).map_err(|_| unexpected())?;
            }
        }
        Ok(head)
    }
}

/// A version from which a watch goes on. One from none would begin anew, and never tell what was deleted meanwhile.
fn version(version: Box<str>) -> Result<Box<str>, Problem> {
    if version.is_empty() {
        return Err(Problem::Said("an answer without a resource version".to_owned()));
    }
    Ok(version)
}

fn told(slices: &Slices, tell: &Tell) -> Result<(), Problem> {
    let backends = slices.backends().map_err(|why| Problem::Said(why.to_string()))?;
    tell.set(backends);
    Ok(())
}

/// What an error in a watch means: `Gone` or `Expired`, or that it cannot go on.
fn ended(status: &Status) -> Result<End, Problem> {
    match status.code {
        410 => Ok(End::Gone),
        code => Err(Problem::Said(format!("the watch ended with {code}: {}", brief(&status.message)))),
    }
}

#[derive(Deserialize)]
struct List {
    metadata: ListMetadata,
    #[serde(default)]
    items: Vec<Value>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct ListMetadata {
    resource_version: Box<str>,
    #[serde(rename = "continue")]
    after: Option<String>,
}

#[derive(Deserialize)]
struct Event {
    #[serde(rename = "type")]
    kind: Box<str>,
    object: Value,
}

/// Why a request failed (`meta/v1`).
#[derive(Default, Deserialize)]
#[serde(default)]
struct Status {
    code: u16,
    message: String,
}

fn read<T: DeserializeOwned>(object: Value) -> Result<T, Problem> {
    serde_json::from_value(object).map_err(|_| unexpected())
}

fn unexpected() -> Problem {
    Problem::Said("an answer that is none of the API of Kubernetes".to_owned())
}
