//! What a request to an upstream says about where it comes from.

#[cfg(test)]
mod tests;

use std::borrow::Cow;
use std::net::IpAddr;
use std::sync::LazyLock;
use std::time::Duration;

use http::Version;
use http::header::{self, HeaderName, HeaderValue};
use pingora::http::RequestHeader;
use tollhouse_filters::context::{Context, RequestId};
use tollhouse_filters::values::{push_address, push_hex};

use super::intake::set_target;
use crate::upstream::{Picked, Upstream};

/// This process among all gateways, for `Via`: a pseudonym (RFC 9110 s7.6.3).
static PSEUDONYM: LazyLock<String> = LazyLock::new(|| format!("tollhouse-{:08x}", fastrand::u32(..)));

/// Flags that have a meaning: sampled, and, of level 2, that the trace's id is random. Others have to be zero.
const KNOWN_FLAGS: u8 = 0b11;

/// A field that the gateway writes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Field {
    ForwardedProto,
    ForwardedHost,
    ClientCertificate,
    Host,
    ForwardedFor,
    Forwarded,
    Via,
    Traceparent,
    Tracestate,
}

impl Field {
    /// In the order in which they are written; `Tracestate` only ever goes on or is dropped.
    const ALL: [Self; 8] = [
        Self::ForwardedProto,
        Self::ForwardedHost,
        Self::ClientCertificate,
        Self::Host,
        Self::ForwardedFor,
        Self::Forwarded,
        Self::Via,
        Self::Traceparent,
    ];

    /// Its name, as it is written. Pingora keeps how a name is spelt, and would copy that of a `HeaderName` each time.
    const fn name(self) -> &'static str {
        match self {
            Self::ForwardedProto => "x-forwarded-proto",
            Self::ForwardedHost => "x-forwarded-host",
            Self::ClientCertificate => "x-forwarded-client-cert",
            Self::Host => "host",
            Self::ForwardedFor => "x-forwarded-for",
            Self::Forwarded => "forwarded",
            Self::Via => "via",
            Self::Traceparent => "traceparent",
            Self::Tracestate => "tracestate",
        }
    }

    /// The field of this name in lower case, if it is one of these.
    fn named(name: &str) -> Option<Self> {
        Some(match name {
            "x-forwarded-proto" => Self::ForwardedProto,
            "x-forwarded-host" => Self::ForwardedHost,
            "x-forwarded-client-cert" => Self::ClientCertificate,
            "host" => Self::Host,
            "x-forwarded-for" => Self::ForwardedFor,
            "forwarded" => Self::Forwarded,
            "via" => Self::Via,
            "traceparent" => Self::Traceparent,
            "tracestate" => Self::Tracestate,
            _ => return None,
        })
    }
}

/// Fields that concern one connection only (RFC 9110 s7.6.1).
static HOP_BY_HOP: [HeaderName; 9] = [
    header::CONNECTION,
    // RFC 7540 s3.2.1.
    HeaderName::from_static("http2-settings"),
    HeaderName::from_static("keep-alive"),
    HeaderName::from_static("proxy-connection"),
    header::PROXY_AUTHORIZATION,
    header::TE,
    header::TRAILER,
    header::TRANSFER_ENCODING,
    header::UPGRADE,
];

/// Whether a field, by its name in lower case, is one of these.
fn is_hop_by_hop(name: &str) -> bool {
    matches!(
        name,
        "connection"
            | "http2-settings"
            | "keep-alive"
            | "proxy-connection"
            | "proxy-authorization"
            | "te"
            | "trailer"
            | "transfer-encoding"
            | "upgrade"
    )
}

/// What the forwarding fields are made from, beside the context.
pub struct Forwarding<'a> {
    /// The other end of the client's connection; none over a Unix socket.
    pub peer: Option<IpAddr>,
    /// The protocol version the client speaks.
    pub version: Version,
    /// Where the request goes.
    pub upstream: &'a Upstream,
    /// The backend chosen for this attempt; none in a dry run.
    pub picked: Option<&'a Picked>,
    /// What is left of the time, where backends are told.
    pub left: Option<Duration>,
}

/// Whether a request already carries this process's pseudonym.
pub(super) fn passed_here_before(request: &RequestHeader) -> bool {
    let lines = request.headers.get_all(header::VIA).iter();
    lines
        .filter_map(|line| line.to_str().ok())
        .flat_map(|line| line.split(','))
        .any(|hop| hop.trim().ends_with(&**PSEUDONYM))
}

