//! What callers, later filters and upstreams see of `authenticate`.

use std::time::Duration;

use jsonwebtoken::{Algorithm, EncodingKey, Header, encode};
use serde_json::{Value, json};

use crate::context::Verdict;
use crate::testing::{Chain, Sent, chain_with, get, refused_with, send};

const SECRET: &str = "a secret of thirty-two bytes, or so";

fn document() -> String {
    let hash = |key: &str| {
        use sha2::Digest;
        format!("sha256:{}", crate::values::hex(&sha2::Sha256::digest(key)))
    };
    let (one, two, old, globex) = (hash("key-one"), hash("key-two"), hash("old-key"), hash("globex-key"));
    format!(
        "
identities:
  keys: {{type: api_key, from: [header:x-api-key, query:api_key, cookie:key], hide: true}}
  corp: {{type: jwt, algorithms: [HS256], secret: '{SECRET}', hide: true}}
consumers:
  - name: acme
    groups: [partners]
    match: [{{identity: corp, claim: azp, value: acme-app}}]
    credentials:
      - {{type: api_key, id: k1, hash: '{one}'}}
      - {{type: api_key, id: k2, hash: '{two}'}}
      - {{type: api_key, id: k0, hash: '{old}', expires: 2026-01-02}}
  - name: globex
    credentials: [{{type: api_key, id: g, hash: '{globex}'}}]
"
    )
}

fn chain(options: &str) -> Chain {
    chain_with(&document(), &format!("- authenticate: {options}"))
}

/// A token that ends a minute after the clock of tests begins.
fn token(claims: Value) -> String {
    let mut all = json!({"exp": 1_767_225_660});
    all.as_object_mut().expect("a map").extend(claims.as_object().expect("a map").clone());
    let key = EncodingKey::from_secret(SECRET.as_bytes());
    encode(&Header::new(Algorithm::HS256), &all, &key).expect("a token")
}

fn bearer(claims: Value) -> String {
    format!("Bearer {}", token(claims))
}

fn consumer(sent: &Sent) -> Option<String> {
    sent.ctx.consumer.as_ref().map(|consumer| consumer.name.to_string())
}

#[tokio::test]
async fn a_known_key_passes_and_says_who_calls() {
    let chain = chain("{any_of: [keys]}");
    for request in [
        get("/").header("x-api-key", "key-one"),
        get("/").header("x-api-key", "key-two"),
        get("/?a=1&api_key=key-one"),
        get("/").header("cookie", "a=b; key=key-one"),
    ] {
        let sent = chain.send(request).await.continues();
        assert_eq!(consumer(&sent).as_deref(), Some("acme"));
        let groups = &sent.ctx.consumer.as_ref().expect("a consumer").groups;
        assert_eq!(groups.iter().map(|group| &**group).collect::<Vec<_>>(), ["partners"]);
        assert_eq!(sent.ctx.decisions()[0].verdict, Verdict::Passed);
    }
    let sent = chain.send(get("/").header("x-api-key", "key-two")).await;
    let fields = &sent.ctx.decisions()[0].fields;
    let told: Vec<_> = fields.iter().map(|(name, value)| (*name, value.as_str())).collect();
    assert_eq!(told, [("consumer", "acme"), ("identity", "keys"), ("credential", "k2")]);
}

#[tokio::test]
async fn who_has_no_key_is_told_how_to_prove_who_calls() {
    // RFC 9110 s15.5.2: a 401 has at least one challenge.
    let sent = chain("{any_of: [keys]}").send(get("/")).await;
    let ended = sent.ctx.ended_by.as_ref().and_then(|ended| ended.reason.clone());
    assert_eq!(ended.as_deref(), Some("no credentials were given"));
    sent.responds(401).header("www-authenticate", "ApiKey realm=\"keys\"");
    // RFC 6750 s3: without credentials, no error code.
    let answer = chain("{any_of: [corp, keys]}").send(get("/")).await.responds(401);
    answer.header("www-authenticate", "Bearer realm=\"corp\", ApiKey realm=\"keys\"");
}

