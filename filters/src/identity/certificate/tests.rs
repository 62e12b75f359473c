//! Who is known by which certificate.

use std::time::Duration;

use super::*;
use crate::testing::{self, Chain, Request, Sent, chain_with, get, refused_with};

const DOCUMENT: &str = "
identities:
  machines: {type: mtls}
consumers:
  - {name: by-hash, credentials: [{type: mtls, id: c, fingerprint: 'sha256:AA:AA:AA:AA:AA:AA:AA:AA:AA:AA:AA:AA:AA:AA:AA:AA:AA:AA:AA:AA:AA:AA:AA:AA:AA:AA:AA:AA:AA:AA:AA:AA'}]}
  - {name: by-subject, credentials: [{type: mtls, id: c, subject: 'C=DE, CN=acme'}]}
  - {name: by-dns, credentials: [{type: mtls, id: c, dns: A.acme.test, expires: 2026-01-02}]}
  - {name: by-uri, credentials: [{type: mtls, id: c, uri: 'spiffe://acme/billing'}]}
  - {name: by-email, credentials: [{type: mtls, id: c, email: ops@acme.test, disabled: true}]}
";

fn certificate(subject: &str, byte: u8, names: Vec<AlternativeName>) -> ClientCertificate {
    ClientCertificate {
        names: names.into(),
        fingerprint: [byte; 32],
        // A day after the clock of tests begins.
        not_after: 1_767_225_600 + 24 * 3600,
        ..testing::certificate(subject)
    }
}

/// A request over a connection with this certificate.
fn showing(certificate: ClientCertificate) -> Request {
    get("/").showing(certificate)
}

fn chain(identity: &str) -> Chain {
    let document = DOCUMENT.replace("{type: mtls}", &format!("{{type: mtls{identity}}}"));
    chain_with(&document, "- authenticate: {any_of: [machines], forward: {x-serial: serial, x-dns: dns}}")
}

fn consumer(sent: &Sent) -> Option<&str> {
    sent.ctx.consumer.as_ref().map(|consumer| &*consumer.name)
}

fn dns(name: &str) -> Vec<AlternativeName> {
    vec![AlternativeName::Dns(name.into())]
}

#[tokio::test]
async fn a_certificate_is_known_by_its_hash_its_subject_and_its_names() {
    let chain = chain("");
    for (shown, name) in [
        (certificate("CN=x", 0xaa, vec![]), "by-hash"),
        (certificate("C=DE, CN=acme", 1, vec![]), "by-subject"),
        (certificate("CN=x", 1, dns("a.ACME.test")), "by-dns"),
        (certificate("", 1, vec![AlternativeName::Uri("spiffe://acme/billing".into())]), "by-uri"),
    ] {
        let mut sent = chain.send(showing(shown)).await.continues();
        assert_eq!(consumer(&sent), Some(name));
        let head = sent.attempt(1).await;
        assert_eq!(head.headers["x-serial"], "0a");
        assert_eq!(
            head.headers.get("x-dns").is_some_and(|value| value == "[\"a.ACME.test\"]"),
            name == "by-dns"
        );
    }
}

#[tokio::test]
async fn what_is_only_like_a_name_is_another() {
    let chain = chain("");
    let uri = |text: &str| vec![AlternativeName::Uri(text.into())];
    for shown in [
        certificate("CN=x", 0xab, vec![]),
        certificate("C=DE, CN=ACME", 1, vec![]),
        certificate("CN=acme", 1, vec![]),
        certificate("C=DE, CN=acme, CN=x", 1, vec![]),
        certificate("CN=x", 1, dns("b.a.acme.test")),
        certificate("CN=x", 1, dns("*.acme.test")),
        certificate("CN=x", 1, dns("a.acme.test\0.evil.test")),
        certificate("CN=x", 1, uri("a.acme.test")),
        certificate("CN=x", 1, uri("spiffe://acme/billing/")),
        certificate("uri:spiffe://acme/billing", 1, dns("spiffe://acme/billing")),
    ] {
        let sent = chain.send(showing(shown)).await;
        assert_eq!(sent.detail(), Some("no consumer has the certificate"));
        sent.responds(401).header("www-authenticate", "ClientCertificate realm=\"machines\"");
    }
}

#[tokio::test]
async fn without_a_certificate_and_behind_a_proxy_there_is_none() {
    let chain = chain("");
    chain.send(get("/")).await.responds(401);
    let shown = showing(certificate("C=DE, CN=acme", 1, vec![]));
    let sent = chain.send(shown.with(|ctx| ctx.client.through_trusted_proxy = true)).await;
    assert_eq!(sent.detail(), Some("no credentials were given"));
    sent.responds(401);
}

