//! `fault`: delays requests and answers them with errors, to find out how clients take that.
//!
//! ```yaml
//! - fault: {delay: {percent: 10%, time: 200ms..2s}, abort: {percent: 1%, status: 503}}
//!   when: {headers: {x-chaos: {present: true}}}
//! ```

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use http::header::{CONTENT_TYPE, HeaderName, HeaderValue};
use pingora_http::{RequestHeader, ResponseHeader};
use schemars::JsonSchema;
use serde::Deserialize;

use crate::context::Context;
use crate::filter::{Build, BuildError, Filter};
use crate::outcome::{FilterError, Outcome, Reply};
use crate::phase::{OnRequest, Phases};
use crate::values::{DurationRange, Percent};
use crate::world::{Clock, Rng};

/// What a client is told whose request was aborted.
const BODY: &str = "a fault was injected\n";

static GRPC_STATUS: HeaderName = HeaderName::from_static("grpc-status");

/// What happens to some of the requests; first the delay, then the abort.
#[derive(Debug, Clone, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Options {
    /// Some requests go on later.
    pub delay: Option<Delay>,
    /// Some requests are answered with an error, and go no further.
    pub abort: Option<Abort>,
}

/// Requests that go on later.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Delay {
    /// How many of the requests.
    #[serde(default = "all")]
    pub percent: Percent,
    /// How much later; any time of a range, each as likely.
    pub time: DurationRange,
}

/// Requests that are answered with an error.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Abort {
    /// How many of the requests, those among them that were delayed too.
    #[serde(default = "all")]
    pub percent: Percent,
    /// The status, from 200 to 599.
    #[serde(default = "unavailable")]
    #[schemars(range(min = 200, max = 599))]
    pub status: u16,
    /// The status of gRPC, for clients that speak it, in the place of `status`.
    #[serde(default)]
    #[schemars(range(max = 16))]
    pub grpc_status: Option<u8>,
}

/// See the [module](self).
pub struct Fault {
    options: Options,
    clock: Arc<dyn Clock>,
    rng: Arc<dyn Rng>,
}

impl Filter for Fault {
    const NAME: &'static str = "fault";
    type Options = Options;

    fn build(options: Options, build: &mut Build<'_>) -> Result<Phases, BuildError> {
        if options.delay.is_none() && options.abort.is_none() {
            return Err(BuildError::new("no fault: add `delay` or `abort`"));
        }
        if options.abort.as_ref().is_some_and(|abort| !(200..=599).contains(&abort.status)) {
            return Err(BuildError::at("abort.status", "expected a status from 200 to 599"));
        }
        if options.abort.as_ref().and_then(|abort| abort.grpc_status).is_some_and(|status| status > 16) {
            return Err(BuildError::at("abort.grpc_status", "expected a status of gRPC, from 0 to 16"));
        }
        Ok(Phases::new().on_request(Arc::new(Self { options, clock: build.clock(), rng: build.rng() })))
    }
}

impl Fault {
    /// Whether this request is one of so many.
    fn is_hit(&self, percent: Percent) -> bool {
        self.rng.u64() % 10_000 < u64::from(percent.hundredths())
    }

    /// Any time of the range.
    fn time(&self, range: DurationRange) -> Duration {
        let width = range.last().saturating_sub(range.first());
        let millis = u64::try_from(width.as_millis()).unwrap_or(u64::MAX);
        range.first() + Duration::from_millis(self.rng.u64() % millis.saturating_add(1).max(1))
    }
}

#[async_trait]
impl OnRequest for Fault {
    async fn on_request(&self, request: &mut RequestHeader, _: &mut Context) -> Result<Outcome, FilterError> {
        if let Some(delay) = self.options.delay.as_ref().filter(|delay| self.is_hit(delay.percent)) {
            self.clock.sleep(self.time(delay.time)).await;
        }
        match self.options.abort.as_ref().filter(|abort| self.is_hit(abort.percent)) {
            Some(abort) => Ok(answer(abort, request)?.into()),
            None => Ok(Outcome::Continue),
        }
    }
}

