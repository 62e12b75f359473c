//! Who the gateway is to an API server, and how that is known.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::json;
use tempfile::TempDir;

use super::super::access::Here;
use super::*;

/// A machine that is in no cluster.
fn nowhere() -> Here {
    Here { host: None, port: None, account: "/nowhere".into() }
}

/// A Service by a kubeconfig of this cluster and user, which is in a folder of its own.
fn by_kubeconfig(folder: &TempDir, api: &Api, cluster: Value, user: Value) -> Followed {
    let mut cluster = cluster;
    cluster["server"] = format!("https://127.0.0.1:{}", api.port).into();
    let config = json!({
        "apiVersion": "v1", "kind": "Config", "preferences": {}, "current-context": "c",
        "clusters": [{"name": "k", "cluster": cluster}], "users": [{"name": "u", "user": user}],
        "contexts": [{"name": "c", "context": {"cluster": "k", "user": "u", "namespace": "shop"}}],
    });
    std::fs::create_dir_all(folder.path().join("kube")).unwrap();
    std::fs::write(folder.path().join("kube/config"), config.to_string()).unwrap();
    let written = json!({"type": "kubernetes", "service": "users", "kubeconfig": "kube/config"});
    Followed::new(written, folder.path(), nowhere())
}

fn read(api: &Api, name: &str) -> String {
    std::fs::read_to_string(api.account.path().join(name)).unwrap()
}

fn ca(api: &Api) -> Value {
    json!({"certificate-authority-data": STANDARD.encode(read(api, "ca.crt"))})
}

/// Why a server was not followed that nobody said anything to.
async fn distrusted(users: Followed, api: &Api) -> String {
    tokio::select! {
        why = users.failed() => why,
        never = api.is_distrusted() => match never {},
    }
}

#[tokio::test]
async fn a_token_that_was_replaced_is_shown_with_the_next_request() {
    let mut api = Api::new().await;
    let _users = users(&api);
    one(&mut api, "100", "10.0.0.1").await;
    // As the kubelet does: the new file takes the place of the old one.
    std::fs::write(api.account.path().join("next"), "second.token").unwrap();
    std::fs::rename(api.account.path().join("next"), api.account.path().join("token")).unwrap();
    let mut watch = api.ask().await;
    // The watch may have been asked for before that.
    if watch.fields["authorization"] != "Bearer second.token" {
        watch.opens().await;
        watch.ends().await;
        watch = api.ask().await;
    }
    assert_eq!(watch.fields["authorization"], "Bearer second.token");
}

#[tokio::test]
async fn nothing_is_told_to_a_server_that_the_authority_of_the_cluster_does_not_know() {
    let api = Api::new().await;
    let other = Api::new().await;
    std::fs::copy(other.account.path().join("ca.crt"), api.account.path().join("ca.crt")).unwrap();
    let users = users(&api);
    let why = distrusted(users, &api).await;
    assert!(why.contains("cannot connect to the upstream"), "{why}");
}

#[tokio::test]
async fn an_authority_that_cannot_be_read_is_no_reason_to_trust_those_of_the_system() {
    let api = Api::new().await;
    let ca = api.account.path().join("ca.crt");
    std::fs::remove_file(&ca).unwrap();
    std::fs::create_dir(&ca).unwrap();
    let why = users(&api).failed().await;
    assert!(why.contains("ca.crt is no file"), "{why}");
}

#[tokio::test]
async fn outside_of_a_cluster_that_is_said() {
    let users = Followed::new(json!({"type": "kubernetes", "service": "users"}), Path::new(""), nowhere());
    assert!(users.failed().await.starts_with("the gateway runs in no cluster"));
    let mut here = nowhere();
    (here.host, here.port) = (Some("127.0.0.1".into()), Some("443".into()));
    let users = Followed::new(json!({"type": "kubernetes", "service": "users"}), Path::new(""), here);
    assert!(users.failed().await.starts_with("cannot read /nowhere/token"));
}

#[tokio::test]
async fn a_written_namespace_comes_before_that_of_the_account() {
    let mut api = Api::new().await;
    let written = json!({"type": "kubernetes", "service": "users", "namespace": "other"});
    let _users = Followed::new(written, Path::new(""), api.here());
    assert_eq!(api.ask().await.path, "/apis/discovery.k8s.io/v1/namespaces/other/endpointslices");
}

#[tokio::test]
async fn a_kubeconfig_leads_to_a_cluster_with_a_token() {
    let (mut api, folder) = (Api::new().await, TempDir::new().unwrap());
    let cluster = ca(&api);
    let mut users = by_kubeconfig(&folder, &api, cluster, json!({"token": api::TOKEN}));
    one(&mut api, "100", "10.0.0.1").await;
    assert_eq!(users.other_than(&[]).await, ["10.0.0.1:8080"]);
}

