//! The admin API as a contract: its OpenAPI document, entity tags, upstreams, and what a flood meets.

use std::collections::BTreeSet;
use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::admin::{Admin, TOKEN, assert_problem};
use crate::http::Message;

/// The OpenAPI document, strict: objects have no members but those that are described.
fn described(admin: &Admin) -> Value {
    let answer = admin.get("/api/openapi.json");
    assert_eq!(answer.status(), 200, "{answer:?}");
    let mut document = answer.json();
    for schema in document["components"]["schemas"].as_object_mut().expect("schemas").values_mut() {
        close(schema);
    }
    document
}

fn close(schema: &mut Value) {
    let Value::Object(map) = schema else { return };
    if map.contains_key("properties") {
        map.entry("additionalProperties").or_insert(json!(false));
    }
    map.values_mut().for_each(close);
}

/// The operation's description of this answer.
fn response<'a>(document: &'a Value, method: &str, path: &str, status: u16) -> &'a Value {
    let response = &document["paths"][path][method.to_lowercase()]["responses"][status.to_string()];
    assert!(response.is_object(), "{method} {path}: {status} is not described");
    response
}

/// Compares an answer with its description.
fn assert_described(document: &Value, method: &str, path: &str, answer: &Message) {
    let response = response(document, method, path, answer.status());
    let kind = answer.header("content-type").split(';').next().unwrap_or_default();
    let schema = &response["content"][kind]["schema"];
    assert!(!schema.is_null(), "{method} {path}: content of {kind} is not described; {answer:?}");
    let whole = json!({"allOf": [schema], "components": document["components"]});
    let validator = jsonschema::validator_for(&whole).expect("a valid schema");
    let body = if kind.ends_with("json") { answer.json() } else { answer.text().into() };
    let errors: Vec<String> = validator.iter_errors(&body).map(|error| error.to_string()).collect();
    assert!(errors.is_empty(), "{method} {path}: {errors:?} in {body}");
}

#[test]
fn the_document_is_openapi_3_1_and_its_schemas_are_valid() {
    let admin = Admin::with_token();
    let text = admin.get("/api/openapi.json").text();
    let parsed = oas3::from_json(&text).expect("OpenAPI");
    assert_eq!(parsed.validate_version().expect("a version").major, 3);
    assert!(parsed.openapi.starts_with("3.1."), "{}", parsed.openapi);
    let operations: Vec<_> = parsed.operations().collect();
    assert!(operations.len() >= 10, "{operations:?}");
    let ids: BTreeSet<_> = operations.iter().filter_map(|(_, _, op)| op.operation_id.clone()).collect();
    assert_eq!(ids.len(), operations.len(), "every operation has an id of its own");
    let document: Value = serde_json::from_str(&text).expect("JSON");
    for (name, schema) in document["components"]["schemas"].as_object().expect("schemas") {
        let whole = json!({"allOf": [schema], "components": document["components"]});
        assert!(jsonschema::meta::is_valid(schema), "{name}");
        jsonschema::validator_for(&whole).unwrap_or_else(|error| panic!("{name}: {error}"));
    }
}

const ACKNOWLEDGE: &str = "/api/releases/{route}/acknowledge";
const CREDENTIAL_OFF: &str = "/api/consumers/{name}/credentials/{id}/disable";
const CREDENTIAL_ON: &str = "/api/consumers/{name}/credentials/{id}/enable";

/// Method, path, target, fields, body, and the status of the answer.
type Call<'a> = (&'a str, &'a str, &'a str, &'a [(&'a str, &'a str)], &'a str, u16);

fn consumer_calls<'a>(token: &'a [(&'a str, &'a str)]) -> Vec<Call<'a>> {
    let switch = "/api/consumers/{name}/disable";
    vec![
        ("GET", "/api/consumers", "/api/consumers", &[], "", 200),
        ("GET", "/api/consumers", "/api/consumers?after=acme&limit=1", &[], "", 200),
        ("GET", "/api/consumers", "/api/consumers?limit=0", &[], "", 400),
        ("GET", "/api/consumers/{name}", "/api/consumers/acme", &[], "", 200),
        ("GET", "/api/consumers/{name}", "/api/consumers/nobody", &[], "", 404),
        ("POST", switch, "/api/consumers/acme/disable", token, "", 200),
        ("POST", switch, "/api/consumers/nobody/disable", token, "", 404),
        ("POST", switch, "/api/consumers/acme/disable", &[], "", 401),
        ("POST", "/api/consumers/{name}/enable", "/api/consumers/acme/enable", token, "", 200),
        ("POST", CREDENTIAL_OFF, "/api/consumers/acme/credentials/k/disable", token, "", 200),
        ("POST", CREDENTIAL_OFF, "/api/consumers/acme/credentials/l/disable", token, "", 404),
        ("POST", CREDENTIAL_ON, "/api/consumers/acme/credentials/k/enable", token, "", 200),
    ]
}

