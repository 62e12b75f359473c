//! What the other side does not take at once.

use std::io::{self, Write as _};
use std::pin::Pin;
use std::task::{Context, Poll};

use tokio::io::AsyncWrite;

use crate::door::DoorStream;

/// Bytes that wait for the other side to take them.
#[derive(Default)]
pub(super) struct Held {
    bytes: Vec<u8>,
    at: usize,
}

impl From<Vec<u8>> for Held {
    fn from(bytes: Vec<u8>) -> Self {
        Self { bytes, at: 0 }
    }
}

impl Held {
    pub(super) fn add(&mut self, bytes: &[u8]) {
        self.bytes.extend_from_slice(bytes);
    }

    pub(super) fn rest(&self) -> &[u8] {
        &self.bytes[self.at..]
    }

    pub(super) fn is_empty(&self) -> bool {
        self.at == self.bytes.len()
    }

    pub(super) fn took(&mut self, n: usize) {
        self.at += n;
        if self.is_empty() {
            *self = Self::default();
        }
    }
}

/// What ends a body in chunks.
pub(super) const LAST_CHUNK: &[u8] = b"0\r\n\r\n";

/// Writes to the client as long as it takes it, and holds the rest.
pub(super) struct ToClient<'a, 'b> {
    pub(super) client: &'a mut DoorStream,
    pub(super) cx: &'a mut Context<'b>,
    pub(super) out: &'a mut Held,
    pub(super) failed: bool,
}

impl ToClient<'_, '_> {
    pub(super) fn send(&mut self, mut bytes: &[u8]) {
        while self.out.is_empty() && !bytes.is_empty() && !self.failed {
            match Pin::new(&mut *self.client).poll_write(self.cx, bytes) {
                Poll::Ready(Ok(n)) if n > 0 => bytes = &bytes[n..],
                Poll::Ready(_) => self.failed = true,
                Poll::Pending => break,
            }
        }
        if !bytes.is_empty() {
            self.out.add(bytes);
        }
    }

    pub(super) fn chunk(&mut self, data: &[u8]) {
        if data.is_empty() {
            return;
        }
        let mut size = io::Cursor::new([0; 18]);
        let written = write!(size, "{:x}\r\n", data.len());
        debug_assert!(written.is_ok(), "16 digits are the most");
        let length = usize::try_from(size.position()).unwrap_or_default();
        self.send(&size.get_ref()[..length]);
        self.send(data);
        self.send(b"\r\n");
    }
}
