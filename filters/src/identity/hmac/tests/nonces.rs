//! Nonces: each is good for one request, as long as its signature could be.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use async_trait::async_trait;

use super::{NOW, SECRET, at, chain, chain_with, document, signed, told};
use crate::filter::Surroundings;
use crate::identity::consumers::Consumers;
use crate::identity::{ConsumerSpec, Identity, IdentitySpec, Presented, Site, build, index, layout};
use crate::plan::Plans;
use crate::testing::{Alone, Request, yaml};
use crate::values::Name;
use crate::world::{
    Away, Charge, Clock, ManualClock, MemoryState, OnFailure, OwnStore, Store, Stores, Tally, TenantId,
    UpstreamId, World,
};

fn with(nonce: &str) -> Request {
    with_key("k1", nonce)
}

fn with_key(key: &str, nonce: &str) -> Request {
    signed(&format!(";created={NOW};keyid=\"{key}\";nonce=\"{nonce}\""))
}

/// Surrounds an identity with these stores.
struct Beside(Stores);

impl Surroundings for Beside {
    fn upstream(&self, _: &str) -> Option<UpstreamId> {
        None
    }

    fn nearest_upstream(&self, _: &str) -> Option<String> {
        None
    }

    fn stores(&self) -> Option<&Stores> {
        Some(&self.0)
    }
}

/// A store whose answers get lost at first, so that nothing passes.
struct Lost {
    store: OwnStore,
    /// Whether it hears what it is asked all the same.
    hears: bool,
    is_away: AtomicBool,
}

