mod followed;

use std::net::SocketAddr;
use std::path::Path;

use async_trait::async_trait;
use serde_json::{Value, json};

use super::*;
use crate::config::discovery::Family;
use crate::upstream::Tried;
use crate::upstream::health::Outcome;
use crate::upstream::probe::Target;
use crate::upstream::resolve::{Failed, Found, Service};

const SOON: Duration = Duration::from_secs(10);

/// A world in which names and addresses do what a test says.
#[derive(Default)]
struct World {
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    names: HashMap<String, Vec<&'static str>>,
    down: HashSet<SocketAddr>,
    hanging: HashSet<SocketAddr>,
    probed: HashMap<SocketAddr, usize>,
    asked: HashMap<String, usize>,
    registry: followed::Script,
}

#[async_trait]
impl Prober for World {
    async fn probe(&self, target: &Target) -> Outcome {
        let address = target.key.address;
        let (down, hangs) = {
            let mut state = self.state.lock();
            *state.probed.entry(address).or_default() += 1;
            (state.down.contains(&address), state.hanging.contains(&address))
        };
        if hangs {
            tokio::time::sleep(target.key.check.timeout.get()).await;
            return Err("timeout".into());
        }
        if down { Err("down".into()) } else { Ok("up".into()) }
    }
}

#[async_trait]
impl Lookup for World {
    async fn addresses(&self, host: &str, _: Family) -> Result<Found, Failed> {
        *self.state.lock().asked.entry(host.to_owned()).or_default() += 1;
        if host.starts_with("hanging") {
            tokio::time::sleep(Duration::from_secs(3600)).await;
        }
        if host.starts_with("slow") {
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        let state = self.state.lock();
        let found = state.names.get(host).ok_or_else(|| Failed::from("NXDOMAIN"))?;
        let v4 = found.iter().map(|text| text.parse().unwrap()).collect();
        let ttl = Duration::from_millis(if host.starts_with("hour.") { 3_600_000 } else { 10 });
        Ok(Found { v4: Some(v4), v6: Some(Vec::new()), ttl })
    }

    async fn services(&self, _: &str) -> Result<(Vec<Service>, Duration), Failed> {
        Err(Failed::from("there are no services here"))
    }

    fn set(&self, _: &Dns) {}
}

struct Scene {
    world: Arc<World>,
    registry: Arc<Registry>,
    monitor: Monitor,
}

impl Scene {
    fn new() -> Self {
        let (world, registry) = (Arc::<World>::default(), Registry::new(1000));
        let monitor =
            Monitor::start_with(world.clone(), world.clone(), world.clone(), registry.clone()).unwrap();
        Self { world, registry, monitor }
    }

    fn with<T>(&self, change: impl FnOnce(&mut State) -> T) -> T {
        change(&mut self.world.state.lock())
    }

    fn watch(&self, upstreams: &[Arc<Upstream>]) {
        self.monitor.watch(upstreams, &Dns::default());
    }

    fn probed(&self, address: &str) -> usize {
        self.with(|state| state.probed.get(&address.parse().unwrap()).copied().unwrap_or_default())
    }

