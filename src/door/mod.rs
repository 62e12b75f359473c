//! The listener: accepts connections and hands them to the proxy.
//!
//! A [`Door`] is Pingora's `Service` with an accept loop of its own, so that limits hold before
//! anything is read and every connection carries what the gateway knows about it ([`ConnFacts`]).

mod accept;
mod alarm;
mod application;
mod bind;
mod chunks;
mod conn;
mod facts;
mod frames;
mod handshake;
mod head;
mod http2;
mod leaving;
mod listener;
mod patience;
mod pause;
mod permits;
mod preamble;
mod proxied;
mod refusal;
mod rule;
mod socket;
mod stream;
#[cfg(test)]
pub(crate) mod tests;
mod transport;
mod tunnel;

use std::num::NonZeroU64;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use arc_swap::ArcSwap;
use async_trait::async_trait;
use pingora::apps::HttpServerApp;
use pingora::server::{ListenFds, ShutdownWatch};
use pingora::services::Service;
use tokio::sync::watch;

use crate::observe::{Observe, metrics};
use crate::tls::ServerTls;

pub use alarm::Alarm;
pub use application::{Application, Connection, Declined, Served};
pub use bind::{BindError, Bound, bind};
pub use chunks::Chunks;
pub use facts::{ConnFacts, End, broken, count, facts, left_behind, tunnelled};
pub use handshake::{HandshakeFailure, HandshakeFailures};
pub use head::Head;
pub use http2::Http2Stream;
pub use leaving::GOODBYE;
pub use listener::Listener;
pub use patience::Patience;
pub use pause::Pause;
pub use permits::{Limits, Permit, Permits, Refused};
pub use refusal::Refusals;
pub use rule::Rule;
pub use stream::DoorStream;

/// The service that accepts connections on a list of listeners and feeds their requests to one application.
pub struct Door<A> {
    bound: Vec<Bound>,
    common: Arc<Common<A>>,
    opened: Option<Opened>,
}

/// Called once connections are accepted on every listener; where one fails to, with its name.
pub type Opened = Box<dyn FnOnce(Result<(), Arc<str>>) + Send + Sync>;

/// What the door enforces and where it reports to; shared with those who change and read it.
#[derive(Clone)]
pub struct Desk {
    /// How many connections there may be.
    pub permits: Arc<Permits>,
    /// What a request's head may be; may change while the door is open.
    pub limits: Arc<ArcSwap<HeadLimits>>,
    /// What was refused.
    pub refusals: Arc<Refusals>,
    /// What handshakes go by, by [`Listener::id`]; may change while the door is open.
    pub tls: Arc<ArcSwap<TlsById>>,
    /// Which handshakes failed.
    pub handshakes: Arc<HandshakeFailures>,
    /// Where refused requests are logged and counted.
    pub observe: Arc<Observe>,
    /// Whether the gateway is on its way out.
    pub draining: Draining,
    /// Whether what is under way has no more time: WebSockets are closed, and all else is cut.
    pub over: Draining,
    /// Whether connections are left to another process.
    pub pause: Pause,
}

/// TLS of listeners, by [`Listener::id`]; `None` for those without.
pub type TlsById = Vec<Option<Arc<ServerTls>>>;

/// How large a head may be, and how long is waited for it and for what follows.
#[derive(Clone, Copy, Debug)]
pub struct HeadLimits {
    /// All field lines together.
    pub header_bytes: u64,
    /// Number of fields.
    pub header_count: usize,
    /// The request target.
    pub uri_bytes: u64,
    /// From its first byte, or from the connection's begin, to its end.
    pub header_timeout: Duration,
    /// Between two requests, and for a client to take what it is sent.
    pub idle_timeout: Duration,
    /// For a client to send more of a body.
    pub body_timeout: Duration,
    /// Bytes a second that a client moves at least, on average, while it is waited for.
    pub min_rate: Option<NonZeroU64>,
}

impl HeadLimits {
    /// What a head of HTTP/2 may have in all, as its SETTINGS count (RFC 9113 s6.5.2). Beyond the limits, so that what is
    /// over one is answered and logged as such; the library says nothing of what it refuses.
    fn header_list(&self) -> u32 {
        /// What each field counts for besides its text.
        const FIELD: u64 = 32;
        /// For pseudo-fields, and for what is just over a limit; the least is what Pingora has by itself.
        const MORE: u64 = 4096;
        const LEAST: u64 = 64 * 1024;
        let fields = self.header_bytes.saturating_add(FIELD * self.header_count as u64);
        let all = fields.saturating_add(self.uri_bytes).saturating_add(MORE);
        u32::try_from(all.max(LEAST)).unwrap_or(u32::MAX)
    }
}

