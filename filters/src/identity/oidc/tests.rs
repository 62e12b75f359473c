//! What needs no provider: who is sent where, and which documents are refused.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde_json::json;

use super::Oidc;
use super::provider::Tokens;
use super::session::Session;
use crate::identity::consumers::{Consumers, Index, Matches};
use crate::identity::{Site, layout};
use crate::plan::Plans;
use crate::testing::{Alone, Chain, chain_with, get, refused_with, send, yaml};
use crate::world::{ManualClock, Revocation, Revoked, ScriptedClient, World};

const KEY: &str = "a key of thirty-two bytes, or longer";

fn document(options: &str) -> String {
    format!(
        "identities:\n  web: {{type: oidc, issuer: 'https://id.example.com', client_id: web, \
         redirect_uri: 'https://app.test/oauth2/callback', cookie_keys: ['{KEY}'], logout: /logout, \
         backchannel_logout: /backchannel{options}}}\n  keys: {{type: api_key, from: [header:x-api-key]}}\n"
    )
}

fn chain(options: &str) -> Chain {
    chain_with(&document(""), &format!("- authenticate: {options}"))
}

/// The identity `web` in this world.
fn web(world: &World) -> Oidc {
    let options = yaml(&format!(
        "{{type: oidc, issuer: 'https://id.example.com', client_id: web, \
         redirect_uri: 'https://app.test/oauth2/callback', cookie_keys: ['{KEY}']}}"
    ));
    let consumers = Consumers::new(layout(&BTreeMap::new(), &Plans::default()), Index::default());
    let matches = Matches::new(Arc::new(consumers), "web");
    Oidc::new("web".into(), options, matches, &Site { world, surroundings: &Alone }).expect("valid options")
}

#[test]
fn a_session_ends_by_its_user_by_its_token_and_by_what_the_provider_calls_it() {
    let world = World::dry();
    let party = web(&world).party;
    let claims = URL_SAFE_NO_PAD.encode(json!({"sub": "alice", "sid": "s1", "jti": "t1"}).to_string());
    let tokens = Tokens { id: None, refresh: None, expires_in: None };
    let session = Session::new(format!("e30.{claims}.e30"), &tokens, party.now()).expect("random");
    for (which, ended) in [
        (Revoked::Sub("alice".into()), true),
        (Revoked::Jti("t1".into()), true),
        (Revoked::Jti("sid:s1".into()), true),
        (Revoked::Jti(format!("session:{}", session.id).into()), true),
        (Revoked::Sub("bob".into()), false),
        (Revoked::Jti("s1".into()), false),
    ] {
        let (identity, expires) = ("web".into(), party.now() + 60);
        let entry = Revocation { identity, which: which.clone(), issued_before: None, expires };
        world.revocations.add(entry).expect("room");
        assert_eq!(party.was_ended(&session), ended, "{which:?}");
        assert_eq!(world.revocations.remove("web", &which), Ok(true));
        assert!(!party.was_ended(&session), "{which:?}");
    }
}

#[test]
fn a_reload_leaves_renewals_that_were_made_where_they_are() {
    let world = World::dry();
    let before = web(&world);
    assert!(Arc::ptr_eq(&before.party.renewals, &web(&world).party.renewals));
}

#[tokio::test]
async fn where_the_provider_was_it_is_while_it_cannot_be_asked() {
    let (client, clock) = (Arc::new(ScriptedClient::new()), Arc::new(ManualClock::new()));
    let world = World { client: client.clone(), ..World::dry_at(clock.clone()) };
    let party = web(&world).party;
    assert!(party.provider.endpoints().await.is_err(), "nothing is known of it");
    clock.advance(Duration::from_secs(1));
    let document = json!({
        "issuer": "https://id.example.com",
        "authorization_endpoint": "https://id.example.com/auth",
        "token_endpoint": "https://id.example.com/token",
    });
    client.reply(200, &[], [document.to_string().as_bytes()]);
    for wait in [0, 3600, 1, 1] {
        clock.advance(Duration::from_secs(wait));
        let known = party.provider.endpoints().await.expect("known");
        assert_eq!(known.authorization.as_str(), "https://id.example.com/auth");
    }
    assert_eq!(client.requests().len(), 5, "it is asked again and again");
}

