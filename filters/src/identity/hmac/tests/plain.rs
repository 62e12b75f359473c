//! The simple scheme in `Authorization`.

use super::{NOW, SECRET, chain, consumer, mac, made, told};
use crate::testing::Request;

/// The digest of "abc" (FIPS 180-4).
const ABC: &str = "ungWv48Bz+pBQUDeXa4iI7ADYaOWF3qctBD/YfIAFa0=";

/// The credentials for a request, made of the lines that are signed.
fn credentials(method: &str, target: &str, created: i64, nonce: &str, digest: &str) -> String {
    let base = format!("HMAC-SHA256\n{method}\na.test\n{target}\n{created}\n{nonce}\n{digest}");
    let part = |name: &str, value: &str| match value {
        "" => String::new(),
        value => format!("{name}=\"{value}\", "),
    };
    let (nonce, digest, signature) = (part("nonce", nonce), part("digest", digest), mac(SECRET, &base));
    format!("HMAC id=\"k1\", created=\"{created}\", {nonce}{digest}signature=\"{signature}\"")
}

fn get(created: i64, nonce: &str) -> Request {
    made("GET", "/a?b=1").header("authorization", &credentials("GET", "/a?b=1", created, nonce, ""))
}

#[tokio::test]
async fn a_request_signed_as_the_manual_says_holds() {
    let chain = chain("");
    let sent = chain.send(get(NOW, "")).await.continues();
    assert_eq!(consumer(&sent), Some("acme"));
    assert_eq!(sent.wants_body(), None);
    // As `openssl dgst -sha256 -hmac` makes it of the lines.
    let fixed = "HMAC id=k1, created=1767225600, signature=\"VALUE\"";
    let base = "HMAC-SHA256\nGET\na.test\n/a?b=1\n1767225600\n\n";
    let fixed = fixed.replace("VALUE", &mac(SECRET, base));
    chain.send(made("GET", "/a?b=1").header("authorization", &fixed)).await.continues();
}

#[tokio::test]
async fn the_version_that_was_taken_off_the_path_was_signed_too() {
    let chain = chain("");
    let versioned = |target: &str| {
        let value = credentials("GET", target, NOW, "", "");
        let request = made("GET", "/a?b=1").header("authorization", &value);
        request.with(|ctx| ctx.whole_path = Some("/v2/a".into()))
    };
    assert_eq!(told(&chain, versioned("/v2/a?b=1")).await, None);
    for other in ["/a?b=1", "/v1/a?b=1", "/v2/a"] {
        assert!(told(&chain, versioned(other)).await.is_some(), "{other}");
    }
}

#[tokio::test]
async fn none_holds_for_another_request_or_time() {
    let chain = chain("");
    let value = credentials("GET", "/a?b=1", NOW, "", "");
    let with = |request: Request| request.header("authorization", &value);
    for request in [
        with(made("HEAD", "/a?b=1")),
        with(made("GET", "/a?b=2")),
        with(made("GET", "/a")),
        with(made("GET", "/A?b=1")),
        with(made("GET", "/a?b=1")).head(|head| drop(head.insert_header("host", "b.test"))),
        with(made("GET", "/a?b=1")).head(|head| drop(head.insert_header("host", "a.test:8080"))),
        made("GET", "/a?b=1")
            .header("authorization", &value.replace("created=\"1767225600\"", "created=\"1767225601\"")),
        made("GET", "/a?b=1")
            .header("authorization", &value.replace("signature=", "nonce=\"n\", signature=")),
        made("GET", "/a?b=1")
            .header("authorization", &value.replace("signature=", &format!("digest=\"{ABC}\", signature="))),
    ] {
        assert_eq!(told(&chain, request).await.as_deref(), Some("the signature is wrong"));
    }
    assert_eq!(told(&chain, get(NOW - 331, "")).await.as_deref(), Some("the signature is too old"));
    assert_eq!(
        told(&chain, get(NOW + 31, "")).await.as_deref(),
        Some("the signature was made in the future")
    );
    assert_eq!(told(&chain, get(NOW, "n")).await, None);
    assert_eq!(told(&chain, get(NOW, "n")).await.as_deref(), Some("the nonce was used already"));
}

#[tokio::test]
async fn a_body_is_the_one_whose_digest_was_signed() {
    let chain = chain("");
    let post = |digest: &str| {
        let value = credentials("POST", "/a", NOW, "", digest);
        made("POST", "/a").header("content-length", "3").header("authorization", &value)
    };
    let mut sent = chain.send(post(ABC)).await.continues();
    assert_eq!(sent.wants_body(), Some(1 << 20));
    assert_eq!(sent.body_status(b"abc").await, None);
    assert_eq!(sent.body_status(b"abd").await, Some(401));
    assert_eq!(sent.body_status(b"").await, Some(401));
    let mut sent = chain.send(post("")).await.continues();
    assert_eq!(sent.body_status(b"abc").await, Some(401), "a body needs a digest");
}

#[tokio::test]
async fn schemes_can_be_left_out_and_two_signatures_are_ambiguous() {
    let only = chain(", schemes: [message_signature]");
    let answer = only.send(get(NOW, "")).await;
    answer.responds(401).header("www-authenticate", "Signature realm=\"signed\"");
    let only = chain(", schemes: [authorization]");
    let answer = only.send(super::at(NOW)).await;
    answer.responds(401).header("www-authenticate", "HMAC realm=\"signed\"");
    let chain = chain("");
    let both = super::at(NOW).header("authorization", &credentials("GET", "/a?b=1", NOW, "", ""));
    chain.send(both).await.responds(400);
    let value = credentials("GET", "/a?b=1", NOW, "", "");
    let twice = made("GET", "/a?b=1").header("authorization", &value).header("authorization", &value);
    chain.send(twice).await.responds(400);
}

#[tokio::test]
async fn malformed_credentials_are_wrong_and_never_none() {
    let chain = chain("");
    for value in [
        "HMAC",
        "HMAC id=k1",
        "hmac =",
        "HMAC\tid=k1",
        "HMAC id=k1, created=1767225600, signature=\"AA\"",
        "HMAC \u{e9}",
    ] {
        let sent = chain.send(made("GET", "/").header("authorization", value)).await;
        assert!(sent.detail().is_some_and(|told| told != "no credentials were given"), "{value}");
        sent.responds(401);
    }
}
