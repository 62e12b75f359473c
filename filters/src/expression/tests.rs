//! What expressions say of requests, and what hostile ones come to.

use std::sync::Arc;
use std::time::Instant;

use proptest::prelude::*;
use serde_json::{Map, Value, json};

use super::Expression;
use crate::context::{Consumer, Principal};
use crate::filter::Fact;
use crate::testing::{Request, certificate, get, send};

fn claims(claims: Value) -> Map<String, Value> {
    match claims {
        Value::Object(map) => map,
        other => panic!("no claims: {other}"),
    }
}

/// Of alice, by a token with these claims.
fn alice(request: Request, value: Value) -> Request {
    request.with(|ctx| {
        ctx.consumer = Some(Arc::new(Consumer {
            name: "acme".into(),
            groups: Arc::from(["partners".into(), "beta".into()]),
            plan: Some("gold".into()),
        }));
        ctx.principal = Some(Arc::new(Principal { subject: "alice".into(), claims: claims(value) }));
        ctx.host = Some("api.example.com".into());
    })
}

fn evaluated(expression: &str, request: Request) -> Result<bool, String> {
    let (head, ctx) = request.into_parts();
    let expression = Expression::parse(expression).unwrap_or_else(|error| panic!("{expression}: {error}"));
    expression.holds(&head, &ctx)
}

fn of_alice(expression: &str) -> Result<bool, String> {
    let request = send("GET", "/orders/7?q=1&q=2&e=a%20b")
        .header("X-Tenant", "t1")
        .header("x-tenant", "t2")
        .header("cookie", "sid=1; sid=2");
    let value = json!({
        "sub": "alice", "level": 3, "big": 18446744073709551615u64, "part": 0.5, "admin": true, "none": null,
        "roles": ["dev", "ops"], "https://example.com/teams": ["a"], "org": {"id": "o1", "units": [{"n": 1}]},
    });
    evaluated(expression, alice(request, value))
}

#[test]
fn everything_that_is_documented_can_be_read() {
    for expression in [
        "request.method == 'GET' && request.scheme == 'http' && request.host == 'api.example.com'",
        "request.path == '/orders/7' && request.path.startsWith('/orders/')",
        "request.headers['x-tenant'] == 't1, t2' && 'x-tenant' in request.headers",
        "!has(request.headers.authorization)",
        "request.query.q == ['1', '2'] && request.query['e'][0] == 'a b' && size(request.query) == 2",
        "request.cookies.sid == '1'",
        "client.address == '192.0.2.1' && !has(client.certificate)",
        "consumer.name == 'acme' && 'beta' in consumer.groups && consumer.plan == 'gold'",
        "claims.sub == 'alice' && claims.level >= 3 && claims.level == 3.0 && claims.admin",
        "claims.big == 18446744073709551615u && claims.part < 0.75 && claims.none == null",
        "claims.roles.exists(role, role == 'ops') && claims.roles.all(role, size(role) == 3)",
        "claims.roles.filter(role, role != 'dev') == ['ops'] && claims.roles.map(role, role + '!')[0] == 'dev!'",
        "'a' in claims['https://example.com/teams']",
        "claims.org.id == 'o1' && claims.org.units[0].n == 1 && type(claims.org) == map",
        "has(claims.sub) && !has(claims.missing) && size(claims) == 9",
        "route == 'test' && listener == 'test' && service == null",
        "request.path.matches('^/orders/[0-9]+$') && !matches(request.path, 'x') && !claims.sub.matches('^b')",
        "request.path.contains('order') && request.path.endsWith('7') && int('7') == 7 && string(7) == '7'",
        "(request.method in ['GET', 'HEAD'] ? consumer : {'name': ''}).name == 'acme'",
    ] {
        assert_eq!(of_alice(expression), Ok(true), "{expression}");
        let denied = format!("!({expression})");
        assert_eq!(of_alice(&denied), Ok(false), "{denied}");
    }
}

