//! What is on disk, as far as memory has to know: a few numbers for each file. They are its name too.

use std::collections::BTreeMap;
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

use crate::cache::store::entry::{Entry, url_of};

/// What space is counted in.
const PAGE: u64 = 4096;

/// What tells a file from others: hashes of a URL, of the rest of the key, and of the variant. Files have the
/// whole key, and it is compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Id {
    url: u64,
    rest: u64,
    variant: u32,
}

/// A file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct File {
    pub(super) id: Id,
    /// When it was made, among all that happens to the store.
    pub(super) seq: u64,
    pages: u32,
}

/// All files.
#[derive(Default)]
pub(super) struct Index {
    files: BTreeMap<Id, File>,
    by_age: BTreeMap<u64, Id>,
    pages: u64,
}

impl Id {
    /// That of an entry's file.
    pub(super) fn of(entry: &Entry) -> Self {
        let (url, rest) = halves(entry.key());
        Self { url, rest, variant: short(entry.variant()) }
    }

    /// Those of all files of a URL.
    pub(super) fn all_of(url: &[u8]) -> RangeInclusive<Self> {
        let url = hash(url);
        Self { url, rest: 0, variant: 0 }..=Self { url, rest: u64::MAX, variant: u32::MAX }
    }
}

impl File {
    pub(super) fn new(entry: &Entry, seq: u64, size: u64) -> Self {
        let pages = u32::try_from(size.div_ceil(PAGE)).unwrap_or(u32::MAX);
        Self { id: Id::of(entry), seq, pages }
    }

    /// Bytes that it takes.
    pub(super) fn bytes(&self) -> u64 {
        u64::from(self.pages) * PAGE
    }

    /// The hash of its URL.
    pub(super) fn url(&self) -> u64 {
        self.id.url
    }

    /// Where it lies below the directory.
    pub(super) fn path(&self, root: &Path) -> PathBuf {
        let Id { url, rest, variant } = self.id;
        let name = format!("{url:016x}{rest:016x}{variant:08x}-{:016x}-{:08x}", self.seq, self.pages);
        root.join(&name[..2]).join(name)
    }

    /// The file that has this name.
    pub(super) fn named(name: &str) -> Option<Self> {
        let mut parts = name.split('-');
        let (id, seq, pages) = (parts.next()?, parts.next()?, parts.next()?);
        let is_name = id.len() == 40 && parts.next().is_none() && name.is_ascii();
        let hex = |text| u64::from_str_radix(text, 16).ok();
        let variant = u32::from_str_radix(id.get(32..)?, 16).ok()?;
        let id = Id { url: hex(id.get(..16)?)?, rest: hex(id.get(16..32)?)?, variant };
        let file = Self { id, seq: hex(seq)?, pages: u32::from_str_radix(pages, 16).ok()? };
        is_name.then_some(file)
    }
}

impl Index {
    /// Takes a file in; gives the older one of its key and variant. If there is a newer one, that is the one
    /// in, and this one is given back.
    pub(super) fn put(&mut self, file: File) -> Option<File> {
        if let Some(known) = self.files.get(&file.id)
            && known.seq > file.seq
        {
            return Some(file);
        }
        let old = self.take(&file.id);
        self.pages += u64::from(file.pages);
        self.by_age.insert(file.seq, file.id);
        self.files.insert(file.id, file);
        old
    }

    /// Whether this very file is in.
    pub(super) fn has(&self, file: &File) -> bool {
        self.files.get(&file.id) == Some(file)
    }

    /// Takes this very file out.
    pub(super) fn take_file(&mut self, file: &File) -> bool {
        self.has(file) && self.take(&file.id).is_some()
    }

    /// Takes out whatever the file of this entry is.
    pub(super) fn take_entry(&mut self, entry: &Entry) -> Option<File> {
        self.take(&Id::of(entry))
    }

    /// Takes out all files of a URL.
    pub(super) fn take_url(&mut self, url: &[u8]) -> Vec<File> {
        let ids: Vec<Id> = self.files.range(Id::all_of(url)).map(|(id, _)| *id).collect();
        ids.iter().filter_map(|id| self.take(id)).collect()
    }

