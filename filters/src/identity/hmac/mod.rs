//! `hmac`: signatures of requests, with a secret or a key that only the consumer has.
//!
//! Two forms are taken: HTTP Message Signatures (RFC 9421), and a simple scheme for clients without a library of
//! those:
//!
//! ```text
//! Authorization: HMAC id="k1", created="1767225600", nonce="b9c1", digest="..", signature=".."
//! ```
//!
//! `signature` is the base64 of HMAC-SHA256, with the key's secret, of seven lines with `\n` between them:
//! `HMAC-SHA256`, the method, the authority (the `Host` in lower case, without the scheme's own port), path and query
//! as in the request line, `created` in Unix seconds, the nonce or nothing, and `digest`: the base64 of the body's
//! SHA-256, or nothing where there is no body.
//!
//! What is signed is the path in its normal form, as the gateway passes it on.

mod component;
mod key;
mod message;
mod options;
mod others;
mod plain;
#[cfg(test)]
mod tests;

use std::borrow::Cow;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use async_trait::async_trait;
use bytes::Bytes;
use http::HeaderValue;
use http::header::AUTHORIZATION;
use pingora_http::RequestHeader;
use sha2::{Digest, Sha256};

use self::component::Message;
use self::key::SignatureAlgorithm as Algorithm;
use self::message::{SIGNATURE, SIGNATURE_INPUT, Signature};
use self::options::{BodyRule, NonceRule, Scheme};
use self::plain::Credentials;
use super::consumers::{Consumers, IdentityNo, Lapse, Proof};
use super::{
    BodyProof, Failure, Identity, IdentityState, Presented, Refusal, Site, Source, Unavailable, Verified,
    challenge, only_one, scheme,
};
use crate::context::{Consumer, Context, Principal};
use crate::filter::BuildError;
use crate::world::{Budget, Charge, DEFAULT_STATE_ENTRIES, Ledger, ScopedState, Spent, StateError};

pub use self::key::{SignatureAlgorithm, SigningKey};
pub(super) use self::options::Options;

const CONTENT_DIGEST: http::HeaderName = http::HeaderName::from_static("content-digest");
/// The simple scheme's name.
const SCHEME: &str = "hmac";
/// The longest time for which a store knows a nonce: almost a year.
const LONGEST_WAIT: Duration = Duration::from_secs(31_000_000);
/// Times of signatures are whole seconds: one that ends in a second may be taken for all of it.
const TO_THE_END: Duration = Duration::from_secs(1);
/// The longest nonce, in bytes.
const LONGEST_NONCE: usize = 256;
/// New nonces that one consumer may have at once.
const AT_ONCE: u32 = 20_000;
/// New nonces that one consumer may have besides, in the time for which one is remembered.
const STEADY: u32 = 480_000;
// However many one has, others find room.
const _: () = assert!((AT_ONCE + STEADY) as usize <= DEFAULT_STATE_ENTRIES / 2);

/// See the [module](self).
pub(super) struct Hmac {
    name: Arc<str>,
    options: Options,
    sources: Vec<Source>,
    consumers: Arc<Consumers>,
    number: Option<IdentityNo>,
    nonces: ScopedState,
    /// How many of them each consumer may still have.
    shares: ScopedState,
    /// As [`nonces`](Self::nonces), for all gateways that share a store.
    shared: Option<Ledger>,
    /// What times of requests are told by.
    epoch: Instant,
}

/// A key, whose it is, and whether it counts.
struct Owned {
    consumer: Arc<Consumer>,
    id: Arc<str>,
    key: SigningKey,
    lapse: Option<Lapse>,
}

impl Hmac {
    pub(super) fn new(
        name: Arc<str>,
        options: Options,
        consumers: Arc<Consumers>,
        site: &Site<'_>,
    ) -> Result<Self, BuildError> {
        if options.schemes.is_empty() {
            return Err(BuildError::at(
                "schemes",
                "no signature could ever be found; add `message_signature`",
            ));
        }
        let number = consumers.layout().number(&name);
        let fields = [SIGNATURE_INPUT.clone(), SIGNATURE.clone()].map(Source::Header);
        let takes = |scheme| options.schemes.contains(&scheme);
        let mut sources = Vec::new();
        sources.extend(fields.into_iter().filter(|_| takes(Scheme::MessageSignature)));
        sources.extend(takes(Scheme::Authorization).then_some(Source::Header(AUTHORIZATION)));
        let nonces = ScopedState::new(site.world.state.clone(), format!("nonces of {name}").into());
        let store = options.store.as_ref().map(|store| site.store(store.as_str())).transpose()?;
        let shared =
            store.map(|store| Ledger::new(nonces.of(format!("shared nonces of {name}")), Some(store)));
        let shares = nonces.of(format!("shares of nonces of {name}"));
        let epoch = site.world.clock.now();
        Ok(Self { name, options, sources, consumers, number, nonces, shares, shared, epoch })
    }

