//! `jwt`: signed tokens (RFC 7519), by the advice of RFC 8725.
//!
//! The document says which algorithms there are and with which keys, or where those are; of what a token says
//! about itself only `alg` and `kid` are looked at, and only to choose among those. No token makes the gateway
//! call any place it names; one that names an unknown key has the keys of its issuer fetched once more, at most
//! once in five seconds.

mod fetched;
mod keys;
mod options;
mod place;
#[cfg(test)]
mod tests;
mod token;
#[cfg(test)]
mod wycheproof;

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use http::header::HeaderValue;
use pingora_http::RequestHeader;

use super::cache::{Cached, TokenCache, TokenHash, seconds};
use super::claims::{self, Rules};
use super::consumers::Matches;
use super::{Failure, Identity, IdentityState, Presented, Refusal, Site, Source, Verified, bearer, only_one};
use crate::context::{Context, Principal};
use crate::filter::BuildError;
use crate::values::{Scalar, Url};
use crate::world::{Revocations, UpstreamId};

use fetched::FetchedKeys;
pub(super) use fetched::PATIENCE;
use keys::Keys;
pub(super) use keys::{NO_KEY, public_key};
pub(super) use options::{AlgorithmName, Options};
use place::{Discovery, Place};
use token::KeyRing;
pub(super) use token::Verifier;

/// See the [module](self).
pub(super) struct Jwt {
    name: Arc<str>,
    sources: Vec<Source>,
    hide: bool,
    verifier: Verifier,
    matches: Matches,
    cache: TokenCache,
    revocations: Arc<Revocations>,
}

/// Longest fetch of keys, answer included.
const FETCH: Duration = Duration::from_secs(5);
/// How long keys are good for that do not say, where the document cannot either.
const REFRESH: Duration = Duration::from_secs(600);
/// How far clocks may differ, where the document cannot say.
const LEEWAY: Duration = Duration::from_secs(30);

const NO_KEYS: &str =
    "is no URL that could be asked for keys; add `jwks_uri`, or `jwks`, `public_key` or `secret`";

impl Jwt {
    pub(super) fn new(
        name: Arc<str>,
        options: Options,
        matches: Matches,
        site: &Site<'_>,
    ) -> Result<Self, BuildError> {
        if options.from.is_empty() {
            return Err(BuildError::at("from", "no token could ever be found; add `header:authorization`"));
        }
        if options.algorithms.is_empty() {
            return Err(BuildError::at("algorithms", "expected at least one, such as `RS256`"));
        }
        let keys = ring(&name, &options, site)?;
        let leeway = claims::leeway(options.leeway)?;
        let Options { issuer, audiences, required_claims: required, algorithms, .. } = options;
        let rules = Rules { issuer, audiences, required, leeway };
        Ok(Self {
            cache: TokenCache::new(options.token_cache, &name, &*site.world.metrics),
            revocations: site.world.revocations.clone(),
            sources: options.from,
            hide: options.hide,
            verifier: Verifier { keys, algorithms, rules },
            matches,
            name,
        })
    }

    async fn verify(&self, token: &[u8], now: SystemTime) -> Result<Verified, Failure> {
        let hash = self.cache.hash(token);
        let epoch = self.verifier.keys.epoch();
        let known = self.cache.get(hash.as_ref(), epoch, now).and_then(|known| known.principal);
        let principal = match known {
            Some(principal) => principal,
            None => self.look_into(token, hash, now).await?,
        };
        claims::check_revoked(&self.revocations, &self.name, &principal.claims, now)?;
        let consumer = self.matches.find(&principal.claims)?;
        Ok(Verified { principal, consumer, credential: None, body: None, cookies: Vec::new() })
    }

    async fn look_into(
        &self,
        token: &[u8],
        hash: Option<TokenHash>,
        now: SystemTime,
    ) -> Result<Arc<Principal>, Failure> {
        let (claims, keys) = self.verifier.claims(token, now).await?;
        let until = claims::end(&claims).unwrap_or_default();
        let principal = Arc::new(Principal { subject: claims::subject(&claims), claims });
        let holds = (seconds(now), until);
        self.cache.put(hash, Cached { principal: Some(principal.clone()), holds, keys, length: token.len() });
        Ok(principal)
    }
}

