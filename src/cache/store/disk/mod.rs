//! The slower tier: entries in files, for what memory has no room for, and for after a restart.
//!
//! No request waits for a write, and for a read only up to a deadline: a thread writes what is in a bounded
//! queue, and what does not fit in there is not kept. Each file has a checksum; one that is not whole, or not
//! what its name says, is a miss. A disk that is full or fails is left alone for a while.

mod index;
mod purges;
mod record;
mod waiting;
mod writer;

use std::collections::VecDeque;
use std::fs;
use std::io::{self, Read};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use parking_lot::{Condvar, Mutex};
use tokio::sync::Semaphore;

use self::index::{File, Index};
use self::purges::{Early, Purges};
use self::waiting::Waiting;
use super::entry::Entry;
use super::purge::{How, Purge};

/// Bytes that wait to be written, at most.
const QUEUE: usize = 64 << 20;
/// Files read at the same time, at most.
const READERS: usize = 32;
/// How long a request waits for a file.
const PATIENCE: Duration = Duration::from_secs(1);
/// How long a start waits until it is known what there is.
const START: Duration = Duration::from_secs(5);
/// How long an end waits until everything is written.
const END: Duration = Duration::from_secs(5);
/// The file of the mark.
const MARK: &str = "mark";
/// One file takes this part of the space at most.
const LARGEST_PART: u64 = 2;

/// Where entries are kept on disk, and how many.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DiskOptions {
    /// A directory for this alone. It is made if there is none.
    pub path: PathBuf,
    /// Bytes that its files take at most.
    pub capacity: u64,
}

/// What is on disk, and what happened there since the start.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct DiskNumbers {
    /// Files.
    pub entries: u64,
    /// Bytes that they take.
    pub bytes: u64,
    /// Bytes that they may take.
    pub capacity: u64,
    /// Entries read.
    pub hits: u64,
    /// Entries written.
    pub written: u64,
    /// Files that left for others.
    pub evicted: u64,
    /// Entries not written since too many waited, or the disk failed not long before.
    pub dropped: u64,
    /// Files that were not whole.
    pub corrupt: u64,
    /// Writes and reads that failed or took too long.
    pub errors: u64,
}

/// A directory of entries.
pub(super) struct Disk {
    shared: Arc<Shared>,
}

/// An entry that was read.
pub(super) struct Loaded {
    pub(super) entry: Arc<Entry>,
    file: File,
}

struct Shared {
    root: PathBuf,
    capacity: AtomicU64,
    state: Mutex<State>,
    /// There is something to do.
    work: Condvar,
    /// There is nothing to do any more.
    idle: Condvar,
    readers: Arc<Semaphore>,
    /// The last number given to what happens.
    seq: AtomicU64,
    counts: Counts,
}

#[derive(Default)]
struct State {
    index: Index,
    purges: Purges,
    /// Until it is known what there is.
    early: Early,
    queue: VecDeque<Job>,
    /// Bytes of the entries in the queue.
    queued: usize,
    /// Those of them that are to be written still.
    waiting: Waiting,
    /// What is being written, unless it was purged meanwhile.
    writing: Option<Arc<Entry>>,
    purges_changed: bool,
    /// It is known what there is.
    ready: bool,
    busy: bool,
    stop: bool,
    ended: bool,
}

enum Job {
    Keep(Arc<Entry>, u64),
    Delete(File),
    Mark(String),
}

#[derive(Default)]
struct Counts {
    hits: AtomicU64,
    written: AtomicU64,
    evicted: AtomicU64,
    dropped: AtomicU64,
    corrupt: AtomicU64,
    errors: AtomicU64,
}

