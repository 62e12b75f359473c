//! Who passes `authorize`, and what others are told.

use std::sync::Arc;

use serde_json::{Value, json};

use crate::context::{Consumer, Principal, Verdict};
use crate::testing::{Chain, Request, chain, get, refused, send};

fn caller(request: Request, name: &str, groups: &[&str], claims: Value) -> Request {
    let Value::Object(claims) = claims else { panic!("claims are an object") };
    let groups = groups.iter().map(|group| Arc::from(*group)).collect();
    request.with(|ctx| {
        ctx.consumer = Some(Arc::new(Consumer { name: name.into(), groups, plan: None }));
        ctx.principal = Some(Arc::new(Principal { subject: name.to_owned(), claims }));
    })
}

fn with_claims(claims: Value) -> Request {
    caller(get("/"), "acme", &["partners"], claims)
}

fn chain_of(options: &str) -> Chain {
    chain(&format!("- authorize: {options}"))
}

async fn passes(options: &str, request: Request) -> bool {
    chain_of(options).send(request).await.ctx.ended_by.is_none()
}

#[tokio::test]
async fn all_scopes_are_needed_in_any_of_the_forms_that_issuers_write() {
    let options = "{scopes: [orders:read, orders:write]}";
    for held in [
        json!({"scope": "orders:write other orders:read"}),
        json!({"scp": "orders:read orders:write"}),
        json!({"scp": ["orders:read", "orders:write"]}),
    ] {
        assert!(passes(options, with_claims(held.clone())).await, "{held}");
    }
    for lacking in [
        json!({}),
        json!({"scope": "orders:read"}),
        json!({"scope": "ORDERS:READ orders:write"}),
        json!({"scope": "orders:readorders:write"}),
        json!({"scope": {"orders:read": true, "orders:write": true}}),
        json!({"scp": [["orders:read"], "orders:write"]}),
        json!({"scope": 7}),
    ] {
        assert!(!passes(options, with_claims(lacking.clone())).await, "{lacking}");
    }
    assert!(!passes(options, get("/")).await, "nobody has no scopes");
}

#[tokio::test]
async fn a_token_without_the_scopes_is_told_which_would_do() {
    let chain = chain_of("{scopes: [orders:read, orders:write], groups: [partners]}");
    let sent = chain.send(with_claims(json!({"scope": "orders:read"}))).await;
    // RFC 6750 s3.1.
    let told = "Bearer error=\"insufficient_scope\", scope=\"orders:read orders:write\"";
    sent.responds(403).header("www-authenticate", told);
    // More scopes would not help who is in none of the groups, and a key has none.
    let stranger = caller(get("/"), "other", &[], json!({"scope": "orders:read"}));
    chain.send(stranger).await.responds(403).no_header("www-authenticate");
    chain.send(with_claims(json!({}))).await.responds(403).no_header("www-authenticate");
}

#[tokio::test]
async fn one_group_and_one_consumer_are_enough() {
    for (options, passing) in [
        ("{groups: [staff, partners]}", true),
        ("{groups: [staff, partner]}", false),
        ("{consumers: [acme, globex]}", true),
        ("{consumers: [globex]}", false),
        ("{consumers: [acme], groups: [staff]}", false),
    ] {
        assert_eq!(passes(options, with_claims(json!({}))).await, passing, "{options}");
        assert!(!passes(options, get("/")).await, "nobody is in no group: {options}");
    }
}

