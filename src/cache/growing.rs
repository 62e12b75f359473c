//! A body on its way in, read by as many as wait for it.

use std::collections::{HashMap, VecDeque};
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use async_trait::async_trait;
use bytes::Bytes;
use parking_lot::Mutex;
use pingora::http::ResponseHeader;
use tokio::sync::watch;
use tollhouse_filters::caching::Facts;
use tollhouse_filters::world::{ClientBody, ClientError};

use super::store::{Entry, Pieces};

/// Pieces that are held of a body that is not stored, for the slowest of those that read it.
const MOST_HELD: usize = 16;

/// An answer whose body is still coming in.
pub(super) struct Growing {
    /// Its head, as the filters behind the cache made it.
    pub(super) head: ResponseHeader,
    /// What it is judged by.
    pub(super) facts: Facts,
    /// What requests it is for have.
    pub(super) variant: Vec<u8>,
    body: Mutex<Body>,
    /// Tells readers that there is more, or an end.
    grown: watch::Sender<()>,
    /// Tells the filler that a reader went on.
    taken: watch::Sender<()>,
    held: Held,
}

#[derive(Default)]
struct Body {
    pieces: VecDeque<Bytes>,
    /// How many pieces were taken off the front.
    gone: usize,
    length: u64,
    end: Option<End>,
    /// Where it is read from once it is stored: pieces of its own would be there twice.
    stored: Option<Arc<Entry>>,
    /// It is not kept: what all have read is dropped.
    passing: bool,
    /// Where the readers are, by their numbers.
    readers: HashMap<u64, usize>,
    next_reader: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    Whole,
    Broken,
}

/// Bytes that are held for bodies on their way in, over all of them.
#[derive(Clone, Default)]
pub(super) struct Held(pub(super) Arc<AtomicU64>);

impl Growing {
    pub(super) fn new(head: ResponseHeader, facts: Facts, variant: Vec<u8>, held: Held) -> Arc<Self> {
        let (grown, taken) = (watch::Sender::new(()), watch::Sender::new(()));
        Arc::new(Self { head, facts, variant, body: Mutex::default(), grown, taken, held })
    }

    /// Adds a piece; false if nobody reads what is not kept.
    pub(super) async fn push(&self, piece: Bytes) -> bool {
        let mut taken = self.taken.subscribe();
        {
            let mut body = self.body.lock();
            body.length += piece.len() as u64;
            self.held.0.fetch_add(piece.len() as u64, Ordering::Relaxed);
            body.pieces.push_back(piece);
        }
        self.grown.send_replace(());
        loop {
            {
                let mut body = self.body.lock();
                self.trim(&mut body);
                match (body.passing, body.readers.is_empty()) {
                    (true, true) => return false,
                    (true, false) if body.pieces.len() > MOST_HELD => {}
                    _ => return true,
                }
            }
            if taken.changed().await.is_err() {
                return false;
            }
        }
    }

    /// From now on it is not kept.
    pub(super) fn pass(&self) {
        self.body.lock().passing = true;
    }

    fn trim(&self, body: &mut Body) {
        if !body.passing {
            return;
        }
        let slowest = body.readers.values().copied().min().unwrap_or(usize::MAX);
        let gone = slowest.saturating_sub(body.gone).min(body.pieces.len());
        body.gone += gone;
        self.release(body.pieces.drain(..gone));
    }

    fn release(&self, pieces: impl Iterator<Item = Bytes>) {
        let bytes: usize = pieces.map(|piece| piece.len()).sum();
        self.held.0.fetch_sub(bytes as u64, Ordering::Relaxed);
    }

    /// The body is whole.
    pub(super) fn finish(&self) {
        self.end(End::Whole);
    }

    /// The body is whole, and in the store.
    pub(super) fn stored(&self, entry: Arc<Entry>) {
        let mut body = self.body.lock();
        self.release(body.pieces.drain(..));
        body.stored = Some(entry);
        drop(body);
        self.finish();
    }

    /// The body broke off; nothing, if it is whole.
    pub(super) fn abandon(&self) {
        self.end(End::Broken);
    }

    fn end(&self, end: End) {
        self.body.lock().end.get_or_insert(end);
        self.grown.send_replace(());
    }

    /// How long it is so far.
    pub(super) fn length(&self) -> u64 {
        self.body.lock().length
    }

