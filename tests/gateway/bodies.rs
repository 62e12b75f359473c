//! Request bodies that filters look at piece by piece, over sockets.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use tollhouse_filters::coding::encode::{Algorithm, Encoder};

use crate::harness::{Gateway, Origin, Wire, noise};

/// Answers the first request of a connection, and hangs up on the second once it is there.
async fn forgetful() -> (Origin, Arc<AtomicUsize>) {
    let hung_up = Arc::new(AtomicUsize::new(0));
    let count = hung_up.clone();
    let origin = Origin::new(move |mut wire| {
        let count = count.clone();
        async move {
            for answer in [true, false] {
                let Ok(head) = wire.head().await else { return };
                let Ok(body) = wire.body(&head).await else { return };
                if answer {
                    let length = body.len().to_string();
                    let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", length.len());
                    wire.send(head + &length).await;
                } else {
                    count.fetch_add(1, Ordering::SeqCst);
                }
            }
        }
    });
    (origin.await, hung_up)
}

/// Sends a PUT (which may be sent twice, RFC 9110 s9.2.2) until the origin hung up on a connection that
/// the gateway used again; the origin's answers must all be this one.
async fn put_until_sent_again(filters: &str, fields: &str, body: &[u8], expected: &str) {
    let (origin, hung_up) = forgetful().await;
    let gateway = Gateway::start(&format!(
        "server: {{limits: {{body_bytes: 64KiB}}}}\n\
         upstreams: [{{name: origin, backends: [{{address: \"{}\"}}]}}]\n\
         routes: [{{name: all, upstream: origin, filters: {filters}}}]",
        origin.address
    ))
    .await;
    for _ in 0..100 {
        let mut client = Wire::connect(gateway.address()).await;
        let length = body.len();
        client.send(format!("PUT / HTTP/1.1\r\nHost: a\r\n{fields}Content-Length: {length}\r\n\r\n")).await;
        client.send(body).await;
        let answer = client.answer().await.expect("an answer");
        assert_eq!((answer.status, answer.text().as_str()), (200, expected), "{filters}");
        if hung_up.load(Ordering::SeqCst) > 0 {
            return;
        }
    }
    panic!("no connection was ever used again");
}

#[tokio::test]
async fn a_body_that_is_sent_again_is_not_counted_twice() {
    for filters in ["[]", "[body_limit: {request: 64KiB}]"] {
        put_until_sent_again(filters, "", &noise(40_000), "40000").await;
    }
}

#[tokio::test]
async fn a_body_that_is_sent_again_is_decoded_from_its_start() {
    let body = Encoder::new(Algorithm::Gzip, 6).and_then(|encoder| encoder.finish(&noise(40_000)));
    let body = body.expect("encodes");
    put_until_sent_again("[decompress: {}]", "Content-Encoding: gzip\r\n", &body, "40000").await;
}
