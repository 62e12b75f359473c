//! Conditions on a request: methods, headers, query, cookies.

mod pairs;

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt;

use http::Method;
use http::header::{HeaderMap, HeaderName};
use regex::Regex;
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::de::{self, Deserialize, Deserializer, MapAccess, Visitor};

use crate::path::NormalPath;
use crate::values;

pub use pairs::{cookie_pairs, cookie_values, query_pairs, query_values};
pub(crate) use pairs::{decode_query, raw_cookies, raw_pairs};

/// A request as conditions see it.
#[derive(Debug, Clone, Copy)]
pub struct RequestView<'a> {
    /// The method.
    pub method: &'a Method,
    /// The normalised path.
    pub path: &'a NormalPath,
    /// The query, without `?`.
    pub query: Option<&'a str>,
    /// The header fields.
    pub headers: &'a HeaderMap,
    /// The normalised host.
    pub host: Option<&'a str>,
}

/// What a value must be.
#[derive(Debug, Clone)]
pub enum ValueMatch {
    /// Exactly this text.
    Exact(String),
    /// One of these texts.
    In(Vec<String>),
    /// There (true) or not there (false).
    Present(bool),
    /// Wholly matched by this regular expression.
    Regex(Regex),
    /// Not this.
    Not(Box<ValueMatch>),
}

impl ValueMatch {
    /// Whether any of the values is as wanted; a negation holds when none is.
    pub fn matches<'a>(&self, values: impl Iterator<Item = Cow<'a, str>>) -> bool {
        self.matches_some(values.map(Some))
    }

    /// As [`ValueMatch::matches`], of values that may be there without a text (`None`): those are like no text.
    pub fn matches_some<'a>(&self, mut values: impl Iterator<Item = Option<Cow<'a, str>>>) -> bool {
        match self {
            Self::Exact(text) => values.flatten().any(|value| *value == **text),
            Self::In(list) => values.flatten().any(|value| list.iter().any(|text| **text == *value)),
            Self::Present(present) => values.next().is_some() == *present,
            Self::Regex(regex) => values.flatten().any(|value| regex.is_match(&value)),
            Self::Not(inner) => !inner.matches_some(values),
        }
    }

    /// Whether both want the same, as far as they are written alike.
    fn same(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Exact(one), Self::Exact(two)) => one == two,
            (Self::In(one), Self::In(two)) => one == two,
            (Self::Present(one), Self::Present(two)) => one == two,
            (Self::Regex(one), Self::Regex(two)) => one.as_str() == two.as_str(),
            (Self::Not(one), Self::Not(two)) => one.same(two),
            _ => false,
        }
    }

    /// Whether a header field, line by line, is as wanted.
    #[must_use]
    pub fn matches_field(&self, headers: &HeaderMap, name: &HeaderName) -> bool {
        self.matches(headers.get_all(name).iter().map(|line| String::from_utf8_lossy(line.as_bytes())))
    }
}

/// Conditions on a request; all must hold.
#[derive(Debug, Clone, Default)]
pub struct Conditions {
    methods: Box<[Method]>,
    /// Of many thousand routes, few have any.
    named: Option<Box<Named>>,
}

/// Conditions on what has a name.
#[derive(Debug, Clone)]
struct Named {
    headers: Vec<(HeaderName, ValueMatch)>,
    query: Vec<(String, ValueMatch)>,
    cookies: Vec<(String, ValueMatch)>,
}

/// The first condition that does not hold.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Unmet {
    /// Another method.
    Method,
    /// This header field.
    Header(HeaderName),
    /// This query parameter.
    Query(String),
    /// This cookie.
    Cookie(String),
}

impl fmt::Display for Unmet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Method => f.write_str("the method does not match"),
            Self::Header(name) => write!(f, "the header field `{name}` does not match"),
            Self::Query(name) => write!(f, "the query parameter `{name}` does not match"),
            Self::Cookie(name) => write!(f, "the cookie `{name}` does not match"),
        }
    }
}

impl Conditions {
    /// Conditions from their parts; no methods means any.
    pub fn new(
        methods: Vec<Method>,
        headers: impl IntoIterator<Item = (HeaderName, ValueMatch)>,
        query: BTreeMap<String, ValueMatch>,
        cookies: BTreeMap<String, ValueMatch>,
    ) -> Self {
        let headers: Vec<_> = headers.into_iter().collect();
        let some = !headers.is_empty() || !query.is_empty() || !cookies.is_empty();
        let (query, cookies) = (query.into_iter().collect(), cookies.into_iter().collect());
        Self { methods: methods.into(), named: some.then(|| Box::new(Named { headers, query, cookies })) }
    }

