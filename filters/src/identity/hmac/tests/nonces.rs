//! Nonces: each is good for one request, as long as its signature could be.

use std::collections::BTreeMap;
use std::sync::Arc;
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
    signed(&format!(";created={NOW};keyid=\"k1\";nonce=\"{nonce}\""))
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

/// A store that is away, so that nothing passes.
struct Gone;

#[async_trait]
impl Store for Gone {
    async fn decide(
        &self,
        _: TenantId,
        _: &str,
        _: &mut [Charge<'_>],
        _: &mut [Tally<'_>],
    ) -> Result<bool, Away> {
        Err(Away)
    }

    fn give_back(&self, _: TenantId, _: &str, _: &[u8], _: u64, _: u64) {}

    fn on_failure(&self) -> OnFailure {
        OnFailure::Closed
    }
}

/// An identity in this world, with the key `k1`.
fn identity(world: &World) -> Arc<dyn Identity> {
    identity_beside(world, &Alone, "")
}

/// One whose nonces are known in this store.
fn sharing(store: Arc<dyn Store>, clock: &Arc<ManualClock>) -> Arc<dyn Identity> {
    let stores = Beside(Stores::from([("main".into(), store)]));
    identity_beside(&World::dry_at(clock.clone()), &stores, ", store: main")
}

fn identity_beside(world: &World, surroundings: &dyn Surroundings, options: &str) -> Arc<dyn Identity> {
    let identities: BTreeMap<Name, IdentitySpec> = yaml(&format!("{{signed: {{type: hmac{options}}}}}"));
    let consumers: Vec<ConsumerSpec> =
        yaml(&format!("[{{name: acme, credentials: [{{type: hmac, id: k1, secret: '{SECRET}'}}]}}]"));
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
    let ask = async || match identity.check(&request, &ctx, clock.wall()).await {
        Presented::Valid(_) => "good".to_owned(),
        Presented::Refused(refusal) => refusal.reason.to_owned(),
        Presented::Unknown(why) => format!("503 {}", why.reason),
        Presented::Nothing => "nothing".to_owned(),
    };
    [ask().await, ask().await]
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
    let signed = sharing(Arc::new(Gone), &clock);
    let unknown = "503 nobody knows which nonces were used";
    assert_eq!(said(&signed, twice(with("a")), &clock).await, [unknown, unknown]);
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