    /// Its pieces so far, if they are all there.
    pub(super) fn pieces(&self) -> Option<Vec<Bytes>> {
        let body = self.body.lock();
        let all = body.end != Some(End::Broken) && !body.passing && body.gone == 0;
        all.then(|| body.pieces.iter().cloned().collect())
    }

    /// Reads it from its start; none if that is gone.
    pub(super) fn read(self: &Arc<Self>) -> Option<Reader> {
        let mut body = self.body.lock();
        if body.gone > 0 {
            return None;
        }
        let id = body.next_reader;
        body.next_reader += 1;
        body.readers.insert(id, 0);
        drop(body);
        let grown = self.grown.subscribe();
        Some(Reader { growing: self.clone(), grown, id, at: 0, read: 0, rest: None })
    }
}

impl Drop for Growing {
    fn drop(&mut self) {
        let left = std::mem::take(&mut self.body.get_mut().pieces);
        self.release(left.into_iter());
    }
}

/// Reads a body as it comes in.
pub(super) struct Reader {
    growing: Arc<Growing>,
    grown: watch::Receiver<()>,
    id: u64,
    /// The number of the next piece.
    at: usize,
    /// Bytes that were read.
    read: u64,
    /// What is left, once it is stored.
    rest: Option<Pieces>,
}

impl Reader {
    /// The next piece; none while there is none yet, or if it is to be read from what is stored.
    fn take(&mut self) -> Option<Result<Option<Bytes>, ClientError>> {
        if self.rest.is_some() {
            return None;
        }
        let mut body = self.growing.body.lock();
        if let Some(stored) = &body.stored {
            self.rest = Some(stored.range(self.read..stored.length()));
            return None;
        }
        let there = self.at.checked_sub(body.gone).and_then(|at| body.pieces.get(at).cloned());
        if let Some(piece) = there {
            self.at += 1;
            self.read += piece.len() as u64;
            body.readers.insert(self.id, self.at);
            let passing = body.passing;
            drop(body);
            if passing {
                self.growing.taken.send_replace(());
            }
            return Some(Ok(Some(piece)));
        }
        match body.end? {
            End::Whole => Some(Ok(None)),
            End::Broken => Some(Err(ClientError::Broken("the upstream's answer broke off".to_owned()))),
        }
    }
}

#[async_trait]
impl ClientBody for Reader {
    async fn next(&mut self) -> Result<Option<Bytes>, ClientError> {
        loop {
            self.grown.mark_unchanged();
            if let Some(taken) = self.take() {
                return taken;
            }
            if let Some(rest) = &mut self.rest {
                return ClientBody::next(rest).await;
            }
            if self.grown.changed().await.is_err() {
                return Err(ClientError::Unavailable("nobody fills it any more".into()));
            }
        }
    }
}

/// A part of a body on its way in.
pub(super) struct Part {
    reader: Reader,
    /// Bytes before it that have not come yet.
    before: u64,
    /// Bytes of it that have not been taken yet.
    left: u64,
}

impl Reader {
    /// Only these bytes.
    pub(super) fn part(self, bytes: Range<u64>) -> Part {
        Part { reader: self, before: bytes.start, left: bytes.end - bytes.start }
    }
}

#[async_trait]
impl ClientBody for Part {
    async fn next(&mut self) -> Result<Option<Bytes>, ClientError> {
        while self.left > 0 {
            let Some(mut piece) = self.reader.next().await? else {
                return Err(ClientError::Broken("it ended before the part did".to_owned()));
            };
            let room = |bytes: u64| usize::try_from(bytes).unwrap_or(usize::MAX);
            let before = piece.split_to(room(self.before).min(piece.len()));
            self.before -= before.len() as u64;
            piece.truncate(room(self.left));
            self.left -= piece.len() as u64;
            if !piece.is_empty() {
                return Ok(Some(piece));
            }
        }
        Ok(None)
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        self.growing.body.lock().readers.remove(&self.id);
        self.growing.taken.send_replace(());
    }
}

#[cfg(test)]
mod tests {
    use super::super::Key;
    use super::super::store::Parts;
    use super::*;

    fn growing() -> (Arc<Growing>, Held) {
        let held = Held::default();
        let head = ResponseHeader::build(200, None).expect("valid");
        (Growing::new(head, Facts::default(), Vec::new(), held.clone()), held)
    }

