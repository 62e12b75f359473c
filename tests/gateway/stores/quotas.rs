//! Quotas and plans that gateways share.

use std::cell::RefCell;
use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt;
use proptest::prelude::{ProptestConfig, prop, proptest};
use serde_json::json;
use tollhouse_filters::world::{
    Balance, Budget, Charge, ManualClock, MemoryState, State, Store, Tally, TenantId, Window,
};

use super::gateways::admin;
use super::{Kept, kept};
use crate::harness::{Gateway, Redis, get, soon, until};

/// A gateway that answers by itself, with this filter and what else stands in the store.
async fn gateway(redis: &Redis, filters: &str, store: &str) -> Gateway {
    Gateway::counting_all(&format!(
        "stores: {{main: {{type: redis, url: \"{}\", timeout: 1s, {store}}}}}
plans:
  gold: {{limits: [{{name: burst, limit: 100/h}}, {{name: slow, limit: 90/h}}, {{name: day, quota: 60/day}}, {{name: month, quota: 50, window: 30d}}]}}
routes: [{{name: all, filters: [{filters}], respond: {{}}}}]
",
        redis.url()
    ))
    .await
}

const DAILY: &str = "{quota: {per: host, limit: 50/day, store: main}, name: daily}";

async fn statuses(gateway: &Gateway, count: usize) -> Vec<u16> {
    let mut statuses = Vec::new();
    for _ in 0..count {
        statuses.push(get(gateway.address(), "/").await.status);
    }
    statuses
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_gateways_share_one_quota_exactly_under_eight_clients() {
    let redis = Redis::start().await;
    let gateways = [gateway(&redis, DAILY, "").await, gateway(&redis, DAILY, "").await];
    let clients: Vec<_> = (0..8)
        .map(|client| {
            let address = gateways[client % 2].address();
            tokio::spawn(async move {
                let mut passed = 0;
                for _ in 0..20 {
                    let answer = get(address, "/").await;
                    match answer.status {
                        200 => passed += 1,
                        status => assert_eq!((status, answer.problem().as_str()), (429, "quota-exceeded")),
                    }
                }
                passed
            })
        })
        .collect();
    let mut passed = 0;
    for client in clients {
        passed += client.await.expect("no panic");
    }
    assert_eq!(passed, 50);
}

#[tokio::test]
async fn a_plan_is_decided_in_one_round_trip_and_by_its_tightest_limit() {
    let redis = Redis::start().await;
    let filters = "{plan_limits: {default: gold, store: main}}";
    let (one, two) = (gateway(&redis, filters, "").await, gateway(&redis, filters, "").await);
    assert_eq!(statuses(&one, 25).await, [200; 25]);
    assert_eq!(statuses(&two, 25).await, [200; 25]);
    let refused = get(one.address(), "/").await;
    assert_eq!((refused.status, refused.problem().as_str()), (429, "quota-exceeded"));
    assert!(refused.text().contains("`month`"), "{refused:?}");
    assert_eq!(refused.field("ratelimit").and_then(|field| field.split(';').next()), Some("\"month\""));
    let metrics = admin(&one, "/metrics").await.text();
    let made = "tollhouse_store_decisions_total{outcome=\"shared\",store=\"main\"} 26";
    assert!(metrics.contains(made), "26 requests, 26 decisions: {metrics}");
}

#[tokio::test]
async fn what_a_later_filter_refuses_is_given_back() {
    let redis = Redis::start().await;
    let filters = format!("{DAILY}, {{rate_limit: {{per: host, limit: 1/h}}}}");
    let gateway = gateway(&redis, &filters, "").await;
    assert_eq!(statuses(&gateway, 6).await, [200, 429, 429, 429, 429, 429]);
    let left = || {
        let keys: Vec<String> = redis.ask(&["KEYS", "tollhouse:q:*"]);
        let used: Vec<String> = redis.ask(&["HVALS", keys.first()?]);
        (used == ["1"]).then_some(())
    };
    until("what is left", left).await;
    let keys: Vec<String> = redis.ask(&["KEYS", "tollhouse:q:*"]);
    let ttl: i64 = redis.ask(&["PTTL", &keys[0]]);
    assert!((0..=86_402_000).contains(&ttl), "it ends with the day: {ttl}");
}

#[tokio::test]
async fn while_the_store_is_away_quotas_hold_as_it_says() {
    for (on_failure, expected) in
        [("local", [200, 200, 429]), ("open", [200, 200, 200]), ("closed", [503, 503, 503])]
    {
        let mut redis = Redis::start().await;
        let filter = "{quota: {per: host, limit: 2/day, store: main}, name: daily}";
        let gateway = gateway(&redis, filter, &format!("on_failure: {on_failure}")).await;
        assert_eq!(statuses(&gateway, 3).await, [200, 200, 429], "{on_failure}");
        redis.kill();
        gateway.says("a store is away: ").await;
        assert_eq!(statuses(&gateway, 3).await, expected, "{on_failure}");
        redis.restart().await;
        gateway.says("a store is back store=main").await;
        // It begins anew: this Redis keeps nothing over a restart.
        assert_eq!(statuses(&gateway, 3).await, [200, 200, 429], "{on_failure}");
    }
}

#[tokio::test]
async fn a_store_that_stands_still_holds_up_few_and_decides_again() {
    let redis = Redis::start().await;
    let filter = "{quota: {per: host, limit: 1000/day, store: main}, name: daily}";
    let gateway = gateway(&redis, filter, "").await;
    assert_eq!(statuses(&gateway, 1).await, [200]);
    redis.pause(true);
    soon("the requests", statuses(&gateway, 10)).await;
    gateway.says("a store is away: no answer within").await;
    redis.pause(false);
    gateway.says("a store is back store=main").await;
    assert_eq!(statuses(&gateway, 1).await, [200]);
}

const HOUR: u64 = 3600;

fn window(slot: u64, slots: u32) -> Window {
    Window {
        now: Duration::from_secs(slot * HOUR + 7),
        slot,
        slots,
        ends: Duration::from_secs((slot + 1) * HOUR),
        length: Duration::from_secs(HOUR),
    }
}

/// What passes before the next request, in hours; what it takes of a day, a window of five hours, and a budget.
type Step = (u64, [u64; 3]);

/// Plays the steps to one process and to the store, and compares what they say.
fn compare(steps: Vec<Step>, kept: &Kept, case: usize) {
    let clock = Arc::new(ManualClock::new());
    let local = MemoryState::new(clock, 1000);
    let names = [format!("{case} day"), format!("{case} window"), format!("{case} budget")];
    // A budget of which nothing comes back while this runs, on the clock of either.
    let budget = Budget::new(Duration::from_secs(24 * HOUR), 40).expect("a budget");
    let mut slot = 500_000;
    for (hours, costs) in steps {
        slot += hours;
        let tallies = || {
            [
                Tally::new(names[0].as_bytes(), 9, costs[0], window(slot / 24, 1)),
                Tally::new(names[1].as_bytes(), 7, costs[1], window(slot, 6)),
            ]
        };
        let charges = || [Charge::new(names[2].as_bytes(), budget, u32::try_from(costs[2]).expect("few"))];
        let (mut here, mut there) = (tallies(), tallies());
        let (mut own, mut shared) = (charges(), charges());
        let tenant = TenantId(0);
        let counted = local.tally(tenant, "test", &mut here).now_or_never().expect("at once").expect("works");
        let spent =
            counted && local.spend(tenant, "test", &mut own).now_or_never().expect("at once").expect("works");
        if counted && !spent {
            here.iter().for_each(|tally| {
                local.give_back(tenant, "test", tally.key, tally.window.slot, tally.cost);
            });
        }
        let decided = kept.store.decide(tenant, "test", &mut shared, &mut there);
        let decided = futures_util::future::FutureExt::boxed(decided);
        let decided = tokio::task::block_in_place(|| tokio::runtime::Handle::current().block_on(decided));
        assert_eq!(decided, Ok(spent));
        let balances =
            |tallies: &[Tally<'_>]| -> Vec<Balance> { tallies.iter().map(|t| t.balance).collect() };
        // What was given back again does not show in what was found before.
        if spent || !counted {
            assert_eq!(balances(&here), balances(&there));
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_store_counts_quotas_exactly_as_one_process_does() {
    let redis = Redis::start().await;
    let kept = kept(&redis, json!({}));
    kept.back().await;
    let case = RefCell::new(0);
    let costs = [1..4_u64, 1..4_u64, 1..3_u64];
    let step = (prop::sample::select(vec![0_u64, 0, 0, 1, 2, 5, 7, 30]), costs);
    proptest!(ProptestConfig::with_cases(60), |(steps in prop::collection::vec(step, 1..30))| {
        *case.borrow_mut() += 1;
        compare(steps, &kept, *case.borrow());
    });
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn leases_never_overdraw_a_budget_and_ask_for_it_seldom() {
    let redis = Redis::start().await;
    let filter = "{rate_limit: {per: host, limit: 2/h, burst: 100, store: main, lease: 10}, name: leased}";
    let gateways = [gateway(&redis, filter, "").await, gateway(&redis, filter, "").await];
    let clients: Vec<_> = (0..8)
        .map(|client| {
            let address = gateways[client % 2].address();
            tokio::spawn(async move {
                let mut passed = 0;
                for _ in 0..30 {
                    passed += usize::from(get(address, "/").await.status == 200);
                }
                passed
            })
        })
        .collect();
    let mut passed = 0;
    for client in clients {
        passed += client.await.expect("no panic");
    }
    assert_eq!(passed, 100, "each gateway was asked until it had nothing left");
    let mut decisions = 0;
    for gateway in &gateways {
        let metrics = admin(gateway, "/metrics").await.text();
        let line = metrics.lines().find_map(|line| {
            line.strip_prefix("tollhouse_store_decisions_total{outcome=\"shared\",store=\"main\"} ")
        });
        decisions += line.and_then(|count| count.parse::<usize>().ok()).expect("a count");
    }
    // Ten leases, what several requests asked for at once, and an empty budget for each gateway.
    assert!((11..60).contains(&decisions), "{decisions} round trips for 240 requests");
}
