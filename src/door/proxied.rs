//! Connections that a trusted proxy introduces by a preamble of the PROXY protocol.

use pingora::prelude::timeout;
use pingora::protocols::l4::stream::Stream as L4Stream;
use tokio::io::AsyncReadExt;

use super::accept::with_addresses;
use super::handshake::Arrival;
use super::preamble::{Malformed, Preamble};
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
        socket = with_addresses(socket, facts.peer, facts.local);
        permit.count(addresses.client.ip())?;
    }
    Ok(Arrival { socket, facts, permit })
}

/// Reads a preamble and puts back what came with it.
async fn read(socket: &mut L4Stream) -> Result<Preamble, Malformed> {
    let mut bytes = Vec::with_capacity(ROOM);
    loop {
        if socket.read_buf(&mut bytes).await.map_err(|_| Malformed)? == 0 {
            return Err(Malformed);
        }
        if let Some(preamble) = Preamble::read(&bytes)? {
            socket.rewind(&bytes[preamble.length..]);
            return Ok(preamble);
        }
    }
}
