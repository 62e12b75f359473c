//! What takes a real etcd minutes, or somebody who changes rights at the right moment. The answers are those of 3.4.23.

use base64::Engine;
use base64::prelude::BASE64_STANDARD;

use super::*;

fn range(revision: u8, value: &str) -> Says {
    let (key, value) = (BASE64_STANDARD.encode("/users/1"), BASE64_STANDARD.encode(value));
    ok(json!({
        "header": {"revision": revision.to_string(), "raft_term": "2"},
        "kvs": [{"key": key, "mod_revision": revision.to_string(), "version": "1", "value": value}],
        "count": "1",
    }))
}

fn watched(result: &Value) -> Says {
    ok(format!("{}\n", json!({"result": result})))
}

#[tokio::test]
async fn a_token_that_has_ended_is_replaced_and_that_is_no_failure() {
    let server = Server::start(|number, question| {
        let head = question.to_ascii_lowercase();
        let shown = head.split("\r\nauthorization: ").nth(1).and_then(|rest| rest.split("\r\n").next());
        match (number, shown) {
            // Nobody is answered who shows a token that has ended, not even who logs in.
            (0 | 4, None) => ok(json!({"token": format!("token.{number}")})),
            (1, Some("token.0")) => range(2, "127.0.0.1:1"),
            // It began too long ago: all is to be asked for anew.
            (2, Some("token.0")) => {
                watched(&json!({"header": {"raft_term": "2"}, "canceled": true, "compact_revision": "4"}))
            }
            (3, Some("token.0")) => {
                let error = "etcdserver: invalid auth token";
                Says::Json(
                    401,
                    String::new(),
                    json!({"error": error, "message": error, "code": 16}).to_string(),
                )
            }
            (5, Some("token.4")) => range(5, "127.0.0.1:2"),
            (6, Some("token.4")) => Says::Holds,
            _ => Says::Json(500, String::new(), String::new()),
        }
    })
    .await;
    let mut followed = follow(json!({
        "type": "etcd", "endpoints": [server.url], "prefix": "/users/", "username": "gateway",
        "password": "s3cret",
    }));
    assert_eq!(followed.next().await, ["127.0.0.1:1*1"]);
    assert_eq!(followed.next().await, ["127.0.0.1:2*1"]);
    let [login, range, watch] = ["/v3/auth/authenticate", "/v3/kv/range", "/v3/watch"];
    let asked = [login, range, watch, range, login, range].map(|path| format!("POST {path}"));
    assert_eq!(server.lines()[..6], asked);
}

#[tokio::test]
async fn a_watch_that_is_not_permitted_is_none() {
    let denied = "rpc error: code = PermissionDenied desc = etcdserver: permission denied";
    let server = Server::start(move |number, _| match number {
        0 => range(2, "127.0.0.1:1"),
        _ => watched(&json!({
            "header": {"revision": "2", "raft_term": "2"}, "watch_id": "-1", "created": true, "canceled": true,
            "cancel_reason": denied,
        })),
    })
    .await;
    let mut followed = follow(json!({"type": "etcd", "endpoints": [server.url], "prefix": "/users/"}));
    assert_eq!(followed.next().await, ["127.0.0.1:1*1"]);
    let why = followed.end().await;
    assert!(why.ends_with(&format!("the watch was ended: {denied}")), "{why}");
}