#[tokio::test]
async fn claims_are_compared_exactly_and_lists_by_entry() {
    let claims = json!({"tenant": "acme", "level": 3, "admin": true, "roles": ["dev", 7], "none": null,
        "address": {"city": "Bonn"}, "amr": [{"method": "otp"}], "nothing": [null],
        "https://example.com/x": "y"});
    for (wanted, passing) in [
        ("tenant: acme", true),
        ("tenant: ACME", false),
        ("tenant: {in: [globex, acme]}", true),
        ("level: '3'", true),
        ("level: '03'", false),
        ("admin: 'true'", true),
        ("roles: dev", true),
        ("roles: '7'", true),
        ("roles: {not: dev}", false),
        ("roles: ops", false),
        ("none: 'null'", false),
        ("none: {present: false}", true),
        ("address: {present: true}", true),
        ("address: {present: false}", false),
        ("address: {not: Bonn}", true),
        ("address: {regex: '.*'}", false),
        ("address: ''", false),
        ("amr: {present: true}", true),
        ("nothing: {present: false}", true),
        ("'https://example.com/x': y", true),
        ("missing: {present: false}", true),
        ("missing: ''", false),
    ] {
        let options = format!("{{claims: {{{wanted}}}}}");
        assert_eq!(passes(&options, with_claims(claims.clone())).await, passing, "{wanted}");
    }
}

#[tokio::test]
async fn a_claim_that_is_an_object_is_there() {
    // RFC 8693 s4.1: somebody acts for somebody else.
    let delegated = || with_claims(json!({"act": {"sub": "x"}}));
    for (options, passing) in [
        ("{claims: {act: {present: false}}}", false),
        ("{claims: {act: {not: {present: true}}}}", false),
        ("{allow: [{any: true}], deny: [{claims: {act: {present: true}}}]}", false),
        ("{allow: [{any: true}], deny: [{claims: {act: {present: false}}}]}", true),
    ] {
        assert_eq!(passes(options, delegated()).await, passing, "{options}");
        assert_eq!(passes(options, with_claims(json!({}))).await, !passing, "{options}");
    }
}

#[tokio::test]
async fn methods_and_addresses_need_no_caller() {
    let options = "{methods: [GET, HEAD], clients: [192.0.2.0/24, 'fd00::/8']}";
    assert!(passes(options, get("/")).await);
    assert!(!passes(options, send("POST", "/")).await);
    let from = |address: &str| get("/").with(|ctx| ctx.client.address = address.parse().expect("valid"));
    assert!(passes(options, from("fd00::1")).await && passes(options, from("::ffff:192.0.2.9")).await);
    assert!(!passes(options, from("198.51.100.1")).await);
    let nobody = from("0.0.0.0").with(|ctx| ctx.client.port = None);
    assert!(!passes("{clients: [0.0.0.0/0]}", nobody).await, "a Unix socket has no address");
}

#[tokio::test]
async fn what_is_denied_is_not_allowed_and_what_nothing_allows_is_denied() {
    let chain = chain_of(
        "{allow: [{name: readers, groups: [partners], methods: [GET]}, {consumers: [root]}],
          deny: [{name: suspended, claims: {status: suspended}}]}",
    );
    let sent = chain.send(with_claims(json!({}))).await.continues();
    assert_eq!(sent.ctx.decisions()[0].fields, [("rule", "readers".to_owned())]);
    chain.send(caller(send("POST", "/"), "root", &[], json!({}))).await.continues();
    chain.send(with_claims(json!({"status": "suspended"}))).await.responds(403);
    chain.send(caller(send("POST", "/"), "acme", &["partners"], json!({}))).await.responds(403);
}

#[tokio::test]
async fn the_reason_is_for_the_log_and_not_for_the_caller() {
    let chain = chain_of("{allow: [{name: inner-circle, groups: [ops]}, {methods: [PUT]}]}");
    let sent = chain.send(with_claims(json!({}))).await;
    let why = "no rule allows it: not `inner-circle` for its groups, not `allow[1]` for its methods";
    assert_eq!(sent.ctx.ended_by.as_ref().and_then(|ended| ended.reason.as_deref()), Some(why));
    let noted = &sent.ctx.decisions()[0];
    assert_eq!((noted.verdict, noted.reason.as_ref()), (Verdict::Changed, why));
    assert_eq!(sent.detail(), None);
    sent.responds(403);
}

