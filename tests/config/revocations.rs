//! `/api/revocations`: what can be revoked, what is told, and what is refused.

use serde_json::{Value, json};

use crate::admin::{Admin, TOKEN, assert_problem};
use crate::http::Message;

/// 2100-01-01.
const LATER: u64 = 4_102_444_800;

fn ask(admin: &Admin, method: &str, path: &str, body: &Value) -> Message {
    let (bearer, text) = (format!("Bearer {TOKEN}"), body.to_string());
    let fields = [("authorization", bearer.as_str()), ("content-type", "application/json")];
    admin.ask(method, path, &fields, if body.is_null() { "" } else { &text })
}

fn revoke(admin: &Admin, entry: &Value) -> Message {
    ask(admin, "POST", "/api/revocations", entry)
}

fn list(admin: &Admin, query: &str) -> Value {
    ask(admin, "GET", &format!("/api/revocations{query}"), &Value::Null).json()["revocations"].clone()
}

#[test]
fn entries_are_kept_listed_replaced_and_taken_out() {
    let admin = Admin::with_token();
    let token = json!({"identity": "corp", "jti": "a b&c", "expires": LATER});
    let person = json!({"identity": "corp", "sub": "alice", "issued_before": 5, "expires": LATER});
    let all = json!({"identity": "oct", "issued_before": 7, "expires": LATER});
    for entry in [&person, &token, &all] {
        let answer = revoke(&admin, entry);
        assert_eq!((answer.status(), &answer.json()), (201, entry));
    }
    assert_eq!(list(&admin, ""), json!([token, person, all]));
    assert_eq!(list(&admin, "?identity=oct"), json!([all]));
    assert_eq!(list(&admin, "?identity=nobody"), json!([]));
    let person = json!({"identity": "corp", "sub": "alice", "expires": LATER});
    assert_eq!(revoke(&admin, &person).status(), 200);
    assert_eq!(list(&admin, "?identity=corp"), json!([token, person]));
    assert!(admin.get("/metrics").text().contains("\ntollhouse_revocations 3\n"));
    let gone = ask(&admin, "DELETE", "/api/revocations?identity=corp&jti=a+b%26c", &Value::Null);
    assert_eq!((gone.status(), gone.json()), (200, json!({"revocations": [person]})));
    assert_eq!(ask(&admin, "DELETE", "/api/revocations?identity=oct", &Value::Null).status(), 200);
    assert_eq!(list(&admin, ""), json!([person]));
    assert_problem(&ask(&admin, "DELETE", "/api/revocations?identity=oct", &Value::Null), 404);
}

#[test]
fn a_reload_keeps_them() {
    let admin = Admin::with_token();
    assert_eq!(revoke(&admin, &json!({"identity": "corp", "jti": "1", "expires": LATER})).status(), 201);
    let text = std::fs::read_to_string(admin.file()).expect("readable");
    std::fs::write(admin.file(), text.replace("name: ping", "name: pong")).expect("written");
    assert_eq!(admin.reload().json()["generation"], 2);
    assert_eq!(list(&admin, "").as_array().map(Vec::len), Some(1));
}

#[test]
fn what_makes_no_sense_is_refused_with_the_reason() {
    let admin = Admin::with_token();
    for (entry, reason) in [
        (json!({"identity": "nobody", "jti": "1", "expires": LATER}), "no identity"),
        (json!({"identity": "keys", "jti": "1", "expires": LATER}), "no identity"),
        (json!({"identity": "corp", "expires": LATER}), "say which tokens"),
        (json!({"identity": "corp", "jti": "1", "sub": "a", "expires": LATER}), "one of `jti` and `sub`"),
        (
            json!({"identity": "corp", "jti": "1", "issued_before": 1, "expires": LATER}),
            "`issued_before` is for",
        ),
        (json!({"identity": "corp", "jti": "1", "expires": 1}), "in the past"),
        (json!({"identity": "corp", "jti": "x".repeat(1025), "expires": LATER}), "at most 1024 bytes"),
        (json!({"identity": "corp", "jti": "1"}), "expires"),
        (json!({"identity": "corp", "jit": "1", "expires": LATER}), "jit"),
        (json!({"identity": "corp", "jti": 1, "expires": LATER}), "string"),
        (json!({"identity": "corp", "jti": "1", "expires": -1}), "expires"),
        (json!({"identity": "corp", "jti": "1", "expires": 1.5}), "expires"),
    ] {
        let answer = revoke(&admin, &entry);
        assert_problem(&answer, 422);
        assert!(answer.json()["detail"].as_str().is_some_and(|told| told.contains(reason)), "{answer:?}");
    }
    assert_eq!(list(&admin, ""), json!([]));
    assert_problem(&ask(&admin, "DELETE", "/api/revocations?identity=corp&jti=1&sub=2", &Value::Null), 400);
}

#[test]
fn without_the_token_nobody_sees_or_changes_them() {
    let admin = Admin::with_token();
    for method in ["GET", "POST", "DELETE"] {
        assert_problem(&admin.ask(method, "/api/revocations?identity=corp", &[], ""), 401);
    }
    let open = Admin::start("{address: \"127.0.0.1:0\"}");
    assert_problem(&open.get("/api/revocations"), 403);
}
