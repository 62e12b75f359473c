//! Filters, over sockets: what only a whole gateway can show.

use std::time::Duration;

use http::Request;
use tollhouse_filters::coding::encode::{Algorithm, Encoder};

use crate::direct::framed;
use crate::harness::{Gateway, H2c, Origin, Wire, get, noise, request, soon};

async fn with_filters(origin: &Origin, filters: &str) -> Gateway {
    Gateway::start(&format!(
        "upstreams: [{{name: origin, backends: [{{address: \"{}\"}}]}}]\n\
         routes:\n- name: all\n  upstream: origin\n  filters:\n{filters}",
        origin.address
    ))
    .await
}

const PREFLIGHT: &str = "Origin: https://app.example.com\r\nAccess-Control-Request-Method: GET\r\n";

#[tokio::test]
async fn a_preflight_is_answered_for_a_route_that_takes_get_only() {
    let origin = Origin::echo().await;
    let gateway = Gateway::start(&format!(
        "upstreams: [{{name: origin, backends: [{{address: \"{}\"}}]}}]\nroutes:\n- name: read\n  upstream: origin\n  \
         match: {{paths: [/a], methods: [GET]}}\n  filters: [{{cors: {{origins: [\"https://app.example.com\"]}}}}]",
        origin.address
    ))
    .await;
    let answer = request(gateway.address(), "OPTIONS /a", PREFLIGHT).await;
    assert!(matches!(answer.status, 200 | 204), "{answer:?}");
    assert_eq!(answer.field("access-control-allow-origin"), Some("https://app.example.com"));
    assert_eq!(origin.connections(), 0);
    let stranger = PREFLIGHT.replace("app.example", "evil");
    let answer = request(gateway.address(), "OPTIONS /a", &stranger).await;
    assert_eq!(answer.field("access-control-allow-origin"), None);
    let answer = request(gateway.address(), "POST /a", PREFLIGHT).await;
    assert_eq!((answer.status, answer.field("allow").is_some()), (405, true));
    let answer = request(gateway.address(), "GET /a", "Origin: https://app.example.com\r\n").await;
    assert_eq!(
        (answer.status, answer.field("access-control-allow-origin")),
        (200, Some("https://app.example.com"))
    );
}

#[tokio::test]
async fn a_buffered_body_reaches_the_origin_whole() {
    let origin = Origin::echo().await;
    let gateway = with_filters(&origin, "  - buffer: {max: 1MiB}").await;
    let body = noise(900_000);
    let mut client = Wire::connect(gateway.address()).await;
    client.send("POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n").await;
    for piece in body.chunks(10_000) {
        assert_eq!(origin.connections(), 0, "the origin is asked only once the body is there");
        client.send(format!("{:x}\r\n", piece.len())).await;
        client.send(piece).await;
        client.send("\r\n").await;
    }
    client.send("0\r\n\r\n").await;
    let answer = client.answer().await.expect("an answer");
    assert!(answer.status == 200 && answer.body.ends_with(&body), "{answer:?}");
    assert_eq!(origin.head().field("content-length"), Some("900000"));
    assert_eq!(origin.head().field("transfer-encoding"), None);
    let post = Request::post("http://a/").body(()).expect("valid");
    let answer = H2c::connect(gateway.address()).await.send(post, &body).await.expect("an answer");
    assert!(answer.status == 200 && answer.body.ends_with(&body));
}

#[tokio::test]
async fn a_client_that_breaks_off_a_buffered_body_is_not_the_gateways_failure() {
    let origin = Origin::echo().await;
    let gateway = with_filters(&origin, "  - buffer: {max: 1KiB}").await;
    for (path, framing) in [
        ("/length", "Content-Length: 10\r\n\r\n12345"),
        ("/chunks", "Transfer-Encoding: chunked\r\n\r\n5\r\n12345\r\n"),
    ] {
        let mut client = Wire::connect(gateway.address()).await;
        client.send(format!("POST {path} HTTP/1.1\r\nHost: a\r\n{framing}")).await;
        drop(client);
        let line = gateway.log_line(|line| line["path"] == path).await;
        assert_eq!((&line["status"], &line["error"]), (&499.into(), &"client-closed".into()));
    }
    let mut client = Wire::connect(gateway.address()).await;
    client.send("POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n").await;
    let answer = client.answer().await.expect("an answer");
    assert_eq!((answer.status, answer.problem().as_str()), (400, "bad-request"));
    assert_eq!(origin.connections(), 0);
}

#[tokio::test]
async fn a_body_over_the_buffers_limit_is_a_413() {
    let origin = Origin::echo().await;
    let gateway = with_filters(&origin, "  - buffer: {max: 1KiB}").await;
    let mut client = Wire::connect(gateway.address()).await;
    client.send("POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n800\r\n").await;
    client.send(noise(2048)).await;
    client.send("\r\n0\r\n\r\n").await;
    let answer = client.answer().await.expect("an answer");
    assert_eq!((answer.status, answer.problem().as_str()), (413, "body-too-large"));
    assert_eq!(origin.connections(), 0);
}

