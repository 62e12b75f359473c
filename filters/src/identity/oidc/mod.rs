//! `oidc`: users who log in at a provider of OpenID Connect with a browser.
//!
//! Who logged in is kept in cookies that only the gateway can make and read: nothing has to be shared between gateways but
//! the keys of the cookies. What ends a session early, a logout here or one that the provider tells of, is on the list of
//! what no longer holds. With a store, sessions are kept there, and one that ends is taken out.

mod cookie;
mod login;
mod logout;
mod options;
mod provider;
mod session;
mod shelf;
#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::time::SystemTime;

use async_trait::async_trait;
use aws_lc_rs::rand;
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use http::HeaderValue;
use pingora_http::RequestHeader;
use serde_json::{Map, Value};

use super::consumers::Matches;
use super::jwt::{self, Verifier};
use super::{
    Answered, Failure, Identity, IdentityState, Login, Presented, Refusal, Site, Source, Verified, challenge,
};
use crate::context::{Context, Principal};
use crate::filter::BuildError;
use crate::outcome::Reply;
use crate::problem::Problem;
use crate::world::{Clock, Revocations};

use self::cookie::Jar;
pub(super) use self::options::Options;
use self::provider::Provider;
use self::session::{Current, Renewals, Session};
use self::shelf::Shelf;

/// The largest form with a logout token, in bytes.
const LARGEST: u64 = 32 * 1024;

/// See the [module](self).
pub(super) struct Oidc {
    party: Arc<Party>,
    /// Cookies, then what a browser brings back from the provider.
    sources: Vec<Source>,
    cookies: usize,
    matches: Matches,
}

/// What the provider calls a relying party: the gateway.
struct Party {
    name: Arc<str>,
    options: Options,
    provider: Provider,
    verifier: Verifier,
    jar: Jar,
    /// Where sessions are, if not in cookies.
    shelf: Option<Shelf>,
    renewals: Arc<Renewals>,
    revocations: Arc<Revocations>,
    clock: Arc<dyn Clock>,
}

impl Oidc {
    pub(super) fn new(
        name: Arc<str>,
        options: Options,
        matches: Matches,
        site: &Site<'_>,
    ) -> Result<Self, BuildError> {
        options.check()?;
        let Options { issuer, client_id, redirect_uri, cookie, cookie_keys, .. } = &options;
        let called = cookie.as_ref().map_or(&*name, |cookie| &*cookie.0);
        let called: String = called.replace(['.', '/'], "-");
        let scope = format!("{name}\n{issuer}\n{client_id}");
        let store = options.store.as_ref().map(|store| site.store(store.as_str())).transpose()?;
        let shelf = store.map(|store| Shelf::new(store, &scope));
        // A refresh token may be good for one use, also if there was a reload since.
        let shape = format!("oidc renewals {scope}");
        let renewals = site.world.retained.get_or_make(&shape, || Arc::new(Renewals::new()));
        let jar = Jar::new(&called, redirect_uri.is_https(), cookie_keys, scope);
        let verifier =
            jwt::of_issuer(&name, issuer, client_id, &options.algorithms, options.upstream.as_deref(), site)?;
        let party = Party {
            provider: Provider::new(&options, site)?,
            verifier,
            renewals,
            revocations: site.world.revocations.clone(),
            clock: site.world.clock.clone(),
            jar,
            shelf,
            options,
            name,
        };
        let mut sources = party.jar.sources();
        let cookies = sources.len();
        sources.extend(["code", "state"].map(|name| Source::Query(name.into())));
        Ok(Self { sources, cookies, party: Arc::new(party), matches })
    }

    fn verified(&self, session: &Session, cookies: Vec<HeaderValue>) -> Result<Verified, Refusal> {
        let claims = session.claims().unwrap_or_default();
        let subject = super::claims::subject(&claims);
        let consumer = self.matches.find(&claims)?;
        let principal = Arc::new(Principal { subject, claims });
        Ok(Verified { principal, consumer, credential: None, body: None, cookies })
    }