#[test]
fn parameters_of_the_path_and_nobody_in_particular_can_be_read() {
    let captures = |request: Request| {
        let pattern = crate::path::PathPattern::parse("/orders/{id}").expect("a pattern");
        request.with(|ctx| ctx.captures = pattern.matches(&ctx.path).expect("a match"))
    };
    assert_eq!(evaluated("request.params.id == '7'", captures(get("/orders/7"))), Ok(true));
    assert_eq!(evaluated("consumer == null && size(claims) == 0", get("/")), Ok(true));
    let error = evaluated("consumer.name == 'acme'", get("/"));
    assert!(error.is_err(), "{error:?}");
}

#[test]
fn the_certificate_of_a_trusted_proxy_is_none_of_the_client() {
    let certified = |proxied: bool| {
        get("/").showing(certificate("CN=edge")).with(|ctx| ctx.client.through_trusted_proxy = proxied)
    };
    assert_eq!(evaluated("client.certificate.subject == 'CN=edge'", certified(false)), Ok(true));
    assert_eq!(evaluated("has(client.certificate)", certified(true)), Ok(false));
}

#[test]
fn what_cannot_be_told_is_neither_yes_nor_no() {
    for (expression, part) in [
        ("claims.missing == 'a'", "there is no `missing`"),
        ("!(claims.missing == 'a')", "there is no `missing`"),
        ("claims.missing != 'a'", "there is no `missing`"),
        ("claims.sub > 3", "no matching overload"),
        ("claims.sub", "neither true nor false"),
        ("claims.level", "neither true nor false"),
        ("claims.roles[5] == 'a'", ""),
        ("claims.level / 0 == 1", "division by zero"),
        ("claims.level * 9223372036854775807 > 0", "too large"),
        ("int(claims.sub) == 1", "`int` failed"),
        ("claims.sub.exists(x, x == 'a')", ""),
        ("claims.level.startsWith('a')", ""),
    ] {
        let error = of_alice(expression).expect_err(expression);
        assert!(error.contains(part) && !error.contains("alice"), "{expression}: {error}");
    }
    // As CEL says, one side can be enough.
    assert_eq!(of_alice("claims.missing == 'a' || claims.admin"), Ok(true));
    assert_eq!(of_alice("claims.missing == 'a' && claims.sub == 'bob'"), Ok(false));
}

#[test]
fn mistakes_are_found_when_it_is_compiled() {
    for (expression, part) in [
        ("", "no expression, at line 1"),
        ("request.method ==", "no expression, at line 1"),
        ("a &&& b", "no expression"),
        (
            "reqest.method == 'GET'",
            "no variable called `reqest`, did you mean `request`?, at line 1, column 1",
        ),
        (
            "true &&\n claim.sub == 'a'",
            "no variable called `claim`, did you mean `claims`?, at line 2, column 2",
        ),
        ("request.pth == '/'", "no member of `request` called `pth`, did you mean `path`?"),
        ("request['pth'] == '/'", "no member of `request` called `pth`"),
        ("has(client.adress)", "no member of `client` called `adress`, did you mean `address`?"),
        ("route.name == 'a'", "no member of `route` called `name`"),
        ("request.path.startWith('/')", "no function called `startWith`, did you mean `startsWith`?"),
        ("env('HOME') == ''", "no function called `env`"),
        ("request.path.matches(request.headers.x)", "has to be written as it is"),
        ("request.path.matches('(')", "expected a regular expression"),
        ("request.path.matches('(a{1000}){1000}')", "expected a regular expression"),
        ("request.path.matches()", "has to be written as it is"),
        ("matches('a')", "expected `TEXT.matches('PATTERN')`"),
        ("Message{a: 1} == 1", "no messages here"),
        ("claims.roles.exists(role, rol == 'a')", "no variable called `rol`"),
        ("claims.roles.exists(role, role == 'a') && role == 'b'", "no variable called `role`"),
        ("claims.?sub == 'a'", "no expression"),
    ] {
        let error = Expression::parse(expression).expect_err(expression);
        assert!(error.contains(part), "{expression}: {error}");
    }
    let deep = format!("{}true{}", "(".repeat(400), ")".repeat(400));
    let many = vec!["true"; 600].join(" && ");
    let long = format!("'{}' == ''", "a".repeat(5000));
    let sum = format!("1{} == 1", "+1".repeat(1500));
    for expression in [deep, many, long, sum, "!".repeat(3000), "[".repeat(3000), "-(".repeat(1500)] {
        assert!(Expression::parse(&expression).is_err());
    }
}

