//! Clients of registries against scripted servers: Consul's says what its documentation shows, Eureka's follows public
//! examples, Nacos' says what its documentation shows. None of them is the real thing.

mod etcd;

use std::path::Path;
use std::sync::Arc;

use parking_lot::Mutex;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;

use super::*;
use crate::config::discovery::Discovery;
use crate::upstream::resolve::Resolver;

const SOON: Duration = Duration::from_secs(10);

/// What a scripted server does with a question.
enum Says {
    /// An answer: its status, further fields of its head, its body.
    Json(u16, String, String),
    /// It holds the question back.
    Holds,
}

struct Server {
    url: String,
    asked: Arc<Mutex<Vec<String>>>,
}

impl Server {
    /// Answers by the number of the question and the question itself, head and body.
    async fn start(answer: impl Fn(usize, &str) -> Says + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let asked: Arc<Mutex<Vec<String>>> = Arc::default();
        let (seen, answer) = (asked.clone(), Arc::new(answer));
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(serve(stream, seen.clone(), answer.clone()));
            }
        });
        Self { url, asked }
    }

    /// The first lines of the questions.
    fn lines(&self) -> Vec<String> {
        let asked = self.asked.lock();
        asked.iter().map(|head| head.lines().next().unwrap_or_default().replace(" HTTP/1.1", "")).collect()
    }
}

async fn serve(
    mut stream: TcpStream,
    asked: Arc<Mutex<Vec<String>>>,
    answer: Arc<impl Fn(usize, &str) -> Says>,
) {
    let mut held = String::new();
    loop {
        let mut room = [0; 4096];
        match stream.read(&mut room).await {
            Ok(0) | Err(_) => return,
            Ok(count) => held.push_str(std::str::from_utf8(&room[..count]).unwrap()),
        }
        let Some((head, body)) = held.split_once("\r\n\r\n") else { continue };
        let length = head.to_ascii_lowercase().lines().find_map(|line| {
            line.strip_prefix("content-length: ").and_then(|length| length.parse::<usize>().ok())
        });
        if body.len() < length.unwrap_or(0) {
            continue;
        }
        let question = std::mem::take(&mut held);
        let number = {
            let mut asked = asked.lock();
            asked.push(question.clone());
            asked.len() - 1
        };
        match answer(number, &question) {
            Says::Json(status, fields, body) => {
                let head = format!("HTTP/1.1 {status} X\r\nContent-Type: application/json\r\n{fields}");
                let answer = format!("{head}Content-Length: {}\r\n\r\n{body}", body.len());
                stream.write_all(answer.as_bytes()).await.unwrap();
            }
            Says::Holds => std::future::pending().await,
        }
    }
}

fn ok(body: impl ToString) -> Says {
    Says::Json(200, String::new(), body.to_string())
}

/// The sets that are told, as `host:port*weight@zone`, and why it ended.
struct Followed {
    sets: mpsc::UnboundedReceiver<Vec<String>>,
    ended: tokio::task::JoinHandle<Failed>,
}

impl Followed {
    async fn next(&mut self) -> Vec<String> {
        let next = tokio::time::timeout(SOON, self.sets.recv()).await.expect("a set in time");
        match next {
            Some(set) => set,
            None => panic!("nobody tells any more: {:?}", (&mut self.ended).await),
        }
    }

    async fn end(self) -> String {
        tokio::time::timeout(SOON, self.ended).await.expect("an end in time").unwrap().to_string()
    }
}

fn follow(written: Value) -> Followed {
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    let discovery: Discovery = serde_json::from_value(written).unwrap();
    let registry = discovery.registry().expect("right").clone();
    let following = Following::new(registry, Path::new(""), "users".into());
    let world = World { lookup: Arc::<Resolver>::default(), caller: Caller::new() };
    let directory = world.open(&following);
    let (told, sets) = mpsc::unbounded_channel();
    let tell = Tell::new(move |set| {
        let shown = |instance: &Instance| {
            let zone = instance.zone.as_ref().map(|zone| format!("@{zone}")).unwrap_or_default();
            format!("{}:{}*{}{zone}", instance.host, instance.port, instance.weight.unwrap_or(1))
        };
        let _ = told.send(set.unwrap_or_default().iter().map(shown).collect());
    });
    Followed { sets, ended: tokio::spawn(async move { directory.follow(&tell).await }) }
}

