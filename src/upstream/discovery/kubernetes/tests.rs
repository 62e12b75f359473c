//! A Service followed at an API server that plays what a real one says, and lets no other form of request pass than the
//! documented ones (kubernetes.io/docs/reference/using-api/api-concepts).

mod accounts;
mod api;

use serde_json::{Value, json};
use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};
use tokio::task::JoinHandle;

use self::api::{Api, Ask};
use super::*;
use crate::upstream::Origins;
use crate::upstream::call::Caller;

/// A Service that is followed, and what it tells.
struct Followed {
    sets: UnboundedReceiver<Vec<String>>,
    task: JoinHandle<Failed>,
}

impl Followed {
    fn new(written: Value, base: &Path, here: Here) -> Self {
        // A second test of the same process finds it installed.
        let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
        let world = World { lookup: Origins::new().lookup(), caller: Caller::new() };
        let written = serde_json::from_value(written).unwrap();
        let kubernetes = Kubernetes { here, ..Kubernetes::new(&written, base, world) };
        let (told, sets) = unbounded_channel();
        let tell = Tell::new(move |set| {
            let Some(set) = set else { return };
            let set = set.iter().map(|instance| format!("{}:{}", instance.host, instance.port)).collect();
            let _ = told.send(set);
        });
        Self { sets, task: tokio::spawn(async move { kubernetes.follow(&tell).await }) }
    }

    /// The next set that is another than this one.
    async fn other_than(&mut self, last: &[&str]) -> Vec<String> {
        loop {
            let set = soon(self.sets.recv()).await.unwrap();
            if set != last {
                return set;
            }
        }
    }

    async fn failed(self) -> String {
        soon(self.task).await.unwrap().to_string()
    }
}

async fn soon<F: Future>(future: F) -> F::Output {
    tokio::time::timeout(Duration::from_secs(30), future).await.expect("it takes too long")
}

/// A Service at this server, of the account of a Pod in the namespace `shop`.
fn users(api: &Api) -> Followed {
    Followed::new(
        json!({"type": "kubernetes", "service": "users", "port": "http"}),
        Path::new(""),
        api.here(),
    )
}

fn slice(name: &str, version: &str, hosts: &[&str]) -> Value {
    let endpoints = hosts.iter().map(|host| {
        json!({
            "addresses": [host], "conditions": {"ready": true, "serving": true, "terminating": false},
            "targetRef": {"kind": "Pod", "namespace": "shop", "name": "users-7c5d", "uid": "28dfe01b"}, "nodeName": "n",
        })
    });
    json!({
        "metadata": {
            "name": name, "generateName": "users-", "namespace": "shop", "uid": "a60d9173-5fe4-4bc3-87a6-269daee71f8a",
            "resourceVersion": version, "generation": 1, "creationTimestamp": "2026-09-07T14:27:22Z",
            "labels": {
                "endpointslice.kubernetes.io/managed-by": "endpointslice-controller.k8s.io",
                "kubernetes.io/service-name": "users",
            },
            "ownerReferences": [{"apiVersion": "v1", "kind": "Service", "name": "users", "uid": "c", "controller": true}],
            "managedFields": [{"manager": "kube-controller-manager", "operation": "Update", "fieldsV1": {"f:endpoints": {}}}],
        },
        "addressType": "IPv4", "endpoints": endpoints.collect::<Vec<_>>(),
        "ports": [{"name": "http", "port": 8080, "protocol": "TCP"}],
    })
}

fn list(version: &str, more: Option<&str>, slices: &[Value]) -> Value {
    let mut metadata = json!({"resourceVersion": version});
    if let Some(more) = more {
        metadata["continue"] = more.into();
        metadata["remainingItemCount"] = 1.into();
    }
    json!({"kind": "EndpointSliceList", "apiVersion": "discovery.k8s.io/v1", "metadata": metadata, "items": slices})
}

fn event(kind: &str, mut object: Value) -> Value {
    object["kind"] = "EndpointSlice".into();
    object["apiVersion"] = "discovery.k8s.io/v1".into();
    json!({"type": kind, "object": object})
}

fn bookmark(version: &str) -> Value {
    let metadata = json!({"resourceVersion": version, "creationTimestamp": null});
    event("BOOKMARK", json!({"metadata": metadata, "addressType": "", "endpoints": null, "ports": null}))
}

