//! Host names and host patterns.

use std::borrow::Cow;
use std::fmt;
use std::net::Ipv6Addr;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Deserializer, de};

/// A pattern of hosts: a name, or `*.` and a name for one or more labels before it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum HostPattern {
    /// Exactly this host.
    Exact(Box<str>),
    /// Any host below this one.
    Wildcard(Box<str>),
}

impl HostPattern {
    /// Parses a pattern; the message says what is wrong.
    pub fn parse(text: &str) -> Result<Self, String> {
        if !text.is_ascii() {
            return Err(
                "write international names in their ASCII form, as in `xn--bcher-kva.example`".to_owned()
            );
        }
        if let Ok(address) = text.parse::<Ipv6Addr>() {
            return Ok(Self::Exact(format!("[{address}]").into()));
        }
        let wildcard = text.strip_prefix("*.");
        let name = wildcard.unwrap_or(text);
        if name.contains('*') || wildcard.is_some_and(|name| !name.is_empty() && is_address(name)) {
            return Err("`*.` can only stand at the beginning of a name, as in `*.example.com`".to_owned());
        }
        let has_port =
            name.rsplit_once(':').is_some_and(|(before, _)| !before.contains(':') || before.ends_with(']'));
        if has_port {
            return Err("a host has no port; listeners decide about ports".to_owned());
        }
        let host = host_of(name).ok_or("expected a host such as `api.example.com` or `*.example.com`")?;
        Ok(match wildcard {
            Some(_) => Self::Wildcard(host.into()),
            None => Self::Exact(host.into()),
        })
    }

    /// Whether this normalised host (see [`host_of`]) is one of the pattern's.
    #[must_use]
    pub fn matches(&self, host: &str) -> bool {
        match self {
            Self::Exact(name) => **name == *host,
            Self::Wildcard(suffix) => host
                .strip_suffix(&**suffix)
                .and_then(|rest| rest.strip_suffix('.'))
                .is_some_and(|labels| !labels.is_empty()),
        }
    }
}

/// The host of a `Host` or `:authority` value: without port, in lower case, without a final dot, an
/// IPv6 address in its canonical form and in brackets. `None` when it is not a host.
#[must_use]
pub fn host_of(authority: &str) -> Option<Cow<'_, str>> {
    if let Some(literal) = authority.strip_prefix('[') {
        let (address, after) = literal.split_once(']')?;
        let port = after.strip_prefix(':').or_else(|| after.is_empty().then_some(""))?;
        let address: Ipv6Addr = address.parse().ok()?;
        return is_port(port).then(|| format!("[{address}]").into());
    }
    let colon = authority.bytes().position(|byte| byte == b':').unwrap_or(authority.len());
    let (name, port) = authority.split_at(colon);
    let name = name.strip_suffix('.').unwrap_or(name);
    if !is_port(port.strip_prefix(':').unwrap_or_default()) {
        return None;
    }
    let upper = capitals(name)?;
    Some(if upper { name.to_ascii_lowercase().into() } else { name.into() })
}

/// `*DIGIT` (RFC 3986 section 3.2.3), within the range of ports.
fn is_port(text: &str) -> bool {
    // The parser takes a sign too.
    text.is_empty() || (!text.starts_with('+') && text.parse::<u16>().is_ok())
}

/// Whether a name has capitals, if it is one: letters, digits, hyphens and underscores in labels of 63 at most
/// (RFC 1035 section 2.3.4); IPv4 addresses are names too.
fn capitals(name: &str) -> Option<bool> {
    let (mut label, mut upper) = (0, false);
    for byte in name.bytes() {
        label = match byte {
            b'.' if label > 0 => 0,
            b'-' | b'_' | b'0'..=b'9' | b'a'..=b'z' if label < 63 => label + 1,
            b'A'..=b'Z' if label < 63 => {
                upper = true;
                label + 1
            }
            _ => return None,
        };
    }
    (label > 0 && name.len() <= 253).then_some(upper)
}

/// Whether a name is an IP address or the end of one, before which no wildcard can stand.
fn is_address(name: &str) -> bool {
    let last = name.trim_end_matches('.').rsplit('.').next().unwrap_or_default();
    name.starts_with('[') || last.bytes().all(|byte| byte.is_ascii_digit())
}

impl fmt::Display for HostPattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Exact(name) => f.write_str(name),
            Self::Wildcard(suffix) => write!(f, "*.{suffix}"),
        }
    }
}

impl<'de> Deserialize<'de> for HostPattern {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        Self::parse(&text).map_err(de::Error::custom)
    }
}

