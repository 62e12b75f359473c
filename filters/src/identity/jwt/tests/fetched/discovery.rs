//! Issuers that say where their keys are.

use super::*;

const OPTIONS: &str = "algorithms: [EdDSA], issuer: 'https://id.test/tenant'";

fn document(issuer: &str, jwks_uri: &str) -> Value {
    json!({"issuer": issuer, "jwks_uri": jwks_uri, "authorization_endpoint": "https://id.test/auth"})
}

fn targets(place: &Place) -> Vec<(u32, String)> {
    let sent = place.client.requests();
    sent.iter().map(|sent| (sent.upstream.0, sent.head.uri.to_string())).collect()
}

async fn error(place: &Place) -> String {
    let corp = place.corp(OPTIONS).await;
    corp.state().keys.and_then(|keys| keys.failing).expect("failing").0
}

#[tokio::test]
async fn an_issuer_is_asked_where_its_keys_are() {
    let place = Place::new();
    place.answer_with(&[], &document("https://id.test/tenant", "https://id.test/tenant/keys"));
    place.answer(&[key(0, "a")]);
    place.answer(&[key(1, "b")]);
    let corp = place.corp(OPTIONS).await;
    let claims = json!({"iss": "https://id.test/tenant", "sub": "alice", "exp": NOW + 3600});
    let alice = claiming(0, json!({"kid": "a"}), &claims);
    assert_eq!(place.ask(&corp, &alice).await, Ok("alice".to_owned()));
    assert!(place.ask(&corp, &named(0, "a")).await.is_err(), "of no issuer");
    place.moves_on(480).await;
    let known = "/tenant/.well-known/openid-configuration".to_owned();
    let keys = "/tenant/keys".to_owned();
    assert_eq!(targets(&place), [(1000, known), (1000, keys.clone()), (1000, keys)], "it is asked once");
}

#[tokio::test]
async fn a_token_of_another_issuer_has_no_keys_fetched() {
    let place = Place::new();
    place.answer_with(&[], &document("https://id.test/tenant", "https://id.test/tenant/keys"));
    place.answer(&[key(0, "a")]);
    let corp = place.corp(OPTIONS).await;
    let claims = json!({"iss": "https://other.test", "sub": "alice", "exp": NOW + 3600});
    let other = claiming(1, json!({"kid": "b"}), &claims);
    assert_eq!(place.ask(&corp, &other).await, Err("the token is from another issuer".to_owned()));
    assert_eq!(place.fetches(), 1);
}

#[tokio::test]
async fn one_that_does_not_speak_openid_is_asked_as_rfc_8414_says() {
    let place = Place::new();
    place.client.reply(404, &[], []);
    place.answer_with(&[], &document("https://id.test/tenant", "https://id.test/keys"));
    place.answer(&[key(0, "a")]);
    place.corp(OPTIONS).await;
    assert_eq!(targets(&place)[1].1, "/.well-known/oauth-authorization-server/tenant");
    assert_eq!(targets(&place)[2].1, "/keys");
}

#[tokio::test]
async fn a_document_of_another_issuer_is_refused() {
    for issuer in ["https://evil.test", "https://id.test/tenant/", "https://ID.test/tenant", ""] {
        let place = Place::new();
        place.answer_with(&[], &document(issuer, "https://id.test/keys"));
        assert!(error(&place).await.ends_with("the document is of another `issuer`"), "{issuer}");
    }
}

#[tokio::test]
async fn a_document_cannot_have_the_gateway_call_what_is_near_it_or_without_tls() {
    for uri in ["http://id.test/keys", "file:///etc/passwd", "https://a@id.test/", ""] {
        let place = Place::new();
        place.answer_with(&[], &document("https://id.test/tenant", uri));
        let error = error(&place).await;
        assert!(error.contains("`jwks_uri`"), "{error}");
        assert_eq!(place.client.requests().len(), 1);
    }
    let place = Place::new();
    place.answer_with(&[], &document("https://id.test/tenant", "https://localhost/keys"));
    place.answer(&[key(0, "a")]);
    place.corp(OPTIONS).await;
    let other = &place.client.origins()[1];
    assert_eq!((&*other.host, other.public_only), ("localhost", true), "the client refuses such a place");
    assert_eq!(targets(&place)[1], (1001, "/keys".to_owned()));
}

#[tokio::test]
async fn through_an_upstream_all_has_to_be_on_one_host() {
    let place = Place::new();
    place.answer_with(&[], &document("https://id.test/tenant", "https://keys.test/keys"));
    let corp = place.corp(&format!("{OPTIONS}, upstream: main")).await;
    let (error, _) = corp.state().keys.and_then(|keys| keys.failing).expect("failing");
    assert!(error.contains("on another host"), "{error}");
}

#[tokio::test]
async fn keys_that_moved_are_looked_for_anew() {
    let place = Place::new();
    place.answer_with(&[], &document("https://id.test/tenant", "https://id.test/old"));
    place.answer(&[key(0, "a")]);
    place.client.reply(404, &[], []);
    place.answer_with(&[], &document("https://id.test/tenant", "https://id.test/new"));
    place.answer(&[key(1, "b")]);
    let _corp = place.corp(OPTIONS).await;
    place.moves_on(480).await;
    place.moves_on(2).await;
    assert_eq!(place.fetches(), 3);
    assert_eq!(targets(&place)[4].1, "/new");
}

