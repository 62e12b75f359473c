//! A client that Pingora reads from, looked after while its request waits.

use std::pin::pin;
use std::sync::{Arc, LazyLock};
use std::task::{Context, Poll};

use futures_util::future::{BoxFuture, ready};
use pingora::http::{RequestHeader, ResponseHeader};
use pingora::proxy::Session;
use tollhouse_filters::outcome::Reply;

use super::{Call, Gateway};
use crate::cache::Announce;
use crate::upstream::Upstream;

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

/// The client of a request whose body nobody reads yet.
struct Watched<'a> {
    session: &'a mut Session,
    /// It has nothing more to say before it is answered.
    is_silent: bool,
}

impl Announce for Watched<'_> {
    /// Interim answers of a fill are not passed on.
    fn announce(&mut self, _: ResponseHeader) -> BoxFuture<'_, ()> {
        Box::pin(ready(()))
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
