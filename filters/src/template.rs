//! Run-time templates: `${client.address}`, `${path.id}`, `${header.x-tenant}`; `$${` writes `${`. What references of
//! the document stand for is text, whatever it holds.

use std::borrow::Cow;
use std::fmt::{self, Write as _};
use std::ops::Range;

use http::{HeaderName, HeaderValue};
use pingora_http::RequestHeader;
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Deserializer, de};

use crate::condition::{cookie_values, query_values};
use crate::context::Context;
use crate::tree::{Raw, Scalar, from_node};
use crate::values::address_text;

/// Text with places filled in from the request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Template {
    parts: Vec<Part>,
    written: Box<str>,
}

/// A piece of a template.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Part<V = Variable> {
    /// Text that stays as it is.
    Text(Box<str>),
    /// A place that is filled in.
    Variable(V),
}

/// What a template can name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Variable {
    /// `client.address`
    ClientAddress,
    /// `listener`
    Listener,
    /// `request.id`
    RequestId,
    /// `request.method`
    Method,
    /// `request.scheme`
    Scheme,
    /// `request.host`
    Host,
    /// `request.path`: normalised
    Path,
    /// `request.whole_path`: with a version that was taken off it
    WholePath,
    /// `request.query`: without `?`
    Query,
    /// `route`
    Route,
    /// `service`
    Service,
    /// `version`: of the service
    Version,
    /// `variant`: of a split; known from when the request is sent on
    Variant,
    /// `consumer`
    Consumer,
    /// `path.NAME`: what the route's pattern captured
    Capture(Box<str>),
    /// `header.NAME`: the first line
    Header(HeaderName),
    /// `query.NAME`: the first one
    QueryParameter(Box<str>),
    /// `cookie.NAME`: the first one
    Cookie(Box<str>),
    /// `claims.NAME`
    Claim(Box<str>),
}

const PLAIN: [(&str, Variable); 14] = [
    ("client.address", Variable::ClientAddress),
    ("listener", Variable::Listener),
    ("request.id", Variable::RequestId),
    ("request.method", Variable::Method),
    ("request.scheme", Variable::Scheme),
    ("request.host", Variable::Host),
    ("request.path", Variable::Path),
    ("request.whole_path", Variable::WholePath),
    ("request.query", Variable::Query),
    ("route", Variable::Route),
    ("service", Variable::Service),
    ("version", Variable::Version),
    ("variant", Variable::Variant),
    ("consumer", Variable::Consumer),
];

/// How values are written into the text around them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Escape {
    /// As they are, without control characters: for header fields.
    Text,
    /// As they are: for bodies.
    Body,
    /// Percent-encoded but for unreserved characters, so that a value stays in its place;
    /// what is part of a URL already (host, path, query) stays as it is. A path behind a `?` is a value too, and so is a
    /// query there, unless it comes first or behind an `&`; of both the slashes stay.
    Url,
}

impl Template {
    /// Text with nothing to fill in, whatever it holds.
    #[must_use]
    pub fn fixed(text: &str) -> Self {
        Self { parts: vec![Part::Text(text.into())], written: text.into() }
    }

    /// Parses a template; the message names what is wrong.
    pub fn parse(text: &str) -> Result<Self, String> {
        let parts = parts(text, Variable::parse)?;
        Ok(Self { parts, written: text.into() })
    }

    /// The text, when nothing in it depends on the request.
    #[must_use]
    pub fn literal(&self) -> Option<&str> {
        match self.parts.as_slice() {
            [] => Some(""),
            [Part::Text(text)] => Some(text),
            _ => None,
        }
    }

    /// The variables it names, in order.
    pub fn variables(&self) -> impl Iterator<Item = &Variable> {
        self.parts.iter().filter_map(|part| match part {
            Part::Variable(variable) => Some(variable),
            Part::Text(_) => None,
        })
    }

    /// The texts between its variables, in order.
    pub fn texts(&self) -> impl Iterator<Item = &str> {
        self.parts.iter().filter_map(|part| match part {
            Part::Text(text) => Some(&**text),
            Part::Variable(_) => None,
        })
    }

    /// Whether a header field can hold what is written in it; what is filled in there always fits.
    #[must_use]
    pub fn fits_a_field(&self) -> bool {
        self.texts().all(|text| HeaderValue::from_bytes(text.as_bytes()).is_ok())
    }

    /// The text with this in the place of each variable.
    #[must_use]
    pub fn filled_with(&self, value: &str) -> String {
        let mut out = String::with_capacity(self.written.len());
        for part in &self.parts {
            out.push_str(match part {
                Part::Text(text) => text,
                Part::Variable(_) => value,
            });
        }
        out
    }