#[tokio::test]
async fn wrong_keys_are_refused() {
    let chain = chain("{any_of: [keys]}");
    for key in ["key-On", "KEY-ONE", "key-one ", "", "sha256:7ebd", "key-one, key-two"] {
        let request = get(&format!("/?api_key={}", key.replace(' ', "%20")));
        let sent = chain.send(request).await;
        assert_eq!(consumer(&sent), None);
        sent.responds(401).header("www-authenticate", "ApiKey realm=\"keys\"");
    }
    let long = "x".repeat(5000);
    chain.send(get("/").header("x-api-key", &long)).await.responds(401);
}

#[tokio::test]
async fn a_request_with_two_keys_is_ambiguous() {
    let chain = chain("{any_of: [keys]}");
    for request in [
        get("/?api_key=key-one").header("x-api-key", "key-one"),
        get("/").header("x-api-key", "key-one").header("x-api-key", "bad"),
        get("/?api_key=bad&api_key=key-one"),
    ] {
        let sent = chain.send(request).await;
        sent.responds(400).header("www-authenticate", "ApiKey realm=\"keys\"");
    }
}

#[tokio::test]
async fn a_key_ends_at_its_date() {
    let chain = chain("{any_of: [keys]}");
    let old = || get("/").header("x-api-key", "old-key");
    chain.clock.advance(Duration::from_secs(24 * 3600 - 1));
    chain.send(old()).await.continues();
    chain.clock.advance(Duration::from_secs(1));
    let sent = chain.send(old()).await;
    assert_eq!(sent.ctx.decisions()[0].reason, "the API key has expired");
    sent.responds(401);
    chain.send(get("/").header("x-api-key", "key-two")).await.continues();
}

#[tokio::test]
async fn hidden_credentials_do_not_go_on() {
    let chain = chain("{any_of: [keys, corp]}");
    let request = get("/a?x=%2F&api_key=key-one&y").header("authorization", &bearer(json!({})));
    let mut sent = chain.send(request).await.continues();
    let head = sent.attempt(1).await;
    assert_eq!(head.uri, "/a?x=%2F&y");
    assert!(!head.headers.contains_key("authorization"), "not asked for any more, but hidden all the same");
    let request = get("/").header("x-api-key", "key-one").header("authorization", "Basic YTpi");
    let head = chain.send(request).await.continues().attempt(1).await;
    assert!(!head.headers.contains_key("x-api-key"));
    assert_eq!(head.headers["authorization"], "Basic YTpi", "another scheme is for the upstream");
}

#[tokio::test]
async fn upstreams_are_told_who_calls() {
    let options =
        "{any_of: [corp, keys], consumer_header: x-consumer-name, forward: {x-user: sub, x-roles: roles}}";
    let chain = chain(options);
    let claims = json!({"sub": "alice", "azp": "acme-app", "roles": ["a", "b"]});
    let mut sent = chain.send(get("/").header("authorization", &bearer(claims))).await.continues();
    for attempt in [1, 2] {
        let head = sent.attempt(attempt).await;
        assert_eq!(head.headers["x-consumer-name"], "acme");
        assert_eq!(head.headers["x-user"], "alice");
        assert_eq!(head.headers["x-roles"], "[\"a\",\"b\"]");
    }
    let mut sent = chain.send(get("/").header("x-api-key", "key-one")).await.continues();
    let head = sent.attempt(1).await;
    assert_eq!(head.headers["x-consumer-name"], "acme");
    assert!(!head.headers.contains_key("x-user"));
}

#[tokio::test]
async fn what_cannot_be_a_field_is_not_told_in_part() {
    let chain = chain("{any_of: [corp], forward: {x-user: sub}}");
    for subject in ["a\r\nx-admin: 1", "a\nb", "a\u{0}b", " root", "root ", "\u{a0}root", "a\u{85}b", "a\tb"]
    {
        let sent = chain.send(get("/").header("authorization", &bearer(json!({"sub": subject})))).await;
        assert!(consumer(&sent).is_none());
        sent.responds(403);
    }
    let request = get("/").header("authorization", &bearer(json!({"sub": "zoë"})));
    let head = chain.send(request).await.continues().attempt(1).await;
    assert_eq!(head.headers["x-user"].as_bytes(), "zoë".as_bytes());
}

