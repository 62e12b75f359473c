//! Selectors: which part of a request a key is made of (`per`, `hash_on`, `sticky_by`).

use std::borrow::Cow;
use std::fmt;
use std::net::IpAddr;

use http::HeaderName;
use pingora_http::RequestHeader;
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::de::{self, Deserialize, Deserializer, MapAccess, SeqAccess, Visitor};
use serde::ser::{Serialize, SerializeMap, Serializer};

use crate::condition::{cookie_values, decode_query, query_values, raw_cookies, raw_pairs};
use crate::context::Context;
use crate::filter::Fact;

/// Why `tenant` is no key: it would be the same one for all.
const NO_TENANTS: &str =
    "no consumer has a `tenant` yet, so all would have one key: use `consumer` or `claim:NAME`";

/// Which part of a request a key is made of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Selector {
    /// One part.
    Part(Part),
    /// The first of these that the request has.
    First(Vec<Selector>),
    /// All of these, as a tuple; the request must have each.
    All(Vec<Selector>),
}

/// One part of a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Part {
    /// `ip`: the client's address.
    Ip,
    /// `consumer`
    Consumer,
    /// `route`
    Route,
    /// `host`
    Host,
    /// `path`: normalised
    Path,
    /// `method`
    Method,
    /// `path:NAME`: what the route's pattern captured
    Capture(Box<str>),
    /// `header:NAME`: all its lines, joined
    Header(HeaderName),
    /// `cookie:NAME`: the first one
    Cookie(Box<str>),
    /// `query:NAME`: the first one
    Query(Box<str>),
    /// `claim:NAME`
    Claim(Box<str>),
}

impl Selector {
    /// Parses one part, such as `ip` or `header:x-tenant`.
    pub fn parse(text: &str) -> Result<Self, String> {
        Part::parse(text).map(Self::Part)
    }

    /// Appends this request's key to `key`, each part with its length before it so that no two
    /// requests share a key by concatenation; false when the request lacks what is asked for.
    pub fn write_key(&self, request: &RequestHeader, ctx: &Context, key: &mut Vec<u8>) -> bool {
        self.write(request, Some(ctx), address_bytes, key)
    }

    /// As [`Selector::write_key`], with all that the request has of a field, a cookie or a parameter, each as it stands
    /// and in order: whichever of them others go by, it is in the key.
    pub fn write_every_key(&self, request: &RequestHeader, ctx: &Context, key: &mut Vec<u8>) -> bool {
        match self {
            Self::Part(part) => match part.every(request) {
                Some(values) => {
                    values.iter().for_each(|value| write_part(value, key));
                    // An end that is no length of a value.
                    key.extend_from_slice(&[u8::MAX; 4]);
                    !values.is_empty()
                }
                None => self.write_key(request, ctx, key),
            },
            Self::First(list) => {
                let start = key.len();
                list.iter().zip(0u8..).any(|(selector, ordinal)| {
                    key.truncate(start);
                    key.push(ordinal);
                    selector.write_every_key(request, ctx, key)
                })
            }
            Self::All(list) => list.iter().all(|selector| selector.write_every_key(request, ctx, key)),
        }
    }

    /// As [`Selector::write_key`], with all addresses of an IPv6 network of 64 bits as one `ip`: that is
    /// the least that one client is given (RFC 6177 s2), so whoever has one of them has them all.
    pub fn write_network_key(&self, request: &RequestHeader, ctx: &Context, key: &mut Vec<u8>) -> bool {
        self.write(request, Some(ctx), network_bytes, key)
    }

    /// As [`Selector::write_network_key`]; what lacks what is asked for has one key in common, which no other has.
    pub fn write_limit_key(&self, request: &RequestHeader, ctx: &Context, key: &mut Vec<u8>) {
        let start = key.len();
        key.push(1);
        if !self.write_network_key(request, ctx, key) {
            key.truncate(start);
            key.push(0);
        }
    }

    /// As [`Selector::write_key`], for a request of our own: it has a head, but no client, route or consumer.
    pub fn write_head_key(&self, request: &RequestHeader, key: &mut Vec<u8>) -> bool {
        self.write(request, None, address_bytes, key)
    }

