//! A gateway that replays bodies, scripted origins, and clients that speak by the byte.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use pingora::ErrorSource;
use pingora::apps::HttpServerOptions;
use pingora::http::RequestHeader;
use pingora::proxy::{ProxyHttp, Session, http_proxy};
use pingora::server::configuration::ServerConf;
use pingora::services::Service;
use pingora::upstreams::peer::HttpPeer;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::OwnedWriteHalf;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, watch};

use crate::door::tests::{ByPingora, LIMITS, desk};
use crate::door::{Bound, Door, Listener, Patience};
use crate::handover::Sockets;
use crate::proxy::replay::{
    Budget, CollectError, Slot, WholeBody, collect, hold_end, prepare_head, unwrap, wrap,
};

pub(super) const MIB: usize = 1 << 20;

/// Sends every request, its body read whole, to the origins in turn until one answers.
struct Gateway {
    origins: Vec<SocketAddr>,
    options: Options,
    logged: mpsc::UnboundedSender<bool>,
}

#[derive(Clone)]
pub(super) struct Options {
    pub(super) limit: u64,
    pub(super) budget: Budget,
    /// The longest pause between two reads.
    pub(super) pause: Duration,
    /// Requests are for an upgrade, to a tunnel that may be silent for so long.
    pub(super) tunnel: Option<Duration>,
}

impl Default for Options {
    fn default() -> Self {
        let pause = Duration::from_secs(20);
        Self { limit: 16 << 20, budget: Budget::new(64 << 20), pause, tunnel: None }
    }
}

#[derive(Default)]
struct Ctx {
    body: Option<WholeBody>,
    slot: Slot,
    tries: usize,
}

#[async_trait]
impl ProxyHttp for Gateway {
    type CTX = Ctx;
    fn new_ctx(&self) -> Ctx {
        Ctx::default()
    }

    async fn request_filter(&self, session: &mut Session, ctx: &mut Ctx) -> pingora::Result<bool> {
        let options = &self.options;
        if options.tunnel.is_some() {
            session.set_read_timeout(None);
            return Ok(false);
        }
        let patience = Patience::new(options.pause, None);
        let status = match collect(session, options.limit, &options.budget, patience).await {
            Ok(body) => {
                ctx.body = Some(body);
                return Ok(false);
            }
            Err(CollectError::Client(e)) => return Err(e),
            Err(CollectError::TooLarge) => 413,
            Err(CollectError::NoBudget) => 503,
            Err(CollectError::Timeout | CollectError::Overdue) => 408,
        };
        session.respond_error(status).await?;
        Ok(true)
    }

    async fn upstream_peer(&self, _: &mut Session, ctx: &mut Ctx) -> pingora::Result<Box<HttpPeer>> {
        ctx.tries += 1;
        let origin = self.origins[(ctx.tries - 1) % self.origins.len()];
        Ok(Box::new(HttpPeer::new(origin, false, String::new())))
    }

    async fn upstream_request_filter(
        &self,
        session: &mut Session,
        head: &mut RequestHeader,
        ctx: &mut Ctx,
    ) -> pingora::Result<()> {
        if let Some(idle) = self.options.tunnel {
            hold_end(session, None, idle, None, &ctx.slot);
            return Ok(());
        }
        let body = ctx.body.as_ref().expect("collected before");
        prepare_head(head, body.len())?;
        wrap(session, body, None, &ctx.slot);
        Ok(())
    }

    fn fail_to_connect(
        &self,
        _: &mut Session,
        _: &HttpPeer,
        ctx: &mut Ctx,
        mut e: Box<pingora::Error>,
    ) -> Box<pingora::Error> {
        e.set_retry(ctx.tries < self.origins.len());
        e
    }

    fn error_while_proxy(
        &self,
        _: &HttpPeer,
        session: &mut Session,
        mut e: Box<pingora::Error>,
        ctx: &mut Ctx,
        _: bool,
    ) -> Box<pingora::Error> {
        unwrap(session, &ctx.slot);
        let theirs = *e.esource() == ErrorSource::Upstream;
        e.set_retry(theirs && session.response_written().is_none() && ctx.tries < self.origins.len());
        e
    }

