//! Origins that do exactly what a test tells them.

use std::future::Future;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use super::{Head, Wire};

/// The answer that gives out the token `t`.
pub(crate) fn token() -> String {
    let token = r#"{"access_token": "t", "token_type": "Bearer", "expires_in": 3600}"#;
    format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{token}", token.len())
}

/// A listening origin; it is gone when dropped.
pub(crate) struct Origin {
    pub(crate) address: SocketAddr,
    connections: Arc<AtomicUsize>,
    heads: Arc<Mutex<Vec<Head>>>,
    task: JoinHandle<()>,
}

impl Drop for Origin {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Origin {
    /// Runs `serve` for every connection.
    pub(crate) async fn new<F, S>(serve: S) -> Self
    where
        F: Future<Output = ()> + Send + 'static,
        S: Fn(Wire) -> F + Send + 'static,
    {
        Self::on(TcpListener::bind("127.0.0.1:0").await.expect("a port"), serve)
    }

    /// Runs `serve` for every connection to this listener.
    pub(crate) fn on<F, S>(listener: TcpListener, serve: S) -> Self
    where
        F: Future<Output = ()> + Send + 'static,
        S: Fn(Wire) -> F + Send + 'static,
    {
        let address = listener.local_addr().expect("bound");
        let connections = Arc::new(AtomicUsize::new(0));
        let count = connections.clone();
        let task = tokio::spawn(async move {
            let mut served = tokio::task::JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                let _ = stream.set_nodelay(true);
                count.fetch_add(1, Ordering::SeqCst);
                served.spawn(serve(Wire::new(stream)));
            }
        });
        Self { address, connections, heads: Arc::default(), task }
    }

    /// Hands each connection to the test, which plays the origin itself.
    pub(crate) async fn handing_over() -> (Self, mpsc::UnboundedReceiver<Wire>) {
        let (taken, seen) = mpsc::unbounded_channel();
        let origin = Self::new(move |wire| {
            let taken = taken.clone();
            async move {
                let _ = taken.send(wire);
            }
        });
        (origin.await, seen)
    }

    /// Answers every request with its own head and body as text, and remembers the heads.
    pub(crate) async fn echo() -> Self {
        let heads: Arc<Mutex<Vec<Head>>> = Arc::default();
        let seen = heads.clone();
        let mut origin = Self::new(move |mut wire| {
            let seen = seen.clone();
            async move {
                while let Ok(head) = wire.head().await {
                    seen.lock().push(head.clone());
                    let Ok(body) = wire.body(&head).await else { return };
                    wire.send(echo(&head, &body)).await;
                }
            }
        })
        .await;
        origin.heads = heads;
        origin
    }

    /// Reads a request with its body, answers with these bytes, and keeps the connection.
    pub(crate) async fn answering(answer: impl AsRef<[u8]> + Send + Sync + 'static) -> Self {
        let answer = Arc::new(answer);
        Self::new(move |mut wire| {
            let answer = answer.clone();
            async move {
                while let Ok(head) = wire.head().await {
                    let Ok(_) = wire.body(&head).await else { return };
                    wire.send((*answer).as_ref()).await;
                }
            }
        })
        .await
    }

    /// Gives out the token `t` to anybody, each time after this long.
    pub(crate) async fn issuing(after: Duration) -> Self {
        Self::new(move |mut wire| async move {
            while let Ok(head) = wire.head().await {
                let Ok(_) = wire.body(&head).await else { return };
                tokio::time::sleep(after).await;
                wire.send(token()).await;
            }
        })
        .await
    }

    /// Answers every request to this address with a text.
    pub(crate) async fn saying(address: &str, text: &'static str) -> Self {
        Self::on_saying(TcpListener::bind(address).await.expect("a port"), text)
    }

    fn on_saying(listener: TcpListener, text: &'static str) -> Self {
        Self::on(listener, move |mut wire| async move {
            while wire.head().await.is_ok() {
                wire.send(format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{text}", text.len())).await;
            }
        })
    }

    /// Two that answer with these texts, at 127.0.0.1 and 127.0.0.2, on one port.
    pub(crate) async fn twins([one, two]: [&'static str; 2]) -> (Self, Self) {
        for _ in 0..50 {
            let first = TcpListener::bind("127.0.0.1:0").await.expect("a port");
            let port = first.local_addr().expect("bound").port();
            if let Ok(second) = TcpListener::bind(("127.0.0.2", port)).await {
                return (Self::on_saying(first, one), Self::on_saying(second, two));
            }
        }
        panic!("no port is free at both addresses");
    }

    /// Answers every request with the body that it had.
    pub(crate) async fn giving_back() -> Self {
        Self::new(|mut wire| async move {
            while let Ok(head) = wire.head().await {
                let Ok(body) = wire.body(&head).await else { return };
                wire.send(format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n", body.len())).await;
                wire.send(body).await;
            }
        })
        .await
    }

    /// Answers nothing, and tells when it was `asked` and when that connection was `closed`.
    pub(crate) async fn silent() -> (Self, mpsc::UnboundedReceiver<&'static str>) {
        let (told, events) = mpsc::unbounded_channel();
        let origin = Self::new(move |mut wire| {
            let told = told.clone();
            async move {
                let _ = wire.head().await;
                let _ = told.send("asked");
                wire.rest().await;
                let _ = told.send("closed");
            }
        });
        (origin.await, events)
    }

    /// Reads a request's head, sends these bytes and closes.
    pub(crate) async fn dying_after(bytes: &'static [u8]) -> Self {
        Self::new(move |mut wire| async move {
            let _ = wire.head().await;
            wire.send(bytes).await;
        })
        .await
    }

    /// Reads a request's head and the begin of its body, and resets the connection.
    pub(crate) async fn dying_within_bodies() -> Self {
        Self::new(|mut wire| async move {
            let _ = wire.head().await;
            let _ = wire.exactly(1000).await;
            wire.reset();
        })
        .await
    }

    /// Connections accepted so far.
    pub(crate) fn connections(&self) -> usize {
        self.connections.load(Ordering::SeqCst)
    }

    /// The heads an echoing origin saw.
    pub(crate) fn heads(&self) -> Vec<Head> {
        self.heads.lock().clone()
    }

    /// The only head an echoing origin saw.
    pub(crate) fn head(&self) -> Head {
        let heads = self.heads();
        assert_eq!(heads.len(), 1, "{heads:?}");
        heads[0].clone()
    }
}

fn echo(head: &Head, body: &[u8]) -> Vec<u8> {
    let mut text = format!("{}\r\n", head.line).into_bytes();
    for (name, value) in &head.fields {
        text.extend(format!("{name}: {value}\r\n").bytes());
    }
    text.extend(b"\r\n");
    text.extend(body);
    let length = text.len();
    let mut answer = format!("HTTP/1.1 200 OK\r\nContent-Length: {length}\r\n\r\n").into_bytes();
    if !head.line.starts_with("HEAD ") {
        answer.extend(text);
    }
    answer
}

/// An address on which nobody listens.
pub(crate) async fn refusing() -> SocketAddr {
    let [address] = refusing_each().await;
    address
}

/// Several of them, no two of which are the same.
pub(crate) async fn refusing_each<const N: usize>() -> [SocketAddr; N] {
    let mut listeners = Vec::new();
    // All are bound before one is given up: its port may be the next one to be given out.
    for _ in 0..N {
        listeners.push(TcpListener::bind("127.0.0.1:0").await.expect("a port"));
    }
    std::array::from_fn(|at| listeners[at].local_addr().expect("bound"))
}
