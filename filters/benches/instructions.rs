//! Instructions of one request through one filter, counted by callgrind: the same each time, whatever else the
//! machine is doing. Each chain is warm: a request went through it before. `none` is what the harness itself takes.

#![expect(missing_docs, reason = "of what the macros make")]

use futures_util::FutureExt;
use gungraun::{library_benchmark, library_benchmark_group, main};
use tollhouse_filters::testing::{Chain, Request, Sent, chain_with, get};

const DOCUMENT: &str = "
identities:
  keys: {type: api_key, from: [header:x-api-key], hide: true}
  corp: {type: jwt, algorithms: [HS256], secret: 'a secret of thirty-two bytes, or so'}
  uncached: {type: jwt, algorithms: [HS256], secret: 'a secret of thirty-two bytes, or so', token_cache: 0B}
consumers:
  - name: acme
    match: [{identity: corp, claim: sub, value: alice}, {identity: uncached, claim: sub, value: alice}]
    credentials: [{type: api_key, id: k1, hash: 'sha256:87cbebfeebc05f7c54ac9336c4b4bbec831227a641951a4bde7edd56020f8590'}]
";

fn plain() -> Request {
    get("/orders/1")
}

/// As a browser sends it to another origin.
fn browser() -> Request {
    plain().header("origin", "https://app.example.com").header("accept-encoding", "gzip, deflate, br")
}

/// Of `alice`, until 2100.
fn bearer() -> Request {
    plain().header("authorization", "Bearer eyJhbGciOiJIUzI1NiIsInR5cCI6IkpXVCJ9.eyJzdWIiOiJhbGljZSIsImV4cCI6NDEwMjQ0NDgwMH0.OGNhmFxMdQSWdD0NAicxhHtFlCp3lXIkMgWoOxxtrhI")
}

fn key() -> Request {
    plain().header("x-api-key", "correct-horse-battery-staple")
}

fn wrong_key() -> Request {
    plain().header("x-api-key", "correct-horse")
}

fn warm(filters: &str, request: fn() -> Request) -> (Chain, Request) {
    let chain = chain_with(DOCUMENT, filters);
    drop(chain.send(request()).now_or_never().expect("nothing to wait for"));
    (chain, request())
}

#[library_benchmark(setup = warm)]
#[bench::none("[]", plain)]
#[bench::headers(
    "- headers: {request: {set: {x-gateway: tollhouse}}, response: {set: {x-served-by: tollhouse}}}",
    plain
)]
#[bench::request_id("- request_id: {}", plain)]
#[bench::cors("- cors: {origins: ['https://app.example.com'], credentials: true}", browser)]
#[bench::rewrite("- rewrite: {strip_prefix: /orders}", plain)]
#[bench::ip_access("- ip_access: {allow: [192.0.2.0/24, 10.0.0.0/8]}", plain)]
#[bench::rate_limit("- rate_limit: {per: ip, limit: 1000000/s}", plain)]
#[bench::rate_limit_estimate("- rate_limit: {per: ip, limit: 1000000/s, strategy: estimate}", plain)]
#[bench::quota("- quota: {per: ip, limit: 999999999999/day}", plain)]
#[bench::concurrency("- concurrency: {per: ip, limit: 10}", plain)]
#[bench::jwt_verified("- authenticate: {any_of: [uncached]}", bearer)]
#[bench::jwt_repeated("- authenticate: {any_of: [corp]}", bearer)]
#[bench::api_key("- authenticate: {any_of: [keys]}", key)]
#[bench::api_key_wrong("- authenticate: {any_of: [keys]}", wrong_key)]
fn filter((chain, request): (Chain, Request)) -> (Option<Sent>, Chain) {
    (chain.send(request).now_or_never(), chain)
}

library_benchmark_group!(name = filters, benchmarks = filter);
main!(library_benchmark_groups = filters);
