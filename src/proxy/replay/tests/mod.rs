//! Bodies collected and replayed by a real proxy, between scripted origins and clients.

mod harness;

use std::time::Duration;

use bytes::Bytes;
use tokio::io::AsyncWriteExt;
use tokio::sync::mpsc;

use super::*;
use harness::{
    H2, MIB, Options, Running, Wire, chunked, gateway, nobody, origin, pattern, recorder, with_length,
};

const SIZES: [usize; 6] = [0, 1, 65_536, 65_537, MIB, 10 * MIB];

fn status(head: &str) -> &str {
    &head[9..12]
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn http1_bodies_of_all_sizes_arrive_whole_on_one_connection() {
    let (origin, mut requests) = recorder().await;
    let gateway = gateway(&[origin], Options::default());
    let mut client = Wire::connect(gateway.addr).await;
    for size in SIZES {
        for request in [with_length, chunked] {
            let body = pattern(size);
            let answer;
            (client, answer) = client.exchange(request(&body)).await;
            assert_eq!((status(&answer.head), &answer.body[..]), ("200", &b"ok"[..]));
            let got = requests.recv().await.unwrap();
            assert_eq!(got.field("content-length"), Some(size.to_string().as_str()));
            assert_eq!(got.field("transfer-encoding"), None);
            assert!(got.body == body, "{size} bytes");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn http2_bodies_of_all_sizes_arrive_whole_with_and_without_length() {
    let (origin, mut requests) = recorder().await;
    let gateway = gateway(&[origin], Options::default());
    let mut client = H2::connect(gateway.addr).await;
    for size in SIZES {
        for declare in [true, false] {
            let body = pattern(size);
            assert_eq!(client.post(&body, declare).await, 200);
            let got = requests.recv().await.unwrap();
            assert_eq!(got.field("content-length"), Some(size.to_string().as_str()));
            assert_eq!(got.field("host"), Some("a"));
            assert!(got.body == body, "{size} bytes, declared: {declare}");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn requests_without_a_body_do_not_gain_a_length() {
    let (origin, mut requests) = recorder().await;
    let mut gateway = gateway(&[origin], Options::default());
    let client = Wire::connect(gateway.addr).await;
    let (_client, answer) = client.exchange(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n".into()).await;
    assert_eq!(status(&answer.head), "200");
    assert_eq!(requests.recv().await.unwrap().field("content-length"), None);
    assert!(gateway.logged.recv().await.unwrap());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_backend_that_dies_mid_body_is_replaced_by_one_that_gets_it_whole() {
    for size in [65_537, 10 * MIB] {
        let dying = origin(move |mut wire| async move {
            wire.head().await.unwrap();
            wire.until(size / 2).await.unwrap();
        })
        .await;
        let (living, mut requests) = recorder().await;
        let gateway = gateway(&[dying, living], Options::default());
        let body = pattern(size);
        let (client, answer) = Wire::connect(gateway.addr).await.exchange(with_length(&body)).await;
        assert_eq!(status(&answer.head), "200");
        assert!(requests.recv().await.unwrap().body == body, "{size} bytes over HTTP/1");
        let (_client, answer) = client.exchange(chunked(&body)).await;
        assert_eq!(status(&answer.head), "200", "the client's connection is of further use");
        assert!(requests.recv().await.unwrap().body == body);
        assert_eq!(H2::connect(gateway.addr).await.post(&body, true).await, 200);
        assert!(requests.recv().await.unwrap().body == body, "{size} bytes over HTTP/2");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_backend_that_refuses_is_replaced_by_the_next() {
    let (living, mut requests) = recorder().await;
    let gateway = gateway(&[nobody().await, living], Options::default());
    let body = pattern(100_000);
    let (_client, answer) = Wire::connect(gateway.addr).await.exchange(chunked(&body)).await;
    assert_eq!(status(&answer.head), "200");
    assert!(requests.recv().await.unwrap().body == body);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn when_all_backends_fail_the_client_gets_an_answer() {
    let dying = origin(|mut wire| async move {
        wire.head().await;
    })
    .await;
    let mut gateway = gateway(&[dying, nobody().await], Options::default());
    let (_client, answer) = Wire::connect(gateway.addr).await.exchange(with_length(&pattern(MIB))).await;
    assert_eq!(status(&answer.head), "502");
    assert!(!gateway.logged.recv().await.unwrap());
    assert_eq!(H2::connect(gateway.addr).await.post(&pattern(MIB), true).await, 502);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_answer_before_the_body_was_read_reaches_the_client() {
    let early = origin(|mut wire| async move {
        wire.head().await.unwrap();
        wire.send(b"HTTP/1.1 413 Too Large\r\nContent-Length: 4\r\nConnection: close\r\n\r\nbig!").await;
        // Read on, as RFC 9112 s9.6 has it, so that closing does not destroy the answer.
        while wire.more().await.is_some() {}
    })
    .await;
    let gateway = gateway(&[early], Options::default());
    let client = Wire::connect(gateway.addr).await;
    let (_client, answer) = client.exchange(with_length(&pattern(10 * MIB))).await;
    assert_eq!((status(&answer.head), &answer.body[..]), ("413", &b"big!"[..]));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_leaves_ends_the_upstreams_work() {
    let (read, mut was_read) = mpsc::unbounded_channel();
    let (left, mut was_left) = mpsc::unbounded_channel();
    let thinking = origin(move |mut wire| {
        let (read, left) = (read.clone(), left.clone());
        async move {
            wire.message().await.unwrap();
            read.send(()).unwrap();
            while wire.more().await.is_some() {}
            left.send(()).unwrap();
        }
    })
    .await;
    let mut gateway = gateway(&[thinking], Options::default());
    let mut client = Wire::connect(gateway.addr).await;
    client.send(&with_length(&pattern(100_000))).await;
    was_read.recv().await.unwrap();
    drop(client);
    was_left.recv().await.unwrap();
    assert!(!gateway.logged.recv().await.unwrap());

    let mut client = H2::connect(gateway.addr).await;
    let posting = tokio::spawn(async move { client.post(&pattern(100_000), true).await });
    was_read.recv().await.unwrap();
    posting.abort();
    was_left.recv().await.unwrap();
    assert!(!gateway.logged.recv().await.unwrap());
    gateway.until_used(0).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_streamed_answer_passes_event_by_event() {
    let (seen, may_go_on) = mpsc::unbounded_channel::<()>();
    let may_go_on = Arc::new(tokio::sync::Mutex::new(may_go_on));
    let events = origin(move |mut wire| {
        let may_go_on = may_go_on.clone();
        async move {
            wire.message().await.unwrap();
            wire.send(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nConnection: close\r\n\r\n")
                .await;
            for n in 0..3 {
                wire.send(format!("data: {n}\n\n").as_bytes()).await;
                // The next event only comes once the client has seen this one.
                may_go_on.lock().await.recv().await.unwrap();
            }
        }
    })
    .await;
    let gateway = gateway(&[events], Options::default());
    let mut client = Wire::connect(gateway.addr).await;
    client.send(&with_length(&pattern(70_000))).await;
    assert_eq!(status(&client.head().await.unwrap()), "200");
    for n in 0..3 {
        let event = format!("data: {n}\n\n").into_bytes();
        while !client.ahead.windows(event.len()).any(|w| w == event) {
            client.more().await.expect("the next event");
        }
        seen.send(()).unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_body_over_the_limit_is_refused_without_reading_it_all() {
    let (origin, mut requests) = recorder().await;
    let options = Options { limit: 100_000, ..Options::default() };
    let gateway = gateway(&[origin], options);
    // Declared: refused before a byte of it was sent.
    let mut client = Wire::connect(gateway.addr).await;
    client.send(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 100001\r\n\r\n").await;
    assert_eq!(status(&client.head().await.unwrap()), "413");
    // Not declared: refused although the end is never sent.
    let mut endless = chunked(&pattern(150_000));
    endless.truncate(endless.len() - 5);
    let (_client, answer) = Wire::connect(gateway.addr).await.exchange(endless).await;
    assert_eq!(status(&answer.head), "413");
    assert_eq!(H2::connect(gateway.addr).await.post(&pattern(100_001), false).await, 413);
    assert_eq!(gateway.budget.used(), 0);
    assert!(requests.try_recv().is_err(), "the origin saw none of it");
    // At the limit: fine.
    let (_client, answer) = Wire::connect(gateway.addr).await.exchange(chunked(&pattern(100_000))).await;
    assert_eq!(status(&answer.head), "200");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bodies_that_do_not_fit_the_budget_are_refused_until_it_is_free_again() {
    let (origin, _requests) = recorder().await;
    let options = Options { budget: Budget::new(100_000), ..Options::default() };
    let gateway = gateway(&[origin], options);
    let slow = with_length(&pattern(80_000));
    let mut first = Wire::connect(gateway.addr).await;
    first.send(&slow[..slow.len() - 10]).await;
    gateway.until_used(79_990).await;
    let (_client, answer) = Wire::connect(gateway.addr).await.exchange(chunked(&pattern(50_000))).await;
    assert_eq!(status(&answer.head), "503");
    assert_eq!(gateway.budget.used(), 79_990, "what was read of the refused one is free again");
    first.send(&slow[slow.len() - 10..]).await;
    assert_eq!(status(&first.head().await.unwrap()), "200");
    gateway.until_used(0).await;
    let (_client, answer) = Wire::connect(gateway.addr).await.exchange(chunked(&pattern(100_000))).await;
    assert_eq!(status(&answer.head), "200");
    gateway.until_used(0).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_stops_sending_is_told_so_on_http1_and_http2() {
    let options = Options { pause: Duration::from_millis(50), ..Options::default() };
    let gateway = gateway(&[nobody().await], options);
    let mut client = Wire::connect(gateway.addr).await;
    client.send(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 10\r\n\r\nhalf").await;
    assert_eq!(status(&client.head().await.unwrap()), "408");

    let H2(send) = H2::connect(gateway.addr).await;
    let request = http::Request::post("http://a/").body(()).unwrap();
    let (answer, mut stream) = send.ready().await.unwrap().send_request(request, false).unwrap();
    stream.send_data(Bytes::from_static(b"half"), false).unwrap();
    assert_eq!(answer.await.unwrap().status(), 408);
    assert_eq!(gateway.budget.used(), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_waits_for_100_continue_gets_it_before_the_origin_is_asked() {
    let (origin, mut requests) = recorder().await;
    let gateway = gateway(&[origin], Options::default());
    let mut client = Wire::connect(gateway.addr).await;
    client.send(b"PUT / HTTP/1.1\r\nHost: a\r\nExpect: 100-Continue\r\nContent-Length: 4\r\n\r\n").await;
    assert_eq!(status(&client.head().await.unwrap()), "100");
    client.send(b"body").await;
    assert_eq!(status(&client.head().await.unwrap()), "200");
    let got = requests.recv().await.unwrap();
    assert_eq!((got.field("expect"), &got.body[..]), (None, &b"body"[..]));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_leaves_mid_body_gives_the_budget_back() {
    let (origin, mut requests) = recorder().await;
    let mut gateway = gateway(&[origin], Options::default());
    let mut client = Wire::connect(gateway.addr).await;
    client.send(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 10\r\n\r\nhalf").await;
    client.stream.shutdown().await.unwrap();
    assert!(!gateway.logged.recv().await.unwrap());
    assert_eq!(gateway.budget.used(), 0);
    assert!(requests.try_recv().is_err());
}

#[test]
fn a_changed_body_takes_its_own_share_of_the_budget() {
    let budget = Budget::new(10);
    let body = WholeBody::new(Bytes::from_static(b"changed"), &budget).unwrap();
    assert_eq!((body.len(), budget.used()), (7, 7));
    assert!(WholeBody::new(Bytes::from_static(b"more"), &budget).is_none());
    let other = body.clone();
    drop(body);
    assert_eq!((other.to_bytes(), budget.used()), (Bytes::from_static(b"changed"), 7));
    drop(other);
    assert_eq!(budget.used(), 0);
    assert!(WholeBody::new(Bytes::new(), &budget).unwrap().chunks().is_empty());
}

/// An open tunnel: both ends, and the gateway that must not be dropped.
async fn tunnel(idle: Duration) -> (Running, Wire, Wire) {
    let (taken, mut ends) = mpsc::unbounded_channel();
    let origin = origin(move |mut wire| {
        let taken = taken.clone();
        async move {
            wire.head().await.unwrap();
            wire.send(
                b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n",
            )
            .await;
            taken.send(wire).unwrap();
        }
    })
    .await;
    let gateway = gateway(&[origin], Options { tunnel: Some(idle), ..Options::default() });
    let mut client = Wire::connect(gateway.addr).await;
    let ask = "GET / HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n";
    client.send(ask.as_bytes()).await;
    assert_eq!(status(&client.head().await.unwrap()), "101");
    (gateway, client, ends.recv().await.unwrap())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_tunnel_that_is_silent_on_both_sides_is_closed() {
    let (_gateway, mut client, mut origin) = tunnel(Duration::from_millis(300)).await;
    let start = Instant::now();
    assert_eq!((client.more().await, origin.more().await), (None, None));
    let lived = start.elapsed();
    assert!(lived > Duration::from_millis(250) && lived < Duration::from_secs(10), "{lived:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_tunnel_in_which_one_side_only_listens_stays_open() {
    let (_gateway, mut client, mut origin) = tunnel(Duration::from_millis(400)).await;
    for (from_client, word) in [(true, b"marco"), (false, b"polo!"), (true, b"marco")] {
        let (speaker, listener) =
            if from_client { (&mut client, &mut origin) } else { (&mut origin, &mut client) };
        let start = Instant::now();
        while start.elapsed() < Duration::from_millis(1000) {
            tokio::time::sleep(Duration::from_millis(50)).await;
            speaker.send(word).await;
            listener.more().await.expect("an open tunnel");
            assert_eq!(std::mem::take(&mut listener.ahead), word);
        }
    }
}
