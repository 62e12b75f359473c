//! Backends in a real etcd.

use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::{Semaphore, mpsc};

use crate::discovery::{answering, become_these, becomes_status, document, view};
use crate::harness::{Authority, Etcd, Gateway, Kind, Origin, Wire, refusing, soon, write_pair};

async fn origins() -> [(Origin, String); 3] {
    let mut made = Vec::new();
    for text in ["one", "three", "two"] {
        let origin = Origin::saying("127.0.0.1:0", text).await;
        let address = origin.address.to_string();
        made.push((origin, address));
    }
    made.try_into().ok().expect("three")
}

fn discovery(etcd: &Etcd, more: Value) -> Value {
    let mut written = json!({"type": "etcd", "endpoints": [etcd.url()], "prefix": "/users/"});
    written.as_object_mut().expect("a map").extend(more.as_object().expect("a map").clone());
    written
}

async fn gateway(discovery: &Value) -> Gateway {
    Gateway::administered(&document("", discovery, "")).await
}

#[tokio::test]
async fn keys_with_the_prefix_are_backends_and_what_changes_is_seen_at_once() {
    let (etcd, [(one, first), (_three, third), (_two, second)]) = (Etcd::start().await, origins().await);
    etcd.put("/users/1", &first).await;
    etcd.put("/users", "127.0.0.1:1").await;
    etcd.put("/users0", "127.0.0.1:1").await;
    let gateway = gateway(&discovery(&etcd, json!({}))).await;
    assert_eq!(answering(&gateway).await, ["one"], "known before the first request");
    // As gRPC's resolver for etcd writes it, and plainly.
    etcd.put("/users/2", &json!({"Op": 0, "Addr": second, "Metadata": null}).to_string()).await;
    become_these(&gateway, &["one", "two"]).await;
    let port = third.rsplit(':').next().expect("a port").parse::<u16>().expect("a number");
    let plain = json!({"host": "127.0.0.1", "port": port, "weight": 5, "zone": "a"}).to_string();
    etcd.put("/users/eu/3", &plain).await;
    become_these(&gateway, &["one", "three", "two"]).await;
    let shown = view(&gateway).await;
    let weights: Vec<_> =
        shown["backends"].as_array().expect("a list").iter().map(|b| b["weight"].clone()).collect();
    assert!(weights.contains(&json!(5)), "{shown}");
    etcd.delete("/users/1").await;
    etcd.put("/users/2", &third).await;
    become_these(&gateway, &["three"]).await;
    assert_eq!(view(&gateway).await["discovery"]["up"], true);
    drop(one);
    etcd.delete("/users/2").await;
    etcd.delete("/users/eu/3").await;
    becomes_status(&gateway, 503).await;
    etcd.put("/users/2", &second).await;
    becomes_status(&gateway, 200).await;
    become_these(&gateway, &["two"]).await;
}

#[tokio::test]
async fn a_backend_goes_with_its_lease() {
    let (etcd, [(_one, first), _, (_two, second)]) = (Etcd::start().await, origins().await);
    etcd.put("/users/1", &first).await;
    let lease = etcd.lease(1).await;
    etcd.put_for("/users/2", &second, &lease).await;
    let gateway = gateway(&discovery(&etcd, json!({}))).await;
    become_these(&gateway, &["one"]).await;
}

#[tokio::test]
async fn values_that_cannot_be_read_are_left_out_one_by_one_and_said_once() {
    let (etcd, [(_one, first), _, (_two, second)]) = (Etcd::start().await, origins().await);
    etcd.put("/users/1", &first).await;
    etcd.put("/users/bad", "{\"host\": \"secret-host\"").await;
    let gateway = gateway(&discovery(&etcd, json!({}))).await;
    assert_eq!(answering(&gateway).await, ["one"]);
    let line = gateway.says("a value that cannot be read is left out").await;
    assert!(line.contains("/users/bad") && !line.contains("secret-host"), "{line}");
    etcd.put("/users/2", &second).await;
    become_these(&gateway, &["one", "two"]).await;
    assert_eq!(gateway.said("a value that cannot be read is left out"), 1);
    // Nothing of what it tells can be read: the last backends are better than none.
    etcd.put("/users/1", "?").await;
    etcd.put("/users/2", "?").await;
    gateway.says("none of the 3 values with the prefix can be read").await;
    let left = answering(&gateway).await;
    assert_eq!(left, ["two"], "what was known before the last change");
}

