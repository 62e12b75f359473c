//! The door's readers of bytes as functions: the very files of the gateway, with nothing around them.

#![expect(dead_code, unreachable_pub, reason = "the gateway uses the rest of these files")]

mod door;
pub mod identity;

use std::net::SocketAddr;

pub use door::{Rule, read_chunks, read_head, read_preamble};

/// A head that is whole and valid.
#[derive(Debug, PartialEq, Eq)]
pub struct Head {
    pub start: usize,
    pub end: usize,
    pub body: Body,
}

/// What follows a head.
#[derive(Debug, PartialEq, Eq)]
pub enum Body {
    Length(u64),
    Chunked,
    Open,
}

/// A preamble that is whole.
#[derive(Debug, PartialEq, Eq)]
pub struct Preamble {
    pub length: usize,
    pub addresses: Option<(SocketAddr, SocketAddr)>,
}

/// Takes places to cut at from the first two bytes, and gives the rest.
pub fn with_cuts(input: &[u8]) -> Option<([usize; 2], &[u8])> {
    let (&[a, b], rest) = input.split_first_chunk::<2>()?;
    let mut cuts = [a, b].map(|cut| usize::from(cut).min(rest.len()));
    cuts.sort_unstable();
    Some((cuts, rest))
}