#[tokio::test]
async fn a_buffered_body_is_sent_anew_when_a_backend_dies_half_way() {
    let dying = Origin::dying_within_bodies().await;
    let healthy = Origin::echo().await;
    let gateway = Gateway::start(&format!(
        "upstreams: [{{name: origin, backends: [{{address: \"{}\"}}, {{address: \"{}\"}}]}}]\n\
         routes: [{{name: all, upstream: origin, filters: [{{buffer: {{max: 10MiB}}}}]}}]",
        dying.address, healthy.address
    ))
    .await;
    // More than any socket buffer takes, so that the death is within the body.
    let body = noise(9 << 20);
    for _ in 0..2 {
        let mut client = Wire::connect(gateway.address()).await;
        client.send(format!("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: {}\r\n\r\n", body.len())).await;
        client.send(&body).await;
        let answer = client.answer().await.expect("an answer");
        assert!(answer.status == 200 && answer.body.ends_with(&body), "{answer:?}");
    }
    assert!(dying.connections() > 0, "the dying backend was never asked");
}

#[tokio::test]
async fn an_origins_early_refusal_of_a_buffered_body_reaches_the_client() {
    let origin = Origin::new(|mut wire| async move {
        let _ = wire.head().await;
        wire.send("HTTP/1.1 413 Content Too Large\r\nContent-Length: 3\r\nConnection: close\r\n\r\nbig")
            .await;
        wire.rest().await;
    })
    .await;
    let gateway = with_filters(&origin, "  - buffer: {max: 1MiB}").await;
    let mut client = Wire::connect(gateway.address()).await;
    client.send("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 500000\r\n\r\n").await;
    client.send(noise(500_000)).await;
    let answer = client.answer().await.expect("an answer");
    assert_eq!((answer.status, answer.text().as_str()), (413, "big"));
}

#[tokio::test]
async fn a_buffering_gateway_meets_the_expectation_itself() {
    let origin = Origin::echo().await;
    let gateway = with_filters(&origin, "  - buffer: {max: 1MiB}").await;
    let mut client = Wire::connect(gateway.address()).await;
    client.send("POST / HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: 4\r\n\r\n").await;
    assert!(client.head().await.expect("a head").line.starts_with("HTTP/1.1 100"));
    client.send("body").await;
    assert_eq!(client.answer().await.map(|answer| answer.status), Ok(200));
    assert_eq!(origin.head().field("expect"), None);
}

#[tokio::test]
async fn an_answer_over_its_limit_is_cut_and_never_looks_whole() {
    for (nth, framed) in framed(&[b'a'; 100_000]).into_iter().enumerate() {
        // What declares its length is refused before any of it is sent.
        let refused = |status: Option<u16>| status == Some(502) || (status.is_none() && nth > 0);
        let origin = Origin::new(move |mut wire: Wire| {
            let framed = framed.clone();
            async move {
                if wire.head().await.is_ok() {
                    wire.send(framed).await;
                }
            }
        })
        .await;
        for held in ["", "  - buffer: {}\n"] {
            let gateway = with_filters(&origin, &format!("{held}  - body_limit: {{response: 50KiB}}")).await;
            let mut client = Wire::connect(gateway.address()).await;
            client.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n").await;
            let answer = soon("an end", client.answer()).await;
            assert!(refused(answer.as_ref().ok().map(|answer| answer.status)), "{answer:?}");
            let asked = http::Request::get("http://a/").body(()).expect("valid");
            let answer = H2c::connect(gateway.address()).await.send(asked, b"").await;
            assert!(refused(answer.as_ref().ok().map(|answer| answer.status)), "{answer:?}");
        }
    }
}

#[tokio::test]
async fn a_narrower_limit_of_a_route_is_a_413() {
    let origin = Origin::echo().await;
    let gateway = with_filters(&origin, "  - body_limit: {request: 10B}").await;
    let answer = request(gateway.address(), "POST /", "Content-Length: 11\r\n").await;
    assert_eq!((answer.status, answer.problem().as_str()), (413, "body-too-large"));
}

#[tokio::test]
async fn filters_change_what_the_origin_and_the_client_see() {
    let origin = Origin::echo().await;
    let gateway = with_filters(
        &origin,
        "  - request_id: {}\n  - rewrite: {strip_prefix: /api, add_prefix: /v1}\n  \
         - headers: {request: {set: {x-client: \"${client.address}\"}, remove: [cookie]}, response: {set: {x-served-by: me}}}",
    )
    .await;
    let answer =
        request(gateway.address(), "GET /api/users?x=1", "Cookie: a=b\r\nX-Client: forged\r\n").await;
    let head = origin.head();
    assert_eq!((head.target(), head.field("x-client")), ("/v1/users?x=1", Some("127.0.0.1")));
    assert_eq!((head.field("cookie"), answer.field("x-served-by")), (None, Some("me")));
    let id = answer.field("x-request-id").expect("an id");
    assert_eq!(head.field("x-request-id"), Some(id));
    assert_eq!(gateway.log_line(|line| line["status"] == 200).await["request_id"], id);
}