fn status(code: u16, reason: &str, message: &str) -> Value {
    json!({
        "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure", "message": message, "reason": reason,
        "code": code,
    })
}

/// Answers the list of a Service that has one backend.
async fn one(api: &mut Api, version: &str, host: &str) {
    let ask = api.ask().await;
    ask.is_list(None);
    ask.answers(200, &list(version, None, &[slice("users-a", version, &[host])])).await;
}

async fn watched(api: &mut Api, version: &str) -> Ask {
    let ask = api.ask().await;
    ask.is_watch(version);
    ask
}

#[tokio::test]
async fn slices_are_listed_page_by_page_and_watched_from_the_version_of_the_list() {
    let mut api = Api::new().await;
    let mut users = users(&api);
    let ask = api.ask().await;
    ask.is_list(None);
    ask.answers(200, &list("100", Some("ENC/+=1"), &[slice("users-a", "90", &["10.0.0.1"])])).await;
    let ask = api.ask().await;
    ask.is_list(Some("ENC/+=1"));
    ask.answers(200, &list("100", None, &[slice("users-b", "91", &["10.0.0.2"])])).await;
    let both = ["10.0.0.1:8080", "10.0.0.2:8080"];
    assert_eq!(users.other_than(&[]).await, both, "one set, and not one for each page");
    let mut watch = watched(&mut api, "100").await;
    watch.opens().await;
    watch.line(&event("ADDED", slice("users-c", "101", &["10.0.0.3"]))).await;
    assert_eq!(users.other_than(&both).await, ["10.0.0.1:8080", "10.0.0.2:8080", "10.0.0.3:8080"]);
    watch.line(&event("MODIFIED", slice("users-a", "102", &[]))).await;
    assert_eq!(
        users.other_than(&["10.0.0.1:8080", "10.0.0.2:8080", "10.0.0.3:8080"]).await,
        ["10.0.0.2:8080", "10.0.0.3:8080"]
    );
    watch.line(&event("DELETED", slice("users-b", "103", &["10.0.0.2"]))).await;
    assert_eq!(users.other_than(&["10.0.0.2:8080", "10.0.0.3:8080"]).await, ["10.0.0.3:8080"]);
}

#[tokio::test]
async fn a_list_that_never_ends_is_given_up() {
    let mut api = Api::new().await;
    let users = users(&api);
    for n in 0..MOST_PAGES {
        let next = ["one", "two"][n % 2];
        api.ask()
            .await
            .answers(200, &list("100", Some(next), &[slice("users-a", "90", &["10.0.0.1"])]))
            .await;
    }
    let why = users.failed().await;
    assert!(why.ends_with("a list does not end after 100 pages"), "{why}");
}

#[tokio::test]
async fn what_is_of_no_version_is_not_watched_on_from() {
    let mut api = Api::new().await;
    let of_list = users(&api);
    api.ask().await.answers(200, &list("", None, &[])).await;
    let why = of_list.failed().await;
    assert!(why.ends_with("an answer without a resource version"), "{why}");
    let of_watch = users(&api);
    one(&mut api, "100", "10.0.0.1").await;
    let mut watch = watched(&mut api, "100").await;
    watch.opens().await;
    watch.line(&bookmark("")).await;
    let why = of_watch.failed().await;
    assert!(why.ends_with("an answer without a resource version"), "{why}");
}

#[tokio::test]
async fn a_watch_whose_time_is_over_goes_on_where_the_last_bookmark_was() {
    let mut api = Api::new().await;
    let mut users = users(&api);
    one(&mut api, "100", "10.0.0.1").await;
    let mut watch = watched(&mut api, "100").await;
    watch.opens().await;
    watch.line(&event("MODIFIED", slice("users-a", "105", &["10.0.0.2"]))).await;
    watch.line(&bookmark("900")).await;
    watch.ends().await;
    let mut watch = watched(&mut api, "900").await;
    watch.opens().await;
    watch.in_pieces(&event("MODIFIED", slice("users-a", "901", &["10.0.0.3"]))).await;
    assert_eq!(users.other_than(&[]).await, ["10.0.0.1:8080"]);
    assert_eq!(users.other_than(&["10.0.0.1:8080"]).await, ["10.0.0.2:8080"]);
    assert_eq!(users.other_than(&["10.0.0.2:8080"]).await, ["10.0.0.3:8080"]);
}

