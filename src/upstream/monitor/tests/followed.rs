//! Registries that are followed.

use tokio::sync::watch;

use super::*;
use crate::upstream::discovery::{Directory, Instance, Tell};

/// What the registry of a test says now.
#[derive(Debug, Clone)]
enum Says {
    Nothing,
    Set(&'static [&'static str]),
    Gone(&'static str),
    Panic,
}

/// The registry of a test.
pub(super) struct Script {
    says: watch::Sender<Says>,
    opened: usize,
}

impl Default for Script {
    fn default() -> Self {
        Self { says: watch::Sender::new(Says::Nothing), opened: 0 }
    }
}

struct Scripted(watch::Receiver<Says>);

#[async_trait]
impl Directory for Scripted {
    async fn follow(&self, tell: &Tell) -> Failed {
        let mut says = self.0.clone();
        loop {
            match says.borrow_and_update().clone() {
                Says::Nothing => {}
                Says::Set(set) => tell.set(set.iter().map(|host| Instance::at(host, 80)).collect()),
                Says::Gone(why) => return why.into(),
                Says::Panic => panic!("a bug of a client"),
            }
            let _ = says.changed().await;
        }
    }

    fn patience(&self) -> Duration {
        Duration::from_millis(2)
    }
}

impl Open for World {
    fn open(&self, _: &Following) -> Box<dyn Directory> {
        let registry = &mut self.state.lock().registry;
        registry.opened += 1;
        Box::new(Scripted(registry.says.subscribe()))
    }
}

impl Scene {
    fn say(&self, says: Says) {
        self.with(|state| state.registry.says.send_replace(says));
    }

    fn opened(&self) -> usize {
        self.with(|state| state.registry.opened)
    }
}

/// An upstream whose backends a registry tells.
fn told(name: &str, fields: Value) -> Arc<Upstream> {
    built(name, fields, None)
}

fn built(name: &str, fields: Value, before: Option<&Upstream>) -> Arc<Upstream> {
    let mut written = json!({
        "name": name, "discovery": {"type": "dns", "name": "users.test", "port": 80},
    });
    for (key, value) in fields.as_object().unwrap() {
        written[key] = value.clone();
    }
    let written = serde_json::from_value(written).unwrap();
    Arc::new(Upstream::build(&written, Path::new(""), before).unwrap())
}

fn addresses(upstream: &Upstream) -> Vec<String> {
    upstream.backends().iter().map(|backend| backend.written().to_string()).collect()
}

const ONE: Says = Says::Set(&["192.0.2.1"]);
const BOTH: Says = Says::Set(&["192.0.2.1", "192.0.2.2"]);
const TWO: Says = Says::Set(&["192.0.2.2"]);
const NONE: Says = Says::Set(&[]);

#[test]
fn a_start_waits_for_the_first_set_and_for_its_probes() {
    let scene = Scene::new();
    scene.say(Says::Set(&["192.0.2.1", "up.test"]));
    scene.with(|state| {
        state.names.insert("up.test".to_owned(), vec!["192.0.2.3"]);
        state.down.insert("192.0.2.1:80".parse().unwrap());
    });
    let users = told("users", json!({"health": {"active": quick()}}));
    assert_eq!(users.unavailable(), "the backends are not known yet");
    scene.watch(std::slice::from_ref(&users));
    scene.monitor.warm_up();
    assert_eq!(reached(&users).as_deref(), Some("192.0.2.3:80"));
}

#[test]
fn backends_that_a_registry_tells_are_followed_looked_up_and_probed() {
    let scene = Scene::new();
    scene.say(ONE);
    let users = told("users", json!({"health": {"active": quick()}}));
    scene.watch(std::slice::from_ref(&users));
    scene.monitor.warm_up();
    let kept = users.backends()[0].clone();
    let health = |upstream: &Upstream| upstream.view().backends[0].addresses[0].health.clone().unwrap().since;
    let since = health(&users);
    scene.say(BOTH);
    until("the other one is probed", || scene.probed("192.0.2.2:80") > 1);
    assert_eq!(addresses(&users), ["192.0.2.1:80", "192.0.2.2:80"]);
    assert!(Arc::ptr_eq(&users.backends()[0], &kept), "who stays, stays as it is");
    assert_eq!(health(&users), since);
    let gauge = "tollhouse_upstream_backend_healthy{upstream=\"users\",backend=\"192.0.2.2:80\"} 1";
    until("it is shown", || scene.has_metric(gauge));

    scene.say(TWO);
    until("the first is gone", || addresses(&users) == ["192.0.2.2:80"]);
    // One probe may have been under way.
    let (gone, left) = (scene.probed("192.0.2.1:80"), scene.probed("192.0.2.2:80"));
    until("the other is probed on", || scene.probed("192.0.2.2:80") > left + 10);
    assert!(scene.probed("192.0.2.1:80") <= gone + 1);
    assert_eq!(scene.opened(), 1);
}

