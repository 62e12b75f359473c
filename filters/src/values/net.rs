//! Address ranges: one network, and sets of them with fast membership.

use std::fmt;
use std::net::IpAddr;

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use prefix_trie::PrefixSet;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::scalar::Scalar;

/// An address (`10.0.0.7`) or a CIDR range (`10.0.0.0/8`, `fd00::/8`; RFC 4632, RFC 4291).
///
/// Bits after the prefix must be zero. A range of IPv4-mapped IPv6 addresses (`::ffff:10.0.0.0/104`)
/// is the IPv4 range it means.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Network(IpNet);

impl Network {
    /// The range.
    pub const fn get(self) -> IpNet {
        self.0
    }
}

impl From<IpAddr> for Network {
    fn from(address: IpAddr) -> Self {
        Self(address.to_canonical().into())
    }
}

impl Scalar for Network {
    const EXPECTED: &'static str =
        "an address or a CIDR range with no bits after its prefix, such as `10.0.0.0/8` or `fd00::/8`";
    const EXAMPLE: &'static str = "10.0.0.0/8";

    fn read(text: &str) -> Option<Self> {
        if let Ok(address) = text.parse::<IpAddr>() {
            return Some(address.into());
        }
        let net: IpNet = text.parse().ok()?;
        (net == net.trunc()).then(|| Self(unmapped(net)))
    }
}

crate::scalar!(Network);

impl fmt::Display for Network {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.prefix_len() == self.0.max_prefix_len() { self.0.addr().fmt(f) } else { self.0.fmt(f) }
    }
}

/// A set of addresses, written as a list of addresses and CIDR ranges.
///
/// Membership takes one walk down a prefix trie. An IPv4-mapped IPv6 address is the IPv4 address
/// it holds, whichever way the set or the question is written.
#[derive(Debug, Clone, Default, Serialize, Deserialize, JsonSchema)]
#[serde(from = "Vec<Network>", into = "Vec<Network>")]
#[schemars(with = "Vec<Network>")]
pub struct IpSet {
    written: Vec<Network>,
    v4: PrefixSet<Ipv4Net>,
    v6: PrefixSet<Ipv6Net>,
}

impl IpSet {
    /// Whether the set holds this address.
    pub fn contains(&self, address: IpAddr) -> bool {
        match address.to_canonical() {
            IpAddr::V4(address) => self.v4.get_lpm(&address.into()).is_some(),
            IpAddr::V6(address) => self.v6.get_lpm(&address.into()).is_some(),
        }
    }

    /// Whether the set holds no address.
    pub fn is_empty(&self) -> bool {
        self.written.is_empty()
    }

    /// The ranges as written.
    pub fn networks(&self) -> &[Network] {
        &self.written
    }
}

impl PartialEq for IpSet {
    fn eq(&self, other: &Self) -> bool {
        self.written == other.written
    }
}

impl Eq for IpSet {}

impl From<Vec<Network>> for IpSet {
    fn from(written: Vec<Network>) -> Self {
        let mut set = Self { written, ..Self::default() };
        for network in &set.written {
            match network.get() {
                IpNet::V4(net) => set.v4.insert(net),
                IpNet::V6(net) => set.v6.insert(net),
            };
        }
        set
    }
}

impl From<IpSet> for Vec<Network> {
    fn from(set: IpSet) -> Self {
        set.written
    }
}

impl FromIterator<Network> for IpSet {
    fn from_iter<I: IntoIterator<Item = Network>>(networks: I) -> Self {
        networks.into_iter().collect::<Vec<_>>().into()
    }
}

/// The IPv4 range that a range of mapped addresses means, or the range itself.
fn unmapped(net: IpNet) -> IpNet {
    let IpNet::V6(v6) = net else { return net };
    let mapped = v6.addr().to_ipv4_mapped().zip(v6.prefix_len().checked_sub(96));
    mapped.and_then(|(address, prefix)| Ipv4Net::new(address, prefix).ok()).map_or(net, IpNet::V4)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(list: &[&str]) -> IpSet {
        serde_json::from_value(serde_json::json!(list)).unwrap()
    }

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn ranges_and_single_addresses_hold_what_they_say() {
        let set = set(&["10.0.0.0/8", "192.0.2.7", "fd00::/8", "2001:db8::1"]);
        for inside in ["10.0.0.0", "10.255.255.255", "192.0.2.7", "fdff::1", "2001:db8::1"] {
            assert!(set.contains(ip(inside)), "{inside}");
        }
        for outside in ["11.0.0.0", "9.255.255.255", "192.0.2.8", "fe00::1", "2001:db8::2"] {
            assert!(!set.contains(ip(outside)), "{outside}");
        }
    }

    #[test]
    fn a_mapped_address_is_the_ipv4_address_it_holds() {
        assert!(set(&["10.0.0.0/8"]).contains(ip("::ffff:10.1.2.3")));
        assert!(set(&["::ffff:10.0.0.0/104"]).contains(ip("10.1.2.3")));
        assert!(set(&["::ffff:10.1.2.3"]).contains(ip("10.1.2.3")));
        assert!(!set(&["::/8"]).contains(ip("10.1.2.3")));
    }

    #[test]
    fn the_empty_set_holds_nothing_and_the_whole_range_everything_of_its_family() {
        assert!(!set(&[]).contains(ip("127.0.0.1")));
        let all = set(&["0.0.0.0/0"]);
        assert!(all.contains(ip("255.255.255.255")) && all.contains(ip("0.0.0.0")));
        assert!(!all.contains(ip("::1")));
    }

    #[test]
    fn host_bits_bad_prefixes_and_names_are_refused() {
        for text in ["", "10.0.0.1/8", "10.0.0.0/33", "10.0.0", "fd00::1/8", "example.com", "10.0.0.0/-1"] {
            assert!(text.parse::<Network>().is_err(), "{text}");
        }
    }

    #[test]
    fn a_set_is_written_back_as_its_list() {
        let list = ["10.0.0.0/8", "192.0.2.7", "fd00::/8"];
        assert_eq!(serde_json::to_value(set(&list)).unwrap(), serde_json::json!(list));
    }
}