    fn write(
        &self,
        request: &RequestHeader,
        ctx: Option<&Context>,
        ip: AddressBytes,
        key: &mut Vec<u8>,
    ) -> bool {
        match self {
            Self::Part(Part::Ip) => ctx.is_some_and(|ctx| {
                ip(ctx.client.address, key);
                true
            }),
            Self::Part(part) => part.value(request, ctx).is_some_and(|value| {
                write_part(value.as_bytes(), key);
                true
            }),
            Self::First(list) => {
                let start = key.len();
                list.iter().zip(0u8..).any(|(selector, ordinal)| {
                    key.truncate(start);
                    key.push(ordinal);
                    selector.write(request, ctx, ip, key)
                })
            }
            Self::All(list) => list.iter().all(|selector| selector.write(request, ctx, ip, key)),
        }
    }

    /// The facts that must hold before this selector is used.
    #[must_use]
    pub fn needs(&self) -> Vec<Fact> {
        match self {
            Self::Part(Part::Consumer) => vec![Fact::Consumer],
            Self::Part(Part::Claim(_)) => vec![Fact::Claims],
            Self::Part(_) | Self::First(_) => Vec::new(),
            Self::All(list) => list.iter().flat_map(Self::needs).collect(),
        }
    }

    /// The captures without which it never gives a key; a list may have another member.
    #[must_use]
    pub fn captures(&self) -> Vec<&str> {
        match self {
            Self::Part(Part::Capture(name)) => vec![&**name],
            Self::First(list) if list.len() > 1 => Vec::new(),
            Self::Part(_) => Vec::new(),
            Self::First(list) | Self::All(list) => list.iter().flat_map(Self::captures).collect(),
        }
    }
}

impl Part {
    fn parse(text: &str) -> Result<Self, String> {
        let plain = match text {
            "ip" => Self::Ip,
            "consumer" => Self::Consumer,
            "route" => Self::Route,
            "host" => Self::Host,
            "path" => Self::Path,
            "method" => Self::Method,
            "tenant" => return Err(NO_TENANTS.to_owned()),
            _ => return Self::parse_named(text),
        };
        Ok(plain)
    }

    fn parse_named(text: &str) -> Result<Self, String> {
        let expected = "expected `ip`, `consumer`, `route`, `host`, `path`, `method`, `path:NAME`, \
                        `header:NAME`, `cookie:NAME`, `query:NAME` or `claim:NAME`";
        match text.split_once(':').filter(|(_, name)| !name.is_empty()) {
            Some(("path", name)) => Ok(Self::Capture(name.into())),
            Some(("cookie", name)) => Ok(Self::Cookie(name.into())),
            Some(("query", name)) => Ok(Self::Query(name.into())),
            Some(("claim", name)) => Ok(Self::Claim(name.into())),
            Some(("header", name)) => name
                .parse()
                .map(Self::Header)
                .map_err(|_| "expected a header field's name after `header:`".to_owned()),
            _ => Err(expected.to_owned()),
        }
    }

    /// All that a request has of this; none for what it has one of at most.
    fn every<'a>(&self, request: &'a RequestHeader) -> Option<Vec<&'a [u8]>> {
        match self {
            Self::Header(name) => {
                Some(request.headers.get_all(name).iter().map(|line| line.as_bytes()).collect())
            }
            Self::Cookie(name) => {
                let named = raw_cookies(&request.headers).filter(|(key, _)| *key == name.as_bytes());
                Some(named.map(|(_, value)| value).collect())
            }
            Self::Query(name) => {
                let pairs = raw_pairs(request.uri.query().unwrap_or_default());
                let named = pairs.filter(|(key, _)| decode_query(key) == **name);
                Some(named.map(|(_, value)| value.as_bytes()).collect())
            }
            _ => None,
        }
    }

    fn value<'a>(&'a self, request: &'a RequestHeader, ctx: Option<&'a Context>) -> Option<Cow<'a, str>> {
        match self {
            Self::Ip => Some(ctx?.client.address.to_string().into()),
            Self::Consumer => ctx?.consumer.as_ref().map(|consumer| (&*consumer.name).into()),
            Self::Route => Some((&*ctx?.route).into()),
            Self::Host => match ctx {
                Some(ctx) => ctx.host.as_deref().map(Cow::Borrowed),
                None => header(request, &http::header::HOST),
            },
            Self::Path => Some(ctx.map_or_else(|| request.uri.path(), |ctx| ctx.path.matched()).into()),
            Self::Method => Some(request.method.as_str().into()),
            Self::Capture(name) => ctx?.captures.get(name).map(Cow::Borrowed),
            Self::Header(name) => header(request, name),
            Self::Cookie(name) => cookie_values(&request.headers, name).next(),
            Self::Query(name) => request.uri.query().and_then(|query| query_values(query, name).next()),
            Self::Claim(name) => match ctx?.principal.as_ref()?.claims.get(&**name)? {
                serde_json::Value::String(text) => Some(text.as_str().into()),
                other => Some(other.to_string().into()),
            },
        }
    }
}

