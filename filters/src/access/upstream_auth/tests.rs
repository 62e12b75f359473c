//! What upstreams are shown, and what becomes of tokens.

use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt;
use futures_util::future::join_all;
use tokio::sync::Semaphore;

use super::grant::Grant;
use crate::identity::remote::Remote;
use crate::testing::{Chain, Request, Slow, chain, chain_calling, get, refused, send};
use crate::world::{Client, ClientError, ManualClock, NoMetrics, ScriptedClient};

const GRANT: &str = "- upstream_auth: {client_credentials: {token_url: 'https://id.example.com/token', \
                     client_id: 'g w', client_secret: 's&cret', scopes: [a, b], parameters: {audience: 'x y'}}}";

fn asking(filters: &str) -> (Arc<ScriptedClient>, Chain) {
    let service = Arc::new(ScriptedClient::new());
    (service.clone(), chain_calling(service, filters))
}

fn give(service: &ScriptedClient, token: &str, more: &str) {
    let answer = format!("{{\"access_token\": \"{token}\", \"token_type\": \"bearer\"{more}}}");
    service.reply(200, &[], [answer.as_bytes()]);
}

/// What the upstream is shown.
async fn shown(chain: &Chain, request: Request) -> String {
    let mut sent = chain.send(request).await.continues();
    let head = sent.attempt(1).await;
    let all: Vec<_> = head.headers.get_all("authorization").iter().collect();
    assert_eq!(all.len(), 1, "{all:?}");
    assert!(all[0].is_sensitive(), "so that nobody shows it");
    all[0].to_str().expect("text").to_owned()
}

fn forged() -> Request {
    get("/").header("authorization", "Basic cm9vdA==").header("authorization", "Bearer mine")
}

#[tokio::test]
async fn a_user_and_a_field_take_the_place_of_what_the_client_sent() {
    // RFC 7617 s2.
    let user = chain("- upstream_auth: {basic: {username: Aladdin, password: open sesame}}");
    assert_eq!(shown(&user, forged()).await, "Basic QWxhZGRpbjpvcGVuIHNlc2FtZQ==");
    let field = chain("- upstream_auth: {header: {name: X-Api-Key, value: 'k 1'}}");
    let request = get("/").header("x-api-key", "a").header("x_api_key", "b").header("x-api-key", "c");
    let head = field.send(request).await.continues().attempt(1).await;
    let all: Vec<_> = head.headers.iter().map(|(name, value)| (name.as_str(), value.as_bytes())).collect();
    assert_eq!(all, [("x-api-key", &b"k 1"[..])]);
}

#[tokio::test]
async fn filters_below_still_see_what_the_client_sent() {
    let user = chain("- upstream_auth: {basic: {username: Aladdin, password: open sesame}}");
    let sent = user.send(get("/").header("authorization", "Bearer mine")).await.continues();
    sent.request_header("authorization", "Bearer mine");
}

#[tokio::test]
async fn a_trace_is_refused_before_any_secret_is_in_it() {
    // RFC 9110 s9.3.8 and s15.5.6.
    let user = "- upstream_auth: {basic: {username: a, password: b}}";
    let field = "- upstream_auth: {header: {name: x-api-key, value: k}}";
    for filters in [user, field, GRANT, AWS] {
        let answer = chain(filters).send(send("TRACE", "/")).await.responds(405);
        answer.header("allow", "GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS");
    }
}

#[tokio::test]
async fn a_token_is_asked_for_as_rfc_6749_says_and_used_until_before_its_end() {
    let (service, chain) = asking(GRANT);
    give(&service, "one", ", \"expires_in\": 100");
    for _ in 0..3 {
        assert_eq!(shown(&chain, forged()).await, "Bearer one");
    }
    let [asked] = &service.requests()[..] else { panic!("asked once") };
    assert_eq!(asked.head.method, "POST");
    assert_eq!(asked.head.headers["content-type"], "application/x-www-form-urlencoded");
    // RFC 6749 s2.3.1: each part is encoded as in forms before the two are joined.
    assert_eq!(asked.head.headers["authorization"], "Basic Zyt3OnMlMjZjcmV0");
    assert_eq!(asked.body, "grant_type=client_credentials&scope=a+b&audience=x+y");
    chain.clock.advance(Duration::from_millis(89_999));
    assert_eq!(shown(&chain, forged()).await, "Bearer one");
    chain.clock.advance(Duration::from_millis(1));
    give(&service, "two", "");
    assert_eq!(shown(&chain, forged()).await, "Bearer two");
    chain.clock.advance(Duration::from_secs(269));
    assert_eq!(shown(&chain, forged()).await, "Bearer two");
    chain.clock.advance(Duration::from_secs(1));
    give(&service, "three", ", \"expires_in\": \"3600\"");
    assert_eq!(shown(&chain, forged()).await, "Bearer three", "five minutes where nothing is said");
}