#[tokio::test]
async fn a_caller_without_consumer_counts_as_one_of_its_own() {
    let chain = chain("{any_of: [corp]}");
    let sent = chain.send(get("/").header("authorization", &bearer(json!({"sub": "acme"})))).await;
    assert_eq!(consumer(&sent).as_deref(), Some("corp:acme"));
    assert_eq!(sent.ctx.principal.as_ref().expect("a principal").claims["sub"], "acme");
}

#[tokio::test]
async fn a_wrong_token_is_refused_with_its_error() {
    let chain = chain("{any_of: [corp]}");
    let expired = || get("/").header("authorization", &bearer(json!({"exp": 1})));
    // RFC 6750 s3.1.
    chain.send(expired()).await.responds(401).header(
        "www-authenticate",
        "Bearer realm=\"corp\", error=\"invalid_token\", error_description=\"the token has expired\"",
    );
    let token = bearer(json!({}));
    let twice = get("/").header("authorization", &token).header("authorization", &token);
    chain.send(twice).await.responds(400).header(
        "www-authenticate",
        "Bearer realm=\"corp\", error=\"invalid_request\", error_description=\"the request has several tokens\"",
    );
    chain.clock.advance(Duration::from_secs(60 + 30));
    chain.send(get("/").header("authorization", &bearer(json!({})))).await.responds(401);
}

#[tokio::test]
async fn any_credential_that_holds_is_enough() {
    let chain = chain("{any_of: [corp, keys]}");
    let request = get("/").header("authorization", "Bearer nonsense").header("x-api-key", "key-one");
    assert_eq!(consumer(&chain.send(request).await.continues()).as_deref(), Some("acme"));
    let request = get("/").header("authorization", "Bearer nonsense").header("x-api-key", "bad");
    chain.send(request).await.responds(401);
}

#[tokio::test]
async fn where_all_are_needed_one_is_not_enough() {
    let chain = chain("{all_of: [corp, keys]}");
    let acme = || get("/").header("authorization", &bearer(json!({"azp": "acme-app"})));
    let sent = chain.send(acme()).await;
    assert_eq!(sent.ctx.decisions()[0].reason, "a further credential is needed");
    sent.responds(401).header("www-authenticate", "ApiKey realm=\"keys\"");
    chain.send(get("/").header("x-api-key", "key-one")).await.responds(401);
    chain.send(acme().header("x-api-key", "bad")).await.responds(401);
    let sent = chain.send(acme().header("x-api-key", "key-one")).await.continues();
    assert_eq!(consumer(&sent).as_deref(), Some("acme"));
    chain.send(acme().header("x-api-key", "globex-key")).await.responds(403);
}

#[tokio::test]
async fn a_token_of_nobody_known_does_not_go_with_the_key_of_a_consumer() {
    let stranger = || get("/").header("authorization", &bearer(json!({"sub": "mallory"})));
    let sent = chain("{all_of: [corp, keys]}").send(stranger().header("x-api-key", "key-one")).await;
    assert!(sent.ctx.consumer.is_none());
    assert_eq!(sent.detail(), Some("the credentials are of different callers"));
    sent.responds(403);
    chain("{all_of: [keys, corp]}").send(stranger().header("x-api-key", "key-one")).await.responds(403);
    let sent = chain("{all_of: [corp]}").send(stranger()).await.continues();
    assert_eq!(consumer(&sent).as_deref(), Some("corp:mallory"));
}