    /// The captures that it fills in.
    pub fn captures(&self) -> impl Iterator<Item = &str> {
        self.variables().filter_map(|variable| match variable {
            Variable::Capture(name) => Some(&**name),
            _ => None,
        })
    }

    /// The text for this request; what a request does not have is empty.
    #[must_use]
    pub fn render(&self, request: &RequestHeader, ctx: &Context, escape: Escape) -> String {
        let mut out = String::with_capacity(self.written.len() + 16);
        for part in &self.parts {
            match part {
                Part::Text(text) => out.push_str(text),
                Part::Variable(variable) if escape == Escape::Url && variable.is_part_of_urls() => {
                    let value = variable.part_of_url(request, ctx);
                    match variable.is_value_behind(&out) {
                        true => push_encoded(&mut out, value.as_bytes(), b"-._~/"),
                        false => out.push_str(&value),
                    }
                }
                Part::Variable(variable) => push_escaped(&mut out, &variable.value(request, ctx), escape),
            }
        }
        out
    }
}

/// Takes a template apart; `variable` knows what stands between `${` and `}`. The message names what is wrong.
pub fn parts<V>(text: &str, variable: impl Fn(&str) -> Result<V, String>) -> Result<Vec<Part<V>>, String> {
    parts_beside(&[], text, variable)
}

/// As [`parts`], in a text of which these parts are literal; they stand in order.
pub fn parts_beside<V>(
    literal: &[Range<usize>],
    text: &str,
    variable: impl Fn(&str) -> Result<V, String>,
) -> Result<Vec<Part<V>>, String> {
    let is_written = |at: usize| {
        let next = literal.partition_point(|part| part.end <= at);
        literal.get(next).is_none_or(|part| at < part.start)
    };
    let mut parts = Vec::new();
    let mut plain = String::new();
    // Up to where it was read.
    let mut read = 0;
    for (at, _) in text.match_indices("${") {
        if at < read || !is_written(at) || !is_written(at + 1) {
            continue;
        }
        if text[read..at].ends_with('$') && is_written(at - 1) {
            plain.push_str(&text[read..at - 1]);
            plain.push_str("${");
            read = at + 2;
            continue;
        }
        plain.push_str(&text[read..at]);
        let end = text[at..].find('}').ok_or("a `${` has no `}`; write `$${` for a literal `${`")? + at;
        if !plain.is_empty() {
            parts.push(Part::Text(std::mem::take(&mut plain).into()));
        }
        parts.push(Part::Variable(variable(&text[at + 2..end])?));
        read = end + 1;
    }
    plain.push_str(&text[read..]);
    if !plain.is_empty() {
        parts.push(Part::Text(plain.into()));
    }
    Ok(parts)
}

impl Variable {
    fn parse(name: &str) -> Result<Self, String> {
        if let Some((_, variable)) = PLAIN.iter().find(|(plain, _)| *plain == name) {
            return Ok(variable.clone());
        }
        let named = name.split_once('.').filter(|(_, part)| !part.is_empty());
        match named {
            Some(("path", part)) => Ok(Self::Capture(part.into())),
            Some(("query", part)) => Ok(Self::QueryParameter(part.into())),
            Some(("cookie", part)) => Ok(Self::Cookie(part.into())),
            Some(("claims", part)) => Ok(Self::Claim(part.into())),
            Some(("header", part)) => part
                .parse()
                .map(Self::Header)
                .map_err(|_| "a name after `header.` is not a header field's name".to_owned()),
            _ => Err(unknown(name)),
        }
    }

    fn is_part_of_urls(&self) -> bool {
        matches!(self, Self::Scheme | Self::Host | Self::Path | Self::WholePath | Self::Query)
    }

    /// Whether it is a value behind this much of a URL: there an `&` of its own would begin another parameter.
    fn is_value_behind(&self, url: &str) -> bool {
        match self {
            Self::Path | Self::WholePath => url.contains('?'),
            // Where parameters begin, it is those of the request.
            Self::Query => {
                url.split_once('?').is_some_and(|(_, query)| !query.is_empty() && !query.ends_with('&'))
            }
            _ => false,
        }
    }

