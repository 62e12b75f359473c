//! What the gateway knows about a connection, and the way from a request back to it.

use std::any::Any;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU64};
use std::sync::{Arc, OnceLock};

use parking_lot::Mutex;
use pingora::http::ResponseHeader;
use pingora::protocols::raw_connect::ProxyDigest;
use pingora::proxy::Session;
use tollhouse_filters::context::Tls;

use super::{Desk, Draining, Refusals, Rule};

/// What is known of a connection from the moment it was accepted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConnFacts {
    /// [`Listener::id`](super::Listener::id) of the listener that accepted it.
    pub listener: u16,
    /// Who connected, IPv4 never in its IPv6-mapped form; `None` on a Unix socket.
    pub peer: Option<SocketAddr>,
    /// The address the client reached, written like `peer`; `None` on a Unix socket.
    pub local: Option<SocketAddr>,
    /// Whether it came over a Unix socket.
    pub unix: bool,
    /// What the handshake agreed on; `None` without TLS.
    pub tls: Option<Arc<Tls>>,
}

/// The facts of the connection a request came on; `None` if no [`Door`](super::Door) accepted it.
pub fn facts(session: &Session) -> Option<&ConnFacts> {
    Some(&carried(session.digest()?.proxy_digest.as_ref()?)?.facts)
}

/// What ends a connection whatever is under way on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// Its client broke this rule.
    Rule(Rule),
    /// The gateway stops, and what was under way had its time.
    Stopped,
}

impl End {
    /// The rule, if one was broken.
    pub fn rule(self) -> Option<Rule> {
        match self {
            Self::Rule(rule) => Some(rule),
            Self::Stopped => None,
        }
    }

    /// What the log says of it.
    pub fn detail(self) -> &'static str {
        match self {
            Self::Rule(rule) => rule.detail(),
            Self::Stopped => "the gateway stopped before the end",
        }
    }
}

/// What ended the connection of a request before its end, such as a rule that its body broke while it was read.
pub fn broken(session: &Session) -> Option<End> {
    carried(session.digest()?.proxy_digest.as_ref()?)?.ended.get().copied()
}

/// Counts a request under a rule that was found broken elsewhere.
pub fn count(session: &Session, rule: Rule) {
    let carried = session.digest().and_then(|digest| carried(digest.proxy_digest.as_ref()?));
    if let Some(carried) = carried {
        carried.refusals.add(rule);
    }
}

/// Notes that what is sent on this connection from now on is a tunnel: the answer that says so, and frames of
/// a WebSocket.
pub fn tunnelled(session: &Session) {
    let carried = session.digest().and_then(|digest| carried(digest.proxy_digest.as_ref()?));
    if let Some(carried) = carried {
        let _ = carried.tunnelled.set(());
    }
}

/// What was left behind by who declined this request.
pub fn left_behind(session: &Session) -> Option<Box<dyn Any + Send>> {
    if let Some(LeftBehind(left)) = session.req_header().extensions.get() {
        return left.lock().take();
    }
    carried(session.digest()?.proxy_digest.as_ref()?)?.left.lock().take()
}

/// What was left behind with a request of HTTP/2, many of which may be on one connection.
#[derive(Clone)]
pub(super) struct LeftBehind(pub(super) Arc<Mutex<Option<Box<dyn Any + Send>>>>);

/// What a connection and its requests share.
pub(super) struct Carried {
    pub(super) facts: ConnFacts,
    pub(super) refusals: Arc<Refusals>,
    pub(super) over: Draining,
    pub(super) ended: OnceLock<End>,
    pub(super) tunnelled: OnceLock<()>,
    /// What is written waits for more, whoever flushes it.
    pub(super) corked: AtomicBool,
    /// The client of HTTP/2 waits for answers, or for the rest of some that were given.
    pub(super) owes: AtomicBool,
    /// How much content of answers was sent over HTTP/2.
    pub(super) sent: AtomicU64,
    /// For the next request of HTTP/1; see [`left_behind`].
    pub(super) left: Mutex<Option<Box<dyn Any + Send>>>,
}

impl Carried {
    pub(super) fn new(facts: ConnFacts, desk: &Desk) -> Arc<Self> {
        Arc::new(Self {
            facts,
            refusals: desk.refusals.clone(),
            over: desk.over.clone(),
            ended: OnceLock::new(),
            tunnelled: OnceLock::new(),
            corked: AtomicBool::new(false),
            owes: AtomicBool::new(false),
            sent: AtomicU64::new(0),
            left: Mutex::new(None),
        })
    }

    /// Notes and counts the rule that ends the connection; false if one did before.
    pub(super) fn break_off(&self, rule: Rule) -> bool {
        let is_first = self.ended.set(End::Rule(rule)).is_ok();
        if is_first {
            self.refusals.add(rule);
        }
        is_first
    }

    /// Notes that the connection ends since the gateway stops.
    pub(super) fn stop(&self) {
        let _ = self.ended.set(End::Stopped);
    }

    /// Whether the connection ends since the gateway stops.
    pub(super) fn is_stopped(&self) -> bool {
        self.ended.get() == Some(&End::Stopped)
    }
}

/// What [`carrier`] was given.
pub(super) fn carried(carrier: &ProxyDigest) -> Option<&Carried> {
    carrier.user_data.as_ref()?.downcast_ref::<Arc<Carried>>().map(|carried| &**carried)
}

/// Pingora copies the stream's proxy digest to every session, HTTP/1 and HTTP/2; on the server side
/// it has no use of its own for it, and the digest has room for one value of ours.
pub(super) fn carrier(carried: &Arc<Carried>) -> Arc<ProxyDigest> {
    let unused = ResponseHeader::build_no_case(200, Some(0)).expect("200 is a status");
    Arc::new(ProxyDigest::new(Box::new(unused), Some(Box::new(carried.clone()))))
}