#[tokio::test]
async fn everybody_else_can_be_allowed_and_a_dry_run_refuses_nobody() {
    let options = "{allow: [{any: true}], deny: [{methods: [DELETE]}]}";
    assert!(passes(options, get("/")).await && !passes(options, send("DELETE", "/")).await);
    let dry = chain(&format!("- authorize: {options}\n  dry_run: true"));
    dry.send(send("DELETE", "/")).await.continues();
}

#[test]
fn rules_that_make_no_sense_are_refused_at_their_place() {
    for (options, message) in [
        ("{}", ": holds for everybody"),
        ("{groups: []}", "groups: expected at least one"),
        ("{clients: []}", "clients: expected at least one"),
        ("{scopes: ['a b']}", "scopes: expected scopes without spaces"),
        ("{scopes: ['a\"b']}", "scopes: expected scopes without spaces"),
        ("{allow: [{name: a}]}", "allow[0]: holds for everybody"),
        ("{allow: [{any: true, groups: [a]}]}", "allow[0].any: holds for every request"),
        ("{deny: [{groups: [a]}]}", "deny: no rule allows anything"),
        ("{groups: [a], allow: [{any: true}]}", "groups: belongs into a rule"),
        ("{allow: [{name: a, any: true}, {name: a, methods: [PUT]}]}", "allow[1].name: another rule"),
        ("{allow: [{name: a, any: true}], deny: [{name: a, methods: [PUT]}]}", "deny[0].name: another rule"),
        ("{methods: [get]}", "methods[0]: methods are case-sensitive"),
        ("{group: [a]}", "group"),
    ] {
        let told = refused(&format!("- authorize: {options}"));
        assert!(
            told.starts_with(message.trim_start_matches(": ")) || told.starts_with(message),
            "{options}: {told}"
        );
    }
}

#[tokio::test]
async fn an_expression_is_a_rule_and_allows_nothing_where_nobody_can_tell() {
    let request = || with_claims(json!({"roles": ["editor"], "level": 3}));
    for (rule, expected) in [
        ("{cel: \"'editor' in claims.roles\"}", true),
        ("{cel: 'claims.level > 3'}", false),
        ("{cel: 'claims.level >= 3', methods: [POST]}", false),
        ("{cel: 'claims.age > 3'}", false),
        ("{cel: 'claims.level'}", false),
        ("{allow: [{cel: 'claims.age > 3'}, {groups: [partners]}]}", true),
        ("{allow: [{any: true}], deny: [{cel: 'claims.level > 2'}]}", false),
        ("{allow: [{any: true}], deny: [{cel: 'claims.level > 3'}]}", true),
        ("{allow: [{any: true}], deny: [{cel: 'claims.age > 3'}]}", false),
        // What is not asked cannot fail.
        ("{allow: [{any: true}], deny: [{methods: [POST], cel: 'claims.age > 3'}]}", true),
        ("{allow: [{any: true}], deny: [{scopes: [legacy], cel: 'claims.age > 3'}]}", true),
    ] {
        assert_eq!(passes(rule, request()).await, expected, "{rule}");
    }
    let rule = "{allow: [{any: true}], deny: [{scopes: [legacy], cel: 'claims.age > 3'}]}";
    assert!(!passes(rule, with_claims(json!({"scope": "legacy"}))).await, "nobody can tell of its token");
    let sent = chain_of("{cel: 'claims.age > 3'}").send(request()).await;
    assert_eq!(sent.detail(), None);
    let reason = sent.ctx.ended_by.as_ref().and_then(|ended| ended.reason.clone()).expect("a reason");
    let expected =
        "no rule allows it: not `allow` for its cel, which cannot be evaluated (there is no `age`)";
    assert_eq!(reason, expected);
    let said = refused("- authorize: {allow: [{any: true}, {cel: 'claim.age > 3'}]}");
    assert!(said.starts_with("allow[1].cel: there is no variable called `claim`, did you mean"), "{said}");
}
