//! The consumers of a document, wherever they come from: a list in it, or a file beside it that is read again
//! when it changes, without the document.

mod entry;
mod feed;
mod lines;
mod picture;
#[cfg(test)]
mod tests;
mod write;

use std::path::Path as FilePath;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use parking_lot::Mutex;
use tollhouse_filters::filter::BuildError;
use tollhouse_filters::identity::consumers::{Consumers, Index, Layout};
use tollhouse_filters::identity::index;

use self::feed::{Feed, Seen, UNSURE};
use self::lines::HashSet;
use crate::config::ConsumerList;
use crate::source::Problems;

pub use self::feed::{Look, PAUSE, QUIET};
pub use self::write::WriteError;

/// The consumers of a document, for as long as it says so.
#[derive(Debug)]
pub struct Roster {
    consumers: Arc<Consumers>,
    /// None for a list in the document.
    file: Option<Source>,
}

/// A file of consumers.
#[derive(Debug)]
struct Source {
    /// As the document's base and its words make it.
    path: std::path::PathBuf,
    feed: Mutex<Feed>,
    /// Why the file as it is now does not count, if so.
    refused: Mutex<Option<Problems>>,
    /// Consumers that the API was asked to switch, by the hashes of their names: a list of the same file that was read
    /// meanwhile may know nothing of that.
    switched: Mutex<HashSet<u64>>,
    changes: AtomicU64,
    refusals: AtomicU64,
}

/// What a look at the file came to.
#[derive(Debug)]
pub enum Looked {
    /// Nothing changed.
    Same,
    /// The end of the file says nothing new; the rest was not looked at yet.
    Partly,
    /// There are so many consumers now, and requests go by them.
    Changed {
        /// How many.
        count: usize,
        /// The rest of the file was not looked at yet.
        partly: bool,
    },
    /// Somebody writes in the middle of it; another early look is needed after a [`PAUSE`].
    Busy,
    /// Somebody is writing; another look is needed.
    Unsettled,
    /// The file has problems; requests go by what it said before.
    Refused {
        /// What is wrong with it.
        problems: Problems,
        /// It was refused for the very same before.
        again: bool,
        /// It could not be read at all, which may be over soon, and nobody tells.
        unread: bool,
    },
}

/// What is wrong with consumers: in the document, by the paths below `consumers`, or in their file.
#[derive(Debug, Default)]
pub struct Faults {
    /// In the document.
    pub document: Vec<BuildError>,
    /// In the file.
    pub file: Problems,
}

impl Roster {
    /// The consumers of a document whose paths begin at `base`; without one, files count as empty. `kept` goes on
    /// where it is what the document asks for; where it followed the same file, it knows whether that is whole.
    #[must_use]
    pub fn of(
        written: ConsumerList,
        layout: Layout,
        base: Option<&FilePath>,
        kept: Option<&Arc<Self>>,
    ) -> (Arc<Self>, Faults) {
        let mut faults = Faults::default();
        let roster = match written {
            ConsumerList::Inline(list) => {
                let (index, errors) = index(&layout, list);
                faults.document = errors;
                Self { consumers: Arc::new(Consumers::new(layout, index)), file: None }
            }
            ConsumerList::File(file) => {
                let path = base.map(|base| base.join(&file.file)).unwrap_or_default();
                let kept = kept.filter(|kept| kept.file().is_some_and(|kept| kept == path));
                if let Some(kept) = kept.filter(|kept| *kept.consumers.layout() == layout) {
                    return (kept.clone(), faults);
                }
                let unsure = kept.and_then(|kept| kept.file.as_ref()?.feed.lock().under_way());
                let roster = Self {
                    consumers: Arc::new(Consumers::new(layout, Index::default())),
                    file: base.is_some().then(|| Source::new(path)),
                };
                if let Some(problems) = unsure {
                    faults.file = problems;
                } else if let Looked::Refused { problems, .. } = roster.look(Look::Settled) {
                    faults.file = problems;
                }
                roster
            }
        };
        (Arc::new(roster), faults)
    }

    /// What identities look up in.
    #[must_use]
    pub fn consumers(&self) -> &Arc<Consumers> {
        &self.consumers
    }

    /// The file they come from; none for a list in the document.
    #[must_use]
    pub fn file(&self) -> Option<&FilePath> {
        self.file.as_ref().map(|source| &*source.path)
    }

    /// Why the file as it is now does not count, if so.
    #[must_use]
    pub fn refused(&self) -> Option<Problems> {
        self.file.as_ref()?.refused.lock().clone()
    }

    /// How often the file's changes were taken, and how often it was refused.
    #[must_use]
    pub fn counts(&self) -> (u64, u64) {
        let of = |source: &Source| (source.changes.load(Relaxed), source.refusals.load(Relaxed));
        self.file.as_ref().map_or((0, 0), of)
    }

    /// Looks whether the file changed, and goes by what it says now. What cannot be read leaves everything as it
    /// was.
    pub fn look(&self, look: Look) -> Looked {
        let Some(source) = &self.file else { return Looked::Same };
        self.look_at(source, &mut source.feed.lock(), look)
    }

    fn look_at(&self, source: &Source, feed: &mut Feed, look: Look) -> Looked {
        let seen = feed.look(&self.consumers.load(), self.consumers.layout(), look);
        match seen {
            Ok(Seen::Busy) => Looked::Busy,
            Ok(Seen::Unsettled) => Looked::Unsettled,
            Ok(Seen::Same) => {
                // It can be read again.
                source.refused.lock().take_if(|problems| is_unread(problems));
                Looked::Same
            }
            Ok(seen) => {
                let partly = matches!(seen, Seen::Partly(_));
                if !partly {
                    source.refused.lock().take();
                }
                let (Seen::Partly(Some(next)) | Seen::Whole(Some(next))) = seen else {
                    return if partly { Looked::Partly } else { Looked::Same };
                };
                let count = next.len();
                self.consumers.store(next);
                source.changes.fetch_add(1, Relaxed);
                Looked::Changed { count, partly }
            }
            // What is wrong may be that it is not all there yet.
            Err(_) if look == Look::Early => Looked::Unsettled,
            Err(problems) => {
                let mut refused = source.refused.lock();
                let again = refused.replace(problems.clone()).is_some_and(|last| last == problems);
                if !again {
                    source.refusals.fetch_add(1, Relaxed);
                }
                let unread = is_unread(&problems);
                Looked::Refused { problems, again, unread }
            }
        }
    }
}

/// Whether a file may be whole in a while, which nobody tells.
#[must_use]
pub fn is_passing(problems: &Problems) -> bool {
    problems.list.iter().any(|problem| problem.message.ends_with(UNSURE))
}

/// Whether no line is to blame.
fn is_unread(problems: &Problems) -> bool {
    problems.list.iter().all(|problem| problem.place.line == 0)
}

impl Source {
    fn new(path: std::path::PathBuf) -> Self {
        let (feed, changes, refusals) =
            (Mutex::new(Feed::new(path.clone())), AtomicU64::new(0), AtomicU64::new(0));
        Self { path, feed, refused: Mutex::default(), switched: Mutex::default(), changes, refusals }
    }
}
