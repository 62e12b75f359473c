//! Tells when an input may have changed, however it was changed.
//!
//! Directories are watched rather than files: editors replace files, and Kubernetes swaps a
//! `..data` symlink. A burst of events ends in one comparison of contents and, if they differ, one
//! call; an input that somebody is in the middle of writing is waited for. While a directory is missing or
//! cannot be watched, contents are compared every two seconds, and count once they are as old as that.

mod writers;

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::{OsStr, OsString};
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread;
use std::time::{Duration, Instant};

use notify::event::{AccessKind, AccessMode, EventKind, ModifyKind, RenameMode};
use notify::{RecommendedWatcher, RecursiveMode, Watcher};
use parking_lot::Mutex;

use self::writers::Writers;
use super::Fingerprint;

/// As many symlinks does Linux follow (path_resolution(7)).
const MOST_LINKS: usize = 40;

/// How long the watcher waits.
#[derive(Clone, Copy, Debug)]
pub struct Timing {
    /// Silence that ends a burst of events.
    pub quiet: Duration,
    /// Longest burst.
    pub longest: Duration,
    /// Between two looks at inputs that cannot be watched, and how old these have to be.
    pub poll: Duration,
    /// Silence after which the writer of an input that is still open is waited for no longer.
    pub stalled: Duration,
    /// Longest wait for the writer of an input.
    pub unclosed: Duration,
}

impl Default for Timing {
    /// 150 ms, 1 s, 2 s, 10 s, 1 min.
    fn default() -> Timing {
        Timing {
            quiet: Duration::from_millis(150),
            longest: Duration::from_secs(1),
            poll: Duration::from_secs(2),
            stalled: Duration::from_secs(10),
            unclosed: Duration::from_secs(60),
        }
    }
}

/// A watch on a set of inputs; dropping it ends it.
pub struct Watch {
    orders: Sender<Order>,
}

enum Order {
    Changed,
    Inputs(Vec<PathBuf>),
    Read(Fingerprint),
    Stop,
}

impl Watch {
    /// Starts a thread that calls `changed` whenever the contents of the inputs have changed, and nobody is known to be
    /// in the middle of writing one.
    ///
    /// Never fails: without the system's help it compares contents every two seconds. The call is
    /// made on that thread, and events wait meanwhile; it may call nothing but [`Watch::set_inputs`]
    /// and [`Watch::was_read`] on this watch.
    ///
    /// # Errors
    /// The thread cannot be started.
    pub fn start(inputs: Vec<PathBuf>, changed: impl FnMut() + Send + 'static) -> std::io::Result<Watch> {
        Watch::start_with(inputs, Timing::default(), changed)
    }

    /// As [`Watch::start`], with times of the caller's.
    ///
    /// # Errors
    /// The thread cannot be started.
    pub fn start_with(
        inputs: Vec<PathBuf>,
        timing: Timing,
        changed: impl FnMut() + Send + 'static,
    ) -> std::io::Result<Watch> {
        let (orders, received) = channel();
        let mut worker = Worker::new(orders.clone(), timing, Box::new(changed));
        worker.inputs = inputs;
        // Before the thread runs: what changes after this call is noticed.
        worker.arm();
        worker.seen = Some(Fingerprint::of_inputs(&worker.inputs));
        thread::Builder::new().name("watch".to_owned()).spawn(move || worker.run(&received))?;
        Ok(Watch { orders })
    }

    /// Watches other inputs from now on, and calls `changed` if they are others: whoever read the new
    /// ones did so before they were watched.
    pub fn set_inputs(&self, inputs: Vec<PathBuf>) {
        // The thread ends only with this value.
        let _ = self.orders.send(Order::Inputs(inputs));
    }

    /// Tells what the inputs held right before somebody read them; `changed` is called if they hold anything else by
    /// now, be it what they held when it was called last.
    pub fn was_read(&self, held: Fingerprint) {
        let _ = self.orders.send(Order::Read(held));
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        let _ = self.orders.send(Order::Stop);
    }
}

