//! Pieces of the request body on their way to the upstream.

use std::time::Instant;

use bytes::Bytes;
use pingora::prelude::*;
use tollhouse_filters::outcome::Reply;
use tollhouse_filters::problem::{self, Problem};

use super::{Call, failure};

/// Counts a piece and passes it through the filters that look at pieces.
pub(super) fn pass(piece: &mut Option<Bytes>, end: bool, call: &mut Call) -> Result<()> {
    // A body that was collected has passed its limit and its filters, and an upgraded stream has none.
    if call.body.is_some() || call.upgrade {
        return Ok(());
    }
    if end {
        call.attempts.uploaded.get_or_insert_with(Instant::now);
        if let Some(picked) = &mut call.attempts.picked {
            picked.guard.uploaded();
        }
    }
    call.body_seen += length(piece);
    if call.body_seen > call.exchange().body_limit() {
        return refuse(call, Problem::new(&problem::BODY_TOO_LARGE).into());
    }
    if !call.exchange().stack.sees_request_chunks() {
        return Ok(());
    }
    let mut bytes = piece.take().unwrap_or_default();
    if let Some(reply) = call.exchange().request_chunk(&mut bytes, end) {
        return refuse(call, reply);
    }
    // Pingora takes none for the end, and an empty last piece for one more end.
    *piece = Some(bytes).filter(|bytes| !(end && bytes.is_empty()));
    // What a filter made of the body is under the limit too.
    call.body_passed += length(piece);
    if call.body_passed > call.exchange().body_limit() {
        return refuse(call, Problem::new(&problem::BODY_TOO_LARGE).into());
    }
    Ok(())
}

fn length(piece: &Option<Bytes>) -> u64 {
    piece.as_ref().map_or(0, |piece| piece.len() as u64)
}

/// Pingora takes any other error here for one of an HTTP/2 upstream, and goes on to wait for its answer.
fn refuse(call: &mut Call, reply: Reply) -> Result<()> {
    failure::refuse(call, reply).map_err(|error: Box<Error>| error.into_down())
}