#[tokio::test]
async fn what_lapses_opens_nothing_also_where_any_certificate_would_do() {
    for identity in ["", ", any: true"] {
        let chain = chain(identity);
        let named = || certificate("CN=x", 1, dns("a.acme.test"));
        chain.send(showing(named())).await.continues();
        let mailbox = vec![AlternativeName::Email("ops@acme.test".into())];
        let sent = chain.send(showing(certificate("CN=x", 1, mailbox))).await;
        assert_eq!(sent.detail(), Some("the certificate is disabled"));
        chain.clock.advance(Duration::from_secs(24 * 3600));
        let sent = chain.send(showing(named())).await;
        assert_eq!(sent.detail(), Some("the certificate is no credential any more"));
        // The connection outlived the certificate.
        chain.clock.advance(Duration::from_secs(1));
        let sent = chain.send(showing(certificate("C=DE, CN=acme", 1, vec![]))).await;
        assert_eq!(sent.detail(), Some("the certificate has expired"));
        sent.responds(401);
    }
}

#[tokio::test]
async fn a_certificate_of_two_consumers_is_nobodys() {
    let shown = showing(certificate("C=DE, CN=acme", 0xaa, vec![]));
    let sent = chain("").send(shown).await;
    assert_eq!(sent.detail(), Some("the certificate is of several consumers"));
    sent.responds(401);
}

#[tokio::test]
async fn any_certificate_counts_where_that_is_said() {
    let chain = chain(", any: true");
    let sent = chain.send(showing(certificate("CN=stranger", 1, vec![]))).await.continues();
    assert_eq!(consumer(&sent), Some("machines:CN=stranger"));
    let sent = chain.send(showing(certificate("C=DE, CN=acme", 1, vec![]))).await.continues();
    assert_eq!(consumer(&sent), Some("by-subject"));
}

#[tokio::test]
async fn certificates_without_a_subject_are_each_a_caller_of_their_own() {
    let chain = chain(", any: true");
    let uri = |text: &str| AlternativeName::Uri(text.into());
    let host = |text: &str| AlternativeName::Dns(text.into());
    // SHA-256 in hexadecimal digits.
    let itself = format!("machines:fingerprint:{}", "01".repeat(32));
    for (names, name) in [
        // SPIFFE X.509-SVID s2: exactly one URI, and perhaps host names.
        (vec![uri("spiffe://acme/web")], "machines:uri:spiffe://acme/web"),
        (vec![uri("spiffe://acme/mail"), host("a.test"), host("b.test")], "machines:uri:spiffe://acme/mail"),
        (vec![host("A.test")], "machines:dns:a.test"),
        (vec![host("a.test"), host("b.test")], &*itself),
        (vec![], &*itself),
    ] {
        let sent = chain.send(showing(certificate("", 1, names))).await.continues();
        assert_eq!(consumer(&sent), Some(name));
        let claimed = sent.ctx.principal.as_ref().map(|principal| &principal.claims["sub"]);
        assert_eq!(claimed.and_then(Value::as_str), name.strip_prefix("machines:"));
    }
}

#[test]
fn credentials_that_make_no_sense_are_refused_at_their_place() {
    let hash = "sha256:ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
    for (credentials, told) in [
        ("{type: mtls, id: a}".to_owned(), "consumers[0].credentials[0]: a certificate is known by one of"),
        (
            "{type: mtls, id: a, dns: a, uri: b}".to_owned(),
            "consumers[0].credentials[0]: a certificate is known by one of",
        ),
        ("{type: mtls, id: a, dns: ''}".to_owned(), "consumers[0].credentials[0].dns: expected a text"),
        (
            "{type: mtls, id: a, fingerprint: 'sha256:AA'}".to_owned(),
            "consumers[0].credentials[0].fingerprint: expected SHA-256",
        ),
        (
            format!("{{type: mtls, id: a, hash: '{hash}'}}"),
            "consumers[0].credentials[0].hash: does not belong",
        ),
        (
            "{type: mtls, id: a, dns: a.b}, {type: mtls, id: b, dns: A.b}".to_owned(),
            "consumers[0].credentials[1].id: consumers[0].credentials[0] is known by the same",
        ),
    ] {
        let document = format!(
            "{{identities: {{m: {{type: mtls}}}}, consumers: [{{name: a, credentials: [{credentials}]}}]}}"
        );
        let error = refused_with(&document, "- request_id: {}");
        assert!(error.starts_with(told), "{credentials}: {error}");
    }
}

#[test]
fn a_fingerprint_is_read_with_and_without_colons() {
    let digits = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
    let read = |text: &str| Fingerprint::read(text);
    let plain = read(&format!("sha256:{digits}")).expect("a fingerprint");
    let pairs: Vec<&str> = (0..32).map(|at| &digits[2 * at..2 * at + 2]).collect();
    assert_eq!(read(&format!("sha256:{}", pairs.join(":").to_uppercase())), Some(plain));
    assert_eq!(plain.to_string(), format!("sha256:{digits}"));
    for text in [
        digits,
        "sha256:",
        "sha1:00",
        &format!("sha256:{digits}0"),
        &format!("sha256:{}", pairs.join("::")),
        "sha256:é",
    ] {
        assert_eq!(read(text), None, "{text}");
    }
}
