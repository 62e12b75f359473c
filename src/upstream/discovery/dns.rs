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
    /// The last ones of each family: a family whose lookup failed keeps them.
    known: Mutex<[Vec<IpAddr>; 2]>,
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

    /// What is known after this answer.
    fn learn(&self, found: Found) -> Vec<Instance> {
        let mut known = self.known.lock();
        let [v4, v6] = &mut *known;
        for (held, family) in [(v4, found.v4), (v6, found.v6)] {
            *held = family.unwrap_or_else(|| std::mem::take(held));
        }
        let counts = |ip: &&IpAddr| match self.written.family {
            Family::Any => true,
            Family::Ipv4 => ip.is_ipv4(),
            Family::Ipv6 => ip.is_ipv6(),
        };
        let port = u32::from(self.written.port.get());
        known.iter().flatten().filter(counts).map(|ip| Instance::at(&ip.to_string(), port)).collect()
    }
}

#[async_trait]
impl Directory for Addresses {
    async fn follow(&self, tell: &Tell) -> Failed {
        loop {
            match self.lookup.addresses(self.written.name.as_str()).await {
                Ok(found) => {
                    let ttl = found.ttl;
                    tell.set(self.learn(found));
                    until_old(ttl).await;
                }
                Err(why) => return why,
            }
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

    fn service(priority: u16, weight: u16) -> Service {
        Service { target: "a.test.".into(), port: 80, priority, weight }
    }

    fn told(services: &[Service]) -> Vec<(u32, u32)> {
        let pair = |instance: Instance| (instance.priority.unwrap(), instance.weight.unwrap());
        instances(services).into_iter().map(pair).collect()
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
