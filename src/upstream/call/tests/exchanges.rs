//! What is sent, what is received, and what happens to the connection.

use tokio::sync::{mpsc, oneshot};

use super::*;

const OK: &str = "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok";

#[tokio::test]
async fn a_body_is_streamed_before_the_origin_has_finished() {
    let (more, mut wait) = mpsc::channel::<()>(1);
    let address = scripted(async move |mut stream| {
        stream.write_all(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n3\r\none\r\n").await.unwrap();
        wait.recv().await.unwrap();
        stream.write_all(b"3\r\ntwo\r\n0\r\n\r\n").await.unwrap();
    })
    .await;
    let mut reply = get(&caller(), &upstream(&[address], json!({}))).await.unwrap();
    assert_eq!(reply.head.status, 200);
    assert_eq!(reply.body.next().await, Ok(Some("one".into())));
    more.send(()).await.unwrap();
    assert_eq!(reply.body.next().await, Ok(Some("two".into())));
    assert_eq!(reply.body.next().await, Ok(None));
    assert_eq!(reply.body.next().await, Ok(None));
}

#[tokio::test]
async fn the_request_carries_its_length_and_no_hop_by_hop_fields() {
    let (address, mut heads) = answering(OK).await;
    let mut head = request("POST", "/users?id=7");
    for (name, value) in [
        ("connection", "keep-alive, x-private, host"),
        ("keep-alive", "timeout=5"),
        ("x-private", "1"),
        ("te", "trailers"),
        ("transfer-encoding", "chunked"),
        ("upgrade", "websocket"),
        ("expect", "100-continue"),
        ("content-length", "999"),
        ("x-kept", "1"),
    ] {
        head.insert_header(name, value).unwrap();
    }
    let body = vec![Bytes::from_static(b"abc"), Bytes::new(), Bytes::from_static(b"de")];
    let upstream = upstream(&[address], json!({}));
    caller().send(&upstream, head, body, CallOptions::default()).await.unwrap();
    let (_, seen) = heads.recv().await.unwrap();
    let mut lines: Vec<_> = seen.trim_end().lines().collect();
    lines[1..].sort_unstable();
    assert_eq!(
        lines,
        ["post /users?id=7 http/1.1", "content-length: 5", "host: api.example.com", "x-kept: 1"]
    );
}

#[tokio::test]
async fn an_absolute_target_is_sent_in_origin_form_and_names_the_host() {
    let (address, mut heads) = answering(OK).await;
    let mut head = RequestHeader::build("GET", b"/", None).unwrap();
    head.set_uri("http://news.example.com/top?n=1".parse().unwrap());
    let upstream = upstream(&[address], json!({}));
    caller().send(&upstream, head, Payload::EMPTY, CallOptions::default()).await.unwrap();
    let (_, seen) = heads.recv().await.unwrap();
    assert!(seen.starts_with("get /top?n=1 http/1.1\r\nhost: news.example.com\r\n"), "{seen}");
}

#[tokio::test]
async fn a_connection_is_used_again_once_the_body_was_read_to_its_end() {
    let (address, mut heads) = answering(OK).await;
    let (caller, upstream) = (caller(), upstream(&[address], json!({})));
    for _ in 0..3 {
        let body = get(&caller, &upstream).await.unwrap().body.read_all(2).await;
        assert_eq!(body, Ok("ok".into()));
        assert_eq!(heads.recv().await.unwrap().0, 0);
    }
}

#[tokio::test]
async fn a_connection_that_cannot_carry_another_exchange_is_not_used_again() {
    for reply in [
        "HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: 2\r\n\r\nok",
        "HTTP/1.0 200 OK\r\ncontent-length: 2\r\n\r\nok",
        "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nokHTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\nevil",
    ] {
        let (address, mut heads) = answering(reply).await;
        let (caller, upstream) = (caller(), upstream(&[address], json!({})));
        for connection in 0..2 {
            assert_eq!(get(&caller, &upstream).await.unwrap().body.read_all(2).await, Ok("ok".into()));
            assert_eq!(heads.recv().await.unwrap().0, connection, "{reply}");
        }
    }
}

#[tokio::test]
async fn a_pool_of_none_keeps_no_connection() {
    let (listener, address) = listen().await;
    let origin = tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        read_request(&mut stream).await;
        stream.write_all(OK.as_bytes()).await.unwrap();
        stream.read(&mut [0]).await
    });
    let upstream = upstream(&[address], json!({"pool": {"idle": 0, "idle_timeout": "1h"}}));
    get(&caller(), &upstream).await.unwrap().body.read_all(2).await.unwrap();
    assert_eq!(origin.await.unwrap().unwrap_or(0), 0);
}

#[tokio::test]
async fn a_reply_without_a_body_frees_its_connection_at_once() {
    let (address, mut heads) = answering("HTTP/1.1 204 No Content\r\n\r\n").await;
    let (caller, upstream) = (caller(), upstream(&[address], json!({})));
    for _ in 0..2 {
        drop(get(&caller, &upstream).await.unwrap());
        assert_eq!(upstream.backends()[0].in_flight(), 0);
        assert_eq!(heads.recv().await.unwrap().0, 0);
    }
}

