//! Signed requests: what holds, and all that does not.

mod nonces;
mod plain;
mod vectors;

use std::time::Duration;

use aws_lc_rs::hmac;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;

use crate::context::RequestId;
use crate::testing::{Chain, Request, Sent, chain_with, refused_with, send};

const SECRET: &str = "a secret of thirty-two bytes, or so";
/// When the clock of tests begins.
const NOW: i64 = 1_767_225_600;

fn document(identity: &str) -> String {
    format!(
        "
identities:
  signed: {{type: hmac{identity}}}
  keys: {{type: api_key, from: [header:x-api-key]}}
consumers:
  - name: acme
    credentials:
      - {{type: hmac, id: k1, secret: '{SECRET}'}}
      - {{type: hmac, id: k2, key_id: second, secret: 'another secret of thirty-two bytes', expires: 2026-01-02}}
      - {{type: hmac, id: k3, secret: 'yet another one of thirty-two bytes', disabled: true}}
      - {{type: api_key, id: a, hash: 'sha256:9b346041bc9a49574eb2665b2ad2a0a3f9f9cce4e42f5d1f26deb8a256b5966a'}}
"
    )
}

fn chain(identity: &str) -> Chain {
    chain_with(&document(identity), "- authenticate: {any_of: [signed]}")
}

fn consumer(sent: &Sent) -> Option<&str> {
    sent.ctx.consumer.as_ref().map(|consumer| &*consumer.name)
}

/// HMAC-SHA256 in base64.
fn mac(secret: &str, base: &str) -> String {
    let key = hmac::Key::new(hmac::HMAC_SHA256, secret.as_bytes());
    STANDARD.encode(hmac::sign(&key, base.as_bytes()))
}

/// A made-up request, unlike any other in what it is called.
fn made(method: &str, target: &str) -> Request {
    use std::sync::atomic::{AtomicU32, Ordering};
    static COUNT: AtomicU32 = AtomicU32::new(0);
    let count = COUNT.fetch_add(1, Ordering::Relaxed);
    send(method, target).header("host", "a.test").with(|ctx| ctx.request_id = RequestId::Made(count.into()))
}

/// GET /a?b=1 with these parameters of its signature; all of it is covered.
fn signed(params: &str) -> Request {
    let input = format!("(\"@method\" \"@authority\" \"@path\" \"@query\"){params}");
    let base = format!(
        "\"@method\": GET\n\"@authority\": a.test\n\"@path\": /a\n\"@query\": ?b=1\n\"@signature-params\": {input}"
    );
    let signature = mac(SECRET, &base);
    let made = made("GET", "/a?b=1").header("signature-input", &format!("sig={input}"));
    made.header("signature", &format!("sig=:{signature}:"))
}

fn at(created: i64) -> Request {
    signed(&format!(";created={created};keyid=\"k1\""))
}

async fn told(chain: &Chain, request: Request) -> Option<String> {
    let sent = chain.send(request).await;
    let told = sent.detail().map(str::to_owned);
    match told {
        Some(_) => drop(sent.responds(401)),
        None => drop(sent.continues()),
    }
    told
}

#[tokio::test]
async fn a_signed_request_says_who_calls_and_what_to_do_without_one() {
    let chain = chain("");
    let sent = chain.send(at(NOW)).await.continues();
    assert_eq!(consumer(&sent), Some("acme"));
    assert_eq!(sent.wants_body(), None, "it has no body");
    let sent = chain.send(made("GET", "/")).await;
    sent.responds(401).header("www-authenticate", "Signature realm=\"signed\", HMAC realm=\"signed\"");
}

#[tokio::test]
async fn signatures_hold_within_their_window_and_clocks_may_differ_a_little() {
    let chain = chain(", window: 60s, skew: 10s");
    assert_eq!(told(&chain, at(NOW + 10)).await, None);
    assert_eq!(told(&chain, at(NOW + 11)).await.as_deref(), Some("the signature was made in the future"));
    assert_eq!(told(&chain, at(NOW - 70)).await, None);
    assert_eq!(told(&chain, at(NOW - 71)).await.as_deref(), Some("the signature is too old"));
    // The same one again, when its time is over.
    assert_eq!(told(&chain, at(NOW)).await, None);
    chain.clock.advance(Duration::from_secs(70));
    assert_eq!(told(&chain, at(NOW)).await, None);
    chain.clock.advance(Duration::from_secs(1));
    assert_eq!(told(&chain, at(NOW)).await.as_deref(), Some("the signature is too old"));
    for created in [i64::from(i32::MIN), -999_999_999_999_999, 999_999_999_999_999] {
        assert!(told(&chain, at(created)).await.is_some(), "{created}");
    }
}