#[tokio::test]
async fn the_last_backends_are_kept_while_etcd_is_gone_and_changes_are_seen_when_it_is_back() {
    let (mut etcd, [(_one, first), _, (_two, second)]) = (Etcd::start().await, origins().await);
    etcd.put("/users/1", &first).await;
    etcd.put("/users/2", &second).await;
    let gateway = gateway(&discovery(&etcd, json!({}))).await;
    assert_eq!(answering(&gateway).await, ["one", "two"]);
    etcd.kill();
    let line = gateway.says("cannot follow a registry; keeping the last backends").await;
    assert!(line.contains("registry=etcd"), "{line}");
    assert_eq!(answering(&gateway).await, ["one", "two"]);
    let shown = view(&gateway).await;
    assert_eq!(shown["discovery"]["up"], false);
    assert!(shown["discovery"]["age"].is_u64() && shown["discovery"]["error"].is_string(), "{shown}");
    etcd.restart().await;
    etcd.delete("/users/1").await;
    become_these(&gateway, &["two"]).await;
    gateway.says("a registry is followed again").await;
}

/// Passes everything on to etcd and back, but tells of a watch and holds it up until there is a permit.
async fn holding_watches(etcd: &Etcd) -> (Origin, mpsc::UnboundedReceiver<()>, Arc<Semaphore>) {
    let (address, permits) = (etcd.address(), Arc::new(Semaphore::new(0)));
    let (told, watches) = mpsc::unbounded_channel();
    let gate = permits.clone();
    let relay = Origin::new(move |wire: Wire| {
        let (address, told, gate) = (address.clone(), told.clone(), gate.clone());
        async move {
            let server = TcpStream::connect(address).await.expect("etcd");
            let ((mut from, mut to), (mut back, mut on)) =
                (wire.into_stream().into_split(), server.into_split());
            let there = async {
                let mut room = vec![0; 64 << 10];
                while let Ok(count @ 1..) = from.read(&mut room).await {
                    if room.starts_with(b"POST /v3/watch ") {
                        let _ = told.send(());
                        gate.acquire().await.expect("open").forget();
                    }
                    if on.write_all(&room[..count]).await.is_err() {
                        break;
                    }
                }
            };
            tokio::select! {
                () = there => {}
                _ = tokio::io::copy(&mut back, &mut to) => {}
            }
        }
    });
    (relay.await, watches, permits)
}

#[tokio::test]
async fn what_etcd_forgot_before_it_was_watched_is_asked_for_anew() {
    let (etcd, [(_one, first), _, (_two, second)]) = (Etcd::start().await, origins().await);
    etcd.put("/users/1", &first).await;
    let (relay, mut watches, gate) = holding_watches(&etcd).await;
    let endpoints = json!([format!("http://{}", relay.address)]);
    let gateway = gateway(&discovery(&etcd, json!({"endpoints": endpoints}))).await;
    soon("a watch", watches.recv()).await;
    assert_eq!(answering(&gateway).await, ["one"]);
    // What the watch begins with is gone before it begins.
    etcd.put("/users/2", &second).await;
    etcd.put("/users/2", &second).await;
    etcd.delete("/users/1").await;
    etcd.compact().await;
    gate.add_permits(1);
    become_these(&gateway, &["two"]).await;
    soon("another watch", watches.recv()).await;
    assert_eq!(gateway.said("cannot follow a registry"), 0, "it is no failure");
    gate.add_permits(1);
    etcd.put("/users/1", &first).await;
    become_these(&gateway, &["one", "two"]).await;
}

#[tokio::test]
async fn a_frozen_etcd_is_given_up_in_time_and_followed_again_when_it_goes_on() {
    let (etcd, [(_one, first), _, (_two, second)]) = (Etcd::start().await, origins().await);
    etcd.put("/users/1", &first).await;
    let gateway = gateway(&discovery(&etcd, json!({}))).await;
    assert_eq!(answering(&gateway).await, ["one"]);
    etcd.signal("STOP");
    // It takes connections and says nothing; a reload has it asked at once, and what is known stays in use.
    let asked_anew = discovery(&etcd, json!({"keep_last_on_empty": true}));
    gateway.rewrite_administered(&document("", &asked_anew, ""));
    gateway.says("generation=2").await;
    gateway.says("cannot follow a registry; keeping the last backends").await;
    assert_eq!(answering(&gateway).await, ["one"]);
    let shown = view(&gateway).await["discovery"].clone();
    assert_eq!((&shown["up"], &shown["inherited"]), (&json!(false), &json!(true)), "{shown}");
    // Who has another server follows that one.
    let other = Etcd::start().await;
    other.put("/users/1", &second).await;
    let both = json!({"endpoints": [etcd.url(), other.url()]});
    gateway.rewrite_administered(&document("", &discovery(&etcd, both), ""));
    become_these(&gateway, &["two"]).await;
    gateway.rewrite_administered(&document("", &asked_anew, ""));
    gateway.says("generation=4").await;
    etcd.signal("CONT");
    etcd.put("/users/2", &second).await;
    become_these(&gateway, &["one", "two"]).await;
}