    async fn logging(&self, session: &mut Session, error: Option<&pingora::Error>, ctx: &mut Ctx) {
        unwrap(session, &ctx.slot);
        assert!(!session.downstream_session.is_custom());
        let _ = self.logged.send(error.is_none());
    }
}

/// A gateway before `origins`; stops when dropped.
pub(super) struct Running {
    pub(super) addr: SocketAddr,
    pub(super) budget: Budget,
    /// One entry for each finished request: whether it went well.
    pub(super) logged: mpsc::UnboundedReceiver<bool>,
    _shutdown: watch::Sender<bool>,
}

impl Running {
    /// Waits until so much of the budget is in use.
    pub(super) async fn until_used(&self, bytes: u64) {
        let reached = async {
            while self.budget.used() != bytes {
                tokio::task::yield_now().await;
            }
        };
        let waited = tokio::time::timeout(Duration::from_secs(20), reached).await;
        assert!(waited.is_ok(), "{:?}, not {bytes}", self.budget);
    }
}

pub(super) fn gateway(origins: &[SocketAddr], options: Options) -> Running {
    let (log, logged) = mpsc::unbounded_channel();
    let budget = options.budget.clone();
    let gateway = Gateway { origins: origins.to_vec(), options, logged: log };
    let mut app = http_proxy(&Arc::new(ServerConf::default()), gateway);
    let mut server = HttpServerOptions::default();
    server.h2c = true;
    app.server_options = Some(server);
    let listener = Listener {
        id: 0,
        name: "test".into(),
        address: "127.0.0.1:0".parse().unwrap(),
        h2c: true,
        proxied: false,
    };
    let bound = Bound::open(&listener, &mut Sockets::default()).unwrap();
    let addr = bound.local_addr().unwrap();
    let mut door = Door::new(Arc::new(ByPingora(Arc::new(app))), vec![bound], desk(LIMITS));
    let (shutdown, watch) = watch::channel(false);
    tokio::spawn(async move { Service::start_service(&mut door, None, watch, 1).await });
    Running { addr, budget, logged, _shutdown: shutdown }
}

/// Serves each connection with `serve`.
pub(super) async fn origin<F, Fut>(serve: F) -> SocketAddr
where
    F: Fn(Wire) -> Fut + Send + 'static,
    Fut: Future<Output = ()> + Send + 'static,
{
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            tokio::spawn(serve(Wire::new(stream)));
        }
    });
    addr
}