#[tokio::test]
async fn a_malformed_credential_of_a_known_scheme_is_not_none() {
    let chain = chain("{any_of: [corp], optional: true}");
    for value in ["Bearer\tabc", "Bearer,abc", "Bearer=abc", "Bearer \tabc", "Bearer", "bearer\"abc\""] {
        chain.send(get("/").header("authorization", value)).await.responds(401);
    }
    let tab = bearer(json!({"sub": "alice"})).replace(' ', "\t");
    chain.send(get("/").header("authorization", &tab)).await.responds(401);
    for other in ["Bearerx abc", "Bearer-2 abc", "Basic abc"] {
        chain.send(get("/").header("authorization", other)).await.continues();
    }
}

#[tokio::test]
async fn optional_is_for_who_shows_nothing() {
    for options in ["{any_of: [corp, keys], optional: true}", "{all_of: [corp, keys], optional: true}"] {
        let chain = chain(options);
        let sent = chain.send(get("/")).await.continues();
        assert!(sent.ctx.consumer.is_none() && sent.ctx.principal.is_none());
        chain.send(get("/").header("x-api-key", "bad")).await.responds(401);
        chain.send(get("/").header("authorization", "Bearer bad")).await.responds(401);
        chain.send(get("/?api_key=")).await.responds(401);
    }
}

#[tokio::test]
async fn a_dry_run_refuses_nobody_and_tells_nothing() {
    let chain = chain_with(
        &document(),
        "- authenticate: {any_of: [keys], consumer_header: x-consumer}\n  dry_run: true",
    );
    let sent = chain.send(get("/")).await.continues();
    assert!(sent.ctx.decisions().iter().any(|decision| decision.verdict == Verdict::WouldAnswer));
    let mut sent = chain.send(get("/?api_key=key-one")).await.continues();
    assert!(sent.ctx.consumer.is_none());
    let head = sent.attempt(1).await;
    assert!(head.uri == "/?api_key=key-one" && !head.headers.contains_key("x-consumer"));
}

#[tokio::test]
async fn any_method_needs_credentials() {
    let chain = chain("{any_of: [keys]}");
    for method in ["GET", "HEAD", "POST", "OPTIONS", "CONNECT", "PURGE", "get"] {
        chain.send(send(method, "/")).await.responds(401);
    }
}

#[test]
fn options_that_make_no_sense_are_refused_at_their_place() {
    for (options, told) in [
        ("{}", ": needs identities in one of"),
        ("{any_of: []}", ": needs identities in one of"),
        ("{any_of: [keys], all_of: [corp]}", ": needs identities in one of"),
        ("{any_of: [keys, crop]}", "any_of[1]: no identity is named `crop`"),
        ("{all_of: [keys, keys]}", "all_of[1]: `keys` stands twice"),
        ("{any_of: [keys], forward: {x-user: sub}}", "forward: none of these identities has claims"),
        ("{any_of: [keys], consumer_header: authorization}", "consumer_header: the field has a meaning"),
        ("{any_of: [keys], consumer_header: x-forwarded-user}", "consumer_header: the field has a meaning"),
        ("{any_of: [corp], consumer_header: x-api-key}", "consumer_header: an identity looks for"),
        ("{any_of: [corp], forward: {host: sub}}", "forward.host: the field has a meaning"),
        ("{any_of: [corp], consumer_header: x-a, forward: {x-a: sub}}", "forward.x-a: the field is"),
        ("{any_of: [corp], realm: x}", "realm: unknown key"),
    ] {
        let error = refused_with(&document(), &format!("- authenticate: {options}"));
        assert!(error.starts_with(told), "{options}: {error}");
    }
}

