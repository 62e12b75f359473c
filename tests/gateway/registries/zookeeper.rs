//! Backends in a real ZooKeeper.

use serde_json::{Value, json};
use zookeeper_client::{Acls, CreateMode};

use crate::discovery::{answering, become_these, becomes_status, document, view};
use crate::harness::zookeeper::{appear, create};
use crate::harness::{Dns, Gateway, Origin, Zookeeper, refusing};

fn discovery(zookeeper: &Zookeeper, more: Value) -> Value {
    let mut written = json!({"type": "zookeeper", "servers": [zookeeper.address()], "path": "/users"});
    written.as_object_mut().expect("a map").extend(more.as_object().expect("a map").clone());
    written
}

async fn gateway(discovery: &Value) -> Gateway {
    Gateway::administered(&document("", discovery, "")).await
}

#[tokio::test]
async fn children_are_backends_and_go_with_the_sessions_that_made_them() {
    let zookeeper = Zookeeper::start().await;
    let (one, two) = (Origin::saying("127.0.0.1:0", "one").await, Origin::saying("127.0.0.1:0", "two").await);
    let (first, second) = (one.address.to_string(), two.address);
    let operator = zookeeper.session().await;
    let gateway = gateway(&discovery(&zookeeper, json!({}))).await;
    becomes_status(&gateway, 503).await;
    create(&operator, "/users", "").await;
    let session = zookeeper.session().await;
    appear(&session, &format!("/users/{first}"), "").await;
    becomes_status(&gateway, 200).await;
    become_these(&gateway, &["one"]).await;
    // As Curator's service discovery writes it.
    let curator = json!({
        "name": "users", "id": "6ff5a1a4", "address": second.ip(), "port": second.port(), "sslPort": null,
        "payload": null, "registrationTimeUTC": 1_397_655_030_498_u64, "serviceType": "DYNAMIC", "uriSpec": null,
        "enabled": true,
    });
    create(&operator, "/users/6ff5a1a4", &curator.to_string()).await;
    become_these(&gateway, &["one", "two"]).await;
    drop(session);
    become_these(&gateway, &["two"]).await;
    operator.set_data("/users/6ff5a1a4", first.as_bytes(), None).await.expect("set");
    become_these(&gateway, &["one"]).await;
    assert_eq!(view(&gateway).await["discovery"]["up"], true);
    operator.set_data("/users/6ff5a1a4", b"{\"enabled\": false}", None).await.expect("set");
    becomes_status(&gateway, 503).await;
    operator.set_data("/users/6ff5a1a4", first.as_bytes(), None).await.expect("set");
    create(&operator, "/users/bad", "{").await;
    becomes_status(&gateway, 200).await;
    become_these(&gateway, &["one"]).await;
    gateway.says("a node that cannot be read is left out").await;
}

#[tokio::test]
async fn the_last_backends_are_kept_while_zookeeper_is_gone_and_changes_are_seen_when_it_is_back() {
    let mut zookeeper = Zookeeper::start().await;
    let (one, two) = (Origin::saying("127.0.0.1:0", "one").await, Origin::saying("127.0.0.1:0", "two").await);
    let operator = zookeeper.session().await;
    create(&operator, "/users", "").await;
    create(&operator, "/users/1", &one.address.to_string()).await;
    create(&operator, "/users/2", &two.address.to_string()).await;
    drop(operator);
    let servers = json!([refusing().await.to_string(), zookeeper.address()]);
    let gateway = gateway(&discovery(&zookeeper, json!({"servers": servers}))).await;
    become_these(&gateway, &["one", "two"]).await;
    zookeeper.kill();
    let line = gateway.says("cannot follow a registry; keeping the last backends").await;
    assert!(line.contains("registry=zookeeper"), "{line}");
    assert_eq!(answering(&gateway).await, ["one", "two"]);
    zookeeper.restart().await;
    let operator = zookeeper.session().await;
    operator.delete("/users/1", None).await.expect("deleted");
    become_these(&gateway, &["two"]).await;
    gateway.says("a registry is followed again").await;
}

#[tokio::test]
async fn a_server_whose_name_is_gone_does_not_stand_in_the_way_of_the_others() {
    let (dns, zookeeper) = (Dns::start().await, Zookeeper::start().await);
    let one = Origin::saying("127.0.0.1:0", "one").await;
    let operator = zookeeper.session().await;
    create(&operator, "/users", "").await;
    create(&operator, "/users/1", &one.address.to_string()).await;
    let after = |servers: Value| discovery(&zookeeper, json!({"servers": servers}));
    let both = after(json!(["gone.test:2181", zookeeper.address()]));
    let known = Gateway::administered(&document(&dns.server(), &both, "")).await;
    become_these(&known, &["one"]).await;
    let none = after(json!(["gone.test:2181"]));
    let unknown = Gateway::administered(&document(&dns.server(), &none, "")).await;
    let line = unknown.says("cannot follow a registry; it has no backends").await;
    assert!(line.contains("gone.test has no address"), "{line}");
}

#[tokio::test]
async fn who_the_gateway_is_is_shown_and_paths_may_begin_at_a_node() {
    let zookeeper = Zookeeper::start().await;
    let one = Origin::saying("127.0.0.1:0", "one").await;
    let operator = zookeeper.session().await;
    operator.auth("digest", b"gateway:hunter2").await.expect("known");
    let mode = CreateMode::Persistent.with_acls(Acls::creator_all());
    operator.create("/prod", b"", &mode).await.expect("created");
    operator.create("/prod/users", b"", &mode).await.expect("created");
    operator.create("/prod/users/1", one.address.to_string().as_bytes(), &mode).await.expect("created");
    let chroot = json!({"chroot": "/prod", "username": "gateway", "password": "hunter2"});
    let known = gateway(&discovery(&zookeeper, chroot)).await;
    become_these(&known, &["one"]).await;
    let wrong = json!({"chroot": "/prod", "username": "gateway", "password": "hunter2-wrong"});
    let unknown = gateway(&discovery(&zookeeper, wrong)).await;
    let line = unknown.says("cannot follow a registry; it has no backends").await;
    assert!(line.contains("not authorized"), "{line}");
    assert_eq!(unknown.said("hunter2"), 0);
}
