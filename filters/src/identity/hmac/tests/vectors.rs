//! The examples of RFC 9421, with its keys.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use sfv::{Dictionary, ListEntry, Parser};

use super::super::component::{Component, Message};
use super::super::{SignatureAlgorithm, SigningKey};
use super::consumer;
use crate::context::Scheme;
use crate::testing::{Request, chain_with, send};

/// The keys of B.1.
const KEYS: &str = include_str!("rfc9421.yaml");
const DIGEST: &str =
    "sha-512=:WZDPaVn/7XgHaAy8pmojAkGWoRx2UFChF41A2svX+TaPm+AbwAgBWnrIiYllu7BNNyealdVLvRwEmTHWXvJwew==:";
const BODY: &str = "{\"hello\": \"world\"}";

/// `Signature-Input` and `Signature` of B.2; B.2.4 is of an answer.
const SIGNED: [(&str, &str); 5] = [
    // B.2.1
    (
        r#"sig-b21=();created=1618884473;keyid="test-key-rsa-pss";nonce="b3k2pp5k7z-50gnwp.yemd""#,
        "sig-b21=:d2pmTvmbncD3xQm8E9ZV2828BjQWGgiwAaw5bAkgibUopemLJcWDy/lkbbHAve4cRAtx31Iq786U7it++wgGxbtRxf8Udx7zFZsckzXaJMkA7ChG52eSkFxykJeNqsrWH5S+oxNFlD4dzVuwe8DhTSja8xxbR/Z2cOGdCbzR72rgFWhzx2VjBqJzsPLMIQKhO4DGezXehhWwE56YCE+O6c0mKZsfxVrogUvA4HELjVKWmAvtl6UnCh8jYzuVG5WSb/QEVPnP5TmcAnLH1g+s++v6d4s8m0gCw1fV5/SITLq9mhho8K3+7EPYTU8IU1bLhdxO5Nyt8C8ssinQ98Xw9Q==:",
    ),
    // B.2.2
    (
        r#"sig-b22=("@authority" "content-digest" "@query-param";name="Pet");created=1618884473;keyid="test-key-rsa-pss";tag="header-example""#,
        "sig-b22=:LjbtqUbfmvjj5C5kr1Ugj4PmLYvx9wVjZvD9GsTT4F7GrcQEdJzgI9qHxICagShLRiLMlAJjtq6N4CDfKtjvuJyE5qH7KT8UCMkSowOB4+ECxCmT8rtAmj/0PIXxi0A0nxKyB09RNrCQibbUjsLS/2YyFYXEu4TRJQzRw1rLEuEfY17SARYhpTlaqwZVtR8NV7+4UKkjqpcAoFqWFQh62s7Cl+H2fjBSpqfZUJcsIk4N6wiKYd4je2U/lankenQ99PZfB4jY3I5rSV2DSBVkSFsURIjYErOs0tFTQosMTAoxk//0RoKUqiYY8Bh0aaUEb0rQl3/XaVe4bXTugEjHSw==:",
    ),
    // B.2.3
    (
        r#"sig-b23=("date" "@method" "@path" "@query" "@authority" "content-type" "content-digest" "content-length");created=1618884473;keyid="test-key-rsa-pss""#,
        "sig-b23=:bbN8oArOxYoyylQQUU6QYwrTuaxLwjAC9fbY2F6SVWvh0yBiMIRGOnMYwZ/5MR6fb0Kh1rIRASVxFkeGt683+qRpRRU5p2voTp768ZrCUb38K0fUxN0O0iC59DzYx8DFll5GmydPxSmme9v6ULbMFkl+V5B1TP/yPViV7KsLNmvKiLJH1pFkh/aYA2HXXZzNBXmIkoQoLd7YfW91kE9o/CCoC1xMy7JA1ipwvKvfrs65ldmlu9bpG6A9BmzhuzF8Eim5f8ui9eH8LZH896+QIF61ka39VBrohr9iyMUJpvRX2Zbhl5ZJzSRxpJyoEZAFL2FUo5fTIztsDZKEgM4cUA==:",
    ),
    // B.2.5
    (
        r#"sig-b25=("date" "@authority" "content-type");created=1618884473;keyid="test-shared-secret""#,
        "sig-b25=:pxcQw6G3AjtMBQjwo8XzkZf/bws5LelbaMk5rGIGtE8=:",
    ),
    // B.2.6
    (
        r#"sig-b26=("date" "@method" "@path" "@authority" "content-type" "content-length");created=1618884473;keyid="test-key-ed25519""#,
        "sig-b26=:wqcAqbmYJ2ji2glfAMaRy4gruYYnx2nEFN2HN6jrnDnQCK1u02Gb04v9EDgwUPiu4A0w6vuQv5lIp5WPpBKRCw==:",
    ),
];