#[tokio::test]
async fn what_nobody_verified_does_not_go_on() {
    let document = format!(
        "
identities:
  keys: {{type: api_key, from: [header:x-api-key]}}
  corp: {{type: jwt, algorithms: [HS256], secret: '{SECRET}'}}
  more: {{type: jwt, algorithms: [HS256], secret: 'another secret of thirty-two bytes', from: [header:authorization, header:x-token]}}
consumers: [{{name: acme, credentials: [{{type: api_key, id: k, hash: 'sha256:9b346041bc9a49574eb2665b2ad2a0a3f9f9cce4e42f5d1f26deb8a256b5966a'}}]}}]
"
    );
    let chain = chain_with(&document, "- authenticate: {any_of: [more, corp, keys]}");
    let good = bearer(json!({"sub": "alice"}));
    let head = |request| async { chain.send(request).await.continues().attempt(1).await };
    // A wrong token beside a key that holds, and a key that nobody looked at beside a token that holds.
    let sent = head(get("/").header("authorization", "Bearer forged").header("x-api-key", "key-one")).await;
    assert!(!sent.headers.contains_key("authorization") && sent.headers["x-api-key"] == "key-one");
    let sent = head(get("/").header("authorization", &good).header("x-api-key", "forged")).await;
    assert!(!sent.headers.contains_key("x-api-key"));
    assert_eq!(sent.headers["authorization"], good.as_str(), "`more` refused the token that `corp` verified");
    // Another scheme's line stands beside it.
    let two = get("/").header("authorization", "Other x").header("authorization", "Bearer forged");
    let sent = head(two.header("x-api-key", "key-one")).await;
    assert_eq!(sent.headers["authorization"], "Other x");
}

#[tokio::test]
async fn what_nobody_can_verify_does_not_go_on_where_failures_let_it() {
    for hide in ["", ", hide: true"] {
        // No issuer is asked here.
        let document = format!(
            "identities: {{tok: {{type: introspection, endpoint: 'https://id.test/introspect', \
             client_id: a, client_secret: b{hide}}}}}"
        );
        let filter = "- authenticate: {any_of: [tok]}";
        let open = format!("{filter}\n  on_error: continue\n  fail_open: true");
        let forged = || get("/").header("authorization", "Bearer forged").header("authorization", "Other x");
        chain_with(&document, filter).send(forged()).await.responds(503);
        let mut sent = chain_with(&document, &open).send(forged()).await.continues();
        assert!(sent.ctx.consumer.is_none());
        let head = sent.attempt(1).await;
        let left: Vec<_> = head.headers.get_all("authorization").iter().collect();
        assert_eq!(left, ["Other x"], "{hide}");
    }
}

#[tokio::test]
async fn what_nobody_can_verify_is_not_nothing_for_the_next_one_that_asks_for_it() {
    // No issuer is asked here.
    let document = "
identities:
  tok: {type: introspection, endpoint: 'https://id.test/introspect', client_id: a, client_secret: b}
  keys: {type: api_key, from: [header:x-api-key]}
consumers: [{name: acme, credentials: [{type: api_key, id: k, hash: 'sha256:9b346041bc9a49574eb2665b2ad2a0a3f9f9cce4e42f5d1f26deb8a256b5966a'}]}]
";
    let open = "{any_of: [tok], optional: true}\n  on_error: continue\n  fail_open: true";
    let all_open = "{all_of: [keys, tok]}\n  on_error: continue\n  fail_open: true";
    let token = || get("/").header("authorization", "Bearer unknown");
    let both = || token().header("x-api-key", "key-one");
    for (first, next, request, expected) in [
        (open, "any_of: [tok]", token(), Some(503)),
        (open, "any_of: [tok, keys]", token(), Some(503)),
        (open, "all_of: [tok, keys]", both(), Some(503)),
        // It may be proven in another way.
        (open, "any_of: [tok, keys]", both(), None),
        (all_open, "any_of: [keys]", both(), None),
        ("{any_of: [tok, keys]}", "any_of: [tok]", both(), Some(503)),
        // Of these, nothing was shown.
        (open, "any_of: [keys]", token(), Some(401)),
        (open, "any_of: [tok]", get("/"), Some(401)),
    ] {
        let filters = format!("- authenticate: {first}\n- authenticate: {{{next}}}");
        let sent = chain_with(document, &filters).send(request).await;
        match expected {
            Some(status) => drop(sent.responds(status)),
            None => assert_eq!(consumer(&sent.continues()).as_deref(), Some("acme")),
        }
    }
}

