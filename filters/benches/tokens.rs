//! What it costs to check a token, the first time and from then on. Instructions are the difference of two counts:
//! `TOKENS='hs256, verified*1000' valgrind --tool=callgrind BENCH --bench`, and the same with `*2000`.

use std::collections::BTreeMap;
use std::hint::black_box;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use criterion::{Criterion, criterion_group, criterion_main};
use futures_util::FutureExt;
use pingora_http::RequestHeader;
use tollhouse_filters::context::Context;
use tollhouse_filters::filter::Surroundings;
use tollhouse_filters::identity::{self, ConsumerSpec, Identity, IdentitySpec, Presented, Site};
use tollhouse_filters::path::{PathRules, normalize};
use tollhouse_filters::tree::{FileId, Limits, from_node, parse};
use tollhouse_filters::values::Name;
use tollhouse_filters::world::{NoClient, NoMetrics, UpstreamId, World};

/// Of `alice`, until 2100.
const HS256: &str = "eyJhbGciOiJIUzI1NiIsInR5cCI6IkpXVCJ9.eyJzdWIiOiJhbGljZSIsImV4cCI6NDEwMjQ0NDgwMH0.OGNhmFxMdQSWdD0NAicxhHtFlCp3lXIkMgWoOxxtrhI";
const HS256_KEY: &str = "algorithms: [HS256], secret: 'a secret of thirty-two bytes, or so'";
/// RFC 7515 A.3.
const ES256: &str = "eyJhbGciOiJFUzI1NiJ9.eyJpc3MiOiJqb2UiLA0KICJleHAiOjEzMDA4MTkzODAsDQogImh0dHA6Ly9leGFtcGxlLmNvbS9pc19yb290Ijp0cnVlfQ.DtEhU3ljbEg8L38VWAfUAqOyKAM6-Xx-F4GawxaepmXFCgfTjDxw5djxLa8ISlSApmWQxfKTUJqPP3-Kg6NU1Q";
const ES256_KEY: &str = "algorithms: [ES256], jwks: {keys: [{kty: EC, crv: P-256, x: f83OJ3D2xF1Bg8vub9tLe1gHMzV76e8Tus9uPHvRVEU, y: x_FEzRu9m36HLN_tue659LNpXW6pCyStikYjKIWI5a0}]}";
/// Before either ends.
const NOW: u64 = 1_300_000_000;

struct Nothing;

impl Surroundings for Nothing {
    fn upstream(&self, _: &str) -> Option<UpstreamId> {
        None
    }

    fn nearest_upstream(&self, _: &str) -> Option<String> {
        None
    }
}

/// An identity, and a request with a token for it.
struct Case {
    identity: Arc<dyn Identity>,
    request: RequestHeader,
    ctx: Context,
}

impl Case {
    fn new(options: &str, token: &str) -> Self {
        let text = format!("{{corp: {{type: jwt, {options}}}}}");
        let node = parse(&text, FileId(0), &Limits::default()).expect("YAML");
        let identities: BTreeMap<Name, IdentitySpec> = from_node(&node).expect("identities");
        let world = World::live(Arc::new(NoClient), Arc::new(NoMetrics));
        let consumers: [ConsumerSpec; 0] = [];
        let (built, errors) =
            identity::build(&identities, &consumers, &Site { world: &world, surroundings: &Nothing });
        assert!(errors.is_empty(), "{errors:?}");
        let mut request = RequestHeader::build("GET", b"/", None).expect("valid");
        request.insert_header("authorization", format!("Bearer {token}")).expect("valid");
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
            let case = Case::new(&format!("{key}{cache}"), token);
            assert!(matches!(case.check(now), Presented::Valid(_)), "{name}");
            let name = format!("{name}, {kind}");
            if let Ok(wanted) = std::env::var("TOKENS") {
                // For valgrind: as often as it says, and nothing else.
                let (wanted, count) = wanted.split_once('*').expect("such as `hs256, verified*1000`");
                let count: u32 = if wanted == name { count.parse().expect("a number") } else { 0 };
                (0..count).for_each(|_| drop(case.check(now)));
                continue;
            }
            group.bench_function(name, |b| b.iter(|| case.check(now)));
        }
    }
    group.finish();
}

criterion_group!(benches, tokens);
criterion_main!(benches);