#[tokio::test]
async fn a_key_that_is_not_in_its_place_has_the_issuer_asked_whether_they_moved() {
    let place = Place::new();
    place.answer_with(&[], &document("https://id.test/tenant", "https://id.test/old"));
    place.answer(&[key(0, "a")]);
    let corp = place.corp(OPTIONS).await;
    let claims = json!({"iss": "https://id.test/tenant", "sub": "alice", "exp": NOW + 3600});
    // The old place is still there, and has the old keys.
    place.answer(&[key(0, "a")]);
    place.moves_on(299).await;
    let told = place.ask(&corp, &claiming(1, json!({"kid": "b"}), &claims)).await;
    assert_eq!(told, Err("no key is known that could verify the token".to_owned()));
    assert_eq!(targets(&place).len(), 3, "so soon it is not asked again");

    place.answer_with(&[], &document("https://id.test/tenant", "https://id.test/new"));
    place.answer(&[key(1, "c")]);
    place.moves_on(6).await;
    let moved = claiming(1, json!({"kid": "c"}), &claims);
    assert_eq!(place.ask(&corp, &moved).await, Ok("alice".to_owned()));
    let paths: Vec<String> = targets(&place).into_iter().map(|(_, path)| path).collect();
    let known = "/tenant/.well-known/openid-configuration";
    assert_eq!(paths, [known, "/old", "/old", known, "/new"]);
}

#[tokio::test]
async fn an_issuer_that_could_not_be_asked_is_asked_again_after_a_minute() {
    let place = Place::new();
    place.answer_with(&[], &document("https://id.test/tenant", "https://id.test/old"));
    place.answer(&[key(0, "a")]);
    let corp = place.corp(OPTIONS).await;
    let claims = json!({"iss": "https://id.test/tenant", "sub": "alice", "exp": NOW + 3600});
    let none = Err("no key is known that could verify the token".to_owned());
    place.client.reply(500, &[], []);
    place.answer(&[key(0, "a")]);
    place.moves_on(300).await;
    assert_eq!(place.ask(&corp, &claiming(1, json!({"kid": "b"}), &claims)).await, none);
    place.answer(&[key(0, "a")]);
    place.moves_on(55).await;
    assert_eq!(place.ask(&corp, &claiming(1, json!({"kid": "c"}), &claims)).await, none);

    place.answer_with(&[], &document("https://id.test/tenant", "https://id.test/new"));
    place.answer(&[key(1, "d")]);
    place.moves_on(5).await;
    let moved = claiming(1, json!({"kid": "d"}), &claims);
    assert_eq!(place.ask(&corp, &moved).await, Ok("alice".to_owned()));
    let paths: Vec<String> = targets(&place).into_iter().map(|(_, path)| path).collect();
    let known = "/tenant/.well-known/openid-configuration";
    assert_eq!(paths, [known, "/old", known, "/old", "/old", known, "/new"]);
}

#[tokio::test]
async fn keys_stay_where_they_were_while_the_issuer_cannot_be_asked() {
    let place = Place::new();
    place.answer_with(&[], &document("https://id.test/tenant", "https://id.test/keys"));
    place.answer(&[key(0, "a")]);
    let corp = place.corp(OPTIONS).await;
    place.client.reply(500, &[], []);
    place.answer(&[key(1, "b")]);
    place.moves_on(300).await;
    let claims = json!({"iss": "https://id.test/tenant", "sub": "alice", "exp": NOW + 3600});
    let new = claiming(1, json!({"kid": "b"}), &claims);
    assert_eq!(place.ask(&corp, &new).await, Ok("alice".to_owned()));
    // Nor is it asked again at once.
    place.answer(&[key(1, "b")]);
    place.moves_on(5).await;
    place.ask(&corp, &claiming(1, json!({"kid": "x"}), &claims)).await.expect_err("no such key");
    let paths: Vec<String> = targets(&place).into_iter().map(|(_, path)| path).collect();
    let known = "/tenant/.well-known/openid-configuration";
    assert_eq!(paths, [known, "/keys", known, "/keys", "/keys"]);
}

#[tokio::test]
async fn keys_that_could_not_be_fetched_once_are_looked_for_where_they_were_while_the_issuer_is_away() {
    let place = Place::new();
    place.answer_with(&[], &document("https://id.test/tenant", "https://id.test/keys"));
    place.answer(&[key(0, "a")]);
    let corp = place.corp(OPTIONS).await;
    place.client.reply(503, &[], []);
    place.moves_on(480).await;
    place.client.reply(500, &[], []);
    place.answer(&[key(1, "b")]);
    place.moves_on(2).await;
    let claims = json!({"iss": "https://id.test/tenant", "sub": "alice", "exp": NOW + 3600});
    let new = claiming(1, json!({"kid": "b"}), &claims);
    assert_eq!(place.ask(&corp, &new).await, Ok("alice".to_owned()));
    let paths: Vec<String> = targets(&place).into_iter().map(|(_, path)| path).collect();
    let known = "/tenant/.well-known/openid-configuration";
    assert_eq!(paths, [known, "/keys", "/keys", known, "/keys"]);
}
