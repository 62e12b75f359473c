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

/// Warns about certificates that end soon, or did, and about their OCSP responses that did.
pub(super) fn remind(snapshot: &Snapshot) {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    let now = i64::try_from(now.as_secs()).unwrap_or(i64::MAX);
    for (listener, term) in terms(snapshot) {
        for warning in term.warning(now).into_iter().chain(term.stapling_warning(now)) {
            log::warn!(listener = listener, hosts = term.hosts.join(",").as_str(); "{warning}");
        }
    }
}

fn terms(snapshot: &Snapshot) -> impl Iterator<Item = (&str, &Term)> {
    let plans = snapshot.listeners.iter().filter(|plan| !plan.retired);
    let with_tls = plans.filter_map(|plan| Some((&*plan.name, plan.tls.as_deref()?)));
    with_tls.flat_map(|(name, tls)| tls.certificates().iter().map(move |term| (name, term)))
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use rcgen::{CertificateParams, KeyPair, date_time_ymd};
    use tollhouse_filters::world::World;

    use super::*;
    use crate::snapshot::{Compiler, Mode};
    use crate::source;

    fn snapshot(folder: &std::path::Path, stems: &[&str]) -> Snapshot {
        let pairs: Vec<_> =
            stems.iter().map(|stem| format!("{{cert: {stem}.pem, key: {stem}.key}}")).collect();
        let file = folder.join("gateway.yaml");
        let text = format!(
            "{{version: 1, listeners: [{{name: web, address: '127.0.0.1:0', tls: {{certificates: [{}]}}}}]}}",
            pairs.join(", ")
        );
        std::fs::write(&file, text).unwrap();
        let loaded = Arc::new(source::load(&file).unwrap());
        let (registry, world) = (tollhouse_filters::builtin(), World::dry());
        let compiler =
            Compiler { registry: &registry, world: &world, previous: None, mode: Mode::Dry, roster: None };
        compiler.compile(&loaded).unwrap()
    }

    #[test]
    fn ends_of_certificates_are_exported_as_long_as_the_certificates_are_in_use() {
        let folder = tempfile::tempdir().unwrap();
        for (stem, names, year) in [("a", &["a.test", "*.a.test"][..], 2040), ("b", &["b.test"], 2041)] {
            let key = KeyPair::generate().unwrap();
            let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
            let mut params = CertificateParams::new(names).unwrap();
            params.not_after = date_time_ymd(year, 1, 1);
            std::fs::write(folder.path().join(format!("{stem}.key")), key.serialize_pem()).unwrap();
            let certificate = params.self_signed(&key).unwrap();
            std::fs::write(folder.path().join(format!("{stem}.pem")), certificate.pem()).unwrap();
        }
        let registry = Registry::new(100);
        let told = || -> Vec<String> {
            let lines = registry.render();
            lines.lines().filter(|line| line.starts_with(NOT_AFTER)).map(str::to_owned).collect()
        };
        export(&snapshot(folder.path(), &["a", "b"]), &registry);
        assert_eq!(
            told(),
            [
                format!("{NOT_AFTER}{{listener=\"web\",host=\"*.a.test\"}} 2208988800"),
                format!("{NOT_AFTER}{{listener=\"web\",host=\"a.test\"}} 2208988800"),
                format!("{NOT_AFTER}{{listener=\"web\",host=\"b.test\"}} 2240611200"),
            ]
        );
        export(&snapshot(folder.path(), &["b"]), &registry);
        assert_eq!(told(), [format!("{NOT_AFTER}{{listener=\"web\",host=\"b.test\"}} 2240611200")]);
    }
}
