//! Connections to a backend that wait for their next request.

use std::mem::MaybeUninit;
use std::net::SocketAddr;
use std::sync::atomic::{
    AtomicBool, AtomicUsize,
    Ordering::{Relaxed, SeqCst},
};
use std::sync::{Arc, LazyLock, OnceLock, Weak};
use std::task::{Context, Waker};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use socket2::SockRef;
use tokio::net::TcpStream;

/// How often those are looked for that waited too long, or were closed by the backend.
const SWEEP: Duration = Duration::from_secs(1);

/// Plain connections of HTTP/1.1 between two requests. They outlive snapshots, as their backend does.
///
/// They wait on shelves: each thread uses one of its own first, so that threads do not wait for each other.
#[derive(Debug, Default)]
pub(super) struct Idle {
    /// None before the first one waits: most backends of a large document never see a request.
    shelves: OnceLock<Box<[Shelf]>>,
    /// On all shelves together.
    waiting: AtomicUsize,
    /// Somebody sweeps.
    swept: AtomicBool,
}

/// Apart from its neighbours in the caches of processors.
#[derive(Debug, Default)]
#[repr(align(128))]
struct Shelf(Mutex<Vec<Connection>>);

#[derive(Debug)]
struct Connection {
    stream: TcpStream,
    address: SocketAddr,
    until: Instant,
}

/// As many as threads that can run at once, within reason.
static SHELVES: LazyLock<usize> =
    LazyLock::new(|| std::thread::available_parallelism().map_or(1, |threads| threads.get().min(64)));

thread_local! {
    /// Threads take shelves by turns.
    static TURN: usize = {
        static TURNS: AtomicUsize = AtomicUsize::new(0);
        TURNS.fetch_add(1, Relaxed)
    };
}

impl Idle {
    /// A connection to this address that the backend has not closed; the one of this thread's that waited least, or
    /// one of another's. To be `sure` takes a system call; else the end of a connection is known a moment after it
    /// came.
    pub(super) fn take(&self, address: SocketAddr, sure: bool, now: Instant) -> Option<TcpStream> {
        let shelves = self.shelves.get()?;
        let own = TURN.with(|turn| turn % shelves.len());
        let (before, from) = shelves.split_at(own);
        from.iter().chain(before).find_map(|shelf| {
            // Most have one on their own shelf.
            (self.waiting.load(Relaxed) > 0).then(|| self.take_from(shelf, address, sure, now)).flatten()
        })
    }

    fn take_from(&self, shelf: &Shelf, address: SocketAddr, sure: bool, now: Instant) -> Option<TcpStream> {
        let mut waiting = shelf.0.lock();
        while let Some(at) = waiting.iter().rposition(|known| known.address == address) {
            let connection = waiting.remove(at);
            self.waiting.fetch_sub(1, Relaxed);
            let open = || if sure { is_surely_open(&connection.stream) } else { is_open(&connection.stream) };
            if connection.until > now && open() {
                return Some(connection.stream);
            }
        }
        None
    }

    /// Keeps a connection until then, unless so many wait already.
    pub(super) fn put(self: &Arc<Self>, stream: TcpStream, address: SocketAddr, most: usize, until: Instant) {
        if self.waiting.fetch_add(1, SeqCst) >= most {
            self.waiting.fetch_sub(1, Relaxed);
            return;
        }
        let shelves = self.shelves.get_or_init(|| (0..*SHELVES).map(|_| Shelf::default()).collect());
        let own = TURN.with(|turn| turn % shelves.len());
        shelves[own].0.lock().push(Connection { stream, address, until });
        if !self.swept.load(SeqCst) && !self.swept.swap(true, SeqCst) {
            tokio::spawn(sweep(Arc::downgrade(self)));
        }
    }

    /// Drops what waited too long or was closed; gives how many are left.
    fn sweep(&self) -> usize {
        let now = Instant::now();
        for shelf in self.shelves.get().into_iter().flatten() {
            let mut waiting = shelf.0.lock();
            let before = waiting.len();
            waiting.retain(|connection| connection.until > now && is_open(&connection.stream));
            self.waiting.fetch_sub(before - waiting.len(), Relaxed);
            if waiting.is_empty() {
                *waiting = Vec::new();
            }
        }
        self.waiting.load(Relaxed)
    }
}

/// Sweeps until nothing waits.
async fn sweep(idle: Weak<Idle>) {
    loop {
        tokio::time::sleep(SWEEP).await;
        let Some(idle) = idle.upgrade() else { return };
        if idle.sweep() == 0 {
            // Who puts one here counts it first and looks then; so one that came meanwhile is seen by one of both.
            idle.swept.swap(false, SeqCst);
            if idle.waiting.load(SeqCst) == 0 || idle.swept.swap(true, SeqCst) {
                return;
            }
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

    fn in_long() -> Instant {
        Instant::now() + Duration::from_secs(60)
    }

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
        idle.put(first, address, 2, in_long());
        idle.put(second, address, 2, in_long());
        let taken = [
            idle.take(address, false, Instant::now()).unwrap(),
            idle.take(address, false, Instant::now()).unwrap(),
        ];
        assert_eq!(taken.map(|stream| stream.local_addr().unwrap()), ports);
        assert!(idle.take(address, false, Instant::now()).is_none());
    }

    #[tokio::test]
    async fn what_another_thread_left_is_taken_too() {
        let idle = Arc::new(Idle::default());
        let (stream, address, _theirs) = pair().await;
        let (there, runtime) = (idle.clone(), tokio::runtime::Handle::current());
        let other = std::thread::spawn(move || {
            let _entered = runtime.enter();
            there.put(stream, address, 1, in_long());
        });
        other.join().expect("no panic");
        assert!(idle.take(address, false, Instant::now()).is_some());
        assert!(idle.take(address, false, Instant::now()).is_none());
    }

    #[tokio::test]
    async fn one_to_another_address_is_left_alone() {
        let idle = Arc::new(Idle::default());
        let (stream, address, _theirs) = pair().await;
        idle.put(stream, address, 1, in_long());
        assert!(idle.take("192.0.2.1:80".parse().unwrap(), false, Instant::now()).is_none());
        assert!(idle.take(address, false, Instant::now()).is_some());
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
            idle.put(stream, address, 1, in_long());
            assert!(idle.take(address, false, Instant::now()).is_none());
        }
    }

    #[tokio::test]
    async fn only_so_many_wait_and_only_so_long() {
        let idle = Arc::new(Idle::default());
        let (first, address, _one) = pair().await;
        let (second, _, mut two) = pair().await;
        idle.put(first, address, 1, Instant::now());
        idle.put(second, address, 1, in_long());
        let closed = tokio::io::AsyncReadExt::read(&mut two, &mut [0]).await.unwrap();
        assert_eq!(closed, 0, "there was no room for it");
        assert!(idle.take(address, false, Instant::now()).is_none(), "it waited too long");
    }

    #[tokio::test(start_paused = true)]
    async fn one_that_waited_too_long_is_closed_though_nobody_asks_for_it() {
        let idle = Arc::new(Idle::default());
        let (stream, address, mut theirs) = pair().await;
        idle.put(stream, address, 1, Instant::now());
        assert_eq!(tokio::io::AsyncReadExt::read(&mut theirs, &mut [0]).await.unwrap(), 0);
    }
}