    fn has_metric(&self, line: &str) -> bool {
        self.registry.render().lines().any(|found| found == line)
    }
}

fn upstream(name: &str, backends: &[&str], check: Value) -> Arc<Upstream> {
    let backends: Vec<_> = backends.iter().map(|address| json!({"address": address})).collect();
    let mut written = json!({"name": name, "backends": backends});
    if !check.is_null() {
        written["health"] = json!({"active": check});
    }
    Arc::new(Upstream::build(&serde_json::from_value(written).unwrap(), Path::new(""), None).unwrap())
}

/// Probes every 10 ms; one failure and one success are enough.
fn quick() -> Value {
    json!({"type": "tcp", "interval": "10ms", "timeout": "50ms", "healthy": 1, "unhealthy": 1})
}

fn reached(upstream: &Upstream) -> Option<String> {
    upstream.pick(b"", &Tried::default()).map(|picked| picked.address.to_string())
}

fn until(what: &str, mut is_so: impl FnMut() -> bool) {
    let deadline = Instant::now() + SOON;
    while !is_so() {
        assert!(Instant::now() < deadline, "in vain: {what}");
        thread::sleep(Duration::from_millis(2));
    }
}

#[test]
fn after_the_warm_up_only_backends_that_work_are_used() {
    let scene = Scene::new();
    scene.with(|state| {
        state.down.insert("192.0.2.1:80".parse().unwrap());
        state.hanging.insert("192.0.2.2:80".parse().unwrap());
        state.names.insert("up.test".to_owned(), vec!["192.0.2.3"]);
    });
    let users = upstream("users", &["192.0.2.1:80", "192.0.2.2:80", "up.test:80"], quick());
    scene.watch(std::slice::from_ref(&users));
    scene.monitor.warm_up();
    for _ in 0..6 {
        assert_eq!(reached(&users).as_deref(), Some("192.0.2.3:80"));
    }
}

#[test]
fn a_backend_that_fails_gets_nothing_until_it_works_again() {
    let scene = Scene::new();
    let address: SocketAddr = "192.0.2.1:80".parse().unwrap();
    let users = upstream("users", &["192.0.2.1:80"], quick());
    scene.watch(std::slice::from_ref(&users));
    scene.monitor.warm_up();
    let gauge = |value| {
        format!("tollhouse_upstream_backend_healthy{{upstream=\"users\",backend=\"192.0.2.1:80\"}} {value}")
    };
    until("the gauge is up", || scene.has_metric(&gauge(1)));
    scene.with(|state| state.down.insert(address));
    until("none is used", || reached(&users).is_none());
    assert_eq!(users.unavailable(), "no backend is healthy");
    until("the gauge falls", || scene.has_metric(&gauge(0)));
    scene.with(|state| state.down.remove(&address));
    until("it is used again", || reached(&users).is_some());
    let changes = |to| {
        format!(
            "tollhouse_upstream_health_changes_total{{upstream=\"users\",backend=\"192.0.2.1:80\",to=\"{to}\"}} 1"
        )
    };
    until("both changes are counted", || {
        scene.has_metric(&changes("healthy")) && scene.has_metric(&changes("unhealthy"))
    });
}

#[test]
fn an_address_is_probed_once_for_all_upstreams_that_check_it_alike() {
    let scene = Scene::new();
    let slow = json!({"type": "tcp", "interval": "1h"});
    let all: Vec<_> =
        (0..20).map(|at| upstream(&format!("u{at}"), &["192.0.2.1:80"], slow.clone())).collect();
    scene.watch(&all);
    scene.monitor.warm_up();
    scene.watch(&all);
    scene.monitor.warm_up();
    assert_eq!(scene.probed("192.0.2.1:80"), 1);
    let health = |upstream: &Upstream| upstream.view().backends[0].addresses[0].health.clone().unwrap();
    assert_eq!(health(&all[19]).state, "healthy");
    assert_eq!(health(&all[19]).since, health(&all[0]).since);
}

#[test]
fn a_new_generation_goes_on_with_what_is_known() {
    let scene = Scene::new();
    scene.with(|state| state.down.insert("192.0.2.1:80".parse().unwrap()));
    let check = |extra: u32| json!({"type": "tcp", "interval": "1h", "unhealthy": extra});
    let first = upstream("users", &["192.0.2.1:80"], check(3));
    scene.watch(&[first]);
    scene.monitor.warm_up();

    let same = upstream("users", &["192.0.2.1:80"], check(3));
    scene.watch(std::slice::from_ref(&same));
    assert!(reached(&same).is_none());
    assert_eq!(scene.probed("192.0.2.1:80"), 1, "no new probe");

    let changed = upstream("users", &["192.0.2.1:80"], check(4));
    scene.watch(std::slice::from_ref(&changed));
    assert!(reached(&changed).is_none(), "changed settings begin with the known state");
    until("the new settings are probed", || scene.probed("192.0.2.1:80") == 2);
}

#[test]
fn what_is_no_longer_written_is_neither_probed_nor_looked_up() {
    let scene = Scene::new();
    scene.with(|state| drop(state.names.insert("gone.test".to_owned(), vec!["192.0.2.1"])));
    scene.watch(&[upstream("users", &["gone.test:80"], quick())]);
    until("it is probed", || scene.probed("192.0.2.1:80") > 1);
    scene.watch(&[upstream("users", &["192.0.2.2:80"], quick())]);
    // One may have been under way.
    let (probed, asked) = scene
        .with(|state| (state.probed["192.0.2.1:80".parse().as_ref().unwrap()], state.asked["gone.test"]));
    until("the other is probed on and on", || scene.probed("192.0.2.2:80") > 10);
    assert!(scene.probed("192.0.2.1:80") <= probed + 1);
    assert!(scene.with(|state| state.asked["gone.test"]) <= asked + 1);
    let gone = "backend=\"gone.test:80\"";
    let sweep = || {
        let upstreams = HashSet::from(["users"]);
        let none = HashSet::new();
        scene.registry.retain(&crate::observe::metrics::Live {
            listeners: &none,
            routes: &none,
            upstreams: &upstreams,
        });
    };
    sweep();
    sweep();
    assert!(!scene.registry.render().contains(gone));
}

#[test]
fn a_name_is_looked_up_once_for_all_backends_and_followed_when_it_changes() {
    let scene = Scene::new();
    scene.with(|state| drop(state.names.insert("a.test".to_owned(), vec!["192.0.2.1"])));
    let users = upstream("users", &["a.test:80"], Value::Null);
    let orders = upstream("orders", &["a.test:81"], quick());
    scene.watch(&[users.clone(), orders.clone()]);
    scene.monitor.warm_up();
    assert_eq!(reached(&users).as_deref(), Some("192.0.2.1:80"));
    assert_eq!(reached(&orders).as_deref(), Some("192.0.2.1:81"));

    scene.with(|state| drop(state.names.insert("a.test".to_owned(), vec!["192.0.2.2"])));
    until("both follow", || {
        reached(&users).as_deref() == Some("192.0.2.2:80")
            && reached(&orders).as_deref() == Some("192.0.2.2:81")
    });
    until("the new address is probed", || scene.probed("192.0.2.2:81") > 0);
    scene.with(|state| state.names.clear());
    until("failure is noticed", || users.view().backends[0].name.as_ref().unwrap().error.is_some());
    assert_eq!(reached(&users).as_deref(), Some("192.0.2.2:80"), "the last good answer is kept");
}

#[test]
fn a_rebuilt_upstream_has_the_known_addresses_at_once() {
    let scene = Scene::new();
    scene.with(|state| drop(state.names.insert("a.test".to_owned(), vec!["192.0.2.1"])));
    scene.watch(&[upstream("users", &["a.test:80"], Value::Null)]);
    scene.monitor.warm_up();
    let rebuilt = upstream("users", &["a.test:80", "192.0.2.9:80"], Value::Null);
    scene.watch(std::slice::from_ref(&rebuilt));
    let both: HashSet<_> = (0..2).map(|_| reached(&rebuilt).unwrap()).collect();
    assert_eq!(both.len(), 2);
}

#[test]
fn a_warm_up_does_not_wait_for_what_was_there_before() {
    let scene = Scene::new();
    let hanging = upstream("hanging", &["192.0.2.1:80"], json!({"type": "tcp", "timeout": "1h"}));
    scene.with(|state| state.hanging.insert("192.0.2.1:80".parse().unwrap()));
    scene.watch(std::slice::from_ref(&hanging));
    let users = upstream("users", &["192.0.2.2:80"], quick());
    scene.watch(&[hanging, users.clone()]);
    let started = Instant::now();
    scene.monitor.warm_up();
    assert!(started.elapsed() < WARM_UP);
    assert_eq!(users.view().backends[0].addresses[0].health.as_ref().unwrap().state, "healthy");
}

#[test]
fn backends_that_hang_do_not_keep_others_from_being_probed() {
    let scene = Scene::new();
    let users = upstream("users", &["192.0.2.1:80"], quick());
    let many: Vec<String> = (1..=1000).map(|port| format!("192.0.2.2:{port}")).collect();
    let many: Vec<&str> = many.iter().map(String::as_str).collect();
    let hanging = upstream("hanging", &many, json!({"type": "tcp", "timeout": "1h"}));
    scene.with(|state| state.hanging.extend(many.iter().map(|text| text.parse::<SocketAddr>().unwrap())));
    scene.watch(&[hanging, users.clone()]);
    until("it is used", || users.view().backends[0].addresses[0].health.as_ref().unwrap().state == "healthy");
    scene.with(|state| state.down.insert("192.0.2.1:80".parse().unwrap()));
    until("none is used", || reached(&users).is_none());
}

#[test]
fn names_whose_lookup_hangs_do_not_keep_others_from_being_looked_up() {
    let scene = Scene::new();
    scene.with(|state| drop(state.names.insert("a.test".to_owned(), vec!["192.0.2.1"])));
    let users = upstream("users", &["a.test:80"], Value::Null);
    let many: Vec<String> = (0..200).map(|at| format!("hanging-{at}.test:80")).collect();
    let hanging = upstream("hanging", &many.iter().map(String::as_str).collect::<Vec<_>>(), Value::Null);
    scene.watch(&[hanging, users.clone()]);
    until("it is found", || reached(&users).as_deref() == Some("192.0.2.1:80"));
    scene.with(|state| drop(state.names.insert("a.test".to_owned(), vec!["192.0.2.2"])));
    until("it is followed", || reached(&users).as_deref() == Some("192.0.2.2:80"));
}

#[test]
fn what_serves_is_watched_on_until_its_successor_is_ready() {
    let scene = Scene::new();
    let one: SocketAddr = "192.0.2.1:80".parse().unwrap();
    scene.with(|state| state.hanging.insert("192.0.2.2:80".parse().unwrap()));
    let check = |extra: u32| json!({"type": "tcp", "interval": "10ms", "timeout": "1h", "healthy": extra});
    let serving = upstream("users", &["192.0.2.1:80"], check(1));
    scene.watch(std::slice::from_ref(&serving));
    scene.monitor.warm_up();
    let next = upstream("users", &["192.0.2.1:80", "192.0.2.2:80"], check(2));
    scene.monitor.prepare(std::slice::from_ref(&next), &Dns::default());
    until("the new address is probed", || scene.probed("192.0.2.2:80") > 0);
    scene.with(|state| state.down.insert(one));
    until("both know that it is down", || [&serving, &next].iter().all(|upstream| !is_healthy(upstream)));
    scene.with(|state| state.down.remove(&one));
    until("both know that it is up", || [&serving, &next].iter().all(|upstream| is_healthy(upstream)));
    let changes = "tollhouse_upstream_health_changes_total{upstream=\"users\",backend=\"192.0.2.1:80\"";
    until("each change is counted once", || {
        ["healthy", "unhealthy"].iter().all(|to| scene.has_metric(&format!("{changes},to=\"{to}\"}} 1")))
    });

    scene.watch(std::slice::from_ref(&next));
    scene.with(|state| state.down.insert(one));
    until("the successor knows that it is down", || !is_healthy(&next));
    assert!(is_healthy(&serving), "its own probes have ended");
}

/// Whether its first backend is.
fn is_healthy(upstream: &Upstream) -> bool {
    upstream.backends()[0].is_healthy()
}

#[test]
fn other_name_servers_are_asked_at_once() {
    let scene = Scene::new();
    scene.with(|state| drop(state.names.insert("hour.test".to_owned(), vec!["192.0.2.1"])));
    let users = upstream("users", &["hour.test:80"], Value::Null);
    scene.watch(std::slice::from_ref(&users));
    scene.monitor.warm_up();
    scene.with(|state| drop(state.names.insert("hour.test".to_owned(), vec!["192.0.2.2"])));
    let other = Dns { servers: vec!["192.0.2.53".parse().unwrap()], ..Dns::default() };
    scene.monitor.watch(std::slice::from_ref(&users), &other);
    until("the new answer is used", || reached(&users).as_deref() == Some("192.0.2.2:80"));
    assert_eq!(scene.with(|state| state.asked["hour.test"]), 2);
}

#[test]
fn the_view_tells_everything_about_each_backend() {
    let scene = Scene::new();
    scene.with(|state| {
        state.names.insert("a.test".to_owned(), vec!["192.0.2.1", "192.0.2.2"]);
        state.down.insert("192.0.2.2:80".parse().unwrap());
    });
    let users =
        upstream("users", &["a.test:80", "nowhere.test:80"], json!({"type": "tcp", "interval": "1h"}));
    scene.watch(std::slice::from_ref(&users));
    scene.monitor.warm_up();
    let view = serde_json::to_value(users.view()).unwrap();
    let (first, second) = (&view["backends"][0], &view["backends"][1]);
    assert_eq!((&view["name"], &view["checked"]), (&json!("users"), &json!(true)));
    assert_eq!(
        (&first["address"], &first["weight"], &first["usable"]),
        (&json!("a.test:80"), &json!(1), &json!(true))
    );
    assert_eq!(first["name"]["age"], 0);
    assert_eq!(first["addresses"][0]["health"]["state"], "healthy");
    let unhealthy = &first["addresses"][1];
    assert_eq!(
        (&unhealthy["address"], &unhealthy["health"]["reason"]),
        (&json!("192.0.2.2:80"), &json!("down"))
    );
    assert_eq!((&second["usable"], &second["name"]["error"]), (&json!(false), &json!("NXDOMAIN")));
    assert_eq!((&second["name"]["answered"], &second["addresses"]), (&Value::Null, &json!([])));
}
