//! `decompress`: decodes request bodies before other filters and the upstream see them
//! (RFC 9110 s8.4).
//!
//! ```yaml
//! - decompress: {max_size: 10MiB, max_ratio: 100}
//! ```
//!
//! gzip, Brotli, zstd and deflate (zlib) are decoded as they come, up to three of them in a row; the
//! body is never held whole. The upstream gets it without `Content-Encoding` and in chunks. A body that
//! turns out to be broken is answered 400, and what the upstream got of it never looks whole. Digests
//! of the encoded bytes are removed. A `no-transform` of the client is not heeded, since whoever
//! relies on this filter has to see what is in the body.
//!
//! There is no `dry_run`: what it decides it finds in the body, and a dry run sees none.
//!
//! Limits of body sizes count both what came in and what came out; `body_limit` counts what came in
//! when it is written before this filter, and what came out when after it.
//!
//! Hardened against untrusted clients: over `max_size` or `max_ratio` is a 413, with at most that much
//! decoded, and windows of up to 8 MiB (zstd) and 16 MiB (Brotli). All bodies under way together cost
//! 128 MiB at most, each about what came out of it, up to its window, and what is beyond 64 KiB of each
//! of its pieces that wait for the upstream: further ones are answered 503.

use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use http::header::{self, HeaderMap, HeaderName, HeaderValue};
use pingora_http::{RequestHeader, ResponseHeader};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::coding::budget::{Budget, Share};
use crate::coding::decode::{Coding, Decoder, Fault, Limits};
use crate::context::{Context, Slot, Verdict};
use crate::filter::{Build, BuildError, Filter};
use crate::outcome::{FilterError, Outcome};
use crate::phase::{OnRequest, OnRequestChunk, OnResponse, OnUpstreamRequest, Phases};
use crate::problem::{BAD_REQUEST, BODY_TOO_LARGE, OVERLOADED, Problem, UNSUPPORTED_CODING};
use crate::values::ByteSize;

/// Codings applied one after the other; more of them are an attack.
const MAX_CODINGS: usize = 3;

/// How much may come out, and what happens to other codings.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Options {
    /// The largest decoded body; over it: 413.
    pub max_size: ByteSize,
    /// How many times larger a decoded body may be than what came in, once it is over 1 MiB; over
    /// it: 413.
    pub max_ratio: u32,
    /// What happens to bodies with codings that are not decoded here: 415 (`reject`), or they are passed on as they
    /// are (`pass`).
    pub unknown: Unknown,
}

/// What happens to bodies with codings that are not decoded here.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Unknown {
    /// 415, and `Accept-Encoding` names the codings that are (RFC 9110 s15.5.16).
    #[default]
    Reject,
    /// They are passed on as they are.
    Pass,
}

impl Default for Options {
    fn default() -> Self {
        Self { max_size: ByteSize::from_mib(10), max_ratio: 100, unknown: Unknown::Reject }
    }
}

/// See the [module](self).
pub struct Decompress {
    limits: Limits,
    unknown: Unknown,
    body: Slot<Body>,
    budget: Arc<Budget>,
}

/// A request body that is to be decoded.
#[derive(Default)]
struct Body {
    codings: Vec<Coding>,
    /// Made for the first piece.
    decoder: Option<Box<Decoder>>,
    /// Of what may still wait for the upstream when all is decoded.
    waiting: Option<Arc<Share>>,
    /// The answer has begun.
    answered: bool,
}

/// What tells something about the encoded bytes.
const ABOUT_BYTES: [HeaderName; 5] = [
    header::CONTENT_ENCODING,
    HeaderName::from_static("content-md5"),
    HeaderName::from_static("digest"),
    HeaderName::from_static("content-digest"),
    HeaderName::from_static("repr-digest"),
];

impl Filter for Decompress {
    const NAME: &'static str = "decompress";
    const GUARD: bool = true;
    type Options = Options;

    fn build(options: Options, build: &mut Build<'_>) -> Result<Phases, BuildError> {
        Self::within(Budget::of_decoders(), options, build)
    }
}

impl Decompress {
    fn within(budget: Arc<Budget>, options: Options, build: &mut Build<'_>) -> Result<Phases, BuildError> {
        if options.max_ratio == 0 {
            return Err(BuildError::at("max_ratio", "expected a number from 1"));
        }
        let limits = Limits { size: options.max_size.get(), ratio: options.max_ratio };
        let filter = Arc::new(Self { limits, unknown: options.unknown, body: build.slot(), budget });
        Ok(Phases::new()
            .on_request(filter.clone())
            .on_request_chunk(filter.clone())
            .on_upstream_request(filter.clone())
            .on_response(filter))
    }
}