#[test]
fn consumers_of_the_document_are_not_changed_by_the_api() {
    let admin = Admin::with_token();
    let document = described(&admin);
    let bearer = format!("Bearer {TOKEN}");
    let switch = "/api/consumers/{name}/disable";
    let refused = admin.ask("POST", "/api/consumers/acme/disable", &[("authorization", &bearer)], "");
    assert_eq!(refused.status(), 409, "the consumers are in the document: {refused:?}");
    assert_described(&document, "POST", switch, &refused);
}

#[test]
fn every_path_answers_as_it_is_described() {
    let admin = Admin::with_token();
    let document = described(&admin);
    admin.move_consumers();
    admin.abort_ramp();
    let wrong = "version: 1\nlistener: []\nlistener: []\n";
    let fine = "version: 1\nlisteners: [{name: m, address: \"127.0.0.1:1\"}]\n";
    let question = json!({"method": "GET", "url": "/users/7", "headers": [["x-a", "1"]]}).to_string();
    let bearer = format!("Bearer {TOKEN}");
    let token = [("authorization", bearer.as_str())];
    let json = [("content-type", "application/json")];
    let both = [token[0], json[0]];
    let entry = json!({"identity": "corp", "jti": "1", "expires": 4_102_444_800_u64}).to_string();
    let large = " ".repeat((1 << 20) + 1);
    let mut calls: Vec<Call<'_>> = vec![
        ("GET", "/healthz", "/healthz", &[], "", 200),
        ("GET", "/readyz", "/readyz", &[], "", 200),
        ("GET", "/metrics", "/metrics", &[], "", 200),
        ("GET", "/api/openapi.json", "/api/openapi.json", &[], "", 200),
        ("GET", "/api/config", "/api/config", &[], "", 200),
        ("GET", "/api/config", "/api/config", &[("host", "evil.example")], "", 403),
        ("GET", "/api/routes", "/api/routes", &[], "", 200),
        ("GET", "/api/stores", "/api/stores", &[], "", 200),
        ("GET", "/api/upstreams", "/api/upstreams", &[], "", 200),
        ("GET", "/api/upstreams/{name}", "/api/upstreams/users", &[], "", 200),
        ("GET", "/api/upstreams/{name}", "/api/upstreams/nobody", &[], "", 404),
        ("GET", "/api/identities", "/api/identities", &[], "", 200),
        ("GET", "/api/mirrors", "/api/mirrors", &[], "", 200),
        ("POST", "/api/reload", "/api/reload", &token, "", 200),
        ("POST", "/api/reload", "/api/reload", &[], "", 401),
        ("POST", "/api/check", "/api/check", &[], fine, 200),
        ("POST", "/api/check", "/api/check", &[], wrong, 422),
    ];
    calls.extend(about_explaining(&json, &question, &large));
    calls.extend(about_releases(&token));
    calls.extend(about_revocations(&token, &json, &both, &entry, &large));
    calls.extend(about_the_cache(&token, &both, &large));
    let mut succeeded = BTreeSet::new();
    for (method, path, target, headers, body, status) in calls.into_iter().chain(consumer_calls(&token)) {
        let answer = admin.ask(method, target, headers, body);
        assert_eq!(answer.status(), status, "{method} {target}: {answer:?}");
        assert_described(&document, method, path, &answer);
        if status == 200 {
            succeeded.insert((path.to_owned(), method.to_lowercase()));
        }
    }
    let all: BTreeSet<(String, String)> = document["paths"]
        .as_object()
        .expect("paths")
        .iter()
        .flat_map(|(path, item)| {
            let methods = item.as_object().expect("operations").keys();
            methods.map(|method| (path.clone(), method.clone())).collect::<Vec<_>>()
        })
        .collect();
    assert_eq!(succeeded, all, "every operation is called");
}

