//! `basic`: a user's name and password (RFC 7617); the consumer has the password's hash.
//!
//! Hashes are slow on purpose, so they are made on threads of their own, so many at a time; a password that was
//! right is known for a while. Whether a user is known can be told neither from the answer nor from its time.

mod bench;
mod known;
mod password;
#[cfg(test)]
mod tests;

use std::borrow::Cow;
use std::net::IpAddr;
use std::num::NonZeroU16;
use std::sync::Arc;
use std::time::SystemTime;

use async_trait::async_trait;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use futures_util::FutureExt;
use http::HeaderValue;
use http::header::AUTHORIZATION;
use pingora_http::RequestHeader;
use schemars::JsonSchema;
use serde::Deserialize;
use sha2::{Digest, Sha256};
use zeroize::Zeroizing;

use self::bench::Bench;
use self::known::{Known, StandIn};
use super::consumers::{Consumers, IdentityNo, Lapse, Proof};
use super::flight::Flights;
use super::{
    Failure, Identity, IdentityState, Presented, Refusal, Site, Source, Unavailable, Verified, challenge,
    only_one, scheme,
};
use crate::context::{Consumer, Context, Principal};
use crate::values::{DurationOrZero, Scalar};

pub use self::password::PasswordHash;

/// The longest name and password that are looked at, in base64.
const LONGEST: usize = 4096;
const SCHEME: &str = "basic";
const WRONG: Refusal = Refusal::new("the user name or the password is wrong");
const MALFORMED: Refusal = Refusal::new("the credentials are no user name and password in base64");

/// Names and passwords of users (RFC 7617), which consumers of the document have under `credentials`.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(rename = "BasicIdentity")]
pub(super) struct Options {
    /// What it is: `basic`.
    #[serde(rename = "type")]
    pub(super) _kind: Type,
    /// Whether the credentials are taken out of the request before it goes on.
    #[serde(default)]
    pub(super) hide: bool,
    /// How long a password that was right is known without being hashed again; `0s` hashes it each time. What
    /// ends or is disabled ends at once all the same.
    #[serde(default = "five_minutes")]
    pub(super) remember: DurationOrZero,
    /// How many passwords are hashed at a time; by default half as many as there are cores.
    #[serde(default)]
    pub(super) parallel: Option<NonZeroU16>,
    /// How many more may wait for that; over it: 503. One client has at most an eighth of all places, or `parallel`
    /// of them if that is more.
    #[serde(default = "sixty_four")]
    pub(super) queue: u16,
}

/// The one value of `type`.
#[derive(Debug, Clone, Copy, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
#[schemars(rename = "BasicType")]
pub(super) enum Type {
    /// `basic`
    Basic,
}

fn five_minutes() -> DurationOrZero {
    DurationOrZero::read("5m").expect("a duration")
}

fn half_the_cores() -> NonZeroU16 {
    let cores = std::thread::available_parallelism().map_or(1, |cores| cores.get());
    u16::try_from(cores / 2).ok().and_then(NonZeroU16::new).unwrap_or(NonZeroU16::MIN)
}

fn sixty_four() -> u16 {
    64
}

/// See the [module](self).
pub(super) struct Basic {
    name: Arc<str>,
    sources: Vec<Source>,
    hide: bool,
    consumers: Arc<Consumers>,
    number: Option<IdentityNo>,
    bench: Arc<Bench>,
    /// What is hashed now, by whose password it is.
    under_way: Flights<[u8; 32], Result<Option<usize>, Unavailable>>,
    known: Arc<Known>,
    stand_in: StandIn,
}

/// A user's password, and whether it counts.
struct Candidate {
    consumer: Arc<Consumer>,
    id: Arc<str>,
    hash: PasswordHash,
    lapse: Option<Lapse>,
}

impl Basic {
    pub(super) fn new(name: Arc<str>, options: Options, consumers: Arc<Consumers>, site: &Site<'_>) -> Self {
        let number = consumers.layout().number(&name);
        let parallel = options.parallel.unwrap_or_else(half_the_cores);
        let (parallel, queue) = (parallel.get().into(), options.queue.into());
        // A reload gives nobody more of the machine.
        let shape = format!("basic {name} {parallel} {queue}");
        let bench = site.world.retained.get_or_make(&shape, || Arc::new(Bench::new(parallel, queue)));
        // Nor has it all passwords hashed again at once.
        let remember = options.remember.get();
        let shape = format!("basic {name} known for {remember:?}");
        let known = site.world.retained.get_or_make(&shape, || Arc::new(Known::new(remember)));
        Self {
            name,
            sources: vec![Source::Header(AUTHORIZATION)],
            hide: options.hide,
            consumers,
            number,
            bench,
            under_way: Flights::default(),
            known,
            stand_in: StandIn::new(),
        }
    }

