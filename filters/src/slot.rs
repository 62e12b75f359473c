//! Where a filter keeps what it knows of a request.

use std::marker::PhantomData;

/// A private place of one filter instance in every request's context.
pub struct Slot<T> {
    pub(crate) id: u32,
    kind: PhantomData<fn() -> T>,
}

impl<T> Slot<T> {
    pub(crate) fn new(id: u32) -> Self {
        Self { id, kind: PhantomData }
    }
}

impl<T> Clone for Slot<T> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<T> Copy for Slot<T> {}
