//! What a filter knows about the request in hand, and where it leaves what others need.

#[cfg(test)]
mod tests;

use std::any::Any;
use std::borrow::Cow;
use std::fmt;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use http::HeaderValue;
use http::header::{CONTENT_LENGTH, TRANSFER_ENCODING};
use pingora_http::RequestHeader;

use crate::caching::CacheStatus;
use crate::condition::RequestView;
use crate::identity::{Unavailable, Verified};
use crate::limits::Standing;
use crate::path::{Captures, NormalPath};
use crate::values::{IpSet, hex};
use crate::world::TenantId;

pub use crate::slot::Slot;

/// One request as filters see it, from the first filter to the last.
pub struct Context {
    /// The name of the listener it came through.
    pub listener: Arc<str>,
    /// The client's address, behind trusted proxies.
    pub client: Client,
    /// How the client speaks to us, or to the trusted proxy before us.
    pub scheme: Scheme,
    /// The host asked for: lower case, without port; absent for HTTP/1.0 without `Host`.
    pub host: Option<Box<str>>,
    /// The normalised path; decisions use [`NormalPath::matched`].
    pub path: NormalPath,
    /// The path as the client wrote it, where a version was taken off it; normalised too.
    pub whole_path: Option<Box<str>>,
    /// Of HTTP/2: its stream did not end with its head (RFC 9113 s8.1). Ask [`has_body`](Self::has_body), which looks
    /// at the fields too.
    pub goes_on: bool,
    /// Identifies the request in logs, answers and upstream requests.
    pub request_id: RequestId,
    /// When the head was complete.
    pub started: Instant,
    /// When the answer must be complete, if the route says so.
    pub deadline: Option<Instant>,
    /// What the route's path pattern captured.
    pub captures: Captures,
    /// The route's name.
    pub route: Arc<str>,
    /// The name of the route's service.
    pub service: Option<Arc<str>>,
    /// The API version asked for.
    pub version: Option<Arc<str>>,
    /// The variant chosen by a split.
    pub variant: Option<Arc<str>>,
    /// Who owns what this request touches.
    pub tenant: TenantId,
    /// The verified caller, as its credential describes it.
    pub principal: Option<Arc<Principal>>,
    /// The verified caller, as this gateway knows it.
    pub consumer: Option<Arc<Consumer>>,
    /// The identity by which it is known.
    pub identity: Option<Arc<str>>,
    /// Identities whose credentials may be taken out since they were looked at, and still count as shown: what they
    /// proved, or why nobody could tell whether they hold.
    pub shown: Vec<(Arc<str>, Result<Verified, Unavailable>)>,
    /// The name of the upstream that the request goes to.
    pub upstream: Option<Arc<str>>,
    /// What filters asked the core to do.
    pub policies: Policies,
    /// The limits that the request was counted against, for who answers to tell.
    pub limits: Vec<Standing>,
    /// How long it waited for its turn where more came than may.
    pub waited: Duration,
    /// What a cache did with it; none without a cache.
    pub cache: Option<CacheStatus>,
    /// Whether the running step only tells what it would do.
    pub dry_run: bool,
    /// The step that ended the request, and why.
    pub ended_by: Option<EndedBy>,
    slots: Vec<(u32, Box<dyn Any + Send + Sync>)>,
    log: Option<Box<DecisionLog>>,
}

/// The client's address, and how its connection is secured.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Client {
    /// The rightmost address that is not a trusted proxy's; over a Unix socket, where there is none, 0.0.0.0.
    pub address: IpAddr,
    /// Its port, when it is the peer of the connection.
    pub port: Option<u16>,
    /// The peer of the connection is a trusted proxy.
    pub through_trusted_proxy: bool,
    /// What the peer of the connection and we agreed on; none without TLS.
    pub tls: Option<Arc<Tls>>,
}

impl Client {
    /// The certificate that the peer of the connection proved to have; verified.
    #[must_use]
    pub fn certificate(&self) -> Option<&ClientCertificate> {
        self.tls.as_ref()?.certificate.as_ref()
    }

    /// Whether its address is in this set; who comes over a Unix socket has none, nor a port.
    #[must_use]
    pub fn is_in(&self, set: &IpSet) -> bool {
        (!self.address.is_unspecified() || self.port.is_some()) && set.contains(self.address)
    }
}

/// What the two ends of a TLS connection agreed on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tls {
    /// `TLSv1.2` or `TLSv1.3`.
    pub version: &'static str,
    /// The cipher suite, by its IANA name.
    pub cipher: &'static str,
    /// The host that the client named (SNI, RFC 6066 s3), in lower case.
    pub server_name: Option<Box<str>>,
    /// The protocol chosen (ALPN, RFC 7301), such as `h2`.
    pub protocol: Option<&'static str>,
    /// The handshake resumed an earlier connection's.
    pub resumed: bool,
    /// The client's certificate, verified.
    pub certificate: Option<ClientCertificate>,
    /// The listener asks clients for certificates, so the host named is the only one to be served.
    pub bound_to_name: bool,
    /// What upstreams are told of the certificate (`X-Forwarded-Client-Cert`), where the listener says so.
    pub forwarded_certificate: Option<HeaderValue>,
}

