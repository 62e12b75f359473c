//! The normalisation of request paths (RFC 3986 section 6.2.2 and 5.2.4).

use std::borrow::Cow;
use std::fmt::{self, Write as _};

use schemars::JsonSchema;
use serde::Deserialize;

/// How request paths are normalised before anything looks at them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct PathRules {
    /// What an escaped slash or any backslash is: an error, 400 (`reject`), a slash (`decode`), or a character like
    /// any other, which stays escaped (`keep`).
    pub encoded_slash: EncodedSlash,
    /// What happens to `.` and `..` segments: they are resolved (`normalize`), or are an error, 400 (`reject`).
    pub dot_segments: DotSegments,
    /// Several slashes in a row are one.
    pub merge_slashes: bool,
}

impl Default for PathRules {
    fn default() -> Self {
        Self {
            encoded_slash: EncodedSlash::Reject,
            dot_segments: DotSegments::Normalize,
            merge_slashes: true,
        }
    }
}

impl PathRules {
    /// These rules, for a path that values of requests were put into: none of them may lead to another place.
    #[must_use]
    pub fn of_values(self) -> Self {
        // A value of `..` means another place, and one with a slash that counts is more than a segment.
        let encoded_slash = match self.encoded_slash {
            EncodedSlash::Decode => EncodedSlash::Reject,
            kept_or_rejected => kept_or_rejected,
        };
        Self { encoded_slash, dot_segments: DotSegments::Reject, ..self }
    }
}

/// What an escaped slash (`%2F`) or any backslash is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, JsonSchema, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum EncodedSlash {
    /// An error: 400.
    Reject,
    /// A slash.
    Decode,
    /// A character like any other; stays escaped.
    Keep,
}

/// What happens to `.` and `..` segments.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, JsonSchema, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum DotSegments {
    /// They are resolved (RFC 3986 section 5.2.4).
    Normalize,
    /// An error: 400.
    Reject,
}

/// A normalised path, in two forms that differ only where a client wrote something unusual.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NormalPath {
    wire: Box<str>,
    matched: Option<Box<str>>,
}

impl NormalPath {
    /// What goes to the upstream: equivalent to what the client sent.
    #[must_use]
    pub fn wire(&self) -> &str {
        &self.wire
    }

    /// What every decision sees: without `;parameters`, and with every escape decoded that some
    /// server might decode, so that two spellings of one path are one path.
    #[must_use]
    pub fn matched(&self) -> &str {
        self.matched.as_deref().unwrap_or(&self.wire)
    }

    /// The first segment and the path without it, `/` where nothing is left; none for a path whose two forms begin
    /// differently.
    #[must_use]
    pub fn split_first(&self) -> Option<(&str, Self)> {
        let (first, wire) = split_first(&self.wire)?;
        let matched = match &self.matched {
            Some(matched) => Some(split_first(matched).filter(|(other, _)| *other == first)?.1.into()),
            None => None,
        };
        Some((first, Self { wire: wire.into(), matched }))
    }

    /// The segments of [`NormalPath::matched`]; `/` is one empty segment, `*` has none.
    pub fn segments(&self) -> impl Iterator<Item = &str> {
        self.matched().strip_prefix('/').into_iter().flat_map(|relative| relative.split('/'))
    }
}

fn split_first(path: &str) -> Option<(&str, &str)> {
    let (first, rest) = cut(path)?;
    Some((first, if rest.is_empty() { "/" } else { rest }))
}

/// The first segment, and what comes behind it: nothing, or what begins with a slash.
fn cut(path: &str) -> Option<(&str, &str)> {
    let relative = path.strip_prefix('/')?;
    let end = relative.find('/').unwrap_or(relative.len());
    Some(relative.split_at(end))
}

/// What a path that goes to the upstream has behind a prefix that decisions see it begin with: nothing, or what
/// begins with a slash; none for a path that begins otherwise. The prefix is as decisions see it, without a last slash.
pub(crate) fn behind<'a>(wire: &'a str, prefix: &str, merge_slashes: bool) -> Option<&'a str> {
    let plain = wire.strip_prefix(prefix).filter(|rest| rest.is_empty() || rest.starts_with('/'));
    if plain.is_some() || !wire.contains([';', '%']) {
        return plain;
    }
    let mut rest = wire;
    let mut wanted = prefix.split('/').skip(1).peekable();
    while let Some(name) = wanted.peek() {
        let (segment, behind) = cut(rest)?;
        rest = behind;
        let seen = segment.split(';').next().unwrap_or_default();
        if is_passed_over(seen, segment, merge_slashes, behind.is_empty()) {
            continue;
        }
        if decode_visible(seen) != *name {
            return None;
        }
        wanted.next();
    }
    Some(rest)
}

