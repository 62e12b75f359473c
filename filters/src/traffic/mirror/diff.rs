//! How two answers differ.

use std::collections::BTreeSet;
use std::fmt;

use http::header::{AGE, CONTENT_ENCODING, CONTENT_TYPE, DATE, HeaderMap, HeaderName, VIA};
use serde_json::Value;

use super::DiffOptions;
use crate::values::Scalar;

/// Fields that tell of a connection, a moment or one request.
const PASSING: [HeaderName; 14] = [
    AGE,
    http::header::CONNECTION,
    // The bodies are compared themselves.
    http::header::CONTENT_LENGTH,
    DATE,
    http::header::EXPIRES,
    HeaderName::from_static("keep-alive"),
    HeaderName::from_static("proxy-connection"),
    HeaderName::from_static("server-timing"),
    http::header::TE,
    http::header::TRAILER,
    http::header::TRANSFER_ENCODING,
    http::header::UPGRADE,
    VIA,
    HeaderName::from_static("x-request-id"),
];
/// Most differences of one body that are told.
const MOST: usize = 20;
/// Longest place that is told, in bytes.
const LONGEST: usize = 200;
/// Deepest that is looked; what is below counts as one value.
const DEEPEST: usize = 100;

/// A place in a JSON body (RFC 6901), where `*` is any key or place.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pointer(Box<[Token]>);

#[derive(Debug, Clone, PartialEq, Eq)]
enum Token {
    Any,
    Named(Box<str>),
}

impl Scalar for Pointer {
    const EXPECTED: &'static str = "a JSON Pointer such as `/meta/time` or `/items/*/id`";
    const PATTERN: Option<&'static str> = Some("^(/([^~]|~0|~1)*)+$");
    const EXAMPLE: &'static str = "/items/*/id";

    fn read(text: &str) -> Option<Self> {
        let tokens = text.strip_prefix('/')?.split('/').map(|token| {
            let escaped = token.replace("~0", "").replace("~1", "").contains('~');
            let name = || token.replace("~1", "/").replace("~0", "~");
            (!escaped).then(|| if token == "*" { Token::Any } else { Token::Named(name().into()) })
        });
        tokens.collect::<Option<_>>().map(Self)
    }
}

crate::scalar!(Pointer);

impl fmt::Display for Pointer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|token| match token {
            Token::Any => f.write_str("/*"),
            Token::Named(name) => write!(f, "/{}", escaped(name)),
        })
    }
}

fn escaped(name: &str) -> String {
    name.replace('~', "~0").replace('/', "~1")
}

impl Pointer {
    fn covers(&self, place: &[String]) -> bool {
        let same = |(token, name): (&Token, &String)| match token {
            Token::Any => true,
            Token::Named(wanted) => **wanted == **name,
        };
        self.0.len() == place.len() && self.0.iter().zip(place).all(same)
    }
}

/// What is compared.
pub(super) struct Rules {
    ignore: Vec<Pointer>,
    ignore_headers: Vec<HeaderName>,
    pub(super) max_body: usize,
}

/// One of two answers; the body is none if it is not all there.
pub(super) struct Side<'a> {
    pub(super) status: u16,
    pub(super) fields: &'a HeaderMap,
    pub(super) body: Option<&'a [u8]>,
}

/// How two answers differ.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Differences {
    status: bool,
    headers: Vec<String>,
    body: Vec<String>,
    /// The bodies were not compared.
    pub(super) body_skipped: bool,
}

impl Differences {
    /// Whether the status, the fields and the body differ.
    pub(super) fn parts(&self) -> [bool; 3] {
        [self.status, !self.headers.is_empty(), !self.body.is_empty()]
    }

    /// As examples tell them.
    pub(super) fn shown(&self) -> Vec<String> {
        let status = self.status.then(|| "status".to_owned());
        let headers = self.headers.iter().map(|name| format!("header {name}"));
        let body = self.body.iter().map(|place| format!("body {place}"));
        status.into_iter().chain(headers).chain(body).collect()
    }
}

impl Rules {
    pub(super) fn new(options: &DiffOptions) -> Self {
        Self {
            ignore: options.ignore.clone(),
            ignore_headers: options.ignore_headers.iter().cloned().map(HeaderName::from).collect(),
            max_body: options.max_body.as_len(),
        }
    }

