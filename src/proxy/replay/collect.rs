//! Reading a whole request body into memory, within a limit, a budget and a deadline.

use std::fmt;
use std::time::Instant;

use bytes::{Bytes, BytesMut};
use http::{Version, header};
use pingora::ErrorType;
use pingora::http::RequestHeader;
use pingora::prelude::timeout;
use pingora::proxy::Session;

use super::{Budget, Reservation, WholeBody};
use crate::door::Patience;

/// Pieces under this size are gathered: each piece costs memory of its own, and clients choose sizes.
const SMALL: usize = 4096;
/// Size from which a gathered piece is complete.
const PIECE: usize = 16 * 1024;

/// Reads the request's whole body.
///
/// Answers `Expect: 100-continue` first. HTTP/2 clients that wait for it wait in vain, since Pingora
/// sends no interim answers on HTTP/2. The client is waited for with `patience`.
///
/// # Errors
/// See [`CollectError`]; the body is then partly read, so the connection is good for an answer only.
pub async fn collect(
    session: &mut Session,
    limit: u64,
    budget: &Budget,
    mut patience: Patience,
) -> Result<WholeBody, CollectError> {
    if declared_length(session.req_header()).is_some_and(|length| length > limit) {
        return Err(CollectError::TooLarge);
    }
    let mut gathered = Gathered::new(limit, budget);
    if awaits_continue(session.req_header()) {
        session.downstream_session.write_continue_response().await.map_err(CollectError::Client)?;
    }
    while let Some(piece) = read(session, &mut patience).await? {
        gathered.push(piece)?;
    }
    Ok(gathered.finish())
}

async fn read(session: &mut Session, patience: &mut Patience) -> Result<Option<Bytes>, CollectError> {
    let now = Instant::now();
    let left = patience.waits(now).saturating_duration_since(now);
    // Pingora's own read timeout exists on HTTP/1 only.
    let read = timeout(left, session.downstream_session.read_request_body()).await;
    let piece = read.map_err(|_| CollectError::Timeout)?.map_err(|e| match e.etype() {
        ErrorType::ReadTimedout => CollectError::Timeout,
        _ => CollectError::Client(e),
    })?;
    let moved = piece.as_ref().map_or(0, Bytes::len);
    let in_time = patience.moved(moved, Instant::now) || piece.is_none();
    if in_time { Ok(piece) } else { Err(CollectError::Timeout) }
}

fn declared_length(head: &RequestHeader) -> Option<u64> {
    head.headers.get(header::CONTENT_LENGTH)?.to_str().ok()?.trim().parse().ok()
}

/// RFC 9110 s10.1.1: the expectation of an HTTP/1.0 client is ignored.
fn awaits_continue(head: &RequestHeader) -> bool {
    let expectation = head.headers.get(header::EXPECT);
    head.version == Version::HTTP_11
        && expectation.is_some_and(|value| value.as_bytes().eq_ignore_ascii_case(b"100-continue"))
}

/// A body as far as it is there.
pub struct Gathered {
    limit: u64,
    reservation: Reservation,
    chunks: Vec<Bytes>,
    small: BytesMut,
}

impl Gathered {
    /// Nothing yet, and `limit` bytes at most.
    pub fn new(limit: u64, budget: &Budget) -> Self {
        Self { limit, reservation: budget.reserve_nothing(), chunks: Vec::new(), small: BytesMut::new() }
    }

    /// Adds a piece.
    ///
    /// # Errors
    /// It is too much, for the limit or for the budget.
    pub fn push(&mut self, piece: Bytes) -> Result<(), CollectError> {
        let more = piece.len() as u64;
        if self.reservation.bytes().checked_add(more).is_none_or(|sum| sum > self.limit) {
            return Err(CollectError::TooLarge);
        }
        if !self.reservation.grow(more) {
            return Err(CollectError::NoBudget);
        }
        if piece.len() >= SMALL {
            self.complete();
            self.chunks.push(piece);
        } else {
            self.small.extend_from_slice(&piece);
            if self.small.len() >= PIECE {
                self.complete();
            }
        }
        Ok(())
    }

    fn complete(&mut self) {
        if !self.small.is_empty() {
            self.chunks.push(std::mem::take(&mut self.small).freeze());
        }
    }

    /// The whole body.
    #[must_use]
    pub fn finish(mut self) -> WholeBody {
        self.complete();
        WholeBody::from_chunks(self.chunks, self.reservation)
    }
}

/// Why a body could not be read whole.
#[derive(Debug)]
pub enum CollectError {
    /// The client's fault: more than the limit; 413.
    TooLarge,
    /// Ours: too many bodies are held already; 503.
    NoBudget,
    /// The client's fault: patience with it was over; 408.
    Timeout,
    /// The client's fault: not all of it came in the time for all of the request; 408.
    Overdue,
    /// The client left, or broke the protocol.
    Client(Box<pingora::Error>),
}

impl fmt::Display for CollectError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::TooLarge => f.write_str("request body is over the limit"),
            Self::NoBudget => f.write_str("no memory left for request bodies"),
            Self::Timeout => f.write_str("request body came too slowly"),
            Self::Overdue => f.write_str("request body came too late"),
            Self::Client(e) => write!(f, "request body could not be read: {e}"),
        }
    }
}

impl std::error::Error for CollectError {}

#[cfg(test)]
mod tests {
    use super::*;

    fn gather(pieces: impl IntoIterator<Item = Vec<u8>>, limit: u64) -> Result<WholeBody, CollectError> {
        let mut gathered = Gathered::new(limit, &Budget::new(u64::MAX));
        for piece in pieces {
            gathered.push(piece.into())?;
        }
        Ok(gathered.finish())
    }

    #[test]
    fn a_body_sent_byte_by_byte_is_kept_in_few_chunks() {
        let body = gather((0..100_000).map(|i| vec![i as u8]), 100_000).unwrap();
        assert_eq!((body.len(), body.chunks().len()), (100_000, 7));
        assert!(body.to_bytes().iter().enumerate().all(|(i, b)| *b == i as u8));
    }

    #[test]
    fn large_and_small_pieces_keep_their_order_and_empty_ones_vanish() {
        let body =
            gather([vec![], vec![1; 5], vec![2; SMALL], vec![], vec![3; 2], vec![4; 3]], 9000).unwrap();
        let sizes: Vec<usize> = body.chunks().iter().map(Bytes::len).collect();
        assert_eq!(sizes, [5, SMALL, 5]);
        assert_eq!(body.to_bytes().last(), Some(&4));
        assert!(gather([vec![], vec![]], 0).unwrap().is_empty());
    }

    #[test]
    fn the_limit_itself_is_allowed_and_one_byte_more_is_not() {
        assert!(gather([vec![0; 7], vec![0; 3]], 10).is_ok());
        assert!(matches!(gather([vec![0; 7], vec![0; 4]], 10), Err(CollectError::TooLarge)));
    }
}
