//! Path patterns: `/users/{id}`, `/static/*`, `~^/v[0-9]+/`.

use std::borrow::Cow;
use std::fmt;
use std::sync::Arc;

use regex::Regex;
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Deserializer, de};

use super::normalize::{DotSegments, EncodedSlash, NormalPath, PathRules, normalize};

/// A pattern of paths, normalised like the paths it is matched against.
#[derive(Debug, Clone)]
pub struct PathPattern {
    written: Arc<str>,
    kind: Kind,
}

#[derive(Debug, Clone)]
enum Kind {
    Segments { segments: Vec<Segment>, rest: bool },
    Regex(Regex),
}

/// One segment of a pattern.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Segment {
    /// Exactly this text.
    Literal(Box<str>),
    /// Any one segment that is not empty, captured under this name.
    Parameter(Arc<str>),
}

/// What a pattern captured, decoded once.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Captures(Vec<(Arc<str>, String)>);

impl Captures {
    /// The value captured under this name.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<&str> {
        self.0.iter().find(|(captured, _)| **captured == *name).map(|(_, value)| value.as_str())
    }

    /// Names and values, in the pattern's order.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        self.0.iter().map(|(name, value)| (&**name, value.as_str()))
    }
}

/// Segments that a pattern can have, which bounds how deep the router descends.
const MAX_SEGMENTS: usize = 128;

impl PathPattern {
    /// Parses a pattern of paths that are normalised by the default rules; the message says what is wrong and how to
    /// mend it.
    pub fn parse(text: &str) -> Result<Self, String> {
        Self::parse_under(&PathRules::default(), text)
    }

    fn parse_under(rules: &PathRules, text: &str) -> Result<Self, String> {
        let kind = match text.strip_prefix('~') {
            Some(regex) => Kind::Regex(anchored(regex)?),
            // No request has dot segments left, whether they are resolved or refused.
            None => segments(text, &PathRules { dot_segments: DotSegments::Normalize, ..*rules })?,
        };
        Ok(Self { written: text.into(), kind })
    }

    /// Normalises patterns by the rules that paths are; the places of those that no path can match then, and why.
    pub fn settle(patterns: &mut [Self], rules: &PathRules) -> Vec<(usize, String)> {
        let mut wrong = Vec::new();
        for (at, pattern) in patterns.iter_mut().enumerate() {
            let depends = pattern.written.contains("//") || pattern.written.contains(['%', '\\']);
            if !depends || pattern.regex().is_some() {
                continue;
            }
            match Self::parse_under(rules, &pattern.written) {
                Ok(settled) => *pattern = settled,
                Err(why) => wrong.push((at, why)),
            }
        }
        wrong
    }

    /// What the pattern captures of a path that it matches.
    #[must_use]
    pub fn matches(&self, path: &NormalPath) -> Option<Captures> {
        match &self.kind {
            Kind::Regex(regex) => regex.captures(path.matched()).map(|found| named(regex, &found)),
            Kind::Segments { segments, rest } => {
                let mut given = path.segments();
                for segment in segments {
                    let value = given.next()?;
                    let fits = match segment {
                        Segment::Literal(text) => **text == *value,
                        Segment::Parameter(_) => !value.is_empty(),
                    };
                    if !fits {
                        return None;
                    }
                }
                (*rest || given.next().is_none()).then(|| self.capture(path))
            }
        }
    }

    /// Whether it may capture something.
    #[must_use]
    pub fn captures(&self) -> bool {
        match &self.kind {
            Kind::Regex(regex) => regex.captures_len() > 1,
            Kind::Segments { segments, .. } => {
                segments.iter().any(|segment| matches!(segment, Segment::Parameter(_)))
            }
        }
    }

    /// The names under which it captures.
    #[must_use]
    pub fn names(&self) -> Vec<&str> {
        match &self.kind {
            Kind::Regex(regex) => regex.capture_names().flatten().collect(),
            Kind::Segments { segments, .. } => {
                let names = segments.iter().filter_map(|segment| match segment {
                    Segment::Parameter(name) => Some(&**name),
                    Segment::Literal(_) => None,
                });
                names.collect()
            }
        }
    }

    /// The captures of a path that is known to match.
    #[must_use]
    pub fn capture(&self, path: &NormalPath) -> Captures {
        match &self.kind {
            Kind::Regex(regex) => {
                regex.captures(path.matched()).map_or_else(Captures::default, |found| named(regex, &found))
            }
            Kind::Segments { segments, .. } => {
                if !self.captures() {
                    return Captures::default();
                }
                let values =
                    segments.iter().zip(path.segments()).filter_map(|(segment, value)| match segment {
                        Segment::Parameter(name) => Some((name.clone(), decode_segment(value).into_owned())),
                        Segment::Literal(_) => None,
                    });
                Captures(values.collect())
            }
        }
    }

