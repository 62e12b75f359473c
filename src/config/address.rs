//! Where a listener listens: `127.0.0.1:8080`, `[::]:8080` or `unix:/path`.

use std::borrow::Cow;
use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::str::FromStr;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Deserializer, de};

/// A TCP address or the path of a Unix socket.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Address {
    /// `IP:PORT`, IPv6 in brackets; port 0 lets the system choose.
    Tcp(SocketAddr),
    /// `unix:/path`; no white space in it, since descriptors are handed over under this name.
    Unix(PathBuf),
}

impl FromStr for Address {
    type Err = AddressError;

    fn from_str(text: &str) -> Result<Self, AddressError> {
        if let Some(path) = text.strip_prefix("unix:") {
            return unix(path);
        }
        text.parse().map(Address::Tcp).map_err(|_| AddressError::Tcp(text.into()))
    }
}

fn unix(path: &str) -> Result<Address, AddressError> {
    if !path.starts_with('/') || path.ends_with('/') {
        return Err(AddressError::RelativePath(path.into()));
    }
    if path.contains(|c: char| c.is_whitespace() || c == '\0') {
        return Err(AddressError::SpaceInPath(path.into()));
    }
    if path.len() > MAX_UNIX_PATH {
        return Err(AddressError::LongPath(path.into()));
    }
    Ok(Address::Unix(path.into()))
}

/// What `sun_path` holds besides its final NUL (unix(7)).
const MAX_UNIX_PATH: usize = 107;

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Address::Tcp(address) => address.fmt(f),
            Address::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

impl<'de> Deserialize<'de> for Address {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        Cow::<'de, str>::deserialize(from)?.parse().map_err(de::Error::custom)
    }
}

impl JsonSchema for Address {
    fn schema_name() -> Cow<'static, str> {
        // Upstreams have addresses too, of another shape.
        "ListenerAddress".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "type": "string",
            "description": "IP:PORT (IPv6 in brackets) or unix:/path",
            "examples": ["0.0.0.0:8080", "[::]:8080", "unix:/run/tollhouse/http.sock"],
            "pattern": r"^(unix:/\S+|[0-9.]+:[0-9]+|\[[0-9A-Fa-f:.%]+\]:[0-9]+)$",
        })
    }
}

/// Why a text is not an address to listen on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AddressError {
    /// Neither `unix:` nor an IP address with a port.
    Tcp(String),
    /// A Unix socket needs an absolute path of a file.
    RelativePath(String),
    /// The path contains white space or NUL.
    SpaceInPath(String),
    /// The path does not fit the system's socket address.
    LongPath(String),
}

impl fmt::Display for AddressError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(text) => write!(
                f,
                "`{text}` is not an address to listen on; write IP:PORT, as in 0.0.0.0:8080 or [::]:8080, or unix:/path"
            ),
            Self::RelativePath(path) => {
                write!(f, "`unix:{path}` needs the absolute path of a file, as in unix:/run/tollhouse.sock")
            }
            Self::SpaceInPath(path) => write!(f, "`unix:{path}` must not contain white space"),
            Self::LongPath(path) => {
                write!(f, "`unix:{path}` is too long: a socket's path has at most {MAX_UNIX_PATH} bytes")
            }
        }
    }
}

impl std::error::Error for AddressError {}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Address, String> {
        text.parse::<Address>().map_err(|e| e.to_string())
    }

    #[test]
    fn the_three_written_forms_read_back_as_they_were_written() {
        for text in ["0.0.0.0:8080", "[::]:8080", "[::1]:0", "unix:/run/t.sock"] {
            assert_eq!(parse(text).unwrap().to_string(), text);
        }
    }

    #[test]
    fn an_address_without_port_names_the_forms_that_work() {
        let message = parse("localhost").unwrap_err();
        assert!(message.contains("`localhost`") && message.contains("unix:/path"), "{message}");
    }

    #[test]
    fn unusable_addresses_are_refused() {
        let long = format!("unix:/{}", "x".repeat(107));
        for text in ["", ":80", "::1:80", "1.2.3.4:65536", "unix:", "unix:a", "unix:/a/", "unix:/a b", &long]
        {
            assert!(parse(text).is_err(), "{text}");
        }
    }

    #[test]
    fn a_document_gives_the_message_of_the_parser() {
        let error = serde_json::from_str::<Address>("\"unix:a\"").unwrap_err().to_string();
        assert!(error.contains("absolute path"), "{error}");
        let read: Address = serde_json::from_str("\"127.0.0.1:1\"").unwrap();
        assert_eq!(read, Address::Tcp(([127, 0, 0, 1], 1).into()));
    }
}
