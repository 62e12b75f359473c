//! The simple scheme: one field, `Authorization: HMAC ..`, with a signature of a few lines of text.

use std::borrow::Cow;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;

use super::component::Message;
use crate::identity::scheme::is_token_char;
use crate::identity::{BodyProof, Refusal};

/// The longest value that is looked at, in bytes.
const LONGEST: usize = 4096;
const MALFORMED: Refusal = Refusal::new("the credentials are not of the form of the scheme HMAC");

/// What a request says of its signature.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Credentials {
    pub(super) key_id: String,
    pub(super) created: i64,
    pub(super) nonce: Option<String>,
    /// SHA-256 of the body; none where there is no body.
    digest: Option<[u8; 32]>,
    pub(super) signature: Vec<u8>,
}

impl Credentials {
    /// Reads what follows the scheme: parameters as in RFC 9110 s11.4, each once.
    pub(super) fn read(value: &[u8]) -> Result<Self, Refusal> {
        let text = std::str::from_utf8(value).ok().filter(|text| text.len() <= LONGEST).ok_or(MALFORMED)?;
        let mut params = params(text).ok_or(MALFORMED)?;
        let mut take = |name: &str| {
            let at = params.iter().position(|(known, _)| known == name)?;
            Some(params.swap_remove(at).1.into_owned())
        };
        let bytes = |text: String| STANDARD.decode(text).map_err(|_| MALFORMED);
        let credentials = Self {
            key_id: take("id").ok_or(MALFORMED)?,
            created: take("created").and_then(|time| seconds(&time)).ok_or(MALFORMED)?,
            nonce: take("nonce"),
            digest: take("digest").map(|text| bytes(text)?.try_into().map_err(|_| MALFORMED)).transpose()?,
            signature: bytes(take("signature").ok_or(MALFORMED)?)?,
        };
        // What is not known could mean something to who wrote it.
        if params.is_empty() { Ok(credentials) } else { Err(MALFORMED) }
    }

    /// What is signed: seven lines, the last without an end.
    pub(super) fn base(&self, message: Message<'_>) -> Result<String, Refusal> {
        let digest = self.digest.map(|digest| STANDARD.encode(digest)).unwrap_or_default();
        let (authority, target) = (message.authority()?, message.target());
        let nonce = self.nonce.as_deref().unwrap_or_default();
        let method = &message.request.method;
        Ok(format!("HMAC-SHA256\n{method}\n{authority}\n{target}\n{}\n{nonce}\n{digest}", self.created))
    }

    /// What the body has to be.
    pub(super) fn body(&self) -> BodyProof {
        match self.digest {
            Some(digest) => BodyProof::Digests { sha256: Some(digest), sha512: None },
            None => BodyProof::Empty,
        }
    }
}

fn seconds(text: &str) -> Option<i64> {
    let is_plain = !text.is_empty() && text.len() <= 12 && text.bytes().all(|byte| byte.is_ascii_digit());
    text.parse().ok().filter(|_| is_plain)
}

/// `name=value` with commas between them; values are tokens or in quotes (RFC 9110 s5.6.4).
fn params(mut text: &str) -> Option<Vec<(String, Cow<'_, str>)>> {
    let mut params: Vec<(String, Cow<'_, str>)> = Vec::new();
    loop {
        let (name, value) = text.split_once('=')?;
        let name = name.trim_matches([' ', '\t']);
        if name.is_empty() || !name.bytes().all(is_token_char) {
            return None;
        }
        let name = name.to_ascii_lowercase();
        let value = value.trim_start_matches([' ', '\t']);
        let (value, rest) = match value.strip_prefix('"') {
            Some(quoted) => unquote(quoted)?,
            None => {
                let end = value.bytes().position(|byte| !is_token_char(byte)).unwrap_or(value.len());
                (value[..end].into(), &value[end..])
            }
        };
        let is_new = !value.is_empty() && params.iter().all(|(known, _)| *known != name);
        params.push((name, value));
        let rest = rest.trim_start_matches([' ', '\t']);
        match rest.strip_prefix(',') {
            _ if !is_new => return None,
            Some(rest) => text = rest,
            None if rest.is_empty() => return Some(params),
            None => return None,
        }
    }
}

/// A text up to its closing quote, and what follows.
fn unquote(text: &str) -> Option<(Cow<'_, str>, &str)> {
    let end = text.find('"')?;
    // No value of the scheme needs an escape.
    let value = &text[..end];
    (!value.contains('\\') && !value.contains(char::is_control)).then(|| (value.into(), &text[end + 1..]))
}

#[cfg(test)]
mod tests {
    use super::*;

    const SIGNATURE: &str = "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=";

    #[test]
    fn credentials_are_parameters_in_any_order() {
        let read = |text: &str| Credentials::read(text.as_bytes());
        let wanted = Credentials {
            key_id: "k 1".to_owned(),
            created: 1_767_225_600,
            nonce: Some("n".to_owned()),
            digest: Some([0; 32]),
            signature: vec![0; 32],
        };
        let text = format!(
            "id=\"k 1\", created=1767225600, nonce=n, digest=\"{SIGNATURE}\", signature=\"{SIGNATURE}\""
        );
        assert_eq!(read(&text).as_ref(), Ok(&wanted));
        let text = format!(
            "Signature = \"{SIGNATURE}\" ,DIGEST=\"{SIGNATURE}\",nonce=\"n\",created=\"1767225600\"\t, id=\"k 1\""
        );
        assert_eq!(read(&text), Ok(wanted));
    }

    #[test]
    fn what_could_be_read_in_two_ways_is_malformed() {
        let whole = format!("id=k, created=1, signature=\"{SIGNATURE}\"");
        assert!(Credentials::read(whole.as_bytes()).is_ok());
        for (from, to) in [
            ("id=k, ", ""),
            ("id=k", "id=k, id=k"),
            ("id=k", "id=k, ID=l"),
            ("id=k", "id="),
            ("id=k", "id=\"k"),
            ("id=k", "id=\"k\\\"\""),
            ("id=k", "id=\"k\"x"),
            ("id=k", "id=k l"),
            ("id=k, ", "id=k; "),
            ("id=k", "id=k, extra=1"),
            ("created=1", "created=-1"),
            ("created=1", "created=1.5"),
            ("created=1", "created=9999999999999"),
            ("created=1", "created=\"\u{661}\""),
            ("created=1, ", ""),
            ("AAA=", "AAA"),
            ("AAA=", "A\u{0}A="),
            ("signature=", "digest=\"AAAA\", signature="),
        ] {
            let text = whole.replacen(from, to, 1);
            assert_ne!(text, whole);
            assert!(Credentials::read(text.as_bytes()).is_err(), "{text}");
        }
        for bytes in [&b""[..], b"\xff", b"=", b",", b"id", &[b'a'; 5000]] {
            assert!(Credentials::read(bytes).is_err());
        }
    }
}
