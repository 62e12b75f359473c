//! Consumers in a file of their own, over sockets: changes are live without a reload.

use std::fs::File;
use std::io::Write;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;

use tempfile::TempDir;

use crate::harness::{Gateway, request, soon, until};

/// SHA-256 of `key-one` and `key-two`.
const ONE: &str = "9b346041bc9a49574eb2665b2ad2a0a3f9f9cce4e42f5d1f26deb8a256b5966a";
const TWO: &str = "c8df51469c308a59bfbd48a3e0bdd228ca922d6032035f5ef6e4ad45f473a9f3";

const DOCUMENT: &str = "identities: {keys: {type: api_key, from: [header:x-key]}}
consumers: {file: consumers.jsonl}
routes: [{name: r, filters: [{authenticate: {any_of: [keys]}}], respond: {body: in}}]
";

fn consumer(name: &str, hash: &str) -> String {
    format!(
        "{{\"name\":\"{name}\",\"credentials\":[{{\"type\":\"api_key\",\"id\":\"k\",\"hash\":\"sha256:{hash}\"}}]}}\n"
    )
}

/// A gateway with these lines in its consumers' file, and the file.
async fn started(lines: &str) -> (Gateway, PathBuf) {
    let directory = TempDir::new().expect("a temporary directory");
    let file = directory.path().join("consumers.jsonl");
    std::fs::write(&file, lines).expect("written");
    let listeners = "{name: plain, address: \"127.0.0.1:0\"}";
    (Gateway::within(directory, listeners, DOCUMENT).await, file)
}

async fn status(address: SocketAddr, key: &str) -> u16 {
    request(address, "GET /", &format!("X-Key: {key}\r\n")).await.status
}

async fn is_soon(gateway: &Gateway, key: &str, expected: u16) {
    soon("the change", async { while status(gateway.address(), key).await != expected {} }).await;
}

fn append(file: &Path, text: &str) {
    let mut file = std::fs::OpenOptions::new().append(true).open(file).expect("there");
    file.write_all(text.as_bytes()).expect("written");
}

#[tokio::test]
async fn a_line_at_the_end_of_the_file_ends_a_consumer_without_a_reload() {
    let (gateway, file) = started(&consumer("acme", ONE)).await;
    assert_eq!(status(gateway.address(), "key-one").await, 200);
    append(&file, &consumer("globex", TWO));
    is_soon(&gateway, "key-two", 200).await;
    append(&file, "{\"name\":\"acme\",\"deleted\":true}\n");
    is_soon(&gateway, "key-one", 401).await;
    assert_eq!(status(gateway.address(), "key-two").await, 200);
    assert_eq!(gateway.said("configuration reloaded"), 0);
}

#[tokio::test]
async fn another_file_in_the_place_of_the_first_counts_unless_it_has_problems() {
    let (gateway, file) = started(&consumer("acme", ONE)).await;
    let next = file.with_file_name("next");
    std::fs::write(&next, format!("{}nonsense\n", consumer("acme", TWO))).expect("written");
    std::fs::rename(&next, &file).expect("renamed");
    until("the refusal", || (gateway.said("consumers.jsonl:2:") == 1).then_some(())).await;
    assert_eq!(
        (status(gateway.address(), "key-one").await, status(gateway.address(), "key-two").await),
        (200, 401)
    );
    std::fs::write(&next, consumer("acme", TWO)).expect("written");
    std::fs::rename(&next, &file).expect("renamed");
    is_soon(&gateway, "key-two", 200).await;
    assert_eq!(status(gateway.address(), "key-one").await, 401);
}

#[tokio::test]
async fn a_file_written_anew_in_its_place_counts_when_it_is_whole() {
    let (gateway, file) = started(&format!("{}{}", consumer("acme", ONE), consumer("globex", TWO))).await;
    std::fs::write(&file, consumer("globex", TWO)).expect("written");
    is_soon(&gateway, "key-one", 401).await;
    assert_eq!(status(gateway.address(), "key-two").await, 200);
}

#[tokio::test]
async fn another_document_waits_until_a_file_that_is_written_anew_is_whole() {
    let (gateway, file) = started(&format!("{}{}", consumer("acme", ONE), consumer("globex", TWO))).await;
    let mut writer = File::create(&file).expect("begun anew");
    writer.write_all(consumer("acme", ONE).as_bytes()).expect("written");
    let document = DOCUMENT.replace("identities: {", "identities: {people: {type: basic}, ");
    gateway.rewrite("{name: plain, address: \"127.0.0.1:0\"}", &document);
    until("the refusal", || (gateway.said("more of it may be still to come") > 0).then_some(())).await;
    assert_eq!(status(gateway.address(), "key-two").await, 200, "more may come");
    drop(writer);
    until("the reload", || (gateway.said("configuration reloaded") == 1).then_some(())).await;
    assert_eq!(
        (status(gateway.address(), "key-one").await, status(gateway.address(), "key-two").await),
        (200, 401)
    );
}

/// Lets the gateway open no more than so many files.
fn limit_files(gateway: &Gateway, most: u32) {
    let mut command = Command::new("prlimit");
    command.arg("--pid").arg(gateway.pid().to_string()).arg(format!("--nofile={most}:"));
    assert!(command.status().expect("prlimit runs").success());
}

#[tokio::test]
async fn a_file_that_cannot_be_read_for_a_moment_is_looked_at_again() {
    let directory = TempDir::new().expect("a temporary directory");
    // Apart from the document, which is not to be read again.
    let folder = directory.path().join("people");
    std::fs::create_dir(&folder).expect("made");
    let file = folder.join("consumers.jsonl");
    std::fs::write(&file, consumer("acme", ONE)).expect("written");
    let document = DOCUMENT.replace("consumers.jsonl", "people/consumers.jsonl");
    let gateway = Gateway::within(directory, "{name: plain, address: \"127.0.0.1:0\"}", &document).await;
    assert_eq!(status(gateway.address(), "key-one").await, 200);
    limit_files(&gateway, 3);
    append(&file, "{\"name\":\"acme\",\"deleted\":true}\n");
    let refused = |line: &String| line.contains("consumers.jsonl") && line.contains("Too many open files");
    until("the refusal", || gateway.stderr().iter().any(refused).then_some(())).await;
    limit_files(&gateway, 1024);
    is_soon(&gateway, "key-one", 401).await;
}

#[tokio::test]
async fn half_a_line_at_the_end_is_told_though_nobody_writes_on() {
    let (gateway, file) = started(&consumer("acme", ONE)).await;
    append(&file, "{\"name\":\"acme\",\"deleted\":tr");
    until("the refusal", || (gateway.said("consumers.jsonl:2:") == 1).then_some(())).await;
    assert_eq!(status(gateway.address(), "key-one").await, 200);
    append(&file, "ue}\n");
    is_soon(&gateway, "key-one", 401).await;
}