#[tokio::test]
async fn a_changed_list_of_addresses_takes_effect_by_itself() {
    let directory = tempfile::TempDir::new().expect("a directory");
    let list = directory.path().join("blocked.txt");
    std::fs::write(&list, "203.0.113.0/24\n").expect("written");
    let gateway = Gateway::start(&format!(
        "routes: [{{name: own, filters: [{{ip_access: {{deny_file: \"{}\"}}}}], respond: {{}}}}]",
        list.display()
    ))
    .await;
    assert_eq!(get(gateway.address(), "/").await.status, 200);
    std::fs::write(&list, "203.0.113.0/24\n127.0.0.0/8 # us\n").expect("written");
    soon("the new list", async {
        while get(gateway.address(), "/").await.status != 403 {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    })
    .await;
    let line = gateway.log_line(|line| line["status"] == 403).await;
    assert_eq!((&line["denied_by"], &line["reason"]), (&"ip_access".into(), &"the address is denied".into()));
}

#[tokio::test]
async fn a_redirect_keeps_the_query() {
    let gateway = Gateway::start(
        "routes: [{name: old, redirect: {to: \"https://new.test${request.path}\", status: 308}}]",
    )
    .await;
    let answer = get(gateway.address(), "/a/b?c=d").await;
    assert_eq!((answer.status, answer.field("location")), (308, Some("https://new.test/a/b?c=d")));
}

#[tokio::test]
async fn a_redirect_keeps_the_version_in_the_path_or_leads_to_another() {
    let moved = "{redirect: {to: \"/v2${request.path}\"}, when: {headers: {x-new: {present: true}}}}";
    let filter = "{redirect: {to: \"https://new.test${request.whole_path}\", status: 308}}";
    let service = "{name: users, versioning: {from: [path], default: '1'}, \
                   versions: {'1': {upstream: u}, '2': {upstream: u}}}";
    let rest = format!(
        "upstreams: [{{name: u, backends: [{{address: \"127.0.0.1:9\"}}]}}]\nservices: [{service}]\n\
         routes: [{{name: users, service: users, match: {{paths: [\"/users/*\"]}}}}]"
    );
    let listener = format!("{{name: plain, address: \"127.0.0.1:0\", filters: [{moved}, {filter}]}}");
    let directory = tempfile::TempDir::new().expect("a directory");
    let gateway = Gateway::within(directory, &listener, &rest).await;
    for path in ["/v2/users/7?a=b", "/users/7"] {
        let (answer, to) = (get(gateway.address(), path).await, format!("https://new.test{path}"));
        assert_eq!((answer.status, answer.field("location")), (308, Some(to.as_str())));
    }
    let answer = request(gateway.address(), "GET /v1/users/7?a=b", "X-New: 1\r\n").await;
    assert_eq!((answer.status, answer.field("location")), (302, Some("/v2/users/7?a=b")));
}

#[tokio::test]
async fn a_chain_of_a_listener_and_of_a_route_runs_once() {
    let origin = Origin::echo().await;
    let edge =
        "[{concurrency: {per: ip, limit: 1}}, {decompress: {}}, {headers: {response: {add: {x-edge: one}}}}]";
    let rest = format!(
        "chains: {{edge: {edge}}}\nupstreams: [{{name: origin, backends: [{{address: \"{}\"}}]}}]\n\
         routes: [{{name: all, upstream: origin, filters: [{{chain: edge}}]}}]",
        origin.address
    );
    let listener = "{name: plain, address: \"127.0.0.1:0\", filters: [{chain: edge}]}";
    let directory = tempfile::TempDir::new().expect("a directory");
    let gateway = Gateway::within(directory, listener, &rest).await;
    let packed = Encoder::new(Algorithm::Gzip, 5).and_then(|encoder| encoder.finish(b"plain"));
    let packed = packed.expect("encodes");
    let mut client = Wire::connect(gateway.address()).await;
    let head = "POST / HTTP/1.1\r\nHost: a\r\nContent-Encoding: gzip\r\n";
    client.send(format!("{head}Content-Length: {}\r\n\r\n", packed.len())).await;
    client.send(&packed).await;
    let answer = client.answer().await.expect("an answer");
    assert!(answer.status == 200 && answer.body.ends_with(b"plain"), "{answer:?}");
    assert_eq!(answer.field("x-edge"), Some("one"));
}

#[tokio::test]
async fn a_grpc_client_is_told_in_trailers_only() {
    // gRPC over HTTP/2: HTTP 200, grpc-status in the one head, no body.
    let gateway = Gateway::start("routes: []").await;
    let call = Request::post("http://a/pkg.Service/Method").header("content-type", "application/grpc+proto");
    let call = call.header("te", "trailers").body(()).expect("valid");
    let answer = H2c::connect(gateway.address()).await.send(call, b"\0\0\0\0\0").await.expect("an answer");
    assert_eq!((answer.status, answer.field("content-type")), (200, Some("application/grpc")));
    // 404 is UNIMPLEMENTED in gRPC's mapping.
    assert_eq!((answer.field("grpc-status"), answer.body.len()), (Some("12"), 0));
}
