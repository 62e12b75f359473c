//! What users with a password see.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use argon2::password_hash::PasswordHasher;
use argon2::{Algorithm, Argon2, Params, PasswordHash as Parsed, Version};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use futures_util::future::join_all;

use super::{Basic, PasswordHash};
use crate::identity::consumers::{Consumers, Index};
use crate::identity::{IdentitySpec, Site, index, layout};
use crate::plan::Plans;
use crate::testing::{Alone, Chain, Sent, chain_with, get, refused_with, yaml};
use crate::values::Name;
use crate::world::World;

/// A hash that costs next to nothing.
pub(super) fn hash(password: &str) -> PasswordHash {
    PasswordHash::read(&text(password)).expect("a hash")
}

fn text(password: &str) -> String {
    let params = Params::new(8, 1, 1, None).expect("parameters");
    let argon2 = Argon2::new(Algorithm::Argon2id, Version::V0x13, params);
    let hash: Parsed = argon2.hash_password_with_salt(password.as_bytes(), b"some salt").expect("a hash");
    hash.to_string()
}

fn document(identity: &str) -> String {
    let [sesame, pounds, colons, next, old, off, gone] =
        ["open sesame", "123£", "a:b:", "new", "old", "off", "gone"].map(text);
    format!(
        "
identities:
  people: {{type: basic{identity}}}
  keys: {{type: api_key, from: [header:x-api-key]}}
consumers:
  - {{name: cave, credentials: [{{type: basic, id: Aladdin, hash: '{sesame}'}}]}}
  - {{name: test, credentials: [{{type: basic, id: p, username: test, hash: '{pounds}'}}]}}
  - {{name: colons, credentials: [{{type: basic, id: colons, hash: '{colons}'}}]}}
  - name: acme
    credentials:
      - {{type: basic, id: now, username: acme, hash: '{old}', expires: 2026-01-02}}
      - {{type: basic, id: next, username: acme, hash: '{next}'}}
      - {{type: basic, id: off, hash: '{off}', disabled: true}}
  - {{name: gone, disabled: true, credentials: [{{type: basic, id: gone, hash: '{gone}'}}]}}
"
    )
}

fn chain(identity: &str) -> Chain {
    chain_with(&document(identity), "- authenticate: {any_of: [people]}")
}

async fn with(chain: &Chain, credentials: &[u8]) -> Sent {
    let value = format!("Basic {}", STANDARD.encode(credentials));
    chain.send(get("/").header("authorization", &value)).await
}

fn consumer(sent: &Sent) -> Option<&str> {
    sent.ctx.consumer.as_ref().map(|consumer| &*consumer.name)
}

#[tokio::test]
async fn the_users_of_rfc_7617_are_known() {
    let chain = chain("");
    for (value, name, subject) in [
        ("Basic QWxhZGRpbjpvcGVuIHNlc2FtZQ==", "cave", "Aladdin"),
        ("bAsIc   QWxhZGRpbjpvcGVuIHNlc2FtZQ==  ", "cave", "Aladdin"),
        // s2.1: in UTF-8.
        ("Basic dGVzdDoxMjPCow==", "test", "test"),
    ] {
        let sent = chain.send(get("/").header("authorization", value)).await.continues();
        assert_eq!(consumer(&sent), Some(name), "{value}");
        assert_eq!(sent.ctx.principal.as_ref().expect("a principal").subject, subject);
    }
    let sent = with(&chain, b"colons:a:b:").await.continues();
    assert_eq!(consumer(&sent), Some("colons"), "only the name has no colon");
}

#[tokio::test]
async fn who_is_not_known_and_who_is_wrong_are_told_the_same() {
    let chain = chain("");
    for credentials in
        ["Aladdin:Open Sesame", "Aladdin:", "aladdin:open sesame", "nobody:open sesame", ":", ":x"]
    {
        let sent = with(&chain, credentials.as_bytes()).await;
        assert_eq!(sent.detail(), Some("the user name or the password is wrong"), "{credentials}");
        sent.responds(401).header("www-authenticate", "Basic realm=\"people\", charset=\"UTF-8\"");
    }
    let sent = chain.send(get("/")).await;
    sent.responds(401).header("www-authenticate", "Basic realm=\"people\", charset=\"UTF-8\"");
}

#[tokio::test]
async fn what_is_no_name_and_password_is_malformed() {
    let chain = chain("");
    let long = format!("Aladdin:{}", "x".repeat(4000));
    for bytes in
        [&b"Aladdin"[..], b"", b"a\0:open sesame", b"Aladdin:open\nsesame", b"\xff:x", long.as_bytes()]
    {
        let sent = with(&chain, bytes).await;
        assert_eq!(
            sent.detail(),
            Some("the credentials are no user name and password in base64"),
            "{bytes:?}"
        );
        sent.responds(401);
    }
    for value in
        ["Basic", "Basic QWxhZGRpbjpvcGVuIHNlc2FtZQ", "Basic QWxhZGRpbjpv cGVuIHNlc2FtZQ==", "Basic \u{e9}"]
    {
        chain.send(get("/").header("authorization", value)).await.responds(401);
    }
}

#[tokio::test]
async fn several_passwords_in_one_request_are_ambiguous() {
    let value = "Basic QWxhZGRpbjpvcGVuIHNlc2FtZQ==";
    let twice = get("/").header("authorization", value).header("authorization", value);
    chain("").send(twice).await.responds(400);
}

