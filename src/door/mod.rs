//! The listener: accepts connections and hands them to the proxy.
//!
//! A [`Door`] is Pingora's `Service` with an accept loop of its own, so that limits hold before
//! anything is read and every connection carries what the gateway knows about it ([`ConnFacts`]).

mod accept;
mod bind;
mod facts;
mod listener;
mod permits;
mod stream;
#[cfg(test)]
mod tests;

use std::sync::Arc;

use async_trait::async_trait;
use pingora::apps::ServerApp;
use pingora::server::{ListenFds, ShutdownWatch};
use pingora::services::Service;
use tokio::sync::watch;

pub use bind::{BindError, Bound, bind};
pub use facts::{ConnFacts, facts};
pub use listener::Listener;
pub use permits::{Limits, Permit, Permits, Refused};
pub use stream::DoorStream;

/// The service that accepts connections on a list of listeners and feeds them to one application.
pub struct Door<A> {
    app: Arc<A>,
    bound: Vec<Bound>,
    permits: Arc<Permits>,
    draining: Draining,
}

impl<A: ServerApp> Door<A> {
    /// A door over sockets that [`bind`] opened.
    pub fn new(app: Arc<A>, bound: Vec<Bound>, permits: Arc<Permits>, draining: Draining) -> Self {
        Self { app, bound, permits, draining }
    }
}

#[async_trait]
impl<A: ServerApp + Send + Sync + 'static> Service for Door<A> {
    async fn start_service(
        &mut self,
        fds: Option<ListenFds>,
        shutdown: ShutdownWatch,
        listeners_per_fd: usize,
    ) {
        // Who stops the server may drain it first; either way the door learns of it here.
        let draining = self.draining.clone();
        tokio::spawn(async move {
            stopped(shutdown).await;
            draining.start();
        });
        let mut loops = tokio::task::JoinSet::new();
        for bound in &mut self.bound {
            let Some(socket) = open(bound, fds.as_ref()) else { continue };
            let (socket, listener) = (Arc::new(socket), bound.listener());
            for _ in 0..listeners_per_fd.max(1) {
                loops.spawn(accept::run(accept::Loop {
                    app: self.app.clone(),
                    socket: socket.clone(),
                    listener: listener.clone(),
                    permits: self.permits.clone(),
                    shutdown: self.draining.watch(),
                }));
            }
        }
        stopped(self.draining.watch()).await;
        while loops.join_next().await.is_some() {}
        self.app.cleanup().await;
    }

    fn name(&self) -> &str {
        "door"
    }

    /// The names under which descriptors are handed to the next process.
    fn listen_addresses(&self) -> Option<Vec<String>> {
        Some(self.bound.iter().map(Bound::key).collect())
    }
}

/// Whether the gateway is on its way out: the door accepts no more connections, idle ones are
/// closed, HTTP/2 clients are told (GOAWAY), and replies should say `Connection: close`.
///
/// Clones share one flag. It is set when the server shuts down, and may be set earlier by who
/// knows of that; it is never taken back.
#[derive(Clone, Debug, Default)]
pub struct Draining(Arc<watch::Sender<bool>>);

impl Draining {
    /// Sets the flag.
    pub fn start(&self) {
        self.0.send_replace(true);
    }

    /// Whether the flag is set.
    pub fn is_on(&self) -> bool {
        *self.0.borrow()
    }

    fn watch(&self) -> ShutdownWatch {
        self.0.subscribe()
    }
}

/// Waits for the server's shutdown; a server that is gone counts as shut down.
async fn stopped(mut shutdown: ShutdownWatch) {
    let _ = shutdown.wait_for(|on| *on).await;
}

fn open(bound: &mut Bound, fds: Option<&ListenFds>) -> Option<accept::Socket> {
    let listener = bound.listener();
    let opened = bound.claim(fds).map_err(|e| e.to_string());
    let ready = opened.and_then(|socket| accept::Socket::new(socket).map_err(|e| e.to_string()));
    match ready {
        Ok(socket) => {
            log::info!(listener = listener.name.as_ref(), address:% = listener.address; "listening");
            Some(socket)
        }
        Err(reason) => {
            log::error!(listener = listener.name.as_ref(), reason = reason.as_str(); "listener is not served");
            None
        }
    }
}
