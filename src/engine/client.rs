//! Who the client is, behind trusted proxies.

use std::net::{IpAddr, Ipv4Addr};

use http::header::{self, HeaderName};
use pingora::http::RequestHeader;
use tollhouse_filters::context::{Client, Scheme};

use super::Connection;
use crate::snapshot::Snapshot;

const X_FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");

/// What one proxy says of who came to it.
#[derive(Debug, Default, PartialEq, Eq)]
struct Hop {
    /// None if that cannot be read.
    address: Option<IpAddr>,
    /// What it spoke.
    scheme: Option<Scheme>,
}

/// The rightmost address that is not a trusted proxy's, and what that client spoke, if it is told beside it.
///
/// `X-Forwarded-For` tells the way; where there is none, `Forwarded` does (RFC 7239 s5.2, s5.4).
pub(super) fn of(
    snapshot: &Snapshot,
    connection: &Connection,
    request: &RequestHeader,
    trusted: bool,
) -> (Client, Option<Scheme>) {
    let unspecified = IpAddr::V4(Ipv4Addr::UNSPECIFIED);
    let peer = connection.peer.map_or(unspecified, |peer| peer.ip().to_canonical());
    let port = connection.peer.map(|peer| peer.port());
    let tls = connection.tls.clone();
    if !trusted {
        return (Client { address: peer, port, through_trusted_proxy: false, tls }, None);
    }
    let (mut address, mut scheme) = (peer, None);
    for hop in hops(request) {
        // Whoever wrote this is trusted, even where it does not say an address. What was spoken on the way says nothing of
        // the client.
        scheme = hop.scheme;
        // What is left of something unreadable is not to be believed.
        let Some(hop) = hop.address else { break };
        address = hop;
        if !snapshot.server.trusted_proxies.contains(hop) {
            break;
        }
    }
    let port = port.filter(|_| address == peer);
    (Client { address, port, through_trusted_proxy: true, tls }, scheme)
}

/// Who the request came from on its way, the last one first.
fn hops(request: &RequestHeader) -> Vec<Hop> {
    if request.headers.contains_key(&X_FORWARDED_FOR) {
        return elements(request, &X_FORWARDED_FOR, forwarded_for);
    }
    elements(request, &header::FORWARDED, forwarded)
}

/// The elements of a list field from right to left, each read by `read`.
///
/// Every line counts, whatever is in it: a client could else hide what a proxy appended to it.
fn elements(request: &RequestHeader, name: &HeaderName, read: fn(&str) -> Hop) -> Vec<Hop> {
    let lines: Vec<_> = request.headers.get_all(name).iter().collect();
    let elements = lines.iter().rev().flat_map(|line| line.as_bytes().rsplit(|byte| *byte == b','));
    elements
        .map(|element| std::str::from_utf8(element).map(|element| read(element.trim())).unwrap_or_default())
        .collect()
}

/// An element of `X-Forwarded-For`.
fn forwarded_for(element: &str) -> Hop {
    Hop { address: address_of(element), scheme: None }
}

/// An element of `Forwarded`; names and `unknown` are no addresses (RFC 7239 s6).
fn forwarded(element: &str) -> Hop {
    let scheme = parameter(element, "proto").map(|proto| scheme_of(proto.as_bytes()));
    Hop { address: parameter(element, "for").and_then(address_of), scheme }
}

/// The value of a parameter, of which an element has one at most (RFC 7239 s4).
fn parameter<'a>(element: &'a str, wanted: &str) -> Option<&'a str> {
    let pairs = element.split(';').filter_map(|pair| pair.trim().split_once('='));
    let mut values = pairs.filter(|(name, _)| name.eq_ignore_ascii_case(wanted)).map(|(_, value)| value);
    // Of two, one may stand in what a client said, such as a host.
    let value = values.next().filter(|_| values.next().is_none())?;
    Some(value.strip_prefix('"').and_then(|value| value.strip_suffix('"')).unwrap_or(value))
}

/// The scheme of this name; what is not known to be safe is not.
pub(super) fn scheme_of(name: &[u8]) -> Scheme {
    if name.eq_ignore_ascii_case(b"https") { Scheme::Https } else { Scheme::Http }
}

/// An address with or without port and brackets, as proxies write it. Nobody has the unspecified one, which stands
/// for no address here.
fn address_of(text: &str) -> Option<IpAddr> {
    let bare =
        text.strip_prefix('[').and_then(|rest| rest.split_once(']')).map_or(text, |(address, _)| address);
    let address = bare.parse().ok().or_else(|| bare.rsplit_once(':')?.0.parse().ok())?;
    Some(IpAddr::to_canonical(&address)).filter(|address| !address.is_unspecified())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hops_of(fields: &[(&'static str, &str)]) -> Vec<Option<IpAddr>> {
        let mut request = RequestHeader::build("GET", b"/", None).expect("valid");
        for (name, value) in fields {
            request.append_header(*name, *value).expect("valid");
        }
        hops(&request).into_iter().map(|hop| hop.address).collect()
    }

    fn address(text: &str) -> Option<IpAddr> {
        Some(text.parse().expect("an address"))
    }

    #[test]
    fn forwarded_is_read_as_rfc_7239_s4_writes_it() {
        let given = "for=192.0.2.43, For=\"[2001:db8:cafe::17]:4711\";proto=http;by=203.0.113.43";
        assert_eq!(hops_of(&[("forwarded", given)]), [address("2001:db8:cafe::17"), address("192.0.2.43")]);
    }

    #[test]
    fn hidden_and_unknown_nodes_are_no_addresses() {
        let given = "for=_mdn, for=unknown, proto=http, for=\"_SEVKISEK:80\"";
        assert_eq!(hops_of(&[("forwarded", given)]), [None; 4]);
    }

    #[test]
    fn a_parameter_is_said_once_as_rfc_7239_s4_says() {
        assert_eq!(forwarded("for=192.0.2.43;Proto=\"HTTPS\"").scheme, Some(Scheme::Https));
        assert_eq!(forwarded("for=192.0.2.43;proto=http").scheme, Some(Scheme::Http));
        let twice = forwarded("for=192.0.2.43;proto=http;host=\"a;proto=https\"");
        assert_eq!((twice.address, twice.scheme), (address("192.0.2.43"), None));
        assert_eq!(forwarded("for=192.0.2.43;for=9.9.9.9").address, None);
    }

    #[test]
    fn the_unspecified_address_is_nobodys() {
        for text in ["0.0.0.0", "::", "::ffff:0.0.0.0", "0.0.0.0:80", "[::]:80"] {
            assert_eq!(hops_of(&[("x-forwarded-for", text)]), [None], "{text}");
            assert_eq!(hops_of(&[("forwarded", &format!("for=\"{text}\""))]), [None], "{text}");
        }
    }

    #[test]
    fn x_forwarded_for_is_preferred_and_read_over_all_its_lines() {
        let fields = [
            ("x-forwarded-for", "192.0.2.1, 192.0.2.2:80"),
            ("x-forwarded-for", "[::1]:1"),
            ("forwarded", "for=9.9.9.9"),
        ];
        assert_eq!(hops_of(&fields), [address("::1"), address("192.0.2.2"), address("192.0.2.1")]);
    }
}
