//! Backends that registries of others tell: each is the real one where there is one to be had, started by the tests.

mod etcd;
mod kubernetes;
#[cfg(feature = "zookeeper")]
mod zookeeper;
