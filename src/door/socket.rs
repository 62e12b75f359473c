//! The socket of an accepted connection.

use std::io::{self, IoSlice};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd};
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use futures_util::FutureExt;
use rustix::fs::sendfile;
use rustix::net::{SendFlags, send};
use tokio::io::{AsyncRead, AsyncWrite, Interest, ReadBuf};
use tokio::net::{TcpStream, UnixStream};
use tollhouse_filters::world::FilePart;

/// What is sent of a file with one call at most, in bytes.
const MOST_AT_ONCE: usize = 1 << 20;

/// A socket, and what was read from it too early.
pub(super) struct Socket {
    kind: Kind,
    /// Read before the rest; empty for all but those whose proxy introduced them.
    ahead: Vec<u8>,
}

enum Kind {
    Tcp(TcpStream),
    Unix(UnixStream),
}

impl Socket {
    /// Puts bytes back that were read: they are read again before all others.
    pub(super) fn put_back(&mut self, bytes: &[u8]) {
        self.ahead.splice(..0, bytes.iter().copied());
    }
}

/// Tells when the other end of a socket hangs up, whatever is still to be read from it.
///
/// It has a registration of its own: what it was told before it would else have to hide from who reads.
pub(super) struct Hangup(Kind);

impl Hangup {
    /// Of this socket; fails if the system has no more descriptors.
    pub(super) fn of(socket: &Socket) -> io::Result<Self> {
        Ok(Self(match &socket.kind {
            Kind::Tcp(socket) => Kind::Tcp(TcpStream::from_std(socket.as_fd().try_clone_to_owned()?.into())?),
            Kind::Unix(socket) => {
                Kind::Unix(UnixStream::from_std(socket.as_fd().try_clone_to_owned()?.into())?)
            }
        }))
    }

    /// Ready when it did, or the connection broke.
    pub(super) fn poll(&self, cx: &mut Context<'_>) -> Poll<()> {
        let nothing = || Err::<(), _>(io::ErrorKind::WouldBlock.into());
        loop {
            let (ready, seen) = match &self.0 {
                Kind::Tcp(socket) => {
                    (ready!(socket.poll_read_ready(cx)), socket.ready(Interest::READABLE).now_or_never())
                }
                Kind::Unix(socket) => {
                    (ready!(socket.poll_read_ready(cx)), socket.ready(Interest::READABLE).now_or_never())
                }
            };
            if ready.is_err() || seen.is_some_and(|seen| seen.map_or(true, |seen| seen.is_read_closed())) {
                return Poll::Ready(());
            }
            // What made it readable was told: only what comes next is of interest.
            let _ = match &self.0 {
                Kind::Tcp(socket) => socket.try_io(Interest::READABLE, nothing),
                Kind::Unix(socket) => socket.try_io(Interest::READABLE, nothing),
            };
        }
    }
}

impl Socket {
    /// Sends bytes that more will follow at once, so that they go out with it.
    pub(super) fn poll_send_more(&mut self, cx: &mut Context<'_>, data: &[u8]) -> Poll<io::Result<usize>> {
        self.poll_try(cx, |socket| Ok(send(socket, data, SendFlags::MORE | SendFlags::NOSIGNAL)?))
    }

    /// Sends from a file, without a copy (sendfile(2)); what was sent is no longer in the part.
    pub(super) fn poll_send_file(
        &mut self,
        cx: &mut Context<'_>,
        part: &mut FilePart,
    ) -> Poll<io::Result<usize>> {
        let most = usize::try_from(part.left).unwrap_or(usize::MAX).min(MOST_AT_ONCE);
        let sent = ready!(self.poll_try(cx, |socket| {
            let mut at = part.at;
            Ok(sendfile(socket, &part.file, Some(&mut at), most)?)
        }))?;
        part.at += sent as u64;
        part.left -= sent as u64;
        Poll::Ready(if sent == 0 && part.left > 0 {
            Err(io::ErrorKind::UnexpectedEof.into())
        } else {
            Ok(sent)
        })
    }

    /// Tries what may find the socket full, as often as it is said to have room.
    fn poll_try(
        &self,
        cx: &mut Context<'_>,
        mut attempt: impl FnMut(BorrowedFd<'_>) -> io::Result<usize>,
    ) -> Poll<io::Result<usize>> {
        loop {
            let tried = match &self.kind {
                Kind::Tcp(socket) => {
                    ready!(socket.poll_write_ready(cx))?;
                    socket.try_io(Interest::WRITABLE, || attempt(socket.as_fd()))
                }
                Kind::Unix(socket) => {
                    ready!(socket.poll_write_ready(cx))?;
                    socket.try_io(Interest::WRITABLE, || attempt(socket.as_fd()))
                }
            };
            match tried {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                tried => return Poll::Ready(tried),
            }
        }
    }
}

impl From<TcpStream> for Socket {
    fn from(socket: TcpStream) -> Self {
        Self { kind: Kind::Tcp(socket), ahead: Vec::new() }
    }
}

impl From<UnixStream> for Socket {
    fn from(socket: UnixStream) -> Self {
        Self { kind: Kind::Unix(socket), ahead: Vec::new() }
    }
}

impl AsRawFd for Socket {
    fn as_raw_fd(&self) -> RawFd {
        match &self.kind {
            Kind::Tcp(socket) => socket.as_raw_fd(),
            Kind::Unix(socket) => socket.as_raw_fd(),
        }
    }
}

impl AsyncRead for Socket {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if !this.ahead.is_empty() {
            let n = this.ahead.len().min(buf.remaining());
            buf.put_slice(&this.ahead[..n]);
            this.ahead = this.ahead.split_off(n);
            return Poll::Ready(Ok(()));
        }
        match &mut this.kind {
            Kind::Tcp(socket) => Pin::new(socket).poll_read(cx, buf),
            Kind::Unix(socket) => Pin::new(socket).poll_read(cx, buf),
        }
    }
}

impl AsyncWrite for Socket {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, data: &[u8]) -> Poll<io::Result<usize>> {
        match &mut self.get_mut().kind {
            Kind::Tcp(socket) => Pin::new(socket).poll_write(cx, data),
            Kind::Unix(socket) => Pin::new(socket).poll_write(cx, data),
        }
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match &mut self.get_mut().kind {
            Kind::Tcp(socket) => Pin::new(socket).poll_write_vectored(cx, slices),
            Kind::Unix(socket) => Pin::new(socket).poll_write_vectored(cx, slices),
        }
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    /// Sockets hold nothing back.
    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.get_mut().kind {
            Kind::Tcp(socket) => Pin::new(socket).poll_shutdown(cx),
            Kind::Unix(socket) => Pin::new(socket).poll_shutdown(cx),
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    #[tokio::test]
    async fn what_was_put_back_is_read_before_all_others() {
        let (mut client, socket) = UnixStream::pair().expect("a pair");
        let mut socket = Socket::from(socket);
        socket.put_back(b"cd");
        socket.put_back(b"ab");
        client.write_all(b"ef").await.expect("sent");
        drop(client);
        let mut first = [0; 3];
        socket.read_exact(&mut first).await.expect("read");
        let mut rest = Vec::new();
        socket.read_to_end(&mut rest).await.expect("read");
        assert_eq!((&first, &*rest), (b"abc", b"def".as_slice()));
    }
}