#[tokio::test]
async fn browsers_wait_for_the_provider_and_programs_are_told_at_once() {
    let chain = chain("{any_of: [keys, web]}");
    // Nothing is fetched in tests.
    chain.send(get("/").header("accept", "text/html")).await.responds(503).header("retry-after", "1");
    for request in [
        get("/"),
        get("/").header("accept", "application/json"),
        send("POST", "/").header("accept", "text/html"),
    ] {
        let answer = chain.send(request).await.responds(401);
        answer.header("www-authenticate", "ApiKey realm=\"keys\", Session realm=\"web\"");
    }
    // Who shows a wrong key is told so, browser or not.
    chain.send(get("/").header("accept", "text/html").header("x-api-key", "wrong")).await.responds(401);
    chain.send(get("/").header("accept", "text/html;q=0.9, */*")).await.responds(503);
}

#[tokio::test]
async fn where_users_may_stay_unknown_nobody_is_sent_to_log_in() {
    let chain = chain("{any_of: [web], optional: true}");
    let sent =
        chain.send(get("/").header("accept", "text/html").header("cookie", "__Host-web=1.AAAA; a=b")).await;
    let head = sent.continues().attempt(1).await;
    assert_eq!(head.headers["cookie"], "a=b");
}

#[tokio::test]
async fn what_is_for_the_identity_itself_never_goes_on() {
    let chain = chain("{any_of: [web], optional: true}");
    chain.send(get("/oauth2/callback")).await.responds(400);
    chain.send(get("/oauth2/callback?state=a&code=b")).await.responds(400);
    chain.send(get("/oauth2/callback?state=a&state=b&code=c")).await.responds(400);
    chain.send(send("POST", "/oauth2/callback?state=a&code=b")).await.responds(400);
    chain.send(get("/logout")).await.responds(200);
    chain.send(send("PUT", "/logout")).await.responds(405).header("allow", "GET, POST");
    let mut sent = chain.send(send("POST", "/backchannel")).await.continues();
    assert_eq!(sent.wants_body(), Some(32 * 1024));
    assert_eq!(sent.body_status(b"logout_token=x").await, Some(400));
    for path in ["/oauth2/callback/", "/oauth2/callbac", "/logout/x"] {
        chain.send(get(path)).await.continues();
    }
    let dry = chain_with(&document(""), "- authenticate: {any_of: [web]}\n  dry_run: true");
    dry.send(get("/logout")).await.continues();
}

#[test]
fn documents_that_make_no_sense_are_refused_at_their_place() {
    for (from, to, told) in [
        (
            "https://app.test/oauth2",
            "http://app.test/oauth2",
            "identities.web.redirect_uri: expected an https URL",
        ),
        ("/oauth2/callback", "/", "identities.web.redirect_uri: expected a path"),
        ("/oauth2/callback", "/oauth2/callback?a=b", "identities.web.redirect_uri: expected a path"),
        ("/oauth2/callback", "/oauth2/%63allback", "identities.web.redirect_uri: expected a path"),
        ("/logout", "/oauth2/callback", "identities.web.logout: the path is taken"),
        ("/backchannel", "/logout", "identities.web.backchannel_logout: the path is taken"),
        ("/backchannel", "/a/../b", "identities.web.backchannel_logout: expected a path"),
        (KEY, "hunter2", "identities.web.cookie_keys: expected secrets of at least 32 bytes"),
        ("client_id: web", "client_id: ''", "identities.web.client_id: expected"),
        ("https://id.example.com", "http://id.example.com", "identities.web.issuer: expected an https URL"),
        (
            "https://id.example.com",
            "https://id.example.com/?a=b",
            "identities.web.issuer: expected a URL without a query",
        ),
        ("type: oidc", "type: oidc, algorithms: [HS256]", "identities.web.algorithms: expected at least one"),
        ("type: oidc", "type: oidc, scopes: ['a b']", "identities.web.scopes: expected words"),
        ("type: oidc", "type: oidc, cookie: 'a b'", "identities.web.cookie: expected a name"),
        ("type: oidc", "type: oidc, upstream: idp", "identities.web.upstream: no upstream is named `idp`"),
        (
            "logout: /logout, ",
            "post_logout_redirect_uri: 'https://app.test/', ",
            "identities.web.post_logout_redirect_uri: there is no `logout`",
        ),
    ] {
        let document = document("").replace(from, to);
        let error = refused_with(&document, "- request_id: {}");
        assert!(error.starts_with(told), "{from} {to}: {error}");
        assert!(!error.contains("hunter2"), "{error}");
    }
}