#[tokio::test]
async fn an_etcd_that_freezes_while_it_is_watched_is_noticed() {
    /// Thirty seconds of silence, give or take a tenth, and five for an answer to what is asked then.
    const NOTICED: Duration = Duration::from_secs(60);
    let (etcd, [(_one, first), _, (_two, second)]) = (Etcd::start().await, origins().await);
    etcd.put("/users/1", &first).await;
    let gateway = gateway(&discovery(&etcd, json!({}))).await;
    assert_eq!(answering(&gateway).await, ["one"]);
    etcd.signal("STOP");
    let noticed = async {
        while gateway.said("cannot follow a registry; keeping the last backends") == 0 {
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    };
    tokio::time::timeout(NOTICED, noticed).await.expect("it is noticed");
    assert_eq!(answering(&gateway).await, ["one"]);
    etcd.signal("CONT");
    etcd.put("/users/2", &second).await;
    become_these(&gateway, &["one", "two"]).await;
    gateway.says("a registry is followed again").await;
}

#[tokio::test]
async fn another_server_is_asked_when_one_is_gone() {
    let (etcd, [(_one, first), ..]) = (Etcd::start().await, origins().await);
    etcd.put("/users/1", &first).await;
    let endpoints = json!([format!("http://{}", refusing().await), etcd.url()]);
    let gateway = gateway(&discovery(&etcd, json!({"endpoints": endpoints}))).await;
    assert_eq!(answering(&gateway).await, ["one"]);
    assert_eq!(gateway.said("cannot follow a registry"), 0);
}

#[tokio::test]
async fn who_the_gateway_is_is_shown_to_a_protected_etcd_and_a_refusal_says_nothing_of_the_password() {
    let (mut etcd, [(_one, first), ..]) = (Etcd::start().await, origins().await);
    etcd.put("/users/1", &first).await;
    etcd.protect("hunter2-right").await;
    let known = gateway(&discovery(&etcd, json!({"username": "gateway", "password": "hunter2-right"}))).await;
    assert_eq!(answering(&known).await, ["one"]);
    etcd.put("/users/1", "127.0.0.1:1").await;
    becomes_status(&known, 502).await;
    for (more, why) in [
        (json!({"username": "gateway", "password": "hunter2-wrong"}), "authentication failed"),
        (json!({}), "user name is empty"),
    ] {
        let unknown = gateway(&discovery(&etcd, more)).await;
        let line = unknown.says("cannot follow a registry; it has no backends").await;
        assert!(line.contains(why), "{line}");
        assert_eq!(unknown.said("hunter2"), 0);
    }
}

#[tokio::test]
async fn etcd_is_known_by_its_authority_and_the_gateway_by_its_certificate() {
    let authority = Authority::new("etcd");
    let files = |folder: &std::path::Path, host: &str| {
        authority.write(folder, "server", &[host], Kind::Ecdsa);
        write_pair(folder, "client", &authority.sign_client("gateway", 7));
        std::fs::write(folder.join("ca.pem"), &authority.pem).expect("written");
        std::fs::write(folder.join("other.pem"), &Authority::new("other").pem).expect("written");
    };
    let options = [
        "--cert-file={}/server.pem",
        "--key-file={}/server.key",
        "--trusted-ca-file={}/ca.pem",
        "--client-cert-auth",
    ];
    let mut etcd = Etcd::over_tls(files, &options);
    etcd.restart().await;
    let tls = |ca: &str| {
        let (certificate, key) = (etcd.file("client.pem"), etcd.file("client.key"));
        json!({"tls": {"ca": etcd.file(ca), "client_cert": certificate, "client_key": key}, "keep_last_on_empty": true})
    };
    let known = gateway(&discovery(&etcd, tls("ca.pem"))).await;
    soon("the registry to be followed", async {
        while view(&known).await["discovery"]["up"] != true {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    })
    .await;
    let unknown = gateway(&discovery(&etcd, tls("other.pem"))).await;
    let line = unknown.says("cannot follow a registry; it has no backends").await;
    assert!(line.contains("cannot connect"), "{line}");
}