/// Removes what concerns one connection only, and what `Connection` names.
pub fn strip_hop_by_hop(request: &mut RequestHeader) {
    let named: Vec<HeaderName> = request
        .headers
        .get_all(header::CONNECTION)
        .iter()
        .filter_map(|line| line.to_str().ok())
        .flat_map(|line| line.split(','))
        .filter_map(|name| name.trim().parse().ok())
        .collect();
    for name in named.iter().chain(&HOP_BY_HOP) {
        request.remove_header(name);
    }
}

/// Removes what concerns one connection only from a request of HTTP/2, of which `TE: trailers` may be passed on
/// (RFC 9113 s8.2.2).
pub fn strip_hop_by_hop_of_http2(request: &mut RequestHeader) {
    for name in HOP_BY_HOP.iter().filter(|name| **name != header::TE) {
        request.remove_header(name);
    }
}

/// Writes the gateway's own fields into one attempt's head.
pub(super) fn write(request: &mut RequestHeader, ctx: &Context, forwarding: &Forwarding<'_>) {
    let own = Own::new(request, ctx, forwarding);
    let mut text = Vec::with_capacity(128);
    let values = Field::ALL.map(|field| {
        text.clear();
        own.writes(field).then(|| own.push(field, &mut text))?;
        HeaderValue::from_bytes(&text).ok()
    });
    let drops_state = own.drops(Field::Tracestate);
    for (field, value) in Field::ALL.into_iter().zip(values) {
        value.and_then(|value| request.insert_header(field.name(), value).ok());
    }
    if drops_state {
        request.remove_header(Field::Tracestate.name());
    }
    if let Some(name) = forwarding.upstream.remaining_header() {
        request.remove_header(name);
        let left = forwarding.left.and_then(|left| HeaderValue::from_str(&millis(left)).ok());
        left.and_then(|left| request.insert_header(name.clone(), left).ok());
    }
    if let Some(target) = &ctx.policies.upstream_path {
        // A path that a filter made was checked when it was made.
        let _ = set_target(request, target);
    }
}

/// Writes one attempt's head as HTTP/1.1 sends it: the request's, without what concerns one connection only,
/// and the gateway's own fields. What [`strip_hop_by_hop`] and [`write`] make of a request of HTTP/1.1, in one go.
pub(super) fn write_wire(
    request: &RequestHeader,
    ctx: &Context,
    forwarding: &Forwarding<'_>,
    out: &mut Vec<u8>,
) {
    let own = Own::new(request, ctx, forwarding);
    let target = ctx.policies.upstream_path.as_deref().map_or(request.raw_path(), str::as_bytes);
    for part in [request.method.as_str().as_bytes(), b" ", target, b" HTTP/1.1\r\n"] {
        out.extend_from_slice(part);
    }
    let remaining = forwarding.upstream.remaining_header();
    let stays = |name: &str| {
        !is_hop_by_hop(name)
            && !Field::named(name).is_some_and(|field| own.drops(field))
            && remaining.is_none_or(|remaining| remaining.as_str() != name)
    };
    if request.has_case() {
        for ((name, value), (spelt, _)) in request.headers.iter().zip(request.case_header_iter()) {
            if stays(name.as_str()) {
                write_line(spelt.as_slice(), value.as_bytes(), out);
            }
        }
    } else {
        for (name, value) in request.headers.iter().filter(|(name, _)| stays(name.as_str())) {
            write_line(name.as_str().as_bytes(), value.as_bytes(), out);
        }
    }
    for field in Field::ALL.into_iter().filter(|field| own.writes(*field)) {
        out.extend_from_slice(field.name().as_bytes());
        out.extend_from_slice(b": ");
        own.push(field, out);
        out.extend_from_slice(b"\r\n");
    }
    if let (Some(name), Some(left)) = (remaining, forwarding.left) {
        write_line(name.as_str().as_bytes(), millis(left).as_bytes(), out);
    }
    out.extend_from_slice(b"\r\n");
}

fn millis(left: Duration) -> String {
    left.as_millis().to_string()
}

/// Writes a field line of HTTP/1.1.
pub fn write_line(name: &[u8], value: &[u8], out: &mut Vec<u8>) {
    for part in [name, b": ", value, b"\r\n"] {
        out.extend_from_slice(part);
    }
}

