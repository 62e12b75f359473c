//! The admin API over a socket: what it shows, to whom, and what it refuses.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tempfile::TempDir;

use crate::gateway::Gateway;
use crate::http::{self, Message};

pub(crate) const TOKEN: &str = "hunter2-token";

const DOCUMENT: &str = "version: 1
listeners: [{name: main, address: \"127.0.0.1:0\"}]
upstreams: [{name: users, backends: [{address: \"127.0.0.1:9\"}]}, {name: next, backends: [{address: \"127.0.0.1:9\"}]}]
server: {quotas: none}
routes:
  - name: users
    match: {paths: [\"/users/{id}\"], methods: [GET]}
    filters:
      - headers: {request: {set: {authorization: \"Basic ${env:UPSTREAM_PASSWORD}\"}}}
    upstream: users
  - {name: ping, match: {paths: [/ping]}, respond: {body: pong}}
  - name: inside
    match: {headers: {x-verify: \"${env:UPSTREAM_PASSWORD}\"}}
    filters: [{rewrite: {add_prefix: \"/${env:UPSTREAM_PASSWORD}\"}}]
    upstream: users
  - name: ramped
    match: {paths: [/ramped]}
    split:
      to: {users: 1, next: 0}
      force: {header: x-variant}
      ramp: {from: users, to: next, over: 1d, abort_if: {error_ratio: 1%, min_requests: 1}}
observability: {access_log: {format: none}}
identities:
  keys: {type: api_key, from: [header:x-key]}
  corp: {type: jwt, algorithms: [HS256], secret: hunter2-hunter2-hunter2-hunter2-hunter2}
  oct: {type: jwt, algorithms: [HS256], jwks: {keys: [{kty: oct, k: aHVudGVyMmh1bnRlcjJodW50ZXIyaHVudGVyMmh1bnRlcjI}]}}
  text: {type: jwt, algorithms: [HS256], jwks: '{\"keys\":[{\"kty\":\"oct\",\"k\":\"aHVudGVyMmh1bnRlcjJodW50ZXIyaHVudGVyMmh1bnRlcjI\"}]}'}
consumers:
  - name: acme
    credentials: [{type: api_key, id: k, identity: keys, hash: \"sha256:f52fbd32b2b3b86ff88ef6c490628285f482af15ddcb29541f94bcf526a3f6c7\"}]
";

pub(crate) struct Admin {
    pub(crate) gateway: Gateway,
    file: PathBuf,
    _folder: TempDir,
}

impl Admin {
    pub(crate) fn start(admin: &str) -> Admin {
        let folder = tempfile::tempdir().expect("a folder");
        let file = folder.path().join("t.yaml");
        std::fs::write(&file, format!("{DOCUMENT}admin: {admin}\n")).expect("written");
        let environment = [("UPSTREAM_PASSWORD", "hunter2-upstream"), ("ADMIN", TOKEN)];
        let gateway = Gateway::start(&file, &environment, 1, true);
        Admin { gateway, file, _folder: folder }
    }

    /// With a token written in the document.
    pub(crate) fn with_token() -> Admin {
        Admin::start(&format!("{{address: \"127.0.0.1:0\", token: {TOKEN}}}"))
    }

    pub(crate) fn ask(&self, method: &str, path: &str, headers: &[(&str, &str)], body: &str) -> Message {
        let mut fields = vec![("host", "localhost")];
        if headers.iter().any(|(name, _)| *name == "host") {
            fields.clear();
        }
        fields.extend(headers);
        http::request(self.gateway.admin(), method, path, &fields, body.as_bytes())
    }

    pub(crate) fn get(&self, path: &str) -> Message {
        self.ask("GET", path, &[], "")
    }

    pub(crate) fn post(&self, path: &str, body: &str) -> Message {
        self.ask("POST", path, &[("content-type", "application/json")], body)
    }

    /// Has a request fail that goes to the new variant of a ramp, and waits until that is given up.
    pub(crate) fn abort_ramp(&self) {
        let fields = [("host", "a.test"), ("x-variant", "next")];
        let failed = http::request(self.gateway.listener("main"), "GET", "/ramped", &fields, b"");
        assert_eq!(failed.status(), 502, "{failed:?}");
        // A request is counted after its answer was sent.
        let until = Instant::now() + Duration::from_secs(20);
        while self.get("/api/releases").json()["releases"][0]["state"] != "aborted" {
            assert!(Instant::now() < until, "the ramp goes on");
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// The document that it serves.
    pub(crate) fn file(&self) -> &Path {
        &self.file
    }

    /// Moves the consumer of the document into a file, with two others.
    pub(crate) fn move_consumers(&self) {
        let text = std::fs::read_to_string(&self.file).expect("readable");
        let (before, after) = text.split_once("consumers:\n").expect("in the document");
        let admin = &after[after.find("admin:").expect("behind them")..];
        let hash = "sha256:f52fbd32b2b3b86ff88ef6c490628285f482af15ddcb29541f94bcf526a3f6c7";
        let credential = json!({"type": "api_key", "id": "k", "hash": hash});
        let lines = [
            json!({"name": "globex"}),
            json!({"name": "acme", "credentials": [credential]}),
            json!({"name": "b"}),
        ];
        let lines: String = lines.iter().map(|line| format!("{line}\n")).collect();
        std::fs::write(self.file.with_file_name("consumers.jsonl"), lines).expect("written");
        std::fs::write(&self.file, format!("{before}consumers: {{file: consumers.jsonl}}\n{admin}"))
            .expect("written");
        assert_eq!(self.reload().status(), 200);
    }

    pub(crate) fn reload(&self) -> Message {
        self.ask("POST", "/api/reload", &[("authorization", "Bearer hunter2-token")], "")
    }
}

pub(crate) fn assert_problem(answer: &Message, status: u16) {
    assert_eq!(answer.status(), status, "{answer:?}");
    assert_eq!(answer.header("content-type"), "application/problem+json", "{answer:?}");
    assert_eq!(answer.json()["status"], status, "{answer:?}");
}

#[test]
fn health_readiness_and_metrics_are_told_to_loopback() {
    let admin = Admin::with_token();
    assert_eq!((admin.get("/healthz").status(), admin.get("/healthz").text().as_str()), (200, "ok\n"));
    assert_eq!((admin.get("/readyz").status(), admin.get("/readyz").text().as_str()), (200, "ready\n"));
    let served = http::request(admin.gateway.listener("main"), "GET", "/ping", &[("host", "a.test")], b"");
    assert_eq!((served.status(), served.text().as_str()), (200, "pong"));
    // A request is counted after its answer was sent.
    let until = Instant::now() + Duration::from_secs(20);
    loop {
        let metrics = admin.get("/metrics");
        assert!(metrics.header("content-type").starts_with("text/plain; version=0.0.4"), "{metrics:?}");
        let counted = metrics.text().lines().any(|line| {
            line.starts_with("tollhouse_requests_total{")
                && line.contains("route=\"ping\"")
                && line.ends_with(" 1")
        });
        if counted {
            return;
        }
        assert!(Instant::now() < until, "{}", metrics.text());
        std::thread::sleep(Duration::from_millis(10));
    }
}

#[test]
fn no_number_is_told_twice() {
    let metrics = Admin::with_token().get("/metrics").text();
    let mut seen = std::collections::HashSet::new();
    for line in metrics.lines().filter(|line| !line.starts_with('#')) {
        let series = line.rsplit_once(' ').map_or(line, |(series, _)| series);
        assert!(seen.insert(series), "{series}");
    }
    assert!(seen.contains("tollhouse_buffered_bytes"), "{metrics}");
}

#[test]
fn the_document_is_shown_without_secrets() {
    for admin in [Admin::with_token(), Admin::start("{address: \"127.0.0.1:0\", token: \"${env:ADMIN}\"}")] {
        let answer = admin.get("/api/config");
        assert_eq!(answer.status(), 200);
        assert!(!answer.text().contains("hunter2"), "{}", answer.text());
        let shown = answer.json();
        let document = &shown["document"];
        assert_eq!(document["admin"]["token"], "***");
        assert_eq!(document["routes"][0]["filters"][0]["headers"]["request"]["set"]["authorization"], "***");
        assert_eq!(document["upstreams"][0]["backends"][0]["address"], "127.0.0.1:9");
        assert_eq!(shown["generation"], 1);
        for hidden in ["aHVudGVy", "f52fbd32"] {
            assert!(!answer.text().contains(hidden), "{}", answer.text());
        }
        assert_eq!(document["identities"]["corp"]["secret"], "***");
        assert_eq!(document["consumers"][0]["credentials"][0]["hash"], "***");
        assert_eq!(document["consumers"][0]["credentials"][0]["id"], "k");
    }
}

#[test]
fn routes_are_listed_in_file_order() {
    let routes = Admin::with_token().get("/api/routes").json();
    assert_eq!(routes["routes"][0]["name"], "users");
    assert_eq!(routes["routes"][0]["action"], json!({"upstream": "users"}));
    assert_eq!(routes["routes"][0]["match"]["methods"], json!(["GET"]));
    assert_eq!(routes["routes"][1]["action"], "answer");
}

/// What came through a reference is never told by the admin API.
#[test]
fn routes_and_explanations_tell_nothing_from_outside_the_document() {
    let admin = Admin::with_token();
    let routes = admin.get("/api/routes");
    assert_eq!(routes.json()["routes"][2]["match"], json!({"headers": {"x-verify": "***"}}));
    let question = json!({"url": "/x", "headers": [["x-verify", "hunter2-upstream"]]});
    let answer = admin.post("/api/explain", &question.to_string());
    let told = answer.json();
    assert_eq!((&told["route"], &told["upstream_request"][0]), (&json!("inside"), &json!("GET ***")));
    assert_eq!(told["filters"][0]["fields"], json!([["to", "***"]]), "{told}");
}

#[test]
fn a_write_needs_the_token() {
    let admin = Admin::with_token();
    let refused = admin.ask("POST", "/api/reload", &[], "");
    assert_problem(&refused, 401);
    assert_eq!(refused.header("www-authenticate"), "Bearer");
    for wrong in ["Bearer hunter2", "Basic hunter2-token", "hunter2-token", "Bearer hunter2-token x"] {
        assert_problem(&admin.ask("POST", "/api/reload", &[("authorization", wrong)], ""), 401);
    }
    let allowed = admin.reload();
    assert_eq!((allowed.status(), allowed.json()), (200, json!({"outcome": "unchanged", "generation": 1})));
}

#[test]
fn without_a_token_nobody_writes() {
    let admin = Admin::start("{address: \"127.0.0.1:0\"}");
    assert_problem(&admin.ask("POST", "/api/reload", &[("authorization", "Bearer ")], ""), 403);
    assert_eq!(admin.get("/api/routes").status(), 200);
}

#[test]
fn a_foreign_host_is_refused_without_the_token() {
    let admin = Admin::with_token();
    for host in ["evil.example", "evil.example:80", "127.0.0.1.evil.example", "192.0.2.1", ""] {
        assert_problem(&admin.ask("GET", "/api/config", &[("host", host)], ""), 403);
    }
    for host in ["localhost", "LOCALHOST:1", "127.0.0.1:9900", "[::1]:9900"] {
        assert_eq!(admin.ask("GET", "/api/config", &[("host", host)], "").status(), 200, "{host}");
    }
    let bearer = ("authorization", "bearer hunter2-token");
    assert_eq!(admin.ask("GET", "/api/config", &[("host", "evil.example"), bearer], "").status(), 200);
}

#[test]
fn a_reload_tells_what_it_came_to() {
    let admin = Admin::with_token();
    let text = std::fs::read_to_string(&admin.file).expect("readable");
    std::fs::write(&admin.file, format!("{text}nonsense: 1\n")).expect("written");
    let refused = admin.reload();
    assert_eq!(refused.status(), 422, "{refused:?}");
    assert_eq!(refused.json()["outcome"], "refused");
    assert_eq!(refused.json()["problems"][0]["path"], "nonsense");
    std::fs::write(&admin.file, text.replace("name: ping", "name: pong")).expect("written");
    // The watch may have been faster than this request.
    let outcome = admin.reload().json();
    assert_eq!(outcome["generation"], 2, "{outcome}");
    assert_eq!(admin.get("/api/routes").json()["routes"][1]["name"], "pong");
}

#[test]
fn a_document_is_checked_without_reading_anything_here() {
    let admin = Admin::with_token();
    let fine = admin.post("/api/check", "version: 1\nlisteners: [{name: m, address: \"127.0.0.1:1\"}]\n");
    assert_eq!((fine.status(), fine.json()), (200, json!({"ok": true, "warnings": []})));
    let wrong =
        admin.post("/api/check", "version: 1\nlisteners: []\nx: ${env:ADMIN}\ny: ${file:/etc/passwd}\n");
    assert_eq!(wrong.status(), 422);
    let messages = wrong.json()["problems"].to_string();
    assert!(messages.contains("`ADMIN` is not set") && messages.contains("not available"), "{messages}");
    assert!(messages.contains("unknown key `x`") && messages.contains("no `listeners`"), "{messages}");
    assert!(!wrong.text().contains("hunter2") && !wrong.text().contains("root:"), "{}", wrong.text());
}

#[test]
fn a_request_is_explained_as_the_command_does() {
    let admin = Admin::with_token();
    let answer = admin.post("/api/explain", &json!({"method": "GET", "url": "/users/7"}).to_string());
    assert_eq!((answer.status(), &answer.json()["route"]), (200, &Value::from("users")));
    assert_problem(&admin.post("/api/explain", &json!({"url": "nonsense"}).to_string()), 400);
}

#[test]
fn a_document_whose_files_have_problems_by_now_is_not_explained_and_says_which() {
    let admin = Admin::with_token();
    let list = admin.file().with_file_name("deny.txt");
    std::fs::write(&list, "198.51.100.0/24\n").expect("written");
    let text = std::fs::read_to_string(&admin.file).expect("readable");
    let denying = "filters: [{ip_access: {deny_file: deny.txt}}], respond: {body: pong}";
    std::fs::write(&admin.file, text.replace("respond: {body: pong}", denying)).expect("written");
    assert_eq!(admin.reload().json()["generation"], 2);
    let question = json!({"url": "/ping", "client": "198.51.100.7"}).to_string();
    assert_eq!(admin.post("/api/explain", &question).json()["status"], 403);
    std::fs::write(&list, "nonsense\n").expect("written");
    let answer = admin.post("/api/explain", &question);
    assert_problem(&answer, 409);
    let problem = &answer.json()["problems"][0];
    assert_eq!(problem["path"], "routes[1].filters[0].ip_access.deny_file", "{answer:?}");
    assert_eq!(admin.get("/api/routes").json()["generation"], 2, "it serves on");
    std::fs::write(&list, "").expect("written");
    assert_eq!(admin.post("/api/explain", &question).json()["status"], 200);
}

#[test]
fn what_cannot_be_read_is_answered_with_a_problem() {
    let mut admin = Admin::with_token();
    let deep = "[".repeat(100_000);
    for body in ["", "{", "[]", "{\"url\": 5}", "{\"nonsense\": 1}", "\u{0}", &deep] {
        let answer = admin.post("/api/explain", body);
        assert!((400..500).contains(&answer.status()), "{body:.20}: {answer:?}");
        assert_problem(&answer, answer.status());
    }
    assert_problem(&admin.ask("POST", "/api/explain", &[], "{}"), 415);
    for body in ["", "\u{0}", &deep, "- a\n- b", "&a [*a]"] {
        let answer = admin.post("/api/check", body);
        assert_eq!(answer.status(), 422, "{body:.20}: {answer:?}");
    }
    let not_text =
        http::request(admin.gateway.admin(), "POST", "/api/check", &[("host", "localhost")], &[0xff, 0xfe]);
    assert_problem(&not_text, 400);
    assert!(admin.gateway.is_alive());
    assert_eq!(admin.get("/healthz").status(), 200);
}

#[test]
fn a_body_beyond_the_limit_is_413() {
    let admin = Admin::with_token();
    // One byte more than the limit, so that nothing is left unread when the answer comes.
    let large = "#".repeat((16 << 20) + 1);
    assert_problem(&admin.post("/api/check", &large), 413);
}

#[test]
fn unknown_paths_and_other_methods_are_problems() {
    let admin = Admin::with_token();
    assert_problem(&admin.get("/nothing"), 404);
    assert_problem(&admin.get("/api/nothing"), 404);
    for (method, path, allow) in
        [("GET", "/api/check", "POST"), ("POST", "/metrics", "GET,HEAD"), ("DELETE", "/healthz", "GET,HEAD")]
    {
        let answer = admin.ask(method, path, &[], "");
        assert_problem(&answer, 405);
        assert_eq!(answer.header("allow").replace(' ', ""), allow, "{path}");
    }
}
