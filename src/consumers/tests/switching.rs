//! Disabling and enabling what is in a file, whatever happens to it meanwhile.

use super::*;

#[test]
fn switching_is_written_to_the_file_and_survives_reading_it_again() {
    let text = format!("{}{}", consumer("acme", ONE), consumer("globex", TWO));
    let place = Place::with(text.trim_end());
    place.roster.switch("acme", Some("k"), true).expect("written");
    place.roster.switch("globex", None, true).expect("written");
    assert_eq!((place.owner("key-one"), place.owner("key-two")), (None, None));
    assert_eq!(place.text().lines().count(), 4);
    place.roster.switch("globex", None, true).expect("is so already");
    assert_eq!(place.text().lines().count(), 4);
    let (again, faults) = read(&place.folder, &place.text());
    assert!(faults.file.list.is_empty(), "{}", faults.file);
    let place = Place { roster: again, ..place };
    assert_eq!((place.owner("key-one"), place.owner("key-two")), (None, None));
    place.roster.switch("acme", Some("k"), false).expect("written");
    assert_eq!(place.owner("key-one").as_deref(), Some("acme"));
    assert!(matches!(place.roster.switch("nobody", None, true), Err(WriteError::NoConsumer)));
    assert!(matches!(place.roster.switch("acme", Some("x"), true), Err(WriteError::NoCredential)));
}

#[test]
fn switching_works_on_a_file_that_changed_or_has_problems() {
    let place = Place::with(&consumer("acme", ONE));
    place.rename(&format!("\n{}{}", consumer("globex", TWO), consumer("acme", ONE)));
    place.roster.switch("acme", None, true).expect("read again, and written");
    assert_eq!((place.owner("key-one"), place.owner("key-two").as_deref()), (None, Some("globex")));
    place.append("nonsense\n");
    place.roster.switch("globex", None, true).expect("written");
    assert_eq!(place.owner("key-two"), None, "at once, although the file is refused");
    assert!(place.text().ends_with("\"disabled\":true}\n"));
}

#[test]
fn switching_works_on_a_file_whose_other_lines_were_broken_in_their_places() {
    let globex = consumer("globex", TWO);
    let lines = format!("{}{globex}{}", consumer("acme", ONE), consumer("initech", &"0".repeat(64)));
    // The last line, as long as before; one in between, shorter.
    for (right, broken) in [("{\"name\":\"initech\"", "[\"name\":\"initech\""), (&*globex, "nonsense\n")] {
        let place = Place::with(&lines);
        fs::write(place.file(), lines.replace(right, broken)).expect("written");
        place.roster.switch("acme", None, true).expect("written");
        let owners = (place.owner("key-one"), place.owner("key-two"));
        assert_eq!((owners.0, owners.1.as_deref()), (None, Some("globex")), "{broken}");
        // It is found by what its line says, however that is written.
        let newer = "1".repeat(64);
        place.append(&consumer("\\u0061cme", &newer));
        place.roster.switch("acme", None, true).expect("written");
        let text = place.text();
        let last = text.lines().next_back().expect("a line");
        assert!(last.contains(&newer) && last.ends_with("\"disabled\":true}"), "{last}");
    }
}

/// A consumer of the keys `key-one` and `key-two`, called `k1` and `k2`.
fn with_two_keys(name: &str) -> String {
    let key =
        |id: &str, hash: &str| format!("{{\"type\":\"api_key\",\"id\":\"{id}\",\"hash\":\"sha256:{hash}\"}}");
    format!("{{\"name\":\"{name}\",\"credentials\":[{},{}]}}\n", key("k1", ONE), key("k2", TWO))
}

#[test]
fn a_second_switch_leaves_the_first_one_as_it_is() {
    let line = with_two_keys("acme");
    // As files should be; with a line that is refused; without the last line break.
    for (lines, added) in [(line.as_str(), ""), (line.as_str(), "nonsense\n"), (line.trim_end(), "")] {
        let place = Place::with(lines);
        place.append(added);
        let switch = |credential: Option<&str>, disabled: bool| {
            place.roster.switch("acme", credential, disabled).expect("written");
            (place.owner("key-one").is_some(), place.owner("key-two").is_some())
        };
        let switches =
            [(Some("k1"), true), (Some("k2"), true), (None, true), (Some("k1"), false), (None, false)];
        let opens = switches.map(|(credential, disabled)| switch(credential, disabled));
        let expected = [(false, true), (false, false), (false, false), (false, false), (true, false)];
        assert_eq!(opens, expected, "{lines:?} {added:?}");
        let expected = line.trim_end().replace("\"}]}", "\",\"disabled\":true}]}");
        assert_eq!(place.text().lines().next_back(), Some(&*expected));
    }
}

