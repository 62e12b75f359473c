//! `compress`: encodes answers for clients that accept it (RFC 9110 s8.4, s12.5.3).
//!
//! ```yaml
//! - compress: {algorithms: [zstd, br, gzip], min_size: 1KiB}
//! ```
//!
//! The client's weights decide, and the order of `algorithms` among equals. What is sent lets the
//! client decode everything that came from the upstream so far: a slow trickle is never held back.
//!
//! Left as they are: event streams, gRPC, upgrades, answers of other types, those that have a coding
//! already, parts of a whole (206), answers below `min_size` of known length, answers to HTTP/1.0, and
//! those whose `Cache-Control`, or that of their request, says `no-transform` (RFC 9111 s5.2.2.6). An
//! answer that is encoded loses `Content-Length`, `Accept-Ranges` and digests of its bytes, and its strong
//! `ETag` becomes weak: `If-None-Match` still finds it, `If-Match` and `If-Range` do not. Trailers that
//! were not announced are lost. A 304 says that it varies by `Accept-Encoding`, as the 200 would (RFC 9110
//! s15.4.5); one without `Content-Type` always does.
//!
//! Hardened against untrusted clients: an answer under way costs about 0.4 MiB with gzip, 1.6 MiB with
//! zstd and 2 MiB with Brotli (3.6 MiB at level 6), however large it is, and less when it is known to be
//! smaller than 256 KiB. All answers under way together cost 128 MiB at most: when half of that is taken,
//! further ones get the cheapest coding that their client accepts, at level 1, and when all is, they are
//! sent as they are, even to who refuses that. Do not encode answers that hold a secret beside text of the client's choice: their length tells
//! the secret (BREACH).

use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use http::header::{self, HeaderMap, HeaderName, HeaderValue};
use http::{Method, StatusCode, Version};
use pingora_http::{RequestHeader, ResponseHeader};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::coding::accept;
use crate::coding::budget::{Budget, Share};
use crate::coding::encode::{Algorithm, Effort, Encoder};
use crate::coding::types::{DEFAULT_TYPES, Types};
use crate::context::{Context, Slot, Verdict};
use crate::filter::{Build, BuildError, Filter};
use crate::outcome::FilterError;
use crate::phase::{OnResponse, OnResponseChunk, Phases};
use crate::values::ByteSize;
use crate::world::{Counter, Metrics};

/// Which answers are encoded, and how.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Options {
    /// The codings offered; the first of those that a client likes equally well is used.
    pub algorithms: Vec<Algorithm>,
    /// How much work is spent, for each coding.
    pub level: Levels,
    /// Answers known to be smaller are left as they are, unless the client refuses that.
    pub min_size: ByteSize,
    /// Media types that are encoded: `application/json`, `text/*`, or `application/*+json` for all
    /// that end so. Event streams and gRPC never are.
    pub types: Vec<String>,
}

/// Levels from 1, the fastest, to 9, the smallest; of Brotli to 6.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Levels {
    /// Of zstd.
    pub zstd: u8,
    /// Of Brotli, at most 6: higher ones take 10 MiB and more for each answer.
    pub br: u8,
    /// Of gzip.
    pub gzip: u8,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            algorithms: vec![Algorithm::Zstd, Algorithm::Br, Algorithm::Gzip],
            level: Levels::default(),
            min_size: ByteSize::from_kib(1),
            types: DEFAULT_TYPES.map(str::to_owned).to_vec(),
        }
    }
}

impl Default for Levels {
    fn default() -> Self {
        Self { zstd: 3, br: 4, gzip: 6 }
    }
}

impl Levels {
    fn of(self, algorithm: Algorithm) -> u8 {
        match algorithm {
            Algorithm::Zstd => self.zstd,
            Algorithm::Br => self.br,
            Algorithm::Gzip => self.gzip,
        }
    }

    fn check(self) -> Result<(), BuildError> {
        // Brotli above 6 takes 10 MiB and more for each answer.
        let all = [("zstd", self.zstd, 9), ("br", self.br, 6), ("gzip", self.gzip, 9)];
        match all.into_iter().find(|(_, level, most)| !(1..=*most).contains(level)) {
            Some((name, _, most)) => {
                let mut error = BuildError::at("level", format!("expected a level from 1 to {most}"));
                error.path.push(name);
                Err(error)
            }
            None => Ok(()),
        }
    }
}

/// See the [module](self).
pub struct Compress {
    algorithms: Vec<Algorithm>,
    level: Levels,
    min_size: u64,
    types: Types,
    body: Slot<Body>,
    memory: Memory,
}

/// What answers under way may cost, and how many had to do with less.
struct Memory {
    budget: Arc<Budget>,
    cheaper: Counter,
    plain: Counter,
}

/// An answer's body on its way.
#[derive(Default)]
enum Body {
    /// It is left as it is.
    #[default]
    Plain,
    /// Nothing of it has come yet.
    Expected { effort: Effort, share: Share, head_only: bool },
    /// Some of it was sent.
    Encoding(Box<Encoder>, Share),
}

