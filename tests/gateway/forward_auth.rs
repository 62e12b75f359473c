//! Services that decide, over sockets: a real nginx as for its own `auth_request`, and one that answers as the
//! documentation of OPA's REST API says.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use http::Request;
use parking_lot::Mutex;
use serde_json::{Value, json};

use crate::harness::{Gateway, H2c, Head, Nginx, Origin, Wire, get, refusing, request};

/// Lets `Bearer good` pass as alice, sends others to the login, and is not there for those who are unlucky.
const SSO: &str = "location = /verify {
    add_header X-User alice always;
    add_header X-Seen $http_x_forwarded_for|$http_x_forwarded_host|$http_x_forwarded_uri|$http_x_forwarded_method always;
    if ($http_authorization = 'Bearer good') { return 204; }
    if ($http_authorization = 'Bearer unlucky') { return 500; }
    add_header WWW-Authenticate 'Bearer realm=sso' always;
    return 401 'who are you?';
}";

fn document(service: SocketAddr, origin: &Origin, filter: &str) -> String {
    format!(
        "upstreams:
- {{name: origin, backends: [{{address: \"{}\"}}]}}
- {{name: sso, backends: [{{address: \"{service}\"}}]}}
routes:
- {{name: open, match: {{paths: [/open]}}, upstream: origin}}
- name: closed
  match: {{paths: [/*]}}
  upstream: origin
  filters:
{filter}",
        origin.address
    )
}

const FILTER: &str =
    "  - forward_auth: {upstream: sso, path: /verify, response_headers: [x-user, x-seen, authorization]}\n";

#[tokio::test]
async fn nginx_decides_and_names_who_calls_over_either_protocol() {
    let (nginx, origin) = (Nginx::with(&[], "", SSO).await, Origin::echo().await);
    let gateway = Gateway::start(&document(nginx.address, &origin, FILTER)).await;
    let forged = "X-User: root\r\nX_User: root\r\nX-Forwarded-For: 10.0.0.1\r\nX-Forwarded-Host: evil.test\r\n\
                  X-Forwarded-Uri: /open\r\nX-Forwarded-Method: OPTIONS\r\nConnection: x-user\r\n";
    for fields in [String::new(), format!("{forged}Authorization: Bearer bad\r\n")] {
        let answer = request(gateway.address(), "GET /a", &fields).await;
        assert_eq!((answer.status, answer.text().as_str()), (401, "who are you?"));
        assert_eq!(answer.field("www-authenticate"), Some("Bearer realm=sso"));
        assert_eq!((answer.field("x-user"), answer.field("server")), (None, None));
    }
    assert_eq!(H2c::connect(gateway.address()).await.get("/a").await.status, 401);
    assert_eq!(origin.connections(), 0);

    let fields = format!("{forged}Authorization: Bearer good\r\n");
    assert_eq!(request(gateway.address(), "POST /a?b=1", &fields).await.status, 200);
    let head = origin.head();
    assert_eq!((head.all("x-user"), head.all("x_user")), (vec!["alice"], vec![]));
    assert_eq!(head.field("x-seen"), Some("127.0.0.1|example.test|/a?b=1|POST"));
    assert_eq!(head.field("authorization"), None, "the service said nothing of it");

    assert_eq!(request(gateway.address(), "GET /open", forged).await.status, 200);
    let head = origin.heads().pop().expect("a head");
    assert_eq!((head.all("x-user"), head.all("x_user"), head.all("x-seen")), (vec![], vec![], vec![]));
    let line = gateway.log_line(|line| line["status"] == 401).await;
    assert_eq!(line["denied_by"], "forward_auth");
}

#[tokio::test]
async fn a_service_that_fails_or_is_gone_is_503_unless_it_is_written_otherwise() {
    let (nginx, origin) = (Nginx::with(&[], "", SSO).await, Origin::echo().await);
    let gateway = Gateway::start(&document(nginx.address, &origin, FILTER)).await;
    let open = format!("{FILTER}    on_error: continue\n    fail_open: true\n");
    let open = Gateway::start(&document(nginx.address, &origin, &open)).await;
    let unlucky = "Authorization: Bearer unlucky\r\nX-User: root\r\n";
    let answer = request(gateway.address(), "GET /a", unlucky).await;
    assert_eq!((answer.status, answer.problem().as_str()), (503, "filter-unavailable"));
    assert_eq!(request(open.address(), "GET /a", unlucky).await.status, 200);
    drop(nginx);
    assert_eq!(get(gateway.address(), "/a").await.status, 503);
    assert_eq!(request(open.address(), "GET /a", unlucky).await.status, 200);
    assert!(origin.heads().iter().all(|head| head.all("x-user").is_empty()), "nobody said who it is");
    assert_eq!(origin.heads().len(), 2);
}

#[tokio::test]
async fn a_service_that_takes_too_long_is_503() {
    let ((service, _events), origin) = (Origin::silent().await, Origin::echo().await);
    let filter = format!("  - forward_auth: {{url: \"http://{}/verify\", timeout: 50ms}}\n", service.address);
    let gateway = Gateway::start(&document(refusing().await, &origin, &filter)).await;
    let answer = get(gateway.address(), "/a").await;
    assert_eq!((answer.status, origin.connections()), (503, 0));
    assert!(answer.field("retry-after").is_some());
}

#[tokio::test]
async fn a_service_that_decides_sees_no_cookies_of_logins() {
    let (service, origin) = (Origin::echo().await, Origin::echo().await);
    let identities = "identities:
  web: {type: oidc, issuer: \"https://id.test\", client_id: web, redirect_uri: \"https://app.test/callback\",
    cookie_keys: [\"a key of thirty-two bytes or more, of cookies\"]}
";
    let filter = "  - forward_auth: {upstream: sso}\n";
    let gateway =
        Gateway::start(&format!("{identities}{}", document(service.address, &origin, filter))).await;
    let logins = "__Host-web=1.AAAA; __Host-web.1=BBBB; __Host-web.login0=CCCC";
    for (cookies, told) in [(format!("a=1; {logins}; b=2"), Some("a=1; b=2")), (logins.to_owned(), None)] {
        let answer = request(gateway.address(), "GET /a", &format!("Cookie: {cookies}\r\n")).await;
        assert_eq!(answer.status, 200);
        assert_eq!(service.heads().pop().expect("a head").field("cookie"), told);
    }
}

/// A service that answers by the question; the questions are kept.
async fn deciding(
    decide: impl Fn(&Head, &[u8]) -> String + Send + Sync + 'static,
) -> (Origin, Arc<Mutex<Vec<Vec<u8>>>>) {
    let asked = Arc::<Mutex<Vec<Vec<u8>>>>::default();
    let (seen, decide) = (asked.clone(), Arc::new(decide));
    let service = Origin::new(move |mut wire: Wire| {
        let (seen, decide) = (seen.clone(), decide.clone());
        async move {
            while let Ok(head) = wire.head().await {
                let Ok(body) = wire.body(&head).await else { return };
                wire.send(decide(&head, &body)).await;
                seen.lock().push(body);
            }
        }
    });
    (service.await, asked)
}

fn answer(status: u16, body: &str) -> String {
    format!("HTTP/1.1 {status} \r\nContent-Length: {}\r\n\r\n{body}", body.len())
}

#[tokio::test]
async fn what_was_decided_is_remembered_and_the_connection_kept() {
    let (service, asked) = deciding(|head, _| {
        answer(if head.field("authorization") == Some("good") { 200 } else { 403 }, "decided")
    })
    .await;
    let origin = Origin::echo().await;
    let filter = "  - forward_auth: {upstream: sso, about: [], cache: {ttl: 1h, negative_ttl: 1h}}\n";
    let gateway = Gateway::start(&document(service.address, &origin, filter)).await;
    for _ in 0..3 {
        assert_eq!(request(gateway.address(), "GET /a", "Authorization: good\r\n").await.status, 200);
        let refused = request(gateway.address(), "GET /a", "Authorization: bad\r\n").await;
        assert_eq!((refused.status, refused.text().as_str()), (403, "decided"));
    }
    assert_eq!((asked.lock().len(), service.connections()), (2, 1));
    assert_eq!(request(gateway.address(), "GET /a", "Authorization: goo\r\n").await.status, 403);
    assert_eq!(asked.lock().len(), 3);
}

#[tokio::test]
async fn the_body_is_sent_up_to_a_limit_and_reaches_the_upstream_whole() {
    let (service, asked) = deciding(|head, body| {
        assert_eq!(head.line, "POST /check HTTP/1.1");
        answer(if body == b"please" { 200 } else { 403 }, "")
    })
    .await;
    let origin = Origin::giving_back().await;
    let filter = "  - forward_auth: {upstream: sso, path: /check, body: 10B}\n";
    let gateway = Gateway::start(&document(service.address, &origin, filter)).await;
    let ways = |body: &str| {
        let length = body.len();
        [
            format!("Content-Length: {length}\r\n\r\n{body}"),
            format!("Transfer-Encoding: chunked\r\n\r\n{length:x}\r\n{body}\r\n0\r\n\r\n"),
        ]
    };
    for (body, status) in [("please", 200), ("now", 403), ("more than enough", 413)] {
        for way in ways(body) {
            let mut wire = Wire::connect(gateway.address()).await;
            wire.send(format!("POST /a HTTP/1.1\r\nHost: a\r\n{way}")).await;
            let answer = wire.answer().await.expect("an answer");
            assert_eq!(answer.status, status, "{body}");
            assert!(status != 200 || answer.text() == body);
        }
        let h2 = H2c::connect(gateway.address()).await;
        let request = Request::post("http://example.test/a").body(()).expect("valid");
        assert_eq!(h2.send(request, body.as_bytes()).await.expect("an answer").status, status, "{body}");
    }
    assert_eq!(asked.lock().len(), 6, "what is too large is not sent");
    assert_eq!(H2c::connect(gateway.address()).await.get("/a").await.status, 403, "asked without a body");
    assert_eq!(get(gateway.address(), "/a").await.status, 403);
    assert_eq!(asked.lock().len(), 8);
}

#[tokio::test]
async fn what_has_no_body_over_http2_is_decided_before_anything_answers() {
    let (service, asked) = deciding(|_, _| answer(200, "")).await;
    let origin = Origin::echo().await;
    let filters = "  - forward_auth: {upstream: sso, body: 64KiB}\n  - cache: {ttl: 1h}\n";
    let here = "- {name: here, match: {paths: [/here]}, respond: {body: hello}, \
                filters: [forward_auth: {upstream: sso, body: 64KiB}]}\n";
    let gateway = Gateway::start(&format!("{}{here}", document(service.address, &origin, filters))).await;
    let h2 = H2c::connect(gateway.address()).await;
    let here = h2.get("/here").await;
    assert_eq!((here.status, here.text().as_str()), (200, "hello"));
    for _ in 0..2 {
        assert_eq!(h2.get("/a").await.status, 200);
    }
    assert_eq!((asked.lock().len(), origin.heads().len()), (3, 1), "each is asked about, and one is sent on");
}

/// The policy of OPA's HTTP API tutorial, in the words of this test: people may read their own salary, and that of
/// whom they manage.
fn salaries(head: &Head, body: &[u8]) -> String {
    assert_eq!(head.line, "POST /v1/data/httpapi/authz HTTP/1.1");
    assert_eq!(head.field("content-type"), Some("application/json"));
    let question: Value = serde_json::from_slice(body).expect("JSON");
    let request = &question["input"]["request"];
    let user = request["headers"]["x-user"].as_str().unwrap_or_default();
    let managed = |name: &str| user == "bob" && name == "alice";
    let allow = request["method"] == "GET"
        && request["path"]
            .as_str()
            .and_then(|path| path.strip_prefix("/finance/salary/"))
            .is_some_and(|name| name == user || managed(name));
    answer(200, &json!({"result": {"allow": allow, "reason": "not theirs"}}).to_string())
}

#[tokio::test]
async fn a_policy_agent_decides_on_the_documented_input() {
    let ((service, asked), origin) = (deciding(salaries).await, Origin::echo().await);
    let filter = format!(
        "  - forward_auth: {{url: \"http://{}/v1/data/httpapi/authz\", format: opa, request_headers: [x-user]}}\n",
        service.address
    );
    let gateway = Gateway::start(&document(refusing().await, &origin, &filter)).await;
    for (line, user, status) in [
        ("GET /finance/salary/alice", "alice", 200),
        ("GET /finance/salary/alice", "bob", 200),
        ("GET /finance/salary/bob", "alice", 403),
        ("GET /finance/salary/bob/../alice", "alice", 200),
        ("PUT /finance/salary/alice", "alice", 403),
    ] {
        let answer = request(gateway.address(), line, &format!("X-User: {user}\r\n")).await;
        assert_eq!(answer.status, status, "{line} by {user}");
        if status == 403 {
            assert_eq!(answer.problem(), "forbidden");
            assert!(!answer.text().contains("theirs"), "the reason is for the log");
        }
    }
    let input: Value = serde_json::from_slice(&asked.lock()[0]).expect("JSON");
    assert_eq!(input["input"]["client"]["address"], "127.0.0.1");
    assert_eq!(input["input"]["route"], "closed");
    let line = gateway.log_line(|line| line["status"] == 403).await;
    assert_eq!((&line["denied_by"], &line["reason"]), (&"forward_auth".into(), &"not theirs".into()));
}

#[tokio::test]
async fn a_name_that_nobody_looks_up_keeps_no_request_longer_than_the_question_may() {
    // It takes questions, and says nothing.
    let dns = tokio::net::UdpSocket::bind("127.0.0.1:0").await.expect("a port");
    let origin = Origin::echo().await;
    let filter = "  - forward_auth: {url: \"https://sso.test/verify\", timeout: 200ms}\n";
    let servers = format!("server: {{dns: {{servers: [\"{}\"]}}}}\n", dns.local_addr().expect("bound"));
    let gateway = Gateway::start(&format!("{servers}{}", document(origin.address, &origin, filter))).await;
    let asked = std::array::from_fn::<_, 4, _>(|_| get(gateway.address(), "/a"));
    // One lookup gives up after longer than this.
    let answers = tokio::time::timeout(Duration::from_secs(4), futures_util::future::join_all(asked)).await;
    for answer in answers.expect("in time") {
        assert_eq!(answer.status, 503);
    }
}