/// An entry as the documentation of `/v1/health/service` shows it.
fn consul_entry(address: &str, status: &str) -> Value {
    json!({
        "Node": {
            "ID": "40e4a748-2192-161a-0510-9bf59fe950b5", "Node": "foobar", "Address": "10.1.10.12",
            "Datacenter": "dc1", "TaggedAddresses": {"lan": "10.1.10.12", "wan": "10.1.10.12"},
            "Meta": {"instance_type": "t2.medium"}, "Locality": {"Region": "eu-west-1", "Zone": "eu-west-1a"},
        },
        "Service": {
            "ID": "redis", "Service": "redis", "Tags": ["primary"], "Address": address,
            "TaggedAddresses": {
                "lan": {"address": "10.1.10.12", "port": 8000}, "wan": {"address": "198.18.1.2", "port": 80},
            },
            "Meta": {"redis_version": "4.0"}, "Port": 8000, "Weights": {"Passing": 10, "Warning": 1},
            "Namespace": "default",
        },
        "Checks": [
            {"Node": "foobar", "CheckID": "service:redis", "Name": "Service 'redis' check", "Status": status,
             "Notes": "", "Output": "", "ServiceID": "redis", "ServiceName": "redis", "ServiceTags": ["primary"],
             "Namespace": "default"},
            {"Node": "foobar", "CheckID": "serfHealth", "Name": "Serf Health Status", "Status": "passing",
             "Notes": "", "Output": "", "ServiceID": "", "ServiceName": "", "ServiceTags": [],
             "Namespace": "default"},
        ],
    })
}

fn indexed(index: u64, entries: &[Value]) -> Says {
    let fields =
        format!("X-Consul-Index: {index}\r\nX-Consul-Knownleader: true\r\nX-Consul-Lastcontact: 0\r\n");
    Says::Json(200, fields, Value::from(entries).to_string())
}

