//! `introspection`: tokens that only their issuer can read, who is asked about them (RFC 7662).
//!
//! Answers are remembered for a while, so that an issuer is asked once about a token, however many requests
//! come with it. An issuer that does not answer makes no token invalid: nobody can tell, which is a 503.

mod issuer;
mod options;
#[cfg(test)]
mod tests;

use std::net::IpAddr;
use std::sync::Arc;
use std::time::SystemTime;

use async_trait::async_trait;
use http::HeaderValue;
use pingora_http::RequestHeader;
use sha2::{Digest, Sha256};

use super::claims::{self, Rules};
use super::consumers::Matches;
use super::{Failure, Identity, IdentityState, Presented, Refusal, Site, Source, Verified, bearer, only_one};
use crate::context::Context;
use crate::filter::BuildError;
use crate::values::hex;
use crate::world::Revocations;

use issuer::Issuer;
pub(super) use options::Options;

/// The longest token that is asked about, in bytes.
const LONGEST: usize = 16 * 1024;

/// See the [module](self).
pub(super) struct Introspection {
    name: Arc<str>,
    sources: Vec<Source>,
    hide: bool,
    issuer: Arc<Issuer>,
    rules: Rules,
    matches: Matches,
    revocations: Arc<Revocations>,
}

impl Introspection {
    pub(super) fn new(
        name: Arc<str>,
        options: Options,
        matches: Matches,
        site: &Site<'_>,
    ) -> Result<Self, BuildError> {
        if options.from.is_empty() {
            return Err(BuildError::at("from", "no token could ever be found; add `header:authorization`"));
        }
        if options.client_id.is_empty() {
            return Err(BuildError::at("client_id", "expected who asks"));
        }
        let via = site.via(options.upstream.as_deref())?;
        let remote = site.remote("endpoint", &options.endpoint, via, options.timeout.get())?;
        let leeway = claims::leeway(options.leeway)?;
        let shape = shape(&name, &options, via);
        let make = || Arc::new(Issuer::new(name.clone(), remote, &options, site.world));
        let issuer = site.world.retained.get_or_make(&shape, make);
        let Options { issuer: expected, audiences, required_claims: required, from, hide, .. } = options;
        let rules = Rules { issuer: expected, audiences, required, leeway };
        let revocations = site.world.revocations.clone();
        Ok(Self { name, sources: from, hide, issuer, rules, matches, revocations })
    }

    async fn verify(&self, token: &[u8], client: IpAddr, now: SystemTime) -> Result<Verified, Failure> {
        if token.len() > LONGEST {
            return Err(Refusal::new("the token is larger than 16 KiB").into());
        }
        let token = std::str::from_utf8(token).ok().filter(|token| is_token(token));
        let token = token.ok_or(Refusal::new("the token is malformed"))?;
        let Some(principal) = self.issuer.ask(token, client, now).await? else {
            return Err(Refusal::new("the token is not active").into());
        };
        self.rules.check(&principal.claims, now)?;
        claims::check_revoked(&self.revocations, &self.name, &principal.claims, now)?;
        let consumer = self.matches.find(&principal.claims)?;
        Ok(Verified { principal, consumer, credential: None, body: None, cookies: Vec::new() })
    }
}

/// All that answers depend on; what was learnt lives on with the same.
fn shape(name: &str, options: &Options, via: Option<crate::world::UpstreamId>) -> String {
    let secret = hex(&Sha256::digest(options.client_secret.expose()));
    let Options { endpoint, client_id, client_auth, ttl, negative_ttl, timeout, token_cache, .. } = options;
    format!(
        "introspection {name} {endpoint} {via:?} {client_id:?} {secret} {client_auth:?} {ttl} {negative_ttl} {timeout} {token_cache}"
    )
}

/// `b64token` of RFC 6750 s2.1.
fn is_token(text: &str) -> bool {
    let body = text.trim_end_matches('=');
    let is_part = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~+/".contains(&byte);
    !body.is_empty() && body.bytes().all(is_part)
}

#[async_trait]
impl Identity for Introspection {
    fn name(&self) -> &Arc<str> {
        &self.name
    }

    async fn check(&self, request: &RequestHeader, ctx: &Context, now: SystemTime) -> Presented {
        match only_one(&self.sources, request, bearer::read, bearer::SEVERAL) {
            Ok(None) => Presented::Nothing,
            Ok(Some(token)) => self.verify(&token, ctx.client.address, now).await.into(),
            Err(refusal) => Presented::Refused(refusal),
        }
    }

    fn hides(&self) -> bool {
        self.hide
    }

    fn scheme(&self) -> Option<&'static str> {
        Some(bearer::SCHEME)
    }

    fn challenge(&self, refusal: Option<&Refusal>) -> HeaderValue {
        bearer::challenge(&self.name, refusal)
    }

    fn sources(&self) -> &[Source] {
        &self.sources
    }

    fn is_revocable(&self) -> bool {
        true
    }

    fn has_claims(&self) -> bool {
        true
    }

    fn state(&self) -> IdentityState {
        IdentityState {
            kind: "introspection",
            endpoint: Some(self.issuer.state()),
            ..IdentityState::default()
        }
    }
}
