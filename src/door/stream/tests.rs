//! Writes through a connection, as the other end sees them.

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;

use super::super::tests::{LIMITS, desk};
use super::super::{Limits, Permits};
use super::*;

fn pair() -> (DoorStream, UnixStream) {
    let (ours, theirs) = UnixStream::pair().unwrap();
    let permit = Permits::new(Limits { total: 1, per_ip: None }, |_| false).take(None).unwrap();
    let facts = ConnFacts { listener: 0, peer: None, local: None, unix: true, tls: None };
    (DoorStream::new(ours.into(), facts, &desk(LIMITS), permit), theirs)
}

/// Bytes that repeat only after 251, so that a shifted or repeated piece shows.
fn pattern(len: usize) -> Vec<u8> {
    (0..len).map(|i| (i % 251) as u8).collect()
}

#[tokio::test]
async fn writes_of_any_sizes_arrive_in_order_also_when_the_reader_is_slow() {
    let sizes = [1, 4095, 1, 4096, 4097, 10, 3_000_000, 7, 0, 2048, 2049, 100_000, 1];
    let all = pattern(sizes.iter().sum());
    let (mut ours, mut theirs) = pair();
    let expected = all.clone();
    let writer = async move {
        let mut rest = &all[..];
        for (i, size) in sizes.into_iter().enumerate() {
            let (now, later) = rest.split_at(size);
            ours.write_all(now).await.unwrap();
            if i % 3 == 2 {
                ours.flush().await.unwrap();
                assert_eq!(ours.out.capacity(), 0, "nothing is held once all is sent");
            }
            rest = later;
        }
        AsyncWriteExt::shutdown(&mut ours).await.unwrap();
    };
    let reader = async move {
        let mut got = Vec::new();
        while theirs.read_buf(&mut got).await.unwrap() > 0 {
            tokio::task::yield_now().await;
        }
        got
    };
    let ((), got) = tokio::join!(writer, reader);
    assert!(got == expected);
}

#[tokio::test]
async fn small_writes_are_held_until_the_flush() {
    let (mut ours, theirs) = pair();
    ours.write_all(b"head").await.unwrap();
    ours.write_all(b"body").await.unwrap();
    let mut got = [0; 16];
    assert_eq!(theirs.try_read(&mut got).unwrap_err().kind(), io::ErrorKind::WouldBlock);
    ours.flush().await.unwrap();
    theirs.readable().await.unwrap();
    assert_eq!(theirs.try_read(&mut got).unwrap(), 8);
}

#[tokio::test]
async fn what_waits_for_more_is_sent_when_there_is_no_more() {
    // A frame of HTTP/2 that is to be ignored (RFC 9113 s5.5).
    let frame = |last: u8| [0, 0, 1, 0xbe, 0, 0, 0, 0, 0, last];
    let (mut ours, mut theirs) = pair();
    ours.open(&LIMITS);
    ours.carried.corked.store(true, Ordering::Relaxed);
    for nth in 1..=2 {
        ours.write_all(&frame(nth)).await.unwrap();
        ours.flush().await.unwrap();
    }
    let mut got = [0; 32];
    assert_eq!(theirs.try_read(&mut got).unwrap_err().kind(), io::ErrorKind::WouldBlock);
    ours.carried.corked.store(false, Ordering::Relaxed);
    ours.flush().await.unwrap();
    theirs.read_exact(&mut got[..20]).await.unwrap();
    assert_eq!(got[..20], [frame(1), frame(2)].concat());
    ours.carried.corked.store(true, Ordering::Relaxed);
    ours.write_all(&frame(3)).await.unwrap();
    AsyncWriteExt::shutdown(&mut ours).await.unwrap();
    let mut rest = Vec::new();
    theirs.read_to_end(&mut rest).await.unwrap();
    assert_eq!(rest, frame(3));
}

/// RFC 9112 s9.6: to close with something unread would reset the connection.
#[tokio::test]
async fn an_answer_can_be_read_after_a_shutdown_before_all_requests_were_read() {
    let (mut ours, mut theirs) = pair();
    theirs.write_all(&pattern(64 << 10)).await.unwrap();
    std::future::poll_fn(|cx| ours.poll_lead(cx)).await.unwrap();
    ours.write_all(b"answer").await.unwrap();
    AsyncWriteExt::shutdown(&mut ours).await.unwrap();
    drop(ours);
    let mut got = Vec::new();
    theirs.read_to_end(&mut got).await.unwrap();
    assert_eq!(got, b"answer");
}

#[tokio::test]
async fn what_comes_before_a_request_is_read_in_order_however_much_comes_at_once() {
    let sizes = [1, 100, 8_191, 8_192, 8_193, 16_384, 5, 40_000];
    for first in sizes {
        let (mut ours, mut theirs) = pair();
        let all = pattern(first + 300);
        theirs.write_all(&all[..first]).await.unwrap();
        while ours.lead().len() < first {
            std::future::poll_fn(|cx| ours.poll_lead(cx)).await.unwrap();
        }
        theirs.write_all(&all[first..]).await.unwrap();
        while ours.lead().len() < all.len() {
            std::future::poll_fn(|cx| ours.poll_lead(cx)).await.unwrap();
        }
        assert!(ours.lead() == all, "{first} at once");
    }
}
