//! Who the client is, behind trusted proxies.

use std::net::{IpAddr, Ipv4Addr};

use http::header::{self, HeaderName};
use pingora::http::RequestHeader;
use tollhouse_filters::context::Client;

use super::Connection;
use crate::snapshot::Snapshot;

const X_FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");

/// The rightmost address that is not a trusted proxy's.
///
/// `X-Forwarded-For` tells the way; where there is none, `Forwarded` does (RFC 7239 s5.2).
pub(super) fn of(
    snapshot: &Snapshot,
    connection: &Connection,
    request: &RequestHeader,
    trusted: bool,
) -> Client {
    let unspecified = IpAddr::V4(Ipv4Addr::UNSPECIFIED);
    let peer = connection.peer.map_or(unspecified, |peer| peer.ip().to_canonical());
    let port = connection.peer.map(|peer| peer.port());
    let tls = connection.tls.clone();
    if !trusted {
        return Client { address: peer, port, through_trusted_proxy: false, tls };
    }
    let mut address = peer;
    for hop in hops(request) {
        // What is left of something unreadable is not to be believed.
        let Some(hop) = hop else { break };
        address = hop;
        if !snapshot.server.trusted_proxies.contains(hop) {
            break;
        }
    }
    Client { address, port: port.filter(|_| address == peer), through_trusted_proxy: true, tls }
}

/// The addresses that the request came through, the last one first.
fn hops(request: &RequestHeader) -> Vec<Option<IpAddr>> {
    if request.headers.contains_key(&X_FORWARDED_FOR) {
        return elements(request, &X_FORWARDED_FOR, address_of);
    }
    elements(request, &header::FORWARDED, forwarded_for)
}

/// The elements of a list field from right to left, each read by `read`.
///
/// Every line counts, whatever is in it: a client could else hide what a proxy appended to it.
fn elements(
    request: &RequestHeader,
    name: &HeaderName,
    read: fn(&str) -> Option<IpAddr>,
) -> Vec<Option<IpAddr>> {
    let lines: Vec<_> = request.headers.get_all(name).iter().collect();
    let elements = lines.iter().rev().flat_map(|line| line.as_bytes().rsplit(|byte| *byte == b','));
    elements
        .map(|element| std::str::from_utf8(element).ok().and_then(|element| read(element.trim())))
        .collect()
}

/// The `for` of an element of `Forwarded`; names and `unknown` are no addresses (RFC 7239 s6).
fn forwarded_for(element: &str) -> Option<IpAddr> {
    let pairs = element.split(';').filter_map(|pair| pair.trim().split_once('='));
    let (_, node) = pairs.into_iter().find(|(name, _)| name.eq_ignore_ascii_case("for"))?;
    address_of(node.strip_prefix('"').and_then(|node| node.strip_suffix('"')).unwrap_or(node))
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
        hops(&request)
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