#[async_trait]
impl OnRequest for Decompress {
    async fn on_request(
        &self,
        request: &mut RequestHeader,
        ctx: &mut Context,
    ) -> Result<Outcome, FilterError> {
        let codings = match codings(&request.headers) {
            Some(codings) if codings.is_empty() => return Ok(Outcome::Continue),
            Some(codings) => codings,
            None if self.unknown == Unknown::Pass => return Ok(Outcome::Continue),
            None => return Ok(unsupported().into()),
        };
        // `Content-Length` frames what is still to be read: it goes away on the way to the upstream.
        for name in &ABOUT_BYTES {
            request.remove_header(name);
        }
        ctx.decide(Verdict::Changed, "decodes the body", &[]);
        ctx.set_slot(self.body, Body { codings, ..Body::default() });
        Ok(Outcome::Continue)
    }
}

impl OnRequestChunk for Decompress {
    fn on_request_chunk(
        &self,
        chunk: &mut Bytes,
        end: bool,
        ctx: &mut Context,
    ) -> Result<Outcome, FilterError> {
        if ctx.slot(self.body).is_none() {
            return Ok(Outcome::Continue);
        }
        let body = ctx.slot_mut(self.body);
        let mut decoder = match body.decoder.take() {
            Some(decoder) => decoder,
            None => Box::new(
                Decoder::within(&self.budget, &body.codings, self.limits)
                    .map_err(|error| FilterError::Unavailable(format!("no decoder: {error}")))?,
            ),
        };
        let decoded = decoder
            .piece(chunk)
            .and_then(|decoded| if end { decoder.finish().map(|()| decoded) } else { Ok(decoded) });
        match decoded {
            Ok(decoded) => {
                if end {
                    body.waiting = decoder.into_waiting().filter(|_| !body.answered);
                } else {
                    body.decoder = Some(decoder);
                }
                *chunk = decoded;
                Ok(Outcome::Continue)
            }
            Err(fault) => Ok(refusal(fault).into()),
        }
    }
}

#[async_trait]
impl OnUpstreamRequest for Decompress {
    async fn on_upstream_request(
        &self,
        request: &mut RequestHeader,
        _: u32,
        ctx: &mut Context,
    ) -> Result<(), FilterError> {
        if ctx.slot(self.body).is_none() {
            return Ok(());
        }
        // An earlier attempt may have decoded a part of the body, which then is gone.
        let body = ctx.slot_mut(self.body);
        body.decoder = None;
        body.answered = false;
        drop(body.waiting.take());
        let empty = request.headers.get(header::CONTENT_LENGTH).is_some_and(|length| length == "0");
        if !empty {
            request.remove_header(&header::CONTENT_LENGTH);
        }
        Ok(())
    }
}

#[async_trait]
impl OnResponse for Decompress {
    async fn on_response(
        &self,
        _: &RequestHeader,
        _: &mut ResponseHeader,
        ctx: &mut Context,
    ) -> Result<(), FilterError> {
        // Who answers has nearly always taken everything, and may go on to answer for hours.
        if ctx.slot(self.body).is_some() {
            let body = ctx.slot_mut(self.body);
            body.answered = true;
            drop(body.waiting.take());
        }
        Ok(())
    }
}

/// The codings of a body in the order they were applied; none if one is unknown, or there are too many.
fn codings(headers: &HeaderMap) -> Option<Vec<Coding>> {
    let mut codings = Vec::new();
    for line in headers.get_all(header::CONTENT_ENCODING) {
        let names = line.to_str().ok()?.split(',').map(str::trim);
        for name in names.filter(|name| !name.is_empty() && !name.eq_ignore_ascii_case("identity")) {
            codings.push(Coding::named(name)?);
        }
    }
    (codings.len() <= MAX_CODINGS).then_some(codings)
}

/// RFC 7694 s3: the answer says what would have been accepted.
fn unsupported() -> Problem {
    Problem::new(&UNSUPPORTED_CODING)
        .detail("the content coding of the request is not supported")
        .header(header::ACCEPT_ENCODING, HeaderValue::from_static("gzip, br, zstd, deflate"))
}

fn refusal(fault: Fault) -> Problem {
    match fault {
        Fault::Malformed => Problem::new(&BAD_REQUEST).detail("the body is not what its coding says"),
        Fault::TooLarge => Problem::new(&BODY_TOO_LARGE).detail("the decoded body is too large"),
        Fault::NoMemory => Problem::new(&OVERLOADED).detail("too many bodies are being decoded"),
    }
}

#[cfg(test)]
mod tests;
