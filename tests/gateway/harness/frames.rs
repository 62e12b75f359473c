//! A client of HTTP/2 that writes frames by hand (RFC 9113 s4.1, RFC 7541): what no library sends.

use std::net::SocketAddr;

use super::Wire;

/// What a request came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// An answer with this status; 0 for one that is not in the static table.
    Answered(u16),
    /// The stream was reset.
    Reset,
    /// The connection was ended.
    Ended,
}

/// One frame.
pub(crate) fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).expect("short").to_be_bytes();
    [&length[1..], &[kind, flags], &stream.to_be_bytes(), payload].concat()
}

/// The HEADERS of stream 1: literal fields, neither indexed nor Huffman-coded (RFC 7541 s6.2.2).
pub(crate) fn headers(fields: &[(&str, &str)], end: bool) -> Vec<u8> {
    let mut block = Vec::new();
    for (name, value) in fields {
        block.push(0);
        for text in [name, value] {
            block.push(u8::try_from(text.len()).ok().filter(|length| *length < 127).expect("short"));
            block.extend_from_slice(text.as_bytes());
        }
    }
    frame(1, 4 | u8::from(end), 1, &block)
}

/// DATA of stream 1.
pub(crate) fn data(bytes: &[u8], end: bool) -> Vec<u8> {
    frame(0, u8::from(end), 1, bytes)
}

/// Sends frames on a new connection, and waits for what stream 1 comes to.
pub(crate) async fn ask(address: SocketAddr, frames: &[Vec<u8>]) -> Outcome {
    let mut client = Wire::connect(address).await;
    client
        .send([b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec(), frame(4, 0, 0, &[]), frames.concat()].concat())
        .await;
    loop {
        let Ok(head) = client.exactly(9).await else { return Outcome::Ended };
        let length = u32::from_be_bytes([0, head[0], head[1], head[2]]);
        let Ok(payload) = client.exactly(length as usize).await else { return Outcome::Ended };
        match head[3] {
            // `:status` as a field of the static table (RFC 7541 appendix A).
            1 => {
                return Outcome::Answered(match payload[0] {
                    0x88 => 200,
                    0x8c => 400,
                    0x8d => 404,
                    _ => 0,
                });
            }
            3 => return Outcome::Reset,
            7 => return Outcome::Ended,
            _ => {}
        }
    }
}
