//! What a file of consumers comes to, and what its changes come to.

mod switching;

use std::fs::{self, OpenOptions};
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::time::{Duration, SystemTime};

use tempfile::TempDir;
use tollhouse_filters::identity::KeyHash;
use tollhouse_filters::identity::consumers::Key;
use tollhouse_filters::tree::{FileId, Limits, from_node_all, parse};

use super::*;
use crate::config::Document;

/// SHA-256 of `key-one`, `key-two` and `key-three`.
const ONE: &str = "9b346041bc9a49574eb2665b2ad2a0a3f9f9cce4e42f5d1f26deb8a256b5966a";
const TWO: &str = "c8df51469c308a59bfbd48a3e0bdd228ca922d6032035f5ef6e4ad45f473a9f3";

struct Place {
    folder: TempDir,
    roster: Arc<Roster>,
}

fn consumer(name: &str, hash: &str) -> String {
    format!(
        "{{\"name\":\"{name}\",\"credentials\":[{{\"type\":\"api_key\",\"id\":\"k\",\"hash\":\"sha256:{hash}\"}}]}}\n"
    )
}

/// A consumer that is known by a claim of this name.
fn known_by(name: &str, claim: &str) -> String {
    format!(
        "{{\"name\":\"{name}\",\"match\":[{{\"identity\":\"corp\",\"claim\":\"{claim}\",\"value\":\"v\"}}]}}\n"
    )
}

/// The roster of a document with these lines in its file, or what is wrong with them.
fn read(folder: &TempDir, text: &str) -> (Arc<Roster>, Faults) {
    fs::write(folder.path().join("consumers.jsonl"), text).expect("written");
    of(folder, "", None)
}

/// The roster of a document with further identities and the file in this folder, after another document's.
fn of(folder: &TempDir, identities: &str, kept: Option<&Arc<Roster>>) -> (Arc<Roster>, Faults) {
    let document = format!(
        "{{version: 1, consumers: {{file: consumers.jsonl}},
        identities: {{keys: {{type: api_key, from: [header:x-key]}}, corp: {{type: jwt}}{identities}}}}}"
    );
    let node = parse(&document, FileId(0), &Limits::default()).expect("YAML");
    let document: Document = from_node_all(&node).expect("a document");
    let layout = tollhouse_filters::identity::layout(&document.identities, &Default::default());
    Roster::of(document.consumers, layout, Some(folder.path()), kept)
}

impl Place {
    fn with(text: &str) -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let (roster, faults) = read(&folder, text);
        assert!(faults.document.is_empty() && faults.file.list.is_empty(), "{faults:?}");
        Self { folder, roster }
    }

    fn file(&self) -> PathBuf {
        self.folder.path().join("consumers.jsonl")
    }

    fn text(&self) -> String {
        fs::read_to_string(self.file()).expect("readable")
    }

    fn append(&self, text: &str) {
        let mut file = OpenOptions::new().append(true).open(self.file()).expect("there");
        file.write_all(text.as_bytes()).expect("written");
    }

    /// Puts another file in the place of this one.
    fn rename(&self, text: &str) {
        let next = self.folder.path().join("next");
        fs::write(&next, text).expect("written");
        fs::rename(next, self.file()).expect("renamed");
    }

    fn look(&self, look: Look) -> String {
        match self.roster.look(look) {
            Looked::Same => "same".to_owned(),
            Looked::Partly => "partly".to_owned(),
            Looked::Changed { count, .. } => format!("{count} consumers"),
            Looked::Busy => "busy".to_owned(),
            Looked::Unsettled => "unsettled".to_owned(),
            Looked::Refused { problems, .. } => {
                problems.to_string().replace(&format!("{}/", self.folder.path().display()), "")
            }
        }
    }

    /// Whom a key opens a door for.
    fn owner(&self, key: &str) -> Option<String> {
        let consumers = self.roster.consumers();
        let (index, keys) = (consumers.load(), consumers.layout().number("keys").expect("there"));
        let found = index.find(keys, Key::ApiKey(KeyHash::of(key.as_bytes())))?;
        let counts = found.lapse(SystemTime::UNIX_EPOCH).is_none();
        counts.then(|| found.consumer().name.to_string())
    }
}

