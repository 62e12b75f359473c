//! Reloading: a candidate is compiled and tested beside the running snapshot, then swapped in.

use std::path::PathBuf;
use std::sync::Arc;

use parking_lot::Mutex;
use tollhouse_filters::registry::Registry;
use tollhouse_filters::world::World;

use super::{Compiler, Live, Mode, Snapshot, apart};
use crate::config::Address;
use crate::consumers::Roster;
use crate::source::{self, Loaded, Problems};
use crate::store::Keeper;
use crate::upstream::Monitor;

/// What a reload came to.
#[derive(Debug)]
pub enum Reloaded {
    /// No input changed.
    Unchanged,
    /// A new snapshot is in use.
    Swapped {
        /// Its generation.
        generation: u64,
        /// Settings whose change takes effect in another process only.
        needs_upgrade: Vec<&'static str>,
    },
    /// The candidate has problems; the running snapshot stays.
    Refused {
        /// What is wrong with it.
        problems: Problems,
        /// The last one was refused for the very same.
        again: bool,
    },
}

/// Runs a candidate's own tests; its failures refuse the candidate.
pub type Verify = fn(&Arc<Loaded>, &Registry, Option<Arc<Roster>>) -> Result<(), Problems>;

/// Compiles the document again when asked to.
pub struct Reloader {
    path: PathBuf,
    registry: Arc<Registry>,
    world: World,
    live: Arc<Live>,
    verify: Verify,
    /// Watches the backends of what is swapped in.
    monitor: Option<Arc<Monitor>>,
    /// Connects the stores of what is swapped in.
    keeper: Keeper,
    /// Why the last candidate was refused, if it was; held while a reload is under way.
    refused: Mutex<Option<Problems>>,
}

impl Reloader {
    /// Reloads the document at `path` into `live`.
    #[must_use]
    pub fn new(
        path: PathBuf,
        registry: Arc<Registry>,
        world: World,
        live: Arc<Live>,
        verify: Verify,
    ) -> Self {
        let (monitor, keeper, refused) = (None, Keeper::default(), Mutex::new(None));
        Self { path, registry, world, live, verify, monitor, keeper, refused }
    }

    /// Has stores connected by this one, which may have connected some already.
    #[must_use]
    pub fn connected_by(self, keeper: Keeper) -> Self {
        Self { keeper, ..self }
    }

    /// Has the backends of each new snapshot looked up and probed once before it is swapped in.
    #[must_use]
    pub fn watched_by(self, monitor: Arc<Monitor>) -> Self {
        Self { monitor: Some(monitor), ..self }
    }

    /// Reads all inputs again; one reload at a time.
    pub fn reload(&self) -> Reloaded {
        let mut refused = self.refused.lock();
        let previous = self.live.load();
        match apart(|| self.candidate(&previous)) {
            Ok(None) => {
                *refused = None;
                Reloaded::Unchanged
            }
            Ok(Some(snapshot)) => {
                *refused = None;
                let (generation, needs_upgrade) = (snapshot.generation, needs_upgrade(&previous, &snapshot));
                self.swap(snapshot);
                Reloaded::Swapped { generation, needs_upgrade }
            }
            Err(problems) => {
                let again = refused.replace(problems.clone()).is_some_and(|last| last == problems);
                Reloaded::Refused { problems, again }
            }
        }
    }

    /// Swaps a snapshot in once its backends are known; those of the one that serves meanwhile are watched on.
    fn swap(&self, snapshot: Snapshot) {
        // Not when it is compiled: a candidate that is refused changes nothing of the ramps that run.
        snapshot.ramps().for_each(|(_, ramp)| ramp.watch());
        if let Err(error) = self.keeper.keep(&snapshot.stores) {
            log::error!("cannot connect to stores: {error}");
        }
        self.world.tasks.settle();
        let Some(monitor) = &self.monitor else { return self.live.swap(snapshot) };
        monitor.prepare(&snapshot.upstreams, &snapshot.server.dns);
        monitor.warm_up();
        self.live.swap(snapshot);
        let snapshot = self.live.load();
        monitor.watch(&snapshot.upstreams, &snapshot.server.dns);
    }

    /// The compiled and tested document; `None` when no input changed.
    fn candidate(&self, previous: &Snapshot) -> Result<Option<Snapshot>, Problems> {
        let loaded = Arc::new(source::load(&self.path)?);
        if loaded.fingerprint == previous.fingerprint && !previous.files.changed() {
            return Ok(None);
        }
        let compiler = Compiler {
            registry: &self.registry,
            world: &self.world,
            previous: Some(previous),
            mode: Mode::Live,
            roster: Some(previous.consumers.clone()),
        };
        let snapshot = compiler.compile(&loaded)?;
        if !snapshot.tests.is_empty() {
            (self.verify)(&loaded, &self.registry, Some(snapshot.consumers.clone()))?;
        }
        Ok(Some(snapshot))
    }

    /// The snapshot in use.
    #[must_use]
    pub fn live(&self) -> &Arc<Live> {
        &self.live
    }

    /// The filters that exist.
    #[must_use]
    pub fn registry(&self) -> &Arc<Registry> {
        &self.registry
    }
}