impl Disk {
    /// Opens a directory; waits a little until it is known what is in there.
    ///
    /// # Errors
    /// If the directory cannot be made or written to.
    pub(super) fn open(options: &DiskOptions) -> io::Result<Self> {
        let root = options.path.clone();
        fs::DirBuilder::new().recursive(true).mode(0o700).create(&root)?;
        let lock = writer::lock_file(&root)?;
        let is_ours = lock.try_lock().is_ok();
        let shared = Arc::new(Shared {
            root,
            capacity: AtomicU64::new(options.capacity),
            state: Mutex::default(),
            work: Condvar::new(),
            idle: Condvar::new(),
            readers: Arc::new(Semaphore::new(READERS)),
            seq: AtomicU64::new(0),
            counts: Counts::default(),
        });
        let writes = Arc::clone(&shared);
        let run = move || writer::run(&writes, lock, is_ours);
        std::thread::Builder::new().name("cache-disk".to_owned()).spawn(run)?;
        if is_ours {
            let mut state = shared.state.lock();
            shared.idle.wait_while_for(&mut state, |state| !state.ready, START);
        }
        Ok(Self { shared })
    }

    pub(super) fn path(&self) -> &Path {
        &self.shared.root
    }

    /// Gives it another capacity; what does not fit leaves.
    pub(super) fn resize(&self, capacity: u64) {
        self.shared.capacity.store(capacity, Relaxed);
        self.shared.work.notify_one();
    }

    /// Writes an entry some time soon, in place of one with its key and variant.
    pub(super) fn keep(&self, entry: &Arc<Entry>) {
        let shared = &self.shared;
        if record::size(entry) > shared.capacity.load(Relaxed) / LARGEST_PART {
            return self.forget(entry);
        }
        let mut state = shared.state.lock();
        if state.queued + entry.weight() > QUEUE {
            shared.counts.dropped.fetch_add(1, Relaxed);
            drop(state);
            // What is there is older than this one.
            return self.forget(entry);
        }
        state.queued += entry.weight();
        state.waiting.put(entry);
        state.queue.push_back(Job::Keep(Arc::clone(entry), shared.next()));
        shared.work.notify_one();
    }

    /// Takes out what there is with this entry's key and variant.
    pub(super) fn forget(&self, entry: &Entry) {
        let mut state = self.shared.state.lock();
        state.waiting.withdraw(entry);
        state.writing.take_if(|other| other.key() == entry.key() && other.variant() == entry.variant());
        if let Some(file) = state.index.take_entry(entry) {
            state.queue.push_back(Job::Delete(file));
            self.shared.work.notify_one();
        }
    }

    /// Purges. What is marked only stays marked in memory: on disk, a URL is purged for good.
    pub(super) fn purge(&self, what: &Purge, how: How) {
        let mut state = self.shared.state.lock();
        state.waiting.purge(what);
        state.writing.take_if(|entry| what.hits(entry));
        if let Purge::Url(url) = what {
            let files = state.index.take_url(url);
            state.queue.extend(files.into_iter().map(Job::Delete));
            // There are many of these, and lists of purges are short.
            if !state.ready && !state.early.note(url) {
                self.note(&mut state, &Purge::All, How::Hard);
            }
        } else {
            self.note(&mut state, what, how);
        }
        self.shared.work.notify_one();
    }

    /// Notes a purge of what is there already, if anything is.
    fn note(&self, state: &mut State, what: &Purge, how: How) {
        // Until it is known what there is, there may be anything.
        let oldest = if state.ready { state.index.oldest() } else { Some(0) };
        if oldest.is_some() {
            state.purges.note(self.shared.next(), what, how, oldest);
            state.purges_changed = true;
        }
    }

    /// Writes a mark once all purges before it are written.
    pub(super) fn set_mark(&self, mark: String) {
        let mut state = self.shared.state.lock();
        state.queue.retain(|job| !matches!(job, Job::Mark(_)));
        state.queue.push_back(Job::Mark(mark));
        self.shared.work.notify_one();
    }

    /// The mark that was written last.
    pub(super) fn mark(&self) -> Option<String> {
        fs::read_to_string(self.shared.root.join(MARK)).ok()
    }