#[test]
fn loops_are_cut_off_however_long_the_lists_of_a_caller_are() {
    let many: Vec<u32> = (0..20_000).collect();
    let request = || alice(get("/"), json!({"many": many, "some": &many[..40], "few": &many[..20]}));
    for expression in [
        "claims.many.exists(x, x == -1)",
        "claims.many.all(x, x >= 0)",
        "!claims.many.exists(x, x == -1)",
        "claims.some.exists(x, claims.some.exists(y, x == y + 100))",
        "claims.few.all(x, claims.few.all(y, claims.few.all(z, x + y + z >= 0)))",
        "size(claims.some.map(x, claims.some.filter(y, y > x))) == 40",
    ] {
        let began = Instant::now();
        let error = evaluated(expression, request()).expect_err(expression);
        assert!(error.contains("too many steps"), "{expression}: {error}");
        assert!(began.elapsed().as_secs() < 5, "{expression}");
    }
    assert_eq!(evaluated("claims.few.exists(x, claims.few.exists(y, x == y + 19))", request()), Ok(true));
    assert_eq!(evaluated("19999 in claims.many", request()), Ok(true), "that is no loop of the expression");
}

#[test]
fn a_pattern_takes_linear_time_whatever_it_is_shown() {
    let hostile = "a".repeat(30_000);
    let request = get("/").header("x-a", &format!("{hostile}!"));
    assert_eq!(evaluated("request.headers['x-a'].matches('^(a+)+$')", request), Ok(false));
}

#[test]
fn who_calls_has_to_be_known_before_it_is_asked() {
    for (expression, needs) in [
        ("request.method == 'GET'", None),
        ("claims.sub == 'a'", Some(Fact::Consumer)),
        ("'a' in consumer.groups", Some(Fact::Consumer)),
        ("['a'].exists(claims, claims == 'a')", None),
    ] {
        assert_eq!(Expression::parse(expression).expect("an expression").needs(), needs, "{expression}");
    }
}

/// Claims of any shape and depth.
fn any_claims() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<u64>().prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        ".{0,20}".prop_map(Value::from),
    ];
    leaf.prop_recursive(6, 64, 8, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..8).prop_map(Value::from),
            prop::collection::btree_map("[a-z]{1,4}|.{0,4}", inner, 0..8)
                .prop_map(|map| Value::Object(map.into_iter().collect())),
        ]
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    #[test]
    fn no_claims_bring_an_evaluation_down(a in any_claims(), b in any_claims(), text in ".{0,40}") {
        for expression in [
            "claims.a == claims.b", "claims.a < claims.b", "claims.a in claims.b", "claims.a + claims.b == claims.a",
            "claims.a[claims.b] == 1", "claims.a.exists(x, x == claims.b)", "claims.a.all(x, claims.b.all(y, x != y))",
            "size(claims.a) > size(claims.b)", "string(claims.a) == claims.b", "int(claims.a) * int(claims.b) > 0",
            "claims.a.matches('^[a-z]+$')", "claims.a.map(x, claims.b) == []", "-claims.a < claims.b",
            "claims.a % claims.b == 0", "claims.a / claims.b == 0", "double(claims.a) == claims.b",
            "uint(claims.a) - uint(claims.b) == 0u", "has(claims.a.b.c)", "type(claims.a) == type(claims.b)",
            "claims.text.startsWith(claims.a)", "{claims.a: 1, claims.b: 2} == {}", "claims.a ? claims.b : claims.a",
        ] {
            let value = json!({"a": a, "b": b, "text": text});
            let told = evaluated(expression, alice(get("/"), value));
            if let Err(error) = told {
                prop_assert!(error != "its evaluation broke off", "{expression} panics");
            }
        }
    }

    #[test]
    fn no_text_brings_the_compiler_down(text in "[a-z.()'\"\\[\\]{}!&|=<>+*/?:, 0-9\\\\-]{0,60}|.{0,40}") {
        if let Ok(expression) = Expression::parse(&text) {
            let (head, ctx) = alice(get("/"), json!({"a": 1})).into_parts();
            let _ = expression.holds(&head, &ctx);
        }
    }
}
