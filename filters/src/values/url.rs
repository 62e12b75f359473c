//! Addresses on the web: `https://id.example.com/keys`.

use std::fmt;
use std::net::IpAddr;

use http::uri::{PathAndQuery, Uri};

use super::scalar::Scalar;
use crate::world::Origin;

/// An `http` or `https` URL (RFC 9110 s4.2) without user, password and fragment.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Url {
    text: Box<str>,
    tls: bool,
    host: Box<str>,
    port: u16,
    target: PathAndQuery,
}

impl Url {
    /// As it was written.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// Whether it is an `https` URL.
    #[must_use]
    pub fn is_https(&self) -> bool {
        self.tls
    }

    /// Whether what is sent there stays on this machine.
    #[must_use]
    pub fn is_loopback(&self) -> bool {
        *self.host == *"localhost" || self.host.parse::<IpAddr>().is_ok_and(|address| address.is_loopback())
    }

    /// Scheme, host and port.
    #[must_use]
    pub fn origin(&self) -> Origin {
        Origin { tls: self.tls, host: self.host.clone(), port: self.port, public_only: false }
    }

    /// What a request for it names as host: without the port that its scheme has by itself.
    #[must_use]
    pub fn authority(&self) -> String {
        let host = if self.host.contains(':') { format!("[{}]", self.host) } else { self.host.to_string() };
        let usual = if self.tls { 443 } else { 80 };
        if self.port == usual { host } else { format!("{host}:{}", self.port) }
    }

    /// Path and query.
    #[must_use]
    pub fn target(&self) -> &PathAndQuery {
        &self.target
    }

    /// The same place with another path.
    #[must_use]
    pub fn with_path(&self, path: &str) -> Option<Self> {
        let scheme = if self.tls { "https" } else { "http" };
        Self::read(&format!("{scheme}://{}{path}", self.authority()))
    }
}

impl Scalar for Url {
    const EXPECTED: &'static str =
        "a URL such as `https://id.example.com/keys`, without user, password and fragment";
    const PATTERN: Option<&'static str> = Some("^https?://[^@#]+$");
    const FORMAT: Option<&'static str> = Some("uri");
    const EXAMPLE: &'static str = "https://id.example.com/keys";

    fn read(text: &str) -> Option<Self> {
        if text.contains(['@', '#', '\\']) || !text.is_ascii() {
            return None;
        }
        let uri: Uri = text.parse().ok()?;
        let tls = match uri.scheme_str()? {
            "https" => true,
            "http" => false,
            _ => return None,
        };
        let host = uri.host()?.trim_start_matches('[').trim_end_matches(']').to_ascii_lowercase();
        let is_host = !host.is_empty()
            && host.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-._:".contains(&byte));
        let port = match uri.authority()?.as_str().rsplit_once(':') {
            Some((_, port)) if !port.contains(']') => port.parse().ok().filter(|port| *port != 0)?,
            _ => {
                if tls {
                    443
                } else {
                    80
                }
            }
        };
        let target = uri.path_and_query().cloned().unwrap_or_else(|| PathAndQuery::from_static("/"));
        is_host.then(|| Self { text: text.into(), tls, host: host.into(), port, target })
    }
}

crate::scalar!(Url);

impl fmt::Display for Url {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_url_is_read_into_what_a_request_is_made_of() {
        for (text, tls, host, port, authority, target) in [
            ("https://id.example.com", true, "id.example.com", 443, "id.example.com", "/"),
            ("https://ID.example.com:443/a?b=c", true, "id.example.com", 443, "id.example.com", "/a?b=c"),
            ("http://127.0.0.1:8080/keys", false, "127.0.0.1", 8080, "127.0.0.1:8080", "/keys"),
            ("https://[::1]:8443/", true, "::1", 8443, "[::1]:8443", "/"),
            ("http://[::1]/", false, "::1", 80, "[::1]", "/"),
        ] {
            let url = Url::read(text).expect(text);
            let Origin { tls: is_tls, host: is_host, port: is_port, .. } = url.origin();
            assert_eq!((is_tls, &*is_host, is_port), (tls, host, port), "{text}");
            assert_eq!(
                (&*url.authority(), url.target().as_str(), url.to_string()),
                (authority, target, text.to_owned())
            );
        }
    }

    #[test]
    fn what_other_readers_could_take_for_another_place_is_refused() {
        for text in [
            "",
            "id.example.com",
            "/keys",
            "ftp://a/",
            "https://",
            "https:///a",
            "https://a@b/",
            "https://a:b@c/",
            "https://a/#b",
            "https://a\\b/",
            "https://a:0/",
            "https://a:99999/",
            "https://a:x/",
            "https://a b/",
            "https://ä.example/",
            "HTTPS:a",
            "https://a%2fb/",
        ] {
            assert_eq!(Url::read(text), None, "{text}");
        }
    }

    #[test]
    fn loopback_is_told_by_name_and_address() {
        for (text, loopback) in [
            ("http://localhost:1/", true),
            ("http://127.8.0.1/", true),
            ("http://[::1]/", true),
            ("http://localhost.example.com/", false),
            ("http://10.0.0.1/", false),
        ] {
            assert_eq!(Url::read(text).expect(text).is_loopback(), loopback, "{text}");
        }
    }
}
