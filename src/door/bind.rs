//! Opening listening sockets, before the server starts or from the process before this one.

use std::fmt;
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::sync::Arc;

use socket2::SockRef;

use super::Listener;
use crate::config::Address;
use crate::handover::{Holder, Sockets, is_stale};

/// Connections the kernel holds until they are accepted; it caps this at `net.core.somaxconn`.
const BACKLOG: i32 = 65535;

/// Opens every listener, or says which one cannot be opened; then none stays open. Sockets that the process
/// before this one had under the same name are taken over.
///
/// # Errors
/// The first listener that cannot listen, with the system's reason.
pub fn bind(listeners: &[Listener], inherited: &mut Sockets) -> Result<Vec<Bound>, BindError> {
    // Before any is opened, so that only what nobody takes can be what keeps an address.
    let taken: Vec<_> = listeners.iter().map(|listener| inherited.take(&name(listener))).collect();
    let each = listeners.iter().zip(taken);
    each.map(|(listener, socket)| Bound::over(listener, socket, inherited)).collect()
}

/// A listener with its socket.
#[derive(Debug)]
pub struct Bound {
    listener: Arc<Listener>,
    socket: StdSocket,
}

#[derive(Debug)]
pub(super) enum StdSocket {
    Tcp(TcpListener),
    Unix(UnixListener),
}

impl Bound {
    /// Opens one listener.
    ///
    /// # Errors
    /// The address is in use, not ours, or forbidden.
    pub fn open(listener: &Listener, inherited: &mut Sockets) -> Result<Self, BindError> {
        let socket = inherited.take(&name(listener));
        Self::over(listener, socket, inherited)
    }

    /// Listens on this socket, or opens one; beside what nobody took.
    fn over(listener: &Listener, socket: Option<OwnedFd>, left: &Sockets) -> Result<Self, BindError> {
        let opened = match socket {
            Some(socket) => Ok(adopt(listener, socket)),
            None => open(listener),
        };
        let socket = opened.and_then(|socket| prepare(&socket).map(|()| socket));
        let socket = socket.map_err(|reason| BindError::new(listener, reason, left))?;
        Ok(Self { listener: Arc::new(listener.clone()), socket })
    }

    /// The listener this socket belongs to.
    pub fn listener(&self) -> Arc<Listener> {
        self.listener.clone()
    }

    /// The address the system gave; `None` for a Unix socket.
    pub fn local_addr(&self) -> Option<SocketAddr> {
        match &self.socket {
            StdSocket::Tcp(socket) => socket.local_addr().ok(),
            StdSocket::Unix(_) => None,
        }
    }

    /// A copy of the socket for the next process, and the name it finds it under.
    ///
    /// # Errors
    /// There are no descriptors left.
    pub fn share(&self) -> io::Result<(String, OwnedFd)> {
        Ok((name(&self.listener), self.socket.as_fd().try_clone_to_owned()?))
    }

    pub(super) fn into_socket(self) -> StdSocket {
        self.socket
    }
}

/// The name under which a listener's socket is handed over: its address, which for port 0 only its own name
/// tells from another's.
fn name(listener: &Listener) -> String {
    match &listener.address {
        Address::Tcp(address) if address.port() == 0 => format!("{address}/{}", listener.name),
        address => address.to_string(),
    }
}

impl AsFd for StdSocket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Self::Tcp(socket) => socket.as_fd(),
            Self::Unix(socket) => socket.as_fd(),
        }
    }
}

fn adopt(listener: &Listener, socket: OwnedFd) -> StdSocket {
    match listener.address {
        Address::Tcp(_) => StdSocket::Tcp(socket.into()),
        Address::Unix(_) => StdSocket::Unix(socket.into()),
    }
}

fn open(listener: &Listener) -> io::Result<StdSocket> {
    match &listener.address {
        Address::Tcp(address) => TcpListener::bind(address).map(StdSocket::Tcp),
        Address::Unix(path) => bind_unix(path).map(StdSocket::Unix),
    }
}

/// Non-blocking, with a long queue; listening again only changes the queue's length.
fn prepare(socket: &StdSocket) -> io::Result<()> {
    let socket = match socket {
        StdSocket::Tcp(socket) => SockRef::from(socket),
        StdSocket::Unix(socket) => SockRef::from(socket),
    };
    socket.set_nonblocking(true)?;
    socket.listen(BACKLOG)
}

/// A socket file outlives its process, so one on which nobody answers is in nobody's use.
fn bind_unix(path: &Path) -> io::Result<UnixListener> {
    match UnixListener::bind(path) {
        Err(e) if e.kind() == io::ErrorKind::AddrInUse && is_stale(path) => {
            std::fs::remove_file(path)?;
            UnixListener::bind(path)
        }
        bound => bound,
    }
}

/// A listener that cannot listen: the configuration's or the machine's fault.
#[derive(Debug)]
pub struct BindError {
    address: Address,
    listener: Arc<str>,
    reason: io::Error,
    /// What has the port, if that is the process before this one.
    holder: Option<Holder>,
}

impl BindError {
    fn new(listener: &Listener, reason: io::Error, left: &Sockets) -> Self {
        let holder = match &listener.address {
            Address::Tcp(address) if reason.kind() == io::ErrorKind::AddrInUse => left.holder(*address),
            _ => None,
        };
        Self { address: listener.address.clone(), listener: listener.name.clone(), reason, holder }
    }

    /// The system's reason.
    pub fn kind(&self) -> io::ErrorKind {
        self.reason.kind()
    }
}

impl fmt::Display for BindError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        use io::ErrorKind::{AddrInUse, AddrNotAvailable, NotFound, PermissionDenied};
        write!(f, "cannot listen on {} (listener `{}`): ", self.address, self.listener)?;
        match self.reason.kind() {
            // Their short names say all; the system's own text would add only a number.
            kind @ (AddrInUse | AddrNotAvailable | NotFound | PermissionDenied) => kind.fmt(f),
            _ => self.reason.fmt(f),
        }?;
        self.holder.map_or(Ok(()), |holder| write!(f, "; {holder}"))
    }
}

impl std::error::Error for BindError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        Some(&self.reason)
    }
}
