//! The way of one request through the steps.

use std::sync::Arc;

use bytes::Bytes;
use pingora_http::{RequestHeader, ResponseHeader};

use super::{Pipeline, Stack, Step};
use crate::caching::Ask;
use crate::context::{Context, Verdict};
use crate::outcome::{FilterError, Reply};
use crate::phase::{Completed, OnRequestBody};
use crate::selector::write_part;

/// Why the request phase stopped before its end.
#[derive(Debug)]
pub enum Stop {
    /// A step answered.
    Reply(Reply),
    /// What follows is behind a cache; asked again, the phase goes on with it.
    Cache(Box<Ask>),
}

/// Which steps of a stack were entered: one bit each.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Entered {
    steps: [u64; 3],
    /// Where the request phase goes on: the pipeline, and the step in it.
    next: (usize, usize),
}

impl Entered {
    fn add(&mut self, pipeline: usize, step: usize) {
        self.steps[pipeline] |= 1 << step;
    }

    /// Appends to `key` which steps were entered: those that were not write nothing for upstreams.
    pub fn write_key(self, key: &mut Vec<u8>) {
        self.steps.iter().for_each(|steps| key.extend_from_slice(&steps.to_be_bytes()));
    }

    /// What is still to be entered, with none of what was.
    #[must_use]
    pub fn rest(self) -> Self {
        Self { next: self.next, ..Self::default() }
    }

    fn has(self, pipeline: usize, step: u8) -> bool {
        self.steps[pipeline] & (1 << step) != 0
    }

    /// The entered steps among these takers, in written order.
    fn steps(
        self,
        stack: &Stack,
        takers: fn(&Pipeline) -> &[u8],
    ) -> impl DoubleEndedIterator<Item = &Arc<Step>> {
        stack.pipelines().iter().enumerate().flat_map(move |(nth, pipeline)| {
            let entered = takers(pipeline).iter().filter(move |step| self.has(nth, **step));
            entered.map(|step| &pipeline.steps[usize::from(*step)])
        })
    }

    /// Runs the request phase of every step that is not yet through it, in written order, and each once; stops at
    /// the first answer, and at a cache.
    pub async fn request(
        &mut self,
        stack: &Stack,
        request: &mut RequestHeader,
        ctx: &mut Context,
    ) -> Option<Stop> {
        let (first, from) = self.next;
        for (nth, pipeline) in stack.pipelines().iter().enumerate().skip(first) {
            let from = if nth == first { from } else { 0 };
            for (at, step) in pipeline.steps.iter().enumerate().skip(from) {
                self.next = (nth, at + 1);
                ctx.enter_step(step.filter, &step.instance);
                if stack.is_repeated(nth, at) {
                    ctx.decide(Verdict::Skipped, "it stands before already", &[]);
                    continue;
                }
                match step.when.as_ref().map_or(Ok(true), |when| when.holds(request, ctx)) {
                    Ok(true) => {}
                    Ok(false) => {
                        ctx.decide(Verdict::Skipped, "`when` does not hold", &[]);
                        continue;
                    }
                    Err(why) => match step.undecided(&why, ctx) {
                        Some(reply) => return Some(Stop::Reply(reply)),
                        None => continue,
                    },
                }
                // A dry run decides here and is never seen again.
                if !step.dry_run {
                    self.add(nth, at);
                }
                let decided = ctx.decisions().len();
                if let Some(stop) = step.run(request, ctx).await {
                    return Some(stop);
                }
                if ctx.keeps_decisions() && ctx.decisions().len() == decided {
                    ctx.decide(Verdict::Passed, "", &[]);
                }
            }
        }
        None
    }

    /// Enters the steps of the listener and the service that see answers, for a request that is answered before any
    /// step runs.
    pub fn answered_early(&mut self, stack: &Stack, request: &RequestHeader, ctx: &Context) {
        for (nth, pipeline) in stack.pipelines().iter().enumerate().take(2) {
            for at in pipeline.response.iter().chain(&pipeline.response_chunk).map(|at| usize::from(*at)) {
                let step = &pipeline.steps[at];
                let runs = step.when.as_ref().is_none_or(|when| when.holds(request, ctx) == Ok(true));
                if runs && !step.dry_run && !stack.is_repeated(nth, at) {
                    self.add(nth, at);
                }
            }
        }
    }

    /// The largest body that every entered step which wants the whole of it takes; `None` when none does.
    #[must_use]
    pub fn wants_body(self, stack: &Stack, ctx: &Context) -> Option<u64> {
        self.body_readers(stack, ctx).map(|filter| filter.max_bytes()).min()
    }

    /// Whether an entered step wants the whole body for more than what it tells the upstream.
    #[must_use]
    pub fn judges_body(self, stack: &Stack, ctx: &Context) -> bool {
        self.body_readers(stack, ctx).any(|filter| !filter.is_for_upstream())
    }

