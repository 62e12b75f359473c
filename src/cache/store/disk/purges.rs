//! Purges of what is on disk: noted, and looked at when a file is read.
//!
//! Names of files do not tell their prefix or tags. So a purge is a line that holds for all files that are
//! older than it, until there are none.

use std::fs;
use std::io;
use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::cache::store::entry::Entry;
use crate::cache::store::purge::{How, Purge};

/// Purges that are noted. With more, the oldest half becomes one of everything.
const MOST: usize = 1000;
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
}
