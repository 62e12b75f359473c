//! Who asks the store, and what purses hold.

use async_trait::async_trait;
use futures_util::FutureExt;
use proptest::prelude::*;
use tokio::sync::Semaphore;

use super::*;
use crate::world::{Away, ManualClock, MemoryState, OnFailure, ScopedState, State, Store, Tally};

type Gateway = (Arc<Leases>, Ledger);

/// A store that gives leases and counts how often it is asked.
struct Counting {
    state: Arc<MemoryState>,
    asked: Mutex<u32>,
    away: Mutex<bool>,
    /// While it is silent, it answers as often as there are permits.
    silent: Mutex<bool>,
    answers: Semaphore,
}

#[async_trait]
impl Store for Counting {
    async fn decide(
        &self,
        tenant: TenantId,
        scope: &str,
        charges: &mut [Charge<'_>],
        _: &mut [Tally<'_>],
    ) -> Result<bool, Away> {
        if *self.away.lock() {
            return Err(Away);
        }
        *self.asked.lock() += 1;
        let is_silent = *self.silent.lock();
        // As the script does: as much as there is, of what is wanted.
        let mut given = Vec::new();
        for charge in &*charges {
            let mut nothing = [Charge::new(charge.key, charge.budget, 0)];
            self.state.spend(tenant, scope, &mut nothing).await.expect("memory");
            let there = u32::try_from(nothing[0].balance.available).expect("few");
            let units = there.clamp(charge.cost, charge.wanted());
            given.push(Charge::new(charge.key, charge.budget, units));
        }
        let spent = self.state.spend(tenant, scope, &mut given).await.expect("memory");
        for (charge, given) in charges.iter_mut().zip(given) {
            charge.balance = given.balance;
            charge.granted = given.cost;
        }
        if is_silent {
            self.answers.acquire().await.expect("open").forget();
        }
        Ok(spent)
    }

    fn give_back(&self, _: TenantId, _: &str, _: &[u8], _: u64, _: u64) {}

    fn on_failure(&self) -> OnFailure {
        OnFailure::Local
    }
}

struct Site {
    clock: Arc<ManualClock>,
    store: Arc<Counting>,
}

impl Site {
    fn new() -> Self {
        let clock = Arc::new(ManualClock::new());
        let state = Arc::new(MemoryState::new(clock.clone(), 1000));
        let (asked, away, silent) = (Mutex::default(), Mutex::default(), Mutex::default());
        let answers = Semaphore::new(0);
        Self { clock, store: Arc::new(Counting { state, asked, away, silent, answers }) }
    }

    fn gateway(&self, size: u32) -> Gateway {
        let own = MemoryState::new(self.clock.clone(), 1000);
        let own = ScopedState::new(Arc::new(own), "limit".into());
        let size = NonZeroU32::new(size).expect("not zero");
        let leases = Arc::new(Leases::new(size, self.clock.clone()));
        (leases, Ledger::new(own, Some(self.store.clone())))
    }

    fn asked(&self) -> u32 {
        *self.store.asked.lock()
    }
}

fn spend(gateway: &Gateway, key: &[u8], budget: Budget) -> (Spent, Balance) {
    spend_units(gateway, key, budget, 1)
}

fn spend_units((leases, ledger): &Gateway, key: &[u8], budget: Budget, cost: u32) -> (Spent, Balance) {
    let mut charges = [Charge::new(key, budget, cost)];
    let spent = leases.spend(ledger, TenantId(0), &mut charges).now_or_never();
    (spent.expect("at once").expect("works"), charges[0].balance)
}

fn budget(seconds: u64, burst: u32) -> Budget {
    Budget::new(Duration::from_secs(seconds), burst).expect("a budget")
}

/// Spends of what all share, 100 units, and of this client's own; none if that takes a while.
fn spend_both((leases, ledger): &Gateway, client: u8, own: u32) -> Option<Spent> {
    let client = [client];
    let mut charges = [Charge::new(b"all", budget(3600, 100), 1), Charge::new(&client, budget(3600, own), 1)];
    leases.spend(ledger, TenantId(0), &mut charges).now_or_never().map(|spent| spent.expect("works"))
}

/// What is held of the budget that all share.
fn held((leases, _): &Gateway) -> u32 {
    let digest = leases.digest(TenantId(0), b"all");
    leases.shard(digest).get(&digest).map_or(0, |purse| purse.units)
}

#[test]
fn of_several_budgets_the_store_is_asked_only_for_those_that_purses_lack() {
    let site = Site::new();
    let gateway = site.gateway(10);
    for client in 0..11 {
        assert_eq!(spend_both(&gateway, client, 20), Some(Spent::Yes), "{client}");
        assert!(held(&gateway) < 10, "{client}");
    }
    assert_eq!(held(&gateway), 9, "of the second lease");
}

#[test]
fn what_was_taken_for_who_is_refused_or_goes_away_is_put_back() {
    let site = Site::new();
    let gateway = site.gateway(10);
    assert_eq!(spend_both(&gateway, 1, 1), Some(Spent::Yes));
    assert_eq!((held(&gateway), site.asked()), (9, 1));
    // The store refuses the first, and the purse knows of it then.
    for _ in 0..3 {
        assert_eq!(spend_both(&gateway, 1, 1), Some(Spent::No));
        assert_eq!((held(&gateway), site.asked()), (9, 2));
    }
    *site.store.silent.lock() = true;
    assert_eq!(spend_both(&gateway, 2, 1), None, "and it waits no longer");
    assert_eq!((held(&gateway), site.asked()), (9, 3));
}

#[tokio::test]
async fn what_is_given_for_who_went_away_meanwhile_is_kept() {
    let site = Site::new();
    let gateway = site.gateway(10);
    *site.store.silent.lock() = true;
    assert_eq!(spend_both(&gateway, 1, 10), None, "and it waits no longer");
    assert_eq!((held(&gateway), site.asked()), (0, 1));
    site.store.answers.add_permits(1);
    for _ in 0..10 {
        tokio::task::yield_now().await;
    }
    assert_eq!(held(&gateway), 9);
    assert_eq!(spend_both(&gateway, 1, 10), Some(Spent::Yes));
    assert_eq!((held(&gateway), site.asked()), (8, 1));
}

#[test]
fn who_finds_nothing_in_the_store_locks_nobody_out_who_just_got_the_last_of_it() {
    let site = Site::new();
    let gateway = site.gateway(10);
    let budget = budget(1, 5);
    // Two ask together; who is refused is told last.
    let mut refused = Charge::new(b"a", budget, 1);
    assert_eq!(spend(&gateway, b"a", budget).0, Spent::Yes);
    refused.settle(budget.whole());
    gateway.0.note(gateway.0.digest(TenantId(0), b"a"), &mut refused, Spent::No, site.clock.now());
    for _ in 0..4 {
        assert_eq!(spend(&gateway, b"a", budget).0, Spent::Yes);
    }
    site.clock.advance(Duration::from_secs(1));
    assert_eq!(spend(&gateway, b"a", budget).0, Spent::Yes, "one came back");
}

#[test]
fn most_requests_ask_nobody_and_none_passes_that_the_store_did_not_give() {
    let site = Site::new();
    let (one, two) = (site.gateway(10), site.gateway(10));
    let budget = budget(3600, 45);
    let mut passed = 0;
    for _ in 0..40 {
        for gateway in [&one, &two] {
            passed += u32::from(spend(gateway, b"a", budget).0 == Spent::Yes);
        }
    }
    assert_eq!(passed, 45);
    // Five leases, the last of five units, and each gateway finds the budget empty once.
    assert_eq!(site.asked(), 7);
}

#[test]
fn what_is_held_and_too_little_for_a_request_has_nobody_ask_before_there_is_more() {
    let site = Site::new();
    let gateway = site.gateway(10);
    let budget = budget(1800, 46);
    let passed = (0..16).filter(|_| spend_units(&gateway, b"a", budget, 3).0 == Spent::Yes).count();
    let digest = gateway.0.digest(TenantId(0), b"a");
    let left = gateway.0.shard(digest)[&digest].units;
    assert_eq!((passed, left), (15, 1), "of 46 units");
    let asked = site.asked();
    for _ in 0..20 {
        let (spent, balance) = spend_units(&gateway, b"a", budget, 3);
        assert_eq!((spent, balance.available), (Spent::No, 0));
        assert_eq!(balance.wait, Duration::from_secs(3 * 1800));
    }
    assert_eq!(site.asked(), asked);
    site.clock.advance(Duration::from_secs(3 * 1800));
    assert_eq!(spend_units(&gateway, b"a", budget, 3).0, Spent::Yes);
    assert_eq!(site.asked(), asked + 1);
}

#[test]
fn what_is_told_counts_what_is_held() {
    let site = Site::new();
    let gateway = site.gateway(3);
    let left: Vec<u64> = (0..5).map(|_| spend(&gateway, b"a", budget(3600, 5)).1.available).collect();
    assert_eq!(left, [4, 3, 2, 1, 0]);
    let (spent, balance) = spend(&gateway, b"a", budget(3600, 5));
    assert_eq!((spent, balance.available, balance.wait), (Spent::No, 0, Duration::from_secs(3600)));
    site.clock.advance(Duration::from_secs(3000));
    let (spent, balance) = spend(&gateway, b"a", budget(3600, 5));
    assert_eq!((spent, balance.wait), (Spent::No, Duration::from_secs(600)));
    site.clock.advance(Duration::from_secs(600));
    assert_eq!(spend(&gateway, b"a", budget(3600, 5)).0, Spent::Yes);
}

#[test]
fn units_are_forfeited_after_as_long_as_a_whole_budget_takes() {
    let site = Site::new();
    let gateway = site.gateway(10);
    let budget = budget(1, 20);
    assert_eq!(spend(&gateway, b"a", budget).0, Spent::Yes);
    site.clock.advance(Duration::from_secs(19));
    spend(&gateway, b"a", budget);
    assert_eq!(site.asked(), 1);
    site.clock.advance(Duration::from_secs(1));
    spend(&gateway, b"a", budget);
    assert_eq!(site.asked(), 2);
}

#[test]
fn while_the_store_is_away_purses_last_and_then_each_counts_for_itself() {
    let site = Site::new();
    let gateway = site.gateway(3);
    assert_eq!(spend(&gateway, b"a", budget(3600, 4)).0, Spent::Yes);
    *site.store.away.lock() = true;
    let spent: Vec<Spent> = (0..7).map(|_| spend(&gateway, b"a", budget(3600, 4)).0).collect();
    assert_eq!(spent[..6], [Spent::Yes; 6], "two of the purse, four of its own");
    assert_eq!(spent[6], Spent::No);
}

#[test]
fn memory_is_bounded() {
    let site = Site::new();
    let gateway = site.gateway(5);
    for n in 0..400_000_u32 {
        spend(&gateway, &n.to_be_bytes(), budget(1, 10));
    }
    let held: usize = gateway.0.shards.iter().map(|shard| shard.lock().len()).sum();
    assert!(held <= SHARDS * MOST, "{held}");
}

/// Whether a map's entries are all that it holds: none of them owns memory of its own.
fn holds_nothing_beside<K, V, S>(_: &Mutex<HashMap<K, V, S>>) -> bool {
    !std::mem::needs_drop::<(K, V)>()
}

#[test]
fn a_purse_takes_the_same_memory_however_long_its_key_is_and_is_nobody_elses() {
    let site = Site::new();
    let gateway = site.gateway(5);
    let budget = budget(3600, 5);
    let keys = [0, 1].map(|last| [vec![b'k'; 32 << 10], vec![last]].concat());
    for key in &keys {
        let spent: Vec<Spent> = (0..6).map(|_| spend(&gateway, key, budget).0).collect();
        assert_eq!(spent[..5], [Spent::Yes; 5], "a budget of its own");
        assert_eq!(spent[5], Spent::No);
    }
    let digests: Vec<u64> = (0..2).map(|tenant| gateway.0.digest(TenantId(tenant), &keys[0])).collect();
    assert_ne!(digests[0], digests[1], "nor another tenant's");
    assert!(gateway.0.shards.iter().all(holds_nothing_beside));
}

proptest! {
    #[test]
    fn in_any_time_no_more_passes_than_the_budget_and_what_purses_hold(
        steps in prop::collection::vec((0..3_usize, 0..1500_u64), 1..400),
        size in 1..8_u32,
        burst in 8..20_u32,
    ) {
        let site = Site::new();
        let gateways = [site.gateway(size), site.gateway(size), site.gateway(size)];
        let budget = budget(1, burst);
        let (mut now, mut passed) = (0_u64, Vec::new());
        for (gateway, passes) in steps {
            now += passes;
            site.clock.advance(Duration::from_millis(passes));
            if spend(&gateways[gateway], b"a", budget).0 == Spent::Yes {
                passed.push(now);
            }
        }
        for (from, began) in passed.iter().enumerate() {
            for (to, ended) in passed.iter().enumerate().skip(from) {
                let most = u64::from(burst) + (ended - began) / 1000 + 3 * u64::from(size - 1);
                prop_assert!((to - from + 1) as u64 <= most, "{} in {}ms", to - from + 1, ended - began);
            }
        }
    }
}
