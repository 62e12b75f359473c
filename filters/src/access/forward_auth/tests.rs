//! What the service is asked, and what becomes of its answers.

mod bodies;
mod cached;
mod opa;

use std::sync::Arc;

use crate::host::host_of;
use crate::testing::{Chain, chain_calling, get, refused, send};
use crate::world::{ClientError, ScriptedClient, UpstreamId};

const FILTER: &str =
    "- forward_auth: {upstream: main, path: '/verify?a=1', response_headers: [x-user, authorization]}";

fn asking(filters: &str) -> (Arc<ScriptedClient>, Chain) {
    let service = Arc::new(ScriptedClient::new());
    (service.clone(), chain_calling(service, filters))
}

#[tokio::test]
async fn the_service_is_told_what_the_request_is_about_and_only_the_listed_fields() {
    let (service, chain) = asking(FILTER);
    service.reply(200, &[], []);
    let request = send("POST", "/orders/1?x=%2F")
        .header("authorization", "Bearer t")
        .header("cookie", "a=1")
        .header("cookie", "b=2")
        .header("x-secret", "s")
        .with(|ctx| ctx.host = Some("api.example.com".into()));
    chain.send(request).await.continues();
    let [asked] = &service.requests()[..] else { panic!("asked once") };
    assert_eq!((asked.upstream, asked.head.method.as_str(), asked.body.len()), (UpstreamId(0), "GET", 0));
    assert_eq!(asked.head.uri.path_and_query().map(|target| target.as_str()), Some("/verify?a=1"));
    let mut fields: Vec<_> = asked
        .head
        .headers
        .iter()
        .map(|(name, value)| (name.as_str().to_owned(), value.to_str().expect("text").to_owned()))
        .collect();
    fields.sort();
    let expected = [
        ("authorization", "Bearer t"),
        ("cookie", "a=1"),
        ("cookie", "b=2"),
        ("x-forwarded-for", "192.0.2.1"),
        ("x-forwarded-host", "api.example.com"),
        ("x-forwarded-method", "POST"),
        ("x-forwarded-proto", "http"),
        ("x-forwarded-uri", "/orders/1?x=%2F"),
    ];
    assert_eq!(fields, expected.map(|(name, value)| (name.to_owned(), value.to_owned())));
}

#[tokio::test]
async fn the_service_is_told_the_address_that_the_client_wrote() {
    let (service, chain) = asking(FILTER);
    for (host, whole_path, expected) in [
        ("API.example.com:8443", None, ["api.example.com:8443", "/orders?x=1"]),
        ("[2001:db8::1]", None, ["[2001:db8::1]", "/orders?x=1"]),
        ("[2001:db8::1]:8080", Some("/v2/orders"), ["[2001:db8::1]:8080", "/v2/orders?x=1"]),
    ] {
        service.reply(200, &[], []);
        let request = get("/orders?x=1").header("host", host).with(|ctx| {
            ctx.host = host_of(host).map(|host| Box::from(&*host));
            ctx.whole_path = whole_path.map(Box::from);
        });
        chain.send(request).await.continues();
        let asked = service.requests().pop().expect("asked");
        let told = ["x-forwarded-host", "x-forwarded-uri"].map(|name| &asked.head.headers[name]);
        assert_eq!(told, expected, "{host}");
    }
}

#[tokio::test]
async fn the_upstream_is_told_what_the_service_says_and_never_what_the_client_says() {
    let (service, chain) = asking(FILTER);
    service.reply(204, &[("x-user", "alice"), ("x-user", "admin"), ("x-other", "1")], []);
    service.reply(200, &[], []);
    for expected in [vec!["alice", "admin"], vec![]] {
        let request = get("/").header("x-user", "root").header("authorization", "Basic cm9vdA==");
        let attempt = chain.send(request).await.continues().attempt(1).await;
        let told: Vec<_> =
            attempt.headers.get_all("x-user").iter().map(|value| value.to_str().expect("text")).collect();
        assert_eq!(told, expected);
        assert!(attempt.headers.get("authorization").is_none() && attempt.headers.get("x-other").is_none());
    }
}

#[tokio::test]
async fn a_refusal_goes_to_the_client() {
    let (service, chain) = asking(FILTER);
    let fields = [
        ("location", "https://sso.example.com/"),
        ("set-cookie", "a=1"),
        ("set-cookie", "b=2"),
        ("x-debug", "1"),
    ];
    service.reply(302, &fields, []);
    let answer = chain.send(get("/")).await.responds(302);
    let answer = answer.header("location", "https://sso.example.com/").header("set-cookie", "a=1, b=2");
    answer.no_header("x-debug");
    service.reply(401, &[("www-authenticate", "Bearer"), ("content-type", "text/plain")], [&b"no"[..], b"!"]);
    let answer = chain.send(get("/")).await.responds(401).header("www-authenticate", "Bearer");
    answer.header("content-type", "text/plain").body("no!");
}

#[tokio::test]
async fn the_body_of_a_refusal_is_bounded() {
    let (service, chain) = asking("- forward_auth: {upstream: main, max_body: 3B}");
    service.reply(403, &[("content-type", "text/plain")], [&b"four"[..]]);
    chain.send(get("/")).await.responds(403).no_header("content-type").body("");
}

#[tokio::test]
async fn a_service_that_does_not_decide_lets_nothing_pass() {
    let (service, chain) = asking(FILTER);
    for failure in [ClientError::Timeout, ClientError::Connect("refused".into())] {
        service.fail(failure);
        chain.send(get("/")).await.responds(503);
    }
    for status in [500, 503, 101] {
        service.reply(status, &[], []);
        chain.send(get("/")).await.responds(503);
    }
}

