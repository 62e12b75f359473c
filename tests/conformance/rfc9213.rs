//! RFC 9213, Targeted HTTP Cache Control.

use crate::harness::cached::{Cached, numbered};

#[tokio::test]
async fn s2_what_is_said_to_gateways_counts_for_them() {
    let fields = "cache-control: no-store\r\ncdn-cache-control: max-age=60\r\n";
    let cached = Cached::new("{}", move |nth, _| numbered(nth, fields)).await;
    cached.get("/").await;
    let second = cached.get("/").await;
    assert_eq!((second.text(), second.field("cache-control")), ("answer 1".into(), Some("no-store")));
    let fields = "cache-control: max-age=60\r\ncdn-cache-control: no-store\r\n";
    let cached = Cached::new("{}", move |nth, _| numbered(nth, fields)).await;
    cached.get("/").await;
    assert_eq!(cached.get("/").await.text(), "answer 2");
}
