//! What was read and belongs to no request yet, and how a request takes it.

use std::cell::RefCell;
use std::io;
use std::pin::pin;
use std::task::{Context, Poll, ready};

use bytes::{Bytes, BytesMut};
use tokio::io::AsyncReadExt;

use super::super::Declined;
use super::super::head::Head;
use super::{DoorStream, Rest};

/// What is read at once between requests: heads fit, and most bodies that come with them.
pub(super) const LEAD: usize = 16 * 1024;

thread_local! {
    /// What is read into between requests: the thread's, so that waiting costs no memory. Empty before and after.
    static ROOM: RefCell<BytesMut> = RefCell::default();
}

impl DoorStream {
    /// What was read and belongs to no request yet.
    pub(in crate::door) fn lead(&self) -> &[u8] {
        &self.lead
    }

    /// Puts what was read elsewhere before all that is still to be read.
    pub(in crate::door) fn put_lead(&mut self, bytes: &[u8]) {
        self.lead = BytesMut::from(bytes);
    }

    /// Gives the head of the request that began; what is read next is its body.
    pub fn take_head(&mut self, head: &Head) -> Bytes {
        self.split_lead(head.end - head.start).freeze()
    }

    /// Gives what came of the body with the head, unless it comes in chunks.
    pub fn take_early(&mut self) -> Bytes {
        let Rest::Bytes(left) = self.rest else { return Bytes::new() };
        let here = self.lead.len().min(usize::try_from(left).unwrap_or(usize::MAX));
        self.rest = Rest::Bytes(left - here as u64);
        if here == 0 { Bytes::new() } else { self.split_lead(here).freeze() }
    }

    /// Puts a head back that was taken.
    pub(in crate::door) fn put_back(&mut self, declined: Declined) {
        let mut lead = BytesMut::from(declined.head);
        lead.extend_from_slice(&self.lead);
        self.lead = lead;
        *self.carried.left.lock() = declined.left;
    }

    /// Gives what was read so far of the request that began.
    pub(in crate::door) fn take_prefix(&mut self, head: &Head) -> BytesMut {
        let length = head.end - head.start;
        // What is wrong is told to who reads the body: it will, from the start again.
        let body = self.rest.take(&self.lead[length..]).unwrap_or_else(|rule| self.break_off(rule));
        self.split_lead(length + body)
    }

    pub(super) fn split_lead(&mut self, length: usize) -> BytesMut {
        if length == self.lead.len() { std::mem::take(&mut self.lead) } else { self.lead.split_to(length) }
    }

    /// Reads more of what belongs to no request yet; 0 is the end.
    pub(in crate::door) fn poll_lead(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        ROOM.with_borrow_mut(|room| {
            room.reserve(LEAD);
            let read = pin!(self.inner_mut().read_buf(room)).poll(cx);
            let n = ready!(self.or_drained(cx, read))?;
            if self.lead.is_empty() && n > LEAD / 2 {
                // To copy so much takes longer than to make room for the next one.
                self.lead = std::mem::take(room);
            } else {
                self.lead.extend_from_slice(room);
                room.clear();
            }
            Poll::Ready(Ok(n))
        })
    }
}
