//! Whether a request's body is the one that its credential speaks of (RFC 9530).

use std::fmt;

use sfv::{BareItem, Dictionary, Item, ListEntry, Parser};
use sha2::{Digest, Sha256, Sha512};

use super::Refusal;

/// What a body has to be.
#[derive(Clone, PartialEq, Eq)]
pub enum BodyProof {
    /// Without any content.
    Empty,
    /// Of these hashes; at least one is there.
    Digests {
        /// SHA-256.
        sha256: Option<[u8; 32]>,
        /// SHA-512.
        sha512: Option<[u8; 64]>,
    },
}

impl BodyProof {
    /// The digests of a field `Content-Digest` (RFC 9530 s2), of algorithms that are good for proofs.
    pub(super) fn from_field(value: &[u8]) -> Result<Self, Refusal> {
        const MALFORMED: Refusal = Refusal::new("the field Content-Digest is malformed");
        let digests: Dictionary = Parser::new(value).parse().map_err(|_| MALFORMED)?;
        let bytes = |name: &str| match digests.get(name) {
            None => Ok(None),
            Some(ListEntry::Item(Item { bare_item: BareItem::ByteSequence(bytes), .. })) => {
                Ok(Some(&**bytes))
            }
            Some(_) => Err(MALFORMED),
        };
        let sha256 = bytes("sha-256")?.map(<[u8; 32]>::try_from).transpose().map_err(|_| MALFORMED)?;
        let sha512 = bytes("sha-512")?.map(<[u8; 64]>::try_from).transpose().map_err(|_| MALFORMED)?;
        if sha256.is_none() && sha512.is_none() {
            return Err(Refusal::new("the field Content-Digest has neither sha-256 nor sha-512"));
        }
        Ok(Self::Digests { sha256, sha512 })
    }

    /// Whether this is that body.
    #[must_use]
    pub fn holds(&self, body: &[u8]) -> bool {
        match self {
            Self::Empty => body.is_empty(),
            // What is compared is no secret.
            Self::Digests { sha256, sha512 } => {
                sha256.is_none_or(|wanted| Sha256::digest(body)[..] == wanted[..])
                    && sha512.is_none_or(|wanted| Sha512::digest(body)[..] == wanted[..])
            }
        }
    }
}

impl fmt::Debug for BodyProof {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Empty => "Empty",
            Self::Digests { .. } => "Digests",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// RFC 9530 B.1: the body of the examples, and its digests.
    const BODY: &[u8] = b"{\"hello\": \"world\"}";
    const SHA256: &str = "sha-256=:X48E9qOokqqrvdts8nOJRJN3OWDUoyWxBf7kbu9DBPE=:";
    const SHA512: &str =
        "sha-512=:WZDPaVn/7XgHaAy8pmojAkGWoRx2UFChF41A2svX+TaPm+AbwAgBWnrIiYllu7BNNyealdVLvRwEmTHWXvJwew==:";

    #[test]
    fn the_digests_of_rfc_9421_b_2_are_verified() {
        for field in [
            SHA256.to_owned(),
            SHA512.to_owned(),
            format!("{SHA256}, {SHA512}"),
            format!("{SHA512}, md5=:AAAA:, unixsum=30637"),
        ] {
            let proof = BodyProof::from_field(field.as_bytes()).expect("digests");
            assert!(proof.holds(BODY), "{field}");
            assert!(!proof.holds(b"{\"hello\": \"World\"}") && !proof.holds(b""), "{field}");
        }
        let wrong = SHA512.replace("WZDP", "XZDP");
        let proof = BodyProof::from_field(format!("{SHA256}, {wrong}").as_bytes()).expect("digests");
        assert!(!proof.holds(BODY), "all of them have to be right");
    }

    #[test]
    fn what_is_no_digest_proves_nothing() {
        for field in [
            "",
            "sha-256",
            "sha-256=abc",
            "sha-256=:AAAA:",
            "md5=:AAAA:",
            "sha-256=(:AAAA:)",
            "SHA-256=:AA==:",
        ] {
            assert!(BodyProof::from_field(field.as_bytes()).is_err(), "{field}");
        }
    }
}
