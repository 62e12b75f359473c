//! Who is in the middle of writing a file in its place: what it holds may be a part of what it will hold, and a part
//! of a document is often a document too.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use notify::event::{CreateKind, Event, EventKind, ModifyKind};

use super::Timing;

/// Who writes what.
#[derive(Debug, Default)]
pub(super) struct Writers {
    /// Files that were written and not closed since, by their real paths.
    open: BTreeMap<PathBuf, Written>,
    inputs: Real,
}

/// When a file that is open was written.
#[derive(Debug)]
struct Written {
    first: Instant,
    last: Instant,
}

impl Writers {
    /// Takes note of an event, and tells whether it may be about an input; without one, some may have been lost.
    pub(super) fn note(&mut self, event: Option<&Event>, now: Instant) -> bool {
        let Some(event) = event.filter(|event| !event.need_rescan()) else {
            self.open.clear();
            return true;
        };
        match event.kind {
            EventKind::Modify(ModifyKind::Data(_)) => self.written(&event.paths, now),
            // Neither a link nor a name for a file that there is already: these are whole.
            EventKind::Create(CreateKind::File) if event.paths.iter().all(|path| is_empty(path)) => {
                self.written(&event.paths, now);
            }
            EventKind::Modify(ModifyKind::Metadata(_)) => {}
            // It is closed, or another one by now.
            _ => {
                for path in &event.paths {
                    self.open.remove(path);
                }
            }
        }
        // A log beside the inputs is written all the time.
        !is_writing(&event.kind) || event.paths.iter().any(|path| self.inputs.may_be(path))
    }

    fn written(&mut self, paths: &[PathBuf], now: Instant) {
        for path in paths {
            match self.open.get_mut(path) {
                Some(written) => written.last = now,
                None => {
                    self.open.insert(path.clone(), Written { first: now, last: now });
                }
            }
        }
    }

    /// Takes over what the inputs really are by now.
    pub(super) fn look_for(&mut self, inputs: &[PathBuf]) {
        self.inputs = Real::of(inputs);
    }

    /// How long to wait for whoever is in the middle of writing an input, if anybody is.
    pub(super) fn patience(&mut self, inputs: &[PathBuf], timing: &Timing, now: Instant) -> Option<Duration> {
        if self.open.is_empty() {
            return None;
        }
        // One that was missing may be there by now.
        self.look_for(inputs);
        let left = |written: &Written| {
            let end = (written.last + timing.stalled).min(written.first + timing.unclosed);
            end.saturating_duration_since(now)
        };
        let inputs = self.open.iter().filter(|(path, _)| self.inputs.may_be(path));
        inputs.map(|(_, written)| left(written)).max().filter(|left| !left.is_zero())
    }

    /// Forgets files in other directories than these.
    pub(super) fn retain(&mut self, is_watched: impl Fn(&Path) -> bool) {
        self.open.retain(|path, _| path.parent().is_some_and(&is_watched));
    }
}

/// Whether an event is about what a file holds alone.
fn is_writing(kind: &EventKind) -> bool {
    matches!(kind, EventKind::Modify(ModifyKind::Data(_)) | EventKind::Access(_))
}

/// Whether there is an empty file, which somebody has just made and is going to write.
fn is_empty(path: &Path) -> bool {
    fs::symlink_metadata(path).is_ok_and(|about| about.is_file() && about.len() == 0)
}

/// The files and directories that inputs are in the end.
#[derive(Debug, Default)]
struct Real(BTreeSet<PathBuf>);

impl Real {
    fn of(inputs: &[PathBuf]) -> Real {
        Real(inputs.iter().filter_map(|input| fs::canonicalize(input).ok()).collect())
    }

    /// Whether this file, by its real path, is an input, or may be one that a pattern is going to find. That is called
    /// as others are: logs, and what editors keep, are not waited for.
    fn may_be(&self, file: &Path) -> bool {
        let is_beside = || file.parent().is_some_and(|directory| self.0.contains(directory));
        let is_alike = || self.0.iter().any(|input| input.extension() == file.extension());
        self.0.contains(file) || is_beside() && is_alike()
    }
}