#[tokio::test]
async fn a_signature_ends_when_it_says_so() {
    let chain = chain(", skew: 0s");
    let until = |expires: i64| signed(&format!(";created={NOW};expires={expires};keyid=\"k1\""));
    assert_eq!(told(&chain, until(NOW)).await, None);
    assert_eq!(told(&chain, until(NOW - 1)).await.as_deref(), Some("the signature has expired"));
}

#[tokio::test]
async fn keys_end_and_say_so_to_who_has_them() {
    let chain = chain("");
    let by = |key: &str, secret: &str| {
        let input = format!("(\"@target-uri\" \"@method\");created={NOW};keyid=\"{key}\"");
        let base =
            format!("\"@target-uri\": http://a.test/\n\"@method\": GET\n\"@signature-params\": {input}");
        let request = made("GET", "/").header("signature-input", &format!("s={input}"));
        request.header("signature", &format!("s=:{}:", mac(secret, &base)))
    };
    let second = "another secret of thirty-two bytes";
    assert_eq!(told(&chain, by("second", second)).await, None);
    assert_eq!(
        told(&chain, by("k2", second)).await.as_deref(),
        Some("the key of the signature is not known")
    );
    assert_eq!(told(&chain, by("second", SECRET)).await.as_deref(), Some("the signature is wrong"));
    let third = "yet another one of thirty-two bytes";
    assert_eq!(told(&chain, by("k3", third)).await.as_deref(), Some("the key is disabled"));
    assert_eq!(told(&chain, by("k3", second)).await.as_deref(), Some("the signature is wrong"));
    let chain = chain_with(&document(", window: 7d"), "- authenticate: {any_of: [signed]}");
    chain.clock.advance(Duration::from_secs(24 * 3600));
    assert_eq!(told(&chain, by("second", second)).await.as_deref(), Some("the key has expired"));
}

#[tokio::test]
async fn a_signature_says_all_that_it_has_to() {
    let chain = chain("");
    for (params, expected) in [
        (";keyid=\"k1\"".to_owned(), "the signature does not say when it was made"),
        (format!(";created={NOW}"), "the signature names no key"),
        (
            format!(";created=\"{NOW}\";keyid=\"k1\""),
            "the fields Signature-Input and Signature are malformed",
        ),
        (format!(";created={NOW}.0;keyid=\"k1\""), "the fields Signature-Input and Signature are malformed"),
        (format!(";created={NOW};keyid=k1"), "the fields Signature-Input and Signature are malformed"),
        (
            format!(";created={NOW};keyid=\"k1\";alg=\"rsa-v1_5-sha256\""),
            "the signature is of another algorithm than the key",
        ),
        (
            format!(";created={NOW};keyid=\"k1\";alg=\"none\""),
            "the signature is of another algorithm than the key",
        ),
        // Of a parameter that stands twice the last one counts (RFC 9651 s4.2.3.2), and is what has to be signed.
        (format!(";created={NOW};keyid=\"k1\";keyid=\"k2\""), "the key of the signature is not known"),
        (format!(";created={NOW};keyid=\"k2\";keyid=\"k1\""), "the signature is wrong"),
    ] {
        assert_eq!(told(&chain, signed(&params)).await.as_deref(), Some(expected), "{params}");
    }
    assert_eq!(told(&chain, signed(&format!(";created={NOW};keyid=\"k1\";alg=\"hmac-sha256\""))).await, None);
}

/// A request whose signature covers these components, with the lines of its base.
fn covering(components: &str, lines: &str, request: Request) -> Request {
    let input = format!("({components});created={NOW};keyid=\"k1\"");
    let base = format!("{lines}\"@signature-params\": {input}");
    let request = request.header("signature-input", &format!("sig={input}"));
    request.header("signature", &format!("sig=:{}:", mac(SECRET, &base)))
}

#[tokio::test]
async fn what_has_to_be_covered_may_be_covered_as_a_part_of_more() {
    let chain = chain("");
    let get = || made("GET", "/a?b=1");
    for (components, lines, holds) in [
        ("\"@method\" \"@target-uri\"", "\"@method\": GET\n\"@target-uri\": http://a.test/a?b=1\n", true),
        (
            "\"@method\" \"@authority\" \"@request-target\"",
            "\"@method\": GET\n\"@authority\": a.test\n\"@request-target\": /a?b=1\n",
            true,
        ),
        (
            "\"@authority\" \"@path\" \"@query\"",
            "\"@authority\": a.test\n\"@path\": /a\n\"@query\": ?b=1\n",
            false,
        ),
        (
            "\"@method\" \"@authority\" \"@path\"",
            "\"@method\": GET\n\"@authority\": a.test\n\"@path\": /a\n",
            false,
        ),
        ("\"@method\" \"@request-target\"", "\"@method\": GET\n\"@request-target\": /a?b=1\n", false),
        (
            "\"@method\" \"@authority\" \"@path\" \"@query-param\";name=\"b\"",
            "\"@method\": GET\n\"@authority\": a.test\n\"@path\": /a\n\"@query-param\";name=\"b\": 1\n",
            false,
        ),
        ("", "", false),
    ] {
        let expected = (!holds).then_some("the signature does not cover all it has to");
        assert_eq!(
            told(&chain, covering(components, lines, get())).await.as_deref(),
            expected,
            "{components}"
        );
    }
    // The same component twice (RFC 9421 s2).
    let twice = covering(
        "\"@method\" \"@method\" \"@target-uri\"",
        "\"@method\": GET\n\"@method\": GET\n\"@target-uri\": http://a.test/a?b=1\n",
        get(),
    );
    assert_eq!(
        told(&chain, twice).await.as_deref(),
        Some("the fields Signature-Input and Signature are malformed")
    );
}