#[tokio::test]
async fn what_one_filter_verified_and_took_out_holds_for_the_next_one_that_asks_for_it() {
    let key = || get("/").header("x-api-key", "key-one");
    let both = || key().header("authorization", &bearer(json!({"azp": "acme-app"})));
    let optional = "any_of: [keys], optional: true";
    for (first, next, request, expected) in [
        (optional, "any_of: [keys]", key(), Some("acme")),
        (optional, "any_of: [corp, keys]", key(), Some("acme")),
        (optional, "all_of: [corp, keys]", both(), Some("acme")),
        ("all_of: [corp, keys]", "any_of: [corp]", both(), Some("acme")),
        // Of these, nothing was shown, or nobody looked.
        (optional, "any_of: [corp]", key(), None),
        (optional, "any_of: [keys]", get("/"), None),
        ("any_of: [corp, keys]", "any_of: [keys]", both(), None),
    ] {
        let filters = format!("- authenticate: {{{first}}}\n- authenticate: {{{next}}}");
        let sent = chain_with(&document(), &filters).send(request).await;
        let Some(name) = expected else {
            sent.responds(401);
            continue;
        };
        let mut sent = sent.continues();
        assert_eq!(consumer(&sent).as_deref(), Some(name), "{first} {next}");
        assert!(!sent.attempt(1).await.headers.contains_key("x-api-key"), "{first} {next}");
    }
}

#[tokio::test]
async fn what_is_remembered_of_a_hidden_key_takes_no_more_room_than_it_needs() {
    let sent = chain("{any_of: [keys]}").send(get("/").header("x-api-key", "key-one")).await.continues();
    let shown = &sent.ctx.shown;
    assert_eq!((shown.len(), shown.capacity()), (1, 1), "hardly any document has two filters");
}

#[tokio::test]
async fn an_identity_hides_its_own_tokens_and_not_those_that_another_one_verified() {
    let other = "another secret of thirty-two bytes";
    for (hidden, shown, goes_on) in [(other, SECRET, true), (SECRET, other, false)] {
        let document = format!(
            "
identities:
  corp: {{type: jwt, algorithms: [HS256], secret: '{hidden}', hide: true}}
  partner: {{type: jwt, algorithms: [HS256], secret: '{shown}'}}
"
        );
        for names in ["corp, partner", "partner, corp"] {
            let chain = chain_with(&document, &format!("- authenticate: {{any_of: [{names}]}}"));
            let good = get("/").header("authorization", &bearer(json!({"sub": "alice"})));
            let head = chain.send(good).await.continues().attempt(1).await;
            assert_eq!(head.headers.contains_key("authorization"), goes_on, "{names}");
        }
    }
}

#[tokio::test]
async fn tokens_that_name_nobody_are_each_a_caller_of_their_own() {
    let chain = chain("{any_of: [corp]}");
    let named = async |claims: serde_json::Value| {
        let sent = chain.send(get("/").header("authorization", &bearer(claims))).await;
        consumer(&sent).expect("a name")
    };
    let one = named(json!({"jti": "1"})).await;
    assert!(one.len() == "corp:token:".len() + 32 && one.starts_with("corp:token:"), "{one}");
    assert_eq!(named(json!({"jti": "1"})).await, one);
    let others =
        [json!({"jti": "2"}), json!({"jti": "1", "sub": ""}), json!({"jti": "1", "azp": 5}), json!({})];
    for other in others {
        assert_ne!(named(other).await, one);
    }
}

#[tokio::test]
async fn a_token_without_subject_is_its_clients() {
    let chain = chain("{any_of: [corp]}");
    for (claims, name) in [
        (json!({"client_id": "a", "azp": "b"}), "corp:client:a"),
        (json!({"azp": "b"}), "corp:client:b"),
        (json!({"sub": "alice", "client_id": "a"}), "corp:alice"),
    ] {
        let sent = chain.send(get("/").header("authorization", &bearer(claims))).await;
        assert_eq!(consumer(&sent).as_deref(), Some(name));
    }
}
