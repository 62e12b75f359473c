//! Gateways that share a store, over sockets.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::time::{Duration, Instant};

use crate::harness::{Answer, Gateway, Redis, get, until};

/// A gateway that answers by itself, with this limit and what else stands in the store.
async fn gateway(redis: &Redis, limit: &str, store: &str) -> Gateway {
    gateway_at(&redis.url(), limit, store).await
}

async fn gateway_at(url: &str, limit: &str, store: &str) -> Gateway {
    Gateway::counting_all(&document(url, limit, store)).await
}

fn document(url: &str, limit: &str, store: &str) -> String {
    format!(
        "stores: {{main: {{type: redis, url: \"{url}\", timeout: 1s, {store}}}}}\n\
         routes:\n\
         - name: all\n  filters: [{{rate_limit: {{per: host, {limit}, store: main}}, name: fair}}]\n  respond: {{}}\n"
    )
}

/// What `/metrics` or another page of the admin listener says.
pub(super) async fn admin(gateway: &Gateway, path: &str) -> Answer {
    let bound = gateway.says("admin bound address=").await;
    let address = bound.rsplit('=').next().and_then(|address| address.trim().parse().ok());
    let ask = format!("GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n");
    crate::harness::exchange(address.expect("an address"), ask).await.expect("an answer")
}

