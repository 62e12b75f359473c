//! `forward_auth`: asks another service whether a request may pass.
//!
//! ```yaml
//! - forward_auth: {upstream: sso, path: /verify, response_headers: [x-user]}
//! - forward_auth: {url: "http://127.0.0.1:8181/v1/data/api/allow", format: opa, cache: {ttl: 5s}}
//! ```
//!
//! What `auth_request` of NGINX, `ForwardAuth` of Traefik and `ext_authz` of Envoy do. The service is sent the
//! listed fields of the request and what it is about: `X-Forwarded-Method`, `-Proto`, `-Host`, `-Uri` and `-For`.
//! If it answers 2xx, the request passes, and the upstream is told the listed fields of that answer. What else it
//! answers below 500 goes to the client: the status, the body, and the fields of `refusal_headers`.
//!
//! With `format: opa` it is asked as the Open Policy Agent is: by POST of `{"input": {..}}` with `request`, `client`,
//! `consumer`, `claims`, `route`, `service`, `version` and `listener`. It answers `{"result": true}`, or an object with
//! `allow` and perhaps `headers`, `status`, `body` and `reason`. Without a `result`, nothing passes: 403.
//!
//! With `body`, it is sent the body as well, and is asked once that is there: filters below run their request phase
//! before. A filter that answers before it decided, such as `respond`, cannot: that is 502, except for problems. What a
//! route answers by itself waits for it.
//!
//! With `cache`, the same question (all that would be sent) is not asked again for a while. Leave parts out of
//! `about` and `request_headers` that the decision does not depend on.
//!
//! A service that cannot be reached, is too slow or answers 5xx makes it 503 (`filter-unavailable`); only
//! `on_error: continue` with `fail_open: true` lets requests pass then, and upstreams are told nothing.
//!
//! Fields written for upstreams are dropped from requests of clients on every route; `authorization` is replaced
//! on the routes of this filter only.
//!
//! Hardened against untrusted clients: no field of theirs reaches the service unless it is listed, and none of
//! the service's own fields comes from them. The cookies of logins (`type: oidc`) never do.

mod answer;
mod build;
mod memory;
mod opa;
mod options;
mod question;
#[cfg(test)]
mod tests;

use std::borrow::Cow;
use std::sync::Arc;
use std::time::Duration as Time;

use async_trait::async_trait;
use bytes::Bytes;
use http::header::{self, HeaderName, HeaderValue};
use http::{Method, uri::PathAndQuery};
use pingora_http::{RequestHeader, ResponseHeader};

use self::answer::{Said, Told, unavailable};
use self::memory::Memory;
use self::options::About;
pub use self::options::{CacheOptions, Format, Options};
use self::question::Question;
use crate::condition::cookie_values;
use crate::context::{Context, Slot, Verdict};
use crate::filter::{Build, BuildError, Filter};
use crate::identity::remove_cookie;
use crate::outcome::{FilterError, Outcome, serves};
use crate::path::{PathRules, normalize};
use crate::phase::{OnRequest, OnRequestBody, OnResponse, OnUpstreamRequest, Phases};
use crate::problem::{INVALID_PATH, Problem};
use crate::template::{Escape, Template};
use crate::world::{Client, Clock, Counter, UpstreamId};

/// See the [module](self).
pub struct ForwardAuth {
    /// None where there is no network.
    to: Option<UpstreamId>,
    host: Option<HeaderValue>,
    target: Target,
    /// How a path that is put together is normalised.
    rules: PathRules,
    method: Method,
    format: Format,
    about: Vec<About>,
    sent: Vec<HeaderName>,
    /// Cookies of logins: with them the service could pass for their users.
    unsent: Vec<Box<str>>,
    told: Told,
    timeout: Time,
    body: Option<u64>,
    max_body: usize,
    memory: Option<Arc<Memory>>,
    held: Slot<Held>,
    client: Arc<dyn Client>,
    clock: Arc<dyn Clock>,
    counters: Counters,
}

/// What the service is asked at.
enum Target {
    Fixed(PathAndQuery),
    Made(Template),
}