/// What all connections have in common.
struct Common<A> {
    app: Arc<A>,
    listeners: Box<[Arc<Listener>]>,
    desk: Desk,
}

impl<A: Application> Common<A> {
    /// What a listener is called, which a reload may change.
    fn listener_name(&self, id: u16) -> Arc<str> {
        let bound = || self.listener(id).map(|listener| listener.name.clone());
        self.app.listener_name(id).or_else(bound).unwrap_or_else(|| metrics::NONE.into())
    }
}

impl<A> Common<A> {
    fn listener(&self, id: u16) -> Option<&Arc<Listener>> {
        self.listeners.iter().find(|listener| listener.id == id)
    }

    /// What a handshake on this listener goes by now.
    fn tls(&self, id: u16) -> Option<Arc<ServerTls>> {
        self.desk.tls.load().get(usize::from(id)).cloned().flatten()
    }
}

impl<A: Application> Door<A> {
    /// A door over sockets that [`bind`] opened.
    pub fn new(app: Arc<A>, bound: Vec<Bound>, desk: Desk) -> Self {
        let listeners = bound.iter().map(Bound::listener).collect();
        Self { bound, common: Arc::new(Common { app, listeners, desk }), opened: None }
    }

    /// Has this called when the door is open.
    #[must_use]
    pub fn when_open(self, opened: Opened) -> Self {
        Self { opened: Some(opened), ..self }
    }
}

#[async_trait]
impl<A: Application> Service for Door<A> {
    async fn start_service(
        &mut self,
        _: Option<ListenFds>,
        shutdown: ShutdownWatch,
        listeners_per_fd: usize,
    ) {
        // Who stops the server may drain it first; either way the door learns of it here.
        let draining = self.common.desk.draining.clone();
        tokio::spawn(async move {
            stopped(shutdown).await;
            draining.start();
        });
        let mut loops = tokio::task::JoinSet::new();
        let mut opened = Ok(());
        for bound in self.bound.drain(..) {
            let listener = bound.listener();
            let Some(socket) = open(bound) else {
                opened = Err(listener.name.clone());
                continue;
            };
            let socket = Arc::new(socket);
            for _ in 0..listeners_per_fd.max(1) {
                loops.spawn(accept::run(accept::Loop {
                    common: self.common.clone(),
                    socket: socket.clone(),
                    listener: listener.clone(),
                    shutdown: self.common.desk.draining.watch(),
                    pause: self.common.desk.pause.watch(),
                }));
            }
        }
        if let Some(tell) = self.opened.take() {
            tell(opened);
        }
        stopped(self.common.desk.draining.watch()).await;
        while loops.join_next().await.is_some() {}
        self.common.app.pingora().http_cleanup().await;
    }

    fn name(&self) -> &str {
        "door"
    }
}

/// Whether the gateway is on its way out: the door accepts no more connections, idle ones are
/// closed, HTTP/2 clients are told (GOAWAY), and replies should say `Connection: close`.
///
/// Clones share one flag. It is set when the server shuts down, and may be set earlier by who
/// knows of that; it is never taken back.
#[derive(Clone, Debug, Default)]
pub struct Draining(Arc<Flag>);

/// A flag, and who waits for it.
#[derive(Debug, Default)]
struct Flag {
    /// What was told, for those who look at it for each request.
    is_on: AtomicBool,
    told: watch::Sender<bool>,
}

impl Draining {
    /// Sets the flag.
    pub fn start(&self) {
        self.0.is_on.store(true, Ordering::Release);
        self.0.told.send_replace(true);
    }

    /// Whether the flag is set.
    pub fn is_on(&self) -> bool {
        self.0.is_on.load(Ordering::Acquire)
    }

    fn watch(&self) -> ShutdownWatch {
        self.0.told.subscribe()
    }
}

/// Waits for the server's shutdown; a server that is gone counts as shut down.
async fn stopped(mut shutdown: ShutdownWatch) {
    let _ = shutdown.wait_for(|on| *on).await;
}

fn open(bound: Bound) -> Option<accept::Listening> {
    let listener = bound.listener();
    match accept::Listening::new(bound.into_socket()) {
        Ok(socket) => {
            log::info!(listener = listener.name.as_ref(), address:% = listener.address; "listening");
            Some(socket)
        }
        Err(reason) => {
            log::error!(listener = listener.name.as_ref(), reason:% = reason; "listener is not served");
            None
        }
    }
}