/// What eight clients at once get through two gateways, each sending until told to stop.
async fn passing(gateways: [&Gateway; 2], stop: impl Fn(usize) -> bool + Send + Sync + 'static) -> usize {
    let (passed, sent, stop) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)), Arc::new(stop));
    let clients: Vec<_> = (0..8)
        .map(|client| {
            let address = gateways[client % 2].address();
            let (passed, sent, stop) = (passed.clone(), sent.clone(), stop.clone());
            tokio::spawn(async move {
                while !stop(sent.fetch_add(1, Relaxed)) {
                    match get(address, "/").await.status {
                        200 => passed.fetch_add(1, Relaxed),
                        status => {
                            assert_eq!(status, 429);
                            0
                        }
                    };
                }
            })
        })
        .collect();
    for client in clients {
        client.await.expect("no panic");
    }
    passed.load(Relaxed)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_gateways_share_one_budget_exactly_under_eight_clients() {
    let redis = Redis::start().await;
    let limit = "limit: 2/h, burst: 100";
    let (one, two) = (gateway(&redis, limit, "").await, gateway(&redis, limit, "").await);
    assert_eq!(passing([&one, &two], |sent| sent >= 400).await, 100);
    for gateway in [&one, &two] {
        let metrics = admin(gateway, "/metrics").await.text();
        assert!(
            metrics.contains("tollhouse_store_decisions_total{outcome=\"local\",store=\"main\"} 0"),
            "{metrics}"
        );
        assert!(metrics.contains("tollhouse_store_up{store=\"main\"} 1"), "{metrics}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_gateways_together_pass_no_more_than_the_rate_while_time_passes() {
    let redis = Redis::start().await;
    let (rate, burst) = (200, 20);
    let limit = format!("limit: {rate}/s, burst: {burst}");
    let (one, two) = (gateway(&redis, &limit, "").await, gateway(&redis, &limit, "").await);
    let began = Instant::now();
    let passed = passing([&one, &two], move |_| began.elapsed() > Duration::from_millis(1500)).await;
    let most = burst + (rate as f64 * began.elapsed().as_secs_f64()) as usize;
    assert!((burst..=most).contains(&passed), "{passed} of {most}");
}

/// What is left, as an answer tells it.
fn left(answer: &Answer) -> Option<&str> {
    answer.field("ratelimit").and_then(|field| field.strip_prefix("\"fair\";r="))?.split(';').next()
}

#[tokio::test]
async fn each_gateway_tells_what_all_have_left() {
    let redis = Redis::start().await;
    let (one, two) = (gateway(&redis, "limit: 3/h", "").await, gateway(&redis, "limit: 3/h", "").await);
    for (gateway, expected) in [(&one, "2"), (&two, "1"), (&one, "0")] {
        let answer = get(gateway.address(), "/").await;
        assert_eq!((answer.status, left(&answer)), (200, Some(expected)));
    }
    let refused = get(two.address(), "/").await;
    assert_eq!((refused.status, left(&refused)), (429, Some("0")));
    let wait: u64 = refused.field("retry-after").expect("Retry-After").parse().expect("seconds");
    assert!((1100..=1200).contains(&wait), "{wait}");
}

#[tokio::test]
async fn while_the_store_is_away_each_gateway_limits_by_itself_until_it_is_back() {
    let mut redis = Redis::start().await;
    let limit = "limit: 2/h";
    let (one, two) = (gateway(&redis, limit, "").await, gateway(&redis, limit, "").await);
    for (gateway, status) in [(&one, 200), (&two, 200), (&one, 429), (&two, 429)] {
        assert_eq!(get(gateway.address(), "/").await.status, status);
    }
    redis.kill();
    for gateway in [&one, &two] {
        gateway.says("a store is away: ").await;
        for status in [200, 200, 429] {
            assert_eq!(get(gateway.address(), "/").await.status, status);
        }
        assert!(admin(gateway, "/metrics").await.text().contains("tollhouse_store_up{store=\"main\"} 0"));
    }
    redis.restart().await;
    for gateway in [&one, &two] {
        gateway.says("a store is back store=main").await;
    }
    for (gateway, status) in [(&one, 200), (&two, 200), (&one, 429), (&two, 429)] {
        assert_eq!(get(gateway.address(), "/").await.status, status);
    }
    assert_eq!(one.said("a store is back"), 1);
}

#[tokio::test]
async fn with_open_all_pass_and_are_told_nothing_of_limits() {
    let mut redis = Redis::start().await;
    let gateway = gateway(&redis, "limit: 1/h", "on_failure: open").await;
    assert_eq!(get(gateway.address(), "/").await.status, 200);
    assert_eq!(get(gateway.address(), "/").await.status, 429);
    redis.kill();
    gateway.says("a store is away: ").await;
    for _ in 0..5 {
        let answer = get(gateway.address(), "/").await;
        assert_eq!((answer.status, answer.field("ratelimit")), (200, None));
        assert_eq!(answer.field("ratelimit-policy"), None);
    }
}

#[tokio::test]
async fn with_closed_nobody_passes_and_is_told_when_to_try_again() {
    let mut redis = Redis::later(&[]);
    let gateway = gateway_at(&redis.url(), "limit: 1/h", "on_failure: closed").await;
    let answer = get(gateway.address(), "/").await;
    assert_eq!((answer.status, answer.field("retry-after")), (503, Some("1")));
    assert!(answer.text().contains("urn:tollhouse:problem:filter-unavailable"), "{answer:?}");
    // One that was away at the start did not keep the gateway from starting.
    redis.restart().await;
    gateway.says("a store is back store=main").await;
    assert_eq!(get(gateway.address(), "/").await.status, 200);
    assert_eq!(get(gateway.address(), "/").await.status, 429);
}

#[tokio::test]
async fn a_store_that_stands_still_is_told_once_and_holds_up_few() {
    let redis = Redis::start().await;
    let text = document(&redis.url(), "limit: 1000000/s", "").replace("timeout: 1s", "timeout: 50ms");
    let gateway = Gateway::counting_all(&text).await;
    until("the store", || (gateway.said("a store is") > 0).then_some(())).await;
    redis.pause(true);
    for _ in 0..50 {
        assert_eq!(get(gateway.address(), "/").await.status, 200);
    }
    gateway.says("a store is away: no answer within 50ms").await;
    let view = admin(&gateway, "/api/stores").await.text();
    assert!(view.contains("\"up\":false") && view.contains("no answer within"), "{view}");
    redis.pause(false);
    until("the store", || (gateway.said("a store is back") > 0).then_some(())).await;
    assert_eq!(get(gateway.address(), "/").await.status, 200);
    assert!(admin(&gateway, "/api/stores").await.text().contains("\"up\":true"));
}

#[tokio::test]
async fn passwords_are_in_no_log_and_no_view() {
    let redis = Redis::with(&["--requirepass", "0pen-sesame"]).await;
    for password in ["wr0ng-secret", "0pen-sesame"] {
        let url = format!("{}?pass={password}", redis.url());
        let gateway = gateway_at(&url, "limit: 1/h", "").await;
        until("a word on the store", || (gateway.said("a store is") > 0).then_some(())).await;
        let mut seen = gateway.stderr().join("\n");
        for path in ["/api/stores", "/api/config", "/metrics"] {
            let answer = admin(&gateway, path).await;
            assert_eq!(answer.status, 200, "{path}");
            seen.push_str(&answer.text());
        }
        assert!(seen.contains("redis.sock?db=0"), "{seen}");
        assert!(!seen.contains(password), "{seen}");
    }
}
