//! The body of an upstream's answer, through the filters behind the cache.

use std::time::{Duration, Instant};

use async_trait::async_trait;
use bytes::Bytes;
use http::StatusCode;
use tollhouse_filters::phase::Completed;
use tollhouse_filters::world::{ClientBody, ClientError};

use crate::engine::Exchange;
use crate::upstream::call::BodyStream;

/// An upstream's body through the filters behind the cache.
pub(super) struct Inner {
    body: BodyStream,
    exchange: Exchange,
    /// The length that its head told.
    declared: Option<u64>,
    seen: u64,
    /// Read before it was asked for.
    ahead: Option<Bytes>,
    started: Instant,
    status: StatusCode,
    /// How long the head took.
    took: Option<Duration>,
    over: bool,
    /// The upstream broke it off; else who drops it has enough.
    broken: bool,
}

impl Inner {
    /// The body of an answer whose head told this length and this status, and took so long.
    pub(super) fn new(
        body: BodyStream,
        exchange: Exchange,
        declared: Option<u64>,
        status: StatusCode,
        took: Option<Duration>,
    ) -> Self {
        let (seen, ahead, over, broken) = (0, None, false, false);
        Self { body, exchange, declared, seen, ahead, started: Instant::now(), status, took, over, broken }
    }

    /// The next piece, and whether it is known to be the last one.
    pub(super) async fn next_and_end(&mut self) -> Result<Option<(Bytes, bool)>, ClientError> {
        if let Some(ahead) = self.ahead.take() {
            return Ok(Some((ahead, false)));
        }
        let Some(piece) = self.next().await? else { return Ok(None) };
        if self.declared != Some(self.seen) {
            return Ok(Some((piece, false)));
        }
        // As much came as the head told: the end is here too, unless a filter has more.
        self.ahead = self.next().await?;
        let ends = self.ahead.is_none();
        Ok(Some((piece, ends)))
    }
}

#[async_trait]
impl ClientBody for Inner {
    async fn next(&mut self) -> Result<Option<Bytes>, ClientError> {
        while !self.over {
            let next = self.body.next().await.map_err(|error| {
                self.broken = true;
                ClientError::Broken(error.to_string())
            })?;
            self.over = next.is_none();
            self.seen += next.as_ref().map_or(0, |piece| piece.len() as u64);
            if self.over && self.declared.is_some_and(|declared| declared != self.seen) {
                (self.over, self.broken) = (false, true);
                return Err(ClientError::Broken(
                    "the upstream's answer has another length than it said".to_owned(),
                ));
            }
            let mut piece = next;
            let filtered = self.exchange.response_chunk(&mut piece, self.over);
            filtered.map_err(|_| ClientError::Unavailable("a response filter failed".into()))?;
            if let Some(piece) = piece.filter(|piece| !piece.is_empty()) {
                return Ok(Some(piece));
            }
        }
        Ok(None)
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        let completed = Completed {
            status: self.status.as_u16(),
            elapsed: self.started.elapsed(),
            bytes_in: 0,
            bytes_out: self.seen,
        };
        // That it was read too late is nothing that the upstream can do.
        let broke_off = self.broken && !self.body.was_read_late();
        if broke_off {
            self.exchange.admission.broke_off(Instant::now());
        }
        self.exchange.finish(&completed);
        self.exchange.note_for_ramp(completed.status, broke_off, self.took.or(Some(completed.elapsed)));
    }
}
