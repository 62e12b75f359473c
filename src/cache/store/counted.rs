//! Sums of what is there at the moment.

use std::ops::Deref;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

/// Bytes that are in a sum until this is dropped.
pub(super) struct Counted<S: Deref<Target = AtomicUsize>> {
    sum: S,
    bytes: usize,
}

impl<S: Deref<Target = AtomicUsize>> Counted<S> {
    pub(super) fn new(sum: S, bytes: usize) -> Self {
        sum.fetch_add(bytes, Relaxed);
        Self { sum, bytes }
    }
}

impl<S: Deref<Target = AtomicUsize>> Drop for Counted<S> {
    fn drop(&mut self) {
        self.sum.fetch_sub(self.bytes, Relaxed);
    }
}
