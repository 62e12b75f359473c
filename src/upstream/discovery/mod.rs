//! Backends that are not written in the document, but told by a registry.
//!
//! A [`Directory`] is somebody who knows them: one file of this folder for each kind of registry. It tells whole sets,
//! and nothing else: what of a set can be used, what of it is new, when a registry that failed is asked again, and what
//! is in use meanwhile is the same for all of them.

mod consul;
mod dns;
mod entry;
mod etcd;
mod eureka;
mod file;
mod following;
mod http;
mod kubernetes;
mod nacos;
mod polled;
mod server;
#[cfg(test)]
mod tests;
#[cfg(feature = "zookeeper")]
mod zookeeper;
#[cfg(not(feature = "zookeeper"))]
#[path = "zookeeper/absent.rs"]
mod zookeeper;

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;

use super::call::Caller;
use super::resolve::Lookup;
use crate::config::discovery::Registry;

pub(super) use self::following::{Following, STEADY};
pub(super) use super::resolve::Failed;

/// The longest that a registry is left alone that could not be followed.
const PATIENCE: Duration = Duration::from_secs(30);

/// One backend as a registry tells it, unchecked: one that cannot be used is left out and logged, the others are used.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct Instance {
    /// A name, which is looked up as one that is written, or an IP address, that of version 6 with or without brackets.
    pub(super) host: Box<str>,
    /// From 1 to 65535.
    pub(super) port: u32,
    /// Its share of the requests relative to the others, from 0 to 1000, where 0 gets none; 1 if it is not told.
    pub(super) weight: Option<u32>,
    /// Its group: those of a lower number get requests first. From 0 to 255; 0 if it is not told.
    pub(super) priority: Option<u32>,
    /// Where it is, for `balance.zone`.
    pub(super) zone: Option<Box<str>>,
}

/// Somebody who knows the backends of an upstream.
#[async_trait]
pub(super) trait Directory: Send + Sync {
    /// Tells whole sets, as they change, until the registry cannot be followed any more: why. Whoever called calls
    /// again, after a while that grows with each call that ended soon. It may be dropped at any time.
    async fn follow(&self, tell: &Tell) -> Failed;

    /// The longest that it is left alone after it could not be followed.
    fn patience(&self) -> Duration {
        PATIENCE
    }
}

/// What directories reach registries with.
#[derive(Clone)]
pub(super) struct World {
    /// Looks names up, by the settings of the document.
    pub(super) lookup: Arc<dyn Lookup>,
    /// Makes calls.
    pub(super) caller: Caller,
}

/// Opens directories.
pub(super) trait Open: Send + Sync {
    /// Who knows the backends of this one. Nothing is reached before it is followed.
    fn open(&self, following: &Following) -> Box<dyn Directory>;
}

impl Open for World {
    fn open(&self, following: &Following) -> Box<dyn Directory> {
        match following.written() {
            Registry::Dns(written) => Box::new(dns::Addresses::new(written, Arc::clone(&self.lookup))),
            Registry::DnsSrv(written) => Box::new(dns::Services::new(written, Arc::clone(&self.lookup))),
            Registry::File(written) => Box::new(Arc::new(file::File::new(written, following.base()))),
            Registry::Consul(written) => Box::new(consul::Consul::new(written, following, self)),
            Registry::Eureka(written) => Box::new(eureka::Eureka::new(written, following, self)),
            Registry::Nacos(written) => Box::new(nacos::Nacos::new(written, following, self)),
            Registry::Etcd(written) => Box::new(etcd::Etcd::new(written, following.base(), self.clone())),
            Registry::Kubernetes(written) => {
                Box::new(kubernetes::Kubernetes::new(written, following.base(), self.clone()))
            }
            Registry::Zookeeper(written) => Box::new(zookeeper::Zookeeper::new(written, self.clone())),
        }
    }
}

/// Checks what is written of a registry, files included, which are relative to `base`. Nothing is reached.
///
/// # Errors
/// What is wrong, as paths to keys below `discovery` and messages.
pub(super) fn check(registry: &Registry, base: &Path) -> Result<(), Vec<(String, String)>> {
    match registry {
        Registry::Dns(_) | Registry::DnsSrv(_) | Registry::File(_) => Ok(()),
        Registry::Consul(written) => http::check(&written.address, written.tls.as_ref(), base),
        Registry::Eureka(written) => http::check(&written.address, written.tls.as_ref(), base),
        Registry::Nacos(written) => http::check(&written.address, written.tls.as_ref(), base),
        Registry::Etcd(written) => etcd::check(written, base),
        Registry::Kubernetes(written) => kubernetes::check(written, base),
        Registry::Zookeeper(written) => zookeeper::check(written),
    }
}

/// Give or take a tenth, so that what began together does not stay together.
pub(super) fn jittered(pause: Duration) -> Duration {
    pause.mul_f64(0.9 + 0.2 * fastrand::f64())
}

/// Who is told of sets.
pub(super) struct Tell(Box<dyn Fn(Option<Vec<Instance>>) + Send + Sync>);

impl Instance {
    /// One of which nothing else is told.
    pub(super) fn at(host: &str, port: u32) -> Self {
        Self { host: host.into(), port, weight: None, priority: None, zone: None }
    }
}

impl Tell {
    /// One that passes sets on; none says that the last one still holds.
    pub(super) fn new(pass_on: impl Fn(Option<Vec<Instance>>) + Send + Sync + 'static) -> Self {
        Self(Box::new(pass_on))
    }

    /// A whole set, in any order, which may be empty. One that is equal to the last changes nothing.
    pub(super) fn set(&self, instances: Vec<Instance>) {
        (self.0)(Some(instances));
    }

    /// The last set still holds, as the registry confirms: what is shown as its age begins anew. Only after a set was
    /// told in this very call.
    pub(super) fn still(&self) {
        (self.0)(None);
    }
}