#[test]
fn all_that_is_wrong_with_a_file_is_told_at_once_by_line_and_column() {
    let folder = tempfile::tempdir().expect("a folder");
    let text = format!(
        "{}\n{{\"name\": \"a\", \"grops\": []}}\n{{\"name\": \"b\", \"match\": [{{\"identity\": \"kyes\", \
         \"claim\": \"c\", \"value\": \"v\"}}]}}\n{}nonsense",
        consumer("acme", ONE),
        consumer("globex", TWO)
    );
    let (_, faults) = read(&folder, &text);
    let told = faults.file.to_string().replace(&format!("{}/", folder.path().display()), "");
    let expected = [
        "consumers.jsonl:3:15: grops: unknown key `grops` (did you mean `groups`?)",
        "consumers.jsonl:4:38: match[0].identity: no identity is named `kyes` (did you mean `keys`?)",
        "consumers.jsonl:6:2: expected a consumer as JSON in one line, such as `{\"name\": \"acme\"}`",
    ];
    assert_eq!(told.lines().collect::<Vec<_>>(), expected);
    let (_, faults) = read(&folder, &format!("{}{}", consumer("acme", ONE), consumer("globex", ONE)));
    let told = faults.file.to_string();
    assert!(told.ends_with(":2:1: credentials[0].hash: line 1: credentials[0] is the same key"), "{told}");
}

#[test]
fn an_identity_knows_consumers_by_sixteen_claims_whenever_they_came() {
    let sixteen: String = (0..16).map(|n| known_by(&format!("c{n}"), &format!("claim{n}"))).collect();
    let (place, more) = (Place::with(&sixteen), known_by("more", "another"));
    place.rename(&format!("{sixteen}{more}"));
    let told = place.look(Look::Settled);
    let why = "match[0] is of one claim more than the 16 by which an identity knows consumers";
    assert_eq!(told.trim_end(), format!("consumers.jsonl:17:1: match[0].claim: line 17: {why}"));
    // A claim that nobody has any more leaves room for another, and a start finds nothing else wrong either.
    let lines = format!("{sixteen}{{\"name\":\"c0\",\"deleted\":true}}\n{more}");
    place.rename(&lines);
    assert_eq!(place.look(Look::Settled), "16 consumers");
    let (_, faults) = read(&place.folder, &lines);
    assert!(faults.file.list.is_empty(), "{}", faults.file);
}

#[test]
fn many_problems_are_counted_rather_than_told() {
    let folder = tempfile::tempdir().expect("a folder");
    let (_, faults) = read(&folder, &"x\n".repeat(1000));
    assert_eq!(faults.file.list.len(), 101);
    assert!(faults.file.to_string().ends_with("900 more problems are not shown"));
}

#[test]
fn a_file_that_is_not_there_is_a_problem() {
    let folder = tempfile::tempdir().expect("a folder");
    let (roster, _) = read(&folder, "");
    fs::remove_file(folder.path().join("consumers.jsonl")).expect("removed");
    let Looked::Refused { problems, again: false, unread: true } = roster.look(Look::Settled) else {
        panic!("read")
    };
    assert!(problems.to_string().contains("cannot read"), "{problems}");
    assert!(matches!(roster.look(Look::Settled), Looked::Refused { again: true, .. }));
}

#[test]
fn a_file_that_can_be_read_again_and_is_as_it_was_is_no_problem_any_more() {
    let place = Place::with(&consumer("acme", ONE));
    let file = OpenOptions::new().write(true).open(place.file()).expect("there");
    file.set_modified(SystemTime::now() - Duration::from_secs(60)).expect("set");
    place.look(Look::Settled);
    assert_eq!(place.look(Look::Settled), "same");
    let aside = place.folder.path().join("aside");
    fs::rename(place.file(), &aside).expect("renamed");
    assert!(place.look(Look::Settled).contains("cannot read"));
    assert!(place.roster.refused().is_some());
    fs::rename(&aside, place.file()).expect("renamed");
    assert_eq!((place.look(Look::Settled).as_str(), place.roster.refused()), ("same", None));
}

#[test]
fn later_lines_win_and_end_consumers() {
    let place = Place::with(&format!(
        "{}{}{{\"name\":\"globex\",\"deleted\":true}}\n",
        consumer("acme", ONE),
        consumer("globex", TWO)
    ));
    assert_eq!((place.owner("key-one").as_deref(), place.owner("key-two")), (Some("acme"), None));
    place.append(&consumer("acme", TWO));
    assert_eq!(place.look(Look::Early), "1 consumers");
    assert_eq!((place.owner("key-one"), place.owner("key-two").as_deref()), (None, Some("acme")));
    // The line from before counts again once the later one is gone.
    place.rename(&consumer("acme", ONE));
    assert_eq!(place.look(Look::Settled), "1 consumers");
    assert_eq!((place.owner("key-one").as_deref(), place.owner("key-two")), (Some("acme"), None));
}

