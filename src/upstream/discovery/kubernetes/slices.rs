//! EndpointSlices of a Service (`discovery.k8s.io/v1`), and the backends that they are together
//! (<https://kubernetes.io/docs/concepts/services-networking/endpoint-slices/>).

use std::collections::BTreeMap;
use std::fmt;

use serde::Deserialize;
use serde_json::Value;

use crate::config::discovery::kubernetes::{Include, KubePort};
use crate::upstream::discovery::Instance;

/// Most slices of a Service; each has up to a thousand endpoints.
const MOST: usize = 1000;

/// What is known of a Service.
#[derive(Debug)]
pub(super) struct Slices {
    port: Option<KubePort>,
    include: Include,
    of: BTreeMap<Box<str>, (AddressType, Vec<Instance>)>,
    /// Slices that tell no backends, and why.
    useless: BTreeMap<Box<str>, Useless>,
}

/// What the addresses of a slice are. A Service of two families has slices of both, with the same Pods: those of the
/// first that has any are used, in this order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
enum AddressType {
    #[serde(rename = "IPv4")]
    Ipv4,
    #[serde(rename = "IPv6")]
    Ipv6,
    /// Names, which the API is about to have no more.
    #[serde(rename = "FQDN")]
    Name,
}

/// Why a slice tells no backends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Useless {
    /// It has no port of this name or number.
    NoSuchPort,
    /// It has several, and none was chosen.
    WhichPort,
    /// It is none.
    Malformed,
}

/// An object of which only the metadata matters.
#[derive(Debug, Deserialize)]
pub(super) struct Bare {
    pub(super) metadata: Metadata,
}

/// An EndpointSlice, as far as it matters.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct EndpointSlice {
    address_type: AddressType,
    #[serde(default)]
    ports: Option<Vec<Port>>,
    #[serde(default)]
    endpoints: Option<Vec<Endpoint>>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct Metadata {
    pub(super) name: Box<str>,
    pub(super) resource_version: Box<str>,
}

#[derive(Debug, Deserialize)]
struct Port {
    name: Option<Box<str>>,
    port: Option<u32>,
    protocol: Option<Box<str>>,
}

#[derive(Debug, Deserialize)]
struct Endpoint {
    #[serde(default)]
    addresses: Vec<Box<str>>,
    #[serde(default)]
    conditions: Conditions,
    zone: Option<Box<str>>,
}

#[derive(Debug, Default, Deserialize)]
struct Conditions {
    ready: Option<bool>,
    serving: Option<bool>,
}

impl Slices {
    /// None yet. Of each, this port counts, and these endpoints.
    pub(super) const fn new(port: Option<KubePort>, include: Include) -> Self {
        Self { port, include, of: BTreeMap::new(), useless: BTreeMap::new() }
    }

    /// Takes an EndpointSlice in, instead of the one of the same name: the version that it is of.
    ///
    /// # Errors
    /// There are too many, or it is no object of Kubernetes.
    pub(super) fn put(&mut self, object: Value) -> Result<Box<str>, String> {
        let Bare { metadata } = Bare::deserialize(&object).map_err(|_| "an object without metadata")?;
        let name = metadata.name;
        if self.of.len() >= MOST && !self.of.contains_key(&name) {
            return Err(format!("there are more than {MOST} slices"));
        }
        let slice = EndpointSlice::deserialize(object).map_err(|_| Useless::Malformed);
        let told = slice.and_then(|slice| Ok((slice.address_type, self.instances(slice)?)));
        let (told, useless) = match told {
            Ok(told) => (told, None),
            Err(why) => ((AddressType::Ipv4, Vec::new()), Some(why)),
        };
        let before = match useless {
            Some(why) => self.useless.insert(name.clone(), why),
            None => self.useless.remove(&name),
        };
        if let Some(why) = useless
            && before != useless
        {
            log::warn!(registry = "kubernetes", slice = &*name, why:% = why; "an EndpointSlice tells no backends");
        }
        self.of.insert(name, told);
        Ok(metadata.resource_version)
    }

