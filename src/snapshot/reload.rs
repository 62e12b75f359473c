//! Reloading: a candidate is compiled and tested beside the running snapshot, then swapped in.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use parking_lot::Mutex;
use tollhouse_filters::registry::Registry;
use tollhouse_filters::world::World;

use super::begun::Begun;
use super::{Compiler, Live, Mode, Snapshot, apart};
use crate::source::{self, Loaded, Problems};
use crate::store::{self, Keeper};
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

/// Puts a candidate to the test beside the snapshot that runs; what is wrong refuses the candidate.
pub type Verify = Box<dyn Fn(&Arc<Loaded>, &Snapshot, &Snapshot) -> Result<(), Problems> + Send + Sync>;

/// Compiles the document again when asked to.
pub struct Reloader {
    path: PathBuf,
    registry: Arc<Registry>,
    world: World,
    live: Arc<Live>,
    verify: Verify,
    /// What reloads cannot change.
    begun: Begun,
    /// Watches the backends of what is swapped in.
    monitor: Option<Arc<Monitor>>,
    /// Connects the stores of what is swapped in.
    keeper: Keeper,
    /// Why the last candidate was refused, if it was; held while a reload is under way.
    refused: Mutex<Option<Problems>>,
}

impl Reloader {
    /// Reloads the document at `path` into `live`, whose listeners are bound where they are written.
    #[must_use]
    pub fn new(
        path: PathBuf,
        registry: Arc<Registry>,
        world: World,
        live: Arc<Live>,
        verify: Verify,
    ) -> Self {
        let begun = Begun::with(&live.load());
        let (monitor, keeper, refused) = (None, Keeper::default(), Mutex::new(None));
        Self { path, registry, world, live, verify, begun, monitor, keeper, refused }
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
            Ok(Some(mut snapshot)) => {
                *refused = None;
                let (generation, needs_upgrade) = (snapshot.generation, self.begun.needs_upgrade(&snapshot));
                // The next one is told which socket is whose, not where it would be after an upgrade.
                for (plan, bound) in snapshot.listeners.iter_mut().zip(self.begun.addresses()) {
                    plan.options.address.clone_from(bound);
                }
                self.swap(&previous, snapshot);
                Reloaded::Swapped { generation, needs_upgrade }
            }
            Err(problems) => {
                let again = refused.replace(problems.clone()).is_some_and(|last| last == problems);
                Reloaded::Refused { problems, again }
            }
        }
    }

    /// Swaps a snapshot in once its backends are known; those of the one that serves meanwhile are watched on.
    fn swap(&self, previous: &Snapshot, snapshot: Snapshot) {
        // Not when it is compiled: a candidate that is refused changes nothing of the ramps that run.
        snapshot.ramps().for_each(|(_, ramp)| ramp.watch());
        if let Err(error) = self.keeper.keep(&snapshot.stores) {
            log::error!("cannot connect to stores: {error}");
        }
        self.world.tasks.settle();
        if let Some(monitor) = &self.monitor {
            monitor.prepare(&snapshot.upstreams, &snapshot.server.dns);
            monitor.warm_up();
        }
        store::hand_over(&previous.stores, &snapshot.stores);
        self.live.swap(snapshot);
        let Some(monitor) = &self.monitor else { return };
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
        let verified = (self.verify)(&loaded, &snapshot, previous);
        verified.map_err(|problems| Problems { inputs: all_inputs(&snapshot), ..problems })?;
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

/// Everything that may make another one of a refused candidate; consumers are followed only once it is in use.
fn all_inputs(candidate: &Snapshot) -> Vec<PathBuf> {
    let consumers = candidate.consumers.file().map(Path::to_owned);
    candidate.inputs().into_iter().chain(consumers).collect()
}

#[cfg(test)]
mod tests {
    use std::fs::OpenOptions;
    use std::io::Write;
    use std::sync::{OnceLock, mpsc};
    use std::time::Duration;

    use tollhouse_filters::builtin;

    use super::*;

    fn authority() -> String {
        rcgen::generate_simple_self_signed(["a.test".to_owned()]).expect("a certificate").cert.pem()
    }

    /// What serves the document at `path`, and reloads it.
    fn serving(path: PathBuf) -> (Arc<Live>, Reloader) {
        tested_by(path, Box::new(|_, _, _| Ok(())))
    }

    /// As [`serving`], with candidates that this tests.
    fn tested_by(path: PathBuf, verify: Verify) -> (Arc<Live>, Reloader) {
        let (registry, world) = (Arc::new(builtin()), World::dry());
        let loaded = Arc::new(source::load(&path).expect("loads"));
        let compiler =
            Compiler { registry: &registry, world: &world, previous: None, mode: Mode::Live, roster: None };
        let live = Arc::new(Live::new(compiler.compile(&loaded).expect("compiles")));
        let reloader = Reloader::new(path, registry, World::dry(), live.clone(), verify);
        (live, reloader)
    }

    #[test]
    fn a_file_of_a_filter_that_changes_is_read_anew_by_the_next_reload() {
        let directory = tempfile::tempdir().expect("a directory");
        let (path, list) = (directory.path().join("gateway.yaml"), directory.path().join("deny.txt"));
        let text = "{version: 1, listeners: [{name: main, address: '127.0.0.1:0'}],
            routes: [{name: r, filters: [{ip_access: {deny_file: deny.txt}}], respond: {}}]}";
        std::fs::write(&path, text).expect("written");
        std::fs::write(&list, "10.0.0.0/8\n").expect("written");
        let (live, reloader) = serving(path);

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
        let (live, reloader) = serving(path);

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

    /// A document with consumers in a file, a test, and a route with these filters besides one that asks who calls.
    fn guarded(identities: &str, filters: &str) -> String {
        format!(
            "{{version: 1, listeners: [{{name: main, address: '127.0.0.1:0'}}],
            identities: {{{identities}keys: {{type: api_key, from: ['header:x-key']}}}},
            consumers: {{file: consumers.jsonl}},
            routes: [{{name: r, filters: [{filters}{{authenticate: {{any_of: [keys]}}}}], respond: {{}}}}],
            tests: [{{name: t, request: {{path: /}}, expect: {{status: 401}}}}]}}"
        )
    }

    /// A folder with the consumer `acme` in a file.
    fn peopled() -> tempfile::TempDir {
        let directory = tempfile::tempdir().expect("a directory");
        let hash = "9b346041bc9a49574eb2665b2ad2a0a3f9f9cce4e42f5d1f26deb8a256b5966a";
        let key = format!("{{\"type\":\"api_key\",\"id\":\"k\",\"hash\":\"sha256:{hash}\"}}");
        let line = format!("{{\"name\":\"acme\",\"credentials\":[{key}]}}\n");
        std::fs::write(directory.path().join("consumers.jsonl"), line).expect("written");
        directory
    }

    #[test]
    fn what_a_candidate_names_is_watched_while_its_tests_refuse_it() {
        let directory = peopled();
        let file = |name: &str| directory.path().join(name);
        let first = "{version: 1, listeners: [{name: main, address: '127.0.0.1:0'}]}";
        std::fs::write(file("gateway.yaml"), first).expect("written");
        let refuse: Verify = Box::new(|_, _, _| Err(Problems::default()));
        let (_, reloader) = tested_by(file("gateway.yaml"), refuse);
        std::fs::write(file("deny.txt"), "10.0.0.0/8\n").expect("written");
        let candidate = guarded("", "{ip_access: {deny_file: deny.txt}}, ");
        std::fs::write(file("gateway.yaml"), candidate).expect("written");
        let Reloaded::Refused { problems, .. } = reloader.reload() else { panic!("taken") };
        for name in ["gateway.yaml", "deny.txt", "consumers.jsonl"] {
            assert!(problems.inputs.contains(&file(name)), "{name} is watched until it is mended");
        }
    }

    #[test]
    fn who_is_switched_while_a_candidate_is_tested_is_so_once_it_is_in_use() {
        static LIVE: OnceLock<Arc<Live>> = OnceLock::new();
        let directory = peopled();
        let path = directory.path().join("gateway.yaml");
        std::fs::write(&path, guarded("", "")).expect("written");
        let switch: Verify = Box::new(|_, _, _| {
            let live = LIVE.get().expect("it serves");
            let (snapshot, is_first) = (live.load(), live.generation() == 1);
            if !is_first {
                let file = OpenOptions::new().append(true).open(snapshot.consumers.file().expect("a file"));
                file.expect("opened").write_all(b"{\"name\":\"half a line\n").expect("written");
            }
            live.change_consumers(|roster| roster.switch("acme", None, is_first)).expect("on the disk");
            Ok(())
        });
        let (live, reloader) = tested_by(path.clone(), switch);
        LIVE.get_or_init(|| live.clone());
        // With other identities, another list of consumers is read.
        for (identities, is_disabled) in [("people: {type: basic}, ", true), ("", false)] {
            let before = live.load();
            std::fs::write(&path, guarded(identities, "")).expect("written");
            assert!(matches!(reloader.reload(), Reloaded::Swapped { .. }));
            let after = live.load();
            assert!(!Arc::ptr_eq(&after.consumers, &before.consumers));
            let acme = after.consumers.consumers().load().get("acme").cloned().expect("a consumer");
            assert_eq!(acme.is_disabled(), is_disabled);
        }
    }

    #[test]
    fn a_reload_of_routes_alone_does_not_wait_for_who_changes_consumers() {
        let directory = peopled();
        let path = directory.path().join("gateway.yaml");
        std::fs::write(&path, guarded("", "")).expect("written");
        let (live, reloader) = serving(path.clone());
        let changed = guarded("", "").replace("respond: {}", "respond: {body: changed}");
        std::fs::write(&path, changed).expect("written");
        let (tell, told) = mpsc::channel();
        let reloaded = live.change_consumers(|_| {
            std::thread::spawn(move || tell.send(reloader.reload()));
            told.recv_timeout(Duration::from_secs(10))
        });
        assert!(matches!(reloaded, Ok(Reloaded::Swapped { .. })), "{reloaded:?}");
    }

    #[test]
    fn what_needs_an_upgrade_is_told_by_every_reload_until_it_is_as_it_runs() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("gateway.yaml");
        let write = |threads: u8, body: &str| {
            let listener = "{name: main, address: '127.0.0.1:0'}";
            let routes = format!("[{{name: r, respond: {{body: {body}}}}}]");
            let server = format!("{{threads: {threads}}}");
            let text = format!("{{version: 1, server: {server}, listeners: [{listener}], routes: {routes}}}");
            std::fs::write(&path, text).expect("written");
        };
        write(4, "one");
        let (_, reloader) = serving(path.clone());
        let reload = |threads: u8, body: &str| {
            write(threads, body);
            let Reloaded::Swapped { needs_upgrade, .. } = reloader.reload() else { panic!("{body}") };
            needs_upgrade
        };
        assert_eq!(reload(8, "one"), ["server.threads"]);
        assert_eq!(reload(8, "two"), ["server.threads"], "four still run");
        assert!(reload(4, "two").is_empty(), "as many as run");
    }

    /// A gateway with these listeners, and what it makes of others: the names by id, with marks for those that are
    /// gone and for TLS, and what needs an upgrade.
    fn listening(folder: &std::path::Path, first: &str) -> impl Fn(&str) -> (Vec<String>, usize) + use<> {
        let path = folder.join("gateway.yaml");
        let write = {
            let path = path.clone();
            move |listeners: &str| {
                let text = format!("{{version: 1, listeners: [{listeners}]}}");
                std::fs::write(&path, text).expect("written");
            }
        };
        write(first);
        let (live, reloader) = serving(path);
        move |listeners: &str| {
            write(listeners);
            let Reloaded::Swapped { needs_upgrade, .. } = reloader.reload() else { panic!("{listeners}") };
            let snapshot = live.load();
            let names = snapshot.listeners.iter().map(|plan| {
                let tls = plan.tls.as_ref();
                let tls = tls.map_or("", |tls| if tls.verifies_clients() { "+mtls" } else { "+tls" });
                let retired = if plan.retired { "-" } else { "" };
                format!("{retired}{}{tls}", plan.name)
            });
            (names.collect(), needs_upgrade.len())
        }
    }

    fn named(names: &[&str], needs_upgrade: usize) -> (Vec<String>, usize) {
        (names.iter().map(|name| (*name).to_owned()).collect(), needs_upgrade)
    }

    #[test]
    fn a_socket_is_that_of_the_listener_at_its_address_whatever_that_is_called() {
        let directory = tempfile::tempdir().expect("a directory");
        let at = |name: &str, port: u16| format!("{{name: {name}, address: '127.0.0.1:{port}'}}");
        let two = |one: String, other: String| format!("{one}, {other}");
        let reload = listening(directory.path(), &two(at("main", 7001), at("aux", 7002)));
        assert_eq!(reload(&two(at("aux", 7001), at("main", 7002))), named(&["aux", "main"], 0), "swapped");
        let moved = two(at("public", 7001), at("aux", 7003));
        assert_eq!(reload(&moved), named(&["public", "-main", "aux"], 1), "a name takes no socket along");
        let back = two(at("main", 7002), at("public", 7001));
        assert_eq!(reload(&back), named(&["public", "main"], 0), "where the sockets are");
    }

    #[test]
    fn a_listener_that_waits_for_an_upgrade_has_no_socket_for_who_takes_its_address() {
        let directory = tempfile::tempdir().expect("a directory");
        let at = |name: &str, port: u16| format!("{{name: {name}, address: '127.0.0.1:{port}'}}");
        let reload = listening(directory.path(), &at("main", 7001));
        let both = format!("{}, {}", at("main", 7001), at("aux", 7003));
        assert_eq!(reload(&both), named(&["main", "aux"], 1));
        assert_eq!(reload(&at("main", 7003)), named(&["main"], 1), "it is served where it was");
        assert_eq!(reload(&at("main", 7001)), named(&["main"], 0));
    }

    #[test]
    fn the_socket_of_a_listener_that_moves_serves_it_until_another_is_written_for_its_address() {
        let directory = tempfile::tempdir().expect("a directory");
        let at = |name: &str, port: u16| format!("{{name: {name}, address: '127.0.0.1:{port}'}}");
        let reload = listening(directory.path(), &at("main", 7001));
        assert_eq!(reload(&at("main", 7002)), named(&["main"], 1));
        let both = format!("{}, {}", at("main", 7002), at("public", 7001));
        assert_eq!(reload(&both), named(&["public", "main"], 1), "7001 is still what is open");
    }

    /// A folder with the certificate `a.pem`, its key `a.key` and the authority `ca.pem`.
    fn certified() -> tempfile::TempDir {
        let directory = tempfile::tempdir().expect("a directory");
        let made = rcgen::generate_simple_self_signed(["a.test".to_owned()]).expect("a certificate");
        std::fs::write(directory.path().join("a.pem"), made.cert.pem()).expect("written");
        std::fs::write(directory.path().join("a.key"), made.signing_key.serialize_pem()).expect("written");
        std::fs::write(directory.path().join("ca.pem"), authority()).expect("written");
        directory
    }

    #[test]
    fn tls_neither_comes_nor_goes_with_a_move_to_another_address() {
        let directory = certified();
        let plain = |port: u16| format!("{{name: main, address: '127.0.0.1:{port}'}}");
        let tls = "tls: {certificates: [{cert: a.pem, key: a.key}]}";
        let secure = |port: u16| format!("{{name: main, address: '127.0.0.1:{port}', {tls}}}");
        let reload = listening(directory.path(), &secure(7001));
        assert_eq!(reload(&plain(7002)), named(&["main+tls"], 1));
        let again = format!("{}, {{name: aux, address: '127.0.0.1:7003'}}", plain(7002));
        assert_eq!(reload(&again).0, ["main+tls", "aux"], "the next reload knows what the socket speaks");
        assert_eq!(reload(&plain(7001)).0, ["main"], "where its socket is, it goes at once");
        assert_eq!(reload(&secure(7002)).0, ["main"]);
    }

    #[test]
    fn tls_comes_and_goes_without_an_upgrade_where_the_socket_is() {
        let directory = certified();
        let listener = |more: &str| format!("{{name: main, address: '127.0.0.1:7001'{more}}}");
        let secure = listener(", tls: {certificates: [{cert: a.pem, key: a.key}]}");
        let reload = listening(directory.path(), &listener(""));
        assert_eq!(reload(&secure), named(&["main+tls"], 0));
        assert_eq!(reload(&listener("")), named(&["main"], 0));
        let http1 = listener(", protocols: [http/1.1]");
        assert_eq!(reload(&http1), named(&["main"], 1), "its socket speaks h2c, too");
        assert_eq!(reload(&secure), named(&["main+tls"], 0));
    }

    #[test]
    fn keys_of_tickets_stay_with_a_socket_whatever_its_listener_is_called() {
        let directory = certified();
        let path = directory.path().join("gateway.yaml");
        let write = |listeners: [(&str, u16); 2]| {
            let tls = "{certificates: [{cert: a.pem, key: a.key}]}";
            let each = listeners
                .map(|(name, port)| format!("{{name: {name}, address: '127.0.0.1:{port}', tls: {tls}}}"));
            let text = format!("{{version: 1, listeners: [{}]}}", each.join(", "));
            std::fs::write(&path, text).expect("written");
        };
        write([("main", 7001), ("aux", 7002)]);
        let (live, reloader) = serving(path.clone());
        let keys = || -> Vec<serde_json::Value> {
            let snapshot = live.load();
            let each = snapshot.listeners.iter().filter_map(|plan| plan.tls.as_ref());
            each.map(|tls| serde_json::to_value(tls.ticket_keys()).expect("JSON")).collect()
        };
        let first = keys();
        for listeners in [[("aux", 7001), ("main", 7002)], [("public", 7001), ("main", 7004)]] {
            write(listeners);
            assert!(matches!(reloader.reload(), Reloaded::Swapped { .. }), "{listeners:?}");
            assert!(keys() == first, "{listeners:?}");
        }
    }

    #[test]
    fn clients_are_asked_for_certificates_as_before_until_a_move_to_another_address_is_made() {
        let directory = certified();
        let listener = |port: u16, client_auth: &str| {
            let tls = format!("tls: {{certificates: [{{cert: a.pem, key: a.key}}]{client_auth}}}");
            format!("{{name: main, address: '127.0.0.1:{port}', {tls}}}")
        };
        let require = ", client_auth: {mode: require, ca: ca.pem}";
        let reload = listening(directory.path(), &listener(7001, require));
        assert_eq!(reload(&listener(7002, "")), named(&["main+mtls"], 1));
        let again = format!("{}, {{name: aux, address: '127.0.0.1:7003'}}", listener(7002, ""));
        assert_eq!(reload(&again).0, ["main+mtls", "aux"], "the next reload knows whom the socket lets in");
        assert_eq!(reload(&listener(7001, "")).0, ["main+tls"], "where it is, at once");
        assert_eq!(reload(&listener(7002, require)).0, ["main+tls"]);
    }
}
