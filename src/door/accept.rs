//! The accept loop: from a listening socket to a task for each connection.

use std::io;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use pingora::server::ShutdownWatch;
use tokio::net::{TcpListener, UnixListener};

use super::bind::StdSocket;
use super::handshake::{self, Arrival};
use super::pause::Watch;
use super::socket::Socket;
use super::stream::DoorStream;
use super::{Application, Common, ConnFacts, Listener, Permit, Refused, conn, proxied, stopped};

/// How long a loop rests when the system has nothing left to accept with.
const REST: Duration = Duration::from_millis(100);

/// What one accept loop works with.
pub(super) struct Loop<A> {
    pub(super) common: Arc<Common<A>>,
    pub(super) socket: Arc<Listening>,
    pub(super) listener: Arc<Listener>,
    pub(super) shutdown: ShutdownWatch,
    pub(super) pause: Watch,
}

/// Accepts connections until the shutdown; each one gets a task of its own.
pub(super) async fn run<A: Application>(mut this: Loop<A>) {
    let mut stop = pin!(stopped(this.shutdown.clone()));
    let mut complaints = Complaints::default();
    loop {
        let accepted = tokio::select! {
            accepted = next(&this.socket, &mut this.pause) => accepted,
            () = &mut stop => return,
        };
        match accepted {
            Ok(connection) => admit(&this, connection),
            Err(e) if is_passing(&e) => log::debug!(reason:% = e; "connection lost before it was accepted"),
            Err(e) => {
                complaints.log(&this.listener, &e);
                tokio::select! {
                    () = tokio::time::sleep(REST) => {}
                    () = &mut stop => return,
                }
            }
        }
    }
}

/// The next connection that is for this process.
async fn next(socket: &Listening, pause: &mut Watch) -> io::Result<Connection> {
    loop {
        pause.over().await;
        tokio::select! {
            biased;
            () = pause.changes() => {}
            accepted = socket.accept() => return accepted,
        }
    }
}

/// Errors of the connection that was to be accepted, not of accepting (accept(2)).
fn is_passing(error: &io::Error) -> bool {
    use io::ErrorKind::{
        ConnectionAborted, ConnectionReset, HostUnreachable, Interrupted, NetworkDown, NetworkUnreachable,
    };
    matches!(
        error.kind(),
        ConnectionAborted
            | ConnectionReset
            | HostUnreachable
            | Interrupted
            | NetworkDown
            | NetworkUnreachable
    )
}

/// Keeps a lasting failure to one log line a second.
#[derive(Default)]
struct Complaints {
    last: Option<Instant>,
}

impl Complaints {
    fn log(&mut self, listener: &Listener, error: &io::Error) {
        if self.last.is_some_and(|last| last.elapsed() < Duration::from_secs(1)) {
            return;
        }
        self.last = Some(Instant::now());
        log::error!(listener = listener.name.as_ref(), reason:% = error; "cannot accept connections");
    }
}

/// Gives the connection a task, or drops it when it must not be served.
fn admit<A: Application>(this: &Loop<A>, connection: Connection) {
    let permit = match permit(this, &connection) {
        Ok(permit) => permit,
        Err(refused) => return complain(&this.listener, refused),
    };
    let facts = ConnFacts {
        listener: this.listener.id,
        peer: connection.peer,
        local: connection.local,
        unix: matches!(*this.socket, Listening::Unix(_)),
        tls: None,
    };
    let arrival = Arrival { socket: connection.socket, facts, permit };
    let (common, shutdown) = (this.common.clone(), this.shutdown.clone());
    if !this.listener.proxied {
        return welcome(common, arrival, shutdown);
    }
    let listener = this.listener.clone();
    pingora_runtime::current_handle().spawn(async move {
        match proxied::introduce(&common, arrival).await {
            Ok(arrival) => welcome(common, arrival, shutdown),
            Err(refused) => complain(&listener, refused),
        }
    });
}

/// A place for the connection. That of a proxy is counted for its client, once that is known.
fn permit<A>(this: &Loop<A>, connection: &Connection) -> Result<Permit, Refused> {
    let permits = &this.common.desk.permits;
    let peer = connection.peer.map(|peer| peer.ip());
    if !this.listener.proxied {
        return permits.take(peer);
    }
    // Who may connect to a Unix socket, its directory says.
    if peer.is_some_and(|peer| !permits.is_exempt(peer)) {
        return Err(permits.refuse(Refused::Stranger));
    }
    permits.take(None)
}

fn complain(listener: &Listener, refused: Refused) {
    log::debug!(listener = listener.name.as_ref(), reason = refused.name(); "connection refused");
}

/// Starts the task of a connection whose client is known.
fn welcome<A: Application>(common: Arc<Common<A>>, arrival: Arrival, shutdown: ShutdownWatch) {
    // Pingora's handle, since with one runtime per thread it spreads connections over all of them.
    let runtime = pingora_runtime::current_handle();
    if let Some(tls) = common.tls(arrival.facts.listener) {
        let shake = Box::pin(handshake::shake(common.clone(), tls, arrival));
        runtime.spawn(handshake::serve(common, shake, shutdown));
        return;
    }
    let Arrival { socket, facts, permit } = arrival;
    let stream = DoorStream::new(socket, facts, &common.desk, permit);
    runtime.spawn(conn::serve(common, Box::new(stream), shutdown, Instant::now()));
}

/// A listening socket on the runtime.
#[derive(Debug)]
pub(super) enum Listening {
    Tcp(TcpListener),
    Unix(UnixListener),
}

/// A connection as it was accepted.
struct Connection {
    socket: Socket,
    peer: Option<SocketAddr>,
    local: Option<SocketAddr>,
}

impl Listening {
    pub(super) fn new(socket: StdSocket) -> io::Result<Self> {
        match socket {
            StdSocket::Tcp(socket) => TcpListener::from_std(socket).map(Self::Tcp),
            StdSocket::Unix(socket) => UnixListener::from_std(socket).map(Self::Unix),
        }
    }

    async fn accept(&self) -> io::Result<Connection> {
        match self {
            Self::Tcp(socket) => {
                let (stream, peer) = socket.accept().await?;
                stream.set_nodelay(true)?;
                let local = stream.local_addr().ok().map(canonical);
                let peer = Some(canonical(peer));
                Ok(Connection { socket: stream.into(), peer, local })
            }
            Self::Unix(socket) => {
                let (stream, _) = socket.accept().await?;
                Ok(Connection { socket: stream.into(), peer: None, local: None })
            }
        }
    }
}

/// On a `[::]` listener IPv4 clients appear as `::ffff:a.b.c.d`; limits and rules speak of `a.b.c.d`.
fn canonical(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lost_connection_is_passing_and_a_lack_of_descriptors_is_not() {
        let os = io::Error::from_raw_os_error;
        assert!(is_passing(&os(103)), "ECONNABORTED");
        assert!(is_passing(&os(4)), "EINTR");
        assert!(!is_passing(&os(24)), "EMFILE");
        assert!(!is_passing(&os(23)), "ENFILE");
        assert!(!is_passing(&os(105)), "ENOBUFS");
    }

    #[test]
    fn a_mapped_address_is_seen_as_ipv4() {
        let mapped = "[::ffff:192.0.2.7]:9".parse().unwrap();
        assert_eq!(canonical(mapped), "192.0.2.7:9".parse().unwrap());
    }
}
