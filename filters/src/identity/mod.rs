//! Identities: ways to prove who is calling, and the consumers that are known by them.
//!
//! They are built with the document; the filter `authenticate` is given them by name.

mod api_key;
mod basic;
mod bearer;
mod build;
mod cache;
mod certificate;
mod claims;
pub(crate) mod client;
pub mod consumers;
mod digest;
pub(crate) mod flight;
mod hmac;
mod introspection;
pub(crate) mod json;
mod jwt;
mod oidc;
mod places;
pub(crate) mod remote;
mod scheme;
mod source;
mod spec;

use std::borrow::Cow;
use std::fmt;
use std::sync::Arc;
use std::time::SystemTime;

use async_trait::async_trait;
use http::HeaderValue;
use pingora_http::RequestHeader;

use crate::context::{Consumer, Context, Principal};
use crate::outcome::Reply;

pub use api_key::KeyHash;
pub use basic::PasswordHash;
pub use build::{Identities, Site, build, index, layout};
pub use certificate::Fingerprint;
pub use client::form;
pub use digest::BodyProof;
pub use hmac::{SignatureAlgorithm, SigningKey};
pub use source::Source;
pub(crate) use source::remove_cookie;
pub use spec::{ConsumerSpec, CredentialHash, CredentialKind, CredentialSpec, IdentitySpec, MatchSpec};

/// A way to prove who is calling.
#[async_trait]
pub trait Identity: Send + Sync {
    /// What the document calls it.
    fn name(&self) -> &Arc<str>;
    /// Looks for its credential and verifies it; what is only there is never taken for verified.
    async fn check(&self, request: &RequestHeader, ctx: &Context, now: SystemTime) -> Presented;
    /// Whether its credentials are not for the upstream, also those that hold.
    fn hides(&self) -> bool {
        false
    }
    /// Takes what may be credentials of its own out of one of its sources; what is for somebody else stays there.
    fn take_out(&self, source: &Source, request: &mut RequestHeader, ctx: &mut Context) {
        match self.scheme() {
            Some(scheme) if source.is_authorization() => scheme::take_out(scheme, request),
            _ => source.remove(request, ctx),
        }
    }
    /// The scheme of its credentials in `Authorization`, if it takes one there.
    fn scheme(&self) -> Option<&'static str> {
        None
    }
    /// The tag of its credentials in other fields, if it looks at none without it (RFC 9421 s2.3).
    fn tag(&self) -> Option<&str> {
        None
    }
    /// How a caller is to prove itself, for `WWW-Authenticate` (RFC 9110 s11.6.1).
    fn challenge(&self, refusal: Option<&Refusal>) -> HeaderValue;
    /// Where its credentials are carried.
    fn sources(&self) -> &[Source];
    /// What logs must not show: by default where its credentials are carried.
    fn secrets(&self) -> &[Source] {
        self.sources()
    }
    /// Whether its credentials can be revoked before they end.
    fn is_revocable(&self) -> bool {
        false
    }
    /// Whether its credentials have claims.
    fn has_claims(&self) -> bool;
    /// What it knows now, for whoever operates the gateway.
    fn state(&self) -> IdentityState;
    /// The largest body that its credentials can speak of, in bytes; none if they speak of none.
    fn max_body(&self) -> Option<u64> {
        None
    }
    /// How users log in, if they do.
    fn login(&self) -> Option<&dyn Login> {
        None
    }
}

/// Takes credentials of an identity out of a request, but for those that stand where one of these others has its own,
/// and does not hide it.
pub(crate) fn take_out(
    identity: &dyn Identity,
    spare: &[Arc<dyn Identity>],
    request: &mut RequestHeader,
    ctx: &mut Context,
) {
    let differ = |one: Option<&str>, two: Option<&str>| one.zip(two).is_some_and(|(one, two)| one != two);
    let is_same = |other: &dyn Identity, source: &Source| {
        let is_other = match source.is_authorization() {
            true => differ(identity.scheme(), other.scheme()),
            false => differ(identity.tag(), other.tag()),
        };
        other.sources().contains(source) && !is_other
    };
    for source in identity.sources() {
        if !spare.iter().any(|other| !other.hides() && is_same(&**other, source)) {
            identity.take_out(source, request, ctx);
        }
    }
}

/// What a request has of one identity's credentials.
#[derive(Debug)]
pub enum Presented {
    /// None.
    Nothing,
    /// One that holds.
    Valid(Verified),
    /// One that does not.
    Refused(Refusal),
    /// One of which nobody can tell now.
    Unknown(Unavailable),
}

/// Why a credential is not taken: it is wrong, or nobody can tell.
#[derive(Debug)]
pub(crate) enum Failure {
    Refused(Refusal),
    Unknown(Unavailable),
}

impl From<Refusal> for Failure {
    fn from(refusal: Refusal) -> Self {
        Self::Refused(refusal)
    }
}

impl From<Unavailable> for Failure {
    fn from(unavailable: Unavailable) -> Self {
        Self::Unknown(unavailable)
    }
}

impl From<Result<Verified, Failure>> for Presented {
    fn from(verified: Result<Verified, Failure>) -> Self {
        match verified {
            Ok(verified) => Self::Valid(verified),
            Err(Failure::Refused(refusal)) => Self::Refused(refusal),
            Err(Failure::Unknown(unavailable)) => Self::Unknown(unavailable),
        }
    }
}

