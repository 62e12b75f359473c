//! How many files, sockets among them, the process may have open.

use std::num::NonZeroUsize;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// What a process has open beside its clients and their backends, roughly: listeners, logs, files of the document, calls.
const ASIDE: u64 = 128;

/// Takes all that the system lets this user have: what a shell or a service manager gives at first is meant for
/// programs that cannot have more.
pub(super) fn raise() {
    let limit = getrlimit(Resource::Nofile);
    if limit.current == limit.maximum {
        return;
    }
    if let Err(error) = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, ..limit }) {
        log::warn!("cannot raise the limit of open files: {error}");
    }
}

/// Warns where fewer can be open than clients are let in and need: each may have a connection to a backend as well.
pub(super) fn compare(connections: NonZeroUsize) {
    let Some(most) = getrlimit(Resource::Nofile).current else { return };
    let needed = u64::try_from(connections.get()).unwrap_or(u64::MAX).saturating_mul(2).saturating_add(ASIDE);
    if most < needed {
        log::warn!(
            "at most {most} files can be open, which `server.limits.connections` ({connections}) may need {needed} \
             of: raise the hard limit (LimitNOFILE=, ulimit -Hn) or lower the connections"
        );
    }
}
