//! Large bodies: in blocks, or where the kernel can send them from.

use std::fmt;
use std::iter::FusedIterator;
use std::ops::Range;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed};

use arc_swap::ArcSwap;
use async_trait::async_trait;
use bytes::Bytes;
use parking_lot::Mutex;
use tokio::runtime::Handle;
use tollhouse_filters::world::{ClientBody, ClientError, FilePart};

use super::BLOCK;
use super::arena::{self, Lodged, MOST_AT_ONCE};
use super::counted::Counted;

/// Somebody copies a long body: one at a time, since each is there twice meanwhile.
static COPYING: AtomicBool = AtomicBool::new(false);

/// A body that does not lie beside its head.
///
/// It comes in blocks. Once a client gets it that the kernel can send it to as it is, it moves to the
/// [arena](super::arena): from there it costs that client no copy, and all others one.
pub(super) struct Large {
    length: u64,
    place: ArcSwap<Place>,
    /// It moved, or is about to, or cannot.
    moved: AtomicBool,
    stay: Mutex<Stay>,
}

enum Place {
    Blocks(Box<[Bytes]>),
    Lodged(Lodged),
}

/// How many entries in the store have a body. Once none has, it takes memory for those who read it still.
#[derive(Default)]
struct Stay {
    entries: usize,
    lingers: Option<Counted<Arc<AtomicUsize>>>,
}

impl Large {
    /// A body of these pieces, in order.
    pub(super) fn new(pieces: Vec<Bytes>) -> Self {
        Self::of(blocks(pieces))
    }

    /// A body of these blocks.
    pub(super) fn of(blocks: Box<[Bytes]>) -> Self {
        let length = blocks.iter().map(|block| block.len() as u64).sum();
        let place = ArcSwap::from_pointee(Place::Blocks(blocks));
        Self { length, place, moved: AtomicBool::new(false), stay: Mutex::default() }
    }

    /// How many bytes it has.
    pub(super) fn length(&self) -> u64 {
        self.length
    }

    /// How many blocks it has at most.
    pub(super) fn most_blocks(&self) -> u64 {
        2 * self.length.div_ceil(BLOCK as u64)
    }

    /// One more entry that has it is in the store.
    pub(super) fn enter(&self) {
        let mut stay = self.stay.lock();
        stay.entries += 1;
        stay.lingers = None;
    }

    /// An entry that has it left the store. After the last one, it is in this sum for as long as somebody has it.
    pub(super) fn leave(&self, lingering: &Arc<AtomicUsize>) {
        let mut stay = self.stay.lock();
        stay.entries -= 1;
        if stay.entries == 0 {
            let bytes = usize::try_from(self.length).unwrap_or(usize::MAX);
            stay.lingers = Some(Counted::new(Arc::clone(lingering), bytes));
        }
    }

    /// Where in the arena it begins, once it is there.
    fn lodged(self: &Arc<Self>) -> Option<u64> {
        if let Place::Lodged(lodged) = &**self.place.load() {
            return Some(lodged.at());
        }
        if self.moved.swap(true, Relaxed) {
            return None;
        }
        if self.length <= MOST_AT_ONCE {
            return self.relocate();
        }
        let runtime = Handle::try_current().ok().filter(|_| !COPYING.swap(true, Relaxed));
        match runtime {
            Some(runtime) => {
                let this = Arc::clone(self);
                runtime.spawn_blocking(move || {
                    this.relocate();
                    COPYING.store(false, Relaxed);
                });
            }
            None => self.moved.store(false, Relaxed),
        }
        None
    }

    fn relocate(&self) -> Option<u64> {
        let place = self.place.load_full();
        let blocks = match &*place {
            Place::Blocks(blocks) => blocks,
            Place::Lodged(lodged) => return Some(lodged.at()),
        };
        match Lodged::new(blocks) {
            Ok(lodged) => {
                let at = lodged.at();
                self.place.store(Arc::new(Place::Lodged(lodged)));
                Some(at)
            }
            Err(error) => {
                log::debug!(reason:% = error; "a stored body stays where it is");
                None
            }
        }
    }
}