#[tokio::test]
async fn a_field_that_is_covered_is_there_and_has_no_second_line() {
    let chain = chain(", components: ['@method', '@target-uri', x-tenant]");
    let with = |request: Request| {
        let lines = "\"@method\": GET\n\"@target-uri\": http://a.test/a\n\"x-tenant\": acme\n";
        covering("\"@method\" \"@target-uri\" \"x-tenant\"", lines, request)
    };
    assert_eq!(told(&chain, with(made("GET", "/a").header("x-tenant", "acme"))).await, None);
    for request in [
        made("GET", "/a").header("x-tenant", "globex"),
        made("GET", "/a").header("x-tenant", "acme").header("x-tenant", "globex"),
        made("GET", "/a").header("x-tenant", "globex").header("x-tenant", "acme"),
    ] {
        assert_eq!(told(&chain, with(request)).await.as_deref(), Some("the signature is wrong"));
    }
    let absent = told(&chain, with(made("GET", "/a"))).await;
    assert_eq!(absent.as_deref(), Some("the signature covers a field that is not there"));
    let lines = "\"@method\": GET\n\"@target-uri\": http://a.test/a\n";
    let without =
        covering("\"@method\" \"@target-uri\"", lines, made("GET", "/a").header("x-tenant", "acme"));
    assert_eq!(told(&chain, without).await.as_deref(), Some("the signature does not cover all it has to"));
}

#[tokio::test]
async fn a_body_is_covered_or_there_is_none() {
    let lines = "\"@method\": POST\n\"@target-uri\": http://a.test/a\n";
    let without =
        || covering("\"@method\" \"@target-uri\"", lines, made("POST", "/a").header("content-length", "3"));
    let mut sent = chain("").send(without()).await.continues();
    assert_eq!(sent.wants_body(), Some(1 << 20));
    assert_eq!(sent.body_status(b"abc").await, Some(401));
    assert_eq!(sent.body_status(b"").await, None);
    let sent = chain(", body: if_covered").send(without()).await.continues();
    assert_eq!(sent.wants_body(), None);
    // FIPS 180-4: SHA-256 of "abc".
    let digest = "sha-256=:ungWv48Bz+pBQUDeXa4iI7ADYaOWF3qctBD/YfIAFa0=:";
    let with = || {
        let lines = format!("{lines}\"content-digest\": {digest}\n");
        let made = made("POST", "/a").header("content-length", "3").header("content-digest", digest);
        covering("\"@method\" \"@target-uri\" \"content-digest\"", &lines, made)
    };
    for body in [", body: if_covered", ", max_body: 2KiB"] {
        let mut sent = chain(body).send(with()).await.continues();
        assert_eq!(sent.wants_body(), Some(if body.contains("max_body") { 2048 } else { 1 << 20 }));
        assert_eq!(sent.body_status(b"abc").await, None);
        assert_eq!(sent.body_status(b"abd").await, Some(401));
        assert_eq!(sent.detail(), None);
    }
}

#[tokio::test]
async fn fields_that_do_not_belong_together_are_malformed() {
    let chain = chain("");
    let input = format!("sig=(\"@method\");created={NOW};keyid=\"k1\"");
    let many = (0..5)
        .map(|at| format!("s{at}=(\"@method\");created={NOW};keyid=\"k1\""))
        .collect::<Vec<_>>()
        .join(", ");
    let their = (0..5).map(|at| format!("s{at}=:AAAA:")).collect::<Vec<_>>().join(", ");
    let long = format!("sig=({}\"@method\");created={NOW};keyid=\"k1\"", "\"@path\" ".repeat(64));
    for (input, signature) in [
        (Some(&*input), None),
        (None, Some("sig=:AAAA:")),
        (Some(&*input), Some("other=:AAAA:")),
        (Some(&*input), Some("sig=:AAAA:, other=:AAAA:")),
        (Some(&*input), Some("sig=AAAA")),
        (Some(&*input), Some("sig=(:AAAA:)")),
        (Some(&*input), Some("sig=:A*A:")),
        (Some("sig=\"@method\""), Some("sig=:AAAA:")),
        (Some("sig=(1 2)"), Some("sig=:AAAA:")),
        (Some("sig=(\"@method\""), Some("sig=:AAAA:")),
        (Some(""), Some("")),
        (Some(&*many), Some(&*their)),
        (Some(&*long), Some("sig=:AAAA:")),
        (Some("sig=(\"\u{e9}\")"), Some("sig=:AAAA:")),
    ] {
        let mut request = made("GET", "/");
        request = if let Some(input) = input { request.header("signature-input", input) } else { request };
        request =
            if let Some(signature) = signature { request.header("signature", signature) } else { request };
        let sent = chain.send(request).await;
        assert!(sent.detail().is_some(), "{input:?} {signature:?}");
        sent.responds(401);
    }
}

