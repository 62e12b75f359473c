//! What the other side does not take at once.

use std::io::{self, IoSlice, Write as _};
use std::pin::Pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll};

use super::client::Client;
use crate::upstream::Keep;

/// What the bodies of all exchanges together may hold before each is held to little: `loadtest/hostile` has a
/// goal for what thousands of slow readers take.
const MUCH: usize = 8 * 1024 * 1024;

/// Bytes of bodies that wait, in the whole process.
static WAITING: AtomicUsize = AtomicUsize::new(0);

/// Whether so little waits that more may be read at once than is wise where many are slow.
pub(super) fn is_little() -> bool {
    WAITING.load(Ordering::Relaxed) < MUCH
}

/// Bytes that wait for the other side to take them.
#[derive(Default)]
pub(super) struct Held {
    bytes: Vec<u8>,
    at: usize,
    /// How many of them are counted: all but those it began with.
    counted: usize,
}

impl From<Vec<u8>> for Held {
    fn from(bytes: Vec<u8>) -> Self {
        Self { bytes, at: 0, counted: 0 }
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        if self.counted > 0 {
            WAITING.fetch_sub(self.counted, Ordering::Relaxed);
        }
    }
}

impl Held {
    pub(super) fn add(&mut self, bytes: &[u8]) {
        if !bytes.is_empty() {
            self.bytes.extend_from_slice(bytes);
            self.counted += bytes.len();
            WAITING.fetch_add(bytes.len(), Ordering::Relaxed);
        }
    }

    pub(super) fn rest(&self) -> &[u8] {
        &self.bytes[self.at..]
    }

    pub(super) fn is_empty(&self) -> bool {
        self.at == self.bytes.len()
    }

    pub(super) fn took(&mut self, n: usize) {
        self.at += n;
        if n > 0 && self.is_empty() {
            *self = Self::default();
        }
    }
}

/// The part of a body that was read, for another attempt to begin with.
pub(super) enum Kept {
    /// It is here.
    Here(Vec<u8>, Keep),
    /// Others keep all of it.
    Elsewhere,
    /// Some of it is gone.
    Lost,
}

impl Kept {
    /// Adds a piece, of a body of which so much was read, and some of it `written` or not.
    pub(super) fn add(&mut self, piece: &[u8], read: u64, written: bool) {
        let Self::Here(bytes, keep) = self else { return };
        let room = match keep {
            Keep::All(most) => read <= *most,
            Keep::Unsent => !written,
            Keep::Nothing => false,
        };
        if room { bytes.extend_from_slice(piece) } else { *self = Self::Lost }
    }
}

/// What ends a body in chunks.
pub(super) const LAST_CHUNK: &[u8] = b"0\r\n\r\n";

/// Writes to the client as long as it takes it, and holds the rest.
pub(super) struct ToClient<'a, 'b, C> {
    pub(super) client: &'a mut C,
    pub(super) cx: &'a mut Context<'b>,
    pub(super) out: &'a mut Held,
    pub(super) failed: bool,
}

impl<C: Client> ToClient<'_, '_, C> {
    /// Sends a piece at once, after what waits before it.
    pub(super) fn send(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() && !self.failed {
            let before = self.out.rest().len();
            let pieces = [IoSlice::new(self.out.rest()), IoSlice::new(bytes)];
            match Pin::new(&mut *self.client).poll_write_vectored(self.cx, &pieces) {
                Poll::Ready(Ok(n)) if n > 0 => {
                    self.out.took(n.min(before));
                    bytes = &bytes[n.saturating_sub(before)..];
                }
                Poll::Ready(_) => self.failed = true,
                Poll::Pending => break,
            }
        }
        self.out.add(bytes);
    }

    /// Writes a small piece, to go out with those around it.
    pub(super) fn write(&mut self, mut bytes: &[u8]) {
        while self.out.is_empty() && !bytes.is_empty() && !self.failed {
            match Pin::new(&mut *self.client).poll_write(self.cx, bytes) {
                Poll::Ready(Ok(n)) if n > 0 => bytes = &bytes[n..],
                Poll::Ready(_) => self.failed = true,
                Poll::Pending => break,
            }
        }
        self.out.add(bytes);
    }

    pub(super) fn chunk(&mut self, data: &[u8]) {
        if data.is_empty() {
            return;
        }
        let mut size = [0; 18];
        for part in [size_line(data.len(), &mut size), data, b"\r\n"] {
            self.write(part);
        }
    }
}

/// The line before a chunk of so many bytes, in this room.
fn size_line(length: usize, room: &mut [u8; 18]) -> &[u8] {
    let mut line = io::Cursor::new(&mut room[..]);
    let written = write!(line, "{length:x}\r\n");
    debug_assert!(written.is_ok(), "16 digits are the most");
    let end = usize::try_from(line.position()).unwrap_or_default();
    &room[..end]
}

/// A piece of a body as a chunk (RFC 9112 s7.1), and what ends the body after it, if it is the last.
pub(super) fn chunk(data: &[u8], last: bool) -> Vec<u8> {
    let mut size = [0; 18];
    let whole = [size_line(data.len(), &mut size), data, b"\r\n"].concat();
    match (data.is_empty(), last) {
        (true, true) => LAST_CHUNK.to_vec(),
        (true, false) => Vec::new(),
        (false, true) => [&whole, LAST_CHUNK].concat(),
        (false, false) => whole,
    }
}