#[tokio::test]
async fn one_password_follows_the_other_and_what_lapsed_is_told_to_who_knows_it() {
    for remember in ["", ", remember: 0s", ", remember: 7d"] {
        let chain = chain(remember);
        for _ in 0..2 {
            assert_eq!(consumer(&with(&chain, b"acme:old").await.continues()), Some("acme"));
            assert_eq!(consumer(&with(&chain, b"acme:new").await.continues()), Some("acme"));
        }
        chain.clock.advance(Duration::from_secs(24 * 3600));
        for (credentials, told) in [
            ("acme:old", "the password has expired"),
            ("off:off", "the password is disabled"),
            ("off:wrong", "the user name or the password is wrong"),
            ("gone:gone", "the consumer is disabled"),
        ] {
            let sent = with(&chain, credentials.as_bytes()).await;
            assert_eq!(sent.detail(), Some(told), "{credentials}");
            sent.responds(401);
        }
        with(&chain, b"acme:new").await.continues();
    }
}

#[tokio::test]
async fn who_shows_the_same_password_at_once_waits_for_one_hash() {
    let chain = chain(", parallel: 1, queue: 0");
    for _ in 0..2 {
        let sent = join_all((0..20).map(|_| with(&chain, b"colons:a:b:"))).await;
        for sent in sent {
            assert_eq!(consumer(&sent.continues()), Some("colons"));
        }
    }
    for sent in join_all((0..20).map(|_| with(&chain, b"colons:wrong"))).await {
        sent.responds(401);
    }
}

#[test]
fn who_is_not_known_takes_as_long_as_who_has_most_passwords() {
    let identities: BTreeMap<Name, IdentitySpec> = yaml("{people: {type: basic}}");
    let (world, layout) = (World::dry(), layout(&identities, &Plans::default()));
    let (one, two) = (text("one"), text("two"));
    let alice = format!("{{name: alice, credentials: [{{type: basic, id: alice, hash: '{one}'}}]}}");
    let bob = format!(
        "{{name: bob, credentials: [{{type: basic, id: a, username: bob, hash: '{one}'}}, \
         {{type: basic, id: b, username: bob, hash: '{two}'}}]}}"
    );
    let (index, errors) = index(&layout, yaml(&format!("[{alice}, {bob}]")));
    assert!(errors.is_empty(), "{errors:?}");
    let without_bob = index.changed(["bob"], &[]).expect("nobody clashes");
    for (index, expected) in [(index, 2), (without_bob, 1)] {
        let consumers = Arc::new(Consumers::new(layout.clone(), index));
        let site = Site { world: &world, surroundings: &Alone };
        let basic = Basic::new("people".into(), yaml("{type: basic}"), consumers, &site);
        for user in ["alice", "bob", "nobody"] {
            let own = basic.candidates(user, world.clock.wall()).into_iter().map(|one| one.hash);
            assert_eq!(basic.with_stand_ins(own.collect()).len(), expected, "{user}");
        }
    }
}

#[test]
fn passwords_that_are_known_stay_so_over_a_reload() {
    let (world, own) = (World::dry(), hash("right"));
    let basic = |remember: &str| {
        let consumers = Consumers::new(layout(&BTreeMap::new(), &Plans::default()), Index::default());
        let options = yaml(&format!("{{type: basic, remember: {remember}}}"));
        let site = Site { world: &world, surroundings: &Alone };
        Basic::new("people".into(), options, Arc::new(consumers), &site)
    };
    let (before, now) = (basic("5m"), world.clock.wall());
    let digest = before.known.digest("alice", b"right", &own);
    before.known.put(digest, now);
    assert!(basic("5m").known.has(&digest, now));
    assert!(!basic("1m").known.has(&digest, now));
}

#[tokio::test]
async fn a_hidden_password_does_not_go_on_and_another_scheme_does() {
    let head = with(&chain(""), b"colons:a:b:").await.continues().attempt(1).await;
    assert!(head.headers.contains_key("authorization"));
    let hidden =
        chain_with(&document(", hide: true"), "- authenticate: {any_of: [people, keys], optional: true}");
    let head = with(&hidden, b"colons:a:b:").await.continues().attempt(1).await;
    assert!(!head.headers.contains_key("authorization"));
    let head = hidden.send(get("/").header("authorization", "Other x")).await.continues().attempt(1).await;
    assert_eq!(head.headers["authorization"], "Other x");
}

#[test]
fn credentials_that_make_no_sense_are_refused_at_their_place_and_never_shown() {
    let refused = |identity: &str, credential: &str| {
        let document = format!(
            "{{identities: {{people: {{type: basic{identity}}}}}, \
             consumers: [{{name: a, credentials: [{{type: basic, id: a{credential}}}]}}]}}"
        );
        refused_with(&document, "- request_id: {}")
    };
    let good = format!(", hash: '{}'", text("secret"));
    for (identity, credential, told) in [
        ("", "", "consumers[0].credentials[0].hash: a password needs its hash"),
        ("", ", hash: secret", "consumers[0].credentials[0].hash: a hash is needed"),
        (
            "",
            ", hash: '$argon2i$v=19$m=8,t=1,p=1$c29tZXNhbHQ$AAAAAAAAAAAAAAAAAAAAAAAAAAA'",
            "consumers[0].credentials[0].hash: a hash",
        ),
        (
            "",
            &format!("{good}, username: 'a:b'"),
            "consumers[0].credentials[0].username: a user's name has no colon",
        ),
        ("", &format!("{good}, username: ''"), "consumers[0].credentials[0].username: expected a text"),
        (
            "",
            &format!("{good}, dns: a"),
            "consumers[0].credentials[0].dns: does not belong to a credential of type `basic`",
        ),
        (", parallel: 0", &good, "identities.people.parallel: "),
        (", realm: x", &good, "identities.people.realm: unknown key"),
    ] {
        let error = refused(identity, credential);
        assert!(error.starts_with(told), "{error}");
        assert!(!error.contains("secret") && !error.contains("AAAA"), "{error}");
    }
}
