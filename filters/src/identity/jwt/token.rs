//! One token: its parts, its signature, its claims.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jsonwebtoken::Algorithm;
use serde_json::{Map, Value};

use super::keys::Keys;
use super::options::{AlgorithmName, Options};
use crate::filter::BuildError;
use crate::identity::{Refusal, json};
use crate::values::Scalar;

/// The longest token that is looked at, in bytes.
const LONGEST: usize = 16 * 1024;

const MALFORMED: Refusal = Refusal::new("the token is malformed");
const BAD_CLAIM: Refusal = Refusal::new("a registered claim of the token has the wrong type");

/// Verifies tokens.
#[derive(Debug)]
pub(super) struct Verifier {
    keys: Keys,
    algorithms: Vec<AlgorithmName>,
    issuer: Option<String>,
    audiences: Vec<String>,
    required: Vec<String>,
    leeway: Duration,
}

impl Verifier {
    pub(super) fn new(options: Options) -> Result<Self, BuildError> {
        if options.algorithms.is_empty() {
            return Err(BuildError::at("algorithms", "expected at least one, such as `RS256`"));
        }
        Ok(Self {
            keys: Keys::new(&options)?,
            algorithms: options.algorithms,
            issuer: options.issuer,
            audiences: options.audiences,
            required: options.required_claims,
            leeway: options.leeway.get(),
        })
    }

    /// The claims of a token that holds: JWS in compact form (RFC 7515 s5.2), then RFC 7519 s7.2.
    pub(super) fn claims(&self, token: &[u8], now: SystemTime) -> Result<Map<String, Value>, Refusal> {
        let claims = json::object(&self.signed(token)?).ok_or(MALFORMED)?;
        self.check(&claims, now)?;
        Ok(claims)
    }

    /// What a token says whose signature holds.
    pub(super) fn signed(&self, token: &[u8]) -> Result<Vec<u8>, Refusal> {
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
            Some(id) => Some(id.as_str().ok_or(MALFORMED)?),
            None => None,
        };
        self.keys.verify(algorithm, id, message, signature)?;
        decoded(claims)
    }

    /// The algorithm, if it is one of those that are allowed; `none` never is.
    fn algorithm(&self, header: &Map<String, Value>) -> Result<Algorithm, Refusal> {
        let said = header.get("alg").and_then(Value::as_str).ok_or(MALFORMED)?;
        let allowed = AlgorithmName::read(said).filter(|name| self.algorithms.contains(name));
        allowed.map(|name| name.0).ok_or(Refusal::new("the algorithm of the token is not allowed"))
    }

    fn check(&self, claims: &Map<String, Value>, now: SystemTime) -> Result<(), Refusal> {
        let now = now.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64();
        let leeway = self.leeway.as_secs_f64();
        let expires = date(claims, "exp")?.ok_or(Refusal::new("the token has no end (exp)"))?;
        if now >= expires + leeway {
            return Err(Refusal::new("the token has expired"));
        }
        if date(claims, "nbf")?.is_some_and(|begin| now + leeway < begin) {
            return Err(Refusal::new("the token is not valid yet"));
        }
        date(claims, "iat")?;
        text(claims, "sub")?;
        let issuer = text(claims, "iss")?;
        if self.issuer.is_some() && issuer != self.issuer.as_deref() {
            return Err(Refusal::new("the token is from another issuer"));
        }
        self.check_audience(claims)?;
        let absent = |name: &&String| claims.get(*name).is_none_or(Value::is_null);
        match self.required.iter().find(absent) {
            Some(_) => Err(Refusal::new("the token lacks a required claim")),
            None => Ok(()),
        }
    }

    /// A token that is for somebody must be for us (RFC 7519 s4.1.3).
    fn check_audience(&self, claims: &Map<String, Value>) -> Result<(), Refusal> {
        let is_ours = |name: &Value| match name {
            Value::String(name) => Ok(self.audiences.contains(name)),
            _ => Err(BAD_CLAIM),
        };
        let ours = match claims.get("aud") {
            None => self.audiences.is_empty(),
            Some(Value::Array(names)) => {
                names.iter().try_fold(false, |any, name| is_ours(name).map(|ours| ours || any))?
            }
            Some(name) => is_ours(name)?,
        };
        if ours { Ok(()) } else { Err(Refusal::new("the token is for another audience")) }
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

/// A `NumericDate` (RFC 7519 s2), in seconds.
fn date(claims: &Map<String, Value>, name: &str) -> Result<Option<f64>, Refusal> {
    claims.get(name).map(|value| value.as_f64().ok_or(BAD_CLAIM)).transpose()
}

fn text<'a>(claims: &'a Map<String, Value>, name: &str) -> Result<Option<&'a str>, Refusal> {
    claims.get(name).map(|value| value.as_str().ok_or(BAD_CLAIM)).transpose()
}
