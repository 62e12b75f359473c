//! Backends that refuse, stall, break off or talk nonsense.

use std::future::pending;
use std::sync::atomic::{AtomicBool, Ordering};

use super::*;

const OK: &str = "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok";

#[tokio::test]
async fn a_refused_connection_is_retried_on_another_backend_for_any_method() {
    let (good, mut heads) = answering(OK).await;
    let upstream = upstream(&[refusing().await, good], json!({}));
    let caller = caller();
    for _ in 0..4 {
        let body = Bytes::from_static(b"once");
        let call = caller.send(&upstream, request("POST", "/"), body, CallOptions::default());
        assert_eq!(call.await.unwrap().head.status, 200);
        heads.recv().await.unwrap();
    }
    assert!(heads.try_recv().is_err(), "each request arrived once");
}

#[tokio::test]
async fn all_backends_refusing_is_a_connect_error_and_a_bad_gateway() {
    let upstream = upstream(&[refusing().await, refusing().await], json!({}));
    let error = get(&caller(), &upstream).await.unwrap_err();
    assert!(matches!(error, CallError::Connect(_)), "{error}");
    assert_eq!(error.status(), 502);
    assert!(upstream.backends().iter().all(|backend| backend.in_flight() == 0));
}

#[tokio::test]
async fn who_broke_off_is_not_asked_again_while_another_backend_is_left() {
    let (good, _heads) = answering(OK).await;
    let bad = scripted(async |_| {}).await;
    let rules = json!({
        "balance": {"algorithm": "consistent_hash", "hash_on": "path"},
        "retries": {"max": 1, "conditions": ["connect", "reset"], "budget": "100%"},
    });
    let (caller, upstream) = (caller(), upstream(&[bad, good], rules));
    for number in 0..8 {
        let path = request("GET", &format!("/{number}"));
        let reply = caller.send(&upstream, path, Payload::EMPTY, CallOptions::default()).await;
        assert_eq!(reply.unwrap().head.status, 200);
    }
    assert!(upstream.backends()[0].failures() > 0, "some of eight are its own");
}

/// A backend that resets the stream of its first request with this code, and answers all others.
async fn resetting_first(reason: h2::Reason) -> SocketAddr {
    let (listener, address) = listen().await;
    let first = Arc::new(AtomicBool::new(true));
    tokio::spawn(async move {
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            let first = first.clone();
            tokio::spawn(async move {
                let mut connection = h2::server::handshake(stream).await.unwrap();
                while let Some(Ok((_, mut respond))) = connection.accept().await {
                    if first.swap(false, Ordering::SeqCst) {
                        respond.send_reset(reason);
                        continue;
                    }
                    let mut send = respond.send_response(http::Response::new(()), false).unwrap();
                    send.send_data("ok".into(), true).unwrap();
                }
            });
        }
    });
    address
}

#[tokio::test]
async fn a_stream_that_is_refused_is_none_of_an_old_connection_and_retried_for_any_method() {
    // RFC 9113 section 8.7: nobody acted on such a request.
    let rules = json!({"protocol": "h2c", "retries": {"conditions": ["refused_stream"]}});
    for (method, content) in [("GET", ""), ("POST", "once")] {
        let refused = resetting_first(h2::Reason::REFUSED_STREAM).await;
        let (caller, upstream) = (caller(), upstream(&[refused], rules.clone()));
        let (sent, mut account) = ((request(method, "/"), Bytes::from(content).into()), Account::default());
        let reply = caller.send_and_tell(&upstream, sent, CallOptions::default(), &mut account).await;
        assert_eq!(reply.unwrap().body.read_all(100).await.unwrap(), "ok", "{method}");
        assert_eq!(account.retried, ["refused_stream"], "{method}");
        assert_eq!(upstream.backends()[0].failures(), 1, "it may have no room for long: {method}");
    }
    let cancelled = upstream(&[resetting_first(h2::Reason::CANCEL).await], rules);
    let error = get(&caller(), &cancelled).await.unwrap_err();
    assert!(matches!(error, CallError::Protocol(_)), "that one may have been processed: {error}");
}

