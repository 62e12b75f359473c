//! A backend as somebody has written it into a store of keys and values: as text, or as JSON in one of the forms that
//! are in use.

use serde::Deserialize;
use serde_json::Value;

use super::Instance;

/// Most bytes of a value.
const MOST: usize = 64 << 10;

/// Most bytes of a host, as names have no more (RFC 1035 s2.3.4).
const LONGEST: usize = 255;

/// The backend that a value, or else the name of its key, tells. None for one that is switched off or being removed.
/// The port for TLS counts where there is no other.
///
/// # Errors
/// What is wrong with it.
pub(super) fn read(name: &[u8], value: &[u8]) -> Result<Option<Instance>, &'static str> {
    if value.len() > MOST {
        return Err("the value is longer than 64 KiB");
    }
    let text = |bytes| std::str::from_utf8(bytes).map(str::trim).map_err(|_| "it is not text");
    let instance = match text(value)? {
        // Ephemeral nodes are often empty, and named after who is there.
        "" => address(text(name)?).map(Some),
        object if object.starts_with('{') => json(object),
        quoted if quoted.starts_with('"') => {
            let text: String = serde_json::from_str(quoted).map_err(|_| "the value is not JSON")?;
            address(&text).map(Some)
        }
        text => address(text).map(Some),
    }?;
    match &instance {
        Some(Instance { host, .. }) if host.len() > LONGEST => Err("the host is longer than 255 bytes"),
        _ => Ok(instance),
    }
}

/// All the forms at once.
#[derive(Deserialize)]
struct Written {
    /// Plainly, or as an instance of Curator's service discovery.
    #[serde(alias = "address")]
    host: Option<Box<str>>,
    port: Option<u32>,
    #[serde(rename = "sslPort")]
    tls_port: Option<u32>,
    enabled: Option<bool>,
    /// As an endpoint of gRPC's resolvers for etcd.
    #[serde(rename = "Addr")]
    grpc: Option<Box<str>>,
    #[serde(rename = "Op")]
    operation: Option<u8>,
    #[serde(rename = "Metadata")]
    metadata: Option<Value>,
    #[serde(flatten)]
    details: Details,
}

#[derive(Default, Deserialize)]
struct Details {
    weight: Option<u32>,
    priority: Option<u32>,
    zone: Option<Box<str>>,
}

/// What gRPC's resolvers for etcd call a removal.
const REMOVAL: u8 = 1;

fn json(text: &str) -> Result<Option<Instance>, &'static str> {
    let written: Written = serde_json::from_str(text)
        .map_err(|_| "the value is not JSON of a known form: `host` and `port`, or `Addr`")?;
    if written.enabled == Some(false) || written.operation == Some(REMOVAL) {
        return Ok(None);
    }
    let (mut instance, details) = match (&written.grpc, &written.host) {
        (Some(text), _) => {
            // Anything may be there, and need not be for us.
            let details = written.metadata.and_then(|value| serde_json::from_value(value).ok());
            (address(text)?, details.unwrap_or_default())
        }
        (None, Some(host)) => {
            let port = written.port.or(written.tls_port);
            (Instance::at(host, port.ok_or("the value has no `port`")?), written.details)
        }
        (None, None) => return Err("the value has neither `host` nor `Addr`"),
    };
    instance.weight = details.weight;
    instance.priority = details.priority;
    instance.zone = details.zone;
    Ok(Some(instance))
}