    fn takes(&self, scheme: Scheme) -> bool {
        self.options.schemes.contains(&scheme)
    }

    /// What the request has, in whichever form; both at once are ambiguous.
    async fn verify(&self, message: Message<'_>, now: SystemTime) -> Result<Option<Verified>, Failure> {
        let several = "the request has several signatures";
        let plain = match self.takes(Scheme::Authorization) {
            true => only_one(&self.sources, message.request, of_plain, several)?,
            false => None,
        };
        let signatures = match self.takes(Scheme::MessageSignature) {
            true => message::read(message)?,
            false => None,
        };
        match (plain, signatures) {
            (Some(_), Some(_)) => Err(Refusal::ambiguous(several).into()),
            (Some(credentials), None) => self.plain(&credentials, message, now).await.map(Some),
            (None, Some(signatures)) => self.signed(signatures, message, now).await,
            (None, None) => Ok(None),
        }
    }

    async fn plain(&self, value: &[u8], message: Message<'_>, now: SystemTime) -> Result<Verified, Failure> {
        let credentials = Credentials::read(value)?;
        self.in_time(Some(credentials.created), None, now)?;
        let owned = self.key(&credentials.key_id, now)?;
        if owned.key.algorithm() != Algorithm::HmacSha256 {
            return Err(Refusal::new("the key is not for the scheme HMAC").into());
        }
        let base = credentials.base(message)?;
        self.check(&owned, base.as_bytes(), &credentials.signature)?;
        let consumer = &owned.consumer.name;
        self.once(credentials.nonce.as_deref(), &credentials.key_id, consumer, message.ctx).await?;
        Ok(owned.verified(Some(credentials.body())))
    }

    /// The first signature that holds; none where all are for somebody else.
    async fn signed(
        &self,
        signatures: Vec<Signature>,
        message: Message<'_>,
        now: SystemTime,
    ) -> Result<Option<Verified>, Failure> {
        let mut wrong = None;
        for signature in signatures {
            if self.options.tag.is_some() && signature.params.tag != self.options.tag {
                continue;
            }
            match self.one(&signature, message, now).await {
                Ok(verified) => return Ok(Some(verified)),
                Err(failure) => wrong = wrong.or(Some(failure)),
            }
        }
        wrong.map_or(Ok(None), Err)
    }

    async fn one(
        &self,
        signature: &Signature,
        message: Message<'_>,
        now: SystemTime,
    ) -> Result<Verified, Failure> {
        let params = &signature.params;
        self.in_time(params.created, params.expires, now)?;
        if !self.options.components.iter().all(|wanted| signature.covers(&wanted.0)) {
            return Err(Refusal::new("the signature does not cover all it has to").into());
        }
        let key_id = params.key_id.as_deref().ok_or(Refusal::new("the signature names no key"))?;
        let owned = self.key(key_id, now)?;
        // Never the other way round: the key says what it is for.
        if params.algorithm.as_deref().is_some_and(|name| name != owned.key.algorithm().name()) {
            return Err(Refusal::new("the signature is of another algorithm than the key").into());
        }
        self.check(&owned, &signature.base(message)?, &signature.bytes)?;
        let body = self.body(signature, message)?;
        self.once(params.nonce.as_deref(), key_id, &owned.consumer.name, message.ctx).await?;
        Ok(owned.verified(body))
    }

    /// What the body has to be, for what the signature covers.
    fn body(&self, signature: &Signature, message: Message<'_>) -> Result<Option<BodyProof>, Refusal> {
        match (signature.covers_digest(), self.options.body) {
            (true, _) => BodyProof::from_field(&message.field(&CONTENT_DIGEST)?).map(Some),
            (false, BodyRule::Covered) => Ok(Some(BodyProof::Empty)),
            (false, BodyRule::IfCovered) => Ok(None),
        }
    }