/// What tells something about the bytes of the body that is no longer so.
const ABOUT_BYTES: [HeaderName; 6] = [
    header::CONTENT_LENGTH,
    header::ACCEPT_RANGES,
    HeaderName::from_static("content-md5"),
    HeaderName::from_static("digest"),
    HeaderName::from_static("content-digest"),
    HeaderName::from_static("repr-digest"),
];

impl Filter for Compress {
    const NAME: &'static str = "compress";
    type Options = Options;

    fn build(options: Options, build: &mut Build<'_>) -> Result<Phases, BuildError> {
        Self::within(Budget::of_encoders(), options, build)
    }
}

#[async_trait]
impl OnResponse for Compress {
    async fn on_response(
        &self,
        request: &RequestHeader,
        response: &mut ResponseHeader,
        ctx: &mut Context,
    ) -> Result<(), FilterError> {
        // An answer that broke off before its head was sent may have been here before.
        if ctx.slot(self.body).is_some() {
            ctx.set_slot(self.body, Body::Plain);
        }
        if !self.may_encode(request, response) {
            return Ok(());
        }
        vary(response)?;
        if response.status == StatusCode::NOT_MODIFIED {
            return confirm(request, response);
        }
        let Some(choice) = accept::choose(&request.headers, &self.algorithms) else { return Ok(()) };
        let small = length(response).is_some_and(|length| length < self.min_size);
        // Nothing is left to be encoded, and of some answers without content filters see no end.
        let empty = length(response) == Some(0);
        let partial = response.status == StatusCode::PARTIAL_CONTENT;
        let unchanged = request.version == Version::HTTP_10 || no_transform(&request.headers);
        if partial || empty || unchanged || (small && !choice.required) {
            return Ok(());
        }
        let Some((effort, share)) = self.afford(request, choice.algorithm, length(response)) else {
            return Ok(());
        };
        encode_head(response, effort.algorithm)?;
        ctx.decide(Verdict::Changed, effort.algorithm.name(), &[]);
        let head_only = request.method == Method::HEAD;
        ctx.set_slot(self.body, Body::Expected { effort, share, head_only });
        Ok(())
    }
}

impl OnResponseChunk for Compress {
    fn on_response_chunk(
        &self,
        chunk: &mut Option<Bytes>,
        end: bool,
        ctx: &mut Context,
    ) -> Result<(), FilterError> {
        if matches!(ctx.slot(self.body), None | Some(Body::Plain)) {
            return Ok(());
        }
        let piece = chunk.take().unwrap_or_default();
        let body = ctx.slot_mut(self.body);
        let (mut encoder, share) = match std::mem::take(body) {
            Body::Expected { head_only, .. } if head_only && end && piece.is_empty() => return Ok(()),
            waiting if piece.is_empty() && !end => {
                *body = waiting;
                *chunk = Some(piece);
                return Ok(());
            }
            Body::Expected { effort, share, .. } => (Box::new(Encoder::of(effort).map_err(failed)?), share),
            Body::Encoding(encoder, share) => (encoder, share),
            Body::Plain => return Ok(()),
        };
        *chunk = Some(if end {
            encoder.finish(&piece).map_err(failed)?
        } else {
            let encoded = encoder.piece(&piece).map_err(failed)?;
            *body = Body::Encoding(encoder, share);
            encoded
        });
        Ok(())
    }
}

impl Memory {
    fn new(budget: Arc<Budget>, metrics: &dyn Metrics) -> Self {
        let counter = |coding| {
            let help = "Answers for whose coding there was no memory, by what they got.";
            metrics.counter("tollhouse_compress_over_budget_total", help, &[("coding", coding)])
        };
        Self { budget, cheaper: counter("cheaper"), plain: counter("none") }
    }
}

impl Compress {
    fn within(budget: Arc<Budget>, options: Options, build: &mut Build<'_>) -> Result<Phases, BuildError> {
        let algorithms = options.algorithms;
        if algorithms.is_empty() {
            return Err(BuildError::at("algorithms", "none is offered; remove the filter, or add `gzip`"));
        }
        if (1..algorithms.len()).any(|at| algorithms[..at].contains(&algorithms[at])) {
            return Err(BuildError::at("algorithms", "an algorithm is offered twice"));
        }
        options.level.check()?;
        let filter = Arc::new(Self {
            algorithms,
            level: options.level,
            min_size: options.min_size.get(),
            types: Types::parse("types", &options.types)?,
            body: build.slot(),
            memory: Memory::new(budget, build.metrics()),
        });
        Ok(Phases::new().on_response(filter.clone()).on_response_chunk(filter))
    }