/// Why a path cannot be normalised; the request is answered 400.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PathError {
    /// It does not begin with `/`.
    NotAbsolute,
    /// A `%` without two hexadecimal digits.
    InvalidEscape,
    /// A control character, escaped or not.
    Control,
    /// An escaped slash or a backslash.
    EncodedSlash,
    /// A `.` or `..` segment, where those are refused.
    DotSegment,
    /// A dot segment with parameters, which servers read in different ways.
    AmbiguousDots,
}

impl fmt::Display for PathError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::NotAbsolute => "the path does not begin with a slash",
            Self::InvalidEscape => "the path has an invalid percent-escape",
            Self::Control => "the path has a control character",
            Self::EncodedSlash => "the path has an escaped slash or a backslash",
            Self::DotSegment => "the path has a dot segment",
            Self::AmbiguousDots => "the path has a dot segment with parameters",
        })
    }
}

impl std::error::Error for PathError {}

/// Normalises a path without its query. Idempotent on [`NormalPath::wire`].
pub fn normalize(path: &str, rules: &PathRules) -> Result<NormalPath, PathError> {
    if is_normal(path.as_bytes()) || path == "*" {
        return Ok(NormalPath { wire: path.into(), matched: None });
    }
    let relative = path.strip_prefix('/').ok_or(PathError::NotAbsolute)?;
    let decoded = decode_unreserved(relative.as_bytes(), rules.encoded_slash)?;
    let wire = resolve(&decoded, rules)?;
    let matched = matched_form(&wire, rules.merge_slashes).map(Box::from);
    Ok(NormalPath { wire: wire.into(), matched })
}

/// Whether nothing in the path can need work; true for nearly all requests.
fn is_normal(path: &[u8]) -> bool {
    let mut after_slash = false;
    for (at, byte) in path.iter().enumerate() {
        match byte {
            b'/' if after_slash => return false,
            b'.' if after_slash => return false,
            b'/' => after_slash = true,
            _ if at == 0 || !is_pchar(*byte) || *byte == b';' => return false,
            _ => after_slash = false,
        }
    }
    !path.is_empty()
}

fn is_unreserved(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"-._~".contains(&byte)
}

/// What may stand unescaped in a segment (RFC 3986 section 3.3).
fn is_pchar(byte: u8) -> bool {
    is_unreserved(byte) || b"!$&'()*+,;=:@".contains(&byte)
}

fn decode_unreserved(path: &[u8], slash: EncodedSlash) -> Result<String, PathError> {
    let mut out = String::with_capacity(path.len() + 8);
    let mut bytes = path.iter();
    while let Some(byte) = bytes.next() {
        let (value, escaped) = match byte {
            b'%' => (escape(bytes.next(), bytes.next())?, true),
            _ => (*byte, false),
        };
        match value {
            0..=0x1f | 0x7f => return Err(PathError::Control),
            b'/' if !escaped => out.push('/'),
            b'/' | b'\\' => match slash {
                EncodedSlash::Reject => return Err(PathError::EncodedSlash),
                EncodedSlash::Decode => out.push('/'),
                EncodedSlash::Keep => push_escape(&mut out, value),
            },
            _ if is_unreserved(value) || (!escaped && is_pchar(value)) => out.push(char::from(value)),
            _ => push_escape(&mut out, value),
        }
    }
    Ok(out)
}

fn escape(high: Option<&u8>, low: Option<&u8>) -> Result<u8, PathError> {
    let digit = |byte: Option<&u8>| byte.and_then(|byte| char::from(*byte).to_digit(16));
    let (high, low) = digit(high).zip(digit(low)).ok_or(PathError::InvalidEscape)?;
    u8::try_from(high * 16 + low).map_err(|_| PathError::InvalidEscape)
}

fn push_escape(out: &mut String, byte: u8) {
    write!(out, "%{byte:02X}").expect("writing to a String cannot fail");
}

