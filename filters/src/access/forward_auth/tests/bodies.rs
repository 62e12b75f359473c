//! Services that are sent bodies.

use super::asking;
use crate::testing::{Request, get, send};
use crate::world::ClientError;

const FILTER: &str = "- forward_auth: {upstream: main, body: 1KiB, response_headers: [x-user]}";

fn post(length: &str) -> Request {
    send("POST", "/orders").header("content-length", length).header("content-type", "application/json")
}

#[tokio::test]
async fn the_service_gets_the_body_with_its_type_and_decides_then() {
    let (service, chain) = asking(FILTER);
    let sent = chain.send(post("5")).await.continues();
    assert_eq!((sent.wants_body(), service.requests().len()), (Some(1024), 0));
    service.reply(200, &[("x-user", "alice")], []);
    let mut sent = sent.with_body(b"hello").await.continues();
    let [asked] = &service.requests()[..] else { panic!("asked once") };
    assert_eq!((asked.head.method.as_str(), &asked.body[..]), ("POST", &b"hello"[..]));
    assert_eq!(asked.head.headers["content-type"], "application/json");
    assert_eq!(sent.attempt(1).await.headers["x-user"], "alice");
    service.reply(403, &[], [&b"no"[..]]);
    chain.send(post("5")).await.continues().with_body(b"hello").await.responds(403).body("no");
}

#[tokio::test]
async fn who_has_no_body_is_asked_about_at_once() {
    let (service, chain) = asking(FILTER);
    for request in [get("/"), post("0")] {
        service.reply(403, &[], []);
        chain.send(request).await.responds(403);
    }
    service.reply(200, &[], []);
    chain.send(get("/")).await.continues().with_body(b"").await.continues();
    assert_eq!(service.requests().len(), 3, "and not once more when the body is there");
    // RFC 9113 s8.1: over HTTP/2 only the end of the stream says whether there is one.
    let over_http2 = || get("/").head(|head| head.set_version(http::Version::HTTP_2));
    service.reply(403, &[], []);
    chain.send(over_http2()).await.responds(403);
    let sent = chain.send(over_http2().with(|ctx| ctx.goes_on = true)).await.continues();
    service.reply(403, &[], []);
    sent.with_body(b"").await.responds(403);
}

#[tokio::test]
async fn nothing_is_answered_before_it_decided_but_problems() {
    let (_, chain) = asking(&format!("{FILTER}\n- respond: {{status: 200, body: secret}}"));
    let sent = chain.send(post("5")).await;
    let result = std::panic::AssertUnwindSafe(async { sent.responds(200) });
    let refused = futures_util::FutureExt::catch_unwind(result).await;
    assert!(refused.is_err(), "the response phase fails, which the core answers by 502");
    let (_, chain) = asking(&format!("{FILTER}\n- rate_limit: {{per: ip, limit: 1/min}}"));
    let mut sent = chain.send(post("5")).await.continues();
    chain.send(post("5")).await.responds(429);
    // gRPC over HTTP/2, Responses: of a call, a problem begins with 200.
    sent.answered(200, &[("grpc-status", "14")]).await.header("grpc-status", "14");
}

#[tokio::test]
async fn a_service_that_fails_lets_a_body_pass_only_if_that_is_written() {
    let (service, chain) = asking(FILTER);
    service.fail(ClientError::Timeout);
    chain.send(post("5")).await.continues().with_body(b"hello").await.responds(503);
    let (service, chain) = asking(&format!("{FILTER}\n  on_error: continue\n  fail_open: true"));
    service.fail(ClientError::Timeout);
    let mut sent =
        chain.send(post("5").header("x-user", "root")).await.continues().with_body(b"a").await.continues();
    assert!(sent.attempt(1).await.headers.get("x-user").is_none());
    sent.answered(200, &[]).await;
}
