//! RFC 9110, HTTP Semantics.

use std::sync::Arc;

use parking_lot::Mutex;

use crate::harness::{Gateway, Origin, Wire, get, request};

#[tokio::test]
async fn s7_6_3_via_is_appended_with_the_received_protocol() {
    let origin = Origin::echo().await;
    let gateway = Gateway::before(&origin, "").await;
    request(gateway.address(), "GET /", "Via: 1.0 fred, 1.1 p.example.net\r\n").await;
    let via = origin.head().all("via").join(", ");
    assert!(via.starts_with("1.0 fred, 1.1 p.example.net, 1.1 tollhouse-"), "{via}");
    crate::harness::H2c::connect(gateway.address()).await.get("/").await;
    let heads = origin.heads();
    assert!(heads[1].field("via").is_some_and(|via| via.starts_with("2.0 tollhouse-")), "{heads:?}");
}

#[tokio::test]
async fn s8_6_no_length_is_made_up_for_a_request_without_content() {
    let origin = Origin::echo().await;
    let gateway = Gateway::before(&origin, "").await;
    get(gateway.address(), "/").await;
    assert_eq!(
        (origin.head().field("content-length"), origin.head().field("transfer-encoding")),
        (None, None)
    );
}

#[tokio::test]
async fn s9_3_2_an_answer_to_head_has_the_fields_of_get_and_no_content() {
    let gateway = Gateway::start("routes: [{name: a, respond: {status: 200, body: \"hello\"}}]").await;
    let mut client = Wire::connect(gateway.address()).await;
    for _ in 0..2 {
        client.send("HEAD / HTTP/1.1\r\nHost: a\r\n\r\n").await;
        let answer = client.answer_to("HEAD").await.expect("an answer");
        assert_eq!((answer.status, answer.field("content-length")), (200, Some("5")));
    }
    client.send("HEAD /x HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n").await;
    client.answer_to("HEAD").await.expect("an answer");
    client.closed().await;
}

#[tokio::test]
async fn s9_3_7_options_of_the_server_as_a_whole_reach_the_origin() {
    let origin = Origin::echo().await;
    let gateway = Gateway::before(&origin, "").await;
    let answer = request(gateway.address(), "OPTIONS *", "").await;
    assert_eq!((answer.status, origin.head().target()), (200, "*"));
}

#[tokio::test]
async fn s15_5_6_a_405_lists_the_methods_that_are_allowed() {
    let gateway = Gateway::start(
        "routes: [{name: a, match: {paths: [/a], methods: [GET, PUT]}, respond: {status: 200, body: a}}]",
    )
    .await;
    let answer = request(gateway.address(), "DELETE /a", "").await;
    assert_eq!((answer.status, answer.problem().as_str()), (405, "method-not-allowed"));
    let mut allowed: Vec<_> = answer.field("allow").expect("a field").split(", ").collect();
    allowed.sort_unstable();
    assert!(
        allowed.contains(&"GET") && allowed.contains(&"PUT") && !allowed.contains(&"DELETE"),
        "{allowed:?}"
    );
}

#[tokio::test]
async fn s6_6_1_an_answer_of_the_gateway_has_a_date() {
    let gateway = Gateway::start("routes: []").await;
    assert!(get(gateway.address(), "/").await.field("date").is_some_and(|date| date.ends_with(" GMT")));
}

#[tokio::test]
async fn s15_2_an_http10_client_gets_no_interim_answer() {
    // RFC 9110 s15.2: a server must not send a 1xx answer to an HTTP/1.0 client.
    let seen = Arc::new(Mutex::new(Vec::new()));
    let heads = seen.clone();
    let origin = Origin::new(move |mut wire| {
        let heads = heads.clone();
        async move {
            while let Ok(head) = wire.head().await {
                heads.lock().push(head.clone());
                wire.send("HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n")
                    .await;
                let Ok(body) = wire.body(&head).await else { return };
                wire.send(format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", body.len())).await;
                wire.send(body).await;
            }
        }
    })
    .await;
    let gateway = Gateway::before(&origin, "").await;
    for keep in ["", "Connection: keep-alive\r\n"] {
        let mut client = Wire::connect(gateway.address()).await;
        for round in 0..2 {
            let fields = format!("Host: a\r\n{keep}Expect: 100-continue\r\nContent-Length: 4\r\n");
            client.send(format!("POST / HTTP/1.0\r\n{fields}\r\nbody")).await;
            let head = client.head().await.expect("an answer");
            assert!(head.line.contains(" 200 "), "{head:?}");
            assert_eq!(client.body(&head).await.expect("a body"), b"body", "{round}");
            if keep.is_empty() {
                client.closed().await;
                break;
            }
        }
    }
    // RFC 9110 s10.1.1: an expectation in an HTTP/1.0 request is ignored.
    assert!(seen.lock().iter().all(|head| head.field("expect").is_none()), "{:?}", seen.lock());
}

#[tokio::test]
async fn s10_1_1_a_filters_refusal_comes_instead_of_100() {
    // RFC 9110 s10.1.1: a final answer instead, and the client does not send what nobody wants.
    let origin = Origin::echo().await;
    let gateway = Gateway::start(&format!(
        "upstreams: [{{name: origin, backends: [{{address: \"{}\"}}]}}]\nroutes:\n\
         - {{name: all, upstream: origin, filters: [respond: {{status: 403, body: no}}]}}",
        origin.address
    ))
    .await;
    let mut client = Wire::connect(gateway.address()).await;
    client.send("POST / HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: 4\r\n\r\n").await;
    let head = client.head().await.expect("a head");
    assert!(head.line.starts_with("HTTP/1.1 403"), "{head:?}");
    // What comes on this connection now could be the body or a request.
    assert_eq!(head.field("connection"), Some("close"), "{head:?}");
    assert_eq!(origin.connections(), 0);
}

#[tokio::test]
async fn s8_6_an_answer_that_cannot_have_a_body_has_no_length_or_coding() {
    for framing in ["Content-Length: 5", "Transfer-Encoding: chunked"] {
        let origin = Origin::answering(format!("HTTP/1.1 204 No Content\r\n{framing}\r\n\r\n")).await;
        let gateway = Gateway::before(&origin, "").await;
        let answer = request(gateway.address(), "GET /", "").await;
        let said = (answer.field("content-length"), answer.field("transfer-encoding"));
        assert_eq!((answer.status, said), (204, (None, None)), "{framing}");
    }
}

#[tokio::test]
async fn s2_5_the_gateway_speaks_1_1_whatever_the_origin_speaks() {
    let origin = Origin::answering("HTTP/1.0 200 OK\r\nContent-Length: 2\r\n\r\nok").await;
    let gateway = Gateway::before(&origin, "").await;
    let answer = request(gateway.address(), "GET /", "").await;
    assert!(answer.head.line.starts_with("HTTP/1.1 200"), "{answer:?}");
}
