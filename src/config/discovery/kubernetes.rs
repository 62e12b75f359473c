//! Backends of a Service of Kubernetes, as the user writes it.

use std::fmt;
use std::path::PathBuf;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tollhouse_filters::values::Scalar;

use super::registry;

registry! {
    /// `discovery: {type: kubernetes}`: the endpoints of a Service of Kubernetes, by its EndpointSlices.
    pub struct KubernetesDiscovery {
        /// What it is: `kubernetes`.
        #[serde(rename = "type")]
        _kind: KubernetesType,
        /// The Service. Required. Example: `users`.
        pub service: KubeName,
        /// Where it is. Default: the namespace of the gateway's own account, or of the context of `kubeconfig`. Example:
        /// `shop`.
        #[serde(default)]
        pub namespace: Option<KubeName>,
        /// The port of the endpoints, by the name that the Service gives it or by its own number, which is the
        /// container's. Default: the only one there is. Example: `http`.
        #[serde(default)]
        pub port: Option<KubePort>,
        /// Which endpoints get requests: those that are `ready`, those too that still serve while they end (`serving`), or
        /// `all`. Default: `ready`. Example: `serving`.
        #[serde(default)]
        pub include: Include,
        /// The file that says how the cluster is reached, relative to the document. Default: none, the cluster that the
        /// gateway runs in, with the account of its Pod. Example: `kubeconfig.yaml`.
        #[serde(default)]
        pub kubeconfig: Option<PathBuf>,
        /// The context of `kubeconfig`. Default: its `current-context`. Example: `staging`.
        #[serde(default)]
        pub context: Option<String>,
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
enum KubernetesType {
    Kubernetes,
}

/// Which endpoints get requests, by their conditions.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Include {
    /// Those that are ready.
    #[default]
    Ready,
    /// Those too that serve, though they are about to end.
    Serving,
    /// All, whatever their conditions.
    All,
}

/// The name of a Service or a namespace: a label of RFC 1123.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct KubeName(Box<str>);

/// A port of endpoints.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum KubePort {
    /// The name that the Service gives it.
    Name(Box<str>),
    /// Its number.
    Number(u16),
}

impl KubeName {
    /// The name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl Scalar for KubeName {
    const EXPECTED: &'static str =
        "a name of Kubernetes: up to 63 of `a` to `z`, `0` to `9` and `-` between them";
    const PATTERN: Option<&'static str> = Some("^[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?$");
    const EXAMPLE: &'static str = "users";

    fn read(text: &str) -> Option<Self> {
        is_label(text).then(|| Self(text.into()))
    }
}

tollhouse_filters::scalar!(KubeName);

impl fmt::Display for KubeName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl Scalar for KubePort {
    const EXPECTED: &'static str = "the name of a port such as `http`, or its number from 1 to 65535";
    const EXAMPLE: &'static str = "http";
    const INTEGERS: bool = true;

    fn read(text: &str) -> Option<Self> {
        if text.bytes().all(|byte| byte.is_ascii_digit()) {
            return text.parse().ok().filter(|port| *port != 0).map(Self::Number);
        }
        is_label(text).then(|| Self::Name(text.into()))
    }
}

tollhouse_filters::scalar!(KubePort);

impl fmt::Display for KubePort {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Name(name) => f.write_str(name),
            Self::Number(number) => write!(f, "{number}"),
        }
    }
}

fn is_label(text: &str) -> bool {
    let edge = |byte: &u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    let bytes = text.as_bytes();
    bytes.len() <= 63
        && bytes.iter().all(|byte| edge(byte) || *byte == b'-')
        && bytes.first().is_some_and(edge)
        && bytes.last().is_some_and(edge)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_labels_of_rfc_1123() {
        let long = "a".repeat(63);
        for good in ["users", "a", "0", "a-1", long.as_str()] {
            assert!(KubeName::read(good).is_some(), "{good}");
        }
        for bad in ["", "-a", "a-", "A", "a.b", "a/b", "a_b", &format!("{long}a")] {
            assert!(KubeName::read(bad).is_none(), "{bad}");
        }
    }

    #[test]
    fn a_port_is_a_name_or_a_number() {
        assert_eq!(KubePort::read("8080"), Some(KubePort::Number(8080)));
        assert_eq!(KubePort::read("http"), Some(KubePort::Name("http".into())));
        for bad in ["", "0", "65536", "Http", "-1"] {
            assert!(KubePort::read(bad).is_none(), "{bad}");
        }
        let port: KubePort = serde_json::from_value(8080.into()).expect("a number too");
        assert_eq!(port, KubePort::Number(8080));
    }
}