#[tokio::test]
async fn who_says_nothing_until_the_call_is_over_has_failed() {
    let silent = scripted(async |_| pending::<()>().await).await;
    let upstream = upstream(&[silent], json!({"timeouts": {"total": "100ms"}}));
    assert_eq!(get(&caller(), &upstream).await.unwrap_err(), CallError::Timeout(Waiting::Total));
    let backend = &upstream.backends()[0];
    assert_eq!((backend.failures(), backend.in_flight()), (1, 0));
}

#[tokio::test]
async fn no_retries_means_one_attempt() {
    let (good, _heads) = answering(OK).await;
    let upstream = upstream(&[refusing().await, good], json!({"retries": {"max": 0}}));
    let caller = caller();
    let mut refused = 0;
    for _ in 0..4 {
        refused += usize::from(get(&caller, &upstream).await.is_err());
    }
    assert_eq!(refused, 1, "the one that refuses is passed over then");
}

#[tokio::test]
async fn an_upstream_whose_weights_are_all_zero_is_unavailable() {
    let backends = json!([{"address": "127.0.0.1:9", "weight": 0}]);
    let error = get(&caller(), &upstream(&[], json!({"backends": backends}))).await.unwrap_err();
    assert_eq!((&error, error.status()), (&CallError::NoBackend, 503));
}

#[tokio::test]
async fn a_body_that_breaks_off_is_an_error_and_stays_one() {
    for start in [
        "HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\nhalf",
        "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n4\r\nhalf\r\n",
        "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n8\r\nhalf",
    ] {
        let address =
            scripted(async move |mut stream| stream.write_all(start.as_bytes()).await.unwrap()).await;
        let upstream = upstream(&[address], json!({}));
        let mut reply = get(&caller(), &upstream).await.unwrap();
        let error = reply.body.read_all(100).await.unwrap_err();
        assert!(matches!(error, CallError::Protocol(_)), "{error}");
        assert_eq!(reply.body.next().await, Err(error));
        assert_eq!(upstream.backends()[0].in_flight(), 0);
    }
}

#[tokio::test]
async fn a_backend_that_closes_without_an_answer_or_sends_nonsense_breaks_the_protocol() {
    for answer in [
        "",
        "HTTP/1.1 200",
        "SSH-2.0-OpenSSH\r\n\r\n",
        "HTTP/1.1 101 Switching Protocols\r\nupgrade: websocket\r\nconnection: upgrade\r\n\r\n",
        "HTTP/1.1 200 OK\r\ncontent-length: 1\r\ncontent-length: 2\r\n\r\nab",
    ] {
        let address =
            scripted(async move |mut stream| stream.write_all(answer.as_bytes()).await.unwrap()).await;
        let error = get(&caller(), &upstream(&[address], json!({}))).await.unwrap_err();
        assert!(matches!(error, CallError::Protocol(_)), "{answer}: {error}");
        assert_eq!(error.status(), 502);
    }
}

#[tokio::test]
async fn endless_interim_replies_are_cut_off() {
    let address = scripted(
        async move |mut stream| {
            while stream.write_all(b"HTTP/1.1 103 Early Hints\r\n\r\n").await.is_ok() {}
        },
    )
    .await;
    let error = get(&caller(), &upstream(&[address], json!({}))).await.unwrap_err();
    assert!(matches!(error, CallError::Protocol(_)), "{error}");
}

#[tokio::test]
async fn a_head_with_too_many_fields_or_bytes_is_refused() {
    for fields in ["a: b\r\n".repeat(201), format!("a: {}\r\n", "b".repeat(200_000))] {
        let address = scripted(async move |mut stream| {
            let answer = format!("HTTP/1.1 200 OK\r\n{fields}content-length: 0\r\n\r\n");
            let _ = stream.write_all(answer.as_bytes()).await;
            pending::<()>().await;
        })
        .await;
        let error = get(&caller(), &upstream(&[address], json!({}))).await.unwrap_err();
        assert_eq!(error, CallError::TooLarge);
    }
}

#[tokio::test]
async fn a_body_over_the_limit_is_refused_and_one_at_the_limit_is_not() {
    let (address, _heads) = answering(OK).await;
    let (caller, upstream) = (caller(), upstream(&[address], json!({})));
    assert_eq!(get(&caller, &upstream).await.unwrap().body.read_all(1).await, Err(CallError::TooLarge));
    assert_eq!(get(&caller, &upstream).await.unwrap().body.read_all(2).await, Ok("ok".into()));
}