    /// The entries of a key, or only this variant, the newest first and so many at most. Waits for the disk up
    /// to a second.
    pub(super) async fn load(&self, key: &[u8], variant: Option<&[u8]>, most: usize) -> Vec<Loaded> {
        let files = self.shared.state.lock().readable(key, variant, most);
        if files.is_empty() {
            return Vec::new();
        }
        // With so many waiting, one more would not be served faster by the disk than by an upstream.
        let Ok(permit) = Arc::clone(&self.shared.readers).try_acquire_owned() else { return Vec::new() };
        let (shared, key) = (Arc::clone(&self.shared), key.to_vec());
        let read = tokio::task::spawn_blocking(move || {
            let _permit = permit;
            files.into_iter().filter_map(|file| shared.read(&key, file)).collect()
        });
        let Ok(Ok(loaded)) = tokio::time::timeout(PATIENCE, read).await else {
            self.shared.counts.errors.fetch_add(1, Relaxed);
            return Vec::new();
        };
        loaded
    }

    /// Whether it is still there: no purge has taken it out since it was read, nor has another one its place. Marks
    /// it, if a purge only does that.
    pub(super) fn still_has(&self, loaded: &Loaded) -> bool {
        let state = self.shared.state.lock();
        let verdict = state.purges.verdict(&loaded.entry, loaded.file.seq);
        state.index.has(&loaded.file) && loaded.entry.bears(verdict)
    }

    pub(super) fn numbers(&self) -> DiskNumbers {
        let Shared { counts, capacity, .. } = &*self.shared;
        let state = self.shared.state.lock();
        DiskNumbers {
            entries: state.index.len() as u64,
            bytes: state.index.bytes(),
            capacity: capacity.load(Relaxed),
            hits: counts.hits.load(Relaxed),
            written: counts.written.load(Relaxed),
            evicted: counts.evicted.load(Relaxed),
            dropped: counts.dropped.load(Relaxed),
            corrupt: counts.corrupt.load(Relaxed),
            errors: counts.errors.load(Relaxed),
        }
    }

    /// Ends it, once what waits is written; but does not wait for a disk that hangs.
    pub(super) fn end(&self) {
        let mut state = self.shared.state.lock();
        state.stop = true;
        self.shared.work.notify_one();
        self.shared.idle.wait_while_for(&mut state, |state| !state.ended, END);
    }

    /// Waits until everything that was to be done is done.
    #[cfg(test)]
    pub(super) fn settle(&self) {
        let mut state = self.shared.state.lock();
        self.shared.work.notify_one();
        self.shared.idle.wait_while(&mut state, |state| {
            !state.ready || state.busy || state.purges_changed || !state.queue.is_empty()
        });
    }
}

impl Drop for Disk {
    /// Waits for nothing: the last who has it may be a request.
    fn drop(&mut self) {
        self.shared.state.lock().stop = true;
        self.shared.work.notify_one();
    }
}

impl State {
    /// The files to be read for a key; none before it is known what was purged.
    fn readable(&self, key: &[u8], variant: Option<&[u8]>, most: usize) -> Vec<File> {
        if self.ready { self.index.of_key(key, variant, most) } else { Vec::new() }
    }

    /// Has all that happened since the start be later than this, in its order; gives by how much its numbers grew.
    fn come_after(&mut self, newest: u64) -> u64 {
        let kept = self.queue.iter().filter_map(|job| match job {
            Job::Keep(_, seq) => Some(*seq),
            _ => None,
        });
        let Some(first) = kept.chain(self.purges.oldest()).min() else { return 0 };
        let by = (newest + 1).saturating_sub(first);
        for job in &mut self.queue {
            if let Job::Keep(_, seq) = job {
                *seq += by;
            }
        }
        self.purges.grow(by);
        by
    }
}

impl Shared {
    /// Numbers grow, also from one process to the next.
    fn next(&self) -> u64 {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_micros();
        let now = u64::try_from(now).unwrap_or(0);
        let next = |last: u64| Some(now.max(last + 1));
        self.seq.fetch_update(Relaxed, Relaxed, next).map_or(now, |last| now.max(last + 1))
    }

