//! One token: its parts, its signature, its claims.

use std::sync::Arc;
use std::time::SystemTime;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jsonwebtoken::Algorithm;
use serde_json::{Map, Value};

use super::fetched::FetchedKeys;
use super::keys::{Keys, Unverified};
use super::options::AlgorithmName;
use crate::identity::claims::Rules;
use crate::identity::{Failure, KeysState, Refusal, json};
use crate::values::Scalar;

/// The longest token that is looked at, in bytes.
const LONGEST: usize = 16 * 1024;

const MALFORMED: Refusal = Refusal::new("the token is malformed");

/// Verifies tokens.
pub(in crate::identity) struct Verifier {
    pub(super) keys: KeyRing,
    pub(super) algorithms: Vec<AlgorithmName>,
    pub(super) rules: Rules,
}

/// What tokens are verified with.
pub(super) enum KeyRing {
    /// Keys of the document.
    Written(Arc<Keys>),
    /// Keys that are fetched.
    Fetched(Arc<FetchedKeys>),
}

/// A token whose signature was not verified yet.
struct Parsed<'a> {
    algorithm: Algorithm,
    id: Option<String>,
    message: &'a str,
    signature: &'a str,
    claims: &'a str,
}

impl KeyRing {
    /// What the keys are known by; another number for other keys.
    pub(super) fn epoch(&self) -> u64 {
        match self {
            Self::Written(keys) => keys.epoch(),
            Self::Fetched(keys) => keys.epoch(),
        }
    }
}

impl Verifier {
    /// The keys, for whoever operates the gateway; none that the document holds.
    pub(in crate::identity) fn state(&self) -> Option<KeysState> {
        match &self.keys {
            KeyRing::Written(_) => None,
            KeyRing::Fetched(keys) => Some(keys.state()),
        }
    }

    /// The claims of a token that holds, and what the keys are known by that say so: JWS in compact form (RFC
    /// 7515 s5.2), then RFC 7519 s7.2.
    pub(in crate::identity) async fn claims(
        &self,
        token: &[u8],
        now: SystemTime,
    ) -> Result<(Map<String, Value>, u64), Failure> {
        let parsed = self.parse(token)?;
        let said = object(parsed.claims);
        // Before the signature: keys are neither looked for nor fetched for tokens of another issuer.
        if let Ok(said) = &said {
            self.rules.check_issuer(said)?;
        }
        let epoch = self.verify(&parsed).await?;
        let claims = said?;
        self.rules.check(&claims, now)?;
        if !claims.contains_key("exp") {
            return Err(Refusal::new("the token has no end (exp)").into());
        }
        Ok((claims, epoch))
    }

    /// What a token says whose signature holds, by keys of the document.
    #[cfg(test)]
    pub(super) fn signed(&self, token: &[u8]) -> Result<Vec<u8>, Refusal> {
        let parsed = self.parse(token)?;
        let KeyRing::Written(keys) = &self.keys else { unreachable!("keys of tests are written") };
        parsed.verify(keys).map_err(|why| why.refusal)?;
        decoded(parsed.claims)
    }

    fn parse<'a>(&self, token: &'a [u8]) -> Result<Parsed<'a>, Refusal> {
        if token.len() > LONGEST {
            return Err(Refusal::new("the token is larger than 16 KiB"));
        }
        let token = std::str::from_utf8(token).map_err(|_| MALFORMED)?;
        let (message, signature) = token.rsplit_once('.').ok_or(MALFORMED)?;
        let (header, claims) = message.split_once('.').ok_or(MALFORMED)?;
        let header = object(header)?;
        let algorithm = self.algorithm(&header)?;
        // What must be understood (RFC 7515 s4.1.11) is not, nor are claims that are not encoded (RFC 7797).
        if header.contains_key("crit") || header.contains_key("b64") {
            return Err(Refusal::new("the token needs an extension that is not supported"));
        }
        let id = match header.get("kid") {
            Some(id) => Some(id.as_str().ok_or(MALFORMED)?.to_owned()),
            None => None,
        };
        Ok(Parsed { algorithm, id, message, signature, claims })
    }

    /// Verifies the signature, if need be with keys that are newer than those of now.
    async fn verify(&self, token: &Parsed<'_>) -> Result<u64, Failure> {
        let fetched = match &self.keys {
            KeyRing::Written(keys) => {
                return token.verify(keys).map(|()| keys.epoch()).map_err(|why| why.refusal.into());
            }
            KeyRing::Fetched(fetched) => fetched,
        };
        let keys = fetched.some().await?;
        match token.verify(&keys) {
            Ok(()) => Ok(keys.epoch()),
            Err(why) if !why.may_be_newer => Err(why.refusal.into()),
            Err(why) => match fetched.newer(keys.epoch(), token.id.as_deref()).await? {
                Some(newer) => token.verify(&newer).map(|()| newer.epoch()).map_err(|why| why.refusal.into()),
                None => Err(why.refusal.into()),
            },
        }
    }

    /// The algorithm, if it is one of those that are allowed; `none` never is.
    fn algorithm(&self, header: &Map<String, Value>) -> Result<Algorithm, Refusal> {
        let said = header.get("alg").and_then(Value::as_str).ok_or(MALFORMED)?;
        let allowed = AlgorithmName::read(said).filter(|name| self.algorithms.contains(name));
        allowed.map(|name| name.0).ok_or(Refusal::new("the algorithm of the token is not allowed"))
    }
}

impl Parsed<'_> {
    fn verify(&self, keys: &Keys) -> Result<(), Unverified> {
        keys.verify(self.algorithm, self.id.as_deref(), self.message, self.signature)
    }
}

/// A part of a token that is an object.
fn object(part: &str) -> Result<Map<String, Value>, Refusal> {
    json::object(&decoded(part)?).ok_or(MALFORMED)
}

/// A part of a token: in base64url without padding, in the one way there is to write it.
fn decoded(part: &str) -> Result<Vec<u8>, Refusal> {
    URL_SAFE_NO_PAD.decode(part).map_err(|_| MALFORMED)
}