    fn part_of_url<'a>(&'a self, request: &'a RequestHeader, ctx: &'a Context) -> Cow<'a, str> {
        match self {
            Self::Path => ctx.path.wire().into(),
            other => other.value(request, ctx),
        }
    }

    fn value<'a>(&'a self, request: &'a RequestHeader, ctx: &'a Context) -> Cow<'a, str> {
        let text = match self {
            Self::ClientAddress => return address_text(ctx.client.address).into(),
            Self::RequestId => return ctx.request_id.text(),
            Self::Header(name) => {
                return request
                    .headers
                    .get(name)
                    .map_or(Cow::Borrowed(""), |value| String::from_utf8_lossy(value.as_bytes()));
            }
            Self::QueryParameter(name) => {
                return request
                    .uri
                    .query()
                    .and_then(|query| query_values(query, name).next())
                    .unwrap_or_default();
            }
            Self::Cookie(name) => return cookie_values(&request.headers, name).next().unwrap_or_default(),
            Self::Claim(name) => return claim(ctx, name),
            Self::Listener => Some(&*ctx.listener),
            Self::Method => Some(request.method.as_str()),
            Self::Scheme => Some(ctx.scheme.as_str()),
            Self::Host => ctx.host.as_deref(),
            Self::Path => Some(ctx.path.matched()),
            Self::WholePath => Some(ctx.whole_path.as_deref().unwrap_or_else(|| ctx.path.wire())),
            Self::Query => request.uri.query(),
            Self::Route => Some(&*ctx.route),
            Self::Service => ctx.service.as_deref(),
            Self::Version => ctx.version.as_deref(),
            Self::Variant => ctx.variant.as_deref(),
            Self::Consumer => ctx.consumer.as_ref().map(|consumer| &*consumer.name),
            Self::Capture(name) => ctx.captures.get(name),
        };
        text.unwrap_or_default().into()
    }
}

fn claim<'a>(ctx: &'a Context, name: &str) -> Cow<'a, str> {
    match ctx.principal.as_ref().and_then(|principal| principal.claims.get(name)) {
        Some(serde_json::Value::String(text)) => text.as_str().into(),
        Some(other) => other.to_string().into(),
        None => "".into(),
    }
}

fn unknown(name: &str) -> String {
    let near =
        PLAIN.iter().map(|(plain, _)| *plain).min_by_key(|plain| strsim::damerau_levenshtein(plain, name));
    let hint = near.filter(|plain| strsim::damerau_levenshtein(plain, name) <= 3).map_or_else(
        || " (there are client.address, request.id, path.NAME, header.NAME and others)".to_owned(),
        |plain| format!(", did you mean `${{{plain}}}`?"),
    );
    format!("unknown variable in a template{hint}")
}

fn push_escaped(out: &mut String, value: &str, escape: Escape) {
    match escape {
        Escape::Text => out.extend(value.chars().filter(|c| !c.is_control())),
        Escape::Body => out.push_str(value),
        Escape::Url => push_encoded(out, value.as_bytes(), b"-._~"),
    }
}

/// Letters, digits and these as they are, all else percent-encoded.
pub(crate) fn push_encoded(out: &mut String, bytes: &[u8], kept: &[u8]) {
    for &byte in bytes {
        if byte.is_ascii_alphanumeric() || kept.contains(&byte) {
            out.push(char::from(byte));
        } else {
            write!(out, "%{byte:02X}").expect("writing to a String cannot fail");
        }
    }
}

impl fmt::Display for Template {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.written)
    }
}

impl<'de> Deserialize<'de> for Template {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let Raw(node) = Raw::deserialize(deserializer)?;
        let text: String = from_node(&node).map_err(|error| de::Error::custom(error.message))?;
        let literal = node.as_scalar().map(Scalar::literal).unwrap_or_default();
        let parts = parts_beside(literal, &text, Variable::parse).map_err(de::Error::custom)?;
        Ok(Self { parts, written: text.into() })
    }
}

/// As written, for the schema's default.
impl serde::Serialize for Template {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.written)
    }
}

impl JsonSchema for Template {
    fn schema_name() -> Cow<'static, str> {
        "Template".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "type": "string",
            "description": "Text; `${client.address}`, `${request.id}`, `${path.NAME}`, `${header.NAME}` and others are filled in for each request.",
            "examples": ["${client.address}"],
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::request;
    use crate::tree::{Mark, Node};

    fn rendered(template: &str, target: &str, escape: Escape) -> String {
        let (mut request, ctx) = request("GET", target);
        request.insert_header("x-tenant", "a b").expect("a valid header");
        Template::parse(template).expect("a valid template").render(&request, &ctx, escape)
    }

    #[test]
    fn variables_are_filled_in_from_the_request() {
        assert_eq!(
            rendered("<${client.address}|${header.x-tenant}|${query.q}>", "/?q=1%202", Escape::Text),
            "<192.0.2.1|a b|1 2>"
        );
    }

