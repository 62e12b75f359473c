//! Names as registries: the addresses of a name, and its service records (RFC 2782).

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use parking_lot::Mutex;

use super::{Directory, Failed, Instance, Tell};
use crate::config::discovery::{DnsDiscovery, DnsSrvDiscovery, Family};
use crate::upstream::MAX_WEIGHT;
use crate::upstream::resolve::{Found, Lookup, Service};

/// Each address of a name is a backend.
pub(super) struct Addresses {
    written: DnsDiscovery,
    lookup: Arc<dyn Lookup>,
    /// The last ones of each family, if they were ever told: a family whose lookup failed keeps them.
    known: Mutex<[Option<Vec<IpAddr>>; 2]>,
}

/// The service records of a name.
pub(super) struct Services {
    name: Box<str>,
    lookup: Arc<dyn Lookup>,
}

impl Addresses {
    pub(super) fn new(written: &DnsDiscovery, lookup: Arc<dyn Lookup>) -> Self {
        Self { written: written.clone(), lookup, known: Mutex::default() }
    }

    /// What is known after this answer. A family that was never answered for is not empty, but unknown: alone it
    /// makes no set. Beside the other it is done without, as some name servers never answer for one.
    fn learn(&self, found: Found) -> Result<Vec<Instance>, Failed> {
        let mut known = self.known.lock();
        for (held, answer) in known.iter_mut().zip([found.v4, found.v6]) {
            *held = answer.or_else(|| held.take());
        }
        let wanted = match self.written.family {
            Family::Any => &known[..],
            Family::Ipv4 => &known[..1],
            Family::Ipv6 => &known[1..],
        };
        let port = u32::from(self.written.port.get());
        let addresses = wanted.iter().flatten().flatten();
        let instances: Vec<_> = addresses.map(|ip| Instance::at(&ip.to_string(), port)).collect();
        if instances.is_empty() && wanted.iter().any(Option::is_none) {
            return Err(Failed::from("the name servers do not answer for the addresses that are wanted"));
        }
        Ok(instances)
    }
}

#[async_trait]
impl Directory for Addresses {
    async fn follow(&self, tell: &Tell) -> Failed {
        loop {
            let found = self.lookup.addresses(self.written.name.as_str(), self.written.family).await;
            let ttl = found.as_ref().map_or(Duration::ZERO, |found| found.ttl);
            match found.and_then(|found| self.learn(found)) {
                Ok(instances) => tell.set(instances),
                Err(why) => return why,
            }
            until_old(ttl).await;
        }
    }
}

impl Services {
    pub(super) fn new(written: &DnsSrvDiscovery, lookup: Arc<dyn Lookup>) -> Self {
        Self { name: written.name.as_str().into(), lookup }
    }
}

#[async_trait]
impl Directory for Services {
    async fn follow(&self, tell: &Tell) -> Failed {
        loop {
            match self.lookup.services(&self.name).await {
                Ok((services, ttl)) => {
                    tell.set(instances(&services));
                    until_old(ttl).await;
                }
                Err(why) => return why,
            }
        }
    }
}

/// Never before the TTL is over: a cache between would answer with what is left of it.
async fn until_old(ttl: Duration) {
    tokio::time::sleep(ttl.mul_f64(1.0 + 0.1 * fastrand::f64())).await;
}

/// Priorities by their order, as only that has a meaning, and weights that fit.
fn instances(services: &[Service]) -> Vec<Instance> {
    let priorities: BTreeSet<u16> = services.iter().map(|service| service.priority).collect();
    let mut weights: BTreeMap<u16, (u16, u16)> = BTreeMap::new();
    for service in services {
        let (least, most) = weights.entry(service.priority).or_insert((u16::MAX, 0));
        (*least, *most) = (service.weight.min(*least), service.weight.max(*most));
    }
    let instance = |service: &Service| Instance {
        weight: Some(weight(service.weight, weights[&service.priority])),
        priority: u32::try_from(priorities.range(..service.priority).count()).ok(),
        ..Instance::at(&service.target, service.port.into())
    };
    services.iter().map(instance).collect()
}

/// A weight from 0 to 65535 as one of at most 1000, given the least and the most of its like. One of 0 has "a very small
/// chance of being selected" beside others that have more (RFC 2782), and is as good as any where none has more.
fn weight(weight: u16, (least, most): (u16, u16)) -> u32 {
    if most == 0 {
        return 1;
    }
    if least > 0 && most <= MAX_WEIGHT {
        return weight.into();
    }
    (u32::from(weight) * u32::from(MAX_WEIGHT) / u32::from(most)).max(1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::upstream::resolve::Resolver;

    fn service(priority: u16, weight: u16) -> Service {
        Service { target: "a.test.".into(), port: 80, priority, weight }
    }

    fn told(services: &[Service]) -> Vec<(u32, u32)> {
        let pair = |instance: Instance| (instance.priority.unwrap(), instance.weight.unwrap());
        instances(services).into_iter().map(pair).collect()
    }

    fn found(v4: Option<&str>, v6: Option<&str>) -> Found {
        let list = |text: &str| text.split_whitespace().map(|ip| ip.parse().unwrap()).collect();
        Found { v4: v4.map(list), v6: v6.map(list), ttl: Duration::ZERO }
    }

    fn learned(family: &str, answers: &[Found]) -> Vec<Option<String>> {
        let written = serde_json::json!({"type": "dns", "name": "a.test", "port": 80, "family": family});
        let written = serde_json::from_value(written).unwrap();
        let addresses = Addresses::new(&written, Arc::<Resolver>::default());
        let joined = |instances: Vec<Instance>| {
            instances.iter().map(|instance| instance.host.to_string()).collect::<Vec<_>>().join(" ")
        };
        answers.iter().map(|found| addresses.learn(found.clone()).ok().map(joined)).collect()
    }

    #[test]
    fn a_family_that_was_never_answered_is_unknown_and_one_that_was_is_kept() {
        let answers = [
            found(Some("192.0.2.1"), None),
            found(None, Some("2001:db8::1")),
            found(Some("192.0.2.2"), None),
            found(Some(""), Some("")),
        ];
        let of = |families: [Option<&str>; 4]| families.map(|told| told.map(str::to_owned)).to_vec();
        let both =
            [Some("192.0.2.1"), Some("192.0.2.1 2001:db8::1"), Some("192.0.2.2 2001:db8::1"), Some("")];
        assert_eq!(learned("any", &answers), of(both));
        let v4 = [Some("192.0.2.1"), Some("192.0.2.1"), Some("192.0.2.2"), Some("")];
        assert_eq!(learned("ipv4", &answers), of(v4));
        let v6 = [None, Some("2001:db8::1"), Some("2001:db8::1"), Some("")];
        assert_eq!(learned("ipv6", &answers), of(v6));
    }

    #[test]
    fn priorities_keep_their_order_and_weights_their_proportion() {
        let services = [service(700, 10), service(10, 60_000), service(10, 15), service(10, 30_000)];
        assert_eq!(told(&services), [(1, 10), (0, 1000), (0, 1), (0, 500)]);
    }

    #[test]
    fn a_weight_of_zero_beside_others_is_a_small_one() {
        assert_eq!(told(&[service(1, 0), service(1, 15), service(1, 30)]), [(0, 1), (0, 500), (0, 1000)]);
    }

    #[test]
    fn where_all_weights_are_zero_all_are_equal() {
        assert_eq!(told(&[service(1, 0), service(1, 0)]), [(0, 1), (0, 1)]);
    }
}
