//! Side calls: how a filter asks another server something while it handles a request.

use std::borrow::Cow;
use std::collections::VecDeque;
use std::fmt;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::{Bytes, BytesMut};
use http::HeaderMap;
use parking_lot::Mutex;
use pingora_http::{RequestHeader, ResponseHeader};

/// An upstream of the running snapshot, resolved while a filter is built.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct UpstreamId(pub u32);

/// Scheme, host and port of a URL (RFC 6454 s4): where calls can go without an upstream of the document.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Origin {
    /// Over TLS, verified by the system's authorities.
    pub tls: bool,
    /// A name in lower case, or an address without brackets.
    pub host: Box<str>,
    /// The port.
    pub port: u16,
    /// Somebody else than the document's author named it: it may lead to addresses only that are public,
    /// so that nobody has the gateway call what is near it.
    pub public_only: bool,
}

/// Sends requests to upstreams by their own policies (TLS, pool, timeouts); follows no redirects.
#[async_trait]
pub trait Client: Send + Sync {
    /// Sends one request and waits for the head of the reply; `timeout` bounds the head and the whole body.
    async fn send(
        &self,
        upstream: UpstreamId,
        head: RequestHeader,
        body: Bytes,
        timeout: Option<Duration>,
    ) -> Result<ClientReply, ClientError>;

    /// Whether there is no network, so that nothing can be asked.
    fn is_dry(&self) -> bool {
        false
    }

    /// Sends a request of which nobody waits for the answer, beside all others: on a thread and over connections of
    /// its own. Never blocks.
    fn send_aside(&self, aside: Aside) {
        (aside.then)(Err(ClientError::Unavailable("no network".into())));
    }

    /// Prepares what [`send_aside`](Self::send_aside) needs, which may take long.
    fn open_aside(&self) {}

    /// The upstream that stands for an origin; none where there is no network, or of too many.
    fn origin(&self, _origin: &Origin) -> Option<UpstreamId> {
        None
    }
}

/// A request of which nobody waits for the answer.
pub struct Aside {
    /// Where to.
    pub upstream: UpstreamId,
    /// Method, target and fields.
    pub head: RequestHeader,
    /// The content.
    pub body: Bytes,
    /// The limit on all of it, the answer's body included.
    pub timeout: Duration,
    /// How many bytes of the answer's body are wanted.
    pub keep: usize,
    /// Is told what came of it.
    pub then: Box<Told>,
}

/// Is told of the answer to an [`Aside`]: its head, and its body unless that is longer than was wanted.
pub type Told = dyn FnOnce(Result<(ResponseHeader, Option<Bytes>), ClientError>) + Send;

/// A body that is read piece by piece.
#[async_trait]
pub trait ClientBody: Send + Sync {
    /// The next piece; `None` after the last one. After an error no further piece comes.
    async fn next(&mut self) -> Result<Option<Bytes>, ClientError>;

    /// The next piece, if it is there already.
    fn ready(&mut self) -> Option<Bytes> {
        None
    }

    /// The trailer fields that came behind it (RFC 9110 s6.5), once the last piece was read.
    fn trailers(&mut self) -> Option<HeaderMap> {
        None
    }

    /// All that is left of it, if that lies in a file: the kernel can send it from there. Nothing is left then.
    fn file(&mut self) -> Option<FilePart> {
        None
    }
}

/// A part of a file, which stays as it is as long as somebody has this.
pub struct FilePart {
    /// The file.
    pub file: Arc<dyn AsFd + Send + Sync>,
    /// Where in it the part begins, in bytes.
    pub at: u64,
    /// How many bytes it has.
    pub left: u64,
}

impl fmt::Debug for FilePart {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "FilePart({} bytes from {})", self.left, self.at)
    }
}

/// What came back.
pub struct ClientReply {
    /// Status and fields.
    pub head: ResponseHeader,
    /// The content, still arriving.
    pub body: Box<dyn ClientBody>,
}

