//! Opening listening sockets, before the server starts or from the process before this one.

use std::collections::HashSet;
use std::fmt;
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::FileTypeExt;
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::sync::Arc;

use filedescriptor::FileDescriptor;
use pingora::server::{Fds, ListenFds};
use socket2::{Domain, SockAddr, SockRef, Type};

use super::Listener;
use crate::config::Address;

/// Connections the kernel holds until they are accepted; it caps this at `net.core.somaxconn`.
const BACKLOG: i32 = 65535;

/// Opens every listener, or says which one cannot be opened; then none stays open.
///
/// # Errors
/// The first listener that cannot listen, with the system's reason.
pub fn bind(listeners: &[Listener]) -> Result<Vec<Bound>, BindError> {
    listeners.iter().map(Bound::open).collect()
}

/// A listener with its socket.
#[derive(Debug)]
pub struct Bound {
    listener: Arc<Listener>,
    socket: Option<StdSocket>,
    local: Option<SocketAddr>,
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
    pub fn open(listener: &Listener) -> Result<Self, BindError> {
        let mut bound = Self::inherited(listener.clone());
        bound.socket = Some(open(listener)?);
        bound.local = bound.socket.as_ref().and_then(local);
        Ok(bound)
    }

    /// A listener whose socket comes from the process before this one when the service starts.
    pub fn inherited(listener: Listener) -> Self {
        Self { listener: Arc::new(listener), socket: None, local: None }
    }

    /// The listener this socket belongs to.
    pub fn listener(&self) -> Arc<Listener> {
        self.listener.clone()
    }

    /// The address the system gave; `None` for a Unix socket and before a socket was inherited.
    pub fn local_addr(&self) -> Option<SocketAddr> {
        self.local
    }

    /// The name under which its descriptor is handed to the next process: its address, which for port
    /// 0 only its name tells from another's.
    pub(super) fn key(&self) -> String {
        match &self.listener.address {
            Address::Tcp(address) if address.port() == 0 => format!("{address}/{}", self.listener.name),
            address => address.to_string(),
        }
    }

    /// Takes the socket: the inherited one if there is one, else the one opened here, else a new one.
    pub(super) fn claim(&mut self, fds: Option<&ListenFds>) -> Result<StdSocket, BindError> {
        let name = self.key();
        let mut table = fds.map(|fds| fds.lock());
        if let Some(fd) = table.as_mut().and_then(|table| inherit(table, &name)) {
            return fd.and_then(|fd| self.adopt(fd)).map_err(|e| BindError::new(&self.listener, e));
        }
        let socket = match self.socket.take() {
            Some(socket) => socket,
            None => open(&self.listener)?,
        };
        if let Some(table) = &mut table {
            table.add(name, socket.as_raw_fd());
        }
        Ok(socket)
    }

    fn adopt(&self, fd: OwnedFd) -> io::Result<StdSocket> {
        let socket = match self.listener.address {
            Address::Tcp(_) => StdSocket::Tcp(fd.into()),
            Address::Unix(_) => StdSocket::Unix(fd.into()),
        };
        prepare(&socket)?;
        Ok(socket)
    }
}

impl AsRawFd for StdSocket {
    fn as_raw_fd(&self) -> i32 {
        match self {
            Self::Tcp(socket) => socket.as_raw_fd(),
            Self::Unix(socket) => socket.as_raw_fd(),
        }
    }
}

/// Takes over the descriptor kept under `name`, and leaves ours in its place for the next process.
///
/// The table holds bare numbers, so ownership is had by duplicating. The original has to be closed:
/// left open, it would queue connections nobody accepts once this process stops listening.
fn inherit(table: &mut Fds, name: &str) -> Option<io::Result<OwnedFd>> {
    let original = *table.get(name)?;
    let owned = duplicate(original);
    if let Ok(owned) = &owned {
        let others: HashSet<String> = table.serialize().0.into_iter().filter(|other| other != name).collect();
        table.close_unclaimed(&others);
        table.add(name.to_owned(), owned.as_raw_fd());
    }
    Some(owned)
}

fn duplicate(fd: i32) -> io::Result<OwnedFd> {
    let copy = FileDescriptor::dup(&fd).and_then(|copy| copy.as_file()).map_err(io::Error::other)?;
    Ok(copy.into())
}

fn open(listener: &Listener) -> Result<StdSocket, BindError> {
    let opened = match &listener.address {
        Address::Tcp(address) => TcpListener::bind(address).map(StdSocket::Tcp),
        Address::Unix(path) => bind_unix(path).map(StdSocket::Unix),
    };
    let prepared = opened.and_then(|socket| prepare(&socket).map(|()| socket));
    prepared.map_err(|e| BindError::new(listener, e))
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

fn is_stale(path: &Path) -> bool {
    let is_socket = path.symlink_metadata().is_ok_and(|meta| meta.file_type().is_socket());
    is_socket && probe(path).is_err_and(|e| e.kind() == io::ErrorKind::ConnectionRefused)
}

/// Non-blocking, since a living listener with a full queue would hold us up.
fn probe(path: &Path) -> io::Result<()> {
    let socket = socket2::Socket::new(Domain::UNIX, Type::STREAM, None)?;
    socket.set_nonblocking(true)?;
    socket.connect(&SockAddr::unix(path)?)
}

fn local(socket: &StdSocket) -> Option<SocketAddr> {
    match socket {
        StdSocket::Tcp(socket) => socket.local_addr().ok(),
        StdSocket::Unix(_) => None,
    }
}

/// A listener that cannot listen: the configuration's or the machine's fault.
#[derive(Debug)]
pub struct BindError {
    address: Address,
    listener: Arc<str>,
    reason: io::Error,
}

impl BindError {
    fn new(listener: &Listener, reason: io::Error) -> Self {
        Self { address: listener.address.clone(), listener: listener.name.clone(), reason }
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
        }
    }
}

impl std::error::Error for BindError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        Some(&self.reason)
    }
}