#[tokio::test]
async fn credentials_can_go_into_the_form() {
    let (service, chain) = asking(&GRANT.replace("scopes: [a, b]", "client_auth: post"));
    give(&service, "one", "");
    assert_eq!(shown(&chain, get("/")).await, "Bearer one");
    let [asked] = &service.requests()[..] else { panic!("asked once") };
    assert!(asked.head.headers.get("authorization").is_none());
    let form = "grant_type=client_credentials&audience=x+y&client_id=g+w&client_secret=s%26cret";
    assert_eq!(asked.body, form);
}

#[tokio::test]
async fn many_who_need_a_token_ask_once() {
    let (service, gate) = (Arc::new(ScriptedClient::new()), Arc::new(Semaphore::new(0)));
    let chain = chain_calling(Arc::new(Slow(service.clone(), gate.clone())), GRANT);
    give(&service, "one", "");
    let all = join_all((0..20).map(|_| shown(&chain, get("/"))));
    let (all, ()) = tokio::join!(all, async {
        tokio::task::yield_now().await;
        gate.add_permits(1);
    });
    assert!(all.iter().all(|shown| shown == "Bearer one"));
    assert_eq!(service.requests().len(), 1);
}

#[tokio::test]
async fn who_found_no_token_as_another_one_got_it_does_not_ask_again() {
    let service = Arc::new(ScriptedClient::new());
    let options = serde_json::from_value(serde_json::json!({
        "token_url": "https://id.example.com/token", "client_id": "gw", "client_secret": "s3cret",
    }));
    let options: super::ClientCredentials = options.expect("options");
    let client: Arc<dyn Client> = service.clone();
    let remote = Remote::new(&client, &options.token_url, None, Duration::from_secs(1));
    let grant = Grant::new(&options, remote, Arc::new(ManualClock::new()), &NoMetrics);
    give(&service, "one", "");
    // As those do who looked before there was one, and began after that was fetched.
    for _ in 0..2 {
        assert_eq!(grant.renew().await.map_err(drop).expect("a token").value, "Bearer one");
    }
    assert_eq!(service.requests().len(), 1);
}

#[tokio::test]
async fn who_gives_up_does_not_take_the_token_from_others() {
    let (service, gate) = (Arc::new(ScriptedClient::new()), Arc::new(Semaphore::new(0)));
    let chain = chain_calling(Arc::new(Slow(service.clone(), gate.clone())), GRANT);
    give(&service, "one", "");
    let mut first = Box::pin(shown(&chain, get("/")));
    assert!((&mut first).now_or_never().is_none());
    let mut second = Box::pin(shown(&chain, get("/")));
    assert!((&mut second).now_or_never().is_none());
    drop(first);
    gate.add_permits(1);
    assert_eq!(second.await, "Bearer one");
    assert_eq!(service.requests().len(), 1);
}

#[tokio::test]
async fn an_outage_is_503_unless_a_token_still_holds() {
    let (service, chain) = asking(GRANT);
    let unanswered = async || {
        let mut sent = chain.send(forged()).await.continues();
        sent.try_attempt(1).await.expect_err("no attempt").status()
    };
    service.fail(ClientError::Timeout);
    assert_eq!(unanswered().await, 503);
    assert_eq!(unanswered().await, 503);
    assert_eq!(service.requests().len(), 1, "nobody asks again at once");
    chain.clock.advance(Duration::from_secs(1));
    give(&service, "one", ", \"expires_in\": 100");
    assert_eq!(shown(&chain, forged()).await, "Bearer one");
    chain.clock.advance(Duration::from_secs(95));
    service.fail(ClientError::Timeout);
    assert_eq!(shown(&chain, forged()).await, "Bearer one", "it is to be renewed, and holds");
    assert_eq!(shown(&chain, forged()).await, "Bearer one");
    assert_eq!(service.requests().len(), 3);
    chain.clock.advance(Duration::from_secs(5));
    service.fail(ClientError::Timeout);
    assert_eq!(unanswered().await, 503);
}

