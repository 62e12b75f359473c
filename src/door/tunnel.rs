//! A WebSocket that passes (RFC 6455): where its frames to the client end, so that it can be closed in words.

use std::fmt;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use pingora::server::ShutdownWatch;

use super::stopped;

/// The close frame of a server that goes away (RFC 6455 s5.5.1, s7.4.1: 1001).
pub(super) const GOING_AWAY: &[u8] = &[0x88, 2, 0x03, 0xe9];

/// What is sent to the client, from the head of the answer on, and the end of its time.
pub(super) struct Tunnel {
    follower: Follower,
    /// None once it is over.
    over: Option<Pin<Box<dyn Future<Output = ()> + Send + Sync>>>,
    closed: bool,
}

impl Tunnel {
    /// A tunnel that is to be closed when `over` says so.
    pub(super) fn new(over: ShutdownWatch) -> Self {
        Self { follower: Follower::default(), over: Some(Box::pin(stopped(over))), closed: false }
    }

    /// Follows what is sent.
    pub(super) fn follow(&mut self, bytes: &[u8]) {
        self.follower.follow(bytes);
    }

    /// Whether the client was told that the tunnel is closed; nothing may be sent after that.
    pub(super) fn is_closed(&self) -> bool {
        self.closed
    }

    /// Whether to close now: once, when the time is over, and never within a frame.
    pub(super) fn poll_close(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if let Some(over) = &mut self.over {
            ready!(over.as_mut().poll(cx));
            self.over = None;
        }
        if self.closed || !self.follower.is_between() {
            return Poll::Pending;
        }
        self.closed = true;
        Poll::Ready(())
    }
}

impl fmt::Debug for Tunnel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tunnel").field("follower", &self.follower).finish_non_exhaustive()
    }
}

/// The longest head of a frame (RFC 6455 s5.2).
const HEAD: usize = 14;
const END_OF_ANSWER: &[u8] = b"\r\n\r\n";

/// Where the bytes to the client are.
#[derive(Debug)]
enum Follower {
    /// In the head of the answer, with so much of its end seen.
    Answer(usize),
    /// In the head of a frame, or before it.
    Head([u8; HEAD], usize),
    /// In a frame, with so much left.
    Payload(u64),
}

impl Default for Follower {
    fn default() -> Self {
        Self::Answer(0)
    }
}

impl Follower {
    fn follow(&mut self, mut bytes: &[u8]) {
        while let [first, rest @ ..] = bytes {
            match self {
                Self::Payload(left) => {
                    let passed = usize::try_from(*left).unwrap_or(usize::MAX).min(bytes.len());
                    *left -= passed as u64;
                    bytes = &bytes[passed..];
                    if *left == 0 {
                        *self = Self::Head([0; HEAD], 0);
                    }
                    continue;
                }
                Self::Answer(seen) => {
                    *seen = match END_OF_ANSWER[*seen] == *first {
                        true => *seen + 1,
                        false => usize::from(*first == b'\r'),
                    };
                    if *seen == END_OF_ANSWER.len() {
                        *self = Self::Head([0; HEAD], 0);
                    }
                }
                Self::Head(head, have) => {
                    head[*have] = *first;
                    *have += 1;
                    match payload(&head[..*have]) {
                        Some(0) => *self = Self::Head([0; HEAD], 0),
                        Some(length) => *self = Self::Payload(length),
                        None => {}
                    }
                }
            }
            bytes = rest;
        }
    }

    fn is_between(&self) -> bool {
        matches!(self, Self::Head(_, 0))
    }
}

/// The length of a frame's payload, if its head is whole.
fn payload(head: &[u8]) -> Option<u64> {
    let [_, second, rest @ ..] = head else { return None };
    let (length, rest) = match second & 0x7f {
        126 => (u64::from(u16::from_be_bytes(*rest.first_chunk()?)), &rest[2..]),
        127 => (u64::from_be_bytes(*rest.first_chunk()?), &rest[8..]),
        short => (u64::from(short), rest),
    };
    // Servers send no masks, but the mask is part of the head where there is one.
    let masked = second & 0x80 != 0;
    (!masked || rest.len() == 4).then_some(length)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const ANSWER: &[u8] = b"HTTP/1.1 101 Switching Protocols\r\nupgrade: websocket\r\n\r\n";

    fn frame(payload: usize, mask: bool) -> Vec<u8> {
        let bit = if mask { 0x80 } else { 0 };
        let mut frame = vec![0x82];
        match payload {
            0..126 => frame.push(bit | u8::try_from(payload).unwrap()),
            126..=0xffff => {
                frame.push(bit | 126);
                frame.extend(u16::try_from(payload).unwrap().to_be_bytes());
            }
            _ => {
                frame.push(bit | 127);
                frame.extend((payload as u64).to_be_bytes());
            }
        }
        frame.extend(&[b'm'; 4][..if mask { 4 } else { 0 }]);
        // What is in it looks like frames and answers.
        frame.extend(b"\r\n\r\n\x81\x00".iter().cycle().take(payload));
        frame
    }

    #[test]
    fn a_frame_under_way_when_the_time_is_over_is_waited_for() {
        let (over, watch) = tokio::sync::watch::channel(false);
        let mut tunnel = Tunnel::new(watch);
        let mut context = Context::from_waker(std::task::Waker::noop());
        let frame = frame(9, false);
        tunnel.follow(ANSWER);
        tunnel.follow(&frame[..4]);
        assert!(tunnel.poll_close(&mut context).is_pending());
        over.send_replace(true);
        for _ in 0..3 {
            assert!(tunnel.poll_close(&mut context).is_pending(), "within a frame");
        }
        tunnel.follow(&frame[4..]);
        assert!(tunnel.poll_close(&mut context).is_ready());
        assert!(tunnel.is_closed() && tunnel.poll_close(&mut context).is_pending(), "once");
    }

    proptest! {
        #[test]
        fn frames_end_where_they_end_however_they_are_cut(
            sizes in prop::collection::vec((prop_oneof![0..130_usize, Just(65_535), Just(65_536)], any::<bool>()), 0..6),
            cuts in prop::collection::vec(1..5000_usize, 1..40),
        ) {
            let (mut bytes, mut ends) = (ANSWER.to_vec(), vec![ANSWER.len()]);
            for (size, mask) in sizes {
                bytes.extend(frame(size, mask));
                ends.push(bytes.len());
            }
            let (mut follower, mut at) = (Follower::default(), 0);
            for cut in cuts.iter().cycle() {
                prop_assert_eq!(follower.is_between(), ends.contains(&at), "at {}", at);
                if at == bytes.len() {
                    break;
                }
                let end = bytes.len().min(at + cut);
                follower.follow(&bytes[at..end]);
                at = end;
            }
        }
    }
}