type Fields<'a> = &'a [(&'a str, &'a str)];

fn about_explaining<'a>(json: Fields<'a>, question: &'a str, large: &'a str) -> Vec<Call<'a>> {
    const EXPLAIN: &str = "/api/explain";
    vec![
        ("POST", EXPLAIN, EXPLAIN, json, question, 200),
        ("POST", EXPLAIN, EXPLAIN, json, "{", 400),
        ("POST", EXPLAIN, EXPLAIN, json, "[[]]", 422),
        ("POST", EXPLAIN, EXPLAIN, &[("content-type", "text/plain")], question, 415),
        ("POST", EXPLAIN, EXPLAIN, json, large, 413),
    ]
}

fn about_releases(token: Fields<'_>) -> Vec<Call<'_>> {
    vec![
        ("GET", "/api/releases", "/api/releases", &[], "", 200),
        ("POST", ACKNOWLEDGE, "/api/releases/ramped/acknowledge", &[], "", 401),
        ("POST", ACKNOWLEDGE, "/api/releases/ramped/acknowledge", token, "", 200),
        ("POST", ACKNOWLEDGE, "/api/releases/ramped/acknowledge", token, "", 409),
        ("POST", ACKNOWLEDGE, "/api/releases/users/acknowledge", token, "", 404),
    ]
}

fn about_revocations<'a>(
    token: Fields<'a>,
    json: Fields<'a>,
    both: Fields<'a>,
    entry: &'a str,
    large: &'a str,
) -> Vec<Call<'a>> {
    vec![
        ("GET", "/api/revocations", "/api/revocations", &[], "", 401),
        ("GET", "/api/revocations", "/api/revocations?identity=corp", token, "", 200),
        ("GET", "/api/revocations", "/api/revocations?x=y", token, "", 400),
        ("POST", "/api/revocations", "/api/revocations", json, entry, 401),
        ("POST", "/api/revocations", "/api/revocations", both, entry, 201),
        ("POST", "/api/revocations", "/api/revocations", both, entry, 200),
        ("POST", "/api/revocations", "/api/revocations", both, "{", 400),
        ("POST", "/api/revocations", "/api/revocations", both, "{}", 422),
        ("POST", "/api/revocations", "/api/revocations", token, entry, 415),
        ("POST", "/api/revocations", "/api/revocations", both, large, 413),
        ("DELETE", "/api/revocations", "/api/revocations?identity=corp&jti=1", &[], "", 401),
        ("DELETE", "/api/revocations", "/api/revocations?identity=corp&jti=1", token, "", 200),
        ("DELETE", "/api/revocations", "/api/revocations?identity=corp&jti=1", token, "", 404),
        ("DELETE", "/api/revocations", "/api/revocations?jti=1", token, "", 400),
    ]
}

fn about_the_cache<'a>(token: Fields<'a>, both: Fields<'a>, large: &'a str) -> Vec<Call<'a>> {
    const LOOKUP: &str = "/api/cache/lookup";
    const PURGE: &str = "/api/cache/purge";
    vec![
        ("GET", "/api/cache", "/api/cache", &[], "", 200),
        ("GET", LOOKUP, "/api/cache/lookup?url=http://a.test/", &[], "", 401),
        ("GET", LOOKUP, "/api/cache/lookup?url=http://a.test/", token, "", 200),
        ("GET", LOOKUP, "/api/cache/lookup?url=a.test", token, "", 400),
        ("GET", LOOKUP, "/api/cache/lookup", token, "", 400),
        ("POST", PURGE, PURGE, &[], "{\"all\": true}", 401),
        ("POST", PURGE, PURGE, both, "{\"all\": true}", 200),
        ("POST", PURGE, PURGE, both, "{", 400),
        ("POST", PURGE, PURGE, both, "{}", 422),
        ("POST", PURGE, PURGE, token, "{}", 415),
        ("POST", PURGE, PURGE, both, large, 413),
    ]
}

