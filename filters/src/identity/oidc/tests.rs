//! What needs no provider: who is sent where, and which documents are refused.

mod logouts;
mod renewals;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use futures_util::future::BoxFuture;
use http::HeaderValue;
use jsonwebtoken::{Algorithm, EncodingKey, crypto};
use pingora_http::RequestHeader;
use serde_json::{Value, json};

use super::provider::Tokens;
use super::session::Session;
use super::{Oidc, Party, reply};
use crate::filter::Surroundings;
use crate::identity::consumers::{Consumers, Index, Matches};
use crate::identity::{Site, layout};
use crate::outcome::Reply;
use crate::plan::Plans;
use crate::testing::{Alone, Chain, chain_with, get, refused_with, send, yaml};
use crate::world::{ManualClock, Revocation, Revoked, ScriptedClient, Tasks, World};

const KEY: &str = "a key of thirty-two bytes, or longer";
/// RFC 8037 A.1: a secret and a public key.
const PAIR: [&str; 2] =
    ["nWGxne_9WmC6hEr0kuwsxERJxWl7MmkZcDusAxyuf2A", "11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo"];

/// Runs tasks on the test's own runtime.
struct Spawn;

impl Tasks for Spawn {
    fn spawn(&self, task: BoxFuture<'static, ()>, _: BoxFuture<'static, ()>) {
        tokio::spawn(task);
    }
}

/// Lets tasks go on.
async fn work() {
    for _ in 0..100 {
        tokio::task::yield_now().await;
    }
}

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
    web_in(world, &Alone, "")
}

/// As [`web`], with more options, in these surroundings.
fn web_in(world: &World, surroundings: &dyn Surroundings, options: &str) -> Oidc {
    let options = yaml(&format!(
        "{{type: oidc, issuer: 'https://id.example.com', client_id: web, \
         redirect_uri: 'https://app.test/oauth2/callback', cookie_keys: ['{KEY}']{options}}}"
    ));
    let consumers = Consumers::new(layout(&BTreeMap::new(), &Plans::default()), Index::default());
    let matches = Matches::new(Arc::new(consumers), "web");
    Oidc::new("web".into(), options, matches, &Site { world, surroundings }).expect("valid options")
}

/// A token of the provider that claims this; its signature is none.
fn token(claims: &Value) -> String {
    let part = |part: &Value| URL_SAFE_NO_PAD.encode(part.to_string());
    format!("{}.{}.e30", part(&json!({"alg": "RS256", "kid": "k1"})), part(claims))
}

/// A token of the provider that claims this, signed with the key of this id.
fn signed(id: &str, claims: &Value) -> String {
    let part = |part: &Value| URL_SAFE_NO_PAD.encode(part.to_string());
    let message = format!("{}.{}", part(&json!({"alg": "EdDSA", "kid": id})), part(claims));
    // RFC 8410 s7.
    let begin = b"\x30\x2e\x02\x01\x00\x30\x05\x06\x03\x2b\x65\x70\x04\x22\x04\x20";
    let seed = URL_SAFE_NO_PAD.decode(PAIR[0]).expect("base64url");
    let key = EncodingKey::from_ed_der(&[&begin[..], &seed].concat());
    let signature = crypto::sign(message.as_bytes(), &key, Algorithm::EdDSA).expect("signed");
    format!("{message}.{signature}")
}

/// Has the provider say where its keys are.
fn says_where_keys_are(client: &ScriptedClient) {
    let document = json!({"issuer": "https://id.example.com", "jwks_uri": "https://id.example.com/keys"});
    client.reply(200, &[], [document.to_string().as_bytes()]);
}

/// Has it show a key of this id.
fn shows_key(client: &ScriptedClient, id: &str) {
    let set = json!({"keys": [{"kty": "OKP", "crv": "Ed25519", "kid": id, "x": PAIR[1]}]});
    client.reply(200, &[], [set.to_string().as_bytes()]);
}

/// A session of `alice` that begins now, with tokens for so many seconds.
fn session(party: &Party, refresh: Option<&str>, expires_in: Option<u64>) -> Session {
    let tokens = Tokens { id: None, refresh: refresh.map(str::to_owned), expires_in };
    Session::new(token(&json!({"sub": "alice"})), &tokens, party.now()).expect("random")
}

/// A request of a browser with the cookies of a session.
async fn browser(party: &Party, session: &Session, target: &str) -> RequestHeader {
    let mut request = RequestHeader::build("GET", target.as_bytes(), None).expect("valid");
    let set = party.keep(&request, session).await.expect("kept").expect("not too large");
    for line in &set {
        let pair = line.to_str().expect("text").split(';').next().expect("a pair").to_owned();
        request.append_header("cookie", pair).expect("valid");
    }
    request
}

/// A field of an answer.
fn field<'a>(reply: &'a Reply, name: &str) -> Option<&'a HeaderValue> {
    match reply {
        Reply::Message(message) => message.head.headers.get(name),
        Reply::Problem(_) => None,
    }
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

#[tokio::test]
async fn an_answer_for_no_login_leads_to_the_start_where_the_user_is_logged_in() {
    let (clock, target) = (Arc::new(ManualClock::new()), "/oauth2/callback?state=a&code=b");
    let party = web(&World::dry_at(clock.clone())).party;
    let stranger = RequestHeader::build("GET", target.as_bytes(), None).expect("valid");
    assert_eq!(reply(party.finish(&stranger).await).status(), 400);
    let session = session(&party, None, Some(60));
    let request = browser(&party, &session, target).await;
    let answer = reply(party.finish(&request).await);
    assert_eq!(answer.status(), 302);
    assert_eq!(field(&answer, "location").expect("a place"), "/");
    assert_eq!(field(&answer, "set-cookie"), None, "nobody is logged in by it");
    let lasting = browser(&party, &self::session(&party, Some("r1"), Some(60)), target).await;
    clock.advance(Duration::from_secs(60));
    assert_eq!(reply(party.finish(&request).await).status(), 400, "the session is over");
    assert_eq!(reply(party.finish(&lasting).await).status(), 302, "it can be renewed");
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
