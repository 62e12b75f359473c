//! What logs must not show: values of header fields and query parameters that carry secrets.

use std::borrow::Cow;
use std::fmt;
use std::ops::Range;
use std::str::FromStr;

use http::HeaderName;
use http::header::{AUTHORIZATION, COOKIE};
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

/// Stands in the place of what is hidden.
pub const MASK: &str = "***";

/// Fields that are hidden always, whatever the document says,
static FIELDS: [HeaderName; 2] = [AUTHORIZATION, COOKIE];
/// and parameters.
const PARAMETERS: [&str; 2] = ["access_token", "api_key"];

/// One thing to hide: `header:NAME` or `query:NAME`.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Redaction {
    /// The values of a header field.
    Header(HeaderName),
    /// The values of a query parameter, named as it reads decoded; letter case matters.
    Query(Box<str>),
}

impl FromStr for Redaction {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.split_once(':') {
            Some(("header", name)) => {
                let parsed = HeaderName::from_str(name);
                parsed.map(Self::Header).map_err(|_| format!("`{name}` is not a header field's name"))
            }
            Some(("query", name)) if !name.is_empty() => Ok(Self::Query(name.into())),
            _ => Err("expected `header:NAME` or `query:NAME`".to_owned()),
        }
    }
}

impl fmt::Display for Redaction {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Header(name) => write!(f, "header:{name}"),
            Self::Query(name) => write!(f, "query:{name}"),
        }
    }
}

impl Serialize for Redaction {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Redaction {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = Cow::<'_, str>::deserialize(deserializer)?;
        text.parse().map_err(de::Error::custom)
    }
}

impl JsonSchema for Redaction {
    fn schema_name() -> Cow<'static, str> {
        "Redaction".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "type": "string",
            "description": "`header:NAME` or `query:NAME`.",
            "pattern": "^(header|query):.+$",
        })
    }
}

/// Hides what the rules of a document name, or of two, and always the usual carriers of credentials.
#[derive(Debug, Clone, Copy)]
pub struct Redactor<'r> {
    rules: [&'r [Redaction]; 2],
}

impl<'r> Redactor<'r> {
    /// The defaults (`header:authorization`, `header:cookie`, `query:access_token`, `query:api_key`) and these.
    #[must_use]
    pub const fn new(rules: &'r [Redaction]) -> Self {
        Self { rules: [rules, &[]] }
    }

    /// What the first document hides, and this one.
    #[must_use]
    pub const fn and(self, rules: &'r [Redaction]) -> Self {
        Self { rules: [self.rules[0], rules] }
    }
}

impl Redactor<'_> {
    /// Whether the values of this field are hidden.
    #[must_use]
    pub fn hides(&self, field: &HeaderName) -> bool {
        let is_it = |rule: &Redaction| matches!(rule, Redaction::Header(name) if name == field);
        FIELDS.contains(field) || self.rules.into_iter().flatten().any(is_it)
    }

    /// Whether the values of this parameter, as it is written, are hidden.
    fn hides_parameter(&self, encoded: &[u8]) -> bool {
        let is_it = |name: &str| reads_as(encoded, name.as_bytes());
        let is_hidden = |rule: &Redaction| matches!(rule, Redaction::Query(name) if is_it(name));
        PARAMETERS.into_iter().any(is_it) || self.rules.into_iter().flatten().any(is_hidden)
    }

    /// The query with hidden values masked, to be shown; bytes that are not UTF-8 show as U+FFFD.
    #[must_use]
    pub fn query<'a>(&'a self, query: &'a [u8]) -> impl fmt::Display + 'a {
        fmt::from_fn(move |f| self.write_query(query, f))
    }

    /// A URL with its user and fragment masked, and the hidden values of its query.
    #[must_use]
    pub fn url<'a>(&'a self, url: &'a [u8]) -> impl fmt::Display + 'a {
        fmt::from_fn(move |f| {
            let user = user_of(url);
            if !user.is_empty() {
                write_lossy(&url[..user.start], f)?;
                f.write_str(MASK)?;
            }
            let rest = &url[user.end..];
            match rest.iter().position(|byte| matches!(byte, b'?' | b'#')) {
                Some(mark) if rest[mark] == b'?' => {
                    let (before, query) = rest.split_at(mark + 1);
                    write_lossy(before, f)?;
                    self.write_query(query, f)
                }
                _ => write_until_fragment(rest, f, write_lossy),
            }
        })
    }

    /// A request's path, or the whole target where it could not be read: masked like a [`url`](Self::url), and
    /// otherwise the same bytes.
    #[must_use]
    pub fn path<'a>(&self, path: &'a [u8]) -> Cow<'a, [u8]> {
        let user = user_of(path);
        let fragment = path.iter().position(|byte| *byte == b'#');
        if user.is_empty() && fragment.is_none() {
            return path.into();
        }
        let mask = |hidden: bool| if hidden { MASK.as_bytes() } else { b"" };
        let end = fragment.map_or(path.len(), |mark| mark + 1);
        let parts =
            [&path[..user.start], mask(!user.is_empty()), &path[user.end..end], mask(fragment.is_some())];
        parts.concat().into()
    }

    /// The field `Host`, in which only broken clients and attackers name a user.
    #[must_use]
    pub fn host<'a>(&self, host: &'a [u8]) -> Cow<'a, [u8]> {
        self.path(host)
    }

    fn write_query(&self, query: &[u8], f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write_until_fragment(query, f, |pairs, f| self.write_pairs(pairs, f))
    }

    fn write_pairs(&self, query: &[u8], f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, pair) in query.split(|byte| *byte == b'&').enumerate() {
            if index > 0 {
                f.write_str("&")?;
            }
            match self.hidden_from(pair) {
                Some(shown) => {
                    write_lossy(&pair[..shown], f)?;
                    f.write_str(MASK)?;
                }
                None => write_lossy(pair, f)?,
            }
        }
        Ok(())
    }

    /// Where a pair's hidden part begins. Some servers also separate at `;`, others let it be part of the value: so a
    /// name after `;` counts too, and all the rest of the pair is hidden.
    fn hidden_from(&self, pair: &[u8]) -> Option<usize> {
        let mut start = 0;
        for piece in pair.split(|byte| *byte == b';') {
            if let Some(equals) = piece.iter().position(|byte| *byte == b'=')
                && self.hides_parameter(&piece[..equals])
            {
                return Some(start + equals + 1);
            }
            start += piece.len() + 1;
        }
        None
    }
}

