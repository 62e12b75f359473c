//! What carries a connection's bytes: the socket itself, or TLS over it.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use pingora::prelude::timeout;
use pingora::protocols::ALPN;
use pingora::protocols::tls::SslDigest;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio_rustls::server::TlsStream;
use tollhouse_filters::context::Tls;

use super::Permit;
use super::socket::Socket;
use crate::tls::H2;

/// A socket, or TLS over it.
pub(super) enum Transport {
    /// The socket.
    Plain(Socket),
    /// TLS after its handshake; boxed, so that plain connections do not pay for it.
    Tls(Box<Secure>),
}

/// TLS after its handshake.
pub(super) struct Secure {
    stream: TlsStream<Socket>,
    digest: Arc<SslDigest>,
    http2: bool,
}

impl Secure {
    pub(super) fn new(stream: TlsStream<Socket>, agreed: &Tls) -> Self {
        let fingerprint = agreed.certificate.as_ref().map(|certificate| certificate.fingerprint.to_vec());
        let digest =
            SslDigest::new(agreed.cipher, agreed.version, None, None, fingerprint.unwrap_or_default());
        Self { stream, digest: Arc::new(digest), http2: agreed.protocol == Some(H2) }
    }
}

impl Transport {
    /// The socket under all.
    pub(super) fn socket(&self) -> &Socket {
        match self {
            Self::Plain(socket) => socket,
            Self::Tls(secure) => secure.stream.get_ref().0,
        }
    }

    /// Whether both sides agreed on HTTP/2; none where nothing was to agree on.
    pub(super) fn http2(&self) -> Option<bool> {
        match self {
            Self::Plain(_) => None,
            Self::Tls(secure) => Some(secure.http2),
        }
    }

    /// What Pingora is told of TLS.
    pub(super) fn ssl_digest(&self) -> Option<Arc<SslDigest>> {
        match self {
            Self::Plain(_) => None,
            Self::Tls(secure) => Some(secure.digest.clone()),
        }
    }

    /// As [`http2`](Self::http2), in Pingora's words.
    pub(super) fn alpn(&self) -> Option<ALPN> {
        self.http2().map(|http2| if http2 { ALPN::H2 } else { ALPN::H1 })
    }

    /// Sends what TLS took and still holds, since the socket had no room for it.
    pub(super) fn poll_settle(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self {
            Self::Plain(_) => Poll::Ready(Ok(())),
            Self::Tls(secure) => Pin::new(&mut secure.stream).poll_flush(cx),
        }
    }

    /// Whether TLS still holds something of what it took.
    pub(super) fn holds(&self) -> bool {
        match self {
            Self::Plain(_) => false,
            Self::Tls(secure) => secure.stream.get_ref().1.wants_write(),
        }
    }

    /// The socket, if what is sent goes out as it is.
    pub(super) fn plain(&mut self) -> Option<&mut Socket> {
        match self {
            Self::Plain(socket) => Some(socket),
            Self::Tls(_) => None,
        }
    }

    pub(super) async fn close(&mut self) {
        match self {
            Self::Plain(socket) => drop(socket.shutdown().await),
            Self::Tls(secure) => drop(secure.stream.shutdown().await),
        }
    }
}

impl AsyncRead for Transport {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(socket) => Pin::new(socket).poll_read(cx, buf),
            Self::Tls(secure) => Pin::new(&mut secure.stream).poll_read(cx, buf),
        }
    }
}

impl AsyncWrite for Transport {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, data: &[u8]) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Plain(socket) => Pin::new(socket).poll_write(cx, data),
            Self::Tls(secure) => Pin::new(&mut secure.stream).poll_write(cx, data),
        }
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Plain(socket) => Pin::new(socket).poll_write_vectored(cx, slices),
            Self::Tls(secure) => Pin::new(&mut secure.stream).poll_write_vectored(cx, slices),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(socket) => Pin::new(socket).poll_flush(cx),
            Self::Tls(secure) => Pin::new(&mut secure.stream).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(socket) => Pin::new(socket).poll_shutdown(cx),
            Self::Tls(secure) => Pin::new(&mut secure.stream).poll_shutdown(cx),
        }
    }
}

/// Closes our side, and waits for the other one to close its own, so that it can read what it was sent:
/// closing with bytes unread would reset the connection.
pub(super) async fn linger(mut transport: Transport, _permit: Permit) {
    /// How much and how long is waited for, whatever the client sends.
    const MOST: usize = 16 << 20;
    const PATIENCE: Duration = Duration::from_secs(2);
    let rest = async {
        transport.shutdown().await?;
        let mut room = [0; 2048];
        let mut left = MOST;
        while left > 0 {
            match transport.read(&mut room).await? {
                0 => break,
                n => left = left.saturating_sub(n),
            }
        }
        io::Result::Ok(())
    };
    let _ = timeout(PATIENCE, rest).await;
}