#[test]
fn the_last_set_is_kept_while_a_registry_is_gone_or_its_client_panics() {
    let scene = Scene::new();
    scene.say(ONE);
    let users = told("users", json!({}));
    scene.watch(std::slice::from_ref(&users));
    scene.monitor.warm_up();
    let error = || users.view().discovery.unwrap().error;
    let up = |up: u8| {
        scene.has_metric(&format!("tollhouse_upstream_discovery_up{{upstream=\"users\",type=\"dns\"}} {up}"))
    };
    assert!(up(1));
    for (says, why) in [(Says::Gone("no route"), "no route"), (Says::Panic, "its client panicked")] {
        scene.say(says);
        until("it is noticed", || error().as_deref() == Some(why));
        assert_eq!(addresses(&users), ["192.0.2.1:80"]);
        assert!(up(0));
    }
    scene.say(TWO);
    until("it is followed again", || addresses(&users) == ["192.0.2.2:80"]);
    until("it goes on without a failure", || error().is_none() && up(1));
}

#[test]
fn a_registry_that_says_there_are_none_is_believed() {
    let scene = Scene::new();
    scene.say(ONE);
    let users = told("users", json!({}));
    scene.watch(std::slice::from_ref(&users));
    scene.monitor.warm_up();
    scene.say(NONE);
    until("there are none", || reached(&users).is_none());
    assert_eq!(users.unavailable(), "no backend takes requests");
    scene.say(ONE);
    until("there is one", || reached(&users).is_some());
}

#[test]
fn a_reload_that_leaves_discovery_as_it_is_keeps_the_set_and_who_follows_it() {
    let scene = Scene::new();
    scene.say(BOTH);
    let users = told("users", json!({}));
    scene.watch(std::slice::from_ref(&users));
    scene.monitor.warm_up();
    scene.say(Says::Gone("no route"));
    until("it is gone", || users.view().discovery.unwrap().error.is_some());

    let changed = built("users", json!({"balance": {"algorithm": "random"}}), Some(&users));
    assert_eq!(addresses(&changed).len(), 2, "known at once");
    scene.monitor.prepare(std::slice::from_ref(&changed), &Dns::default());
    scene.say(ONE);
    until("both follow", || [&users, &changed].iter().all(|upstream| addresses(upstream).len() == 1));
    scene.watch(std::slice::from_ref(&changed));
    scene.say(BOTH);
    until("the new one follows", || addresses(&changed).len() == 2);
    assert_eq!(addresses(&users).len(), 1, "nobody goes by the old one any more");
    assert_eq!(scene.opened(), 1);

    let other = json!({"discovery": {"type": "dns", "name": "others.test", "port": 80}});
    let other = built("users", other, Some(&changed));
    assert_eq!(addresses(&other).len(), 2, "what there was, until the other registry tells its own");
    scene.say(ONE);
    scene.watch(std::slice::from_ref(&other));
    scene.monitor.warm_up();
    assert_eq!((addresses(&other).len(), scene.opened()), (1, 2));
}

#[test]
fn only_backends_that_join_others_begin_with_a_small_share() {
    let scene = Scene::new();
    scene.say(ONE);
    let users = told("users", json!({"health": {"slow_start": "1h"}}));
    scene.watch(std::slice::from_ref(&users));
    scene.monitor.warm_up();
    let states = || users.view().backends.iter().map(|backend| backend.standing.state).collect::<Vec<_>>();
    assert_eq!(states(), ["in"]);
    scene.say(BOTH);
    until("the other one joins", || states() == ["in", "warming"]);
}

#[test]
fn a_backend_that_joins_others_gets_nothing_before_it_was_probed() {
    let scene = Scene::new();
    scene.say(ONE);
    scene.with(|state| state.hanging.insert("192.0.2.2:80".parse().unwrap()));
    let check = json!({"type": "tcp", "interval": "10ms", "timeout": "1h"});
    let users = told("users", json!({"health": {"active": check, "slow_start": "1h"}}));
    scene.watch(std::slice::from_ref(&users));
    scene.monitor.warm_up();
    scene.say(BOTH);
    until("the other one is being probed", || scene.probed("192.0.2.2:80") > 0);
    let states = || users.view().backends.iter().map(|backend| backend.standing.state).collect::<Vec<_>>();
    assert_eq!(states(), ["in", "unprobed"]);
    for _ in 0..6 {
        assert_eq!(reached(&users).as_deref(), Some("192.0.2.1:80"));
    }
    scene.say(Says::Set(&["192.0.2.1", "192.0.2.3"]));
    until("one that works begins", || states() == ["in", "warming"]);
    // There is nobody else.
    scene.say(Says::Set(&["192.0.2.2", "hanging.test"]));
    until("it gets requests all the same", || reached(&users).as_deref() == Some("192.0.2.2:80"));
}