/// Whether the client speaks gRPC; `application/grpc-web` is another protocol.
fn speaks_grpc(request: &RequestHeader) -> bool {
    let content_type = request.headers.get(CONTENT_TYPE).map(HeaderValue::as_bytes);
    let rest = content_type.and_then(|text| text.strip_prefix(b"application/grpc"));
    rest.is_some_and(|rest| matches!(rest.first(), None | Some(b'+' | b';')))
}

fn answer(abort: &Abort, request: &RequestHeader) -> Result<Reply, FilterError> {
    if let Some(status) = abort.grpc_status.filter(|_| speaks_grpc(request)) {
        let mut head = ResponseHeader::build(200, Some(2))?;
        head.insert_header(CONTENT_TYPE, HeaderValue::from_static("application/grpc"))?;
        head.insert_header(GRPC_STATUS.clone(), HeaderValue::from(u16::from(status)))?;
        return Ok(Reply::message(head, ""));
    }
    let mut head = ResponseHeader::build(abort.status, Some(2))?;
    head.insert_header(CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"))?;
    Ok(Reply::message(head, BODY))
}

fn all() -> Percent {
    Percent::from_whole(100)
}

fn unavailable() -> u16 {
    503
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use futures_util::FutureExt;

    use crate::testing::{chain, get, refused};

    #[tokio::test]
    async fn all_requests_are_aborted_unless_fewer_are_asked_for() {
        chain("- fault: {abort: {status: 418}}")
            .send(get("/"))
            .await
            .responds(418)
            .body("a fault was injected\n");
        chain("- fault: {abort: {percent: 0%}}").send(get("/")).await.continues();
    }

    #[tokio::test]
    async fn about_as_many_are_hit_as_are_asked_for() {
        let chain = chain("- fault: {abort: {percent: 20%}}");
        let mut hit = 0;
        for _ in 0..1000 {
            hit += usize::from(chain.send(get("/")).await.ctx.ended_by.is_some());
        }
        assert!((120..280).contains(&hit), "{hit}");
    }

    #[tokio::test]
    async fn a_delayed_request_goes_on_when_its_time_has_come() {
        let chain = chain("- fault: {delay: {time: 1s..2s}}");
        let mut sent = Box::pin(chain.send(get("/")));
        assert!((&mut sent).now_or_never().is_none());
        chain.clock.advance(Duration::from_millis(999));
        assert!((&mut sent).now_or_never().is_none());
        chain.clock.advance(Duration::from_millis(1001));
        sent.await.continues();
    }

    #[tokio::test]
    async fn a_condition_says_whom_it_hits() {
        let chain = chain("- fault: {abort: {status: 500}}\n  when: {headers: {x-chaos: {present: true}}}");
        chain.send(get("/")).await.continues();
        chain.send(get("/").header("x-chaos", "1")).await.responds(500);
    }

    #[tokio::test]
    async fn who_speaks_grpc_is_told_so() {
        let chain = chain("- fault: {abort: {status: 503, grpc_status: 14}}");
        for spoken in ["application/grpc", "application/grpc+proto", "application/grpc;charset=utf-8"] {
            let call = get("/").header("content-type", spoken);
            chain.send(call).await.responds(200).header("grpc-status", "14");
        }
        for other in ["application/grpc-web", "application/grpc-web+proto", "text/plain"] {
            chain.send(get("/").header("content-type", other)).await.responds(503).no_header("grpc-status");
        }
        chain.send(get("/")).await.responds(503);
    }

    #[test]
    fn a_fault_that_is_none_is_refused() {
        assert!(refused("- fault: {}").contains("add `delay` or `abort`"));
        assert!(refused("- fault: {abort: {status: 101}}").contains("200 to 599"));
        assert!(refused("- fault: {abort: {grpc_status: 17}}").contains("0 to 16"));
        assert!(refused("- fault: {delay: {time: 2s..1s}}").contains("the shorter one first"));
        assert!(refused("- fault: {delay: {percent: 10%}}").contains("time"));
    }
}
