use serde_json::json;

use super::super::PATIENCE;
use super::*;
use crate::config::discovery::Discovery;

const EPOCH: SystemTime = SystemTime::UNIX_EPOCH;

fn following(keep: bool) -> Following {
    let written = json!({"type": "dns", "name": "users.test", "port": 80, "keep_last_on_empty": keep});
    let written: Discovery = serde_json::from_value(written).unwrap();
    Following::new(written.registry().unwrap().clone(), Path::new(""), "users".into())
}

fn at(seconds: u64) -> SystemTime {
    EPOCH + Duration::from_secs(seconds)
}

fn some(hosts: &[&str]) -> Option<Vec<Instance>> {
    Some(hosts.iter().map(|host| Instance::at(host, 80)).collect())
}

fn shown(following: &Following) -> Vec<String> {
    following.backends().iter().map(|backend| backend.address.to_string()).collect()
}

#[test]
fn the_last_good_set_is_kept_while_the_registry_is_gone_and_its_age_is_shown() {
    let following = following(false);
    assert!(!following.is_up());
    assert!(following.told(some(&["192.0.2.1"]), at(0)));
    let pauses: Vec<u64> =
        (0..7).map(|n| following.failed("gone".into(), PATIENCE, at(10 + n)).as_secs()).collect();
    assert_eq!(pauses, [1, 2, 4, 8, 16, 30, 30]);
    assert_eq!(shown(&following), ["192.0.2.1:80"]);
    let view = serde_json::to_value(following.view(at(60))).unwrap();
    assert_eq!(
        view,
        json!({
            "type": "dns", "up": false, "told": "1970-01-01T00:00:00.000Z", "age": 60,
            "changed": "1970-01-01T00:00:00.000Z", "changes": 1, "inherited": false, "ignored": 0,
            "kept_on_empty": false,
            "error": "gone", "failing_since": "1970-01-01T00:00:10.000Z",
        })
    );
    following.begins();
    assert!(!following.told(some(&["192.0.2.1"]), at(70)), "the same set is no change");
    assert!(!following.is_up(), "it may fail at once");
    following.lasts();
    assert!(following.is_up());
    assert_eq!(following.age(at(71)), Some(1));
    assert_eq!(following.failed("gone".into(), PATIENCE, at(80)).as_secs(), 1, "it begins anew");
}

#[test]
fn what_another_registry_told_is_in_use_until_this_one_tells_and_its_age_goes_on() {
    let before = following(false);
    before.told(some(&["192.0.2.1"]), at(0));
    let heir = following(false).heir_of(before.backends(), Some(&before));
    heir.failed("gone".into(), PATIENCE, at(10));
    assert_eq!(shown(&heir), ["192.0.2.1:80"]);
    let view = heir.view(at(60));
    assert_eq!((view.inherited, view.up, view.age, view.changes), (true, false, Some(60), 0));
    // The heir of one that has told nothing itself.
    let heir = following(false).heir_of(heir.backends(), Some(&heir));
    assert_eq!((heir.age(at(70)), heir.is_known(), heir.is_up()), (Some(70), true, false));
    assert!(heir.told(some(&["192.0.2.1"]), at(80)), "what it tells is its own");
    let view = heir.view(at(81));
    assert_eq!((view.inherited, view.age, view.changes), (false, Some(1), 1));
    // It says itself that there are none.
    let heir = following(false).heir_of(before.backends(), Some(&before));
    assert!(heir.told(Some(Vec::new()), at(80)) && shown(&heir).is_empty());
    let nobody = following(false).heir_of(Arc::default(), None);
    assert!(!nobody.is_known());
}

#[test]
fn what_tells_a_set_and_fails_at_once_is_asked_less_and_less_often() {
    let following = following(false);
    let pauses: Vec<u64> = (0..7)
        .map(|n| {
            following.begins();
            following.told(some(&["192.0.2.1"]), at(n));
            following.failed("403".into(), PATIENCE, at(n)).as_secs()
        })
        .collect();
    assert_eq!(pauses, [1, 2, 4, 8, 16, 30, 30]);
    assert_eq!(shown(&following), ["192.0.2.1:80"], "what it tells is used");
    assert!(!following.is_up());
    following.begins();
    following.lasts();
    assert!(!following.is_up(), "it told nothing");
    following.told(some(&["192.0.2.1"]), at(20));
    assert!(following.is_up());
}

