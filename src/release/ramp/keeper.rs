//! Keeps how far ramps are over restarts, in the file of quotas.
//!
//! Requests never wait for it: a thread of its own writes what changed. What was changed last is what holds, whoever
//! did it, so that processes that share the file, as in an upgrade, agree. Which ramps there are, the process says that
//! serves; what the file has of others, it drops when it begins to.

use std::collections::{BTreeMap, BTreeSet};
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread::{self, JoinHandle};
use std::time::{Duration, SystemTime};

use rusqlite::{Connection, Error, OptionalExtension, params};
use tollhouse_filters::world::{Counter, Metrics};

use super::{Aborted, Progress, State};
use crate::ledger;

/// How often it is looked for what changed.
const INTERVAL: Duration = Duration::from_millis(250);
const LAYOUT: &str = "
    CREATE TABLE IF NOT EXISTS ramps (
        route TEXT NOT NULL, old TEXT NOT NULL, new TEXT NOT NULL,
        started INTEGER NOT NULL, changed INTEGER NOT NULL, aborted INTEGER, why TEXT NOT NULL,
        PRIMARY KEY (route, old, new)
    ) WITHOUT ROWID";
const READ: &str =
    "SELECT started, changed, aborted, why FROM ramps WHERE route = ?1 AND old = ?2 AND new = ?3";
const KEYS: &str = "SELECT route, old, new FROM ramps";
const WRITE: &str = "INSERT OR REPLACE INTO ramps VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)";
/// As `WRITE`, of one that the file has.
const CHANGE: &str = "UPDATE ramps SET started = ?4, changed = ?5, aborted = ?6, why = ?7
    WHERE route = ?1 AND old = ?2 AND new = ?3";
const FORGET: &str = "DELETE FROM ramps WHERE route = ?1 AND old = ?2 AND new = ?3";

/// The ramps of the document that serves.
type Ramps = Box<dyn Fn() -> Vec<Arc<Progress>> + Send>;

/// Route, old and new variant.
type Key = [Arc<str>; 3];

/// Keeps ramps until it is dropped.
pub struct Keeper {
    /// Dropped to have the thread look once more and end.
    running: Option<Sender<()>>,
    thread: Option<JoinHandle<()>>,
    serving: Arc<AtomicBool>,
}

impl Keeper {
    /// Has the ramps learn what the file knows, if there is one, and keeps them there from now on.
    ///
    /// # Errors
    /// No thread can be started.
    pub fn start(
        file: Option<PathBuf>,
        ramps: impl Fn() -> Vec<Arc<Progress>> + Send + 'static,
        metrics: &dyn Metrics,
    ) -> std::io::Result<Self> {
        let help = "Attempts to read or write the file of ramps that failed.";
        let failures = metrics.counter("tollhouse_ramp_file_failures_total", help, &[]);
        let serving = Arc::<AtomicBool>::default();
        let mut files = Files {
            file,
            ramps: Box::new(ramps),
            serving: serving.clone(),
            swept: false,
            known: BTreeMap::new(),
            gone: BTreeSet::new(),
            failures,
            failing: false,
        };
        files.look();
        let (running, stopped) = channel();
        let thread = thread::Builder::new().name("ramps".to_owned()).spawn(move || files.run(&stopped))?;
        Ok(Self { running: Some(running), thread: Some(thread), serving })
    }

    /// To be set while this process is the one that serves, which it is not at first.
    #[must_use]
    pub fn serving(&self) -> &Arc<AtomicBool> {
        &self.serving
    }
}