    fn piece(text: &'static str) -> Bytes {
        Bytes::from_static(text.as_bytes())
    }

    async fn all(mut reader: impl ClientBody) -> Result<Vec<Bytes>, ClientError> {
        let mut pieces = Vec::new();
        while let Some(piece) = reader.next().await? {
            pieces.push(piece);
        }
        Ok(pieces)
    }

    #[tokio::test]
    async fn every_reader_gets_the_whole_whenever_it_came() {
        let (growing, held) = growing();
        let early = growing.read().expect("its start is there");
        assert!(growing.push(piece("ab")).await);
        let late = growing.read().expect("its start is there");
        let reading = tokio::spawn(all(early));
        assert!(growing.push(piece("cd")).await);
        growing.finish();
        assert_eq!(reading.await.expect("no panic").expect("whole"), ["ab", "cd"]);
        assert_eq!(all(late).await.expect("whole"), ["ab", "cd"]);
        assert_eq!(growing.pieces().expect("whole").len(), 2);
        assert_eq!(held.0.load(Ordering::Relaxed), 4);
        drop(growing);
        assert_eq!(held.0.load(Ordering::Relaxed), 0);
    }

    #[tokio::test]
    async fn what_is_stored_is_read_on_from_there_and_held_no_more() {
        let (growing, held) = growing();
        let mut early = growing.read().expect("its start is there");
        assert!(growing.push(piece("ab")).await && growing.push(piece("cd")).await);
        assert_eq!(early.next().await, Ok(Some(piece("ab"))));
        let parts = Parts { status: 200, body: vec![piece("abcdef")], ..Parts::default() };
        let entry = Arc::new(Entry::new(&Key::from_bytes(piece("k")), parts));
        growing.stored(entry);
        assert_eq!(held.0.load(Ordering::Relaxed), 0);
        assert_eq!(all(early).await.expect("whole"), ["cdef"]);
        let late = growing.read().expect("its start is there");
        assert_eq!(all(late).await.expect("whole"), ["abcdef"]);
    }

    #[tokio::test]
    async fn a_part_is_cut_from_the_pieces_that_it_lies_in() {
        let (growing, _) = growing();
        let part = |bytes| growing.read().expect("its start is there").part(bytes);
        let parts = [0..1, 1..5, 2..4, 3..7, 6..7, 0..7].map(part);
        let beyond = part(5..9);
        for text in ["ab", "cd", "", "efg"] {
            assert!(growing.push(piece(text)).await);
        }
        growing.finish();
        let expected: [&[&str]; 6] =
            [&["a"], &["b", "cd", "e"], &["cd"], &["d", "efg"], &["g"], &["ab", "cd", "efg"]];
        for (part, expected) in parts.into_iter().zip(expected) {
            assert_eq!(all(part).await.expect("whole"), expected);
        }
        assert!(all(beyond).await.is_err(), "never one that is shorter than was said");
    }

    #[tokio::test]
    async fn what_broke_off_is_never_whole() {
        let (growing, _) = growing();
        let reader = growing.read().expect("its start is there");
        assert!(growing.push(piece("ab")).await);
        growing.abandon();
        growing.finish();
        assert!(all(reader).await.is_err());
        assert_eq!(growing.pieces(), None);
    }

    #[tokio::test]
    async fn what_is_not_kept_waits_for_the_slowest_and_ends_with_the_last_reader() {
        let (growing, held) = growing();
        let mut reader = growing.read().expect("its start is there");
        growing.pass();
        for _ in 0..MOST_HELD {
            assert!(growing.push(piece("x")).await);
        }
        let filler = growing.clone();
        let filling = tokio::spawn(async move { filler.push(piece("y")).await });
        tokio::task::yield_now().await;
        assert!(!filling.is_finished(), "it waits");
        assert_eq!(reader.next().await, Ok(Some(piece("x"))));
        assert!(filling.await.expect("no panic"));
        assert!(growing.read().is_none(), "its start is gone");
        assert_eq!(held.0.load(Ordering::Relaxed), MOST_HELD as u64);
        drop(reader);
        assert!(!growing.push(piece("z")).await, "nobody reads it");
        growing.finish();
        assert_eq!(growing.pieces(), None);
    }
}