#[test]
fn an_empty_set_is_believed_unless_it_is_written_otherwise() {
    let (believing, keeping) = (following(false), following(true));
    for following in [&believing, &keeping] {
        following.told(some(&["192.0.2.1"]), at(0));
        following.told(Some(Vec::new()), at(1));
    }
    assert!(shown(&believing).is_empty());
    assert_eq!((shown(&keeping).len(), keeping.view(at(2)).kept_on_empty), (1, true));
    keeping.told(some(&["192.0.2.2"]), at(3));
    assert_eq!((shown(&keeping), keeping.view(at(4)).kept_on_empty), (vec!["192.0.2.2:80".into()], false));
    assert!(following(true).told(Some(Vec::new()), at(0)), "there is nothing to keep, but it is known now");
}

#[test]
fn instances_that_cannot_be_used_are_left_out_one_by_one() {
    let following = following(false);
    let with = |host: &str, weight, priority| Instance {
        weight: Some(weight),
        priority: Some(priority),
        ..Instance::at(host, 80)
    };
    following.told(
        Some(vec![
            Instance::at("b.test.", 80),
            Instance::at("a b", 80),
            Instance::at("", 80),
            Instance::at("x\n.test", 80),
            // The target of a service record that is a name of numbers: no certificate could be for it.
            Instance::at("192.0.2.1.", 80),
            Instance::at("a.test", 0),
            Instance::at("a.test", 65536),
            with("a.test", 1001, 0),
            with("a.test", 1, 256),
            Instance::at("2001:db8::1", 80),
            Instance::at("[2001:db8::2]", 80),
            with("A.TEST", 1000, 255),
        ]),
        at(0),
    );
    assert_eq!(shown(&following), ["[2001:db8::1]:80", "[2001:db8::2]:80", "a.test:80", "b.test:80"]);
    assert_eq!(following.view(at(0)).ignored, 8);
}

#[test]
fn an_address_told_twice_is_one_backend_and_the_order_says_nothing() {
    let following = following(false);
    assert!(following.told(some(&["192.0.2.2", "192.0.2.1", "192.0.2.2"]), at(0)));
    assert_eq!(shown(&following), ["192.0.2.1:80", "192.0.2.2:80"]);
    assert!(!following.told(some(&["192.0.2.1", "192.0.2.2"]), at(1)));
    let weight = Instance { weight: Some(2), ..Instance::at("192.0.2.1", 80) };
    assert!(following.told(Some(vec![weight, Instance::at("192.0.2.2", 80)]), at(2)), "another weight");
}

#[test]
fn a_set_of_which_nothing_can_be_used_is_a_failure_and_no_empty_set() {
    let following = following(false);
    following.told(some(&["192.0.2.1"]), at(0));
    assert!(!following.told(some(&["a b"]), at(1)));
    assert_eq!(shown(&following), ["192.0.2.1:80"]);
    let error = following.view(at(2)).error.unwrap();
    assert_eq!(error, "none of the 1 instances that it tells can be used");
}

#[test]
fn no_more_backends_than_an_upstream_may_have_are_taken_in() {
    let following = following(false);
    let many = (0..MAX_BACKENDS + 5).map(|n| Instance::at(&format!("b{n}.test"), 80)).collect();
    following.told(Some(many), at(0));
    assert_eq!((shown(&following).len(), following.view(at(0)).ignored), (MAX_BACKENDS, 5));
}

#[test]
fn a_registry_does_not_confirm_a_set_whose_successor_could_not_be_used() {
    let following = following(false);
    following.begins();
    following.told(some(&["192.0.2.1"]), at(0));
    following.told(None, at(10));
    assert_eq!(following.age(at(15)), Some(5), "it still holds");
    following.told(some(&["a b"]), at(20));
    following.told(None, at(60));
    assert_eq!(following.age(at(60)), Some(50));
    assert_eq!(shown(&following), ["192.0.2.1:80"]);
}

#[test]
fn a_host_told_with_its_dot_is_asked_for_as_a_whole_name_and_shown_without() {
    let told = backend(&Instance::at("a.test.", 80)).unwrap();
    assert_eq!(told.address.to_string(), "a.test:80");
    assert!(matches!(told.address.host, Host::Name(name) if name == "a.test."), "RFC 2782");
}