/// A verified certificate of a client.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClientCertificate {
    /// The distinguished name of whom it is for, such as `C=DE, CN=acme`.
    pub subject: Box<str>,
    /// The distinguished name of who issued it.
    pub issuer: Box<str>,
    /// Its serial number, in hexadecimal digits.
    pub serial: Box<str>,
    /// Further names of whom it is for.
    pub names: Box<[AlternativeName]>,
    /// SHA-256 of its DER form.
    pub fingerprint: [u8; 32],
    /// When it ends, in Unix seconds.
    pub not_after: i64,
}

impl ClientCertificate {
    /// The fingerprint in hexadecimal digits.
    #[must_use]
    pub fn fingerprint_hex(&self) -> String {
        hex(&self.fingerprint)
    }
}

/// A subject alternative name (RFC 5280 s4.2.1.6).
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum AlternativeName {
    /// A host name.
    Dns(Box<str>),
    /// A URI, such as a SPIFFE id.
    Uri(Box<str>),
    /// A mailbox.
    Email(Box<str>),
    /// An address.
    Ip(IpAddr),
}

/// How the client speaks to us.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scheme {
    /// Without TLS.
    Http,
    /// Over TLS.
    Https,
}

impl Scheme {
    /// As written in URIs.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Http => "http",
            Self::Https => "https",
        }
    }
}

/// Identifies a request; 32 hexadecimal digits unless taken over from the client.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RequestId {
    /// Made here.
    Made(u128),
    /// Taken over from the request.
    Given(Box<str>),
}

impl RequestId {
    /// As written in fields and logs.
    #[must_use]
    pub fn text(&self) -> Cow<'_, str> {
        match self {
            Self::Made(bits) => hex(&bits.to_be_bytes()).into(),
            Self::Given(text) => (&**text).into(),
        }
    }
}

impl fmt::Display for RequestId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text())
    }
}

/// The verified caller, as its credential describes it.
#[derive(Debug, Clone, PartialEq)]
pub struct Principal {
    /// The subject of the credential.
    pub subject: String,
    /// Its claims.
    pub claims: serde_json::Map<String, serde_json::Value>,
}

/// The verified caller, as this gateway knows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Consumer {
    /// Its name.
    pub name: Arc<str>,
    /// Its groups.
    pub groups: Arc<[Arc<str>]>,
    /// The name of the plan that says how much it may.
    pub plan: Option<Arc<str>>,
}

/// What filters asked the core to do; a policy is the filter's, the mechanism the core's.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Policies {
    /// The largest request body, in bytes, instead of `server.limits.body_bytes`.
    pub body_limit: Option<u64>,
    /// The path and query sent to the upstream, instead of the request's own; normalised.
    pub upstream_path: Option<Box<str>>,
    /// The names of the upstreams that get a copy.
    pub mirrors: Vec<Arc<str>>,
}

/// The step that ended a request, and why.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EndedBy {
    /// The step's filter.
    pub filter: &'static str,
    /// The instance's id.
    pub instance: Arc<str>,
    /// The reason it gave.
    pub reason: Option<Cow<'static, str>>,
}

/// What happened at one step, for `explain` and the decision log.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, schemars::JsonSchema)]
pub struct Decision {
    /// The step's filter.
    pub filter: &'static str,
    /// The instance's id.
    pub instance: Arc<str>,
    /// What was decided.
    pub verdict: Verdict,
    /// Why.
    pub reason: Cow<'static, str>,
    /// Facts it rests on.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub fields: Vec<(&'static str, String)>,
}

/// What a step decided.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, schemars::JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// The step ran and let the request pass.
    Passed,
    /// The step's `when` did not hold.
    Skipped,
    /// The step changed something.
    Changed,
    /// The step answered the request.
    Answered,
    /// The step would have answered, but is under `dry_run`.
    WouldAnswer,
    /// The step failed and the request went on.
    FailedOpen,
    /// The step failed and ended the request.
    Failed,
}

/// The decisions of one request, kept only when somebody asked for them.
#[derive(Debug, Default)]
pub struct DecisionLog {
    /// In the order they were made.
    pub decisions: Vec<Decision>,
    step: Option<(&'static str, Arc<str>)>,
}

impl Context {
    /// A context with nothing decided yet.
    #[must_use]
    pub fn new(
        listener: Arc<str>,
        client: Client,
        path: NormalPath,
        request_id: RequestId,
        started: Instant,
    ) -> Self {
        Self {
            listener,
            client,
            scheme: Scheme::Http,
            host: None,
            path,
            whole_path: None,
            goes_on: false,
            request_id,
            started,
            deadline: None,
            captures: Captures::default(),
            route: Arc::from(""),
            service: None,
            version: None,
            variant: None,
            tenant: TenantId::default(),
            principal: None,
            consumer: None,
            identity: None,
            shown: Vec::new(),
            upstream: None,
            policies: Policies::default(),
            limits: Vec::new(),
            waited: Duration::ZERO,
            cache: None,
            dry_run: false,
            ended_by: None,
            slots: Vec::new(),
            log: None,
        }
    }

