//! Whether a request gets to its upstream: circuit breakers and places.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::HeaderValue;
use pingora::http::ResponseHeader;
use tollhouse_filters::outcome::{Body, Message, Reply};
use tollhouse_filters::problem::{self, Problem};

use super::Exchange;
use crate::config::circuit_breaker::Fallback;
use crate::upstream::{Refusal, Upstream};

impl Exchange {
    /// Lets the request to its upstream, which may take a while, or says what it is answered instead.
    pub(super) async fn admit(&mut self, upstream: &Arc<Upstream>) -> Result<(), Reply> {
        let route = self.route.bulkhead.as_ref();
        if upstream.is_open_to_all() && route.is_none() {
            return Ok(());
        }
        // On the heap: most requests do not get here.
        match Box::pin(upstream.admit(route, self.ctx.deadline)).await {
            Ok((admission, waited)) => {
                self.admission = admission;
                self.ctx.waited += waited;
                Ok(())
            }
            Err(refusal) => Err(refused(&refusal, upstream)),
        }
    }
}

fn refused(refusal: &Refusal, upstream: &Upstream) -> Reply {
    match refusal {
        Refusal::Busy(detail) => Problem::new(&problem::UPSTREAM_BUSY).detail(*detail).into(),
        Refusal::Open(left) => match upstream.fallback() {
            Some(fallback) => stand_in(fallback),
            None => {
                let seconds = left.saturating_add(Duration::from_millis(999)).as_secs();
                Problem::new(&problem::CIRCUIT_OPEN).come_back_after(seconds).into()
            }
        },
    }
}

/// The answer in the place of the upstream's. What is written was checked when the upstream was built.
fn stand_in(fallback: &Fallback) -> Reply {
    let Ok(mut head) = ResponseHeader::build(fallback.status, Some(fallback.headers.len())) else {
        return Problem::new(&problem::INTERNAL).into();
    };
    for (name, value) in &fallback.headers {
        if let Ok(value) = HeaderValue::from_str(value) {
            let _ = head.insert_header(name.get().clone(), value);
        }
    }
    let body = Body::Bytes(Bytes::from(fallback.body.clone()));
    Reply::Message(Box::new(Message { head, body }))
}