#[test]
fn a_line_at_the_end_counts_once_it_is_whole() {
    let place = Place::with(&consumer("acme", ONE));
    let line = consumer("globex", TWO);
    let (begin, end) = line.split_at(40);
    place.append(begin);
    assert_eq!(place.look(Look::Early), "partly");
    place.append(end);
    assert_eq!(
        (place.look(Look::Early).as_str(), place.owner("key-two").as_deref()),
        ("2 consumers", Some("globex"))
    );
    place.append("{\"name\":\"acme\",\"deleted\":true}");
    assert_eq!((place.look(Look::Early).as_str(), place.owner("key-one")), ("1 consumers", None));
    place.append("\n{\"name\":\"globex\",\"del");
    assert_eq!(place.look(Look::Early), "unsettled");
    let told = place.look(Look::Settled);
    assert!(told.starts_with("consumers.jsonl:4:"), "{told}");
    assert_eq!(place.owner("key-two").as_deref(), Some("globex"), "what was good counts on");
}

#[test]
fn a_consumer_is_changed_in_its_place() {
    let place = Place::with(&format!("{}{}", consumer("acme", ONE), consumer("globex", TWO)));
    let file = OpenOptions::new().write(true).open(place.file()).expect("there");
    let at = place.text().find(ONE).expect("there");
    file.write_all_at(b"00", u64::try_from(at).expect("short")).expect("written");
    file.set_modified(SystemTime::now() - PAUSE).expect("set");
    assert_eq!(place.look(Look::Early), "2 consumers");
    assert_eq!((place.owner("key-one"), place.owner("key-two").as_deref()), (None, Some("globex")));
}

#[test]
fn what_changes_in_its_place_beside_a_line_at_the_end_is_seen_by_the_next_whole_look() {
    let initech = known_by("initech", "c");
    for (added, looks) in [(&*initech, ["3 consumers"; 2]), ("\n", ["partly", "2 consumers"])] {
        let place = Place::with(&format!("{}{}", consumer("acme", ONE), consumer("globex", TWO)));
        let file = OpenOptions::new().write(true).open(place.file()).expect("there");
        let at = place.text().find(ONE).expect("there");
        file.write_all_at(b"00", u64::try_from(at).expect("short")).expect("written");
        place.append(added);
        file.set_modified(SystemTime::now() - Duration::from_secs(60)).expect("set");
        assert_eq!([Look::Settled, Look::Quiet].map(|look| place.look(look)), looks);
        assert_eq!(place.owner("key-one"), None);
    }
}

#[test]
fn a_file_that_is_written_in_the_middle_is_left_alone_for_as_long() {
    let place = Place::with(&consumer("acme", ONE));
    let file = OpenOptions::new().write(true).open(place.file()).expect("there");
    // A look may come later than meant.
    let is_left = (0..1000).any(|_| {
        file.set_modified(SystemTime::now()).expect("set");
        place.look(Look::Early) == "busy"
    });
    assert!(is_left);
    file.set_modified(SystemTime::now() + QUIET).expect("set");
    assert_eq!(place.look(Look::Early), "same", "a time to come tells nothing");
}

#[test]
fn a_file_that_is_being_written_anew_is_left_alone_until_that_is_done() {
    let place = Place::with(&format!("{}{}", consumer("acme", ONE), consumer("globex", TWO)));
    let file = OpenOptions::new().write(true).truncate(true).open(place.file()).expect("there");
    assert_eq!(place.look(Look::Early), "unsettled");
    assert_eq!(place.look(Look::Quiet), "unsettled", "the writer may go on");
    assert_eq!(place.owner("key-one").as_deref(), Some("acme"));
    (&file).write_all(consumer("acme", ONE).as_bytes()).expect("written");
    drop(file);
    assert_eq!(place.look(Look::Settled), "1 consumers");
    assert_eq!((place.owner("key-one").as_deref(), place.owner("key-two")), (Some("acme"), None));
}

#[test]
fn a_shorter_file_in_its_place_is_left_alone_until_it_is_clear_that_no_more_comes() {
    let place = Place::with(&format!("{}{}", consumer("acme", ONE), consumer("globex", TWO)));
    fs::rename(place.file(), place.file().with_extension("bak")).expect("renamed");
    fs::write(place.file(), consumer("globex", TWO)).expect("written");
    let file = OpenOptions::new().write(true).open(place.file()).expect("there");
    file.set_modified(SystemTime::now() - QUIET).expect("set");
    assert_eq!(
        (place.look(Look::Early).as_str(), place.look(Look::Quiet).as_str()),
        ("unsettled", "unsettled")
    );
    assert_eq!(place.owner("key-one").as_deref(), Some("acme"));
    assert_eq!(place.look(Look::Settled), "1 consumers");
}

