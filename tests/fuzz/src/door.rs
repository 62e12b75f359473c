//! What `src/door` of the gateway is to its files.

use std::time::Duration;

#[path = "../../../src/door/chunks.rs"]
pub mod chunks;
#[path = "../../../src/door/head.rs"]
pub mod head;
#[path = "../../../src/door/preamble.rs"]
pub mod preamble;
#[path = "../../../src/door/rule.rs"]
pub mod rule;

pub use rule::Rule;

/// As in `src/door/mod.rs`.
pub struct HeadLimits {
    pub header_bytes: u64,
    pub header_count: usize,
    pub uri_bytes: u64,
    pub header_timeout: Duration,
    pub idle_timeout: Duration,
}

const LIMITS: HeadLimits = HeadLimits {
    header_bytes: 4096,
    header_count: 30,
    uri_bytes: 1024,
    header_timeout: Duration::ZERO,
    idle_timeout: Duration::ZERO,
};

/// Reads a head in pieces that end at these places.
pub fn read_head(bytes: &[u8], cuts: &[usize]) -> Result<Option<super::Head>, Rule> {
    let mut scanner = head::Scanner::default();
    for cut in cuts.iter().copied().chain([bytes.len()]) {
        if let Some(head) = scanner.read(&bytes[..cut], &LIMITS)? {
            let body = match head.body {
                head::Body::Length(length) => super::Body::Length(length),
                head::Body::Chunked => super::Body::Chunked,
                head::Body::Open => super::Body::Open,
            };
            return Ok(Some(super::Head { start: head.start, end: head.end, body }));
        }
    }
    Ok(None)
}

/// Follows a chunked body in pieces; where it ends, if it does.
pub fn read_chunks(bytes: &[u8], cuts: &[usize]) -> Result<Option<usize>, Rule> {
    let (mut chunks, mut from, mut read) = (chunks::Chunks::default(), 0, 0);
    for cut in cuts.iter().copied().chain([bytes.len()]) {
        read += chunks.follow(&bytes[from..cut])?;
        from = cut;
    }
    Ok(chunks.is_over().then_some(read))
}

/// Reads a preamble; its length, and the client's and the local address.
pub fn read_preamble(bytes: &[u8]) -> Result<Option<super::Preamble>, ()> {
    let read = preamble::Preamble::read(bytes).map_err(|_| ())?;
    Ok(read.map(|found| super::Preamble {
        length: found.length,
        addresses: found.addresses.map(|addresses| (addresses.client, addresses.local)),
    }))
}
