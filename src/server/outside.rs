//! What a document asks for beside its snapshot: that its own tests pass, a directory for the cache, a file for the
//! access log. A reload that cannot have these changes nothing.

use std::fs::DirBuilder;
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::Path;
use std::sync::Arc;

use rustix::fs::{Access, access};
use tollhouse_filters::registry::Registry;

use crate::cache::store::{DiskOptions, Store};
use crate::config;
use crate::engine::dry;
use crate::observe::AccessLog;
use crate::snapshot::{Snapshot, Verify, fault};
use crate::source::{Loaded, Problems};

/// What a candidate of a reload has to pass before anything of it is in use.
pub(super) fn verify(registry: Arc<Registry>) -> Verify {
    Box::new(move |loaded, candidate, running| {
        tested(loaded, candidate, &registry)?;
        can_be_opened(loaded, candidate, running)
    })
}

/// That the document's own tests pass, if it has any.
pub(super) fn tested(loaded: &Arc<Loaded>, snapshot: &Snapshot, registry: &Registry) -> Result<(), Problems> {
    if snapshot.tests.is_empty() {
        return Ok(());
    }
    dry::verify(loaded, registry, Some(snapshot.consumers.clone()))
}

/// That what the candidate names can be opened, unless it is open already.
fn can_be_opened(loaded: &Loaded, candidate: &Snapshot, running: &Snapshot) -> Result<(), Problems> {
    let mut errors = Vec::new();
    let (log, open) = (&candidate.observability.access_log, &running.observability.access_log);
    if (&log.format, &log.to) != (&open.format, &open.to)
        && let Err(error) = AccessLog::check(&log.format, &log.to)
    {
        let place = ["observability", "access_log", "to"].into_iter().collect();
        errors.push(fault(&loaded.root, &place, format!("cannot open the access log: {error}")));
    }
    if let Some(path) = directory(candidate).filter(|path| directory(running) != Some(*path))
        && let Err(error) = check_directory(path)
    {
        let place = ["server", "cache", "disk", "path"].into_iter().collect();
        errors.push(fault(&loaded.root, &place, format!("cannot use the directory: {error}")));
    }
    if errors.is_empty() { Ok(()) } else { Err(Problems::located(errors, &loaded.files)) }
}

fn directory(snapshot: &Snapshot) -> Option<&Path> {
    snapshot.server.cache.disk.as_ref().map(|disk| disk.path.path())
}

/// That files can be made in this directory, which is made where there is none.
fn check_directory(path: &Path) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(0o700).create(path)?;
    Ok(access(path, Access::WRITE_OK | Access::EXEC_OK)?)
}

/// Gives the cache's store the room that is written for it.
pub(super) fn furnish(store: &Store, options: &config::Cache) -> io::Result<()> {
    store.resize(options.memory.as_len());
    let disk = options.disk.as_ref();
    let disk = disk.map(|disk| DiskOptions { path: disk.path.path().into(), capacity: disk.size.get() });
    store.set_disk(disk.as_ref())
}
