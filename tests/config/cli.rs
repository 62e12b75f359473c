//! The command line: exit codes, what is said where, and `--output json` everywhere.

use std::path::{Path, PathBuf};

use serde_json::json;
use tempfile::TempDir;

use crate::gateway::{code, json_of, program, run, stderr, stdout};

const RIGHT: &str = "version: 1
admin: {address: none}
listeners: [{name: main, address: \"127.0.0.1:0\"}]
upstreams: [{name: users, backends: [{address: \"127.0.0.1:9\"}]}]
routes:
  - name: special
    match: {paths: [\"/users/{id}\"], headers: {x-special: yes}}
    respond: {}
  - name: users
    match: {paths: [\"/users/{id}\"]}
    filters:
      - headers: {request: {set: {x-user: \"${path.id}\"}}}
      - respond: {status: 503}
        when: {methods: [POST]}
    upstream: users
tests:
  - {name: a user is read, request: {path: /users/1}, expect: {route: users, upstream: users}}
";

/// A folder with this document in it.
fn document(text: &str) -> (TempDir, PathBuf) {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("t.yaml");
    std::fs::write(&file, text).expect("written");
    (folder, file)
}

fn text(path: &Path) -> &str {
    path.to_str().expect("UTF-8")
}

#[test]
fn a_right_file_is_fine_and_says_so() {
    let (_folder, file) = document(RIGHT);
    let output = run(&["check", text(&file)]);
    assert_eq!((code(&output), stderr(&output)), (0, String::new()));
    assert!(stdout(&output).ends_with(": fine (2 routes, 1 upstreams, 1 tests)\n"), "{output:?}");
    let output = run(&["check", text(&file), "--output", "json"]);
    assert_eq!(json_of(&output), json!({"ok": true, "routes": 2, "warnings": []}));
}

#[test]
fn every_problem_of_a_wrong_file_goes_to_stderr_and_the_code_is_1() {
    let (_folder, file) = document("version: 1\nlisteners: 5\nroute: []\n");
    let output = run(&["check", text(&file)]);
    assert_eq!((code(&output), stdout(&output)), (1, String::new()));
    let said = stderr(&output);
    assert!(said.starts_with(&format!("{}:2:12: listeners: expected a list", file.display())), "{said}");
    assert_eq!(said.lines().count(), 2, "{said}");
    let output = run(&["--output", "json", "check", text(&file)]);
    assert_eq!(code(&output), 1);
    let problems = json_of(&output);
    assert_eq!(problems[1]["path"], "route");
    assert_eq!(problems[1]["line"], 3);
    assert_eq!(problems[1]["hint"], "did you mean `routes`?");
}

#[test]
fn a_warning_leaves_the_code_at_0() {
    let twice = "version: 1\nlisteners: [{name: m, address: \"127.0.0.1:0\"}]\nroutes: [{name: a, respond: {}}, {name: b, respond: {}}]\n";
    let (_folder, file) = document(twice);
    let output = run(&["check", text(&file)]);
    assert_eq!(code(&output), 0);
    assert!(
        stderr(&output).starts_with("warning: ") && stderr(&output).contains("`b` can never match"),
        "{output:?}"
    );
}

#[test]
fn a_file_that_cannot_be_read_is_the_users_mistake() {
    let (folder, _file) = document("");
    for path in [folder.path().join("missing.yaml"), folder.path().to_owned()] {
        for command in [&["check"][..], &["test"], &["run", "-c"]] {
            let arguments: Vec<&str> = command.iter().copied().chain([text(&path)]).collect();
            let output = run(&arguments);
            assert_eq!(code(&output), 1, "{arguments:?}: {output:?}");
            assert!(stderr(&output).contains(&format!("cannot read {}", path.display())), "{output:?}");
        }
    }
}

#[test]
fn wrong_usage_is_code_2() {
    for arguments in [
        &[][..],
        &["check"],
        &["nonsense"],
        &["check", "a", "b"],
        &["version", "--output", "xml"],
        &["run"],
        &["explain", "GET", "/"],
    ] {
        let output = run(arguments);
        assert_eq!(code(&output), 2, "{arguments:?}: {output:?}");
        assert!(stdout(&output).is_empty() && !stderr(&output).is_empty(), "{arguments:?}");
    }
    assert_eq!(code(&run(&["--help"])), 0);
}

#[test]
fn a_port_that_is_taken_is_code_3() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").expect("a free port");
    let address = taken.local_addr().expect("bound").to_string();
    let in_listeners = RIGHT.replace("127.0.0.1:0", &address);
    let in_admin = RIGHT.replace("address: none", &format!("address: \"{address}\""));
    for text_of_document in [in_listeners, in_admin] {
        let (_folder, file) = document(&text_of_document);
        let output = run(&["run", "-c", text(&file)]);
        assert_eq!(code(&output), 3, "{output:?}");
        assert!(stderr(&output).contains("error: ") && stderr(&output).contains(&address), "{output:?}");
    }
}

#[test]
fn a_failing_test_is_shown_with_what_was_seen() {
    let (_folder, file) = document(
        &RIGHT.replace("expect: {route: users, upstream: users}", "expect: {route: special, status: 200}"),
    );
    let output = run(&["test", text(&file)]);
    assert_eq!(code(&output), 1);
    assert_eq!(
        stdout(&output),
        "FAIL a user is read\n       expected route special, got users\n       expected status 200, got none\n0 passed, 1 failed\n"
    );
    assert_eq!(stderr(&output), "1 of 1 tests failed\n");
    let output = run(&["test", text(&file), "--output", "json"]);
    assert_eq!(code(&output), 1);
    assert_eq!(json_of(&output)[0]["failures"][0], "expected route special, got users");
}

#[test]
fn a_failing_test_shows_no_part_of_what_a_reference_stands_for() {
    let sections = "version: 1\nserver: {threads: \"${env:THREADS}\"}";
    let secret = RIGHT.replace("version: 1", sections).replace("${path.id}", "${env:KEY}/${path.id}");
    let expected = "expect: {route: users, headers_to_upstream: {x-user: other}}";
    let (_folder, file) = document(&secret.replace("expect: {route: users, upstream: users}", expected));
    let mut test = program();
    let output = test.args(["test", text(&file)]).env("THREADS", "2").env("KEY", "hunter2secret").output();
    let output = output.expect("the program runs");
    assert_eq!(code(&output), 1, "{output:?}");
    let seen = "       expected header to the upstream x-user: `other`, got ***/1\n";
    assert!(stdout(&output).contains(seen), "{output:?}");
}

#[test]
fn a_passing_test_is_code_0() {
    let (_folder, file) = document(RIGHT);
    let output = run(&["test", text(&file)]);
    assert_eq!((code(&output), stdout(&output).as_str()), (0, "ok   a user is read\n1 passed, 0 failed\n"));
    let output = run(&["test", text(&file), "--output", "json"]);
    assert_eq!(json_of(&output), json!([{"name": "a user is read", "failures": []}]));
}

#[test]
fn explain_tells_the_route_why_not_the_others_the_filters_and_the_upstream() {
    let (_folder, file) = document(RIGHT);
    let output =
        run(&["explain", "-c", text(&file), "GET", "http://api.test/users/7?a=1", "-H", "x-mine: 1"]);
    assert_eq!((code(&output), stderr(&output)), (0, String::new()));
    let said = stdout(&output);
    for line in [
        "listener   main",
        "path       /users/7",
        "not        special: the header field `x-special` does not match",
        "route      users",
        "filter     headers (route:users/headers#0): changed request fields",
        "filter     respond (route:users/respond#0): skipped `when` does not hold",
        "upstream   users",
        "           GET /users/7?a=1",
        "           host: api.test",
        "           x-user: 7",
        "           x-mine: 1",
    ] {
        assert!(said.lines().any(|said| said == line), "no {line:?} in\n{said}");
    }
}

#[test]
fn explain_takes_the_host_that_is_given_as_a_field() {
    let (_folder, file) = document(&RIGHT.replace("headers: {x-sp", "hosts: [api.test], headers: {x-sp"));
    let output = run(&["explain", "-c", text(&file), "GET", "/users/7", "-H", "Host: api.test"]);
    let said = stdout(&output);
    let lines = ["route      users", "           host: api.test"];
    assert!(lines.iter().all(|line| said.lines().any(|said| said == *line)), "{said}");
    assert!(said.contains("not        special: the header field `x-special` does not match"), "{said}");
}

#[test]
fn explain_says_why_not_a_route_whose_field_was_dropped() {
    let (_folder, file) = document(&RIGHT.replace("x-special: yes", "x-forwarded-proto: https"));
    let output = run(&["explain", "-c", text(&file), "GET", "/users/7", "-H", "x-forwarded-proto: https"]);
    let said = stdout(&output);
    let why = "not        special: the header field `x-forwarded-proto` does not match";
    assert!(said.lines().any(|line| line == why), "{said}");
    assert!(said.lines().any(|line| line == "route      users"), "{said}");
}

#[test]
fn explain_says_the_same_in_json() {
    let (_folder, file) = document(RIGHT);
    let output = run(&["explain", "-c", text(&file), "POST", "/users/7", "--output", "json"]);
    let said = json_of(&output);
    assert_eq!(said["route"], "users");
    assert_eq!(said["status"], 503);
    assert_eq!(said["passed_over"][0]["route"], "special");
    assert_eq!(said["filters"][1]["filter"], "respond");
    assert!(said.get("upstream").is_none(), "{said}");
}

#[test]
fn explain_says_what_would_happen_now_and_tests_what_happens_at_their_own_time() {
    let ended = "
version: 1
listeners: [{name: main, address: '127.0.0.1:0'}]
identities: {keys: {type: api_key, from: [header:x-api-key]}}
consumers:
  - name: acme
    credentials:
      - type: api_key
        id: k1
        hash: 'sha256:ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad'
        expires: 2026-01-02
routes: [{name: a, filters: [{authenticate: {any_of: [keys]}}], respond: {}}]
tests: [{name: open, request: {path: /, headers: {x-api-key: abc}}, expect: {status: 200}}]
";
    let (_folder, file) = document(ended);
    assert_eq!(code(&run(&["test", text(&file)])), 0);
    let output = run(&["explain", "-c", text(&file), "GET", "/", "-H", "x-api-key: abc"]);
    let said = stdout(&output);
    assert!(said.contains("the API key has expired"), "{said}");
}

#[test]
fn explain_refuses_what_is_no_request() {
    let (_folder, file) = document(RIGHT);
    for arguments in [["GET", "nonsense"], ["GET", "ftp://a/"], ["G T", "/"]] {
        let output = run(&["explain", "-c", text(&file), arguments[0], arguments[1]]);
        assert_eq!(code(&output), 1, "{arguments:?}: {output:?}");
        assert!(!stderr(&output).is_empty() && stdout(&output).is_empty(), "{output:?}");
    }
    let output = run(&["explain", "-c", text(&file), "GET", "/", "--listener", "other"]);
    assert_eq!((code(&output), stderr(&output).as_str()), (1, "no listener is named `other`\n"));
    let output = run(&["explain", "-c", text(&file), "GET", "/", "-H", "no-colon"]);
    assert_eq!(code(&output), 2);
}

#[test]
fn the_version_is_the_packages() {
    let version = env!("CARGO_PKG_VERSION");
    assert_eq!(stdout(&run(&["version"])), format!("tollhouse {version}\n"));
    assert_eq!(json_of(&run(&["version", "--output", "json"])), json!({"version": version}));
}

#[test]
fn the_schema_is_printed_as_it_is_committed() {
    let output = run(&["schema"]);
    assert_eq!(code(&output), 0);
    assert_eq!(stdout(&output), crate::read(&crate::project("conf/schema.json")));
}

#[test]
fn the_configuration_may_come_from_the_environment() {
    let (_folder, file) = document(RIGHT);
    let output = program().args(["explain", "GET", "/nowhere"]).env("TOLLHOUSE_CONFIG", &file).output();
    let output = output.expect("the program runs");
    assert!(stdout(&output).contains("answer     404"), "{output:?}");
}

#[test]
fn output_that_cannot_be_written_is_code_3() {
    let (_folder, file) = document("version: 1\nlisteners: [{name: m, address: \"127.0.0.1:0\"}]\n");
    let file = text(&file);
    for arguments in [
        &["check", file][..],
        &["--output", "json", "check", file],
        &["--output", "json", "check", "/nonexistent"],
        &["test", file],
        &["explain", "-c", file, "GET", "/"],
        &["fmt", "-"],
        &["schema"],
        &["man"],
        &["completions", "bash"],
        &["version"],
        &["--help"],
    ] {
        let full = std::fs::OpenOptions::new().write(true).open("/dev/full").expect("Linux has it");
        let input = std::fs::File::open(file).expect("it is there");
        let output = program().args(arguments).stdin(input).stdout(full).output().expect("the program runs");
        assert_eq!(code(&output), 3, "{arguments:?}: {}", stderr(&output));
        assert!(stderr(&output).starts_with("error: cannot write to standard output: "), "{arguments:?}");
    }
}

#[test]
fn a_reader_that_has_enough_is_no_error() {
    let (reader, writer) = std::io::pipe().expect("a pipe");
    drop(reader);
    let output = program().arg("schema").stdout(writer).output().expect("the program runs");
    assert_eq!((code(&output), stderr(&output)), (0, String::new()));
}

#[test]
fn an_upgrade_asks_no_more_of_the_file_than_where_the_gateway_is() {
    let (folder, file) = document("");
    let socket = folder.path().join("upgrade.sock");
    let upgrade = |socket: &str| {
        let admin = "admin: {token: \"${env:TOLLHOUSE_OF_THE_SERVICE}\"}";
        let written = format!("version: 1\n{admin}\nserver: {{upgrade_socket: \"{socket}\"}}\n");
        std::fs::write(&file, written).expect("written");
        run(&["upgrade", "-c", text(&file)])
    };
    let output = upgrade(text(&socket));
    assert_eq!(code(&output), 3, "{output:?}");
    let nobody = format!("{}: no gateway listens there", socket.display());
    assert!(stderr(&output).contains(&nobody), "{output:?}");
    let output = upgrade("${env:TOLLHOUSE_OF_THE_SERVICE}/upgrade.sock");
    assert_eq!(code(&output), 1, "{output:?}");
    let place = format!("{}:3:26: server.upgrade_socket: ", file.display());
    assert!(stderr(&output).starts_with(&place), "{output:?}");
}

#[test]
fn an_upgrade_asks_no_other_gateway_where_the_place_of_this_one_is_wrong() {
    let (_folder, file) = document("");
    for socket in ["run/upgrade.sock", "/run/tollhouse/", "[/run/upgrade.sock]", "5"] {
        let written = format!("version: 1\nserver: {{upgrade_socket: {socket}}}\n");
        std::fs::write(&file, written).expect("written");
        let output = run(&["upgrade", "-c", text(&file)]);
        assert_eq!(code(&output), 1, "{socket}: {output:?}");
        let place = format!("{}:2:26: server.upgrade_socket: ", file.display());
        assert!(stderr(&output).starts_with(&place), "{socket}: {output:?}");
    }
}

#[test]
fn a_demo_that_does_not_come_up_says_so_and_nothing_else() {
    let (_folder, file) = document("version: 1\nlisteners: 5\n");
    let output = run(&["demo", "-c", text(&file), "--output", "json"]);
    // 3 where somebody else has the ports of its sample services.
    assert!([1, 3].contains(&code(&output)), "{output:?}");
    assert!(json_of(&output).get("gateway").is_none(), "{output:?}");
}