/// Why nobody can tell whether a credential holds: what it takes to tell is not there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unavailable {
    /// For the log; nothing of the credential.
    pub reason: Cow<'static, str>,
    /// Seconds until it is worth to try again, at least 1.
    pub retry_after: u64,
}

/// A credential that holds.
#[derive(Debug, Clone)]
pub struct Verified {
    /// What the credential says.
    pub principal: Arc<Principal>,
    /// The consumer of the document that it belongs to.
    pub consumer: Option<Arc<Consumer>>,
    /// What logs call it.
    pub credential: Option<Arc<str>>,
    /// What the body has to be, if the credential speaks of it.
    pub body: Option<BodyProof>,
    /// `Set-Cookie` of the answer, for a credential that was renewed.
    pub cookies: Vec<HeaderValue>,
}

impl Verified {
    /// The same, of which the answer to the request sends no cookies.
    pub(crate) fn without_cookies(&self) -> Self {
        Self { cookies: Vec::new(), ..self.clone() }
    }
}

/// Has users log in, beside looking at what requests show.
#[async_trait]
pub trait Login: Send + Sync {
    /// Answers a request that is for the identity itself, such as a browser's that comes back from a login; none for
    /// all others.
    async fn answer(&self, request: &RequestHeader) -> Option<Answered>;
    /// The answer to a request whose body was wanted.
    async fn answer_body(&self, request: &RequestHeader, body: &[u8]) -> Reply;
    /// Sends a browser that shows nothing to where its user can log in; none for what is no browser.
    async fn invite(&self, request: &RequestHeader, ctx: &Context) -> Option<Reply>;
}

/// What becomes of a request that is for an identity itself.
#[derive(Debug)]
pub enum Answered {
    /// It is answered.
    Reply(Reply),
    /// It is answered when its body is there.
    WantsBody,
}

/// What an identity knows now.
#[derive(Debug, Clone, Default)]
pub struct IdentityState {
    /// Its type.
    pub kind: &'static str,
    /// Its keys, if they are fetched.
    pub keys: Option<KeysState>,
    /// Whom it asks about tokens, if it does.
    pub endpoint: Option<EndpointState>,
}

/// A place that is asked about tokens.
#[derive(Debug, Clone)]
pub struct EndpointState {
    /// Where it is.
    pub url: String,
    /// Why it did not answer the last time, and since when.
    pub failing: Option<(String, SystemTime)>,
}

/// Keys that are fetched.
#[derive(Debug, Clone)]
pub struct KeysState {
    /// Where they come from: a set of keys, or the issuer whose document says where that is.
    pub from: String,
    /// How many there are that this identity verifies with.
    pub count: usize,
    /// When they were last fetched; never, if they were not.
    pub fetched: Option<SystemTime>,
    /// When they are fetched next.
    pub next: Option<SystemTime>,
    /// Why they cannot be fetched now, and since when.
    pub failing: Option<(String, SystemTime)>,
}

/// Why a credential does not hold.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    /// For the caller and the log; in lower case, without quotes, and nothing of the credential.
    pub reason: &'static str,
    /// The request is ambiguous rather than its credential wrong: 400 (RFC 6750 s3.1).
    pub ambiguous: bool,
}

impl Refusal {
    /// The credential is wrong.
    #[must_use]
    pub const fn new(reason: &'static str) -> Self {
        Self { reason, ambiguous: false }
    }

    /// There is more than one, and no telling which counts.
    #[must_use]
    pub const fn ambiguous(reason: &'static str) -> Self {
        Self { reason, ambiguous: true }
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.reason)
    }
}

/// The one credential that a request has in these places, as `read` finds it in a value there; more than
/// one is ambiguous, even if they are equal.
fn only_one<'a>(
    sources: &'a [Source],
    request: &'a RequestHeader,
    read: impl Fn(&Source, Cow<'a, [u8]>) -> Option<Cow<'a, [u8]>>,
    several: &'static str,
) -> Result<Option<Cow<'a, [u8]>>, Refusal> {
    let mut found = None;
    for source in sources {
        for value in source.values(request) {
            if let Some(credential) = read(source, value)
                && found.replace(credential).is_some()
            {
                return Err(Refusal::ambiguous(several));
            }
        }
    }
    Ok(found)
}

/// A challenge of this scheme; names of identities need no escapes (RFC 9110 s11.5).
fn challenge(text: &str) -> HeaderValue {
    HeaderValue::from_str(text).expect("schemes, names and reasons are visible ASCII")
}

/// Stands in the place of an identity that could not be built, in a document that is refused for it.
struct Broken {
    name: Arc<str>,
}

#[async_trait]
impl Identity for Broken {
    fn name(&self) -> &Arc<str> {
        &self.name
    }

    async fn check(&self, _: &RequestHeader, _: &Context, _: SystemTime) -> Presented {
        Presented::Refused(Refusal::new("the identity cannot be used"))
    }

    fn challenge(&self, _: Option<&Refusal>) -> HeaderValue {
        challenge(&format!("Unusable realm=\"{}\"", self.name))
    }

    fn sources(&self) -> &[Source] {
        &[]
    }

    fn has_claims(&self) -> bool {
        true
    }

    fn state(&self) -> IdentityState {
        IdentityState { kind: "broken", ..IdentityState::default() }
    }
}
