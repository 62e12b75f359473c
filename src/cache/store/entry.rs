//! A stored response: complete, immutable, shared by everybody who sends it.

use std::fmt;
use std::ops::{Deref, Range};
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering::Relaxed};

use bytes::Bytes;
use tollhouse_filters::caching::Standing;

use super::body::{Large, Pieces};
use crate::cache::{Facts, Key};

/// Bodies up to this size lie beside their head, in one allocation; larger ones in blocks of this size.
pub const BLOCK: usize = 64 * 1024;
/// Tags that an entry keeps at most.
pub const MOST_TAGS: usize = 64;
/// The longest tag, in bytes.
pub const LONGEST_TAG: usize = 255;

/// What the table, the queue and the ordered index of a shard hold for an entry, in bytes.
const INDEXED: usize = 80;
/// What sharing a buffer costs, in bytes: its count, address and capacity.
const SHARED: usize = 32;
/// What a tag costs besides its letters, in bytes, if no other entry has it.
const TAGGED: usize = 144;

/// What an [`Entry`] is made of.
#[derive(Debug, Clone, Default)]
pub struct Parts {
    /// The status code.
    pub status: u16,
    /// Field lines as HTTP/1.1 sends them, each with its CRLF, without framing and hop-by-hop fields.
    pub lines: Bytes,
    /// The whole body, in order.
    pub body: Vec<Bytes>,
    /// What the response varies by, canonical: one key holds one entry of each. Empty if it does not vary.
    pub variant: Vec<u8>,
    /// Names to purge it by. Beyond 64, and those that are empty or longer than 255 bytes, are not kept.
    pub tags: Vec<String>,
    /// When it came, how long it is fresh, and the like.
    pub facts: Facts,
}

/// A stored response.
///
/// Everything small about it lies in one buffer, and everything that is given out is a part of that buffer
/// or a handle of a block: nothing is copied for a hit.
pub struct Entry {
    /// Key, variant, tags, lines, and the body if it is small, one after the other.
    pub(super) packed: Bytes,
    /// The body if it is not.
    pub(super) large: Option<Arc<Large>>,
    pub(super) facts: Facts,
    pub(super) key_end: u32,
    pub(super) variant_end: u32,
    pub(super) tags_end: u32,
    pub(super) lines_end: u32,
    pub(super) status: u16,
    pub(super) marked: Marked,
}

/// A [`Standing`] as its number, which only grows.
#[derive(Default)]
pub(super) struct Marked(AtomicU8);

/// The entries of one key, the newest first: one unless the responses vary.
#[derive(Debug, Clone)]
pub enum Variants {
    /// The only one.
    One(Arc<Entry>),
    /// Several.
    Many(Arc<[Arc<Entry>]>),
}

impl Entry {
    /// Packs a response. Copies what is small, once: pieces that came off a connection may hold on to much
    /// more memory than they show.
    #[must_use]
    pub fn new(key: &Key, parts: Parts) -> Self {
        let length = parts.body.iter().map(Bytes::len).sum::<usize>();
        let is_small = length <= BLOCK;
        let tags = kept_tags(&parts.tags);
        let tagged: usize = tags.clone().map(|tag| 1 + tag.len()).sum();
        let head = key.bytes().len() + parts.variant.len() + tagged + parts.lines.len();

        let mut packed = Vec::with_capacity(head + if is_small { length } else { 0 });
        packed.extend_from_slice(key.bytes());
        let key_end = end_of(&packed);
        packed.extend_from_slice(&parts.variant);
        let variant_end = end_of(&packed);
        for tag in tags {
            packed.push(u8::try_from(tag.len()).expect("tags that are kept have at most 255 bytes"));
            packed.extend_from_slice(tag.as_bytes());
        }
        let tags_end = end_of(&packed);
        packed.extend_from_slice(&parts.lines);
        let lines_end = end_of(&packed);
        if is_small {
            parts.body.iter().for_each(|piece| packed.extend_from_slice(piece));
        }
        Self {
            packed: packed.into(),
            large: (!is_small).then(|| Arc::new(Large::new(parts.body))),
            facts: parts.facts,
            key_end,
            variant_end,
            tags_end,
            lines_end,
            status: parts.status,
            marked: Marked::default(),
        }
    }

    /// The same response with other lines, variant, tags and facts, as a 304 makes it (RFC 9111 s4.3.4).
    #[must_use]
    pub fn renewed(&self, lines: Bytes, variant: Vec<u8>, tags: Vec<String>, facts: Facts) -> Self {
        let body = if self.large.is_some() { Vec::new() } else { self.body().collect() };
        let key = Key::from_bytes(self.packed.slice(..self.key_end as usize));
        let renewed = Self::new(&key, Parts { status: self.status, lines, body, variant, tags, facts });
        Self { large: self.large.clone(), ..renewed }
    }

