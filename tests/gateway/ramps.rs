//! Ramps, over sockets: a new version that is broken gets no more than its share, and not for long.

use std::time::Duration;

use serde_json::Value;

use crate::fallbacks::failing_after;
use crate::harness::{Gateway, H2c, Origin, Wire, refusing, request, soon, until};

/// A ramp that is on its first step of four: 25% for the new one. What is under `/proxied` takes Pingora's way.
const RAMP: &str = "
upstreams:
  - {name: old, backends: [{address: \"OLD\"}]}
  - {name: new, backends: [{address: \"NEW\"}]}
routes:
  - name: checkout
    match: {paths: [/direct]}
    split: &split
  - {name: proxied, match: {paths: [/proxied]}, split: &split, direct: false}
";
const SPLIT: &str = "{to: {old: 100, new: 0}, sticky_by: [\"cookie:uid\"], \
    ramp: {from: old, to: new, over: 100d, steps: 4, abort_if: {error_ratio: 10%, min_requests: 10, window: 1h}}}";

fn document(old: &Origin, new: &Origin) -> String {
    let text = RAMP.replace("&split", SPLIT);
    text.replace("OLD", &old.address.to_string()).replace("NEW", &new.address.to_string())
}

/// The same, with a cache before what is under `/direct`.
fn cached(document: &str) -> String {
    let path = "match: {paths: [/direct]}\n";
    document.replace(path, &format!("{path}    filters: [cache: {{}}]\n"))
}

/// The same, where the circuit breaker of this one opens long before there are requests enough to give the ramp up.
fn breaking(document: &str, origin: &Origin, fallback: &str) -> String {
    let backends = format!("[{{address: \"{}\"}}]", origin.address);
    let breaker = format!("{backends}, circuit_breaker: {{min_requests: 5, open: 1h{fallback}}}");
    document.replace(&backends, &breaker).replace("min_requests: 10,", "min_requests: 40,")
}

/// Sends requests of so many users, one after the other; how many failed.
async fn ask(gateway: &Gateway, path: &str, users: std::ops::Range<u32>) -> usize {
    let mut failed = 0;
    for user in users {
        let fields = format!("Cookie: uid={user}\r\n");
        let answer = request(gateway.address(), &format!("GET {path}"), &fields).await;
        failed += usize::from(answer.status >= 500);
    }
    failed
}

async fn release(gateway: &Gateway, route: &str) -> Value {
    let list: Value =
        serde_json::from_str(&gateway.ask_admin("GET /api/releases", "").await.text()).expect("JSON");
    let releases = list["releases"].as_array().expect("a list").clone();
    releases.into_iter().find(|release| release["route"] == route).expect("the route's")
}

/// Broken in each of the ways that requests to it can fail.
async fn broken(way: &str) -> Origin {
    match way {
        "answers 500" => Origin::answering("HTTP/1.1 500 No\r\ncontent-length: 0\r\n\r\n").await,
        "resets" => Origin::dying_after(b"").await,
        "no HTTP" => Origin::dying_after(b"what?\r\n\r\n").await,
        _ => unreachable!("{way}"),
    }
}

#[tokio::test]
async fn a_broken_new_version_is_given_up_and_had_no_more_than_its_share() {
    for way in ["answers 500", "resets", "no HTTP"] {
        let (old, new) = (Origin::echo().await, broken(way).await);
        let gateway = Gateway::administered(&document(&old, &new)).await;
        for (path, route) in [("/direct", "checkout"), ("/proxied", "proxied")] {
            let before = release(&gateway, route).await;
            assert_eq!((before["state"].as_str(), before["share"].as_f64()), (Some("running"), Some(25.0)));
            let failed = ask(&gateway, path, 0..200).await;
            // Given up at the tenth; until then a quarter of the requests: 40 of them, give or take.
            // One more may be on its way when the tenth is noted.
            assert!((10..=12).contains(&failed), "{way} {path}: {failed}");
            let lines = until("the log", || {
                let log = gateway.log().into_iter().filter(|line| line["route"] == route);
                Some(log.collect::<Vec<_>>()).filter(|log| log.len() == 200)
            })
            .await;
            let last = lines.iter().rposition(|line| line["variant"] == "new").expect("some");
            assert!((20..100).contains(&last), "{way}: 10 of {last} is not about a quarter");
            let after = release(&gateway, route).await;
            assert_eq!((after["state"].as_str(), after["share"].as_f64()), (Some("aborted"), Some(0.0)));
            assert!(after["reason"].as_str().is_some_and(|why| why.starts_with("10 of 10 requests failed")));
        }
        gateway.says("the ramp is given up").await;
        let metrics = gateway.ask_admin("GET /metrics", "").await.text();
        let aborts = "tollhouse_ramp_aborts_total{from=\"old\",route=\"checkout\",to=\"new\"} 1";
        assert!(metrics.contains(aborts), "{metrics}");
    }
}

#[tokio::test]
async fn a_broken_new_version_is_given_up_though_its_circuit_breaker_keeps_requests_from_it() {
    let (old, new) = (Origin::echo().await, broken("answers 500").await);
    for fallback in ["", ", fallback: {status: 203}"] {
        let text = breaking(&document(&old, &new), &new, fallback);
        for (text, path, route) in [
            (&text, "/direct", "checkout"),
            (&text, "/proxied", "proxied"),
            (&cached(&text), "/direct", "checkout"),
        ] {
            let gateway = Gateway::administered(text).await;
            ask(&gateway, path, 0..280).await;
            let release = release(&gateway, route).await;
            assert_eq!(release["state"], "aborted", "{path}{fallback}: {release}");
            let reason = release["reason"].as_str();
            assert!(reason.is_some_and(|why| why.starts_with("40 of 40 requests failed")), "{release}");
        }
    }
}

#[tokio::test]
async fn a_new_version_is_no_slower_for_an_old_one_that_is_left_alone_and_refused_in_no_time() {
    let old = broken("answers 500").await;
    let new = Origin::new(|mut wire| async move {
        while wire.head().await.is_ok() {
            tokio::time::sleep(Duration::from_millis(20)).await;
            wire.send("HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n").await;
        }
    })
    .await;
    let text = document(&old, &new).replace("error_ratio: 10%", "p99: 1.5x");
    let text = breaking(&text, &old, "");
    for (text, path, route) in [
        (&text, "/direct", "checkout"),
        (&text, "/proxied", "proxied"),
        (&cached(&text), "/direct", "checkout"),
    ] {
        let gateway = Gateway::administered(text).await;
        ask(&gateway, path, 0..300).await;
        let release = release(&gateway, route).await;
        assert!(release["new"]["requests"].as_u64() >= Some(40), "{path}: {release}");
        assert_eq!(release["state"], "running", "{path}: {release}");
    }
}

#[tokio::test]
async fn a_new_version_without_a_backend_is_given_up_though_answers_to_grpc_begin_with_200() {
    // gRPC over HTTP/2, Responses: the status of a call that the gateway refuses is `grpc-status`.
    let old = Origin::echo().await;
    let text = RAMP.replace("&split", SPLIT).replace("OLD", &old.address.to_string());
    let gateway = Gateway::administered(&text.replace("NEW", "nowhere.invalid:80")).await;
    let client = H2c::connect(gateway.address()).await;
    let mut refused = 0;
    for user in 0..200 {
        let call = http::Request::post("http://a/direct")
            .header("content-type", "application/grpc")
            .header("te", "trailers")
            .header("cookie", format!("uid={user}"));
        let answer = client.send(call.body(()).expect("valid"), b"\0\0\0\0\0").await.expect("an answer");
        assert_eq!(answer.status, 200, "{answer:?}");
        // UNAVAILABLE.
        refused += usize::from(answer.field("grpc-status") == Some("14"));
    }
    assert!((10..=12).contains(&refused), "{refused}");
    assert_eq!(release(&gateway, "checkout").await["state"], "aborted");
}

#[tokio::test]
async fn requests_that_no_backend_was_asked_for_say_nothing_of_how_long_a_version_takes() {
    let old = Origin::echo().await;
    let text = RAMP.replace("&split", SPLIT).replace("OLD", &old.address.to_string());
    let gateway = Gateway::administered(&text.replace("NEW", "nowhere.invalid:80")).await;
    assert!(ask(&gateway, "/direct", 0..100).await > 0);
    let release = release(&gateway, "checkout").await;
    assert!(release["new"]["requests"].as_u64() > Some(0), "{release}");
    assert_eq!(release["new"].get("p99_ms"), None, "{release}");
    assert!(release["old"]["p99_ms"].as_f64() > Some(0.0), "{release}");
}

#[tokio::test]
async fn a_new_version_that_nobody_can_reach_is_given_up_behind_a_cache_too() {
    let old = Origin::echo().await;
    let text = RAMP.replace("&split", SPLIT).replace("OLD", &old.address.to_string());
    let gateway = Gateway::administered(&cached(&text.replace("NEW", &refusing().await.to_string()))).await;
    let failed = ask(&gateway, "/direct", 0..200).await;
    assert!((10..=12).contains(&failed), "{failed}");
    assert_eq!(release(&gateway, "checkout").await["state"], "aborted");
}

#[tokio::test]
async fn a_new_version_is_given_up_though_a_cache_answers_in_its_place() {
    let stale = "Cache-Control: max-age=0, stale-if-error=600\r\nETag: \"1\"\r\n";
    let (old, new) = (Origin::echo().await, failing_after(1, stale).await);
    let gateway = Gateway::administered(&cached(&document(&old, &new))).await;
    assert_eq!(ask(&gateway, "/direct", 0..200).await, 0);
    let release = release(&gateway, "checkout").await;
    assert_eq!(release["state"], "aborted");
    assert!(release["reason"].as_str().is_some_and(|why| why.starts_with("9 of 10 requests failed")));
}

#[tokio::test]
async fn clients_that_leave_downloads_behind_a_cache_tell_nothing_of_the_version() {
    let old = Origin::echo().await;
    let new = Origin::new(|mut wire| async move {
        let _ = wire.head().await;
        wire.send("HTTP/1.1 200 OK\r\nCache-Control: no-store\r\nContent-Length: 1000000000\r\n\r\n").await;
        let piece = vec![b'x'; 1 << 16];
        while wire.try_send(&piece).await.is_ok() {}
    })
    .await;
    let gateway = Gateway::administered(&cached(&document(&old, &new))).await;
    for user in 0..50 {
        let mut client = Wire::connect(gateway.address()).await;
        client.send(format!("GET /direct HTTP/1.1\r\nHost: a.test\r\nCookie: uid={user}\r\n\r\n")).await;
        client.head().await.expect("a head");
        client.reset();
    }
    // What was seen of a request is noted before its line.
    until("all lines", || (gateway.log().len() == 50).then_some(())).await;
    let release = release(&gateway, "checkout").await;
    assert!(release["new"]["requests"].as_u64() > Some(3), "{release}");
    assert_eq!((&release["new"]["errors"], &release["state"]), (&0.into(), &"running".into()), "{release}");
}

#[tokio::test]
async fn what_was_given_up_stays_so_over_restarts_until_somebody_takes_note() {
    let (old, new) = (Origin::echo().await, broken("answers 500").await);
    let text = document(&old, &new);
    let mut gateway = Gateway::administered(&text).await;
    assert!(ask(&gateway, "/direct", 0..200).await >= 10);
    gateway.signal("TERM");
    gateway.ended().await;
    let mut gateway = gateway.again().await;
    let kept = release(&gateway, "checkout").await;
    assert_eq!(kept["state"], "aborted", "{kept}");
    assert_eq!(ask(&gateway, "/direct", 0..50).await, 0);
    // Nor does a kill make it forget, nor another plan for the same variants.
    gateway.signal("KILL");
    gateway.ended().await;
    let mut gateway = gateway.again().await;
    gateway.rewrite_administered(&text.replace("steps: 4", "steps: 5"));
    let reload = gateway.ask_admin("POST /api/reload", "").await;
    assert_eq!(reload.status, 200, "{}", reload.text());
    assert_eq!(release(&gateway, "checkout").await["state"], "aborted");
    let acknowledge = "POST /api/releases/checkout/acknowledge";
    let answer = gateway.ask_admin(acknowledge, "").await;
    let now: Value = serde_json::from_str(&answer.text()).expect("JSON");
    assert_eq!((answer.status, &now["state"], &now["share"]), (200, &"running".into(), &20.0.into()));
    assert_eq!(gateway.ask_admin(acknowledge, "").await.status, 409);
    assert_eq!(gateway.ask_admin("POST /api/releases/nothing/acknowledge", "").await.status, 404);
    assert!(ask(&gateway, "/direct", 0..100).await > 0, "it begins anew");
    gateway.signal("TERM");
    gateway.ended().await;
}

#[tokio::test]
async fn explain_knows_how_far_a_ramp_is() {
    let (old, new) = (Origin::echo().await, broken("answers 500").await);
    let gateway = Gateway::administered(&document(&old, &new)).await;
    let explained = async |user: u32| {
        let question = format!("{{\"url\": \"/direct\", \"headers\": [[\"cookie\", \"uid={user}\"]]}}");
        let said = gateway.ask_admin("POST /api/explain", &question).await.text();
        let said: Value = serde_json::from_str(&said).expect("JSON");
        said["variant"]["name"].as_str().expect("a variant").to_owned()
    };
    // Up to one that gets the new one.
    let mut user = 0;
    while explained(user).await == "old" {
        user += 1;
    }
    assert_eq!(ask(&gateway, "/direct", user..user + 1).await, 1, "and so does a request");
    assert!(ask(&gateway, "/direct", 0..200).await >= 9);
    assert_eq!(release(&gateway, "checkout").await["state"], "aborted");
    assert_eq!(explained(user).await, "old");
    assert_eq!(ask(&gateway, "/direct", user..user + 1).await, 0, "and so does a request");
}

#[tokio::test]
async fn a_document_that_is_refused_leaves_the_watch_over_a_ramp_alone() {
    let (old, new) = (Origin::echo().await, broken("answers 500").await);
    let text = document(&old, &new);
    let gateway = Gateway::administered(&text).await;
    let unwatched = text.replace(", abort_if: {error_ratio: 10%, min_requests: 10, window: 1h}", "");
    assert_ne!(unwatched, text);
    gateway.rewrite_administered(&format!("{unwatched}  - {{name: bad, upstream: nowhere}}\n"));
    assert_eq!(gateway.ask_admin("POST /api/reload", "").await.status, 422);
    let failed = ask(&gateway, "/direct", 0..200).await;
    assert!((10..=12).contains(&failed), "{failed}");
    assert_eq!(release(&gateway, "checkout").await["state"], "aborted");
}

#[tokio::test]
async fn a_ramp_that_was_taken_out_begins_anew_when_it_is_written_again() {
    let (old, new) = (Origin::echo().await, Origin::echo().await);
    let text = document(&old, &new);
    let mut gateway = Gateway::administered(&text).await;
    let first = release(&gateway, "checkout").await["started"].clone();
    gateway.rewrite_administered("routes: []");
    until("both to be forgotten", || {
        (gateway.said("the ramp is no longer written, and is forgotten") == 2).then_some(())
    })
    .await;
    gateway.rewrite_administered(&text);
    assert_eq!(gateway.ask_admin("POST /api/reload", "").await.status, 200);
    let again = soon("the ramp to begin", async {
        loop {
            let release = release(&gateway, "checkout").await;
            if release["step"] == 1 {
                return release["started"].clone();
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await;
    assert_ne!(again, first);
    // A restart goes on, and says so.
    gateway.signal("TERM");
    gateway.ended().await;
    let gateway = gateway.again().await;
    gateway.says("goes on route=checkout").await;
    assert_eq!(release(&gateway, "checkout").await["started"], again);
}

#[tokio::test]
async fn ramps_that_are_taken_out_between_two_processes_are_forgotten_by_the_second() {
    let (old, new) = (Origin::echo().await, Origin::echo().await);
    let mut gateway = Gateway::administered(&document(&old, &new)).await;
    gateway.signal("TERM");
    gateway.ended().await;
    gateway.rewrite_administered("routes: []");
    let gateway = gateway.again().await;
    until("both to be forgotten", || {
        (gateway.said("the ramp is no longer written, and is forgotten") == 2).then_some(())
    })
    .await;
}