#[async_trait]
impl Store for Lost {
    async fn decide(
        &self,
        tenant: TenantId,
        scope: &str,
        charges: &mut [Charge<'_>],
        tallies: &mut [Tally<'_>],
    ) -> Result<bool, Away> {
        let is_away = self.is_away.load(Ordering::Relaxed);
        if is_away && !self.hears {
            return Err(Away);
        }
        let decided = self.store.decide(tenant, scope, charges, tallies).await;
        if is_away { Err(Away) } else { decided }
    }

    fn give_back(&self, _: TenantId, _: &str, _: &[u8], _: u64, _: u64) {}

    fn on_failure(&self) -> OnFailure {
        OnFailure::Closed
    }
}

/// An identity in this world, with the keys `k1` and `k2` of one consumer, and `k3` of another.
fn identity(world: &World) -> Arc<dyn Identity> {
    identity_beside(world, &Alone, "")
}

/// A store that is away, and hears what it is asked all the same or does not.
fn lost(clock: &Arc<ManualClock>, hears: bool) -> Arc<Lost> {
    let store = OwnStore(Arc::new(MemoryState::new(clock.clone(), 1000)));
    Arc::new(Lost { store, hears, is_away: AtomicBool::new(true) })
}

/// One whose nonces are known in this store.
fn sharing(store: Arc<dyn Store>, clock: &Arc<ManualClock>) -> Arc<dyn Identity> {
    let stores = Beside(Stores::from([("main".into(), store)]));
    identity_beside(&World::dry_at(clock.clone()), &stores, ", store: main")
}

fn identity_beside(world: &World, surroundings: &dyn Surroundings, options: &str) -> Arc<dyn Identity> {
    let identities: BTreeMap<Name, IdentitySpec> = yaml(&format!("{{signed: {{type: hmac{options}}}}}"));
    let key = |id: &str| format!("{{type: hmac, id: {id}, secret: '{SECRET}'}}");
    let [first, second, third] = ["k1", "k2", "k3"].map(key);
    let consumers: Vec<ConsumerSpec> = yaml(&format!(
        "[{{name: acme, credentials: [{first}, {second}]}}, {{name: other, credentials: [{third}]}}]"
    ));
    let site = Site { world, surroundings };
    let layout = layout(&identities, &Plans::default());
    let (index, errors) = index(&layout, consumers);
    assert!(errors.is_empty(), "{errors:?}");
    let (built, errors) = build(&identities, &Arc::new(Consumers::new(layout, index)), &site);
    assert!(errors.is_empty(), "{errors:?}");
    built.get("signed").expect("an identity").clone()
}

/// What an identity says of a request, asked twice.
async fn said(identity: &Arc<dyn Identity>, request: Request, clock: &ManualClock) -> [String; 2] {
    let (request, ctx) = request.into_parts();
    let ask = async || in_words(identity.check(&request, &ctx, clock.wall()).await);
    [ask().await, ask().await]
}

fn in_words(presented: Presented) -> String {
    match presented {
        Presented::Valid(_) => "good".to_owned(),
        Presented::Refused(refusal) => refusal.reason.to_owned(),
        Presented::Unknown(why) => format!("503 {}", why.reason),
        Presented::Nothing => "nothing".to_owned(),
    }
}

/// The request with its signature under a second label too, which no signature covers (RFC 9421 s2.3).
fn twice(request: Request) -> Request {
    request.head(|head| {
        for name in ["signature-input", "signature"] {
            let written = head.headers[name].to_str().expect("text").to_owned();
            let other = written.replacen("sig=", "other=", 1);
            head.insert_header(name, format!("{written}, {other}")).expect("a valid field");
        }
    })
}

#[tokio::test]
async fn a_nonce_that_another_gateway_saw_is_good_nowhere_however_often_it_is_asked_for() {
    let clock = Arc::new(ManualClock::new());
    let store: Arc<dyn Store> = Arc::new(OwnStore(Arc::new(MemoryState::new(clock.clone(), 1000))));
    let [one, other] = [0, 1].map(|_| sharing(store.clone(), &clock));
    let again = "the nonce was used already";
    for nonce in ["a", "b"] {
        let copy = |nonce| if nonce == "a" { with(nonce) } else { twice(with(nonce)) };
        assert_eq!(said(&one, with(nonce), &clock).await, ["good", "good"], "{nonce}");
        assert_eq!(said(&other, copy(nonce), &clock).await, [again, again], "{nonce}");
        assert_eq!(said(&one, copy(nonce), &clock).await, [again, again], "{nonce}");
    }
    assert_eq!(said(&other, twice(with("c")), &clock).await, ["good", "good"]);
}

#[tokio::test]
async fn a_nonce_that_nobody_knows_of_is_not_good_the_second_time_either() {
    let clock = Arc::new(ManualClock::new());
    let signed = sharing(lost(&clock, false), &clock);
    let unknown = "503 nobody knows which nonces were used";
    assert_eq!(said(&signed, twice(with("a")), &clock).await, [unknown, unknown]);
}

/// RFC 9421 s7.2.2: a nonce is not to be taken twice. One of a request that was not let in was not taken, if the store
/// says so: the same request may come again.
#[tokio::test]
async fn a_nonce_that_a_store_gave_no_answer_on_may_be_sent_again_and_is_good_once() {
    let (unknown, again) = ("503 nobody knows which nonces were used", "the nonce was used already");
    for (hears, resent) in [(false, "good"), (true, again)] {
        let clock = Arc::new(ManualClock::new());
        let store = lost(&clock, hears);
        let [one, other] = [0, 1].map(|_| sharing(store.clone(), &clock));
        for _ in 0..2 {
            assert_eq!(said(&one, with("a"), &clock).await[0], unknown);
        }
        store.is_away.store(false, Ordering::Relaxed);
        assert_eq!(said(&one, with("a"), &clock).await, [resent, resent], "{hears}");
        for replayed in [&one, &other] {
            assert_eq!(said(replayed, twice(with("a")), &clock).await, [again, again], "{hears}");
        }
    }
}

#[tokio::test]
async fn a_nonce_is_good_for_one_request_and_may_be_asked_for() {
    let chain = chain(", nonce: required");
    assert_eq!(told(&chain, with("a")).await, None);
    assert_eq!(told(&chain, with("a")).await.as_deref(), Some("the nonce was used already"));
    assert_eq!(told(&chain, with("b")).await, None);
    assert_eq!(told(&chain, at(NOW)).await.as_deref(), Some("the signature has no nonce"));
    for nonce in ["", &"n".repeat(257)] {
        assert_eq!(told(&chain, with(nonce)).await.as_deref(), Some("the nonce is too short or too long"));
    }
    // As long as its signature could be taken.
    chain.clock.advance(Duration::from_secs(330));
    assert_eq!(told(&chain, with("a")).await.as_deref(), Some("the nonce was used already"));
}

#[tokio::test]
async fn one_request_may_be_asked_for_its_nonce_in_several_places() {
    let twice = "- authenticate: {any_of: [signed]}\n- authenticate: {all_of: [signed]}";
    let chain = chain_with(&document(""), twice);
    let request = signed(&format!(";created={NOW};keyid=\"k1\";nonce=\"a\""));
    chain.send(request).await.continues();
}

#[tokio::test]
async fn a_nonce_is_known_to_the_end_of_the_last_second_of_its_signature() {
    let chain = chain(", window: 60s, skew: 0s");
    chain.clock.advance(Duration::from_millis(200));
    assert_eq!(told(&chain, with("a")).await, None);
    // Ages are told in whole seconds: the signature still holds.
    chain.clock.advance(Duration::from_millis(60_300));
    assert_eq!(told(&chain, with("b")).await, None);
    assert_eq!(told(&chain, with("a")).await.as_deref(), Some("the nonce was used already"));
    chain.clock.advance(Duration::from_millis(500));
    assert_eq!(told(&chain, with("a")).await.as_deref(), Some("the signature is too old"));
}

#[tokio::test]
async fn a_flood_of_nonces_makes_none_good_again() {
    let clock = Arc::new(ManualClock::new());
    let state = Arc::new(MemoryState::new(clock.clone(), 16));
    let signed = identity(&World { state, ..World::dry_at(clock.clone()) });
    let ask = async |nonce: &str| said(&signed, with(nonce), &clock).await;
    assert_eq!(ask("a").await, ["good", "good"]);
    let mut told = Vec::new();
    for other in 0..200 {
        told.extend(ask(&other.to_string()).await);
    }
    let full = "503 there are more nonces than can be remembered";
    assert!(told.iter().all(|told| told == "good" || told == full), "{told:?}");
    assert!(told.iter().filter(|told| *told == "good").count() < 2 * 16, "{told:?}");
    assert_eq!(ask("a").await, ["the nonce was used already"; 2]);
}

#[tokio::test]
async fn one_consumer_does_not_have_the_nonces_of_others_refused() {
    let clock = Arc::new(ManualClock::new());
    let signed = identity(&World::dry_at(clock.clone()));
    let ask = async |key: &str, nonce: u32| {
        let (request, ctx) = with_key(key, &nonce.to_string()).into_parts();
        in_words(signed.check(&request, &ctx, clock.wall()).await)
    };
    let mut good = 0;
    let told = loop {
        match ask("k1", good).await {
            told if told == "good" && good < 25_000 => good += 1,
            told => break told,
        }
    };
    // Far less than half of the million that are remembered, all at once.
    assert_eq!((good, &*told), (20_000, "503 the consumer has its share of nonces"));
    assert_eq!(ask("k2", 0).await, told, "by whichever of its keys");
    assert_eq!(ask("k1", 0).await, "the nonce was used already");
    assert_eq!(ask("k3", 0).await, "good");
    clock.advance(Duration::from_secs(1));
    assert_eq!(ask("k1", good).await, "good");
}

#[tokio::test]
async fn copies_of_a_request_use_up_no_share_of_nonces() {
    let clock = Arc::new(ManualClock::new());
    let signed = identity(&World::dry_at(clock.clone()));
    assert_eq!(said(&signed, with("a"), &clock).await, ["good", "good"]);
    for _ in 0..20_000 {
        let (copy, ctx) = with("a").into_parts();
        let told = in_words(signed.check(&copy, &ctx, clock.wall()).await);
        assert_eq!(told, "the nonce was used already");
    }
    assert_eq!(said(&signed, with("b"), &clock).await, ["good", "good"]);
}