    /// The segments, and whether anything below them matches too; `None` for regular expressions.
    #[must_use]
    pub fn segments(&self) -> Option<(&[Segment], bool)> {
        match &self.kind {
            Kind::Segments { segments, rest } => Some((segments, *rest)),
            Kind::Regex(_) => None,
        }
    }

    /// The regular expression, anchored; `None` for segments.
    #[must_use]
    pub fn regex(&self) -> Option<&Regex> {
        match &self.kind {
            Kind::Regex(regex) => Some(regex),
            Kind::Segments { .. } => None,
        }
    }
}

fn anchored(regex: &str) -> Result<Regex, String> {
    let build = |text: &str| {
        crate::values::regex(text).map_err(|error| {
            let error = error.to_string();
            format!("the regular expression is not valid: {}", error.lines().last().unwrap_or_default())
        })
    };
    // First alone: `a)|(b` must not close the group that anchors it.
    build(regex)?;
    build(&format!("^(?:{regex})"))
}

fn named(regex: &Regex, found: &regex::Captures<'_>) -> Captures {
    let values = regex.capture_names().flatten().filter_map(|name| {
        let value = found.name(name)?.as_str();
        Some((Arc::from(name), decode_segment(value).into_owned()))
    });
    Captures(values.collect())
}

fn segments(text: &str, rules: &PathRules) -> Result<Kind, String> {
    let Some(relative) = text.strip_prefix('/') else {
        return Err("a path pattern begins with `/`, or with `~` for a regular expression".to_owned());
    };
    let decoded = slashes(relative, rules);
    let (relative, rest) = match decoded.strip_suffix('*') {
        Some("") => return Ok(Kind::Segments { segments: Vec::new(), rest: true }),
        Some(before) => {
            (before.strip_suffix('/').ok_or("`*` stands for whole segments: write `/*` at the end")?, true)
        }
        None => (&*decoded, false),
    };
    let mut segments = Vec::with_capacity(relative.split('/').count());
    let mut written = relative.split('/').peekable();
    while let Some(segment) = written.next() {
        let last = written.peek().is_none() && !rest;
        add_segment(&mut segments, segment, last, rules)?;
    }
    if segments.len() > MAX_SEGMENTS {
        return Err(format!("a path pattern has at most {MAX_SEGMENTS} segments"));
    }
    segments.shrink_to_fit();
    Ok(Kind::Segments { segments, rest })
}

/// The text with a slash for each escaped one and each backslash, where those are slashes: before it is taken apart.
fn slashes<'a>(text: &'a str, rules: &PathRules) -> Cow<'a, str> {
    if rules.encoded_slash != EncodedSlash::Decode || !text.contains(['%', '\\']) {
        return text.into();
    }
    let spellings = ["%2f", "%2F", "%5c", "%5C", "\\"];
    spellings.iter().fold(text.to_owned(), |text, slash| text.replace(slash, "/")).into()
}

/// Adds a segment as requests are normalised: empty ones merged if slashes are, dot segments resolved.
fn add_segment(
    segments: &mut Vec<Segment>,
    written: &str,
    last: bool,
    rules: &PathRules,
) -> Result<(), String> {
    if let Some(name) = parameter(written, segments)? {
        segments.push(Segment::Parameter(name.into()));
        return Ok(());
    }
    let normal = normalize(&format!("/{written}"), rules).map_err(|error| error.to_string())?;
    let literal = normal.matched().strip_prefix('/').unwrap_or_default();
    if !literal.is_empty() {
        segments.push(Segment::Literal(literal.into()));
        return Ok(());
    }
    if decode_segment(written) == ".." {
        segments.pop();
    }
    if last || (written.is_empty() && !rules.merge_slashes) {
        segments.push(Segment::Literal("".into()));
    }
    Ok(())
}

/// The name of a parameter; `None` for a literal segment.
fn parameter<'a>(written: &'a str, before: &[Segment]) -> Result<Option<&'a str>, String> {
    if let Some(name) = written.strip_prefix('{').and_then(|rest| rest.strip_suffix('}')) {
        let valid = !name.is_empty() && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_');
        if !valid {
            return Err("a parameter's name is made of letters, digits and `_`, as in `{user_id}`".to_owned());
        }
        if before.contains(&Segment::Parameter(name.into())) {
            return Err(format!("the parameter `{{{name}}}` is there twice"));
        }
        return Ok(Some(name));
    }
    if written.contains(['{', '}']) {
        return Err("a parameter takes a whole segment, as in `/users/{id}`".to_owned());
    }
    if written.contains('*') {
        return Err("`*` can only stand alone at the end, as in `/users/*`".to_owned());
    }
    if written.contains([';', '?', '#']) {
        return Err(
            "a path pattern has no `;`, `?` or `#`; parameters are ignored, queries have `query:`".to_owned()
        );
    }
    Ok(None)
}