    #[test]
    fn the_whole_path_has_the_version_that_was_taken_off() {
        let (request, mut ctx) = request("GET", "/users/a;b=c");
        let paths = Template::parse("${request.path} ${request.whole_path}").expect("a valid template");
        let rendered = |ctx: &Context, escape| paths.render(&request, ctx, escape);
        assert_eq!(rendered(&ctx, Escape::Url), "/users/a;b=c /users/a;b=c");
        assert_eq!(rendered(&ctx, Escape::Text), "/users/a /users/a;b=c");
        ctx.whole_path = Some("/v2/users/a;b=c".into());
        assert_eq!(rendered(&ctx, Escape::Url), "/users/a;b=c /v2/users/a;b=c");
        assert_eq!(rendered(&ctx, Escape::Text), "/users/a /v2/users/a;b=c");
    }

    #[test]
    fn a_doubled_dollar_writes_a_literal_brace() {
        assert_eq!(rendered("$${client.address}", "/", Escape::Text), "${client.address}");
    }

    #[test]
    fn a_value_in_a_path_cannot_leave_its_segment() {
        assert_eq!(rendered("/u/${query.q}", "/?q=..%2F..%3Fx%0D%0A", Escape::Url), "/u/..%2F..%3Fx%0D%0A");
    }

    #[test]
    fn a_path_in_a_query_is_one_value() {
        // RFC 3986 s3.3 and s3.4: a path may have what separates the parameters of a query.
        let target = "/doc7;&uri=doc9/a%20b+c?q=1&r";
        for (template, expected) in [
            ("/verify?uri=${request.path}", "/verify?uri=/doc7%3B%26uri%3Ddoc9/a%2520b%2Bc"),
            ("/?a=1&uri=${request.whole_path}&b", "/?a=1&uri=/doc7%3B%26uri%3Ddoc9/a%2520b%2Bc&b"),
            ("/verify${request.path}?${request.query}", "/verify/doc7;&uri=doc9/a%20b+c?q=1&r"),
        ] {
            assert_eq!(rendered(template, target, Escape::Url), expected, "{template}");
        }
    }

    #[test]
    fn a_query_in_a_parameter_is_one_value_and_where_parameters_begin_it_is_all_of_them() {
        // RFC 3986 s3.4: a query may have a `?`.
        let target = "/doc7?a&uri=/doc9?b%20c";
        for (template, expected) in [
            ("/verify?uri=${request.path}?${request.query}", "/verify?uri=/doc7?a%26uri%3D/doc9%3Fb%2520c"),
            ("/verify?query=${request.query}", "/verify?query=a%26uri%3D/doc9%3Fb%2520c"),
            ("/verify?${request.query}", "/verify?a&uri=/doc9?b%20c"),
            ("/verify?x=1&${request.query}&y", "/verify?x=1&a&uri=/doc9?b%20c&y"),
            ("/verify/${request.query}", "/verify/a&uri=/doc9?b%20c"),
        ] {
            assert_eq!(rendered(template, target, Escape::Url), expected, "{template}");
        }
    }

    #[test]
    fn control_characters_never_reach_a_header() {
        assert_eq!(rendered("${query.q}", "/?q=a%0D%0Ab", Escape::Text), "ab");
    }

    /// The text for a request for `/?q=1` of a template with these parts that a reference gave.
    fn rendered_beside(literal: &[(usize, usize)], text: &str) -> String {
        let literal = literal.iter().map(|(start, end)| *start..*end).collect();
        let node = Node::scalar(Scalar::quoted(text).with_literal(literal), Mark::default());
        let (request, ctx) = request("GET", "/?q=1");
        let template = from_node::<Template>(&node).expect("a valid template");
        template.render(&request, &ctx, Escape::Text)
    }

    #[test]
    fn what_a_reference_gave_is_text() {
        let page = "${name} ${query.q} ${query.q}";
        assert_eq!(rendered_beside(&[(0, 7), (8, 18)], page), "${name} ${query.q} 1");
        assert_eq!(rendered_beside(&[(0, 1)], "$${query.q}"), "$1", "it escapes nothing");
        assert_eq!(rendered_beside(&[(0, 1)], "${query.q}"), "${query.q}", "nor does it begin anything");
        assert_eq!(rendered_beside(&[(2, 7)], "${query.q}"), "1", "but it can be part of a name");
    }

    #[test]
    fn a_text_may_have_many_literal_parts() {
        const PART: usize = "${env:".len();
        let text = format!("{}${{query.q}}", "${env:".repeat(100_000));
        let literal: Vec<(usize, usize)> = (0..100_000).map(|at| (at * PART, at * PART + 2)).collect();
        let rendered = rendered_beside(&literal, &text);
        assert!(rendered.ends_with("${env:${env:1") && rendered.len() == 100_000 * PART + 1);
    }

    #[test]
    fn unknown_variables_are_errors_with_a_hint() {
        assert!(Template::parse("${client.adress}").expect_err("misspelt").contains("client.address"));
        assert!(Template::parse("${client.address").is_err());
    }
}