    fn named(&self) -> &Named {
        const NONE: &Named = &Named { headers: Vec::new(), query: Vec::new(), cookies: Vec::new() };
        self.named.as_deref().unwrap_or(NONE)
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.methods.is_empty() && self.named.is_none()
    }

    /// Whether all hold.
    #[must_use]
    pub fn matches(&self, request: &RequestView<'_>) -> bool {
        self.allows(request.method) && self.unmet_beside_method(request).is_none()
    }

    /// Whether this method is one of those wanted.
    #[must_use]
    pub fn allows(&self, method: &Method) -> bool {
        self.methods.is_empty() || self.methods.contains(method)
    }

    /// The methods wanted; none means any.
    #[must_use]
    pub fn methods(&self) -> &[Method] {
        &self.methods
    }

    /// The first condition that does not hold.
    #[must_use]
    pub fn unmet(&self, request: &RequestView<'_>) -> Option<Unmet> {
        if self.allows(request.method) { self.unmet_beside_method(request) } else { Some(Unmet::Method) }
    }

    /// The first condition that does not hold, the method aside.
    #[must_use]
    pub fn unmet_beside_method(&self, request: &RequestView<'_>) -> Option<Unmet> {
        let named = self.named.as_ref()?;
        let header = named.headers.iter().find(|(name, wanted)| !wanted.matches_field(request.headers, name));
        if let Some((name, _)) = header {
            return Some(Unmet::Header(name.clone()));
        }
        let query = request.query.unwrap_or_default();
        if let Some((name, _)) =
            named.query.iter().find(|(name, wanted)| !wanted.matches(query_values(query, name)))
        {
            return Some(Unmet::Query(name.clone()));
        }
        let unmet =
            named.cookies.iter().find(|(name, wanted)| !wanted.matches(cookie_values(request.headers, name)));
        unmet.map(|(name, _)| Unmet::Cookie(name.clone()))
    }

    /// How many header and cookie conditions there are, for ranking.
    #[must_use]
    pub fn count_headers_cookies(&self) -> usize {
        self.named().headers.len() + self.named().cookies.len()
    }

    /// How many query conditions there are, for ranking.
    #[must_use]
    pub fn count_query(&self) -> usize {
        self.named().query.len()
    }

    /// Whether every request that meets `other` meets these too, as far as that can be read off:
    /// methods are compared as sets, the rest entry by entry.
    #[must_use]
    pub fn are_implied_by(&self, other: &Self) -> bool {
        let methods = self.methods.is_empty()
            || (!other.methods.is_empty()
                && other.methods.iter().all(|method| self.methods.contains(method)));
        let (few, many) = (self.named(), other.named());
        methods
            && is_subset(&few.headers, &many.headers)
            && is_subset(&few.query, &many.query)
            && is_subset(&few.cookies, &many.cookies)
    }
}

fn is_subset<K: PartialEq>(few: &[(K, ValueMatch)], many: &[(K, ValueMatch)]) -> bool {
    let holds = |(name, wanted): &(K, ValueMatch)| many.iter().any(|(k, w)| k == name && w.same(wanted));
    few.iter().all(holds)
}

/// An HTTP method as written: a token, in capitals where it is a known one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MethodName(Method);

impl From<MethodName> for Method {
    fn from(name: MethodName) -> Self {
        name.0
    }
}

impl<'de> Deserialize<'de> for MethodName {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        const KNOWN: [&str; 9] =
            ["GET", "HEAD", "POST", "PUT", "DELETE", "CONNECT", "OPTIONS", "TRACE", "PATCH"];
        let text = String::deserialize(deserializer)?;
        let upper = text.to_ascii_uppercase();
        if upper != text && KNOWN.contains(&upper.as_str()) {
            return Err(de::Error::custom(format!("methods are case-sensitive, did you mean `{upper}`?")));
        }
        Method::from_bytes(text.as_bytes())
            .map(Self)
            .map_err(|_| de::Error::custom("expected a method such as `GET`"))
    }
}

impl JsonSchema for MethodName {
    fn schema_name() -> Cow<'static, str> {
        "Method".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({"type": "string", "examples": ["GET", "POST"]})
    }
}

impl<'de> Deserialize<'de> for ValueMatch {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(ValueVisitor)
    }
}

struct ValueVisitor;

const KEYS: [&str; 4] = ["present", "regex", "in", "not"];

