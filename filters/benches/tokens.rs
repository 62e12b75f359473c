//! What it costs to check a token, the first time and from then on, and a key.

#[expect(dead_code, reason = "each benchmark uses its own part")]
mod common;

use std::collections::BTreeMap;
use std::hint::black_box;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use criterion::{Criterion, criterion_group, criterion_main};
use futures_util::FutureExt;
use pingora_http::RequestHeader;
use serde::de::DeserializeOwned;
use tollhouse_filters::context::Context;
use tollhouse_filters::identity::consumers::Consumers;
use tollhouse_filters::identity::{self, ConsumerSpec, Identity, IdentitySpec, Presented, Site};
use tollhouse_filters::path::{PathRules, normalize};
use tollhouse_filters::plan::Plans;
use tollhouse_filters::tree::{FileId, Limits, from_node, parse};
use tollhouse_filters::values::Name;

use common::{Nothing, world};

/// Of `alice`, until 2100.
const HS256: &str = "eyJhbGciOiJIUzI1NiIsInR5cCI6IkpXVCJ9.eyJzdWIiOiJhbGljZSIsImV4cCI6NDEwMjQ0NDgwMH0.OGNhmFxMdQSWdD0NAicxhHtFlCp3lXIkMgWoOxxtrhI";
const HS256_KEY: &str = "algorithms: [HS256], secret: 'a secret of thirty-two bytes, or so'";
/// RFC 7515 A.3.
const ES256: &str = "eyJhbGciOiJFUzI1NiJ9.eyJpc3MiOiJqb2UiLA0KICJleHAiOjEzMDA4MTkzODAsDQogImh0dHA6Ly9leGFtcGxlLmNvbS9pc19yb290Ijp0cnVlfQ.DtEhU3ljbEg8L38VWAfUAqOyKAM6-Xx-F4GawxaepmXFCgfTjDxw5djxLa8ISlSApmWQxfKTUJqPP3-Kg6NU1Q";
const ES256_KEY: &str = "algorithms: [ES256], jwks: {keys: [{kty: EC, crv: P-256, x: f83OJ3D2xF1Bg8vub9tLe1gHMzV76e8Tus9uPHvRVEU, y: x_FEzRu9m36HLN_tue659LNpXW6pCyStikYjKIWI5a0}]}";
/// Their keys are `correct-horse-battery-staple` and `last-years-key`.
const CONSUMERS: &str = "
- name: acme
  credentials:
    - {type: api_key, id: k1, hash: 'sha256:87cbebfeebc05f7c54ac9336c4b4bbec831227a641951a4bde7edd56020f8590'}
    - {type: api_key, id: k0, hash: 'sha256:37e174a6d4b54ca230d4e2e410a09b09371a96f395d990fbfc48b51c7be36276'}
";
/// Before either ends.
const NOW: u64 = 1_300_000_000;

fn yaml<T: DeserializeOwned>(text: &str) -> T {
    let node = parse(text, FileId(0), &Limits::default()).expect("YAML");
    from_node(&node).unwrap_or_else(|error| panic!("{}: {}", error.path, error.message))
}

/// An identity, and a request with a credential for it.
struct Case {
    identity: Arc<dyn Identity>,
    request: RequestHeader,
    ctx: Context,
}

impl Case {
    fn token(options: &str, token: &str) -> Self {
        Self::new(&format!("type: jwt, {options}"), "authorization", &format!("Bearer {token}"))
    }

    fn key(key: &str) -> Self {
        Self::new("type: api_key, from: [header:x-api-key]", "x-api-key", key)
    }

    fn new(identity: &str, field: &'static str, value: &str) -> Self {
        let identities: BTreeMap<Name, IdentitySpec> = yaml(&format!("{{corp: {{{identity}}}}}"));
        let world = world();
        let layout = identity::layout(&identities, &Plans::default());
        // Tokens name nobody, and keys one of these.
        let consumers: Vec<ConsumerSpec> = yaml(if field == "x-api-key" { CONSUMERS } else { "[]" });
        let (index, mut errors) = identity::index(&layout, consumers);
        let consumers = Arc::new(Consumers::new(layout, index));
        let (built, more) =
            identity::build(&identities, &consumers, &Site { world: &world, surroundings: &Nothing });
        errors.extend(more);
        assert!(errors.is_empty(), "{errors:?}");
        let mut request = RequestHeader::build("GET", b"/", None).expect("valid");
        request.insert_header(field, value).expect("valid");
        let path = normalize("/", &PathRules::default()).expect("a valid path");
        let identity = built.get("corp").expect("an identity").clone();
        Self { identity, request, ctx: Context::for_tests(path, Instant::now()) }
    }

    fn check(&self, now: SystemTime) -> Presented {
        let checked = self.identity.check(&self.request, &self.ctx, now).now_or_never();
        black_box(checked.expect("nothing to wait for"))
    }
}

fn tokens(c: &mut Criterion) {
    let now = UNIX_EPOCH + Duration::from_secs(NOW);
    let mut group = c.benchmark_group("tokens");
    for (name, key, token) in [("hs256", HS256_KEY, HS256), ("es256", ES256_KEY, ES256)] {
        for (kind, cache) in [("verified", ", token_cache: 0B"), ("repeated", "")] {
            let case = Case::token(&format!("{key}{cache}"), token);
            assert!(matches!(case.check(now), Presented::Valid(_)), "{name}");
            group.bench_function(format!("{name}, {kind}"), |b| b.iter(|| case.check(now)));
        }
    }
    for (name, key, known) in
        [("key, known", "correct-horse-battery-staple", true), ("key, unknown", "correct-horse", false)]
    {
        let case = Case::key(key);
        assert_eq!(matches!(case.check(now), Presented::Valid(_)), known, "{name}");
        group.bench_function(name, |b| b.iter(|| case.check(now)));
    }
    group.finish();
}

criterion_group!(benches, tokens);
criterion_main!(benches);
