//! Pieces of the request body on their way to the upstream.

use bytes::Bytes;
use pingora::prelude::*;
use tollhouse_filters::outcome::Reply;
use tollhouse_filters::problem::{self, Problem};

use super::{Call, failure};

/// Counts a piece and shows it to the filters that look at pieces.
pub(super) fn pass(piece: Option<&Bytes>, end: bool, call: &mut Call) -> Result<()> {
    // A body that was collected has passed its limit, and an upgraded stream has none.
    if call.body.is_none() && !call.upgrade {
        call.body_seen += piece.map_or(0, |piece| piece.len() as u64);
        if call.body_seen > call.exchange().body_limit() {
            return refuse(call, Problem::new(&problem::BODY_TOO_LARGE).into());
        }
    }
    let exchange = call.exchange();
    if !exchange.stack.sees_request_chunks() {
        return Ok(());
    }
    let empty = Bytes::new();
    let entered = exchange.entered;
    match entered.request_chunk(&exchange.stack, piece.unwrap_or(&empty), end, &mut exchange.ctx) {
        None => Ok(()),
        Some(reply) => refuse(call, reply),
    }
}

/// Pingora takes any other error here for one of an HTTP/2 upstream, and goes on to wait for its answer.
fn refuse(call: &mut Call, reply: Reply) -> Result<()> {
    failure::refuse(call, reply).map_err(|error: Box<Error>| error.into_down())
}
