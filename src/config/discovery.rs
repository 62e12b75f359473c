//! Backends that a registry tells, as the user writes who that is.

mod consul;
mod etcd;
mod eureka;
pub mod kubeconfig;
pub mod kubernetes;
mod nacos;
mod shared;
mod zookeeper;

use std::borrow::Cow;
use std::fmt;
use std::num::NonZeroU16;
use std::path::PathBuf;
use std::sync::Arc;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Deserializer, Serialize};
use tollhouse_filters::tree::{self, Error, Node, Path, Raw, suggest};
use tollhouse_filters::values::{Duration, Scalar};

use super::upstream::Host;

pub use self::consul::ConsulDiscovery;
pub use self::etcd::EtcdDiscovery;
pub use self::eureka::{EurekaDiscovery, EurekaHost};
pub use self::kubernetes::KubernetesDiscovery;
pub use self::nacos::{NacosApi, NacosDiscovery};
pub use self::shared::Shared;
use self::shared::registry;
pub use self::zookeeper::ZookeeperDiscovery;

/// Who tells the backends of an upstream. What is wrong with it is kept until its upstream is built, so that all of it
/// is told at once, with its place.
#[derive(Clone, PartialEq)]
pub struct Discovery(Result<Registry, Vec<Error>>);

/// A registry, by its type.
#[derive(Debug, Clone, PartialEq)]
pub enum Registry {
    /// The addresses of a name.
    Dns(DnsDiscovery),
    /// The services of a name.
    DnsSrv(DnsSrvDiscovery),
    /// A file.
    File(FileDiscovery),
    /// Consul.
    Consul(ConsulDiscovery),
    /// Eureka.
    Eureka(EurekaDiscovery),
    /// Nacos.
    Nacos(NacosDiscovery),
    /// A cluster of etcd.
    Etcd(EtcdDiscovery),
    /// A cluster of Kubernetes.
    Kubernetes(KubernetesDiscovery),
    /// An ensemble of ZooKeeper.
    Zookeeper(ZookeeperDiscovery),
}

registry! {
    /// `discovery: {type: dns}`: each address of a name (A and AAAA) is a backend.
    pub struct DnsDiscovery {
        /// What it is: `dns`.
        #[serde(rename = "type")]
        _kind: DnsType,
        /// The name; looked up as names of backends are (`server.dns`), again and again by its TTL. Required. Example: `users.internal`.
        pub name: DnsName,
        /// The port of all of them. Required. Example: `8080`.
        pub port: NonZeroU16,
        /// Which addresses count: `any`, `ipv4` or `ipv6`. Default: `any`. Example: `ipv4`.
        #[serde(default)]
        pub family: Family,
    }
}

registry! {
    /// `discovery: {type: dns_srv}`: the service records of a name (RFC 2782), with their priorities, weights and ports.
    pub struct DnsSrvDiscovery {
        /// What it is: `dns_srv`.
        #[serde(rename = "type")]
        _kind: DnsSrvType,
        /// The name; looked up as names of backends are (`server.dns`), again and again by its TTL. Required. Example: `_http._tcp.users.internal`.
        pub name: DnsName,
    }
}

