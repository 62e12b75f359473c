//! `Vary`: which requests a stored answer is for (RFC 9111 s4.1).

use http::HeaderMap;
use http::header::{
    ACCEPT, ACCEPT_CHARSET, ACCEPT_ENCODING, ACCEPT_LANGUAGE, AUTHORIZATION, COOKIE, FROM, HOST, HeaderName,
    HeaderValue, ORIGIN, REFERER, USER_AGENT, VARY,
};

/// Most fields that an answer may vary by: with more, every request is another.
pub const MAX_NAMES: usize = 16;
/// Fields that are no lists, in which a comma or a blank is one like any other character.
const NO_LISTS: [HeaderName; 7] = [AUTHORIZATION, COOKIE, FROM, HOST, ORIGIN, REFERER, USER_AGENT];

/// What an answer varies by.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Vary {
    /// These fields: sorted, each once.
    By(Vec<HeaderName>),
    /// Something that is not known of a request.
    Any,
    /// More fields than may be.
    TooMany,
}

impl Vary {
    /// What an answer says. What is no field's name counts as `*`: nobody knows what it is.
    #[must_use]
    pub fn of(response: &HeaderMap) -> Self {
        let mut names: Vec<HeaderName> = Vec::new();
        let lines = response.get_all(VARY).iter();
        let listed =
            lines.flat_map(|line| line.as_bytes().split(|byte| *byte == b',')).map(<[u8]>::trim_ascii);
        for name in listed.filter(|name| !name.is_empty()) {
            match HeaderName::from_bytes(name) {
                Ok(name) if name != "*" => names.push(name),
                _ => return Self::Any,
            }
        }
        Self::sorted(names)
    }

    fn sorted(mut names: Vec<HeaderName>) -> Self {
        names.sort_unstable_by(|one, two| one.as_str().cmp(two.as_str()));
        names.dedup();
        if names.len() > MAX_NAMES { Self::TooMany } else { Self::By(names) }
    }

    /// The same, and by these fields too.
    #[must_use]
    pub fn and(self, more: &[HeaderName]) -> Self {
        match self {
            Self::By(mut names) if !more.is_empty() => {
                names.extend_from_slice(more);
                Self::sorted(names)
            }
            other => other,
        }
    }
}

/// What a request has of these fields, as bytes: each name with its value, or none, each with its length before
/// it. Two requests for which they are the same get the same answer.
#[must_use]
pub fn variant(names: &[HeaderName], request: &HeaderMap) -> Vec<u8> {
    let mut out = Vec::new();
    for name in names {
        put(name.as_str().as_bytes(), &mut out);
        match normal(name, request) {
            Some(value) => {
                out.push(1);
                put(&value, &mut out);
            }
            None => out.push(0),
        }
    }
    out
}

/// Whether a request has the fields as an answer's variant tells.
#[must_use]
pub fn matches(variant: &[u8], request: &HeaderMap) -> bool {
    let mut rest = variant;
    while !rest.is_empty() {
        let Some(name) = take(&mut rest).and_then(|name| HeaderName::from_bytes(name).ok()) else {
            return false;
        };
        let Some((there, after)) = rest.split_first() else { return false };
        rest = after;
        let stored = if *there == 1 { take(&mut rest) } else { None };
        let asked = normal(&name, request);
        if asked.as_deref() != stored {
            return false;
        }
    }
    true
}

/// The names that a variant is made of.
#[must_use]
pub fn names(variant: &[u8]) -> Vec<HeaderName> {
    let (mut rest, mut names) = (variant, Vec::new());
    while let Some(name) = take(&mut rest) {
        names.extend(HeaderName::from_bytes(name).ok());
        match rest.split_first() {
            Some((1, after)) => {
                rest = after;
                take(&mut rest);
            }
            Some((_, after)) => rest = after,
            None => break,
        }
    }
    names
}

fn put(part: &[u8], out: &mut Vec<u8>) {
    let length = u32::try_from(part.len()).unwrap_or(u32::MAX);
    out.extend_from_slice(&length.to_be_bytes());
    out.extend_from_slice(part);
}

fn take<'a>(rest: &mut &'a [u8]) -> Option<&'a [u8]> {
    let (length, after) = rest.split_first_chunk::<4>()?;
    let (part, after) = after.split_at_checked(u32::from_be_bytes(*length) as usize)?;
    *rest = after;
    Some(part)
}

/// A field of a request without what makes no difference: how it is cut into lines and spaced; of lists with
/// weights, the order and the case too.
fn normal(name: &HeaderName, request: &HeaderMap) -> Option<Vec<u8>> {
    let mut lines = request.get_all(name).iter().map(HeaderValue::as_bytes).peekable();
    lines.peek()?;
    let weighted = [ACCEPT, ACCEPT_CHARSET, ACCEPT_ENCODING, ACCEPT_LANGUAGE].contains(name);
    // A comma may stand inside quotes, where what is around it counts.
    let mut lines: Vec<&[u8]> = lines.collect();
    if NO_LISTS.contains(name) || lines.iter().any(|line| line.contains(&b'"')) {
        return Some(lines.join(&b", "[..]));
    }
    if lines.len() == 1 && !weighted && !lines[0].contains(&b',') {
        return Some(lines.remove(0).trim_ascii().to_vec());
    }
    let elements = lines.iter().flat_map(|line| line.split(|byte| *byte == b',')).map(<[u8]>::trim_ascii);
    let mut elements: Vec<Vec<u8>> =
        elements.filter(|element| !element.is_empty()).map(|element| plain(element, weighted)).collect();
    if weighted {
        elements.sort_unstable();
        elements.dedup();
    }
    Some(elements.join(&b","[..]))
}

/// An element without blanks around its parameters, in lower case if it is one with a weight.
fn plain(element: &[u8], weighted: bool) -> Vec<u8> {
    if !weighted {
        return element.to_vec();
    }
    let blank = |byte: &&u8| !matches!(byte, b' ' | b'\t');
    element.iter().filter(blank).map(u8::to_ascii_lowercase).collect()
}