/// The request of B.2.
fn of_b_2(input: &str, signature: &str) -> Request {
    send("POST", "/foo?param=Value&Pet=dog")
        .header("host", "example.com")
        .header("date", "Tue, 20 Apr 2021 02:07:55 GMT")
        .header("content-type", "application/json")
        .header("content-digest", DIGEST)
        .header("content-length", "18")
        .header("signature-input", input)
        .header("signature", signature)
}

fn chain() -> crate::testing::Chain {
    chain_with(KEYS, "- authenticate: {any_of: [signed]}")
}

#[tokio::test]
async fn the_signed_requests_of_b_2_hold() {
    for (input, signature) in SIGNED {
        let mut sent = chain().send(of_b_2(input, signature)).await.continues();
        let key = consumer(&sent).expect("known").to_owned();
        assert!(input.contains(&format!("keyid=\"{key}\"")), "{input}");
        if input.contains("content-digest") {
            assert_eq!(sent.wants_body(), Some(1 << 20), "{input}");
            assert_eq!(sent.body_status(BODY.as_bytes()).await, None);
            assert_eq!(sent.body_status(b"{\"hello\": \"World\"}").await, Some(401));
        } else {
            assert_eq!(sent.wants_body(), None, "{input}");
        }
    }
}

#[tokio::test]
async fn none_of_them_holds_for_another_request() {
    for (input, signature) in SIGNED {
        let chain = chain();
        let other = |name: &'static str, value: &'static str| {
            of_b_2(input, signature).head(|head| drop(head.insert_header(name, value)))
        };
        let covers = |name: &str| input.contains(&format!("\"{name}\""));
        for (component, request) in [
            ("date", other("date", "Tue, 20 Apr 2021 02:07:56 GMT")),
            ("content-type", other("content-type", "application/json; charset=utf-8")),
            ("content-digest", other("content-digest", "sha-512=:AAAA:")),
            ("content-length", other("content-length", "19")),
            ("@authority", other("host", "example.org")),
            ("@method", of_b_2(input, signature).head(|head| head.set_method(http::Method::PUT))),
            (
                "@path",
                of_b_2(input, signature)
                    .head(|head| head.set_uri("/Foo?param=Value&Pet=dog".parse().expect("valid"))),
            ),
            (
                "@query",
                of_b_2(input, signature)
                    .head(|head| head.set_uri("/foo?Pet=dog&param=Value".parse().expect("valid"))),
            ),
            (
                "@query-param",
                of_b_2(input, signature)
                    .head(|head| head.set_uri("/foo?param=Value&Pet=cat".parse().expect("valid"))),
            ),
        ] {
            let sent = chain.send(request).await;
            if covers(component) || (component == "@query-param" && covers("@query")) {
                assert_eq!(sent.detail(), Some("the signature is wrong"), "{component} of {input}");
                sent.responds(401);
            } else if !input.contains("nonce") {
                sent.continues();
            }
        }
        let other_key = input.replace("test-key-ed25519", "test-shared-secret").replace("rsa-pss", "ed25519");
        let changed =
            if other_key == input { input.replace("test-shared-secret", "test-key-rsa") } else { other_key };
        let sent = chain.send(of_b_2(&changed, signature)).await;
        assert_eq!(sent.detail(), Some("the signature is wrong"), "{changed}");
    }
}

