//! Purges of what is on disk: noted, and looked at when a file is read.
//!
//! Names of files do not tell their prefix or tags. So a purge is a line that holds for all files that are
//! older than it, until there are none.

use std::collections::HashSet;
use std::fs;
use std::io;
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::index::{File, hash};
use crate::cache::store::entry::Entry;
use crate::cache::store::purge::{How, Purge};

/// Purges that are noted. With more, the oldest half becomes one of everything.
const MOST: usize = 1000;
/// URLs that are remembered before it is known what there is: a few MiB. With more, all of them become a purge of
/// everything.
const MOST_URLS: usize = 100_000;
/// Where they are kept.
const NAME: &str = "purges";

#[derive(Debug, Clone, Serialize, Deserialize)]
struct Noted {
    seq: u64,
    what: Purge,
    how: How,
}

#[derive(Clone, Default)]
pub(super) struct Purges(Vec<Noted>);

impl Purges {
    /// Those that are kept in a directory. A file that cannot be read stands for a purge of everything.
    pub(super) fn read(root: &Path, seq: u64) -> Self {
        let everything = || vec![Noted { seq, what: Purge::All, how: How::Hard }];
        match fs::read(root.join(NAME)) {
            Ok(json) => Self(serde_json::from_slice(&json).unwrap_or_else(|_| everything())),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Self::default(),
            Err(_) => Self(everything()),
        }
    }

    /// Keeps them.
    pub(super) fn write(&self, root: &Path) -> io::Result<()> {
        let (path, new) = (root.join(NAME), root.join("purges.new"));
        fs::write(&new, serde_json::to_vec(&self.0)?)?;
        fs::rename(new, path)
    }

    /// Notes a purge; forgets those that no file is old enough for.
    pub(super) fn note(&mut self, seq: u64, what: &Purge, how: How, oldest: Option<u64>) {
        self.0.retain(|noted| oldest.is_some_and(|oldest| oldest < noted.seq));
        if self.0.len() >= MOST {
            let seq = self.0.drain(..MOST / 2).next_back().map_or(seq, |noted| noted.seq);
            self.0.insert(0, Noted { seq, what: Purge::All, how: How::Hard });
        }
        self.0.push(Noted { seq, what: what.clone(), how });
    }

    /// Takes in those of another list.
    pub(super) fn extend(&mut self, other: Self) {
        self.0.extend(other.0);
    }

    /// What has become of the entry of a file.
    pub(super) fn verdict(&self, entry: &Entry, seq: u64) -> Option<How> {
        let newer = self.0.iter().filter(|noted| noted.seq > seq && noted.what.hits(entry));
        newer.map(|noted| noted.how).max()
    }

    pub(super) fn newest(&self) -> Option<u64> {
        self.0.iter().map(|noted| noted.seq).max()
    }

    pub(super) fn oldest(&self) -> Option<u64> {
        self.0.iter().map(|noted| noted.seq).min()
    }

    /// Has all of their numbers grow by so much.
    pub(super) fn grow(&mut self, by: u64) {
        self.0.iter_mut().for_each(|noted| noted.seq += by);
    }
}

/// URLs that are purged before it is known what there is: their hashes. All that is found then is taken for older: its
/// numbers may be of a clock that was ahead.
#[derive(Default)]
pub(super) struct Early(HashSet<u64>);

impl Early {
    /// Remembers one; false if there are too many, of which none is remembered from then on.
    pub(super) fn note(&mut self, url: &[u8]) -> bool {
        self.0.insert(hash(url));
        let fits = self.0.len() <= MOST_URLS;
        if !fits {
            self.0 = HashSet::new();
        }
        fits
    }

    /// Whether the URL of a file was purged.
    pub(super) fn hits(&self, file: &File) -> bool {
        self.0.contains(&file.url())
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;
    use crate::cache::Key;
    use crate::cache::store::entry::Parts;

    #[test]
    fn urls_are_remembered_once_each_and_only_so_many() {
        let key = Key::from_bytes(Bytes::from_static(b"https://a/\0"));
        let file = File::new(&Entry::new(&key, Parts::default()), 1, 1);
        let mut early = Early::default();
        assert!(!early.hits(&file));
        (0..8).for_each(|_| assert!(early.note(b"https://a/")));
        assert!(early.hits(&file));
        assert_eq!(early.0.len(), 1);
        let others = (1..MOST_URLS).map(|at| format!("https://b/{at}"));
        others.for_each(|url| assert!(early.note(url.as_bytes())));
        assert!(early.hits(&file));
        assert!(!early.note(b"https://c/"));
        assert!(early.0.is_empty() && !early.hits(&file));
    }
}