/// How an address becomes part of a key.
type AddressBytes = fn(IpAddr, &mut Vec<u8>);

/// Appends a part of a key, with its length before it.
pub fn write_part(value: &[u8], key: &mut Vec<u8>) {
    let length = u32::try_from(value.len()).unwrap_or(u32::MAX);
    key.extend_from_slice(&length.to_be_bytes());
    key.extend_from_slice(value);
}

/// Its text.
fn address_bytes(address: IpAddr, key: &mut Vec<u8>) {
    write_part(address.to_string().as_bytes(), key);
}

/// The bits of an IPv4 address, or the first 64 of an IPv6 one.
fn network_bytes(address: IpAddr, key: &mut Vec<u8>) {
    match address.to_canonical() {
        IpAddr::V4(v4) => write_part(&v4.octets(), key),
        IpAddr::V6(v6) => write_part(&v6.octets()[..8], key),
    }
}

/// All lines of a field as one value (RFC 9110 s5.3), so that a second line cannot hide from a key.
fn header<'a>(request: &'a RequestHeader, name: &HeaderName) -> Option<Cow<'a, str>> {
    let mut lines = request.headers.get_all(name).iter().map(|line| String::from_utf8_lossy(line.as_bytes()));
    let first = lines.next()?;
    Some(lines.fold(first, |joined, line| format!("{joined}, {line}").into()))
}

impl fmt::Display for Part {
    /// As it is written.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ip => f.write_str("ip"),
            Self::Consumer => f.write_str("consumer"),
            Self::Route => f.write_str("route"),
            Self::Host => f.write_str("host"),
            Self::Path => f.write_str("path"),
            Self::Method => f.write_str("method"),
            Self::Capture(name) => write!(f, "path:{name}"),
            Self::Header(name) => write!(f, "header:{name}"),
            Self::Cookie(name) => write!(f, "cookie:{name}"),
            Self::Query(name) => write!(f, "query:{name}"),
            Self::Claim(name) => write!(f, "claim:{name}"),
        }
    }
}

impl Serialize for Selector {
    /// As it is written.
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Part(part) => serializer.collect_str(part),
            Self::First(list) => serializer.collect_seq(list),
            Self::All(list) => {
                let mut map = serializer.serialize_map(Some(1))?;
                map.serialize_entry("all", list)?;
                map.end()
            }
        }
    }
}

impl<'de> Deserialize<'de> for Selector {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(SelectorVisitor)
    }
}

struct SelectorVisitor;

