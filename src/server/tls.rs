//! What a snapshot's certificates set beside it: what the door shakes hands by, numbers, warnings.

use std::time::SystemTime;

use crate::door::TlsById;
use crate::observe::Registry;
use crate::snapshot::Snapshot;
use crate::tls::Term;

const NOT_AFTER: &str = "tollhouse_certificate_not_after_timestamp_seconds";

/// TLS of listeners, as the door wants it.
pub(super) fn by_id(snapshot: &Snapshot) -> TlsById {
    snapshot.listeners.iter().map(|plan| plan.tls.clone()).collect()
}

/// Tells when certificates end; those that are gone are told of no more.
pub(super) fn export(snapshot: &Snapshot, registry: &Registry) {
    registry.forget_fns(NOT_AFTER);
    // Of two certificates for one host, of different keys, the first to end is told.
    let mut all: Vec<_> = terms(snapshot).collect();
    all.sort_by_key(|(_, term)| std::cmp::Reverse(term.not_after));
    let help = "When a certificate of ours ends, in Unix seconds.";
    for (listener, term) in all {
        let end = term.not_after;
        let unnamed = term.hosts.is_empty().then_some("default");
        for host in term.hosts.iter().map(|host| &**host).chain(unnamed) {
            let labels = [("listener", listener), ("host", host)];
            registry.register_gauge_fn(NOT_AFTER, help, &labels, move || end);
        }
    }
}

/// Warns about certificates that end soon, or did.
pub(super) fn remind(snapshot: &Snapshot) {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    let now = i64::try_from(now.as_secs()).unwrap_or(i64::MAX);
    for (listener, term) in terms(snapshot) {
        if let Some(warning) = term.warning(now) {
            log::warn!(listener = listener, hosts = term.hosts.join(",").as_str(); "{warning}");
        }
    }
}

fn terms(snapshot: &Snapshot) -> impl Iterator<Item = (&str, &Term)> {
    let plans = snapshot.listeners.iter().filter(|plan| !plan.retired);
    let with_tls = plans.filter_map(|plan| Some((&*plan.name, plan.tls.as_deref()?)));
    with_tls.flat_map(|(name, tls)| tls.certificates().iter().map(move |term| (name, term)))
}