#[test]
fn nobody_is_given_up_for_names_before_they_are_looked_up() {
    let scene = Scene::new();
    scene.with(|state| {
        state.names.insert("a.test".to_owned(), vec!["192.0.2.1"]);
        state.names.insert("slow.test".to_owned(), vec!["192.0.2.2"]);
        state.names.insert("slower.test".to_owned(), vec!["192.0.2.3"]);
    });
    scene.say(Says::Set(&["a.test"]));
    let users = told("users", json!({}));
    scene.watch(std::slice::from_ref(&users));
    scene.monitor.warm_up();
    for (says, address) in [
        (Says::Set(&["slow.test"]), "192.0.2.2:80"),
        (Says::Set(&["slower.test", "gone.test"]), "192.0.2.3:80"),
        (ONE, "192.0.2.1:80"),
    ] {
        scene.say(says);
        until("it is reached", || reached(&users).expect("somebody is there") == address);
    }
    scene.say(Says::Set(&["gone.test"]));
    until("the registry is believed", || reached(&users).is_none());
    assert_eq!(users.unavailable(), "no backend has a known address");
    assert!(users.view().backends[0].name.is_some());
}

#[test]
fn a_name_that_cannot_be_looked_up_keeps_no_other_out() {
    let scene = Scene::new();
    scene.with(|state| drop(state.names.insert("a.test".to_owned(), vec!["192.0.2.2"])));
    scene.say(ONE);
    let users = told("users", json!({}));
    scene.watch(std::slice::from_ref(&users));
    scene.monitor.warm_up();
    let started = Instant::now();
    scene.say(Says::Set(&["a.test", "hanging.test"]));
    until("it is reached", || reached(&users).expect("somebody is there") == "192.0.2.2:80");
    assert!(started.elapsed() < FIRST_LOOKUPS);
}

#[test]
fn a_name_that_was_not_found_before_is_used_once_it_is() {
    let scene = Scene::new();
    scene.say(Says::Set(&["192.0.2.1", "late.test"]));
    let users = told("users", json!({}));
    scene.watch(std::slice::from_ref(&users));
    scene.monitor.warm_up();
    scene.with(|state| drop(state.names.insert("late.test".to_owned(), vec!["192.0.2.2"])));
    scene.say(Says::Set(&["late.test"]));
    until("it is reached", || reached(&users).expect("somebody is there") == "192.0.2.2:80");
}

#[test]
fn a_registry_that_never_stops_telling_others_is_believed_all_the_same() {
    let scene = Scene::new();
    scene.say(ONE);
    let users = told("users", json!({}));
    scene.watch(std::slice::from_ref(&users));
    scene.monitor.warm_up();
    let others = [Says::Set(&["hanging-1.test"]), Says::Set(&["hanging-2.test"])];
    let mut others = others.into_iter().cycle();
    until("the registry is believed", || {
        scene.say(others.next().expect("there is no end"));
        reached(&users).is_none()
    });
}

#[test]
fn numbers_of_backends_that_are_gone_are_not_exported_any_more() {
    let scene = Scene::new();
    scene.say(BOTH);
    let users = told("users", json!({"health": {"outlier": {}}}));
    scene.watch(std::slice::from_ref(&users));
    scene.monitor.warm_up();
    let exported = |address: &str| {
        scene.has_metric(&format!(
            "tollhouse_upstream_backend_ejected{{upstream=\"users\",backend=\"{address}:80\"}} 0"
        ))
    };
    assert!(exported("192.0.2.1") && exported("192.0.2.2"));
    scene.say(TWO);
    until("it is gone", || !exported("192.0.2.1"));
    assert!(exported("192.0.2.2"));
}

#[test]
fn requests_wait_for_no_change_and_none_finds_nobody() {
    let scene = Scene::new();
    scene.say(BOTH);
    let users = told("users", json!({"health": {"outlier": {}}}));
    scene.watch(std::slice::from_ref(&users));
    scene.monitor.warm_up();
    let changes = || users.view().discovery.unwrap().changes;
    let before = changes();
    thread::scope(|scope| {
        let picking = scope.spawn(|| {
            while changes() < before + 100 {
                let mut picked = users.pick(b"", &Tried::default()).expect("there always is one");
                picked.guard.failed();
                users.connect_failed(&mut picked);
            }
        });
        while !picking.is_finished() {
            for says in [ONE, BOTH, TWO] {
                let seen = changes();
                scene.say(says);
                until("it is told", || changes() > seen || picking.is_finished());
            }
        }
    });
}