    fn in_time(&self, created: Option<i64>, expires: Option<i64>, now: SystemTime) -> Result<(), Refusal> {
        let seconds = |time: std::time::Duration| i64::try_from(time.as_secs()).unwrap_or(i64::MAX);
        let now = seconds(now.duration_since(UNIX_EPOCH).unwrap_or_default());
        let (skew, window) = (seconds(self.options.skew.get()), seconds(self.options.window.get()));
        let created = created.ok_or(Refusal::new("the signature does not say when it was made"))?;
        if created > now.saturating_add(skew) {
            return Err(Refusal::new("the signature was made in the future"));
        }
        if now > created.saturating_add(window).saturating_add(skew) {
            return Err(Refusal::new("the signature is too old"));
        }
        if expires.is_some_and(|end| now > end.saturating_add(skew)) {
            return Err(Refusal::new("the signature has expired"));
        }
        Ok(())
    }

    fn key(&self, key_id: &str, now: SystemTime) -> Result<Owned, Refusal> {
        const UNKNOWN: Refusal = Refusal::new("the key of the signature is not known");
        let index = self.consumers.load();
        let found = self.number.and_then(|number| index.named(number, key_id).next()).ok_or(UNKNOWN)?;
        let credential = found.credential().ok_or(UNKNOWN)?;
        let Proof::Signing(signing) = credential.proof() else { return Err(UNKNOWN) };
        let (consumer, id) = (found.consumer().clone(), credential.id().clone());
        Ok(Owned { consumer, id, key: signing.key.clone(), lapse: found.lapse(now) })
    }

    fn check(&self, owned: &Owned, base: &[u8], signature: &[u8]) -> Result<(), Refusal> {
        if !owned.key.verifies(base, signature) {
            return Err(Refusal::new("the signature is wrong"));
        }
        owned.lapse.map_or(Ok(()), |lapse| {
            Err(Refusal::new(lapse.reason(["the key has expired", "the key is disabled"])))
        })
    }

    /// A nonce is good for one request, as long as its signature could be.
    async fn once(
        &self,
        nonce: Option<&str>,
        key_id: &str,
        consumer: &str,
        ctx: &Context,
    ) -> Result<(), Failure> {
        let Some(nonce) = nonce else {
            return match self.options.nonce {
                NonceRule::Optional => Ok(()),
                NonceRule::Required => Err(Refusal::new("the signature has no nonce").into()),
            };
        };
        if nonce.is_empty() || nonce.len() > LONGEST_NONCE {
            return Err(Refusal::new("the nonce is too short or too long").into());
        }
        let mut digest = Sha256::new_with_prefix((key_id.len() as u64).to_be_bytes());
        digest.update(key_id);
        digest.update(nonce);
        let key = digest.finalize();
        let ttl = self.options.window.get() + 2 * self.options.skew.get() + TO_THE_END;
        self.share(&key, consumer, ttl, ctx).await?;
        // The same request may be asked for its credentials in several places.
        let ours = ctx.started.saturating_duration_since(self.epoch).as_nanos();
        let ours = Bytes::from(format!("{} {ours}", ctx.request_id));
        let good = self.shared.is_some().then(|| Bytes::from([&ours[..], b" good"].concat()));
        // What is let go is nobody's.
        let may_be_ours = |known: Option<&[u8]>| known.is_none_or(|known| known.is_empty() || known == ours);
        let (mut is_ours, mut is_good) = (true, false);
        let mut claim = |known: Option<&[u8]>| {
            is_good = good.is_some() && known == good.as_deref();
            is_ours = is_good || may_be_ours(known);
            (is_ours && !is_good).then(|| ours.clone())
        };
        let told = self.nonces.update(ctx.tenant, &key, ttl, &mut claim).await;
        told.map_err(Unavailable::from)?;
        if is_good {
            return Ok(());
        }
        let is_first = if is_ours { self.is_first(&key, ttl, ctx).await } else { Ok(false) };
        let settled = match is_first {
            // Not before the store said so: a request may have its signature twice.
            Ok(true) => good,
            Ok(false) => None,
            // Nobody came in by it, so it is let go: whoever sends it again has the store asked again.
            Err(_) => Some(Bytes::new()),
        };
        if let Some(settled) = settled {
            let mut settle = |known: Option<&[u8]>| may_be_ours(known).then(|| settled.clone());
            let told = self.nonces.update(ctx.tenant, &key, ttl, &mut settle).await;
            told.map_err(Unavailable::from)?;
        }
        if is_first? { Ok(()) } else { Err(Refusal::new("the nonce was used already").into()) }
    }