/// An origin that answers 200 to every request and hands over what it received.
pub(super) async fn recorder() -> (SocketAddr, mpsc::UnboundedReceiver<Message>) {
    let (received, requests) = mpsc::unbounded_channel();
    let addr = origin(move |mut wire| {
        let received = received.clone();
        async move {
            while let Some(request) = wire.message().await {
                received.send(request).unwrap();
                wire.send(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok").await;
            }
        }
    })
    .await;
    (addr, requests)
}

/// An address where nobody listens.
pub(super) async fn nobody() -> SocketAddr {
    TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap()
}

/// A request or an answer with the body its Content-Length promised.
pub(super) struct Message {
    /// In lower case.
    pub(super) head: String,
    pub(super) body: Vec<u8>,
}

impl Message {
    pub(super) fn field(&self, name: &str) -> Option<&str> {
        let line = self.head.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
        line.map(str::trim)
    }
}

/// One end of a connection, read message by message.
pub(super) struct Wire {
    pub(super) stream: TcpStream,
    pub(super) ahead: Vec<u8>,
}

impl Wire {
    fn new(stream: TcpStream) -> Self {
        stream.set_nodelay(true).unwrap();
        Self { stream, ahead: Vec::new() }
    }

    pub(super) async fn connect(to: SocketAddr) -> Self {
        Self::new(TcpStream::connect(to).await.unwrap())
    }

    pub(super) async fn send(&mut self, bytes: &[u8]) {
        self.stream.write_all(bytes).await.unwrap();
    }

    /// Reads a head, in lower case; `None` at the end of the connection.
    pub(super) async fn head(&mut self) -> Option<String> {
        loop {
            if let Some(end) = self.ahead.windows(4).position(|four| four == b"\r\n\r\n") {
                let head: Vec<u8> = self.ahead.drain(..end + 4).collect();
                return Some(String::from_utf8(head).unwrap().to_lowercase());
            }
            self.more().await?;
        }
    }

    /// Reads a head and as much body as it declares.
    pub(super) async fn message(&mut self) -> Option<Message> {
        let mut message = Message { head: self.head().await?, body: Vec::new() };
        let length = message.field("content-length").map_or(0, |n| n.parse().unwrap());
        self.until(length).await?;
        message.body = self.ahead.drain(..length).collect();
        Some(message)
    }

    /// Reads until `n` bytes are ahead.
    pub(super) async fn until(&mut self, n: usize) -> Option<()> {
        while self.ahead.len() < n {
            self.more().await?;
        }
        Some(())
    }

    /// Reads something; `None` at the end of the connection or when it is reset.
    pub(super) async fn more(&mut self) -> Option<()> {
        match self.stream.read_buf(&mut self.ahead).await {
            Ok(0) | Err(_) => None,
            Ok(_) => Some(()),
        }
    }

    /// Sends a request in the background, since answers may come before it is sent, and reads one.
    pub(super) async fn exchange(mut self, request: Vec<u8>) -> (Self, Message) {
        let (mut read, write) = self.stream.into_split();
        let sending = tokio::spawn(send_all(write, request));
        let mut message = None;
        while message.is_none() {
            let n = read.read_buf(&mut self.ahead).await.unwrap();
            assert!(n > 0, "closed without an answer");
            message = whole(&mut self.ahead);
        }
        let write = sending.await.unwrap();
        self.stream = read.reunite(write).unwrap();
        (self, message.expect("loop ended"))
    }
}

async fn send_all(mut write: OwnedWriteHalf, bytes: Vec<u8>) -> OwnedWriteHalf {
    let _ = write.write_all(&bytes).await;
    write
}

fn whole(ahead: &mut Vec<u8>) -> Option<Message> {
    let end = ahead.windows(4).position(|four| four == b"\r\n\r\n")? + 4;
    let head = String::from_utf8(ahead[..end].to_vec()).unwrap().to_lowercase();
    let mut message = Message { head, body: Vec::new() };
    let length: usize = message.field("content-length").map_or(0, |n| n.parse().unwrap());
    if ahead.len() < end + length {
        return None;
    }
    message.body = ahead.drain(..end + length).skip(end).collect();
    Some(message)
}

/// Bytes that repeat only after 251, so that a lost or repeated chunk shows.
pub(super) fn pattern(len: usize) -> Vec<u8> {
    (0..len).map(|i| (i % 251) as u8).collect()
}

pub(super) fn with_length(body: &[u8]) -> Vec<u8> {
    let head = format!("POST /x HTTP/1.1\r\nHost: a\r\nContent-Length: {}\r\n\r\n", body.len());
    [head.as_bytes(), body].concat()
}

pub(super) fn chunked(body: &[u8]) -> Vec<u8> {
    let mut request = b"POST /x HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n".to_vec();
    // An odd size, so that chunks and reads do not fall together.
    for chunk in body.chunks(50_021) {
        request.extend(format!("{:x}\r\n", chunk.len()).into_bytes());
        request.extend(chunk);
        request.extend(b"\r\n");
    }
    request.extend(b"0\r\n\r\n");
    request
}

/// A client of HTTP/2 with prior knowledge.
pub(super) struct H2(pub(super) h2::client::SendRequest<Bytes>);

impl H2 {
    pub(super) async fn connect(to: SocketAddr) -> Self {
        let stream = TcpStream::connect(to).await.unwrap();
        // Else each flow-control window waits for a delayed acknowledgement.
        stream.set_nodelay(true).unwrap();
        let (send, connection) = h2::client::handshake(stream).await.unwrap();
        tokio::spawn(connection);
        Self(send)
    }

    pub(super) async fn post(&mut self, body: &[u8], declare: bool) -> u16 {
        let mut request = http::Request::post("http://a/x");
        if declare {
            request = request.header("content-length", body.len());
        }
        let mut send = self.0.clone().ready().await.unwrap();
        let (answer, mut stream) = send.send_request(request.body(()).unwrap(), false).unwrap();
        stream.send_data(Bytes::copy_from_slice(body), true).unwrap();
        answer.await.unwrap().status().as_u16()
    }
}
