//! Versions and splits, over sockets: by both ways that requests can take.

use std::collections::BTreeMap;

use crate::harness::{Answer, Gateway, Origin, request, soon, until};

/// A service with an old version, one that is over and one that is current. What is under `/proxied` takes Pingora's
/// way, since a filter holds its requests.
const VERSIONS: &str = "
upstreams:
  - {name: old, backends: [{address: \"OLD\"}]}
  - {name: new, backends: [{address: \"NEW\"}]}
services:
  - name: users
    upstream: new
    filters: [{headers: {response: {set: {x-service: users}}}}, {cors: {origins: [\"https://app.test\"]}}]
    versioning: {from: [path, accept, \"query:api-version\"], default: '3'}
    versions:
      '1': {sunset: 2020-01-01}
      '2': {upstream: old, deprecated: 2026-01-01, sunset: 2096-01-01}
      '3': {}
routes:
  - {name: direct, service: users, match: {paths: [/direct/*], methods: [GET]}}
  - name: proxied
    service: users
    match: {paths: [/proxied/*], methods: [GET]}
    filters: [{headers: {response: {set: {x-route: proxied}}}}]
    direct: false
  - {name: status, match: {paths: [/v2/direct/status]}, respond: {body: fine}}
";

const WAYS: [&str; 2] = ["/direct", "/proxied"];

async fn versions() -> (Gateway, Origin, Origin) {
    let (old, new) = (Origin::echo().await, Origin::echo().await);
    let text = VERSIONS.replace("OLD", &old.address.to_string()).replace("NEW", &new.address.to_string());
    (Gateway::administered(&text).await, old, new)
}

async fn ask(gateway: &Gateway, line: &str, fields: &str) -> Answer {
    request(gateway.address(), line, fields).await
}

#[tokio::test]
async fn a_version_is_taken_off_the_path_and_sent_where_it_belongs() {
    let (gateway, old, new) = versions().await;
    for way in WAYS {
        for (line, fields, upstream) in [
            (format!("GET /v2{way}/1?a=b"), "", "old"),
            (format!("GET {way}/1?a=b"), "Accept: application/vnd.acme.v2+json\r\n", "old"),
            (format!("GET {way}/1?a=b"), "", "new"),
            (format!("GET /v3{way}/1?a=b"), "Accept: application/vnd.acme.v2+json\r\n", "new"),
        ] {
            let answer = ask(&gateway, &line, fields).await;
            assert!(answer.text().starts_with(&format!("GET {way}/1?a=b HTTP/1.1")), "{line}: {answer:?}");
            let by_path = line.contains("/v");
            assert_eq!(answer.head.all("vary").contains(&"accept"), !by_path, "{line}");
            let is_old = upstream == "old";
            assert_eq!(answer.field("deprecation"), is_old.then_some("@1767225600"), "{line}");
            assert_eq!(answer.field("sunset"), is_old.then_some("Sun, 01 Jan 2096 00:00:00 GMT"), "{line}");
            let link = format!("</v3{way}/1>; rel=\"successor-version\"");
            assert_eq!(answer.field("link"), is_old.then_some(&*link), "{line}");
            assert_eq!(answer.field("x-service"), Some("users"));
        }
    }
    assert_eq!((old.heads().len(), new.heads().len()), (4, 4));
    let line = gateway.log_line(|line| line["path"] == "/v2/proxied/1").await;
    assert_eq!(
        ["version", "upstream", "route"].map(|key| line[key].as_str()),
        [Some("2"), Some("old"), Some("proxied")]
    );
}

#[tokio::test]
async fn what_is_not_there_or_no_longer_is_refused_through_the_services_filters() {
    let (gateway, old, new) = versions().await;
    for way in WAYS {
        let answer = ask(&gateway, &format!("GET /v9{way}/1"), "Origin: https://app.test\r\n").await;
        assert_eq!((answer.status, answer.problem().as_str()), (406, "no-such-version"));
        let document: serde_json::Value = serde_json::from_str(&answer.text()).expect("JSON");
        assert_eq!(document["versions"], serde_json::json!(["2", "3"]));
        assert_eq!(answer.field("x-service"), Some("users"));
        assert_eq!(answer.field("access-control-allow-origin"), Some("https://app.test"));
        assert_eq!(answer.field("x-route"), None, "not through the route's own");
        let answer = ask(&gateway, &format!("GET {way}/1?api-version=v1"), "").await;
        assert_eq!((answer.status, answer.problem().as_str()), (410, "version-gone"));
        assert_eq!(answer.field("sunset"), Some("Wed, 01 Jan 2020 00:00:00 GMT"));
        let link = format!("</v3{way}/1>; rel=\"successor-version\"");
        assert_eq!((answer.field("link"), answer.field("x-service")), (Some(&*link), Some("users")));
    }
    assert_eq!((old.connections(), new.connections()), (0, 0));
    let gone = "tollhouse_old_version_requests_total{consumer=\"none\",service=\"users\",version=\"1\"} 2";
    // A request is counted once its answer has gone out.
    soon("the count", async {
        while !gateway.ask_admin("GET /metrics", "").await.text().contains(gone) {
            tokio::task::yield_now().await;
        }
    })
    .await;
}

#[tokio::test]
async fn paths_that_only_look_like_versions_stay_what_they_are() {
    let (gateway, old, new) = versions().await;
    // Spelt out by a route that has no versions.
    assert_eq!(ask(&gateway, "GET /v2/direct/status", "").await.text(), "fine");
    assert_eq!(ask(&gateway, "GET /v2/nothing", "").await.status, 404);
    let answer = ask(&gateway, "POST /v2/direct/1", "Content-Length: 0\r\n").await;
    assert_eq!((answer.status, answer.field("allow")), (405, Some("GET")));
    let preflight = "Origin: https://app.test\r\nAccess-Control-Request-Method: GET\r\n";
    for path in ["/direct/1", "/v2/direct/1", "/v9/direct/1"] {
        let answer = ask(&gateway, &format!("OPTIONS {path}"), preflight).await;
        let allowed = answer.field("access-control-allow-origin");
        assert!(answer.status < 300 && allowed == Some("https://app.test"), "{path}: {answer:?}");
    }
    assert_eq!((old.connections(), new.connections()), (0, 0));
}

/// Two variants on both ways; testers choose theirs on one route only.
const SPLIT: &str = "
upstreams:
  - {name: a, backends: [{address: \"OLD\"}]}
  - {name: b, backends: [{address: \"NEW\"}]}
routes:
  - name: direct
    match: {paths: [/direct]}
    split: &split {to: {a: 70, b: 30}, sticky_by: [\"cookie:uid\"], salt: s, force: {header: x-tollhouse-variant}}
  - {name: proxied, match: {paths: [/proxied]}, split: *split, direct: false}
  - {name: plain, match: {paths: [/plain]}, upstream: a}
";

async fn split() -> (Gateway, Origin, Origin) {
    let (a, b) = (Origin::echo().await, Origin::echo().await);
    let text = SPLIT.replace("OLD", &a.address.to_string()).replace("NEW", &b.address.to_string());
    let shared =
        text.lines().find_map(|line| line.trim().strip_prefix("split: &split ")).expect("one").to_owned();
    let text = text.replace("&split ", "").replace("*split", &shared);
    (Gateway::administered(&text).await, a, b)
}

#[tokio::test]
async fn users_stay_with_their_variant_on_both_ways() {
    let (gateway, a, b) = split().await;
    for user in 0..60 {
        let cookie = format!("Cookie: uid={user}\r\n");
        for path in ["/direct", "/proxied"] {
            assert_eq!(ask(&gateway, &format!("GET {path}?{user}"), &cookie).await.status, 200);
        }
    }
    let lines = until("all lines", || Some(gateway.log()).filter(|log| log.len() == 120)).await;
    let mut variants: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for line in &lines {
        assert_eq!(line["variant"], line["upstream"], "{line}");
        let variant = line["variant"].as_str().expect("a variant").to_owned();
        variants.entry(line["query"].as_str().expect("a query").to_owned()).or_default().push(variant);
    }
    assert!(variants.values().all(|both| both[0] == both[1]), "{variants:?}");
    let of_b = variants.values().filter(|both| both[0] == "b").count();
    assert!((6..30).contains(&of_b), "{of_b} of 60 are not about 30%");
    assert_eq!((a.heads().len(), b.heads().len()), (2 * (60 - of_b), 2 * of_b));
    let metrics = gateway.ask_admin("GET /metrics", "").await.text();
    let counted = format!(
        "tollhouse_requests_total{{listener=\"plain\",route=\"direct\",upstream=\"b\",variant=\"b\",code_class=\"2xx\"}} {of_b}"
    );
    assert!(metrics.contains(&counted), "{metrics}");
}

#[tokio::test]
async fn testers_choose_their_variant_and_no_upstream_hears_of_it() {
    let (gateway, a, b) = split().await;
    for path in ["/direct", "/proxied"] {
        for variant in ["a", "b"] {
            let answer =
                ask(&gateway, &format!("GET {path}"), &format!("X-Tollhouse-Variant: {variant}\r\n")).await;
            assert_eq!(answer.status, 200);
        }
        let answer = ask(&gateway, &format!("GET {path}"), "X-Tollhouse-Variant: c\r\n").await;
        assert_eq!((answer.status, answer.problem().as_str()), (400, "bad-request"));
    }
    ask(&gateway, "GET /plain", "X-Tollhouse-Variant: b\r\nX_Tollhouse_Variant: b\r\n").await;
    assert_eq!((a.heads().len(), b.heads().len()), (3, 2));
    for head in a.heads().iter().chain(&b.heads()) {
        let named = head.fields.iter().any(|(name, _)| name.to_ascii_lowercase().contains("variant"));
        assert!(!named, "{head:?}");
    }
}
