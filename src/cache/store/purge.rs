//! Taking entries out before their time, or marking them as not fresh any more.
//!
//! A purge walks the indexes: its work is what it hits, in steps so small that nobody waits for one.

use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

use serde::{Deserialize, Serialize};
use tollhouse_filters::caching::Standing;

use super::Store;
use super::entry::Entry;
use super::shard::Shard;

/// Keys that a purge takes out while it holds a lock.
const STEP: usize = 64;

/// What to purge.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Purge {
    /// Everything stored for a URL, in every partition of it.
    Url(Vec<u8>),
    /// Every key that begins so, such as all below a path.
    Prefix(Vec<u8>),
    /// Every response with this tag.
    Tag(String),
    /// Everything.
    All,
}

/// What becomes of what is purged.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum How {
    /// It is not fresh any more, but can be revalidated, or served where stale responses may be.
    Soft,
    /// It may be gone, and nobody knows: it is validated before anybody gets it.
    Doubt,
    /// It is gone.
    Hard,
}

impl How {
    /// What this says of an entry that stays; none if it does not.
    pub(super) const fn standing(self) -> Option<Standing> {
        match self {
            Self::Soft => Some(Standing::Stale),
            Self::Doubt => Some(Standing::InDoubt),
            Self::Hard => None,
        }
    }
}

impl Entry {
    /// Marks it as a purge says, if one hit it; false if it is gone.
    pub(super) fn bears(&self, verdict: Option<How>) -> bool {
        match verdict.map(How::standing) {
            Some(Some(standing)) => self.mark(standing),
            Some(None) => return false,
            None => {}
        }
        true
    }
}

impl Purge {
    /// Whether this entry is one of those.
    pub(super) fn hits(&self, entry: &Entry) -> bool {
        match self {
            Self::Url(url) => entry.url() == url,
            Self::Prefix(prefix) => entry.key().starts_with(prefix),
            Self::Tag(tag) => entry.tags().any(|other| other == tag),
            Self::All => true,
        }
    }
}

impl Store {
    /// Purges; gives how many entries it hit. What is put in meanwhile may be hit too.
    pub fn purge(&self, what: &Purge, how: How) -> u64 {
        self.generation.fetch_add(1, Relaxed);
        // Before memory, so that what is being read from there is not missed by both.
        if let Some(disk) = &*self.disk.load() {
            disk.purge(what, how);
        }
        let hit = match what {
            Purge::Url(url) => {
                let prefix = [&**url, b"\0"].concat();
                self.purge_prefix(self.place(&prefix).part, &prefix, how)
            }
            Purge::Prefix(prefix) => self.parts().map(|part| self.purge_prefix(part, prefix, how)).sum(),
            Purge::Tag(tag) => self.parts().map(|part| self.purge_tag(part, tag, how)).sum(),
            Purge::All if how == How::Hard => self.parts().map(|part| self.clear(part)).sum(),
            Purge::All => self.parts().map(|part| self.purge_prefix(part, b"", how)).sum(),
        };
        self.purged.fetch_add(hit, Relaxed);
        hit
    }

    fn purge_prefix(&self, part: usize, prefix: &[u8], how: How) -> u64 {
        let mut hit = 0;
        let mut last: Option<Arc<Entry>> = None;
        loop {
            let after = last.as_ref().map(|entry| entry.key());
            let keys = self.read(part).keys(prefix, after, STEP);
            let Some(end) = keys.last().cloned() else { return hit };
            hit += self.purge_keys(part, &keys, how, |_| true);
            last = Some(end);
        }
    }

    fn purge_tag(&self, part: usize, tag: &str, how: How) -> u64 {
        let mut hit = 0;
        let mut last = None;
        loop {
            let nodes = self.read(part).tagged(tag, last, STEP);
            let Some((end, _)) = nodes.last() else { return hit };
            last = Some(*end);
            let keys: Vec<_> = nodes.into_iter().map(|(_, entry)| entry).collect();
            hit += self.purge_keys(part, &keys, how, |entry| entry.tags().any(|other| other == tag));
        }
    }

    /// Purges the entries of some keys that it is for.
    fn purge_keys(&self, part: usize, keys: &[Arc<Entry>], how: How, is_for: impl Fn(&Entry) -> bool) -> u64 {
        let places: Vec<_> = keys.iter().map(|entry| (self.place(entry.key()).tag, entry.key())).collect();
        let Some(standing) = how.standing() else {
            let take = |shard: &mut Shard| {
                places.iter().flat_map(|(tag, key)| shard.take_if(*tag, key, &is_for)).collect::<Vec<_>>()
            };
            // Freed behind the lock.
            return self.change(part, take).len() as u64;
        };
        let shard = self.read(part);
        let variants = places.iter().filter_map(|(tag, key)| Some(shard.get(*tag, key)?.variants.iter()));
        variants.flatten().filter(|entry| is_for(entry)).map(|entry| entry.mark(standing)).count() as u64
    }

    fn clear(&self, part: usize) -> u64 {
        // Freed behind the lock.
        self.change(part, Shard::take_all).entries() as u64
    }
}