    /// The passwords that a user of this name may have.
    fn candidates(&self, user: &str, now: SystemTime) -> Vec<Candidate> {
        let index = self.consumers.load();
        let found = self.number.into_iter().flat_map(|number| index.named(number, user));
        let candidates = found.filter_map(|found| {
            let credential = found.credential()?;
            let Proof::Password(password) = credential.proof() else { return None };
            let (consumer, id) = (found.consumer().clone(), credential.id().clone());
            Some(Candidate { consumer, id, hash: password.hash.clone(), lapse: found.lapse(now) })
        });
        candidates.collect()
    }

    async fn verify(&self, credentials: &[u8], client: IpAddr, now: SystemTime) -> Result<Verified, Failure> {
        let (user, password) = read(credentials).ok_or(MALFORMED)?;
        let mut candidates = self.candidates(&user, now);
        let digest = |candidate: &Candidate| self.known.digest(&user, &password, &candidate.hash);
        let known = candidates.iter().position(|candidate| self.known.has(&digest(candidate), now));
        let right = match known {
            Some(known) => known,
            None => {
                let hashes = candidates.iter().map(|candidate| candidate.hash.clone()).collect();
                let right = self.hash(client, &user, password.clone(), hashes).await?.ok_or(WRONG)?;
                self.known.put(digest(&candidates[right]), now);
                right
            }
        };
        let Candidate { consumer, id, lapse, .. } = candidates.swap_remove(right);
        // Told only to who knows the password.
        if let Some(lapse) = lapse {
            return Err(
                Refusal::new(lapse.reason(["the password has expired", "the password is disabled"])).into()
            );
        }
        let principal = Principal { subject: user, claims: Default::default() };
        Ok(Verified {
            principal: principal.into(),
            consumer: Some(consumer),
            credential: Some(id),
            body: None,
            cookies: Vec::new(),
        })
    }

    /// Which of the hashes is of the password. Where there are fewer than others have, or none, it takes as long all
    /// the same. Who shows the same password meanwhile waits for the same work, and takes no further place.
    async fn hash(
        &self,
        client: IpAddr,
        user: &str,
        password: Zeroizing<Vec<u8>>,
        hashes: Vec<PasswordHash>,
    ) -> Result<Option<usize>, Unavailable> {
        let count = hashes.len();
        let hashes = self.with_stand_ins(hashes);
        let mut key = Sha256::new();
        hashes.iter().for_each(|hash| key.update(self.known.digest(user, &password, hash)));
        let bench = self.bench.clone();
        let work = move || async move { bench.find(client, password, hashes).await }.boxed();
        let right = self.under_way.join(key.finalize().into(), work).await?;
        Ok(right.filter(|at| *at < count))
    }

    /// As many hashes as the user has with most of them.
    fn with_stand_ins(&self, mut hashes: Vec<PasswordHash>) -> Vec<PasswordHash> {
        if let Some(hash) = hashes.last() {
            self.stand_in.set(hash);
        }
        let most = self.consumers.load().most_alike();
        if hashes.len() < most {
            hashes.resize(most, self.stand_in.get());
        }
        hashes
    }
}

/// The name and the password (RFC 7617 s2): neither has control characters, and the name no colon.
fn read(credentials: &[u8]) -> Option<(String, Zeroizing<Vec<u8>>)> {
    if credentials.len() > LONGEST {
        return None;
    }
    let decoded = Zeroizing::new(STANDARD.decode(credentials).ok()?);
    let colon = decoded.iter().position(|byte| *byte == b':')?;
    let (user, password) = (&decoded[..colon], &decoded[colon + 1..]);
    let user = std::str::from_utf8(user).ok()?;
    let has_controls = user.contains(char::is_control) || password.iter().any(u8::is_ascii_control);
    (!has_controls).then(|| (user.to_owned(), Zeroizing::new(password.to_vec())))
}

/// What a value of `Authorization` has for this identity.
fn of_basic<'a>(_: &Source, value: Cow<'a, [u8]>) -> Option<Cow<'a, [u8]>> {
    scheme::credentials(SCHEME, value)
}

#[async_trait]
impl Identity for Basic {
    fn name(&self) -> &Arc<str> {
        &self.name
    }

    async fn check(&self, request: &RequestHeader, ctx: &Context, now: SystemTime) -> Presented {
        match only_one(&self.sources, request, of_basic, "the request has several passwords") {
            Ok(None) => Presented::Nothing,
            Ok(Some(credentials)) => self.verify(&credentials, ctx.client.address, now).await.into(),
            Err(refusal) => Presented::Refused(refusal),
        }
    }

    fn hides(&self) -> bool {
        self.hide
    }

    fn scheme(&self) -> Option<&'static str> {
        Some(SCHEME)
    }

    /// RFC 7617 s2.1: names and passwords are UTF-8.
    fn challenge(&self, _: Option<&Refusal>) -> HeaderValue {
        challenge(&format!("Basic realm=\"{}\", charset=\"UTF-8\"", self.name))
    }

    fn sources(&self) -> &[Source] {
        &self.sources
    }

    fn has_claims(&self) -> bool {
        false
    }

    fn state(&self) -> IdentityState {
        IdentityState { kind: "basic", ..IdentityState::default() }
    }
}
