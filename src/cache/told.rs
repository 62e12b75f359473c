//! What a fill tells who began it.

use std::sync::Arc;
use std::time::Instant;

use tokio::sync::oneshot;
use tollhouse_filters::outcome::Reply;

use super::flight::Lead;
use super::growing::{Growing, Reader};
use super::store::Entry;
use crate::engine::Fetched;

/// What came of a fill, for who began it.
pub(super) enum Filled {
    /// An answer for all who wait, and its body; why it will not be stored, if it will not.
    Growing(Arc<Growing>, Reader, Option<&'static str>),
    /// What was stored still holds; why it is not stored with what came of it, if it is not.
    Validated(Arc<Entry>, Option<&'static str>),
    /// What was stored is served, though it should have been validated: why, and what came instead, if anything.
    Stale(Arc<Entry>, &'static str, Option<u16>),
    /// An answer to this request alone, and why it is not stored.
    Own(Reply, Option<&'static str>),
}

/// What came of a fill, and what was asked for it.
pub(super) struct Told {
    pub(super) filled: Filled,
    pub(super) fetched: Box<Fetched>,
}

/// Who began a fill.
pub(super) struct Asker {
    tell: oneshot::Sender<Told>,
    /// What was asked so far.
    pub(super) fetched: Box<Fetched>,
}

impl Asker {
    /// One who waits for what is told.
    pub(super) fn new() -> (Self, oneshot::Receiver<Told>) {
        let (tell, told) = oneshot::channel();
        (Self { tell, fetched: Box::default() }, told)
    }

    /// Waits until it went away.
    pub(super) async fn gone(&mut self) {
        self.tell.closed().await;
    }

    /// Tells what came; who went away does not hear it.
    pub(super) fn tell(self, filled: Filled) {
        let (tell, told) = self.told(filled);
        let _ = tell.send(told);
    }

    /// As [`tell`](Self::tell), at the end of the fill.
    pub(super) fn end(self, lead: Lead, filled: Filled) {
        let (tell, told) = self.told(filled);
        lead.end(tell, told);
    }

    fn told(mut self, filled: Filled) -> (oneshot::Sender<Told>, Told) {
        self.fetched.told = Some(Instant::now());
        (self.tell, Told { filled, fetched: self.fetched })
    }
}
