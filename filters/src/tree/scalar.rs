//! Scalars and the core schema of YAML 1.2.2 (s10.3.2).

use std::ops::Range;

/// A scalar as written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Scalar {
    text: Box<str>,
    quoted: bool,
    substituted: bool,
    unresolved: bool,
    /// Few scalars have any, so that it takes no room in the others.
    literal: Option<Box<Literal>>,
}

/// Parts of a text.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Literal(Box<[Range<usize>]>);

/// What the core schema makes of a scalar.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Resolved {
    /// `null`, `~` or empty.
    Null,
    /// `true` or `false`; `yes`, `no`, `on` and `off` are strings.
    Bool(bool),
    /// A whole number of zero or more.
    Unsigned(u64),
    /// A whole number below zero.
    Signed(i64),
    /// Any other number, whole ones beyond 64 bits included.
    Float(f64),
    /// Text.
    Str,
}

impl Scalar {
    /// A scalar written without quotes.
    pub fn plain(text: impl Into<Box<str>>) -> Scalar {
        Scalar { text: text.into(), quoted: false, substituted: false, unresolved: false, literal: None }
    }

    /// A scalar in quotes or a block scalar: always a string.
    pub fn quoted(text: impl Into<Box<str>>) -> Scalar {
        Scalar { text: text.into(), quoted: true, substituted: false, unresolved: false, literal: None }
    }

    /// Returns this scalar with the text that its references stand for.
    ///
    /// Such a scalar is a string, a number or a boolean, whichever is asked for, and its text is
    /// never quoted in a message.
    pub fn substitute(&self, text: impl Into<Box<str>>) -> Scalar {
        let text = text.into();
        Scalar { text, quoted: self.quoted, substituted: true, unresolved: false, literal: None }
    }

    /// Returns what takes the place of this scalar where a reference in it could not be resolved.
    ///
    /// It is nothing that could be asked for. Who resolves references tells that, and reading it again does not. No
    /// [`Frozen`](super::Frozen) tree has one.
    #[must_use]
    pub fn unresolved(&self) -> Scalar {
        Scalar { unresolved: true, ..self.substitute("") }
    }

    /// Marks these parts of its text, in bytes and in order, as none that a template reads: what references stand for
    /// is never read again.
    #[must_use]
    pub fn with_literal(self, parts: Vec<Range<usize>>) -> Scalar {
        let literal = (!parts.is_empty()).then(|| Box::new(Literal(parts.into())));
        Scalar { literal, ..self }
    }

    /// The parts of its text that no template reads.
    pub fn literal(&self) -> &[Range<usize>] {
        match &self.literal {
            Some(literal) => &literal.0,
            None => &[],
        }
    }

    /// The text.
    pub fn text(&self) -> &str {
        &self.text
    }

    /// Whether it was in quotes or a block scalar.
    pub fn is_quoted(&self) -> bool {
        self.quoted
    }

    /// Whether the text came through a reference such as `${env:NAME}`.
    pub fn is_substituted(&self) -> bool {
        self.substituted
    }

    /// Whether nobody knows its text, as a reference in it could not be resolved.
    pub fn is_unresolved(&self) -> bool {
        self.unresolved
    }

    /// What it is without knowing what is wanted; quoted and substituted text is a string.
    pub fn resolve(&self) -> Resolved {
        if self.quoted || self.substituted { Resolved::Str } else { resolve(&self.text) }
    }
}

/// What plain text is by the core schema.
///
/// `010` is ten, as the schema says; hexadecimal and octal are `0x1F` and `0o17`.
pub(super) fn resolve(text: &str) -> Resolved {
    match text.as_bytes() {
        [] | b"~" | b"null" | b"Null" | b"NULL" => Resolved::Null,
        b"true" | b"True" | b"TRUE" => Resolved::Bool(true),
        b"false" | b"False" | b"FALSE" => Resolved::Bool(false),
        [b'0'..=b'9' | b'+' | b'-' | b'.', ..] => number(text).unwrap_or(Resolved::Str),
        _ => Resolved::Str,
    }
}

