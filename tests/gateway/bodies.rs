//! Request bodies that filters look at piece by piece, over sockets.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

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

#[tokio::test]
async fn a_body_that_is_sent_again_is_not_counted_twice() {
    let (origin, hung_up) = forgetful().await;
    for filters in ["[]", "[body_limit: {request: 64KiB}]"] {
        let gateway = Gateway::start(&format!(
            "server: {{limits: {{body_bytes: 64KiB}}}}\n\
             upstreams: [{{name: origin, backends: [{{address: \"{}\"}}]}}]\n\
             routes: [{{name: all, upstream: origin, filters: {filters}}}]",
            origin.address
        ))
        .await;
        let body = noise(40_000);
        let before = hung_up.load(Ordering::SeqCst);
        // Until the gateway used a connection again, which the origin then hangs up on.
        for round in 0.. {
            assert!(round < 100, "no connection was ever reused");
            if hung_up.load(Ordering::SeqCst) > before {
                break;
            }
            // PUT may be sent twice (RFC 9110 s9.2.2).
            let mut client = Wire::connect(gateway.address()).await;
            client.send(format!("PUT / HTTP/1.1\r\nHost: a\r\nContent-Length: {}\r\n\r\n", body.len())).await;
            client.send(&body).await;
            let answer = client.answer().await.expect("an answer");
            assert_eq!((answer.status, answer.text().as_str()), (200, "40000"), "{filters}");
        }
    }
}
