//! Backends that a registry tells: a real DNS server on loopback, and a file.

use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::time::Duration;

use serde_json::{Value, json};
use tempfile::TempDir;

use crate::harness::{Dns, Gateway, Origin, Reply, Wire, get, soon, until};

const LISTENER: &str = "{name: plain, address: \"127.0.0.1:0\"}";

/// A document with one upstream of this discovery.
pub(crate) fn document(before: &str, discovery: &Value, further: &str) -> String {
    format!(
        "{before}upstreams: [{{name: users, discovery: {discovery}{further}}}]\n\
         routes: [{{name: all, upstream: users}}]\n"
    )
}

/// Who answers, sorted, of twelve requests; each is answered with 200.
pub(crate) async fn answering(gateway: &Gateway) -> Vec<String> {
    let mut texts = Vec::new();
    for _ in 0..12 {
        let answer = get(gateway.address(), "/").await;
        assert_eq!(answer.status, 200, "{answer:?}");
        texts.push(answer.text());
    }
    texts.sort();
    texts.dedup();
    texts
}

/// Asks until these answer, and nobody else.
pub(crate) async fn become_these(gateway: &Gateway, wanted: &[&str]) {
    soon(&wanted.join(" and "), async {
        while answering(gateway).await != wanted {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    })
    .await;
}

/// Asks until this status comes.
pub(crate) async fn becomes_status(gateway: &Gateway, status: u16) {
    soon("the status", async {
        while get(gateway.address(), "/").await.status != status {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    })
    .await;
}

pub(crate) async fn view(gateway: &Gateway) -> Value {
    gateway.ask_admin("GET /api/upstreams/users", "").await.json()
}

fn loopback(last: &[u8]) -> Vec<IpAddr> {
    last.iter().map(|last| IpAddr::from([127, 0, 0, *last])).collect()
}

#[tokio::test]
async fn each_address_of_a_name_is_a_backend_and_the_last_ones_are_kept_while_dns_fails() {
    let (dns, (one, _two)) = (Dns::start().await, Origin::twins(["one", "two"]).await);
    dns.set("users.test", Reply::Addresses(loopback(&[1, 2]), 1));
    let discovery = json!({"type": "dns", "name": "users.test", "port": one.address.port()});
    let gateway = Gateway::administered(&document(&dns.server(), &discovery, "")).await;
    assert_eq!(answering(&gateway).await, ["one", "two"], "known before the first request");
    let shown = view(&gateway).await;
    assert_eq!(shown["backends"].as_array().map(Vec::len), Some(2), "{shown}");
    assert_eq!((&shown["discovery"]["type"], &shown["discovery"]["up"]), (&json!("dns"), &json!(true)));

    dns.set("users.test", Reply::Addresses(loopback(&[2]), 1));
    become_these(&gateway, &["two"]).await;
    dns.set("users.test", Reply::Failure);
    let line = gateway.says("cannot follow a registry; keeping the last backends").await;
    assert!(line.contains(" WARN ") && line.contains("users"), "{line}");
    assert_eq!(answering(&gateway).await, ["two"]);
    let shown = view(&gateway).await;
    assert_eq!(shown["discovery"]["up"], false);
    assert!(shown["discovery"]["age"].is_u64() && shown["discovery"]["error"].is_string(), "{shown}");

    dns.set("users.test", Reply::Addresses(loopback(&[1]), 1));
    become_these(&gateway, &["one"]).await;
    gateway.says("a registry is followed again").await;
}

#[tokio::test]
async fn a_name_that_is_gone_has_no_backends_unless_the_last_ones_are_to_be_kept() {
    let (dns, (one, _two)) = (Dns::start().await, Origin::twins(["one", "two"]).await);
    dns.set("users.test", Reply::Addresses(loopback(&[1]), 1));
    let port = one.address.port();
    for keep in [false, true] {
        dns.set("users.test", Reply::Addresses(loopback(&[1]), 1));
        let discovery =
            json!({"type": "dns", "name": "users.test", "port": port, "keep_last_on_empty": keep});
        let gateway = Gateway::start(&document(&dns.server(), &discovery, "")).await;
        assert_eq!(answering(&gateway).await, ["one"]);
        dns.remove("users.test");
        if keep {
            gateway.says("keeping the last ones").await;
            assert_eq!(answering(&gateway).await, ["one"]);
        } else {
            becomes_status(&gateway, 503).await;
            let answer = get(gateway.address(), "/").await;
            assert_eq!(answer.problem(), "no-backend");
            assert_eq!(answer.json()["detail"], "no backend takes requests");
        }
    }
}

#[tokio::test]
async fn service_records_tell_targets_ports_weights_and_priorities() {
    let dns = Dns::start().await;
    let (one, two) = (Origin::saying("127.0.0.1:0", "one").await, Origin::saying("127.0.0.1:0", "two").await);
    let spare = Origin::saying("127.0.0.1:0", "spare").await;
    let [first, second, third] = [&one, &two, &spare].map(|origin| origin.address.port());
    for name in ["a.test", "b.test"] {
        dns.set(name, Reply::Addresses(loopback(&[1]), 60));
    }
    let name = "_http._tcp.users.test";
    let services = vec![(10, 3, first, "a.test."), (10, 1, second, "b.test."), (20, 1, third, "a.test.")];
    dns.set(name, Reply::Services(services, 1));
    let discovery = json!({"type": "dns_srv", "name": name});
    let gateway = Gateway::administered(&document(&dns.server(), &discovery, "")).await;
    assert_eq!(answering(&gateway).await, ["one", "two"], "the spare one is for later");
    let mut ones = 0;
    for _ in 0..40 {
        ones += usize::from(get(gateway.address(), "/").await.text() == "one");
    }
    assert_eq!(ones, 30, "by weight");
    let shown = view(&gateway).await;
    assert_eq!(shown["backends"][0]["address"], format!("a.test:{}", first.min(third)));

    // The last one whose group is usable gets what there is.
    dns.set(name, Reply::Services(vec![(20, 1, third, "a.test.")], 1));
    become_these(&gateway, &["spare"]).await;
    // A target of "." says that there is decidedly no such service (RFC 2782).
    dns.set(name, Reply::Services(vec![(0, 0, 0, ".")], 1));
    becomes_status(&gateway, 503).await;
}

#[tokio::test]
async fn a_registry_is_asked_at_the_addresses_of_its_name_that_are_there() {
    let (dns, one) = (Dns::start().await, Origin::saying("127.0.0.1:0", "one").await);
    let listed = json!({"hosts": [{"ip": "127.0.0.1", "port": one.address.port()}]}).to_string();
    let listed: &'static str = listed.leak();
    let (near, _there) = Origin::twins([listed, listed]).await;
    let port = near.address.port();
    // Nobody is at the first and the last.
    dns.set("nacos.test", Reply::Addresses(loopback(&[3, 2, 4]), 60));
    let discovery = json!({
        "type": "nacos", "address": format!("http://nacos.test:{port}"), "service": "users", "api": "v1",
        "interval": "1s",
    });
    let gateway = Gateway::administered(&document(&dns.server(), &discovery, "")).await;
    assert_eq!(answering(&gateway).await, ["one"], "known before the first request");
    let told = view(&gateway).await["discovery"]["told"].clone();
    soon("another question", async {
        while view(&gateway).await["discovery"]["told"] == told {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    })
    .await;
    assert_eq!(gateway.said("cannot follow a registry"), 0);
}

/// Puts a file in the place of another, at once.
fn replace(path: &Path, text: &str) {
    let new = path.with_extension("new");
    std::fs::write(&new, text).expect("written");
    std::fs::rename(&new, path).expect("renamed");
}

fn listing(addresses: &[SocketAddr]) -> String {
    addresses.iter().map(|address| format!("- {{address: \"{address}\"}}\n")).collect()
}

fn in_file() -> Value {
    json!({"type": "file", "path": "users.yaml", "interval": "100ms"})
}

#[tokio::test]
async fn a_file_is_followed_and_what_cannot_be_read_keeps_the_last_backends() {
    let (one, two) = (Origin::saying("127.0.0.1:0", "one").await, Origin::saying("127.0.0.1:0", "two").await);
    let folder = TempDir::new().expect("a folder");
    let file = folder.path().join("users.yaml");
    std::fs::write(&file, listing(&[one.address])).expect("written");
    let gateway = Gateway::within(folder, LISTENER, &document("", &in_file(), "")).await;
    assert_eq!(answering(&gateway).await, ["one"]);
    replace(&file, &listing(&[one.address, two.address]));
    become_these(&gateway, &["one", "two"]).await;

    for broken in ["- {address: \"127.0.", "", "- adress: a.test:80\n"] {
        let said = gateway.said("keeping the last backends");
        std::fs::write(&file, broken).expect("written");
        soon("it to be noticed", async {
            while gateway.said("keeping the last backends") == said {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        })
        .await;
        assert_eq!(answering(&gateway).await, ["one", "two"], "{broken:?}");
    }
    gateway.says("[0].adress: unknown key").await;
    replace(&file, &serde_json::to_string(&json!([{"address": two.address.to_string()}])).expect("JSON"));
    become_these(&gateway, &["two"]).await;
    std::fs::remove_file(&file).expect("removed");
    gateway.says("cannot read").await;
    assert_eq!(answering(&gateway).await, ["two"]);
    replace(&file, "[]\n");
    becomes_status(&gateway, 503).await;
}

#[tokio::test]
async fn a_start_without_a_registry_serves_what_does_not_need_it() {
    let gateway = Gateway::start(&document("", &in_file(), "")).await;
    let answer = get(gateway.address(), "/").await;
    assert_eq!((answer.status, answer.problem()), (503, "no-backend".to_owned()));
    assert_eq!(answer.json()["detail"], "the backends are not known yet");
    gateway.says("cannot follow a registry; it has no backends").await;
}

#[tokio::test]
async fn a_request_under_way_at_a_backend_that_goes_is_answered_and_its_connection_is_not_used_again() {
    let (going, mut wires) = Origin::handing_over().await;
    let stays = Origin::saying("127.0.0.1:0", "stays").await;
    let folder = TempDir::new().expect("a folder");
    let file = folder.path().join("users.yaml");
    std::fs::write(&file, listing(&[going.address])).expect("written");
    let gateway = Gateway::within(folder, LISTENER, &document("", &in_file(), "")).await;
    let mut client = Wire::connect(gateway.address()).await;
    client.send("GET / HTTP/1.1\r\nHost: a.test\r\n\r\n").await;
    let mut wire = soon("the request", wires.recv()).await.expect("a connection");
    wire.head().await.expect("a request");
    replace(&file, &listing(&[stays.address]));
    until("the change", || (gateway.said("a registry tells other backends") == 2).then_some(())).await;
    wire.send("HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nlast").await;
    let answer = soon("the answer", client.answer()).await.expect("answered");
    assert_eq!((answer.status, answer.text()), (200, "last".to_owned()));
    soon("the end of the connection, which is not kept", wire.closed()).await;
    client.send("GET / HTTP/1.1\r\nHost: a.test\r\n\r\n").await;
    let next = soon("the answer", client.answer()).await.expect("answered");
    assert_eq!(next.text(), "stays");
}

#[tokio::test]
async fn a_reload_that_changes_something_else_keeps_the_backends_of_a_registry_that_is_gone() {
    let one = Origin::saying("127.0.0.1:0", "one").await;
    let folder = TempDir::new().expect("a folder");
    let file = folder.path().join("users.yaml");
    std::fs::write(&file, listing(&[one.address])).expect("written");
    let gateway = Gateway::within(folder, LISTENER, &document("", &in_file(), "")).await;
    assert_eq!(answering(&gateway).await, ["one"]);
    std::fs::remove_file(&file).expect("removed");
    gateway.says("keeping the last backends").await;
    gateway
        .rewrite(LISTENER, &document("", &in_file(), ", balance: {algorithm: random}, timeouts: {read: 5s}"));
    gateway.says("generation=2").await;
    assert_eq!(answering(&gateway).await, ["one"]);
}

/// Asks without a pause; each request is answered with 200.
fn asking(gateway: &Gateway) -> tokio::task::JoinHandle<()> {
    let address = gateway.address();
    tokio::spawn(async move {
        loop {
            let answer = get(address, "/").await;
            assert_eq!(answer.status, 200, "{answer:?}");
        }
    })
}

#[tokio::test]
async fn no_request_fails_while_another_registry_is_named_and_until_it_tells_backends() {
    let (one, two) = (Origin::saying("127.0.0.1:0", "one").await, Origin::saying("127.0.0.1:0", "two").await);
    let written = format!(
        "upstreams: [{{name: users, backends: [{{address: \"{}\"}}]}}]\nroutes: [{{name: all, upstream: users}}]\n",
        one.address
    );
    let gateway = Gateway::administered(&written).await;
    let asking = asking(&gateway);
    let folder = gateway.file().parent().expect("a folder").to_owned();
    // From what is written to a file, and from there to another, neither of which is there yet.
    for (generation, name) in [(2, "first.yaml"), (3, "second.yaml")] {
        let discovery = json!({"type": "file", "path": name, "interval": "100ms"});
        gateway.rewrite_administered(&document("", &discovery, ""));
        gateway.says(&format!("generation={generation}")).await;
        let shown = view(&gateway).await["discovery"].clone();
        assert_eq!((&shown["up"], &shown["inherited"]), (&json!(false), &json!(true)), "{shown}");
        assert_eq!(shown["age"].is_u64(), generation == 3, "of what is written it is not known: {shown}");
        assert_eq!(answering(&gateway).await, ["one"]);
        if generation == 2 {
            replace(&folder.join(name), &listing(&[one.address]));
            soon("the file to be followed", async {
                while view(&gateway).await["discovery"]["inherited"] == true {
                    tokio::time::sleep(Duration::from_millis(10)).await;
                }
            })
            .await;
        }
    }
    gateway.says("cannot follow a registry; keeping the last backends").await;
    replace(&folder.join("second.yaml"), &listing(&[two.address]));
    become_these(&gateway, &["two"]).await;
    assert_eq!(view(&gateway).await["discovery"]["inherited"], false);
    assert!(!asking.is_finished(), "{:?}", asking.await);
    asking.abort();
}

#[tokio::test]
async fn no_request_fails_while_backends_come_and_go() {
    let (one, two) = (Origin::saying("127.0.0.1:0", "one").await, Origin::saying("127.0.0.1:0", "two").await);
    let folder = TempDir::new().expect("a folder");
    let file = folder.path().join("users.yaml");
    let sets = [vec![one.address], vec![one.address, two.address], vec![two.address]];
    std::fs::write(&file, listing(&sets[0])).expect("written");
    let health = ", health: {active: {type: tcp, interval: 50ms}, outlier: {}, slow_start: 1s}";
    let gateway = Gateway::within(folder, LISTENER, &document("", &in_file(), health)).await;
    let asking = asking(&gateway);
    for round in 1..8 {
        replace(&file, &listing(&sets[round % sets.len()]));
        soon("the change", async {
            while gateway.said("a registry tells other backends") <= round {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        })
        .await;
        assert!(!asking.is_finished(), "{:?}", asking.await);
    }
    asking.abort();
}
