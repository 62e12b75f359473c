//! The thread that changes the directory.

use std::fs::{self, OpenOptions};
use std::io::{self, BufWriter, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

use super::index::File;
use super::purges::{Early, Purges};
use super::{Job, MARK, Shared, record};
use crate::cache::store::entry::Entry;

/// How long a disk that fails is left alone.
const PAUSE: Duration = Duration::from_secs(10);
/// How often a directory is looked at that another process has.
const AGAIN: Duration = Duration::from_secs(1);

/// What there is to do.
enum Work {
    Purges,
    Job(Job),
    Evict(File),
    Stop,
}

/// The file whose lock tells who has the directory.
pub(super) fn lock_file(root: &Path) -> io::Result<fs::File> {
    OpenOptions::new().create(true).truncate(false).write(true).mode(0o600).open(root.join("lock"))
}

/// Works until it is to stop; when it has ended, another one can have the directory.
pub(super) fn run(shared: &Shared, lock: fs::File, is_ours: bool) {
    work(shared, &lock, is_ours);
    drop(lock);
    shared.state.lock().ended = true;
    shared.idle.notify_all();
}

/// A directory has one process at a time: after an upgrade, the new one waits for the old one to end.
fn work(shared: &Shared, lock: &fs::File, mut is_ours: bool) {
    while !is_ours {
        let mut state = shared.state.lock();
        if state.stop {
            return;
        }
        shared.work.wait_for(&mut state, AGAIN);
        is_ours = lock.try_lock().is_ok();
    }
    shared.take_stock();
    let mut paused = None;
    loop {
        let done = match shared.wait() {
            Work::Stop => return,
            Work::Purges => shared.write_purges(),
            Work::Job(Job::Delete(file)) => shared.delete(file),
            Work::Evict(file) => shared.evict(file),
            Work::Job(Job::Keep(entry, _)) if paused.is_some_and(|until| Instant::now() < until) => {
                shared.counts.dropped.fetch_add(1, Relaxed);
                shared.supersede(&entry);
                Ok(())
            }
            Work::Job(Job::Keep(entry, seq)) => shared.keep(&entry, seq),
            // Purges before it may not have been written, if the disk failed.
            Work::Job(Job::Mark(mark)) => shared.write_purges().and_then(|()| shared.write_mark(&mark)),
        };
        if let Err(error) = done {
            shared.counts.errors.fetch_add(1, Relaxed);
            if paused.is_none_or(|until| until < Instant::now()) {
                log::warn!(path:display = shared.root.display(); "the cache cannot write to disk: {error}");
                paused = Some(Instant::now() + PAUSE);
            }
        }
    }
}

impl Shared {
    /// Learns what there is from the names of files.
    fn take_stock(&self) {
        for folder in 0..=u8::MAX {
            // None yet, or not ours to read: nothing to be had.
            let files = fs::read_dir(self.root.join(format!("{folder:02x}"))).into_iter().flatten().flatten();
            for found in files {
                let name = found.file_name();
                match name.to_str().and_then(File::named) {
                    Some(file) => self.learn(file),
                    // A write that did not come to its end.
                    None if Path::new(&name).extension().is_some_and(|end| end == "new") => {
                        _ = fs::remove_file(found.path());
                    }
                    None => {}
                }
            }
        }
        let mut state = self.state.lock();
        let newest = state.index.newest().unwrap_or(0);
        let kept = Purges::read(&self.root, newest + 1);
        let newest = newest.max(kept.newest().unwrap_or(0));
        // The clock may have been set back since the process before had it.
        let by = state.come_after(newest);
        let noted = std::mem::replace(&mut state.purges, kept);
        state.purges.extend(noted);
        self.seq.fetch_add(by, Relaxed);
        self.seq.fetch_max(newest, Relaxed);
        // What they hit is not in the index.
        state.early = Early::default();
        state.ready = true;
        self.idle.notify_all();
    }

    fn learn(&self, file: File) {
        let mut state = self.state.lock();
        let old = if state.early.hits(&file) { Some(file) } else { state.index.put(file) };
        if let Some(old) = old {
            state.queue.push_back(Job::Delete(old));
        }
    }

    /// Waits for something to do.
    fn wait(&self) -> Work {
        let mut state = self.state.lock();
        state.busy = false;
        loop {
            let beyond = state.index.take_beyond(self.capacity.load(Relaxed));
            let work = if std::mem::take(&mut state.purges_changed) {
                Some(Work::Purges)
            } else if let Some(file) = beyond {
                Some(Work::Evict(file))
            } else {
                state.queue.pop_front().map(Work::Job)
            };
            if let Some(work) = work {
                if let Work::Job(Job::Keep(entry, _)) = &work {
                    state.queued -= entry.weight();
                    state.writing = state.waiting.take(entry);
                }
                state.busy = true;
                return work;
            }
            if state.stop {
                return Work::Stop;
            }
            self.idle.notify_all();
            self.work.wait(&mut state);
        }
    }

    fn keep(&self, entry: &Arc<Entry>, seq: u64) -> io::Result<()> {
        // It was not to be kept any more while it waited.
        if self.state.lock().writing.is_none() {
            return Ok(());
        }
        let file = File::new(entry, seq, record::size(entry));
        self.make_room(file.bytes())?;
        let path = file.path(&self.root);
        let new = path.with_extension("new");
        if let Err(error) = self.write(entry, &new).and_then(|()| fs::rename(&new, &path)) {
            _ = fs::remove_file(&new);
            self.supersede(entry);
            return Err(error);
        }
        let mut state = self.state.lock();
        let is_wanted = state.writing.take().is_some();
        let old = if is_wanted { state.index.put(file) } else { Some(file) };
        drop(state);
        self.counts.written.fetch_add(1, Relaxed);
        old.map_or(Ok(()), |old| self.delete(old))
    }

    fn write(&self, entry: &Entry, path: &Path) -> io::Result<()> {
        let create = || OpenOptions::new().create(true).truncate(true).write(true).mode(0o600).open(path);
        let file = create().or_else(|error| match path.parent() {
            Some(folder) if error.kind() == io::ErrorKind::NotFound => {
                fs::DirBuilder::new().recursive(true).mode(0o700).create(folder)?;
                create()
            }
            _ => Err(error),
        })?;
        let mut out = BufWriter::new(file);
        record::write(entry, &mut out)?;
        out.flush()
    }

    /// Deletes the oldest files until there is room for so many bytes.
    fn make_room(&self, bytes: u64) -> io::Result<()> {
        let left = self.capacity.load(Relaxed).saturating_sub(bytes);
        loop {
            let Some(file) = self.state.lock().index.take_beyond(left) else { return Ok(()) };
            self.evict(file)?;
        }
    }

    fn evict(&self, file: File) -> io::Result<()> {
        self.counts.evicted.fetch_add(1, Relaxed);
        self.delete(file)
    }

    /// An entry cannot be written: an older one must not be taken for it.
    fn supersede(&self, entry: &Entry) {
        let mut state = self.state.lock();
        state.writing = None;
        if let Some(old) = state.index.take_entry(entry) {
            state.queue.push_back(Job::Delete(old));
        }
    }

    fn delete(&self, file: File) -> io::Result<()> {
        match fs::remove_file(file.path(&self.root)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }

    fn write_mark(&self, mark: &str) -> io::Result<()> {
        let (path, new) = (self.root.join(MARK), self.root.join("mark.new"));
        fs::write(&new, mark)?;
        fs::rename(new, path)
    }

    fn write_purges(&self) -> io::Result<()> {
        let purges = self.state.lock().purges.clone();
        purges.write(&self.root)
    }
}