    /// The files of a key, or of this variant, the newest first and so many at most.
    pub(super) fn of_key(&self, key: &[u8], variant: Option<&[u8]>, most: usize) -> Vec<File> {
        let (url, rest) = halves(key);
        let (from, to) = variant.map_or((0, u32::MAX), |variant| (short(variant), short(variant)));
        let (first, last) = (Id { url, rest, variant: from }, Id { url, rest, variant: to });
        let mut files: Vec<File> = self.files.range(first..=last).map(|(_, file)| *file).collect();
        files.sort_by_key(|file| std::cmp::Reverse(file.seq));
        files.truncate(most);
        files
    }

    /// Takes the oldest file out if all together take more than this.
    pub(super) fn take_beyond(&mut self, bytes: u64) -> Option<File> {
        let (_, id) = self.by_age.first_key_value().filter(|_| self.bytes() > bytes)?;
        self.take(&id.clone())
    }

    pub(super) fn oldest(&self) -> Option<u64> {
        self.by_age.keys().next().copied()
    }

    pub(super) fn newest(&self) -> Option<u64> {
        self.by_age.keys().next_back().copied()
    }

    pub(super) fn bytes(&self) -> u64 {
        self.pages * PAGE
    }

    pub(super) fn len(&self) -> usize {
        self.files.len()
    }

    fn take(&mut self, id: &Id) -> Option<File> {
        let file = self.files.remove(id)?;
        self.by_age.remove(&file.seq);
        self.pages -= u64::from(file.pages);
        Some(file)
    }
}

/// Hashes of a key's URL and of the rest.
fn halves(key: &[u8]) -> (u64, u64) {
    let (url, rest) = key.split_at(url_of(key).len());
    (hash(url), hash(rest))
}

/// A variant's hash: four of the 32 bytes.
fn short(variant: &[u8]) -> u32 {
    (hash(variant) >> 32) as u32
}

pub(super) fn hash(bytes: &[u8]) -> u64 {
    let digest = Sha256::digest(bytes);
    digest.first_chunk().copied().map_or(0, u64::from_be_bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(url: u64, rest: u64, seq: u64, pages: u32) -> File {
        File { id: Id { url, rest, variant: 7 }, seq, pages }
    }

    #[test]
    fn a_name_is_read_as_it_was_written() {
        let file = file(u64::MAX, 1, 2, 3);
        let path = file.path(Path::new("/x"));
        let name = path.file_name().unwrap().to_str().unwrap();
        assert_eq!(File::named(name), Some(file));
        assert!(path.starts_with("/x/ff"));
    }

    #[test]
    fn other_names_are_no_files_of_ours() {
        for name in
            ["", "purges", "a-b-c", "--", "ä-1-1", &"0".repeat(40), &format!("{}-1-1-1", "0".repeat(40))]
        {
            assert_eq!(File::named(name), None, "{name:?}");
        }
    }

    #[test]
    fn the_newest_file_of_a_key_is_the_one_whatever_comes_first() {
        let (old, new) = (file(1, 1, 1, 1), file(1, 1, 2, 5));
        for order in [[old, new], [new, old]] {
            let mut index = Index::default();
            assert_eq!(index.put(order[0]), None);
            assert_eq!(index.put(order[1]), Some(old));
            assert!(index.has(&new) && !index.has(&old));
            assert_eq!((index.len(), index.bytes()), (1, 5 * PAGE));
        }
    }

    #[test]
    fn the_oldest_leaves_first_when_there_is_too_much() {
        let mut index = Index::default();
        for (seq, url) in [(3, 1), (1, 2), (2, 3)] {
            index.put(file(url, 0, seq, 1));
        }
        let taken: Vec<u64> = std::iter::from_fn(|| index.take_beyond(PAGE)).map(|file| file.seq).collect();
        assert_eq!(taken, [1, 2]);
        assert_eq!(index.take_beyond(0).map(|file| file.seq), Some(3));
        assert_eq!(index.take_beyond(0), None);
    }
}