#[test]
fn switching_starts_from_the_newest_line_that_is_right_taken_or_not() {
    let other = "0".repeat(64);
    let place = Place::with(&format!("{}{}", consumer("acme", ONE), consumer("globex", &other)));
    place.append("nonsense\n");
    place.append(&consumer("acme", TWO));
    // What nobody could take: no such plan, a key of another consumer's, no whole consumer.
    place.append("{\"name\":\"acme\",\"plan\":\"none\"}\n");
    place.append(&consumer("acme", &other));
    place.append("{\"name\":\"acme\"\n");
    place.roster.switch("acme", None, true).expect("written");
    assert_eq!((place.owner("key-one"), place.owner("key-two")), (None, None));
    place.roster.switch("acme", None, false).expect("written");
    assert_eq!((place.owner("key-one"), place.owner("key-two").as_deref()), (None, Some("acme")));
}

#[test]
fn switching_brings_nobody_back_whose_end_was_not_taken_yet() {
    let lines = format!("{}{}", consumer("acme", ONE), consumer("globex", TWO));
    let place = Place::with(&lines);
    place.append("nonsense\n{\"name\":\"acme\",\"deleted\":true}\n");
    assert!(matches!(place.roster.switch("acme", None, false), Err(WriteError::NoConsumer)));
    assert_eq!((place.owner("key-one"), place.owner("key-two").as_deref()), (None, Some("globex")));
    assert!(place.text().ends_with("\"deleted\":true}\n"));
}

#[test]
fn what_was_switched_in_a_file_that_is_taken_back_counts_no_longer() {
    let lines = format!("{}{}", consumer("acme", ONE), consumer("globex", TWO));
    let place = Place::with(&lines);
    place.append("nonsense\n{\"name\":\"globex\",\"deleted\":true}\n");
    place.roster.switch("acme", None, true).expect("written");
    assert!(matches!(place.roster.switch("globex", None, true), Err(WriteError::NoConsumer)));
    assert_eq!((place.owner("key-one"), place.owner("key-two")), (None, None));
    place.rename(&lines);
    assert_eq!(place.look(Look::Settled), "2 consumers");
    assert_eq!(
        (place.owner("key-one").as_deref(), place.owner("key-two").as_deref()),
        (Some("acme"), Some("globex"))
    );
}

#[test]
fn consumers_of_the_document_are_its_authors_to_change() {
    let list = ConsumerList::default();
    let (roster, _) = Roster::of(list, Layout::default(), None, None);
    assert!(matches!(roster.switch("acme", None, true), Err(WriteError::Inline)));
}

#[test]
fn nothing_is_written_behind_half_a_line_whose_writer_would_go_on_in_the_middle_of_it() {
    let (acme, globex) = (consumer("acme", ONE), consumer("globex", TWO));
    let (begin, end) = globex.split_at(40);
    let place = Place::with(&acme);
    place.append(begin);
    let before = place.text();
    assert!(matches!(place.roster.switch("acme", None, true), Err(WriteError::HalfLine)));
    assert_eq!((place.text(), place.owner("key-one").as_deref()), (before, Some("acme")));
    place.append(end);
    place.roster.switch("acme", None, true).expect("written");
    assert!(place.text().starts_with(&format!("{acme}{globex}")), "both lines are whole");
    assert_eq!((place.owner("key-one"), place.owner("key-two").as_deref()), (None, Some("globex")));
}

#[test]
fn who_is_switched_is_so_for_a_document_that_read_the_file_before_and_cannot_read_on_from_there() {
    let lines = format!("{}{}", consumer("acme", ONE), consumer("globex", TWO));
    let moved = format!("\n{lines}");
    let of_one_document = known_by("initech", "c").replace("corp", "other");
    let another = |place: &Place| place.rename(&moved);
    let in_its_place = |place: &Place| fs::write(place.file(), &moved).expect("written");
    let refused_by_the_next = |place: &Place| place.append(&of_one_document);
    let changes: [&dyn Fn(&Place); 3] = [&another, &in_its_place, &refused_by_the_next];
    for (at, change) in changes.into_iter().enumerate() {
        let place = Place::with(&lines);
        let (roster, _) = of(&place.folder, ", other: {type: jwt}", None);
        let place = Place { roster, ..place };
        let (next, faults) = of(&place.folder, "", Some(&place.roster));
        assert_eq!(faults.file.to_string(), "");
        change(&place);
        place.look(Look::Settled);
        place.roster.switch("acme", None, true).expect("written");
        // As a snapshot is put into use.
        next.look(Look::Early);
        next.catch_up_with(&place.roster);
        let next = Place { roster: next, ..place };
        let owners = (next.owner("key-one"), next.owner("key-two"));
        assert_eq!((owners.0, owners.1.as_deref()), (None, Some("globex")), "change {at}");
    }
}
