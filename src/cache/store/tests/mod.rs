//! The store as a whole.

mod disk;
mod limits;
mod model;
mod purges;
mod threads;
mod variants;

use std::sync::Arc;

use bytes::Bytes;

use super::{Entry, Parts, Store, StoreOptions};
use crate::cache::Key;

const ROOMY: StoreOptions = StoreOptions { capacity: 64 << 20, max_variants: 8 };

fn key(text: &str) -> Key {
    Key::from_bytes(Bytes::copy_from_slice(text.as_bytes()))
}

/// An entry of a key, with a body of that many bytes.
fn sized(text: &str, length: usize) -> Arc<Entry> {
    made(text, Parts { body: vec![vec![b'x'; length].into()], ..Parts::default() })
}

fn varied(text: &str, variant: &str) -> Arc<Entry> {
    made(text, Parts { variant: variant.into(), ..Parts::default() })
}

fn tagged(text: &str, variant: &str, tags: &[&str]) -> Arc<Entry> {
    let tags = tags.iter().map(|tag| (*tag).to_owned()).collect();
    made(text, Parts { variant: variant.into(), tags, ..Parts::default() })
}

fn made(text: &str, parts: Parts) -> Arc<Entry> {
    Arc::new(Entry::new(&key(text), parts))
}

/// Whether the key has exactly one entry, and it is this one.
fn holds(store: &Store, entry: &Arc<Entry>) -> bool {
    store.peek(entry.key()).is_some_and(|found| found.len() == 1 && Arc::ptr_eq(&found[0], entry))
}