    /// Forgets a slice.
    pub(super) fn remove(&mut self, name: &str) {
        self.of.remove(name);
        self.useless.remove(name);
    }

    /// The backends of all of them of one family, each once: an endpoint may be in two slices while it moves.
    ///
    /// # Errors
    /// There are slices, and why none of them tells backends.
    pub(super) fn backends(&self) -> Result<Vec<Instance>, Useless> {
        match self.useless.values().next() {
            Some(why) if self.useless.len() == self.of.len() => Err(*why),
            _ => {
                let some = || self.of.values().filter(|(_, instances)| !instances.is_empty());
                let used = some().map(|(of, _)| *of).min();
                let all = some().filter(|(of, _)| Some(*of) == used);
                let mut all: Vec<_> = all.flat_map(|(_, instances)| instances).cloned().collect();
                all.sort_unstable();
                all.dedup();
                Ok(all)
            }
        }
    }

    fn instances(&self, slice: EndpointSlice) -> Result<Vec<Instance>, Useless> {
        let endpoints: Vec<_> = slice.endpoints.unwrap_or_default();
        let used: Vec<_> =
            endpoints.into_iter().filter(|endpoint| self.wants(&endpoint.conditions)).collect();
        let port = match self.choose(slice.ports.as_deref().unwrap_or_default()) {
            Ok(port) => port,
            // A Service without endpoints has a slice without ports.
            Err(_) if used.is_empty() => return Ok(Vec::new()),
            Err(why) => return Err(why),
        };
        // Several addresses of an endpoint are the same: "clients are generally expected to only use the first".
        let first = |endpoint: Endpoint| {
            let host = endpoint.addresses.into_iter().next()?;
            Some(Instance { zone: endpoint.zone, ..Instance::at(&host, port) })
        };
        Ok(used.into_iter().filter_map(first).collect())
    }

    /// Conditions that are unknown count as fulfilled, as the API has it.
    fn wants(&self, conditions: &Conditions) -> bool {
        let ready = conditions.ready.unwrap_or(true);
        match self.include {
            Include::Ready => ready,
            Include::Serving => ready || conditions.serving.unwrap_or(false),
            Include::All => true,
        }
    }

    fn choose(&self, ports: &[Port]) -> Result<u32, Useless> {
        let tcp =
            ports.iter().filter(|port| port.protocol.as_deref().is_none_or(|protocol| protocol == "TCP"));
        let mut fitting = tcp.filter(|port| match &self.port {
            None => true,
            Some(KubePort::Name(name)) => port.name.as_deref() == Some(name),
            Some(KubePort::Number(number)) => port.port == Some(u32::from(*number)),
        });
        let port = fitting.next().and_then(|port| port.port).ok_or(Useless::NoSuchPort)?;
        match fitting.next() {
            Some(_) if self.port.is_none() => Err(Useless::WhichPort),
            _ => Ok(port),
        }
    }
}

