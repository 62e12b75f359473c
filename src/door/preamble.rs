//! The PROXY protocol: what a trusted proxy says of a connection before the connection begins.
//!
//! "The PROXY protocol, versions 1 & 2" (haproxy.org); sections below are of that document.

use std::net::{IpAddr, Ipv6Addr, SocketAddr};

/// What version 2 begins with (section 2.2).
const SIGNATURE: &[u8; 12] = b"\r\n\r\n\0\r\nQUIT\n";
/// What version 1 begins with (section 2.1).
const PREFIX: &[u8] = b"PROXY ";
/// The longest line of version 1, its end included (section 2.1).
const MAX_LINE: usize = 107;
/// The longest preamble of version 2 that is taken; with certificates of clients they may be long.
const MAX_BINARY: usize = 16 + 8192;

/// A preamble that is whole.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Preamble {
    /// How long it is.
    pub(super) length: usize,
    /// Who the client is, and what it connected to; `None` where the proxy speaks for itself, such as in
    /// a health check, or does not know.
    pub(super) addresses: Option<Addresses>,
}

/// The ends of the connection that the proxy was asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Addresses {
    pub(super) client: SocketAddr,
    pub(super) local: SocketAddr,
}

/// The bytes are no preamble: the connection is to be closed (section 2).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Malformed;

impl Preamble {
    /// Reads a preamble of either version; `None` while it is not whole.
    pub(super) fn read(bytes: &[u8]) -> Result<Option<Self>, Malformed> {
        if begins(bytes, SIGNATURE) {
            return binary(bytes);
        }
        if begins(bytes, PREFIX) { text(bytes) } else { Err(Malformed) }
    }
}

/// Whether `bytes` begin with `start`, as far as they go.
fn begins(bytes: &[u8], start: &[u8]) -> bool {
    let n = bytes.len().min(start.len());
    bytes[..n] == start[..n]
}

/// `PROXY TCP4 192.0.2.1 192.0.2.2 56324 443` (section 2.1).
fn text(bytes: &[u8]) -> Result<Option<Preamble>, Malformed> {
    let Some(end) = bytes.iter().take(MAX_LINE).position(|byte| *byte == b'\n') else {
        return if bytes.len() < MAX_LINE { Ok(None) } else { Err(Malformed) };
    };
    let line = bytes[PREFIX.len().min(end)..end].strip_suffix(b"\r").ok_or(Malformed)?;
    let line = std::str::from_utf8(line).map_err(|_| Malformed)?;
    let mut words = line.split(' ');
    let addresses = match words.next() {
        // Whatever follows is to be ignored.
        Some("UNKNOWN") => None,
        Some(family @ ("TCP4" | "TCP6")) => {
            let words: Vec<&str> = words.collect();
            let [client, local, client_port, local_port] = words[..] else { return Err(Malformed) };
            let address = |ip: &str, port: &str| {
                let ip = ip.parse().ok().filter(|ip: &IpAddr| ip.is_ipv4() == (family == "TCP4"));
                Some(SocketAddr::new(ip?.to_canonical(), decimal(port)?))
            };
            let client = address(client, client_port).ok_or(Malformed)?;
            Some(Addresses { client, local: address(local, local_port).ok_or(Malformed)? })
        }
        _ => return Err(Malformed),
    };
    Ok(Some(Preamble { length: end + 1, addresses }))
}

/// A port without sign or leading zeros.
fn decimal(text: &str) -> Option<u16> {
    let plain = text.bytes().all(|byte| byte.is_ascii_digit()) && (text == "0" || !text.starts_with('0'));
    text.parse().ok().filter(|_| plain)
}

/// Section 2.2: a signature, version and command, family, length, addresses, and extensions that are passed over.
fn binary(bytes: &[u8]) -> Result<Option<Preamble>, Malformed> {
    let Some((fixed, rest)) = bytes.split_first_chunk::<16>() else { return Ok(None) };
    let [.., command, family, high, low] = *fixed;
    let payload = usize::from(u16::from_be_bytes([high, low]));
    let length = fixed.len() + payload;
    if !matches!(command, 0x20 | 0x21) || length > MAX_BINARY {
        return Err(Malformed);
    }
    let Some(payload) = rest.get(..payload) else { return Ok(None) };
    let addresses = match (command, family) {
        // LOCAL: the proxy's own connection, whatever the rest says.
        (0x20, _) => None,
        (_, 0x11) => Some(addresses(payload.first_chunk::<12>().ok_or(Malformed)?, |ip: [u8; 4]| ip.into())),
        (_, 0x21) => {
            let block = payload.first_chunk::<36>().ok_or(Malformed)?;
            Some(addresses(block, |ip: [u8; 16]| IpAddr::from(Ipv6Addr::from(ip)).to_canonical()))
        }
        // Unspecified, datagrams and Unix sockets: nothing that could be a client's address.
        _ => None,
    };
    Ok(Some(Preamble { length, addresses }))
}