impl AsFd for Large {
    /// Who has a part of a file keeps the body with it, and it counts; such a body stays in the arena.
    fn as_fd(&self) -> BorrowedFd<'_> {
        arena::file()
    }
}

/// A body, or a range of one, piece by piece. It ends early when the system has lost it.
#[derive(Clone)]
pub struct Pieces {
    source: Source,
    /// Where in the body the next byte to give is.
    at: u64,
    left: u64,
    /// The block that byte lies in, and where in it.
    block: usize,
    skip: usize,
}

#[derive(Clone)]
enum Source {
    /// All of the body.
    Small(Bytes),
    Large(Arc<Large>, Arc<Place>),
}

impl Pieces {
    /// A range of a body that lies in one piece.
    pub(super) fn small(body: Bytes, range: Range<u64>) -> Self {
        let left = left(&range, body.len() as u64);
        Self { source: Source::Small(body), at: range.start, left, block: 0, skip: 0 }
    }

    /// A range of a large body.
    pub(super) fn large(body: &Arc<Large>, range: Range<u64>) -> Self {
        let place = body.place.load_full();
        let (mut block, mut skip) = (0, 0);
        if let Place::Blocks(blocks) = &*place {
            let mut before = 0;
            for bytes in blocks {
                let within = range.start - before;
                if within < bytes.len() as u64 {
                    skip = within as usize;
                    break;
                }
                before += bytes.len() as u64;
                block += 1;
            }
        }
        let left = left(&range, body.length);
        Self { source: Source::Large(Arc::clone(body), place), at: range.start, left, block, skip }
    }

    /// How many bytes are still to come.
    pub(in crate::cache) fn left(&self) -> u64 {
        self.left
    }

    /// Whether more than one piece may be to come.
    pub(in crate::cache) fn are_many(&self) -> bool {
        matches!(self.source, Source::Large(..)) && self.left > 0
    }
}

/// How much of a body of this length the range has.
fn left(range: &Range<u64>, length: u64) -> u64 {
    range.end.min(length).saturating_sub(range.start)
}

impl Iterator for Pieces {
    type Item = Bytes;

    fn next(&mut self) -> Option<Bytes> {
        if self.left == 0 {
            return None;
        }
        let most = usize::try_from(self.left).unwrap_or(usize::MAX);
        let piece = match &self.source {
            Source::Small(body) => {
                // Within the body, whose length is a `usize`.
                let start = self.at as usize;
                body.slice(start..start + most)
            }
            Source::Large(_, place) => match &**place {
                Place::Blocks(blocks) => {
                    let block = blocks.get(self.block)?;
                    let end = block.len().min(self.skip.saturating_add(most));
                    block.slice(self.skip..end)
                }
                Place::Lodged(lodged) => lodged.read(self.at, most.min(BLOCK)).ok()?,
            },
        };
        self.at += piece.len() as u64;
        self.left -= piece.len() as u64;
        (self.block, self.skip) = (self.block + 1, 0);
        Some(piece)
    }
}

impl FusedIterator for Pieces {}

#[async_trait]
impl ClientBody for Pieces {
    async fn next(&mut self) -> Result<Option<Bytes>, ClientError> {
        match Iterator::next(self) {
            None if self.left > 0 => Err(ClientError::Unavailable("a stored body cannot be read".into())),
            piece => Ok(piece),
        }
    }

    fn ready(&mut self) -> Option<Bytes> {
        Iterator::next(self)
    }

    fn file(&mut self) -> Option<FilePart> {
        let Source::Large(large, _) = &self.source else { return None };
        // Whose head has to be sent without one.
        if self.left == 0 {
            return None;
        }
        let at = large.lodged()? + self.at;
        let file = Arc::clone(large);
        Some(FilePart { file, at, left: std::mem::take(&mut self.left) })
    }
}

impl fmt::Debug for Pieces {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Pieces({} bytes from {})", self.left, self.at)
    }
}