#[tokio::test]
async fn signatures_of_other_tags_are_for_somebody_else() {
    let chain = chain(", tag: gateway");
    let tagged = |tag: &str| signed(&format!(";created={NOW};keyid=\"k1\";tag=\"{tag}\""));
    assert_eq!(told(&chain, tagged("gateway")).await, None);
    for request in [tagged("other"), at(NOW)] {
        assert_eq!(told(&chain, request).await.as_deref(), Some("no credentials were given"));
    }
}

#[tokio::test]
async fn what_nobody_verified_does_not_go_on() {
    let chain = chain_with(&document(""), "- authenticate: {any_of: [keys, signed]}");
    let forged = at(NOW - 10_000).header("authorization", "HMAC id=k1").header("x-api-key", "key-one");
    let head = chain.send(forged).await.continues().attempt(1).await;
    assert!(
        ["signature", "signature-input", "authorization"]
            .iter()
            .all(|name| !head.headers.contains_key(*name))
    );
    let head = chain.send(at(NOW).header("authorization", "Other x")).await.continues().attempt(1).await;
    assert!(head.headers.contains_key("signature") && head.headers["authorization"] == "Other x");
}

#[test]
fn options_and_credentials_that_make_no_sense_are_refused_at_their_place() {
    let pem = "-----BEGIN PUBLIC KEY-----\\nMCowBQYDK2VwAyEAJrQLj5P/89iXES9+vFgrIy29clF9CC/oPPsw3c5D0bs=\\n-----END PUBLIC KEY-----\\n";
    let good = format!(", secret: '{SECRET}'");
    for (identity, credential, told) in [
        (", schemes: []", good.clone(), "identities.h.schemes: no signature could ever be found"),
        (
            ", components: ['@status']",
            good.clone(),
            "identities.h.components[0]: expected the name of a field",
        ),
        (", components: [Host]", good.clone(), "identities.h.components[0]: expected the name of a field"),
        (", window: 0s", good.clone(), "identities.h.window: "),
        ("", String::new(), "consumers[0].credentials[0]: a credential of type `hmac` needs one of"),
        (
            "",
            format!("{good}, public_key: \"{pem}\""),
            "consumers[0].credentials[0]: a credential of type `hmac` needs one of",
        ),
        ("", ", secret: hunter2".to_owned(), "consumers[0].credentials[0].secret: needs at least 32 bytes"),
        (
            "",
            ", secret: 'base64:aHVudGVyMg=='".to_owned(),
            "consumers[0].credentials[0].secret: needs at least 32 bytes",
        ),
        ("", ", secret: 'base64:hunter2*'".to_owned(), "consumers[0].credentials[0].secret: is not base64"),
        (
            "",
            format!("{good}, algorithm: ed25519"),
            "consumers[0].credentials[0].secret: `ed25519` needs a `public_key`",
        ),
        ("", format!(", public_key: \"{pem}\""), "consumers[0].credentials[0].algorithm: say which one"),
        (
            "",
            format!(", algorithm: rsa-pss-sha512, public_key: \"{pem}\""),
            "consumers[0].credentials[0].public_key: is no key for",
        ),
        (
            "",
            ", algorithm: ed25519, public_key: hunter2".to_owned(),
            "consumers[0].credentials[0].public_key: ",
        ),
        ("", format!("{good}, key_id: ''"), "consumers[0].credentials[0].key_id: expected a text"),
        ("", format!("{good}, username: a"), "consumers[0].credentials[0].username: does not belong"),
    ] {
        let document = format!(
            "{{identities: {{h: {{type: hmac{identity}}}}}, \
             consumers: [{{name: a, credentials: [{{type: hmac, id: a{credential}}}]}}]}}"
        );
        let error = refused_with(&document, "- request_id: {}");
        assert!(error.starts_with(told), "{identity}{credential}: {error}");
        assert!(!error.contains("hunter2") && !error.contains(SECRET), "{error}");
    }
}