/// Resolves dot segments and merges slashes.
fn resolve(relative: &str, rules: &PathRules) -> Result<String, PathError> {
    let mut kept: Vec<&str> = Vec::new();
    let mut segments = relative.split('/').peekable();
    while let Some(segment) = segments.next() {
        let last = segments.peek().is_none();
        let name = segment.split(';').next().unwrap_or_default();
        match name {
            "." | ".." if name.len() != segment.len() => return Err(PathError::AmbiguousDots),
            "." | ".." if rules.dot_segments == DotSegments::Reject => return Err(PathError::DotSegment),
            "." | ".." => {
                if name == ".." {
                    kept.pop();
                }
                if last {
                    kept.push("");
                }
            }
            _ if segment.is_empty() && !last && rules.merge_slashes => {}
            // A final slash after nothing but slashes is the root itself.
            _ => kept.push(segment),
        }
    }
    let mut wire = String::with_capacity(relative.len() + 1);
    for segment in &kept {
        wire.push('/');
        wire.push_str(segment);
    }
    Ok(if wire.is_empty() { "/".to_owned() } else { wire })
}

/// The form that decisions see, when it differs.
fn matched_form(wire: &str, merge: bool) -> Option<String> {
    if !wire.contains([';', '%']) {
        return None;
    }
    let mut out = String::with_capacity(wire.len());
    let mut segments = wire.strip_prefix('/').unwrap_or(wire).split('/').peekable();
    while let Some(segment) = segments.next() {
        let name = segment.split(';').next().unwrap_or_default();
        if is_passed_over(name, segment, merge, segments.peek().is_none()) {
            continue;
        }
        out.push('/');
        out.push_str(&decode_visible(name));
    }
    (out != wire).then_some(out)
}

/// Whether a segment is no more than its parameters, where slashes are merged: `/a/;x/b` is `/a//b` to those who drop
/// them.
fn is_passed_over(name: &str, segment: &str, merge: bool, last: bool) -> bool {
    merge && !last && name.is_empty() && !segment.is_empty()
}