/// Two addresses of N bytes, then two ports.
fn addresses<const N: usize>(block: &[u8], ip: impl Fn([u8; N]) -> IpAddr) -> Addresses {
    let address = |at: usize, port: usize| {
        let bytes = block[at..].first_chunk::<N>().expect("the block holds both addresses");
        SocketAddr::new(ip(*bytes), u16::from_be_bytes([block[port], block[port + 1]]))
    };
    Addresses { client: address(0, 2 * N), local: address(N, 2 * N + 2) }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// A length, and the client and the local address.
    type Shown = (usize, Option<(String, String)>);

    fn parsed(bytes: &[u8]) -> Result<Option<Shown>, Malformed> {
        let shown = |found: Addresses| (found.client.to_string(), found.local.to_string());
        Preamble::read(bytes).map(|found| found.map(|found| (found.length, found.addresses.map(shown))))
    }

    fn of_version_2(command: u8, family: u8, payload: &[u8]) -> Vec<u8> {
        let length = u16::try_from(payload.len()).unwrap().to_be_bytes();
        [&SIGNATURE[..], &[command, family], &length, payload].concat()
    }

    fn named(length: usize, client: &str, local: &str) -> Result<Option<Shown>, Malformed> {
        Ok(Some((length, Some((client.into(), local.into())))))
    }

    #[test]
    fn a_line_of_version_1_names_both_ends() {
        let line = b"PROXY TCP4 192.0.2.1 198.51.100.2 56324 443\r\nGET / HTTP/1.1\r\n";
        assert_eq!(parsed(line), named(45, "192.0.2.1:56324", "198.51.100.2:443"));
        let line = b"PROXY TCP6 2001:db8::1 ::1 1 65535\r\n";
        assert_eq!(parsed(line), named(36, "[2001:db8::1]:1", "[::1]:65535"));
        let line = b"PROXY TCP6 ::ffff:192.0.2.1 ::1 1 2\r\n";
        assert_eq!(parsed(line), named(37, "192.0.2.1:1", "[::1]:2"), "as every other address");
        assert_eq!(parsed(b"PROXY UNKNOWN\r\n"), Ok(Some((15, None))));
        assert_eq!(parsed(b"PROXY UNKNOWN ffff::1 ffff::2 1 2\r\n"), Ok(Some((35, None))));
    }

    #[test]
    fn a_block_of_version_2_names_both_ends_and_may_have_more() {
        let four = [192, 0, 2, 1, 198, 51, 100, 2, 0xdc, 4, 1, 0xbb];
        let extended = [&four[..], &[4, 0, 1, 0]].concat();
        assert_eq!(
            parsed(&of_version_2(0x21, 0x11, &four)),
            named(28, "192.0.2.1:56324", "198.51.100.2:443")
        );
        assert_eq!(
            parsed(&of_version_2(0x21, 0x11, &extended)),
            named(32, "192.0.2.1:56324", "198.51.100.2:443")
        );
        let six = [&[0; 15][..], &[1], &[0; 10], &[255, 255, 192, 0, 2, 9], &[0, 1, 0, 2]].concat();
        assert_eq!(parsed(&of_version_2(0x21, 0x21, &six)), named(52, "[::1]:1", "192.0.2.9:2"));
        assert_eq!(parsed(&of_version_2(0x20, 0x11, &four)), Ok(Some((28, None))), "LOCAL");
        assert_eq!(parsed(&of_version_2(0x21, 0, &[])), Ok(Some((16, None))), "unspecified");
        assert_eq!(parsed(&of_version_2(0x21, 0x31, &[0; 216])), Ok(Some((232, None))), "Unix sockets");
    }

    #[test]
    fn anything_else_is_malformed_as_soon_as_it_shows() {
        for bytes in [
            &b"GET / HTTP/1.1\r\n"[..],
            b"PROXY TCP4 192.0.2.1 192.0.2.2 1 2\n",
            b"PROXY TCP4 192.0.2.1 192.0.2.2 1\r\n",
            b"PROXY TCP4 192.0.2.1 192.0.2.2 1 2 3\r\n",
            b"PROXY TCP4  192.0.2.1 192.0.2.2 1 2\r\n",
            b"PROXY TCP4 ::1 ::2 1 2\r\n",
            b"PROXY TCP6 192.0.2.1 192.0.2.2 1 2\r\n",
            b"PROXY TCP4 192.0.2.1 192.0.2.2 1 65536\r\n",
            b"PROXY TCP4 192.0.2.1 192.0.2.2 +1 2\r\n",
            b"PROXY TCP4 192.0.2.1 192.0.2.2 01 2\r\n",
            b"PROXY UDP4 192.0.2.1 192.0.2.2 1 2\r\n",
            b"PROXY \r\n",
            b"\x16\x03\x01",
            &[b'P'; 2],
            &[&b"PROXY UNKNOWN "[..], &[b'x'; 100]].concat(),
            &of_version_2(0x11, 0x11, &[0; 12]),
            &of_version_2(0x22, 0x11, &[0; 12]),
            &of_version_2(0x21, 0x11, &[0; 11]),
            &of_version_2(0x21, 0x21, &[0; 35]),
            &of_version_2(0x21, 0x11, &[0; 9000]),
        ] {
            assert_eq!(parsed(bytes), Err(Malformed), "{}", bytes.escape_ascii());
        }
    }

    proptest! {
        #[test]
        fn a_preamble_is_not_whole_before_its_last_byte(v6 in any::<bool>(), block in any::<[u8; 40]>(), old in any::<bool>()) {
            let whole = match old {
                true => format!("PROXY TCP4 192.0.2.{} 192.0.2.2 1 2\r\n", block[0]).into_bytes(),
                false => of_version_2(0x21, if v6 { 0x21 } else { 0x11 }, &block),
            };
            for cut in 0..whole.len() {
                prop_assert_eq!(Preamble::read(&whole[..cut]), Ok(None));
            }
            prop_assert_eq!(Preamble::read(&whole).unwrap().unwrap().length, whole.len());
        }

        #[test]
        fn no_bytes_are_too_odd(bytes in proptest::collection::vec(any::<u8>(), 0..300), old in any::<bool>()) {
            let bytes = [if old { PREFIX } else { SIGNATURE }, &bytes].concat();
            if let Ok(Some(found)) = Preamble::read(&bytes) {
                prop_assert!(found.length <= bytes.len());
            }
        }
    }
}
