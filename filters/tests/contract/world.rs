//! State, slots and side calls.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use pingora_http::RequestHeader;
use schemars::JsonSchema;
use serde::Deserialize;
use tollhouse_filters::context::{Context, Slot, Verdict};
use tollhouse_filters::filter::{Build, BuildError, Filter};
use tollhouse_filters::outcome::{FilterError, Outcome};
use tollhouse_filters::phase::{OnRequest, Phases};
use tollhouse_filters::pipeline::Stack;
use tollhouse_filters::problem::{FORBIDDEN, Problem};
use tollhouse_filters::registry::Registry;
use tollhouse_filters::world::{Client, ClientError, ScopedState, TenantId, UpstreamId};

use super::harness::gateway;

/// Counts requests under one key of its state, and its own runs within a request in its slot.
struct Count {
    state: ScopedState,
    runs: Slot<u32>,
}

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Empty {}

impl Filter for Count {
    const NAME: &'static str = "count";
    type Options = Empty;

    fn build(_: Empty, build: &mut Build<'_>) -> Result<Phases, BuildError> {
        Ok(Phases::new().on_request(Arc::new(Self { state: build.state(), runs: build.slot() })))
    }
}

#[async_trait]
impl OnRequest for Count {
    async fn on_request(&self, _: &mut RequestHeader, ctx: &mut Context) -> Result<Outcome, FilterError> {
        let count = self.state.add(ctx.tenant, b"requests", 1, Duration::from_secs(60)).await;
        let count = count.map_err(|error| FilterError::Unavailable(error.to_string()))?;
        let runs = ctx.slot_mut(self.runs);
        *runs += 1;
        let reason = format!("{count} {runs}");
        ctx.decide(Verdict::Changed, reason, &[]);
        Ok(Outcome::Continue)
    }
}

/// Asks an upstream whether the request may pass.
struct Ask {
    upstream: UpstreamId,
    client: Arc<dyn Client>,
}

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct AskOptions {
    upstream: String,
}

impl Filter for Ask {
    const NAME: &'static str = "ask";
    type Options = AskOptions;

    fn build(options: AskOptions, build: &mut Build<'_>) -> Result<Phases, BuildError> {
        let upstream = build.upstream("upstream", &options.upstream)?;
        Ok(Phases::new().on_request(Arc::new(Self { upstream, client: build.client() })))
    }
}

#[async_trait]
impl OnRequest for Ask {
    async fn on_request(&self, _: &mut RequestHeader, _: &mut Context) -> Result<Outcome, FilterError> {
        let head = RequestHeader::build("GET", b"/may", None)?;
        let reply = self.client.send(self.upstream, head, Bytes::new(), Some(Duration::from_secs(1))).await;
        let reply = reply.map_err(|error| FilterError::Unavailable(error.to_string()))?;
        Ok(if reply.head.status == 204 { Outcome::Continue } else { Problem::new(&FORBIDDEN).into() })
    }
}

fn registry() -> Registry {
    Registry::new().with::<Count>().with::<Ask>()
}

#[tokio::test]
async fn tenants_and_instances_never_share_state_or_slots() {
    let gateway = gateway(
        &registry(),
        ["[]", "[]", "[{count: {}, name: a}, {count: {}, name: b, when: {paths: [/b]}}]"],
    );
    let counts = async |target: &str, tenant: u32| {
        let mut run = gateway.begin(target);
        run.ctx.tenant = TenantId(tenant);
        run.request().await;
        run.journal()
    };
    assert_eq!(counts("/", 0).await, ["a 1 1"]);
    assert_eq!(counts("/", 0).await, ["a 2 1"]);
    assert_eq!(counts("/", 1).await, ["a 1 1"], "another tenant");
    assert_eq!(counts("/b", 0).await, ["a 3 1", "b 1 1"], "another instance");
    assert_eq!(counts("/b", 1).await, ["a 2 1", "b 1 1"]);
}

#[tokio::test]
async fn one_instance_in_two_places_is_one_state_and_runs_once() {
    let first = gateway(&registry(), ["[]", "[]", "[{count: {}, name: a}]"]);
    // The same pipeline for the listener and the route, as a chain named twice gives it.
    let mut once = first.begin("/");
    let mut both = gateway(&registry(), ["[]", "[]", "[]"]);
    let [_, _, own] = first.stack.pipelines();
    both.stack = Stack::new([own.clone(), first.stack.pipelines()[0].clone(), own.clone()]);
    let mut run = both.begin("/");
    run.request().await;
    once.request().await;
    let again = ("a".to_owned(), Verdict::Skipped, "it stands before already".to_owned());
    assert_eq!((run.journal(), run.verdicts().pop()), (vec!["a 1 1".to_owned()], Some(again)));
    assert_eq!(once.journal(), ["a 2 1"], "a new request has new slots");
}

#[tokio::test]
async fn a_side_call_reaches_the_upstream_that_was_named() {
    let gateway = gateway(&registry(), ["[]", "[]", "[{ask: {upstream: main}, name: a}]"]);
    gateway.client.reply(204, &[], []);
    gateway.client.reply(403, &[], []);
    gateway.client.fail(ClientError::Timeout);
    for expected in [None, Some(403), Some(503)] {
        assert_eq!(gateway.send("/").await.1, expected);
    }
    let sent = gateway.client.requests();
    assert_eq!(sent.len(), 3);
    assert_eq!((sent[0].upstream, sent[0].head.uri.path()), (UpstreamId(3), "/may"));
    assert_eq!(sent[0].timeout, Some(Duration::from_secs(1)));
}