impl Drop for Keeper {
    fn drop(&mut self) {
        drop(self.running.take());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

struct Files {
    file: Option<PathBuf>,
    ramps: Ramps,
    /// Whether this process says which ramps there are: one that is about to serve, or has given its place to another,
    /// brings none back that are dropped.
    serving: Arc<AtomicBool>,
    /// Ramps that no process saw go are out of the file.
    swept: bool,
    /// Those of the last look.
    known: BTreeMap<Key, Arc<Progress>>,
    /// Those that the file is still to forget.
    gone: BTreeSet<Key>,
    failures: Counter,
    failing: bool,
}

impl Files {
    fn run(mut self, stopped: &Receiver<()>) {
        loop {
            let ends = !matches!(stopped.recv_timeout(INTERVAL), Err(RecvTimeoutError::Timeout));
            self.look();
            if ends {
                return;
            }
        }
    }

    /// Learns and writes what changed. A ramp goes on in memory where the file cannot be used; what is in it has to be
    /// known first.
    fn look(&mut self) {
        self.compare();
        let serves = self.serving.load(Relaxed);
        self.swept &= serves;
        let none = self.known.is_empty() && self.gone.is_empty();
        if none && (self.swept || !serves) {
            return;
        }
        let Some(file) = &self.file else {
            self.gone.clear();
            return self.begin();
        };
        if none && is_empty(file) {
            self.swept = true;
            return;
        }
        let exchanged = ledger::connect(file).and_then(|connection| self.exchange(&connection));
        match exchanged {
            // What it could not forget is left for the next look.
            Ok(()) => {
                self.failing = false;
                self.swept = serves;
                if serves {
                    self.gone.clear();
                }
            }
            // Of those that it may have, none is missed yet.
            Err(_) if none => {}
            Err(error) => {
                self.failures.inc();
                if is_empty(file) {
                    self.begin();
                }
                if !std::mem::replace(&mut self.failing, true) {
                    let waits = self.known.values().any(|ramp| !ramp.state.lock().settled);
                    let more = if waits { ", and those it may know of wait" } else { "" };
                    log::error!(file:% = file.display();
                        "ramps cannot be kept, a restart forgets them{more}: {error}");
                }
            }
        }
    }

    /// Notes which ramps there are, and which no more.
    fn compare(&mut self) {
        let ramps = (self.ramps)().into_iter().map(|ramp| (ramp.key.clone(), ramp));
        let before = std::mem::replace(&mut self.known, ramps.collect());
        for (key, ramp) in before {
            if !self.known.contains_key(&key) {
                ramp.leave();
                self.gone.insert(key);
            }
        }
        let known = &self.known;
        self.gone.retain(|key| {
            let again = known.get(key);
            // Whatever the file could not forget of it.
            again.into_iter().for_each(|ramp| ramp.settle());
            again.is_none()
        });
    }

    fn exchange(&self, connection: &Connection) -> Result<(), Error> {
        if self.known.is_empty() && !connection.table_exists(None, "ramps")? {
            return Ok(());
        }
        if let Err(error) = connection.execute_batch(LAYOUT) {
            // Such as where there is no room for a table; without one, no ramp is known.
            if matches!(connection.table_exists(None, "ramps"), Ok(false)) {
                self.begin();
            }
            return Err(error);
        }
        // All is read before anything is written, which may fail.
        let newer = learn(connection, &self.known)?;
        // Asked each time: another process may be taking the place just now.
        let serves = || self.serving.load(Relaxed);
        if serves() {
            self.gone.iter().try_for_each(|key| forget(connection, key))?;
        }
        if serves() && !self.swept {
            for key in others(connection, &self.known)? {
                let [route, from, to] = key.each_ref().map(|name| &**name);
                forget(connection, &key)?;
                log::info!(route = route, from = from, to = to; "the ramp is no longer written, and is forgotten");
            }
        }
        for ([route, old, new], state) in newer {
            let (at, why) = match &state.aborted {
                Some(aborted) => (Some(millis(aborted.at)), aborted.why.as_str()),
                None => (None, ""),
            };
            let (route, old, new) = (&**route, &**old, &**new);
            let values = params![route, old, new, millis(state.started), millis(state.changed), at, why];
            connection.execute(if serves() { WRITE } else { CHANGE }, values)?;
        }
        Ok(())
    }

    /// Begins what nobody knows better.
    fn begin(&self) {
        self.known.values().for_each(|ramp| ramp.settle());
    }
}

/// Whether no ramp can be known there, as there is nothing.
fn is_empty(file: &Path) -> bool {
    match file.metadata() {
        Ok(found) => found.is_file() && found.len() == 0,
        // Anything else may be over in a moment: a folder that cannot be reached, a disk that fails.
        Err(error) => matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory),
    }
}

/// The ramps that the file has, and the document has not.
fn others(connection: &Connection, ramps: &BTreeMap<Key, Arc<Progress>>) -> Result<Vec<Key>, Error> {
    let mut query = connection.prepare(KEYS)?;
    let keys = query.query_map([], |row| {
        let name = |at: usize| row.get::<_, String>(at).map(Arc::from);
        Ok([name(0)?, name(1)?, name(2)?])
    })?;
    let mut keys: Vec<Key> = keys.collect::<Result<_, _>>()?;
    keys.retain(|key| !ramps.contains_key(key));
    Ok(keys)
}

fn forget(connection: &Connection, key: &Key) -> Result<(), Error> {
    connection.execute(FORGET, key.each_ref().map(|name| &**name)).map(drop)
}

/// Has ramps learn what the file knows better; gives those of which it knows less.
fn learn<'a>(
    connection: &Connection,
    ramps: &'a BTreeMap<Key, Arc<Progress>>,
) -> Result<Vec<(&'a Key, State)>, Error> {
    let mut newer = Vec::new();
    for (key, ramp) in ramps {
        let [route, old, new] = key.each_ref().map(|name| &**name);
        let known = connection.query_row(READ, [route, old, new], |row| {
            let aborted: Option<i64> = row.get(2)?;
            let why: String = row.get(3)?;
            let aborted = aborted.map(|at| Aborted { at: time(at), why });
            Ok(State { started: time(row.get(0)?), changed: time(row.get(1)?), aborted, settled: true })
        });
        let known = known.optional()?;
        match &known {
            Some(known) => ramp.learn(known.clone()),
            None => ramp.settle(),
        }
        let state = ramp.state.lock().clone();
        if known.is_none_or(|known| known.changed < whole(state.changed)) {
            newer.push((key, state));
        }
    }
    Ok(newer)
}

fn millis(time: SystemTime) -> i64 {
    let since = time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_millis()).unwrap_or(i64::MAX)
}

fn time(millis: i64) -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_millis(millis.try_into().unwrap_or(0))
}

/// As the file knows it.
fn whole(moment: SystemTime) -> SystemTime {
    time(millis(moment))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn that_a_file_cannot_be_looked_at_is_not_that_there_is_nothing() {
        let folder = tempfile::tempdir().expect("a folder");
        let at = |name: &str| folder.path().join(name);
        std::fs::write(at("empty"), "").expect("written");
        std::fs::write(at("full"), "something").expect("written");
        // Whoever follows it gets nowhere, and an error, as from a disk that fails.
        std::os::unix::fs::symlink(at("loop"), at("loop")).expect("linked");
        let empty = ["none", "full/none", "empty", "full", ".", "loop"].map(|name| is_empty(&at(name)));
        assert_eq!(empty, [true, true, true, false, false, false]);
    }
}