struct Worker {
    timing: Timing,
    changed: Box<dyn FnMut() + Send>,
    inputs: Vec<PathBuf>,
    /// What the inputs held when `changed` was last told; nothing when it is to be told whatever they hold.
    seen: Option<Fingerprint>,
    /// When a change was first seen that did not count yet.
    young: Option<Instant>,
    directories: Directories,
    writers: Arc<Mutex<Writers>>,
}

impl Worker {
    fn new(orders: Sender<Order>, timing: Timing, changed: Box<dyn FnMut() + Send>) -> Worker {
        let writers = Arc::<Mutex<Writers>>::default();
        let noted = writers.clone();
        let directories = Directories::new(move |event| {
            if noted.lock().note(event, Instant::now()) {
                // The thread ends only with its watch.
                let _ = orders.send(Order::Changed);
            }
        });
        Worker { timing, changed, inputs: Vec::new(), seen: None, young: None, directories, writers }
    }

    fn run(mut self, orders: &Receiver<Order>) {
        loop {
            let order = if self.young.is_some() || !self.directories.lost.is_empty() {
                orders.recv_timeout(self.timing.poll)
            } else {
                orders.recv().map_err(|_| RecvTimeoutError::Disconnected)
            };
            if !self.begin(order, orders) || !self.finish(orders) {
                return;
            }
            self.compare();
        }
    }

    /// Does what is ordered and waits for the end of the burst that it may be part of; `false` means stop.
    fn begin(&mut self, order: Result<Order, RecvTimeoutError>, orders: &Receiver<Order>) -> bool {
        match order {
            // What others read tells of changes sooner than the system does, which says who is still writing.
            Ok(order) => self.obey(order) && self.settle(orders),
            Err(reason) => reason == RecvTimeoutError::Timeout,
        }
    }

    /// Does what is ordered; `false` means stop.
    fn obey(&mut self, order: Order) -> bool {
        match order {
            Order::Changed => {}
            Order::Inputs(inputs) => self.replace(inputs),
            Order::Read(held) => self.note_read(held),
            Order::Stop => return false,
        }
        true
    }

    /// Waits for the end of a burst; `false` means stop.
    fn settle(&mut self, orders: &Receiver<Order>) -> bool {
        let end = Instant::now() + self.timing.longest;
        loop {
            let left = end.saturating_duration_since(Instant::now());
            match orders.recv_timeout(self.timing.quiet.min(left)) {
                Ok(order) if left.is_zero() => return self.obey(order),
                Ok(order) => {
                    if !self.obey(order) {
                        return false;
                    }
                }
                Err(reason) => return reason == RecvTimeoutError::Timeout,
            }
        }
    }

    /// Waits for whoever is in the middle of writing an input; `false` means stop.
    fn finish(&mut self, orders: &Receiver<Order>) -> bool {
        while let Some(patience) = self.patience() {
            if !self.begin(orders.recv_timeout(patience), orders) {
                return false;
            }
        }
        true
    }

    /// How long to wait for the writers of inputs, if there are any.
    fn patience(&self) -> Option<Duration> {
        self.writers.lock().patience(&self.inputs, &self.timing, Instant::now())
    }

    /// Takes over other inputs, which are to be told of.
    fn replace(&mut self, inputs: Vec<PathBuf>) {
        if inputs == self.inputs {
            return;
        }
        self.inputs = inputs;
        self.arm();
        self.seen = None;
    }

    /// Goes by what somebody read, unless it is to be told whatever the inputs hold.
    fn note_read(&mut self, held: Fingerprint) {
        self.seen = self.seen.map(|_| held);
    }

    fn arm(&mut self) {
        self.directories.arm(&self.inputs);
        let mut writers = self.writers.lock();
        writers.retain(|directory| self.directories.armed.contains_key(directory));
        writers.look_for(&self.inputs);
    }

