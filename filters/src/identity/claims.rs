//! What has to be true of the claims of tokens (RFC 7519 s4.1).

use std::time::{Duration, SystemTime};

use serde_json::{Map, Value};
use sha2::{Digest, Sha256};

use super::Refusal;
use super::cache::seconds;
use crate::filter::BuildError;
use crate::values::{DurationOrZero, hex};
use crate::world::{Matched, Revocations};

const BAD_CLAIM: Refusal = Refusal::new("a registered claim of the token has the wrong type");

/// What claims have to be.
#[derive(Debug)]
pub(super) struct Rules {
    pub(super) issuer: Option<String>,
    pub(super) audiences: Vec<String>,
    pub(super) required: Vec<String>,
    pub(super) leeway: Duration,
}

/// How far clocks may differ, within bounds: revocations last this much longer than what they revoke.
pub(super) fn leeway(written: DurationOrZero) -> Result<Duration, BuildError> {
    let leeway = written.get();
    match leeway > Duration::from_secs(3600) {
        true => Err(BuildError::at("leeway", "expected at most 1h")),
        false => Ok(leeway),
    }
}

impl Rules {
    /// Checks all that there is; `exp` may be absent.
    pub(super) fn check(&self, claims: &Map<String, Value>, now: SystemTime) -> Result<(), Refusal> {
        let (now, leeway) = (seconds(now), self.leeway.as_secs_f64());
        if date(claims, "exp")?.is_some_and(|end| now >= end + leeway) {
            return Err(Refusal::new("the token has expired"));
        }
        if date(claims, "nbf")?.is_some_and(|begin| now + leeway < begin) {
            return Err(Refusal::new("the token is not valid yet"));
        }
        date(claims, "iat")?;
        text(claims, "sub")?;
        self.check_issuer(claims)?;
        self.check_audience(claims)?;
        let absent = |name: &&String| claims.get(*name).is_none_or(Value::is_null);
        match self.required.iter().find(absent) {
            Some(_) => Err(Refusal::new("the token lacks a required claim")),
            None => Ok(()),
        }
    }

    /// Checks who made the token; of one that says itself that it is another's, no signature is needed to refuse it.
    pub(super) fn check_issuer(&self, claims: &Map<String, Value>) -> Result<(), Refusal> {
        let issuer = text(claims, "iss")?;
        match self.issuer.is_none() || issuer == self.issuer.as_deref() {
            true => Ok(()),
            false => Err(Refusal::new("the token is from another issuer")),
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

/// Bytes of the digest that stands for a token: enough that nobody makes two with the same.
const DIGEST: usize = 16;

/// Whom the token is about: where it has no `sub`, the client it was given to (`client_id` of RFC 7662 and RFC 9068,
/// `azp` of OpenID Connect). One that says neither is a caller of its own, by all that it says.
pub(super) fn subject(claims: &Map<String, Value>) -> String {
    let text = |name: &str| claims.get(name).and_then(Value::as_str).filter(|text| !text.is_empty());
    let client = || text("client_id").or(text("azp")).map(|client| format!("client:{client}"));
    text("sub").map(str::to_owned).or_else(client).unwrap_or_else(|| {
        let digest = Sha256::digest(serde_json::to_vec(claims).unwrap_or_default());
        format!("token:{}", hex(&digest[..DIGEST]))
    })
}

/// The end of a token, in Unix seconds, if it has one.
pub(super) fn end(claims: &Map<String, Value>) -> Option<f64> {
    date(claims, "exp").ok().flatten()
}

/// Refuses a token that was revoked.
pub(super) fn check_revoked(
    revocations: &Revocations,
    identity: &str,
    claims: &Map<String, Value>,
    now: SystemTime,
) -> Result<(), Refusal> {
    if revocations.is_empty() {
        return Ok(());
    }
    let text = |name: &str| claims.get(name).and_then(Value::as_str);
    let issued = date(claims, "iat").ok().flatten();
    let token = Matched { id: text("jti"), subject: text("sub"), issued };
    match revocations.revokes(identity, token, now) {
        true => Err(Refusal::new("the token was revoked")),
        false => Ok(()),
    }
}

/// A `NumericDate` (RFC 7519 s2), in seconds.
fn date(claims: &Map<String, Value>, name: &str) -> Result<Option<f64>, Refusal> {
    claims.get(name).map(|value| value.as_f64().ok_or(BAD_CLAIM)).transpose()
}

fn text<'a>(claims: &'a Map<String, Value>, name: &str) -> Result<Option<&'a str>, Refusal> {
    claims.get(name).map(|value| value.as_str().ok_or(BAD_CLAIM)).transpose()
}