    /// Whether what is packed lies as it should: it came from outside.
    pub(super) fn is_sound(&self) -> bool {
        let ends = [0, self.key_end, self.variant_end, self.tags_end, self.lines_end];
        let is_ordered = ends.is_sorted() && self.lines_end as usize <= self.packed.len();
        is_ordered && {
            let mut rest = &self.packed[self.variant_end as usize..self.tags_end as usize];
            while let Some((length, after)) = rest.split_first() {
                let Some((tag, after)) = after.split_at_checked(usize::from(*length)) else { return false };
                if str::from_utf8(tag).is_err() {
                    return false;
                }
                rest = after;
            }
            true
        }
    }

    /// The whole key.
    #[must_use]
    pub fn key(&self) -> &[u8] {
        &self.packed[..self.key_end as usize]
    }

    /// The part of the key that is the URL.
    #[must_use]
    pub fn url(&self) -> &[u8] {
        url_of(self.key())
    }

    /// What it varies by; empty if it does not vary.
    #[must_use]
    pub fn variant(&self) -> &[u8] {
        &self.packed[self.key_end as usize..self.variant_end as usize]
    }

    /// The names that it can be purged by.
    pub fn tags(&self) -> impl Iterator<Item = &str> {
        let mut rest = &self.packed[self.variant_end as usize..self.tags_end as usize];
        std::iter::from_fn(move || {
            let (length, after) = rest.split_first()?;
            let (tag, after) = after.split_at(usize::from(*length));
            rest = after;
            Some(str::from_utf8(tag).expect("it was a string"))
        })
    }

    /// The status code.
    #[must_use]
    pub fn status(&self) -> u16 {
        self.status
    }

    /// The field lines, each with its CRLF.
    #[must_use]
    pub fn lines(&self) -> &[u8] {
        &self.packed[self.lines_range()]
    }

    /// The field lines as a handle of their own.
    #[must_use]
    pub fn lines_bytes(&self) -> Bytes {
        self.packed.slice(self.lines_range())
    }

    fn lines_range(&self) -> Range<usize> {
        self.tags_end as usize..self.lines_end as usize
    }

    /// When it came, how long it is fresh, and the like.
    #[must_use]
    pub fn facts(&self) -> &Facts {
        &self.facts
    }

    /// Bytes of the body.
    #[must_use]
    pub fn length(&self) -> u64 {
        let small = || (self.packed.len() - self.lines_end as usize) as u64;
        self.large.as_ref().map_or_else(small, |large| large.length())
    }

    /// The body.
    #[must_use]
    pub fn body(&self) -> Pieces {
        self.range(0..self.length())
    }

    /// Bytes of the body from the first up to the last, that one not included; what lies behind the end
    /// is not given.
    #[must_use]
    pub fn range(&self, range: Range<u64>) -> Pieces {
        match &self.large {
            Some(large) => Pieces::large(large, range),
            None => Pieces::small(self.packed.slice(self.lines_end as usize..), range),
        }
    }

    /// Whether it may not be taken for fresh any more.
    #[must_use]
    pub fn is_purged(&self) -> bool {
        self.standing() != Standing::Good
    }

    /// What was said of it since it was made.
    #[must_use]
    pub fn standing(&self) -> Standing {
        match self.marked.0.load(Relaxed) {
            0 => Standing::Good,
            1 => Standing::Stale,
            _ => Standing::InDoubt,
        }
    }

    /// Says it of the entry, for good: nothing makes it better.
    pub fn mark(&self, standing: Standing) {
        self.marked.0.fetch_max(standing as u8, Relaxed);
    }

    /// Bytes of memory that it takes, with its share of the indexes and of what allocations are rounded by.
    #[must_use]
    pub fn weight(&self) -> usize {
        let allocated = |bytes: usize| bytes + bytes / 16 + SHARED;
        let blocks = self.large.as_ref().map_or(0, |large| {
            let handles = large.most_blocks() * (size_of::<Bytes>() + SHARED) as u64;
            size_of::<Large>() + usize::try_from(handles + large.length()).unwrap_or(usize::MAX)
        });
        let tags: usize = self.tags().map(|tag| TAGGED + tag.len()).sum();
        INDEXED + 2 * size_of::<usize>() + size_of::<Self>() + allocated(self.packed.len()) + blocks + tags
    }
}

impl fmt::Debug for Entry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let key = String::from_utf8_lossy(self.key());
        write!(f, "Entry({key:?}, {} {} bytes)", self.status, self.length())
    }
}

impl Variants {
    /// Those of these that there are, in this order.
    pub(super) fn new(mut entries: Vec<Arc<Entry>>) -> Option<Self> {
        match entries.len() {
            0 => None,
            1 => entries.pop().map(Self::One),
            _ => Some(Self::Many(entries.into())),
        }
    }
}

impl Deref for Variants {
    type Target = [Arc<Entry>];

    fn deref(&self) -> &[Arc<Entry>] {
        match self {
            Self::One(entry) => std::slice::from_ref(entry),
            Self::Many(entries) => entries,
        }
    }
}

/// The part of a key before its partition.
pub(super) fn url_of(key: &[u8]) -> &[u8] {
    memchr::memchr(0, key).map_or(key, |end| &key[..end])
}