/// What the gateway says of where a request comes from and where it goes.
struct Own<'a> {
    request: &'a RequestHeader,
    ctx: &'a Context,
    forwarding: &'a Forwarding<'a>,
    said: Said<'a>,
    /// The host that was asked for, as text.
    asked: Option<&'a str>,
    /// The host that the backend sees.
    host: Cow<'a, str>,
    /// The trace that goes on, and its flags.
    trace: Option<(&'a str, u8)>,
}

/// What a request says in fields of the same names, found in one go: to look each of them up takes longer.
#[derive(Debug, Default, PartialEq, Eq)]
struct Said<'a> {
    /// The first `Host`.
    host: Option<&'a HeaderValue>,
    forwarded_host: bool,
    /// The only `traceparent`.
    traceparent: Option<&'a HeaderValue>,
    tracestate: bool,
    /// Those that are lists, which go on.
    forwarded_for: bool,
    forwarded: bool,
    via: bool,
}

impl<'a> Said<'a> {
    fn by(request: &'a RequestHeader) -> Self {
        let (mut said, mut traces) = (Self::default(), 0);
        for (name, value) in &request.headers {
            match Field::named(name.as_str()) {
                Some(Field::Host) => said.host = said.host.or(Some(value)),
                Some(Field::ForwardedHost) => said.forwarded_host = true,
                Some(Field::ForwardedFor) => said.forwarded_for = true,
                Some(Field::Forwarded) => said.forwarded = true,
                Some(Field::Via) => said.via = true,
                Some(Field::Traceparent) => {
                    traces += 1;
                    said.traceparent = Some(value).filter(|_| traces == 1);
                }
                Some(Field::Tracestate) => said.tracestate = true,
                Some(Field::ForwardedProto | Field::ClientCertificate) | None => {}
            }
        }
        said
    }
}

impl<'a> Own<'a> {
    fn new(request: &'a RequestHeader, ctx: &'a Context, forwarding: &'a Forwarding<'a>) -> Self {
        let said = Said::by(request);
        let asked = said.host.and_then(|host| host.to_str().ok());
        let asked = asked.or_else(|| Some(request.uri.authority()?.as_str()));
        let host = match forwarding.picked {
            Some(picked) => forwarding.upstream.host_header(picked, asked.unwrap_or_default()).into(),
            None => forwarding.upstream.likely_host(asked.unwrap_or_default()).into(),
        };
        let trace = said.traceparent.and_then(|line| line.to_str().ok()).and_then(parse_traceparent);
        Self { request, ctx, forwarding, said, asked, host, trace }
    }

    fn certificate(&self) -> Option<&'a HeaderValue> {
        self.ctx.client.tls.as_ref()?.forwarded_certificate.as_ref()
    }

    /// Whether what was sent of this field does not go on.
    fn drops(&self, field: Field) -> bool {
        match field {
            // W3C Trace Context s4.3: it is nothing without the trace that it belongs to.
            Field::Tracestate => self.said.tracestate && self.trace.is_none(),
            _ => self.writes(field),
        }
    }

    /// Whether this field is written; if not, what was sent of it stays.
    fn writes(&self, field: Field) -> bool {
        match field {
            Field::ForwardedHost => self.asked.is_some() && !self.said.forwarded_host,
            Field::ClientCertificate => self.certificate().is_some(),
            Field::Host => self.said.host.is_none_or(|sent| sent.as_bytes() != self.host.as_bytes()),
            Field::ForwardedFor => self.forwarding.peer.is_some(),
            Field::ForwardedProto | Field::Forwarded | Field::Via | Field::Traceparent => true,
            Field::Tracestate => false,
        }
    }

    /// Writes the value of a field.
    fn push(&self, field: Field, text: &mut Vec<u8>) {
        let Self { request, ctx, forwarding, said, asked, .. } = self;
        match field {
            Field::ForwardedProto => text.extend_from_slice(ctx.scheme.as_str().as_bytes()),
            Field::ForwardedHost => text.extend_from_slice(asked.unwrap_or_default().as_bytes()),
            Field::ClientCertificate => {
                text.extend_from_slice(self.certificate().map_or(b"", HeaderValue::as_bytes));
            }
            Field::Host => text.extend_from_slice(self.host.as_bytes()),
            // A trusted proxy's lists are continued; any other was dropped at intake.
            Field::ForwardedFor => {
                push_list(request, field, said.forwarded_for, text);
                forwarding.peer.into_iter().for_each(|peer| push_address(peer, text));
            }
            Field::Forwarded => {
                push_list(request, field, said.forwarded, text);
                push_forwarded(forwarding.peer, *asked, ctx, text);
            }
            Field::Via => {
                push_list(request, field, said.via, text);
                text.extend_from_slice(via(forwarding.version).as_bytes());
            }
            Field::Traceparent => push_traceparent(self.trace, ctx, text),
            Field::Tracestate => {}
        }
    }
}