impl ClientReply {
    /// Reads the rest of the body into one piece; fails as soon as it exceeds `limit` bytes.
    pub async fn read_all(&mut self, limit: usize) -> Result<Bytes, ClientError> {
        let mut whole = BytesMut::new();
        while let Some(piece) = self.body.next().await? {
            if piece.len() > limit.saturating_sub(whole.len()) {
                return Err(ClientError::TooLarge { limit });
            }
            whole.extend_from_slice(&piece);
        }
        Ok(whole.freeze())
    }
}

impl fmt::Debug for ClientReply {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ClientReply").field("status", &self.head.status).finish_non_exhaustive()
    }
}

/// Why a side call gave no reply. The text says what happened and is not meant for clients.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ClientError {
    /// Nothing was sent: no network, no healthy backend, a full or open guard.
    Unavailable(Cow<'static, str>),
    /// No connection could be made; nothing was sent.
    Connect(String),
    /// The time was up; the request may have been processed.
    Timeout,
    /// The connection broke or the answer was no HTTP; the request may have been processed.
    Broken(String),
    /// The body is larger than the caller accepts.
    TooLarge {
        /// The caller's limit in bytes.
        limit: usize,
    },
}

impl fmt::Display for ClientError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unavailable(why) => write!(f, "not available: {why}"),
            Self::Connect(why) => write!(f, "no connection: {why}"),
            Self::Timeout => f.write_str("no reply in time"),
            Self::Broken(why) => write!(f, "broken reply: {why}"),
            Self::TooLarge { limit } => write!(f, "the reply's body exceeds {limit} bytes"),
        }
    }
}

impl std::error::Error for ClientError {}

/// A body whose pieces are all here.
#[derive(Debug, Clone, Default)]
pub struct BufferedBody(VecDeque<Bytes>);

impl BufferedBody {
    /// A body of these pieces, in order; empty pieces are left out.
    #[must_use]
    pub fn new(pieces: impl IntoIterator<Item = Bytes>) -> Self {
        Self(pieces.into_iter().filter(|piece| !piece.is_empty()).collect())
    }
}

#[async_trait]
impl ClientBody for BufferedBody {
    async fn next(&mut self) -> Result<Option<Bytes>, ClientError> {
        Ok(self.0.pop_front())
    }

    fn ready(&mut self) -> Option<Bytes> {
        self.0.pop_front()
    }
}

/// The client of a dry run: every call fails.
#[derive(Debug, Clone, Copy, Default)]
pub struct NoClient;

#[async_trait]
impl Client for NoClient {
    async fn send(
        &self,
        _upstream: UpstreamId,
        _head: RequestHeader,
        _body: Bytes,
        _timeout: Option<Duration>,
    ) -> Result<ClientReply, ClientError> {
        Err(ClientError::Unavailable("no network in a dry run".into()))
    }

    fn is_dry(&self) -> bool {
        true
    }
}

/// A request that a [`ScriptedClient`] was given.
#[derive(Debug, Clone)]
pub struct SentRequest {
    /// Where to.
    pub upstream: UpstreamId,
    /// Method, target and fields.
    pub head: RequestHeader,
    /// The content.
    pub body: Bytes,
    /// The time the caller allowed.
    pub timeout: Option<Duration>,
}

/// Answers from a queue and remembers what it was asked, for tests.
#[derive(Debug, Default)]
pub struct ScriptedClient {
    replies: Mutex<VecDeque<Result<ClientReply, ClientError>>>,
    requests: Mutex<Vec<SentRequest>>,
    origins: Mutex<Vec<Origin>>,
}

