//! One probe of one address: connect, ask, look at the answer.

mod grpc;

use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;

use async_trait::async_trait;
use http::StatusCode;
use http::header::{CONNECTION, HOST, USER_AGENT};
use pingora::ErrorType;
use pingora::http::RequestHeader;
use pingora::protocols::ALPN;
use pingora::protocols::http::client::HttpSession;
use pingora::upstreams::peer::HttpPeer;
use tokio::time::timeout;

use super::backend::Backend;
use super::call::{CallError, Caller, describe, name_as_http2};
use super::health::Outcome;
use super::{NOT_HTTP2, Upstream};
use crate::config::health::{Active, ProbeKind};
use crate::config::upstream::HostHeader;

/// As much of a body as is looked at.
const MAX_BODY: usize = 64 * 1024;
/// Interim replies (1xx) skipped before the final one; a backend that sends more is broken.
const MAX_INTERIM: usize = 16;
/// Sets the connections of probes apart from those of requests: what is probed includes connecting.
const PROBES: u64 = 0x7072_6f62_6573;

const AGENT: &str = concat!("tollhouse-health/", env!("CARGO_PKG_VERSION"));

/// An address and how to probe it.
#[derive(Clone)]
pub(super) struct Target {
    pub(super) key: Key,
    peer: HttpPeer,
}

/// All that the outcome of a probe depends on; equal ones are probed once, whoever names them.
#[derive(Clone, PartialEq, Eq, Hash)]
pub(super) struct Key {
    pub(super) address: SocketAddr,
    pub(super) check: Arc<Active>,
    host: Box<str>,
    sni: Box<str>,
    /// Stands for protocol, authorities and client certificate.
    trust: u64,
    /// It has to agree to HTTP/2, which over TLS not all do that are asked to.
    insists_on_http2: bool,
}

/// Sends probes.
#[async_trait]
pub(super) trait Prober: Send + Sync {
    /// What the address does, within the check's timeout.
    async fn probe(&self, target: &Target) -> Outcome;
}

impl Upstream {
    /// What to probe at this address of a backend; none without a check.
    pub(super) fn target(&self, backend: &Backend, address: SocketAddr) -> Option<Target> {
        let check = Arc::clone(self.check()?);
        let own = address.port();
        let address = SocketAddr::new(address.ip(), check.port.map_or(own, Into::into));
        let mut peer = self.peer_at(address, self.server_name(backend));
        // A plain connection is the same in every protocol.
        let plain = check.kind == ProbeKind::Tcp && !self.is_tls();
        let trust = if plain { 0 } else { peer.group_key };
        if plain {
            peer.options.alpn = ALPN::H1;
        } else if check.kind == ProbeKind::Grpc {
            peer.options.alpn = ALPN::H2;
        }
        // What another port speaks says nothing of the one that gets the requests.
        let is_of_requests = address.port() == own || check.kind == ProbeKind::Grpc;
        let insists_on_http2 = is_of_requests && peer.options.alpn == ALPN::H2;
        peer.group_key = trust ^ PROBES;
        let limit = Some(check.timeout.get());
        peer.options.connection_timeout = limit;
        peer.options.total_connection_timeout = limit;
        (peer.options.read_timeout, peer.options.write_timeout) = (limit, limit);
        // A connection of its own for each probe.
        peer.options.max_h2_streams = 1;
        let host = if check.kind == ProbeKind::Tcp { "" } else { self.probe_host(backend, &check) };
        let (host, sni) = (host.into(), peer.sni.as_str().into());
        let key = Key { address, host, sni, trust, insists_on_http2, check };
        Some(Target { key, peer })
    }

    fn probe_host<'a>(&'a self, backend: &'a Backend, check: &'a Active) -> &'a str {
        match (&check.host, &self.written.host) {
            (Some(host), _) => host.as_str(),
            (None, HostHeader::Name(name)) => name,
            (None, HostHeader::Preserve | HostHeader::Backend) => backend.authority(),
        }
    }
}

impl Target {
    fn is_tls(&self) -> bool {
        self.peer.is_tls()
    }
}