#[tokio::test]
async fn a_silent_backend_runs_into_the_read_timeout_before_and_within_the_body() {
    let read = json!({"timeouts": {"read": "50ms"}});
    let silent = scripted(async move |_stream| pending().await).await;
    let error = get(&caller(), &upstream(&[silent], read.clone())).await.unwrap_err();
    assert_eq!((&error, error.status()), (&CallError::Timeout(Waiting::Read), 504));
    let stalling = scripted(async move |mut stream| {
        stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\nhalf").await.unwrap();
        pending().await
    })
    .await;
    let mut reply = get(&caller(), &upstream(&[stalling], read)).await.unwrap();
    assert_eq!(reply.body.read_all(100).await, Err(CallError::Timeout(Waiting::Read)));
}

#[tokio::test]
async fn the_total_timeout_covers_the_body_and_the_call_may_override_it() {
    let stall = || {
        scripted(async move |mut stream| {
            stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\nhalf").await.unwrap();
            pending().await
        })
    };
    let late = scripted(async move |mut stream| {
        tokio::time::sleep(Duration::from_millis(50)).await;
        stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok").await.unwrap();
        pending().await
    });
    let unlimited = CallOptions { timeout: Some(None), ..CallOptions::default() };
    let impatient = upstream(&[late.await], json!({"timeouts": {"total": "1ms"}}));
    let call = caller().send(&impatient, request("GET", "/"), Payload::EMPTY, unlimited).await;
    assert_eq!(call.unwrap().body.read_all(100).await.unwrap(), "ok", "no limit is one too");
    let total = |limit: &str| json!({"timeouts": {"total": limit}});
    let mut reply = get(&caller(), &upstream(&[stall().await], total("50ms"))).await.unwrap();
    assert_eq!(reply.body.read_all(100).await, Err(CallError::Timeout(Waiting::Total)));
    let options = CallOptions { timeout: Some(Some(Duration::from_millis(50))), ..CallOptions::default() };
    let upstream = upstream(&[stall().await], total("1h"));
    let caller = caller();
    let call = caller.send(&upstream, request("GET", "/"), Payload::EMPTY, options);
    let mut reply = call.await.unwrap();
    assert_eq!(reply.body.read_all(100).await, Err(CallError::Timeout(Waiting::Total)));
}

#[tokio::test]
async fn who_reads_too_late_blames_no_backend_and_who_waits_for_it_does() {
    let halves = || {
        scripted(async move |mut stream| {
            stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\nhalf").await.unwrap();
            pending().await
        })
    };
    for (reads_late, failures) in [(true, 0), (false, 1)] {
        let upstream = upstream(&[halves().await], json!({"timeouts": {"total": "2s"}}));
        let mut reply = get(&caller(), &upstream).await.unwrap();
        if reads_late {
            let read = reply.body.next().await;
            assert_eq!(read.unwrap().unwrap(), "half");
            tokio::time::sleep(Duration::from_millis(2500)).await;
        }
        assert_eq!(reply.body.read_all(100).await, Err(CallError::Timeout(Waiting::Total)));
        assert_eq!((upstream.backends()[0].failures(), reply.body.was_read_late()), (failures, reads_late));
    }
}

#[tokio::test]
async fn an_early_refusal_is_heard_although_the_body_was_not_taken() {
    let (listener, address) = listen().await;
    tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        stream.read_u8().await.unwrap();
        stream.write_all(b"HTTP/1.1 413 Too Large\r\ncontent-length: 0\r\n\r\n").await.unwrap();
        // Takes the rest so that no reset overtakes the answer, but asks for no more.
        tokio::io::copy(&mut stream, &mut tokio::io::sink()).await.unwrap();
    });
    let body = Bytes::from(vec![0; 4 << 20]);
    let upstream = upstream(&[address], json!({}));
    let caller = caller();
    let call = caller.send(&upstream, request("POST", "/"), body, CallOptions::default());
    assert_eq!(call.await.unwrap().head.status, 413);
}