impl ScriptedClient {
    /// A client with an empty script: calls fail until a reply is added.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a reply whose body comes in these pieces. Panics when `head` is no valid head: a mistake in the test.
    pub fn reply<'a>(
        &self,
        status: u16,
        fields: &[(&str, &str)],
        pieces: impl IntoIterator<Item = &'a [u8]>,
    ) {
        let mut head =
            ResponseHeader::build(status, Some(fields.len())).expect("a valid status in the script");
        for (name, value) in fields {
            head.append_header(name.to_string(), *value).expect("a valid field in the script");
        }
        let body = BufferedBody::new(pieces.into_iter().map(Bytes::copy_from_slice));
        self.replies.lock().push_back(Ok(ClientReply { head, body: Box::new(body) }));
    }

    /// Adds a failure.
    pub fn fail(&self, error: ClientError) {
        self.replies.lock().push_back(Err(error));
    }

    /// The origins that calls were prepared for; the first one's upstream is 1000, and so on.
    #[must_use]
    pub fn origins(&self) -> Vec<Origin> {
        self.origins.lock().clone()
    }

    /// What was sent so far, in order.
    #[must_use]
    pub fn requests(&self) -> Vec<SentRequest> {
        self.requests.lock().clone()
    }
}

#[async_trait]
impl Client for ScriptedClient {
    async fn send(
        &self,
        upstream: UpstreamId,
        head: RequestHeader,
        body: Bytes,
        timeout: Option<Duration>,
    ) -> Result<ClientReply, ClientError> {
        self.requests.lock().push(SentRequest { upstream, head, body, timeout });
        let reply = self.replies.lock().pop_front();
        reply.unwrap_or_else(|| Err(ClientError::Unavailable("the script has no further reply".into())))
    }

    fn send_aside(&self, aside: Aside) {
        let Aside { upstream, head, body, timeout, then, .. } = aside;
        self.requests.lock().push(SentRequest { upstream, head, body, timeout: Some(timeout) });
        let reply = self.replies.lock().pop_front();
        then(reply.map_or(Err(ClientError::Timeout), |reply| reply.map(|reply| (reply.head, None))));
    }

    fn origin(&self, origin: &Origin) -> Option<UpstreamId> {
        let mut origins = self.origins.lock();
        let at = origins.iter().position(|known| known == origin).unwrap_or_else(|| {
            origins.push(origin.clone());
            origins.len() - 1
        });
        u32::try_from(at).ok().map(|at| UpstreamId(1000 + at))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn ask(client: &dyn Client) -> Result<ClientReply, ClientError> {
        let head = RequestHeader::build("GET", b"/check", None).unwrap();
        client.send(UpstreamId(3), head, Bytes::from_static(b"q"), Some(Duration::from_secs(1))).await
    }

    #[tokio::test]
    async fn a_dry_run_has_no_network() {
        let error = ask(&NoClient).await.unwrap_err();
        assert_eq!(error, ClientError::Unavailable("no network in a dry run".into()));
    }

    #[tokio::test]
    async fn a_script_answers_in_order_and_remembers_the_requests() {
        let client = ScriptedClient::new();
        client.reply(204, &[("x-a", "1"), ("x-a", "2")], []);
        client.fail(ClientError::Timeout);
        let reply = ask(&client).await.unwrap();
        assert_eq!(reply.head.status, 204);
        assert_eq!(reply.head.headers.get_all("x-a").iter().count(), 2);
        assert_eq!(ask(&client).await.unwrap_err(), ClientError::Timeout);
        assert!(matches!(ask(&client).await.unwrap_err(), ClientError::Unavailable(_)));
        let sent = client.requests();
        assert_eq!(sent.len(), 3);
        assert_eq!(
            (sent[0].upstream, &sent[0].body[..], sent[0].head.uri.path()),
            (UpstreamId(3), &b"q"[..], "/check")
        );
    }

    #[tokio::test]
    async fn a_body_is_read_up_to_the_limit_and_not_beyond() {
        let client = ScriptedClient::new();
        for _ in 0..2 {
            client.reply(200, &[], [&b"abc"[..], b"", b"def"]);
        }
        assert_eq!(ask(&client).await.unwrap().read_all(6).await.unwrap(), "abcdef");
        let error = ask(&client).await.unwrap().read_all(5).await.unwrap_err();
        assert_eq!(error, ClientError::TooLarge { limit: 5 });
    }

    #[tokio::test]
    async fn a_reply_without_a_body_reads_as_empty_even_at_limit_zero() {
        let client = ScriptedClient::new();
        client.reply(200, &[], []);
        assert_eq!(ask(&client).await.unwrap().read_all(0).await.unwrap(), "");
    }
}