    fn body_readers<'a>(
        self,
        stack: &'a Stack,
        ctx: &'a Context,
    ) -> impl Iterator<Item = &'a Arc<dyn OnRequestBody>> {
        let entered = stack.sees_request_body().then(|| self.steps(stack, |pipeline| &pipeline.request_body));
        let filters = entered.into_iter().flatten().filter_map(|step| step.phases.request_body.as_ref());
        filters.filter(|filter| filter.wants(ctx))
    }

    /// Runs the body phase of the entered steps; stops at the first answer.
    pub async fn request_body(
        self,
        stack: &Stack,
        request: &mut RequestHeader,
        body: &mut Bytes,
        ctx: &mut Context,
    ) -> Option<Reply> {
        for step in self.steps(stack, |pipeline| &pipeline.request_body) {
            let Some(filter) = step.phases.request_body.as_ref().filter(|filter| filter.wants(ctx)) else {
                continue;
            };
            ctx.enter_step(step.filter, &step.instance);
            let outcome = filter.on_request_body(request, body, ctx).await;
            if let Some(reply) = step.settle(outcome, ctx) {
                return Some(reply);
            }
        }
        None
    }

    /// Whether any entered step sees pieces of the request body.
    #[must_use]
    pub fn sees_request_chunks(self, stack: &Stack) -> bool {
        stack.sees_request_chunks() && self.steps(stack, |pipeline| &pipeline.request_chunk).next().is_some()
    }

    /// Passes a piece of the request body through the entered steps; stops at the first answer.
    pub fn request_chunk(
        self,
        stack: &Stack,
        chunk: &mut Bytes,
        end: bool,
        ctx: &mut Context,
    ) -> Option<Reply> {
        self.steps(stack, |pipeline| &pipeline.request_chunk).find_map(|step| {
            let filter = step.phases.request_chunk.as_ref()?;
            ctx.enter_step(step.filter, &step.instance);
            let outcome = filter.on_request_chunk(chunk, end, ctx);
            step.settle(outcome, ctx)
        })
    }

    /// Appends to `key` the fields that entered steps write for upstreams of who calls: two requests for which
    /// they differ are two to the upstream.
    pub async fn identity_key(self, stack: &Stack, ctx: &mut Context, key: &mut Vec<u8>) {
        let identifies = |step: &&Arc<Step>| !step.declared.identity_headers.is_empty();
        for step in self.steps(stack, |pipeline| &pipeline.upstream_request).filter(identifies) {
            let Some(filter) = &step.phases.upstream_request else { continue };
            let Ok(mut head) = RequestHeader::build("GET", b"/", None) else { continue };
            // What fails here fails the request, when it is sent.
            let _ = filter.on_upstream_request(&mut head, 1, ctx).await;
            for (name, value) in &head.headers {
                write_part(name.as_str().as_bytes(), key);
                write_part(value.as_bytes(), key);
            }
        }
    }

    /// Runs the entered steps on what one attempt sends.
    pub async fn upstream_request(
        self,
        stack: &Stack,
        request: &mut RequestHeader,
        attempt: u32,
        ctx: &mut Context,
    ) -> Option<Reply> {
        for step in self.steps(stack, |pipeline| &pipeline.upstream_request) {
            let Some(filter) = &step.phases.upstream_request else { continue };
            ctx.enter_step(step.filter, &step.instance);
            if let Err(error) = filter.on_upstream_request(request, attempt, ctx).await
                && let Some(reply) = step.failed(&error, ctx)
            {
                return Some(reply);
            }
        }
        None
    }

    /// Runs the entered steps on the head of the answer, in reverse.
    ///
    /// An error aborts the answer whatever `on_error` says: half of a change is worse than none.
    pub async fn response(
        self,
        stack: &Stack,
        request: &RequestHeader,
        response: &mut ResponseHeader,
        ctx: &mut Context,
    ) -> Result<(), FilterError> {
        for step in self.steps(stack, |pipeline| &pipeline.response).rev() {
            let Some(filter) = &step.phases.response else { continue };
            ctx.enter_step(step.filter, &step.instance);
            let result = filter.on_response(request, response, ctx).await;
            result.inspect_err(|error| step.aborted(error))?;
        }
        Ok(())
    }

    /// Shows a piece of the answer's body to the entered steps, in reverse.
    pub fn response_chunk(
        self,
        stack: &Stack,
        chunk: &mut Option<Bytes>,
        end: bool,
        ctx: &mut Context,
    ) -> Result<(), FilterError> {
        for step in self.steps(stack, |pipeline| &pipeline.response_chunk).rev() {
            let Some(filter) = &step.phases.response_chunk else { continue };
            ctx.enter_step(step.filter, &step.instance);
            filter.on_response_chunk(chunk, end, ctx).inspect_err(|error| step.aborted(error))?;
        }
        Ok(())
    }

    /// Tells the entered steps how the request ended, in reverse.
    pub fn finish(self, stack: &Stack, completed: &Completed, ctx: &mut Context) {
        if !stack.sees_the_end() {
            return;
        }
        for step in self.steps(stack, |pipeline| &pipeline.finish).rev() {
            if let Some(filter) = &step.phases.finish {
                ctx.enter_step(step.filter, &step.instance);
                filter.on_finish(completed, ctx);
            }
        }
    }
}
