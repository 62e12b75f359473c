use std::sync::Arc;

use futures_util::FutureExt;

use super::*;
use crate::testing::{Chain, Sent, chain_calling, chain_in, get, refused, send};
use crate::world::{ManualClock, MemoryMetrics, ScriptedClient, World};

fn mirrored(options: &str) -> (Arc<ScriptedClient>, Chain) {
    let client = Arc::new(ScriptedClient::new());
    let chain = chain_calling(client.clone(), &format!("- mirror: {{upstream: main{options}}}"));
    (client, chain)
}

/// Sends a request to its end; its body comes in these pieces.
async fn over(chain: &Chain, request: crate::testing::Request, pieces: &[&[u8]]) -> Sent {
    let mut sent = chain.send(request).await.continues();
    sent.attempt(1).await;
    for (at, piece) in pieces.iter().enumerate() {
        sent.request_piece(piece, at + 1 == pieces.len()).expect("passes");
    }
    sent.finish(200);
    sent
}

#[tokio::test]
async fn a_copy_is_what_the_upstream_gets_with_a_mark() {
    let (client, chain) = mirrored("");
    over(&chain, send("POST", "/a?b=c").header("x-a", "1").header("content-length", "5"), &[b"ab", b"cde"])
        .await;
    let sent = client.requests();
    assert_eq!(sent.len(), 1);
    assert_eq!((sent[0].head.uri.to_string().as_str(), &sent[0].body[..]), ("/a?b=c", &b"abcde"[..]));
    assert_eq!(sent[0].head.headers["x-a"], "1");
    assert_eq!(sent[0].head.headers[MARK], "test/mirror#0");
    assert_eq!(sent[0].timeout, Some(Duration::from_secs(5)));
}

#[tokio::test]
async fn a_copy_has_none_of_the_credentials_that_upstream_auth_writes_or_replaces() {
    let mirror = "- mirror: {upstream: main}";
    for (auth, secrets) in [
        ("basic: {username: a, password: b}", &["authorization"][..]),
        ("header: {name: x-api-key, value: s3cret}", &["x-api-key", "x_api_key"][..]),
        (
            "aws: {region: a, service: s3, access_key_id: a, secret_access_key: b, session_token: c}",
            &["authorization", "x-amz-security-token"][..],
        ),
    ] {
        let auth = format!("- upstream_auth: {{{auth}}}");
        for filters in [format!("{mirror}\n{auth}"), format!("{auth}\n{mirror}")] {
            let client = Arc::new(ScriptedClient::new());
            let chain = chain_calling(client.clone(), &filters);
            let request = get("/").header("host", "a").header("x-a", "1");
            let request = secrets.iter().fold(request, |request, &name| request.header(name, "mine"));
            over(&chain, request, &[]).await;
            let sent = client.requests();
            let copied = &sent[0].head.headers;
            assert!(secrets.iter().all(|name| !copied.contains_key(*name)), "{filters}");
            assert_eq!(copied["x-a"], "1");
        }
    }
}

#[tokio::test]
async fn credentials_are_copied_where_the_upstream_gets_them() {
    let (client, chain) = mirrored("");
    over(&chain, get("/").header("authorization", "Bearer mine"), &[]).await;
    assert_eq!(client.requests()[0].head.headers["authorization"], "Bearer mine");
}

#[tokio::test]
async fn a_body_that_is_too_large_or_not_whole_is_not_copied() {
    let (client, chain) = mirrored(", max_body: 4B");
    let post = || send("POST", "/").header("content-length", "5");
    over(&chain, post(), &[b"ab", b"cde"]).await;
    let mut sent = chain.send(post()).await.continues();
    sent.attempt(1).await;
    sent.request_piece(b"ab", false).expect("passes");
    sent.finish(200);
    assert!(client.requests().is_empty());
    over(&chain, send("POST", "/").header("content-length", "4"), &[b"abcd", b""]).await;
    assert_eq!(client.requests().len(), 1);
}

