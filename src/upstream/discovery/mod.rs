//! Backends that are not written in the document, but told by a registry.
//!
//! A [`Directory`] is somebody who knows them: one file of this folder for each kind of registry. It tells whole sets,
//! and nothing else: what of a set can be used, what of it is new, when a registry that failed is asked again, and what
//! is in use meanwhile is the same for all of them.

use std::fmt;

use async_trait::async_trait;

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
    /// again, after a while that grows with each call that told nothing. It may be dropped at any time.
    async fn follow(&self, tell: &Tell) -> Failed;
}

/// Why a registry cannot be followed, for people; without secrets.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Failed(Box<str>);

/// Who is told of sets.
pub(super) struct Tell(Box<dyn Fn(Vec<Instance>) + Send + Sync>);

impl Instance {
    /// One of which nothing else is told.
    pub(super) fn at(host: &str, port: u32) -> Self {
        Self { host: host.into(), port, weight: None, priority: None, zone: None }
    }
}

impl Tell {
    /// One that passes sets on.
    pub(super) fn new(pass_on: impl Fn(Vec<Instance>) + Send + Sync + 'static) -> Self {
        Self(Box::new(pass_on))
    }

    /// A whole set, in any order, which may be empty. One that is equal to the last changes nothing, but shows that
    /// the registry is there: tell what is known as often as the registry confirms it.
    pub(super) fn set(&self, instances: Vec<Instance>) {
        (self.0)(instances);
    }
}

impl From<&str> for Failed {
    fn from(why: &str) -> Self {
        Self(why.into())
    }
}

impl From<String> for Failed {
    fn from(why: String) -> Self {
        Self(why.into())
    }
}

impl fmt::Display for Failed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}
