//! Changes of the index, and what is found in it.

use super::*;
use crate::identity::{ConsumerSpec, KeyHash};
use crate::testing::yaml;
use crate::world::{Clock, ManualClock};

fn layout() -> Layout {
    Layout::new([(Arc::from("keys"), Some(Kind::ApiKey)), (Arc::from("corp"), Some(Kind::Jwt))], [])
}

/// A record of a consumer written as in a document; `KEY(x)` stands for the hash of x.
fn record(layout: &Layout, text: &str) -> Arc<Record> {
    let mut text = text.to_owned();
    while let Some(start) = text.find("KEY(") {
        let end = start + text[start..].find(')').expect("closed");
        let digits = crate::values::hex(&KeyHash::of(&text.as_bytes()[start + 4..end]).0);
        text.replace_range(start..=end, &format!("\"sha256:{digits}\""));
    }
    let (record, errors) = Clerk::new(layout).record(yaml::<ConsumerSpec>(&text));
    assert!(errors.is_empty(), "{errors:?}");
    record
}

fn owner(index: &Index, layout: &Layout, key: &str) -> Option<String> {
    let keys = layout.number("keys").expect("there");
    let found = index.find(keys, Key::ApiKey(KeyHash::of(key.as_bytes())))?;
    Some(found.consumer().name.to_string())
}

const ACME: &str = "{name: acme, credentials: [{type: api_key, id: k, hash: KEY(one)}]}";

#[test]
fn a_state_of_the_index_does_not_change_with_the_next_one() {
    let layout = layout();
    let first = Index::default().changed([], &[record(&layout, ACME)]).expect("no clash");
    let second = first.changed(["acme"], &[]).expect("no clash");
    assert_eq!(owner(&first, &layout, "one").as_deref(), Some("acme"));
    assert_eq!((owner(&second, &layout, "one"), second.len(), first.len()), (None, 0, 1));
}

#[test]
fn a_consumer_takes_the_place_of_the_one_of_its_name_with_all_its_keys() {
    let layout = layout();
    let index = Index::default().changed([], &[record(&layout, ACME)]).expect("no clash");
    let next = "{name: acme, credentials: [{type: api_key, id: k, hash: KEY(two)}]}";
    let index = index.changed([], &[record(&layout, next)]).expect("no clash");
    assert_eq!((owner(&index, &layout, "one"), index.len()), (None, 1));
    assert_eq!(owner(&index, &layout, "two").as_deref(), Some("acme"));
}

#[test]
fn a_key_may_go_from_one_consumer_to_another_at_once_but_not_belong_to_both() {
    let layout = layout();
    let both = [record(&layout, ACME), record(&layout, "{name: globex}")];
    let index = Index::default().changed([], &both).expect("no clash");
    let takes = || record(&layout, "{name: globex, credentials: [{type: api_key, id: k, hash: KEY(one)}]}");
    let clashes = index.changed([], &[takes()]).expect_err("both have it");
    assert_eq!(clashes.len(), 1);
    assert_eq!((&*clashes[0].record.consumer.name, &*clashes[0].other.consumer.name), ("globex", "acme"));
    assert_eq!(clashes[0].path.to_string(), "credentials[0].hash");
    let index = index.changed([], &[takes(), record(&layout, "{name: acme}")]).expect("no clash");
    assert_eq!(owner(&index, &layout, "one").as_deref(), Some("globex"));
}

#[test]
fn what_lapses_says_why() {
    let layout = layout();
    let clock = ManualClock::new();
    for (options, credential, expected) in [
        ("", "", None),
        (", disabled: true", "", Some(Lapse::Consumer)),
        ("", ", disabled: true", Some(Lapse::Disabled)),
        // The clock of tests begins there: what ends now has ended.
        ("", ", expires: 2026-01-01", Some(Lapse::Expired)),
        ("", ", expires: 2026-01-01T00:00:01Z", None),
    ] {
        let text = format!(
            "{{name: acme, credentials: [{{type: api_key, id: k, hash: KEY(one){credential}}}]{options}}}"
        );
        let index = Index::default().changed([], &[record(&layout, &text)]).expect("no clash");
        let found = index.find(layout.number("keys").expect("there"), Key::ApiKey(KeyHash::of(b"one")));
        assert_eq!(found.expect("found").lapse(clock.wall()), expected, "{text}");
    }
}

