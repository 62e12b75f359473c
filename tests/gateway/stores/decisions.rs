//! What a store decides is what one process would.

use std::cell::RefCell;
use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt;
use proptest::prelude::{ProptestConfig, prop, prop_oneof, proptest};
use redis::{Connection, Value};
use serde_json::json;
use tollhouse_filters::world::{
    Balance, Budget, Charge, Ledger, ManualClock, MemoryState, ScopedState, Spent, State, Store, TenantId,
};

use super::kept;
use crate::harness::Redis;

const SCRIPT: &str = include_str!("../../../src/store/script.lua");

/// The script by a clock that tests set, which keeps budgets for as long as they run.
fn script() -> String {
    let (clock, ttl) = ("redis.call('TIME')", "'PX', ttl)");
    assert!(SCRIPT.matches(clock).count() == 1 && SCRIPT.matches(ttl).count() == 1);
    SCRIPT.replace(clock, "redis.call('MGET', 'clock:s', 'clock:us')").replace(ttl, "'PX', '100000000')")
}

/// Runs the script with these charges at this time; leaves in them what it answers.
fn decide(connection: &mut Connection, now: Duration, keys: &[String], charges: &mut [Charge<'_>]) -> bool {
    let clock = [("clock:s", now.as_secs()), ("clock:us", u64::from(now.subsec_micros()))];
    let () = redis::cmd("MSET").arg(&clock).query(connection).expect("set");
    let mut command = redis::cmd("EVAL");
    command.arg(script()).arg(keys.len()).arg(keys).arg(charges.len());
    for charge in &*charges {
        let unit = u64::try_from(charge.budget.interval().as_nanos()).expect("a year at most");
        command.arg(charge.price()).arg(charge.budget.whole()).arg(charge.wanted()).arg(unit);
    }
    let (fits, debts, _, _): (i64, Vec<u64>, Vec<Value>, Vec<i64>) =
        command.query(connection).expect("an answer");
    charges.iter_mut().zip(debts).for_each(|(charge, debt)| charge.settle(debt));
    fits == 1
}

/// Budgets of a test: an interval in nanoseconds, and a burst.
const BUDGETS: [(u64, u32); 5] =
    [(1000, 1), (333_333_334, 3), (142_857_143, 7), (3_600_000_000_000, 20), (999_999_999, 1_000_000)];

/// Charges of these budgets, under these names.
fn charges<'a>(parts: &[(usize, u32)], names: &'a [String]) -> Vec<Charge<'a>> {
    let charge = |((at, cost), name): (&(usize, u32), &'a String)| {
        let (interval, burst) = BUDGETS[*at];
        let budget = Budget::new(Duration::from_nanos(interval), burst).expect("a budget");
        Charge::new(name.as_bytes(), budget, *cost)
    };
    parts.iter().zip(names).map(charge).collect()
}

/// What passes before the next request, in microseconds; what is charged then.
type Step = (u64, Vec<(usize, u32)>);

