//! How the gateway proves to upstreams who it is, over sockets.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use http::Request;

use crate::harness::{Gateway, H2c, Nginx, Origin, Wire, get, request, soon};

fn document(origin: std::net::SocketAddr, filter: &str) -> String {
    format!(
        "upstreams: [{{name: origin, backends: [{{address: \"{origin}\"}}]}}]
routes: [{{name: all, upstream: origin, filters: [{{upstream_auth: {filter}}}]}}]
"
    )
}

/// Gives out tokens by number to whoever shows the client's secret.
async fn issuer() -> (Origin, Arc<AtomicUsize>) {
    let given = Arc::<AtomicUsize>::default();
    let count = given.clone();
    let issuer = Origin::new(move |mut wire: Wire| {
        let count = count.clone();
        async move {
            while let Ok(head) = wire.head().await {
                let Ok(body) = wire.body(&head).await else { return };
                // `gw` and `s3cret`, by RFC 6749 s2.3.1.
                let known = head.field("authorization") == Some("Basic Z3c6czNjcmV0")
                    && body == b"grant_type=client_credentials&scope=read";
                let answer = if known {
                    let number = count.fetch_add(1, Ordering::SeqCst);
                    format!(
                        "{{\"access_token\": \"t{number}\", \"token_type\": \"Bearer\", \"expires_in\": 3600}}"
                    )
                } else {
                    "{\"error\": \"invalid_client\"}".to_owned()
                };
                let status = if known { "200 OK" } else { "401 Unauthorized" };
                let length = answer.len();
                wire.send(format!("HTTP/1.1 {status}\r\nContent-Length: {length}\r\n\r\n{answer}")).await;
            }
        }
    });
    (issuer.await, given)
}