/// How far it is with a request.
#[derive(Default)]
enum Held {
    /// The body is still to come.
    #[default]
    Waiting,
    /// The service decided.
    Decided(Arc<Said>),
    /// It did not, and whether the request passes is not ours to say.
    Failed,
}

struct Counters {
    passed: Counter,
    refused: Counter,
    remembered: Counter,
    failed: Counter,
}

impl Filter for ForwardAuth {
    const NAME: &'static str = "forward_auth";
    const GUARD: bool = true;
    const DECIDES: bool = true;
    type Options = Options;

    fn build(options: Options, build: &mut Build<'_>) -> Result<Phases, BuildError> {
        build::phases(options, build)
    }
}

impl ForwardAuth {
    /// Where to ask; none if what was put together is no path.
    fn target(&self, request: &RequestHeader, ctx: &Context) -> Option<PathAndQuery> {
        let template = match &self.target {
            Target::Fixed(target) => return Some(target.clone()),
            Target::Made(template) => template,
        };
        let made = template.render(request, ctx, Escape::Url);
        let (path, query) = made.split_once('?').map_or((&*made, None), |(path, query)| (path, Some(query)));
        // What was put together may mean something else than its parts did, and a client's `..` another question.
        let path = normalize(path, &self.rules).ok()?;
        let target = match query {
            Some(query) => format!("{}?{query}", path.wire()),
            None => path.wire().to_owned(),
        };
        target.parse().ok()
    }

    /// The request as the service may see it.
    fn shown<'a>(&self, request: &'a RequestHeader) -> Cow<'a, RequestHeader> {
        if self.unsent.iter().all(|name| cookie_values(&request.headers, name).next().is_none()) {
            return Cow::Borrowed(request);
        }
        let mut shown = request.clone();
        self.unsent.iter().for_each(|name| remove_cookie(&mut shown, name));
        Cow::Owned(shown)
    }

    fn question(
        &self,
        target: &PathAndQuery,
        request: &RequestHeader,
        body: Option<&Bytes>,
        ctx: &Context,
    ) -> Result<Question, FilterError> {
        let shown = self.shown(request);
        let request = &*shown;
        let mut head = RequestHeader::build(self.method.clone(), target.as_str().as_bytes(), None)?;
        if let Some(host) = &self.host {
            head.insert_header(header::HOST, host.clone())?;
        }
        if self.format == Format::Opa {
            head.insert_header(header::CONTENT_TYPE, "application/json")?;
            return Ok(Question { head, body: opa::question(request, body, &self.sent, ctx) });
        }
        question::copy(&self.sent, request, &mut head)?;
        question::write_about(&self.about, request, ctx, &mut head)?;
        let body = body.cloned().unwrap_or_default();
        if !body.is_empty() {
            let unsent = [header::CONTENT_TYPE, header::CONTENT_ENCODING]
                .into_iter()
                .filter(|name| !self.sent.contains(name));
            question::copy(&unsent.collect::<Vec<_>>(), request, &mut head)?;
        }
        Ok(Question { head, body })
    }

    /// What the service says about a question, now or before.
    async fn ask(&self, question: Question) -> Result<Arc<Said>, FilterError> {
        let now = self.clock.now();
        let digest = self.memory.as_ref().map(|_| question.digest());
        let recalled =
            self.memory.as_ref().zip(digest).and_then(|(memory, digest)| memory.recall(&digest, now));
        if let Some(said) = recalled {
            self.counters.remembered.inc();
            return Ok(said);
        }
        let to = self.to.ok_or_else(|| unavailable("there is no network"))?;
        let Question { head, body } = question;
        let asked = self.client.send(to, head, body, Some(self.timeout)).await;
        let mut answer = asked.map_err(unavailable)?;
        let good_for = answer::good_for(&answer);
        let said = match self.format {
            Format::Fields => answer::read(answer, &self.told, self.max_body).await?,
            Format::Opa => opa::read(&mut answer, &self.told).await?,
        };
        let counter =
            if matches!(said, Said::Pass { .. }) { &self.counters.passed } else { &self.counters.refused };
        counter.inc();
        let said = Arc::new(said);
        if let (Some(memory), Some(digest)) = (&self.memory, digest) {
            memory.keep(digest, &said, good_for, self.clock.now());
        }
        Ok(said)
    }

    async fn decide(
        &self,
        request: &RequestHeader,
        body: Option<&Bytes>,
        ctx: &mut Context,
    ) -> Result<Outcome, FilterError> {
        let Some(target) = self.target(request, ctx) else {
            let detail = "the path that another service would be asked at is not valid";
            return Ok(Problem::new(&INVALID_PATH).detail(detail).into());
        };
        let question = self.question(&target, request, body, ctx)?;
        let said = self.ask(question).await.inspect_err(|_| {
            self.counters.failed.inc();
            ctx.set_slot(self.held, Held::Failed);
        })?;
        match &*said {
            Said::Pass { .. } => ctx.decide(Verdict::Passed, "the service that decides lets it pass", &[]),
            Said::Refuse { status, .. } => {
                let status = [("status", status.as_str())];
                ctx.decide(Verdict::Changed, "the service that decides refused it", &status);
            }
            Said::Forbid { reason } => {
                ctx.decide(Verdict::Changed, "the service that decides refused it", &[("reason", reason)]);
            }
        }
        let outcome = said.outcome();
        ctx.set_slot(self.held, Held::Decided(said));
        outcome
    }
}