/// Plays the steps to one process and to the store, and compares what they say.
fn compare(steps: Vec<Step>, connection: &mut Connection, case: usize) {
    let clock = Arc::new(ManualClock::new());
    let local = MemoryState::new(clock.clone(), 1000);
    // Close to the end of a second, where its nanoseconds carry over.
    let mut now = Duration::from_micros(1_764_400_000_999_000);
    for (micros, mut parts) in steps {
        parts.sort_unstable();
        parts.dedup_by_key(|(at, _)| *at);
        clock.advance(Duration::from_micros(micros));
        now += Duration::from_micros(micros);
        let names: Vec<String> = parts.iter().map(|(at, _)| format!("{case}:{at}")).collect();
        let (mut here, mut there) = (charges(&parts, &names), charges(&parts, &names));
        let spent = local.spend(TenantId(0), "test", &mut here).now_or_never().expect("at once");
        assert_eq!(spent, Ok(decide(connection, now, &names, &mut there)));
        let balances =
            |charges: &[Charge<'_>]| -> Vec<Balance> { charges.iter().map(|c| c.balance).collect() };
        assert_eq!(balances(&here), balances(&there));
    }
}

#[tokio::test]
async fn a_store_decides_and_tells_exactly_what_one_process_would() {
    let redis = Redis::start().await;
    let connection = RefCell::new((redis.connection(), 0));
    // Most requests follow close; some come much later.
    let passes = prop_oneof![0..2000_u64, 0..3_000_000_000_u64];
    let step = (passes, prop::collection::vec((0..BUDGETS.len(), 1..4_u32), 1..4));
    proptest!(ProptestConfig::with_cases(100), |(steps in prop::collection::vec(step, 1..50))| {
        let (connection, case) = &mut *connection.borrow_mut();
        *case += 1;
        compare(steps, connection, *case);
    });
}

#[tokio::test]
async fn a_clock_that_goes_back_costs_no_more_than_a_whole_budget() {
    let redis = Redis::start().await;
    let mut connection = redis.connection();
    let budget = Budget::new(Duration::from_secs(1), 5).expect("a budget");
    let mut at = |seconds: u64| {
        let mut charges = [Charge::new(b"a", budget, 1)];
        let spent = decide(&mut connection, Duration::from_secs(seconds), &["a".to_owned()], &mut charges);
        (spent, charges[0].balance.available, charges[0].balance.wait)
    };
    assert_eq!(at(1_764_400_000), (true, 4, Duration::ZERO));
    // A day back: the budget counts as used up, and comes back as ever.
    assert_eq!(at(1_764_313_600), (false, 0, Duration::from_secs(1)));
    assert_eq!(at(1_764_313_601), (true, 0, Duration::from_secs(1)));
    assert_eq!(at(1_764_400_001), (true, 4, Duration::ZERO));
}

#[tokio::test]
async fn every_key_has_its_end_and_none_holds_what_a_client_sent() {
    let redis = Redis::start().await;
    let kept = kept(&redis, json!({"prefix": "gate:a"}));
    kept.back().await;
    let budget = Budget::new(Duration::from_secs(1), 100).expect("a budget");
    let long = "k".repeat(60_000);
    for key in ["", "a", "\0\r\n{}*", &long] {
        for tenant in [0, 7] {
            let mut charges = [Charge::new(key.as_bytes(), budget, 3)];
            assert_eq!(kept.store.decide(TenantId(tenant), "test", &mut charges, &mut []).await, Ok(true));
        }
    }
    let keys: Vec<String> = redis.ask(&["KEYS", "*:[07]:*"]);
    let budgets = keys.iter().filter(|key| {
        let left: i64 = redis.ask(&["PTTL", key]);
        // -2: the one that the store is tried out with has ended meanwhile.
        assert!(left == -2 || (0..=3001).contains(&left), "{key} ends in {left}ms");
        assert!(key.starts_with("gate:a:") && key.len() == "gate:a:0:".len() + 32, "{key}");
        left > 2
    });
    assert_eq!(budgets.count(), 8);
}

#[tokio::test]
async fn tenants_scopes_and_prefixes_do_not_share() {
    let redis = Redis::start().await;
    let (one, two) = (kept(&redis, json!({})), kept(&redis, json!({"prefix": "other"})));
    let budget = Budget::new(Duration::from_secs(3600), 1).expect("a budget");
    for (kept, tenant, scope) in [(&one, 0, "a"), (&one, 1, "a"), (&one, 0, "b"), (&two, 0, "a")] {
        for expected in [true, false] {
            let mut charges = [Charge::new(b"key", budget, 1)];
            let spent = kept.store.decide(TenantId(tenant), scope, &mut charges, &mut []).await;
            assert_eq!(spent, Ok(expected), "{tenant} {scope}");
        }
    }
}

#[tokio::test]
async fn charges_are_spent_together_or_not_at_all() {
    let redis = Redis::start().await;
    let kept = kept(&redis, json!({}));
    let budget = |burst| Budget::new(Duration::from_secs(3600), burst).expect("a budget");
    let mut found = Vec::new();
    for _ in 0..4 {
        let mut charges = [Charge::new(b"wide", budget(5), 1), Charge::new(b"narrow", budget(2), 1)];
        let spent = kept.store.decide(TenantId(0), "test", &mut charges, &mut []).await.expect("it is there");
        found.push((spent, charges[0].balance.available));
    }
    assert_eq!(found, [(true, 4), (true, 3), (false, 3), (false, 3)]);
    assert_eq!(kept.decisions("shared"), 4);
}

#[tokio::test]
async fn a_budget_in_a_store_is_not_the_one_in_the_process() {
    let redis = Redis::start().await;
    let kept = kept(&redis, json!({}));
    let own = MemoryState::new(Arc::new(ManualClock::new()), 100);
    let own = ScopedState::new(Arc::new(own), "test".into());
    let ledger = Ledger::new(own.clone(), Some(kept.store.clone()));
    let budget = Budget::new(Duration::from_secs(3600), 1).expect("a budget");
    let mut charges = [Charge::new(b"key", budget, 1)];
    let spent = ledger.spend(TenantId(0), &mut charges).await;
    assert_eq!(spent, Ok(Spent::Yes));
    assert_eq!(own.spend(TenantId(0), &mut charges).await, Ok(true));
}
