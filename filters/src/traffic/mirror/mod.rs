//! `mirror`: copies a share of the requests to another upstream, whose answers nobody gets.
//!
//! ```yaml
//! - mirror: {upstream: users-next, share: 10%, diff: {ignore: [/meta/time, "/items/*/id"]}}
//! ```
//!
//! A copy is what the upstream of the request gets, with `x-tollhouse-mirror`, which names the filter. It is sent
//! when the request is over, on a thread of its own and over connections of its own, so that it neither delays nor
//! fails the request, whatever its target does. Where `in_flight` copies are under way, no more are made; a body over
//! `max_body`, or one that did not come whole, is not copied, for half a request would say something else. WebSockets
//! are not copied.
//!
//! What `upstream_auth` writes is for the upstream of the request alone, and what it takes away is for no upstream: no
//! copy has either, whichever of the two stands first. Before a `cache`, where nobody knows yet whether and how the
//! upstream is asked, and before a `decompress`, where bodies are coded still, it is refused.
//!
//! With `diff`, both answers are compared: status, fields, and bodies, as JSON where both are. Fields that tell of a
//! connection or a moment (`Date`, `Age`, `Via` and the like) do not count. Bodies that have a content coding or are
//! over `diff.max_body` are not compared. Where a `cache` before it had only confirmed what it holds, there is nothing to
//! compare with. The admin API (`/api/mirrors`) shows how many differ, and examples without values; metrics count them.
//! Write `mirror` last, where it sees what the upstream gets and answers.

mod diff;
mod report;
#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use bytes::{Bytes, BytesMut};
use http::header::{CONTENT_LENGTH, IF_MODIFIED_SINCE, IF_NONE_MATCH, TRANSFER_ENCODING, UPGRADE};
use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode};
use pingora_http::{RequestHeader, ResponseHeader};
use schemars::JsonSchema;
use serde::Deserialize;

use self::diff::Pointer;
pub use self::report::{Example, Outcome as CopyOutcome, Report, Tally};
use crate::context::{Context, Slot, Verdict};
use crate::filter::{Build, BuildError, Filter};
use crate::outcome::{FilterError, Outcome};
use crate::phase::{
    Completed, OnFinish, OnRequest, OnRequestChunk, OnResponse, OnResponseChunk, OnUpstreamRequest, Phases,
};
use crate::values::{ByteSize, Duration as Time, FieldName, Name, Percent};
use crate::world::{Aside, Client, Clock, Rng, UpstreamId};

/// Says to the target of a copy that it is one.
const MARK: &str = "x-tollhouse-mirror";

/// Copies a share of the requests to another upstream, whose answers nobody gets.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(rename = "MirrorOptions")]
pub struct Options {
    /// Where copies go.
    pub upstream: Name,
    /// How many of the requests are copied.
    #[serde(default = "all")]
    pub share: Percent,
    /// The largest request body that is copied.
    #[serde(default = "body")]
    pub max_body: ByteSize,
    /// How many copies there may be at once, from the begin of their requests to their answers' ends.
    #[serde(default = "in_flight")]
    pub in_flight: std::num::NonZeroU32,
    /// How long a copy may take, its answer included.
    #[serde(default = "timeout")]
    pub timeout: Time,
    /// Compares both answers.
    #[serde(default)]
    pub diff: Option<DiffOptions>,
}

/// How answers are compared.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
#[schemars(rename = "MirrorDiffOptions")]
pub struct DiffOptions {
    /// Places in JSON bodies that do not count, with all below them: JSON Pointers (RFC 6901), where `*` is any key or place.
    pub ignore: Vec<Pointer>,
    /// Fields that do not count, beside those that tell of a connection or a moment.
    pub ignore_headers: Vec<FieldName>,
    /// The largest body of an answer that is compared.
    pub max_body: ByteSize,
}

impl Default for DiffOptions {
    fn default() -> Self {
        Self { ignore: Vec::new(), ignore_headers: Vec::new(), max_body: body() }
    }
}

fn all() -> Percent {
    Percent::from_whole(100)
}

fn body() -> ByteSize {
    ByteSize::from_kib(64)
}

fn in_flight() -> std::num::NonZeroU32 {
    std::num::NonZeroU32::new(64).expect("a literal over zero")
}

fn timeout() -> Time {
    Time::from_secs(5)
}

/// See the [module](self).
pub struct Mirror {
    upstream: UpstreamId,
    name: Arc<str>,
    mark: HeaderValue,
    options: Options,
    diff: Option<Arc<diff::Rules>>,
    client: Arc<dyn Client>,
    clock: Arc<dyn Clock>,
    rng: Arc<dyn Rng>,
    under_way: Arc<AtomicU32>,
    report: Arc<Report>,
    copy: Slot<Option<Copying>>,
}