/// What verifies the tokens that an issuer gives a client, by keys that the issuer names.
pub(super) fn of_issuer(
    name: &Arc<str>,
    issuer: &Url,
    client: &str,
    algorithms: &[AlgorithmName],
    upstream: Option<&str>,
    site: &Site<'_>,
) -> Result<Verifier, BuildError> {
    let via = site.via(upstream)?;
    let remote = site.remote("issuer", issuer, via, FETCH)?;
    let wrong = || BuildError::at("issuer", "expected a URL without a query");
    let discovery = Discovery::new(issuer.as_str(), &remote, via.is_some()).ok_or_else(wrong)?;
    let place = Place::Issuer(Box::new(discovery));
    let keys = fetched(name, place, algorithms, (REFRESH, via), None, site);
    let (issuer, audiences) = (Some(issuer.as_str().to_owned()), vec![client.to_owned()]);
    let rules = Rules { issuer, audiences, required: Vec::new(), leeway: LEEWAY };
    Ok(Verifier { keys, algorithms: algorithms.to_vec(), rules })
}

/// Keys that are fetched, which outlive a reload; `first` and what tells it are gone by until then.
fn fetched(
    name: &Arc<str>,
    place: Place,
    algorithms: &[AlgorithmName],
    (lifetime, via): (Duration, Option<UpstreamId>),
    first: Option<(Keys, [u8; 32])>,
    site: &Site<'_>,
) -> KeyRing {
    let (first, written) = first.unzip();
    let shape = format!("jwt {name} {} {via:?} {algorithms:?} {lifetime:?} {written:?}", place.name());
    let start = || FetchedKeys::start(name.clone(), place, algorithms.to_vec(), lifetime, first, site.world);
    KeyRing::Fetched(site.world.retained.get_or_make(&shape, start))
}

/// What the tokens of an identity are verified with.
fn ring(name: &Arc<str>, options: &Options, site: &Site<'_>) -> Result<KeyRing, BuildError> {
    let Options { secret, public_key, jwks, jwks_uri, issuer, .. } = options;
    let written = secret.is_some() || public_key.is_some() || (jwks.is_some() && jwks_uri.is_none());
    if let Some(option) = [("jwks_uri", jwks_uri.is_some()), ("upstream", options.upstream.is_some())]
        .into_iter()
        .find_map(|(option, there)| (written && there).then_some(option))
    {
        return Err(BuildError::at(option, "the keys are written here, so none are fetched"));
    }
    if written {
        return Keys::written(options).map(|keys| KeyRing::Written(Arc::new(keys)));
    }
    let first = jwks.as_ref().map(|set| Ok((Keys::written(options)?, set.digest()))).transpose()?;
    let via = site.via(options.upstream.as_deref())?;
    let place = match (jwks_uri, issuer) {
        (Some(url), _) => Place::Set(site.remote("jwks_uri", url, via, FETCH)?),
        (None, Some(issuer)) => {
            let wrong = || BuildError::at("issuer", NO_KEYS);
            let url = Url::read(issuer).ok_or_else(wrong)?;
            let remote = site.remote("issuer", &url, via, FETCH)?;
            Place::Issuer(Box::new(Discovery::new(issuer, &remote, via.is_some()).ok_or_else(wrong)?))
        }
        (None, None) => {
            let needs =
                "needs one of `secret`, `public_key`, `jwks` and `jwks_uri`, or an `issuer` that is asked";
            return Err(BuildError::new(needs));
        }
    };
    Ok(fetched(name, place, &options.algorithms, (options.refresh.get(), via), first, site))
}

#[async_trait]
impl Identity for Jwt {
    fn name(&self) -> &Arc<str> {
        &self.name
    }

    async fn check(&self, request: &RequestHeader, _: &Context, now: SystemTime) -> Presented {
        match only_one(&self.sources, request, bearer::read, bearer::SEVERAL) {
            Ok(None) => Presented::Nothing,
            Ok(Some(token)) => self.verify(&token, now).await.into(),
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
        IdentityState { kind: "jwt", keys: self.verifier.state(), endpoint: None }
    }
}
