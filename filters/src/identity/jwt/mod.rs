//! `jwt`: signed tokens (RFC 7519), by the advice of RFC 8725.
//!
//! The document says which algorithms there are and with which keys; of what a token says about itself only
//! `alg` and `kid` are looked at, and only to choose among those. No token makes the gateway fetch anything.

mod keys;
mod options;
#[cfg(test)]
mod tests;
mod token;

use std::borrow::Cow;
use std::sync::Arc;
use std::time::SystemTime;

use http::header::{AUTHORIZATION, HeaderValue};
use pingora_http::RequestHeader;
use serde_json::Value;

use super::consumers::Matches;
use super::{Identity, Presented, Refusal, Source, Verified, challenge, only_one};
use crate::context::{Context, Principal};
use crate::filter::BuildError;

pub(super) use options::Options;
use token::Verifier;

/// See the [module](self).
pub(super) struct Jwt {
    name: Arc<str>,
    sources: Vec<Source>,
    hide: bool,
    verifier: Verifier,
    matches: Matches,
}

impl Jwt {
    pub(super) fn new(name: Arc<str>, options: Options, matches: Matches) -> Result<Self, BuildError> {
        if options.from.is_empty() {
            return Err(BuildError::at("from", "no token could ever be found; add `header:authorization`"));
        }
        let (sources, hide) = (options.from.clone(), options.hide);
        Ok(Self { name, sources, hide, verifier: Verifier::new(options)?, matches })
    }

    fn verify(&self, token: &[u8], now: SystemTime) -> Result<Verified, Refusal> {
        let claims = self.verifier.claims(token, now)?;
        let consumer = self.matches.find(&claims)?;
        let subject = claims.get("sub").and_then(Value::as_str).unwrap_or_default().to_owned();
        Ok(Verified { principal: Arc::new(Principal { subject, claims }), consumer, credential: None })
    }
}

impl Identity for Jwt {
    fn name(&self) -> &Arc<str> {
        &self.name
    }

    fn check(&self, request: &RequestHeader, _: &Context, now: SystemTime) -> Presented {
        let verified = match only_one(&self.sources, request, read, "the request has several tokens") {
            Ok(None) => return Presented::Nothing,
            Ok(Some(token)) => self.verify(&token, now),
            Err(refusal) => Err(refusal),
        };
        verified.map_or_else(Presented::Refused, Presented::Valid)
    }

    fn hide(&self, request: &mut RequestHeader, ctx: &mut Context) {
        for source in self.sources.iter().filter(|_| self.hide) {
            let has_one = source.values(request).into_iter().any(|value| read(source, value).is_some());
            // Another scheme is for somebody else.
            if has_one {
                source.remove(request, ctx);
            }
        }
    }

    /// RFC 6750 s3: a request without token is told no error.
    fn challenge(&self, refusal: Option<&Refusal>) -> HeaderValue {
        let realm = &self.name;
        challenge(&match refusal {
            None => format!("Bearer realm=\"{realm}\""),
            Some(Refusal { reason, ambiguous }) => {
                let error = if *ambiguous { "invalid_request" } else { "invalid_token" };
                format!("Bearer realm=\"{realm}\", error=\"{error}\", error_description=\"{reason}\"")
            }
        })
    }

    fn sources(&self) -> &[Source] {
        &self.sources
    }

    fn has_claims(&self) -> bool {
        true
    }
}

/// The token in a value; `Authorization` has one only under the scheme `Bearer` (RFC 6750 s2.1).
fn read<'a>(source: &Source, value: Cow<'a, [u8]>) -> Option<Cow<'a, [u8]>> {
    const SCHEME: usize = "bearer".len();
    if !matches!(source, Source::Header(name) if *name == AUTHORIZATION) {
        return Some(value);
    }
    let is_bearer = value.get(..SCHEME)?.eq_ignore_ascii_case(b"bearer");
    let ends = value.get(SCHEME).is_none_or(|byte| *byte == b' ');
    (is_bearer && ends).then(|| match value {
        Cow::Borrowed(value) => value[SCHEME..].trim_ascii().into(),
        Cow::Owned(value) => value[SCHEME..].trim_ascii().to_vec().into(),
    })
}