    /// Compares the answer of a request with that of its copy.
    pub(super) fn compare(&self, old: &Side<'_>, new: &Side<'_>) -> Differences {
        let mut differences = Differences {
            status: old.status != new.status,
            headers: self.headers(old.fields, new.fields),
            ..Differences::default()
        };
        let coded = [old, new].iter().any(|side| side.fields.contains_key(CONTENT_ENCODING));
        match (old.body, new.body) {
            (Some(old), Some(new)) if old == new => {}
            (Some(before), Some(after)) if !coded => {
                differences.body = self.bodies((old.fields, before), (new.fields, after));
            }
            _ => differences.body_skipped = true,
        }
        differences
    }

    fn headers(&self, old: &HeaderMap, new: &HeaderMap) -> Vec<String> {
        let counts = |name: &&HeaderName| !PASSING.contains(name) && !self.ignore_headers.contains(name);
        let names: BTreeSet<&str> =
            old.keys().chain(new.keys()).filter(counts).map(HeaderName::as_str).collect();
        let differs = |name: &str| !old.get_all(name).iter().eq(new.get_all(name).iter());
        names.into_iter().filter(|name| differs(name)).take(MOST).map(|name| name.to_owned()).collect()
    }

    fn bodies(&self, old: (&HeaderMap, &[u8]), new: (&HeaderMap, &[u8])) -> Vec<String> {
        let (Some(old), Some(new)) = (json(old), json(new)) else { return vec!["differs".to_owned()] };
        let mut found = Vec::new();
        self.values(&old, &new, &mut Vec::new(), &mut found);
        found
    }

    fn values(&self, old: &Value, new: &Value, place: &mut Vec<String>, found: &mut Vec<String>) {
        if found.len() >= MOST || old == new || self.ignore.iter().any(|pointer| pointer.covers(place)) {
            return;
        }
        match (old, new) {
            (Value::Object(old), Value::Object(new)) if place.len() < DEEPEST => {
                let keys: BTreeSet<&String> = old.keys().chain(new.keys()).collect();
                for key in keys {
                    place.push(key.clone());
                    self.both(old.get(key), new.get(key), place, found);
                    place.pop();
                }
            }
            (Value::Array(old), Value::Array(new)) if place.len() < DEEPEST => {
                for at in 0..old.len().max(new.len()) {
                    place.push(at.to_string());
                    self.both(old.get(at), new.get(at), place, found);
                    place.pop();
                }
            }
            _ => found.push(format!("{} differs", shown(place))),
        }
    }

    fn both(
        &self,
        old: Option<&Value>,
        new: Option<&Value>,
        place: &mut Vec<String>,
        found: &mut Vec<String>,
    ) {
        let only = match (old, new) {
            (Some(old), Some(new)) => return self.values(old, new, place, found),
            (None, None) => return,
            (Some(_), None) => "is missing",
            (None, Some(_)) => "is new",
        };
        if found.len() < MOST && !self.ignore.iter().any(|pointer| pointer.covers(place)) {
            found.push(format!("{} {only}", shown(place)));
        }
    }
}

fn shown(place: &[String]) -> String {
    let mut pointer: String = place.iter().map(|name| format!("/{}", escaped(name))).collect();
    if pointer.is_empty() {
        return "as a whole".to_owned();
    }
    if pointer.len() > LONGEST {
        pointer.truncate(pointer.floor_char_boundary(LONGEST));
        pointer.push('…');
    }
    pointer
}

