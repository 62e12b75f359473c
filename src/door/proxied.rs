//! Connections that a trusted proxy introduces by a preamble of the PROXY protocol.

use pingora::prelude::timeout;
use tokio::io::AsyncReadExt;

use super::handshake::Arrival;
use super::preamble::{Malformed, Preamble};
use super::socket::Socket;
use super::{Common, Refused};

/// What is read at once; what follows a preamble is put back.
const ROOM: usize = 512;

/// Learns who the client is; the connection is closed if the proxy does not say so in time.
///
/// # Errors
/// Why the connection is refused.
pub(super) async fn introduce<A>(common: &Common<A>, arrival: Arrival) -> Result<Arrival, Refused> {
    let Arrival { mut socket, mut facts, mut permit } = arrival;
    let patience = common.desk.limits.load().header_timeout;
    let preamble = timeout(patience, read(&mut socket)).await.unwrap_or(Err(Malformed));
    let preamble = preamble.map_err(|_| permit.refuse(Refused::NoPreamble))?;
    if let Some(addresses) = preamble.addresses {
        (facts.peer, facts.local, facts.unix) = (Some(addresses.client), Some(addresses.local), false);
        permit.count(addresses.client.ip())?;
    }
    Ok(Arrival { socket, facts, permit })
}

/// Reads a preamble and puts back what came with it.
async fn read(socket: &mut Socket) -> Result<Preamble, Malformed> {
    let mut bytes = Vec::with_capacity(ROOM);
    loop {
        if socket.read_buf(&mut bytes).await.map_err(|_| Malformed)? == 0 {
            return Err(Malformed);
        }
        if let Some(preamble) = Preamble::read(&bytes)? {
            socket.put_back(&bytes[preamble.length..]);
            return Ok(preamble);
        }
    }
}
