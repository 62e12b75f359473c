//! Components of a message that a signature covers, and their values (RFC 9421 s2).

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use http::HeaderName;
use http::header::HOST;
use pingora_http::RequestHeader;
use sfv::{
    BareItem, Dictionary, Item, ItemSerializer, List, ListEntry, ListSerializer, Parameters, Parser,
    StringRef,
};

use crate::condition::{decode_query, query_values};
use crate::context::{Context, Scheme};
use crate::identity::Refusal;

const UNKNOWN: Refusal = Refusal::new("the signature covers a component that requests do not have");
const MISSING: Refusal = Refusal::new("the signature covers a field that is not there");
const MALFORMED: Refusal = Refusal::new("a component of the signature is malformed");

/// Fields whose type is known, for what is covered in its strict form (`sf`, RFC 9421 s2.1.1).
const DICTIONARIES: [&str; 8] = [
    "accept-signature",
    "content-digest",
    "priority",
    "repr-digest",
    "signature",
    "signature-input",
    "want-content-digest",
    "want-repr-digest",
];
const LISTS: [&str; 2] = ["cache-status", "proxy-status"];

/// A request as signers see it.
#[derive(Clone, Copy)]
pub(super) struct Message<'a> {
    pub(super) request: &'a RequestHeader,
    pub(super) ctx: &'a Context,
}

impl<'a> Message<'a> {
    /// In lower case, without the port that the scheme has by itself (RFC 9421 s2.2.3).
    pub(super) fn authority(self) -> Result<String, Refusal> {
        let host = self.request.headers.get(HOST).and_then(|host| host.to_str().ok());
        let host = host.or_else(|| self.request.uri.authority().map(|authority| authority.as_str()));
        let host = host.ok_or(MISSING)?.to_ascii_lowercase();
        let port = match self.ctx.scheme {
            Scheme::Http => ":80",
            Scheme::Https => ":443",
        };
        Ok(host.strip_suffix(port).map_or(host.clone(), str::to_owned))
    }

    /// With the version that was taken off it since: signed is what was sent (RFC 9421 s2.2.6).
    fn path(self) -> &'a str {
        match self.ctx.whole_path.as_deref().unwrap_or(self.request.uri.path()) {
            "" => "/",
            path => path,
        }
    }

    fn query(self) -> Option<&'a str> {
        self.request.uri.query()
    }

    /// Path and query, as the request line has them.
    pub(super) fn target(self) -> String {
        self.ctx.whole_target(self.request)
    }

    fn lines(self, name: &HeaderName) -> Result<Vec<&'a [u8]>, Refusal> {
        let lines: Vec<&[u8]> =
            self.request.headers.get_all(name).iter().map(|line| line.as_bytes().trim_ascii()).collect();
        if lines.is_empty() { Err(MISSING) } else { Ok(lines) }
    }

    /// A field's lines as one value (RFC 9110 s5.3).
    pub(super) fn field(self, name: &HeaderName) -> Result<Vec<u8>, Refusal> {
        self.lines(name).map(|lines| lines.join(&b", "[..]))
    }
}

/// One component: its name and parameters.
pub(super) struct Component {
    name: String,
    params: Parameters,
}

impl Component {
    /// An entry of the list in `Signature-Input`.
    pub(super) fn read(item: Item) -> Result<Self, Refusal> {
        match item.bare_item {
            BareItem::String(name) => Ok(Self { name: name.as_str().to_owned(), params: item.params }),
            _ => Err(MALFORMED),
        }
    }

    /// Its name.
    pub(super) fn name(&self) -> &str {
        &self.name
    }

    /// Whether it stands for all that its name says: without parameters that take a part of it.
    pub(super) fn is_whole(&self) -> bool {
        self.params.keys().all(|name| name.as_str() == "bs" || name.as_str() == "sf")
    }

    /// Whether it is that member of `Content-Digest` which proves a body.
    pub(super) fn is_digest(&self) -> bool {
        self.params.len() == 1 && matches!(self.text("key"), Ok("sha-256" | "sha-512"))
    }

    /// How it is written in the base, which also tells one from another (RFC 9421 s2).
    pub(super) fn identifier(&self) -> Result<String, Refusal> {
        let name = StringRef::from_str(&self.name).map_err(|_| MALFORMED)?;
        Ok(ItemSerializer::new().bare_item(name).parameters(&self.params).finish())
    }

