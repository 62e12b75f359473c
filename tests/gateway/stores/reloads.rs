//! Stores over reloads, and in dry runs.

use std::net::TcpListener;
use std::os::unix::net::UnixListener;
use std::process::Command;

use crate::harness::{Gateway, Origin, Redis, Wire, get, soon, until};

fn document(url: &str, store: &str, generation: usize) -> String {
    format!(
        "stores: {{main: {{type: redis, url: \"{url}\", timeout: 1s, {store}}}}}\n\
         routes:\n\
         - {{name: generation, match: {{paths: [/generation]}}, respond: {{body: \"{generation}\"}}}}\n\
         - {{name: all, filters: [{{rate_limit: {{per: ip, limit: 3/h, store: main}}}}], respond: {{}}}}\n"
    )
}

/// A limit of ten units that are taken at once.
fn leased(url: &str, store: &str, generation: usize) -> String {
    document(url, store, generation)
        .replace("limit: 3/h, store: main", "limit: 2/h, burst: 10, store: main, lease: 10")
}

async fn reloaded(gateway: &Gateway, rest: &str, generation: usize) {
    std::fs::write(gateway.file(), gateway.text(rest)).expect("written");
    serves(gateway, generation).await;
}

async fn serves(gateway: &Gateway, generation: usize) {
    soon("the new document", async {
        while get(gateway.address(), "/generation").await.text() != generation.to_string() {
            tokio::time::sleep(std::time::Duration::from_millis(5)).await;
        }
    })
    .await;
}

#[tokio::test]
async fn a_store_keeps_its_connection_unless_it_changes() {
    let redis = Redis::start().await;
    let gateway = Gateway::start(&document(&redis.url(), "", 0)).await;
    gateway.says("a store is there store=main").await;
    let before = redis.clients();
    assert_eq!(before.len(), 1);
    reloaded(&gateway, &document(&redis.url(), "", 1), 1).await;
    assert_eq!(redis.clients(), before, "nothing changed in the store");
    assert_eq!(gateway.said("a store is"), 1);

    reloaded(&gateway, &document(&redis.url(), "prefix: other", 2), 2).await;
    until("the old connection's end", || {
        let now = redis.clients();
        (now.len() == 1 && now != before).then_some(())
    })
    .await;
    assert_eq!(get(gateway.address(), "/").await.status, 200);
    let keys: Vec<String> = redis.ask(&["KEYS", "other:0:*"]);
    assert!(!keys.is_empty());

    let rest = "routes: [{name: generation, match: {paths: [/generation]}, respond: {body: \"3\"}}]\n";
    reloaded(&gateway, rest, 3).await;
    until("no connection", || redis.clients().is_empty().then_some(())).await;
}

#[tokio::test]
async fn units_that_were_taken_in_advance_outlive_a_reload() {
    let redis = Redis::start().await;
    let leased = |generation| leased(&redis.url(), "", generation);
    let gateway = Gateway::start(&leased(0)).await;
    gateway.says("a store is there store=main").await;
    for generation in 1..=9 {
        assert_eq!(get(gateway.address(), "/").await.status, 200, "{generation}");
        reloaded(&gateway, &leased(generation), generation).await;
    }
    assert_eq!(get(gateway.address(), "/").await.status, 200, "all ten were held");
    assert_eq!(get(gateway.address(), "/").await.status, 429);
}

#[tokio::test]
async fn units_of_one_store_say_nothing_of_those_of_another() {
    let redis = Redis::start().await;
    let gateway = Gateway::start(&leased(&redis.url(), "", 0)).await;
    gateway.says("a store is there store=main").await;
    for _ in 0..10 {
        assert_eq!(get(gateway.address(), "/").await.status, 200);
    }
    assert_eq!(get(gateway.address(), "/").await.status, 429);
    reloaded(&gateway, &leased(&redis.url(), "prefix: other", 1), 1).await;
    assert_eq!(get(gateway.address(), "/").await.status, 200);
}

