//! What a request to an upstream says about where it comes from.

use std::net::IpAddr;
use std::ops::Range;
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

/// A field that the gateway writes: its name to look it up by, and as it is spelt. Pingora keeps how a name
/// is spelt, and would copy that of a `HeaderName` each time.
struct Field {
    name: HeaderName,
    spelt: &'static str,
}

const fn field(spelt: &'static str) -> Field {
    Field { name: HeaderName::from_static(spelt), spelt }
}

static HOST: Field = field("host");
static FORWARDED: Field = field("forwarded");
static TRACEPARENT: Field = field("traceparent");
static VIA: Field = field("via");
static X_FORWARDED_CLIENT_CERT: Field = field("x-forwarded-client-cert");
static X_FORWARDED_FOR: Field = field("x-forwarded-for");
static X_FORWARDED_HOST: Field = field("x-forwarded-host");
static X_FORWARDED_PROTO: Field = field("x-forwarded-proto");

/// Fields that concern one connection only (RFC 9110 s7.6.1).
static HOP_BY_HOP: [HeaderName; 8] = [
    header::CONNECTION,
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
    HOP_BY_HOP.iter().any(|field| field == name)
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

/// Writes the gateway's own fields into one attempt's head.
pub(super) fn write(request: &mut RequestHeader, ctx: &Context, forwarding: &Forwarding<'_>) {
    let own = own(request, ctx, forwarding);
    for (field, value) in own.iter() {
        if let Ok(value) = HeaderValue::from_bytes(value) {
            let _ = request.insert_header(field.spelt, value);
        }
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
    let own = own(request, ctx, forwarding);
    let target = ctx.policies.upstream_path.as_deref().map_or(request.raw_path(), str::as_bytes);
    for part in [request.method.as_str().as_bytes(), b" ", target, b" HTTP/1.1\r\n"] {
        out.extend_from_slice(part);
    }
    let remaining = forwarding.upstream.remaining_header();
    let stays = |name: &str| {
        !is_hop_by_hop(name)
            && !own.iter().any(|(field, _)| name == field.spelt)
            && remaining.is_none_or(|remaining| remaining != name)
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
    for (field, value) in own.iter() {
        write_line(field.spelt.as_bytes(), value, out);
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
struct Own {
    /// The values, one after the other.
    text: Vec<u8>,
    /// Where each of them is; what is none stays as it was sent.
    fields: [(&'static Field, Option<Range<usize>>); 8],
}

impl Own {
    fn iter(&self) -> impl Iterator<Item = (&'static Field, &[u8])> {
        self.fields.iter().filter_map(|(field, value)| Some((*field, &self.text[value.clone()?])))
    }
}

fn own(request: &RequestHeader, ctx: &Context, forwarding: &Forwarding<'_>) -> Own {
    let original = host_of(request);
    let asked = original.filter(|_| !request.headers.contains_key(&X_FORWARDED_HOST.name));
    let certificate = ctx.client.tls.as_ref().and_then(|tls| tls.forwarded_certificate.as_ref());
    let likely;
    let host = match forwarding.picked {
        Some(picked) => forwarding.upstream.host_header(picked, original.unwrap_or_default()),
        None => {
            likely = forwarding.upstream.likely_host(original.unwrap_or_default());
            &likely
        }
    };
    let sent = request.headers.get(header::HOST).is_some_and(|sent| sent == host);
    let mut text = Vec::with_capacity(384);
    let mut value = |write: &dyn Fn(&mut Vec<u8>)| {
        let from = text.len();
        write(&mut text);
        Some(from..text.len())
    };
    let mut copied = |copied: &[u8]| value(&|text| text.extend_from_slice(copied));
    let fields = [
        (&X_FORWARDED_PROTO, copied(ctx.scheme.as_str().as_bytes())),
        (&X_FORWARDED_HOST, asked.and_then(|host| copied(host.as_bytes()))),
        (&X_FORWARDED_CLIENT_CERT, certificate.and_then(|certificate| copied(certificate.as_bytes()))),
        (&HOST, Some(host).filter(|_| !sent).and_then(|host| copied(host.as_bytes()))),
        // A trusted proxy's lists are continued; any other was dropped at intake.
        (
            &X_FORWARDED_FOR,
            forwarding.peer.and_then(|peer| {
                value(&|text| {
                    push_list(request, &X_FORWARDED_FOR, text);
                    push_address(peer, text);
                })
            }),
        ),
        (
            &FORWARDED,
            value(&|text| {
                push_list(request, &FORWARDED, text);
                push_forwarded(forwarding.peer, original, ctx, text);
            }),
        ),
        (
            &VIA,
            value(&|text| {
                push_list(request, &VIA, text);
                text.extend_from_slice(via(forwarding.version).as_bytes());
            }),
        ),
        (&TRACEPARENT, value(&|text| push_traceparent(request, ctx, text))),
    ];
    Own { text, fields }
}

/// The host that was asked for, as text.
fn host_of(request: &RequestHeader) -> Option<&str> {
    let host = request.headers.get(header::HOST).and_then(|host| host.to_str().ok());
    host.or_else(|| Some(request.uri.authority()?.as_str()))
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
    if let Some(host) = host.filter(|host| !host.contains(['"', '\\'])) {
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

/// A trace continued with a span of ours, or started (W3C Trace Context, level 1).
fn push_traceparent(request: &RequestHeader, ctx: &Context, text: &mut Vec<u8>) {
    let mut lines = request.headers.get_all(&TRACEPARENT.name).iter();
    let given = lines.next().filter(|_| lines.next().is_none()).and_then(|line| line.to_str().ok());
    let given = given.and_then(parse_traceparent);
    text.extend_from_slice(b"00-");
    match (given, &ctx.request_id) {
        (Some((trace, _)), _) => text.extend_from_slice(trace.as_bytes()),
        (None, RequestId::Made(bits)) if *bits != 0 => push_hex(&bits.to_be_bytes(), text),
        (None, _) => push_hex(&fastrand::u128(1..).to_be_bytes(), text),
    }
    text.push(b'-');
    push_hex(&fastrand::u64(1..).to_be_bytes(), text);
    text.push(b'-');
    text.extend_from_slice(given.map_or("00", |(_, flags)| flags).as_bytes());
}

fn parse_traceparent(text: &str) -> Option<(&str, &str)> {
    let mut parts = text.split('-');
    let (version, trace, parent, flags) = (parts.next()?, parts.next()?, parts.next()?, parts.next()?);
    let hex = |text: &str, length: usize| {
        text.len() == length
            && text.bytes().all(|byte| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte))
    };
    let zero = |text: &str| text.bytes().all(|byte| byte == b'0');
    let shape = hex(version, 2) && hex(trace, 32) && hex(parent, 16) && hex(flags, 2);
    let future = version != "00" || parts.next().is_none();
    (shape && version != "ff" && future && !zero(trace) && !zero(parent)).then_some((trace, flags))
}

/// What a list field says so far, on one line that goes on.
fn push_list(request: &RequestHeader, field: &Field, text: &mut Vec<u8>) {
    for line in request.headers.get_all(&field.name).iter().filter(|line| line.to_str().is_ok()) {
        text.extend_from_slice(line.as_bytes());
        text.extend_from_slice(b", ");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GIVEN: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";

    #[test]
    fn a_valid_traceparent_gives_its_trace_and_flags() {
        assert_eq!(parse_traceparent(GIVEN), Some(("0af7651916cd43dd8448eb211c80319c", "01")));
    }

    #[test]
    fn invalid_traceparents_are_not_continued() {
        let zero_trace = GIVEN.replace("0af7651916cd43dd8448eb211c80319c", &"0".repeat(32));
        for bad in [
            "",
            "00-x",
            &GIVEN.replace("00-0", "ff-0"),
            &GIVEN.to_uppercase(),
            &zero_trace,
            &format!("{GIVEN}-x"),
        ] {
            assert_eq!(parse_traceparent(bad), None, "{bad}");
        }
    }

    #[test]
    fn an_ipv6_client_is_quoted_in_forwarded() {
        let ctx = Context::for_tests(
            tollhouse_filters::path::normalize("/", &Default::default()).expect("valid"),
            std::time::Instant::now(),
        );
        let mut text = Vec::new();
        push_forwarded("2001:db8::1".parse().ok(), Some("a.test"), &ctx, &mut text);
        assert_eq!(text, b"for=\"[2001:db8::1]\";host=\"a.test\";proto=http");
    }

    #[test]
    fn fields_named_by_connection_are_removed() {
        let mut request = RequestHeader::build("GET", b"/", None).expect("valid");
        for (name, value) in
            [("connection", "close, x-hop"), ("x-hop", "1"), ("te", "trailers"), ("x-kept", "1")]
        {
            request.insert_header(name, value).expect("valid");
        }
        strip_hop_by_hop(&mut request);
        assert_eq!(request.headers.keys().map(HeaderName::as_str).collect::<Vec<_>>(), ["x-kept"]);
    }
}
