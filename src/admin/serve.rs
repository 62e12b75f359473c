//! The admin listener's connections: few at a time, and none of them may stand still for long.

use std::io::{self, IoSlice};
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use axum::Router;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, watch};
use tokio::time::{Sleep, sleep};

/// How long connections go on after the listener was closed.
const LAST_CALL: Duration = Duration::from_secs(1);

/// How long to wait after a failure to accept: descriptors may be free again by then.
const PAUSE: Duration = Duration::from_millis(200);

/// What clients are held to. Bodies are held to more by [`super::admission`].
#[derive(Debug, Clone, Copy)]
pub(super) struct Limits {
    /// Open connections at a time; one more is closed at once.
    pub(super) connections: usize,
    /// How long the head of the next request may take to come, from the connection's start or the
    /// end of the answer before.
    pub(super) head: Duration,
    /// How long a client may take nothing of its answer.
    pub(super) stall: Duration,
}

/// Serves connections, as many as there are places, until it is closed; those that are open then end soon.
pub(super) async fn serve(
    listener: TcpListener,
    router: Router,
    limits: Limits,
    places: Arc<Semaphore>,
    mut closed: watch::Receiver<bool>,
) {
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = told(&mut closed) => return,
        };
        let stream = match accepted {
            Ok((stream, _)) => stream,
            Err(error) => {
                log::warn!("the admin listener cannot accept a connection: {error}");
                sleep(PAUSE).await;
                continue;
            }
        };
        let Ok(place) = places.clone().try_acquire_owned() else {
            log::debug!("the admin listener has {} connections and takes no more", limits.connections);
            continue;
        };
        let connection =
            http1::Builder::new().timer(TokioTimer::new()).header_read_timeout(limits.head).serve_connection(
                TokioIo::new(Impatient { stream, patience: limits.stall, stalled: None }),
                TowerToHyperService::new(router.clone()),
            );
        let mut closed = closed.clone();
        tokio::spawn(async move {
            let mut connection = pin!(connection);
            let ended = tokio::select! {
                ended = connection.as_mut() => ended,
                () = last_call(&mut closed) => {
                    connection.as_mut().graceful_shutdown();
                    connection.await
                }
            };
            if let Err(error) = ended {
                log::debug!("a connection to the admin listener failed: {error}");
            }
            drop(place);
        });
    }
}

async fn told(closed: &mut watch::Receiver<bool>) {
    drop(closed.wait_for(|closed| *closed).await);
}

/// Who connected before may be about to ask.
async fn last_call(closed: &mut watch::Receiver<bool>) {
    told(closed).await;
    sleep(LAST_CALL).await;
}

/// A stream that fails when its peer takes nothing for too long.
struct Impatient {
    stream: TcpStream,
    patience: Duration,
    /// Runs while a write waits.
    stalled: Option<Pin<Box<Sleep>>>,
}

impl Impatient {
    fn watched<T>(&mut self, context: &mut Context<'_>, written: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        if written.is_ready() {
            self.stalled = None;
            return written;
        }
        let patience = self.patience;
        let stalled = self.stalled.get_or_insert_with(|| Box::pin(sleep(patience)));
        ready!(stalled.as_mut().poll(context));
        Poll::Ready(Err(io::ErrorKind::TimedOut.into()))
    }
}

impl AsyncRead for Impatient {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        into: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(context, into)
    }
}

impl AsyncWrite for Impatient {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write(context, bytes);
        self.watched(context, written)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        pieces: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write_vectored(context, pieces);
        self.watched(context, written)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}

#[cfg(test)]
mod tests {
    use axum::routing::get;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::time::timeout;

    use super::*;

    const LONG: Duration = Duration::from_secs(60);
    const SHORT: Duration = Duration::from_millis(50);
    /// How long a test waits for what must come.
    const PATIENCE: Duration = Duration::from_secs(20);

    async fn serving(limits: Limits) -> (std::net::SocketAddr, watch::Sender<bool>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let large = || async { vec![b'x'; 64 << 20] };
        let router = Router::new().route("/", get(|| async { "ok" })).route("/large", get(large));
        let (open, closed) = watch::channel(false);
        let places = Arc::new(Semaphore::new(limits.connections));
        tokio::spawn(serve(listener, router, limits, places, closed));
        (address, open)
    }

    /// What comes until the server closes.
    async fn rest(stream: &mut TcpStream) -> Vec<u8> {
        let mut bytes = Vec::new();
        // A reset ends a connection as well.
        let _ = timeout(PATIENCE, stream.read_to_end(&mut bytes)).await.expect("it is closed");
        bytes
    }

    /// Asks until there is a place.
    async fn served(address: std::net::SocketAddr) {
        loop {
            let mut stream = TcpStream::connect(address).await.unwrap();
            let _ = stream.write_all(b"GET / HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n").await;
            if rest(&mut stream).await.ends_with(b"ok") {
                return;
            }
        }
    }

    #[tokio::test]
    async fn a_connection_over_the_limit_is_closed_and_the_next_after_one_ended_is_served() {
        let (address, _open) = serving(Limits { connections: 2, head: LONG, stall: LONG }).await;
        let mut held = Vec::new();
        for _ in 0..2 {
            let mut stream = TcpStream::connect(address).await.unwrap();
            stream.write_all(b"GET / HTTP/1.1\r\nhost: a\r\n\r\n").await.unwrap();
            let mut byte = [0];
            stream.read_exact(&mut byte).await.unwrap();
            held.push(stream);
        }
        assert!(rest(&mut TcpStream::connect(address).await.unwrap()).await.is_empty());
        held.clear();
        timeout(PATIENCE, served(address)).await.expect("a place is free again");
    }

    #[tokio::test]
    async fn a_head_that_does_not_come_ends_the_connection() {
        let (address, _open) = serving(Limits { connections: 9, head: SHORT, stall: LONG }).await;
        for sent in
            ["", "GET / HT", "GET / HTTP/1.1\r\nhost: a\r\n\r\n", "GET / HTTP/1.1\r\nhost: a\r\n\r\nGE"]
        {
            let mut stream = TcpStream::connect(address).await.unwrap();
            stream.write_all(sent.as_bytes()).await.unwrap();
            let answered = rest(&mut stream).await.ends_with(b"ok");
            assert_eq!(answered, sent.contains("\r\n\r\n"), "{sent:?}");
        }
    }

    #[tokio::test]
    async fn an_answer_that_is_not_taken_ends_the_connection() {
        let (address, _open) = serving(Limits { connections: 1, head: LONG, stall: SHORT }).await;
        let mut stalled = TcpStream::connect(address).await.unwrap();
        stalled.write_all(b"GET /large HTTP/1.1\r\nhost: a\r\n\r\n").await.unwrap();
        timeout(PATIENCE, served(address)).await.expect("its place is free again");
        drop(stalled);
    }
    #[tokio::test]
    async fn a_closed_listener_takes_no_connections_and_ends_those_there_are() {
        let (address, open) = serving(Limits { connections: 9, head: LONG, stall: LONG }).await;
        let mut idle = TcpStream::connect(address).await.unwrap();
        idle.write_all(b"GET / HTTP/1.1\r\nhost: a\r\n\r\n").await.unwrap();
        let mut byte = [0];
        idle.read_exact(&mut byte).await.unwrap();
        open.send_replace(true);
        assert!(rest(&mut idle).await.ends_with(b"ok"));
        let refused = async { while TcpStream::connect(address).await.is_ok() {} };
        timeout(PATIENCE, refused).await.expect("nobody listens");
    }
}
