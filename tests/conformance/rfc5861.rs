//! RFC 5861, Cache-Control Extensions for Stale Content.

use crate::harness::cached::{Cached, numbered};
use crate::harness::{soon, until};

const FRESH: &str = "cache-control: max-age=3600\r\n";
/// Stale when it comes, with a validator.
const STALE: &str = "cache-control: max-age=10\r\nage: 20\r\netag: \"v1\"\r\n";

#[tokio::test]
async fn s3_what_is_stale_is_served_while_it_is_fetched_anew() {
    let fields = "cache-control: max-age=10, stale-while-revalidate=60\r\nage: 20\r\netag: \"v\"\r\n";
    let cached = Cached::new("{}", move |nth, _| numbered(nth, if nth == 1 { fields } else { FRESH })).await;
    cached.get("/").await;
    let stale = cached.get("/").await;
    assert_eq!(stale.text(), "answer 1");
    assert!(
        stale.field("cache-status").is_some_and(|status| status.contains("hit; ttl=-1")),
        "{:?}",
        stale.head
    );
    until("a second request", || (cached.asked() == 2).then_some(())).await;
    let renewed = async {
        while cached.get("/").await.text() != "answer 2" {
            tokio::task::yield_now().await;
        }
    };
    soon("the new answer", renewed).await;
    assert_eq!(cached.asked(), 2);
}

#[tokio::test]
async fn s4_what_is_stale_is_served_in_the_place_of_errors() {
    let failing = |nth: usize, fields: &str| match nth {
        1 => numbered(nth, fields),
        _ => "HTTP/1.1 503 No\r\ncontent-length: 0\r\n\r\n".to_owned(),
    };
    let fields = "cache-control: max-age=10, stale-if-error=60\r\nage: 20\r\netag: \"v\"\r\n";
    let cached = Cached::new("{}", move |nth, _| failing(nth, fields)).await;
    cached.get("/").await;
    let stale = cached.get("/").await;
    assert_eq!((stale.status, stale.text()), (200, "answer 1".into()));
    let plain = Cached::new("{}", move |nth, _| failing(nth, STALE)).await;
    plain.get("/").await;
    assert_eq!(plain.get("/").await.status, 503, "only where somebody says so");
    let configured = Cached::new("{stale_if_error: 60s}", move |nth, _| failing(nth, STALE)).await;
    configured.get("/").await;
    assert_eq!(configured.get("/").await.status, 200);
}
