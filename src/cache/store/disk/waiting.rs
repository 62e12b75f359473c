//! What waits to be written, by what its file will be: so that nobody looks through the queue for it.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::index::Id;
use crate::cache::store::entry::Entry;
use crate::cache::store::purge::Purge;

/// The newest entry of each key and variant that is in the queue, unless it is not to be kept any more.
#[derive(Default)]
pub(super) struct Waiting(BTreeMap<Id, Arc<Entry>>);

impl Waiting {
    /// This entry is to be written, and none with its key and variant that came before.
    pub(super) fn put(&mut self, entry: &Arc<Entry>) {
        self.0.insert(Id::of(entry), Arc::clone(entry));
    }

    /// Takes an entry out, if it is to be written still.
    pub(super) fn take(&mut self, entry: &Arc<Entry>) -> Option<Arc<Entry>> {
        let id = Id::of(entry);
        self.0.get(&id).filter(|newest| Arc::ptr_eq(newest, entry))?;
        self.0.remove(&id)
    }

    /// What waits with this entry's key and variant is not to be written.
    pub(super) fn withdraw(&mut self, entry: &Entry) {
        self.0.remove(&Id::of(entry));
    }

    /// What a purge hits is not to be written.
    pub(super) fn purge(&mut self, what: &Purge) {
        if let Purge::Url(url) = what {
            let ids: Vec<Id> = self.0.range(Id::all_of(url)).map(|(id, _)| *id).collect();
            ids.iter().for_each(|id| _ = self.0.remove(id));
        } else {
            self.0.retain(|_, entry| !what.hits(entry));
        }
    }
}