#[tokio::test]
async fn consul_is_asked_by_blocking_queries_whose_index_begins_anew_when_it_goes_backwards() {
    let server = Server::start(|number, question| {
        if !question.to_ascii_lowercase().contains("x-consul-token: s3cret\r\n") {
            return Says::Json(403, String::new(), "Permission denied".to_owned());
        }
        match number {
            0 => indexed(42, &[consul_entry("10.1.10.12", "passing")]),
            1 => indexed(50, &[consul_entry("", "passing"), consul_entry("10.1.10.13", "passing")]),
            2 => indexed(7, &[]),
            3 => indexed(0, &[consul_entry("10.1.10.14", "passing")]),
            _ => Says::Holds,
        }
    })
    .await;
    let mut followed = follow(json!({
        "type": "consul", "address": server.url, "service": "my service", "tags": ["primary", "v2"],
        "datacenter": "dc1", "namespace": "default", "token": "s3cret",
    }));
    assert_eq!(followed.next().await, ["10.1.10.12:8000*10@eu-west-1a"]);
    let both = ["10.1.10.12:8000*10@eu-west-1a", "10.1.10.13:8000*10@eu-west-1a"];
    assert_eq!(followed.next().await, both, "without an address of its own, it is at its node's");
    assert!(followed.next().await.is_empty());
    assert_eq!(followed.next().await, ["10.1.10.14:8000*10@eu-west-1a"]);
    tokio::time::timeout(SOON, async {
        while server.lines().len() < 5 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await
    .expect("a fifth question");
    let ask = |index: &str| {
        format!(
            "GET /v1/health/service/my%20service?passing=true&dc=dc1&ns=default{index}&tag=primary&tag=v2"
        )
    };
    let waiting = |index: u64| ask(&format!("&index={index}&wait=300s"));
    assert_eq!(server.lines(), [ask(""), waiting(42), waiting(50), ask(""), waiting(1)]);
}

#[tokio::test]
async fn consul_tells_weights_of_states_and_what_is_critical_gets_nothing() {
    let server = Server::start(|number, _| match number {
        0 => indexed(
            1,
            &[
                consul_entry("10.0.0.1", "passing"),
                consul_entry("10.0.0.2", "warning"),
                consul_entry("10.0.0.3", "critical"),
            ],
        ),
        _ => Says::Json(500, String::new(), "no cluster leader, token s3cret".to_owned()),
    })
    .await;
    let mut followed = follow(json!({
        "type": "consul", "address": server.url, "service": "redis", "passing_only": false, "token": "s3cret",
    }));
    assert_eq!(followed.next().await, ["10.0.0.1:8000*10@eu-west-1a", "10.0.0.2:8000*1@eu-west-1a"]);
    assert_eq!(server.lines()[0], "GET /v1/health/service/redis?");
    assert_eq!(followed.end().await, "the registry answers 500");
}

// <https://developer.hashicorp.com/consul/api-docs>, "Results Filtered by ACLs".
#[tokio::test]
async fn that_a_token_of_consul_may_see_nothing_is_not_that_there_is_nothing() {
    let server = Server::start(|number, _| {
        let fields = format!("X-Consul-Index: {}\r\nX-Consul-Results-Filtered-By-ACLs: true\r\n", number + 1);
        match number {
            0 => indexed(1, &[consul_entry("10.0.0.1", "passing"), consul_entry("10.0.0.2", "passing")]),
            1 => {
                let left = Value::from(vec![consul_entry("10.0.0.1", "passing")]);
                Says::Json(200, fields, left.to_string())
            }
            _ => Says::Json(200, fields, "[]".to_owned()),
        }
    })
    .await;
    let mut followed = follow(json!({"type": "consul", "address": server.url, "service": "redis"}));
    assert_eq!(followed.next().await.len(), 2);
    assert_eq!(followed.next().await, ["10.0.0.1:8000*10@eu-west-1a"], "what it may see is used");
    let why = followed.end().await;
    assert_eq!(why, "the token may not see the instances; it needs `service:read` and `node:read`");
}

#[tokio::test]
async fn an_answer_that_cannot_be_read_is_told_by_its_place_and_not_by_what_it_says() {
    let server = Server::start(|_, _| ok(r#"[{"Node": {}, "Service": "s3cret"}]"#)).await;
    let followed = follow(json!({"type": "consul", "address": server.url, "service": "redis"}));
    let why = followed.end().await;
    assert!(why.starts_with("the answer of the registry is wrong at line 1 column "), "{why}");
    assert!(!why.contains("s3cret"), "{why}");
}

#[tokio::test]
async fn a_registry_that_is_not_there_is_told() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    drop(listener);
    let followed = follow(json!({"type": "consul", "address": url, "service": "redis", "token": "s3cret"}));
    let why = followed.end().await;
    assert!(why.contains("connect") && !why.contains("s3cret"), "{why}");
}

/// An instance as a server of Eureka writes it.
fn eureka_instance(id: u8, status: &str, port: Value) -> Value {
    json!({
        "instanceId": format!("localhost:foo:{id}"), "hostName": format!("foo{id}.internal"), "app": "FOO",
        "ipAddr": format!("192.168.56.{id}"), "status": status, "overriddenStatus": "UNKNOWN", "port": port,
        "securePort": {"$": 8443, "@enabled": "true"}, "countryId": 1,
        "dataCenterInfo": {"@class": "com.netflix.appinfo.InstanceInfo$DefaultDataCenterInfo", "name": "MyOwn"},
        "leaseInfo": {
            "renewalIntervalInSecs": 30, "durationInSecs": 90, "registrationTimestamp": 1457714988223_u64,
            "lastRenewalTimestamp": 1457716158319_u64, "evictionTimestamp": 0,
            "serviceUpTimestamp": 1457714988223_u64,
        },
        "metadata": {"@class": "java.util.Collections$EmptyMap", "zone": "zone1"},
        "homePageUrl": "http://localhost:8080/", "vipAddress": "foo", "secureVipAddress": "foo",
        "isCoordinatingDiscoveryServer": "false", "lastUpdatedTimestamp": "1457714988223",
        "lastDirtyTimestamp": "1457714988172", "actionType": "ADDED",
    })
}

#[tokio::test]
async fn eureka_tells_the_instances_that_are_up_and_an_application_it_does_not_know_has_none() {
    let server = Server::start(|number, question| {
        let head = question.to_ascii_lowercase();
        let known = head.starts_with("get /eureka/apps/foo http/1.1\r\n")
            && head.contains("\r\naccept: application/json\r\n")
            // "gateway:s3cret" (RFC 7617 s2)
            && question.contains("Basic Z2F0ZXdheTpzM2NyZXQ=\r\n");
        let enabled = |port: u64| json!({"$": port, "@enabled": "true"});
        match number {
            _ if !known => Says::Json(400, String::new(), String::new()),
            0 => ok(json!({"application": {"name": "FOO", "instance": [
                eureka_instance(1, "UP", enabled(8080)),
                eureka_instance(2, "DOWN", enabled(8080)),
                eureka_instance(3, "STARTING", enabled(8080)),
                eureka_instance(4, "OUT_OF_SERVICE", enabled(8080)),
                eureka_instance(5, "UP", json!({"$": "8081", "@enabled": "true"})),
                eureka_instance(6, "UP", json!({"$": 8080, "@enabled": "false"})),
            ]}})),
            1 => {
                ok(json!({"application": {"name": "FOO", "instance": eureka_instance(7, "UP", enabled(1))}}))
            }
            2 => Says::Json(404, String::new(), String::new()),
            _ => Says::Json(503, String::new(), String::new()),
        }
    })
    .await;
    let mut followed = follow(json!({
        "type": "eureka", "address": format!("{}/eureka/", server.url), "app": "FOO", "interval": "1s",
        "username": "gateway", "password": "s3cret",
    }));
    assert_eq!(followed.next().await, ["192.168.56.1:8080*1@zone1", "192.168.56.5:8081*1@zone1"]);
    assert_eq!(followed.next().await, ["192.168.56.7:1*1@zone1"], "a list of one that is none");
    assert!(followed.next().await.is_empty());
    assert_eq!(followed.end().await, "the registry answers 503");
}

#[tokio::test]
async fn eureka_tells_names_and_secure_ports_if_they_are_wanted() {
    let server = Server::start(|_, _| {
        let port = json!({"$": 8080, "@enabled": "false"});
        ok(json!({"application": {"name": "FOO", "instance": [eureka_instance(1, "UP", port)]}}))
    })
    .await;
    let mut followed = follow(json!({
        "type": "eureka", "address": server.url, "app": "FOO", "secure": true, "host": "name",
    }));
    assert_eq!(followed.next().await, ["foo1.internal:8443*1@zone1"]);
}

/// An instance as the manuals of Nacos 2 and 3 show it: <https://nacos.io/en/docs/latest/open-api>, "Query instances",
/// and <https://nacos.io/en/docs/v3.2/manual/user/open-api/>.
fn nacos_instance(ip: &str, weight: f64, healthy: bool, enabled: bool) -> Value {
    json!({
        "ip": ip, "port": 8848, "weight": weight, "healthy": healthy, "enabled": enabled, "ephemeral": true,
        "clusterName": "DEFAULT", "serviceName": "DEFAULT_GROUP@@users", "metadata": {},
        "instanceHeartBeatTimeOut": 15000, "ipDeleteTimeout": 30000, "instanceHeartBeatInterval": 5000,
    })
}

fn nacos_list(hosts: &[Value]) -> Value {
    json!({
        "name": "DEFAULT_GROUP@@users", "groupName": "DEFAULT_GROUP", "clusters": "", "cacheMillis": 10000,
        "hosts": hosts, "lastRefTime": 1662554390814_u64, "checksum": "", "allIPs": false,
        "reachProtectionThreshold": false, "valid": true,
    })
}

/// What logging in gives, as <https://nacos.io/en/docs/next/manual/user/auth/> shows it: unwrapped in all versions.
fn nacos_login(token: &str) -> Says {
    ok(json!({"accessToken": token, "tokenTtl": 18000, "globalAdmin": true, "username": "gateway"}))
}

#[tokio::test]
async fn nacos_is_logged_in_to_and_tells_what_is_healthy_and_enabled_by_weight() {
    let server = Server::start(|number, question| match number {
        0 | 3 => {
            let form = "\r\n\r\nusername=gateway&password=s%263cret";
            let known =
                question.starts_with("POST /nacos/v1/auth/login HTTP/1.1\r\n") && question.ends_with(form);
            if known {
                nacos_login(&format!("token{number}"))
            } else {
                Says::Json(400, String::new(), String::new())
            }
        }
        1 => ok(json!({"code": 0, "message": "success", "data": nacos_list(&[
            nacos_instance("10.0.0.1", 1.0, true, true),
            nacos_instance("10.0.0.2", 0.5, true, true),
            nacos_instance("10.0.0.3", 1.0, false, true),
            nacos_instance("10.0.0.4", 1.0, true, false),
        ])})),
        2 | 5 => Says::Json(403, String::new(), "token expired".to_owned()),
        4 => ok(json!({"code": 0, "message": "success", "data": nacos_list(&[])})),
        _ => Says::Json(500, String::new(), String::new()),
    })
    .await;
    let written = json!({
        "type": "nacos", "address": format!("{}/nacos", server.url), "service": "users", "group": "shop",
        "namespace": "n1", "clusters": ["DEFAULT", "eu"], "username": "gateway", "password": "s&3cret",
        "interval": "1s",
    });
    let mut followed = follow(written);
    assert_eq!(followed.next().await, ["10.0.0.1:8848*1000@DEFAULT", "10.0.0.2:8848*500@DEFAULT"]);
    let ask = |token: &str| {
        format!(
            "GET /nacos/v2/ns/instance/list?serviceName=users&groupName=shop&namespaceId=n1\
             &clusterName=DEFAULT%2Ceu&healthyOnly=true&accessToken={token}"
        )
    };
    assert!(followed.next().await.is_empty(), "with a new token, once the old one is not taken any more");
    assert_eq!(followed.end().await, "cannot log in: the registry answers 500");
    let login = || "POST /nacos/v1/auth/login".to_owned();
    let asked = [login(), ask("token0"), ask("token0"), login(), ask("token3"), ask("token3"), login()];
    assert_eq!(server.lines(), asked);
}

#[tokio::test]
async fn nacos_answers_in_both_versions_and_tells_its_own_errors_by_their_codes() {
    let server = Server::start(|number, question| match number {
        0 if question.starts_with(
            "GET /v1/ns/instance/list?serviceName=users&groupName=DEFAULT_GROUP&healthyOnly=true ",
        ) =>
        {
            ok(nacos_list(&[nacos_instance("10.0.0.1", 2.0, true, true)]))
        }
        // Of what failed, `data` says more.
        1 => ok(json!({"code": 21000, "message": "service name error", "data": "the name is malformed"})),
        2 => {
            let error =
                json!({"code": 10000, "message": "parameter missing", "data": "serviceName is required"});
            Says::Json(400, String::new(), error.to_string())
        }
        _ => Says::Json(400, String::new(), String::new()),
    })
    .await;
    let mut first = follow(json!({"type": "nacos", "address": server.url, "service": "users", "api": "v1"}));
    assert_eq!(first.next().await, ["10.0.0.1:8848*2@DEFAULT"]);
    let second = || follow(json!({"type": "nacos", "address": server.url, "service": "users"}));
    assert_eq!(second().end().await, "the registry answers code 21000: service name error");
    assert_eq!(second().end().await, "the registry answers 400: parameter missing");
}

// <https://nacos.io/en/docs/v3.2/manual/user/open-api/>: instances alone, whatever their health; no `healthyOnly`; the token
// in a field.
#[tokio::test]
async fn nacos_3_lists_instances_whatever_their_health_and_takes_the_token_as_a_field() {
    let server = Server::start(|number, question| match number {
        0 if question.starts_with("POST /nacos/v3/auth/user/login HTTP/1.1\r\n") => nacos_login("token"),
        1 if question.to_ascii_lowercase().contains("\r\naccesstoken: token\r\n") => {
            let hosts = [
                nacos_instance("10.0.0.1", 1.0, true, true),
                nacos_instance("10.0.0.2", 0.0, true, true),
                nacos_instance("10.0.0.3", 1.0, false, true),
            ];
            ok(json!({"code": 0, "message": "success", "data": hosts}))
        }
        2 => ok(json!({"code": 0, "message": "success", "data": "instances"})),
        _ => Says::Json(500, String::new(), String::new()),
    })
    .await;
    let mut followed = follow(json!({
        "type": "nacos", "address": format!("{}/nacos", server.url), "service": "users", "clusters": ["eu"],
        "api": "v3", "username": "gateway", "password": "p", "interval": "1s",
    }));
    assert_eq!(followed.next().await, ["10.0.0.1:8848*1@DEFAULT", "10.0.0.2:8848*0@DEFAULT"]);
    assert_eq!(followed.end().await, "the registry answers something else than instances");
    let ask =
        "GET /nacos/v3/client/ns/instance/list?serviceName=users&groupName=DEFAULT_GROUP&clusterName=eu";
    assert_eq!(server.lines()[1..], [ask, ask]);
}
