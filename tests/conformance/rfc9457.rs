//! RFC 9457, Problem Details for HTTP APIs.

use crate::harness::{Gateway, H2c, get, refusing};

#[tokio::test]
async fn s3_1_the_members_agree_with_the_answer() {
    let gateway = Gateway::to(refusing().await, "").await;
    let answer = get(gateway.address(), "/").await;
    let document = answer.json();
    assert_eq!(document["status"], answer.status);
    assert_eq!(document["type"], "urn:tollhouse:problem:upstream-unreachable");
    assert!(document["title"].as_str().is_some_and(|title| !title.is_empty()), "{document}");
    assert!(document["request_id"].as_str().is_some_and(|id| !id.is_empty()), "{document}");
}

#[tokio::test]
async fn s3_a_problem_is_the_same_whatever_the_protocol() {
    let gateway = Gateway::start("routes: []").await;
    let over_h1 = get(gateway.address(), "/none").await;
    let over_h2 = H2c::connect(gateway.address()).await.get("/none").await;
    assert_eq!((over_h1.status, over_h2.status), (404, 404));
    assert_eq!(over_h2.field("content-type"), Some("application/problem+json"));
    let over_h2: serde_json::Value = serde_json::from_slice(&over_h2.body).expect("JSON");
    assert_eq!(over_h1.json()["type"], over_h2["type"]);
}

#[tokio::test]
async fn s5_a_problem_tells_nothing_about_the_inside() {
    let origin = refusing().await;
    let gateway = Gateway::to(origin, "").await;
    let text = get(gateway.address(), "/").await.text();
    assert!(
        !text.contains(&origin.to_string()) && !text.contains("pingora") && !text.contains("os error"),
        "{text}"
    );
}