/// Where a URL names a user (RFC 3986 s3.2.1), also one without scheme: a target may be anything.
fn user_of(url: &[u8]) -> Range<usize> {
    let is_mark = |byte: &u8| matches!(byte, b'/' | b'?' | b'#');
    let first = url.iter().position(is_mark).unwrap_or(url.len());
    let start = match &url[..first] {
        [] | [.., b':'] if url[first..].starts_with(b"//") => first + 2,
        _ => 0,
    };
    let end = url[start..].iter().position(is_mark).map_or(url.len(), |length| start + length);
    let at = url[start..end].iter().rposition(|byte| *byte == b'@');
    at.filter(|length| *length > 0).map_or(0..0, |length| start..start + length)
}

/// Writes what is before a fragment, and masks that: `#access_token=` is one.
fn write_until_fragment(
    bytes: &[u8],
    f: &mut fmt::Formatter<'_>,
    write: impl FnOnce(&[u8], &mut fmt::Formatter<'_>) -> fmt::Result,
) -> fmt::Result {
    match bytes.iter().position(|byte| *byte == b'#') {
        Some(mark) => {
            write(&bytes[..mark], f)?;
            f.write_str("#")?;
            f.write_str(MASK)
        }
        None => write(bytes, f),
    }
}

/// Whether the encoded text decodes to exactly these bytes (`+` is a space, as in HTML forms).
fn reads_as(mut encoded: &[u8], mut plain: &[u8]) -> bool {
    while let [first, rest @ ..] = encoded {
        let (byte, rest) = match (first, rest) {
            (b'%', [high, low, rest @ ..]) => match (hex(*high), hex(*low)) {
                (Some(high), Some(low)) => (high << 4 | low, rest),
                _ => (b'%', &encoded[1..]),
            },
            (b'+', rest) => (b' ', rest),
            (other, rest) => (*other, rest),
        };
        match plain {
            [expected, others @ ..] if *expected == byte => plain = others,
            _ => return false,
        }
        encoded = rest;
    }
    plain.is_empty()
}

fn hex(digit: u8) -> Option<u8> {
    char::from(digit).to_digit(16).and_then(|value| u8::try_from(value).ok())
}

/// Writes bytes as text; what is not UTF-8 becomes U+FFFD.
pub(super) fn write_lossy(bytes: &[u8], f: &mut fmt::Formatter<'_>) -> fmt::Result {
    for chunk in bytes.utf8_chunks() {
        f.write_str(chunk.valid())?;
        if !chunk.invalid().is_empty() {
            f.write_str("\u{FFFD}")?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn masked(query: &str) -> String {
        let extra = ["query:token", "query:a b", "header:X-Secret"];
        let extra: [Redaction; 3] = extra.map(|rule| rule.parse().unwrap());
        Redactor::new(&extra).query(query.as_bytes()).to_string()
    }

    #[test]
    fn the_values_of_named_parameters_are_masked_and_the_rest_is_kept() {
        assert_eq!(masked("a=1&token=secret&b=2"), "a=1&token=***&b=2");
        assert_eq!(masked("token=x&token=y"), "token=***&token=***");
        assert_eq!(masked("token=a=b=c"), "token=***");
        assert_eq!(masked(""), "");
        assert_eq!(masked("token"), "token", "a parameter without a value has nothing to hide");
        assert_eq!(masked("&&=&token="), "&&=&token=***");
    }

    #[test]
    fn usual_credentials_are_masked_without_being_named() {
        assert_eq!(masked("access_token=x&api_key=y"), "access_token=***&api_key=***");
        let redactor = Redactor::new(&[]);
        assert!(redactor.hides(&http::header::AUTHORIZATION) && redactor.hides(&http::header::COOKIE));
    }

    #[test]
    fn of_two_documents_what_either_hides_is_hidden() {
        let rules = |text: &[&str]| text.iter().map(|rule| rule.parse().unwrap()).collect::<Vec<Redaction>>();
        let (one, other) = (rules(&["query:a", "header:X-A"]), rules(&["query:b", "header:X-B"]));
        let both = Redactor::new(&one).and(&other);
        assert_eq!(both.query(b"a=1&b=2&c=3&api_key=4").to_string(), "a=***&b=***&c=3&api_key=***");
        for (name, is_hidden) in [("x-a", true), ("x-b", true), ("x-c", false), ("cookie", true)] {
            assert_eq!(both.hides(&HeaderName::from_static(name)), is_hidden, "{name}");
        }
    }

    #[test]
    fn names_are_compared_decoded() {
        assert_eq!(masked("%74oken=secret"), "%74oken=***");
        assert_eq!(masked("t%6Fk%65n=secret"), "t%6Fk%65n=***");
        assert_eq!(masked("a+b=1&a%20b=2"), "a+b=***&a%20b=***");
        assert_eq!(masked("%2574oken=1"), "%2574oken=1", "decoded once only");
        assert_eq!(masked("token%=1&%zz=1&%7=1"), "token%=1&%zz=1&%7=1");
    }

    #[test]
    fn letter_case_and_whole_names_matter() {
        assert_eq!(masked("Token=1&xtoken=2&tokens=3&tok=4"), "Token=1&xtoken=2&tokens=3&tok=4");
    }

    #[test]
    fn a_semicolon_neither_hides_a_name_nor_ends_a_secret() {
        assert_eq!(masked("a=1;token=secret;b=2&c=3"), "a=1;token=***&c=3");
        assert_eq!(masked("token=se;cret"), "token=***");
    }

    #[test]
    fn bytes_that_are_not_utf_8_are_replaced() {
        let redactor = Redactor::new(&[]);
        assert_eq!(redactor.query(b"a=\xff\xfe&api_key=\xff").to_string(), "a=\u{FFFD}\u{FFFD}&api_key=***");
    }

    #[test]
    fn a_urls_query_is_masked_too() {
        let redactor = Redactor::new(&[]);
        assert_eq!(redactor.url(b"https://a/b?x=1&api_key=2").to_string(), "https://a/b?x=1&api_key=***");
        assert_eq!(redactor.url(b"https://a/api_key=2").to_string(), "https://a/api_key=2");
    }

    #[test]
    fn the_user_and_the_fragment_of_a_url_are_masked() {
        let shown = |url: &str| Redactor::new(&[]).url(url.as_bytes()).to_string();
        assert_eq!(shown("http://user:SECRET@h/p?x=1"), "http://***@h/p?x=1");
        assert_eq!(shown("http://u:SEC@RET@h"), "http://***@h");
        assert_eq!(shown("//SECRET@h/p"), "//***@h/p");
        assert_eq!(shown("u:SECRET@h:80"), "***@h:80");
        assert_eq!(shown("http://h/cb#access_token=SECRET"), "http://h/cb#***");
        assert_eq!(shown("http://h/cb?x=1#access_token=SECRET?y=2"), "http://h/cb?x=1#***");
        assert_eq!(shown("http://h#SECRET?x"), "http://h#***");
        for kept in [
            "http://h/a@b?c=d@e",
            "/a@b",
            "http://h",
            "",
            "/",
            "http:",
            "http://@h",
            "?a@b",
            "https://[::1]:1/",
        ] {
            assert_eq!(shown(kept), kept);
        }
        assert_eq!(masked("a=1#token=SECRET"), "a=1#***");
    }

    #[test]
    fn targets_and_hosts_are_masked_like_urls() {
        let redactor = Redactor::new(&[]);
        assert_eq!(&*redactor.path(b"http://user:SECRET@h/p"), b"http://***@h/p");
        assert_eq!(&*redactor.path(b"/p#SECRET"), b"/p#***");
        assert_eq!(&*redactor.path(b"u@\xff#u@"), b"***@\xff#***");
        assert!(matches!(redactor.path(b"/a@b/\xff"), Cow::Borrowed(b"/a@b/\xff")));
        assert_eq!(&*redactor.host(b"user:SECRET@h"), b"***@h");
        assert!(matches!(redactor.host(b"h:80"), Cow::Borrowed(b"h:80")));
    }

    #[test]
    fn selectors_are_parsed_strictly() {
        assert_eq!("header:X-Key".parse(), Ok(Redaction::Header(HeaderName::from_static("x-key"))));
        for bad in ["", "header:", "query:", "header:a b", "cookie:sid", "authorization", "Query:a"] {
            assert!(bad.parse::<Redaction>().is_err(), "{bad}");
        }
        let list: Vec<Redaction> = serde_json::from_str(r#"["query:api_key","header:X-Key"]"#).unwrap();
        assert_eq!(serde_json::to_string(&list).unwrap(), r#"["query:api_key","header:x-key"]"#);
    }
}
