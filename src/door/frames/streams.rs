//! The streams of a connection that are not over for its client: their answers are still to be sent.

/// Streams that the client opened, until its answer ends or either side resets it.
#[derive(Debug)]
pub(super) struct Streams {
    /// In order, as new ids are higher than those before (RFC 9113 s5.1.1).
    open: Vec<u32>,
    newest: u32,
    /// Later ones are ignored, as the gateway said (RFC 9113 s6.8).
    last: u32,
}

impl Default for Streams {
    fn default() -> Self {
        Self { open: Vec::new(), newest: 0, last: u32::MAX }
    }
}

impl Streams {
    /// The head of a request is whole, or trailers are.
    pub(super) fn open(&mut self, id: u32) {
        if id > self.newest && id <= self.last {
            self.newest = id;
            self.open.push(id);
        }
    }

    /// The answer is sent to its end, or a side gave the stream up.
    pub(super) fn close(&mut self, id: u32) {
        if let Ok(at) = self.open.binary_search(&id) {
            self.open.remove(at);
        }
    }

    /// The client is told that streams after this one are ignored.
    pub(super) fn end_after(&mut self, last: u32) {
        self.last = self.last.min(last);
        self.newest = self.newest.min(last);
        self.open.retain(|id| *id <= last);
    }

    pub(super) fn are_open(&self) -> bool {
        !self.open.is_empty()
    }

    /// The newest one that may have been served.
    pub(super) fn newest(&self) -> u32 {
        self.newest
    }
}