impl<'de> Visitor<'de> for SelectorVisitor {
    type Value = Selector;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a selector such as `ip` or `header:x-tenant`, a list of them, or `{all: [..]}`")
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<Selector, E> {
        Selector::parse(text).map_err(E::custom)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Selector, A::Error> {
        let mut list = Vec::new();
        while let Some(selector) = seq.next_element()? {
            list.push(selector);
        }
        non_empty(list).map(Selector::First)
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Selector, A::Error> {
        let Some(key) = map.next_key::<String>()? else { return Err(de::Error::invalid_length(0, &self)) };
        if key != "all" {
            return Err(de::Error::unknown_field(&key, &["all"]));
        }
        let list = map.next_value()?;
        if let Some(key) = map.next_key::<String>()? {
            return Err(de::Error::unknown_field(&key, &["all"]));
        }
        non_empty(list).map(Selector::All)
    }
}

fn non_empty<E: de::Error>(list: Vec<Selector>) -> Result<Vec<Selector>, E> {
    if list.is_empty() { Err(E::custom("expected at least one selector")) } else { Ok(list) }
}

impl JsonSchema for Selector {
    fn schema_name() -> Cow<'static, str> {
        "Selector".into()
    }

    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        let list = json_schema!({"type": "array", "minItems": 1, "items": generator.subschema_for::<Self>()});
        json_schema!({
            "description": "Which part of a request a key is made of; a list is the first one present, `all` the tuple.",
            "oneOf": [
                {"type": "string", "examples": ["ip", "consumer", "header:x-tenant"]},
                list,
                {"type": "object", "required": ["all"], "additionalProperties": false, "properties": {"all": list}},
            ],
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{request, yaml};

    fn key(selector: &str, target: &str) -> Option<Vec<u8>> {
        let (request, ctx) = request("GET", target);
        let mut key = Vec::new();
        yaml::<Selector>(selector).write_key(&request, &ctx, &mut key).then_some(key)
    }

    #[test]
    fn a_list_is_the_first_one_present() {
        assert_eq!(key("[query:a, query:b]", "/?b=1"), key("[query:a, query:b]", "/?b=1&c=2"));
        assert_ne!(key("[query:a, query:b]", "/?a=1"), key("[query:a, query:b]", "/?b=1"));
        assert_eq!(key("[query:a]", "/"), None);
    }

    #[test]
    fn a_tuple_cannot_be_forged_by_moving_text_between_its_parts() {
        let selector = "{all: [query:a, query:b]}";
        assert_ne!(key(selector, "/?a=xy&b=z"), key(selector, "/?a=x&b=yz"));
        assert_eq!(key(selector, "/?a=x"), None);
    }

    #[test]
    fn addresses_of_one_network_are_one_key_where_networks_count() {
        let key = |address: &str| {
            let (request, mut ctx) = request("GET", "/");
            ctx.client.address = address.parse().expect("an address");
            let mut key = Vec::new();
            assert!(yaml::<Selector>("ip").write_network_key(&request, &ctx, &mut key));
            key
        };
        assert_eq!(key("2001:db8:1:2:3::4"), key("2001:db8:1:2:ffff::"));
        assert_ne!(key("2001:db8:1:2::"), key("2001:db8:1:3::"));
        assert_ne!(key("192.0.2.1"), key("192.0.2.2"));
        assert_eq!(key("192.0.2.1"), key("::ffff:192.0.2.1"));
    }

    #[test]
    fn a_request_of_our_own_has_only_a_head() {
        let (mut request, _) = request("GET", "/a?b=1");
        request.insert_header("host", "users.test").expect("valid");
        let key = |selector: &str| {
            let mut key = Vec::new();
            yaml::<Selector>(selector).write_head_key(&request, &mut key).then_some(key)
        };
        for there in ["host", "path", "method", "header:host", "query:b", "[ip, path]"] {
            assert!(key(there).is_some(), "{there}");
        }
        for absent in ["ip", "consumer", "route", "path:id", "claim:sub", "cookie:a"] {
            assert_eq!(key(absent), None, "{absent}");
        }
    }

    #[test]
    fn a_selector_is_written_as_it_was_read() {
        let all = "[ip, consumer, route, host, path, method, path:id, header:x-a, cookie:b, query:c, \
                   claim:d, {all: [ip, host]}]";
        let selector = yaml::<Selector>(all);
        let written = serde_json::to_string(&selector).expect("JSON");
        assert_eq!(written.replace('"', "").replace(',', ", ").replace(":[", ": ["), all);
        assert_eq!(serde_json::from_str::<Selector>(&written).expect("reads"), selector);
    }

    #[test]
    fn consumers_and_claims_must_be_known_before() {
        assert_eq!(yaml::<Selector>("consumer").needs(), [Fact::Consumer]);
        assert_eq!(yaml::<Selector>("{all: [route, claim:sub]}").needs(), [Fact::Claims]);
        assert!(yaml::<Selector>("[consumer, ip]").needs().is_empty());
    }

    #[test]
    fn captures_must_be_there_unless_something_else_will_do() {
        assert_eq!(yaml::<Selector>("path:id").captures(), ["id"]);
        assert_eq!(yaml::<Selector>("{all: [route, path:id, path:part]}").captures(), ["id", "part"]);
        assert_eq!(yaml::<Selector>("[path:id]").captures(), ["id"]);
        assert!(yaml::<Selector>("[path:id, ip]").captures().is_empty());
    }

    #[test]
    fn unknown_selectors_are_errors() {
        assert!(Selector::parse("adress").is_err());
        assert!(Selector::parse("header:").is_err());
    }

    #[test]
    fn nothing_is_told_apart_by_tenants_which_nobody_has() {
        assert_eq!(Selector::parse("tenant"), Err(NO_TENANTS.to_owned()));
    }
}