/// One element of `Forwarded` (RFC 7239 s4); who comes over a Unix socket has no address (s6.2).
fn push_forwarded(peer: Option<IpAddr>, host: Option<&str>, ctx: &Context, text: &mut Vec<u8>) {
    match peer {
        Some(v6 @ IpAddr::V6(_)) => {
            text.extend_from_slice(b"for=\"[");
            push_address(v6, text);
            text.extend_from_slice(b"]\"");
        }
        Some(v4) => {
            text.extend_from_slice(b"for=");
            push_address(v4, text);
        }
        None => text.extend_from_slice(b"for=unknown"),
    }
    if let Some(host) = host.filter(|host| !host.bytes().any(|byte| matches!(byte, b'"' | b'\\'))) {
        for part in [";host=\"", host, "\""] {
            text.extend_from_slice(part.as_bytes());
        }
    }
    text.extend_from_slice(b";proto=");
    text.extend_from_slice(ctx.scheme.as_str().as_bytes());
}

/// What `Via` says of a request that came in this version.
fn via(version: Version) -> &'static str {
    static HOPS: LazyLock<[String; 3]> =
        LazyLock::new(|| ["1.0", "1.1", "2.0"].map(|version| format!("{version} {}", *PSEUDONYM)));
    let [old, current, http2] = &*HOPS;
    match version {
        Version::HTTP_10 => old,
        Version::HTTP_2 => http2,
        _ => current,
    }
}

/// A trace continued with a span of ours, or started (W3C Trace Context, level 1). Flags are passed on; in a trace that
/// begins here none is set, as s3.2.2.5.1 has it for who does not decide what is recorded.
fn push_traceparent(given: Option<(&str, u8)>, ctx: &Context, text: &mut Vec<u8>) {
    text.extend_from_slice(b"00-");
    match (given, &ctx.request_id) {
        (Some((trace, _)), _) => text.extend_from_slice(trace.as_bytes()),
        (None, RequestId::Made(bits)) if *bits != 0 => push_hex(&bits.to_be_bytes(), text),
        (None, _) => push_hex(&fastrand::u128(1..).to_be_bytes(), text),
    }
    text.push(b'-');
    push_hex(&fastrand::u64(1..).to_be_bytes(), text);
    text.push(b'-');
    push_hex(&[given.map_or(0, |(_, flags)| flags & KNOWN_FLAGS)], text);
}

/// The trace and the flags of a `traceparent`.
fn parse_traceparent(text: &str) -> Option<(&str, u8)> {
    let mut parts = text.split('-');
    let (version, trace, parent, flags) = (parts.next()?, parts.next()?, parts.next()?, parts.next()?);
    let hex = |text: &str, length: usize| {
        text.len() == length
            && text.bytes().all(|byte| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte))
    };
    let zero = |text: &str| text.bytes().all(|byte| byte == b'0');
    let shape = hex(version, 2) && hex(trace, 32) && hex(parent, 16) && hex(flags, 2);
    let future = version != "00" || parts.next().is_none();
    let valid = shape && version != "ff" && future && !zero(trace) && !zero(parent);
    valid.then(|| u8::from_str_radix(flags, 16).ok()).flatten().map(|flags| (trace, flags))
}

/// What a list field says so far, if it is `there`, on one line that goes on.
fn push_list(request: &RequestHeader, field: Field, there: bool, text: &mut Vec<u8>) {
    if !there {
        return;
    }
    for line in request.headers.get_all(field.name()).iter().filter(|line| line.to_str().is_ok()) {
        text.extend_from_slice(line.as_bytes());
        text.extend_from_slice(b", ");
    }
}