impl fmt::Display for Useless {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::NoSuchPort => "the EndpointSlices of the Service have no such TCP port",
            Self::WhichPort => "the EndpointSlices of the Service have several ports; name one with `port`",
            Self::Malformed => "the EndpointSlices of the Service are none of `discovery.k8s.io/v1`",
        })
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn slice(name: &str, ports: Value, endpoints: Value) -> Value {
        json!({
            "kind": "EndpointSlice", "apiVersion": "discovery.k8s.io/v1",
            "metadata": {"name": name, "resourceVersion": "7", "labels": {"kubernetes.io/service-name": "users"}},
            "addressType": "IPv4", "ports": ports, "endpoints": endpoints,
        })
    }

    fn http() -> Value {
        json!([{"name": "http", "protocol": "TCP", "port": 8080}])
    }

    fn hosts(slices: &Slices) -> Vec<String> {
        let backends = slices.backends().unwrap();
        backends.iter().map(|instance| format!("{}:{}", instance.host, instance.port)).collect()
    }

    // The example of kubernetes.io/docs/concepts/services-networking/endpoint-slices.
    #[test]
    fn the_documented_example_is_one_backend_with_its_zone() {
        let documented = json!({
            "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
            "metadata": {"name": "example-abc", "labels": {"kubernetes.io/service-name": "example"}},
            "addressType": "IPv4",
            "ports": [{"name": "http", "protocol": "TCP", "port": 80}],
            "endpoints": [{
                "addresses": ["10.1.2.3"], "conditions": {"ready": true},
                "hostname": "pod-1", "nodeName": "node-1", "zone": "us-west2-a",
            }],
        });
        let mut slices = Slices::new(None, Include::Ready);
        slices.put(documented).unwrap();
        let expected = Instance { zone: Some("us-west2-a".into()), ..Instance::at("10.1.2.3", 80) };
        assert_eq!(slices.backends(), Ok(vec![expected]));
    }

    #[test]
    fn slices_are_joined_and_an_endpoint_in_two_of_them_is_one_backend() {
        let mut slices = Slices::new(None, Include::Ready);
        slices
            .put(slice("a", http(), json!([{"addresses": ["10.0.0.1"]}, {"addresses": ["10.0.0.2"]}])))
            .unwrap();
        slices
            .put(slice("b", http(), json!([{"addresses": ["10.0.0.2"]}, {"addresses": ["10.0.0.4"]}])))
            .unwrap();
        assert_eq!(hosts(&slices), ["10.0.0.1:8080", "10.0.0.2:8080", "10.0.0.4:8080"]);
        slices.put(slice("a", http(), json!([{"addresses": ["10.0.0.3"]}]))).unwrap();
        assert_eq!(hosts(&slices), ["10.0.0.2:8080", "10.0.0.3:8080", "10.0.0.4:8080"]);
        slices.remove("b");
        assert_eq!(hosts(&slices), ["10.0.0.3:8080"]);
        slices.remove("a");
        assert_eq!(hosts(&slices), Vec::<String>::new());
    }

    // kubernetes.io/docs/concepts/services-networking/dual-stack: a Service of both families has slices of both.
    #[test]
    fn a_pod_with_addresses_of_two_families_is_one_backend() {
        let of = |kind: &str, host: &str| {
            let mut slice = slice(kind, http(), json!([{"addresses": [host]}]));
            slice["addressType"] = kind.into();
            slice
        };
        let mut slices = Slices::new(None, Include::Ready);
        slices.put(of("FQDN", "users.test")).unwrap();
        assert_eq!(hosts(&slices), ["users.test:8080"], "there is nothing else");
        slices.put(of("IPv6", "fd00::1")).unwrap();
        assert_eq!(hosts(&slices), ["fd00::1:8080"]);
        slices.put(of("IPv4", "10.0.0.1")).unwrap();
        assert_eq!(hosts(&slices), ["10.0.0.1:8080"]);
        slices.remove("IPv4");
        assert_eq!(hosts(&slices), ["fd00::1:8080"]);
    }

    #[test]
    fn conditions_decide_and_unknown_ones_are_ready() {
        let endpoints = json!([
            {"addresses": ["10.0.0.1"], "conditions": {}},
            {"addresses": ["10.0.0.2"], "conditions": {"ready": true, "serving": true, "terminating": false}},
            {"addresses": ["10.0.0.3"], "conditions": {"ready": false, "serving": true, "terminating": true}},
            {"addresses": ["10.0.0.4"], "conditions": {"ready": false, "serving": false, "terminating": false}},
            {"addresses": ["10.0.0.5"]},
            {"addresses": ["10.0.0.6"], "conditions": {"ready": false}},
            {"addresses": []},
        ]);
        for (include, expected) in [
            (Include::Ready, vec!["1", "2", "5"]),
            (Include::Serving, vec!["1", "2", "3", "5"]),
            (Include::All, vec!["1", "2", "3", "4", "5", "6"]),
        ] {
            let mut slices = Slices::new(None, include);
            slices.put(slice("a", http(), endpoints.clone())).unwrap();
            let expected: Vec<_> = expected.iter().map(|n| format!("10.0.0.{n}:8080")).collect();
            assert_eq!(hosts(&slices), expected, "{include:?}");
        }
    }

    #[test]
    fn a_port_is_chosen_by_name_or_number_or_is_the_only_one() {
        let ports = json!([
            {"name": "http", "protocol": "TCP", "port": 8080}, {"name": "metrics", "port": 9090},
            {"name": "dns", "protocol": "UDP", "port": 53},
        ]);
        let choose = |port: Option<&str>, ports: &Value| {
            let mut slices = Slices::new(port.map(|port| port.parse().unwrap()), Include::Ready);
            slices.put(slice("a", ports.clone(), json!([{"addresses": ["10.0.0.1"]}]))).unwrap();
            slices.backends().map(|backends| backends[0].port)
        };
        assert_eq!(choose(Some("http"), &ports), Ok(8080));
        assert_eq!(choose(Some("metrics"), &ports), Ok(9090), "without a protocol it is TCP");
        assert_eq!(choose(Some("9090"), &ports), Ok(9090));
        assert_eq!(choose(Some("53"), &ports), Err(Useless::NoSuchPort), "UDP");
        assert_eq!(choose(Some("grpc"), &ports), Err(Useless::NoSuchPort));
        assert_eq!(choose(None, &ports), Err(Useless::WhichPort));
        assert_eq!(choose(None, &json!([{"name": "", "protocol": "TCP", "port": 80}])), Ok(80));
        assert_eq!(
            choose(None, &json!([{"name": "any", "protocol": "TCP", "port": null}])),
            Err(Useless::NoSuchPort)
        );
    }

    #[test]
    fn a_service_without_endpoints_has_no_backends_and_is_no_error() {
        let mut slices = Slices::new(Some(KubePort::Name("http".into())), Include::Ready);
        assert_eq!(slices.backends(), Ok(Vec::new()));
        slices.put(slice("a", Value::Null, Value::Null)).unwrap();
        slices
            .put(slice("b", json!([]), json!([{"addresses": ["10.0.0.1"], "conditions": {"ready": false}}])))
            .unwrap();
        assert_eq!(slices.backends(), Ok(Vec::new()));
    }

    #[test]
    fn one_slice_without_the_port_does_not_hide_the_others() {
        let mut slices = Slices::new(Some(KubePort::Name("http".into())), Include::Ready);
        let endpoints = json!([{"addresses": ["10.0.0.1"]}]);
        slices.put(slice("a", json!([{"name": "grpc", "port": 1}]), endpoints.clone())).unwrap();
        assert_eq!(slices.backends(), Err(Useless::NoSuchPort));
        slices.put(slice("b", http(), endpoints)).unwrap();
        assert_eq!(hosts(&slices), ["10.0.0.1:8080"]);
    }

    #[test]
    fn a_malformed_slice_does_not_hide_the_others() {
        let mut slices = Slices::new(None, Include::Ready);
        assert!(slices.put(json!({"kind": "EndpointSlice"})).is_err(), "no object of Kubernetes");
        let version = slices.put(slice("a", http(), json!([{"addresses": "10.0.0.1"}])));
        assert_eq!(version.as_deref(), Ok("7"));
        assert_eq!(slices.backends(), Err(Useless::Malformed));
        slices.put(slice("b", http(), json!([{"addresses": ["10.0.0.1"]}]))).unwrap();
        assert_eq!(hosts(&slices), ["10.0.0.1:8080"]);
    }
}
