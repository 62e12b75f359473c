//! Tokens that were verified and are remembered.

use super::*;

async fn corp() -> (Place, Arc<dyn Identity>) {
    let place = Place::new();
    place.answer(&[key(0, "a")]);
    let corp = place.corp(&format!("{OPTIONS}, leeway: 60s")).await;
    (place, corp)
}

fn hits(place: &Place) -> i64 {
    let labels = [("identity", "corp"), ("outcome", "hit")];
    place.metrics.value("tollhouse_identity_token_cache_total", &labels).unwrap_or_default()
}

#[tokio::test]
async fn a_token_is_verified_once_up_to_its_end() {
    let (place, corp) = corp().await;
    let token = claiming(0, json!({"kid": "a"}), &json!({"sub": "alice", "exp": NOW + 300}));
    for (second, seen) in [(0, 0), (0, 1), (299, 2), (1, 2), (0, 2), (59, 2)] {
        place.moves_on(second).await;
        assert!(place.ask(&corp, &token).await.is_ok(), "{second}");
        assert_eq!(hits(&place), seen, "within its leeway it is looked into each time");
    }
    place.moves_on(1).await;
    assert_eq!(place.ask(&corp, &token).await, Err("the token has expired".to_owned()));
}

#[tokio::test]
async fn what_looks_like_a_known_token_is_none() {
    let (place, corp) = corp().await;
    let token = named(0, "a");
    assert!(place.ask(&corp, &token).await.is_ok());
    let (message, signature) = token.rsplit_once('.').expect("a signature");
    for other in
        [format!("{message}."), format!("{message}.{signature}="), format!("{token}x"), message.to_owned()]
    {
        place.ask(&corp, &other).await.expect_err(&other);
    }
    assert_eq!(hits(&place), 0);
}

#[tokio::test]
async fn one_that_is_revoked_is_refused_at_once() {
    let (place, corp) = corp().await;
    let token = named(0, "a");
    for _ in 0..2 {
        assert!(place.ask(&corp, &token).await.is_ok());
    }
    let revoke = |identity: &str, which| {
        let revocation =
            Revocation { identity: identity.into(), which, issued_before: None, expires: NOW + 3600 };
        place.world.revocations.add(revocation).expect("room");
    };
    revoke("other", Revoked::Jti("1".into()));
    assert!(place.ask(&corp, &token).await.is_ok());
    revoke("corp", Revoked::Jti("1".into()));
    assert_eq!(place.ask(&corp, &token).await, Err("the token was revoked".to_owned()));
    assert_eq!(hits(&place), 3);
    place.world.revocations.remove("corp", &Revoked::Jti("1".into())).expect("removed");
    assert!(place.ask(&corp, &token).await.is_ok());
    revoke("corp", Revoked::Sub("alice".into()));
    assert_eq!(place.ask(&corp, &token).await, Err("the token was revoked".to_owned()));
}

#[tokio::test]
async fn a_cache_of_nothing_keeps_nothing() {
    let place = Place::new();
    place.answer(&[key(0, "a")]);
    let corp = place.corp(&format!("{OPTIONS}, token_cache: 0B")).await;
    for _ in 0..2 {
        assert!(place.ask(&corp, &named(0, "a")).await.is_ok());
    }
    assert_eq!(hits(&place), 0);
}
