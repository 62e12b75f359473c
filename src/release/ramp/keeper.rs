//! Keeps how far ramps are over restarts, in the file of quotas.
//!
//! Requests never wait for it: a thread of its own writes what changed. What was changed last is what holds, whoever
//! did it, so that processes that share the file, as in an upgrade, agree.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::Arc;
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
const WRITE: &str = "INSERT OR REPLACE INTO ramps VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)";
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
        let (known, gone) = (BTreeMap::new(), BTreeSet::new());
        let mut files = Files { file, ramps: Box::new(ramps), known, gone, failures, failing: false };
        files.look();
        let (running, stopped) = channel();
        let thread = thread::Builder::new().name("ramps".to_owned()).spawn(move || files.run(&stopped))?;
        Ok(Self { running: Some(running), thread: Some(thread) })
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

    /// Learns and writes what changed. A ramp goes on in memory where the file cannot be used.
    fn look(&mut self) {
        self.compare();
        if self.known.is_empty() && self.gone.is_empty() {
            return;
        }
        let Some(file) = &self.file else { return self.done() };
        let exchanged = ledger::connect(file)
            .and_then(|mut connection| exchange(&mut connection, &self.known, &self.gone));
        match exchanged {
            Ok(()) => self.failing = false,
            Err(error) => {
                self.failures.inc();
                if !std::mem::replace(&mut self.failing, true) {
                    log::error!(file:% = file.display(); "ramps cannot be kept, a restart forgets them: {error}");
                }
            }
        }
        self.done();
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
        self.gone.retain(|key| !self.known.contains_key(key));
    }

    /// Begins what nobody knew better; what the file could not forget is left for the next look.
    fn done(&mut self) {
        if !self.failing {
            self.gone.clear();
        }
        self.known.values().for_each(|ramp| ramp.settle());
    }
}

fn exchange(
    connection: &mut Connection,
    ramps: &BTreeMap<Key, Arc<Progress>>,
    gone: &BTreeSet<Key>,
) -> Result<(), Error> {
    connection.execute_batch(LAYOUT)?;
    for key in gone {
        connection.execute(FORGET, key.each_ref().map(|name| &**name))?;
    }
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
            let (at, why) = match &state.aborted {
                Some(aborted) => (Some(millis(aborted.at)), aborted.why.as_str()),
                None => (None, ""),
            };
            let values = params![route, old, new, millis(state.started), millis(state.changed), at, why];
            connection.execute(WRITE, values)?;
        }
    }
    Ok(())
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
