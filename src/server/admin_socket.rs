//! The admin listener's socket.

use std::io::ErrorKind;
use std::net::{SocketAddr, TcpListener};
use std::os::fd::OwnedFd;

use super::StartError;
use crate::config::AdminAddress;
use crate::handover::Sockets;

/// What the process before this one listened with, if the address is still the same.
pub(super) fn take(address: AdminAddress, sockets: &mut Sockets) -> Option<OwnedFd> {
    let AdminAddress::At(written) = address else { return None };
    sockets.take(&name(written))
}

/// The admin listener's socket, with the address as it was written; `left` is what nobody took.
pub(super) fn bind(
    address: AdminAddress,
    inherited: Option<OwnedFd>,
    left: &Sockets,
) -> Result<Option<(SocketAddr, TcpListener)>, StartError> {
    let AdminAddress::At(written) = address else { return Ok(None) };
    let opened = inherited.map_or_else(|| TcpListener::bind(written), |socket| Ok(socket.into()));
    let listener = opened.and_then(|listener| listener.set_nonblocking(true).map(|()| listener));
    let listener = listener.map_err(|error| {
        let holder = left.holder(written).filter(|_| error.kind() == ErrorKind::AddrInUse);
        let holder = holder.map(|holder| format!("; {holder}")).unwrap_or_default();
        StartError::Runtime(format!("cannot listen on {written} (admin): {error}{holder}"))
    })?;
    if let Ok(address) = listener.local_addr() {
        log::info!(address:% = address; "admin bound");
    }
    Ok(Some((written, listener)))
}

/// The name under which the admin listener's socket is handed over.
pub(super) fn name(written: SocketAddr) -> String {
    format!("admin {written}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_taken_does_not_keep_another_listener_from_its_address() {
        let old = TcpListener::bind("127.0.0.1:0").unwrap();
        let written = old.local_addr().unwrap();
        let wider = SocketAddr::from(([0; 4], written.port()));
        let mut sockets = Sockets::from_iter([(name(written), old.into())]);
        assert!(sockets.holder(wider).is_some());
        let taken = take(AdminAddress::At(written), &mut sockets);
        assert!(sockets.holder(wider).is_none());
        let (address, listener) = bind(AdminAddress::At(written), taken, &sockets).unwrap().unwrap();
        assert_eq!((address, listener.local_addr().unwrap()), (written, written));
    }
}