    fn compare(&mut self) {
        // Nobody told who is at work on what was not watched until now.
        let is_young = self.is_young();
        self.arm();
        let now = Fingerprint::of_inputs(&self.inputs);
        if self.seen == Some(now) {
            self.young = None;
            return;
        }
        let since = *self.young.get_or_insert_with(Instant::now);
        if is_young && since.elapsed() < self.timing.unclosed {
            return;
        }
        (self.seen, self.young) = (Some(now), None);
        (self.changed)();
    }

    /// Whether an input that is not watched was changed so lately that its writer may not be done.
    fn is_young(&self) -> bool {
        if self.directories.lost.is_empty() {
            return false;
        }
        let mut missed = self.inputs.iter().filter(|input| self.directories.misses(input));
        missed.any(|input| age(input).is_some_and(|age| age < self.timing.poll))
    }
}

/// How long ago a file was changed, or a directory; none if there is none, or if that is to come.
fn age(path: &Path) -> Option<Duration> {
    fs::metadata(path).ok()?.modified().ok()?.elapsed().ok()
}

/// Tells of every event around a file as it happens, whatever the file holds.
pub struct Tap {
    directories: Directories,
    /// What the file is called in its directory, and so are symlinks on the way to it.
    names: Arc<Mutex<Vec<OsString>>>,
}

/// What happened around a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stir {
    /// Something was written, and more may follow.
    Written,
    /// Another file took its place, or its writer closed it.
    Settled,
}

impl Tap {
    /// A tap that watches nothing yet; `tell` is called on a thread of the watcher's.
    pub fn new(tell: impl Fn(Stir) + Send + 'static) -> Tap {
        let names = Arc::<Mutex<Vec<OsString>>>::default();
        let watched = names.clone();
        let directories = Directories::new(move |event| {
            let settled = event.is_some_and(|event| is_end(event, &watched.lock()));
            tell(if settled { Stir::Settled } else { Stir::Written });
        });
        Tap { directories, names }
    }

    /// Watches what is around this file from now on; whether that can be done.
    pub fn watch(&mut self, file: Option<&Path>) -> bool {
        *self.names.lock() = file.map(names).unwrap_or_default();
        let inputs: Vec<PathBuf> = file.map(Path::to_owned).into_iter().collect();
        self.directories.arm(&inputs);
        self.directories.lost.is_empty()
    }
}

/// Whether an event says that a file of one of these names is whole.
fn is_end(event: &notify::Event, names: &[OsString]) -> bool {
    let is_last = match event.kind {
        EventKind::Modify(ModifyKind::Name(mode)) => mode != RenameMode::From,
        EventKind::Access(_) => true,
        _ => false,
    };
    // Of a renaming, what it is called now.
    let name = event.paths.last().and_then(|path| path.file_name());
    is_last && name.is_some_and(|name| names.iter().any(|known| known == name))
}

/// What a file is called, and the symlinks on the way to it: who turns one has another file take its place.
fn names(file: &Path) -> Vec<OsString> {
    let (links, end) = way(file);
    let known = links.iter().map(PathBuf::as_path).chain([file, end.as_path()]);
    known.filter_map(Path::file_name).map(OsStr::to_owned).collect()
}

/// The symlinks on the way to a file, those included that others lead through, and where they lead in the end,
/// whether or not anything is there.
fn way(file: &Path) -> (Vec<PathBuf>, PathBuf) {
    let mut links = Vec::new();
    let mut at = std::path::absolute(file).unwrap_or_else(|_| file.to_owned());
    while links.len() < MOST_LINKS
        && let Some(link) = at.ancestors().filter(|part| part.is_symlink()).last()
        && let (Ok(target), Ok(rest)) = (fs::read_link(link), at.strip_prefix(link))
    {
        links.push(link.to_owned());
        let target = link.parent().unwrap_or(link).join(target);
        // With a slash at its end it would be followed.
        at = if rest.as_os_str().is_empty() { target } else { target.join(rest) };
    }
    (links, at)
}

