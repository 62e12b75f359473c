//! One consumer as it is looked up: small, for there may be a million of them.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use super::super::{KeyHash, PasswordHash, SigningKey};
use super::IdentityNo;
use crate::context::Consumer;

/// One consumer, with all it is known by.
#[derive(Debug)]
pub struct Record {
    pub(super) consumer: Arc<Consumer>,
    pub(super) credentials: Box<[Credential]>,
    pub(super) matches: Box<[Match]>,
    pub(super) disabled: bool,
}

impl Record {
    /// What requests are told of it.
    #[must_use]
    pub fn consumer(&self) -> &Arc<Consumer> {
        &self.consumer
    }

    /// Whether nothing it has counts for the time being.
    #[must_use]
    pub fn is_disabled(&self) -> bool {
        self.disabled
    }

    /// What it proves itself with, in written order.
    #[must_use]
    pub fn credentials(&self) -> &[Credential] {
        &self.credentials
    }

    /// Claims by which it is known, in written order.
    #[must_use]
    pub fn matches(&self) -> &[Match] {
        &self.matches
    }

    /// How many things it is found by.
    pub(super) fn slots(&self) -> u32 {
        u32::try_from(self.credentials.len() + self.matches.len()).unwrap_or(u32::MAX)
    }

    /// The identity and the key of a slot: those of its credentials, then its claims.
    pub(super) fn key(&self, slot: u32) -> (IdentityNo, Key<'_>) {
        let at = slot as usize;
        match self.credentials.get(at) {
            Some(credential) => credential.found_by(),
            None => {
                let matched = &self.matches[at - self.credentials.len()];
                (matched.identity, Key::Claim(&matched.claim, &matched.value))
            }
        }
    }

    /// Whether several credentials of one consumer may be found by the same.
    pub(super) fn may_repeat(&self, slot: u32) -> bool {
        let credential = self.credentials.get(slot as usize);
        credential.is_some_and(|credential| matches!(credential.proof, Proof::Password(_)))
    }

    /// The most of its credentials that are found by the same.
    pub(super) fn most_alike(&self) -> usize {
        let mut counts = HashMap::new();
        for slot in (0..self.slots()).filter(|slot| self.may_repeat(*slot)) {
            *counts.entry(self.key(slot)).or_insert(0) += 1;
        }
        counts.into_values().max().unwrap_or(1)
    }

    /// Where what a slot is found by is written, and what is said of one that has the same.
    pub(super) fn written(&self, slot: u32) -> (&'static str, &'static str) {
        self.credentials
            .get(slot as usize)
            .map_or(("value", "has the same claim and value"), |credential| credential.proof.written())
    }
}

/// What a consumer proves itself with.
#[derive(Debug)]
pub struct Credential {
    pub(super) id: Arc<str>,
    pub(super) identity: IdentityNo,
    pub(super) disabled: bool,
    /// In Unix seconds; the end of time for one that never ends.
    pub(super) expires: u64,
    pub(super) proof: Proof,
}

impl Credential {
    /// What logs call it; unique for the consumer.
    #[must_use]
    pub fn id(&self) -> &Arc<str> {
        &self.id
    }

    /// The identity that it is for.
    #[must_use]
    pub fn identity(&self) -> IdentityNo {
        self.identity
    }

    /// Whether it does not count for the time being.
    #[must_use]
    pub fn is_disabled(&self) -> bool {
        self.disabled
    }

    /// When it ends, if ever.
    #[must_use]
    pub fn expires(&self) -> Option<SystemTime> {
        let end = (self.expires != u64::MAX).then(|| Duration::from_secs(self.expires))?;
        SystemTime::UNIX_EPOCH.checked_add(end)
    }

    /// The identity and what it is found by there.
    pub(super) fn found_by(&self) -> (IdentityNo, Key<'_>) {
        (self.identity, self.proof.key())
    }

    /// What it is verified with.
    #[must_use]
    pub fn proof(&self) -> &Proof {
        &self.proof
    }
}

/// What a credential is verified with, by its type.
#[derive(Debug)]
pub enum Proof {
    /// The hash of a key.
    ApiKey(KeyHash),
    /// What a certificate is known by.
    Certificate(Box<str>),
    /// A user's name, and the hash of a password.
    Password(Box<Password>),
    /// A key of signatures.
    Signing(Box<Signing>),
}

/// A user's name, and the hash of a password.
#[derive(Debug)]
pub struct Password {
    pub(in crate::identity) user: Box<str>,
    pub(in crate::identity) hash: PasswordHash,
}

/// A key of signatures, and what requests call it.
#[derive(Debug)]
pub struct Signing {
    pub(in crate::identity) key_id: Box<str>,
    pub(in crate::identity) key: SigningKey,
}

impl Proof {
    /// What users call the type.
    #[must_use]
    pub fn kind(&self) -> &'static str {
        match self {
            Self::ApiKey(_) => "api_key",
            Self::Certificate(_) => "mtls",
            Self::Password(_) => "basic",
            Self::Signing(_) => "hmac",
        }
    }

    /// What it is found by.
    pub(super) fn key(&self) -> Key<'_> {
        match self {
            Self::ApiKey(hash) => Key::ApiKey(*hash),
            Self::Certificate(name) => Key::Name(name),
            Self::Password(password) => Key::Name(&password.user),
            Self::Signing(signing) => Key::Name(&signing.key_id),
        }
    }

    /// The option that gives what it is found by, and what is said of one that has the same.
    fn written(&self) -> (&'static str, &'static str) {
        match self {
            Self::ApiKey(_) => ("hash", "is the same key"),
            Self::Certificate(_) => ("id", "is known by the same certificate"),
            Self::Password(_) => ("id", "has the same user"),
            Self::Signing(_) => ("id", "has the same key id"),
        }
    }
}

/// What a request shows and a consumer is found by; no two consumers have the same for one identity.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Key<'a> {
    /// The hash of the API key.
    ApiKey(KeyHash),
    /// A verified claim and its value as text.
    Claim(&'a str, &'a str),
    /// A name that credentials go by: of a user, of a key.
    Name(&'a str),
}

/// A claim by which a consumer is known.
#[derive(Debug)]
pub struct Match {
    pub(super) identity: IdentityNo,
    pub(super) claim: Arc<str>,
    pub(super) value: Box<str>,
}

impl Match {
    /// The identity that verifies the claim.
    #[must_use]
    pub fn identity(&self) -> IdentityNo {
        self.identity
    }

    /// The claim's name.
    #[must_use]
    pub fn claim(&self) -> &str {
        &self.claim
    }

    /// Its value.
    #[must_use]
    pub fn value(&self) -> &str {
        &self.value
    }
}