    /// How there is memory to encode an answer: as the client likes best, or more cheaply; if at all.
    fn afford(
        &self,
        request: &RequestHeader,
        best: Algorithm,
        length: Option<u64>,
    ) -> Option<(Effort, Share)> {
        let Memory { budget, cheaper, plain } = &self.memory;
        let effort = Effort::new(best, self.level.of(best), length);
        if let Some(share) = budget.take(effort.memory()) {
            return Some((effort, share));
        }
        let accepted = |offered: &&Algorithm| accept::choose(&request.headers, &[**offered]).is_some();
        let efforts = self.algorithms.iter().filter(accepted).map(|one| Effort::new(*one, 1, length));
        let cheapest = efforts.min_by_key(|effort| effort.memory());
        let affordable = cheapest.and_then(|effort| Some((effort, budget.take_last(effort.memory())?)));
        if affordable.is_some() {
            cheaper.inc()
        } else {
            plain.inc()
        }
        affordable
    }

    /// Whether the answer is one of those that this filter encodes for clients that accept it. A 304, which has no
    /// content, seldom tells what the 200 would be, and may be about any.
    fn may_encode(&self, request: &RequestHeader, response: &ResponseHeader) -> bool {
        let bodiless = response.status.is_informational()
            || matches!(response.status, StatusCode::NO_CONTENT | StatusCode::RESET_CONTENT);
        let is_untyped = response.status == StatusCode::NOT_MODIFIED
            && !response.headers.contains_key(header::CONTENT_TYPE);
        !bodiless
            && request.method != Method::CONNECT
            && !is_coded(&response.headers)
            && !response.headers.contains_key(header::TRAILER)
            && !no_transform(&response.headers)
            && (is_untyped || self.types.hold(&response.headers))
    }
}

fn failed(error: std::io::Error) -> FilterError {
    FilterError::Internal(format!("encoding failed: {error}"))
}

fn length(response: &ResponseHeader) -> Option<u64> {
    response.headers.get(header::CONTENT_LENGTH)?.to_str().ok()?.parse().ok()
}

fn is_coded(headers: &HeaderMap) -> bool {
    let codings = headers.get_all(header::CONTENT_ENCODING).iter();
    codings.into_iter().any(|coding| !coding.as_bytes().trim_ascii().eq_ignore_ascii_case(b"identity"))
}

/// RFC 9110 s7.7: what says so is not changed.
fn no_transform(headers: &HeaderMap) -> bool {
    let lines = headers.get_all(header::CACHE_CONTROL).iter();
    let mut directives = lines.flat_map(|line| line.as_bytes().split(|byte| *byte == b','));
    directives.any(|directive| directive.trim_ascii().eq_ignore_ascii_case(b"no-transform"))
}

fn forget_bytes(response: &mut ResponseHeader) {
    for name in &ABOUT_BYTES {
        response.remove_header(name);
    }
}

fn encode_head(response: &mut ResponseHeader, algorithm: Algorithm) -> Result<(), FilterError> {
    forget_bytes(response);
    if let Some(weak) = response.headers.get(header::ETAG).and_then(weakened) {
        response.insert_header(header::ETAG, weak)?;
    }
    Ok(response.insert_header(header::CONTENT_ENCODING, algorithm.name())?)
}

/// The weak form of a strong entity tag: two codings of an answer are not the same byte for byte
/// (RFC 9110 s8.8.1).
fn weakened(tag: &HeaderValue) -> Option<HeaderValue> {
    let strong = tag.as_bytes().starts_with(b"\"");
    strong.then(|| HeaderValue::from_bytes(&[b"W/", tag.as_bytes()].concat()).ok()).flatten()
}

/// A 304 is about what the client has: if that was encoded here, it knows the weak tag, and a cache
/// would not find it by the strong one (RFC 9111 s4.3.4). Nor may it tell a length or a digest that only
/// the other bytes have (RFC 9110 s8.6).
fn confirm(request: &RequestHeader, response: &mut ResponseHeader) -> Result<(), FilterError> {
    forget_bytes(response);
    let Some(weak) = response.headers.get(header::ETAG).and_then(weakened) else { return Ok(()) };
    let mut known = request.headers.get_all(header::IF_NONE_MATCH).iter();
    if known.any(|line| line.as_bytes().windows(weak.len()).any(|tag| tag == weak.as_bytes())) {
        response.insert_header(header::ETAG, weak)?;
    }
    Ok(())
}

/// Tells caches that the answer depends on `Accept-Encoding`, on one line with what else it says.
fn vary(response: &mut ResponseHeader) -> Result<(), FilterError> {
    let lines: Vec<&[u8]> =
        response.headers.get_all(header::VARY).iter().map(HeaderValue::as_bytes).collect();
    let mut names = lines.iter().flat_map(|line| line.split(|byte| *byte == b',')).map(<[u8]>::trim_ascii);
    if names.any(|name| name == b"*" || name.eq_ignore_ascii_case(b"accept-encoding")) {
        return Ok(());
    }
    let merged = [&lines[..], &[b"Accept-Encoding"]].concat().join(&b", "[..]);
    let merged = HeaderValue::from_bytes(&merged)
        .map_err(|_| FilterError::Internal("joined field values are not a field value".to_owned()))?;
    Ok(response.insert_header(header::VARY, merged)?)
}

#[cfg(test)]
mod tests;