    async fn look(&self, request: &RequestHeader, dry_run: bool) -> Result<Option<Verified>, Failure> {
        let Some(session) = self.party.session(request).await? else { return Ok(None) };
        let now = self.party.now();
        if dry_run {
            // A renewal would spend the refresh token, and the browser is told of none by a dry run.
            let may_hold = self.party.may_hold(&session, now);
            return may_hold.then(|| self.verified(&session, Vec::new())).transpose().map_err(Failure::from);
        }
        match self.party.current(session, now).await? {
            Current::Ended => Ok(None),
            Current::Same(session) => Ok(Some(self.verified(&session, Vec::new())?)),
            Current::Renewed(session) => {
                let cookies = self.party.kept_anew(request, &session);
                Ok(Some(self.verified(&session, cookies)?))
            }
        }
    }
}

impl Party {
    /// The claims of a token of the provider for this client.
    async fn verify_any(&self, token: &str, now: SystemTime) -> Result<Map<String, Value>, Failure> {
        let (claims, _) = self.verifier.claims(token.as_bytes(), now).await?;
        Ok(claims)
    }

    /// The claims of a token that says who logged in (OpenID Connect Core 1.0 s3.1.3.7).
    async fn verify(&self, token: &str, now: SystemTime) -> Result<Map<String, Value>, Failure> {
        let claims = self.verify_any(token, now).await?;
        let text = |name: &str| claims.get(name).and_then(Value::as_str);
        if text("sub").is_none_or(str::is_empty) || !claims.contains_key("iat") {
            return Err(Refusal::new("the token lacks a required claim").into());
        }
        let several = claims.get("aud").and_then(Value::as_array).is_some_and(|all| all.len() > 1);
        let is_ours = claims.get("azp").map_or(!several, |party| *party == *self.options.client_id);
        match is_ours {
            true => Ok(claims),
            false => Err(Refusal::new("the token was given to another client").into()),
        }
    }
}

/// 256 random bits, as text.
fn random() -> Option<String> {
    let mut bytes = [0; 32];
    rand::fill(&mut bytes).ok()?;
    Some(URL_SAFE_NO_PAD.encode(bytes))
}

#[async_trait]
impl Identity for Oidc {
    fn name(&self) -> &Arc<str> {
        &self.party.name
    }

    async fn check(&self, request: &RequestHeader, ctx: &Context, _: SystemTime) -> Presented {
        match self.look(request, ctx.dry_run).await {
            Ok(None) => Presented::Nothing,
            Ok(Some(verified)) => Presented::Valid(verified),
            Err(failure) => Err(failure).into(),
        }
    }

    /// They are the gateway's own.
    fn hides(&self) -> bool {
        true
    }

    fn challenge(&self, _: Option<&Refusal>) -> HeaderValue {
        // No scheme is registered for what browsers are sent to.
        challenge(&format!("Session realm=\"{}\"", self.party.name))
    }

    fn sources(&self) -> &[Source] {
        &self.sources[..self.cookies]
    }

    fn secrets(&self) -> &[Source] {
        &self.sources
    }

    fn is_revocable(&self) -> bool {
        true
    }

    fn has_claims(&self) -> bool {
        true
    }

    fn state(&self) -> IdentityState {
        IdentityState { kind: "oidc", keys: self.party.verifier.state(), endpoint: None }
    }

    fn max_body(&self) -> Option<u64> {
        self.party.options.backchannel_logout.as_ref().map(|_| LARGEST)
    }

    fn login(&self) -> Option<&dyn Login> {
        Some(self)
    }
}

#[async_trait]
impl Login for Oidc {
    async fn answer(&self, request: &RequestHeader) -> Option<Answered> {
        let (party, path) = (&self.party, request.uri.path());
        let is = |written: &Option<options::LocalPath>| {
            written.as_ref().is_some_and(|written| *written.0 == *path)
        };
        if path == party.options.callback() {
            return Some(Answered::Reply(reply(party.finish(request).await)));
        }
        if is(&party.options.logout) {
            return Some(Answered::Reply(reply(party.log_out(request).await)));
        }
        is(&party.options.backchannel_logout).then_some(Answered::WantsBody)
    }

    async fn answer_body(&self, request: &RequestHeader, body: &[u8]) -> Reply {
        reply(self.party.end_sessions(request, body).await)
    }

    async fn invite(&self, request: &RequestHeader, ctx: &Context) -> Option<Reply> {
        if !login::is_navigation(request) {
            return None;
        }
        Some(reply(self.party.begin(request, ctx).await))
    }
}

fn reply(made: Result<Reply, Problem>) -> Reply {
    made.unwrap_or_else(Reply::from)
}
