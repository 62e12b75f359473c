//! Side calls of filters: over the call path, to upstreams of the snapshot in use.

use std::sync::{Arc, OnceLock, Weak};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use pingora::http::RequestHeader;
use tokio::time::{Instant, timeout_at};
use tollhouse_filters::world::{Aside, Client, ClientBody, ClientError, ClientReply, Origin, UpstreamId};

use super::asides::Asides;
use crate::snapshot::Live;
use crate::upstream::call::{BodyStream, CallError, CallOptions, Caller};
use crate::upstream::{Origins, Upstream};

/// Makes side calls for filters.
pub struct SideCalls {
    caller: Caller,
    origins: Origins,
    /// Known only after the first snapshot was compiled, by filters that hold this.
    live: OnceLock<Weak<Live>>,
    /// There from when a document first copies requests.
    asides: OnceLock<Asides>,
}

impl SideCalls {
    /// With a pool of its own.
    #[must_use]
    pub fn new() -> Self {
        Self {
            caller: Caller::new(),
            origins: Origins::new(),
            live: OnceLock::new(),
            asides: OnceLock::new(),
        }
    }

    /// What makes the calls.
    #[must_use]
    pub fn caller(&self) -> &Caller {
        &self.caller
    }

    /// Where calls go that no upstream of a document stands for.
    #[must_use]
    pub fn origins(&self) -> &Origins {
        &self.origins
    }

    /// Calls the upstreams of this from now on.
    pub fn follow(&self, live: &Arc<Live>) {
        let _ = self.live.set(Arc::downgrade(live));
    }
}

impl SideCalls {
    /// The upstream of this id in the document that serves.
    fn named(&self, id: UpstreamId) -> Result<Arc<Upstream>, ClientError> {
        let live = self.live.get().and_then(Weak::upgrade);
        let live = live.ok_or_else(|| ClientError::Unavailable("the gateway is not serving".into()))?;
        let snapshot = live.load();
        let upstream = snapshot.upstream(id).cloned();
        upstream.ok_or_else(|| ClientError::Unavailable("the upstream is gone".into()))
    }
}

impl Default for SideCalls {
    fn default() -> Self {
        Self::new()
    }
}

#[async_trait]
impl Client for SideCalls {
    async fn send(
        &self,
        upstream: UpstreamId,
        head: RequestHeader,
        body: Bytes,
        timeout: Option<Duration>,
    ) -> Result<ClientReply, ClientError> {
        let until = timeout.and_then(|timeout| Instant::now().checked_add(timeout));
        let upstream = match by(until, self.origins.upstream(upstream)).await? {
            Some(origin) => origin.map_err(failed)?,
            None => self.named(upstream)?,
        };
        let left = until.map(|until| until.saturating_duration_since(Instant::now()));
        let options = CallOptions { timeout: left.or(timeout).map(Some), ..CallOptions::default() };
        let reply = self.caller.send(&upstream, head, body, options).await.map_err(failed)?;
        Ok(ClientReply { head: reply.head, body: Box::new(Body(reply.body)) })
    }

    fn send_aside(&self, aside: Aside) {
        let asides = self.asides.get().ok_or(ClientError::Unavailable("no thread could be started".into()));
        match asides.and_then(|asides| Ok((asides, self.named(aside.upstream)?))) {
            Ok((asides, upstream)) => asides.send(upstream, aside),
            Err(error) => (aside.then)(Err(error)),
        }
    }

    fn open_aside(&self) {
        if self.asides.get().is_none() {
            match Asides::open() {
                Ok(asides) => drop(self.asides.set(asides)),
                Err(error) => log::error!("requests cannot be copied, no thread can be started: {error}"),
            }
        }
    }

    fn origin(&self, origin: &Origin) -> Option<UpstreamId> {
        self.origins.id(origin)
    }
}

/// The future's outcome, unless this moment comes first.
async fn by<T>(until: Option<Instant>, future: impl Future<Output = T>) -> Result<T, ClientError> {
    match until {
        Some(until) => timeout_at(until, future).await.map_err(|_| ClientError::Timeout),
        None => Ok(future.await),
    }
}

struct Body(BodyStream);

#[async_trait]
impl ClientBody for Body {
    async fn next(&mut self) -> Result<Option<Bytes>, ClientError> {
        self.0.next().await.map_err(failed)
    }
}

pub(super) fn failed(error: CallError) -> ClientError {
    match error {
        CallError::NoBackend => ClientError::Unavailable(error.to_string().into()),
        CallError::Connect { .. } => ClientError::Connect(error.to_string()),
        CallError::Timeout(_) => ClientError::Timeout,
        _ => ClientError::Broken(error.to_string()),
    }
}