#[tokio::test]
async fn what_may_pass_without_a_decision_takes_no_field_of_the_client_along() {
    let (service, chain) = asking(&format!("{FILTER}\n  on_error: continue\n  fail_open: true"));
    service.fail(ClientError::Timeout);
    let mut sent = chain.send(get("/").header("x-user", "root")).await.continues();
    assert!(sent.attempt(1).await.headers.get("x-user").is_none());
}

#[tokio::test]
async fn a_url_is_asked_at_its_own_path_and_named_as_host() {
    let (service, chain) = asking(
        "- forward_auth: {url: 'https://sso.example.com:8443/verify?a=1', about: [uri], method: HEAD}",
    );
    service.reply(200, &[], []);
    chain.send(get("/a")).await.continues();
    let [asked] = &service.requests()[..] else { panic!("asked once") };
    let [origin] = &service.origins()[..] else { panic!("one origin") };
    assert_eq!((&*origin.host, origin.port, origin.tls), ("sso.example.com", 8443, true));
    assert_eq!(asked.head.method, "HEAD");
    assert_eq!(asked.head.uri.path_and_query().map(|target| target.as_str()), Some("/verify?a=1"));
    let fields: Vec<_> = asked.head.headers.iter().map(|(name, value)| (name.as_str(), value)).collect();
    assert_eq!(
        fields,
        [("host", &"sso.example.com:8443".parse().unwrap()), ("x-forwarded-uri", &"/a".parse().unwrap())]
    );
}

#[tokio::test]
async fn a_path_is_filled_in_and_cannot_be_left_by_a_client() {
    let (service, chain) = asking(
        "- forward_auth: {upstream: main, path: '/verify/${query.tenant}/${request.method}?path=${header.x-p}'}",
    );
    for (tenant, expected) in [
        ("acme", Some("/verify/acme/GET?path=a%2Fb%26c%3D1")),
        ("a%2Fb", None),
        ("..", None),
        ("%2e%2E", None),
        ("a%3Fb%23c", Some("/verify/a%3Fb%23c/GET?path=a%2Fb%26c%3D1")),
    ] {
        service.reply(200, &[], []);
        let before = service.requests().len();
        let sent = chain.send(get(&format!("/?tenant={tenant}")).header("x-p", "a/b&c=1")).await;
        let asked = service.requests();
        match expected {
            Some(expected) => {
                sent.continues();
                let target = asked[before].head.uri.path_and_query().map(|target| target.as_str());
                assert_eq!(target, Some(expected), "{tenant}");
            }
            None => {
                sent.responds(400);
                assert_eq!(asked.len(), before, "{tenant}");
            }
        }
    }
}

#[tokio::test]
async fn a_client_is_told_the_listed_fields_of_either_answer() {
    let (service, chain) = asking(
        "- forward_auth: {upstream: main, refusal_headers: [x-why], client_headers: [set-cookie, x-session]}",
    );
    service.reply(403, &[("x-why", "no"), ("location", "/a")], []);
    chain.send(get("/")).await.responds(403).header("x-why", "no").no_header("location");
    service.reply(200, &[("set-cookie", "s=2"), ("x-session", "new"), ("x-why", "no")], []);
    let mut sent = chain.send(get("/")).await.continues();
    let answer = sent.answered(200, &[("set-cookie", "a=1"), ("x-session", "old")]).await;
    answer.header("set-cookie", "a=1, s=2").header("x-session", "new").no_header("x-why");
}

#[test]
fn options_that_cannot_work_are_refused() {
    for (options, expected) in [
        ("path: /verify", ": whom to ask is missing"),
        ("upstream: main, url: 'https://a.test/'", "url: is there beside `upstream`"),
        ("url: 'http://a.test/'", "url: expected an https URL"),
        ("url: 'https://a.test/a', path: /b", "path: `url` has a path already"),
        ("upstream: main, path: '${route}'", "path: expected a path"),
        ("upstream: main, path: '/${rout}'", "path: unknown variable"),
        ("upstream: main, method: CONNECT", "method: CONNECT asks for a tunnel"),
        ("upstream: main, method: GET, body: 1KiB", "method: has no `body`"),
        ("upstream: main, method: PUT, format: opa", "method: does not belong"),
        ("upstream: main, about: [uri], format: opa", "about: does not belong"),
        ("upstream: main, client_headers: [content-length]", "client_headers[0]: the gateway writes"),
        ("upstream: main, refusal_headers: [connection]", "refusal_headers[0]: the gateway writes"),
        ("upstream: main, cache: {}", "cache: missing"),
        ("upstream: mian", "upstream: no upstream is named `mian`"),
        ("upstream: main, path: verify", "path: expected a path such as `/verify`"),
        ("upstream: main, request_headers: [x-a, x-forwarded-uri]", "request_headers[1]: the gateway writes"),
        ("upstream: main, request_headers: [connection]", "request_headers[0]: the gateway writes"),
        ("upstream: main, response_headers: [x-a, cookie]", "response_headers[1]: the field has a meaning"),
        (
            "upstream: main, response_headers: [x-forwarded-for]",
            "response_headers[0]: the field has a meaning",
        ),
    ] {
        let said = refused(&format!("- forward_auth: {{{options}}}"));
        assert!(said.starts_with(expected), "{options}: {said}");
    }
}