#[test]
fn consumers_are_told_a_page_at_a_time_and_without_secrets() {
    let admin = Admin::with_token();
    admin.move_consumers();
    let page = admin.get("/api/consumers?limit=2").json();
    let names = |page: &Value| -> Vec<String> {
        let all = page["consumers"].as_array().expect("a list").iter();
        all.map(|consumer| consumer["name"].as_str().unwrap_or_default().to_owned()).collect()
    };
    assert_eq!(
        (names(&page), &page["total"], &page["next"]),
        (vec!["acme".into(), "b".into()], &json!(3), &json!("b"))
    );
    let rest = admin.get("/api/consumers?limit=2&after=b");
    assert_eq!((names(&rest.json()), rest.json().get("next")), (vec!["globex".to_owned()], None));
    let one = admin.get("/api/consumers/acme");
    assert_eq!(
        one.json()["credentials"],
        json!([{"type": "api_key", "id": "k", "identity": "keys", "disabled": false}])
    );
    assert!(!one.text().contains("f52fbd32"), "{one:?}");
}

#[test]
fn a_refused_reload_answers_as_it_is_described() {
    let admin = Admin::with_token();
    let document = described(&admin);
    let text = std::fs::read_to_string(admin.file()).expect("readable");
    std::fs::write(admin.file(), format!("{text}nonsense: 1\n")).expect("written");
    let refused = admin.reload();
    assert_problem(&refused, 422);
    assert_described(&document, "POST", "/api/reload", &refused);
}

#[test]
fn upstreams_tell_their_backends_as_they_are() {
    let admin = Admin::with_token();
    let expected = json!({
        "name": "users", "protocol": "http/1.1", "tls": false, "algorithm": "round_robin", "checked": false,
        "circuit_breaker": null, "concurrency": null, "discovery": null,
        "backends": [{
            "address": "127.0.0.1:9", "weight": 1, "usable": true,
            "in_flight": 0, "latency_ms": null, "requests": 0, "failures": 0,
            "standing": {"state": "in", "reason": "", "since": null},
            "name": null, "addresses": [{"address": "127.0.0.1:9", "health": null}],
        }],
    });
    let all = admin.get("/api/upstreams").json();
    assert_eq!((&all["generation"], &all["upstreams"][0]), (&json!(1), &expected));
    assert_eq!(admin.get("/api/upstreams/users").json(), expected);
    assert_problem(&admin.get("/api/upstreams/nobody"), 404);
    assert_problem(&admin.get("/api/upstreams/"), 404);
}

/// RFC 9110 sections 8.8.3, 13.1.2 and 15.4.5.
#[test]
fn who_has_a_document_already_is_not_sent_it_again() {
    let admin = Admin::with_token();
    for path in ["/api/config", "/api/routes", "/api/upstreams", "/api/upstreams/users", "/api/openapi.json"]
    {
        let first = admin.get(path);
        let tag = first.header("etag").to_owned();
        assert!(tag.len() > 10 && tag.starts_with('"') && tag.ends_with('"'), "{path}: {tag}");
        for named in [tag.clone(), "*".to_owned(), format!("W/{tag}"), format!("\"x\", {tag}")] {
            let again = admin.ask("GET", path, &[("if-none-match", &named)], "");
            assert_eq!((again.status(), again.header("etag")), (304, tag.as_str()), "{path}: {again:?}");
            assert_eq!(again.header("cache-control"), first.header("cache-control"));
            assert!(again.header("content-type").is_empty(), "{again:?}");
        }
        assert_eq!(admin.ask("GET", path, &[("if-none-match", "\"x\"")], "").status(), 200);
        let head = admin.ask("HEAD", path, &[], "");
        assert_eq!((head.status(), head.header("etag")), (200, tag.as_str()), "{path}: {head:?}");
        assert_eq!(head.header("content-length"), first.header("content-length"), "{path}");
        assert_eq!(admin.ask("HEAD", path, &[("if-none-match", &tag)], "").status(), 304, "{path}");
    }
}

/// RFC 9110 section 8.6: a length in 304 would have to be that of the answer 200.
#[test]
fn a_304_tells_no_length() {
    let admin = Admin::with_token();
    for method in ["GET", "HEAD"] {
        let tag = admin.ask(method, "/api/routes", &[], "").header("etag").to_owned();
        let answer = admin.ask(method, "/api/routes", &[("if-none-match", &tag)], "");
        assert_eq!(answer.status(), 304, "{method}");
        for name in ["content-length", "transfer-encoding"] {
            assert!(!answer.headers.contains_key(name), "{method}: {answer:?}");
        }
    }
}

