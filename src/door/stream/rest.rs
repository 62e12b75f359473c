//! What is still to be read of a request, or of a connection whose requests are side by side.

use super::super::Rule;
use super::super::chunks::Chunks;
use super::super::frames::Frames;
use super::super::tunnel::Tunnel;

/// What is still to be read of a request.
#[derive(Debug)]
pub(super) enum Rest {
    /// This many bytes.
    Bytes(u64),
    /// Chunks.
    Chunks(Chunks),
    /// Whatever comes; once it is a tunnel, with what goes the other way.
    Open(Option<Box<Tunnel>>),
    /// Frames of HTTP/2, which are counted.
    Frames(Box<Frames>),
    /// Nobody knows, and nobody wants it.
    Abandoned,
}

impl Rest {
    /// How many of these bytes belong to the request.
    pub(super) fn take(&mut self, bytes: &[u8]) -> Result<usize, Rule> {
        match self {
            Self::Bytes(left) => {
                let here = bytes.len().min(usize::try_from(*left).unwrap_or(usize::MAX));
                *left -= here as u64;
                Ok(here)
            }
            Self::Chunks(chunks) => chunks.follow(bytes),
            Self::Frames(frames) => frames.client_sent(bytes).map(|()| bytes.len()),
            Self::Open(_) | Self::Abandoned => Ok(bytes.len()),
        }
    }

    pub(super) fn is_over(&self) -> bool {
        match self {
            Self::Bytes(left) => *left == 0,
            Self::Chunks(chunks) => chunks.is_over(),
            Self::Frames(frames) => frames.is_ended(),
            Self::Open(_) | Self::Abandoned => false,
        }
    }
}