#[async_trait]
impl OnRequest for ForwardAuth {
    async fn on_request(
        &self,
        request: &mut RequestHeader,
        ctx: &mut Context,
    ) -> Result<Outcome, FilterError> {
        if self.body.is_none() || !ctx.has_body(request) {
            return self.decide(request, None, ctx).await;
        }
        if ctx.dry_run {
            ctx.decide(Verdict::Passed, "nobody is asked: a dry run sees no body", &[]);
        } else {
            ctx.set_slot(self.held, Held::Waiting);
        }
        Ok(Outcome::Continue)
    }
}

#[async_trait]
impl OnRequestBody for ForwardAuth {
    fn max_bytes(&self) -> u64 {
        self.body.unwrap_or_default()
    }

    fn wants(&self, ctx: &Context) -> bool {
        matches!(ctx.slot(self.held), Some(Held::Waiting))
    }

    async fn on_request_body(
        &self,
        request: &mut RequestHeader,
        body: &mut Bytes,
        ctx: &mut Context,
    ) -> Result<Outcome, FilterError> {
        match ctx.slot(self.held) {
            Some(Held::Waiting) => self.decide(request, Some(body), ctx).await,
            _ => Ok(Outcome::Continue),
        }
    }
}

/// On each attempt's own copy: before, a client could have them removed by naming them in `Connection`.
#[async_trait]
impl OnUpstreamRequest for ForwardAuth {
    async fn on_upstream_request(
        &self,
        request: &mut RequestHeader,
        _: u32,
        ctx: &mut Context,
    ) -> Result<(), FilterError> {
        // A client's own copy is no better where the service said nothing.
        self.told.upstream.iter().for_each(|name| drop(request.remove_header(name)));
        let Some(Held::Decided(said)) = ctx.slot(self.held) else { return Ok(()) };
        let Said::Pass { upstream, .. } = &**said else { return Ok(()) };
        for (name, value) in upstream {
            request.append_header(name.clone(), value.clone())?;
        }
        Ok(())
    }
}

#[async_trait]
impl OnResponse for ForwardAuth {
    async fn on_response(
        &self,
        _: &RequestHeader,
        response: &mut ResponseHeader,
        ctx: &mut Context,
    ) -> Result<(), FilterError> {
        let said = match ctx.slot(self.held) {
            Some(Held::Waiting) if serves(response) => {
                return Err(FilterError::Internal("answered before the service decided".to_owned()));
            }
            Some(Held::Decided(said)) => said,
            _ => return Ok(()),
        };
        let Said::Pass { client, .. } = &**said else { return Ok(()) };
        for name in self.told.client.iter().filter(|name| **name != header::SET_COOKIE) {
            if client.iter().any(|(told, _)| told == name) {
                response.remove_header(name);
            }
        }
        for (name, value) in client {
            response.append_header(name.clone(), value.clone())?;
        }
        Ok(())
    }
}