#[test]
fn a_name_that_is_no_text_is_a_problem() {
    assert_problem(&Admin::with_token().get("/api/upstreams/%ff"), 400);
}

#[test]
fn a_changed_document_has_another_tag() {
    let admin = Admin::with_token();
    let before = admin.get("/api/routes");
    let text = std::fs::read_to_string(admin.file()).expect("readable");
    std::fs::write(admin.file(), text.replace("name: ping", "name: pong")).expect("written");
    assert_eq!(admin.reload().json()["generation"], 2);
    let after = admin.ask("GET", "/api/routes", &[("if-none-match", before.header("etag"))], "");
    assert_eq!(after.status(), 200);
    assert_ne!(after.header("etag"), before.header("etag"));
}

#[test]
fn a_refused_reader_is_told_no_tag() {
    let admin = Admin::with_token();
    let refused = admin.ask("GET", "/api/config", &[("host", "evil.example"), ("if-none-match", "*")], "");
    assert_problem(&refused, 403);
    assert!(refused.header("etag").is_empty());
}

#[test]
fn few_documents_are_worked_on_at_a_time_and_the_rest_is_told_to_wait() {
    let admin = Admin::with_token();
    // Bodies that are on their way hold their places.
    let head = "POST /api/check HTTP/1.1\r\nhost: localhost\r\ncontent-length: 10\r\n\r\nversion";
    let mut slow: Vec<TcpStream> = (0..2).map(|_| send(&admin, head)).collect();
    let until = Instant::now() + Duration::from_secs(8);
    let refused = loop {
        assert!(Instant::now() < until, "everybody is let in");
        let answer = admin.post("/api/check", "version: 1\n");
        if answer.status() == 503 {
            break answer;
        }
        assert_eq!(answer.status(), 422, "{answer:?}");
    };
    assert_problem(&refused, 503);
    assert_eq!(refused.header("retry-after"), "1");
    assert_eq!(admin.post("/api/explain", "{\"url\": \"/\"}").status(), 503, "places are shared");
    assert_eq!(admin.get("/api/routes").status(), 200, "looking needs no place");
    let mut done = slow.pop().expect("two of them");
    done.write_all(b": 1").expect("sent");
    let mut answer = [0; 12];
    done.read_exact(&mut answer).expect("an answer");
    assert_eq!(&answer, b"HTTP/1.1 422");
    assert_eq!(admin.post("/api/check", "version: 1\n").status(), 422, "its place is free again");
}

fn send(admin: &Admin, text: &str) -> TcpStream {
    let mut stream = TcpStream::connect(admin.gateway.admin()).expect("somebody listens");
    stream.set_read_timeout(Some(Duration::from_secs(20))).expect("a socket option");
    stream.write_all(text.as_bytes()).expect("sent");
    stream
}

/// Connections are cheap to hold open and descriptors are few; traffic needs them.
#[test]
fn idle_connections_are_few() {
    let admin = Admin::with_token();
    let held: Vec<TcpStream> =
        (0..300).map(|_| TcpStream::connect(admin.gateway.admin()).expect("it listens")).collect();
    let until = Instant::now() + Duration::from_secs(5);
    let closed = |stream: &TcpStream| {
        stream.set_nonblocking(true).expect("a socket option");
        !stream.peek(&mut [0]).is_err_and(|error| error.kind() == io::ErrorKind::WouldBlock)
    };
    while held.iter().filter(|stream| closed(stream)).count() < 44 {
        assert!(Instant::now() < until, "300 connections are open");
        std::thread::sleep(Duration::from_millis(10));
    }
    assert!(!closed(&held[0]), "those that came first stay");
    drop(held);
    let until = Instant::now() + Duration::from_secs(5);
    let alive = || {
        let mut stream = TcpStream::connect(admin.gateway.admin()).ok()?;
        stream.write_all(b"GET /healthz HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n").ok()?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).ok()?;
        answer.ends_with("ok\n").then_some(())
    };
    while alive().is_none() {
        assert!(Instant::now() < until, "no place is free again");
        std::thread::sleep(Duration::from_millis(10));
    }
}
