//! One end of an HTTP/1 connection, byte by byte (RFC 9112).

use std::fmt;
use std::io;
use std::net::SocketAddr;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};

use super::soon;

/// One end of a connection, over TCP unless another stream is given.
pub(crate) struct Wire<S = TcpStream> {
    stream: S,
    /// Read and not yet taken.
    held: Vec<u8>,
}

/// The head of a request or an answer.
#[derive(Debug, Clone, Default)]
pub(crate) struct Head {
    /// The request line or the status line.
    pub(crate) line: String,
    /// The fields in order, names as they were sent.
    pub(crate) fields: Vec<(String, String)>,
}

/// A whole answer.
#[derive(Clone)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) head: Head,
    pub(crate) body: Vec<u8>,
}

/// Why a message did not come in whole.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Broken {
    /// The connection ended before the first byte.
    Nothing,
    /// The connection ended within the head.
    Head,
    /// The connection ended within the body, after this much of it.
    Body(Vec<u8>),
    /// The bytes are not HTTP.
    Syntax(String),
}

impl Head {
    fn parse(text: &str) -> Result<Self, Broken> {
        let mut lines = text.split("\r\n");
        let line = lines.next().unwrap_or_default().to_owned();
        let fields = lines.map(|line| {
            let (name, value) = line.split_once(':').ok_or_else(|| Broken::Syntax(line.to_owned()))?;
            Ok((name.to_owned(), value.trim().to_owned()))
        });
        Ok(Self { line, fields: fields.collect::<Result<_, _>>()? })
    }

    /// Every value of a field.
    pub(crate) fn all(&self, name: &str) -> Vec<&str> {
        let same = self.fields.iter().filter(|(field, _)| field.eq_ignore_ascii_case(name));
        same.map(|(_, value)| value.as_str()).collect()
    }

    /// The value of a field that may be there once.
    pub(crate) fn field(&self, name: &str) -> Option<&str> {
        let all = self.all(name);
        assert!(all.len() < 2, "{name} is there more than once: {self:?}");
        all.first().copied()
    }

    /// The target of a request.
    pub(crate) fn target(&self) -> &str {
        self.line.split(' ').nth(1).unwrap_or_default()
    }

    fn status(&self) -> Result<u16, Broken> {
        let status = self.line.strip_prefix("HTTP/1.").and_then(|rest| rest.get(2..5)?.parse().ok());
        status.ok_or_else(|| Broken::Syntax(self.line.clone()))
    }
}

impl fmt::Debug for Answer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let start = &self.body[..self.body.len().min(300)];
        let start = String::from_utf8_lossy(start);
        write!(f, "{} {:?} {} bytes: {start:?}", self.head.line, self.head.fields, self.body.len())
    }
}

impl Answer {
    /// The value of a field that may be there once.
    pub(crate) fn field(&self, name: &str) -> Option<&str> {
        self.head.field(name)
    }

    /// The body as text.
    pub(crate) fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    /// The body as JSON.
    pub(crate) fn json(&self) -> serde_json::Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|e| panic!("{e}: {self:?}"))
    }

    /// The code at the end of the problem's `type`.
    pub(crate) fn problem(&self) -> String {
        assert_eq!(self.field("content-type"), Some("application/problem+json"), "{self:?}");
        let document = self.json();
        let urn = document["type"].as_str().unwrap_or_default();
        urn.strip_prefix("urn:tollhouse:problem:").unwrap_or_else(|| panic!("{document}")).to_owned()
    }
}

impl Wire {
    pub(crate) async fn connect(address: SocketAddr) -> Self {
        let stream = soon("a connection", TcpStream::connect(address)).await.expect("connect");
        stream.set_nodelay(true).expect("nodelay");
        Self::new(stream)
    }

    /// As over a slow line: the system holds little of what is sent to it, so that reading it shows at the other end soon.
    pub(crate) async fn narrow(address: SocketAddr) -> Self {
        let socket = TcpSocket::new_v4().expect("a socket");
        socket.set_recv_buffer_size(64 << 10).expect("a buffer");
        Self::new(soon("a connection", socket.connect(address)).await.expect("connect"))
    }

