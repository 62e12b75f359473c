//! Numbers that are made with the first request go on over reloads.

use crate::harness::cached::numbered;
use crate::harness::{Gateway, Origin, get};

const OF_OLD: &str =
    "tollhouse_old_version_requests_total{consumer=\"none\",service=\"users\",version=\"1\"}";
const OF_CACHED: &str = "tollhouse_cache_requests_total{result=\"miss\",route=\"cached\"}";
const DOCUMENT: &str = "
server: {limits: {connections: 1000}}
upstreams: [{name: o, backends: [{address: \"ORIGIN\"}]}]
services:
  - name: users
    upstream: o
    versioning: {from: [path], default: '2'}
    versions: {'1': {deprecated: 2026-01-01}, '2': {}}
chains: {shared: [{cache: {}}]}
routes:
  - {name: users, service: users, match: {paths: [/users]}}
  - {name: cached, upstream: o, match: {paths: [/cached]}, filters: [{chain: shared}]}
";
const PREVIEW: &str =
    "  - {name: preview, upstream: o, match: {paths: [/preview]}, filters: [{chain: shared}]}\n";

#[tokio::test]
async fn what_is_quiet_over_reloads_is_counted_on_and_what_is_gone_is_not() {
    let origin = Origin::answering(numbered(1, "cache-control: max-age=3600\r\n")).await;
    let document = DOCUMENT.replace("ORIGIN", &origin.address.to_string());
    let gateway = Gateway::administered(&format!("{document}{PREVIEW}")).await;
    let series = [("/v1/users", OF_OLD), ("/cached", OF_CACHED)];
    for path in ["/v1/users", "/cached", "/preview"] {
        assert_eq!(get(gateway.address(), path).await.status, 200, "{path}");
        // Its numbers come before its line.
        gateway.log_line(|line| line["path"] == path).await;
    }
    assert_eq!(gateway.number(&OF_CACHED.replace("cached", "preview")).await, 1);
    for nth in 1..=4_u64 {
        gateway.rewrite_administered(&document.replace("1000", &(1000 + nth).to_string()));
        assert_eq!(gateway.ask_admin("POST /api/reload", "").await.status, 200);
        assert_eq!(gateway.number("tollhouse_config_generation").await, 1 + nth);
    }
    for (path, series) in series {
        assert_eq!(gateway.number(series).await, 1, "{path}");
    }
    let page = gateway.ask_admin("GET /metrics", "").await.text();
    assert!(!page.contains("\"preview\""), "the chain goes on, the route does not: {page}");
}