/// A body that is JSON, by what its head says.
fn json((fields, body): (&HeaderMap, &[u8])) -> Option<Value> {
    let kind = fields.get(CONTENT_TYPE)?.to_str().ok()?;
    let essence = kind.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
    let is_json = essence == "application/json" || essence.ends_with("+json");
    if is_json { serde_json::from_slice(body).ok() } else { None }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn fields(list: &[(&'static str, &str)]) -> HeaderMap {
        list.iter()
            .map(|(name, value)| (HeaderName::from_static(name), value.parse().expect("a value")))
            .collect()
    }

    const JSON: (&str, &str) = ("content-type", "application/json");

    fn differences(ignore: &[&str], old: &str, new: &str) -> Vec<String> {
        let ignore = ignore.iter().map(|text| text.parse().expect("a pointer")).collect();
        let rules = Rules::new(&DiffOptions { ignore, ..DiffOptions::default() });
        let fields = fields(&[JSON]);
        let side = |body: &'static str| Side { status: 200, fields: &fields, body: Some(body.as_bytes()) };
        let (old, new) = (old.to_owned().leak(), new.to_owned().leak());
        rules.compare(&side(old), &side(new)).shown()
    }

    #[test]
    fn json_is_compared_by_what_it_says() {
        assert_eq!(differences(&[], r#"{"a":1,"b":[1,2]}"#, r#"{ "b": [1, 2], "a": 1 }"#), [""; 0]);
        assert_eq!(
            differences(&[], r#"{"a":1,"b":[1,2],"c/d":0,"x":{}}"#, r#"{"a":"1","b":[1,3,4],"y":1,"x":[]}"#),
            [
                "body /a differs",
                "body /b/1 differs",
                "body /b/2 is new",
                "body /c~1d is missing",
                "body /x differs",
                "body /y is new"
            ]
        );
        assert_eq!(differences(&[], "1", "2"), ["body as a whole differs"]);
        assert_eq!(differences(&[], "{", "1"), ["body differs"]);
    }

    #[test]
    fn places_that_are_named_do_not_count_nor_does_what_is_below() {
        let (old, new) = (
            r#"{"m":{"t":1,"u":1},"i":[{"id":1,"p":1},{"id":2,"p":2}]}"#,
            r#"{"m":{"t":2},"i":[{"id":3,"p":1},{"p":3}]}"#,
        );
        assert_eq!(differences(&["/m", "/i/*/id"], old, new), ["body /i/1/p differs"]);
        assert_eq!(differences(&["/m/t", "/i/0/id", "/i/1"], old, new), ["body /m/u is missing"]);
        assert_eq!(differences(&["/*"], old, new), [""; 0]);
    }

    #[test]
    fn fields_count_but_for_those_of_a_moment() {
        let rules = Rules::new(&DiffOptions {
            ignore_headers: vec!["x-mine".parse().expect("a name")],
            ..DiffOptions::default()
        });
        let old = fields(&[("date", "1"), ("x-a", "1"), ("x-mine", "1"), ("etag", "1")]);
        let new = fields(&[("date", "2"), ("x-a", "2"), ("x-mine", "2"), ("x-b", "1"), ("etag", "1")]);
        let old = Side { status: 200, fields: &old, body: Some(b"a") };
        let new = Side { status: 500, fields: &new, body: Some(b"b") };
        let differences = rules.compare(&old, &new);
        assert_eq!(differences.shown(), ["status", "header x-a", "header x-b", "body differs"]);
        assert_eq!(differences.parts(), [true; 3]);
    }

    #[test]
    fn bodies_that_are_coded_or_not_all_there_are_not_compared() {
        let rules = Rules::new(&DiffOptions::default());
        let (plain, coded) = (fields(&[]), fields(&[("content-encoding", "gzip")]));
        let side = |fields, body| Side { status: 200, fields, body };
        for (old, new) in [
            (side(&coded, Some(&b"a"[..])), side(&coded, Some(b"b"))),
            (side(&plain, None), side(&plain, Some(b"b"))),
        ] {
            let differences = rules.compare(&old, &new);
            assert!(differences.body_skipped && differences.parts() == [false; 3], "{differences:?}");
        }
    }

    #[test]
    fn pointers_are_those_of_rfc_6901() {
        for text in ["/a", "/", "/a~1b/~0", "/*/x", "/a//b"] {
            assert_eq!(text.parse::<Pointer>().expect("a pointer").to_string(), text);
        }
        for text in ["", "a", "/a~", "/~2", "$.a"] {
            assert!(text.parse::<Pointer>().is_err(), "{text}");
        }
    }

    proptest! {
        #[test]
        fn a_body_never_differs_from_itself_and_order_of_keys_is_nothing(
            keys in prop::collection::btree_map("[a-z]{1,3}", -5_i32..5, 0..8)
        ) {
            let forwards: Vec<String> = keys.iter().map(|(key, value)| format!("\"{key}\":{value}")).collect();
            let backwards: Vec<String> = forwards.iter().rev().cloned().collect();
            let text = |entries: &[String]| format!("{{{}}}", entries.join(","));
            prop_assert!(differences(&[], &text(&forwards), &text(&backwards)).is_empty());
        }
    }
}