impl fmt::Debug for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Target").field("address", &self.key.address).finish_non_exhaustive()
    }
}

#[async_trait]
impl Prober for Caller {
    async fn probe(&self, target: &Target) -> Outcome {
        let limit = target.key.check.timeout;
        let late = || Err(format!("timeout after {limit}").into());
        match timeout(limit.get(), Box::pin(run(self, target))).await {
            Ok(Err(Fault::Late)) | Err(_) => late(),
            Ok(Err(Fault::Seen(saw))) => Err(saw),
            Ok(Ok(saw)) => Ok(saw),
        }
    }
}

/// Why a probe failed.
enum Fault {
    /// Something took too long.
    Late,
    /// Anything else, for people.
    Seen(Box<str>),
}

impl From<&str> for Fault {
    fn from(saw: &str) -> Self {
        Self::Seen(saw.into())
    }
}

impl From<String> for Fault {
    fn from(saw: String) -> Self {
        Self::Seen(saw.into())
    }
}

impl From<CallError> for Fault {
    fn from(error: CallError) -> Self {
        error.to_string().into()
    }
}

impl From<pingora::BError> for Fault {
    fn from(error: pingora::BError) -> Self {
        let saw: Box<str> = match error.etype() {
            ErrorType::ConnectTimedout
            | ErrorType::TLSHandshakeTimedout
            | ErrorType::ReadTimedout
            | ErrorType::WriteTimedout => return Self::Late,
            ErrorType::ConnectRefused => "connection refused".into(),
            ErrorType::ConnectionClosed => "connection closed without an answer".into(),
            _ => describe(&error),
        };
        Self::Seen(saw)
    }
}

async fn run(caller: &Caller, target: &Target) -> Result<Box<str>, Fault> {
    let (mut session, _) = caller.connector().get_http_session(&target.peer).await?;
    if target.key.insists_on_http2 && session.as_http2().is_none() {
        // Requests will not be sent to it either.
        return Err(NOT_HTTP2.into());
    }
    let outcome = match target.key.check.kind {
        ProbeKind::Tcp => Ok("connected".into()),
        ProbeKind::Http => Box::pin(http(&mut session, target)).await,
        ProbeKind::Grpc => Box::pin(grpc::check(&mut session, target)).await,
    };
    session.shutdown().await;
    outcome
}

async fn http(session: &mut HttpSession, target: &Target) -> Result<Box<str>, Fault> {
    let check = &target.key.check;
    let mut request = Box::new(RequestHeader::build(check.method(), check.path().as_bytes(), None)?);
    request.insert_header(HOST, &*target.key.host)?;
    request.insert_header(USER_AGENT, AGENT)?;
    if session.as_http1().is_some() {
        request.insert_header(CONNECTION, "close")?;
    } else {
        name_as_http2(&mut request, target.is_tls())?;
    }
    session.write_request_header(request).await?;
    session.finish_request_body().await?;
    let status = read_head(session).await?;
    if !check.expects(status) {
        return Err(format!("status {status}, expected {}", check.expected()).into());
    }
    if let Some(wanted) = &check.body {
        let body = read_body(session, MAX_BODY).await?;
        if !wanted.is_in(&body) {
            return Err(format!("status {status}, but the body has no `{wanted}`").into());
        }
    }
    Ok(format!("status {status}").into())
}

/// The status of the final head.
async fn read_head(session: &mut HttpSession) -> Result<u16, Fault> {
    for _ in 0..MAX_INTERIM {
        session.read_response_header().await?;
        let status = session.response_header().map_or(StatusCode::CONTINUE, |head| head.status);
        if !status.is_informational() {
            return Ok(status.as_u16());
        }
    }
    Err("no final response head".into())
}

/// The body, as far as it is looked at.
async fn read_body(session: &mut HttpSession, most: usize) -> Result<Vec<u8>, Fault> {
    let mut body = Vec::new();
    while body.len() < most
        && let Some(piece) = session.read_response_body().await?
    {
        body.extend_from_slice(&piece);
    }
    body.truncate(most);
    Ok(body)
}
