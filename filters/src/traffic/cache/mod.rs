//! `cache`: answers from what origins answered before (RFC 9111).
//!
//! ```yaml
//! - cache: {ttl: 30s}
//! - cache: {statuses: {404: 10s}, key: {query: {except: [utm_source]}}, tags: ["product-${path.id}"]}
//! ```
//!
//! Origins say what may be stored and how long it is fresh, by `Cache-Control`, `CDN-Cache-Control` (RFC 9213),
//! `Expires` and `Vary`; `ttl` and `statuses` are for those that do not. Filters before `cache` run for every
//! request. Those after it run when the origin is asked, and what they make of the answer is stored; it must
//! therefore not depend on anything that is not a part of the key.
//!
//! A key is the URL (scheme, host, path, query), the route, and, of callers that are known, who calls. Callers share
//! answers with `shared: true`. Nothing is stored that is `private` or `no-store`, that answers `Authorization`
//! without saying that it is for all (RFC 9111 s3.5), or that sets a cookie.
//!
//! However many ask for the same, the origin is asked once. A successful request with an unsafe method, on any route,
//! takes out what is stored for its URL (RFC 9111 s4.4). `Cache-Status` tells what was done (RFC 9211).

mod key;
mod numbers;
mod options;
mod purge;
#[cfg(test)]
mod tests;

use std::sync::Arc;

use async_trait::async_trait;
use http::header::{CONNECTION, HeaderName, HeaderValue, UPGRADE};
use http::{HeaderMap, Method};
use pingora_http::{RequestHeader, ResponseHeader};

pub use options::{KeyOptions, Options, PurgeOptions, QueryOptions};

use self::key::Keys;
use self::numbers::Numbers;
use self::purge::Purges;
use crate::caching::{Ask, Asks, CacheStatus, Forwarded, Plan, RequestDirectives};
use crate::context::{Context, Slot, Verdict};
use crate::events;
use crate::filter::{Build, BuildError, Filter};
use crate::outcome::{FilterError, Outcome};
use crate::phase::{Completed, OnFinish, OnRequest, OnResponse, Phases};
use crate::tree::Path;
use crate::when::When;

/// Fields by which clients ask for another method than that of the request: frameworks obey them.
const OTHER_METHOD: [&str; 3] = ["x-http-method-override", "x-http-method", "x-method-override"];

static CACHE_STATUS: HeaderName = HeaderName::from_static("cache-status");

/// See the [module](self).
pub struct Cache {
    methods: Vec<Method>,
    bypass: Vec<When>,
    keys: Keys,
    client_control: bool,
    plan: Arc<Plan>,
    purges: Option<Purges>,
    numbers: Numbers,
    /// There, where another cache comes first: what is done with the request is that one's to tell.
    second: Slot<()>,
}

impl Filter for Cache {
    const NAME: &'static str = "cache";
    type Options = Options;

    fn build(options: Options, build: &mut Build<'_>) -> Result<Phases, BuildError> {
        options.check()?;
        let methods = options.methods()?;
        let keys = Keys::new(&options)?;
        keys.selectors().for_each(|selector| build.selects(selector));
        options.tags.iter().for_each(|tag| build.fills_in(tag));
        let bypass = bypass(&options, build)?;
        for fact in bypass.iter().filter_map(When::needs) {
            build.needs(fact);
        }
        let plan = Arc::new(options.plan(keys.has_credentials()));
        build.caches(keys.counted().clone());
        let filter = Arc::new(Self {
            methods,
            bypass,
            keys,
            client_control: options.client_control,
            plan,
            purges: options.purge.map(|options| Purges::new(options, build.cached())),
            numbers: Numbers::new(build.shared_metrics()),
            second: build.slot(),
        });
        Ok(Phases::new().on_request(filter.clone()).on_response(filter.clone()).on_finish(filter))
    }
}

/// When the cache is passed by.
fn bypass(options: &Options, build: &Build<'_>) -> Result<Vec<When>, BuildError> {
    let mut written = options.bypass.clone();
    for (at, when) in written.iter_mut().enumerate() {
        if let Some(error) = when.settle(&build.path_rules(), build.plans()).into_iter().next() {
            return Err(BuildError {
                path: Path::new().join("bypass").join(at).concat(&error.path),
                ..error
            });
        }
    }
    Ok(written.into_iter().map(When::new).collect())
}

