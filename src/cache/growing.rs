//! A body on its way in, read by as many as wait for it.

use std::collections::{HashMap, VecDeque};
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use parking_lot::Mutex;
use pingora::http::ResponseHeader;
use tokio::sync::watch;
use tokio::time::{Instant, timeout};
use tollhouse_filters::caching::Facts;
use tollhouse_filters::world::{ClientBody, ClientError};

use super::store::{Entry, Pieces};

/// Pieces that are held of a body that is not stored, for the slowest of those that read it,
pub(super) const MOST_HELD: usize = 16;
/// and of one for which there is no room: there, who keeps quicker ones waiting for too long and is more than `MOST_HELD`
/// behind is left behind.
pub(super) const FEW_HELD: usize = 1;
/// How long quicker ones wait for those who are far behind while nobody takes anything,
const PATIENCE: Duration = Duration::from_secs(1);
/// and in all, however much is taken: nobody sets the pace for the others.
const LONGEST: Duration = Duration::from_secs(10);

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
    /// How long it is expected to become, while it is kept and comes in.
    expected: u64,
    /// Bytes of the pieces that are there.
    held: u64,
    /// Bytes of it that count among those of all.
    counted: u64,
    end: Option<End>,
    /// Where it is read from once it is stored: pieces of its own would be there twice.
    stored: Option<Arc<Entry>>,
    /// It is not kept: what all have read is dropped, and of the rest so many pieces are held.
    passing: Option<usize>,
    /// Where the readers are, by their numbers.
    readers: HashMap<u64, usize>,
    next_reader: u64,
    /// How long quicker readers were kept waiting.
    waited: Duration,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    Whole,
    Broken,
}

/// Bytes that are held for bodies on their way in, over all of them, and that are expected of those that are kept.
#[derive(Clone, Default)]
pub(super) struct Held(Arc<AtomicU64>);

impl Held {
    pub(super) fn bytes(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }

    /// Counts a body anew, of which something changed.
    fn count(&self, body: &mut Body) {
        let before = std::mem::replace(&mut body.counted, body.held.max(body.expected));
        // It is less sometimes; the sum of all never wraps.
        self.0.fetch_add(body.counted.wrapping_sub(before), Ordering::Relaxed);
    }
}

impl Body {
    /// Whether one has read all but so many pieces, and another one has not.
    fn is_one_kept_waiting(&self, most: usize) -> bool {
        let places = self.readers.values().copied();
        let (slowest, quickest) = (places.clone().min(), places.max());
        slowest < quickest && quickest.is_some_and(|at| at + most >= self.gone + self.pieces.len())
    }

    /// How many pieces are held for the slowest reader. Where those are few, one that has read the others does not wait
    /// long for it: more are held, and who does not keep up with that is left behind once it is late. Gives how long
    /// that one waits still, too.
    fn most_held(&mut self, most: usize, is_late: bool) -> (usize, Option<Duration>) {
        if most >= MOST_HELD || !self.is_one_kept_waiting(most) {
            return (most, None);
        }
        if is_late {
            let end = self.gone + self.pieces.len();
            self.readers.retain(|_, at| *at + MOST_HELD >= end);
        }
        (MOST_HELD, Some(PATIENCE.min(LONGEST.saturating_sub(self.waited))))
    }
}

impl Growing {
    /// One of which so many bytes are expected: they count from now on, so that not all begin at once.
    pub(super) fn new(
        head: ResponseHeader,
        facts: Facts,
        variant: Vec<u8>,
        (held, expected): (Held, u64),
    ) -> Arc<Self> {
        let (grown, taken) = (watch::Sender::new(()), watch::Sender::new(()));
        let mut body = Body { expected, ..Body::default() };
        held.count(&mut body);
        Arc::new(Self { head, facts, variant, body: body.into(), grown, taken, held })
    }

    /// Adds a piece; false if nobody reads what is not kept.
    pub(super) async fn push(&self, piece: Bytes) -> bool {
        let mut taken = self.taken.subscribe();
        {
            let mut body = self.body.lock();
            body.length += piece.len() as u64;
            body.held += piece.len() as u64;
            body.pieces.push_back(piece);
            self.held.count(&mut body);
        }
        self.grown.send_replace(());
        let mut is_late = false;
        loop {
            let patience = {
                let mut body = self.body.lock();
                let most = body.passing.map(|most| body.most_held(most, is_late));
                self.trim(&mut body);
                match most {
                    Some(_) if body.readers.is_empty() => return false,
                    Some((most, patience)) if body.pieces.len() > most => patience,
                    _ => return true,
                }
            };
            let Some(patience) = patience else {
                if taken.changed().await.is_err() {
                    return false;
                }
                continue;
            };
            let since = Instant::now();
            is_late = timeout(patience, taken.changed()).await.is_err();
            self.body.lock().waited += since.elapsed();
        }
    }

    /// From now on it is not kept: of what not all have read, so many pieces are held.
    pub(super) fn pass(&self, most: usize) {
        let mut body = self.body.lock();
        (body.passing, body.expected) = (Some(most), 0);
        self.held.count(&mut body);
    }

    fn trim(&self, body: &mut Body) {
        if body.passing.is_none() {
            return;
        }
        let slowest = body.readers.values().copied().min().unwrap_or(usize::MAX);
        let gone = slowest.saturating_sub(body.gone).min(body.pieces.len());
        body.gone += gone;
        body.held -= body.pieces.drain(..gone).map(|piece| piece.len() as u64).sum::<u64>();
        self.held.count(body);
    }

    /// The body is whole.
    pub(super) fn finish(&self) {
        self.end(End::Whole);
    }

    /// The body is whole, and in the store.
    pub(super) fn stored(&self, entry: Arc<Entry>) {
        let mut body = self.body.lock();
        body.pieces.clear();
        body.held = 0;
        body.stored = Some(entry);
        drop(body);
        self.finish();
    }

    /// The body broke off; nothing, if it is whole.
    pub(super) fn abandon(&self) {
        self.end(End::Broken);
    }

    fn end(&self, end: End) {
        let mut body = self.body.lock();
        body.end.get_or_insert(end);
        body.expected = 0;
        self.held.count(&mut body);
        drop(body);
        self.grown.send_replace(());
    }

    /// Bytes of it that count among those of all.
    pub(super) fn share(&self) -> u64 {
        self.body.lock().counted
    }

    /// How long it is so far.
    pub(super) fn length(&self) -> u64 {
        self.body.lock().length
    }

    /// Its pieces so far, if they are all there.
    pub(super) fn pieces(&self) -> Option<Vec<Bytes>> {
        let body = self.body.lock();
        let all = body.end != Some(End::Broken) && body.passing.is_none() && body.gone == 0;
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
        let body = self.body.get_mut();
        (body.held, body.expected) = (0, 0);
        self.held.count(body);
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
        let Some(place) = self.at.checked_sub(body.gone) else {
            return Some(Err(ClientError::Broken("it was read too slowly".to_owned())));
        };
        if let Some(piece) = body.pieces.get(place).cloned() {
            self.at += 1;
            self.read += piece.len() as u64;
            body.readers.insert(self.id, self.at);
            let passing = body.passing.is_some();
            // The filler may have nothing to add for long.
            self.growing.trim(&mut body);
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
mod tests;