    /// Takes a new nonce of its consumer's share of all that are remembered. One that is known costs nothing: by copies
    /// of requests anybody could use the share up.
    async fn share(
        &self,
        key: &[u8],
        consumer: &str,
        ttl: Duration,
        ctx: &Context,
    ) -> Result<(), Unavailable> {
        let is_known = self.nonces.get(ctx.tenant, key).await?.is_some();
        let Some(share) = Budget::new(ttl / STEADY, AT_ONCE).filter(|_| !is_known) else { return Ok(()) };
        if self.shares.spend(ctx.tenant, &mut [Charge::new(consumer.as_bytes(), share, 1)]).await? {
            return Ok(());
        }
        Err(Unavailable { reason: "the consumer has its share of nonces".into(), retry_after: 1 })
    }

    /// Whether no gateway saw a nonce before: it is a budget of one, that is whole again after this time.
    async fn is_first(&self, key: &[u8], ttl: Duration, ctx: &Context) -> Result<bool, Unavailable> {
        let (Some(shared), Some(one)) = (&self.shared, Budget::new(ttl.min(LONGEST_WAIT), 1)) else {
            return Ok(true);
        };
        let spent = shared.spend(ctx.tenant, &mut [Charge::new(key, one, 1)]).await?;
        Ok(spent != Spent::No)
    }
}

impl From<StateError> for Unavailable {
    fn from(error: StateError) -> Self {
        let reason = match error {
            StateError::Full => "there are more nonces than can be remembered",
            _ => "nobody knows which nonces were used",
        };
        Self { reason: reason.into(), retry_after: 1 }
    }
}

impl Owned {
    fn verified(self, body: Option<BodyProof>) -> Verified {
        let principal = Principal { subject: self.consumer.name.to_string(), claims: Default::default() };
        let (consumer, credential) = (Some(self.consumer), Some(self.id));
        Verified { principal: Arc::new(principal), consumer, credential, body, cookies: Vec::new() }
    }
}

/// What a value has for the simple scheme.
fn of_plain<'a>(source: &Source, value: Cow<'a, [u8]>) -> Option<Cow<'a, [u8]>> {
    source.is_authorization().then(|| scheme::credentials(SCHEME, value)).flatten()
}

#[async_trait]
impl Identity for Hmac {
    fn name(&self) -> &Arc<str> {
        &self.name
    }

    async fn check(&self, request: &RequestHeader, ctx: &Context, now: SystemTime) -> Presented {
        match self.verify(Message { request, ctx }, now).await {
            Ok(None) => Presented::Nothing,
            Ok(Some(verified)) => Presented::Valid(verified),
            Err(failure) => Err(failure).into(),
        }
    }

    fn hides(&self) -> bool {
        self.options.hide
    }

    fn take_out(&self, source: &Source, request: &mut RequestHeader, ctx: &mut Context) {
        match &self.options.tag {
            _ if source.is_authorization() => scheme::take_out(SCHEME, request),
            Some(tag) => others::keep(tag, request),
            None => source.remove(request, ctx),
        }
    }

    fn scheme(&self) -> Option<&'static str> {
        Some(SCHEME)
    }

    fn tag(&self) -> Option<&str> {
        self.options.tag.as_deref()
    }

    /// For message signatures no scheme is registered; clients are told which one to look up.
    fn challenge(&self, _: Option<&Refusal>) -> HeaderValue {
        let schemes = self.options.schemes.iter().map(|scheme| match scheme {
            Scheme::MessageSignature => format!("Signature realm=\"{}\"", self.name),
            Scheme::Authorization => format!("HMAC realm=\"{}\"", self.name),
        });
        challenge(&schemes.collect::<Vec<_>>().join(", "))
    }

    fn sources(&self) -> &[Source] {
        &self.sources
    }

    fn has_claims(&self) -> bool {
        false
    }

    fn state(&self) -> IdentityState {
        IdentityState { kind: "hmac", ..IdentityState::default() }
    }

    fn max_body(&self) -> Option<u64> {
        Some(self.options.max_body.get())
    }
}