/// Pieces of at least a block as they are, those that are smaller together in blocks.
fn blocks(pieces: Vec<Bytes>) -> Box<[Bytes]> {
    let mut blocks = Vec::new();
    let mut open = Vec::new();
    for piece in pieces {
        if open.len() + piece.len() > BLOCK {
            close(&mut open, &mut blocks);
        }
        if piece.len() >= BLOCK {
            blocks.push(piece);
        } else {
            open.extend_from_slice(&piece);
        }
    }
    close(&mut open, &mut blocks);
    blocks.into()
}

fn close(open: &mut Vec<u8>, blocks: &mut Vec<Bytes>) {
    if !open.is_empty() {
        blocks.push(Bytes::copy_from_slice(open));
        open.clear();
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::FileExt;

    use super::*;

    fn body(length: usize) -> (Bytes, Arc<Large>) {
        let whole: Bytes = (0..length).map(|at| (at % 251) as u8).collect();
        let (start, end) = (whole.slice(..length / 3), whole.slice(length / 3..));
        (whole, Arc::new(Large::new(vec![start, end])))
    }

    /// What a part of a file has, as the kernel would send it.
    fn sent(part: &FilePart) -> Vec<u8> {
        let file = std::fs::File::from(part.file.as_fd().try_clone_to_owned().expect("a descriptor"));
        let mut bytes = vec![0; usize::try_from(part.left).expect("small")];
        file.read_exact_at(&mut bytes, part.at).expect("read");
        bytes
    }

    #[test]
    fn a_body_is_the_same_from_either_place() {
        let (whole, large) = body(3 * BLOCK + 7);
        let ends = whole.len();
        let ranges = [(0, ends), (1, 2), (BLOCK, 2 * BLOCK), (ends - 1, ends), (ends, ends), (5, 5)];
        let pieces = |(from, to): (usize, usize)| Pieces::large(&large, from as u64..to as u64);
        for (from, to) in ranges {
            assert_eq!(pieces((from, to)).flatten().collect::<Vec<_>>(), whole[from..to], "{from}..{to}");
        }
        let begun = pieces((0, ends));
        assert!(large.lodged().is_some());
        assert_eq!(begun.flatten().collect::<Vec<_>>(), whole, "begun before it moved");
        for (from, to) in ranges {
            assert_eq!(pieces((from, to)).flatten().collect::<Vec<_>>(), whole[from..to], "{from}..{to}");
            let part = pieces((from, to)).file();
            // What is nothing is sent without it.
            assert_eq!(part.as_ref().map_or(Vec::new(), sent), whole[from..to], "{from}..{to}");
            assert_eq!(part.is_some(), from < to, "{from}..{to}");
        }
    }

    #[test]
    fn a_part_of_a_file_outlives_the_body() {
        let (whole, large) = body(2 * BLOCK);
        let mut pieces = Pieces::large(&large, 10..2 * BLOCK as u64);
        let first = Iterator::next(&mut pieces).expect("a piece");
        let part = pieces.file().expect("it is there");
        assert_eq!(Iterator::next(&mut pieces), None, "the rest was given");
        drop((pieces, large));
        assert_eq!([&first[..], &sent(&part)].concat(), whole[10..]);
    }

    #[tokio::test]
    async fn a_body_that_cannot_be_read_is_told_from_one_that_an_upstream_broke_off() {
        let (_, large) = body(2 * BLOCK);
        let place = Arc::new(Place::Blocks(Box::default()));
        let source = Source::Large(large, place);
        let mut pieces = Pieces { source, at: 0, left: 5, block: 0, skip: 0 };
        let read = ClientBody::next(&mut pieces).await;
        assert!(matches!(read, Err(ClientError::Unavailable(_))), "{read:?}");
    }

    #[tokio::test]
    async fn what_is_long_moves_off_the_thread() {
        let (whole, large) = body(MOST_AT_ONCE as usize + 1);
        let pieces = || Pieces::large(&large, 0..whole.len() as u64);
        let mut part = pieces().file();
        assert!(part.is_none(), "not yet");
        while part.is_none() {
            tokio::task::yield_now().await;
            part = pieces().file();
        }
        assert_eq!(sent(&part.expect("some")), whole);
    }
}