/// Settings that sockets and threads were made from; a changed one is reported, never half applied.
fn needs_upgrade(old: &Snapshot, new: &Snapshot) -> Vec<&'static str> {
    let bound = |snapshot: &Snapshot| -> Vec<_> {
        let plans = snapshot.listeners.iter().filter(|plan| !plan.retired);
        plans
            .map(|plan| {
                // With TLS each handshake goes by the protocols of its moment.
                let protocols = plan.options.protocols().to_vec();
                let protocols = plan.options.tls.is_none().then_some(protocols);
                let proxied = plan.options.accept_proxy_protocol;
                // Only a port of the system's choice is another one under another name.
                let any_port = matches!(plan.options.address, Address::Tcp(address) if address.port() == 0);
                let name = any_port.then(|| plan.name.clone());
                (name, plan.options.address.clone(), protocols, proxied)
            })
            .collect()
    };
    let changes = [
        (bound(old) != bound(new), "listeners"),
        (old.server.threads != new.server.threads, "server.threads"),
        (old.admin.address != new.admin.address, "admin.address"),
        (old.server.limits.h2_streams != new.server.limits.h2_streams, "server.limits.h2_streams"),
        (old.server.quotas != new.server.quotas, "server.quotas"),
        (old.server.upgrade_socket != new.server.upgrade_socket, "server.upgrade_socket"),
        (old.observability.metrics != new.observability.metrics, "observability.metrics.max_series"),
    ];
    changes.into_iter().filter(|(changed, _)| *changed).map(|(_, name)| name).collect()
}

#[cfg(test)]
mod tests {
    use tollhouse_filters::builtin;

    use super::*;

    fn authority() -> String {
        rcgen::generate_simple_self_signed(["a.test".to_owned()]).expect("a certificate").cert.pem()
    }

    #[test]
    fn a_file_of_a_filter_that_changes_is_read_anew_by_the_next_reload() {
        let directory = tempfile::tempdir().expect("a directory");
        let (path, list) = (directory.path().join("gateway.yaml"), directory.path().join("deny.txt"));
        let text = "{version: 1, listeners: [{name: main, address: '127.0.0.1:0'}],
            routes: [{name: r, filters: [{ip_access: {deny_file: deny.txt}}], respond: {}}]}";
        std::fs::write(&path, text).expect("written");
        std::fs::write(&list, "10.0.0.0/8\n").expect("written");
        let (registry, world) = (Arc::new(builtin()), World::dry());
        let loaded = Arc::new(source::load(&path).expect("loads"));
        let compiler =
            Compiler { registry: &registry, world: &world, previous: None, mode: Mode::Live, roster: None };
        let live = Arc::new(Live::new(compiler.compile(&loaded).expect("compiles")));
        let reloader = Reloader::new(path, registry, World::dry(), live.clone(), |_, _, _| Ok(()));

        assert!(live.load().inputs().contains(&list), "the file is watched");
        assert!(matches!(reloader.reload(), Reloaded::Unchanged));
        std::fs::write(&list, "10.0.0.0/8\n192.0.2.0/24\n").expect("written");
        assert!(matches!(reloader.reload(), Reloaded::Swapped { generation: 2, .. }));
        std::fs::write(&list, "nonsense\n").expect("written");
        let Reloaded::Refused { problems, .. } = reloader.reload() else { panic!("taken") };
        assert!(problems.inputs.contains(&list), "the file is watched until it is mended");
        std::fs::remove_file(&list).expect("removed");
        assert!(matches!(reloader.reload(), Reloaded::Refused { again: false, .. }));
        assert_eq!(live.generation(), 2);
    }

    #[test]
    fn a_certificate_that_changes_is_read_anew_by_the_next_reload() {
        let directory = tempfile::tempdir().expect("a directory");
        let (path, ca) = (directory.path().join("gateway.yaml"), directory.path().join("ca.pem"));
        let text = "{version: 1, listeners: [{name: main, address: '127.0.0.1:0'}],
            upstreams: [{name: u, backends: [{address: '127.0.0.1:1'}], tls: {ca: ca.pem, sni: a.test}}]}";
        std::fs::write(&path, text).expect("written");
        std::fs::write(&ca, authority()).expect("written");
        let (registry, world) = (Arc::new(builtin()), World::dry());
        let loaded = Arc::new(source::load(&path).expect("loads"));
        let compiler =
            Compiler { registry: &registry, world: &world, previous: None, mode: Mode::Live, roster: None };
        let live = Arc::new(Live::new(compiler.compile(&loaded).expect("compiles")));
        let reloader = Reloader::new(path, registry, World::dry(), live.clone(), |_, _, _| Ok(()));

        assert!(matches!(reloader.reload(), Reloaded::Unchanged));
        std::fs::write(&ca, authority()).expect("written");
        assert!(matches!(reloader.reload(), Reloaded::Swapped { generation: 2, .. }));
        std::fs::write(&ca, "nonsense").expect("written");
        assert!(matches!(reloader.reload(), Reloaded::Refused { again: false, .. }));
        assert!(matches!(reloader.reload(), Reloaded::Refused { again: true, .. }));
        assert_eq!(live.generation(), 2);
        std::fs::write(&ca, authority()).expect("written");
        assert!(matches!(reloader.reload(), Reloaded::Swapped { generation: 3, .. }));
    }
}
