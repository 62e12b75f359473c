//! What is on its way to the client.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Instant;

use tokio::io::AsyncWrite;
use tollhouse_filters::world::FilePart;

use super::super::alarm::Alarm;
use super::super::patience::Patience;
use super::super::socket::Socket;
use super::super::transport::Transport;

/// Writes up to this size are collected until a flush: Pingora writes a head and its body apart.
const ROOM: usize = 4096;
/// The same of HTTP/2, whose answers go out together: what one record of TLS holds.
const ROOM_OF_MANY: usize = 16 * 1024;

/// Collects small writes, and waits for the client to take them for as long as there is patience.
#[derive(Default)]
pub(super) struct Out {
    /// Written by Pingora and not yet flushed; `held[..sent]` is on its way already.
    held: Vec<u8>,
    sent: usize,
    patience: Option<Patience>,
    gave_up: bool,
    /// Many answers are on their way at once.
    many: bool,
}

impl Out {
    /// From here on the client is waited for with this patience.
    pub(super) fn wait_with(&mut self, patience: Option<Patience>) {
        self.patience = patience;
    }

    /// From here on many answers are written side by side.
    pub(super) fn carry_many(&mut self) {
        self.many = true;
    }

    /// Whether the client took too long to take something.
    pub(super) fn gave_up(&self) -> bool {
        self.gave_up
    }

    /// How many bytes wait for a flush.
    pub(super) fn len(&self) -> usize {
        self.held.len() - self.sent
    }

    /// Adds to what is held, however much that is.
    pub(super) fn add(&mut self, bytes: &[u8]) {
        self.held.extend_from_slice(bytes);
    }

    #[cfg(test)]
    pub(super) fn capacity(&self) -> usize {
        self.held.capacity()
    }

    /// Holds or sends `data`; gives how much of it.
    pub(super) fn poll_write(
        &mut self,
        inner: &mut Transport,
        alarm: &mut Alarm,
        cx: &mut Context<'_>,
        data: &[u8],
    ) -> Poll<io::Result<usize>> {
        match self.poll_take(inner, cx, data) {
            Poll::Pending => self.poll_alarm(alarm, cx),
            ready => ready,
        }
    }

    /// Sends pieces at once, when nothing is held; gives how much of them went out.
    pub(super) fn poll_write_now(
        &mut self,
        inner: &mut Transport,
        alarm: &mut Alarm,
        cx: &mut Context<'_>,
        pieces: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let inner = Pin::new(inner);
        let polled = match pieces {
            // The system takes one at less expense so.
            [piece] => inner.poll_write(cx, piece),
            pieces => inner.poll_write_vectored(cx, pieces),
        };
        match polled {
            Poll::Pending => self.poll_alarm(alarm, cx),
            Poll::Ready(sent) => {
                let n = sent?;
                self.went(n)?;
                Poll::Ready(Ok(n))
            }
        }
    }

    /// Sends what is held, and with it a part of a file; gives how much of that went out.
    pub(super) fn poll_send_file(
        &mut self,
        socket: &mut Socket,
        alarm: &mut Alarm,
        cx: &mut Context<'_>,
        part: &mut FilePart,
    ) -> Poll<io::Result<usize>> {
        while self.len() > 0 {
            match socket.poll_send_more(cx, &self.held[self.sent..]) {
                Poll::Pending => return self.poll_alarm(alarm, cx),
                Poll::Ready(sent) => {
                    let n = nonzero(sent?)?;
                    self.sent += n;
                    self.went(n)?;
                }
            }
        }
        self.drained();
        match socket.poll_send_file(cx, part) {
            Poll::Pending => self.poll_alarm(alarm, cx),
            Poll::Ready(sent) => {
                let n = sent?;
                self.went(n)?;
                Poll::Ready(Ok(n))
            }
        }
    }

    /// Sends all that is held.
    pub(super) fn poll_flush(
        &mut self,
        inner: &mut Transport,
        alarm: &mut Alarm,
        cx: &mut Context<'_>,
    ) -> Poll<io::Result<()>> {
        let flushed = match self.poll_drain(inner, cx) {
            Poll::Ready(Ok(())) => Pin::new(inner).poll_flush(cx),
            other => other,
        };
        if flushed.is_pending() {
            return self.poll_alarm(alarm, cx);
        }
        self.went(0)?;
        flushed
    }

    /// As [`poll_flush`](Self::poll_flush), for who does not mind to wait.
    pub(super) fn poll_drain(&mut self, inner: &mut Transport, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.held.capacity() == 0 {
            return inner.poll_settle(cx);
        }
        while self.sent < self.held.len() {
            let n = ready!(Pin::new(&mut *inner).poll_write(cx, &self.held[self.sent..]))?;
            self.sent += nonzero(n)?;
            self.went(n)?;
        }
        self.drained();
        inner.poll_settle(cx)
    }

    fn poll_take(
        &mut self,
        inner: &mut Transport,
        cx: &mut Context<'_>,
        data: &[u8],
    ) -> Poll<io::Result<usize>> {
        let room = if self.many { ROOM_OF_MANY } else { ROOM };
        loop {
            if self.held.len() + data.len() <= room {
                if self.held.capacity() == 0 {
                    // Most answers are a head and little more: half the room does for them.
                    self.held.reserve_exact(if data.len() > ROOM / 4 { ROOM } else { ROOM / 2 });
                }
                self.held.extend_from_slice(data);
                return Poll::Ready(Ok(data.len()));
            }
            if self.len() == 0 {
                self.drained();
                let n = ready!(Pin::new(&mut *inner).poll_write(cx, data))?;
                self.went(n)?;
                return Poll::Ready(Ok(n));
            }
            let n = ready!(self.poll_send(inner, cx, data))?;
            if n > 0 {
                return Poll::Ready(Ok(n));
            }
        }
    }

    /// Sends what is held together with `data`; gives how much of `data` went out, maybe nothing.
    fn poll_send(
        &mut self,
        inner: &mut Transport,
        cx: &mut Context<'_>,
        data: &[u8],
    ) -> Poll<io::Result<usize>> {
        let held = self.len();
        let slices = [IoSlice::new(&self.held[self.sent..]), IoSlice::new(data)];
        let n = ready!(Pin::new(inner).poll_write_vectored(cx, &slices))?;
        self.went(n)?;
        if nonzero(n)? < held {
            self.sent += n;
            return Poll::Ready(Ok(0));
        }
        self.drained();
        Poll::Ready(Ok(n - held))
    }

    fn drained(&mut self) {
        self.sent = 0;
        self.held = Vec::new();
    }

    /// The client took so many bytes.
    fn went(&mut self, n: usize) -> io::Result<()> {
        let in_time = self.patience.as_mut().is_none_or(|patience| patience.moved(n, Instant::now));
        if in_time { Ok(()) } else { Err(self.give_up()) }
    }

    /// Waits for the client no longer than patience lasts.
    fn poll_alarm<T>(&mut self, alarm: &mut Alarm, cx: &mut Context<'_>) -> Poll<io::Result<T>> {
        let Some(patience) = &mut self.patience else { return Poll::Pending };
        ready!(alarm.poll(cx, patience.waits(Instant::now())));
        Poll::Ready(Err(self.give_up()))
    }

    fn give_up(&mut self) -> io::Error {
        self.gave_up = true;
        io::ErrorKind::TimedOut.into()
    }
}

fn nonzero(n: usize) -> io::Result<usize> {
    if n == 0 { Err(io::ErrorKind::WriteZero.into()) } else { Ok(n) }
}
