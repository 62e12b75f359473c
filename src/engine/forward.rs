//! What a request to an upstream says about where it comes from.

use std::fmt::Write as _;
use std::net::IpAddr;
use std::sync::LazyLock;

use http::Version;
use http::header::{self, HeaderName, HeaderValue};
use pingora::http::RequestHeader;
use tollhouse_filters::context::Context;

use super::intake::set_target;
use crate::upstream::{Picked, Upstream};

/// This process among all gateways, for `Via`: a pseudonym (RFC 9110 s7.6.3).
static PSEUDONYM: LazyLock<String> = LazyLock::new(|| format!("tollhouse-{:08x}", fastrand::u32(..)));

const TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");

/// Fields that concern one connection only (RFC 9110 s7.6.1).
const HOP_BY_HOP: [HeaderName; 8] = [
    header::CONNECTION,
    HeaderName::from_static("keep-alive"),
    HeaderName::from_static("proxy-connection"),
    header::PROXY_AUTHORIZATION,
    header::TE,
    header::TRAILER,
    header::TRANSFER_ENCODING,
    header::UPGRADE,
];

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
    let original_host = authority(request);
    if let Some(peer) = forwarding.peer {
        write_forwarded_for(request, peer);
    }
    set(request, HeaderName::from_static("x-forwarded-proto"), ctx.scheme.as_str());
    let forwarded_host = HeaderName::from_static("x-forwarded-host");
    if let Some(host) = original_host.as_ref().filter(|_| !request.headers.contains_key(&forwarded_host)) {
        set(request, forwarded_host, host);
    }
    append(request, header::FORWARDED, &forwarded(forwarding.peer, original_host.as_deref(), ctx));
    append(request, header::VIA, &format!("{} {}", version(forwarding.version), *PSEUDONYM));
    if let Some(trace) = traceparent(request, ctx) {
        set(request, TRACEPARENT, &trace);
    }
    if let Some(target) = &ctx.policies.upstream_path {
        // A path that a filter made was checked when it was made.
        let _ = set_target(request, target);
    }
    let original = original_host.as_deref().unwrap_or_default();
    let host = match forwarding.picked {
        Some(picked) => forwarding.upstream.host_header(picked, original),
        None => forwarding.upstream.likely_host(original),
    };
    set(request, header::HOST, host);
}

fn authority(request: &RequestHeader) -> Option<String> {
    let host = request.headers.get(header::HOST).and_then(|host| host.to_str().ok());
    host.or_else(|| request.uri.authority().map(http::uri::Authority::as_str)).map(str::to_owned)
}

/// A trusted proxy's list is continued; any other was dropped at intake.
fn write_forwarded_for(request: &mut RequestHeader, client: IpAddr) {
    let name = HeaderName::from_static("x-forwarded-for");
    let earlier: Vec<&str> =
        request.headers.get_all(&name).iter().filter_map(|line| line.to_str().ok()).collect();
    let list =
        if earlier.is_empty() { client.to_string() } else { format!("{}, {client}", earlier.join(", ")) };
    set(request, name, &list);
}

/// One element of `Forwarded` (RFC 7239 s4); who comes over a Unix socket has no address (s6.2).
fn forwarded(peer: Option<IpAddr>, host: Option<&str>, ctx: &Context) -> String {
    let mut element = match peer {
        Some(IpAddr::V4(address)) => format!("for={address}"),
        Some(IpAddr::V6(address)) => format!("for=\"[{address}]\""),
        None => "for=unknown".to_owned(),
    };
    if let Some(host) = host.filter(|host| !host.contains(['"', '\\'])) {
        write!(element, ";host=\"{host}\"").expect("writing to a String cannot fail");
    }
    write!(element, ";proto={}", ctx.scheme.as_str()).expect("writing to a String cannot fail");
    element
}

fn version(version: Version) -> &'static str {
    match version {
        Version::HTTP_10 => "1.0",
        Version::HTTP_2 => "2.0",
        _ => "1.1",
    }
}

/// A trace continued with a span of ours, or started (W3C Trace Context, level 1).
fn traceparent(request: &RequestHeader, ctx: &Context) -> Option<String> {
    let span = fastrand::u64(1..);
    let mut lines = request.headers.get_all(&TRACEPARENT).iter();
    let given = lines.next().filter(|_| lines.next().is_none()).and_then(|line| line.to_str().ok());
    if let Some((trace, flags)) = given.and_then(parse_traceparent) {
        return Some(format!("00-{trace}-{span:016x}-{flags}"));
    }
    let trace = match &ctx.request_id {
        tollhouse_filters::context::RequestId::Made(bits) if *bits != 0 => *bits,
        _ => fastrand::u128(1..),
    };
    Some(format!("00-{trace:032x}-{span:016x}-00"))
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

fn set(request: &mut RequestHeader, name: HeaderName, value: &str) {
    if let Ok(value) = HeaderValue::from_str(value) {
        let _ = request.insert_header(name, value);
    }
}

/// Continues a list field on one line.
fn append(request: &mut RequestHeader, name: HeaderName, value: &str) {
    let earlier: Vec<&str> =
        request.headers.get_all(&name).iter().filter_map(|line| line.to_str().ok()).collect();
    let list = if earlier.is_empty() { value.to_owned() } else { format!("{}, {value}", earlier.join(", ")) };
    set(request, name, &list);
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
        assert_eq!(
            forwarded("2001:db8::1".parse().ok(), Some("a.test"), &ctx),
            "for=\"[2001:db8::1]\";host=\"a.test\";proto=http"
        );
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