#[async_trait]
impl OnRequest for Cache {
    async fn on_request(
        &self,
        request: &mut RequestHeader,
        ctx: &mut Context,
    ) -> Result<Outcome, FilterError> {
        if ctx.cache.is_some() {
            ctx.decide(Verdict::Passed, "another cache comes first", &[]);
            ctx.set_slot(self.second, ());
            return Ok(Outcome::Continue);
        }
        if let Some(purges) = &self.purges
            && let Some(reply) = purges.answer(request, self.keys.url(request, ctx).as_deref(), ctx).await?
        {
            return Ok(reply.into());
        }
        if let Some((forwarded, reason)) = self.unfit(request, ctx) {
            ctx.decide(Verdict::Passed, format!("the cache is not for it: {reason}"), &[]);
            ctx.cache = Some(passed(forwarded, reason));
            return Ok(Outcome::Continue);
        }
        let Some((key, (target, upstream_path))) = self.keys.write(request, ctx) else {
            ctx.decide(Verdict::Passed, "the cache is not for it: key", &[]);
            ctx.cache = Some(passed(Forwarded::Bypass, "key"));
            return Ok(Outcome::Continue);
        };
        if ctx.keeps_decisions() {
            let shown =
                String::from_utf8_lossy(key.split(|byte| *byte == 0).next().unwrap_or_default()).into_owned();
            ctx.decide(Verdict::Passed, "looks for a stored answer", &[("url", &shown)]);
        }
        let directives =
            if self.client_control { RequestDirectives::of(&request.headers) } else { Default::default() };
        let (by_identity, plan) = (self.keys.by_identity(), self.plan.clone());
        Ok(Outcome::Cache(Box::new(Ask { key, target, upstream_path, directives, by_identity, plan })))
    }
}

fn passed(forwarded: Forwarded, reason: &'static str) -> CacheStatus {
    CacheStatus { forwarded: Some(forwarded), detail: Some(reason.into()), ..CacheStatus::default() }
}

impl Cache {
    /// What was done with the request, if that is this one's to tell.
    fn told<'a>(&self, ctx: &'a Context) -> Option<&'a CacheStatus> {
        ctx.cache.as_ref().filter(|_| ctx.slot(self.second).is_none())
    }

    /// Why the cache is not for a request; none if it is.
    fn unfit(&self, request: &RequestHeader, ctx: &Context) -> Option<(Forwarded, &'static str)> {
        if !self.methods.contains(&request.method) {
            return Some((Forwarded::Method, "method"));
        }
        let fields = &request.headers;
        let bypass = |reason| Some((Forwarded::Bypass, reason));
        if ctx.has_body(request) {
            return bypass("body");
        }
        if fields.contains_key(UPGRADE) {
            return bypass("upgrade");
        }
        if takes_fields_away(fields) {
            return bypass("connection");
        }
        if fields.keys().any(|name| OTHER_METHOD.contains(&&*key::plain(name))) {
            return bypass("method-override");
        }
        if Asks::of(fields).of_origin {
            return bypass("condition");
        }
        if events::are_asked_for(fields) {
            return bypass("events");
        }
        if self.client_control && RequestDirectives::of(fields).no_store {
            return bypass("request-no-store");
        }
        // Where nobody can tell, the origin can.
        if self.bypass.iter().any(|when| when.holds(request, ctx) != Ok(false)) {
            return bypass("configured");
        }
        None
    }
}

/// Whether `Connection` names a field that goes no further and is not about the connection: what is in the key of the
/// request the origin would not see.
fn takes_fields_away(fields: &HeaderMap) -> bool {
    const OWN: [&[u8]; 7] = [
        b"close",
        b"keep-alive",
        b"te",
        b"trailer",
        b"transfer-encoding",
        b"proxy-connection",
        b"http2-settings",
    ];
    let lines = fields.get_all(CONNECTION).iter().map(HeaderValue::as_bytes);
    let mut names = lines.flat_map(|line| line.split(|byte| *byte == b',')).map(<[u8]>::trim_ascii);
    names.any(|name| {
        !OWN.iter().any(|own| name.eq_ignore_ascii_case(own))
            && HeaderName::from_bytes(name).is_ok_and(|name| fields.contains_key(name))
    })
}

#[async_trait]
impl OnResponse for Cache {
    async fn on_response(
        &self,
        _: &RequestHeader,
        response: &mut ResponseHeader,
        ctx: &mut Context,
    ) -> Result<(), FilterError> {
        if let Some(status) = self.told(ctx) {
            response.append_header(CACHE_STATUS.clone(), status.to_string())?;
        }
        Ok(())
    }
}

impl OnFinish for Cache {
    fn on_finish(&self, completed: &Completed, ctx: &mut Context) {
        if let Some(status) = self.told(ctx) {
            self.numbers.count(&ctx.route, status, completed.bytes_out);
        }
    }
}