    /// Its value in a request.
    pub(super) fn value(&self, message: Message<'_>) -> Result<Vec<u8>, Refusal> {
        if let Some(derived) = self.name.strip_prefix('@') {
            return self.derived(derived, message).map(String::into_bytes);
        }
        let name: HeaderName = self.name.parse().map_err(|_| MALFORMED)?;
        // Names of fields are in lower case here (RFC 9421 s2.1).
        if name.as_str() != self.name {
            return Err(MALFORMED);
        }
        let params: Vec<&str> = self.params.keys().map(|name| name.as_str()).collect();
        match *params.as_slice() {
            [] => message.field(&name),
            ["bs"] if self.flag("bs") => {
                let lines = message.lines(&name)?;
                let wrapped: Vec<String> =
                    lines.iter().map(|line| format!(":{}:", STANDARD.encode(line))).collect();
                Ok(wrapped.join(", ").into_bytes())
            }
            ["key"] => member(&message.field(&name)?, self.text("key")?),
            ["sf"] if self.flag("sf") => strict(&name, &message.field(&name)?),
            // `tr` and `req` are of trailers and of answers.
            _ => Err(UNKNOWN),
        }
    }

    fn derived(&self, name: &str, message: Message<'_>) -> Result<String, Refusal> {
        let scheme = message.ctx.scheme.as_str();
        if name == "query-param" && self.params.len() == 1 {
            return query_param(message.query().unwrap_or_default(), self.text("name")?);
        }
        if !self.params.is_empty() {
            return Err(UNKNOWN);
        }
        match name {
            "method" => Ok(message.request.method.as_str().to_owned()),
            "target-uri" => Ok(format!("{scheme}://{}{}", message.authority()?, message.target())),
            "authority" => message.authority(),
            "scheme" => Ok(scheme.to_owned()),
            "request-target" => Ok(message.target()),
            "path" => Ok(message.path().to_owned()),
            // RFC 9421 s2.2.7: with its question mark, also where there is none.
            "query" => Ok(format!("?{}", message.query().unwrap_or_default())),
            _ => Err(UNKNOWN),
        }
    }

    fn flag(&self, name: &str) -> bool {
        matches!(self.params.get(name), Some(BareItem::Boolean(true)))
    }

    fn text(&self, name: &str) -> Result<&str, Refusal> {
        match self.params.get(name) {
            Some(BareItem::String(text)) => Ok(text.as_str()),
            _ => Err(UNKNOWN),
        }
    }
}

/// A member of a dictionary (RFC 9421 s2.1.2).
fn member(value: &[u8], key: &str) -> Result<Vec<u8>, Refusal> {
    let all: Dictionary = Parser::new(value).parse().map_err(|_| MALFORMED)?;
    written([all.get(key).ok_or(MISSING)?].into_iter())
}

/// A field in the strict form of its type (RFC 9421 s2.1.1).
fn strict(name: &HeaderName, value: &[u8]) -> Result<Vec<u8>, Refusal> {
    if DICTIONARIES.contains(&name.as_str()) {
        let all: Dictionary = Parser::new(value).parse().map_err(|_| MALFORMED)?;
        let mut serializer = sfv::DictSerializer::new();
        serializer.members(&all);
        return serializer.finish().map(String::into_bytes).ok_or(MISSING);
    }
    if LISTS.contains(&name.as_str()) {
        let all: List = Parser::new(value).parse().map_err(|_| MALFORMED)?;
        return written(all.iter());
    }
    Err(Refusal::new("the signature covers a field in strict form whose type is not known here"))
}

fn written<'a>(entries: impl Iterator<Item = &'a ListEntry>) -> Result<Vec<u8>, Refusal> {
    let mut serializer = ListSerializer::new();
    serializer.members(entries);
    serializer.finish().map(String::into_bytes).ok_or(MISSING)
}

/// The value of a query parameter, encoded anew (RFC 9421 s2.2.8); of several, none.
fn query_param(query: &str, name: &str) -> Result<String, Refusal> {
    let plain = decode_query(name).into_owned();
    // Another spelling of the name would be another component of the same value.
    if encode(&plain) != name {
        return Err(MALFORMED);
    }
    let mut values = query_values(query, &plain);
    match (values.next(), values.next()) {
        (Some(value), None) => Ok(encode(&value)),
        (None, _) => Err(Refusal::new("the signature covers a query parameter that is not there")),
        _ => Err(Refusal::new("the signature covers a query parameter that is there several times")),
    }
}

/// The encoding of forms, with `%20` for spaces.
fn encode(text: &str) -> String {
    let mut encoded = String::with_capacity(text.len());
    for byte in text.bytes() {
        match byte {
            _ if byte.is_ascii_alphanumeric() || b"*-._".contains(&byte) => encoded.push(char::from(byte)),
            _ => encoded.push_str(&format!("%{byte:02X}")),
        }
    }
    encoded
}