#[tokio::test]
async fn a_body_begins_anew_with_each_attempt_but_not_one_that_came_before() {
    let (client, chain) = mirrored("");
    let post = || send("POST", "/").header("content-length", "3");
    let mut sent = chain.send(post()).await.continues();
    for attempt in 1..=2 {
        sent.attempt(attempt).await;
        sent.request_piece(b"abc", true).expect("passes");
    }
    sent.finish(200);
    let mut sent = chain.send(post()).await.continues();
    sent.request_piece(b"abc", true).expect("passes");
    for attempt in 1..=2 {
        sent.attempt(attempt).await;
    }
    sent.finish(200);
    let bodies: Vec<_> = client.requests().iter().map(|sent| sent.body.clone()).collect();
    assert_eq!(bodies, ["abc", "abc"]);
}

#[tokio::test]
async fn what_never_reached_an_upstream_or_is_no_request_of_its_own_is_not_copied() {
    let (client, chain) = mirrored("");
    chain.send(get("/")).await.continues().finish(503);
    over(&chain, get("/").header("upgrade", "websocket"), &[]).await;
    assert!(client.requests().is_empty());
    over(&chain, get("/"), &[]).await;
    assert_eq!(client.requests().len(), 1);
}

#[tokio::test]
async fn a_304_is_compared_only_where_the_copy_could_be_answered_so_too() {
    let known = [("if-none-match", "\"a\"")];
    for (fields, compared) in [(&known[..0], 0), (&known[..], 1)] {
        let (client, metrics) = (Arc::new(ScriptedClient::new()), Arc::new(MemoryMetrics::new()));
        client.reply(304, &[], []);
        let clock = Arc::new(ManualClock::new());
        let world = World { client, metrics: metrics.clone(), ..World::dry_at(clock.clone()) };
        let chain = chain_in(&world, &clock, "- mirror: {upstream: main, diff: {}}");
        let request = fields.iter().fold(get("/"), |request, &(name, value)| request.header(name, value));
        let mut sent = chain.send(request).await.continues();
        sent.attempt(1).await;
        let _ = sent.answered(304, &[]).await;
        sent.finish(304);
        let number = metrics.value("tollhouse_mirror_compared_total", &[("mirror", "test/mirror#0")]);
        assert_eq!(number, Some(compared), "{fields:?}");
    }
}

#[tokio::test]
async fn a_share_of_the_requests_is_copied() {
    let (client, chain) = mirrored(", share: 25%");
    for _ in 0..1000 {
        over(&chain, get("/"), &[]).await;
    }
    let copies = client.requests().len();
    assert!((180..320).contains(&copies), "{copies} of 1000");
}

#[tokio::test]
async fn no_more_copies_are_made_than_may_be_under_way() {
    let (client, chain) = mirrored(", in_flight: 2");
    let under_way: Vec<Sent> =
        (0..5).map(|_| chain.send(get("/")).now_or_never().expect("does not wait").continues()).collect();
    assert_eq!(under_way.iter().filter(|sent| !sent.ctx.policies.mirrors.is_empty()).count(), 2);
    drop(under_way);
    over(&chain, get("/"), &[]).await;
    assert_eq!(client.requests().len(), 1, "places are given back");
}

#[test]
fn wrong_options_are_refused() {
    for (options, message) in [
        ("{}", "upstream"),
        ("{upstream: nobody}", "no upstream is named `nobody`"),
        ("{upstream: main, share: 200%}", "percentage"),
        ("{upstream: main, in_flight: 0}", ""),
        ("{upstream: main, diff: {ignore: [a]}}", "JSON Pointer"),
        ("{upstream: main, diff: {paths: []}}", "unknown key"),
    ] {
        let said = refused(&format!("- mirror: {options}"));
        assert!(said.contains(message), "{options}: {said}");
    }
}