#[tokio::test]
async fn a_401_of_the_upstream_leads_to_a_new_token_once() {
    let (service, chain) = asking(GRANT);
    let exchange = async |status: u16| {
        let mut sent = chain.send(get("/")).await.continues();
        let head = sent.attempt(1).await;
        sent.answered(status, &[]).await;
        head.headers["authorization"].to_str().expect("text").to_owned()
    };
    for token in ["one", "two", "three"] {
        give(&service, token, "");
    }
    for (status, expected) in [
        (200, "Bearer one"),
        (403, "Bearer one"),
        (401, "Bearer one"),
        // The new one is refused as well: asking again would not help.
        (401, "Bearer two"),
        (401, "Bearer two"),
    ] {
        assert_eq!(exchange(status).await, expected);
    }
    chain.clock.advance(Duration::from_secs(10));
    assert_eq!(exchange(401).await, "Bearer two");
    assert_eq!(exchange(200).await, "Bearer three");
}

#[tokio::test]
async fn an_answer_that_gives_no_usable_token_is_503_and_says_nothing_of_it() {
    for answer in [
        "{}",
        "[]",
        "{\"access_token\": \"hush\"}",
        "{\"access_token\": \"hush\", \"token_type\": \"mac\"}",
        "{\"access_token\": \"\", \"token_type\": \"Bearer\"}",
        "{\"access_token\": \"hush hush\", \"token_type\": \"Bearer\"}",
        "{\"access_token\": \"hush\\r\\nx: y\", \"token_type\": \"Bearer\"}",
        "{\"access_token\": \"hush\", \"token_type\": \"Bearer\", \"expires_in\": -1}",
        "{\"access_token\": \"hush\", \"token_type\": \"Bearer\", \"expires_in\": \"soon\"}",
        "{\"access_token\": 1, \"token_type\": \"Bearer\"}",
    ] {
        let (service, chain) = asking(GRANT);
        service.reply(200, &[], [answer.as_bytes()]);
        let mut sent = chain.send(get("/")).await.continues();
        assert_eq!(sent.try_attempt(1).await.expect_err("no attempt").status(), 503, "{answer}");
        let told = format!("{:?}", sent.ctx.decisions());
        assert!(!told.contains("hush") && told.contains("no token for the upstream"), "{told}");
    }
    for (status, told) in [(400, "400"), (302, "redirects are not followed")] {
        let (service, chain) = asking(GRANT);
        service.reply(status, &[], [&br#"{"error": "invalid_client"}"#[..]]);
        let mut sent = chain.send(get("/")).await.continues();
        sent.try_attempt(1).await.expect_err("no attempt");
        assert!(format!("{:?}", sent.ctx.decisions()).contains(told));
    }
}

#[tokio::test]
async fn where_there_is_no_network_a_stand_in_is_shown() {
    let mut sent = chain(GRANT).send(forged()).await.continues();
    assert_eq!(sent.attempt(1).await.headers["authorization"], "Bearer dry-run");
}

const AWS: &str = "- upstream_auth: {aws: {region: us-east-1, service: lambda, access_key_id: AKIDEXAMPLE, \
                   secret_access_key: wJalrXUtnFEMI, session_token: tok}}";

#[tokio::test]
async fn a_signature_covers_the_body_and_none_of_what_the_client_made_up() {
    let chain = chain(AWS);
    let request = |body: &'static [u8]| {
        let request = send("POST", "/a%20b?z=1&a=2").header("host", "f.lambda-url.us-east-1.on.aws");
        let request = request.header("content-type", "application/json").header("authorization", "AWS4 mine");
        let request = request.header("x-amz-date", "19700101T000000Z").header("x-amz-security-token", "mine");
        let request = request.header("x-amz-meta-a", "1");
        let chain = &chain;
        async move {
            let sent = chain.send(request).await.continues();
            assert_eq!(sent.wants_body(), Some(1 << 20));
            sent.with_body(body).await.continues().attempt(1).await
        }
    };
    let (one, other) = (request(b"{}").await, request(b"[]").await);
    let signed = one.headers["authorization"].to_str().expect("text");
    let start = "AWS4-HMAC-SHA256 Credential=AKIDEXAMPLE/20260101/us-east-1/lambda/aws4_request, \
                 SignedHeaders=content-type;host;x-amz-date;x-amz-meta-a;x-amz-security-token, Signature=";
    assert!(signed.starts_with(start), "{signed}");
    assert_ne!(signed, other.headers["authorization"], "another body is another signature");
    assert_eq!(one.headers["x-amz-date"], "20260101T000000Z");
    assert_eq!(one.headers["x-amz-security-token"], "tok");
    assert!(one.headers.get("x-amz-content-sha256").is_none());
}

/// The fields of AWS that the upstream gets of what a client made up.
async fn told_of_aws(filters: &str) -> Vec<String> {
    let request = send("PUT", "/b/k").header("host", "s3.amazonaws.com").header("x-amz-meta-color", "blue");
    let request = request.header("x-amz-copy-source", "/private/key").header("X-Amz-Acl", "public-read");
    let request = request.header("x_amz_acl", "public-read").header("x-amz-target", "theirs");
    let head = chain(filters).send(request).await.continues().attempt(1).await;
    let told = head.headers.iter().filter(|(name, _)| name.as_str().replace('_', "-").starts_with("x-amz-"));
    let told = told.filter(|(name, _)| !["x-amz-date", "x-amz-security-token"].contains(&name.as_str()));
    let mut told: Vec<String> =
        told.map(|(name, value)| format!("{name}: {}", value.to_str().expect("text"))).collect();
    told.sort_unstable();
    told
}

#[tokio::test]
async fn a_client_says_to_aws_only_what_it_is_let() {
    let named = AWS.replace("session_token: tok", "session_token: tok, client_fields: [X-Amz-Target]");
    let set = "- headers: {request: {set: {x-amz-target: ours}}}";
    assert_eq!(told_of_aws(AWS).await, ["x-amz-meta-color: blue"]);
    assert_eq!(told_of_aws(&named).await, ["x-amz-target: theirs"]);
    assert_eq!(told_of_aws(&format!("{set}\n{named}")).await, ["x-amz-target: ours"]);
    // What stands below it sets the field after the client's was removed, and before it signs.
    assert_eq!(told_of_aws(&format!("{AWS}\n{set}")).await, ["x-amz-meta-color: blue", "x-amz-target: ours"]);
    let all = AWS.replace("session_token: tok", "client_fields: ['x-amz-*']");
    let request = get("/").header("host", "a").header("x-amz-security-token", "mine");
    let head = chain(&all).send(request).await.continues().attempt(1).await;
    assert!(head.headers.get("x-amz-security-token").is_none(), "that is never a client's to send");
}

#[tokio::test]
async fn an_unsigned_body_is_not_waited_for_and_said_to_be_so() {
    let chain = chain(&AWS.replace("session_token: tok", "payload: unsigned").replace("lambda", "s3"));
    let mut sent =
        chain.send(send("PUT", "/bucket/a//b").header("host", "s3.amazonaws.com")).await.continues();
    assert_eq!(sent.wants_body(), None);
    let head = sent.attempt(1).await;
    assert_eq!(head.headers["x-amz-content-sha256"], "UNSIGNED-PAYLOAD");
    let signed = head.headers["authorization"].to_str().expect("text");
    assert!(signed.contains("SignedHeaders=host;x-amz-content-sha256;x-amz-date,"), "{signed}");
}

#[test]
fn options_that_cannot_work_are_refused_without_telling_secrets() {
    let grant = "token_url: 'https://a.test/', client_id: a, client_secret: s3cr";
    for (options, expected) in [
        ("", ": expected one of"),
        ("basic: {username: a, password: b}, header: {name: a, value: b}", ": expected one of"),
        ("basic: {username: 'a:b', password: s3cr}", "basic.username: expected a name"),
        ("basic: {username: a, password: \"s3cr\\n\"}", "basic.password: expected a text"),
        ("header: {name: host, value: s3cr}", "header.name: the field has a meaning"),
        ("header: {name: x-forwarded-for, value: s3cr}", "header.name: the field has a meaning"),
        ("header: {name: x-key, value: \"s3cr\\r\\n\"}", "header.value: expected what"),
        (
            "client_credentials: {token_url: 'http://a.test/', client_id: a, client_secret: s3cr}",
            "client_credentials.token_url: expected an https URL",
        ),
        (
            "client_credentials: {token_url: 'https://a.test/', client_id: '', client_secret: s3cr}",
            "client_credentials.client_id: expected who",
        ),
        (
            &format!("client_credentials: {{{grant}, upstream: mian}}"),
            "client_credentials.upstream: no upstream is named",
        ),
        (
            &format!("client_credentials: {{{grant}, parameters: {{scope: a}}}}"),
            "client_credentials.parameters: `scope` is written",
        ),
        (
            "aws: {region: '', service: s3, access_key_id: a, secret_access_key: s3cr}",
            "aws.region: expected letters",
        ),
        (
            "aws: {region: a/b, service: s3, access_key_id: a, secret_access_key: s3cr}",
            "aws.region: expected letters",
        ),
        (
            "aws: {region: a, service: s3, access_key_id: a, secret_access_key: s3cr, \
             client_fields: [x-amz-acl, x-api-key]}",
            "aws.client_fields[1]: expected a field such as",
        ),
    ] {
        let said = refused(&format!("- upstream_auth: {{{options}}}"));
        assert!(said.starts_with(expected) && !said.contains("s3cr"), "{options}: {said}");
    }
}
