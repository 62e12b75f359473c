//! Exchanges as OPA's documentation of its REST API shows them ("Data API", "Get a Document (with Input)").

use std::sync::Arc;

use serde_json::{Value, json};

use super::asking;
use crate::context::{Consumer, Principal};
use crate::testing::{Request, certificate, get, send};

const FILTER: &str = "- forward_auth:
    url: 'http://127.0.0.1:8181/v1/data/httpapi/authz'
    format: opa
    request_headers: [x-a]
    response_headers: [x-user]
    refusal_headers: [location]
    client_headers: [x-tell]";

fn alice() -> Request {
    send("GET", "/finance/salary/%61lice?year=2026&year=2027&q=a%26b").header("x-a", "1").with(|ctx| {
        let Value::Object(claims) = json!({"sub": "alice", "roles": ["hr"]}) else { unreachable!() };
        ctx.principal = Some(Arc::new(Principal { subject: "alice".into(), claims }));
        ctx.consumer = Some(Arc::new(Consumer {
            name: "acme".into(),
            groups: Arc::from(["partners".into()]),
            plan: None,
        }));
        ctx.host = Some("api.example.com".into());
    })
}

#[tokio::test]
async fn the_input_says_who_asks_for_what() {
    let (service, chain) = asking(FILTER);
    service.reply(200, &[("content-type", "application/json")], [&br#"{"result":true}"#[..]]);
    let request = alice().header("x-a", "2").header("cookie", "s=1").header("x-user", "root").with(|ctx| {
        (ctx.service, ctx.version) = (Some("api".into()), Some("2".into()));
    });
    chain.send(request).await.continues();
    let [asked] = &service.requests()[..] else { panic!("asked once") };
    assert_eq!(asked.head.method, "POST");
    assert_eq!(asked.head.uri.path(), "/v1/data/httpapi/authz");
    assert_eq!(asked.head.headers["content-type"], "application/json");
    assert_eq!(asked.head.headers["host"], "127.0.0.1:8181");
    let input: Value = serde_json::from_slice(&asked.body).expect("JSON");
    let expected = json!({"input": {
        "request": {
            "method": "GET",
            "scheme": "http",
            "host": "api.example.com",
            "path": "/finance/salary/alice",
            "query": {"year": ["2026", "2027"], "q": ["a&b"]},
            "headers": {"x-a": "1, 2"},
        },
        "client": {"address": "192.0.2.1", "certificate": null},
        "consumer": {"name": "acme", "groups": ["partners"], "plan": null},
        "claims": {"sub": "alice", "roles": ["hr"]},
        "listener": "test",
        "route": "test",
        "service": "api",
        "version": "2",
    }});
    assert_eq!(input, expected);
}

#[tokio::test]
async fn the_certificate_of_a_trusted_proxy_is_none_of_the_client() {
    let (service, chain) = asking(FILTER);
    for (proxied, expected) in [(false, json!("CN=edge")), (true, Value::Null)] {
        service.reply(200, &[], [&br#"{"result":true}"#[..]]);
        let request =
            get("/").showing(certificate("CN=edge")).with(|ctx| ctx.client.through_trusted_proxy = proxied);
        chain.send(request).await.continues();
        let asked = service.requests().pop().expect("asked");
        let input: Value = serde_json::from_slice(&asked.body).expect("JSON");
        assert_eq!(input["input"]["client"]["certificate"]["subject"], expected, "{proxied}");
    }
}

#[tokio::test]
async fn a_result_is_a_decision_and_no_result_is_none() {
    let (service, chain) = asking(FILTER);
    for (answer, status) in [
        (r#"{"result": true, "decision_id": "4ca636c1-55e4-417a-b1d8-4aceb67960d1"}"#, 200),
        (r#"{"result": {"allow": true}}"#, 200),
        (r#"{"result": false}"#, 403),
        (r#"{"result": {"allow": false, "reason": "not yours"}}"#, 403),
        // An undefined decision: "If the path refers to an undefined document, the server will return 200 and the
        // message body will not contain a `result` key".
        ("{}", 403),
        (
            r#"{"warning": {"code": "api_usage_warning", "message": "'input' key missing from the request"}}"#,
            403,
        ),
        // What is no decision is no permission either.
        (r#"{"result": {"allowed": true}}"#, 503),
        (r#"{"result": {"allow": "true"}}"#, 503),
        (r#"{"result": "true"}"#, 503),
        (r#"{"result": 1}"#, 503),
        (r#"{"result": null}"#, 503),
        (r#"{"result": [true]}"#, 503),
        (r#"{"result": false, "result": true}"#, 503),
        ("true", 503),
        ("", 503),
    ] {
        service.reply(200, &[], [answer.as_bytes()]);
        let sent = chain.send(get("/")).await;
        match status {
            200 => drop(sent.continues()),
            status => drop(sent.responds(status)),
        }
    }
    for status in [400, 404, 500] {
        let error = br#"{"code": "internal_error", "message": "error(s) occurred while evaluating query"}"#;
        service.reply(status, &[], [&error[..]]);
        chain.send(get("/")).await.responds(503);
    }
}

#[tokio::test]
async fn an_object_says_what_upstream_and_client_are_told_within_the_lists() {
    let (service, chain) = asking(FILTER);
    let answer = json!({"result": {"allow": true, "headers": {"X-User": ["alice", "a2"], "x-tell": "1", "host": "evil"}}});
    service.reply(200, &[], [answer.to_string().as_bytes()]);
    let mut sent = chain.send(alice().header("x-user", "root")).await.continues();
    let attempt = sent.attempt(1).await;
    let users: Vec<_> = attempt.headers.get_all("x-user").iter().collect();
    assert_eq!(users, ["alice", "a2"]);
    assert!(attempt.headers.get("x-tell").is_none() && attempt.headers.get("host").is_none());
    sent.answered(200, &[]).await.header("x-tell", "1").no_header("x-user");
    let answer = json!({"result": {
        "allow": false, "status": 302, "body": "log in", "headers": {"location": "/login", "x-user": "a"},
    }});
    service.reply(200, &[], [answer.to_string().as_bytes()]);
    let answer = chain.send(alice()).await.responds(302).body("log in");
    answer.header("location", "/login").no_header("x-user");
    for wrong in [
        json!({"allow": false, "status": 200}),
        json!({"allow": false, "status": "403"}),
        json!({"allow": true, "headers": {"x-user": 1}}),
        json!({"allow": true, "headers": {"x-user": "a\r\nb"}}),
        json!({"allow": true, "headers": ["x-user"]}),
    ] {
        service.reply(200, &[], [json!({"result": wrong}).to_string().as_bytes()]);
        chain.send(alice()).await.responds(503);
    }
}

#[tokio::test]
async fn the_reason_is_for_the_log_alone() {
    let (service, chain) = asking(FILTER);
    service.reply(200, &[], [&br#"{"result": {"allow": false, "reason": "salaries are secret"}}"#[..]]);
    let sent = chain.send(alice()).await;
    assert_eq!(sent.detail(), None);
    let reason = sent.ctx.ended_by.as_ref().and_then(|ended| ended.reason.clone());
    assert_eq!(reason.as_deref(), Some("salaries are secret"));
}

#[tokio::test]
async fn a_body_is_part_of_the_input() {
    let (service, chain) = asking(&format!("{FILTER}\n    body: 1KiB"));
    for (body, key, expected) in
        [(&b"{\"a\": 1}"[..], "body", "{\"a\": 1}"), (&b"\xff\x00"[..], "body_base64", "/wA=")]
    {
        service.reply(200, &[], [&br#"{"result": true}"#[..]]);
        let request = send("POST", "/").header("content-length", &body.len().to_string());
        chain.send(request).await.continues().with_body(body).await.continues();
        let asked = service.requests().pop().expect("asked");
        let input: Value = serde_json::from_slice(&asked.body).expect("JSON");
        assert_eq!(input["input"]["request"][key], expected);
    }
}
