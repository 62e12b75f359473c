//! Consumers and their credentials: an index of its own beside the document, which changes without it.
//!
//! Identities hold [`Consumers`], and look up by what a request shows. Each state of the index is immutable; a
//! change makes the next one from the parts it touches, so that one consumer of a million costs no more than
//! one of ten, to find and to change.

mod clerk;
mod index;
mod proof;
mod record;
#[cfg(test)]
mod tests;

use std::borrow::Cow;
use std::collections::BTreeSet;
use std::sync::Arc;

use arc_swap::{ArcSwap, Guard};
use serde_json::{Map, Value};

use super::Refusal;
use super::spec::Kind;
use crate::context::Consumer;

pub use clerk::Clerk;
pub use index::{Clash, Found, Index, Lapse};
pub use record::{Credential, Key, Match, Proof, Record};

/// Names an identity within a [`Layout`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct IdentityNo(u16);

impl IdentityNo {
    /// Stands for an identity that could not be told: nothing is found under it.
    const NONE: Self = Self(u16::MAX);
}

/// What consumers of a document refer to.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Layout {
    /// Identities by name, and their types.
    identities: Vec<(Arc<str>, Option<Kind>)>,
    plans: BTreeSet<Arc<str>>,
}

impl Layout {
    /// These identities, of which those whose type is not known have none, and these plans.
    pub(super) fn new(
        identities: impl IntoIterator<Item = (Arc<str>, Option<Kind>)>,
        plans: impl IntoIterator<Item = Arc<str>>,
    ) -> Self {
        let mut identities: Vec<_> = identities.into_iter().collect();
        identities.sort();
        identities.truncate(usize::from(u16::MAX));
        Self { identities, plans: plans.into_iter().collect() }
    }

    /// The number of the identity of this name.
    #[must_use]
    pub fn number(&self, name: &str) -> Option<IdentityNo> {
        let at = self.identities.binary_search_by(|(known, _)| (**known).cmp(name)).ok()?;
        u16::try_from(at).ok().map(IdentityNo)
    }

    /// The name of the identity of this number, which is of this layout.
    #[must_use]
    pub fn name(&self, number: IdentityNo) -> &Arc<str> {
        &self.identities[usize::from(number.0)].0
    }

    fn kind(&self, number: IdentityNo) -> Option<Kind> {
        self.identities[usize::from(number.0)].1
    }

    fn names(&self) -> impl Iterator<Item = &str> {
        self.identities.iter().map(|(name, _)| &**name)
    }

    fn of_kind(&self, kind: Kind) -> impl Iterator<Item = IdentityNo> {
        (0..)
            .zip(&self.identities)
            .filter(move |(_, (_, other))| *other == Some(kind))
            .map(|(at, _)| IdentityNo(at))
    }
}

/// All consumers that there are at a time, for identities to look up.
#[derive(Debug)]
pub struct Consumers {
    layout: Layout,
    current: ArcSwap<Index>,
}

impl Consumers {
    /// These consumers, whose credentials are for identities of this layout.
    #[must_use]
    pub fn new(layout: Layout, index: Index) -> Self {
        Self { layout, current: ArcSwap::from_pointee(index) }
    }

    /// The identities that credentials refer to.
    #[must_use]
    pub fn layout(&self) -> &Layout {
        &self.layout
    }

    /// The consumers there are now. Not to be held for long: it keeps what is replaced alive.
    #[must_use]
    pub fn load(&self) -> Guard<Arc<Index>> {
        self.current.load()
    }

    /// Puts other consumers in their place, for every lookup from now on.
    pub fn store(&self, index: Index) {
        self.current.store(Arc::new(index));
    }
}

/// The consumers that one identity's claims name.
#[derive(Debug)]
pub(super) struct Matches {
    consumers: Arc<Consumers>,
    identity: Option<IdentityNo>,
}

impl Matches {
    pub(super) fn new(consumers: Arc<Consumers>, identity: &str) -> Self {
        let identity = consumers.layout().number(identity);
        Self { consumers, identity }
    }

    /// The consumer whom these claims name; two at once are none.
    pub(super) fn find(&self, claims: &Map<String, Value>) -> Result<Option<Arc<Consumer>>, Refusal> {
        let index = self.consumers.load();
        let Some(identity) = self.identity else { return Ok(None) };
        let mut found: Option<Found<'_>> = None;
        for claim in index.claims(identity) {
            let text: Cow<'_, str> = match claims.get(&**claim) {
                Some(Value::String(text)) => text.into(),
                Some(value @ (Value::Number(_) | Value::Bool(_))) => value.to_string().into(),
                _ => continue,
            };
            let Some(one) = index.find(identity, Key::Claim(claim, &text)) else { continue };
            let name = &one.consumer().name;
            if found.is_some_and(|other| other.consumer().name != *name) {
                return Err(Refusal::new("the claims of the token name several consumers"));
            }
            found = Some(one);
        }
        match found {
            Some(found) if found.record().is_disabled() => Err(Refusal::new("the consumer is disabled")),
            found => Ok(found.map(|found| found.consumer().clone())),
        }
    }
}