#[tokio::test]
async fn what_is_too_little_for_a_request_may_be_enough_for_one_that_costs_less_after_a_reload() {
    let redis = Redis::start().await;
    let costing = |cost: u32, generation| {
        let limit = format!("limit: 2/h, burst: 11, cost: {cost}, store: main, lease: 9");
        document(&redis.url(), "", generation).replace("limit: 3/h, store: main", &limit)
    };
    let gateway = Gateway::start(&costing(3, 0)).await;
    gateway.says("a store is there store=main").await;
    for status in [200, 200, 200, 429, 429] {
        assert_eq!(get(gateway.address(), "/").await.status, status, "nine were held, and two are left");
    }
    reloaded(&gateway, &costing(1, 1), 1).await;
    for status in [200, 200, 429] {
        assert_eq!(get(gateway.address(), "/").await.status, status, "the two that are left");
    }
}

#[tokio::test]
async fn what_becomes_of_a_store_that_was_replaced_is_no_news_of_the_one_in_its_place() {
    let (mut old, new) = (Redis::start().await, Redis::start().await);
    let (origin, mut taken) = Origin::handing_over().await;
    let text = |redis: &Redis, generation| {
        format!(
            "upstreams: [{{name: slow, backends: [{{address: \"{}\"}}]}}]\n{}\
             - {{name: slow, match: {{paths: [/slow]}}, upstream: slow}}\n",
            origin.address,
            document(&redis.url(), "", generation)
        )
    };
    let gateway = Gateway::administered(&text(&old, 0)).await;
    gateway.says("a store is there store=main").await;
    // As long as it is not answered, it has what it began with.
    let mut client = Wire::connect(gateway.address()).await;
    client.send("GET /slow HTTP/1.1\r\nHost: example.test\r\n\r\n").await;
    let mut server = soon("a connection", taken.recv()).await.expect("a connection");
    server.head().await.expect("a request");
    gateway.rewrite_administered(&text(&new, 1));
    serves(&gateway, 1).await;

    let url = old.url();
    let socket = url.strip_prefix("unix://").expect("a socket");
    old.kill();
    let _ = std::fs::remove_file(socket);
    let absent = UnixListener::bind(socket).expect("a socket");
    absent.set_nonblocking(true).expect("a socket");
    // Before the second attempt to connect the first one has failed.
    for _ in 0..2 {
        until("an attempt to connect", || absent.accept().ok()).await;
    }
    let metrics = gateway.ask_admin("GET /metrics", "").await.text();
    assert!(metrics.contains("tollhouse_store_up{store=\"main\"} 1"), "{metrics}");
    assert_eq!(gateway.said("a store is away"), 0);
}

#[tokio::test]
async fn a_document_that_is_refused_connects_to_nothing() {
    let (redis, other) = (Redis::start().await, TcpListener::bind("127.0.0.1:0").expect("a port"));
    other.set_nonblocking(true).expect("a socket");
    let gateway = Gateway::start(&document(&redis.url(), "", 0)).await;
    let url = format!("redis://{}", other.local_addr().expect("an address"));
    let failing = "tests: [{name: a, request: {path: /generation}, expect: {status: 418}}]\n";
    std::fs::write(gateway.file(), gateway.text(&format!("{}{failing}", document(&url, "", 1))))
        .expect("written");
    gateway.says("the changed configuration is refused").await;
    assert!(other.accept().is_err(), "somebody connected");
}

#[test]
fn check_test_and_explain_reach_no_store() {
    let store = TcpListener::bind("127.0.0.1:0").expect("a port");
    store.set_nonblocking(true).expect("a socket");
    let url = format!("redis://{}", store.local_addr().expect("an address"));
    let tests = "tests:\n- {name: a, request: {path: /, times: 3}, expect: {status: 200, headers: {ratelimit: {regex: '.*r=0.*'}}}}\n\
                 - {name: b, request: {path: /, times: 4}, expect: {status: 429}}\n";
    let text = format!(
        "version: 1\nlisteners: [{{name: main, address: \"127.0.0.1:0\"}}]\n{}{tests}",
        document(&url, "on_failure: closed", 0)
    );
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("tollhouse.yaml");
    std::fs::write(&file, text).expect("written");
    let file = file.to_str().expect("UTF-8");
    for arguments in
        [&["check", file][..], &["test", file], &["explain", "-c", file, "GET", "http://localhost/"]]
    {
        let output = Command::new(env!("CARGO_BIN_EXE_tollhouse")).args(arguments).output().expect("it runs");
        assert!(output.status.success(), "{arguments:?}: {output:?}");
        assert!(store.accept().is_err(), "{arguments:?} connected");
    }
}
