//! Every example is right, needs its filter, and does over sockets what its tests say.

use std::collections::HashMap;
use std::path::Path;

use serde_json::{Value, json};
use tollhouse::config::{Test, TestRequest};
use tollhouse::engine::dry;
use tollhouse::source;

use crate::gateway::{Gateway, run};
use crate::http::{self, Origin};
use crate::tls::Certificates;
use crate::{project, read, stem, yaml_files};

/// Examples that show more than one filter.
const OVERVIEWS: &[&str] = &[
    "access_log",
    "balancing",
    "credentials",
    "discovery",
    "grpc",
    "health",
    "jwks",
    "login",
    "matching",
    "proxy_protocol",
    "ramp",
    "resilience",
    "services",
    "split",
    "stores",
    "tls",
    "upstream_tls",
    "versions",
];

fn examples() -> Vec<std::path::PathBuf> {
    let mut files = yaml_files("conf/examples");
    files.push(project("conf/tollhouse.yaml"));
    files
}

fn document(path: &Path) -> Value {
    serde_yaml::from_str(&read(path)).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

fn tests(document: &Value) -> Vec<Test> {
    serde_json::from_value(document["tests"].clone()).expect("tests")
}

#[test]
fn every_example_passes_check_and_its_own_tests() {
    for path in examples() {
        let folder = tempfile::tempdir().expect("a folder");
        let file = check(&path, folder.path());
        let tested = run(&["test", &file]);
        assert!(tested.status.success(), "{file}: {}", String::from_utf8_lossy(&tested.stdout));
        let said = String::from_utf8_lossy(&tested.stdout).into_owned();
        let count = tests(&document(&path)).len();
        assert!(count >= 2 && said.ends_with(&format!("{count} passed, 0 failed\n")), "{file}: {said}");
    }
}

#[test]
fn every_document_of_the_load_tests_passes_check() {
    let documents = yaml_files("loadtest/configs/tollhouse");
    assert!(!documents.is_empty());
    for path in documents {
        let folder = tempfile::tempdir().expect("a folder");
        // Made for each run, by those that want some.
        std::fs::write(folder.path().join("consumers.jsonl"), "").expect("written");
        check(&path, folder.path());
    }
}

/// Checks a copy of a document in a folder, with the certificates that it names, and says where it is.
fn check(path: &Path, folder: &Path) -> String {
    let copy = folder.join(path.file_name().expect("a name"));
    std::fs::copy(path, &copy).expect("copied");
    Certificates::make(folder, &document(path));
    let file = copy.to_str().expect("UTF-8").to_owned();
    let checked = run(&["check", &file]);
    let said = String::from_utf8_lossy(&checked.stderr);
    assert!(checked.status.success() && said.is_empty(), "{file}: {said}");
    file
}

#[test]
fn every_filter_has_an_example_that_fails_without_it() {
    let registry = tollhouse_filters::builtin();
    for name in registry.names() {
        let path = project(&format!("conf/examples/{name}.yaml"));
        let mut document = document(&path);
        let removed = without_filter(&mut document, name);
        assert!(removed > 0, "{} does not use its filter", path.display());
        let loaded =
            source::load_str(&document.to_string(), "without", None, &|_| None).expect("still right");
        let results = dry::run_tests(&loaded.into(), &registry).expect("still right");
        let failed = results.iter().filter(|result| !result.failures.is_empty()).count();
        assert!(failed > 0, "all tests of {} pass without its filter", path.display());
    }
}

/// Removes list items that are this filter, and says how many.
fn without_filter(value: &mut Value, name: &str) -> usize {
    match value {
        Value::Array(items) => {
            let before = items.len();
            items.retain(|item| !item.as_object().is_some_and(|item| item.contains_key(name)));
            let removed = before - items.len();
            removed + items.iter_mut().map(|item| without_filter(item, name)).sum::<usize>()
        }
        Value::Object(map) => map
            .iter_mut()
            .filter(|(key, _)| *key != "tests")
            .map(|(_, value)| without_filter(value, name))
            .sum(),
        _ => 0,
    }
}

#[test]
fn every_example_is_of_a_filter_or_an_overview() {
    let registry = tollhouse_filters::builtin();
    for path in yaml_files("conf/examples") {
        let name = stem(&path);
        assert!(registry.get(name).is_some() || OVERVIEWS.contains(&name), "{name}: no such filter");
        assert_eq!(document(&path)["admin"]["address"], "none", "{name}: examples take no port of their own");
        assert!(read(&path).starts_with("# yaml-language-server: $schema=../schema.json\n#\n# "), "{name}");
    }
}

#[test]
fn every_example_serves_what_its_tests_say() {
    for path in examples() {
        serve(&path);
    }
}

/// Starts the real program with an example, and plays its tests over sockets.
fn serve(path: &Path) {
    let mut document = document(path);
    let origins = redirect_to_origins(&mut document);
    redirect_to_no_store(&mut document);
    let listeners: Vec<String> = names(&document, "listeners");
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("served.yaml");
    std::fs::write(&file, document.to_string()).expect("written");
    let certificates = Certificates::make(folder.path(), &document);
    let gateway = Gateway::start(&file, &[], listeners.len(), false);
    // What is under way at once is held there by `tests/gateway/amounts.rs`, not by the answers of these origins.
    for test in tests(&document).into_iter().filter(|test| !test.request.at_once) {
        let listener = test.request.listener.as_ref().map_or(listeners[0].as_str(), |name| name.as_str());
        for _ in 1..test.request.times {
            send(&gateway, listener, &test.request, &certificates);
            origins.values().for_each(|origin| drop(origin.take()));
        }
        let answer = send(&gateway, listener, &test.request, &certificates);
        let failures = failures(&test, &answer, &origins);
        assert!(failures.is_empty(), "{}, test `{}`: {failures:?}; {answer:?}", path.display(), test.name);
    }
}

/// Puts ports of the system's choice and scripted origins in the place of addresses.
fn redirect_to_origins(document: &mut Value) -> HashMap<String, Origin> {
    document["admin"] = json!({"address": "none"});
    // Its format is served, not its destination.
    let log = &mut document["observability"]["access_log"];
    *log = match &log["format"] {
        Value::Null => json!({"format": "none"}),
        format => json!({"format": format}),
    };
    for listener in document["listeners"].as_array_mut().expect("listeners") {
        listener["address"] = json!("127.0.0.1:0");
        // The tests' requests come without a proxy.
        listener.as_object_mut().expect("a map").remove("accept_proxy_protocol");
    }
    for identity in document.get_mut("identities").and_then(Value::as_object_mut).into_iter().flatten() {
        ask_nobody(identity.1);
    }
    let mut origins = HashMap::new();
    for upstream in document.get_mut("upstreams").and_then(Value::as_array_mut).into_iter().flatten() {
        let origin = Origin::start();
        upstream["backends"] = json!([{"address": origin.address.to_string()}]);
        // The scripted origins speak nothing else.
        upstream["protocol"] = json!("http/1.1");
        let fields = upstream.as_object_mut().expect("a map");
        fields.remove("tls");
        fields.remove("discovery");
        if fields.get("health").is_some_and(|health| health["active"]["type"] == "grpc") {
            fields.remove("health");
        }
        origins.insert(upstream["name"].as_str().expect("a name").to_owned(), origin);
    }
    origins
}

/// Has stores be where nothing is: a Redis on this machine is not ours.
fn redirect_to_no_store(document: &mut Value) {
    for store in document
        .get_mut("stores")
        .and_then(Value::as_object_mut)
        .into_iter()
        .flat_map(serde_json::Map::values_mut)
    {
        store["url"] = json!("unix:///nonexistent/redis.sock");
    }
}

/// Whoever vouches for callers is at a port on which nobody listens.
fn ask_nobody(identity: &mut Value) {
    identity.as_object_mut().expect("a map").remove("upstream");
    if identity["type"] == "jwt" && identity["issuer"].is_string() && identity["jwks_uri"].is_null() {
        // Tokens say who issued them.
        identity["jwks_uri"] = json!("http://127.0.0.1:1/");
        return;
    }
    for key in ["issuer", "jwks_uri", "endpoint"] {
        if identity[key].as_str().is_some_and(|text| text.starts_with("http")) {
            identity[key] = json!("http://127.0.0.1:1/");
        }
    }
}

fn names(document: &Value, section: &str) -> Vec<String> {
    let items = document[section].as_array().expect("a list");
    items.iter().map(|item| item["name"].as_str().expect("a name").to_owned()).collect()
}

fn send(
    gateway: &Gateway,
    listener: &str,
    request: &TestRequest,
    certificates: &Certificates,
) -> http::Message {
    assert!(request.client.is_none(), "a socket cannot pretend to come from another address");
    let method = request.method.clone().map_or(::http::Method::GET, Into::into);
    let headers: Vec<(String, &str)> = request
        .headers
        .iter()
        .map(|(name, value)| (::http::HeaderName::from(name.clone()).to_string(), value.as_str()))
        .collect();
    let mut fields = vec![("host", request.host.as_deref().unwrap_or("localhost"))];
    fields.extend(headers.iter().map(|(name, value)| (name.as_str(), *value)));
    let body = request.body.as_deref().unwrap_or_default();
    let (address, path) = (gateway.listener(listener), &request.path);
    if !certificates.speaks_tls(listener) {
        return http::request(address, method.as_str(), path, &fields, body.as_bytes());
    }
    let stream = certificates.connect(address, fields[0].1);
    http::request_over(stream, method.as_str(), path, &fields, body.as_bytes())
}

fn failures(test: &Test, answer: &http::Message, origins: &HashMap<String, Origin>) -> Vec<String> {
    let expect = &test.expect;
    let reached: Vec<(&str, http::Message)> = origins
        .iter()
        .flat_map(|(name, origin)| origin.take().into_iter().map(|seen| (name.as_str(), seen)))
        .filter(|(_, seen)| !seen.is_probe() && !seen.is_copy())
        .collect();
    let forwards = expect.upstream.is_some()
        || expect.path_to_upstream.is_some()
        || !expect.headers_to_upstream.is_empty();
    let mut failures = Vec::new();
    if !forwards {
        let status = expect.status.map_or(answer.status(), |status| status);
        if answer.status() != status || !reached.is_empty() {
            failures.push(format!("wanted {status} from the gateway, reached {}", reached.len()));
        }
        failures.extend(answer.mismatches(&expect.headers));
        let text = expect.body_contains.as_deref().unwrap_or_default();
        if !answer.text().contains(text) {
            failures.push(format!("no `{text}` in the body"));
        }
        return failures;
    }
    let [(upstream, seen)] = reached.as_slice() else {
        return vec![format!("reached {} origins", reached.len())];
    };
    if answer.status() != 200 || answer.text() != "origin\n" {
        failures.push("the origin's answer did not come back".to_owned());
    }
    if expect.upstream.as_ref().is_some_and(|wanted| wanted.as_str() != *upstream) {
        failures.push(format!("reached `{upstream}`"));
    }
    if expect.path_to_upstream.as_deref().is_some_and(|wanted| wanted != seen.target()) {
        failures.push(format!("asked for {}", seen.target()));
    }
    if seen.text() != test.request.body.as_deref().unwrap_or_default() {
        failures.push(format!("the origin got the body {:?}", seen.text()));
    }
    failures.extend(seen.mismatches(&expect.headers_to_upstream));
    failures
}
