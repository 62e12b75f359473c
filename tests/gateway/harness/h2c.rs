//! An HTTP/2 client without TLS, with prior knowledge (RFC 9113 s3.3).

use std::net::SocketAddr;

use bytes::Bytes;
use h2::client::{ResponseFuture, SendRequest};
use http::{HeaderMap, Request, Response};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;

use super::soon;

/// A connection; its streams run side by side.
#[derive(Clone)]
pub(crate) struct H2c {
    streams: SendRequest<Bytes>,
}

/// An answer that came whole.
#[derive(Debug)]
pub(crate) struct H2Answer {
    pub(crate) status: u16,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Vec<u8>,
}

impl H2Answer {
    pub(crate) fn field(&self, name: &str) -> Option<&str> {
        self.headers.get(name).and_then(|value| value.to_str().ok())
    }

    pub(crate) fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }
}

impl H2c {
    pub(crate) async fn connect(address: SocketAddr) -> Self {
        h2_over(TcpStream::connect(address).await.expect("connect")).await
    }

    /// A connection of which one stream cannot use up the window.
    pub(crate) async fn connect_wide(address: SocketAddr) -> Self {
        let stream = TcpStream::connect(address).await.expect("connect");
        let mut builder = h2::client::Builder::new();
        builder.initial_connection_window_size(1 << 24);
        let (streams, connection) = builder.handshake(stream).await.expect("HTTP/2");
        tokio::spawn(connection);
        Self { streams }
    }

    /// Starts a stream; the body is sent through what is given.
    pub(crate) async fn open(
        &self,
        request: Request<()>,
        end: bool,
    ) -> (ResponseFuture, h2::SendStream<Bytes>) {
        let mut streams = soon("a stream", self.streams.clone().ready()).await.expect("open");
        streams.send_request(request, end).expect("a valid request")
    }

    /// A whole exchange.
    pub(crate) async fn send(&self, request: Request<()>, body: &[u8]) -> Result<H2Answer, h2::Error> {
        let (answer, mut stream) = self.open(request, body.is_empty()).await;
        if !body.is_empty() {
            stream.send_data(Bytes::copy_from_slice(body), true).expect("open stream");
        }
        collect(answer).await
    }

    /// Asks; false once the connection takes no more.
    pub(crate) async fn try_send(&self, request: Request<()>) -> bool {
        let Ok(mut streams) = self.streams.clone().ready().await else { return false };
        let Ok((answer, _)) = streams.send_request(request, true) else { return false };
        collect(answer).await.is_ok()
    }

    /// Asks for a path.
    pub(crate) async fn get(&self, path: &str) -> H2Answer {
        let uri = format!("http://example.test{path}");
        let request = Request::get(uri).body(()).expect("valid");
        self.send(request, b"").await.expect("an answer")
    }
}

/// Speaks HTTP/2 over a connection that is there.
pub(crate) async fn h2_over<S>(stream: S) -> H2c
where
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let (streams, connection) = h2::client::handshake(stream).await.expect("HTTP/2");
    tokio::spawn(connection);
    H2c { streams }
}

/// Reads an answer to its end.
pub(crate) async fn collect(answer: ResponseFuture) -> Result<H2Answer, h2::Error> {
    let answer: Response<h2::RecvStream> = soon("an answer", answer).await?;
    let (parts, mut stream) = answer.into_parts();
    let mut body = Vec::new();
    while let Some(piece) = soon("a piece of the body", stream.data()).await {
        let piece = piece?;
        stream.flow_control().release_capacity(piece.len())?;
        body.extend(piece);
    }
    Ok(H2Answer { status: parts.status.as_u16(), headers: parts.headers, body })
}