impl<'de> Visitor<'de> for ValueVisitor {
    type Value = ValueMatch;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a string, or one of `{present: true}`, `{regex: ..}`, `{in: [..]}` and `{not: ..}`")
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<ValueMatch, E> {
        Ok(ValueMatch::Exact(text.to_owned()))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<ValueMatch, A::Error> {
        let Some(key) = map.next_key::<String>()? else { return Err(de::Error::invalid_length(0, &self)) };
        let value = match key.as_str() {
            "present" => ValueMatch::Present(map.next_value()?),
            "in" => match map.next_value::<Vec<String>>()? {
                texts if texts.is_empty() => return Err(de::Error::custom("`in` needs at least one value")),
                texts => ValueMatch::In(texts),
            },
            "not" => ValueMatch::Not(Box::new(map.next_value()?)),
            "regex" => ValueMatch::Regex(map.next_value::<WholeRegex>()?.0),
            _ => return Err(de::Error::unknown_field(&key, &KEYS)),
        };
        match map.next_key::<String>()? {
            None => Ok(value),
            Some(second) => {
                Err(de::Error::custom(format!("a match is one thing; `{key}` and `{second}` are here")))
            }
        }
    }
}

/// A regular expression that matches whole values.
struct WholeRegex(Regex);

impl<'de> Deserialize<'de> for WholeRegex {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        values::whole_regex(&text).map(Self).map_err(|error| match error {
            regex::Error::CompiledTooBig(_) => de::Error::custom("the regular expression is too large"),
            _ => de::Error::custom("expected a regular expression"),
        })
    }
}

impl fmt::Display for ValueMatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Exact(text) => write!(f, "`{text}`"),
            Self::In(list) => write!(f, "one of `{}`", list.join("`, `")),
            Self::Present(true) => f.write_str("present"),
            Self::Present(false) => f.write_str("absent"),
            Self::Regex(regex) => write!(f, "matching `{regex}`"),
            Self::Not(inner) => write!(f, "not {inner}"),
        }
    }
}