#[tokio::test]
async fn files_that_a_kubeconfig_names_are_beside_it() {
    let (mut api, folder) = (Api::new().await, TempDir::new().unwrap());
    std::fs::create_dir_all(folder.path().join("kube")).unwrap();
    for name in ["ca.crt", "client.crt", "client.key"] {
        std::fs::copy(api.account.path().join(name), folder.path().join("kube").join(name)).unwrap();
    }
    std::fs::write(folder.path().join("kube/token"), "from-a-file\n").unwrap();
    let user = json!({
        "client-certificate": "client.crt", "client-key": "client.key", "tokenFile": "token", "token": "not-this-one",
    });
    let _users = by_kubeconfig(&folder, &api, json!({"certificate-authority": "ca.crt"}), user);
    let ask = api.ask().await;
    assert!(ask.certified);
    assert_eq!(ask.fields["authorization"], "Bearer from-a-file");
}

#[tokio::test]
async fn a_certificate_may_be_in_the_kubeconfig_and_nothing_else_is_needed() {
    let (mut api, folder) = (Api::new().await, TempDir::new().unwrap());
    let (certificate, key) =
        (STANDARD.encode(read(&api, "client.crt")), STANDARD.encode(read(&api, "client.key")));
    let user = json!({"client-certificate-data": certificate, "client-key-data": key});
    let cluster = ca(&api);
    let _users = by_kubeconfig(&folder, &api, cluster, user);
    let ask = api.ask().await;
    assert!(ask.certified);
    assert_eq!(ask.fields.get("authorization"), None);
}

#[tokio::test]
async fn a_name_and_password_are_shown_as_http_has_it() {
    let (mut api, folder) = (Api::new().await, TempDir::new().unwrap());
    let cluster = ca(&api);
    let _users =
        by_kubeconfig(&folder, &api, cluster, json!({"username": "exp", "password": "some-password"}));
    assert_eq!(api.ask().await.fields["authorization"], "Basic ZXhwOnNvbWUtcGFzc3dvcmQ=");
}

#[tokio::test]
async fn the_name_of_a_certificate_is_verified_and_may_be_another_than_the_hosts() {
    let (mut api, folder) = (Api::new().await, TempDir::new().unwrap());
    let mut cluster = ca(&api);
    cluster["tls-server-name"] = "kubernetes.default.svc".into();
    let users = by_kubeconfig(&folder, &api, cluster, json!({}));
    let why = distrusted(users, &api).await;
    assert!(why.contains("kubernetes.default.svc"), "{why}");
    let _users = by_kubeconfig(&folder, &api, json!({"insecure-skip-tls-verify": true}), json!({}));
    assert_eq!(api.ask().await.fields.get("authorization"), None);
}

#[test]
fn what_is_wrong_with_a_kubeconfig_is_said_when_the_document_is_checked() {
    let folder = TempDir::new().unwrap();
    let check = |config: Value| {
        std::fs::write(folder.path().join("config"), config.to_string()).unwrap();
        let written = json!({"type": "kubernetes", "service": "users", "kubeconfig": "config"});
        let problems =
            super::super::check(&serde_json::from_value(written).unwrap(), folder.path()).unwrap_err();
        let [(key, message)] = problems.as_slice() else { panic!("{problems:?}") };
        assert_eq!(key, "kubeconfig");
        message.clone()
    };
    let config = |cluster: Value, user: Value| {
        json!({
            "current-context": "c", "clusters": [{"name": "k", "cluster": cluster}],
            "users": [{"name": "u", "user": user}], "contexts": [{"name": "c", "context": {"cluster": "k", "user": "u"}}],
        })
    };
    let https = json!({"server": "https://127.0.0.1:1"});
    assert!(check(config(https.clone(), json!({"exec": {}}))).starts_with("config has `exec`"));
    assert_eq!(check(config(json!({}), json!({}))), "config has no `server` in its cluster");
    let half = check(config(https.clone(), json!({"client-certificate-data": "YQ=="})));
    assert_eq!(half, "config has only one of a client's certificate and key");
    let missing = check(config(json!({"server": "https://a", "certificate-authority": "x"}), json!({})));
    assert!(missing.contains("cannot read ") && missing.contains("/x:"), "{missing}");
    let data = check(config(json!({"server": "https://a", "certificate-authority-data": "!"}), json!({})));
    assert_eq!(data, "config has data that is not Base64");
    let context =
        serde_json::from_value(json!({"type": "kubernetes", "service": "users", "context": "c"})).unwrap();
    assert_eq!(super::super::check(&context, Path::new("")).unwrap_err()[0].0, "context");
}
