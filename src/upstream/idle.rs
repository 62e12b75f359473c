//! Connections to a backend that wait for their next request.

use std::mem::MaybeUninit;
use std::net::SocketAddr;
use std::sync::{Arc, Weak};
use std::task::{Context, Waker};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use socket2::SockRef;
use tokio::net::TcpStream;

/// How often those are looked for that waited too long, or were closed by the backend.
const SWEEP: Duration = Duration::from_secs(1);

/// Plain connections of HTTP/1.1 between two requests. They outlive snapshots, as their backend does.
#[derive(Debug, Default)]
pub(super) struct Idle(Mutex<Waiting>);

#[derive(Debug, Default)]
struct Waiting {
    connections: Vec<Connection>,
    /// Somebody sweeps.
    swept: bool,
}

#[derive(Debug)]
struct Connection {
    stream: TcpStream,
    address: SocketAddr,
    until: Instant,
}

impl Idle {
    /// A connection to this address that the backend has not closed; the one that waited least. To be `sure` takes a
    /// system call; else the end of a connection is known a moment after it came.
    pub(super) fn take(&self, address: SocketAddr, sure: bool) -> Option<TcpStream> {
        let mut waiting = self.0.lock();
        while let Some(at) = waiting.connections.iter().rposition(|known| known.address == address) {
            let connection = waiting.connections.remove(at);
            let open = || if sure { is_surely_open(&connection.stream) } else { is_open(&connection.stream) };
            if connection.until > Instant::now() && open() {
                return Some(connection.stream);
            }
        }
        None
    }

    /// Keeps a connection for so long, unless so many wait already.
    pub(super) fn put(self: &Arc<Self>, stream: TcpStream, address: SocketAddr, most: usize, keep: Duration) {
        let mut waiting = self.0.lock();
        if waiting.connections.len() >= most {
            return;
        }
        waiting.connections.push(Connection { stream, address, until: Instant::now() + keep });
        if !std::mem::replace(&mut waiting.swept, true) {
            tokio::spawn(sweep(Arc::downgrade(self)));
        }
    }
}

/// Drops what waited too long or was closed, until nothing waits.
async fn sweep(idle: Weak<Idle>) {
    loop {
        tokio::time::sleep(SWEEP).await;
        let Some(idle) = idle.upgrade() else { return };
        let mut waiting = idle.0.lock();
        let now = Instant::now();
        waiting.connections.retain(|connection| connection.until > now && is_open(&connection.stream));
        if waiting.connections.is_empty() {
            *waiting = Waiting::default();
            return;
        }
    }
}

/// Whether nothing came that nobody asked for; the end of the stream is such a thing too.
fn is_open(stream: &TcpStream) -> bool {
    // Without a system call, as long as nothing came.
    let quiet = stream.poll_read_ready(&mut Context::from_waker(Waker::noop())).is_pending();
    quiet || stream.try_read(&mut [0]).is_err_and(|error| error.kind() == std::io::ErrorKind::WouldBlock)
}

/// As [`is_open`], asked of the system.
fn is_surely_open(stream: &TcpStream) -> bool {
    let peeked = SockRef::from(stream).peek(&mut [MaybeUninit::uninit()]);
    peeked.is_err_and(|error| error.kind() == std::io::ErrorKind::WouldBlock)
}

#[cfg(test)]
mod tests {
    use tokio::io::AsyncWriteExt;
    use tokio::net::TcpListener;

    use super::*;

    const LONG: Duration = Duration::from_secs(60);

    async fn pair() -> (TcpStream, SocketAddr, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (ours, theirs) = tokio::join!(TcpStream::connect(address), listener.accept());
        (ours.unwrap(), address, theirs.unwrap().0)
    }

    #[tokio::test]
    async fn the_one_that_waited_least_is_taken_first_and_once() {
        let idle = Arc::new(Idle::default());
        let (first, address, _one) = pair().await;
        let (second, _, _two) = pair().await;
        let ports = [second.local_addr().unwrap(), first.local_addr().unwrap()];
        idle.put(first, address, 2, LONG);
        idle.put(second, address, 2, LONG);
        let taken = [idle.take(address, false).unwrap(), idle.take(address, false).unwrap()];
        assert_eq!(taken.map(|stream| stream.local_addr().unwrap()), ports);
        assert!(idle.take(address, false).is_none());
    }

    #[tokio::test]
    async fn one_to_another_address_is_left_alone() {
        let idle = Arc::new(Idle::default());
        let (stream, address, _theirs) = pair().await;
        idle.put(stream, address, 1, LONG);
        assert!(idle.take("192.0.2.1:80".parse().unwrap(), false).is_none());
        assert!(idle.take(address, false).is_some());
    }

    #[tokio::test]
    async fn one_that_the_backend_closed_or_wrote_to_is_not_taken() {
        let idle = Arc::new(Idle::default());
        for byte in [None, Some(b"x")] {
            let (stream, address, mut theirs) = pair().await;
            match byte {
                Some(byte) => theirs.write_all(byte).await.unwrap(),
                None => theirs.shutdown().await.unwrap(),
            }
            stream.readable().await.unwrap();
            idle.put(stream, address, 1, LONG);
            assert!(idle.take(address, false).is_none());
        }
    }

    #[tokio::test]
    async fn only_so_many_wait_and_only_so_long() {
        let idle = Arc::new(Idle::default());
        let (first, address, _one) = pair().await;
        let (second, _, mut two) = pair().await;
        idle.put(first, address, 1, Duration::ZERO);
        idle.put(second, address, 1, LONG);
        let closed = tokio::io::AsyncReadExt::read(&mut two, &mut [0]).await.unwrap();
        assert_eq!(closed, 0, "there was no room for it");
        assert!(idle.take(address, false).is_none(), "it waited too long");
    }

    #[tokio::test(start_paused = true)]
    async fn one_that_waited_too_long_is_closed_though_nobody_asks_for_it() {
        let idle = Arc::new(Idle::default());
        let (stream, address, mut theirs) = pair().await;
        idle.put(stream, address, 1, Duration::ZERO);
        assert_eq!(tokio::io::AsyncReadExt::read(&mut theirs, &mut [0]).await.unwrap(), 0);
    }
}