impl JsonSchema for ValueMatch {
    fn schema_name() -> Cow<'static, str> {
        "ValueMatch".into()
    }

    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        let one = |key: &str, value: serde_json::Value| serde_json::json!({"type": "object", "required": [key], "additionalProperties": false, "properties": {key: value}});
        let not = one("not", generator.subschema_for::<Self>().into());
        json_schema!({
            "description": "A value exactly, or one of `present`, `regex` (the whole value), `in` and `not`.",
            "oneOf": [
                {"type": "string"},
                one("present", serde_json::json!({"type": "boolean"})),
                one("regex", serde_json::json!({"type": "string"})),
                one("in", serde_json::json!({"type": "array", "items": {"type": "string"}, "minItems": 1})),
                not,
            ],
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::yaml;

    fn fields(lines: &[(&'static str, &'static str)]) -> HeaderMap {
        lines
            .iter()
            .map(|(name, value)| (HeaderName::from_static(name), value.parse().expect("valid")))
            .collect()
    }

    fn holds(wanted: &str, lines: &[(&'static str, &'static str)]) -> bool {
        yaml::<ValueMatch>(wanted).matches_field(&fields(lines), &HeaderName::from_static("x-v"))
    }

    #[test]
    fn every_line_of_a_field_is_looked_at() {
        let two = [("x-v", "a"), ("x-v", "b")];
        assert!(holds("b", &two) && holds("{in: [b, c]}", &two) && holds("{regex: '[bc]'}", &two));
        assert!(!holds("{not: b}", &two) && !holds("{not: {in: [a]}}", &two));
    }

    #[test]
    fn a_regular_expression_matches_whole_values() {
        assert!(holds("{regex: '2.*'}", &[("x-v", "2.1")]) && !holds("{regex: '2'}", &[("x-v", "2.1")]));
        assert!(!holds("{regex: 'a|b'}", &[("x-v", "ax")]));
    }

    #[test]
    fn absence_is_a_condition_too() {
        assert!(
            holds("{present: false}", &[]) && holds("{not: {present: true}}", &[]) && holds("{not: a}", &[])
        );
        assert!(!holds("{present: true}", &[]) && !holds("a", &[]));
    }

    #[test]
    fn query_parameters_are_decoded_once() {
        let values = |query, name| query_values(query, name).collect::<Vec<_>>();
        assert_eq!(values("a=1&a=2&b", "a"), ["1", "2"]);
        assert_eq!(values("%61=x+y%2520", "a"), ["x y%20"]);
        assert_eq!(values("b", "b"), [""]);
    }

    #[test]
    fn cookies_of_all_lines_count() {
        let headers = fields(&[("cookie", "a=1; b=\"2\""), ("cookie", "a=3")]);
        assert_eq!(cookie_values(&headers, "a").collect::<Vec<_>>(), ["1", "3"]);
        assert_eq!(cookie_values(&headers, "b").collect::<Vec<_>>(), ["2"]);
    }

    #[test]
    fn one_value_outside_ascii_hides_no_other() {
        let mut headers = HeaderMap::new();
        headers.insert("cookie", http::HeaderValue::from_bytes(b"a=1; x=\xff; c=d=e ;y").expect("valid"));
        assert_eq!(cookie_values(&headers, "a").collect::<Vec<_>>(), ["1"]);
        assert_eq!(cookie_values(&headers, "c").collect::<Vec<_>>(), ["d=e"]);
        assert_eq!(cookie_values(&headers, "x").collect::<Vec<_>>(), ["\u{fffd}"]);
        assert_eq!((cookie_values(&headers, "y").count(), cookie_values(&headers, "A").count()), (0, 0));
    }

    #[test]
    fn what_is_no_escape_stays_as_it_is() {
        let values = |query, name| query_values(query, name).collect::<Vec<_>>();
        assert_eq!(values("bad=%zz&x=%252e&&flag", "bad"), ["%zz"]);
        assert_eq!(values("bad=%zz&x=%252e&&flag", "x"), ["%2e"]);
        assert_eq!(values("&&", ""), [""; 0]);
        assert_eq!(values("A=1", "a"), [""; 0]);
    }

    fn conditions(methods: &[&str], header: &str, query: &str, cookie: &str) -> Conditions {
        let methods = methods.iter().map(|name| name.parse().expect("a method")).collect();
        let headers: BTreeMap<String, ValueMatch> = yaml(header);
        let headers = headers.into_iter().map(|(name, value)| (name.parse().expect("a field"), value));
        Conditions::new(methods, headers, yaml(query), yaml(cookie))
    }

    #[test]
    fn the_first_unmet_condition_is_named() {
        let wanted = conditions(&["GET", "PURGE"], "{x-a: '1'}", "{q: '1'}", "{c: '1'}");
        let path = crate::path::normalize("/", &crate::path::PathRules::default()).expect("a path");
        let headers = fields(&[("x-a", "1"), ("cookie", "c=1")]);
        let unmet = |method: &str, query, headers: &HeaderMap| {
            let method = method.parse().expect("a method");
            let view = RequestView { method: &method, path: &path, query: Some(query), headers, host: None };
            wanted.unmet(&view)
        };
        assert_eq!(unmet("PURGE", "q=1", &headers), None);
        assert_eq!(unmet("get", "q=1", &headers), Some(Unmet::Method), "RFC 9110 s9.1: case-sensitive");
        assert_eq!(unmet("GET", "q=1", &fields(&[])), Some(Unmet::Header(HeaderName::from_static("x-a"))));
        assert_eq!(unmet("GET", "q=2", &headers), Some(Unmet::Query("q".to_owned())));
        assert_eq!(unmet("GET", "q=1", &fields(&[("x-a", "1")])), Some(Unmet::Cookie("c".to_owned())));
        assert_eq!((wanted.count_headers_cookies(), wanted.count_query()), (2, 1));
    }

    #[test]
    fn a_mistake_in_a_condition_is_named() {
        let message = |text: &str| {
            let node = crate::tree::parse(text, Default::default(), &Default::default()).expect("valid YAML");
            crate::tree::from_node::<ValueMatch>(&node).expect_err(text).message
        };
        for (text, part) in [
            ("{}", "`{present: true}`"),
            ("{present: true, regex: a}", "`present` and `regex`"),
            ("{presnt: true}", "presnt"),
            ("{in: []}", "at least one value"),
            ("{regex: 'a)|(b'}", "regular expression"),
        ] {
            assert!(message(text).contains(part), "{text}: {}", message(text));
        }
        assert!(serde_json::from_str::<MethodName>("\"get\"").unwrap_err().to_string().contains("`GET`"));
        assert!(serde_json::from_str::<MethodName>("\"purge\"").is_ok());
        assert!(serde_json::from_str::<MethodName>("\"a b\"").is_err());
    }

    #[test]
    fn fewer_conditions_are_implied_by_more() {
        let with = |methods: &[&str], header: &str| conditions(methods, header, "{}", "{}");
        let (one, two) = (with(&[], "{x-a: '1'}"), with(&[], "{x-b: {regex: b}, x-a: '1'}"));
        assert!(one.are_implied_by(&two) && !two.are_implied_by(&one) && two.are_implied_by(&two));
        assert!(!with(&[], "{x-a: '2'}").are_implied_by(&two));
        assert!(with(&["GET", "POST"], "{}").are_implied_by(&with(&["POST"], "{}")));
        assert!(with(&[], "{}").are_implied_by(&with(&["GET"], "{}")));
        assert!(!with(&["GET"], "{}").are_implied_by(&with(&[], "{}")));
    }
}
