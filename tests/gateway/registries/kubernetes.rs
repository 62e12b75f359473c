//! Backends of a Service of Kubernetes, by an API server that plays what a real one says.

use std::net::SocketAddr;

use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::sync::watch;

use crate::discovery::{answering, become_these, document};
use crate::harness::{Gateway, Origin, Wire};

fn slice(version: u64, backends: &[SocketAddr]) -> Value {
    let endpoints: Vec<_> = backends
        .iter()
        .map(|address| json!({"addresses": [address.ip()], "conditions": {"ready": true}, "zone": "a"}))
        .collect();
    json!({
        "kind": "EndpointSlice", "apiVersion": "discovery.k8s.io/v1", "addressType": "IPv4", "endpoints": endpoints,
        "metadata": {"name": "users-a", "namespace": "shop", "resourceVersion": version.to_string()},
        "ports": [{"name": "http", "port": backends[0].port(), "protocol": "TCP"}],
    })
}

/// The same Pods by addresses of IPv6, as a Service of both families has them
/// (<https://kubernetes.io/docs/concepts/services-networking/dual-stack/>).
fn of_other_family(version: u64, backends: &[SocketAddr]) -> Value {
    let mut slice = slice(version, backends);
    slice["addressType"] = "IPv6".into();
    slice["metadata"]["name"] = "users-b".into();
    for (nth, endpoint) in slice["endpoints"].as_array_mut().expect("a list").iter_mut().enumerate() {
        endpoint["addresses"] = json!([format!("2001:db8::{nth}")]);
    }
    slice
}

/// Lists what there is, and tells watches of what comes.
async fn api(mut state: watch::Receiver<(u64, Vec<SocketAddr>)>, mut wire: Wire) {
    while let Ok(head) = wire.head().await {
        let target = "/apis/discovery.k8s.io/v1/namespaces/shop/endpointslices?labelSelector=kubernetes.io%2Fservice-name%3Dusers&";
        assert!(head.target().starts_with(target), "{}", head.target());
        assert_eq!(head.field("authorization"), Some("Bearer a-token"));
        let (version, backends) = state.borrow_and_update().clone();
        if !head.target().contains("&watch=true&") {
            let metadata = json!({"resourceVersion": version.to_string()});
            let list = json!({
                "kind": "EndpointSliceList", "apiVersion": "discovery.k8s.io/v1", "metadata": metadata,
                "items": [slice(version, &backends), of_other_family(version, &backends)],
            });
            let list = list.to_string();
            let length = list.len();
            wire.send(format!(
                "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {length}\r\n\r\n{list}"
            ))
            .await;
            continue;
        }
        assert!(head.target().contains(&format!("&resourceVersion={version}&")), "{}", head.target());
        wire.send("HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n")
            .await;
        while state.changed().await.is_ok() {
            let (version, backends) = state.borrow_and_update().clone();
            let line = format!("{}\n", json!({"type": "MODIFIED", "object": slice(version, &backends)}));
            wire.send(format!("{:x}\r\n{line}\r\n", line.len())).await;
        }
    }
}

#[tokio::test]
async fn ready_endpoints_of_a_service_are_backends_and_changes_are_seen_at_once() {
    let (one, two) = (Origin::saying("127.0.0.1:0", "one").await, Origin::saying("127.0.0.1:0", "two").await);
    let (change, state) = watch::channel((7, vec![one.address]));
    let server = Origin::new(move |wire| api(state.clone(), wire)).await;
    let folder = TempDir::new().expect("a folder");
    let config = json!({
        "apiVersion": "v1", "kind": "Config", "current-context": "c",
        "clusters": [{"name": "k", "cluster": {"server": format!("http://{}", server.address)}}],
        "users": [{"name": "u", "user": {"token": "a-token"}}],
        "contexts": [{"name": "c", "context": {"cluster": "k", "user": "u", "namespace": "shop"}}],
    });
    std::fs::write(folder.path().join("kubeconfig.json"), config.to_string()).expect("written");
    let discovery = json!({"type": "kubernetes", "service": "users", "kubeconfig": "kubeconfig.json"});
    let listener = "{name: plain, address: \"127.0.0.1:0\"}";
    let gateway = Gateway::within(folder, listener, &document("", &discovery, "")).await;
    assert_eq!(answering(&gateway).await, ["one"]);
    let line = gateway.says("a registry tells other backends").await;
    assert!(line.contains("backends=1"), "each Pod once: {line}");
    change.send_replace((8, vec![two.address]));
    become_these(&gateway, &["two"]).await;
    drop(server);
    let line = gateway.says("cannot follow a registry; keeping the last backends").await;
    assert!(line.contains("registry=kubernetes") && !line.contains("a-token"), "{line}");
    assert_eq!(answering(&gateway).await, ["two"]);
}