fn kept_tags(tags: &[String]) -> impl Iterator<Item = &String> + Clone {
    tags.iter().filter(|tag| (1..=LONGEST_TAG).contains(&tag.len())).take(MOST_TAGS)
}

fn end_of(packed: &[u8]) -> u32 {
    u32::try_from(packed.len()).expect("heads have far less than 4 GiB")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(body: Vec<Bytes>) -> Arc<Entry> {
        let key = Key::from_bytes(Bytes::from_static(b"https://a/b\0tenant"));
        let tags = vec!["one".to_owned(), String::new(), "x".repeat(256), "two".to_owned()];
        let lines = Bytes::from_static(b"etag: \"1\"\r\n");
        let variant = b"accept=br".to_vec();
        Arc::new(Entry::new(&key, Parts { status: 203, lines, body, variant, tags, ..Parts::default() }))
    }

    fn bytes(length: usize) -> Bytes {
        (0..length).map(|at| (at % 251) as u8).collect()
    }

    fn joined(pieces: Pieces) -> Vec<u8> {
        pieces.flatten().collect()
    }

    #[test]
    fn an_entry_gives_back_what_it_was_made_of() {
        let entry = entry(vec![Bytes::from_static(b"he"), Bytes::from_static(b"llo")]);
        assert_eq!(entry.key(), b"https://a/b\0tenant");
        assert_eq!(entry.url(), b"https://a/b");
        assert_eq!(entry.status(), 203);
        assert_eq!(entry.lines(), b"etag: \"1\"\r\n");
        assert_eq!(entry.lines_bytes(), entry.lines());
        assert_eq!(entry.variant(), b"accept=br");
        assert_eq!(entry.tags().collect::<Vec<_>>(), ["one", "two"]);
        assert_eq!(entry.length(), 5);
        assert_eq!(entry.body().collect::<Vec<_>>(), [Bytes::from_static(b"hello")]);
        assert!(!entry.is_purged());
    }

    #[test]
    fn a_large_body_keeps_its_order_whatever_pieces_it_came_in() {
        for sizes in [vec![BLOCK + 1], vec![1, BLOCK, 2, 3, 2 * BLOCK], vec![1000; 200], vec![BLOCK; 3]] {
            let whole = bytes(sizes.iter().sum());
            let mut rest = whole.clone();
            let entry = entry(sizes.iter().map(|size| rest.split_to(*size)).collect());
            assert_eq!(entry.length(), whole.len() as u64);
            assert_eq!(joined(entry.body()), whole);
            assert!(entry.body().count() <= whole.len().div_ceil(BLOCK) * 2, "{sizes:?}");
        }
    }

    #[test]
    fn an_empty_body_has_no_pieces() {
        assert_eq!(entry(Vec::new()).body().count(), 0);
        assert_eq!(entry(vec![Bytes::new()]).body().count(), 0);
    }

    #[test]
    fn a_range_is_that_part_of_the_body() {
        for length in [10, 3 * BLOCK + 7] {
            let whole = bytes(length);
            let entry = entry(vec![whole.slice(..length / 2), whole.slice(length / 2..)]);
            for (from, to) in [(0, 1), (3, 9), (length - 1, length), (length / 3, length), (5, 5), (7, 3)] {
                let wanted = whole.get(from..to).unwrap_or_default();
                assert_eq!(joined(entry.range(from as u64..to as u64)), wanted, "{from}..{to}");
            }
            assert_eq!(joined(entry.range(2..u64::MAX)), whole[2..]);
            assert_eq!(joined(entry.range(length as u64..u64::MAX)), b"");
            assert_eq!(joined(entry.range(u64::MAX..u64::MAX)), b"");
        }
    }

    #[test]
    fn a_hit_shares_the_memory_of_the_entry() {
        for length in [100, 2 * BLOCK] {
            let entry = entry(vec![bytes(length)]);
            let addresses = |entry: &Arc<Entry>| entry.body().map(|piece| piece.as_ptr()).collect::<Vec<_>>();
            assert_eq!(addresses(&entry), addresses(&entry));
        }
    }

    #[test]
    fn an_entry_is_renewed_with_its_body() {
        for length in [100, 2 * BLOCK] {
            let old = entry(vec![bytes(length)]);
            let lines = Bytes::from_static(b"a: b\r\n");
            let new = Arc::new(old.renewed(lines, b"accept=gzip".to_vec(), Vec::new(), Facts::default()));
            assert_eq!((new.key(), new.status()), (old.key(), 203));
            assert_eq!((new.lines(), new.variant()), (&b"a: b\r\n"[..], &b"accept=gzip"[..]));
            assert_eq!(new.tags().count(), 0);
            assert_eq!(joined(new.body()), bytes(length));
        }
    }

    #[test]
    fn the_weight_grows_with_everything_that_is_kept() {
        let light = entry(Vec::new()).weight();
        assert!(light >= size_of::<Entry>() + INDEXED);
        assert!(entry(vec![bytes(1000)]).weight() >= light + 1000);
        assert!(entry(vec![bytes(10 * BLOCK)]).weight() >= light + 10 * BLOCK);
    }
}
