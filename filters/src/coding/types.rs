//! Media types that are worth encoding.

use http::HeaderMap;
use http::header::CONTENT_TYPE;

use crate::filter::BuildError;

/// Text of all kinds, and binary formats that are not compressed themselves.
pub const DEFAULT_TYPES: [&str; 14] = [
    "text/*",
    "application/json",
    "application/*+json",
    "application/xml",
    "application/*+xml",
    "application/javascript",
    "application/x-javascript",
    "application/x-ndjson",
    "application/yaml",
    "application/wasm",
    "application/vnd.ms-fontobject",
    "font/otf",
    "font/ttf",
    "image/svg+xml",
];

/// What only grows when it is encoded, although all of its family may be listed.
const COMPRESSED: [&str; 11] = [
    "application/gzip",
    "application/zip",
    "application/zstd",
    "application/x-7z-compressed",
    "application/x-bzip2",
    "application/x-gzip",
    "application/x-rar-compressed",
    "application/x-xz",
    "application/vnd.rar",
    "font/woff",
    "font/woff2",
];

/// Images that are not compressed themselves.
const PLAIN_IMAGES: [&str; 4] = ["image/svg+xml", "image/bmp", "image/x-icon", "image/vnd.microsoft.icon"];

/// A set of media types (RFC 9110 s8.3.1), in lower case.
pub struct Types(Vec<Pattern>);

enum Pattern {
    Exact(String),
    /// `text/` of `text/*`.
    Family(String),
    /// `application/` and `+json` of `application/*+json`.
    Suffix(String, String),
}

impl Types {
    /// Parses what was written as this option.
    ///
    /// # Errors
    /// No entry, one that is no type, or one that is never encoded.
    pub fn parse(option: &str, written: &[String]) -> Result<Self, BuildError> {
        if written.is_empty() {
            return Err(BuildError::at(
                option,
                "no type is listed, so nothing would be done; remove the filter, or add one",
            ));
        }
        let patterns = written.iter().enumerate().map(|(at, text)| {
            pattern(&text.to_ascii_lowercase()).map_err(|message| {
                let mut error = BuildError::at(option, message);
                error.path.push(at);
                error
            })
        });
        Ok(Self(patterns.collect::<Result<_, _>>()?))
    }

    /// Whether the message has a type of this set, and may be encoded at all.
    #[must_use]
    pub fn hold(&self, headers: &HeaderMap) -> bool {
        let mut lines = headers.get_all(CONTENT_TYPE).iter();
        let Some(line) = lines.next().filter(|_| lines.next().is_none()) else { return false };
        let Ok(line) = line.to_str() else { return false };
        let essence = line.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
        never(&essence).is_none() && self.0.iter().any(|pattern| pattern.matches(&essence))
    }
}

impl Pattern {
    fn matches(&self, essence: &str) -> bool {
        match self {
            Self::Exact(exact) => exact == essence,
            Self::Family(family) => essence.starts_with(family.as_str()),
            Self::Suffix(family, suffix) => {
                essence.strip_prefix(family.as_str()).is_some_and(|rest| rest.ends_with(suffix.as_str()))
            }
        }
    }
}

fn pattern(text: &str) -> Result<Pattern, &'static str> {
    const EXPECTED: &str =
        "expected a media type such as `application/json`, `text/*` or `application/*+json`";
    let token = |text: &str| {
        let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"!#$&-^_.+".contains(&byte);
        !text.is_empty() && text.bytes().all(plain)
    };
    let (family, subtype) = text.split_once('/').filter(|(family, _)| token(family)).ok_or(EXPECTED)?;
    let prefix = format!("{family}/");
    match subtype.strip_prefix('*') {
        Some(_) if matches!(family, "audio" | "image" | "video") => {
            Err("these types are compressed already; list those that are not")
        }
        Some("") => Ok(Pattern::Family(prefix)),
        Some(suffix) if suffix.starts_with('+') && token(suffix) => {
            Ok(Pattern::Suffix(prefix, suffix.to_owned()))
        }
        None if token(subtype) => match never(text) {
            Some(reason) => Err(reason),
            None => Ok(Pattern::Exact(text.to_owned())),
        },
        _ => Err(EXPECTED),
    }
}

/// Why a type is never encoded, if it is not.
fn never(essence: &str) -> Option<&'static str> {
    let family = essence.split('/').next().unwrap_or_default();
    if essence == "text/event-stream" || essence.starts_with("application/grpc") {
        return Some("streams of messages are never encoded");
    }
    let compressed = match family {
        "audio" | "video" => true,
        "image" => !PLAIN_IMAGES.contains(&essence),
        _ => COMPRESSED.contains(&essence),
    };
    compressed.then_some("this type is compressed already")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hold(written: &[&str], content_type: &str) -> bool {
        let written: Vec<String> = written.iter().map(|&text| text.to_owned()).collect();
        let mut headers = HeaderMap::new();
        headers.insert(CONTENT_TYPE, content_type.parse().expect("a valid value"));
        Types::parse("types", &written).unwrap_or_else(|error| panic!("{}", error.message)).hold(&headers)
    }

    #[test]
    fn text_is_encoded_by_default_and_what_is_compressed_is_not() {
        for yes in [
            "text/html; charset=utf-8",
            "TEXT/CSS",
            "application/json",
            "application/problem+json",
            "application/atom+xml",
            "image/svg+xml",
        ] {
            assert!(hold(&DEFAULT_TYPES, yes), "{yes}");
        }
        for no in [
            "image/png",
            "video/mp4",
            "application/octet-stream",
            "text/event-stream",
            "application/grpc+json",
            "application/grpc-web",
            "font/woff2",
            "",
            "text",
        ] {
            assert!(!hold(&DEFAULT_TYPES, no), "{no}");
        }
    }

    #[test]
    fn families_and_suffixes_match_as_written() {
        assert!(hold(&["application/*"], "application/octet-stream"));
        assert!(!hold(&["application/*"], "application/zip"), "it would only grow");
        assert!(hold(&["application/*+json"], "application/hal+json"));
        assert!(!hold(&["application/*+json"], "application/json"));
        assert!(!hold(&["text/plain"], "text/plain2"));
        assert!(hold(&["Text/Plain"], "text/plain"));
    }

    #[test]
    fn what_is_no_type_or_never_encoded_is_refused() {
        for bad in [
            "",
            "json",
            "*/*",
            "text/",
            "text/*x",
            "/x",
            "text/a b",
            "image/*",
            "image/png",
            "text/event-stream",
        ] {
            assert!(Types::parse("types", &[bad.to_owned()]).is_err(), "{bad}");
        }
    }

    #[test]
    fn two_types_are_none() {
        let mut headers = HeaderMap::new();
        for line in ["text/html", "image/png"] {
            headers.append(CONTENT_TYPE, line.parse().expect("a valid value"));
        }
        assert!(!Types::parse("types", &["text/html".to_owned()]).is_ok_and(|types| types.hold(&headers)));
    }
}