/// A segment percent-decoded once; what is not UTF-8 becomes U+FFFD.
#[must_use]
pub fn decode_segment(segment: &str) -> Cow<'_, str> {
    match decode_bytes(segment) {
        Cow::Borrowed(_) => segment.into(),
        Cow::Owned(bytes) => String::from_utf8(bytes)
            .unwrap_or_else(|error| String::from_utf8_lossy(error.as_bytes()).into_owned())
            .into(),
    }
}

/// As [`decode_segment`], whatever bytes that gives.
pub(crate) fn decode_bytes(segment: &str) -> Cow<'_, [u8]> {
    let mut bytes = segment.as_bytes();
    if !segment.contains('%') {
        return bytes.into();
    }
    let mut out = Vec::with_capacity(segment.len());
    while let Some((first, rest)) = bytes.split_first() {
        let digits = rest.get(..2).and_then(|digits| std::str::from_utf8(digits).ok());
        match digits.filter(|_| *first == b'%').and_then(|digits| u8::from_str_radix(digits, 16).ok()) {
            Some(value) => {
                out.push(value);
                bytes = &rest[2..];
            }
            None => {
                out.push(*first);
                bytes = rest;
            }
        }
    }
    out.into()
}

impl PartialEq for PathPattern {
    fn eq(&self, other: &Self) -> bool {
        self.written == other.written
    }
}

impl Eq for PathPattern {}

impl fmt::Display for PathPattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.written)
    }
}

impl<'de> Deserialize<'de> for PathPattern {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        // Whether there are escaped slashes is up to the rules of the document.
        let rules = PathRules { encoded_slash: EncodedSlash::Keep, ..PathRules::default() };
        Self::parse_under(&rules, &text).map_err(de::Error::custom)
    }
}

impl JsonSchema for PathPattern {
    fn schema_name() -> Cow<'static, str> {
        "PathPattern".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "type": "string",
            "pattern": "^[/~]",
            "description": "`/a/b` exactly; `{name}` one segment; `/*` at the end everything below; `~` a regular expression.",
            "examples": ["/users/{id}", "/static/*", "~^/v[0-9]+/"],
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn captures(pattern: &str, path: &str) -> Option<Captures> {
        let path = normalize(path, &PathRules::default()).expect("a valid path");
        PathPattern::parse(pattern).expect("a valid pattern").matches(&path)
    }

    fn matches(pattern: &str, path: &str) -> bool {
        captures(pattern, path).is_some()
    }

    #[test]
    fn the_final_slash_is_significant() {
        assert!(matches("/a", "/a") && matches("/a/", "/a/") && matches("/", "/"));
        assert!(!matches("/a", "/a/") && !matches("/a/", "/a") && !matches("/a", "/A"));
    }

    #[test]
    fn a_star_is_everything_below_on_a_segment_boundary() {
        for path in ["/a", "/a/", "/a/b", "/a/b/c"] {
            assert!(matches("/a/*", path), "{path}");
        }
        assert!(!matches("/a/*", "/ab"));
        assert!(matches("/*", "/") && matches("/*", "/x/y"));
        assert!(
            matches("/u/{id}/*", "/u/1") && matches("/u/{id}/*", "/u/1/x") && !matches("/u/{id}/*", "/u")
        );
    }

    #[test]
    fn a_parameter_is_one_segment_decoded_once() {
        assert_eq!(captures("/u/{id}", "/u/a%20b%2525").expect("a match").get("id"), Some("a b%25"));
        assert!(!matches("/u/{id}", "/u/") && !matches("/u/{id}", "/u/1/2"));
    }

    #[test]
    fn a_regular_expression_is_matched_from_the_start() {
        assert!(matches("~/v[0-9]+/", "/v12/x") && matches("~^/v[0-9]+/", "/v1/"));
        assert!(!matches("~/v[0-9]+/", "/x/v1/"));
        assert!(!matches("~/a|/b", "/x/b"));
        assert_eq!(captures("~/(?P<lang>[a-z]{2})/", "/de/x").expect("a match").get("lang"), Some("de"));
    }

    #[test]
    fn patterns_are_normalised_like_requests() {
        assert!(matches("/caf%C3%A9/%41", "/café/A") && matches("/a b", "/a%20b"));
    }

    #[test]
    fn other_spellings_are_errors() {
        for bad in
            ["a", "", "/a{id}", "/{id}.json", "/{}", "/{a}/{a}", "/a*", "/*/a", "/%2f", "/a;x", "~(", "/a?b"]
        {
            assert!(PathPattern::parse(bad).is_err(), "{bad}");
        }
    }
}
