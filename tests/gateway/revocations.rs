//! Tokens that were revoked, over sockets: at once, over reloads, and in the next process.

use serde_json::json;

use crate::harness::{Answer, Gateway, Origin, Wire, request, soon};

/// Of `alice`, until 2100, by HS256 with the secret of `corp`.
const TOKEN: &str = "eyJhbGciOiJIUzI1NiIsInR5cCI6IkpXVCJ9.eyJzdWIiOiJhbGljZSIsImV4cCI6NDEwMjQ0NDgwMH0.OGNhmFxMdQSWdD0NAicxhHtFlCp3lXIkMgWoOxxtrhI";

fn document(origin: &Origin, route: &str) -> String {
    format!(
        "upstreams: [{{name: origin, backends: [{{address: \"{}\"}}]}}]
identities: {{corp: {{type: jwt, algorithms: [HS256], secret: \"a secret of thirty-two bytes, or so\"}}}}
routes: [{{name: {route}, filters: [{{authenticate: {{any_of: [corp]}}}}], upstream: origin}}]
",
        origin.address
    )
}

async fn ask(gateway: &Gateway) -> Answer {
    request(gateway.address(), "GET /", &format!("Authorization: Bearer {TOKEN}\r\n")).await
}

#[tokio::test]
async fn a_revoked_token_is_refused_at_once_after_a_reload_and_by_the_next_process() {
    let origin = Origin::echo().await;
    let mut gateway = Gateway::administered(&document(&origin, "one")).await;
    let mut client = Wire::connect(gateway.address()).await;
    let mut status = async || {
        client.send(format!("GET / HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer {TOKEN}\r\n\r\n")).await;
        client.answer().await.expect("an answer").status
    };
    for _ in 0..3 {
        assert_eq!(status().await, 200);
    }
    let entry = r#"{"identity": "corp", "sub": "alice", "expires": 4102444800}"#;
    assert_eq!(gateway.ask_admin("POST /api/revocations", entry).await.status, 201);
    assert_eq!(status().await, 401, "also on a connection that was there before");
    let answer = ask(&gateway).await;
    let challenge = answer.head.all("www-authenticate")[0].to_owned();
    assert!(challenge.contains("error_description=\"the token was revoked\""), "{challenge}");

    gateway.rewrite_administered(&document(&origin, "two"));
    assert_eq!(gateway.ask_admin("POST /api/reload", "").await.status, 200);
    assert_eq!(ask(&gateway).await.status, 401);
    let (code, said) = gateway.upgrade().await;
    assert_eq!(code, Some(0), "{said}");
    assert_eq!(ask(&gateway).await.status, 401);
    let gone = "DELETE /api/revocations?identity=corp&sub=alice";
    // Whoever answers first is the process that goes.
    soon("the next process to take it back", async {
        while gateway.ask_admin(gone, "").await.status != 200 {
            tokio::task::yield_now().await;
        }
    })
    .await;
    assert_eq!(ask(&gateway).await.status, 200);
    assert_eq!(origin.heads().len(), 4);
}

#[tokio::test]
async fn what_no_identity_would_look_at_is_refused() {
    let origin = Origin::echo().await;
    let certified = "identities: {edge: {type: mtls}, corp:";
    let document = document(&origin, "one").replace("identities: {corp:", certified);
    let gateway = Gateway::administered(&document).await;
    for name in ["edge", "nobody"] {
        let entry = format!("{{\"identity\": \"{name}\", \"sub\": \"alice\", \"expires\": 4102444800}}");
        let answer = gateway.ask_admin("POST /api/revocations", &entry).await;
        assert_eq!(answer.status, 422, "{answer:?}");
        assert!(answer.text().contains("`jwt`, `introspection` or `oidc`"), "{answer:?}");
    }
}

#[tokio::test]
async fn explain_says_what_becomes_of_a_revoked_token() {
    let origin = Origin::echo().await;
    let gateway = Gateway::administered(&document(&origin, "one")).await;
    let bearer = format!("Bearer {TOKEN}");
    let question = json!({"method": "GET", "url": "/", "headers": [["Authorization", bearer]]}).to_string();
    let explain = async || gateway.ask_admin("POST /api/explain", &question).await.json();
    assert_eq!(explain().await["upstream"], "origin");
    let entry = r#"{"identity": "corp", "sub": "alice", "expires": 4102444800}"#;
    assert_eq!(gateway.ask_admin("POST /api/revocations", entry).await.status, 201);
    assert_eq!(explain().await["status"], 401);
}
