//! The admin listener's socket.

use std::net::{SocketAddr, TcpListener};

use super::StartError;
use crate::config::AdminAddress;
use crate::handover::Sockets;

/// The admin listener's socket, with the address as it was written.
pub(super) fn bind(
    address: AdminAddress,
    sockets: &mut Sockets,
) -> Result<Option<(SocketAddr, TcpListener)>, StartError> {
    let AdminAddress::At(written) = address else { return Ok(None) };
    let inherited = sockets.take(&name(written));
    let opened = inherited.map_or_else(|| TcpListener::bind(written), |socket| Ok(socket.into()));
    let listener = opened.and_then(|listener| listener.set_nonblocking(true).map(|()| listener));
    let listener = listener
        .map_err(|error| StartError::Runtime(format!("cannot listen on {written} (admin): {error}")))?;
    if let Ok(address) = listener.local_addr() {
        log::info!(address:% = address; "admin bound");
    }
    Ok(Some((written, listener)))
}

/// The name under which the admin listener's socket is handed over.
pub(super) fn name(written: SocketAddr) -> String {
    format!("admin {written}")
}