#[test]
fn a_file_that_was_emptied_is_left_alone_until_it_is_clear_that_nothing_comes() {
    let place = Place::with(&consumer("acme", ONE));
    fs::write(place.file(), "").expect("written");
    assert_eq!(place.look(Look::Settled), "unsettled");
    assert_eq!(place.look(Look::Quiet), "unsettled");
    assert_eq!(place.owner("key-one").as_deref(), Some("acme"));
    let long_ago = SystemTime::now() - Duration::from_secs(11);
    let file = OpenOptions::new().write(true).open(place.file()).expect("there");
    file.set_modified(long_ago).expect("set");
    assert_eq!(place.look(Look::Quiet), "0 consumers");
    assert_eq!(place.owner("key-one"), None);
}

#[test]
fn another_document_does_not_begin_with_half_a_file() {
    let place = Place::with(&format!("{}{}", consumer("acme", ONE), consumer("globex", TWO)));
    let other = || of(&place.folder, ", other: {type: jwt}", Some(&place.roster));
    let next = || {
        let (roster, faults) = other();
        assert_eq!(faults.file.to_string(), "");
        roster.consumers().load().len()
    };
    // This process may be held up for longer than a writer is waited for.
    let is_left = |write: &dyn Fn()| {
        (0..100).any(|_| {
            write();
            is_passing(&other().1.file)
        })
    };
    // Both are there.
    assert_eq!(next(), 2);
    let half_a_line = || {
        place.append("{");
        assert_eq!(place.look(Look::Early), "partly", "it was seen");
    };
    assert!(is_left(&half_a_line));
    assert!(is_left(&|| fs::write(place.file(), consumer("acme", ONE)).expect("begun anew")));
    assert_eq!(other().1.file.inputs, [place.file()], "it is watched");
    let file = OpenOptions::new().write(true).open(place.file()).expect("there");
    file.set_modified(SystemTime::now() - Duration::from_secs(11)).expect("set");
    assert_eq!(next(), 1, "no more comes");
    // Written anew, it may be longer than it was, and go on.
    let lines = format!("{}{}{}", known_by("initech", "c"), consumer("acme", ONE), consumer("globex", TWO));
    assert!(is_left(&|| fs::write(place.file(), &lines).expect("written")));
    file.set_modified(SystemTime::now() - QUIET).expect("set");
    assert_eq!(next(), 3, "its writer is silent");
    // What was whole may be wrong for the document from before.
    let line = known_by("initech", "c").replace("corp", "other");
    assert!(is_left(&|| fs::write(place.file(), &line).expect("written")));
    assert!(place.look(Look::Settled).contains("no identity is named `other`"));
    assert_eq!(next(), 1);
}

#[test]
fn a_change_within_a_tick_of_the_clock_is_seen() {
    let place = Place::with(&consumer("acme", ONE));
    let file = OpenOptions::new().write(true).open(place.file()).expect("there");
    let at = u64::try_from(place.text().find(ONE).expect("there")).expect("short");
    // However long this takes, the time is not past the tick.
    let modified = SystemTime::now() + Duration::from_secs(60);
    for (bytes, owner) in [(&b"00"[..], None), (&ONE.as_bytes()[..2], Some("acme"))] {
        file.write_all_at(bytes, at).expect("written");
        file.set_modified(modified).expect("set");
        place.look(Look::Settled);
        assert_eq!(place.owner("key-one").as_deref(), owner);
    }
}

#[test]
fn what_is_refused_changes_nothing_until_it_is_mended() {
    let place = Place::with(&consumer("acme", ONE));
    place.rename(&format!("{}{{\"name\":\"acme\",\"deleted\":true}}\n{{\n", consumer("globex", TWO)));
    let told = place.look(Look::Settled);
    assert!(told.starts_with("consumers.jsonl:3:"), "{told}");
    assert_eq!(place.owner("key-one").as_deref(), Some("acme"));
    assert_eq!(place.roster.refused().map(|problems| problems.list.len()), Some(1));
    place.rename(&format!("{}{}", consumer("globex", TWO), consumer("initech", TWO)));
    assert!(place.look(Look::Settled).contains("is the same key"));
    place.rename(&consumer("globex", TWO));
    assert_eq!(place.look(Look::Settled), "1 consumers");
    assert_eq!((place.owner("key-one"), place.roster.refused()), (None, None));
    assert_eq!(place.roster.counts(), (2, 2));
}