/// `HOST:PORT`.
fn address(text: &str) -> Result<Instance, &'static str> {
    let expected = "expected HOST:PORT or a JSON object";
    let (host, port) = text.rsplit_once(':').ok_or(expected)?;
    let digits = !port.is_empty() && port.bytes().all(|byte| byte.is_ascii_digit());
    let port = port.parse().ok().filter(|_| digits && !host.is_empty()).ok_or(expected)?;
    Ok(Instance::at(host, port))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(value: &str) -> Result<Option<Instance>, &'static str> {
        read(b"10.9.9.9:99", value.as_bytes())
    }

    fn at(value: &str) -> Instance {
        of(value).expect(value).expect(value)
    }

    #[test]
    fn an_address_is_a_backend() {
        assert_eq!(at("10.0.0.1:8080"), Instance::at("10.0.0.1", 8080));
        assert_eq!(at(" users-1.internal:80\n"), Instance::at("users-1.internal", 80));
        assert_eq!(at("[2001:db8::1]:80"), Instance::at("[2001:db8::1]", 80));
        assert_eq!(at("\"10.0.0.1:8080\""), Instance::at("10.0.0.1", 8080));
        assert_eq!(at(""), Instance::at("10.9.9.9", 99), "the key's name");
    }

    #[test]
    fn a_plain_object_may_have_weight_priority_and_zone() {
        assert_eq!(at(r#"{"host": "10.0.0.1", "port": 80}"#), Instance::at("10.0.0.1", 80));
        let whole = at(r#"{"host": "a", "port": 80, "weight": 3, "priority": 1, "zone": "b", "more": {}}"#);
        let expected =
            Instance { weight: Some(3), priority: Some(1), zone: Some("b".into()), ..Instance::at("a", 80) };
        assert_eq!(whole, expected);
    }

    // go.etcd.io/etcd/client/v3/naming: `endpoints.Update` as it is stored.
    #[test]
    fn an_endpoint_of_grpcs_resolver_is_a_backend() {
        assert_eq!(
            at(r#"{"Op":0,"Addr":"10.0.0.1:50051","Metadata":null}"#),
            Instance::at("10.0.0.1", 50051)
        );
        let weighted = at(r#"{"Addr":"10.0.0.1:1","Metadata":{"weight":7,"zone":"a"}}"#);
        assert_eq!((weighted.weight, weighted.zone.as_deref()), (Some(7), Some("a")));
        for metadata in ["3", "\"v1\"", "[1]", "{\"weight\":\"heavy\"}"] {
            let value = format!(r#"{{"Addr":"10.0.0.1:1","Metadata":{metadata}}}"#);
            assert_eq!(at(&value), Instance::at("10.0.0.1", 1), "{metadata}");
        }
        assert_eq!(of(r#"{"Op":1,"Addr":"10.0.0.1:1"}"#), Ok(None), "a removal");
    }

    // Apache Curator's `ServiceInstance` as its `JsonInstanceSerializer` writes it.
    #[test]
    fn an_instance_of_curator_is_a_backend() {
        let curator = |more: &str| {
            format!(
                r#"{{"name":"users","id":"6ff5a1a4","address":"10.0.0.1","port":8080,"sslPort":8443,"payload":{{"@class":"a.B","v":1}},"registrationTimeUTC":1397655030498,"serviceType":"DYNAMIC","uriSpec":null{more}}}"#
            )
        };
        assert_eq!(at(&curator("")), Instance::at("10.0.0.1", 8080));
        let only_secure = curator("").replace("\"port\":8080", "\"port\":null");
        assert_eq!(at(&only_secure), Instance::at("10.0.0.1", 8443));
        assert_eq!(at(&curator(r#","enabled":true"#)), Instance::at("10.0.0.1", 8080));
        assert_eq!(of(&curator(r#","enabled":false"#)), Ok(None));
    }

    #[test]
    fn what_is_malformed_is_refused_with_what_is_wrong() {
        for bad in [
            "10.0.0.1",
            ":80",
            "a:",
            "a:b",
            "a:+1",
            "a:4294967296",
            "{",
            "{}",
            "[]",
            "{\"host\":\"a\"}",
            "{\"port\":1}",
            "{\"host\":\"a\",\"port\":\"80\"}",
            "{\"host\":\"a\",\"port\":-1}",
            "{\"Addr\":\"a\"}",
            "\"a",
            "null",
            "{\"host\":\"a\",\"port\":80,\"weight\":\"heavy\"}",
        ] {
            assert!(of(bad).is_err(), "{bad}");
        }
        assert!(read(b"a", b"").is_err());
        assert!(read(b"a", b"\xff:80").is_err());
        assert!(of(&format!("{}:80", "a".repeat(MOST))).is_err());
        let long = |length| "a".repeat(length);
        assert!(of(&format!("{}:80", long(255))).is_ok());
        assert!(of(&format!("{}:80", long(256))).is_err());
        assert!(of(&format!("{{\"host\":\"{}\",\"port\":80}}", long(256))).is_err());
        assert!(read(format!("{}:80", long(256)).as_bytes(), b"").is_err(), "the key's name");
    }
}