/// Decodes escapes of visible ASCII that cannot change the structure of a path.
fn decode_visible(segment: &str) -> Cow<'_, str> {
    if !segment.contains('%') {
        return segment.into();
    }
    let mut out = String::with_capacity(segment.len());
    let mut rest = segment;
    while let Some(at) = rest.find('%') {
        out.push_str(&rest[..at]);
        let code = rest.get(at + 1..at + 3).unwrap_or_default();
        let value = u8::from_str_radix(code, 16).unwrap_or_default();
        if value.is_ascii_graphic() && !b"/\\%?#;".contains(&value) {
            out.push(char::from(value));
        } else {
            out.push_str(rest.get(at..at + 3).unwrap_or_default());
        }
        rest = rest.get(at + 3..).unwrap_or_default();
    }
    out.push_str(rest);
    out.into()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn wire(path: &str) -> String {
        normalize(path, &PathRules::default()).expect("a valid path").wire().to_owned()
    }

    fn matched(path: &str) -> String {
        normalize(path, &PathRules::default()).expect("a valid path").matched().to_owned()
    }

    fn error(path: &str) -> PathError {
        normalize(path, &PathRules::default()).expect_err("an invalid path")
    }

    #[test]
    fn ordinary_paths_stay_as_they_are() {
        for path in ["/", "/a", "/a/", "/a/b.c/d~e_f-g", "/a,b=c:@!$&'()*+", "*"] {
            assert_eq!(wire(path), path);
        }
    }

    #[test]
    fn escapes_are_normalised_as_rfc_3986_section_6_2_2_says() {
        assert_eq!(wire("/%7euser/%41%2d%5f"), "/~user/A-_");
        assert_eq!(wire("/caf%c3%a9"), "/caf%C3%A9");
        assert_eq!(wire("/café/a b\"<>"), "/caf%C3%A9/a%20b%22%3C%3E");
    }

    #[test]
    fn dot_segments_are_removed_however_they_are_spelt() {
        for path in ["/a/../b", "/a/%2e%2e/b", "/a/.%2E/b", "/a/./../b", "/../b", "/a//../b", "/%2e/b"] {
            assert_eq!(wire(path), "/b", "{path}");
        }
        assert_eq!(wire("/a/."), "/a/");
        assert_eq!(wire("/a/.."), "/");
        assert_eq!(wire("/a/b/.."), "/a/");
        assert_eq!(wire("/..."), "/...");
    }

    #[test]
    fn dot_segments_with_parameters_are_refused() {
        for path in ["/a/..;/b", "/a/.;x", "/%2e%2e;x/b"] {
            assert_eq!(error(path), PathError::AmbiguousDots, "{path}");
        }
    }

    #[test]
    fn slashes_are_merged_unless_told_otherwise() {
        assert_eq!(wire("//a///b//"), "/a/b/");
        let rules = PathRules { merge_slashes: false, ..PathRules::default() };
        assert_eq!(normalize("//a//b", &rules).expect("valid").wire(), "//a//b");
    }

    #[test]
    fn an_encoded_slash_is_refused_by_default() {
        for path in ["/a%2fb", "/a%5Cb", "/a\\b", "/..%2f..%2fetc", "/%2f"] {
            assert_eq!(error(path), PathError::EncodedSlash, "{path}");
        }
    }

    #[test]
    fn a_decoded_slash_takes_part_in_everything() {
        let rules = PathRules { encoded_slash: EncodedSlash::Decode, ..PathRules::default() };
        assert_eq!(normalize("/a%2f..%2F%2fb\\c", &rules).expect("valid").wire(), "/b/c");
    }

    #[test]
    fn a_kept_slash_stays_escaped() {
        let rules = PathRules { encoded_slash: EncodedSlash::Keep, ..PathRules::default() };
        let path = normalize("/a%2fb\\c", &rules).expect("valid");
        assert_eq!((path.wire(), path.matched()), ("/a%2Fb%5Cc", "/a%2Fb%5Cc"));
    }

    #[test]
    fn what_no_path_can_hold_is_refused() {
        assert_eq!(error("/%zz"), PathError::InvalidEscape);
        assert_eq!(error("/%4"), PathError::InvalidEscape);
        assert_eq!(error("/%00"), PathError::Control);
        assert_eq!(error("/a\u{7f}"), PathError::Control);
        assert_eq!(error("/%0d%0a"), PathError::Control);
        assert_eq!(error("a"), PathError::NotAbsolute);
        assert_eq!(error("\\a"), PathError::NotAbsolute);
        assert_eq!(error("%2fa"), PathError::NotAbsolute);
        assert_eq!(error(""), PathError::NotAbsolute);
    }

    #[test]
    fn escapes_are_decoded_once_only() {
        assert_eq!(wire("/%252e%252e/a"), "/%252e%252e/a");
        assert_eq!(matched("/%252e%252e/a"), "/%252e%252e/a");
    }

    #[test]
    fn decisions_do_not_see_parameters_or_spelling() {
        assert_eq!(matched("/admin;x=1/users;y"), "/admin/users");
        assert_eq!(wire("/admin;x=1/users;y"), "/admin;x=1/users;y");
        assert_eq!(matched("/a/;x/b"), "/a/b");
        assert_eq!(matched("/%24x/%3D"), "/$x/=");
        assert_eq!(wire("/%24x"), "/%24x");
        assert_eq!(matched("/a%3Bb"), "/a%3Bb");
    }

    #[test]
    fn dot_segments_can_be_refused() {
        let rules = PathRules { dot_segments: DotSegments::Reject, ..PathRules::default() };
        assert_eq!(normalize("/a/%2e%2e/b", &rules), Err(PathError::DotSegment));
    }

    fn rules() -> impl Strategy<Value = PathRules> {
        let slash =
            prop_oneof![Just(EncodedSlash::Reject), Just(EncodedSlash::Decode), Just(EncodedSlash::Keep)];
        let dots = prop_oneof![Just(DotSegments::Normalize), Just(DotSegments::Reject)];
        (slash, dots, any::<bool>()).prop_map(|(encoded_slash, dot_segments, merge_slashes)| PathRules {
            encoded_slash,
            dot_segments,
            merge_slashes,
        })
    }

    proptest! {
        #[test]
        fn normalising_twice_changes_nothing(path in "/([a./;%\\\\ é]|%2e|%2f|%5c|%25|%3b|%24|;x){0,12}", rules in rules()) {
            if let Ok(once) = normalize(&path, &rules) {
                prop_assert_eq!(normalize(once.wire(), &rules), Ok(once));
            }
        }

        #[test]
        fn no_path_panics(path in any::<String>(), rules in rules()) {
            let _ = normalize(&path, &rules);
        }

        #[test]
        fn nothing_decided_on_holds_a_dot_segment(path in "/([a./;%]|%2e|%2f|%5c|;x){0,12}") {
            if let Ok(path) = normalize(&path, &PathRules::default()) {
                prop_assert!(path.segments().all(|segment| segment != "." && segment != ".."));
            }
        }
    }
}