#[tokio::test]
async fn the_nonce_of_b_2_1_is_good_for_one_request() {
    let (chain, (input, signature)) = (chain(), SIGNED[0]);
    chain.send(of_b_2(input, signature)).await.continues();
    let again = of_b_2(input, signature).with(|ctx| ctx.request_id = crate::context::RequestId::Made(2));
    let sent = chain.send(again).await;
    assert_eq!(sent.detail(), Some("the nonce was used already"));
    sent.responds(401);
}

#[tokio::test]
async fn the_signature_of_a_proxy_that_ends_tls_holds() {
    // B.3
    let certificate = concat!(
        ":MIIBqDCCAU6gAwIBAgIBBzAKBggqhkjOPQQDAjA6MRswGQYDVQQKDBJMZXQncyBBdXRoZW50aWNhdGUxGzAZBgNVBAMMEkxBIEludGVy",
        "bWVkaWF0ZSBDQTAeFw0yMDAxMTQyMjU1MzNaFw0yMTAxMjMyMjU1MzNaMA0xCzAJBgNVBAMMAkJDMFkwEwYHKoZIzj0CAQYIKoZIzj0DAQcDQg",
        "AE8YnXXfaUgmnMtOXU/IncWalRhebrXmckC8vdgJ1p5Be5F/3YC8OthxM4+k1M6aEAEFcGzkJiNy6J84y7uzo9M6NyMHAwCQYDVR0TBAIwADAf",
        "BgNVHSMEGDAWgBRm3WjLa38lbEYCuiCPct0ZaSED2DAOBgNVHQ8BAf8EBAMCBsAwEwYDVR0lBAwwCgYIKwYBBQUHAwIwHQYDVR0RAQH/BBMwEYEP",
        "YmRjQGV4YW1wbGUuY29tMAoGCCqGSM49BAMCA0gAMEUCIBHda/r1vaL6G3VliL4/Di6YK0Q6bMjeSkC3dFCOOB8TAiEAx/kHSB4urmiZ0NX5r5Xa",
        "rmPk0wmuydBVoU4hBVZ1yhk=:",
    );
    let signed = |method| {
        send(method, "/foo?param=Value&Pet=dog")
            .header("host", "service.internal.example")
            .header("client-cert", certificate)
            .header("signature-input", r#"ttrp=("@path" "@query" "@method" "@authority" "client-cert");created=1618884473;keyid="test-key-ecc-p256""#)
            .header("signature", "ttrp=:xVMHVpawaAC/0SbHrKRs9i8I3eOs5RtTMGCWXm/9nvZzoHsIg6Mce9315T6xoklyy0yzhD9ah4JHRwMLOgmizw==:")
    };
    let sent = chain().send(signed("POST")).await.continues();
    assert_eq!(consumer(&sent), Some("test-key-ecc-p256"));
    chain().send(signed("GET")).await.responds(401);
}

#[tokio::test]
async fn a_signature_over_another_signature_holds() {
    // s4.3: what a proxy signs of the client's signature and of its own `Forwarded`.
    let client = "sig1=:LAH8BjcfcOcLojiuOBFWn0P5keD3xAOuJRGziCLuD8r5MW9S0RoXXLzLSRfGY/3SF8kVIkHjE13SEFdTo4Af/fJ/Pu9wheqoLVdwXyY/UkBIS1M8Brc8IODsn5DFIrG0IrburbLi0uCc+E2ZIIb6HbUJ+o+jP58JelMTe0QE3IpWINTEzpxjqDf5/Df+InHCAkQCTuKsamjWXUpyOT1Wkxi7YPVNOjW4MfNuTZ9HdbD2Tr65+BXeTG9ZS/9SWuXAc+BZ8WyPz0QRz//ec3uWXd7bYYODSjRAxHqX+S1ag3LZElYyUKaAIjZ8MGOt4gXEwCSLDv/zqxZeWLj/PDkn6w==:";
    let proxy = "proxy_sig=:ExHrNxgtUCrDoUrHIOxVIZkTf8XOzg9dhFtvN27X40o8Bn+cUTHT618rqj0omkTCgaWyy1/w2Jh35yLyP8pu4XpAP3IfER5rDqaGLA1yF2Y8+5XHJFdMzouQGUo7EItKMQT3YhgUGA/qjje6EAbtGoYM/fVgB40mlx8QPztZH3mw/3qEt9zdWpjCUWJ/ClNPM/gmTfWGztT2TbF3v0/z4UfD+AexgK3fTfHlehx6M6zQvBvIWsg9l0OkHxWqGxXSnLziEi2LDEweXQG6Xgj29sqFH5rAsJVZWhXS77CthSvHaRbNFSybcVw/SCHD1Kvw9q6feJquj08pezf5tmoL2g==:";
    let input = concat!(
        r#"sig1=("@method");created=1618884475;keyid="of-somebody-else", "#,
        r#"proxy_sig=("signature";key="sig1" "forwarded");created=1618884480;expires=2145809960;keyid="test-key-rsa";"#,
        r#"alg="rsa-v1_5-sha256""#,
    );
    let signed = |forwarded| {
        let made = send("POST", "/foo?param=Value&Pet=dog").header("host", "origin.host.internal.example");
        let made = made.header("forwarded", forwarded).header("signature-input", input);
        made.header("signature", &format!("{client}, {proxy}"))
    };
    let sent = chain().send(signed("for=192.0.2.123")).await.continues();
    assert_eq!(consumer(&sent), Some("test-key-rsa"));
    chain().send(signed("for=192.0.2.124")).await.responds(401);
}

#[test]
fn the_signature_of_b_2_4_holds() {
    let pem = "-----BEGIN PUBLIC KEY-----\n\
               MFkwEwYHKoZIzj0CAQYIKoZIzj0DAQcDQgAEqIVYZVLCrPZHGHjP17CTW0/+D9Lf\n\
               w0EkjqF7xB4FivAxzic30tMM4GF+hR6Dxh71Z50VGGdldkkDXZCnTNnoXQ==\n\
               -----END PUBLIC KEY-----\n";
    let key = SigningKey::new(Some(SignatureAlgorithm::EcdsaP256Sha256), None, Some(pem)).expect("a key");
    let base = concat!(
        "\"@status\": 200\n\"content-type\": application/json\n\"content-digest\": sha-512=:mEWXIS7MaLRuGgxOBdODa3xqM1XdEvxoYhvlCFJ41QJgJc4GTsPp29l5oGX69wWdXymyU0rjJuahq4l5aGgfLQ==:\n",
        "\"content-length\": 23\n\"@signature-params\": (\"@status\" \"content-type\" \"content-digest\" \"content-length\");created=1618884473;keyid=\"test-key-ecc-p256\"",
    );
    let signature =
        "wNmSUAhwb5LxtOtOpNa6W5xj067m5hFrj0XQ4fvpaCLx0NKocgPquLgyahnzDnDAUy5eCdlYUEkLIj+32oiasw==";
    let mut signature = STANDARD.decode(signature).expect("base64");
    assert!(key.verifies(base.as_bytes(), &signature));
    assert!(!key.verifies(&base.as_bytes()[1..], &signature));
    signature[63] ^= 1;
    assert!(!key.verifies(base.as_bytes(), &signature));
    // CVE-2022-21449: r and s of zero.
    assert!(!key.verifies(base.as_bytes(), &[0; 64]) && !key.verifies(base.as_bytes(), &[]));
}

/// The value of a component in a request, as its base has it.
fn value(made: Request, component: &str) -> Option<String> {
    let mut input: Dictionary = Parser::new(&format!("s=({component})")).parse().expect("a dictionary");
    let Some(ListEntry::InnerList(mut list)) = input.swap_remove("s") else { panic!("no list") };
    let component = Component::read(list.items.remove(0)).ok()?;
    let (head, ctx) = made.into_parts();
    let value = component.value(Message { request: &head, ctx: &ctx }).ok()?;
    Some(String::from_utf8(value).expect("text"))
}

#[test]
fn values_of_fields_are_those_of_s2_1() {
    let made = || {
        send("GET", "/")
            .header("host", "www.example.com")
            .header("x-ows-header", "  Leading and trailing whitespace.  ")
            .header("cache-control", "max-age=60")
            .header("cache-control", "   must-revalidate")
            .header("example-dict", " a=1,    b=2;x=1;y=2,   c=(a   b   c), d")
            .header("want-content-digest", "sha-512=3,   sha-256=10")
            .header("example-header", "value, with, lots")
            .header("example-header", "of, commas")
            .header("x-empty-header", "")
    };
    for (component, expected) in [
        (r#""host""#, Some("www.example.com")),
        (r#""x-ows-header""#, Some("Leading and trailing whitespace.")),
        (r#""cache-control""#, Some("max-age=60, must-revalidate")),
        (r#""example-dict""#, Some("a=1,    b=2;x=1;y=2,   c=(a   b   c), d")),
        (r#""x-empty-header""#, Some("")),
        // s2.1.1
        (r#""want-content-digest";sf"#, Some("sha-512=3, sha-256=10")),
        // s2.1.2
        (r#""example-dict";key="a""#, Some("1")),
        (r#""example-dict";key="d""#, Some("?1")),
        (r#""example-dict";key="b""#, Some("2;x=1;y=2")),
        (r#""example-dict";key="c""#, Some("(a b c)")),
        // s2.1.3
        (r#""example-header";bs"#, Some(":dmFsdWUsIHdpdGgsIGxvdHM=:, :b2YsIGNvbW1hcw==:")),
        (r#""example-header""#, Some("value, with, lots, of, commas")),
        (r#""example-dict";key="e""#, None),
        (r#""x-other""#, None),
        (r#""Host""#, None),
        (r#""host";tr"#, None),
        (r#""host";req"#, None),
        (r#""host";bs;sf"#, None),
        (r#""host";bs=?0"#, None),
        (r#""host";key=1"#, None),
        (r#""x-ows-header";sf"#, None),
        ("host", None),
    ] {
        assert_eq!(value(made(), component).as_deref(), expected, "{component}");
    }
}

#[test]
fn derived_components_are_those_of_s2_2() {
    let made = |target: &str| {
        let made = send("POST", target).header("host", "WWW.example.com:443");
        made.with(|ctx| ctx.scheme = Scheme::Https)
    };
    for (component, target, expected) in [
        (r#""@method""#, "/path?param=value", Some("POST")),
        (r#""@target-uri""#, "/path?param=value", Some("https://www.example.com/path?param=value")),
        (r#""@authority""#, "/path?param=value", Some("www.example.com")),
        (r#""@scheme""#, "/path?param=value", Some("https")),
        (r#""@request-target""#, "/path?param=value", Some("/path?param=value")),
        (r#""@path""#, "/path?param=value", Some("/path")),
        (
            r#""@query""#,
            "/path?param=value&foo=bar&baz=bat%2Dman",
            Some("?param=value&foo=bar&baz=bat%2Dman"),
        ),
        (r#""@query""#, "/path?queryString", Some("?queryString")),
        (r#""@query""#, "/path", Some("?")),
        (r#""@query-param";name="baz""#, "/path?param=value&foo=bar&baz=batman&qux=", Some("batman")),
        (r#""@query-param";name="qux""#, "/path?param=value&foo=bar&baz=batman&qux=", Some("")),
        (
            r#""@query-param";name="var""#,
            "/p?var=this%20is%20a%20big%0Amultiline%20value",
            Some("this%20is%20a%20big%0Amultiline%20value"),
        ),
        (r#""@query-param";name="bar""#, "/p?bar=with+plus+whitespace", Some("with%20plus%20whitespace")),
        (
            r#""@query-param";name="fa%C3%A7ade%22%3A%20""#,
            "/p?fa%C3%A7ade%22%3A%20=something",
            Some("something"),
        ),
        // Twice is once too often (s2.2.8), and another spelling of the name would be the same value again.
        (r#""@query-param";name="a""#, "/p?a=1&a=2", None),
        (r#""@query-param";name="%61""#, "/p?a=1", None),
        (r#""@query-param""#, "/p?a=1", None),
        (r#""@status""#, "/p", None),
        (r#""@signature-params""#, "/p", None),
        (r#""@method";req"#, "/p", None),
        (r#""@unknown""#, "/p", None),
    ] {
        assert_eq!(value(made(target), component).as_deref(), expected, "{component} of {target}");
    }
}