fn number(text: &str) -> Option<Resolved> {
    if let Some(digits) = text.strip_prefix("0x") {
        return radix(digits, 16);
    }
    if let Some(digits) = text.strip_prefix("0o") {
        return radix(digits, 8);
    }
    let (negative, digits) = match text.as_bytes()[0] {
        b'-' => (true, &text[1..]),
        b'+' => (false, &text[1..]),
        _ => (false, text),
    };
    match digits {
        ".inf" | ".Inf" | ".INF" if negative => return Some(Resolved::Float(f64::NEG_INFINITY)),
        ".inf" | ".Inf" | ".INF" => return Some(Resolved::Float(f64::INFINITY)),
        _ => {}
    }
    if matches!(text, ".nan" | ".NaN" | ".NAN") {
        return Some(Resolved::Float(f64::NAN));
    }
    if !digits.is_empty() && digits.bytes().all(|b| b.is_ascii_digit()) {
        return whole(text, negative);
    }
    is_float(digits).then(|| text.parse().ok().map(Resolved::Float)).flatten()
}

fn whole(text: &str, negative: bool) -> Option<Resolved> {
    let exact = match text.parse::<i64>() {
        Ok(value) if value < 0 => Some(Resolved::Signed(value)),
        Ok(value) => Some(Resolved::Unsigned(value.unsigned_abs())),
        Err(_) if negative => None,
        Err(_) => text.parse::<u64>().ok().map(Resolved::Unsigned),
    };
    exact.or_else(|| text.parse().ok().map(Resolved::Float))
}

fn radix(digits: &str, radix: u32) -> Option<Resolved> {
    // `from_str_radix` takes a sign, the schema does not.
    let signed = digits.starts_with(['+', '-']);
    if signed { None } else { u64::from_str_radix(digits, radix).ok().map(Resolved::Unsigned) }
}

/// `( \. [0-9]+ | [0-9]+ ( \. [0-9]* )? ) ( [eE] [-+]? [0-9]+ )?`
fn is_float(text: &str) -> bool {
    let (mantissa, exponent) = match text.find(['e', 'E']) {
        Some(at) => (&text[..at], Some(&text[at + 1..])),
        None => (text, None),
    };
    let is_digits = |s: &str| s.bytes().all(|b| b.is_ascii_digit());
    let (before, after) = mantissa.split_once('.').unwrap_or((mantissa, ""));
    let exponent = exponent.map(|e| e.strip_prefix(['+', '-']).unwrap_or(e));
    is_digits(before)
        && is_digits(after)
        && !(before.is_empty() && after.is_empty())
        && exponent.is_none_or(|e| !e.is_empty() && is_digits(e))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plain_text_resolves_by_the_core_schema() {
        let cases = [
            ("", Resolved::Null),
            ("~", Resolved::Null),
            ("Null", Resolved::Null),
            ("nULL", Resolved::Str),
            ("True", Resolved::Bool(true)),
            ("yes", Resolved::Str),
            ("off", Resolved::Str),
            ("0", Resolved::Unsigned(0)),
            ("+7", Resolved::Unsigned(7)),
            ("-0", Resolved::Unsigned(0)),
            ("-19", Resolved::Signed(-19)),
            ("010", Resolved::Unsigned(10)),
            ("0o14", Resolved::Unsigned(12)),
            ("0x3A", Resolved::Unsigned(58)),
            ("0x+3", Resolved::Str),
            ("-0x3A", Resolved::Str),
            ("18446744073709551615", Resolved::Unsigned(u64::MAX)),
            ("-9223372036854775808", Resolved::Signed(i64::MIN)),
            ("18446744073709551616", Resolved::Float(18_446_744_073_709_551_616.0)),
            ("1e3", Resolved::Float(1e3)),
            (".5", Resolved::Float(0.5)),
            ("0.", Resolved::Float(0.0)),
            ("-2E+05", Resolved::Float(-2e5)),
            ("-.inf", Resolved::Float(f64::NEG_INFINITY)),
            ("+.INF", Resolved::Float(f64::INFINITY)),
            ("inf", Resolved::Str),
            ("-.nan", Resolved::Str),
            (".", Resolved::Str),
            ("-", Resolved::Str),
            ("e5", Resolved::Str),
            ("1e", Resolved::Str),
            ("1.2.3", Resolved::Str),
            ("1_000", Resolved::Str),
            ("12:30", Resolved::Str),
        ];
        for (text, expected) in cases {
            assert_eq!(Scalar::plain(text).resolve(), expected, "{text}");
        }
        assert!(matches!(resolve(".NaN"), Resolved::Float(f) if f.is_nan()));
    }

    #[test]
    fn quoted_and_substituted_text_is_a_string() {
        assert_eq!(Scalar::quoted("8080").resolve(), Resolved::Str);
        assert_eq!(Scalar::plain("${env:PORT}").substitute("8080").resolve(), Resolved::Str);
    }
}