#[tokio::test]
async fn a_body_dropped_early_closes_its_connection() {
    let (closed, seen_closed) = oneshot::channel();
    let address = scripted(async move |mut stream| {
        stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\nhalf").await.unwrap();
        let _ = closed.send(stream.read(&mut [0]).await);
    })
    .await;
    let upstream = upstream(&[address], json!({}));
    let mut reply = get(&caller(), &upstream).await.unwrap();
    assert_eq!(reply.body.next().await, Ok(Some("half".into())));
    assert_eq!(upstream.backends()[0].in_flight(), 1);
    drop(reply);
    assert_eq!(upstream.backends()[0].in_flight(), 0);
    assert_eq!(seen_closed.await.unwrap().unwrap_or(0), 0);
}

#[tokio::test]
async fn interim_replies_are_skipped_and_redirects_are_not_followed() {
    let (address, _heads) = answering(
        "HTTP/1.1 103 Early Hints\r\nlink: </a>\r\n\r\nHTTP/1.1 100 Continue\r\n\r\n\
         HTTP/1.1 302 Found\r\nlocation: /elsewhere\r\nconnection: x-hop\r\nx-hop: 1\r\ncontent-length: 0\r\n\r\n",
    )
    .await;
    let reply = get(&caller(), &upstream(&[address], json!({}))).await.unwrap();
    assert_eq!(reply.head.status, 302);
    assert_eq!(reply.head.headers.get("location").unwrap(), "/elsewhere");
    assert!(!reply.head.headers.contains_key("link") && !reply.head.headers.contains_key("x-hop"));
}

#[tokio::test]
async fn the_answer_to_a_head_request_has_no_body_whatever_its_length_says() {
    let (address, mut heads) = answering("HTTP/1.1 200 OK\r\ncontent-length: 500\r\n\r\n").await;
    let (caller, upstream) = (caller(), upstream(&[address], json!({})));
    for _ in 0..2 {
        let call = caller.send(&upstream, request("HEAD", "/"), Payload::EMPTY, CallOptions::default());
        let mut reply = call.await.unwrap();
        assert_eq!(reply.head.headers.get("content-length").unwrap(), "500");
        assert_eq!(reply.body.next().await, Ok(None));
        assert_eq!(heads.recv().await.unwrap().0, 0);
    }
}

#[tokio::test]
async fn a_pooled_connection_that_the_origin_closes_on_use_is_replaced_for_idempotent_requests_only() {
    for (method, works) in [("GET", true), ("PUT", true), ("POST", false)] {
        let (listener, address) = listen().await;
        tokio::spawn(async move {
            for _ in 0..2 {
                let (mut stream, _) = listener.accept().await.unwrap();
                read_request(&mut stream).await;
                stream.write_all(OK.as_bytes()).await.unwrap();
                // Closes only when the second request arrives, as a restarting origin may.
                let _ = stream.read_u8().await;
            }
        });
        let (caller, upstream) = (caller(), upstream(&[address], json!({})));
        get(&caller, &upstream).await.unwrap().body.read_all(2).await.unwrap();
        let second = caller.send(&upstream, request(method, "/"), Payload::EMPTY, CallOptions::default());
        assert_eq!(second.await.is_ok(), works, "{method}");
    }
}

#[tokio::test]
async fn h2c_streams_share_a_connection_and_carry_bodies_both_ways() {
    let (listener, address) = listen().await;
    let (accepted, mut connections) = mpsc::unbounded_channel();
    tokio::spawn(async move {
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            accepted.send(()).unwrap();
            tokio::spawn(echo_h2(stream));
        }
    });
    let (caller, upstream) = (caller(), upstream(&[address], json!({"protocol": "h2c"})));
    for _ in 0..2 {
        let body = Bytes::from_static(b"hello");
        let call = caller.send(&upstream, request("POST", "/echo"), body, CallOptions::default());
        let mut reply = call.await.unwrap();
        assert_eq!(reply.head.headers.get("x-authority").unwrap(), "api.example.com");
        assert_eq!(reply.body.read_all(5).await, Ok("hello".into()));
    }
    // One given up on, and another over the same connection.
    let body = Bytes::from_static(b"hello");
    drop(caller.send(&upstream, request("POST", "/echo"), body, CallOptions::default()).await.unwrap());
    let call = caller.send(&upstream, request("GET", "/echo"), Payload::EMPTY, CallOptions::default());
    assert_eq!(call.await.unwrap().body.read_all(0).await, Ok(Bytes::new()));
    assert_eq!(connections.recv().await, Some(()));
    assert!(connections.try_recv().is_err());
    assert_eq!(upstream.backends()[0].in_flight(), 0);
}

/// Answers every stream with its own body, then with trailers.
async fn echo_h2(stream: TcpStream) {
    let mut connection = h2::server::handshake(stream).await.unwrap();
    while let Some(Ok((request, mut respond))) = connection.accept().await {
        tokio::spawn(async move {
            assert_eq!(request.uri().scheme_str(), Some("http"));
            assert!(!request.headers().contains_key("host"), "RFC 9113 section 8.3.1: instead of Host");
            let authority = request.uri().authority().unwrap().to_string();
            let head = http::Response::builder().header("x-authority", authority).body(()).unwrap();
            let mut body = request.into_body();
            let mut send = respond.send_response(head, false).unwrap();
            while let Some(Ok(data)) = body.data().await {
                let _ = body.flow_control().release_capacity(data.len());
                let _ = send.send_data(data, false);
            }
            let trailers = http::HeaderMap::from_iter([(
                http::HeaderName::from_static("grpc-status"),
                http::HeaderValue::from_static("0"),
            )]);
            let _ = send.send_trailers(trailers);
        });
    }
}
