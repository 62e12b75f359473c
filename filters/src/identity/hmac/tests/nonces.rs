//! Nonces: each is good for one request, as long as its signature could be.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use super::{NOW, SECRET, at, chain, chain_with, document, signed, told};
use crate::identity::consumers::Consumers;
use crate::identity::{ConsumerSpec, Identity, IdentitySpec, Presented, Site, build, index, layout};
use crate::plan::Plans;
use crate::testing::{Alone, Request, yaml};
use crate::values::Name;
use crate::world::{Clock, ManualClock, MemoryState, World};

fn with(nonce: &str) -> Request {
    signed(&format!(";created={NOW};keyid=\"k1\";nonce=\"{nonce}\""))
}

/// An identity in this world, with the key `k1`.
fn identity(world: &World) -> Arc<dyn Identity> {
    let identities: BTreeMap<Name, IdentitySpec> = yaml("{signed: {type: hmac}}");
    let consumers: Vec<ConsumerSpec> =
        yaml(&format!("[{{name: acme, credentials: [{{type: hmac, id: k1, secret: '{SECRET}'}}]}}]"));
    let site = Site { world, surroundings: &Alone };
    let layout = layout(&identities, &Plans::default());
    let (index, errors) = index(&layout, consumers);
    assert!(errors.is_empty(), "{errors:?}");
    let (built, errors) = build(&identities, &Arc::new(Consumers::new(layout, index)), &site);
    assert!(errors.is_empty(), "{errors:?}");
    built.get("signed").expect("an identity").clone()
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
    let ask = async |nonce: &str| {
        let (request, ctx) = with(nonce).into_parts();
        match signed.check(&request, &ctx, clock.wall()).await {
            Presented::Valid(_) => "good".to_owned(),
            Presented::Refused(refusal) => refusal.reason.to_owned(),
            Presented::Unknown(why) => format!("503 {}", why.reason),
            Presented::Nothing => "nothing".to_owned(),
        }
    };
    assert_eq!(ask("a").await, "good");
    let mut told = Vec::new();
    for other in 0..200 {
        told.push(ask(&other.to_string()).await);
    }
    let full = "503 there are more nonces than can be remembered";
    assert!(told.iter().all(|told| told == "good" || told == full), "{told:?}");
    assert!(told.iter().filter(|told| *told == "good").count() < 16, "{told:?}");
    assert_eq!(ask("a").await, "the nonce was used already");
}
