//! The file that keeps what was used of quotas over restarts.
//!
//! Requests never wait for it: a thread of its own writes what was counted once a second. So whoever kills the
//! process loses at most what was counted since the last write; an orderly end and an upgrade lose nothing. While
//! the file cannot be written, quotas are kept in memory and go on to hold; what is not written waits.
//!
//! Differences are written, not sums: the process that leaves in an upgrade and the one in its place use the same
//! file, and each learns from it what the other one counted.

mod file;
mod place;

use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use tollhouse_filters::world::{Counter, Gauge, Metrics, State, StateValue, TallyRow};

pub use file::{File, connect};
pub use place::place;

/// How often what was counted is written.
const INTERVAL: Duration = Duration::from_secs(1);
/// How long a fault that stays is kept quiet about.
const REMIND_EVERY: Duration = Duration::from_secs(60);

/// Writes down what is counted until it is dropped.
pub struct Ledger {
    /// Dropped to have the thread write once more and end.
    running: Option<Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Ledger {
    /// Has the state learn what the file knows, and writes down what is counted from now on.
    ///
    /// # Errors
    /// No thread can be started.
    pub fn start(mut file: File, state: Arc<dyn State>, metrics: &dyn Metrics) -> std::io::Result<Self> {
        let mut writer = Writer::new(state, metrics);
        writer.load(&mut file);
        let (running, stopped) = channel();
        let thread = thread::Builder::new().name("quotas".to_owned());
        let thread = thread.spawn(move || writer.run(file, &stopped))?;
        Ok(Self { running: Some(running), thread: Some(thread) })
    }
}

impl Drop for Ledger {
    fn drop(&mut self) {
        drop(self.running.take());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

struct Writer {
    state: Arc<dyn State>,
    failures: Counter,
    failing: Gauge,
    /// When it was last said that the file cannot be used.
    said: Option<Instant>,
    /// When it was last said that there is no room in it.
    warned: Option<Instant>,
}

impl Writer {
    fn new(state: Arc<dyn State>, metrics: &dyn Metrics) -> Self {
        let help = "Attempts to read or write the file of quotas that failed.";
        let failures = metrics.counter("tollhouse_quota_file_failures_total", help, &[]);
        let help = "Whether the file of quotas cannot be used: 1 if so.";
        let failing = metrics.gauge("tollhouse_quota_file_failing", help, &[]);
        Self { state, failures, failing, said: None, warned: None }
    }

    fn load(&mut self, file: &mut File) {
        let state = &self.state;
        let loaded = file.load(|rows| state.learn(rows));
        self.noted(file, loaded);
    }

    fn run(&mut self, mut file: File, stopped: &Receiver<()>) {
        loop {
            let ends = !matches!(stopped.recv_timeout(INTERVAL), Err(RecvTimeoutError::Timeout));
            let written = self.write(&mut file);
            if ends {
                return;
            }
            self.prune(&mut file, written);
        }
    }

    /// Writes what was counted; how many rows.
    fn write(&mut self, file: &mut File) -> usize {
        if !file.is_known() {
            self.load(file);
        }
        if !file.is_known() {
            return 0;
        }
        let rows = self.state.take_unsaved();
        if rows.is_empty() {
            return 0;
        }
        let state = &self.state;
        let written = file.add(&rows, || sums(&**state));
        let Some(totals) = self.noted(file, written) else {
            self.state.unsave(&rows);
            return 0;
        };
        self.state.learn(&totals);
        rows.len()
    }

    /// Keeps the file in bounds, once so many rows were written.
    fn prune(&mut self, file: &mut File, written: usize) {
        if written == 0 {
            return;
        }
        let pruned = file.prune(written);
        let forgotten = self.noted(file, pruned).unwrap_or(0);
        if forgotten > 0 && self.warned.is_none_or(|warned| warned.elapsed() >= REMIND_EVERY) {
            self.warned = Some(Instant::now());
            log::warn!(file:% = file.path().display();
                "the file of quotas has no room for all that still counts: a restart forgets what was used least");
        }
    }

    /// What came of it; of a failure the log is told when it begins, now and then while it lasts, and when it ends.
    fn noted<T>(&mut self, file: &File, result: Result<T, rusqlite::Error>) -> Option<T> {
        match result {
            Ok(done) => {
                if self.said.take().is_some() {
                    log::info!(file:% = file.path().display(); "the file of quotas can be used again");
                }
                self.failing.set(0);
                Some(done)
            }
            Err(error) => {
                self.failures.inc();
                self.failing.set(1);
                if self.said.is_none_or(|said| said.elapsed() >= REMIND_EVERY) {
                    self.said = Some(Instant::now());
                    log::error!(file:% = file.path().display();
                        "the file of quotas cannot be used, they are kept in memory alone: {error}");
                }
                None
            }
        }
    }
}

/// All that is known of quotas, for a file that begins anew.
fn sums(state: &dyn State) -> Vec<TallyRow> {
    let tallies = state.export().into_iter().filter_map(|entry| match entry.value {
        StateValue::Tallies(rows) => Some(rows),
        _ => None,
    });
    tallies.flatten().collect()
}

#[cfg(test)]
mod tests;