#[test]
fn a_disabled_consumer_is_not_known_by_its_claims() {
    let layout = layout();
    let claims = yaml::<Map<String, Value>>("{azp: app}");
    for (disabled, known) in [("false", true), ("true", false)] {
        let text = format!(
            "{{name: acme, disabled: {disabled}, match: [{{identity: corp, claim: azp, value: app}}]}}"
        );
        let index = Index::default().changed([], &[record(&layout, &text)]).expect("no clash");
        let matches = Matches::new(Arc::new(Consumers::new(layout.clone(), index)), "corp");
        assert_eq!(matches.find(&claims).is_ok_and(|found| found.is_some()), known);
    }
}

#[test]
fn an_identity_knows_consumers_by_sixteen_claims_and_those_that_nobody_has_any_more_do_not_count() {
    let layout = layout();
    let written = |consumer: usize, claim: usize| {
        format!("{{name: c{consumer}, match: [{{identity: corp, claim: claim{claim}, value: v{consumer}}}]}}")
    };
    let of = |consumer, claim| record(&layout, &written(consumer, claim));
    let all: Vec<_> = (0..16).map(|n| of(n, n)).collect();
    let index = Index::default().changed([], &all).expect("no clash");
    let clashes = index.changed([], &[of(16, 16)]).expect_err("one more");
    assert_eq!((clashes.len(), clashes[0].path.to_string()), (1, "match[0].claim".to_owned()));
    let index = index.changed([], &[of(16, 3)]).expect("there is such a claim");
    index.changed([], &[of(3, 16)]).expect_err("somebody else has the claim still");
    let index = index.changed(["c16"], &[of(3, 16)]).expect("nobody has the other claim any more");
    let corp = layout.number("corp").expect("there");
    assert_eq!(index.claims(corp).filter(|claim| ***claim == *"claim3").count(), 0);
    assert_eq!(index.claims(corp).count(), 16);
    // As in a document.
    let specs = (0..17).map(|n| yaml::<ConsumerSpec>(&written(n, n))).collect();
    let errors = crate::identity::index(&layout, specs).1;
    let told: Vec<String> = errors.iter().map(|error| format!("{}: {}", error.path, error.message)).collect();
    let why = "is of one claim more than the 16 by which an identity knows consumers";
    assert_eq!(told, [format!("[16].match[0].claim: consumers[16].match[0] {why}")]);
}

#[test]
fn consumers_with_the_same_groups_share_them() {
    let layout = layout();
    let mut clerk = Clerk::new(&layout);
    let mut record =
        |name: &str| clerk.record(yaml::<ConsumerSpec>(&format!("{{name: {name}, groups: [a, b]}}"))).0;
    let (one, other) = (record("acme"), record("globex"));
    assert!(Arc::ptr_eq(&one.consumer.groups, &other.consumer.groups));
}

#[test]
fn many_consumers_are_all_found_and_changed_one_by_one() {
    let layout = layout();
    let name = |n: usize| format!("c{n}");
    let of = |n: usize, key: &str| {
        record(
            &layout,
            &format!("{{name: c{n}, credentials: [{{type: api_key, id: k, hash: KEY({key}{n})}}]}}"),
        )
    };
    let all: Vec<_> = (0..3000).map(|n| of(n, "k")).collect();
    let mut index = Index::default().changed([], &all).expect("no clash");
    for n in (0..3000).step_by(7) {
        index = index.changed([], &[of(n, "new")]).expect("no clash");
    }
    assert_eq!((index.len(), index.iter().count()), (3000, 3000));
    for n in 0..3000 {
        let (old, new) = (format!("k{n}"), format!("new{n}"));
        let (live, dead) = if n % 7 == 0 { (new, old) } else { (old, new) };
        assert_eq!(owner(&index, &layout, &live), Some(name(n)));
        assert_eq!(owner(&index, &layout, &dead), None);
        assert!(index.get(&name(n)).is_some());
    }
}
