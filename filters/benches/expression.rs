//! What conditions cost: keys, and expressions that say the same.

use std::hint::black_box;
use std::sync::Arc;

use criterion::{Criterion, criterion_group, criterion_main};
use serde_json::{Value, json};
use tollhouse_filters::context::{Consumer, Principal};
use tollhouse_filters::expression::Expression;
use tollhouse_filters::testing::{send, yaml};
use tollhouse_filters::when::{When, WhenSpec};

fn conditions(bench: &mut Criterion) {
    let request = send("GET", "/orders/7?page=1")
        .header("host", "api.example.com")
        .header("x-tenant", "t1")
        .header("accept", "*/*")
        .with(|ctx| {
            ctx.consumer = Some(Arc::new(Consumer {
                name: "acme".into(),
                groups: Arc::from(["partners".into()]),
                plan: None,
            }));
            let Value::Object(claims) =
                json!({"sub": "alice", "aud": "api", "roles": ["dev", "ops"], "level": 3})
            else {
                unreachable!("an object")
            };
            ctx.principal = Some(Arc::new(Principal { subject: "alice".to_owned(), claims }));
        });
    let (head, ctx) = request.into_parts();
    let keys = When::new(yaml::<WhenSpec>("{methods: [GET], groups: [partners], claims: {roles: ops}}"));
    bench.bench_function("when, by keys", |bench| {
        bench.iter(|| assert_eq!(keys.holds(black_box(&head), &ctx), Ok(true)));
    });
    for (name, text) in [
        ("cel, the method", "request.method == 'GET'"),
        ("cel, a claim", "claims.sub == 'alice'"),
        ("cel, a loop", "claims.roles.exists(role, role == 'ops')"),
        ("cel, a field of the request", "request.headers['x-tenant'] == 't1'"),
        ("cel, a pattern", "request.path.matches('^/orders/[0-9]+$')"),
        (
            "cel, what the keys say",
            "request.method == 'GET' && 'partners' in consumer.groups && 'ops' in claims.roles",
        ),
    ] {
        let expression = Expression::parse(text).expect("an expression");
        bench.bench_function(name, |bench| {
            bench.iter(|| assert_eq!(expression.holds(black_box(&head), &ctx), Ok(true)));
        });
    }
    bench.bench_function("cel, compiled", |bench| {
        bench.iter(|| Expression::parse(black_box("request.method == 'GET' && 'ops' in claims.roles")));
    });
}

criterion_group!(benches, conditions);
criterion_main!(benches);
