//! A client that Pingora reads from, looked after while its request waits.

use std::pin::pin;
use std::sync::{Arc, LazyLock};
use std::task::{Context, Poll};

use futures_util::future::BoxFuture;
use pingora::http::{RequestHeader, ResponseHeader};
use pingora::protocols::http::ServerSession;
use pingora::proxy::Session;
use tollhouse_filters::outcome::Reply;

use super::{Call, Gateway, response};
use crate::cache::Announce;
use crate::config::hedge::Hedge;
use crate::upstream::Upstream;
use crate::upstream::call::Payload;

/// Stands in the session while the request's own head is with the filters.
static AWAY: LazyLock<RequestHeader> =
    LazyLock::new(|| RequestHeader::build_no_case("GET", b"/", Some(0)).expect("a valid head"));

impl Gateway {
    /// Runs the filters, unless the client goes away while they wait.
    pub(super) async fn watched_decision(
        &self,
        session: &mut Session,
        call: &mut Call,
    ) -> Result<Arc<Upstream>, Reply> {
        // What an HTTP/1 client sends next is its body or goes through its tunnel.
        let is_silent = !call.upgrade && session.is_body_empty();
        let mut request = std::mem::replace(session.req_header_mut(), AWAY.clone());
        let mut client = Watched { session, is_silent };
        let decision = self.decision(call, &mut request, Some(&mut client)).await;
        *session.req_header_mut() = request;
        decision
    }
}

impl Gateway {
    /// As [`Gateway::hedged`]; the body of the request is none or was read.
    pub(super) async fn watched_hedge(
        &self,
        session: &mut Session,
        call: &mut Call,
        asked: (Arc<Upstream>, Hedge),
        body: Payload,
    ) -> Reply {
        let request = std::mem::replace(session.req_header_mut(), AWAY.clone());
        let mut client = Watched { session, is_silent: true };
        let reply = self.hedged(call, &request, asked, body, &mut client).await;
        *session.req_header_mut() = request;
        reply
    }
}

/// The client of a request whose body nobody reads yet.
struct Watched<'a> {
    session: &'a mut Session,
    /// It has nothing more to say before it is answered.
    is_silent: bool,
}

impl Announce for Watched<'_> {
    /// Pingora has no way to send interim answers over HTTP/2.
    fn announce(&mut self, mut head: ResponseHeader) -> BoxFuture<'_, ()> {
        Box::pin(async move {
            if let ServerSession::H1(client) = &mut *self.session.downstream_session {
                response::strip_interim(&mut head);
                // Who does not take it will not take the answer either.
                let _ = client.write_response_header(Box::new(head)).await;
            }
        })
    }

    /// HTTP/2 tells of each stream that was reset, HTTP/1 of a connection that ended.
    fn poll_gone(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let session = &mut self.session.downstream_session;
        if let Some(mut closed) = session.watch_h2_stream_close() {
            return pin!(&mut closed).poll(cx).map(drop);
        }
        if !self.is_silent {
            return Poll::Pending;
        }
        // Not kept from poll to poll: what it waits for is the connection, which is asked again.
        pin!(session.read_body_or_idle(true)).poll(cx).map(drop)
    }
}
