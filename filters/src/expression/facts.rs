//! What expressions can name, and what it is for one request.

use std::collections::HashMap;

use cel::Value;
use cel::objects::{Key, Map};
use pingora_http::RequestHeader;
use serde_json::Value as Json;

use crate::condition::{cookie_pairs, query_pairs};
use crate::context::{ClientCertificate, Context};
use crate::values::address_text;

/// A variable that an expression reads.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Root {
    pub(super) name: &'static str,
    /// The members that it reads; none where it reads the whole.
    pub(super) members: Option<Vec<String>>,
}

impl Root {
    fn reads(&self, member: &str) -> bool {
        self.members.as_ref().is_none_or(|members| members.iter().any(|known| known == member))
    }
}

/// Variables and their members; those of claims are whatever the caller's credential says.
pub(super) const NAMES: [(&str, Option<&[&str]>); 7] = [
    ("request", Some(&["method", "scheme", "host", "path", "params", "query", "headers", "cookies"])),
    ("client", Some(&["address", "certificate"])),
    ("consumer", Some(&["name", "groups", "plan"])),
    ("claims", None),
    ("listener", Some(&[])),
    ("route", Some(&[])),
    ("service", Some(&[])),
];

/// What a variable is for this request, as far as it is read.
pub(super) fn value(root: &Root, request: &RequestHeader, ctx: &Context) -> Value {
    match root.name {
        "request" => of_request(root, request, ctx),
        "client" => of_client(root, ctx),
        "consumer" => of_consumer(ctx),
        "claims" => of_claims(root, ctx),
        "listener" => text(&ctx.listener),
        "route" => text(&ctx.route),
        "service" => ctx.service.as_deref().map_or(Value::Null, text),
        _ => Value::Null,
    }
}

fn of_request(root: &Root, request: &RequestHeader, ctx: &Context) -> Value {
    let mut members = Members::default();
    let mut add = |name: &str, value: &dyn Fn() -> Value| {
        if root.reads(name) {
            members.add(name, value());
        }
    };
    add("method", &|| text(request.method.as_str()));
    add("scheme", &|| text(ctx.scheme.as_str()));
    add("host", &|| text(ctx.host.as_deref().unwrap_or_default()));
    add("path", &|| text(ctx.path.matched()));
    add("params", &|| {
        let mut params = Members::default();
        ctx.captures.iter().for_each(|(name, value)| params.add(name, text(value)));
        params.into_value()
    });
    add("query", &|| query(request));
    add("headers", &|| headers(request));
    add("cookies", &|| {
        let mut cookies = Members::default();
        for (name, value) in cookie_pairs(&request.headers) {
            cookies.add_first(&name, text(&value));
        }
        cookies.into_value()
    });
    members.into_value()
}

/// Each parameter with a list of its values.
fn query(request: &RequestHeader) -> Value {
    let mut lists: HashMap<String, Vec<Value>> = HashMap::new();
    for (name, value) in request.uri.query().into_iter().flat_map(query_pairs) {
        lists.entry(name.into_owned()).or_default().push(text(&value));
    }
    let mut members = Members::default();
    lists.into_iter().for_each(|(name, values)| members.add(&name, Value::List(values.into())));
    members.into_value()
}

/// Each field by its name in lower case, its lines joined (RFC 9110 s5.2).
fn headers(request: &RequestHeader) -> Value {
    let mut members = Members::default();
    for name in request.headers.keys() {
        let mut joined = String::new();
        for (at, line) in request.headers.get_all(name).iter().enumerate() {
            if at > 0 {
                joined.push_str(", ");
            }
            joined.push_str(&String::from_utf8_lossy(line.as_bytes()));
        }
        members.add(name.as_str(), Value::String(joined.into()));
    }
    members.into_value()
}

fn of_client(root: &Root, ctx: &Context) -> Value {
    let mut members = Members::default();
    if root.reads("address") {
        members.add("address", text(&address_text(ctx.client.address)));
    }
    // Behind a trusted proxy it is the proxy's.
    if root.reads("certificate")
        && !ctx.client.through_trusted_proxy
        && let Some(certificate) = ctx.client.certificate()
    {
        members.add("certificate", of_certificate(certificate));
    }
    members.into_value()
}

fn of_certificate(certificate: &ClientCertificate) -> Value {
    let mut members = Members::default();
    members.add("subject", text(&certificate.subject));
    members.add("issuer", text(&certificate.issuer));
    members.add("serial", text(&certificate.serial));
    members.add("fingerprint", text(&certificate.fingerprint_hex()));
    members.into_value()
}

/// Null where nobody is known.
fn of_consumer(ctx: &Context) -> Value {
    let Some(consumer) = &ctx.consumer else { return Value::Null };
    let mut members = Members::default();
    members.add("name", text(&consumer.name));
    let groups: Vec<Value> = consumer.groups.iter().map(|group| text(group)).collect();
    members.add("groups", Value::List(groups.into()));
    if let Some(plan) = &consumer.plan {
        members.add("plan", text(plan));
    }
    members.into_value()
}

fn of_claims(root: &Root, ctx: &Context) -> Value {
    let mut members = Members::default();
    if let Some(principal) = &ctx.principal {
        for (name, claim) in principal.claims.iter().filter(|(name, _)| root.reads(name)) {
            members.add(name, of_json(claim));
        }
    }
    members.into_value()
}

/// Numbers are whole where they can be. Depth is what the reader of tokens lets through.
fn of_json(value: &Json) -> Value {
    match value {
        Json::Null => Value::Null,
        Json::Bool(value) => Value::Bool(*value),
        Json::Number(number) => match (number.as_i64(), number.as_u64()) {
            (Some(number), _) => Value::Int(number),
            (None, Some(number)) => Value::UInt(number),
            (None, None) => Value::Float(number.as_f64().unwrap_or(f64::NAN)),
        },
        Json::String(value) => text(value),
        Json::Array(values) => Value::List(values.iter().map(of_json).collect::<Vec<_>>().into()),
        Json::Object(object) => {
            let mut members = Members::default();
            object.iter().for_each(|(name, value)| members.add(name, of_json(value)));
            members.into_value()
        }
    }
}

fn text(text: &str) -> Value {
    Value::String(text.to_owned().into())
}

/// What will be a map.
#[derive(Default)]
struct Members(HashMap<Key, Value>);

impl Members {
    fn add(&mut self, name: &str, value: Value) {
        self.0.insert(Key::String(name.to_owned().into()), value);
    }

    fn add_first(&mut self, name: &str, value: Value) {
        self.0.entry(Key::String(name.to_owned().into())).or_insert(value);
    }

    fn into_value(self) -> Value {
        Value::Map(Map { map: self.0.into() })
    }
}