    /// The entry of a file, if it is what it should be.
    fn read(&self, key: &[u8], file: File) -> Option<Loaded> {
        let bytes = match self.read_file(&file) {
            Ok(bytes) => bytes,
            Err(error) => {
                let is_gone = error.kind() == io::ErrorKind::NotFound;
                self.counts.errors.fetch_add(u64::from(!is_gone), Relaxed);
                self.discard(file);
                return None;
            }
        };
        let Some(entry) = record::read(bytes) else {
            log::warn!(file:display = file.path(&self.root).display(); "a file of the cache is corrupt");
            self.counts.corrupt.fetch_add(1, Relaxed);
            self.discard(file);
            return None;
        };
        if entry.key() != key {
            return None;
        }
        let verdict = self.state.lock().purges.verdict(&entry, file.seq);
        if !entry.bears(verdict) {
            self.discard(file);
            return None;
        }
        self.counts.hits.fetch_add(1, Relaxed);
        Some(Loaded { entry: Arc::new(entry), file })
    }

    fn read_file(&self, file: &File) -> io::Result<Vec<u8>> {
        let (mut bytes, limit) = (Vec::new(), file.bytes());
        let opened = fs::File::open(file.path(&self.root))?;
        bytes.try_reserve_exact(usize::try_from(opened.metadata()?.len().min(limit)).unwrap_or(0))?;
        opened.take(limit).read_to_end(&mut bytes)?;
        Ok(bytes)
    }

    /// A file is of no use.
    fn discard(&self, file: File) {
        let mut state = self.state.lock();
        if state.index.take_file(&file) {
            state.queue.push_back(Job::Delete(file));
            self.work.notify_one();
        }
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;
    use crate::cache::Key;
    use crate::cache::store::entry::Parts;

    #[test]
    fn of_what_waits_to_be_written_only_the_newest_is_and_nothing_that_was_taken_out() {
        let folder = tempfile::tempdir().unwrap();
        let options = DiskOptions { path: folder.path().into(), capacity: 1 << 20 };
        let entry = |key: &'static [u8], variant: &[u8]| {
            let parts = Parts { variant: variant.to_vec(), ..Parts::default() };
            Arc::new(Entry::new(&Key::from_bytes(Bytes::from_static(key)), parts))
        };
        // The second waits for the first one to end, and all that it is to write with it.
        let first = Disk::open(&options).unwrap();
        let second = Disk::open(&options).unwrap();
        let all: [(&'static [u8], &[u8]); 5] =
            [(b"a\0", b""), (b"a\0", b""), (b"a\0", b"other"), (b"b\0", b""), (b"c\0", b"")];
        for (key, variant) in all {
            second.keep(&entry(key, variant));
        }
        second.forget(&entry(b"b\0", b""));
        second.purge(&Purge::Url(b"c".to_vec()), How::Hard);
        first.end();
        second.settle();
        let DiskNumbers { written, entries, .. } = second.numbers();
        assert_eq!((written, entries), (2, 2));
        let state = second.shared.state.lock();
        let of_key = |key: &[u8]| state.index.of_key(key, None, 9).len();
        assert_eq!([&b"a\0"[..], b"b\0", b"c\0"].map(of_key), [2, 0, 0]);
        assert_eq!(state.queued, 0);
    }

    #[tokio::test]
    async fn nothing_is_read_before_it_is_known_what_was_purged_though_its_file_is() {
        let folder = tempfile::tempdir().unwrap();
        let options = DiskOptions { path: folder.path().into(), capacity: 1 << 20 };
        let entry = |key: &'static [u8]| {
            Arc::new(Entry::new(&Key::from_bytes(Bytes::from_static(key)), Parts::default()))
        };
        let (purged, kept) = (entry(b"https://a/\0"), entry(b"https://b/\0"));
        let first = Disk::open(&options).unwrap();
        first.keep(&purged);
        first.keep(&kept);
        first.settle();
        let files = first.shared.state.lock().index.of_key(purged.key(), None, 1);
        first.purge(&Purge::Prefix(b"https://a/".to_vec()), How::Hard);
        first.settle();
        // It waits for the first one to end, and then learns of files before it reads of purges.
        let second = Disk::open(&options).unwrap();
        for file in files {
            second.shared.state.lock().index.put(file);
        }
        assert!(second.load(purged.key(), None, 1).await.is_empty());
        first.end();
        second.settle();
        assert_eq!(second.load(kept.key(), None, 1).await.len(), 1);
    }
}