fn grant(issuer: &Origin, secret: &str) -> String {
    format!(
        "{{client_credentials: {{token_url: \"http://{}/token\", client_id: gw, client_secret: {secret}, scopes: [read]}}}}",
        issuer.address
    )
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_token_serves_all_who_come_at_once_over_either_protocol() {
    let ((issuer, given), origin) = (issuer().await, Origin::echo().await);
    let gateway = Gateway::start(&document(origin.address, &grant(&issuer, "s3cret"))).await;
    let address = gateway.address();
    let clients: Vec<_> = (0..16)
        .map(|_| {
            tokio::spawn(async move {
                let fields = "Authorization: Bearer mine\r\nConnection: authorization\r\n";
                request(address, "GET /a", fields).await.status
            })
        })
        .collect();
    for client in clients {
        assert_eq!(client.await.expect("no failure"), 200);
    }
    let h2 = H2c::connect(address).await;
    let post = Request::post("http://example.test/b")
        .header("authorization", "Bearer mine")
        .body(())
        .expect("valid");
    assert_eq!(h2.send(post, b"body").await.expect("an answer").status, 200);
    for head in origin.heads() {
        assert_eq!(head.all("authorization"), ["Bearer t0"], "{head:?}");
    }
    assert_eq!((origin.heads().len(), given.load(Ordering::SeqCst)), (17, 1));
}

#[tokio::test]
async fn a_token_that_the_upstream_refuses_is_replaced_for_the_next_request() {
    let (issuer, given) = issuer().await;
    let origin = Origin::new(|mut wire: Wire| async move {
        while let Ok(head) = wire.head().await {
            let status = if head.field("authorization") == Some("Bearer t1") { 200 } else { 401 };
            wire.send(format!("HTTP/1.1 {status} \r\nContent-Length: 0\r\n\r\n")).await;
        }
    })
    .await;
    let gateway = Gateway::start(&document(origin.address, &grant(&issuer, "s3cret"))).await;
    let mut statuses = Vec::new();
    for _ in 0..3 {
        statuses.push(get(gateway.address(), "/a").await.status);
    }
    assert_eq!((statuses, given.load(Ordering::SeqCst)), (vec![401, 200, 200], 2));
}

#[tokio::test]
async fn without_a_token_nothing_is_sent_and_no_secret_is_told() {
    let ((issuer, given), origin) = (issuer().await, Origin::echo().await);
    let gateway = Gateway::start(&document(origin.address, &grant(&issuer, "wr0ng"))).await;
    let answer = request(gateway.address(), "GET /a", "Authorization: Bearer mine\r\n").await;
    assert_eq!((answer.status, answer.problem().as_str()), (503, "filter-unavailable"));
    assert_eq!((origin.heads().len(), given.load(Ordering::SeqCst)), (0, 0));
    gateway.says("no token for an upstream is given out").await;
    let told = format!("{}{}{}", gateway.stderr().join("\n"), gateway.log_text(), answer.text());
    // `gw:wr0ng` in Base64 as well.
    assert!(!told.contains("wr0ng") && !told.contains("Z3c6d3Iwbmc"), "{told}");
}

#[tokio::test]
async fn nginx_takes_the_user_and_the_password() {
    let directives = "location = /private { auth_basic who; auth_basic_user_file users; }";
    let nginx = Nginx::with(&[("users", b"gw:{PLAIN}s3 cret"), ("private", b"news")], "", directives).await;
    for (password, status) in [("s3 cret", 200), ("other", 401)] {
        let filter = format!("{{basic: {{username: gw, password: {password}}}}}");
        let gateway = Gateway::start(&document(nginx.address, &filter)).await;
        let fields = "Authorization: Basic Z3c6bWluZQ==\r\n";
        assert_eq!(request(gateway.address(), "GET /private", fields).await.status, status);
    }
}

#[tokio::test]
async fn a_trace_that_would_show_the_secret_to_the_client_is_not_sent() {
    let origin = Origin::echo().await;
    let gateway = Gateway::start(&document(origin.address, "{header: {name: x-key, value: s3cret}}")).await;
    let answer = request(gateway.address(), "TRACE /a", "").await;
    assert_eq!((answer.status, answer.problem().as_str()), (405, "method-not-allowed"));
    assert!(answer.field("allow").is_some_and(|allow| !allow.contains("TRACE")), "{answer:?}");
    assert!(!answer.text().contains("s3cret") && origin.heads().is_empty());
}

#[tokio::test]
async fn fields_by_which_a_client_would_act_as_the_gateway_are_not_signed() {
    let origin = Origin::echo().await;
    let filter = "{aws: {region: eu-central-1, service: s3, access_key_id: AKIDEXAMPLE, \
                  secret_access_key: s3cret}}";
    let gateway = Gateway::start(&document(origin.address, filter)).await;
    let fields = "X-Amz-Copy-Source: /private/key\r\nX-Amz-Acl: public-read\r\nX-Amz-Meta-A: 1\r\n";
    assert_eq!(request(gateway.address(), "GET /bucket/key", fields).await.status, 200);
    let head = origin.head();
    assert_eq!((head.field("x-amz-copy-source"), head.field("x-amz-acl")), (None, None));
    assert_eq!(head.field("x-amz-meta-a"), Some("1"));
    let signed = head.field("authorization").expect("a signature");
    assert!(signed.contains("SignedHeaders=host;x-amz-content-sha256;x-amz-date;x-amz-meta-a,"), "{signed}");
}

#[tokio::test]
async fn a_signed_body_arrives_whole_and_a_larger_one_does_not() {
    let origin = Origin::echo().await;
    let filter = "{aws: {region: eu-central-1, service: lambda, access_key_id: AKIDEXAMPLE, \
                  secret_access_key: s3cret, max_body: 10B}}";
    let gateway = Gateway::start(&document(origin.address, filter)).await;
    for (body, status) in [("{}", 200), ("{\"a\": \"long\"}", 413)] {
        let mut wire = Wire::connect(gateway.address()).await;
        let length = body.len();
        let head =
            "POST /a?b=1 HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\nX-Amz-Date: mine\r\n";
        wire.send(format!("{head}Content-Length: {length}\r\n\r\n{body}")).await;
        let answer = wire.answer().await.expect("an answer");
        assert_eq!(answer.status, status);
        assert!(status != 200 || answer.text().ends_with(body));
    }
    let head = origin.head();
    let signed = head.field("authorization").expect("a signature");
    assert!(signed.starts_with("AWS4-HMAC-SHA256 Credential=AKIDEXAMPLE/"), "{signed}");
    assert!(signed.contains("SignedHeaders=content-type;host;x-amz-date,"), "{signed}");
    assert_eq!(head.field("x-amz-date").map(str::len), Some("20150830T123600Z".len()));
}

#[tokio::test]
async fn what_gets_no_token_takes_nothing_of_quotas() {
    let ((issuer, _), origin) = (issuer().await, Origin::echo().await);
    let auth = format!("{{upstream_auth: {}}}", grant(&issuer, "wr0ng"));
    for (limit, direct) in [
        ("{quota: {per: ip, limit: 1/day}}", true),
        ("{quota: {per: ip, limit: 1/day}}", false),
        ("{plan_limits: {default: free}}", true),
    ] {
        let gateway = Gateway::start(&format!(
            "plans: {{free: {{limits: [{{name: daily, quota: 1/day}}]}}}}
upstreams: [{{name: origin, backends: [{{address: \"{}\"}}]}}]
routes: [{{name: all, upstream: origin, direct: {direct}, filters: [{limit}, {auth}]}}]
",
            origin.address
        ))
        .await;
        for _ in 0..3 {
            let unavailable = async {
                // The unit is given back a moment after the answer before.
                while get(gateway.address(), "/a").await.status != 503 {}
            };
            soon("503 instead of 429", unavailable).await;
        }
    }
    assert!(origin.heads().is_empty());
}

#[tokio::test]
async fn what_waits_for_its_token_until_its_time_is_over_takes_nothing_of_quotas() {
    let origin = Origin::echo().await;
    // Longer than the request may take.
    let issuer = Origin::issuing(Duration::from_millis(2500)).await;
    let text = format!(
        "upstreams: [{{name: origin, timeouts: {{total: 2s}}, backends: [{{address: \"{}\"}}]}}]
routes: [{{name: all, upstream: origin, direct: DIRECT, filters: [{{quota: {{per: ip, limit: 1/day}}}}, {{upstream_auth: {}}}]}}]
",
        origin.address,
        grant(&issuer, "s3cret")
    );
    for direct in ["true", "false"] {
        let gateway = Gateway::start(&text.replace("DIRECT", direct)).await;
        let before = origin.heads().len();
        let late = get(gateway.address(), "/a").await;
        assert_eq!((late.status, late.problem().as_str()), (504, "upstream-timeout"), "direct: {direct}");
        assert_eq!(origin.heads().len(), before, "direct: {direct}");
        // The unit is given back a moment after the answer; by then there is a token.
        let served = async { while get(gateway.address(), "/a").await.status != 200 {} };
        soon("200 instead of 429", served).await;
        assert_eq!(get(gateway.address(), "/a").await.status, 429);
    }
}