    /// The same request's context for what goes on beside it: with what is known of the request, without what its
    /// filters keep for themselves.
    #[must_use]
    pub fn fork(&self) -> Self {
        Self {
            listener: self.listener.clone(),
            client: self.client.clone(),
            scheme: self.scheme,
            host: self.host.clone(),
            path: self.path.clone(),
            whole_path: self.whole_path.clone(),
            goes_on: self.goes_on,
            request_id: self.request_id.clone(),
            started: self.started,
            deadline: self.deadline,
            captures: self.captures.clone(),
            route: self.route.clone(),
            service: self.service.clone(),
            version: self.version.clone(),
            variant: self.variant.clone(),
            tenant: self.tenant,
            principal: self.principal.clone(),
            consumer: self.consumer.clone(),
            identity: self.identity.clone(),
            shown: self.shown.clone(),
            upstream: self.upstream.clone(),
            policies: self.policies.clone(),
            limits: Vec::new(),
            waited: Duration::ZERO,
            cache: self.cache.clone(),
            dry_run: false,
            ended_by: None,
            slots: Vec::new(),
            log: None,
        }
    }

    /// Keeps every decision from now on.
    pub fn keep_decisions(&mut self) {
        self.log.get_or_insert_default();
    }

    /// The decisions kept so far; empty unless they are kept.
    #[must_use]
    pub fn decisions(&self) -> &[Decision] {
        self.log.as_ref().map_or(&[], |log| &log.decisions)
    }

    /// Whether decisions are kept, for filters whose fields are dear to make.
    #[must_use]
    pub fn keeps_decisions(&self) -> bool {
        self.log.is_some()
    }

    /// Notes a decision of the running step; one branch when nobody asked.
    pub fn decide(
        &mut self,
        verdict: Verdict,
        reason: impl Into<Cow<'static, str>>,
        fields: &[(&'static str, &str)],
    ) {
        let Some(log) = &mut self.log else { return };
        let Some((filter, instance)) = log.step.clone() else { return };
        let fields = fields.iter().map(|(name, value)| (*name, (*value).to_owned())).collect();
        log.decisions.push(Decision { filter, instance, verdict, reason: reason.into(), fields });
    }

    pub(crate) fn enter_step(&mut self, filter: &'static str, instance: &Arc<str>) {
        if let Some(log) = &mut self.log {
            log.step = Some((filter, instance.clone()));
        }
    }

    /// What the instance put into its slot.
    #[must_use]
    pub fn slot<T: Send + Sync + 'static>(&self, slot: Slot<T>) -> Option<&T> {
        self.slots.iter().find(|(id, _)| *id == slot.id).and_then(|(_, value)| value.downcast_ref())
    }

    /// What the instance put into its slot, made on first use.
    pub fn slot_mut<T: Default + Send + Sync + 'static>(&mut self, slot: Slot<T>) -> &mut T {
        let at = self.slots.iter().position(|(id, _)| *id == slot.id).unwrap_or_else(|| {
            self.slots.push((slot.id, Box::<T>::default()));
            self.slots.len() - 1
        });
        self.slots[at].1.downcast_mut().expect("a slot's id is given out once, with its type")
    }

    /// Puts a value into the instance's slot; guards put here are dropped with the request.
    pub fn set_slot<T: Send + Sync + 'static>(&mut self, slot: Slot<T>, value: T) {
        self.slots.retain(|(id, _)| *id != slot.id);
        self.slots.push((slot.id, Box::new(value)));
    }

    /// The request as conditions see it.
    #[must_use]
    pub fn view<'a>(&'a self, request: &'a RequestHeader) -> RequestView<'a> {
        RequestView {
            method: &request.method,
            path: &self.path,
            query: request.uri.query(),
            headers: &request.headers,
            host: self.host.as_deref(),
        }
    }

    /// Path and query as the client wrote them, with a version that was taken off the path since.
    #[must_use]
    pub fn whole_target(&self, request: &RequestHeader) -> String {
        let path = match self.whole_path.as_deref().unwrap_or_else(|| request.uri.path()) {
            "" => "/",
            path => path,
        };
        request.uri.query().map_or_else(|| path.to_owned(), |query| format!("{path}?{query}"))
    }

    /// Whether the request has a body, or may have one that is still to come; some have one whatever the method.
    #[must_use]
    pub fn has_body(&self, request: &RequestHeader) -> bool {
        let length = request.headers.get(CONTENT_LENGTH).map(HeaderValue::as_bytes);
        self.goes_on
            || request.headers.contains_key(TRANSFER_ENCODING)
            || length.is_some_and(|length| length.trim_ascii() != b"0")
    }

    /// A context for tests: a GET from 192.0.2.1 through the listener `test`.
    #[must_use]
    pub fn for_tests(path: NormalPath, started: Instant) -> Self {
        let client = Client {
            address: IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1)),
            port: Some(50000),
            through_trusted_proxy: false,
            tls: None,
        };
        let mut ctx = Self::new(Arc::from("test"), client, path, RequestId::Made(1), started);
        ctx.route = Arc::from("test");
        ctx
    }
}