impl JsonSchema for HostPattern {
    fn schema_name() -> Cow<'static, str> {
        "HostPattern".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "type": "string",
            "description": "A host, or `*.` and a host for one or more labels before it.",
            "examples": ["api.example.com", "*.example.org"],
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn host(authority: &str) -> Option<String> {
        host_of(authority).map(Cow::into_owned)
    }

    #[test]
    fn the_host_of_an_authority_has_no_port_no_capitals_no_trailing_dot() {
        for (authority, expected) in [
            ("example.com", "example.com"),
            ("EXAMPLE.com:8080", "example.com"),
            ("example.com.", "example.com"),
            ("Example.COM.:443", "example.com"),
            ("example.com:", "example.com"),
            ("127.0.0.1:80", "127.0.0.1"),
            ("[::1]:80", "[::1]"),
            ("[0:0:0:0:0:0:0:1]", "[::1]"),
            ("[2001:DB8::A]", "[2001:db8::a]"),
        ] {
            assert_eq!(host(authority).as_deref(), Some(expected), "{authority}");
        }
    }

    #[test]
    fn what_is_not_a_host_has_none() {
        let long = format!("{}.com", "a".repeat(64));
        let longer = "a.".repeat(130);
        for authority in [
            "",
            ".",
            ":80",
            "a..b",
            "a b",
            "a@b",
            "a/b",
            "a:b",
            "a:1:2",
            "a:65536",
            "a:+1",
            "[::1",
            "[::1]x",
            "[::1]80",
            "[fe80::1%25eth0]",
            "::1",
            "é.com",
            "a%41",
            "*.a",
            "a\0",
            "a,b",
            "a\\b",
            &long,
            &longer,
        ] {
            assert_eq!(host(authority), None, "{authority:?}");
        }
    }

    #[test]
    fn a_wildcard_covers_one_or_more_labels() {
        let pattern = HostPattern::parse("*.Example.org.").unwrap();
        assert!(pattern.matches("a.example.org") && pattern.matches("a.b.example.org"));
        for host in ["example.org", ".example.org", "aexample.org", "example.org.evil"] {
            assert!(!pattern.matches(host), "{host}");
        }
        assert_eq!(pattern.to_string(), "*.example.org");
    }

    #[test]
    fn addresses_are_exact_hosts() {
        for (text, host) in [("10.0.0.1", "10.0.0.1"), ("::1", "[::1]"), ("[::1]", "[::1]")] {
            assert_eq!(HostPattern::parse(text), Ok(HostPattern::Exact(host.into())), "{text}");
        }
    }

    #[test]
    fn a_bad_pattern_says_what_to_write() {
        for (text, message) in [
            ("", "expected a host"),
            ("*", "`*.`"),
            ("*.", "expected a host"),
            ("bücher.example", "ASCII form"),
            ("a.example:80", "no port"),
            ("[::1]:80", "no port"),
            ("a.*.example", "`*.`"),
            ("*a.example", "`*.`"),
            ("*.0.0.1", "`*.`"),
            ("*.[::1]", "`*.`"),
            ("a..b", "expected a host"),
            ("a/b", "expected a host"),
        ] {
            let error = HostPattern::parse(text).expect_err(text);
            assert!(error.contains(message), "{text}: {error}");
        }
    }

    /// Hosts, and what is nearly one.
    fn nearly() -> impl Strategy<Value = String> {
        prop_oneof![
            "[aA1_.:-]{0,8}",
            "\\[[0-9aA:.%]{0,8}\\]?(:[0-9]{0,6})?",
            "(\\*\\.)?[ab.]{0,6}",
            any::<String>()
        ]
    }

    proptest! {
        #[test]
        fn a_host_has_one_spelling(text in nearly()) {
            if let Some(found) = host(&text) {
                prop_assert_eq!(host(&found), Some(found.clone()));
                prop_assert_eq!(host(&format!("{found}:80")), Some(found.clone()));
                let tame = |byte: u8| !byte.is_ascii_uppercase() && (byte.is_ascii_alphanumeric() || b"-._:[]".contains(&byte));
                prop_assert!(!found.is_empty() && found.bytes().all(tame), "{}", found);
                prop_assert_eq!(HostPattern::parse(&found), Ok(HostPattern::Exact(found.into())));
            }
        }

        #[test]
        fn a_pattern_can_be_written_again(text in nearly()) {
            if let Ok(pattern) = HostPattern::parse(&text) {
                prop_assert_eq!(HostPattern::parse(&pattern.to_string()), Ok(pattern));
            }
        }
    }
}