/// The directories that are watched.
struct Directories {
    watcher: Option<RecommendedWatcher>,
    /// By canonical path, with device and inode: a path may come to mean another directory.
    armed: BTreeMap<PathBuf, (u64, u64)>,
    /// Those that are not there, and those that cannot be watched, by canonical paths.
    lost: BTreeSet<PathBuf>,
}

impl Directories {
    /// `tell` is given the event, or nothing when some may have been lost.
    fn new(tell: impl Fn(Option<&notify::Event>) + Send + 'static) -> Directories {
        let tell = move |event: notify::Result<notify::Event>| match &event {
            Ok(event) if !is_change(&event.kind) => {}
            event => tell(event.as_ref().ok()),
        };
        let watcher = notify::recommended_watcher(tell)
            .inspect_err(|error| log::warn!(error:%; "cannot watch files, comparing them instead"))
            .ok();
        Directories { watcher, armed: BTreeMap::new(), lost: BTreeSet::new() }
    }

    /// Watches exactly the directories that matter now.
    fn arm(&mut self, inputs: &[PathBuf]) {
        let (wanted, mut lost) = directories(inputs);
        let Some(watcher) = &mut self.watcher else {
            lost.extend(wanted.into_keys());
            self.lost = lost;
            return;
        };
        self.armed.retain(|directory, id| {
            let keep = wanted.get(directory) == Some(id);
            if !keep {
                // It may have gone together with its directory.
                let _ = watcher.unwatch(directory);
            }
            keep
        });
        for (directory, id) in wanted {
            // Known ones too: one that is made anew may have the inode of the old one, whose watch is gone.
            match watcher.watch(&directory, RecursiveMode::NonRecursive) {
                Ok(()) => {
                    self.armed.insert(directory, id);
                }
                Err(error) => {
                    if !self.lost.contains(&directory) {
                        log::warn!(directory:% = directory.display(), error:%; "cannot watch a directory, comparing instead");
                    }
                    lost.insert(directory);
                }
            }
        }
        self.lost = lost;
    }

    /// Whether what happens to an input may go unnoticed.
    fn misses(&self, input: &Path) -> bool {
        around(input).into_iter().any(|directory| {
            self.lost.contains(&directory)
                || fs::canonicalize(directory).is_ok_and(|real| self.lost.contains(&real))
        })
    }
}

/// Reading is no change; our own reading would never end.
fn is_change(kind: &EventKind) -> bool {
    !matches!(kind, EventKind::Access(access) if *access != AccessKind::Close(AccessMode::Write))
}

/// The directories in which a change can change an input, and those of them that do not exist.
fn directories(inputs: &[PathBuf]) -> (BTreeMap<PathBuf, (u64, u64)>, BTreeSet<PathBuf>) {
    let wanted: BTreeSet<PathBuf> = inputs.iter().flat_map(|input| around(input)).collect();
    let (mut found, mut missing) = (BTreeMap::new(), BTreeSet::new());
    for directory in wanted {
        let real = fs::canonicalize(&directory).and_then(|real| Ok((fs::metadata(&real)?, real)));
        match real {
            Ok((about, real)) if about.is_dir() => {
                found.insert(real, (about.dev(), about.ino()));
            }
            _ => {
                missing.insert(directory);
            }
        }
    }
    (found, missing)
}

/// An input that is a directory itself, the directory it is in, those of all symlinks on the way to
/// it, and that of what they lead to.
fn around(input: &Path) -> Vec<PathBuf> {
    let input = std::path::absolute(input).unwrap_or_else(|_| input.to_owned());
    let (links, end) = way(&input);
    let mut directories = Vec::new();
    if input.is_dir() {
        directories.push(input.clone());
    }
    let parts = links.iter().chain([&input, &end]);
    directories.extend(parts.filter_map(|part| part.parent()).map(Path::to_owned));
    directories
}