/// A copy in the making.
struct Copying {
    place: Place,
    head: Option<RequestHeader>,
    body: BytesMut,
    /// The body came before the first attempt, since some filter wanted the whole of it.
    early: bool,
    whole: bool,
    too_large: bool,
    answer: Option<Primary>,
}

/// What the upstream of the request answered.
struct Primary {
    status: u16,
    fields: HeaderMap,
    body: BytesMut,
    too_large: bool,
    whole: bool,
}

/// One of the places that there are; free again when it is dropped.
struct Place(Arc<AtomicU32>);

impl Place {
    fn take(under_way: &Arc<AtomicU32>, most: u32) -> Option<Self> {
        let room = |count: u32| (count < most).then_some(count + 1);
        under_way.fetch_update(Ordering::Relaxed, Ordering::Relaxed, room).ok()?;
        Some(Self(under_way.clone()))
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Filter for Mirror {
    const NAME: &'static str = "mirror";
    type Options = Options;

    fn build(options: Options, build: &mut Build<'_>) -> Result<Phases, BuildError> {
        let client = build.client();
        client.open_aside();
        let instance = build.instance().clone();
        let report = build.retained(options.upstream.as_str().as_bytes(), || {
            Report::new(instance.clone(), options.upstream.shared())
        });
        report.count_into(build.metrics());
        build.mirrors(report.clone());
        let filter = Arc::new(Self {
            upstream: build.upstream("upstream", options.upstream.as_str())?,
            name: options.upstream.shared(),
            // Ids of instances are names, or made of names and signs.
            mark: HeaderValue::try_from(&*instance).unwrap_or(HeaderValue::from_static("mirror")),
            diff: options.diff.as_ref().map(|diff| Arc::new(diff::Rules::new(diff))),
            client,
            clock: build.clock(),
            rng: build.rng(),
            under_way: build.retained(b"", || AtomicU32::new(0)),
            report,
            copy: build.slot(),
            options,
        });
        let phases = Phases::new()
            .on_request(filter.clone())
            .on_upstream_request(filter.clone())
            .on_request_chunk(filter.clone())
            .on_finish(filter.clone());
        Ok(match filter.diff {
            Some(_) => phases.on_response(filter.clone()).on_response_chunk(filter),
            None => phases,
        })
    }
}

#[async_trait]
impl OnRequest for Mirror {
    async fn on_request(
        &self,
        request: &mut RequestHeader,
        ctx: &mut Context,
    ) -> Result<Outcome, FilterError> {
        let drawn = self.rng.u64() % 10_000 < u64::from(self.options.share.hundredths());
        if !drawn || request.method == Method::CONNECT || request.headers.contains_key(UPGRADE) {
            return Ok(Outcome::Continue);
        }
        let Some(place) = Place::take(&self.under_way, self.options.in_flight.get()) else {
            self.report.ended(CopyOutcome::NoRoom);
            return Ok(Outcome::Continue);
        };
        ctx.decide(Verdict::Changed, "copied", &[("to", &self.name)]);
        ctx.policies.mirrors.push(self.name.clone());
        *ctx.slot_mut(self.copy) = Some(Copying {
            place,
            head: None,
            body: BytesMut::new(),
            early: false,
            whole: false,
            too_large: false,
            answer: None,
        });
        Ok(Outcome::Continue)
    }
}

#[async_trait]
impl OnUpstreamRequest for Mirror {
    async fn on_upstream_request(
        &self,
        request: &mut RequestHeader,
        attempt: u32,
        ctx: &mut Context,
    ) -> Result<(), FilterError> {
        let Some(copying) = ctx.slot_mut(self.copy) else { return Ok(()) };
        if attempt <= 1 || copying.head.is_none() {
            copying.early = copying.whole || !copying.body.is_empty() || copying.too_large;
        }
        if !copying.early {
            // The body begins anew with each attempt.
            copying.body.clear();
            (copying.whole, copying.too_large) = (false, false);
        }
        copying.head = Some(without_secrets(request));
        Ok(())
    }
}

impl OnRequestChunk for Mirror {
    fn on_request_chunk(
        &self,
        chunk: &mut Bytes,
        end: bool,
        ctx: &mut Context,
    ) -> Result<Outcome, FilterError> {
        if let Some(copying) = ctx.slot_mut(self.copy) {
            copying.too_large |= !add(&mut copying.body, chunk, self.options.max_body.as_len());
            copying.whole |= end;
        }
        Ok(Outcome::Continue)
    }
}

/// A copy without the fields that are marked as secrets, as `upstream_auth` marks those it writes and those it replaces.
fn without_secrets(request: &RequestHeader) -> RequestHeader {
    let mut copy = request.clone();
    for (name, _) in request.headers.iter().filter(|(_, value)| value.is_sensitive()) {
        copy.remove_header(name);
    }
    copy
}

/// Whether a request may be answered that nothing changed.
fn has_condition(request: &RequestHeader) -> bool {
    [IF_NONE_MATCH, IF_MODIFIED_SINCE].iter().any(|name| request.headers.contains_key(name))
}

/// Adds a piece to a body that may be so long; false if it would be longer.
fn add(body: &mut BytesMut, piece: &Bytes, most: usize) -> bool {
    let fits = piece.len() <= most.saturating_sub(body.len());
    if fits {
        body.extend_from_slice(piece);
    }
    fits
}

#[async_trait]
impl OnResponse for Mirror {
    async fn on_response(
        &self,
        request: &RequestHeader,
        response: &mut ResponseHeader,
        ctx: &mut Context,
    ) -> Result<(), FilterError> {
        if let Some(copying) = ctx.slot_mut(self.copy) {
            // A cache before this one asked whether what it has still holds, and the copy does not.
            let holds = response.status == StatusCode::NOT_MODIFIED;
            if holds && !copying.head.as_ref().is_some_and(has_condition) {
                return Ok(());
            }
            copying.answer = Some(Primary {
                status: response.status.as_u16(),
                fields: response.headers.clone(),
                body: BytesMut::new(),
                too_large: false,
                whole: request.method == Method::HEAD,
            });
        }
        Ok(())
    }
}

impl OnResponseChunk for Mirror {
    fn on_response_chunk(
        &self,
        chunk: &mut Option<Bytes>,
        end: bool,
        ctx: &mut Context,
    ) -> Result<(), FilterError> {
        let answer = ctx.slot_mut(self.copy).as_mut().and_then(|copying| copying.answer.as_mut());
        if let (Some(answer), Some(rules)) = (answer, &self.diff) {
            if let Some(chunk) = chunk {
                answer.too_large |= !add(&mut answer.body, chunk, rules.max_body);
            }
            answer.whole |= end;
        }
        Ok(())
    }
}

impl OnFinish for Mirror {
    fn on_finish(&self, _: &Completed, ctx: &mut Context) {
        let Some(copying) = ctx.slot_mut(self.copy).take() else { return };
        // What never went to the upstream is not copied either.
        let Some(head) = copying.head else { return };
        if copying.too_large {
            return self.report.ended(CopyOutcome::TooLarge);
        }
        if !copying.whole && (!copying.body.is_empty() || !is_bodiless(&head)) {
            return self.report.ended(CopyOutcome::Incomplete);
        }
        let about = About {
            time: self.clock.wall(),
            request_id: ctx.request_id.to_string(),
            method: head.method.to_string(),
            path: ctx.path.matched().to_owned(),
        };
        self.send(copying.place, head, copying.body.freeze(), copying.answer, about);
    }
}

/// What an example tells of its request.
struct About {
    time: std::time::SystemTime,
    request_id: String,
    method: String,
    path: String,
}

/// Whether the head says that nothing follows it.
fn is_bodiless(head: &RequestHeader) -> bool {
    let length = head.headers.get(CONTENT_LENGTH).map(HeaderValue::as_bytes);
    let has_body = [Method::POST, Method::PUT, Method::PATCH].contains(&head.method);
    !head.headers.contains_key(TRANSFER_ENCODING) && length.map_or(!has_body, |length| length == b"0")
}

impl Mirror {
    fn send(
        &self,
        place: Place,
        mut head: RequestHeader,
        body: Bytes,
        primary: Option<Primary>,
        about: About,
    ) {
        let _ = head.insert_header(HeaderName::from_static(MARK), self.mark.clone());
        let (report, rules) = (self.report.clone(), self.diff.clone());
        let keep = rules.as_ref().map_or(0, |rules| rules.max_body);
        let timeout: Duration = self.options.timeout.get();
        let then = move |answer: Result<(ResponseHeader, Option<Bytes>), crate::world::ClientError>| {
            // Held until the answer is there.
            let _place = place;
            report.ended(CopyOutcome::of(&answer));
            let (Ok((head, body)), Some(rules), Some(primary)) = (answer, rules, primary) else { return };
            let old = diff::Side {
                status: primary.status,
                fields: &primary.fields,
                body: (primary.whole && !primary.too_large).then_some(&primary.body[..]),
            };
            let new =
                diff::Side { status: head.status.as_u16(), fields: &head.headers, body: body.as_deref() };
            let differences = rules.compare(&old, &new);
            let statuses = [old.status, new.status];
            let About { time, request_id, method, path } = about;
            report.compared(&differences, || Example {
                time,
                request_id,
                method,
                path,
                statuses,
                differences: differences.shown(),
            });
        };
        self.client.send_aside(Aside {
            upstream: self.upstream,
            head,
            body,
            timeout,
            keep,
            then: Box::new(then),
        });
    }
}