    /// Closes with a reset, as a crashed peer does.
    pub(crate) fn reset(self) {
        let _ = self.into_stream().set_zero_linger();
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> Wire<S> {
    pub(crate) fn new(stream: S) -> Self {
        Self { stream, held: Vec::new() }
    }

    pub(crate) fn stream(&self) -> &S {
        &self.stream
    }

    /// Sends these bytes; the other side may be gone already, which reading shows.
    pub(crate) async fn send(&mut self, bytes: impl AsRef<[u8]>) {
        let _ = self.try_send(bytes.as_ref()).await;
    }

    /// Sends these bytes, and says whether that worked.
    pub(crate) async fn try_send(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.stream.write_all(bytes).await?;
        // TLS may hold the last bytes that the socket had no room for.
        self.stream.flush().await
    }

    /// No more will be sent; reading goes on.
    pub(crate) async fn half_close(&mut self) {
        let _ = self.stream.shutdown().await;
    }

    /// The stream itself; what was read and not taken is lost.
    pub(crate) fn into_stream(self) -> S {
        self.stream
    }

    /// Reads more; false at the end.
    async fn more(&mut self) -> bool {
        let mut room = vec![0; 64 * 1024];
        match soon("bytes", self.stream.read(&mut room)).await {
            Ok(0) | Err(_) => false,
            Ok(n) => {
                self.held.extend_from_slice(&room[..n]);
                true
            }
        }
    }

    /// What came, as soon as something did; empty at the end.
    pub(crate) async fn some(&mut self) -> Vec<u8> {
        if self.held.is_empty() {
            self.more().await;
        }
        std::mem::take(&mut self.held)
    }

    /// Everything up to the end of the connection.
    pub(crate) async fn rest(&mut self) -> Vec<u8> {
        while self.more().await {}
        std::mem::take(&mut self.held)
    }

    /// Waits until the other side closes; fails if it sends something first.
    pub(crate) async fn closed(&mut self) {
        assert!(!self.more().await && self.held.is_empty(), "{}", String::from_utf8_lossy(&self.held));
    }

    /// Exactly this many bytes, or what there was before the end.
    pub(crate) async fn exactly(&mut self, count: usize) -> Result<Vec<u8>, Broken> {
        while self.held.len() < count {
            if !self.more().await {
                return Err(Broken::Body(std::mem::take(&mut self.held)));
            }
        }
        let rest = self.held.split_off(count);
        Ok(std::mem::replace(&mut self.held, rest))
    }

    /// The next head; none when the connection ends before it.
    pub(crate) async fn head(&mut self) -> Result<Head, Broken> {
        loop {
            if let Some(end) = find(&self.held, b"\r\n\r\n") {
                let rest = self.held.split_off(end + 4);
                let head = std::mem::replace(&mut self.held, rest);
                return Head::parse(&String::from_utf8_lossy(&head[..end]));
            }
            if !self.more().await {
                return Err(if self.held.is_empty() { Broken::Nothing } else { Broken::Head });
            }
        }
    }

    /// The body that belongs to a head with explicit framing, as all requests have.
    pub(crate) async fn body(&mut self, head: &Head) -> Result<Vec<u8>, Broken> {
        match head.field("content-length") {
            _ if head.field("transfer-encoding").is_some() => self.chunks().await,
            Some(length) => self.exactly(length.parse().expect("a length")).await,
            None => Ok(Vec::new()),
        }
    }

    async fn chunks(&mut self) -> Result<Vec<u8>, Broken> {
        let mut body = Vec::new();
        loop {
            match self.chunk().await {
                Ok(chunk) if chunk.is_empty() => return Ok(body),
                Ok(chunk) => body.extend(chunk),
                Err(Broken::Body(part)) => {
                    body.extend(part);
                    return Err(Broken::Body(body));
                }
                Err(other) => return Err(other),
            }
        }
    }

    /// The next chunk; the last one is empty.
    pub(crate) async fn chunk(&mut self) -> Result<Vec<u8>, Broken> {
        let line = self.line().await?;
        let size = line.split(';').next().unwrap_or_default();
        let size = usize::from_str_radix(size, 16).map_err(|_| Broken::Syntax(line.clone()))?;
        let mut chunk = self.exactly(size + 2).await?;
        if !chunk.ends_with(b"\r\n") {
            return Err(Broken::Syntax(line));
        }
        chunk.truncate(size);
        Ok(chunk)
    }

    async fn line(&mut self) -> Result<String, Broken> {
        loop {
            if let Some(end) = find(&self.held, b"\r\n") {
                let line = self.exactly(end + 2).await?;
                return Ok(String::from_utf8_lossy(&line[..end]).into_owned());
            }
            if !self.more().await {
                self.held.clear();
                return Err(Broken::Body(Vec::new()));
            }
        }
    }

    /// The next final answer, to a request with this method (RFC 9112 s6.3).
    pub(crate) async fn answer_to(&mut self, method: &str) -> Result<Answer, Broken> {
        loop {
            let head = self.head().await?;
            let status = head.status()?;
            if (100..200).contains(&status) && status != 101 {
                continue;
            }
            let none = method == "HEAD" || matches!(status, 101 | 204 | 304);
            let framed = head.field("content-length").or(head.field("transfer-encoding")).is_some();
            let body = match none {
                true => Vec::new(),
                false if framed => self.body(&head).await?,
                false => self.rest().await,
            };
            return Ok(Answer { status, head, body });
        }
    }

    /// The next final answer.
    pub(crate) async fn answer(&mut self) -> Result<Answer, Broken> {
        self.answer_to("GET").await
    }
}

fn find(bytes: &[u8], wanted: &[u8]) -> Option<usize> {
    bytes.windows(wanted.len()).position(|window| window == wanted)
}