#[tokio::test]
async fn a_watch_that_began_too_long_ago_leads_to_a_new_list_however_that_is_said() {
    let mut api = Api::new().await;
    let mut users = users(&api);
    one(&mut api, "100", "10.0.0.1").await;
    let ask = watched(&mut api, "100").await;
    ask.answers(410, &status(410, "Expired", "too old resource version: 100 (8146471)")).await;
    one(&mut api, "200", "10.0.0.2").await;
    let mut watch = watched(&mut api, "200").await;
    watch.opens().await;
    let gone = status(410, "Gone", "too old resource version: 200 (8146471)");
    watch.line(&json!({"type": "ERROR", "object": gone})).await;
    one(&mut api, "300", "10.0.0.3").await;
    watched(&mut api, "300").await;
    assert_eq!(users.other_than(&[]).await, ["10.0.0.1:8080"]);
    assert_eq!(users.other_than(&["10.0.0.1:8080"]).await, ["10.0.0.2:8080"]);
    assert_eq!(users.other_than(&["10.0.0.2:8080"]).await, ["10.0.0.3:8080"]);
}

#[tokio::test]
async fn a_refusal_is_told_with_what_the_server_says_and_without_the_token() {
    let message = "endpointslices.discovery.k8s.io is forbidden: User \"system:serviceaccount:shop:gateway\" cannot \
                   list resource \"endpointslices\" in API group \"discovery.k8s.io\" in the namespace \"shop\"";
    let mut api = Api::new().await;
    let users = users(&api);
    let ask = api.ask().await;
    ask.answers(403, &status(403, "Forbidden", message)).await;
    let why = users.failed().await;
    assert!(why.contains("answered 403: endpointslices.discovery.k8s.io is forbidden"), "{why}");
    assert!(!why.contains(api::TOKEN), "{why}");
}

#[tokio::test]
async fn what_breaks_off_or_is_no_answer_ends_it_and_tells_no_set() {
    for line in ["{", "[]", "{\"type\":\"ADDED\",\"object\":{}}", "{\"type\":\"NEW\",\"object\":{}}"] {
        let mut api = Api::new().await;
        let users = users(&api);
        one(&mut api, "100", "10.0.0.1").await;
        let mut watch = watched(&mut api, "100").await;
        watch.opens().await;
        watch.text(&format!("{line}\n")).await;
        let why = users.failed().await;
        assert!(
            why.ends_with("an answer that is none of the API of Kubernetes")
                || why.ends_with("without metadata"),
            "{why}"
        );
    }
    let mut api = Api::new().await;
    let mut users = users(&api);
    one(&mut api, "100", "10.0.0.1").await;
    let mut watch = watched(&mut api, "100").await;
    watch.opens().await;
    watch.text("{\"type\":\"DELETED\",\"object\":{\"metadata\":{\"name\":\"users-a\"").await;
    drop(watch);
    assert_eq!(users.other_than(&[]).await, ["10.0.0.1:8080"]);
    soon(&mut users.task).await.unwrap();
    users.sets.close();
    while let Some(set) = users.sets.recv().await {
        assert_eq!(set, ["10.0.0.1:8080"]);
    }
}

#[tokio::test]
async fn an_error_in_a_watch_that_is_no_410_ends_it() {
    let mut api = Api::new().await;
    let users = users(&api);
    one(&mut api, "100", "10.0.0.1").await;
    let mut watch = watched(&mut api, "100").await;
    watch.opens().await;
    let error = status(500, "InternalError", "etcd event received with PrevKv=nil");
    watch.line(&json!({"type": "ERROR", "object": error})).await;
    let why = users.failed().await;
    assert!(why.ends_with("the watch ended with 500: etcd event received with PrevKv=nil"), "{why}");
}

#[tokio::test]
async fn a_service_that_has_no_slices_has_no_backends() {
    let mut api = Api::new().await;
    let mut users = users(&api);
    api.ask().await.answers(200, &list("100", None, &[])).await;
    assert_eq!(users.other_than(&["nothing"]).await, Vec::<String>::new());
    let mut watch = watched(&mut api, "100").await;
    watch.opens().await;
    watch.line(&event("ADDED", slice("users-a", "101", &["10.0.0.1"]))).await;
    assert_eq!(users.other_than(&[]).await, ["10.0.0.1:8080"]);
}