registry! {
    /// `discovery: {type: file}`: a list of backends in a file of its own, in YAML or JSON, written as under `backends`.
    pub struct FileDiscovery {
        /// What it is: `file`.
        #[serde(rename = "type")]
        _kind: FileType,
        /// The file, relative to the document. Required. Example: `backends/users.yaml`.
        pub path: PathBuf,
        /// How often it is looked at; at least `100ms`. Default: `1s`. Example: `10s`.
        #[serde(default = "one_second")]
        pub interval: Duration,
    } with interval
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
enum DnsType {
    Dns,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
enum DnsSrvType {
    DnsSrv,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
enum FileType {
    File,
}

/// A text of 1 to 255 bytes without control characters.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Text(String);

impl std::ops::Deref for Text {
    type Target = str;

    fn deref(&self) -> &str {
        &self.0
    }
}

impl Scalar for Text {
    const EXPECTED: &'static str = "a name of 1 to 255 bytes";
    const EXAMPLE: &'static str = "users";

    fn read(text: &str) -> Option<Self> {
        let fits = (1..=255).contains(&text.len()) && !text.chars().any(char::is_control);
        fits.then(|| Self(text.to_owned()))
    }
}

tollhouse_filters::scalar!(Text);

impl fmt::Display for Text {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Which addresses of a name count.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Family {
    /// All.
    #[default]
    Any,
    /// Those of IPv4.
    Ipv4,
    /// Those of IPv6.
    Ipv6,
}

/// A name that is looked up by DNS, in lower case.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DnsName(String);

impl DnsName {
    /// The name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl Scalar for DnsName {
    const EXPECTED: &'static str = "a host name such as `users.internal`";
    const EXAMPLE: &'static str = "users.internal";

    fn read(text: &str) -> Option<Self> {
        match Host::read(text)? {
            Host::Name(name) => Some(Self(name)),
            Host::Ip(_) => None,
        }
    }
}

tollhouse_filters::scalar!(DnsName);

impl fmt::Display for DnsName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Reads the options of one type.
type Read = fn(&Arc<Node>) -> Result<Registry, Vec<Error>>;

/// The types of registries, each with what reads its options.
const TYPES: [(&str, Read); 9] = [
    ("dns", |node| options(node).map(Registry::Dns)),
    ("dns_srv", |node| options(node).map(Registry::DnsSrv)),
    ("file", |node| options(node).map(Registry::File)),
    ("consul", |node| options(node).map(Registry::Consul)),
    ("eureka", |node| options(node).map(Registry::Eureka)),
    ("nacos", |node| options(node).map(Registry::Nacos)),
    ("etcd", |node| options(node).map(Registry::Etcd)),
    ("kubernetes", |node| options(node).map(Registry::Kubernetes)),
    ("zookeeper", |node| options(node).map(Registry::Zookeeper)),
];

fn options<T: DeserializeOwned>(node: &Arc<Node>) -> Result<T, Vec<Error>> {
    tree::from_node_all(node)
}

impl Discovery {
    /// The registry.
    ///
    /// # Errors
    /// What is wrong with it, with paths below `discovery`.
    pub fn registry(&self) -> Result<&Registry, &[Error]> {
        self.0.as_ref().map_err(Vec::as_slice)
    }

    /// Leaves out the files by which the registry is reached.
    pub fn forget_files(&mut self) {
        let tls = match &mut self.0 {
            Ok(Registry::Consul(written)) => &mut written.tls,
            Ok(Registry::Eureka(written)) => &mut written.tls,
            Ok(Registry::Nacos(written)) => &mut written.tls,
            Ok(Registry::Etcd(written)) => &mut written.tls,
            Ok(Registry::Kubernetes(written)) => {
                (written.kubeconfig, written.context) = (None, None);
                return;
            }
            _ => return,
        };
        *tls = None;
    }
}

impl Registry {
    /// What it is called in documents.
    pub const fn kind(&self) -> &'static str {
        match self {
            Self::Dns(_) => "dns",
            Self::DnsSrv(_) => "dns_srv",
            Self::File(_) => "file",
            Self::Consul(_) => "consul",
            Self::Eureka(_) => "eureka",
            Self::Nacos(_) => "nacos",
            Self::Etcd(_) => "etcd",
            Self::Kubernetes(_) => "kubernetes",
            Self::Zookeeper(_) => "zookeeper",
        }
    }

    /// What it has in common with others.
    pub fn shared(&self) -> &dyn Shared {
        match self {
            Self::Dns(written) => written,
            Self::DnsSrv(written) => written,
            Self::File(written) => written,
            Self::Consul(written) => written,
            Self::Eureka(written) => written,
            Self::Nacos(written) => written,
            Self::Etcd(written) => written,
            Self::Kubernetes(written) => written,
            Self::Zookeeper(written) => written,
        }
    }

    /// The name that a certificate of a backend is for whose address alone is told; none if there is no such name.
    pub fn server_name(&self) -> Option<&str> {
        match self {
            Self::Dns(written) => Some(written.name.as_str()),
            _ => None,
        }
    }

    /// Whether it alone says what a certificate of a backend has to be for, if nothing else is written: any name, as
    /// whoever answers in its place has a certificate for one, or no name at all.
    pub const fn tells_whom_to_trust(&self) -> bool {
        !matches!(self, Self::Dns(_))
    }
}

impl fmt::Debug for Discovery {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0.as_ref().map_or("unreadable", Registry::kind))
    }
}

impl<'de> Deserialize<'de> for Discovery {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let Raw(node) = Raw::deserialize(deserializer)?;
        let written = node.get("type").and_then(|node| node.as_str()).unwrap_or_default();
        let known = TYPES.iter().find(|(name, _)| *name == written);
        Ok(Self(known.map_or_else(|| Err(vec![unknown(&node, written)]), |(_, read)| read(&node))))
    }
}

fn unknown(node: &Node, written: &str) -> Error {
    let names: Vec<&str> = TYPES.iter().map(|(name, _)| *name).collect();
    let (last, others) = names.split_last().expect("there are types");
    let message = format!("expected the type `{}` or `{last}`", others.join("`, `"));
    let mut path = Path::new();
    path.push("type");
    let error = Error::new(node.at, message).on(path);
    match suggest(written, names) {
        Some(near) => error.hint(format!("did you mean `{near}`?")),
        None => error,
    }
}

impl JsonSchema for Discovery {
    fn schema_name() -> Cow<'static, str> {
        "Discovery".into()
    }

    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        let kinds = [
            generator.subschema_for::<DnsDiscovery>(),
            generator.subschema_for::<DnsSrvDiscovery>(),
            generator.subschema_for::<FileDiscovery>(),
            generator.subschema_for::<ConsulDiscovery>(),
            generator.subschema_for::<EurekaDiscovery>(),
            generator.subschema_for::<NacosDiscovery>(),
            generator.subschema_for::<EtcdDiscovery>(),
            generator.subschema_for::<KubernetesDiscovery>(),
            generator.subschema_for::<ZookeeperDiscovery>(),
        ];
        json_schema!({"description": "Who tells the backends of an upstream.", "oneOf": kinds})
    }
}

fn one_second() -> Duration {
    Duration::from_secs(1)
}
