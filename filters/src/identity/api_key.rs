//! `api_key`: a random text that only its consumer knows; the document holds its hash.

use std::fmt;
use std::sync::Arc;
use std::time::SystemTime;

use async_trait::async_trait;
use http::HeaderValue;
use pingora_http::RequestHeader;
use schemars::JsonSchema;
use serde::Deserialize;
use sha2::{Digest, Sha256};

use super::consumers::{Consumers, IdentityNo, Key};
use super::{Identity, IdentityState, Presented, Refusal, Source, Verified, challenge, only_one};
use crate::context::{Context, Principal};
use crate::values::Scalar;

/// The longest key that is looked up, in bytes.
const LONGEST: usize = 4096;

/// Keys that consumers of the document have under `credentials`.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(rename = "ApiKeyIdentity")]
pub(super) struct Options {
    /// What it is: `api_key`.
    #[serde(rename = "type")]
    pub(super) _kind: Type,
    /// Where keys are looked for; a request may have one key only.
    pub(super) from: Vec<Source>,
    /// Whether keys are taken out of the request before it goes on.
    #[serde(default)]
    pub(super) hide: bool,
}

/// The one value of `type`.
#[derive(Debug, Clone, Copy, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
#[schemars(rename = "ApiKeyType")]
pub(super) enum Type {
    /// `api_key`
    ApiKey,
}

/// SHA-256 of a key. Neither printed nor shown: weak keys could be guessed from it.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct KeyHash(pub(super) [u8; 32]);

impl KeyHash {
    /// The hash of a key.
    #[must_use]
    pub fn of(key: &[u8]) -> Self {
        Self(Sha256::digest(key).into())
    }

    /// What it begins with.
    pub(super) fn prefix(&self) -> u64 {
        u64::from_le_bytes(self.0[..8].try_into().expect("eight bytes"))
    }
}

impl Scalar for KeyHash {
    const EXPECTED: &'static str = "`sha256:` and 64 hexadecimal digits";
    const PATTERN: Option<&'static str> = Some("^sha256:[0-9A-Fa-f]{64}$");
    const EXAMPLE: &'static str = "sha256:9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08";

    fn read(text: &str) -> Option<Self> {
        let digits = text.strip_prefix("sha256:").filter(|digits| digits.len() == 64)?;
        let mut hash = [0; 32];
        for (byte, pair) in hash.iter_mut().zip(digits.as_bytes().chunks_exact(2)) {
            let digit = |digit: u8| char::from(digit).to_digit(16);
            *byte = u8::try_from(digit(pair[0])? << 4 | digit(pair[1])?).ok()?;
        }
        Some(Self(hash))
    }
}

impl fmt::Display for KeyHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

impl fmt::Debug for KeyHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

/// See the [module](self).
pub(super) struct ApiKeys {
    name: Arc<str>,
    sources: Vec<Source>,
    hide: bool,
    consumers: Arc<Consumers>,
    number: Option<IdentityNo>,
}

impl ApiKeys {
    pub(super) fn new(name: Arc<str>, options: Options, consumers: Arc<Consumers>) -> Self {
        let number = consumers.layout().number(&name);
        Self { name, sources: options.from, hide: options.hide, consumers, number }
    }

    /// Looked up by its hash: how long that takes says nothing about any key.
    fn verify(&self, key: &[u8], now: SystemTime) -> Result<Verified, Refusal> {
        const UNKNOWN: Refusal = Refusal::new("the API key is not known");
        if key.is_empty() || key.len() > LONGEST {
            return Err(UNKNOWN);
        }
        let number = self.number.ok_or(UNKNOWN)?;
        let index = self.consumers.load();
        let found = index.find(number, Key::ApiKey(KeyHash::of(key))).ok_or(UNKNOWN)?;
        if let Some(lapse) = found.lapse(now) {
            return Err(Refusal::new(lapse.reason(["the API key has expired", "the API key is disabled"])));
        }
        let consumer = found.consumer();
        let principal = Principal { subject: consumer.name.to_string(), claims: Default::default() };
        Ok(Verified {
            principal: Arc::new(principal),
            consumer: Some(consumer.clone()),
            credential: found.credential().map(|credential| credential.id().clone()),
            body: None,
            cookies: Vec::new(),
        })
    }
}

#[async_trait]
impl Identity for ApiKeys {
    fn name(&self) -> &Arc<str> {
        &self.name
    }

    async fn check(&self, request: &RequestHeader, _: &Context, now: SystemTime) -> Presented {
        let several = "the request has several API keys";
        let verified = match only_one(&self.sources, request, |_, value| Some(value), several) {
            Ok(None) => return Presented::Nothing,
            Ok(Some(key)) => self.verify(&key, now),
            Err(refusal) => Err(refusal),
        };
        verified.map_or_else(Presented::Refused, Presented::Valid)
    }

    fn hides(&self) -> bool {
        self.hide
    }

    fn challenge(&self, _: Option<&Refusal>) -> HeaderValue {
        // No scheme is registered for keys in fields of their own; this one is as good as others.
        challenge(&format!("ApiKey realm=\"{}\"", self.name))
    }

    fn sources(&self) -> &[Source] {
        &self.sources
    }

    fn has_claims(&self) -> bool {
        false
    }

    fn state(&self) -> IdentityState {
        IdentityState { kind: "api_key", ..IdentityState::default() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hash_is_read_strictly_and_never_shown() {
        // FIPS 180-4: SHA-256 of "abc".
        let digits = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
        let hash = KeyHash::read(&format!("sha256:{digits}")).expect("a hash");
        assert_eq!(hash, KeyHash::of(b"abc"));
        assert_eq!(KeyHash::read(&format!("sha256:{}", digits.to_uppercase())), Some(hash));
        assert_eq!(format!("{hash} {hash:?}"), "*** ***");
        for text in [digits, "sha256:", &format!("sha256:{}0", digits), &format!("sha1:{digits}"), "sha256:é"]
        {
            assert_eq!(KeyHash::read(text), None, "{text}");
        }
    }
}
