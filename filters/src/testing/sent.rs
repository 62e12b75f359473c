//! A request on its way through the filters, and what became of it.

use std::time::Duration;

use bytes::Bytes;
use pingora_http::{RequestHeader, ResponseHeader};

use super::answer::{Answer, joined};
use super::{Chain, Request};
use crate::caching::Ask;
use crate::context::Context;
use crate::outcome::{Body, Reply};
use crate::phase::Completed;
use crate::pipeline::{Entered, Stack, Stop};
use crate::traffic::quota;

/// What became of a request.
pub struct Sent {
    stack: Stack,
    entered: Entered,
    head: RequestHeader,
    reply: Option<Reply>,
    /// What a cache was asked.
    pub ask: Option<Box<Ask>>,
    /// The request's context.
    pub ctx: Context,
}

impl Chain {
    /// Runs the request phase.
    pub async fn send(&self, request: Request) -> Sent {
        let Request { mut head, mut ctx } = request;
        ctx.keep_decisions();
        let mut entered = Entered::default();
        let mut ask = None;
        let reply = loop {
            match entered.request(&self.stack, &mut head, &mut ctx).await {
                // There is no cache here: the request goes on.
                Some(Stop::Cache(held)) => ask = Some(held),
                Some(Stop::Reply(reply)) => break Some(reply),
                None => break None,
            }
        };
        Sent { stack: self.stack.clone(), entered, head, reply, ask, ctx }
    }

    /// Runs request and response phases, with this answer from the upstream.
    ///
    /// # Panics
    /// When the answer is not valid.
    pub async fn answer(&self, request: Request, fields: &[(&'static str, &str)]) -> Answer {
        self.send(request).await.answered(200, fields).await
    }
}

impl Sent {
    async fn filter(&mut self, head: &mut ResponseHeader) {
        let filtered = self.entered.response(&self.stack, &self.head, head, &mut self.ctx).await;
        filtered.expect("the response filters work");
    }

    /// Asserts that the request goes on.
    ///
    /// # Panics
    /// When it was answered.
    pub fn continues(self) -> Self {
        assert!(self.reply.is_none(), "answered: {:?}", self.reply);
        self
    }

    /// What callers are told in the detail of a problem, if it is answered with one.
    #[must_use]
    pub fn detail(&self) -> Option<&str> {
        match self.reply.as_ref()? {
            Reply::Problem(problem) => problem.detail.as_deref(),
            Reply::Message(_) => None,
        }
    }

    /// Asserts that the request was answered with this status; the answer passes the response filters.
    ///
    /// # Panics
    /// When it was not.
    pub fn responds(mut self, status: u16) -> Answer {
        let reply = self.reply.take().expect("an answer");
        assert_eq!(reply.status(), status);
        let (mut head, body) = match reply {
            Reply::Problem(problem) => {
                let mut head = ResponseHeader::build(problem.status(), None).expect("valid");
                for (name, value) in problem.headers {
                    head.append_header(name, value).expect("valid");
                }
                if let Some(seconds) = problem.retry_after {
                    head.append_header(http::header::RETRY_AFTER, seconds).expect("valid");
                }
                (head, Bytes::new())
            }
            Reply::Message(message) => match message.body {
                Body::Bytes(bytes) => (message.head, bytes),
                Body::Stream(_) => (message.head, Bytes::new()),
            },
        };
        futures_util::FutureExt::now_or_never(self.filter(&mut head))
            .expect("response filters of these tests do not wait");
        Answer { head, body }
    }

    /// Asserts a field of the request as the upstream would get it; several lines are joined.
    ///
    /// # Panics
    /// When it is another.
    pub fn request_header(self, name: &str, value: &str) -> Self {
        assert_eq!(joined(&self.head.headers, name).as_deref(), Some(value), "{name}");
        self
    }

    /// How much of the body is wanted whole.
    #[must_use]
    pub fn wants_body(&self) -> Option<u64> {
        self.entered.wants_body(&self.stack, &self.ctx)
    }

    /// Shows the whole of the request body; the status it was answered with, if it was.
    pub async fn body_status(&mut self, body: &[u8]) -> Option<u16> {
        let mut body = Bytes::copy_from_slice(body);
        let reply = self.entered.request_body(&self.stack, &mut self.head, &mut body, &mut self.ctx).await;
        reply.map(|reply| reply.status())
    }

    /// Runs the body phase with this body.
    #[must_use]
    pub async fn with_body(mut self, body: &[u8]) -> Self {
        let mut body = Bytes::copy_from_slice(body);
        let Self { stack, entered, head, ctx, .. } = &mut self;
        self.reply = entered.request_body(stack, head, &mut body, ctx).await;
        self
    }

    /// Shows a piece of the request body; the status it was answered with, if it was.
    pub fn request_chunk(&mut self, piece: &[u8]) -> Option<u16> {
        self.request_piece(piece, false).err()
    }

    /// Passes a piece of the request body; what comes out, or the status it was answered with.
    pub fn request_piece(&mut self, piece: &[u8], end: bool) -> Result<Bytes, u16> {
        let mut piece = Bytes::copy_from_slice(piece);
        match self.entered.request_chunk(&self.stack, &mut piece, end, &mut self.ctx) {
            Some(reply) => Err(reply.status()),
            None => Ok(piece),
        }
    }

    /// The head of one attempt at a backend.
    ///
    /// # Panics
    /// When the attempt was answered.
    pub async fn attempt(&mut self, attempt: u32) -> RequestHeader {
        self.try_attempt(attempt).await.unwrap_or_else(|reply| panic!("answered: {reply:?}"))
    }

    /// As [`attempt`](Self::attempt), or the answer that it ended with.
    pub async fn try_attempt(&mut self, attempt: u32) -> Result<RequestHeader, Reply> {
        let mut head = self.head.clone();
        let reply = self.entered.upstream_request(&self.stack, &mut head, attempt, &mut self.ctx).await;
        // As who sends it does.
        if reply.is_none() && attempt > 0 {
            quota::settle(&self.ctx);
        }
        reply.map_or(Ok(head), Err)
    }

    /// Ends the request with this status.
    pub fn finish(&mut self, status: u16) {
        let completed = Completed { status, elapsed: Duration::ZERO, bytes_in: 0, bytes_out: 0 };
        self.entered.finish(&self.stack, &completed, &mut self.ctx);
    }

    /// Passes the head of the upstream's answer.
    ///
    /// # Panics
    /// When it is not valid.
    pub async fn answered(&mut self, status: u16, fields: &[(&'static str, &str)]) -> Answer {
        let mut head = ResponseHeader::build(status, None).expect("valid");
        for (name, value) in fields {
            head.append_header(*name, *value).expect("valid");
        }
        self.filter(&mut head).await;
        Answer { head, body: Bytes::new() }
    }

    /// Passes a piece of the answer's body; what comes out.
    ///
    /// # Panics
    /// When a filter fails.
    pub fn response_piece(&mut self, piece: &[u8], end: bool) -> Bytes {
        let mut piece = Some(Bytes::copy_from_slice(piece));
        let passed = self.entered.response_chunk(&self.stack, &mut piece, end, &mut self.ctx);
        passed.expect("the response filters work");
        piece.unwrap_or_default()
    }

    /// Shows a piece of the answer's body; whether it passed.
    pub fn response_chunk(&mut self, piece: &[u8]) -> bool {
        let mut piece = Some(Bytes::copy_from_slice(piece));
        self.entered.response_chunk(&self.stack, &mut piece, false, &mut self.ctx).is_ok()
    }
}
